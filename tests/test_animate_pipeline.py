"""What pipelines of videos and actions promise beside their latents: seeds, batches, one reading, files, limits."""

import json

import av
import cosmos3_peer as peer
import cosmos3_pipeline
import numpy as np
import pytest
import torch
from micro import micro_model

import omni
from omni.config import Embodiment, WalkConfig, replace
from omni.pipelines import generation
from omni.pipelines.animate import ImageToVideo, TextToVideo, VideoToVideo
from omni.pipelines.images import TextToImage
from omni.pipelines.policy import Policy
from omni.pipelines.world import ForwardDynamics

FAST = {"height": 32, "width": 48, "frames": 5, "steps": 3}
PROMPTS = ["A ball rolls", "Two dogs run over a long green field", "A ball rolls"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nano")
    cosmos3_pipeline.build(folder, "shifted")
    return folder


@pytest.fixture(scope="module")
def animate(folder) -> TextToVideo:
    return TextToVideo(omni.load(folder, device="cpu"))


@pytest.fixture
def calls(animate, monkeypatch):
    """Rows of every reading of prompts and of every denoising step."""
    model, found = animate.model, {"reads": [], "steps": []}
    read, velocity = model.read, model.velocity
    animate._known = None

    def count_read(inputs, *rest, **more):
        found["reads"].append(len(inputs.input_ids))
        return read(inputs, *rest, **more)

    def count_velocity(streams, *rest):
        found["steps"].append(len(streams["video"]))
        return velocity(streams, *rest)

    monkeypatch.setattr(model, "read", count_read)
    monkeypatch.setattr(model, "velocity", count_velocity)
    return found


def test_a_video_follows_from_its_seed_alone(animate):
    together = animate(PROMPTS, seed=[5, 6, 7], sound=True, **FAST)
    assert together.latents.shape == (3, peer.CHANNELS, 2, 2, 3)
    for i, prompt in enumerate(PROMPTS):
        alone = animate(prompt, seed=5 + i, sound=True, **FAST)
        torch.testing.assert_close(together.latents[i : i + 1], alone.latents, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.sound_latents[i : i + 1], alone.sound_latents, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together.latents[0], together.latents[2], atol=1e-2)


def test_settings_make_the_same_video_again(animate):
    first = animate(PROMPTS[0], count=2, fps=12.0, guidance=3.0, negative_prompt="dark", **FAST)
    settings = dict(first.settings[1])
    assert (settings["fps"], settings["grid"], settings["shift"]) == (12.0, "shifted", 10.0)
    torch.testing.assert_close(animate(**settings).latents, first.latents[1:], rtol=1e-4, atol=1e-4)


def test_prompts_are_read_once_and_kept(animate, calls):
    animate(PROMPTS, seed=0, **FAST)
    assert calls["reads"] == [3]  # two different prompts and the empty one
    assert calls["steps"] == [6, 6, 6]  # both branches at once
    animate(PROMPTS, seed=9, **FAST)
    assert calls["reads"] == [3]
    animate(PROMPTS[0], seed=9, **FAST)
    assert calls["reads"] == [3, 2]


def test_branches_of_long_videos_follow_each_other(animate, calls, monkeypatch):
    at_once = animate(PROMPTS[1], seed=1, sound=True, interval=(0.0, 0.97), **FAST)
    monkeypatch.setattr(generation, "TOGETHER", 8)
    in_turn = animate(PROMPTS[1], seed=1, sound=True, interval=(0.0, 0.97), **FAST)
    assert calls["steps"] == [1, 2, 2, 1, 1, 1, 1, 1]
    torch.testing.assert_close(in_turn.latents, at_once.latents, rtol=1e-4, atol=1e-4)


def test_the_reader_can_be_put_away(folder, animate, monkeypatch):
    model = omni.load(folder, device="cpu")
    moves = []
    move = torch.nn.Module.to
    parts = {id(model.context): "context", id(model.embed): "embed", id(model.denoiser): "denoiser"}

    def to(self, device):
        if id(self) in parts:
            moves.append((parts[id(self)], str(device)))
        return move(self, device)

    monkeypatch.setattr(torch.nn.Module, "to", to)
    thrifty = TextToVideo(model, animate.codec, offload=True)
    found = thrifty(PROMPTS[0], seed=3, **FAST)
    monkeypatch.undo()
    assert [name for name, _ in moves] == ["embed", "context"] * 3  # away, there to read, away again
    torch.testing.assert_close(found.latents, animate(PROMPTS[0], seed=3, **FAST).latents)


def test_watching_and_stopping(animate):
    seen = []

    def watch(step, latents):
        seen.append((step, animate.still(latents).shape))
        return step < 1

    found = animate(PROMPTS[0], seed=3, on_step=watch, **FAST)
    assert seen == [(0, (5, 32, 48, 3)), (1, (5, 32, 48, 3))]
    assert not found.complete
    assert animate(PROMPTS[0], seed=3, **FAST).complete


def test_files_have_the_frames_the_sound_and_the_settings(animate, tmp_path):
    found = animate(PROMPTS[0], seed=3, sound=True, fps=10.0, **FAST)
    with pytest.raises(ValueError, match="rate is 600"):  # the codec of this test is no player's
        found.save(tmp_path / "x.mp4")
    silent = animate(PROMPTS[0], seed=3, fps=10.0, **FAST)
    silent.save(tmp_path / "x.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]
    with av.open(str(tmp_path / "x.mp4")) as file:
        assert len(list(file.decode(video=0))) == 5
        assert file.streams.video[0].average_rate == 10
        assert json.loads(file.metadata["comment"])["seed"] == 3
    assert np.concatenate(list(silent.parts())).shape == silent.frames[0].shape == (5, 32, 48, 3)
    assert found.sound[0].shape == (2, int(5 / 10 * 600))


def test_sizes_follow_what_is_given(animate):
    tall = np.zeros((90, 50, 3), np.uint8)
    quick = {"frames": 1, "steps": 1, "tier": 256}
    assert ImageToVideo(animate.model, animate.codec)(tall, **quick).frames[0].shape[1:3] == (320, 192)
    assert animate("x", aspect="4:3", **quick).frames[0].shape[1:3] == (256, 320)
    assert TextToImage(animate.model, animate.codec)("x", steps=1, height=32, width=32).images[0].size == (32, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 6}, "frames is 6; this model makes 1, 5, 9"),
        ({"frames": 0}, "frames is 0"),
        ({"height": 40}, "height is 40; it must be a multiple of 16"),
        ({"fps": 0}, "fps is 0"),
        ({"steps": 0}, "0 steps"),
        ({"grid": "cosine"}, "grid 'cosine' is unknown"),
        ({"grid": "karras", "shift": 3.0}, "the karras grid has none"),
        ({"aspect": "2:1"}, "aspect is '2:1'"),
        ({"count": 0}, "count is 0"),
        ({"seed": [1, 2]}, "2 seeds were given for 1 videos"),
        ({"frames": 397, "height": 1024, "width": 1024, "count": 8}, "at most 262144 fit one call"),
        ({"latents": torch.zeros(1, 2, 3, 4, 5)}, "latents of video are"),
        ({"prompt": 7}, "a prompt must be a text"),
    ],
)
def test_bad_requests_are_one_clear_line(animate, options, message):
    size = {} if "aspect" in options else {"height": 32, "width": 48}
    with pytest.raises(ValueError, match=message):
        animate(**({"prompt": "x", "frames": 5, "steps": 2} | size | options))


def test_a_model_of_pictures_makes_no_videos():
    with pytest.raises(ValueError, match="knows no videos"):
        TextToVideo(micro_model())


def test_bad_conditions_are_named(animate):
    go_on = VideoToVideo(animate.model, animate.codec)
    clip = np.zeros((7, 32, 48, 3), np.uint8)
    with pytest.raises(ValueError, match=r"condition is \(3,\); this video has the latent frames 0 to 1"):
        go_on(clip, "x", condition=(3,), **FAST)
    with pytest.raises(ValueError, match="condition is"):
        go_on(clip, "x", condition=(), **FAST)
    with pytest.raises(ValueError, match="keep is 'middle'"):
        go_on(clip, "x", keep="middle", **FAST)
    with pytest.raises(ValueError, match="2 pictures or videos were given for 3 prompts"):
        ImageToVideo(animate.model, animate.codec)([clip[0], clip[1]], PROMPTS, **FAST)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_renewed_noise_leaves_what_is_given(animate, eta):
    begin = ImageToVideo(animate.model, animate.codec)
    picture = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
    still = begin(picture, "x", seed=1, solver="euler", **FAST).latents
    found = begin(picture, "x", seed=1, solver="euler", eta=eta, **FAST).latents
    torch.testing.assert_close(found[:, :, 0], still[:, :, 0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[:, :, 1], still[:, :, 1], atol=1e-2)


# -- actions -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy(animate):
    return Policy(animate.model, "pusht", codec=animate.codec, chunk=4, tier=256, steps=2)


def test_a_policy_reads_its_instruction_once(animate, policy, calls):
    policy._known = None
    observation = {"image": np.zeros((64, 64, 3), np.uint8), "prompt": "push the T"}
    first, second = policy(observation), policy(observation)
    assert first.shape == second.shape == (4, 2)
    assert not np.allclose(first, second)  # each call has a seed of its own
    assert calls["reads"] == [1]
    policy(observation | {"prompt": "stop"})
    assert calls["reads"] == [1, 1]


def test_observations_are_batches(policy):
    pictures = [np.full((64, 64, 3), level, np.uint8) for level in (10, 200)]
    rows = [{"image": one, "prompt": "push the T"} for one in pictures]
    together = policy(rows, seed=[4, 5])
    assert together.shape == (2, 4, 2)
    for i, row in enumerate(rows):
        np.testing.assert_allclose(policy(row, seed=4 + i), together[i], rtol=1e-3, atol=1e-4)


def test_a_policy_may_leave_out_the_video(animate, policy, monkeypatch):
    """Then only what is seen stands beside the actions."""
    observation = {"image": np.full((64, 64, 3), 90, np.uint8), "prompt": "push the T"}
    given, velocity = [], animate.model.velocity
    monkeypatch.setattr(animate.model, "velocity", lambda x, *rest: given.append(x) or velocity(x, *rest))
    alone = Policy(animate.model, "pusht", codec=animate.codec, chunk=4, tier=256, steps=2, foresee=False)
    whole, found = policy.predict(observation, seed=3), alone.predict(observation, seed=3)
    assert found.actions.shape == whole.actions.shape == (1, 4, 2)
    assert (len(found.frames[0]), len(whole.frames[0])) == (1, 5)
    assert [x["video"].shape[2] for x in given] == [2, 2, 1, 1]
    torch.testing.assert_close(given[2]["video"], given[0]["video"][:, :, :1])
    other = alone.predict(observation | {"image": np.zeros((64, 64, 3), np.uint8)}, seed=3)
    assert not torch.allclose(found.actions, other.actions, atol=1e-4)
    world = ForwardDynamics(animate.model, "pusht", codec=animate.codec, chunk=4, tier=256)
    with pytest.raises(ValueError, match="only a policy can do without the video; the mode is 'forward'"):
        world(observation["image"], np.zeros((4, 2), np.float32), foresee=False)


def test_actions_beside_a_video_have_steps_of_their_own(animate, monkeypatch):
    model, options = animate.model, {"codec": animate.codec, "chunk": 4, "tier": 256}
    own = replace(model.config.generation, action=WalkConfig(steps=3, guidance=1.0), world=WalkConfig(steps=2))
    monkeypatch.setattr(model, "config", replace(model.config, generation=own))
    picture, actions = np.zeros((64, 64, 3), np.uint8), np.zeros((4, 2), np.float32)
    assert ForwardDynamics(model, "pusht", **options)(picture, actions).settings[0]["steps"] == 2
    asked = {"image": picture, "prompt": "push"}
    for foresee, steps in ((True, 2), (False, 3)):
        found = Policy(model, "pusht", foresee=foresee, **options).predict(asked)
        assert found.settings[0]["steps"] == steps
    monkeypatch.setattr(model, "config", replace(model.config, generation=replace(own, world=None)))
    assert ForwardDynamics(model, "pusht", **options)(picture, actions).settings[0]["steps"] == 3


def test_states_stand_before_the_actions(animate):
    droid = Policy(animate.model, "droid_joint_pos", codec=animate.codec, chunk=4, tier=256, steps=2)
    rng = np.random.default_rng(0)
    names = ("wrist_image_left", "exterior_image_1_left", "exterior_image_2_left")
    views = {f"observation/{name}": rng.integers(0, 255, (32, 64, 3), np.uint8) for name in names}
    joints = {"observation/joint_position": rng.normal(size=(1, 7)), "observation/gripper_position": np.array([0.2])}
    found = droid.predict({**views, **joints, "prompt": "open the drawer"})
    assert found.actions.shape == (1, 4, 8)
    assert "wrist-mounted camera" in droid.setting.layout
    other = droid.predict({**views, **joints, "observation/joint_position": rng.normal(size=(1, 7)), "prompt": "x"})
    assert not torch.allclose(found.actions, other.actions, atol=1e-3)
    with pytest.raises(ValueError, match="gripper_position"):
        droid({**views, "observation/joint_position": np.zeros((1, 7))})
    with pytest.raises(ValueError, match="exterior_image_1_left"):
        droid({"observation/wrist_image_left": np.zeros((4, 4, 3), np.uint8)})


def test_grippers_are_turned_unless_actions_are_raw(animate):
    claw = Embodiment(name="claw", domain=3, width=2, gripper="invert", gripper_channels=(1,))
    options = {"codec": animate.codec, "chunk": 4, "tier": 256}
    picture, actions = np.zeros((64, 64, 3), np.uint8), np.array([[0.5, 0.2]] * 4, np.float32)
    turned = ForwardDynamics(animate.model, claw, **options)(picture, actions, seed=1, steps=2)
    raw = ForwardDynamics(animate.model, claw, raw=True, **options)
    flipped = actions * [1, -1] + [0, 1]
    torch.testing.assert_close(raw(picture, flipped, seed=1, steps=2).latents, turned.latents, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(raw(picture, actions, seed=1, steps=2).latents, turned.latents, atol=1e-4)


def test_bad_actors_are_named(animate, policy):
    options = {"codec": animate.codec}
    for change, message in (
        ({"embodiment": "pushed"}, "did you mean"),
        ({"embodiment": "hand_pose"}, "57"),
        ({"embodiment": "libero"}, "no width of its own"),
        ({"embodiment": "pusht", "chunk": 5}, "multiple of 4"),
        ({"embodiment": "pusht", "chunk": 0}, "chunk is 0"),
        ({"embodiment": "pusht", "fps": 0}, "fps is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Policy(animate.model, **change, **options)
    with pytest.raises(ValueError, match="holds no picture"):
        policy({"prompt": "x"})
    with pytest.raises(ValueError, match="must be a dict"):
        policy("x.png")
    with pytest.raises(ValueError, match="uint8"):
        policy({"image": np.zeros((4, 4, 3), np.float32)})
    with pytest.raises(ValueError, match="actions"):
        ForwardDynamics(animate.model, "pusht", chunk=4, tier=256, **options)(np.zeros((4, 4, 3), np.uint8), [[1.0]])


# -- students ----------------------------------------------------------------------------------------------------------


def test_students_renew_their_noise_at_fixed_levels(tmp_path):
    """Four steps: each begins from x0 and fresh noise, as the published sampler does."""
    cosmos3_pipeline.build(tmp_path, "shifted")
    levels = [1.0, 0.9375, 0.8333, 0.625]
    index = {"_class_name": "Cosmos3OmniModularPipeline", "is_distilled": True, "distilled_sigmas": levels}
    (tmp_path / "modular_model_index.json").write_text(json.dumps(index | {"default_use_system_prompt": True}))
    (tmp_path / "model_index.json").unlink()
    model = omni.load(tmp_path, device="cpu")
    draw = TextToImage(model)
    found = draw("a ball", seed=4, height=32, width=48)
    assert (found.settings[0]["steps"], found.settings[0]["guidance"]) == (4, 1.0)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(1, peer.CHANNELS, 2, 3, generator=generator)
    style = draw.style()
    cache = draw.read([draw.ids(draw.say("a ball", height=32, width=48, style=style), "image", style)])
    for level, following in zip(levels, [*levels[1:], 0.0], strict=True):
        with torch.no_grad():
            data = x - level * model.velocity(x, torch.tensor([level]), cache)
        x = (1 - following) * data
        if following:
            x = x + following * torch.randn(x.shape, generator=generator)
    torch.testing.assert_close(found.latents, x, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="distilled to 4 fixed ones"):
        draw("a ball", steps=8)
