"""Reading: questions about held-out pages or charts and their transcription, or about people's own documents.

Own documents are lines of JSON: {"document": path, "question": text, "answers": [text, ...]} and, if it matters,
"page" (counted from 1). Paths are relative to the file that names them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from omni.data.documents import LEVELS, Document, sample_document
from omni.evaluation.own import Journal, check_case, read_lines
from omni.evaluation.report import averages, grouped, held_out, progress
from omni.metrics import anls, character_accuracy, exact_match, relaxed_accuracy
from omni.model import Omni
from omni.pipelines.documents import READ_TOKENS, TRANSCRIBE, DocumentQA, reads_first, to_text
from omni.pipelines.views import check_views, choose_rows, continued, default_views, read_views
from omni.tokenizers.image import border_colour

PAGES_AT_ONCE = 32  # pages of one size that are read together
ANSWER = 48  # tokens of an answer
TRANSCRIPTION = {"word": 48, "line": 64, "lines": 160, "page": 512, "chart": 160}  # tokens of one, by level
SCORES = {
    "page": {"anls": anls, "exact_match": exact_match},
    "chart": {"anls": anls, "relaxed_accuracy": relaxed_accuracy},
}
CONTROLS = ("blank", "shuffled")
CONTROLLED = 60  # pages that the controls are shown for


def run(
    model: Omni,
    count: int,
    seed: int,
    data: Path | None = None,
    journal: Path | None = None,
    questions: int = 3,
    transcribed: int | None = None,
    read_first: bool | None = None,
    views: int | None = None,
) -> tuple[dict[str, Any], list[dict]]:
    """``count`` pages with ``questions`` each; ``transcribed`` pieces of every level are read aloud (default: a fifth).

    ``read_first``: whether pages are transcribed before their questions; ``views``: looks at each page. Both are by
    default as the checkpoint asks for.

    Metrics: ANLS and exact match of the answers; the same, for the first pages, with a blank page and with another page
    of the same size in its place; character accuracy of the transcription.
    """
    reader, how = _reader(model, read_first, views)
    if data is not None:
        return _own(reader, data, count, how, "page", journal)
    return _held_out(model, count, seed, "page", LEVELS, questions, transcribed, how)


def run_charts(
    model: Omni,
    count: int,
    seed: int,
    data: Path | None = None,
    journal: Path | None = None,
    questions: int = 3,
    transcribed: int | None = None,
    read_first: bool | None = None,
    views: int | None = None,
) -> tuple[dict[str, Any], list[dict]]:
    """The same of charts, and ``transcribed`` of them are told as tables.

    Metrics: ANLS and relaxed accuracy, also with the controls; character accuracy of the tables.
    """
    reader, how = _reader(model, read_first, views)
    if data is not None:
        return _own(reader, data, count, how, "chart", journal)
    return _held_out(model, count, seed, "chart", ("chart",), questions, transcribed, how)


def _reader(model: Omni, read_first: bool | None, views: int | None) -> tuple[DocumentQA, dict[str, Any]]:
    reader = DocumentQA(model)
    if views is not None:
        check_views(views)
    return reader, {"views": views, "read_first": reads_first(model) if read_first is None else read_first}


# -- held-out pages --------------------------------------------------------------------------------------------------


def _held_out(
    model: Omni,
    count: int,
    seed: int,
    level: str,
    levels: Sequence[str],
    questions: int,
    transcribed: int | None,
    how: dict[str, Any],
) -> tuple[dict[str, Any], list[dict]]:
    """Questions about documents of ``level``, and the transcription of those of ``levels``."""
    if questions < 1:
        raise ValueError(f"questions is {questions}; it must be at least 1")
    seeds = list(held_out(seed, count))
    pages = [sample_document(s, level) for s in seeds]
    asked = [Random(s).sample(page.qa, min(questions, len(page.qa))) for s, page in zip(seeds, pages, strict=True)]
    scores = SCORES[level]
    columns = [*scores, *(f"{name}_{score}" for name in CONTROLS for score in scores if score != "exact_match")]
    samples = _ask(model, seeds, pages, asked, how, scores)
    most = max(1, count // 5) if transcribed is None else transcribed
    transcripts = _transcribe(model, seed, most, how["views"], levels)
    found = grouped(transcripts, "level", ["character_accuracy"])
    metrics = averages(samples, columns) | {"character_accuracy": found.get(level, {}).get("character_accuracy")}
    groups = grouped(samples, "kind", columns)
    groups |= {f"transcribed {name}": found[name] for name in levels if name in found}
    return {**metrics, "groups": groups}, samples + transcripts


def _ask(
    model: Omni,
    seeds: list[int],
    pages: list[Document],
    asked: list[list[tuple[str, str]]],
    how: dict[str, Any],
    scores: dict[str, Callable],
) -> list[dict]:
    """One sample a question, with the answers to the page and to the two controls."""
    pictures = [Image.fromarray(page.image) for page in pages]
    questions = [[question for question, _ in some] for some in asked]
    first, rest = pictures[:CONTROLLED], [None] * len(pictures[CONTROLLED:])
    shown = {"": pictures, "blank": [*map(blank, first), *rest], "shuffled": [*shuffled(first), *rest]}
    said = {
        name: answer_pages(model, some, questions, ANSWER, f"pages {name}".strip(), **how)
        for name, some in shown.items()
    }
    samples = []
    for i, page in enumerate(pages):
        for j, (question, answer) in enumerate(asked[i]):
            sample = {"seed": seeds[i], "kind": page.kind, "question": question, "answers": [answer]}
            sample |= _scored(said[""][i][j], [answer], scores)
            for name in CONTROLS:
                if said[name][i] is not None:
                    found = _scored(said[name][i][j], [answer], scores)
                    sample |= {f"{name}_{k}": v for k, v in found.items()}
            samples.append(sample)
    return samples


def _scored(said: str, answers: Sequence[str], scores: dict[str, Callable]) -> dict[str, Any]:
    return {"said": said, **{name: score(said, answers) for name, score in scores.items()}}


def blank(picture: Image.Image) -> Image.Image:
    """An empty page of the same size and paper."""
    colour = border_colour(np.asarray(picture))
    return Image.new("RGB", picture.size, tuple(int(c) for c in colour))


def shuffled(pictures: Sequence[Image.Image]) -> list[Image.Image | None]:
    """For each picture the next one of its size; None where there is no other."""
    found: list[Image.Image | None] = [None] * len(pictures)
    for members in _by_size(pictures):
        if len(members) > 1:
            for i, other in zip(members, [*members[1:], members[0]], strict=True):
                found[i] = pictures[other]
    return found


def _by_size(pictures: Sequence[Image.Image | None]) -> list[list[int]]:
    """Indices of the pictures of each size."""
    sizes: dict[tuple[int, int], list[int]] = {}
    for i, picture in enumerate(pictures):
        if picture is not None:
            sizes.setdefault(picture.size, []).append(i)
    return list(sizes.values())


def _transcribe(model: Omni, seed: int, count: int, views: int | None, levels: Sequence[str]) -> list[dict]:
    samples = []
    for level in levels:
        seeds = list(held_out(seed, count))
        pieces = [sample_document(s, level) for s in seeds]
        pictures = [Image.fromarray(piece.image) for piece in pieces]
        questions, limit = [[TRANSCRIBE]] * count, TRANSCRIPTION[level]
        said = answer_pages(model, pictures, questions, limit, f"transcribing {level}", views=views)
        for s, piece, (text,) in zip(seeds, pieces, said, strict=True):
            accuracy = character_accuracy(text, piece.text)
            sample = {"seed": s, "level": level, "said": text, "text": piece.text, "character_accuracy": accuracy}
            samples.append(sample)
    return samples


# -- many pages at once ----------------------------------------------------------------------------------------------


@torch.inference_mode()
def answer_pages(
    model: Omni,
    pictures: Sequence[Image.Image | None],
    questions: Sequence[Sequence[str]],
    limit: int,
    label: str = "pages",
    read_first: bool = False,
    views: int | None = None,
) -> list[list[str] | None]:
    """Greedy answers to each page's questions: what ``DocumentQA`` answers, with pages of one size read together.

    Each page's questions continue copies of its cache. None stays None.
    """
    answers: list[list[str] | None] = [None] * len(pictures)
    views = default_views(model) if views is None else views
    with progress(label, sum(picture is not None for picture in pictures)) as advance:
        for members in _by_size(pictures):
            for start in range(0, len(members), PAGES_AT_ONCE):
                some = members[start : start + PAGES_AT_ONCE]
                pages, asked = [pictures[i] for i in some], [questions[i] for i in some]
                texts = None
                if read_first:
                    aloud = _answer_batch(model, pages, [[TRANSCRIBE]] * len(pages), READ_TOKENS, views)
                    texts = [text for (text,) in aloud]
                found = _answer_batch(model, pages, asked, limit, views, texts)
                for i, said in zip(some, found, strict=True):
                    answers[i] = said
                advance(len(some))
    return answers


def _answer_batch(
    model: Omni,
    pictures: list[Image.Image],
    questions: list[Sequence[str]],
    limit: int,
    views: int,
    texts: list[str] | None = None,
) -> list[list[str]]:
    """Answers to the questions about each page, which may have been read aloud as one of ``texts`` before."""
    reader, prompts, pixels, owners = DocumentQA(model), [], [], []
    for i, (picture, some) in enumerate(zip(pictures, questions, strict=True)):
        for question in some:
            ids, page = reader.prompt(picture, question, (texts[i] or None) if texts else None)
            prompts.append(ids)
            owners.append(i)
        pixels += page
    shared = _common(prompts, model.config.special_tokens["image"])
    cache = choose_rows(read_views(model, prompts[0][:shared], pixels, views), owners, views)
    rows = [reader.row(limit) for _ in prompts]
    said = continued(model, cache, [prompt[shared:] for prompt in prompts], rows, views)
    answers = [to_text(events) for events in said]
    return [[answer for answer, owner in zip(answers, owners, strict=True) if owner == i] for i in range(len(pictures))]


def _common(prompts: list[list[int]], image: int) -> int:
    """Tokens of the page with what stands before it: the same in all prompts, as the pages are of one size."""
    first = prompts[0]
    shared = len(first) - first[::-1].index(image)
    if any(prompt[:shared] != first[:shared] or len(prompt) == shared for prompt in prompts):
        raise ValueError("the chat format puts the question before the page; pages cannot be read ahead")
    return shared


# -- own documents ---------------------------------------------------------------------------------------------------


def _own(
    reader: DocumentQA, path: Path, count: int, how: dict[str, Any], level: str, journal: Path | None
) -> tuple[dict[str, Any], list[dict]]:
    """The first ``count`` lines of ``path``; questions on one document, or one page of it, are asked together."""
    cases = read_cases(path)[:count]
    together: dict[tuple[str, int | None], list[int]] = {}
    for i, case in enumerate(cases):
        together.setdefault((case["document"], case.get("page")), []).append(i)
    order = [i for members in together.values() for i in members]
    scores = SCORES[level]

    def respond(some: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        document, page = path.parent / some[0]["document"], some[0].get("page")
        answers = reader(document, [case["question"] for case in some], page=page, **how)
        return [
            {
                **case,
                **_scored(answer.text, case["answers"], scores),
                "pages": list(answer.pages),
                "confidence": answer.confidence,
            }
            for case, answer in zip(some, answers, strict=True)
        ]

    # Answers are counted in this order, which hangs on how many lines there are.
    book = Journal(journal, reader.model, path, {**how, "level": level, "count": len(cases)})
    done = book.fill([cases[i] for i in order], respond, lambda case: (case["document"], case.get("page")))
    samples = [sample for _, sample in sorted(zip(order, done, strict=True), key=lambda pair: pair[0])]
    return {**averages(samples, list(scores)), "groups": grouped(samples, "document", list(scores))}, samples


def read_cases(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of own cases. ValueError names the line that is wrong."""
    cases = []
    for case, where in read_lines(path):
        check_case(case, where, "document", path.parent)
        cases.append({**case, "where": where})
    return cases
