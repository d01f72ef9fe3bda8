"""Watching: questions about held-out clips, or about people's own videos.

Controls, of the first clips: the pairs of frames in another order, the middle frame in place of all, an empty picture.
The first leaves what does not depend on order; see :mod:`omni.data.clips` for what each kind of question is worth.
"""

from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from omni.data.clips import KINDS, Clip, frozen, sample_clip, shuffled
from omni.encoders.reduction import check_rate
from omni.evaluation import own
from omni.evaluation.asking import CONTROLLED, Asked, check_questions, chosen, columns, judged, setting
from omni.evaluation.report import averages, grouped, held_out
from omni.model import Omni
from omni.pipelines.video import DESCRIBE
from omni.tokenizers.image import border_colour
from omni.tokenizers.video import open_video

CONTROLS = ("shuffled", "frozen", "blank")


def run(
    model: Omni,
    count: int,
    seed: int,
    data: Path | None = None,
    journal: Path | None = None,
    questions: int = 3,
    read_first: bool | None = None,
    pruning: float = 0.0,
    frames: int | None = None,
) -> tuple[dict[str, Any], list[dict]]:
    """``count`` clips, dealt out over the kinds, with ``questions`` each.

    Args:
        read_first: whether the model says what happens before the questions; default: as the checkpoint asks for.
        pruning: share of the tokens that are left out.
        frames: of each clip, even and 6 to 64; of own videos, the most that are looked at.

    Metrics: exact match, also with each control.
    """
    if model.vision is None:
        raise ValueError("this model sees no videos; it has no vision encoder")
    check_rate(pruning)
    check_questions(questions)
    tell = DESCRIBE if setting(model, "video_read_first", read_first) else None
    media: dict[str, Any] = {"pruning": pruning}
    if data is not None:
        media |= {} if frames is None else {"max_frames": frames}
        return own.run(model, data, count, ("video",), journal, tell=tell, media=media)
    asked = [_asked(i, s, questions, frames) for i, s in enumerate(held_out(seed, count))]
    samples = judged(model, asked, "clips", tell=tell, media=media)
    scores = columns("accuracy", CONTROLS)
    return {**averages(samples, scores), "groups": grouped(samples, "kind", scores)}, samples


def _asked(place: int, seed: int, questions: int, frames: int | None) -> Asked:
    kinds = tuple(KINDS)
    clip = sample_clip(seed, kinds[place % len(kinds)], frames)
    qa = [clip.qa[i] for i in chosen(clip.qa, questions, seed)]
    shown = {"shuffled": shuffled(clip, Random(seed)), "frozen": frozen(clip), "blank": blank(clip.frames)}
    controls = {name: [video_part(clip, other)] for name, other in shown.items()} if place < CONTROLLED else {}
    return Asked([video_part(clip, clip.frames)], qa, {"seed": seed, "kind": clip.kind}, controls)


def video_part(clip: Clip, frames: np.ndarray) -> dict[str, Any]:
    """The part of a message with ``frames`` at the clip's times, all of which are looked at."""
    fps = (len(clip.times) - 1) / float(clip.times[-1] - clip.times[0])
    return {"type": "video", "video": open_video(frames, fps=fps), "fps": fps, "max_frames": len(frames)}


def blank(frames: np.ndarray) -> np.ndarray:
    """Frames of the colour of the first one's border."""
    return np.broadcast_to(border_colour(frames[0]).astype(np.uint8), frames.shape).copy()
