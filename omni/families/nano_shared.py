"""What Nano V2 VL and Nano Omni share: RADIO and its projector before a Nemotron-H, and the processors' files.

config.json:  vision_config -> vision,  llm_config -> context
names:        vision_model.radio_model.*,  mlp1.*,  language_model.backbone.*
"""

import math
from collections.abc import Mapping
from typing import Any

from omni.config import ConfigError, MediaConfig, OmniConfig, VisionConfig, replace
from omni.families import nemotron_h
from omni.families.reader import Reader
from omni.rules import Alias, Drop, Rename, Rule, prefixed

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's CLIP; holds where no file says otherwise
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

VITS = {  # timm's names: d_model, n_layers, n_heads, d_ff
    "vit_small_patch16_224": (384, 12, 6, 1536),
    "vit_base_patch16_224": (768, 12, 12, 3072),
    "vit_large_patch16_224": (1024, 24, 16, 4096),
    "vit_huge_patch16_224": (1280, 32, 16, 5120),
}

RADIO_H = VisionConfig(
    d_model=1280, n_layers=32, n_heads=16, d_ff=5120, d_projector=20_480, mean=CLIP_MEAN, std=CLIP_STD
)

# -- config.json -------------------------------------------------------------------------------------------------------


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


INERT = words(
    """
    architectures auto_map model_type dtype torch_dtype transformers_version _name_or_path name_or_path is_composition
    tokenizer_class attn_implementation _attn_implementation use_cache tie_word_embeddings return_dict
    output_attentions output_hidden_states template image_tag_type quantization_config
    img_context_token img_start_token img_end_token video_context_token audio_context_token audio_start_token
    audio_end_token sound_context_token img_start_token_id img_end_token_id sound_start_token_id sound_end_token_id
    video_pruning_rate select_layer use_backbone_lora use_llm_lora image_size dynamic_resolution pad2square
    """
)
"""``video_pruning_rate`` is a wish for the server: whoever prepares the messages says how much is left out."""

FIXED: dict[str, tuple[Any, ...]] = {"ps_version": ("v2",), "use_thumbnail": (True,), "dynamic_image_size": (True,)}

VISION_INERT = words(
    """
    architectures auto_map model_type dtype torch_dtype transformers_version _name_or_path name_or_path version args
    preferred_resolution image_size initializer_range attention_probs_dropout_prob hidden_dropout_prob drop_path_rate
    summary_idxs adaptor_names adaptor_configs feature_normalizer_config inter_feature_normalizer_config patch_dim
    video_patch_dim norm_mean norm_std return_dict output_attentions output_hidden_states _attn_implementation
    id2label label2id problem_type is_encoder_decoder chunk_size_feed_forward use_cache
    """
)
"""The tower's own mean and std are those of its conditioner, which is detached. ``args`` are a training program's."""

VISION_FIXED: dict[str, tuple[Any, ...]] = {
    "use_swiglu_ffn": (False,),
    "hidden_act": ("gelu",),
    "layerscale_value": (1.0,),
    "num_channels": (3,),
    "qkv_bias": (True,),
    "vitdet_window_size": (None, 0),
    "video_temporal_patch_size": (None, 1),
    "separate_video_embedder": (None, True, False),
}

PATCHES = words("min_num_patches max_num_patches video_target_num_patches video_maintain_aspect_ratio")


def labelled(plain: dict[str, Any], labels: tuple[str, ...]) -> bool:
    return plain.get("model_type") in labels or any(a in labels for a in plain.get("architectures") or ())


def is_omni(plain: dict[str, Any]) -> bool:
    """Some checkpoints with sound or experts are labelled as V2 VL: what they consist of decides."""
    llm = plain.get("llm_config") or plain.get("text_config")
    llm = llm if isinstance(llm, dict) else {}
    letters = llm.get("hybrid_override_pattern") or llm.get("layers_block_type") or ""
    experts = bool(llm.get("n_routed_experts")) and ("E" in letters or "moe" in letters)
    return experts or bool(plain.get("sound_config") or plain.get("audio_config"))


def part(read: Reader, *names: str) -> dict[str, Any]:
    """A nested configuration."""
    value = read.take(*names)
    if not isinstance(value, dict):
        raise ConfigError(f"config.json: {names[0]} is {str(value)[:80]}; it must be an object")
    return value


def read_text(read: Reader) -> OmniConfig:
    """The language model's own configuration; the shorter of both lengths counts."""
    text = nemotron_h.to_config(part(read, "llm_config", "text_config"))
    longest = read.integer("max_sequence_length", default=text.max_positions)
    return replace(text, max_positions=min(longest, text.max_positions))


def read_special(read: Reader, text: OmniConfig) -> dict[str, int | list[int]]:
    """Ids of config.json. That of videos is often outside the vocabulary and is written, never read: "video_mark"."""
    ids = {
        "image": read.integer("img_context_token_id", "image_token_id", default=None),
        "video_mark": read.integer("video_context_token_id", "video_token_id", default=None),
        "sound": read.integer("sound_context_token_id", "audio_token_id", default=None),
        **{name: read.integer(f"{name}_token_id", default=None) for name in ("bos", "pad")},
        "eos": read.take("eos_token_id", default=None),
    }
    return {**text.special_tokens, **{name: value for name, value in ids.items() if value is not None}}


def read_vision(read: Reader, tubelet: int, final_norm: bool) -> tuple[VisionConfig, Reader]:
    """The tower, from RADIO's own keys and from ``args``; and the reader of vision_config, for the keys left."""
    seen = Reader(part(read, "vision_config"))
    args = seen.plain.get("args") or {}
    if not isinstance(args, dict):
        raise ConfigError(f"config.json: vision_config.args is {str(args)[:80]}; it must be an object")
    d_model, n_layers, n_heads, d_ff = _widths(read, seen, args)
    patch = seen.integer("patch_size", default=16)
    if read.integer("patch_size", default=patch) != patch:
        raise ConfigError(f"config.json: patch_size is {read.plain['patch_size']}; vision_config says {patch}")
    side = seen.integer("max_img_size", "max_resolution", default=args.get("cpe_max_size", 2048))
    mean, std = (tuple(read.take(f"norm_{what}", default=d)) for what, d in (("mean", CLIP_MEAN), ("std", CLIP_STD)))
    vision = VisionConfig(
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        d_ff=d_ff,
        patch_size=patch,
        n_prefix=_prefix(seen, args),
        max_grid=side // patch,
        shuffle=shuffle_of(read.number("downsample_ratio", default=0.5)),
        d_projector=read.integer("projector_hidden_size"),
        norm_eps=seen.number("layer_norm_eps", default=1e-6),
        tubelet=tubelet,
        video_stem=tubelet > 1,
        final_norm=final_norm,
        mean=triple("norm_mean", mean),
        std=triple("norm_std", std),
    )
    return vision, seen


def _widths(read: Reader, seen: Reader, args: dict[str, Any]) -> tuple[int, int, int, int]:
    """d_model, n_layers, n_heads and d_ff: stated, or those of the architecture that ``args`` names."""
    name = args.get("model")
    known = VITS.get(name)
    if known is None and seen.plain.get("hidden_size") is None:
        raise ConfigError(f"config.json: vision_config names the architecture {name!r}; known: {', '.join(VITS)}")
    d_model, n_layers, n_heads, d_ff = known or (None, 32, 16, None)
    d_model = seen.integer("hidden_size", default=d_model)
    ratio = seen.number("mlp_ratio", default=d_ff / d_model if d_ff else 4.0)
    sizes = (
        d_model,
        seen.integer("num_hidden_layers", default=n_layers),
        seen.integer("num_attention_heads", default=n_heads),
        round(ratio * d_model),
    )
    if known is not None and sizes != known:
        raise ConfigError(f"config.json: vision_config has the sizes {sizes}; its architecture {name} has {known}")
    if read.integer("vit_hidden_size", "vision_hidden_size", default=d_model) != d_model:
        raise ConfigError(f"config.json: vit_hidden_size is not the {d_model} of vision_config")
    return sizes


def _prefix(seen: Reader, args: dict[str, Any]) -> int:
    """Summary tokens, one for each teacher, and registers that fill them up to a multiple."""
    tokens = seen.integer("num_cls_tokens", default=None)
    registers = seen.integer("num_registers", default=None)
    if tokens is not None or registers is not None:
        return (3 if tokens is None else tokens) + (7 if registers is None else registers)
    teachers = {t.get("name") for t in args.get("teachers") or () if isinstance(t, dict) and t.get("use_summary", True)}
    tokens = len(teachers) if args.get("cls_token_per_teacher") and teachers else 1
    multiple = args.get("register_multiple", 10)
    return tokens + multiple - tokens % multiple if multiple else tokens


def shuffle_of(ratio: float) -> int:
    factor = round(1 / ratio) if ratio > 0 else 0
    if factor < 1 or not math.isclose(factor * ratio, 1.0):
        raise ConfigError(f"config.json: downsample_ratio is {ratio}; it must be 1, 1/2, 1/3 ...")
    return factor


def triple(name: str, values: Any) -> tuple[float, float, float]:
    if (
        not isinstance(values, (list, tuple))
        or len(values) != 3
        or not all(isinstance(v, (int, float)) for v in values)
    ):
        raise ConfigError(f"{name} is {str(values)[:80]}; it must be three numbers")
    return tuple(float(v) for v in values)


# -- config.json, written ----------------------------------------------------------------------------------------------


def refuse_inexpressible(config: OmniConfig, layout: str, media: MediaConfig, free: tuple[str, ...]) -> None:
    """ConfigError for towers other than RADIO, and for media that differ from the layout's in more than ``free``."""
    v = config.vision
    if v is None:
        raise ConfigError(f"the {layout} layout needs a vision tower")
    as_radio = replace(VisionConfig(d_model=1, n_layers=1, n_heads=1, d_ff=1), **_free(v))
    if v != as_radio or v.n_prefix < 2:
        raise ConfigError(
            f"the {layout} layout cannot express a vision tower other than RADIO's; use the family 'omni'"
        )
    held = replace(media, **{name: getattr(config.media, name) for name in free})
    problems = [name for name in vars(held) if getattr(held, name) != getattr(config.media, name)]
    if problems:
        raise ConfigError(f"the {layout} layout cannot express other media: {', '.join(problems)}")


_FREE = (
    "d_model n_layers n_heads d_ff patch_size n_prefix max_grid shuffle d_projector norm_eps tubelet video_stem "
    "final_norm mean std"
)


def _free(v: VisionConfig) -> dict[str, Any]:
    return {name: getattr(v, name) for name in _FREE.split()}


def write_common(config: OmniConfig, label: str) -> dict[str, Any]:
    """What both layouts hold."""
    v, special = config.vision, config.special_tokens
    ids = {"img": "image", "video": "video_mark", "sound": "sound"}
    text = nemotron_h.from_config(replace(config, vision=None, sound=None))
    return {
        "architectures": [label],
        "model_type": label,
        "llm_config": text,
        "vision_config": write_vision(v),
        "max_sequence_length": config.max_positions,
        "patch_size": v.patch_size,
        "downsample_ratio": 1 / v.shuffle,
        "ps_version": "v2",
        "vit_hidden_size": v.d_model,
        "projector_hidden_size": v.d_projector or 4 * v.shuffle**2 * v.d_model,
        "norm_mean": list(v.mean),
        "norm_std": list(v.std),
        **{f"{name}_context_token_id": special[ours] for name, ours in ids.items() if ours in special},
        **({"eos_token_id": special["eos"]} if "eos" in special else {}),
    }


def write_vision(v: VisionConfig) -> dict[str, Any]:
    """RADIO's sizes as transformers calls them, and as ``args`` where timm has a name for them."""
    tokens = min(3, v.n_prefix - 1)
    plain = {
        "model_type": "radio",
        "hidden_size": v.d_model,
        "num_hidden_layers": v.n_layers,
        "num_attention_heads": v.n_heads,
        "mlp_ratio": v.d_ff / v.d_model,
        "patch_size": v.patch_size,
        "max_img_size": v.max_grid * v.patch_size,
        "num_cls_tokens": tokens,
        "num_registers": v.n_prefix - tokens,
        "summary_idxs": list(range(min(2, tokens))),
        "layer_norm_eps": v.norm_eps,
    }
    name = next((n for n, sizes in VITS.items() if sizes == (v.d_model, v.n_layers, v.n_heads, v.d_ff)), None)
    if name is not None:
        plain["args"] = {
            "model": name,
            "cpe_max_size": v.max_grid * v.patch_size,
            "cls_token_per_teacher": True,
            "teachers": [{"name": f"teacher_{i}"} for i in range(tokens)],
            "register_multiple": v.n_prefix,
        }
    return plain


# -- the processors' files ---------------------------------------------------------------------------------------------

RESCALE = 1 / 255
BICUBIC = 3


def image_file(files: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What the files say of images: preprocessor_config.json, or its place in processor_config.json."""
    return {**nested(files, "image_processor"), **files.get("preprocessor_config.json", {})}


def video_file(files: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    return {**nested(files, "video_processor"), **files.get("video_preprocessor_config.json", {})}


def nested(files: Mapping[str, dict[str, Any]], name: str) -> dict[str, Any]:
    found = files.get("processor_config.json", {}).get(name)
    return found if isinstance(found, dict) else {}


def check_file(plain: dict[str, Any], vision: VisionConfig, where: str) -> None:
    """ConfigError where a file asks for what is not done here: other patches, resampling or scaling."""
    wanted = {
        "patch_size": vision.patch_size,
        "downsample_ratio": 1 / vision.shuffle,
        "rescale_factor": RESCALE,
        "resample": BICUBIC,
        "do_rescale": True,
        "do_normalize": True,
        "use_thumbnail": True,
    }
    for key, value in wanted.items():
        found = plain.get(key)
        if found is not None and (not isinstance(found, (int, float)) or not math.isclose(found, value, rel_tol=1e-6)):
            raise ConfigError(f"{where}: {key} is {found!r}; supported here: {value!r}")


def read_norms(vision: VisionConfig, *plains: dict[str, Any]) -> VisionConfig:
    """Mean and std as a file states them. Files that differ are an error: there is one tower."""
    for what in ("mean", "std"):
        spelled = [(f"{lead}_{what}", p.get(f"{lead}_{what}")) for p in plains for lead in ("norm", "image")]
        found = {triple(name, value) for name, value in spelled if value is not None}
        if len(found) > 1:
            raise ConfigError(f"the processors' files state the {what} of pixels differently: {sorted(found)}")
        if found:
            vision = replace(vision, **{what: found.pop()})
    return vision


def count(plain: dict[str, Any], *names: str, default: int) -> int:
    value = next((plain[name] for name in names if plain.get(name) is not None), default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{names[0]} is {value!r}; it must be a whole number of at least 1")
    return value


def read_sampling(media: MediaConfig, plain: dict[str, Any]) -> MediaConfig:
    """Frames a second and frames of a video, where the file has them."""
    fps = plain.get("fps")
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, (int, float))):
        raise ConfigError(f"fps is {fps!r}; it must be a number")
    frames = count(plain, "num_frames", "max_frames", default=media.max_frames)
    return replace(media, fps=float(fps or media.fps), max_frames=frames)


def write_pixels(v: VisionConfig) -> dict[str, Any]:
    return {
        "patch_size": v.patch_size,
        "downsample_ratio": 1 / v.shuffle,
        "norm_mean": list(v.mean),
        "norm_std": list(v.std),
    }


def write_sampling(config: OmniConfig) -> dict[str, Any]:
    return {**write_pixels(config.vision), "fps": config.media.fps, "num_frames": config.media.max_frames}


# -- names -------------------------------------------------------------------------------------------------------------

_BLOCK = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "attn.qkv.weight": "qkv.weight",
    "attn.qkv.bias": "qkv.bias",
    "attn.proj.weight": "proj.weight",
    "attn.proj.bias": "proj.bias",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "mlp.fc1.weight": "up_proj.weight",
    "mlp.fc1.bias": "up_proj.bias",
    "mlp.fc2.weight": "down_proj.weight",
    "mlp.fc2.bias": "down_proj.bias",
}


def vision_rules(v: VisionConfig) -> tuple[Rule, ...]:
    """Tower and projector. Our names follow after ``vision.`` and ``projector.``."""
    tower, generator = "vision_model.radio_model.", "vision_model.radio_model.model.patch_generator."
    table: list[Rule] = [
        Rename(generator + "embedder.weight", "vision.stem.proj.weight"),
        Rename(generator + "pos_embed", "vision.positions", shape=(1, v.max_grid**2, v.d_model)),
        Rename(generator + "cls_token.token", "vision.prefix"),
        *(Rename(f"{tower}model.blocks.{{i}}.{a}", f"vision.blocks.{{i}}.{b}") for a, b in _BLOCK.items()),
        Rename("mlp1.0.weight", "projector.norm.weight"),
        Rename("mlp1.1.weight", "projector.up_proj.weight"),
        Rename("mlp1.3.weight", "projector.down_proj.weight"),
        Drop(f"{tower}input_conditioner.{{rest}}", "pixels are normalised before the tower"),
        Drop(f"{tower}summary_idxs", "the summaries are not used"),
        Drop(f"{tower}model.blocks.{{i}}.layer_scale1.lambda1", "one: transformers adds it, RADIO has none"),
        Drop(f"{tower}model.blocks.{{i}}.layer_scale2.lambda1", "one: transformers adds it, RADIO has none"),
    ]
    if v.video_stem:
        table.append(Rename(generator + "video_embedder.weight", "vision.video_stem.proj.weight"))
    if v.final_norm:
        table += [
            Alias("vision_projector.vision_final_layernorm.{rest}", "vision_final_layernorm.{rest}"),
            Rename("vision_final_layernorm.weight", "vision.final_norm.weight", default=1.0),
            Rename("vision_final_layernorm.bias", "vision.final_norm.bias", default=0.0),
        ]
    return tuple(table)


def text_rules(config: OmniConfig) -> tuple[Rule, ...]:
    """The language model's names under ``language_model.``; its prediction block stands beside it."""
    own = nemotron_h.rules(replace(config, mtp=None))
    return (
        Alias("language_model.mtp.{rest}", "mtp.{rest}"),
        *prefixed(own, published="language_model."),
        *nemotron_h.mtp_rules(config),
    )


def rules(config: OmniConfig) -> tuple[Rule, ...]:
    return (*vision_rules(config.vision), *text_rules(config))
