"""Sounds from untrusted files: decoded, made mono at one rate, and turned into the log-mel features of a clip.

    file, bytes, data: address ──> open_sound ──> Waveform(samples (n,), rate) ──> clips ──> [(frames, n_mels), ...]
    array and its rate         ──┘
    a long recording           ──> blocks ──> (n,) at a time, in constant memory ──> log_mel

Everything PyAV decodes is read, the sound track of a video too. Limits are checked from the header where it tells,
and again while decoding. Errors are the project's: the words of decoders never pass through.
"""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from omni.config import SoundConfig
from omni.tokenizers.files import find, open_container, opened

RATE = 16_000  # Hz
HOP = 160  # samples between frames: 10 ms
WINDOW = 400
N_FFT = 512
PREEMPHASIS = 0.97
LOG_FLOOR = 2.0**-24
STD_FLOOR = 1e-5
LEAST_CLIP_SECONDS = 0.1  # shorter clips, and the rest of a longer recording, are filled up with silence

MAX_SECONDS = 24 * 3600
MAX_SECONDS_AT_ONCE = 4 * 3600  # of open_sound, which holds all samples: 0.9 GB at 16 kHz
MIN_RATE, MAX_RATE = 1_000, 384_000
MAX_CHANNELS = 64

# Of the containers FFmpeg knows, those that hold their own sound: a playlist would open other files and addresses.
CONTAINERS = "wav,w64,flac,mp3,ogg,aac,aiff,au,caf,amr,ac3,eac3,ape,wv,tta,mov,matroska,webm,avi,mpegts,mpeg,flv,asf"
_DECLARING = {"wav", "w64", "flac", "aiff", "au", "caf", "mov"}  # their headers tell the length; others' is a guess
_MAX_RATIO = 1000  # of the resampler's whole-number ratio, on which the size of its filter bank depends


class SoundError(ValueError):
    """A sound that cannot be read: one line that names it, what is wrong, and the limit."""


@dataclass(frozen=True)
class Waveform:
    """Mono sound; full scale is -1..1."""

    samples: Tensor  # (n,) float32
    rate: int  # samples a second

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


def open_sound(source: Any, rate: int = RATE, array_rate: int | None = None) -> Waveform:
    """The sound at ``source`` as one waveform of ``rate`` samples a second; channels are averaged.

    ``source`` is a path, bytes or a ``data:`` address of a sound or of a video with a sound track; a
    :class:`Waveform`; or an array or tensor (n,) or (channels, n) of ``array_rate``, floats or integers of full
    scale. Raises :class:`SoundError`.
    """
    _check_rate(rate, "the rate asked for")
    if isinstance(source, Waveform):
        source, array_rate = source.samples, source.rate
    if isinstance(source, (np.ndarray, Tensor)):
        return Waveform(_from_array(source, rate, array_rate), rate)
    media, name = find(source, "sound", SoundError)
    _check_riff(media, name)
    if array_rate is not None:
        raise SoundError(f"{name} has its own sampling rate; array_rate is for arrays")
    return Waveform(torch.cat(list(_decoded(media, name, rate, MAX_SECONDS_AT_ONCE))), rate)


def blocks(source: Any, seconds: float = 30.0, rate: int = RATE) -> Iterator[Tensor]:
    """The sound of a path, bytes or ``data:`` address in pieces (n,) of ``seconds``, the last one shorter.

    Together they are what :func:`open_sound` gives; only one piece is in memory, so a day of sound can be read.
    """
    _check_rate(rate, "the rate asked for")
    if not 0 < seconds <= MAX_SECONDS_AT_ONCE:
        raise ValueError(f"seconds is {seconds}; it must lie above 0 and at most at {MAX_SECONDS_AT_ONCE}")
    media, name = find(source, "sound", SoundError)
    _check_riff(media, name)
    return _regrouped(_decoded(media, name, rate, MAX_SECONDS), max(1, round(seconds * rate)))


# -- features --------------------------------------------------------------------------------------------------------


def log_mel(samples: Any, n_mels: int = 128, rate: int = RATE, last_frame: bool = False) -> Tensor:
    """Samples (n,) -> (n // 160, n_mels) float32: Parakeet's log-mel features, each bin normalised over the frames.

    Pre-emphasis, power spectrum of centred 400-sample Hann windows 160 apart, Slaney's mel filters, ln(x + 2^-24),
    then (x - mean) / (std + 1e-5) with the unbiased std. ``last_frame`` appends the frame behind the last hop, which
    transformers counts and zeroes.
    """
    x = torch.as_tensor(samples)
    if x.ndim != 1 or not x.is_floating_point():
        raise SoundError(f"samples are {tuple(x.shape)} of {x.dtype}; log_mel takes (n,) floats")
    frames = sound_frames(len(x))
    if frames < 1:
        raise SoundError(f"{len(x)} samples make no frame; the least is {HOP}")
    x = x.float()
    x = torch.cat([x[:1], x[1:] - PREEMPHASIS * x[:-1]])
    spectrum = torch.stft(
        x,
        N_FFT,
        HOP,
        WINDOW,
        window=torch.hann_window(WINDOW, periodic=False, device=x.device),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    power = spectrum.abs().square()[:, :frames].T  # (frames, bins)
    mel = torch.log(power @ mel_filters(n_mels, rate).to(x.device) + LOG_FLOOR).double()  # else silence is not zero
    centred = mel - mel.mean(0)
    std = (centred.square().sum(0) / max(frames - 1, 1)).sqrt()  # one frame alone becomes zero
    return F.pad((centred / (std + STD_FLOOR)).float(), (0, 0, 0, int(last_frame)))


@cache
def mel_filters(n_mels: int, rate: int) -> Tensor:
    """(257, n_mels): triangles on Slaney's mel scale from 0 to rate / 2, each of area one."""
    from torchaudio.functional import melscale_fbanks

    return melscale_fbanks(N_FFT // 2 + 1, 0.0, rate / 2, n_mels, rate, norm="slaney", mel_scale="slaney")


def clips(samples: Any, config: SoundConfig) -> list[Tensor]:
    """Log-mel features of each clip of a recording (n,) at the config's rate; every clip is normalised by itself."""
    samples = torch.as_tensor(samples)
    spans = clip_samples(len(samples), config)
    features, start = [], 0
    for span in spans:
        clip = samples[start : start + span]
        clip = F.pad(clip, (0, span - len(clip)))
        features.append(log_mel(clip, config.n_mels, config.sampling_rate, config.last_frame))
        start += span
    return features


# -- counts, before anything is computed -------------------------------------------------------------------------------


def clip_samples(count: int, config: SoundConfig) -> list[int]:
    """Samples of each clip, silence included, that a recording of ``count`` samples is cut into."""
    if count < 1:
        raise SoundError("a sound of no samples has no clips")
    rate = config.sampling_rate
    size = round(config.clip_seconds * rate) or count
    least = round(LEAST_CLIP_SECONDS * rate)
    full, rest = divmod(count, size)
    return [max(size, least)] * full + [max(rest, least)] * (rest > 0)


def sound_frames(count: int, last_frame: bool = False) -> int:
    """Frames of ``count`` samples."""
    return count // HOP + int(last_frame)


def sound_tokens(count: int, config: SoundConfig) -> int:
    """Tokens of a recording of ``count`` samples, all clips together: ceil(frames / subsampling) of each."""
    frames = (sound_frames(span, config.last_frame) for span in clip_samples(count, config))
    return sum(-(-n // config.subsampling) for n in frames)


# -- decoding --------------------------------------------------------------------------------------------------------


def _decoded(media: Path | bytes, name: str, rate: int, limit: int) -> Iterator[Tensor]:
    """Mono pieces (n,) at ``rate``, of about a second."""
    with _only_sound_errors(name), open_container(media, CONTAINERS) as container:
        stream = _track(container, name)
        declared = _declared_seconds(container, stream)
        _check_seconds(declared, limit, name)
        resampler, heard, found = None, 0, 0
        for frame in container.decode(stream):
            if resampler is None:
                found = frame.sample_rate
                _check_rate(found, name)
                resampler = _Resampler(found, rate)
            if frame.sample_rate != found:
                raise SoundError(f"{name} changes its sampling rate from {found} to {frame.sample_rate}")
            heard += frame.samples
            _check_seconds(heard / found, limit, name)
            yield from resampler.push(_mono(frame, name))
        if not heard:
            raise SoundError(f"{name} holds no sound")
        if heard / found < 0.98 * declared - 0.2:
            raise SoundError(f"{name} is cut short: {heard / found:.1f} of its {declared:.1f} seconds are there")
        yield from resampler.push(torch.empty(0), last=True)


def _track(container: Any, name: str) -> Any:
    streams = container.streams.audio
    if not streams:
        raise SoundError(f"{name} has no sound track")
    if streams[0].codec_context is None:
        raise SoundError(f"{name} has sound in a format that no installed decoder reads")
    return streams[0]


def _declared_seconds(container: Any, stream: Any) -> float:
    """What the header promises; 0 where it does not."""
    if not _DECLARING & set(container.format.name.split(",")) or stream.duration is None:
        return 0.0
    return max(0.0, float(stream.duration * stream.time_base))


def _mono(frame: Any, name: str) -> Tensor:
    """(n,) float32 of a decoded frame, whose samples stand channel by channel or interleaved."""
    channels = frame.layout.nb_channels
    if not 1 <= channels <= MAX_CHANNELS:
        raise SoundError(f"{name} has {channels} channels; it must have 1 to {MAX_CHANNELS}")
    data = frame.to_ndarray()
    return _averaged(data if frame.format.is_planar else data.reshape(-1, channels).T, name)


def _averaged(data: np.ndarray, name: str) -> Tensor:
    """(channels, n) of any sample type -> (n,) float32, integers brought to -1..1."""
    if data.dtype == np.uint8:
        mean = (data.mean(0, dtype=np.float32) - 128) / 128
    elif data.dtype.kind == "i":
        mean = (data.mean(0, dtype=np.float64) / 2.0 ** (8 * data.dtype.itemsize - 1)).astype(np.float32)
    else:
        mean = data.mean(0, dtype=np.float64).astype(np.float32)
    if not np.isfinite(mean).all():
        raise SoundError(f"{name} has samples that are not finite numbers")
    return torch.from_numpy(mean)


def _from_array(source: np.ndarray | Tensor, rate: int, array_rate: int | None) -> Tensor:
    if array_rate is None:
        raise SoundError("an array has no sampling rate of its own; give array_rate")
    _check_rate(array_rate, "the array")
    data = source
    if isinstance(source, Tensor):
        data = (source.detach().float() if source.is_floating_point() else source).cpu().numpy()
    shape, kind = data.shape, data.dtype
    data = data[None] if data.ndim == 1 else data
    known = kind == np.uint8 or (kind.kind in "if" and kind.itemsize > 1)
    if data.ndim != 2 or not known or not 1 <= len(data) <= MAX_CHANNELS:
        raise SoundError(
            f"an array {shape} of {kind} is not a sound; a sound is (n,) or (channels, n) with at most "
            f"{MAX_CHANNELS} channels, of floats, int16, int32 or uint8"
        )
    if not data.size:
        raise SoundError("the array is empty")
    _check_seconds(data.shape[1] / array_rate, MAX_SECONDS_AT_ONCE, "the array")
    return torch.cat(list(_Resampler(array_rate, rate).push(_averaged(data, "the array"), last=True)))


class _Resampler:
    """torchaudio's windowed sinc over a stream: pieces overlap by the filter's reach, so that no seam is heard.

    Positions repeat after ``orig`` samples in, ``new`` samples out; pieces begin at multiples of them.
    """

    def __init__(self, source: int, target: int) -> None:
        ratio = Fraction(source, target).limit_denominator(_MAX_RATIO)
        self.orig, self.new = ratio.numerator, ratio.denominator
        reach = math.ceil(8 * self.orig / min(self.orig, self.new))  # samples in; the filter has 6 zero crossings
        self.margin = self.orig * (math.ceil(reach / self.orig) + 1)
        self.piece = max(source, 4 * self.margin)
        self.waiting: list[Tensor] = []
        self.known = 0  # leading samples of `waiting` that were resampled before and only give context

    def push(self, samples: Tensor, last: bool = False) -> Iterator[Tensor]:
        """What can be said of the sound so far, the rest if this is the ``last`` of it."""
        self.waiting.append(samples)
        if not last and sum(map(len, self.waiting)) < self.known + self.piece + self.margin:
            return
        held = torch.cat(self.waiting)
        ready = len(held) if last else (len(held) - self.margin) // self.orig * self.orig
        if ready > self.known:
            yield self._resampled(held)[self._out(self.known) : self._out(ready)]
        begin = max(0, ready - self.margin)
        self.waiting, self.known = [held[begin:]], ready - begin

    def _out(self, samples: int) -> int:
        return -(-samples * self.new // self.orig)

    def _resampled(self, held: Tensor) -> Tensor:
        if self.orig == self.new:
            return held
        from torchaudio.functional import resample

        return resample(held, self.orig, self.new)


def _regrouped(pieces: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """The same samples in pieces of ``size``."""
    waiting: list[Tensor] = []
    held = 0
    for piece in pieces:
        waiting.append(piece)
        held += len(piece)
        while held >= size:
            joined = torch.cat(waiting)
            yield joined[:size].clone()
            waiting, held = [joined[size:]], held - size
    if held:
        yield torch.cat(waiting)


# -- checks ----------------------------------------------------------------------------------------------------------


def _check_riff(media: Path | bytes, name: str) -> None:
    """A wav file cut short decodes without complaint; its header tells. 0 and 2^32 - 1 stand for "not known"."""
    with opened(media) as file:
        head, size = file.read(8), file.seek(0, io.SEEK_END)
    if head[:4] != b"RIFF" or len(head) < 8:
        return
    told = int.from_bytes(head[4:], "little") + 8
    if size < 0.98 * told and told < 1 << 32:
        raise SoundError(f"{name} is cut short: {size} of its {told} bytes are there")


def _check_rate(rate: int, name: str) -> None:
    if not isinstance(rate, (int, np.integer)) or not MIN_RATE <= rate <= MAX_RATE:
        raise SoundError(f"the sampling rate of {name} is {rate} Hz; it must lie between {MIN_RATE} and {MAX_RATE}")


def _check_seconds(seconds: float, limit: int, name: str) -> None:
    if seconds > limit:
        hint = "; read it with blocks" if limit < MAX_SECONDS else ""
        raise SoundError(f"{name} is longer than the limit of {limit // 3600} hours{hint}")


@contextmanager
def _only_sound_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (SoundError, MemoryError):
        raise
    except ImportError as error:
        raise SoundError(f"reading sounds needs PyAV and torchaudio; install {error.name or 'them'}") from None
    except Exception as error:
        raise SoundError(f"{name} is not a sound, or it is damaged or cut short and cannot be decoded") from error
