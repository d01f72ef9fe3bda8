"""What shapes cost and which fit: against the model itself, the caches, and what was published."""

import json
import random

import pytest
import torch
from micro import MICRO, micro_model

from omni import cli
from omni.cache import cache_bytes
from omni.compress import (
    Grid,
    Judge,
    Limits,
    Ruler,
    Task,
    Use,
    compress,
    cut,
    plan,
    rank,
    search,
    shaped,
    whole,
    widths,
)
from omni.compress.axes import least, unit
from omni.compress.depth import DepthOrder, skipping
from omni.compress.search import Damages, all_depths, grid_values, spread
from omni.config import AttentionConfig, ConfigError, MLPConfig, TowerConfig, replace
from omni.families import preset
from omni.info import describe, sequence_state
from omni.inputs import Inputs
from omni.model import Omni

GIB = 1 << 30
A10G = int(19.66 * GIB)
SHAPE_9B = {"d_model": 4480, "d_ff": 15_680, "mamba_heads": 128}
CONTEXT = replace(
    MICRO.context,
    pattern="M*-E*M",
    mlp=MLPConfig(d_ff=48),
    attention=AttentionConfig(n_heads=2, n_kv_heads=1, head_dim=16),
)


def small(**changes):
    noisy = replace(MICRO.denoiser, pattern=CONTEXT.pattern, mlp=CONTEXT.mlp, attention=CONTEXT.attention)
    return micro_model(context=CONTEXT, denoiser=noisy, **changes)


def batches(count: int = 3, seed: int = 0) -> list[Inputs]:
    torch.manual_seed(seed)
    return [Inputs(torch.randint(30, 126, (2, 17))) for _ in range(count)]


# -- costs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["nano-12b-v2", "nemotron-3-nano-30b", "nemotron-3-super-120b", "omni-tiny", "omni-tiny-act", "cosmos3-edge"],
)
def test_parameters_are_counted_as_they_are(name):
    """A random shape of systems with all kinds of parts, against the model on the meta device."""
    config, draw = preset(name), random.Random(name)
    ruler = Ruler(config, Use())
    tower = config.context
    sizes = {}
    for axis, size in widths(tower).items():
        low, step = least(tower, axis), unit(tower, axis)
        sizes[axis] = draw.randrange(max(low, size // 2 // step * step), size + 1, step)
    layers = (
        range(tower.n_layers)
        if config.vision and config.vision.deepstack
        else sorted(draw.sample(range(tower.n_layers), 5))
    )
    shape = shaped(config, layers, sizes)
    with torch.device("meta"):
        wanted = sum(t.numel() for t in Omni(shape).state_dict().values())
    assert ruler.costs(shape).total == wanted


def test_costs_are_what_info_and_the_cache_say():
    config = preset("nano-9b-v2")
    costs, state = Ruler(config, Use(131_072)).costs(config), sequence_state(config)
    assert costs.kv == 131_072 * state.kv_per_token
    assert costs.state == state.conv_per_sequence + state.ssm_per_sequence + 8
    assert costs.kv + costs.state == cache_bytes(config.context, 1, 131_072, 2)
    assert costs.total == describe("nano-9b-v2").parameters
    moe = preset("nemotron-3-super-120b")
    assert Ruler(moe, Use()).costs(moe).active == describe("nemotron-3-super-120b").active_without_vocabulary


@pytest.mark.parametrize("bad", [{"context": 0}, {"batch": -1}, {"element": 1.5}])
def test_uses_that_cannot_be(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Use(**bad)


# -- the published search ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched():
    """The 12B under the budget of the 9B: 128k tokens, batch 1, bfloat16; its depth is fixed, as it was first."""
    config = preset("nano-12b-v2")
    ruler, grid = Ruler(config, Use(131_072)), Grid()
    depths = all_depths(config.context, grid, {"layers": 56, "attention": 4})
    return ruler, search(ruler, Limits(memory=A10G), grid, depths, top=20_000)


def test_the_published_9b_is_among_the_candidates(searched):
    _, found = searched
    counts = {"M": 27, "*": 4, "-": 25}
    (own,) = [c for c in found.best if SHAPE_9B.items() <= c.widths.items() and c.counts == counts]
    config = preset("nano-9b-v2")
    assert own.costs == Ruler(config, Use(131_072)).costs(config)
    assert own.costs.total == 8_888_227_328
    assert own.costs.weights == 2 * own.costs.total
    assert own.costs.kv == 2 * GIB
    assert own.costs.memory / GIB == pytest.approx(16.556 + 2.0 + 0.1337, abs=1e-3)
    assert len(found.best) == found.fitting


def test_what_is_refused_is_too_large_and_the_largest_come_first(searched):
    _, found = searched
    assert found.looked_at == found.fitting + sum(found.refused.values())
    assert found.refused["memory"] > 0
    memory = [c.costs.memory for c in found.best]
    assert memory == sorted(memory, reverse=True)
    assert memory[0] <= A10G < min(c.costs.memory for c, _ in found.nearest)
    assert all(limit == "memory" for _, limit in found.nearest)


def test_the_plan_says_where_published_shapes_stand(tmp_path):
    task = Task(Limits(memory=A10G), Use(131_072), layers={"layers": 56, "attention": 4})
    report = plan("nano-12b-v2", preset("nano-12b-v2"), task)
    report.save(tmp_path)
    assert not (tmp_path / "importance.png").exists()
    told = json.loads((tmp_path / "report.json").read_text())
    nine = told["published"]["nano-9b-v2"]
    assert nine["refused_by"] is None
    assert 1 < nine["place"] < told["fitting"]
    assert nine["layers"] == {"layers": 56, "mamba": 27, "attention": 4, "mlp": 25}
    text = (tmp_path / "report.md").read_text()
    assert "| nano-9b-v2 (no. " in text
    assert "16.556 | 2.000 | 0.134 | 18.689" in text
    assert f"{told['looked_at']:,} shapes" in text


def test_nothing_that_fits_is_an_error_with_the_closest():
    config = preset("nano-12b-v2")
    with pytest.raises(ConfigError, match=r"fits 2\.000 GiB; the closest of .* needs .* GiB"):
        plan("x", config, Task(Limits(memory=2 * GIB), layers={"layers": 56, "attention": 4}))


# -- the grid ----------------------------------------------------------------------------------------------------------


def test_values_of_the_grid_are_sizes_that_can_be():
    tower = preset("nemotron-3-super-120b").context
    values = grid_values(tower, Grid(), 1)
    for axis, sizes in values.items():
        whole_size = widths(tower)[axis]
        assert sizes[0] == whole_size
        assert sizes == sorted(set(sizes), reverse=True)
        assert all(size % unit(tower, axis) == 0 and size >= 0.6 * whole_size for size in sizes)
    assert values["attention_heads"] == [32]
    assert grid_values(tower, Grid(fixed={"experts": 400}), 1)["experts"] == [400]
    dense = grid_values(preset("nano-12b-v2").context, Grid(), 1)
    assert {4480, 5120} <= set(dense["d_model"])
    assert {15_680, 13_440, 20_480} <= set(dense["d_ff"])


@pytest.mark.parametrize(
    ("grid", "message"),
    [({"axes": ("depth",)}, "depth are no axes"), ({"width": 1.0}, "width is 1.0"), ({"fixed": {"x": 1}}, "x are no")],
)
def test_grids_that_cannot_be(grid, message):
    with pytest.raises(ConfigError, match=message):
        Grid(**grid)


def test_splits_of_layers():
    tower = TowerConfig(
        pattern="M-M-M*-M-", d_model=8, mamba=MICRO.context.mamba, mlp=CONTEXT.mlp, attention=CONTEXT.attention
    )
    found = all_depths(tower, Grid(width=0.5, depth=0.25), {})
    counted = [(len(k), sum(tower.pattern[i] == "M" for i in k)) for k in found]
    assert sorted(counted) == [(7, 2), (7, 3), (7, 4), (8, 3), (8, 4), (9, 4)]
    assert spread(tower, {"M": 2, "-": 4, "*": 1}) == (0, 1, 3, 4, 5, 6, 8)
    with pytest.raises(ConfigError, match="attention is 2; the tower has 1"):
        all_depths(tower, Grid(), {"attention": 2})
    with pytest.raises(ConfigError, match="'heads' is no kind"):
        all_depths(tower, Grid(), {"heads": 2})


def test_damage_between_sizes_is_on_the_line():
    damages = Damages({"d_ff": {10: 0.0, 6: 0.4, 4: 1.0}}, {})
    assert damages.of("d_ff", 8) == pytest.approx(0.2)
    assert damages.of("d_ff", 5) == pytest.approx(0.7)
    assert damages.of("d_ff", 2) == 1.0
    assert damages.of("d_model", 3) == 0.0


# -- layers ------------------------------------------------------------------------------------------------------------


def brute(model: Omni, gone: list[int]) -> float:
    """Mean squared error of the logits without layers, of cut models."""
    every = whole(model.config)
    layers = tuple(i for i in range(6) if i not in gone)
    own = {b: u for b, u in every.units.items() if not b.startswith("context") or int(b.split(".")[2]) in layers}
    less = cut(model, replace(every, layers=layers, units=own))
    with torch.no_grad():
        return float(torch.cat([(less.logits(b) - model.logits(b)).square().flatten() for b in batches()]).mean())


def test_layers_go_by_the_error_of_the_logits():
    model = small()
    order = rank(model, lambda: iter(batches()), 2)
    gone: list[int] = []
    for layer, score in zip(order.layers, order.scores, strict=True):
        errors = {i: brute(model, [*gone, i]) for i in range(6) if i not in gone}
        assert layer == min(errors, key=errors.get)
        assert score == pytest.approx(errors[layer], rel=1e-3)
        gone.append(layer)
    assert order.kept(model.config.context, 4) == tuple(i for i in range(6) if i not in order.layers[:2])


@pytest.mark.parametrize("method", ["mse", "cosine"])
def test_numbers_of_layers_can_be_pinned(method):
    model = small()
    order = rank(model, lambda: iter(batches(1)), 3, method=method, pinned={"*": 1, "E": 1})
    left = "".join(CONTEXT.pattern[i] for i in order.kept(CONTEXT, 3))
    assert left.count("*") == left.count("E") == 1


def test_cosine_takes_the_layer_that_turns_least():
    model = small()
    with torch.no_grad():
        model.context.blocks[2].mixer.down_proj.weight.mul_(1e-3)
    order = rank(model, lambda: iter(batches(1)), 1, method="cosine")
    assert order.layers == (2,)
    assert order.scores[0] < 1e-3


def test_an_order_that_was_broken_off_goes_on(tmp_path):
    model, path, seen = small(), tmp_path / "depth.json", []
    wanted = rank(model, lambda: iter(batches()), 3)
    rank(model, lambda: iter(batches()), 2, journal=path)
    found = rank(model, lambda: iter(batches()), 3, journal=path, advance=seen.append)
    assert found == wanted
    assert len(seen) == 3 * 4  # one round of the four layers that were left
    with pytest.raises(ConfigError, match="belongs to another model or other inputs"):
        rank(model, lambda: iter(batches(seed=1)), 3, journal=path)


def test_skipping_leaves_the_tower_as_it_was():
    model = small()
    before = list(model.context.blocks)
    with pytest.raises(RuntimeError), skipping(model.context, (0, 3)):
        raise RuntimeError
    assert list(model.context.blocks) == before


@pytest.mark.parametrize(
    ("remove", "pinned", "message"),
    [(6, {}, "6 layers are to go"), (2, {"*": 3}, "3 layers '\\*' are to stay"), (1, {"*": 0}, "cannot be met")],
)
def test_orders_that_cannot_be(remove, pinned, message):
    with pytest.raises(ConfigError, match=message):
        rank(small(), lambda: iter(batches(1)), remove, pinned=pinned)
    with pytest.raises(ConfigError, match="3 layers are to stay"):
        DepthOrder("mse", (1,), (0.0,)).kept(CONTEXT, 3)


# -- all of it ---------------------------------------------------------------------------------------------------------


def test_compressing_meets_its_limit_and_takes_the_least_damaged(tmp_path):
    model = small()
    most = int(0.8 * Ruler(model.config, Use()).costs(model.config).parameters)
    grid = Grid(axes=("d_model", "d_ff", "experts"))
    less, kept, report = compress(model, batches(4), Task(Limits(params=most), Use(64), grid, tried=3))
    assert sum(t.numel() for t in less.context.state_dict().values()) <= most
    assert report.chosen.measured == min(c.measured for c in report.found.best)
    assert report.chosen.measured == pytest.approx(Judge(model, batches(4)[::2]).damage(kept))
    assert report.chosen.costs == Ruler(model.config, Use(64)).costs(less.config)
    expected = [c.damage for c in report.found.best]
    assert expected == sorted(expected)
    report.save(tmp_path)
    assert (tmp_path / "importance.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["chosen"]["parameters"] == report.chosen.costs.parameters
    assert set(told["damage"]) >= {"d_model", "layers"}
    assert "## Measured" in (tmp_path / "report.md").read_text()


def test_a_shape_is_taken_as_it_is():
    model = small()
    task = Task(grid=Grid(fixed={"d_ff": 31, "experts": 3}), layers={"layers": 4, "attention": 1, "mlp": 1, "moe": 1})
    less, kept, report = compress(model, batches(2), task)
    assert (less.config.context.mlp.d_ff, less.config.context.moe.n_experts) == (31, 3)
    assert less.config.context.d_model == CONTEXT.d_model
    assert less.config.context.n_layers == 4
    assert less.config.context.pattern.count("*") == 1
    assert report.found.looked_at == 1
    assert kept.sizes()["experts"] == 3


def test_nothing_asked_and_nothing_to_read():
    with pytest.raises(ConfigError, match="nothing is asked for"):
        Task()
    with pytest.raises(ConfigError, match="limit of memory is 0"):
        Limits(memory=0)
    with pytest.raises(ConfigError, match="nothing to calibrate with"):
        compress(small(), [], Task(Limits(params=100)))


# -- the command -------------------------------------------------------------------------------------------------------


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["compress", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_plans_a_preset(capsys, tmp_path):
    shape = "layers=56,attention=4,mamba=27,d_model=4480,d_ff=15680,mamba_heads=128"
    code, out, err = run(capsys, "nano-12b-v2", "--budget", "19.66GiB", "--plan", "--shape", shape, "--json")
    assert (code, err) == (0, "")
    (only,) = json.loads(out)["candidates"]
    assert only["total"] == 8_888_227_328
    assert only["memory"] == only["weights"] + only["kv"] + only["state"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tiny"], 2, "say how small"),
        (["tiny", "--params", "0.5"], 2, "give -o OUT"),
        (["tiny", "--params", "1.5", "--plan"], 2, "neither a share"),
        (["tiny", "--params", "0", "--plan"], 2, "is not a number"),
        (["tiny", "--shape", "d_model", "--plan"], 2, "AXIS=N"),
        (["tiny", "--shape", "d_model=many", "--plan"], 2, "AXIS=N"),
        (["tiny", "--shape", "width=3", "--plan"], 1, "width are no axes"),
        (["tiny", "--shape", "layers=9", "--plan"], 1, "layers is 9; the tower has 8"),
        (["tiny", "--budget", "much", "--plan"], 1, "'much' is not a size"),
        (["tiny", "--budget", "1MiB", "--plan", "--axes", "d_ff"], 1, "no shape of the grid fits"),
        (["no-such-model", "--params", "0.5", "--plan"], 1, "no-such-model"),
    ],
)
def test_bad_usage_is_one_line(capsys, arguments, code, message):
    found, out, err = run(capsys, *arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
