"""How good a model is, measured on cases that training never draws, always beside controls that must be worse.

    documents   questions and transcription on held-out pages      controls: a blank page, another page
    draw        GenEval's six categories, checked by a detector    control: another prompt's request
    text        held-out dialogues and tales                       control: another case's answer

``evaluate("documents", model)``, or ``omni eval documents``; with ``data`` on documents of your own.
"""

import difflib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from omni.evaluation import documents, draw, text
from omni.evaluation.report import Report, table
from omni.model import Omni

MAX_COUNT = 100_000


@dataclass(frozen=True)
class Task:
    """``run(model, count, seed, **options) -> (metrics, samples)``"""

    summary: str
    run: Callable[..., tuple[dict[str, Any], list[dict]]]
    takes_data: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The options that are the task's own, with their types."""
        shared = ("model", "count", "seed", "data", "return")
        return {name: kind for name, kind in get_type_hints(self.run).items() if name not in shared}

    def check(self, options: dict[str, Any]) -> None:
        """ValueError for an option that the task does not have, or of another type."""
        known = self.options
        for name, value in options.items():
            if name not in known:
                raise ValueError(f"{name!r} is no option; known: {', '.join(known) or 'none'}")
            kinds = get_args(known[name]) or (known[name],)
            if type(value) not in (*kinds, *((int,) if float in kinds else ())):
                wanted = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
                raise ValueError(f"{name} is {value!r}; it must be of type {wanted}")


TASKS = {
    "documents": Task("questions about pages, and their transcription", documents.run, takes_data=True),
    "draw": Task("pictures that show what was asked", draw.run),
    "text": Task("short answers and perplexity", text.run),
}


def evaluate(
    task: str,
    model: Omni | str,
    count: int = 200,
    seed: int = 0,
    data: str | Path | None = None,
    **options: Any,
) -> Report:
    """Measure ``model`` (or the model of that name) on ``count`` cases.

    Args:
        seed: which held-out cases; every seed has its own.
        data: own cases, for tasks that take them; see :mod:`omni.evaluation.documents`.
        options: the task's own; see its ``run``.

    Raises:
        ValueError: an unknown task or option, unreadable data, or a model that lacks what the task needs.
    """
    if task not in TASKS:
        close = difflib.get_close_matches(str(task), TASKS, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(TASKS)}"
        raise ValueError(f"unknown task {task!r}; {hint}")
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_COUNT:
        raise ValueError(f"count is {count!r}; it must be a whole number from 1 to {MAX_COUNT}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed is {seed!r}; it must be a whole number of at least 0")
    TASKS[task].check(options)
    if data is not None:
        if not TASKS[task].takes_data:
            raise ValueError(f"the task {task!r} draws its own cases; it takes no data")
        options["data"] = Path(data)
    if isinstance(model, str):
        import omni

        model = omni.load(model)
    began = time.perf_counter()
    metrics, samples = TASKS[task].run(model, count, seed, **options)
    settings = {"count": count, "seed": seed, **{k: str(v) if k == "data" else v for k, v in options.items()}}
    return Report(task, metrics, samples, settings, round(time.perf_counter() - began, 1))


__all__ = ["TASKS", "Report", "Task", "evaluate", "table"]
