"""Training targets: what each token of a picture shows, the mixture of scenes, and the losses that read them."""

import math
from random import Random

import numpy as np
import pytest
import torch

from omni.data.batches import (
    IGNORED,
    THING_CLASSES,
    Encoding,
    draw_batch,
    label_targets,
    misread,
    read_batch,
    talk_batch,
    thing_targets,
)
from omni.data.charts import COLORS as CHART_COLORS
from omni.data.documents import sample_document
from omni.data.page import Label, Tip
from omni.data.scenes import COLORS, SHAPES, Request, Scene, Thing, Want, describe, sample_scene
from omni.losses import balanced, glyphs, next_token
from omni.tokenizers.bytes import ByteTokenizer


@pytest.fixture(scope="module")
def words() -> Encoding:
    t = ByteTokenizer()
    return Encoding(t.encode, t.encode_chat, t.special, patch=8, token_pixels=16, latent_pixels=8)


def test_each_square_tells_the_thing_that_covers_it():
    square = Thing("square", "blue", "", 16.0, 16.0, 8 / 0.88)  # from 8 to 24
    ring = Thing("ring", "red", "", 48.0, 48.0, 8.0)
    wants = (Want("square"), Want("ring"))
    scene = Scene(np.zeros((64, 64, 3), np.uint8), "", "two_objects", (square, ring), "white", Request(wants))
    named, shape, colour = thing_targets(scene, 8).reshape(8, 8, 3).transpose(2, 0, 1)
    inside = np.zeros((8, 8), bool)
    inside[1:3, 1:3] = True
    assert (named[inside] == 1).all()
    assert (shape[inside] == 1 + SHAPES.index("square")).all()
    assert (colour[inside] == 1 + list(COLORS).index("blue")).all()
    around = np.zeros((8, 8), bool)
    around[5:7, 5:7] = True
    assert (named[around] == 2).all()
    assert (colour[around] == 1 + list(COLORS).index("red")).all()
    assert not named[~(inside | around)].any()


def test_labels_tell_their_row_and_values():
    told = shown = 0
    for seed in range(40):
        document = sample_document(1_000_000 + seed, "chart")
        targets = label_targets(document, 16).tolist()
        named = ["".join(g.char for g in document.glyphs[label.start : label.stop]) for label in document.labels]
        lines = [
            f"{name} {' '.join((*label.values, label.color))}".split()
            for name, label in zip(named, document.labels, strict=True)
        ]
        rows = [line for line, label in zip(lines, document.labels, strict=True) if label.values]
        summed = 3 if len(rows) < len(lines) else 1  # lines behind them, where there are series or not
        assert [line.split() for line in document.text.split("\n")[-len(rows) - summed : -summed]] == rows
        for i, label in enumerate(document.labels):
            own = {"".join(chr(c + 32) for c in row[1:]) for row in targets if row[0] == ord(str(i)) - 32}
            at_tips = {_told(tip) for tip in document.tips if tip.row == i}
            assert own <= {_told(label)} | at_tips
            assert all(row[0] != IGNORED or row[-1] == IGNORED or set(row[:-2]) == {IGNORED} for row in targets)
            told += _told(label) in own
            shown += bool(at_tips & own)
    assert told > 100
    assert shown > 80


def _told(what: Label | Tip) -> str:
    values = "".join(f"{v[:4]:4}" for v in (*what.values, "", "")[:2])
    return values + (what.color[0] + what.color[-1] if what.color else "  ")


def test_a_value_is_shown_where_its_bar_ends():
    """Single bars on plain paper: the columns of one colour, from the tip down."""
    checked = 0
    for seed in range(300):
        document = sample_document(seed, "chart")
        colors = {tip.color for tip in document.tips}
        if document.kind != "bars" or len(colors) != 1 or not colors <= {"red", "green", "orange", "pink"}:
            continue
        distance = np.abs(document.image.astype(float) - CHART_COLORS[colors.pop()]).sum(-1)
        for tip in document.tips:
            column = distance[:, int(tip.x)] < 60
            if column.any():
                checked += 1
                assert np.flatnonzero(column)[0] - 20 <= tip.y <= np.flatnonzero(column)[0] + 3
    assert checked > 10


def test_colours_of_charts_are_where_they_are_said_to_be():
    """Nearest of all colours, in good light; what is printed on them may hide some."""
    names = list(CHART_COLORS)
    palette = np.array([CHART_COLORS[name] for name in names], float)
    right = []
    for seed in range(60):
        document = sample_document(seed, "chart")
        height, width = document.image.shape[:2]
        for tint in document.tints:
            assert 0 <= tint.x < width
            assert 0 <= tint.y < height
            pixel = document.image[int(tint.y), int(tint.x)]
            right.append(names[int(np.abs(palette - pixel).sum(-1).argmin())] == tint.color)
        squares = label_targets(document, 16)
        alone = (squares[:, 0] == IGNORED) & (squares[:, -1] != IGNORED)
        assert not alone.any() or document.tints
    assert len(right) > 1000
    assert np.mean(right) > 0.85


def test_things_to_be_counted_are_all_the_first():
    scene = sample_scene(1_000_003, "counting")
    named = thing_targets(scene, 8)[:, 0]
    assert set(named) == {0, 1}
    assert named.sum() >= len(scene.things)


def test_a_description_names_them_one_by_one():
    scene = sample_scene(1_000_003, "counting")
    assert set(thing_targets(scene, 8, one_by_one=True)[:, 0]) == set(range(len(scene.things) + 1))


def test_a_share_of_the_captions_is_in_full(words):
    decode = ByteTokenizer().decode
    for full in (0.0, 0.5, 1.0):
        batch = draw_batch(3, 40, words, drop=0.0, full=full)
        captions = [decode(row[mask].tolist()) for row, mask in zip(batch.input_ids, batch.mask, strict=True)]
        whole = [", on " in caption for caption in captions]
        assert abs(np.mean(whole) - full) < 0.25 * (0 < full < 1) + 1e-9
        assert max(map(len, captions)) < 140


def test_prompts_are_upsampled_in_a_share_of_the_talk(words):
    decode = ByteTokenizer().decode
    said = decode(talk_batch(2, 4, 420, words, upsample=1.0).input_ids.flatten().tolist())
    asked = said.split("Describe in full: ")[1:]
    assert len(asked) >= 8
    scenes = [sample_scene(1_000_000 + 2 * 4096 + i) for i in range(len(asked) + 4)]
    described = {(scene.caption, describe(scene)) for scene in scenes}
    for turn in asked:
        prompt, answer = turn.split("\nassistant\n")
        answer = answer.split("\nuser")[0].strip()
        assert answer == prompt or (prompt, answer) in described
    assert "Describe" not in decode(talk_batch(2, 4, 420, words).input_ids.flatten().tolist())


def test_whole_dialogues_are_learnt_but_for_their_first_tokens(words):
    answers, whole = (talk_batch(2, 4, 420, words, whole=whole) for whole in (False, True))
    assert torch.equal(answers.input_ids, whole.input_ids)
    assert torch.equal(answers.segments, whole.segments)
    first = torch.nn.functional.pad(whole.segments.diff(dim=1) != 0, (1, 0), value=True)
    left = first | (whole.input_ids == words.special["pad"])
    assert torch.equal(whole.labels, whole.input_ids.masked_fill(left, IGNORED))
    said = answers.labels != IGNORED
    assert bool((whole.labels[said] == answers.labels[said]).all())
    assert 0 < int(said.sum()) < int((~left).sum()) / 2


@pytest.mark.parametrize("bare", [False, True])
def test_questions_come_after_a_transcription_that_is_often_given(words, bare):
    decode = ByteTokenizer().decode
    batch = read_batch(4, 12, "page", words, bare=bare, read_first=True)
    plain = read_batch(4, 12, "page", words, bare=bare)
    assert torch.equal(batch.pixels, plain.pixels)
    size, seed = tuple(batch.pixels.shape[-2:]), 1_000_000 + 4 * 4096
    documents = [sample_document(seed + i, "page", size) for i in range(len(batch.pixels))]
    said = 0
    for row, labels, document in zip(batch.input_ids, batch.labels, documents, strict=True):
        shown, learned = decode(row.tolist()), decode(labels[labels != IGNORED].tolist())
        aloud = learned.startswith(document.text)
        assert not aloud or document.text in shown
        assert min(shown.index(q) for q, _ in document.qa if q in shown) >= len(document.text)
        said += aloud
        assert 0 < len(learned.removeprefix(document.text)) < len(shown) - len(document.text)
    assert 0 < said < len(documents)


def test_what_has_no_questions_is_always_read_aloud(words):
    batch = read_batch(3, 12, "word", words, read_first=True)
    assert ((batch.labels != IGNORED).sum(1) > 1).all()


def test_a_given_transcription_has_the_mistakes_of_one():
    text = "Total 1,204.50\nAnna Weber " * 40
    shares = [np.mean([a != b for a, b in zip(misread(text, Random(s)), text, strict=True)]) for s in range(30)]
    assert min(shares) == 0
    assert 0.03 < max(shares) < 0.1
    pairs = list(zip(misread(text, Random(1)), text, strict=True))
    assert all((a.isdigit(), a.isspace()) == (b.isdigit(), b.isspace()) for a, b in pairs)


def test_classes_are_in_range_and_empty_captions_name_none_first(words):
    batch = draw_batch(5, 40, words, drop=0.5)
    assert batch.things.shape == (40, 64, 3)
    for targets, classes in zip(batch.things.unbind(-1), THING_CLASSES, strict=True):
        assert targets.max() < classes
    dropped = batch.mask.sum(1) == batch.mask.sum(1).min()
    assert 8 < dropped.sum() < 32
    assert (batch.things[dropped, :, 0] == IGNORED).all()
    assert (batch.things[~dropped, :, 0] >= 0).all()
    assert (batch.things[..., 1:] >= 0).all()


def test_a_mixture_weighs_the_categories(words):
    """With one category alone all captions are its own; without weights every category comes."""
    alone = draw_batch(1, 24, words, drop=0.0, mixture={"counting": 1.0})
    assert (alone.things[..., 0] < 2).all()  # nothing is named second
    seeds = range(1_000_000 + 4096, 1_000_000 + 4096 + 24)
    expected = [sample_scene(s, "counting").image for s in seeds]
    assert torch.equal((alone.pixels * 255).round().byte(), torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2))
    both = draw_batch(1, 24, words, drop=0.0)
    assert (both.things[..., 0] == 2).any()


def test_balanced_counts_both_sides_alike():
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [5.0, 0.0]]])
    targets = torch.tensor([[1, 0, 0, 0, IGNORED]])
    something, nothing = math.log(1 + math.exp(2)), math.log(1 + math.e)
    assert balanced(logits, targets).item() == pytest.approx((something + nothing) / 2, rel=1e-6)
    assert balanced(logits, torch.full((1, 5), IGNORED)).item() == 0
    assert balanced(logits, torch.zeros(1, 5, dtype=torch.int64)).isfinite()


def test_next_token_predicts_one_ahead_and_ignores():
    logits = torch.zeros(1, 4, 3)
    logits[0, 1, 2] = 50.0  # after the second token: class 2
    labels = torch.tensor([[0, IGNORED, 2, IGNORED]])
    assert next_token(logits, labels).item() == pytest.approx(0.0, abs=1e-6)
    assert next_token(logits, torch.full((1, 4), IGNORED)).item() == 0
    assert glyphs(torch.zeros(1, 2, 2, 7), torch.zeros(1, 2, 2, dtype=torch.int64)).item() == pytest.approx(math.log(7))
