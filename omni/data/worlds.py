"""Batches of rollouts: what is read, what is given and what is to be denoised. Pure functions of a seed.

    animate   moving things: a sentence, a video and its sound; mostly the first frame is given
    act       robots: an instruction, a video and the actions that lead through it
                policy    given the first frame             to be found: actions and further frames
                forward   given the first frame, actions    to be found: further frames
                inverse   given all frames                  to be found: actions

Frames stay bytes until the training step makes latents of them. Negative seeds draw what is held out. Source of the
modes: ``reference`` cosmos3, section 6.4.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from random import Random

import numpy as np
import torch
from torch import Tensor

from omni.data import HELD_OUT_SEEDS, TRAIN_SEEDS
from omni.data.batches import Batch, Encoding
from omni.data.episodes import sample_arm, sample_pusht
from omni.data.motion import KINDS, sample_motion
from omni.data.rollout import Rollout
from omni.data.scenes import BACKGROUNDS, COLORS
from omni.recipe import MODES
from omni.tokenizers.action import embodiment, encode
from omni.tokenizers.prompts import caption_ids

TRACKS = 4  # things whose places are asked for
STILL_ROWS = 4  # a batch of first frames alone has that many times more rows: they are a quarter of the tokens, or less

PART_ROWS = 2  # a batch of one group of later frames has that many times more rows: they are two fifths of the tokens

KEPT = 2048  # rollouts of a kind that a process has at hand, to show them again with other noise

COVERED = 0.3  # share of a square from which what covers it is named

MOTION = "motion"
ROBOTS: dict[str, Callable[[int, bool, str], Rollout]] = {"pusht": sample_pusht, "omni_arm": sample_arm}
WORLDS = (MOTION, *ROBOTS)


@dataclass(frozen=True)
class RolloutBatch(Batch):
    input_ids: Tensor  # (b, n) right-padded sentences
    mask: Tensor  # (b, n)
    frames: Tensor  # (b, 3, T, H, W) uint8, or floats in [0, 1]
    given: Tensor  # (b, T) True at frames that carry no noise
    fps: Tensor  # (b,)
    worlds: Tensor | None = None  # (b,) index into WORLDS; None: nobody knows where things are
    tracks: Tensor | None = None  # (b, TRACKS, T, 2) x and y of things as shares of the sides; NaN where there is none
    sound: Tensor | None = None  # (b, 1, samples) at SOUND_RATE
    actions: Tensor | None = None  # (b, n, a) as the model has them: normalised, and zeros behind their width
    states: int = 0  # of the n, rows that say where the robot is before it acts
    given_actions: Tensor | None = None  # (b, n)
    domains: Tensor | None = None  # (b,) whose actions they are
    widths: Tensor | None = None  # (b,) numbers of an action that mean something
    content: tuple[int, int] | None = None  # rows and columns of pixels that are not padding; None: all
    mode: str = ""  # of all rows; "" where each has its own
    group: int | None = None  # of later frames that share tokens: the only one that is to be denoised; None: all are
    shown: Tensor | None = None  # (b, T, h, w) colour of what covers each token's square: 0 for the background
    deeds: Tensor | None = None  # (b,) what happens: index into KINDS of omni.data.motion


def animate_batch(
    seed: int,
    size: int,
    encoding: Encoding,
    *,
    kinds: dict[str, float] | None = None,
    sound: bool = False,
    group: int | None = None,
    free: float = 0.0,
    drop: float = 0.1,
    again: Sequence[str] | None = None,
) -> RolloutBatch:
    """``size`` rollouts of moving things; in a share ``free`` no frame is given, a share ``drop`` of sentences is void.

    ``kinds`` weighs what happens, by default all alike. ``group``: only these frames are to be denoised.

    ``again``: the rollouts are drawn from those that these names stand for, which other batches show too.
    """
    rng = Random(f"animate {seed}")
    if again is None:
        seeds, draws, sample = [seed * 4096 + i for i in range(size)], [rng] * size, _moving
    else:
        draws, sample = [Random(f"rollout {name}") for name in rng.choices(again, k=size)], _moving_again
        seeds = [draw.randrange(2**40) for draw in draws]
    names = [draw.choices(list(kinds), list(kinds.values()))[0] if kinds else None for draw in draws]
    side = encoding.latent_pixels
    pairs = [sample(TRAIN_SEEDS.start + one, name, side) for one, name in zip(seeds, names, strict=True)]
    rollouts = [rollout for rollout, _ in pairs]
    given = torch.zeros(size, len(rollouts[0].frames), dtype=torch.bool)
    given[:, 0] = torch.tensor([rng.random() >= free for _ in rollouts])
    shown = _shown(rollouts, [MOTION] * size, encoding, drop, rng)
    heard = torch.from_numpy(np.stack([r.sound for r in rollouts])).float()[:, None] if sound else None
    shown["shown"] = torch.from_numpy(np.stack([colors for _, colors in pairs]))
    shown["deeds"] = torch.tensor([tuple(KINDS).index(rollout.kind) for rollout in rollouts])
    return RolloutBatch(**shown, given=given, sound=heard, group=group)


def act_batch(
    seed: int,
    size: int,
    encoding: Encoding,
    *,
    worlds: dict[str, float] | None = None,
    modes: dict[str, float] | None = None,
    still: bool = False,
    group: int | None = None,
    shaken: dict[str, float] | None = None,
    driven: float = 0.0,
    drop: float = 0.1,
    again: Sequence[str] | None = None,
) -> RolloutBatch:
    """``size`` rollouts of robots, each with a mode of its own; ``worlds`` and ``modes`` weigh them, by default alike.

    ``still``: only the first frames are there and the actions are to be found, in STILL_ROWS times as many rollouts.
    ``group``: only these later frames are to be denoised, and no row asks which actions led through all of them.

    Of a policy's rollouts a share ``shaken``, by world, begins beside the expert's ways; in a share ``driven`` of the
    others the robot wanders (:mod:`omni.data.episodes`).

    ``again``: the rollouts are drawn from those that these names stand for, which other batches show too.
    """
    rng = Random(f"act {seed}")
    worlds, modes = worlds or dict.fromkeys(ROBOTS, 1.0), modes or dict.fromkeys(MODES, 1.0)
    if group is not None:
        modes = {mode: weight for mode, weight in modes.items() if mode != "inverse"}
    unknown = sorted({*worlds, *(shaken or {})} - set(ROBOTS))
    if unknown:
        raise ValueError(f"there are no worlds {unknown}; known: {', '.join(ROBOTS)}")
    size = size * STILL_ROWS if still else size
    draws, sample = [rng] * size, _acting
    if again is not None:
        draws, sample = [Random(f"rollout {name}") for name in rng.choices(again, k=size)], _acting_again
    names = [draw.choices(list(worlds), list(worlds.values()))[0] for draw in draws]
    first, count = (TRAIN_SEEDS.start, 2**40) if seed >= 0 else (HELD_OUT_SEEDS.start, len(HELD_OUT_SEEDS))
    seeds = [first + draw.randrange(count) for draw in draws]
    asked = ["policy" if still else draw.choices(list(modes), list(modes.values()))[0] for draw in draws]
    shares = [((shaken or {}).get(name, 0.0), driven) for name in names]
    ways = [_way(draw, mode, *pair) for draw, mode, pair in zip(draws, asked, shares, strict=True)]
    rollouts = [sample(name, one, still, way) for name, one, way in zip(names, seeds, ways, strict=True)]
    shown = _shown(rollouts, names, encoding, drop, rng)
    given = torch.zeros(size, shown["frames"].shape[2], dtype=torch.bool)
    given[:, 0] = True
    given[[mode == "inverse" for mode in asked]] = True
    if still:
        shown |= {"frames": shown["frames"][:, :, :1]}
        given = given[:, :1]
    width = encoding.action.width
    bodies = [embodiment(r.embodiment, encoding.action) for r in rollouts]
    actions = torch.stack([encode(r.actions, body, width) for r, body in zip(rollouts, bodies, strict=True)]).float()
    given_actions = torch.tensor([[mode == "forward"] for mode in asked]).repeat(1, actions.shape[1])
    return RolloutBatch(
        **shown,
        given=given,
        actions=actions,
        given_actions=given_actions,
        domains=torch.tensor([body.domain for body in bodies]),
        widths=torch.tensor([body.width for body in bodies]),
        group=group,
    )


def _moving(seed: int, kind: str | None, side: int) -> tuple[Rollout, np.ndarray]:
    rollout = sample_motion(seed, kind)
    return rollout, _colors(rollout.frames, side)


def _acting(world: str, seed: int, still: bool, way: str) -> Rollout:
    return ROBOTS[world](seed, still, way)


_moving_again = lru_cache(2 * KEPT)(_moving)  # twice: the names move on
_acting_again = lru_cache(2 * 3 * KEPT)(_acting)  # first frames alone, for groups of later ones, and all


def _way(rng: Random, mode: str, shaken: float, driven: float) -> str:
    """Of a window, see ``omni.data.episodes``: only a policy's actions have to be the expert's."""
    other, share = ("shaken", shaken) if mode == "policy" else ("driven", driven)
    return other if rng.random() < share else "recorded"


def _shown(rollouts: Sequence[Rollout], worlds: Sequence[str], encoding: Encoding, drop: float, rng: Random) -> dict:
    """What the rows of every batch hold."""
    prompts = ["" if rng.random() < drop else rollout.prompt for rollout in rollouts]
    frames = torch.from_numpy(np.stack([rollout.frames for rollout in rollouts]))
    return {
        **sentences([caption_ids(prompt, encoding.special, encoding.encode) for prompt in prompts], encoding),
        "frames": frames.permute(0, 4, 1, 2, 3),
        "fps": torch.tensor([rollout.fps for rollout in rollouts]),
        "worlds": torch.tensor([WORLDS.index(world) for world in worlds]),
        "tracks": torch.from_numpy(np.stack([_tracks(*pair) for pair in zip(rollouts, prompts, strict=True)])),
    }


def sentences(rows: Sequence[list[int]], encoding: Encoding) -> dict[str, Tensor]:
    """Rows of ids, padded on the right, and which of them are real."""
    width = max(len(row) for row in rows)
    return {
        "input_ids": torch.tensor([row + [encoding.special["pad"]] * (width - len(row)) for row in rows]),
        "mask": torch.arange(width) < torch.tensor([[len(row)] for row in rows]),
    }


def _colors(frames: np.ndarray, side: int) -> np.ndarray:
    """Frames (T, H, W, 3) of moving things -> (T, H / side, W / side) int64: 1 + the colour that shows in each square.

    0 where the background leaves less than COVERED of it. Every second pixel is looked at.
    """
    red, green, blue = (frames[:, ::2, ::2] >> 4).astype(np.int64).transpose(3, 0, 1, 2)
    names = _nearest_colors()[red << 8 | green << 4 | blue]
    t, h, w = names.shape
    squares = names.reshape(t, h * 2 // side, side // 2, w * 2 // side, side // 2)
    counts = np.stack([(squares == i).sum(axis=(2, 4)) for i in range(len(COLORS))], axis=-1)
    return np.where(counts.max(-1) >= COVERED * (side // 2) ** 2, 1 + counts.argmax(-1), 0)


@cache
def _nearest_colors() -> np.ndarray:
    """(4096,) index of the colour nearest to each of 16 x 16 x 16 levels; the backgrounds' are the last."""
    levels = np.stack(np.meshgrid(*[np.arange(16) * 16 + 8.0] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    palette = np.array([*COLORS.values(), *BACKGROUNDS.values()], dtype=np.float64)
    return np.square(levels[:, None] - palette).sum(-1).argmin(-1)


def _tracks(rollout: Rollout, prompt: str) -> np.ndarray:
    """(TRACKS, T, 2) as shares of the picture, in the rollout's order; NaN where there are fewer things.

    Robots have parts, which are always the same. Of moving things only a sentence tells which is meant: NaN too for
    those that it does not name.
    """
    frames, height, width = rollout.frames.shape[:3]
    found = np.full((TRACKS, frames, 2), np.nan, dtype=np.float32)
    for i, (name, track) in enumerate(list(rollout.tracks.items())[:TRACKS]):
        if rollout.actions is not None or name in prompt:
            found[i] = track / (width, height)
    return found
