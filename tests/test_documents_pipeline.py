"""DocumentQA on a small random model: shared reading, forks, pages, confidence, bad input."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from omni.config import replace
from omni.data.documents import sample_document
from omni.families.tiny import TINY
from omni.inputs import Inputs
from omni.model import Omni
from omni.pipelines.documents import TRANSCRIBE, Answer, DocumentQA
from omni.pipelines.reading import QUESTIONS_AT_ONCE, Reading, common_prefix
from omni.pipelines.views import looks
from omni.tokenizers.bytes import ByteTokenizer

QUESTIONS = ["What is the date?", "Who signed it?", "What is the total amount that is due?"]


@pytest.fixture(scope="module")
def reader() -> DocumentQA:
    torch.manual_seed(0)
    model = Omni(
        replace(TINY, denoiser=None, latent=None, sound_latent=None, action=None, sampling={"document_together": 0.0})
    ).eval()
    with torch.no_grad():
        model.embed.weight.mul_(20)  # peaked logits: argmax does not hang on the order of additions
    model.tokenizer = ByteTokenizer()
    return DocumentQA(model)


def page(seed: int = 3) -> Image.Image:
    return Image.fromarray(sample_document(seed, "lines").image)


def greedy(
    reader: DocumentQA, picture: Image.Image, question: str, steps: int, text: str | None = None
) -> tuple[list[int], float]:
    """The answer's tokens by reading everything again at every step; and the mean log-probability."""
    asked = [question] if text is None else [TRANSCRIBE, question]
    messages = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": asked[0]}]}]
    if text is not None:
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": question}]
    inputs = reader.model.prepare(messages)
    ids, scores, ends = inputs.input_ids, [], reader.ends
    start = ids.shape[1]
    with torch.inference_mode():
        while ids.shape[1] - start < steps:
            logits = reader.model.logits(Inputs(ids, pixels=inputs.pixels))[0, -1]
            score, token = logits.log_softmax(-1).max(-1)
            ids, _ = torch.cat([ids, token.view(1, 1)], 1), scores.append(float(score))
            if int(token) in ends:
                break
    return ids[0, start:].tolist(), sum(scores) / len(scores)


def test_answers_equal_plain_decoding_of_each_question(reader):
    answers = reader(page(), QUESTIONS, max_new_tokens=6)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        tokens, mean = greedy(reader, page(), question, 6)
        assert answer.tokens == len(tokens)
        spoken = [t for t in tokens if t not in reader.ends]
        assert answer.text == reader.model.tokenizer.decode(spoken).strip()
        assert answer.confidence == pytest.approx(math.exp(mean), rel=1e-3)
        assert answer.complete == (tokens[-1] in reader.ends)
        assert answer.pages == (1,)


def test_a_page_is_encoded_once_however_many_questions(reader, monkeypatch):
    seen = []
    see = type(reader.model).see_all
    monkeypatch.setattr(
        type(reader.model), "see_all", lambda self, pixels: seen.append(len(pixels)) or see(self, pixels)
    )
    many = [f"What is line {i}?" for i in range(QUESTIONS_AT_ONCE + 3)]
    answers = reader([page(1), page(2)], many, max_new_tokens=2)
    assert len(answers) == len(many)
    assert seen == [1, 1]  # two pages


def test_pages_stay_read_for_later_calls(reader, monkeypatch):
    seen = []
    see = type(reader.model).see_all
    monkeypatch.setattr(
        type(reader.model), "see_all", lambda self, pixels: seen.append(len(pixels)) or see(self, pixels)
    )
    for question in QUESTIONS:
        reader([page(11), page(12)], question, max_new_tokens=1)  # equal pictures, not the same objects
    assert seen == [1, 1]
    reader([page(11), page(13)], QUESTIONS[0], max_new_tokens=1)
    assert seen == [1, 1, 1, 1]


def test_the_answer_comes_from_the_surest_page(reader):
    pages = [page(seed) for seed in (1, 2, 3)]
    best = reader(pages, QUESTIONS[0], max_new_tokens=4)
    single = [reader(pages, QUESTIONS[0], page=n, max_new_tokens=4) for n in (1, 2, 3)]
    assert [answer.pages for answer in single] == [(1,), (2,), (3,)]
    surest = max(single, key=lambda a: a.confidence)
    assert (best.text, best.pages) == (surest.text, surest.pages)
    assert best.confidence == pytest.approx(surest.confidence, rel=1e-4)


def test_end_token_ends_the_answer(reader, monkeypatch):
    answer = reader(page(), QUESTIONS[0], max_new_tokens=4)
    tokens, _ = greedy(reader, page(), QUESTIONS[0], 4)
    assert not answer.complete
    monkeypatch.setattr("omni.pipelines.reading.ends_of", lambda model: frozenset([tokens[1]]))
    cut = reader(page(), QUESTIONS[0], max_new_tokens=4)
    first = tokens.index(tokens[1])
    assert cut.complete
    assert cut.tokens == first + 1
    assert cut.text == reader.model.tokenizer.decode(tokens[:first]).strip()


def test_a_page_read_aloud_stands_before_its_questions(reader, monkeypatch):
    monkeypatch.setattr("omni.pipelines.reading.TOLD_TOKENS", 9)
    seen = []
    see = type(reader.model).see_all
    monkeypatch.setattr(
        type(reader.model), "see_all", lambda self, pixels: seen.append(len(pixels)) or see(self, pixels)
    )
    answers = reader(page(), QUESTIONS, max_new_tokens=6, read_first=True)
    assert seen == [1]
    text = reader.transcribe(page(), max_new_tokens=9)[0]
    for question, answer in zip(QUESTIONS, answers, strict=True):
        tokens, mean = greedy(reader, page(), question, 6, text)
        assert answer.text == reader.model.tokenizer.decode([t for t in tokens if t not in reader.ends]).strip()
        assert answer.confidence == pytest.approx(math.exp(mean), rel=1e-3)
    assert [a.confidence for a in answers] != [a.confidence for a in reader(page(), QUESTIONS, max_new_tokens=6)]


def test_a_page_without_text_can_be_read_first(reader, monkeypatch):
    ended = frozenset(range(320))  # every answer ends before it has begun
    monkeypatch.setattr("omni.pipelines.reading.ends_of", lambda model: ended)
    assert reader(page(), QUESTIONS[0], read_first=True).text == ""


def test_the_checkpoint_says_whether_pages_are_read_first(reader, monkeypatch):
    reader = DocumentQA(reader.model)  # which has read nothing yet
    monkeypatch.setattr("omni.pipelines.reading.TOLD_TOKENS", 3)
    told = []
    monkeypatch.setattr(
        "omni.pipelines.documents.Reading",
        lambda model, parts, tell, views: told.append(tell) or Reading(model, parts, tell, views),
    )
    monkeypatch.setitem(reader.model.config.sampling, "document_read_first", 1.0)
    reader(page(), QUESTIONS[0], max_new_tokens=1)
    reader(page(), QUESTIONS[0], max_new_tokens=1, read_first=False)
    assert told == [TRANSCRIBE, None]


def again(model, ids, pixels, said):
    """Logits behind the prompt and what was said, which may hold placeholders that stand for nothing."""
    cache = model.new_cache(1)
    with torch.inference_mode():
        logits = model.logits(Inputs(ids, pixels=(pixels,)), cache)
        return (model.logits(torch.tensor([said]), cache) if said else logits)[0, -1]


def test_several_views_answer_with_their_mean(reader):
    """Token by token against every look read on its own, all again at each step."""
    answers = reader(page(), QUESTIONS, max_new_tokens=5, views=3)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        ids, (pixels,) = reader.prompt(page(), question)
        rows = [(torch.tensor([ids]), look) for look in looks(pixels, 3, reader.model.config.vision.token_pixels)]
        said, total = [], 0.0
        while len(said) < 5 and (not said or said[-1] not in reader.ends):
            each = [again(reader.model, ids, look, said) for ids, look in rows]
            score, token = torch.stack(each).log_softmax(-1).mean(0).max(-1)
            said.append(int(token))
            total += float(score)
        assert answer.tokens == len(said)
        assert answer.text == reader.model.tokenizer.decode([t for t in said if t not in reader.ends]).strip()


def test_the_first_look_is_the_page_and_the_others_are_moved(reader):
    page = torch.full((3, 32, 48), 0.75)
    page[:, 8:10, 8:12] = 0.25
    same, moved = looks(page, 2, 16)
    assert torch.equal(same, page)
    expected = torch.full_like(page, 0.75)
    expected[:, 11:13, 10:14] = 0.25  # an eighth of 16 to the right, three sixteenths down
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=0)
    smaller = looks(page, 4, 16)[3]
    assert smaller.shape == page.shape
    assert 0.9 < float((0.75 - smaller).sum() / (0.75 - page).sum()) / 0.96**2 < 1.1


def test_the_checkpoint_says_how_many_views(reader, monkeypatch):
    reader = DocumentQA(reader.model)  # which has read nothing yet
    monkeypatch.setitem(reader.model.config.sampling, "document_views", 2.0)
    rows = []
    see = type(reader.model).see_all
    monkeypatch.setattr(
        type(reader.model), "see_all", lambda self, pixels: rows.append(len(pixels)) or see(self, pixels)
    )
    reader(page(), QUESTIONS[0], max_new_tokens=1)
    reader(page(), QUESTIONS[0], max_new_tokens=1, views=1)
    assert rows == [2, 1]


def test_text_or_list_in_answer_or_list_out(reader):
    assert isinstance(reader(np.asarray(page()), QUESTIONS[0], max_new_tokens=1), Answer)
    several = reader(page(), QUESTIONS[:1], max_new_tokens=1)
    assert [set(a.as_dict()) for a in several] == [{"text", "pages", "confidence", "tokens", "complete"}]
    assert len(reader.transcribe([page(1), page(2)], max_new_tokens=2)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"question": ""}, "not empty"),
        ({"question": []}, "not empty"),
        ({"question": ["fine", 3]}, "not empty"),
        ({"document": b"nonsense"}, "not a picture"),
        ({"document": []}, "0 pages"),
        ({"views": 9}, "views is 9; it must be a whole number from 1 to 8"),
        ({"page": 2}, "page is 2; the document has 1"),
        ({"page": 0}, "page is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 10_000}, "between 1 and"),
    ],
)
def test_bad_input_is_one_clear_error(reader, arguments, message):
    with pytest.raises(ValueError, match=message):
        reader(**{"document": page(), "question": "What?", **arguments})


def test_a_model_that_cannot_see_is_refused(reader):
    blind = Omni(replace(TINY, vision=None, denoiser=None, latent=None, sound_latent=None, action=None))
    with pytest.raises(ValueError, match="reads no images"):
        DocumentQA(blind)


def test_common_prefix_leaves_every_row_a_token():
    assert common_prefix([[1, 2, 3], [1, 2, 4]]) == 2
    assert common_prefix([[1, 2], [1, 2, 3]]) == 1
    assert common_prefix([[1, 2, 3]]) == 2
    assert common_prefix([[9], [1]]) == 0
