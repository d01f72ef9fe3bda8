"""The sight world: answers and boxes agree with the picture, and what is asked is balanced."""

import re
from collections import Counter

import numpy as np
import pytest

from omni.data.scenes import COLORS, RELATIONS, SHAPES, Thing, detect, render
from omni.data.sights import (
    BOX_BINS,
    BOX_STEP,
    SIGHT_CLASSES,
    Sight,
    box,
    box_targets,
    box_text,
    sample_sight,
    sight_targets,
)
from omni.losses import IGNORED

CASES = 400


@pytest.fixture(scope="module")
def sights():
    return [sample_sight(seed) for seed in range(CASES)]


def named(sight, text):
    """The one thing that a name means."""
    words = text.split()
    (thing,) = (t for t in sight.things if t.shape == words[-1] and (len(words) == 1 or t.color == words[0]))
    return thing


def asked(sights, start):
    """(sight, the words behind `start`, answer) of each question that starts so."""
    return [
        (sight, question.removeprefix(start).removesuffix("?"), answer)
        for sight in sights
        for question, answer in sight.qa
        if question.startswith(start)
    ]


def shares(values):
    return {value: count / len(values) for value, count in Counter(values).items()}


def holds(relation, thing, origin, least=0.5):
    way = np.array([thing.x - origin.x, thing.y - origin.y])
    return way @ RELATIONS[relation] >= least * np.hypot(*way)


def test_sights_are_the_same_for_a_seed():
    first, again, other = (sample_sight(seed) for seed in (5, 5, 6))
    assert np.array_equal(first.image, again.image)
    assert (first.qa, first.things) == (again.qa, again.things)
    assert first.things != other.things


def test_pictures_show_the_things(sights):
    for sight in sights:
        found = detect(sight.image)
        assert found.background == sight.background
        assert sorted((t.shape, t.color) for t in found.things) == sorted((t.shape, t.color) for t in sight.things)


def test_boxes_are_tight_on_the_pixels(sights):
    for sight, text, answer in asked(sights, "Where is the "):
        assert re.fullmatch(r"\[\d+, \d+, \d+, \d+\]", answer)
        numbers = [int(number) for number in re.findall(r"\d+", answer)]
        assert all(number % 20 == 0 and 0 <= number <= 1000 for number in numbers)
        # The pixels nearer to the thing's colour than to the background, in a picture of it alone.
        thing = named(sight, text)
        alone = render([thing], sight.background).astype(float)
        ground, tint = alone[0, 0], np.array(COLORS[thing.color], float)
        rows, columns = np.nonzero((alone - ground) @ (tint - ground) > 0.5 * ((tint - ground) ** 2).sum())
        frame = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) * 1000 / 64
        assert np.abs(frame - numbers).max() <= 10
    assert len(asked(sights, "Where is the ")) == sum(len(sight.things) for sight in sights)


def test_box_of_a_known_square():
    square = Thing("square", "red", "", 32.0, 16.0, 8 / 0.88)  # columns 24 to 40, rows 8 to 24
    assert box(square) == (380, 120, 620, 380)
    assert box_text(box(square)) == "[380, 120, 620, 380]"
    assert box(Thing("square", "red", "", 64.0, 32.0, 16 / 0.88), 128) == (380, 120, 620, 380)


def test_counts_are_right_and_balanced(sights):
    for sight, text, answer in asked(sights, "How many "):
        kind = text.removesuffix(" are there")
        plurals = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}
        assert answer == str(sum(kind in ("things", plurals[thing.shape]) for thing in sight.things))
    counts = shares([a for _, text, a in asked(sights, "How many ") if not text.startswith("things")])
    assert set(counts) == set("01234")
    assert max(counts.values()) < 0.3
    totals = shares([a for _, text, a in asked(sights, "How many ") if text.startswith("things")])
    assert set(totals) == set("1234")
    assert max(totals.values()) < 0.5


def test_colors_and_shapes_are_right_and_balanced(sights):
    for sight, text, answer in asked(sights, "What color is the "):
        assert [answer] == [thing.color for thing in sight.things if thing.shape == text]
    for sight, text, answer in asked(sights, "What shape is "):
        assert [answer] == [thing.shape for thing in sight.things if thing.color == text]
    assert max(shares([a for _, _, a in asked(sights, "What color ")]).values()) < 0.25
    assert max(shares([a for _, _, a in asked(sights, "What shape ")]).values()) < 0.3


def test_relations_are_right_and_balanced(sights):
    confirmed = asked(sights, "Is the ")
    for sight, text, answer in confirmed:
        first, relation, second = re.fullmatch(r"(.+) (left|right|above|below)(?: of)? the (.+)", text).groups()
        assert (answer == "yes") == holds(relation, named(sight, first), named(sight, second))
    assert len(confirmed) > 0.7 * CASES
    assert 0.43 < shares([answer for _, _, answer in confirmed])["yes"] < 0.57


def test_what_lies_where_is_asked_only_if_one_thing_does(sights):
    count = 0
    for relation in RELATIONS:
        link = f"{relation} of" if relation in ("left", "right") else relation
        for sight, text, answer in asked(sights, f"What is {link} the "):
            origin = named(sight, text)
            there = [t for t in sight.things if t is not origin and holds(relation, t, origin)]
            assert there == [named(sight, answer)]
            count += 1
    assert count > CASES / 4


def test_existence_is_right_and_balanced(sights):
    answers = []
    for sight, text, answer in asked(sights, "Is there a"):
        kind = tuple(text.removeprefix("n").split())
        assert (answer == "yes") == (kind in {(thing.color, thing.shape) for thing in sight.things})
        answers.append(answer)
    assert len(answers) == CASES
    assert 0.43 < shares(answers)["yes"] < 0.57


def test_targets_name_shape_and_color():
    things = (Thing("square", "blue", "", 24.0, 24.0, 9.0), Thing("cross", "red", "", 48.0, 48.0, 5.0))
    targets = sight_targets(Sight(render(things, "white"), things, "white", ()), 16)
    assert targets.shape == (16, 2)
    assert targets[5].tolist() == [1 + SHAPES.index("square"), 1 + list(COLORS).index("blue")]
    assert not np.delete(targets, 5, 0).any()  # the cross lies on a corner and covers too little of each square


def test_targets_agree_with_the_things(sights):
    for sight in sights[:40]:
        rows = {tuple(row) for row in sight_targets(sight, 8).tolist()} - {(0, 0)}
        assert rows == {(1 + SHAPES.index(t.shape), 1 + list(COLORS).index(t.color)) for t in sight.things}
        assert all(shape < SIGHT_CLASSES[0] and color < SIGHT_CLASSES[1] for shape, color in rows)


def test_boxes_stand_at_the_centres(sights):
    for sight in sights[:40]:
        targets = box_targets(sight, 8)
        known = {int(t.y) // 8 * 8 + int(t.x) // 8: [at // BOX_STEP for at in box(t)] for t in sight.things}
        assert {i: row for i, row in enumerate(targets.tolist()) if row[0] != IGNORED} == known
        assert targets.max() < BOX_BINS


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="seed is -1"):
        sample_sight(-1)
    with pytest.raises(ValueError, match="side is 12, must divide the picture's 64 pixels"):
        sight_targets(sample_sight(0), 12)
