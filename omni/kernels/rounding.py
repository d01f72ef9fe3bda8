"""Rounding at random: to one of the two neighbours, so that the mean is what it was.

    q = lower neighbour + (u < distance from it, in steps)        u uniform in [0, 1)

The u are Philox-2x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) of a key, a step and the
place in the tensor. They depend on no generator's history: what is computed again is rounded alike. Five rounds are
what the published recipe for states of Mamba takes (``reference`` language_family, section 5.4).
"""

import math

import torch
from torch import Tensor

ROUNDS = 5
WORD = 0xFFFFFFFF
MULTIPLIER, WEYL = 0xD256D193, 0x9E3779B9  # of Philox-2x32
BITS = 16  # of one u: four come from one call of the generator

HALF_MAX = 65504.0  # of float16
INT8_BLOCK = 128  # numbers of a state that share a scale


def key_of(*numbers: int) -> int:
    """A key of 32 bits for a seed and whatever else tells one stream from another."""
    key = 0
    for number in numbers:
        for word in (number & WORD, number >> 32 & WORD):
            left, right = _philox(torch.tensor(word), torch.tensor(key), key ^ WEYL)
            key = int(left ^ right)
    return key


def uniform(count: int, key: int, step: int | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """(count,) numbers in [0, 1), multiples of 2^-16; with ``step`` (b,) a row for each: (b, count)."""
    places = torch.arange(-(-count // 4), device=device)
    step = torch.as_tensor(step, device=device) & WORD
    step = step[:, None] if step.dim() else step
    left, right = _philox(places, step, key)
    words = torch.stack([left & 0xFFFF, left >> BITS, right & 0xFFFF, right >> BITS], dim=-1).flatten(-2)
    return words[..., :count].float() * 2.0**-BITS


def _philox(left: Tensor, right: Tensor, key: int) -> tuple[Tensor, Tensor]:
    """Two words of 32 bits, in int64: the product's 64 bits wrap into the sign, which the masks undo."""
    left, right = torch.broadcast_tensors(left.to(torch.int64), right.to(torch.int64))
    for _ in range(ROUNDS):
        product = left * MULTIPLIER
        left, right = (product >> 32 & WORD) ^ key ^ right, product & WORD
        key = key + WEYL & WORD
    return left, right


def stochastic(q: Tensor, u: Tensor) -> Tensor:
    """Whole numbers around ``q``, the upper with the probability of its distance from the lower; u as ``q``."""
    low = q.floor()
    return low + (u < q - low).to(q.dtype)


def to_half(x: Tensor, u: Tensor) -> Tensor:
    """float32 -> float16 at random. What float16 holds stays; what is larger than it can be is cut to its largest."""
    exponent = torch.frexp(x).exponent
    step = torch.ldexp(torch.ones_like(x), (exponent - 11).clamp(min=-24))  # 11 bits, down to the smallest subnormal
    return (stochastic(x / step, u) * step).clamp(-HALF_MAX, HALF_MAX).to(torch.float16)


def to_half_reference(x: Tensor, u: Tensor) -> Tensor:
    """The same by looking up the neighbours among all numbers that float16 has."""
    codes = torch.arange(-(1 << 15), 1 << 15, device=x.device).to(torch.int16)
    grid = codes.view(torch.float16).float()
    grid = grid[grid.isfinite()].unique()
    x = x.clamp(-HALF_MAX, HALF_MAX)
    place = (torch.searchsorted(grid, x, right=True) - 1).clamp(max=len(grid) - 2)
    low, high = grid[place], grid[place + 1]
    return torch.where(u < (x - low) / (high - low), high, low).half()


def to_int8(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """float32 (..., n) -> int8 at random, and the float32 scale of every block (..., blocks), its largest over 127.

    A block is :data:`INT8_BLOCK` numbers, or the largest divisor of n that divides it too.
    """
    blocks = x.unflatten(-1, (-1, block_of(x.shape[-1])))
    scale = blocks.abs().amax(-1) / 127
    q = (blocks / scale.where(scale > 0, 1.0)[..., None]).clamp(-127, 127)
    return stochastic(q.flatten(-2), u).to(torch.int8), scale


def from_int8(codes: Tensor, scale: Tensor) -> Tensor:
    """What :func:`to_int8` gave, as float32."""
    return (codes.unflatten(-1, (scale.shape[-1], -1)).float() * scale[..., None]).flatten(-2)


def block_of(n: int) -> int:
    """Numbers of a last axis of ``n`` that share a scale."""
    return math.gcd(n, INT8_BLOCK)


__all__ = [
    "block_of",
    "from_int8",
    "key_of",
    "stochastic",
    "to_half",
    "to_half_reference",
    "to_int8",
    "uniform",
]
