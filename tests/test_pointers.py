"""Where each token that is said stands before: in the picture or in what was told; and the loss that asks for it."""

import math
import re

import pytest
import torch

import omni
from omni.data.batches import ROW_CLASSES, Encoding, read_batch
from omni.data.clip_log import event_targets, placed_log
from omni.data.clips import KINDS, sample_clip
from omni.data.documents import sample_document
from omni.data.pointers import asks, looked_up, numbered, pointers, squares, telling
from omni.data.senses import look_batch, watch_batch
from omni.inputs import Inputs
from omni.losses import IGNORED, pointed
from omni.tokenizers.bytes import ByteTokenizer
from omni.tokenizers.prompts import NOT_ANSWERABLE, time_label
from omni.training import encoding
from omni.training_parts import Pointer


@pytest.fixture(scope="module")
def words() -> Encoding:
    t = ByteTokenizer()
    return Encoding(t.encode, t.encode_chat, t.special, patch=8, token_pixels=16, latent_pixels=8)


@pytest.mark.parametrize("level", ["word", "lines", "page", "chart"])
def test_every_character_is_read_somewhere_on_the_page(level):
    for seed in range(60):
        document = sample_document(seed, level)
        assert "".join(g.char for g in document.reading) == "".join(document.text.split())
        height, width = document.image.shape[:2]
        told = document.reading
        if level == "chart":  # its last lines sum up what was read
            count = next(i for i, glyph in enumerate(told) if math.isnan(glyph.x))
            assert all(math.isnan(glyph.x) and math.isnan(glyph.y) for glyph in told[count:])
            told = told[:count]
        assert all(0 <= g.x < width and 0 <= g.y < height for g in told)
        printed = set(document.glyphs)
        assert level == "chart" or set(document.reading) <= printed
        # A name of a chart is read where it is printed, its value at its mark.
        names = [document.glyphs[label.start] for label in document.labels]
        assert set(names) <= set(document.reading)


def test_squares_follow_the_print():
    document = sample_document(3, "page")
    found, columns = squares(document, 16), document.image.shape[1] // 16
    assert [place == IGNORED for place in found] == [char.isspace() for char in document.text]
    glyphs = iter(document.reading)
    for place in found:
        if place != IGNORED:
            _, x, y = next(glyphs)
            assert divmod(place, columns) == (int(y // 16), int(x // 16))


TABLE = "Kelvo sales\nQ1 5% red\nQ2 12% blue\nQ3 5% pink\nSum 2.5\n3 bars largest Q2"


@pytest.mark.parametrize(
    ("question", "answer", "line"),
    [
        ("What is Q2?", "12%", "Q2 12% blue"),
        ("What is the value of Q3?", "5%", "Q3 5% pink"),  # of two, that on the line asked for
        ("What is shown?", "5%", None),  # either
        ("What is the title?", "Kelvo sales", "Kelvo sales"),
        ("Which bar is red?", "Q1", "Q1 5% red"),
        ("How many bars are there?", "12", None),
        ("How many things are there?", "3", None),  # it does not say of what
        ("How many bars are there?", "3", "3 bars largest Q2"),
        ("Is there a bar for Q3?", "yes", "Q3 5% pink"),
        ("Is there a bar for Q4?", "no", None),
        ("Is Q2 larger than Q3?", "yes", None),
        ("Is it paid?", "no", None),
        ("Which bar is the largest?", "Q2", "3 bars largest Q2"),
        ("What is 2?", "2", None),  # neither in Q2 nor in 12 or 2.5
        ("What is the sum?", "2.5", "Sum 2.5"),
        ("What is the difference?", "7%", None),
    ],
)
def test_answers_are_looked_up_where_they_stand_for_themselves(question, answer, line):
    at = looked_up(question, answer, TABLE)
    if line is None:
        assert at is None
    else:
        assert answer == "yes" or TABLE[at:].startswith(answer)
        assert line in TABLE[TABLE.rfind("\n", 0, at) + 1 :].split("\n")[0]


def test_pointers_lead_from_the_answer_to_the_table():
    text, answer = "Tea 3.50\nBus 2", "3.50"
    x = IGNORED
    labels = [x, x, x, *range(100, 100 + len(text) + 1), x, x, *range(200, 205), x]
    found = pointers(labels, [("", text), ("How much is Tea?", answer)], seen=[1, 2, x] + [3] * 5)
    assert found[:12] == [x, x, x, 1, 2, x, 3, 3, 3, 3, 3, x]
    begin = 3 + len(text) + 1 + 2
    assert found[begin : begin + 6] == [3 + 4, 3 + 5, 3 + 6, 3 + 7, x, x]


def test_words_that_sum_up_point_at_where_they_were_told():
    text = "Q1 5\nQ2 9\n2 bars largest Q2"
    labels = [*range(100, 100 + len(text)), IGNORED, 7, IGNORED]
    seen = [0 if i < text.index("2 bars") and not c.isspace() else IGNORED for i, c in enumerate(text)]
    found = pointers(labels, [("", text), ("Is there a bar for Q1?", "yes")], seen)
    again = text.rindex("Q2")
    assert found[again : again + 2] == [5, 6]
    assert set(found[text.index("2 bars") : again]) == {IGNORED}
    assert found[len(text) :] == [IGNORED, 0, IGNORED]  # yes points at what is there
    # What is missing is looked for up to the end of what was told.
    missing, unanswered = (pointers(labels, [("", text), ("Is it?", said)]) for said in ("no", NOT_ANSWERABLE))
    assert missing == unanswered == [IGNORED] * len(text) + [IGNORED, len(text) - 1, IGNORED]
    many = pointers(labels, [("", text), ("How many rows are there?", "9")], counted=text.index("Q2"))
    assert many[len(text) + 1] == text.index("Q2")  # the last row says how many there are


def test_words_of_a_question_lead_to_where_they_were_told():
    text, encode = "SALES\nTea 3.50 red\nIced tea 2 red\nBus 2 red", ByteTokenizer().encode
    turns = [("", text), ("Is there a line for Bus, or for Bread?", "no"), ("Which costs 2, the iced tea?", "Iced tea")]
    ids, labels = [], []
    for question, answer in turns:
        ids += [*encode(question), 3, *encode(answer), 7]
        labels += [IGNORED] * (len(question) + 1) + [1] * (len(answer) + 1)
    found, begin = asks(ids, labels, turns, encode), 1
    said = ByteTokenizer().decode
    lead = {i: at for i, at in enumerate(found) if at != IGNORED}
    second = len(text) + 2 + len(turns[1][0]) + 1 + len("no") + 1
    lines = {said(ids[(second if i > second else begin) : i]).split()[-1].strip("?,"): at for i, at in lead.items()}
    told = {word: at - begin for word, at in lines.items()}
    end = text.index("Bus") + 2
    # One of the question's words was not told; "or" and "costs" are only looked for where the answer is no.
    assert told == {
        "Bus": end,
        "or": len(text),
        "Bread": len(text),
        "2": text.index("tea 2") + 4,
        "iced": text.index("Iced") + 3,
        "tea": text.index("tea 2") + 2,
    }


def test_rows_of_a_table_are_numbered():
    text = "SALES\nTea 3\nBus 2\nTotal 5"
    labels = [IGNORED, IGNORED, *range(len(text) + 1), IGNORED, 1, 1, IGNORED]
    nowhere = [IGNORED] * len(labels)
    found = numbered(labels, text, (1, 3), nowhere, nowhere)
    assert found == [IGNORED] * 2 + [0] * 6 + [1] * 6 + [2] * 6 + [0] * 8 + [IGNORED] * 4
    assert numbered(labels, text, (0, 0), nowhere, nowhere) == [IGNORED] * 2 + [0] * (len(text) + 1) + [IGNORED] * 4
    assert telling(labels) == [False] * 2 + [True] * (len(text) + 1) + [False] * 4


@pytest.mark.parametrize(
    ("question", "answer", "row"),
    [("Whose is 2?", "Bus", 2), ("Is Tea in it?", "yes", 1), ("What is Car?", "Tea", None)],
)
def test_a_question_knows_the_row_of_its_answer(question, answer, row):
    text, encode = "SALES\nTea 3\nBus 2\nTotal 5", ByteTokenizer().encode
    turns = [("", text), (question, answer)]
    ids = [*encode(text), 7, *encode(question), 3, *encode(answer), 7]
    labels = [1] * (len(text) + 1) + [IGNORED] * (len(question) + 1) + [1] * (len(answer) + 1)
    points, asked = pointers(labels, turns), asks(ids, labels, turns, encode)
    found = numbered(labels, text, (1, 3), points, asked)[len(text) + 1 :]
    known = [i for i, number in enumerate(found) if number != IGNORED]
    if row is None:  # none of its words was told
        assert not known
    else:
        last = next(m for m in re.finditer(r"2|Tea", question)).end() - 1
        assert known == list(range(last, len(question) + 1))
        assert {found[i] for i in known} == {row}


@pytest.mark.parametrize("level", ["page", "chart"])
def test_a_count_is_that_of_the_rows(level):
    counted = 0
    for seed in range(80):
        document = sample_document(seed, level)
        if document.rows is None:
            continue
        first, behind = document.rows
        lines = document.text.split("\n")[first:behind]
        assert len(lines) == behind - first < ROW_CLASSES
        for question, answer in document.qa:
            if re.match("How many (items|rows|bars|points|slices|categories)", question):
                counted += 1
                assert int(answer) == len(lines)
    assert counted > 8


def test_looks_are_asked_of_two_layers():
    model = omni.load("tiny", dtype=torch.float32).train()
    asker = Pointer(model, before=1)
    layers = [block.mixer for block in model.context.blocks if block.letter == "*"]
    assert asker.layer is layers[-2]
    model.read(Inputs(torch.randint(40, 120, (1, 9), generator=torch.Generator().manual_seed(1))))
    asker.losses([torch.tensor([[IGNORED] * 8 + [2]])])[0].backward()
    assert layers[-2].q_proj.weight.grad.any()
    assert not any(block.weight.grad is not None for block in (layers[-1].q_proj, layers[-1].k_proj))
    assert Pointer(model, before=len(layers)).layer is None


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("level", ["page", "chart"])
def test_tokens_of_a_page_point_at_their_square_or_at_themselves(words, level, bare):
    batch = read_batch(7, 8, level, words, bare=bare, read_first=True, given=0.5, questions=8)
    image, looked, read, alike = words.special["image"], 0, 0, 0
    for ids, points, cells in zip(batch.input_ids.tolist(), batch.points.tolist(), batch.cells, strict=True):
        first = ids.index(image)
        for i, at in enumerate(points):
            if at == IGNORED:
                continue
            assert at < i
            if ids[at] == image:
                read += 1
                alike += chr(words_of(ids[i])) in {chr(c + 32) for c in cells[at - first].tolist() if c}
            else:
                looked += ids[at] == ids[i]
    assert looked > 20
    assert read > 200
    # Up to five characters of a square are named; values of charts need not be printed, given ones have mistakes.
    assert alike > (0.85 if level == "page" else 0.4) * read
    plain = read_batch(7, 8, level, words, bare=bare, questions=8)
    assert int((plain.points != IGNORED).sum()) <= int((batch.points != IGNORED).sum())


def words_of(token: int) -> int:
    return ByteTokenizer().decode([token]).encode()[0]


def test_words_about_pictures_and_clips_point_at_what_shows_them_and_answers_at_what_was_told():
    model = omni.load("tiny")
    special = model.config.special_tokens
    for make, kind in ((watch_batch, "video"), (look_batch, "image")):
        batch = make(11, 12, encoding(model), 5, 1.0)
        own = batch.points != IGNORED
        there = batch.input_ids.gather(1, batch.points.clamp(min=0))
        told = own & (there != special[kind])
        assert told.sum() > 20
        unlike = batch.input_ids[told & (there != batch.input_ids)]
        assert set(map(words_of, unlike.tolist())) <= {ord("y"), ord("n")}  # what is asked for is there: yes
        assert len(unlike) < told.sum() / 5
        happens = batch.events[..., 1].flatten(1) > 0  # (b, tokens)
        for ids, points, events in zip(batch.input_ids, batch.points, happens, strict=True):
            tokens = (ids == special[kind]).nonzero()[:, 0].tolist()
            shown = {tokens.index(at) for at in points.tolist() if at in tokens}
            assert shown == set(events.nonzero()[:, 0].tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_the_log_of_a_clip_is_seen_where_it_happens(kind):
    clip = sample_clip(5, kind)
    log, places = placed_log(clip, 16)
    assert len(log) == len(places)
    times = [time_label(float(t)) for t in clip.times[::2]]
    for char, place in zip(log, places, strict=True):
        if place is None:
            assert char in " ;," or "touch" in log
        elif place[1] < 0:
            assert times[place[0]][place[1]] == char
        else:
            assert event_targets(clip, 16)[place[0], place[1], 1] > 0


def test_the_loss_is_the_cross_entropy_of_causal_attention():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 2, 7, 4, generator=generator).unbind(0)
    targets = torch.full((2, 7), IGNORED)
    targets[0, 3], targets[0, 6], targets[1, 5] = 0, 5, 2
    said = []
    for row, i in ((0, 3), (0, 6), (1, 5)):
        scores = (k[row, :i] @ q[row, i - 1]) / 2  # the token before has to say it, and sees itself
        said.append(scores.logsumexp(0) - scores[targets[row, i]])
    torch.testing.assert_close(pointed(q, k, targets), torch.stack(said).mean())
    assert float(pointed(q, k, torch.full((2, 7), IGNORED))) == 0


def test_the_pointer_is_the_attention_that_the_model_computes():
    model = omni.load("tiny", dtype=torch.float32).train()
    pointer = Pointer(model)
    ids = torch.randint(40, 120, (2, 30), generator=torch.Generator().manual_seed(1))
    targets = torch.full((2, 30), IGNORED)
    targets[:, 20:] = 4
    with torch.no_grad():
        model.read(Inputs(ids))
    with pytest.raises(ValueError, match="pointer_weight"):
        pointer.losses([targets])[0]  # nothing is kept of what is not learned from
    model.read(Inputs(ids))
    loss = pointer.losses([targets])[0]
    layers = [block.mixer for block in model.context.blocks if block.letter == "*"]
    loss.backward()
    assert all(layer.q_proj.weight.grad.abs().sum() > 0 for layer in layers)
    per = layers[-1].config.head_dim
    assert not layers[-1].q_proj.weight.grad[per:].any()  # one head is asked, the others are free
    for _ in range(30):
        for p in model.parameters():
            p.grad = None
        model.read(Inputs(ids))
        now = pointer.losses([targets])[0]
        now.backward()
        with torch.no_grad():
            for p in (layers[-1].q_proj.weight, layers[-1].k_proj.weight):
                p -= 0.02 * p.grad / p.grad.norm()
    assert now.item() < 0.7 * loss.item()
