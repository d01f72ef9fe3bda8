"""Codecs between pixels and the latents that a denoiser refines."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.config import CodecConfig


class PixelCodec:
    """Latents that are the pixels themselves, in [-1, 1] instead of [0, 1]: no autoencoder, nothing is lost."""

    channels = 3
    factor = 1  # pixels behind one latent, along a side

    def encode(self, pixels: Tensor) -> Tensor:
        """(b, 3, H, W) in [0, 1] -> (b, 3, H, W) in [-1, 1]"""
        return pixels * 2 - 1

    def decode(self, latents: Tensor) -> Tensor:
        """Inverse of :meth:`encode`; what lies outside [-1, 1] is cut off."""
        return (latents.clamp(-1, 1) + 1) / 2


class Standardise(nn.Module):
    """Mean zero and variance one in every channel of (b, c, h, w): the batch's in training, running ones afterwards."""

    def __init__(self, channels: int, momentum: float = 0.02) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, training=self.training, momentum=self.momentum)


class ConvCodec(nn.Module):
    """A convolutional autoencoder: ``factor`` pixels a side become one latent of ``channels`` numbers.

    Latents have mean zero and variance one in every channel (running statistics of its training), which is what the
    noise of flow matching has. ``factor`` is a power of two; every halving has one strided convolution.
    """

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.channels, self.factor = config.channels, config.factor
        halvings = config.factor.bit_length() - 1
        widths = [config.width * (i + 2) // 2 for i in range(halvings)]  # finest first
        into = zip([3, *widths], widths, strict=False)
        self.down = nn.ModuleList(nn.Conv2d(i, o, 5, stride=2, padding=2) for i, o in into)
        self.to_latents = nn.Conv2d(widths[-1], config.channels, 3, padding=1)
        self.scale = Standardise(config.channels)
        self.from_latents = nn.Conv2d(config.channels, widths[-1], 3, padding=1)
        out = zip(widths[::-1], [*widths[::-1][1:], config.width // 2], strict=True)
        self.up = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in out)
        self.to_pixels = nn.Conv2d(config.width // 2, 3, 3, padding=1)

    def encode(self, pixels: Tensor) -> Tensor:
        """(b, 3, H, W) in [0, 1] -> (b, channels, H / factor, W / factor)"""
        x = (pixels * 2 - 1).to(self.to_latents.weight.dtype)
        for conv in self.down:
            x = F.gelu(conv(x))
        return self.scale(self.to_latents(x))

    def decode(self, latents: Tensor) -> Tensor:
        """(b, channels, h, w) -> (b, 3, h factor, w factor) in [0, 1]"""
        return (self.paint(latents).clamp(-1, 1) + 1) / 2

    def paint(self, latents: Tensor) -> Tensor:
        """Like :meth:`decode`, but in [-1, 1] and not cut off: what training compares."""
        x = F.gelu(self.from_latents(latents.to(self.from_latents.weight.dtype)))
        for conv in self.up:
            x = F.gelu(conv(F.interpolate(x, scale_factor=2.0)))
        return self.to_pixels(x)
