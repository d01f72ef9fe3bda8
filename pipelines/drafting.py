"""A model with its prediction block as the drafter that speculative decoding wants.

    prompt ── trunk ──> h_0 .. h_n-1 ── with the embeddings of x_1 .. x_n-1 ──> the block's own cache
    draft    (x_n, h_n-1) ── block ──> g ── head ──> d_1;  (d_1, g) ──> d_2;  and so on, in a window that is rolled back
    verify   [x_n, d_1 .. d_k] ── trunk, in a window ──> logits, h
    accept   the window is cut to what holds; the block reads that with the trunk's own h before the next draft

The trunk's hidden states behind what holds and the tokens that follow them are *pending* until then.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from omni.cache import CacheFormat
from omni.inputs import Inputs
from omni.model import Omni
from omni.pipelines.reader import Drafts, Kept, Reader
from omni.quantization.loading import parts_of

ROLLBACKS = ("replay", "snapshot")


class _Pending(NamedTuple):
    """Of each row, hidden states (b, m, d) that the block has not read, and the tokens (b, m - 1) that follow them.

    The token behind a row's last is not there yet. ``counts`` (b,): how many of the m are a row's.
    """

    hidden: Tensor
    tokens: Tensor
    counts: Tensor


class DraftingReader(Reader):
    """A :class:`Reader` that drafts. ``rollback``: how recurrent states go back, see :class:`omni.cache.Cache`."""

    def __init__(
        self,
        model: Omni,
        inputs: Inputs,
        kept: Kept | None,
        answer: int,
        rollback: str = "replay",
        format: CacheFormat | None = None,
    ) -> None:
        super().__init__(model, inputs, kept, answer, format)
        if rollback not in ROLLBACKS:
            raise ValueError(f"rollback is {rollback!r}; known: {', '.join(ROLLBACKS)}")
        self.snapshots = rollback == "snapshot"
        rows = inputs.input_ids.shape[0]
        known = None if kept is None else kept.drafts
        self.block = model.mtp.new_cache(rows, self.cache.capacity) if known is None else known.block
        self._tail = None if known is None else known.hidden  # (b, 1, d) behind what the cache has read
        self._tail_mask: Tensor | None = None
        self._pending: _Pending | None = None  # None while a round is under way

    def _read(self, chunk: Inputs) -> Tensor:
        embedded, hidden = self.model.read_both(chunk, self.cache)
        ahead, mask = hidden, chunk.mask
        if self._tail is None:
            embedded = embedded[:, 1:]
        else:
            ahead = torch.cat([self._tail, hidden], dim=1)
            if mask is not None:
                tail = torch.ones_like(mask[:, :1]) if self._tail_mask is None else self._tail_mask
                mask = torch.cat([tail, mask], dim=1)
        if embedded.shape[1]:
            real = None if mask is None else mask[:, :-1]
            self.model.mtp(embedded, ahead[:, :-1], cache=self.block, mask=real, last=0)
        self._tail, self._tail_mask = hidden[:, -1:], None if chunk.mask is None else chunk.mask[:, -1:]
        self._pending = self._behind_prompt()
        return self.model.predict(self._tail)[:, -1]

    def _behind_prompt(self) -> _Pending:
        ids = self.inputs.input_ids
        return _Pending(self._tail, ids[:, :0], torch.ones(len(ids), dtype=torch.int64, device=ids.device))

    @torch.inference_mode()
    def draft(self, tokens: Tensor, k: int, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """See :class:`omni.decoders.speculative.Drafter`."""
        (hidden, behind, counts), self._pending = self._pending, None
        ids = torch.cat([behind, behind.new_zeros(len(behind), 1)], dim=1)
        ids.scatter_(1, counts[:, None] - 1, tokens[:, None])
        g = self._absorb(ids, hidden, counts)
        drafts: list[Tensor] = []
        if k:
            drafts.append(choose(self.model.predict(g)[:, 0]))
        if k > 1:
            self.block.begin(self.snapshots)
            for _ in range(k - 1):
                g = self.model.mtp(self.model.embed(drafts[-1][:, None]), g, cache=self.block)
                drafts.append(choose(self.model.predict(g)[:, 0]))
            self.block.rollback()
        return torch.stack(drafts, dim=1) if drafts else tokens.new_empty(len(tokens), 0)

    def _absorb(self, ids: Tensor, hidden: Tensor, counts: Tensor) -> Tensor:
        """Let the block read each row's first ``counts`` pairs; its output (b, 1, d) at the last of them."""
        most = int(counts.max())
        mask = torch.arange(most, device=counts.device) < counts[:, None]
        embedded = self.model.embed(ids[:, :most])
        return self.model.mtp(embedded, hidden[:, :most], cache=self.block, mask=mask, last=1)

    @torch.inference_mode()
    def verify(self, tokens: Tensor) -> Tensor:
        self.cache.begin(self.snapshots)
        self._verified = tokens, self.model.read(tokens, self.cache)
        return self.model.predict(self._verified[1])

    @torch.inference_mode()
    def accept(self, counts: Tensor) -> None:
        self.cache.commit(counts)
        tokens, hidden = self._verified
        self._pending = _Pending(hidden, tokens[:, 1:], counts)
        self.fed += tokens[0, : int(counts[0])].tolist()

    @torch.inference_mode()
    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self.block = self.block.select(rows)
        self._pending = _Pending(*(part[rows] for part in self._pending))

    @property
    def settled(self) -> bool:
        return super().settled and self._pending is not None

    @torch.inference_mode()
    def drafts(self) -> Drafts:
        """What a further turn needs (one row): the block has read all but the last hidden state."""
        hidden, behind, counts = self._pending
        n = int(counts[0])
        if n > 1:
            self._absorb(behind[:, : n - 1], hidden[:, : n - 1], counts - 1)
        self._pending = self._pending._replace(hidden=hidden[:, n - 1 : n], tokens=behind[:, :0], counts=counts * 0 + 1)
        return Drafts(self.block, hidden[:, n - 1 : n])


def draft_cost(model: Omni) -> float:
    """Bytes of weights that a drafted token reads, as a share of those that a pass of the model reads for one token."""
    config, touched = model.config, {"context": 0.0, "mtp": 0.0, "head": 0.0}
    for name, weight in (*model.named_parameters(), *parts_of(model).items()):
        top = name.split(".")[0]
        if top in touched:
            moe = config.context.moe
            share = moe.n_active_experts / moe.n_experts if ".experts." in name else 1.0
            touched[top] += weight.nbytes * share
    head = touched["head"] or model.embed.weight.nbytes
    return (touched["mtp"] + head) / (touched["context"] + head)
