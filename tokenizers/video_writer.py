"""Videos written: frames and sound, taken one at a time, to an H.264 mp4.

frames (H, W, 3) uint8 (+ sound) ──> write_video ──> a file beside, renamed when it is whole
"""

import importlib.util
import json
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from omni.tokenizers.files import short
from omni.tokenizers.image import MAX_PIXELS
from omni.tokenizers.video import VideoError

_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    fps: float,
    sound: np.ndarray | None = None,
    rate: int = 16000,
    quality: int = 18,
    settings: dict[str, Any] | None = None,
) -> None:
    """H.264 mp4 of ``frames`` (H, W, 3) uint8, taken one at a time; ``sound`` (samples,) or (1 or 2, samples) in -1..1.

    ``quality`` is x264's constant rate factor: 0 lossless, 18 hardly to be told from the original, 51 worst. A size
    with an odd side is kept by not halving the colours, which fewer players read.
    """
    if not 0 < fps <= 1000:
        raise VideoError(f"fps is {fps}; it must lie above 0 and at most at 1000")
    frames = iter(frames)
    first = next(frames, None)
    if importlib.util.find_spec("av") is None:
        raise VideoError("writing videos needs PyAV; install av")
    if first is None:
        raise VideoError("a video of no frames cannot be written")
    _check_frame(first, np.shape(first))
    samples = None if sound is None else _checked_sound(sound, rate)
    path = Path(path).absolute()
    beside = path.with_name(path.name + ".part")
    try:
        _encode(beside, first, frames, Fraction(fps).limit_denominator(1001), samples, rate, quality, settings)
        os.replace(beside, path)
    except OSError as error:
        reason = getattr(error, "strerror", None) or "the encoder failed"
        raise VideoError(f"{short(str(path))} cannot be written: {reason}") from None
    finally:
        beside.unlink(missing_ok=True)


def _encode(
    path: Path,
    first: np.ndarray,
    rest: Iterator[np.ndarray],
    fps: Fraction,
    samples: np.ndarray | None,
    rate: int,
    quality: int,
    settings: dict[str, Any] | None,
) -> None:
    import av

    height, width = first.shape[:2]
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as out:
        if settings:
            out.metadata["comment"] = json.dumps(settings, ensure_ascii=False)
        stream = out.add_stream("libx264", rate=fps, options={"crf": str(quality)})
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p" if height % 2 == width % 2 == 0 else "yuv444p"
        stream.codec_context.colorspace = int(av.video.reformatter.Colorspace.SMPTE170M)
        track = None
        if samples is not None:
            track = out.add_stream("aac", rate=rate, layout="mono" if len(samples) == 1 else "stereo")
        said = 0  # samples written so far
        for number, frame in enumerate(_chained(first, rest)):
            _check_frame(frame, first.shape)
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")
            picture.pts, picture.time_base = number, 1 / fps
            out.mux(stream.encode(picture))
            if track is not None:
                said = _say(out, track, samples, rate, said, int((number + 1) / fps * rate))
        out.mux(stream.encode(None))
        if track is not None:
            _say(out, track, samples, rate, said, samples.shape[1], last=True)
            out.mux(track.encode(None))


def _say(out: Any, track: Any, samples: np.ndarray, rate: int, said: int, until: int, last: bool = False) -> int:
    """Encode samples from ``said`` on, in whole blocks unless ``last``, so that sound lies beside its pictures."""
    import av

    block = 1024  # samples of an AAC frame
    until = min(until, samples.shape[1])
    while said < until and (last or until - said >= block):
        part = np.ascontiguousarray(samples[:, said : min(said + block, until)])
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=track.layout.name)
        frame.sample_rate, frame.pts, frame.time_base = rate, said, Fraction(1, rate)
        out.mux(track.encode(frame))
        said += part.shape[1]
    return said


def _chained(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from rest


def _check_frame(frame: Any, shape: tuple[int, ...]) -> None:
    whole = isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
    if not whole or not frame.size or frame.shape != shape:
        found = f"{np.shape(frame)} of {getattr(frame, 'dtype', type(frame).__name__)}"
        raise VideoError(f"a frame is {found}; all frames must be (H, W, 3) of uint8, of one size")
    if shape[0] * shape[1] > MAX_PIXELS:
        raise VideoError(f"a frame measures {shape[1]} x {shape[0]} pixels; the limit is {MAX_PIXELS}")


def _checked_sound(sound: np.ndarray, rate: int) -> np.ndarray:
    samples = np.asarray(sound, np.float32)
    samples = samples[None] if samples.ndim == 1 else samples
    if samples.ndim != 2 or samples.shape[0] not in (1, 2) or not samples.shape[1]:
        raise VideoError(f"sound is {np.shape(sound)}; it must be (samples,) or (1 or 2, samples)")
    if not np.isfinite(samples).all():
        raise VideoError("the sound has values that are not numbers")
    if rate not in _AAC_RATES:
        raise VideoError(f"rate is {rate}; AAC has {', '.join(map(str, _AAC_RATES))}")
    return samples.clip(-1, 1)
