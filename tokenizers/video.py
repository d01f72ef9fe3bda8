"""Videos from untrusted files: opened, checked, and only the asked frames decoded; and written.

    file, bytes, data: address ──> open_video ──> Video(times, fps, size) ──> plan_frames ──> read ──> (n, H, W, 3)
    GIF, pictures, array       ──┘                                       └──> frame_labels / second_labels ──> text
    frames (+ sound)           ──> write_video ──> H.264 mp4

The times of frames are the container's own, so a variable frame rate is no special case. Opening reads the container
once, without decoding more than one frame; reading seeks to the keyframe before each asked frame. Errors are the
project's: the words of decoders never pass through.
"""

import importlib.util
import io
import math
import os
import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from omni.tokenizers import image as pictures
from omni.tokenizers.sizing import resize

BACKENDS = ("pyav", "decord")
MAX_SECONDS = 24 * 3600
MAX_FRAMES = 24 * 3600 * 60
MAX_PICTURES = 10_000  # of an animation, which can only be decoded from its start
MAX_FILE_BYTES = 64 << 30  # of a file that is read by name; what lies in memory has the limit of pictures
MAX_READ_BYTES = 4 << 30  # of the frames that one call returns

# Of the containers FFmpeg knows, those that hold their own pictures: a playlist would open other files and addresses.
_CONTAINERS = "mov,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,h264,hevc,mpegvideo,ivf,obu,m4v,mjpeg"
_PICTURE_MARKS = (b"GIF8", b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)

Fetch = Callable[[Sequence[int]], Iterator[np.ndarray]]


class VideoError(ValueError):
    """A video that cannot be read or written: one line that names it, what is wrong, and the limit."""


@dataclass(frozen=True, eq=False)
class Video:
    """An opened video; frames are decoded when they are asked for.

    ``times`` are the seconds at which frames are shown, ascending, on the clock that the sound shares. ``size`` is
    (height, width) as shown, after rotation. ``fps`` is the average; ``seconds`` ends with the last frame's showing.
    """

    name: str
    times: np.ndarray = field(repr=False)  # (frame_count,) float64
    fps: float
    seconds: float
    size: tuple[int, int]
    backend: str
    has_sound: bool
    fetch: Fetch = field(repr=False)  # frames of ascending, distinct indices

    @property
    def frame_count(self) -> int:
        return len(self.times)

    def frames(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> Iterator[np.ndarray]:
        """Frames (H, W, 3) uint8 of ascending ``indices``, one at a time: never more than one is in memory."""
        indices = self._checked(indices, size)
        if any(b < a for a, b in pairwise(indices)):
            raise VideoError(f"frames of {self.name} are not asked for in ascending order")
        return self._stream(indices, size)

    def read(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> np.ndarray:
        """Frames (n, H, W, 3) uint8 in the order of ``indices``; ``size`` (H, W) stretches each as it is read."""
        indices = self._checked(indices, size)
        height, width = size or self.size
        if len(indices) * height * width * 3 > MAX_READ_BYTES:
            raise VideoError(
                f"{len(indices)} frames of {height} x {width} pixels of {self.name} are more than the limit of "
                f"{MAX_READ_BYTES >> 30} GiB at once; ask for fewer or smaller ones, or for one after the other"
            )
        out = np.empty((len(indices), height, width, 3), np.uint8)
        order = sorted(range(len(indices)), key=indices.__getitem__)
        for place, frame in zip(order, self._stream([indices[i] for i in order], size), strict=True):
            out[place] = frame
        return out

    def _checked(self, indices: Sequence[int], size: tuple[int, int] | None) -> list[int]:
        if size is not None:
            _check_pixels(*size, "a frame as asked for")
        indices = [int(index) for index in indices]
        for index in indices:
            if not 0 <= index < self.frame_count:
                raise VideoError(f"frame {index} of {self.name}: it has frames 0 to {self.frame_count - 1}")
        return indices

    def _stream(self, indices: list[int], size: tuple[int, int] | None) -> Iterator[np.ndarray]:
        with _only_video_errors(self.name):
            fetched, last, frame = self.fetch(sorted(set(indices))), -1, None
            for index in indices:
                if index != last:
                    frame, last = _resized(next(fetched), size or self.size), index
                yield frame


def open_video(source: Any, fps: float | None = None, backend: str = "pyav") -> Video:
    """The video at ``source``.

    ``source`` is a path, bytes or a ``data:`` address of a video or animated picture; a folder or list of pictures;
    or an array (T, H, W, 3) of uint8. Pictures and arrays need ``fps``, files have their own. ``backend``
    "decord" gives the same frames, but is for files that can be trusted: a damaged one can end the process.
    Raises :class:`VideoError`.
    """
    if backend not in BACKENDS:
        raise VideoError(f"backend is {backend!r}; it must be one of {', '.join(BACKENDS)}")
    if fps is not None and not (0 < fps <= 1000):
        raise VideoError(f"fps is {fps}; it must lie above 0 and at most at 1000")
    if isinstance(source, np.ndarray):
        return _from_array(source, fps)
    if isinstance(source, (list, tuple)):
        return _from_pictures(source, fps, "the list")
    if not isinstance(source, (str, Path, bytes, bytearray, memoryview)):
        raise VideoError(f"a {type(source).__name__} is not a video, a path or bytes")
    path = None if isinstance(source, (bytes, bytearray, memoryview)) else _path(source)
    if path is not None and path.is_dir():
        return _from_pictures(_in_folder(path), fps, pictures._short(str(source)))
    media, name = _media(source, path)
    if fps is not None:
        raise VideoError(f"{name} has its own frame rate; fps is for arrays and pictures")
    with _only_video_errors(name):
        if _is_picture(media):
            return _from_animation(media, name)
        return _from_container(media, name, backend)


# -- which frames ------------------------------------------------------------------------------------------


def plan_frames(
    times: Sequence[float],
    fps: float = 2.0,
    most: int = 128,
    multiple: int = 1,
    start: float | None = None,
    stop: float | None = None,
) -> list[int]:
    """Indices of the frames to look at between ``start`` and ``stop`` seconds: about ``fps``, at most ``most``.

    The published rule of 2 frames a second and at most 128, spread evenly over anything longer, counted as in
    NeMo-RL: int(seconds * fps) frames, no more than there are; down to a ``multiple``, but at least one multiple;
    at evenly spaced moments from the first frame to the last, of each moment the nearest frame (of two equally near
    ones the even). Where fewer frames than ``multiple`` exist, the last ones repeat.
    """
    times = np.asarray(times, np.float64)
    if not (fps > 0 and 1 <= multiple <= most):
        raise ValueError(f"fps {fps}, most {most} and multiple {multiple}: fps must be above 0, most at least multiple")
    if times.ndim != 1 or not len(times) or (np.diff(times) < 0).any():
        raise ValueError("times must be a list of at least one moment, in ascending order")
    first, last = _window(times, start, stop)
    shown = times[first : last + 1]
    interval = (times[-1] - times[0]) / max(len(times) - 1, 1)
    end = times[last + 1] if last + 1 < len(times) else times[-1] + interval
    wanted = int((end - shown[0]) * fps + 1e-6)  # float dust must not cost a frame
    count = min(max(wanted, 1), most, len(shown))
    count = max(count // multiple, 1) * multiple
    if count > len(shown):
        return [first + min(i, len(shown) - 1) for i in range(count)]
    return [first + index for index in _nearest(shown, np.linspace(shown[0], shown[-1], count))]


def uniform_indices(frames: int, count: int, ends: bool = True) -> list[int]:
    """``count`` of ``frames`` indices, evenly: first to last if ``ends``, else the first of each of equal parts."""
    if min(count, frames) < 1:
        raise ValueError(f"{count} of {frames} frames; both must be at least 1")
    if ends:
        return np.linspace(0, frames - 1, count).round().astype(int).tolist()
    if count > frames:
        raise ValueError(f"{count} of {frames} frames; there are not so many")
    return [i * frames // count for i in range(count)]


def sample_count(frames: int, video_fps: float, fps: float = 2.0, least: int = 4, most: int = 768) -> int:
    """How many frames the Qwen3-VL and Cosmos 3 rule takes, for :func:`uniform_indices`."""
    if frames < 1 or not (video_fps > 0 and fps > 0):
        raise ValueError(f"{frames} frames at {video_fps} fps sampled at {fps} fps; all must be above 0")
    return min(max(int(frames / video_fps * fps), least), most, frames)


def plan_uniform(
    times: Sequence[float],
    video_fps: float,
    fps: float = 2.0,
    least: int = 4,
    most: int = 768,
    start: float | None = None,
    stop: float | None = None,
) -> list[int]:
    """Indices of the frames to look at between ``start`` and ``stop`` seconds by the Qwen3-VL and Cosmos 3 rule."""
    first, last = _window(np.asarray(times, np.float64), start, stop)
    shown = last - first + 1
    return [first + i for i in uniform_indices(shown, sample_count(shown, video_fps, fps, least, most))]


# -- how frames are announced ------------------------------------------------------------------------------


def frame_labels(times: Sequence[float], group: int = 1) -> list[str]:
    """The text before each group of frames: ``Frame 1 sampled at 0.00 seconds and frame 2 sampled at 0.50 seconds: ``

    V2 VL has groups of 1, Omni of 2; labels with their pictures are joined by newlines. Frames that repeat the last
    to fill a group are not named.
    """
    times = list(times)
    filled = len(times)
    while filled % group != 1 % group and filled > 1 and times[filled - 1] == times[filled - 2]:
        filled -= 1
    named = [f"rame {i + 1} sampled at {t:.2f} seconds" for i, t in enumerate(times[:filled])]
    return ["F" + " and f".join(named[i : i + group]) + ": " for i in range(0, filled, group)]


def millisecond_times(indices: Sequence[int], fps: float) -> list[float]:
    """Times for :func:`frame_labels` as the published models count them: whole milliseconds a frame, rounded down.

    At 30 fps a frame lasts 33 ms, so frame 30 is labelled 0.99. ``fps`` is the file's, not that of the plan.
    """
    if not 0 < fps <= 1000:
        raise ValueError(f"fps is {fps}; it must lie above 0 and at most at 1000")
    return [index * int(1000 / fps) / 1000 for index in indices]


def second_labels(times: Sequence[float], group: int = 2) -> list[str]:
    """``<0.2 seconds>`` before each group: its first and last frame's mean time (Qwen3-VL 2, Cosmos 3 Edge 1)."""
    times = list(times)
    times += times[-1:] * (-len(times) % group)
    return [f"<{(times[i] + times[i + group - 1]) / 2:.1f} seconds>" for i in range(0, len(times), group)]


# -- writing -----------------------------------------------------------------------------------------------


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    fps: float,
    sound: np.ndarray | None = None,
    rate: int = 16000,
    quality: int = 18,
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
        _encode(beside, first, frames, Fraction(fps).limit_denominator(1001), samples, rate, quality)
        os.replace(beside, path)
    except OSError as error:
        reason = getattr(error, "strerror", None) or "the encoder failed"
        raise VideoError(f"{pictures._short(str(path))} cannot be written: {reason}") from None
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
) -> None:
    import av

    height, width = first.shape[:2]
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as out:
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
    if shape[0] * shape[1] > pictures.MAX_PIXELS:
        raise VideoError(f"a frame measures {shape[1]} x {shape[0]} pixels; the limit is {pictures.MAX_PIXELS}")


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


# -- containers --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Packets:
    """What a container says of its frames: presentation stamps in ticks, ascending, and those that decode alone."""

    stamps: np.ndarray | None  # None: the container has none, or not one for each frame
    keys: list[int]
    count: int


def _from_container(media: Path | bytes, name: str, backend: str) -> Video:
    with _container(media) as container:
        stream = _stream_of(container, name)
        packets = _scan(container, stream, name)
        rate = float(stream.average_rate or stream.base_rate or 25)
        begin = (container.start_time or 0) / 1_000_000
        has_sound = bool(container.streams.audio)
        tick = stream.time_base
    stamped = packets.stamps is not None
    times = packets.stamps * float(tick) - begin if stamped else np.arange(packets.count) / rate
    reader = _PyAV(media, name, packets)
    first = next(reader.fetch([0]))
    fps = _average(times, rate)
    fetch = reader.fetch if backend == "pyav" else _decord(media, name, times + begin, first)
    seconds = float(times[-1] - min(times[0], 0.0)) + 1 / fps
    return Video(name, times, fps, seconds, first.shape[:2], backend, has_sound, fetch)


@contextmanager
def _container(media: Path | bytes) -> Iterator[Any]:
    """An open container. It reads through a file object: a file's name can then not be taken for an address."""
    import av

    with (
        io.BytesIO(media) if isinstance(media, bytes) else media.open("rb") as file,
        av.open(file, options={"format_whitelist": _CONTAINERS}) as container,
    ):
        yield container


def _stream_of(container: Any, name: str) -> Any:
    import av

    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        raise VideoError(f"{name} has no moving pictures" + (", only sound" if container.streams.audio else ""))
    stream = streams[0]
    if stream.codec_context is None:
        raise VideoError(f"{name} has pictures in a format that no installed decoder reads")
    pictures_of = stream.codec_context
    _check_pixels(pictures_of.height, pictures_of.width, name)
    stream.thread_type = "AUTO"
    return stream


def _scan(container: Any, stream: Any, name: str) -> _Packets:
    """Reads the container without decoding."""
    stamps, keys, unstamped, seen = array("q"), [], False, 0
    for packet in container.demux(stream):
        if not packet.size:
            continue
        seen += 1
        if seen > MAX_FRAMES:
            raise VideoError(f"{name} has more frames than the limit of {MAX_FRAMES}")
        if packet.is_discard:
            continue
        unstamped |= packet.pts is None
        stamps.append(packet.pts or 0)
        if packet.is_keyframe:
            keys.append(packet.pts or 0)
    if seen < stream.frames:
        raise VideoError(f"{name} is cut short: {seen} of its {stream.frames} frames are there")
    if not stamps:
        raise VideoError(f"{name} has no frames")
    ordered = np.sort(np.frombuffer(stamps, np.int64))
    if unstamped or (np.diff(ordered) == 0).any():
        return _Packets(None, [], len(ordered))
    keys = sorted(keys or [int(ordered[0])])
    ordered = ordered[ordered >= keys[0]]  # frames before the first keyframe cannot be decoded
    if float(ordered[-1] - ordered[0]) * stream.time_base > MAX_SECONDS:
        raise VideoError(f"{name} is longer than the limit of {MAX_SECONDS // 3600} hours")
    return _Packets(ordered, keys, len(ordered))


class _PyAV:
    """Frames by PyAV: from the keyframe before each, or on from the last one if no keyframe lies between."""

    def __init__(self, media: Path | bytes, name: str, packets: _Packets):
        self._media, self._name, self._packets = media, name, packets

    def fetch(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        indices = list(indices)
        if self._packets.stamps is None:
            yield from self._count_to(indices)
            return
        late = None
        with _container(self._media) as container:
            stream, decoded, at = _stream_of(container, self._name), None, -math.inf
            for place, index in enumerate(indices):
                target = int(self._packets.stamps[index])
                key = self._packets.keys[bisect_right(self._packets.keys, target) - 1]
                if decoded is None or key > at:
                    container.seek(key, stream=stream)
                    decoded = container.decode(stream)
                found = next((frame for frame in decoded if frame.pts is not None and frame.pts >= target), None)
                if found is None or found.pts != target:
                    late = place
                    break
                at = target
                yield _upright(found, self._name)
        if late is not None:  # the container's index led past the frame: from the start instead
            yield from self._walk_to(indices[late:])

    def _walk_to(self, indices: list[int]) -> Iterator[np.ndarray]:
        with _container(self._media) as container:
            decoded = container.decode(_stream_of(container, self._name))
            for index in indices:
                target = int(self._packets.stamps[index])
                found = next((frame for frame in decoded if frame.pts is not None and frame.pts >= target), None)
                if found is None or found.pts != target:
                    raise VideoError(f"frame {index} of {self._name} is damaged and cannot be decoded")
                yield _upright(found, self._name)

    def _count_to(self, indices: list[int]) -> Iterator[np.ndarray]:
        with _container(self._media) as container:
            decoded, at = container.decode(_stream_of(container, self._name)), -1
            for index in indices:
                found = None
                while at < index:
                    found, at = next(decoded, None), at + 1
                if found is None:
                    raise VideoError(f"frame {index} of {self._name} is damaged and cannot be decoded")
                yield _upright(found, self._name)


def _decord(media: Path | bytes, name: str, stamps: np.ndarray, first: np.ndarray) -> Fetch:
    """Frames by decord, if it agrees on the frames' times and on the first frame.

    It does not for every container: it finds other frames in MPEG streams, and a quarter turn breaks its colours.
    """
    if importlib.util.find_spec("decord") is None:
        raise VideoError("decord is not installed; read with backend 'pyav'")
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(io.BytesIO(media) if isinstance(media, bytes) else str(media.resolve()))
        begins = reader.get_frame_timestamp(range(len(reader)))[:, 0]
        same = begins.shape == stamps.shape and np.allclose(begins, stamps, rtol=1e-6, atol=1e-3)
        head = reader[0].asnumpy()
    except Exception as error:
        raise VideoError(f"{name} cannot be read by decord; read it with backend 'pyav'") from error
    if not same or head.shape != first.shape or np.abs(head.astype(int) - first).max() > 2:
        raise VideoError(f"decord reads other frames from {name} than it holds; read it with backend 'pyav'")
    return lambda indices: (reader[index].asnumpy() for index in indices)


def _upright(frame: Any, name: str) -> np.ndarray:
    _check_pixels(frame.height, frame.width, name)
    pixels = frame.to_ndarray(format="rgb24")
    return np.rot90(pixels, round(frame.rotation / 90) % 4)


def _average(times: np.ndarray, rate: float) -> float:
    """Frames a second: the header's exact number where the frames bear it out, else as measured."""
    if len(times) < 2 or times[-1] <= times[0]:
        return rate
    measured = (len(times) - 1) / (times[-1] - times[0])
    return rate if abs(measured / rate - 1) < 0.5 / len(times) + 1e-3 else float(measured)


# -- pictures in a row -------------------------------------------------------------------------------------


def _from_array(frames: np.ndarray, fps: float | None) -> Video:
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise VideoError(f"an array {frames.shape} of {frames.dtype} is not a video; a video is (T, H, W, 3) of uint8")
    _check_pixels(*frames.shape[1:3], "the array")
    return _evenly("the array", len(frames), fps, frames.shape[1:3], lambda indices: (frames[i] for i in indices))


def _from_pictures(sources: Sequence[Any], fps: float | None, name: str) -> Video:
    if not 1 <= len(sources) <= MAX_FRAMES:
        raise VideoError(f"{name} has {len(sources)} pictures; it must have 1 to {MAX_FRAMES}")

    def fetch(indices: Sequence[int]) -> Iterator[np.ndarray]:
        for index in indices:
            pixels = np.asarray(pictures.open_image(sources[index]))
            if pixels.shape[:2] != size:
                found, meant = (f"{shape[1]} x {shape[0]}" for shape in (pixels.shape, size))
                raise VideoError(f"picture {index} of {name} measures {found} pixels; the first has {meant}")
            yield pixels

    with _only_video_errors(name):
        size = np.asarray(pictures.open_image(sources[0])).shape[:2]
    return _evenly(name, len(sources), fps, size, fetch)


def _evenly(name: str, count: int, fps: float | None, size: tuple[int, int], fetch: Fetch) -> Video:
    if fps is None:
        raise VideoError(f"{name} has no frame rate of its own; give fps")
    return Video(name, np.arange(count) / fps, float(fps), count / fps, tuple(size), "pictures", False, fetch)


def _from_animation(media: Path | bytes, name: str) -> Video:
    """GIF, APNG and WebP: decoded from the start, since each picture builds on the one before it."""

    def opened() -> Image.Image:
        return Image.open(io.BytesIO(media) if isinstance(media, bytes) else media, formats=pictures.FORMATS)

    def fetch(indices: Sequence[int]) -> Iterator[np.ndarray]:
        with opened() as animation:
            for index in indices:
                animation.seek(index)
                yield np.asarray(pictures.open_image(animation.copy()))

    with opened() as animation:
        _check_pixels(animation.height, animation.width, name)
        count = getattr(animation, "n_frames", 1)
        if count > MAX_PICTURES:
            raise VideoError(f"{name} has {count} pictures; the limit is {MAX_PICTURES}")
        lasting = np.empty(count)
        for index in range(count):
            animation.seek(index)
            lasting[index] = animation.info.get("duration") or 100  # ms; what browsers do where none is given
    ends = lasting.cumsum() / 1000
    size = next(fetch([0])).shape[:2]
    return Video(name, ends - lasting / 1000, count / ends[-1], float(ends[-1]), size, "pictures", False, fetch)


def _in_folder(path: Path) -> list[Path]:
    """Pictures of a folder in the order people number them: 2 before 10."""
    found = [file for file in path.iterdir() if file.suffix.lower() in _PICTURE_SUFFIXES and file.is_file()]
    return sorted(found, key=lambda file: [(int(n or 0), text) for text, n in re.findall(r"(\D*)(\d*)", file.name)])


# -- helpers -----------------------------------------------------------------------------------------------


def _path(source: str | Path) -> Path | None:
    """A path if ``source`` is one; addresses are refused or left to :func:`_media`."""
    if isinstance(source, str) and source.startswith("data:"):
        return None
    if isinstance(source, str) and "://" in source[:16]:
        raise VideoError(f"{pictures._short(source)} is an address; only local files and data: addresses are read")
    try:
        path = Path(source)
        if path.exists():
            return path
    except (OSError, ValueError):
        pass
    raise VideoError(f"{pictures._short(str(source))} does not exist")


def _media(source: Any, path: Path | None) -> tuple[Path | bytes, str]:
    """What is to be decoded, and its name. A file stays a path: it is never read as a whole."""
    if path is None:
        try:
            return pictures.read_bytes(source)
        except pictures.ImageError as error:
            raise VideoError(str(error)) from None
    name = pictures._short(str(source))
    if not path.is_file():  # a device or a pipe may never end
        raise VideoError(f"{name} is not a file")
    size = path.stat().st_size
    if not size:
        raise VideoError(f"{name} is empty")
    if size > MAX_FILE_BYTES:
        raise VideoError(f"{name} is larger than the limit of {MAX_FILE_BYTES >> 30} GiB")
    return path, name


def _is_picture(media: Path | bytes) -> bool:
    if isinstance(media, bytes):
        head = media[:16]
    else:
        with media.open("rb") as file:
            head = file.read(16)
    return head.startswith(_PICTURE_MARKS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def _window(times: np.ndarray, start: float | None, stop: float | None) -> tuple[int, int]:
    """First and last index shown between ``start`` and ``stop``: a frame is shown until the next one."""
    start, stop = times[0] if start is None else start, times[-1] if stop is None else stop
    if not start <= stop or start > times[-1] + 1 or stop < times[0]:  # also refuses NaN
        raise ValueError(f"{start:g} to {stop:g} seconds: frames lie at {times[0]:g} to {times[-1]:g}")
    last = int(np.searchsorted(times, stop, "right")) - 1
    return min(int(np.searchsorted(times, start, "left")), last), last


def _nearest(times: np.ndarray, moments: np.ndarray) -> list[int]:
    right = np.searchsorted(times, moments).clip(1, max(len(times) - 1, 1))
    if len(times) == 1:
        return [0] * len(moments)
    before, after = moments - times[right - 1], times[right] - moments
    tie = np.isclose(before, after, rtol=0, atol=1e-9)
    take_left = np.where(tie, (right - 1) % 2 == 0, before < after)
    return np.where(take_left, right - 1, right).tolist()


def _resized(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A frame of another size than the first, which some files hold, is brought to it as well."""
    if frame.shape[:2] == tuple(size):
        return frame
    pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1).float() / 255
    return (resize(pixels, size, round=True) * 255).round().byte().permute(1, 2, 0).numpy()


def _check_pixels(height: int, width: int, name: str) -> None:
    if min(height, width) < 1 or max(height, width) > pictures.MAX_SIDE or height * width > pictures.MAX_PIXELS:
        raise VideoError(
            f"{name} measures {width} x {height} pixels; a side must have 1 to {pictures.MAX_SIDE}, "
            f"and both {pictures.MAX_PIXELS // 1_000_000} million at most"
        )


@contextmanager
def _only_video_errors(name: str) -> Iterator[None]:
    try:
        yield
    except VideoError:
        raise
    except ImportError:
        raise VideoError("reading videos needs PyAV; install av") from None
    except pictures.ImageError as error:
        raise VideoError(f"{name}: {error}") from None
    except FileNotFoundError:
        raise VideoError(f"{name} does not exist") from None
    except Exception as error:
        if isinstance(error, MemoryError) and not hasattr(error, "errno"):  # FFmpeg's own is about a forged size
            raise
        raise VideoError(f"{name} is not a video, or it is damaged or cut short and cannot be decoded") from error
