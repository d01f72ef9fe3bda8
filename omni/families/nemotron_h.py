"""Nemotron-H, Nemotron Nano v2, Nemotron 3 Nano, Super and Ultra, Nemotron 3.5 Lightning.

Names and traps: ``reference`` language_family, sections 1 to 3; sizes: :mod:`omni.families.nemotron_h_sizes`.
"""

import math
from typing import Any

from omni.config import (
    AttentionConfig,
    ConfigError,
    MambaConfig,
    MLPConfig,
    MoEConfig,
    MTPConfig,
    OmniConfig,
    TowerConfig,
)
from omni.families.base import Family
from omni.families.reader import MISSING, Reader
from omni.rules import Alias, Drop, Rename, Rule, Stack

# -- config.json -------------------------------------------------------------------------------------------------------

LAYER_TYPES = {
    "mamba": "M",
    "mamba2": "M",
    "linear_attention": "M",
    "attention": "*",
    "full_attention": "*",
    "mlp": "-",
    "moe": "E",
}
_WRITTEN_TYPES = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


INERT = _words(
    """
    architectures auto_map model_type dtype torch_dtype transformers_version _name_or_path name_or_path
    use_cache use_mamba_kernels num_logits_to_keep output_router_logits output_attentions output_hidden_states
    return_dict chunk_size_feed_forward id2label label2id problem_type is_encoder_decoder _attn_implementation
    attn_implementation tokenizer_class num_labels is_decoder add_cross_attention
    initializer_range rescale_prenorm_residual attention_dropout hidden_dropout mtp_loss_scaling_factor
    router_aux_loss_coef time_step_floor time_step_rank mamba_dt_init_floor expand mamba_expand
    mamba_ssm_cache_dtype moe_shared_expert_overlap rope_theta rope_parameters partial_rotary_factor
    quantization_config
    """
)
"""Keys of published files that change no number of a forward pass. ``expand`` is never read (the width is heads times
head_dim), rotary settings belong to a rotation that these models do not have, the state is always float32 here."""

FIXED: dict[str, tuple[Any, ...]] = {
    "mlp_hidden_act": ("relu2",),
    "hidden_act": ("relu2", "silu"),
    "mamba_hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mamba_proj_bias": (False,),
    "sliding_window": (None,),
    "rope_scaling": (None,),
    "n_shared_experts": (1,),
}
"""Keys that would change the mathematics, with the values that are supported."""


def to_config(plain: dict[str, Any]) -> OmniConfig:
    """A published config.json in any of its spellings -> our configuration. ConfigError names what is not supported."""
    read = Reader(plain)
    pattern = _pattern(read, "hybrid_override_pattern", "layers_block_type", "layer_types")
    layers = read.integer("num_hidden_layers", default=None)
    if layers is not None and layers != len(pattern):
        raise ConfigError(f"config.json: num_hidden_layers is {layers}; the pattern {pattern!r} has {len(pattern)}")
    mtp = _mtp(read)
    used = set(pattern) | set(mtp.pattern if mtp else "")
    eps = read.number("layer_norm_epsilon", "norm_eps", "rms_norm_eps", default=1e-5)
    bias = read.flag("mlp_bias", default=False)
    if bias and "E" in used:
        raise ConfigError("config.json: mlp_bias is True; experts with biases are not supported")
    parts = {
        "mamba": _mamba(read, eps) if "M" in used else None,
        "attention": _attention(read) if "*" in used else None,
        "mlp": MLPConfig(d_ff=read.integer("intermediate_size"), bias=bias) if "-" in used else None,
        "moe": _moe(read) if "E" in used else None,
    }
    config = OmniConfig(
        vocab_size=read.integer("vocab_size"),
        context=TowerConfig(
            pattern=pattern,
            d_model=read.integer("hidden_size"),
            norm_eps=eps,
            residual_fp32=read.flag("residual_in_fp32", default=False),
            **parts,
        ),
        tie_embeddings=read.flag("tie_word_embeddings", default=False),
        mtp=mtp,
        max_positions=read.integer("max_position_embeddings", default=4096),
        special_tokens=_special_tokens(read),
    )
    read.finish(FIXED, inert=(*INERT, *_UNUSED_PARTS))
    return config


_UNUSED_PARTS = _words(
    """
    intermediate_size num_attention_heads num_key_value_heads num_query_groups head_dim attention_head_dim
    mamba_num_heads mamba_head_dim ssm_state_size n_groups mamba_n_groups conv_kernel mamba_d_conv chunk_size
    mamba_chunk_size use_conv_bias mamba_conv_bias use_bias time_step_limit mamba_dt_limit time_step_min mamba_dt_min
    time_step_max mamba_dt_max n_routed_experts num_local_experts num_experts_per_tok moe_intermediate_size
    moe_shared_expert_intermediate_size moe_latent_size n_group topk_group norm_topk_prob routed_scaling_factor
    """
)
"""Sizes of kinds of layer that a pattern does not have; published files carry them all the same."""


def _pattern(read: Reader, string: str, *lists: str, default: Any = MISSING) -> str:
    """A pattern from its letters or from its list of layer types."""
    letters, types = read.take(string, default=None), read.take(*lists, default=None)
    if types is None and letters is None:
        if default is MISSING:
            raise ConfigError(f"config.json lacks {string} or {lists[0]}")
        return default
    if letters is not None and not isinstance(letters, str):
        raise ConfigError(f"config.json: {string} is {letters!r}; it must be a string of letters")
    if types is None:
        return letters
    if not isinstance(types, list) or not all(isinstance(t, str) and t in LAYER_TYPES for t in types):
        raise ConfigError(f"config.json: {lists[0]} is {str(types)[:200]}; known types: {', '.join(LAYER_TYPES)}")
    pattern = "".join(LAYER_TYPES[t] for t in types)
    if letters is not None and letters != pattern:
        raise ConfigError(f"config.json: {string} is {letters!r}, but {lists[0]} says {pattern!r}")
    return pattern


def _mtp(read: Reader) -> MTPConfig | None:
    """One physical block, whatever number of predicted tokens the file names: its weights are applied again."""
    depth = read.integer("num_nextn_predict_layers", default=0)
    pattern = _pattern(read, "mtp_hybrid_override_pattern", "mtp_layers_block_type", default="*E")
    return MTPConfig(pattern=pattern) if depth > 0 else None


def _mamba(read: Reader, eps: float) -> MambaConfig:
    return MambaConfig(
        n_heads=read.integer("mamba_num_heads"),
        head_dim=read.integer("mamba_head_dim"),
        d_state=read.integer("ssm_state_size", default=128),
        n_groups=read.integer("n_groups", "mamba_n_groups", default=8),
        d_conv=read.integer("conv_kernel", "mamba_d_conv", default=4),
        chunk_size=read.integer("chunk_size", "mamba_chunk_size", default=128),
        dt_limit=_limits(read.take("time_step_limit", "mamba_dt_limit", default=(0.0, math.inf))),
        dt_init=(
            read.number("time_step_min", "mamba_dt_min", default=1e-3),
            read.number("time_step_max", "mamba_dt_max", default=0.1),
        ),
        norm_eps=eps,
        conv_bias=read.flag("use_conv_bias", "mamba_conv_bias", default=True),
        bias=read.flag("use_bias", default=False),
    )


def _limits(value: Any) -> tuple[float, float]:
    """``[0.0, Infinity]``, also as the spellings that JSON without infinities leads to."""
    spelled = {"inf": math.inf, "Infinity": math.inf}
    try:
        low, high = (spelled[v["__float__"]] if isinstance(v, dict) else spelled.get(v, v) for v in value)
        return float(low), float(high)
    except (TypeError, ValueError, KeyError):
        raise ConfigError(f"config.json: time_step_limit is {value!r}; it must be two numbers") from None


def _attention(read: Reader) -> AttentionConfig:
    heads = read.integer("num_attention_heads")
    return AttentionConfig(
        n_heads=heads,
        n_kv_heads=read.integer("num_key_value_heads", "num_query_groups", default=heads),
        head_dim=read.integer("head_dim", "attention_head_dim", default=128),
    )


def _moe(read: Reader) -> MoEConfig:
    return MoEConfig(
        n_experts=read.integer("n_routed_experts", "num_local_experts"),
        n_active_experts=read.integer("num_experts_per_tok"),
        d_ff=read.integer("moe_intermediate_size"),
        d_shared=read.integer("moe_shared_expert_intermediate_size"),
        d_latent=read.integer("moe_latent_size", default=None),
        n_expert_groups=read.integer("n_group", default=1),
        n_active_groups=read.integer("topk_group", default=1),
        normalize=read.flag("norm_topk_prob", default=True),
        scale=read.number("routed_scaling_factor", default=1.0),
    )


def _special_tokens(read: Reader) -> dict[str, int | list[int]]:
    found = {
        "bos": read.integer("bos_token_id", default=None),
        "pad": read.integer("pad_token_id", default=None),
    }
    eos = read.take("eos_token_id", default=None)
    if isinstance(eos, list) and not all(isinstance(e, int) and not isinstance(e, bool) for e in eos):
        raise ConfigError(f"config.json: eos_token_id is {eos!r}; it must be a token id or a list of them")
    found["eos"] = eos
    return {name: value for name, value in found.items() if value is not None}


def from_config(config: OmniConfig) -> dict[str, Any]:
    """The published spelling, both patterns included. ConfigError where the layout has no word for a part."""
    tower = config.context
    _refuse_inexpressible(config)
    special = {f"{name}_token_id": config.special_tokens.get(name) for name in ("bos", "eos", "pad")}
    plain: dict[str, Any] = {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "vocab_size": config.vocab_size,
        "hidden_size": tower.d_model,
        "num_hidden_layers": tower.n_layers,
        "hybrid_override_pattern": tower.pattern,
        "layers_block_type": [_WRITTEN_TYPES[letter] for letter in tower.pattern],
        "layer_norm_epsilon": tower.norm_eps,
        "residual_in_fp32": tower.residual_fp32,
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": config.max_positions,
        "num_nextn_predict_layers": 1 if config.mtp else 0,
        **special,
    }
    if config.mtp:
        plain["mtp_hybrid_override_pattern"] = config.mtp.pattern
        plain["mtp_layers_block_type"] = [_WRITTEN_TYPES[letter] for letter in config.mtp.pattern]
    for part, write in _WRITERS.items():
        if getattr(tower, part) is not None:
            plain.update(write(getattr(tower, part)))
    return plain


def _refuse_inexpressible(config: OmniConfig) -> None:
    tower = config.context
    mamba, attention, mlp = tower.mamba, tower.attention, tower.mlp
    problems = [name for name in ("vision", "sound", "denoiser", "latent") if getattr(config, name) is not None]
    if tower.time is not None:
        problems.append("time conditioning")
    if attention and (attention.rotary or attention.qk_norm or attention.context_norm or attention.bias):
        problems.append("attention with rotary positions, norms of queries and keys, or biases")
    if mlp and mlp.activation != "relu2":
        problems.append(f"the activation {mlp.activation}")
    if mlp and mlp.bias and tower.moe:
        problems.append("biases beside experts")
    if mamba and mamba.norm_eps != tower.norm_eps:
        problems.append(f"a gated norm with eps {mamba.norm_eps} beside {tower.norm_eps}")
    if problems:
        raise ConfigError(f"the nemotron_h layout cannot express {', '.join(problems)}; use the family 'omni'")


def _write_mamba(m: MambaConfig) -> dict[str, Any]:
    plain = {
        "mamba_num_heads": m.n_heads,
        "mamba_head_dim": m.head_dim,
        "ssm_state_size": m.d_state,
        "n_groups": m.n_groups,
        "conv_kernel": m.d_conv,
        "chunk_size": m.chunk_size,
        "time_step_min": m.dt_init[0],
        "time_step_max": m.dt_init[1],
        "use_conv_bias": m.conv_bias,
        "use_bias": m.bias,
        "mamba_hidden_act": "silu",
    }
    if m.dt_limit != (0.0, math.inf):
        plain["time_step_limit"] = [{"__float__": "Infinity"} if math.isinf(v) else v for v in m.dt_limit]
    return plain


def _write_attention(a: AttentionConfig) -> dict[str, Any]:
    return {
        "num_attention_heads": a.n_heads,
        "num_key_value_heads": a.n_kv_heads,
        "head_dim": a.head_dim,
        "attention_bias": False,
    }


def _write_mlp(m: MLPConfig) -> dict[str, Any]:
    return {"intermediate_size": m.d_ff, "mlp_bias": m.bias, "mlp_hidden_act": "relu2"}


def _write_moe(m: MoEConfig) -> dict[str, Any]:
    return {
        "n_routed_experts": m.n_experts,
        "num_experts_per_tok": m.n_active_experts,
        "n_shared_experts": 1,
        "moe_intermediate_size": m.d_ff,
        "moe_shared_expert_intermediate_size": m.d_shared,
        "moe_latent_size": m.d_latent,
        "n_group": m.n_expert_groups,
        "topk_group": m.n_active_groups,
        "norm_topk_prob": m.normalize,
        "routed_scaling_factor": m.scale,
        "mlp_hidden_act": "relu2",
    }


_WRITERS = {"mamba": _write_mamba, "attention": _write_attention, "mlp": _write_mlp, "moe": _write_moe}

# -- names -------------------------------------------------------------------------------------------------------------

_SAME = _words(
    """
    norm.weight mixer.in_proj.weight mixer.in_proj.bias mixer.conv1d.weight mixer.conv1d.bias mixer.A_log mixer.D
    mixer.dt_bias mixer.norm.weight mixer.out_proj.weight mixer.out_proj.bias
    mixer.q_proj.weight mixer.k_proj.weight mixer.v_proj.weight mixer.o_proj.weight
    mixer.up_proj.weight mixer.up_proj.bias mixer.down_proj.weight mixer.down_proj.bias
    mixer.shared_experts.up_proj.weight mixer.shared_experts.down_proj.weight
    """
)
_RENAMED = {
    "mixer.gate.weight": "mixer.router.weight",
    "mixer.gate.e_score_correction_bias": "mixer.router.bias",
    "mixer.fc1_latent_proj.weight": "mixer.latent_in.weight",
    "mixer.fc2_latent_proj.weight": "mixer.latent_out.weight",
}


def layer_rules(published: str, ours: str) -> list[Rule]:
    """Names of the layers under ``published`` ("backbone.layers.{i}.") and ``ours`` ("context.blocks.{i}.")."""
    rules: list[Rule] = [Rename(published + name, ours + name) for name in _SAME]
    rules += [Rename(published + theirs, ours + name) for theirs, name in _RENAMED.items()]
    rules += [
        Stack(
            f"{published}mixer.experts.{{e}}.{matrix}.weight",
            f"{ours}mixer.experts.{matrix}",
            whole=f"{published}mixer.experts.{matrix}",
        )
        for matrix in ("up_proj", "down_proj")
    ]
    return rules


ALIASES = (
    Alias("language_model.{rest}", "{rest}"),
    Alias("model.{rest}", "backbone.{rest}"),
    Alias("backbone.embed_tokens.weight", "backbone.embeddings.weight"),
)


def rules(config: OmniConfig) -> tuple[Rule, ...]:
    """The table of section 3 of the reference."""
    table: list[Rule] = [
        *ALIASES,
        Rename("backbone.embeddings.weight", "embed.weight"),
        *layer_rules("backbone.layers.{i}.", "context.blocks.{i}."),
        Rename("backbone.norm_f.weight", "context.norm.weight"),
    ]
    if config.tie_embeddings:
        table.append(Drop("lm_head.weight", "tied to the embeddings"))
    else:
        table.append(Rename("lm_head.weight", "head.weight"))
    return (*table, *mtp_rules(config))


def mtp_rules(config: OmniConfig) -> tuple[Rule, ...]:
    """What leads into the block hangs on its first layer, its final norm on its last one."""
    if config.mtp is None:
        return ()
    last = len(config.mtp.pattern) - 1
    first = [Rename(f"mtp.layers.0.{name}.weight", f"mtp.{name}.weight") for name in ("enorm", "hnorm", "eh_proj")]
    final = Rename(f"mtp.layers.{last}.final_layernorm.weight", "mtp.norm.weight")
    return (*first, final, *layer_rules("mtp.layers.{j}.", "mtp.blocks.{j}."))


TWO_TOWERS = "NemotronHTwoTowerForCausalLM"
"""The architecture of :mod:`omni.families.twotower`, whose files have this model_type too."""


def matches(plain: dict[str, Any]) -> bool:
    architectures = plain.get("architectures") or []
    kind = plain.get("model_type")
    if TWO_TOWERS in architectures:
        return False
    return kind == "nemotron_h" or (kind is None and "NemotronHForCausalLM" in architectures)


FAMILY = Family(
    name="nemotron_h",
    matches=matches,
    to_config=to_config,
    from_config=from_config,
    rules=rules,
)
