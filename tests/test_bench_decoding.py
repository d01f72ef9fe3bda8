"""Ways to write beside plain decoding: what is counted, and that an answer that must not change is noticed."""

import pytest
import torch
from micro import micro_model

from omni import bench_decoding
from omni.bench_decoding import PARTS, Text, Way, draw, measure, problems, score, scores, shown, strange, ways
from omni.bench_tools import BenchError, Row
from omni.config import MTPConfig, TokenDiffusionConfig
from omni.data.reasoning import KINDS
from omni.pipelines.chat import Chat
from omni.pipelines.drafting import DraftingReader

BLOCKS = {"vision": None, "latent": None, "diffusion": TokenDiffusionConfig(block_size=4, steps=4)}


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(micro_model(**BLOCKS, mtp=MTPConfig(pattern="*E")).double())


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(bench_decoding, "TOKENS", 12)
    monkeypatch.setattr(bench_decoding, "in_turns", lambda runs, turns, name: [[0.5] * turns, [1.0] * turns])


def asked() -> list[Text]:
    return [Text("strange", ([{"role": "user", "content": "The tide"}],), endless=True)]


def test_every_way_has_its_time_and_what_a_pass_gives(chat):
    chosen = [way for way in ways(chat.model) if way.name in ("3 drafts", "threshold 0.8", "lossless in 1 pass")]
    rows, targets = measure(chat, asked(), chosen, 2)
    assert [row.name for row in rows] == ["strange, 3 drafts", "strange, threshold 0.8", "strange, lossless in 1 pass"]
    assert [(row.ours, row.theirs, row.ratio) for row in rows] == [pytest.approx((500 / 12, 1000 / 12, 2.0))] * 3
    assert [row.spread for row in rows] == [(2.0, 2.0)] * 3
    assert [target.name.split(":")[0] for target in targets] == [row.name for row in rows]
    assert 0 <= targets[0].value <= 3
    assert 1 <= targets[1].value <= 4


def test_a_side_that_writes_less_is_charged_by_its_own_tokens():
    row = bench_decoding._row("x", [[1.0, 2.0], [3.0, 3.0]], [100, 50])
    assert (row.ours, row.theirs, row.spread) == (15.0, 60.0, (3.0, 6.0))


def test_drafts_that_hold_are_counted(chat, monkeypatch):
    def told(self, tokens, k, choose):
        """What the model itself says next, token by token."""
        self._pending, cache, found = None, self.cache.fork(1), []
        for _ in range(k):
            tokens = self.model.logits(tokens[:, None], cache)[:, -1].argmax(-1)
            found.append(choose(torch.nn.functional.one_hot(tokens, self.model.config.vocab_size) * 9.0))
        return torch.stack(found, dim=1) if found else tokens.new_empty(len(tokens), 0)

    monkeypatch.setattr(DraftingReader, "draft", told)
    # Eleven tokens follow the first: passes of 3 + 1, 3 + 1 and of what is left, 2 + 1.
    _, targets = measure(chat, asked(), [Way("3 drafts", {"drafts": 3, "adaptive": False})], 1)
    assert targets[0].value == pytest.approx(8 / 3)


def test_an_answer_that_must_not_change_is_noticed(chat, monkeypatch):
    verify = DraftingReader.verify
    monkeypatch.setattr(DraftingReader, "verify", lambda self, tokens: -verify(self, tokens))
    with pytest.raises(BenchError, match="strange, 2 drafts"):
        measure(chat, asked(), [Way("2 drafts", {"drafts": 2})], 1)


def test_scores_are_shares_of_the_plain_one(chat, monkeypatch):
    known = problems(0, 3)
    right = {None: 0.8, 0.8: 0.6, 0.5: 0.4}
    monkeypatch.setattr(bench_decoding, "score", lambda chat, known, **way: right[way.get("threshold")])
    chosen = [Way("a", {"threshold": 0.8}, same=False), Way("b", {"threshold": 0.5}, same=False), Way("c", {})]
    assert scores(chat, known, chosen) == pytest.approx({"a": 0.75, "b": 0.5})


def test_a_score_is_the_share_of_right_answers(chat, monkeypatch):
    known = problems(1, 4)
    said = iter([known.answers[0], "no", f" {known.answers[2]} ", "no"])

    def answer(self, conversations, **options):
        assert options["thinking"]
        assert options["temperature"] == 0
        assert options["drafts"] == 2
        return [type("Reply", (), {"text": next(said)}) for _ in conversations]

    monkeypatch.setattr(Chat, "__call__", answer)
    assert score(chat, known, drafts=2) == 0.5


def test_what_a_model_can_do_is_measured():
    def names(**parts):
        return [way.name for way in ways(micro_model(**parts))]

    drafts, blocks = names(mtp=MTPConfig(pattern="*E")), names(**BLOCKS)
    assert drafts[0] == "1 drafts"
    assert drafts[-1] == "up to 8 drafts"
    assert {f"without {what}" for what in PARTS.values()} <= set(blocks)
    assert "lossless" in blocks
    with pytest.raises(ValueError, match="token by token only"):
        names()


def test_texts_are_held_out_and_have_their_answers():
    known = problems(1, len(KINDS))
    assert len(known.conversations) == len(known.answers) == len(KINDS)
    assert problems(0, len(KINDS)).answers != known.answers
    assert shown(known, 2)[0].conversations == known.conversations[:2]
    assert [c[-1]["role"] for c in (*known.conversations, *strange(2).conversations)] == ["user"] * (len(KINDS) + 2)
    assert strange(2).endless
    assert not known.endless


def test_the_picture_is_whole_or_not_there(tmp_path):
    rows = [Row("known, a", "ms/token", 1.0, 2.0, None), Row("strange, a", "ms/token", 1.0, 9.0, None)]
    draw(tmp_path / "curve.png", rows, {"a": 0.9})
    assert [p.name for p in tmp_path.iterdir()] == ["curve.png"]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_that_knows_no_other_way_is_refused():
    with pytest.raises(ValueError, match="token by token only"):
        bench_decoding.bench_decoding(model="tiny", quick=True)
