"""Nemotron Nano 12B V2 VL: RADIO, pixel shuffle and projector before a Nemotron-H.

    config.json:  vision_config -> vision,  llm_config -> context,  the rest -> media
    names:        vision_model.radio_model.*,  mlp1.*,  language_model.backbone.*

All but pictures in tiles is in ``nano_shared``. No released package has a class for this model, so it was
compared part by part: transformers' RadioModel and NemotronH, and the projector and the rules written out in
``tests/test_nano_vl.py``. The published config.json, chat template and preprocessor_config.json were not at hand; their
keys are known from the readers of other projects.
"""

from collections.abc import Mapping
from typing import Any

from omni.config import ConfigError, MediaConfig, OmniConfig, replace
from omni.families import nano_shared as shared
from omni.families.base import Family, Preset
from omni.families.nemotron_h_sizes import NANO_12B_V2, derive
from omni.families.reader import Reader

LABELS = ("NemotronH_Nano_VL_V2",)
MEDIA = MediaConfig(
    image="tiles",
    image_text="<img>{run}</img>",
    video_text="{label}<img>{run}</img>",
    video_join="\n",
    video_label="frame",
    video_size="tile",
)
MEDIA_FREE = ("tile", "max_tiles", "fps", "max_frames")
"""What the files of a checkpoint state; the rest of :data:`MEDIA` is the layout's."""

# -- config.json -------------------------------------------------------------------------------------------------------


def matches(plain: dict[str, Any]) -> bool:
    return shared.labelled(plain, LABELS) and not shared.is_omni(plain)


def to_config(plain: dict[str, Any]) -> OmniConfig:
    """config.json of Nano V2 VL -> our configuration. ConfigError names what is not supported."""
    read = Reader(plain)
    text = shared.read_text(read)
    vision, seen = shared.read_vision(read, 1, final_norm=False)
    media = replace(
        MEDIA,
        tile=read.integer("force_image_size", default=MEDIA.tile),
        max_tiles=read.integer("max_num_tiles", "max_dynamic_patch", default=MEDIA.max_tiles),
    )
    read.integer("min_dynamic_patch", default=1)
    config = replace(text, vision=vision, media=media, special_tokens=shared.read_special(read, text))
    seen.finish(shared.VISION_FIXED, (*shared.VISION_INERT, *shared.PATCHES))
    read.finish(shared.FIXED, shared.INERT)
    return config


# -- config.json, written ----------------------------------------------------------------------------------------------


def from_config(config: OmniConfig) -> dict[str, Any]:
    shared.refuse_inexpressible(config, "nano_vl", MEDIA, MEDIA_FREE)
    if config.sound is not None:
        raise ConfigError("the nano_vl layout cannot express a sound encoder")
    if config.vision.tubelet != 1 or config.vision.final_norm or config.mtp is not None:
        raise ConfigError("the nano_vl layout cannot express tubelets, a final norm or a prediction block")
    return {
        **shared.write_common(config, LABELS[0]),
        "force_image_size": config.media.tile,
        "max_num_tiles": config.media.max_tiles,
        "use_thumbnail": True,
    }


# -- the processors' files ---------------------------------------------------------------------------------------------


def read_media(config: OmniConfig, files: Mapping[str, dict[str, Any]]) -> OmniConfig:
    images, videos = shared.image_file(files), shared.video_file(files)
    for plain in (images, videos):
        shared.check_file(plain, config.vision, "the processors' files")
    media = replace(
        config.media,
        tile=shared.count(images, "image_size", default=config.media.tile),
        max_tiles=shared.count(images, "max_num_tiles", default=config.media.max_tiles),
    )
    vision = shared.read_norms(config.vision, images, videos)
    return replace(config, vision=vision, media=shared.read_sampling(media, videos))


def write_media(config: OmniConfig) -> dict[str, dict[str, Any]]:
    media = config.media
    images = {**shared.write_pixels(config.vision), "image_size": media.tile, "max_num_tiles": media.max_tiles}
    return {
        "preprocessor_config.json": {**images, "use_thumbnail": True},
        "video_preprocessor_config.json": shared.write_sampling(config),
    }


FAMILY = Family(
    name="nano_vl",
    matches=matches,
    to_config=to_config,
    from_config=from_config,
    rules=shared.rules,
    read_media=read_media,
    write_media=write_media,
)

PRESETS = {
    "nano-12b-v2-vl": Preset(
        derive(
            NANO_12B_V2,
            vocab_size=131_200,  # holds the three ids behind 131072; that it is padded to 128 was not read first-hand
            vision=shared.RADIO_H,
            media=MEDIA,
            special_tokens={**NANO_12B_V2.special_tokens, "image": 131_072},
        ),
        "nvidia/NVIDIA-Nemotron-Nano-12B-v2-VL-BF16",
    )
}
