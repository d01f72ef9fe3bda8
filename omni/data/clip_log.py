"""What happens in a clip, told in one grammar for all kinds: what is there first, then every change with its time.

    "0.0 red circle right, blue square; 2.0 +green ring; 4.0 -red circle, touch; 6.0 blue square turns red"

Each entry follows from what is seen around its time, told as a page is read: in rows of a quarter of the picture, each
from left to right. So it can be told without knowing what kind of clip it is, token by token; questions are then
answered from the log. What happens at each token is also a training target of its own.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from omni.data.clips import CONTACT, MOTIONS, Clip, Frame, Thing, full_name, motion_class, time_label
from omni.data.sights import Sight, cell_of, square_of, squares

GROWTH = 1.2  # ratio of radii between which nothing grew or shrank
STANDS = 0  # motion class of what does not move
VERBS = ("there", "comes", "goes", "turns", "grows", "shrinks", "stops", "moves")
COUNTED = 20  # events that are numbered
# Of a token: whether a thing's centre lies there, what happens to it, whether it touches another, and which of all
# events this is, in the order of telling.
EVENT_CLASSES = (2, 1 + len(VERBS), 2, 1 + COUNTED)

Seen = dict[int, tuple[Thing, int]]  # identity -> thing and its motion class


class Event(NamedTuple):
    """One change: to which thing, where that is (or was), and how it is told."""

    verb: str  # one of VERBS
    thing: Thing
    text: str


class Moment(NamedTuple):
    """A pair of frames: its events in the order of telling, what is there, and whether two bodies touch."""

    label: str
    events: list[Event]
    there: list[Thing]
    touch: bool


Place = tuple[int, int]
"""Which pair of frames, and which of its squares; a time is read before the pair, its last character at -1."""


def placed_log(clip: Clip, side: int) -> tuple[str, list[Place | None]]:
    """The log of a clip, and where each of its characters is seen, in squares of `side` pixels; None between words.

    Entries without an event are left out.
    """
    log, found = "", []
    for text, place in _entries(clip, side):
        log += text
        is_time = place is not None and place[1] < 0
        found += [(place[0], i - len(text)) for i in range(len(text))] if is_time else [place] * len(text)
    return log, found


def _entries(clip: Clip, side: int) -> Iterator[tuple[str, Place | None]]:
    """The pieces of the log, and where each is seen."""
    size, between = clip.frames.shape[1], ""
    for pair, moment in enumerate(moments(clip)):
        if not moment.events and not moment.touch:
            continue
        yield between, None
        yield moment.label, (pair, -1)
        between = " "
        for event in moment.events:
            yield between, None
            yield event.text, (pair, square_of(event.thing, side, size))
            between = ", "
        if moment.touch:
            yield f"{between}touch", None
        between = "; "


def moments(clip: Clip) -> list[Moment]:
    """What each pair of frames brings."""
    size = clip.frames.shape[1]
    contact = dict(clip.qa).get(CONTACT)
    found, before = [], {}
    for pair in range(len(clip.things) // 2):
        label = time_label(float(clip.times[2 * pair]))
        now = _seen(clip.things[2 * pair : 2 * pair + 2], size, before)
        events = sorted(_events(before, now, first=pair == 0), key=lambda event: cell_of(event.thing, size))
        found.append(Moment(label, events, [thing for thing, _ in now.values()], label == contact))
        before = now
    return found


def event_targets(clip: Clip, side: int) -> np.ndarray:
    """(pairs, tokens, 4) classes, as in ``EVENT_CLASSES``, at the squares of `side` pixels that hold things' centres.

    What goes is marked where it was. Two things whose centres share a square are one.
    """
    size = clip.frames.shape[1]
    told = moments(clip)
    targets = np.zeros((len(told), squares(size, side), len(EVENT_CLASSES)), dtype=np.int64)
    number = 0
    for target, moment in zip(targets, told, strict=True):
        for thing in moment.there:
            target[square_of(thing, side, size), 0] = 1
            target[square_of(thing, side, size), 2] = moment.touch
        for event in moment.events:
            number = min(number + 1, COUNTED)
            target[square_of(event.thing, side, size), 1::2] = 1 + VERBS.index(event.verb), number
    return targets


def still_targets(sight: Sight, side: int) -> np.ndarray:
    """(tokens, 4) of the same for a still picture, whose things are all there at first."""
    size = sight.image.shape[0]
    targets = np.zeros((squares(size, side), len(EVENT_CLASSES)), dtype=np.int64)
    for number, thing in enumerate(sorted(sight.things, key=lambda thing: cell_of(thing, size)), start=1):
        targets[square_of(thing, side, size)] = 1, 1 + VERBS.index("there"), 0, number
    return targets


def _seen(frames: tuple[Frame, ...], size: int, before: Seen) -> Seen:
    """What a pair of frames shows, and how it moves between them; as before where it is seen in one of them only."""
    found = {}
    for who in dict.fromkeys(who for frame in frames for who in frame):
        states = [frame[who] for frame in frames if who in frame]
        cut = len(states) < len(frames) and who in before
        found[who] = states[0], before[who][1] if cut else motion_class(states[0], states[-1], size)
    return found


def _events(before: Seen, now: Seen, first: bool) -> list[Event]:
    """What is new, gone or otherwise."""
    events: list[Event] = []
    for who in {**before, **now}:
        if who not in now:
            thing = before[who][0]
            events.append(Event("goes", thing, f"-{full_name(thing)}"))
        elif who not in before:
            verb, sign = ("there", "") if first else ("comes", "+")
            events.append(Event(verb, now[who][0], sign + _moving(*now[who])))
        else:
            events += _changes(before[who], now[who])
    return events


def _moving(thing: Thing, motion: int) -> str:
    return full_name(thing) + (f" {tuple(MOTIONS)[motion - 1]}" if motion != STANDS else "")


def _changes(before: tuple[Thing, int], now: tuple[Thing, int]) -> list[Event]:
    (old, was), (new, moves) = before, now
    name, found = full_name(old), []
    if old.color != new.color:
        found.append(Event("turns", new, f"{name} turns {new.color}"))
    if new.radius > GROWTH * old.radius or old.radius > GROWTH * new.radius:
        verb = "grows" if new.radius > old.radius else "shrinks"
        found.append(Event(verb, new, f"{name} {verb}"))
    if was != moves:
        verb, text = ("stops", f"{name} stops") if moves == STANDS else ("moves", _moving(new, moves))
        found.append(Event(verb, new, text))
    return found
