"""Looking: questions about held-out still pictures and where things are in them, or about people's own pictures.

Control, of the first pictures: another picture in its place.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from omni.data.sights import Sight, sample_sight
from omni.evaluation import own
from omni.evaluation.asking import (
    CONTROLLED,
    Asked,
    check_questions,
    chosen,
    columns,
    exact,
    following,
    judged,
    setting,
)
from omni.evaluation.own import first_box
from omni.evaluation.report import averages, grouped, held_out
from omni.metrics import box_iou, box_match
from omni.model import Omni
from omni.pipelines.documents import TRANSCRIBE

CONTROLS = ("shuffled",)
BOX = "box"
KINDS = {"Where is": BOX, "How many": "count", "What color": "color", "What shape": "shape", "Is there": "existence"}
RELATION = "relation"  # everything else


def run(
    model: Omni,
    count: int,
    seed: int,
    data: Path | None = None,
    journal: Path | None = None,
    questions: int = 3,
    read_first: bool | None = None,
) -> tuple[dict[str, Any], list[dict]]:
    """``count`` pictures with ``questions`` each.

    ``read_first``: whether the model lists what it sees before the questions, as it reads a page; default: as the
    checkpoint asks for.

    Metrics: share of right answers, by exact match or, of boxes, by an overlap (IoU) of at least 0.5; the mean overlap
    of boxes; both also with another picture.
    """
    if model.vision is None:
        raise ValueError("this model reads no images")
    check_questions(questions)
    tell = TRANSCRIBE if setting(model, "document_read_first", read_first) else None
    if data is not None:
        return own.run(model, data, count, ("image",), journal, tell=tell)
    sights = [(s, sample_sight(s)) for s in held_out(seed, count)]
    controls = _controls([sight for _, sight in sights[:CONTROLLED]])
    controls += [{}] * (count - len(controls))
    asked = []
    for (s, sight), shown in zip(sights, controls, strict=True):
        qa = [sight.qa[i] for i in chosen(sight.qa, questions, s)]
        kinds = [{"kind": kind_of(question)} for question, _ in qa]
        asked.append(Asked([_part(sight)], qa, {"seed": s}, shown, kinds))
    samples = judged(model, asked, "pictures", _score, tell)
    scores = [*columns("accuracy", CONTROLS), *columns("iou", CONTROLS)]
    return {**averages(samples, scores), "groups": grouped(samples, "kind", scores)}, samples


def kind_of(question: str) -> str:
    return next((kind for start, kind in KINDS.items() if question.startswith(start)), RELATION)


def _score(said: str, answer: str) -> dict[str, float]:
    target = first_box(answer)
    if target is None:
        return exact(said, answer)
    found = first_box(said)
    return {"accuracy": box_match(found, target), "iou": 0.0 if found is None else box_iou(found, target)}


def _part(sight: Sight) -> dict[str, Any]:
    return {"type": "image", "image": Image.fromarray(sight.image)}


def _controls(sights: Sequence[Sight]) -> list[dict[str, Any]]:
    return [{"shuffled": other and [_part(other)]} for other in following(sights)]
