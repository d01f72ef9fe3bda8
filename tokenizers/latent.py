"""Codecs between pixels and the latents that a denoiser refines."""

from torch import Tensor


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
