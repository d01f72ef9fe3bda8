"""From a model and calibration inputs, or from sizes alone, to a smaller one and the reasons for it.

    importance of units, order of layers ──> damage of single cuts ──> search under the limits
        ──> the best few are cut and measured ──> the least damaged one, and a report

:func:`plan` does what needs no weights, :func:`compress` all of it, :func:`write` saves the result as a checkpoint.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from omni.checkpoint import CheckpointError
from omni.compress.axes import KINDS, widths, within
from omni.compress.budget import Costs, Ruler, Use
from omni.compress.damage import Judge, measure_damages, trials
from omni.compress.depth import DepthOrder, passes, rank
from omni.compress.importance import Importance, choose, measure
from omni.compress.report import Report
from omni.compress.search import Found, Grid, Limits, all_depths, check_pins, grid_values, search
from omni.compress.surgery import Kept, cut
from omni.config import ConfigError, OmniConfig
from omni.families import base_folder, compute_dtype, families, presets, read_folder, save
from omni.families.convert import COPIED
from omni.inputs import Inputs
from omni.model import Omni
from omni.tensorfile import write_json

TRIED = 8
"""Candidates that are cut and measured as they are."""
COMPONENTS = ("vae", "sound_tokenizer", "text_tokenizer")
"""Folders that lie beside the weights and stay as they are."""

Known = dict[str, tuple[dict[str, int], dict[str, int], Costs]]
Bar = Callable[[str, int], Callable[[int], None]]


@dataclass(frozen=True)
class Task:
    """What is asked for: ``limits`` for the shapes of ``grid``; ``layers``, numbers of layers that stay, by kind.

    Without limits nothing is searched: what ``grid.fixed`` and ``layers`` name is cut, everything else stays.
    """

    limits: Limits = field(default_factory=Limits)
    use: Use = field(default_factory=Use)
    grid: Grid = field(default_factory=Grid)
    layers: Mapping[str, int] = field(default_factory=dict)
    depth_by: str = "mse"
    tried: int = TRIED

    def __post_init__(self) -> None:
        if not self.limited:
            if not self.grid.fixed and not self.layers:
                raise ConfigError("nothing is asked for: give a budget, a number of parameters or a shape")
            object.__setattr__(self, "grid", replace(self.grid, axes=(), depth=0.0))

    @property
    def limited(self) -> bool:
        return any(value is not None for value in vars(self.limits).values())


def plan(name: str, config: OmniConfig, task: Task, top: int = 10) -> Report:
    """What fits, from the sizes alone: which layers and units would go is left open. Nothing is allocated."""
    ruler = Ruler(config, task.use)
    gone = max(task.grid.depth, 1 - task.layers.get("layers", config.context.n_layers) / config.context.n_layers)
    depths = all_depths(config.context, replace(task.grid, depth=gone), task.layers)
    known = published(config, ruler)
    with _bars() as bar:
        channels = grid_values(config.context, task.grid, len(depths))["d_model"]
        watched = {name: costs for name, (_, _, costs) in known.items()}
        found = search(ruler, task.limits, task.grid, depths, None, top, watched, bar("shapes", len(channels)))
    return _report(name, ruler, task, found, known)


def compress(
    model: Omni, batches: Sequence[Inputs], task: Task, *, name: str = "model", journal: Path | None = None
) -> tuple[Omni, Kept, Report]:
    """The smaller model, what was kept of the whole one, and the report.

    Args:
        batches: calibration inputs. Units and layers are ranked on all of them, damages measured on every second.
        journal: file that the order of layers is kept in while it is found, so that a broken-off run goes on.

    Raises:
        ConfigError: a task that this model cannot meet.
    """
    if not batches:
        raise ConfigError("there is nothing to calibrate with: no batch was given")
    config, tower = model.config, model.config.context
    ruler = Ruler(config, task.use)
    with _bars() as bar:
        scores = measure(model, _each(batches, bar("importance of units", len(batches))))
        order, depths = _depths(model, batches, task, journal, bar)
        values = grid_values(tower, task.grid, len(depths))
        judge = Judge(model, batches[::2])
        searched = {axis: own for axis, own in values.items() if len(own) > 1}
        tries = trials(searched, depths)
        damages = (
            measure_damages(judge, scores, searched, depths, bar("damage of cuts", tries)) if task.limited else None
        )
        shapes = bar("shapes", len(values["d_model"]))
        found = search(ruler, task.limits, task.grid, depths, damages, task.tried, advance=shapes)
        found = _tried(found, judge, scores, bar("candidates", len(found.best)))
    best = min(found.best, key=lambda candidate: candidate.measured)
    kept = choose(tower, scores, best.layers, best.widths)
    small = cut(model, kept)
    if ruler.costs(small.config) != best.costs:
        raise ConfigError(f"the cut model costs {ruler.costs(small.config)}, the shape was to cost {best.costs}")
    report = _report(name, ruler, task, found, published(config, ruler))
    return small, kept, replace(report, order=order, scores=scores, damages=damages, chosen=best)


def published(config: OmniConfig, ruler: Ruler) -> Known:
    """Presets that ``config`` can be cut to: layers of each letter, widths, costs."""
    others = {name: p.config for name, p in presets().items() if _smaller(p.config, config)}
    found = {}
    for name, other in others.items():
        pattern = other.context.pattern
        counts = {c: pattern.count(c) for c in KINDS.values() if c in pattern and c}
        found[name] = counts, widths(other.context), ruler.costs(replace(config, context=other.context))
    return found


def _smaller(other: OmniConfig, config: OmniConfig) -> bool:
    return other.context != config.context and within(config, other)


def _depths(
    model: Omni, batches: Sequence[Inputs], task: Task, journal: Path | None, bar: Bar
) -> tuple[DepthOrder | None, list[tuple[int, ...]]]:
    """The order in which layers go, and the sets of layers that stay which the task allows."""
    tower = model.config.context
    check_pins(tower, task.layers)
    pinned = {KINDS[kind]: count for kind, count in task.layers.items() if kind != "layers"}
    least = sum(tower.pattern.count(letter) - count for letter, count in pinned.items())
    most = max(least, int(tower.n_layers * task.grid.depth))
    if "layers" in task.layers:
        least = most = tower.n_layers - task.layers["layers"]
    if most == 0:
        return None, [tuple(range(tower.n_layers))]
    total = passes(tower, most, len(batches), task.depth_by)
    own = {"method": task.depth_by, "pinned": pinned, "journal": journal, "advance": bar("order of layers", total)}
    order = rank(model, lambda: iter(batches), most, **own)
    sets = [order.kept(tower, tower.n_layers - gone) for gone in range(least, most + 1)]
    return order, [kept for kept in sets if _pinned(tower.pattern, kept, pinned)]


def _pinned(pattern: str, kept: Sequence[int], pinned: Mapping[str, int]) -> bool:
    return all(sum(pattern[i] == letter for i in kept) == count for letter, count in pinned.items())


def _tried(found: Found, judge: Judge, scores: Importance, advance: Callable[[int], None]) -> Found:
    """The candidates with what their cuts did."""
    tower, best = judge.model.config.context, []
    for candidate in found.best:
        damage = judge.damage(choose(tower, scores, candidate.layers, candidate.widths))
        best.append(replace(candidate, measured=damage))
        advance(1)
    return replace(found, best=tuple(best))


def _report(name: str, ruler: Ruler, task: Task, found: Found, known: Known) -> Report:
    config = ruler.config
    whole = ruler.costs(config)
    return Report(name, task.use, task.limits, config.context.pattern, whole, found, known)


def _each(batches: Sequence[Inputs], advance: Callable[[int], None]) -> Iterator[Inputs]:
    for inputs in batches:
        yield inputs
        advance(1)


@contextmanager
def _bars() -> Iterator[Bar]:
    """Bars on standard error, on a terminal only: a function that begins one and gives another that moves it."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:

        def bar(label: str, total: int) -> Callable[[int], None]:
            task = progress.add_task(label, total=total)
            return lambda done: progress.advance(task, done)

        yield bar


# -- the folder --------------------------------------------------------------------------------------------------------


def check_target(target: Path) -> None:
    """CheckpointError where something is there already: nothing is written over."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} is there already; give a folder that is new or empty")


def write(small: Omni, kept: Kept, report: Report, source: Path, target: Path) -> Path:
    """The smaller model as a checkpoint in the layout of ``source``, or in our own where that cannot express it.

    Tokenizer and codecs go along; compression.json says what was kept. All of it is written beside and renamed.
    """
    check_target(target)
    beside = target.with_name(f"{target.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    family = _layout(small, source)
    save(small, beside, family=family, compute_dtype=compute_dtype(source) if family == "omni" else "auto")
    places = [place for place in (source, base_folder(source)) if place is not None]
    for name in (*COPIED, *COMPONENTS):
        origin = next((place / name for place in places if (place / name).exists()), None)
        if origin is not None and origin.is_dir():
            shutil.copytree(origin, beside / name)
        elif origin is not None:
            shutil.copyfile(origin, beside / name)
    write_json(beside / "compression.json", _said(kept, report))
    if target.exists():
        target.rmdir()
    os.replace(beside, target)
    return target


def _layout(small: Omni, source: Path) -> str:
    family, _ = read_folder(source)
    try:
        family.from_config(small.config)
    except ConfigError:
        return "omni"
    return family.name if family.parts == {"": ""} and family.name in families() else "omni"


def _said(kept: Kept, report: Report) -> dict:
    chosen = report.as_dict()["chosen"]
    units = {block: {axis: index.tolist() for axis, index in own.items()} for block, own in kept.units.items()}
    return {
        "model": report.name,
        "chosen": chosen,
        "kept": {"layers": list(kept.layers), "d_model": kept.d_model.tolist(), "units": units},
    }
