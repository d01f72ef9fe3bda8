"""Reading several pages: questions about held-out booklets, and which page the answer is from.

Control, of the first booklets: another booklet in its place.
"""

from typing import Any

from PIL import Image

from omni.data.booklets import Booklet, sample_booklet
from omni.evaluation.asking import check_questions, chosen, following
from omni.evaluation.report import averages, grouped, held_out, progress
from omni.metrics import anls, exact_match
from omni.model import Omni
from omni.pipelines.documents import DocumentQA
from omni.pipelines.views import check_views

ANSWER = 48  # tokens of an answer
CONTROL = "shuffled"
CONTROLLED = 20  # booklets that the control is shown for; each takes as long as several pages
COLUMNS = ("anls", "exact_match", "right_page", "found", f"{CONTROL}_anls", f"{CONTROL}_found")


def run(
    model: Omni,
    count: int,
    seed: int,
    questions: int = 3,
    pages: int | None = None,
    together: bool | None = None,
    read_first: bool | None = None,
    views: int | None = None,
) -> tuple[dict[str, Any], list[dict]]:
    """``count`` booklets of ``pages`` (default: 2 to 6) with ``questions`` each.

    ``together``, ``read_first`` and ``views`` are :class:`DocumentQA`'s; by default as the checkpoint asks for.

    Metrics: ANLS and exact match; share of answers that name the page that has them; ``found``, both at once: the
    right answer from the right page.
    """
    check_questions(questions)
    if views is not None:
        check_views(views)
    reader = DocumentQA(model)
    booklets = [(s, sample_booklet(s, pages)) for s in held_out(seed, count)]
    others = following([booklet for _, booklet in booklets[:CONTROLLED]])
    how = {"together": together, "read_first": read_first, "views": views}
    samples: list[dict] = []
    with progress("booklets", len(booklets)) as advance:
        for s, booklet in booklets:
            qa = [booklet.qa[i] for i in chosen(booklet.qa, questions, s)]
            found = _answers(reader, booklet, qa, how)
            other = next(others, None)
            control = [{}] * len(qa) if other is None else _answers(reader, other, qa, how)
            for (question, answer, page), mine, theirs in zip(qa, found, control, strict=True):
                sample = {"seed": s, "pages": f"{len(booklet.pages)} pages", "kind": booklet.pages[page - 1].kind}
                sample |= {"question": question, "answers": [answer], "page": page, **mine}
                samples.append(sample | {f"{CONTROL}_{name}": value for name, value in theirs.items()})
            advance()
    groups = grouped(samples, "pages", COLUMNS) | grouped(samples, "kind", COLUMNS)
    return {**averages(samples, COLUMNS), "groups": groups}, samples


def _answers(
    reader: DocumentQA, booklet: Booklet, qa: list[tuple[str, str, int]], how: dict[str, Any]
) -> list[dict[str, Any]]:
    pictures = [Image.fromarray(page.image) for page in booklet.pages]
    answers = reader(pictures, [question for question, _, _ in qa], max_new_tokens=ANSWER, **how)
    found = []
    for (_, reference, page), answer in zip(qa, answers, strict=True):
        exact, right = exact_match(answer.text, [reference]), float(answer.pages == (page,))
        told = {"said": answer.text, "from": list(answer.pages), "confidence": answer.confidence}
        scores = {"anls": anls(answer.text, [reference]), "exact_match": exact, "right_page": right}
        found.append({**told, **scores, "found": exact * right})
    return found
