"""Speculative decoding: tokens are drafted cheaply, read by the model in one pass, and kept as far as they hold.

    last token ── draft ──> d_1 .. d_k ──┬── verify: one pass over [last, d_1 .. d_k] ──> p_1 .. p_{k+1}
                              q_1 .. q_k ┘
    d_i is kept with probability min(1, p_i(d_i) / q_i(d_i)); the first that is not is replaced by a draw from
    max(p_i - q_i, 0), and behind k kept ones comes a draw from p_{k+1}

So the answer is distributed as if the model had written it token by token; a greedy one is the same, token for token.
p and q are what the row's own sampling (temperature, filters, penalties) makes of either's logits. A forced token of a
reasoning budget, an end or a stop string cuts the drafts behind it off: they are judged on kept tokens alone.

Source: Leviathan et al., arXiv 2211.17192, and Chen et al., arXiv 2302.01318.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from omni.decoders.autoregressive import Event, Row, Running
from omni.decoders.sampling import Sampler, check_finite, draw, greedy

MAX_DRAFTS = 32
MEMORY = 0.9  # of the acceptance rate: what a round before counts, beside the present one


class Drafter(Protocol):
    """A model with something cheaper that guesses what it will say. Rows hold what they have read."""

    def draft(self, tokens: Tensor, k: int, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Behind each row's last token (b,), k more (b, k): ``choose`` turns logits (b, v) into tokens (b,)."""

    def verify(self, tokens: Tensor) -> Tensor:
        """Read the last tokens and their drafts (b, k + 1); the model's logits (b, k + 1, v) behind each."""

    def accept(self, counts: Tensor) -> None:
        """How many of the tokens (b,) that were just read stay read."""

    def keep(self, rows: Tensor) -> Any:
        """Go on with these rows of the batch only."""


@dataclass
class Acceptance:
    """What drafts came to in one row. Its first token follows from the prompt and from no pass."""

    passes: int = 0  # of the model, over drafts
    drafted: int = 0
    accepted: int = 0

    @property
    def accepted_per_pass(self) -> float:
        """Drafts that held, in the mean: acceptance length without the token that each pass adds by itself."""
        return self.accepted / self.passes if self.passes else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """The same with that token."""
        return self.accepted_per_pass + bool(self.passes)


class DraftLength:
    """How many tokens to draft: always ``most``, or with ``cost`` as many as promise the most tokens a time.

    ``cost`` is that of a drafted token as a share of a pass of the model. With a rate a of accepted drafts, k drafts
    give (1 - a^(k+1)) / (1 - a) tokens in 1 + k cost passes. One is drafted at least, so that a bad time is noticed to
    be over.
    """

    def __init__(self, most: int, cost: float | None = None) -> None:
        if not 1 <= most <= MAX_DRAFTS:
            raise ValueError(f"drafts is {most}; it must be from 1 to {MAX_DRAFTS}")
        if cost is not None and not cost > 0:
            raise ValueError(f"the cost of a draft is {cost}; it must be above 0")
        self.most, self.cost = most, cost
        self._kept, self._judged = 1.0, 1.0  # begins in good faith

    @property
    def rate(self) -> float:
        """Share of judged drafts that held, those of late above all."""
        return self._kept / self._judged

    def __call__(self, room: int) -> int:
        """Drafts of the next round, at most ``room``."""
        most = max(0, min(self.most, room))
        if self.cost is None or most < 2:
            return most
        return max(range(1, most + 1), key=lambda k: sum(self.rate**i for i in range(k + 1)) / (1 + k * self.cost))

    def note(self, kept: int, judged: int) -> None:
        """Of one round, over all rows. Drafts behind the first that failed are not judged."""
        self._kept, self._judged = MEMORY * self._kept + kept, MEMORY * self._judged + judged


def speculate(
    logits: Tensor,
    rows: Sequence[Row],
    drafter: Drafter,
    length: DraftLength,
    counts: Sequence[Acceptance] = (),
) -> Iterator[Event]:
    """Draw tokens until every row is finished, as ``autoregressive.generate`` does, several at a time.

    Args:
        logits: (b, v) behind the prompts.
        rows: b rows; each keeps as many of its drafts as hold, whatever the others do.
        counts: b of them, which are counted up.

    A row's last token is not read. Events come only when the drafter has settled what it has read, so the generator
    may be closed between any two.
    """
    counts = counts or [Acceptance() for _ in rows]
    sampler = Sampler([row.params for row in rows], [row.prompt for row in rows])
    active = [Running(i, row) for i, row in enumerate(rows)]
    choices = sampler(logits, [running.forced() for running in active])
    taken = [[running.take(choice)] for running, choice in zip(active, choices, strict=True)]
    while True:
        for events in taken:
            yield from events
        going = [i for i, events in enumerate(taken) if events[-1].finish is None]
        if not going:
            return
        if len(going) < len(active):
            active = [active[i] for i in going]
            sampler.keep(going)
            drafter.keep(torch.tensor(going, device=logits.device))
        last = torch.tensor([running.last for running in active], device=logits.device)
        k = length(max(running.left for running in active) - 1)
        drafted = _Drafted(sampler, [running.left - 1 for running in active])
        drafts = drafter.draft(last, k, drafted)
        verdict = drafter.verify(torch.cat([last[:, None], drafts], dim=1))
        check_finite(verdict.flatten(0, 1))
        best = greedy(verdict).tolist()
        taken = [drafted.judge(i, verdict[i], best[i], running) for i, running in enumerate(active)]
        drafter.accept(torch.tensor([len(events) for events in taken], device=logits.device))
        _count(counts, length, active, drafted, k)


def _count(
    counts: Sequence[Acceptance], length: DraftLength, active: Sequence[Running], drafted: "_Drafted", k: int
) -> None:
    for running, kept in zip(active, drafted.kept, strict=True):
        own = counts[running.index]
        own.passes, own.drafted, own.accepted = own.passes + 1, own.drafted + k, own.accepted + kept
    length.note(sum(drafted.kept), sum(drafted.judged))


class _Drafted:
    """One round's drafts: draws them from the drafter's logits, and judges them by the model's.

    ``room``: drafts that a row can use. It draws nothing for others, so that it draws alone what it draws in any batch.
    """

    def __init__(self, sampler: Sampler, room: Sequence[int]) -> None:
        self.sampler, self.room = sampler, room
        rows = range(len(sampler.params))
        self.tokens: list[list[int]] = [[] for _ in rows]
        self.q: list[list[Tensor | None]] = [[] for _ in rows]  # (v,) each; None where the draft was greedy
        self.kept: list[int] = []  # of each row that is judged
        self.judged: list[int] = []

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits (b, v) of the drafter -> tokens (b,)."""
        best = greedy(logits).tolist()
        for row, tokens in enumerate(self.tokens):
            tokens.append(self._propose(row, logits[row], best[row]))
        return torch.tensor([tokens[-1] for tokens in self.tokens], device=logits.device)

    def _propose(self, row: int, logits: Tensor, best: int) -> int:
        sampler, q, token = self.sampler, None, best
        if not sampler.is_plain(row) and len(self.tokens[row]) < self.room[row]:
            shaped = sampler.shaped(row, logits, self.tokens[row])
            token = int(greedy(shaped))
            if sampler.params[row].temperature > 0:
                q = shaped.double().softmax(dim=-1)
                token = int(draw(shaped, sampler.uniform(row)))
        self.q[row].append(q)
        return token

    def judge(self, row: int, logits: Tensor, best: Sequence[int], running: Running) -> list[Event]:
        """The row's events: the drafts that hold and the token behind them, or up to its end.

        logits (k + 1, v) of the model, and the most likely token of each.
        """
        events, drafts = [], self.tokens[row]
        for i, now in enumerate(logits):
            forced = running.forced()
            if forced is not None:
                token, holds = forced, drafts[i : i + 1] == [forced]
            else:
                token, holds = self._judge(row, i, now, best[i])
            events.append(running.take(self.sampler.take(row, token, now)))
            if events[-1].finish is not None or not holds:
                break
        self.kept.append(len(events) - (not holds))
        self.judged.append(min(len(events), len(drafts)))
        return events

    def _judge(self, row: int, i: int, logits: Tensor, best: int) -> tuple[int, bool]:
        """The token at place i, and whether it is its draft."""
        sampler, drafts = self.sampler, self.tokens[row]
        draft = drafts[i] if i < min(len(drafts), self.room[row]) else None
        if sampler.is_plain(row):
            return best, best == draft
        shaped = sampler.shaped(row, logits)
        if sampler.params[row].temperature == 0:
            token = int(greedy(shaped))
            return token, token == draft
        if draft is None:
            return int(draw(shaped, sampler.uniform(row))), False
        p, q = shaped.double().softmax(dim=-1), self.q[row][i]
        if sampler.uniform(row) * float(q[draft]) < float(p[draft]):
            return draft, True
        rest = (p - q).clamp(min=0)
        rest = rest if float(rest.sum()) > 0 else p  # p and q differ by rounding alone
        return int(draw(rest.log(), sampler.uniform(row))), False
