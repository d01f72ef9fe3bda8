"""Listening: questions about held-out recordings and their transcription, or questions about people's own.

Controls, of the first recordings: faint noise, and another recording. Half of the spoken ones have voices that training
never hears; they are counted by themselves too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from omni.data.sounds import KINDS, Sound, sample_sound, silence
from omni.data.speech import SAMPLE_RATE, is_held_out
from omni.evaluation import own
from omni.evaluation.asking import (
    CONTROLLED,
    Asked,
    check_questions,
    chosen,
    columns,
    exact,
    following,
    judged,
    setting,
)
from omni.evaluation.report import averages, grouped, held_out, mean
from omni.metrics import word_error_rate
from omni.model import Omni
from omni.pipelines.sound import HEAR
from omni.tokenizers.sound import Waveform

CONTROLS = ("silence", "shuffled")
SPOKEN = ("digits", "words")  # kinds whose transcription is scored by words
NEW = "new voices"


def run(
    model: Omni,
    count: int,
    seed: int,
    data: Path | None = None,
    journal: Path | None = None,
    questions: int = 3,
    read_first: bool | None = None,
) -> tuple[dict[str, Any], list[dict]]:
    """``count`` recordings, dealt out over the kinds, with ``questions`` each and their transcription.

    ``read_first``: whether the model says what it hears before the questions; default: as the checkpoint asks for.

    Metrics: exact match of the answers; of digits and of words the error rate of the transcription, all recordings
    together; both also with each control and of new voices.
    """
    if model.sound is None:
        raise ValueError("this model hears no sounds")
    check_questions(questions)
    tell = HEAR if setting(model, "sound_read_first", read_first) else None
    if data is not None:
        return own.run(model, data, count, ("audio",), journal, tell=tell)
    kinds = tuple(KINDS)
    recordings = [(s, sample_sound(s, kinds[i % len(kinds)])) for i, s in enumerate(held_out(seed, count))]
    controls = _controls([recording for _, recording in recordings[:CONTROLLED]])
    controls += [{}] * (count - len(controls))
    asked, aloud = [], []
    for (s, recording), shown in zip(recordings, controls, strict=True):
        rest = recording.qa[1:]
        about = {"seed": s, "kind": recording.kind, "voice": recording.voice}
        parts = [sound_part(recording.samples)]
        asked.append(Asked(parts, [rest[i] for i in chosen(rest, questions, s)], about, shown))
        aloud.append(Asked(parts, recording.qa[:1], {**about, "transcribed": True}, shown))
    samples = judged(model, asked, "recordings", tell=tell)
    transcripts = judged(model, aloud, "transcribing", _transcript)
    return _metrics(samples, transcripts), samples + transcripts


def sound_part(samples: np.ndarray) -> dict[str, Any]:
    return {"type": "audio", "audio": Waveform(torch.from_numpy(samples), SAMPLE_RATE)}


def _controls(recordings: Sequence[Sound]) -> list[dict[str, Any]]:
    others = following(recordings)
    return [
        {"silence": [sound_part(silence(one))], "shuffled": other and [sound_part(other.samples)]}
        for one, other in zip(recordings, others, strict=True)
    ]


def _transcript(said: str, text: str) -> dict[str, float]:
    return {"transcript_accuracy": exact(said, text)["accuracy"]}


# -- metrics ---------------------------------------------------------------------------------------------------------


def _metrics(samples: list[dict], transcripts: list[dict]) -> dict[str, Any]:
    scores = columns("accuracy", CONTROLS)
    found = averages(samples, scores)
    for kind in SPOKEN:
        said = [s for s in transcripts if s["kind"] == kind]
        found |= {f"{kind}_{name}": rate for name, rate in _error_rates(said).items()}
        new = _error_rates([s for s in said if _is_new(s)])
        found |= {f"{kind}_new_voices_wer": new["wer"]} if "wer" in new else {}
    fresh = [s for s in samples if _is_new(s)]
    found |= {"new_voices_accuracy": mean(s["accuracy"] for s in fresh)} if fresh else {}
    groups = grouped(samples, "kind", scores)
    groups |= {f"{name}, {NEW}": part for name, part in grouped(fresh, "kind", scores).items()}
    read = grouped(transcripts, "kind", columns("transcript_accuracy", CONTROLS))
    for kind, part in read.items():
        groups[f"transcribed {kind}"] = part | _error_rates([s for s in transcripts if s["kind"] == kind])
    return {**found, "groups": groups}


def _error_rates(transcripts: list[dict]) -> dict[str, float]:
    """Word error rate of recordings together, and of their controls; units are words of the world, taken as they are"""
    rates = {}
    for name in ("", *CONTROLS):
        key = f"{name}_said" if name else "said"
        there = [s for s in transcripts if key in s and s["kind"] in SPOKEN]
        rate = word_error_rate([s[key] for s in there], [s["answers"][0] for s in there])
        if rate is not None:
            rates[f"{name}_wer" if name else "wer"] = rate
    return rates


def _is_new(sample: dict) -> bool:
    return bool(sample["voice"]) and is_held_out(sample["voice"])
