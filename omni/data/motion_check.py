"""Whether a film does what its sentence says: things are followed by their colours and compared with the true course.

    frames (T, 64, 64, 3) ──> follow ──> Seen of each thing: places, area, colour ──> said: yes or no
                                     └──> track: places (T, 2) ──> position_error, in pixels

A pixel has the name of the nearest colour of the palette, if that is near enough. A thing is the largest patch of its
colour near where it was last; where none is left, a patch of a colour that no thing has, at the same place, is the
thing repainted. The centre is the mean over the share of each pixel that the thing covers.

A film is right when each thing makes each leg of its true way in about the direction, to a fair part and without
going back, what rests stays, and sizes, colours and presence end as they should. So who is late at a wall passes: the
exact pace is measured by ``position_error``, to be compared with ``frozen_error`` and ``constant_velocity_error``,
which know the first and the first two true frames.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage

from omni.data.motion import GROWTH
from omni.data.rollout import CANVAS, Rollout
from omni.data.scenes import BACKGROUNDS, COLOR_TOLERANCE, COLORS, SPECK

NEAR = 20.0  # pixels from its last place in which a thing is searched; the fastest move 13 a frame
SAME_PLACE = 6.0  # pixels from its last place at which a patch of another colour is the thing repainted
LEAST_PATCH = 0.15  # of a thing's first area; smaller patches of its colour are not it
MISSED = CANVAS / 2  # pixels of error where a thing is not found

LEAST_LEG = 4.0  # pixels; shorter legs of a way are not compared
LEAST_SHARE, MOST_SHARE = 0.4, 2.5  # of the true way, and of the logarithm of a growth
BACK_SHARE = 0.4  # of a leg that a thing may go the wrong way or come back within it
ANGLE = math.cos(math.radians(45))
STAYS = 3.0  # pixels that a resting thing may drift, and that a film may begin elsewhere
SAME_SIZE = LEAST_SHARE * math.log(GROWTH**2)  # logarithm of an area's ratio below which it is the same size
PRESENT = 0.75  # share of the frames in which a thing is there, or not, as it should
LAST = 3  # frames over whose median the last size is taken


@dataclass(frozen=True)
class Seen:
    """One thing over time, followed by its colour: NaN, 0 and "" where it is not found."""

    places: np.ndarray  # (T, 2) x, y in pixels
    areas: np.ndarray  # (T,) pixels
    colors: tuple[str, ...]


def moved_as_said(rollout: Rollout, frames: np.ndarray) -> bool:
    """Whether frames (T, 64, 64, 3) uint8, as many as the true ones, show what the rollout's sentence says."""
    return said(rollout, follow(frames, rollout))


def track(frames: np.ndarray, rollout: Rollout) -> dict[str, np.ndarray]:
    """Thing -> its places (T, 2) in pixels, NaN where it is not found."""
    return {name: seen.places for name, seen in follow(frames, rollout).items()}


# ----------------------------------------------------------------------------------------------------
# following


def follow(frames: np.ndarray, rollout: Rollout) -> dict[str, Seen]:
    """Follow the things of a motion rollout, named "red circle" and the like, through other frames of the same size."""
    if frames.dtype != np.uint8 or frames.shape != rollout.frames.shape:
        raise ValueError(f"frames are {frames.shape} {frames.dtype}; they must be {rollout.frames.shape} uint8")
    first = rollout.frames[0].astype(np.float32)
    edge = np.median(np.concatenate([first[0], first[-1], first[:, 0], first[:, -1]]), axis=0)
    ground = np.array(min(BACKGROUNDS.values(), key=lambda rgb: float(np.abs(edge - rgb).sum())), np.float32)
    pixels = frames.astype(np.float32)
    names = _color_names(pixels, ground)
    free = [color for color in COLORS if all(color != name.split()[0] for name in rollout.tracks)]
    return {
        name: _follow(pixels, names, ground, name.split()[0], places[0], free)
        for name, places in rollout.tracks.items()
    }


def _color_names(pixels: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """(T, H, W) index of the nearest colour in `COLORS`; -1 for the background and for what is like none."""
    palette = np.array([*COLORS.values(), ground], np.float32)
    # Squared distances but for |pixel|^2, which is the same for all colours.
    distances = np.square(palette).sum(1) - 2 * pixels @ palette.T
    names = distances.argmin(-1)
    nearest = np.take_along_axis(distances, names[..., None], -1)[..., 0] + np.einsum("thwc,thwc->thw", pixels, pixels)
    names[(names == len(COLORS)) | (nearest > COLOR_TOLERANCE**2)] = -1
    return names


def _follow(
    pixels: np.ndarray, names: np.ndarray, ground: np.ndarray, color: str, place: np.ndarray, free: list[str]
) -> Seen:
    places, areas, colors = np.full((len(pixels), 2), np.nan), np.zeros(len(pixels)), []
    least = SPECK / 2
    for t, (picture, named) in enumerate(zip(pixels, names, strict=True)):
        patch, color = _search(named, color, place, free, least)
        colors.append("" if patch is None else color)
        if patch is None:
            continue
        places[t], areas[t] = _measured(picture, named, patch, ground, color)
        place = places[t]
        if t == 0:
            least = max(least, LEAST_PATCH * areas[0])
    return Seen(places, areas, tuple(colors))


def _search(
    named: np.ndarray, color: str, place: np.ndarray, free: list[str], least: float
) -> tuple[np.ndarray | None, str]:
    """The patch (H, W) of a thing, None if there is none, and its colour, which may be a new one of the `free`."""
    patch = _patch(named, color, place, NEAR, least)
    if patch is not None:
        return patch, color
    others = [(_patch(named, other, place, SAME_PLACE, least), other) for other in free]
    return max([o for o in others if o[0] is not None], key=lambda o: o[0].sum(), default=(None, color))


def _patch(named: np.ndarray, color: str, place: np.ndarray, near: float, least: float) -> np.ndarray | None:
    """The largest patch (H, W) of a colour whose centre lies near a place; gaps of one pixel do not part it."""
    mask = named == tuple(COLORS).index(color)
    if mask.sum() < least:
        return None
    labels, count = ndimage.label(ndimage.maximum_filter(mask, 3))
    labels = np.where(mask, labels, 0)
    rows, columns = np.nonzero(mask)
    of = labels[rows, columns]
    sizes = np.bincount(of, minlength=count + 1)
    x, y = (np.bincount(of, along + 0.5, count + 1) / np.maximum(sizes, 1) for along in (columns, rows))
    sizes = np.where(np.hypot(x - place[0], y - place[1]) <= near, sizes, 0)
    best = int(sizes[1:].argmax()) + 1
    return labels == best if sizes[best] >= least else None


def _measured(
    picture: np.ndarray, named: np.ndarray, patch: np.ndarray, ground: np.ndarray, color: str
) -> tuple[tuple[float, float], float]:
    """Centre and area of a patch and its soft rim: a pixel counts as far as its colour lies from the background's."""
    rows, columns = np.nonzero(ndimage.maximum_filter(patch, 3) & (patch | (named < 0)))
    tint = np.array(COLORS[color], np.float32) - ground
    cover = np.clip((picture[rows, columns] - ground) @ tint / (tint @ tint), 0, 1)
    area = float(cover.sum())
    return (float(cover @ (columns + 0.5)) / area, float(cover @ (rows + 0.5)) / area), area


# ----------------------------------------------------------------------------------------------------
# judging


def said(rollout: Rollout, seen: Mapping[str, Seen]) -> bool:
    """Whether things that were followed did what the rollout's sentence says; the first track is of whom it tells."""
    actor = next(iter(rollout.tracks))
    growth = {"grow": 2 * math.log(GROWTH), "shrink": -2 * math.log(GROWTH)}.get(rollout.kind, 0.0)
    # Every wording of a repainting ends with the new colour.
    turned = rollout.prompt.split()[-1] if rollout.kind == "recolor" else actor.split()[0]
    for name, places in rollout.tracks.items():
        thing, there = seen[name], ~np.isnan(places[:, 0])
        found = ~np.isnan(thing.places[:, 0])
        begins = np.hypot(*(thing.places[0] - places[0])) <= STAYS  # the first frame is given
        if not begins or np.mean(found == there) < PRESENT or found[-1] != there[-1]:
            return False
        if not (_went(places, thing.places) and _grew(thing.areas[found], growth if name == actor else 0.0)):
            return False
        if there[-1] and thing.colors[-1] != (turned if name == actor else name.split()[0]):
            return False
    return True


def _went(true: np.ndarray, found: np.ndarray) -> bool:
    away = np.nanmax(np.hypot(*(true - true[0]).T))
    if away < LEAST_LEG / 4:
        return bool(np.nanmax(np.hypot(*(found - found[0]).T)) <= STAYS)
    for start, end in pairwise(_turns(true)):
        way, done = true[end] - true[start], found[start : end + 1] - found[start]
        length = float(np.hypot(*way))
        if length < LEAST_LEG:
            continue
        advance = done @ way / length
        along, slack = advance[-1], max(STAYS, BACK_SHARE * advance[-1])
        # A comparison with NaN is false: what is not found at a turn did not go there.
        if not (LEAST_SHARE * length <= along <= MOST_SHARE * length and along >= ANGLE * np.hypot(*done[-1])):
            return False
        if np.nanmin(advance) < -slack or np.nanmax(advance) > along + slack:
            return False
    return True


def _turns(places: np.ndarray) -> list[int]:
    """The first and the last frame, and those between where the way turns back along x or y."""
    steps = np.diff(places, axis=0)
    back = (steps[1:] * steps[:-1] < -1e-9).any(axis=1)
    return [0, *(1 + np.flatnonzero(back)).tolist(), len(places) - 1]


def _grew(areas: np.ndarray, growth: float) -> bool:
    ratio = math.log(float(np.median(areas[-LAST:])) / float(areas[0]))
    if growth == 0:
        return abs(ratio) < SAME_SIZE
    return LEAST_SHARE <= ratio / growth <= MOST_SHARE


# ----------------------------------------------------------------------------------------------------
# errors in pixels


def position_error(rollout: Rollout, tracks: Mapping[str, np.ndarray]) -> float:
    """Mean distance, in pixels, from the true places after the first frame; 32 where a thing is not found.

    Frames in which a thing is truly gone do not count.
    """
    errors = []
    for name, true in rollout.tracks.items():
        distance = np.hypot(*(tracks[name] - true)[1:].T)
        errors.append(np.where(np.isnan(distance), MISSED, distance)[~np.isnan(true[1:, 0])])
    return float(np.concatenate(errors).mean())


def frozen_error(rollout: Rollout) -> float:
    """The error of who repeats the first frame."""
    return position_error(rollout, {name: np.repeat(true[:1], len(true), 0) for name, true in rollout.tracks.items()})


def constant_velocity_error(rollout: Rollout) -> float:
    """The error of who sees the first two true frames and lets all go on like that, as far as the canvas goes."""
    steps = np.arange(len(rollout.frames))[:, None]
    return position_error(
        rollout,
        {name: np.clip(true[0] + steps * (true[1] - true[0]), 0, CANVAS) for name, true in rollout.tracks.items()},
    )
