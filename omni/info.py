"""What a model is made of and what it needs, from its sizes alone: nothing is downloaded and nothing allocated.

describe("nano-9b-v2", context=131072, memory="22GiB")  ->  Description
table(description)                                      ->  text for a terminal
"""

import io
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from omni.cache import cache_bytes
from omni.config import LETTERS, OmniConfig, TowerConfig
from omni.families import find_config, find_preset, stored
from omni.families.locate import find_folder
from omni.model import Omni

CHUNK = 2048  # tokens of a prompt that are read at once (as the pipelines do)
RESERVE = 1 << 30  # bytes: a GPU's context, its libraries' buffers, what the allocator cannot use
STATE_BYTES = 4  # the recurrent state is float32 whatever the weights are

BITS = {"float32": 32.0, "bfloat16": 16.0, "float16": 16.0, "fp8": 8.0, "nvfp4": 4.5}
"""Bits an element; 4.5 are four and, for every 16 elements, the eight of their scale."""
ALIASES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "auto": "bfloat16"}
UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
UNITS |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


@dataclass(frozen=True)
class Part:
    """Parameters of one kind of layer; ``active`` are those that one token uses."""

    name: str
    parameters: int
    active: int


@dataclass(frozen=True)
class State:
    """Bytes that a sequence keeps while it grows."""

    kv_per_token: int
    conv_per_sequence: int
    ssm_per_sequence: int


@dataclass(frozen=True)
class Estimate:
    """Bytes on the device for ``batch`` sequences of ``context`` tokens."""

    context: int
    batch: int
    dtype: str
    weights: int
    cache: int
    workspace: int
    reserve: int
    total: int
    memory: int | None = None
    fits: bool | None = None
    longest_context: int | None = None  # at this batch, in this memory; 0 where not even the weights fit


@dataclass(frozen=True)
class Description:
    """All that ``omni info`` shows."""

    name: str
    weights: str
    pattern: str
    layers: dict[str, int]
    parts: tuple[Part, ...]
    parameters: int
    active: int
    active_without_vocabulary: int
    storage: dict[str, int]
    stored: dict[str, int]  # bytes of a checkpoint's files by format; empty of a preset, which is sizes alone
    state: State
    estimate: Estimate
    defaults: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)


def describe(
    name: str, *, context: int = 4096, batch: int = 1, dtype: str = "bfloat16", memory: str | int | None = None
) -> Description:
    """Describe a preset, a local folder or a hub id.

    ``memory`` is bytes or a size such as ``"22GiB"``; with it the estimate says what fits. The workspace is what one
    prompt chunk of :data:`CHUNK` tokens a sequence needs in its widest layer, attention being a fused kernel that
    holds no matrix of scores.
    """
    config = find_config(name)
    if context < 1 or batch < 1:
        raise ValueError(f"context and batch must be positive, not {context} and {batch}")
    with torch.device("meta"):
        state = Omni(config).state_dict()
    parts = parts_of(config, state)
    main = [part for part in parts if part.name != "prediction block"]
    active = sum(part.active for part in main)
    vocabulary = sum(part.active for part in main if part.name in ("embeddings", "head"))
    preset = find_preset(name)
    return Description(
        name=name,
        weights=preset.weights if preset else name,
        pattern=config.context.pattern,
        layers={kind: config.context.pattern.count(letter) for letter, kind in LETTERS.items()},
        parts=parts,
        parameters=sum(part.parameters for part in parts),
        active=active,
        active_without_vocabulary=active - vocabulary,
        storage={format: weight_bytes(state, format) for format in BITS},
        stored={} if preset else _stored(find_folder(name)),
        state=sequence_state(config),
        estimate=estimate(config, state, context, batch, dtype, parse_size(memory)),
        defaults=_defaults(config),
    )


def _stored(folder: Path) -> dict[str, int]:
    """Of a folder that has weights beside its configuration."""
    return stored(folder) if any(folder.rglob("*.safetensors")) else {}


# -- parameters ------------------------------------------------------------------------------------------------------


def parts_of(config: OmniConfig, state: dict[str, Tensor]) -> tuple[Part, ...]:
    """Parameters by component, in the order of the model."""
    totals: dict[str, list[int]] = {}
    for name, tensor in state.items():
        kind = _component(config, name)
        total = totals.setdefault(kind, [0, 0])
        total[0] += tensor.numel()
        total[1] += _active(config, name, tensor)
    return tuple(Part(kind, *numbers) for kind, numbers in totals.items())


def _component(config: OmniConfig, name: str) -> str:
    """The row that a tensor is counted in. A layer's norm goes with its mixer."""
    top, _, rest = name.partition(".")
    if top in ("vision", "projector"):
        return "vision"
    if top in ("denoiser", "tokens", "latents", "sound_latents", "actions"):
        return "denoiser"
    if top != "context":
        return {"embed": "embeddings", "mtp": "prediction block"}.get(top, top)
    if not rest.startswith("blocks."):
        return "final norm"
    _, index, place = rest.split(".", 2)
    kind = LETTERS[config.context.pattern[int(index)]]
    if kind != "moe":
        return kind
    for part, row in (
        ("mixer.experts", "routed experts"),
        ("mixer.shared", "shared experts"),
        ("mixer.latent", "latent projections"),
    ):
        if place.startswith(part):
            return row
    return "router"


def _active(config: OmniConfig, name: str, tensor: Tensor) -> int:
    if ".mixer.experts." not in name:
        return tensor.numel()
    tower = config.denoiser if name.startswith("denoiser.") else config.context
    return tensor.numel() // tower.moe.n_experts * tower.moe.n_active_experts


def weight_bytes(state: dict[str, Tensor], format: str) -> int:
    """Bytes of all weights in one format. The routers' biases are float32 in every published file."""
    exact = sum(t.numel() for name, t in state.items() if name.endswith("router.bias"))
    rest = sum(t.numel() for t in state.values()) - exact
    return 4 * exact + int(rest * BITS[format] / 8)


# -- memory ----------------------------------------------------------------------------------------------------------


def sequence_state(config: OmniConfig, element_bytes: int = 2) -> State:
    """What one sequence keeps in the context tower: keys and values grow, the rest does not."""
    tower = config.context
    mamba, layers = tower.mamba, tower.pattern.count("M")
    conv = ssm = 0
    if layers:
        conv = layers * (mamba.d_conv - 1) * mamba.conv_dim * element_bytes
        ssm = layers * mamba.n_heads * mamba.head_dim * mamba.d_state * STATE_BYTES
    empty, one = (cache_bytes(tower, 1, tokens, element_bytes) for tokens in (0, 1))
    return State(one - empty, conv, ssm)


def estimate(
    config: OmniConfig, state: dict[str, Tensor], context: int, batch: int, dtype: str, memory: int | None = None
) -> Estimate:
    """Weights, caches, workspace and reserve; with ``memory``, whether that fits and how long a context would."""
    format = ALIASES.get(dtype, dtype)
    if format not in BITS:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(BITS)}")
    element = 4 if format == "float32" else 2  # activations and caches of quantised weights are 16 bit
    weights = weight_bytes(state, format)

    def total(tokens: int) -> tuple[int, int]:
        cache = cache_bytes(config.context, batch, tokens, element)
        return cache, workspace_bytes(config, batch * min(tokens, CHUNK), element)

    cache, workspace = total(context)
    whole = weights + cache + workspace + RESERVE
    found = Estimate(context, batch, format, weights, cache, workspace, RESERVE, whole)
    if memory is None:
        return found
    longest = _longest(lambda tokens: weights + RESERVE + sum(total(tokens)) <= memory, config.max_positions)
    return Estimate(**{**asdict(found), "memory": memory, "fits": whole <= memory, "longest_context": longest})


def _longest(fits: Any, limit: int) -> int:
    """The largest number up to ``limit`` that ``fits``; 0 where none does."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def workspace_bytes(config: OmniConfig, tokens: int, element: int) -> int:
    """Activations of the widest layer while ``tokens`` tokens pass it, the residual stream, and one row of logits."""
    tower = config.context
    widest = max(_mixer_bytes(tower, letter, tokens, element) for letter in set(tower.pattern))
    stream = tokens * tower.d_model * (3 * element + 2 * 4)  # residual, norm and its float32 intermediates
    return stream + widest + config.vocab_size * (element + 4)


def _mixer_bytes(tower: TowerConfig, letter: str, n: int, e: int) -> int:
    """Tensors alive at once in one mixer over n tokens, e bytes an element; sums are float32."""
    match letter:
        case "M":
            m = tower.mamba
            projected = n * (m.d_in_proj + 2 * m.conv_dim) * e
            scan = 4 * n * (2 * m.d_inner + 2 * m.n_groups * m.d_state + 3 * m.n_heads)
            tiles = 4 * m.n_heads * (3 * m.chunk_size**2 + 2 * m.head_dim * m.d_state)
            return projected + scan + tiles + n * m.d_inner * (2 * 4 + 2 * e)
        case "*":
            a = tower.attention
            return n * 4 * (a.n_heads + a.n_kv_heads) * a.head_dim * e
        case "-":
            return 3 * n * tower.mlp.d_ff * e
        case _:
            m = tower.moe
            width, k = m.d_latent or tower.d_model, m.n_active_experts
            routed = n * k * width * (2 * e + 4) + n * width * (2 * e + 4) + 2 * n * m.d_ff * e
            return routed + n * (3 * m.d_shared * e + 4 * 4 * m.n_experts)


def parse_size(text: str | int | None) -> int | None:
    """``"22GiB"``, ``"24 GB"`` or bytes -> bytes."""
    if text is None or isinstance(text, int):
        return text
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?b?)\s*", text.lower())
    unit = found[2] if found else ""
    unit = unit if unit.endswith("b") or not unit else f"{unit}b"
    if not found or (unit and unit not in UNITS):
        raise ValueError(f"{text!r} is not a size; write bytes, or a number with MB, GB, MiB or GiB")
    return int(float(found[1]) * UNITS.get(unit, 1))


def _defaults(config: OmniConfig) -> dict[str, Any]:
    mamba = config.context.mamba
    return {
        "max_positions": config.max_positions,
        "vocabulary": config.vocab_size,
        "scan_chunk": mamba.chunk_size if mamba else None,
        "special_tokens": dict(config.special_tokens),
        "sampling": dict(config.sampling),
    }


# -- printing --------------------------------------------------------------------------------------------------------


def table(description: Description, width: int = 100) -> str:
    """The description as text."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    d = description
    console.print(f"{d.name}  (weights: {d.weights})", highlight=False, soft_wrap=True)
    kinds = ", ".join(f"{count} {kind}" for kind, count in d.layers.items() if count)
    console.print(f"{len(d.pattern)} layers: {kinds}", highlight=False)
    console.print(d.pattern + "\n", highlight=False, markup=False)
    console.print(_parts_table(d))
    console.print(_memory_table(d))
    for key, value in d.defaults.items():
        console.print(f"{key.replace('_', ' ')}: {_plain(value)}", highlight=False, markup=False)
    return console.file.getvalue().rstrip()


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or "none"
    return str(value)


def _parts_table(d: Description) -> Table:
    rows = Table("part", box=None, title_justify="left")
    rows.add_column("parameters", justify="right")
    rows.add_column("a token uses", justify="right")
    for part in d.parts:
        rows.add_row(part.name, f"{part.parameters:,}", f"{part.active:,}")
    rows.add_row("all", f"{d.parameters:,}", f"{d.active:,}")
    rows.add_row("without vocabulary", "", f"{d.active_without_vocabulary:,}")
    return rows


def _memory_table(d: Description) -> Table:
    e = d.estimate
    rows = Table("", box=None)
    rows.add_column("size", justify="right")
    for format, size in d.stored.items():
        rows.add_row(f"stored in {format}", readable(size))
    if d.stored:
        rows.add_row("stored together", readable(sum(d.stored.values())))
    for format, size in d.storage.items():
        rows.add_row(f"weights in {format}", readable(size))
    rows.add_row("keys and values, a token", readable(d.state.kv_per_token))
    rows.add_row("convolution state, a sequence", readable(d.state.conv_per_sequence))
    rows.add_row("recurrent state, a sequence", readable(d.state.ssm_per_sequence))
    rows.add_row("")
    rows.add_row(f"{e.batch} x {e.context:,} tokens in {e.dtype}")
    rows.add_row("  weights", readable(e.weights))
    rows.add_row("  cache", readable(e.cache))
    rows.add_row(f"  workspace (prompts in chunks of {CHUNK})", readable(e.workspace))
    rows.add_row("  reserve (context, libraries, allocator)", readable(e.reserve))
    rows.add_row("  together", readable(e.total))
    if e.memory is not None:
        answer = "fits" if e.fits else "does not fit"
        rows.add_row(f"  in {readable(e.memory)}: {answer}; longest context", f"{e.longest_context:,}")
    return rows


def readable(size: int) -> str:
    """Bytes for people: binary units from KiB on."""
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} B" if unit == "B" else f"{value:.2f} {unit}"
