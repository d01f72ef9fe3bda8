"""What a chart shows, written down as a table and summed up, and the questions about it.

Table, Mark ──> close ──> lines of the transcription, questions and answers, yes/no questions
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from random import Random
from typing import NamedTuple

from omni.data import vocabulary as words
from omni.data.document_questions import Questions
from omni.data.page import Glyph, Label, Page, Tip


class Mark(NamedTuple):
    """What stands for a value, and the words for having the largest and the smallest one."""

    noun: str
    most: tuple[str, ...]
    least: tuple[str, ...]


BAR = Mark("bar", ("largest", "highest"), ("smallest", "lowest"))
FLAT_BAR = Mark("bar", ("largest", "longest"), ("smallest", "shortest"))  # the highest one would be the topmost
SLICE = Mark("slice", ("largest", "biggest"), ("smallest",))
POINT = Mark("point", ("largest", "highest"), ("smallest", "lowest"))


@dataclass(frozen=True)
class Scale:
    """The values that a chart can show, from above 0 to ``highest``."""

    highest: float
    ticks: tuple[float, ...]  # from 0 to ``highest``; empty where no axis is drawn
    halves: bool  # whether values lie between ticks as well as on them
    unit: str
    digits: int  # after the point

    def show(self, value: float) -> str:
        return f"{value:.{self.digits}f}{self.unit}"

    def draw(self, rng: Random) -> float:
        if not self.ticks:
            return round(self.highest * rng.uniform(0.12, 1), self.digits)
        half, last = rng.randint(1, 2 * len(self.ticks) - 2), 2 * len(self.ticks) - 2
        return round(self.highest * (half if self.halves else half + half % 2) / last, self.digits)


@dataclass(frozen=True)
class Table:
    """What a chart shows: ``values[i][j]`` belongs to ``names[i]`` and ``series[j]``."""

    names: tuple[str, ...]
    series: tuple[str, ...]  # one empty name where there is a single one
    values: tuple[tuple[float, ...], ...]
    scales: tuple[Scale, ...]  # one a series
    axis: str = ""

    @property
    def scattered(self) -> bool:
        """Whether it has two axes, so that its two columns are no series of one thing."""
        return self.scales[0] is not self.scales[-1]

    def shown(self, i: int, j: int = 0) -> str:
        return self.scales[j].show(self.values[i][j])

    def column(self, j: int) -> list[float]:
        return [row[j] for row in self.values]


Spot = tuple[float, float]
Place = list[Spot]
"""Where a value is read: one spot, or one for each of its printed characters."""
NOWHERE: Place = [(math.nan, math.nan)]  # however the page is turned


def close(
    page: Page,
    questions: Questions,
    table: Table,
    mark: Mark,
    colors: list[list[str]],
    spots: list[list[Place]],
    upright: Sequence[int] = (),
    level: Sequence[int] = (),
) -> None:
    """Write the table down, each value as read at its place, and ask about it.

    ``upright`` and ``level`` are the first glyphs of the ticks of either axis.
    """
    columns = range(len(table.series))
    page.reading = page.glyphs[: sum(len(line.replace(" ", "")) for line in page.lines)]  # what heads the page
    if table.axis:
        page.lines.append(table.axis)
        page.reading += _printed(page, table.axis)
    tints = [row[0] if _own_colors(table, colors) else "" for row in colors]
    if len(columns) > 1:
        inks = [""] * len(columns) if table.scattered else colors[0]
        page.lines.append(_said(part for pair in zip(table.series, inks, strict=True) for part in pair))
        for name, ink in zip(table.series, inks, strict=True):
            page.reading += _printed(page, name)
            page.reading += _at(ink, [page.glyphs[page.placed[name]][1:]])
        page.labels += [_label(page, name, (), ink) for name, ink in zip(table.series, inks, strict=True)]
    page.rows = len(page.lines), len(page.lines) + len(table.names)
    for i, (name, tint) in enumerate(zip(table.names, tints, strict=True)):
        values = tuple(table.shown(i, j) for j in columns)
        page.lines.append(_said((name, *values, tint)))
        page.labels.append(_label(page, name, values, tint))
        page.reading += page.glyphs[page.labels[-1].start : page.labels[-1].stop]
        for value, spot in zip((*values, tint), (*spots[i], spots[i][0][:1]), strict=True):
            page.reading += _at(value, spot)
        shown = [values] if table.scattered else [(value,) for value in values]
        row = len(page.labels) - 1
        for j, v in enumerate(shown):
            ticks = _tick(table, i, len(columns) - 1 if table.scattered else j, upright), _tick(table, i, j, level)
            page.tips += [Tip(row, v, colors[i][j], *spot, ticks) for spot in spots[i][j]]
    plural = "categories" if len(columns) > 1 and not table.scattered else f"{mark.noun}s"
    for line in _summary(table, mark, plural, {color for row in colors for color in row}):
        page.lines.append(line)
        page.reading += _at(line.replace(" ", ""), NOWHERE)
    if table.axis:
        questions.ask(("What is the label of the axis?", "What does the axis show?"), table.axis)
    questions.ask((f"How many {plural} are there?", f"How many {plural} are shown?"), str(len(table.names)))
    _ask_colors(questions, table, mark, colors)
    if len(columns) == 1:
        _ask_single(questions, table, mark)
    else:
        _ask_double(questions, table, mark)
    _check(questions, table, mark)


def _tick(table: Table, i: int, j: int, ticks: Sequence[int]) -> int | None:
    """The glyph of the tick at a value, or below it; None where there is no such axis."""
    if not ticks:
        return None
    return ticks[bisect_right(table.scales[j].ticks, table.values[i][j] + 1e-6) - 1]


def _summary(table: Table, mark: Mark, plural: str, used: set[str]) -> list[str]:
    """How many there are, the colour that all have, and of each series the largest and the smallest."""
    extremes = [
        _said((series, *(part for _, word, i in _extremes(table, j, mark) for part in (word, table.names[i]))))
        for j, series in enumerate(table.series)
    ]
    count = _said((str(len(table.names)), plural, *(used if len(used) == 1 else ())))
    return [_said((count, *extremes))] if len(extremes) == 1 else [count, *extremes]


def _printed(page: Page, text: str) -> list[Glyph]:
    start = page.placed[text]
    return page.glyphs[start : start + len(text.replace(" ", ""))]


def _at(text: str, place: Place) -> list[Glyph]:
    spots = place * len(text) if len(place) == 1 else place
    return [Glyph(char, *spot) for char, spot in zip(text, spots, strict=True)]


def _said(parts: Iterable[str]) -> str:
    return " ".join(part for part in parts if part)


def _own_colors(table: Table, colors: list[list[str]]) -> bool:
    """Whether each name has a colour of its own."""
    return len(table.series) == 1 and len({row[0] for row in colors}) > 1


def _label(page: Page, name: str, values: tuple[str, ...], color: str) -> Label:
    """Where the name stands: for itself, or in a legend before its value."""
    start = next(at for text, at in page.placed.items() if text in (name, _said((name, *values))))
    return Label(start, start + len(name.replace(" ", "")), values, color)


def _extremes(table: Table, j: int, mark: Mark) -> list[tuple[tuple[str, ...], str, int]]:
    """Words for the largest and the smallest of a column, the first of them, and its row, where there is one alone."""
    column = table.column(j)
    found = ((mark.most, max(column)), (mark.least, min(column)))
    return [(said, said[0], column.index(value)) for said, value in found if column.count(value) == 1]


def _ask_double(questions: Questions, table: Table, mark: Mark) -> None:
    for j, series in enumerate(table.series):
        for i, name in enumerate(table.names):
            templates = ("What is {} for {}?", "What is the value of {} for {}?")
            questions.ask(templates, table.shown(i, j), series, name)
        for _, word, i in _extremes(table, j, mark):
            place = f"Which {mark.noun} has" if table.scattered else "Which category has"
            questions.ask((f"{place} the {word} {{}}?",), table.names[i], series)
    for name, values in zip(table.names, table.values, strict=True):
        if not table.scattered:
            templates = ("Which series is larger for {}?", "Which series is higher at {}?")
            questions.ask(templates, table.series[values.index(max(values))], name)


def _ask_single(questions: Questions, table: Table, mark: Mark) -> None:
    """Values, extremes, differences, sums, thresholds and, where there is a line, its steepest part."""
    rng, column, scale, noun = questions.rng, table.column(0), table.scales[0], mark.noun
    templates = ("What is the value of {}?", "How much is {}?", "What does {} show?", "What is the value for {}?")
    for i, name in enumerate(table.names):
        questions.ask(templates, table.shown(i), name)
    for said, word, i in _extremes(table, 0, mark):
        questions.ask([f"Which {noun} is the {w}?" for w in said], table.names[i])
        if rng.random() < 0.4:
            questions.ask((f"What is the {word} value?",), table.shown(i))
    first, second = rng.sample(range(len(table.names)), 2)
    pair = table.names[first], table.names[second]
    if rng.random() < 0.3 and column[first] != column[second]:
        shown = scale.show(abs(column[first] - column[second]))
        questions.ask(("What is the difference between {} and {}?", "How far apart are {} and {}?"), shown, *pair)
    if rng.random() < 0.2:
        questions.ask(("What is the sum of {} and {}?",), scale.show(column[first] + column[second]), *pair)
    order = sorted(column)
    for word, outer, inner in (("above", order[-1], order[-2]), ("below", order[0], order[1])):
        limit = round((outer + inner) / 2, scale.digits)
        if min(outer, inner) < limit < max(outer, inner) and rng.random() < 0.5:
            questions.ask((f"Which {noun} is {word} {{}}?",), table.names[column.index(outer)], scale.show(limit))
    if mark is POINT:
        for word, sign in (("rise", 1), ("fall", -1)):
            steps = [round(sign * (b - a), scale.digits) for a, b in pairwise(column)]
            if max(steps) > 0 and steps.count(max(steps)) == 1:
                i = steps.index(max(steps))
                between = f"{table.names[i]} and {table.names[i + 1]}"
                questions.ask((f"Between which points does the line {word} most?",), between)


def _ask_colors(questions: Questions, table: Table, mark: Mark, colors: list[list[str]]) -> None:
    """Colours that have names: of series, of marks, or of all of them."""
    if not all(name for row in colors for name in row):
        return
    asked = ("What color is {}?", "What is the color of {}?")
    used = {row[0] for row in colors}
    if len(table.series) > 1 and not table.scattered:
        for name, color in zip(table.series, colors[0], strict=True):
            questions.ask(asked, color, name)
            questions.ask(("Which series is {}?",), name, color)
    elif len(used) == 1:
        what = "line" if mark is POINT and not table.scattered else f"{mark.noun}s"
        questions.ask((f"What is the color of the {what}?",), colors[0][0])
    else:
        for name, (color, *_) in zip(table.names, colors, strict=True):
            questions.ask(asked, color, name)
            questions.ask((f"Which {mark.noun} is {{}}?",), name, color)


def _check(questions: Questions, table: Table, mark: Mark) -> None:
    """A yes/no question: is one larger than another, or is there one of that name?"""
    rng = questions.rng
    pairs = [(a, b) for a, b in combinations(range(len(table.names)), 2) if table.values[a][0] != table.values[b][0]]
    if len(table.series) == 1 and pairs and rng.random() < 0.6:
        a, b = rng.sample(rng.choice(pairs), 2)
        answer = "yes" if table.values[a][0] > table.values[b][0] else "no"
        question = rng.choice(("Is {} larger than {}?", "Is {} more than {}?"))
        questions.checks.append((question.format(table.names[a], table.names[b]), answer))
    else:
        what = mark.noun if len(table.series) == 1 or table.scattered else "category"
        pool = rng.choice((words.ITEMS, words.CITIES, words.FIRST_NAMES))
        questions.check((f"Is there a {what} for {{}}?",), table.names, lambda: rng.choice(pool))
