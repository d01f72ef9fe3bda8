"""How a robot's world is put to a model that denoises actions: training and the pipelines share it, to the pixel.

    embodiment, what the model is used to ──> setting_of ──> Setting
    frames      ──> show    on a canvas of the tier, or squares of the model's own size
    instruction ──> tell    with viewpoint, time and size where the model wants them ──> captions.prompt_ids

Source: ``reference`` cosmos3, sections 6.4 to 6.6.
"""

from dataclasses import dataclass

from torch import Tensor

from omni.config import ActionConfig, Embodiment, GenerationConfig
from omni.tokenizers.action import embodiment as embodiment_of
from omni.tokenizers.canvas import Canvas, canvas, cover
from omni.tokenizers.captions import action_caption

CHUNK = 16  # actions of a call, where the embodiment says nothing


@dataclass(frozen=True)
class Setting:
    """Whose actions a model is asked for, and how their world is seen."""

    embodiment: Embodiment
    chunk: int
    fps: float
    tier: int  # of canvases; 0: squares of the model's own size
    viewpoint: str | None
    layout: str | None  # a sentence on how several cameras share the frame
    raw: bool  # actions are the model's own numbers, without grippers turned or values normalised
    multiple: int  # sides of what is seen are first stretched to it; 16 is what diffusers does


def setting_of(
    embodiment: str | Embodiment,
    config: ActionConfig,
    defaults: GenerationConfig,
    unit: int,
    *,
    chunk: int | None = None,
    fps: float | None = None,
    tier: int | None = None,
    viewpoint: str | None = None,
    layout: str | None = None,
    raw: bool = False,
    multiple: int = 1,
) -> Setting:
    """What is None is the embodiment's own, or else the model's. ``unit``: frames behind one more frame of tokens.

    ValueError where the model has no place for the embodiment, or the chunk is not a multiple of ``unit``.
    """
    own = embodiment_of(embodiment, config)
    for name, value in (("chunk", chunk), ("fps", fps)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} is {value}; it must be positive")
    found = Setting(
        own,
        chunk=chunk or own.chunk or CHUNK,
        fps=float(fps or own.fps or defaults.fps),
        tier=defaults.tier if tier is None else tier,
        viewpoint=viewpoint or own.viewpoint or "ego_view",
        layout=layout,
        raw=raw,
        multiple=multiple,
    )
    if own.width is None:
        raise ValueError(f"the embodiment {own.name!r} has no width of its own: give one with its width set")
    if found.chunk % unit:
        raise ValueError(f"chunk is {found.chunk}; it must be a multiple of {unit} actions")
    return found


def show(frames: Tensor, setting: Setting, side: int) -> Canvas:
    """Frames (n, 3, H, W) at the size of the model's world; ``side`` is that of its squares, in pixels."""
    if setting.tier:
        return canvas(frames, setting.tier, setting.multiple)
    return Canvas(cover(frames, side, side), side, side, side, side)


def tell(instruction: str, setting: Setting, size: tuple[int, int], captions: str) -> str:
    """What the context tower reads of an instruction; ``size`` is (height, width) of the canvas.

    ``captions``: as :class:`omni.config.GenerationConfig` has it.
    """
    if captions == "plain":
        return instruction
    return action_caption(instruction, setting.viewpoint, setting.chunk + 1, setting.fps, *size, setting.layout)


__all__ = ["CHUNK", "Setting", "setting_of", "show", "tell"]
