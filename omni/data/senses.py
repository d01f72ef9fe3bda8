"""Batches of what is watched, heard and looked at, for the shipped model's training: pure functions of a seed.

watch    clips of moving shapes     questions, their description, and what each token shows and how it moves
listen   recordings                 questions, their transcription, and what is heard at each token
film     clips with sound           both
look     still pictures of shapes   questions, with boxes, and what each token shows
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import torch
from torch import Tensor

from omni.data.batches import (
    IGNORED,
    TRANSCRIBE,
    Batch,
    Encoding,
    Row,
    answer_labels,
    pad_rows,
    row_untold,
    to_pixels,
)
from omni.data.clip_log import Place, event_targets, placed_log, still_targets
from omni.data.clips import Clip, clip_targets, sample_clip
from omni.data.films import Film, sample_film, screen_targets
from omni.data.pointers import asks, pointers, telling
from omni.data.scenes import Thing
from omni.data.sights import box, box_targets, box_text, cell_of, full_name, sample_sight, sight_targets, square_of
from omni.data.sounds import Sound, sample_sound, sound_targets
from omni.tokenizers.prompts import time_label
from omni.tokenizers.sound import log_mel

DESCRIBE = ("What happens?", "Describe the video.", "Tell what you see.")
CLIP_LENGTHS = (6, 6, 8, 8, 8, 10, 12, 12, 14, 16, 16, 32)  # frames: one length a batch
USUAL_LENGTH = 10  # frames of the clips that ``size`` counts; batches of longer ones are smaller


@dataclass(frozen=True)
class SenseBatch(Batch):
    """Rows with their media; ``frames`` of one size and number a batch, sounds padded to the longest."""

    input_ids: Tensor  # (b, n) right-padded
    labels: Tensor  # (b, n) next tokens; IGNORED outside the answers
    points: Tensor  # (b, n) where each token that is said stands before; IGNORED if nowhere
    asks: Tensor  # (b, n) where the word of a question that ends before each token was told; IGNORED if nowhere
    told: Tensor  # (b, n) whether a token belongs to what is told aloud before the questions
    frames: Tensor | None = None  # (b, T, 3, H, W) in [0, 1]; still pictures (b, 1, 3, H, W)
    shown: Tensor | None = None  # (b, units, tokens, 3) classes of shape, colour and motion
    events: Tensor | None = None  # (b, units, tokens, 4) classes of what happens at each token, once it is read
    boxes: Tensor | None = None  # (b, units, tokens, 4) of the thing centred in each token, in steps; IGNORED elsewhere
    sounds: Tensor | None = None  # (b, frames, n_mels)
    lengths: Tensor | None = None  # (b,) frames of each sound
    heard: Tensor | None = None  # (b, tokens) classes of what sounds; IGNORED behind the end
    screen: Tensor | None = None  # (b, tokens, 2) classes, shape and colour, of what is shown while it sounds


@dataclass(frozen=True)
class Told:
    """A medium as it stands in the text, with the answers to learn."""

    kind: str  # of its message part
    text: str  # around one placeholder a run
    counts: Sequence[int]  # tokens of each run
    aloud: tuple[str, str] | None  # the question that asks for all of it, and the answer
    qa: Sequence[tuple[str, str]]
    seen: Sequence[Place | None] = ()  # in which run, and where in it, each character of what is told aloud is seen


def watch_batch(
    seed: int, size: int, encoding: Encoding, questions: int, read_first: float, kinds: dict[str, float] | None = None
) -> SenseBatch:
    """Clips of one length; in a share ``read_first`` the questions come after the description."""
    rng, base = Random(f"watch {seed}"), 1_000_000 + seed * 4096
    count = Random(f"clip length {seed // encoding.parts}").choice(CLIP_LENGTHS)
    rows = max(1, round(size * USUAL_LENGTH / count))
    clips = [sample_clip(base + i, _kind(rng, kinds), count) for i in range(rows)]
    tokens = _tokens(clips[0].frames, encoding)
    told = []
    for c in clips:
        log, places = placed_log(c, encoding.token_pixels)
        runs = [tokens] * (count // encoding.tubelet)
        told.append(Told("video", _video_text(c, encoding), runs, (rng.choice(DESCRIBE), log), c.qa, places))
    rows = _rows(told, rng, encoding, questions, read_first)
    return SenseBatch(*rows, _frames([c.frames for c in clips]), **_moving(clips, encoding))


def listing(things: Sequence[Thing]) -> str:
    """What a still picture shows, one thing a line with its box, in the order of reading."""
    ordered = sorted(things, key=cell_of)
    return "\n".join(f"{full_name(thing)} {box_text(box(thing))}" for thing in ordered)


def listing_places(things: Sequence[Thing], side: int, size: int) -> list[Place | None]:
    """Where each character of the listing is seen, in squares of ``side`` pixels."""
    found: list[Place | None] = []
    for thing in sorted(things, key=cell_of):
        found += [None] * bool(found) + [(0, square_of(thing, side, size))] * len(listing([thing]))
    return found


def look_batch(seed: int, size: int, encoding: Encoding, questions: int, read_first: float) -> SenseBatch:
    """``size`` still pictures."""
    rng, base = Random(f"look {seed}"), 1_000_000 + seed * 4096
    sights = [sample_sight(base + i) for i in range(size)]
    images = [s.image[None] for s in sights]
    tokens = _tokens(images[0], encoding)
    told = [
        Told(
            "image",
            encoding.names["image"],
            [tokens],
            (rng.choice(TRANSCRIBE), listing(s.things)),
            s.qa,
            listing_places(s.things, encoding.token_pixels, s.image.shape[0]),
        )
        for s in sights
    ]
    shown = np.stack([sight_targets(s, encoding.token_pixels) for s in sights])[:, None]
    shown = np.concatenate([shown, np.full((*shown.shape[:-1], 1), IGNORED)], axis=-1)
    boxes = torch.from_numpy(np.stack([box_targets(s, encoding.token_pixels) for s in sights])[:, None])
    rows = _rows(told, rng, encoding, questions, read_first)
    events = torch.from_numpy(np.stack([still_targets(s, encoding.token_pixels) for s in sights])[:, None])
    return SenseBatch(*rows, _frames(images), torch.from_numpy(shown), events, boxes)


def listen_batch(
    seed: int, size: int, encoding: Encoding, questions: int, read_first: float, kinds: dict[str, float] | None = None
) -> SenseBatch:
    """``size`` recordings."""
    rng, base = Random(f"listen {seed}"), 1_000_000 + seed * 4096
    recordings = [sample_sound(base + i, _kind(rng, kinds)) for i in range(size)]
    features = [_features(r.samples, encoding) for r in recordings]
    told = [
        Told("audio", encoding.names["sound"], [encoding.sound_tokens(len(f))], r.qa[0], r.qa[1:])
        for r, f in zip(recordings, features, strict=True)
    ]
    rows = _rows(told, rng, encoding, questions, read_first)
    return SenseBatch(*rows, **_sounds(recordings, features, encoding))


def film_batch(seed: int, size: int, encoding: Encoding, questions: int, read_first: float) -> SenseBatch:
    """``size`` clips with sound. Their lengths differ, so each is cut or held to the batch's shortest common shape."""
    rng, base = Random(f"film {seed}"), 1_000_000 + seed * 4096
    films = [sample_film(base + i) for i in range(size)]
    most = max(len(f.frames) for f in films)
    films = [_held(f, most) for f in films]
    features = [_features(f.samples, encoding) for f in films]
    tokens = _tokens(films[0].frames, encoding)
    told = []
    for film, heard in zip(films, features, strict=True):
        text = _video_text(film, encoding) + encoding.names["sound"]
        counts = [*[tokens] * (most // encoding.tubelet), encoding.sound_tokens(len(heard))]
        told.append(Told("video", text, counts, film.qa[0], film.qa[1:]))
    rows = _rows(told, rng, encoding, questions, read_first)
    sounds = _sounds(films, features, encoding)
    screen = torch.full((*sounds["heard"].shape, 2), IGNORED)
    for row, film, heard in zip(screen, films, features, strict=True):
        own = encoding.sound_tokens(len(heard))
        row[:own] = torch.from_numpy(screen_targets(film, own))
    return SenseBatch(*rows, _frames([f.frames for f in films]), **_moving(films, encoding), **sounds, screen=screen)


def _held(film: Film, most: int) -> Film:
    """The film with its last frame held until there are `most`."""
    more, step = most - len(film.frames), film.times[1] - film.times[0]
    frames = np.concatenate([film.frames, np.repeat(film.frames[-1:], more, axis=0)])
    return replace(film, frames=frames, times=np.arange(most) * step, things=film.things + film.things[-1:] * more)


# -- rows --------------------------------------------------------------------------------------------------------------


def _rows(
    told: Sequence[Told], rng: Random, encoding: Encoding, questions: int, read_first: float
) -> tuple[Tensor, ...]:
    rows = [_row(one, rng, encoding, questions, rng.random() < read_first) for one in told]
    return pad_rows(rows, encoding.special["pad"])[:5]


def _row(told: Told, rng: Random, encoding: Encoding, questions: int, read_first: bool) -> Row:
    """Some questions in random order, or all of it told before them."""
    turns = rng.sample(list(told.qa), min(questions, len(told.qa)))
    if told.aloud and (read_first or not turns or rng.random() < 0.25):
        turns = [told.aloud, *turns] if read_first else [told.aloud]
    messages = []
    for question, answer in turns:
        content = question if messages else [{"type": told.kind, told.kind: ""}, {"type": "text", "text": question}]
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    ids = encoding.encode_chat(messages, add_generation_prompt=False, media=[told.text])
    ids, labels = expanded(*answer_labels(ids, encoding.special), encoding.placeholders, told.counts)
    if not turns or turns[0] != told.aloud:
        return row_untold(ids, labels)
    points = pointers(labels, turns, _shown_at(told, ids, encoding))
    asked = asks(ids, labels, turns, encoding.encode)
    return row_untold(ids, labels)._replace(points=points, asks=asked, told=telling(labels))


def _shown_at(told: Told, ids: Sequence[int], encoding: Encoding) -> list[int]:
    """For each character of what is told aloud the token of the row that shows it."""
    tokens = [i for i, token in enumerate(ids) if token in encoding.placeholders]
    starts = [tokens[sum(told.counts[:run])] for run in range(len(told.counts))]
    return [IGNORED if place is None else starts[place[0]] + place[1] for place in told.seen]


def expanded(
    ids: list[int], labels: list[int], placeholders: Sequence[int], counts: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Every placeholder repeated as often as its run has tokens."""
    left, more, said = iter(counts), [], []
    for token, label in zip(ids, labels, strict=True):
        n = next(left) if token in placeholders else 1
        more += [token] * n
        said += [label] * n
    return more, said


# -- media -------------------------------------------------------------------------------------------------------------


def _kind(rng: Random, kinds: dict[str, float] | None) -> str | None:
    return rng.choices(list(kinds), list(kinds.values()))[0] if kinds else None


def _tokens(frames: np.ndarray, encoding: Encoding) -> int:
    """Tokens of one frame."""
    return frames.shape[1] * frames.shape[2] // encoding.token_pixels**2


def _moving(clips: Sequence[Clip | Film], encoding: Encoding) -> dict[str, Tensor]:
    """Classes of what each token of the clips shows, and of what happens there."""
    shown = [clip_targets(c, encoding.token_pixels, encoding.tubelet) for c in clips]
    events = [event_targets(c, encoding.token_pixels) for c in clips]
    return {"shown": torch.from_numpy(np.stack(shown)), "events": torch.from_numpy(np.stack(events))}


def _video_text(clip: Clip | Film, encoding: Encoding) -> str:
    return "".join(time_label(t) + encoding.names["video"] for t in clip.times[:: encoding.tubelet])


def _frames(clips: Sequence[np.ndarray]) -> Tensor:
    """Clips (T, H, W, 3) uint8 of one shape -> (b, T, 3, H, W) in [0, 1]"""
    return to_pixels(np.concatenate(clips)).unflatten(0, (len(clips), -1))


def _features(samples: np.ndarray, encoding: Encoding) -> Tensor:
    return log_mel(torch.from_numpy(samples), encoding.n_mels)


def _sounds(recordings: Sequence[Sound | Film], features: Sequence[Tensor], encoding: Encoding) -> dict[str, Tensor]:
    lengths = [len(f) for f in features]
    most = encoding.sound_tokens(max(lengths))
    heard = torch.full((len(features), most), IGNORED)
    for i, (recording, n) in enumerate(zip(recordings, lengths, strict=True)):
        own = encoding.sound_tokens(n)
        heard[i, :own] = torch.from_numpy(sound_targets(recording, own))
    padded = torch.nn.utils.rnn.pad_sequence(list(features), batch_first=True)
    return {"sounds": padded, "lengths": torch.tensor(lengths), "heard": heard}


Maker = Callable[..., SenseBatch]
SENSES: dict[str, Maker] = {"watch": watch_batch, "listen": listen_batch, "film": film_batch, "look": look_batch}
