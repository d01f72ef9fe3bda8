"""omni-tiny: the small model that the project trains itself and ships, with a part of every kind the family has.

TINY reads, watches, listens and draws. ANIMATE and ACT have the same reader and generators of their own, which animate
pictures and drive robots: as with Cosmos 3, whose Image2Video and Policy are generators post-trained beside one
reasoner.
"""

from omni.config import (
    ActionConfig,
    AttentionConfig,
    CodecConfig,
    Embodiment,
    GenerationConfig,
    LatentConfig,
    MambaConfig,
    MediaConfig,
    MLPConfig,
    MoEConfig,
    MTPConfig,
    Normalizer,
    OmniConfig,
    RotaryConfig,
    SoundConfig,
    SoundLatentConfig,
    TimeConfig,
    TokenDiffusionConfig,
    TowerConfig,
    VisionConfig,
    WalkConfig,
    replace,
)
from omni.config_latents import MelConfig
from omni.families.base import Preset

D_MODEL = 192
THETA = 4000.0
"""Base of the rotary positions. Their slowest pair turns once in 15,000 tokens, so that what a question names is found
by what it is, wherever a page told it; at a base of 200 it would turn once in 900."""

CONTEXT = TowerConfig(
    pattern="M*E*EM*E",
    d_model=D_MODEL,
    mamba=MambaConfig(n_heads=4, head_dim=64, d_state=32, n_groups=2, chunk_size=64),
    attention=AttentionConfig(
        n_heads=6,
        n_kv_heads=3,
        head_dim=32,
        qk_norm=True,
        rotary=RotaryConfig(theta=THETA, sections=(6, 5, 5)),
    ),
    moe=MoEConfig(n_experts=8, n_active_experts=2, d_ff=256, d_shared=384, d_latent=96, balance_loss=1e-3),
)

PACE = 10.0
"""Rotary positions that a second of video, sound or actions takes: one an action of either robot."""

EMBODIMENTS = (  # with the quantiles of their experts' actions
    Embodiment(
        name="pusht",  # target of the agent on a table of 512 x 512
        domain=0,
        width=2,
        normalizer=Normalizer(method="quantile", offset=(242.6, 279.0), scale=(175.2, 177.0)),
        fps=10.0,
        chunk=16,
    ),
    Embodiment(
        name="omni_arm",  # target angles of two joints, in radians
        domain=1,
        width=2,
        normalizer=Normalizer(method="quantile", offset=(0.793, 1.770), scale=(1.291, 0.832)),
        fps=10.0,
        chunk=16,
    ),
)

TINY = OmniConfig(
    vocab_size=320,
    context=CONTEXT,
    vision=VisionConfig(
        d_model=144,
        n_layers=3,
        n_heads=4,
        d_ff=432,
        patch_size=8,
        n_prefix=4,
        max_grid=24,
        d_projector=384,
        stem="conv",
        tubelet=2,
        video_stem=True,
    ),
    sound=SoundConfig(
        d_model=128,
        n_layers=3,
        n_heads=4,
        d_ff=384,
        n_mels=64,
        channels=32,
        d_projector=384,
    ),
    media=MediaConfig(video_patches=64, max_frames=32, fps=4.0),
    denoiser=replace(CONTEXT, time=TimeConfig(mode="adaln")),
    latent=LatentConfig(
        patch_size=1,
        channels=24,
        image_size=64,
        position_offset=0,
        codec=CodecConfig(),
        max_grid=8,
    ),
    generation=GenerationConfig(
        image=WalkConfig(steps=30, guidance=1.7, shift=3.0, eta=1.0),
        upsample=True,
    ),
    max_positions=4096,
    special_tokens={"bos": 1, "eos": [11, 2], "mask": 3, "pad": 21, "image": 14, "video": 15, "sound": 16},
    sampling={
        "document_views": 4.0,
        "document_read_first": 1.0,
        "document_together": 0.0,
        "video_read_first": 1.0,
        "film_read_first": 1.0,
        "sound_read_first": 1.0,
        "sound_window": 5.0,
    },
)

# What moves is said as it will be, not as a velocity: beside the noise of four frames that share a token, whose numbers
# are half as many as the token's own, there is little room for anything else.
MOVING = replace(
    TINY,
    latent=replace(
        TINY.latent,
        prediction="sample",
        gain=True,
        codec=CodecConfig(motion=2.0),
        patch_frames=4,
        clock=8,
        positions_a_second=PACE,
    ),
    generation=GenerationConfig(draws=False, video=WalkConfig(steps=8, guidance=1.0, shift=3.0, eta=1.0), fps=8.0),
)

ANIMATE = replace(
    MOVING, sound_latent=SoundLatentConfig(channels=32, rate=25.0, positions_a_second=PACE, codec=MelConfig())
)

ACT = replace(
    MOVING,
    action=ActionConfig(width=8, n_domains=4, positions_a_second=PACE, embodiments=EMBODIMENTS),
    generation=replace(
        MOVING.generation,
        action=WalkConfig(steps=6, guidance=1.0, shift=1.0),  # fewer would blend the ways around a thing
        world=WalkConfig(steps=1, guidance=1.0, shift=1.0),  # beside a video, of which it gives the mean
    ),
)

TEXT_CONTEXT = TowerConfig(
    pattern="M*EM*E",
    d_model=128,
    mamba=MambaConfig(n_heads=4, head_dim=32, d_state=32, n_groups=1, chunk_size=32),
    attention=AttentionConfig(n_heads=4, n_kv_heads=2, head_dim=32, qk_norm=True, rotary=RotaryConfig(theta=1000.0)),
    mlp=MLPConfig(d_ff=256),  # of the block that drafts
    moe=MoEConfig(n_experts=8, n_active_experts=2, d_ff=128, d_shared=192, d_latent=48, balance_loss=1e-3),
)

TEXT = OmniConfig(
    vocab_size=320,
    context=TEXT_CONTEXT,
    mtp=MTPConfig(pattern="*-", depth=3),
    denoiser=replace(TEXT_CONTEXT, time=TimeConfig(mode="adaln")),
    diffusion=TokenDiffusionConfig(threshold=0.9),
    max_positions=2048,
    special_tokens={"bos": 1, "eos": [11, 2], "mask": 3, "pad": 21},
)

PRESETS = {
    "omni-tiny": TINY,
    "omni-tiny-text": Preset(TEXT, "tiny-text"),
    "omni-tiny-animate": Preset(ANIMATE, "tiny-animate"),
    "omni-tiny-act": Preset(ACT, "tiny-act"),
}
