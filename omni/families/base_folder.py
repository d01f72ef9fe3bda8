"""Folders that hold only what they changed of the folder beside them: students and post-trained generators.

    tiny-4step/config.json        {"model_type": "omni", "base": "tiny", "omni": {...}}
    tiny-4step/model.safetensors  the tensors that differ
    tiny/                         everything else, tokenizer included

The published students of Cosmos 3 repeat the whole reader they were distilled beside; here it is stored once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omni.checkpoint import CheckpointError, target_dtype
from omni.rules import split_part, stem_of
from omni.tensorfile import read_json


def base_of(folder: Path, plain: Mapping[str, Any]) -> Path | None:
    """The folder that ``folder`` builds on, beside it; None where it stands alone. CheckpointError where it is missing.

    ``plain``: the content of its config.json.
    """
    name = plain.get("base")
    if name is None:
        return None
    if not isinstance(name, str) or not name or name in (".", "..") or set(name) & set("/\\"):
        raise CheckpointError(f"{folder}: base is {name!r}; it must be the name of a folder beside this one")
    base = folder.resolve().parent / name
    if base == folder.resolve() or not (base / "config.json").is_file():
        raise CheckpointError(f"{folder} builds on {name!r}; there is no such model beside it, at {base}")
    if read_json(base / "config.json").get("base") is not None:
        raise CheckpointError(f"{folder} builds on {name!r}, which builds on another; only one step is allowed")
    return base


def changed(state: Mapping[str, Tensor], base: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """What of ``state`` differs from ``base`` as it will be stored: in ``dtype``, None for each tensor's own.

    CheckpointError where ``base`` has tensors that ``state`` lacks: the folder could not leave them out.
    """
    owned = {_module(name) for name in state}
    extra = sorted(name for name in base if _module(name) not in owned)
    if extra:
        raise CheckpointError(f"the base holds tensors that this model does not have: {', '.join(extra[:5])}")
    kept = {name: target_dtype(name, value.dtype, dtype) for name, value in state.items()}
    other = {_module(name) for name, value in state.items() if not _same(value, base.get(name), kept[name])}
    return {name: value for name, value in state.items() if _module(name) in other}


def _module(name: str) -> str:
    """What is taken from one folder or the other as a whole: a packed weight's parts go together."""
    return stem_of(split_part(name)[0])


def _same(value: Tensor, other: Tensor | None, dtype: torch.dtype) -> bool:
    if other is None or value.shape != other.shape:
        return False
    mine, theirs = value.to(dtype), other.to(value.device, dtype)
    if dtype.itemsize == 1:  # torch compares no numbers of eight bits
        mine, theirs = mine.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8)
    return torch.equal(mine, theirs)
