"""Cosmos 3: the reasoners of Nano and Super (Qwen3-VL with DeepStack) and of Edge (SigLIP 2, dense squared ReLU).

One published block, attention and feed-forward, is two of our layers: ``*-``. A published folder holds the generator
beside the reasoner (:mod:`omni.families.cosmos3_generator`): where it does, one model is both. Source: ``reference``
cosmos3, sections 1, 2 and 7; names: :mod:`omni.families.cosmos3_names`; files of processors:
:mod:`omni.families.cosmos3_media`; sizes: :mod:`omni.families.cosmos3_sizes`.
"""

import math
from typing import Any

from omni.config import (
    AttentionConfig,
    ConfigError,
    MediaConfig,
    MLPConfig,
    OmniConfig,
    RotaryConfig,
    TowerConfig,
    VisionConfig,
    replace,
)
from omni.families import cosmos3_generator
from omni.families.base import Family
from omni.families.cosmos3_generator import SECTIONS
from omni.families.cosmos3_media import read_media, write_media
from omni.families.cosmos3_names import rules, words
from omni.families.reader import MISSING, Reader

NANO_MEDIA = MediaConfig(
    image="smart",
    video_text="{label}<|vision_start|>{run}<|vision_end|>",
    video_mark="<|vision_start|><|video_pad|><|vision_end|>",
    video_label="seconds",
    video_size="smart",
    video_plan="uniform",
    min_frames=4,
    max_frames=768,
)
EDGE_MEDIA = replace(NANO_MEDIA, image="frame")

# -- config.json: reading ----------------------------------------------------------------------------------------------


_INERT = words(
    """
    architectures auto_map model_type dtype torch_dtype transformers_version _name_or_path name_or_path use_cache
    initializer_range attention_dropout output_attentions output_hidden_states return_dict chunk_size_feed_forward
    id2label label2id problem_type is_encoder_decoder tokenizer_class pretraining_tp _attn_implementation
    attn_implementation quantization_config
    """
)
_FIXED_TEXT: dict[str, tuple[Any, ...]] = {
    "sliding_window": (None,),
    "use_sliding_window": (False,),
    "attention_scale": (None,),
}
_INERT_TEXT = (*_INERT, "tie_word_embeddings", "max_window_layers", "layer_types")
_HYBRID_INERT = words(
    """
    hidden_dropout rescale_prenorm_residual residual_in_fp32 mamba_hidden_act mamba_num_heads mamba_head_dim
    mamba_proj_bias mamba_ssm_cache_dtype ssm_state_size n_groups conv_kernel chunk_size use_conv_bias use_bias
    use_mamba_kernels expand num_logits_to_keep time_step_limit time_step_min time_step_max time_step_floor
    time_step_rank layers_block_type
    """
)
"""Keys of older text configurations of Edge: sizes of the Mamba layers that their pattern does not have."""


def is_edge(plain: dict[str, Any]) -> bool:
    return any("edge" in str(name).lower() for name in (plain.get("model_type"), *(plain.get("architectures") or [])))


def to_config(plain: dict[str, Any]) -> OmniConfig:
    """A published config.json -> our configuration. ConfigError names what is not supported."""
    read, edge = Reader(plain), is_edge(plain)
    text = Reader(_part(read, "text_config"))
    tower = _edge_tower(text) if edge else _nano_tower(text)
    vision = Reader(_part(read, "vision_config"))
    config = OmniConfig(
        vocab_size=text.integer("vocab_size"),
        context=tower,
        tie_embeddings=read.flag("tie_word_embeddings", default=False),
        vision=_edge_vision(vision, read) if edge else _nano_vision(vision, tower),
        media=EDGE_MEDIA if edge else NANO_MEDIA,
        max_positions=text.integer("max_position_embeddings", default=131_072 if edge else 262_144),
        special_tokens=_special_tokens(read, text),
    )
    text.finish(_FIXED_TEXT, (*_INERT_TEXT, *(_HYBRID_INERT if edge else ())))
    vision.finish({}, _INERT)
    parts = _part(read, "parts", {})
    read.finish({}, _INERT)
    return _with_generator(config, parts) if "transformer" in parts else config


def _with_generator(config: OmniConfig, parts: dict[str, Any]) -> OmniConfig:
    """The reasoner is the generator's context tower."""
    whole = cosmos3_generator.generator_of(parts)
    if (whole.context, whole.vocab_size) != (config.context, config.vocab_size):
        raise ConfigError("config.json and transformer/config.json describe different towers of text")
    added = ("denoiser", "latent", "sound_latent", "action", "generation")
    return replace(config, **{name: getattr(whole, name) for name in added})


def _part(read: Reader, name: str, default: Any = MISSING) -> dict[str, Any]:
    part = read.take(name, default=default)
    if not isinstance(part, dict):
        raise ConfigError(f"config.json: {name} is {str(part)[:80]}; it must be an object")
    return part


def _nano_tower(text: Reader) -> TowerConfig:
    _expect(text, "hidden_act", "silu", "swish")
    mlp = MLPConfig(d_ff=text.integer("intermediate_size"), activation="silu")
    eps = text.number("rms_norm_eps", default=1e-6)
    return _tower(text, text.integer("num_hidden_layers"), mlp, eps, theta=5e6, qk_norm=True)


def _edge_tower(text: Reader) -> TowerConfig:
    """Older exports have the pattern of a Nemotron-H, in which attention and MLP are layers of their own."""
    _expect(text, "hidden_act", "relu2")
    _expect(text, "mlp_hidden_act", "relu2")
    layers = text.integer("num_hidden_layers")
    pattern = text.take("hybrid_override_pattern", default=None)
    if pattern is not None:
        if pattern != "*-" * (layers // 2) or layers % 2:
            raise ConfigError(
                f"config.json: hybrid_override_pattern is {pattern!r}; supported: {layers} letters, *- by turns"
            )
        layers //= 2
    bias = text.flag("mlp_bias", default=False)
    mlp = MLPConfig(d_ff=text.integer("intermediate_size"), activation="relu2", bias=bias)
    eps = text.number("rms_norm_eps", "layer_norm_epsilon", "norm_eps", default=1e-5)
    return _tower(text, layers, mlp, eps, theta=1e8, qk_norm=False)


def _tower(text: Reader, layers: int, mlp: MLPConfig, eps: float, *, theta: float, qk_norm: bool) -> TowerConfig:
    heads = text.integer("num_attention_heads")
    attention = AttentionConfig(
        n_heads=heads,
        n_kv_heads=text.integer("num_key_value_heads", default=heads),
        head_dim=text.integer("head_dim", "attention_head_dim", default=128),
        rotary=_rotary(text, theta),
        qk_norm=qk_norm,
        norm_eps=eps,
        bias=text.flag("attention_bias", default=False),
    )
    if not 1 <= layers <= 2048:
        raise ConfigError(f"config.json: num_hidden_layers is {layers}; it must lie between 1 and 2048")
    d_model = text.integer("hidden_size")
    return TowerConfig(pattern="*-" * layers, d_model=d_model, norm_eps=eps, attention=attention, mlp=mlp)


def _rotary(text: Reader, theta: float) -> RotaryConfig:
    """``rope_parameters``; ``rope_theta`` and ``rope_scaling`` in older files."""
    given: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        given |= _part(text, name, {})
    inner = Reader(given)
    theta = text.number("rope_theta", default=inner.number("rope_theta", default=theta))
    _expect(inner, "rope_type", "default", "mrope")
    _expect(inner, "type", "default", "mrope")
    _expect(inner, "mrope_interleaved", True)
    _expect(inner, "partial_rotary_factor", 1.0)
    _expect(text, "partial_rotary_factor", 1.0)
    sections = inner.take("mrope_section", default=SECTIONS)
    if not isinstance(sections, (list, tuple)) or [type(s) for s in sections] != [int] * 3 or min(sections) < 0:
        raise ConfigError(f"config.json: mrope_section is {sections!r}; it must be three whole numbers")
    inner.finish({}, ())
    return RotaryConfig(theta=theta, sections=tuple(sections))


def _nano_vision(vision: Reader, tower: TowerConfig) -> VisionConfig:
    d = vision.integer("hidden_size")
    merge = vision.integer("spatial_merge_size", default=2)
    taps = vision.take("deepstack_visual_indexes", default=(8, 16, 24))
    if not isinstance(taps, (list, tuple)) or any(type(tap) is not int for tap in taps):
        raise ConfigError(f"config.json: deepstack_visual_indexes is {taps!r}; it must be a list of layers")
    rope = Reader(_part(vision, "rope_parameters", {}))
    _expect(rope, "rope_type", "axial", "default")
    theta = rope.number("rope_theta", default=10_000.0)
    rope.finish({}, ())
    out = vision.integer("out_hidden_size", default=tower.d_model)
    if out != tower.d_model:
        raise ConfigError(f"config.json: out_hidden_size is {out}; the text tower has {tower.d_model} channels")
    return VisionConfig(
        d_model=d,
        n_layers=vision.integer("depth", "num_hidden_layers"),
        n_heads=vision.integer("num_heads", "num_attention_heads"),
        max_grid=_side(vision, "num_position_embeddings", 2304),
        shuffle=merge,
        tubelet=vision.integer("temporal_patch_size", default=2),
        positions="interpolated",
        rotary_theta=theta,
        d_projector=merge**2 * d,
        deepstack=tuple((tap, 2 * i + 1) for i, tap in enumerate(taps)),
        **_vision(vision),
    )


def _edge_vision(vision: Reader, read: Reader) -> VisionConfig:
    return VisionConfig(
        d_model=vision.integer("hidden_size"),
        n_layers=vision.integer("num_hidden_layers"),
        n_heads=vision.integer("num_attention_heads"),
        max_grid=_side(vision, "num_patches", 256),
        shuffle=vision.integer("spatial_merge_size", default=2),
        norm_eps=vision.number("layer_norm_eps", default=1e-6),
        positions="resized",
        final_norm=True,
        d_projector=read.integer("projector_hidden_size", default=11_520),
        **_vision(vision),
    )


def _vision(vision: Reader) -> dict[str, Any]:
    """What both towers have."""
    _expect(vision, "hidden_act", "gelu_pytorch_tanh")
    _expect(vision, "in_channels", 3)
    _expect(vision, "num_channels", 3)
    return {
        "d_ff": vision.integer("intermediate_size"),
        "patch_size": vision.integer("patch_size", default=16),
        "n_prefix": 0,
        "stem_bias": True,
        "activation": "gelu_tanh",
        "projector": "gelu",
    }


def _side(read: Reader, name: str, default: int) -> int:
    count = read.integer(name, default=default)
    side = math.isqrt(max(count, 0))
    if side**2 != count or not side:
        raise ConfigError(f"config.json: {name} is {count}; it must be the square of a whole number")
    return side


def _expect(read: Reader, name: str, *allowed: Any) -> None:
    """A key that may be absent."""
    value = read.take(name, default=allowed[0])
    if value not in allowed:
        raise ConfigError(f"config.json: {name} is {value!r}; supported: {', '.join(map(repr, allowed))}")


def _special_tokens(read: Reader, text: Reader) -> dict[str, int | list[int]]:
    found: dict[str, Any] = {}
    for name in ("bos", "eos", "pad"):
        whole, own = (r.take(f"{name}_token_id", default=None) for r in (read, text))
        found[name] = own if whole is None else whole
    for name in ("image", "video", "vision_start", "vision_end"):
        found[name] = read.integer(f"{name}_token_id", default=None)
    for name, value in found.items():
        listed = value if isinstance(value, list) and name == "eos" else [value]
        if any(v is not None and type(v) is not int for v in listed):
            raise ConfigError(f"config.json: {name}_token_id is {value!r}; it must be a token id")
    return {name: value for name, value in found.items() if value is not None}


# -- config.json: writing ----------------------------------------------------------------------------------------------


def from_config(config: OmniConfig) -> dict[str, Any]:
    """The published spelling. ConfigError where the layout has no word for a part."""
    tower, vision = config.context, config.vision
    if vision is None or tower.attention is None or tower.mlp is None or tower.attention.rotary is None:
        raise ConfigError("the cosmos3 layout needs a vision tower, attention with rotary positions, and MLPs")
    edge = tower.mlp.activation == "relu2"
    special = {name: config.special_tokens.get(name) for name in ("bos", "eos", "pad")}
    kind = "cosmos3_edge" if edge else "cosmos3_omni"
    plain = {
        "architectures": [f"Cosmos3{'Edge' if edge else 'Omni'}ForConditionalGeneration"],
        "model_type": kind,
        **{
            f"{name}_token_id": config.special_tokens[name]
            for name in ("image", "video", "vision_start", "vision_end")
            if name in config.special_tokens
        },
        "text_config": {
            "model_type": "cosmos3_edge_text" if edge else "qwen3_vl_text",
            **_write_tower(config),
            **{f"{name}_token_id": value for name, value in special.items()},
        },
        "tie_word_embeddings": config.tie_embeddings,
        "vision_config": _write_edge_vision(vision) if edge else _write_nano_vision(vision, tower.d_model),
    }
    if edge:
        plain["projector_hidden_size"] = vision.d_projector or 4 * vision.shuffle**2 * vision.d_model
        plain["text_config"]["mlp_bias"] = tower.mlp.bias
    _refuse_inexpressible(config, to_config(plain))
    return plain


def _write_tower(config: OmniConfig) -> dict[str, Any]:
    tower = config.context
    attention = tower.attention
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": tower.d_model,
        "intermediate_size": tower.mlp.d_ff,
        "num_hidden_layers": max(1, tower.n_layers // 2),
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads,
        "head_dim": attention.head_dim,
        "hidden_act": tower.mlp.activation,
        "attention_bias": attention.bias,
        "rms_norm_eps": tower.norm_eps,
        "max_position_embeddings": config.max_positions,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": attention.rotary.theta,
            "mrope_section": list(attention.rotary.sections or SECTIONS),
            **({"mrope_interleaved": True} if tower.mlp.activation == "silu" else {}),
        },
    }


def _write_nano_vision(v: VisionConfig, out: int) -> dict[str, Any]:
    return {
        "model_type": "qwen3_vl_vision",
        "depth": v.n_layers,
        "hidden_size": v.d_model,
        "intermediate_size": v.d_ff,
        "num_heads": v.n_heads,
        "in_channels": 3,
        "hidden_act": "gelu_pytorch_tanh",
        "patch_size": v.patch_size,
        "spatial_merge_size": v.shuffle,
        "temporal_patch_size": v.tubelet,
        "out_hidden_size": out,
        "num_position_embeddings": v.max_grid**2,
        "deepstack_visual_indexes": [layer for layer, _ in v.deepstack],
        "rope_parameters": {"rope_type": "axial", "rope_theta": v.rotary_theta},
    }


def _write_edge_vision(v: VisionConfig) -> dict[str, Any]:
    return {
        "model_type": "cosmos3_edge_vision",
        "hidden_size": v.d_model,
        "intermediate_size": v.d_ff,
        "num_hidden_layers": v.n_layers,
        "num_attention_heads": v.n_heads,
        "num_channels": 3,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": v.norm_eps,
        "patch_size": v.patch_size,
        "num_patches": v.max_grid**2,
        "spatial_merge_size": v.shuffle,
    }


def _refuse_inexpressible(config: OmniConfig, back: OmniConfig) -> None:
    """What does not come back from the file is not in it. Normalising is written into the processors' files."""
    vision = replace(back.vision, mean=config.vision.mean, std=config.vision.std)
    if not config.vision.d_projector:
        vision = replace(vision, d_projector=0)
    back = replace(back, vision=vision)
    text = ("context", "vision", "tie_embeddings", "mtp", "sound")
    parts = (*text, "denoiser", "diffusion", "latent", "sound_latent", "action")
    lost = [name for name in parts if getattr(config, name) != getattr(back, name)]
    if lost:
        raise ConfigError(f"the cosmos3 layout cannot express this model's {', '.join(lost)}; use the family 'omni'")


# -- the family -------------------------------------------------------------------------------------------------------

_CLASSES = words(
    "Cosmos3OmniForConditionalGeneration Cosmos3ForConditionalGeneration Cosmos3EdgeForConditionalGeneration"
)


def matches(plain: dict[str, Any]) -> bool:
    kind = plain.get("model_type")
    return kind in ("cosmos3_omni", "cosmos3_edge") or (
        kind in (None, "cosmos3") and any(name in _CLASSES for name in plain.get("architectures") or [])
    )


FAMILY = Family(
    name="cosmos3",
    matches=matches,
    to_config=to_config,
    from_config=from_config,
    rules=rules,
    read_media=read_media,
    write_media=write_media,
    parts={"": "", "transformer": "", "vision_encoder": ""},
)
