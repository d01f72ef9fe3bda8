"""Training on a micro system: what a run leaves behind, exact resumption, the exported model, bad recipes."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from micro import CODEC_LATENT, MICRO

import omni
from omni import families
from omni.config import ConfigError, replace
from omni.families.base import Preset
from omni.losses import IGNORED
from omni.recipe import ReadPlan, Stage, load_recipe
from omni.training import OmniTraining, Steps, build, encoding, train

STEPS = 4
SIZES = replace(MICRO, latent=CODEC_LATENT)
RECIPE = {
    "model": "omni-micro",
    "seed": 3,
    "warmup": 2,
    "log_every": 1,
    "save_every": 2,
    "probe_every": 2,
    "accelerator": "cpu",
    "stages": [
        {
            "name": "glyphs",
            "steps": 1,
            "lr": 2e-3,
            "read": {"size": 1, "mixture": {"line": 1.0}, "talk": False},
        },
        {
            "name": "all",
            "steps": STEPS - 1,
            "lr": 2e-3,
            "decay": True,
            "read": {"size": 1, "mixture": {"word": 1.0}, "questions": 1},
            "draw": {"size": 2, "draws": 2},
            "talk": {"size": 1, "width": 128, "every": 2},
        },
    ],
    "presets": {"big": {"batch_scale": 2}},
}


@pytest.fixture(autouse=True, scope="module")
def micro_preset():
    """The micro sizes under a preset's name."""
    known = families.presets()
    known["omni-micro"] = Preset(SIZES, "omni-micro")
    yield
    del known["omni-micro"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipes") / "micro.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    """Folder of one finished run."""
    out = tmp_path_factory.mktemp("run")
    train(recipe, out=out)
    return out


def state(out) -> dict[str, torch.Tensor]:
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]


def rows(path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_run_leaves_logs_probes_and_pictures(run):
    (metrics,) = run.glob("csv/*/metrics.csv")
    logged = rows(metrics)
    assert {"step", "rate"} <= set(logged[0])
    assert list(run.glob("tensorboard/*/events.out.tfevents.*"))
    halfway, probe = rows(run / "probes.csv")
    assert halfway["step"] == "2"  # what a probe leaves behind must not stand in the way of the next step
    assert (probe["step"], probe["stage"]) == (str(STEPS), "all")
    for name in ("read", "read_blank", "read_shuffled"):
        assert 0 < float(probe[name]) < 20
    assert 0 <= float(probe["drawn_right"]) <= 1
    assert (run / "samples" / f"{STEPS:06d}.png").stat().st_size > 0
    assert (run / "loss.png").stat().st_size > 0
    assert not list(run.rglob("*.part"))


def test_resuming_is_exact(run, recipe, tmp_path, monkeypatch):
    """Two steps, a crash, two more: the weights, averages and router biases of four steps in one go."""
    step = OmniTraining.training_step

    def crash_at_two(self, batch, index):
        if self.global_step == 2:
            raise RuntimeError("power failure")
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(OmniTraining, "training_step", crash_at_two)
        with pytest.raises(RuntimeError, match="power failure"):
            train(recipe, out=tmp_path)
    halfway = state(tmp_path)
    train(recipe, out=tmp_path)
    whole, resumed = state(run), state(tmp_path)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    assert any(not torch.equal(value, halfway[name]) for name, value in whole.items())


def test_batches_made_beside_the_training_are_the_same(run, recipe, tmp_path, monkeypatch):
    make = Steps.batches

    def beside(self, step):
        assert torch.utils.data.get_worker_info().num_workers == 2
        return make(self, step)

    monkeypatch.setattr(Steps, "batches", beside)
    train(recipe, out=tmp_path, overrides={"workers": 2})
    alone, helped = state(run), state(tmp_path)
    for name, value in alone.items():
        assert torch.equal(value, helped[name]), name


def test_the_exported_model_is_the_average_in_bfloat16(run, recipe):
    module = build(load_recipe(recipe))
    module.load_state_dict(state(run))
    module.model.load_state_dict(module.ema.weights())
    module.model.eval()
    loaded = omni.load(run / "model")
    assert loaded.dtype == torch.float32
    assert loaded.config == SIZES
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("a ring")) == "a ring"
    ids = torch.tensor([loaded.tokenizer.encode("What is the total?")])
    averages = {name: value.clone() for name, value in module.model.state_dict().items()}
    weights = loaded.state_dict()
    assert averages.keys() == weights.keys()
    for name, value in averages.items():  # rounded, or kept as it is where rounding would change decisions
        assert torch.equal(weights[name], value.bfloat16().float()) or torch.equal(weights[name], value), name
    assert any(not torch.equal(weights[name], value) for name, value in averages.items())
    module.model.load_state_dict(weights)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.logits(ids), module.model.logits(ids))
    stored = omni.load(run / "model", dtype="bfloat16")
    assert stored.dtype == torch.bfloat16
    routers = [(k, v) for k, v in weights.items() if k.endswith("router.bias")]
    assert routers
    assert all(torch.equal(v, averages[k]) and v.dtype == torch.float32 for k, v in routers)
    assert json.loads((run / "model" / "training.json").read_text())["steps"] == STEPS


def test_a_folders_model_is_ready_to_learn(run, recipe):
    """Routers that are not in training count no tokens, and their biases would stay."""
    module = build(load_recipe(recipe, overrides={"model": str(run / "model")}))
    assert module.source is not None
    assert all(part.training for part in module.model.modules())


def test_a_run_can_start_from_another(run, recipe, tmp_path):
    short = [{**RECIPE["stages"][0], "lr": 1e-12}]
    train(recipe, out=tmp_path, init=run / "checkpoints" / "last.ckpt", overrides={"stages": short})
    before, after = state(run), state(tmp_path)
    torch.testing.assert_close(after["model.embed.weight"], before["model.embed.weight"])
    assert not torch.equal(after["model.embed.weight"], build(load_recipe(recipe)).state_dict()["model.embed.weight"])


def test_every_objective_reaches_its_part(recipe):
    """Gradients of each loss arrive at the parts that it is for, and at no others."""
    module = build(load_recipe(recipe))
    steps = Steps(module.recipe, encoding(module.model))
    for kind, reached in (
        ("read", {"vision", "projector", "context"}),
        ("draw", {"denoiser", "latents", "context"}),
        ("talk", {"context"}),
    ):
        plan, batch = steps.batches(1)[kind]
        module.zero_grad()
        sum(w * loss for w, loss in getattr(module, f"{kind}_losses")(plan, batch).values()).backward()
        moved = {n.split(".")[0] for n, p in module.model.named_parameters() if p.grad is not None and p.grad.any()}
        assert reached <= moved, kind
        assert moved - reached <= {"embed", "head"}, kind


SHARED = """
import sys
from omni import families
from omni.families.base import Preset
from test_training import SIZES
from omni.training import train

families.presets()["omni-micro"] = Preset(SIZES, "omni-micro")
print("done", train(sys.argv[1], out=sys.argv[2]))
"""


def test_labels_are_asked_for_their_values_where_the_recipe_says_so(recipe):
    module = build(load_recipe(recipe))
    steps = Steps(module.recipe, encoding(module.model))
    plan = ReadPlan(size=1, mixture={"chart": 1.0}, label_weight=1.0, questions=1)
    batch = steps._read(0, plan)
    parts = module.read_losses(plan, batch)
    for name, reached in (("label", {"vision", "projector"}), ("label_read", {"vision", "projector", "context"})):
        module.zero_grad()
        parts[name][1].backward(retain_graph=True)
        moved = {n.split(".")[0] for n, p in module.model.named_parameters() if p.grad is not None and p.grad.any()}
        assert reached <= moved <= reached | {"embed"}, name
    assert not {"label", "label_read"} & set(module.read_losses(replace(plan, label_weight=0.0), batch))


def test_a_head_is_told_where_to_look_where_the_recipe_says_so(recipe):
    module = build(load_recipe(recipe)).train()
    steps = Steps(module.recipe, encoding(module.model))
    plan = ReadPlan(size=1, mixture={"page": 1.0}, pointer_weight=0.5, questions=2, read_first=1.0)
    batch = steps._read(0, plan)
    parts = module.read_losses(plan, batch)
    looks = {"read_point", "read_answer", "read_row", "read_row_early", "read_sought"}
    assert looks <= set(parts)
    assert ("read_ask" in parts) == (module.asker.layer is not None)
    weight, loss = parts["read_point"]
    assert weight == 0.5
    assert loss.item() > 0
    loss.backward()
    moved = {n.split(".")[0] for n, p in module.model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"vision", "projector", "context", "embed"} <= moved
    assert "head" not in moved
    with pytest.raises(ValueError, match="pointer_weight is set"):
        OmniTraining(module.model, replace(module.recipe, frozen=("context",), stages=(_reading(plan),)))
    assert not looks & set(module.read_losses(replace(plan, pointer_weight=0.0), batch))


def test_what_is_told_and_what_is_answered_count_by_themselves(recipe):
    module = build(load_recipe(recipe)).train()
    steps = Steps(module.recipe, encoding(module.model))
    plan = ReadPlan(size=3, mixture={"page": 1.0}, pointer_weight=0.5, questions=4, read_first=1.0, given=0.0)
    batch = steps._read(0, plan)
    told = batch.told
    assert torch.equal(told & (batch.labels != IGNORED), told)
    assert int((~told & (batch.labels != IGNORED)).sum()) > 10
    whole = module.read_losses(plan, batch)
    for kept, lost, names in (
        (told, "answer", ("read_told", "read_point")),
        (~told, "told", ("read", "read_answer")),
    ):
        part = replace(batch, labels=batch.labels.where(kept, IGNORED), points=batch.points.where(kept, IGNORED))
        alone = module.read_losses(plan, part)
        for name in ("read", "read_told", "read_point", "read_answer"):
            assert alone[name][1].item() == pytest.approx(whole[name][1].item() if name in names else 0.0), (lost, name)
    given = steps._read(1, replace(plan, given=1.0))
    assert not bool((given.labels[given.told] != IGNORED).any())


def _reading(plan: ReadPlan) -> Stage:
    return Stage(name="reading", steps=1, lr=1e-3, read=plan)


def test_frozen_parts_stay_as_they_are(tmp_path):
    path = tmp_path / "frozen.yaml"
    frozen = ["embed", "context", "vision", "projector"]
    path.write_text(yaml.safe_dump(RECIPE | {"stages": [{**RECIPE["stages"][1], "steps": 2}], "frozen": frozen}))
    train(path, out=tmp_path / "out")
    before, after = build(load_recipe(path)).state_dict(), state(tmp_path / "out")
    moved = {
        name for name, value in after.items() if name.startswith("model.") and not torch.equal(value, before[name])
    }
    assert moved
    assert not [name for name in moved if name.split(".")[1] in frozen]
    path.write_text(yaml.safe_dump(RECIPE | {"frozen": ["contxt"]}))
    with pytest.raises(ValueError, match=r"does not have: \['contxt'\]; it has"):
        train(path, out=tmp_path / "other")


@pytest.mark.slow
def test_two_processes_share_each_step(recipe, tmp_path):
    """One step on two processes is one step along the mean of their gradients, and only the first says so."""
    stage = {**RECIPE["stages"][0], "lr": 0.1}
    shared = tmp_path / "shared.yaml"
    shared.write_text(yaml.safe_dump(RECIPE | {"stages": [stage], "devices": 2, "threads": 1}))
    script = tmp_path / "run.py"
    script.write_text(SHARED)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, str(script), str(shared), str(tmp_path / "out")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("done") == 1

    module = build(load_recipe(shared))
    losses = []
    for part in range(2):
        ((plan, batch),) = Steps(module.recipe, encoding(module.model), part=part, parts=2).batches(0).values()
        losses.append(sum(w * loss for w, loss in module.read_losses(plan, batch).values()) / 2)
    assert losses[0] != losses[1]
    sum(losses).backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), module.recipe.clip)
    chosen = module.configure_optimizers()
    before = module.state_dict()["glyph_head.weight"].clone()
    chosen["optimizer"].step()
    after = state(tmp_path / "out")
    torch.testing.assert_close(after["glyph_head.weight"], module.glyph_head.weight.detach(), atol=1e-5, rtol=1e-4)
    assert not torch.equal(before, after["glyph_head.weight"])


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_is_told_to_stop_ends_as_one_and_goes_on(devices, tmp_path):
    endless = {**RECIPE["stages"][0], "steps": 100_000}
    path, out, script = tmp_path / "endless.yaml", tmp_path / "out", tmp_path / "run.py"
    path.write_text(yaml.safe_dump(RECIPE | {"stages": [endless], "devices": devices, "threads": 1}))
    script.write_text(SHARED)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, str(script), str(path), str(out)]
    steps = []
    for _ in range(2):
        # Two runs: the second starts where the first was stopped, and is stopped after the first's last step.
        ran = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            _wait(lambda: out.exists() and _logged(out) > sum(steps[-1:]) + 3, ran)
            ran.terminate()
            _, told = ran.communicate(timeout=60)
        finally:
            ran.kill()
        assert ran.returncode == 1
        step = torch.load(out / "checkpoints" / "last.ckpt", weights_only=False)["global_step"]
        assert f"stopped after step {step} of 100000" in told
        steps.append(step)
    assert 3 < steps[0] < steps[1]
    assert not (out / "model").exists()


def _wait(until, process) -> None:
    end = time.monotonic() + 200
    while not until():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "the run does not get on"
        time.sleep(0.2)


def _logged(out: Path) -> int:
    """The last step in the run's newest table."""
    tables = sorted(out.glob("csv/*/metrics.csv"), key=lambda p: p.stat().st_mtime)
    rows = list(csv.DictReader(tables[-1].open())) if tables else []
    return int(rows[-1]["step"]) if rows else 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "omni-micr"}, "Did you mean omni-micro"),
        ({"stages": []}, "at least one stage"),
        ({"stages": [{"name": "x", "steps": 0, "lr": 1.0}]}, "steps is 0"),
        ({"stages": [{"name": "x", "steps": 1, "lr": 1.0, "read": {"sise": 1}}]}, "no fields \\['sise'\\]"),
        ({"stages": [{"name": "x", "steps": 1}]}, "lr"),
        ({"stages": [{"name": "x", "steps": 1, "lr": "fast"}]}, "'fast'"),
        ({"stages": "none"}, "stages is 'none'"),
        ({"stages": [3]}, "a stage is 3"),
        ({"stages": [{"name": "x", "steps": 1, "lr": 1.0, "read": 5}]}, "ReadPlan is 5"),
        ({"stages": [{"name": "x", "steps": 1, "lr": 1.0, "read": {"size": 1, "mixture": {}}}]}, "mixture is {}"),
        ({"stages": [{"name": "x", "steps": 1, "lr": 1.0, "draw": {"size": 0}}]}, "DrawPlan.size is 0"),
        ({"learning_rate": 1}, "no fields \\['learning_rate'\\]"),
        ({"seed": -1}, "seed is -1"),
        ({"warmup": 0}, "warmup is 0"),
        ({"ema": 1.5}, "ema is 1.5"),
        ({"batch_scale": 0}, "batch_scale is 0"),
        ({"fresh": 1.5}, "fresh is 1.5"),
    ],
)
def test_bad_recipes_are_refused_before_anything_is_written(recipe, tmp_path, change, message):
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match=message):
        train(recipe, out=out, overrides=change)
    assert not out.exists()


def test_unreadable_recipes(recipe, tmp_path):
    with pytest.raises(ConfigError, match="not a readable recipe"):
        load_recipe(tmp_path / "missing.yaml")
    bad = tmp_path / "bad.yaml"
    for text in ("a: [", "just text", ""):
        bad.write_text(text)
        with pytest.raises(ConfigError):
            load_recipe(bad)
    with pytest.raises(ConfigError, match="no preset 'huge'; known: big"):
        load_recipe(recipe, preset="huge")
    assert load_recipe(recipe, preset="big").batch_scale == 2


def test_unfitting_initial_weights(recipe, tmp_path):
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": {"nothing.weight": torch.zeros(1)}}, other)
    with pytest.raises(ValueError, match=r"nothing\.weight"):
        train(recipe, out=tmp_path / "run", init=other)
    torch.save({"state_dict": {}}, other)
    with pytest.raises(ValueError, match="none of the model's weights"):
        train(recipe, out=tmp_path / "run", init=other)
