"""A codec of sound for small models: principal components of log-mel patches, and Griffin-Lim back to samples.

    samples (b, 1, n), 16 kHz ──> |STFT| ──> mel bands, log ──> 4 columns a patch ──> components (b, 32, T), 25 a second
    components ──> patches ──> mel bands ──> least-squares magnitudes ──> phases by Griffin and Lim ──> (b, 1, 640 T)

Linear between log-mel and latents and fitted in closed form (:meth:`MelCodec.fit`), as the codec of pictures: what the
sounds of the fit never held, such as other pitches, is not kept. Lost are also the phase, what lies between two bands,
and all that is more than 60 dB below full scale. Loudness is kept.

Source of the phases: Perraudin, Balazs and Sondergaard 2013, "A fast Griffin-Lim algorithm", as in torchaudio. They
start from zero, not from noise, so that the same latents always sound the same.
"""

from functools import cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from omni.config_latents import MelConfig

FLOOR = 1e-3  # added to magnitudes, in which a sine of full scale is about one: -60 dB
LOUDEST = 3.0  # logarithm of a band's magnitude, above what any sound within full scale reaches
ROUNDS, MOMENTUM = 64, 0.99  # of Griffin-Lim


class MelCodec(nn.Module):
    sides = 1  # mono

    def __init__(self, config: MelConfig) -> None:
        """Buffers hold the components; until they are fitted or loaded, latents are the first log-mel values.

        Raises ValueError where the window is too short to tell the bands apart.
        """
        super().__init__()
        self.config = config
        self.rate, self.channels, self.hop = config.rate, config.channels, config.hop
        bands, _ = _filters(config)
        if not bands.amax(0).all():
            raise ValueError(
                f"MelConfig.window is {config.window} samples, too short for {config.bands} bands at {config.rate} Hz: "
                f"{int((bands.amax(0) == 0).sum())} of them hold no frequency"
            )
        size = config.bands * config.columns
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("basis", torch.eye(config.channels, size))
        self.register_buffer("scale", torch.ones(config.channels))

    @property
    def latents_a_second(self) -> float:
        return self.rate / self.hop

    def latents_of(self, samples: int) -> int:
        """Latents of so many samples; a started one counts."""
        if samples < 1:
            raise ValueError(f"a sound has {samples} samples; it must have one at least")
        return -(-samples // self.hop)

    @torch.no_grad()
    def encode(self, samples: Tensor) -> Tensor:
        """(b, 1, n) in [-1, 1] at ``rate`` -> (b, channels, T)"""
        latents = (self._patches(samples) - self.mean.float()) @ self.basis.float().T / self.scale.float()
        return rearrange(latents, "b t c -> b c t")

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(b, channels, T) -> (b, 1, hop T) float32 in [-1, 1], each sound as it would be alone."""
        if latents.dim() != 3 or latents.shape[1] != self.channels or not latents.shape[2]:
            raise ValueError(f"sound latents are (b, {self.channels}, T), not {tuple(latents.shape)}")
        from torchaudio.functional import griffinlim

        c = self.config
        scaled = rearrange(latents.float(), "b c t -> b t c") * self.scale.float()
        patches = scaled @ self.basis.float() + self.mean.float()
        columns = rearrange(patches, "b t (k m) -> b (t k) m", k=c.columns)
        loudness = (columns.clamp(max=LOUDEST).exp() - FLOOR).clamp(min=0)
        _, inverse = _filters(c)
        magnitudes = (loudness @ inverse.to(loudness.device)).clamp(min=0) * (c.window / 4)
        magnitudes = torch.cat([magnitudes, magnitudes[:, -1:]], dim=1)  # the column at the last sample's end
        heard = griffinlim(
            magnitudes.mT,
            window=_window(c).to(latents.device),
            n_fft=c.window,
            hop_length=c.step,
            win_length=c.window,
            power=1.0,
            n_iter=ROUNDS,
            momentum=MOMENTUM,
            length=latents.shape[2] * self.hop,
            rand_init=False,
        )
        return heard.clamp(-1, 1)[:, None]

    @torch.no_grad()
    def fit(self, samples: Tensor) -> None:
        """Set the components from sounds (b, 1, n); latents then have variance one on average.

        They are divided by the square root of their spread, half way between log-mel values and whitening.
        """
        patches = self._patches(samples).flatten(0, 1).double()
        if len(patches) < 2:
            raise ValueError(f"components are fitted on two latents at least, not on {len(patches)}")
        mean = patches.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
        spread = values.flip(0)[: self.channels].clamp(min=1e-12).sqrt()
        scale = spread.sqrt() * spread.mean().sqrt()  # variances are spread / mean spread
        for name, value in {"mean": mean, "basis": vectors.flip(1)[:, : self.channels].T, "scale": scale}.items():
            getattr(self, name).copy_(value)

    def _patches(self, samples: Tensor) -> Tensor:
        """(b, 1, n) -> (b, T, columns bands): logarithms of the magnitudes in mel bands, filled up with silence."""
        if samples.dim() != 3 or samples.shape[1] != self.sides or not samples.is_floating_point():
            raise ValueError(
                f"samples are (b, 1, n) floats at {self.rate} a second, not {tuple(samples.shape)} {samples.dtype}"
            )
        c, count = self.config, samples.shape[2]
        total = self.latents_of(count) * self.hop
        spectrum = torch.stft(
            F.pad(samples[:, 0].float(), (0, total - count)),
            n_fft=c.window,
            hop_length=c.step,
            window=_window(c).to(samples.device),
            pad_mode="constant",
            return_complex=True,
        )
        bands, _ = _filters(c)
        magnitudes = spectrum.abs().mT[:, : total // c.step] / (c.window / 4)  # a Hann window sums to half its length
        return rearrange((magnitudes @ bands.to(samples.device) + FLOOR).log(), "b (t k) m -> b t (k m)", k=c.columns)


@cache
def _filters(config: MelConfig) -> tuple[Tensor, Tensor]:
    """(bins, bands): triangles of height one on Slaney's mel scale; and their pseudo-inverse (bands, bins)."""
    from torchaudio.functional import melscale_fbanks

    with torch.device("cpu"):
        bands = melscale_fbanks(config.window // 2 + 1, 0.0, config.rate / 2, config.bands, config.rate, None, "slaney")
        return bands, torch.linalg.pinv(bands.double()).float()


@cache
def _window(config: MelConfig) -> Tensor:
    return torch.hann_window(config.window, device="cpu")
