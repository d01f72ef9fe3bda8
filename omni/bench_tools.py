"""What the measurements beside a reference implementation share: rows and reports, turns, rates, peaks, tables.

runs of both sides ──> in_turns ──> row: medians of ours, theirs; floor ──> Report ──> table, as_dict
one side alone     ──> child process ──> highest resident size
one side's run     ──> where: seconds of each part of it, what a part calls not counted twice
"""

import io
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

AGREEMENT = 1e-3  # of the largest logit: beyond it the two sides do not compute the same thing


class BenchError(RuntimeError):
    """The two sides disagree, or one of them failed."""


@dataclass(frozen=True)
class Rates:
    """What this machine reaches with the given threads, in float32."""

    gflops: float  # billions of operations a second of one large matrix product
    gbytes: float  # 1e9 bytes read a second


@dataclass(frozen=True)
class Row:
    """One measurement: medians, in ``unit``."""

    name: str
    unit: str
    ours: float
    theirs: float | None
    floor: float | None
    spread: tuple[float, float] | None = None  # smallest and largest ratio of a turn, where there was more than one

    @property
    def ratio(self) -> float | None:
        """How many times as much the reference takes."""
        return None if self.theirs is None else self.theirs / self.ours


@dataclass(frozen=True)
class Target:
    """A ratio of two measurements, and what it should be at least; ``least`` None: for information."""

    name: str
    value: float
    least: float | None = None

    @property
    def met(self) -> bool | None:
        return None if self.least is None else self.value >= self.least


@dataclass(frozen=True)
class Report:
    settings: dict[str, Any]
    rates: Rates
    rows: list[Row]
    shares: dict[str, dict[str, float]] = field(default_factory=dict)  # workload -> kind of work -> part of our time
    disagreement: float | None = None  # largest difference of what both sides give over the largest of it
    targets: list[Target] = field(default_factory=list)
    parts: dict[str, dict[str, float]] = field(default_factory=dict)  # workload, side -> part of it -> seconds

    def as_dict(self) -> dict[str, Any]:
        plain = asdict(self)
        plain["rows"] = [{**asdict(row), "ratio": row.ratio} for row in self.rows]
        plain["targets"] = [{**asdict(target), "met": target.met} for target in self.targets]
        return plain


def transformers() -> Any:
    """The reference implementation's package, without its messages."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


# -- times -------------------------------------------------------------------------------------------------------------


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turns(runs: Sequence[Callable[[], Any]], turns: int, name: str = "measuring") -> list[list[float]]:
    """Seconds of each run in every turn, after one turn that does not count. A terminal shows how far it is."""
    console = Console(stderr=True)
    shown = track(range(turns + 1), name, console=console, transient=True, disable=not console.is_terminal)
    times = [[seconds(run) for run in runs] for _ in shown][1:]
    return [list(column) for column in zip(*times, strict=True)]


def row(name: str, unit: str, scale: float, measured: Sequence[Sequence[float]], floor: float | None) -> Row:
    """``measured``: ours of every turn, and theirs where they take part."""
    ours, theirs = (*(statistics.median(own) * scale for own in measured), None)[:2]
    ratios = [b / a for a, b in zip(*measured, strict=True)] if theirs is not None else []
    spread = (min(ratios), max(ratios)) if len(ratios) > 1 else None
    return Row(name, unit, ours, theirs, None if floor is None else floor * scale, spread)


def measure_rates(repeats: int = 7) -> Rates:
    """The best of ``repeats``: a product of two 2048 x 2048 matrices, and reads of 256 MiB."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    product = min(seconds(lambda: a @ b) for _ in range(repeats))
    large, vector = torch.randn(8192, 8192), torch.randn(8192)
    reads = min(min(seconds(large.sum), seconds(lambda: large @ vector)) for _ in range(repeats))
    return Rates(gflops=2 * 2048**3 / product / 1e9, gbytes=large.nbytes / reads / 1e9)


# -- where the time goes -----------------------------------------------------------------------------------------------

Span = tuple[Any, str, str]
"""An object (a module of Python or of torch), the name of a function of it, and the part that its time belongs to."""


def where(run: Callable[[], Any], spans: Sequence[Span]) -> dict[str, float]:
    """Seconds of every part of ``run``; a part does not count what another part does inside it."""
    spent = dict.fromkeys([*(part for _, _, part in spans), "other"], 0.0)
    open_parts, last = ["other"], [0.0]

    def charge() -> None:
        now = time.perf_counter()
        spent[open_parts[-1]] += now - last[0]
        last[0] = now

    def timed(function: Callable, part: str) -> Callable:
        def call(*args: Any, **options: Any) -> Any:
            charge()
            open_parts.append(part)
            try:
                return function(*args, **options)
            finally:
                charge()
                open_parts.pop()

        return call

    with replaced([(owner, name, timed(getattr(owner, name), part)) for owner, name, part in spans]):
        last[0] = time.perf_counter()
        run()
        charge()
    return spent


@contextmanager
def replaced(attributes: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    """Attributes (object, name, value) that hold for a while."""
    before = [(owner, name, vars(owner).get(name), name in vars(owner)) for owner, name, _ in attributes]
    for owner, name, value in attributes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value, was_own in before:
            setattr(owner, name, value) if was_own else delattr(owner, name)


# -- memory ------------------------------------------------------------------------------------------------------------


def child_peak(module: str, arguments: Sequence[str], what: str) -> float:
    """What ``python -m module arguments`` prints last: bytes. A terminal shows that it waits."""
    console = Console(stderr=True)
    with console.status(what) if console.is_terminal else nullcontext():
        done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{what} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def peak_bytes(run: Callable[[], Any]) -> int:
    """Highest resident size of this process during a run: code, weights, cache and everything in between."""
    _forget_peak()
    run()
    for line in _lines("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _forget_peak() -> None:
    """Loading has a peak of its own, which is not asked for; systems that cannot reset it count it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


# -- the report --------------------------------------------------------------------------------------------------------


def table(report: Report) -> str:
    """The report for people."""
    s, rates = report.settings, report.rates
    console = Console(file=io.StringIO(), width=110)
    on = s.get("device") or f"{s['threads']} threads"
    console.print(f"{s['pattern']}, {s['parameters'] / 1e6:.0f}M parameters, {s.get('dtype', 'float32')}, {on}")
    console.print(f"measured here: {rates.gflops:.0f} GFLOP/s of matrix products, {rates.gbytes:.1f} GB/s of reads")
    if report.disagreement is not None:
        compared = s.get("compared", "logits")
        console.print(f"{compared} agree with the reference to {report.disagreement:.0e} of the largest")
    console.print(_rows(report.rows))
    if report.shares:
        console.print(_grid("our time", report.shares, lambda share: f"{share:.0%}"))
    if report.parts:
        console.print(_grid("seconds", report.parts, lambda spent: f"{spent:.2f}" if spent else "-"))
    for target in report.targets:
        wanted = "" if target.least is None else f", wanted {target.least:g}: {'met' if target.met else 'missed'}"
        console.print(f"{target.name}: {target.value:.2f}{wanted}")
    return console.file.getvalue().rstrip()


def _rows(rows: Sequence[Row]) -> Table:
    shown = Table("")
    for column in ("unit", "ours", "reference", "ratio", "of turns", "floor", "ours / floor"):
        shown.add_column(column, justify="left" if column == "unit" else "right")
    for one in rows:
        theirs = ("-", "-") if one.theirs is None else (f"{one.theirs:.4g}", f"{one.ratio:.2f}")
        spread = "-" if one.spread is None else "{:.2f} to {:.2f}".format(*one.spread)
        floor = ("-", "-") if one.floor is None else (f"{one.floor:.4g}", f"{one.ours / one.floor:.2f}")
        shown.add_row(one.name, one.unit, f"{one.ours:.4g}", *theirs, spread, *floor)
    return shown


def _grid(corner: str, values: dict[str, dict[str, float]], write: Callable[[float], str]) -> Table:
    kinds = list(dict.fromkeys(kind for own in values.values() for kind in own))
    shown = Table(corner, *kinds)
    for name, own in values.items():
        shown.add_row(name, *(write(own[kind]) if kind in own else "-" for kind in kinds))
    return shown


__all__ = [
    "AGREEMENT",
    "BenchError",
    "Rates",
    "Report",
    "Row",
    "Span",
    "Target",
    "child_peak",
    "in_turns",
    "measure_rates",
    "peak_bytes",
    "replaced",
    "row",
    "seconds",
    "table",
    "transformers",
    "where",
]
