"""Small random towers and systems for the tests: every parameter away from its trivial value, sizes often odd."""

import torch
from torch import Tensor, nn

from omni.cache import AttentionSlot, Cache, MambaSlot
from omni.config import (
    AttentionConfig,
    LatentConfig,
    MambaConfig,
    MLPConfig,
    MoEConfig,
    MTPConfig,
    OmniConfig,
    RotaryConfig,
    TimeConfig,
    TowerConfig,
    VisionConfig,
    replace,
)
from omni.model import Omni
from omni.tower import Tower

ROTARY = RotaryConfig(theta=30.0)
AXES = RotaryConfig(theta=30.0, sections=(2, 1, 1))


def tower_config(
    pattern: str,
    *,
    d_model: int = 20,
    rotary: RotaryConfig | None = None,
    qk_norm: bool = False,
    mamba: dict | None = None,
    attention: dict | None = None,
    mlp: dict | None = None,
    moe: dict | None = None,
    **changes,
) -> TowerConfig:
    """A config of ``pattern``; the dicts change single sizes."""
    heads = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "rotary": rotary, "qk_norm": qk_norm}
    experts = {"n_experts": 6, "n_active_experts": 2, "d_ff": 7, "d_shared": 9, "scale": 1.7}
    states = {"n_heads": 4, "head_dim": 5, "d_state": 6, "n_groups": 2, "chunk_size": 4}
    return TowerConfig(
        pattern=pattern,
        d_model=d_model,
        mamba=MambaConfig(**states | (mamba or {})),
        attention=AttentionConfig(**heads | (attention or {})),
        mlp=MLPConfig(**{"d_ff": 13} | (mlp or {})),
        moe=MoEConfig(**experts | (moe or {})),
        **changes,
    )


LATENT = {"d_latent": 8}
GROUPS = {"n_experts": 8, "n_active_experts": 3, "n_expert_groups": 4, "n_active_groups": 2}
ODD = {
    "d_model": 17,
    "mamba": {"n_heads": 3, "head_dim": 5, "d_state": 3, "n_groups": 1, "d_conv": 3, "chunk_size": 3},
    "attention": {"n_heads": 3, "n_kv_heads": 1, "head_dim": 7},
}

TOWERS = {
    "M*-E": tower_config("M*-E"),
    "MEM*E latent": tower_config("MEM*E", moe=LATENT, attention={"bias": True}, residual_fp32=True),
    "*-*- rotary": tower_config("*-*-", rotary=ROTARY, qk_norm=True, mlp={"activation": "silu"}),
    "MM odd": tower_config("MM", **ODD),
    "E*M- axes": tower_config("E*M-", rotary=AXES, qk_norm=True, moe=GROUPS | LATENT),
    "*M* odd": tower_config("*M*", **ODD | {"attention": {"n_heads": 6, "n_kv_heads": 3, "head_dim": 7}}),
}
"""Context towers that between them hold every kind of layer and option."""


def fill(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter and router bias anew, none at a trivial value; signals stay near 1."""
    g = torch.Generator().manual_seed(seed)

    def normal(shape: torch.Size, std: float) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64) * std

    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            last = name.rsplit(".", 1)[-1]
            if last in ("load", "num_batches_tracked"):
                continue
            if last == "running_var":
                value = 0.5 + torch.rand(tensor.shape, generator=g, dtype=torch.float64)
            elif last == "A_log":
                value = torch.rand(tensor.shape, generator=g, dtype=torch.float64) * 2 - 1
            elif last == "dt_bias":
                value = torch.rand(tensor.shape, generator=g, dtype=torch.float64) * 2 - 2
            elif last in ("D", "tables") or (last == "weight" and tensor.dim() == 1):
                value = 1 + normal(tensor.shape, 0.3)
            elif tensor.dim() == 1:
                value = normal(tensor.shape, 0.3)
            else:
                value = normal(tensor.shape, 1.2 * tensor[0].numel() ** -0.5)
            tensor.copy_(value)
    return module


def build_tower(config: TowerConfig, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tower:
    return fill(Tower(config).eval(), seed).to(dtype)


def noise(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def ids(*shape: int, vocab: int, seed: int = 1) -> Tensor:
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(seed))


VISION = VisionConfig(d_model=12, n_layers=2, n_heads=3, d_ff=16, patch_size=4, n_prefix=3, max_grid=5)
IMAGE = 7
"""The placeholder id of an image in :func:`system_config`."""


def system_config(context: TowerConfig, *, time: TimeConfig | None = None, **changes) -> OmniConfig:
    """A whole system over ``context``: vision, denoiser, latents, drafter."""
    attention = context.attention
    return OmniConfig(
        **{
            "vocab_size": 31,
            "context": context,
            "mtp": MTPConfig(),
            "vision": VISION,
            "denoiser": replace(context, time=time, attention=replace(attention, context_norm=attention.qk_norm)),
            "latent": LatentConfig(patch_size=2, channels=3),
            "special_tokens": {"image": IMAGE, "pad": 0},
        }
        | changes
    )


def build_system(config: OmniConfig, dtype: torch.dtype = torch.float64, seed: int = 0) -> Omni:
    return fill(Omni(config).eval(), seed).to(dtype)


def held(cache: Cache, row: int = 0) -> dict[str, Tensor]:
    """What a cache remembers of one row, cut to the row's own tokens."""
    n = int(cache.lengths[row])
    found = {"length": cache.lengths[row]}
    for i, slot in enumerate(cache.slots):
        if isinstance(slot, AttentionSlot):
            found |= {f"{i}.k": slot.k.data[row, :, :n], f"{i}.v": slot.v.data[row, :, :n]}
        elif isinstance(slot, MambaSlot):
            found |= {f"{i}.conv": slot.conv[row], f"{i}.ssm": slot.ssm[row]}
    if cache.positions is not None:
        found["positions"] = cache.positions.data[row, :, :n]
    return found


def close(actual: Tensor | dict, expected: Tensor | dict, tolerance: float = 1e-10) -> None:
    """Equal to ``tolerance``; 0 means bitwise."""
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def same_rows(a: Cache, b: Cache, tolerance: float = 0.0) -> None:
    """Both caches remember the same of every row."""
    assert a.batch == b.batch
    for row in range(a.batch):
        close(held(a, row), held(b, row), tolerance)
