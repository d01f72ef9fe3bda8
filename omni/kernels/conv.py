"""Depthwise causal convolution over time with SiLU, as Mamba-2 has it before the scan.

    y_t = silu(bias + sum_k weight_k x_{t - (w - 1) + k})

Sums are taken in float32 (float64 where x is); the result has x's type. Shape letters: :mod:`omni.config`;
``w`` taps.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from omni.kernels import Path, choose, wide


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    initial: Tensor | None = None,
    segments: Tensor | None = None,
) -> Tensor:
    """x (b, n, c), weight (c, w), bias (c,) -> silu of the convolution, (b, n, c).

    ``initial`` (b, w - 1, c) are the inputs before the first token, zeros by default. ``segments`` (b, n): a
    token sees nothing from before the last change of this number; ``initial`` belongs to the segment of the
    first token.
    """
    args = (x, weight, bias, initial, segments)
    return choose("causal_conv", CONV_PATHS, *args)(*args)


def causal_conv_reference(x, weight, bias, initial=None, segments=None):
    """One token at a time, from a window that is emptied where a segment begins."""
    wide_dtype = wide(x.dtype)
    weight = weight.to(wide_dtype)
    window = x.new_zeros(x.shape[0], weight.shape[1] - 1, x.shape[2]) if initial is None else initial
    window, outputs = window.to(wide_dtype), []
    for t in range(x.shape[1]):
        if segments is not None and t > 0:
            window = window * (segments[:, t] == segments[:, t - 1])[:, None, None]
        window = torch.cat([window, x[:, t : t + 1].to(wide_dtype)], dim=1)
        y = torch.einsum("bwc,cw->bc", window, weight)
        outputs.append(F.silu(y if bias is None else y + bias.to(wide_dtype)))
        window = window[:, 1:]
    return torch.stack(outputs, dim=1).to(x.dtype)


def causal_conv_tiled(x, weight, bias, initial=None, segments=None):
    """A sum of w shifted copies, tile by tile so that the passes stay in the cache.

    It keeps the (b, n, c) layout, which a library convolution would transpose twice.
    """
    w = wide(x.dtype)
    bias = x.new_zeros(x.shape[2], dtype=w) if bias is None else bias.to(w)
    before = x.new_zeros(x.shape[0], weight.shape[1] - 1, x.shape[2]) if initial is None else initial.to(x.dtype)
    runs = None
    if segments is not None:
        runs = F.pad(segments.diff(dim=1).ne(0).cumsum(1), (weight.shape[1], 0))
    args = (x, weight.to(w).t().contiguous(), bias, before)
    if torch.is_grad_enabled() and any(t.requires_grad for t in args):
        return TiledConv.apply(*args, runs)
    return _forward(*args, runs, None)


TILE = 1 << 18  # numbers in a tile: 1 MiB of float32


def _tiles(x: Tensor, before: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Spans of tokens, each with its inputs (b, taps - 1 + span, c): the tokens before it are part of them."""
    (b, n, c), halo = x.shape, before.shape[1]
    length = n if x.device.type != "cpu" else max(halo, TILE // max(1, b * c), 1)
    for start in range(0, n, length):
        span = slice(start, min(start + length, n))
        inputs = x[:, start - halo : span.stop] if start else torch.cat([before, x[:, span]], dim=1)
        yield span, inputs.to(wide(x.dtype))


def _same_run(t: Tensor, runs: Tensor | None, span: slice, k: int, taps: int) -> Tensor:
    """t (b, span, c) with the tokens zeroed whose tap ``k`` lies in another segment."""
    if runs is None or k == taps - 1:
        return t
    seen, own = (runs[:, span.start + i : span.stop + i] for i in (k, taps - 1))
    return t * (seen == own)[..., None]


def _forward(x, weight, bias, before, runs, sums):
    """weight (w, c). ``sums`` (b, n, c), if given, receives what goes into the SiLU."""
    y, taps = torch.empty_like(x, memory_format=torch.contiguous_format), weight.shape[0]
    target = y if sums is None else sums
    for span, inputs in _tiles(x, before):
        total = target[:, span] if target.dtype == weight.dtype else torch.empty_like(inputs[:, taps - 1 :])
        torch.addcmul(bias, inputs[:, taps - 1 :], weight[taps - 1], out=total)
        for k in range(taps - 1):
            tap = inputs[:, k : k + total.shape[1]]
            total.addcmul_(_same_run(tap, runs, span, k, taps), weight[k])
        torch.ops.aten.silu.out(total, out=y[:, span]) if y.dtype == total.dtype else y[:, span].copy_(F.silu(total))
    return y


class TiledConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, before, runs):
        sums = torch.empty(x.shape, dtype=wide(x.dtype), device=x.device)
        y = _forward(x, weight, bias, before, runs, sums)
        ctx.runs = runs
        ctx.save_for_backward(x, weight, before, sums)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, weight, before, sums = ctx.saved_tensors
        taps, w = weight.shape[0], sums.dtype
        halo = taps - 1
        d_inputs = torch.zeros(x.shape[0], halo + x.shape[1], x.shape[2], dtype=w, device=x.device)
        d_weight, d_bias = torch.zeros_like(weight), torch.zeros_like(weight[0])
        for span, inputs in _tiles(x, before):
            d_sum = torch.ops.aten.silu_backward(dy[:, span].to(w), sums[:, span])
            d_bias += d_sum.sum((0, 1))
            for k in range(taps):
                own = _same_run(d_sum, ctx.runs, span, k, taps)
                d_weight[k] += (own * inputs[:, k : k + own.shape[1]]).sum((0, 1))
                d_inputs[:, span.start + k : span.stop + k].addcmul_(own, weight[k])
        d_before, dx = d_inputs.to(x.dtype).split([halo, x.shape[1]], dim=1)
        return dx, d_weight, d_bias, d_before, None


CONV_PATHS = (
    Path("tiled", causal_conv_tiled),
    Path("reference", causal_conv_reference),
)


def conv_step(x: Tensor, weight: Tensor, bias: Tensor | None, window: Tensor) -> Tensor:
    """One token: x (b, c), window (b, w - 1, c) of the inputs before it -> (b, c).

    Without gradients the window is shifted in place to end with x; with gradients it is left alone.
    """
    args = (x, weight, bias, window)
    return choose("conv_step", STEP_PATHS, *args)(*args)


def conv_step_reference(x, weight, bias, window):
    y = causal_conv_reference(x[:, None], weight, bias, window)[:, 0]
    if not torch.is_grad_enabled():
        window.copy_(torch.cat([window[:, 1:], x[:, None].to(window.dtype)], dim=1))
    return y


def conv_step_fused(x, weight, bias, window):
    w = wide(x.dtype)
    seen = torch.cat([window, x[:, None]], dim=1)  # (b, w, c)
    y = (seen.to(w) * weight.to(w).t()).sum(1)
    y = F.silu(y if bias is None else y + bias.to(w)).to(x.dtype)
    if not torch.is_grad_enabled():
        window.copy_(seen[:, 1:])
    return y


STEP_PATHS = (
    Path("fused", conv_step_fused),
    Path("reference", conv_step_reference),
)

__all__ = ["CONV_PATHS", "STEP_PATHS", "causal_conv", "causal_conv_reference", "conv_step"]
