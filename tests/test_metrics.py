"""Text metrics against values worked out by hand."""

import pytest

from omni.metrics import anls, character_accuracy, exact_match, levenshtein, relaxed_accuracy


@pytest.mark.parametrize(
    ("left", "right", "distance"),
    [
        ("", "", 0),
        ("abc", "", 3),
        ("", "abc", 3),
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("same", "same", 0),
        ("ab", "ba", 2),
    ],
)
def test_levenshtein(left, right, distance):
    assert levenshtein(left, right) == distance
    assert levenshtein(right, left) == distance


@pytest.mark.parametrize(
    ("prediction", "references", "score"),
    [
        ("12.50", ["12.50"], 1.0),
        ("  KELVO\n Tools ", ["kelvo tools"], 1.0),  # case and white space do not count
        ("12.60", ["12.50"], 0.8),  # one of five
        ("abcd", ["abxy"], 0.5),  # exactly at the threshold counts
        ("abcde", ["abxyz"], 0.0),  # 0.4 is below it
        ("cat", ["dog", "cats"], 0.75),  # the best reference
        ("", ["x"], 0.0),
        ("", [""], 1.0),
        ("12.50 and more words", ["12.50"], 0.0),
    ],
)
def test_anls(prediction, references, score):
    assert anls(prediction, references) == pytest.approx(score)


@pytest.mark.parametrize(
    ("prediction", "references", "score"),
    [("Oslo", ["oslo "], 1.0), ("Oslo", ["Rome", "OSLO"], 1.0), ("Oslo.", ["Oslo"], 0.0), ("", ["x"], 0.0)],
)
def test_exact_match(prediction, references, score):
    assert exact_match(prediction, references) == score


@pytest.mark.parametrize(
    ("prediction", "references", "score"),
    [
        ("105", ["100"], 1.0),  # 5 % off
        ("95", ["100"], 1.0),
        ("105.1", ["100"], 0.0),
        ("-105", ["-100"], 1.0),
        ("100", ["-100"], 0.0),
        ("12%", ["0.12"], 1.0),
        ("12", ["12%"], 0.0),
        ("0.0", ["0"], 0.0),  # a target of zero is compared as text
        ("0", ["0"], 1.0),
        ("Blue", ["blue"], 1.0),
        ("blue", ["12"], 0.0),
        ("nan", ["nan"], 1.0),  # not a number: text
        ("inf", ["12"], 0.0),
        ("7", ["9", "7.2"], 1.0),
    ],
)
def test_relaxed_accuracy(prediction, references, score):
    assert relaxed_accuracy(prediction, references) == score


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("Total 12.50", "Total 12.50", 1.0),
        ("total 12.50", "Total 12.50", 1 - 1 / 11),
        ("abcd", "ab", 0.0),
        ("completely wrong and long", "xy", 0.0),  # not below 0
        ("", "abc", 0.0),
        ("", "", 1.0),
        ("x", "", 0.0),
    ],
)
def test_character_accuracy(prediction, reference, score):
    assert character_accuracy(prediction, reference) == pytest.approx(score)


@pytest.mark.parametrize("metric", [anls, exact_match, relaxed_accuracy])
@pytest.mark.parametrize("references", ["12.50", []])
def test_references_must_be_a_list(metric, references):
    with pytest.raises(ValueError, match="references must be a list"):
        metric("12.50", references)
