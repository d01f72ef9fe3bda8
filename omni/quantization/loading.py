"""A model whose weights are packed: filled from a quantised checkpoint, or quantised as its weights are read.

    canonical entries ──> places (family's table) ──> hold ──> load_weights, the parts among the others ──> settle
    plain entries     ──> places (family's table) ──> hold ──> read one matrix, encode, fill ──> load_weights, the rest

Nothing is ever held twice: beside the packed model there is one matrix at a time.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from omni.checkpoint import CheckpointError, Placement, plan, progress
from omni.quantization.formats import Format, Packed, encode
from omni.quantization.modules import PackedWeight, hold, packed_weights
from omni.quantization.published import Held, write_scheme
from omni.rules import PARTS, Place, Rule, Table, split_part, stem_of
from omni.tensorfile import Entry, read_into

KV_SCALES = ("k_scale", "v_scale")


def make_places(
    model: nn.Module, entries: Mapping[str, Entry], held: Mapping[str, Held], rules: Iterable[Rule], where: str
) -> dict[str, Held]:
    """Put empty packed weights into ``model`` (on the meta device) where the checkpoint has them; by our names.

    CheckpointError where our weight is none that can stay packed, or its parts differ in format.
    """
    table = Table(rules)
    found: dict[str, Held] = {}
    inputs = set()
    for module, own in held.items():
        place = table.to_ours(f"{module}.weight")
        if not isinstance(place, Place):
            continue  # dropped or unknown: what reads the entries will say so
        if not (place.index is None or isinstance(place.index, int)) or place.shape is not None:
            raise CheckpointError(
                f"{where}: {module} is {own.format.name}, and only a part of {place.name}, which is high"
            )
        if found.setdefault(place.name, own) != own:
            raise CheckpointError(f"{where}: the matrices of {place.name} differ in format")
        if f"{module}.input_scale" in entries:
            inputs.add(place.name)
    for name, own in found.items():
        try:
            weight = hold(model, name, own.format, name in inputs)
        except (AttributeError, ValueError) as error:
            raise CheckpointError(f"{where}: {name} cannot stay {own.format.name}: {error}") from None
        weight.weight_only = own.weight_only
    _make_cache_scales(model, entries, table)
    return found


def _make_cache_scales(model: nn.Module, entries: Mapping[str, Entry], table: Table) -> None:
    for name in (name for name in entries if split_part(name)[1] in KV_SCALES):
        place = table.to_ours(name)
        if isinstance(place, Place):
            module, _, part = place.name.rpartition(".")
            model.get_submodule(module).register_buffer(part, torch.empty((), device="meta"))


def settle(model: nn.Module, found: Mapping[str, Held]) -> None:
    """What divides becomes what multiplies, once everything is read."""
    for name, own in found.items():
        weight = model.get_submodule(name.removesuffix(".weight"))
        for part in own.divisors:
            getattr(weight, part).reciprocal_()


def quantise_entries(
    model: nn.Module,
    entries: Mapping[str, Entry],
    rules: Iterable[Rule],
    formats: Mapping[str, Format],
    *,
    device: torch.device | str = "cpu",
    where: str = "checkpoint",
    six_or_four: bool = False,
) -> tuple[dict[str, Entry], dict[str, Tensor]]:
    """Read and quantise our tensors ``formats``; the entries that are left, and the parts by name.

    ``model`` is on the meta device and gets the packed weights in place of the others.
    """
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    placements = [p for p in plan(entries, shapes, rules, where) if p.name in formats]
    weights: dict[str, PackedWeight] = {}
    for name in dict.fromkeys(p.name for p in placements):
        weights[name] = hold(model, name, formats[name]).to_empty(device=device)
    with progress(sum(p.entry.nbytes for p in placements), "quantising weights") as advance:
        for name, entry, e in itertools.chain.from_iterable(map(_matrices, placements)):
            read = torch.empty(entry.shape, device=device)
            read_into(entry, read)
            weights[name].fill(quantised(read, formats[name], name, six_or_four), e)
            advance(entry.nbytes)
    taken = {(p.entry.file, p.entry.start) for p in placements}
    left = {name: entry for name, entry in entries.items() if (entry.file, entry.start) not in taken}
    return left, parts_of(model)


def _matrices(placement: Placement) -> Iterator[tuple[str, Entry, int | None]]:
    """The matrices of one published tensor: our name, and the number in the stack that it belongs to."""
    entry, name = placement.entry, placement.name
    if len(entry.shape) == 2:
        yield name, entry, placement.index
        return
    one = dataclasses.replace(entry, shape=entry.shape[1:])
    for e in range(entry.shape[0]):
        yield name, dataclasses.replace(one, start=entry.start + e * one.nbytes), e


def quantised(x: Tensor, format: Format, name: str, six_or_four: bool = False) -> Packed:
    """Our tensor ``name`` in ``format``. CheckpointError where a number is not finite, which no scale can hold."""
    if not bool(x.isfinite().all()):
        raise CheckpointError(f"{name} holds numbers that are not finite; it cannot be quantised")
    return encode(x, format, six_or_four=six_or_four and format.name == "nvfp4")


def parts_of(model: nn.Module) -> dict[str, Tensor]:
    """The parts of every packed weight, by the name that a state dict gives them."""
    own = {name: dict(weight.named_buffers(recurse=False)) for name, weight in packed_weights(model).items()}
    return {f"{name}.{part}": t for name, parts in own.items() for part, t in parts.items() if part in PARTS[:4]}


def schemes_of(model: nn.Module, rules: Iterable[Rule], kv_cache: bool, version: str) -> tuple[dict, dict] | None:
    """What config.json and hf_quant_config.json say of the model's packed weights; None where it has none."""
    table, formats, kept = Table(rules), {}, []
    for name, weight in packed_weights(model).items():
        for published, _ in table.to_published(f"{name}.codes", weight.shape) or ():
            formats[split_part(published)[0]] = weight.format, weight.weight_only or weight.input_scale is None
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and (name.endswith(".weight") or ".experts." in name):
            kept += [stem_of(published) for published, _ in table.to_published(name, weight.shape) or ()]
    return write_scheme(formats, kept, kv_cache, version) if formats or kv_cache else None


__all__ = ["make_places", "parts_of", "quantise_entries", "quantised", "schemes_of", "settle"]
