"""Where each token that is said stands already: in the picture or the clip while that is told, in what was told while a
question about it is answered. Training asks one attention head to look there, see ``omni.losses.pointed``.

    ids      <image> <image> ... R e a d ? T e a _ 3 . 5 0 <eos> H o w _ m u c h _ i s _ T e a ? 3 . 5 0 <eos>
    points                       the token's square ...                                          the places of 3 . 5 0
    asks                                                                               that of a in Tea

An answer that stands before what the question names, such as whose price it is, is two looks away, and whether
something is there at all is no place to look at. So another head, a layer earlier, looks from the end of each word of
a question to where that word was told, or to the end of what was told if the answer is that it was not.
"""

import re
from collections.abc import Callable, Sequence

from omni.data.documents import Document
from omni.losses import IGNORED
from omni.tokenizers.prompts import NOT_ANSWERABLE

YES, NO = "yes", "no"
MISSING = (NO, NOT_ANSWERABLE)
COUNTS = "How many"
FRAMES = frozenset(
    (
        *("Is", "Are", "Do", "Does", "it", "there", "they", "you", "a", "an", "the", "have", "has", "for", "on", "in"),
        *("line", "field", "list", "table", "plan", "bar", "slice", "point", "category", "word", "than", "larger"),
        *("more", "higher", "hear", "heard", "said", "shown", "when", "of", "What", "Which", "is", "does", "at", "are"),
    )
)
"""Words around the names in questions whether something is there, and in others."""


def squares(document: Document, side: int) -> list[int]:
    """For each character of the transcription the token, a square of ``side`` pixels, in which it is read."""
    glyphs = iter(document.reading)
    found = [None if char.isspace() else document.square(next(glyphs), side) for char in document.text]
    return [IGNORED if square is None else square for square in found]


def pointers(
    labels: Sequence[int], turns: Sequence[tuple[str, str]], seen: Sequence[int] = (), counted: int | None = None
) -> list[int]:
    """For each token of a row the one before it that holds what it says; IGNORED where there is none.

    Args:
        labels: (n,) the row's labels, a stretch for each answer.
        turns: questions and what is said, a token for each character; the first answer is the transcription.
        seen: for each character of that the token of the row that shows it; IGNORED if none does.
        counted: where in the transcription the last row of its table begins, which tells how many there are.

    What is not there, so that the answer is no or that there is none, is looked for up to the end of what was told.
    """
    found = [IGNORED] * len(labels)
    (begin, told), *later = _stretches(labels)
    text = turns[0][1]
    found[begin : begin + len(seen)] = seen
    for i, at in _again(text, seen):
        found[begin + i] = begin + at
    for (first, end), (question, answer) in zip(later, turns[1:], strict=True):
        at = looked_up(question, answer, text)
        if at is None:
            at = told - begin if answer in MISSING else counted if question.startswith(COUNTS) else None
            end = first + 1
        if at is not None:
            end = first + 1 if answer == YES else end
            found[first:end] = range(begin + at, begin + at + end - first)
    return found


def asks(
    ids: Sequence[int], labels: Sequence[int], turns: Sequence[tuple[str, str]], encode: Callable[[str], list[int]]
) -> list[int]:
    """For the token behind each word of a question, which is that word's query, the last token of the word as told.

    The arguments are those of ``pointers``. IGNORED where the word was not told, unless the answer is that it was not:
    then the end of what was told.
    """
    found = [IGNORED] * len(labels)
    (begin, end), *later = _stretches(labels)
    text = turns[0][1]
    for (first, _), (question, answer) in zip(later, turns[1:], strict=True):
        start = _before(ids, encode(question), first)
        for word in re.finditer(r"[^\s?,]+", question):
            places = _places(word[0], text, re.IGNORECASE)
            missing = answer in MISSING and word[0] not in FRAMES
            if places:
                found[start + word.end()] = begin + _likeliest(places, question, text) + len(word[0]) - 1
            elif missing:
                found[start + word.end()] = end
    return found


def _before(ids: Sequence[int], part: list[int], end: int) -> int:
    """Where ``part`` begins that stands last before ``end``."""
    return next(i for i in range(end - len(part), -1, -1) if list(ids[i : i + len(part)]) == part)


def _likeliest(places: Sequence[int], question: str, text: str) -> int:
    """The first of those whose line shares most words with the question."""
    return max(places, key=lambda at: len(_words(question) & _words(_line(text, at))))


def telling(labels: Sequence[int]) -> list[bool]:
    """Whether each token belongs to the transcription, or ends it."""
    begin, end = _stretches(labels)[0]
    return [begin <= i <= end for i in range(len(labels))]


def numbered(
    labels: Sequence[int], text: str, rows: tuple[int, int], points: Sequence[int], asked: Sequence[int]
) -> list[int]:
    """For each token of the transcription its line's number in the table, which has lines ``rows`` (first, behind).

    0 on other lines. From the last word of a question that was told up to the answer, the number of the line that this
    is read in. IGNORED elsewhere. ``points`` and ``asked`` are what the two functions above return.
    """
    found = [IGNORED] * len(labels)
    (begin, end), *later = _stretches(labels)
    numbers = [i - rows[0] + 1 if rows[0] <= i < rows[1] else 0 for i in range(text.count("\n") + 1)]
    lines = [numbers[i] for i, line in enumerate(text.split("\n")) for _ in range(len(line) + 1)]
    found[begin : end + 1] = lines
    for first, _ in later:
        words = [i - 1 for i in range(end, first) if asked[i] != IGNORED]
        if words and points[first] != IGNORED:
            found[words[-1] : first] = [lines[points[first] - begin]] * (first - words[-1])
        end = first
    return found


def _again(text: str, seen: Sequence[int]) -> list[tuple[int, int]]:
    """Characters of a transcription that are read nowhere in the picture, and where the word stood before them."""
    found = []
    for word in re.finditer(r"\S+", text) if seen else ():
        start, end = word.span()
        line = text.rfind("\n", 0, start) + 1
        if all(square == IGNORED for square in seen[start:end]):
            at = looked_up(text[line:start], word[0], text[:line])
            found += [] if at is None else zip(range(start, end), range(at, at + end - start), strict=True)
    return found


def _stretches(labels: Sequence[int]) -> list[tuple[int, int]]:
    """Start and end of each answer, what ends it left out."""
    spoken = [label != IGNORED for label in labels]
    starts = [i for i, said in enumerate(spoken) if said and not (i and spoken[i - 1])]
    ends = [i for i, said in enumerate(spoken) if said and not (i + 1 < len(spoken) and spoken[i + 1])]
    return list(zip(starts, ends, strict=True))


def looked_up(question: str, answer: str, text: str) -> int | None:
    """Where in ``text`` the answer stands as words of its own; None if it has to be found out otherwise.

    Of several places that one whose line shares most words with the question, if there is one alone. A single
    character may stand anywhere by chance, and a "no", so its line must share something. A count stands before what is
    counted. What is there, so that the answer is yes, stands where the question's words do.
    """
    if answer == YES:
        return _asked_for(question, text)
    counted = f" {question.split()[2]}" if question.startswith(COUNTS) else ""
    places = _places(answer + counted, text)
    shared = [len(_words(question) & _words(_line(text, at))) for at in places]
    if len(places) == 1 and ((len(answer) > 1 and answer != NO) or shared[0]):
        return places[0]
    best = max(shared, default=0)
    return places[shared.index(best)] if best and shared.count(best) == 1 else None


def _asked_for(question: str, text: str) -> int | None:
    """Where the longest row of the question's words stands first, unless it compares."""
    words = re.findall(r"[^\s?]+", question)[1:]
    if "than" in words:
        return None
    rows = {" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
    known = [row for row in sorted(rows) if len(row) > 1 and _places(row, text)]
    return _places(max(known, key=len), text)[0] if known else None


def _places(words: str, text: str, flags: int = 0) -> list[int]:
    return [m.start() for m in re.finditer(rf"(?<![\w.]){re.escape(words)}(?![\w]|\.\w)", text, flags)]


def _line(text: str, at: int) -> str:
    return text[text.rfind("\n", 0, at) + 1 :].partition("\n")[0]


def _words(text: str) -> set[str]:
    return set(re.findall(r"[\w.]*\w", text))
