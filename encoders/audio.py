"""Audio encoder of the Parakeet kind: FastConformer behind strided convolutions.

    log-mel features (b, frames, n_mels)
        -> subsampling: Conv2d stride 2, then (depthwise stride 2, pointwise) up to the factor, ReLU each -> (b, n, d)
        -> n_layers x { x += FFN1(LN x) / 2;  x += attention(LN x);  x += conv(LN x);  x += FFN2(LN x) / 2;  LN }
        -> features (b, n, d), n = tokens_of(frames)

Sources: FastConformer (arXiv 2305.05084), Conformer (2005.08100), relative attention of Transformer-XL (1901.02860,
appendix B). Parameters are called as in transformers' ParakeetEncoder. Rows of a batch differ in length: frames behind
``lengths`` are zeroed after every convolution, are no keys, and do not count in the batch norm's statistics.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from omni.config import SoundConfig

POSITION_BASE = 10_000.0  # of the sinusoids

SLICE = 48
"""Tokens that a CPU subsamples at once: what the first convolution writes is many times larger than what comes out, and
a clip's worth of it would be memory that is fresh for every layer."""


class AudioEncoder(nn.Module):
    """Log-mel features to audio features; one token stands for ``subsampling`` frames of 10 ms."""

    def __init__(self, config: SoundConfig) -> None:
        super().__init__()
        self.config = config
        self.input_scale = config.d_model**0.5 if config.scale_input else 1.0
        self.subsampling = Subsampling(config)
        self.layers = nn.ModuleList(ConformerBlock(config) for _ in range(config.n_layers))

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(b, frames, n_mels), lengths (b,) in frames -> (b, n, d_model).

        Row i has ``tokens_of(lengths[i])`` tokens; what stands behind them means nothing and may depend on the
        other rows. No lengths: every frame is valid.
        """
        self._check(features, lengths)
        if lengths is not None and bool((lengths >= features.shape[1]).all()):
            lengths = None  # nothing to mask
        x = self.subsampling(features.to(self.subsampling.linear.weight.dtype), lengths) * self.input_scale
        valid = None if lengths is None else valid_frames(self.tokens_of(lengths), x.shape[1], x.device)
        positions = relative_positions(x)
        for layer in self.layers:
            x = layer(x, positions, valid)
        return x

    def tokens_of(self, frames: int | Tensor) -> int | Tensor:
        """Tokens of so many frames: each of the strided convolutions makes ceil(n / 2) of n."""
        return strided(frames, self.config.subsampling)

    def _check(self, features: Tensor, lengths: Tensor | None) -> None:
        shape, n_mels = tuple(features.shape), self.config.n_mels
        if features.ndim != 3 or shape[1] < 1 or shape[2] != n_mels:
            raise ValueError(f"features are {shape}; they must be (batch, frames, {n_mels}) with at least one frame")
        if lengths is not None and lengths.shape != shape[:1]:
            raise ValueError(f"lengths are {tuple(lengths.shape)}; {shape[0]} rows need ({shape[0]},)")


def strided(n: int | Tensor, factor: int) -> int | Tensor:
    """Length after log2(factor) convolutions with kernel 3, stride 2, padding 1."""
    for _ in range(factor.bit_length() - 1):
        n = (n - 1) // 2 + 1
    return n


def valid_frames(lengths: Tensor, n: int, device: torch.device) -> Tensor:
    """(b, n) bool: True in front of each row's length."""
    return torch.arange(n, device=device) < lengths.to(device)[:, None]


class Subsampling(nn.Module):
    """(b, frames, n_mels) -> (b, n, d): time and frequency are halved log2(subsampling) times.

    ``layers`` counts the activations as modules too, so that the convolutions are 0, 2, 3, 5, 6 ... as published.
    """

    def __init__(self, config: SoundConfig) -> None:
        super().__init__()
        c, self.factor = config.channels, config.subsampling
        self.layers = nn.ModuleList([nn.Conv2d(1, c, 3, stride=2, padding=1), nn.ReLU(inplace=True)])
        for _ in range(config.subsampling.bit_length() - 2):
            self.layers.append(nn.Conv2d(c, c, 3, stride=2, padding=1, groups=c))
            self.layers.append(nn.Conv2d(c, c, 1))
            self.layers.append(nn.ReLU(inplace=True))
        self.linear = nn.Linear(c * strided(config.n_mels, config.subsampling), config.d_model)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        b, frames = features.shape[:2]
        n, size = strided(frames, self.factor), max(1, SLICE // b)
        if n <= size or features.device.type != "cpu" or torch.is_grad_enabled():
            return self.whole(features, lengths)
        return torch.cat([self._slice(features, lengths, start, size) for start in range(0, n, size)], dim=1)

    def whole(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """All at once."""
        x = features.unsqueeze(1)
        x = self._mask(x, lengths)
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.Conv2d):
                if lengths is not None and layer.stride == (2, 2):
                    lengths = strided(lengths, 2)
                x = self._mask(x, lengths)
        return self.linear(rearrange(x, "b c n k -> b n (c k)"))

    def _slice(self, features: Tensor, lengths: Tensor | None, start: int, size: int) -> Tensor:
        """Tokens from ``start`` on. A token sees fewer than ``factor`` frames to either side of its first."""
        before = min(start, 1)  # a token in front, which the slice's edge would falsify, is dropped
        first = self.factor * (start - before)
        part = features[:, first : self.factor * (start + size)]
        own = None if lengths is None else (lengths - first).clamp(0, part.shape[1])
        return self.whole(part, own)[:, before:]

    @staticmethod
    def _mask(x: Tensor, lengths: Tensor | None) -> Tensor:
        if lengths is None:
            return x
        return x * valid_frames(lengths, x.shape[2], x.device)[:, None, :, None]


class ConformerBlock(nn.Module):
    """(b, n, d) -> (b, n, d): attention and convolution between two halves of a feed-forward network."""

    def __init__(self, config: SoundConfig) -> None:
        super().__init__()
        d, eps = config.d_model, config.norm_eps
        self.norm_feed_forward1 = nn.LayerNorm(d, eps)
        self.feed_forward1 = FeedForward(config)
        self.norm_self_att = nn.LayerNorm(d, eps)
        self.self_attn = RelativeAttention(config)
        self.norm_conv = nn.LayerNorm(d, eps)
        self.conv = ConvolutionModule(config)
        self.norm_feed_forward2 = nn.LayerNorm(d, eps)
        self.feed_forward2 = FeedForward(config)
        self.norm_out = nn.LayerNorm(d, eps)

    def forward(self, x: Tensor, positions: Tensor, valid: Tensor | None) -> Tensor:
        x = x + 0.5 * self.feed_forward1(self.norm_feed_forward1(x))
        x = x + self.self_attn(self.norm_self_att(x), positions, valid)
        x = x + self.conv(self.norm_conv(x), valid)
        x = x + 0.5 * self.feed_forward2(self.norm_feed_forward2(x))
        return self.norm_out(x)


class FeedForward(nn.Module):
    def __init__(self, config: SoundConfig) -> None:
        super().__init__()
        self.linear1 = nn.Linear(config.d_model, config.d_ff, bias=config.bias)
        self.linear2 = nn.Linear(config.d_ff, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.silu(self.linear1(x)))


class RelativeAttention(nn.Module):
    """score(i, j) = ((q_i + u) k_j + (q_i + v) r_{i-j}) / sqrt(p), every token sees every valid one.

    The second term enters ``scaled_dot_product_attention`` as an additive mask. It is (b, H, n, n): an hour in one
    piece does not fit, which is why long recordings are cut into clips.
    """

    def __init__(self, config: SoundConfig) -> None:
        super().__init__()
        d, self.n_heads = config.d_model, config.n_heads
        self.q_proj = nn.Linear(d, d, bias=config.bias)
        self.k_proj = nn.Linear(d, d, bias=config.bias)
        self.v_proj = nn.Linear(d, d, bias=config.bias)
        self.o_proj = nn.Linear(d, d, bias=config.bias)
        self.relative_k_proj = nn.Linear(d, d, bias=False)
        self.bias_u = nn.Parameter(torch.zeros(self.n_heads, d // self.n_heads))
        self.bias_v = nn.Parameter(torch.zeros(self.n_heads, d // self.n_heads))

    def forward(self, x: Tensor, positions: Tensor, valid: Tensor | None) -> Tensor:
        """x (b, n, d), positions (2n - 1, d), valid (b, n)"""
        q, k, v = (
            rearrange(project(x), "b n (H p) -> b H n p", H=self.n_heads)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        r = rearrange(self.relative_k_proj(positions), "m (H p) -> H p m", H=self.n_heads)
        u, w = (bias.to(q.dtype)[:, None] for bias in (self.bias_u, self.bias_v))
        scores = relative_shift((q + w) @ r) * q.shape[-1] ** -0.5
        if valid is not None:
            # A finite number: a padded query sees nothing, and would be NaN at -inf.
            seen = valid[:, None, :, None] & valid[:, None, None, :]
            scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        mixed = F.scaled_dot_product_attention(q + u, k, v, attn_mask=scores)
        return self.o_proj(rearrange(mixed, "b H n p -> b n (H p)"))


def relative_positions(x: Tensor) -> Tensor:
    """(2n - 1, d) sinusoids of the distances n-1 ... -(n-1), sine and cosine of a frequency side by side."""
    n, d = x.shape[1:]
    steps = torch.arange(0, d, 2, device=x.device, dtype=torch.float32)
    distances = torch.arange(n - 1, -n, -1, device=x.device, dtype=torch.float32)
    angles = distances[:, None] * POSITION_BASE ** (-steps / d)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :d].to(x.dtype)


def relative_shift(scores: Tensor) -> Tensor:
    """(..., n, 2n - 1), columns by distance n-1 ... -(n-1) -> (..., n, n), columns by key.

    out[i, j] = scores[i, n - 1 - i + j]. With one column in front a row is 2n long; read in rows of 2n - 1 from the
    n-th number on, each row starts one column earlier than the one above it.
    """
    n = scores.shape[-2]
    flat = F.pad(scores, (1, 0)).flatten(-2)[..., n:]
    return flat.unflatten(-1, (n, 2 * n - 1))[..., :n]


class ConvolutionModule(nn.Module):
    """(b, n, d) -> (b, n, d): pointwise, GLU, depthwise over time, batch norm, SiLU, pointwise."""

    def __init__(self, config: SoundConfig) -> None:
        super().__init__()
        d, bias, kernel = config.d_model, config.conv_bias, config.conv_kernel
        self.pointwise_conv1 = nn.Conv1d(d, 2 * d, 1, bias=bias)
        self.depthwise_conv = nn.Conv1d(d, d, kernel, padding=kernel // 2, groups=d, bias=bias)
        self.norm = MaskedBatchNorm(d)
        self.pointwise_conv2 = nn.Conv1d(d, d, 1, bias=bias)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        x = F.glu(_pointwise(x, self.pointwise_conv1), dim=-1)
        if valid is not None:
            x = x.masked_fill(~valid[..., None], 0.0)
        x = F.silu(self.norm(self.depthwise_conv(x.transpose(1, 2)), valid))
        return _pointwise(x.transpose(1, 2), self.pointwise_conv2)


def _pointwise(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """(b, n, d_in) -> (b, n, d_out): a convolution of one step is one matrix."""
    return F.linear(x, conv.weight[..., 0], conv.bias)


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm whose statistics in training are those of the valid frames alone, however much padding there is.

    A single valid frame has no variance; then the running statistics serve, and stay as they are.
    """

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x (b, d, n), valid (b, n) -> (b, d, n); in training zero at padding"""
        if not self.training:
            return super().forward(x)
        frames = rearrange(x, "b d n -> (b n) d")
        chosen = frames if valid is None else frames[valid.flatten()]
        if chosen.shape[0] < 2:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        normed = super().forward(chosen)
        if valid is not None:
            normed = torch.zeros_like(frames, dtype=normed.dtype).masked_scatter(valid.flatten()[:, None], normed)
        return rearrange(normed, "(b n) d -> b d n", b=x.shape[0])
