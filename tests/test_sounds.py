"""The sound world: recordings are what their events say, and the answers are right by an independent reckoning."""

import re
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest

from omni.data import TRAIN_SEEDS, speech
from omni.data.sounds import (
    ANIMALS,
    BANDS,
    COLOR_WORDS,
    DIGITS,
    HELD_OUT_SHARE,
    KINDS,
    LEVELS,
    LONGEST,
    NOISES,
    ORDINALS,
    SHORTEST,
    TRANSCRIBE,
    UNITS,
    VOICE_PITCHES,
    VOICE_RATES,
    WORDS,
    Event,
    Sound,
    sample_sound,
    silence,
    sound_targets,
)

SPEECH = find_spec("espeakng_loader") is not None
needs_speech = pytest.mark.skipif(not SPEECH, reason="the wheel espeakng-loader is not installed")
SPOKEN_KINDS = ("digits", "words", "mixed")
TRAIN = TRAIN_SEEDS[0]
CASES = 40
every_kind = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=needs_speech if kind in SPOKEN_KINDS else ()) for kind in KINDS]
)


@cache
def recordings(kind, first=TRAIN, count=CASES):
    return [sample_sound(seed, kind) for seed in range(first, first + count)]


def rms(samples):
    return float(np.mean(samples**2)) ** 0.5


def cut(sound, start, end):
    return sound.samples[round(start * speech.SAMPLE_RATE) : round(end * speech.SAMPLE_RATE)]


# -- speech ------------------------------------------------------------------------------------------------


@needs_speech
def test_a_word_is_the_same_whatever_was_said_before():
    words = [(word, voice) for word in ("seven", "dog") for voice in ("en-us+f2", "en-gb+m1", "en-gb-scotland+f5")]
    alone = [speech.speak(*word) for word in words]
    speech._spoken.cache_clear()
    again = [speech.speak(*word) for word in reversed(words)][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(alone, again, strict=True))
    speech._spoken.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(lambda word: speech.speak(*word), words))
    assert all(np.array_equal(a, b) for a, b in zip(alone, at_once, strict=True))


@needs_speech
def test_a_word_is_trimmed_and_within_bounds():
    for voice in speech.voices():
        samples = speech.speak("nine", voice)
        assert samples.dtype == np.float32
        assert 0.25 < len(samples) / speech.SAMPLE_RATE < 0.75
        assert np.abs(samples).max() == pytest.approx(speech.PEAK, abs=1e-3)
        assert np.abs(samples[:200]).max() > 0.01
        assert np.abs(samples[-200:]).max() > 0.01


@needs_speech
def test_voices_rates_and_pitches_are_heard():
    voices = {speech.speak("three", voice).tobytes() for voice in speech.voices()}
    assert len(voices) == len(speech.voices()) >= 12
    assert len(speech.speak("three", rate=120)) > 1.2 * len(speech.speak("three", rate=240))
    low, high = (_pitch(speech.speak("no", pitch=pitch)) for pitch in (20, 80))
    assert high > 1.2 * low


def _pitch(samples):
    """Fundamental frequency in Hz, from the autocorrelation of the middle of a vowel."""
    middle = samples[len(samples) // 2 - 640 : len(samples) // 2 + 640]
    lags = np.correlate(middle, middle, "full")[len(middle) - 1 :]
    return speech.SAMPLE_RATE / (40 + np.argmax(lags[40:320]))


def test_without_the_wheel_one_error_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    speech._spoken.cache_clear()
    with pytest.raises(speech.SpeechUnavailable, match=r"pip install omni\[train\]"):
        speech.speak("one")
    with pytest.raises(speech.SpeechUnavailable, match="espeakng-loader"):
        sample_sound(TRAIN, "digits")
    assert sample_sound(TRAIN, "tones").voice == ""
    assert issubclass(speech.SpeechUnavailable, ValueError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"word": ""}, "1 to 60"),
        ({"word": "a" * 61}, "1 to 60"),
        ({"word": "a\x00b"}, "printable"),
        ({"word": "naïve"}, "ASCII"),
        ({"word": "one", "voice": "xx"}, "voice is 'xx'"),
        ({"word": "one", "rate": 20}, "rate is 20"),
        ({"word": "one", "pitch": 100}, "pitch is 100"),
    ],
)
def test_bad_words_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        speech.speak(**arguments)


@needs_speech
def test_a_word_without_any_sound_is_refused():
    with pytest.raises(ValueError, match="nothing of it can be spoken"):
        speech.speak(" ")


# -- recordings --------------------------------------------------------------------------------------------


def test_units_differ_and_lists_are_consistent():
    assert len(set(UNITS)) == len(UNITS)
    assert len(WORDS) >= 40
    assert {*COLOR_WORDS, *ANIMALS} < set(WORDS)
    assert not set(speech.TRAIN_VOICES) & set(speech.HELD_OUT_VOICES)
    styles = len(speech.voices()) * len(VOICE_RATES) * len(VOICE_PITCHES)
    assert styles * len((*DIGITS, *WORDS)) <= speech.CACHE


@every_kind
def test_a_recording_is_the_same_for_a_seed(kind):
    one, two = sample_sound(3, kind), sample_sound(3, kind)
    assert np.array_equal(one.samples, two.samples)
    assert replace(one, samples=None) == replace(two, samples=None)
    assert len({sound.samples.tobytes() for sound in recordings(kind)}) == CASES


@needs_speech
def test_without_a_kind_every_kind_is_drawn():
    assert {sample_sound(seed).kind for seed in range(100)} == set(KINDS)


@every_kind
def test_recordings_are_in_bounds(kind):
    for sound in (*recordings(kind), *recordings(kind, 0, 20)):
        assert sound.samples.dtype == np.float32
        assert sound.samples.ndim == 1
        assert SHORTEST <= len(sound.samples) / speech.SAMPLE_RATE <= LONGEST
        assert 0.15 < np.abs(sound.samples).max() < 0.96
        assert sound.text == " ".join(event.unit for event in sound.events)
        assert all(unit in UNITS for unit in sound.text.split())


@every_kind
def test_events_are_where_the_energy_is(kind):
    for sound in recordings(kind):
        edges = [0.0, *(t for event in sound.events for t in event[1:]), len(sound.samples) / speech.SAMPLE_RATE]
        assert edges == sorted(edges)
        floor = rms(cut(sound, 0, max(edges[1] - 0.005, 0.02)))  # before the first event nothing rings
        for event in sound.events:
            assert rms(cut(sound, *event[1:])) > 4 * floor
        inside = sum(len(part) * rms(part) ** 2 for part in (cut(sound, *event[1:]) for event in sound.events))
        assert inside > 0.85 * len(sound.samples) * rms(sound.samples) ** 2


def test_tones_have_the_pitch_of_their_level():
    for sound in recordings("tones"):
        for event in sound.events:
            part = cut(sound, *event[1:])
            peak = np.argmax(np.abs(np.fft.rfft(part * np.hanning(len(part))))) * speech.SAMPLE_RATE / len(part)
            low, high = BANDS[event.unit]
            assert low - 6 < peak < high + 6


@needs_speech
def test_held_out_voices_are_never_heard_in_training():
    spoken = [sound for kind in SPOKEN_KINDS for sound in recordings(kind)]
    assert {sound.voice for sound in spoken} <= set(speech.TRAIN_VOICES)
    held_out = [sound.voice in speech.HELD_OUT_VOICES for k in SPOKEN_KINDS for sound in recordings(k, 0, CASES)]
    assert abs(np.mean(held_out) - HELD_OUT_SHARE) < 0.15


@pytest.mark.parametrize(("seed", "kind"), [(-1, None), (0, "song")])
def test_bad_requests_are_refused(seed, kind):
    with pytest.raises(ValueError, match=r"seed is -1|kind is 'song'"):
        sample_sound(seed, kind)


# -- questions ---------------------------------------------------------------------------------------------

PLURAL = r"(?:digit|word|tone|sound|beat)s"


def unit_of(name):
    return re.sub(r"^(?:digit |word )|(?: tone)$", "", name)


def solve(question, sound):
    """The answer, from the events alone."""
    units = [event.unit for event in sound.events]
    said = [unit for unit in units if unit in DIGITS or unit in WORDS]
    if question in TRANSCRIBE[1:] or question == "Write down what you hear.":
        return sound.text
    if question == "What is said?" or re.fullmatch(r"(?:What|Which) (digit|word)s? (is|are) said\?", question):
        return " ".join(said)
    if question == "Which digits do you hear?":
        return sound.text
    for group, name in ((COLOR_WORDS, "color"), (ANIMALS, "animal")):
        if re.match(rf"Which {name} (is said|do you hear)\?", question):
            return " ".join(unit for unit in units if unit in group)
    if match := re.match(r"How many (low|middle|high) tones", question):
        return str(units.count(match[1]))
    if match := re.match(r"How many (?:beats come )?(before|after) the pause", question):
        return str(pause(sound)[match[1] == "after"])
    if re.match(rf"(?:How many {PLURAL}|Count the {PLURAL})", question):
        return str(len(said if sound.kind == "mixed" else units))
    if re.match(r"Is it a click or|What beats|Which sound is repeated", question):
        return units[0]
    if "fast or slow" in question:
        return "fast" if sound.events[1].start - sound.events[0].start < 0.3 or quick_end(sound) else "slow"
    if re.match(r"(Is there|Do you hear) a pause", question):
        return "yes" if len(pause(sound)) == 2 else "no"
    if question.startswith("Are there more beats"):
        return "before" if pause(sound)[0] > pause(sound)[1] else "after"
    heights = [LEVELS.index(unit) if unit in LEVELS else 0 for unit in units]
    if re.match(r"Is the last tone higher|Does it end higher", question):
        return "yes" if heights[-1] > heights[0] else "no"
    if re.search(r"rise or fall|ising or falling", question):
        return "rising" if heights == sorted(heights) else "falling" if heights[::-1] == sorted(heights) else "?"
    if match := re.search(r"tones? is the (highest|lowest)|the tones is the (highest|lowest)", question):
        pick = max if "highest" in match[0] else min
        assert heights.count(pick(heights)) == 1
        return ORDINALS[heights.index(pick(heights))]
    if match := re.match(r"Which (?:digit|word) is said (after|before) the (.+)\?", question):
        at = units.index(unit_of(match[2]))
        return " ".join(u for u in (units[at + 1 :] if match[1] == "after" else units[:at]) if u in said)
    if match := re.match(r"(?:Is|Does) the (.+?) (?:come )?before or after the (.+)\?", question):
        return "before" if units.index(unit_of(match[1])) < units.index(unit_of(match[2])) else "after"
    if match := re.match(r"(?:Which|What).* (after|before) (?:the )?(.+)\?", question):
        at = units.index(unit_of(match[2]))
        return units[at + (1 if match[1] == "after" else -1)]
    if match := re.search(r"\b(first|second|third|fourth|fifth|sixth|last)\b", question):
        return units[-1] if match[1] == "last" else units[ORDINALS.index(match[1])]
    if match := re.match(r"(?:Is|Do you hear) (?:the )?(?:digit |word )?(\w+)(?: said| heard)?\?", question):
        return "yes" if match[1] in units else "no"
    raise AssertionError(f"no rule for {question!r}")


def pause(sound):
    """Numbers of beats in the groups that a pause of more than 0.7 s divides."""
    groups = [1]
    for event, after in zip(sound.events, sound.events[1:], strict=False):
        groups = [*groups, 1] if after.start - event.end > 0.7 else [*groups[:-1], groups[-1] + 1]
    return groups


def quick_end(sound):
    return sound.events[-1].start - sound.events[-2].start < 0.3


@every_kind
def test_answers_follow_from_the_events(kind):
    asked = 0
    for sound in (*recordings(kind), *recordings(kind, 0, 20)):
        assert sound.qa[0][1] == sound.text
        assert len(sound.qa) >= 4
        for question, answer in sound.qa:
            assert solve(question, sound) == answer, (question, sound.text)
            assert 0 < len(answer) <= 60
            asked += 1
    assert asked > 4 * CASES


@every_kind
def test_two_way_answers_are_balanced(kind):
    pairs = (("yes", "no"), ("before", "after"), ("rising", "falling"), ("fast", "slow"), ("click", "drum"))
    answers = Counter(
        answer
        for sound in recordings(kind, count=100)
        for question, answer in sound.qa
        if question.startswith(("Is ", "Do ", "Does ", "Are ")) or "fast" in question or "falling" in question
    )
    for one, other in pairs:
        total = answers[one] + answers[other]
        if total:
            assert abs(answers[one] - answers[other]) < 4 * total**0.5, (one, answers)


# -- targets and controls ----------------------------------------------------------------------------------


def hand_made(*events):
    return Sound(np.zeros(16_000, np.float32), tuple(Event(*event) for event in events), "", (), "digits", "")


def test_targets_of_hand_made_recordings():
    three, dog, bell = (1 + UNITS.index(unit) for unit in ("3", "dog", "bell"))
    sound = hand_made(("3", 0.08, 0.25), ("dog", 0.28, 0.40), ("bell", 0.63, 0.67))
    # [0.24, 0.32): "3" covers 0.01, "dog" 0.04; [0.56, 0.64): the bell covers 0.01; [0.64, 0.72): 0.03
    assert sound_targets(sound, 10).tolist() == [0, three, three, dog, dog, 0, 0, 0, 0, 0]
    assert sound_targets(hand_made(("bell", 0.04, 0.12)), 3).tolist() == [bell, bell, 0]  # just half is enough
    assert sound_targets(hand_made(("bell", 0.05, 0.11)), 3).tolist() == [0, 0, 0]
    assert sound_targets(sound, 2, seconds_per_token=0.4).tolist() == [three, 0]
    assert sound_targets(sound, 0).shape == (0,)
    assert sound_targets(sound, 3).dtype == np.int64


def test_targets_refuse_nonsense():
    with pytest.raises(ValueError, match="-1 tokens"):
        sound_targets(hand_made(), -1)
    with pytest.raises(ValueError, match=r"of 0\.0 s"):
        sound_targets(hand_made(), 3, 0.0)


@every_kind
def test_every_unit_shows_in_the_targets(kind):
    for sound in recordings(kind):
        targets = sound_targets(sound, 63)
        assert targets.max() <= len(UNITS)
        assert [UNITS[t - 1] for t in dict.fromkeys(targets[targets > 0])] == list(dict.fromkeys(sound.text.split()))


def test_silence_is_as_long_and_holds_nothing():
    one, two = recordings("noises")[:2]
    quiet = silence(one)
    assert quiet.shape == one.samples.shape
    assert quiet.dtype == np.float32
    assert 0.001 < rms(quiet) < 0.01
    assert np.array_equal(quiet, silence(one))
    assert not np.array_equal(quiet[:8000], silence(two)[:8000])


def test_every_noise_is_heard():
    assert {event.unit for sound in recordings("noises") for event in sound.events} == set(NOISES)
