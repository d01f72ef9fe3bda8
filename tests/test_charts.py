"""Charts and booklets: the transcription is the table, answers follow from it, and marks stand where values say."""

import re
from collections import Counter
from itertools import pairwise
from random import Random

import numpy as np
import pytest

from omni.data import HELD_OUT_SEEDS, booklets, documents
from omni.data.booklets import GENERIC, foreign_question, sample_booklet, subjects
from omni.data.chart_questions import Scale, Table
from omni.data.charts import AXES, CHARTS, COLORS, _scale, bars
from omni.data.document_questions import MAX_ANSWER, Questions
from omni.data.documents import SIZES, sample_document
from omni.data.page import Page, sample_style

COUNT = 300


@pytest.fixture(scope="module")
def charts():
    return [sample_document(seed, "chart") for seed in range(COUNT)]


@pytest.fixture(scope="module")
def shelf():
    return [sample_booklet(seed) for seed in range(60)]


def read(text: str) -> dict:
    """The table behind a transcription: names and rows of shown values, series, axis, colours by name."""
    lines = text.split("\n")
    told = [line for line in lines[1:] if re.fullmatch(rf"\S+( \d+(\.\d)?[%k]?){{1,2}}( ({'|'.join(COLORS)}))?", line)]
    first = lines.index(told[0])
    between, summary = lines[1:first], lines[first + len(told) :]
    assert lines[first : first + len(told)] == told, text
    series = between[-1].split(" ") if between and " " in between[-1] else []
    colors = (
        dict(zip(series[::2], series[1::2], strict=True)) if series[1:] and set(series[1::2]) <= set(COLORS) else {}
    )
    series = list(colors) or series
    rows = [line.split(" ") for line in told]
    colors |= {row[0]: row.pop() for row in rows if row[-1] in COLORS}
    axis = between[0] if between and " " not in between[0] else None
    assert len(between) == bool(series) + bool(axis), text
    return {
        "title": lines[0],
        "axis": axis,
        "series": series,
        "names": [row[0] for row in rows],
        "colors": colors,
        "shown": [row[1:] for row in rows],
        "values": [[float(v.rstrip("%k")) for v in row[1:]] for row in rows],
        "summary": summary,
    }


def test_all_kinds_are_drawn_with_three_to_five_names(charts):
    assert set(Counter(chart.kind for chart in charts)) == set(CHARTS)
    for chart in charts:
        table = read(chart.text)
        assert 3 <= len(set(table["names"])) == len(table["names"]) <= 5, chart.text
        assert {len(row) for row in table["shown"]} == {max(1, len(table["series"]))}
        assert not set(table["series"]) & set(table["names"])


def test_values_vary(charts):
    shown = Counter(v for chart in charts for row in read(chart.text)["shown"] for v in row)
    assert len(shown) > 150
    assert max(shown.values()) < 0.06 * shown.total()
    assert {"%", "k"} <= {v[-1] for v in shown}


def test_the_last_lines_sum_the_table_up(charts):
    colored = 0
    for chart in charts:
        table = read(chart.text)
        count, *rest = table["summary"][0].split(" ")
        assert int(count) == len(table["names"])
        what, *rest = rest
        assert what in ("bars", "points", "slices", "categories")
        color = rest.pop(0) if rest and rest[0] in COLORS else None
        assert (color, table["colors"]) in ((None, table["colors"]), (color, {}))
        colored += color is not None
        own = [" ".join(rest)] if not table["series"] else table["summary"][1:]
        for j, line in enumerate(own):
            column = [row[j] for row in table["values"]]
            told = [table["series"][j]] if table["series"] else []
            for word, value in (("largest", max(column)), ("smallest", min(column))):
                if column.count(value) == 1:
                    told += [word, table["names"][column.index(value)]]
            assert line.split() == told, chart.text
        assert len(own) == max(1, len(table["series"]))
    assert colored > COUNT / 10


def solve(question: str, table: dict, kind: str) -> str | None:
    """The answer by another way than the generator's, or None for a question about looks."""
    names, shown, values, series = (table[key] for key in ("names", "shown", "values", "series"))
    row = {name: i for i, name in enumerate(names)}
    first = [v[0] for v in values]
    unit = "".join(c for c in shown[0][0] if c in "%k")
    digits = 1 if "." in shown[0][0] else 0
    if re.fullmatch(r"What is the (title|heading)\?|What is in the first line\?", question):
        return table["title"]
    if question in ("What is the label of the axis?", "What does the axis show?"):
        return table["axis"]
    if question.startswith("How many "):
        return str(len(names))
    if m := re.fullmatch(r"Is there a \w+ for (\w+)\?", question):
        return "yes" if m[1] in names else "no"
    if m := re.fullmatch(r"Is (\w+) (?:larger|more) than (\w+)\?", question):
        a, b = first[row[m[1]]], first[row[m[2]]]
        assert a != b
        return "yes" if a > b else "no"
    if (m := re.fullmatch(r"What (?:color is|is the color of) (\w+)\?", question)) and m[1] in table["colors"]:
        return table["colors"][m[1]]
    if m := re.fullmatch(rf"Which \w+ is ({'|'.join(COLORS)})\?", question):
        return next(name for name, color in table["colors"].items() if color == m[1])
    if m := re.fullmatch(r"Which series is (?:larger for|higher at) (\w+)\?", question):
        a, b = values[row[m[1]]]
        assert a != b
        return series[0] if a > b else series[1]
    if m := re.fullmatch(r"Which \w+ has the (largest|highest|smallest|lowest) (\w+)\?", question):
        column = [v[series.index(m[2])] for v in values]
        return names[column.index(alone(column, m[1]))]
    if m := re.fullmatch(r"Which \w+ is the (\w+)\?", question):
        return names[first.index(alone(first, m[1]))]
    if m := re.fullmatch(r"What is the (\w+) value\?", question):
        return shown[first.index(alone(first, m[1]))][0]
    if m := re.fullmatch(r"What is the sum of (\w+) and (\w+)\?", question):
        return f"{first[row[m[1]]] + first[row[m[2]]]:.{digits}f}{unit}"
    if m := re.fullmatch(r"(?:What is the difference between|How far apart are) (\w+) and (\w+)\?", question):
        return f"{abs(first[row[m[1]]] - first[row[m[2]]]):.{digits}f}{unit}"
    if m := re.fullmatch(r"Which \w+ is (above|below) ([\d.]+)[%k]?\?", question):
        limit, sign = float(m[2]), 1 if m[1] == "above" else -1
        (name,) = [n for n, v in zip(names, first, strict=True) if sign * v > sign * limit]
        assert limit not in first
        return name
    if m := re.fullmatch(r"Between which points does the line (rise|fall) most\?", question):
        assert kind == "line"
        steps = [round((b - a) * (1 if m[1] == "rise" else -1), 3) for a, b in pairwise(first)]
        assert steps.count(max(steps)) == 1
        i = steps.index(max(steps))
        return f"{names[i]} and {names[i + 1]}"
    if series and (m := re.fullmatch(r"What is (?:the value of )?(\w+) for (\w+)\?", question)):
        return shown[row[m[2]]][series.index(m[1])]
    if m := re.fullmatch(r"(?:What is the value (?:of|for)|How much is|What does) (\w+)(?: show)?\?", question):
        return shown[row[m[1]]][0]
    assert re.search(r"color|Which (\w+) is (\w+)\?", question), question
    return None


def alone(column: list[float], word: str) -> float:
    found = max(column) if word in ("largest", "highest", "longest", "biggest") else min(column)
    assert column.count(found) == 1
    return found


def test_answers_follow_from_the_table(charts):
    solved = 0
    for chart in charts:
        table = read(chart.text)
        assert 3 <= len(chart.qa) <= 8
        assert len({question for question, _ in chart.qa}) == len(chart.qa)
        for question, answer in chart.qa:
            assert 0 < len(answer) <= MAX_ANSWER
            right = solve(question, table, chart.kind)
            if right is None:
                assert answer in COLORS or question.rstrip("?").split()[-1] in COLORS
            else:
                solved += 1
                assert answer == right, (question, answer, right, chart.text)
    assert solved > 4 * COUNT


def test_yes_and_no_are_balanced():
    answers = Counter(a for s in range(600) for q, a in sample_document(s, "chart").qa if q.startswith("Is "))
    assert 0.38 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.62


def test_colours_are_the_drawn_ones(charts):
    """What is called red is nearest to red among the colours, somewhere on the page, and large enough to be seen."""
    for chart in charts:
        for question, answer in chart.qa:
            color = answer if answer in COLORS else question.rstrip("?").split()[-1]
            if color not in COLORS:
                continue
            pixels = chart.image.reshape(-1, 3).astype(float)
            wanted = np.array(COLORS[color], float)
            # Light scales all three channels alike, so the direction of a colour stays.
            aligned = (pixels @ wanted) / (np.linalg.norm(pixels, axis=1) * np.linalg.norm(wanted) + 1e-6)
            assert (aligned > 0.985).sum() >= 12, (question, answer)


def test_charts_print_names_title_and_nothing_outside(charts):
    for chart in charts:
        height, width = chart.image.shape[:2]
        printed = Counter(glyph.char for glyph in chart.glyphs)
        table = read(chart.text)
        need = Counter(
            "".join([table["title"], table["axis"] or "", *table["series"], *table["names"]]).replace(" ", "")
        )
        assert not need - printed, (chart.kind, chart.text)
        assert all(0 < glyph.x < width and 3 < glyph.y < height - 3 for glyph in chart.glyphs)


def test_unprinted_values_have_an_axis_with_ticks(charts):
    """Digits beyond those of the names are printed on every chart: the values, or the labels of ticks."""
    for chart in charts:
        table = read(chart.text)
        named = Counter(c for c in "".join([table["title"], *table["series"], *table["names"]]) if c.isdigit())
        digits = Counter(glyph.char for glyph in chart.glyphs if glyph.char.isdigit()) - named
        values = Counter(c for row in table["shown"] for v in row for c in v if c.isdigit())
        assert not values - digits or digits["0"] >= 1, chart.text


def test_glyphs_stand_on_ink(charts):
    contrasts = []
    for chart in charts:
        gray = chart.image.astype(float).mean(2)
        for glyph in chart.glyphs:
            if glyph.char.isalnum():
                row, column = int(glyph.y), int(glyph.x)
                patch = gray[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
                contrasts.append(patch.max() - patch.min())
    assert np.mean(np.array(contrasts) > 40) > 0.99


def test_texts_do_not_overlap(charts):
    crowded = 0
    for chart in charts:
        points = np.array([(glyph.x, glyph.y) for glyph in chart.glyphs])
        apart = np.abs(points[:, None] - points[None])
        rows = (apart[..., 1] > 0.6) & (apart[..., 1] < 6.5) & (apart[..., 0] < 4)
        same = (apart[..., 1] <= 0.6) & (apart[..., 0] < 1.5) & ~np.eye(len(points), dtype=bool)
        crowded += bool((rows | same).any())
    assert crowded <= 0.01 * COUNT, crowded


def test_values_on_an_axis_lie_on_a_grid_line_or_halfway():
    rng = Random(3)
    page = Page(rng, 160, 160, sample_style(rng, 160, 160))
    for upright in (True, False) * 60:
        scale = _scale(page, 110, upright=upright)
        step = scale.ticks[1]
        for _ in range(20):
            value = scale.draw(rng)
            halves = value / step * 2
            assert 0 < value <= scale.highest
            assert abs(halves - round(halves)) < 1e-6
            assert scale.halves or round(halves) % 2 == 0
            assert abs(float(scale.show(value).rstrip("%k")) - value) < 1e-9


def test_bars_are_as_high_as_their_values():
    """On flat pages without weather the heights of the bars have the ratio of the values."""
    seen = 0
    for seed in range(60):
        rng = Random(seed)
        style = sample_style(rng, 160, 192, tilt=0)
        page = Page(rng, 160, 192, style)
        bars(page, Questions(rng))
        table = read("\n".join(page.lines))
        pixels = np.asarray(page.image)
        tallest = [longest_run((pixels == color).all(-1)) for color in COLORS.values()]
        if len(table["series"]) != 2 or min(sorted(tallest)[-2:]) < 12:
            continue
        seen += 1
        expected = sorted(max(v[j] for v in table["values"]) for j in range(2))
        low, high = sorted(tallest)[-2:]
        assert abs(low / high - expected[0] / expected[1]) < 0.03, (seed, table)
    assert seen > 5


def longest_run(mask: np.ndarray) -> int:
    """The most neighbouring pixels of a mask that stand above one another."""
    best = run = np.zeros(mask.shape[1], int)
    for row in mask:
        run = (run + 1) * row
        best = np.maximum(best, run)
    return int(best.max())


def test_a_table_shows_each_column_in_its_unit():
    tons, share = Scale(10, (0, 5, 10), False, "", 0), Scale(1, (0, 0.2), True, "%", 1)
    table = Table(("A", "B"), AXES[:2], ((5, 0.1), (10, 0.2)), (tons, share))
    assert [table.shown(1, j) for j in range(2)] == ["10", "0.2%"]
    assert table.scattered
    assert not Table(("A",), ("",), ((5,),), (tons,)).scattered


def test_small_and_large_charts_are_drawn():
    for size in ((112, 128), (128, 128), (256, 224)):
        assert all(sample_document(seed, "chart", size).image.shape == (*size, 3) for seed in range(30))


# -- booklets --------------------------------------------------------------------------------------------------------


def test_same_seed_same_booklet():
    first, again, other = sample_booklet(4), sample_booklet(4), sample_booklet(5)
    assert first.qa == again.qa != other.qa
    for page, same in zip(first.pages, again.pages, strict=True):
        assert page.text == same.text
        np.testing.assert_array_equal(page.image, same.image)


def test_booklets_have_pages_of_one_size_and_their_questions(shelf):
    assert {len(booklet.pages) for booklet in shelf} == {2, 3, 4, 5, 6}
    assert len({page.kind for booklet in shelf for page in booklet.pages}) > 10
    for booklet in shelf:
        (shape,) = {page.image.shape for page in booklet.pages}
        assert shape[:2] in SIZES["page"]
        assert 4 <= len(booklet.qa) <= 8
        assert len({question for question, _, _ in booklet.qa}) == len(booklet.qa)
        for question, answer, number in booklet.qa:
            assert (question, answer) in booklet.pages[number - 1].qa


def test_a_question_names_what_only_its_page_prints(shelf):
    for booklet in shelf:
        for question, _, number in booklet.qa:
            own = booklet.pages[number - 1]
            named = subjects(question, own)
            assert any(word in own.text.casefold() for word in named)
            for other in booklet.pages:
                assert other is own or not any(word in other.text.casefold() for word in named)


def test_foreign_questions_are_foreign():
    rng, found = Random(0), 0
    documents = [sample_document(seed, ("page", "chart")[seed % 2]) for seed in range(120)]
    for document, other in pairwise(documents):
        question = foreign_question(document, other, rng)
        if question is None:
            continue
        found += 1
        answers = dict(other.qa)
        assert answers[question] not in ("yes", "no")
        assert question not in dict(document.qa)
        assert not re.search(r"title|heading|first line|last line|How many (?!\w+ were bought)", question), question
        assert not any(word in document.text.casefold() for word in subjects(question, other))
    assert found > 80
    assert foreign_question(documents[0], documents[0], rng) is None


def test_generic_words_cover_all_forms_of_questions():
    """A word of a question is generic or printed on its page: no form of a question passes for a name."""
    for seed in range(400):
        for level in ("page", "chart"):
            document = sample_document(seed, level)
            for question, answer in document.qa:
                if answer in ("yes", "no"):
                    continue
                words = re.findall(r"[a-z]+", question.casefold())
                missing = [w for w in words if w not in GENERIC and w not in document.text.casefold()]
                assert not missing, (missing, question, document.text)


def test_pages_of_held_out_booklets_are_held_out(monkeypatch):
    drawn = []

    def noted(seed, *args):
        drawn.append(seed)
        return documents.sample_document(seed, *args)

    monkeypatch.setattr(booklets, "sample_document", noted)
    sample_booklet(17)
    assert all(seed in HELD_OUT_SEEDS for seed in drawn)
    drawn.clear()
    sample_booklet(1_000_017)
    assert drawn
    assert not any(seed in HELD_OUT_SEEDS for seed in drawn)


@pytest.mark.parametrize("pages", [0, 1, 7])
def test_number_of_pages_is_checked(pages):
    with pytest.raises(ValueError, match=f"pages is {pages}"):
        sample_booklet(0, pages)
    assert len(sample_booklet(0, 3).pages) == 3
