"""What every pipeline that denoises has in common.

    prompts ──> ids ──> context tower: each different prompt once ──> cache, kept for the next request
    noise of each seed, with what is given in its place ──> denoising steps, which read the cache only ──> streams

Both branches of guidance are one batch while that is small; beyond :data:`TOGETHER` tokens they follow each other.
"""

import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from omni.cache import Cache
from omni.config import GenerationConfig
from omni.decoders.flow import State, Velocity, guided, integrate
from omni.inputs import Inputs, pad_rows
from omni.model import Omni
from omni.pipelines.walk import Walk
from omni.streams import NAMES, VIDEO, Scene, spread
from omni.tokenizers.captions import CaptionStyle, describe, prompt_ids, structured
from omni.tokenizers.latent import PixelCodec

MAX_TOKENS = 1 << 18  # latent tokens of one request, over all its samples
TOGETHER = 1 << 14  # tokens of a step up to which both branches of guidance are one batch

OnStep = Callable[[int, Tensor], bool | None]
"""(step from 0, latents (b, c, [T,] h, w) as they would come out if this were the last step) -> False to stop"""

Prompt = str | Mapping[str, Any]
"""Words, or a structured prompt as Cosmos 3 has them."""

Noise = Callable[[], dict[str, Tensor]]


class Generator:
    """A model that denoises, with its codec and tokenizer.

    ``offload`` keeps the context tower on the CPU but for the moments in which it reads a prompt.
    """

    shipped: ClassVar[str | None] = "tiny"  # the model that has learnt this; None: no shipped one has

    def __init__(self, model: Omni, codec: Any = None, *, offload: bool = False) -> None:
        if model.latents is None:
            raise ValueError("this model draws no pictures; it has no denoiser for image latents")
        if model.tokenizer is None:
            raise ValueError("this model was loaded without a tokenizer; prompts need one")
        self.model, self.codec, self.offload = model, codec or open_codec(model), offload
        if model.config.latent.channels != self.codec.channels:
            raise ValueError(
                f"the model's latents have {model.config.latent.channels} channels; "
                f"{type(self.codec).__name__} makes {self.codec.channels}"
            )
        self._known: tuple[tuple, Cache] | None = None  # the latest prompts and what was read of them
        if offload:
            self._move_reader("cpu")

    @classmethod
    def from_pretrained(cls, name_or_path: str | None = None, *, offload: bool = False, **options: Any) -> "Generator":
        """``name_or_path``: by default the shipped model that can do this, if one can. ``options``: device, dtype."""
        import omni

        return cls(omni.load(cls.name_of(name_or_path), **options), offload=offload)

    @classmethod
    def name_of(cls, name_or_path: str | None) -> str:
        """The model that is meant: the shipped one where none is named. Raises ValueError where there is none."""
        name = cls.shipped if name_or_path is None else name_or_path
        if name is None:
            raise ValueError(f"no shipped model has learnt {cls.__name__}: name another")
        return name

    @property
    def defaults(self) -> GenerationConfig:
        return self.model.config.generation

    @property
    def device(self) -> torch.device:
        return self.model.denoiser.norm.weight.device

    @property
    def unit(self) -> int:
        """Frames of a video that one more frame of tokens stands for."""
        return self.codec.frames * self.model.config.latent.patch_frames

    @cached_property
    def sound_codec(self) -> Any:
        """The codec of the model's sounds: its own, or the one in its folder."""
        if self.model.sound_codec is not None:
            return self.model.sound_codec
        if self.model.folder is None or not (self.model.folder / "sound_tokenizer").is_dir():
            raise ValueError("this model has no codec of sound; its folder sound_tokenizer is missing")
        from omni.tokenizers.avae import SoundCodec

        return SoundCodec.from_folder(self.model.folder / "sound_tokenizer", self.device, self.model.dtype)

    def check_size(self, height: int, width: int, latent_frames: int = 1) -> int:
        """Latent tokens of one picture or video; ValueError where it cannot be made."""
        patch, config = self.codec.factor, self.model.config
        if not config.generation.tier:  # other models fill up what does not divide into patches
            patch *= config.latent.patch_size
        most = config.max_positions
        for name, value in (("height", height), ("width", width)):
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or value % patch or not patch <= value <= most * patch:
                raise ValueError(
                    f"{name} is {value!r}; it must be a multiple of {patch} from {patch} to {most * patch} pixels"
                )
        side = self.codec.factor * config.latent.patch_size
        tokens = -(-height // side) * -(-width // side) * latent_frames
        if tokens > most:
            raise ValueError(f"{height}x{width} pixels take {tokens} latent tokens; the model's limit is {most}")
        return tokens

    # -- prompts -------------------------------------------------------------------------------------------------------

    def say(
        self,
        prompt: Prompt,
        *,
        height: int,
        width: int,
        frames: int = 1,
        fps: float = 24.0,
        negative: bool = False,
        style: CaptionStyle,
    ) -> str:
        """What the context tower reads of a prompt, with the size and length asked for if it wants those."""
        if self.defaults.captions == "plain":
            if not isinstance(prompt, str):
                raise ValueError("this model knows no structured prompts; give a text")
            return prompt
        if isinstance(prompt, Mapping):
            return structured(dict(prompt), height, width, frames, fps)
        return describe(prompt, height, width, frames, fps, negative=negative, style=style)

    def style(self, given: CaptionStyle | None = None) -> CaptionStyle:
        """What is said beside prompts: as given, or as the checkpoint is used to it."""
        return given or CaptionStyle(system=self.defaults.system_prompt)

    def ids(self, text: str, kind: str, style: CaptionStyle) -> tuple[int, ...]:
        """Token ids of what :meth:`say` said. ValueError where they are more than the model's positions."""
        room = self.model.config.max_positions
        return tuple(prompt_ids(text, self.model.tokenizer, self.defaults.captions, kind, style.system, room))

    def read(self, texts: Sequence[tuple[int, ...]]) -> Cache:
        """The context tower's cache of the prompts, one row each. The same ones again are not read again."""
        key = tuple(texts)
        if self._known is None or self._known[0] != key:
            padded, mask = pad_rows([list(text) for text in texts], self.model.tokenizer.special["pad"])
            self._move_reader(self.device)
            cache = self.model.new_cache(len(texts), padded.shape[1])
            self.model.read(Inputs(padded, mask).to(self.model.device), cache, last=0)
            if self.offload:
                self._move_reader("cpu")
            self._known = key, cache
        return self._known[1]

    def _move_reader(self, device: torch.device | str) -> None:
        if self.offload:
            for part in (self.model.embed, self.model.context, self.model.head):
                if part is not None:
                    part.to(device)

    # -- denoising -----------------------------------------------------------------------------------------------------

    def denoise(
        self,
        wanted: Sequence[tuple[int, ...]],
        against: Sequence[tuple[int, ...]],
        noise: dict[str, Tensor],
        scene: Scene,
        walk: Walk,
        fresh: Noise | None = None,
        on_step: OnStep | None = None,
        title: str = "drawing",
    ) -> tuple[dict[str, Tensor], bool]:
        """Streams of samples whose prompts are ``wanted``, led away from ``against``; and whether all steps were made.

        ``noise`` holds what is given where ``scene`` says so, on the denoiser's device.
        """
        velocity = self._velocity(wanted, against, noise, scene, walk)
        stopped: list[dict[str, Tensor]] = []
        with progress(walk.steps, title) as advance:

            def after(step: int, estimate: dict[str, Tensor]) -> bool:
                advance()
                if on_step is not None and on_step(step, estimate[VIDEO]) is False:
                    stopped.append(estimate)
                return not stopped

            fresh = fresh and kept(fresh, noise, scene, walk.eta)
            found = integrate(velocity, noise, walk.schedule, walk.solver, after, walk.eta, fresh)
        found = stopped[0] if stopped else found
        if not all(bool(torch.isfinite(x).all()) for x in found.values()):
            raise RuntimeError("the model drew values that are not numbers; are its weights complete?")
        return found, not stopped

    def _velocity(
        self,
        wanted: Sequence[tuple[int, ...]],
        against: Sequence[tuple[int, ...]],
        noise: dict[str, Tensor],
        scene: Scene,
        walk: Walk,
    ) -> Velocity:
        """The velocity under guidance: every different prompt has been read once, before the first step."""
        acts = [walk.guidance.active(t) for t in walk.schedule.told]
        rows = [*wanted, *(against if any(acts) else [])]
        texts = list(dict.fromkeys(rows))
        read = self.read(texts)
        device = next(iter(noise.values())).device
        index = torch.tensor([texts.index(row) for row in rows], device=device)
        own, other = index[: len(wanted)], index[len(wanted) :]
        together = 2 * len(wanted) * self.tokens(noise, scene.controls) <= TOGETHER
        alone = read.select(own) if not (all(acts) and together) else None
        pairs = read.select(index) if any(acts) and together else None
        away = read.select(other) if any(acts) and not together else None
        double = scene.twice()

        def conditional(x: State, t: Tensor) -> State:
            return self.model.velocity(x, t, alone, scene)

        def both(x: State, t: Tensor) -> tuple[State, State]:
            if not together:
                return conditional(x, t), self.model.velocity(x, t, away, scene)
            twice = {name: torch.cat([own, own]) for name, own in x.items()}
            found = self.model.velocity(twice, torch.cat([t, t]), pairs, double)
            halves = {name: own.chunk(2) for name, own in found.items()}
            return tuple({name: half[i] for name, half in halves.items()} for i in (0, 1))

        return guided(conditional, both, walk.guidance)

    def tokens(self, streams: Mapping[str, Tensor], controls: Sequence[Tensor] = ()) -> int:
        """Tokens of one sample, all streams together and what is given beside them."""
        grids = [self.model.latents.grid(x) for x in (streams[VIDEO], *controls)]
        return sum(map(math.prod, grids)) + sum(
            x.shape[2 if name == "sound" else 1] for name, x in streams.items() if name != VIDEO
        )

    def noise(
        self, seeds: Sequence[int], shapes: Mapping[str, tuple[int, ...]], widths: Sequence[int] | None = None
    ) -> Noise:
        """A source of noise, drawn on the CPU by one generator a sample: the same on every device, in every batch.

        Streams are drawn one after the other, in the order of their tokens. Actions have none behind their ``widths``.
        """
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def draw(name: str) -> Tensor:
            drawn = [torch.randn(shapes[name], generator=g) for g in generators]
            if name == "action" and widths is not None:
                for row, width in zip(drawn, widths, strict=True):
                    row[..., width:] = 0
            return torch.stack(drawn).to(self.device)

        return lambda: {name: draw(name) for name in NAMES if name in shapes}


def open_codec(model: Omni) -> Any:
    """The codec of a model's pictures: its own, the one in its folder, or the pixels themselves."""
    if model.codec is not None:
        return model.codec
    if model.folder is not None and (model.folder / "vae").is_dir():
        from omni.tokenizers.wan import WanCodec

        return WanCodec.from_folder(model.folder / "vae", model.denoiser.norm.weight.device, model.dtype)
    return PixelCodec()


def kept(fresh: Noise, state: Mapping[str, Tensor], scene: Scene, eta: float) -> Noise:
    """Fresh noise that leaves frames which are given as they are: there it makes up for what the step takes away."""
    if not eta:
        return fresh
    share = (1 - (1 - eta**2) ** 0.5) / eta

    def draw() -> dict[str, Tensor]:
        drawn = fresh()
        for name, flags in scene.clean.items():
            drawn[name] = torch.where(spread(flags, drawn[name], name), share * state[name], drawn[name])
        return drawn

    return draw


def seeds_of(seed: int | Sequence[int] | None, samples: int, count: int, what: str = "pictures") -> list[int]:
    """One seed a sample: ``count`` follow each other for each of ``samples`` prompts."""
    if seed is None:
        seed = secrets.randbelow(2**31)
    if not isinstance(seed, (int, list, tuple)):
        raise ValueError(f"seed must be a whole number or a list of them, not {seed!r}")
    seeds = [seed + i for i in range(count)] * samples if isinstance(seed, int) else list(seed)
    if len(seeds) != samples * count:
        raise ValueError(f"{len(seeds)} seeds were given for {samples * count} {what}")
    for value in seeds:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
            raise ValueError(f"seed is {value!r}; it must be a whole number from 0 to 2^63 - 1")
    return seeds


def prompts_of(prompt: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as a list."""
    prompts = [prompt] if isinstance(prompt, (str, Mapping)) else prompt
    known = isinstance(prompts, (list, tuple)) and all(isinstance(p, (str, Mapping)) for p in prompts)
    if not known or not prompts:
        raise ValueError(f"a prompt must be a text or a list of texts, not {prompt!r}")
    return list(prompts)


def paired(prompts: list, given: list) -> tuple[list, list]:
    """As many of each: one alone goes with all of the others."""
    most = max(len(prompts), len(given))
    prompts = prompts * most if len(prompts) == 1 else prompts
    return prompts, given * most if len(given) == 1 else given


@contextmanager
def progress(steps: int, title: str) -> Iterator[Callable[[], None]]:
    """A bar on standard error, on a terminal only."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=steps)
        yield lambda: bar.advance(task)


__all__ = ["MAX_TOKENS", "Generator", "OnStep", "Prompt", "open_codec", "prompts_of", "seeds_of"]
