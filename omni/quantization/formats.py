"""Number formats of eight and four bits: a code for every element, a scale for every block, a scale for the tensor.

    x ~ element(code) * block scale * tensor scale

    format       element  block     block scale  tensor scale  bits an element
    fp8          E4M3     -         -            float32       8
    fp8_channel  E4M3     a row     float32      -             8
    fp8_block    E4M3     128x128   float32      -             8
    mxfp8        E4M3     1x32      E8M0         -             8.25
    nvfp4        E2M1     1x16      E4M3         float32       4.5
    mxfp4        E2M1     1x32      E8M0         -             4.25

E2M1 is 0, 0.5, 1, 1.5, 2, 3, 4 and 6 with a sign, two codes a byte, the even column in the low nibble. E8M0 is a power
of two, stored as its exponent plus 127. Sources: NVFP4 arXiv 2509.25149, appendix B; the MX formats' specification 1.0;
``reference`` generation_and_compression, C.1 to C.3.
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from omni.kernels.rounding import stochastic

E4M3, E4M3_MAX = torch.float8_e4m3fn, 448.0
E4M3_LEAST = 2.0**-9  # its smallest number above zero
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # by the low three bits of a code; bit 3 is the sign
E2M1_MAX = 6.0
SIX_OR_FOUR_MAX = 256.0  # of a block scale that must leave room for 1.5 times as much
EXPONENT_BIAS = 127  # of E8M0


@dataclass(frozen=True)
class Format:
    """``block``: rows and columns that share a scale, 0 for all of them; None: there are no scales of blocks."""

    name: str
    bits: float
    block: tuple[int, int] | None
    block_scale: torch.dtype | None  # uint8 is E8M0
    tensor_scale: bool
    packed: bool  # E2M1, two codes a byte; otherwise E4M3

    @property
    def largest(self) -> float:
        """Of the elements."""
        return E2M1_MAX if self.packed else E4M3_MAX

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of the parts that a tensor (..., rows, columns) consists of. ValueError where none has it."""
        *lead, rows, columns = shape
        self.check(columns)
        found = {
            "codes": ((*lead, rows, columns // 2 if self.packed else columns), torch.uint8 if self.packed else E4M3)
        }
        if self.block is not None:
            sizes = (-(-n // (size or n)) for n, size in zip((rows, columns), self.block, strict=True))
            found["block_scale"] = ((*lead, *sizes), self.block_scale)
        if self.tensor_scale:
            found["tensor_scale"] = (tuple(lead), torch.float32)
        return found

    def fits(self, columns: int) -> bool:
        """Whether rows of so many columns divide into blocks. Those of fp8_block and fp8_tile may be cut short."""
        return self.block_scale in (None, torch.float32) or columns % self.block[1] == 0

    def check(self, columns: int) -> None:
        if not self.fits(columns):
            raise ValueError(f"{self.name} has blocks of {self.block[1]} columns; {columns} columns do not divide")


FORMATS = {
    f.name: f
    for f in (
        Format("fp8", 8.0, None, None, True, False),
        Format("fp8_channel", 8.0, (1, 0), torch.float32, False, False),
        Format("fp8_block", 8.0, (128, 128), torch.float32, False, False),
        Format("mxfp8", 8.25, (1, 32), torch.uint8, False, False),
        Format("nvfp4", 4.5, (1, 16), E4M3, True, True),
        Format("mxfp4", 4.25, (1, 32), torch.uint8, False, True),
    )
}
FP8, NVFP4 = FORMATS["fp8"], FORMATS["nvfp4"]
FP8_TILE = Format("fp8_tile", 8.25, (1, 128), torch.float32, False, False)
"""What the inputs of fp8_block are quantised to."""


class Packed(NamedTuple):
    """The parts of a tensor (..., rows, columns); see :meth:`Format.shapes`."""

    codes: Tensor
    block_scale: Tensor | None = None
    tensor_scale: Tensor | None = None


# -- elements ----------------------------------------------------------------------------------------------------------


def round_e2m1(x: Tensor, u: Tensor | None = None) -> Tensor:
    """The nearest E2M1 number, ties to the even code; with ``u``, uniform in [0, 1), one of both neighbours at random.

    What is larger than 6 becomes 6.
    """
    size = x.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0)).to(x.dtype)
    whole = torch.round(size / step) if u is None else stochastic(size / step, u)
    return (whole * step).clamp_(max=E2M1_MAX).copysign(x)


def round_e2m1_reference(x: Tensor) -> Tensor:
    """By distance from each of the eight; of two as near the one whose code is even."""
    table = torch.tensor(E2M1, dtype=x.dtype, device=x.device)
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7], device=x.device)  # even codes first: argmin takes the first
    nearest = (x.abs().clamp(max=E2M1_MAX)[..., None] - table[order]).abs().argmin(-1)
    return table[order][nearest].copysign(x)


def pack_e2m1(x: Tensor) -> Tensor:
    """E2M1 numbers (..., n) -> uint8 (..., n / 2)."""
    size = x.abs()
    code = torch.where(size < 2, size * 2, torch.where(size < 4, size + 2, size / 2 + 4)).to(torch.uint8)
    code |= x.signbit().to(torch.uint8) << 3
    return code[..., 0::2] | code[..., 1::2] << 4


def unpack_e2m1(codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 (..., n) -> E2M1 numbers (..., 2 n), by a table of what a byte holds."""
    return _looked_up(codes, _pairs(dtype, codes.device)).unflatten(-1, (-1, 2)).flatten(-2)


def unpack_e2m1_reference(codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Nibble by nibble, from sign and size."""
    nibbles = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)
    sizes = torch.tensor(E2M1, dtype=dtype, device=codes.device)[(nibbles & 7).long()]
    return torch.where(nibbles >= 8, -sizes, sizes)


def unpack_e4m3(codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """E4M3 -> ``dtype``, by a table: a CPU converts them one by one. On other devices as torch does."""
    if codes.device.type != "cpu":
        return codes.to(dtype)
    return _looked_up(codes.view(torch.uint8), _bytes(dtype))


def _looked_up(codes: Tensor, table: Tensor) -> Tensor:
    """The rows of ``table`` (256,) or (256, 2) that bytes name; a pair is moved as one number twice as wide."""
    wide = (
        table if table.dim() == 1 else table.view({2: torch.int32, 4: torch.int64, 8: torch.complex128}[table.itemsize])
    )
    found = wide.reshape(-1).index_select(0, codes.reshape(-1).int()).view(table.dtype)
    return found.view(*codes.shape[:-1], -1)


@cache
def _pairs(dtype: torch.dtype, device: torch.device) -> Tensor:
    return unpack_e2m1_reference(torch.arange(256, dtype=torch.uint8, device=device)[:, None], dtype).contiguous()


@cache
def _bytes(dtype: torch.dtype) -> Tensor:
    return torch.arange(256, dtype=torch.uint8).view(E4M3).to(dtype)


# -- scales ------------------------------------------------------------------------------------------------------------


def to_exponent(amax: Tensor, largest: float) -> Tensor:
    """E8M0 of blocks whose largest number is ``amax``: the power of two of the amax over that of the largest element.

    Elements may then saturate, by less than one step (the specification's rule).
    """
    top = torch.frexp(torch.tensor(largest)).exponent
    return (
        (torch.frexp(amax).exponent - top + EXPONENT_BIAS).where(amax > 0, EXPONENT_BIAS).clamp(0, 254).to(torch.uint8)
    )


def from_exponent(exponent: Tensor) -> Tensor:
    """float32"""
    return torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent.int() - EXPONENT_BIAS)


def scales(block_scale: Tensor) -> Tensor:
    """Scales of blocks of any type as float32."""
    return from_exponent(block_scale) if block_scale.dtype == torch.uint8 else block_scale.float()


def spread(values: Tensor, block: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """A number for every block (..., r, c) -> one for every element (..., rows, columns); the last may be cut."""
    for axis, (size, n) in enumerate(zip(block, shape, strict=True), start=-2):
        if (size or n) > 1:
            values = values.repeat_interleave(size or n, dim=axis).narrow(axis, 0, n)
    return values


def block_amax(x: Tensor, block: tuple[int, int]) -> Tensor:
    """Largest size in every block of x (..., rows, columns); the last may be cut."""
    (rows, columns), (r, c) = x.shape[-2:], block
    r, c = r or rows, c or columns
    padded = torch.nn.functional.pad(x.abs(), (0, -columns % c, 0, -rows % r))
    return padded.unflatten(-1, (-1, c)).unflatten(-3, (-1, r)).amax((-3, -1))


# -- tensors -----------------------------------------------------------------------------------------------------------


def encode(
    x: Tensor,
    format: Format,
    *,
    tensor_scale: Tensor | None = None,
    block: tuple[int, int] | None = None,
    six_or_four: bool = False,
    u: Tensor | None = None,
) -> Packed:
    """Quantise x (..., rows, columns), all of it finite.

    Args:
        tensor_scale: (...) what it is where it is known; default: so that the largest block scale is the largest E4M3.
        block: nvfp4 only: larger blocks, such as 16 x 16, whose scale is repeated for each 1 x 16.
        six_or_four: nvfp4 only: let the largest element of a block be 6 or 4, whichever is nearer in the mean square.
        u: nvfp4 only: round at random by these numbers (as x, uniform in [0, 1)).

    Raises ValueError where the columns do not divide into blocks.
    """
    format.check(x.shape[-1])
    x = x.float()
    if format.tensor_scale and tensor_scale is None:
        tensor_scale = _tensor_scale(x, format, SIX_OR_FOUR_MAX if six_or_four else E4M3_MAX)
    if format == NVFP4:
        return _encode_nvfp4(x, tensor_scale, block or format.block, six_or_four, u)
    if format.block is None:
        return Packed(to_e4m3(x / tensor_scale[..., None, None]), None, tensor_scale)
    amax = block_amax(x, format.block)
    if format.block_scale == torch.uint8:
        held = to_exponent(amax, format.largest)
    else:
        held = (amax / format.largest).where(amax > 0, 1.0)
    q = x / spread(scales(held), format.block, x.shape[-2:])
    return Packed(pack_e2m1(round_e2m1(q)) if format.packed else to_e4m3(q), held)


def _tensor_scale(x: Tensor, format: Format, largest_block: float) -> Tensor:
    amax = x.abs().amax((-2, -1))
    most = format.largest * (largest_block if format.block is not None else 1.0)
    return (amax / most).where(amax > 0, 1.0)


def _encode_nvfp4(x: Tensor, g: Tensor, block: tuple[int, int], six_or_four: bool, u: Tensor | None) -> Packed:
    amax = block_amax(x, block)
    held = _nvfp4_scale(amax, g)
    q = _over(x, held, g, block)
    rounded = round_e2m1(q, u)
    if six_or_four:
        other = _nvfp4_scale(amax * 1.5, g)
        q4 = _over(x, other, g, block)
        r4 = round_e2m1(q4, u)
        four = _block_error(r4 - q4, other, block) < _block_error(rounded - q, held, block)
        held = torch.where(four, other.float(), held.float()).to(E4M3)
        rounded = torch.where(spread(four, block, x.shape[-2:]), r4, rounded)
    held = spread(scales(held), (block[0], block[1] // 16), (x.shape[-2], x.shape[-1] // 16)).to(E4M3)
    return Packed(pack_e2m1(rounded), held, g)


def _nvfp4_scale(amax: Tensor, g: Tensor) -> Tensor:
    scale = (amax / (E2M1_MAX * g[..., None, None])).where(amax > 0, 1.0)
    return scale.clamp(E4M3_LEAST, E4M3_MAX).to(E4M3)


def _over(x: Tensor, held: Tensor, g: Tensor, block: tuple[int, int]) -> Tensor:
    return x / spread(held.float() * g[..., None, None], block, x.shape[-2:])


def _block_error(steps: Tensor, held: Tensor, block: tuple[int, int]) -> Tensor:
    squares = steps.square().unflatten(-1, (-1, block[1])).unflatten(-3, (-1, block[0]))
    return squares.sum((-3, -1)) * held.float().square()


def to_e4m3(x: Tensor) -> Tensor:
    """To the nearest; torch's own cast makes what is too large not a number."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)


def units(packed: Packed, format: Format, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor | None]:
    """x without its factor, in ``dtype``, and the float32 factor: (..., 1, 1), or (..., rows, 1) of each row, or None.

    Elements times scales of blocks have six bits or fewer in all formats but fp8_block, so bfloat16 holds them exactly:
    a product of units with sums in float32, times the factors, is the product that the formats' own hardware makes, up
    to the order of the sum.
    """
    values = unpack_e2m1(packed.codes, dtype) if format.packed else unpack_e4m3(packed.codes, dtype)
    if format.block is None:
        return values, packed.tensor_scale[..., None, None]
    if format.block == (1, 0):
        return values, packed.block_scale.float()
    held = scales(packed.block_scale)
    if format.block[0] == 1 and values.shape[-1] % format.block[1] == 0:  # no scale needs to be repeated in memory
        values.view(*held.shape, -1).mul_(held.to(dtype)[..., None])
    else:
        values = (values.float() * spread(held, format.block, values.shape[-2:])).to(dtype)
    return values, packed.tensor_scale[..., None, None] if format.tensor_scale else None


def decode(packed: Packed, format: Format, dtype: torch.dtype = torch.float32) -> Tensor:
    """What :func:`encode` kept of x (..., rows, columns); computed in float32."""
    values, factor = units(packed, format, torch.float32)
    return (values if factor is None else values * factor).to(dtype)


def decode_reference(packed: Packed, format: Format) -> Tensor:
    """The formula as it stands, with every scale repeated."""
    values = unpack_e2m1_reference(packed.codes) if format.packed else packed.codes.float()
    if packed.block_scale is not None:
        values = values * spread(scales(packed.block_scale), format.block, values.shape[-2:])
    return values if packed.tensor_scale is None else values * packed.tensor_scale[..., None, None]


__all__ = [
    "E2M1",
    "E4M3",
    "E4M3_MAX",
    "FORMATS",
    "FP8",
    "FP8_TILE",
    "NVFP4",
    "Format",
    "Packed",
    "block_amax",
    "decode",
    "decode_reference",
    "encode",
    "from_exponent",
    "pack_e2m1",
    "round_e2m1",
    "round_e2m1_reference",
    "scales",
    "spread",
    "to_e4m3",
    "to_exponent",
    "units",
    "unpack_e2m1",
    "unpack_e2m1_reference",
    "unpack_e4m3",
]
