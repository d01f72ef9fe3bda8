"""Block diffusion: a block of masks is revealed in a few passes, the surest tokens first, and read as one.

    context ── denoise(block, t) ──> logits of every place ── draw ──> tokens and how sure each is
    block   M M M M M M      t = 1      reveal what is surer than the threshold, one at least
            a M M c M M      t = 2/3    ... and enough to be done in so many passes
            a b d c e f      ── commit ──> context, and the next block

What is revealed stays. The time that the model is told is the share of masks that its block has; every row of a batch
has its own, and is done on its own. Places behind an end token, or behind the last token that a row may take, stay
masked and cost no pass; a row's last block is short in that sense.

The same with the context's own judgement (lossless): the block begins with the last token, the context reads it in one
pass, and what it would have said itself is kept, as far as that goes, with the token it says behind it. A draw of the
context's is made at every place, so that the answer is the one of plain decoding, token for token, with any sampling.

Source: TwoTower, arXiv 2606.26493; ``reference`` generation_and_compression, section A.5, and D.2 for the judgement.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from omni.decoders.autoregressive import Event, Row, Running
from omni.decoders.sampling import Sampler, check_finite, draw, greedy

MAX_BLOCK = 1 << 10


@dataclass(frozen=True, kw_only=True)
class Unmasking:
    """How a block is revealed. ``steps`` of one: all at once, nothing is looked at again.

    ``published``: as the reference does it, every row is told the mean time of the batch and takes part in every pass,
    and blocks are filled behind an end too.
    """

    block: int = 16  # tokens
    steps: int = 16  # passes over a block, at most
    threshold: float = 0.8  # probability above which a token is revealed at once
    published: bool = False

    def __post_init__(self) -> None:
        for name in ("block", "steps"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_BLOCK:
                raise ValueError(f"{name} is {value!r}; it must be a whole number from 1 to {MAX_BLOCK}")
        value = self.threshold
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
            raise ValueError(f"threshold is {value!r}; it must be a number from 0 to 1")

    def reveals(self, sure: Sequence[float], step: int) -> int:
        """How many masks are revealed at ``step`` (from 0 on), of those whose probabilities are ``sure``."""
        left, masks = self.steps - step, len(sure)
        if left <= 1:
            return masks
        above = sum(p > self.threshold for p in sure)
        return min(masks, max(1, above, -(-masks // left)))


class Denoiser(Protocol):
    """A model whose rows hold what they have read. What it is given is on the CPU."""

    mask: int  # the id that stands for an unknown token

    def denoise(self, blocks: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        """Logits (r, S, v) of blocks (r, S) of the batch's ``rows`` (r,), of which a share t (r,) is masked."""

    def commit(self, tokens: Tensor, counts: Tensor) -> Any:
        """Read each row's first ``counts`` (b,) of tokens (b, n)."""

    def keep(self, rows: Tensor) -> Any:
        """Go on with these rows of the batch only."""


class Verifier(Denoiser, Protocol):
    def verify(self, tokens: Tensor) -> Tensor:
        """Read tokens (b, n); the context's own logits (b, n, v) behind each."""

    def accept(self, counts: Tensor) -> Any:
        """How many of the tokens (b,) that were just read stay read."""


@dataclass
class Denoising:
    """What one row's tokens took."""

    passes: int = 0  # of the denoiser
    commits: int = 0  # of the context, over blocks
    tokens: int = 0

    @property
    def tokens_per_pass(self) -> float:
        """Of the denoiser, as published numbers count."""
        return self.tokens / self.passes if self.passes else 0.0

    @property
    def tokens_per_any_pass(self) -> float:
        """Of both towers."""
        return self.tokens / (self.passes + self.commits) if self.passes + self.commits else 0.0


def diffuse(rows: Sequence[Row], model: Denoiser, how: Unmasking, counts: Sequence[Denoising] = ()) -> Iterator[Event]:
    """Write tokens, a block at a time, until every row is finished; the prompts have been read.

    Events come before what they tell of is read, so the generator may be closed between any two. A row's last tokens
    are not read. ``counts``: one of each row, which are counted up.
    """
    counts = counts or [Denoising() for _ in rows]
    sampler = Sampler([row.params for row in rows], [row.prompt for row in rows])
    active = [Running(i, row) for i, row in enumerate(rows)]
    taken = [_forced(sampler, i, running) for i, running in enumerate(active)]
    while True:
        yield from _told(taken, counts)
        going = [i for i, running in enumerate(active) if not _finished(taken[i])]
        if not going:
            return
        if len(going) < len(active):
            active, taken = ([own[i] for i in going] for own in (active, taken))
            sampler.keep(going)
            model.keep(torch.tensor(going))
        own = [counts[running.index] for running in active]
        _commit(model, taken, own)
        blocks = [_Block(how, model.mask, running.left, running.row) for running in active]
        _write(model, blocks, sampler, how, own, certain=False)
        taken = [
            _take(sampler, i, block, running) for i, (block, running) in enumerate(zip(blocks, active, strict=True))
        ]


def diffuse_lossless(
    logits: Tensor, rows: Sequence[Row], model: Verifier, how: Unmasking, counts: Sequence[Denoising] = ()
) -> Iterator[Event]:
    """Draw the tokens that plain decoding would, a block at a time. ``logits`` (b, v) are the context's own.

    Else as :func:`diffuse`. The denoiser says what it thinks most likely, whatever the sampling.
    """
    counts = counts or [Denoising() for _ in rows]
    sampler = Sampler([row.params for row in rows], [row.prompt for row in rows])
    active = [Running(i, row) for i, row in enumerate(rows)]
    choices = sampler(logits, [running.forced() for running in active])
    taken = [[running.take(choice)] for running, choice in zip(active, choices, strict=True)]
    while True:
        yield from _told(taken, counts)
        going = [i for i, events in enumerate(taken) if not _finished(events)]
        if not going:
            return
        if len(going) < len(active):
            active = [active[i] for i in going]
            sampler.keep(going)
            model.keep(torch.tensor(going))
        own = [counts[running.index] for running in active]
        blocks = [_Block(how, model.mask, running.left, running.row, (running.last,)) for running in active]
        _write(model, blocks, sampler, how, own, certain=True)
        width = max(block.wanted for block in blocks)
        verdict = model.verify(torch.tensor([block.tokens[:width] for block in blocks]))
        check_finite(verdict.flatten(0, 1))
        best = greedy(verdict).tolist()
        taken = [_judge(sampler, i, block, verdict[i], best[i], active[i]) for i, block in enumerate(blocks)]
        model.accept(torch.tensor([len(events) for events in taken]))
        for count in own:
            count.commits += 1


class _Block:
    """One row's block while it is written. ``given`` are known tokens that it begins with."""

    def __init__(self, how: Unmasking, mask: int, left: int, row: Row, given: tuple[int, ...] = ()) -> None:
        self.tokens = [*given, *[mask] * (how.block - len(given))]
        self.wanted = min(how.block, left)  # places that count
        last = how.block if how.published else self.wanted
        self.open = list(range(len(given), last))  # masks that are to be revealed
        self.masks = how.block - len(given)
        self.known: list[int] = []  # places in the order in which they were revealed
        self.logits: dict[int, Tensor] = {}  # (v,) of places when they were revealed, if they are asked for
        self._how, self._row, self._step = how, row, 0

    @property
    def share(self) -> float:
        """Of masks."""
        return self.masks / len(self.tokens)

    def reveal(self, tokens: Sequence[int], sure: Sequence[float], logits: Tensor) -> None:
        """Of what a pass says of each place: a token, its probability, and the logits (S, v)."""
        count = self._how.reveals([sure[i] for i in self.open], self._step)
        chosen = sorted(self.open, key=lambda i: -sure[i])[:count]  # of equals the left one
        for i in chosen:
            self.tokens[i] = tokens[i]
            if self._row.params.logprobs is not None:
                self.logits[i] = logits[i]
        self._step += 1
        self.known += chosen
        self.masks -= count
        ends = [i for i in self.known if self.tokens[i] in self._row.eos]
        if ends:
            self.wanted = min(self.wanted, min(ends) + 1)
        limit = len(self.tokens) if self._how.published else self.wanted
        self.open = [i for i in self.open if i not in chosen and i < limit]


def _write(
    model: Denoiser,
    blocks: Sequence[_Block],
    sampler: Sampler,
    how: Unmasking,
    counts: Sequence[Denoising],
    certain: bool,
) -> None:
    """Reveal all that is wanted. ``certain``: always the most likely token, without a draw."""
    while any(block.open for block in blocks):
        rows = [i for i, block in enumerate(blocks) if block.open or how.published]
        tokens = torch.tensor([blocks[i].tokens for i in rows])
        t = torch.tensor([blocks[i].share for i in rows])
        logits = model.denoise(tokens, t.mean().expand_as(t) if how.published else t, torch.tensor(rows))
        check_finite(logits.flatten(0, 1))
        sure, best = (both.tolist() for both in logits.softmax(dim=-1).max(dim=-1))
        for k, i in enumerate(rows):
            counts[i].passes += 1
            if blocks[i].open:
                _propose(sampler, i, blocks[i], logits[k], best[k], sure[k], certain)
                blocks[i].reveal(best[k], sure[k], logits[k])


def _propose(
    sampler: Sampler, row: int, block: _Block, logits: Tensor, tokens: list[int], sure: list[float], certain: bool
) -> None:
    """Put the row's own draws in place of the most likely ``tokens``, and the model's probabilities of those.

    Temperature and filters decide what is drawn; how sure it is, the bare probability says.
    """
    params = sampler.params[row]
    if sampler.is_plain(row) or (certain and not params.counts_tokens and not params.logit_bias):
        return
    own = logits[block.open]
    shaped = sampler.shaped(row, own, [block.tokens[i] for i in sorted(block.known)])
    certain = certain or params.temperature == 0
    drawn = greedy(shaped) if certain else draw(shaped, sampler.uniforms(row, len(own)))
    found = own.softmax(dim=-1).gather(-1, drawn[:, None])[:, 0].tolist()
    for i, token, p in zip(block.open, drawn.tolist(), found, strict=True):
        tokens[i], sure[i] = token, p


def _take(sampler: Sampler, row: int, block: _Block, running: Running) -> list[Event]:
    """The row's events: its block up to what ends it or what is forced instead, and what is forced then."""
    events: list[Event] = []
    for i in range(block.wanted):
        forced = running.forced()
        token = block.tokens[i] if forced is None else forced
        events.append(running.take(sampler.take(row, token, block.logits.get(i))))
        if events[-1].finish is not None:
            return events
        if token != block.tokens[i]:
            break
    return events + _forced(sampler, row, running)


def _forced(sampler: Sampler, row: int, running: Running) -> list[Event]:
    """Tokens that must come next. No pass says how likely they are."""
    events: list[Event] = []
    while (token := running.forced()) is not None and not _finished(events):
        events.append(running.take(sampler.take(row, token, None)))
    return events


def _judge(
    sampler: Sampler, row: int, block: _Block, logits: Tensor, best: Sequence[int], running: Running
) -> list[Event]:
    """The row's events: what the context says at each place (n, v), as far as the block has said the same."""
    events: list[Event] = []
    for i in range(block.wanted):
        choice = sampler.choose(row, logits[i], best[i], running.forced())
        events.append(running.take(choice))
        if events[-1].finish is not None or block.tokens[i + 1 : i + 2] != [choice.token]:
            break
    return events


def _commit(model: Denoiser, taken: Sequence[Sequence[Event]], counts: Sequence[Denoising]) -> None:
    """Read what was taken, of each row as much as there is."""
    lengths = [len(events) for events in taken]
    width = max(lengths)
    if not width:
        return
    tokens = [[event.token for event in events] + [model.mask] * (width - len(events)) for events in taken]
    model.commit(torch.tensor(tokens), torch.tensor(lengths))
    for count in counts:
        count.commits += 1


def _told(taken: Sequence[Sequence[Event]], counts: Sequence[Denoising]) -> Iterator[Event]:
    for event in itertools.chain(*taken):
        counts[event.row].tokens += 1
        yield event


def _finished(events: Sequence[Event]) -> bool:
    return bool(events) and events[-1].finish is not None


__all__ = ["Denoiser", "Denoising", "Unmasking", "Verifier", "diffuse", "diffuse_lossless"]
