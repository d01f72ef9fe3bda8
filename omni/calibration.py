"""How large the inputs of each weight become on held-out samples: what activation scales are made from.

    texts, or dialogues and pages drawn from seeds that training never sees ──> context tower
    captions, sentences and what they describe, at random noise levels      ──> denoiser
    largest |input| of every weight, of every expert by itself; largest key and value of every layer

Source of the rule (the maximum, over all samples): ``reference`` generation_and_compression, C.2 and C.3.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from omni.cache import AttentionSlot
from omni.data import HELD_OUT_SEEDS, TRAIN_SEEDS
from omni.data.batches import draw_batch, read_batch
from omni.data.text import sample_text
from omni.data.worlds import RolloutBatch, act_batch, animate_batch
from omni.decoders.flow import interpolate
from omni.inputs import Inputs
from omni.kernels.experts import routed_experts_by
from omni.mixers.moe import Experts
from omni.model import Omni
from omni.quantization.formats import E2M1_MAX, E4M3_MAX, Format
from omni.recipe import ActPlan, AnimatePlan
from omni.rules import stem_of
from omni.training_steps import encoding
from omni.training_worlds import WorldLosses, read_prompts

LENGTH = 4096  # tokens of a text that are read
LEVEL = "page"  # of the curriculum of documents


@dataclass
class Ranges:
    """Largest sizes seen: of inputs by the name of our weight, () or (experts,); of keys and values by layer."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    kv: dict[int, tuple[float, float]] = field(default_factory=dict)

    def note(self, name: str, amax: Tensor) -> None:
        held = self.inputs.get(name)
        self.inputs[name] = amax if held is None else torch.maximum(held, amax)

    def scale(self, name: str, format: Format) -> Tensor | None:
        """The input scale of a weight, None where nothing entered it; an expert that nobody chose has the others'."""
        amax = self.inputs.get(name)
        if amax is None or not bool((amax > 0).any()):
            return None
        amax = amax.where(amax > 0, amax.max())
        return amax / (E2M1_MAX * E4M3_MAX if format.packed else E4M3_MAX)

    def kv_scales(self) -> dict[int, tuple[float, float]]:
        """As the published exporter has them: never below one."""
        return {layer: tuple(max(amax / E4M3_MAX, 1.0) for amax in pair) for layer, pair in self.kv.items()}


@torch.inference_mode()
def calibrated(model: Omni, names: Iterable[str], count: int, texts: Sequence[str] = (), seed: int = 0) -> Ranges:
    """Ranges of our weights ``names`` over ``count`` samples of every kind that the model knows.

    ``texts`` take the place of the samples that are drawn. ValueError where there is no tokenizer.
    """
    if model.tokenizer is None:
        raise ValueError("calibrating needs a tokenizer, and the model has none")
    ranges, console = Ranges(), Console(stderr=True)
    runs = list(_runs(model, count, list(texts), seed, ranges))
    with _observed(model, set(names), ranges):
        for run in track(runs, "calibrating", console=console, transient=True, disable=not console.is_terminal):
            run()
    return ranges


# -- samples -----------------------------------------------------------------------------------------------------------


def _runs(model: Omni, count: int, texts: list[str], seed: int, ranges: Ranges) -> Iterator[Callable[[], None]]:
    """One call for every sample, of every kind that the model knows."""
    samples = texts or [sample_text(HELD_OUT_SEEDS[-1 - (seed + i) % len(HELD_OUT_SEEDS)]) for i in range(count)]
    yield from (partial(_read_text, model, sample, ranges) for sample in samples)
    if texts:
        return
    own = model.config.generation.captions != "chat" and model.codec is not None
    if model.vision is not None and "image" in model.config.special_tokens and own:
        yield from (partial(_read_page, model, seed + i) for i in range(count))
    if model.latents is not None and own:
        denoise = _draw if model.config.generation.draws else _move
        yield from (partial(denoise, model, seed + i) for i in range(count))


def _held_out(seed: int) -> int:
    """A seed of batches that draws from below those of training."""
    return -1 - seed % (TRAIN_SEEDS.start // 4096 - 1)


def _read_text(model: Omni, sample: str | list[dict], ranges: Ranges) -> None:
    tokenizer = model.tokenizer
    ids = tokenizer.encode(sample) if isinstance(sample, str) else tokenizer.encode_chat(sample)
    ids = torch.tensor([ids[: min(LENGTH, model.config.max_positions)]], device=model.device)
    if not ids.shape[1]:
        return
    cache = model.context.new_cache(1, ids.shape[1])
    model.read(ids, cache)
    for layer, slot in enumerate(cache.slots):
        if isinstance(slot, AttentionSlot):
            seen = tuple(float(rows.read(cache.length).abs().max()) for rows in (slot.k, slot.v))
            ranges.kv[layer] = tuple(map(max, seen, ranges.kv.get(layer, seen)))


def _read_page(model: Omni, seed: int) -> None:
    batch = read_batch(_held_out(seed), 1, LEVEL, encoding(model)).to(model.device)
    model.read(Inputs(batch.input_ids, pixels=tuple(batch.pixels.to(model.dtype))))


def _draw(model: Omni, seed: int) -> None:
    batch = draw_batch(_held_out(seed), 1, encoding(model)).to(model.device)
    context, _ = read_prompts(model, batch.input_ids, batch.mask)
    data = model.codec.encode(batch.pixels.to(model.dtype))
    g = torch.Generator().manual_seed(seed)
    t, noise = torch.rand(1, generator=g), torch.randn(data.shape, generator=g)
    t, noise = (x.to(data.device, data.dtype) for x in (t, noise))
    model.denoise(interpolate(data, noise, t), t, context)


def _move(model: Omni, seed: int) -> None:
    """Videos with their sound, or robots with their actions: whichever the generator is made for."""
    losses = WorldLosses(model).to(model.device, model.dtype)
    torch.manual_seed(seed)
    if model.actions is not None:
        batch = act_batch(_held_out(seed), 1, encoding(model))
        losses.act(model, ActPlan(size=1), *_prompted(model, batch))
    else:
        batch = animate_batch(_held_out(seed), 1, encoding(model), sound=model.sound_codec is not None)
        losses.animate(model, AnimatePlan(size=1), *_prompted(model, batch))


def _prompted(model: Omni, batch: RolloutBatch) -> tuple:
    batch = batch.to(model.device)
    return batch, read_prompts(model, batch.input_ids, batch.mask)[0]


# -- what is seen ------------------------------------------------------------------------------------------------------


@contextmanager
def _observed(model: nn.Module, names: set[str], ranges: Ranges) -> Iterator[None]:
    """Within the block ``ranges`` notes what enters the weights ``names``."""
    hooks = []
    for path, module in model.named_modules():
        if f"{path}.weight" in names:
            hooks.append(module.register_forward_pre_hook(partial(_note, ranges, f"{path}.weight")))
        elif isinstance(module, Experts) and {f"{path}.up_proj", f"{path}.down_proj"} & names:
            hooks.append(module.register_forward_pre_hook(partial(_note_experts, ranges, path)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _note(ranges: Ranges, name: str, module: nn.Module, inputs: tuple[Tensor]) -> None:
    ranges.note(name, inputs[0].abs().amax().float())


def _note_experts(ranges: Ranges, path: str, experts: Experts, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Each expert's own rows, before either matrix: the products are made once more, to see what is between them."""
    x, indices, weights = inputs
    seen = {name: torch.zeros(len(experts.up_proj), device=x.device) for name in ("up_proj", "down_proj")}

    def noted(name: str) -> Callable[[Tensor, int], Tensor]:
        def product(rows: Tensor, e: int) -> Tensor:
            seen[name][e] = rows.abs().amax()
            return F.linear(rows, getattr(experts, name)[e])

        return product

    routed_experts_by(x, indices, weights, len(experts.up_proj), noted("up_proj"), noted("down_proj"))
    for name, amax in seen.items():
        ranges.note(stem_of(f"{path}.{name}"), amax)


__all__ = ["Ranges", "calibrated"]
