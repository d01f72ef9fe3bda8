"""Sizes of the published Cosmos 3 systems, reasoner and generator. Source: ``reference`` cosmos3, sections 1.1 to 1.5.

Element counts are checked against the reference classes in ``tests/test_presets.py``.
"""

from omni.config import ActionConfig, GenerationConfig, LatentConfig, OmniConfig, SoundLatentConfig, TimeConfig, replace
from omni.decoders.schedules import STUDENT
from omni.families.base import Preset
from omni.families.cosmos3_generation import COSMOS3, student
from omni.families.cosmos3_generation import EDGE as EDGE_GENERATION
from omni.families.cosmos3_sizes import EDGE, NANO, SUPER

LATENT = LatentConfig(patch_size=2, channels=48, image_size=960, norm=False, frames=4)
SOUND = SoundLatentConfig()
ACTION = ActionConfig()


def _both(
    reasoner: OmniConfig,
    latent: LatentConfig = LATENT,
    *,
    sound: bool = True,
    action: bool = True,
    generation: GenerationConfig = COSMOS3,
) -> OmniConfig:
    """Both towers have the same sizes. The generator norms its queries and keys, and Edge's the context's keys too."""
    attention = reasoner.context.attention
    own = replace(attention, qk_norm=True, context_norm=not attention.qk_norm)
    return replace(
        reasoner,
        denoiser=replace(reasoner.context, attention=own, time=TimeConfig(mode="input", scale=1.0)),
        latent=latent,
        sound_latent=SOUND if sound else None,
        action=ACTION if action else None,
        generation=generation,
    )


SMALL = {"latent": replace(LATENT, image_size=640), "sound": False, "generation": EDGE_GENERATION}
FEW = {"sound": False, "action": False, "generation": student(STUDENT)}


CHECKPOINTS = {
    "cosmos3-nano": (_both(NANO), "nvidia/Cosmos3-Nano"),
    "cosmos3-nano-policy-droid": (_both(NANO), "nvidia/Cosmos3-Nano-Policy-DROID"),
    "cosmos3-super": (_both(SUPER), "nvidia/Cosmos3-Super"),
    "cosmos3-super-text2image": (_both(SUPER), "nvidia/Cosmos3-Super-Text2Image"),
    "cosmos3-super-image2video": (_both(SUPER), "nvidia/Cosmos3-Super-Image2Video"),
    "cosmos3-super-text2image-4step": (
        _both(SUPER, **FEW),
        "nvidia/Cosmos3-Super-Text2Image-4Step",
    ),
    "cosmos3-super-image2video-4step": (
        _both(SUPER, replace(LATENT, positions_a_second=4.0), **FEW),  # 16 frames a second
        "nvidia/Cosmos3-Super-Image2Video-4Step",
    ),
    "cosmos3-edge": (_both(EDGE, **SMALL), "nvidia/Cosmos3-Edge"),
    "cosmos3-edge-policy-droid": (_both(EDGE, **SMALL), "nvidia/Cosmos3-Edge-Policy-DROID"),
}
PRESETS = {name: Preset(*checkpoint) for name, checkpoint in CHECKPOINTS.items()}
