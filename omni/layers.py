"""Layers that every stage shares: norms, rotary positions, time conditioning. Shape letters: :mod:`omni.config`."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from omni.config import RotaryConfig, TimeConfig
from omni.kernels.linear import project
from omni.kernels.norm import gated_rms_norm, rms_norm


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type sums are taken in: float32, or float64 where the input has it."""
    return torch.promote_types(dtype, torch.float32)


class Linear(nn.Linear):
    """torch's, computed as suits the number of rows."""

    def forward(self, x: Tensor) -> Tensor:
        return project(x, self.weight, self.bias)


class RMSNorm(nn.Module):
    """``weight * x / rms(x)`` in float32, the weight multiplied *before* the cast back (unlike Llama).

    (..., d) -> (..., d). Formula: Nemotron-H, ``reference`` transformers ``NemotronHRMSNorm``.
    """

    def __init__(self, d: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class GatedRMSNorm(nn.Module):
    """``rms(y * silu(z))`` over each of ``n_groups`` slices of the channels: the gate comes before the norm.

    y, z: (..., d) -> (..., d) in ``z``'s dtype. The published kernel calls this ``norm_before_gate=False``.
    """

    def __init__(self, d: int, n_groups: int, eps: float) -> None:
        super().__init__()
        self.n_groups, self.eps = n_groups, eps
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        return gated_rms_norm(y, z, self.weight, self.n_groups, self.eps)


class Rotary(nn.Module):
    """Rotate-half rotary positions, one axis or three interleaved ones (time, height, width).

    With sections (t, h, w) frequency ``j`` belongs to height when ``j % 3 == 1`` and ``j < 3 h``, to width when
    ``j % 3 == 2`` and ``j < 3 w``, otherwise to time (Cosmos 3, section 2.3 of its reference).
    """

    def __init__(self, head_dim: int, config: RotaryConfig) -> None:
        super().__init__()
        half = head_dim // 2
        self.half, self.theta = half, config.theta
        self.axes = _axes(half, config.sections)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions (3, b, n) -> cos, sin (b, 1, n, p) in float32: large positions lose their place in bfloat16."""
        exponents = torch.arange(self.half, device=positions.device, dtype=torch.float32) / self.half
        frequencies = self.theta**-exponents
        if any(self.axes):
            axes = torch.tensor(self.axes, device=positions.device)
            places = rearrange(positions.float(), "a b n -> b n a")[..., axes]
        else:
            places = positions[0].float()[..., None]
        angles = places * frequencies  # (b, n, p / 2)
        angles = torch.cat([angles, angles], dim=-1).unsqueeze(1)
        return angles.cos(), angles.sin()


def _axes(half: int, sections: tuple[int, int, int] | None) -> list[int]:
    """Axis (0 time, 1 height, 2 width) of each frequency."""
    if sections is None:
        return [0] * half
    limits = {1: 3 * sections[1], 2: 3 * sections[2]}
    return [j % 3 if j % 3 in limits and j < limits[j % 3] else 0 for j in range(half)]


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    """Apply ``rotary`` = (cos, sin), each (b, 1, n, p), to x (b, heads, n, p)."""
    if rotary is None:
        return x
    cos, sin = (table.to(x.dtype) for table in rotary)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def rotate_back(x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    """Inverse of :func:`rotate`."""
    return x if rotary is None else rotate(x, (rotary[0], -rotary[1]))


class Modulation(NamedTuple):
    """What adaLN does to one layer; each (b, 1, d), or (b, n, d) where some tokens carry no noise."""

    shift: Tensor
    scale: Tensor
    gate: Tensor

    def modulate(self, x: Tensor) -> Tensor:
        return x * (1 + self.scale) + self.shift


class TimestepEmbedding(nn.Module):
    """t (b,) in [0, 1] -> (b, d): sinusoid (cosines first, base 10000) -> Linear -> SiLU -> Linear."""

    def __init__(self, d: int, config: TimeConfig) -> None:
        super().__init__()
        self.n_frequencies, self.scale = config.n_frequencies, config.scale
        self.mlp = nn.Sequential(nn.Linear(2 * config.n_frequencies, d), nn.SiLU(), nn.Linear(d, d))

    def forward(self, t: Tensor) -> Tensor:
        steps = torch.arange(self.n_frequencies, device=t.device, dtype=torch.float32)
        angles = (t.float() * self.scale)[:, None] * torch.exp(-math.log(10_000) * steps / self.n_frequencies)
        sinusoid = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.mlp(sinusoid.to(self.mlp[0].bias.dtype))  # a packed weight has no type of its own


class NoTime(nn.Module):
    """A tower that is not told the noise level."""

    def forward(self, x: Tensor, t: Tensor | None, noisy: Tensor | None) -> tuple[Tensor, None]:
        return x, None


class InputTime(nn.Module):
    """Cosmos 3: the embedding is added once, at the input, to noisy tokens only; clean tokens get nothing."""

    def __init__(self, d: int, n_layers: int, config: TimeConfig) -> None:
        super().__init__()
        self.embedder = TimestepEmbedding(d, config)

    def forward(self, x: Tensor, t: Tensor, noisy: Tensor | None) -> tuple[Tensor, None]:
        added = self.embedder(t)[:, None].to(x.dtype)
        return x + (added if noisy is None else added * noisy[..., None].to(x.dtype)), None


class AdaLNTime(nn.Module):
    """TwoTower's adaLN-single: one shared projection, one table (3, d) a layer. Clean tokens are at time 0.

    Starts as the identity (gate 1, shift and scale 0), so that a denoiser copied from a language model begins as it.
    """

    def __init__(self, d: int, n_layers: int, config: TimeConfig) -> None:
        super().__init__()
        self.embedder = TimestepEmbedding(d, config)
        self.project = nn.Linear(d, 3 * d)
        self.tables = nn.Parameter(torch.zeros(n_layers, 3, d))
        if not self.tables.is_meta:
            self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Make it the identity."""
        self.tables.copy_(self.tables.new_tensor([0.0, 0.0, 1.0])[:, None])
        self.project.weight.zero_()
        self.project.bias.zero_()

    def forward(self, x: Tensor, t: Tensor, noisy: Tensor | None) -> tuple[Tensor, list[Modulation]]:
        shared = self._shared(t)
        if noisy is not None:
            shared = torch.where(noisy[..., None], shared, self._shared(torch.zeros_like(t)))
        layers = [shared + table[:, None, None] for table in self.tables]
        return x, [Modulation(*layer.to(x.dtype)) for layer in layers]

    def _shared(self, t: Tensor) -> Tensor:
        """(3, b, 1, d)"""
        return rearrange(self.project(F.silu(self.embedder(t))), "b (r d) -> r b 1 d", r=3)


def build_time(d: int, n_layers: int, config: TimeConfig | None) -> nn.Module:
    """The time conditioning that ``config`` names."""
    if config is None:
        return NoTime()
    return {"input": InputTime, "adaln": AdaLNTime}[config.mode](d, n_layers, config)
