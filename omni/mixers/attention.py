"""Grouped-query attention, causal over a cached sequence or full over a noisy block that also reads a context.

context tower    out = softmax(q k') v            keys: the cache, then this call's tokens, causally
denoiser tower   out = softmax(q [k_ctx; k]') v   keys: the context's cache first, then the block, all of it;
                 or, of a block in groups, each group and what they share in turn
"""

import torch
from torch import Tensor, nn

from omni.cache import AttentionSlot
from omni.config import AttentionConfig
from omni.kernels.attention import attend, attend_in_groups
from omni.layers import Linear, RMSNorm, rotate, rotate_back
from omni.mixers.layout import Layout


class Attention(nn.Module):
    """(b, n, d) -> (b, n, d). No positional term unless the config has rotary positions."""

    def __init__(self, d_model: int, config: AttentionConfig) -> None:
        super().__init__()
        c = self.config = config
        self.q_proj = Linear(d_model, c.n_heads * c.head_dim, bias=c.bias)
        self.k_proj = Linear(d_model, c.n_kv_heads * c.head_dim, bias=c.bias)
        self.v_proj = Linear(d_model, c.n_kv_heads * c.head_dim, bias=c.bias)
        self.o_proj = Linear(c.n_heads * c.head_dim, d_model, bias=c.bias)
        self.q_norm = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else nn.Identity()
        self.context_norm = RMSNorm(c.head_dim, c.norm_eps) if c.context_norm else None

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        slot: AttentionSlot | None = None,
        context: AttentionSlot | None = None,
    ) -> Tensor:
        q, k, v = self.project(x, layout)
        if slot is not None:
            k = slot.k.append(k, layout.held, layout.places)
            v = slot.v.append(v, layout.held, layout.places)
        if context is not None:
            k, v = self._after_context(k, v, layout, context)
        if layout.groups is not None:
            out = attend_in_groups(q, k, v, layout.groups, mask=layout.mask)
        else:
            # A single query is the last one: it may see all that there is.
            out = attend(q, k, v, causal=layout.causal and layout.n > 1, mask=layout.mask)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def project(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (b, H, n, p), keys and values (b, K, n, p)."""
        p = self.config.head_dim
        q, k, v = (f(x).unflatten(-1, (-1, p)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        return rotate(self.q_norm(q), layout.rotary), rotate(self.k_norm(k), layout.rotary), v

    def _after_context(self, k: Tensor, v: Tensor, layout: Layout, context: AttentionSlot) -> tuple[Tensor, Tensor]:
        """The context's keys and values first, then the block's own."""
        m = layout.context_length
        k_context, v_context = context.k.read(m), context.v.read(m)
        if self.context_norm is not None:
            # The cache holds rotated keys; the norm's weight belongs before the rotation.
            bare = rotate_back(k_context, layout.context_rotary)
            k_context = rotate(self.context_norm(bare), layout.context_rotary)
        return torch.cat([k_context.to(k.dtype), k], dim=2), torch.cat([v_context.to(v.dtype), v], dim=2)
