"""Evaluation of people's own questions and documents: cases from files, broken-off runs, mistakes named by line."""

import json
import re

import pytest
from micro import micro_model
from PIL import Image
from tasks import seeing_and_hearing, shorten

from omni.data.clips import sample_clip
from omni.data.documents import sample_document
from omni.data.sights import sample_sight
from omni.data.sounds import sample_sound
from omni.evaluation import evaluate
from omni.evaluation import own as asked_by_people
from omni.pipelines.chat import Chat
from omni.pipelines.reading import Answer, Reading
from omni.tokenizers.video_writer import write_video


@pytest.fixture(scope="module")
def model():
    return micro_model()


@pytest.fixture(autouse=True)
def short(monkeypatch):
    shorten(monkeypatch)


@pytest.fixture(scope="module")
def senses():
    return seeing_and_hearing()


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
