"""Nested variants: one set of weights, sorted by importance, of which the first units of every axis are a model too.

    whole weights ──> first units of each axis, as a function of them ──> a smaller Omni, called with those tensors
                                                    gradients flow back through it into the whole

A model that :func:`omni.compress.importance.choose` cut is sorted already. Trained at several widths at once, any of
them can be cut out afterwards. Source: Nemotron Elastic (``reference`` language_family, section 6: the 4B of Nemotron
3). Widths only: which layers go is not a matter of order.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from omni.compress.axes import AXES, check_width, shaped, unit
from omni.compress.surgery import Kept, check_shapes, cut_state, remake_buffers, whole
from omni.config import OmniConfig
from omni.model import Omni


def first(config: OmniConfig, sizes: Mapping[str, int]) -> Kept:
    """The first units along each axis, of each group the first. ConfigError for sizes that cannot be."""
    for axis, size in sizes.items():
        check_width(config.context, axis, size)
    every = whole(config)
    units = {block: {a: _first(config, a, i, sizes) for a, i in own.items()} for block, own in every.units.items()}
    for own in units.values():
        if "expert_ff" in own:
            own["expert_ff"] = own["expert_ff"][: len(own["experts"])]
    return Kept(every.layers, every.d_model[: sizes.get("d_model", len(every.d_model))], units)


def _first(config: OmniConfig, axis: str, index: Tensor, sizes: Mapping[str, int]) -> Tensor:
    size = sizes.get(axis, index.shape[-1])
    groups = unit(config.context, axis)
    if index.dim() == 2:
        return index[:, :size]
    return index.unflatten(0, (groups, -1))[:, : size // groups].flatten()


class Nested:
    """A smaller model inside ``model``, which holds no weights of its own. ConfigError for sizes that cannot be."""

    def __init__(self, model: Omni, sizes: Mapping[str, int]) -> None:
        self.model, self.sizes = model, dict(sizes)
        self.kept = first(model.config, sizes)
        with torch.device("meta"):
            small = Omni(shaped(model.config, self.kept.layers, sizes))
        check_shapes(small, cut_state(model.config, model.state_dict(), self.kept))
        remake_buffers(small, model.device)
        self.caller = _Caller(small.eval())  # its routers count nothing

    @property
    def name(self) -> str:
        return "_".join(f"{axis}_{self.sizes[axis]}" for axis in AXES if axis in self.sizes)

    def __call__(self, method: Callable[..., Any], *args: Any) -> Any:
        """``method(small, *args)`` with the first units of the model's weights as they are now."""
        held = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        state = cut_state(self.model.config, {n: held[n] for n in self.model.state_dict()}, self.kept)
        return functional_call(self.caller, {f"small.{n}": t for n, t in state.items()}, (method, *args))


class _Caller(nn.Module):
    """Gives ``functional_call`` a forward pass, which a system has not."""

    def __init__(self, small: Omni) -> None:
        super().__init__()
        self.small = small

    def forward(self, method: Callable[..., Any], *args: Any) -> Any:
        return method(self.small, *args)
