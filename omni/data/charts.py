"""Small printed charts: five kinds, each a function that draws one and asks about it.

A chart is a table in disguise: names, one or two series of values, a unit. The table is drawn first (``Scale`` says
which values there can be), then marks, axis and labels are placed around it, then it is written down as the
transcription, which a reader says aloud before it answers:

    Kelvo sales          the title as printed
    Tons                 the title of the axis, if there is one
    North red South blue the series, if there are two (of a dot plot: the axis to the right, the axis upwards)
    Apples 30 45         a line for each name
    3 categories         how many there are
    North largest Pears smallest Apples

Colours are told where each series, or each name, has its own: "Apples 30 red". Of a single series the last lines are
one, with the colour that all marks have: "3 bars red largest Pears smallest Apples".

A value is either printed at its mark or read from an axis; then it lies on a grid line or halfway between two. So the
transcription holds values that are not printed and leaves out the labels of ticks; ``Page.glyphs`` are what is printed.
Lengths are in final pixels.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random
from typing import NamedTuple

from omni.data import vocabulary as words
from omni.data.chart_questions import BAR, FLAT_BAR, POINT, SLICE, Place, Scale, Spot, Table, close
from omni.data.document_kinds import distinct, heading, title
from omni.data.document_questions import Questions
from omni.data.page import Cell, Color, Page, Tip

COLORS: dict[str, Color] = {
    "red": (214, 48, 44),
    "blue": (52, 96, 214),
    "green": (44, 150, 66),
    "orange": (242, 142, 34),
    "purple": (136, 62, 176),
    "pink": (240, 140, 180),
    "gray": (134, 134, 134),
    "brown": (130, 82, 44),
}
STEPS = {0.2: True, 1: False, 2: True, 5: False, 10: True, 20: True, 50: True, 100: True}  # may values lie halfway?
UNITS = ("", "", "", "%", "%", "k")
AXES = ("Tons", "Euro", "Visits", "Hours", "Sales", "Points", "Miles", "Litres", "Weight", "Price", "Height", "Score")
TURNS = (
    words.MONTHS,
    ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"),
    ("Q1", "Q2", "Q3", "Q4"),
    tuple(str(year) for year in range(1998, 2036)),
)
SWATCH, TICK = 7, 3  # side of a colour in a legend; from an axis to its labels
LEAST = 3  # names in a chart


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Box") -> bool:
        apart = self.left >= other.right or other.left >= self.right or self.top >= other.bottom
        return not (apart or other.top >= self.bottom)


# -- the five kinds --------------------------------------------------------------------------------------------------


def bars(page: Page, questions: Questions) -> None:
    """Upright bars over names, one or two to a name."""
    rng = page.rng
    series, inks, axis = _open(page, questions, 0.3)
    printed = len(series) == 1 and rng.random() < 0.5
    page.top += page.style.pitch + 1 if printed else page.style.size / 2 + 1
    box = Box(page.left, page.top, page.right, page.bottom - page.style.pitch)
    scale = _scale(page, box.bottom - box.top, upright=True, free=printed and rng.random() < 0.6)
    box = _beside_ticks(page, box, scale)
    names = _names_below(page, box, page.measure(scale.show(scale.highest)) if printed else 0, series)
    table = Table(names, series, _values(rng, names, scale, len(series)), (scale,) * len(series), axis)
    colors = _paint(inks, len(series), len(names))
    ticks = _grid(page, box, scale)
    slot = (box.right - box.left) / len(names)
    wide = slot * rng.uniform(0.5, 0.75) / len(series)
    spots: list[list[Place]] = [[] for _ in names]
    for i, name in enumerate(names):
        middle = box.left + slot * (i + 0.5)
        _put(page, name, middle, page.bottom - page.style.pitch / 2)
        for j, value in enumerate(table.values[i]):
            x, y = middle + (j - len(series) / 2) * wide, _up(box, scale, value)
            _fill(page, Box(x, y, x + wide, box.bottom), _rgb(page, colors[i][j]))
            _tint(page, colors[i][j], (x + wide / 2, y), (x + wide / 2, box.bottom))
            spots[i].append([(x + wide / 2, y)])
            if printed:
                spots[i][j] = _put(page, scale.show(value), middle, y - page.style.pitch / 2, clear=True)
    _axes(page, box, bool(scale.ticks), True)
    close(page, questions, table, BAR, colors, spots, ticks)


def hbars(page: Page, questions: Questions) -> None:
    """Bars to the right of their names."""
    rng, size = page.rng, page.style.size
    series, inks, axis = _open(page, questions, 0.3)
    free = rng.random() < 0.35 and page.bottom - page.top >= LEAST * len(series) * page.style.pitch
    bottom = page.bottom - (0 if free else page.style.pitch + TICK)
    count = _count(rng, bottom - page.top, page.style.pitch * (2 if free and len(series) == 2 else 1.2))
    names = tuple(_names(page, count, page.span * 0.36, taken=series))
    left = page.left + max(map(page.measure, names)) + TICK + 1
    slot = (bottom - page.top) / count
    thick = slot * rng.uniform(0.55, 0.8) / len(series)
    printed = free or (rng.random() < 0.25 and slot >= size * len(series))
    if printed and len(series) == 2:
        thick = max(thick, size - 1)
    right = page.right - page.measure("888%" if printed else "8%")
    box = Box(left, page.top, right, bottom)
    scale = _scale(page, right - left, upright=False, free=free)
    table = Table(names, series, _values(rng, names, scale, len(series)), (scale,) * len(series), axis)
    colors = _paint(inks, len(series), count)
    ticks = _grid(page, box, scale, upright=False)
    spots: list[list[Place]] = [[] for _ in names]
    for i, name in enumerate(names):
        middle = box.top + slot * (i + 0.5)
        _put(page, name, left - TICK, middle, "r")
        for j, value in enumerate(table.values[i]):
            x, y = _along(box, scale, value), middle + (j - len(series) / 2) * thick
            _fill(page, Box(left, y, x, y + thick), _rgb(page, colors[i][j]))
            _tint(page, colors[i][j], (x, y + thick / 2), (left, y + thick / 2))
            spots[i].append([(x, y + thick / 2)])
            if printed:
                spots[i][j] = _put(page, scale.show(value), x + 2, y + thick / 2, "l", clear=True)
    _axes(page, box, True, bool(scale.ticks))
    close(page, questions, table, FLAT_BAR, colors, spots, (), ticks)


def line(page: Page, questions: Questions) -> None:
    """One or two lines with a marker at every value."""
    rng, pitch = page.rng, page.style.pitch
    series, inks, axis = _open(page, questions, 0.35)
    printed = len(series) == 1 and rng.random() < 0.4
    page.top += pitch + 3 if printed else page.style.size / 2 + 1
    box = Box(page.left, page.top, page.right, page.bottom - pitch)
    scale = _scale(page, box.bottom - box.top, upright=True, free=printed and rng.random() < 0.5)
    box = _beside_ticks(page, box, scale)
    names = _names_below(page, box, page.measure(scale.show(scale.highest)) if printed else 0, series, turns=0.75)
    table = Table(names, series, _values(rng, names, scale, len(series)), (scale,) * len(series), axis)
    colors = [inks[: len(series)] for _ in names]
    ticks = _grid(page, box, scale)
    _axes(page, box, bool(scale.ticks), True)
    slot = (box.right - box.left) / len(names)
    spots: list[list[Place]] = [[] for _ in names]
    for j in range(len(series)):
        points = [(box.left + slot * (i + 0.5), _up(box, scale, v)) for i, v in enumerate(table.column(j))]
        flat = [(x * page.scale, y * page.scale) for x, y in points]
        page.draw.line(flat, fill=_rgb(page, inks[j]), width=round(1.5 * page.scale))
        for start, end in pairwise(points):
            _tint(page, inks[j], start, end)
        for x, y in points:
            _marker(page, x, y, _rgb(page, inks[j]), square=j == 1)
        for i, (x, y) in enumerate(points if printed else ()):
            before, after = points[max(i - 1, 0)][1], points[min(i + 1, len(points) - 1)][1]
            below = before <= y >= after and y + pitch + 3 < box.bottom
            aside = 0.0 if below else (after < y < before or (before < y < after and -1)) * 0.45
            wide = page.measure(table.shown(i))
            beside = x - aside * wide, y + (1 if below else -1) * (pitch / 2 + 2)
            spots[i].append(_put(page, table.shown(i), *beside, clear=True))
        for own, point in zip(() if printed else spots, () if printed else points, strict=True):
            own.append([point])
    for i, name in enumerate(names):
        _put(page, name, box.left + slot * (i + 0.5), page.bottom - pitch / 2)
    close(page, questions, table, POINT, colors, spots, ticks)


def pie(page: Page, questions: Questions) -> None:
    """Slices of a disc, their percent in the slice or in the legend."""
    rng, pitch = page.rng, page.style.pitch
    _heading(page, questions)
    inside = rng.random() < 0.55
    count = rng.choice((3, 4, 4, 5))
    names = tuple(_names(page, count, page.span * 0.3, turns=0.1))
    shares = _shares(rng, count, 13 if inside else 6)
    scale = Scale(100, (), False, "%", 0)
    table = Table(names, ("",), tuple((share,) for share in shares), (scale,))
    entries = names if inside else tuple(f"{name} {table.shown(i)}" for i, name in enumerate(names))
    wide = max(map(page.measure, entries)) + SWATCH + 4
    high = page.bottom - page.top
    beside, below = min(page.span - wide - 4, high - 4) / 2, min(page.span, high - count * pitch - 6) / 2
    radius = min(max(beside, below), 56)
    if beside >= below:
        x, y = page.left + (page.span - wide - 4) / 2, page.top + high / 2 + 1
        first, top = page.right - wide, y - count * pitch / 2
    else:
        x, y = page.left + page.span / 2, page.top + 3 + radius
        first, top = page.left + (page.span - wide) / 2, page.bottom - count * pitch
    colors = [[name] for name in rng.sample(sorted(COLORS), count)]
    spots = _slices(page, x, y, radius, table, colors, inside)
    for i, text in enumerate(entries):
        _swatch(page, first, top + (i + 0.5) * pitch, text, colors[i][0])
        value = page.glyphs[page.placed[text] + len(names[i].replace(" ", "")) :]
        spots[i] = [[(glyph.x, glyph.y) for glyph in value]] if value else spots[i]
    close(page, questions, table, SLICE, colors, spots)


def dots(page: Page, questions: Questions) -> None:
    """Named points between two axes."""
    rng, pitch, size = page.rng, page.style.pitch, page.style.size
    _heading(page, questions)
    across, upward = rng.sample(AXES, 2)
    _put(page, upward, page.left, page.top + pitch / 2, "l")
    bottom = page.bottom - pitch
    _put(page, across, page.right, bottom + pitch / 2, "r")
    box = Box(page.left, page.top + pitch + size / 2, page.right - page.measure("8%"), bottom - pitch - TICK)
    rise = _scale(page, box.bottom - box.top, upright=True)
    box = _beside_ticks(page, box, rise)
    run = _scale(page, box.right - box.left, upright=False)
    level, upright = _grid(page, box, run, upright=False), _grid(page, box, rise)
    _axes(page, box, True, True)
    placed: dict[str, tuple[float, float]] = {}
    cells: dict[str, tuple[int, float]] = {}  # row of 16 pixels and place in it, for the order of reading
    spots: dict[str, Place] = {}
    taken: list[Box] = []
    single = rng.random() < 0.3
    wanted = rng.randint(LEAST, 5)
    ink = rng.choice(("", *COLORS))
    for attempt in range(60):
        short = single or (attempt > 40 and len(placed) < LEAST)
        name = words.letters(rng, 1) if short else _names(page, 1, page.span * 0.3, turns=0)[0]
        value = run.draw(rng), rise.draw(rng)
        x, y = _along(box, run, value[0]), _up(box, rise, value[1])
        wide = page.measure(name) + 7
        sides = [Box(x - 4, y - size / 2 - 1, x + wide, y + size / 2 + 1)]
        sides.append(Box(x - wide, sides[0].top, x + 4, sides[0].bottom))
        label = next((s for s in sides if s.left > box.left and s.right <= page.right), None)
        fresh = not any(_alike(name, other) for other in placed)
        if not label or not fresh or any(label.meets(other) for other in taken):
            continue
        placed[name], cells[name], spots[name] = value, (int(y // 16), x), [(x, y)]
        taken.append(label)
        _put(page, name, x + 5 if label is sides[0] else x - 5, y, "l" if label is sides[0] else "r", clear=True)
        _marker(page, x, y, _rgb(page, ink))
        if len(placed) == wanted:
            break
    names = tuple(sorted(placed, key=cells.__getitem__))
    table = Table(names, (across, upward), tuple(placed[name] for name in names), (run, rise))
    twice = [[spots[name]] * 2 for name in names]
    close(page, questions, table, POINT, [[ink, ink] for _ in names], twice, upright, level)


# -- what is drawn ---------------------------------------------------------------------------------------------------


def _heading(page: Page, questions: Questions) -> None:
    rng = page.rng

    def make() -> str:
        made, word = words.pseudo_word(rng), rng.choice(words.WORDS)
        forms = (f"{word} {made}", f"{made} sales", f"{words.city(rng)} {word}", f"{made} in {words.city(rng)}")
        text = rng.choice((*forms, f"{word} of {made}", f"{made} {rng.randint(1998, 2035)}"))
        return text[0].upper() + text[1:]

    heading(page, questions, title(page, make))
    page.top += 2


def _open(page: Page, questions: Questions, two: float) -> tuple[tuple[str, ...], list[str], str]:
    """Title, legend and axis title; returns the series, a colour name for each mark ("" the page's) and the axis."""
    rng = page.rng
    _heading(page, questions)
    roomy = page.height >= 144
    inks = rng.sample(sorted(COLORS), len(COLORS))
    series: tuple[str, ...] = ("",)
    if rng.random() < two and roomy:
        series = tuple(_names(page, 2, page.span / 2 - SWATCH - 6, turns=0))
        for j, name in enumerate(series):
            _swatch(page, page.left + j * page.span / 2, page.top + page.style.pitch / 2, name, inks[j])
        page.top += page.style.pitch
    elif rng.random() < 0.6:
        inks = [rng.choice(("", inks[0]))]
    axis = rng.choice(AXES) if rng.random() < 0.3 and roomy else ""
    if axis:
        _put(page, axis, page.left, page.top + page.style.pitch / 2, "l")
        page.top += page.style.pitch
    return series, inks, axis


def _paint(inks: list[str], series: int, count: int) -> list[list[str]]:
    """Names of the colours of each mark: one a series; of a single one, one for all or one a name."""
    if series > 1:
        return [inks[:series]] * count
    return [[inks[i % len(inks)]] for i in range(count)]


def _count(rng: Random, length: float, least: float) -> int:
    """How many names: three to five, of which each gets ``least`` pixels."""
    return max(LEAST, min(rng.choice((3, 4, 4, 5)), int(length // least)))


def _names_below(page: Page, box: Box, least: float, series: Sequence[str], turns: float = 0.4) -> tuple[str, ...]:
    width = box.right - box.left
    count = _count(page.rng, width, max(least + 3, page.measure("Sept") + 4))
    return tuple(_names(page, count, width / count - 4, turns, series))


def _names(page: Page, count: int, width: float, turns: float = 0.3, taken: Sequence[str] = ()) -> list[str]:
    """Names no wider than ``width``, none part of another or of one ``taken``.

    With probability ``turns`` they are months, days, quarters or years in order.
    """
    rng = page.rng
    if rng.random() < turns:
        order = rng.choice(TURNS)
        if len(order) >= count and max(map(page.measure, order)) <= width and not set(order) & set(taken):
            first = rng.randint(0, len(order) - count)
            return list(order[first : first + count])
    pool = rng.choice((words.ITEMS, words.CITIES, words.FIRST_NAMES, words.LAST_NAMES, None))

    def make() -> str:
        if pool and rng.random() < 0.6:
            return rng.choice(pool)
        return words.pseudo_word(rng, rng.choice((1, 1, 2))).capitalize()

    def short() -> str:
        return page.draw_fitting(make, width) or page.fit(lambda: words.pseudo_word(rng, 1).capitalize(), width)

    while True:
        names = distinct(short, count)
        if not any(_alike(name, other) for name in names for other in taken if other):
            return names


def _alike(name: str, other: str) -> bool:
    return name.lower() in other.lower() or other.lower() in name.lower()


def _scale(page: Page, length: float, *, upright: bool, free: bool = False) -> Scale:
    """A scale for an axis of ``length`` pixels; a ``free`` one has no ticks, for values that are printed."""
    rng, unit = page.rng, page.rng.choice(UNITS)
    if free:
        digits = int(rng.random() < 0.25)
        highest = rng.uniform(4, 9.9) if digits else rng.choice((20, 50, 99, 99, 99, 500, 999))
        return Scale(min(highest, 99) if unit == "%" else highest, (), False, unit, digits)
    step = rng.choice([s for s in STEPS if unit != "%" or s in (5, 10, 20)])
    digits = int(step < 1)
    widest = page.measure(f"{5 * step:.{digits}f}{unit}")
    most = int(length // (page.style.size + 2 if upright else widest + 5))
    if unit == "%":
        most = min(most, round(100 / step))
    count = max(2, min(most, rng.choice((3, 4, 5, 5))))
    return Scale(step * count, tuple(step * k for k in range(count + 1)), STEPS[step], unit, digits)


def _values(rng: Random, names: Sequence[str], scale: Scale, count: int) -> tuple[tuple[float, ...], ...]:
    """A row for each name; the values of a row differ, and not all rows are equal."""

    def row() -> tuple[float, ...]:
        while True:
            values = tuple(scale.draw(rng) for _ in range(count))
            if len(set(values)) == count:
                return values

    while True:
        rows = tuple(row() for _ in names)
        if len(set(rows)) > 1:
            return rows


def _shares(rng: Random, count: int, least: int) -> list[float]:
    """Whole percents of at least ``least`` that add up to 100, on some charts in fives."""
    unit = 5 if rng.random() < 0.4 else 1
    least = -(-least // unit) * unit
    free = (100 - least * count) // unit
    cuts = [0, *sorted(rng.randint(0, free) for _ in range(count - 1)), free]
    return [least + unit * (b - a) for a, b in pairwise(cuts)]


# -- drawing ---------------------------------------------------------------------------------------------------------


def _put(
    page: Page, text: str, x: float, y: float, align: str = "c", *, ink: Color | None = None, clear: bool = False
) -> Place:
    """Write at a free place, the capitals' middle at ``y``; the text is no line of the transcription.

    It is moved as far as needed to stand on the page; ``clear`` takes what was drawn there away first. Returns where
    each character stands.
    """
    wide, top = page.measure(text), page.top
    left = x - {"l": 0.0, "c": wide / 2, "r": wide}[align]
    left = max(page.left, min(left, page.right - wide))
    if clear:
        half = page.style.size / 2 - 1
        _fill(page, Box(left - 1, y - half, left + wide + 1, y + half), page.style.paper)
    page.top = y - page.style.pitch / 2
    page.placed[text] = len(page.glyphs)
    page.row(Cell(text, left), ink=ink)
    page.lines.pop()
    page.top = top
    return [(glyph.x, glyph.y) for glyph in page.glyphs[page.placed[text] :]]


def _fill(page: Page, box: Box, color: Color) -> None:
    x0, y0, x1, y1 = (round(v * page.scale) for v in box)
    page.draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), fill=color)


def _rgb(page: Page, name: str) -> Color:
    return COLORS[name] if name else page.style.accent


def _marker(page: Page, x: float, y: float, color: Color, square: bool = False) -> None:
    box = [round(v * page.scale) for v in (x - 2.5, y - 2.5, x + 2.5, y + 2.5)]
    (page.draw.rectangle if square else page.draw.ellipse)(box, fill=color)


def _swatch(page: Page, x: float, y: float, text: str, color: str) -> None:
    _fill(page, Box(x, y - SWATCH / 2, x + SWATCH, y + SWATCH / 2), COLORS[color])
    _tint(page, color, (x + SWATCH / 2, y), (x + SWATCH / 2, y))
    _put(page, text, x + SWATCH + 3, y, "l")


def _tint(page: Page, color: str, start: Spot, end: Spot) -> None:
    """Remember that there is a colour from ``start`` to ``end``."""
    steps = 1 + int(math.dist(start, end) // 8)
    shares = [(k + 0.5) / steps for k in range(steps)]
    places = [[a + (b - a) * share for a, b in zip(start, end, strict=True)] for share in shares]
    page.tints += [Tip(None, (), color, *place) for place in places if color]


def _up(box: Box, scale: Scale, value: float) -> float:
    return box.bottom - (box.bottom - box.top) * value / scale.highest


def _along(box: Box, scale: Scale, value: float) -> float:
    return box.left + (box.right - box.left) * value / scale.highest


def _beside_ticks(page: Page, box: Box, scale: Scale) -> Box:
    """The box without the room that the labels of an upright axis take."""
    wide = max((page.measure(scale.show(tick)) for tick in scale.ticks), default=-TICK)
    return box._replace(left=box.left + wide + TICK)


def _grid(page: Page, box: Box, scale: Scale, upright: bool = True) -> list[int]:
    """Grid lines with their labels, to the left or below; each line is one pixel and ends where its value lies.

    Returns the first glyph of each label.
    """
    found = []
    faint = tuple(round(0.7 * p + 0.3 * i) for p, i in zip(page.style.paper, page.style.ink, strict=True))
    for tick in scale.ticks:
        found.append(len(page.glyphs))
        if upright:
            y = _up(box, scale, tick)
            _fill(page, Box(box.left - 2, y, box.right, y + 1), faint)
            _put(page, scale.show(tick), box.left - TICK, y + 0.5, "r")
        else:
            x = _along(box, scale, tick)
            _fill(page, Box(x - 1, box.top, x, box.bottom + 2), faint)
            _put(page, scale.show(tick), x, box.bottom + TICK + page.style.pitch / 2)
    return found


def _axes(page: Page, box: Box, upright: bool, level: bool) -> None:
    if upright:
        _fill(page, Box(box.left - 1, box.top, box.left, box.bottom + 1), page.style.ink)
    if level:
        _fill(page, Box(box.left - 1, box.bottom, box.right, box.bottom + 1), page.style.ink)


def _slices(
    page: Page, x: float, y: float, radius: float, table: Table, colors: list[list[str]], inside: bool
) -> list[list[Place]]:
    """Returns where each slice's value stands, or would."""
    spots = []
    start, scale = page.rng.uniform(-90, 270), page.scale
    corners = [round(v * scale) for v in (x - radius, y - radius, x + radius, y + radius)]
    for i, (share,) in enumerate(table.values):
        end, color = start + 3.6 * share, COLORS[colors[i][0]]
        page.draw.pieslice(corners, start, end, fill=color, outline=page.style.paper, width=scale)
        for angle in range(round(start) + 6, round(end) - 5, 12):
            turn = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            rim = x + 0.9 * radius * turn[0], y + 0.9 * radius * turn[1]
            _tint(page, colors[i][0], rim, (x + 0.3 * radius * turn[0], y + 0.3 * radius * turn[1]))
        middle = math.radians((start + end) / 2)
        spot = x + 0.64 * radius * math.cos(middle), y + 0.64 * radius * math.sin(middle)
        spots.append([[spot]])
        if inside:
            dark = sum(color) < 400
            spots[i][0] = _put(page, table.shown(i), *spot, ink=(255, 255, 255) if dark else (0, 0, 0))
        start = end
    return spots


CHARTS: dict[str, Callable[[Page, Questions], None]] = {
    "bars": bars,
    "hbars": hbars,
    "line": line,
    "pie": pie,
    "dots": dots,
}
