"""Nemotron-H against the reference implementation: same random weights through files, same numbers."""

import json

import pytest
import torch
import transformers
from transformers import NemotronHConfig, NemotronHForCausalLM

import omni
from omni import families
from omni.checkpoint import find_tensors
from omni.config import ConfigError, replace
from omni.families import nemotron_h
from omni.families.convert import convert
from omni.inputs import Inputs
from omni.model import Omni

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

NAMES = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,  # not hidden_size / heads
    "intermediate_size": 40,
    "ssm_state_size": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 6,
    "n_groups": 2,
    "chunk_size": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "moe_shared_expert_intermediate_size": 28,
    "moe_latent_size": None,
    "routed_scaling_factor": 2.5,
    "max_position_embeddings": 4096,
}

CASES = {
    "mamba": ("M", {}),
    "attention": ("*", {}),
    "mlp": ("-", {}),
    "moe": ("E", {}),
    "h": ("M-M*-M-", {}),
    "runs": ("MM---M*-", {}),
    "nano": ("MEM*EME", {}),
    "all": ("M*-E", {}),
    "latent": ("ME*EM", {"moe_latent_size": 12}),
    "latent-wide": ("E*E", {"moe_latent_size": 48, "num_experts_per_tok": 8}),
    "groups-2-of-4": ("ME*E", {"n_group": 4, "topk_group": 2}),
    "groups-1-of-2": ("E-ME", {"n_group": 2, "topk_group": 1, "moe_latent_size": 8}),
    "no-normalising": ("EM", {"norm_topk_prob": False, "routed_scaling_factor": 1.0}),
    "one-of-two": ("EM", {"n_routed_experts": 2, "num_experts_per_tok": 1}),
    "eight-ssm-groups": ("MM*", {"n_groups": 8}),
    "one-ssm-group": ("MM*", {"n_groups": 1}),
    "chunk-1": ("M*M", {"chunk_size": 1}),
    "chunk-long": ("M*M", {"chunk_size": 256}),
    "conv-2": ("M*M", {"conv_kernel": 2}),
    "no-conv-bias": ("MM", {"use_conv_bias": False}),
    "mamba-bias": ("M-M", {"use_bias": True}),
    "mlp-bias": ("M-*-", {"mlp_bias": True}),
    "many-heads": ("*M*", {"num_key_value_heads": 4}),
    "one-kv-head": ("*M*", {"num_key_value_heads": 1}),
    "eps": ("M*-E", {"layer_norm_epsilon": 1e-2}),
    "clamped-steps": ("M*M", {"time_step_limit": (0.03, 0.06)}),
    "deep": ("M-MEM*EMEMEM*-", {"moe_latent_size": 16}),
}


def reference(pattern: str, seed: int = 0, **changes) -> NemotronHForCausalLM:
    """A random model of the reference implementation in which no parameter is left at a trivial value."""
    config = NemotronHConfig(layers_block_type=[NAMES[letter] for letter in pattern], **{**SIZES, **changes})
    torch.manual_seed(seed)
    model = NemotronHForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_random_like(name, parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.3 * torch.randn_like(buffer))
    for layer in model.model.layers:
        if layer.block_type == "linear_attention":
            layer.mixer.time_step_limit = tuple(config.time_step_limit)  # as published: no clamp
    return model


def _random_like(name: str, parameter: torch.Tensor) -> torch.Tensor:
    noise = torch.randn_like(parameter)
    if name.endswith("A_log"):
        return noise
    if name.endswith("dt_bias"):
        return noise - 3
    if name.endswith(("norm.weight", "norm_f.weight", ".D")):
        return 1 + 0.5 * noise
    if name.endswith("bias"):
        return 0.5 * noise
    return noise * parameter.shape[-1] ** -0.5


def ours(theirs: NemotronHForCausalLM, folder) -> Omni:
    theirs.save_pretrained(folder)
    return omni.load(str(folder), device="cpu")


def tokens(batch: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, SIZES["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed))


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_reference(case, tmp_path):
    pattern, changes = CASES[case]
    for seed, length in ((0, 37), (1, 16), (2, 1), (3, 51)):
        theirs = reference(pattern, seed, **changes)
        model = ours(theirs, tmp_path / str(seed))
        ids = tokens(2, length, seed)
        error = relative_error(model.logits(ids), theirs(ids, use_cache=False).logits)
        assert error < 2e-5, f"seed {seed}, {length} tokens: relative error {error}"


@torch.no_grad()
@pytest.mark.parametrize("case", ["h", "nano", "latent", "groups-2-of-4", "conv-2"])
def test_greedy_generation_is_the_same_token_by_token(case, tmp_path):
    pattern, changes = CASES[case]
    theirs = reference(pattern, 5, **changes)
    model = ours(theirs, tmp_path)
    ids = tokens(3, 21)
    expected = theirs.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
    cache = model.new_cache(3)
    step, made = ids, []
    for _ in range(24):
        step = model.logits(step, cache, last_only=True)[:, -1].argmax(-1, keepdim=True)
        made.append(step)
    torch.testing.assert_close(torch.cat(made, dim=1), expected[:, 21:], rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("case", ["h", "nano", "latent"])
def test_left_padded_batches_equal_the_reference(case, tmp_path):
    pattern, changes = CASES[case]
    theirs = reference(pattern, 7, **changes)
    model = ours(theirs, tmp_path)
    ids = tokens(3, 19)
    mask = torch.ones(3, 19, dtype=torch.bool)
    mask[0, :7] = False
    mask[2, :18] = False
    ids = ids.masked_fill(~mask, 0)
    expected = theirs(ids, attention_mask=mask.long()).logits
    found = model.logits(Inputs(ids, mask))
    assert relative_error(found[mask], expected[mask]) < 2e-5
    alone = model.logits(ids[:1, 7:])
    assert relative_error(found[:1, 7:], alone) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("case", ["all", "latent", "mamba-bias", "mlp-bias", "groups-2-of-4"])
def test_what_we_write_the_reference_loads(case, tmp_path):
    pattern, changes = CASES[case]
    theirs = reference(pattern, 11, **changes)
    model = ours(theirs, tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "omni", family="omni")
    convert(tmp_path / "omni", tmp_path / "back", family="nemotron_h", shard_bytes=30_000)
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 1
    again = NemotronHForCausalLM.from_pretrained(tmp_path / "back").eval()
    for layer in again.model.layers:
        if layer.block_type == "linear_attention":
            layer.mixer.time_step_limit = (0.0, float("inf"))
    for (name, a), b in zip(theirs.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    ids = tokens(2, 23)
    assert torch.equal(again(ids, use_cache=False).logits, theirs(ids, use_cache=False).logits)
    reloaded = omni.load(str(tmp_path / "back"), device="cpu")
    assert reloaded.config == model.config
    for (name, a), b in zip(model.state_dict().items(), reloaded.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_prediction_block_round_trip(tmp_path):
    theirs = reference("ME*E", moe_latent_size=8)
    model = ours(theirs, tmp_path / "plain")
    config = replace(model.config, mtp=nemotron_h.MTPConfig(pattern="*E"))
    drafting = Omni(config)
    families.save(drafting, tmp_path / "mtp", family="nemotron_h")
    again = omni.load(str(tmp_path / "mtp"), device="cpu")
    assert again.config == config
    names = find_tensors(tmp_path / "mtp")
    assert {"mtp.layers.0.enorm.weight", "mtp.layers.0.eh_proj.weight", "mtp.layers.1.final_layernorm.weight"} <= set(
        names
    )
    assert names["mtp.layers.1.mixer.experts.7.up_proj.weight"].shape == (20, 8)
    for (name, a), b in zip(drafting.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


# -- config.json -------------------------------------------------------------------------------------------------------

PLAIN = {
    "model_type": "nemotron_h",
    "hybrid_override_pattern": "M-*E",
    "num_hidden_layers": 4,
    **{k: v for k, v in SIZES.items() if v is not None},
}


def test_both_spellings_of_a_pattern_mean_the_same():
    expected = nemotron_h.to_config(PLAIN)
    without = {k: v for k, v in PLAIN.items() if k not in ("hybrid_override_pattern", "num_hidden_layers")}
    old = {**without, "layers_block_type": ["mamba", "mlp", "attention", "moe"], "num_hidden_layers": None}
    new = {**without, "layers_block_type": ["linear_attention", "mlp", "full_attention", "moe"]}
    assert nemotron_h.to_config(old) == nemotron_h.to_config(new) == expected
    for spelling in ("norm_eps", "rms_norm_eps", "layer_norm_epsilon"):
        assert nemotron_h.to_config({**PLAIN, spelling: 1e-3}).context.norm_eps == 1e-3


def test_spellings_of_limits_and_heads():
    for limit in ([0.0, float("inf")], [0.0, {"__float__": "Infinity"}], [0, "inf"]):
        assert nemotron_h.to_config({**PLAIN, "time_step_limit": limit}).context.mamba.dt_limit == (0.0, float("inf"))
    clamped = nemotron_h.to_config({**PLAIN, "time_step_limit": [0.001, 0.5]})
    assert clamped.context.mamba.dt_limit == (0.001, 0.5)
    assert nemotron_h.to_config(nemotron_h.from_config(clamped)) == clamped
    assert NemotronHConfig(**nemotron_h.from_config(clamped)).mamba_num_heads == 8
    renamed = {("attention_head_dim" if k == "head_dim" else k): v for k, v in PLAIN.items()}
    assert nemotron_h.to_config(renamed) == nemotron_h.to_config(PLAIN)


def test_prediction_spellings():
    for mtp in ({"mtp_hybrid_override_pattern": "*E"}, {"mtp_layers_block_type": ["attention", "moe"]}, {}):
        config = nemotron_h.to_config({**PLAIN, "num_nextn_predict_layers": 1, **mtp})
        assert config.mtp.pattern == "*E"
    assert nemotron_h.to_config({**PLAIN, "mtp_hybrid_override_pattern": "*E"}).mtp is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"mlp_hidden_act": "silu"}, "mlp_hidden_act is 'silu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"n_shared_experts": 2}, "n_shared_experts is 2"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        ({"qk_layernorm": True}, "qk_layernorm = True"),
        ({"hidden_size": 1 << 40}, "1099511627776"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"n_routed_experts": -4}, "-4"),
        ({"num_experts_per_tok": 9}, "9"),
        ({"hybrid_override_pattern": "MXE"}, "X"),
        ({"hybrid_override_pattern": None}, "lacks hybrid_override_pattern"),
        ({"hybrid_override_pattern": "M" * 5000, "num_hidden_layers": None}, "5000"),
        ({"num_hidden_layers": 7}, "num_hidden_layers is 7"),
        ({"layers_block_type": ["mamba", "conv"]}, "conv"),
        ({"layers_block_type": ["moe"]}, "hybrid_override_pattern"),
        ({"norm_eps": 1e-5, "rms_norm_eps": 1e-6}, "differently"),
        ({"layer_norm_epsilon": float("nan")}, "nan"),
        ({"time_step_limit": [0.1]}, "time_step_limit"),
        ({"time_step_limit": 3}, "time_step_limit"),
        ({"eos_token_id": ["</s>"]}, "eos_token_id"),
        ({"n_groups": 3}, "multiple of n_groups"),
        ({"mamba_num_heads": None}, "lacks mamba_num_heads"),
    ],
)
def test_configs_that_would_compute_something_else_are_refused(change, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        nemotron_h.to_config({**PLAIN, **change})


def test_keys_of_published_files_are_tolerated_and_code_is_never_run(tmp_path):
    theirs = reference("M*")
    theirs.save_pretrained(tmp_path)
    plain = json.loads((tmp_path / "config.json").read_text())
    plain["auto_map"] = {"AutoModelForCausalLM": "modeling_nemotron_h.NemotronHForCausalLM"}
    plain |= {"time_step_rank": 256, "rope_theta": 10000, "partial_rotary_factor": 1.0, "torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(plain))
    (tmp_path / "modeling_nemotron_h.py").write_text("raise SystemExit('this must never run')")
    omni.load(str(tmp_path), device="cpu")


def test_what_the_layout_cannot_say_is_refused():
    config = nemotron_h.to_config(PLAIN)
    attention = replace(config.context.attention, qk_norm=True)
    with pytest.raises(ConfigError, match="cannot express attention"):
        nemotron_h.from_config(replace(config, context=replace(config.context, attention=attention)))
