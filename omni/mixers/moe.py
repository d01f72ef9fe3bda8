"""Mixture of experts with one shared expert; LatentMoE when the routed experts work in a narrower space.

    s = sigmoid(router(x))            in float32
    chosen = top-k of s + bias        within the best groups, where experts are grouped
    w = s[chosen] / sum * scale       the bias decides who is chosen, never the weights
    out = latent_out(sum_k w_k expert_k(latent_in(x))) + shared(x)

Sources: Nemotron-H MoE router; LatentMoE arXiv 2601.18089; balancing without a loss arXiv 2408.15664.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.config import MLPConfig, MoEConfig
from omni.kernels.experts import routed_experts
from omni.layers import Linear, wide
from omni.mixers.layout import Layout
from omni.mixers.mlp import MLP


class Router(nn.Module):
    """(t, d) -> expert indices (t, k) and float32 weights (t, k)."""

    def __init__(self, d_model: int, config: MoEConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_experts, d_model))
        self.register_buffer("bias", torch.zeros(config.n_experts, dtype=torch.float32))
        self.register_buffer("load", torch.zeros(config.n_experts, dtype=torch.float32), persistent=False)
        self.balance: list[Tensor] = []  # one loss per training call since the last step
        nn.init.normal_(self.weight, std=d_model**-0.5)

    def reset_buffers(self, device: torch.device) -> None:
        """Make what a checkpoint does not hold: called after a model built on the meta device was filled."""
        self.load = torch.zeros(self.config.n_experts, dtype=torch.float32, device=device)

    def _apply(self, *args: Any, **kwargs: Any) -> "Router":
        """``.to(...)`` and its kin. The bias and the counts are never narrowed: rounding would change who is chosen."""
        before = {"bias": self.bias, "load": self.load}
        super()._apply(*args, **kwargs)
        for name, kept in before.items():
            moved = getattr(self, name)
            if moved.dtype.itemsize < kept.dtype.itemsize:
                setattr(self, name, kept.to(moved.device, torch.float32))
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        c = self.config
        scores = F.linear(x.to(wide(x.dtype)), self.weight.to(wide(x.dtype))).sigmoid()  # (t, e)
        ranked = scores.detach() + self.bias
        if c.n_expert_groups > 1:
            ranked = self._best_groups(ranked)
        indices = ranked.topk(c.n_active_experts, dim=-1, sorted=False).indices
        weights = scores.gather(1, indices)
        if c.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        if self.training:
            self._note(scores, indices)
        return indices, weights * c.scale

    def _best_groups(self, ranked: Tensor) -> Tensor:
        """Experts outside the ``n_active_groups`` groups with the best two-expert sums are out."""
        c = self.config
        grouped = ranked.unflatten(-1, (c.n_expert_groups, -1))
        best = grouped.topk(2, dim=-1).values.sum(-1).topk(c.n_active_groups, dim=-1, sorted=False).indices
        kept = torch.zeros(grouped.shape[:-1], dtype=torch.bool, device=ranked.device).scatter_(1, best, True)
        return grouped.masked_fill(~kept[..., None], float("-inf")).flatten(-2)

    def _note(self, scores: Tensor, indices: Tensor) -> None:
        """Count loads for the bias rule and keep the balance loss ``e / k * sum_i f_i P_i`` of this call."""
        c = self.config
        load = torch.bincount(indices.flatten(), minlength=c.n_experts).to(self.load.dtype)
        self.load += load
        if c.balance_loss > 0 and torch.is_grad_enabled():
            fraction = load / load.sum()
            share = (scores / scores.sum(-1, keepdim=True)).mean(0)
            self.balance.append(c.balance_loss * c.n_experts * (fraction * share).sum())

    @torch.no_grad()
    def update_bias(self) -> None:
        """Nudge under-used experts up and over-used ones down by ``bias_update``; call once an optimiser step."""
        self.bias += self.config.bias_update * torch.sign(self.load.mean() - self.load)
        self.load.zero_()


class Experts(nn.Module):
    """Weights of the routed experts, stacked: up_proj (e, f, d_in), down_proj (e, d_in, f)."""

    def __init__(self, d_in: int, config: MoEConfig) -> None:
        super().__init__()
        self.up_proj = nn.Parameter(torch.empty(config.n_experts, config.d_ff, d_in))
        self.down_proj = nn.Parameter(torch.empty(config.n_experts, d_in, config.d_ff))
        nn.init.uniform_(self.up_proj, -(d_in**-0.5), d_in**-0.5)
        nn.init.uniform_(self.down_proj, -(config.d_ff**-0.5), config.d_ff**-0.5)

    def forward(self, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """x (t, d_in), indices and weights (t, k) -> (t, d_in)"""
        return routed_experts(x, indices, weights, self.up_proj, self.down_proj)


class MoE(nn.Module):
    """(b, n, d) -> (b, n, d); every token on its own."""

    def __init__(self, d_model: int, config: MoEConfig) -> None:
        super().__init__()
        d_in = config.d_latent or d_model
        self.router = Router(d_model, config)
        self.experts = Experts(d_in, config)
        self.shared_experts = MLP(d_model, MLPConfig(d_ff=config.d_shared))
        latent = config.d_latent is not None
        self.latent_in = Linear(d_model, d_in, bias=False) if latent else nn.Identity()
        self.latent_out = Linear(d_in, d_model, bias=False) if latent else nn.Identity()

    def forward(self, x: Tensor, layout: Layout | None = None, slot: None = None, context: None = None) -> Tensor:
        flat = x.flatten(0, -2)
        indices, weights = self.router(flat)
        routed = self.experts(self.latent_in(flat), indices, weights)
        return (self.latent_out(routed) + self.shared_experts(flat)).view_as(x)
