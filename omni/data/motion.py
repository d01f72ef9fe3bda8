"""The world of motion: coloured shapes that move, fall and collide, a sentence of what happens, and its sounds.

    seed -> kind, deed -> a scene where it can happen -> places over time (closed form) -> frames, tracks, sound
                      \\-> sentence

The first frame shows one to three shapes of different colours on a plain background. The rest follows from it and
the sentence: what is not said is fixed here, such as the speed behind "slowly" or gravity. The first frame alone does
not tell what will happen: where a body slides or rolls it could as well go the other way, what grows could shrink,
and who hits could be hit. ``sibling`` shows the same first frame with another sentence.

slide     at constant speed; a wall stops it             grow, shrink  to a fixed multiple of the radius
bounce    at constant speed; walls throw it back         vanish        after a second
roll      slows down steadily; walls throw it back       recolor       after a second
fall      gravity; the floor gives back 0.7 of the speed
collide   hits another head-on and without loss: masses are the areas that are seen; walls stop both

A wall, the floor and a collision sound: a tone that decays, higher for a smaller body. What vanishes chirps
downwards. All else is silent.

Lengths are pixels, x to the right and y down; times are seconds. How well a film follows its sentence is measured in
:mod:`omni.data.motion_check`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from random import Random

import numpy as np

from omni.data import TRAIN_SEEDS
from omni.data.rollout import CANVAS, FRAMES, SOUND_RATE, Rollout
from omni.data.scenes import AREA, BACKGROUNDS, COLORS, REACH, SHAPES, Request, Thing, Want, is_held_out, render
from omni.data.sights import full_name, scatter

FPS = 8
SECONDS = (FRAMES - 1) / FPS
FINE = 8  # moments between two frames at which bodies are checked for being in each other's way
TIMES = np.arange((FRAMES - 1) * FINE + 1) / (FPS * FINE)

SLANT = math.sqrt(0.5)
WAYS = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up and left": (-SLANT, -SLANT),
    "up and right": (SLANT, -SLANT),
    "down and left": (-SLANT, SLANT),
    "down and right": (SLANT, SLANT),
}
STRAIGHT = tuple(WAYS)[:4]
SPEEDS = {"slowly": 9.0, "": 18.0, "fast": 36.0}  # pixels a second
ROLL_SPEED, ROLL_BRAKE = 36.0, 18.0  # pixels a second, and a second squared: at rest after two seconds
GRAVITY, RESTITUTION = 100.0, 0.7  # pixels a second squared; share of the speed that the floor gives back
REST = 6.0  # pixels a second at the floor below which a body lies still
GROWTH = 1.6  # of the radius, over the whole time
CHANGE = 1.0  # second at which a thing vanishes or turns another colour

RADII = (5.5, 9.0)
# The farthest point of each shape from its centroid, for radius 1: sideways, up, down.
EXTENT = {
    "circle": (1.0, 1.0, 1.0),
    "square": (0.88, 0.88, 0.88),
    "triangle": (0.65 * math.sqrt(3), 1.3, 0.65),
    "cross": (1.0, 1.0, 1.0),
    "ring": (1.0, 1.0, 1.0),
}
ROUND = ("circle", "ring")  # what can roll
APART = 1.5  # pixels that stay between bodies that do not touch
ALIGNED_SHARE = 0.3  # of the scenes of other kinds in which two bodies are aligned as before a collision

LEAST_WAY = 10.0  # pixels that a body moves at least, or falls
LAST_BOUNCE = 1.6  # second by which a wall is reached
LAST_CONTACT = 1.2
LEAST_GAP, LEAST_PUSH = 5.0, 4.0  # pixels between two before they collide, and that the one hit then moves

PITCH = 4000.0  # Hz times the radius
DECAY, RING_SECONDS = 0.08, 0.4
CHIRP, CHIRP_SECONDS = (1400.0, 350.0), 0.3  # Hz, from and to
LOUDEST_AT = 60.0  # pixels a second of an impact
WAVE_FADE = 0.003  # seconds in which a tone begins


@dataclass(frozen=True)
class Deed:
    """What happens: ``who`` and ``other`` are places in the scene; fields that a kind does not need are empty."""

    kind: str
    who: int = 0
    way: str = ""
    speed: str = ""
    other: int = -1
    color: str = ""


@dataclass(frozen=True)
class Hit:
    """A body meets a wall, the floor or another body."""

    second: float
    radius: float
    speed: float  # pixels a second, at which they meet


@dataclass
class Course:
    """How a scene goes on: places (bodies, moments, 2) and radii (bodies, moments) at ``TIMES``, and what is heard."""

    places: np.ndarray
    radii: np.ndarray
    hits: list[Hit]


def sample_motion(seed: int, kind: str | None = None) -> Rollout:
    """Draw one rollout of 17 frames (64, 64, 3), two seconds at 8 a second, always the same for a seed.

    Tracks are named as the sentence names the things ("red circle"), the one that the sentence begins with first.

    Raises:
        ValueError: a negative seed or an unknown kind.
    """
    rng, things, background, deed = _draw(seed, kind)
    return _film(rng, things, background, deed)


def sibling(seed: int, kind: str | None = None) -> Rollout:
    """The first frame of ``sample_motion(seed, kind)`` with another sentence, and what then happens."""
    _, things, background, told = _draw(seed, kind)
    rng = Random(f"motion sibling {seed} {told.kind}")
    while True:
        who = rng.randrange(len(things))
        deed = replace(_deed(rng, rng.choice(tuple(KINDS)), things), who=who)
        if len(things) > 1:
            deed = replace(deed, other=rng.choice([i for i in range(len(things)) if i != who]))
        same = deed.who == told.who and (deed.kind == told.kind or (deed.way != "" and deed.way == told.way))
        if not same and _allowed(seed, things, deed) and _course(things, deed) is not None:
            return _film(rng, things, background, deed)


# ----------------------------------------------------------------------------------------------------
# scenes and deeds


def _draw(seed: int, kind: str | None) -> tuple[Random, list[Thing], str, Deed]:
    if seed < 0:
        raise ValueError(f"seed is {seed}, must not be negative")
    if kind not in (None, *KINDS):
        raise ValueError(f"kind is {kind!r}, must be one of {', '.join(KINDS)}")
    kind = kind or Random(f"motion {seed}").choice(tuple(KINDS))
    rng = Random(f"motion {seed} {kind}")
    count = rng.choice((2, 3) if kind == "collide" else (1, 2, 3))
    aligned = kind == "collide" or (count > 1 and rng.random() < ALIGNED_SHARE)
    # Way and speed are drawn before the scene: what is easy to place is not said more often.
    way, speed = _way(rng, kind), _speed(rng, kind)
    while True:
        things = _scene(rng, count, aligned)
        deed = replace(_deed(rng, kind, things), way=way, speed=speed)
        undecided = [deed, _opposite(deed)]
        if _allowed(seed, things, deed) and all(_course(things, d) is not None for d in undecided):
            return rng, things, rng.choice(tuple(BACKGROUNDS)), deed


def _scene(rng: Random, count: int, aligned: bool) -> list[Thing]:
    colors = rng.sample(tuple(COLORS), count)
    things = list(scatter(rng, [(rng.choice(SHAPES), color) for color in colors], [RADII] * count))
    if aligned:
        first, second = things[:2]
        things[1] = replace(second, y=first.y) if rng.random() < 0.5 else replace(second, x=first.x)
    return things


def _deed(rng: Random, kind: str, things: Sequence[Thing]) -> Deed:
    """Something of this kind that the first thing does, if need be to the second."""
    free = [color for color in COLORS if all(color != thing.color for thing in things)]
    color = rng.choice(free) if kind == "recolor" else ""
    return Deed(kind, 0, _way(rng, kind), _speed(rng, kind), 1 if len(things) > 1 else -1, color)


def _way(rng: Random, kind: str) -> str:
    return rng.choice(tuple(WAYS) if kind == "bounce" else STRAIGHT) if kind in ("slide", "roll", "bounce") else ""


def _speed(rng: Random, kind: str) -> str:
    if kind == "slide":
        return rng.choice(tuple(SPEEDS))
    return rng.choice(("", "fast")) if kind in ("bounce", "collide") else ""


def _opposite(deed: Deed) -> Deed:
    """What the same first frame must allow as well, so that it does not give away what happens."""
    if deed.kind == "collide":
        return replace(deed, who=deed.other, other=deed.who)
    if deed.kind in ("grow", "shrink"):
        return replace(deed, kind="shrink" if deed.kind == "grow" else "grow")
    if deed.kind in ("slide", "roll"):
        x, y = WAYS[deed.way]
        return replace(deed, way=next(way for way, ahead in WAYS.items() if ahead == (-x, -y)))
    return deed


def _allowed(seed: int, things: Sequence[Thing], deed: Deed) -> bool:
    """Whether training may see these things together: pairs held out by the scene world are held out here too."""
    if seed not in TRAIN_SEEDS:
        return True
    turned = [replace(things[deed.who], color=deed.color)] if deed.color else []
    return not any(_held_out(a, b) for scene in (things, [*turned, *things]) for a, b in combinations(scene, 2))


def _held_out(a: Thing, b: Thing) -> bool:
    return a.shape != b.shape and is_held_out(Request((Want(a.shape, a.color), Want(b.shape, b.color))))


def _sentence(rng: Random, things: Sequence[Thing], deed: Deed) -> str:
    way = deed.way
    if way in ("left", "right") and rng.random() < 0.5:
        way = f"to the {way}"
    return rng.choice(KINDS[deed.kind][1]).format(
        a=f"the {full_name(things[deed.who])}",
        b=f"the {full_name(things[deed.other])}",
        way=way,
        speed=f" {deed.speed}" if deed.speed else "",
        color=deed.color,
    )


# ----------------------------------------------------------------------------------------------------
# courses: each kind fills in the body's places and hits, or says that it cannot happen here


def _course(things: Sequence[Thing], deed: Deed) -> Course | None:
    """How the scene goes on, or None if there is no room for it."""
    places = np.repeat(np.array([[[thing.x, thing.y]] for thing in things]), len(TIMES), axis=1)
    course = Course(places, np.repeat([[thing.radius] for thing in things], len(TIMES), axis=1), [])
    return course if KINDS[deed.kind][0](course, things, deed) and _has_room(course, things, deed) else None


def _has_room(course: Course, things: Sequence[Thing], deed: Deed) -> bool:
    """Whether all stay inside, and apart but for two that collide."""
    for thing, places, radii in zip(things, course.places, course.radii, strict=True):
        for axis, (low, high) in enumerate(_limits(replace(thing, radius=radii.max()))):
            if places[:, axis].min() < low - 1e-6 or places[:, axis].max() > high + 1e-6:
                return False
    reaches = [REACH[thing.shape] * radii for thing, radii in zip(things, course.radii, strict=True)]
    for i, j in combinations(range(len(things)), 2):
        if deed.kind == "collide" and {i, j} == {deed.who, deed.other}:
            continue
        between = np.hypot(*(course.places[i] - course.places[j]).T) - reaches[i] - reaches[j]
        if between.min() < APART:
            return False
    return True


def _limits(thing: Thing) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where the centre can be without leaving the canvas: along x, along y."""
    side, up, down = (share * thing.radius for share in EXTENT[thing.shape])
    return (side, CANVAS - side), (up, CANVAS - down)


def _ahead(thing: Thing, axis: int, sign: float) -> float:
    """Pixels to the wall."""
    low, high = _limits(thing)[axis]
    start = (thing.x, thing.y)[axis]
    return high - start if sign > 0 else start - low


def _slide(course: Course, things: Sequence[Thing], deed: Deed) -> bool:
    thing, speed = things[deed.who], SPEEDS[deed.speed]
    axis, sign = _axis(deed.way)
    ahead = _ahead(thing, axis, sign)
    course.places[deed.who, :, axis] += sign * np.minimum(speed * TIMES, ahead)
    if ahead < speed * SECONDS:
        course.hits.append(Hit(ahead / speed, thing.radius, speed))
    return ahead >= LEAST_WAY


def _axis(way: str) -> tuple[int, float]:
    x, y = WAYS[way]
    return (0, x) if x else (1, y)


def _bounce(course: Course, things: Sequence[Thing], deed: Deed) -> bool:
    thing, speed = things[deed.who], SPEEDS[deed.speed]
    for axis, part in enumerate(WAYS[deed.way]):
        if part:
            travelled = abs(part) * speed * TIMES
            course.places[deed.who, :, axis], met = _thrown_back(thing, axis, part, travelled)
            course.hits += [Hit(way / (abs(part) * speed), thing.radius, abs(part) * speed) for way in met]
    first = min((hit.second for hit in course.hits), default=SECONDS)
    return LEAST_WAY / speed <= first <= LAST_BOUNCE


def _thrown_back(thing: Thing, axis: int, sign: float, travelled: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Coordinates behind ways (moments,) between two walls, and the ways at which it meets one."""
    low, high = _limits(thing)[axis]
    span, start = high - low, (thing.x, thing.y)[axis]
    folded = np.mod(start - low + math.copysign(1, sign) * travelled, 2 * span)
    ahead = _ahead(thing, axis, sign)
    met = [float(way) for way in np.arange(ahead, travelled[-1], span)]
    return low + np.minimum(folded, 2 * span - folded), met


def _roll(course: Course, things: Sequence[Thing], deed: Deed) -> bool:
    thing = things[deed.who]
    axis, sign = _axis(deed.way)
    travelled = ROLL_SPEED * TIMES - ROLL_BRAKE * TIMES**2 / 2
    course.places[deed.who, :, axis], met = _thrown_back(thing, axis, sign, travelled)
    for way in met:
        speed = math.sqrt(ROLL_SPEED**2 - 2 * ROLL_BRAKE * way)
        course.hits.append(Hit((ROLL_SPEED - speed) / ROLL_BRAKE, thing.radius, speed))
    return thing.shape in ROUND and _ahead(thing, axis, sign) >= LEAST_WAY


def _fall(course: Course, things: Sequence[Thing], deed: Deed) -> bool:
    thing = things[deed.who]
    height = _ahead(thing, 1, 1.0)
    above = height - GRAVITY * TIMES**2 / 2  # the floor
    landing, speed = math.sqrt(2 * height / GRAVITY), math.sqrt(2 * height * GRAVITY)
    while landing < SECONDS and speed >= REST:
        course.hits.append(Hit(landing, thing.radius, speed))
        speed *= RESTITUTION
        since = TIMES - landing
        above = np.where(since < 0, above, np.maximum(speed * since - GRAVITY * since**2 / 2, 0))
        landing += 2 * speed / GRAVITY
    course.places[deed.who, :, 1] += height - above
    return height >= LEAST_WAY


def _collide(course: Course, things: Sequence[Thing], deed: Deed) -> bool:
    if deed.other < 0 or "triangle" in (things[deed.who].shape, things[deed.other].shape):
        return False  # a triangle's corner would be hit aslant
    first, second, speed = things[deed.who], things[deed.other], SPEEDS[deed.speed]
    dx, dy = second.x - first.x, second.y - first.y
    if dx and dy:
        return False
    axis, sign = (0, math.copysign(1, dx)) if dx else (1, math.copysign(1, dy))
    touch = sum(EXTENT[thing.shape][0] * thing.radius for thing in (first, second))
    contact = (abs(dx + dy) - touch) / speed
    if contact > LAST_CONTACT:
        return False
    mass, other = (AREA[thing.shape] * thing.radius**2 for thing in (first, second))
    after, pushed = (mass - other) / (mass + other) * speed, 2 * mass / (mass + other) * speed
    since = np.maximum(TIMES - contact, 0)
    course.hits += [Hit(contact, thing.radius, speed) for thing in (first, second)]
    course.places[deed.who, :, axis] += sign * speed * np.minimum(TIMES, contact)
    for who, come, velocity in ((deed.who, speed * contact, after), (deed.other, 0.0, pushed)):
        towards, pace = sign * math.copysign(1, velocity), abs(velocity)
        ahead = _ahead(_moved(things[who], axis, sign * come), axis, towards)
        course.places[who, :, axis] += towards * np.minimum(pace * since, ahead)
        if ahead < pace * (SECONDS - contact):
            course.hits.append(Hit(contact + ahead / pace, things[who].radius, pace))
    gaps = np.abs(course.places[deed.who, :, axis] - course.places[deed.other, :, axis]) - touch
    moved = abs(course.places[deed.other, -1, axis] - course.places[deed.other, 0, axis])
    meets_again = gaps[contact + 1 / FPS < TIMES].min() < APART / 2
    return contact * speed >= LEAST_GAP and moved >= LEAST_PUSH and not meets_again


def _moved(thing: Thing, axis: int, way: float) -> Thing:
    return replace(thing, x=thing.x + way) if axis == 0 else replace(thing, y=thing.y + way)


def _resize(course: Course, _things: Sequence[Thing], deed: Deed) -> bool:
    course.radii[deed.who] *= (GROWTH if deed.kind == "grow" else 1 / GROWTH) ** (TIMES / SECONDS)
    return True


def _stay(_course: Course, _things: Sequence[Thing], _deed: Deed) -> bool:
    return True  # it vanishes or turns another colour where it is


KINDS: dict[str, tuple[Callable[[Course, Sequence[Thing], Deed], bool], tuple[str, ...]]] = {  # course, wordings
    "slide": (_slide, ("{a} moves {way}{speed}", "{a} slides {way}{speed}", "{a} goes{speed} {way}")),
    "bounce": (
        _bounce,
        ("{a} moves {way}{speed} and bounces off the walls", "{a} bounces off the walls{speed}, {way} first"),
    ),
    "roll": (_roll, ("{a} rolls {way} and slows down", "{a} rolls {way} until it stops")),
    "fall": (_fall, ("{a} falls", "{a} falls to the floor", "{a} drops and bounces on the floor")),
    "collide": (_collide, ("{a} moves{speed} into {b}", "{a} bumps{speed} into {b}", "{a} hits {b}{speed}")),
    "grow": (_resize, ("{a} grows", "{a} gets larger", "{a} becomes bigger")),
    "shrink": (_resize, ("{a} shrinks", "{a} gets smaller", "{a} becomes smaller")),
    "vanish": (_stay, ("{a} vanishes", "{a} disappears", "{a} is suddenly gone")),
    "recolor": (_stay, ("{a} turns {color}", "{a} becomes {color}", "{a} changes its color to {color}")),
}


# ----------------------------------------------------------------------------------------------------
# what is seen and heard


def _film(rng: Random, things: Sequence[Thing], background: str, deed: Deed) -> Rollout:
    course = _course(things, deed)
    places, radii = course.places[:, ::FINE], course.radii[:, ::FINE]
    changed = np.arange(FRAMES) / FPS >= CHANGE
    frames, tracks = [], {full_name(thing): places[i].copy() for i, thing in enumerate(things)}
    for t in range(FRAMES):
        shown = [
            replace(thing, x=places[i, t, 0], y=places[i, t, 1], radius=radii[i, t]) for i, thing in enumerate(things)
        ]
        if changed[t] and deed.kind == "recolor":
            shown[deed.who] = replace(shown[deed.who], color=deed.color)
        if changed[t] and deed.kind == "vanish":
            del shown[deed.who]
        frames.append(render(shown, background))
    actor = full_name(things[deed.who])
    if deed.kind == "vanish":
        tracks[actor][changed] = np.nan
    return Rollout(
        prompt=_sentence(rng, things, deed),
        frames=np.stack(frames),
        fps=FPS,
        sound=_sound(course.hits, deed.kind == "vanish"),
        tracks={actor: tracks.pop(actor), **tracks},
        kind=deed.kind,
    )


def _sound(hits: Sequence[Hit], chirps: bool) -> np.ndarray:
    """(samples,) float32, as long as all frames are shown."""
    samples = np.zeros(FRAMES * SOUND_RATE // FPS)
    for hit in hits:
        _add(samples, hit.second, _tone(PITCH / hit.radius) * (0.15 + 0.3 * min(1.0, hit.speed / LOUDEST_AT)))
    if chirps:
        clock = np.arange(round(CHIRP_SECONDS * SOUND_RATE)) / SOUND_RATE
        pitch = CHIRP[0] * (CHIRP[1] / CHIRP[0]) ** (clock / CHIRP_SECONDS)
        wave = np.sin(2 * np.pi * np.cumsum(pitch) / SOUND_RATE)
        _add(samples, CHANGE, 0.4 * wave * np.minimum(1, np.minimum(clock, clock[::-1]) / WAVE_FADE))
    return np.clip(samples, -1, 1).astype(np.float32)


def _tone(pitch: float) -> np.ndarray:
    clock = np.arange(round(RING_SECONDS * SOUND_RATE)) / SOUND_RATE
    return np.sin(2 * np.pi * pitch * clock) * np.exp(-clock / DECAY) * np.minimum(1, clock / WAVE_FADE)


def _add(samples: np.ndarray, second: float, wave: np.ndarray) -> None:
    start = round(second * SOUND_RATE)
    wave = wave[: len(samples) - start]
    samples[start : start + len(wave)] += wave
