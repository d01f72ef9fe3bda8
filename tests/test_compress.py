"""Cutting a system: what is left computes what the whole does with the same units at zero, along every axis."""

import copy
import json

import pytest
import torch
from micro import MICRO, micro_model

import omni
from omni import cli
from omni.compress import Grid, Kept, Nested, Task, choose, compress, cut, measure, run, whole, write
from omni.compress.axes import shaped, within
from omni.compress.elastic import first
from omni.compress.importance import best
from omni.compress.run import check_target
from omni.compress.surgery import COUPLED, check_shapes, cut_state
from omni.compress_inputs import calibration
from omni.config import (
    AttentionConfig,
    ConfigError,
    MambaConfig,
    MLPConfig,
    MoEConfig,
    MTPConfig,
    OmniConfig,
    RotaryConfig,
    SoundConfig,
    TowerConfig,
    replace,
)
from omni.families import preset, presets, save
from omni.inputs import Inputs
from omni.model import Omni
from omni.tensorfile import read_json

EPS = 1e-12  # of norms: what is zero must not be told from what is not there by it
CONTEXT = TowerConfig(
    pattern="M*-EM*E-",
    d_model=30,
    norm_eps=EPS,
    mamba=MambaConfig(n_heads=6, head_dim=5, d_state=7, n_groups=2, chunk_size=16, norm_eps=EPS, bias=True),
    attention=AttentionConfig(
        n_heads=6, n_kv_heads=3, head_dim=8, qk_norm=True, rotary=RotaryConfig(sections=(2, 1, 1)), bias=True
    ),
    mlp=MLPConfig(d_ff=13, activation="silu", bias=True),
    moe=MoEConfig(n_experts=6, n_active_experts=2, d_ff=9, d_shared=11, d_latent=14),
)
PLAIN = replace(CONTEXT, mlp=MLPConfig(d_ff=13), moe=replace(CONTEXT.moe, d_latent=None))
SIZES = {
    "d_model": 23,
    "d_ff": 10,
    "mamba_heads": 4,
    "mamba_head_dim": 3,
    "attention_heads": 3,
    "experts": 4,
    "expert_ff": 5,
    "shared_ff": 7,
    "latent": 9,
}


def system(tower: TowerConfig, seed: int = 0) -> Omni:
    """Encoders, a drafter, a denoiser of other widths: everything that reads the context tower."""
    noisy = replace(MICRO.denoiser, pattern=tower.pattern, d_model=26, **parts(tower))
    sound = SoundConfig(d_model=16, n_layers=1, n_heads=2, d_ff=32, n_mels=16, channels=8, d_projector=24)
    special = {**MICRO.special_tokens, "sound": 16}
    model = micro_model(
        context=tower, denoiser=noisy, sound=sound, mtp=MTPConfig(pattern="*E-"), special_tokens=special
    )
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".norm." in name or value.dim() < 2:
                value.add_(0.2 * torch.randn_like(value))
    return model


def parts(tower: TowerConfig) -> dict:
    """Sizes of a denoiser: its own where nothing couples them."""
    return {
        "mamba": tower.mamba,
        "attention": replace(tower.attention, n_heads=9),
        "mlp": MLPConfig(d_ff=12),
        "moe": replace(tower.moe, n_experts=3, d_ff=6, d_latent=None),
    }


def inputs(seed: int = 0) -> Inputs:
    """Two rows of different lengths, with a picture and a sound."""
    torch.manual_seed(seed)
    ids = torch.randint(30, 126, (2, 21))
    ids[0, 3:7], ids[1, 5:7] = 14, 16
    mask = torch.ones(2, 21, dtype=torch.bool)
    mask[1, 17:] = False
    return Inputs(ids, mask, pixels=(torch.rand(3, 32, 32),), sounds=(torch.randn(16, 16),))


@torch.no_grad()
def outputs(model: Omni, seed: int = 0) -> dict[str, torch.Tensor]:
    """Logits, those of the drafter, and the velocity of a noisy picture over the prompt."""
    read = inputs(seed)
    embedded, hidden = model.read_both(read)
    ahead = model.predict(model.mtp(embedded[:, 1:], hidden[:, :-1], mask=read.mask[:, 1:]))
    cache = model.new_cache(2)
    model.read(read, cache, last=0)
    torch.manual_seed(seed)
    velocity = model.velocity(torch.randn(2, 3, 16, 16), torch.tensor([0.3, 0.8]), cache)
    real = read.mask
    return {"logits": model.predict(hidden)[real], "ahead": ahead[real[:, 1:]], "velocity": velocity}


def assert_same(found: dict, wanted: dict) -> None:
    for name, value in wanted.items():
        error = float((found[name] - value).norm() / value.norm())
        assert error < 1e-4, f"{name}: {error}"


def drawn(model: Omni, sizes: dict[str, int], seed: int) -> Kept:
    """Random units of ``sizes``, in any order; as many of each group."""
    torch.manual_seed(seed)
    every, groups = whole(model.config), {"mamba_heads": 2, "attention_heads": 3}

    def some(axis: str, index: torch.Tensor) -> torch.Tensor:
        size = sizes.get(axis, index.shape[-1])
        return best(torch.rand(index.shape[-1]), size, groups.get(axis, 1))

    units = {block: {axis: some(axis, index) for axis, index in own.items()} for block, own in every.units.items()}
    for own in units.values():
        if "experts" in own:
            own["expert_ff"] = torch.stack([some("expert_ff", torch.arange(9)) for _ in own["experts"]])
    return Kept(every.layers, some("d_model", every.d_model), units)


def gone(kept: torch.Tensor, size: int) -> torch.Tensor:
    return torch.tensor([i for i in range(size) if i not in kept.tolist()], dtype=torch.int64)


@torch.no_grad()
def masked(model: Omni, kept: Kept) -> Omni:
    """The whole model with everything that is cut set to zero, written out layer by layer."""
    model = copy.deepcopy(model)
    channels = gone(kept.d_model, model.config.context.d_model)
    model.embed.weight[:, channels] = 0
    for projector in (model.projector, model.sound_projector):
        projector.down_proj.weight[channels] = 0
    model.mtp.eh_proj.weight[channels] = 0
    for block, units in kept.units.items():
        tower, _, number = block.split(".")
        towers = [getattr(model, tower)] + ([model.denoiser] if tower == "context" else [])
        for i, own in enumerate(towers):
            mask_layer(own.blocks[int(number)].mixer, units, channels if i == 0 else None)
    return model


def mask_layer(mixer: torch.nn.Module, units: dict, channels: torch.Tensor | None) -> None:
    """``channels`` None: a denoiser's layer, of which only what is coupled goes."""
    if "mamba_heads" in units:
        mask_mamba(mixer, units)
    if channels is None:
        return
    for out in ("out_proj", "o_proj", "down_proj", "latent_out"):
        layer = getattr(mixer, out, None)
        if isinstance(layer, torch.nn.Linear):
            layer.weight[channels] = 0
            if layer.bias is not None:
                layer.bias[channels] = 0
    if "attention_heads" in units:
        for h in gone(units["attention_heads"], 6).tolist():
            mixer.o_proj.weight[:, 8 * h : 8 * h + 8] = 0
    if "d_ff" in units:
        mixer.down_proj.weight[:, gone(units["d_ff"], 13)] = 0
    if "experts" in units:
        mask_experts(mixer, units, channels)


def mask_mamba(mixer: torch.nn.Module, units: dict) -> None:
    for h in range(6):
        for c in range(5):
            if h not in units["mamba_heads"] or c not in units["mamba_head_dim"]:
                row = 5 * h + c  # of x, which stands behind z
                mixer.in_proj.weight[30 + row] = mixer.in_proj.bias[30 + row] = 0
                mixer.conv1d.bias[row] = 0


def mask_experts(mixer: torch.nn.Module, units: dict, channels: torch.Tensor) -> None:
    mixer.shared_experts.down_proj.weight[channels] = 0
    mixer.shared_experts.down_proj.weight[:, gone(units["shared_ff"], 11)] = 0
    mixer.router.bias[gone(units["experts"], 6)] = float("-inf")  # never chosen
    for e, neurons in zip(units["experts"].tolist(), units["expert_ff"], strict=True):
        mixer.experts.down_proj[e][:, gone(neurons, 9)] = 0
    if "latent" in units:
        mixer.latent_in.weight[gone(units["latent"], 14)] = 0
        mixer.latent_out.weight[:, gone(units["latent"], 14)] = 0
    else:
        mixer.experts.down_proj[:, channels] = 0


@pytest.fixture(scope="module", params=[CONTEXT, PLAIN], ids=["latent", "plain"])
def model(request) -> Omni:
    return system(request.param)


@pytest.mark.parametrize("axis", [*SIZES, "all"])
def test_a_cut_model_is_the_masked_one(model, axis):
    there = set(whole(model.config).sizes())
    sizes = SIZES if axis == "all" else {axis: SIZES[axis]}
    sizes = {a: n for a, n in sizes.items() if a in there}
    for seed in range(1 if sizes else 0):
        kept = drawn(model, sizes, seed)
        small = cut(model, kept)
        assert {a: kept.sizes()[a] for a in sizes} == sizes
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
        assert_same(outputs(small, seed), outputs(masked(model, kept), seed))


def test_masking_matters(model):
    """The comparison above would see a unit that was cut wrongly."""
    kept = drawn(model, {"d_ff": 10}, 0)
    logits = outputs(model)["logits"]
    assert float((outputs(cut(model, kept))["logits"] - logits).norm() / logits.norm()) > 1e-3


def test_the_order_of_units_does_not_matter(model):
    kept = drawn(model, {}, 3)
    assert not torch.equal(kept.d_model, torch.arange(30))
    assert_same(outputs(cut(model, kept)), outputs(model))


def test_removed_layers_go_in_both_towers(model):
    kept = whole(model.config)
    small = cut(model, Kept((0, 1, 3, 6, 7), kept.d_model, {b: u for b, u in kept.units.items() if keeps(b)}))
    assert small.config.context.pattern == small.config.denoiser.pattern == "M*EE-"
    less = copy.deepcopy(model)
    with torch.no_grad():
        for tower in (less.context, less.denoiser):
            for i in (2, 4, 5):
                silence(tower.blocks[i].mixer)
    assert_same(outputs(small), outputs(less))


def keeps(block: str) -> bool:
    return not block.startswith("context") or int(block.rpartition(".")[2]) not in (2, 4, 5)


def silence(mixer: torch.nn.Module) -> None:
    for name in ("out_proj", "o_proj", "down_proj"):
        if hasattr(mixer, name):
            getattr(mixer, name).weight.zero_()
            if getattr(mixer, name).bias is not None:
                getattr(mixer, name).bias.zero_()


def test_what_does_nothing_is_what_goes():
    """Units whose activations are zero score lowest, and without them nothing changes."""
    model = system(CONTEXT)
    sizes = {axis: SIZES[axis] for axis in ("d_model", "d_ff", "mamba_heads", "mamba_head_dim", "shared_ff", "latent")}
    quiet = silenced(masked(model, lost := drawn(model, sizes, 5)), lost)
    kept = choose(quiet.config.context, measure(quiet, [inputs(0), inputs(1)]), tuple(range(8)), sizes)
    assert set(kept.d_model.tolist()) == set(lost.d_model.tolist())
    assert_same(outputs(cut(quiet, kept)), outputs(quiet))


@torch.no_grad()
def silenced(model: Omni, kept: Kept) -> Omni:
    """Masked neurons and latent channels are not even computed."""
    for block, units in kept.units.items():
        tower, _, number = block.split(".")
        mixer = getattr(model, tower).blocks[int(number)].mixer
        if "d_ff" in units:
            mixer.up_proj.weight[gone(units["d_ff"], 13)] = 0
            mixer.up_proj.bias[gone(units["d_ff"], 13)] = 0
        if "latent" in units:
            mixer.shared_experts.up_proj.weight[gone(units["shared_ff"], 11)] = 0
            mixer.experts.down_proj[:, gone(units["latent"], 14)] = 0
    return model


def test_importance_of_a_layer_is_its_formula():
    """Without padding, of one layer, by hand."""
    model = system(CONTEXT)
    ids = torch.randint(30, 126, (3, 9), generator=torch.Generator().manual_seed(0))
    caught = {}
    mixer, moe = model.context.blocks[2].mixer, model.context.blocks[3].mixer
    mixer.down_proj.register_forward_pre_hook(lambda module, args: caught.update(ff=args[0]))
    moe.register_forward_pre_hook(lambda module, args: caught.update(x=args[0]))
    scores = measure(model, [Inputs(ids[:2]), Inputs(ids[2:])])
    with torch.no_grad():
        model.logits(ids)
        wanted = caught["ff"].abs().mean(dim=1).square().sum(dim=0).sqrt()
        torch.testing.assert_close(scores.units["context.blocks.2"]["d_ff"].float(), wanted)
        flat = caught["x"].flatten(0, 1)
        chosen, _ = moe.router(flat)
        own = moe.latent_in(flat)[(chosen == 1).any(dim=-1)]
        made = (own @ moe.experts.up_proj[1].T).relu().square() @ moe.experts.down_proj[1].T
    torch.testing.assert_close(scores.units["context.blocks.3"]["experts"][1].float(), made.norm(dim=-1).mean())


def test_padding_counts_nowhere():
    model = system(CONTEXT)
    ids = torch.randint(30, 126, (1, 12), generator=torch.Generator().manual_seed(1))
    padded = torch.cat([torch.full((1, 5), 21), ids], dim=1)
    mask = torch.tensor([[False] * 5 + [True] * 12])
    plain, left = measure(model, [Inputs(ids)]), measure(model, [Inputs(padded, mask)])
    torch.testing.assert_close(plain.d_model, left.d_model, rtol=1e-4, atol=1e-6)
    for block, own in plain.units.items():
        if block.startswith("context"):
            for what, value in own.items():
                torch.testing.assert_close(left.units[block][what], value, rtol=1e-4, atol=1e-6)


def test_heads_are_compared_within_their_group():
    scores = torch.tensor([9.0, 8.0, 7.0, 1.0, 3.0, 2.0])
    assert best(scores, 2, groups=2).tolist() == [0, 4]
    assert best(scores, 4, groups=2).tolist() == [0, 1, 4, 5]
    assert best(scores, 2).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"mamba_heads": 3}, "mamba_heads is 3; it must be from 2 to 6 and a multiple of 2"),
        ({"attention_heads": 4}, "multiple of 3"),
        ({"experts": 1}, "experts is 1; it must be from 2 to 6"),
        ({"d_model": 31}, "d_model is 31; it must be from 1 to 30"),
        ({"d_ff": 0}, "d_ff is 0"),
        ({"width": 3}, "'width' is no axis"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes, message):
    model = system(CONTEXT)
    scores = measure(model, [inputs()])
    with pytest.raises(ConfigError, match=message):
        choose(model.config.context, scores, tuple(range(8)), sizes)
    with pytest.raises(ConfigError, match=message):
        shaped(model.config, range(8), sizes)


@pytest.mark.parametrize("layers", [(), (1, 0), (0, 0), (0, 8), (-1,)])
def test_layers_that_cannot_be_are_refused(layers):
    with pytest.raises(ConfigError, match="layers to keep"):
        shaped(MICRO, layers, {})


def test_layers_of_one_letter_must_have_one_size(model):
    kept = drawn(model, {}, 0)
    kept.units["context.blocks.2"]["d_ff"] = torch.arange(5)
    with pytest.raises(ConfigError, match="d_ff"):
        cut(model, kept)


def test_a_tensor_that_was_not_cut_is_noticed(monkeypatch):
    model = system(CONTEXT)
    monkeypatch.delitem(COUPLED, "mixer.D")
    with pytest.raises(ConfigError, match=r"context\.blocks\.0\.mixer\.D"):
        cut(model, drawn(model, {"mamba_heads": 4}, 0))
    with pytest.raises(ConfigError, match="were not cut"):
        check_shapes(model, {})


def test_deepstack_follows_its_layers():
    vision = replace(MICRO.vision, n_layers=3, deepstack=((0, 1), (2, 3)))
    context = replace(CONTEXT, pattern="M*-EM")
    config = OmniConfig(vocab_size=8, context=context, vision=vision)
    assert shaped(config, (0, 1, 3), {}).vision.deepstack == ((0, 1), (2, 2))
    assert shaped(config, (0, 2, 4), {}).vision.deepstack == ((0, 0), (2, 1))
    with pytest.raises(ConfigError, match="DeepStack"):
        shaped(config, (0, 4), {})
    with pytest.raises(ConfigError, match="DeepStack"):
        shaped(config, (2, 3), {})


def test_a_cut_model_loads_like_any_other(tmp_path, model):
    small = cut(model, drawn(model, {"d_model": 23, "mamba_heads": 2, "experts": 3}, 0))
    save(small, tmp_path / "small")
    loaded = omni.load(tmp_path / "small", device="cpu")
    assert loaded.config.context.d_model == 23
    assert_same(outputs(loaded), outputs(small))


@pytest.mark.parametrize("name", ["nano-12b-v2", "nemotron-3-super-120b"])
def test_published_systems_can_be_cut_on_the_meta_device(name):
    """Every tensor of a real model has a place in the table: shapes only."""
    config = preset(name)
    with torch.device("meta"):
        state = Omni(config).state_dict()
    sizes = {"d_model": config.context.d_model - 128, "mamba_heads": config.context.mamba.n_heads - 8}
    sizes |= {"d_ff": 15_680} if config.context.mlp else {"experts": 504, "latent": 896, "shared_ff": 5120}
    kept = first(config, sizes)
    keeps = tuple(range(0, config.context.n_layers, 2))
    own = {b: u for b, u in kept.units.items() if not b.startswith("context") or int(b.split(".")[2]) in keeps}
    own = {b: {a: i.to("meta") for a, i in u.items()} for b, u in own.items()}
    kept = Kept(keeps, kept.d_model, {b: kept.units[b] for b in own})
    with torch.device("meta"):
        small = Omni(shaped(config, keeps, sizes))
    check_shapes(small, cut_state(config, state, kept))


def test_presets_that_are_cuts_of_others():
    big = preset("nano-12b-v2")
    found = {name for name, p in presets().items() if within(big, p.config)}
    assert {"nano-9b-v2", "nano-12b-v2", "nemotron-3-nano-4b"} <= found
    assert not within(preset("nano-9b-v2"), big)
    assert not within(big, preset("nemotron-3-nano-30b"))


# -- nested --------------------------------------------------------------------------------------------------------


def test_nested_widths_are_the_first_units_and_learn_in_the_whole(model):
    sizes = {a: n for a, n in SIZES.items() if a in whole(model.config).sizes()}
    nested = Nested(model, sizes)
    small = cut(model, first(model.config, sizes))
    read = inputs()
    model.zero_grad()
    logits = nested(Omni.logits, read)
    torch.testing.assert_close(logits, small.logits(read))
    logits[read.mask].square().mean().backward()
    small.logits(read)[read.mask].square().mean().backward()
    grad, wanted = model.context.blocks[2].mixer.up_proj.weight.grad, small.context.blocks[2].mixer.up_proj.weight.grad
    torch.testing.assert_close(grad[:10, :23], wanted)
    assert not grad[10:].any()
    assert not grad[:, 23:].any()


def test_a_cut_model_holds_its_best_units_first():
    model = system(CONTEXT)
    scores = measure(model, [inputs(0), inputs(1)])
    layers = tuple(range(8))
    large = cut(model, choose(model.config.context, scores, layers, {"d_ff": 11, "mamba_heads": 4}))
    again = cut(large, first(large.config, {"d_ff": 7, "mamba_heads": 2}))
    at_once = cut(model, choose(model.config.context, scores, layers, {"d_ff": 7, "mamba_heads": 2}))
    assert_same(outputs(again), outputs(at_once))


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    check_target(tmp_path / "new")
    check_target(tmp_path)
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(ValueError, match="is there already"):
        check_target(tmp_path)


# -- checkpoints ---------------------------------------------------------------------------------------------------


def halved(model: Omni, source, target):
    """Compressed to a shape and written as the command does."""
    torch.manual_seed(0)
    read = [Inputs(torch.randint(30, 126, (2, 9))) for _ in range(2)]
    sizes = {axis: 24 for axis in ("d_model", "d_ff") if axis in whole(model.config).sizes()}
    small, kept, report = compress(model, read, Task(grid=Grid(fixed=sizes), layers={"layers": 2}), name="m")
    return small, write(small, kept, report, source, target)


def test_a_compressed_folder_keeps_its_layout_and_its_tokenizer(tmp_path):
    """A dense hybrid in the published layout, in bfloat16."""
    torch.manual_seed(0)
    tower = TowerConfig(
        pattern="M-*",
        d_model=32,
        mamba=MambaConfig(n_heads=4, head_dim=8, d_state=8, n_groups=2),
        attention=AttentionConfig(n_heads=4, n_kv_heads=2, head_dim=8),
        mlp=MLPConfig(d_ff=40),
    )
    model = Omni(OmniConfig(vocab_size=320, context=tower, special_tokens={"bos": 1, "eos": 2, "pad": 21})).bfloat16()
    source = tmp_path / "source"
    save(model, source, family="nemotron_h")
    (source / "tokenizer_config.json").write_text("{}")
    loaded = omni.load(source, device="cpu")
    small, folder = halved(loaded, source, tmp_path / "small")
    again = omni.load(folder, device="cpu")
    assert read_json(folder / "config.json")["model_type"] == "nemotron_h"
    assert (folder / "tokenizer_config.json").exists()
    assert again.dtype == torch.bfloat16
    assert again.config.context.n_layers == 2
    ids = torch.randint(30, 126, (1, 7))
    torch.testing.assert_close(again.logits(ids), small.logits(ids))
    assert not list(tmp_path.glob("*.part"))
    told = read_json(folder / "compression.json")
    assert len(told["kept"]["d_model"]) == 24
    assert told["chosen"]["layers"]["layers"] == 2


def test_nothing_is_left_of_a_folder_that_could_not_be_written(tmp_path, monkeypatch):
    source = tmp_path / "source"
    save(micro_model(), source)

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(run, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        halved(omni.load(source, device="cpu"), source, tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_the_command_compresses_a_folder(tmp_path, capsys):
    source, out = tmp_path / "source", tmp_path / "small"
    model = micro_model()
    save(model, source)
    model.tokenizer.save(source)
    arguments = ["compress", str(source), "-o", str(out), "--calibrate", "4", "--json"]
    assert cli.main([*arguments, "--shape", "d_model=20,experts=3,layers=2"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["layers"]["layers"] == 2
    assert omni.load(out, device="cpu").config.context.d_model == 20
    assert (out / "report" / "report.md").exists()
    assert not (tmp_path / "small.depth.json").exists()
    assert cli.main([*arguments, "--shape", "d_model=20"]) == 1
    assert "is there already" in capsys.readouterr().err


# -- calibration ---------------------------------------------------------------------------------------------------


def test_calibration_is_of_what_the_model_can_read():
    model = micro_model()
    found = calibration(model, 16, seed=3)
    assert [bool(batch.pixels) for batch in found] == [False, True, True, False]
    assert all(batch.input_ids.shape[0] == 4 for batch in found)
    again = calibration(model, 16, seed=3)
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(found, again, strict=True))
    measure(model, found)


def test_calibration_of_a_file(tmp_path):
    model, path = micro_model(), tmp_path / "lines.txt"
    path.write_text("one\n\na longer line\ntwo\nthree\nfour\n")
    found = calibration(model, 4, data=path, width=5)
    assert sum(len(batch.input_ids) for batch in found) == 4
    assert max(batch.input_ids.shape[1] for batch in found) == 5
    path.write_text("\n \n")
    with pytest.raises(ValueError, match="holds no text"):
        calibration(model, 4, data=path)
    with pytest.raises(ValueError, match="cannot be read"):
        calibration(model, 4, data=tmp_path / "none.txt")
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="cannot be read"):
        calibration(model, 4, data=path)
    model.tokenizer = None
    with pytest.raises(ValueError, match="has no tokenizer"):
        calibration(model, 4)
