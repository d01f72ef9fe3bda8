"""The published codec of pictures and videos: diffusers' Wan autoencoder, a few frames at a time.

    frames [0, 1]  1, then 4 at a time ──> encoder ──> mean of the posterior, normed ──> a latent frame each
    latents        1 at a time         ──> decoder ──> 1 frame, then 4 at a time

Each frame depends on earlier ones alone, through the last inputs of every convolution. These are kept between calls,
so that a video of any length needs the memory of a few frames. In tiles, only one tile is worked on at a time; overlaps
are blended as diffusers blends them. Source: ``reference`` cosmos3, section 5.1.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omni.tokenizers.latent import open_autoencoder

FRAMES = 4  # of a video behind one latent, but for the first


@dataclass(frozen=True)
class Tiling:
    """Sides in pixels. Tiles overlap by ``size - stride``."""

    size: int = 256
    stride: int = 192

    def __post_init__(self) -> None:
        if not 0 < self.stride <= self.size:
            raise ValueError(f"tiles of {self.size} pixels with a stride of {self.stride} leave gaps")


class WanCodec:
    """Latents are (b, c, T, h, w), pixels (b, 3, frames, H, W) in [0, 1], with frames = 4 (T - 1) + 1."""

    frames = FRAMES

    def __init__(self, vae: Any) -> None:
        """``vae``: an ``AutoencoderKLWan``."""
        self.vae = vae.eval().requires_grad_(False)
        self.channels, self.factor = vae.config.z_dim, vae.config.scale_factor_spatial
        weight = next(vae.parameters())
        shape = (1, -1, 1, 1, 1)
        values = (vae.config.latents_mean, vae.config.latents_std)
        self.mean, self.std = (torch.tensor(v, dtype=weight.dtype, device=weight.device).view(shape) for v in values)

    @classmethod
    def from_folder(
        cls, folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> "WanCodec":
        """The ``vae`` folder of a published checkpoint."""
        return cls(open_autoencoder("autoencoder_kl_wan", "AutoencoderKLWan", folder, device, dtype))

    @staticmethod
    def latent_frames(frames: int) -> int:
        """Latents that a video of ``frames`` becomes."""
        if frames < 1 or frames % FRAMES != 1:
            raise ValueError(f"a video has {frames} frames; the codec takes 1, 5, 9, ...")
        return 1 + frames // FRAMES

    @staticmethod
    def pixel_frames(latents: int) -> int:
        """Frames that so many latents stand for."""
        return 1 + FRAMES * (latents - 1)

    # -- encoding ------------------------------------------------------------------------------------------------------

    def encode(self, pixels: Tensor) -> Tensor:
        """A video (b, 3, frames, H, W), or pictures (b, 3, H, W), in [0, 1] -> latents (b, c, [T,] h, w)."""
        if pixels.dim() == 4:
            return self.encode(pixels[:, :, None])[:, :, 0]
        self.latent_frames(pixels.shape[2])
        return torch.cat(list(self.encode_parts(pixels.split(1, dim=2))), dim=2)

    @torch.no_grad()
    def encode_parts(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """Frames in parts (b, 3, n, H, W) of any n -> latent frames (b, c, 1, h, w) as soon as each can be made."""
        state, held, wanted, seen = self._fresh("encoder"), [], 1, 0
        for part in parts:
            self._check(part)
            held += part.split(1, dim=2)
            while len(held) >= wanted:
                yield self._encode(torch.cat(held[:wanted], dim=2), state)
                seen += wanted
                held, wanted = held[wanted:], FRAMES
        if held or not seen:
            self.latent_frames(seen + len(held))

    def _encode(self, frames: Tensor, state: list) -> Tensor:
        x = _patchify(frames.to(self.mean) * 2 - 1, self.vae.config.patch_size)
        moments = self.vae.quant_conv(self.vae.encoder(x, feat_cache=state, feat_idx=[0]))
        return (moments.chunk(2, dim=1)[0] - self.mean) / self.std

    def _check(self, pixels: Tensor) -> None:
        height, width = pixels.shape[-2:]
        if pixels.dim() != 5 or pixels.shape[1] != 3 or height % self.factor or width % self.factor or not height:
            raise ValueError(
                f"frames are (b, 3, n, H, W) with sides that divide by {self.factor}, not {tuple(pixels.shape)}"
            )

    # -- decoding ------------------------------------------------------------------------------------------------------

    def decode(self, latents: Tensor, tiling: Tiling | None = None) -> Tensor:
        """Inverse of :meth:`encode`."""
        if latents.dim() == 4:
            return self.decode(latents[:, :, None], tiling)[:, :, 0]
        return torch.cat(list(self.decode_parts(latents, tiling)), dim=2)

    @torch.no_grad()
    def decode_parts(self, latents: Tensor, tiling: Tiling | None = None) -> Iterator[Tensor]:
        """Latents (b, c, T, h, w) -> one frame, then four at a time: (b, 3, n, H, W) in [0, 1]."""
        if latents.dim() != 5 or latents.shape[1] != self.channels or 0 in latents.shape:
            raise ValueError(f"latents are (b, {self.channels}, T, h, w), not {tuple(latents.shape)}")
        side, rows, columns = self._tiles(latents.shape[-2:], tiling)
        states = {place: self._fresh("decoder") for place in itertools.product(rows, columns)}
        height, width = (side * self.factor for side in latents.shape[-2:])
        for i, frame in enumerate(latents.split(1, dim=2)):
            z = self.vae.post_quant_conv(frame.to(self.mean) * self.std + self.mean)
            done = {}
            for (top, left), state in states.items():
                part = z[..., top : top + side, left : left + side]
                done[top, left] = self.vae.decoder(part, feat_cache=state, feat_idx=[0], first_chunk=i == 0)
            x = _patchify(self._blend(done, rows, columns, tiling), self.vae.config.patch_size, back=True)
            yield ((x.clamp(-1, 1) + 1) / 2)[..., :height, :width]

    def _tiles(self, size: tuple[int, int], tiling: Tiling | None) -> tuple[int, list[int], list[int]]:
        """Side of a tile in latents, and where tiles start; one tile where no side is larger than it."""
        if tiling is None or max(size) * self.factor <= tiling.size:
            return max(size), [0], [0]
        side, step = tiling.size // self.factor, tiling.stride // self.factor
        if not step:
            raise ValueError(f"tiles with a stride of {tiling.stride} pixels are smaller than a latent, {self.factor}")
        return side, list(range(0, size[0], step)), list(range(0, size[1], step))

    def _blend(
        self, done: dict[tuple[int, int], Tensor], rows: list[int], columns: list[int], tiling: Tiling | None
    ) -> Tensor:
        """The tiles' outputs in one; each crosses over from the one above and the one to the left."""
        if len(done) == 1:
            return done[0, 0]
        patch = self.vae.config.patch_size or 1
        step, overlap = tiling.stride // patch, (tiling.size - tiling.stride) // patch
        bands = []
        for i, top in enumerate(rows):
            band = []
            for j, left in enumerate(columns):
                if i > 0:
                    done[top, left] = _cross(done[rows[i - 1], left], done[top, left], overlap, dim=3)
                if j > 0:
                    done[top, left] = _cross(done[top, columns[j - 1]], done[top, left], overlap, dim=4)
                band.append(done[top, left][..., :step, :step])
            bands.append(torch.cat(band, dim=4))
        return torch.cat(bands, dim=3)

    def _fresh(self, part: str) -> list:
        """The last inputs of every convolution: none yet."""
        return [None] * self.vae._cached_conv_counts[part]


def _patchify(x: Tensor, size: int | None, back: bool = False) -> Tensor:
    from diffusers.models.autoencoders import autoencoder_kl_wan as theirs

    if size is None:
        return x
    return (theirs.unpatchify if back else theirs.patchify)(x, patch_size=size)


def _cross(before: Tensor, after: Tensor, overlap: int, dim: int) -> Tensor:
    """``after`` with its first ``overlap`` rows or columns fading in over the last ones of ``before``."""
    n = min(overlap, before.shape[dim], after.shape[dim])
    shape = [1] * after.dim()
    shape[dim] = n
    share = (torch.arange(n, device=after.device, dtype=after.dtype) / max(n, 1)).view(shape)
    end = before.narrow(dim, before.shape[dim] - n, n)
    start, rest = after.narrow(dim, 0, n), after.narrow(dim, n, after.shape[dim] - n)
    return torch.cat([end * (1 - share) + start * share, rest], dim=dim)


__all__ = ["FRAMES", "Tiling", "WanCodec"]
