"""The sound world: spoken digits and words, tones, rhythms and noises, drawn from a seed.

    kind -> parts (a unit of `UNITS` and its samples) -> laid out in time -> room, filter, noise, gain -> `Sound`

One seed and kind is one recording: 1 to 5 seconds, 16 kHz, one channel. It comes with what is heard and when,
its transcription, and questions with short answers. Evaluation seeds speak a share of their recordings
(`HELD_OUT_SHARE`) with voices that no training seed has.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple, Protocol

import numpy as np
from scipy import signal

from omni.data import TRAIN_SEEDS
from omni.data.speech import HELD_OUT_VOICES, SAMPLE_RATE, TRAIN_VOICES, speak

SPOKEN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS = tuple("0123456789")
COLOR_WORDS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white")
ANIMALS = ("dog", "cat", "bird", "horse", "cow", "fish", "sheep", "mouse")
WORDS = (
    *COLOR_WORDS,
    *ANIMALS,
    *("circle", "square", "triangle", "cross", "ring"),
    *("ten", "eleven", "twelve", "left", "right", "up", "down", "big", "small", "yes", "no", "stop", "go"),
    *("page", "table", "date", "name", "price", "total", "house", "tree"),
)
BANDS = {"low": (180, 260), "middle": (440, 600), "high": (1000, 1400)}  # Hz
LEVELS = tuple(BANDS)
BEATS = ("click", "drum")
NOISES = ("bell", "siren", "noise", "chirp", "beep", "buzz", *BEATS)
UNITS = (*DIGITS, *WORDS, *LEVELS, *NOISES)

TRANSCRIBE = ("What is said?", "What do you hear?", "Transcribe the recording.")
NEUTRAL = (*TRANSCRIBE[1:], "Write down what you hear.")  # for recordings that are not all speech
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")

SHORTEST, LONGEST = 1.0, 5.0  # seconds
HELD_OUT_SHARE = 0.5  # of the spoken recordings of evaluation seeds
VOICE_RATES, VOICE_PITCHES = (150, 190), (38, 60)  # few, so that all words fit the cache
SPEED = (0.92, 1.08)  # played slower or faster
BEAT = 0.08  # seconds that a click or a drum takes; one token of sound
NOISE_SNR = (20.0, 40.0)  # dB
REVERB_SHARE, FILTER_SHARE = 0.25, 0.3

Asked = tuple[str, str]  # question, answer


class Event(NamedTuple):
    """A unit of `UNITS` and the seconds where it starts and ends."""

    unit: str
    start: float
    end: float


@dataclass(frozen=True)
class Sound:
    """A recording with everything that is known about it; `voice` is "" where nobody speaks."""

    samples: np.ndarray  # (n,) float32 at 16 kHz, within -1 to 1
    events: tuple[Event, ...]  # in order, none over another
    text: str  # the units in order
    qa: tuple[Asked, ...]
    kind: str  # a key of `KINDS`
    voice: str


class Recording(Protocol):
    @property
    def samples(self) -> np.ndarray: ...


@dataclass
class Take:
    """What a kind draws: units with their samples, the gap before each but the first, and questions."""

    parts: list[tuple[str, np.ndarray]]
    gaps: list[float]  # seconds
    qa: list[Asked]
    voice: str = ""

    @property
    def units(self) -> list[str]:
        return [unit for unit, _ in self.parts]


def sample_sound(seed: int, kind: str | None = None) -> Sound:
    """Draw the recording of a seed; its first question asks for the transcription.

    Raises:
        SpeechUnavailable: a spoken kind without the synthesiser.
        ValueError: a negative seed or an unknown kind.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}, must not be negative")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, must be one of {', '.join(KINDS)}")
    kind = kind or Random(f"sound {seed}").choices(tuple(KINDS), [weight for weight, _ in KINDS.values()])[0]
    rng = Random(f"sound {seed} {kind}")  # the kinds of one seed share nothing
    take = KINDS[kind][1](rng, seed in TRAIN_SEEDS)
    samples, events = _lay(rng, take)
    text = " ".join(take.units)
    said = kind in ("digits", "words")
    qa = (ask(rng, TRANSCRIBE if said else NEUTRAL, text), *take.qa)
    return Sound(augment(samples, rng), tuple(events), text, qa, kind, take.voice)


def sound_targets(sound: Sound, tokens: int, seconds_per_token: float = 0.08) -> np.ndarray:
    """The class of every token (tokens,) int64: 1 + index in `UNITS` of the event that covers most of it.

    The class is 0 where silence covers more than half of the token, and after the end of the recording.
    """
    if tokens < 0 or not seconds_per_token > 0:
        raise ValueError(f"{tokens} tokens of {seconds_per_token} s, must not be negative")
    starts = np.arange(tokens) * seconds_per_token
    best, total, targets = np.zeros(tokens), np.zeros(tokens), np.zeros(tokens, np.int64)
    for unit, start, end in sound.events:
        covered = np.clip(np.minimum(end, starts + seconds_per_token) - np.maximum(start, starts), 0, None)
        targets[covered > best] = 1 + UNITS.index(unit)
        best, total = np.maximum(best, covered), total + covered
    targets[total < 0.5 * seconds_per_token - 1e-9] = 0
    return targets


def silence(recording: Recording) -> np.ndarray:
    """Faint noise (n,) float32 as long as a recording: whoever answers from it has not listened."""
    rng = np.random.default_rng(zlib.crc32(recording.samples.tobytes()))
    return 0.003 * rng.standard_normal(len(recording.samples), dtype=np.float32)


def augment(samples: np.ndarray, rng: Random) -> np.ndarray:
    """A room and a filter on some, background noise 20 to 40 dB below, and another gain: (n,) float32."""
    noise = np.random.default_rng(rng.getrandbits(64))
    power = float(np.mean(samples[samples != 0] ** 2))
    if rng.random() < REVERB_SHARE:
        tail = int(rng.uniform(0.05, 0.15) * SAMPLE_RATE)
        echo = noise.standard_normal(tail, dtype=np.float32) * np.exp(-5 * np.arange(tail, dtype=np.float32) / tail)
        echo *= rng.uniform(0.15, 0.4) / np.linalg.norm(echo)
        samples = samples + signal.oaconvolve(samples, echo.astype(np.float32))[: len(samples)]
    if rng.random() < FILTER_SHARE:
        kind, edge = rng.choice((("low", rng.uniform(3000, 6000)), ("high", rng.uniform(60, 180))))
        samples = signal.lfilter(*signal.butter(1, edge, kind, fs=SAMPLE_RATE), samples)
    level = (power * 10 ** (-rng.uniform(*NOISE_SNR) / 10)) ** 0.5
    hiss = noise.standard_normal(len(samples), dtype=np.float32)
    samples = samples + level * (hiss if rng.random() < 0.5 else signal.lfilter([0.6], [1, -0.8], hiss))
    return (samples * (rng.uniform(0.2, 0.95) / np.abs(samples).max())).astype(np.float32)


def _lay(rng: Random, take: Take) -> tuple[np.ndarray, list[Event]]:
    """Put the parts one after another, silence around and between them: samples (n,) and events."""
    lead, tail = rng.uniform(0.05, 0.4), rng.uniform(0.1, 0.4)
    gaps = [lead, *take.gaps]
    length = sum(gaps) + tail + sum(len(part) for _, part in take.parts) / SAMPLE_RATE
    # Long recordings lose silence at the ends; short ones get more.
    gaps[0], tail = (0.03, 0.05) if length > LONGEST - 0.01 else (lead, tail + max(0.0, SHORTEST - length) + 0.001)
    pieces, events, at = [], [], 0
    for gap, (unit, part) in zip(gaps, take.parts, strict=True):
        pieces += [np.zeros(round(gap * SAMPLE_RATE), np.float32), part * rng.uniform(0.8, 1.2)]
        at += len(pieces[-2])
        events.append(Event(unit, at / SAMPLE_RATE, (at + len(part)) / SAMPLE_RATE))
        at += len(part)
    pieces.append(np.zeros(round(tail * SAMPLE_RATE), np.float32))
    return np.concatenate(pieces), events


# ----------------------------------------------------------------------------------------------------
# voices and noises


@dataclass
class Speaker:
    """One voice for one recording."""

    rng: Random
    training: bool
    voice: str = field(init=False)

    def __post_init__(self):
        held_out = not self.training and self.rng.random() < HELD_OUT_SHARE
        self.voice = self.rng.choice(HELD_OUT_VOICES if held_out else TRAIN_VOICES)
        self.rate, self.pitch = self.rng.choice(VOICE_RATES), self.rng.choice(VOICE_PITCHES)
        self.speed = self.rng.uniform(*SPEED)

    def say(self, unit: str) -> tuple[str, np.ndarray]:
        word = SPOKEN[int(unit)] if unit in DIGITS else unit
        samples = speak(word, self.voice, self.rate, self.pitch)
        at = np.arange(0, len(samples) - 1, self.speed)
        return unit, _level(np.interp(at, np.arange(len(samples)), samples))


def make(unit: str, rng: Random) -> tuple[str, np.ndarray]:
    """One of `NOISES` or `LEVELS`, at most 0.7 s: (unit, samples (n,) float32)."""
    if unit in LEVELS:
        return unit, tone(rng.uniform(*BANDS[unit]), rng.uniform(0.25, 0.45))
    return unit, _level(MAKERS[unit](rng, np.random.default_rng(rng.getrandbits(64))))


def tone(frequency: float, seconds: float) -> np.ndarray:
    """A soft tone with a faint octave: (n,) float32."""
    phase = 2 * np.pi * frequency * _clock(seconds)
    return _level(_faded(np.sin(phase) + 0.15 * np.sin(2 * phase)))


def _clock(seconds: float) -> np.ndarray:
    return np.arange(round(seconds * SAMPLE_RATE), dtype=np.float32) / SAMPLE_RATE


def _level(samples: np.ndarray) -> np.ndarray:
    """All units are about equally loud, and none has a peak above 1."""
    samples = samples.astype(np.float32)
    return samples * min(0.12 / float(np.mean(samples**2)) ** 0.5, 1 / float(np.abs(samples).max()))


def _faded(samples: np.ndarray, seconds: float = 0.01) -> np.ndarray:
    ramp = np.minimum(_clock(len(samples) / SAMPLE_RATE) / seconds, 1)
    return samples * ramp * ramp[::-1]


def _swept(frequencies: np.ndarray) -> np.ndarray:
    """A sine whose frequency (n,) Hz changes."""
    return np.sin(2 * np.pi * np.cumsum(frequencies) / SAMPLE_RATE)


def _bell(rng: Random, _) -> np.ndarray:
    clock, base = _clock(rng.uniform(0.5, 0.7)), rng.uniform(600, 900)
    partials = ((1, 1, 5), (2.76, 0.7, 7), (5.4, 0.5, 9), (8.9, 0.25, 14))  # of a struck bar: ratio, size, decay
    return _faded(
        sum(
            size * np.exp(-decay * clock) * np.sin(2 * np.pi * base * ratio * clock) for ratio, size, decay in partials
        ),
        0.003,
    )


def _siren(rng: Random, _) -> np.ndarray:
    clock, cycles = _clock(rng.uniform(0.5, 0.7)), rng.choice((2, 3))
    wave = 0.5 - 0.5 * np.cos(2 * np.pi * cycles * clock / clock[-1])
    return _faded(_swept(rng.uniform(450, 550) + rng.uniform(500, 700) * wave))


def _noise(rng: Random, noise: np.random.Generator) -> np.ndarray:
    return _faded(noise.standard_normal(round(rng.uniform(0.25, 0.5) * SAMPLE_RATE)))


def _chirp(rng: Random, _) -> np.ndarray:
    """Two or three quick rising sweeps, as of a bird."""
    low, high = rng.uniform(2000, 2600), rng.uniform(4200, 5200)
    one = _faded(_swept(np.linspace(low, high, int(0.09 * SAMPLE_RATE))))
    return np.concatenate([one, np.zeros(int(0.03 * SAMPLE_RATE))] * rng.choice((2, 3)))[: -int(0.03 * SAMPLE_RATE)]


def _beep(rng: Random, _) -> np.ndarray:
    """The square wave of a cheap loudspeaker, above every tone."""
    phase = 2 * np.pi * rng.uniform(1900, 2400) * _clock(rng.uniform(0.2, 0.35))
    return _faded(np.sin(phase) + np.sin(3 * phase) / 3, 0.005)


def _buzz(rng: Random, _) -> np.ndarray:
    phase = (rng.uniform(85, 125) * _clock(rng.uniform(0.3, 0.5))) % 1
    return _faded(2 * phase - 1)


def _click(rng: Random, noise: np.random.Generator) -> np.ndarray:
    """A wooden click: a short resonance."""
    clock = _clock(BEAT)
    ring = np.sin(2 * np.pi * rng.uniform(1800, 2600) * clock) + 0.5 * noise.standard_normal(len(clock))
    return ring * np.exp(-clock / 0.02)


def _drum(rng: Random, noise: np.random.Generator) -> np.ndarray:
    clock = _clock(BEAT)
    skin = _swept(rng.uniform(80, 110) * (1 + 1.5 * np.exp(-clock / 0.015)))
    return (skin + 0.2 * noise.standard_normal(len(clock)) * np.exp(-clock / 0.004)) * np.exp(-clock / 0.03)


MAKERS: dict[str, Callable[[Random, np.random.Generator], np.ndarray]] = {
    "bell": _bell,
    "siren": _siren,
    "noise": _noise,
    "chirp": _chirp,
    "beep": _beep,
    "buzz": _buzz,
    "click": _click,
    "drum": _drum,
}


# ----------------------------------------------------------------------------------------------------
# questions


def ask(rng: Random, questions: Sequence[str], answer: str | int) -> Asked:
    return rng.choice(questions), str(answer)


def ask_heard(rng: Random, units: Sequence[str], known: Sequence[str], forms: Sequence[str]) -> Asked:
    """Whether one of `known` is among the units: yes and no are equally likely. Forms hold "{}"."""
    if rng.random() < 0.5:
        return ask(rng, [form.format(rng.choice(units)) for form in forms], "yes")
    return ask(rng, [form.format(rng.choice([u for u in known if u not in units])) for form in forms], "no")


def _ask_places(rng: Random, units: list[str], what: str, verb: str) -> list[Asked]:
    """The first, the last and, where there is one, a place between; then how many."""
    qa = [
        ask(rng, (f"What is the first {what}?", f"Which {what} is {verb} first?"), units[0]),
        ask(rng, (f"What is the last {what}?", f"Which {what} is {verb} last?"), units[-1]),
        ask(rng, (f"How many {what}s are {verb}?", f"Count the {what}s."), len(units)),
    ]
    if len(units) > 1:
        at = rng.randrange(1, len(units))
        qa.append(ask(rng, (f"What is the {ORDINALS[at]} {what}?", f"Name the {ORDINALS[at]} {what}."), units[at]))
    return qa


def _ask_neighbour(rng: Random, units: list[str], forms: Sequence[str], side: str | None = None) -> list[Asked]:
    """What comes right after or before a unit heard once; forms hold "{side}" and "{unit}"."""
    side = side or rng.choice(("after", "before"))
    step = 1 if side == "after" else -1
    places = [i for i, unit in enumerate(units) if units.count(unit) == 1 and 0 <= i + step < len(units)]
    if not places:
        return []
    at = rng.choice(places)
    return [ask(rng, [form.format(side=side, unit=units[at]) for form in forms], units[at + step])]


def ask_order(rng: Random, units: list[str], forms: Sequence[str]) -> list[Asked]:
    """Whether one unit comes before or after another, equally likely; forms hold two "{}"."""
    at, other = sorted(rng.sample(range(len(units)), 2))
    answer = rng.choice(("before", "after"))
    pair = (units[at], units[other]) if answer == "before" else (units[other], units[at])
    return [ask(rng, [form.format(*pair) for form in forms], answer)]


# ----------------------------------------------------------------------------------------------------
# kinds: each takes the random source and whether the seed trains


def _digits(rng: Random, training: bool) -> Take:
    speaker, count = Speaker(rng, training), rng.randint(1, 6)
    digits = rng.choices(DIGITS, k=count)
    gaps = [rng.uniform(0.03, 0.25 if count < 6 else 0.12) for _ in digits[1:]]
    qa = [
        ask(rng, ("What digits are said?", "Which digits do you hear?"), " ".join(digits)),
        *_ask_places(rng, digits, "digit", "said"),
        ask_heard(rng, digits, DIGITS, ("Is the digit {} said?", "Do you hear {}?")),
        *_ask_neighbour(rng, digits, ("Which digit comes {side} {unit}?", "What is said {side} {unit}?")),
    ]
    return Take([speaker.say(digit) for digit in digits], gaps, qa, speaker.voice)


def _words(rng: Random, training: bool) -> Take:
    speaker, words = Speaker(rng, training), rng.sample(WORDS, rng.randint(1, 4))
    qa = [
        *_ask_places(rng, words, "word", "said"),
        ask_heard(rng, words, WORDS, ("Is the word {} said?", "Do you hear the word {}?")),
        *_ask_neighbour(rng, words, ("Which word comes {side} {unit}?", "What is said {side} {unit}?")),
    ]
    for name, group in (("color", COLOR_WORDS), ("animal", ANIMALS)):
        if len(named := [word for word in words if word in group]) == 1:
            qa.append(ask(rng, (f"Which {name} is said?", f"Which {name} do you hear?"), named[0]))
    gaps = [rng.uniform(0.05, 0.25) for _ in words[1:]]
    return Take([speaker.say(word) for word in words], gaps, qa, speaker.voice)


def _tones(rng: Random, _training: bool) -> Take:
    levels, mode = _draw_levels(rng)
    heights = [LEVELS.index(level) for level in levels]
    higher = heights[-1] > heights[0]
    qa = [
        *_ask_places(rng, levels, "tone", "heard"),
        ask(
            rng,
            ("Is the last tone higher than the first?", "Does it end higher than it begins?"),
            "yes" if higher else "no",
        ),
        ask(rng, [f"How many {(named := rng.choice(LEVELS))} tones are heard?"], levels.count(named)),
    ]
    if mode != "free":
        forms = ("Do the tones rise or fall?", "Are the tones rising or falling?", "Rising or falling?")
        qa.append(ask(rng, forms, mode))
    for name, extreme in (("highest", max(heights)), ("lowest", min(heights))):
        if heights.count(extreme) == 1:
            forms = (f"Which tone is the {name}?", f"Which of the tones is the {name}?")
            qa.append(ask(rng, forms, ORDINALS[heights.index(extreme)]))
    pitches = {level: rng.uniform(*band) for level, band in BANDS.items()}
    seconds = rng.uniform(0.22, 0.45)
    parts = [(level, tone(pitches[level], seconds * rng.uniform(0.9, 1.1))) for level in levels]
    return Take(parts, [rng.uniform(0.08, 0.25) for _ in levels[1:]], qa)


def _draw_levels(rng: Random) -> tuple[list[str], str]:
    """Levels of 2 to 5 tones, and "rising", "falling" or "free"; half of all end higher than they begin."""
    mode = rng.choice(("rising", "falling", "free", "free"))
    if mode != "free":
        levels = sorted(rng.sample(LEVELS, rng.choice((2, 3))), key=LEVELS.index)
        return (levels if mode == "rising" else levels[::-1]), mode
    count, higher = rng.choice((2, 3, 4, 4, 4, 5, 5, 5)), rng.random() < 0.5
    while True:
        levels = rng.choices(LEVELS, k=count)
        if (LEVELS.index(levels[-1]) > LEVELS.index(levels[0])) == higher:
            return levels, mode


def _rhythm(rng: Random, _training: bool) -> Take:
    beat, fast = rng.choice(BEATS), rng.random() < 0.5
    groups = [rng.randint(1, 4) for _ in range(rng.choice((1, 2)))]
    if len(groups) == 1:
        groups = [rng.randint(2, 8)]
    period = rng.uniform(0.16, 0.2) if fast else rng.uniform(0.36, 0.44)
    gaps = [(period - BEAT) * rng.uniform(0.97, 1.03) for _ in range(sum(groups) - 1)]
    qa = [
        ask(rng, ("How many beats are heard?", "How many beats do you hear?", "Count the beats."), sum(groups)),
        ask(rng, ("Is it a click or a drum?", "What beats?", "Which sound is repeated?"), beat),
    ]
    if max(groups) > 1:
        qa.append(ask(rng, ("Are the beats fast or slow?", "Is it fast or slow?"), "fast" if fast else "slow"))
    qa.append(ask(rng, ("Is there a pause?", "Do you hear a pause?"), "yes" if len(groups) == 2 else "no"))
    if len(groups) == 2:
        before, after = groups
        gaps[before - 1] = rng.uniform(0.9, 1.1)
        qa.append(ask(rng, ("How many beats come before the pause?", "How many before the pause?"), before))
        qa.append(ask(rng, ("How many beats come after the pause?", "How many after the pause?"), after))
        if before != after:
            form = "Are there more beats before or after the pause?"
            qa.append((form, "before" if before > after else "after"))
    part = make(beat, rng)
    return Take([part] * sum(groups), gaps, qa)


def _noises(rng: Random, _training: bool) -> Take:
    noises = rng.sample(NOISES, rng.randint(2, 4))
    qa = [
        *_ask_places(rng, noises, "sound", "heard"),
        ask_heard(rng, noises, NOISES, ("Is the {} heard?", "Do you hear the {}?")),
        *_ask_neighbour(rng, noises, ("What comes {side} the {unit}?", "What is heard {side} the {unit}?")),
        *ask_order(rng, noises, ("Is the {} before or after the {}?", "Does the {} come before or after the {}?")),
    ]
    return Take([make(unit, rng) for unit in noises], [rng.uniform(0.06, 0.3) for _ in noises[1:]], qa)


def _mixed(rng: Random, training: bool) -> Take:
    """A digit or a word, or two, among noises and tones."""
    speaker = Speaker(rng, training)
    said = rng.sample(DIGITS if rng.random() < 0.6 else WORDS, rng.choice((1, 2)))
    noises = rng.sample((*NOISES, *LEVELS), rng.randint(1, 4 - len(said)))
    units = rng.sample(said + noises, len(said) + len(noises))
    what = "digit" if said[0] in DIGITS else "word"
    names = {unit: called(unit) for unit in units}
    in_order = [unit for unit in units if unit in said]
    which = f"Which {what}s are said?" if len(said) > 1 else f"Which {what} is said?"
    beside = _ask_neighbour(rng, [names[u] for u in units], ("What is heard right {side} the {unit}?",))
    qa = [
        ask(rng, ("What is said?", which), " ".join(in_order)),
        ask(rng, (f"How many {what}s are said?", f"Count the {what}s."), len(said)),
        ask(rng, ("What is heard first?", "What comes first?"), units[0]),
        ask(rng, ("What is heard last?", "What comes last?"), units[-1]),
        *ask_order(rng, [names[unit] for unit in units], ("Is the {} before or after the {}?",)),
        ask_heard(rng, in_order, DIGITS if what == "digit" else WORDS, (f"Is the {what} {{}} said?",)),
        *((question, next(unit for unit in units if names[unit] == answer)) for question, answer in beside),
        *_ask_said_beside(rng, units, said, what),
    ]
    parts = [speaker.say(unit) if unit in said else make(unit, rng) for unit in units]
    return Take(parts, [rng.uniform(0.06, 0.3) for _ in units[1:]], qa, speaker.voice)


def called(unit: str) -> str:
    """A unit as questions name it, behind "the"."""
    if unit in DIGITS:
        return f"digit {unit}"
    return f"word {unit}" if unit in WORDS else f"{unit} tone" if unit in LEVELS else unit


def _ask_said_beside(rng: Random, units: list[str], said: list[str], what: str) -> list[Asked]:
    """Which digit or word is said after or before a noise, where only one is."""
    found = []
    for at, unit in enumerate(units):
        for side, part in (("after", units[at + 1 :]), ("before", units[:at])):
            spoken = [other for other in part if other in said]
            if unit not in said and len(spoken) == 1:
                found.append((f"Which {what} is said {side} the {called(unit)}?", spoken[0]))
    return [rng.choice(found)] if found else []


KINDS: dict[str, tuple[float, Callable[[Random, bool], Take]]] = {  # name -> (weight, parts and questions)
    "digits": (4, _digits),
    "words": (4, _words),
    "tones": (2, _tones),
    "rhythm": (2, _rhythm),
    "noises": (2, _noises),
    "mixed": (3, _mixed),
}
