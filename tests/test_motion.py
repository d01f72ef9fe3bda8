"""The world of motion: physics holds, sentences tell what happens, sounds fit, the checker tells true from false."""

import re
from collections import Counter
from functools import cache
from itertools import combinations

import numpy as np
import pytest
from scipy import ndimage

from omni.data import TRAIN_SEEDS
from omni.data.motion import (
    CHANGE,
    FPS,
    GRAVITY,
    GROWTH,
    KINDS,
    PITCH,
    RESTITUTION,
    SPEEDS,
    WAYS,
    Deed,
    _course,
    _held_out,
    sample_motion,
    sibling,
)
from omni.data.motion_check import (
    MISSED,
    constant_velocity_error,
    follow,
    frozen_error,
    moved_as_said,
    position_error,
    said,
    track,
)
from omni.data.rollout import SOUND_RATE
from omni.data.scenes import AREA, COLORS, SHAPES, Thing, detect

CASES = 16
MOVING = ("slide", "bounce", "roll", "fall", "collide")
NAME = re.compile(rf"the ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})")


@cache
def rollouts(kind, count=CASES):
    return [sample_motion(seed, kind) for seed in range(count)]


def still(rollout):
    return np.repeat(rollout.frames[:1], len(rollout.frames), 0)


def actor(rollout):
    return next(iter(rollout.tracks))


def bangs(sound):
    """Seconds at which the sound sets in: its power jumps to eight times what it was 10 ms before."""
    power = np.square(sound).reshape(-1, 80).mean(1)  # of 5 ms
    jumps = np.flatnonzero((power[2:] > 8 * power[:-2]) & (power[2:] > 1e-4)) + 2
    return [5e-3 * at for i, at in enumerate(jumps) if i == 0 or at - jumps[i - 1] > 6]


# -- what is drawn -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_rollouts_are_complete_and_the_same_for_a_seed(kind):
    first, again, other = (sample_motion(seed, kind) for seed in (5, 5, 6))
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(first.sound, again.sound)
    assert first.prompt == again.prompt
    assert not np.array_equal(first.frames, other.frames)
    assert (first.frames.shape, first.fps, first.kind) == ((17, 64, 64, 3), FPS, kind)
    assert first.sound.dtype == np.float32
    assert len(first.sound) == round(17 / FPS * SOUND_RATE)
    assert np.abs(first.sound).max() < 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_frame_shows_the_tracks_and_the_sentence_names_them(kind):
    for rollout in rollouts(kind):
        detection = detect(rollout.frames[0])
        assert {f"{thing.color} {thing.shape}" for thing in detection.things} == set(rollout.tracks)
        for thing in detection.things:
            place = rollout.tracks[f"{thing.color} {thing.shape}"][0]
            assert np.hypot(thing.x - place[0], thing.y - place[1]) < 1
        named = [" ".join(found) for found in NAME.findall(rollout.prompt)]
        assert named[0] == actor(rollout)
        assert len(named) == (2 if kind == "collide" else 1)
        assert set(named) <= set(rollout.tracks)


def test_kinds_ways_speeds_and_counts_are_balanced():
    drawn = [sample_motion(seed) for seed in range(300)]
    kinds = Counter(rollout.kind for rollout in drawn)
    assert set(kinds) == set(KINDS)
    assert max(kinds.values()) < 0.2 * len(drawn)
    slides = [rollout.prompt for rollout in rollouts("slide", 240)]
    for word in ("left", "right", "up", "down"):
        assert 0.17 < np.mean([f" {word}" in prompt for prompt in slides]) < 0.33
    for word in ("slowly", "fast"):
        assert 0.25 < np.mean([word in prompt for prompt in slides]) < 0.42
    assert min(Counter(len(rollout.tracks) for rollout in drawn).values()) > 0.2 * len(drawn)


def test_siblings_share_the_first_frame_and_nothing_else():
    for seed in range(60):
        rollout, other = sample_motion(seed), sibling(seed)
        assert np.array_equal(rollout.frames[0], other.frames[0])
        assert rollout.prompt != other.prompt
        assert not np.array_equal(rollout.frames, other.frames)
        assert set(rollout.tracks) == set(other.tracks)


def test_training_sees_no_pair_that_is_held_out():
    def pairs(rollout):
        seen = {name: {name} for name in rollout.tracks}
        if rollout.kind == "recolor":
            seen[actor(rollout)].add(f"{rollout.prompt.split()[-1]} {actor(rollout).split()[1]}")
        for a, b in combinations(seen.values(), 2):
            yield from ((one, two) for one in a for two in b)

    def held(rollout):
        things = [[Thing(n.split()[1], n.split()[0], "", 0, 0, 1) for n in pair] for pair in pairs(rollout)]
        return any(_held_out(*pair) for pair in things)

    first = TRAIN_SEEDS[0]
    trained = [draw(first + seed) for seed in range(80) for draw in (sample_motion, sibling)]
    assert not any(held(rollout) for rollout in trained)
    assert sum(held(sample_motion(seed)) for seed in range(80)) > 3


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="-1"):
        sample_motion(-1)
    with pytest.raises(ValueError, match="'swim'"):
        sample_motion(0, "swim")
    rollout = sample_motion(0)
    for frames in (rollout.frames[:5], rollout.frames.astype(np.float32)):
        with pytest.raises(ValueError, match="frames are"):
            track(frames, rollout)


# -- physics -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MOVING)
def test_bodies_do_not_overlap_or_leave(kind):
    for rollout in rollouts(kind):
        shown = np.abs(rollout.frames.astype(int) - rollout.frames[0, 0, 0]).sum(-1) > 60
        areas = shown.sum((1, 2))
        assert (np.abs(areas - areas[0]) < 0.12 * areas[0] + 12).all()


def test_slides_keep_their_speed_and_way():
    for rollout in rollouts("slide"):
        places = rollout.tracks[actor(rollout)]
        steps = np.diff(places, axis=0)
        word = next((word for word in ("slowly", "fast") if word in rollout.prompt), "")
        way = next(way for way in ("left", "right", "up", "down") if f" {way}" in rollout.prompt)
        np.testing.assert_allclose(steps[0], np.array(WAYS[way]) * SPEEDS[word] / FPS, atol=1e-9)
        pace = np.hypot(*steps.T)
        going = pace > 1e-9
        assert (going[:-1] >= going[1:]).all(), "who stops at a wall stays there"
        assert np.hypot(*(places[-1] - places[0])) >= 9.9
        assert all((track == track[0]).all() for name, track in rollout.tracks.items() if name != actor(rollout))


def test_bounces_keep_their_energy():
    thing = Thing("circle", "red", "", 20.0, 30.0, 6.0)
    for way in WAYS:
        course = _course([thing], Deed("bounce", way=way, speed="fast"))
        paces = np.hypot(*np.diff(course.places[0], axis=0).T) * 64
        assert np.median(paces) == pytest.approx(SPEEDS["fast"], abs=1e-6)
        assert (paces < SPEEDS["fast"] + 1e-6).all()
        assert (paces < SPEEDS["fast"] - 1e-6).sum() <= len(course.hits), "only steps across a wall are shorter"


def test_falls_accelerate_and_the_floor_takes_its_share():
    thing = Thing("square", "red", "", 30.0, 25.0, 6.0)
    course = _course([thing], Deed("fall"))
    y, floor = course.places[0, :, 1], 64 - 0.88 * 6
    np.testing.assert_allclose(np.diff(y[:50], 2) * 64**2, GRAVITY, rtol=1e-6)
    first, second, *_ = course.hits
    assert first.second == pytest.approx(np.sqrt(2 * (floor - 25) / GRAVITY))
    assert second.speed == pytest.approx(RESTITUTION * first.speed)
    between = y[int(first.second * 64) + 1 : int(second.second * 64)]
    assert floor - between.min() == pytest.approx(RESTITUTION**2 * (floor - 25), abs=0.1)
    assert y.max() <= floor + 1e-9


@pytest.mark.parametrize("apart", [47.0, 48.5, 50.0])
def test_two_that_meet_too_late_do_not_collide(apart):
    """Also where nothing is left of the time behind their contact."""
    things = [Thing("circle", "red", "", 6.0, 30.0, 5.5), Thing("ring", "blue", "", 6.0 + apart, 30.0, 5.5)]
    assert _course(things, Deed("collide", who=0, other=1)) is None


@pytest.mark.parametrize(("mine", "other"), [(6.0, 6.0), (5.5, 8.0), (8.0, 5.5)])
def test_collisions_keep_momentum_and_energy(mine, other):
    things = [Thing("circle", "red", "", 12.0, 30.0, mine), Thing("ring", "blue", "", 36.0, 30.0, other)]
    course = _course(things, Deed("collide", who=0, other=1))
    masses = [AREA[thing.shape] * thing.radius**2 for thing in things]
    speeds = np.diff(course.places[..., 0], axis=1) * 64
    contact = course.hits[0].second
    before, after = speeds[:, 0], speeds[:, int(contact * 64) + 2]
    assert masses @ before == pytest.approx(masses @ after)
    assert masses @ before**2 == pytest.approx(masses @ after**2)
    assert (before[1], after[1] > after[0]) == (0, True)
    gap = course.places[1, :, 0] - course.places[0, :, 0] - mine - other
    assert gap.min() > -1e-6
    assert gap.min() < 0.5


def test_sizes_colors_and_presence_change_as_said():
    for kind, ratio in (("grow", GROWTH**2), ("shrink", GROWTH**-2)):
        for rollout in rollouts(kind, 10):
            areas = follow(rollout.frames, rollout)[actor(rollout)].areas
            assert areas[-1] / areas[0] == pytest.approx(ratio, rel=0.12)
    for rollout in rollouts("vanish", 10):
        gone = np.isnan(rollout.tracks[actor(rollout)][:, 0])
        assert np.array_equal(gone, np.arange(17) / FPS >= CHANGE)
    for rollout in rollouts("recolor", 10):
        shown = {f"{thing.color} {thing.shape}" for thing in detect(rollout.frames[-1]).things}
        assert f"{rollout.prompt.split()[-1]} {actor(rollout).split()[1]}" in shown
        assert actor(rollout) not in shown


# -- sounds --------------------------------------------------------------------------------------------------


def test_what_touches_nothing_is_silent():
    for kind in ("grow", "shrink", "recolor"):
        assert all(not rollout.sound.any() for rollout in rollouts(kind, 10))
    slow = [r for r in rollouts("slide", 90) if "slowly" in r.prompt]
    quiet = [r for r in slow if np.hypot(*(r.tracks[actor(r)][-1] - r.tracks[actor(r)][-2])) > 0.5]
    assert len(quiet) > 5
    assert all(not rollout.sound.any() for rollout in quiet)


def test_a_sound_is_heard_when_bodies_meet():
    for rollout in rollouts("fall"):
        y = rollout.tracks[actor(rollout)][:, 1]
        lowest = int(np.argmax(y[:-1] > y[1:]))  # the frame before it is seen going up
        assert abs(bangs(rollout.sound)[0] - lowest / FPS) < 1.5 / FPS
    for rollout in rollouts("collide"):
        name = NAME.findall(rollout.prompt)[1]
        places = rollout.tracks[" ".join(name)]
        starts = int(np.argmax(np.hypot(*np.diff(places, axis=0).T) > 1e-9))
        assert starts / FPS - 0.01 <= bangs(rollout.sound)[0] <= (starts + 1) / FPS + 0.01
    assert all(bangs(rollout.sound)[0] == pytest.approx(CHANGE, abs=0.02) for rollout in rollouts("vanish", 10))


def test_the_pitch_follows_the_size():
    for rollout in rollouts("fall", 10):
        start = int(bangs(rollout.sound)[0] * SOUND_RATE)
        heard = rollout.sound[start : start + 3200]
        spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard)), 1 << 15))
        pitch = spectrum.argmax() * SOUND_RATE / (1 << 15)
        shape = actor(rollout).split()[1]
        area = follow(rollout.frames, rollout)[actor(rollout)].areas[0]
        assert pitch == pytest.approx(PITCH / np.sqrt(area / AREA[shape]), rel=0.04)


# -- the checker ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_tracker_finds_the_true_places(kind):
    for rollout in rollouts(kind):
        found = track(rollout.frames, rollout)
        for name, places in rollout.tracks.items():
            assert np.array_equal(np.isnan(found[name]), np.isnan(places))
            assert np.nanmax(np.hypot(*(found[name] - places).T)) < 1.5
        assert position_error(rollout, found) < 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_true_films_pass_and_false_ones_fail(kind):
    drawn = rollouts(kind)
    assert np.mean([moved_as_said(rollout, rollout.frames) for rollout in drawn]) >= 0.98
    assert np.mean([moved_as_said(rollout, still(rollout)) for rollout in drawn]) <= 0.05
    assert np.mean([moved_as_said(r, sibling(seed, kind).frames) for seed, r in enumerate(drawn)]) <= 0.15
    others = [*drawn[1:], drawn[0]]
    assert np.mean([moved_as_said(r, other.frames) for r, other in zip(drawn, others, strict=True)]) <= 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_noisy_and_blurred_films_still_pass(kind):
    noise = np.random.default_rng(0)
    passed, errors = [], []
    for rollout in rollouts(kind, 10):
        soft = ndimage.gaussian_filter(rollout.frames.astype(np.float32), (0, 0.6, 0.6, 0))
        frames = np.clip(soft + noise.normal(0, 10, soft.shape), 0, 255).astype(np.uint8)
        seen = follow(frames, rollout)
        passed.append(said(rollout, seen))
        errors.append(position_error(rollout, {name: thing.places for name, thing in seen.items()}))
    assert np.mean(passed) >= 0.9
    assert np.mean(errors) < 1


def test_each_fault_is_noticed():
    slides = [r for r in rollouts("slide") if len(r.tracks) == 2]
    slide = next(r for r in slides if np.hypot(*(r.tracks[actor(r)][16] - r.tracks[actor(r)][15])) > 1)
    backwards = slide.frames[[0, *range(16, 0, -1)]]
    assert not moved_as_said(slide, backwards)
    assert not moved_as_said(slide, slide.frames[[0] + [i // 4 for i in range(1, 17)]])  # a quarter of the speed
    for index, rgb in enumerate(COLORS.values()):
        painted = slide.frames.copy()
        mask = np.abs(slide.frames[10:].astype(int) - rgb).sum(-1) < 60
        if mask.any():
            painted[10:][mask] = tuple(COLORS.values())[index - 1]
            assert not moved_as_said(slide, painted), "it has another colour in the end"
            painted[10:][mask] = slide.frames[0, 0, 0]
            assert not moved_as_said(slide, painted), "it is gone in the end"


def test_errors_are_those_of_the_baselines():
    for kind in MOVING:
        drawn = rollouts(kind)
        assert all(position_error(rollout, rollout.tracks) == 0 for rollout in drawn)
        frozen = [position_error(r, track(still(r), r)) for r in drawn[:5]]
        np.testing.assert_allclose(frozen, [frozen_error(r) for r in drawn[:5]], atol=0.5)
        assert np.mean([frozen_error(rollout) for rollout in drawn]) > 4
    assert np.mean([constant_velocity_error(r) for r in rollouts("slide")]) < np.mean(
        [frozen_error(r) for r in rollouts("slide")]
    )
    rollout = sample_motion(0, "slide")
    nowhere = {name: np.full_like(places, np.nan) for name, places in rollout.tracks.items()}
    assert position_error(rollout, nowhere) == MISSED
