"""Messages to inputs: media are opened, sized and counted, and their runs of placeholders put into the text.

    message parts ──> open: pixels, frames or log-mel clips ──> Expansion: text around runs, tokens in each run
    messages + expansions ──> tokenizer.encode_chat ──> ids, one placeholder a run ──> repeated ──> Inputs

What a checkpoint does with its media is said by its :class:`omni.config.MediaConfig`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from omni.config import MediaConfig, SoundConfig
from omni.encoders.reduction import check_rate
from omni.inputs import Inputs, pad_rows
from omni.tokenizers import sizing, sound, video
from omni.tokenizers.frames import frame_labels, millisecond_times, plan_frames, plan_uniform, second_labels
from omni.tokenizers.image import fit, open_image, to_pixels
from omni.tokenizers.messages import Source, sources
from omni.tokenizers.prompts import time_label

if TYPE_CHECKING:
    from omni.model import Omni


@dataclass
class Expansion:
    """One medium: what stands in the text in its place, with one placeholder a run, and what is behind the runs."""

    text: str
    counts: list[int]
    pixels: list[Tensor] = field(default_factory=list)
    sounds: list[Tensor] = field(default_factory=list)
    kept: list[Tensor | None] = field(default_factory=list)
    seen: list[Tensor | None] = field(default_factory=list)


def prepare(
    model: "Omni",
    messages: list,
    pruning: float = 0.0,
    fps: float | None = None,
    max_frames: int | None = None,
    **template: Any,
) -> Inputs:
    """OpenAI-style messages (or a list of conversations) -> inputs, rows padded on the left.

    Args:
        pruning: share of a video's tokens that EVS leaves out; above 0 the video is encoded here, since what stays
            depends on it.
        fps, max_frames: of the frames that are looked at; default: the checkpoint's own.
        template: for the chat template (thinking, tools, ...).

    A part is ``{"type": "image" | "video" | "audio", <type>: source}`` or OpenAI's ``image_url``, ``video_url``,
    ``audio_url`` and ``input_audio``. A video part may have ``"sound"``: True for its own track or a source of its own,
    which then follows it; and ``fps``, ``max_frames``, ``start`` and ``stop`` (seconds).

    Raises ValueError for what cannot be read, and for media that the model has no encoder for.
    """
    if model.tokenizer is None:
        raise ValueError("this model was loaded without a tokenizer; give it token ids")
    conversations = messages if messages and isinstance(messages[0], list) else [messages]
    opened = [open_media(model, c, pruning=pruning, fps=fps, max_frames=max_frames) for c in conversations]
    rows = [ids_of(model, c, media, **template) for c, media in zip(conversations, opened, strict=True)]
    return gather(model, rows, [e for media in opened for e in media])


def open_media(
    model: "Omni",
    conversation: list[dict],
    pruning: float = 0.0,
    fps: float | None = None,
    max_frames: int | None = None,
) -> list[Expansion]:
    """The media of one conversation, in reading order. Other texts around them need no other expansions."""
    check_rate(pruning)
    found = list(sources(conversation))
    _check_encoders(model, found)
    images = sum(source.kind == "image" for source in found)
    options = {"pruning": pruning, "fps": fps, "max_frames": max_frames}
    return [_expand(model, source, images, options) for source in found]


def ids_of(model: "Omni", conversation: list[dict], media: list[Expansion], **template: Any) -> list[int]:
    """Ids of one conversation, each run as long as it has tokens."""
    marks = {"video": model.config.media.video_mark} if model.config.media.video_mark else {}
    ids = model.tokenizer.encode_chat(conversation, media=[e.text for e in media], marks=marks, **template)
    if not media:
        return ids
    placeholders = set(_placeholders(model).values())
    counts: Iterator[int] = iter([n for e in media for n in e.counts])
    expanded: list[int] = []
    for token in ids:
        expanded.extend([token] * next(counts) if token in placeholders else [token])
    return expanded


def gather(model: "Omni", rows: list[list[int]], media: list[Expansion]) -> Inputs:
    """Rows of ids and all their media as one call's inputs, padded on the left."""
    ids, mask = pad_rows(rows, model.tokenizer.special.get("pad", 0), left=True)
    gathered = {name: tuple(x for e in media for x in getattr(e, name)) for name in ("pixels", "sounds")}
    for name in ("kept", "seen"):
        values = tuple(x for e in media for x in getattr(e, name))
        gathered[name] = values if any(v is not None for v in values) else ()
    return Inputs(ids, mask, **gathered).to(model.device)


def _check_encoders(model: "Omni", found: list[Source]) -> None:
    for source in found:
        if source.kind in ("image", "video") and model.vision is None:
            raise ValueError(f"this model reads no {source.kind}s")
        if (source.kind == "sound" or source.options.get("sound")) and model.sound is None:
            raise ValueError("this model hears no sounds")


def _placeholders(model: "Omni") -> dict[str, int]:
    """Kind of medium -> id of its placeholder. Where videos have none of their own they are written as images."""
    special = model.config.special_tokens
    found = {kind: special[kind] for kind in ("image", "video", "sound") if kind in special}
    if "image" in found:
        found.setdefault("video", found["image"])
    return found


def _run(model: "Omni", kind: str) -> str:
    """Text of one placeholder."""
    found = _placeholders(model)
    if kind not in found:
        raise ValueError(f"this model's special_tokens name no {kind} placeholder")
    return model.tokenizer.name_of(found[kind])


def _expand(model: "Omni", source: Source, images: int, options: dict[str, Any]) -> Expansion:
    own = {name: source.options[name] for name in ("fps", "max_frames", "start", "stop") if name in source.options}
    given = {name: value for name, value in options.items() if value is not None} | own
    if source.kind == "image":
        return _image(model, source.value, images)
    if source.kind == "sound":
        return _sound(model, source.value)
    seen = _video(model, source.value, **given)
    if source.options.get("sound"):
        own_track = source.options["sound"] is True
        heard = _sound(model, source.value if own_track else source.options["sound"])
        seen.text, seen.counts, seen.sounds = seen.text + heard.text, seen.counts + heard.counts, heard.sounds
    return seen


# -- images ------------------------------------------------------------------------------------------------------------


def _image(model: "Omni", source: Any, images: int) -> Expansion:
    media = model.config.media
    pixels = _IMAGE_RULES[media.image](model, open_image(source), images)
    tokens = sum(h * w for h, w in (model.image_grid(p.shape[-2:]) for p in pixels))
    text = media.image_text.format(run=_run(model, "image"))
    return Expansion(text, [tokens], pixels, kept=[None] * len(pixels), seen=[None] * len(pixels))


def _fit(model: "Omni", picture: Any, images: int) -> list[Tensor]:
    v = model.config.vision
    return [fit(picture, multiple=v.token_pixels, max_side=v.max_grid * v.patch_size)]


def _tiles(model: "Omni", picture: Any, images: int) -> list[Tensor]:
    media = model.config.media
    return sizing.tiled(to_pixels(picture), media.tile, media.max_tiles)


def _dynamic(model: "Omni", picture: Any, images: int) -> list[Tensor]:
    media, v = model.config.media, model.config.vision
    most = sizing.patch_budget(media.max_context, images, v.shuffle, media.min_patches, media.max_patches)
    pixels = to_pixels(picture)
    size = sizing.dynamic_size(*pixels.shape[-2:], v.patch_size, v.shuffle, media.min_patches, most)
    return [sizing.resize(pixels, size)]


def _smart(model: "Omni", picture: Any, images: int) -> list[Tensor]:
    media, pixels = model.config.media, to_pixels(picture)
    size = sizing.smart_size(*pixels.shape[-2:], model.config.vision.token_pixels, media.min_pixels, media.max_pixels)
    return [sizing.resize(pixels, size, round=True)]


def _frame(model: "Omni", picture: Any, images: int) -> list[Tensor]:
    media, pixels = model.config.media, to_pixels(picture)
    limits = media.min_pixels, media.max_pixels
    size = sizing.smart_frame_size(1, *pixels.shape[-2:], model.config.vision.token_pixels, *limits, temporal=1)
    return [sizing.resize(pixels, size, round=True)]


_IMAGE_RULES = {"fit": _fit, "tiles": _tiles, "dynamic": _dynamic, "smart": _smart, "frame": _frame}

# -- videos ------------------------------------------------------------------------------------------------------------


def _video(
    model: "Omni",
    source: Any,
    pruning: float = 0.0,
    fps: float | None = None,
    max_frames: int | None = None,
    start: float | None = None,
    stop: float | None = None,
) -> Expansion:
    media, tubelet = model.config.media, model.config.vision.tubelet
    opened = source if isinstance(source, video.Video) else video.open_video(source)
    most = max(tubelet, media.max_frames if max_frames is None else max_frames)
    if media.video_plan == "uniform":
        least = min(media.min_frames, most)
        indices = plan_uniform(opened.times, opened.fps, fps or media.fps, least, most, start, stop)
    else:
        indices = plan_frames(opened.times, fps or media.fps, most, 1, start, stop)
    size = frame_size(model, opened.size, len(indices))
    rounded = media.video_size == "smart"
    frames = read_frames(opened, indices, size, rounded)
    labels = _labels(media, opened, indices, tubelet)
    frames = torch.cat([frames, frames[-1:].expand(-len(frames) % tubelet, -1, -1, -1)])
    kept = seen = None
    if pruning:
        with torch.inference_mode():
            seen, kept = model.prune(frames, pruning)
    counts = [piece.size for piece in model.pieces([frames], [kept])[0]]
    run, gone = _run(model, "video"), ""
    texts = [
        media.video_text.format(label=label, run=run if n else gone) for label, n in zip(labels, counts, strict=True)
    ]
    return Expansion(media.video_join.join(texts), [n for n in counts if n], [frames], kept=[kept], seen=[seen])


def frame_size(model: "Omni", size: tuple[int, int], frames: int) -> tuple[int, int]:
    """Height and width that frames of ``size`` are given, before any is decoded."""
    media, v = model.config.media, model.config.vision
    if media.video_size == "patches":
        return sizing.video_frame_size(*size, media.video_patches, v.patch_size, v.shuffle)
    if media.video_size == "tile":
        return media.tile, media.tile
    if media.video_size == "smart":
        least, most, count = media.video_min_pixels, media.video_max_pixels, max(frames, v.tubelet)
        if media.video_frame_tokens is not None:
            most = sizing.capped_pixels(count, v.token_pixels, least, most, media.video_frame_tokens)
        return sizing.smart_frame_size(count, *size, v.token_pixels, least, most, v.tubelet)
    most = min(media.video_patches, v.max_grid**2) * v.patch_size**2
    return sizing.smart_size(*size, v.token_pixels, v.token_pixels**2, most)


def read_frames(opened: video.Video, indices: list[int], size: tuple[int, int], rounded: bool = False) -> Tensor:
    """(frames, 3, H, W) in [0, 1], resized one by one: no more than these are ever held."""
    found = torch.empty(len(indices), 3, *size)
    for i, frame in enumerate(opened.frames(indices)):
        pixels = torch.from_numpy(frame).permute(2, 0, 1).float() / 255
        found[i] = sizing.resize(pixels, size, round=rounded)
    return found


def _labels(media: MediaConfig, opened: video.Video, indices: list[int], tubelet: int) -> list[str]:
    """The text of each tubelet's time."""
    times = [opened.times[i] for i in indices]
    if media.video_label == "time":
        return [time_label(times[i]) for i in range(0, len(times), tubelet)]
    if media.video_label == "seconds":
        return second_labels(times, tubelet)
    return frame_labels(millisecond_times(indices, opened.fps), tubelet)


# -- sounds ------------------------------------------------------------------------------------------------------------


def _sound(model: "Omni", source: Any) -> Expansion:
    clips = _clips(source, model.config.sound)
    tokens = sum(model.sound.tokens_of(len(clip)) for clip in clips)
    text = model.config.media.sound_text.format(run=_run(model, "sound"))
    return Expansion(text, [tokens], sounds=clips)


def _clips(source: Any, config: SoundConfig) -> list[Tensor]:
    """Log-mel features of each clip; of a file no more than one clip's samples are held."""
    if config.clip_seconds and isinstance(source, (str, Path, bytes)):
        pieces = sound.blocks(source, config.clip_seconds, config.sampling_rate)
        return [clip for piece in pieces for clip in sound.clips(piece, config)]
    return sound.clips(sound.open_sound(source, config.sampling_rate).samples, config)
