"""A rollout: what a world shows and sounds like over time, and what moved it.

    prompt, frames (T, H, W, 3) ──┬── actions (T - 1, a): action i leads from frame i to frame i + 1
                                  └── sound (samples,)

All worlds of moving things and of robots draw these, and a generator of videos learns from them and answers with them.
"""

from dataclasses import dataclass, field

import numpy as np

CANVAS = 64  # pixels a side
FRAMES = 17  # of a rollout: the first, and sixteen that follow
SOUND_RATE = 16_000


@dataclass(frozen=True)
class Rollout:
    prompt: str
    frames: np.ndarray  # (T, H, W, 3) uint8
    fps: float
    actions: np.ndarray | None = None  # (T - 1, a) float32, in the embodiment's own units
    embodiment: str | None = None  # whose actions they are: a name of the model's registry
    sound: np.ndarray | None = None  # (samples,) float32 in [-1, 1] at SOUND_RATE, as long as the frames
    tracks: dict[str, np.ndarray] = field(default_factory=dict)  # thing -> (T, 2) x, y in pixels, NaN where not there
    kind: str = ""  # of the world: what happens

    def __post_init__(self) -> None:
        if self.frames.dtype != np.uint8 or self.frames.ndim != 4 or self.frames.shape[3] != 3 or not len(self.frames):
            raise ValueError(f"frames are {self.frames.shape} {self.frames.dtype}; they must be (T, H, W, 3) uint8")
        if (self.actions is None) != (self.embodiment is None):
            raise ValueError("actions come with the name of their embodiment")
        if self.actions is not None and len(self.actions) != len(self.frames) - 1:
            raise ValueError(f"{len(self.actions)} actions do not lead through {len(self.frames)} frames")
