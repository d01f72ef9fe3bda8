"""Evaluation: scores of perfect and of blind answers, controls, held-out cases, own questions, reports."""

import json
import re
from functools import cache

import numpy as np
import pytest
import torch
from micro import MICRO, micro_model
from PIL import Image

from omni.config import SoundConfig, replace
from omni.data import TRAIN_SEEDS
from omni.data.booklets import sample_booklet
from omni.data.clips import sample_clip
from omni.data.documents import LEVELS, sample_document
from omni.data.films import sample_film
from omni.data.scenes import CATEGORIES, sample_prompt, sample_scene
from omni.data.sights import sample_sight
from omni.data.sounds import sample_sound
from omni.evaluation import TASKS, Report, asking, booklets, evaluate, films, sights, sound, table, video
from omni.evaluation import documents as reading
from omni.evaluation import draw as drawing
from omni.evaluation import own as asked_by_people
from omni.evaluation import text as talking
from omni.evaluation.report import held_out
from omni.pipelines.chat import Chat
from omni.pipelines.documents import DocumentQA
from omni.pipelines.images import Result
from omni.pipelines.reading import Answer, Reading
from omni.tokenizers.video import plan_frames, write_video


@pytest.fixture(scope="module")
def model():
    return micro_model()


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """A random model never ends an answer by itself."""
    monkeypatch.setattr(reading, "ANSWER", 6)
    monkeypatch.setattr(reading, "TRANSCRIPTION", dict.fromkeys(reading.TRANSCRIPTION, 6))
    monkeypatch.setattr(talking, "ANSWER", 6)
    monkeypatch.setattr(asking, "ANSWER", 4)
    monkeypatch.setattr(asking, "TELLING", 4)
    monkeypatch.setattr(booklets, "ANSWER", 4)


@pytest.fixture(scope="module")
def senses():
    """A model that sees, in pairs of frames, and hears."""
    hears = SoundConfig(d_model=16, n_layers=1, n_heads=2, d_ff=16, n_mels=32, channels=4)
    special = {**MICRO.special_tokens, "video": 15, "sound": 16}
    return micro_model(sound=hears, vision=replace(MICRO.vision, tubelet=2), special_tokens=special)


# -- documents -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("views", "read_first"), [(1.0, False), (3.0, False), (2.0, True)])
def test_pages_read_together_get_the_answers_they_get_alone(model, monkeypatch, views, read_first):
    monkeypatch.setitem(model.config.sampling, "document_views", views)
    monkeypatch.setattr(reading, "READ_TOKENS", 5)
    monkeypatch.setattr("omni.pipelines.reading.TOLD_TOKENS", 5)
    monkeypatch.setattr(reading, "PAGES_AT_ONCE", 2)
    pages = [sample_document(s, "lines", size) for s, size in enumerate([(48, 160), (48, 112), (48, 160), (48, 160)])]
    pictures = [Image.fromarray(page.image) for page in pages]
    questions = [["What is it?", "Who signed?"], ["How much is the bread?"], ["What is the date?"], ["Why?"] * 3]
    together = reading.answer_pages(model, [*pictures, None], [*questions, ["x"]], 6, read_first=read_first)
    alone = [
        DocumentQA(model)(p, q, max_new_tokens=6, read_first=read_first)
        for p, q in zip(pictures, questions, strict=True)
    ]
    assert together == [[a.text for a in answers] for answers in alone] + [None]
    assert together[0] != together[2][:2]


@cache
def known_pages() -> dict[bytes, dict[str, str]]:
    pages = [sample_document(s, level) for s in range(15) for level in LEVELS]
    return {page.image.tobytes(): {**dict(page.qa), "Read the page.": page.text} for page in pages}


def perfect_reader(model, pictures, questions, limit, label="", **how):
    """Answers from the page that is shown, by looking its pixels up; says nothing to an unknown page."""
    known, answers = known_pages(), []
    for picture, asked in zip(pictures, questions, strict=True):
        page = None if picture is None else known.get(np.asarray(picture).tobytes(), {})
        answers.append(None if page is None else [page.get(question, "") for question in asked])
    return answers


def test_perfect_answers_score_one_and_controls_do_not(model, monkeypatch):
    monkeypatch.setattr(reading, "answer_pages", perfect_reader)
    report = evaluate("documents", model, count=15, transcribed=4)
    assert report.metrics["anls"] == report.metrics["exact_match"] == report.metrics["character_accuracy"] == 1.0
    assert report.metrics["blank_anls"] == 0.0
    assert report.metrics["shuffled_anls"] < 0.5
    groups = report.metrics["groups"]
    assert sum(scores["cases"] for name, scores in groups.items() if "transcribed" not in name) == 45
    assert groups["transcribed line"] == {"cases": 4, "character_accuracy": 1.0}
    assert len(report.samples) == 45 + 20


def test_wrong_answers_score_by_their_distance(model, monkeypatch):
    def almost(model, pictures, questions, limit, label="", **how):
        right = perfect_reader(model, pictures, questions, limit)
        return [None if a is None else [text + "~" for text in a] for a in right]

    monkeypatch.setattr(reading, "answer_pages", almost)
    report = evaluate("documents", model, count=6, transcribed=1)
    assert 0.5 < report.metrics["anls"] < 1
    assert report.metrics["exact_match"] == 0


def test_controls_show_what_they_say():
    pictures = [Image.fromarray(sample_document(s, "lines", size).image) for s, size in enumerate([(48, 160)] * 2)]
    odd = Image.new("RGB", (32, 16), "red")
    assert reading.shuffled([pictures[0], odd, pictures[1]]) == [pictures[1], None, pictures[0]]
    empty = reading.blank(pictures[0])
    assert empty.size == pictures[0].size
    assert len(empty.getcolors()) == 1


def test_documents_of_a_random_model(model):
    report = evaluate("documents", model, count=3, questions=1)
    assert 0 <= report.metrics["anls"] <= 1
    assert {"said", "blank_said"} <= set(report.samples[0])


def test_charts_are_scored_by_relaxed_accuracy(model, monkeypatch):
    monkeypatch.setattr(reading, "answer_pages", perfect_reader)
    report = evaluate("charts", model, count=10, questions=2)
    metrics = report.metrics
    assert metrics["anls"] == metrics["relaxed_accuracy"] == metrics["character_accuracy"] == 1.0
    assert metrics["blank_relaxed_accuracy"] == 0.0
    assert metrics["shuffled_relaxed_accuracy"] < 0.6
    assert metrics["groups"]["transcribed chart"]["cases"] == 2


# -- booklets --------------------------------------------------------------------------------------------------------


class PerfectBooklets:
    """Answers from the pages that are shown, with the number of the page; says nothing where none has the question."""

    def __init__(self, model) -> None:
        pass

    def __call__(self, pages, questions, max_new_tokens, **how):
        known = {page.image.tobytes(): dict(page.qa) for s in range(6) for page in sample_booklet(s).pages}
        shown = [known.get(np.asarray(page).tobytes(), {}) for page in pages]
        answers = []
        for question in questions:
            at = next((n for n, qa in enumerate(shown, 1) if question in qa), None)
            answers.append(Answer(shown[at - 1][question], (at,)) if at else Answer("", (1,)))
        return answers


def test_perfect_answers_from_booklets_name_their_page_and_other_booklets_have_none(model, monkeypatch):
    monkeypatch.setattr(booklets, "DocumentQA", PerfectBooklets)
    report = evaluate("booklets", model, count=6, questions=2)
    metrics = report.metrics
    assert metrics["anls"] == metrics["right_page"] == metrics["found"] == 1.0
    assert metrics["shuffled_anls"] == metrics["shuffled_found"] == 0.0
    assert metrics["cases"] == 12
    assert any(name.endswith(" pages") for name in metrics["groups"])


@pytest.mark.parametrize("together", [True, False])
def test_booklets_of_a_random_model(model, together):
    report = evaluate("booklets", model, count=1, questions=1, pages=2, together=together)
    (sample,) = report.samples
    assert sample["from"] in ([1], [2])
    assert not any(name.startswith("shuffled") for name in sample)  # there is no other booklet


# -- what is seen and heard ------------------------------------------------------------------------------------------


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


# -- own questions ---------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path):
    """A folder with media of every kind, and questions about them."""
    sight, page = sample_sight(3), sample_document(1, "lines")
    Image.fromarray(sight.image).save(tmp_path / "sight.png")
    Image.fromarray(page.image).save(tmp_path / "page.png")
    heard = sample_sound(0, "tones")
    write_video(tmp_path / "film.mp4", list(sample_clip(0).frames), 2.0, heard.samples)
    lines = [
        {"image": "sight.png", "question": "Where?", "answers": ["[0, 0, 500, 500]"], "metric": "iou"},
        {"image": "sight.png", "question": "Click it", "answers": ["[0, 0, 500, 500]"], "metric": "point"},
        {
            "image": ["sight.png", "page.png"],
            "question": "Which?",
            "answers": ["B"],
            "metric": "choice",
            "choices": ["red", "blue"],
        },
        {"document": "page.png", "question": "Who?", "answers": ["x"], "page": 1},
        {"document": ["page.png", "page.png"], "question": "Who?", "answers": ["12"], "metric": "relaxed"},
        {"video": "film.mp4", "question": "When?", "answers": ["1.0"]},
        {"audio": "film.mp4", "question": "What is said?", "answers": ["one two", "1 3"], "metric": "wer"},
        {"audio": "film.mp4", "question": "Digits?", "answers": ["1 2"], "metric": "digits", "id": 7},
        {"image": "page.png", "question": "Read", "answers": ["x"], "metric": "contained"},
    ]
    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_questions_about_media_of_every_kind(senses, mixed):
    report = evaluate("qa", senses, data=mixed, frames=4, max_new_tokens=4)
    columns = {"iou", "box_accuracy", "pointing", "choice", "anls", "relaxed_accuracy", "exact_match", "contained"}
    assert columns | {"wer", "digit_error_rate", "cases"} <= set(report.metrics)
    assert len(report.samples) == 9
    assert report.samples[7]["id"] == 7
    assert report.samples[4]["pages"] in ([1], [2])
    assert "audio, wer" in report.metrics["groups"]
    assert json.dumps(report.as_dict())
    for task, kinds in (("video", "video"), ("sound", "audio"), ("sights", "image")):
        with pytest.raises(ValueError, match=f"must have one medium, '{kinds}'"):
            evaluate(task, senses, data=mixed)


def test_right_answers_to_own_questions_score_one(senses, mixed, monkeypatch):
    right = {
        "Where?": "It is [0, 0, 480, 500].",
        "Click it": "(250, 250)",
        "Who?": "x",
        "When?": "1.0",
        "What is said?": "One, three!",
        "Digits?": "one two",
        "Read": "an x",
    }

    class Right:
        def __init__(self, *arguments, **options) -> None:
            pass

        def ask(self, questions, limit):
            return [Answer(right.get(q, "The answer is B"), (1,)) for q in questions]

        def __call__(self, document, questions, **options):
            return [Answer("12.2" if isinstance(document, list) else right[q], (1,)) for q in questions]

    monkeypatch.setattr(asked_by_people, "Reading", Right)
    monkeypatch.setattr(asked_by_people, "DocumentQA", Right)
    metrics = evaluate("qa", senses, data=mixed).metrics
    assert metrics.pop("iou") == pytest.approx(0.96)
    assert (metrics.pop("wer"), metrics.pop("digit_error_rate")) == (0.0, 0.0)
    assert {name: value for name, value in metrics.items() if name not in ("groups", "cases")} == dict.fromkeys(
        ("box_accuracy", "pointing", "choice", "anls", "relaxed_accuracy", "exact_match", "contained"), 1.0
    )


def test_lines_about_one_medium_read_it_once(senses, mixed, monkeypatch):
    opened = []

    class Counted(Reading):
        def __init__(self, model, parts, *rest, **options) -> None:
            opened.append(options)
            super().__init__(model, parts, *rest, **options)

    monkeypatch.setattr(asked_by_people, "Reading", Counted)
    evaluate("qa", senses, data=mixed, count=3, max_new_tokens=4)
    assert len(opened) == 2  # two lines on one picture, then a pair
    (mixed.parent / "films.jsonl").write_text(mixed.read_text().splitlines()[5])
    evaluate("video", senses, data=mixed.parent / "films.jsonl", pruning=0.3, frames=4)
    assert opened[-1] == {"pruning": 0.3, "max_frames": 4}


def test_with_reasoning_only_the_answer_counts(senses, mixed, monkeypatch):
    asked = []

    def reply(self, messages, thinking, **options):
        asked.append(thinking)
        return type("Reply", (), {"text": "<think>A</think>B"})

    monkeypatch.setattr(Chat, "__call__", reply)
    mixed.write_text(mixed.read_text().splitlines()[2])
    assert evaluate("qa", senses, data=mixed, thinking=True).metrics["choice"] == 1.0
    assert asked == [True]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"question": "q", "answers": ["a"]}, "line 1 must have one medium, 'image' or 'video'"),
        ({"image": "sight.png", "audio": "film.mp4", "question": "q", "answers": ["a"]}, "it has image, audio"),
        (
            {"image": "sight.png", "question": "q", "answers": ["a"], "metric": "bleu"},
            "'metric' is 'bleu'; known: anls",
        ),
        ({"image": "sight.png", "question": "q", "answers": ["a"], "page": 1}, "'page' is for documents"),
        ({"image": "sight.png", "question": "q", "answers": ["a"], "choices": ["a"]}, "'choices' is for the metric"),
        ({"image": "sight.png", "question": "q", "answers": ["a"], "metric": "choice"}, "'choices' must be a list"),
        ({"image": "sight.png", "question": "q", "answers": ["A"], "metric": "choice", "choices": ["a"]}, "1 choices"),
        ({"image": "sight.png", "question": "q", "answers": ["there"], "metric": "iou"}, "must be boxes such as"),
        ({"image": "none.png", "question": "q", "answers": ["a"]}, "there is no file"),
        ({"image": [], "question": "q", "answers": ["a"]}, "'image' must be a text"),
        ({"video": ["film.mp4"], "question": "q", "answers": ["a"]}, "'video' must be a text"),
    ],
)
def test_bad_questions_are_named(senses, mixed, line, message):
    mixed.write_text(json.dumps(line))
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate("qa", senses, data=mixed)


def test_media_that_cannot_be_read_are_named_by_their_line(senses, mixed):
    (mixed.parent / "film.mp4").write_bytes(b"no film")
    with pytest.raises(ValueError, match=r"mixed\.jsonl, line 6: .*film\.mp4"):
        evaluate("qa", senses, data=mixed, max_new_tokens=4)


@pytest.mark.parametrize("task", ["qa", "documents"])
def test_a_run_that_was_broken_off_goes_on_behind_its_last_answer(senses, mixed, monkeypatch, task):
    if task == "documents":
        lines = [
            {"document": "page.png", "question": q, "answers": ["x"], "page": p}
            for q, p in (("a", 1), ("b", None), ("c", 1))
        ]
        mixed.write_text("\n".join(json.dumps(line) for line in lines))
    journal, options = mixed.parent / "answers.jsonl", {"max_new_tokens": 4} if task == "qa" else {}
    whole = evaluate(task, senses, data=mixed, **options)
    note, left = asked_by_people.Journal._note, [2]

    def breaks(self, number, sample):
        note(self, number, sample)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(asked_by_people.Journal, "_note", breaks)
    with pytest.raises(KeyboardInterrupt):
        evaluate(task, senses, data=mixed, journal=journal, **options)
    monkeypatch.setattr(asked_by_people.Journal, "_note", note)
    with journal.open("a") as file:
        file.write('[5, {"half a li')
    answered = len(journal.read_text().splitlines()) - 2
    assert answered == 2
    told = []
    monkeypatch.setattr(
        asked_by_people.Journal, "_note", lambda self, n, sample: told.append(n) or note(self, n, sample)
    )
    again = evaluate(task, senses, data=mixed, journal=journal, **options)
    assert (again.metrics, again.samples) == (whole.metrics, whole.samples)
    assert len(told) == len(whole.samples) - answered
    told.clear()
    evaluate(task, senses, data=mixed, journal=journal, **options)
    assert not told
    mixed.write_text(mixed.read_text() + "\n" + mixed.read_text().splitlines()[0])
    with pytest.raises(ValueError, match="holds the answers of another run"):
        evaluate(task, senses, data=mixed, journal=journal, **options)


# -- own documents -------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """A folder with two pictures and the cases that ask about them."""
    for s in (1, 2):
        Image.fromarray(sample_document(s, "lines").image).save(tmp_path / f"{s}.png")
    lines = [
        {"document": "1.png", "question": "What is it?", "answers": ["a", "b"]},
        {"document": "2.png", "question": "What is it?", "answers": ["c"], "page": 1},
        {"document": "1.png", "question": "Who?", "answers": ["d"]},
    ]
    path = tmp_path / "cases.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    return path


def test_own_documents_keep_their_order_and_are_read_once(model, own, monkeypatch):
    reads = []
    read = model.read

    def count(inputs, *rest, **more):
        reads.append(len(inputs.pixels) if hasattr(inputs, "pixels") else 0)
        return read(inputs, *rest, **more)

    monkeypatch.setattr(model, "read", count)
    report = evaluate("documents", model, data=own)
    assert sum(reads) == 2
    assert [s["question"] for s in report.samples] == ["What is it?", "What is it?", "Who?"]
    assert report.metrics["groups"]["1.png"]["cases"] == 2
    assert report.samples[1]["pages"] == [1]
    assert len(evaluate("documents", model, data=own, count=1).samples) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not JSON"),
        ("[1]", "line 1 is not an object"),
        ('{"question": "q", "answers": ["a"]}', "'document' must be a text"),
        ('{"document": "1.png", "question": " ", "answers": ["a"]}', "'question' must be a text"),
        ('{"document": "1.png", "question": "q", "answers": []}', "'answers' must be a list"),
        ('{"document": "1.png", "question": "q", "answers": "a"}', "'answers' must be a list"),
        ('{"document": "1.png", "question": "q", "answers": ["a"], "page": "1"}', "'page' must be a whole number"),
        ('{"document": "3.png", "question": "q", "answers": ["a"]}', "there is no file"),
        ("", "holds no cases"),
    ],
)
def test_bad_cases_are_named(model, own, line, message):
    own.write_text(line)
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate("documents", model, data=own)


def test_missing_file_of_cases(model, tmp_path):
    with pytest.raises(ValueError, match=r"none\.jsonl cannot be read: No such file"):
        evaluate("documents", model, data=tmp_path / "none.jsonl")


# -- pictures ------------------------------------------------------------------------------------------------------


def painter(choose):
    """A stand-in for TextToImage that draws the scene of each seed; ``choose`` gives (seed, category) of a prompt."""

    class Painter:
        def __init__(self, model) -> None:
            pass

        def __call__(self, prompts, seed, **options):
            scenes = [sample_scene(s, category) for s, category in map(choose, prompts, seed)]
            return Result([Image.fromarray(scene.image) for scene in scenes], torch.zeros(1), [], list(prompts))

    return Painter


def as_asked(prompt, seed):
    return seed, next(c for c in CATEGORIES if sample_prompt(seed, c)[0] == prompt)


def test_right_pictures_score_one_and_shuffled_prompts_do_not(model, monkeypatch):
    monkeypatch.setattr(drawing, "TextToImage", painter(as_asked))
    report = evaluate("draw", model, count=35)
    assert report.metrics["overall"] == report.metrics["new_pairs"] == 1.0
    assert report.metrics["overall_shuffled"] < 0.4
    assert list(report.metrics["groups"]) == [*CATEGORIES, "new_pairs"]
    assert all(scores["cases"] == 5 for scores in report.metrics["groups"].values())
    assert report.samples[0]["seen"]


def test_overall_is_the_mean_of_the_categories(model, monkeypatch):
    def only_colors(prompt, seed):
        seed, category = as_asked(prompt, seed)
        return (seed, category) if category == "colors" else (seed + 1, "counting")

    monkeypatch.setattr(drawing, "TextToImage", painter(only_colors))
    metrics = evaluate("draw", model, count=14).metrics
    assert metrics["groups"]["colors"]["right"] == 1.0
    means = [metrics["groups"][c]["right"] for c in CATEGORIES]
    assert metrics["overall"] == pytest.approx(sum(means) / 6)


def test_draw_with_a_random_model(model):
    report = evaluate("draw", model, count=7, steps=1, guidance=1.0)
    assert report.metrics["overall"] == 0.0
    assert report.settings["steps"] == 1
    assert json.dumps(report.as_dict())


# -- text ----------------------------------------------------------------------------------------------------------


def test_perplexity_of_a_uniform_model_is_its_vocabulary(model):
    blind = micro_model()
    with torch.no_grad():
        blind.head.weight.zero_()
    metrics = evaluate("text", blind, count=20).metrics
    assert metrics["tale_perplexity_per_byte"] == pytest.approx(blind.config.vocab_size, rel=1e-4)
    assert metrics["answer_perplexity_per_byte"] > blind.config.vocab_size  # the end is predicted and is no byte
    assert metrics["exact_match"] == 0


def test_perplexity_is_that_of_the_whole_text_read_alone(model):
    texts = [([1, 70, 71, 72, 11], 2, 2), ([1, 90, 91], 1, 2)]
    nats = 0.0
    for ids, given, _ in texts:
        with torch.inference_mode():
            scores = model.logits(torch.tensor([ids])).log_softmax(-1)
        nats -= sum(float(scores[0, i - 1, ids[i]]) for i in range(given, len(ids)))
    assert talking.perplexity(model, texts, "") == pytest.approx(np.exp(nats / 4), rel=1e-3)


def test_right_answers_score_one(model, monkeypatch):
    def answer(chat, samples):
        for sample in samples:
            sample["said"] = sample["answers"][0]

    monkeypatch.setattr(talking, "_answer", answer)
    report = evaluate("text", model, count=60)
    assert report.metrics["exact_match"] == 1.0
    assert report.metrics["shuffled"] == 0.0
    assert report.metrics["groups"]["with reasoning"]["exact_match"] == 1.0
    assert not any("<think>" in s["answers"][0] for s in report.samples)


# -- all tasks -----------------------------------------------------------------------------------------------------


def test_cases_are_held_out_and_seeds_have_their_own():
    for seed in (0, 1, 10**9):
        assert not any(s in TRAIN_SEEDS or s < 0 for s in held_out(seed, 1000))
    assert not set(held_out(0, 1000)) & set(held_out(1, 1000))


def test_the_same_seed_gives_the_same_report(model):
    first, second = (evaluate("draw", model, count=7, seed=3, steps=1, guidance=1.0) for _ in range(2))
    assert (first.metrics, first.samples) == (second.metrics, second.samples)


def test_report_as_table_and_file(tmp_path):
    groups = {"small_talk": {"cases": 2, "anls": 0.25}, "transcribed": {"cases": 1, "character_accuracy": None}}
    report = Report("documents", {"anls": 0.5, "cases": 3, "groups": groups}, [{"said": "ö"}], {"seed": 4}, 2.0)
    shown = table(report)
    for piece in ("documents: 1 cases (seed 4)", "0.500", "small_talk", "0.250", "-"):
        assert piece in shown
    path = tmp_path / "report.json"
    report.save(path)
    assert json.loads(path.read_text()) == report.as_dict()
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("document", {}, "unknown task 'document'; did you mean 'documents'?"),
        ("x", {}, f"unknown task 'x'; known: {', '.join(TASKS)}"),
        ("draw", {"count": 0}, "count is 0"),
        ("draw", {"seed": -1}, "seed is -1"),
        ("draw", {"stepz": 3}, "'stepz' is no option; known: steps, guidance"),
        ("draw", {"steps": "many"}, "steps is 'many'; it must be of type int"),
        ("draw", {"steps": True}, "steps is True"),
        ("text", {"steps": 3}, "'steps' is no option; known: none"),
        ("draw", {"data": "x.jsonl"}, "takes no data"),
        ("documents", {"questions": 0}, "questions is 0"),
        ("video", {"questions": 0}, "questions is 0"),
        ("video", {"pruning": 1.5}, "pruning rate is 1.5"),
        ("video", {"frames": 7}, "frames is 7"),
        ("booklets", {"pages": 1}, "pages is 1"),
        ("booklets", {"views": 0}, "views is 0"),
        ("sound", {"pruning": 0.5}, "'pruning' is no option; known: questions, read_first"),
        ("qa", {}, "has no cases of its own"),
        ("documents", {"journal": "x.jsonl"}, "a journal is for cases of your own"),
    ],
)
def test_bad_requests(senses, task, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate(task, senses, **options)


def test_models_without_the_part_are_refused():
    with pytest.raises(ValueError, match="reads no images"):
        evaluate("documents", micro_model(vision=None), count=1)
    with pytest.raises(ValueError, match="draws no pictures"):
        evaluate("draw", micro_model(denoiser=None, latent=None), count=1)
    for task, message in (("sound", "hears no sounds"), ("films", "cannot both see and hear")):
        with pytest.raises(ValueError, match=message):
            evaluate(task, micro_model(), count=1)
    for task, message in (("video", "sees no videos"), ("sights", "reads no images"), ("booklets", "reads no images")):
        with pytest.raises(ValueError, match=message):
            evaluate(task, micro_model(vision=None), count=1)
