"""The document world: one seed is one page, answers are printed on it, characters stand where told."""

from collections import Counter

import numpy as np
import pytest

from omni.data.document_kinds import KINDS
from omni.data.document_questions import MAX_ANSWER
from omni.data.documents import LEVELS, SIZES, sample_document

PAGES = range(240)
STRIPS = range(120)


@pytest.fixture(scope="module")
def pages():
    return [sample_document(seed) for seed in PAGES]


@pytest.fixture(scope="module")
def everything(pages):
    return pages + [sample_document(seed, level) for level in LEVELS[:-1] for seed in STRIPS]


@pytest.mark.parametrize("level", LEVELS)
def test_same_seed_same_document(level):
    first, again, other = (sample_document(seed, level) for seed in (7, 7, 8))
    assert (first.text, first.qa, first.glyphs, first.kind) == (
        again.text,
        again.qa,
        again.glyphs,
        again.kind,
    )
    np.testing.assert_array_equal(first.image, again.image)
    assert first.text != other.text


@pytest.mark.parametrize("level", LEVELS)
def test_sizes(level):
    drawn = {sample_document(seed, level).image.shape for seed in range(150)}
    assert drawn == {(*size, 3) for size in SIZES[level]}
    assert all(side % 16 == 0 for shape in drawn for side in shape[:2])
    height, width = SIZES[level][0][0] + 16, SIZES[level][0][1] + 32
    document = sample_document(3, level, (height, width))
    assert document.image.shape == (height, width, 3)
    assert document.image.dtype == np.uint8


def test_every_kind_is_drawn(pages):
    assert set(Counter(page.kind for page in pages)) == set(KINDS)


def test_glyphs_spell_the_text_and_stay_inside(everything):
    for document in everything:
        height, width = document.image.shape[:2]
        assert "".join(glyph.char for glyph in document.glyphs) == "".join(document.text.split())
        assert all(0 < glyph.x < width and 3 < glyph.y < height - 3 for glyph in document.glyphs)


def test_glyphs_stand_on_ink(everything):
    """Letters have ink within two pixels of their centre; half a line up, between lines, most have none."""
    on, above = [], []
    for document in everything:
        gray = document.image.astype(float).mean(2)
        for glyph in document.glyphs:
            if glyph.char.isalnum():
                on.append(_contrast(gray, glyph.x, glyph.y))
                above.append(_contrast(gray, glyph.x, glyph.y - 7.5, reach=1))
    assert np.mean(np.array(on) > 40) > 0.99
    assert np.median(above) < 0.4 * np.median(on)


def _contrast(gray: np.ndarray, x: float, y: float, reach: int = 2) -> float:
    row, column = int(np.clip(y, 0, gray.shape[0] - 1)), int(x)
    patch = gray[max(0, row - reach) : row + reach + 1, max(0, column - 2) : column + 3]
    return float(patch.max() - patch.min())


def test_rotation_moves_glyphs(pages):
    """On a page that is turned, the characters of a line do not share a height; there are such pages."""
    slopes = []
    for page in pages:
        line = page.glyphs[: len("".join(page.text.split("\n")[0].split()))]
        slopes.append(abs(line[-1].y - line[0].y) / max(1.0, abs(line[-1].x - line[0].x)))
    assert 0.15 < np.mean(np.array(slopes) > 0.01) < 0.6
    assert max(slopes) < 0.12  # four degrees and a keystone


def test_text_is_printable_ascii(everything):
    characters = set("".join(document.text for document in everything)) - {"\n"}
    assert all(" " <= char <= "~" for char in characters)
    assert len(characters) > 85  # nearly all 95 of them in a few hundred documents
    assert all(line == line.strip() and line for document in everything for line in document.text.split("\n"))


def test_answers_are_printed(everything):
    for document in everything:
        for question, answer in document.qa:
            assert question.endswith("?")
            assert 0 < len(answer) <= MAX_ANSWER
            counted = question.startswith("How many") and answer.isdigit()
            assert answer in document.text or counted or answer in ("yes", "no"), (
                question,
                answer,
                document.text,
            )


def test_counts_are_right(pages):
    seen = 0
    for page in pages:
        answers = dict(page.qa)
        if page.kind == "list" and "How many items are listed?" in answers:
            seen += 1
            assert int(answers["How many items are listed?"]) == page.text.count("\n")
    assert seen > 2


def test_questions_have_one_answer(everything):
    for document in everything:
        assert len({question for question, _ in document.qa}) == len(document.qa)


def test_pages_have_three_to_eight_questions(pages):
    assert all(3 <= len(page.qa) <= 8 for page in pages)


def test_yes_and_no_are_balanced_and_true(pages):
    counts = Counter()
    for page in pages:
        for question, answer in page.qa:
            opening = next((o for o in ("Is there a line for ", "Is ") if question.startswith(o)), None)
            if opening is None or not question.endswith((" on the list?", " in the table?", " in the plan?")):
                continue
            name = question.removeprefix(opening).rsplit(" ", 3)[0]
            counts[answer] += 1
            assert (name.lower() in page.text.lower()) == (answer == "yes"), (question, answer, page.text)
    assert 0.3 < counts["yes"] / counts.total() < 0.7


def test_label_questions_are_unambiguous(everything):
    """A label that is asked for starts exactly one line of a form, a card or three lines."""
    for document in everything:
        if document.kind not in ("form", "card", "lines"):
            continue
        labels = Counter(line.split(":")[0].lower() for line in document.text.split("\n") if ":" in line)
        for question, _ in document.qa:
            asked = question.removeprefix("What is the ").rstrip("?").lower()
            assert labels[asked] <= 1


def test_values_cannot_be_guessed():
    """Among the answers of many pages hardly any comes back: nothing is learned by heart."""
    answers = [a for seed in range(150) for q, a in sample_document(seed, "lines").qa]
    assert len(set(answers)) > 0.9 * len(answers)


@pytest.mark.parametrize(
    ("level", "size", "message"),
    [
        ("book", None, "level is 'book'"),
        ("page", (160, 150), "width is 150"),
        ("page", (64, 160), "height is 64"),
        ("page", (160, 4096), "width is 4096"),
        ("word", (0, 96), "height is 0"),
    ],
)
def test_bad_arguments(level, size, message):
    with pytest.raises(ValueError, match=message):
        sample_document(0, level, size)
