"""What a denoiser refines together: a video's latents, its sound, the actions that go with it.

    video  (b, c, T, H, W), or pictures (b, c, H, W) ──┐
    sound  (b, c, n)                                   ├──> tokens (b, N, d), their positions, and which are noisy
    action (b, n, a)                                   ┘

Tokens follow each other in this order; all streams begin at one moment behind the prompt. Frames that are given
(:attr:`Scene.clean`) are told no noise level and do not move. Source: ``reference`` cosmos3, sections 2.3 to 2.5.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from omni.decoders.heads import ActionHead, LatentHead, SoundHead
from omni.decoders.positions import stream_positions

VIDEO, SOUND, ACTION = NAMES = ("video", "sound", "action")


@dataclass(frozen=True)
class Scene:
    """What is known about the streams besides their values."""

    fps: Tensor | None = None  # (b,) frames a second of video and actions; None: tokens follow each other by one
    clean: Mapping[str, Tensor] = field(default_factory=dict)  # stream -> (b, frames) True where it is given
    domains: Tensor | None = None  # (b,) whose actions they are
    action_start: int = 1  # frame that the first action leads to; 0 where a state stands before the actions


class Packed(NamedTuple):
    """Tokens of all streams."""

    tokens: Tensor  # (b, N, d)
    positions: Tensor  # (3, b, N)
    noisy: Tensor | None  # (b, N); None: all
    counts: dict[str, int]  # stream -> tokens


class Heads(NamedTuple):
    """What turns each stream into tokens and back; None where a system does not have it."""

    video: LatentHead
    sound: SoundHead | None
    action: ActionHead | None

    def pack(self, state: Mapping[str, Tensor], scene: Scene, first: Tensor) -> Packed:
        """``state`` by stream; its tokens begin at positions ``first`` (b,) of the time axis."""
        self._check(state, scene)
        parts, noisy, counts = [], [], {}
        for name in (name for name in NAMES if name in state):
            tokens, positions, frames = getattr(self, f"_{name}")(state[name], scene, first)
            parts.append((tokens, positions))
            counts[name] = tokens.shape[1]
            clean = scene.clean.get(name)
            if clean is None:
                noisy.append(torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))
            else:
                noisy.append(~clean.to(tokens.device).repeat_interleave(tokens.shape[1] // frames, dim=1))
        tokens, positions = (torch.cat(both, dim=i + 1) for i, both in enumerate(zip(*parts, strict=True)))
        return Packed(tokens, positions, torch.cat(noisy, dim=1) if scene.clean else None, counts)

    def unpack(
        self, hidden: Tensor, packed: Packed, state: Mapping[str, Tensor], t: Tensor, scene: Scene
    ) -> dict[str, Tensor]:
        """Hidden (b, N, d) at time t (b,) -> velocities, each of its stream's shape; zero where a frame is given."""
        parts = dict(zip(packed.counts, hidden.split(list(packed.counts.values()), dim=1), strict=True))
        found = {VIDEO: self.video.write(parts[VIDEO], state[VIDEO], t)}
        if SOUND in state:
            found[SOUND] = self.sound.write(parts[SOUND])
        if ACTION in state:
            found[ACTION] = self.action.write(parts[ACTION], scene.domains)
        return {name: _still(v, name, scene.clean.get(name)) for name, v in found.items()}

    def _video(self, latents: Tensor, scene: Scene, first: Tensor) -> tuple[Tensor, Tensor, int]:
        config, grid = self.video.config, self.video.grid(latents)
        rate = None if scene.fps is None else scene.fps / config.frames
        return self.video.read(latents), stream_positions(grid, first, rate, config.positions_a_second), grid[0]

    def _sound(self, latents: Tensor, scene: Scene, first: Tensor) -> tuple[Tensor, Tensor, int]:
        config, n = self.sound.config, latents.shape[2]
        rate = torch.full_like(first, config.rate, dtype=torch.float32)
        return self.sound.read(latents), stream_positions((n, 1, 1), first, rate, config.positions_a_second), n

    def _action(self, actions: Tensor, scene: Scene, first: Tensor) -> tuple[Tensor, Tensor, int]:
        config, n = self.action.config, actions.shape[1]
        places = stream_positions((n, 1, 1), first, scene.fps, config.positions_a_second, scene.action_start)
        return self.action.read(actions, scene.domains), places, n

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
        if ACTION in state and scene.domains is None:
            raise ValueError("actions need their domains: whose they are")
        for name, clean in scene.clean.items():
            frames = _frames(state[name], name) if name in state else 0
            if name not in state or tuple(clean.shape) != (len(state[name]), frames):
                raise ValueError(f"clean frames of {name} are {tuple(clean.shape)}; the stream has {frames} frames")


def _frames(x: Tensor, name: str) -> int:
    if name == VIDEO:
        return x.shape[2] if x.dim() == 5 else 1
    return x.shape[2] if name == SOUND else x.shape[1]


def _still(v: Tensor, name: str, clean: Tensor | None) -> Tensor:
    """Zero where a frame is given."""
    if clean is None:
        return v
    clean = clean.to(v.device)
    if name == VIDEO:
        clean = clean[:, None, :, None, None] if v.dim() == 5 else clean[:, :, None, None]
    else:
        clean = clean[:, None] if name == SOUND else clean[..., None]
    return v.masked_fill(clean, 0.0)
