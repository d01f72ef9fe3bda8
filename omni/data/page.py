"""A small printed page: fonts, lines of text with the place of every character, the look of a scan or photo.

A ``Page`` is filled from the top, one row after another, in units of final pixels, and may draw at twice the
resolution; ``finish`` bends, reduces, lights and roughens it, and carries the character centres along.
Coordinates are continuous: the pixel in the top left corner covers x and y from 0 to 1.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Color = tuple[int, int, int]


class Glyph(NamedTuple):
    """A printed character and its centre: the middle of its advance and of the capitals of its line."""

    char: str
    x: float
    y: float


class Cell(NamedTuple):
    """A piece of text on a row. ``x`` is where its ``align`` edge ("l", "c" or "r") stands, in pixels."""

    text: str
    x: float
    align: str = "l"


class Label(NamedTuple):
    """What names a row: its characters, from ``start`` to ``stop`` of the page's glyphs, and what it names."""

    start: int
    stop: int
    values: tuple[str, ...]
    color: str = ""


class Tip(NamedTuple):
    """Where a chart shows values: the end of a bar, a point, a slice, or what is printed for it. Or just a colour."""

    row: int | None  # of the label that names it; None where only a colour is shown
    values: tuple[str, ...]
    color: str
    x: float
    y: float
    ticks: tuple[int | None, int | None] = (None, None)  # glyphs of the values at its height and below it, on the axes


@dataclass(frozen=True)
class Family:
    """Font files of one type family and the smallest size, in pixels, at which it can be read."""

    regular: str
    bold: str
    italic: str
    smallest: int = 11
    weight: float = 1.0  # how often it is drawn


FAMILIES = (
    Family("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", weight=1.5),
    Family("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", weight=1.0),
    Family("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", weight=1.0),
    Family("Aileron", "DejaVuSans-Bold", "DejaVuSans-Oblique", weight=2.0),
    Family("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", smallest=12, weight=1.5),
    Family("cmtt10", "cmtt10", "cmtt10", smallest=13, weight=1.0),
)


@lru_cache(maxsize=512)
def load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font that ships with matplotlib, or "Aileron", which ships inside Pillow, at ``size`` pixels."""
    if name == "Aileron":
        font = ImageFont.load_default(size)
        font.layout_engine = ImageFont.Layout.BASIC
        return font
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=512)
def cap_height(name: str, size: int) -> float:
    """Height of the capital H above the baseline."""
    return float(-load_font(name, size).getbbox("H", anchor="ls")[1])


@lru_cache(maxsize=200_000)
def advance(name: str, size: int, before: str, char: str) -> float:
    """How far ``char`` moves the pen after ``before`` (one character or none), kerning included."""
    font = load_font(name, size)
    return font.getlength(before + char) - font.getlength(before)


def pen_positions(name: str, size: int, text: str) -> list[float]:
    """Where the pen stands before each character of ``text``, and after the last."""
    ends, before = [0.0], ""
    for char in text:
        ends.append(ends[-1] + advance(name, size, before, char))
        before = char
    return ends


@dataclass(frozen=True)
class Style:
    """How one page looks. Lengths are in final pixels."""

    family: Family
    size: int  # type size
    pitch: float  # from baseline to baseline
    margin: float
    paper: Color
    ink: Color
    accent: Color  # rules, bars and headings
    supersample: int  # drawn this many times larger, then reduced
    angle: float  # degrees, counter-clockwise
    keystone: float  # how far the corners move, as a share of the side
    upper_labels: bool
    pair: str  # "right", "leader", "adjacent" or "tab": where the value stands after its label


def _colors(rng: Random) -> tuple[Color, Color, Color]:
    paper_level = rng.choice((255, 255, 250, 240, 225))
    tint = [rng.randint(-14, 0) for _ in range(3)]
    paper = tuple(min(255, paper_level + t) for t in tint) if rng.random() < 0.6 else (paper_level,) * 3
    dark = rng.choice((0, 0, 10, 30, 60))
    ink = (dark,) * 3
    if rng.random() < 0.25:
        ink = rng.choice(((20, 30, 110), (110, 20, 20), (10, 80, 40), (70, 20, 90), (80, 50, 20)))
    accent = rng.choice((ink, (30, 60, 120), (130, 30, 30), (20, 90, 70), (60, 60, 60), (100, 60, 10)))
    if rng.random() < 0.06:
        paper, ink, accent = tuple(rng.randint(10, 50) for _ in range(3)), (240, 240, 235), (200, 210, 230)
    return paper, ink, accent


def sample_style(rng: Random, height: int, width: int, *, largest: int = 14, tilt: float = 4.0) -> Style:
    """A random look for a page of ``height`` x ``width``; ``tilt`` bounds the rotation in degrees."""
    families = [f for f in FAMILIES if f.smallest <= largest]
    family = rng.choices(families, [f.weight for f in families])[0]
    if width < 16 * advance(family.regular, 13, "", "x") + 12:  # a narrow page: wide type only in its smallest size
        largest = family.smallest
    size = rng.randint(family.smallest, max(family.smallest, min(largest, family.smallest + 2, 14)))
    angle = rng.uniform(-tilt, tilt) if tilt and rng.random() < 1 / 3 else 0.0
    keystone = rng.uniform(0.005, 0.03) if tilt >= 4 and rng.random() < 0.15 else 0.0
    swing = max(height, width) / 2 * math.sin(math.radians(abs(angle))) + keystone * 0.5 * width
    paper, ink, accent = _colors(rng)
    bent = bool(angle or keystone)
    return Style(
        family=family,
        size=size,
        pitch=size + rng.choice((1.5, 2, 2, 2.5, 3)),
        margin=(2 + swing if swing > 2 else 3) + rng.uniform(0, 3),
        paper=paper,
        ink=ink,
        accent=accent,
        supersample=2 if bent or rng.random() < 0.5 else 1,
        angle=angle,
        keystone=keystone,
        upper_labels=rng.random() < 0.25,
        pair=rng.choice(("right", "right", "leader", "adjacent", "adjacent", "tab")),
    )


class Page:
    """A sheet that is written from top to bottom; ``lines`` and ``glyphs`` are the transcription."""

    def __init__(self, rng: Random, height: int, width: int, style: Style):
        self.rng, self.height, self.width, self.style = rng, height, width, style
        self.scale = style.supersample
        self.image = Image.new("RGB", (width * self.scale, height * self.scale), style.paper)
        self.draw = ImageDraw.Draw(self.image)
        self.left, self.right = style.margin, width - style.margin
        self.top, self.bottom = min(style.margin, height / 8), height - min(style.margin, height / 8)
        self.lines: list[str] = []
        self.rows: tuple[int, int] | None = None  # lines of its table, or of what it lists: the first, and that behind
        self.glyphs: list[Glyph] = []
        self.placed: dict[str, int] = {}  # where among the glyphs a text that stands for itself begins
        self.labels: list[Label] = []  # from the top, or in the order of the transcription
        self.tips: list[Tip] = []
        self.tints: list[Tip] = []  # where there is a colour that is asked for
        self.reading: list[Glyph] = []  # where the transcription can be read, if that is not the print's own order

    @property
    def room(self) -> int:
        """How many more rows fit."""
        return int((self.bottom - self.top + 1) // self.style.pitch)

    @property
    def span(self) -> float:
        return self.right - self.left

    def face_name(self, face: str) -> str:
        return getattr(self.style.family, face)

    def measure(self, text: str, face: str = "regular") -> float:
        """Width of a text in final pixels."""
        return pen_positions(self.face_name(face), self.style.size * self.scale, text)[-1] / self.scale

    def draw_fitting(self, make: Callable[[], str], width: float, face: str = "regular") -> str | None:
        """The first of sixteen drawn texts that is no wider than ``width``, or None."""
        for _ in range(16):
            text = make()
            if self.measure(text, face) <= width:
                return text
        return None

    def fit(self, make: Callable[[], str], width: float, face: str = "regular") -> str:
        """Like ``draw_fitting``, but a text is cut where none fits."""
        text = self.draw_fitting(make, width, face) or make()
        while len(text) > 1 and self.measure(text, face) > width:
            text = text[:-1].rstrip()
        return text

    def row(self, *cells: Cell, face: str = "regular", bar: bool = False, ink: Color | None = None) -> None:
        """Write one line of cells, from left to right; ``bar`` puts it in paper colour on a dark band."""
        style, pitch = self.style, self.style.pitch
        cap = cap_height(self.face_name(face), style.size * self.scale) / self.scale
        baseline = round((self.top + (pitch + cap) / 2) * self.scale) / self.scale
        color = style.paper if bar else ink or style.ink
        if bar:
            self._rectangle(
                self.left - 2,
                baseline - cap - 2.5,
                self.right + 2,
                baseline + pitch - cap - 2,
                fill=style.accent,
            )
        start = len(self.glyphs)
        for cell in cells:
            self._write(cell, baseline, cap, face, color)
        if len(cells) > 1:
            name, *values = (cell.text for cell in cells)
            self.labels.append(Label(start, start + len(name.replace(" ", "")), tuple(values)))
        self.lines.append(" ".join(cell.text for cell in cells))
        self.top += pitch

    def _write(self, cell: Cell, baseline: float, cap: float, face: str, color: Color) -> None:
        name, scale, text = self.face_name(face), self.scale, cell.text
        font = load_font(name, self.style.size * scale)
        ends = pen_positions(name, self.style.size * scale, text)
        shift = {"l": 0.0, "c": ends[-1] / 2, "r": ends[-1]}[cell.align]
        x = round(cell.x * scale - shift)
        self.draw.text((x, baseline * scale), text, font=font, fill=color, anchor="ls")
        y = baseline - cap / 2
        self.glyphs += [
            Glyph(char, (x + (ends[i] + ends[i + 1]) / 2) / scale, y) for i, char in enumerate(text) if char != " "
        ]

    def aligned(self, text: str, align: str, face: str = "regular", bar: bool = False) -> None:
        """Write one text at the left, the middle or the right of the page."""
        x = {"l": self.left, "c": (self.left + self.right) / 2, "r": self.right}[align]
        self.row(Cell(text, x, align), face=face, bar=bar)

    def pair(self, label: str, value: str, face: str = "regular", pair: str | None = None) -> None:
        """Write a label and its value in the page's manner (see ``Style.pair``)."""
        pair, gap = pair or self.style.pair, self.measure(" ", face)
        end = self.left + self.measure(label, face)
        if pair in ("right", "leader"):
            if pair == "leader":
                self._dots(end + 3, self.right - self.measure(value, face) - 3)
            self.row(Cell(label, self.left), Cell(value, self.right, "r"), face=face)
            return
        tab = self.left + self.span * 0.42
        x = tab if pair == "tab" and tab >= end + gap and tab + self.measure(value, face) <= self.right else end + gap
        self.row(Cell(label, self.left), Cell(value, x), face=face)

    def rule(self, *, dashed: bool = False, gap: float = 3.0) -> None:
        """A horizontal line below what is written; takes ``gap`` pixels."""
        y = self.top + gap / 2
        if dashed:
            x = self.left
            while x < self.right:
                self._rectangle(x, y, min(x + 3, self.right), y + 0.5, fill=self.style.accent)
                x += 6
        else:
            self._rectangle(self.left, y, self.right, y + 0.5, fill=self.style.accent)
        self.top += gap

    def frame(self, inset: float = 1.0) -> None:
        """A box around the whole page."""
        box = (inset, inset, self.width - 1 - inset, self.height - 1 - inset)
        self._rectangle(*box, outline=self.style.accent)

    def vertical(self, x: float, top: float, bottom: float) -> None:
        self._rectangle(x, top, x + 0.4, bottom, fill=self.style.accent)

    def _dots(self, start: float, stop: float) -> None:
        y = self.top + self.style.pitch * 0.78
        while start < stop:
            self._rectangle(start, y, start + 0.5, y + 0.5, fill=self.style.ink)
            start += 4

    def _rectangle(self, x0: float, y0: float, x1: float, y1: float, fill=None, outline=None) -> None:
        corners = [round(v * self.scale) for v in (x0, y0, x1, y1)]
        corners[2], corners[3] = max(corners[2], corners[0]), max(corners[3], corners[1])
        self.draw.rectangle(corners, fill=fill, outline=outline)

    def finish(self) -> np.ndarray:
        """The page as (height, width, 3) uint8; all that knows its place on it is moved along."""
        image = self.image
        self.reading = self.reading or list(self.glyphs)
        if self.style.angle or self.style.keystone:
            matrix = _bend(self.rng, self.height, self.width, self.style)
            image = _warp(image, matrix, self.scale, self.rng, self.style)
            for placed in (self.glyphs, self.reading, self.tips, self.tints):
                placed[:] = _move(placed, matrix)
        if self.scale > 1:
            image = image.reduce(self.scale)
        return _weather(self.rng, image)


def _bend(rng: Random, height: int, width: int, style: Style) -> np.ndarray:
    """The 3 x 3 homography from drawn to final pixels: a rotation about the middle, then a keystone."""
    turn = math.radians(-style.angle)
    cos, sin, cx, cy = math.cos(turn), math.sin(turn), width / 2, height / 2
    rotation = np.array([[cos, -sin, cx - cos * cx + sin * cy], [sin, cos, cy - sin * cx - cos * cy], [0, 0, 1.0]])
    if not style.keystone:
        return rotation
    corners = ((0, 0), (width, 0), (width, height), (0, height))
    rows, target = [], []
    for x, y in corners:
        u = x + (1 if x == 0 else -1) * rng.uniform(-0.3, 1) * style.keystone * width
        v = y + (1 if y == 0 else -1) * rng.uniform(-0.3, 1) * style.keystone * height
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        target += [u, v]
    keystone = np.append(np.linalg.solve(np.array(rows, float), np.array(target)), 1.0).reshape(3, 3)
    return keystone @ rotation


def _warp(image: Image.Image, matrix: np.ndarray, scale: int, rng: Random, style: Style) -> Image.Image:
    grow = np.diag([scale, scale, 1.0])
    back = np.linalg.inv(grow @ matrix @ np.linalg.inv(grow))
    back /= back[2, 2]
    ground = style.paper if rng.random() < 0.4 else tuple(rng.randint(20, 200) for _ in range(3))
    method, count = (Image.Transform.PERSPECTIVE, 8) if style.keystone else (Image.Transform.AFFINE, 6)
    coefficients = back.ravel()[:count].tolist()
    return image.transform(image.size, method, coefficients, Image.Resampling.BILINEAR, fillcolor=ground)


def _move(placed: Sequence[Glyph | Tip], matrix: np.ndarray) -> list[Glyph | Tip]:
    if not placed:
        return []
    points = np.array([(p.x, p.y, 1.0) for p in placed]) @ matrix.T
    points = (points[:, :2] / points[:, 2:]).tolist()
    return [p._replace(x=x, y=y) for p, (x, y) in zip(placed, points, strict=True)]


def _weather(rng: Random, image: Image.Image) -> np.ndarray:
    """Blur, JPEG, uneven light, gain and noise, each on some pages and never enough to hide the print."""
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.25, 0.55)))
    if rng.random() < 0.12:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.randint(55, 90))
        image = Image.open(buffer).convert("RGB")
    pixels = np.asarray(image)
    light, noise = rng.random() < 0.35, rng.random() < 0.4
    if not light and not noise:
        return pixels.copy()
    height, width = pixels.shape[:2]
    values = pixels.astype(np.float32)
    if light:
        slope_x, slope_y, gain = rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2), rng.uniform(0.75, 1.05)
        across = np.linspace(-0.5, 0.5, width, dtype=np.float32) * slope_x
        down = np.linspace(-0.5, 0.5, height, dtype=np.float32) * slope_y
        values *= (gain + across[None, :] + down[:, None])[..., None]
    if noise:
        generator = np.random.default_rng(rng.getrandbits(64))
        grain = generator.standard_normal((height, width, 1), dtype=np.float32)
        values += grain * rng.uniform(1.5, 8.0)
    return np.clip(values, 0, 255).astype(np.uint8)
