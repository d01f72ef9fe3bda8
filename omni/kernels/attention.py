"""Grouped-query attention: ``softmax(scale q k') v``, each key/value head serving H / K query heads.

Shape letters: :mod:`omni.config`. Scores and softmax of the reference are taken in float32 (float64 where q
is); the result has q's type.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from omni.kernels import Path, choose, wide
from omni.kernels.groups import Groups

MASK_LIMIT = 1 << 22  # entries of a causal mask that are held at once


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """q (b, H, n, p), k and v (b, K, m, p) -> (b, H, n, p).

    ``causal`` aligns the last query with the last key: query i sees the keys j <= m - n + i. ``mask`` (b or 1,
    1, n or 1, m) is True where a query may look; with both, both must allow. ``scale`` defaults to p ** -0.5.
    Every query must see at least one key.
    """
    if causal and q.shape[2] > k.shape[2]:
        raise ValueError(f"causal attention of {q.shape[2]} queries over {k.shape[2]} keys: the first sees none")
    args = (q, k, v, causal, mask, scale)
    return choose("attention", ATTENTION_PATHS, *args)(*args)


def attend_in_groups(
    q: Tensor, k: Tensor, v: Tensor, groups: Groups, *, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Full attention of ``groups`` and what they share: q (b, H, n, p), k and v (b, K, m, p) -> (b, H, n, p).

        queries                group 1 | ... | group N | shared
        keys        context |  group 1 | ... | group N | shared

    The context's m - n keys are for every query. ``mask`` (b or 1, 1, 1, m) is True where queries may look besides.
    """
    args = (q, k, v, groups, mask, scale)
    return choose("attention in groups", GROUPED_PATHS, *args)(*args)


def attend_in_groups_reference(q, k, v, groups, mask=None, scale=None):
    """Each group's pass over all tokens, the other groups hidden from it; then the mean over the passes."""
    n, m, w = q.shape[2], k.shape[2], wide(q.dtype)
    group = torch.arange(len(groups.sizes)).repeat_interleave(torch.tensor(groups.sizes))
    group = F.pad(group, (m - n, n - groups.total), value=-1).to(q.device)  # (m,): -1 at what every pass sees
    out = torch.zeros_like(q, dtype=w)
    for i, weight in enumerate(groups.weights):
        seen = ((group == i) | (group == -1)).expand(1, 1, 1, m)
        found = attend_reference(q.to(w), k, v, False, seen if mask is None else seen & mask, scale)
        share = (group == i).to(w) + weight * (group == -1).to(w)
        out = out + share[m - n :, None] * found
    return out.to(q.dtype)


def attend_in_groups_sdpa(q, k, v, groups, mask=None, scale=None):
    """One fused call a group, which nothing is hidden from: of the group's queries together with the shared ones."""
    past = k.shape[2] - q.shape[2]
    masks = itertools.repeat(None) if mask is None else groups.each(mask, 3, past)
    passes = zip(groups.each(q, 2), groups.each(k, 2, past), groups.each(v, 2, past), masks, strict=False)
    return groups.join((attend(*qkv, causal=False, mask=own, scale=scale) for *qkv, own in passes), 2)


def attend_reference(q, k, v, causal, mask=None, scale=None):
    w = wide(q.dtype)
    groups, n, m = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    k, v = (t.to(w).repeat_interleave(groups, dim=1) for t in (k, v))
    scores = q.to(w) @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        scores = scores.masked_fill(~_bottom_right(0, n, n, m, q.device), float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ v).to(q.dtype)


def attend_sdpa(q, k, v, causal, mask=None, scale=None):
    """torch's fused attention. Its own causal flag fits only n == m; elsewhere the mask is made, a block at a time."""
    n, m = q.shape[2], k.shape[2]
    k, v = k.to(q.dtype), v.to(q.dtype)
    causal = causal and n > 1  # a single query sees everything
    if n == 1:
        return _one_query(q, k, v, mask, scale)
    grouped = q.shape[1] != k.shape[1]
    if mask is None and (n == m or not causal):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=grouped)
    if mask is None and _may_split(q, k, v):
        return _after_the_past(q, k, v, scale)
    rows = max(1, MASK_LIMIT // m) if causal else n
    blocks = []
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        seen = m - n + stop if causal else m  # keys beyond this are hidden from the whole block
        allowed = _bottom_right(start, stop, n, m, q.device)[:, :seen] if causal else None
        if mask is not None:
            own = mask[:, :, start:stop, :seen] if mask.shape[2] > 1 else mask[..., :seen]
            allowed = own if allowed is None else own & allowed
        parts = q[:, :, start:stop], k[:, :, :seen], v[:, :, :seen]
        blocks.append(F.scaled_dot_product_attention(*parts, allowed, scale=scale, enable_gqa=grouped))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)


FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
"""What torch's attention calls on a CPU; it also gives the logarithm of the sum of each softmax."""


def _may_split(*tensors: Tensor) -> bool:
    """That logarithm has no gradient."""
    learning = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    wide_ones = all(t.dtype == wide(t.dtype) and t.device.type == "cpu" for t in tensors)
    return FLASH is not None and wide_ones and not learning and not torch.is_autocast_enabled("cpu")


def _after_the_past(q, k, v, scale):
    """Causal queries behind earlier keys: every query sees those, so no mask is read; the rest is a square.

    Of two softmaxes over parts of the keys, each counts as much as its sum is of both sums.
    """
    past = k.shape[2] - q.shape[2]
    seen, seen_sum = FLASH(q, k[:, :, :past], v[:, :, :past], scale=scale)
    own, own_sum = FLASH(q, k[:, :, past:], v[:, :, past:], is_causal=True, scale=scale)
    return torch.lerp(own, seen, (seen_sum - own_sum).sigmoid_()[..., None])


def _one_query(q, k, v, mask, scale):
    """The heads of a group stand as the queries of one head, so that keys and values are not copied per head."""
    b, H, _, p = q.shape
    folded = q.reshape(b, k.shape[1], -1, p)
    return F.scaled_dot_product_attention(folded, k, v, mask, scale=scale).reshape(b, H, 1, v.shape[-1])


def _bottom_right(start: int, stop: int, n: int, m: int, device: torch.device) -> Tensor:
    """(stop - start, m): which keys the queries start..stop of n may see."""
    queries = torch.arange(m - n + start, m - n + stop, device=device)
    return torch.arange(m, device=device) <= queries[:, None]


ATTENTION_PATHS = (
    Path("sdpa", attend_sdpa),
    Path("reference", attend_reference),
)
GROUPED_PATHS = (
    Path("sdpa", attend_in_groups_sdpa),
    Path("reference", attend_in_groups_reference),
)

__all__ = ["ATTENTION_PATHS", "GROUPED_PATHS", "attend", "attend_in_groups", "attend_reference"]
