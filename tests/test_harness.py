"""The lm-evaluation-harness model: likelihoods against the model itself, answers against Chat, tasks end to end."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from micro import micro_model

pytest.importorskip("lm_eval")

import omni
from omni import harness
from omni.harness import OmniLM
from omni.pipelines.chat import Chat

TASKS = Path(__file__).resolve().parent.parent / "assets" / "harness"
HELLO = [{"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="module")
def model():
    return micro_model()


@pytest.fixture
def lm(model):
    return OmniLM(model, batch_size=3)


def requests(*args: tuple) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=a) for a in args]


def expected(model, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Straight from the logits of the whole text."""
    logits = model.logits(torch.tensor([context + continuation]))[0, len(context) - 1 : -1].log_softmax(-1)
    chosen = [float(row[token]) for row, token in zip(logits, continuation, strict=True)]
    return sum(chosen), all(int(row.argmax()) == token for row, token in zip(logits, continuation, strict=True))


@torch.no_grad()
def test_loglikelihood(model, lm):
    encode = model.tokenizer.encode
    pairs = [("The sky is", c) for c in (" blue", " green and wide", " red", " a")]  # one context, more than a batch
    pairs += [("Two words", " more"), ("a", "b"), ("", "alone"), ("The sky", " is")]
    found = lm.loglikelihood(requests(*pairs), disable_tqdm=True)
    for (context, continuation), (score, greedy) in zip(pairs, found, strict=True):
        start = encode(context) if context else [model.tokenizer.special["bos"]]
        want = expected(model, start, encode(continuation))
        assert score == pytest.approx(want[0], abs=1e-3)
        assert greedy == want[1]


@torch.no_grad()
def test_a_greedy_continuation_is_told(model, lm):
    answer = lm.generate_until(requests(("ab", {"max_gen_toks": 1})), disable_tqdm=True)[0]
    token = int(model.logits(torch.tensor([model.tokenizer.encode("ab")]))[0, -1].argmax())
    assert model.tokenizer.decode([token]) == answer
    context = model.tokenizer.encode("ab")
    scored = lm._loglikelihood_tokens([(("", ""), context, [token]), (("", ""), context, [token ^ 1])], True)
    assert [greedy for _, greedy in scored] == [True, False]


@torch.no_grad()
def test_what_is_too_long_loses_its_beginning(model):
    lm = OmniLM(model, max_length=8)
    context, continuation = model.tokenizer.encode("0123456789"), model.tokenizer.encode("abc")
    score, _ = lm._loglikelihood_tokens([(("", ""), context, continuation)], disable_tqdm=True)[0]
    assert score == pytest.approx(expected(model, context[-6:], continuation)[0], abs=1e-3)


@torch.no_grad()
def test_rolling_counts_every_token_once(model):
    text = "abcdefghijk"
    ids = [model.tokenizer.special["bos"], *model.tokenizer.encode(text)]
    whole = OmniLM(model).loglikelihood_rolling(requests((text,), ("x",)), disable_tqdm=True)
    assert whole[0] == pytest.approx(expected(model, ids[:1], ids[1:])[0], abs=1e-3)
    windows = OmniLM(model, max_length=4).loglikelihood_rolling(requests((text,)), disable_tqdm=True)
    want = [
        expected(model, ids[:1], ids[1:5]),
        expected(model, ids[4:5], ids[5:9]),
        expected(model, ids[7:9], ids[9:12]),
    ]
    assert windows[0] == pytest.approx(sum(score for score, _ in want), abs=1e-3)


def test_answers_are_those_of_a_chat(model, lm):
    reply = Chat(model)(HELLO, max_new_tokens=12, temperature=0)
    text = lm.apply_chat_template(HELLO)
    options = {"until": [], "max_gen_toks": 12, "do_sample": False, "temperature": 0.7}
    short = {"until": [reply.text[3:5]], "max_gen_toks": 12}
    found = lm.generate_until(requests((text, options), ("x", options), (text, short)), disable_tqdm=True)
    assert found[0] == reply.text
    assert found[2] == reply.text[: reply.text.find(reply.text[3:5])]
    start = lm.apply_chat_template([*HELLO, {"role": "assistant", "content": "Hi"}], add_generation_prompt=False)
    assert start == text + "Hi"


def test_names_of_special_tokens_count_only_in_chats(lm):
    assert len(lm.tok_encode("<think>")) == 7
    lm.apply_chat_template(HELLO)
    assert lm.tok_encode("<think>") == [12]


def test_reasoning_is_left_out(monkeypatch, model):
    lm = OmniLM(model, thinking=True)
    ids = iter([*model.tokenizer.encode("Hm.\nSo\n</think>\nYes\nNo", special=True), 11])
    real = model.logits

    def logits(inputs, cache=None, last_only=False):
        out = torch.zeros_like(real(inputs, cache, last_only))
        out[..., next(ids)] = 9.0
        return out

    monkeypatch.setattr(model, "logits", logits)
    text = lm.apply_chat_template(HELLO)
    assert lm.generate_until(requests((text, {"until": ["\n"]})), disable_tqdm=True) == ["Yes"]


def test_sampled_answers_do_not_depend_on_the_batch(model):
    options = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 10}
    asked = requests(*[(f"text {i}", options) for i in range(4)])
    found = [OmniLM(model, batch_size=size, seed=3).generate_until(asked, disable_tqdm=True) for size in (1, 3)]
    assert found[0] == found[1]
    assert OmniLM(model, seed=4).generate_until(asked, disable_tqdm=True) != found[0]


def test_bad_arguments_are_named(model, lm):
    with pytest.raises(ValueError, match="num_beams"):
        lm.generate_until(requests(("x", {"num_beams": 2})), disable_tqdm=True)
    with pytest.raises(ValueError, match="max_length is 5000"):
        OmniLM(model, max_length=5000)
    with pytest.raises(ValueError, match="batch_size is 0"):
        OmniLM(model, batch_size=0)


def test_tasks_run_from_the_command_line(monkeypatch, model, capsys, tmp_path):
    """The wrapper's default model is omni; the tasks' data lie beside them."""
    from lm_eval.tasks import TaskManager

    asked = []
    monkeypatch.setattr(omni, "load", lambda name, **options: asked.append((name, options["device"])) or model)
    plain = TaskManager.__init__  # without the thousands of tasks that come with the harness: reading them is slow
    monkeypatch.setattr(
        TaskManager, "__init__", lambda self, *a, **k: plain(self, *a, **{**k, "include_defaults": False})
    )
    arguments = ["--model_args", "pretrained=some/model,max_gen_toks=4", "--include_path", str(TASKS), "--limit", "3"]
    arguments += ["--tasks", "omni_capitals,omni_capitals_choice", "--apply_chat_template", "--batch_size", "2"]
    arguments += ["--output_path", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["omni.harness", *arguments])
    harness.main()
    assert asked == [("some/model", "auto")]
    table = capsys.readouterr().out
    assert "omni_capitals_choice" in table
    assert "exact_match" in table
    (written,) = tmp_path.rglob("results_*.json")
    results = json.loads(written.read_text())["results"]
    assert 0 <= results["omni_capitals_choice"]["acc,none"] <= 1


def test_task_data():
    lines = [json.loads(line) for line in (TASKS / "capitals.jsonl").read_text().splitlines()]
    assert len(lines) == 16
    assert all(len(set(line["choices"])) == 4 and 0 <= line["answer"] < 4 for line in lines)
