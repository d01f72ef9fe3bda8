"""Boxes that a model names in its answers: as data, and drawn on the picture.

"[120, 40, 380, 300]" ──> Box in 0..1000 of the picture's sides ──> pixels ──> drawn
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

SCALE = 1000  # of coordinates in answers, along both sides (Qwen3-VL's and Cosmos 3's manner)
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080")
MAX_BOXES = 1000

_NUMBER = r"(-?\d+(?:\.\d+)?)"
_BOX = re.compile(r"[\[(]\s*" + r"\s*,\s*".join([_NUMBER] * 4) + r"\s*[\])]")


@dataclass(frozen=True)
class Box:
    """Corners in 0..1000 of the picture's width (x) and height (y)."""

    x0: float
    y0: float
    x1: float
    y1: float

    def pixels(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Corners in pixels of a picture of ``size`` (width, height)."""
        width, height = size
        return self.x0 * width / SCALE, self.y0 * height / SCALE, self.x1 * width / SCALE, self.y1 * height / SCALE


def read_boxes(text: str) -> list[Box]:
    """The boxes of an answer, ``[x0, y0, x1, y1]`` or with round brackets, in order.

    Corners outside the picture are moved to its edge; what has no area is left out.
    """
    found = []
    for match in _BOX.finditer(text):
        x0, y0, x1, y1 = (min(max(float(v), 0.0), float(SCALE)) for v in match.groups())
        box = Box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        if box.x1 > box.x0 and box.y1 > box.y0 and len(found) < MAX_BOXES:
            found.append(box)
    return found


def draw_boxes(picture: Image.Image, boxes: Sequence[Box], labels: Sequence[str] = ()) -> Image.Image:
    """A copy of the picture with the boxes on it, each in a colour of its own and with its label, where it has one."""
    drawn = picture.convert("RGB")
    pen = ImageDraw.Draw(drawn)
    width = max(1, round(max(drawn.size) / 200))
    for i, box in enumerate(boxes):
        colour = COLOURS[i % len(COLOURS)]
        corners = box.pixels(drawn.size)
        pen.rectangle(corners, outline=colour, width=width)
        if i < len(labels) and labels[i]:
            pen.text((corners[0] + width + 1, corners[1] + width), labels[i], fill=colour)
    return drawn


def as_dicts(boxes: Sequence[Box], size: tuple[int, int]) -> list[dict[str, list[float]]]:
    """Boxes as plain data: in thousandths and in pixels of a picture of ``size`` (width, height)."""
    return [{"box": [b.x0, b.y0, b.x1, b.y1], "pixels": [round(v, 1) for v in b.pixels(size)]} for b in boxes]
