"""Weights that stay packed in memory: a piece is decoded, multiplied by and forgotten.

    PackedWeight    (rows, columns), or a stack of them: the parts of a format as buffers; ``project`` multiplies by one
    PackedLinear    stands where a Linear stood
    PackedExperts   stands where Experts stood; either matrix may be packed

Inputs stay as they are (W4A16, W8A16), unless ``low_inputs`` is set: then they are rounded to the format that goes with
the weight's (W4A4, W8A8), and products are those of the formats' own hardware up to the order of the sum.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.config import ConfigError
from omni.kernels import wide
from omni.kernels.experts import routed_experts_by
from omni.mixers.moe import Experts
from omni.quantization.formats import FP8_TILE, Format, Packed, decode, encode, units
from omni.rules import PARTS, stem_of

SCRATCH = 4 << 20  # numbers of a weight that are decoded at once
ROWS = 128  # a piece has a multiple of so many: what the largest blocks have


class PackedWeight(nn.Module):
    """A matrix (rows, columns) or a stack (e, rows, columns) in ``format``. ``inputs``: it has an input scale."""

    def __init__(self, shape: tuple[int, ...], format: Format, inputs: bool = False) -> None:
        super().__init__()
        self.shape, self.format = tuple(shape), format
        self.low_inputs = False
        self.weight_only = False  # its checkpoint leaves inputs as they are: they are never rounded
        for name, (size, dtype) in format.shapes(self.shape).items():
            self.register_buffer(name, torch.empty(size, dtype=dtype))
        self.register_buffer("input_scale", torch.empty(self.shape[:-2]) if inputs else None)

    def _apply(self, *args: Any, **kwargs: Any) -> "PackedWeight":
        """``.to(...)`` and its kin move it and never change a type: codes are not numbers."""
        before = {name: buffer.dtype for name, buffer in self.named_buffers(recurse=False) if name in PARTS}
        held = {name: getattr(self, name) for name in before}
        super()._apply(*args, **kwargs)
        for name, dtype in before.items():
            moved = getattr(self, name)
            if moved.dtype != dtype:
                setattr(self, name, held[name].to(moved.device))
        return self

    def packed(self, e: int | None = None) -> Packed:
        """All of the matrix ``e`` of the stack, or of what there is."""
        parts = (getattr(self, name, None) for name in Packed._fields)
        return Packed(*(part if part is None or e is None else part[e] for part in parts))

    def fill(self, packed: Packed, e: int | None = None) -> None:
        for mine, given in zip(self.packed(e), packed, strict=True):
            if mine is not None:
                mine.copy_(given)

    def decode(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """All of it, as numbers."""
        return decode(self.packed(), self.format, dtype)

    def project(self, x: Tensor, e: int | None = None) -> Tensor:
        """x (..., columns) times the matrix, transposed -> (..., rows), in x's type or autocast's."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        with torch.autocast(device, enabled=False):
            if torch.is_grad_enabled() and x.requires_grad:
                return Project.apply(x, self, e, dtype).to(dtype)
            return self._product(x.detach(), e, dtype).to(dtype)

    def _product(self, x: Tensor, e: int | None, dtype: torch.dtype) -> Tensor:
        x, factor = self._inputs(x.to(self._within(dtype, x.device)), e)
        parts = [_times(F.linear(x, piece), own) for _, piece, own in self.pieces(x.dtype, e)]
        return _times(parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1), factor)

    def _within(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """What is computed in. float16 has too little room for numbers without their scales.

        A GPU rounds bfloat16's sums before they are scaled; a CPU is as fast in float32 and rounds once.
        """
        inexact = self.low_inputs and self.format.name == "fp8_block"
        return wide(dtype) if device.type == "cpu" or dtype == torch.float16 or inexact else dtype

    def pieces(self, dtype: torch.dtype, e: int | None = None) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Rows, their units (rows, columns) and their factor, () or (rows,)."""
        whole, (rows, columns) = self.packed(e), self.shape[-2:]
        step = max(ROWS, SCRATCH // columns // ROWS * ROWS)
        height = (self.format.block[0] or rows) if self.format.block is not None else 1
        for start in range(0, rows, step):
            span = slice(start, min(start + step, rows))
            scale = whole.block_scale
            if scale is not None:
                scale = scale[start // height : -(-span.stop // height)]
            values, factor = units(whole._replace(codes=whole.codes[span], block_scale=scale), self.format, dtype)
            yield span, values, None if factor is None else factor.reshape(-1 if factor.numel() > 1 else ())

    def _inputs(self, x: Tensor, e: int | None) -> tuple[Tensor, Tensor | None]:
        """x without its factor, and that: () or (..., 1)."""
        if not self.low_inputs or not x.numel():
            return x, None
        format = FP8_TILE if self.format.name == "fp8_block" else self.format
        scale = self.input_scale if format.tensor_scale else None
        scale = scale if scale is None or e is None else scale[e]
        flat = x.reshape(-1, x.shape[-1])
        values, factor = units(encode(flat, format, tensor_scale=scale), format, x.dtype)
        if factor is not None:
            factor = factor.reshape(()) if factor.numel() == 1 else factor.reshape(*x.shape[:-1], 1)
        return values.view_as(x), factor

    def extra_repr(self) -> str:
        return f"{self.shape}, {self.format.name}"


class Project(torch.autograd.Function):
    """The product, whose gradient decodes the weight again instead of keeping it. The weight itself has none."""

    @staticmethod
    def forward(ctx, x, weight, e, dtype):
        ctx.weight, ctx.e, ctx.given = weight, e, x.dtype
        return weight._product(x, e, dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out):
        dx = 0
        for rows, piece, factor in ctx.weight.pieces(d_out.dtype, ctx.e):
            dx = dx + _times(d_out[..., rows], factor).to(piece.dtype) @ piece
        return dx.to(ctx.given), None, None, None


def _times(y: Tensor, factor: Tensor | None) -> Tensor:
    """``y`` times a float32 factor, in no less: in bfloat16 the factor itself would be off by a part in 500."""
    return y if factor is None else y.to(wide(y.dtype)) * factor


class PackedLinear(PackedWeight):
    """(..., columns) -> (..., rows)"""

    def __init__(self, linear: nn.Linear, format: Format, inputs: bool = False) -> None:
        super().__init__(tuple(linear.weight.shape), format, inputs)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class PackedExperts(nn.Module):
    """:class:`Experts` of which at least one matrix is a :class:`PackedWeight`."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.up_proj, self.down_proj = experts.up_proj, experts.down_proj

    def pack(self, name: str, format: Format, inputs: bool) -> PackedWeight:
        packed = PackedWeight(tuple(getattr(self, name).shape), format, inputs)
        delattr(self, name)
        setattr(self, name, packed)
        return packed

    def forward(self, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        up, down = (_by(matrix) for matrix in (self.up_proj, self.down_proj))
        return routed_experts_by(x, indices, weights, self.up_proj.shape[0], up, down)


def _by(matrix: nn.Module | Tensor):
    if isinstance(matrix, PackedWeight):
        return matrix.project
    return lambda x, e: F.linear(x.to(matrix.dtype), matrix[e])


def hold(model: nn.Module, name: str, format: Format, inputs: bool = False) -> PackedWeight:
    """Put a packed weight, without content, in place of our tensor ``name`` and on its device.

    ConfigError where that is neither the weight of a linear layer nor one of the matrices of experts.
    """
    path, _, leaf = stem_of(name).rpartition(".")
    parent = model.get_submodule(path)
    where = getattr(parent, leaf)
    with torch.device(where.weight.device if isinstance(where, nn.Module) else where.device):
        if isinstance(where, nn.Linear) and name.endswith(".weight"):
            setattr(parent, leaf, PackedLinear(where, format, inputs))
            return getattr(parent, leaf)
        if isinstance(parent, (Experts, PackedExperts)):
            packed = parent if isinstance(parent, PackedExperts) else PackedExperts(parent)
            if packed is not parent:
                above, _, own = path.rpartition(".")
                setattr(model.get_submodule(above), own, packed)
            return packed.pack(leaf, format, inputs)
    raise ConfigError(f"{name} is neither a linear layer's weight nor a matrix of experts; it cannot stay packed")


def packed_weights(model: nn.Module) -> dict[str, PackedWeight]:
    """Every packed weight by the name of its module or stack."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedWeight)}


def set_low_inputs(model: nn.Module, low: bool = True) -> None:
    """Round what enters every packed weight to eight or four bits, as the formats' own hardware does, or no longer.

    A weight without an input scale has one made from each call's own inputs. One that is ``weight_only`` stays so.
    """
    for weight in packed_weights(model).values():
        weight.low_inputs = low and not weight.weight_only


__all__ = [
    "PackedExperts",
    "PackedLinear",
    "PackedWeight",
    "hold",
    "packed_weights",
    "set_low_inputs",
]
