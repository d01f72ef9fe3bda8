"""Root-mean-square norm, plain or of a gated input, over all channels or over equal slices of them.

    rms_norm(x, weight)               weight * x / sqrt(mean(x^2) + eps)
    gated_rms_norm(y, z, weight, g)   the same of y * silu(z), each of g slices of the channels by its own mean

The mean is taken in float32 (float64 where the input has it). Shape letters: :mod:`omni.config`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from omni.kernels import Path, choose, wide


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., d), weight (d,) -> (..., d) in x's type; the weight is multiplied before the result is narrowed."""
    return choose("rms_norm", NORM_PATHS, x, weight, eps)(x, weight, eps)


def rms_norm_reference(x, weight, eps):
    w = wide(x.dtype)
    if x.dtype == weight.dtype == w:  # one token is so little work that empty casts would show
        return F.rms_norm(x, weight.shape, weight, eps)
    return F.rms_norm(x.to(w), weight.shape, weight.to(w), eps).to(x.dtype)


def rms_norm_tiled(x, weight, eps):
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for part, target in _tiles(x, out):
        torch.mul(part, _inverse_rms(part, eps), out=target).mul_(weight)
    return out


def gated_rms_norm(y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
    """y, z (..., d), weight (d,) -> (..., d) in z's type; the result is narrowed before the weight is multiplied."""
    return choose("gated_rms_norm", GATED_PATHS, y, z, weight, groups, eps)(y, z, weight, groups, eps)


def gated_rms_norm_reference(y, z, weight, groups, eps):
    w = wide(z.dtype)
    grouped = (y.to(w) * F.silu(z.to(w))).unflatten(-1, (groups, -1))
    normed = F.rms_norm(grouped, grouped.shape[-1:], eps=eps)
    return weight * normed.flatten(-2).to(z.dtype)


def gated_rms_norm_tiled(y, z, weight, groups, eps):
    out = torch.empty_like(y, memory_format=torch.contiguous_format)
    for part, gate, target in _tiles(y, z, out):
        grouped = torch.mul(part, F.silu(gate), out=target).unflatten(-1, (groups, -1))
        grouped.mul_(_inverse_rms(grouped, eps))
        target.mul_(weight)
    return out


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """(..., d) -> (..., 1). One pass, where squares and their mean are two and memory for the squares."""
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    return square.div_(x.shape[-1]).add_(eps).rsqrt_()


TILE = 1 << 18  # numbers in a tile: 1 MiB of float32
SMALL = 1 << 16  # up to here the number of operations counts, not of passes


def _tiles(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Tensors (..., n, d) cut along n, so that the passes over a tile stay in the cache."""
    x = tensors[0]
    rows = max(1, TILE * x.shape[-2] // max(1, x.numel())) if x.dim() > 1 else 1
    if x.dim() == 1 or rows >= x.shape[-2]:
        return [tensors]
    return list(zip(*(t.split(rows, dim=-2) for t in tensors), strict=True))


def _plain(x: Tensor, weight: Tensor, *others: Tensor) -> bool:
    """Much to do on a CPU, nothing to widen and nothing to learn."""
    tensors = (x, weight, *others)
    return (
        x.numel() > SMALL
        and x.device.type == "cpu"
        and all(t.dtype == wide(x.dtype) for t in tensors)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
    )


NORM_PATHS = (
    Path("tiled", rms_norm_tiled, lambda x, weight, eps: _plain(x, weight)),
    Path("reference", rms_norm_reference),
)
GATED_PATHS = (
    Path("tiled", gated_rms_norm_tiled, lambda y, z, weight, groups, eps: _plain(y, z, weight)),
    Path("reference", gated_rms_norm_reference),
)

__all__ = ["GATED_PATHS", "NORM_PATHS", "gated_rms_norm", "rms_norm"]
