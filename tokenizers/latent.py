"""Codecs between pixels and the latents that a denoiser refines."""

import importlib
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from omni.config import CodecConfig

PART = 16  # frames that are decoded at once


class PixelCodec:
    """Latents that are the pixels themselves, in [-1, 1] instead of [0, 1]: no autoencoder, nothing is lost."""

    channels = 3
    factor = 1  # pixels behind one latent, along a side
    frames = 1  # of a video behind one latent

    @staticmethod
    def latent_frames(frames: int) -> int:
        """Latents that a video of ``frames`` becomes."""
        return frames

    @staticmethod
    def pixel_frames(latents: int) -> int:
        """Frames that so many latents stand for."""
        return latents

    def encode(self, pixels: Tensor) -> Tensor:
        """Pictures (b, 3, H, W), or videos (b, 3, T, H, W), in [0, 1] -> the same shape in [-1, 1]"""
        return pixels * 2 - 1

    def decode(self, latents: Tensor) -> Tensor:
        """Inverse of :meth:`encode`; what lies outside [-1, 1] is cut off."""
        return (latents.clamp(-1, 1) + 1) / 2

    def encode_parts(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """Frames in parts (b, 3, n, H, W) -> their latents, part by part."""
        return map(self.encode, parts)

    def decode_parts(self, latents: Tensor, tiling: None = None) -> Iterator[Tensor]:
        """Inverse of :meth:`encode_parts`. There are no tiles."""
        return map(self.decode, latents.split(PART, dim=2))


class PatchCodec(nn.Module):
    """Principal components of square patches: ``factor`` x ``factor`` pixels become ``channels`` numbers.

    Linear, fitted in closed form (:meth:`fit`) and nearly lossless on pictures with few kinds of edges. Components are
    divided by the square root of their spread: half way between pixels, where the fine ones would drown in the noise of
    flow matching, and whitening, where they would count as much as the coarse ones.

    Videos are encoded frame by frame; with ``motion`` each frame behind the first as what it changes, times ``motion``:
    where nothing moves the latents are zero, and a generator has nothing to copy.
    """

    frames = 1  # of a video behind one latent
    latent_frames = staticmethod(PixelCodec.latent_frames)
    pixel_frames = staticmethod(PixelCodec.pixel_frames)

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.channels, self.factor, self.motion = config.channels, config.factor, config.motion
        size = 3 * config.factor**2
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("basis", torch.eye(config.channels, size))
        self.register_buffer("scale", torch.ones(config.channels))

    def encode(self, pixels: Tensor) -> Tensor:
        """(b, 3, [T,] H, W) in [0, 1] -> (b, channels, [T,] H / factor, W / factor)"""
        if pixels.dim() == 5:
            return torch.cat(list(self.encode_parts([pixels])), dim=2)
        latents = (self._patches(pixels) - self.mean) @ self.basis.T / self.scale
        return rearrange(latents, "b h w c -> b c h w")

    def decode(self, latents: Tensor) -> Tensor:
        """(b, channels, [T,] h, w) -> (b, 3, [T,] h factor, w factor) in [0, 1]"""
        if latents.dim() == 5:
            return torch.cat(list(self.decode_parts(latents)), dim=2)
        patches = (rearrange(latents.to(self.mean.dtype), "b c h w -> b h w c") * self.scale) @ self.basis + self.mean
        f = self.factor
        return ((rearrange(patches, "b h w (y x c) -> b c (h y) (w x)", y=f, x=f) + 1) / 2).clamp(0, 1)

    def encode_parts(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """Frames of one video in parts (b, 3, n, H, W) of any n -> their latents, part by part."""
        first = None
        for part in parts:
            latents = _unframed(self.encode(_framed(part)), len(part))
            begin = latents[:, :, :1] if first is None else latents[:, :, :0]
            first = latents[:, :, :1] if first is None else first
            later = latents[:, :, begin.shape[2] :]
            yield torch.cat([begin, (later - first) * self.motion], dim=2) if self.motion else latents

    def decode_parts(self, latents: Tensor, tiling: None = None) -> Iterator[Tensor]:
        """Latents (b, c, T, h, w) -> a few frames after the other: (b, 3, n, H, W) in [0, 1]. There are no tiles."""
        for i, part in enumerate(latents.split(PART, dim=2)):
            if self.motion:
                later = latents[:, :, :1] + part / self.motion
                part = torch.cat([part[:, :, :1], later[:, :, 1:]], dim=2) if i == 0 else later
            yield _unframed(self.decode(_framed(part)), len(part))

    @torch.no_grad()
    def fit(self, pixels: Tensor) -> None:
        """Set the components from pictures (b, 3, H, W) in [0, 1]; latents then have variance one on average."""
        patches = self._patches(pixels).flatten(0, 2).double()
        mean = patches.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
        spread = values.flip(0)[: self.channels].clamp(min=1e-12).sqrt()
        scale = spread.sqrt()
        scale = scale * (spread / scale).square().mean().sqrt()
        for name, value in {"mean": mean, "basis": vectors.flip(1)[:, : self.channels].T, "scale": scale}.items():
            getattr(self, name).copy_(value)

    def _patches(self, pixels: Tensor) -> Tensor:
        """(b, 3, H, W) in [0, 1] -> (b, h, w, 3 factor^2) in [-1, 1]"""
        f = self.factor
        return rearrange((pixels * 2 - 1).to(self.mean.dtype), "b c (h y) (w x) -> b h w (y x c)", y=f, x=f)


def _framed(videos: Tensor) -> Tensor:
    return rearrange(videos, "b c t h w -> (b t) c h w")


def _unframed(pictures: Tensor, b: int) -> Tensor:
    return rearrange(pictures, "(b t) c h w -> b c t h w", b=b)


def open_autoencoder(
    module: str, name: str, folder: Path, device: torch.device | str, dtype: torch.dtype | None
) -> Any:
    """One of diffusers' autoencoders from its folder of a published checkpoint; float32 unless ``dtype`` is given.

    ``name``: its class, in ``diffusers.models.autoencoders.<module>``. ValueError where either is missing.
    """
    if not (Path(folder) / "config.json").exists():
        raise ValueError(f"{folder} holds no autoencoder: its config.json is missing")
    try:
        kind = getattr(importlib.import_module(f"diffusers.models.autoencoders.{module}"), name)
    except ModuleNotFoundError:
        raise ValueError("the codecs of published generators need diffusers: pip install 'omni[generate]'") from None
    known = {"torch_dtype": dtype or torch.float32, "local_files_only": True, "low_cpu_mem_usage": _has("accelerate")}
    return kind.from_pretrained(folder, **known).to(device)


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
