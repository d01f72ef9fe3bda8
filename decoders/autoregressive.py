"""The next-token loop, over callables: it never sees a model.

    prompt ── spans ── read chunk by chunk ──> logits of the last token
    logits ── Sampler ──> token ── StreamDecoder, stop strings ──> Event ──> ... ── step ──> logits
                                                        finished rows leave the batch: keep(rows)

Rows of a batch live on their own: each has its parameters, its end, its stop strings and its text. A row that is done
is dropped from the batch, and the rest goes on without it.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from omni.decoders.budget import ReasoningBudget
from omni.decoders.sampling import Choice, Sampler, SamplingParams

MAX_STOPS = 64
MAX_STOP_LENGTH = 1024

Chunk = TypeVar("Chunk")


class Decoder(Protocol):
    """Ids one by one -> text."""

    def push(self, token: int) -> str: ...

    def flush(self) -> str: ...


@dataclass
class Row:
    """What one row of the batch asks for."""

    params: SamplingParams
    decoder: Decoder
    max_new_tokens: int
    eos: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    prompt: Sequence[int] = field(default=(), repr=False)
    budget: ReasoningBudget | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.max_new_tokens <= 1 << 32:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if len(self.stop) > MAX_STOPS:
            raise ValueError(f"there are {len(self.stop)} stop strings; the limit is {MAX_STOPS}")
        for stop in self.stop:
            if not isinstance(stop, str) or not 1 <= len(stop) <= MAX_STOP_LENGTH:
                raise ValueError(f"stop string {str(stop)[:40]!r} must have 1 to {MAX_STOP_LENGTH} characters")


@dataclass(frozen=True)
class Event:
    """One token of one row. ``text`` is what became certain with it: it may be "", and it may lag behind.

    ``finish`` is set once, at the row's last token: "stop" (an end token or a stop string) or "length".
    """

    row: int
    token: int
    text: str = ""
    finish: str | None = None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


# -- reading the prompt ----------------------------------------------------------------------------------


def spans(tokens: int, chunk: int, whole: Iterable[tuple[int, int]] = ()) -> list[tuple[int, int]]:
    """Cut ``tokens`` into (start, stop) of at most ``chunk``; no border falls inside a (start, stop) of ``whole``.

    A whole piece larger than the chunk makes a larger span: an image is read at once.
    """
    if chunk < 1 or tokens < 1:
        raise ValueError(f"cannot cut {tokens} tokens into chunks of {chunk}")
    inside = {i for start, stop in whole for i in range(start + 1, stop)}
    borders = [0]
    while tokens - borders[-1] > chunk:
        border = borders[-1] + chunk
        while border in inside and border > borders[-1]:
            border -= 1
        if border == borders[-1]:
            border = next(i for i in range(borders[-1] + chunk, tokens + 1) if i not in inside)
        borders.append(border)
    if borders[-1] < tokens:
        borders.append(tokens)
    return list(itertools.pairwise(borders))


def prefill(
    chunks: Sequence[Chunk],
    read: Callable[[Chunk], Tensor],
    progress: Callable[[int, int], Any] | None = None,
) -> Tensor:
    """Read all chunks in order; logits (b, v) of the last one. ``progress`` hears (chunks read, chunks in all)."""
    if not chunks:
        raise ValueError("there is nothing to read")
    for i, chunk in enumerate(chunks):
        logits = read(chunk)
        if progress is not None:
            progress(i + 1, len(chunks))
    return logits


# -- the loop --------------------------------------------------------------------------------------------


def generate(
    logits: Tensor,
    rows: Sequence[Row],
    step: Callable[[Tensor], Tensor],
    keep: Callable[[Tensor], Any],
) -> Iterator[Event]:
    """Draw tokens until every row is finished.

    Args:
        logits: (b, v) behind the prompts.
        rows: b rows.
        step: feeds one token a row, (b,) int64, and gives the next logits (b, v).
        keep: told which rows, int64 indices into the present batch, go on; called only when some but not all end.

    A row's last token is not fed. Closing the generator stops the loop between two tokens.
    """
    sampler = Sampler([row.params for row in rows], [row.prompt for row in rows])
    active = [Running(i, row) for i, row in enumerate(rows)]
    while active:
        forced = [running.forced() for running in active]
        going = []
        for i, choice in enumerate(sampler(logits, forced)):
            event = active[i].take(choice)
            if event.finish is None:
                going.append(i)
            yield event
        if not going:
            return
        if len(going) < len(active):
            active = [active[i] for i in going]
            sampler.keep(going)
            keep(torch.tensor(going, device=logits.device))
        logits = step(torch.tensor([running.last for running in active], device=logits.device))


class Running:
    """A row while it is generated: what it has taken, its text, and whether it is done."""

    def __init__(self, index: int, row: Row) -> None:
        self.index = index
        self.row = row
        self.last = -1
        self.count = 0
        self.text = StopText(row.stop)

    @property
    def left(self) -> int:
        """Tokens that it may still take."""
        return self.row.max_new_tokens - self.count

    def forced(self) -> int | None:
        """The token that must come next, if one must."""
        return self.row.budget.force() if self.row.budget is not None else None

    def take(self, choice: Choice) -> Event:
        self.last = choice.token
        self.count += 1
        if self.row.budget is not None:
            self.row.budget.push(choice.token)
        text, finish = self._advance(choice.token)
        return Event(self.index, choice.token, text, finish, choice.logprob, choice.top)

    def _advance(self, token: int) -> tuple[str, str | None]:
        if token in self.row.eos:
            return self._end("stop")
        text = self.text.push(self.row.decoder.push(token))
        if self.text.stopped:
            return text, "stop"
        if self.count == self.row.max_new_tokens:
            rest, finish = self._end("length")
            return text + rest, finish
        return text, None

    def _end(self, finish: str) -> tuple[str, str]:
        """What the decoder and the stop strings still held back."""
        text = self.text.push(self.row.decoder.flush())
        if self.text.stopped:
            return text, "stop"
        return text + self.text.flush(), finish


class StopText:
    """Text in pieces -> text up to the first stop string, wherever the pieces were cut.

    What could be the beginning of a stop string is held back until it is known not to be.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.stopped = False
        self._held = ""

    def push(self, piece: str) -> str:
        if not self.stops or self.stopped:
            return "" if self.stopped else piece
        self._held += piece
        found = [(at + len(stop), at) for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if found:  # the one that is complete first: the same for every cut of the text
            self.stopped = True
            return self._held[: min(found)[1]]
        split = len(self._held) - max(overlap(self._held, stop) for stop in self.stops)
        text, self._held = self._held[:split], self._held[split:]
        return text

    def flush(self) -> str:
        """The end: what was held back was no stop string."""
        text, self._held = ("" if self.stopped else self._held), ""
        return text


def overlap(text: str, marker: str) -> int:
    """Length of the longest ending of ``text`` that begins ``marker`` (and is not all of it)."""
    longest = min(len(text), len(marker) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(marker[:n])), 0)
