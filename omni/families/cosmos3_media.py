"""Files of the processors of Cosmos 3's reasoners: sizes, samples and normalising of pictures and videos.

processor_config.json holds both parts; older checkpoints have preprocessor_config.json and
video_preprocessor_config.json instead, and name the sizes ``min_pixels`` and ``max_pixels``.
"""

from collections.abc import Mapping
from typing import Any

from omni.config import ConfigError, MediaConfig, OmniConfig, VisionConfig, replace
from omni.families.reader import Reader

_PLACES = {
    "image": ("image_processor", "preprocessor_config.json"),
    "video": ("video_processor", "video_preprocessor_config.json"),
}


def read_media(config: OmniConfig, files: Mapping[str, dict[str, Any]]) -> OmniConfig:
    """``config`` with what the files say. ConfigError where they ask for what the tower or the rules do not do."""
    image, video = (_found(files, kind) for kind in _PLACES)
    vision, media = config.vision, config.media
    for kind, part in (("image", image), ("video", video)):
        if part is not None:
            _check(Reader(part), kind, vision)
    known = [part for part in (image, video) if part is not None]
    if known:
        vision = replace(vision, **{name: _triple(known, name) for name in ("mean", "std")})
    if image is not None:
        least, most = _limits(image, "image", media.min_pixels, media.max_pixels)
        media = replace(media, min_pixels=least, max_pixels=most)
    if video is not None:
        media = _video(media, video)
    return replace(config, vision=vision, media=media)


def _found(files: Mapping[str, dict[str, Any]], kind: str) -> dict[str, Any] | None:
    """One processor's settings: those in the common file, else those in a file of their own."""
    inner, own = _PLACES[kind]
    part = files.get("processor_config.json", {}).get(inner)
    if part is None:
        return files.get(own)
    if not isinstance(part, dict):
        raise ConfigError(f"processor_config.json: {inner} is {str(part)[:80]}; it must be an object")
    return part


def _check(read: Reader, kind: str, vision: VisionConfig) -> None:
    """What the tower's sizes settle already, and steps that are always taken."""
    expected = {"patch_size": vision.patch_size, "merge_size": vision.shuffle, "temporal_patch_size": vision.tubelet}
    expected |= {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3}
    for name, value in expected.items():
        if read.take(name, default=value) != value:
            raise ConfigError(f"the {kind} processor's {name} is {read.take(name)!r}; supported here: {value!r}")
    factor = read.number("rescale_factor", default=1 / 255)
    if abs(factor * 255 - 1) > 1e-6:
        raise ConfigError(f"the {kind} processor's rescale_factor is {factor}; supported: 1/255")


def _triple(parts: list[dict[str, Any]], name: str) -> tuple[float, float, float]:
    """Mean or deviation, which pictures and videos must share."""
    found = [tuple(part.get(f"image_{name}") or (0.5, 0.5, 0.5)) for part in parts]
    if any(values != found[0] for values in found):
        raise ConfigError(f"pictures and videos are normalised differently: image_{name} is {found}")
    if len(found[0]) != 3 or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in found[0]):
        raise ConfigError(f"image_{name} is {found[0]!r}; it must be three numbers")
    return tuple(float(v) for v in found[0])


def _limits(part: dict[str, Any], kind: str, least: int, most: int) -> tuple[int, int]:
    size = part.get("size") or {}
    if not isinstance(size, dict):
        raise ConfigError(f"the {kind} processor's size is {size!r}; it must be an object")
    found = Reader({**{name: part.get(name) for name in ("min_pixels", "max_pixels")}, **size})
    return (
        found.integer("shortest_edge", "min_pixels", default=least),
        found.integer("longest_edge", "max_pixels", default=most),
    )


def _video(media: MediaConfig, part: dict[str, Any]) -> MediaConfig:
    read = Reader(part)
    least, most = _limits(part, "video", media.video_min_pixels, media.video_max_pixels)
    if read.take("num_frames", default=None) is not None:
        raise ConfigError(f"the video processor takes {part['num_frames']} frames of every video; supported: fps")
    capped = read.flag("cap_pixels_per_frame", default=False)
    return replace(
        media,
        video_min_pixels=least,
        video_max_pixels=most,
        fps=read.number("fps", default=media.fps),
        min_frames=read.integer("min_frames", default=media.min_frames),
        max_frames=read.integer("max_frames", default=media.max_frames),
        video_frame_tokens=read.integer("max_video_tokens", default=768) if capped else None,
    )


def write_media(config: OmniConfig) -> dict[str, dict[str, Any]]:
    """processor_config.json as the reference classes write it."""
    vision, media = config.vision, config.media
    edge = media.image == "frame"
    shared = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
        "image_mean": list(vision.mean),
        "image_std": list(vision.std),
        "patch_size": vision.patch_size,
        "merge_size": vision.shuffle,
        "temporal_patch_size": vision.tubelet,
    }
    image = {
        **shared,
        "image_processor_type": "Cosmos3EdgeImageProcessor" if edge else "Qwen2VLImageProcessor",
        "size": {"shortest_edge": media.min_pixels, "longest_edge": media.max_pixels},
    }
    video = {
        **shared,
        "video_processor_type": "Cosmos3EdgeVideoProcessor" if edge else "Qwen3VLVideoProcessor",
        "size": {"shortest_edge": media.video_min_pixels, "longest_edge": media.video_max_pixels},
        "do_sample_frames": True,
        "fps": media.fps,
        "min_frames": media.min_frames,
        "max_frames": media.max_frames,
    }
    if not edge:
        video["cap_pixels_per_frame"] = media.video_frame_tokens is not None
        video["max_video_tokens"] = media.video_frame_tokens or 768
    kind = "Cosmos3EdgeProcessor" if edge else "Qwen3VLProcessor"
    return {"processor_config.json": {"processor_class": kind, "image_processor": image, "video_processor": video}}
