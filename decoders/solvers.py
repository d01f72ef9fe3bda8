"""Solvers of the flow: from one noise level to the next, given the velocity there.

    euler   x + (s - t) v
    heun    the same with the mean of the velocities at both ends; the loop asks for the second one
    unipc   a predictor and a corrector over the data that past velocities imply (UniPC, arXiv 2302.04867: the form with
            B(h) = e^h - 1 on predictions of the data), of ``order``, lower in the first steps and in the last ones

A solver belongs to one tensor and one walk: it remembers what it has seen. Tensors that are denoised together have one
each. Parity: diffusers' ``UniPCMultistepScheduler`` with ``solver_type="bh2"`` and flow prediction.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

PURE = 1 - 1e-6


class Solver(Protocol):
    """Made with the levels of the walk, falling, the last one included."""

    looks_ahead: bool

    def step(self, i: int, x: Tensor, v: Tensor) -> Tensor:
        """x at level ``i`` and the velocity there -> x at level ``i + 1``."""
        ...


class Euler:
    looks_ahead = False

    def __init__(self, levels: Sequence[float]) -> None:
        self.levels = levels

    def step(self, i: int, x: Tensor, v: Tensor) -> Tensor:
        return x + (self.levels[i + 1] - self.levels[i]) * v


class Heun(Euler):
    """Euler's step on a mean of two velocities, of which the loop gets the second at Euler's end point."""

    looks_ahead = True


class UniPC:
    looks_ahead = False

    def __init__(self, levels: Sequence[float], order: int = 2) -> None:
        if not 1 <= order <= 3:
            raise ValueError(f"the order is {order}; it must be 1, 2 or 3")
        self.levels, self.order = levels, order
        self.estimates: list[Tensor] = []  # of the data, at the levels passed, the latest last
        self.before: Tensor | None = None  # x that the last prediction started from
        self.used = 0  # order of the last prediction

    def step(self, i: int, x: Tensor, v: Tensor) -> Tensor:
        estimate = x - self.levels[i] * v
        if self.before is not None:
            x = self._correct(i, estimate)
        self.estimates = [*self.estimates, estimate][-self.order :]
        self.used = min(self.order, len(self.estimates), len(self.levels) - 1 - i)
        self.before = x
        return self._predict(i, x)

    def _predict(self, i: int, x: Tensor) -> Tensor:
        latest, s, t = self.estimates[-1], self.levels[i], self.levels[i + 1]
        if t == 0:
            return latest  # the limit of the formula
        h, ratios, slopes = self._history(i, i + 1)
        # At order 2 any share keeps the order; this is the published one.
        shares = [0.5] if self.used == 2 else _shares(h, ratios)
        change = sum(share * slope for share, slope in zip(shares, slopes, strict=True))
        return t / s * x - (1 - t) * math.expm1(-h) * (latest + change)

    def _correct(self, i: int, found: Tensor) -> Tensor:
        """x at level ``i`` again, from where the last prediction started, now that the data it implies are known."""
        latest, s, t = self.estimates[-1], self.levels[i - 1], self.levels[i]
        h, ratios, slopes = self._history(i - 1, i)
        shares = [0.5] if self.used == 1 else _shares(h, [*ratios, 1.0])
        slopes = [*slopes, found - latest]
        change = sum(share * slope for share, slope in zip(shares, slopes, strict=True))
        return t / s * self.before - (1 - t) * math.expm1(-h) * (latest + change)

    def _history(self, start: int, end: int) -> tuple[float, list[float], list[Tensor]]:
        """Step in half log signal-to-noise; earlier levels in steps, and the estimates' slopes towards them."""
        here = _signal(self.levels[start])
        h = _signal(self.levels[end]) - here
        ratios = [(_signal(self.levels[start - k]) - here) / h for k in range(1, self.used)]
        slopes = [(self.estimates[-1 - k] - self.estimates[-1]) / r for k, r in enumerate(ratios, start=1)]
        return h, ratios, slopes


def _shares(h: float, nodes: Sequence[float]) -> list[float]:
    """How much the slope towards each node counts in a step of ``h``; nodes are measured in steps."""
    decay, wanted, factorial = math.expm1(-h), [], 1
    phi = decay / -h - 1
    for k in range(1, len(nodes) + 1):
        wanted.append(phi * factorial / decay)
        factorial *= k + 1
        phi = phi / -h - 1 / factorial
    rows = np.array([[node**k for node in nodes] for k in range(len(nodes))])
    return np.linalg.solve(rows, np.array(wanted)).tolist() if nodes else []


def _signal(level: float) -> float:
    """Logarithm of data over noise; pure noise counts as almost pure, as in diffusers."""
    level = min(level, PURE)
    return math.log1p(-level) - math.log(level)


SOLVERS: dict[str, type[Solver]] = {"euler": Euler, "heun": Heun, "unipc": UniPC}

__all__ = ["SOLVERS", "Euler", "Heun", "Solver", "UniPC"]
