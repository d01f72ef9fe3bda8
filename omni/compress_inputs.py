"""Inputs that a model is calibrated with: rows of the project's worlds that it can read, or lines of a text file.

    talk   dialogues, always                     watch   clips, with a vision encoder and a placeholder of videos
    read   pages, with a vision encoder          listen  recordings, with a sound encoder
    look   pictures, with a vision encoder

Media of the worlds are shown to models that fit a picture whole ("fit", as omni-tiny); others are calibrated with text.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from omni.data.batches import ReadBatch, read_batch, talk_batch
from omni.data.senses import SENSES, SenseBatch
from omni.inputs import Inputs, pad_rows
from omni.model import Omni
from omni.training_steps import encoding

ROWS = 4  # of one batch
WIDTH = 420  # tokens of a packed row of dialogues
MAX_TEXT = 1 << 30  # bytes of a file


def calibration(model: Omni, rows: int, seed: int = 0, data: Path | None = None, width: int = 2048) -> list[Inputs]:
    """About ``rows`` rows, in batches; the same for the same arguments.

    ``data``: a text file, whose non-empty lines are one row each and are cut to ``width`` tokens; None: the worlds.
    ValueError where the model has no tokenizer, or the file no text.
    """
    if model.tokenizer is None:
        raise ValueError("this model has no tokenizer; calibration inputs cannot be made for it")
    if data is not None:
        return _of_file(model, rows, data, width)
    makers = _makers(model)
    return [makers[i % len(makers)](seed * 10_007 + i) for i in range(-(-rows // ROWS))]


def _makers(model: Omni) -> list[Callable[[int], Inputs]]:
    words, special = encoding(model), model.config.special_tokens
    pad = words.special["pad"]

    def talk(seed: int) -> Inputs:
        batch = talk_batch(seed, ROWS, min(WIDTH, model.config.max_positions), words)
        return Inputs(batch.input_ids, batch.input_ids != pad, segments=batch.segments)

    def sense(kind: str) -> Callable[[int], Inputs]:
        return lambda seed: sensed(SENSES[kind](seed, ROWS, words, 3, 0.5), pad)

    found = [talk]
    if model.config.vision is not None and model.config.media.image == "fit" and "image" in special:
        found += [lambda seed: pages(read_batch(seed, ROWS, "page", words, questions=4, read_first=True), pad)]
        found += [sense("look"), *([sense("watch")] if "video" in special else [])]
    if model.config.sound is not None and "sound" in special:
        found.append(sense("listen"))
    return found


def pages(batch: ReadBatch, pad: int) -> Inputs:
    """What the model reads of a batch of documents."""
    return Inputs(batch.input_ids, _real(batch.input_ids, pad), pixels=tuple(batch.pixels))


def sensed(batch: SenseBatch, pad: int) -> Inputs:
    """What the model reads of clips, pictures and recordings."""
    frames = () if batch.frames is None else tuple(f if len(f) > 1 else f[0] for f in batch.frames)
    sounds = ()
    if batch.sounds is not None:
        sounds = tuple(row[:n] for row, n in zip(batch.sounds, batch.lengths.tolist(), strict=True))
    return Inputs(batch.input_ids, _real(batch.input_ids, pad), pixels=frames, sounds=sounds)


def _real(ids: Tensor, pad: int) -> Tensor:
    """(b, n) True up to each row's last token that is no padding."""
    return (ids != pad).flip(1).cumsum(dim=1).flip(1) > 0


def _of_file(model: Omni, rows: int, path: Path, width: int) -> list[Inputs]:
    lines = [model.tokenizer.encode(line)[:width] for line in _lines(path, rows)]
    if not any(lines):
        raise ValueError(f"{path} holds no text")
    lines = sorted((line for line in lines if line), key=len)  # rows of one length need little padding
    pad = model.tokenizer.special.get("pad", 0)
    return [_padded(lines[i : i + ROWS], pad) for i in range(0, len(lines), ROWS)]


def _padded(rows: list[list[int]], pad: int) -> Inputs:
    ids, mask = pad_rows(rows, pad)
    return Inputs(torch.as_tensor(ids), mask)


def _lines(path: Path, rows: int) -> Iterator[str]:
    try:
        if path.stat().st_size > MAX_TEXT:
            raise ValueError(f"{path} has {path.stat().st_size} bytes; the limit is {MAX_TEXT}")
        found = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    yield from found[:rows]
