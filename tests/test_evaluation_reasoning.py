"""Evaluation of reasoning: right replies score, wrong and repeated ones do not, and the control fails."""

import pytest
from micro import micro_model

from omni.data.reasoning import KINDS, LEVELS, check, sample_problem
from omni.evaluation import evaluate, reasoning
from omni.evaluation.report import held_out
from omni.pipelines.chat import Chat, Reply, Usage

PROBLEMS = {p.question: p for s in held_out(0, 66) for p in (sample_problem(s, k, v) for k in KINDS for v in LEVELS)}


@pytest.fixture(scope="module")
def model():
    return micro_model()


def replying(monkeypatch, reply):
    """Every chat answers with what ``reply`` makes of a problem."""

    def answer(chat, conversations, **options):
        assert options["temperature"] == 0
        assert options["thinking"]
        return [reply(PROBLEMS[conversation[-1]["content"]]) for conversation in conversations]

    monkeypatch.setattr(Chat, "__call__", answer)


def test_right_replies_score_one_and_the_control_fails(model, monkeypatch):
    replying(monkeypatch, lambda p: Reply(p.answer, p.working, usage=Usage(9, len(p.working + p.answer))))
    report = evaluate("reasoning", model, count=66)
    metrics = report.metrics
    assert metrics["cases"] == 66
    assert metrics["exact_match"] == metrics["working_right"] == metrics["lines"] == 1
    assert metrics["shuffled"] < 0.1
    assert metrics["repetition"] == 0
    assert metrics["groups"].keys() == {*KINDS, *(f"level {level}" for level in LEVELS)}
    assert all(group["cases"] == 6 for name, group in metrics["groups"].items() if name in KINDS)
    assert metrics["completion_tokens"] == sum(len(s["working"] + s["answer"]) for s in report.samples) / 66


def test_a_right_answer_behind_a_wrong_working_is_told_apart(model, monkeypatch):
    replying(monkeypatch, lambda p: Reply(p.answer, p.working.upper() + "\n1=1"))
    metrics = evaluate("reasoning", model, count=33).metrics
    assert metrics["exact_match"] == 1
    assert metrics["working_right"] == 0


def test_what_is_said_over_and_over_is_counted(model, monkeypatch):
    replying(monkeypatch, lambda p: Reply("", p.working + "\n" + "7+1=8 8\n" * 9, finish_reason="length"))
    metrics = evaluate("reasoning", model, count=33).metrics
    assert metrics["repetition"] == 1
    assert metrics["exact_match"] == 0


@pytest.mark.parametrize(
    ("text", "is_repeated"),
    [("ab" * 8, True), ("x" * 16, True), ("x" * 15, False), ("12 12 12\n12", False), ("", False)],
)
def test_repetition_is_four_times_and_sixteen_characters(text, is_repeated):
    assert reasoning.repeats(text) == is_repeated


def test_no_right_working_repeats_itself():
    for seed in range(300):
        problem = sample_problem(seed)
        assert check(problem, problem.answer, problem.working).working
        assert not reasoning.repeats(f"{problem.working}\n{problem.answer}")


def test_a_model_that_has_learnt_nothing_is_right_nowhere(model, monkeypatch):
    monkeypatch.setattr(reasoning, "ANSWER", 12)
    report = evaluate("reasoning", model, count=11, at_once=4)
    assert report.metrics["exact_match"] == 0
    assert report.metrics["completion_tokens"] <= 12
    assert report.settings["at_once"] == 4
    with pytest.raises(ValueError, match="at_once is 0"):
        evaluate("reasoning", model, count=1, at_once=0)
    with pytest.raises(ValueError, match="drafts is 3, but this model has no block"):
        evaluate("reasoning", model, count=1, drafts=3)
