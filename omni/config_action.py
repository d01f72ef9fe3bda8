"""Whose actions a denoiser tower refines, and how they are scaled; ``omni.config`` has these too.

    actions (n, a) in the embodiment's own units
      ──> g -> 1 - g where the gripper is inverted ──> Normalizer: y = curve((a - offset) / scale) ──> zeros up to width

The statistics are fields, so that they travel in the checkpoint's config.json. Methods and their curves:
``reference`` cosmos3, section 6.3, and cosmos-framework's action_processing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from omni.config_checks import MAX_WIDTH, ConfigError, check_sizes, require, require_known

STATISTICS = {
    "quantile": ("q01", "q99"),
    "quantile_rot": ("q01", "q99"),
    "quantile_rot_scale_floor": ("q01", "q99", "min", "max"),
    "asinh_rot": ("q01", "q99"),
    "piecewise_asinh_rot": ("q01", "q99"),
    "meanstd": ("mean", "std"),
    "minmax": ("min", "max"),
}
"""Method -> statistics of every channel that it needs."""

ROTATIONS_TOO = tuple(method for method in STATISTICS if "_rot" in method)  # the others leave rotations as they are
CLAMPED = ("quantile", "quantile_rot", "quantile_rot_scale_floor", "minmax")  # may cut off what lies outside [-1, 1]
FLOOR_MAX = 5.0  # quantile_rot_scale_floor: no action of the data lies further out
SMALLEST_SCALE = 1e-8  # below it a channel counts as constant
VIEWPOINTS = ("ego_view", "third_person_view", "wrist_view", "concat_view")


@dataclass(frozen=True, kw_only=True)
class Normalizer:
    """y = curve((a - offset) / scale), one offset and scale a channel.

    The curve is the identity; asinh(z) / asinh(1) for ``asinh_rot``; and for ``piecewise_asinh_rot`` the identity
    within [-1, 1], and sign(z) (1 + asinh(|z| - 1)) outside.
    """

    method: str
    offset: tuple[float, ...]
    scale: tuple[float, ...]
    clamp: bool = False  # to [-1, 1], when encoding; what is cut off does not come back

    def __post_init__(self) -> None:
        require_known(self, method=tuple(STATISTICS))
        require(
            len(self.offset) == len(self.scale) and 1 <= len(self.offset) <= MAX_WIDTH,
            f"Normalizer has {len(self.offset)} offsets and {len(self.scale)} scales; one of each a channel is wanted",
        )
        wrong = [value for value in self.offset if not math.isfinite(value)]
        require(not wrong, f"Normalizer.offset holds {wrong[:3]}; offsets must be finite")
        wrong = [value for value in self.scale if not (math.isfinite(value) and value >= SMALLEST_SCALE)]
        require(not wrong, f"Normalizer.scale holds {wrong[:3]}; scales must be finite and at least {SMALLEST_SCALE}")
        require(
            not self.clamp or self.method in CLAMPED,
            f"Normalizer.clamp is set for {self.method}; only {', '.join(CLAMPED)} may cut values off",
        )

    @property
    def width(self) -> int:
        return len(self.offset)

    @classmethod
    def from_statistics(
        cls,
        method: str,
        statistics: Mapping[str, Sequence[float]],
        *,
        rotation_channels: Sequence[int] = (),
        clamp: bool = False,
    ) -> Self:
        """From the numbers of every channel that ``STATISTICS[method]`` names, e.g. those of a published file.

        ``rotation_channels`` keep offset 0 and scale 1, unless the method is one of ``ROTATIONS_TOO``. A constant
        channel keeps scale 1: it becomes zero.
        """
        values = _read(method, statistics)
        if method == "meanstd":
            offset, scale = values["mean"], values["std"]
        else:
            low, high = (values[name] for name in STATISTICS[method][:2])
            offset, scale = (high + low) / 2, (high - low) / 2
        if method == "quantile_rot_scale_floor":
            furthest = np.maximum(np.abs(values["min"] - offset), np.abs(values["max"] - offset))
            scale = np.maximum(scale, furthest / FLOOR_MAX)
        if np.any(scale < 0):
            raise ConfigError(f"the spread of channels {np.flatnonzero(scale < 0).tolist()} is negative: {method}")
        scale = np.where(scale < SMALLEST_SCALE, 1.0, scale)
        if method not in ROTATIONS_TOO:
            kept = _channels(rotation_channels, len(scale), "rotation_channels")
            offset[kept], scale[kept] = 0.0, 1.0
        return cls(method=method, offset=tuple(offset.tolist()), scale=tuple(scale.tolist()), clamp=clamp)

    @classmethod
    def fit(cls, method: str, actions: Any, *, rotation_channels: Sequence[int] = (), clamp: bool = False) -> Self:
        """From actions (n, a) as they are given: a gripper that is inverted must be so already."""
        data = np.asarray(actions, dtype=np.float64)
        if data.ndim != 2 or len(data) < 2 or not 1 <= data.shape[1] <= MAX_WIDTH:
            raise ConfigError(f"actions are {data.shape}; (n, a) with at least two rows are wanted")
        if not np.isfinite(data).all():
            raise ConfigError(f"{int((~np.isfinite(data)).sum())} numbers of the actions are not finite")
        q01, q99 = np.quantile(data, (0.01, 0.99), axis=0)
        statistics = {"q01": q01, "q99": q99, "mean": data.mean(0), "std": data.std(0)}
        statistics |= {"min": data.min(0), "max": data.max(0)}
        return cls.from_statistics(method, statistics, rotation_channels=rotation_channels, clamp=clamp)


def _read(method: str, statistics: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
    """Those that the method needs, as many of each."""
    require(method in STATISTICS, f"unknown method {method!r}; known: {', '.join(STATISTICS)}")
    missing = [name for name in STATISTICS[method] if name not in statistics]
    require(not missing, f"{method} needs the statistics {', '.join(STATISTICS[method])}; {missing} are missing")
    values = {name: np.array(statistics[name], dtype=np.float64) for name in STATISTICS[method]}
    shapes = {name: value.shape for name, value in values.items()}
    require(
        all(len(shape) == 1 for shape in shapes.values()) and len(set(shapes.values())) == 1,
        f"the statistics are {shapes}; one number a channel is wanted of each",
    )
    wrong = [name for name, value in values.items() if not np.isfinite(value).all()]
    require(not wrong, f"the statistics {wrong} hold numbers that are not finite")
    return values


def _channels(channels: Sequence[int], width: int, name: str) -> list[int]:
    wrong = [channel for channel in channels if not 0 <= channel < width]
    require(not wrong, f"{name} holds {wrong}; channels run from 0 to {width - 1}")
    return list(channels)


@dataclass(frozen=True, kw_only=True)
class Embodiment:
    """Whose actions they are: a robot, a camera, a hand, with one way of writing down what it does."""

    name: str
    domain: int  # index of the projections; embodiments may share one
    width: int | None  # numbers of an action; None: the data set decides, see ``dataclasses.replace``
    normalizer: Normalizer | None = None  # None: the actions are the model's already
    gripper: str = "keep"  # "invert": the model has 1 - g
    gripper_channels: tuple[int, ...] = ()  # 0 to 1
    rotation_channels: tuple[int, ...] = ()  # of 6D rotations
    fps: float | None = None  # actions a second
    chunk: int | None = None  # actions of one call
    viewpoint: str | None = None  # of its camera

    def __post_init__(self) -> None:
        require(
            0 < len(self.name) <= 128 and self.name.isprintable(),
            f"Embodiment.name is {self.name[:128]!r}; it must be 1 to 128 printable characters",
        )
        where = f"Embodiment {self.name!r}:"
        require(0 <= self.domain < MAX_WIDTH, f"{where} domain is {self.domain}; it must lie in 0..{MAX_WIDTH - 1}")
        for name in ("width", "chunk"):
            value = getattr(self, name)
            require(
                value is None or 1 <= value <= MAX_WIDTH, f"{where} {name} is {value}; it must lie in 1..{MAX_WIDTH}"
            )
        require(self.fps is None or 0 < self.fps <= 1e6, f"{where} fps is {self.fps}; it must be in (0, 1e6]")
        require_known(self, gripper=("keep", "invert"))
        if self.viewpoint is not None:
            require_known(self, viewpoint=VIEWPOINTS)
        for name in ("gripper_channels", "rotation_channels"):
            _channels(getattr(self, name), self.width or MAX_WIDTH, f"{where} {name}")
        require(
            self.gripper == "keep" or self.gripper_channels != (),
            f"{where} gripper is {self.gripper!r}, but gripper_channels are not set",
        )
        require(
            self.normalizer is None or self.normalizer.width == self.width,
            f"{where} width is {self.width}, its normalizer's {self.normalizer and self.normalizer.width}",
        )


@dataclass(frozen=True, kw_only=True)
class ActionConfig:
    """Actions of robots, one token each; every domain (embodiment) has projections of its own."""

    width: int = 64  # numbers of an action; shorter ones are filled up with zeros
    n_domains: int = 32
    positions_a_second: float = 6.0
    embodiments: tuple[Embodiment, ...] = ()  # those that the checkpoint was trained with

    def __post_init__(self) -> None:
        check_sizes(self)
        pace = self.positions_a_second
        require(0 < pace <= 1e6, f"ActionConfig.positions_a_second is {pace}; it must be positive and at most 1e6")
        names = [embodiment.name for embodiment in self.embodiments]
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, f"ActionConfig.embodiments holds {twice} twice")
        for embodiment in self.embodiments:
            self.check(embodiment)

    def check(self, embodiment: Embodiment) -> None:
        """ConfigError where a model with these sizes has no place for its actions."""
        where = f"embodiment {embodiment.name!r} has"
        require(
            embodiment.domain < self.n_domains,
            f"{where} domain {embodiment.domain}; the model has domains 0 to {self.n_domains - 1}",
        )
        require(
            (embodiment.width or 1) <= self.width,
            f"{where} {embodiment.width} numbers an action; the model has room for {self.width}",
        )
