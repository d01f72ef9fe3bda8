"""Watching and listening: questions about held-out clips with sound, by the senses that they need.

Controls, of the first films: the sound of another film, and the frames of another one. The first must hurt what needs
the sound, the second what needs the picture, and both what needs both.
"""

from collections.abc import Sequence
from typing import Any

import torch

from omni.data.films import KINDS, Film, sample_film
from omni.data.speech import SAMPLE_RATE
from omni.evaluation.asking import CONTROLLED, Asked, check_questions, chosen, columns, following, judged, setting
from omni.evaluation.report import averages, grouped, held_out
from omni.model import Omni
from omni.pipelines.video import DESCRIBE_FILM
from omni.tokenizers.sound import Waveform
from omni.tokenizers.video import open_video

CONTROLS = ("other_sound", "other_frames")


def run(
    model: Omni, count: int, seed: int, questions: int = 3, read_first: bool | None = None
) -> tuple[dict[str, Any], list[dict]]:
    """``count`` films, dealt out over what is heard in them, with ``questions`` each.

    ``read_first``: whether the model says what is seen and heard before the questions; default: as the checkpoint
    asks for. Metrics: exact match by what a question needs (picture, sound, both) and by kind, also with each control.
    """
    if model.vision is None or model.sound is None:
        raise ValueError("this model cannot both see and hear; films need a vision and a sound encoder")
    check_questions(questions)
    tell = DESCRIBE_FILM if setting(model, "film_read_first", read_first) else None
    films = [(s, sample_film(s, KINDS[i % len(KINDS)])) for i, s in enumerate(held_out(seed, count))]
    controls = _controls([film for _, film in films[:CONTROLLED]])
    controls += [{}] * (count - len(controls))
    asked = [_asked(s, film, shown, questions) for (s, film), shown in zip(films, controls, strict=True)]
    samples = judged(model, asked, "films", tell=tell)
    scores = columns("accuracy", CONTROLS)
    groups = {f"needs {name}": part for name, part in grouped(samples, "needs", scores).items()}
    return {**averages(samples, scores), "groups": groups | grouped(samples, "kind", scores)}, samples


def _asked(seed: int, film: Film, controls: dict[str, Any], questions: int) -> Asked:
    """Without the film's first question, which asks for all of it."""
    drawn = [1 + i for i in chosen(film.qa[1:], questions, seed)]
    about = {"seed": seed, "kind": film.kind, "voice": film.voice}
    own = [{"needs": film.needs[i]} for i in drawn]
    return Asked([film_part(film, film)], [film.qa[i] for i in drawn], about, controls, own)


def film_part(seen: Film, heard: Film) -> dict[str, Any]:
    """The part of a message with the frames of one film, all of which are looked at, and the sound of one."""
    fps = (len(seen.times) - 1) / float(seen.times[-1] - seen.times[0])
    return {
        "type": "video",
        "video": open_video(seen.frames, fps=fps),
        "fps": fps,
        "max_frames": len(seen.frames),
        "sound": Waveform(torch.from_numpy(heard.samples), SAMPLE_RATE),
    }


def _controls(films: Sequence[Film]) -> list[dict[str, Any]]:
    return [
        {"other_sound": other and [film_part(film, other)], "other_frames": other and [film_part(other, film)]}
        for film, other in zip(films, following(films), strict=True)
    ]
