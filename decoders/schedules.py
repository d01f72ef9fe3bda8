"""Noise levels of a denoising walk, and what the network is told at each.

    x = (1 - s) data + s noise        s falls from noise to 0

    plain       even steps, shifted
    native      as Cosmos 3 is trained: even from 0.999, shifted; the network is told whole thousandths, cut off
    shifted     diffusers' UniPC on the flow grid: even from 1 to 1/1000, shifted, cut off as well
    karras      diffusers' UniPC with ``use_karras_sigmas``: no shift has a meaning there
    fixed       the levels that a student of few steps was distilled at

The shift is ``s k / (1 + (s - 1) k)``: above one it spends more steps near the noise, as larger pictures need. Source:
``reference`` cosmos3, section 4.2; Karras et al., arXiv 2206.00364, equation 5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

MOST_STEPS = 1000
TRAINED = 1000  # noise levels that the published networks were told in training, as whole numbers
FIRST = 0.999  # level that the native grid starts at
SIGMAS = 0.147, 200.0  # least and most of the published Karras grid, noise over data
RHO = 7.0
STUDENT = (1.0, 0.9375, 0.8333, 0.625)
"""The published students of four steps: 1, 3/4, 1/2, 1/4 shifted by 5."""


@dataclass(frozen=True)
class Schedule:
    """``levels`` of the walk, falling, one more than steps; ``told`` (steps,) to the network, default the same."""

    levels: tuple[float, ...]
    told: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        steps = len(self.levels) - 1
        if not 1 <= steps <= MOST_STEPS:
            raise ValueError(f"{steps} steps were asked for; 1 to {MOST_STEPS} are possible")
        if not all(1 >= a > b >= 0 for a, b in zip(self.levels, self.levels[1:], strict=False)):
            raise ValueError(f"noise levels must fall within 1 and 0, not {self.levels[:8]}")
        if len(self.told or self.levels[1:]) != steps:
            raise ValueError(f"{len(self.told)} times for {steps} steps")
        if not self.told:
            object.__setattr__(self, "told", self.levels[:-1])

    @property
    def steps(self) -> int:
        return len(self.told)


def plain(steps: int, shift: float = 1.0) -> Schedule:
    """From 1 to 0."""
    _check(steps, shift)
    # The ends are written down: rounding must not leave noise in the data, nor begin beyond the noise.
    return Schedule((1.0, *(_shift(1 - i / steps, shift) for i in range(1, steps)), 0.0))


def native(steps: int, shift: float = 1.0) -> Schedule:
    _check(steps, shift)
    return _whole([_shift(level, shift) for level in np.linspace(FIRST, 0, steps + 1)[:-1].tolist()])


def shifted(steps: int, shift: float = 1.0) -> Schedule:
    _check(steps, shift)
    levels = [_shift(level, shift) for level in np.linspace(1, 1 / TRAINED, steps + 1)[:-1].tolist()]
    return _whole([min(level, 1 - 1e-6) for level in levels])


def karras(steps: int, shift: float = 1.0) -> Schedule:
    """``shift`` must be left alone: this grid knows none."""
    _check(steps, shift)
    if shift != 1:
        raise ValueError(f"the shift is {shift}; the karras grid has none (it must be 1)")
    low, high = (sigma ** (1 / RHO) for sigma in SIGMAS)
    sigmas = [(high + share * (low - high)) ** RHO for share in np.linspace(0, 1, steps).tolist()]
    return _whole([sigma / (1 + sigma) for sigma in sigmas])


def fixed(levels: Sequence[float] = STUDENT) -> Schedule:
    """``levels`` without the last, 0."""
    return Schedule((*levels, 0.0))


GRIDS: dict[str, Callable[[int, float], Schedule]] = {
    "plain": plain,
    "native": native,
    "shifted": shifted,
    "karras": karras,
}


def _whole(levels: list[float]) -> Schedule:
    """The network is told whole thousandths: the published loops keep their times as integers, which cuts them off."""
    return Schedule((*levels, 0.0), tuple(int(level * TRAINED) / TRAINED for level in levels))


def _shift(level: float, shift: float) -> float:
    return shift * level / (1 + (shift - 1) * level)


def _check(steps: int, shift: float) -> None:
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"{steps} steps were asked for; 1 to {MOST_STEPS} are possible")
    if not shift > 0:
        raise ValueError(f"the time shift is {shift}; it must be positive")


__all__ = ["GRIDS", "STUDENT", "Schedule", "fixed", "karras", "native", "plain", "shifted"]
