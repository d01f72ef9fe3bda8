"""Sizes of the published Cosmos 3 reasoners. Source: ``reference`` cosmos3, sections 1.2, 1.3 and 7.

Element and tensor counts are checked against the reference classes in ``tests/test_presets.py``.
"""

from omni.config import AttentionConfig, MLPConfig, OmniConfig, RotaryConfig, TowerConfig, VisionConfig, replace
from omni.families.base import Preset
from omni.families.cosmos3 import EDGE_MEDIA, NANO_MEDIA, SECTIONS

QWEN_TOKENS = {
    "bos": 151_643,
    "eos": [151_645, 151_643],
    "pad": 151_643,
    "image": 151_655,
    "video": 151_656,
    "vision_start": 151_652,
    "vision_end": 151_653,
}
SAMPLING = {"temperature": 0.7, "top_p": 0.8, "top_k": 20}

_VISION = VisionConfig(
    d_model=1152,
    n_layers=27,
    n_heads=16,
    d_ff=4304,
    n_prefix=0,
    max_grid=48,
    stem_bias=True,
    tubelet=2,
    positions="interpolated",
    rotary_theta=10_000.0,
    activation="gelu_tanh",
    projector="gelu",
    d_projector=4608,
    deepstack=((8, 1), (16, 3), (24, 5)),
)
NANO = OmniConfig(
    vocab_size=151_936,
    context=TowerConfig(
        pattern="*-" * 36,
        d_model=4096,
        norm_eps=1e-6,
        attention=AttentionConfig(
            n_heads=32, n_kv_heads=8, head_dim=128, rotary=RotaryConfig(theta=5e6, sections=SECTIONS), qk_norm=True
        ),
        mlp=MLPConfig(d_ff=12_288, activation="silu"),
    ),
    vision=_VISION,
    media=NANO_MEDIA,
    max_positions=262_144,
    special_tokens=QWEN_TOKENS,
    sampling=SAMPLING,
)
SUPER = replace(
    NANO,
    context=replace(
        NANO.context,
        pattern="*-" * 64,
        d_model=5120,
        attention=replace(NANO.context.attention, n_heads=64),
        mlp=replace(NANO.context.mlp, d_ff=25_600),
    ),
)
EDGE = OmniConfig(
    vocab_size=131_072,
    context=TowerConfig(
        pattern="*-" * 28,
        d_model=2048,
        norm_eps=1e-5,
        attention=AttentionConfig(
            n_heads=16, n_kv_heads=8, head_dim=128, rotary=RotaryConfig(theta=1e8, sections=SECTIONS), norm_eps=1e-5
        ),
        mlp=MLPConfig(d_ff=9216),
    ),
    vision=replace(
        _VISION,
        max_grid=16,
        tubelet=1,
        positions="resized",
        rotary_theta=0.0,
        final_norm=True,
        d_projector=11_520,
        deepstack=(),
    ),
    media=EDGE_MEDIA,
    special_tokens={"bos": 1, "eos": 11, "pad": 0, "image": 19, "video": 18, "vision_start": 20, "vision_end": 21},
    sampling=SAMPLING,
)

PRESETS = {
    "cosmos3-nano-reasoner": Preset(NANO, "nvidia/Cosmos3-Nano-Reasoner"),
    "cosmos3-super-reasoner": Preset(SUPER, "nvidia/Cosmos3-Super-Reasoner"),
    "cosmos3-edge-reasoner": Preset(EDGE, "nvidia/Cosmos3-Edge-Reasoner"),
}
