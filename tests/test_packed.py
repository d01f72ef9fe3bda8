"""Weights that stay packed: every published layout against the decoded weights, memory, round trips, clear errors."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from lowbit_files import CONFIG, build, is_low, published, rewrite, rounded
from safetensors.torch import load_file, save_file

import omni
from omni import families
from omni.checkpoint import CheckpointError
from omni.config import ConfigError
from omni.families.convert import convert
from omni.info import describe
from omni.kernels.experts import routed_experts, routed_experts_by
from omni.layers import Linear
from omni.quantization import modules
from omni.quantization.formats import FORMATS, FP8_TILE, decode, encode
from omni.quantization.modules import PackedExperts, PackedLinear, PackedWeight, packed_weights, set_low_inputs
from omni.quantization.plans import choose, kind_of


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return published(tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def load(folder, **options):
    return omni.load(str(folder), device="cpu", **options)


def ids(rows: int = 2, n: int = 21) -> torch.Tensor:
    return torch.randint(3, CONFIG.vocab_size, (rows, n), generator=torch.Generator().manual_seed(3))


def error(a, b) -> float:
    return float((a - b).abs().max() / b.abs().max())


def noise(*shape, seed: int = 0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# -- modules -----------------------------------------------------------------------------------------------------------


def packed_linear(name: str, rows: int = 300, columns: int = 160, bias: bool = True) -> tuple[PackedLinear, Linear]:
    """A packed layer, and a plain one with the weights that it stands for."""
    torch.manual_seed(1)
    linear = Linear(columns, rows, bias=bias)
    layer = PackedLinear(linear, FORMATS[name])
    layer.fill(encode(linear.weight, FORMATS[name]))
    linear.weight.copy_(layer.decode())
    return layer, linear


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("scratch", [4 << 20, 20_000])
def test_a_packed_layer_is_the_decoded_one(name, scratch, monkeypatch):
    monkeypatch.setattr(modules, "SCRATCH", scratch)
    layer, linear = packed_linear(name)
    assert len(list(layer.pieces(torch.float32))) == (1 if scratch > 1 << 20 else 3)
    for shape in ((160,), (5, 160), (2, 3, 160), (0, 160)):
        torch.testing.assert_close(layer(noise(*shape)), linear(noise(*shape)), rtol=1e-5, atol=1e-5)
    x = noise(7, 160)
    for dtype, bound in ((torch.float64, 1e-6), (torch.bfloat16, 2**-7), (torch.float16, 2**-10)):
        y = layer(x.to(dtype))
        assert y.dtype == dtype
        assert error(y.double(), linear(x.to(dtype).float()).double()) < bound
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["fp8", "fp8_channel", "nvfp4"])
def test_factors_are_never_narrowed(name):
    """A scale that bfloat16 would round by a part in 500 does not shift all that the matrix gives."""
    layer, linear = packed_linear(name, bias=False)
    scale = layer.tensor_scale if hasattr(layer, "tensor_scale") else layer.block_scale
    scale.fill_((1 + 2**-8.97) / 128)  # just short of the middle between two numbers of bfloat16
    linear.weight.copy_(layer.decode())
    x = noise(64, 160).bfloat16()
    expected = linear(x.float())
    shift = float((layer(x).float() * expected).sum() / expected.square().sum())
    assert abs(shift - 1) < 5e-4


@pytest.mark.parametrize("name", FORMATS)
def test_gradients_pass_through_a_packed_layer(name, monkeypatch):
    monkeypatch.setattr(modules, "SCRATCH", 20_000)
    layer, linear = packed_linear(name)
    with torch.enable_grad():
        grads = []
        for module in (layer, linear):
            x = noise(4, 160).requires_grad_()
            (module(x) * noise(4, 300, seed=2)).sum().backward()
            grads.append(x.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_low_inputs_are_the_product_of_both_rounded(name):
    """Weights and inputs are rounded as their formats say, and the product is exact but for the order of its sum."""
    layer, linear = packed_linear(name)
    x = noise(6, 160) * torch.logspace(-1, 1, 6)[:, None]
    layer.low_inputs = True
    format = FP8_TILE if name == "fp8_block" else FORMATS[name]
    held = decode(encode(x, format), format)
    assert not torch.equal(held, x)
    torch.testing.assert_close(layer(x), linear(held), rtol=1e-5, atol=1e-4)
    y = layer(x.bfloat16())
    held = decode(encode(x.bfloat16(), format), format)
    assert error(y.float(), linear(held)) < 2**-7
    assert layer(x[:0]).shape == (0, 300)


def test_the_sum_of_blocks_that_hardware_makes():
    """16 products of codes, times both blocks' scales, summed over blocks, times both tensors' scales."""
    layer, _ = packed_linear("nvfp4", rows=32, columns=64, bias=False)
    layer.register_buffer("input_scale", torch.tensor(0.002))
    layer.low_inputs, x = True, noise(5, 64)
    w, a = layer.packed(), encode(x, FORMATS["nvfp4"], tensor_scale=layer.input_scale)
    codes = [modules.units(p._replace(block_scale=torch.ones_like(p.block_scale)), FORMATS["nvfp4"])[0] for p in (a, w)]
    inner = torch.einsum("tbk,nbk->tnb", *(c.unflatten(-1, (-1, 16)) for c in codes))
    scaled = inner * a.block_scale.float()[:, None] * w.block_scale.float()
    expected = scaled.sum(-1) * a.tensor_scale * w.tensor_scale
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_moving_and_casting_leave_codes_alone():
    layer, _ = packed_linear("nvfp4")
    before = {k: v.clone() for k, v in layer.state_dict().items() if k != "bias"}
    for moved in (
        copy.deepcopy(layer).bfloat16(),
        copy.deepcopy(layer).double().float(),
        copy.deepcopy(layer).to("cpu"),
    ):
        assert moved.bias.dtype in (torch.bfloat16, torch.float32)
        for name, tensor in before.items():
            held = moved.get_buffer(name)
            assert held.dtype == tensor.dtype
            assert torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (held, tensor))), name
    torch.testing.assert_close(copy.deepcopy(layer)(noise(2, 160)), layer(noise(2, 160)))


def test_experts_as_functions_are_the_reference():
    up, down, x = noise(4, 24, 16), noise(4, 16, 24, seed=1), noise(9, 16, seed=2)
    indices, weights = torch.randint(4, (9, 2)), noise(9, 2, seed=3)
    by = routed_experts_by(x, indices, weights, 4, lambda r, e: F.linear(r, up[e]), lambda r, e: F.linear(r, down[e]))
    torch.testing.assert_close(by, routed_experts(x, indices, weights, up, down), rtol=1e-5, atol=1e-4)


# -- published layouts -------------------------------------------------------------------------------------------------


def modelopt(name: str):
    """Fields as Model Optimizer writes them."""

    def low(module, weight):
        codes, block, tensor = encode(weight, FORMATS[name])
        if name == "nvfp4":
            return {"weight": codes, "weight_scale": block, "weight_scale_2": tensor, "input_scale": torch.tensor(0.01)}
        scale = tensor if block is None else block.squeeze(-1) if name == "fp8_channel" else block
        return {
            "weight": codes,
            "weight_scale": scale,
            **({"input_scale": torch.tensor([0.02])} if name == "fp8" else {}),
        }

    return low


def test_modelopt_says_the_algorithm_in_either_file(plain, tmp_path):
    quantization = {
        "quant_algo": "NVFP4",
        "group_size": 16,
        "exclude_modules": ["lm_head", "backbone.layers.2*", "mtp*"],
    }
    inner = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": quantization["exclude_modules"]}
    expected = load(rounded(plain, tmp_path / "rounded", lambda module: "nvfp4")).logits(ids())
    for name, config, extra in (
        ("a", inner, None),
        ("b", {}, {"quantization": quantization}),
        ("c", inner, {"quantization": quantization}),
    ):
        model = load(rewrite(plain, tmp_path / name, modelopt("nvfp4"), config, extra))
        assert error(model.logits(ids()), expected) < 1e-5
        assert set(packed_weights(model)) == {
            "context.blocks.0.mixer.in_proj",
            "context.blocks.0.mixer.out_proj",
            "context.blocks.1.mixer.up_proj",
            "context.blocks.1.mixer.down_proj",
            "context.blocks.3.mixer.experts.up_proj",
            "context.blocks.3.mixer.experts.down_proj",
            "context.blocks.3.mixer.shared_experts.up_proj",
            "context.blocks.3.mixer.shared_experts.down_proj",
        }
        assert model.context.blocks[3].mixer.experts.up_proj.codes.shape == (4, 96, 16)
        assert model.context.blocks[3].mixer.experts.up_proj.input_scale.tolist() == pytest.approx([0.01] * 4)


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [("fp8", "FP8"), ("fp8_channel", "FP8_PER_CHANNEL_PER_TOKEN"), ("mxfp8", "MXFP8"), ("fp8_block", "FP8_PB_WO")],
)
def test_modelopt_fp8(name, algorithm, plain, tmp_path):
    expected = load(rounded(plain, tmp_path / "rounded", lambda module: name)).logits(ids())
    model = load(
        rewrite(plain, tmp_path / "low", modelopt(name), {"quant_algo": algorithm, "quant_method": "modelopt"})
    )
    assert error(model.logits(ids()), expected) < 1e-5
    assert {weight.format.name for weight in packed_weights(model).values()} == {name}


def mixed_format(module: str) -> str:
    return "nvfp4" if ".experts." in module else "fp8"


def test_modelopt_mixed_precision(plain, tmp_path):
    """Every layer has its own algorithm, globs among them; experts in W4A16 never round what enters them."""
    layers = {
        "backbone.layers.3.mixer.experts.*": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
        **{f"backbone.layers.3.mixer.shared_experts.{m}_proj": {"quant_algo": "FP8"} for m in ("up", "down")},
        **{f"backbone.layers.{i}.mixer.{m}": {"quant_algo": "FP8"} for i, m in ((0, "in_proj"), (0, "out_proj"))},
        **{f"backbone.layers.1.mixer.{m}_proj": {"quant_algo": "FP8"} for m in ("up", "down")},
    }
    extra = {
        "quantization": {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": "FP8", "quantized_layers": layers}
    }

    def low(module, weight):
        return modelopt(mixed_format(module))(module, weight)

    model = load(rewrite(plain, tmp_path / "low", low, {}, extra))
    expected = load(rounded(plain, tmp_path / "rounded", mixed_format))
    assert error(model.logits(ids()), expected.logits(ids())) < 1e-5
    assert model.cache_format.kv == "fp8"
    assert model.context.blocks[3].mixer.experts.up_proj.weight_only
    set_low_inputs(model)
    low_ones = {name for name, weight in packed_weights(model).items() if weight.low_inputs}
    assert len(low_ones) == 6
    assert not any(".experts." in name for name in low_ones)


def test_kv_scales_wherever_they_stand(plain, tmp_path):
    config = {"quant_algo": "FP8", "kv_cache_scheme": {"num_bits": 8, "type": "float", "dynamic": False}}
    folder = rewrite(plain, tmp_path / "low", modelopt("fp8"), config)
    tensors = load_file(folder / "model.safetensors")
    for names in (("k_proj.k_scale", "v_proj.v_scale"), ("k_scale", "v_scale")):
        scales = {f"backbone.layers.2.mixer.{n}": torch.tensor([s]) for n, s in zip(names, (0.5, 2.0), strict=True)}
        save_file({**tensors, **scales}, folder / "model.safetensors")
        model = load(folder)
        slot = model.new_cache(1).slots[2]
        assert (slot.k.scale, slot.v.scale) == (0.5, 2.0)
        cache = model.new_cache(2, 32)
        whole = model.logits(ids(), cache)
        assert slot.k.data.dtype == torch.uint8
        assert 0 < error(whole, model.logits(ids(), model.context.new_cache(2))) < 0.1
        families.save(model, tmp_path / names[0], family="nemotron_h")
        again = load(tmp_path / names[0])
        assert (again.new_cache(1).slots[2].k.scale, again.cache_format.kv) == (0.5, "fp8")


def compressed(name: str):
    """Fields as compressed-tensors writes them: global scales divide."""

    def low(module, weight):
        codes, block, tensor = encode(weight, FORMATS[name])
        if name == "nvfp4":
            divisors = {"weight_global_scale": tensor.reciprocal()[None], "input_global_scale": torch.tensor([50.0])}
            return {"weight_packed": codes, "weight_scale": block, **divisors}
        if name == "mxfp4":
            return {"weight_packed": codes, "weight_scale": block}
        return {"weight": codes, "weight_scale": (tensor[None] if block is None else block).bfloat16()}

    return low


COMPRESSED = {
    "nvfp4": ("nvfp4-pack-quantized", {"num_bits": 4, "group_size": 16, "strategy": "tensor_group"}),
    "mxfp4": ("mxfp4-pack-quantized", {"num_bits": 4, "group_size": 32, "strategy": "group"}),
    "fp8": ("float-quantized", {"num_bits": 8, "strategy": "tensor"}),
    "fp8_channel": ("float-quantized", {"num_bits": 8, "strategy": "channel"}),
}


def compressed_config(name: str, **weights) -> dict:
    style, own = COMPRESSED[name]
    group = {"weights": {"type": "float", "symmetric": True, **own, **weights}, "targets": ["Linear"]}
    ignore = ["lm_head", "re:.*mixer.[qkvo]_proj$", "re:mtp.*"]
    return {
        "quant_method": "compressed-tensors",
        "format": style,
        "config_groups": {"group_0": group},
        "ignore": ignore,
    }


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_tensors(name, plain, tmp_path):
    model = load(rewrite(plain, tmp_path / "low", compressed(name), compressed_config(name)))
    expected = load(rounded(plain, tmp_path / "rounded", lambda module: name)).logits(ids())
    assert error(model.logits(ids()), expected) < (1e-5 if "fp4" in name else 0.05)  # its scales are bfloat16
    if name == "nvfp4":
        assert model.context.blocks[0].mixer.in_proj.input_scale == pytest.approx(1 / 50)
    if name == "mxfp4":
        with pytest.raises(ValueError, match="mxfp4 have no name in ModelOpt's layout"):
            families.save(model, tmp_path / "never", family="nemotron_h")
        assert not (tmp_path / "never").exists()


def test_fp8_in_blocks_of_128(plain, tmp_path):
    def low(module, weight):
        codes, block, _ = encode(weight, FORMATS["fp8_block"])
        return {"weight": codes, "weight_scale_inv": block}

    config = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    model = load(rewrite(plain, tmp_path / "low", low, config))
    expected = load(rounded(plain, tmp_path / "rounded", lambda module: "fp8_block")).logits(ids())
    assert error(model.logits(ids()), expected) < 1e-5
    assert {w.format.name for w in packed_weights(model).values()} == {"fp8_block"}


# -- what is refused ---------------------------------------------------------------------------------------------------


def without(ending: str, name: str = "nvfp4"):
    def low(module, weight):
        return {k: v for k, v in modelopt(name)(module, weight).items() if k != ending}

    return low


def changed(ending: str, change, name: str = "nvfp4"):
    def low(module, weight):
        held = modelopt(name)(module, weight)
        return {**held, ending: change(held[ending])}

    return low


def first_only(module, weight):
    """Of the experts only the first is quantised."""
    return modelopt("fp8")(module, weight) if module.endswith((".experts.0.up_proj",)) else {"weight": weight}


NVFP4, FP8 = {"quant_algo": "NVFP4"}, {"quant_algo": "FP8"}
REFUSED = {
    "no block scale": (without("weight_scale"), NVFP4, r"lacks its weight_scale"),
    "no tensor scale": (without("weight_scale_2"), NVFP4, r"is nvfp4 and lacks its tensor scale"),
    "no scale of FP8": (without("weight_scale", "fp8"), FP8, r"lack their weight_scale|lacks its weight_scale"),
    "no weight": (without("weight"), NVFP4, r"has scales \(.*\) and no weight"),
    "another format": (modelopt("fp8"), NVFP4, "is stored as fp8; the configuration says nvfp4"),
    "another group": (modelopt("nvfp4"), {**NVFP4, "group_size": 32}, "NVFP4 with group_size 32; supported: 16"),
    "unknown algorithm": (modelopt("nvfp4"), {"quant_algo": "W4A16_AWQ"}, "quant_algo is 'W4A16_AWQ'; known: FP8, "),
    "unknown method": (modelopt("nvfp4"), {"quant_method": "gptq"}, "quant_method is 'gptq'; known: modelopt"),
    "no layers": (modelopt("nvfp4"), {"quant_algo": "MIXED_PRECISION"}, "needs quantized_layers"),
    "unknown layer": (
        modelopt("nvfp4"),
        {
            "quant_algo": "MIXED_PRECISION",
            "quantized_layers": {"backbone.layers.0.mixer.in_proj": {"quant_algo": "INT4"}},
        },
        "quant_algo of backbone.layers.0.mixer.in_proj is 'INT4'",
    ),
    "unknown cache": (modelopt("fp8"), {**FP8, "kv_cache_quant_algo": "NVFP4"}, "keys and values is 'NVFP4'"),
    "integers": (compressed("fp8"), compressed_config("fp8", type="int"), "'type': 'int'.*not supported"),
    "half shapes": (changed("weight_scale", lambda t: t[:, :2].contiguous()), NVFP4, "which is no known format"),
    "scales of a stack": (first_only, FP8, r"missing: backbone.layers.3.mixer.experts.1.up_proj.codes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_files_are_one_clear_error(case, plain, tmp_path):
    low, config, message = REFUSED[case]
    folder = rewrite(plain, tmp_path / "low", low, config)
    with pytest.raises(CheckpointError, match=message) as raised:
        load(folder)
    assert str(raised.value).startswith(str(folder))


def test_codes_without_a_word_of_them_are_refused(plain, tmp_path):
    def bare(module, weight):
        return {"weight": encode(weight, FORMATS["fp8"]).codes}

    with pytest.raises(CheckpointError, match="tensors are in FP8 and lack their weight_scale: backbone"):
        load(rewrite(plain, tmp_path / "low", bare, {}))


# -- quantised while loading -------------------------------------------------------------------------------------------


def test_the_published_map():
    shapes = {name: tensor.shape for name, tensor in build().state_dict().items()}
    chosen = {plan: {n: f.name for n, f in choose(shapes, plan).items()} for plan in ("fp8", "nvfp4", "mixed")}
    assert set(chosen["fp8"]) == set(chosen["nvfp4"]) == set(chosen["mixed"])
    assert len(chosen["fp8"]) == 8
    for name in shapes:
        stays = any(
            part in name for part in ("q_proj", "o_proj", "latent_", "conv1d", "router", "embed", "head", "mtp.")
        )
        assert not (stays and name in chosen["fp8"]), name
    assert chosen["mixed"]["context.blocks.3.mixer.experts.up_proj"] == "nvfp4"
    assert chosen["mixed"]["context.blocks.3.mixer.shared_experts.up_proj.weight"] == "fp8"
    assert chosen["mixed"]["context.blocks.0.mixer.in_proj.weight"] == "fp8"
    assert kind_of("denoiser.blocks.7.mixer.up_proj.weight") == "dense"
    assert kind_of("vision.blocks.0.up_proj.weight") is None
    kept = choose(shapes, "fp8", ["context.blocks.0.*", "*.experts.down_proj"])
    assert len(kept) == 5
    for plan, keep, message in (
        ("int4", (), "unknown low precision 'int4'; known: fp8, nvfp4, mixed"),
        ("fp8", ("x",), "no weight of the model is called x"),
    ):
        with pytest.raises(ConfigError, match=message):
            choose(shapes, plan, keep)
    odd = {"context.blocks.0.mixer.up_proj.weight": torch.Size([8, 40])}
    assert choose(odd, "nvfp4") == {}
    assert choose(odd, "fp8")


@pytest.mark.parametrize("plan", ["fp8", "nvfp4", "mixed"])
def test_quantising_while_loading_is_quantising_the_weights(plan, plain, tmp_path):
    def format(module):
        return {"fp8": "fp8", "nvfp4": "nvfp4"}.get(plan) or (
            "nvfp4" if ".experts." in module or ".1.mixer" in module else "fp8"
        )

    model = load(plain, quantize=plan)
    expected = load(rounded(plain, tmp_path / "rounded", format))
    assert error(model.logits(ids()), expected.logits(ids())) < 1e-5
    assert model.context.blocks[2].mixer.q_proj.weight.dtype == torch.float32


def test_memory_stays_near_what_is_packed(plain, monkeypatch):
    """Bytes that live while a model is loaded and run: one matrix beside what is packed, never a second model."""
    high = sum(t.nbytes for t in load(plain).state_dict().values())
    read = []

    def noted(x, *args, **options):
        read.append(x.numel() * 4)
        return encode(x, *args, **options)

    monkeypatch.setattr("omni.quantization.loading.encode", noted)
    model = load(plain, quantize="nvfp4")
    held = sum(t.nbytes for t in model.state_dict().values())
    quantised = sum(
        w.shape.numel() if hasattr(w.shape, "numel") else torch.Size(w.shape).numel()
        for w in packed_weights(model).values()
    )
    packed = sum(t.nbytes for w in packed_weights(model).values() for n, t in w.named_buffers() if n != "bias")
    assert packed < 0.6 * quantised  # 4.5 bits each, and a scale for each matrix
    assert held == high - 4 * quantised + packed
    assert max(read) == max(torch.Size(w.shape[-2:]).numel() * 4 for w in packed_weights(model).values())

    monkeypatch.setattr(modules, "SCRATCH", 128 * 64)
    decoded = []
    plain_units = modules.units

    def counted(packed, format, dtype):
        values, factor = plain_units(packed, format, dtype)
        decoded.append(values.numel())
        return values, factor

    monkeypatch.setattr(modules, "units", counted)
    model.logits(ids())
    assert max(decoded) <= 128 * 160  # as many rows as the scratch has room for, and at least 128
    assert sum(t.nbytes for t in model.state_dict().values()) == held


def test_no_dense_copy_of_a_packed_weight_stays_behind(plain):
    model = load(plain, quantize="fp8")
    assert isinstance(model.context.blocks[3].mixer.experts, PackedExperts)
    names = {name for name, _ in model.named_parameters()}
    assert not any(name.startswith("context.blocks.3.mixer.experts") for name in names)
    assert isinstance(model.context.blocks[0].mixer.in_proj, PackedWeight)


def test_infinite_weights_are_refused(plain, tmp_path):
    tensors = load_file(plain / "model.safetensors")
    name = next(n for n in tensors if is_low(n))
    tensors[name][0, 0] = float("inf")
    folder = rewrite(plain, tmp_path / "low", lambda module, weight: {"weight": weight}, {})
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds numbers that are not finite"):
        load(folder, quantize="fp8")


# -- round trips -------------------------------------------------------------------------------------------------------


def same_state(a, b) -> None:
    states = a.state_dict(), b.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        other = states[1][name]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), name
        assert torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, other))), name


@pytest.mark.parametrize("family", ["nemotron_h", "omni"])
@pytest.mark.parametrize("plan", ["fp8", "nvfp4", "mixed"])
def test_what_is_written_loads_back_bit_for_bit(family, plan, plain, tmp_path):
    model = load(plain, quantize=plan)
    families.save(model, tmp_path / "low", family=family, shard_bytes=20_000)
    assert len(list((tmp_path / "low").glob("*.safetensors"))) > 1
    same_state(load(tmp_path / "low"), model)
    convert(tmp_path / "low", tmp_path / "again", family="omni" if family == "nemotron_h" else "nemotron_h")
    same_state(load(tmp_path / "again"), model)
    config = json.loads((tmp_path / "low" / "config.json").read_text())["quantization_config"]
    algorithm = {"fp8": "FP8", "nvfp4": "W4A16_NVFP4", "mixed": "MIXED_PRECISION"}[plan]
    assert (config["quant_method"], config["quant_algo"]) == ("modelopt", algorithm)
    written = json.loads((tmp_path / "low" / "hf_quant_config.json").read_text())["quantization"]
    assert written["quant_algo"] == algorithm
    if family == "nemotron_h":
        assert "mtp.layers.1.mixer.experts.0.up_proj" in config["ignore"]
        assert {"lm_head", "backbone.layers.2.mixer.q_proj", "backbone.layers.0.mixer.conv1d"} <= set(config["ignore"])
        if plan == "mixed":
            assert written["quantized_layers"]["backbone.layers.3.mixer.experts.2.up_proj"] == {
                "quant_algo": "W4A16_NVFP4",
                "group_size": 16,
            }


def test_a_plain_checkpoint_over_a_quantised_one_says_nothing_of_it(plain, tmp_path):
    families.save(load(plain, quantize="fp8"), tmp_path / "x", family="nemotron_h")
    families.save(load(plain), tmp_path / "x", family="nemotron_h")
    assert not (tmp_path / "x" / "hf_quant_config.json").exists()
    assert not packed_weights(load(tmp_path / "x"))


def test_a_quantised_checkpoint_is_not_quantised_again(plain, tmp_path):
    families.save(load(plain, quantize="fp8"), tmp_path / "x", family="nemotron_h")
    with pytest.raises(CheckpointError, match="quantised already"):
        load(tmp_path / "x", quantize="nvfp4")


def test_info_says_what_is_stored(plain, tmp_path):
    families.save(load(plain, quantize="mixed"), tmp_path / "x", family="nemotron_h")
    found = describe(str(tmp_path / "x")).stored
    assert set(found) == {"nvfp4", "fp8", "float32"}
    model = load(tmp_path / "x")
    nbytes = dict.fromkeys(found, 0)
    for weight in packed_weights(model).values():
        nbytes[weight.format.name] += sum(t.nbytes for n, t in weight.named_buffers() if n != "bias")
    assert {k: found[k] for k in ("nvfp4", "fp8")} == {k: nbytes[k] for k in ("nvfp4", "fp8")}
    assert describe("nano-9b-v2").stored == {}
