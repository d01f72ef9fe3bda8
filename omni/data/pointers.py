"""Where each token that is said stands already: in the picture or the clip while that is told, in what was told while a
question about it is answered. Training asks one attention head to look there, see ``omni.losses.pointed``.

    ids      <image> <image> ... R e a d ? T e a _ 3 . 5 0 <eos> H o w _ m u c h ? 3 . 5 0 <eos>
    points                       the token's square ...                            the places of 3 . 5 0 before
"""

import re
from collections.abc import Sequence

from omni.data.documents import Document
from omni.losses import IGNORED

YES, NO = "yes", "no"
COUNTS = "How many"


def squares(document: Document, side: int) -> list[int]:
    """For each character of the transcription the token, a square of ``side`` pixels, in which it is read."""
    glyphs = iter(document.reading)
    found = [None if char.isspace() else document.square(next(glyphs), side) for char in document.text]
    return [IGNORED if square is None else square for square in found]


def pointers(labels: Sequence[int], turns: Sequence[tuple[str, str]], seen: Sequence[int] = ()) -> list[int]:
    """For each token of a row the one before it that holds what it says; IGNORED where there is none.

    Args:
        labels: (n,) the row's labels, a stretch for each answer.
        turns: questions and what is said, a token for each character; the first answer is the transcription.
        seen: for each character of that the token of the row that shows it; IGNORED if none does.
    """
    found = [IGNORED] * len(labels)
    (begin, _), *later = _stretches(labels)
    text = turns[0][1]
    found[begin : begin + len(seen)] = seen
    for i, at in _again(text, seen):
        found[begin + i] = begin + at
    for (first, end), (question, answer) in zip(later, turns[1:], strict=True):
        at = looked_up(question, answer, text)
        if at is not None:
            end = first + 1 if answer == YES else end
            found[first:end] = range(begin + at, begin + at + end - first)
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
    character may stand anywhere by chance, so its line must share something. A count stands before what is counted.
    What is there, so that the answer is yes, stands where the question's words do.
    """
    if answer == YES:
        return _asked_for(question, text)
    if answer == NO:
        return None
    counted = f" {question.split()[2]}" if question.startswith(COUNTS) else ""
    places = _places(answer + counted, text)
    shared = [len(_words(question) & _words(_line(text, at))) for at in places]
    if len(places) == 1 and (len(answer) > 1 or shared[0]):
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


def _places(words: str, text: str) -> list[int]:
    return [m.start() for m in re.finditer(rf"(?<![\w.]){re.escape(words)}(?![\w]|\.\w)", text)]


def _line(text: str, at: int) -> str:
    return text[text.rfind("\n", 0, at) + 1 :].partition("\n")[0]


def _words(text: str) -> set[str]:
    return set(re.findall(r"[\w.]*\w", text))
