"""Animating: does a video begin with its picture, and happen what the sentence says? In the world of moving bodies.

Bodies are followed by their colours. A video is right when each moves as it should (:mod:`omni.data.motion_check`);
the position error is set beside those of a frozen first frame and of a constant velocity, which is shown the second
true frame too. Controls that must fail: the same picture with another sentence, judged by the first one; and with none.
"""

from typing import Any

import numpy as np

from omni.data.motion import sample_motion, sibling
from omni.data.motion_check import (
    constant_velocity_error,
    frozen_error,
    moved_as_said,
    position_error,
    track,
)
from omni.data.rollout import Rollout
from omni.evaluation.report import averages, grouped, held_out, progress
from omni.metrics_media import psnr
from omni.model import Omni
from omni.pipelines.animate import ImageToVideo

AT_ONCE = 12  # videos of a batch
COLUMNS = ("right", "error", "frozen", "constant", "first_frame")


def run(
    model: Omni,
    count: int,
    seed: int,
    steps: int | None = None,
    guidance: float | None = None,
    shift: float | None = None,
    eta: float | None = None,
    controls: bool = True,
) -> tuple[dict[str, Any], list[dict]]:
    """``count`` pictures with sentences, one video each, drawn with the case's seed."""
    animate = ImageToVideo(model)
    walk = {"steps": steps, "guidance": guidance, "shift": shift, "eta": eta}
    samples = []
    with progress("animating", count) as advance:
        seeds = list(held_out(seed, count))
        for start in range(0, count, AT_ONCE):
            some = seeds[start : start + AT_ONCE]
            rollouts = [sample_motion(one) for one in some]
            films = {"right": _films(animate, rollouts, [r.prompt for r in rollouts], some, walk)}
            if controls:
                others = [sibling(one).prompt for one in some]
                films["other_sentence"] = _films(animate, rollouts, others, some, walk)
                films["no_sentence"] = _films(animate, rollouts, [""] * len(some), some, walk)
            samples += [
                _judged(one, rollout, {name: own[i] for name, own in films.items()})
                for i, (one, rollout) in enumerate(zip(some, rollouts, strict=True))
            ]
            advance(len(some))
    names = [*COLUMNS, *(("other_sentence", "no_sentence") if controls else ())]
    return {**averages(samples, names), "groups": grouped(samples, "kind", names)}, samples


def _films(
    animate: ImageToVideo, rollouts: list[Rollout], prompts: list[str], seeds: list[int], walk: dict[str, Any]
) -> list[np.ndarray]:
    pictures = [rollout.frames[0] for rollout in rollouts]
    first = rollouts[0]
    return animate(pictures, prompts, seed=seeds, frames=len(first.frames), fps=first.fps, **walk).frames


def _judged(seed: int, rollout: Rollout, films: dict[str, np.ndarray]) -> dict[str, Any]:
    film = films["right"]
    verdicts = {name: moved_as_said(rollout, own) for name, own in films.items()}
    return {
        "seed": seed,
        "kind": rollout.kind,
        "prompt": rollout.prompt,
        **verdicts,
        "error": position_error(rollout, track(film, rollout)),
        "frozen": frozen_error(rollout),
        "constant": constant_velocity_error(rollout),
        "first_frame": min(float(psnr(film[:1], rollout.frames[:1])), 99.0),
    }
