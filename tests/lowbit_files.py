"""A small model, its published checkpoint, and the same in the layouts of low precision, written by hand."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from omni import families
from omni.config import AttentionConfig, MambaConfig, MLPConfig, MoEConfig, MTPConfig, OmniConfig, TowerConfig
from omni.model import Omni
from omni.quantization.formats import FORMATS, decode, encode

CONFIG = OmniConfig(
    vocab_size=60,
    context=TowerConfig(
        pattern="M-*E",
        d_model=64,
        mamba=MambaConfig(n_heads=4, head_dim=16, d_state=8, n_groups=2, chunk_size=8),
        attention=AttentionConfig(n_heads=4, n_kv_heads=2, head_dim=16),
        mlp=MLPConfig(d_ff=160),
        moe=MoEConfig(n_experts=4, n_active_experts=2, d_ff=96, d_shared=128, d_latent=32),
    ),
    mtp=MTPConfig(),
    special_tokens={"bos": 1, "eos": 2, "pad": 0},
)

LOW = (".in_proj", ".out_proj", ".up_proj", ".down_proj")


def build(seed: int = 0) -> Omni:
    torch.manual_seed(seed)
    model = Omni(CONFIG).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("router.bias"):
            buffer.normal_()
    return model


def published(path: Path, model: Omni | None = None) -> Path:
    """The plain checkpoint, in float32."""
    families.save(model or build(), path, family="nemotron_h")
    return path


def is_low(name: str) -> bool:
    """Whether a published weight is quantised in these files."""
    module = name.removesuffix(".weight")
    return name.startswith("backbone.") and name.endswith(".weight") and module.endswith(LOW)


def rewrite(
    source: Path, target: Path, low: Callable[[str, Tensor], dict[str, Tensor]], config: dict, extra=None
) -> Path:
    """``source`` with its low weights in other tensors: ``low(module, weight)`` gives those by their endings."""
    target.mkdir()
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        module = name.removesuffix(".weight")
        tensors |= {f"{module}.{k}": v for k, v in low(module, tensor).items()} if is_low(name) else {name: tensor}
    save_file(tensors, target / "model.safetensors")
    plain = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**plain, "quantization_config": config} if config else plain))
    if extra is not None:
        (target / "hf_quant_config.json").write_text(json.dumps(extra))
    return target


def rounded(source: Path, target: Path, format: Callable[[str], str]) -> Path:
    """The plain checkpoint whose low weights are what comes back from ``format(module)``."""

    def back(module: str, weight: Tensor) -> dict[str, Tensor]:
        own = FORMATS[format(module)]
        return {"weight": decode(encode(weight, own), own)}

    return rewrite(source, target, back, {})
