"""Robots: does a policy reach its goal in the simulator, and does the model know what actions do?

policy     closed loop from pictures alone: a chunk of actions is asked for, a part of it is carried out, and so on
           controls: a policy that sees nothing, and one that sees another episode's picture
dynamics   forward: the error of a foreseen video beside that of the first frame, repeated; control: another's actions
           inverse: how much of the actions' spread is found again (R squared); control: another's video
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from omni.data.episodes import Episodes, world
from omni.data.rollout import FRAMES
from omni.evaluation.report import averages, grouped, held_out, mean, progress
from omni.model import Omni
from omni.pipelines.policy import Policy
from omni.pipelines.world import ForwardDynamics, InverseDynamics
from omni.tokenizers.video_writer import write_video

AT_ONCE = 16  # episodes or windows of a batch
EXECUTED = {"pusht": 8, "omni_arm": 2}  # actions of a chunk that are carried out before the next is asked for
FILMS = 4  # episodes that are written as videos
SEES = ("", "blind", "other")  # the policy itself, and its controls


def _simulators() -> dict[str, Callable[[], Any]]:
    from omni.data.arm import Arm
    from omni.data.pusht import PushT

    return {"pusht": PushT, "omni_arm": Arm}


def policy(
    model: Omni,
    count: int,
    seed: int,
    robot: str = "pusht",
    steps: int | None = None,
    executed: int | None = None,
    foresee: bool = True,
    controls: bool = True,
    videos: str | None = None,
) -> tuple[dict[str, Any], list[dict]]:
    """``count`` unseen starts. The score of an episode is the simulator's: best coverage, or 1 for success.

    ``foresee``: denoise the video that the actions lead to beside them. ``videos``: a folder for the first episodes, as
    mp4. ``executed``: actions of a chunk that are carried out; by default what the shipped model did best with, on
    other seeds than these: a way around the T is kept to, and the arm looks again soon.
    """
    world(robot)  # a name that is unknown, or a simulator that is missing, is said before anything is run
    executed = EXECUTED[robot] if executed is None else executed
    if executed < 1:
        raise ValueError(f"executed is {executed}; at least one action of a chunk must be carried out")
    samples: dict[int, dict] = {}
    seeds = list(held_out(seed, count))
    sees = SEES if controls else SEES[:1]
    with progress("acting", count * len(sees)) as advance:
        for see in sees:
            for start in range(0, count, AT_ONCE):
                some = seeds[start : start + AT_ONCE]
                folder = Path(videos) if videos is not None and not see and start == 0 else None
                actor = Policy(model, robot, seed=some[0], steps=steps, foresee=foresee)
                for one, score, prompt in _episodes(actor, robot, some, see, executed, folder):
                    sample = samples.setdefault(one, {"seed": one, "prompt": prompt, "kind": _task(prompt)})
                    sample[see or "score"] = score
                advance(len(some))
    rows = list(samples.values())
    names = ["score", *sees[1:]]
    return {**averages(rows, names), "groups": grouped(rows, "kind", names)}, rows


def _task(prompt: str) -> str:
    return prompt.split()[0]


def _episodes(
    actor: Policy, robot: str, seeds: list[int], see: str, executed: int, folder: Path | None
) -> list[tuple[int, float, str]]:
    """Seed, score and prompt of episodes that go on side by side: each asks for its actions with all that still run."""
    games = [_simulators()[robot]() for _ in seeds]
    pictures = [game.reset(one) for game, one in zip(games, seeds, strict=True)]
    films = [[picture] for picture in pictures]
    running = list(range(len(games)))
    while running:
        shown = [_shown(pictures, i, see) for i in running]
        asked = [{"image": image, "prompt": games[i].prompt} for image, i in zip(shown, running, strict=True)]
        chunks = actor(asked)
        finished = []
        for i, chunk in zip(running, chunks, strict=True):
            for action in chunk[:executed]:
                pictures[i], _, done = games[i].step(action)
                films[i].append(pictures[i])
                if done:
                    finished.append(i)
                    break
        running = [i for i in running if i not in finished]
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for one, film, game in list(zip(seeds, films, games, strict=True))[:FILMS]:
            large = (frame.repeat(4, axis=0).repeat(4, axis=1) for frame in film)
            write_video(folder / f"{robot}-{one}.mp4", large, game.fps)
    return [(one, float(game.score), game.prompt) for one, game in zip(seeds, games, strict=True)]


def _shown(pictures: list[np.ndarray], i: int, see: str) -> np.ndarray:
    """What the policy of episode ``i`` is shown."""
    if see == "blind":
        return np.full_like(pictures[i], 128)
    return pictures[(i + 1) % len(pictures)] if see == "other" and len(pictures) > 1 else pictures[i]


def dynamics(
    model: Omni, count: int, seed: int, robot: str = "pusht", steps: int | None = None
) -> tuple[dict[str, Any], list[dict]]:
    """``count`` held-out windows of the expert's."""
    episodes, seeds = Episodes(robot), list(held_out(seed, count))
    forward, inverse = ForwardDynamics(model, robot), InverseDynamics(model, robot)
    samples, found, control, true = [], [], [], []
    with progress("foreseeing", count) as advance:
        for start in range(0, count, AT_ONCE):
            some = seeds[start : start + AT_ONCE]
            windows = [episodes.window(one) for one in some]
            films = [w.frames for w in windows]
            firsts, prompts = [film[0] for film in films], [w.prompt for w in windows]
            actions = [w.actions for w in windows]
            walk = {"seed": some, "steps": steps}
            foreseen = forward(firsts, actions, prompts, **walk).frames
            misled = forward(firsts, [*actions[1:], actions[0]], prompts, **walk).frames
            found += list(inverse(films, prompts, **walk).actions.numpy())
            control += list(inverse([*films[1:], films[0]], prompts, **walk).actions.numpy())
            true += actions
            for one, w, film, other in zip(some, windows, foreseen, misled, strict=True):
                copied = np.repeat(w.frames[:1], FRAMES, axis=0)
                errors = {"error": _error(film, w.frames), "copied": _error(copied, w.frames)}
                errors["other_actions"] = _error(other, w.frames)
                samples.append({"seed": one, "kind": w.kind, **errors})
            advance(len(some))
    names = ["error", "copied", "other_actions"]
    metrics = averages(samples, names)
    metrics["error_over_copied"] = metrics["error"] / max(metrics["copied"], 1e-12)
    metrics["other_actions_over_copied"] = metrics["other_actions"] / max(metrics["copied"], 1e-12)
    metrics["inverse_r2"] = r_squared(np.stack(found), np.stack(true))
    metrics["inverse_r2_other_video"] = r_squared(np.stack(control), np.stack(true))
    return {**metrics, "groups": grouped(samples, "kind", names)}, samples


def _error(frames: np.ndarray, true: np.ndarray) -> float:
    """Mean squared error of the frames behind the first, of levels from 0 to 1."""
    return float(np.square((frames[1:].astype(np.float32) - true[1:]) / 255).mean())


def r_squared(found: np.ndarray, true: np.ndarray) -> float | None:
    """1 - residual over spread, mean over the channels of actions (..., a) that vary; None where none does."""
    found, true = found.reshape(-1, found.shape[-1]), true.reshape(-1, true.shape[-1])
    spread = np.square(true - true.mean(0)).sum(0)
    rest = np.square(true - found).sum(0)
    return mean(1 - r / s for r, s in zip(rest.tolist(), spread.tolist(), strict=True) if s > 0)
