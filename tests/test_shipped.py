"""The shipped generators of videos and of actions: folders beside the reader that they share, and what they can do."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import omni
from omni.bench_decoding import problems
from omni.data.episodes import world
from omni.data.motion import sample_motion
from omni.data.motion_check import frozen_error, position_error, track
from omni.data.reasoning import KINDS
from omni.evaluation.robots import r_squared
from omni.families.locate import find_folder
from omni.metrics_media import psnr
from omni.pipelines.animate import ImageToVideo
from omni.pipelines.chat import Chat
from omni.pipelines.policy import Policy

OWN = {"tiny-animate": {"denoiser", "latents", "sound_latents"}, "tiny-act": {"denoiser", "latents", "actions"}}


@pytest.mark.parametrize("name", OWN)
def test_a_generator_holds_what_is_not_the_readers(name):
    folder = find_folder(name)
    stored = {tensor.split(".")[0] for tensor in load_file(folder / "model.safetensors")}
    assert OWN[name] <= stored <= OWN[name] | {"codec", "sound_codec"}
    assert json.loads((folder / "config.json").read_text())["base"] == "tiny"
    assert json.loads((folder / "training.json").read_text())["measured"]
    own, reader = omni.load(name).state_dict(), omni.load("tiny").state_dict()
    for tensor, value in reader.items():
        if tensor.split(".")[0] not in stored:
            assert torch.equal(own[tensor], value), tensor


def test_videos_begin_with_their_picture_and_move_as_said():
    rollouts = [sample_motion(300 + i, kind) for i, kind in enumerate(("slide", "fall", "roll", "bounce") * 3)]
    first = rollouts[0]
    animate = ImageToVideo(omni.load("tiny-animate"))
    options = {"frames": len(first.frames), "fps": first.fps, "seed": list(range(len(rollouts)))}
    made = animate([r.frames[0] for r in rollouts], [r.prompt for r in rollouts], **options).frames
    assert all(psnr(film[:1], r.frames[:1]) > 25 for film, r in zip(made, rollouts, strict=True))
    error = np.mean([position_error(r, track(film, r)) for film, r in zip(made, rollouts, strict=True)])
    assert error < np.mean([frozen_error(r) for r in rollouts])


@pytest.mark.parametrize(("robot", "episodes"), [("pusht", 2), ("omni_arm", 16)])
def test_a_policy_goes_where_its_expert_would(robot, episodes):
    """Actions are counted from those that hold the robot still: a policy that only sees where it is gets nothing."""
    pytest.importorskip("pymunk", reason="needs omni[robot]")
    pytest.importorskip("mujoco", reason="needs omni[robot]")
    game = world(robot)
    episodes = [game.play(seed) for seed in range(700, 700 + episodes)]  # training draws no seeds below a million
    pairs = [
        (e, start) for e in episodes for start in range(0, len(e.actions) - 4, 6) if e.expert[start : start + 4].all()
    ]
    assert len(pairs) >= 30
    observations = [
        {"image": game.picture(e.states[start]), "prompt": game.prompt(e.states[start], 0)} for e, start in pairs
    ]
    rest = np.stack([game.hold(e.states[start]) for e, start in pairs])[:, None]
    true = np.stack([e.actions[start : start + 4] for e, start in pairs]) - rest
    policy = Policy(omni.load("tiny-act"), robot, foresee=False)
    found = policy(observations)[:, :4] - rest
    half = len(pairs) // 2  # so far away, another's picture is that of another episode
    other = policy(observations[half:] + observations[:half])[:, :4] - rest
    assert r_squared(0 * true, true) < 0.1, "a robot that rests"
    assert r_squared(found, true) > 0.5
    assert r_squared(other, true) < 0, "it acts without looking"


def test_the_writer_solves_what_it_never_saw_in_every_way():
    known = problems(0, 2 * len(KINDS))
    chat = Chat(omni.load("tiny-text", dtype="float32"))
    options = {"max_new_tokens": 256, "temperature": 0.0, "thinking": True}
    plain = chat(list(known.conversations), **options)
    right = [reply.text.strip() == answer for reply, answer in zip(plain, known.answers, strict=True)]
    assert np.mean(right) >= 0.8
    first = known.conversations[0]
    for way in ({"drafts": 3}, {"decode": "diffusion", "lossless": True}):
        reply = chat(first, **options, **way)
        assert (reply.reasoning, reply.text) == (plain[0].reasoning, plain[0].text)
    denoised = chat(list(known.conversations), **options, decode="diffusion")
    assert np.mean([reply.usage.denoising.tokens_per_pass for reply in denoised]) > 2
