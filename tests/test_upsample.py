"""Prompt upsampling: each prompt by its own seed, drawn as it was said, and left alone where nothing was said."""

import pytest
from micro import micro_model

from omni.config import GenerationConfig
from omni.pipelines import upsample as module
from omni.pipelines.chat import Chat, Reply
from omni.pipelines.images import TextToImage
from omni.pipelines.upsample import upsample

FAST = {"steps": 2, "height": 16, "width": 24}


@pytest.fixture(scope="module")
def model():
    return micro_model()


def say(monkeypatch, answers: dict[str, Reply]) -> list[dict]:
    """The reasoner's answers, by prompt; returns the list of the options that it was asked with."""
    asked = []

    def reply(self, conversations, **options):
        asked.append(options)
        return [answers[messages[0]["content"].removeprefix("Describe in full: ")] for messages in conversations]

    monkeypatch.setattr(Chat, "__call__", reply)
    return asked


def test_a_prompt_does_not_depend_on_its_batch(model, monkeypatch):
    """Compared by the tokens of the answers: a random model's have no end, so they would not be used."""
    monkeypatch.setattr(module, "MAX_NEW_TOKENS", 6)
    said = []
    call = Chat.__call__

    def keep(self, *args, **options):
        replies = call(self, *args, logprobs=0, **options)
        said.extend(tuple(p.id for p in reply.logprobs) for reply in replies)
        return replies

    monkeypatch.setattr(Chat, "__call__", keep)
    prompts = ["a ring", "a much longer prompt with two crosses", "a ring"]
    upsample(model, prompts, [1, 2, 3])
    for prompt, seed in zip(prompts, (1, 2, 3), strict=True):
        upsample(model, [prompt], [seed])
    assert said[:3] == said[3:]
    assert said[0] != said[2]  # the seed chooses


def test_unfinished_and_empty_answers_leave_the_prompt(model, monkeypatch):
    say(
        monkeypatch,
        {
            "a": Reply(" small red ring at c5\n"),
            "b": Reply("and so on and", finish_reason="length"),
            "c": Reply("  "),
            "": Reply("small red ring at c5"),
        },
    )
    assert upsample(model, ["a", "b", "c", ""], [1, 2, 3, 4]) == ["small red ring at c5", "b", "c", ""]


def test_a_prompt_that_leaves_no_room_is_refused(model):
    with pytest.raises(ValueError, match=r"upsampling a prompt takes \d+ tokens; the model's limit is 1024"):
        upsample(model, ["x" * 1020], [0])


def test_what_was_said_is_drawn(model, monkeypatch):
    draw = TextToImage(model)
    plain = draw("small red ring at c5", seed=4, **FAST)
    assert plain.prompts == ["small red ring at c5"]
    asked = say(monkeypatch, {"a ring": Reply("small red ring at c5")})
    result = draw("a ring", seed=4, count=2, upsample=True, **FAST)
    assert asked[0]["seed"] == [4, 5]
    assert result.prompts == ["small red ring at c5"] * 2
    assert (result.settings[0]["prompt"], result.settings[0]["upsample"]) == ("a ring", True)
    assert (result.latents[:1] - plain.latents).abs().max() < 1e-4
    again = draw(**result.settings[0])
    assert (again.latents - plain.latents).abs().max() < 1e-4


def test_the_checkpoint_says_whether_prompts_are_upsampled(monkeypatch):
    asked = say(monkeypatch, {"a ring": Reply("a red ring")})
    draw = TextToImage(micro_model(generation=GenerationConfig(upsample=True)))
    assert draw("a ring", seed=0, **FAST).prompts == ["a red ring"]
    assert draw("a ring", seed=0, upsample=False, **FAST).prompts == ["a ring"]
    assert len(asked) == 1


def test_given_latents_take_a_seed_for_the_words(model, monkeypatch):
    draw = TextToImage(model)
    latents = draw("a red ring", seed=4, **FAST).latents
    asked = say(monkeypatch, {"a ring": Reply("a red ring")})
    given = draw("a ring", latents=latents, seed=9, upsample=True, **FAST)
    assert asked[0]["seed"] == [9]
    assert given.settings[0]["seed"] == 9


def test_upsample_must_be_a_switch(model):
    with pytest.raises(ValueError, match="upsample must be true or false, not 'yes'"):
        TextToImage(model)("a ring", upsample="yes")
