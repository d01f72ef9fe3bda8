"""Sizes of every published Nemotron-H model, up to Nemotron 3.5 Lightning.

Source: ``reference`` language_family, sections 1 and 2. Parameter counts are checked against the published ones in
``tests/test_presets.py``.
"""

from typing import Any

from omni.config import (
    LETTERS,
    AttentionConfig,
    MambaConfig,
    MLPConfig,
    MoEConfig,
    MTPConfig,
    OmniConfig,
    TowerConfig,
    replace,
)
from omni.families.base import Preset


def derive(config: Any, **changes: Any) -> Any:
    """``replace`` that goes down: a dict changes fields of the part of that name."""
    nested = {k: derive(getattr(config, k), **v) for k, v in changes.items() if isinstance(v, dict) and _is_part(k)}
    return replace(config, **{**changes, **nested})


def _is_part(name: str) -> bool:
    return name in ("context", *LETTERS.values())


_PATTERN_8B = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"
_PATTERN_47B = (  # compressed from 56B: runs of "-" stay where a Mamba layer was removed
    "M-M-M-M-M-M-M-M-M*-M-M-M-M-M-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-M-M---MM---M-M*-M-M-M-M-M-"
)
_PATTERN_SUPER = "MEMEMEM*EMEMEMEM*EMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEM*EMEMEMEME"
_PATTERN_ULTRA = (
    "MEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
)

H_8B = OmniConfig(
    vocab_size=131_072,
    context=TowerConfig(
        pattern=_PATTERN_8B,
        d_model=4096,
        mamba=MambaConfig(n_heads=128, head_dim=64, chunk_size=256),
        attention=AttentionConfig(n_heads=32, n_kv_heads=8, head_dim=128),
        mlp=MLPConfig(d_ff=21_504),
    ),
    max_positions=8192,
    special_tokens={"bos": 1, "eos": 2, "pad": 0},
)
H_4B = derive(H_8B, context={"d_model": 3072, "mamba": {"n_heads": 112}, "mlp": {"d_ff": 12_288}})
H_56B = derive(
    H_8B,
    context={
        "pattern": "M-M-M-M*" + "-M-M-M-M-M*" * 9 + "-M-M-M-M-M-",
        "d_model": 8192,
        "mamba": {"n_heads": 256, "d_state": 256},
        "attention": {"n_heads": 64},
        "mlp": {"d_ff": 32_768},
    },
)
H_47B = derive(H_56B, context={"pattern": _PATTERN_47B, "mlp": {"d_ff": 30_720}})
NANO_12B_V2 = derive(
    H_8B,
    context={
        "pattern": "M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M-",
        "d_model": 5120,
        "mamba": {"head_dim": 80, "chunk_size": 128},
        "attention": {"n_heads": 40},
        "mlp": {"d_ff": 20_480},
    },
    max_positions=131_072,
    special_tokens={"bos": 1, "eos": 12, "pad": 0},  # 12 ends a turn in the v2 vocabulary
    sampling={"temperature": 0.6, "top_p": 0.95},
)
NANO_9B_V2 = derive(
    NANO_12B_V2,
    context={
        "pattern": "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
        "d_model": 4480,
        "mlp": {"d_ff": 15_680},
    },
)
NANO_3_4B = derive(
    NANO_9B_V2,
    context={
        "pattern": "M-M-M-MM-M-M*-M-M*-M-M-M*-M-M-MM*-MMM-M-M-",
        "d_model": 3136,
        "mamba": {"n_heads": 96, "chunk_size": 256},
        "mlp": {"d_ff": 12_544},
    },
    max_positions=262_144,
    special_tokens={"bos": 1, "eos": 2, "pad": 0},
    sampling={"temperature": 1.0, "top_p": 1.0},
)
NANO_3_30B = OmniConfig(
    vocab_size=131_072,
    context=TowerConfig(
        pattern="MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
        d_model=2688,
        mamba=MambaConfig(n_heads=64, head_dim=64),
        attention=AttentionConfig(n_heads=32, n_kv_heads=2, head_dim=128),
        moe=MoEConfig(n_experts=128, n_active_experts=6, d_ff=1856, d_shared=3712, scale=2.5),
    ),
    max_positions=262_144,
    special_tokens={"bos": 1, "eos": [2, 11], "pad": 0},
    sampling={"temperature": 1.0, "top_p": 1.0},
)
LIGHTNING_30B = replace(NANO_3_30B, mtp=MTPConfig(), max_positions=1_048_576)
SUPER_120B = derive(
    NANO_3_30B,
    context={
        "pattern": _PATTERN_SUPER,
        "d_model": 4096,
        "mamba": {"n_heads": 128},
        "moe": {
            "n_experts": 512,
            "n_active_experts": 22,
            "d_ff": 2688,
            "d_shared": 5376,
            "d_latent": 1024,
            "scale": 5.0,
        },
    },
    mtp=MTPConfig(),
    sampling={"temperature": 1.0, "top_p": 0.95},
)
ULTRA_550B = derive(
    SUPER_120B,
    context={
        "pattern": _PATTERN_ULTRA,
        "d_model": 8192,
        "mamba": {"n_heads": 256},
        "attention": {"n_heads": 64},
        "moe": {"d_ff": 5120, "d_shared": 10_240, "d_latent": 2048},
    },
    mtp=MTPConfig(loss_scale=0.1),
    max_positions=1_048_576,
)

PRESETS = {
    "nemotron-h-4b": Preset(H_4B, "nvidia/Nemotron-H-4B-Base-8K"),
    "nemotron-h-8b": Preset(H_8B, "nvidia/Nemotron-H-8B-Base-8K"),
    "nemotron-h-47b": Preset(H_47B, "nvidia/Nemotron-H-47B-Base-8K"),
    "nemotron-h-56b": Preset(H_56B, "nvidia/Nemotron-H-56B-Base-8K"),
    "nano-12b-v2": Preset(NANO_12B_V2, "nvidia/NVIDIA-Nemotron-Nano-12B-v2"),
    "nano-9b-v2": Preset(NANO_9B_V2, "nvidia/NVIDIA-Nemotron-Nano-9B-v2"),
    "nemotron-3-nano-4b": Preset(NANO_3_4B, "nvidia/NVIDIA-Nemotron-3-Nano-4B-BF16"),
    "nemotron-3-nano-30b": Preset(NANO_3_30B, "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"),
    "nemotron-3.5-lightning-30b": Preset(LIGHTNING_30B, "nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-BF16"),
    "nemotron-3-super-120b": Preset(SUPER_120B, "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16"),
    "nemotron-3-ultra-550b": Preset(ULTRA_550B, "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16"),
}
