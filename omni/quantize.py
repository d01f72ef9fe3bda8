"""A checkpoint in eight or four bits, written in ModelOpt's layout: ``omni quantize MODEL -o OUT --format nvfp4``.

without calibration   read, quantise and forget matrix by matrix ──> weights alone are low
with calibration      load ──> ranges of activations on held-out samples ──> quantise in place, input scales too
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from omni.calibration import Ranges, calibrated
from omni.checkpoint import CheckpointError
from omni.config import replace
from omni.families import compute_dtype, find_scheme, load_folder, read_folder, save
from omni.families.base_folder import base_of, changed
from omni.families.convert import copy_rest
from omni.families.locate import find_folder
from omni.model import Omni
from omni.quantization.formats import Format
from omni.quantization.loading import quantised
from omni.quantization.modules import hold, packed_weights
from omni.quantization.plans import choose


def quantize(
    source: str | os.PathLike,
    target: str | os.PathLike,
    format: str,
    *,
    six_or_four: bool = False,
    calibrate: int = 0,
    texts: Sequence[str] = (),
    keep: Iterable[str] = (),
    also: Iterable[str] = (),
    kv_cache: bool = False,
    base: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the checkpoint ``source`` to the folder ``target`` with its large matrices quantised; what became of it.

    Args:
        format: "fp8", "nvfp4" or "mixed", see :mod:`omni.quantization.plans`.
        six_or_four: of nvfp4: let the largest of a block be 6 or 4, whichever is nearer.
        calibrate: held-out samples that scales of activations are made from; 0: weights alone are quantised.
        texts: what is read instead of samples of our own.
        keep: globs of our names that stay as they are; ``also``: of further linear layers.
        kv_cache: ask whoever loads it to keep keys and values in FP8.
        base: as for :func:`omni.families.save`; what is as in the base stays so.

    CheckpointError (a ValueError), before anything is written, where that cannot be.
    """
    found, target = find_folder(source), Path(target)
    if target.exists() and target.resolve() == found.resolve():
        raise CheckpointError(f"{target} is the source itself; give another folder")
    if find_scheme(found) is not None:
        raise CheckpointError(f"{found} is quantised already; quantise the checkpoint that it was made from")
    family = read_folder(found)[0].name
    if calibrate or texts or base is not None or kv_cache:
        model = load_folder(found)
        formats = choose({name: t.shape for name, t in model.state_dict().items()}, format, keep, also)
        if base is not None:
            own = changed(model.state_dict(), load_folder(base_of(target, {"base": base})).state_dict(), None)
            formats = {name: one for name, one in formats.items() if name in own}
        ranges = calibrated(model, formats, calibrate, texts, seed) if calibrate or texts else Ranges()
        pack(model, formats, ranges, six_or_four)
        if kv_cache:
            keep_kv_scales(model, ranges)
    else:
        model = load_folder(found, quantize=format, keep=keep, also=also, six_or_four=six_or_four)
    computed = compute_dtype(found) if family == "omni" else "auto"
    save(model, target, family=family, compute_dtype=computed, base=base)
    copy_rest(found, target, base)
    return summary(model, found, target)


@torch.no_grad()
def pack(model: nn.Module, formats: dict[str, Format], ranges: Ranges | None = None, six_or_four: bool = False) -> None:
    """Quantise our weights ``formats`` where they are, one after the other, with input scales from ``ranges``."""
    ranges = ranges or Ranges()
    for name, format in formats.items():
        weight, scale = model.get_parameter(name), ranges.scale(name, format)
        packed = hold(model, name, format, scale is not None)
        for e in [None] if weight.dim() == 2 else range(len(weight)):
            packed.fill(quantised(weight if e is None else weight[e], format, name, six_or_four), e)
        if scale is not None:
            packed.input_scale.copy_(scale)
        packed.weight_only = scale is None


def keep_kv_scales(model: Omni, ranges: Ranges) -> None:
    """Have keys and values kept in FP8, with scales beside their projections: 1 in layers that were not calibrated."""
    model.cache_format = replace(model.cache_format, kv="fp8")
    known = ranges.kv_scales()
    for layer, block in enumerate(model.context.blocks):
        if block.letter == "*":
            for name, scale in zip("kv", known.get(layer, (1.0, 1.0)), strict=True):
                projection = getattr(block.mixer, f"{name}_proj")
                projection.register_buffer(f"{name}_scale", torch.tensor(scale, device=model.device))


def summary(model: Omni, source: Path, target: Path) -> dict[str, Any]:
    """What was written: bytes of both, weights by format, and those of input scales."""
    weights = packed_weights(model)
    formats: dict[str, int] = {}
    for weight in weights.values():
        formats[weight.format.name] = formats.get(weight.format.name, 0) + 1
    return {
        "model": str(target),
        "formats": formats,
        "calibrated": sum(weight.input_scale is not None for weight in weights.values()),
        "bytes": {"before": _bytes(source), "after": _bytes(target)},
    }


def _bytes(folder: Path) -> int:
    """Of the weights in a folder itself."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


__all__ = ["keep_kv_scales", "pack", "quantize", "summary"]
