"""The scene world: pictures of a few coloured shapes with captions, and a detector that checks pictures.

It is the training and evaluation ground of text-to-image. The six categories are those of GenEval (Ghosh et
al. 2023, arXiv 2310.11513), and so is the rule of a spatial relation: "a left of b" holds when the unit
vector from b to a goes at least half of its length to the left, so a diagonal may satisfy two relations.

A caption and a machine-checkable `Request` are drawn together from a seed; the picture follows from
the request. Whatever the caption leaves open (colour, size, place) is drawn freely, but an unnamed
background is white. `describe` says in words what the picture chose: a prompt that leaves nothing open.

With a seed of `TRAIN_SEEDS` no picture ever shows one of the held-out pairs of coloured shapes (about a tenth
of them, `is_held_out`), so those measure composition, not memory.

Lengths are in pixels, x to the right and y down; a canvas of `size` pixels is the 64-pixel one enlarged.
"""

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from random import Random

import numpy as np
from scipy import ndimage

from omni.data import TRAIN_SEEDS

Place = tuple[float, float]  # x, y

CATEGORIES = ("single_object", "two_objects", "counting", "colors", "position", "color_attribution")
SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLORS = {
    "red": (220, 35, 40),
    "green": (35, 160, 60),
    "blue": (40, 75, 225),
    "yellow": (245, 215, 40),
    "purple": (150, 45, 185),
    "orange": (250, 130, 25),
}
BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "gray": (128, 128, 128)}
RELATIONS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}
MAX_CAPTION = 60
CANVAS = 64
CELLS = "abcdefgh"  # a description gives places as on a chess board: columns a to h, rows 1 to 8 from the top

# Radii on the 64-pixel canvas. The gap between the two named sizes keeps the words unambiguous.
SIZES = {"small": (6.0, 7.5), "large": (11.0, 13.0)}
SIZE_LIMIT = 9.0  # a found radius below it is small, above it large
MEDIUM = "medium"  # what a description calls the radii between them
FREE_RADIUS = {1: (7.0, 12.5), 2: (6.5, 10.5), 3: (6.0, 8.5), 4: (6.0, 7.5)}  # by number of things
# The farthest point of each shape from its centroid, and its area, for radius 1.
REACH = {"circle": 1.0, "square": 1.25, "triangle": 1.3, "cross": 1.07, "ring": 1.0}
AREA = {"circle": math.pi, "square": 4 * 0.88**2, "triangle": 2.1952, "cross": 2.3616, "ring": math.pi * 0.75}
GAP, MARGIN = 4.0, 2.0

SPECK = 16  # components of fewer pixels (of 64 x 64) are noise
FOREGROUND = 60.0  # RGB distance from the background that makes a pixel foreground
COLOR_TOLERANCE = 85.0  # RGB distance from a palette entry that still has its name
SHAPE_FIT = 0.72  # soft intersection over union with the best template; below it the shape is "unknown"


@dataclass(frozen=True)
class Thing:
    """One drawn shape: centroid (x, y) and radius in pixels; `size` is the caption's word or ""."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Want:
    """`count` things of one shape; colour and size are free where they are None."""

    shape: str
    color: str | None = None
    count: int = 1
    size: str | None = None

    def __post_init__(self):
        _known("shape", self.shape, SHAPES)
        _known("color", self.color, (None, *COLORS))
        _known("size", self.size, (None, *SIZES))
        if not 1 <= self.count <= max(FREE_RADIUS):
            raise ValueError(f"count is {self.count}: 1 to {max(FREE_RADIUS)} things fit a picture")


@dataclass(frozen=True)
class Request:
    """What a right picture shows: exactly the wanted things, and nothing else.

    `relation` says where the first wanted thing lies as seen from the second. A background of None is free.
    """

    wants: tuple[Want, ...]
    relation: str | None = None
    background: str | None = None

    def __post_init__(self):
        _known("relation", self.relation, (None, *RELATIONS))
        _known("background", self.background, (None, *BACKGROUNDS))
        total = sum(want.count for want in self.wants)
        if not 1 <= total <= max(FREE_RADIUS):
            raise ValueError(f"a request for {total} things: 1 to {max(FREE_RADIUS)} fit a picture")
        if self.relation and [want.count for want in self.wants] != [1, 1]:
            raise ValueError(f"relation {self.relation!r} needs two things, got {self.wants}")
        shapes = [want.shape for want in self.wants]
        if len(set(shapes)) < len(shapes):
            raise ValueError(f"the shapes of a request must differ, got {shapes}")


@dataclass(frozen=True)
class Scene:
    """A picture (size, size, 3) uint8 with its caption, what it shows, and what the caption asks for."""

    image: np.ndarray
    caption: str
    category: str
    things: tuple[Thing, ...]
    background: str
    request: Request


@dataclass(frozen=True)
class Found:
    """One detected thing, in pixels; shape or colour is "unknown" where nothing fits."""

    shape: str
    color: str
    x: float
    y: float
    area: float
    radius: float


@dataclass(frozen=True)
class Detection:
    background: str
    things: list[Found]


def _known(what: str, value: str | None, allowed: Iterable[str | None]) -> None:
    if value not in allowed:
        raise ValueError(f"{what} is {value!r}, must be one of {', '.join(map(str, allowed))}")


# ----------------------------------------------------------------------------------------------------
# captions and requests


def sample_prompt(seed: int, category: str | None = None) -> tuple[str, Request]:
    """A caption of at most 60 characters and its request, as `sample_scene` draws them for this seed."""
    caption, request, _, _ = _draw_prompt(seed, category)
    return caption, request


def sample_scene(seed: int, category: str | None = None, size: int = CANVAS) -> Scene:
    """Draw one scene on a canvas of `size` pixels (a multiple of 8, at least 64), the same for a seed."""
    if size < CANVAS or size % 8:
        raise ValueError(f"size is {size}, must be a multiple of 8 and at least {CANVAS}")
    caption, request, category, rng = _draw_prompt(seed, category)
    things = _draw_things(rng, request, training=seed in TRAIN_SEEDS)
    scale = size / CANVAS
    things = tuple(
        replace(thing, x=thing.x * scale, y=thing.y * scale, radius=thing.radius * scale) for thing in things
    )
    background = request.background or "white"
    return Scene(render(things, background, size), caption, category, things, background, request)


def describe(scene: Scene) -> str:
    """The scene in full, things in the caption's order: "small red circle at c5, large blue ring at f2, on white"."""
    scale = scene.image.shape[0] / CANVAS
    things = [
        f"{_size_word(thing.radius / scale)} {thing.color} {thing.shape} at {_cell(thing.x / scale, thing.y / scale)}"
        for thing in scene.things
    ]
    return ", ".join([*things, f"on {scene.background}"])


def _size_word(radius: float) -> str:
    return next((word for word, (low, high) in SIZES.items() if low <= radius <= high), MEDIUM)


def _cell(x: float, y: float) -> str:
    """Where a point of the 64-pixel canvas lies on a board of 8 x 8."""
    side = CANVAS / len(CELLS)
    return f"{CELLS[int(x / side)]}{int(y / side) + 1}"


def is_held_out(request: Request) -> bool:
    """Whether the request names a pair of coloured shapes that training pictures never show."""
    if len(request.wants) != 2 or any(want.color is None for want in request.wants):
        return False
    return _held_out_pair(*((want.shape, want.color) for want in request.wants))


@cache
def _held_out_pair(first: tuple[str, str], second: tuple[str, str]) -> bool:
    if first[0] == second[0]:
        return False  # only things to be counted share a shape
    # A checksum, not Python's hash: the split must be the same in every process. Order does not matter.
    key = "|".join(sorted(" ".join(pair) for pair in (first, second)))
    return zlib.crc32(key.encode()) % 10 == 0


def _draw_prompt(seed: int, category: str | None) -> tuple[str, Request, str, Random]:
    if seed < 0:
        raise ValueError(f"seed is {seed}, must not be negative")
    _known("category", category, (None, *CATEGORIES))
    category = category or Random(seed).choice(CATEGORIES)
    rng = Random(f"{seed} {category}")  # the categories of one seed share nothing
    while True:
        request = _draw_request(rng, category)
        if not (seed in TRAIN_SEEDS and is_held_out(request)):
            return _caption(rng, request), request, category, rng


def _draw_request(rng: Random, category: str) -> Request:
    first, second = rng.sample(SHAPES, 2)
    tint, other = rng.sample(tuple(COLORS), 2)
    background = rng.choice(tuple(BACKGROUNDS)) if rng.random() < 0.3 else None
    size = rng.choice(tuple(SIZES)) if rng.random() < 0.25 else None
    relation = None
    if category == "single_object":
        wants = (Want(first, size=size),)
    elif category == "colors":
        wants = (Want(first, tint, size=size),)
    elif category == "counting":
        wants = (Want(first, tint if rng.random() < 0.7 else None, rng.randint(2, 4)),)
    elif category == "two_objects":
        wants = (Want(first), Want(second))
    else:
        if category == "position":
            relation = rng.choice(tuple(RELATIONS))
            if rng.random() < 0.3:
                tint = other = None
        wants = (Want(first, tint), Want(second, other))
    return Request(wants, relation, background)


def _caption(rng: Random, request: Request) -> str:
    text = _noun(rng, request.wants[0])
    if len(request.wants) == 2:
        text += f" {_link(rng, request.relation)} {_noun(rng, request.wants[1])}"
    if request.background:
        endings = [f" on a {request.background} background", f" on {request.background}"]
        text += rng.choice([ending for ending in endings if len(text + ending) <= MAX_CAPTION])
    opening = rng.choice(("", "", "", "a picture of ", "a photo of ", "a drawing of "))
    return opening + text if len(opening + text) <= MAX_CAPTION else text


def _noun(rng: Random, want: Want) -> str:
    words = " ".join(word for word in (want.size, want.color, want.shape) if word)
    if want.count == 1:
        return ("an " if words[0] in "aeiou" else "a ") + words
    number = rng.choice((str(want.count), ("two", "three", "four")[want.count - 2]))
    return f"{number} {words}{'es' if words.endswith('s') else 's'}"


def _link(rng: Random, relation: str | None) -> str:
    if relation is None:
        return "and"
    if relation in ("left", "right"):
        return rng.choice((f"{relation} of", f"to the {relation} of"))
    return relation


# ----------------------------------------------------------------------------------------------------
# pictures


def _draw_things(rng: Random, request: Request, training: bool) -> list[Thing]:
    """Choose what the request leaves open, on the 64-pixel canvas."""
    kinds = _draw_kinds(rng, request.wants)
    # A free colour must not bring a held-out pair into a training picture by the back door.
    while training and len(kinds) == 2 and _held_out_pair(kinds[0][:2], kinds[1][:2]):
        kinds = _draw_kinds(rng, request.wants)
    attempt = 0
    while True:
        radii = [_draw_radius(rng, size, len(kinds), 0.97 ** (attempt // 8)) for _, _, size in kinds]
        places = _draw_places(rng, request.relation, [REACH[kind[0]] for kind in kinds], radii)
        if places:
            things = [
                Thing(shape, color, size or "", x, y, radius)
                for (shape, color, size), (x, y), radius in zip(kinds, places, radii, strict=True)
            ]
            return _in_reading_order(things)
        attempt += 1


def _in_reading_order(things: list[Thing]) -> list[Thing]:
    """Things that are counted, top to bottom; those of different shapes keep the order of the caption."""
    counted = len({thing.shape for thing in things}) == 1
    return sorted(things, key=lambda thing: (int(8 * thing.y / CANVAS), thing.x)) if counted else things


def _draw_kinds(rng: Random, wants: Iterable[Want]) -> list[tuple[str, str, str | None]]:
    kinds = []
    for want in wants:
        color = want.color or rng.choice(tuple(COLORS))
        kinds += [(want.shape, color, want.size)] * want.count
    return kinds


def _draw_radius(rng: Random, size: str | None, things: int, shrink: float) -> float:
    low, high = SIZES[size] if size else FREE_RADIUS[things]
    return max(low, rng.uniform(low, high) * shrink)


def _draw_places(rng: Random, relation: str | None, reaches: list[float], radii: list[float]) -> list[Place] | None:
    """Centres that keep the things apart and inside the canvas and fulfil the relation, or None."""
    places = []
    for reach, radius in zip(reaches, radii, strict=True):
        edge = reach * radius + MARGIN
        for _ in range(12):
            x, y = rng.uniform(edge, CANVAS - edge), rng.uniform(edge, CANVAS - edge)
            apart = all(
                math.hypot(x - u, y - v) >= reach * radius + near * other + GAP
                for (u, v), near, other in zip(places, reaches, radii, strict=False)
            )
            if apart:
                places.append((x, y))
                break
        else:
            return None
    # Drawn within 37 degrees of the axis: clearer than the 60 degrees that `check` allows.
    return None if relation and _alignment(relation, places[0], places[1]) < 0.8 else places


def _alignment(relation: str, place: Place, origin: Place) -> float:
    """Cosine between the relation's direction and the way from `origin` to `place`."""
    dx, dy = place[0] - origin[0], place[1] - origin[1]
    ux, uy = RELATIONS[relation]
    return (dx * ux + dy * uy) / (math.hypot(dx, dy) or 1.0)


def render(things: Iterable[Thing], background: str, size: int = CANVAS) -> np.ndarray:
    """Draw things (pixels of this canvas) on a plain background, anti-aliased: (size, size, 3) uint8."""
    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = BACKGROUNDS[background]
    for thing in things:
        reach = REACH[thing.shape] * thing.radius + 1
        rows = slice(max(0, int(thing.y - reach)), min(size, int(thing.y + reach) + 1))
        cols = slice(max(0, int(thing.x - reach)), min(size, int(thing.x + reach) + 1))
        patch = canvas[rows, cols]
        center = thing.x - cols.start, thing.y - rows.start
        cover = coverage(thing.shape, *center, thing.radius, patch.shape[:2])
        patch += cover[..., None] * (np.asarray(COLORS[thing.color], np.float32) - patch)
    return (canvas + 0.5).astype(np.uint8)


def coverage(shape: str, x: float, y: float, radius: float, extent: tuple[int, int]) -> np.ndarray:
    """Share of each pixel that the shape covers, (rows, columns) float32, from its signed distance."""
    dx = np.arange(extent[1], dtype=np.float32)[None, :] + (0.5 - x)
    dy = np.arange(extent[0], dtype=np.float32)[:, None] + (0.5 - y)
    return np.minimum(np.maximum(0.5 - _distance(shape, dx, dy, radius), 0), 1)


def _distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Distance to the outline along the nearest face, negative inside; exact but for outer corners."""
    if shape == "circle":
        return np.sqrt(dx * dx + dy * dy) - radius
    if shape == "ring":
        return np.abs(np.sqrt(dx * dx + dy * dy) - 0.75 * radius) - 0.25 * radius
    if shape == "triangle":  # equilateral, point up, circumradius 1.3: all faces lie 0.65 from the centroid
        return np.maximum(np.abs(dx) * (math.sqrt(3) / 2) - dy / 2, dy) - 0.65 * radius
    ax, ay = np.abs(dx), np.abs(dy)
    if shape == "square":
        return np.maximum(ax, ay) - 0.88 * radius
    return np.maximum(np.minimum(ax, ay) - 0.36 * radius, np.maximum(ax, ay) - radius)


# ----------------------------------------------------------------------------------------------------
# the detector


def detect(image: np.ndarray) -> Detection:
    """Find the plain background and every coloured shape of a picture (h, w, 3) uint8.

    Foreground is what differs from the border's colour. Each connected component gets the colour of its
    strong pixels and the shape whose template, at the component's centroid and area, overlaps it best.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 16:
        raise ValueError(f"a picture is (h, w, 3) uint8, h and w at least 16; got {image.shape} {image.dtype}")
    pixels = image.astype(np.float32)
    ground = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)
    contrast = np.linalg.norm(pixels - ground, axis=-1)
    labels, _ = ndimage.label(contrast > FOREGROUND)
    smallest = SPECK * (min(image.shape[:2]) / CANVAS) ** 2
    areas = np.bincount(labels.ravel())
    things = [
        _identify(pixels, ground, labels, index, box)
        for index, box in enumerate(ndimage.find_objects(labels), start=1)
        if areas[index] >= smallest
    ]
    return Detection(_nearest(ground, BACKGROUNDS), things)


def _nearest(color: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    distances = {name: float(np.linalg.norm(color - np.asarray(value))) for name, value in palette.items()}
    name = min(distances, key=distances.get)
    return name if distances[name] <= COLOR_TOLERANCE else "unknown"


def _identify(
    pixels: np.ndarray, ground: np.ndarray, labels: np.ndarray, index: int, box: tuple[slice, slice]
) -> Found:
    rows, cols = (slice(max(0, side.start - 2), side.stop + 2) for side in box)
    offset, labels = pixels[rows, cols] - ground, labels[rows, cols]
    tint = _tint(offset[labels == index])
    color = "unknown" if tint is None else _nearest(ground + tint, COLORS)
    cover = (labels == index).astype(np.float32) if tint is None else _cover(offset, tint)
    cover[(labels != index) & (labels != 0)] = 0
    area = float(cover.sum())
    x = float((cover.sum(0) @ (np.arange(cover.shape[1]) + 0.5)) / area)
    y = float((cover.sum(1) @ (np.arange(cover.shape[0]) + 0.5)) / area)
    fits = {shape: _overlap(cover, shape, x, y, math.sqrt(area / AREA[shape])) for shape in SHAPES}
    best = max(fits, key=fits.get)
    shape = best if fits[best] >= SHAPE_FIT else "unknown"
    return Found(shape, color, x + cols.start, y + rows.start, area, math.sqrt(area / AREA[best]))


def _tint(offsets: np.ndarray) -> np.ndarray | None:
    """The one colour, as a difference from the background, of a component's (n, 3) pixels; None if of several."""
    contrast = np.linalg.norm(offsets, axis=-1)
    strong = offsets[contrast >= 0.7 * np.percentile(contrast, 90)]  # without the soft rim
    tint = np.median(strong, axis=0)
    agree = np.mean(np.linalg.norm(strong - tint, axis=-1) < COLOR_TOLERANCE)
    return tint if agree > 0.75 and np.linalg.norm(tint) > FOREGROUND / 2 else None


def _cover(offset: np.ndarray, tint: np.ndarray) -> np.ndarray:
    """How much of each pixel is the thing: its place on the line from the background's colour to the thing's."""
    cover = offset @ tint / np.sum(tint**2)
    return np.clip(1.3 * (cover - 0.5) + 0.5, 0, 1)  # a little contrast, against noise and blur


def _overlap(cover: np.ndarray, shape: str, x: float, y: float, radius: float) -> float:
    template = coverage(shape, x, y, radius, cover.shape)
    return float(np.minimum(cover, template).sum() / np.maximum(cover, template).sum())


def check(image: np.ndarray, request: Request) -> bool:
    """Whether the picture (h, w, 3) uint8 shows exactly what was asked, and nothing else."""
    detection = detect(image)
    if request.background not in (None, detection.background):
        return False
    unit = min(image.shape[:2]) / CANVAS
    matches = [[thing for thing in detection.things if _fits(thing, want, unit)] for want in request.wants]
    if [len(match) for match in matches] != [want.count for want in request.wants]:
        return False
    if len(detection.things) != sum(want.count for want in request.wants):
        return False
    if request.relation is None:
        return True
    first, second = matches[0][0], matches[1][0]
    return _alignment(request.relation, (first.x, first.y), (second.x, second.y)) > 0.5


def _fits(thing: Found, want: Want, unit: float) -> bool:
    if thing.shape != want.shape or want.color not in (None, thing.color):
        return False
    return want.size is None or (thing.radius < SIZE_LIMIT * unit) == (want.size == "small")
