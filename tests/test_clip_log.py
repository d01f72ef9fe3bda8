"""The log of a clip says when each thing comes, goes, turns and moves: all its questions follow from it alone."""

import re
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import pytest

from omni.data.clip_log import EVENT_CLASSES, VERBS, event_targets, placed_log
from omni.data.clips import KINDS, sample_clip, time_label

CASES = 100
MAX_LOG = 240  # characters, for up to 16 frames
EVENT = re.compile(r"([+-]?)(\w+ \w+)(?: (left|right|up|down|stops|grows|shrinks|turns (\w+)))?")


class Event(NamedTuple):
    time: str
    verb: str  # there, comes, goes, moves, stops, grows, shrinks, turns, touch
    name: str = ""
    detail: str = ""  # a direction or a color


def events(log: str) -> list[Event]:
    """What the log tells; nothing in it is left unread."""
    found, there = [], set()
    for entry in log.split("; "):
        time, told = entry.split(" ", 1)
        for one in told.split(", "):
            if one == "touch":
                found.append(Event(time, "touch"))
                continue
            sign, name, doing, color = EVENT.fullmatch(one).groups()
            if sign == "-":
                found.append(Event(time, "goes", name))
                there.remove(name)
                continue
            if name not in there:
                assert sign or not found or (time == found[0].time and found[0].verb == "there"), log
                found.append(Event(time, "comes" if sign else "there", name))
                there.add(name)
            if color:
                found.append(Event(time, "turns", name, color))
                there = there - {name} | {f"{color} {name.split()[1]}"}
            elif doing in ("stops", "grows", "shrinks"):
                found.append(Event(time, doing, name))
            elif doing:
                found.append(Event(time, "moves", name, doing))
    return found


def answers(told: list[Event]) -> dict[str, str | None]:
    """What follows from the events alone, for each question that could be asked about them."""
    comes = [e for e in told if e.verb in ("there", "comes")]
    order = list(dict.fromkeys(e.name for e in comes))
    gone = [e.name for e in told if e.verb == "goes"]
    ways = {e.name: e.detail for e in reversed(told) if e.verb == "moves"}
    last = {e.name: e.verb for e in told if e.verb in ("moves", "stops")}
    rests = [name for name, verb in last.items() if verb == "stops" and name not in gone]
    touches = [e.time for e in told if e.verb == "touch"]
    found = {
        "What came first?": order[0],
        "What came second?": order[1] if order[1:] else None,
        "What came last?": order[-1],
        "How many things are there at the start?": str(sum(e.verb == "there" for e in told)),
        "How many things are there at the end?": str(len(comes) - len(gone)),
        "How many things were seen altogether?": str(len(order)),
        "Do they touch?": "yes" if touches else "no",
        "At what second do they touch?": touches[0] if touches else None,
        "What stops?": rests[0] if rests else "nothing",
        "What moves?": next(iter(ways), None),
        "What stays still?": next((name for name in order if name not in ways), None),
    }
    found |= {f"What moves {way}?": name for name, way in ways.items()}
    found |= {f"What came after the {a}?": b for a, b in pairwise(order)}
    for name in order:
        times = [e.time for e in comes if e.name == name]
        found[f"Which way does the {name} move?"] = ways.get(name, "it stays")
        found[f"How many times does the {name} appear?"] = str(len(times))
        found[f"At what second does the {name} appear?"] = times[0]
        found[f"At what second does the {name} first appear?"] = times[0]
        found[f"At what second does the {name} last appear?"] = times[-1]
    for change in (e for e in told if e.verb in ("turns", "grows", "shrinks")):
        color, shape = change.name.split()
        found["What changes?"] = shape
        found[f"At what second does the {shape} change?"] = change.time
        found[f"Does the {shape} change its color or its size?"] = "color" if change.detail else "size"
        found[f"Does the {shape} grow or shrink?"] = change.verb
        found[f"What color is the {shape} at first?"] = color
        found[f"What color does the {shape} turn?"] = change.detail
    return found


def name(thing):
    return f"{thing.color} {thing.shape}"


class Logged(NamedTuple):
    """A clip without its pictures, and its log."""

    qa: tuple
    pairs: list  # (first, second) frame of things
    labels: list[str]  # of the pairs
    log: str


@cache
def logged(kind: str, frames: int | None = None) -> list[Logged]:
    clips = [sample_clip(seed, kind, frames) for seed in range(CASES if frames is None else 20)]
    return [
        Logged(
            c.qa,
            list(zip(c.things[::2], c.things[1::2], strict=True)),
            [time_label(float(t)) for t in c.times[::2]],
            placed_log(c, 16)[0],
        )
        for c in clips
    ]


@pytest.mark.parametrize("frames", [None, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_all_questions_are_answered_by_the_log(kind, frames):
    for clip in logged(kind, frames):
        found = answers(events(clip.log))
        assert clip.qa
        for question, expected in clip.qa:
            assert found.get(question) == expected, (question, clip.log)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_there_at_any_time_follows_from_the_log(kind):
    for clip in logged(kind):
        told, there = events(clip.log), set()
        for (first, second), label in zip(clip.pairs, clip.labels, strict=True):
            for event in (e for e in told if e.time == label):
                if event.verb in ("there", "comes"):
                    there.add(event.name)
                elif event.verb == "goes":
                    there.remove(event.name)
                elif event.verb == "turns":
                    there = there - {event.name} | {f"{event.detail} {event.name.split()[1]}"}
            assert there == {name(thing) for thing in (first | second).values()}, clip.log


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_a_kind_can_show_is_told(kind):
    assert {event.verb for clip in logged(kind) for event in events(clip.log)} == {
        "motion": {"there", "moves"},
        "order": {"there", "comes", "goes"},
        "count": {"there", "comes", "goes"},
        "collision": {"there", "goes", "moves", "stops", "touch"},
        "change": {"there", "turns", "grows", "shrinks"},
        "blink": {"there", "comes", "goes"},
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_logs_are_short_and_in_the_order_of_time(kind):
    for clip in logged(kind):
        assert clip.log.isascii()
        assert len(clip.log) <= MAX_LOG, clip.log
        times = [float(entry.split()[0]) for entry in clip.log.split("; ")]
        assert times == sorted(set(times))


def test_what_is_there_at_first_is_told_as_a_page_is_read():
    """In four rows of 16 pixels, each from left to right."""
    several = 0
    for clip in (clip for kind in KINDS for clip in logged(kind)):
        first, second = clip.pairs[0]
        places = {name(thing): (min(max(thing.y // 16, 0), 3), thing.x) for thing in (second | first).values()}
        told = [event.name for event in events(clip.log) if event.verb == "there"]
        assert told == sorted(places, key=places.get)
        several += len(told) > 1
    assert several > CASES


@pytest.mark.parametrize("kind", KINDS)
def test_events_stand_at_the_squares_of_their_things(kind):
    verbs = {1 + i: verb for i, verb in enumerate(VERBS)}
    for seed in range(10):
        clip = sample_clip(seed, kind)
        targets, told = event_targets(clip, 16), events(placed_log(clip, 16)[0])
        assert targets.shape == (len(clip.frames) // 2, 16, len(EVENT_CLASSES))
        assert (targets.max((0, 1)) < EVENT_CLASSES).all()
        labels = [time_label(float(t)) for t in clip.times[::2]]
        for pair, label in enumerate(labels):
            shown = clip.things[2 * pair : 2 * pair + 2]
            seen = {who: thing for frame in reversed(shown) for who, thing in frame.items()}
            squares = {int(min(max(t.y, 0), 63)) // 16 * 4 + int(min(max(t.x, 0), 63)) // 16 for t in seen.values()}
            assert set(targets[pair, :, 0].nonzero()[0]) == squares
            marked = [verbs[c] for c in targets[pair, :, 1] if c]
            wanted = [e.verb for e in told if e.time == label and e.verb != "touch"]
            # What comes in motion is told once and read as two events; what shares a square is marked once.
            assert set(marked) <= set(wanted), (marked, wanted)
            assert bool(wanted) == bool(marked)
            numbers = [n for n in targets[:, :, 3].ravel().tolist() if n]
            assert numbers == sorted(set(numbers))
            assert bool(targets[pair, :, 2].any()) == any(e.time == label and e.verb == "touch" for e in told)
