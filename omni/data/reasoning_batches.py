"""Batches of the reasoning world: problems packed into rows, so that few tokens are padding."""

from collections.abc import Iterator
from random import Random

import torch

from omni.data import TRAIN_SEEDS
from omni.data.batches import Encoding, TalkBatch, answer_labels
from omni.data.reasoning import KINDS, LEVELS, sample_reasoning
from omni.losses import IGNORED

AT_ONCE = 4096  # problems of a batch, at most
ROOM = 256
"""Tokens of a row with room for any problem: its characters and the marks of the chat around it."""
MISSES = 8
"""Problems in a row that fit nowhere: then the rows are full."""


def reason_batch(
    seed: int,
    size: int,
    width: int,
    encoding: Encoding,
    kinds: dict[str, float] | None = None,
    levels: dict[int, float] | None = None,
) -> TalkBatch:
    """``size`` rows of ``width`` tokens; each problem goes into the first row with room for it.

    ``kinds`` and ``levels`` weigh the problems by name and by how hard they are. Negative seeds, a few hundred of them,
    draw held-out problems. ValueError for unknown kinds and levels, or where a row is too short for a problem.
    """
    kinds = kinds or {name: weight for name, (weight, _) in KINDS.items()}
    levels = levels or dict.fromkeys(LEVELS, 1.0)
    rows: list[list[tuple[list[int], list[int]]]] = [[] for _ in range(size)]
    left, missed = [width] * size, 0
    for ids, labels in _problems(seed, kinds, levels, encoding):
        if len(ids) > width:
            raise ValueError(f"a problem takes {len(ids)} tokens; the rows have {width}")
        row = next((i for i, room in enumerate(left) if room >= len(ids)), None)
        missed = 0 if row is not None else missed + 1
        if row is not None:
            rows[row].append((ids, labels))
            left[row] -= len(ids)
        if missed == MISSES:
            break
    return _as_batch(rows, width, encoding.special["pad"])


def _problems(
    seed: int, kinds: dict[str, float], levels: dict[int, float], encoding: Encoding
) -> Iterator[tuple[list[int], list[int]]]:
    """Ids and labels of one problem after the other."""
    rng = Random(f"reasoned {seed}")
    first = TRAIN_SEEDS.start + seed * AT_ONCE
    for at in range(first, first + AT_ONCE):
        kind = rng.choices(list(kinds), list(kinds.values()))[0]
        level = rng.choices(list(levels), list(levels.values()))[0]
        messages = sample_reasoning(at, kind, level)
        yield answer_labels(encoding.encode_chat(messages, add_generation_prompt=False), encoding.special)


def _as_batch(rows: list[list[tuple[list[int], list[int]]]], width: int, pad: int) -> TalkBatch:
    """Padding belongs to no problem: it is a segment of its own."""
    table = []
    for problems in rows:
        ids = [i for own, _ in problems for i in own]
        labels = [label for _, own in problems for label in own]
        segments = [n for n, (own, _) in enumerate(problems) for _ in own]
        spare = width - len(ids)
        table.append((ids + [pad] * spare, labels + [IGNORED] * spare, segments + [len(problems)] * spare))
    return TalkBatch(*(torch.tensor(column) for column in zip(*table, strict=True)))
