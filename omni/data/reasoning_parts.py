"""What the kinds of problems of the reasoning world share."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Solved:
    """A question, the lines of its working, and its answer."""

    question: str
    lines: Sequence[str]
    answer: str
