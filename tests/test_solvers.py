"""Grids and solvers: the published test vectors, diffusers' schedulers step by step, and orders of convergence."""

import itertools
import math

import numpy as np
import pytest
import torch
from towers import close, noise

from omni.decoders.flow import integrate
from omni.decoders.schedules import GRIDS, STUDENT, Schedule, fixed, karras, native, plain, shifted
from omni.decoders.solvers import UniPC

# -- grids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.1, 0.3, 7.7])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 1000])
def test_plain_grids_go_from_one_to_zero_exactly(steps, shift):
    schedule = plain(steps, shift)
    assert schedule.steps == steps
    assert schedule.levels[0] == 1.0
    assert schedule.levels[-1] == 0.0
    assert schedule.told == schedule.levels[:-1]
    assert all(a > b for a, b in itertools.pairwise(schedule.levels))
    for i, t in enumerate(schedule.levels):
        even = 1 - i / steps
        assert math.isclose(t, shift * even / (1 + (shift - 1) * even), abs_tol=1e-12)


def test_a_shift_above_one_stays_near_the_noise():
    assert plain(4).levels == (1.0, 0.75, 0.5, 0.25, 0.0)
    assert all(a > b for a, b in zip(plain(8, 3.0).levels[1:-1], plain(8).levels[1:-1], strict=True))


@pytest.mark.parametrize(
    ("steps", "shift", "first", "last"),
    [
        (4, 5.0, [999, 937, 833, 624], []),
        (35, 10.0, [999, 996, 993, 990], [483, 377, 227]),
        (30, 10.0, [], [526, 416, 256]),
        (50, 3.0, [999, 992, 985, 978], [160, 111, 57]),
    ],
)
def test_the_native_grid_tells_the_published_times(steps, shift, first, last):
    times = [round(t * 1000) for t in native(steps, shift).told]
    assert len(times) == steps
    assert times[: len(first)] == first
    assert times[steps - len(last) :] == last
    assert all(abs(t * 1000 - round(t * 1000)) < 1e-9 for t in native(steps, shift).told), "whole, cut off"


def _theirs(grid: str, shift: float, **options):
    from diffusers import UniPCMultistepScheduler

    options |= {"use_karras_sigmas": True, "sigma_max": 200.0, "sigma_min": 0.147} if grid == "karras" else {}
    return UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift, solver_order=2, **options
    )


def _started(grid: str, steps: int, shift: float):
    """diffusers' scheduler on one of our grids; the native one is handed to it, as Edge's pipeline does."""
    theirs = _theirs(grid, shift)
    if grid == "native":
        theirs.set_timesteps(sigmas=np.linspace(0.999, 0, steps + 1)[:-1])
    else:
        theirs.set_timesteps(steps)
    return theirs


GRID_CASES = [
    (grid, steps, shift)
    for grid in ("native", "shifted", "karras")
    for steps in (1, 2, 3, 4, 10, 35, 50)
    for shift in ((1.0,) if grid == "karras" else (1.0, 3.0, 10.0))
]


@pytest.mark.parametrize(("grid", "steps", "shift"), GRID_CASES)
def test_grids_are_those_of_diffusers(grid, steps, shift):
    theirs, ours = _started(grid, steps, shift), GRIDS[grid](steps, shift)
    torch.testing.assert_close(torch.tensor(ours.levels), theirs.sigmas.float(), rtol=0, atol=1e-6)
    assert [round(t * 1000) for t in ours.told] == theirs.timesteps.tolist()


def test_a_shift_is_lost_on_the_karras_grid_of_diffusers_and_refused_on_ours():
    assert _started("karras", 5, 10.0).sigmas.tolist() == _started("karras", 5, 1.0).sigmas.tolist()
    with pytest.raises(ValueError, match=r"shift is 10.*karras"):
        karras(5, 10.0)


def test_the_students_levels_are_a_shifted_grid():
    assert fixed().levels == (*STUDENT, 0.0)
    for level, even in zip(STUDENT, (1.0, 0.75, 0.5, 0.25), strict=True):
        assert abs(level - 5 * even / (1 + 4 * even)) < 5e-5


def test_grids_that_cannot_be():
    for grid, steps in itertools.product(GRIDS.values(), (0, -1, 1001)):
        with pytest.raises(ValueError, match=f"{steps} steps.*1 to 1000"):
            grid(steps, 1.0)
    for grid in (plain, native, shifted):
        with pytest.raises(ValueError, match=r"shift is -1"):
            grid(4, -1)
    for levels in ((0.5, 0.5, 0.0), (1.2, 0.5), (0.5, -0.1), (0.1, 0.9)):
        with pytest.raises(ValueError, match="must fall"):
            Schedule(levels)
    with pytest.raises(ValueError, match="1 times for 2 steps"):
        Schedule((1.0, 0.5, 0.0), (1.0,))
    with pytest.raises(ValueError, match="0 steps"):
        fixed(())


# -- solvers ---------------------------------------------------------------------------------------------------------


def _field(x, t):
    """A field that is neither straight nor linear, and depends on what the network is told."""
    return torch.tanh(1.3 * x + t.reshape(-1, *[1] * (x.dim() - 1))) * 0.8 + 0.1 * x


@pytest.mark.parametrize(("grid", "steps", "shift"), GRID_CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_unipc_is_that_of_diffusers(grid, steps, shift, seed):
    theirs, start = _started(grid, steps, shift), noise(2, 3, 5, 7, seed=seed).float()
    x = start
    for t in theirs.timesteps:
        x = theirs.step(_field(x, (t / 1000).repeat(2)), t, x).prev_sample
    ours = integrate(_field, start, GRIDS[grid](steps, shift), "unipc")
    assert float((ours - x).norm() / x.norm()) < 2e-5


@pytest.mark.parametrize("order", [1, 3])
def test_unipc_of_other_orders(order):
    from diffusers import UniPCMultistepScheduler

    theirs = UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=2.0, solver_order=order
    )
    theirs.set_timesteps(12)
    x = start = noise(2, 9).float()
    schedule, solver = shifted(12, 2.0), UniPC(shifted(12, 2.0).levels, order)
    ours = start
    for i, t in enumerate(theirs.timesteps):
        x = theirs.step(_field(x, (t / 1000).repeat(2)), t, x).prev_sample
        ours = solver.step(i, ours, _field(ours, torch.full((2,), schedule.told[i])))
    assert float((ours - x).norm() / x.norm()) < 2e-5
    with pytest.raises(ValueError, match="order is 4"):
        UniPC((1.0, 0.0), 4)


def _error(solver: str, steps: int) -> float:
    """On dx/dt = 2 x from 0.9 to 0.1, whose answer is known."""
    levels = tuple(0.9 - 0.8 * i / steps for i in range(steps + 1))
    start = torch.ones(1, 1, dtype=torch.float64)
    return abs(float(integrate(lambda x, t: 2 * x, start, Schedule(levels), solver)) - math.exp(-1.6))


def test_unipc_asks_once_a_step_and_gains_most_from_more_steps():
    asked = []
    integrate(lambda x, t: asked.append(1) or x, noise(1, 2), plain(9), "unipc")
    assert len(asked) == 9
    assert _error("unipc", 40) < _error("heun", 20) < _error("euler", 40), "of as many questions"
    for steps in (40, 80):
        assert _error("unipc", steps) / _error("unipc", 2 * steps) > 3.5


def test_what_does_not_move_stays():
    """Where the velocity is zero, as at given frames, every solver leaves x where it is."""
    start = noise(2, 6).float()

    def field(x, t):
        v = _field(x, t)
        v[:, :3] = 0
        return v

    for solver in ("euler", "heun", "unipc"):
        found = integrate(field, start, native(35, 10.0), solver)
        torch.testing.assert_close(found[:, :3], start[:, :3], rtol=1e-6, atol=1e-6)
        assert (found[:, 3:] - start[:, 3:]).abs().min() > 1e-4


def test_students_renew_all_noise_between_their_levels():
    """x = (1 - s) data + s fresh at every level: the published step, written out."""
    source, again = (torch.Generator().manual_seed(4) for _ in range(2))
    start = x = noise(2, 5).float()
    levels = fixed().levels
    for t, s in itertools.pairwise(levels):
        data = x - t * _field(x, torch.full((2,), t))
        x = (1 - s) * data + (s * torch.randn(2, 5, generator=source) if s else 0)
    ours = integrate(_field, start, fixed(), eta=1.0, fresh=lambda: torch.randn(2, 5, generator=again))
    close(ours, x, 1e-5)
