"""A smaller model is taught by the whole one: what is compared, that only the student learns, nested widths, a run."""

import copy

import pytest
import torch
import yaml
from micro import MICRO, micro_model
from safetensors.torch import load_file

import omni
from omni import losses
from omni.compress import cut
from omni.compress.elastic import first
from omni.config import ConfigError, replace
from omni.families import save
from omni.inputs import Inputs
from omni.recipe import load_recipe
from omni.recipe_teach import TeachPlan
from omni.training import build, train
from omni.training_lessons import Lessons, _logits

SIZES = {"d_model": 24, "expert_ff": 9}
NESTED = {"d_model": 16, "experts": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The whole model, and a smaller one."""
    place = tmp_path_factory.mktemp("models")
    model = micro_model()
    for name, own in (("whole", model), ("small", cut(model, first(model.config, SIZES)))):
        save(own, place / name)
        model.tokenizer.save(place / name)
    return place / "whole", place / "small"


@pytest.fixture
def student(folders):
    return omni.load(folders[1], device="cpu")


def recipe_file(folder, folders, **changes):
    plain = {
        "model": str(folders[1]),
        "seed": 3,
        "warmup": 1,
        "log_every": 1,
        "save_every": 2,
        "probe_every": 4,
        "accelerator": "cpu",
        "frozen": ["vision"],
        "teach": {"teacher": str(folders[0]), "nested": [NESTED]},
        "stages": [
            {
                "name": "taught",
                "steps": 2,
                "lr": 2e-3,
                "talk": {"size": 1, "width": 200, "weight": 0},
                "read": {"size": 1, "mixture": {"word": 1}, "weight": 0, "cell_weight": 0, "glyph_weight": 0},
            }
        ],
    }
    path = folder / "taught.yaml"
    path.write_text(yaml.safe_dump(plain | changes))
    return path


def text() -> tuple[Inputs, torch.Tensor]:
    ids = torch.randint(30, 126, (2, 12), generator=torch.Generator().manual_seed(0))
    ids[1, 9:] = 21
    labels = ids.masked_fill(torch.arange(12) < 6, losses.IGNORED).masked_fill(ids == 21, losses.IGNORED)
    return Inputs(ids), labels


@pytest.mark.parametrize("everywhere", [False, True])
def test_the_divergence_is_that_of_the_next_tokens(folders, student, everywhere):
    inputs, labels = text()
    plan = TeachPlan(teacher=str(folders[0]), weight=0.5, temperature=2.0, everywhere=everywhere)
    (name, (weight, loss)), *rest = Lessons(student, plan).parts("talk", inputs, student.read(inputs), labels).items()
    assert (name, weight, rest) == ("talk_taught", 0.5, [])
    taught, own = omni.load(folders[0], device="cpu").logits(inputs) / 2, student.logits(inputs) / 2
    wanted = (inputs.input_ids != 21) if everywhere else (labels != losses.IGNORED)
    each = (taught.softmax(-1) * (taught.log_softmax(-1) - own.log_softmax(-1))).sum(-1)[:, :-1][wanted[:, 1:]]
    torch.testing.assert_close(loss, 4 * each.mean())


def test_a_student_that_is_its_teacher_has_nothing_to_learn(folders):
    model = omni.load(folders[0], device="cpu")
    inputs, labels = text()
    parts = Lessons(model, TeachPlan(teacher=str(folders[0]))).parts("talk", inputs, model.read(inputs), labels)
    assert float(parts["talk_taught"][1]) == pytest.approx(0.0, abs=1e-6)


def test_without_a_plan_nothing_is_taught(student):
    assert Lessons(student, None).parts("talk", *text()[:1], None, None) == {}


def test_a_nested_width_learns_as_if_it_had_been_cut_out(folders, student):
    inputs, labels = text()
    lessons = Lessons(student, TeachPlan(teacher=str(folders[0]), nested=(NESTED,)))
    alone = cut(student, first(student.config, NESTED))
    parts = lessons.parts("talk", inputs, student.read(inputs), labels)
    loss = parts["talk_taught_d_model_16_experts_2"][1]
    wanted = Lessons(alone, TeachPlan(teacher=str(folders[0]))).parts("talk", inputs, alone.read(inputs), labels)
    torch.testing.assert_close(loss, wanted["talk_taught"][1])
    loss.backward()
    wanted["talk_taught"][1].backward()
    grad = student.context.blocks[1].mixer.o_proj.weight.grad
    torch.testing.assert_close(grad[:16], alone.context.blocks[1].mixer.o_proj.weight.grad)
    assert not grad[16:].any()
    assert not any(router.balance for router in alone.modules() if hasattr(router, "balance"))


def test_of_a_pruned_video_the_teacher_sees_the_same_tokens(folders):
    """Two frames of two by two tokens, three of which are left."""
    special = {**MICRO.special_tokens, "video": 15}
    model = micro_model(vision=replace(MICRO.vision, tubelet=1), special_tokens=special)
    kept = torch.tensor([[True, True, False, True], [False, False, False, False]])
    ids = torch.tensor([[40, 15, 15, 15, 41, 42]])
    inputs = Inputs(ids, pixels=(torch.rand(2, 3, 32, 32),), kept=(kept,))
    (tokens,) = model.see_all(inputs.pixels)
    wanted = model.predict(model.read(inputs, seen=[tokens[kept.flatten()]]))
    torch.testing.assert_close(_logits(model, inputs), wanted)


def test_the_teacher_must_speak_the_same_tokens(folders, tmp_path):
    other = micro_model(vocab_size=330)
    with pytest.raises(ConfigError, match="has 320 tokens"):
        Lessons(other, TeachPlan(teacher=str(folders[0])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": ""}, "must name a model"),
        ({"weight": -1}, "weight is -1"),
        ({"temperature": 0}, "temperature is 0"),
        ({"everywhere": 1}, "everywhere is 1"),
        ({"nested": {"d_model": 4}}, "nested is"),
        ({"nested": [{"d_model": 0}]}, "nested is"),
        ({"depth": 2}, "has no fields"),
    ],
)
def test_bad_plans(folders, tmp_path, change, message):
    plain = {"teacher": "tiny", **change}
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe_file(tmp_path, folders, teach=plain))


def test_nested_sizes_that_cannot_be(folders, tmp_path):
    path = recipe_file(tmp_path, folders, teach={"teacher": str(folders[0]), "nested": [{"d_model": 25}]})
    with pytest.raises(ConfigError, match="d_model is 25; it must be from 1 to 24"):
        build(load_recipe(path))


def test_shipped_recipe_is_readable():
    from omni.assets import find_assets

    recipe = load_recipe(find_assets() / "recipes" / "compressed.yaml", "cpu")
    assert recipe.teach.teacher == "tiny"
    assert recipe.stages[0].read.weight == 0


def test_a_run_teaches_the_student_alone(folders, tmp_path):
    """Its checkpoints hold no teacher, the teacher's folder stays as it was, and the result loads."""
    before = {name: copy.deepcopy(value) for name, value in load_file(folders[0] / "model.safetensors").items()}
    folder = train(recipe_file(tmp_path, folders), out=tmp_path / "out")
    state = torch.load(tmp_path / "out" / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    assert not any("teacher" in name or "lesson" in name for name in state)
    after = load_file(folders[0] / "model.safetensors")
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    taught, started = omni.load(folder, device="cpu"), omni.load(folders[1], device="cpu")
    assert (
        taught.config.context
        == started.config.context
        == replace(MICRO.context, d_model=24, moe=replace(MICRO.context.moe, d_ff=9))
    )
    assert not torch.equal(taught.context.norm.weight, started.context.norm.weight)
    same = taught.vision.state_dict(), started.vision.state_dict()
    assert all(torch.equal(value, same[1][name]) for name, value in same[0].items())
    metrics = next((tmp_path / "out" / "csv").glob("*/metrics.csv")).read_text()
    assert "talk_taught_d_model_16_experts_2" in metrics
    assert "read_taught" in metrics
