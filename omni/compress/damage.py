"""What cuts do to a model before anything is learnt again: the divergence of its next-token distributions.

    damage = mean over real tokens KL(whole model || cut model)          one axis, one size at a time ──> Damages

Sums of single cuts rank the shapes of a grid, which are far too many to try; the best of those are then cut and
measured as they are. It is not what a shape is worth once it has been distilled: of two with the same parameters the
deeper one recovers further (``reference`` generation_and_compression, B.2).
"""

from collections.abc import Callable, Mapping, Sequence

import torch

from omni.compress.importance import Importance, choose
from omni.compress.search import Candidate, Damages
from omni.compress.surgery import Kept, cut
from omni.inputs import Inputs
from omni.losses import forward_kl
from omni.model import Omni

POINTS = 4  # sizes of an axis that are tried, besides the whole


class Judge:
    """Compares cuts with the whole model on ``batches``, whose last hidden states it keeps."""

    @torch.no_grad()
    def __init__(self, model: Omni, batches: Sequence[Inputs]) -> None:
        self.model = model.eval()
        self.batches = [inputs.to(model.device) for inputs in batches]
        self.hidden = [model.read(inputs) for inputs in self.batches]

    @torch.no_grad()
    def damage(self, kept: Kept) -> float:
        """Mean divergence a token of the model that is cut to ``kept``."""
        return self.of(cut(self.model, kept).eval())

    @torch.no_grad()
    def of(self, small: Omni) -> float:
        """Of a model that was cut already."""
        total = tokens = 0
        for inputs, hidden in zip(self.batches, self.hidden, strict=True):
            real = torch.ones_like(inputs.input_ids, dtype=torch.bool) if inputs.mask is None else inputs.mask
            mean = forward_kl(small.logits(inputs), self.model.predict(hidden), real)
            total += float(mean) * int(real.sum())
            tokens += int(real.sum())
        return total / tokens


def measure_damages(
    judge: Judge,
    scores: Importance,
    values: Mapping[str, Sequence[int]],
    depths: Sequence[tuple[int, ...]],
    advance: Callable[[int], None] = lambda done: None,
) -> Damages:
    """Of each axis at up to :data:`POINTS` of its ``values``, and of each of ``depths``."""
    tower = judge.model.config.context
    everything = tuple(range(tower.n_layers))

    def tried(layers: tuple[int, ...], sizes: Mapping[str, int]) -> float:
        found = judge.damage(choose(tower, scores, layers, sizes))
        advance(1)
        return found

    axes = {
        axis: {own[0]: 0.0} | {s: tried(everything, {axis: s}) for s in points(own)} for axis, own in values.items()
    }
    return Damages(axes, {len(kept): tried(kept, {}) if kept != everything else 0.0 for kept in depths})


def points(values: Sequence[int]) -> list[int]:
    """Some of the sizes below the whole, which comes first: evenly, the smallest among them."""
    below = list(values[1:])
    if len(below) <= POINTS:
        return below
    return [below[round((k + 1) * len(below) / POINTS) - 1] for k in range(POINTS)]


def trials(values: Mapping[str, Sequence[int]], depths: Sequence[tuple[int, ...]]) -> int:
    """How many cuts :func:`measure_damages` tries at most."""
    return sum(len(points(own)) for own in values.values()) + len(depths)


def kept_by(candidate: Candidate, judge: Judge, scores: Importance) -> Kept:
    """The best units for a candidate's sizes."""
    return choose(judge.model.config.context, scores, candidate.layers, candidate.widths)
