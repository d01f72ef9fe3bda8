"""DROID's conventions: axes, gripper, which numbers belong to which frame, and how three cameras become one picture."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

pa = pytest.importorskip("pyarrow")
pytest.importorskip("av")

import lerobot_files as files  # noqa: E402
from lerobot_files import CAMERAS, HEIGHT, LENGTHS, WIDTH, shown  # noqa: E402

from omni.data import droid  # noqa: E402
from omni.data.lerobot import LeRobotDataset, LeRobotError  # noqa: E402
from omni.tokenizers.action import embodiment as embodiment_named  # noqa: E402
from omni.tokenizers.action import (  # noqa: E402
    encode,
    integrate_poses,
    relative_poses,
    rotation_6d,
    rotation_matrix,
    rotation_of_quaternion,
)

SAMPLE = Path(__file__).resolve().parents[2] / "shared/samples/generator/action/droid_lerobot_example"
PLACE = "observation.state.cartesian_position"

# Of the arm's data sheet: limits of the joints in radians, and Denavit-Hartenberg parameters (a, d, alpha) in Craig's
# convention; the flange lies 0.107 m behind the seventh joint.
LOWEST = np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973])
HIGHEST = np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973])
LINKS = [(0, 0.333, 0), (0, 0, -1), (0, 0.316, 1), (0.0825, 0, 1), (-0.0825, 0.384, -1), (0, 0, 1), (0.088, 0, 1)]

# Published 1st and 99th percentiles of the training set's steps: 3 of translation, 6 of rotation.
Q01 = np.array([-0.0142, -0.013416, -0.015206, 0.998459, -0.047659, -0.034774, -0.047609, 0.998428, -0.035553])
Q99 = np.array([0.014515, 0.011517, 0.01452, 1.0, 0.047596, 0.03466, 0.047654, 1.0, 0.038888])


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return files.write_shared(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def dataset(shared):
    return LeRobotDataset(shared)


@pytest.fixture
def folder(shared, tmp_path):
    return Path(shutil.copytree(shared, tmp_path / "robot"))


# -- actions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("episode", "start", "chunk"), [(0, 0, 16), (0, 3, 16), (1, 5, 7), (1, 0, 12)])
def test_joint_positions(dataset, episode, start, chunk):
    """Absolute commands of the frames, behind the measured state of the first one."""
    found = droid.sample(dataset, episode, start, chunk)
    numbers = files.columns(episode)
    arm, grip = numbers["action.joint_position"], numbers["action.gripper_position"]
    assert np.array_equal(found.actions, np.hstack([arm, grip])[start : start + chunk])
    joints, gripper = numbers["observation.state.joint_positions"], numbers["observation.state.gripper_position"]
    assert np.array_equal(found.state, np.hstack([joints, gripper])[start])
    assert found.rows.shape == (chunk + 1, 8) == (len(found.frames), 8)
    assert np.array_equal(found.rows[0], found.state)
    assert (found.embodiment, found.fps, found.first_pose) == ("droid_joint_pos", 15.0, None)


def test_the_gripper_is_inverted_once(dataset):
    """The sample has 0 for open, as the robot; what the model reads has 1 for open."""
    for space, width in (("joint_pos", 8), ("ee_pose", 10)):
        found = droid.sample(dataset, 0, 2, 8, space)
        read = encode(found.rows, embodiment_named(found.embodiment), 64)
        grips = files.columns(0)
        wanted = np.concatenate(
            [grips["observation.state.gripper_position"][2], grips["action.gripper_position"][2:10, 0]]
        )
        assert np.array_equal(found.rows[:, -1], wanted)
        assert np.allclose(read[:, width - 1], 1 - wanted, atol=1e-7)
        assert np.array_equal(read[:, : width - 1], found.rows[:, :-1])
        assert not read[:, width:].any()


@pytest.mark.parametrize(("episode", "start", "chunk"), [(0, 0, 16), (1, 4, 8)])
def test_steps_of_the_end_effector_lead_through_its_poses(dataset, episode, start, chunk):
    found = droid.sample(dataset, episode, start, chunk, "ee_pose")
    poses = droid.end_effector(files.columns(episode)[PLACE].astype(np.float64))[start : start + chunk + 1]
    walked = integrate_poses(torch.from_numpy(found.first_pose), torch.from_numpy(found.actions[:, :9]).double())
    assert torch.allclose(walked, poses, atol=1e-6)
    assert found.actions.shape == (chunk, 10)
    assert found.embodiment == "droid_lerobot"
    assert np.allclose(found.state[:3], poses[0, :3, 3], atol=1e-6)
    assert torch.allclose(rotation_matrix(torch.from_numpy(found.state[3:9])).double(), poses[0, :3, :3], atol=1e-6)


def test_axes_of_the_end_effector():
    """Angles about the fixed axes x, then y, then z; then the camera's axes: its x is the flange's y, its y -x."""
    x, y, z = 0.3, -0.5, 1.1
    about = [Rotation.from_rotvec(np.eye(3)[axis] * angle).as_matrix() for axis, angle in enumerate((x, y, z))]
    found = droid.end_effector(np.array([[1.0, 2.0, 3.0, x, y, z]]))[0].numpy()
    flange = about[2] @ about[1] @ about[0]
    assert np.allclose(found[:3, :3], np.stack([flange[:, 1], -flange[:, 0], flange[:, 2]], axis=1))
    assert np.allclose(found[:, 3], [1, 2, 3, 1])


def test_a_step_is_seen_from_the_end_effector(folder):
    """1 cm along x of a flange whose axes are the base's is -1 cm along the camera's y."""
    numbers = np.zeros((LENGTHS[0] + LENGTHS[1], 6), np.float32)
    numbers[:, 0] = 0.4 + 0.01 * np.arange(len(numbers))
    table = pa.concat_tables([files.table(0), files.table(1)])
    place = table.column_names.index(PLACE)
    path = folder / "data/chunk-000/file-000.parquet"
    files.write_table(path, table.set_column(place, PLACE, pa.array(list(numbers), pa.list_(pa.float32(), 6))))
    steps = droid.sample(LeRobotDataset(folder), 0, 0, 4, "ee_pose").actions[:, :9]
    assert np.allclose(steps, [0, -0.01, 0, 1, 0, 0, 0, 1, 0], atol=1e-6)


# -- views and words ---------------------------------------------------------------------------------------------------


def test_three_views_in_one(dataset):
    found = droid.sample(dataset, 1, 2, 4)
    assert found.frames.shape == (5, HEIGHT * 3 // 2, WIDTH, 3)
    assert found.viewpoint == "concat_view"
    numbers = [20 + i for i in range(2, 7)]
    assert shown(found.frames[:, :HEIGHT]) == [(n, 0) for n in numbers]
    left, right = found.frames[:, HEIGHT:, : WIDTH // 2], found.frames[:, HEIGHT:, WIDTH // 2 :]
    assert shown(left) == [(n, 1) for n in numbers]
    assert shown(right) == [(n, 2) for n in numbers]


@pytest.mark.parametrize(
    ("views", "camera", "viewpoint"),
    [
        ("wrist", 0, "wrist_view"),
        ("left", 1, "third_person_view"),
        ("right", 2, "third_person_view"),
        ("exterior", 1, "third_person_view"),
    ],
)
def test_one_view(dataset, views, camera, viewpoint):
    found = droid.sample(dataset, 0, 1, 2, views=views)
    assert shown(found.frames) == [(i, camera) for i in (1, 2, 3)]
    assert found.viewpoint == viewpoint


def test_a_missing_camera_is_named_and_another_asked_for(folder):
    (folder / f"videos/{CAMERAS[1]}/chunk-000/file-000.mp4").unlink()
    dataset = LeRobotDataset(folder)
    for views in ("all", "left"):
        with pytest.raises(LeRobotError, match="exterior_image_1_left are not all there"):
            droid.sample(dataset, 0, 0, 2, views=views)
    assert shown(droid.sample(dataset, 0, 0, 2, views="exterior").frames) == [(i, 2) for i in range(3)]


def test_words(dataset):
    said = [droid.sample(dataset, 0, 0, 1, wording=i).prompt for i in range(4)]
    assert said == ["pick up the cup", "lift the cup", "take the cup", "pick up the cup"]
    assert droid.sample(dataset, 1, 0, 1, wording=5).prompt == "open the drawer"
    assert droid.sample(dataset, 1, 0, 1, prompt="close it").prompt == "close it"
    assert droid.wordings(" |  | ") == [""] == droid.wordings("")
    assert droid.wordings(" | wipe the table | ") == ["wipe the table"]


# -- what a robot sends ------------------------------------------------------------------------------------------------


def test_an_observation_of_joints(dataset):
    sent, numbers = droid.observation(dataset, 1, 6, history=3), files.columns(1)
    assert sent["prompt"] == "open the drawer"
    names = ("wrist_image_left", "exterior_image_1_left", "exterior_image_2_left")
    for camera, name in enumerate(names):
        picture = sent[f"observation/{name}"]
        assert picture.shape == (HEIGHT, WIDTH, 3)
        assert picture.dtype == np.uint8
        assert shown(picture[None]) == [(26, camera)]
    assert np.array_equal(sent["observation/joint_position"], numbers["observation.state.joint_positions"][4:7])
    assert np.array_equal(sent["observation/gripper_position"], numbers["observation.state.gripper_position"][4:7])
    assert len(sent) == 6
    assert sent["observation/joint_position"].dtype == sent["observation/gripper_position"].dtype == np.float32


def test_an_observation_of_the_end_effector(dataset):
    """Its last row is the state that a sample from this frame begins with."""
    sent = droid.observation(dataset, 0, 5, "ee_pose", "wrist", history=2)
    assert set(sent) == {"prompt", *(f"observation/{n}" for n in ("image", "gripper_position", "eef_pos", "eef_quat"))}
    turned = rotation_of_quaternion(torch.from_numpy(sent["observation/eef_quat"]))
    rows = np.hstack([sent["observation/eef_pos"], rotation_6d(turned).numpy(), sent["observation/gripper_position"]])
    assert np.allclose(rows[-1], droid.sample(dataset, 0, 5, 1, "ee_pose").state, atol=1e-6)
    assert np.allclose(rows[0], droid.sample(dataset, 0, 4, 1, "ee_pose").state, atol=1e-6)
    assert shown(sent["observation/image"][None]) == [(5, 0)]


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda d: droid.sample(d, 1, 0, 13), "need frames up to 13; it has frames 0 to 12"),
        (lambda d: droid.sample(d, 1, -1, 2), "from frame -1"),
        (lambda d: droid.sample(d, 1, 0, 0), "chunk is 0; it must lie between 1 and 1024"),
        (lambda d: droid.sample(d, 1, 0, 2, "torques"), "space is 'torques'; it must be one of joint_pos, ee_pose"),
        (lambda d: droid.sample(d, 1, 0, 2, views="top"), "views is 'top'"),
        (lambda d: droid.sample(d, 5, 0, 2), "no episode 5"),
        (lambda d: droid.sample(d, 1, 0, 2, columns=replace(droid.COSMOS3_DROID, joints="q")), "no column 'q'"),
        (lambda d: droid.sample(d, 1, 0, 2, columns=replace(droid.COSMOS3_DROID, joints=PLACE)), "6 numbers.*has 7"),
        (lambda d: droid.observation(d, 1, 13), "it has frames 0 to 12"),
        (lambda d: droid.observation(d, 1, 2, history=4), "4 states up to frame 2"),
        (lambda d: droid.observation(d, 1, 2, history=0), "0 states"),
    ],
)
def test_bad_requests(dataset, ask, message):
    with pytest.raises(ValueError, match=message):
        ask(dataset)


def test_numbers_that_are_none(folder):
    table = pa.concat_tables([files.table(0), files.table(1)])
    name = "action.gripper_position"
    spoilt = pa.array([float("nan"), *[0.0] * 32], pa.float32())
    path = folder / "data/chunk-000/file-000.parquet"
    files.write_table(path, table.set_column(table.column_names.index(name), name, spoilt))
    with pytest.raises(ValueError, match=r"action\.gripper_position of episode 0 holds numbers that are not finite"):
        droid.sample(LeRobotDataset(folder), 0, 8, 4)


# -- a published episode -----------------------------------------------------------------------------------------------


def flange(joints: np.ndarray) -> np.ndarray:
    """Forward kinematics (7,) -> (4, 4)."""
    found = np.eye(4)
    for (a, d, quarter), angle in zip(LINKS, joints, strict=True):
        step = np.eye(4)
        step[:3, :3] = Rotation.from_euler("x", quarter * np.pi / 2).as_matrix()
        step[:3, 3] = a, *(step[1:3, 2] * d)
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_euler("z", angle).as_matrix()
        found = found @ step @ turn
    end = np.eye(4)
    end[2, 3] = 0.107
    return found @ end


@pytest.fixture(scope="module")
def published():
    return LeRobotDataset(SAMPLE)


@pytest.mark.skipif(not SAMPLE.exists(), reason="the published episode is not here")
class TestPublishedEpisode:
    def test_the_place_is_the_flanges(self, published):
        """The first seven rows of the column of joints are the joints of the first frame."""
        joints = published.episode(0)["observation.state.joint_positions"][:7]
        assert (joints > LOWEST).all()
        assert (joints < HIGHEST).all()
        found = droid.end_effector(published.episode(0)[PLACE][:1])[0].numpy()
        wanted = flange(joints)
        assert np.allclose(found[:3, 3], wanted[:3, 3], atol=1e-5)
        turned = wanted[:3, :3] @ np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
        assert np.allclose(found[:3, :3], turned, atol=1e-5)

    def test_steps_lie_where_those_of_the_training_set_do(self, published):
        steps = relative_poses(droid.end_effector(published.episode(0)[PLACE])).numpy()
        within = ((steps >= Q01 - 1e-6) & (steps <= Q99 + 1e-6)).mean(0)
        assert (within > 0.95).all()  # 0.98 of the training set's own

    def test_a_sample_and_an_observation(self, published):
        found = droid.sample(published, 0, 100, 16, "ee_pose", "exterior")
        assert found.frames.shape == (17, 360, 640, 3)
        assert (found.prompt, found.fps, found.viewpoint) == ("", 15.0, "third_person_view")
        assert np.array_equal(found.frames[3], published.frames(0, CAMERAS[2], [103])[0])
        sent = droid.observation(published, 0, 100, "ee_pose", "exterior")
        assert np.array_equal(sent["observation/image"], found.frames[0])
        assert np.allclose(sent["observation/eef_pos"][0], found.state[:3])

    def test_what_it_lacks(self, published):
        with pytest.raises(ValueError, match=r"joint_position of episode 0 has 1 numbers a frame .*; DROID has 7"):
            droid.sample(published, 0, 0, 32, views="exterior")
        with pytest.raises(LeRobotError, match="wrist_image_left are not all there"):
            droid.sample(published, 0, 0, 32, "ee_pose")
