"""How good a model is, measured on cases that training never draws, always beside controls that must be worse.

    documents   questions and transcription on held-out pages      controls: a blank page, another page
    charts      the same on charts                                 controls: a blank page, another chart
    booklets    questions about several pages, and which has them  control: another booklet
    sights      questions about still pictures, and boxes          control: another picture
    video       questions about clips                              controls: frames shuffled, frozen, blank
    sound       questions about recordings, and transcription      controls: silence, another recording
    films       questions about clips with sound                   controls: another one's sound, another one's frames
    draw        GenEval's six categories, checked by a detector    control: another prompt's request
    animate     videos that begin with a picture                   controls: another sentence, none; a frozen frame
    policy      robots driven from pictures, in the simulator      controls: a blind policy, another's picture
    dynamics    videos of actions, actions of videos               controls: a frozen frame, another's actions or video
    text        held-out dialogues and tales                       control: another case's answer
    reasoning   held-out problems with their working               control: another problem
    qa          your own questions about any medium
    compare     generated videos beside real ones                  control: the first frame, frozen
    clip        CLIP scores of pictures with their prompts         control: another prompt

``compare`` and ``clip`` read files and need no model of ours.
``evaluate("documents", model)``, or ``omni eval documents``; with ``data`` on documents, charts, pictures, videos and
recordings of your own. A ``journal`` keeps the answers of such a run as they come.
"""

import difflib
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from omni.evaluation import (
    booklets,
    documents,
    draw,
    films,
    generated,
    motion,
    own,
    reasoning,
    robots,
    sights,
    sound,
    text,
    video,
)
from omni.evaluation.report import Report, table
from omni.model import Omni

MAX_COUNT = 100_000


@dataclass(frozen=True)
class Task:
    """``run(model, count, seed, **options) -> (metrics, samples)``"""

    summary: str
    run: Callable[..., tuple[dict[str, Any], list[dict]]]
    takes_data: bool = False
    needs_data: bool = False
    needs_model: bool = True  # False: it measures files, and is run with None in a model's place
    model: str = "tiny"  # shipped, which the command measures by default

    @property
    def options(self) -> dict[str, Any]:
        """The options that are the task's own, with their types."""
        shared = ("model", "count", "seed", "data", "journal", "return")
        return {name: kind for name, kind in get_type_hints(self.run).items() if name not in shared}

    def check(self, options: dict[str, Any]) -> None:
        """ValueError for an option that the task does not have, or of another type, or for one that it lacks."""
        known = self.options
        for name, value in options.items():
            if name not in known:
                raise ValueError(f"{name!r} is no option; known: {', '.join(known) or 'none'}")
            kinds = get_args(known[name]) or (known[name],)
            if type(value) not in (*kinds, *((int,) if float in kinds else ())):
                wanted = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
                raise ValueError(f"{name} is {value!r}; it must be of type {wanted}")
        parameters = inspect.signature(self.run).parameters
        missing = [n for n in known if parameters[n].default is inspect.Parameter.empty and n not in options]
        if missing:
            raise ValueError(f"{' and '.join(missing)} must be given")


TASKS = {
    "documents": Task("questions about pages, and their transcription", documents.run, takes_data=True),
    "charts": Task("questions about charts, and their tables", documents.run_charts, takes_data=True),
    "booklets": Task("questions about documents of several pages", booklets.run),
    "sights": Task("questions about still pictures, and where things are", sights.run, takes_data=True),
    "video": Task("questions about clips", video.run, takes_data=True),
    "sound": Task("questions about recordings, and their transcription", sound.run, takes_data=True),
    "films": Task("questions about clips with sound", films.run),
    "draw": Task("pictures that show what was asked", draw.run),
    "animate": Task("videos in which happens what was said", motion.run, model="tiny-animate"),
    "policy": Task("robots that reach their goal in the simulator", robots.policy, model="tiny-act"),
    "dynamics": Task("where actions lead, and which actions led there", robots.dynamics, model="tiny-act"),
    "text": Task("short answers and perplexity", text.run),
    "reasoning": Task("problems with their working, and how it is written", reasoning.run, model="tiny-text"),
    "qa": Task("your own questions about any medium", own.qa, takes_data=True, needs_data=True),
    "compare": Task("generated videos beside real ones", generated.compare, needs_model=False),
    "clip": Task("CLIP scores of pictures with their prompts", generated.clip_score, needs_model=False),
}


def evaluate(
    task: str,
    model: Omni | str | None = None,
    count: int = 200,
    seed: int = 0,
    data: str | Path | None = None,
    journal: str | Path | None = None,
    **options: Any,
) -> Report:
    """Measure ``model`` (or the model of that name) on ``count`` cases; the tasks that need none read files instead.

    Args:
        seed: which held-out cases; every seed has its own.
        data: own cases, for tasks that take them; see :mod:`omni.evaluation.own` and, of documents and charts,
            :mod:`omni.evaluation.documents`.
        journal: file that answers to own cases are written to as they come. The same call goes on behind the last of
            them if it was broken off; the file is the caller's to remove.
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
        options |= {} if journal is None else {"journal": Path(journal)}
    elif TASKS[task].needs_data:
        raise ValueError(f"the task {task!r} has no cases of its own; it needs data")
    elif journal is not None:
        raise ValueError("a journal is for cases of your own; give data too")
    if TASKS[task].needs_model != (model is not None):
        raise ValueError(
            f"the task {task!r} measures {'a model; give one' if model is None else 'files, and no model'}"
        )
    if isinstance(model, str):
        import omni

        model = omni.load(model)
    began = time.perf_counter()
    metrics, samples = TASKS[task].run(model, count, seed, **options)
    options.pop("journal", None)
    drawn = {"seed": seed} if TASKS[task].needs_model else {}
    settings = {"count": count, **drawn, **{k: str(v) if k == "data" else v for k, v in options.items()}}
    return Report(task, metrics, samples, settings, round(time.perf_counter() - began, 1))


__all__ = ["TASKS", "Report", "Task", "evaluate", "table"]
