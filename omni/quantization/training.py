"""Training in NVFP4: the three products of a linear layer with both factors in four bits, as hardware would make them.

    y  = Q(x) Q2(w)'                    Q   blocks of 1 x 16 along what is summed over, to the nearest
    dx = S(dy) Q2(w)                    Q2  blocks of 16 x 16: the same numbers whichever way the product goes
    dw = S(dy' H) Q(x' H)'              S   as Q, rounded at random, so that gradients keep their mean
                                        H   a Hadamard transform of 16 tokens, with signs: (A H)(H' B) = A B

Weights stay float32 and so do their gradients; which layers stay high is a plan's. Source: arXiv 2509.25149, sections
2 to 4, and ``reference`` generation_and_compression, C.4. Products are exact up to the order of their sums.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.kernels import wide
from omni.kernels.experts import routed_experts_by
from omni.kernels.rounding import WEYL, WORD, key_of, uniform
from omni.layers import Linear
from omni.mixers.moe import Experts
from omni.quantization.formats import NVFP4, encode, units
from omni.tower import Tower

BLOCK = 16
HIGH = ("*.q_proj", "*.k_proj", "*.v_proj", "*.o_proj", "*.latent_in", "*.latent_out", "*.out_proj")
"""Layers of a tower that the published recipes keep high: attention, latent projections, Mamba's output."""


class Clock:
    """What the random numbers of a model's rounding follow, and whether its forward pass is high for now."""

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.step, self.high_forward = seed, 0, False
        self.signs = uniform(BLOCK, key_of(seed), 0) < 0.5


class Noise:
    """The random numbers of one layer: of each step its own, of each draw in a step too."""

    def __init__(self, clock: Clock, name: str) -> None:
        self.clock, self.key = clock, key_of(clock.seed, *name.encode())
        self.step, self.draws = -1, 0

    def draw(self, like: Tensor) -> Tensor:
        """Uniform in [0, 1), as ``like``."""
        self.step, self.draws = self.clock.step, self.draws + 1 if self.step == self.clock.step else 0
        key = self.key + self.draws * WEYL & WORD
        return uniform(like.numel(), key, self.step, like.device).view_as(like)


class FourBitProduct(torch.autograd.Function):
    """x (t, k), w (n, k) -> x w' (t, n) in ``dtype``."""

    @staticmethod
    def forward(ctx, x, w, noise, dtype):
        ctx.save_for_backward(x, w)
        ctx.noise, ctx.dtype = noise, dtype
        if noise.clock.high_forward:
            return F.linear(x.to(dtype), w.to(dtype))
        return _product(_rows(x), _square(w), dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        (x, w), noise, dx, dw = ctx.saved_tensors, ctx.noise, None, None
        if ctx.needs_input_grad[0]:
            held = _padded(dy)
            dx = _product(_rows(held, noise.draw(held)), _square(w.mT), ctx.dtype).to(x.dtype)
        if ctx.needs_input_grad[1]:
            a, b = (hadamard(t.float().mT, noise.clock.signs) for t in (dy, x))
            dw = _product(_rows(a, noise.draw(a)), _rows(b), ctx.dtype).to(w.dtype)
        return dx, dw, None, None


Quantised = tuple[Tensor, Tensor]
"""Elements times the scales of their blocks, in float32, and the scale of the tensor."""


def _rows(x: Tensor, u: Tensor | None = None) -> Quantised:
    """x (r, c) in blocks along its rows, filled up with zeros; rounded by ``u``, to the nearest without."""
    return units(encode(_padded(x), NVFP4, u=u), NVFP4)


def _square(w: Tensor) -> Quantised:
    return units(encode(_padded(w), NVFP4, block=(BLOCK, BLOCK)), NVFP4)


def _padded(x: Tensor) -> Tensor:
    return F.pad(x, (0, -x.shape[-1] % BLOCK))


def _product(a: Quantised, b: Quantised, dtype: torch.dtype) -> Tensor:
    """a b', summed in float32 or what is wider: six bits of each factor are exact in bfloat16.

    A GPU rounds bfloat16's sums before they are scaled; a CPU is as fast in float32.
    """
    (a, f), (b, g) = a, b
    within = wide(dtype) if a.device.type == "cpu" else dtype
    return (F.linear(a.to(within), b.to(within)).to(wide(dtype)) * (f * g)).to(dtype)


def hadamard(x: Tensor, signs: Tensor) -> Tensor:
    """x (r, t) H, in groups of 16 columns, the last filled up with zeros: H = diag(signs) Hadamard / 4."""
    turned = _padded(x).unflatten(-1, (-1, BLOCK)) * torch.where(signs, -0.25, 0.25).to(x.device, x.dtype)
    for width in (1, 2, 4, 8):  # the fast transform: sums and differences at growing distances
        left, right = turned.unflatten(-1, (-1, 2, width)).unbind(-2)
        turned = torch.stack([left + right, left - right], dim=-2).flatten(-3)
    return turned.flatten(-2)


def hadamard_reference(x: Tensor, signs: Tensor) -> Tensor:
    """The same by a matrix, whose entry i, j has the sign of the parity of the bits that i and j share."""
    index = torch.arange(BLOCK)
    parity = sum(((index[:, None] & index) >> bit) & 1 for bit in range(4)) % 2
    matrix = (1.0 - 2.0 * parity) * torch.where(signs, -0.25, 0.25)[:, None]
    return (_padded(x).unflatten(-1, (-1, BLOCK)) @ matrix.to(x.device, x.dtype)).flatten(-2)


def four_bit(x: Tensor, w: Tensor, noise: Noise) -> Tensor:
    """x (..., k), w (n, k) -> (..., n), in x's type or autocast's."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        y = FourBitProduct.apply(x.reshape(-1, x.shape[-1]), w, noise, dtype)
    return y.view(*x.shape[:-1], -1)


class FourBitLinear(Linear):
    """A linear layer with the same parameters, whose products are in four bits."""

    def __init__(self, linear: nn.Linear, noise: Noise) -> None:
        with torch.device("meta"):
            super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.weight, self.bias, self.noise = linear.weight, linear.bias, noise

    def forward(self, x: Tensor) -> Tensor:
        y = four_bit(x, self.weight, self.noise)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class FourBitExperts(Experts):
    """Experts with the same parameters, whose products are in four bits."""

    def __init__(self, experts: Experts, noise: Noise) -> None:
        nn.Module.__init__(self)
        self.up_proj, self.down_proj, self.noise = experts.up_proj, experts.down_proj, noise

    def forward(self, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        up, down = self.up_proj.unbind(), self.down_proj.unbind()
        return routed_experts_by(
            x,
            indices,
            weights,
            len(up),
            lambda rows, e: four_bit(rows, up[e], self.noise),
            lambda rows, e: four_bit(rows, down[e], self.noise),
        )


def train_in_four_bits(
    model: nn.Module, *, keep_first: int = 0, keep_last: int = 1, keep: Iterable[str] = HIGH, seed: int = 0
) -> Clock:
    """Swap the linear layers of every tower's blocks; the clock that its trainer must set.

    The first and last blocks of each tower stay high, and what ``keep`` (globs of names of modules) names, and what is
    frozen. Parameters stay the same objects under the same names. ValueError where nothing is left to swap.
    """
    clock, keep = Clock(seed), tuple(keep)
    chosen = [
        (name, module)
        for path, tower in model.named_modules()
        if isinstance(tower, Tower)
        for i, block in enumerate(tower.blocks)
        if keep_first <= i < len(tower.blocks) - keep_last
        for name, module in block.named_modules(prefix=f"{path}.blocks.{i}".lstrip("."))
        if isinstance(module, (Linear, Experts)) and not any(fnmatchcase(name, pattern) for pattern in keep)
    ]
    chosen = [(name, m) for name, m in chosen if all(p.requires_grad for p in m.parameters())]
    if not chosen:
        raise ValueError("no layer is left for four bits: fewer must be kept or frozen")
    for name, module in chosen:
        parent, _, leaf = name.rpartition(".")
        swapped = (FourBitLinear if isinstance(module, Linear) else FourBitExperts)(module, Noise(clock, name))
        setattr(model.get_submodule(parent), leaf, swapped.train(module.training))
    return clock


__all__ = [
    "HIGH",
    "Clock",
    "FourBitExperts",
    "FourBitLinear",
    "four_bit",
    "hadamard",
    "hadamard_reference",
    "train_in_four_bits",
]
