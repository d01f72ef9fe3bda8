"""Videos that follow controls: edges, blur, depth, segmentation or a world scenario map of another video.

    controls, or drawn from a video ──> codec ──> clean latents, before the video's own ──┐
    frames given, or the last ones of the chunk before ──> codec ──> latents that stay ───┤
    noise of each chunk's seed ───────────────────────────────────────────────────────────┴──> denoising ──> a chunk

    v_c = v_n + c (v_f - v_n)       v_f with the controls, v_n without, both with the prompt
    v   = v_u + g (v_c - v_u)       v_u with the controls and the negative prompt

Each control stands before the video as if it were the only one; what the video's tokens find beside each is averaged
with the controls' weights, in every layer (:mod:`omni.kernels.groups`).

A long video is made in chunks that share ``overlap`` frames: those that end one are encoded again and given to
the next. One request at a time. Source: ``reference`` cosmos3, sections 2.2, 2.3, 4.4 and 4.6.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omni.cache import Cache
from omni.config import WalkConfig
from omni.decoders.flow import Guidance, Velocity, guided
from omni.pipelines.animate import Animator, Clips, Request, pixels_of
from omni.pipelines.generation import MAX_TOKENS, OnStep, Prompt, prompts_of, seeds_of
from omni.pipelines.walk import Walk
from omni.streams import VIDEO, Scene
from omni.tokenizers.canvas import cover
from omni.tokenizers.captions import CaptionStyle
from omni.tokenizers.controls import CONTROLS, DRAWN, Control, check_strength, defaults_of, require_opencv
from omni.tokenizers.latent import PART
from omni.tokenizers.video import Video, open_video
from omni.tokenizers.video_writer import write_video

MOST_FRAMES = 5000  # of one video, over all its chunks
MOST_WEIGHT = 1e6  # of one control
STYLE = CaptionStyle(system=True, negative="same")
"""Transfer has a system prompt of its own, in both branches, and negative prompts state the size as others do."""


# -- results -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LongClip:
    """One video in chunks. Frames are decoded when they are asked for, a few at a time."""

    chunks: tuple[Clips, ...]
    total: int  # frames
    overlap: int  # frames that each chunk behind the first repeats
    fps: float
    settings: list[dict[str, Any]]  # one: what makes the video again
    complete: bool = True  # False: stopped by ``on_step``; then the frames end with the chunk that was stopped

    def __len__(self) -> int:
        return 1

    @property
    def latents(self) -> list[Tensor]:
        """(1, c, T, h, w) of each chunk."""
        return [chunk.latents for chunk in self.chunks]

    @cached_property
    def frames(self) -> list[np.ndarray]:
        """(T, H, W, 3) uint8 of the one video, all in memory."""
        return [np.concatenate(list(self.parts()))]

    def parts(self, index: int = 0) -> Iterator[np.ndarray]:
        """The frames, a few at a time: (n, H, W, 3) uint8. A video of any length needs the memory of these few."""
        if index:
            raise ValueError(f"index is {index}; there is one video, 0")
        left = self.total
        for number, chunk in enumerate(self.chunks):
            repeated = self.overlap if number else 0
            for part in chunk.parts():
                new = part[repeated : repeated + left]
                repeated = max(repeated - len(part), 0)
                left -= len(new)
                if len(new):
                    yield new

    def save(self, path: str | Path, index: int = 0) -> None:
        """An mp4, frame after frame; the settings stand in the file's comment."""
        frames = (frame for part in self.parts(index) for frame in part)
        write_video(path, frames, self.fps, settings=self.settings[0])


# -- requests ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ControlWalk(Walk):
    """A walk with a second guidance: towards the controls."""

    control: Guidance = field(default_factory=Guidance)

    def settings(self) -> dict[str, Any]:
        own = {"control_guidance": self.control.scale, "control_interval": list(self.control.interval)}
        return super().settings() | own


@dataclass(frozen=True)
class Plan:
    """Which frames each chunk makes."""

    total: int
    size: int  # frames of a chunk, as the model makes them
    overlap: int
    first: int  # frames that are given at the start of the first chunk

    @property
    def chunks(self) -> list[tuple[int, int]]:
        """First frame of each chunk and the one behind its last; the last chunk may be shorter than ``size``."""
        if self.total <= self.size:
            return [(0, self.total)]
        step = self.size - self.overlap
        count = 1 + -(-(self.total - self.size) // step)
        return [(i * step, min(i * step + self.size, self.total)) for i in range(count)]


@dataclass(frozen=True)
class Sources:
    """What is read of a request. A control that is None is drawn from the video."""

    controls: dict[str, Video | None]
    video: Video | None
    strength: str

    @property
    def shown(self) -> list[Video]:
        """Those that have to be as long as what is made."""
        needed = self.video if None in self.controls.values() else None
        return [source for source in (needed, *self.controls.values()) if source is not None]


class Transfer(Animator):
    """``Transfer(model)({"edge": "control_edge.mp4"}, "a woman dances", seed=1).save("x.mp4")``"""

    @torch.inference_mode()
    def __call__(
        self,
        controls: Mapping[str, Any],
        prompt: Prompt,
        video: Any = None,
        *,
        weights: Mapping[str, float] | None = None,
        strength: str = "medium",
        control_guidance: float | None = None,
        control_interval: tuple[float, float] = (0.0, 1.0),
        follow: bool = False,
        frames: int | None = None,
        chunk_frames: int | None = None,
        overlap: int = 1,
        first_frames: int = 0,
        height: int | None = None,
        width: int | None = None,
        aspect: str | None = None,
        tier: int | None = None,
        fps: float | None = None,
        negative_prompt: Prompt = "",
        seed: int | None = None,
        style: CaptionStyle | None = None,
        on_step: OnStep | None = None,
        **walk: Any,
    ) -> LongClip:
        """One video that follows ``controls``.

        Args:
            controls: of "edge", "blur", "depth", "seg" and "wsm" one or several: a file or frames (T, H, W, 3) uint8,
                or, for edges and blur, True: drawn from ``video``. All of them are shots of the same scene, frame by
                frame; they are scaled until they cover the size and cropped to its centre.
            weights: of controls by name, 1 where none is given; only their ratios count, so that one control alone has
                no need of any: ``control_guidance`` says how much it counts.
            strength: of what is drawn, "very_low" to "very_high": how much of the video it leaves out.
            control_guidance: 1 is none, and then the branch without controls is not computed; it acts at times within
                ``control_interval``, whose ends are outside.
            follow: controls and video follow each other in time, instead of standing at the same moments.
            frames: of the result; default: all of the shortest control.
            chunk_frames: that are made together, 1, 5, 9, ...; ``overlap``: frames of a chunk that the next one is
                given, 0, 1, 5, 9, ...; ``first_frames``: as many of ``video`` that are given to the first.
            fps: default: that of the video's file, or of the first control's; of frames 30, or 10 of "wsm".
            seed: of the first chunk; the next ones count on from it.
            on_step: is shown the state after every step of each chunk; returning False ends the video with that chunk.
            walk: as of :class:`omni.pipelines.images.TextToImage`. Defaults are those of the control, of several
                controls those of edges: 50 steps, guidance 3, shift 10. A distilled model keeps its own steps.

        Raises:
            ValueError: an option out of its limits; nothing is allocated before.
        """
        names, how = self._names(controls, strength, video is not None)
        weights = _weights(names, weights)
        sources = self._open(names, controls, video, strength, fps or how.fps)
        plan = self._plan(frames, self._chunk(chunk_frames, how), overlap, first_frames, sources)
        leading = sources.video or sources.shown[0]
        shape = torch.empty(0, 3, *leading.size)  # of no frames: only its sides are read
        size = self._size(height, width, aspect, tier, [shape])
        request = Request(
            *size,
            frames=plan.size,
            fps=float(leading.fps if fps is None else fps),
            walk=self._walk(how, control_guidance, control_interval, walk),
            negative_prompt=negative_prompt,
            style=style or STYLE,
            sound=False,
        )
        self._fits(request, len(names))
        texts = self._texts(request, prompt)
        seeds = seeds_of(seed, 1, 1, "videos")
        settings = {"prompt": prompt, "seed": seeds[0], **request.settings(), "controls": names, "follow": follow}
        settings |= {"frames": plan.total, "chunk_frames": plan.size, "overlap": overlap, "first_frames": first_frames}
        settings |= {"weights": weights} if len(names) > 1 else {}
        settings |= {"strength": strength} if None in sources.controls.values() else {}
        scene = Scene(weights=tuple(weights.values()), follow=follow)
        return self._run(sources, plan, request, texts, seeds[0], scene, settings, on_step)

    # -- chunk after chunk ---------------------------------------------------------------------------------------------

    def _run(
        self,
        sources: Sources,
        plan: Plan,
        request: Request,
        texts: tuple[list, list],
        seed: int,
        scene: Scene,
        settings: dict[str, Any],
        on_step: OnStep | None,
    ) -> LongClip:
        shapes, made, complete = self._shapes(request), [], True
        rate = torch.full((1,), request.fps, device=self.device)
        for number, (start, stop) in enumerate(plan.chunks):
            seen, controls = self._controls(sources, (start, stop), request)
            given = self._given(plan, seen, sources, request, made)
            fresh = self.noise([seed + number], shapes)
            state = fresh()
            kept = 0 if given is None else given.shape[2]
            flags = torch.arange(state[VIDEO].shape[2], device=self.device)[None] < kept
            if given is not None:
                state[VIDEO] = torch.cat([given.to(state[VIDEO]), state[VIDEO][:, :, kept:]], dim=2)
            shown = replace(scene, fps=rate, clean={VIDEO: flags} if kept else {}, controls=controls)
            title = f"transferring {number + 1} of {len(plan.chunks)}"
            found, complete = self.denoise(*texts, state, shown, request.walk, fresh, on_step, title)
            own = [{"prompt": settings["prompt"], "seed": seed + number, **request.settings()}]
            made.append(Clips(found[VIDEO], request.fps, own, codec=self.codec, tiling=self.tiling, complete=complete))
            if not complete:
                break
        return LongClip(tuple(made), plan.total, plan.overlap, request.fps, [settings], complete)

    def _controls(
        self, sources: Sources, chunk: tuple[int, int], request: Request
    ) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """The video's frames of a chunk if something is drawn from them, and the controls' latents (1, c, T, h, w)."""
        size = request.height, request.width
        seen = shot(sources.video, chunk, size) if None in sources.controls.values() else None
        latents = []
        for name, source in sources.controls.items():
            pixels = DRAWN[name](seen, sources.strength) if source is None else shot(source, chunk, size)
            latents.append(self._encode(pixels[ping_pong(len(pixels), request.frames)]))
        return seen, tuple(latents)

    def _given(
        self, plan: Plan, seen: Tensor | None, sources: Sources, request: Request, made: Sequence[Clips]
    ) -> Tensor | None:
        """Latents (1, c, k, h, w) that a chunk begins with."""
        if made:
            return self._encode_parts([self._last(made[-1], plan.overlap)]) if plan.overlap else None
        if not plan.first:
            return None
        chunk, size = (0, plan.first), (request.height, request.width)
        return self._encode(shot(sources.video, chunk, size) if seen is None else seen[: plan.first])

    def _last(self, clip: Clips, count: int) -> Tensor:
        """The last ``count`` frames (1, 3, count, H, W); all have to be decoded for them, a few at a time."""
        last: Tensor | None = None
        for part in self.codec.decode_parts(clip.latents, self.tiling):
            last = (part if last is None else torch.cat([last, part], dim=2))[:, :, -count:]
        return last

    def _encode(self, pixels: Tensor) -> Tensor:
        """Frames (n, 3, H, W) uint8 -> latents (1, c, T, h, w), a few frames at a time."""
        return self._encode_parts((part.to(self.device) / 255).movedim(0, 1)[None] for part in pixels.split(PART))

    def _encode_parts(self, parts: Iterable[Tensor]) -> Tensor:
        """Frames in parts (1, 3, n, H, W) -> latents (1, c, T, h, w) float32"""
        return torch.cat([part.float() for part in self.codec.encode_parts(parts)], dim=2)

    def _velocity(
        self,
        wanted: Sequence[tuple[int, ...]],
        against: Sequence[tuple[int, ...]],
        noise: dict[str, Tensor],
        scene: Scene,
        walk: ControlWalk,
    ) -> Velocity:
        """The velocity under both guidances. Branches follow each other: they differ in their tokens."""
        acts = any(walk.guidance.active(t) for t in walk.schedule.told)
        texts = list(dict.fromkeys([*wanted, *(against if acts else [])]))
        read, device = self.read(texts), noise[VIDEO].device

        def known(rows: Sequence[tuple[int, ...]]) -> Cache:
            return read.select(torch.tensor([texts.index(row) for row in rows], device=device))

        def branch(cache: Cache, scene: Scene) -> Velocity:
            return lambda x, t: self.model.velocity(x, t, cache, scene)

        own = known(wanted)
        full, free = branch(own, scene), branch(own, replace(scene, controls=(), weights=()))
        controlled = guided(full, lambda x, t: (full(x, t), free(x, t)), walk.control)
        if not acts:
            return controlled
        away = branch(known(against), scene)
        return guided(controlled, lambda x, t: (controlled(x, t), away(x, t)), walk.guidance)

    # -- checks --------------------------------------------------------------------------------------------------------

    def _names(self, controls: Mapping[str, Any], strength: str, has_video: bool) -> tuple[list[str], Control]:
        """The controls in their order, and how they are used."""
        if not isinstance(controls, Mapping) or not controls or not set(controls) <= set(CONTROLS):
            found = list(controls) if isinstance(controls, Mapping) else controls
            raise ValueError(f"controls are {found!r}; one or several of {', '.join(CONTROLS)} must be given by name")
        names = [name for name in CONTROLS if name in controls]
        for name in names:
            if isinstance(controls[name], bool) or controls[name] is None:
                if controls[name] is not True or name not in DRAWN:
                    raise ValueError(
                        f"the control {name} is {controls[name]!r}; it must be a video, and True where it is drawn "
                        f"from one: {', '.join(DRAWN)}"
                    )
                if not has_video:
                    raise ValueError(f"the control {name} is drawn from a video; give one, or the control itself")
                require_opencv()
        check_strength(strength)
        return names, defaults_of(names)

    def _open(self, names: list[str], controls: Mapping, video: Any, strength: str, fps: float) -> Sources:
        opened = {name: None if controls[name] is True else opened_video(controls[name], fps) for name in names}
        return Sources(opened, None if video is None else opened_video(video, fps), strength)

    def _chunk(self, chunk_frames: int | None, how: Control) -> int:
        """Frames of a chunk; the published number is rounded up to what the model makes."""
        unit = self.unit
        size = 1 + -(-(how.chunk_frames - 1) // unit) * unit if chunk_frames is None else chunk_frames
        if not whole(size) or size < 1 or (size - 1) % unit:
            raise ValueError(f"chunk_frames is {size!r}; this model makes 1, {1 + unit}, {1 + 2 * unit}, ... frames")
        return size

    def _plan(self, frames: int | None, size: int, overlap: int, first_frames: int, sources: Sources) -> Plan:
        unit, there = self.unit, min(source.frame_count for source in sources.shown)
        total = there if frames is None else frames
        if not whole(total) or not 1 <= total <= min(there, MOST_FRAMES):
            raise ValueError(
                f"frames is {total!r}; it must be a whole number from 1 on; the controls have {there} frames, and the "
                f"limit is {MOST_FRAMES}"
            )
        for name, value in (("overlap", overlap), ("first_frames", first_frames)):
            if not whole(value) or value < 0 or (value and (value - 1) % unit):
                raise ValueError(f"{name} is {value!r}; it must be 0, 1, {1 + unit}, {1 + 2 * unit}, ... frames")
        if total > size and overlap >= size:
            raise ValueError(f"overlap is {overlap}; it must be less than the {size} frames of a chunk")
        limit = min(total, size, 0 if sources.video is None else sources.video.frame_count)
        if first_frames > limit:
            raise ValueError(f"first_frames is {first_frames}; the video and the first chunk share {limit} frames")
        return Plan(total, min(size, 1 + -(-(total - 1) // unit) * unit), overlap, first_frames)

    def _walk(
        self, how: Control, control_guidance: float | None, control_interval: tuple[float, float], walk: dict[str, Any]
    ) -> ControlWalk:
        own = self.defaults.video
        low, high = control_interval
        control = Guidance(how.control_guidance if control_guidance is None else control_guidance, (low, high))
        return replace(ControlWalk.of(own if own.levels else _published(own, how), **walk), control=control)

    def _fits(self, request: Request, controls: int) -> None:
        self._check(request, 1, 1)
        tokens = self.check_size(request.height, request.width, 1 + (request.frames - 1) // self.unit)
        if tokens * (1 + controls) > MAX_TOKENS:
            raise ValueError(
                f"a chunk of {request.frames} frames of {request.height}x{request.width} pixels takes "
                f"{tokens * (1 + controls)} latent tokens with its {controls} controls; the limit is {MAX_TOKENS}"
            )

    def _texts(self, request: Request, prompt: Prompt) -> tuple[list, list]:
        """Ids of the prompt and of the negative one, which state the size and length of a chunk."""
        prompts = prompts_of(prompt)
        if len(prompts) != 1:
            raise ValueError(f"{len(prompts)} prompts were given; transfer makes one video at a time")
        names = ("height", "width", "frames", "style")
        size = {name: getattr(request, name) for name in names} | {"fps": float(max(round(request.fps), 1))}
        said = self.say(prompts[0], **size), self.say(request.negative_prompt, negative=True, **size)
        return tuple([self.ids(text, "transfer", request.style)] for text in said)


def _published(own: WalkConfig, how: Control) -> WalkConfig:
    """The control's walk. It has a shift, so a checkpoint's karras grid gives way to the one of training."""
    grid = "native" if own.grid == "karras" else own.grid
    return replace(own, steps=how.steps, guidance=how.guidance, shift=how.shift, grid=grid)


def _weights(names: Sequence[str], given: Mapping[str, float] | None) -> dict[str, float]:
    """The weight of each control, in their order."""
    given = {} if given is None else given
    if not isinstance(given, Mapping) or not set(given) <= set(names):
        found = list(given) if isinstance(given, Mapping) else given
        raise ValueError(f"weights are of {found!r}; they must be by name, of the controls {', '.join(names)}")
    for name, value in given.items():
        known = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not known or not 0 <= value <= MOST_WEIGHT:
            raise ValueError(f"the weight of {name} is {value!r}; it must be a number from 0 to {MOST_WEIGHT:g}")
    found = {name: float(given.get(name, 1.0)) for name in names}
    if not any(found.values()):
        raise ValueError(f"the weights of {', '.join(names)} are all 0; one at least must be positive")
    return found


# -- media -------------------------------------------------------------------------------------------------------------


def opened_video(source: Any, fps: float) -> Video:
    """A file with its own frame rate, or frames at ``fps``."""
    timed = isinstance(source, bytes) or (isinstance(source, (str, Path)) and not Path(source).is_dir())
    return open_video(source) if timed else open_video(source, fps=fps)


def shot(source: Video, chunk: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Frames from the first of ``chunk`` to the one before its second, covering ``size``: (n, 3, H, W) uint8."""
    out = torch.empty(chunk[1] - chunk[0], 3, *size, dtype=torch.uint8)
    for i, frame in enumerate(source.frames(range(*chunk))):
        out[i] = (cover(pixels_of(frame[None])[0], *size) * 255).round()
    return out


def ping_pong(count: int, wanted: int) -> list[int]:
    """Indices of ``count`` frames, then of the same backwards, and so on until there are ``wanted``.

    As published: each time all but the oldest are turned about, so that frames at a turn are shown twice.
    """
    found = list(range(count))
    while len(found) < wanted:
        found += found[::-1][: max(len(found) - 1, 1)]
    return found[:wanted]


def whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


__all__ = ["ControlWalk", "LongClip", "Plan", "Transfer", "ping_pong"]
