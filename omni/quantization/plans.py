"""Which weights are quantised to what, by default and as asked for.

                                    fp8    nvfp4   mixed
    routed experts, dense MLPs      FP8    NVFP4   NVFP4
    shared experts                  FP8    NVFP4   FP8
    Mamba's in_proj and out_proj    FP8    NVFP4   FP8
    everything else                 high   high    high

High stay: queries, keys, values and outputs of attention, convolutions, routers, latent projections, embeddings, heads,
norms, time conditioning, the prediction block, encoders and what is before and behind the denoiser. These are the
published maps of Nemotron 3 Super and Ultra (``reference`` generation_and_compression, C.5).
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch

from omni.config import ConfigError
from omni.quantization.formats import FORMATS, Format

ROUTED, DENSE, SHARED, MAMBA = "routed", "dense", "shared", "mamba"
MAPS: dict[str, dict[str, str]] = {
    "fp8": dict.fromkeys((ROUTED, DENSE, SHARED, MAMBA), "fp8"),
    "nvfp4": dict.fromkeys((ROUTED, DENSE, SHARED, MAMBA), "nvfp4"),
    "mixed": {ROUTED: "nvfp4", DENSE: "nvfp4", SHARED: "fp8", MAMBA: "fp8"},
}
TOWERS = ("context.", "denoiser.")


def kind_of(name: str) -> str | None:
    """The kind of one of our tensors, as the table above has it; None for what stays high."""
    if not name.startswith(TOWERS):
        return None
    place = name.partition(".mixer.")[2]
    if place in ("experts.up_proj", "experts.down_proj"):
        return ROUTED
    if place.startswith("shared_experts.") and place.endswith(".weight"):
        return SHARED
    if place in ("up_proj.weight", "down_proj.weight", "gate_proj.weight"):
        return DENSE
    return MAMBA if place in ("in_proj.weight", "out_proj.weight") else None


def choose(
    shapes: Mapping[str, torch.Size], plan: str, keep: Iterable[str] = (), also: Iterable[str] = ()
) -> dict[str, Format]:
    """Our tensors that ``plan`` (a name of :data:`MAPS`) quantises, and their formats.

    ``keep``: globs of names that stay high; ``also``: of further linear layers, which get NVFP4 under "nvfp4" and FP8
    otherwise. What does not divide into a format's blocks stays high too.
    ConfigError where the plan is unknown, or a pattern fits nothing.
    """
    if plan not in MAPS:
        raise ConfigError(f"unknown low precision {plan!r}; known: {', '.join(MAPS)}")
    keep, also = tuple(keep), tuple(also)
    idle = [pattern for pattern in (*keep, *also) if not any(_fits(pattern, name) for name in shapes)]
    if idle:
        raise ConfigError(f"no weight of the model is called {', '.join(idle)}")
    found = {}
    for name, shape in shapes.items():
        if any(_fits(pattern, name) for pattern in keep):
            continue
        asked = name.endswith(".weight") and len(shape) == 2 and any(_fits(pattern, name) for pattern in also)
        kind = kind_of(name) or (SHARED if asked else None)
        format = FORMATS[MAPS[plan][kind]] if kind is not None else None
        if format is not None and format.fits(shape[-1]):
            found[name] = format
    return found


def _fits(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.weight")


__all__ = ["MAPS", "TOWERS", "choose", "kind_of"]
