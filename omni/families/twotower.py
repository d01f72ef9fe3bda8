"""Nemotron-Labs-TwoTower: a Nemotron 3 Nano that is frozen, and a second one that denoises tokens behind it.

    context_tower.*, context_lm_head.weight      context.*, embed, head
    denoiser_tower.*, lm_head.weight             denoiser.*, tokens.embed, tokens.head
    t_embedder.mlp.{0,2}, t_block.1              denoiser.time.embedder, denoiser.time.project
    scale_shift_tables.{i}                       denoiser.time.tables[i]: shift, scale and gate of layer i

Both towers have the names of :mod:`omni.families.nemotron_h`, and config.json is that of one of them under another
architecture; the sizes of blocks and the mask are arguments of the published code, with these defaults. Source:
``reference`` generation_and_compression, sections A.1 to A.3.
"""

from typing import Any

from omni.config import ConfigError, OmniConfig, TimeConfig, TokenDiffusionConfig, TowerConfig, replace
from omni.families import nemotron_h
from omni.families.base import Family, Preset
from omni.families.nemotron_h_sizes import NANO_3_30B
from omni.families.reader import Reader
from omni.rules import Rename, Rule, Stack

ARCHITECTURE = nemotron_h.TWO_TOWERS
MASK = 3
"""Id of the mask; the vocabulary has no token of that meaning, and calls this one otherwise."""

KEYS = {"block_size": "block_size", "steps_per_block": "steps", "confidence_threshold": "threshold"}
"""Names that the published code has for what :class:`TokenDiffusionConfig` holds."""


def _denoiser(context: TowerConfig) -> TowerConfig:
    return replace(context, time=TimeConfig(mode="adaln"))


def with_denoiser(config: OmniConfig, diffusion: TokenDiffusionConfig, mask: int = MASK) -> OmniConfig:
    """A model of one tower, and a second like it that denoises tokens."""
    special = {**config.special_tokens, "mask": mask}
    return replace(config, denoiser=_denoiser(config.context), diffusion=diffusion, special_tokens=special)


def to_config(plain: dict[str, Any]) -> OmniConfig:
    """ConfigError names what is not supported."""
    read = Reader(plain)
    mask = read.integer("mask_token_id", default=MASK)
    given = {ours: read.take(theirs, default=None) for theirs, ours in KEYS.items()}
    config = nemotron_h.to_config({key: value for key, value in plain.items() if key not in read.taken})
    if config.tie_embeddings or config.mtp is not None:
        raise ConfigError("config.json: a two-tower model has heads of its own, and no block that predicts further")
    try:
        diffusion = TokenDiffusionConfig(**{name: value for name, value in given.items() if value is not None})
    except TypeError as error:
        raise ConfigError(f"config.json: {', '.join(KEYS)} must be numbers: {error}") from None
    return with_denoiser(config, diffusion, mask)


def from_config(config: OmniConfig) -> dict[str, Any]:
    """ConfigError where this layout has no word for a part."""
    if config.diffusion is None or config.denoiser != _denoiser(config.context):
        raise ConfigError(
            "the twotower layout holds a denoiser of tokens that is like the context tower, with adaLN's time; "
            "use the family 'omni'"
        )
    if config.tie_embeddings or config.mtp is not None:
        raise ConfigError("the twotower layout has no place for tied embeddings or a block that predicts further")
    plain = nemotron_h.from_config(replace(config, denoiser=None, diffusion=None))
    plain["architectures"] = [ARCHITECTURE]
    plain["mask_token_id"] = config.special_tokens["mask"]
    return plain | {theirs: getattr(config.diffusion, ours) for theirs, ours in KEYS.items()}


def rules(config: OmniConfig) -> tuple[Rule, ...]:
    time = {"t_embedder.mlp.0": "embedder.mlp.0", "t_embedder.mlp.2": "embedder.mlp.2", "t_block.1": "project"}
    return (
        *_tower("context", "embed", "head", "context_lm_head"),
        *_tower("denoiser", "tokens.embed", "tokens.head", "lm_head"),
        *(Rename(f"{a}.{x}", f"denoiser.time.{b}.{x}") for a, b in time.items() for x in ("weight", "bias")),
        Stack("scale_shift_tables.{e}", "denoiser.time.tables"),
    )


def _tower(name: str, embed: str, head: str, published_head: str) -> list[Rule]:
    return [
        Rename(f"{name}_tower.embeddings.weight", f"{embed}.weight"),
        *nemotron_h.layer_rules(f"{name}_tower.layers.{{i}}.", f"{name}.blocks.{{i}}."),
        Rename(f"{name}_tower.norm_f.weight", f"{name}.norm.weight"),
        Rename(f"{published_head}.weight", f"{head}.weight"),
    ]


def matches(plain: dict[str, Any]) -> bool:
    return ARCHITECTURE in (plain.get("architectures") or [])


FAMILY = Family(name="twotower", matches=matches, to_config=to_config, from_config=from_config, rules=rules)

PRESETS = {
    "nemotron-labs-twotower-30b": Preset(
        with_denoiser(NANO_3_30B, TokenDiffusionConfig()), "nvidia/Nemotron-Labs-TwoTower-30B-A3B-Base-BF16"
    ),
}
