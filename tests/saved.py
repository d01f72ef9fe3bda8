"""A small model with one layer of each kind, and its published checkpoint, for the tests of files."""

import json
import struct
from pathlib import Path

import torch

import omni
from omni import families
from omni.config import (
    AttentionConfig,
    MambaConfig,
    MLPConfig,
    MoEConfig,
    MTPConfig,
    OmniConfig,
    TowerConfig,
)
from omni.model import Omni

CONFIG = OmniConfig(
    vocab_size=50,
    context=TowerConfig(
        pattern="M-*E",
        d_model=24,
        mamba=MambaConfig(n_heads=4, head_dim=8, d_state=8, n_groups=2, chunk_size=8),
        attention=AttentionConfig(n_heads=2, n_kv_heads=1, head_dim=12),
        mlp=MLPConfig(d_ff=32),
        moe=MoEConfig(n_experts=4, n_active_experts=2, d_ff=16, d_shared=20, d_latent=8),
    ),
    mtp=MTPConfig(),
    special_tokens={"bos": 1, "eos": [2, 11], "pad": 0},
    sampling={"temperature": 0.6, "top_p": 0.95},
)


def build() -> Omni:
    torch.manual_seed(0)
    built = Omni(CONFIG)
    for name, buffer in built.named_buffers():
        if name.endswith("router.bias"):
            buffer.normal_()
    return built


def published(model: Omni, path: Path) -> Path:
    """A published layout: one tensor per expert."""
    families.save(model, path / "model", family="nemotron_h")
    return path / "model"


def load(folder: Path, **options) -> Omni:
    return omni.load(str(folder), device="cpu", **options)


def write_raw(path: Path, header, data: bytes = b"", length: int | None = None) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)


def item(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}
