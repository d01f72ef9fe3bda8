"""Texts cut into blocks whose tokens are denoised together, and the noise that training and likelihood put on them.

    text       p p p p p p a a a a a a a . _ _        p given, a learnt, . its end, _ no text
    blocks         |p p a a|a a a a|a . _ _|          from an offset on, size 4; the text before each is its context
    noisy           p p M a M a M M M . M M           a share t of what is learnt; always what is behind the end

What stands behind an end stays masked, as it does while a sampler writes the end of a text: it knows no more there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

FRAYED = 4
"""Places by which the masks of an ordered block are out of order, at most."""


@dataclass(frozen=True)
class Blocks:
    """k blocks of S tokens of a batch of texts."""

    rows: Tensor  # (k,) the text that each is from
    starts: Tensor  # (k,) tokens before it
    tokens: Tensor  # (k, S) what is really there
    learnt: Tensor  # (k, S) True at what may be masked and is asked for
    hidden: Tensor  # (k, S) True at what is behind the end, and always masked

    def __len__(self) -> int:
        return len(self.rows)

    def repeat(self, times: int) -> "Blocks":
        """Every block so many times, one behind the other."""
        return Blocks(*(part.repeat_interleave(times, dim=0) for part in vars(self).values()))

    def noisy(self, masked: Tensor, mask: int) -> tuple[Tensor, Tensor]:
        """Tokens (k, S) with the id ``mask`` where ``masked`` (k, S) or hidden, and the share (k,) of those."""
        gone = masked | self.hidden
        return self.tokens.masked_fill(gone, mask), gone.float().mean(dim=1)


def cut(
    ids: Tensor,
    real: Tensor,
    learnt: Tensor,
    offsets: Tensor,
    size: int,
    ends: frozenset[int] = frozenset(),
    repeat_end: bool = False,
) -> Blocks:
    """The blocks of ``size`` tokens in which there is something to learn.

    ids (b, n), real (b, n) False at padding on the right, learnt (b, n), offsets (b,) from 1 on: where the first block
    of each text begins. Behind the first learnt token of ``ends`` a block has nothing to learn; with ``repeat_end`` it
    has that token, again and again.
    """
    n = ids.shape[1]
    count = max(0, -(-(n - int(offsets.min())) // size))
    places = torch.arange(count * size, device=ids.device).view(count, size) + offsets[:, None, None]  # (b, count, S)
    inside = places < n
    at = places.clamp(max=n - 1).flatten(1)
    tokens, real, learnt = (t.gather(1, at).view(places.shape) for t in (ids, real, learnt))
    real, learnt = real & inside, learnt & real & inside
    end = learnt & torch.isin(tokens, torch.tensor(sorted(ends), dtype=ids.dtype, device=ids.device))
    behind = end.long().cumsum(dim=-1) - end.long() > 0
    if repeat_end:
        last = tokens.gather(2, end.long().argmax(dim=-1, keepdim=True))  # of blocks with an end, that token
        tokens, learnt = torch.where(behind, last, tokens), learnt | behind
        hidden = ~real & ~behind
    else:
        learnt, hidden = learnt & ~behind, behind | ~real
    rows, which = learnt.any(dim=-1).nonzero(as_tuple=True)
    parts = (part[rows, which] for part in (places[..., 0], tokens, learnt, hidden))
    return Blocks(rows, *parts)


def stratified(k: int, device: torch.device | str = "cpu") -> Tensor:
    """Times (k,) in (0, 1], one in each k-th of it, in random order."""
    return 1 - (torch.randperm(k, device=device) + torch.rand(k, device=device)) / k


def masked_at(blocks: Blocks, t: Tensor, ordered: Tensor | None = None) -> Tensor:
    """(k, S) True at learnt tokens, each with probability t (k,), and at one of every block at least.

    Of blocks that are ``ordered`` (k,) they are the last ones, give or take :data:`FRAYED` places: a sampler that
    reveals what is sure goes from left to right, but not strictly.
    """
    drawn = torch.rand(blocks.learnt.shape, device=t.device)
    if ordered is not None:
        behind = blocks.learnt.flip(1).cumsum(dim=1).flip(1) - 1  # learnt tokens to the right of each
        frayed = (behind + drawn * FRAYED) / (blocks.learnt.sum(dim=1, keepdim=True) + FRAYED - 1)
        drawn = torch.where(ordered[:, None], frayed, drawn)
    drawn = drawn.masked_fill(~blocks.learnt, 2.0)
    return blocks.learnt & ((drawn < t[:, None]) | (drawn == drawn.amin(dim=1, keepdim=True)))
