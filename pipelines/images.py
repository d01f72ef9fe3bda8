"""Pictures from prompts, and pictures edited by instructions.

prompts ──> the model's reasoner says what they leave open (optional) ──> prompts
prompts and negative prompt ──> context tower, read once ──> cache
picture to edit ──> codec ──> clean latents, before those of the new picture and one moment earlier
noise of each seed ──> denoising steps, both guidance branches as one batch, reading the cache only ──> latents
latents ──> codec ──> pictures

The context tower reads the instruction alone; both branches of guidance see the picture that is edited. Source of
editing: ``reference`` cosmos3, sections 2.3, 4.4 and 8.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from omni.model import Omni
from omni.pipelines.generation import MAX_TOKENS, Generator, Noise, OnStep, Prompt, paired, prompts_of, seeds_of
from omni.pipelines.upsample import upsample as upsampled
from omni.pipelines.walk import Walk
from omni.streams import VIDEO, Scene
from omni.tokenizers.canvas import cover, fitted_size, size_of, stretch
from omni.tokenizers.captions import CaptionStyle
from omni.tokenizers.image import open_image

SETTINGS_KEY = "omni"  # of the PNG text chunk that holds the settings
EDITING = CaptionStyle(system=True, negative="same")
"""Editing has a system prompt of its own, in both branches, and negative prompts state the size as others do."""


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
    style: CaptionStyle
    upsample: bool | None = None  # None: of no prompt that could be

    def settings(self) -> dict[str, Any]:
        plain = {"height": self.height, "width": self.width}
        plain |= ({} if self.upsample is None else {"upsample": self.upsample}) | self.walk.settings()
        return plain | ({"negative_prompt": self.negative_prompt} if self.negative_prompt else {})


class Painter(Generator):
    """What the pipelines of pictures share."""

    kind = "image"  # of system prompt

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents (b, c, H, W); for previews in ``on_step`` too."""
        pixels = (self.codec.decode(latents).float() * 255).round().byte()
        return [Image.fromarray(one) for one in pixels.permute(0, 2, 3, 1).cpu().numpy()]

    def _aspect(self, aspect: str | None) -> tuple[int, int] | None:
        """Height and width of an aspect, "1:1" by default; None where the model has no sizes for it."""
        if aspect is not None and not self.defaults.tier:
            raise ValueError(f"aspect is {aspect!r}; this model has no sizes for it: give height and width")
        return size_of(self.defaults.tier, aspect or "1:1") if self.defaults.tier else None

    def _check(self, request: Request, prompts: int, count: int, given: int = 0) -> None:
        """ValueError for what cannot be drawn, ``given`` pictures standing beside each."""
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"count is {count!r}; it must be a whole number of at least 1")
        if not isinstance(request.upsample, bool | None):
            raise ValueError(f"upsample must be true or false, not {request.upsample!r}")
        if not isinstance(request.negative_prompt, (str, dict)):
            raise ValueError(f"negative_prompt must be a text, not {request.negative_prompt!r}")
        tokens, pictures = (1 + given) * self.check_size(request.height, request.width), prompts * count
        if tokens * pictures > MAX_TOKENS:
            raise ValueError(
                f"{pictures} pictures of {request.height}x{request.width} pixels take {tokens * pictures} latent "
                f"tokens; at most {MAX_TOKENS} fit one call, so draw at most {MAX_TOKENS // tokens} at once"
            )

    def _start(
        self, request: Request, seed: int | Sequence[int] | None, latents: Tensor | None, prompts: int, count: int
    ) -> tuple[list[int | None], dict[str, Tensor], Noise | None]:
        """The seed of each picture, the noise that it starts from, and the source of later noise."""
        draws = latents is None or request.walk.eta > 0 or bool(request.upsample)
        if seed is not None and not draws:
            raise ValueError("give a seed or latents, not both")
        seeds = seeds_of(seed, prompts, count) if draws else [None] * (prompts * count)
        fresh = self.noise(seeds, {VIDEO: self._shape(request)}) if draws else None
        return seeds, fresh() if latents is None else {VIDEO: self._given(latents, request, len(seeds))}, fresh

    def _shape(self, request: Request) -> tuple[int, int, int]:
        factor = self.codec.factor
        return self.codec.channels, request.height // factor, request.width // factor

    def _given(self, latents: Tensor, request: Request, pictures: int) -> Tensor:
        expected = (pictures, *self._shape(request))
        if tuple(latents.shape) != expected or not latents.is_floating_point():
            raise ValueError(f"latents are {tuple(latents.shape)} {latents.dtype}; they must be floats of {expected}")
        return latents.float().to(self.device)

    def _draw(
        self,
        request: Request,
        texts: list[Prompt],
        noise: dict[str, Tensor],
        scene: Scene,
        fresh: Noise | None,
        on_step: OnStep | None,
        title: str,
    ) -> tuple[Tensor, bool]:
        size = {"height": request.height, "width": request.width, "style": request.style}
        wanted = [self.ids(self.say(text, **size), self.kind, request.style) for text in texts]
        other = self.ids(self.say(request.negative_prompt, negative=True, **size), self.kind, request.style)
        against = [other] * len(texts)
        found, complete = self.denoise(wanted, against, noise, scene, request.walk, fresh, on_step, title)
        return found[VIDEO], complete

    def _result(
        self,
        request: Request,
        rows: list[Prompt],
        texts: list[Prompt],
        seeds: list[int | None],
        drawn: tuple[Tensor, bool],
    ) -> Result:
        settings = [
            {"prompt": p, **({} if s is None else {"seed": s}), **request.settings()}
            for p, s in zip(rows, seeds, strict=True)
        ]
        return Result(self.decode(drawn[0]), drawn[0], settings, texts, drawn[1])


class TextToImage(Painter):
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
        self._check(request, len(prompts), count)
        seeds, noise, fresh = self._start(request, seed, latents, len(prompts), count)
        rows = [p for p in prompts for _ in range(count)]
        texts = upsampled(self.model, rows, seeds) if request.upsample else rows
        drawn = self._draw(request, texts, noise, Scene(), fresh, on_step, "drawing")
        return self._result(request, rows, texts, seeds, drawn)

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
        side = self.model.config.latent.image_size
        own = self._aspect(aspect) or (side, side)
        return Request(
            height=own[0] if height is None else height,
            width=own[1] if width is None else width,
            walk=Walk.of(self.defaults.image, **walk),
            negative_prompt=negative_prompt,
            upsample=self.defaults.upsample if upsample is None else upsample,
            style=self.style(style),
        )


class ImageEdit(Painter):
    """``ImageEdit(model)("x.png", "make the sky red", seed=1).images[0]``"""

    shipped = None
    kind = "edit"

    def __init__(self, model: Omni, codec: Any = None, *, offload: bool = False) -> None:
        super().__init__(model, codec, offload=offload)
        if self.defaults.edit is None:
            raise ValueError("this model has not learnt to edit pictures: name another")

    @torch.inference_mode()
    def __call__(
        self,
        image: Any,
        prompt: Prompt | Sequence[Prompt],
        *,
        height: int | None = None,
        width: int | None = None,
        aspect: str | None = None,
        negative_prompt: Prompt = "",
        seed: int | Sequence[int] | None = None,
        latents: Tensor | None = None,
        count: int = 1,
        style: CaptionStyle | None = None,
        on_step: OnStep | None = None,
        **walk: Any,
    ) -> Result:
        """Edit each picture ``count`` times, as its instruction says.

        Args:
            image: a file, a PIL picture, or pixels (H, W, 3) uint8; lists are batches, whose pictures get one size.
            prompt: what is to be changed.
            height, width, aspect: of what is made; the picture is scaled until it covers that and cropped to its
                centre. Default: the picture's own shape, its longer side at 512 pixels, as the published models were
                trained.
            negative_prompt, seed, latents, count, style, on_step, walk: as of :class:`TextToImage`; a batch of pictures
                counts as prompts do. Defaults are the checkpoint's for editing, published as 35 steps of guidance 6.

        Raises:
            ValueError: a setting out of its limits, or pictures that have no size in common; nothing is allocated
                before.
        """
        sources = [open_image(one) for one in (image if isinstance(image, (list, tuple)) else [image])]
        prompts, sources = paired(prompts_of(prompt), sources)
        if len(prompts) != len(sources):
            raise ValueError(f"{len(sources)} pictures were given for {len(prompts)} prompts")
        size = self._size(height, width, aspect, sources)
        request = Request(*size, Walk.of(self.defaults.edit, **walk), negative_prompt, style or EDITING)
        self._check(request, len(prompts), count, given=1)
        seeds, noise, fresh = self._start(request, seed, latents, len(prompts), count)
        given = torch.cat([self._encode(source, size) for source in sources]).repeat_interleave(count, dim=0)
        rows = [p for p in prompts for _ in range(count)]
        scene = Scene(controls=(given,), follow=True)
        drawn = self._draw(request, rows, noise, scene, fresh, on_step, "editing")
        return self._result(request, rows, rows, seeds, drawn)

    def _size(
        self, height: int | None, width: int | None, aspect: str | None, sources: Sequence[Image.Image]
    ) -> tuple[int, int]:
        if aspect is not None:
            own = self._aspect(aspect)
        elif height is None or width is None:
            sizes = list(dict.fromkeys(map(self._fitted, sources)))
            if len(sizes) > 1:
                shown = ", ".join(f"{h}x{w}" for h, w in sizes)
                raise ValueError(f"the pictures become {shown} pixels; give height and width, or edit them one by one")
            own = sizes[0]
        else:
            own = height, width
        return own[0] if height is None else height, own[1] if width is None else width

    def _fitted(self, source: Image.Image) -> tuple[int, int]:
        """Height and width that a picture has by default."""
        return fitted_size(source.height, source.width, self.codec.factor * self.model.config.latent.patch_size)

    def _encode(self, source: Image.Image, size: tuple[int, int]) -> Tensor:
        """Clean latents (1, c, h, w) of a picture: all of it at its default size, else what covers ``size``."""
        pixels = torch.from_numpy(np.array(source)).permute(2, 0, 1)
        whole = size == self._fitted(source)
        shown = stretch(pixels, *size, Image.Resampling.LANCZOS) if whole else cover(pixels, *size)
        return self.codec.encode(shown[None].to(self.device)).float()


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


__all__ = ["ImageEdit", "OnStep", "Result", "TextToImage", "contact_sheet", "read_settings", "save_png"]
