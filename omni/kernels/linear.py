"""``y = x weight' + bias``, for the few rows of a decoding step as for the many of a prompt.

A step multiplies each weight by a handful of rows, so it should take as long as reading the weights. One row does:
the library multiplies a matrix by a vector. A few rows do not: it packs the weights as if many rows followed.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from omni.kernels import Path, choose

FEW = 8  # rows; with more, packing the weights pays
BLOCK = 16, 64  # least and most rows of the weight in a block
LARGE = 1 << 20  # numbers in a weight; the library is as fast with less


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., d_in), weight (d_out, d_in), bias (d_out,) -> (..., d_out)."""
    return choose("linear", LINEAR_PATHS, x, weight, bias)(x, weight, bias)


def project_in_blocks(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The weight as a batch of small matrices: threads share the batch, and so small a matrix is read where it lies."""
    d_out, d_in = weight.shape
    blocks = weight.view(-1, _block(d_out), d_in)
    rows = x.reshape(1, -1, d_in).expand(blocks.shape[0], -1, -1)
    y = torch.bmm(rows, blocks.mT).transpose(0, 1).reshape(*x.shape[:-1], d_out)
    return y if bias is None else y + bias


@cache
def _block(d_out: int) -> int:
    """Rows of the weight in a block: the largest size within the limits that divides them, else the whole."""
    least, most = BLOCK
    return next((size for size in range(most, least - 1, -1) if d_out % size == 0), d_out)


def _few_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        x.shape[-1] < x.numel() <= FEW * x.shape[-1]
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.numel() >= LARGE
        and weight.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
        and not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)))
    )


LINEAR_PATHS = (
    Path("blocks", project_in_blocks, _few_rows),
    Path("reference", F.linear),
)

__all__ = ["LINEAR_PATHS", "project"]
