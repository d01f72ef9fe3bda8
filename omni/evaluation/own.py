"""People's own questions: lines of JSON, each with a medium, a question, its answers and how they are scored.

    {"image" | "video" | "audio" | "document": path or list of paths, "question": text, "answers": [text, ...],
     "metric": "anls", "choices": [text, ...], "page": 1}

    lines ──> checked, all of them, before anything is answered ──> media read once for lines that follow each other
          ──> answers ──> scores; with a journal each is written down as it comes

Paths are relative to the file that names them. "metric" is one of ``METRICS``, by default "exact", of documents "anls";
"choices" belongs to "choice", "page" (counted from 1) to documents.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from omni import metrics
from omni.evaluation.report import averages, grouped, progress
from omni.metrics import Box
from omni.model import Omni
from omni.pipelines.chat import Chat
from omni.pipelines.documents import DocumentQA
from omni.pipelines.grounding import read_boxes
from omni.pipelines.reading import Reading
from omni.tokenizers.image import open_image

MEDIA = ("image", "video", "audio", "document")
MAX_LINES = 1_000_000
ANSWER = 48  # tokens of an answer
CHOOSE = "Answer with the letter of the right choice."


def run(
    model: Omni,
    path: Path,
    count: int,
    kinds: Sequence[str] = MEDIA,
    journal: Path | None = None,
    *,
    tell: str | None = None,
    media: dict[str, Any] | None = None,
    thinking: bool = False,
    limit: int = ANSWER,
) -> tuple[dict[str, Any], list[dict]]:
    """The first ``count`` lines of ``path``, which may have media of ``kinds``.

    ``tell`` asks for all of a medium before its questions; ``media`` is how videos are looked at (see
    :func:`omni.prepare.prepare`); with ``thinking`` the model reasons before each answer. Raises ValueError, which
    names the line.
    """
    cases = [read_case(case, where, path.parent, kinds) for case, where in read_lines(path)][:count]
    settings = {"kinds": kinds, "tell": tell, "media": media, "thinking": thinking, "limit": limit}
    book = Journal(journal, model, path, settings)
    respond = _Responder(model, path.parent, tell, media, thinking, limit)
    samples = book.fill(cases, respond, lambda case: (kind_of(case), case[kind_of(case)], case.get("page")))
    return summary(samples), samples


def qa(
    model: Omni,
    count: int,
    seed: int,
    data: Path | None = None,
    journal: Path | None = None,
    pruning: float = 0.0,
    fps: float | None = None,
    frames: int | None = None,
    thinking: bool = False,
    max_new_tokens: int = ANSWER,
) -> tuple[dict[str, Any], list[dict]]:
    """Questions of your own about any medium; ``pruning``, ``fps`` and (most) ``frames`` are those of videos."""
    if data is None:
        raise ValueError("the task 'qa' has no cases of its own; give it data")
    media = {"pruning": pruning, "fps": fps, "max_frames": frames}
    return run(model, data, count, MEDIA, journal, media=media, thinking=thinking, limit=max_new_tokens)


# -- lines -----------------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[tuple[dict[str, Any], str]]:
    """The objects of a file of JSON lines and where each stands. ValueError names the line that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(lines) > MAX_LINES:
        raise ValueError(f"{path} has {len(lines)} lines; the limit is {MAX_LINES}")
    found = [_object(line, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ValueError(f"{path} holds no cases")
    return found


def _object(line: str, where: str) -> tuple[dict[str, Any], str]:
    try:
        case = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError(f"{where} is not JSON") from None
    if not isinstance(case, dict):
        raise ValueError(f"{where} is not an object")
    return case, where


def check_case(case: dict[str, Any], where: str, kind: str, folder: Path, several: bool = False) -> None:
    """ValueError for a line without its medium, question or answers, or whose files do not exist."""
    named = case.get(kind)
    paths = named if several and isinstance(named, list) and named else [named]
    for path in paths:
        if not isinstance(path, str) or not path.strip():
            raise ValueError(f"{where}: {kind!r} must be a text that is not empty, not {named!r}")
    question, answers, page = case.get("question"), case.get("answers"), case.get("page")
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"{where}: 'question' must be a text that is not empty, not {question!r}")
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) for a in answers):
        raise ValueError(f"{where}: 'answers' must be a list of at least one text, not {answers!r}")
    if page is not None and (isinstance(page, bool) or not isinstance(page, int)):
        raise ValueError(f"{where}: 'page' must be a whole number, not {page!r}")
    for path in paths:
        if not (folder / path).is_file():
            raise ValueError(f"{where}: there is no file {folder / path}")


def read_case(case: dict[str, Any], where: str, folder: Path, kinds: Sequence[str]) -> dict[str, Any]:
    """The line with its metric and its place. ValueError for what it lacks."""
    present = [kind for kind in MEDIA if kind in case]
    if len(present) != 1 or present[0] not in kinds:
        names = " or ".join(repr(kind) for kind in kinds)
        raise ValueError(f"{where} must have one medium, {names}; it has {', '.join(present) or 'none'}")
    check_case(case, where, present[0], folder, several=present[0] in ("image", "document"))
    metric = case.get("metric", "anls" if present == ["document"] else "exact")
    if metric not in METRICS:
        raise ValueError(f"{where}: 'metric' is {metric!r}; known: {', '.join(METRICS)}")
    if "page" in case and present != ["document"]:
        raise ValueError(f"{where}: 'page' is for documents, not for a {present[0]}")
    choices = case.get("choices")
    if metric == "choice":
        if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
            raise ValueError(f"{where}: 'choices' must be a list of texts, not {choices!r}")
        try:
            metrics.choice_letter("", choices)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    elif choices is not None:
        raise ValueError(f"{where}: 'choices' is for the metric 'choice', not for {metric!r}")
    if metric in ("iou", "point") and not all(first_box(answer) for answer in case["answers"]):
        raise ValueError(f"{where}: 'answers' of {metric!r} must be boxes such as [0, 0, 500, 1000]")
    return {**case, "metric": metric, "where": where}


def kind_of(case: dict[str, Any]) -> str:
    return next(kind for kind in MEDIA if kind in case)


# -- answers ---------------------------------------------------------------------------------------------------------


class _Responder:
    """Samples of cases that share their medium."""

    def __init__(
        self, model: Omni, folder: Path, tell: str | None, media: dict[str, Any] | None, thinking: bool, limit: int
    ) -> None:
        self.model, self.folder, self.tell = model, folder, tell
        self.media = {name: value for name, value in (media or {}).items() if value is not None}
        self.thinking, self.limit = thinking, limit

    def __call__(self, cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        said = self._answers(cases[0], [_asked(case) for case in cases])
        return [{**case, **told, **score(case, told["said"])} for case, told in zip(cases, said, strict=True)]

    def _answers(self, case: dict[str, Any], questions: list[str]) -> list[dict[str, Any]]:
        kind = kind_of(case)
        paths = case[kind] if isinstance(case[kind], list) else [case[kind]]
        files = [self.folder / path for path in paths]
        if kind == "document" and not self.thinking:
            document = files[0] if isinstance(case[kind], str) else [open_image(file) for file in files]
            answers = DocumentQA(self.model)(document, questions, page=case.get("page"), max_new_tokens=self.limit)
            return [{"said": a.text, "pages": list(a.pages), "confidence": a.confidence} for a in answers]
        if kind == "document":
            raise ValueError("documents are answered without reasoning; leave thinking out, or name pictures as images")
        parts = [{"type": kind, kind: file} for file in files]
        if self.thinking:
            return [{"said": self._reasoned(parts, question)} for question in questions]
        answers = Reading(self.model, parts, self.tell, **self.media).ask(questions, self.limit)
        return [{"said": metrics.without_reasoning(a.text), "confidence": a.confidence} for a in answers]

    def _reasoned(self, parts: list[dict], question: str) -> str:
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
        reply = Chat(self.model)(
            messages, temperature=0, max_new_tokens=self.limit, thinking=True, media=self.media or None
        )
        return metrics.without_reasoning(reply.text)


def _asked(case: dict[str, Any]) -> str:
    if case["metric"] != "choice":
        return case["question"]
    listed = "\n".join(f"{chr(ord('A') + i)}. {choice}" for i, choice in enumerate(case["choices"]))
    return f"{case['question']}\n{listed}\n{CHOOSE}"


# -- scores ----------------------------------------------------------------------------------------------------------


def first_box(text: str) -> Box | None:
    """The first box that a text names, in thousandths of the picture's sides."""
    boxes = read_boxes(text)
    return (boxes[0].x0, boxes[0].y0, boxes[0].x1, boxes[0].y1) if boxes else None


def first_point(text: str) -> tuple[float, float] | None:
    """The first point "(x, y)" or "[x, y]" that a text names, or the middle of its first box."""
    box = first_box(text)
    if box is not None:
        return metrics.middle(box)
    return metrics.first_pair(text)


def _box_scores(said: str, case: dict[str, Any]) -> dict[str, float]:
    found, targets = first_box(said), [first_box(answer) for answer in case["answers"]]
    overlap = 0.0 if found is None else max(metrics.box_iou(found, target) for target in targets)
    return {"iou": overlap, "box_accuracy": float(overlap >= metrics.IOU_THRESHOLD)}


def _of_texts(name: str, rule: Callable[[str, Sequence[str]], float]) -> Callable[[str, dict], dict[str, float]]:
    return lambda said, case: {name: rule(said, case["answers"])}


def _rate(name: str, rule: Callable[..., float | None]) -> Callable[[str, dict], dict[str, float | None]]:
    """The error rate against the closest reference."""

    def lowest(said: str, case: dict[str, Any]) -> dict[str, float | None]:
        rates = [rule([said], [answer]) for answer in case["answers"]]
        return {name: min((rate for rate in rates if rate is not None), default=None)}

    return lowest


METRICS: dict[str, Callable[[str, dict[str, Any]], dict[str, Any]]] = {
    "anls": _of_texts("anls", metrics.anls),
    "exact": _of_texts("exact_match", metrics.exact_match),
    "relaxed": _of_texts("relaxed_accuracy", metrics.relaxed_accuracy),
    "contained": _of_texts("contained", metrics.contained),
    "choice": lambda said, case: {"choice": metrics.choice_match(said, case["answers"], case["choices"])},
    "wer": _rate("wer", metrics.word_error_rate),
    "digits": _rate("digit_error_rate", metrics.digit_error_rate),
    "iou": _box_scores,
    "point": lambda said, case: {
        "pointing": max(metrics.point_inside(first_point(said), first_box(answer)) for answer in case["answers"])
    },
}
COLUMNS = ("anls", "exact_match", "relaxed_accuracy", "contained", "choice", "iou", "box_accuracy", "pointing")
RATES = {"wer": ("wer", metrics.word_error_rate), "digits": ("digit_error_rate", metrics.digit_error_rate)}


def score(case: dict[str, Any], said: str) -> dict[str, Any]:
    return METRICS[case["metric"]](said, case)


def summary(samples: list[dict]) -> dict[str, Any]:
    """Means of all scores, error rates of all texts together, and both for each kind of medium and metric."""
    named = [{**s, "group": f"{kind_of(s)}, {s['metric']}"} for s in samples]
    groups = grouped(named, "group", COLUMNS)
    for name, part in groups.items():
        part |= _corpus([s for s in named if s["group"] == name])
    return {**averages(samples, COLUMNS), **_corpus(samples), "groups": groups}


def _corpus(samples: list[dict]) -> dict[str, float]:
    """Of several references the one that each answer is closest to."""
    found = {}
    for metric, (column, rule) in RATES.items():
        mine = [s for s in samples if s["metric"] == metric and s[column] is not None]
        if mine:
            nearest = [min(s["answers"], key=lambda a, s=s: _order(rule([s["said"]], [a]))) for s in mine]
            found[column] = rule([s["said"] for s in mine], nearest)
    return found


def _order(rate: float | None) -> float:
    return float("inf") if rate is None else rate


# -- answers as they come ----------------------------------------------------------------------------------------------


class Journal:
    """Samples as they come, a line of JSON each: a run that was broken off goes on behind the last of them.

    The first line tells the run, by its data, options and model. ValueError where the file is of another one.
    ``path`` None keeps nothing.
    """

    def __init__(self, path: Path | None, model: Omni, data: Path, settings: dict[str, Any]) -> None:
        self.path, self.done = path, {}
        if path is None:
            return
        key = _digest(model, data, settings)
        try:
            if path.exists():
                self.done = _resumed(path, key)
            lines = [json.dumps({"run": key}), *(json.dumps([n, sample]) for n, sample in self.done.items())]
            beside = path.with_name(path.name + ".new")
            beside.write_text("\n".join(lines) + "\n", encoding="utf-8")
            beside.replace(path)
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be kept: {getattr(error, 'strerror', None) or error}") from None

    def fill(
        self,
        cases: Sequence[dict[str, Any]],
        respond: Callable[[Sequence[dict[str, Any]]], list[dict[str, Any]]],
        same: Callable[[dict[str, Any]], Any],
    ) -> list[dict[str, Any]]:
        """The sample of each case, in order; ``respond`` is given those to do that are the ``same`` and in a row."""
        samples = {n: self.done[n] for n in range(len(cases)) if n in self.done}
        left = [n for n in range(len(cases)) if n not in samples]
        with progress("questions", len(left)) as advance:
            for _, members in groupby(left, key=lambda n: same(cases[n])):
                numbers = list(members)
                try:
                    found = respond([cases[n] for n in numbers])
                except ValueError as error:
                    where = cases[numbers[0]].get("where")
                    raise ValueError(f"{where}: {error}" if where else str(error)) from None
                for n, sample in zip(numbers, found, strict=True):
                    samples[n] = {name: value for name, value in sample.items() if name != "where"}
                    self._note(n, samples[n])
                advance(len(numbers))
        return [samples[n] for n in range(len(cases))]

    def _note(self, number: int, sample: dict[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([number, sample]) + "\n")


def _resumed(path: Path, key: str) -> dict[int, dict[str, Any]]:
    entries = list(_entries(path.read_text(encoding="utf-8").splitlines()))
    if not entries or entries[0] != {"run": key}:
        raise ValueError(f"{path} holds the answers of another run, by its data, options or model; remove it")
    return {int(number): sample for number, sample in entries[1:]}


def _entries(lines: Sequence[str]) -> Iterator[Any]:
    """Up to a line that was being written when the run ended."""
    for line in lines:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def _digest(model: Omni, data: Path, settings: dict[str, Any]) -> str:
    """Two models of one configuration differ in their embeddings."""
    weights = model.embed.weight.detach()[:, :4].float().sum(0).tolist()
    told = repr((str(model.config), weights, sorted(settings.items()))).encode()
    return hashlib.sha256(told + data.read_bytes()).hexdigest()[:16]
