"""Media that are read once and asked about many times.

parts of a message ──> prompt up to the question, read once ──> cache
(optional) all of it told first ──> added to the cache: answers are easier to find in words
each question ──> copy of that cache ──> answer and its confidence
"""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from omni.cache import Cache
from omni.decoders.autoregressive import Event, Row
from omni.decoders.sampling import SamplingParams
from omni.inputs import Inputs
from omni.model import Omni
from omni.pipelines.reader import CHUNK, LONG, split
from omni.pipelines.views import choose_rows, continued, looks
from omni.prepare import Expansion, gather, ids_of, open_media
from omni.tokenizers.text import StreamDecoder

TOLD_TOKENS = 512  # of what is told before the questions
QUESTIONS_AT_ONCE = 16  # each holds a copy of the cache
PROBES = ("0", "A")  # questions whose prompts differ from their first character on


@dataclass(frozen=True)
class Answer:
    """What the model said, where it read it, and how sure it was."""

    text: str
    pages: tuple[int, ...] = ()  # of a document, counted from 1
    confidence: float = 0.0  # geometric mean of the probabilities of the answer's tokens, in 0..1
    tokens: int = 0  # generated, the end token included
    complete: bool = True  # False: cut off at max_new_tokens

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Reading:
    """``Reading(model, parts).ask(questions)``: the parts are opened and read once."""

    def __init__(
        self, model: Omni, parts: Sequence[dict], tell: str | None = None, views: int = 1, **options: Any
    ) -> None:
        """Read ``parts``, OpenAI-style parts of the user's message.

        With ``tell``, a question that asks for all of it, the model answers that first. A single picture may be looked
        at in several ``views`` (:mod:`omni.pipelines.views`). ``options`` are those of :func:`omni.prepare.open_media`.
        Raises ValueError for what cannot be read or is too long.
        """
        self.model, self.parts, self.views = model, list(parts), views
        self.tell, self.told = tell, ""
        self.prefix: list[int] = []
        with torch.inference_mode():
            self.media: list[Expansion] = open_media(model, self._conversation("?"), **options)
            if tell is not None:
                start = self._read_shared()
                asked = self.ids(tell, told=False)
                most = min(TOLD_TOKENS, model.config.max_positions - len(asked))
                (answer,) = self._continue([asked[start:]], most)
                self.told = answer.text
            self._read_shared()

    def ask(self, questions: Sequence[str], max_new_tokens: int = 48) -> list[Answer]:
        """An answer to each question, greedy."""
        check_questions(questions)
        rows = [self.ids(question) for question in questions]
        check_room(self.model, max(map(len, rows)), max_new_tokens)
        known = len(self.prefix)
        if any(row[:known] != self.prefix or len(row) == known for row in rows):
            raise ValueError("the chat format does not keep what stands before the question; it cannot be read ahead")
        with torch.inference_mode():
            return self._continue([row[known:] for row in rows], max_new_tokens)

    @torch.inference_mode()
    def score(self, question: str, answers: Sequence[str]) -> list[float]:
        """Log-probability of each of ``answers`` to ``question``, the end of the answer included."""
        known, end = len(self.prefix), min(ends_of(self.model))
        cache = self.cache.select(torch.zeros(1, dtype=torch.int64, device=self.model.device))
        first = self._scores(self.ids(question)[known:], cache)[-1:]
        found = []
        for answer in answers:
            tail = [*self.model.tokenizer.encode(answer), end]
            cache.begin()
            scores = torch.cat([first, self._scores(tail[:-1], cache)])
            cache.rollback()
            found.append(sum(float(row[token]) for row, token in zip(scores, tail, strict=True)))
        return found

    def _scores(self, ids: list[int], cache: Cache) -> Tensor:
        """(n, v) log-probabilities of what follows each of ``ids``, which the cache takes."""
        return self.model.logits(Inputs(torch.tensor([ids], device=self.model.device)), cache)[0].log_softmax(-1)

    def ids(self, question: str, told: bool = True) -> list[int]:
        """The prompt of a question; with ``told``, behind what was told before."""
        return ids_of(self.model, self._conversation(question, told), self.media, thinking=False)

    @property
    def prompt_tokens(self) -> int:
        """Tokens that all questions share."""
        return len(self.prefix)

    def _conversation(self, question: str, told: bool = True) -> list[dict]:
        asked = [self.tell, question] if told and self.told else [question]
        contents: list[Any] = [[*self.parts, {"type": "text", "text": asked[0]}], *asked[1:]]
        messages = [{"role": "user", "content": content} for content in contents]
        if len(asked) > 1:
            messages.insert(1, {"role": "assistant", "content": self.told})
        return messages

    def _read_shared(self) -> int:
        """Read what the prompts of all questions begin with, as far as it was not read; returns its length."""
        rows = [self.ids(probe) for probe in PROBES]
        known, before = common_prefix(rows), len(self.prefix)
        check_room(self.model, known, 1)
        if rows[0][:before] != self.prefix:
            raise ValueError("the chat format does not keep what stands before an answer; it cannot be read ahead")
        if not before:
            self.cache = read_inputs(self.model, self._looks(gather(self.model, [rows[0][:known]], self.media)))
        elif known > before:
            more = torch.tensor([rows[0][before:known]] * self.views, device=self.model.device)
            self.model.read(Inputs(more), self.cache, last=0)
        self.prefix = rows[0][:known]
        return known

    def _looks(self, inputs: Inputs) -> Inputs:
        """The prompt with a row for each look at its picture."""
        if self.views == 1:
            return inputs
        (pixels,) = inputs.pixels
        seen = looks(pixels, self.views, self.model.config.vision.token_pixels)
        return Inputs(inputs.input_ids.expand(self.views, -1), pixels=tuple(seen))

    def _continue(self, endings: list[list[int]], limit: int) -> list[Answer]:
        answers = []
        for start in range(0, len(endings), QUESTIONS_AT_ONCE):
            some = endings[start : start + QUESTIONS_AT_ONCE]
            copies = choose_rows(self.cache, [0] * len(some), self.views)
            rows = [greedy(self.model, limit) for _ in some]
            answers += [answer_of(events) for events in continued(self.model, copies, some, rows, self.views)]
        return answers


def read_inputs(model: Omni, inputs: Inputs) -> Cache:
    """The cache behind ``inputs``, read in chunks; a progress bar on long ones."""
    cache = model.new_cache(*inputs.input_ids.shape)
    chunks = split(model, inputs, CHUNK)
    console = Console(stderr=True)
    shown = len(chunks) > LONG and console.is_terminal
    for chunk in track(chunks, "reading", console=console, transient=True, disable=not shown):
        model.read(chunk, cache, last=0)
    return cache


def greedy(model: Omni, limit: int) -> Row:
    """A greedy answer of at most ``limit`` tokens, for the next-token loop."""
    return Row(SamplingParams(temperature=0, logprobs=0), StreamDecoder(model.tokenizer), limit, eos=ends_of(model))


def ends_of(model: Omni) -> frozenset[int]:
    """Tokens that end an answer."""
    ends = [model.tokenizer.special.get("eos", []), model.config.special_tokens.get("eos", [])]
    return frozenset(i for end in ends for i in (end if isinstance(end, list) else [end]))


def answer_of(events: list[Event], pages: tuple[int, ...] = ()) -> Answer:
    """One row's answer. Its confidence counts the end token too: where an answer ends is part of it."""
    confidence = math.exp(sum(event.logprob for event in events) / len(events))
    return Answer(to_text(events), pages, confidence, len(events), complete=events[-1].finish == "stop")


def to_text(events: list[Event]) -> str:
    """What one row said."""
    return "".join(event.text for event in events).strip()


def identity(source: Any) -> Any:
    """What stays the same as long as a document or video does; None where that cannot be told.

    A file is known by its name, time and size; pictures and bytes by their content; a list by its items.
    """
    if isinstance(source, (str, Path)) and os.path.isfile(source):
        stat = os.stat(source)
        return str(source), stat.st_mtime_ns, stat.st_size
    if isinstance(source, (list, tuple)):
        items = tuple(identity(item) for item in source)
        return None if None in items else items
    if isinstance(source, Image.Image):
        return source.mode, source.size, hashlib.blake2b(source.tobytes()).digest()
    return hashlib.blake2b(source).digest() if isinstance(source, bytes) else None


def check_questions(questions: Sequence[str]) -> None:
    """ValueError unless there are questions and none is empty."""
    if not questions or not all(isinstance(q, str) and q.strip() for q in questions):
        raise ValueError(f"a question must be a text that is not empty, not {questions!r}")


def check_room(model: Omni, prompt: int, limit: int) -> None:
    """ValueError unless an answer of ``limit`` tokens fits behind a prompt of ``prompt``."""
    room = model.config.max_positions
    if limit < 1 or prompt + limit > room:
        raise ValueError(
            f"max_new_tokens is {limit}; behind a prompt of {prompt} tokens it must lie between 1 and {room - prompt}"
        )


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all rows begin with; every row keeps at least one of its own."""
    most = min(len(row) for row in rows) - 1
    for i in range(most):
        if any(row[i] != rows[0][i] for row in rows):
            return i
    return most
