"""The sight world: still pictures of 1 to 4 shapes with questions about what is seen, and where.

    seed -> things apart from each other -> picture (64, 64, 3)
                 \\-> questions: boxes, counts, colours, shapes, relations, existence

A box is `[x0, y0, x1, y1]`, whole numbers from 0 to 1000 relative to the picture's width and height, in steps
of 20 (about a pixel): the tight frame of the pixels that a shape covers by more than half. A relation
holds as in the scene world (omni/data/scenes.py) and is asked only where it is clear. A thing is named by its shape
where no other has it, else by colour and shape; no two things of a sight have both in common.

What a guess is worth: one of two for relations and existence, which say "yes" as often as "no"; one of
four for counts (0 to 3 alike, 4 more seldom), of five for shapes, of six for colours.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from omni.data.scenes import (
    BACKGROUNDS,
    CANVAS,
    COLORS,
    FREE_RADIUS,
    GAP,
    MARGIN,
    REACH,
    RELATIONS,
    SHAPES,
    Thing,
    coverage,
    render,
)
from omni.losses import IGNORED

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in thousandths of the width and height
QA = tuple[str, str]  # question, answer

SIGHT_CLASSES = (1 + len(SHAPES), 1 + len(COLORS))  # 0 is "none"
THING_SHARE = 0.2  # of a square that a thing must cover to be what it shows
BOX_STEP = 20
BOX_BINS = 1000 // BOX_STEP + 1
ROWS = 4  # of a picture, in which things are told from left to right
COUNTED = (0, 0, 1, 1, 2, 2, 3, 3, 4)  # how many things have the shape that is counted, drawn alike
RADII = {**FREE_RADIUS, 5: (5.0, 6.5)}  # by number of things, on the 64-pixel canvas
CLEAR, UNCLEAR = 0.8, 0.2  # cosine from which a relation is asked as true; below which it is asked as false
HOLDS = 0.5  # cosine from which a relation holds
NOISE_SHARE, NOISE = 0.3, (2.0, 6.0)  # of the pictures; standard deviation in levels of 255


@dataclass(frozen=True)
class Sight:
    """A picture (64, 64, 3) uint8, what it shows, and questions with answers."""

    image: np.ndarray
    things: tuple[Thing, ...]
    background: str
    qa: tuple[QA, ...]


def sample_sight(seed: int) -> Sight:
    """Draw one sight, always the same for a seed."""
    if seed < 0:
        raise ValueError(f"seed is {seed}, must not be negative")
    rng = Random(f"sight {seed}")
    counted, count = rng.choice(SHAPES), rng.choice(COUNTED)
    total = rng.randint(max(1, count), max(FREE_RADIUS))
    others = [shape for shape in SHAPES if shape != counted]
    shapes = [counted] * count + [rng.choice(others) for _ in range(total - count)]
    things = scatter(rng, _paint(rng, shapes))
    background = rng.choice(tuple(BACKGROUNDS))
    image = add_noise(rng, render(things, background)[None])[0]
    qa = [
        *((f"Where is the {name(thing, things)}?", box_text(box(thing))) for thing in things),
        (f"How many {plural(counted)} are there?", str(count)),
        ("How many things are there?", str(total)),
        *_ask_attributes(things),
        *_ask_relations(rng, things),
        _ask_existence(rng, things),
    ]
    return Sight(image, things, background, tuple(qa))


def _paint(rng: Random, shapes: Sequence[str]) -> list[tuple[str, str]]:
    """A colour for each shape; no two things have the same shape and colour."""
    kinds = []
    for shape in shapes:
        free = [color for color in COLORS if (shape, color) not in kinds]
        kinds.append((shape, rng.choice(free)))
    return rng.sample(kinds, len(kinds))


def scatter(
    rng: Random, kinds: Sequence[tuple[str, str]], radii: Sequence[tuple[float, float]] | None = None
) -> tuple[Thing, ...]:
    """Things (shape, colour) at free places of the 64-pixel canvas, apart from each other.

    `radii` are the limits for each thing; by default they follow from how many there are.
    """
    radii = radii or [RADII[len(kinds)]] * len(kinds)
    attempt = 0
    while True:
        shrink = 0.97 ** (attempt // 8)
        things = []
        for (shape, color), (low, high) in zip(kinds, radii, strict=False):
            radius = max(low, rng.uniform(low, high) * shrink)
            place = _free_place(rng, REACH[shape] * radius, things)
            if place is None:
                break
            things.append(Thing(shape, color, "", *place, radius))
        else:
            return tuple(things)
        attempt += 1


def _free_place(rng: Random, reach: float, things: Iterable[Thing]) -> tuple[float, float] | None:
    edge = reach + MARGIN
    for _ in range(12):
        x, y = rng.uniform(edge, CANVAS - edge), rng.uniform(edge, CANVAS - edge)
        if all(math.hypot(x - t.x, y - t.y) >= reach + REACH[t.shape] * t.radius + GAP for t in things):
            return x, y
    return None


def add_noise(rng: Random, frames: np.ndarray) -> np.ndarray:
    """Light noise on a share of all pictures or clips (frames, height, width, 3) uint8."""
    if rng.random() >= NOISE_SHARE:
        return frames
    noise = np.random.default_rng(rng.getrandbits(64)).standard_normal(frames.shape, dtype=np.float32)
    return np.clip(frames + noise * rng.uniform(*NOISE), 0, 255).astype(np.uint8)


# ----------------------------------------------------------------------------------------------------
# names, boxes, targets


def name(thing: Thing, things: Iterable[Thing]) -> str:
    """The shape where no other thing has it, else colour and shape."""
    return thing.shape if sum(t.shape == thing.shape for t in things) == 1 else full_name(thing)


def full_name(thing: Thing) -> str:
    return f"{thing.color} {thing.shape}"


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def box(thing: Thing, size: int = CANVAS) -> Box:
    """Frame of the pixels that the thing covers by more than half, on a canvas of `size` pixels."""
    rows, columns = np.nonzero(coverage(thing.shape, thing.x, thing.y, thing.radius, (size, size)) > 0.5)
    edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return tuple(BOX_STEP * round(1000 * int(edge) / size / BOX_STEP) for edge in edges)


def cell_of(thing: Thing, size: int = CANVAS) -> tuple[int, float]:
    """Where a thing stands in the order of telling, which is that of reading: its row of the picture, and its place in
    it from the left."""
    return min(max(int(ROWS * thing.y / size), 0), ROWS - 1), thing.x


def box_text(box: Box) -> str:
    return f"[{', '.join(map(str, box))}]"


def sight_targets(sight: Sight, side: int) -> np.ndarray:
    """(tokens, 2) classes, shape and colour, of what covers most of each square of `side` pixels; 0: too little."""
    size = sight.image.shape[0]
    most = np.full(squares(size, side), THING_SHARE)
    targets = np.zeros((len(most), 2), dtype=np.int64)
    for thing in sight.things:
        share = covered(thing, side, size)
        targets[share > most] = classes(thing)
        most = np.maximum(most, share)
    return targets


def box_targets(sight: Sight, side: int) -> np.ndarray:
    """(tokens, 4) box, in steps, of the thing centred in each square of `side` pixels; IGNORED where none is."""
    size = sight.image.shape[0]
    targets = np.full((squares(size, side), 4), IGNORED, dtype=np.int64)
    for thing in sight.things:
        targets[square_of(thing, side, size)] = [at // BOX_STEP for at in box(thing)]
    return targets


def squares(size: int, side: int) -> int:
    """How many squares of `side` pixels make up a picture."""
    if side < 1 or size % side:
        raise ValueError(f"side is {side}, must divide the picture's {size} pixels")
    return (size // side) ** 2


def square_of(thing: Thing, side: int, size: int) -> int:
    """Which square of `side` pixels holds a thing's centre, or is nearest to it."""
    row, column = (min(max(int(at), 0), size - 1) // side for at in (thing.y, thing.x))
    return row * (size // side) + column


def covered(thing: Thing, side: int, size: int) -> np.ndarray:
    """(tokens,) share of each square of `side` pixels that a thing covers."""
    cover = coverage(thing.shape, thing.x, thing.y, thing.radius, (size, size))
    return cover.reshape(size // side, side, size // side, side).mean(axis=(1, 3)).ravel()


def classes(thing: Thing) -> tuple[int, int]:
    """Shape and colour, counted from 1."""
    return 1 + SHAPES.index(thing.shape), 1 + list(COLORS).index(thing.color)


# ----------------------------------------------------------------------------------------------------
# questions


def _ask_attributes(things: Sequence[Thing]) -> list[QA]:
    shapes, colors = [t.shape for t in things], [t.color for t in things]
    qa = [(f"What color is the {t.shape}?", t.color) for t in things if shapes.count(t.shape) == 1]
    return qa + [(f"What shape is {t.color}?", t.shape) for t in things if colors.count(t.color) == 1]


def _ask_existence(rng: Random, things: Sequence[Thing]) -> QA:
    """A thing that is there, or one that is not: with the colour or the shape of one that is, more often than not."""
    there = [(t.color, t.shape) for t in things]
    missing = [(color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in there]
    near = [kind for kind in missing if any(kind[0] == c or kind[1] == s for c, s in there)]
    exists = rng.random() < 0.5
    color, shape = rng.choice(there if exists else near if rng.random() < 0.7 else missing)
    article = "an" if color[0] in "aeiou" else "a"
    return f"Is there {article} {color} {shape}?", "yes" if exists else "no"


def _ask_relations(rng: Random, things: Sequence[Thing]) -> list[QA]:
    """One relation to confirm or deny, and what lies where as far as only one thing does."""
    pairs = [(a, b) for a in things for b in things if a is not b]
    true = [(a, b, r) for a, b in pairs for r in RELATIONS if alignment(r, a, b) >= CLEAR]
    false = [(a, b, r) for a, b in pairs for r in RELATIONS if alignment(r, a, b) <= UNCLEAR]
    qa = []
    if true and false:
        holds = rng.random() < 0.5
        a, b, relation = rng.choice(true if holds else false)
        question = f"Is the {name(a, things)} {_link(relation)} the {name(b, things)}?"
        qa.append((question, "yes" if holds else "no"))
    for origin in rng.sample(things, len(things)):
        relation = rng.choice(tuple(RELATIONS))
        there = [t for t in things if t is not origin and alignment(relation, t, origin) > HOLDS]
        if len(there) == 1 and alignment(relation, there[0], origin) >= CLEAR:
            qa.append((f"What is {_link(relation)} the {name(origin, things)}?", name(there[0], things)))
    return qa


def _link(relation: str) -> str:
    return f"{relation} of" if relation in ("left", "right") else relation


def alignment(relation: str, thing: Thing, origin: Thing) -> float:
    """Cosine between the relation's direction and the way from `origin` to `thing`."""
    dx, dy = thing.x - origin.x, thing.y - origin.y
    ux, uy = RELATIONS[relation]
    return (dx * ux + dy * uy) / math.hypot(dx, dy)
