"""The clip world: what is asked agrees with what is shown; answers are balanced; controls destroy what they should."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from scipy import ndimage

from omni.data.clips import (
    CLIP_CLASSES,
    FACE,
    FPS,
    KINDS,
    LENGTHS,
    Clip,
    clip_targets,
    frozen,
    long_clip,
    sample_clip,
    shuffled,
)
from omni.data.scenes import COLORS, SHAPES, Thing, coverage, detect, render
from omni.tokenizers.prompts import time_label

CASES = 300
NAMES = {f"{color} {shape}" for color in COLORS for shape in SHAPES}


def clips(kind, count=CASES, frames=None):
    return [sample_clip(seed, kind, frames) for seed in range(count)]


def name(thing):
    return f"{thing.color} {thing.shape}"


def answers(clips, start):
    return [answer for clip in clips for question, answer in clip.qa if question.startswith(start)]


def shares(values):
    return {value: count / len(values) for value, count in Counter(values).items()}


def first_seen(clip):
    """Identity -> frame in which it is first seen."""
    return {who: i for i in reversed(range(len(clip.things))) for who in clip.things[i]}


def things_of(clip):
    return {who: thing for frame in reversed(clip.things) for who, thing in frame.items()}


def by_name(clip):
    return {name(thing): who for who, thing in things_of(clip).items()}


def steps(clip, who):
    """(T - 1, 2) displacement from each frame to the next, the shorter way round."""
    places = np.array([(frame[who].x, frame[who].y) for frame in clip.things])
    return (np.diff(places, axis=0) + 32) % 64 - 32


def touching(clip, frame):
    """Whether the pixels of the two bodies overlap or lie side by side."""
    if len(clip.things[frame]) < 2:
        return False
    first, second = (coverage(t.shape, t.x, t.y, t.radius, (64, 64)) > 0.5 for t in clip.things[frame].values())
    return bool((ndimage.binary_dilation(first, np.ones((3, 3))) & second).any())


@pytest.mark.parametrize("kind", KINDS)
def test_clips_are_the_same_for_a_seed(kind):
    first, again, other = (sample_clip(seed, kind) for seed in (5, 5, 6))
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(first.times, again.times)
    assert (first.qa, first.things) == (again.qa, again.things)
    assert first.things != other.things


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", [6, 12, 64])
def test_frames_and_times_are_as_asked(kind, frames):
    clip = sample_clip(3, kind, frames, size=72)
    assert clip.frames.shape == (frames, 72, 72, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.times.shape == (frames,)
    assert clip.times[0] == 0
    assert any(np.allclose(np.diff(clip.times), 1 / fps) for fps in FPS)
    assert len(clip.things) == frames


def test_kinds_and_lengths_have_their_shares():
    drawn = [sample_clip(seed) for seed in range(CASES)]
    assert all(0.1 < share < 0.24 for share in shares([clip.kind for clip in drawn]).values())
    assert {len(clip.frames) for clip in drawn} == set(LENGTHS)
    assert {clip.background for clip in drawn} == {"white", "black", "gray"}


@pytest.mark.parametrize("kind", ["order", "count", "change", "blink"])
def test_pictures_show_the_things(kind):
    for clip in clips(kind, 25):
        for picture, things in zip(clip.frames, clip.things, strict=True):
            found = sorted((thing.shape, thing.color) for thing in detect(picture).things)
            assert found == sorted((thing.shape, thing.color) for thing in things.values())


@pytest.mark.parametrize("kind", ["order", "count", "change", "blink"])
def test_things_come_go_and_change_between_pairs(kind):
    assert all(clip.things[::2] == clip.things[1::2] for clip in clips(kind))


def test_motion_is_what_was_answered():
    toward = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    for clip in clips("motion"):
        named, ways = by_name(clip), {}
        for thing, who in named.items():
            moved = steps(clip, who)
            total = moved.sum(0)
            if np.abs(moved).max() < 1e-6:
                ways[thing] = "it stays"
                continue
            ways[thing] = next(way for way, unit in toward.items() if total @ unit > np.abs(total).max() - 1e-6)
            assert np.abs(moved).max(1).min() >= 2.5 - 1e-6
            assert np.abs(total).max() >= 64 / 3 - 1e-6
        for question, answer in clip.qa:
            if question.startswith("Which way"):
                assert answer == ways[question.split("the ")[1].removesuffix(" move?")]
            elif question == "What stays still?":
                assert [answer] == [thing for thing, way in ways.items() if way == "it stays"]
            elif question == "What moves?":
                assert [answer] == [thing for thing, way in ways.items() if way != "it stays"]
            else:
                assert [answer] == [thing for thing, way in ways.items() if question == f"What moves {way}?"]
        asked = [question for question, _ in clip.qa if question.startswith("Which way")]
        assert asked == [f"Which way does the {thing} move?" for thing in ways]


def test_directions_are_balanced_and_do_not_depend_on_the_start():
    drawn = clips("motion")
    given = shares(answers(drawn, "Which way"))
    assert set(given) == {"left", "right", "up", "down", "it stays"}
    assert all(0.13 < share < 0.27 for share in given.values())
    starts = {way: [] for way in given}
    for clip in drawn:
        for question, answer in clip.qa:
            if question.startswith("Which way"):
                thing = clip.things[0][by_name(clip)[question.split("the ")[1].removesuffix(" move?")]]
                starts[answer].append(thing.x if answer in ("left", "right") else thing.y)
    assert abs(np.mean(starts["left"]) - np.mean(starts["right"])) < 6
    assert abs(np.mean(starts["up"]) - np.mean(starts["down"])) < 6


@pytest.mark.parametrize("frames", [None, 64])
def test_order_is_what_was_answered(frames):
    for clip in clips("order", CASES if frames is None else 60, frames):
        seen, things = first_seen(clip), things_of(clip)
        coming = [name(things[who]) for who in sorted(seen, key=seen.get)]
        when = {name(things[who]): time_label(clip.times[frame]) for who, frame in seen.items()}
        assert all(frame % 2 == 0 for frame in seen.values())
        right = {"What came first?": coming[0], "What came last?": coming[-1], "What came second?": coming[1]}
        right["How many things were seen altogether?"] = str(len(coming))
        right |= {f"What came after the {a}?": b for a, b in pairwise(coming)}
        right |= {f"At what second does the {thing} appear?": label for thing, label in when.items()}
        if len(coming) == 2:
            del right["What came second?"]
        assert dict(clip.qa) == right
        assert NAMES.issuperset(coming)


def test_order_is_balanced():
    drawn = clips("order")
    together = np.mean([len(clip.things[-1]) == len(first_seen(clip)) for clip in drawn])
    assert 0.4 < together < 0.6
    assert all(0.2 < share < 0.47 for share in shares(answers(drawn, "How many")).values())
    assert max(shares(answers(drawn, "What came first")).values()) < 0.08
    assert max(shares(answers(drawn, "At what second")).values()) < 0.3


def test_counts_are_what_was_answered_and_independent():
    drawn = clips("count")
    numbers = []
    for clip in drawn:
        counted = len(clip.things[0]), len(clip.things[-1]), len(things_of(clip))
        assert [answer for _, answer in clip.qa] == [str(number) for number in counted]
        numbers.append(counted)
        comes = sum(len(after.keys() - before.keys()) for before, after in pairwise([{}, *clip.things]))
        assert comes == counted[2]  # each of them once
    for column in zip(*numbers, strict=True):
        assert len(shares(column)) == 3
        assert all(0.24 < share < 0.43 for share in shares(column).values())
    assert np.abs(np.corrcoef(np.array(numbers).T) - np.eye(3)).max() < 0.2


def test_contacts_are_what_was_answered():
    for clip in clips("collision"):
        qa = dict(clip.qa)
        contact = [frame for frame in range(len(clip.frames)) if touching(clip, frame)]
        assert qa["Do they touch?"] == ("yes" if contact else "no")
        assert ("At what second do they touch?" in qa) == bool(contact)
        if contact:
            assert contact[0] % 2 == 0
            assert contact[1] == contact[0] + 1
            assert qa["At what second do they touch?"] == time_label(clip.times[contact[0]])


def test_what_stops_moved_before_and_rests_after():
    for clip in clips("collision"):
        stops = dict(clip.qa).get("What stops?")
        if stops is None:
            continue
        halted = []
        for thing, who in by_name(clip).items():
            if all(who in frame for frame in clip.things):
                moved = np.abs(steps(clip, who)).max(1) > 1e-6
                halted += [thing] if moved.any() and not moved[-1] else []
        assert halted == ([] if stops == "nothing" else [stops])


def test_contacts_are_balanced():
    drawn = clips("collision")
    assert 0.42 < shares(answers(drawn, "Do they"))["yes"] < 0.58
    assert shares(answers(drawn, "What stops"))["nothing"] < 0.62
    assert max(shares(answers(drawn, "At what second")).values()) < 0.2
    assert {thing.shape for clip in drawn for thing in clip.things[0].values()} == set(FACE)


def test_changes_are_what_was_answered():
    for clip in clips("change"):
        changed = [who for who, thing in clip.things[0].items() if clip.things[-1][who] != thing]
        assert len(changed) == 1
        track = [frame[changed[0]] for frame in clip.things]
        first, last = track[0], track[-1]
        at = track.index(last)
        assert at % 2 == 0
        what = "size" if first.color == last.color else "color"
        right = {
            f"At what second does the {first.shape} change?": time_label(clip.times[at]),
            f"Does the {first.shape} change its color or its size?": what,
        }
        if what == "color":
            right[f"What color is the {first.shape} at first?"] = first.color
            right[f"What color does the {first.shape} turn?"] = last.color
        else:
            right[f"Does the {first.shape} grow or shrink?"] = "grows" if last.radius > first.radius else "shrinks"
        if len(clip.things[0]) > 1:
            right["What changes?"] = first.shape
        assert dict(clip.qa) == right
        assert (first.radius == last.radius) == (what == "color")


def test_changes_are_balanced_also_for_who_sees_the_middle_frame():
    drawn = clips("change", 2 * CASES)
    colors = shares(answers(drawn, "What color does"))
    assert len(colors) == len(COLORS)
    assert max(colors.values()) < 0.25
    growing = [clip for clip in drawn if answers([clip], "Does the") and "grow" in clip.qa[0][0]]
    assert 0.4 < shares([clip.qa[0][1] for clip in growing])["grows"] < 0.6
    small = [clip for clip in growing if clip.things[len(clip.things) // 2][0].radius < 8]
    assert 0.38 < shares([clip.qa[0][1] for clip in small])["grows"] < 0.62


def test_appearances_are_what_was_answered_and_balanced():
    drawn = clips("blink")
    for clip in drawn:
        qa = dict(clip.qa)
        thing = clip.qa[0][0].split("the ")[1].removesuffix(" appear?")
        seen = np.array([thing in {name(t) for t in frame.values()} for frame in clip.things])
        starts = np.flatnonzero(seen & ~np.concatenate([[False], seen[:-1]]))
        assert qa[f"How many times does the {thing} appear?"] == str(len(starts))
        assert qa[f"At what second does the {thing} first appear?"] == time_label(clip.times[starts[0]])
        assert qa[f"At what second does the {thing} last appear?"] == time_label(clip.times[starts[-1]])
        assert all(start % 2 == 0 for start in starts)
        assert seen.sum() == 2 * ((len(clip.frames) // 2 + 1) // 2)
    given = shares(answers(drawn, "How many"))
    assert set(given) == set("1234")
    assert all(0.17 < share < 0.33 for share in given.values())


def test_labels_have_a_decimal_below_a_hundred_seconds():
    assert [time_label(s) for s in (0, 2.5, 20, 99.94, 99.96, 100, 1800)] == [
        "0.0", "2.5", "20.0", "99.9", "100", "100", "1800",
    ]  # fmt: skip


def test_labels_of_pairs_differ():
    for seed in range(100):
        times = sample_clip(seed, frames=64).times[::2]
        assert len({time_label(seconds) for seconds in times}) == 32
        assert all(abs(float(time_label(seconds)) - seconds) < 1e-6 for seconds in times)


def test_controls_keep_the_frames_but_not_what_happens():
    clip = sample_clip(3, "motion", 10)
    still = frozen(clip)
    assert still.shape == clip.frames.shape
    assert (still == clip.frames[5]).all()
    mixed = shuffled(clip, Random(0))
    assert sorted(map(bytes, mixed)) == sorted(map(bytes, clip.frames))
    numbered = replace(clip, frames=np.arange(10))
    for seed in range(20):
        pairs = shuffled(numbered, Random(seed)).reshape(5, 2)
        assert sorted(pairs.flatten()) == list(range(10))
        assert all(a // 2 != b // 2 for a, b in pairs)


def hand_clip(first, second, wraps=False):
    things = ({0: first}, {0: second})
    frames = np.stack([render(frame.values(), "white") for frame in things])
    return Clip(frames, np.arange(2.0), "motion", (), things, "white", wraps)


@pytest.mark.parametrize(("dx", "dy", "motion"), [(0, 0, 0), (-3, 0, 1), (3, 0, 2), (0, -3, 3), (0, 3, 4)])
def test_targets_name_shape_color_and_motion(dx, dy, motion):
    square = Thing("square", "blue", "", 24.0, 24.0, 9.0)  # covers the square of 16 pixels at row 1, column 1
    targets = clip_targets(hand_clip(square, replace(square, x=24 + dx, y=24 + dy)), 16)
    assert targets.shape == (1, 16, 3)
    assert targets[0, 5].tolist() == [1 + SHAPES.index("square"), 1 + list(COLORS).index("blue"), motion]
    assert not np.delete(targets[0], 5, 0).any()
    assert (targets.max((0, 1)) < CLIP_CLASSES).all()


def test_targets_follow_things_over_the_edge():
    before = Thing("square", "red", "", 62.0, 24.0, 9.0)
    clip = hand_clip(before, replace(before, x=2.0), wraps=True)
    assert clip_targets(clip, 16)[0, [4, 7], 2].tolist() == [2, 2]
    assert clip_targets(replace(clip, wraps=False), 16)[0, 4].any()


def test_targets_of_what_covers_little_are_none():
    small = Thing("cross", "red", "", 32.0, 32.0, 5.0)  # on the corner of four squares
    assert not clip_targets(hand_clip(small, small), 16).any()
    assert clip_targets(hand_clip(small, small), 8).any()


def test_targets_agree_with_the_things():
    for kind in KINDS:
        clip = sample_clip(4, kind, 8)
        targets = clip_targets(clip, 8)
        for target, things in zip(targets, clip.things[::2], strict=True):
            named = {(1 + SHAPES.index(t.shape), 1 + list(COLORS).index(t.color)) for t in things.values()}
            assert {tuple(row[:2]) for row in target.tolist() if any(row)} == named
            assert (kind in ("motion", "collision")) or not target[:, 2].any()


def test_long_clips_show_their_chapters_when_the_answers_say():
    for seed in range(20):
        clip = long_clip(seed, pairs=30)
        assert (clip.seconds, clip.fps) == (3600, 1)
        shown = [detect(clip.frame_at(t)).things for t in np.arange(60) * 60.0]
        assert all(len(things) == 1 for things in shown)
        named = [name(things[0]) for things in shown]
        coming = list(dict.fromkeys(named))
        assert 4 <= len(coming) <= 8
        assert min(Counter(named).values()) >= 4
        qa = dict(clip.qa)
        assert (qa["What came first?"], qa["What came last?"]) == (coming[0], coming[-1])
        assert qa["How many things were seen altogether?"] == str(len(coming))
        for thing in coming:
            assert qa[f"At what second does the {thing} appear?"] == time_label(60 * named.index(thing))


def test_long_clips_are_drawn_at_any_time_and_size():
    clip = long_clip(2, minutes=5, size=128)
    assert clip.frame_at(0).shape == clip.frame_at(300).shape == (128, 128, 3)
    assert np.array_equal(clip.frame_at(12.5), long_clip(2, minutes=5, size=128).frame_at(12.5))
    assert not np.array_equal(clip.frame_at(0), clip.frame_at(5))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: sample_clip(-1), "seed is -1"),
        (lambda: sample_clip(0, "poems"), "kind is 'poems'"),
        (lambda: sample_clip(0, frames=7), "frames is 7"),
        (lambda: sample_clip(0, frames=4), "frames is 4"),
        (lambda: sample_clip(0, frames=66), "frames is 66"),
        (lambda: sample_clip(0, size=68), "size is 68"),
        (lambda: clip_targets(sample_clip(0), 12), "side is 12"),
        (lambda: clip_targets(sample_clip(0), 16, 5), "tubelet is 5"),
        (lambda: long_clip(-1), "seed is -1"),
        (lambda: long_clip(0, minutes=0), "minutes is 0"),
        (lambda: long_clip(0, pairs=8), "pairs is 8"),
        (lambda: long_clip(0, fps=0), "fps is 0"),
        (lambda: long_clip(0, size=20), "size is 20"),
        (lambda: long_clip(0).frame_at(3601), "t is 3601"),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
