"""Fine-tuning a Cosmos 3 folder on a LeRobot dataset: what is seen and said, statistics, falling losses, the folder."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("pyarrow")
pytest.importorskip("diffusers")

import cosmos3_pipeline
import lerobot_files

import omni
from omni.config import ConfigError
from omni.data import droid
from omni.data.demonstrations import Demonstrations, split
from omni.data.lerobot import LeRobotDataset
from omni.families import save
from omni.pipelines.policy import Policy
from omni.pipelines.world import ForwardDynamics, InverseDynamics
from omni.recipe import ActPlan, load_recipe
from omni.streams import VIDEO, spread
from omni.tokenizers.action import decode, encode, rotation_matrix
from omni.training import OmniTraining, build, train
from omni.training_models import fit_statistics
from omni.training_steps import Steps, encoding
from omni.training_worlds import streams

SAMPLE = Path(__file__).resolve().parents[2] / "shared/samples/generator/action/droid_lerobot_example"
FROZEN = ("embed", "context", "head")
STEPS, SAVED = 20, 16
CHUNK = 4
ACT = {"size": 2, "draws": 4, "space": "ee_pose", "views": "exterior", "tier": 256, "time_std": 0.5, "drop": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Cosmos 3 pipeline, tiny and random."""
    found = tmp_path_factory.mktemp("nano")
    cosmos3_pipeline.build(found, "shifted")
    return found


@pytest.fixture(scope="module")
def robot(tmp_path_factory):
    return lerobot_files.write_shared(tmp_path_factory.mktemp("robot"))


def recipe_file(path: Path, model: Path, act: dict, **changes) -> Path:
    plain = {
        "model": str(model),
        "seed": 3,
        "warmup": 2,
        "ema": 0.5,
        "weight_decay": 0.0,
        "frozen": list(FROZEN),
        "accelerator": "cpu",
        "log_every": 1,
        "save_every": SAVED,
        "probe_every": STEPS,
        "stages": [{"name": "robot", "steps": STEPS, "lr": 3e-3, "act": {**ACT, **act}}],
    }
    path.write_text(yaml.safe_dump(plain | changes))
    return path


@pytest.fixture(scope="module")
def recipe(folder, robot, tmp_path_factory):
    act = {"dataset": str(robot), "chunk": CHUNK, "statistics": "quantile"}
    return recipe_file(tmp_path_factory.mktemp("recipe") / "robot.yaml", folder, act)


@pytest.fixture(scope="module")
def module(recipe):
    return build(load_recipe(recipe)).train()


def demonstrations(module, **changes) -> Demonstrations:
    plan = replace(module.recipe.stages[0].act, **changes)
    return Demonstrations(plan, encoding(module.model))


# -- windows -----------------------------------------------------------------------------------------------------------


def test_the_last_episode_is_held_out(robot):
    dataset = LeRobotDataset(robot)
    found = split(dataset, CHUNK)
    assert (found.learnt, found.held_out, found.total) == (16, 9, 25)
    assert split(dataset, 12).held_out == 1
    with pytest.raises(ValueError, match="no windows of 15 actions to learn from"):
        split(dataset, 15)  # the second episode is too short, and the first too short to be divided


def test_of_one_episode_the_end_is_held_out_and_shares_no_frame(robot):
    dataset = LeRobotDataset(robot)
    dataset.lengths = np.array([100, 3])
    found = split(dataset, 8)
    assert (found.total, found.held_out) == (92, 9)
    first_held = found.total - found.held_out
    assert found.learnt - 1 + 8 == first_held - 1  # the last frame of the last window to learn from
    with pytest.raises(ValueError, match="no windows of 60 actions to learn from"):
        split(dataset, 60)


def test_batches_are_functions_of_the_seed_and_of_their_part(module):
    data = demonstrations(module)
    one, again, other = (data.batch(seed, 2, "policy") for seed in (5, 5, 6))
    assert torch.equal(one.frames, again.frames)
    assert torch.equal(one.actions, again.actions)
    assert not torch.equal(one.actions, other.actions)
    all_windows = data.batch(1, 16, "policy"), data.batch(-1, 9, "policy")
    learnt, held = ({tuple(row.flatten().tolist()) for row in batch.actions} for batch in all_windows)
    assert (len(learnt), len(held)) == (16, 9)
    assert not learnt & held


def test_each_mode_gives_what_it_says(module):
    data = demonstrations(module, state=True)
    for mode, frames, rows, given in (("policy", 1, 5, 1), ("forward", 1, 4, 4), ("inverse", 5, 4, 0)):
        batch = data.batch(2, 2, mode)
        assert batch.frames.shape == (2, 3, CHUNK + 1, 192, 320)
        assert batch.content == (32, 48)
        assert batch.given.sum(1).tolist() == [frames] * 2
        assert batch.actions.shape == (2, rows, 24)
        assert batch.given_actions.sum(1).tolist() == [given] * 2
        assert batch.states == rows - CHUNK
        assert (batch.fps.tolist(), batch.domains.tolist(), batch.widths.tolist()) == ([15.0] * 2, [8] * 2, [10] * 2)
        latents, clean = streams(module.model, batch, module.worlds.codec(module.model))
        assert latents[VIDEO].shape == (2, cosmos3_pipeline.WAN["z_dim"], 2, 2, 3)
        assert clean[VIDEO].tolist() == [[True, mode == "inverse"]] * 2
    still = data.batch(2, 1, "policy", still=True)
    assert still.frames.shape[:3] == (4, 3, 1)


def test_training_reads_and_sees_what_the_pipelines_do(module, robot, monkeypatch):
    """Ids, given latents, given actions and the scene of one window, in all three modes."""
    model, dataset = module.model, LeRobotDataset(robot)
    shown = {}
    denoise = model.denoise
    monkeypatch.setattr(model, "denoise", lambda *call: shown.update(call=call) or denoise(*call))
    drawn = droid.sample
    for mode, kind in {"policy": Policy, "forward": ForwardDynamics, "inverse": InverseDynamics}.items():
        with monkeypatch.context() as patch:
            patch.setattr(droid, "sample", lambda *a, **k: shown.setdefault("window", drawn(*a, **k)))
            batch = demonstrations(module, state=True).batch(4, 1, mode)
        one = shown.pop("window")
        assert one.prompt in droid.wordings(dataset.episode(0).task)
        pipeline = kind(model.eval(), "droid_lerobot", chunk=CHUNK, tier=256)
        if mode == "policy":
            pipeline({"image": one.frames[0], "prompt": one.prompt, "state": one.state}, steps=1)
        else:
            pipeline(*((one.frames[0], one.actions) if mode == "forward" else (one.frames,)), one.prompt, steps=1)
        assert pipeline._known[0] == (tuple(batch.input_ids[0].tolist()),)  # what was read
        state, _, _, scene = shown["call"]
        data, clean = streams(model, batch, module.worlds.codec(model))
        for name, flags in clean.items():
            assert torch.equal(scene.clean[name], flags), (mode, name)
            given = spread(flags, data[name], name).expand_as(data[name])
            torch.testing.assert_close(state[name][given], data[name][given])
        assert scene.action_start == 1 - batch.states
        assert torch.equal(scene.fps, batch.fps)
        assert torch.equal(scene.domains, batch.domains)


def test_processes_make_batches_of_one_mode_and_other_windows(module):
    words = encoding(module.model)
    modes = set()
    for step in range(6):
        made = [Steps(module.recipe, words, part=part, parts=2).batches(step)["act"][1] for part in (0, 1)]
        assert made[0].mode == made[1].mode
        assert not torch.equal(made[0].actions, made[1].actions)
        modes.add(made[0].mode)
    assert len(modes) > 1


# -- statistics --------------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_what_is_learned_from_and_travel(folder, robot, tmp_path):
    model, dataset = omni.load(folder, device="cpu"), LeRobotDataset(robot)
    own = fit_statistics(robot, model, "ee_pose", chunk=CHUNK)
    seen = droid.movement(dataset, 0, 0, lerobot_files.LENGTHS[0] - 1, "ee_pose").actions
    seen[:, 9] = 1 - seen[:, 9]
    low, high = np.quantile(seen.astype(np.float64), (0.01, 0.99), axis=0)
    np.testing.assert_allclose(own.normalizer.offset[:3], (low + high)[:3] / 2, atol=1e-6)
    np.testing.assert_allclose(own.normalizer.scale[9], (high - low)[9] / 2, rtol=1e-5)
    assert own.normalizer.scale[3:9] == (1.0,) * 6  # rotations stay as they are
    save(model, tmp_path / "model", family="cosmos3_generator")
    assert omni.load(tmp_path / "model", device="cpu").config.action.embodiments == (own,)
    save(model, tmp_path / "native")
    assert omni.load(tmp_path / "native", device="cpu").config.action.embodiments == (own,)


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    """A finished run; ``halfway.ckpt`` is its checkpoint after SAVED steps."""
    out, step = tmp_path_factory.mktemp("run"), OmniTraining.training_step

    def keep_one(self, batch, index):
        if self.global_step == SAVED:
            shutil.copyfile(out / "checkpoints/last.ckpt", out / "halfway.ckpt")
        return step(self, batch, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmniTraining, "training_step", keep_one)
        train(recipe, out=out)
    return out


def losses(out: Path, name: str) -> list[float]:
    (table,) = out.glob("csv/*/metrics.csv")
    with table.open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_losses_fall(run):
    for name in ("act", "act_video"):
        found = losses(run, name)
        assert len(found) >= 8
        assert np.isfinite(found).all()
        assert np.mean(found[-4:]) < 0.7 * np.mean(found[:4]), name
    with (run / "probes.csv").open(newline="") as file:
        (probe,) = csv.DictReader(file)
    assert np.isfinite([float(probe["act"]), float(probe["act_shuffled"])]).all()


def test_the_folder_is_a_pipeline_of_the_same_kind(run, folder):
    """diffusers reads its transformer; what was frozen is as it was, and the statistics are there."""
    from diffusers.models.transformers.transformer_cosmos3 import Cosmos3OmniTransformer
    from safetensors.torch import load_file

    before, after = omni.load(folder, device="cpu"), omni.load(run / "model", device="cpu")
    old, new = before.state_dict(), after.state_dict()
    moved = {name.split(".")[0] for name, value in old.items() if not torch.equal(value, new[name])}
    assert moved == {"denoiser", "latents", "actions"}
    (own,) = after.config.action.embodiments
    assert (own.name, own.chunk, own.fps, own.viewpoint) == ("droid_lerobot", CHUNK, 15.0, "third_person_view")
    assert own.normalizer.method == "quantile"
    assert replace(after.config, action=before.config.action) == before.config
    for part in ("vae", "scheduler", "text_tokenizer", "sound_tokenizer"):
        files = [path.relative_to(folder) for path in (folder / part).rglob("*") if path.is_file()]
        assert files
        assert all((run / "model" / name).read_bytes() == (folder / name).read_bytes() for name in files)
    theirs = Cosmos3OmniTransformer.from_config(Cosmos3OmniTransformer.load_config(run / "model/transformer"))
    weights = load_file(run / "model/transformer/diffusion_pytorch_model.safetensors")
    theirs.load_state_dict(weights)
    key = "layers.0.self_attn.add_q_proj.weight"
    assert torch.equal(weights[key], new["denoiser.blocks.0.mixer.q_proj.weight"])
    assert Policy(after, "droid_lerobot", tier=256).setting.embodiment == own


def test_resuming_is_exact(run, recipe, tmp_path):
    """From its checkpoint a run goes on to the same folder."""
    (tmp_path / "checkpoints").mkdir()
    shutil.copyfile(run / "halfway.ckpt", tmp_path / "checkpoints/last.ckpt")
    train(recipe, out=tmp_path)
    assert len(losses(tmp_path, "rate")) == STEPS - SAVED
    for name in ("transformer/diffusion_pytorch_model.safetensors", "action_statistics.json", "model_index.json"):
        assert (tmp_path / "model" / name).read_bytes() == (run / "model" / name).read_bytes()


def test_our_own_layout_keeps_the_codecs_and_statistics(module, tmp_path):
    from omni.training_callbacks import export

    own = build(replace(module.recipe, family="omni"))
    own.trainer = None
    loaded = omni.load(export(own, tmp_path / "model"), device="cpu")
    assert loaded.config == own.model.config
    assert Policy(loaded, "droid_lerobot", tier=256).codec.channels == cosmos3_pipeline.WAN["z_dim"]


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": "torques"}, "space is 'torques'; it must be one of joint_pos, ee_pose"),
        ({"views": "top"}, "views is 'top'"),
        ({"embodiment": "droid"}, "did you mean droid_lerobot"),
        ({"embodiment": "pusht"}, "actions of ee_pose have 10 numbers; those of 'pusht' have 2"),
        ({"chunk": 30}, "no windows of 30 actions"),
        ({"dataset": "nowhere"}, "not a LeRobot dataset"),
        ({"statistics": "best"}, "statistics is 'best'"),
        ({"worlds": {"pusht": 1}}, "give a folder, or worlds"),
        ({"dataset": None, "statistics": None}, r"ActPlan sets \['space', 'views', 'chunk', 'tier'\]"),
    ],
)
def test_bad_plans(folder, robot, tmp_path, change, message):
    act = {"dataset": str(robot), "chunk": CHUNK, "statistics": "quantile"} | change
    path = recipe_file(tmp_path / "bad.yaml", folder, act)
    with pytest.raises(ValueError, match=message):
        build(load_recipe(path))


def test_models_and_layouts_that_cannot_be_trained(folder, recipe, robot, tmp_path):
    plan = load_recipe(recipe)
    with pytest.raises(ConfigError, match="family is 'pickles'"):
        build(replace(plan, family="pickles"))
    worlds = replace(plan.stages[0], act=ActPlan(size=1))
    with pytest.raises(ValueError, match="learns from act with a dataset only"):
        build(replace(plan, stages=(worlds,)))
    with pytest.raises(ValueError, match="neither a folder"):
        build(replace(plan, model=str(tmp_path / "nothing")))
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("vae"))
    with pytest.raises(ValueError, match="lacks the codec of its latents"):
        build(replace(plan, model=str(bare)))


# -- a published episode -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(folder):
    model = omni.load(folder, device="cpu")
    fit_statistics(SAMPLE, model, "ee_pose", method="quantile_rot")
    return model


@pytest.fixture(scope="module")
def window():
    return droid.sample(LeRobotDataset(SAMPLE), 0, 100, 16, "ee_pose", "exterior")


@pytest.mark.skipif(not SAMPLE.exists(), reason="the published episode is not here")
class TestPublishedEpisode:
    def test_actions_have_the_size_of_the_datas(self, model, window):
        """Most numbers lie in [-1, 1]; what comes back is metres and rotations again."""
        (own,) = model.config.action.embodiments
        steps = droid.movement(LeRobotDataset(SAMPLE), 0, 0, 700, "ee_pose").actions
        read = encode(steps, own, 24)[:, :10]
        assert float((read.abs() <= 1 + 1e-3).float().mean()) > 0.95
        back = decode(encode(window.actions, own, 24), own)
        torch.testing.assert_close(back, torch.from_numpy(window.actions), atol=1e-6, rtol=1e-4)

    def test_a_policy(self, model, window):
        observation = {"image": window.frames[0], "prompt": "put the pen into the cup"}
        policy = Policy(model, "droid_lerobot", chunk=32, tier=256, viewpoint=window.viewpoint)
        found = policy.predict(observation, steps=2)
        assert found.actions.shape == (1, 32, 10)
        assert found.fps == 15.0
        assert policy.codec.pixel_frames(found.latents.shape[2]) == 33
        assert found.latents.shape[-2:] == (11, 20)  # 180 x 320 pixels of the canvas of 192 x 320
        assert_steps(found.actions[0])

    def test_inverse_and_forward(self, model, window):
        options = {"tier": 256, "viewpoint": window.viewpoint}
        inverse = InverseDynamics(model, "droid_lerobot", **options)
        found = inverse(window.frames, steps=2)
        assert found.actions.shape == (1, 16, 10)
        assert_steps(found.actions[0])
        forward = ForwardDynamics(model, "droid_lerobot", **options)
        seen = forward(window.frames[0], window.actions, steps=2, seed=1)
        assert seen.actions is None
        assert seen.frames[0].shape == (17, 176, 320, 3)
        other = forward(window.frames[0], -window.actions, steps=2, seed=1)
        assert not torch.equal(seen.latents, other.latents)

    def test_a_few_steps_of_training(self, folder, tmp_path):
        act = {"dataset": str(SAMPLE), "statistics": "quantile_rot", "draws": 2, "size": 1, "modes": {"policy": 1}}
        stage = [{"name": "droid", "steps": 6, "lr": 5e-3, "act": ACT | act}]
        path = recipe_file(tmp_path / "droid.yaml", folder, {}, stages=stage, probe_every=6)
        after = omni.load(train(path, out=tmp_path / "run"), device="cpu")
        for name in ("act", "act_video"):
            found = losses(tmp_path / "run", name)
            assert len(found) == 6
            assert np.isfinite(found).all()
            assert np.mean(found[-2:]) < np.mean(found[:2]), name
        (own,) = after.config.action.embodiments
        assert (own.chunk, own.fps, own.normalizer.method) == (16, 15.0, "quantile_rot")


def assert_steps(actions: torch.Tensor) -> None:
    """Steps of an arm between two frames: a few centimetres and a part of a radian; a gripper around 0 to 1."""
    assert bool(actions.isfinite().all())
    assert float(actions[:, :3].norm(dim=1).max()) < 0.3
    trace = rotation_matrix(actions[:, 3:9]).diagonal(dim1=1, dim2=2).sum(1)
    assert float(((trace - 1) / 2).clamp(-1, 1).acos().max()) < 1.0
    assert float(actions[:, 9].abs().max()) < 10
