"""Scores of a predicted text against reference answers, each between 0 and 1 and one sample at a time.

ANLS is the rule of DocVQA (Biten et al. 2019, arXiv 1905.13648), relaxed accuracy that of ChartQA (Masry et
al. 2022, arXiv 2203.10244). Averages over a set, and the customary factor of 100, are the caller's.
"""

import math
from collections.abc import Sequence

RELAXED_TOLERANCE = 0.05  # ChartQA: relative error of a number that still counts
ANLS_THRESHOLD = 0.5  # DocVQA: a similarity below it counts as nothing


def levenshtein(left: str, right: str) -> int:
    """The fewest insertions, deletions and replacements of a character that turn one text into the other."""
    if len(left) < len(right):
        left, right = right, left
    previous = list(range(len(right) + 1))
    for row, a in enumerate(left, 1):
        current = [row]
        for column, b in enumerate(right, 1):
            current.append(min(previous[column] + 1, current[-1] + 1, previous[column - 1] + (a != b)))
        previous = current
    return previous[-1]


def normalize(text: str) -> str:
    """Lower case, runs of white space as one space, none at the ends."""
    return " ".join(text.lower().split())


def similarity(left: str, right: str) -> float:
    """1 - edit distance / length of the longer text; two empty texts are alike."""
    longest = max(len(left), len(right))
    return 1.0 - levenshtein(left, right) / longest if longest else 1.0


def anls(prediction: str, references: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of one answer (DocVQA): the best over the references.

    Case and white space do not count; a similarity below 0.5 is 0.
    """
    best = max(similarity(normalize(prediction), normalize(reference)) for reference in _several(references))
    return best if best >= ANLS_THRESHOLD else 0.0


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 if the prediction is one of the references but for case and white space, else 0."""
    return float(any(normalize(prediction) == normalize(reference) for reference in _several(references)))


def relaxed_accuracy(prediction: str, references: Sequence[str]) -> float:
    """ChartQA: numbers may be off by 5 % of the reference, anything else has to match but for case.

    "12%" is read as 0.12. A reference of zero has no relative error and is compared as text.
    """
    return float(any(_relaxed_match(prediction, reference) for reference in _several(references)))


def character_accuracy(prediction: str, reference: str) -> float:
    """1 - edit distance / length of the reference, not below 0: how much of a transcription is right.

    Case and white space count. An empty reference is only matched by an empty prediction.
    """
    if not reference:
        return float(not prediction)
    return max(0.0, 1.0 - levenshtein(prediction, reference) / len(reference))


def _several(references: Sequence[str]) -> Sequence[str]:
    """The references, or an error where there is none or a single text instead of a list."""
    if isinstance(references, str) or not references:
        raise ValueError(f"references must be a list of at least one text, not {references!r}")
    return references


def _relaxed_match(prediction: str, reference: str) -> bool:
    predicted, target = _number(prediction), _number(reference)
    if predicted is None or target is None or target == 0:
        return normalize(prediction) == normalize(reference)
    return abs(predicted - target) / abs(target) <= RELAXED_TOLERANCE


def _number(text: str) -> float | None:
    text = text.strip()
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
