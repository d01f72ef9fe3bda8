"""Flow matching: the straight path between data and noise, guidance, and the loop that walks it.

    x_t = (1 - t) data + t noise        velocity = dx/dt = noise - data        t = 1 is noise, t = 0 is data

Everything here is arithmetic over a callable ``velocity(x, t)``; no model is imported. Source of the conventions:
Lipman et al., arXiv 2210.02747, with Cosmos 3's direction of time.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from omni.decoders.schedules import Schedule
from omni.decoders.solvers import SOLVERS

State = Tensor | dict[str, Tensor]
"""What is denoised, (b, ...), or several such by name."""

Velocity = Callable[[State, Tensor], State]
"""(x (b, ...), t (b,)) -> dx/dt (b, ...)"""


def interpolate(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Point of the straight path at time t (b,); t = 0 is data."""
    t = t.reshape(-1, *[1] * (data.dim() - 1)).to(data.dtype)
    return (1 - t) * data + t * noise


def sample_times(
    n: int, generator: torch.Generator | None, mean: float = 0.0, shift: float = 1.0, std: float = 1.0
) -> Tensor:
    """(n,) training times: sigmoid of a normal, then the resolution shift ``s t / (1 + (s - 1) t)``."""
    t = torch.sigmoid(torch.randn(n, generator=generator) * std + mean)
    return shift * t / (1 + (shift - 1) * t)


def check_walk(solver: str, eta: float) -> None:
    """ValueError unless there is such a solver, ``eta`` is a share, and the two go together."""
    if solver not in SOLVERS:
        raise ValueError(f"solver {solver!r} is unknown; known: {', '.join(SOLVERS)}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; it must lie between 0 and 1")
    if eta and solver == "unipc":
        raise ValueError(f"eta is {eta}: the solver 'unipc' builds on earlier steps, which fresh noise would falsify")


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance ``v = v_u + scale (v_c - v_u)``, within ``interval`` of the time only.

    The ends of the interval are outside, as published; pure noise, 1, is inside one that reaches to 1. With
    ``normalize`` v is never longer than v_c: of each sample, over all that is denoised together.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    normalize: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 100:
            raise ValueError(f"guidance is {self.scale}; it must lie between 0 and 100")
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"the guidance interval is {self.interval}; it must lie within 0 and 1, in this order")

    def active(self, t: float) -> bool:
        low, high = self.interval
        return self.scale != 1.0 and (low < t < high or t == high == 1)

    def combine(self, conditional: State, unconditional: State) -> State:
        if isinstance(conditional, Tensor):
            return self.combine({"": conditional}, {"": unconditional})[""]
        v = {name: u + self.scale * (conditional[name] - u) for name, u in unconditional.items()}
        if not self.normalize:
            return v
        most = _length(conditional) / _length(v).clamp(min=torch.finfo(torch.float32).tiny)
        return {
            name: own * most.clamp(max=1).to(own.dtype)[(..., *[None] * (own.dim() - 1))] for name, own in v.items()
        }


def _length(state: dict[str, Tensor]) -> Tensor:
    """(b,) of each sample, over all tensors."""
    return sum(own.flatten(1).float().square().sum(1) for own in state.values()).sqrt()


def guided(conditional: Velocity, both: Callable[[State, Tensor], tuple[State, State]], guidance: Guidance) -> Velocity:
    """Velocity under guidance. ``both`` gives the conditional and unconditional branches in one call."""

    def velocity(x: State, t: Tensor) -> State:
        if not guidance.active(float(t[0])):
            return conditional(x, t)
        return guidance.combine(*both(x, t))

    return velocity


def integrate(
    velocity: Velocity,
    noise: State,
    schedule: Schedule,
    solver: str = "euler",
    on_step: Callable[[int, State], bool | None] | None = None,
    eta: float = 0.0,
    fresh: Callable[[], State] | None = None,
) -> State:
    """Walk from noise at the first level of ``schedule`` to data at the last.

    Several tensors that are denoised together (pictures, sound, actions) are a dict of them, in every place:
    ``velocity`` is asked for all at once, and each has a solver of its own.

    With ``eta`` each of Euler's steps splits x into the data and the noise that the velocity implies and puts them
    together again for the next level. ``eta`` is the part of that noise which is new, drawn by ``fresh()``:

        noise' = sqrt(1 - eta^2) noise + eta fresh

    0 follows the straight path, 1 renews all of it, so that a wrong turn of an early step can be undone (diffusers'
    ``stochastic_sampling``; DDIM's eta, arXiv 2010.02502; the published students of few steps).

    ``on_step(i, estimate)`` is told the current estimate of the data after each step; returning False stops the walk.
    """
    check_walk(solver, eta)
    if eta and fresh is None:
        raise ValueError(f"eta is {eta}: there must be a source of fresh noise")
    single = isinstance(noise, Tensor)
    x = {"": noise} if single else dict(noise)
    walks = {name: SOLVERS[solver](schedule.levels) for name in x}

    def given(state: dict[str, Tensor]) -> State:
        return state[""] if single else state

    def ask(state: dict[str, Tensor], time: float) -> dict[str, Tensor]:
        first = next(iter(state.values()))
        exact = torch.promote_types(first.dtype, torch.float32)  # thousandths are lost in bfloat16
        found = velocity(given(state), first.new_full((first.shape[0],), time, dtype=exact))
        return {"": found} if single else found

    for i, (t, s) in enumerate(itertools.pairwise(schedule.levels)):
        v = ask(x, schedule.told[i])
        estimate = {name: x[name] - t * v[name] for name in x}
        if SOLVERS[solver].looks_ahead and s > 0:
            ahead = ask({name: x[name] + (s - t) * v[name] for name in x}, (*schedule.told, s)[i + 1])
            v = {name: (v[name] + ahead[name]) / 2 for name in x}
        x = {name: walks[name].step(i, x[name], v[name]) for name in x}
        if eta and s > 0:
            new = {"": fresh()} if single else fresh()
            implied = {name: x[name] + (1 - s) * v[name] for name in x}
            x = {name: x[name] + s * (((1 - eta**2) ** 0.5 - 1) * implied[name] + eta * new[name]) for name in x}
        if on_step is not None and on_step(i, given(estimate)) is False:
            break
    return given(x)
