"""Cutting: which part of every tensor stays, as a table, and the smaller model that is made of it.

    Kept: layers, channels, units of each layer ──> COUPLED: what each dimension of a tensor counts ──> index_select
                                                ──> norms: weight * sqrt(old / new)                ──> a smaller Omni

A pruned model computes what the whole one does with the same units set to zero. Norms divide by a mean over their
channels; of those that are zero the sum does not know and the mean does, hence the factor. (Model Optimizer leaves it
out. ``eps`` stays as it is: it only keeps from dividing by zero.)

Cutting is a function of tensors, and gradients pass through it: see :mod:`omni.compress.elastic`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from omni.compress.axes import SHARED_WITH_DENOISER, check_layers, shaped, widths
from omni.config import ConfigError, OmniConfig, TowerConfig
from omni.model import Omni

COUPLED: dict[str, tuple[str, ...]] = {
    "norm.weight": ("d_model",),
    # Mamba: rows of in_proj are z, x, B, C, dt; the convolution mixes x, B and C
    "mixer.in_proj.weight": ("mamba_in", "d_model"),
    "mixer.in_proj.bias": ("mamba_in",),
    "mixer.conv1d.weight": ("mamba_conv",),
    "mixer.conv1d.bias": ("mamba_conv",),
    "mixer.A_log": ("mamba_heads",),
    "mixer.D": ("mamba_heads",),
    "mixer.dt_bias": ("mamba_heads",),
    "mixer.norm.weight": ("mamba_inner",),
    "mixer.out_proj.weight": ("d_model", "mamba_inner"),
    "mixer.out_proj.bias": ("d_model",),
    # attention
    "mixer.q_proj.weight": ("queries", "d_model"),
    "mixer.q_proj.bias": ("queries",),
    "mixer.k_proj.weight": ("", "d_model"),
    "mixer.v_proj.weight": ("", "d_model"),
    "mixer.o_proj.weight": ("d_model", "queries"),
    "mixer.o_proj.bias": ("d_model",),
    # MLP
    "mixer.gate_proj.weight": ("d_ff", "d_model"),
    "mixer.gate_proj.bias": ("d_ff",),
    "mixer.up_proj.weight": ("d_ff", "d_model"),
    "mixer.up_proj.bias": ("d_ff",),
    "mixer.down_proj.weight": ("d_model", "d_ff"),
    "mixer.down_proj.bias": ("d_model",),
    # mixture of experts: every expert keeps neurons of its own
    "mixer.router.weight": ("experts", "d_model"),
    "mixer.router.bias": ("experts",),
    "mixer.experts.up_proj": ("experts", "expert_ff", "expert_in"),
    "mixer.experts.down_proj": ("experts", "expert_in", "expert_ff"),
    "mixer.shared_experts.up_proj.weight": ("shared_ff", "d_model"),
    "mixer.shared_experts.down_proj.weight": ("d_model", "shared_ff"),
    "mixer.latent_in.weight": ("latent", "d_model"),
    "mixer.latent_out.weight": ("d_model", "latent"),
}
"""Tensor of a layer -> what its dimensions count; "" and dimensions that are not named stay whole."""

AROUND: dict[str, tuple[str, ...]] = {
    "embed.weight": ("", "d_model"),
    "head.weight": ("", "d_model"),
    "context.norm.weight": ("d_model",),
    "mtp.enorm.weight": ("d_model",),
    "mtp.hnorm.weight": ("d_model",),
    "mtp.norm.weight": ("d_model",),
    "mtp.eh_proj.weight": ("d_model", "twice"),
    "projector.down_proj.weight": ("d_model",),
    "projector.down_proj.bias": ("d_model",),
    "sound_projector.down_proj.weight": ("d_model",),
    "denoiser.time.tables": ("layers",),
}
"""The same of tensors outside the layers; those of DeepStack are called as the projector's."""

NORMS = ("norm.weight", "mixer.norm.weight")
_BLOCK = re.compile(r"(context|denoiser|mtp)\.blocks\.(\d+)\.(.+)")
_DEEPSTACK = re.compile(r"projector\.deepstack\.\d+\.")


@dataclass(frozen=True)
class Kept:
    """What stays of a system, as int64 indices of the whole one.

    ``layers``: of the context tower. ``d_model``: channels. ``units``: of each layer, called as in the state dict
    ("context.blocks.3", "mtp.blocks.0"), indices by axis: of all layers that stay, and of all axes of their letter but
    ``d_model``. They need not rise: their order is the new one. ``expert_ff`` is (kept experts, kept neurons).
    """

    layers: tuple[int, ...]
    d_model: Tensor
    units: Mapping[str, Mapping[str, Tensor]]

    def sizes(self) -> dict[str, int]:
        """Sizes by axis. ConfigError where layers of a letter would have different ones."""
        found = {"d_model": len(self.d_model)}
        for block, axes in self.units.items():
            for axis, index in axes.items():
                size = index.shape[-1]
                if found.setdefault(axis, size) != size:
                    raise ConfigError(f"{block} keeps {size} of {axis}; layers before it keep {found[axis]}")
        return found


def whole(config: OmniConfig) -> Kept:
    """Everything stays, as it is."""
    tower = config.context
    blocks = {f"context.blocks.{i}": letter for i, letter in enumerate(tower.pattern)}
    blocks |= {f"mtp.blocks.{i}": letter for i, letter in enumerate(config.mtp.pattern if config.mtp else "")}
    units = {block: _all_of(tower, letter) for block, letter in blocks.items()}
    return Kept(tuple(range(tower.n_layers)), torch.arange(tower.d_model), units)


def _all_of(tower: TowerConfig, letter: str) -> dict[str, Tensor]:
    sizes = {axis: size for axis, size in widths(tower, letter).items() if axis != "d_model"}
    found = {axis: torch.arange(size) for axis, size in sizes.items()}
    if "expert_ff" in found:
        found["expert_ff"] = found["expert_ff"].expand(sizes["experts"], -1)
    return found


@torch.no_grad()
def cut(model: Omni, kept: Kept) -> Omni:
    """The smaller model, in memory of its own, with the tokenizer and the mode of ``model``.

    ConfigError where ``kept`` fits no configuration.
    """
    config = shaped(model.config, kept.layers, kept.sizes())
    state = cut_state(model.config, model.state_dict(), kept)
    with torch.device("meta"):
        small = Omni(config)
    check_shapes(small, state)
    small.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    remake_buffers(small, model.device)
    small.tokenizer, small.folder = model.tokenizer, model.folder
    return small.train(model.training)


def check_shapes(model: Omni, state: Mapping[str, Tensor]) -> None:
    """ConfigError unless ``state`` holds exactly the tensors of ``model``, each of its shape."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = [f"{n}: {found.get(n)} for {wanted.get(n)}" for n in {**wanted, **found} if wanted.get(n) != found.get(n)]
    if wrong:
        raise ConfigError(f"{len(wrong)} tensors were not cut to the new sizes: {'; '.join(wrong[:5])}")


def remake_buffers(model: Omni, device: torch.device) -> None:
    """Buffers that no state dict holds, of a model that was built on the meta device."""
    for module in model.modules():
        if hasattr(module, "reset_buffers"):
            module.reset_buffers(device)


def cut_state(config: OmniConfig, state: Mapping[str, Tensor], kept: Kept) -> dict[str, Tensor]:
    """The tensors of the smaller model, by its names; gradients pass through the cutting."""
    check_layers(config.context, kept.layers)
    numbers = {old: new for new, old in enumerate(kept.layers)}
    around = {"d_model": kept.d_model, "layers": torch.tensor(kept.layers)}
    around["twice"] = torch.cat([kept.d_model, kept.d_model + config.context.d_model])
    found = {}
    for name, tensor in state.items():
        block = _BLOCK.fullmatch(name)
        if block is None:
            dims = AROUND.get(_DEEPSTACK.sub("projector.", name), ())
            found[name] = _selected(tensor, dims, around, norm="norm" in name and dims == ("d_model",))
            continue
        tower, number, rest = block[1], int(block[2]), block[3]
        if tower != "mtp" and number not in numbers:
            continue
        index = _indices(config, kept, tower, number)
        new = number if tower == "mtp" else numbers[number]
        found[f"{tower}.blocks.{new}.{rest}"] = _selected(tensor, COUPLED.get(rest, ()), index, norm=rest in NORMS)
    return found


def _indices(config: OmniConfig, kept: Kept, tower: str, number: int) -> dict[str, Tensor]:
    """What stays of one layer, by what a dimension counts. A denoiser's layer follows the context's where it must."""
    own = "context" if tower == "denoiser" else tower
    units = dict(kept.units[f"{own}.blocks.{number}"])
    if tower == "denoiser":
        units = {axis: index for axis, index in units.items() if axis in SHARED_WITH_DENOISER}
    else:
        units["d_model"] = kept.d_model
    source = config.denoiser if tower == "denoiser" else config.context
    if "mamba_heads" in units:
        units |= _mamba_rows(source, units["mamba_heads"], units["mamba_head_dim"])
    if "attention_heads" in units:
        units["queries"] = _rows(units["attention_heads"], source.attention.head_dim)
    if "experts" in units:
        units["expert_in"] = units.get("latent", kept.d_model)
    return units


def _mamba_rows(tower: TowerConfig, heads: Tensor, channels: Tensor) -> dict[str, Tensor]:
    """Rows of z and x, of x, B and C, and of z, x, B, C and dt."""
    m = tower.mamba
    inner = (heads[:, None] * m.head_dim + channels).flatten()
    shared = torch.arange(m.d_inner, m.conv_dim)  # B and C belong to their group, all of which stay
    conv = torch.cat([inner, shared])
    rows = torch.cat([inner, m.d_inner + conv, m.d_inner + m.conv_dim + heads])
    return {"mamba_inner": inner, "mamba_conv": conv, "mamba_in": rows}


def _rows(units: Tensor, size: int) -> Tensor:
    """Rows of units that have ``size`` of them each."""
    return (units[:, None] * size + torch.arange(size)).flatten()


def _selected(tensor: Tensor, dims: tuple[str, ...], index: Mapping[str, Tensor], norm: bool) -> Tensor:
    before = tensor
    for dim, own in _flat_first(dims, index):
        own = own.to(tensor.device)
        if own.dim() == 1:
            tensor = tensor.index_select(dim, own)
        else:  # every expert its own
            shape = [1] * tensor.dim()
            shape[0], shape[dim] = own.shape
            sizes = list(tensor.shape)
            sizes[dim] = own.shape[1]
            tensor = tensor.gather(dim, own.view(shape).expand(sizes))
    if norm and tensor.shape != before.shape:
        tensor = tensor * (before.shape[0] / tensor.shape[0]) ** 0.5
    return tensor


def _flat_first(dims: tuple[str, ...], index: Mapping[str, Tensor]) -> Iterator[tuple[int, Tensor]]:
    """(dimension, what stays of it); those that hang on the expert last, when only the experts that stay are there."""
    own = [(dim, index[name]) for dim, name in enumerate(dims) if name in index]
    yield from sorted(own, key=lambda pair: pair[1].dim())
