"""Spoken words: the eSpeak NG synthesiser behind one pure function.

    word -> libespeak-ng (22 050 Hz, int16) -> resampled to 16 kHz -> silence trimmed -> (n,) float32

The library and its voices come with the wheel `espeakng-loader`. The same arguments always give the same
samples: the synthesiser keeps oscillators and noise between words, so it is loaded anew for each word. That
takes about 2 ms and leaves 2 kB behind, so the last `CACHE` words are kept, more than the sound world ever asks for.
"""

import _ctypes
import ctypes
from functools import lru_cache
from pathlib import Path
from threading import Lock

import numpy as np
from scipy import signal

SAMPLE_RATE = 16_000
UP, DOWN = 320, 441  # 22 050 Hz -> 16 000 Hz
TAPS = signal.firwin(2 * 10 * DOWN + 1, 1 / DOWN, window=("kaiser", 5.0))

ACCENTS = {"en-us": "en-us", "en-gb": "en", "en-gb-scotland": "en-gb-scotland"}  # our name -> the library's
VARIANTS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5")  # men and women
HELD_OUT_VARIANTS = ("m6", "f5")  # in no accent heard in training

RATES = (80, 450)  # words a minute
PITCHES = (0, 99)
PEAK = 0.9
QUIET = 0.02  # of the peak: below it the edges of a word are silence
MARGIN = 80  # samples kept around the word, 5 ms
MAX_TEXT = 60  # characters
CACHE = 8192  # words, at most about 110 MB

# Of speak_lib.h and espeak_ng.h
OUTPUT_SYNCHRONOUS = 1
PARAMETER_RATE, PARAMETER_PITCH = 1, 3
POSITION_CHARACTER, CHARACTERS_UTF8 = 1, 1
NOISE_SEED = 7
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

_lock = Lock()  # the library is one for the whole process


class SpeechUnavailable(ValueError):
    """The synthesiser is not installed, or cannot be loaded."""


def voices() -> tuple[str, ...]:
    """Every English voice, "accent+variant"."""
    return tuple(f"{accent}+{variant}" for accent in ACCENTS for variant in VARIANTS)


def is_held_out(voice: str) -> bool:
    """Whether the voice is kept for evaluation."""
    return voice.rpartition("+")[2] in HELD_OUT_VARIANTS


TRAIN_VOICES = tuple(voice for voice in voices() if not is_held_out(voice))
HELD_OUT_VOICES = tuple(voice for voice in voices() if is_held_out(voice))


def speak(word: str, voice: str = "en-us+m1", rate: int = 175, pitch: int = 50) -> np.ndarray:
    """Say a word or a short phrase: (n,) float32 at 16 kHz, without silence around it, its peak at 0.9.

    Args:
        word: 1 to 60 printable ASCII characters.
        voice: one of `voices()`.
        rate: words a minute, 80 to 450.
        pitch: 0 to 99; 50 is the voice's own.

    Raises:
        SpeechUnavailable: the wheel `espeakng-loader` is missing or does not load.
        ValueError: an argument out of its bounds.
    """
    if not 0 < len(word) <= MAX_TEXT or not (word.isascii() and word.isprintable()):
        raise ValueError(f"word is {word!r}, must be 1 to {MAX_TEXT} printable ASCII characters")
    if voice not in voices():
        raise ValueError(f"voice is {voice!r}, must be one of {', '.join(voices())}")
    for name, value, (low, high) in (("rate", rate, RATES), ("pitch", pitch, PITCHES)):
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}, must be {low} to {high}")
    return _spoken(word, voice, int(rate), int(pitch)).astype(np.float32) / 32767


@lru_cache(maxsize=CACHE)
def _spoken(word: str, voice: str, rate: int, pitch: int) -> np.ndarray:
    """(n,) int16 at 16 kHz: half the memory of float32."""
    with _lock:
        native = _synthesise(word, voice, rate, pitch)
    samples = signal.resample_poly(native.astype(np.float32), UP, DOWN, window=TAPS.astype(np.float32))
    peak = np.abs(samples).max(initial=0)
    if peak == 0:
        raise ValueError(f"word is {word!r}: nothing of it can be spoken")
    loud = np.flatnonzero(np.abs(samples) > QUIET * peak)
    samples = samples[max(0, loud[0] - MARGIN) : loud[-1] + MARGIN]
    return np.round(samples * (PEAK * 32767 / peak)).astype(np.int16)


def _synthesise(word: str, voice: str, rate: int, pitch: int) -> np.ndarray:
    """(n,) int16 at 22 050 Hz, by a library loaded for this word and unloaded after it."""
    chunks: list[np.ndarray] = []

    @CALLBACK
    def receive(samples, count, _events):
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library = _load()
    try:
        library.espeak_SetSynthCallback(receive)
        accent, _, variant = voice.partition("+")
        _check(library.espeak_SetVoiceByName(f"{ACCENTS[accent]}+{variant}".encode()), f"voice {voice!r}")
        library.espeak_SetParameter(PARAMETER_RATE, rate, 0)
        library.espeak_SetParameter(PARAMETER_PITCH, pitch, 0)
        text = word.encode() + b"\0"
        size = ctypes.c_size_t(len(text))
        status = library.espeak_Synth(text, size, 0, POSITION_CHARACTER, 0, CHARACTERS_UTF8, None, None)
        _check(status, f"word {word!r}")
    finally:
        library.espeak_ng_Terminate()
        getattr(_ctypes, "dlclose", getattr(_ctypes, "FreeLibrary", None))(library._handle)
    return np.concatenate(chunks) if chunks else np.zeros(1, np.int16)


def _load() -> ctypes.CDLL:
    try:
        import espeakng_loader

        library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path()
    except (ImportError, OSError, RuntimeError) as error:
        raise SpeechUnavailable("spoken words need the wheel espeakng-loader: pip install omni[train]") from error
    library.espeak_ng_InitializePath(str(Path(data).parent).encode())
    _check(library.espeak_ng_Initialize(None), f"data at {data}")
    _check(library.espeak_ng_InitializeOutput(OUTPUT_SYNCHRONOUS, 0, None), "output")
    library.espeak_ng_SetRandSeed(ctypes.c_long(NOISE_SEED))
    return library


def _check(status: int, what: str) -> None:
    if status:
        raise SpeechUnavailable(f"the speech synthesiser refuses its {what} (status {status & 0xFFFFFFFF:#x})")
