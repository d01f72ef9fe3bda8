"""A student of few steps, of a micro system: what it is taught, that it learns it, its walk, exact resumption."""

import csv

import numpy as np
import pytest
import torch
import yaml
from micro import CODEC_LATENT, MICRO, micro_model
from safetensors.torch import load_file

import omni
from omni import families, training
from omni.config import ConfigError, replace
from omni.data.scenes import Request, Want, check
from omni.decoders.flow import interpolate
from omni.decoders.schedules import STUDENT
from omni.families import save
from omni.families.base import Preset
from omni.families.locate import find_folder
from omni.inputs import Inputs
from omni.pipelines.images import TextToImage
from omni.recipe import DistilPlan, load_recipe
from omni.tokenizers.prompts import caption_ids
from omni.training import OmniTraining, build, train
from omni.training_parts import load_weights
from omni.training_steps import Steps, encoding
from omni.training_student import SOFT

SIZES = replace(MICRO, latent=CODEC_LATENT)
PLAN = {"size": 2, "levels": list(STUDENT), "guidance": 2.0}
LEARNT = ("denoiser", "latents")


@pytest.fixture(autouse=True, scope="module")
def micro_preset():
    """The micro sizes under a preset's name, and a codec that is fitted on little."""
    known, scenes = families.presets(), training.CODEC_SCENES
    known["omni-micro"], training.CODEC_SCENES = Preset(SIZES, "omni-micro"), 20
    yield
    training.CODEC_SCENES = scenes
    del known["omni-micro"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Folder of a random model whose pictures hang on its captions."""
    folder = tmp_path_factory.mktemp("teacher")
    model = micro_model(latent=CODEC_LATENT)
    model.codec.fit(torch.rand(8, 3, 64, 64))
    save(model, folder)
    model.tokenizer.save(folder)
    return folder


def recipe_file(folder, **changes):
    plain = {
        "model": "omni-micro",  # sizes without weights, where the teacher does not matter
        "seed": 3,
        "warmup": 1,
        "log_every": 1,
        "save_every": 2,
        "probe_every": 4,
        "accelerator": "cpu",
        "stages": [{"name": "student", "steps": 4, "lr": 2e-3, "distil": PLAN}],
    }
    path = folder / "student.yaml"
    path.write_text(yaml.safe_dump(plain | changes))
    return path


@pytest.fixture(scope="module")
def recipe(teacher, tmp_path_factory):
    return recipe_file(tmp_path_factory.mktemp("recipes"), model=str(teacher))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A recipe whose teacher is given beside it."""
    return recipe_file(tmp_path_factory.mktemp("recipes"))


@pytest.fixture(scope="module")
def run(fresh, teacher, tmp_path_factory):
    """Folder of one finished run."""
    out = tmp_path_factory.mktemp("run")
    train(fresh, out=out, init=teacher)
    return out


@pytest.fixture
def module(recipe) -> OmniTraining:
    return build(load_recipe(recipe)).train()


def state(out) -> dict[str, torch.Tensor]:
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]


def losses(module, plan, seed=0) -> dict[str, tuple[float, torch.Tensor]]:
    batch = Steps(module.recipe, encoding(module.model))._distil(seed, plan)
    torch.manual_seed(seed)
    return module.distil_losses(plan, batch)


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean over pictures, nearly that of their root mean squares."""
    return (((a - b).square().mean(dim=(1, 2, 3)) + SOFT**2).sqrt() - SOFT).mean()


# -- what is taught --------------------------------------------------------------------------------------------------


def test_the_target_of_one_level_is_the_end_of_the_teachers_guided_walk(module):
    plan = DistilPlan(size=3, levels=(1.0,), guidance=2.0, steps=3, own=0.0)
    batch = Steps(module.recipe, encoding(module.model))._distil(5, plan)
    torch.manual_seed(5)
    error = module.distil_losses(plan, batch)["distil"][1].detach()
    model, words = module.model.eval(), module.model.tokenizer
    torch.manual_seed(5)
    with torch.no_grad():
        noise = torch.randn_like(model.codec.encode(batch.pixels))

        def read(rows):
            cache = model.new_cache(len(rows))
            for_each = torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True)
            mask = torch.arange(for_each.shape[1]) < torch.tensor([[len(r)] for r in rows])
            model.read(Inputs(for_each, mask), cache)
            return cache

        captions = read([ids[own].tolist() for ids, own in zip(batch.input_ids, batch.mask, strict=True)])
        empty = read([caption_ids("", words.special, words.encode)] * 3)
        x, told = noise, torch.ones(3)
        for level in (1.0, 2 / 3, 1 / 3):
            wanted, against = (model.velocity(x, told * level, cache) for cache in (captions, empty))
            x = x - (against + 2.0 * (wanted - against)) / 3
        own = noise - model.velocity(noise, told, captions)
    assert error > 0.01  # guidance and steps make a difference
    torch.testing.assert_close(error, distance(own, x), rtol=1e-4, atol=1e-6)


def test_the_target_above_is_what_the_student_sees_at_the_next_level(module):
    """Where the teacher's one step ends, as the student, who is still the same, takes it from there."""
    plan = DistilPlan(size=2, levels=(1.0, 0.5), guidance=1.0, own=0.0, steps=1)
    batch = Steps(module.recipe, encoding(module.model))._distil(1, plan)
    torch.manual_seed(1)
    error = module.distil_losses(plan, batch)["distil_0"][1]
    model = module.model
    torch.manual_seed(1)
    with torch.no_grad():
        cache = model.new_cache(2)
        model.read(Inputs(batch.input_ids, batch.mask), cache)
        x = torch.randn_like(model.codec.encode(batch.pixels))
        v = model.velocity(x, torch.ones(2), cache)
        behind = x - 0.5 * v
        target = behind - 0.5 * model.velocity(behind, torch.full((2,), 0.5), cache)
    torch.testing.assert_close(error, distance(x - v, target), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("own", [0.0, 0.5, 1.0])
def test_states_hold_scenes_and_what_the_student_draws(module, own, monkeypatch):
    from omni import training_student

    seen = []

    def noted(data, noise, t):
        seen.append(data)
        return interpolate(data, noise, t)

    monkeypatch.setattr(training_student, "interpolate", noted)
    plan = DistilPlan(size=4, levels=STUDENT, guidance=2.0, own=own)
    batch = Steps(module.recipe, encoding(module.model))._distil(0, plan)
    module.distil_losses(plan, batch)
    scenes, drawn = module.model.codec.encode(batch.pixels), round(own * 4)
    assert len(seen) == len(STUDENT)
    torch.testing.assert_close(seen[0], scenes)
    for data in seen[1:]:
        torch.testing.assert_close(data[drawn:], scenes[drawn:])
        assert not drawn or (data[:drawn] - scenes[:drawn]).abs().mean() > 0.05


def test_the_loss_reaches_the_denoiser_alone_and_falls(module):
    plan = DistilPlan(**PLAN | {"size": 6})
    frozen = {name: value.clone() for name, value in module.state_dict().items() if "model.denoiser" not in name}
    teacher = {name: value.clone() for name, value in module.distillation.teacher.state_dict().items()}
    optimizer = torch.optim.Adam(list(module.model.parameters()), lr=2e-3)
    first = losses(module, plan)["distil"][1].item()
    for step in range(1, 25):
        module.train()
        parts = losses(module, plan, step)
        sum(weight * loss for weight, loss in parts.values()).backward()
        moved = {n.split(".")[0] for n, p in module.model.named_parameters() if p.grad is not None and p.grad.any()}
        assert moved == set(LEARNT)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert losses(module, plan)["distil"][1].item() < 0.8 * first
    assert not any(bool(router.load.any()) or router.balance for router in module._routers())
    for name, value in teacher.items():
        assert torch.equal(value, module.distillation.teacher.state_dict()[name]), name
    after = module.state_dict()
    changed = {name for name, value in frozen.items() if not torch.equal(value, after[name])}
    assert changed
    assert all(name.startswith("model.latents.") for name in changed)


# -- a run -----------------------------------------------------------------------------------------------------------


def test_the_exported_student_makes_one_forward_pass_at_each_of_its_levels(run, teacher, monkeypatch):
    student, known = omni.load(run / "model"), omni.load(teacher)
    walk = student.config.generation.image
    assert (walk.levels, walk.guidance, walk.eta, walk.solver) == (STUDENT, 1.0, 1.0, "euler")
    assert known.config.generation.image.levels == ()
    asked = []
    velocity = student.velocity
    monkeypatch.setattr(student, "velocity", lambda x, t, *rest: asked.append(t) or velocity(x, t, *rest))
    result = TextToImage(student)(["a red circle", "two green rings"], seed=1)
    assert len(result.images) == 2
    torch.testing.assert_close(torch.stack(asked), torch.tensor(STUDENT)[:, None].expand(-1, 2))
    with pytest.raises(ValueError, match="distilled to 4 fixed ones"):
        TextToImage(student)("a red circle", steps=8)


def test_only_the_denoiser_of_pictures_differs_from_the_teacher(run, teacher):
    before, after = omni.load(teacher).state_dict(), omni.load(run / "model").state_dict()
    assert before.keys() == after.keys()
    changed = {name for name, value in before.items() if not torch.equal(value.bfloat16(), after[name].bfloat16())}
    assert {name.split(".")[0] for name in changed} == set(LEARNT)
    assert not [name for name in changed if name.endswith("router.bias")]
    taught = state(run)
    for name in (n for n in before if n.split(".")[0] in LEARNT):
        torch.testing.assert_close(taught[f"distillation.teacher.{name}"], before[name].float(), msg=name)


def test_the_run_logs_every_level_and_probes_its_pictures(run):
    (metrics,) = run.glob("csv/*/metrics.csv")
    with metrics.open(newline="") as file:
        logged = list(csv.DictReader(file))
    assert {"distil", *(f"distil_{i}" for i in range(4))} <= set(logged[0])
    with (run / "probes.csv").open(newline="") as file:
        (probe,) = csv.DictReader(file)
    assert 0 <= float(probe["drawn_right"]) <= 1


def test_resuming_is_exact(run, fresh, teacher, tmp_path, monkeypatch):
    """Two steps, a crash, two more: the checkpoint holds the teacher, which is not given again."""
    step = OmniTraining.training_step

    def crash_at_two(self, batch, index):
        if self.global_step == 2:
            raise RuntimeError("power failure")
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(OmniTraining, "training_step", crash_at_two)
        with pytest.raises(RuntimeError, match="power failure"):
            train(fresh, out=tmp_path, init=teacher)
    halfway = state(tmp_path)
    train(fresh, out=tmp_path)
    whole, resumed = state(run), state(tmp_path)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    assert any(not torch.equal(value, halfway[name]) for name, value in whole.items())


# -- refusals --------------------------------------------------------------------------------------------------------


def test_a_student_needs_a_teacher(fresh, teacher, tmp_path):
    with pytest.raises(ValueError, match="distil needs a teacher"):
        train(fresh, out=tmp_path)
    module = build(load_recipe(fresh))
    load_weights(module, teacher)
    assert module.distillation.taught
    own = module.model.state_dict()
    for name, value in module.distillation.teacher.state_dict().items():
        assert torch.equal(value, own[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": [0.9, 0.5]}, r"levels is \[0.9, 0.5\]; it must be numbers that fall from 1"),
        ({"levels": [1.0, 0.5, 0.5]}, "levels is"),
        ({"levels": [1.0, 0.0]}, "levels is"),
        ({"levels": []}, "levels is"),
        ({"levels": "1, 0.5"}, "levels is"),
        ({"levels": [1.0, "half"]}, "levels is"),
        ({"guidance": -1}, "guidance is -1"),
        ({"steps": 0}, "steps is 0"),
        ({"own": 1.5}, "own is 1.5"),
        ({"full": -0.1}, "full is -0.1"),
        ({"size": 0}, "size is 0"),
        ({"mixture": {}}, "mixture is {}"),
        ({"every": 2}, r"no fields \['every'\]"),
    ],
)
def test_bad_plans_are_refused(tmp_path, change, message):
    stage = {"name": "student", "steps": 1, "lr": 1e-3, "distil": PLAN | change}
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe_file(tmp_path, stages=[stage]))


def test_what_does_not_go_together_is_refused(tmp_path):
    stage = {"name": "student", "steps": 1, "lr": 1e-3, "distil": PLAN}
    with pytest.raises(ConfigError, match=r"has distil and \['draw'\]"):
        load_recipe(recipe_file(tmp_path, stages=[stage | {"draw": {"size": 1}}]))
    for other in ({"distil": PLAN | {"levels": [1.0, 0.5]}}, {"distil": None, "draw": {"size": 1}}):
        with pytest.raises(ConfigError, match="must be the same in all stages"):
            load_recipe(recipe_file(tmp_path, stages=[stage, stage | other]))


def test_the_recipe_that_ships_is_of_the_published_levels():
    from omni.assets import find_assets

    for preset in ("cpu", "h200"):
        assert load_recipe(find_assets() / "recipes" / "student.yaml", preset).levels == STUDENT


def test_the_shipped_student_holds_its_denoiser_alone_and_draws_what_is_asked():
    stored = load_file(find_folder("tiny-4step") / "model.safetensors")
    assert {tensor.split(".")[0] for tensor in stored} == set(LEARNT)
    student, known = omni.load("tiny-4step"), omni.load("tiny")
    own = student.state_dict()
    for name, value in known.state_dict().items():
        if name.split(".")[0] not in LEARNT:
            assert torch.equal(own[name], value), name
    assert {value.dtype for name, value in stored.items() if name.endswith("in_proj.weight")} == {torch.float8_e4m3fn}
    assert student.config == replace(known.config, generation=student.config.generation)
    asked = [("red", "circle"), ("blue", "square"), ("green", "ring"), ("yellow", "cross")]
    drawn = TextToImage(student)([f"a {color} {shape}" for color, shape in asked], seed=3)
    requests = [Request((Want(shape=shape, color=color),)) for color, shape in asked]
    right = [check(np.asarray(p.convert("RGB")), r) for p, r in zip(drawn.images, requests, strict=True)]
    assert sum(right) >= 3, right
