"""What a denoiser refines together: a video's latents, its sound, the actions that go with it.

    video  (b, c, T, H, W), or pictures (b, c, H, W) ──┐
    sound  (b, c, n)                                   ├──> tokens (b, N, d), their positions, and which are noisy
    action (b, n, a)                                   ┘

Tokens follow each other in this order; all streams begin at one moment behind the prompt. Frames that are given
(:attr:`Scene.clean`) are told no noise level and do not move. Whole clips that are given beside the video
(:attr:`Scene.controls`) stand before the streams and are not answered. With :attr:`Scene.weights` they do not see each
other, and the streams see each of them in turn (:mod:`omni.kernels.groups`). Source: ``reference`` cosmos3, sections
2.2 to 2.5 and 4.6.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from omni.decoders.heads import ActionHead, LatentHead, SoundHead
from omni.decoders.positions import stream_positions
from omni.kernels.groups import Groups

VIDEO, SOUND, ACTION = NAMES = ("video", "sound", "action")
CONTROLS = "controls"  # tokens of a call that belong to no stream


@dataclass(frozen=True)
class Scene:
    """What is known about the streams besides their values."""

    fps: Tensor | None = None  # (b,) frames a second of video and actions; None: tokens follow each other by one
    clean: Mapping[str, Tensor] = field(default_factory=dict)  # stream -> (b, frames) True where it is given
    domains: Tensor | None = None  # (b,) whose actions they are
    action_start: int = 1  # frame that the first action leads to; 0 where a state stands before the actions
    widths: Tensor | None = None  # (b,) numbers of an action that mean something; those behind stay as they are
    controls: tuple[Tensor, ...] = ()  # clean latents (b, c, [T,] h, w) of the clips that the video follows
    weights: tuple[float, ...] = ()  # of each of them, whatever their sum; (): all tokens see each other
    follow: bool = False  # clips and video come one after the other in time, instead of all at one moment
    moments: tuple[int, ...] = ()  # which frames of tokens the video's are, of a longer one; (): all from the first on

    def twice(self) -> "Scene":
        """For a batch whose rows follow once more."""

        def double(x: Tensor | None) -> Tensor | None:
            return None if x is None else torch.cat([x, x])

        clean = {name: double(x) for name, x in self.clean.items()}
        own = {name: double(getattr(self, name)) for name in ("fps", "domains", "widths")}
        return replace(self, clean=clean, controls=tuple(double(x) for x in self.controls), **own)


class Packed(NamedTuple):
    """Tokens of all streams."""

    tokens: Tensor  # (b, N, d)
    positions: Tensor  # (3, b, N)
    noisy: Tensor | None  # (b, N); None: all
    counts: dict[str, int]  # stream -> tokens; before them those of the controls, where there are any
    groups: Groups | None = None  # where controls have weights: each is a group, and the streams are what they share


class Heads(NamedTuple):
    """What turns each stream into tokens and back; None where a system does not have it."""

    video: LatentHead
    sound: SoundHead | None
    action: ActionHead | None

    def pack(self, state: Mapping[str, Tensor], scene: Scene, first: Tensor) -> Packed:
        """``state`` by stream; its tokens begin at positions ``first`` (b,) of the time axis."""
        self._check(state, scene)
        parts, start = self._controls(state[VIDEO], scene, first)
        noisy = [torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device) for tokens, _ in parts]
        sizes = tuple(tokens.shape[1] for tokens, _ in parts)
        counts = {CONTROLS: sum(sizes)} if parts else {}
        for name in (name for name in NAMES if name in state):
            tokens, positions, clean = getattr(self, f"_{name}")(state[name], scene, start)
            parts.append((tokens, positions))
            counts[name] = tokens.shape[1]
            if clean is None:
                noisy.append(torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))
            else:
                noisy.append(~clean.to(tokens.device).repeat_interleave(tokens.shape[1] // clean.shape[1], dim=1))
        tokens, positions = (torch.cat(both, dim=i + 1) for i, both in enumerate(zip(*parts, strict=True)))
        if self.video.clock is not None:
            tokens = tokens + self.video.clock(positions[0] - first[:, None])
        given = bool(scene.clean or scene.controls)
        groups = Groups(sizes, _shares(scene.weights)) if scene.weights and len(sizes) > 1 else None
        return Packed(tokens, positions, torch.cat(noisy, dim=1) if given else None, counts, groups)

    def unpack(
        self, parts: Mapping[str, Tensor], state: Mapping[str, Tensor], t: Tensor, scene: Scene
    ) -> dict[str, Tensor]:
        """Hidden (b, n, d) by stream at time t (b,) -> velocities of the streams' shapes; zero where one is given."""
        found = {VIDEO: self.video.write(parts[VIDEO], state[VIDEO], t)}
        if SOUND in state:
            found[SOUND] = self.sound.write(parts[SOUND])
        if ACTION in state:
            found[ACTION] = _narrow(self.action.write(parts[ACTION], scene.domains), scene.widths)
        return {name: _still(v, name, scene.clean.get(name)) for name, v in found.items()}

    def _controls(self, video: Tensor, scene: Scene, first: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Tokens (b, n, d) and positions (3, b, n) of each control, and where the streams begin behind them (b,)."""
        parts, start = [], first
        for control in scene.controls:
            tokens, places, _ = self._video(control.to(video), replace(scene, clean={}), start)
            parts.append((tokens, places))
            if scene.follow:
                start = places.amax(dim=(0, 2)).ceil() + 1
        return parts, start

    # Each stream's tokens (b, n, d), their positions (3, b, n), and which frames of tokens are given, or None.

    def _video(self, latents: Tensor, scene: Scene, first: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        config, grid = self.video.config, self.video.grid(latents)
        rate = None if scene.fps is None else scene.fps / (config.frames * config.patch_frames)
        whole = (max(scene.moments) + 1, *grid[1:]) if scene.moments else grid
        places = stream_positions(whole, first, rate, config.positions_a_second)
        if scene.moments:
            places = places.unflatten(2, (whole[0], -1))[:, :, list(scene.moments)].flatten(2)
        return self.video.read(latents), places, _grouped(scene.clean.get(VIDEO), config.patch_frames)

    def _sound(self, latents: Tensor, scene: Scene, first: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        config, n = self.sound.config, latents.shape[2]
        rate = torch.full_like(first, config.rate, dtype=torch.float32)
        places = stream_positions((n, 1, 1), first, rate, config.positions_a_second)
        return self.sound.read(latents), places, scene.clean.get(SOUND)

    def _action(self, actions: Tensor, scene: Scene, first: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        config, n = self.action.config, actions.shape[1]
        places = stream_positions((n, 1, 1), first, scene.fps, config.positions_a_second, scene.action_start)
        return self.action.read(actions, scene.domains), places, scene.clean.get(ACTION)

    def _check(self, state: Mapping[str, Tensor], scene: Scene) -> None:
        unknown = [name for name in (*state, *scene.clean) if name not in NAMES]
        if unknown or VIDEO not in state:
            raise ValueError(f"streams are {', '.join(NAMES)}, of which video is always there; not {list(state)}")
        missing = [name for name in state if getattr(self, name) is None]
        if missing:
            raise ValueError(f"this model does not denoise {', '.join(missing)}")
        rows = {name: len(x) for name, x in state.items()}
        if len(set(rows.values())) > 1:
            raise ValueError(f"streams that are denoised together have as many rows each, not {rows}")
        for control in scene.controls:
            if control.dim() != state[VIDEO].dim() or len(control) != len(state[VIDEO]):
                raise ValueError(
                    f"a control is {tuple(control.shape)}; the video is {tuple(state[VIDEO].shape)}, and both have as "
                    "many rows and axes"
                )
        if scene.weights and len(scene.weights) != len(scene.controls):
            raise ValueError(f"{len(scene.weights)} weights were given for {len(scene.controls)} controls")
        moments, frames = scene.moments, self.video.grid(state[VIDEO])[0]
        if moments and (len(moments) != frames or list(moments) != sorted({*moments}) or moments[0] < 0):
            raise ValueError(f"moments are {moments}; the video has {frames} frames of tokens, one after the other")
        if ACTION in state and scene.domains is None:
            raise ValueError("actions need their domains: whose they are")
        for name, clean in scene.clean.items():
            frames = _frames(state[name], name) if name in state else 0
            if name not in state or tuple(clean.shape) != (len(state[name]), frames):
                raise ValueError(f"clean frames of {name} are {tuple(clean.shape)}; the stream has {frames} frames")


def _shares(weights: tuple[float, ...]) -> tuple[float, ...]:
    """Weights that sum to 1. ValueError where they cannot."""
    total = sum(weights)
    if not all(0 <= w < math.inf for w in weights) or not 0 < total < math.inf:
        raise ValueError(f"weights are {weights}; none may be negative, and one at least must be positive")
    return tuple(w / total for w in weights)


def _grouped(clean: Tensor | None, size: int) -> Tensor | None:
    """Given latent frames (b, T) -> given frames of tokens: the first, then ``size`` together."""
    if clean is None or size == 1:
        return clean
    groups = clean[:, 1:].unflatten(1, ((clean.shape[1] - 1) // size, size))
    whole = groups.all(dim=2)
    if not torch.equal(whole, groups.any(dim=2)):
        raise ValueError(f"frames behind the first are given {size} together, as they share tokens, or not at all")
    return torch.cat([clean[:, :1], whole], dim=1)


def _frames(x: Tensor, name: str) -> int:
    if name == VIDEO:
        return x.shape[2] if x.dim() == 5 else 1
    return x.shape[2] if name == SOUND else x.shape[1]


def _narrow(v: Tensor, widths: Tensor | None) -> Tensor:
    """Zero behind each row's width."""
    if widths is None:
        return v
    channel = torch.arange(v.shape[2], device=v.device)
    return v.masked_fill(channel >= widths.to(v.device)[:, None, None], 0.0)


def spread(flags: Tensor, stream: Tensor, name: str) -> Tensor:
    """Flags of frames (b, frames), in a shape that broadcasts to the stream called ``name``."""
    flags = flags.to(stream.device)
    if name == VIDEO:
        return flags[:, None, :, None, None] if stream.dim() == 5 else flags[:, :, None, None]
    return flags[:, None] if name == SOUND else flags[..., None]


def _still(v: Tensor, name: str, clean: Tensor | None) -> Tensor:
    """Zero where a frame is given."""
    return v if clean is None else v.masked_fill(spread(clean, v, name), 0.0)
