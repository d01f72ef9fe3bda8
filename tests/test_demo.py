"""The demo on a random model: everything is on the page, judged, and nothing is outside of it."""

import copy
import re
from functools import partial

import pytest
import torch
from micro import micro_model

import omni
from omni import demo, demo_motion, demo_text
from omni.config import MTPConfig, TokenDiffusionConfig, WalkConfig, replace
from omni.data.motion import KINDS
from omni.families.tiny import ACT, ANIMATE
from omni.model import Omni
from omni.tokenizers.bytes import ByteTokenizer


def _with(make, expected: Omni, given: Omni) -> list:
    """What ``make`` gives, of no other model than it is for."""
    assert given is expected
    return make(given)


@pytest.fixture(scope="module")
def result() -> dict:
    """A whole run with random weights."""
    torch.manual_seed(0)
    quick = WalkConfig(steps=2)
    walks = replace(ACT.generation, image=quick, video=quick, action=quick, draws=True, upsample=True)
    model = Omni(replace(ACT, sound_latent=ANIMATE.sound_latent, generation=walks)).eval()
    model.tokenizer = ByteTokenizer()
    with pytest.MonkeyPatch.context() as patch:
        named = {name: copy.copy(model) for name in ("tiny", "tiny-4step", "tiny-animate", "tiny-act")}
        named["tiny-text"] = micro_model(
            vision=None, latent=None, diffusion=TokenDiffusionConfig(block_size=4), mtp=MTPConfig(pattern="*E")
        )
        patch.setattr(omni, "load", named.__getitem__)
        patch.setattr(demo_text, "TOKENS", 5)
        for what, name in (("animations", "tiny-animate"), ("rollouts", "tiny-act")):
            patch.setattr(demo, what, partial(_with, getattr(demo, what), named[name]))
        patch.setattr(demo, "PICTURES_PER_CATEGORY", 1)
        patch.setattr(demo, "HOUR_MINUTES", 2)
        patch.setattr(demo_motion, "EXECUTED", dict.fromkeys(demo_motion.EXECUTED, 16))
        patch.setattr(demo_motion, "ROBOTS", {"omni_arm": 1})
        patch.setattr(demo, "MAX_ANSWER", 3)
        return demo.run("tiny", "tiny-4step", "tiny-animate", "tiny-act", "tiny-text")


def test_everything_is_asked_and_judged(result):
    questions = [q for document in result["documents"] for q in document["questions"]]
    assert len(questions) >= 20
    assert len(result["pictures"]["items"]) == 6
    assert [m["role"] for m in result["conversations"]["items"][0]] == ["user", "assistant"] * 3
    answers, watched, pictures, quick, videos, robots, solved = result["scores"]
    assert solved["of"] == 3 * len(demo_text.SHOWN)
    assert (videos["of"], robots["of"]) == (len(KINDS), 1)
    assert answers == {"what": "answers right", "right": sum(q["right"] for q in questions), "of": len(questions)}
    assert pictures["of"] == quick["of"] == 6
    media = [q for item in result["media"] for q in item["questions"]]
    assert len(result["media"]) == 5
    assert watched["of"] == len(media) >= 20
    said = r"\d+/\d+ answers right, \d+/\d+ about charts, clips and sounds right, \d+/6 pictures right, "
    said += r"\d+/6 in few steps, \d+/9 videos right, \d+/1 robots at their goal, \d+/15 problems solved, \d+ s"
    assert re.fullmatch(said, demo.summary(result))


def test_problems_are_answered_in_every_way(result):
    plain, drafted, blocks = result["writings"]["items"]
    said = [[item["said"] for item in way["items"]] for way in (plain, drafted, blocks)]
    assert said[0] == said[1] == said[2]
    assert all(way["pace"] > 0 and len(way["items"]) == len(demo_text.SHOWN) for way in (plain, drafted, blocks))
    assert demo_text.writings(micro_model()) == []  # one way only


def test_the_page_is_whole_and_self_contained(result, tmp_path):
    result = {**result, "model": "<b>&"}
    path = demo.write(result, tmp_path / "demo")
    page = path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]
    assert "&lt;b&gt;&amp;" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    sections = [*result["documents"], *result["media"]]
    assert page.count("<img") == len(sections) + len(result["pictures"]["items"]) + len(result["quick"]["items"])
    assert page.count("<video") == len(KINDS) + 1
    for document in sections:
        assert document["image"] in page
        assert all(f"<td>{q['question']}" in page for q in document["questions"])
    right, of = (sum(score[key] for score in result["scores"][:2]) for key in ("right", "of"))
    assert page.count("✓ right") == right
    assert page.count("✗ wrong") == of - right


@pytest.mark.parametrize("role", ["model", "animator", "actor", "writer"])
def test_a_missing_model_is_one_line_before_anything_is_done(capsys, monkeypatch, tmp_path, role):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(demo, "_documents", None)
    assert demo.main([f"--{role}", "no/such/folder", "--out", str(tmp_path / "demo")]) == 1
    assert "no/such/folder" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_a_missing_simulator_is_told_before_anything_is_done(capsys, monkeypatch, tmp_path):
    def missing(name):
        raise ValueError(f"the world {name!r} needs pymunk: pip install 'omni[robot]'")

    monkeypatch.setattr(demo, "_documents", None)
    monkeypatch.setattr(demo_motion, "world", missing)
    assert demo.main(["--out", str(tmp_path / "demo")]) == 1
    assert "needs pymunk" in capsys.readouterr().err
