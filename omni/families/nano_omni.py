"""Nemotron 3 Nano Omni and Super Omni: Nano V2 VL's parts, tubelets of two frames, and a Parakeet encoder for sound.

    config.json:  vision_config -> vision,  sound_config -> sound,  llm_config -> context,  the rest -> media
    names:        vision_model.radio_model.*,  mlp1.*,  sound_encoder.encoder.*,  sound_projection.*,
                  language_model.backbone.*,  mtp.*

Both the published spelling and that of transformers are read, the published one is written. Videos have no placeholder
of their own: their frames are runs of image tokens.
"""

from collections.abc import Mapping
from typing import Any

from omni.config import ConfigError, MediaConfig, OmniConfig, SoundConfig, VisionConfig, replace
from omni.families import nano_shared as shared
from omni.families.base import Family, Preset
from omni.families.nano_shared import count, part
from omni.families.nano_vl import LABELS as NANO_VL
from omni.families.nemotron_h_sizes import NANO_3_30B
from omni.families.reader import Reader
from omni.rules import Drop, Rename, Rule
from omni.tokenizers.sound import HOP, N_FFT, PREEMPHASIS, WINDOW

LABELS = (
    "NemotronH_Nano_Omni_Reasoning_V3",
    "NemotronH_Super_Omni_Reasoning_V3",
    "NemotronH_Omni_Reasoning_V3",
    "nemotron_h_omni",
)

MEDIA = MediaConfig(
    image="dynamic",
    image_text="<img>{run}</img>",
    video_text="{label}<img>{run}</img>",
    video_join="\n",
    video_label="tubelet",
    video_size="patches",
    sound_text="<so_start>{run}<so_end>",
)
MEDIA_FREE = (
    "min_patches", "max_patches", "max_context", "video_patches", "video_size", "tile", "fps", "max_frames",
)  # fmt: skip
"""What the files of a checkpoint state; the rest of :data:`MEDIA` is the layout's."""

# -- config.json -------------------------------------------------------------------------------------------------------

SOUND_INERT = shared.words(
    """
    architectures model_type dtype torch_dtype transformers_version _name_or_path name_or_path feat_in
    num_key_value_heads initializer_range dropout dropout_positions layerdrop activation_dropout attention_dropout
    max_position_embeddings return_dict output_attentions output_hidden_states _attn_implementation id2label label2id
    problem_type is_encoder_decoder chunk_size_feed_forward use_cache
    """
)
"""``feat_in`` is stale in the published file: ``num_mel_bins`` counts."""

SOUND_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "projection_bias": (False,),
    "subsampling_conv_kernel_size": (3,),
    "subsampling_conv_stride": (2,),
}
VISION_FIXED = {k: v for k, v in shared.VISION_FIXED.items() if k != "video_temporal_patch_size"}


def matches(plain: dict[str, Any]) -> bool:
    named = shared.labelled(plain, LABELS)
    return named or (shared.labelled(plain, NANO_VL) and shared.is_omni(plain))


def to_config(plain: dict[str, Any]) -> OmniConfig:
    """config.json in either spelling -> our configuration. ConfigError names what is not supported."""
    read = Reader(plain)
    text = shared.read_text(read)
    vision, seen = shared.read_vision(read, _tubelet(read), final_norm=text.mtp is not None)
    sound = _sound(part(read, "sound_config", "audio_config")) if _has_sound(plain) else None
    read.take("sound_config", "audio_config", default=None)
    media = _patches(MEDIA, {**(seen.plain.get("args") or {}), **seen.plain}, vision)
    special = shared.read_special(read, text)
    read.integer("force_image_size", default=None)  # of fixed-size training; pictures here keep their own
    seen.take("video_temporal_patch_size", default=None)
    if seen.flag("separate_video_embedder", default=vision.video_stem) != vision.video_stem:
        raise ConfigError(f"config.json: separate_video_embedder is not {vision.video_stem}")
    seen.finish(VISION_FIXED, (*shared.VISION_INERT, *shared.PATCHES))
    read.finish(shared.FIXED, shared.INERT)
    return replace(text, vision=vision, sound=sound, media=media, special_tokens=special)


def _tubelet(read: Reader) -> int:
    """Frames behind one patch; both places that state it must agree."""
    vision = part(read, "vision_config")
    outer = read.integer("video_temporal_patch_size", default=None)
    inner = vision.get("video_temporal_patch_size")
    if None not in (outer, inner) and outer != inner:
        raise ConfigError(f"config.json: video_temporal_patch_size is {outer}; vision_config says {inner}")
    found = next((n for n in (outer, inner) if n is not None), 2)
    if isinstance(found, bool) or not isinstance(found, int) or not 2 <= found <= 64:
        raise ConfigError(f"config.json: video_temporal_patch_size is {found!r}; it must lie between 2 and 64")
    return found


def _has_sound(plain: dict[str, Any]) -> bool:
    return plain.get("sound_config") is not None or plain.get("audio_config") is not None


def _patches(media: MediaConfig, plain: dict[str, Any], vision: VisionConfig) -> MediaConfig:
    """Patches of pictures and frames, where ``plain`` (vision_config or a processor's file) states them."""
    patches = count(plain, "video_target_num_patches", default=media.video_patches)
    square = plain.get("video_maintain_aspect_ratio") is False
    side = max(vision.shuffle, int(patches**0.5) // vision.shuffle * vision.shuffle) * vision.patch_size
    return replace(
        media,
        min_patches=count(plain, "min_num_patches", default=media.min_patches),
        max_patches=count(plain, "max_num_patches", default=media.max_patches),
        max_context=count(plain, "max_model_len", default=media.max_context),
        video_patches=patches,
        video_size="tile" if square else media.video_size,
        tile=side if square else media.tile,
    )


def _sound(plain: dict[str, Any]) -> SoundConfig:
    read = Reader(plain)
    config = SoundConfig(
        d_model=read.integer("hidden_size"),
        n_layers=read.integer("num_hidden_layers"),
        n_heads=read.integer("num_attention_heads"),
        d_ff=read.integer("intermediate_size"),
        conv_kernel=read.integer("conv_kernel_size", default=9),
        conv_bias=read.flag("convolution_bias", default=True),
        bias=read.flag("attention_bias", default=False),
        scale_input=read.flag("scale_input", default=False),
        n_mels=read.integer("num_mel_bins", default=128),
        subsampling=read.integer("subsampling_factor", default=8),
        channels=read.integer("subsampling_conv_channels", default=256),
        d_projector=read.integer("projection_hidden_size", default=4096),
        sampling_rate=read.integer("sampling_rate", default=16_000),
    )
    read.finish(SOUND_FIXED, SOUND_INERT)
    return config


def from_config(config: OmniConfig) -> dict[str, Any]:
    media = config.media
    shared.refuse_inexpressible(config, "nano_omni", MEDIA, MEDIA_FREE)
    v = config.vision
    if not v.video_stem or v.final_norm != (config.mtp is not None):
        raise ConfigError("the nano_omni layout has a stem for tubelets, and a final norm with a prediction block")
    kind = "Super" if config.mtp is not None else "Nano"
    plain = shared.write_common(config, f"NemotronH_{kind}_Omni_Reasoning_V3")
    plain["video_temporal_patch_size"] = v.tubelet
    plain["vision_config"] |= {
        "video_temporal_patch_size": v.tubelet,
        "separate_video_embedder": True,
        **_write_patches(media),
    }
    if config.sound is not None:
        plain["sound_config"] = _write_sound(config.sound)
        if _sound(plain["sound_config"]) != config.sound:
            raise ConfigError(
                "the nano_omni layout cannot express other clips, another eps or the last frame of sounds"
            )
    return plain


def _write_patches(media: MediaConfig) -> dict[str, Any]:
    return {
        "min_num_patches": media.min_patches,
        "max_num_patches": media.max_patches,
        "video_target_num_patches": media.video_patches,
        "video_maintain_aspect_ratio": media.video_size != "tile",
    }


def _write_sound(s: SoundConfig) -> dict[str, Any]:
    return {
        "model_type": "parakeet_encoder",  # published: "parakeet", which transformers 5.23 refuses
        "hidden_size": s.d_model,
        "num_hidden_layers": s.n_layers,
        "num_attention_heads": s.n_heads,
        "intermediate_size": s.d_ff,
        "conv_kernel_size": s.conv_kernel,
        "convolution_bias": s.conv_bias,
        "attention_bias": s.bias,
        "scale_input": s.scale_input,
        "num_mel_bins": s.n_mels,
        "subsampling_factor": s.subsampling,
        "subsampling_conv_channels": s.channels,
        "projection_hidden_size": s.d_projector,
        "projection_bias": False,
        "sampling_rate": s.sampling_rate,
    }


# -- the processors' files ---------------------------------------------------------------------------------------------


def read_media(config: OmniConfig, files: Mapping[str, dict[str, Any]]) -> OmniConfig:
    images, videos = shared.image_file(files), shared.video_file(files)
    for plain in (images, videos):
        shared.check_file(plain, config.vision, "the processors' files")
    vision = shared.read_norms(config.vision, images, videos)
    media = _patches(config.media, {**_write_patches(config.media), **images, **videos}, vision)
    _check_sound(config.sound, shared.nested(files, "feature_extractor"))
    return replace(config, vision=vision, media=shared.read_sampling(media, videos))


def _check_sound(config: SoundConfig | None, plain: dict[str, Any]) -> None:
    """The front end is fixed; a file that asks for another is refused."""
    if config is None:
        return
    wanted = {
        "feature_size": config.n_mels,
        "sampling_rate": config.sampling_rate,
        "hop_length": HOP,
        "n_fft": N_FFT,
        "win_length": WINDOW,
        "preemphasis": PREEMPHASIS,
    }
    for key, value in wanted.items():
        if plain.get(key, value) != value:
            raise ConfigError(f"processor_config.json: {key} is {plain[key]!r}; this model's is {value}")


def write_media(config: OmniConfig) -> dict[str, dict[str, Any]]:
    media = config.media
    patches, lead = _write_patches(media), "NemotronH_Omni_Reasoning_V3"
    images = {k: v for k, v in patches.items() if not k.startswith("video")}
    videos = {k: v for k, v in patches.items() if k.startswith("video")}
    files = {
        "preprocessor_config.json": {
            "image_processor_type": f"{lead}ImageProcessor",
            "processor_class": f"{lead}Processor",
            **shared.write_pixels(config.vision),
            **images,
            "max_model_len": media.max_context,
        },
        "video_preprocessor_config.json": {
            "video_processor_type": f"{lead}VideoProcessor",
            **shared.write_sampling(config),
            **videos,
        },
    }
    if config.sound is not None:
        files["processor_config.json"] = {
            "processor_class": f"{lead}Processor",
            "audio_sampling_rate": config.sound.sampling_rate,
            "audio_subsampling_factor": config.sound.subsampling,
            "video_temporal_patch_dim": config.vision.tubelet,
            "feature_extractor": {
                "feature_extractor_type": "ParakeetFeatureExtractor",
                "feature_size": config.sound.n_mels,
                "sampling_rate": config.sound.sampling_rate,
            },
        }
    return files


# -- names -------------------------------------------------------------------------------------------------------------

_MATRICES = shared.words(
    """
    feed_forward1.linear1 feed_forward1.linear2 feed_forward2.linear1 feed_forward2.linear2
    self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj
    """
)
_CONVS = shared.words("conv.pointwise_conv1 conv.depthwise_conv conv.pointwise_conv2")
_NORMS = shared.words("norm_feed_forward1 norm_self_att norm_conv norm_feed_forward2 norm_out conv.norm")
_OTHERS = shared.words(
    """
    self_attn.relative_k_proj.weight self_attn.bias_u self_attn.bias_v
    conv.norm.running_mean conv.norm.running_var conv.norm.num_batches_tracked
    """
)


def sound_rules(s: SoundConfig) -> tuple[Rule, ...]:
    """The encoder's names are ours; the projector's are not."""
    theirs = "sound_encoder.encoder."
    both = [f"{name}.{end}" for name in _NORMS for end in ("weight", "bias")] + list(_OTHERS)
    both += [f"{name}.weight" for name in (*_MATRICES, *_CONVS)]
    both += [f"{name}.bias" for name in _MATRICES if s.bias] + [f"{name}.bias" for name in _CONVS if s.conv_bias]
    return (
        Rename(f"{theirs}subsampling.{{rest}}", "sound.subsampling.{rest}"),
        *(Rename(f"{theirs}layers.{{i}}.{name}", f"sound.layers.{{i}}.{name}") for name in both),
        Rename("sound_projection.norm.weight", "sound_projector.norm.weight"),
        Rename("sound_projection.linear1.weight", "sound_projector.up_proj.weight"),
        Rename("sound_projection.linear2.weight", "sound_projector.down_proj.weight"),
        Drop(f"{theirs}feature_extractor.{{rest}}", "filters and window are computed"),
        *(Drop(f"{theirs}layers.{{i}}.{name}.bias", "stray: the config has no such bias") for name in _CONVS),
    )


def rules(config: OmniConfig) -> tuple[Rule, ...]:
    sound = sound_rules(config.sound) if config.sound is not None else ()
    return (*shared.rules(config), *sound)


FAMILY = Family(
    name="nano_omni",
    matches=matches,
    to_config=to_config,
    from_config=from_config,
    rules=rules,
    read_media=read_media,
    write_media=write_media,
)

PRESETS = {
    "nemotron-3-nano-omni-30b": Preset(
        replace(
            NANO_3_30B,
            vision=replace(shared.RADIO_H, tubelet=2, video_stem=True),
            sound=SoundConfig(d_model=1024, n_layers=24, n_heads=8, d_ff=4096),
            media=MEDIA,
            max_positions=131_072,
            special_tokens={"bos": 1, "eos": 11, "pad": 0, "image": 18, "video_mark": 131_081, "sound": 27},
            sampling={"temperature": 0.6, "top_p": 0.95},
        ),
        "nvidia/Nemotron-3-Nano-Omni-30B-A3B-Reasoning-BF16",
    )
}
