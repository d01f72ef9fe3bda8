"""What a step of decoding costs at several lengths of the cache, all systems in turns; a long answer by integration.

    cache of m tokens ──> fork(rows) ──> turns of some steps, timed ──> milliseconds a step at m
    8,192 read, 16,384 written:  seconds = sum over the lengths between of (length, milliseconds), by trapezoids

Sixteen thousand steps of each system would take hours on a CPU and say nothing more: the cost of a step is a constant
and a part that grows evenly with m. The clock counts the processor's seconds of this process, which runs on one
thread: time that other processes take is not counted.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from omni.cache import Cache, cache_bytes
from omni.model import Omni
from omni.studies.runs import text

READ, WRITTEN = 8_192, 16_384
"""Tokens of the prompt and of the answer: the workload of the family's published throughputs."""
LENGTHS = (256, 1_024, 2_048, 4_096, 8_192, 12_288, 16_384, 20_480, 24_576)
ROWS = (1, 8)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """``read`` and ``read + written`` must be among the lengths."""

    read: int = READ
    written: int = WRITTEN
    lengths: tuple[int, ...] = LENGTHS
    rows: tuple[int, ...] = ROWS
    turns: int = 9
    steps: int = 16  # of a turn; a cache grows by those of all turns before it is thrown away

    def __post_init__(self) -> None:
        ends = {self.read, self.read + self.written}
        if not ends <= set(self.lengths) or list(self.lengths) != sorted(self.lengths):
            raise ValueError(f"lengths are {self.lengths}; they must rise and hold {sorted(ends)}")

    @property
    def capacity(self) -> int:
        """Tokens a row that the caches have room for."""
        return self.lengths[-1] + self.steps * (self.turns + 1)


@torch.inference_mode()
def measure(models: dict[str, Omni], workload: Workload) -> dict[str, dict[str, Any]]:
    """Of every system: seconds of the prompt, milliseconds a step by rows and length, bytes, and the whole request."""
    caches = {name: model.new_cache(1, workload.capacity) for name, model in models.items()}
    ids = text(next(iter(models.values())), workload.lengths[-1] + workload.steps * max(workload.rows))
    steps: dict[str, dict[int, dict[int, list[float]]]] = {n: {b: {} for b in workload.rows} for n in models}
    prompts = dict.fromkeys(models, 0.0)
    console = Console(stderr=True)
    for length in track(workload.lengths, "decoding", console=console, transient=True, disable=not console.is_terminal):
        for name, model in models.items():
            spent = _seconds(lambda m=model, c=caches[name], n=length: _extend(m, c, ids, n))
            prompts[name] += spent if length <= workload.read else 0.0
        for rows in workload.rows:
            for name, milliseconds in _in_turns(models, caches, ids, rows, workload).items():
                steps[name][rows][length] = milliseconds
    return {name: _summary(model, prompts[name], steps[name], workload) for name, model in models.items()}


def _extend(model: Omni, cache: Cache, ids: Tensor, length: int) -> None:
    """Read on until the cache holds ``length`` tokens."""
    if length > cache.length:
        model.read(ids[None, cache.length : length], cache, last=0)


def _in_turns(
    models: dict[str, Omni], caches: dict[str, Cache], ids: Tensor, rows: int, workload: Workload
) -> dict[str, list[float]]:
    """Milliseconds a step of each turn but the first. Every row goes on with a text of its own."""
    fed = ids[-rows * workload.steps :].view(rows, workload.steps)
    runs = {name: _stepper(models[name], cache.fork(rows), fed) for name, cache in caches.items()}
    found: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(workload.turns + 1):
        for name, run in runs.items():
            spent = _seconds(run)
            if turn:
                found[name].append(1e3 * spent / workload.steps)
    return found


def _stepper(model: Omni, cache: Cache, fed: Tensor) -> Callable[[], None]:
    def run() -> None:
        for i in range(fed.shape[1]):
            model.logits(fed[:, i : i + 1], cache, last_only=True)

    return run


def _seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def _summary(
    model: Omni, prompt: float, steps: dict[int, dict[int, list[float]]], workload: Workload
) -> dict[str, Any]:
    end, tower = workload.read + workload.written, model.config.context
    size = model.embed.weight.element_size()
    found = {"prompt_seconds": prompt, "weight_bytes": sum(p.nbytes for p in model.parameters()), "rows": {}}
    for rows, by_length in steps.items():
        medians = {length: statistics.median(turns) for length, turns in by_length.items()}
        seconds = integral(medians, workload.read, end) / 1e3
        found["rows"][str(rows)] = {
            "milliseconds": {str(length): value for length, value in medians.items()},
            "turns": {str(length): turns for length, turns in by_length.items()},
            "answer_seconds": seconds,
            "tokens_a_second": rows * workload.written / seconds,
            "cache_bytes": cache_bytes(tower, rows, end, size),
            "cache_bytes_at": {str(n): cache_bytes(tower, rows, n, size) for n in workload.lengths},
        }
    return found


def integral(values: dict[int, float], start: int, stop: int) -> float:
    """Area under ``values`` from one of its places to another, by trapezoids."""
    places = [place for place in sorted(values) if start <= place <= stop]
    return sum((b - a) * (values[a] + values[b]) / 2 for a, b in pairwise(places))


def crossover(found: dict[str, dict[str, Any]], one: str, other: str, rows: int) -> int | None:
    """The first length from which on a step of ``one`` takes less time than one of ``other``; None: never."""
    a, b = (found[name]["rows"][str(rows)]["milliseconds"] for name in (one, other))
    cheaper: Sequence[int] = [int(length) for length in a if a[length] < b[length]]
    dearer = [int(length) for length in a if a[length] >= b[length]]
    later = [length for length in cheaper if length > max(dearer, default=-1)]
    return min(later, default=None)


__all__ = ["Workload", "crossover", "integral", "measure"]
