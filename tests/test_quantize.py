"""``omni quantize``: calibrated scales, what is written, students on a base, the command and its errors."""

import json

import pytest
import torch
from lowbit_files import published
from micro import CODEC_LATENT, micro_model
from test_packed import same_state

import omni
from omni import cli, families
from omni.bench_lowbits import bench_lowbits, table
from omni.calibration import Ranges, calibrated
from omni.checkpoint import CheckpointError
from omni.config import ConfigError, replace
from omni.pipelines.chat import Chat
from omni.quantization.formats import FP8, NVFP4
from omni.quantization.modules import packed_weights, set_low_inputs
from omni.quantization.plans import choose
from omni.quantize import keep_kv_scales, pack, quantize
from omni.tokenizers.bytes import ByteTokenizer

TEXTS = ["hello there", "a red circle above a blue square", "x" * 40]


def own_model():
    """The micro system with a codec, so that its denoiser can be calibrated too."""
    model = micro_model(latent=CODEC_LATENT)
    model.codec.fit(torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    return model


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "model"
    families.save(own_model(), folder)
    ByteTokenizer().save(folder)
    return folder


def load(folder, **options):
    return omni.load(str(folder), device="cpu", **options)


def run(*arguments) -> int:
    return cli.main([str(a) for a in arguments])


# -- ranges ------------------------------------------------------------------------------------------------------------


def test_scales_are_the_largest_over_what_the_format_holds():
    ranges = Ranges()
    for values in ([1.0, 0.0, 3.0], [2.0, 0.0, 0.5]):
        ranges.note("experts", torch.tensor(values))
    assert ranges.scale("experts", FP8).tolist() == pytest.approx(
        [2 / 448, 3 / 448, 3 / 448]
    )  # nobody chose the second
    assert ranges.scale("experts", NVFP4).tolist() == pytest.approx([v / (6 * 448) for v in (2, 3, 3)])
    assert ranges.scale("other", FP8) is None
    ranges.note("never", torch.zeros(2))
    assert ranges.scale("never", FP8) is None
    ranges.kv[3] = (100.0, 896.0)
    assert ranges.kv_scales() == {3: (1.0, 2.0)}


def test_what_is_noted_is_what_enters():
    """Every range is the largest input that a hook of its own sees, over all samples; experts by themselves."""
    model = own_model()
    names = list(choose({n: t.shape for n, t in model.state_dict().items()}, "fp8"))
    seen = {}

    def look(name):
        def hook(module, inputs, output):
            seen[name] = max(seen.get(name, 0.0), float(inputs[0].abs().max()))

        return hook

    for name, module in model.named_modules():
        if f"{name}.weight" in names:
            module.register_forward_hook(look(f"{name}.weight"))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ranges = calibrated(model, names, 2)
    assert {n for n in names if n.startswith("denoiser")} <= set(ranges.inputs)  # pictures were drawn too
    for name, most in seen.items():
        assert float(ranges.inputs[name]) == pytest.approx(most), name
    experts = [n for n in names if ".experts." in n]
    assert all(ranges.inputs[n].shape == (4,) for n in experts)
    for tower in ("context", "denoiser"):
        up, down = (ranges.inputs[f"{tower}.blocks.2.mixer.experts.{m}_proj"] for m in ("up", "down"))
        assert bool((up > 0).any())
        assert not torch.equal(up, down)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert calibrated(model, names, 2).inputs.keys() == ranges.inputs.keys()
    for name, again in calibrated(model, names, 2).inputs.items():
        assert torch.equal(again, ranges.inputs[name]), name


def test_own_texts_replace_the_samples():
    model = own_model()
    ranges = calibrated(model, ["context.blocks.0.mixer.in_proj.weight"], 0, TEXTS)
    assert set(ranges.inputs) == {"context.blocks.0.mixer.in_proj.weight"}
    assert set(ranges.kv) == {1}
    model.tokenizer = None
    with pytest.raises(ValueError, match="needs a tokenizer"):
        calibrated(model, [], 0, TEXTS)


def test_calibrated_inputs_are_rounded_within_their_range():
    model = own_model()
    ids = torch.tensor([model.tokenizer.encode(TEXTS[1])])
    with torch.no_grad():
        high = model.logits(ids)
        names = choose({n: t.shape for n, t in model.state_dict().items()}, "fp8")
        pack(model, names, calibrated(model, names, 1, TEXTS))
        weights = model.logits(ids)
        set_low_inputs(model)
        both = model.logits(ids)
    assert 0 < float((weights - high).norm() / high.norm()) < 0.1
    assert not torch.equal(weights, both)
    assert float((both - high).norm() / high.norm()) < 0.15
    assert not model.denoiser.blocks[0].mixer.in_proj.low_inputs  # texts do not reach it: its weights alone are low
    assert model.context.blocks[0].mixer.in_proj.low_inputs


# -- folders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["fp8", "nvfp4", "mixed"])
def test_a_written_folder_loads_back_bit_for_bit(format, source, tmp_path):
    done = quantize(source, tmp_path / "low", format, calibrate=1, kv_cache=True, six_or_four=format != "fp8")
    model = load(tmp_path / "low")
    assert done["calibrated"] == len(packed_weights(model)) == sum(done["formats"].values())
    assert done["bytes"]["after"] < done["bytes"]["before"]
    assert model.cache_format.kv == "fp8"
    families.save(model, tmp_path / "again")
    same_state(load(tmp_path / "again"), model)
    assert not list(tmp_path.rglob("*.part"))
    reply = Chat(model)([{"role": "user", "content": "hello"}], max_new_tokens=3)
    assert reply.tokens
    algorithm = json.loads((tmp_path / "low" / "hf_quant_config.json").read_text())["quantization"]
    assert algorithm["quant_algo"] == {"fp8": "FP8", "nvfp4": "NVFP4", "mixed": "MIXED_PRECISION"}[format]
    assert algorithm["kv_cache_quant_algo"] == "FP8"


def test_without_calibration_it_is_what_loading_makes(source, tmp_path):
    quantize(source, tmp_path / "low", "nvfp4", keep=["denoiser.*"], also=["context.blocks.1.mixer.q_proj"])
    written = load(tmp_path / "low")
    made = load(source, quantize="nvfp4")
    names = set(packed_weights(written))
    expected = {n for n in packed_weights(made) if n.startswith("context.")} | {"context.blocks.1.mixer.q_proj"}
    assert names == expected
    for name in expected - {"context.blocks.1.mixer.q_proj"}:
        for part, tensor in packed_weights(made)[name].named_buffers():
            other = getattr(packed_weights(written)[name], part)
            assert torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (tensor, other))), (name, part)
    assert all(weight.weight_only for weight in packed_weights(written).values())


def test_every_linear_layer_of_a_system_can_be_packed(source, tmp_path):
    """Reading, seeing and denoising go on with all that is linear in FP8."""
    high = load(source)
    layers = [f"{n}.weight" for n, m in high.named_modules() if isinstance(m, torch.nn.Linear)]
    quantize(source, tmp_path / "low", "fp8", also=["*"], keep=["embed", "*.router"])
    low = load(tmp_path / "low")
    assert {f"{n}.weight" for n in packed_weights(low)} >= set(layers)
    picture, ids = torch.rand(1, 3, 64, 64), torch.randint(3, 200, (1, 9))
    found = []
    with torch.no_grad():
        for model in (high, low):
            cache = model.new_cache(1)
            logits = model.logits(ids, cache)
            latents = model.codec.encode(picture)
            found.append((model.see(picture), logits, model.velocity(latents, torch.tensor([0.4]), cache)))
    for a, b in zip(*found, strict=True):
        assert 0 < float((a - b).norm() / a.norm()) < 0.3


def test_published_layouts_are_written_in_their_own_names(tmp_path):
    folder = published(tmp_path / "plain")
    quantize(folder, tmp_path / "low", "mixed")
    config = json.loads((tmp_path / "low" / "config.json").read_text())
    assert config["model_type"] == "nemotron_h"
    layers = config["quantization_config"]["quantized_layers"]
    assert layers["backbone.layers.3.mixer.experts.3.down_proj"]["quant_algo"] == "W4A16_NVFP4"
    assert layers["backbone.layers.0.mixer.in_proj"] == {"quant_algo": "FP8"}
    assert config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] in (4, 8)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        quantize(folder, tmp_path / "other", "fp8", calibrate=1)
    assert not (tmp_path / "other").exists()


def test_a_generator_keeps_its_base(source, tmp_path):
    """Only the denoiser differs: it alone is quantised and written; the base may itself be quantised."""
    (tmp_path / "base").symlink_to(source)
    student = load(source)
    with torch.no_grad():
        for parameter in student.denoiser.parameters():
            parameter.add_(0.01)
    families.save(student, tmp_path / "student", base="base")
    quantize(tmp_path / "student", tmp_path / "low", "fp8", base="base")
    model = load(tmp_path / "low")
    assert packed_weights(model)
    assert all(name.startswith("denoiser.") for name in packed_weights(model))
    assert torch.equal(model.embed.weight, student.embed.weight)
    assert model.tokenizer is not None
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("student", "low")]
    assert sizes[1] < 0.75 * sizes[0]
    quantize(source, tmp_path / "lowbase", "nvfp4")
    families.save(student, tmp_path / "high", base="lowbase")
    mixed = load(tmp_path / "high")
    assert not any(name.startswith("denoiser.") for name in packed_weights(mixed))
    assert torch.equal(mixed.denoiser.blocks[0].mixer.in_proj.weight, student.denoiser.blocks[0].mixer.in_proj.weight)


def test_kv_scales_stand_beside_the_projections():
    model = own_model()
    ranges = Ranges(kv={1: (896.0, 2.0)})
    keep_kv_scales(model, ranges)
    slot = model.new_cache(1).slots[1]
    assert (slot.k.scale, slot.v.scale) == (2.0, 1.0)


def test_what_cannot_be(source, tmp_path):
    quantize(source, tmp_path / "low", "fp8")
    for given, options, message in (
        ((source, source, "fp8"), {}, "is the source itself"),
        ((tmp_path / "low", tmp_path / "x", "fp8"), {}, "quantised already"),
        ((source, tmp_path / "x", "int4"), {}, "unknown low precision 'int4'"),
        ((source, tmp_path / "x", "fp8"), {"keep": ["nothing"]}, "no weight of the model is called nothing"),
        ((source, tmp_path / "x", "fp8"), {"also": ["embed"]}, "embed.weight is neither a linear layer"),
        ((source, tmp_path / "x", "fp8"), {"base": "absent"}, "no such model beside it"),
    ):
        with pytest.raises((CheckpointError, ConfigError), match=message):
            quantize(*given, **options)
    assert not (tmp_path / "x").exists()


def test_the_bench_measures_every_form(source):
    report = bench_lowbits(str(source), quick=True, threads=1, tasks=())
    high, *low = report.forms
    assert [form.name for form in report.forms] == ["bfloat16", "fp8", "nvfp4", "mixed"]
    assert (high.error, high.ratio) == (0.0, 1.0)
    for form in low:
        assert 0 < form.error < 0.5
        assert form.step > 0
        assert form.memory < high.memory
    assert low[1].disk < low[0].disk < high.disk
    assert "times as long" in table(report)


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command(source, tmp_path, capsys):
    (tmp_path / "texts").write_text("one line\n\nanother line\n")
    out = tmp_path / "low"
    assert (
        run("quantize", source, "-o", out, "--format", "mixed", "--four-over-six", "--texts", tmp_path / "texts") == 0
    )
    assert "in nvfp4" in capsys.readouterr().out
    assert run("quantize", source, "-o", tmp_path / "j", "--format", "fp8", "--json") == 0
    assert json.loads(capsys.readouterr().out)["formats"] == {"fp8": 12}
    assert run("info", out) == 0
    assert "stored in nvfp4" in capsys.readouterr().out
    assert (
        run("chat", "--model", source, "--quantize", "nvfp4", "--cache", "fp8+int8", "--max-new-tokens", 2, "hi") == 0
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--format", "int4"), 2, "invalid choice"),
        ((), 2, "--format"),
        (("--format", "fp8", "--four-over-six"), 2, "belongs to NVFP4"),
        (("--format", "fp8", "--texts", "absent.txt"), 2, "not a readable text"),
        (("--format", "fp8", "--calibrate", "-1"), 2, "whole number"),
        (("--format", "fp8", "--keep", "nothing"), 1, "no weight of the model is called nothing"),
    ],
)
def test_bad_usage_is_one_line(arguments, code, message, source, tmp_path, capsys):
    assert run("quantize", source, "-o", tmp_path / "x", *arguments) == code
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "x").exists()


def test_a_cache_that_is_unknown_is_refused_before_the_model_is_read(capsys):
    assert run("chat", "--cache", "fp9", "hi") == 2
    assert "no format of a cache" in capsys.readouterr().err


def test_a_quantised_folder_is_not_trained(source, tmp_path):
    from omni.training_models import opened

    quantize(source, tmp_path / "low", "fp8")
    with pytest.raises(ValueError, match="is quantised; train the checkpoint"):
        opened(str(tmp_path / "low"))


def test_sizes_of_a_config_are_untouched(source, tmp_path):
    quantize(source, tmp_path / "low", "fp8")
    assert load(tmp_path / "low").config == replace(load(source).config)
