"""Actions of robots, cameras and hands: whose they are, the model's form of them, and the poses behind them.

    name ── embodiment ──> Embodiment: the checkpoint's own, else a registered one, else a published one
    actions (n, a), its own units ── encode: grippers, normalising, zeros ──> (n, width), what the model reads
                                 <── decode ──
    poses (n + 1, 4, 4) ── relative_poses ──> (n, 9): 3 numbers of translation, 6 of rotation
                       <── integrate_poses ──

An action leads from one frame to the next, so a chunk of n belongs to n + 1 frames. Published names, domains, widths
and the representation: ``reference`` cosmos3, sections 6.1 to 6.3.
"""

import difflib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omni.config import ActionConfig, ConfigError, Embodiment, Normalizer, replace

POSE = 9  # translation, and a rotation as its first two columns
CONVENTIONS = ("framewise", "anchored")  # relative to the pose before, or to the first one
DROID_TO_OPENCV = ((0, -1, 0), (1, 0, 0), (0, 0, 1))  # turns the axes of DROID's end effector: R @ this
MOST_NUMBERS = 1 << 28  # of one array of actions
ORTHONORMAL = 1e-3  # how far R^T R of a pose may be from the identity

_BLOCKS = {"pose": POSE, "gripper": 1, "hand": 15}  # a hand: five finger tips in space


# -- whose actions they are ------------------------------------------------------------------------------------------


def _of_blocks(name: str, domain: int, blocks: str, **more: Any) -> Embodiment:
    """An embodiment whose actions are blocks of known meaning, one behind the other."""
    start, grippers, rotations = 0, [], []
    for block in blocks.split():
        if block == "pose":
            rotations += range(start + 3, start + POSE)
        if block == "gripper":
            grippers.append(start)
        start += _BLOCKS[block]
    channels = {"gripper_channels": tuple(grippers), "rotation_channels": tuple(rotations)}
    return Embodiment(name=name, domain=domain, width=start, **channels, **more)


ARM, TWO_ARMS, HUMANOID = "pose gripper", "pose gripper pose gripper", "pose pose gripper pose gripper"
_PUBLISHED = (
    Embodiment(name="no_action", domain=0, width=None),
    _of_blocks("av", 1, "pose"),
    _of_blocks("camera_pose", 2, "pose"),
    _of_blocks("hand_pose", 3, "pose pose hand pose hand"),
    Embodiment(name="pusht", domain=4, width=2),
    Embodiment(name="libero", domain=5, width=None),  # 7, 10 or 13, by how the data set writes rotations
    _of_blocks("umi", 6, ARM),
    _of_blocks("bridge_orig_lerobot", 7, ARM),
    _of_blocks("droid_lerobot", 8, ARM, gripper="invert", fps=15.0),
    # Absolute positions of seven joints, for the DROID policies.
    Embodiment(
        name="droid_joint_pos",
        domain=8,
        width=8,
        gripper="invert",
        gripper_channels=(7,),
        fps=15.0,
        chunk=32,
        viewpoint="concat_view",
    ),
    _of_blocks("robomind-franka", 8, ARM),
    *(Embodiment(name=name, domain=9, width=30) for name in ("galbot", "embodiment_b")),
    _of_blocks("robomind-franka-dual", 12, TWO_ARMS),
    _of_blocks("robomind-ur", 13, ARM),
    _of_blocks("agibotworld", 15, HUMANOID),
    *(
        _of_blocks(f"{kind}_gripper{end}", 15, HUMANOID)
        for kind in ("agibot_gear", "embodiment_c")
        for end in ("", "_ext")
    ),
    *(_of_blocks(name, 16, TWO_ARMS) for name in ("xdof_yam", "molmoact2_yam", "abc_yam")),
    Embodiment(name="robotwin", domain=17, width=14),
    _of_blocks("fractal", 20, ARM),
    Embodiment(name="drawanything", domain=21, width=3),
    Embodiment(name="behavior1k_lerobot", domain=22, width=23),
    _of_blocks("maniparena", 23, TWO_ARMS),
)
PUBLISHED = {one.name: one for one in _PUBLISHED}
"""Name -> embodiment. Those that share a domain share its projections. Statistics belong to data sets: none is here."""

_REGISTERED: dict[str, Embodiment] = {}


def register(new: Embodiment) -> Embodiment:
    """Make ``new`` known by its name in this process; it replaces a registered or published one of that name."""
    _REGISTERED[new.name] = new
    return new


def embodiment(name: str | Embodiment, config: ActionConfig | None = None) -> Embodiment:
    """Whose actions ``name`` stands for: the checkpoint's own first, then the registered, then the published ones.

    Raises:
        ValueError: the name is unknown (with close ones), or a model of ``config`` has no place for the actions.
    """
    own = {one.name: one for one in config.embodiments} if config else {}
    known = {**PUBLISHED, **_REGISTERED, **own}
    if not isinstance(name, Embodiment) and name not in known:
        close = difflib.get_close_matches(str(name).lower(), known, 3, 0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(known))}"
        raise ValueError(f"unknown embodiment {str(name)[:80]!r}; {hint}")
    found = name if isinstance(name, Embodiment) else known[name]
    if config is not None:
        config.check(found)
    return found


def fit(of: Embodiment, actions: Any, method: str = "quantile", clamp: bool = False) -> Embodiment:
    """``of`` with a normaliser fitted to its raw actions (n, a), whose grippers are inverted first where it says so.

    Methods: ``omni.config_action.STATISTICS``. ConfigError (a ValueError) where they cannot be fitted.
    """
    data = _flip(_checked(actions, f"actions of {of.name}", _width(of)), of)
    if data.dim() != 2:
        raise ConfigError(f"actions to fit are {tuple(data.shape)}; they must be (n, a)")
    found = Normalizer.fit(method, data.cpu().numpy(), rotation_channels=of.rotation_channels, clamp=clamp)
    return replace(of, normalizer=found)


# -- the model's form of them ----------------------------------------------------------------------------------------


def encode(actions: Any, of: Embodiment, width: int) -> Tensor:
    """Raw actions (n, a) or (b, n, a) -> what the model reads (n, width) or (b, n, width).

    float32; a tensor of float64 stays so. ValueError where the width is not the embodiment's or a number is not finite.
    """
    found = _flip(_checked(actions, f"actions of {of.name}", _width(of)), of)
    return pad(found if of.normalizer is None else _normalise(found, of.normalizer), width)


def decode(actions: Any, of: Embodiment) -> Tensor:
    """Inverse of :func:`encode`; channels behind the embodiment's are dropped. Only what was clamped stays lost."""
    found = unpad(actions, _width(of))
    if of.normalizer is not None:
        found = _denormalise(found, of.normalizer)
    return _checked(_flip(found, of), f"decoded actions of {of.name}", _width(of))


def pad(actions: Any, width: int) -> Tensor:
    """(n, a) or (b, n, a) with zeros behind, up to ``width`` numbers an action."""
    found = _checked(actions, "actions")
    if found.shape[-1] > width or found.numel() // found.shape[-1] * width > MOST_NUMBERS:
        raise ValueError(f"actions {tuple(found.shape)} cannot be filled up to {width} numbers each")
    return torch.nn.functional.pad(found, (0, width - found.shape[-1]))


def unpad(actions: Any, width: int) -> Tensor:
    """The first ``width`` numbers of each of the actions (n, w) or (b, n, w)."""
    found = _checked(actions, "actions")
    if not 1 <= width <= found.shape[-1]:
        raise ValueError(f"actions {tuple(found.shape)} hold {found.shape[-1]} numbers each, not {width}")
    return found[..., :width]


def chunk(actions: Any, n: int) -> Tensor:
    """(m, a) or (b, m, a) -> n actions: the last one is repeated where there are too few, further ones are cut off."""
    found = _checked(actions, "actions")
    size = found.numel() // found.shape[-2]
    if not 1 <= n <= MOST_NUMBERS // size:
        raise ValueError(f"a chunk of {n} actions; 1 to {MOST_NUMBERS // size} are possible")
    found = found[..., :n, :]
    missing = n - found.shape[-2]
    return torch.cat([found, found[..., -1:, :].expand(*found.shape[:-2], missing, -1)], -2) if missing else found


def _width(of: Embodiment) -> int:
    if of.width is None:
        raise ValueError(
            f"embodiment {of.name!r} has no width of its own: take omni.config.replace(it, width=...) for your data"
        )
    return of.width


def _checked(actions: Any, what: str, width: int | None = None) -> Tensor:
    """As a tensor of float32 or float64, whose shape and numbers are sound."""
    found = actions if isinstance(actions, Tensor) else np.asarray(actions)
    shape, size = tuple(found.shape), math.prod(found.shape)
    if len(shape) not in (2, 3) or not 0 < size <= MOST_NUMBERS:
        raise ValueError(f"{what} are {shape}; (n, a) or (b, n, a) of at most {MOST_NUMBERS} numbers are wanted")
    if width is not None and shape[-1] != width:
        raise ValueError(f"{what} have {shape[-1]} numbers each; {width} are wanted")
    if isinstance(found, np.ndarray):
        if found.dtype.kind not in "fiub":
            raise ValueError(f"{what} are of type {found.dtype}; numbers are wanted")
        found = torch.tensor(found, dtype=torch.float32)
    found = found if found.dtype == torch.float64 else found.float()
    if not bool(found.isfinite().all()):
        raise ValueError(f"{int((~found.isfinite()).sum())} numbers of the {what} are not finite")
    return found


def _flip(actions: Tensor, of: Embodiment) -> Tensor:
    """g -> 1 - g of an inverted gripper; its own inverse."""
    if of.gripper == "keep":
        return actions
    flipped = actions.clone()
    channels = list(of.gripper_channels)
    flipped[..., channels] = 1 - actions[..., channels]
    return flipped


def _normalise(actions: Tensor, by: Normalizer) -> Tensor:
    z = (actions - actions.new_tensor(by.offset)) / actions.new_tensor(by.scale)
    if by.method == "asinh_rot":
        return z.asinh() / math.asinh(1)
    if by.method == "piecewise_asinh_rot":
        return torch.where(z.abs() <= 1, z, z.sign() * (1 + (z.abs() - 1).asinh()))
    return z.clamp(-1, 1) if by.clamp else z


def _denormalise(values: Tensor, by: Normalizer) -> Tensor:
    z = values
    if by.method == "asinh_rot":
        z = (values * math.asinh(1)).sinh()
    if by.method == "piecewise_asinh_rot":
        z = torch.where(values.abs() <= 1, values, values.sign() * (1 + (values.abs() - 1).sinh()))
    return z * values.new_tensor(by.scale) + values.new_tensor(by.offset)


# -- rotations and poses ---------------------------------------------------------------------------------------------


def rotation_6d(rotations: Tensor) -> Tensor:
    """(..., 3, 3) -> (..., 6): the first two columns, one behind the other. The identity is 1, 0, 0, 0, 1, 0."""
    _check_shape(rotations, (3, 3), "rotations")
    return rotations[..., :2].transpose(-1, -2).flatten(-2)


def rotation_matrix(columns: Tensor) -> Tensor:
    """(..., 6) -> the rotation (..., 3, 3) by Gram and Schmidt's method; ValueError where the columns are parallel."""
    _check_shape(columns, (6,), "6D rotations")
    first, second = columns[..., :3], columns[..., 3:]
    x = torch.nn.functional.normalize(first, dim=-1)
    across = second - (x * second).sum(-1, keepdim=True) * x
    y = torch.nn.functional.normalize(across, dim=-1)
    small = (first.norm(dim=-1) < 1e-6) | (across.norm(dim=-1) < 1e-6 * second.norm(dim=-1).clamp(min=1))
    if bool(small.any()) or not bool(columns.isfinite().all()):
        raise ValueError(f"{int(small.sum())} of the 6D rotations have parallel or zero columns, or are not finite")
    return torch.stack([x, y, torch.linalg.cross(x, y)], -1)


def rotation_of_quaternion(quaternions: Tensor) -> Tensor:
    """x, y, z, w (..., 4), of any length but zero -> (..., 3, 3)"""
    from scipy.spatial.transform import Rotation

    _check_shape(quaternions, (4,), "quaternions")
    if not bool((quaternions.norm(dim=-1) > 1e-8).all()) or not bool(quaternions.isfinite().all()):
        raise ValueError("a quaternion has no length, or is not finite")
    found = Rotation.from_quat(quaternions.detach().cpu().double().reshape(-1, 4).numpy()).as_matrix()
    return torch.from_numpy(found).to(quaternions).reshape(*quaternions.shape[:-1], 3, 3)


def quaternion_of_rotation(rotations: Tensor) -> Tensor:
    """(..., 3, 3) -> x, y, z, w (..., 4), of length one with w >= 0"""
    from scipy.spatial.transform import Rotation

    _check_rotations(rotations)
    plain = rotations.detach().cpu().double().reshape(-1, 3, 3).numpy()
    found = Rotation.from_matrix(plain).as_quat(canonical=True)
    return torch.from_numpy(found).to(rotations).reshape(*rotations.shape[:-2], 4)


def pose(translations: Tensor, rotations: Tensor) -> Tensor:
    """(..., 3) and (..., 3, 3) -> (..., 4, 4)"""
    _check_shape(translations, (3,), "translations")
    _check_shape(rotations, (3, 3), "rotations")
    top = torch.cat([rotations, translations[..., None]], -1)
    bottom = top.new_tensor([0, 0, 0, 1]).expand(*top.shape[:-2], 1, 4)
    return torch.cat([top, bottom], -2)


def turn_axes(poses: Tensor, axes: Any = DROID_TO_OPENCV, *, back: bool = False) -> Tensor:
    """Poses (..., 4, 4) whose own axes are ``axes`` (3, 3), the places stay: R -> R @ axes, or ``back``."""
    turn = torch.as_tensor(axes, dtype=poses.dtype, device=poses.device)
    _check_rotations(turn)
    _check_poses(poses)
    return pose(poses[..., :3, 3], poses[..., :3, :3] @ (turn.mT if back else turn))


def relative_poses(poses: Tensor, convention: str = "framewise") -> Tensor:
    """Poses (..., n + 1, 4, 4) -> actions (..., n, 9).

    Action i is T_i^-1 T_{i+1} ("framewise") or T_0^-1 T_{i+1} ("anchored").
    """
    _check_convention(convention)
    _check_poses(poses)
    if poses.dim() < 3 or poses.shape[-3] < 2:
        raise ValueError(f"poses are {tuple(poses.shape)}; (n + 1, 4, 4) with at least two are wanted")
    wide = poses.double()
    start = wide[..., :-1, :, :] if convention == "framewise" else wide[..., :1, :, :]
    steps = _inverse(start) @ wide[..., 1:, :, :]
    return torch.cat([steps[..., :3, 3], rotation_6d(steps[..., :3, :3])], -1).to(poses.dtype)


def integrate_poses(first: Tensor, actions: Tensor, convention: str = "framewise") -> Tensor:
    """Inverse of :func:`relative_poses`: the first pose (..., 4, 4) and actions (..., n, 9) -> (..., n + 1, 4, 4)."""
    _check_convention(convention)
    _check_poses(first)
    if actions.dim() < 2 or actions.shape[-1] != POSE or not actions.shape[-2]:
        raise ValueError(f"actions are {tuple(actions.shape)}; (n, {POSE}) with at least one are wanted")
    steps = pose(actions[..., :3].double(), rotation_matrix(actions[..., 3:].double()))
    poses = [first.double()]
    for step in steps.unbind(-3):
        poses.append((poses[-1] if convention == "framewise" else poses[0]) @ step)
    return torch.stack(poses, -3).to(actions.dtype)


def _inverse(poses: Tensor) -> Tensor:
    turned = poses[..., :3, :3].mT
    return pose(-(turned @ poses[..., :3, 3:])[..., 0], turned)


def _check_convention(convention: str) -> None:
    if convention not in CONVENTIONS:
        raise ValueError(f"unknown convention {convention!r}; known: {', '.join(CONVENTIONS)}")


def _check_shape(values: Tensor, last: tuple[int, ...], what: str) -> None:
    if tuple(values.shape[-len(last) :]) != last or not values.is_floating_point() or not values.numel():
        wanted = ", ".join(("...", *map(str, last)))
        raise ValueError(f"{what} are {tuple(values.shape)} {values.dtype}; floats ({wanted}) are wanted")


def _check_rotations(rotations: Tensor) -> None:
    _check_shape(rotations, (3, 3), "rotations")
    wide = rotations.double()
    off = float((wide.mT @ wide - torch.eye(3).to(wide)).abs().max())
    if not off <= ORTHONORMAL or not bool((torch.linalg.det(wide) > 0).all()):
        raise ValueError(f"not rotations: R^T R is {off:.2g} from the identity (limit {ORTHONORMAL}), or R mirrors")


def _check_poses(poses: Tensor) -> None:
    _check_shape(poses, (4, 4), "poses")
    _check_rotations(poses[..., :3, :3])
    if not bool(poses.isfinite().all()) or not bool((poses[..., 3, :] == poses.new_tensor([0, 0, 0, 1])).all()):
        raise ValueError("poses must be finite, and their last row 0, 0, 0, 1")
