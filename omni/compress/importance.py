"""How much each unit of a model does, read off its activations: forward passes over calibration inputs, no gradients.

    a = mean over the tokens of a row |activation|       score = sqrt(sum over rows a^2)

    d_model           what leaves the norms: one score a channel, summed over all layers and the last norm
    d_ff, shared_ff   what enters ``down_proj``
    expert_ff         the same of each expert, over the tokens that were sent to it
    mamba_head_dim    x, behind ``in_proj``: a channel's L2 over heads
    mamba_heads       the same: a head's L2 over the channels that stay; heads are compared within their B/C group
    attention_heads   what enters ``o_proj``: a head's L2 over its channels; compared behind the same key
    experts           mean L2 of an expert's output over the tokens that were sent to it
    latent            what leaves ``latent_in`` and what enters ``latent_out``, added

Sources: ``reference`` generation_and_compression, section B.3 (Model Optimizer; its aggregation and its places), B.1.
Latent channels are ours. Padding counts nowhere.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.compress.axes import check_width, unit
from omni.compress.surgery import Kept
from omni.config import ConfigError, TowerConfig
from omni.inputs import Inputs
from omni.mixers.layout import Layout
from omni.mixers.moe import MoE
from omni.model import Omni
from omni.tower import Tower


@dataclass(frozen=True)
class Importance:
    """Scores, larger is worth more. ``d_model`` (d,); ``units``: of each layer by its name, scores by what is scored.

    Of a Mamba layer "mamba" (heads, channels), of a mixture "expert_ff" (experts, neurons), else one a unit.
    ``rows``: sequences that were read.
    """

    d_model: Tensor
    units: Mapping[str, Mapping[str, Tensor]]
    rows: int


class Meter:
    """Running sums of what hooks see, by (layer, what)."""

    def __init__(self) -> None:
        self.squares: dict[tuple[str, str], Tensor] = {}
        self.layout: Layout | None = None
        self.shape: tuple[int, int] = (0, 0)

    def note(self, block: str, what: str, x: Tensor) -> None:
        """Activations (b, n, ...), or (b n, ...) of the call that is under way."""
        x = x.detach().abs().float().reshape(*self.shape, x.shape[-1])
        padding = self.layout.padding if self.layout is not None else None
        if padding is None:
            rows = x.mean(dim=1)
        else:
            real = ~padding
            rows = (x * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True).clamp(min=1)
        self.add(block, what, rows.square().sum(dim=0))

    def add(self, block: str, what: str, sums: Tensor) -> None:
        held = self.squares.get((block, what))
        self.squares[block, what] = sums if held is None else held + sums

    def begin(self, x: Tensor, layout: Layout) -> None:
        self.layout, self.shape = layout, (x.shape[0], x.shape[1])


@torch.no_grad()
def measure(model: Omni, batches: Iterable[Inputs]) -> Importance:
    """Read every batch once; ConfigError where there is none. The model stays as it was, and in evaluation mode."""
    model.eval()
    meter, rows = Meter(), 0
    with watching(model, meter):
        for inputs in batches:
            inputs = inputs.to(model.device)
            embedded, hidden = model.read_both(inputs)
            if model.mtp is not None and hidden.shape[1] > 1:
                _read_ahead(model, inputs, embedded, hidden)
            rows += inputs.input_ids.shape[0]
    if not rows:
        raise ConfigError("there is nothing to calibrate with: no batch was given")
    return _scores(model, meter, rows)


def _read_ahead(model: Omni, inputs: Inputs, embedded: Tensor, hidden: Tensor) -> None:
    """The prediction block over the same text, as it is trained: the token after next of every place."""
    where = {"mask": inputs.mask, "segments": inputs.segments}
    model.mtp(embedded[:, 1:], hidden[:, :-1], **{k: v[:, 1:] for k, v in where.items() if v is not None})


@contextmanager
def watching(model: Omni, meter: Meter) -> Iterator[None]:
    """Hooks on the context tower and the prediction block, taken off again at the end."""
    with ExitStack() as stack:
        for name, tower in (("context", model.context), ("mtp", model.mtp)):
            for handle in _hooks(name, tower, meter) if tower is not None else ():
                stack.callback(handle.remove)
        yield


def _hooks(name: str, tower: Tower, meter: Meter) -> Iterator:
    for i, block in enumerate(tower.blocks):
        place = f"{name}.blocks.{i}"
        yield block.mixer.register_forward_pre_hook(_entered(place, meter))
        yield from WATCHERS[block.letter](block.mixer, place, meter)
    yield tower.norm.register_forward_hook(lambda module, args, out: meter.note(name, "d_model", out))


def _entered(place: str, meter: Meter):
    """What enters a mixer is what left its norm."""

    def hook(module: nn.Module, args: tuple) -> None:
        meter.begin(*args[:2])
        meter.note(place, "d_model", args[0])

    return hook


def _before(module: nn.Module, place: str, what: str, meter: Meter):
    return module.register_forward_pre_hook(lambda module, args: meter.note(place, what, args[0]))


def _watch_mamba(mixer: nn.Module, place: str, meter: Meter) -> Iterator:
    c = mixer.config
    x = slice(c.d_inner, 2 * c.d_inner)
    yield mixer.in_proj.register_forward_hook(lambda module, args, out: meter.note(place, "mamba", out[..., x]))


def _watch_attention(mixer: nn.Module, place: str, meter: Meter) -> Iterator:
    yield _before(mixer.o_proj, place, "attention_heads", meter)


def _watch_mlp(mixer: nn.Module, place: str, meter: Meter) -> Iterator:
    yield _before(mixer.down_proj, place, "d_ff", meter)


def _watch_moe(mixer: MoE, place: str, meter: Meter) -> Iterator:
    yield _before(mixer.shared_experts.down_proj, place, "shared_ff", meter)
    yield mixer.register_forward_pre_hook(lambda module, args: _experts(module, args[0], place, meter))
    if isinstance(mixer.latent_in, nn.Linear):
        yield mixer.latent_in.register_forward_hook(lambda module, args, out: meter.note(place, "latent_in", out))
        yield _before(mixer.latent_out, place, "latent_out", meter)


WATCHERS = {"M": _watch_mamba, "*": _watch_attention, "-": _watch_mlp, "E": _watch_moe}


def _experts(moe: MoE, x: Tensor, place: str, meter: Meter) -> None:
    """What each expert makes of the tokens that are sent to it; a batch is one sample here."""
    padding = meter.layout.padding
    flat = x.flatten(0, -2) if padding is None else x[~padding]
    chosen, _ = moe.router(flat)
    inner = F.linear(flat, moe.latent_in.weight) if isinstance(moe.latent_in, nn.Linear) else flat
    norms, counts, neurons = [], [], []
    for e, (up, down) in enumerate(zip(moe.experts.up_proj, moe.experts.down_proj, strict=True)):
        hidden = F.relu(F.linear(inner[(chosen == e).any(dim=-1)], up)).square()
        norms.append(F.linear(hidden, down).float().norm(dim=-1).sum())
        counts.append(len(hidden))
        neurons.append(hidden.float().sum(dim=0) / max(1, len(hidden)))
    meter.add(place, "expert_norms", torch.stack(norms))
    meter.add(place, "expert_counts", torch.tensor(counts, device=x.device))
    meter.add(place, "expert_ff", torch.stack(neurons).square())


def _scores(model: Omni, meter: Meter, rows: int) -> Importance:
    """Roots of the sums, per layer."""
    sums = {key: value.double().cpu() for key, value in meter.squares.items()}
    units: dict[str, dict[str, Tensor]] = {}
    for block, what in sums:
        if "." in block and what in SCORED:
            units.setdefault(block, {})[what] = sums[block, what].sqrt()
    for block, own in units.items():
        if (block, "latent_in") in sums:
            own["latent"] = sums[block, "latent_in"].sqrt() + sums[block, "latent_out"].sqrt()
        if (block, "expert_norms") in sums:
            own["experts"] = sums[block, "expert_norms"] / sums[block, "expert_counts"].clamp(min=1)
        if "mamba" in own:
            own["mamba"] = own["mamba"].unflatten(0, (model.config.context.mamba.n_heads, -1))
        if "attention_heads" in own:
            heads = own["attention_heads"].unflatten(0, (model.config.context.attention.n_heads, -1))
            own["attention_heads"] = heads.norm(dim=-1)
    channels = [s.sqrt() for (block, what), s in sums.items() if what == "d_model" and block.startswith("context")]
    return Importance(torch.stack(channels).sum(dim=0), units, rows)


SCORED = ("mamba", "attention_heads", "d_ff", "shared_ff", "expert_ff")
"""What is noted of a layer and is a score as it is."""


# -- choosing ----------------------------------------------------------------------------------------------------------


def choose(tower: TowerConfig, scores: Importance, layers: tuple[int, ...], sizes: Mapping[str, int]) -> Kept:
    """The best units of every layer that stays, the best first, for ``sizes`` by axis; axes not named stay whole.

    So a model that was cut once can be cut again by taking the first units of each (:mod:`omni.compress.elastic`).
    ConfigError for sizes that the tower cannot have.
    """
    for axis, size in sizes.items():
        check_width(tower, axis, size)
    units = {}
    for block, own in scores.units.items():
        name, _, number = block.rpartition(".")
        if name.startswith("context") and int(number) not in layers:
            continue
        units[block] = _chosen(tower, own, sizes)
    return Kept(layers, best(scores.d_model, sizes.get("d_model", tower.d_model)), units)


def best(scores: Tensor, count: int, groups: int = 1) -> Tensor:
    """Indices of the ``count`` highest scores (n,), the best first; as many of each of ``groups`` equal parts."""
    parts = scores.unflatten(0, (groups, -1))
    order = parts.argsort(dim=1, descending=True, stable=True)[:, : count // groups]
    return (order + torch.arange(groups)[:, None] * parts.shape[1]).flatten()


def _chosen(tower: TowerConfig, scores: Mapping[str, Tensor], sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Of one layer."""
    found = {}
    for axis in ("d_ff", "shared_ff", "latent", "experts", "attention_heads"):
        if axis in scores:
            found[axis] = best(scores[axis], sizes.get(axis, len(scores[axis])), unit(tower, axis))
    if "experts" in found:
        own = scores["expert_ff"][found["experts"]]
        size = sizes.get("expert_ff", own.shape[1])
        found["expert_ff"] = torch.stack([best(row, size) for row in own])
    if "mamba" in scores:
        heads, channels = scores["mamba"].shape
        kept = best(scores["mamba"].norm(dim=0), sizes.get("mamba_head_dim", channels))
        of_heads = scores["mamba"][:, kept].norm(dim=1)
        found["mamba_head_dim"] = kept
        found["mamba_heads"] = best(of_heads, sizes.get("mamba_heads", heads), unit(tower, "mamba_heads"))
    return found
