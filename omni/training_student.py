"""Distillation of the picture denoiser to a student of a few fixed steps.

    scenes, or pictures the student just drew ──> x at each level t_i of the walk
    teacher, frozen, guided:      x at t_i ── Euler steps ──> x at t_{i+1}, which is the target where that is 0
    student, without gradients:   x at t_{i+1} ──> data, the target elsewhere
    student, with gradients:      x at t_i ──> data <── distance ── target

The walk that the student is made for puts fresh noise on its data at every level, and follows no guidance: a step is
one forward pass. Captions are read by the context tower, which both share; only the denoiser and its latents learn.

Why regression, without an adversary: a caption in full leaves little open, so a state leads to nearly one picture, and
what a distance makes of several is that picture too. Distances are not squared: near the data they are a seventh of
those near the noise, and squares of the latter would drown what makes a picture sharp. Sources: multistep consistency
models (Heek et al., arXiv 2403.06807) for the target; Song and Dhariwal (arXiv 2310.14189) for the distance, and for
the student itself in the target, not its average; ``reference`` cosmos3, section 4.7, for the levels and the walk.
"""

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn

from omni.cache import Cache
from omni.config import OmniConfig, WalkConfig, replace
from omni.data.batches import DrawBatch
from omni.decoders.flow import Guidance, interpolate
from omni.inputs import Inputs, pad_rows
from omni.model import Omni
from omni.recipe import DistilPlan, Recipe
from omni.tokenizers.latent import PixelCodec
from omni.tokenizers.prompts import caption_ids

TEACHER = ("embed", "denoiser", "latents")
"""Parts of the teacher: the first only says which type its weights have."""

SOFT = 0.01
"""Distance, in latents of variance one, below which it counts squared."""


def student_config(config: OmniConfig, recipe: Recipe) -> OmniConfig:
    """``config``; where the recipe distils a student of it, with the student's walk for pictures."""
    levels = recipe.levels
    if not levels:
        return config
    walk = WalkConfig(steps=len(levels), levels=levels, guidance=1.0, eta=1.0, solver="euler")
    return replace(config, generation=replace(config.generation, image=walk))


class Distillation(nn.Module):
    """The objective, and the teacher: of a whole model what denoises pictures, kept in the run's checkpoints too."""

    def __init__(self, model: Omni, trained: bool) -> None:
        """``trained``: the model is the teacher already; otherwise :meth:`begin` follows."""
        super().__init__()
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        for name, _ in list(self.teacher.named_children()):
            if name not in TEACHER:
                setattr(self.teacher, name, None)
        self.register_buffer("taught", torch.tensor(trained))

    def begin(self, model: Omni) -> None:
        """What ``model`` is now is the teacher."""
        self.teacher.load_state_dict({name: model.state_dict()[name] for name in self.teacher.state_dict()})
        self.taught.fill_(True)

    def losses(self, model: Omni, plan: DistilPlan, batch: DrawBatch) -> dict[str, tuple[float, Tensor]]:
        """Mean distance of the data that the student sees from each level, a root mean square over a picture's latents.

        Beside it the means of the single levels, for the log. ValueError before a teacher is known.
        """
        if not self.taught:
            raise ValueError("distil needs a teacher: name a folder as Recipe.model, or start with --init")
        model.eval()  # its routers stay as the teacher's
        self.teacher.eval()
        levels, rows = plan.levels, len(batch.pixels)
        with torch.no_grad():
            captions, both = _read(model, batch, len(levels))
            x = _states(model, plan, (model.codec or PixelCodec()).encode(batch.pixels), captions)
            t, s = (x.new_tensor(own).repeat_interleave(rows) for own in (levels, (*levels[1:], 0.0)))
            target = self._walk(plan, x, t, s, both)
            later = (len(levels) - 1) * rows  # rows of the last level are data already
            if later:
                target[:later] = _drawn(model, target[:later], s[:later], _first(captions, later))
        squares = (_drawn(model, x, t, captions) - target).float().square().flatten(1).mean(dim=1)
        distances = (squares + SOFT**2).sqrt() - SOFT
        parts = {"distil": (plan.weight, distances.mean())}
        return parts | {f"distil_{i}": (0.0, own.mean().detach()) for i, own in enumerate(distances.split(rows))}

    def _walk(self, plan: DistilPlan, x: Tensor, t: Tensor, s: Tensor, both: Cache) -> Tensor:
        """The teacher's guided path from levels ``t`` (b,) to ``s``, in ``plan.steps`` of Euler's steps."""
        guidance = Guidance(plan.guidance)
        shares = torch.linspace(0, 1, plan.steps + 1).tolist()
        for now, then in pairwise([t + (s - t) * share for share in shares]):
            wanted, against = self.teacher.velocity(torch.cat([x, x]), torch.cat([now, now]), both).chunk(2)
            x = x + (then - now)[:, None, None, None] * guidance.combine(wanted, against)
        return x


def _read(model: Omni, batch: DrawBatch, levels: int) -> tuple[Cache, Cache]:
    """Caches of the captions, once for every level, and of the same followed by as many empty captions."""
    words, device = model.tokenizer, batch.input_ids.device
    captions = [ids[own].tolist() for ids, own in zip(batch.input_ids, batch.mask, strict=True)]
    ids, mask = pad_rows([*captions, caption_ids("", words.special, words.encode)], words.special["pad"])
    cache = model.new_cache(len(ids))
    model.read(Inputs(ids, mask).to(device), cache, last=0)
    own = torch.arange(len(captions), device=device).repeat(levels)
    return cache.select(own), cache.select(torch.cat([own, torch.full_like(own, len(captions))]))


def _states(model: Omni, plan: DistilPlan, data: Tensor, captions: Cache) -> Tensor:
    """(levels rows, c, h, w), level by level: noise on what the walk could have drawn so far.

    In the first rows, a share ``own``, that is what the student draws on its way; in the others the scene.
    """
    own, states = round(plan.own * len(data)), []
    for i, level in enumerate(plan.levels):
        if i and own:
            before = data.new_full((own,), plan.levels[i - 1])
            data = torch.cat([_drawn(model, states[-1][:own], before, _first(captions, own)), data[own:]])
        states.append(interpolate(data, torch.randn_like(data), data.new_full((len(data),), level)))
    return torch.cat(states)


def _drawn(model: Omni, x: Tensor, t: Tensor, captions: Cache) -> Tensor:
    """The data that the model's velocity at level t (b,) says are in x (b, c, h, w)."""
    return x - t[:, None, None, None] * model.velocity(x, t, captions)


def _first(cache: Cache, rows: int) -> Cache:
    return cache.select(torch.arange(rows, device=cache.lengths.device))
