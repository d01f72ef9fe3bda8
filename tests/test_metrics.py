"""Metrics against values worked out by hand, and the normaliser of transcriptions against the published one."""

import random

import pytest
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from omni.metrics import (
    anls,
    box_iou,
    box_match,
    character_accuracy,
    choice_letter,
    choice_match,
    contained,
    digit_error_rate,
    exact_match,
    first_pair,
    levenshtein,
    plain_english,
    point_inside,
    relaxed_accuracy,
    without_reasoning,
    word_error_rate,
    word_errors,
)


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


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>B, surely</think>\n\nC", "C"),
        ("a</think>b</think> c ", "c"),  # up to the last
        ("plain", "plain"),
        ("<think>without an end", "<think>without an end"),
    ],
)
def test_reasoning_is_left_out(text, left):
    assert without_reasoning(text) == left


@pytest.mark.parametrize(
    ("prediction", "references", "spaces", "score"),
    [
        ("The sign says\nNO ENTRY here", ["no entry"], True, 1.0),
        ("The sign says no\nentry", ["no entry"], True, 1.0),  # a line end is a space
        ("No", ["no entry"], True, 0.0),
        ("no-entry", ["no entry"], True, 0.0),
        ("x ^ 2+1", ["x^2 + 1"], False, 1.0),
        ("x ^ 2+1", ["x^2 + 1"], True, 0.0),
        ("cat", ["dog", "AT"], True, 1.0),
    ],
)
def test_contained(prediction, references, spaces, score):
    assert contained(prediction, references, spaces) == score


CHOICES = ["red", "blue", "dark green", "black"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(C)", "C"),
        ("**D**", "D"),
        ("B. blue", "B"),
        ("C) because A was red", "C"),
        ("The answer is D.", "D"),
        ("Answer: b", "B"),
        ("A first thought, but the answer is (B)", "B"),
        ("Not option A; the correct option is C", "C"),
        ("I would say (A)", "A"),
        ("<think>A or B?</think><answer>D</answer>", "D"),
        ("<think>Answer: A</think>\nC", "C"),
        ("It is dark green", "C"),
        ("A blue one", "B"),  # the article is no letter where the text of a choice is there
        ("red or blue", None),
        ("A or B", None),
        ("E", None),  # there are four
        ("I do not know", None),
        ("", None),
    ],
)
def test_choice_letter(text, letter):
    assert choice_letter(text, CHOICES) == letter


def test_a_choice_is_right_by_letter_or_text():
    for reference in ("B", "b", "(B)", "Blue"):
        assert choice_match("The answer is B", [reference], CHOICES) == 1.0
    assert choice_match("The answer is A", ["B"], CHOICES) == 0.0
    assert choice_match("who knows", ["B"], CHOICES) == 0.0
    with pytest.raises(ValueError, match="there are 1 choices"):
        choice_letter("A", ["only"])


# -- speech ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Twenty-five DOGS, and one cat.", "25 dogs and 1 cat"),
        ("one two three", "1 2 3"),  # said one by one: they stay apart
        ("3 1 4", "3 1 4"),
        ("uh, it's um (laughs) fine [noise]", "it is fine"),
        ("won't can't don't they'd", "will not can not do not they would"),
        ("it’s", "it is"),
        ("one hundred and", "100 and"),
        ("one and two", "1 and 2"),
        ("hundred", "hundred"),
        ("", ""),
    ],
)
def test_plain_english(text, plain):
    assert plain_english(text) == plain
    assert plain_english(plain) == plain


def test_plain_english_is_whispers_where_both_have_a_rule():
    whisper = EnglishTextNormalizer({})
    rng = random.Random(0)
    said = "the dog , can't we're Mr. uh three forty-two 1,250 12% . ! he'll café (hm) [music] seventeen -- it's"
    words = said.split()
    words += ["five hundred and six", "two thousand", "one million two hundred thousand", "it 's", "y'all", "ninety"]
    for _ in range(200):
        # Numbers that follow each other are joined there and not here, so a word stands between them.
        text = " of ".join(rng.choice(words) for _ in range(rng.randint(1, 8)))
        assert plain_english(text) == whisper(text), text


@pytest.mark.parametrize(
    ("prediction", "reference", "errors"),
    [
        ("the cat sat", "the cat sat", (0, 3)),
        ("the bat sat", "the cat sat", (1, 3)),
        ("the sat", "the cat sat", (1, 3)),
        ("the big cat sat down", "the cat sat", (2, 3)),
        ("The cat's here", "the cat is here", (0, 4)),
        ("five", "5", (0, 1)),
        ("", "a b", (2, 2)),
    ],
)
def test_word_errors(prediction, reference, errors):
    assert word_errors(prediction, reference) == errors


def test_word_error_rate_is_that_of_the_corpus():
    said, meant = ["a x c d", "wrong words", "noise"], ["a b c d", "e", "(music)"]
    assert word_error_rate(said, meant) == (1 + 2) / (
        4 + 1
    )  # not the mean of 1/4 and 2; the empty reference is left out
    assert word_error_rate(["x"], [""]) is None
    assert word_error_rate(["A"], ["a"], normaliser=str) == 1.0
    with pytest.raises(ValueError, match="zip"):
        word_error_rate(["a"], [])


def test_digit_error_rate_counts_digits_alone():
    assert digit_error_rate(["well, three 1 four"], ["3 1 4"]) == 0
    assert digit_error_rate(["3 1"], ["3 1 4"]) == pytest.approx(1 / 3)
    assert digit_error_rate(["42"], ["4 2"]) == 0
    assert digit_error_rate(["seven"], ["seventeen"]) == 0.5


def test_word_error_rate_of_random_texts_is_jiwers():
    jiwer = pytest.importorskip("jiwer")
    rng = random.Random(1)
    pairs = [[" ".join(rng.choices("abcde", k=rng.randint(1, 9))) for _ in range(40)] for _ in range(2)]
    assert word_error_rate(*pairs) == pytest.approx(jiwer.wer(pairs[1], pairs[0]))


# -- places ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "right", "overlap"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),  # edges alone share nothing
        ((0, 0, 10, 10), (5, 0, 15, 10), 1 / 3),
        ((0, 0, 10, 10), (0, 0, 10, 5), 0.5),
        ((10, 10, 0, 0), (0, 0, 10, 10), 1.0),  # swapped corners
        ((0, 0, 10, 10), (20, 20, 30, 30), 0.0),
        ((3, 3, 3, 3), (3, 3, 3, 3), 1.0),
        ((3, 3, 3, 3), (4, 4, 4, 4), 0.0),
    ],
)
def test_box_iou(left, right, overlap):
    assert box_iou(left, right) == pytest.approx(overlap)
    assert box_iou(right, left) == pytest.approx(overlap)
    assert box_match(left, right) == float(overlap >= 0.5)


def test_no_box_is_wrong_and_no_box_of_other_numbers_is_taken():
    assert box_match(None, (0, 0, 1, 1)) == 0.0
    for box in ((0, 0, 1), (0, 0, 1, float("nan"))):
        with pytest.raises(ValueError, match="four finite numbers"):
            box_iou(box, (0, 0, 1, 1))


@pytest.mark.parametrize(
    ("found", "inside"),
    [
        ((5, 5), 1.0),
        ((0, 10), 1.0),
        ((11, 5), 0.0),
        ((0, 0, 10, 30), 0.0),
        ((4, 4, 30, 6), 0.0),
        ((-8, 0, 10, 10), 1.0),
    ],
)
def test_point_inside(found, inside):
    assert point_inside(found, (0, 0, 10, 10)) == inside
    assert point_inside(found, (10, 10, 0, 0)) == inside
    assert point_inside(None, (0, 0, 10, 10)) == 0.0


def test_first_pair():
    assert first_pair("at [12, 30.5] and (1, 2)") == (12, 30.5)
    assert first_pair("at 12, 30") is None
    assert first_pair("[1, 2, 3]") is None
