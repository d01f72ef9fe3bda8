"""How likely a text is to a denoiser of tokens: a lower bound, by sampling.

    log p(text) >= sum over blocks of E_t [ 1/t sum over masked of log p(token | block masked at t, true text before) ]

t is uniform, every token of a block is masked with probability t, and the model is told the share that is masked. Given
how many of L tokens are masked, m, the time tells nothing more: the bound is the mean over m = 1 .. L of L / m times
the sum over m masked tokens. So m is what is drawn, stratified, which leaves less to chance than 1/t would.

The context tower's own likelihood is exact, and another model's. Source: ``reference`` generation_and_compression, F.1;
Sahoo et al., arXiv 2406.07524, for the bound.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from omni.blocks import Blocks, cut
from omni.model import Omni


class Bound(NamedTuple):
    """Of each text, in nats."""

    value: Tensor  # (b,) the lower bound of its log-likelihood, float64
    error: Tensor  # (b,) standard error of that, if anything too large: samples are stratified


@torch.no_grad()
def likelihood_bound(
    model: Omni,
    ids: Tensor,
    scored: Tensor,
    *,
    real: Tensor | None = None,
    samples: int = 32,
    block: int | None = None,
    generator: torch.Generator | None = None,
) -> Bound:
    """Of the tokens ``scored`` (b, n) of ids (b, n), given those before them; blocks begin with the first of each row.

    ``real`` (b, n): False at padding on the right. ``samples``: noisy copies of every block; ``block``: its tokens,
    by default the model's own. ValueError where the first token of a row is scored: it has nothing before it.
    """
    if model.tokens is None:
        raise ValueError("this model has no denoiser for tokens")
    if samples < 1:
        raise ValueError(f"samples is {samples}; it must be at least 1")
    real = torch.ones_like(scored) if real is None else real
    first = scored.int().argmax(dim=1)
    if bool((scored[:, 0] | (scored & ~real).any(dim=1)).any()):
        raise ValueError("a row's first token or padding is scored; only what follows a text can be")
    blocks = cut(ids, real, scored, first.clamp(min=1), block or model.config.diffusion.block_size)
    found = torch.zeros(samples, len(ids), dtype=torch.float64, device=ids.device)
    if not len(blocks):
        return Bound(found[0], found[0])
    contexts = model.contexts(ids, blocks.rows, blocks.starts)
    for own, masked in zip(found, _masks(blocks, samples, generator), strict=True):
        noisy, t = blocks.noisy(masked, model.tokens.mask)
        logits = model.denoise_tokens(noisy, t, contexts, where=masked)
        said = logits.double().log_softmax(dim=-1).gather(-1, blocks.tokens[masked][:, None])[:, 0]
        weight = blocks.learnt.sum(dim=1) / masked.sum(dim=1)
        where = masked.nonzero(as_tuple=True)[0]
        own.index_add_(0, blocks.rows[where], said * weight[where])
    error = found.std(dim=0) / samples**0.5 if samples > 1 else torch.full_like(found[0], torch.inf)
    return Bound(found.mean(dim=0), error)


def _masks(blocks: Blocks, samples: int, generator: torch.Generator | None) -> Tensor:
    """(samples, k, S): of each block's learnt tokens from one to all, every number as often, whichever they are."""
    k, size = blocks.learnt.shape
    drawn = torch.rand(samples, k, size + 2, generator=generator, device=blocks.rows.device)
    order = drawn[..., 0].argsort(dim=0)
    t = 1 - (order + drawn[..., 1]) / samples  # (samples, k) in (0, 1], one in every samples-th of it
    wanted = (t * blocks.learnt.sum(dim=1)).ceil().clamp(min=1)
    ranks = drawn[..., 2:].masked_fill(~blocks.learnt, 2.0).argsort(dim=-1).argsort(dim=-1)
    return blocks.learnt & (ranks < wanted[..., None])
