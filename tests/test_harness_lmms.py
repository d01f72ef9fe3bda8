"""The lmms-eval model: answers against Chat, likelihoods against the model, media of every kind.

Where lmms-eval is not installed, a stand-in has what the adapter takes from it: the base class with its cache hook and
task table, and the two tables of models. The requests are those that its tasks make.
"""

import importlib.util
import sys
import types
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from micro import MICRO, micro_model
from PIL import Image

from omni.config import SoundConfig, replace
from omni.pipelines.chat import Chat
from omni.tokenizers.sound import Waveform
from omni.tokenizers.video_writer import write_video


def stand_in() -> dict[str, types.ModuleType]:
    """The documented interface of lmms-eval 0.5: ``api.model.lmms``, ``api.registry`` and ``models``."""

    class Base:
        is_simple = True

        def __init__(self) -> None:
            self._rank, self.task_dict = 0, {}
            self.cache_hook = SimpleNamespace(add_partial=lambda *answer: None)

        @property
        def rank(self) -> int:
            return self._rank

        @classmethod
        def create_from_arg_string(cls, text, more=None):
            pairs = dict(pair.split("=") for pair in text.split(",") if pair)
            return cls(**pairs, **{k: v for k, v in (more or {}).items() if v is not None})

    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.api.registry", "lmms_eval.models")
    modules = {name: types.ModuleType(name) for name in names}
    modules["lmms_eval.api.model"].lmms = Base
    modules["lmms_eval.api.registry"].MODEL_REGISTRY = {}
    modules["lmms_eval.models"].AVAILABLE_SIMPLE_MODELS = {}
    modules["lmms_eval"].models = modules["lmms_eval.models"]
    return modules


if importlib.util.find_spec("lmms_eval") is None:
    sys.modules.update(stand_in())

from lmms_eval import models  # noqa: E402

from omni.harness_lmms import OmniMultimodal, with_defaults  # noqa: E402

SOUND = SoundConfig(d_model=16, n_layers=1, n_heads=2, d_ff=16, n_mels=32, channels=4)
SPECIAL = {**MICRO.special_tokens, "video": 15, "sound": 16}
TONE = np.sin(np.arange(8000) / 9).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return micro_model(sound=SOUND, vision=replace(MICRO.vision, tubelet=2), special_tokens=SPECIAL)


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (48, 64, 3), np.uint8))


@pytest.fixture
def docs(tmp_path):
    """What tasks show, by document."""
    film = tmp_path / "film.mp4"
    write_video(film, [np.full((32, 32, 3), 40 * i, np.uint8) for i in range(6)], 4.0)
    return [
        [picture(0)],
        [picture(1), picture(2)],
        [str(film)],
        [{"array": TONE, "sampling_rate": 16_000}],
        [],
    ]


@pytest.fixture
def lm(model, docs):
    lm = OmniMultimodal(model, batch_size=2, max_new_tokens=5, max_frames=4, thinking=False)
    lm.task_dict = {"task": {"test": docs}}
    return lm


def request(*arguments) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


def visual(doc):
    return doc


def asked(count: int, **options) -> list[SimpleNamespace]:
    return [request(f"What is {i}?", dict(options), visual, i, "task", "test") for i in range(count)]


def expected(model, lm, parts: list[dict], question: str, **options) -> str:
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
    return Chat(model)(messages, temperature=0, thinking=False, media=lm.media, **options).text.strip()


def test_answers_are_those_of_the_chat_in_the_order_of_the_requests(model, lm, docs):
    parts = [
        [{"type": "image", "image": docs[0][0]}],
        [{"type": "image", "image": image} for image in docs[1]],
        [{"type": "video", "video": docs[2][0]}],
        [{"type": "audio", "audio": Waveform(torch.from_numpy(TONE), 16_000)}],
        [],
    ]
    limits = [4, 5, 4, 5, 4]  # two groups of options
    requests = [asked(5, max_new_tokens=limit)[i] for i, limit in enumerate(limits)]
    want = [expected(model, lm, p, f"What is {i}?", max_new_tokens=limits[i]) for i, p in enumerate(parts)]
    assert lm.generate_until(requests) == want
    assert len(set(want)) > 1


def test_answers_end_before_their_stop_strings(lm):
    whole = lm.generate_until(asked(1))[0]
    stop = whole[2]
    assert lm.generate_until(asked(1, until=[stop]))[0] == whole[: whole.index(stop)].strip()
    lm.thinking = None  # then only the answer behind the reasoning is cut
    assert stop not in lm.generate_until(asked(1, until=stop))[0]


def test_options_of_tasks(lm):
    assert lm._options({}) == {"max_new_tokens": 5, "stop": (), "temperature": 0.0}
    given = {"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False}
    assert lm._options(given) == {"max_new_tokens": 16, "stop": (), "temperature": 0.0}
    drawn = lm._options({"temperature": 0.7, "top_p": 0.9, "do_sample": True, "until": "\n"})
    assert drawn == {"max_new_tokens": 5, "stop": ("\n",), "temperature": 0.7, "top_p": 0.9}
    with pytest.raises(ValueError, match=r"\['penalty_alpha'\] are unknown"):
        lm._options({"penalty_alpha": 1})


@torch.no_grad()
def test_likelihoods_are_those_of_the_model(model, lm, docs):
    requests = [
        request("Which?", " red", visual, 0, "task", "test"),
        request("Which?", lambda doc: f" {len(doc)} pictures", visual, 1, "task", "test"),
        request("", "alone"),
    ]
    found = lm.loglikelihood(requests)
    parts = {"type": "image", "image": docs[0][0]}
    messages = [{"role": "user", "content": [parts, {"type": "text", "text": "Which?"}]}]
    said = model.tokenizer.encode(" red")
    inputs = model.prepare(messages, thinking=False)
    rows = []
    for token in said:  # one after the other, as they would be generated
        row = model.logits(inputs)[0, -1].log_softmax(-1)
        rows.append((float(row[token]), int(row.argmax()) == token))
        inputs = replace(inputs, input_ids=torch.cat([inputs.input_ids, torch.tensor([[token]])], 1), mask=None)
    assert found[0][0] == pytest.approx(sum(score for score, _ in rows), abs=1e-3)
    assert found[0][1] == all(greedy for _, greedy in rows)
    assert len({score for score, _ in found}) == 3


def test_a_greedy_answer_is_told(lm):
    answer = lm.generate_until(asked(1, max_new_tokens=1))[0]
    if len(answer.encode()) == 1 and answer.isascii():
        assert lm.loglikelihood([request("What is 0?", answer, visual, 0, "task", "test")])[0][1]
    assert not lm.loglikelihood([request("What is 0?", "completely other", visual, 0, "task", "test")])[0][1]


def test_rounds_go_on_until_the_task_ends_them(lm):
    rounds = []

    def further(doc, previous_output, round_idx, previous_round_info):
        rounds.append((list(previous_output), round_idx, previous_round_info))
        return doc, f"And {round_idx}?", round_idx == 3, previous_output, {"round": round_idx}

    answers = lm.generate_until_multi_round([request("First?", {}, visual, further, 0, "task", "test")])
    assert len(answers[0]) == 3
    assert [r[1:] for r in rounds] == [(1, None), (2, {"round": 1}), (3, {"round": 2})]
    single = lm.generate_until([request("And 2?", {}, visual, 0, "task", "test")])[0]
    assert answers[0][2] == single  # a prompt of its own


def test_stereo_and_paths(lm, tmp_path):
    stereo = lm._part({"array": np.stack([TONE, -TONE]), "sampling_rate": 8000})["audio"]
    assert stereo.rate == 8000
    assert stereo.samples.shape == (8000,)
    assert not stereo.samples.any()
    kinds = {name: lm._part(f"/x/{name}")["type"] for name in ("a.MP4", "a.wav", "a.png", "a.webm")}
    assert kinds == {"a.MP4": "video", "a.wav": "audio", "a.png": "image", "a.webm": "video"}
    lm.with_sound = True
    assert lm._part("a.mp4")["sound"] is True
    with pytest.raises(ValueError, match="a task shows a int"):
        lm._part(3)


def test_the_harness_knows_the_model_and_makes_it(model, monkeypatch):
    assert models.AVAILABLE_SIMPLE_MODELS["omni"] == "omni.harness_lmms.OmniMultimodal"
    monkeypatch.setattr("omni.harness_lmms.omni.load", lambda name, device, dtype: model)
    made = OmniMultimodal.create_from_arg_string("pretrained=tiny", {"batch_size": 3, "device": None})
    assert (made.model_name, made.batch_size) == ("tiny", 3)
    assert made.is_simple
    with pytest.raises(ValueError, match="batch_size is 0"):
        OmniMultimodal(model, batch_size=0)
    with pytest.raises(ValueError, match="hears no sounds"):
        OmniMultimodal(micro_model(), sound=True)


def test_the_command_takes_this_model_where_none_is_named():
    assert with_defaults(["--tasks", "mme"]) == ["--model", "omni", "--tasks", "mme"]
    assert with_defaults(["--model=llava"]) == ["--model=llava"]
