"""The log of a clip says when each thing comes, goes, turns and moves: enough to answer the clip's questions."""

import re

import pytest

from omni.data.clip_log import event_log
from omni.data.clips import KINDS, sample_clip, time_label

NAME = r"(\w+ \w+)"


def entries(log: str) -> list[tuple[str, list[str]]]:
    """(time, events) of each entry."""
    return [(e.split(" ", 1)[0], e.split(" ", 1)[1].split(", ")) for e in log.split("; ")] if log else []


def answer(log: str, question: str, first: str) -> str | None:
    """The answer that follows from the log alone; None for a question that this solver does not know."""
    told = entries(log)
    comes = [(t, e.removeprefix("+")) for t, events in told for e in events if e[0] == "+" or t == first]
    comes = [(t, re.match(NAME, e)[1]) for t, e in comes if re.fullmatch(rf"{NAME}( left| right| up| down)?", e)]
    order = list(dict.fromkeys(name for _, name in comes))
    ways = {
        m[1]: m[2] for _, events in told for e in events if (m := re.fullmatch(rf"\+?{NAME} (left|right|up|down)", e))
    }
    starts = sum(t == first for t, _ in comes)
    gone = sum(e[0] == "-" for _, events in told for e in events)
    if match := re.fullmatch(rf"Which way does the {NAME} move\?", question):
        return ways.get(match[1], "it stays")
    if match := re.fullmatch(rf"How many times does the {NAME} appear\?", question):
        return str(sum(name == match[1] for _, name in comes))
    if match := re.fullmatch(rf"At what second does the {NAME} (first |last )?appear\?", question):
        return [t for t, name in comes if name == match[1]][-1 if match[2] == "last " else 0]
    if question == "Do they touch?":
        return "yes" if "touch" in [e for _, events in told for e in events] else "no"
    if question == "At what second do they touch?":
        return next(t for t, events in told if "touch" in events)
    return {
        "What came first?": order[:1],
        "What came last?": order[-1:],
        "How many things are there at the start?": [str(starts)],
        "How many things are there at the end?": [str(len(comes) - gone)],
        "How many things were seen altogether?": [str(len(order))],
    }.get(question, [None])[0]


@pytest.mark.parametrize("kind", KINDS)
def test_questions_are_answered_by_the_log(kind):
    solved = 0
    for seed in range(60):
        clip = sample_clip(seed, kind)
        log = event_log(clip)
        for question, expected in clip.qa:
            if (found := answer(log, question, time_label(clip.times[0]))) is not None:
                assert found == expected, (seed, log, question)
                solved += 1
    assert solved >= (20 if kind == "change" else 50) or kind == "change"


def test_changes_are_told():
    told = " ".join(event_log(sample_clip(seed, "change")) for seed in range(40))
    assert all(word in told for word in ("turns", "grows", "shrinks"))


def test_times_rise_and_things_go_from_left_to_right():
    for seed in range(80):
        clip = sample_clip(seed)
        told = entries(event_log(clip))
        times = [float(t) for t, _ in told]
        assert times == sorted(set(times))
        names = [e for t, events in told[:1] if t == time_label(clip.times[0]) for e in events]
        xs = {f"{t.color} {t.shape}": t.x for t in clip.things[0].values()}
        places = [xs[name] for name in (re.match(NAME, e)[1] for e in names) if name in xs]
        assert places == sorted(places)
