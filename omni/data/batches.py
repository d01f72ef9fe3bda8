"""Batches for the shipped model's training: pure functions of a seed, so that a run resumes at any step.

read   documents: pixels, a conversation of questions and answers about each, and the glyphs under each patch
draw   scenes: captions and the pictures they describe
talk   text: dialogues, packed several to a row
"""

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from omni.config import ActionConfig, GenerationConfig
from omni.data.booklets import NOT_ANSWERABLE, foreign_question
from omni.data.documents import SIZES, Document, sample_document
from omni.data.pointers import asks, numbered, pointers, squares, telling
from omni.data.scenes import CATEGORIES, COLORS, FREE_RADIUS, SHAPES, Scene, coverage, describe, sample_scene
from omni.data.sights import THING_SHARE
from omni.data.text import sample_text
from omni.losses import IGNORED
from omni.tokenizers.prompts import UPSAMPLE, caption_ids

GLYPH_SLOTS = 2  # characters that a patch can name: one centred in its left half, one in its right half
GLYPH_CLASSES = 96  # 0 is "no character", then printable ASCII from "!"
VALUE_SLOTS = 4  # characters of each of the two first values that a label names
LABEL_SLOTS = 3 + 2 * VALUE_SLOTS  # the number of its row, those, and the first and last letter of its colour
LINKS = 3  # from where a chart shows a value: to the axis at its left, to that below, and to its name
ROW_CLASSES = 16  # 0 is "in no table", then the number of the row
CELL_SLOTS = 5  # characters centred within one token's square, in reading order
# Of a latent token: which thing it shows, its shape and its colour; 0 is "none".
THING_CLASSES = (1 + max(FREE_RADIUS), 1 + len(SHAPES), 1 + len(COLORS))
FULL_ALREADY = 0.1  # of the prompts to be upsampled
READ_SHARE = 0.25  # of the batches without a transcription first: pages that are only read aloud
MISREAD = (0.0, 0.02, 0.06)  # shares of wrong characters in those
TRANSCRIBE = ("Read the page.", "What is written here?", "Transcribe the text.")


class Row(NamedTuple):
    """The tokens of one conversation and what is known of each, see ``omni.data.pointers``."""

    ids: list[int]
    labels: list[int]
    points: list[int]
    asks: list[int]
    told: list[bool]
    rows: list[int]


def row_untold(ids: list[int], labels: list[int]) -> Row:
    """A row in which nothing is told before it is asked for."""
    nowhere = [IGNORED] * len(ids)
    return Row(ids, labels, nowhere, nowhere, [False] * len(ids), nowhere)


class Batch:
    """Base of the batches: moves and reports its tensors."""

    def to(self, device: torch.device) -> "Batch":
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in moved.items()})


@dataclass(frozen=True)
class ReadBatch(Batch):
    pixels: Tensor  # (b, 3, H, W) in [0, 1], one size a batch
    glyphs: Tensor  # (b, patches, GLYPH_SLOTS) classes
    cells: Tensor  # (b, tokens, CELL_SLOTS) classes
    labelled: Tensor  # (b, tokens, LABEL_SLOTS) classes; IGNORED where no label stands
    input_ids: Tensor | None  # (b, n) right-padded; None: glyphs only
    labels: Tensor | None  # (b, n) next tokens; IGNORED outside the answers
    points: Tensor | None = None  # (b, n) where each token that is said stands before; IGNORED if nowhere
    asks: Tensor | None = None  # (b, n) where the word of a question that ends before each token was told, or nowhere
    told: Tensor | None = None  # (b, n) whether a token belongs to a transcription before the questions
    rows: Tensor | None = None  # (b, n) classes: in which row of a table a token is, or what it asks for; or IGNORED
    links: Tensor | None = None  # (b, patches, LINKS) patches that a chart's values are read at; IGNORED elsewhere


@dataclass(frozen=True)
class DrawBatch(Batch):
    input_ids: Tensor  # (b, n) right-padded captions
    mask: Tensor  # (b, n)
    pixels: Tensor  # (b, 3, H, W) in [0, 1]
    things: Tensor  # (b, tokens, 3) classes of what each latent token shows: which of the named things, shape, colour


@dataclass(frozen=True)
class TalkBatch(Batch):
    input_ids: Tensor  # (b, n) packed
    labels: Tensor
    segments: Tensor


@dataclass(frozen=True)
class Encoding:
    """What batches need of the model: its tokenizer and the pixels behind a patch, a token and a latent token."""

    encode: Callable[[str], list[int]]
    encode_chat: Callable[..., list[int]]
    special: dict
    patch: int
    token_pixels: int
    latent_pixels: int
    tubelet: int = 1  # frames behind one token of a video
    n_mels: int = 1
    sound_tokens: Callable[[int], int] = lambda frames: frames  # of a sound of so many frames
    names: dict[str, str] = field(default_factory=dict)  # how the placeholder of each kind of media is written
    placeholders: tuple[int, ...] = ()
    parts: int = 1  # processes that share a batch
    action: ActionConfig | None = None  # whose actions the model knows
    say: Callable[[str], list[int]] | None = None  # ids of what a generator of videos is told
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    side: int = 64  # of the squares that a model without tiers sees, in pixels
    unit: int = 1  # frames of a video behind one more frame of its tokens


def glyph_targets(document: Document, patch: int) -> np.ndarray:
    """(patches, GLYPH_SLOTS) classes of the characters whose centre lies in the left and right half of each patch."""
    targets = np.zeros((document.squares(patch), GLYPH_SLOTS), dtype=np.int64)
    for glyph in document.glyphs:
        square = document.square(glyph, patch)
        if square is not None:
            targets[square, int(glyph.x % patch >= patch / 2)] = ord(glyph.char) - 32
    return targets


def cell_targets(document: Document, side: int) -> np.ndarray:
    """(tokens, CELL_SLOTS) classes of the first characters, in reading order, within each token's square of pixels."""
    targets = np.zeros((document.squares(side), CELL_SLOTS), dtype=np.int64)
    for glyph in document.glyphs:
        square = document.square(glyph, side)
        free = np.flatnonzero(targets[square] == 0) if square is not None else ()
        if len(free):
            targets[square, free[0]] = ord(glyph.char) - 32
    return targets


def label_targets(document: Document, side: int) -> np.ndarray:
    """(tokens, LABEL_SLOTS) of the first label within each square of pixels: its row, as a digit, and its values.

    Where no label stands, but a chart shows a value, it is those of the value; where there is only a colour, that.
    """
    targets = np.full((document.squares(side), LABEL_SLOTS), IGNORED, dtype=np.int64)
    labels = [(row, label, document.glyphs[label.start : label.stop]) for row, label in enumerate(document.labels)]
    tips = [(tip.row, tip, [tip]) for tip in (*document.tips, *document.tints)]
    for row, what, places in reversed(labels + tips):  # the first has the last word
        for place in places if row is None or row < 10 else ():
            square = document.square(place, side)
            if square is not None:
                targets[square] = _label_classes(row, what.values, what.color)
    return targets


def link_targets(document: Document, patch: int) -> np.ndarray:
    """(patches, LINKS): at each patch where a chart shows a value, the ticks beside and below it, and its name."""
    targets = np.full((document.squares(patch), LINKS), IGNORED, dtype=np.int64)
    for tip in reversed(document.tips):  # the first has the last word
        square = document.square(tip, patch)
        if square is not None:
            ends = (*tip.ticks, document.labels[tip.row].start)
            found = [None if end is None else document.square(document.glyphs[end], patch) for end in ends]
            targets[square] = [IGNORED if end is None else end for end in found]
    return targets


def _label_classes(row: int | None, values: Sequence[str], color: str) -> list[int]:
    """Classes of each slot; of a colour alone only those of the colour."""
    first, second = (value[:VALUE_SLOTS].ljust(VALUE_SLOTS) for value in (*values, "", "")[:2])
    said = f"{row or 0}{first}{second}{color[:1]}{color[-1:]}".ljust(LABEL_SLOTS)
    classes = [0 if char == " " else ord(char) - 32 for char in said]
    return classes if row is not None else [IGNORED] * (LABEL_SLOTS - 2) + classes[-2:]


def read_batch(
    seed: int,
    size: int,
    level: str,
    encoding: Encoding,
    *,
    shape: tuple[int, int] | None = None,
    questions: int = 4,
    talk: bool = True,
    bare: bool = False,
    read_first: bool = False,
    foreign: float = 0.0,
    given: float = 0.5,
) -> ReadBatch:
    """``size`` documents of one level and ``shape`` (height, width); fewer for larger images.

    Small images come in larger batches, so that every batch costs about the same: ``size`` counts pages of 160 x 160.
    With ``read_first`` the questions come after a transcription, in which their answers can be looked up. A share
    ``foreign`` of the conversations asks what only another page could answer. A share ``given`` of the transcriptions
    is not learned but given, with mistakes, where the answers are the point.
    """
    rng = Random(f"read {seed}")
    base = 1_000_000 + seed * 4096
    shape = shape or rng.choice(SIZES[level])
    count = max(1, round(size * 160 * 160 / (shape[0] * shape[1])))
    count = min(count, 8 * size)  # short texts cost more than their small pictures
    documents = [sample_document(base + i, level, shape) for i in range(count)]
    pixels = to_pixels([d.image for d in documents])
    glyphs = torch.from_numpy(np.stack([glyph_targets(d, encoding.patch) for d in documents]))
    cells = torch.from_numpy(np.stack([cell_targets(d, encoding.token_pixels) for d in documents]))
    labelled = torch.from_numpy(np.stack([label_targets(d, encoding.token_pixels) for d in documents]))
    links = torch.from_numpy(np.stack([link_targets(d, encoding.patch) for d in documents]))
    if not talk:
        return ReadBatch(pixels, glyphs, cells, labelled, None, None, links=links)
    tokens = shape[0] * shape[1] // encoding.token_pixels**2
    documents = [_with_foreign(d, documents[i - 1], rng, foreign) for i, d in enumerate(documents)]
    rows = [
        _bare(d, rng, tokens, encoding, read_first, given)
        if bare
        else _conversation(d, rng, tokens, encoding, questions, read_first, given)
        for d in documents
    ]
    return ReadBatch(pixels, glyphs, cells, labelled, *pad_rows(rows, encoding.special["pad"]), links)


def _with_foreign(document: Document, other: Document, rng: Random, share: float) -> Document:
    """The page with, in that share of cases, a question that it does not answer."""
    question = foreign_question(document, other, rng) if rng.random() < share else None
    return document if question is None else replace(document, qa=(*document.qa, (question, NOT_ANSWERABLE)))


def _bare(
    document: Document, rng: Random, image_tokens: int, encoding: Encoding, read_first: bool, given_share: float
) -> Row:
    """The picture, then its transcription, its questions or both, without a chat around them: half the tokens."""
    special = encoding.special
    ids = [special["image"]] * image_tokens
    labels = [IGNORED] * image_tokens
    text, given = _transcription(document, rng, given_share if read_first else 0.0)
    ask = document.qa and (read_first or rng.random() >= READ_SHARE)
    turns = rng.sample(document.qa, len(document.qa)) if ask else []
    turns = [("", text), *turns] if read_first or not turns else turns
    for question, answer in turns:
        asked = [*encoding.encode(question), special["end_think"]]
        said = [*encoding.encode(answer), special["eos"][0]]
        ids, labels = ids + asked + said, labels + [IGNORED] * len(asked) + said
    turns = [("", document.text), *turns[1:]] if turns[0][1] == text else []
    return _pointing(document, ids, labels, turns, given, encoding)


def _transcription(document: Document, rng: Random, share: float) -> tuple[str, bool]:
    """What is read aloud, and whether it is given, with mistakes, so that only the answers behind it are learned."""
    given = bool(document.qa) and rng.random() < share
    return (misread(document.text, rng) if given else document.text), given


def _pointing(
    document: Document, ids: list[int], labels: list[int], turns: list[tuple[str, str]], given: bool, encoding: Encoding
) -> Row:
    """The row with where its tokens stand, if there are ``turns`` that begin with a transcription.

    Of a ``given`` one nothing is to be said.
    """
    if not turns:
        return row_untold(ids, labels)
    start = ids.index(encoding.special["image"]) if encoding.special["image"] in ids else 0
    seen = [at if at == IGNORED else start + at for at in squares(document, encoding.token_pixels)]
    rows = document.rows
    last = sum(len(line) + 1 for line in document.text.split("\n")[: rows[1] - 1]) if rows else None
    points, asked = pointers(labels, turns, seen, last), asks(ids, labels, turns, encoding.encode)
    said = _unsaid(labels, encoding) if given else labels
    numbers = numbered(labels, document.text, rows or (0, 0), points, asked)
    return Row(ids, said, points, asked, telling(labels), numbers)


def _unsaid(labels: list[int], encoding: Encoding) -> list[int]:
    """The labels without those of the first answer."""
    end = labels.index(encoding.special["eos"][0]) + 1
    return [IGNORED] * end + labels[end:]


def misread(text: str, rng: Random) -> str:
    """``text`` with a few wrong characters of the same kind, as a transcription has them."""
    rate = rng.choice(MISREAD)
    return "".join(_like(char, rng) if rng.random() < rate else char for char in text)


def _like(char: str, rng: Random) -> str:
    kinds = (string.digits, string.ascii_lowercase, string.ascii_uppercase)
    return next((rng.choice(kind) for kind in kinds if char in kind), char)


def _conversation(
    document: Document,
    rng: Random,
    image_tokens: int,
    encoding: Encoding,
    questions: int,
    read_first: bool,
    given_share: float,
) -> Row:
    """Ids and labels of one document's turns: some questions in random order, a transcription, or this before those."""
    asked = rng.sample(document.qa, min(questions, len(document.qa)))
    text, given = _transcription(document, rng, given_share if read_first else 0.0)
    transcription = (rng.choice(TRANSCRIBE), text)
    if read_first:
        asked = [transcription, *asked]
    elif not asked or rng.random() < READ_SHARE:
        asked = [transcription]
    messages = []
    for question, answer in asked:
        content = question if messages else [{"type": "image", "image": None}, {"type": "text", "text": question}]
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    ids, labels = answer_labels(encoding.encode_chat(messages, add_generation_prompt=False), encoding.special)
    at = ids.index(encoding.special["image"])
    run = [encoding.special["image"]] * image_tokens
    ids, labels = ids[:at] + run + ids[at + 1 :], labels[:at] + [IGNORED] * image_tokens + labels[at + 1 :]
    turns = [("", document.text), *asked[1:]] if asked[0] == transcription else []
    return _pointing(document, ids, labels, turns, given, encoding)


def answer_labels(ids: list[int], special: dict) -> tuple[list[int], list[int]]:
    """Labels (the ids themselves; the shift is the loss's) for what the assistant says and the end of its turn."""
    labels, inside = [], False
    for token, following in zip(ids, [*ids[1:], None], strict=True):
        labels.append(token if inside else IGNORED)
        opens = token == special["think"] and following != special["end_think"]  # reasoning is said too
        if opens or token == special["end_think"]:
            inside = True
        elif token == special["eos"][0]:
            inside = False
    return ids, labels


def draw_batch(
    seed: int,
    size: int,
    encoding: Encoding,
    drop: float = 0.1,
    mixture: dict[str, float] | None = None,
    full: float = 0.0,
) -> DrawBatch:
    """``size`` scenes; a share ``drop`` of the captions is empty, which is what guidance compares with.

    ``mixture`` weighs the categories of scenes, by default all alike. A share ``full`` of the other captions leaves
    nothing open.
    """
    rng = Random(f"draw {seed}")
    mixture = mixture or dict.fromkeys(CATEGORIES, 1.0)
    categories = Random(f"categories {seed}").choices(list(mixture), list(mixture.values()), k=size)
    scenes = [sample_scene(1_000_000 + seed * 4096 + i, category) for i, category in enumerate(categories)]
    whole = [rng.random() < full for _ in scenes]
    captions = [describe(s) if w else s.caption for s, w in zip(scenes, whole, strict=True)]
    captions = ["" if rng.random() < drop else caption for caption in captions]
    rows = [caption_ids(caption, encoding.special, encoding.encode) for caption in captions]
    input_ids, _ = pad_answers([(r, r) for r in rows], encoding.special["pad"])
    mask = torch.arange(input_ids.shape[1]) < torch.tensor([[len(r)] for r in rows])
    targets = [thing_targets(s, encoding.latent_pixels, one_by_one=w) for s, w in zip(scenes, whole, strict=True)]
    things = torch.from_numpy(np.stack(targets))
    things[[not caption for caption in captions], :, 0] = IGNORED  # nothing was named first
    return DrawBatch(input_ids, mask, to_pixels([s.image for s in scenes]), things)


def thing_targets(scene: Scene, side: int, one_by_one: bool = False) -> np.ndarray:
    """(tokens, 3) classes of the thing that covers most of each square of ``side`` pixels, 0 where it is too little.

    The columns are which of the wanted things it is, in the caption's order, its shape and its colour, counted from 1.
    A caption counts things of one kind as one; a description names them ``one_by_one``.
    """
    size = scene.image.shape[0]
    order = [i for i, want in enumerate(scene.request.wants, start=1) for _ in range(want.count)]
    order = list(range(1, len(order) + 1)) if one_by_one else order
    most = np.full((size // side) ** 2, THING_SHARE)
    targets = np.zeros((len(most), 3), dtype=np.int64)
    for thing, named in zip(scene.things, order, strict=True):
        cover = coverage(thing.shape, thing.x, thing.y, thing.radius, (size, size))
        share = cover.reshape(size // side, side, size // side, side).mean(axis=(1, 3)).ravel()
        targets[share > most] = named, 1 + SHAPES.index(thing.shape), 1 + list(COLORS).index(thing.color)
        most = np.maximum(most, share)
    return targets


def to_pixels(images: Sequence[np.ndarray]) -> Tensor:
    """Pictures (H, W, 3) uint8 of one size -> (b, 3, H, W) in [0, 1]"""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def talk_batch(
    seed: int, size: int, width: int, encoding: Encoding, upsample: float = 0.0, whole: bool = False
) -> TalkBatch:
    """``size`` rows of ``width`` tokens, each packed with as many dialogues as fit.

    In a share ``upsample`` of them a prompt for a picture is written in full. ``whole``: the labels are all tokens but
    the first of each dialogue, which nothing comes before.
    """
    rows, at, rng = [], 1_000_000 + seed * 4096, Random(f"talk {seed}")
    for _ in range(size):
        ids, labels, segments = [], [], []
        while True:
            messages = upsampling(at, rng) if rng.random() < upsample else sample_text(at)
            more, said = answer_labels(encoding.encode_chat(messages, add_generation_prompt=False), encoding.special)
            at += 1
            if len(ids) + len(more) > width:
                break
            said = [IGNORED, *more[1:]] if whole else said
            segments += [segments[-1] + 1 if segments else 0] * len(more)
            ids, labels = ids + more, labels + said
        spare = width - len(ids)
        last = segments[-1] + 1 if segments else 0
        rows.append((ids + [encoding.special["pad"]] * spare, labels + [IGNORED] * spare, segments + [last] * spare))
    ids, labels, segments = (torch.tensor(column) for column in zip(*rows, strict=True))
    return TalkBatch(ids, labels, segments)


def upsampling(seed: int, rng: Random) -> list[dict]:
    """A prompt for a picture, and the picture in full; what is in full already stays as it is."""
    scene = sample_scene(seed)
    full = describe(scene)
    prompt = full if rng.random() < FULL_ALREADY else scene.caption
    return [
        {"role": "user", "content": UPSAMPLE.format(prompt=prompt)},
        {"role": "assistant", "content": full},
    ]


def pad_rows(rows: Sequence[Row], pad: int) -> tuple[Tensor, ...]:
    """What rows hold, each (b, n)."""
    width = max(len(row.ids) for row in rows)
    ends = Row(pad, IGNORED, IGNORED, IGNORED, False, IGNORED)
    return tuple(
        torch.tensor([part + [end] * (width - len(part)) for part in parts])
        for parts, end in zip(zip(*rows, strict=True), ends, strict=True)
    )


def pad_answers(rows: Sequence[tuple[list[int], list[int]]], pad: int) -> tuple[Tensor, Tensor]:
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in rows])
    return ids, labels
