"""All shapes of a grid that fit a budget, ranked: sizes alone, so that it also works where there are no weights.

    grid: layers x channels x widths of each mixer ──> costs of each ──> limits ──> ranked; what was refused and why

Without weights the largest comes first, as the authors of the 9B sorted theirs; with the damage that cuts were measured
to do (:mod:`omni.compress.damage`) the least damaged. Limits of the grid: 40% of a width, 20% of the layers, multiples
of powers of two; widths of an MLP are also multiples of half the channels, as 15,680 = 3.5 * 4480 is. Source:
``reference`` generation_and_compression, B.1 and B.3.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from omni.compress.axes import AXES, KINDS, check_width, least, resized, unit, widths
from omni.compress.budget import Costs, Layer, Ruler, Slot
from omni.config import LETTERS, ConfigError, TowerConfig

SEARCHED = ("d_model", "d_ff", "mamba_heads", "experts", "expert_ff", "shared_ff", "latent")
"""Axes that are searched unless others are named. Query heads are left alone, as in the published recipes."""
MOST = 200_000
"""Shapes that are looked at; a finer grid is made coarser."""
STEPS = 32  # of a whole width; a step is a power of two


@dataclass(frozen=True)
class Limits:
    """What a shape must not exceed: bytes of memory; parameters of the context tower, all and those a token uses."""

    memory: int | None = None
    params: int | None = None
    active_params: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ConfigError(f"the limit of {name} is {value}; it must be positive")

    def broken(self, costs: Costs) -> str | None:
        """The first limit that ``costs`` exceeds."""
        for name, limit, value in (
            ("memory", self.memory, costs.memory),
            ("params", self.params, costs.parameters),
            ("active_params", self.active_params, costs.active),
        ):
            if limit is not None and value > limit:
                return name
        return None


@dataclass(frozen=True)
class Grid:
    """``axes`` that are searched; ``fixed`` sizes by axis; ``width`` and ``depth``, the shares that may go at most."""

    axes: tuple[str, ...] = SEARCHED
    fixed: Mapping[str, int] = field(default_factory=dict)
    width: float = 0.4
    depth: float = 0.2

    def __post_init__(self) -> None:
        unknown = sorted({*self.axes, *self.fixed} - set(AXES))
        if unknown:
            raise ConfigError(f"{', '.join(unknown)} are no axes; known: {', '.join(AXES)}")
        if not 0 <= self.width < 1 or not 0 <= self.depth < 1:
            raise ConfigError(f"width is {self.width} and depth {self.depth}; shares that may go are from 0 to 1")


@dataclass(frozen=True)
class Candidate:
    """A shape that fits. ``layers`` of the whole tower stay; ``damage`` is what it is expected to do, if known."""

    layers: tuple[int, ...]
    counts: Mapping[str, int]
    widths: Mapping[str, int]
    costs: Costs
    damage: float | None = None
    measured: float | None = None


@dataclass(frozen=True)
class Found:
    """``best``, ranked; the best for each number of layers; numbers of shapes; what was refused by which limit."""

    best: tuple[Candidate, ...]
    by_depth: Mapping[int, Candidate]
    looked_at: int
    fitting: int
    refused: Mapping[str, int]
    nearest: tuple[tuple[Candidate, str], ...]  # of what was refused, the closest to fitting
    values: Mapping[str, tuple[int, ...]]  # of each axis
    depths: int
    standing: Mapping[str, int] = field(default_factory=dict)  # place of the shapes that were watched and fit


@dataclass(frozen=True)
class Damages:
    """Measured: of each axis, size -> damage; of each number of layers that stay."""

    axes: Mapping[str, Mapping[int, float]]
    layers: Mapping[int, float]

    def of(self, axis: str, size: int) -> float:
        """At a size between two that were measured, on the line between them."""
        known = self.axes.get(axis)
        if not known:
            return 0.0
        below = max((s for s in known if s <= size), default=min(known))
        above = min((s for s in known if s >= size), default=max(known))
        share = 0.0 if above == below else (size - below) / (above - below)
        return known[below] + share * (known[above] - known[below])


def search(
    ruler: Ruler,
    limits: Limits,
    grid: Grid,
    depths: Sequence[tuple[int, ...]],
    damages: Damages | None = None,
    top: int = 10,
    watched: Mapping[str, Costs] | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Found:
    """Look at every shape of ``grid`` with each of ``depths`` (layers that stay). ConfigError where none fits.

    ``watched``: shapes by name, of which it is counted how many of the others are larger.
    """
    tower = ruler.config.context
    values = grid_values(tower, grid, len(depths))
    book = _Book(ruler, limits, top, watched or {})
    choices = {c: list(_choices(ruler, c, values, damages)) for c in _letters(ruler)}
    for d in values["d_model"]:
        base = damages.of("d_model", d) if damages else 0.0
        options = [[(c, *own) for own in _at(ruler, c, d, of)] for c, of in choices.items()]
        for chosen in product(*options):
            sizes = {"d_model": d}
            for _, own, _, _ in chosen:
                sizes |= own
            layers = {c: layer for c, _, layer, _ in chosen}
            done = base + sum(damage for *_, damage in chosen)
            for depth in depths:
                book.note(depth, sizes, layers, done + damages.layers.get(len(depth), 0.0) if damages else None)
        advance(1)
    return book.found({axis: tuple(v) for axis, v in values.items()}, len(depths))


def _letters(ruler: Ruler) -> list[str]:
    config = ruler.config
    return sorted(set(config.context.pattern) | set(config.mtp.pattern if config.mtp else ""))


Choice = tuple[dict[str, int], Slot, float]


def _choices(
    ruler: Ruler, letter: str, values: Mapping[str, Sequence[int]], damages: Damages | None
) -> Iterator[Choice]:
    """(sizes, costs that do not hang on the channels, damage) of every choice of the letter's widths."""
    tower = ruler.config.context
    axes = [axis for axis in values if AXES[axis].letter == letter]
    for sizes in product(*(values[axis] for axis in axes)):
        chosen = dict(zip(axes, sizes, strict=True))
        part = getattr(resized(tower, chosen), LETTERS[letter])
        yield chosen, ruler.slot(letter, part), sum(damages.of(*own) for own in chosen.items()) if damages else 0.0


def _at(ruler: Ruler, letter: str, d: int, choices: Sequence[Choice]) -> Iterator[tuple[dict[str, int], Layer, float]]:
    """The choices that go with ``d`` channels, with the costs of a layer."""
    for sizes, slot, damage in choices:
        if "d_ff" not in sizes or _suits(sizes["d_ff"], d, ruler.config.context):
            yield sizes, ruler.layer(letter, d, slot), damage


# -- the grid ----------------------------------------------------------------------------------------------------------


def step(tower: TowerConfig, axis: str) -> int:
    """Sizes along ``axis`` are multiples of this: a power of two, about a thirty-second of it, and its groups."""
    whole = widths(tower, tower.pattern)[axis]
    return math.lcm(unit(tower, axis), 1 << max(0, (whole // STEPS).bit_length() - 1))


def grid_values(tower: TowerConfig, grid: Grid, depths: int) -> dict[str, list[int]]:
    """Sizes of every axis of ``tower``, the largest first.

    Steps are doubled, the finest first, while there are too many shapes with ``depths`` numbers of layers.
    """
    there = widths(tower)
    for axis, size in grid.fixed.items():
        check_width(tower, axis, size)
    searched = [axis for axis in there if axis in grid.axes and axis not in grid.fixed]
    steps = {axis: step(tower, axis) for axis in searched}

    def values(axis: str) -> list[int]:
        if axis not in steps:
            return [grid.fixed.get(axis, there[axis])]
        low = max(least(tower, axis), math.ceil(there[axis] * (1 - grid.width)))
        return [there[axis], *range((there[axis] - 1) // steps[axis] * steps[axis], low - 1, -steps[axis])]

    while math.prod(len(values(axis)) for axis in there) * max(1, depths) > MOST:
        finest = max(searched, key=lambda axis: len(values(axis)))
        if len(values(finest)) == 1:
            raise ConfigError(f"{depths} ways of leaving out layers are too many to look at; fix numbers of layers")
        steps[finest] *= 2
    found = {axis: values(axis) for axis in there}
    if "d_ff" in steps:
        low = math.ceil(there["d_ff"] * (1 - grid.width))
        ratios = {d // 2 * k for d in found["d_model"] if d % 64 == 0 for k in range(1, 2 * there["d_ff"] // d + 1)}
        found["d_ff"] = sorted({*found["d_ff"], *(f for f in ratios if low <= f <= there["d_ff"])}, reverse=True)
    return found


def _suits(f: int, d: int, tower: TowerConfig) -> bool:
    """A width of an MLP: a multiple of its step, or of half the channels that it goes with."""
    return f == tower.mlp.d_ff or f % step(tower, "d_ff") == 0 or f % (d // 2) == 0


def all_depths(tower: TowerConfig, grid: Grid, pinned: Mapping[str, int]) -> list[tuple[int, ...]]:
    """Layers that stay for every split of what goes over the letters; which ones they are is left to calibration.

    ``pinned``: numbers of layers by name, of all of them or of a kind (:data:`omni.compress.axes.KINDS`).
    """
    check_pins(tower, pinned)
    letters = sorted(set(tower.pattern))
    there = {letter: tower.pattern.count(letter) for letter in letters}
    names = {letter: name for name, letter in KINDS.items()}
    ranges = [
        [pinned[names[c]]]
        if names[c] in pinned
        else range(there[c], max(1, math.ceil(there[c] * (1 - grid.width))) - 1, -1)
        for c in letters
    ]
    every = 2 if tower.n_layers >= 16 else 1
    totals = (
        [pinned["layers"]]
        if "layers" in pinned
        else range(tower.n_layers, math.ceil(tower.n_layers * (1 - grid.depth)) - 1, -every)
    )
    found = [spread(tower, dict(zip(letters, n, strict=True))) for n in product(*ranges) if sum(n) in totals]
    if not found:
        raise ConfigError(
            f"no number of layers of {there} is left with {dict(pinned)} and at most {grid.depth:.0%} gone"
        )
    return found


def check_pins(tower: TowerConfig, pinned: Mapping[str, int]) -> None:
    """ConfigError for numbers of layers that the tower does not have."""
    for name, count in pinned.items():
        if name not in KINDS:
            raise ConfigError(f"{name!r} is no kind of layer; known: {', '.join(KINDS)}")
        there = tower.n_layers if name == "layers" else tower.pattern.count(KINDS[name])
        if not (1 if name == "layers" else 0) <= count <= there:
            raise ConfigError(f"{name} is {count}; the tower has {there}")


def spread(tower: TowerConfig, counts: Mapping[str, int]) -> tuple[int, ...]:
    """Layers that stay, ``counts`` of each letter: those that go are spread evenly over the letter's."""
    gone: set[int] = set()
    for letter, count in counts.items():
        own = [i for i, c in enumerate(tower.pattern) if c == letter]
        many = len(own) - count
        gone |= {own[(2 * k + 1) * len(own) // (2 * many)] for k in range(many)}
    return tuple(i for i in range(tower.n_layers) if i not in gone)


# -- ranking -----------------------------------------------------------------------------------------------------------


class _Book:
    """What was looked at, what fits, and the best of it."""

    def __init__(self, ruler: Ruler, limits: Limits, top: int, watched: Mapping[str, Costs]) -> None:
        self.ruler, self.limits, self.top = ruler, limits, top
        self.watched = {name: self._size(costs) for name, costs in watched.items() if not limits.broken(costs)}
        self.places = dict.fromkeys(self.watched, 1)
        self.pattern = ruler.config.context.pattern
        self.looked_at = self.fitting = 0
        self.refused: dict[str, int] = {}
        self.heap: list = []
        self.near: list = []
        self.by_depth: dict[int, tuple] = {}
        self.counted: dict[tuple[int, ...], dict[str, int]] = {}

    def note(
        self, depth: tuple[int, ...], sizes: dict[str, int], layers: dict[str, Layer], damage: float | None
    ) -> None:
        self.looked_at += 1
        counts = self.counted.get(depth)
        if counts is None:
            kept = "".join(self.pattern[i] for i in depth)
            counts = self.counted[depth] = {c: kept.count(c) for c in layers}
        costs = self.ruler.sum(sizes["d_model"], counts, layers)
        broken = self.limits.broken(costs)
        entry = (self._rank(costs, damage), -self.looked_at, Candidate(depth, counts, sizes, costs, damage))
        if broken is not None:
            self.refused[broken] = self.refused.get(broken, 0) + 1
            _keep(self.near, (-self._over(costs, broken), *entry[1:], broken), 3)
            return
        self.fitting += 1
        for name, size in self.watched.items():
            self.places[name] += self._size(costs) > size
        _keep(self.heap, entry, self.top)
        held = self.by_depth.get(len(depth))
        if held is None or entry[:2] > held[:2]:
            self.by_depth[len(depth)] = entry

    def _rank(self, costs: Costs, damage: float | None) -> tuple[float, ...]:
        """Higher is better: less damage, else more memory, or more parameters where memory is no limit."""
        return (0.0 if damage is None else -damage, self._size(costs))

    def _size(self, costs: Costs) -> float:
        return float(costs.memory if self.limits.memory is not None else costs.parameters)

    def _over(self, costs: Costs, broken: str) -> float:
        value = {"memory": costs.memory, "params": costs.parameters, "active_params": costs.active}[broken]
        return value / getattr(self.limits, broken)

    def found(self, values: Mapping[str, tuple[int, ...]], depths: int) -> Found:
        nearest = tuple((entry[2], entry[3]) for entry in sorted(self.near, reverse=True))
        if not self.fitting:
            closest = nearest[0][0].costs if nearest else None
            smallest = f"; the closest of {self.looked_at:,} needs {describe(closest)}" if closest else ""
            raise ConfigError(f"no shape of the grid fits {said(self.limits)}{smallest}")
        best = tuple(entry[2] for entry in sorted(self.heap, reverse=True))
        by_depth = {n: self.by_depth[n][2] for n in sorted(self.by_depth, reverse=True)}
        return Found(best, by_depth, self.looked_at, self.fitting, self.refused, nearest, values, depths, self.places)


def _keep(heap: list, entry: tuple, most: int) -> None:
    if len(heap) < most:
        heapq.heappush(heap, entry)
    elif entry[:2] > heap[0][:2]:
        heapq.heapreplace(heap, entry)


def describe(costs: Costs) -> str:
    """In words, for messages."""
    gib = 1 << 30
    return f"{costs.memory / gib:.3f} GiB and {costs.parameters:,} parameters, {costs.active:,} a token"


def said(limits: Limits) -> str:
    """In words, for messages."""
    parts = [f"{limits.memory / (1 << 30):.3f} GiB"] if limits.memory is not None else []
    parts += [f"{limits.params:,} parameters"] if limits.params is not None else []
    parts += [f"{limits.active_params:,} parameters a token"] if limits.active_params is not None else []
    return " and ".join(parts) or "no limit"
