"""Episodes of simulated robots: experts that drive them, kept on disk, and short windows of them for training.

    seed -> world.play -> states, actions, who acted -> parts of PART episodes, written beside and renamed
    seed -> an episode and a start in it -> 16 actions of the expert, 17 states drawn -> Rollout
                             played on from it, by the expert or not, for the other ways of a window

A world keeps its states, not its pictures: a picture is a function of one state. Its expert sees no more than the
picture shows, so that a policy without memory can learn it. Episodes hold disturbances too, from which the expert
recovers; no recorded window holds an action that is not the expert's.

What an expert does follows from what is seen, and near its own ways alone. So a window may also be *shaken*: the
expert starts beside the way, as a policy finds itself after a small error; or *driven*: the robot wanders, so that only
its actions tell what will be seen.

Seeds of ``TRAIN_SEEDS`` are answered with training episodes, which are made from such seeds themselves; the seeds
below with held-out ones. Parts are made when first asked for, or by ``python -m omni.data.episodes WORLD COUNT``, in
the folder ``OMNI_CACHE`` or ~/.cache/omni/worlds.
"""

import argparse
import importlib
import multiprocessing
import os
import sys
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from random import Random
from typing import Protocol

import numpy as np
from rich.console import Console
from rich.progress import track

from omni.data import HELD_OUT_SEEDS, TRAIN_SEEDS
from omni.data.rollout import CANVAS, FRAMES, Rollout

PART = 20  # episodes of a file
HELD_OUT_COUNT = 40  # held-out episodes that windows are drawn from
KEPT_PARTS = 1024  # in memory: a tenth of a megabyte each
WAYS = ("recorded", "shaken", "driven")  # of windows
DRIVEN_STEPS = 3, 10  # for which a wandering robot keeps to one place, the second not included
WORLDS = {"pusht": "omni.data.pusht_expert", "omni_arm": "omni.data.arm_expert"}  # modules that hold a `WORLD`


@dataclass(frozen=True)
class Episode:
    """States (T + 1, s) and the actions (T, a) between them, float32; `expert` (T,) bool says which are the expert's.

    A step that anything else than its action has changed is not the expert's either. An episode ends at rest: where
    it was cut off before, its last action is not the expert's.
    """

    states: np.ndarray
    actions: np.ndarray
    expert: np.ndarray


class Physics(Protocol):
    """A simulator in a state (s,), which a step with an action (a,) changes."""

    @property
    def state(self) -> np.ndarray: ...

    def step(self, target: np.ndarray) -> None: ...


@dataclass(frozen=True)
class World:
    """What there is to know of a simulated robot. Its name is that of its embodiment.

    `version` rises with every change of its episodes; windows are drawn of `episodes` of them. `hold` (s,) -> (a,) is
    the action that keeps a state as it is, `picture` (s,) -> (CANVAS, CANVAS, 3) uint8, `tracks` (n, s) -> thing ->
    (n, 2) in pixels, and `prompt` words the task of a state in the way of a number; `kind` names it.

    `physics` goes on from a state (s,), `expert` (s,) -> (a,) acts in it, `shake` moves things in it a little or puts
    the robot elsewhere beside them, `aim` draws a place that the robot may wander to, and `towards` is the action for
    that.
    """

    name: str
    version: int
    episodes: int
    fps: float
    play: Callable[[int], Episode]
    hold: Callable[[np.ndarray], np.ndarray]
    picture: Callable[[np.ndarray], np.ndarray]
    tracks: Callable[[np.ndarray], dict[str, np.ndarray]]
    prompt: Callable[[np.ndarray, int], str]
    kind: Callable[[np.ndarray], str]
    physics: Callable[[np.ndarray], Physics]
    expert: Callable[[np.ndarray], np.ndarray]
    shake: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    aim: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    towards: Callable[[np.ndarray, np.ndarray], np.ndarray]


@cache
def world(name: str) -> World:
    """A world by its name; its simulator is imported with it."""
    if name not in WORLDS:
        raise ValueError(f"world is {name!r}, must be one of {', '.join(WORLDS)}")
    try:
        return importlib.import_module(WORLDS[name]).WORLD
    except ModuleNotFoundError as error:
        raise ValueError(f"the world {name!r} needs {error.name}: pip install 'omni[robot]'") from None


def cache_folder() -> Path:
    """Where episodes are kept."""
    return Path(os.environ.get("OMNI_CACHE") or Path.home() / ".cache" / "omni" / "worlds")


# ----------------------------------------------------------------------------------------------------
# parts


def _file(name: str, held_out: bool, part: int) -> Path:
    share = "held_out" if held_out else "train"
    return (
        cache_folder() / f"{name}-v{world(name).version}" / f"{share}-{part * PART:06d}-{(part + 1) * PART - 1:06d}.npz"
    )


def _make(name: str, held_out: bool, part: int) -> None:
    """Play the episodes of one part and write them, unless another process has meanwhile."""
    path, seeds = _file(name, held_out, part), HELD_OUT_SEEDS if held_out else TRAIN_SEEDS
    if path.exists():
        return
    episodes = [world(name).play(seeds[part * PART + i]) for i in range(PART)]
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    try:
        np.savez_compressed(
            beside,
            lengths=np.array([len(e.actions) for e in episodes]),
            states=np.concatenate([e.states for e in episodes]),
            actions=np.concatenate([e.actions for e in episodes]),
            expert=np.concatenate([e.expert for e in episodes]),
        )
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def build(name: str, count: int, held_out: int = HELD_OUT_COUNT, workers: int = 1) -> int:
    """Make what is missing of `count` training and `held_out` other episodes, in parts; returns how many parts."""
    for what, value, least in (("count", count, 0), ("held_out", held_out, 0), ("workers", workers, 1)):
        if value < least:
            raise ValueError(f"{what} is {value}, must be at least {least}")
    parts = [(held, part) for held, n in ((False, count), (True, held_out)) for part in range(-(-n // PART))]
    missing = [(held, part) for held, part in parts if not _file(name, held, part).exists()]
    _run([partial(_make, name, held, part) for held, part in missing], workers, f"episodes of {name}")
    return len(missing)


def _run(jobs: list[Callable[[], None]], workers: int, what: str) -> None:
    """In this process, or in others: each starts afresh, since a fork of a process with threads may hang."""
    if workers == 1:
        for job in _bar(jobs, what, len(jobs)):
            job()
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for done in _bar(as_completed([pool.submit(job) for job in jobs]), what, len(jobs)):
            done.result()


def _bar(items: Iterable, what: str, total: int) -> Iterable:
    console = Console(stderr=True)
    return track(items, what, total=total, console=console, disable=not console.is_terminal or not total)


@lru_cache(maxsize=KEPT_PARTS)
def _read(path: Path) -> tuple[Episode, ...]:
    try:
        with np.load(path) as kept:
            lengths, states, actions, expert = (kept[key] for key in ("lengths", "states", "actions", "expert"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} holds no episodes ({error}); remove it and it is made again") from None
    ends = np.cumsum(lengths)[:-1]
    pieces = np.split(states, np.cumsum(lengths + 1)[:-1]), np.split(actions, ends), np.split(expert, ends)
    return tuple(Episode(*piece) for piece in zip(*pieces, strict=True))


# ----------------------------------------------------------------------------------------------------
# windows


class Episodes:
    """Cached episodes of one world, and windows of them.

    `count` (the world's own number) and `held_out` say of how many; another count draws other windows for a seed.
    """

    def __init__(self, name: str, count: int | None = None, held_out: int = HELD_OUT_COUNT) -> None:
        self.world = world(name)
        count = self.world.episodes if count is None else count
        for what, value in (("count", count), ("held_out", held_out)):
            if value < 1 or value % PART:
                raise ValueError(f"{what} is {value}, must be a positive multiple of {PART}")
        self.count, self.held_out = count, held_out

    def episode(self, index: int, held_out: bool = False) -> Episode:
        """Episode `index` of the training or the held-out ones; its part is made if it is not there."""
        count = self.held_out if held_out else self.count
        if not 0 <= index < count:
            raise ValueError(f"episode {index} of {count}")
        path = _file(self.world.name, held_out, index // PART)
        if not path.exists():
            _run([partial(_make, self.world.name, held_out, index // PART)], 1, f"episodes of {self.world.name}")
        return _read(path)[index % PART]

    def window(self, seed: int, still: bool = False, way: str = "recorded") -> Rollout:
        """FRAMES pictures and the actions between them, always the same for a seed and a way of WAYS.

        An episode is drawn first, then a start. ``recorded``: one after which only the expert acts; beyond the
        episode's end the robot holds still. ``shaken``: any, a little changed, after which the expert acts.
        ``driven``: any, after which the robot goes to one place after another.
        With ``still`` only the first picture is drawn, and stands for all.
        """
        if seed < 0:
            raise ValueError(f"seed is {seed}, must not be negative")
        if way not in WAYS:
            raise ValueError(f"way is {way!r}, must be one of {', '.join(WAYS)}")
        held_out, rng = seed in HELD_OUT_SEEDS, Random(f"window {self.world.name} {seed}")
        episode = self.episode(rng.randrange(self.held_out if held_out else self.count), held_out)
        states, actions = self._recorded(episode, rng) if way == "recorded" else self._played(episode, rng, way)
        return Rollout(
            prompt=self.world.prompt(states[0], rng.randrange(1000)),
            frames=self._pictures(states, still),
            fps=self.world.fps,
            actions=actions.astype(np.float32),
            embodiment=self.world.name,
            tracks=self.world.tracks(states),
            kind=self.world.kind(states[0]),
        )

    def _recorded(self, episode: Episode, rng: Random) -> tuple[np.ndarray, np.ndarray]:
        """States (FRAMES, s) and actions (FRAMES - 1, a) of the expert, as they were."""
        start = rng.choice(_starts(episode.expert))
        end = episode.states[-1]
        states, actions = episode.states[start : start + FRAMES], episode.actions[start : start + FRAMES - 1]
        more = FRAMES - 1 - len(actions)
        states = np.concatenate([states, np.repeat(end[None], more, axis=0)])
        return states, np.concatenate([actions, np.repeat(self.world.hold(end)[None], more, axis=0)])

    def _played(self, episode: Episode, rng: Random, way: str) -> tuple[np.ndarray, np.ndarray]:
        """The same, played on from a state of the episode."""
        state, draw = rng.choice(episode.states), np.random.default_rng(rng.randrange(2**32))
        if way == "driven":
            return _play(self.world.physics(state), _Wanderer(self.world, draw))
        return _play(self.world.physics(self.world.shake(state, draw)), self.world.expert)

    def _pictures(self, states: np.ndarray, still: bool) -> np.ndarray:
        drawn = np.stack([self.world.picture(state) for state in states[: 1 if still else None]])
        return np.broadcast_to(drawn, (len(states), *drawn.shape[1:]))


def _play(physics: Physics, act: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """States (FRAMES, s) and actions (FRAMES - 1, a), float32 as in episodes, of one that acts on what it finds."""
    states, actions = [physics.state], []
    for _ in range(FRAMES - 1):
        actions.append(act(states[-1]))
        physics.step(actions[-1])
        states.append(physics.state)
    return np.float32(states), np.float32(actions)


class _Wanderer:
    """Acts towards a place for some steps, then towards another."""

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        self.world, self.rng, self.left = world, rng, 0

    def __call__(self, state: np.ndarray) -> np.ndarray:
        if not self.left:
            self.left, self.place = int(self.rng.integers(*DRIVEN_STEPS)), self.world.aim(state, self.rng)
        self.left -= 1
        return self.world.towards(state, self.place)


def _starts(expert: np.ndarray) -> list[int]:
    """Steps from which the expert acts for FRAMES - 1 steps or to the end; if there are none, the end."""
    others = np.concatenate([np.flatnonzero(~expert), [len(expert) + FRAMES]])
    steps = np.arange(len(expert))
    starts = np.flatnonzero(others[np.searchsorted(others, steps)] - steps >= FRAMES - 1)
    return starts.tolist() or [len(expert)]


@cache
def _episodes(name: str) -> Episodes:
    return Episodes(name)


def sample_pusht(seed: int, still: bool = False, way: str = "recorded") -> Rollout:
    """A window of the T that is pushed onto its mark; actions (16, 2) are target positions of the agent, 0 to 512."""
    return _episodes("pusht").window(seed, still, way)


def sample_arm(seed: int, still: bool = False, way: str = "recorded") -> Rollout:
    """A window of the arm that reaches and pushes; actions (16, 2) are target angles of its joints in radians."""
    return _episodes("omni_arm").window(seed, still, way)


# ----------------------------------------------------------------------------------------------------
# pictures


def _pixel_centres() -> np.ndarray:
    """(CANVAS, CANVAS) complex: x + iy of the middle of each pixel, in pixels, y down."""
    middle = np.arange(CANVAS) + 0.5
    return middle[None] + 1j * middle[:, None]


PIXELS = _pixel_centres()


def paint(picture: np.ndarray, color: tuple[int, int, int], distance: np.ndarray) -> None:
    """Colour what lies inside a shape, in place: `picture` (H, W, 3) float, `distance` (H, W) to its edge in pixels.

    Distances are negative inside. The edge is one pixel wide, so that a shift by a part of a pixel shows.
    """
    seen = distance < 0.5
    share = np.minimum(0.5 - distance[seen], 1)[:, None]
    picture[seen] += share * (np.array(color) - picture[seen])


def length(z: np.ndarray) -> np.ndarray:
    """Absolute values; np.abs guards against overflow and is several times slower."""
    return np.sqrt(z.real**2 + z.imag**2)


def finished(picture: np.ndarray) -> np.ndarray:
    """A painted picture as uint8."""
    return np.rint(picture).astype(np.uint8)


# ----------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m omni.data.episodes", description="make episodes of a world")
    parser.add_argument("world", choices=list(WORLDS))
    parser.add_argument("count", type=int, nargs="?", help="training episodes; the world's own number if left out")
    parser.add_argument("--held-out", type=int, default=HELD_OUT_COUNT, help="other episodes")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    args = parser.parse_args(arguments)
    try:
        count = world(args.world).episodes if args.count is None else args.count
        made = build(args.world, count, args.held_out, args.workers)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{made * PART} episodes made in {cache_folder()}")


if __name__ == "__main__":
    from omni.data import episodes  # the module that worlds import: this one goes by another name

    episodes.main()
