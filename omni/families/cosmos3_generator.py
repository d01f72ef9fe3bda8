"""Cosmos 3's generators: the folder of a diffusers pipeline, or its transformer's folder alone.

    layers.{i}.self_attn.to_q.weight, ...            the context tower, which reads the prompt
    layers.{i}.self_attn.add_q_proj.weight, ...      denoiser.blocks.{2i}.mixer.q_proj.weight
    layers.{i}.mlp_moe_gen.up_proj.weight            denoiser.blocks.{2i+1}.mixer.up_proj.weight
    proj_in, audio_proj_in, action_proj_in           latents.proj_in, sound_latents.proj_in, actions.proj_in

Both towers have the same sizes. Names and sizes: ``reference`` cosmos3, sections 1.2, 1.4 and 9.
"""

from typing import Any

from omni.config import (
    ActionConfig,
    AttentionConfig,
    ConfigError,
    LatentConfig,
    MLPConfig,
    OmniConfig,
    RotaryConfig,
    SoundLatentConfig,
    TimeConfig,
    TowerConfig,
    replace,
)
from omni.families import cosmos3_actions
from omni.families.base import Family
from omni.families.cosmos3_generation import generation_of
from omni.families.cosmos3_names import generator_rules, text_rules, words
from omni.families.reader import Reader
from omni.rules import Alias, Rename, Rule

SECTIONS = (24, 20, 20)
COMPRESSION = 4  # frames of a video behind one latent of the published codec
_FIXED: dict[str, tuple[Any, ...]] = {
    "unified_3d_mrope_reset_spatial_ids": (True,),
    "temporal_compression_factor": (COMPRESSION,),
    "attention_dropout": (0, 0.0),
}
_INERT = words("_class_name _diffusers_version _name_or_path dtype torch_dtype backbone_type quantization_config")

# -- config.json -------------------------------------------------------------------------------------------------------


def matches(plain: dict[str, Any]) -> bool:
    """A pipeline's model_index.json with its components' configurations, or a transformer's config.json."""
    names = ("Cosmos3OmniTransformer", "Cosmos3OmniPipeline", "Cosmos3OmniModularPipeline")
    return plain.get("_class_name") in names


def to_config(plain: dict[str, Any]) -> OmniConfig:
    """ConfigError names what is not supported."""
    if "parts" in plain:
        if "transformer" not in plain["parts"]:
            raise ConfigError("model_index.json names a Cosmos 3 pipeline; its folder transformer/ is missing")
        return generator_of(plain["parts"])
    read = Reader(plain)
    context, denoiser = _towers(read)
    base, edge = read.number("base_fps", default=24.0), context.mlp.activation == "relu2"
    if not read.flag("enable_fps_modulation", default=True):
        raise ConfigError("config.json: enable_fps_modulation is false; supported: true")
    config = OmniConfig(
        vocab_size=read.integer("vocab_size", default=151_936),
        context=context,
        denoiser=denoiser,
        latent=_latent(read, base),
        sound_latent=_sound(read, base),
        action=_action(read, base),
        generation=generation_of({}, edge),
        max_positions=131_072 if edge else 262_144,
    )
    read.finish(_FIXED, _INERT)
    return config


def generator_of(parts: dict[str, Any]) -> OmniConfig:
    """Of a pipeline's folder: the transformer's configuration, with how it is meant to be run."""
    config = to_config(parts["transformer"])
    return replace(config, generation=generation_of(parts, edge=config.context.mlp.activation == "relu2"))


def _towers(read: Reader) -> tuple[TowerConfig, TowerConfig]:
    kind = read.take("hidden_act", default="silu")
    if kind not in ("silu", "relu2"):
        raise ConfigError(f"config.json: hidden_act is {kind!r}; supported: 'silu', 'relu2'")
    scaling = read.take("rope_scaling", default={})
    sections = read.take("rope_axes_dim", default=(scaling or {}).get("mrope_section", SECTIONS))
    eps = read.number("rms_norm_eps", default=1e-6)
    normed = read.flag("qk_norm_for_text", default=True)
    attention = AttentionConfig(
        n_heads=read.integer("num_attention_heads", default=32),
        n_kv_heads=read.integer("num_key_value_heads", default=8),
        head_dim=read.integer("head_dim", default=128),
        rotary=RotaryConfig(theta=read.number("rope_theta", default=5e6), sections=tuple(sections)),
        qk_norm=normed,
        norm_eps=eps,
        bias=read.flag("attention_bias", default=False),
    )
    context = TowerConfig(
        pattern="*-" * read.integer("num_hidden_layers", default=36),
        d_model=read.integer("hidden_size", default=4096),
        norm_eps=eps,
        attention=attention,
        mlp=MLPConfig(d_ff=read.integer("intermediate_size", default=12_288), activation=kind),
    )
    # Only where the text's keys are not normed does the generator have a norm of its own for them.
    own = read.flag("use_und_k_norm_for_gen", default=False) and not normed
    scale = read.number("timestep_scale", default=0.001) * 1000  # published times run from 0 to 1000
    denoiser = replace(
        context,
        attention=replace(attention, qk_norm=True, context_norm=own),
        time=TimeConfig(mode="input", scale=scale),
    )
    return context, denoiser


def _latent(read: Reader, base: float) -> LatentConfig:
    patch = read.integer("latent_patch_size", default=2)
    channels = read.integer("latent_channel", default=48)
    width = read.integer("patch_latent_dim", default=channels * patch**2)
    if width != channels * patch**2:
        raise ConfigError(
            f"config.json: patch_latent_dim is {width}; {channels} channels of {patch}x{patch} are expected"
        )
    return LatentConfig(
        patch_size=patch,
        channels=channels,
        norm=False,
        position_offset=read.integer("unified_3d_mrope_temporal_modality_margin", default=15_000),
        frames=COMPRESSION,
        positions_a_second=base / COMPRESSION,
    )


def _sound(read: Reader, base: float) -> SoundLatentConfig | None:
    channels, rate = read.integer("sound_dim", default=None), read.number("sound_latent_fps", default=25.0)
    if not read.flag("sound_gen", default=False):
        return None
    if channels is None:
        raise ConfigError("config.json: sound_gen is true; sound_dim is missing")
    return SoundLatentConfig(channels=channels, rate=rate, positions_a_second=base)


def _action(read: Reader, base: float) -> ActionConfig | None:
    width, domains = read.integer("action_dim", default=None), read.integer("num_embodiment_domains", default=32)
    if not read.flag("action_gen", default=False):
        return None
    if width is None:
        raise ConfigError("config.json: action_gen is true; action_dim is missing")
    return ActionConfig(width=width, n_domains=domains, positions_a_second=base / COMPRESSION)


def from_config(config: OmniConfig) -> dict[str, Any]:
    """The transformer's config.json. ConfigError where it has no word for a part."""
    context, latent = config.context, config.latent
    if latent is None or config.denoiser is None or context.attention is None or context.mlp is None:
        raise ConfigError("the layout of Cosmos 3's generators needs a denoiser of attention and MLPs, and latents")
    attention, sound, action = context.attention, config.sound_latent, config.action
    plain = {
        "_class_name": "Cosmos3OmniTransformer",
        "hidden_size": context.d_model,
        "intermediate_size": context.mlp.d_ff,
        "num_hidden_layers": max(1, context.n_layers // 2),
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads,
        "head_dim": attention.head_dim,
        "hidden_act": context.mlp.activation,
        "attention_bias": attention.bias,
        "rms_norm_eps": context.norm_eps,
        "rope_theta": attention.rotary.theta if attention.rotary else 0.0,
        "rope_axes_dim": list((attention.rotary and attention.rotary.sections) or SECTIONS),
        "qk_norm_for_text": attention.qk_norm,
        "use_und_k_norm_for_gen": config.denoiser.attention.context_norm,
        "vocab_size": config.vocab_size,
        "latent_channel": latent.channels,
        "latent_patch_size": latent.patch_size,
        "patch_latent_dim": latent.token_dim,
        "base_fps": round(latent.positions_a_second * COMPRESSION),
        "enable_fps_modulation": True,
        "unified_3d_mrope_reset_spatial_ids": True,
        "unified_3d_mrope_temporal_modality_margin": latent.position_offset,
        "timestep_scale": (config.denoiser.time.scale if config.denoiser.time else 0.0) / 1000,
        "sound_gen": sound is not None,
        "action_gen": action is not None,
        **({"sound_dim": sound.channels, "sound_latent_fps": sound.rate} if sound else {}),
        **({"action_dim": action.width, "num_embodiment_domains": action.n_domains} if action else {}),
    }
    back = to_config(plain)
    denoised = ("denoiser", "diffusion", "latent", "sound_latent", "action")
    parts = ("context", *denoised, "vision", "sound", "mtp", "tie_embeddings")
    wanted = replace(config, action=cosmos3_actions.without(config.action))  # the rest: action_statistics.json
    lost = [name for name in parts if getattr(wanted, name) != getattr(back, name)]
    if lost:
        raise ConfigError(f"the layout of Cosmos 3's generators cannot express this model's {', '.join(lost)}")
    return plain


# -- the family --------------------------------------------------------------------------------------------------------


def rules(config: OmniConfig) -> tuple[Rule, ...]:
    edge = config.context.mlp.activation == "relu2"
    return (
        Alias("net.{rest}", "{rest}"),
        Alias("language_model.{rest}", "{rest}"),
        Alias("model.{rest}", "{rest}"),
        *text_rules(edge),
        Rename("lm_head.weight", "head.weight"),
        *generator_rules(config),
    )


FAMILY = Family(
    name="cosmos3_generator",
    matches=matches,
    to_config=to_config,
    from_config=from_config,
    rules=rules,
    read_media=cosmos3_actions.read_media,
    write_media=cosmos3_actions.write_media,
    parts={"": "", "transformer": ""},
    stem="diffusion_pytorch_model",
)
