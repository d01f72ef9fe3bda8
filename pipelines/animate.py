"""Videos, with sound where the model has it: from a prompt, from a picture, from the beginning of another video.

    prompt ──────────────────> context tower, read once ──> cache ──┐
    picture, video ──> codec ──> latents that are given ──┐         │
    noise of each seed ───────────────────────────────────┴──> denoising steps ──> latents ──> frames, a few at a time
                                                                              └──> latents of sound ──> samples

Given latents are told no noise level and do not move. Source: ``reference`` cosmos3, sections 4.4 and 4.6.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omni.pipelines.generation import MAX_TOKENS, Generator, OnStep, Prompt, paired, prompts_of, seeds_of
from omni.pipelines.walk import Walk
from omni.streams import SOUND, VIDEO, Scene
from omni.tokenizers.canvas import cover, hold, nearest_size, size_of, stretch
from omni.tokenizers.captions import CaptionStyle
from omni.tokenizers.image import open_image
from omni.tokenizers.video import open_video
from omni.tokenizers.video_writer import write_video
from omni.tokenizers.wan import Tiling

KEEP = ("first", "last")

Fit = Callable[[Tensor, int, int], Tensor]
"""Frames (n, 3, H, W) brought to a height and a width."""


@dataclass(frozen=True)
class Clips:
    """Videos in the order of the prompts, ``count`` for each. Frames are decoded when they are asked for."""

    latents: Tensor  # (b, c, T, h, w)
    fps: float
    settings: list[dict[str, Any]]  # of each: what makes it again
    sound_latents: Tensor | None = None  # (b, c, n)
    actions: Tensor | None = None  # (b, n, a) in the embodiment's own units, where actions were asked for
    complete: bool = True  # False: stopped by ``on_step``
    codec: Any = field(default=None, repr=False)
    sound_codec: Any = field(default=None, repr=False)
    tiling: Tiling | None = None

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def rate(self) -> int | None:
        """Samples of sound a second."""
        return None if self.sound_latents is None else self.sound_codec.rate

    @cached_property
    def frames(self) -> list[np.ndarray]:
        """(T, H, W, 3) uint8 of each video."""
        return [np.concatenate(list(self.parts(i))) for i in range(len(self))]

    @cached_property
    def sound(self) -> list[np.ndarray] | None:
        """(sides, samples) float32 in [-1, 1] of each video, as long as its frames."""
        if self.sound_latents is None:
            return None
        frames = self.codec.pixel_frames(self.latents.shape[2])
        samples = int(frames / self.fps * self.rate)
        heard = [self.sound_codec.decode(row[None])[0, :, :samples] for row in self.sound_latents]
        return [row.float().clamp(-1, 1).cpu().numpy() for row in heard]

    @torch.inference_mode()
    def parts(self, index: int = 0) -> Iterator[np.ndarray]:
        """The frames of one video, a few at a time: (n, H, W, 3) uint8. A long video needs the memory of these few."""
        for part in self.codec.decode_parts(self.latents[index : index + 1], self.tiling):
            levels = (part[0].float() * 255).round().clamp(0, 255).byte()
            yield levels.permute(1, 2, 3, 0).cpu().numpy()

    def save(self, path: str | Path, index: int = 0) -> None:
        """One video as an mp4 with its sound, frame after frame; its settings stand in the file's comment."""
        frames = (frame for part in self.parts(index) for frame in part)
        sound = None if self.sound is None else self.sound[index]
        extra = {} if sound is None else {"sound": sound, "rate": self.rate}
        write_video(path, frames, self.fps, settings=self.settings[index], **extra)


@dataclass(frozen=True)
class Request:
    """One checked call: what all of its videos share."""

    height: int
    width: int
    frames: int
    fps: float
    walk: Walk
    negative_prompt: Prompt
    style: CaptionStyle
    sound: bool

    def settings(self) -> dict[str, Any]:
        names = ("height", "width", "frames", "fps", "sound")
        plain = {name: getattr(self, name) for name in names} | self.walk.settings()
        return plain | ({"negative_prompt": self.negative_prompt} if self.negative_prompt else {})


class Animator(Generator):
    """What the pipelines of videos share. ``tiling``: decode large frames in tiles."""

    shipped = None

    def __init__(self, model: Any, codec: Any = None, *, offload: bool = False, tiling: Tiling | None = None) -> None:
        super().__init__(model, codec, offload=offload)
        if self.unit == 1:
            raise ValueError("this model draws pictures; it knows no videos")
        self.tiling = tiling

    def animate(
        self,
        prompt: Prompt | Sequence[Prompt],
        given: Sequence[Tensor] | None = None,
        clean: Sequence[int] = (),
        fit: Fit = cover,
        *,
        height: int | None = None,
        width: int | None = None,
        aspect: str | None = None,
        tier: int | None = None,
        frames: int | None = None,
        fps: float | None = None,
        sound: bool | None = None,
        negative_prompt: Prompt = "",
        seed: int | Sequence[int] | None = None,
        latents: Tensor | None = None,
        sound_latents: Tensor | None = None,
        count: int = 1,
        style: CaptionStyle | None = None,
        on_step: OnStep | None = None,
        **walk: Any,
    ) -> Clips:
        """Videos that begin with frames ``given`` (n, 3, H, W), whose latent frames ``clean`` are kept."""
        prompts = prompts_of(prompt)
        if given is not None and len(given) != len(prompts):
            raise ValueError(f"{len(given)} pictures or videos were given for {len(prompts)} prompts")
        size = self._size(height, width, aspect, tier, given)
        request = Request(
            *size,
            frames=self.defaults.frames if frames is None else frames,
            fps=float(self.defaults.fps if fps is None else fps),
            walk=Walk.of(self.defaults.video, **walk),
            negative_prompt=negative_prompt,
            style=self.style(style),
            sound=self._sound(sound),
        )
        clips = self._check(request, len(prompts), count)
        given = given and [fit(clip, request.height, request.width) for clip in given]
        shapes = self._shapes(request)
        need = latents is None or (request.sound and sound_latents is None) or request.walk.eta > 0
        seeds = seeds_of(seed, len(prompts), count, "videos") if need else [None] * clips
        fresh = self.noise(seeds, shapes) if need else None
        state = fresh() if fresh is not None else {}
        own = {VIDEO: latents} | ({SOUND: sound_latents} if request.sound else {})
        for name, start in own.items():
            if start is not None:
                state[name] = self._start(start, (clips, *shapes[name]), name)
        flags, state[VIDEO] = self._place(request, given, clean, state[VIDEO], count)
        scene = Scene(fps=torch.full((clips,), request.fps, device=state[VIDEO].device), clean=flags)
        rows = [p for p in prompts for _ in range(count)]
        wanted, against = self._ids(request, rows)
        found, complete = self.denoise(wanted, against, state, scene, request.walk, fresh, on_step, "animating")
        settings = [
            {"prompt": p, **({} if s is None else {"seed": s}), **request.settings()}
            for p, s in zip(rows, seeds, strict=True)
        ]
        codecs = {"codec": self.codec, "sound_codec": self.sound_codec if request.sound else None}
        sounds = found.get(SOUND)
        return Clips(found[VIDEO], request.fps, settings, sounds, None, complete, tiling=self.tiling, **codecs)

    @torch.inference_mode()
    def still(self, latents: Tensor) -> np.ndarray:
        """Frames (n, H, W, 3) uint8 of the first video of latents (b, c, T, h, w), all at once: for previews."""
        pixels = torch.cat(list(self.codec.decode_parts(latents[:1], self.tiling)), dim=2)[0]
        return (pixels.float() * 255).round().clamp(0, 255).byte().permute(1, 2, 3, 0).cpu().numpy()

    # -- checks --------------------------------------------------------------------------------------------------------

    def _size(
        self, height: int | None, width: int | None, aspect: str | None, tier: int | None, given: Any
    ) -> tuple[int, int]:
        """Height and width; by default those of the tier that are nearest to what is given, or 16 to 9."""
        tier = self.defaults.tier if tier is None else tier
        if aspect is not None and not tier:
            raise ValueError(f"aspect is {aspect!r}; this model has no sizes for it: give height and width")
        if not tier:
            own = (self.model.config.latent.image_size,) * 2
        elif aspect is None and given is not None:
            own = nearest_size(tier, *given[0].shape[-2:])
        else:
            own = size_of(tier, aspect or "16:9")
        return (own[0] if height is None else height, own[1] if width is None else width)

    def _sound(self, sound: bool | None) -> bool:
        if sound and self.model.sound_latents is None:
            raise ValueError("sound was asked for; this model makes none")
        return bool(sound)

    def _check(self, request: Request, prompts: int, count: int) -> int:
        """Number of videos; ValueError for what cannot be made."""
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"count is {count!r}; it must be a whole number of at least 1")
        if not isinstance(request.frames, int) or isinstance(request.frames, bool):
            raise ValueError(f"frames is {request.frames!r}; it must be a whole number")
        if not 0 < request.fps <= 1000:
            raise ValueError(f"fps is {request.fps}; it must be positive and at most 1000")
        if request.frames < 1 or (request.frames - 1) % self.unit:
            raise ValueError(
                f"frames is {request.frames}; this model makes 1, {1 + self.unit}, {1 + 2 * self.unit}, ... frames"
            )
        tokens = self.check_size(request.height, request.width, 1 + (request.frames - 1) // self.unit)
        if tokens * prompts * count > MAX_TOKENS:
            raise ValueError(
                f"{prompts * count} videos of {request.frames} frames of {request.height}x{request.width} pixels take "
                f"{tokens * prompts * count} latent tokens; at most {MAX_TOKENS} fit one call"
            )
        return prompts * count

    def _shapes(self, request: Request) -> dict[str, tuple[int, ...]]:
        """Of each stream of one video."""
        f = self.codec.factor
        video = (self.codec.channels, self.codec.latent_frames(request.frames), request.height // f, request.width // f)
        if not request.sound:
            return {VIDEO: video}
        samples = int(request.frames / request.fps * self.sound_codec.rate)
        return {VIDEO: video, SOUND: (self.sound_codec.channels, self.sound_codec.latents_of(samples))}

    # -- what is given -------------------------------------------------------------------------------------------------

    def _place(
        self, request: Request, given: Sequence[Tensor] | None, clean: Sequence[int], noise: Tensor, count: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Which latent frames are given, and the noise with them in their place."""
        if given is None:
            return {}, noise
        kept = self.latents_behind(clean)
        if kept[-1] >= noise.shape[2]:
            last = (request.frames - 1) // self.unit
            raise ValueError(f"condition is {tuple(clean)}; this video has the latent frames 0 to {last}")
        wanted = self.codec.pixel_frames(kept[-1] + 1)
        rows = []
        for clip in given:
            clip = hold(clip, wanted).to(noise.device).movedim(0, 1)[None]
            rows.append(self.codec.encode(clip)[:, :, kept].float().expand(count, -1, -1, -1, -1))
        flags = torch.zeros(noise.shape[0], noise.shape[2], dtype=torch.bool, device=noise.device)
        flags[:, kept] = True
        placed = noise.clone()
        placed[:, :, kept] = torch.cat(rows)
        return {VIDEO: flags}, placed

    def latents_behind(self, units: Sequence[int]) -> list[int]:
        """Latent frames of the token frames ``units``: the first is alone, the others are of ``patch_frames``."""
        known = bool(units) and all(isinstance(u, int) and not isinstance(u, bool) and u >= 0 for u in units)
        if not known:
            raise ValueError(f"condition is {tuple(units)}; it must name latent frames from 0 on")
        group = self.model.config.latent.patch_frames
        return sorted({0 if u == 0 else 1 + (u - 1) * group + i for u in units for i in range(group)})

    def _start(self, start: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
        if tuple(start.shape) != shape or not start.is_floating_point():
            raise ValueError(
                f"latents of {name} are {tuple(start.shape)} {start.dtype}; they must be floats of {shape}"
            )
        return start.float().to(self.device)

    def _ids(self, request: Request, rows: Sequence[Prompt]) -> tuple[list, list]:
        names = ("height", "width", "frames", "fps", "style")
        size = {name: getattr(request, name) for name in names}
        kind = "image" if request.frames == 1 else "video"
        wanted = [self.ids(self.say(row, **size), kind, request.style) for row in rows]
        other = self.ids(self.say(request.negative_prompt, negative=True, **size), kind, request.style)
        return wanted, [other] * len(rows)


class TextToVideo(Animator):
    """``TextToVideo(model)("a red circle moves left", seed=1).save("x.mp4")``"""

    @torch.inference_mode()
    def __call__(self, prompt: Prompt | Sequence[Prompt], **options: Any) -> Clips:
        """A video for each prompt, ``count`` of them.

        Args:
            options: ``height`` and ``width`` in pixels, or ``tier`` (480) and ``aspect`` ("16:9") of the published
                sizes; ``frames``, ``fps``; ``sound``: make it too; ``negative_prompt``; ``seed``; ``count``;
                ``latents`` (b, c, T, h, w) and ``sound_latents`` (b, c, n) to start from; ``style`` of captions;
                ``on_step``; and those of the walk, as in :class:`omni.pipelines.images.TextToImage`.

        Raises:
            ValueError: an option out of its limits; nothing is allocated before.
        """
        return self.animate(prompt, **options)


class ImageToVideo(Animator):
    """``ImageToVideo(model)("x.png", "the circle moves left").save("x.mp4")``"""

    shipped = "tiny-animate"

    @torch.inference_mode()
    def __call__(self, image: Any, prompt: Prompt | Sequence[Prompt] = "", **options: Any) -> Clips:
        """A video that begins with ``image``: a file, a PIL picture, or pixels (H, W, 3) uint8; lists are batches.

        It is scaled until it covers the video's size and cropped to its centre. ``options``: as of
        :class:`TextToVideo`; the size is by default that of the model's tier which is nearest in shape.
        """
        pictures = list(image) if isinstance(image, (list, tuple)) else [image]
        given = [pixels_of(np.array(open_image(picture))[None]) for picture in pictures]
        return self.animate(*paired(prompts_of(prompt), given), (0,), **options)


class VideoToVideo(Animator):
    """``VideoToVideo(model)("x.mp4", "the circle stops").save("y.mp4")``"""

    @torch.inference_mode()
    def __call__(
        self,
        video: Any,
        prompt: Prompt | Sequence[Prompt] = "",
        *,
        condition: Sequence[int] = (0, 1),
        keep: str = "first",
        **options: Any,
    ) -> Clips:
        """A video that goes on where ``video`` ends: a file, or frames (T, H, W, 3) uint8 or PIL; a list is a batch.

        Args:
            condition: latent frames that are kept, such as the first two: five frames of the published codec.
            keep: whether they are the "first" or the "last" of ``video``.
            options: as of :class:`TextToVideo`. Frames are stretched to the size, which is by default that of the
                model's tier that is nearest in shape.
        """
        if keep not in KEEP:
            raise ValueError(f"keep is {keep!r}; it must be one of {', '.join(KEEP)}")
        wanted = self.codec.pixel_frames(self.latents_behind(condition)[-1] + 1)
        given = [ends_of(one, wanted, keep) for one in several(video)]
        return self.animate(*paired(prompts_of(prompt), given), condition, stretch, **options)


# -- media -------------------------------------------------------------------------------------------------------------


def several(video: Any) -> list:
    """One video, or a batch of them: a list of pictures is one video, a list of files or of arrays several."""
    whole = not isinstance(video, (list, tuple)) or not video or isinstance(video[0], Image.Image)
    return [video] if whole else list(video)


def ends_of(video: Any, wanted: int, keep: str) -> Tensor:
    """The first or last ``wanted`` frames (n, 3, H, W) uint8 of a video; fewer where it has fewer."""
    timed = isinstance(video, bytes) or (isinstance(video, (str, Path)) and not Path(video).is_dir())
    opened = open_video(video) if timed else open_video(video, fps=1.0)  # pictures have no times, and need none here
    n = min(wanted, opened.frame_count)
    start = 0 if keep == "first" else opened.frame_count - n
    return pixels_of(opened.read(range(start, start + n)))


def pixels_of(frames: np.ndarray) -> Tensor:
    """(n, H, W, 3) uint8 -> (n, 3, H, W)"""
    return torch.from_numpy(np.require(frames, requirements="CW")).permute(0, 3, 1, 2)


__all__ = ["Animator", "Clips", "ImageToVideo", "TextToVideo", "VideoToVideo"]
