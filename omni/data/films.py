"""The film world: shapes that appear one after another while digits, words and noises are heard.

    parts of the film -> a thing in each, a unit of `sounds.UNITS` in some -> frames and samples of one clock

One seed and kind is one film: 8 to 16 frames at 2 to 4 a second, 2 to 5 seconds, with its own sound track. The
thing changes on even frames only, and every sound lies within the part that it belongs to, so the questions
that need both senses have one answer. `needs` says of each question what it cannot be answered without.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import NamedTuple

import numpy as np

from omni.data import TRAIN_SEEDS
from omni.data.scenes import BACKGROUNDS, CANVAS, COLORS, MARGIN, REACH, SHAPES, Thing, render
from omni.data.sights import classes
from omni.data.sounds import DIGITS, NOISES, WORDS, Event, Speaker, ask, ask_heard, ask_order, augment, called, make
from omni.data.speech import SAMPLE_RATE

KINDS = ("digits", "words", "noises", "mixed")  # what the sound track holds
FRAMES, RATES = (8, 16), (2, 3, 4)  # number of frames; frames a second
SECONDS = (2.0, 5.0)
SHORTEST_PART = 0.76  # seconds: the longest unit fits
SOUND_SHARE = 0.8  # of the parts have a sound
ROOM = 0.02  # seconds between a sound and the ends of its part
RADIUS = (8.0, 14.0)  # pixels on the 64-pixel canvas
SPEED = 3.0  # pixels a frame, at most
# A film says no shape and no colour: its answers would not tell what is seen from what is heard.
SAYABLE = tuple(word for word in WORDS if word not in COLORS and word not in SHAPES)
TELL = ("What is seen and heard?", "Describe the film.", "What happens in the film?")
NOTHING = "nothing"
PICTURE, SOUND, BOTH = "picture", "sound", "both"


class Part(NamedTuple):
    """One thing on the screen and what is heard meanwhile (None: nothing); times in seconds."""

    thing: str  # "red circle"
    unit: str | None
    start: float
    end: float


@dataclass(frozen=True)
class Film:
    """Frames with a sound track and everything that is known about them; `voice` is "" where nobody speaks."""

    frames: np.ndarray  # (frames, size, size, 3) uint8
    times: np.ndarray  # (frames,) float64, the second at which each frame appears
    samples: np.ndarray  # (n,) float32 at 16 kHz, as long as the frames are shown
    events: tuple[Event, ...]
    parts: tuple[Part, ...]
    things: tuple[dict[int, Thing], ...]  # of each frame, by the number of the part
    text: str  # "red circle 3, blue square bell, green ring nothing"
    qa: tuple[tuple[str, str], ...]
    needs: tuple[str, ...]  # of each question: "picture", "sound" or "both"
    kind: str  # one of `KINDS`
    voice: str
    wraps: bool = False  # nothing comes in again where another thing leaves


def sample_film(seed: int, kind: str | None = None, size: int = CANVAS) -> Film:
    """Draw the film of a seed on a canvas of `size` pixels; its first question asks for `text`.

    Raises:
        SpeechUnavailable: a film with speech without the synthesiser.
        ValueError: a negative seed, an unknown kind, or a size that is no multiple of 8 of at least 64.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}, must not be negative")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, must be one of {', '.join(KINDS)}")
    if size < CANVAS or size % 8:
        raise ValueError(f"size is {size}, must be a multiple of 8 and at least {CANVAS}")
    kind = kind or Random(f"film {seed}").choice(KINDS)
    rng = Random(f"film {seed} {kind}")  # the kinds of one seed share nothing
    rate, bounds = _draw_parts(rng)
    things = rng.sample([(color, shape) for color in COLORS for shape in SHAPES], len(bounds) - 1)
    background, shown = _draw_things(rng, things, bounds, size)
    frames = np.stack([render(list(frame.values()), background, size) for frame in shown])
    units = _draw_units(rng, kind, len(things))
    samples, events, voice = _draw_track(rng, units, [frame / rate for frame in bounds], seed in TRAIN_SEEDS)
    spans = pairwise(bounds)
    parts = tuple(
        Part(" ".join(thing), unit, start / rate, end / rate)
        for thing, unit, (start, end) in zip(things, units, spans, strict=True)
    )
    text = ", ".join(f"{part.thing} {part.unit or NOTHING}" for part in parts)
    asked = [(BOTH, ask(rng, TELL, text)), *_questions(rng, parts)]
    qa, needs = tuple(pair for _, pair in asked), tuple(need for need, _ in asked)
    return Film(
        frames, np.arange(bounds[-1]) / rate, samples, tuple(events), parts, shown, text, qa, needs, kind, voice
    )


def screen_targets(film: Film, tokens: int, seconds_per_token: float = 0.08) -> np.ndarray:
    """(tokens, 2) classes, shape and colour, of what is shown in the middle of each token of the sound track."""
    middles = (np.arange(tokens) + 0.5) * seconds_per_token
    frames = np.clip(np.searchsorted(film.times, middles, side="right") - 1, 0, len(film.things) - 1)
    return np.array([classes(next(iter(film.things[frame].values()))) for frame in frames], np.int64).reshape(-1, 2)


def _draw_parts(rng: Random) -> tuple[int, list[int]]:
    """Frames a second, and the even frames at which parts begin, ending with the number of frames."""
    rate = rng.choice(RATES)
    counts = [n for n in range(FRAMES[0], FRAMES[1] + 1, 2) if SECONDS[0] <= n / rate <= SECONDS[1]]
    frames, shortest = rng.choice(counts), 2 * math.ceil(SHORTEST_PART * rate / 2)
    most = frames // shortest
    pieces = [shortest // 2] * min(most, rng.choice((2, 3, 3, 4, 4)))
    for _ in range(frames // 2 - sum(pieces)):
        pieces[rng.randrange(len(pieces))] += 1
    return rate, [2 * sum(pieces[:at]) for at in range(len(pieces) + 1)]


def _draw_units(rng: Random, kind: str, count: int) -> list[str | None]:
    """A different unit for most parts, None for the rest; at least one part has a unit."""
    known = {"digits": DIGITS, "words": SAYABLE, "noises": NOISES}.get(kind)
    if known is None:
        said = rng.sample(DIGITS if rng.random() < 0.6 else SAYABLE, (count + 1) // 2)
        known = (*said, *rng.sample(NOISES, count // 2))
    drawn = rng.sample(known, count)
    units = [unit if rng.random() < SOUND_SHARE else None for unit in drawn]
    if not any(units):
        at = rng.randrange(count)
        units[at] = drawn[at]
    return units


# ----------------------------------------------------------------------------------------------------
# picture and sound track


def _draw_things(
    rng: Random, kinds: Sequence[tuple[str, str]], bounds: list[int], size: int
) -> tuple[str, tuple[dict[int, Thing], ...]]:
    """The background, and what each frame shows: each thing moves evenly through its part."""
    background, scale, frames = rng.choice(tuple(BACKGROUNDS)), size / CANVAS, []
    for part, ((color, shape), (start, end)) in enumerate(zip(kinds, pairwise(bounds), strict=True)):
        radius = rng.uniform(*RADIUS)
        edge = REACH[shape] * radius + MARGIN
        way = _draw_way(rng, edge, end - start)
        frames += [{part: Thing(shape, color, "", x * scale, y * scale, radius * scale)} for x, y in way]
    return background, tuple(frames)


def _draw_way(rng: Random, edge: float, frames: int) -> list[tuple[float, float]]:
    """Places on a straight line that stays `edge` pixels inside the canvas."""
    place = [rng.uniform(edge, CANVAS - edge) for _ in range(2)]
    target = [min(max(at + rng.uniform(-SPEED, SPEED) * (frames - 1), edge), CANVAS - edge) for at in place]
    shares = [step / (frames - 1) for step in range(frames)]
    return [tuple(a + share * (b - a) for a, b in zip(place, target, strict=True)) for share in shares]


def _draw_track(
    rng: Random, units: list[str | None], bounds: list[float], training: bool
) -> tuple[np.ndarray, list[Event], str]:
    """Samples (n,), events, and the voice; every unit lies within its part."""
    samples, events = np.zeros(round(bounds[-1] * SAMPLE_RATE), np.float32), []
    speaker = Speaker(rng, training) if any(unit and unit not in NOISES for unit in units) else None
    for unit, (start, end) in zip(units, pairwise(bounds), strict=True):
        if unit is None:
            continue
        room = int((end - start - 2 * ROOM) * SAMPLE_RATE)
        _, sound = make(unit, rng) if unit in NOISES else speaker.say(unit)
        at = round((start + ROOM) * SAMPLE_RATE) + rng.randint(0, room - len(sound))
        samples[at : at + len(sound)] = sound * rng.uniform(0.8, 1.2)
        events.append(Event(unit, at / SAMPLE_RATE, (at + len(sound)) / SAMPLE_RATE))
    return augment(samples, rng), events, speaker.voice if speaker else ""


# ----------------------------------------------------------------------------------------------------
# questions


def _questions(rng: Random, parts: tuple[Part, ...]) -> list[tuple[str, tuple[str, str]]]:
    """(what it needs, (question, answer)), in random order."""
    heard = [part for part in parts if part.unit]
    asked = [(BOTH, pair) for pair in (*_while_shown(rng, parts), *_when_heard(rng, heard), *_together(rng, parts))]
    asked += [(BOTH, pair) for pair in _order(rng, parts, heard)]
    asked += [(PICTURE, pair) for pair in _about_picture(rng, parts)]
    asked += [(SOUND, pair) for pair in _about_sound(rng, [part.unit for part in heard])]
    return rng.sample(asked, len(asked))


def _sounds(unit: str) -> str:
    """A unit as a clause: "the digit 3 is said"."""
    return f"the {called(unit)} is {'heard' if unit in NOISES else 'said'}"


def _while_shown(rng: Random, parts: Sequence[Part]) -> list[tuple[str, str]]:
    asked = []
    for part in rng.sample(parts, min(2, len(parts))):
        forms = [f"What is heard when the {part.thing} is shown?", f"What do you hear while the {part.thing} is shown?"]
        if part.unit and part.unit not in NOISES:
            what = "digit" if part.unit in DIGITS else "word"
            forms += [f"What {what} is said when the {part.thing} is shown?"] * 2
        asked.append(ask(rng, forms, part.unit or NOTHING))
    return asked


def _when_heard(rng: Random, heard: Sequence[Part]) -> list[tuple[str, str]]:
    part = rng.choice(heard)
    clause = _sounds(part.unit)
    asked = [ask(rng, (f"What is shown when {clause}?", f"What do you see when {clause}?"), part.thing)]
    part = rng.choice(heard)
    color, shape = part.thing.split()
    what, answer = rng.choice((("color", color), ("shape", shape)))
    return [*asked, ask(rng, (f"Which {what} is shown when {_sounds(part.unit)}?",), answer)]


def _together(rng: Random, parts: Sequence[Part]) -> list[tuple[str, str]]:
    """Whether a sound belongs to a thing; both occur in the film, and yes and no are equally likely."""
    yes = rng.random() < 0.5
    pairs = [(a, b) for a in parts if a.unit for b in parts if (a is b) == yes]
    sound, shown = rng.choice(pairs)
    forms = (f"Is the {shown.thing} shown when {_sounds(sound.unit)}?",)
    return [ask(rng, forms, "yes" if yes else "no")]


def _order(rng: Random, parts: Sequence[Part], heard: Sequence[Part]) -> list[tuple[str, str]]:
    """Whether a sound is heard before or after a thing of another part appears, in films of three parts or more.

    What comes first or last gives itself away to one sense alone, so the best guess without the other stays
    above one half; with two parts it would always be right.
    """
    if len(parts) < 3:
        return []
    answer = rng.choice(("before", "after"))
    pairs = [(a, b) for a in heard for b in parts if (a.start < b.start if answer == "before" else a.start > b.start)]
    if not pairs:
        return []
    sound, shown = rng.choice(pairs)
    name = called(sound.unit)
    verb = "heard" if sound.unit in NOISES else "said"
    forms = (f"Is the {name} {verb} before or after the {shown.thing} appears?",)
    return [ask(rng, forms, answer)]


def _about_picture(rng: Random, parts: Sequence[Part]) -> list[tuple[str, str]]:
    things = [part.thing for part in parts]
    known = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    asked = [
        ask(rng, ("How many shapes are shown?", "How many things appear?"), len(things)),
        ask(rng, ("What is shown first?", "Which thing is shown first?"), things[0]),
        ask(rng, ("What is shown last?", "Which thing is shown last?"), things[-1]),
        ask_heard(rng, things, known, ("Is the {} shown?", "Does the {} appear?")),
        *ask_order(rng, things, ("Is the {} shown before or after the {}?",)),
    ]
    return rng.sample(asked, 2)


def _about_sound(rng: Random, units: list[str]) -> list[tuple[str, str]]:
    said = [unit for unit in units if unit not in NOISES]
    asked = [
        ask(rng, ("What do you hear?", "What is heard in the film?"), " ".join(units)),
        ask(rng, ("What is heard first?",), units[0]),
        ask(rng, ("What is heard last?",), units[-1]),
    ]
    if said:
        asked.append(("What is said?", " ".join(said)))
    return rng.sample(asked, 2)
