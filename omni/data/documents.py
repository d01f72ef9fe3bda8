"""The document world: small printed pages drawn from a seed, with transcription, questions and answers.

Reading starts on single words and transfers to lines, pages and charts (``LEVELS``, in that order). Type is 11 to
14 pixels high. Seeds of training and of evaluation do not meet, see ``omni.data``.
"""

from dataclasses import dataclass, replace
from random import Random

import numpy as np

from omni.data import vocabulary as words
from omni.data.charts import CHARTS
from omni.data.document_kinds import KINDS, distinct
from omni.data.document_questions import MAX_ANSWER, Questions
from omni.data.page import Cell, Glyph, Label, Page, Tip, sample_style

LEVELS = ("word", "line", "lines", "page", "chart")
SIZES = {  # (height, width) in pixels
    "word": ((16, 96), (32, 96)),
    "line": ((16, 160), (32, 160)),
    "lines": ((48, 160),),
    # Larger pages are fitted to 192 pixels before they are read, so that side is the commonest.
    "page": tuple((h, w) for h in range(128, 193, 16) for w in range(128, 193, 16) if 192 in (h, w) or 160 in (h, w)),
}
SIZES["chart"] = SIZES["page"]
SMALLEST = {"word": (16, 64), "line": (16, 96), "lines": (48, 112), "page": (112, 128), "chart": (112, 128)}
LARGEST = 512


@dataclass(frozen=True)
class Document:
    """A page as an image with everything that is known about it."""

    image: np.ndarray  # (height, width, 3) uint8
    text: str  # in reading order, lines joined by "\n"; of a chart its table, see ``omni.data.charts``
    qa: tuple[tuple[str, str], ...]  # questions and their answers as printed
    glyphs: tuple[Glyph, ...]  # what is printed, spaces left out; in the order of ``text`` except on charts
    reading: tuple[Glyph, ...]  # each character of ``text`` but the spaces, where it is read: of a value, at its mark
    labels: tuple[Label, ...]  # what names the rows of a table, form or chart
    tips: tuple[Tip, ...]  # where the values of a chart are shown
    tints: tuple[Tip, ...]  # where its colours are
    kind: str  # a key of ``KINDS`` or ``CHARTS``, or the level for anything less than a page
    rows: tuple[int, int] | None = None  # lines of ``text`` that are a table or a list: the first, and that behind

    def squares(self, side: int) -> int:
        """How many squares of ``side`` pixels the page has."""
        height, width = self.image.shape[:2]
        return height // side * (width // side)

    def square(self, place: Glyph | Tip, side: int) -> int | None:
        """In which of those, row by row, a place lies; None outside of the page."""
        height, width = self.image.shape[:2]
        if not (0 <= place.x < width and 0 <= place.y < height):
            return None
        return int(place.y) // side * (width // side) + int(place.x) // side


def sample_document(seed: int, level: str = "page", size: tuple[int, int] | None = None) -> Document:
    """Draw the document of a seed.

    Args:
        seed: any integer; the same seed, level and size give the same document.
        level: "word" (one to three words), "line", "lines" (three lines) or "page" (one of eight kinds)
            or "chart" (one of five).
        size: (height, width) in pixels, multiples of 16; drawn from ``SIZES[level]`` if not given.

    Raises:
        ValueError: unknown level, or a size that is not a multiple of 16 or out of bounds for the level.
    """
    _check(level, size)
    rng = Random(f"{level} {seed}")
    height, width = rng.choice(SIZES[level])
    height, width = size or (height, width)
    if level in ("page", "chart"):
        return _page(rng, height, width, level)
    return {"word": _word, "line": _line, "lines": _lines}[level](rng, height, width)


def _check(level: str, size: tuple[int, int] | None) -> None:
    if level not in LEVELS:
        raise ValueError(f"level is {level!r}; it must be one of {', '.join(LEVELS)}")
    if size is None:
        return
    smallest = SMALLEST[level]
    for name, value, least in zip(("height", "width"), size, smallest, strict=True):
        if value % 16 or not least <= value <= LARGEST:
            raise ValueError(f"{name} is {value}; for {level!r} it must be a multiple of 16 from {least} to {LARGEST}")


def _page(rng: Random, height: int, width: int, level: str) -> Document:
    """A page or chart with all its print inside: one of a thousand, turned on narrow paper, is drawn again."""
    draw = {"page": _draw_page, "chart": _draw_chart}[level]
    while True:
        document = draw(rng, height, width)
        if all(0 < glyph.x < width and 3 < glyph.y < height - 3 for glyph in document.glyphs):
            return document


def _draw_page(rng: Random, height: int, width: int) -> Document:
    kind = rng.choice(tuple(KINDS))
    page = Page(rng, height, width, sample_style(rng, height, width))
    questions = Questions(rng)
    KINDS[kind](page, questions)
    if len(questions.asked) < 4 or rng.random() < 0.3:
        questions.ask(("What is in the last line?", "What does the last line say?"), page.lines[-1])
    return _finish(page, questions.choose(rng.randint(4, 8)), kind)


def _draw_chart(rng: Random, height: int, width: int) -> Document:
    kind = rng.choice(tuple(CHARTS))
    page = Page(rng, height, width, sample_style(rng, height, width))
    questions = Questions(rng)
    CHARTS[kind](page, questions)
    return _finish(page, questions.choose(rng.randint(4, 8)), kind)


def _finish(page: Page, qa: tuple[tuple[str, str], ...], kind: str) -> Document:
    image, text = page.finish(), "\n".join(page.lines)
    known = map(tuple, (page.glyphs, page.reading, page.labels, page.tips, page.tints))
    return Document(image, text, qa, *known, kind, page.rows)


def _strip(rng: Random, height: int, width: int, rows: int) -> Page:
    """An empty page of ``rows`` lines somewhere in a low image, hardly turned so that no line leaves it."""
    tilt = min(2.5, 40 * (height - 16 * rows) / width)
    style = sample_style(rng, height, width, largest=13 if height > 16 * rows else 12, tilt=max(0.0, tilt))
    pitch = min(max(style.pitch, 14), (height - 1) / rows) if rows > 1 else 15
    style = replace(style, pitch=pitch, margin=rng.uniform(2, 4))
    page = Page(rng, height, width, style)
    slack = height - rows * pitch
    page.top = slack / 2 + rng.uniform(-0.4, 0.4) * slack * (0.4 if style.angle else 0.9)
    return page


def _fill(page: Page, most: int, face: str) -> str:
    """Random words, at most ``most`` and as many as fit in one line."""
    line = page.fit(lambda: words.token(page.rng), page.span, face)
    for _ in range(most - 1):
        longer = f"{line} {words.token(page.rng)}"
        if page.measure(longer, face) <= page.span:
            line = longer
    return line


def _place(page: Page, text: str, face: str) -> None:
    """Write a line of words anywhere it fits."""
    x = page.left + page.rng.choice((0, page.rng.random())) * (page.span - page.measure(text, face))
    page.row(Cell(text, x), face=face, bar=page.rng.random() < 0.06)


def _word(rng: Random, height: int, width: int) -> Document:
    page = _strip(rng, height, width, 1)
    face = rng.choice(("regular", "regular", "regular", "bold", "italic"))
    _place(page, _fill(page, rng.choice((1, 1, 2, 3)), face), face)
    return _finish(page, (), "word")


def _line(rng: Random, height: int, width: int) -> Document:
    page = _strip(rng, height, width, 1)
    if rng.random() < 0.3:
        return _finish(page, _pairs(page, 1), "line")
    face = rng.choice(("regular", "regular", "regular", "bold", "italic"))
    _place(page, _fill(page, rng.randint(2, 6), face), face)
    return _finish(page, (), "line")


def _lines(rng: Random, height: int, width: int) -> Document:
    page = _strip(rng, height, width, 3)
    if rng.random() < 0.5:
        return _finish(page, _pairs(page, 3), "lines")
    face = rng.choice(("regular", "regular", "regular", "bold", "italic"))
    for _ in range(3):
        _place(page, _fill(page, rng.randint(1, 6), face), face)
    ends = (("first", 0), ("last", -1))
    qa = tuple((f"What is in the {name} line?", page.lines[i]) for name, i in ends if len(page.lines[i]) <= MAX_ANSWER)
    return _finish(page, qa, "lines")


def _pairs(page: Page, count: int) -> tuple[tuple[str, str], ...]:
    """``count`` lines of a label and a value, and a question for each."""
    rng, questions = page.rng, Questions(page.rng)

    def label() -> str:
        return words.item(rng) if rng.random() < 0.5 else words.pseudo_word(rng, 2).capitalize()

    labels = distinct(lambda: page.fit(label, page.span * 0.5), count)
    priced = rng.random() < 0.4
    for name in labels:
        make = (lambda: f"{words.amount(rng):.2f}") if priced else lambda: words.value(rng)
        value = page.fit(make, page.span - page.measure(f"{name}:  ") - 8)
        page.pair(name if priced else f"{name}:", value)
        if priced:
            questions.ask(("How much is the {}?", "What is the price of {}?", "What does {} cost?"), value, name)
        else:
            questions.ask_label(name, value)
    return questions.choose()
