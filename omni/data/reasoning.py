"""The reasoning world: small problems with their working and exactly one right answer, drawn from a seed.

    seed ──> kind, level ──> question ──> working, line by line ──> answer

A working is regular: each of its lines follows from the question and the line before, and there is one right way to
write it. So a byte-level model of a million parameters can learn it, and both the answer and the working can be
checked by comparing. Nothing that held-out seeds ask for is ever asked for by training's: which of the two a problem
belongs to is decided by its working.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from random import Random

from omni.data import HELD_OUT_SEEDS
from omni.data import reasoning_numbers as numbers
from omni.data import reasoning_words as words
from omni.data.reasoning_parts import Solved

LEVELS = (1, 2, 3)
HELD_OUT_ONE_IN = 8
"""Of all workings, one in so many belongs to held-out seeds."""

MAX_LENGTH = 200
"""Characters of a question with its working and its answer, at most."""

KINDS: dict[str, tuple[float, Callable[[Random, int], Solved]]] = {  # name -> (weight, problems)
    "sum": (3, numbers.addition),
    "difference": (2, numbers.subtraction),
    "product": (1, numbers.multiplication),
    "brackets": (3, numbers.brackets),
    "program": (5, numbers.program),
    "sort_numbers": (3, words.sort_numbers),
    "sort_words": (3, words.sort_words),
    "edit": (5, words.edit),
    "lookup": (5, words.lookup),
    "largest": (3, words.largest),
    "total": (2, words.total),
}


@dataclass(frozen=True)
class Problem:
    """``working`` has one line a step; ``level`` counts from 1, the easiest."""

    kind: str
    level: int
    question: str
    working: str
    answer: str


@dataclass(frozen=True)
class Verdict:
    """What a reply is worth: its answer, its whole working, and the share of that before its first wrong line."""

    answer: bool
    working: bool
    lines: float


def sample_problem(seed: int, kind: str | None = None, level: int | None = None) -> Problem:
    """Draw a problem, of any kind and level where none is given.

    Raises:
        ValueError: a negative seed, an unknown kind or an unknown level.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}, must not be negative")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, must be one of {', '.join(KINDS)}")
    if level is not None and level not in LEVELS:
        raise ValueError(f"level is {level!r}, must be one of {', '.join(map(str, LEVELS))}")
    rng = Random(f"reason {seed}")
    drawn, depth = rng.choices(tuple(KINDS), [weight for weight, _ in KINDS.values()])[0], rng.choice(LEVELS)
    kind, level = kind or drawn, level or depth
    rng = Random(f"reason {seed} {kind} {level}")  # the kinds of one seed share nothing
    while True:
        solved = KINDS[kind][1](rng, level)
        working = "\n".join(solved.lines)
        if _is_held_out(working) == (seed in HELD_OUT_SEEDS):
            return Problem(kind, level, solved.question, working, solved.answer)


def sample_reasoning(seed: int, kind: str | None = None, level: int | None = None) -> list[dict]:
    """The problem as OpenAI-style messages: "<think>\\nworking\\n</think>\\nanswer", and `"thinking": True`."""
    problem = sample_problem(seed, kind, level)
    content = f"<think>\n{problem.working}\n</think>\n{problem.answer}"
    return [
        {"role": "user", "content": problem.question},
        {"role": "assistant", "content": content, "thinking": True},
    ]


def check(problem: Problem, answer: str, working: str = "") -> Verdict:
    """Compare a reply with the one right way to write it, but for white space at its ends."""
    right, written = problem.working.split("\n"), working.strip().split("\n")
    same = takewhile(lambda pair: pair[0] == pair[1], zip(right, written, strict=False))
    return Verdict(answer.strip() == problem.answer, written == right, len(list(same)) / len(right))


def _is_held_out(working: str) -> bool:
    digest = hashlib.blake2s(working.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0
