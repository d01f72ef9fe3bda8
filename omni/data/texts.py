"""Texts that a denoiser of tokens learns to write: dialogues of the text worlds, one a row.

    seed ── TEXTS[kind] ──> messages ── chat template ──> ids; what the assistant says is learnt

A world of texts is added by its function from a seed to messages.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

import torch
from torch import Tensor

from omni.data.batches import Batch, Encoding, answer_labels, pad_answers
from omni.data.reasoning import KINDS, sample_reasoning
from omni.data.text import sample_text
from omni.losses import IGNORED

TEXTS: dict[str, Callable[[int], list[dict]]] = {
    "talk": sample_text,
    "reason": sample_reasoning,
    **{f"reason_{kind}": partial(sample_reasoning, kind=kind) for kind in KINDS},
}
"""Worlds of dialogues by name: messages of a seed. Of the problems, each kind alone too."""

TRIES = 1024  # texts in a row that may be too long before a width is refused


@dataclass(frozen=True)
class TextBatch(Batch):
    input_ids: Tensor  # (b, n) right-padded
    mask: Tensor  # (b, n) True at real tokens
    learnt: Tensor  # (b, n) True at what the assistant says, the end of its turns too


def text_batch(seed: int, size: int, width: int, encoding: Encoding, mixture: dict[str, float]) -> TextBatch:
    """``size`` dialogues of at most ``width`` tokens; longer ones are passed over.

    ``mixture`` weighs names of :data:`TEXTS`. ValueError for an unknown name, or a width that nothing fits in.
    """
    unknown = sorted(set(mixture) - set(TEXTS))
    if unknown:
        raise ValueError(f"there are no texts {unknown}; known: {', '.join(TEXTS)}")
    rng, at, rows = Random(f"texts {seed}"), 1_000_000 + seed * 4096, []
    missed = 0
    while len(rows) < size:
        kind = rng.choices(list(mixture), list(mixture.values()))[0]
        ids = encoding.encode_chat(TEXTS[kind](at), add_generation_prompt=False)
        at, missed = at + 1, missed + 1
        if len(ids) <= width:
            rows.append(answer_labels(ids, encoding.special))
            missed = 0
        elif missed == TRIES:
            raise ValueError(f"none of {TRIES} texts is at most {width} tokens long; raise DiffusePlan.width")
    ids, labels = pad_answers(rows, encoding.special["pad"])
    lengths = torch.tensor([len(own) for own, _ in rows])
    learnt = labels != IGNORED
    thinks, line = encoding.special["think"], encoding.encode("\n")[0]
    # The line break behind the opening mark is part of every prompt that asks for reasoning.
    learnt[:, 1:] &= ~((ids[:, :-1] == thinks) & (ids[:, 1:] == line))
    return TextBatch(ids, torch.arange(ids.shape[1]) < lengths[:, None], learnt)
