"""The systems of the study of architectures, and what makes them equal.

    M F M * F M F, Mamba-2 and one attention, and F is
        dense         one MLP, as wide as makes the parameters that a token passes through those of the MoE
        dense-total   one MLP, as wide as makes all parameters those of the MoE
        moe           32 experts, 4 a token, and a shared one
        latent-2      experts in half the width, about twice as many, of which about twice as many are chosen
        latent-4      in a quarter of it, and about four times as many: the published ratio
    * - * - * - * -   a transformer
        attention     with rotary positions; its MLPs as wide as makes its parameters those of "dense"

The weights of the chosen experts sum to sqrt(k), about as published (2.5 where k is 6, 5 where it is 22): what k
experts add up to is then as large whatever k is. The routers' biases move ten times faster than in the published runs,
which have thousands of times as many steps.

Only the MoE's sizes are chosen. The others follow from counts of parameters, and :func:`variants` says how close they
come: sizes are whole numbers. LatentMoE's rule, arXiv 2601.18089: what experts save by working in a width l < d is
spent on d / l times as many of them and as many more a token, less what the two projections and the router take.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from omni.config import (
    AttentionConfig,
    MambaConfig,
    MLPConfig,
    MoEConfig,
    OmniConfig,
    RotaryConfig,
    TowerConfig,
    replace,
)
from omni.info import parts_of
from omni.model import Omni
from omni.tokenizers.bytes import VOCAB_SIZE

HYBRID, TRANSFORMER = "MFM*FMF", "*F*F*F*F"
D_MODEL = 96
MAMBA = MambaConfig(n_heads=4, head_dim=32, d_state=16, n_groups=2, chunk_size=64)
ATTENTION = AttentionConfig(n_heads=4, n_kv_heads=2, head_dim=32)
MOE = MoEConfig(n_experts=32, n_active_experts=4, d_ff=64, d_shared=96, scale=2.0, bias_update=1e-2, balance_loss=1e-3)
RATIOS = (2, 4)
"""Widths of the model over those of the latent experts."""
NAMES = ("dense", "dense-total", "moe", *(f"latent-{ratio}" for ratio in RATIOS), "attention")


@dataclass(frozen=True)
class Variant:
    """One system, and the one that its parameters are made equal to."""

    name: str
    config: OmniConfig
    equal_to: str | None = None
    total: int = 0
    active: int = 0  # of all layers, embeddings and head included


@cache
def variants() -> dict[str, Variant]:
    """Every system by name, the sizes worked out."""
    moe = _system(HYBRID, moe=MOE)
    total, active = counts(moe)
    dense = fitted(_dense(HYBRID), lambda c: counts(c)[1], active)
    found = {
        "dense": (dense, "moe"),
        "dense-total": (fitted(_dense(HYBRID), lambda c: counts(c)[0], total), "moe"),
        "moe": (moe, None),
        **{f"latent-{ratio}": (latent(moe, ratio), "moe") for ratio in RATIOS},
        "attention": (fitted(_dense(TRANSFORMER, rotary=True), lambda c: counts(c)[0], counts(dense)[0]), "dense"),
    }
    return {name: Variant(name, config, other, *counts(config)) for name, (config, other) in found.items()}


def counts(config: OmniConfig) -> tuple[int, int]:
    """Parameters of a system, and those that one token passes through."""
    with torch.device("meta"):
        parts = parts_of(config, Omni(config).state_dict())
    return sum(part.parameters for part in parts), sum(part.active for part in parts)


def fitted(make: Callable[[int], OmniConfig], measure: Callable[[OmniConfig], int], wanted: int) -> OmniConfig:
    """The system whose ``measure``, which grows evenly with the size that ``make`` takes, is closest to ``wanted``.

    ValueError where even the smallest size is too large.
    """
    one, two = (measure(make(size)) for size in (1, 2))
    size = 1 + round((wanted - one) / (two - one))
    if size < 1:
        raise ValueError(f"no size comes to {wanted:,} parameters; the smallest has {one:,}")
    return make(size)


def latent(moe: OmniConfig, ratio: int) -> OmniConfig:
    """The LatentMoE of ``moe``'s total and active parameters whose experts work in 1 / ``ratio`` of the width.

    As many experts as the total leaves room for and as many a token as the active leaves, then the shared expert makes
    up for what whole experts leave over. Each size that is set moves the others a little, so they are set twice.
    """
    total, active = counts(moe)
    tower, old = moe.context, moe.context.moe
    start = replace(
        old,
        d_latent=tower.d_model // ratio,
        n_experts=old.n_experts * ratio,
        n_active_experts=old.n_active_experts * ratio,
    )
    config = replace(moe, context=replace(tower, moe=start))
    for _ in range(2):
        config = fitted(_set(config, "n_experts"), lambda c: counts(c)[0], total)
        config = fitted(_set(config, "n_active_experts"), lambda c: counts(c)[1], active)
        config = fitted(_set(config, "d_shared"), lambda c: counts(c)[1], active)
    return replace(config, context=replace(config.context, moe=replace(config.context.moe, scale=_scale(config))))


def _scale(config: OmniConfig) -> float:
    return config.context.moe.n_active_experts**0.5


def _set(config: OmniConfig, field: str) -> Callable[[int], OmniConfig]:
    def make(size: int) -> OmniConfig:
        sizes = {field: size}
        if field == "n_experts":  # counted with one expert, where more are chosen
            sizes["n_active_experts"] = min(size, config.context.moe.n_active_experts)
        moe = replace(config.context.moe, **sizes)
        return replace(config, context=replace(config.context, moe=moe))

    return make


def _dense(pattern: str, rotary: bool = False) -> Callable[[int], OmniConfig]:
    return lambda d_ff: _system(pattern, rotary=rotary, mlp=MLPConfig(d_ff=d_ff))


def _system(pattern: str, rotary: bool = False, **feed_forward: MLPConfig | MoEConfig) -> OmniConfig:
    """A byte-level language model; F in the pattern is the feed-forward layer that is given."""
    letter = "E" if "moe" in feed_forward else "-"
    tower = TowerConfig(
        pattern=pattern.replace("F", letter),
        d_model=D_MODEL,
        mamba=MAMBA if "M" in pattern else None,
        attention=replace(ATTENTION, rotary=RotaryConfig()) if rotary else ATTENTION,
        **feed_forward,
    )
    special = {"bos": 1, "eos": [11, 2], "pad": 21}
    return OmniConfig(vocab_size=VOCAB_SIZE, context=tower, max_positions=32_768, special_tokens=special)


__all__ = ["NAMES", "Variant", "counts", "fitted", "latent", "variants"]
