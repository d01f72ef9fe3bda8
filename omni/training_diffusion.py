"""What training asks of a denoiser of tokens: what stands under the masks of a block, given the text before it.

    clean text ── context tower, no gradients ──> its cache, branched at the start of every block
    block b    ── masked at t_b ──> denoiser tower, reading branch b ──> logits ── cross-entropy at the masks

One pass over the text and one over all its blocks, which stand in the batch as rows of their own: block b sees the
context's keys before its start, the context's Mamba states at its start, and itself. It is what a sampler computes
(:meth:`omni.model.Omni.denoise_tokens`), so nothing leaks that a sampler would not know. The time it is told is the
share that is masked, as a sampler tells it.

The denoiser begins as a copy of the context tower that reads its own noise: adaLN with gate 1 and shift and scale 0.

Source: TwoTower, arXiv 2606.26493, and ``reference`` generation_and_compression, sections A.3 and A.4: the context is
frozen, the weight 1/t of the likelihood's bound is dropped, and the loss is the mean over masked tokens.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from omni.blocks import Blocks, cut, masked_at, stratified
from omni.data.texts import TextBatch
from omni.layers import AdaLNTime
from omni.model import Omni
from omni.recipe import DiffusePlan

Parts = dict[str, tuple[float, Tensor]]
OWN = ("time.", "context_norm.")
"""Parts of a denoiser tower that a context tower has not."""


class DiffusionLosses(nn.Module):
    """The objective; it remembers in the run's checkpoints whether the denoiser has begun."""

    def __init__(self, begun: Callable[[], None] = lambda: None) -> None:
        """``begun`` is called when the denoiser has become the context tower's copy."""
        super().__init__()
        self.register_buffer("started", torch.tensor(False))
        self._begun = begun

    def losses(self, model: Omni, plan: DiffusePlan, batch: TextBatch) -> Parts:
        """The loss, and for the log the share of masked tokens that are said right."""
        self._start(model, plan)
        blocks = self.blocks(model, plan, batch)
        if not len(blocks):
            raise ValueError("no text of the batch has a token to learn that has another before it")
        with reading_only(model.context):
            contexts = model.contexts(batch.input_ids, blocks.rows, blocks.starts)
        masked = _masked(blocks, plan)
        noisy, t = blocks.noisy(masked, model.tokens.mask)
        logits, targets = model.denoise_tokens(noisy, t, contexts, where=masked), blocks.tokens[masked]
        weights = _weights(masked, plan.half)[masked]
        loss = (F.cross_entropy(logits.float(), targets, reduction="none") * weights).sum() / _share(weights.sum())
        right = (logits.argmax(dim=-1) == targets).float().mean()
        return {"diffuse": (plan.weight, loss), "diffuse_right": (0.0, right.detach())}

    def blocks(self, model: Omni, plan: DiffusePlan, batch: TextBatch) -> Blocks:
        """``plan.draws`` of each block of the batch. In a share ``aligned`` of the texts they begin with the answer."""
        size = plan.block or model.config.diffusion.block_size
        learnt = batch.learnt & (batch.input_ids != model.tokens.mask)  # a mask cannot be masked
        offsets = torch.randint(1, size + 1, learnt.shape[:1], device=learnt.device)
        first = learnt.int().argmax(dim=1)
        aligned = torch.rand(offsets.shape, device=learnt.device) < plan.aligned
        offsets = torch.where(aligned, (first - 1) % size + 1, offsets)
        return cut(batch.input_ids, batch.mask, learnt, offsets, size, ends(model), plan.repeat_end).repeat(plan.draws)

    def _start(self, model: Omni, plan: DiffusePlan) -> None:
        """Before the first step that trains the denoiser, make it the context's copy where that is asked for."""
        if self.started:
            return
        if is_fresh(model) if plan.begin is None else plan.begin:
            begin(model)
            self._begun()
        self.started.fill_(True)


def begin(model: Omni) -> None:
    """Make the denoiser of tokens a copy of the context tower, embedding and head, that time does not change yet.

    ValueError where the two towers are not of one size.
    """
    known, own = model.context.state_dict(), model.denoiser.state_dict()
    wanted = {name: t.shape for name, t in own.items() if not any(part in name for part in OWN)}
    if {name: t.shape for name, t in known.items()} != wanted:
        raise ValueError("the denoiser cannot begin as the context tower: their layers are not of the same sizes")
    with torch.no_grad():
        model.denoiser.load_state_dict(known, strict=False)
        model.tokens.embed.weight.copy_(model.embed.weight)
        model.tokens.head.weight.copy_((model.head or model.embed).weight)
    if isinstance(model.denoiser.time, AdaLNTime):
        model.denoiser.time.reset()


def is_fresh(model: Omni) -> bool:
    """Whether a denoiser has learnt nothing yet: its adaLN changes nothing. ValueError where it has none to tell."""
    time = model.denoiser.time
    if not isinstance(time, AdaLNTime):
        raise ValueError(
            "DiffusePlan.begin is not given; without adaLN it must say whether the denoiser begins as the context tower"
        )
    return not bool(time.project.weight.any())


@contextmanager
def reading_only(tower: nn.Module) -> Iterator[None]:
    """Without gradients, and as in evaluation: its routers count no tokens."""
    training = tower.training
    tower.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        tower.train(training)


def ends(model: Omni) -> frozenset[int]:
    """Ids that end a text."""
    found = model.config.special_tokens.get("eos", [])
    return frozenset(found if isinstance(found, list) else [found])


def _masked(blocks: Blocks, plan: DiffusePlan) -> Tensor:
    """(k, S) where the blocks are masked, as the plan says."""
    k, device = len(blocks), blocks.rows.device
    ordered = torch.rand(k, device=device) < plan.ordered if plan.ordered else None
    masked = masked_at(blocks, stratified(k, device), ordered)
    if not plan.begun:
        return masked
    begun = torch.rand(k, device=device) < plan.begun
    behind = blocks.learnt.clone()
    behind[:, 0] = False
    return torch.where((begun & behind.any(dim=1))[:, None], behind, masked)


def _weights(masked: Tensor, half: float | None) -> Tensor:
    """(k, S) -> what each place counts: half as much every ``half`` places behind the block's first mask; None: 1."""
    if half is None:
        return torch.ones(masked.shape, device=masked.device)
    places = torch.arange(masked.shape[1], device=masked.device)
    return 0.5 ** ((places - masked.int().argmax(dim=1, keepdim=True)) / half)


def _share(count: Tensor) -> Tensor:
    """What this process divides by so that the mean of all processes is one over all their masked tokens.

    ``count``: of this process, or the sum of their weights.
    """
    total = count.to(torch.float64)
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return total.float()
    torch.distributed.all_reduce(total)
    return (total / torch.distributed.get_world_size()).float()
