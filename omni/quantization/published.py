"""Quantised checkpoints as they are published: which fields a weight has, and what the configuration says of it.

    ModelOpt            weight, weight_scale, weight_scale_2, input_scale         hf_quant_config.json and config.json
    compressed-tensors  weight_packed or weight, weight_scale, weight_global_scale, input_global_scale   config.json
    FP8 in blocks       weight, weight_scale_inv                                  config.json, quant_method "fp8"

What a tensor is stored in is read from the tensor itself, its type and the shapes of its scales; the configuration must
not contradict it. All three become the parts of :data:`omni.rules.PARTS`; we write the first. Global scales of
compressed-tensors divide. Source: ``reference`` generation_and_compression, C.3, and language_family, section 5.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch

from omni.quantization.formats import E4M3, FORMATS, Format
from omni.rules import split_part
from omni.tensorfile import CheckpointError, Entry

ALGORITHMS = {
    "FP8": ("fp8", False),
    "FP8_PER_CHANNEL_PER_TOKEN": ("fp8_channel", False),
    "FP8_PB_WO": ("fp8_block", True),
    "NVFP4": ("nvfp4", False),
    "W4A16_NVFP4": ("nvfp4", True),
    "MXFP8": ("mxfp8", False),
}
"""ModelOpt's names: our format, and whether inputs stay as they are."""

COMPRESSED = {  # compressed-tensors: bits, size of a group -> our format
    (8, None): ("fp8", "fp8_channel", "fp8_block"),
    (8, 32): ("mxfp8",),
    (4, 16): ("nvfp4",),
    (4, 32): ("mxfp4",),
}
COMPRESSED_FORMATS = (
    "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized", "float-quantized", "naive-quantized",
    "mixed-precision", "dense",
)  # fmt: skip
METHODS = ("modelopt", "modelopt_fp4", "modelopt_mixed", "compressed-tensors", "fp8")

FIELDS = {  # published ending -> ours; scales that divide come in _DIVISORS
    "weight_packed": "codes",
    "weight_scale": "scale",
    "weight_scale_inv": "scale",
    "weight_scale_2": "tensor_scale",
    "weight_global_scale": "tensor_scale",
    "input_scale": "input_scale",
    "input_global_scale": "input_scale",
    "activation_scale": "input_scale",
    "k_scale": "k_scale",
    "v_scale": "v_scale",
}
_DIVISORS = ("weight_global_scale", "input_global_scale")
_EXPONENTS = (torch.uint8, torch.float8_e8m0fnu)
_NUMBERS = (torch.float32, torch.bfloat16, torch.float8_e8m0fnu)


class Claim(NamedTuple):
    """What is said of a module: formats, one of which it has, and whether its inputs stay as they are."""

    formats: tuple[str, ...]
    weight_only: bool


@dataclass(frozen=True)
class Scheme:
    """What a checkpoint says of its low precision. ``modules``: name, glob or ``re:`` pattern -> claim."""

    claim: Claim | None = None  # of every linear layer that ``modules`` does not name
    modules: Mapping[str, Claim] = field(default_factory=dict)
    kept: tuple[str, ...] = ()  # names and patterns of what is left high
    kv_cache: bool = False  # keys and values in FP8

    def of(self, module: str) -> Claim | None:
        """What is said of a published module; None where nothing is."""
        named = next((claim for name, claim in self.modules.items() if _fits(name, module)), None)
        if named is not None:
            return named
        return None if any(_fits(name, module) for name in self.kept) else self.claim


def _fits(pattern: str, module: str) -> bool:
    """Whether a name, a glob or a regular expression names a module, with or without a system's prefix."""
    names = (module, module.removeprefix("language_model."), module.removeprefix("model."))
    if pattern.startswith("re:"):
        return any(re.match(pattern[3:], name) for name in names)
    return any(name == pattern or fnmatchcase(name, pattern) or name.endswith(f".{pattern}") for name in names)


# -- configurations ----------------------------------------------------------------------------------------------------


def read_scheme(plain: Mapping[str, Any], extra: Mapping[str, Any] | None, where: str) -> Scheme | None:
    """From config.json and hf_quant_config.json (None: not there). None: nothing is quantised.

    CheckpointError where a method or an algorithm is unknown.
    """
    nested = [plain.get("llm_config"), plain.get("text_config"), *(plain.get("parts") or {}).values()]
    inner = [n["quantization_config"] for n in nested if isinstance(n, dict) and n.get("quantization_config")]
    own = plain.get("quantization_config") or next(iter(inner), None)
    if own is None and extra is None:
        return None
    if own is not None and not isinstance(own, dict):
        raise CheckpointError(f"{where}: quantization_config is {str(own)[:80]!r}; it must be an object")
    if extra is not None:
        details = extra.get("quantization")
        if not isinstance(details, dict):
            raise CheckpointError(f"{where}: hf_quant_config.json has no object under 'quantization'")
        return _modelopt(details, where)
    method = own.get("quant_method", "modelopt" if "quant_algo" in own else None)
    if method not in METHODS:
        raise CheckpointError(f"{where}: quant_method is {method!r}; known: {', '.join(METHODS)}")
    if method == "compressed-tensors":
        return _compressed(own, where)
    return _blocks(own, where) if method == "fp8" else _modelopt(own, where)


def _modelopt(details: Mapping[str, Any], where: str) -> Scheme:
    """Either file's spelling: ``exclude_modules`` or ``ignore``, ``kv_cache_quant_algo`` or ``kv_cache_scheme``."""
    algorithm = details.get("quant_algo")
    layers = details.get("quantized_layers") or {}
    kept = tuple(details.get("exclude_modules") or details.get("ignore") or ())
    kv = _kv_cache(details.get("kv_cache_quant_algo") or details.get("kv_cache_scheme"), where)
    if algorithm == "MIXED_PRECISION":
        if not isinstance(layers, dict) or not layers:
            raise CheckpointError(f"{where}: MIXED_PRECISION needs quantized_layers: the algorithm of every layer")
        named = {name: _claim(layer, where, name) for name, layer in layers.items()}
        return Scheme(None, named, kept, kv)
    claim = None if algorithm is None else _claim(details, where)
    return Scheme(claim, {}, kept, kv)


def _claim(details: Any, where: str, module: str = "") -> Claim:
    algorithm = details.get("quant_algo") if isinstance(details, dict) else details
    if algorithm not in ALGORITHMS:
        of = f" of {module}" if module else ""
        raise CheckpointError(
            f"{where}: quant_algo{of} is {algorithm!r}; known: {', '.join(ALGORITHMS)}, MIXED_PRECISION"
        )
    name, weight_only = ALGORITHMS[algorithm]
    group, block = details.get("group_size"), FORMATS[name].block
    if group and block and block[0] == 1 and block[1] not in (0, group):
        raise CheckpointError(f"{where}: {algorithm} with group_size {group}; supported: {block[1]}")
    return Claim((name,), weight_only)


def _kv_cache(value: Any, where: str) -> bool:
    """Whether keys and values are FP8; nothing else is known."""
    if value in (None, "NONE", "none", "auto"):
        return False
    eight = isinstance(value, dict) and value.get("num_bits") == 8 and value.get("type", "float") == "float"
    if value not in ("FP8", "fp8") and not eight:
        raise CheckpointError(f"{where}: the cache of keys and values is {str(value)[:80]!r}; supported: FP8")
    return True


def _compressed(own: Mapping[str, Any], where: str) -> Scheme:
    modules: dict[str, Claim] = {}
    for group in (own.get("config_groups") or {}).values():
        style = group.get("format") or own.get("format")
        if style not in COMPRESSED_FORMATS:
            raise CheckpointError(f"{where}: the format {style!r} is unknown; known: {', '.join(COMPRESSED_FORMATS)}")
        weights = group.get("weights") or {}
        bits, size = weights.get("num_bits"), weights.get("group_size") if weights.get("strategy") != "block" else None
        if weights.get("type") != "float" or (bits, size) not in COMPRESSED or weights.get("symmetric") is False:
            what = {k: weights.get(k) for k in ("num_bits", "type", "group_size", "symmetric")}
            raise CheckpointError(f"{where}: weights of {what} are not supported; floating point of 8 or 4 bits is")
        claim = Claim(COMPRESSED[bits, size], group.get("input_activations") is None)
        modules |= dict.fromkeys(group.get("targets") or ["Linear"], claim)
    default = modules.pop("Linear", None)
    return Scheme(default, modules, tuple(own.get("ignore") or ()), _kv_cache(own.get("kv_cache_scheme"), where))


def _blocks(own: Mapping[str, Any], where: str) -> Scheme:
    size = own.get("weight_block_size")
    if size is not None and list(size) != [128, 128]:
        raise CheckpointError(f"{where}: weight_block_size is {size}; supported: [128, 128]")
    kept = tuple(own.get("modules_to_not_convert") or own.get("ignored_layers") or ())
    return Scheme(Claim(("fp8_block", "fp8", "fp8_channel") if size is None else ("fp8_block",), False), {}, kept)


# -- tensors -----------------------------------------------------------------------------------------------------------


class Held(NamedTuple):
    """One published weight that is packed."""

    format: Format
    weight_only: bool
    divisors: tuple[str, ...]  # parts that are stored as what they divide by


def canonical(
    entries: Mapping[str, Entry], scheme: Scheme | None, where: str
) -> tuple[dict[str, Entry], dict[str, Held]]:
    """The same entries with packed weights as :data:`omni.rules.PARTS`, and those weights by the name of their module.

    CheckpointError where a scale is missing, or a tensor is not what the configuration says.
    """
    found, fields = dict(entries), _fields(entries)
    if not fields and scheme is None:
        _refuse_bare(entries, where)
        return found, {}
    packed: dict[str, Held] = {}
    for stem, parts in fields.items():
        codes = parts.pop("weight_packed", None) or f"{stem}.weight"
        stored = found[codes].dtype if codes in found else None
        if stored in (torch.uint8, E4M3) or any(ending.startswith("weight_") for ending in parts):
            packed[stem] = _take(found, stem, codes, parts, scheme, where)
        for name in (name for ending, name in parts.items() if ending in ("k_scale", "v_scale")):
            own = _cache_part(stem, name)
            found[own] = _scalar(found.pop(name), 0)
    _refuse_bare(found, where)
    return found, packed


def _fields(entries: Mapping[str, Entry]) -> dict[str, dict[str, str]]:
    """Module -> the published endings that it has beside its weight -> the names."""
    found: dict[str, dict[str, str]] = {}
    for name in entries:
        stem, _, ending = name.rpartition(".")
        if ending in FIELDS:
            found.setdefault(stem, {})[ending] = name
    return found


def _cache_part(stem: str, name: str) -> str:
    """Scales of keys and values hang on their projections, wherever a file has them."""
    part = name.rpartition(".")[2]
    projection = f"{part[0]}_proj"
    return f"{stem}.{part}" if stem.endswith(f".{projection}") else f"{stem}.{projection}.{part}"


def _take(
    found: dict[str, Entry], stem: str, codes: str, parts: dict[str, str], scheme: Scheme | None, where: str
) -> Held:
    """Rename the fields of one weight in ``found``; what format they have."""
    weight = found.pop(codes, None)
    if weight is None:
        raise CheckpointError(f"{where}: {stem} has scales ({', '.join(sorted(parts))}) and no weight")
    named = {FIELDS[ending]: found.pop(name) for ending, name in parts.items() if ending not in ("k_scale", "v_scale")}
    claim = scheme.of(stem) if scheme else None
    format = _identify(weight, named, claim, f"{where}: {stem}.weight")
    if claim is not None and format.name not in claim.formats:
        raise CheckpointError(f"{where}: {stem} is stored as {format.name}; the configuration says {claim.formats[0]}")
    held = {"codes": weight, **named}
    if "scale" in held:
        held["block_scale" if format.block is not None else "tensor_scale"] = held.pop("scale")
    shapes = format.shapes(_plain_shape(weight, format))
    for part, (shape, dtype) in shapes.items():
        if part not in held:
            raise CheckpointError(f"{where}: {stem} is {format.name} and lacks its {part.replace('_', ' ')}")
        dtype = dtype if dtype in (torch.uint8, E4M3) else held[part].dtype
        found[f"{stem}.{part}"] = _shaped(held[part], shape, dtype, f"{where}: {stem}.{part}")
    if "input_scale" in held:
        found[f"{stem}.input_scale"] = _scalar(held["input_scale"], len(weight.shape) - 2)
    divisors = tuple(FIELDS[ending] for ending in parts if ending in _DIVISORS)
    return Held(format, claim.weight_only if claim else "input_scale" not in held, divisors)


def _identify(weight: Entry, named: Mapping[str, Entry], claim: Claim | None, what: str) -> Format:
    """The format of codes and scales, from their types and shapes; one block alone looks like a tensor's own scale."""
    scale = named.get("scale")
    if len(weight.shape) < 2 or scale is None:
        raise CheckpointError(f"{what} is {weight.dtype} {list(weight.shape)} and lacks its weight_scale")
    *lead, rows, columns = weight.shape
    exponents = scale.dtype in _EXPONENTS
    if weight.dtype == torch.uint8:
        name = "mxfp4" if exponents else "nvfp4"
        columns *= 2
    elif weight.dtype != E4M3:
        name = ""
    elif scale.numel == math.prod(lead):
        name = "fp8_block" if claim is not None and "fp8_block" in claim.formats[:1] else "fp8"
    elif exponents and scale.shape[-1] * 32 == columns:
        name = "mxfp8"
    else:
        name = "fp8_channel" if scale.numel == math.prod([*lead, rows]) else "fp8_block"
    format = FORMATS.get(name)
    if format is None or not _scale_fits(scale, format, (*lead, rows, columns)):
        have = f"{weight.dtype} {list(weight.shape)} with scales {scale.dtype} {list(scale.shape)}"
        raise CheckpointError(f"{what} is {have}, which is no known format ({', '.join(FORMATS)})")
    return format


def _scale_fits(scale: Entry, format: Format, shape: tuple[int, ...]) -> bool:
    if format.block is None or not format.fits(shape[-1]):
        return format.block is None
    wanted, dtype = format.shapes(shape)["block_scale"]
    kinds = {torch.uint8: _EXPONENTS, E4M3: (E4M3,)}.get(dtype, _NUMBERS)
    return scale.numel == math.prod(wanted) and scale.dtype in kinds


def _plain_shape(weight: Entry, format: Format) -> tuple[int, ...]:
    *lead, columns = weight.shape
    return (*lead, columns * 2 if format.packed else columns)


def _shaped(entry: Entry, shape: tuple[int, ...], dtype: torch.dtype, what: str) -> Entry:
    """The same bytes under another shape, and powers of two as their exponents."""
    if entry.numel != math.prod(shape) or entry.dtype.itemsize != dtype.itemsize:
        raise CheckpointError(f"{what} is {entry.dtype} {list(entry.shape)}; it must be {dtype} {list(shape)}")
    return dataclasses.replace(entry, shape=shape, dtype=dtype)


def _scalar(entry: Entry, leading: int) -> Entry:
    """One number; of a stack one for each matrix."""
    return dataclasses.replace(entry, shape=()) if entry.numel == 1 and not leading else entry


def _refuse_bare(entries: Mapping[str, Entry], where: str) -> None:
    """Codes without scales, which would be taken for numbers."""
    bare = [n for n, e in entries.items() if e.dtype in (E4M3, torch.float8_e5m2) and not split_part(n)[1]]
    if bare:
        listed = ", ".join(bare[:3])
        raise CheckpointError(f"{where}: {len(bare)} tensors are in FP8 and lack their weight_scale: {listed} ...")


def merged(base: Mapping[str, Entry], own: Mapping[str, Entry]) -> dict[str, Entry]:
    """The entries of a folder over those of its base: of a weight that it holds, in whatever form, nothing is taken."""
    replaced = {_module(name) for name in own}
    return {name: entry for name, entry in base.items() if _module(name) not in replaced} | dict(own)


def _module(name: str) -> str:
    stem, _, ending = name.rpartition(".")
    return stem if ending == "weight" or ending in FIELDS else name


# -- writing -----------------------------------------------------------------------------------------------------------


def spelt(names: Iterable[str]) -> dict[str, str]:
    """Names with our parts -> ModelOpt's names."""
    known = list(names)
    blocks = {split_part(name)[0] for name in known if split_part(name)[1] == "block_scale"}
    found = {}
    for name in known:
        stem, part = split_part(name)
        tensor = "weight_scale_2" if stem in blocks else "weight_scale"
        ending = {"codes": "weight", "block_scale": "weight_scale", "tensor_scale": tensor}.get(part, part)
        found[name] = f"{stem}.{ending}" if part else name
    return found


def write_scheme(
    formats: Mapping[str, tuple[Format, bool]], kept: Iterable[str], kv_cache: bool, version: str
) -> tuple[dict, dict]:
    """``quantization_config`` of config.json, and hf_quant_config.json.

    ``formats``: published module -> format, and whether its inputs stay as they are. ValueError where ModelOpt has no
    name for one.
    """
    algorithms = {name: _algorithm(format, weight_only) for name, (format, weight_only) in formats.items()}
    kinds = sorted(set(algorithms.values()))
    details: dict[str, Any] = {"quant_algo": kinds[0] if len(kinds) == 1 else "MIXED_PRECISION" if kinds else None}
    details["kv_cache_quant_algo"] = "FP8" if kv_cache else None
    if len(kinds) > 1:
        details["quantized_layers"] = {name: _layer(kind) for name, kind in algorithms.items()}
    elif kinds:
        details |= {k: v for k, v in _layer(kinds[0]).items() if k == "group_size"}
    details["exclude_modules"] = sorted(kept)
    producer = {"name": "omni", "version": version}
    groups = {}
    for i, kind in enumerate(kinds):
        targets = [name for name, own in algorithms.items() if own == kind] if len(kinds) > 1 else ["Linear"]
        groups[f"group_{i}"] = {**_group(kind), "targets": sorted(targets)}
    config = {"config_groups": groups, "ignore": details["exclude_modules"], "quant_algo": details["quant_algo"]}
    if len(kinds) > 1:
        config["quantized_layers"] = details["quantized_layers"]
    if kv_cache:
        config["kv_cache_scheme"] = {"dynamic": False, "num_bits": 8, "type": "float"}
    return {**config, "producer": producer, "quant_method": "modelopt"}, {"producer": producer, "quantization": details}


def _algorithm(format: Format, weight_only: bool) -> str:
    """ModelOpt has FP8 with inputs of its own only: weights alone are called the same and have no input scale."""
    fits = {name: stay for name, (own, stay) in ALGORITHMS.items() if own == format.name}
    names = [name for name, stay in fits.items() if stay == weight_only or len(fits) == 1]
    if not names:
        raise ValueError(f"weights in {format.name} have no name in ModelOpt's layout; known: {', '.join(ALGORITHMS)}")
    return names[0]


def _layer(algorithm: str) -> dict[str, Any]:
    block = FORMATS[ALGORITHMS[algorithm][0]].block
    return {"quant_algo": algorithm, **({"group_size": block[1]} if block and block[0] == 1 and block[1] else {})}


def _group(algorithm: str) -> dict[str, Any]:
    name, weight_only = ALGORITHMS[algorithm]
    kind = {"dynamic": False, "num_bits": 4 if FORMATS[name].packed else 8, "type": "float"}
    kind |= {k: v for k, v in _layer(algorithm).items() if k == "group_size"}
    weights = {**kind, **({"strategy": "channel"} if name == "fp8_channel" else {})}
    return {"weights": weights, **({} if weight_only else {"input_activations": kind})}


__all__ = [
    "ALGORITHMS",
    "Claim",
    "Held",
    "Scheme",
    "canonical",
    "merged",
    "read_scheme",
    "spelt",
    "write_scheme",
]
