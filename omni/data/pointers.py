"""Where each token that is said stands already: in the picture while a page is read aloud, in the transcription while a
question about it is answered. Training asks one attention head to look there, see ``omni.losses.pointed``.

    ids      <image> <image> ... R e a d ? T e a _ 3 . 5 0 <eos> H o w _ m u c h ? 3 . 5 0 <eos>
    points                       the token's square ...                            the places of 3 . 5 0 before
"""

import re
from collections.abc import Sequence

from omni.data.documents import Document
from omni.losses import IGNORED

UNSAID = ("yes", "no")
COUNTS = "How many"


def squares(document: Document, side: int) -> list[int]:
    """For each character of the transcription the token, a square of ``side`` pixels, in which it is read."""
    glyphs = iter(document.reading)
    found = [None if char.isspace() else document.square(next(glyphs), side) for char in document.text]
    return [IGNORED if square is None else square for square in found]


def pointers(
    labels: Sequence[int], turns: Sequence[tuple[str, str]], seen: Sequence[int] = (), start: int = 0
) -> list[int]:
    """For each token of a row the one before it that holds what it says; IGNORED where there is none.

    Args:
        labels: (n,) the row's labels, a stretch for each answer.
        turns: questions and what is said, a token for each character; the first answer is the transcription.
        seen: for each character of that its square in the picture, if there is one, which begins at token ``start``.
    """
    found = [IGNORED] * len(labels)
    first, *later = _stretches(labels)
    for i, square in enumerate(seen):
        if square != IGNORED:
            found[first[0] + i] = start + square
    for (begin, end), (question, answer) in zip(later, turns[1:], strict=True):
        at = looked_up(question, answer, turns[0][1])
        if at is not None:
            found[begin:end] = range(first[0] + at, first[0] + at + end - begin)
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
    character may stand anywhere by chance, so its line must share something.
    """
    if answer in UNSAID or question.startswith(COUNTS):
        return None
    places = [m.start() for m in re.finditer(rf"(?<![\w.]){re.escape(answer)}(?![\w]|\.\w)", text)]
    shared = [len(_words(question) & _words(_line(text, at))) for at in places]
    if len(places) == 1 and (len(answer) > 1 or shared[0]):
        return places[0]
    best = max(shared, default=0)
    return places[shared.index(best)] if best and shared.count(best) == 1 else None


def _line(text: str, at: int) -> str:
    return text[text.rfind("\n", 0, at) + 1 :].partition("\n")[0]


def _words(text: str) -> set[str]:
    return set(re.findall(r"[\w.]*\w", text))
