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

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x (b, ...), t (b,)) -> dx/dt (b, ...)"""

SOLVERS = ("euler", "heun")


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


def time_grid(steps: int, shift: float = 1.0) -> list[float]:
    """``steps + 1`` times from 1 to 0; a shift above one spends more of them near the noise."""
    if not 1 <= steps <= 1000:
        raise ValueError(f"{steps} steps were asked for; 1 to 1000 are possible")
    if not shift > 0:
        raise ValueError(f"the time shift is {shift}; it must be positive")
    inner = [1 - i / steps for i in range(1, steps)]
    # The ends are written down: rounding must not leave noise in the data, nor begin beyond the noise.
    return [1.0, *(shift * t / (1 + (shift - 1) * t) for t in inner), 0.0]


def check_eta(eta: float) -> None:
    """ValueError unless ``eta`` is a share."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; it must lie between 0 and 1")


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance ``v_u + scale (v_c - v_u)``, within ``interval`` of the time only."""

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 100:
            raise ValueError(f"guidance is {self.scale}; it must lie between 0 and 100")
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"the guidance interval is {self.interval}; it must lie within 0 and 1, in this order")

    def active(self, t: float) -> bool:
        return self.scale != 1.0 and self.interval[0] <= t <= self.interval[1]

    def combine(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        return unconditional + self.scale * (conditional - unconditional)


def guided(
    conditional: Velocity, both: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], guidance: Guidance
) -> Velocity:
    """Velocity under guidance. ``both`` gives the conditional and unconditional branches in one call."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        if not guidance.active(float(t[0])):
            return conditional(x, t)
        return guidance.combine(*both(x, t))

    return velocity


def integrate(
    velocity: Velocity,
    noise: Tensor,
    times: list[float],
    solver: str = "euler",
    on_step: Callable[[int, Tensor], bool | None] | None = None,
    eta: float = 0.0,
    fresh: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Walk from noise at ``times[0]`` to data at ``times[-1]``.

    Each step splits x into the data and the noise that the velocity implies and puts them together again for the next
    time. ``eta`` is the part of that noise which is new, drawn by ``fresh() -> (b, ...)``:

        noise' = sqrt(1 - eta^2) noise + eta fresh

    0 follows the straight path, 1 renews all of it, so that a wrong turn of an early step can be undone (diffusers'
    ``stochastic_sampling``; DDIM's eta, arXiv 2010.02502).

    ``on_step(i, estimate)`` is told the current estimate of the data after each step; returning False stops the walk.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver {solver!r} is unknown; known: {', '.join(SOLVERS)}")
    check_eta(eta)
    if eta and fresh is None:
        raise ValueError(f"eta is {eta}: there must be a source of fresh noise")
    x = noise
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        v = velocity(x, x.new_full((x.shape[0],), t))
        estimate = x - t * v
        if solver == "heun" and s > 0:
            ahead = velocity(x + (s - t) * v, x.new_full((x.shape[0],), s))
            v = (v + ahead) / 2
        x = x + (s - t) * v
        if eta and s > 0:
            implied = x + (1 - s) * v
            x = x + s * (((1 - eta**2) ** 0.5 - 1) * implied + eta * fresh())
        if on_step is not None and on_step(i, estimate) is False:
            break
    return x
