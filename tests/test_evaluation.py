"""Evaluation: scores of perfect and of blind answers, controls, held-out cases, reports."""

import json
import re
from functools import cache

import numpy as np
import pytest
import torch
from micro import micro_model
from PIL import Image
from tasks import seeing_and_hearing, shorten

from omni.data import TRAIN_SEEDS
from omni.data.booklets import sample_booklet
from omni.data.documents import LEVELS, sample_document
from omni.data.scenes import CATEGORIES, sample_prompt, sample_scene
from omni.evaluation import TASKS, Report, booklets, evaluate, table
from omni.evaluation import documents as reading
from omni.evaluation import draw as drawing
from omni.evaluation import text as talking
from omni.evaluation.report import held_out
from omni.pipelines.documents import DocumentQA
from omni.pipelines.images import Result
from omni.pipelines.reading import Answer


@pytest.fixture(scope="module")
def model():
    return micro_model()


@pytest.fixture(autouse=True)
def short(monkeypatch):
    shorten(monkeypatch)


@pytest.fixture(scope="module")
def senses():
    return seeing_and_hearing()


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
