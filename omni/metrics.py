"""Scores of a prediction against reference answers, each between 0 and 1 and one sample at a time.

    texts    anls, exact_match, relaxed_accuracy, contained, choice_match, character_accuracy
    speech   word_error_rate, digit_error_rate: of a whole corpus, (S + D + I) / N, so they can exceed 1
    places   box_iou, box_match, point_inside: of numbers, in any unit that both sides share

ANLS is the rule of DocVQA (Biten et al. 2019, arXiv 1905.13648), relaxed accuracy that of ChartQA (Masry et
al. 2022, arXiv 2203.10244), ``contained`` that of OCRBench (Liu et al. 2023, arXiv 2305.07895). Averages over a set,
and the customary factor of 100, are the caller's; so is :func:`without_reasoning`, which comes before all of them.
"""

import math
import re
import string
import unicodedata
from collections.abc import Callable, Sequence

RELAXED_TOLERANCE = 0.05  # ChartQA: relative error of a number that still counts
ANLS_THRESHOLD = 0.5  # DocVQA: a similarity below it counts as nothing
IOU_THRESHOLD = 0.5  # RefCOCO: a box that overlaps less is wrong

Box = Sequence[float]  # x0, y0, x1, y1
Place = Sequence[float]  # a box, or a point x, y


def without_reasoning(text: str) -> str:
    """What stands behind the last ``</think>``."""
    return text.rpartition("</think>")[2].strip()


def levenshtein(left: Sequence, right: Sequence) -> int:
    """The fewest insertions, deletions and replacements of a character, or word, that turn one into the other."""
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


def contained(prediction: str, references: Sequence[str], spaces: bool = True) -> float:
    """OCRBench: 1 if a reference stands anywhere in the prediction, in any case; line ends are spaces.

    ``spaces=False`` leaves out all white space, as that benchmark does for handwritten formulas.
    """

    def plain(text: str) -> str:
        text = text.lower().strip().replace("\n", " ")
        return text if spaces else "".join(text.split())

    return float(any(plain(reference) in plain(prediction) for reference in _several(references)))


def choice_match(prediction: str, references: Sequence[str], choices: Sequence[str]) -> float:
    """Multiple choice: 1 if the letter that is found in the prediction is a reference, or stands for one."""
    letter = choice_letter(prediction, choices)
    right = {normalize(reference).strip("().") for reference in _several(references)}
    return float(letter is not None and (letter.lower() in right or normalize(choices[_index(letter)]) in right))


def choice_letter(text: str, choices: Sequence[str]) -> str | None:
    """The letter that an answer to a multiple-choice question names, or None.

    In this order: what stands in ``<answer>``; a letter alone or at the start ("B", "(B)", "B. blue"); the last that
    "answer" or "option" announces; the only letter in brackets; the letter of the only choice whose text is in the
    answer; the only capital that is a word by itself.
    """
    if not 2 <= len(choices) <= len(string.ascii_uppercase):
        raise ValueError(f"there are {len(choices)} choices; there must be 2 to {len(string.ascii_uppercase)}")
    text = without_reasoning(text)
    marked = re.findall(r"<answer>(.*?)</answer>", text, re.S)
    text = marked[-1].strip() if marked else text
    letters = string.ascii_uppercase[: len(choices)]
    either = f"[{letters}{letters.lower()}]"
    start = re.match(rf"\W*({either})(?:\W*$|\s*[.):,])", text)
    if start:
        return start[1].upper()
    lower = letters.lower()
    named = re.findall(
        rf"(?i:answer|option|choice)(?i:\s+is)?\s*:?\s*[(*\"']*([{letters}](?![\w'])|[{lower}](?=[).,*]|\s*$))", text
    )
    if named:
        return named[-1].upper()
    held = [letter for letter, choice in zip(letters, choices, strict=True) if _is_said(choice, text)]
    for found in (re.findall(rf"\(({either})\)", text), held, re.findall(rf"(?<![\w'])([{letters}])(?![\w'])", text)):
        if len({letter.upper() for letter in found}) == 1:
            return found[0].upper()
    return None


def _index(letter: str) -> int:
    return string.ascii_uppercase.index(letter)


def _is_said(choice: str, text: str) -> bool:
    words = re.escape(normalize(choice))
    return bool(words) and re.search(rf"(?<!\w){words}(?!\w)", normalize(text)) is not None


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


# -- speech ------------------------------------------------------------------------------------------------------------


def word_error_rate(
    predictions: Sequence[str], references: Sequence[str], normaliser: Callable[[str], str] | None = None
) -> float | None:
    """(S + D + I) / N of all texts together; None where the references hold no word.

    Both sides pass through ``normaliser``, by default :func:`plain_english`. Texts whose reference is empty after it
    are left out, as the open leaderboards do.
    """
    pairs = [word_errors(p, r, normaliser) for p, r in zip(predictions, references, strict=True)]
    words = sum(n for _, n in pairs)
    return sum(errors for errors, n in pairs if n) / words if words else None


def word_errors(prediction: str, reference: str, normaliser: Callable[[str], str] | None = None) -> tuple[int, int]:
    """(wrong, missing and extra words, words of the reference)"""
    said, meant = ((normaliser or plain_english)(text).split() for text in (prediction, reference))
    return levenshtein(said, meant), len(meant)


def digit_error_rate(predictions: Sequence[str], references: Sequence[str]) -> float | None:
    """The same of digits alone: whatever else is said does not count, and numbers in words are digits too."""

    def digits(text: str) -> str:
        return " ".join(c for c in plain_english(text) if c in string.digits)

    return word_error_rate(predictions, references, digits)


FILLERS = {"hmm", "mm", "mhm", "mmm", "uh", "um"}
CONTRACTIONS = {
    "won't": "will not",
    "can't": "can not",
    "let's": "let us",
    "y'all": "you all",
    "wanna": "want to",
    "gonna": "going to",
    "gotta": "got to",
    "woulda": "would have",
    "coulda": "could have",
    "shoulda": "should have",
    "mr": "mister",
    "mrs": "missus",
    "dr": "doctor",
    "st": "saint",
    "prof": "professor",
}
ENDINGS = {"n't": " not", "'re": " are", "'s": " is", "'d": " would", "'ll": " will", "'ve": " have", "'m": " am"}
ONES = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19,
}  # fmt: skip
TENS = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90
}  # fmt: skip
SCALES = {"thousand": 1000, "million": 10**6, "billion": 10**9}


def plain_english(text: str) -> str:
    """English without what does not count as an error of a transcription.

    The steps of Whisper's normaliser (Radford et al. 2022, arXiv 2212.04356, appendix C) that our texts need: case,
    what stands in brackets, fillers, contractions, diacritics and punctuation; numbers in words become digits. Unlike
    there, digits that are said one by one stay apart, so that "one two" is "1 2" and not "12", and typographic
    apostrophes are plain ones; ordinals, sums of money and British spellings stay as they are.
    """
    text = re.sub(r"[<\[][^>\]]*[>\]]|\([^)]*\)", "", text.lower().replace("’", "'"))
    text = re.sub(r"\s+'", "'", text)
    words = [CONTRACTIONS.get(word.strip('.,;:!?"'), word) for word in text.split()]
    text = " ".join(words)
    for ending, meant in ENDINGS.items():
        text = re.sub(rf"(?<=[a-z]){ending}\b", meant, text)
    text = re.sub(r"(?<=\d),(?=\d)", "", text)
    text = re.sub(r"\.(?!\d)", " ", text)
    text = "".join(_plain(c) for c in unicodedata.normalize("NFKD", text))
    return " ".join(_digits([word for word in text.split() if word not in FILLERS]))


def _plain(character: str) -> str:
    """The character, a space in place of punctuation, or nothing in place of an accent."""
    if character in ".%":  # of numbers
        return character
    kind = unicodedata.category(character)
    return "" if kind == "Mn" else " " if kind[0] in "MSP" else character


def _digits(words: list[str]) -> list[str]:
    """The words with each number that is written out as its digits."""
    found, at = [], 0
    while at < len(words):
        value, used = _spelled(words, at)
        found.append(str(value) if used else words[at])
        at += used or 1
    return found


def _spelled(words: list[str], at: int) -> tuple[int, int]:
    """The number in words that starts at ``at``, and how many words it takes; 0 where there is none."""
    total, start, smallest = 0, at, math.inf
    while at < len(words):
        value, used = _below_thousand(words, at)
        scale = SCALES.get(words[at + used], 1) if used and at + used < len(words) else 1
        if not used or scale >= smallest:
            break
        total, smallest, at = total + value * scale, scale, at + used + (scale > 1)
        if scale == 1:
            break
        # "and" belongs to a number only where one goes on behind it.
        if at + 1 < len(words) and words[at] == "and" and _below_thousand(words, at + 1)[1]:
            at += 1
    if at > start and words[at - 1] == "and":
        at -= 1
    return total, at - start


def _below_thousand(words: list[str], at: int) -> tuple[int, int]:
    value, used = _below_hundred(words, at)
    if not (used == 1 and 1 <= value <= 9 and words[at + 1 : at + 2] == ["hundred"]):
        return value, used
    behind = at + 2 + (words[at + 2 : at + 3] == ["and"])
    rest, more = _below_hundred(words, behind)
    return (100 * value + rest, behind - at + more) if more and rest else (100 * value, 2)


def _below_hundred(words: list[str], at: int) -> tuple[int, int]:
    word, following = (words[i] if i < len(words) else "" for i in (at, at + 1))
    if word in TENS:
        unit = ONES.get(following, 0)
        return (TENS[word] + unit, 2) if 1 <= unit <= 9 else (TENS[word], 1)
    return (ONES[word], 1) if word in ONES else (0, 0)


# -- places ------------------------------------------------------------------------------------------------------------


def box_iou(left: Box, right: Box) -> float:
    """Area that two boxes share / area that either covers; a box whose corners are swapped is the same box."""
    a, b = _ordered(left), _ordered(right)
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    either = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b)) - shared
    return shared / either if either > 0 else float(a == b)


def box_match(found: Box | None, target: Box) -> float:
    """1 if the box overlaps the target by at least half (RefCOCO's accuracy at 0.5); None is no box."""
    return float(found is not None and box_iou(found, target) >= IOU_THRESHOLD)


def point_inside(found: Place | None, target: Box) -> float:
    """ScreenSpot: 1 if the point, or the middle of the box, lies in the target or on its edge; None is no point."""
    if found is None:
        return 0.0
    x, y = middle(found)
    x0, y0, x1, y1 = _ordered(target)
    return float(x0 <= x <= x1 and y0 <= y <= y1)


def first_pair(text: str) -> tuple[float, float] | None:
    """The first point that a text names as "(x, y)" or "[x, y]"."""
    number = r"\s*(-?\d+(?:\.\d+)?)\s*"
    found = re.search(rf"[\[(]{number},{number}[\])]", text)
    return (float(found[1]), float(found[2])) if found else None


def middle(place: Place) -> tuple[float, float]:
    """The point itself, or the middle of a box."""
    if len(place) == 2:
        return place[0], place[1]
    x0, y0, x1, y1 = _ordered(place)
    return (x0 + x1) / 2, (y0 + y1) / 2


def _ordered(box: Box) -> tuple[float, float, float, float]:
    if len(box) != 4 or not all(math.isfinite(value) for value in box):
        raise ValueError(f"a box is four finite numbers, not {list(box)}")
    x0, y0, x1, y1 = box
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
