"""What training asks of rollouts: the velocity of their streams, and where the things in them are.

    frames ── codec ──> latents ─┐ given ones stay clean, the others move along the straight path to one noise level
    sound  ── codec ──> latents ─┼──> denoiser, over one reading of the sentence ──> velocity of every stream
    actions ─────────────────────┘                                              └──> places of things: this head only
                                                                                     serves training

The squared error of a few bright pixels says little about where a thing is; asked for its place, the denoiser looks.
Source of the loss: ``reference`` cosmos3, sections 4.1 and 6.4.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni import losses
from omni.cache import Cache
from omni.data.motion import KINDS
from omni.data.scenes import COLORS
from omni.data.worlds import TRACKS, WORLDS, RolloutBatch
from omni.decoders.flow import interpolate, sample_times
from omni.decoders.heads import Grid
from omni.inputs import Inputs
from omni.model import Omni
from omni.pipelines.generation import open_codec
from omni.recipe import ActPlan, AnimatePlan
from omni.streams import ACTION, SOUND, VIDEO, Scene
from omni.tokenizers.canvas import crop_latents
from omni.tokenizers.latent import PixelCodec

Parts = dict[str, tuple[float, Tensor]]
"""Losses by name, each with its weight."""

TRUSTED = 0.5
"""Time below which a predicted sample's error counts as the sample's own, no longer divided by the time: as that of a
velocity a few nearly clean videos would outweigh all others."""


class TrackHead(nn.Module):
    """Where the things of one world are, as shares of the picture's sides: x, y.

    In every frame a thing is looked for: its tokens are weighed against each other, and each says how far from its own
    centre the thing is. Actions say where things are in the frame that they lead to.
    """

    def __init__(self, d_model: int, patch_frames: int) -> None:
        super().__init__()
        self.first = nn.Linear(d_model, TRACKS * 3)
        self.later = nn.Linear(d_model, patch_frames * TRACKS * 3)
        self.acting = nn.Linear(d_model, TRACKS * 2)

    def video(self, hidden: Tensor, grid: Grid) -> Tensor:
        """(b, t h w, d) -> (b, TRACKS, T, 2)"""
        _, h, w = grid
        said = _by_frame(hidden, grid, self.first, self.later).unflatten(-1, (TRACKS, 3))  # (b, T, n, TRACKS, 3)
        x, y = (torch.arange(side, device=hidden.device, dtype=hidden.dtype).add(0.5) / side for side in (w, h))
        centres = torch.stack([x.repeat(h), y.repeat_interleave(w)], dim=-1)[:, None]  # (n, 1, 2)
        side = torch.tensor([1 / w, 1 / h], device=hidden.device, dtype=hidden.dtype)
        weights = said[..., :1].softmax(dim=2)
        return (weights * (centres + said[..., 1:] * side)).sum(dim=2).transpose(1, 2)

    def action(self, hidden: Tensor) -> Tensor:
        """(b, n, d) -> (b, TRACKS, n, 2)"""
        return self.acting(hidden).unflatten(-1, (TRACKS, 2)).transpose(1, 2)


class ThingHead(nn.Module):
    """What happens in a video of moving things, and which colour each token's square shows in every frame."""

    def __init__(self, d_model: int, patch_frames: int) -> None:
        super().__init__()
        self.n_colors = 1 + len(COLORS)
        self.first = nn.Linear(d_model, self.n_colors)
        self.later = nn.Linear(d_model, patch_frames * self.n_colors)
        self.deed = nn.Linear(d_model, len(KINDS))

    def colors(self, hidden: Tensor, grid: Grid) -> Tensor:
        """(b, t h w, d) -> (b, T h w, colours)"""
        return _by_frame(hidden, grid, self.first, self.later).flatten(1, 2)

    def deeds(self, hidden: Tensor, grid: Grid) -> Tensor:
        """(b, t h w, d) -> (b, kinds): what all tokens behind the first frame say together."""
        return self.deed(hidden[:, grid[1] * grid[2] :].mean(dim=1))


class Found(NamedTuple):
    """What one call of the denoiser gave."""

    errors: dict[str, Tensor]  # of each stream's velocity
    places: dict[str, Tensor]  # mean error of where things are, as tokens of video and actions tell
    hidden: dict[str, Tensor]  # (b, n, d) by stream
    grid: Grid  # of the video's tokens
    kept: slice | list[int]  # latent frames that were denoised


class WorldLosses(nn.Module):
    """The objectives of moving things and of robots. Holds the heads that serve training only, not the model."""

    def __init__(self, model: Omni) -> None:
        super().__init__()
        size, patch_frames = (
            (model.config.denoiser.d_model, model.config.latent.patch_frames) if model.latents else (1, 1)
        )
        self.tracks = nn.ModuleDict({world: TrackHead(size, patch_frames) for world in WORLDS})
        self.things = ThingHead(size, patch_frames)
        self._opened: Any = None  # the codec in the model's folder; no part of the module, so that no run stores it

    def animate(self, model: Omni, plan: AnimatePlan, batch: RolloutBatch, context: Cache) -> Parts:
        """Velocity of the video and of its sound, the things' names and places. ``context``: the sentences, read."""
        found = self._denoise(model, plan, batch, context)
        parts = {
            "animate": (plan.weight, found.errors[VIDEO]),
            "animate_tracks": (plan.track_weight, found.places[VIDEO]),
        }
        if plan.thing_weight:
            colors = self.things.colors(found.hidden[VIDEO], found.grid)
            shown = batch.shown[:, found.kept].flatten(1).repeat_interleave(plan.draws, dim=0)
            deeds = self.things.deeds(found.hidden[VIDEO], found.grid)
            happens = F.cross_entropy(deeds, batch.deeds.repeat_interleave(plan.draws))
            parts["animate_things"] = plan.thing_weight, losses.balanced(colors, shown)
            parts["animate_deeds"] = plan.thing_weight, happens
        return parts | ({"animate_sound": (plan.sound_weight, found.errors[SOUND])} if SOUND in found.errors else {})

    def act(self, model: Omni, plan: ActPlan, batch: RolloutBatch, context: Cache) -> Parts:
        """Velocity of the actions and of the video, and the places of the scene's parts."""
        errors, places, *_ = self._denoise(model, plan, batch, context)
        parts = {}
        if batch.mode != "forward":  # in a batch of that mode all actions are given
            parts["act"] = plan.action_weight, errors[ACTION]
        if places:
            parts["act_tracks"] = plan.track_weight, places[ACTION]
            parts["act_seen"] = plan.track_weight, places[VIDEO]
        if batch.frames.shape[2] > 1 and batch.mode != "inverse":
            parts["act_video"] = plan.weight, errors[VIDEO]
        return parts

    def _denoise(self, model: Omni, plan: AnimatePlan | ActPlan, batch: RolloutBatch, context: Cache) -> Found:
        """Of each stream the velocity's error where it is noisy, and what its tokens say."""
        data, clean = streams(model, batch, self.codec(model))
        kept = slice(None)
        if batch.group is not None:
            kept = _frames_of(batch.group, model.config.latent.patch_frames)
            data[VIDEO], clean[VIDEO] = data[VIDEO][:, :, kept], clean[VIDEO][:, kept]
        data = {name: x.repeat_interleave(plan.draws, dim=0) for name, x in data.items()}
        clean = {name: x.repeat_interleave(plan.draws, dim=0) for name, x in clean.items()}
        rows = len(data[VIDEO])
        t = sample_times(rows, None, plan.time_mean, plan.time_shift, plan.time_std).to(data[VIDEO].device)
        noise = {name: torch.randn_like(x) for name, x in data.items()}
        own = {name: _open(x, ~clean[name]) if name in clean else torch.ones_like(x[:, :1]) for name, x in data.items()}
        if batch.widths is not None:
            widths = batch.widths.repeat_interleave(plan.draws)
            meant = torch.arange(data[ACTION].shape[2], device=widths.device) < widths[:, None, None]
            noise[ACTION], own[ACTION] = noise[ACTION] * meant, own[ACTION] * meant
        state = {name: torch.where(own[name] > 0, interpolate(x, noise[name], t), x) for name, x in data.items()}
        scene = Scene(
            fps=batch.fps.repeat_interleave(plan.draws),
            clean=clean,
            domains=None if batch.domains is None else batch.domains.repeat_interleave(plan.draws),
            action_start=1 - batch.states,
            moments=() if batch.group is None else (0, 1 + batch.group),
        )
        velocity, hidden = model.denoise(state, t, context.fork(plan.draws), scene)
        weights = {VIDEO: _weight(t, data[VIDEO])} if model.config.latent.prediction == "sample" else {}
        errors = {
            name: losses.flow(velocity[name], data[name], noise[name], own[name], weights.get(name)) for name in data
        }
        grid, places = model.latents.grid(data[VIDEO]), {}
        if batch.worlds is not None:
            tracks = batch.tracks[:, :, : batch.frames.shape[2]][:, :, kept]
            places = self._places(hidden, batch, tracks, plan.draws, grid)
        return Found(errors, places, hidden, grid, kept)

    def codec(self, model: Omni) -> Any:
        """The codec of the model's pictures: its own, or the one in its folder, opened where the model is by now."""
        if model.codec is not None:
            return model.codec
        if self._opened is None:
            self._opened = open_codec(model)
        return self._opened

    def _places(
        self, hidden: dict[str, Tensor], batch: RolloutBatch, seen: Tensor, draws: int, grid: Grid
    ) -> dict[str, Tensor]:
        """Mean error of the places that tokens of the video and of the actions tell, over all worlds.

        ``seen`` (b, TRACKS, T, 2): of the frames that the video's tokens are of.
        """
        world, tracks = batch.worlds.repeat_interleave(draws), batch.tracks.repeat_interleave(draws, dim=0)
        seen = seen.repeat_interleave(draws, dim=0)
        told, true = {VIDEO: [], ACTION: []}, {VIDEO: [], ACTION: []}
        for i in sorted(set(batch.worlds.tolist())):
            head, rows = self.tracks[WORLDS[i]], world == i
            told[VIDEO].append(head.video(hidden[VIDEO][rows], grid))
            true[VIDEO].append(seen[rows])
            if ACTION in hidden:
                told[ACTION].append(head.action(hidden[ACTION][rows]))
                true[ACTION].append(tracks[rows, :, 1:])
        return {name: losses.places(torch.cat(found), torch.cat(true[name])) for name, found in told.items() if found}


def read_prompts(model: Omni, ids: Tensor, mask: Tensor) -> tuple[Cache, Tensor]:
    """The context tower's cache of sentences and its hidden states (b, n, d): without gradients where all is frozen."""
    learns = any(p.requires_grad for part in (model.embed, model.context) for p in part.parameters())
    with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
        cache = model.new_cache(len(ids))
        return cache, model.read(Inputs(ids, mask), cache)


@torch.no_grad()
def streams(model: Omni, batch: RolloutBatch, codec: Any = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the denoiser refines, clean, by stream; and which frames of it (b, frames) are given.

    ``codec``: of the pictures; None: the model's own, or the pixels themselves.
    """
    codec = codec or model.codec or PixelCodec()
    frames = batch.frames if batch.frames.is_floating_point() else batch.frames.float() / 255
    latents = codec.encode(frames).float()
    if batch.content is not None:
        latents = crop_latents(latents, batch.content, codec.factor)
    # A latent is given where the last of its frames is: the first has one frame, the others as many as the codec says.
    data, clean = {VIDEO: latents}, {VIDEO: batch.given[:, :: codec.frames]}
    if batch.sound is not None:
        if model.sound_codec is None:
            raise ValueError(
                "this model has no codec of sounds: set SoundLatentConfig.codec, or AnimatePlan.sound to 0"
            )
        data[SOUND] = model.sound_codec.encode(batch.sound)
    if batch.actions is not None:
        data[ACTION], clean[ACTION] = batch.actions, batch.given_actions
    return data, clean


def _by_frame(hidden: Tensor, grid: Grid, first: nn.Linear, later: nn.Linear) -> Tensor:
    """(b, t h w, d) -> (b, T, h w, c): what a token says of its frame; behind the first, of each of its frames."""
    n, size = grid[1] * grid[2], first.out_features
    rest = later(hidden[:, n:]).unflatten(-1, (-1, size)).unflatten(1, (grid[0] - 1, n))
    return torch.cat([first(hidden[:, None, :n]), rest.transpose(2, 3).flatten(1, 2)], dim=1)


def _weight(t: Tensor, latents: Tensor) -> Tensor:
    """What a velocity that follows from a predicted sample counts at times t (b,), in a shape for ``latents``."""
    return (t / t.clamp(min=TRUSTED)).square().view(-1, *[1] * (latents.dim() - 1))


def _frames_of(group: int, size: int) -> list[int]:
    """The first latent frame, and those of one group of later ones that share tokens."""
    return [0, *range(1 + group * size, 1 + (group + 1) * size)]


def _open(x: Tensor, noisy: Tensor) -> Tensor:
    """Flags (b, frames) of a stream's frames, 1 where they are noisy, in a shape that broadcasts to ``x``."""
    if x.dim() == 5:
        return noisy[:, None, :, None, None].to(x.dtype)
    return noisy[..., None].to(x.dtype)
