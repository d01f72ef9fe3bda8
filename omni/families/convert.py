"""From one layout to another: read with one family's table, written with another's."""

import os
import shutil
from pathlib import Path
from typing import Any

from omni.families import TOKENIZERS, CheckpointError, base_folder, compute_dtype, load_folder, read_folder, save
from omni.families.locate import find_folder

COPIED = (
    *TOKENIZERS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
)


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    family: str | None = None,
    dtype: Any = "auto",
    shard_bytes: int = 5 * 10**9,
    base: str | None = None,
) -> Path:
    """Write the checkpoint ``source`` to the folder ``target``; returns it.

    ``family`` None keeps the source's layout (``dtype`` or the shards change); ``"omni"`` is our own;
    ``"nemotron_h"`` is what transformers and vLLM load. The tokenizer's files go along.

    ``base`` names a folder beside ``target``, in our own layout: then only what differs from it is written.
    """
    found = find_folder(source)
    target = Path(target)
    if target.exists() and target.resolve() == found.resolve():
        raise CheckpointError(f"{target} is the source itself; give another folder")
    family = family or read_folder(found)[0].name
    computed = compute_dtype(found) if family == "omni" else "auto"
    kept = {"dtype": dtype, "compute_dtype": computed, "shard_bytes": shard_bytes, "base": base}
    save(load_folder(found), target, family=family, **kept)
    copy_rest(found, target, base)
    return target


def copy_rest(found: Path, target: Path, base: str | None) -> None:
    """The tokenizer's files; where ``target`` builds on a base, it takes them from there."""
    places = [place for place in (found, base_folder(found)) if place is not None and base is None]
    for name in COPIED:
        origin = next((place / name for place in places if (place / name).exists()), None)
        if origin is not None:
            shutil.copyfile(origin, target / f"{name}.part")
            os.replace(target / f"{name}.part", target / name)
