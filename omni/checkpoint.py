"""Weights on disk: sharded safetensors in and out, strict in both directions.

    load_weights   folder -> checked plan -> tensors read into place -> a model that was built on the meta device
    save_weights   state dict -> published names -> shards and index, written beside and then renamed

Which name is which is a table of :mod:`omni.rules`; what is missing, unknown or of the wrong shape is reported all at
once, before anything is allocated. Code is never read from a checkpoint: pickles are refused and ``auto_map`` is inert.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from torch import Tensor, nn

from omni.config import OmniConfig, to_dict
from omni.quantization.published import spelt
from omni.rules import Drop, Index, Order, Part, Rename, Rule, Table, split_part
from omni.tensorfile import (
    CheckpointError,
    Entry,
    Item,
    read_header,
    read_into,
    read_json,
    write_file,
    write_json,
)

STEMS = ("model", "diffusion_pytorch_model")
"""What files of weights are called: transformers' way and ours, and diffusers' way."""
WEIGHTS = tuple(f"{stem}.safetensors" for stem in STEMS)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
EXACT = (".router.bias", ".A_log", ".D", ".dt_bias")
"""Endings of the few numbers that are never narrowed: rounding them moves the decay or the choice of experts."""
LISTED = 1000  # names of one kind that an error spells out
LARGE = 1 << 30  # bytes from which loading shows its progress
READERS = 4  # threads: more do not help one disk, fewer leave it waiting


# -- finding tensors ---------------------------------------------------------------------------------------------------


def find_tensors(folder: Path) -> dict[str, Entry]:
    """Every tensor of a checkpoint folder by its published name: through the index, one file, or several files."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if len(indices) > 1:
        raise CheckpointError(f"{folder} holds {len(indices)} indices: {', '.join(i.name for i in indices)}")
    if indices:
        return _indexed(folder, indices[0])
    single = [folder / name for name in WEIGHTS if (folder / name).exists()]
    files = single[:1] or sorted(folder.glob("*.safetensors"))
    if not files:
        _refuse_pickles(folder)
    entries: dict[str, Entry] = {}
    for file in files:
        found = read_header(inside(folder, file.name))
        twice = sorted(entries.keys() & found.keys())
        if twice:
            raise CheckpointError(f"{folder}: {_listing(twice)} stand in two files, {file.name} being the second")
        entries.update(found)
    return entries


def _refuse_pickles(folder: Path) -> None:
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    if pickles:
        raise CheckpointError(
            f"{folder} holds only pickled weights ({', '.join(pickles)}), which can run code when they are read; "
            "convert them to safetensors"
        )
    raise CheckpointError(f"{folder} holds no .safetensors file")


def _indexed(folder: Path, index: Path) -> dict[str, Entry]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map must map tensor names to file names")
    files = {name: read_header(inside(folder, name)) for name in sorted(set(weight_map.values()))}
    problems = [f"{n!r} is not in {f}" for n, f in weight_map.items() if n not in files[f]]
    # A file in a component's folder may hold more than the whole's index lists: what another class reads from it.
    own = {f: held for f, held in files.items() if "/" not in f}
    problems += [f"{n!r} of {f} is not listed" for f, held in own.items() for n in held if weight_map.get(n) != f]
    if problems:
        raise CheckpointError(f"{index} does not agree with its files: {'; '.join(problems[:LISTED])}")
    return {name: files[file][name] for name, file in weight_map.items()}


def inside(folder: Path, name: str) -> Path:
    """The file ``name`` of ``folder``; a name or a link that leads out of it is refused.

    The hub's cache is the one layout whose links lead out: ``snapshots/REVISION/file -> ../../blobs/HASH``.
    """
    parts = name.split("/")
    if {"", ".", ".."} & set(parts) or "\\" in name or Path(name).is_absolute():
        raise CheckpointError(f"{folder}: the index names {name!r}; a shard must be a file inside the same folder")
    root = folder.resolve()
    if not (root / name).exists():
        raise CheckpointError(f"{folder}: the file {name} is missing")
    path = (root / name).resolve()
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    if not any(path.is_relative_to(place) for place in allowed):
        raise CheckpointError(f"{folder}: {name} is a link out of the folder, to {path}")
    return root / name


# -- matching names ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Placement:
    """One published tensor and the place it fills."""

    entry: Entry
    name: str
    index: Index


def view(tensor: Tensor, index: Index) -> Tensor:
    """What a published tensor holds of ours; as memory of its own only where the order differs."""
    match index:
        case None:
            return tensor
        case Part(number, of):
            return tensor.chunk(of)[number]
        case Order(pattern, sizes):
            published, ours = pattern.split(" -> ")
            return rearrange(tensor, f"{ours} -> {published}", **dict(sizes))
    return tensor[index]


def _shape_of(shape: tuple[int, ...], index: Index) -> tuple[int, ...]:
    """The published shape of what ``index`` takes of our tensor of ``shape``."""
    match index:
        case None:
            return shape
        case Part(_, of):
            return (shape[0] // of, *shape[1:])
        case Order():
            return tuple(view(torch.empty(shape, device="meta"), index).shape)
    return shape[1:]


def plan(
    entries: Mapping[str, Entry],
    shapes: Mapping[str, torch.Size],
    rules: Iterable[Rule],
    where: str = "checkpoint",
) -> list[Placement]:
    """Match every published tensor with every one of ours; CheckpointError lists all that does not fit."""
    table = Table(rules)
    unknown, misshaped, twice = [], [], []
    filled: dict[str, set[Index]] = {}
    placements = []
    for published, entry in entries.items():
        place = table.to_ours(published)
        if isinstance(place, Drop):
            continue
        if place is None or place.name not in shapes:
            unknown.append(published)
            continue
        shape = tuple(shapes[place.name])
        if isinstance(place.index, int) and place.index >= shape[0]:
            unknown.append(f"{published} (there are {shape[0]} slices)")
            continue
        expected = place.shape or _shape_of(tuple(shape), place.index)
        if entry.shape != expected:
            misshaped.append(f"{published} is {list(entry.shape)}, the model needs {list(expected)}")
        held = filled.setdefault(place.name, set())
        if place.index in held or None in held or (held and place.index is None):
            twice.append(published)
        held.add(place.index)
        placements.append(Placement(entry, place.name, place.index))
    missing = [name for ours, shape in shapes.items() for name in _missing(table, ours, shape, filled.get(ours, set()))]
    _raise_all(where, missing=missing, unknown=unknown, mis_shaped=misshaped, given_twice=twice)
    return placements


def _missing(table: Table, ours: str, shape: torch.Size, held: set[Index]) -> list[str]:
    """Published names that ``ours`` still lacks."""
    if None in held:
        return []
    expected = table.to_published(ours, shape)
    if expected is None:
        return [f"{ours} (our name: no rule knows it)"]
    rule = table.renaming(ours)
    if rule is not None and rule.default is not None:
        return []
    return [name for name, index in expected if index not in held]


def _raise_all(where: str, **problems: list[str]) -> None:
    parts = [f"{len(names)} {kind.replace('_', '-')}: {_listing(names)}" for kind, names in problems.items() if names]
    if parts:
        raise CheckpointError(f"{where}: tensors do not fit the model. " + "\n".join(parts))


def _listing(names: list[str]) -> str:
    rest = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" ... and {rest} more" if rest > 0 else "")


# -- loading -----------------------------------------------------------------------------------------------------------


def load_weights(
    model: nn.Module,
    entries: Mapping[str, Entry],
    rules: Iterable[Rule],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    where: str = "checkpoint",
    given: Mapping[str, Tensor] | None = None,
) -> None:
    """Fill ``model``, built on the meta device, from ``entries``; and from ``given``, what of it is known already.

    ``dtype`` None keeps every tensor as it is stored. Peak memory is that of the weights: a stacked tensor is
    allocated once and each slice read into its place.
    """
    device, given = torch.device(device), given or {}
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items() if name not in given}
    placements = plan(entries, shapes, rules, where)
    dtypes = _dtypes(placements, dtype)
    absent = _absent(shapes, dtypes, rules)
    dtypes |= {name: dtype for name, (dtype, _) in absent.items()}
    _check_room(shapes, dtypes, device, where)
    tensors = {name: torch.empty(shapes[name], dtype=dtypes[name], device=device) for name in shapes}
    for name, (_, value) in absent.items():
        tensors[name].fill_(value)
    with progress(sum(p.entry.nbytes for p in placements)) as advance, ThreadPoolExecutor(READERS) as pool:
        for done in pool.map(lambda p: _fill(p, tensors), placements):
            advance(done)
    model.load_state_dict({**tensors, **given}, strict=True, assign=True)
    _restore_buffers(model, device)


def _absent(
    shapes: Mapping[str, torch.Size], dtypes: Mapping[str, torch.dtype], rules: Iterable[Rule]
) -> dict[str, tuple[torch.dtype, float]]:
    """Tensors that the checkpoint may leave out and does: the type of their module's others, and their value."""
    table, found = Table(rules), {}
    for name in shapes.keys() - dtypes.keys():
        near = next(n for n in dtypes if n.split(".")[0] == name.split(".")[0])
        found[name] = dtypes[near], table.renaming(name).default
    return found


def _fill(placement: Placement, tensors: dict[str, Tensor]) -> int:
    target = tensors[placement.name]
    if isinstance(placement.index, Order):
        read = torch.empty(placement.entry.shape, dtype=target.dtype, device=target.device)
        read_into(placement.entry, read)
        target.copy_(rearrange(read, placement.index.pattern, **dict(placement.index.sizes)))
    else:
        read_into(placement.entry, view(target, placement.index))
    return placement.entry.nbytes


def _dtypes(placements: list[Placement], wanted: torch.dtype | None) -> dict[str, torch.dtype]:
    """The type of each of our tensors; slices of one tensor share the widest."""
    dtypes: dict[str, torch.dtype] = {}
    for placement in placements:
        dtype = target_dtype(placement.name, placement.entry.dtype, wanted)
        held = dtypes.get(placement.name, dtype)
        dtypes[placement.name] = dtype if held == dtype else torch.promote_types(held, dtype)
    return dtypes


def target_dtype(name: str, stored: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    """``wanted`` for floating tensors; those of :data:`EXACT` are never narrowed, parts of packed weights stay."""
    if wanted is None or not stored.is_floating_point or split_part(name)[1]:
        return stored
    return torch.promote_types(stored, wanted) if f".{name}".endswith(EXACT) else wanted


def _check_room(
    shapes: Mapping[str, torch.Size], dtypes: Mapping[str, torch.dtype], device: torch.device, where: str
) -> None:
    if device.type != "cuda":
        return
    needed = sum(shape.numel() * dtypes[name].itemsize for name, shape in shapes.items())
    free = torch.cuda.mem_get_info(device)[0]
    if needed > free:
        raise CheckpointError(
            f"{where}: the weights take {needed / 2**30:.1f} GiB; {device} has {free / 2**30:.1f} GiB free. "
            "Use device='cpu' or a smaller dtype"
        )


def _restore_buffers(model: nn.Module, device: torch.device) -> None:
    """Buffers that are not stored: their modules know how to make them (``reset_buffers``)."""
    for name, module in model.named_modules():
        lost = [key for key, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        if lost and not hasattr(module, "reset_buffers"):
            raise CheckpointError(f"the buffers {lost} of {name or 'the model'} are not stored and cannot be remade")
        if lost:
            module.reset_buffers(device)
    model.to(device)


@contextmanager
def progress(total: int, what: str = "reading weights") -> Iterator:
    """A bar on standard error for large loads on a terminal; a function that is told the bytes done."""
    console = Console(stderr=True)
    if total < LARGE or not console.is_terminal:
        yield lambda count: None
        return
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


# -- saving ------------------------------------------------------------------------------------------------------------


def export(state: Mapping[str, Tensor], rules: Iterable[Rule], dtype: torch.dtype | None = None) -> list[Item]:
    """Our tensors under their published names; CheckpointError lists all that no rule knows."""
    table = Table(rules)
    items, unknown = [], []
    for name, tensor in state.items():
        published = table.to_published(name, tensor.shape)
        if published is None:
            unknown.append(name)
            continue
        kept = target_dtype(name, tensor.dtype, dtype)
        if len(published) == 1 and (rule := table.renaming(name)) is not None and rule.shape is not None:
            tensor = tensor.reshape(rule.shape)
        items += [Item(new, view(tensor, index), kept) for new, index in published]
    _raise_all("export", unknown=unknown)
    names = spelt(item.name for item in items)
    return [replace(item, name=names[item.name]) for item in items]


NATIVE = (Rename("{rest}", "{rest}"),)
"""Our own names."""


def native(config: OmniConfig) -> dict[str, Any]:
    """config.json of our own layout."""
    return {"model_type": "omni", "omni": to_dict(config)}


def save_weights(
    state: Mapping[str, Tensor],
    folder: Path,
    rules: Iterable[Rule],
    *,
    shard_bytes: int = 5 * 10**9,
    dtype: torch.dtype | None = None,
    stem: str = STEMS[0],
) -> None:
    """Write ``state`` as ``{stem}.safetensors``, or as shards of at most ``shard_bytes`` with their index.

    Everything is written beside first; only then are files renamed and those of an older checkpoint removed. A
    tensor larger than ``shard_bytes`` gets a shard of its own.
    """
    if shard_bytes < 1:
        raise CheckpointError(f"shard_bytes is {shard_bytes}; it must be positive")
    shards = _shards(export(state, rules, dtype), shard_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    names = _shard_names(len(shards), stem)
    parts = [folder / f"{name}.part" for name in names]
    try:
        for part, items in zip(parts, shards, strict=True):
            write_file(part, items)
    except OSError as error:
        for part in parts:
            part.unlink(missing_ok=True)
        raise CheckpointError(f"{folder} cannot be written: {error.strerror or error}") from None
    for part, name in zip(parts, names, strict=True):
        os.replace(part, folder / name)
    if len(shards) > 1:
        weight_map = {item.name: name for name, items in zip(names, shards, strict=True) for item in items}
        total = sum(item.nbytes for items in shards for item in items)
        write_json(
            folder / f"{stem}.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": weight_map},
        )
    _remove_older(folder, set(names), stem)


def _shards(items: list[Item], shard_bytes: int) -> list[list[Item]]:
    shards: list[list[Item]] = [[]]
    room = shard_bytes
    for item in items:
        if item.nbytes > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(item)
        room -= item.nbytes
    return shards


def _shard_names(count: int, stem: str) -> list[str]:
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _remove_older(folder: Path, written: set[str], stem: str) -> None:
    """Shards of a checkpoint that stood here before: a reader would take them for ours."""
    if len(written) == 1:
        (folder / f"{stem}.safetensors.index.json").unlink(missing_ok=True)
    own = re.compile(rf"{stem}(-\d{{5}}-of-\d{{5}})?\.safetensors")
    for path in folder.glob(f"{stem}*.safetensors"):
        if path.name not in written and own.fullmatch(path.name):
            path.unlink()


__all__ = [
    "NATIVE",
    "CheckpointError",
    "Placement",
    "export",
    "find_tensors",
    "inside",
    "load_weights",
    "native",
    "plan",
    "progress",
    "read_json",
    "save_weights",
    "target_dtype",
    "view",
    "write_json",
]
