"""LeRobot datasets: what robots saw and did, as tables of numbers and videos; read with pyarrow alone.

    meta/: info.json, tasks, episodes ──> LeRobotDataset ──┬── episode(i)["column"] ──> (n, ...) of its n frames
                                                           ├── frames(i, camera, [...]) ──> (k, H, W, 3) uint8
                                                           └── windows(chunk) ──> (episode, first frame), ...

Versions 3.0 (many episodes share a parquet file and a video; ``meta/episodes`` says where each begins) and 2.0, 2.1 (a
file each). Opening reads ``meta`` only. Numbers are read a column at a time, frames decoded as they are asked for, by
the times that the table gives them: ``timestamp`` counts from the episode's start, which lies at ``from_timestamp`` of
its video. Format: the documentation and ``info.json`` files of Hugging Face's lerobot.

A dataset comes from untrusted hands: what it names must lie in its folder, and whatever is wrong is a ValueError of one
line: :class:`LeRobotError`, or that of the table or the video.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from omni.data.tables import MAX_ROWS, read_table, require_pyarrow
from omni.tokenizers.files import read_bytes, short
from omni.tokenizers.video import Video, open_video

VERSIONS = ("v3.0", "v2.1", "v2.0")
TOLERANCE = 0.25  # of a frame's duration: how far the frame that is shown may lie from the time that is asked for
REMEMBERED = 8  # opened videos, and episodes with the columns read so far

_FIELD = re.compile(r"\{(\w+)(?::0?(\d)d)?\}")  # of a path template: {name} or {name:03d}


class LeRobotError(ValueError):
    """A dataset that cannot be read: one line that names the file, what is wrong, and the limit."""


@dataclass(frozen=True)
class Info:
    """What ``meta/info.json`` says. ``features`` maps a column or camera to its (dtype, shape of one frame)."""

    version: str
    fps: float
    robot_type: str
    features: dict[str, tuple[str, tuple[int, ...]]]
    data_path: str
    video_path: str
    chunk_size: int  # files of a folder

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(name for name, (dtype, _) in self.features.items() if dtype == "video")

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(name for name, (dtype, _) in self.features.items() if dtype != "video")


@dataclass(frozen=True)
class Clip:
    """An episode's part of a video: from ``begin`` to ``end`` seconds; without an end, up to the file's own."""

    path: str  # inside the dataset's folder
    begin: float
    end: float | None


@dataclass(frozen=True, eq=False)
class Episode:
    """``length`` frames of one task. ``episode["action"]`` is the column (length, ...), read when first asked for."""

    index: int
    length: int
    tasks: tuple[str, ...]
    data: str  # the parquet file, inside the dataset's folder
    read: Callable[["Episode", str], np.ndarray] = field(repr=False)
    _columns: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def task(self) -> str:
        return self.tasks[0] if self.tasks else ""

    def __getitem__(self, column: str) -> np.ndarray:
        if column not in self._columns:
            self._columns[column] = self.read(self, column)
        return self._columns[column]


class LeRobotDataset:
    """The dataset in ``folder``. Raises ValueError.

    ``info`` is what it says of itself, ``tasks`` maps a task's number to its text; ``indices`` are the episodes'
    numbers, ``lengths`` their frames.
    """

    def __init__(self, folder: str | Path):
        require_pyarrow("LeRobot datasets")
        self.folder = Path(folder)
        if not (self.folder / "meta" / "info.json").is_file():
            raise LeRobotError(f"{short(str(folder))} is not a LeRobot dataset: it has no meta/info.json")
        self.info = _read_info(self.folder)
        in_shared_files = self.info.version.startswith("v3")
        self.tasks = _read_tasks(self.folder, in_shared_files)
        self._meta = _shared_episodes(self.folder) if in_shared_files else _single_episodes(self.folder)
        self._checked: dict[str, np.ndarray] = {}
        self.indices, self.lengths = self._counts("episode_index", 0), self._counts("length", 1)
        self._places = {int(index): place for place, index in enumerate(self.indices)}
        if not len(self.indices):
            raise LeRobotError(f"{self._name} has no episodes")
        if len(self._places) < len(self.indices):
            raise LeRobotError(f"{self._name} has two episodes of the same episode_index")
        self._opened: dict[str, Video] = {}
        self._episodes: dict[int, Episode] = {}

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def fps(self) -> float:
        return self.info.fps

    @cached_property
    def cameras(self) -> tuple[str, ...]:
        """Cameras of which at least one file is there; ``info.cameras`` are all."""
        found = []
        for camera in self.info.cameras:
            files = dict.fromkeys(self._clip(place, camera).path for place in range(len(self)))
            if any((self.folder / file).exists() for file in files):
                found.append(camera)
        return tuple(found)

    def episode(self, index: int) -> Episode:
        """The episode whose ``episode_index`` is ``index``."""
        if index not in self._places:
            least, most = self.indices.min(), self.indices.max()
            raise LeRobotError(f"{self._name} has no episode {index}; it has {least} to {most}")
        if index not in self._episodes:
            _make_room(self._episodes)
            self._episodes[index] = self._described(self._places[index])
        return self._episodes[index]

    def clip(self, index: int, camera: str) -> Clip:
        """Where ``camera`` shows episode ``index``, whether or not the file is there."""
        if camera not in self.info.cameras:
            raise LeRobotError(
                f"{self._name} has no camera {camera!r}; it has {', '.join(self.info.cameras) or 'none'}"
            )
        self.episode(index)  # it is there
        return self._clip(self._places[index], camera)

    def frames(self, index: int, camera: str, indices: Sequence[int]) -> np.ndarray:
        """Frames (k, H, W, 3) uint8 of episode ``index``, counted from its start, in the order of ``indices``."""
        episode, clip = self.episode(index), self.clip(index, camera)
        indices = [int(i) for i in indices]
        wrong = [i for i in indices if not 0 <= i < episode.length]
        if wrong:
            raise LeRobotError(f"frame {wrong[0]} of episode {index}: it has frames 0 to {episode.length - 1}")
        video = self._video(camera, clip)
        moments = clip.begin + episode["timestamp"].ravel().astype(np.float64)[indices]
        slack = TOLERANCE / self.fps
        if clip.end is not None and len(moments) and moments.max() > clip.end + slack:
            raise LeRobotError(
                f"episode {index} of {self._name} has a frame at {moments.max():.3f} s of {clip.path}, "
                f"but its part ends at {clip.end:.3f} s"
            )
        places = _nearest(video.times, moments)
        off = np.abs(video.times[places] - moments)
        if not (off <= slack).all():  # also where a time is not a number
            worst = int(off.argmax())
            raise LeRobotError(
                f"{clip.path} shows nothing at {moments[worst]:.3f} s, frame {indices[worst]} of episode {index}: "
                f"the nearest frame is {off[worst]:.3f} s away, the limit is {slack:.3f} s"
            )
        return video.read(places.tolist())

    def windows(self, chunk: int, stride: int = 1) -> "Windows":
        """Where ``chunk`` actions with the ``chunk`` + 1 frames around them begin: every ``stride`` frames."""
        if chunk < 1 or stride < 1:
            raise LeRobotError(f"chunk is {chunk} and stride is {stride}; both must be at least 1")
        return Windows(self.indices, np.maximum(-(-(self.lengths - chunk) // stride), 0), stride)

    # -- inside -----------------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return short(str(self.folder))

    def _described(self, place: int) -> Episode:
        index, (chunk, file) = int(self.indices[place]), self._file(place, "data")
        path = _filled(self.info.data_path, "data_path", **_numbers(index, chunk, file))
        tasks = self._meta["tasks"][place]
        tasks = (tasks,) if isinstance(tasks, str) else tuple(str(task) for task in tasks)
        return Episode(index, int(self.lengths[place]), tasks, path, self._column)

    def _counts(self, name: str, least: int) -> np.ndarray:
        """A column of meta as int64 within its limits; checked once, as it is asked for with every episode."""
        if name in self._checked:
            return self._checked[name]
        values = self._meta.get(name)
        if values is None or values.ndim != 1 or values.dtype.kind not in "iu":
            raise LeRobotError(f"the episodes of {self._name} have no whole numbers named {name}")
        wrong = values[(values < least) | (values > MAX_ROWS)]
        if len(wrong):
            raise LeRobotError(
                f"{name} of an episode of {self._name} is {wrong[0]}; it must lie between {least} and {MAX_ROWS}"
            )
        self._checked[name] = values.astype(np.int64)
        return self._checked[name]

    def _seconds(self, name: str, place: int) -> float | None:
        values = self._meta.get(name)
        if values is None:
            return None
        if values.ndim != 1 or values.dtype.kind not in "iuf" or not 0 <= values[place] < math.inf:
            raise LeRobotError(f"{name} of an episode of {self._name} is not a time")
        return float(values[place])

    def _file(self, place: int, kind: str) -> tuple[int, int]:
        """(chunk, file) of an episode's table or video; a dataset of one episode may leave them out: the first."""
        if not self.info.version.startswith("v3"):
            return int(self.indices[place]) // self.info.chunk_size, int(self.indices[place])
        names = f"{kind}/chunk_index", f"{kind}/file_index"
        if len(self) == 1 and not any(name in self._meta for name in names):
            return 0, 0
        chunk, file = (int(self._counts(name, 0)[place]) for name in names)
        return chunk, file

    def _clip(self, place: int, camera: str) -> Clip:
        chunk, file = self._file(place, f"videos/{camera}")
        numbers = _numbers(int(self.indices[place]), chunk, file)
        path = _filled(self.info.video_path, "video_path", video_key=camera, **numbers)
        begin = self._seconds(f"videos/{camera}/from_timestamp", place)
        end = self._seconds(f"videos/{camera}/to_timestamp", place)
        if begin is None and self.info.version.startswith("v3") and len(self) > 1:
            raise LeRobotError(f"the episodes of {self._name} do not say when they begin in the videos of {camera}")
        return Clip(path, begin or 0.0, end)

    def _video(self, camera: str, clip: Clip) -> Video:
        if clip.path not in self._opened:
            path = inside(self.folder, clip.path)
            if not path.exists():
                raise LeRobotError(f"the videos of {camera} are not all there: {self._name} lacks {clip.path}")
            _make_room(self._opened)
            self._opened[clip.path] = open_video(path)
        return self._opened[clip.path]

    def _column(self, episode: Episode, name: str) -> np.ndarray:
        if name not in self.info.columns:
            raise LeRobotError(f"{self._name} has no column {name!r}; it has {', '.join(self.info.columns)}")
        path = inside(self.folder, episode.data)
        table = read_table(path, (name, "frame_index"), where=("episode_index", episode.index))
        if not np.array_equal(table["frame_index"].ravel(), np.arange(episode.length)):
            raise LeRobotError(
                f"{episode.data} does not hold frames 0 to {episode.length - 1} of episode {episode.index} in order"
            )
        values, declared = table[name], self.info.features[name][1]
        if math.prod(values.shape[1:]) != math.prod(declared):
            found = math.prod(values.shape[1:])
            raise LeRobotError(f"{name} of {episode.data} has {found} numbers a frame; info.json says {declared}")
        return values


class Windows(Sequence[tuple[int, int]]):
    """(episode, first frame) of every window, episode by episode; they are counted, not listed."""

    def __init__(self, indices: np.ndarray, counts: np.ndarray, stride: int):
        self._indices, self._ends, self._stride = indices, counts.cumsum(), stride

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> tuple[int, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        index %= len(self)
        place = int(np.searchsorted(self._ends, index, side="right"))
        before = int(self._ends[place - 1]) if place else 0
        return int(self._indices[place]), (index - before) * self._stride


# -- meta ------------------------------------------------------------------------------------------------------------


def _read_info(folder: Path) -> Info:
    found = _json(_bytes(folder, "meta/info.json"), "meta/info.json")
    version = found.get("codebase_version")
    if version not in VERSIONS:
        raise LeRobotError(f"{short(str(folder))} is of version {version!r}; {', '.join(VERSIONS)} are read")
    fps, chunk_size = found.get("fps"), found.get("chunks_size", 1000)
    if not isinstance(fps, int | float) or not 0 < fps <= 1000:
        raise LeRobotError(f"fps of meta/info.json is {fps!r}; it must lie above 0 and at most at 1000")
    if not isinstance(chunk_size, int) or chunk_size < 1:
        raise LeRobotError(f"chunks_size of meta/info.json is {chunk_size!r}; it must be a number of at least 1")
    features = found.get("features")
    if not isinstance(features, dict):
        raise LeRobotError("meta/info.json names no features")
    shapes = {name: _feature(name, entry) for name, entry in features.items()}
    paths = [found.get(name) or "" for name in ("data_path", "video_path")]
    if not all(isinstance(path, str) for path in paths) or not paths[0]:
        raise LeRobotError("data_path and video_path of meta/info.json must be texts")
    return Info(version, float(fps), str(found.get("robot_type") or ""), shapes, *paths, chunk_size)


def _feature(name: str, entry: Any) -> tuple[str, tuple[int, ...]]:
    dtype, shape = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else (None, None)
    whole = isinstance(shape, list) and len(shape) <= 8 and all(isinstance(n, int) and 0 < n < 2**31 for n in shape)
    if not isinstance(dtype, str) or not whole:
        raise LeRobotError(f"feature {short(name)!r} of meta/info.json has no dtype and shape")
    return dtype, tuple(shape)


def _read_tasks(folder: Path, in_table: bool) -> dict[int, str]:
    if in_table:
        table = read_table(inside(folder, "meta/tasks.parquet"), lambda name: True)
        texts = table.get("task", table.get("__index_level_0__"))  # pandas writes the texts as a nameless index
        if texts is None or "task_index" not in table:
            raise LeRobotError("meta/tasks.parquet has no columns task and task_index")
        indices = table["task_index"].tolist()
    else:
        rows = _json_lines(folder, "meta/tasks.jsonl", "task_index", "task")
        indices, texts = [row["task_index"] for row in rows], [row["task"] for row in rows]
    if not all(isinstance(index, int) for index in indices):
        raise LeRobotError("task_index of meta/tasks is not a whole number everywhere")
    return {index: str(text) for index, text in zip(indices, texts, strict=True)}


def _shared_episodes(folder: Path) -> dict[str, np.ndarray]:
    """Columns of the tables in meta/episodes, their rows in order; statistics are left out."""
    files = sorted((folder / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    if not files:
        raise LeRobotError(f"{short(str(folder))} has no tables in meta/episodes")
    names = [file.relative_to(folder).as_posix() for file in files]
    tables = [read_table(inside(folder, name), _of_episodes) for name in names]
    kinds = [{name: (column.dtype.kind, column.ndim) for name, column in table.items()} for table in tables]
    if any(kind != kinds[0] for kind in kinds) or not {"episode_index", "length", "tasks"} <= set(kinds[0]):
        raise LeRobotError("the tables of meta/episodes must have the same columns: episode_index, length, tasks, ...")
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def _of_episodes(column: str) -> bool:
    return column in ("episode_index", "length", "tasks") or column.startswith(("data/", "videos/"))


def _single_episodes(folder: Path) -> dict[str, np.ndarray]:
    rows = _json_lines(folder, "meta/episodes.jsonl", "episode_index", "length", "tasks")
    tasks = np.empty(len(rows), object)
    tasks[:] = [row["tasks"] if isinstance(row["tasks"], list) else [row["tasks"]] for row in rows]
    return {name: np.array([row[name] for row in rows]) for name in ("episode_index", "length")} | {"tasks": tasks}


def _json_lines(folder: Path, name: str, *keys: str) -> list[dict[str, Any]]:
    rows = [_json(line, name) for line in _bytes(folder, name).splitlines() if line.strip()]
    for row in rows:
        missing = [key for key in keys if key not in row]
        if missing:
            raise LeRobotError(f"a line of {name} has no {missing[0]}")
    return rows


def _json(text: bytes, name: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise LeRobotError(f"{name} is not JSON") from None
    if not isinstance(found, dict):
        raise LeRobotError(f"{name} holds a {type(found).__name__}, not an object")
    return found


# -- files -----------------------------------------------------------------------------------------------------------


def inside(folder: Path, name: str) -> Path:
    """The file ``name`` of ``folder``; a name or a link that leads out of it is refused.

    The hub's cache is the one layout whose links lead out: ``snapshots/REVISION/file -> ../../blobs/HASH``.
    """
    parts = name.split("/")
    if {"", ".", ".."} & set(parts) or "\\" in name or "\0" in name or Path(name).is_absolute():
        raise LeRobotError(f"{short(str(folder))} names {short(name)!r}; a file must lie inside the same folder")
    root = folder.resolve()
    path = (root / name).resolve()
    allowed = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    if not any(path.is_relative_to(place) for place in allowed):
        raise LeRobotError(f"{short(str(folder))}: {short(name)} is a link out of the folder")
    return path


def _bytes(folder: Path, name: str) -> bytes:
    return read_bytes(inside(folder, name), "table", LeRobotError)[0]


def _numbers(episode: int, chunk: int, file: int) -> dict[str, int]:
    """What templates name; two names each, as files of both kinds are about."""
    return {
        "episode_index": episode,
        "chunk_index": chunk,
        "episode_chunk": chunk,
        "file_index": file,
        "episode_file": file,
    }


def _filled(template: str, name: str, **values: int | str) -> str:
    """A path template with its values; the rest of Python's format language is not for untrusted text."""

    def value(match: re.Match) -> str:
        found = values.get(match[1])
        if found is None or (match[2] and isinstance(found, str)):
            raise LeRobotError(f"{name} of meta/info.json names {match[0]}; it may name {', '.join(values)}")
        return f"{found:0{match[2]}d}" if match[2] else str(found)

    if {"{", "}"} & set(_FIELD.sub("", template)):
        raise LeRobotError(f"{name} of meta/info.json, {short(template)!r}, is not a template of names in braces")
    path = _FIELD.sub(value, template)
    if {"", ".", ".."} & set(path.split("/")) or "\\" in path or "\0" in path:
        raise LeRobotError(f"{name} of meta/info.json leads out of the folder: {short(path)!r}")
    return path


def _make_room(remembered: dict) -> None:
    """Forgets the oldest where there are as many as are kept."""
    if len(remembered) >= REMEMBERED:
        remembered.pop(next(iter(remembered)))


def _nearest(times: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Place of the time nearest to each moment; ``times`` ascend."""
    right = np.searchsorted(times, moments).clip(1, max(len(times) - 1, 1))
    left = right - 1
    right = np.minimum(right, len(times) - 1)
    return np.where(moments - times[left] <= times[right] - moments, left, right)
