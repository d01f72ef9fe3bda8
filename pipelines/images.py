"""Pictures from prompts.

prompts ──> the model's reasoner says what they leave open (optional) ──> prompts
prompts and negative prompt ──> context tower, read once ──> cache
noise of each seed ──> denoising steps, both guidance branches as one batch, reading the cache only ──> latents
latents ──> codec ──> pictures
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from omni.model import Omni
from omni.pipelines.generation import MAX_TOKENS, Generator, OnStep, Prompt, prompts_of, seeds_of
from omni.pipelines.upsample import upsample as upsampled
from omni.pipelines.walk import Walk
from omni.streams import VIDEO, Scene
from omni.tokenizers.canvas import size_of
from omni.tokenizers.captions import CaptionStyle

SETTINGS_KEY = "omni"  # of the PNG text chunk that holds the settings


@dataclass(frozen=True)
class Result:
    """Pictures in the order of the prompts, ``count`` for each; with the settings that make each of them again."""

    images: list[Image.Image]
    latents: Tensor  # (b, c, H, W)
    settings: list[dict[str, Any]]
    prompts: list[str]  # of each picture as it was drawn: upsampled, if they were
    complete: bool = True  # False: stopped by ``on_step``


@dataclass(frozen=True)
class Request:
    """One checked call: what all of its pictures share."""

    height: int
    width: int
    walk: Walk
    negative_prompt: Prompt
    upsample: bool
    style: CaptionStyle

    def settings(self) -> dict[str, Any]:
        plain = {"height": self.height, "width": self.width, "upsample": self.upsample, **self.walk.settings()}
        return plain | ({"negative_prompt": self.negative_prompt} if self.negative_prompt else {})


class TextToImage(Generator):
    """``TextToImage(model)("a red circle", seed=1).images[0]``"""

    def __init__(self, model: Omni, codec: Any = None, *, offload: bool = False) -> None:
        super().__init__(model, codec, offload=offload)
        if not self.defaults.draws:
            raise ValueError("this model makes videos or drives robots; it draws no pictures by themselves")

    @torch.inference_mode()
    def __call__(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        height: int | None = None,
        width: int | None = None,
        aspect: str | None = None,
        negative_prompt: Prompt = "",
        seed: int | Sequence[int] | None = None,
        latents: Tensor | None = None,
        count: int = 1,
        upsample: bool | None = None,
        style: CaptionStyle | None = None,
        on_step: OnStep | None = None,
        **walk: Any,
    ) -> Result:
        """Draw ``count`` pictures for each prompt.

        Args:
            prompt: texts, or structured prompts where the model knows them.
            height, width: pixels; default: the size that the model was trained at, or of its tier with ``aspect``,
                such as "16:9".
            negative_prompt: what guidance leads away from, instead of from nothing in particular.
            seed: of the first picture of each prompt, the next ones count on from it; or a list with the seed of
                every picture. None draws one; ``Result.settings`` tells it. A picture follows from its own seed alone,
                whatever else is drawn with it.
            latents: noise (b, c, H, W) to start from, instead of seeds; with ``eta`` a seed gives the later noise, with
                ``upsample`` the words.
            upsample: let the model's reasoner write each prompt in full first, for each picture by its own seed.
            style: what is said to the model beside the prompt, such as its size.
            on_step: is shown the state after every step, and stops the drawing by returning False.
            walk: ``steps``; ``guidance``, 1 is none, and then the unconditional branch is not computed, ``interval`` of
                times (1 is noise, 0 the picture) within which it acts, ``normalize``; ``solver``, ``grid``, ``shift``;
                ``eta``, the part of the noise that every step renews: 0 follows one path, 1 lets late steps undo early
                ones. Defaults are the checkpoint's.

        Raises:
            ValueError: a setting out of its limits; nothing is allocated before.
        """
        prompts = prompts_of(prompt)
        request = self._request(height, width, aspect, negative_prompt, upsample, style, walk)
        pictures = self._check(request, len(prompts), count)
        draws = latents is None or request.walk.eta > 0 or request.upsample
        if seed is not None and not draws:
            raise ValueError("give a seed or latents, not both")
        seeds = seeds_of(seed, len(prompts), count) if draws else [None] * pictures
        fresh = self.noise(seeds, {VIDEO: self._shape(request)}) if draws else None
        noise = fresh() if latents is None else {VIDEO: self._given(latents, request, pictures)}
        rows = [p for p in prompts for _ in range(count)]
        texts = upsampled(self.model, rows, seeds) if request.upsample else rows
        drawn, complete = self._draw(request, texts, noise, fresh, on_step)
        settings = [
            {"prompt": p, **({} if s is None else {"seed": s}), **request.settings()}
            for p, s in zip(rows, seeds, strict=True)
        ]
        return Result(self.decode(drawn), drawn, settings, texts, complete)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents (b, c, H, W); for previews in ``on_step`` too."""
        pixels = (self.codec.decode(latents).float() * 255).round().byte()
        return [Image.fromarray(one) for one in pixels.permute(0, 2, 3, 1).cpu().numpy()]

    # -- checks ------------------------------------------------------------------------------------------------------

    def _request(
        self,
        height: int | None,
        width: int | None,
        aspect: str | None,
        negative_prompt: Prompt,
        upsample: bool | None,
        style: CaptionStyle | None,
        walk: dict[str, Any],
    ) -> Request:
        side, tier = self.model.config.latent.image_size, self.defaults.tier
        if aspect is not None and not tier:
            raise ValueError(f"aspect is {aspect!r}; this model has no sizes for it: give height and width")
        own = size_of(tier, aspect or "1:1") if tier else (side, side)
        return Request(
            height=own[0] if height is None else height,
            width=own[1] if width is None else width,
            walk=Walk.of(self.defaults.image, **walk),
            negative_prompt=negative_prompt,
            upsample=self.defaults.upsample if upsample is None else upsample,
            style=self.style(style),
        )

    def _check(self, request: Request, prompts: int, count: int) -> int:
        """Number of pictures; ValueError for what cannot be drawn."""
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"count is {count!r}; it must be a whole number of at least 1")
        if not isinstance(request.upsample, bool):
            raise ValueError(f"upsample must be true or false, not {request.upsample!r}")
        if not isinstance(request.negative_prompt, (str, dict)):
            raise ValueError(f"negative_prompt must be a text, not {request.negative_prompt!r}")
        tokens, pictures = self.check_size(request.height, request.width), prompts * count
        if tokens * pictures > MAX_TOKENS:
            raise ValueError(
                f"{pictures} pictures of {request.height}x{request.width} pixels take {tokens * pictures} latent "
                f"tokens; at most {MAX_TOKENS} fit one call, so draw at most {MAX_TOKENS // tokens} at once"
            )
        return pictures

    def _shape(self, request: Request) -> tuple[int, int, int]:
        factor = self.codec.factor
        return self.codec.channels, request.height // factor, request.width // factor

    def _given(self, latents: Tensor, request: Request, pictures: int) -> Tensor:
        expected = (pictures, *self._shape(request))
        if tuple(latents.shape) != expected or not latents.is_floating_point():
            raise ValueError(f"latents are {tuple(latents.shape)} {latents.dtype}; they must be floats of {expected}")
        return latents.float().to(self.model.denoiser.norm.weight.device)

    # -- drawing -----------------------------------------------------------------------------------------------------

    def _draw(self, request: Request, texts: list[Prompt], noise: dict, fresh, on_step) -> tuple[Tensor, bool]:
        size = {"height": request.height, "width": request.width, "style": request.style}
        wanted = [self.ids(self.say(text, **size), "image", request.style) for text in texts]
        other = self.ids(self.say(request.negative_prompt, negative=True, **size), "image", request.style)
        against = [other] * len(texts)
        found, complete = self.denoise(wanted, against, noise, Scene(), request.walk, fresh, on_step)
        return found[VIDEO], complete


# -- files -----------------------------------------------------------------------------------------------------------


def save_png(image: Image.Image, path: str | os.PathLike, settings: dict[str, Any] | None = None) -> None:
    """Write a PNG whose text chunks hold ``settings`` (JSON types); written beside and then renamed."""
    path = Path(path)
    notes = PngInfo()
    if settings:
        notes.add_itxt(SETTINGS_KEY, json.dumps(settings, ensure_ascii=False))
        if settings.get("prompt"):
            notes.add_itxt("Description", str(settings["prompt"]))
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        image.save(beside, "PNG", pnginfo=notes)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read_settings(path: str | os.PathLike) -> dict[str, Any]:
    """The settings that :func:`save_png` wrote; empty where there are none."""
    with Image.open(path, formats=("PNG",)) as image:
        image.load()  # text may stand behind the pixels
        return json.loads(image.info.get(SETTINGS_KEY, "{}"))


def contact_sheet(images: Sequence[Image.Image], columns: int | None = None, gap: int = 4) -> Image.Image:
    """All pictures on one white sheet, row by row; as nearly square as can be, unless ``columns`` says otherwise."""
    if not images:
        raise ValueError("a contact sheet needs at least one picture")
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns is {columns}; it must be at least 1")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    width, height = (max(image.size[axis] for image in images) for axis in (0, 1))
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        sheet.paste(image, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet


__all__ = ["OnStep", "Result", "TextToImage", "contact_sheet", "read_settings", "save_png"]
