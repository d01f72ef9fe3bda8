"""Questions about documents: a picture, a PDF, or a list of pages.

page, and looks at it ──> prefix of the prompt (image and all text before the question), read once ──> cache
(optional) the page read aloud ──> its text, added to the cache: answers are easier to find in it
each question ──> copy of that cache ──> answer and its confidence
many pages ──> the answer of the page that is surest of it
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from omni.cache import Cache
from omni.decoders.autoregressive import Event, Row
from omni.decoders.sampling import SamplingParams
from omni.model import Omni
from omni.pipelines.views import check_views, choose_rows, continued, default_views, read_on, read_views
from omni.tokenizers.image import open_document
from omni.tokenizers.text import StreamDecoder

TRANSCRIBE = "Read the page."
READ_TOKENS = 512  # of a page that is read aloud before the questions
QUESTIONS_AT_ONCE = 16  # each holds a copy of the page's cache
PDF_PIXELS = 1536  # longest side of a rendered page, where the model takes that much


@dataclass(frozen=True)
class Answer:
    """What the model said, where it read it, and how sure it was."""

    text: str
    pages: tuple[int, ...]  # counted from 1
    confidence: float  # geometric mean of the probabilities of the answer's tokens, in 0..1
    tokens: int  # generated, the end token included
    complete: bool  # False: cut off at max_new_tokens

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class DocumentQA:
    """``DocumentQA(model)(document, question) -> Answer``; a list of questions gives a list of answers."""

    def __init__(self, model: Omni) -> None:
        if model.config.vision is None:
            raise ValueError("this model reads no images; documents need one with a vision encoder")
        if model.tokenizer is None:
            raise ValueError("this model was loaded without a tokenizer; documents need one")
        self.model = model
        ends = [model.tokenizer.special.get("eos", []), model.config.special_tokens.get("eos", [])]
        self.ends = frozenset(i for end in ends for i in (end if isinstance(end, list) else [end]))

    @classmethod
    def from_pretrained(cls, name_or_path: str = "tiny", **options: Any) -> "DocumentQA":
        """``options``: device, dtype."""
        import omni

        return cls(omni.load(name_or_path, **options))

    def __call__(
        self,
        document: Any,
        question: str | Sequence[str],
        page: int | None = None,
        max_new_tokens: int = 48,
        views: int | None = None,
        read_first: bool | None = None,
    ) -> Answer | list[Answer]:
        """Answer from the whole document, or from ``page`` (counted from 1) alone.

        ``document`` is a path, bytes, a picture, or a list of pictures. Every page is read once, however many
        questions there are; ``views`` looks at it are answered together (:mod:`omni.pipelines.views`). With
        ``read_first`` the model transcribes the page, and answers with that text before the questions. Both are by
        default as the checkpoint asks for.

        Raises ValueError for a bad document, page, question or number of views.
        """
        views = self._views(views)
        read_first = reads_first(self.model) if read_first is None else read_first
        questions = [question] if isinstance(question, str) else list(question)
        if not questions or not all(isinstance(q, str) and q.strip() for q in questions):
            raise ValueError(f"a question must be a text that is not empty, not {question!r}")
        found: list[list[Answer]] = []
        for number, picture in self._pages(document, page):
            found.append(self._answer(picture, number, questions, max_new_tokens, views, read_first))
        best = [max(answers, key=lambda a: a.confidence) for answers in zip(*found, strict=True)]
        return best[0] if isinstance(question, str) else best

    def transcribe(
        self, document: Any, page: int | None = None, max_new_tokens: int = 1024, views: int | None = None
    ) -> list[str]:
        """The text of each page, in reading order."""
        pages, views = self._pages(document, page), self._views(views)
        return [self._answer(p, n, [TRANSCRIBE], max_new_tokens, views)[0].text for n, p in pages]

    def _views(self, views: int | None) -> int:
        views = default_views(self.model) if views is None else views
        check_views(views)
        return views

    def _pages(self, document: Any, page: int | None) -> Iterable[tuple[int, Image.Image]]:
        """Page numbers and pictures, each opened when its turn comes."""
        vision = self.model.config.vision
        pages = open_document(document, longest=min(PDF_PIXELS, vision.max_grid * vision.patch_size))
        if page is not None and not 1 <= page <= len(pages):
            raise ValueError(f"page is {page}; the document has {len(pages)}")
        numbers = range(1, len(pages) + 1) if page is None else [page]
        if len(numbers) > 1:
            console = Console(stderr=True)
            numbers = track(numbers, "pages", console=console, transient=True, disable=not console.is_terminal)
        return ((number, pages[number - 1]) for number in numbers)

    @torch.inference_mode()
    def _answer(
        self,
        page: Image.Image,
        number: int,
        questions: list[str],
        limit: int,
        views: int,
        read_first: bool = False,
    ) -> list[Answer]:
        """Answers to all questions from one page."""
        opening, pixels = self.prompt(page, TRANSCRIBE)
        rows = [self.prompt(page, question)[0] for question in questions]
        self._check_room(max(map(len, [*rows, opening] if read_first else rows)), limit)
        known = _common_prefix([*rows, opening])
        cache = read_views(self.model, opening[:known], pixels, views)
        if read_first:
            most = min(READ_TOKENS, self.model.config.max_positions - len(opening))
            text = self._continue(cache, [opening[known:]], number, most, views)[0].text
            rows = [self.prompt(page, question, text)[0] for question in questions]
            self._check_room(max(map(len, rows)), limit)
            start, known = known, _common_prefix(rows)
            read_on(self.model, cache, rows[0][start:known])
        return self._continue(cache, [ids[known:] for ids in rows], number, limit, views)

    def _continue(self, cache: Cache, endings: list[list[int]], number: int, limit: int, views: int) -> list[Answer]:
        """An answer to each ending of the prompt that begins with what ``cache`` holds."""
        answers = []
        for start in range(0, len(endings), QUESTIONS_AT_ONCE):
            some = endings[start : start + QUESTIONS_AT_ONCE]
            copies = choose_rows(cache, [0] * len(some), views)
            said = continued(self.model, copies, some, [self.row(limit) for _ in some], views)
            answers += [_answer(events, number) for events in said]
        return answers

    def prompt(self, page: Image.Image, question: str, text: str | None = None) -> tuple[list[int], tuple[Tensor, ...]]:
        """Ids and pixels of a question about ``page``, which has been read aloud as ``text`` before."""
        asked = [TRANSCRIBE, question] if text is not None else [question]
        contents = [[{"type": "image", "image": page}, {"type": "text", "text": asked[0]}], *asked[1:]]
        messages = [{"role": "user", "content": content} for content in contents]
        if text is not None:
            messages.insert(1, {"role": "assistant", "content": text})
        inputs = self.model.prepare(messages, thinking=False)
        return inputs.input_ids[0].tolist(), inputs.pixels

    def _check_room(self, prompt: int, limit: int) -> None:
        room = self.model.config.max_positions
        if limit < 1 or prompt + limit > room:
            raise ValueError(
                f"max_new_tokens is {limit}; behind a prompt of {prompt} tokens it must lie between 1 and "
                f"{room - prompt}"
            )

    def row(self, limit: int) -> Row:
        """A greedy answer of at most ``limit`` tokens, for the next-token loop."""
        decoder = StreamDecoder(self.model.tokenizer)
        return Row(SamplingParams(temperature=0, logprobs=0), decoder, limit, eos=self.ends)


def reads_first(model: Omni) -> bool:
    """Whether the checkpoint asks for pages to be read aloud before their questions."""
    return bool(model.config.sampling.get("document_read_first", False))


def to_text(events: list[Event]) -> str:
    """What one row said."""
    return "".join(event.text for event in events).strip()


def _answer(events: list[Event], page: int) -> Answer:
    """One row's answer. Its confidence counts the end token too: where an answer ends is part of it."""
    confidence = math.exp(sum(event.logprob for event in events) / len(events))
    return Answer(to_text(events), (page,), confidence, len(events), complete=events[-1].finish == "stop")


def _common_prefix(rows: list[list[int]]) -> int:
    """Tokens that all rows begin with; every row keeps at least one of its own."""
    most = min(len(row) for row in rows) - 1
    for i in range(most):
        if any(row[i] != rows[0][i] for row in rows):
            return i
    return most
