"""What moves on the demo's page: videos that begin with a picture, and robots that are driven in their simulators.

Videos are judged by following their things, robots by their simulator; both are shown as mp4 inside the page.
"""

import base64
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from omni.data.episodes import world
from omni.data.motion import KINDS, sample_motion
from omni.data.motion_check import moved_as_said
from omni.data.rollout import Rollout
from omni.evaluation.robots import EXECUTED
from omni.model import Omni
from omni.pipelines.animate import ImageToVideo
from omni.pipelines.policy import Policy
from omni.tokenizers.video_writer import write_video

FIRST_SEED = 400  # of the pictures and starts: training never draws seeds below a million
ENLARGED = 3  # times, since small videos are hard to see
GOOD_COVERAGE = 0.6  # of the mark, from which the T counts as brought there
ROBOTS = {"pusht": 1, "omni_arm": 2}  # and how many starts


def animations(model: Omni) -> list[dict[str, Any]]:
    """One video of every kind of motion, all drawn together; none of a model that knows pictures only."""
    if model.config.latent.patch_frames == 1:
        return []
    rollouts = [sample_motion(FIRST_SEED + i, kind) for i, kind in enumerate(KINDS)]
    first = rollouts[0]
    clips = ImageToVideo(model)(
        [r.frames[0] for r in rollouts],
        [r.prompt for r in rollouts],
        seed=list(range(len(rollouts))),
        frames=len(first.frames),
        fps=first.fps,
        sound=model.sound_latents is not None,
    )
    sounds = clips.sound or [None] * len(rollouts)
    return [
        _animation(rollout, frames, sound, clips.rate)
        for rollout, frames, sound in zip(rollouts, clips.frames, sounds, strict=True)
    ]


def _animation(rollout: Rollout, frames: np.ndarray, sound: np.ndarray | None, rate: int | None) -> dict[str, Any]:
    video = video_address(frames, rollout.fps, sound, rate)
    return {"prompt": rollout.prompt, "kind": rollout.kind, "video": video, "right": moved_as_said(rollout, frames)}


def check_worlds() -> None:
    """Raises ValueError that says what is missing where a robot's simulator is not installed."""
    for name in ROBOTS:
        world(name)


def rollouts(model: Omni) -> list[dict[str, Any]]:
    """Episodes of each robot that the model knows, from pictures alone."""
    if model.actions is None:
        return []
    return [_rollout(model, name, FIRST_SEED + i) for name, count in ROBOTS.items() for i in range(count)]


def _rollout(model: Omni, name: str, seed: int) -> dict[str, Any]:
    from omni.data.arm import Arm
    from omni.data.pusht import PushT

    game, policy = {"pusht": PushT, "omni_arm": Arm}[name](), Policy(model, name, seed=seed, foresee=False)
    picture, done = game.reset(seed), False
    frames = [picture]
    while not done:
        for action in policy({"image": picture, "prompt": game.prompt})[: EXECUTED[name]]:
            picture, _, done = game.step(action)
            frames.append(picture)
            if done:
                break
    right = game.score >= (GOOD_COVERAGE if name == "pusht" else 1)
    told = f"{100 * game.score:.0f} % of the mark covered at best" if name == "pusht" else "reached" * right or "missed"
    video = video_address(frames, game.fps)
    return {"prompt": game.prompt, "kind": told, "video": video, "right": bool(right)}


def video_address(
    frames: Iterable[np.ndarray], fps: float, sound: np.ndarray | None = None, rate: int | None = None
) -> str:
    """Frames (H, W, 3) uint8 as an mp4 inside the page."""
    large = (frame.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1) for frame in frames)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.mp4"
        write_video(path, large, fps, sound, **({} if rate is None else {"rate": rate}))
        return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
