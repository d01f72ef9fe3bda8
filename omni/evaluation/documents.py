"""Reading: questions about held-out pages and their transcription, or questions about people's own documents.

Own documents are lines of JSON: {"document": path, "question": text, "answers": [text, ...]} and, if it matters,
"page" (counted from 1). Paths are relative to the file that names them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from omni.data.documents import LEVELS, Document, sample_document
from omni.evaluation.report import averages, grouped, held_out, progress
from omni.metrics import anls, character_accuracy, exact_match
from omni.model import Omni
from omni.pipelines.documents import READ_TOKENS, TRANSCRIBE, DocumentQA, reads_first, to_text
from omni.pipelines.views import check_views, choose_rows, continued, default_views, read_views
from omni.tokenizers.image import border_colour

PAGES_AT_ONCE = 32  # pages of one size that are read together
ANSWER = 48  # tokens of an answer
TRANSCRIPTION = {"word": 48, "line": 64, "lines": 160, "page": 512, "chart": 160}  # tokens of one, by level
SCORES = {"anls": anls, "exact_match": exact_match}
MAX_LINES = 1_000_000
CONTROLS = ("blank", "shuffled")
CONTROLLED = 60  # pages that the controls are shown for


def run(
    model: Omni,
    count: int,
    seed: int,
    data: Path | None = None,
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
    reader = DocumentQA(model)
    if views is not None:
        check_views(views)
    how = {"views": views, "read_first": reads_first(model) if read_first is None else read_first}
    if data is not None:
        return _own(reader, data, count, how)
    if questions < 1:
        raise ValueError(f"questions is {questions}; it must be at least 1")
    seeds = list(held_out(seed, count))
    pages = [sample_document(s) for s in seeds]
    asked = [Random(s).sample(page.qa, min(questions, len(page.qa))) for s, page in zip(seeds, pages, strict=True)]
    samples = _ask(model, seeds, pages, asked, how)
    metrics = averages(samples, [*SCORES, *(f"{c}_anls" for c in CONTROLS)])
    transcripts = _transcribe(model, seed, max(1, count // 5) if transcribed is None else transcribed, views)
    levels = grouped(transcripts, "level", ["character_accuracy"])
    metrics |= {"character_accuracy": levels.get("page", {}).get("character_accuracy")}
    groups = grouped(samples, "kind", [*SCORES, *(f"{c}_anls" for c in CONTROLS)])
    groups |= {f"transcribed {level}": levels[level] for level in LEVELS if level in levels}
    return {**metrics, "groups": groups}, samples + transcripts


# -- held-out pages --------------------------------------------------------------------------------------------------


def _ask(
    model: Omni, seeds: list[int], pages: list[Document], asked: list[list[tuple[str, str]]], how: dict[str, Any]
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
            sample |= _scored(said[""][i][j], [answer])
            for name in CONTROLS:
                if said[name][i] is not None:
                    sample |= {f"{name}_{k}": v for k, v in _scored(said[name][i][j], [answer]).items()}
            samples.append(sample)
    return samples


def _scored(said: str, answers: Sequence[str]) -> dict[str, Any]:
    return {"said": said, **{name: score(said, answers) for name, score in SCORES.items()}}


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


def _transcribe(model: Omni, seed: int, count: int, views: int | None) -> list[dict]:
    samples = []
    for level in LEVELS:
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
            ids, page = reader.prompt(picture, question, texts[i] if texts else None)
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


def _own(reader: DocumentQA, path: Path, count: int, how: dict[str, Any]) -> tuple[dict[str, Any], list[dict]]:
    """The first ``count`` lines of ``path``; questions on one document, or one page of it, are asked together."""
    cases = read_cases(path)[:count]
    together: dict[tuple[str, int | None], list[int]] = {}
    for i, case in enumerate(cases):
        together.setdefault((case["document"], case.get("page")), []).append(i)
    samples: list[dict] = [{} for _ in cases]
    with progress("documents", len(cases)) as advance:
        for (document, page), members in together.items():
            found = reader(path.parent / document, [cases[i]["question"] for i in members], page=page, **how)
            for i, answer in zip(members, found, strict=True):
                told = {"pages": list(answer.pages), "confidence": answer.confidence}
                samples[i] = {**cases[i], **_scored(answer.text, cases[i]["answers"]), **told}
            advance(len(members))
    return {**averages(samples, list(SCORES)), "groups": grouped(samples, "document", list(SCORES))}, samples


def read_cases(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of own cases. ValueError names the line that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(lines) > MAX_LINES:
        raise ValueError(f"{path} has {len(lines)} lines; the limit is {MAX_LINES}")
    cases = [_case(line, f"{path}, line {n}", path.parent) for n, line in enumerate(lines, 1) if line.strip()]
    if not cases:
        raise ValueError(f"{path} holds no cases")
    return cases


def _case(line: str, where: str, folder: Path) -> dict[str, Any]:
    try:
        case = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError(f"{where} is not JSON") from None
    if not isinstance(case, dict):
        raise ValueError(f"{where} is not an object")
    for name in ("document", "question"):
        if not isinstance(case.get(name), str) or not case[name].strip():
            raise ValueError(f"{where}: {name!r} must be a text that is not empty, not {case.get(name)!r}")
    answers = case.get("answers")
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) for a in answers):
        raise ValueError(f"{where}: 'answers' must be a list of at least one text, not {answers!r}")
    page = case.get("page")
    if page is not None and (isinstance(page, bool) or not isinstance(page, int)):
        raise ValueError(f"{where}: 'page' must be a whole number, not {page!r}")
    if not (folder / case["document"]).is_file():
        raise ValueError(f"{where}: there is no file {folder / case['document']}")
    return case
