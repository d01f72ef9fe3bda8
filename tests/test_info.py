"""What `omni info` says is what the published tables say."""

import json

import pytest
import torch

from omni import cli, families, info
from omni.cache import Cache
from omni.families.nemotron_h_sizes import PRESETS
from omni.families.tiny import TINY
from omni.info import describe, parse_size, readable, table
from omni.model import Omni

# MB of recurrent state, MB of convolution state, bytes of keys and values a token
STATES = {
    "nano-9b-v2": (141.6, 2.0, 16384),
    "nano-12b-v2": (146.8, 2.1, 24576),
    "nemotron-3-nano-4b": (82.6, 1.2, 16384),
    "nemotron-3-nano-30b": (48.2, 0.85, 6144),
    "nemotron-3-super-120b": (167.8, 2.5, 8192),
    "nemotron-3-ultra-550b": (402.7, 5.3, 12288),
}

# billions: active without the vocabulary's matrices, active with both
ACTIVE = {
    "nemotron-3-nano-30b": (2.875, 3.580),
    "nemotron-3.5-lightning-30b": (2.875, 3.580),
    "nemotron-3-super-120b": (11.697, 12.770),
    "nemotron-3-ultra-550b": (53.911, 56.059),
}


@pytest.mark.parametrize("name", STATES)
def test_state_of_a_sequence(name):
    ssm, conv, kv = STATES[name]
    state = info.sequence_state(PRESETS[name].config)
    assert state.ssm_per_sequence / 1e6 == pytest.approx(ssm, abs=0.05)
    assert state.conv_per_sequence / 1e6 == pytest.approx(conv, abs=0.05)
    assert state.kv_per_token == kv


@pytest.mark.parametrize("name", ACTIVE)
def test_active_parameters(name):
    without, with_both = ACTIVE[name]
    d = describe(name)
    assert d.active_without_vocabulary / 1e9 == pytest.approx(without, abs=1e-3)
    assert d.active / 1e9 == pytest.approx(with_both, abs=1e-3)


def test_parts_sum_to_the_whole_and_storage_is_the_published_file():
    d = describe("nemotron-3-super-120b")
    parts = {part.name: part for part in d.parts}
    assert sum(part.parameters for part in d.parts) == d.parameters == 123_611_033_088
    assert parts["prediction block"].parameters == 2_942_325_248
    assert parts["latent projections"].parameters == 40 * 2 * 4096 * 1024
    assert parts["routed experts"].active * 512 == parts["routed experts"].parameters * 22
    assert d.storage["bfloat16"] == 247_222_108_160
    assert d.storage["nvfp4"] == pytest.approx(d.parameters * 4.5 / 8, rel=1e-3)
    assert describe("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16").parts == d.parts


def test_nano_9b_reads_128k_tokens_on_a_22_gib_card():
    d = describe("nano-9b-v2", context=131_072, batch=1, dtype="bf16", memory="22GiB")
    e = d.estimate
    assert e.fits
    assert e.longest_context == 131_072
    assert e.total == e.weights + e.cache + e.workspace + e.reserve < 22 << 30
    assert e.weights == 2 * 8_888_227_328
    assert e.cache == pytest.approx(131_072 * 16384 + 143.6e6, rel=1e-3)
    assert e.workspace > 2048 * 15680 * 2, "not even the hidden layer of one MLP"
    assert not describe("nano-9b-v2", context=131_072, memory="20GiB").estimate.fits
    small = describe("nano-9b-v2", memory="19GiB").estimate
    assert 0 < small.longest_context < 131_072
    assert describe("nano-9b-v2", context=small.longest_context, memory="19GiB").estimate.fits
    assert not describe("nano-9b-v2", context=small.longest_context + 1, memory="19GiB").estimate.fits
    assert describe("nano-9b-v2", memory="10GiB").estimate.longest_context == 0


def test_the_cache_is_as_large_as_it_is_said_to_be():
    for config in (TINY, PRESETS["nemotron-3-nano-30b"].config):
        cache = Cache.new(config.context, 2, 10, torch.bfloat16, torch.device("cpu"))
        held = sum(t.nbytes for t in cache._tensors().values())
        state = info.sequence_state(config)
        expected = 2 * (10 * state.kv_per_token + state.conv_per_sequence + state.ssm_per_sequence)
        assert held == expected


def test_folders_are_described_without_their_weights(tmp_path):
    torch.manual_seed(0)
    model = Omni(TINY)
    families.save(model, tmp_path)
    d = describe(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    assert describe(str(tmp_path)).parts == d.parts
    assert d.parameters == sum(t.numel() for t in model.state_dict().values())
    names = {part.name for part in d.parts}
    assert {"vision", "denoiser", "embeddings", "head", "router", "mamba", "attention"} <= names
    json.dumps(d.as_dict(), allow_nan=False)


def test_the_text_holds_what_matters():
    d = describe("nemotron-3.5-lightning-30b", context=8192, memory="80GB")
    text = table(d)
    for piece in (d.pattern, "32,913,266,240", "routed experts", "fits", "1048576", "8,192", "temperature 1.0"):
        assert piece in text, piece
    assert max(len(line) for line in text.splitlines()) <= 120


def test_sizes_are_parsed_and_written():
    assert parse_size("22GiB") == 22 << 30
    assert parse_size("24 gb") == 24 * 10**9
    assert parse_size("1.5G") == 1_500_000_000
    assert parse_size("4096") == parse_size(4096) == 4096
    assert readable(22 << 30) == "22.00 GiB"
    assert readable(16384) == "16.00 KiB"
    for wrong in ("", "GiB", "-3GB", "22 apples", "1e9", "22GiBs"):
        with pytest.raises(ValueError, match="not a size"):
            parse_size(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"context": 0}, "positive"), ({"batch": -1}, "positive"), ({"dtype": "int3"}, "unknown dtype 'int3'")],
)
def test_bad_requests(options, message):
    with pytest.raises(ValueError, match=message):
        describe("nano-9b-v2", **options)


def test_the_command_prints_text_or_json(capsys):
    arguments = ["info", "nano-9b-v2", "--context", "131072", "--memory", "22GiB"]
    assert cli.main(arguments) == 0
    assert "fits" in capsys.readouterr().out
    assert cli.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["estimate"]["longest_context"] == 131_072
    assert cli.main(["info", "nano-9b-v2", "--memory", "22 apples"]) == 1
    assert "22 apples" in capsys.readouterr().err


def test_the_estimate_reads_prompts_as_the_pipelines_do():
    from omni.pipelines import chat

    assert info.CHUNK == chat.CHUNK
