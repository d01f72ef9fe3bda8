"""DROID episodes as Cosmos 3 learns from them: views, a sentence, and actions of a Franka arm with a gripper.

    LeRobotDataset ── sample(episode, start) ──> DroidSample: frames (c + 1, H, W, 3), state (a,), actions (c, a)
                                                    └── rows (c + 1, a) ── tokenizers.action.encode ──> the model
                   ── observation(episode, frame) ──> what a robot sends to a policy server

Two ways of writing down what the arm does; action i leads from frame i to frame i + 1:

joint_pos   8 numbers: the seven commanded joint positions in radians, absolute, and the commanded gripper.
ee_pose     10 numbers: the step of the measured end effector T_i^-1 T_{i+1} (metres, then the first two columns of its
            rotation), and the commanded gripper.

The end effector is the arm's flange (panda_link8) in the base's frame. A dataset has its place and its rotations about
the fixed axes x, y, z, in this order, in radians; the first frame of the published example agrees with the forward
kinematics of its joints to 1e-5. Its axes are turned to those of a camera (x right, y down, z ahead) as in training.

A gripper is 0 where it is open and 1 where it is closed, here as in the dataset. The model has 1 - g: that is what
``tokenizers.action.encode`` makes of it, for the embodiment that a sample names, so it must not be turned before.
Source: ``reference`` cosmos3, sections 6.2 to 6.6, and the DROID loader of cosmos-framework.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from omni.data.lerobot import Episode, LeRobotDataset
from omni.data.rollout import Rollout
from omni.tokenizers import canvas
from omni.tokenizers.action import pose, quaternion_of_rotation, relative_poses, rotation_6d, turn_axes

JOINTS = 7
CHUNK = 32  # actions that a policy answers with; forward dynamics was trained with 16
SPACES = {"joint_pos": "droid_joint_pos", "ee_pose": "droid_lerobot"}  # -> embodiment
VIEWPOINTS = {
    "all": "concat_view",
    "wrist": "wrist_view",
    "left": "third_person_view",
    "right": "third_person_view",
    "exterior": "third_person_view",
}
MAX_CHUNK = 1024


@dataclass(frozen=True, kw_only=True)
class DroidColumns:
    """Names of a dataset's columns and cameras; as in Cosmos3-DROID where nothing else is said."""

    joints: str = "observation.state.joint_positions"  # (7,) radians
    gripper: str = "observation.state.gripper_position"  # 0 open, 1 closed
    end_effector: str = "observation.state.cartesian_position"  # (6,) x, y, z in metres and three angles in radians
    joint_action: str = "action.joint_position"
    gripper_action: str = "action.gripper_position"
    wrist: str = "observation.image.wrist_image_left"
    left: str = "observation.image.exterior_image_1_left"
    right: str = "observation.image.exterior_image_2_left"


COSMOS3_DROID = DroidColumns()


@dataclass(frozen=True, kw_only=True)
class DroidSample(Rollout):
    """A rollout that also says where the arm is at its first frame."""

    state: np.ndarray  # (a,) float32: absolute, written as the actions are
    viewpoint: str  # of the frames, as action captions name it
    first_pose: np.ndarray | None = None  # (4, 4) of the end effector, camera axes: where the steps of ee_pose begin

    @property
    def rows(self) -> np.ndarray:
        """(T, a): the state, then the actions; what a policy that is told the state has, one row a frame."""
        return np.concatenate([self.state[None], self.actions])


class Movement(NamedTuple):
    """Numbers of a window, in one of the :data:`SPACES`."""

    actions: np.ndarray  # (count, a) float32
    state: np.ndarray  # (a,) float32, at the first frame
    first_pose: np.ndarray | None  # (4, 4) of the end effector, of ee_pose


def sample(
    dataset: LeRobotDataset,
    episode: int,
    start: int,
    chunk: int = CHUNK,
    space: str = "joint_pos",
    views: str = "all",
    prompt: str | None = None,
    wording: int = 0,
    columns: DroidColumns = COSMOS3_DROID,
) -> DroidSample:
    """``chunk`` actions from frame ``start`` on, with the ``chunk`` + 1 frames around them.

    ``views``: "all" is the wrist camera above both outer ones, which are half as large: (3 H / 2, W); "wrist", "left"
    and "right" are one camera; "exterior" is the left one, or the right one where only that is there. The sentence is
    the task's (the ``wording``-th, counted round, where it has several) unless ``prompt`` is given; it may be empty.
    ValueError where a camera or a column is missing or is not DROID's, or the episode is too short.
    """
    _check_choice("views", views, VIEWPOINTS)
    if not 1 <= chunk <= MAX_CHUNK:
        raise ValueError(f"chunk is {chunk}; it must lie between 1 and {MAX_CHUNK}")
    moved = movement(dataset, episode, start, chunk, space, columns)
    worded = wordings(dataset.episode(episode).task)
    return DroidSample(
        prompt=worded[wording % len(worded)] if prompt is None else prompt,
        frames=composed(dataset, episode, range(start, start + chunk + 1), views, columns),
        fps=dataset.fps,
        actions=moved.actions,
        embodiment=SPACES[space],
        kind="droid",
        state=moved.state,
        viewpoint=VIEWPOINTS[views],
        first_pose=moved.first_pose,
    )


def movement(
    dataset: LeRobotDataset,
    episode: int,
    start: int,
    count: int,
    space: str = "joint_pos",
    columns: DroidColumns = COSMOS3_DROID,
) -> Movement:
    """What the arm does in ``count`` actions from frame ``start`` on; no video is opened. ValueError as of sample."""
    _check_choice("space", space, SPACES)
    found = dataset.episode(episode)
    if count < 1 or not 0 <= start < found.length - count:
        raise ValueError(
            f"{count} actions from frame {start} of episode {episode} need frames up to {start + count}; "
            f"it has frames 0 to {found.length - 1}"
        )
    grip = _numbers(found, columns.gripper_action, 1)[start : start + count]
    grip_now = _numbers(found, columns.gripper, 1)[start]
    first = None
    if space == "joint_pos":
        moves = _numbers(found, columns.joint_action, JOINTS)[start : start + count]
        place = _numbers(found, columns.joints, JOINTS)[start]
    else:
        poses = end_effector(_numbers(found, columns.end_effector, 6)[start : start + count + 1])
        moves, first = relative_poses(poses).numpy(), poses[0].numpy()
        place = np.concatenate([first[:3, 3], rotation_6d(poses[0, :3, :3]).numpy()])
    return Movement(
        np.concatenate([moves, grip], axis=1).astype(np.float32),
        np.concatenate([place, grip_now]).astype(np.float32),
        first,
    )


def observation(
    dataset: LeRobotDataset,
    episode: int,
    frame: int,
    space: str = "joint_pos",
    views: str = "all",
    history: int = 1,
    prompt: str | None = None,
    columns: DroidColumns = COSMOS3_DROID,
) -> dict[str, Any]:
    """What a robot at a frame of the dataset sends to a DROID policy server that speaks OpenPI's protocol.

    The three pictures (H, W, 3) uint8 under their own names, or with ``views`` other than "all" one picture
    ``observation/image``; the last ``history`` states, (history, 7) joints or (history, 3) places and (history, 4)
    quaternions x, y, z, w of the end effector with camera axes, (history, 1) of the gripper as the robot has it, all
    float32; and the sentence.
    """
    _check_choice("space", space, SPACES)
    _check_choice("views", views, VIEWPOINTS)
    found = dataset.episode(episode)
    if not 0 <= frame < found.length or not 1 <= history <= frame + 1:
        raise ValueError(
            f"{history} states up to frame {frame} of episode {episode}: it has frames 0 to {found.length - 1}, "
            f"and at least 1 state and at most {frame + 1} lie up to this one"
        )
    seen = slice(frame + 1 - history, frame + 1)
    message: dict[str, Any] = {"prompt": wordings(found.task)[0] if prompt is None else prompt}
    if views == "all":
        names = {"wrist_image_left": "wrist", "exterior_image_1_left": "left", "exterior_image_2_left": "right"}
        for name, view in names.items():
            message[f"observation/{name}"] = composed(dataset, episode, [frame], view, columns)[0]
    else:
        message["observation/image"] = composed(dataset, episode, [frame], views, columns)[0]
    message["observation/gripper_position"] = _numbers(found, columns.gripper, 1)[seen].astype(np.float32)
    if space == "joint_pos":
        message["observation/joint_position"] = _numbers(found, columns.joints, JOINTS)[seen].astype(np.float32)
    else:
        poses = end_effector(_numbers(found, columns.end_effector, 6)[seen])
        message["observation/eef_pos"] = poses[:, :3, 3].float().numpy()
        message["observation/eef_quat"] = quaternion_of_rotation(poses[:, :3, :3]).float().numpy()
    return message


def end_effector(positions: np.ndarray) -> Tensor:
    """DROID's cartesian positions (n, 6) -> poses (n, 4, 4) float64 with the axes of a camera."""
    rotations = Rotation.from_euler("xyz", positions[:, 3:]).as_matrix()
    return turn_axes(pose(torch.tensor(positions[:, :3], dtype=torch.float64), torch.tensor(rotations)))


def wordings(task: str) -> list[str]:
    """The sentences of a task, at least one: Cosmos3-DROID has up to three, with bars between them."""
    return [text for part in task.split(" | ") if (text := part.strip(" |"))] or [""]


def composed(
    dataset: LeRobotDataset, episode: int, indices: Any, views: str = "all", columns: DroidColumns = COSMOS3_DROID
) -> np.ndarray:
    """Frames (n, H, W, 3) uint8 of an episode as ``views`` says; see :func:`sample`."""
    _check_choice("views", views, VIEWPOINTS)
    if views == "exterior":
        views = "left" if columns.left in dataset.cameras or columns.right not in dataset.cameras else "right"
    if views != "all":
        return dataset.frames(episode, getattr(columns, views), indices)
    cameras = [dataset.frames(episode, camera, indices) for camera in (columns.wrist, columns.left, columns.right)]
    together = canvas.views(*(torch.from_numpy(frames).permute(0, 3, 1, 2) for frames in cameras))
    return (together * 255).round().byte().permute(0, 2, 3, 1).numpy()


def _numbers(episode: Episode, name: str, width: int) -> np.ndarray:
    """A column as (n, width), finite."""
    values = episode[name]
    found = values.size // len(values)
    if found != width or values.dtype.kind not in "fiu":
        raise ValueError(
            f"{name} of episode {episode.index} has {found} numbers a frame ({values.dtype}); DROID has {width}"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{name} of episode {episode.index} holds numbers that are not finite")
    return values.reshape(len(values), width).astype(np.float64)


def _check_choice(name: str, value: str, known: dict[str, str]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(known)}")
