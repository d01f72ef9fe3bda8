"""Videos from untrusted files: opened, checked, and only the asked frames decoded.

    file, bytes, data: address ──> open_video ──> Video(times, fps, size) ──> read, frames ──> (n, H, W, 3)
    GIF, pictures, array       ──┘

The times of frames are the container's own, so a variable frame rate is no special case. Opening reads the container
once, without decoding more than one frame; reading seeks to the keyframe before each asked frame. Errors are the
project's: the words of decoders never pass through.
"""

import importlib.util
import io
import math
import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from omni.tokenizers import image as pictures
from omni.tokenizers.files import find, is_picture, open_container, path_of, short
from omni.tokenizers.sizing import resize

BACKENDS = ("pyav", "decord")
MAX_SECONDS = 24 * 3600
MAX_FRAMES = 24 * 3600 * 60
MAX_PICTURES = 10_000  # of an animation, which can only be decoded from its start
MAX_READ_BYTES = 4 << 30  # of the frames that one call returns

# Of the containers FFmpeg knows, those that hold their own pictures: a playlist would open other files and addresses.
CONTAINERS = "mov,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,h264,hevc,mpegvideo,ivf,obu,m4v,mjpeg"
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")

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
    path = path_of(source, "video", VideoError)
    if path is not None and path.is_dir():
        return _from_pictures(_in_folder(path), fps, short(str(source)))
    media, name = find(source, "video", VideoError)
    if fps is not None:
        raise VideoError(f"{name} has its own frame rate; fps is for arrays and pictures")
    with _only_video_errors(name):
        if is_picture(media):
            return _from_animation(media, name)
        return _from_container(media, name, backend)


# -- containers --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Packets:
    """What a container says of its frames: presentation stamps in ticks, ascending, and those that decode alone."""

    stamps: np.ndarray | None  # None: the container has none, or not one for each frame
    keys: list[int]
    count: int


def _from_container(media: Path | bytes, name: str, backend: str) -> Video:
    with open_container(media, CONTAINERS) as container:
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
        with open_container(self._media, CONTAINERS) as container:
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
        with open_container(self._media, CONTAINERS) as container:
            decoded = container.decode(_stream_of(container, self._name))
            for index in indices:
                target = int(self._packets.stamps[index])
                found = next((frame for frame in decoded if frame.pts is not None and frame.pts >= target), None)
                if found is None or found.pts != target:
                    raise VideoError(f"frame {index} of {self._name} is damaged and cannot be decoded")
                yield _upright(found, self._name)

    def _count_to(self, indices: list[int]) -> Iterator[np.ndarray]:
        with open_container(self._media, CONTAINERS) as container:
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
