"""Our speed and memory beside the reference implementation's: same weights, same inputs, one process, in turns.

    weights   a random Nemotron-H of the reference implementation, saved, and loaded by both sides
    prefill   a prompt into an empty cache, logits of the next token only
    decode    one further token a row, from a short prompt
    memory    highest resident size during a prefill, each side in a process of its own

Beside every time stands its floor: the operations that it needs over the machine's measured rate of matrix products,
or the bytes that must be read over its measured bandwidth, whichever is longer.
"""

import gc
import math
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omni import families
from omni.bench_tools import (
    AGREEMENT,
    BenchError,
    Rates,
    Report,
    Row,
    child_peak,
    in_turns,
    measure_rates,
    peak_bytes,
    row,
    table,
    transformers,
)
from omni.config import OmniConfig
from omni.families import nemotron_h
from omni.kernels import attention, conv, experts, norm, scan
from omni.model import Omni

PATTERN = "MEM*EMEMEM*EME-"
SIZES: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "mamba_num_heads": 32,
    "mamba_head_dim": 64,
    "ssm_state_size": 128,
    "n_groups": 8,
    "chunk_size": 128,
    "intermediate_size": 2048,
    "n_routed_experts": 32,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 512,
    "moe_shared_expert_intermediate_size": 1024,
    "max_position_embeddings": 16_384,
}
"""Every kind of layer of the family, small enough for the memory of a laptop."""

DECODE_PROMPT = 32  # tokens before the first timed step
DECODE_STEPS = 16  # of one timed turn


def bench_language(*, peer: bool = True, quick: bool = False, seed: int = 0, threads: int = 2) -> Report:
    """Measure prefill, decode and memory. ``quick``: short prompt only, fewer turns. ``peer`` False: ours alone.

    Takes minutes. Raises :class:`BenchError` where the two sides' logits differ.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    config = nemotron_h.to_config(_published())
    lengths = (1024,) if quick else (1024, 8192)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        _write_weights(Path(folder), config, peer)
        sides: list[Side] = [Ours(folder)] + ([Theirs(folder)] if peer else [])
        disagreement = _disagreement(sides, config.vocab_size) if peer else None
        rates = measure_rates(repeats=3 if quick else 7)
        rows = [_prefill_row(sides, n, config, rates, quick) for n in lengths]
        rows += [_decode_row(sides, b, config, rates, quick) for b in (1, 8)]
        shares = _where_time_goes(sides[0], lengths[0], config)
        names = [type(side).__name__.lower() for side in sides]
        sides.clear()
        gc.collect()
        rows.append(_memory_row(folder, names, max(lengths), threads, config))
    settings = {
        "pattern": PATTERN,
        **SIZES,
        "parameters": parameters(config),
        "threads": threads,
        "seed": seed,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return Report(settings, rates, rows, shares, disagreement)


# -- the two sides -----------------------------------------------------------------------------------------------------


class Ours:
    def __init__(self, folder: str) -> None:
        self.model = families.load(folder, device="cpu", dtype="float32")

    def prefill(self, ids: Tensor) -> tuple[Tensor, Any]:
        """ids (b, n) -> next-token logits (b, v) and the filled cache."""
        cache = self.model.new_cache(ids.shape[0], ids.shape[1] + 1)
        return self.model.logits(ids, cache, last_only=True)[:, -1], cache

    def step(self, ids: Tensor, cache: Any) -> Tensor:
        """ids (b, 1) -> next-token logits (b, v); the cache moves on."""
        return self.model.logits(ids, cache, last_only=True)[:, -1]


class Theirs:
    def __init__(self, folder: str) -> None:
        library = transformers()
        self.model = library.NemotronHForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for layer in self.model.model.layers:
            if hasattr(layer.mixer, "time_step_limit"):
                layer.mixer.time_step_limit = (0.0, math.inf)  # as published: no clamp of the step

    def prefill(self, ids: Tensor) -> tuple[Tensor, Any]:
        out = self.model(ids, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1], out.past_key_values

    def step(self, ids: Tensor, cache: Any) -> Tensor:
        return self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]


Side = Ours | Theirs


def _published() -> dict[str, Any]:
    """The sizes as a config.json says them."""
    return {**SIZES, "model_type": "nemotron_h", "hybrid_override_pattern": PATTERN}


def _write_weights(folder: Path, config: OmniConfig, peer: bool) -> None:
    """Random weights, drawn by the reference implementation where it takes part."""
    if not peer:
        families.save(Omni(config), folder, family="nemotron_h")
        return
    library = transformers()
    kinds = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
    theirs = library.NemotronHConfig(layers_block_type=[kinds[letter] for letter in PATTERN], **SIZES)
    library.NemotronHForCausalLM(theirs).save_pretrained(folder)


def _disagreement(sides: list[Side], vocab_size: int) -> float:
    """Of a prefill and of a step after it."""
    ids = torch.randint(vocab_size, (2, 65))
    worst = 0.0
    results = [
        (logits, side.step(ids[:, 64:], cache)) for side in sides for logits, cache in [side.prefill(ids[:, :64])]
    ]
    for ours, theirs in zip(*results, strict=True):
        worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
    if worst > AGREEMENT:
        raise BenchError(f"logits differ by {worst:.1e} of the largest; at most {AGREEMENT:.0e} is rounding")
    return worst


# -- times -------------------------------------------------------------------------------------------------------------


def _ids(b: int, n: int, config: OmniConfig) -> Tensor:
    return torch.randint(config.vocab_size, (b, n), generator=torch.Generator().manual_seed(b * n))


def _prefill_row(sides: list[Side], n: int, config: OmniConfig, rates: Rates, quick: bool) -> Row:
    ids = _ids(1, n, config)
    turns = 3 if quick or n > 2048 else 7
    name = f"prefill {n:,} tokens"
    measured = in_turns([lambda side=side: side.prefill(ids) for side in sides], turns, name)
    floor = max(prefill_operations(config, n) / rates.gflops, read_bytes(config, n) / rates.gbytes) / 1e9
    return row(name, "s", 1.0, measured, floor)


def _stepper(side: Side, b: int, config: OmniConfig) -> Callable[[], None]:
    """A function that decodes one turn of tokens further."""
    ids = _ids(b, DECODE_STEPS, config)
    _, cache = side.prefill(_ids(b, DECODE_PROMPT, config))

    def run() -> None:
        for i in range(DECODE_STEPS):
            side.step(ids[:, i : i + 1], cache)

    return run


def _decode_row(sides: list[Side], b: int, config: OmniConfig, rates: Rates, quick: bool) -> Row:
    turns = 3 if quick else 9
    name = f"decode, batch {b}"
    measured = in_turns([_stepper(side, b, config) for side in sides], turns, name)
    state = 2 * b * state_bytes(config)  # read and written
    floor = (read_bytes(config, b) + state) / rates.gbytes / 1e9
    return row(name, "ms a step", 1e3 / DECODE_STEPS, measured, floor and floor * DECODE_STEPS)


# -- floors ------------------------------------------------------------------------------------------------------------


def prefill_operations(config: OmniConfig, n: int) -> int:
    """Multiplications and additions of a prompt of ``n`` tokens with one prediction at its end.

    The scan counts as its recurrence, 4 operations a number of the state; attention as the pairs that see each other.
    Behind the last layer where tokens meet, the last one is enough.
    """
    c, tokens = config.context, n
    total = 2 * c.d_model * config.vocab_size
    for i, letter in enumerate(c.pattern):
        n = tokens if set(c.pattern[i:]) & set("M*") else 1
        if letter == "M":
            m = c.mamba
            each = 2 * c.d_model * (m.d_in_proj + m.d_inner) + 2 * m.d_conv * m.conv_dim
            total += n * (each + 4 * m.d_inner * m.d_state)
        elif letter == "*":
            a = c.attention
            total += n * 4 * c.d_model * (a.n_heads + a.n_kv_heads) * a.head_dim
            total += 4 * a.n_heads * a.head_dim * n * (n + 1) // 2
        elif letter == "-":
            total += n * 4 * c.d_model * c.mlp.d_ff
        else:
            e = c.moe
            total += n * (2 * c.d_model * e.n_experts + 4 * c.d_model * e.d_shared)
            total += n * 4 * e.n_active_experts * (e.d_latent or c.d_model) * e.d_ff
    return total


def read_bytes(config: OmniConfig, tokens: int) -> float:
    """Weights that a call of ``tokens`` tokens must read, with evenly chosen experts; float32."""
    c = config.context
    total = float(parameters(config) - config.vocab_size * c.d_model)  # of the embedding, only rows
    if c.moe is not None:
        e = c.moe
        unused = (1 - e.n_active_experts / e.n_experts) ** tokens
        total -= c.pattern.count("E") * unused * e.n_experts * 2 * (e.d_latent or c.d_model) * e.d_ff
    return 4 * total


def state_bytes(config: OmniConfig) -> int:
    """Recurrent states of one row."""
    m = config.context.mamba
    return 4 * config.context.pattern.count("M") * m.d_inner * m.d_state if m else 0


def parameters(config: OmniConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Omni(config).parameters())


# -- memory ------------------------------------------------------------------------------------------------------------


def _memory_row(folder: str, names: list[str], n: int, threads: int, config: OmniConfig) -> Row:
    measured = [
        [child_peak("omni.bench", [folder, str(n), str(threads), name], f"memory: prefill of {n} tokens by {name}")]
        for name in names
    ]
    return row(f"memory, prefill {n:,} tokens", "GiB", 2**-30, measured, 4 * parameters(config))


def _measure_memory(folder: str, n: str, threads: str, name: str) -> None:
    torch.set_num_threads(int(threads))
    side = {"ours": Ours, "theirs": Theirs}[name](folder)
    ids = torch.randint(side.model.config.vocab_size, (1, int(n)))
    with torch.inference_mode():
        print(peak_bytes(lambda: side.prefill(ids)))


# -- where our time goes -----------------------------------------------------------------------------------------------

TABLES = {
    "scan": (scan, ("SCAN_PATHS", "STEP_PATHS")),
    "convolution": (conv, ("CONV_PATHS", "STEP_PATHS")),
    "experts": (experts, ("EXPERT_PATHS",)),
    "attention": (attention, ("ATTENTION_PATHS",)),
    "norms": (norm, ("NORM_PATHS", "GATED_PATHS")),
}
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")


def _where_time_goes(side: Ours, n: int, config: OmniConfig) -> dict[str, dict[str, float]]:
    ids = _ids(1, n, config)
    return {
        f"prefill {n:,}": _shares(lambda: side.prefill(ids)),
        "decode, batch 1": _shares(_stepper(side, 1, config)),
    }


def _shares(run: Callable[[], Any]) -> dict[str, float]:
    """Part of the time that each kernel takes, other matrix products, and the rest; they sum to one."""
    with _labelled_kernels():
        run()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            run()
    spent = dict.fromkeys([*TABLES, "projections", "other"], 0.0)
    for event in profile.events():
        spent[_kind(event)] += event.self_cpu_time_total
    total = sum(spent.values())
    return {kind: value / total for kind, value in spent.items()}


def _kind(event: Any) -> str:
    """The kernel that the event ran in, or what it is itself."""
    parent = event
    while parent is not None:
        if parent.name.startswith("kernel:"):
            return parent.name.removeprefix("kernel:")
        parent = parent.cpu_parent
    return "projections" if event.name in PRODUCTS else "other"


@contextmanager
def _labelled_kernels() -> Iterator[None]:
    """Every path of every kernel runs under its label."""
    saved = [(module, name, getattr(module, name)) for module, names in TABLES.values() for name in names]
    labels = [label for label, (_, names) in TABLES.items() for _ in names]
    for label, (module, name, paths) in zip(labels, saved, strict=True):
        setattr(module, name, tuple(path._replace(run=_labelled(f"kernel:{label}", path.run)) for path in paths))
    try:
        yield
    finally:
        for module, name, paths in saved:
            setattr(module, name, paths)


def _labelled(label: str, run: Callable) -> Callable:
    def labelled(*args: Any) -> Any:
        with torch.profiler.record_function(label):
            return run(*args)

    return labelled


__all__ = ["BenchError", "Rates", "Report", "Row", "bench_language", "measure_rates", "table"]


if __name__ == "__main__":  # one side of a memory row, in a process of its own
    _measure_memory(*sys.argv[1:])
