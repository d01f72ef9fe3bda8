"""The sizes that generators were trained at, and how pictures and clips are brought to them.

    picture to start from   ──> cover    scaled until it covers the size, centre cropped
    clip to continue        ──> stretch  both sides scaled, aspect not kept
    picture to edit         ──> stretch  to the size that fitted_size gives it
    observation of a robot  ──> [views ──>] canvas  scaled down only, padded right and below ──> codec ──> crop_latents
    any of them             ──> hold     cut or drawn out to the asked number of frames

Sizes are (height, width) in pixels. Pictures (3, H, W) and clips (T, 3, H, W) are uint8 or floats in [0, 1]; what comes
out is float32 on the same device. Frames are worked on one by one, so that a clip needs little more memory than its
result. Source: ``reference`` cosmos3, sections 4.5, 4.6, 6.4 and 6.6; resampling is as in diffusers.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from omni.tokenizers.image import MAX_PIXELS
from omni.tokenizers.wan import FRAMES

SIZES = {  # tier -> aspect, width to height -> (height, width)
    256: {"1,1": (256, 256), "4,3": (256, 320), "3,4": (320, 256), "16,9": (192, 320), "9,16": (320, 192)},
    480: {"1,1": (640, 640), "4,3": (544, 736), "3,4": (736, 544), "16,9": (480, 832), "9,16": (832, 480)},
    704: {"1,1": (960, 960), "4,3": (832, 1088), "3,4": (1088, 832), "16,9": (704, 1280), "9,16": (1280, 704)},
    720: {"1,1": (960, 960), "4,3": (832, 1104), "3,4": (1104, 832), "16,9": (720, 1280), "9,16": (1280, 720)},
    768: {"1,1": (1024, 1024), "4,3": (880, 1184), "3,4": (1184, 880), "16,9": (768, 1360), "9,16": (1360, 768)},
}
ASPECTS = ("1,1", "4,3", "3,4", "16,9", "9,16")
MAX_FRAMES = {256: 400, 480: 300, 704: 200, 720: 200, 768: 200}
LONGEST = 512  # pixels of the longer side of a picture that is edited
FACTOR = 16  # pixels behind one latent, along a side
VIEWS_LAYOUT = (  # what an action caption says of a frame made by views
    "The top row is from the wrist-mounted camera. "
    "The bottom row contains two horizontally concatenated third-person perspective views of the scene from opposite "
    "sides, with the robot visible."
)


# -- sizes -------------------------------------------------------------------------------------------------------------


def size_of(tier: int, aspect: str) -> tuple[int, int]:
    """(height, width) of an aspect, "16,9" or "16:9" and the like, in a tier. ValueError for unknown ones."""
    sizes = _sizes(tier)
    name = aspect.replace(":", ",")
    if name not in sizes:
        raise ValueError(f"aspect is {aspect!r}; it must be one of {' '.join(ASPECTS)}")
    return sizes[name]


def nearest_size(tier: int, height: int, width: int) -> tuple[int, int]:
    """The size of the tier whose height / width is nearest to that of ``height`` x ``width`` pixels."""
    sizes = _sizes(tier)
    _check_size(height, width)
    return min(sizes.values(), key=lambda size: abs(size[0] / size[1] - height / width))


def fitted_size(height: int, width: int, multiple: int, longest: int = LONGEST) -> tuple[int, int]:
    """A picture's size where its longer side is ``longest``, both rounded down to ``multiple``, but not to nothing.

    As published, in whole numbers: in floating point one longer side in eight becomes a multiple less.
    """
    _check_size(height, width)
    largest = max(height, width)
    return tuple(max(side * longest // largest // multiple, 1) * multiple for side in (height, width))


def aspect_of(height: int, width: int) -> str:
    """The aspect, by its name in :data:`SIZES`, whose width / height is nearest."""
    _check_size(height, width)
    return min(ASPECTS, key=lambda name: abs(_ratio(name) - width / height))


def check_frames(frames: int, tier: int) -> None:
    """ValueError unless a video of the tier may have so many frames: 1, 5, 9, ... up to the tier's limit."""
    _sizes(tier)
    most = MAX_FRAMES[tier]
    if not 1 <= frames <= most or frames % FRAMES != 1:
        raise ValueError(f"frames is {frames}; at tier {tier} it must be 1, 5, 9, ... and at most {most}")


# -- what a video starts from ------------------------------------------------------------------------------------------


def cover(image: Tensor, height: int, width: int) -> Tensor:
    """Picture or clip scaled until it covers ``height`` x ``width``, cropped to its centre, in steps of 1 / 255.

    Bilinear, antialiased. Raises ValueError where the scaled picture would pass ``MAX_PIXELS`` before it is cropped.
    """
    frames = _frames(image)
    _check_size(height, width)
    rows, columns = frames.shape[-2:]
    scale = max(width / columns, height / rows)
    large = math.ceil(scale * rows), math.ceil(scale * columns)
    if large[0] * large[1] > MAX_PIXELS:
        raise ValueError(
            f"a picture of {rows} x {columns} pixels is too thin for {height} x {width}: to cover it takes "
            f"{large[0]} x {large[1]} pixels, and the limit is {MAX_PIXELS}"
        )
    top, left = round((large[0] - height) / 2), round((large[1] - width) / 2)
    out = frames.new_empty(len(frames), 3, height, width, dtype=torch.float32)
    for i, frame in enumerate(frames):
        levels = F.interpolate(_levels(frame)[None], large, mode="bilinear", antialias=True)[0]
        out[i] = levels[:, top : top + height, left : left + width].round().clamp(0, 255) / 255
    return out.reshape(*image.shape[:-2], height, width)


def stretch(frames: Tensor, height: int, width: int, resample: Image.Resampling = Image.Resampling.BILINEAR) -> Tensor:
    """Picture or clip at ``height`` x ``width``, in steps of 1 / 255: antialiased, in 8 bits.

    Bilinear it is what diffusers does to clips of PIL pictures; its tensors and arrays take the nearest pixel instead.
    Pillow itself is used: torch's 8-bit resampling differs from it by one step in up to a fifth of the pixels.
    """
    clip = _frames(frames)
    _check_size(height, width)
    out = clip.new_empty(len(clip), 3, height, width, dtype=torch.float32)
    for i, frame in enumerate(clip):
        picture = Image.fromarray(_bytes(frame).permute(1, 2, 0).cpu().numpy())
        pixels = picture.resize((width, height), resample).tobytes()
        levels = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(height, width, 3)
        out[i] = levels.permute(2, 0, 1).to(out) / 255
    return out.reshape(*frames.shape[:-2], height, width)


def hold(frames: Tensor, n: int) -> Tensor:
    """The first ``n`` of frames (T, ...); where there are fewer, the last one again and again."""
    if frames.dim() < 2 or not len(frames):
        raise ValueError(f"frames are (T, ...) with T of at least 1, not {tuple(frames.shape)}")
    if n < 1:
        raise ValueError(f"n is {n}; at least one frame must be asked for")
    if len(frames) >= n:
        return frames[:n]
    return torch.cat([frames, frames[-1:].expand(n - len(frames), *frames.shape[1:])])


# -- what a robot sees -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Canvas:
    """A clip on a canvas of a tier's size. Its content lies at the top left; the rest is padding."""

    frames: Tensor = field(repr=False)  # (T, 3, height, width) float32; resampling may pass [0, 1] by a little
    height: int
    width: int
    content_height: int
    content_width: int

    @property
    def content(self) -> tuple[int, int]:
        return self.content_height, self.content_width


def canvas(frames: Tensor, tier: int, multiple: int = 1) -> Canvas:
    """Clip (T, 3, H, W) on the canvas of the tier that is nearest in aspect.

    Scaled down where it is too large, bicubic and antialiased, never up; padded right and below by its reflection, or
    by its border where it is too small for that. With ``multiple`` 16 the sides are first stretched to multiples of 16,
    rounded down, as diffusers does; the published models were trained without.
    """
    clip = _frames(frames)
    if clip is not frames:
        raise ValueError(f"a clip is (T, 3, H, W), not {tuple(frames.shape)}")
    height, width = clip.shape[-2:]
    if not 1 <= multiple <= min(height, width):
        raise ValueError(f"multiple is {multiple}; it must lie between 1 and the smaller side, {min(height, width)}")
    if height % multiple or width % multiple:
        height, width = height // multiple * multiple, width // multiple * multiple
        clip = stretch(clip, height, width)
    full = nearest_size(tier, height, width)
    scale = min(full[1] / width, full[0] / height, 1.0)
    content = max(1, int(scale * height + 0.5)), max(1, int(scale * width + 0.5))
    below, right = full[0] - content[0], full[1] - content[1]
    mode = "replicate" if below >= content[0] or right >= content[1] else "reflect"
    out = clip.new_empty(len(clip), 3, *full, dtype=torch.float32)
    for i, frame in enumerate(clip):
        pixels = (_levels(frame) / 255)[None]
        if content != (height, width):
            pixels = F.interpolate(pixels, content, mode="bicubic", antialias=True)
        out[i] = F.pad(pixels, (0, right, 0, below), mode=mode)[0]
    return Canvas(out, *full, *content)


def crop_latents(latents: Tensor, content: tuple[int, int], factor: int = FACTOR) -> Tensor:
    """Latents (..., h, w) of a canvas without those of its padding: floor(content / factor) a side, but at least one.

    ``content`` is (height, width) in pixels. The sides that remain may be odd, and are padded again for patches.
    """
    _check_size(*content)
    if factor < 1:
        raise ValueError(f"factor is {factor}; it must be at least 1")
    rows, columns = (max(side // factor, 1) for side in content)
    if latents.dim() < 2 or rows > latents.shape[-2] or columns > latents.shape[-1]:
        raise ValueError(
            f"content of {content[0]} x {content[1]} pixels has {rows} x {columns} latents of {factor}; "
            f"there are {tuple(latents.shape)}"
        )
    return latents[..., :rows, :columns].contiguous()


def views(wrist: Tensor | None, left: Tensor | None, right: Tensor | None) -> Tensor:
    """Three cameras in one frame: the wrist's above, the two outer ones at half size side by side below it.

    All are pictures (3, H, W) or all clips (T, 3, H, W), of one size with even sides -> (..., 3, 3 H / 2, W) float32.
    Halving takes the mean of 2 x 2 pixels, cut to 8 bits as in training. :data:`VIEWS_LAYOUT` describes the result.
    ValueError where a view is missing.
    """
    cameras = {"wrist": wrist, "left": left, "right": right}
    for name, pixels in cameras.items():
        if pixels is None:
            raise ValueError(f"the view of the {name} camera is missing; wrist, left and right are needed")
        _frames(pixels)
        if pixels.shape != wrist.shape or pixels.device != wrist.device:
            raise ValueError(
                f"the views differ: {name} is {tuple(pixels.shape)} on {pixels.device}, "
                f"wrist is {tuple(wrist.shape)} on {wrist.device}"
            )
    if wrist.shape[-2] % 2 or wrist.shape[-1] % 2:
        raise ValueError(f"views have even sides, not {wrist.shape[-2]} x {wrist.shape[-1]}")
    above, *below = (_bytes(pixels).float() for pixels in cameras.values())
    halves = torch.cat([F.avg_pool2d(pixels, 2).floor() for pixels in below], dim=-1)
    return torch.cat([above, halves], dim=-2) / 255


# -- helpers -----------------------------------------------------------------------------------------------------------


def _ratio(aspect: str) -> float:
    width, height = aspect.split(",")
    return int(width) / int(height)


def _sizes(tier: int) -> dict[str, tuple[int, int]]:
    if tier not in SIZES:
        raise ValueError(f"tier is {tier!r}; it must be one of {', '.join(map(str, SIZES))}")
    return SIZES[tier]


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"{height} x {width} pixels: sides must be at least 1, and the limit is {MAX_PIXELS} pixels")


def _frames(pixels: Tensor) -> Tensor:
    """A picture as a clip of one frame; a clip as it is. ValueError for what is neither."""
    if pixels.dim() not in (3, 4) or pixels.shape[-3] != 3 or not pixels.numel():
        raise ValueError(f"pixels are (3, H, W) or (T, 3, H, W), not {tuple(pixels.shape)}")
    if pixels.is_floating_point():
        low, high = (float(value) for value in torch.aminmax(pixels))
        if not (low >= 0 and high <= 1):  # also refuses NaN
            raise ValueError(f"pixels lie between {low:g} and {high:g}; floats must lie in [0, 1]")
    elif pixels.dtype != torch.uint8:
        raise ValueError(f"pixels are {pixels.dtype}; they must be uint8 or floats in [0, 1]")
    return pixels[None] if pixels.dim() == 3 else pixels


def _levels(pixels: Tensor) -> Tensor:
    """float32 from 0 to 255"""
    return pixels.float() * 255 if pixels.is_floating_point() else pixels.float()


def _bytes(pixels: Tensor) -> Tensor:
    return _levels(pixels).round().byte()
