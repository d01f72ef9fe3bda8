"""Checkpoint families: which published layout a folder has, and how it becomes a model and a folder again.

A family is one file of this package with a ``FAMILY`` (:class:`omni.families.base.Family`). Nothing else changes when
one is added.
"""

import difflib
import importlib
import os
import pkgutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from omni import __version__
from omni.assets import shipped
from omni.checkpoint import CheckpointError, find_tensors, inside, load_weights, save_weights
from omni.config import ConfigError, OmniConfig, replace
from omni.families.base import Family, Preset
from omni.families.base_folder import base_of, changed
from omni.families.locate import ModelNotFound, find_folder
from omni.model import Omni
from omni.quantization.loading import make_places, quantise_entries, schemes_of, settle
from omni.quantization.modules import set_low_inputs
from omni.quantization.plans import choose
from omni.quantization.published import Scheme, canonical, merged, read_scheme
from omni.rules import split_part
from omni.tensorfile import Entry, read_json, write_json

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float64": torch.float64,
}
TOKENIZERS = ("tokenizer.json", "omni_tokenizer.json")
PROCESSORS = (
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "action_statistics.json",
)
SPECIAL = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "pad"}
SAMPLING = ("temperature", "top_p", "top_k")


@cache
def _modules() -> list[ModuleType]:
    return [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]


@cache
def families() -> dict[str, Family]:
    """Every family by name."""
    found = [module.FAMILY for module in _modules() if hasattr(module, "FAMILY")]
    return {family.name: family for family in found}


@cache
def presets() -> dict[str, Preset]:
    """Every preset by name. A bare configuration in a module's ``PRESETS`` has shipped weights."""
    found = [item for module in _modules() for item in getattr(module, "PRESETS", {}).items()]
    return {name: p if isinstance(p, Preset) else Preset(p, "tiny") for name, p in found}


def preset(name: str) -> OmniConfig:
    """The configuration of a preset; ConfigError with close names otherwise."""
    if name not in presets():
        raise ConfigError(f"unknown preset {name!r}{_close(name, presets()) or f'; known: {sorted(presets())}'}")
    return presets()[name].config


def find_preset(name: str) -> Preset | None:
    """A preset by its name or by the repository of its weights; None when there is none."""
    by_repo = {p.weights.lower(): p for p in presets().values() if "/" in p.weights}
    return presets().get(name) or by_repo.get(name.lower())


def _close(name: str, known: Iterable[str]) -> str:
    """ ". Did you mean ...?" or nothing."""
    close = difflib.get_close_matches(name.lower(), list(known), 3, 0.6)
    return f". Did you mean {' or '.join(close)}?" if close else ""


def family_of(plain: dict[str, Any], where: str) -> Family:
    """The family that a configuration belongs to."""
    found = [family for family in families().values() if family.matches(plain)]
    if len(found) == 1:
        return found[0]
    kind = (
        f"model_type {plain.get('model_type', plain.get('_class_name'))!r}, architectures {plain.get('architectures')}"
    )
    if found:
        raise CheckpointError(f"{where}: {kind} is claimed by {[f.name for f in found]}")
    raise CheckpointError(f"{where}: {kind} belongs to no known family; known: {', '.join(sorted(families()))}")


def read_folder(folder: Path) -> tuple[Family, OmniConfig]:
    """Family and configuration of a checkpoint folder, with the defaults of its generation_config.json."""
    plain = _read_plain(folder)
    plain.pop("quantization_config", None)  # says how weights are stored: see _scheme
    family = family_of(plain, str(folder))
    config = family.to_config(plain)
    if family.read_media is not None:
        files = {name: read_json(folder / name) for name in PROCESSORS if (folder / name).exists()}
        config = family.read_media(config, files)
    generation = folder / "generation_config.json"
    return family, _with_defaults(config, read_json(generation)) if generation.exists() else config


INDICES = ("model_index.json", "modular_model_index.json")
"""What the folder of a diffusers pipeline says of itself and of its components."""


def _read_plain(folder: Path) -> dict[str, Any]:
    """config.json, or else the index of a pipeline; of a pipeline also the components' own files under ``parts``.

    The indices themselves stand there under their names without ".json".
    """
    main = folder / "config.json"
    indices = {name: read_json(folder / name) for name in INDICES if (folder / name).exists()}
    plain = read_json(main) if main.exists() or not indices else next(iter(indices.values()))
    if not indices:
        return plain
    files = [*sorted(folder.glob("*/config.json")), *sorted(folder.glob("*/scheduler_config.json"))]
    parts = {path.parent.name: read_json(path) for path in files}
    return {**plain, "parts": parts | {name.removesuffix(".json"): index for name, index in indices.items()}}


def _with_defaults(config: OmniConfig, generation: dict[str, Any]) -> OmniConfig:
    """Token ids and sampling of generation_config.json win over those of config.json."""
    special = {ours: generation[key] for key, ours in SPECIAL.items() if generation.get(key) is not None}
    sampling = {key: generation[key] for key in SAMPLING if isinstance(generation.get(key), (int, float))}
    if generation.get("do_sample") is False:
        sampling = {"temperature": 0.0}
    return replace(
        config,
        special_tokens={**config.special_tokens, **special},
        sampling={**config.sampling, **sampling},
    )


def find_config(name_or_path: str | os.PathLike) -> OmniConfig:
    """The configuration of a preset, a folder or a hub id, without its weights."""
    known = find_preset(str(name_or_path))
    return known.config if known else read_folder(find_folder(name_or_path))[1]


def load(
    name_or_path: str | os.PathLike,
    device: str = "auto",
    dtype: Any = "auto",
    quantize: str | None = None,
    low_inputs: bool = False,
) -> Omni:
    """Load a model with its weights and, where the folder has one, its tokenizer.

    Args:
        name_or_path: ``"tiny"`` (shipped), a local folder, or a hub id ``OWNER/NAME[@REVISION]``.
        device: ``"auto"`` is the GPU where there is one.
        dtype: ``"auto"`` keeps the types of the file, or takes the ``compute_dtype`` of its config.json where there is
            one; otherwise a torch dtype or its name.
        quantize: ``"fp8"``, ``"nvfp4"`` or ``"mixed"``: the large matrices are quantised as they are read and stay
            packed in memory (:mod:`omni.quantization.plans`). A checkpoint that is quantised stays as it is.
        low_inputs: also round what enters packed weights to their formats, as hardware with eight or four bits does.

    Raises:
        CheckpointError, ConfigError (both ValueError): one message that says what is wrong, before memory is taken.
    """
    folder = _folder_with_weights(name_or_path)
    model = load_folder(folder, pick_device(device), pick_dtype(dtype) or compute_dtype(folder), quantize)
    set_low_inputs(model, low_inputs)
    return model


def load_folder(
    folder: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    quantize: str | None = None,
    *,
    keep: Iterable[str] = (),
    also: Iterable[str] = (),
    six_or_four: bool = False,
) -> Omni:
    """The model of a checkpoint folder; ``dtype`` None keeps the types of the file.

    ``quantize``: as for :func:`load`; ``keep`` and ``also`` are as for :func:`omni.quantization.plans.choose`,
    ``six_or_four`` as for :func:`omni.quantization.formats.encode`.
    """
    scheme, where = find_scheme(folder), str(folder)
    family, config = read_folder(folder)
    base, rules = base_folder(folder), family.rules(config)
    entries, held = canonical(_entries(folder, base, family), scheme, where)
    with torch.device("meta"):
        model = Omni(config)
    found, given = make_places(model, entries, held, rules, where), {}
    if quantize is not None:
        if found:
            raise CheckpointError(f"{where} is quantised already; quantize={quantize!r} is for one that is not")
        formats = choose({name: t.shape for name, t in model.state_dict().items()}, quantize, keep, also)
        own = {"device": device, "where": where, "six_or_four": six_or_four}
        entries, given = quantise_entries(model, entries, rules, formats, **own)
    load_weights(model, entries, rules, device=device, dtype=dtype, where=where, given=given)
    settle(model, found)
    if scheme is not None and scheme.kv_cache:
        model.cache_format = replace(model.cache_format, kv="fp8")
    model.tokenizer, model.folder = _tokenizer(folder) or (_tokenizer(base) if base else None), folder
    model.config = _with_placeholders(config, model.tokenizer)
    return model.eval()


def find_scheme(folder: Path) -> Scheme | None:
    """What a folder, or else its base, says of its low precision; None where it is stored high."""
    for place in filter(None, (folder, base_folder(folder))):
        extra = place / "hf_quant_config.json"
        scheme = read_scheme(_read_plain(place), read_json(extra) if extra.exists() else None, str(place))
        if scheme is not None:
            return scheme
    return None


def stored(folder: Path) -> dict[str, int]:
    """Bytes of a checkpoint's weights, those of its base included, by what they are stored in."""
    family, _ = read_folder(folder)
    entries, held = canonical(_entries(folder, base_folder(folder), family), find_scheme(folder), str(folder))
    found: dict[str, int] = {}
    for name, entry in entries.items():
        own = held.get(split_part(name)[0])
        kind = own.format.name if own else str(entry.dtype).removeprefix("torch.")
        found[kind] = found.get(kind, 0) + entry.nbytes
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _entries(folder: Path, base: Path | None, family: Family) -> dict[str, Entry]:
    own = find_parts(folder, family)
    return own if base is None else merged(find_parts(base, family), own)


def base_folder(folder: Path) -> Path | None:
    """The folder beside ``folder`` that holds what it did not change; None where it is whole."""
    return base_of(folder, _read_plain(folder))


def _with_placeholders(config: OmniConfig, tokenizer: Any) -> OmniConfig:
    """Placeholders that config.json does not name have their ids by name, from the vocabulary."""
    encoders = {"image": config.vision, "sound": config.sound}
    missing = [kind for kind, part in encoders.items() if part is not None and kind not in config.special_tokens]
    found = {kind: tokenizer.special[kind] for kind in missing if tokenizer and kind in tokenizer.special}
    return replace(config, special_tokens={**config.special_tokens, **found}) if found else config


def _folder_with_weights(name_or_path: str | os.PathLike) -> Path:
    """The folder, or an error that knows the presets."""
    name = str(name_or_path)
    known = presets().get(name)
    if known and not Path(name).is_dir():
        raise ModelNotFound(f"{name} is a preset: sizes without weights. Load {known.weights!r} for its weights")
    try:
        return find_folder(name_or_path)
    except ModelNotFound as error:
        names = [*shipped(), *presets(), *(p.weights for p in presets().values())]
        raise ModelNotFound(f"{error}{_close(name, names)}") from None


def find_parts(folder: Path, family: Family) -> dict[str, Entry]:
    """Tensors of all components that a folder has, under the family's prefixes. One component alone will do."""
    parts = {part: prefix for part, prefix in family.parts.items() if (folder / part).is_dir()}
    places = {inside(folder, part) if part else folder: prefix for part, prefix in parts.items()}
    there = {place: prefix for place, prefix in places.items() if any(place.glob("*.safetensors*"))}
    entries: dict[str, Entry] = {}
    for place, prefix in (there or {folder: ""}).items():
        found = {prefix + name: entry for name, entry in find_tensors(place).items()}
        # An index at the root may list the tensors of a component's own files.
        twice = sorted(n for n in entries.keys() & found.keys() if not entries[n].file.samefile(found[n].file))
        if twice:
            raise CheckpointError(f"{folder}: {', '.join(twice[:3])} stand in two files, of two components")
        entries.update(found)
    return entries


def pick_device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: {str(error).splitlines()[0]}") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for; this machine has no CUDA device")
    return found


def pick_dtype(dtype: Any) -> torch.dtype | None:
    """None for ``"auto"``."""
    if dtype is None or dtype == "auto":
        return None
    found = dtype if isinstance(dtype, torch.dtype) else DTYPES.get(str(dtype))
    if found not in DTYPES.values():
        raise ValueError(f"unknown dtype {dtype!r}; known: auto, {', '.join(DTYPES)}")
    return found


def compute_dtype(folder: Path) -> torch.dtype | None:
    """What the checkpoint asks to be computed in, where that is not what it is stored in."""
    return pick_dtype(_read_plain(folder).get("compute_dtype"))


def _tokenizer(folder: Path) -> Any:
    places = [p for p in (folder, folder / "text_tokenizer") if any((p / name).exists() for name in TOKENIZERS)]
    if not places:
        return None
    from omni.tokenizers.text import load_tokenizer

    return load_tokenizer(places[0])


def save(
    model: Omni,
    folder: str | os.PathLike,
    *,
    family: str = "omni",
    dtype: Any = "auto",
    compute_dtype: Any = "auto",
    shard_bytes: int = 5 * 10**9,
    base: str | None = None,
) -> None:
    """Write ``model`` in a family's layout: config.json, generation_config.json, and safetensors under its names.

    ``compute_dtype`` (our own layout only) is what ``load`` takes where the caller leaves it the choice: bfloat16
    halves a file, but a CPU multiplies float32 many times faster.

    ``base`` (our own layout only) names a folder beside this one: only what differs from it is written, and ``load``
    takes the rest, the tokenizer included, from there.
    """
    if family not in families():
        raise ConfigError(f"unknown family {family!r}; known: {', '.join(sorted(families()))}")
    if base is not None and family != "omni":
        raise ConfigError(f"base belongs to our own layout; {family!r} has no place for it")
    chosen, folder, wanted = families()[family], Path(folder), pick_dtype(dtype)
    plain, rules = chosen.from_config(model.config), chosen.rules(model.config)
    schemes = schemes_of(model, rules, model.cache_format.kv == "fp8", __version__)
    computed = pick_dtype(compute_dtype)
    if computed is not None:
        if family != "omni":
            raise ConfigError(f"compute_dtype belongs to our own layout; {family!r} has no place for it")
        plain["compute_dtype"] = str(computed).removeprefix("torch.")
    state = model.state_dict()
    if base is not None:
        plain["base"] = base
        state = changed(state, load_folder(base_of(folder, plain)).state_dict(), wanted)
    folder.mkdir(parents=True, exist_ok=True)
    if family != "omni":
        plain["dtype"] = str(wanted or model.dtype).removeprefix("torch.")
        write_json(folder / "generation_config.json", _generation(model.config))
    if chosen.write_media is not None:
        for name, content in chosen.write_media(model.config).items():
            write_json(folder / name, content)
    save_weights(state, folder, rules, shard_bytes=shard_bytes, dtype=wanted, stem=chosen.stem)
    if schemes is None:
        (folder / "hf_quant_config.json").unlink(missing_ok=True)  # of an older checkpoint
    else:
        plain["quantization_config"] = schemes[0]
        write_json(folder / "hf_quant_config.json", schemes[1])
    write_json(folder / "config.json", plain)


def _generation(config: OmniConfig) -> dict[str, Any]:
    """generation_config.json as transformers reads it."""
    special = {key: config.special_tokens[ours] for key, ours in SPECIAL.items() if ours in config.special_tokens}
    greedy = config.sampling.get("temperature") == 0
    sampling = {"do_sample": False} if greedy else {"do_sample": True, **config.sampling} if config.sampling else {}
    return {**special, **sampling}


__all__ = [
    "CheckpointError",
    "Family",
    "ModelNotFound",
    "Preset",
    "base_folder",
    "compute_dtype",
    "families",
    "find_config",
    "find_preset",
    "find_scheme",
    "load",
    "load_folder",
    "preset",
    "presets",
    "read_folder",
    "save",
    "stored",
]
