"""Small LeRobot datasets for tests: every frame shows its number in the video and its camera, as levels of grey.

Two episodes of a DROID-like robot, of 20 and 13 frames at 15 a second. Version 3.0: both in one table and one video a
camera; version 2.1: a file each.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from omni.tokenizers.video_writer import write_video

FPS, LENGTHS = 15, (20, 13)
CAMERAS = tuple(
    f"observation.image.{name}" for name in ("wrist_image_left", "exterior_image_1_left", "exterior_image_2_left")
)
TASKS = ("pick up the cup | lift the cup | take the cup", "open the drawer")
HEIGHT, WIDTH = 32, 48
SHARED = {
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
SINGLE = {
    "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
}
NUMBERS = {
    "observation.state.joint_positions": 7,
    "observation.state.gripper_position": 1,
    "observation.state.cartesian_position": 6,
    "action.joint_position": 7,
    "action.gripper_position": 1,
}


def picture(number: int, camera: int) -> np.ndarray:
    """The left half tells the number, the right half the camera."""
    frame = np.full((HEIGHT, WIDTH, 3), 20 + 5 * number, np.uint8)
    frame[:, WIDTH // 2 :] = 40 + 80 * camera
    return frame


def shown(frames: np.ndarray) -> list[tuple[int, int]]:
    """(number, camera) of frames (n, H, W, 3)."""
    h, w = frames.shape[1:3]
    level = [frames[:, h // 4 : -h // 4, x - 4 : x + 4].astype(float).mean((1, 2, 3)) for x in (w // 4, 3 * w // 4)]
    return [(round((number - 20) / 5), round((camera - 40) / 80)) for number, camera in zip(*level, strict=True)]


def columns(episode: int) -> dict[str, np.ndarray]:
    """The numbers of an episode, always the same."""
    random, n = np.random.default_rng(episode), LENGTHS[episode]
    values = {name: random.uniform(-1, 1, (n, width)).cumsum(0) * 0.05 for name, width in NUMBERS.items()}
    for name in ("observation.state.gripper_position", "action.gripper_position"):
        values[name] = random.uniform(0, 1, (n, 1))
    return {name: column.astype(np.float32) for name, column in values.items()}


def table(episode: int) -> pa.Table:
    n, found = LENGTHS[episode], {}
    for name, column in columns(episode).items():
        rows = column[:, 0] if column.shape[1] == 1 else list(column)  # LeRobot stores single numbers as such
        found[name] = pa.array(rows, pa.float32() if column.shape[1] == 1 else pa.list_(pa.float32(), column.shape[1]))
    found["timestamp"] = pa.array(np.arange(n, dtype=np.float32) / np.float32(FPS))
    found["frame_index"] = pa.array(np.arange(n))
    found["episode_index"] = pa.array(np.full(n, episode))
    found["index"] = pa.array(np.arange(n) + sum(LENGTHS[:episode]))
    found["task_index"] = pa.array(np.full(n, episode))
    return pa.table(found)


def info(version: str, **changes) -> dict:
    features = {name: {"dtype": "float32", "shape": [width], "names": None} for name, width in NUMBERS.items()}
    features |= {name: {"dtype": "video", "shape": [HEIGHT, WIDTH, 3], "names": None} for name in CAMERAS}
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    for name in ("frame_index", "episode_index", "index", "task_index"):
        features[name] = {"dtype": "int64", "shape": [1], "names": None}
    paths = SHARED if version == "v3.0" else SINGLE
    return {"codebase_version": version, "robot_type": "panda", "fps": FPS, "features": features, **paths, **changes}


def write_json(path: Path, found: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))


def write_table(path: Path, found: pa.Table, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(found, path, **options)


def write_film(path: Path, camera: int, numbers: range, fps: float = FPS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, (picture(number, camera) for number in numbers), fps, quality=1)


def write_shared(folder: Path, group_rows: int | None = None) -> Path:
    """Version 3.0."""
    write_json(folder / "meta/info.json", info("v3.0"))
    write_episodes(folder)
    write_table(folder / "meta/tasks.parquet", pa.table({"task_index": [0, 1], "__index_level_0__": list(TASKS)}))
    both = pa.concat_tables([table(0), table(1)])
    write_table(folder / "data/chunk-000/file-000.parquet", both, row_group_size=group_rows)
    for number, camera in enumerate(CAMERAS):
        write_film(folder / f"videos/{camera}/chunk-000/file-000.mp4", number, range(sum(LENGTHS)))
    return folder


def write_episodes(folder: Path, **changes) -> None:
    """meta/episodes of version 3.0, with ``changes`` of its columns."""
    begins = np.cumsum([0, *LENGTHS])
    episodes = {"episode_index": [0, 1], "tasks": [[task] for task in TASKS], "length": list(LENGTHS)}
    episodes |= {"data/chunk_index": [0, 0], "data/file_index": [0, 0], "stats/action/mean": [[1.0], [2.0, 3.0]]}
    for camera in CAMERAS:
        episodes |= {f"videos/{camera}/{name}_index": [0, 0] for name in ("chunk", "file")}
        episodes[f"videos/{camera}/from_timestamp"] = (begins[:-1] / FPS).tolist()
        episodes[f"videos/{camera}/to_timestamp"] = (begins[1:] / FPS).tolist()
    write_table(folder / "meta/episodes/chunk-000/file-000.parquet", pa.table(episodes | changes))


def write_single(folder: Path) -> Path:
    """Version 2.1."""
    write_json(folder / "meta/info.json", info("v2.1", chunks_size=1000))
    lines = {"episodes": [], "tasks": []}
    for episode, (task, length) in enumerate(zip(TASKS, LENGTHS, strict=True)):
        lines["episodes"].append({"episode_index": episode, "tasks": [task], "length": length})
        lines["tasks"].append({"task_index": episode, "task": task})
        write_table(folder / f"data/chunk-000/episode_{episode:06d}.parquet", table(episode))
        begin = sum(LENGTHS[:episode])
        for number, camera in enumerate(CAMERAS):
            path = folder / f"videos/chunk-000/{camera}/episode_{episode:06d}.mp4"
            write_film(path, number, range(begin, begin + length))
    for name, rows in lines.items():
        (folder / "meta" / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return folder
