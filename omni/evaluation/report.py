"""What an evaluation found: numbers, the cases behind them, and both as a table and as JSON."""

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from omni.data import HELD_OUT_SEEDS
from omni.tensorfile import write_json

STRIDE = 20_011  # between the first cases of two seeds; a prime, so that many seeds meet late


@dataclass(frozen=True)
class Report:
    """``metrics`` holds the headline numbers, and under ``"groups"`` the same for parts of the cases, by name."""

    task: str
    metrics: dict[str, Any]
    samples: list[dict[str, Any]]  # one a case: what was asked, what came, how it scored
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def save(self, path: str | Path) -> None:
        """Write everything as one JSON document; beside, then renamed."""
        write_json(Path(path), self.as_dict())


def table(report: Report) -> str:
    """The report for people."""
    drawn = f"seed {report.settings['seed']}" if "seed" in report.settings else "files"
    cases = report.settings.get("data") or drawn
    title = f"{report.task}: {len(report.samples)} cases ({cases}), {report.seconds:.0f} s"
    headline = Table(show_header=False)
    for name, value in report.metrics.items():
        if name != "groups":
            headline.add_row(name.replace("_", " "), _number(value))
    parts = [title, headline]
    groups = report.metrics.get("groups", {})
    if groups:
        columns = list(dict.fromkeys(column for scores in groups.values() for column in scores))
        detail = Table("", *(c.replace("_", " ") for c in columns))
        for name, scores in groups.items():
            detail.add_row(name, *(_number(scores.get(c)) for c in columns))
        parts.append(detail)
    console = Console(file=io.StringIO(), width=100)
    console.print(*parts, sep="\n")
    return console.file.getvalue().rstrip()


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def held_out(seed: int, count: int) -> Iterator[int]:
    """Seeds of ``count`` cases that training never draws."""
    return (HELD_OUT_SEEDS[(seed * STRIDE + i) % len(HELD_OUT_SEEDS)] for i in range(count))


def mean(values: Iterable[float]) -> float | None:
    """None where there is nothing to average."""
    values = list(values)
    return sum(values) / len(values) if values else None


def averages(samples: Sequence[dict], columns: Sequence[str]) -> dict[str, Any]:
    """Number of samples, and the mean of each column over those that have it."""
    found = {c: mean(float(s[c]) for s in samples if s.get(c) is not None) for c in columns}
    return {"cases": len(samples), **{c: value for c, value in found.items() if value is not None}}


def grouped(samples: Sequence[dict], by: str, columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    """:func:`averages` of the samples that share ``by``, in alphabetical order."""
    names = sorted({sample[by] for sample in samples})
    return {name: averages([s for s in samples if s[by] == name], columns) for name in names}


@contextmanager
def progress(label: str, total: int) -> Iterator:
    """A bar on standard error, on a terminal only; yields a function that is told of cases done."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(label, total=total)
        yield lambda done=1: bars.advance(task, done)
