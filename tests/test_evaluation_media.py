"""Evaluation of what is seen and heard: clips, recordings, films and sights, each beside controls."""

import json

import numpy as np
import pytest
from tasks import seeing_and_hearing, shorten

from omni.data.clips import sample_clip
from omni.data.films import sample_film
from omni.data.sights import sample_sight
from omni.data.sounds import sample_sound
from omni.evaluation import asking, evaluate, films, sights, sound, table, video
from omni.evaluation.report import held_out
from omni.pipelines.reading import Reading
from omni.tokenizers.frames import plan_frames


@pytest.fixture(autouse=True)
def short(monkeypatch):
    shorten(monkeypatch)


@pytest.fixture(scope="module")
def senses():
    return seeing_and_hearing()


def fingerprint(parts) -> bytes:
    """What is shown and heard, whatever it is wrapped in."""
    pieces = []
    for part in parts:
        if part["type"] == "image":
            pieces.append(np.asarray(part["image"]).tobytes())
        elif part["type"] == "audio":
            pieces.append(part["audio"].samples.numpy().tobytes())
        else:
            opened = part["video"]
            chosen = plan_frames(opened.times, part["fps"], part["max_frames"])
            pieces.append(opened.read(chosen).tobytes())
            pieces.append(part["sound"].samples.numpy().tobytes() if "sound" in part else b"")
    return b"|".join(pieces)


def knows(*cases):
    """A stand-in for ``ask`` that answers ``cases``, (parts, questions and answers), and says nothing to others."""
    known = {fingerprint(parts): dict(qa) for parts, qa in cases}

    def ask(model, shown, questions, limit, label, tell=None, media=None):
        return [
            None if parts is None else [known.get(fingerprint(parts), {}).get(q, "") for q in some]
            for parts, some in zip(shown, questions, strict=True)
        ]

    return ask


def test_perfect_answers_about_clips_and_controls(senses, monkeypatch):
    kinds = tuple(video.KINDS)
    clips = [sample_clip(s, kinds[i % 6]) for i, s in enumerate(held_out(0, 12))]
    monkeypatch.setattr(asking, "ask", knows(*(([video.video_part(c, c.frames)], c.qa) for c in clips)))
    monkeypatch.setattr(video, "CONTROLLED", 9)
    report = evaluate("video", senses, count=12)
    metrics = report.metrics
    assert metrics["accuracy"] == 1.0
    assert metrics["frozen_accuracy"] == metrics["blank_accuracy"] == 0.0
    assert metrics["shuffled_accuracy"] < 0.4  # pairs that look alike may stay what they were
    assert set(metrics["groups"]) == set(kinds)
    assert sum("blank_said" in s for s in report.samples) == sum(min(3, len(c.qa)) for c in clips[:9])


def test_every_frame_of_a_clip_is_looked_at_whatever_its_pace():
    paces = set()
    for s in range(40):
        clip = sample_clip(s)
        part = video.video_part(clip, clip.frames)
        paces.add(round(part["fps"], 4))
        assert plan_frames(part["video"].times, part["fps"], part["max_frames"]) == list(range(len(clip.frames)))
        assert np.allclose(part["video"].times, clip.times)
    assert min(paces) < 0.02
    assert max(paces) == 10


def test_perfect_answers_about_recordings_and_controls(senses, monkeypatch):
    kinds = tuple(sound.KINDS)
    heard = [sample_sound(s, kinds[i % len(kinds)]) for i, s in enumerate(held_out(0, 24))]
    monkeypatch.setattr(asking, "ask", knows(*(([sound.sound_part(r.samples)], r.qa) for r in heard)))
    metrics = evaluate("sound", senses, count=24).metrics
    assert metrics["accuracy"] == 1.0
    assert metrics["digits_wer"] == metrics["words_wer"] == 0.0
    assert metrics["silence_accuracy"] == 0.0
    assert metrics["shuffled_accuracy"] < 0.4
    assert metrics["digits_silence_wer"] == 1.0
    new = [r for r in heard if r.voice and sound.is_held_out(r.voice)]
    assert new
    assert metrics["new_voices_accuracy"] == 1.0
    assert sum(part["cases"] for name, part in metrics["groups"].items() if "transcribed" in name) == 24


def test_wrong_digits_count_as_words_of_all_recordings_together(senses, monkeypatch):
    heard = [sample_sound(s, "digits") for s in held_out(0, 3)]
    monkeypatch.setattr(sound, "KINDS", {"digits": sound.KINDS["digits"]})
    said = [heard[0].text, f"{heard[1].text} 7", " ".join(heard[2].text.split()[1:])]
    cases = [([sound.sound_part(r.samples)], [(r.qa[0][0], text)]) for r, text in zip(heard, said, strict=True)]
    monkeypatch.setattr(asking, "ask", knows(*cases))
    metrics = evaluate("sound", senses, count=3).metrics
    assert metrics["digits_wer"] == pytest.approx(2 / sum(len(r.text.split()) for r in heard))
    assert metrics["groups"]["transcribed digits"]["transcript_accuracy"] == pytest.approx(1 / 3)


def test_perfect_answers_about_films_and_controls(senses, monkeypatch):
    seen = [sample_film(s, films.KINDS[i % 4]) for i, s in enumerate(held_out(0, 8))]
    monkeypatch.setattr(asking, "ask", knows(*(([films.film_part(f, f)], f.qa) for f in seen)))
    report = evaluate("films", senses, count=8, questions=6)
    assert report.metrics["accuracy"] == 1.0
    assert report.metrics["other_sound_accuracy"] == report.metrics["other_frames_accuracy"] == 0.0
    assert {f"needs {name}" for name in ("both", "picture", "sound")} < set(report.metrics["groups"])
    needs = {question: need for f in seen for (question, _), need in zip(f.qa, f.needs, strict=True)}
    assert all(s["needs"] == needs[s["question"]] for s in report.samples)


def test_controls_of_films_change_one_sense_alone():
    a, b = sample_film(0), sample_film(1)
    (first, _) = films._controls([a, b])
    (sounds,), (frames,) = first["other_sound"], first["other_frames"]
    own = films.film_part(a, a)
    assert np.array_equal(sounds["video"].read([0]), own["video"].read([0]))
    assert np.array_equal(sounds["sound"].samples, b.samples)
    assert np.array_equal(frames["sound"].samples, a.samples)
    assert len(frames["video"].times) == len(b.frames)


def test_answers_about_sights_by_words_and_boxes(senses, monkeypatch):
    pictures = [sample_sight(s) for s in held_out(0, 12)]
    monkeypatch.setattr(asking, "ask", knows(*(([sights._part(p)], p.qa) for p in pictures)))
    metrics = evaluate("sights", senses, count=12, questions=20).metrics
    assert metrics["accuracy"] == metrics["iou"] == 1.0
    assert metrics["shuffled_accuracy"] < 0.4
    assert set(metrics["groups"]) == {"box", "color", "count", "existence", "relation", "shape"}
    assert sights._score("[0, 0, 500, 1000]", "[0, 0, 400, 1000]") == {"accuracy": 1.0, "iou": pytest.approx(0.8)}
    assert sights._score("[0, 0, 500, 1000]", "[0, 0, 200, 1000]") == {"accuracy": 0.0, "iou": pytest.approx(0.4)}
    assert sights._score("somewhere", "[0, 0, 200, 1000]") == {"accuracy": 0.0, "iou": 0.0}


@pytest.mark.parametrize("tell", [None, "What happens?"])
def test_media_asked_together_get_the_answers_they_get_alone(senses, monkeypatch, tell):
    monkeypatch.setattr("omni.pipelines.reading.TOLD_TOKENS", 4)
    monkeypatch.setattr(asking, "AT_ONCE", 3)
    clips = [sample_clip(s, frames=6 + 2 * s) for s in range(2)]
    parts = [[video.video_part(c, c.frames)] for c in clips] + [[sound.sound_part(sample_sound(0, "tones").samples)]]
    questions = [["What moves?", "Why?"], ["How many?"], ["What is heard?"]]
    found = asking.ask(senses, [*parts, None], [*questions, ["x"]], 5, "", tell)
    alone = [[a.text for a in Reading(senses, p, tell).ask(q, 5)] for p, q in zip(parts, questions, strict=True)]
    assert found == [*alone, None]


def test_pruning_reaches_the_model(senses, monkeypatch):
    seen = []
    prepare = senses.prepare
    monkeypatch.setattr(senses, "prepare", lambda *a, **more: seen.append(more) or prepare(*a, **more))
    evaluate("video", senses, count=1, questions=1, pruning=0.5, frames=8, read_first=True)
    assert {more["pruning"] for more in seen} == {0.5}
    clip = sample_clip(0)
    messages = [{"role": "user", "content": [video.video_part(clip, clip.frames)]}]
    plain = [len(senses.prepare(messages, pruning=rate).input_ids[0]) for rate in (0.0, 0.5)]
    assert plain[1] < plain[0]


@pytest.mark.parametrize("task", ["sights", "video", "sound", "films"])
def test_senses_of_a_random_model(senses, task):
    first, second = (evaluate(task, senses, count=2, questions=1) for _ in range(2))
    assert (first.metrics, first.samples) == (second.metrics, second.samples)
    assert 0 <= first.metrics["accuracy"] <= 1
    assert json.dumps(first.as_dict())
    assert table(first)


def test_the_checkpoint_says_whether_all_is_told_first(senses, monkeypatch):
    told = []
    monkeypatch.setattr(
        asking,
        "ask",
        lambda m, shown, q, limit, label, tell=None, media=None: (
            told.append(tell) or [None if p is None else [""] * len(s) for p, s in zip(shown, q, strict=True)]
        ),
    )
    for task, name, words in (
        ("video", "video_read_first", "What happens?"),
        ("sound", "sound_read_first", "What do you hear?"),
        ("films", "film_read_first", "What is seen and heard?"),
    ):
        for setting, option, expected in (
            (1.0, None, words),
            (0.0, None, None),
            (1.0, False, None),
            (0.0, True, words),
        ):
            monkeypatch.setitem(senses.config.sampling, name, setting)
            told.clear()
            evaluate(task, senses, count=1, questions=1, **({} if option is None else {"read_first": option}))
            assert told[0] == expected
