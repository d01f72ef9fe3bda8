"""The film world: picture and sound track agree in time, and the answers are right by an independent reckoning."""

import re
from collections import Counter
from dataclasses import replace
from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest

from omni.data import TRAIN_SEEDS
from omni.data.films import KINDS, Film, sample_film, screen_targets
from omni.data.scenes import COLORS, SHAPES, detect
from omni.data.sounds import DIGITS, NOISES, UNITS, silence, sound_targets
from omni.data.speech import HELD_OUT_VOICES, SAMPLE_RATE, TRAIN_VOICES

SPEECH = find_spec("espeakng_loader") is not None
needs_speech = pytest.mark.skipif(not SPEECH, reason="the wheel espeakng-loader is not installed")
TRAIN = TRAIN_SEEDS[0]
CASES = 24
every_kind = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "noises" else needs_speech) for kind in KINDS]
)


@cache
def films(kind, first=TRAIN, count=CASES) -> list[Film]:
    return [sample_film(seed, kind) for seed in range(first, first + count)]


@every_kind
def test_a_film_is_the_same_for_a_seed(kind):
    one, two = sample_film(5, kind), sample_film(5, kind)
    for name in ("frames", "times", "samples"):
        assert np.array_equal(getattr(one, name), getattr(two, name))
    bare = {"frames": None, "times": None, "samples": None}
    assert replace(one, **bare) == replace(two, **bare)
    assert len({film.frames.tobytes() for film in films(kind)}) == CASES


@every_kind
def test_films_are_in_bounds(kind):
    for film in films(kind):
        count = len(film.frames)
        assert 8 <= count <= 16
        assert count % 2 == 0
        assert film.frames.shape == (count, 64, 64, 3)
        assert film.frames.dtype == np.uint8
        assert film.times.shape == (count,)
        assert film.times[0] == 0
        assert np.allclose(np.diff(film.times), film.times[1])
        assert 2 <= round(1 / film.times[1]) <= 4
        seconds = count * film.times[1]
        assert 2 <= seconds <= 5
        assert len(film.samples) == round(seconds * SAMPLE_RATE)
        assert film.samples.dtype == np.float32
        assert np.abs(film.samples).max() < 0.96


@every_kind
def test_every_part_shows_its_thing_for_two_frames_or_more(kind):
    for film in films(kind)[:8]:
        assert [film.parts[0].start, *(part.end for part in film.parts)] == [
            *(part.start for part in film.parts),
            pytest.approx(film.times[1] * len(film.times)),
        ]
        for part in film.parts:
            at = [i for i, time in enumerate(film.times) if part.start - 1e-6 <= time < part.end - 1e-6]
            assert len(at) >= 2
            assert at[0] % 2 == 0
            for index in at:
                (found,) = detect(film.frames[index]).things
                assert f"{found.color} {found.shape}" == part.thing


@every_kind
def test_every_sound_lies_within_its_part(kind):
    for film in films(kind):
        heard = [part for part in film.parts if part.unit]
        assert [part.unit for part in heard] == [event.unit for event in film.events]
        outside = np.ones(len(film.samples), bool)
        for event in film.events:
            outside[int(event.start * SAMPLE_RATE) : int((event.end + 0.15) * SAMPLE_RATE)] = False  # and its echo
        for part, event in zip(heard, film.events, strict=True):
            assert part.start < event.start < event.end < part.end
            inside = film.samples[int(event.start * SAMPLE_RATE) : int(event.end * SAMPLE_RATE)]
            assert np.mean(inside**2) > 10 * np.mean(film.samples[outside] ** 2)


@needs_speech
def test_held_out_voices_are_never_heard_in_training():
    assert {film.voice for film in films("digits")} <= set(TRAIN_VOICES)
    assert {film.voice for film in films("digits", 0)} & set(HELD_OUT_VOICES)
    assert {film.voice for film in films("noises")} == {""}


def solve(question, film):
    """The answer, from the parts alone."""
    things = [part.thing for part in film.parts]
    units = [part.unit for part in film.parts if part.unit]
    if question in ("What is seen and heard?", "Describe the film.", "What happens in the film?"):
        return ", ".join(f"{part.thing} {part.unit or 'nothing'}" for part in film.parts)
    clause = r"the (?:digit |word )?(\w+) is (?:said|heard)"
    if match := re.fullmatch(rf"Is the (\w+ \w+) shown when {clause}\?", question):
        return "yes" if any(part.thing == match[1] and part.unit == match[2] for part in film.parts) else "no"
    if match := re.fullmatch(r".* (?:when|while) the (\w+ \w+) is shown\?", question):
        return film.parts[things.index(match[1])].unit or "nothing"
    if match := re.fullmatch(rf"(?:What|Which) (is|do|color|shape).* when {clause}\?", question):
        thing = next(part.thing for part in film.parts if part.unit == match[2])
        return {"color": thing.split()[0], "shape": thing.split()[1]}.get(match[1], thing)
    if match := re.fullmatch(r"Is the (?:digit |word )?(\w+) \w+ before or after the (\w+ \w+) appears\?", question):
        start = next(event.start for event in film.events if event.unit == match[1])
        return "before" if start < film.parts[things.index(match[2])].start else "after"
    if match := re.fullmatch(r"Is the (\w+ \w+) shown before or after the (\w+ \w+)\?", question):
        return "before" if things.index(match[1]) < things.index(match[2]) else "after"
    if match := re.fullmatch(r"(?:Is|Does) the (\w+ \w+) (?:shown|appear)\?", question):
        return "yes" if match[1] in things else "no"
    if question.startswith("How many"):
        return str(len(things))
    answers = {
        "What is heard first?": units[0],
        "What is heard last?": units[-1],
        "What do you hear?": " ".join(units),
        "What is heard in the film?": " ".join(units),
        "What is said?": " ".join(unit for unit in units if unit not in NOISES),
        "What is shown first?": things[0],
        "Which thing is shown first?": things[0],
        "What is shown last?": things[-1],
        "Which thing is shown last?": things[-1],
    }
    return answers[question]


@every_kind
def test_answers_follow_from_the_parts(kind):
    needs = Counter()
    for film in (*films(kind), *films(kind, 0)):
        assert len(film.qa) == len(film.needs)
        assert film.qa[0][1] == film.text
        for (question, answer), need in zip(film.qa, film.needs, strict=True):
            assert solve(question, film) == answer, (question, film.text)
            needs[need] += 1
    assert needs["both"] > needs["picture"] + needs["sound"]
    assert min(needs["picture"], needs["sound"]) > CASES // 2


@every_kind
def test_two_way_answers_are_balanced(kind):
    answers = Counter(
        answer
        for film in films(kind, count=80)
        for question, answer in film.qa
        if question.startswith(("Is ", "Does "))
    )
    for one, other in (("yes", "no"), ("before", "after")):
        total = answers[one] + answers[other]
        assert total > 60
        assert abs(answers[one] - answers[other]) < 4 * total**0.5


@every_kind
def test_one_sense_does_not_tell_what_the_other_shows(kind):
    """Units and things are drawn apart: no thing has a unit of its own."""
    pairs = Counter((part.thing, part.unit) for film in films(kind, count=80) for part in film.parts if part.unit)
    assert pairs.most_common(1)[0][1] < 0.06 * pairs.total()
    spoken = {part.unit for film in films(kind) for part in film.parts if part.unit}
    assert not spoken & {word for film in films(kind) for part in film.parts for word in part.thing.split()}
    assert kind != "digits" or spoken == set(DIGITS)


def test_larger_films_show_the_same():
    small, large = sample_film(TRAIN, "noises"), sample_film(TRAIN, "noises", size=96)
    assert large.frames.shape[1:] == (96, 96, 3)
    assert small.qa == large.qa
    (found,) = detect(large.frames[0]).things
    assert f"{found.color} {found.shape}" == large.parts[0].thing


def test_targets_and_silence_take_films():
    film = sample_film(TRAIN, "noises")
    assert {UNITS[target - 1] for target in sound_targets(film, 63) if target} == {e.unit for e in film.events}
    assert silence(film).shape == film.samples.shape


def test_what_is_shown_is_known_at_every_token_of_the_sound():
    for film in films("noises")[:8]:
        tokens = int(len(film.samples) / SAMPLE_RATE / 0.08)
        shown = screen_targets(film, tokens)
        assert shown.shape == (tokens, 2)
        for i, (shape, color) in enumerate(shown.tolist()):
            (part,) = [p for p in film.parts if p.start <= (i + 0.5) * 0.08 < p.end]
            assert part.thing == f"{tuple(COLORS)[color - 1]} {SHAPES[shape - 1]}"


def test_the_things_of_each_frame_are_what_it_shows():
    for film in films("noises")[:8]:
        for frame, shown in zip(film.frames, film.things, strict=True):
            (thing,), (found,) = shown.values(), detect(frame).things
            assert (thing.color, thing.shape) == (found.color, found.shape)
            assert abs(thing.x - found.x) < 2
            assert abs(thing.y - found.y) < 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((-1,), "seed is -1"), ((0, "opera"), "kind is 'opera'"), ((0, None, 60), "size is 60"), ((0, None, 70), "size")],
)
def test_bad_requests_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_film(*arguments)
