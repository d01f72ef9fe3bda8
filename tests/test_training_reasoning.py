"""Training on the reasoning world: a short run end to end, the drafting block's share, the recipe and its sizes."""

import csv
from dataclasses import replace

import pytest
import torch
import yaml
from micro import MICRO

import omni
from omni import families
from omni.config import ConfigError, MLPConfig, MTPConfig
from omni.data.reasoning import KINDS, LEVELS
from omni.families import preset
from omni.families.base import Preset
from omni.model import Omni
from omni.pipelines.chat import Chat
from omni.recipe import PredictPlan, load_recipe
from omni.training import OmniTraining, build, train
from omni.training_drafts import DraftLosses
from omni.training_steps import Steps, encoding

SIZES = replace(
    MICRO,
    context=replace(MICRO.context, mlp=MLPConfig(d_ff=32)),
    vision=None,
    denoiser=None,
    latent=None,
    mtp=MTPConfig(pattern="*-", depth=3),
)
RECIPE = {
    "model": "omni-micro-text",
    "warmup": 2,
    "log_every": 1,
    "save_every": 2,
    "probe_every": 2,
    "accelerator": "cpu",
    "predict": {"depth": 3, "share": 0.5},
    "stages": [
        {"name": "easy", "steps": 2, "lr": 2e-3, "reason": {"size": 2, "width": 224, "levels": {1: 1.0}}},
        {"name": "all", "steps": 2, "lr": 2e-3, "decay": True, "reason": {"size": 2, "width": 256}},
    ],
}


@pytest.fixture(autouse=True, scope="module")
def micro_preset():
    known = families.presets()
    known["omni-micro-text"] = Preset(SIZES, "omni-micro-text")
    yield
    del known["omni-micro-text"]


def written(folder, **changes):
    path = folder / "reason.yaml"
    path.write_text(yaml.safe_dump(RECIPE | changes))
    return path


def test_a_run_leaves_a_model_that_answers_and_drafts(tmp_path):
    folder = train(written(tmp_path), out=tmp_path / "run")
    model = omni.load(folder)
    assert model.vision is None
    said = Chat(model)([{"role": "user", "content": "1+1=?"}], max_new_tokens=8, drafts=3, temperature=0.0)
    assert said.tokens <= 8
    assert said.usage.drafts.passes > 0
    with (tmp_path / "run" / "probes.csv").open(newline="") as file:
        *_, last = csv.DictReader(file)
    assert last["stage"] == "all"
    assert all(0 < float(last[name]) < 20 for name in ("reason_1", "reason_2", "reason_3", "reason_blind"))
    (logged,) = (tmp_path / "run").glob("csv/*/metrics.csv")
    assert {"reason", "reason_ahead_1", "reason_ahead_3"} <= set(logged.read_text().splitlines()[0].split(","))


def test_a_run_that_was_broken_off_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    step = OmniTraining.training_step

    def crash_at_two(self, batch, index):
        if self.global_step == 2:
            raise RuntimeError("power failure")
        return step(self, batch, index)

    path = written(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(OmniTraining, "training_step", crash_at_two)
        with pytest.raises(RuntimeError, match="power failure"):
            train(path, out=tmp_path / "broken")
    train(path, out=tmp_path / "broken")
    train(path, out=tmp_path / "whole")
    broken, whole = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
        for name in ("broken", "whole")
    )
    assert all(torch.equal(broken[name], value) for name, value in whole.items())


def test_processes_share_a_step_without_sharing_problems(tmp_path):
    module = build(load_recipe(written(tmp_path)))
    parts = [Steps(module.recipe, encoding(module.model), part=i, parts=2).batches(1)["reason"][1] for i in range(2)]
    assert parts[0].input_ids.shape == parts[1].input_ids.shape == (2, 224)
    assert not torch.equal(parts[0].input_ids, parts[1].input_ids)


def test_the_drafting_block_learns_from_its_share_of_the_rows(tmp_path):
    module = build(load_recipe(written(tmp_path))).train()
    batch = Steps(module.recipe, encoding(module.model)).batches(0)["reason"][1]
    asked = {share: DraftLosses(module.model, PredictPlan(depth=2, share=share)) for share in (1.0, 0.5)}
    with torch.no_grad():
        module.model.context(module.model.embed(batch.input_ids), segments=batch.segments)
        half = asked[0.5].parts("reason", batch.labels, batch.segments)
        module.model.context(module.model.embed(batch.input_ids[:1]), segments=batch.segments[:1])
        first = asked[1.0].parts("reason", batch.labels[:1], batch.segments[:1])
    for name, (_, loss) in first.items():
        torch.testing.assert_close(half[name][1], loss)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"stages": [{"name": "a", "steps": 1, "lr": 1e-3, "reason": {"size": 0}}]}, "ReasonPlan.size is 0"),
        ({"stages": [{"name": "a", "steps": 1, "lr": 1e-3, "reason": {"size": 1, "kinds": {}}}]}, "ReasonPlan.kinds"),
        ({"stages": [{"name": "a", "steps": 1, "lr": 1e-3, "reason": {"size": 1, "levels": [1]}}]}, "levels"),
        ({"predict": {"share": 2}}, "PredictPlan.share is 2"),
    ],
)
def test_a_bad_recipe_is_refused(tmp_path, changes, named):
    with pytest.raises(ConfigError, match=named):
        load_recipe(written(tmp_path, **changes))


def test_the_recipe_trains_what_it_says():
    recipe = load_recipe("assets/recipes/text.yaml", "cpu")
    assert recipe.model == "omni-tiny-text"
    assert recipe.stages[-1].decay
    assert recipe.predict.depth == preset(recipe.model).mtp.depth
    plans = [stage.reason for stage in recipe.stages]
    assert all(set(plan.kinds or KINDS) <= set(KINDS) and set(plan.levels or LEVELS) <= set(LEVELS) for plan in plans)


def test_sizes():
    config = preset("omni-tiny-text")
    with torch.device("meta"):
        model = Omni(config)
    counts = {part: sum(p.numel() for p in module.parameters()) for part, module in model.named_children()}
    assert counts["mtp"] <= 200_000
    assert counts["embed"] + counts["context"] + counts["head"] <= 1_200_000
    assert counts["denoiser"] + counts["tokens"] <= 1_200_000
    assert set(config.context.pattern) == set("M*E")
    assert config.context.moe.d_latent is not None
    assert model.vision is model.sound is model.latents is None
    assert config.denoiser.pattern == config.context.pattern
    assert "mask" in config.special_tokens
