"""LeRobot datasets: numbers and frames belong together, what is missing is named, nothing leads out of the folder."""

import shutil
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
av = pytest.importorskip("av")

import lerobot_files as files  # noqa: E402
from lerobot_files import CAMERAS, FPS, LENGTHS, TASKS, shown  # noqa: E402

from omni.data import lerobot, tables  # noqa: E402
from omni.data.lerobot import LeRobotDataset, LeRobotError  # noqa: E402

SAMPLE = Path(__file__).resolve().parents[2] / "shared/samples/generator/action/droid_lerobot_example"
EXTERIOR = "observation.image.exterior_image_2_left"


@pytest.fixture(scope="module", params=["shared", "rows grouped", "single"])
def dataset(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("robot")
    if request.param == "single":
        return LeRobotDataset(files.write_single(folder))
    return LeRobotDataset(files.write_shared(folder, 8 if request.param == "rows grouped" else None))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return files.write_shared(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def folder(shared, tmp_path):
    """A copy to be spoilt."""
    return Path(shutil.copytree(shared, tmp_path / "robot"))


def edit(folder: Path, **changes) -> Path:
    files.write_json(folder / "meta/info.json", files.info("v3.0", **changes))
    return folder


# -- what it reads -----------------------------------------------------------------------------------------------------


def test_it_says_what_is_there(dataset):
    assert len(dataset) == 2
    assert dataset.lengths.tolist() == list(LENGTHS)
    assert dataset.fps == FPS
    assert dataset.info.robot_type == "panda"
    assert dataset.tasks == dict(enumerate(TASKS))
    assert dataset.cameras == dataset.info.cameras == CAMERAS
    assert dataset.info.features["action.joint_position"] == ("float32", (7,))
    assert [dataset.episode(i).task for i in (0, 1)] == list(TASKS)


def test_columns_are_the_episodes_own(dataset):
    for index in (0, 1):
        episode = dataset.episode(index)
        assert episode.length == LENGTHS[index]
        for name, values in files.columns(index).items():
            assert np.array_equal(episode[name].reshape(values.shape), values)
        assert episode["action.joint_position"].shape == (LENGTHS[index], 7)
        assert episode["timestamp"].shape == (LENGTHS[index],)


def test_a_column_is_read_once(dataset, monkeypatch):
    read = []
    monkeypatch.setattr(lerobot, "read_table", lambda *a, **b: read.append(a[1]) or tables.read_table(*a, **b))
    monkeypatch.setattr(dataset, "_episodes", {})
    episode = dataset.episode(1)
    assert not read
    assert episode["action.joint_position"] is dataset.episode(1)["action.joint_position"]
    assert read == [("action.joint_position", "frame_index")]


@pytest.mark.parametrize("camera", range(3))
def test_frames_are_the_episodes_own(dataset, camera):
    """Frame i of an episode is the one that was written at its time, though the file begins with another episode."""
    for index, begin in ((0, 0), (1, LENGTHS[0])):
        every = range(LENGTHS[index])
        assert shown(dataset.frames(index, CAMERAS[camera], every)) == [(begin + i, camera) for i in every]
        some = [7, 0, 7, LENGTHS[index] - 1]
        assert shown(dataset.frames(index, CAMERAS[camera], some)) == [(begin + i, camera) for i in some]


def test_frames_of_an_uneven_video(folder):
    """Where the video lacks frames, the others are still found by their times, and a lacking one is refused."""
    path = folder / f"videos/{EXTERIOR}/chunk-000/file-000.mp4"
    kept = [number for number in range(sum(LENGTHS)) if number not in (3, 25)]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = files.WIDTH, files.HEIGHT, "yuv420p"
        for number in kept:
            frame = av.VideoFrame.from_ndarray(files.picture(number, 2), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    dataset = LeRobotDataset(folder)
    assert shown(dataset.frames(1, EXTERIOR, [4, 6])) == [(24, 2), (26, 2)]
    with pytest.raises(LeRobotError, match=r"frame 5 of episode 1.*0\.067 s away, the limit is 0\.017 s"):
        dataset.frames(1, EXTERIOR, [4, 5])


@pytest.mark.parametrize(("chunk", "stride"), [(1, 1), (4, 1), (4, 3), (12, 2), (13, 1), (19, 7), (20, 1), (500, 1)])
def test_windows_are_all_that_fit(dataset, chunk, stride):
    wanted = [(e, s) for e in (0, 1) for s in range(0, LENGTHS[e], stride) if s + chunk < LENGTHS[e]]
    windows = dataset.windows(chunk, stride)
    assert list(windows) == wanted
    assert len(windows) == len(wanted)
    if wanted:
        assert windows[-1] == wanted[-1]
    with pytest.raises(IndexError):
        windows[len(wanted)]


# -- what it refuses ---------------------------------------------------------------------------------------------------


def test_a_missing_video_is_named_when_asked_for(folder):
    (folder / f"videos/{CAMERAS[0]}/chunk-000/file-000.mp4").unlink()
    dataset = LeRobotDataset(folder)
    assert dataset.cameras == CAMERAS[1:]
    assert shown(dataset.frames(0, CAMERAS[1], [2])) == [(2, 1)]
    with pytest.raises(LeRobotError, match=rf"{CAMERAS[0]}.*lacks videos/.*file-000\.mp4"):
        dataset.frames(0, CAMERAS[0], [0])


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda d: d.episode(2), "no episode 2; it has 0 to 1"),
        (lambda d: d.frames(1, EXTERIOR, [0, 13]), "frame 13 of episode 1: it has frames 0 to 12"),
        (lambda d: d.frames(1, EXTERIOR, [-1]), "frame -1 of episode 1"),
        (lambda d: d.frames(0, "front", [0]), "no camera 'front'; it has observation.image.wrist"),
        (lambda d: d.episode(0)["action"], "no column 'action'; it has observation.state.joint_positions"),
        (lambda d: d.episode(0)[EXTERIOR], "no column"),
        (lambda d: d.windows(0), "chunk is 0"),
        (lambda d: d.windows(4, 0), "stride is 0"),
    ],
)
def test_what_is_not_there(dataset, ask, message):
    with pytest.raises(LeRobotError, match=message):
        ask(dataset)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebase_version": "v1.6"}, "version 'v1.6'; v3.0, v2.1, v2.0 are read"),
        ({"codebase_version": None}, "version None"),
        ({"fps": 0}, "fps of meta/info.json is 0"),
        ({"fps": "15"}, "fps of meta/info.json is '15'"),
        ({"chunks_size": 0}, "chunks_size"),
        ({"features": []}, "no features"),
        ({"features": {"action": {"dtype": "float32", "shape": [-7]}}}, "feature 'action'"),
        ({"data_path": 3}, "must be texts"),
        ({"data_path": ""}, "must be texts"),
    ],
)
def test_bad_infos(folder, changes, message):
    with pytest.raises(LeRobotError, match=message):
        LeRobotDataset(edit(folder, **changes))


@pytest.mark.parametrize(
    "path",
    [
        "../{chunk_index}.parquet",
        "data/../../x.parquet",
        "/etc/passwd",
        "data//x.parquet",
        "..\\x.parquet",
        "data/{chunk_index.__class__}.parquet",
        "data/{chunk_index!r}.parquet",
        "data/{chunk_index:99999999d}.parquet",
        "data/{}.parquet",
        "data/{secret}.parquet",
        "data/{{chunk_index}}.parquet",
    ],
)
def test_paths_stay_inside(folder, path):
    with pytest.raises(LeRobotError, match=r"data_path of meta/info\.json"):
        LeRobotDataset(edit(folder, data_path=path)).episode(0)
    with pytest.raises(LeRobotError, match=r"video_path of meta/info\.json"):
        LeRobotDataset(edit(folder, video_path=path)).frames(0, EXTERIOR, [0])


def test_links_and_cameras_stay_inside(folder, tmp_path):
    outside = tmp_path / "outside.mp4"
    path = folder / f"videos/{EXTERIOR}/chunk-000/file-000.mp4"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(LeRobotError, match="is a link out of the folder"):
        LeRobotDataset(folder).frames(0, EXTERIOR, [0])
    files.write_episodes(folder, **{f"videos/../../{name}_index": [0, 0] for name in ("chunk", "file")})
    features = files.info("v3.0")["features"] | {"../..": {"dtype": "video", "shape": [1, 1, 3]}}
    with pytest.raises(LeRobotError, match="leads out of the folder: 'videos/"):
        LeRobotDataset(edit(folder, features=features)).frames(0, "../..", [0])


def test_links_of_the_hubs_cache_are_followed(shared, tmp_path):
    folder = Path(shutil.copytree(shared, tmp_path / "models" / "snapshots" / "abc"))
    blobs = tmp_path / "models" / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    assert shown(LeRobotDataset(folder).frames(1, EXTERIOR, [1])) == [(21, 2)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("meta/info.json", b"{", "info.json is not JSON"),
        ("meta/info.json", b"[" * 100_000, "info.json is not JSON"),
        ("meta/info.json", b"[]", "holds a list"),
        ("meta/tasks.parquet", b"PAR1 nothing PAR1", "tasks.parquet is not a parquet table"),
        ("meta/episodes/chunk-000/file-000.parquet", b"", "is empty"),
    ],
)
def test_damaged_files(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        LeRobotDataset(folder)
    assert "\n" not in str(error.value)


def test_damaged_numbers(folder):
    path = folder / "data/chunk-000/file-000.parquet"
    whole = path.read_bytes()
    for cut in (10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"file-000\.parquet is not a parquet table"):
            LeRobotDataset(folder).episode(0)["timestamp"]
    path.unlink()
    with pytest.raises(ValueError, match="does not exist"):
        LeRobotDataset(folder).episode(0)["timestamp"]


def joints(table, rows):
    """The table with other joint actions."""
    place = table.column_names.index("action.joint_position")
    return table.set_column(place, "action.joint_position", [rows])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.slice(1), "does not hold frames 0 to 19"),
        (lambda t: t.take([*range(20)][::-1]), "does not hold frames 0 to 19"),
        (lambda t: t.drop_columns(["frame_index"]), "no column 'frame_index'"),
        (lambda t: t.drop_columns(["episode_index"]), "no column 'episode_index'"),
        (lambda t: joints(t, [[1.0]] * 33), "has 1 numbers a frame; info.json says .7,"),
        (lambda t: joints(t, [[1.0] * 7, [2.0]] * 16 + [[1.0] * 7]), "has 1 numbers a frame"),
        (lambda t: joints(t, [[None] * 7] * 33), "has 140 rows without a value"),
        (lambda t: joints(t, [None] * 33), "has 20 rows without a value"),
        (lambda t: joints(t, pa.array([None] * 33, pa.list_(pa.float32()))), "has 20 rows without a value"),
    ],
)
def test_wrong_numbers(folder, change, message):
    both = pa.concat_tables([files.table(0), files.table(1)])
    files.write_table(folder / "data/chunk-000/file-000.parquet", change(both))
    with pytest.raises(ValueError, match=message):
        LeRobotDataset(folder).episode(0)["action.joint_position"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episode_index": [1, 1]}, "same episode_index"),
        ({"episode_index": [0, -1]}, "episode_index of an episode .* is -1"),
        ({"length": [20, 0]}, "length of an episode .* is 0; it must lie between 1 and"),
        ({"length": [20.0, 13.0]}, "no whole numbers named length"),
        ({"data/file_index": [0, 2**40]}, "data/file_index of an episode"),
        ({f"videos/{EXTERIOR}/from_timestamp": [float("nan"), 1.0]}, "is not a time"),
        ({f"videos/{EXTERIOR}/to_timestamp": [0.5, 1.0]}, "but its part ends at 0.500 s"),
        ({f"videos/{EXTERIOR}/from_timestamp": [0.5 / FPS, 1.0]}, r"shows nothing at .* the limit is 0\.017 s"),
        ({"length": [19, 13]}, "does not hold frames 0 to 18"),
    ],
)
def test_wrong_episodes(folder, changes, message):
    files.write_episodes(folder, **changes)

    def read() -> None:
        dataset = LeRobotDataset(folder)
        dataset.episode(1)
        dataset.frames(0, EXTERIOR, range(dataset.lengths[0]))

    with pytest.raises(ValueError, match=message):
        read()


def test_episodes_that_do_not_say_where_they_are(folder):
    """Only of one episode is it clear where it is."""
    whole = pa.table({"episode_index": [0, 1], "length": list(LENGTHS), "tasks": [[task] for task in TASKS]})
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    files.write_table(path, whole)
    with pytest.raises(LeRobotError, match="no whole numbers named data/chunk_index"):
        LeRobotDataset(folder).episode(0)
    files.write_table(path, whole.slice(0, 1))
    assert shown(LeRobotDataset(folder).frames(0, EXTERIOR, [19])) == [(19, 2)]


def test_many_episodes_are_opened_quickly(folder):
    """20 000 episodes in one video: none of what is done for each looks at all others."""
    n = 20_000
    zeros = {f"{kind}/{name}_index": [0] * n for kind in ("data", f"videos/{EXTERIOR}") for name in ("chunk", "file")}
    rows = {"episode_index": range(n), "length": pa.array([20] * n, pa.uint64()), "tasks": [["go"]] * n, **zeros}
    times = {f"videos/{EXTERIOR}/from_timestamp": [i * 20 / FPS for i in range(n)]}
    files.write_table(folder / "meta/episodes/chunk-000/file-000.parquet", pa.table({**rows, **times}))
    features = {name: one for name, one in files.info("v3.0")["features"].items() if name not in CAMERAS[:2]}
    dataset = LeRobotDataset(edit(folder, features=features))
    began = time.perf_counter()
    assert dataset.cameras == (EXTERIOR,)
    assert time.perf_counter() - began < 20
    assert len(dataset.windows(19)) == n
    assert len(dataset.windows(21)) == 0
    assert dataset.clip(n - 1, EXTERIOR).begin == pytest.approx((n - 1) * 20 / FPS)


def test_an_empty_folder(tmp_path):
    with pytest.raises(LeRobotError, match=r"is not a LeRobot dataset: it has no meta/info\.json"):
        LeRobotDataset(tmp_path)
    with pytest.raises(LeRobotError, match="is not a LeRobot dataset"):
        LeRobotDataset(tmp_path / "nowhere")


def test_a_dataset_without_episodes(folder):
    none = pa.table(
        {
            "episode_index": pa.array([], pa.int64()),
            "length": pa.array([], pa.int64()),
            "tasks": pa.array([], pa.list_(pa.string())),
        }
    )
    files.write_table(folder / "meta/episodes/chunk-000/file-000.parquet", none)
    with pytest.raises(LeRobotError, match="has no episodes"):
        LeRobotDataset(folder)
    (folder / "meta/episodes/chunk-000/file-000.parquet").unlink()
    with pytest.raises(LeRobotError, match="no tables in meta/episodes"):
        LeRobotDataset(folder)


def test_limits_are_checked_before_and_while_a_table_is_read(folder, monkeypatch):
    dataset = LeRobotDataset(folder)
    monkeypatch.setattr(tables, "MAX_TABLE_BYTES", 100)
    with pytest.raises(ValueError, match="holds more than the limit"):
        dataset.episode(0)["action.joint_position"]
    monkeypatch.setattr(tables, "MAX_ROWS", 32)
    with pytest.raises(ValueError, match="has 33 rows; the limit is 32"):
        dataset.episode(0)["action.joint_position"]


def test_without_pyarrow(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"need the package pyarrow: pip install omni\[robot\]"):
        LeRobotDataset(folder)


# -- a published episode -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SAMPLE.exists(), reason="the published episode is not here")
class TestPublishedEpisode:
    """Its table has joints and grippers of the first frame only; poses, commands of the gripper and times are whole."""

    def test_what_it_holds(self):
        dataset = LeRobotDataset(SAMPLE)
        episode = dataset.episode(0)
        assert (len(dataset), episode.length, dataset.fps, dataset.info.robot_type) == (1, 722, 15.0, "panda")
        assert dataset.cameras == (EXTERIOR,)
        assert len(dataset.info.cameras) == 3
        assert dataset.tasks == {0: " |  | "}  # three wordings, all of them empty
        assert episode.task == " |  | "
        assert len(dataset.windows(32)) == 690
        assert np.allclose(episode["timestamp"], np.arange(722) / 15)
        assert episode["observation.state.cartesian_position"].shape == (722, 6)
        assert np.abs(episode["observation.state.cartesian_position"][:, :3]).max() < 0.9  # metres: an arm's reach
        assert np.abs(episode["observation.state.cartesian_position"][:, 3:]).max() <= np.pi
        grip = episode["action.gripper_position"]
        assert grip.min() == 0
        assert grip.max() == 1
        with pytest.raises(LeRobotError, match="wrist_image_left are not all there"):
            dataset.frames(0, "observation.image.wrist_image_left", [0])

    def test_frames_are_those_of_the_file(self):
        asked = [0, 1, 17, 250, 251, 721]
        found = LeRobotDataset(SAMPLE).frames(0, EXTERIOR, asked)
        assert found.shape == (6, 360, 640, 3)
        with av.open(str(SAMPLE / f"videos/{EXTERIOR}/chunk-000/file-000.mp4")) as container:
            count = 0
            for number, frame in enumerate(container.decode(video=0)):
                count += 1
                if number in asked:
                    assert np.array_equal(found[asked.index(number)], frame.to_ndarray(format="rgb24"))
        assert count == 722
