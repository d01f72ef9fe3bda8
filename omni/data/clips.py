"""The clip world: short films of coloured shapes with questions about what happens and when.

    seed -> kind -> story: the things of every frame, questions -> frames (T, 64, 64, 3), times (T,)

Frame i is shown at i / fps seconds; fps is drawn from 10 to 1/60, so a clip is a second as well as a quarter of
an hour seen sparsely. Frames 2k and 2k + 1 form a pair, whose label is the time of frame 2k. What appears, leaves,
changes or touches does so at the start of a pair, and "when" is asked for the label of that pair.

What happens is told by :mod:`omni.data.clip_log`, which sees only the things, the times and the second of a touch.

What a guess is worth, with `p` pairs. "When" is one of about `p` throughout. `shuffled` clips are no control for
what does not depend on order: the axis of a motion and who moves, whether bodies touch, how many things there are
altogether.

motion     a body crosses the picture and comes in again on the other side; where it starts says nothing. Direction:
           one of five ("it stays" is one). What moves or stays: one of two. From the middle frame alone, which can
           show the axis by a body cut by the edge, 0.3.
order      2 to 4 things; each question of what came first, second, last or after another is one of those. All are
           there at the end in half of the clips. How many altogether: one of three; 0.45 from the middle frame.
count      at the start, at the end and altogether, three numbers drawn apart from each other: each one of three;
           0.37 from the middle frame.
collision  touching is one of two; 0.6 to 0.7 from the middle frame, fewer frames the more: bodies far apart across
           their way will pass. A near miss is the course of a touch but for the last pixels. What stops: one of
           three, "nothing" in half.
change     to and from which colour: one of six, but one of two for who sees the middle frame, which is
           as often before the change as after it. Grows or shrinks: one of two, also for the middle frame.
blink      1 to 4 appearances, fewer where the pairs do not suffice: one of four; 0.3 from the middle frame. The
           thing is seen in half of the pairs whatever the number, so `shuffled` clips say nothing.

Lengths are those of the 64-pixel canvas, x to the right and y down; other canvases are that one enlarged.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random

import numpy as np

from omni.data.scenes import BACKGROUNDS, CANVAS, COLORS, MARGIN, REACH, SHAPES, Thing, render
from omni.data.sights import QA, THING_SHARE, add_noise, classes, covered, full_name, scatter, squares
from omni.tokenizers.prompts import time_label

Frame = dict[int, Thing]  # by identity: what is there, whether or not it is wholly inside the picture

LENGTHS = (6, 8, 10, 12, 14, 16)
FPS = (10, 5, 4, 2, 1, 0.5, 0.2, 0.1, 1 / 30, 1 / 60)  # the label of a pair is a whole tenth of a second
MAX_FRAMES = 64
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
CLIP_CLASSES = (1 + len(SHAPES), 1 + len(COLORS), 1 + len(MOTIONS))  # shape, colour, motion; 0 is "none"
STAYS = "it stays"
CONTACT = "At what second do they touch?"
STILL = 0.5  # pixels between two frames below which nothing moved

SLOWEST, SPREAD = 2.5, 2.0  # pixels a frame that a body moves at least, and how many more at most
TRAVEL = CANVAS / 3  # that a body moves altogether at least
NEAR_MISS = (4.0, 6.0)  # pixels between two bodies that do not touch
WAY = 11.0  # pixels to a meeting at least: more than the gap, so that the approach to a near miss is seen
LANES = 3.0  # pixels between two that pass
SLANT = 0.8  # sideways pixels, at most, for each one on the way to a meeting
# Bodies whose outermost point lies on both axes: two of them touch there. A triangle's corner would touch elsewhere.
FACE = {"circle": 1.0, "square": 0.88, "cross": 1.0, "ring": 1.0}
SIZES = {"small": (5.5, 7.0), "large": (11.0, 13.0)}  # radii between which a thing grows or shrinks
FLASHES = 4
SWAY, SWAY_SECONDS = 3.0, 20.0  # how far, in pixels, and how often things of long clips swing


@dataclass(frozen=True)
class Clip:
    """Frames (T, H, W, 3) uint8, their times (T,) in seconds, and what they show; with `wraps`, beyond the edges."""

    frames: np.ndarray
    times: np.ndarray
    kind: str
    qa: tuple[QA, ...]
    things: tuple[Frame, ...]
    background: str
    wraps: bool


@dataclass(frozen=True)
class Story:
    """What happens: the things of each frame, and questions with answers."""

    things: list[Frame]
    qa: list[QA]
    wraps: bool = False


def sample_clip(seed: int, kind: str | None = None, frames: int | None = None, size: int = CANVAS) -> Clip:
    """Draw one clip of 6 to 16 frames, or of `frames` (even, 6 to 64), always the same for a seed."""
    if seed < 0:
        raise ValueError(f"seed is {seed}, must not be negative")
    if kind not in (None, *KINDS):
        raise ValueError(f"kind is {kind!r}, must be one of {', '.join(KINDS)}")
    if frames is not None and (frames % 2 or not LENGTHS[0] <= frames <= MAX_FRAMES):
        raise ValueError(f"frames is {frames}, must be even and {LENGTHS[0]} to {MAX_FRAMES}")
    if size < CANVAS or size % 8:
        raise ValueError(f"size is {size}, must be a multiple of 8 and at least {CANVAS}")
    kind = kind or Random(f"clip {seed}").choice(tuple(KINDS))
    rng = Random(f"clip {seed} {kind}")
    if frames is None:
        frames = rng.choice([n for n in LENGTHS if kind != "blink" or n // 2 >= 2 * FLASHES - 1])
    times = np.arange(frames) / rng.choice(FPS)
    story = KINDS[kind](rng, [time_label(seconds) for seconds in times[::2]])
    things = tuple({who: _scaled(t, size / CANVAS) for who, t in frame.items()} for frame in story.things)
    background = rng.choice(tuple(BACKGROUNDS))
    pictures = add_noise(rng, _film(things, background, size, story.wraps))
    return Clip(pictures, times, kind, tuple(story.qa), things, background, story.wraps)


def frozen(clip: Clip) -> np.ndarray:
    """Control: the middle frame in place of all, (T, H, W, 3)."""
    return np.repeat(clip.frames[len(clip.frames) // 2][None], len(clip.frames), axis=0)


def shuffled(clip: Clip, rng: Random) -> np.ndarray:
    """Control: the frames in another order, (T, H, W, 3), no pair of them together; the times stay as they were."""
    order = list(range(len(clip.frames)))
    while any(a // 2 == b // 2 for a, b in zip(order[::2], order[1::2], strict=True)):
        rng.shuffle(order)
    return clip.frames[order]


def clip_targets(clip: Clip, side: int, tubelet: int = 2) -> np.ndarray:
    """(tubelets, tokens, 3) classes of what covers most of each square of `side` pixels in `tubelet` frames.

    The columns are shape, colour and motion (0 none, then `MOTIONS`); all are 0 where it covers too little.
    """
    count, size = clip.frames.shape[:2]
    if tubelet < 1 or count % tubelet:
        raise ValueError(f"tubelet is {tubelet}, must divide the clip's {count} frames")
    targets = np.zeros((count // tubelet, squares(size, side), 3), dtype=np.int64)
    for k, target in enumerate(targets):
        frames = clip.things[k * tubelet : (k + 1) * tubelet]
        most = np.full(len(target), THING_SHARE)
        for who in dict.fromkeys(who for frame in frames for who in frame):
            seen = [frame[who] for frame in frames if who in frame]
            drawn = [copy for thing in seen for copy in _copies(thing, size, clip.wraps)]
            share = sum((covered(copy, side, size) for copy in drawn), np.zeros(len(target))) / tubelet
            target[share > most] = *classes(seen[0]), motion_class(seen[0], seen[-1], size)
            most = np.maximum(most, share)
    return targets


def motion_class(first: Thing, last: Thing, size: int) -> int:
    # The shorter way, which leads over the edge where a body comes in again on the other side.
    dx, dy = ((b - a + size / 2) % size - size / 2 for a, b in ((first.x, last.x), (first.y, last.y)))
    if max(abs(dx), abs(dy)) < STILL:
        return 0
    return 1 + max(range(4), key=lambda i: dx * tuple(MOTIONS.values())[i][0] + dy * tuple(MOTIONS.values())[i][1])


def _scaled(thing: Thing, scale: float) -> Thing:
    return replace(thing, x=thing.x * scale, y=thing.y * scale, radius=thing.radius * scale)


def _film(things: Sequence[Frame], background: str, size: int, wraps: bool) -> np.ndarray:
    frames = np.empty((len(things), size, size, 3), np.uint8)
    for i, frame in enumerate(things):
        if i and frame == things[i - 1]:
            frames[i] = frames[i - 1]
        else:
            drawn = [copy for thing in frame.values() for copy in _copies(thing, size, wraps)]
            frames[i] = render(drawn, background, size)
    return frames


def _copies(thing: Thing, size: int, wraps: bool) -> list[Thing]:
    """The thing as far as it is inside, and with `wraps` what has left on one side and comes in on the other."""
    reach = REACH[thing.shape] * thing.radius
    shifts = (0, -size, size) if wraps else (0,)
    places = [(thing.x + dx, thing.y + dy) for dx in shifts for dy in shifts]
    return [replace(thing, x=x, y=y) for x, y in places if -reach < x < size + reach and -reach < y < size + reach]


# ----------------------------------------------------------------------------------------------------
# stories: each is given the labels of the pairs and fills two frames a pair


def _kinds(rng: Random, count: int, shapes: Iterable[str] = SHAPES) -> list[tuple[str, str]]:
    """Kinds of things (shape, colour) that have neither in common; of more than five, not both."""
    shapes = tuple(shapes)
    if count <= len(shapes):
        return list(zip(rng.sample(shapes, count), rng.sample(tuple(COLORS), count), strict=True))
    return rng.sample([(shape, color) for shape in shapes for color in COLORS], count)


def _moment(rng: Random, pairs: int, apart: int = 0) -> int:
    """A pair after the first, as often after the middle frame as not, and if there is room `apart` pairs before it."""
    middle = pairs // 2
    return rng.randint(1, max(1, middle - apart)) if rng.random() < 0.5 else rng.randint(middle + 1, pairs - 1)


def _motion(rng: Random, labels: list[str]) -> Story:
    frames = 2 * len(labels)
    axis = rng.choice((("left", "right"), ("up", "down")))
    kinds = _kinds(rng, rng.choice((1, 2)))
    moves = [rng.choice(axis) for _ in kinds]
    if rng.random() < (0.2 if len(kinds) == 1 else 0.4):  # a fifth of all bodies stays
        moves[rng.randrange(len(kinds))] = STAYS
    bodies = []
    for thing, way in zip(_in_lanes(rng, kinds, along_x="left" in axis), moves, strict=True):
        dx, dy = MOTIONS.get(way, (0, 0))
        speed = max(SLOWEST, TRAVEL / (frames - 1)) + rng.uniform(0, SPREAD)
        path = [((thing.x + dx * speed * i) % CANVAS, (thing.y + dy * speed * i) % CANVAS) for i in range(frames)]
        bodies.append([replace(thing, x=x, y=y) for x, y in path])
    named = [full_name(body[0]) for body in bodies]
    qa = [(f"Which way does the {thing} move?", way) for thing, way in zip(named, moves, strict=True)]
    if len(kinds) == 2:
        qa += [(f"What moves {way}?", named[moves.index(way)]) for way in MOTIONS if moves.count(way) == 1]
        if STAYS in moves:
            still = moves.index(STAYS)
            qa += [("What moves?", named[1 - still]), ("What stays still?", named[still])]
    things = [dict(enumerate(frame)) for frame in zip(*bodies, strict=True)]
    return Story(things, qa, wraps=True)


def _in_lanes(rng: Random, kinds: Sequence[tuple[str, str]], along_x: bool) -> list[Thing]:
    """Bodies anywhere along the axis and, across it, apart from each other and inside."""
    while True:
        radii = [rng.uniform(6.0, 9.5) for _ in kinds]
        reaches = [REACH[shape] * radius for (shape, _), radius in zip(kinds, radii, strict=True)]
        across = [rng.uniform(reach + MARGIN, CANVAS - reach - MARGIN) for reach in reaches]
        if len(kinds) == 1 or abs(across[0] - across[1]) >= sum(reaches) + LANES:
            break
    # A whole thing is seen at the start: what is cut in two by the edge must be moving.
    along = [rng.uniform(reach, CANVAS - reach) for reach in reaches]
    places = zip(along, across, strict=True) if along_x else zip(across, along, strict=True)
    return [Thing(*kind, "", *place, radius) for kind, place, radius in zip(kinds, places, radii, strict=True)]


def _order(rng: Random, labels: list[str]) -> Story:
    pairs = len(labels)
    manner = rng.choice(("stay", "stay", "some leave", "in turn"))
    most = 8 if manner == "in turn" and 2 * pairs > LENGTHS[-1] else 4
    count = rng.randint(2, min(most, pairs))
    comes = sorted(rng.sample(range(pairs), count))
    goes = [*comes[1:], pairs] if manner == "in turn" else [pairs] * count
    if manner == "some leave":
        early = [who for who in range(count) if comes[who] < pairs - 1]
        for who in rng.sample(early, rng.randint(1, min(2, len(early)))):
            goes[who] = rng.randint(comes[who] + 1, pairs - 1)
    kinds = _kinds(rng, count)
    bodies = scatter(rng, kinds) if count <= 4 else [scatter(rng, [kind])[0] for kind in kinds]
    things = _visible(bodies, [{*range(c, g)} for c, g in zip(comes, goes, strict=True)], pairs)
    named = [full_name(body) for body in bodies]
    qa = [*order_questions(named), *when_questions(named, [labels[pair] for pair in comes])]
    return Story(things, qa)


def order_questions(named: Sequence[str]) -> list[QA]:
    """What came when, of things in the order of their coming."""
    qa = [("What came first?", named[0]), ("What came last?", named[-1])]
    qa += [("What came second?", named[1])] if len(named) > 2 else []
    qa += [(f"What came after the {a}?", b) for a, b in pairwise(named)]
    return [*qa, ("How many things were seen altogether?", str(len(named)))]


def when_questions(named: Iterable[str], labels: Iterable[str]) -> list[QA]:
    return [(f"At what second does the {a} appear?", label) for a, label in zip(named, labels, strict=True)]


def _visible(bodies: Sequence[Thing], when: Sequence[set[int]], pairs: int) -> list[Frame]:
    """Resting bodies, each seen in its set of pairs."""
    shown = [{who: body for who, body in enumerate(bodies) if pair in when[who]} for pair in range(pairs)]
    return [frame for frame in shown for _ in range(2)]


def _count(rng: Random, labels: list[str]) -> Story:
    pairs = len(labels)
    start, end, total = rng.randint(1, 3), rng.randint(1, 3), rng.randint(3, 5)
    when = []
    for who in range(total):
        at_start, at_end = who < start, who >= total - end
        first = 0 if at_start else rng.randint(1, pairs - 1 if at_end else pairs - 2)
        last = pairs if at_end else rng.randint(first + 1, pairs - 1)
        when.append({*range(first, last)})
    bodies = scatter(rng, _kinds(rng, total))
    qa = [
        ("How many things are there at the start?", str(start)),
        ("How many things are there at the end?", str(end)),
        ("How many things were seen altogether?", str(total)),
    ]
    return Story(_visible(bodies, when, pairs), qa)


def _collision(rng: Random, labels: list[str]) -> Story:
    """One body comes towards another, which comes too or rests; they are closest during one pair of frames.

    Then one of them stops, or none does, and what does not stop goes away; or they pass each other in two lanes.
    """
    meet, touch, both = _moment(rng, len(labels), 2), rng.random() < 0.5, rng.random() < 0.5
    passing = not touch and rng.random() < 0.25
    stops = None if passing else rng.choice((0, 1, None) if both else (0, None))
    kinds = _kinds(rng, 2, FACE)
    radii = [rng.uniform(5.0, 6.5) for _ in kinds]
    faces = [FACE[shape] * radius for (shape, _), radius in zip(kinds, radii, strict=True)]
    apart = 0.0 if passing else sum(faces) - 0.5
    # A near miss is the course of a touch, but for coming nearer than the gap: only the meeting tells them apart.
    gap = 0.0 if touch or passing else 0.5 + rng.uniform(*NEAR_MISS)
    least = max(SLOWEST, WAY / (2 * meet))
    speed, other = least + rng.uniform(0, SPREAD), least + rng.uniform(0, SPREAD)
    comes = speed, -other if both else 0.0
    stays = not both and stops is None
    goes = comes if passing else (0.0 if stops == 0 else -speed, 0.0 if stops == 1 or stays else other)
    middle, lane = CANVAS / 2 + rng.uniform(-5, 5), rng.uniform(24, 40)
    aside = rng.choice((-1, 1)) * (sum(faces) + LANES) / 2 if passing else 0.0
    way = rng.choice(("right", "left", "down", "up"))  # of the first body
    bodies = []
    for who, side in enumerate((-1, 1)):
        place, edge = middle + side * apart / 2, faces[who] + MARGIN
        along = _approach(place, comes[who], goes[who], 2 * meet, 0 if passing else 1, edge, 2 * len(labels))
        if gap:
            off = place + side * gap * (0.5 if both else 1 - who)
            along = [max(x, off) if side > 0 else min(x, off) for x in along]
        # They come aslant, so that being beside each other says nothing of passing.
        slope = 0.0 if passing else rng.uniform(-SLANT, SLANT)
        path = [(x, lane + side * aside + slope * (x - place)) for x in along]
        path = [(CANVAS - x, y) for x, y in path] if way in ("left", "up") else path
        places = [(x, y) if way in ("left", "right") else (y, x) for x, y in path]
        bodies.append([Thing(*kinds[who], "", x, y, radii[who]) for x, y in places])
    things = [{w: t for w, t in enumerate(frame) if _copies(t, CANVAS, False)} for frame in zip(*bodies, strict=True)]
    named = [full_name(body[0]) for body in bodies]
    told = meet < len(labels) - 2  # later, too little is seen of what follows
    qa = [("Do they touch?", "yes" if touch else "no")]
    qa += [(CONTACT, labels[meet])] if touch else []
    qa += [("What stops?", "nothing" if stops is None else named[stops])] if told else []
    return Story(things, qa)


def _approach(place: float, comes: float, goes: float, meet: int, hold: int, edge: float, frames: int) -> list[float]:
    """Coordinate in each frame: waits at the edge, comes to `place` at `meet`, holds, and goes, if need be outside."""
    before = [min(max(place - comes * (meet - i), edge), CANVAS - edge) for i in range(meet)]
    return before + [place + goes * max(0, i - meet - hold) for i in range(meet, frames)]


def _change(rng: Random, labels: list[str]) -> Story:
    at, kinds = _moment(rng, len(labels)), _kinds(rng, rng.choice((1, 2)))
    shape, color = kinds[0]
    if rng.random() < 0.5:
        first, *others = scatter(rng, kinds)
        turned = rng.choice([tint for tint in COLORS if all(tint != c for _, c in kinds)])
        states, what = (first, replace(first, color=turned)), "color"
        qa = [(f"What color is the {shape} at first?", color), (f"What color does the {shape} turn?", turned)]
    else:
        large, *others = scatter(rng, kinds, (SIZES["large"], SIZES["small"]))
        states, what, way = (replace(large, radius=rng.uniform(*SIZES["small"])), large), "size", "grows"
        if rng.random() < 0.5:
            states, way = states[::-1], "shrinks"
        qa = [(f"Does the {shape} grow or shrink?", way)]
    qa += [(f"Does the {shape} change its color or its size?", what)]
    qa += [(f"At what second does the {shape} change?", labels[at])]
    qa += [("What changes?", shape)] if others else []
    things = [dict(enumerate((states[i >= 2 * at], *others))) for i in range(2 * len(labels))]
    return Story(things, qa)


def _blink(rng: Random, labels: list[str]) -> Story:
    pairs = len(labels)
    seen = (pairs + 1) // 2
    times = rng.randint(1, min(FLASHES, seen, pairs - seen + 1))
    # Dark and light by turns, dark at both ends for 0 pairs or more and for at least one between.
    light, dark = _parts(rng, seen, times), _parts(rng, pairs - seen + 2, times + 1)
    starts = [sum(dark[: i + 1]) - 1 + sum(light[:i]) for i in range(times)]
    lit = {pair for start, length in zip(starts, light, strict=True) for pair in range(start, start + length)}
    bodies = scatter(rng, _kinds(rng, rng.choice((1, 2))))
    blinking = full_name(bodies[0])
    qa = [
        (f"How many times does the {blinking} appear?", str(times)),
        (f"At what second does the {blinking} first appear?", labels[starts[0]]),
        (f"At what second does the {blinking} last appear?", labels[starts[-1]]),
    ]
    return Story(_visible(bodies, [lit, {*range(pairs)}][: len(bodies)], pairs), qa)


def _parts(rng: Random, total: int, count: int) -> list[int]:
    """Positive whole numbers with this sum, in all ways alike."""
    cuts = [0, *sorted(rng.sample(range(1, total), count - 1)), total]
    return [b - a for a, b in pairwise(cuts)]


KINDS: dict[str, Callable[[Random, list[str]], Story]] = {
    "motion": _motion,
    "order": _order,
    "count": _count,
    "collision": _collision,
    "change": _change,
    "blink": _blink,
}


# ----------------------------------------------------------------------------------------------------
# long clips


@dataclass(frozen=True)
class LongClip:
    """A long film that is drawn frame by frame: `chapters` are (start in seconds, thing), one thing at a time."""

    seconds: float
    fps: float
    size: int
    background: str
    chapters: tuple[tuple[float, Thing], ...]
    qa: tuple[QA, ...]

    def frame_at(self, t: float) -> np.ndarray:
        """The picture (H, W, 3) uint8 at `t` seconds."""
        if not 0 <= t <= self.seconds:
            raise ValueError(f"t is {t}, must be 0 to {self.seconds} seconds")
        thing = next(thing for start, thing in reversed(self.chapters) if start <= t)
        swing = SWAY * math.sin(2 * math.pi * t / SWAY_SECONDS)
        return render([_scaled(replace(thing, x=thing.x + swing), self.size / CANVAS)], self.background, self.size)


def long_clip(seed: int, minutes: float = 60, fps: float = 1.0, size: int = CANVAS, pairs: int = 30) -> LongClip:
    """A film of `minutes` in which 4 to 8 things are seen in turn, each for several minutes of an hour.

    A chapter begins with one of `pairs` equal parts of the film and lasts for two at least, so who sees 2 * `pairs`
    frames, evenly spaced from 0 on, sees each thing first at the second that the answers name.
    """
    for what, value, limit in (("seed", seed, 0), ("minutes", minutes, 1), ("pairs", pairs, 16)):
        if value < limit:
            raise ValueError(f"{what} is {value}, must be at least {limit}")
    if fps <= 0:
        raise ValueError(f"fps is {fps}, must be positive")
    if size < CANVAS or size % 8:
        raise ValueError(f"size is {size}, must be a multiple of 8 and at least {CANVAS}")
    rng = Random(f"long clip {seed}")
    count = rng.randint(4, 8)
    lengths = [1 + part for part in _parts(rng, pairs - count, count)]
    starts = [sum(lengths[:i]) * minutes * 60 / pairs for i in range(count)]
    kinds = _kinds(rng, count)
    bodies = [scatter(rng, [kind])[0] for kind in kinds]
    inside = [
        max(REACH[t.shape] * t.radius + SWAY, min(t.x, CANVAS - REACH[t.shape] * t.radius - SWAY)) for t in bodies
    ]
    bodies = [replace(body, x=x) for body, x in zip(bodies, inside, strict=True)]
    named = [full_name(body) for body in bodies]
    qa = (*order_questions(named), *when_questions(named, [time_label(start) for start in starts]))
    chapters = tuple(zip(starts, bodies, strict=True))
    return LongClip(minutes * 60, fps, size, rng.choice(tuple(BACKGROUNDS)), chapters, qa)
