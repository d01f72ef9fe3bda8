"""What happens in a clip, told in one grammar for all kinds: what is there first, then every change with its time.

    "0.0 red circle right, blue square; 2.0 +green ring; 4.0 -red circle, touch; 6.0 blue square turns red"

Each entry follows from what is seen around its time, from left to right, so it can be told without knowing what kind
of clip it is; questions are then answered from the log.
"""

from omni.data.clips import CONTACT, MOTIONS, Clip, Frame, Thing, full_name, motion_class, time_label

GROWTH = 1.2  # ratio of radii between which nothing grew or shrank
STANDS = 0  # motion class of what does not move

Seen = dict[int, tuple[Thing, int]]  # identity -> thing and its motion class


def event_log(clip: Clip) -> str:
    """The log of a clip; entries without an event are left out."""
    size = clip.frames.shape[1]
    contact = dict(clip.qa).get(CONTACT)
    entries, before = [], {}
    for pair in range(len(clip.things) // 2):
        label = time_label(float(clip.times[2 * pair]))
        now = _seen(clip.things[2 * pair : 2 * pair + 2], size, before)
        events = _events(before, now, first=pair == 0) + (["touch"] if label == contact else [])
        entries += [f"{label} {', '.join(events)}"] if events else []
        before = now
    return "; ".join(entries)


def _seen(frames: tuple[Frame, ...], size: int, before: Seen) -> Seen:
    """What a pair of frames shows, and how it moves between them; as before where it is seen in one of them only."""
    found = {}
    for who in dict.fromkeys(who for frame in frames for who in frame):
        states = [frame[who] for frame in frames if who in frame]
        cut = len(states) < len(frames) and who in before
        found[who] = states[0], before[who][1] if cut else motion_class(states[0], states[-1], size)
    return found


def _events(before: Seen, now: Seen, first: bool) -> list[str]:
    """What is new, gone or otherwise, from left to right."""
    everything = {**before, **now}
    events: list[str] = []
    for who in sorted(everything, key=lambda who: (everything[who][0].x, who)):
        if who not in now:
            events.append(f"-{full_name(before[who][0])}")
        elif who not in before:
            events.append(("" if first else "+") + _moving(*now[who]))
        else:
            events += _changes(before[who], now[who])
    return events


def _moving(thing: Thing, motion: int) -> str:
    return full_name(thing) + (f" {tuple(MOTIONS)[motion - 1]}" if motion != STANDS else "")


def _changes(before: tuple[Thing, int], now: tuple[Thing, int]) -> list[str]:
    (old, was), (new, moves) = before, now
    name, found = full_name(old), []
    if old.color != new.color:
        found.append(f"{name} turns {new.color}")
    if new.radius > GROWTH * old.radius or old.radius > GROWTH * new.radius:
        found.append(f"{name} {'grows' if new.radius > old.radius else 'shrinks'}")
    if was != moves:
        found.append(f"{name} stops" if moves == STANDS else _moving(new, moves))
    return found
