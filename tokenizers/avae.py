"""The published codec of sound: diffusers' Cosmos 3 audio autoencoder, long sounds in pieces.

    samples (b, channels, n), 48 kHz ──> loudest sample to 0.95, filled up to whole latents ──> mean of the posterior
    latents (b, c, T), 25 a second ──> samples (b, channels, 1920 T) in [-1, 1]

The decoder is convolutions alone: a piece with enough latents to either side decodes as it does within the whole.
Source: ``reference`` cosmos3, section 5.2.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omni.tokenizers.latent import open_autoencoder

PIECE = 250  # latents that are decoded at once, 10 seconds
REACH = 3 * (1 + 3 + 9)  # samples to either side that a stage's dilated convolutions see
ENDS = 3  # of the first and the last convolution


class SoundCodec:
    def __init__(self, vae: Any) -> None:
        """``vae``: a ``Cosmos3AVAEAudioTokenizer``."""
        self.vae = vae.eval().requires_grad_(False)
        c = vae.config
        self.rate, self.channels, self.sides = c.sampling_rate, c.vocoder_input_dim, c.dec_out_channels
        self.hop = c.hop_size or math.prod(c.dec_strides)
        self.halo = _reach(list(reversed(c.dec_strides)))

    @classmethod
    def from_folder(
        cls, folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> "SoundCodec":
        """The ``sound_tokenizer`` folder of a published checkpoint."""
        name = "Cosmos3AVAEAudioTokenizer"
        return cls(open_autoencoder("autoencoder_cosmos3_audio", name, folder, device, dtype))

    @property
    def latents_a_second(self) -> float:
        return self.rate / self.hop

    def latents_of(self, samples: int) -> int:
        """Latents of so many samples a side; a started one counts."""
        if samples < 1:
            raise ValueError(f"a sound has {samples} samples; it must have one at least")
        return -(-samples // self.hop)

    @torch.no_grad()
    def encode(self, samples: Tensor) -> Tensor:
        """(b, channels, n) in [-1, 1] at ``rate`` -> (b, c, T). Each sound is brought to its own loudness."""
        if samples.dim() != 3 or samples.shape[1] != self.sides:
            raise ValueError(f"samples are (b, {self.sides}, n) at {self.rate} a second, not {tuple(samples.shape)}")
        if self.vae.encoder is None:
            raise ValueError("this codec of sound has no encoder: its weights are those of the decoder alone")
        self.latents_of(samples.shape[2])
        return torch.cat([self.vae.encode(row[None]).latent_dist.mode() for row in samples])

    def decode(self, latents: Tensor) -> Tensor:
        """(b, c, T) -> (b, channels, hop T)"""
        return torch.cat(list(self.decode_parts(latents)), dim=2)

    @torch.no_grad()
    def decode_parts(self, latents: Tensor, piece: int = PIECE) -> Iterator[Tensor]:
        """The same, ``piece`` latents after the other."""
        if latents.dim() != 3 or latents.shape[1] != self.channels or not latents.shape[2]:
            raise ValueError(f"sound latents are (b, {self.channels}, T), not {tuple(latents.shape)}")
        if piece < 1:
            raise ValueError(f"pieces of {piece} latents; one at least is decoded at once")
        latents = latents.to(next(self.vae.decoder.parameters()))
        for start in range(0, latents.shape[2], piece):
            first, stop = max(start - self.halo, 0), min(start + piece, latents.shape[2])
            heard = self.vae.decode(latents[..., first : stop + self.halo])
            yield heard[..., (start - first) * self.hop : (stop - first) * self.hop]


def _reach(strides: list[int]) -> int:
    """Latents to either side that a sample depends on: what each stage sees, in the latents' measure, rounded up."""
    total, scale = float(ENDS), 1
    for stride in strides:
        total += 1 / scale  # the transposed convolution, two strides wide
        scale *= stride
        total += REACH / scale
    return math.ceil(total + ENDS / scale)


__all__ = ["SoundCodec"]
