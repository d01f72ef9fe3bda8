"""Pictures from prompts.

prompts ──> the model's reasoner says what they leave open (optional) ──> prompts
prompts and negative prompt ──> context tower, read once ──> cache
noise of each seed ──> denoising steps, both guidance branches as one batch, reading the cache only ──> latents
latents ──> codec ──> pictures
"""

import json
import math
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from omni.cache import Cache
from omni.decoders.flow import Guidance, Velocity, check_walk, guided, integrate
from omni.decoders.schedules import Schedule, plain
from omni.inputs import Inputs, pad_rows
from omni.model import Omni
from omni.pipelines.upsample import upsample as upsampled
from omni.tokenizers.latent import PatchCodec, PixelCodec
from omni.tokenizers.prompts import caption_ids

STEPS, GUIDANCE, SHIFT, ETA = 30, 3.0, 2.0, 0.0  # where the checkpoint's own defaults say nothing
MAX_TOKENS = 1 << 18  # latent tokens of one request, over all its pictures
SETTINGS_KEY = "omni"  # of the PNG text chunk that holds the settings

OnStep = Callable[[int, Tensor], bool | None]
"""(step from 0, latents (b, c, H, W) as they would come out if this were the last step) -> False to stop"""


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
    steps: int
    guidance: Guidance
    shift: float
    eta: float
    solver: str
    negative_prompt: str
    upsample: bool

    @property
    def schedule(self) -> Schedule:
        return plain(self.steps, self.shift)

    def settings(self) -> dict[str, Any]:
        names = ("height", "width", "steps", "shift", "eta", "solver", "upsample")
        plain = {name: getattr(self, name) for name in names}
        plain |= {"guidance": self.guidance.scale, "interval": list(self.guidance.interval)}
        return plain | ({"negative_prompt": self.negative_prompt} if self.negative_prompt else {})


class TextToImage:
    """``TextToImage(model)("a red circle", seed=1).images[0]``"""

    def __init__(self, model: Omni, codec: PixelCodec | PatchCodec | None = None) -> None:
        if model.latents is None:
            raise ValueError("this model draws no pictures; it has no denoiser for image latents")
        if model.tokenizer is None:
            raise ValueError("this model was loaded without a tokenizer; prompts need one")
        self.model, self.codec = model, codec or model.codec or PixelCodec()
        if model.config.latent.channels != self.codec.channels:
            raise ValueError(
                f"the model's latents have {model.config.latent.channels} channels; "
                f"{type(self.codec).__name__} makes {self.codec.channels}"
            )

    @classmethod
    def from_pretrained(cls, name_or_path: str = "tiny", **options: Any) -> "TextToImage":
        """``options``: device, dtype."""
        import omni

        return cls(omni.load(name_or_path, **options))

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        height: int | None = None,
        width: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        negative_prompt: str = "",
        seed: int | Sequence[int] | None = None,
        latents: Tensor | None = None,
        solver: str = "euler",
        shift: float | None = None,
        eta: float | None = None,
        count: int = 1,
        interval: tuple[float, float] = (0.0, 1.0),
        upsample: bool | None = None,
        on_step: OnStep | None = None,
    ) -> Result:
        """Draw ``count`` pictures for each prompt.

        Args:
            height, width: pixels; default: the size that the model was trained at.
            guidance: 1 is none, and then the unconditional branch is not computed.
            negative_prompt: what guidance leads away from, instead of from nothing in particular.
            seed: of the first picture of each prompt, the next ones count on from it; or a list with the seed of
                every picture. None draws one; ``Result.settings`` tells it. A picture follows from its own seed alone,
                whatever else is drawn with it.
            latents: noise (b, c, H, W) to start from, instead of seeds; with ``eta`` a seed gives the later noise, with
                ``upsample`` the words.
            eta: part of the noise that every step renews, 0 to 1: 0 follows one path, 1 lets late steps undo early
                ones.
            interval: times (1 is noise, 0 the picture) within which guidance acts.
            upsample: let the model's reasoner write each prompt in full first, for each picture by its own seed.
            on_step: is shown the state after every step, and stops the drawing by returning False.

        Raises:
            ValueError: a setting out of its limits; nothing is allocated before.
        """
        prompts = self._prompts(prompt)
        defaults = self.model.config.sampling
        side = self.model.config.latent.image_size
        request = Request(
            height=side if height is None else height,
            width=side if width is None else width,
            steps=int(defaults.get("image_steps", STEPS)) if steps is None else steps,
            guidance=Guidance(defaults.get("image_guidance", GUIDANCE) if guidance is None else guidance, interval),
            shift=defaults.get("image_shift", SHIFT) if shift is None else shift,
            eta=defaults.get("image_eta", ETA) if eta is None else eta,
            solver=solver,
            negative_prompt=negative_prompt,
            upsample=bool(defaults.get("image_upsample", False)) if upsample is None else upsample,
        )
        pictures = self._check(request, len(prompts), count)
        draws = latents is None or request.eta > 0 or request.upsample
        if seed is not None and not draws:
            raise ValueError("give a seed or latents, not both")
        seeds = _seeds(seed, len(prompts), count) if draws else [None] * pictures
        fresh = self._noise(request, seeds) if draws else None
        noise = fresh() if latents is None else self._given(latents, request, pictures)
        rows = [p for p in prompts for _ in range(count)]
        texts = upsampled(self.model, rows, seeds) if request.upsample else rows
        drawn, complete = self._denoise(request, texts, noise, fresh, on_step)
        if not bool(torch.isfinite(drawn).all()):
            raise RuntimeError("the model drew values that are not numbers; are its weights complete?")
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

    def _prompts(self, prompt: str | Sequence[str]) -> list[str]:
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(prompts, (list, tuple)) or not prompts or not all(isinstance(p, str) for p in prompts):
            raise ValueError(f"a prompt must be a text or a list of texts, not {prompt!r}")
        return list(prompts)

    def _check(self, request: Request, prompts: int, count: int) -> int:
        """Number of pictures; ValueError for what cannot be drawn."""
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"count is {count!r}; it must be a whole number of at least 1")
        if not isinstance(request.upsample, bool):
            raise ValueError(f"upsample must be true or false, not {request.upsample!r}")
        if not isinstance(request.negative_prompt, str):
            raise ValueError(f"negative_prompt must be a text, not {request.negative_prompt!r}")
        low, high = request.guidance.interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"interval is {request.guidance.interval}; it must be 0 <= low <= high <= 1")
        _ = request.schedule  # checks steps and shift
        check_walk(request.solver, request.eta)
        tokens, pictures = self._tokens(request), prompts * count
        if tokens * pictures > MAX_TOKENS:
            raise ValueError(
                f"{pictures} pictures of {request.height}x{request.width} pixels take {tokens * pictures} latent "
                f"tokens; at most {MAX_TOKENS} fit one call, so draw at most {MAX_TOKENS // tokens} at once"
            )
        return pictures

    def _tokens(self, request: Request) -> int:
        """Latent tokens of one picture."""
        patch = self.model.config.latent.patch_size * self.codec.factor
        most = self.model.config.max_positions
        for name, value in (("height", request.height), ("width", request.width)):
            if (
                isinstance(value, bool)
                or not isinstance(value, int)
                or value % patch
                or not patch <= value <= most * patch
            ):
                raise ValueError(
                    f"{name} is {value!r}; it must be a multiple of {patch} from {patch} to {most * patch} pixels"
                )
        tokens = (request.height // patch) * (request.width // patch)
        if tokens > most:
            raise ValueError(
                f"{request.height}x{request.width} pixels take {tokens} latent tokens; the model's limit is {most}"
            )
        return tokens

    # -- noise -------------------------------------------------------------------------------------------------------

    def _shape(self, request: Request) -> tuple[int, int, int]:
        factor = self.codec.factor
        return self.codec.channels, request.height // factor, request.width // factor

    def _noise(self, request: Request, seeds: list[int]) -> Callable[[], Tensor]:
        """A source of noise, drawn on the CPU by one generator a picture: the same on every device, in every batch."""
        shape = self._shape(request)
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        return lambda: torch.stack([torch.randn(shape, generator=g) for g in generators]).to(self.model.device)

    def _given(self, latents: Tensor, request: Request, pictures: int) -> Tensor:
        expected = (pictures, *self._shape(request))
        if tuple(latents.shape) != expected or not latents.is_floating_point():
            raise ValueError(f"latents are {tuple(latents.shape)} {latents.dtype}; they must be floats of {expected}")
        return latents.float().to(self.model.device)

    # -- drawing -----------------------------------------------------------------------------------------------------

    def _denoise(
        self,
        request: Request,
        rows: list[str],
        noise: Tensor,
        fresh: Callable[[], Tensor] | None,
        on_step: OnStep | None,
    ) -> tuple[Tensor, bool]:
        """Latents, and whether all steps were made."""
        velocity = self._velocity(request, rows)
        stopped: list[Tensor] = []
        with _progress(request.steps) as advance:

            def after(step: int, estimate: Tensor) -> bool:
                advance()
                if on_step is not None and on_step(step, estimate) is False:
                    stopped.append(estimate)
                return not stopped

            drawn = integrate(velocity, noise, request.schedule, request.solver, after, request.eta, fresh)
        return (stopped[0], False) if stopped else (drawn, True)

    def _velocity(self, request: Request, rows: list[str]) -> Velocity:
        """The velocity under guidance: every different prompt has been read once, before the first step."""
        guidance, times = request.guidance, request.schedule.told
        acts = [guidance.active(t) for t in times]
        texts = [*dict.fromkeys(rows), *([request.negative_prompt] if any(acts) else [])]
        read = self._read(texts)
        wanted = torch.tensor([texts.index(row) for row in rows], device=self.model.device)
        alone = read.select(wanted) if not all(acts) else None
        pairs = None
        if any(acts):
            pairs = read.select(torch.cat([wanted, torch.full_like(wanted, len(texts) - 1)]))

        def conditional(x: Tensor, t: Tensor) -> Tensor:
            return self.model.velocity(x, t, alone)

        def both(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return self.model.velocity(torch.cat([x, x]), torch.cat([t, t]), pairs).chunk(2)

        return guided(conditional, both, guidance)

    def _read(self, texts: list[str]) -> Cache:
        """The context tower's cache of the prompts, one row each."""
        special = self.model.tokenizer.special
        ids = [caption_ids(text, special, self.model.tokenizer.encode) for text in texts]
        longest, room = max(map(len, ids)), self.model.config.max_positions
        if longest > room:
            raise ValueError(f"a prompt has {longest} tokens; the model's limit is {room}")
        padded, mask = pad_rows(ids, special["pad"])
        cache = self.model.new_cache(len(ids), longest)
        self.model.read(Inputs(padded, mask).to(self.model.device), cache, last=0)
        return cache


def _seeds(seed: int | Sequence[int] | None, prompts: int, count: int) -> list[int]:
    """One seed a picture."""
    if seed is None:
        seed = secrets.randbelow(2**31)
    if not isinstance(seed, (int, list, tuple)):
        raise ValueError(f"seed must be a whole number or a list of them, not {seed!r}")
    seeds = [seed + i for i in range(count)] * prompts if isinstance(seed, int) else list(seed)
    if len(seeds) != prompts * count:
        raise ValueError(f"{len(seeds)} seeds were given for {prompts * count} pictures")
    for value in seeds:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
            raise ValueError(f"seed is {value!r}; it must be a whole number from 0 to 2^63 - 1")
    return seeds


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error, on a terminal only."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("drawing", total=steps)
        yield lambda: progress.advance(task)


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
