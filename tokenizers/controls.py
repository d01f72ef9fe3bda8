"""The clips that a transferred video follows: which there are, how each is used, and those that are drawn here.

    frames ──> edge   Canny's edges between two thresholds, white on black
    frames ──> blur   smaller ──> bilateral filter ──> back ──> much smaller and back: colours and masses, no detail

Depth, segmentation and world scenario maps come from models and simulators of their own. The numbers are those that the
published weights were trained with and are run with. Source: ``reference`` cosmos3, sections 4.4 and 4.6; J. Canny, "A
computational approach to edge detection" (1986); Tomasi and Manduchi, "Bilateral filtering for gray and color images"
(1998).
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Control:
    """How one kind of control is published to be used."""

    guidance: float = 3.0  # of the text; 1 is none
    control_guidance: float = 1.5  # of the control
    shift: float = 10.0
    steps: int = 50
    fps: float = 30.0
    chunk_frames: int = 93


CONTROLS = {  # in the order in which several stand before the video
    "edge": Control(),
    "blur": Control(),
    "depth": Control(),
    "seg": Control(control_guidance=2.0),
    "wsm": Control(guidance=1.0, control_guidance=3.0, fps=10.0, chunk_frames=101),  # a world scenario map
}
THRESHOLDS = {  # strength -> gradients from which a line is continued, and from which it begins
    "very_low": (20, 50),
    "low": (50, 100),
    "medium": (100, 200),
    "high": (200, 300),
    "very_high": (300, 400),
}
SHRINKS = {  # strength -> times smaller while it is filtered, and times smaller afterwards
    "very_low": (1, 4),
    "low": (4, 4),
    "medium": (2, 10),
    "high": (1, 16),
    "very_high": (4, 16),
}
STRENGTHS = tuple(THRESHOLDS)
DIAMETER, COLOR, SPACE = 30, 150.0, 100.0  # of the bilateral filter, at a longest side of LONGEST pixels
LONGEST = 720


def defaults_of(names: list[str]) -> Control:
    """How controls are used together: one alone in its own way, several as edges are."""
    return CONTROLS[names[0] if len(names) == 1 else "edge"]


def edge(frames: Tensor, strength: str = "medium") -> Tensor:
    """Edges of frames (T, 3, H, W) uint8, of that shape: 255 at a line, else 0. Stronger means fewer lines."""
    _check(frames, strength)
    low, high = THRESHOLDS[strength]
    canny = _opencv().Canny
    return _each(frames, lambda pixels: torch.from_numpy(canny(pixels, low, high))[None].expand(3, -1, -1))


def blur(frames: Tensor, strength: str = "medium") -> Tensor:
    """Frames (T, 3, H, W) uint8 without their detail, of that shape.

    "very_low" and "high" are filtered at full size, which takes ten times as long as "medium" does.
    """
    _check(frames, strength)
    before, after = SHRINKS[strength]
    cv2, (height, width) = _opencv(), frames.shape[-2:]
    small = max(height // after, 1), max(width // after, 1)

    def one(pixels: Any) -> Tensor:
        if before > 1:
            part = max(width // before, 1), max(height // before, 1)
            pixels = cv2.resize(pixels, part, interpolation=cv2.INTER_AREA)
        pixels = cv2.bilateralFilter(pixels, *_filter_of(*pixels.shape[:2]))
        if before > 1:
            pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
        picture = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
        for size in (small, (height, width)):  # antialiased, as in training; OpenCV's cubic is not
            picture = F.interpolate(picture, size, mode="bicubic", antialias=True).round().clamp(0, 255)
        return picture[0]

    return _each(frames, one)


DRAWN: dict[str, Callable[[Tensor, str], Tensor]] = {"edge": edge, "blur": blur}
"""Controls that are drawn from the frames of a video."""


def check_strength(strength: str) -> None:
    """ValueError for a strength that there is not."""
    if strength not in STRENGTHS:
        raise ValueError(f"strength is {strength!r}; it must be one of {', '.join(STRENGTHS)}")


def require_opencv() -> None:
    """ValueError where the package is missing that draws controls."""
    if importlib.util.find_spec("cv2") is None:
        raise ValueError("drawing edges and blur needs the package opencv-python-headless: pip install omni[transfer]")


def _opencv() -> Any:
    require_opencv()
    import cv2

    return cv2


def _filter_of(height: int, width: int) -> tuple[int, float, float]:
    """Diameter in pixels, which is odd, and spreads of colour and space of the bilateral filter at a size."""
    scale = max(height, width) / LONGEST
    diameter = max(round(DIAMETER * scale), 1)
    return diameter + (diameter + 1) % 2, max(COLOR * scale, 1.0), max(SPACE * scale, 1.0)


def _check(frames: Tensor, strength: str) -> None:
    check_strength(strength)
    if frames.dim() != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8 or not frames.numel():
        raise ValueError(f"frames are {tuple(frames.shape)} {frames.dtype}; they must be (T, 3, H, W) uint8")


def _each(frames: Tensor, one: Callable[[Any], Tensor]) -> Tensor:
    """``one`` of the pixels (H, W, 3) of every frame; (T, 3, H, W) uint8 on the frames' device."""
    out = torch.empty_like(frames)
    for i, frame in enumerate(frames):
        out[i] = one(frame.permute(1, 2, 0).contiguous().cpu().numpy())
    return out


__all__ = [
    "CONTROLS",
    "DRAWN",
    "STRENGTHS",
    "Control",
    "blur",
    "check_strength",
    "defaults_of",
    "edge",
    "require_opencv",
]
