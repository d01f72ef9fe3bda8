"""A system with a part of every kind, small enough to train in a test."""

import torch

from omni.config import (
    AttentionConfig,
    CodecConfig,
    LatentConfig,
    MambaConfig,
    MoEConfig,
    OmniConfig,
    RotaryConfig,
    TimeConfig,
    TowerConfig,
    VisionConfig,
    replace,
)
from omni.model import Omni
from omni.tokenizers.bytes import ByteTokenizer

CONTEXT = TowerConfig(
    pattern="M*E",
    d_model=32,
    mamba=MambaConfig(n_heads=2, head_dim=16, d_state=8, n_groups=1, chunk_size=16),
    attention=AttentionConfig(n_heads=2, n_kv_heads=1, head_dim=16, rotary=RotaryConfig(sections=(4, 2, 2))),
    moe=MoEConfig(n_experts=4, n_active_experts=2, d_ff=16, d_shared=32, d_latent=16),
)

MICRO = OmniConfig(
    vocab_size=320,
    context=CONTEXT,
    vision=VisionConfig(d_model=16, n_layers=1, n_heads=2, d_ff=32, patch_size=8, n_prefix=2, max_grid=24, stem="conv"),
    denoiser=replace(CONTEXT, time=TimeConfig(mode="adaln", n_frequencies=8)),
    latent=LatentConfig(patch_size=8, channels=3, image_size=64, prediction="sample", position_offset=0),
    max_positions=1024,
    special_tokens={"bos": 1, "eos": [11, 2], "mask": 3, "pad": 21, "image": 14},
    sampling={"document_together": 0.0},
)

CODEC_LATENT = LatentConfig(
    patch_size=2, channels=4, image_size=64, position_offset=0, codec=CodecConfig(channels=4, factor=4)
)
"""Latents of a patch codec: a token stands for 8 x 8 pixels here too."""


def micro_model(**changes) -> Omni:
    """A random model with weights large enough that its outputs hang on its inputs."""
    torch.manual_seed(0)
    model = Omni(replace(MICRO, **changes)).eval()
    with torch.no_grad():
        model.embed.weight.mul_(20)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and not parameter.any():  # gates and heads that start at zero
                parameter.normal_(std=0.1 if "time" in name else 0.3)
    model.tokenizer = ByteTokenizer()
    return model
