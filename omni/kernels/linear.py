"""``y = x weight' + bias``, for the few rows of a decoding step as for the many of a prompt.

A step multiplies each weight by a handful of rows, so it should take as long as reading the weights. The library's
single product of that shape keeps to one thread, or first packs the weights as if many rows followed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from omni.kernels import Path, choose

FEW = 8  # rows
BLOCKS = 32


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., d_in), weight (d_out, d_in), bias (d_out,) -> (..., d_out)."""
    return choose("linear", LINEAR_PATHS, x, weight, bias)(x, weight, bias)


def project_in_blocks(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The weights as a batch of blocks of rows: a batch is shared among threads, and small blocks are not packed."""
    d_out, d_in = weight.shape
    blocks = BLOCKS
    while d_out % blocks:
        blocks //= 2
    rows = x.reshape(1, -1, d_in)
    y = torch.bmm(rows.expand(blocks, -1, -1), weight.view(blocks, d_out // blocks, d_in).mT)
    y = y.transpose(0, 1).reshape(*x.shape[:-1], d_out)
    return y if bias is None else y.add_(bias)


def _few_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        x.numel() <= FEW * x.shape[-1]
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.is_contiguous()
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)))
    )


LINEAR_PATHS = (
    Path("blocks", project_in_blocks, _few_rows),
    Path("reference", F.linear),
)

__all__ = ["LINEAR_PATHS", "project"]
