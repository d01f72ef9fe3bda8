"""Chats whose tokens are drafted by the prediction block: the same answers, whatever is drafted, fed and cut back."""

import pytest
import torch
from micro import micro_model
from test_chat import HELLO, ask_picture, conversations

from omni.config import MTPConfig, replace
from omni.model import Omni
from omni.pipelines import drafting
from omni.pipelines.chat import Chat
from omni.pipelines.drafting import DraftingReader, draft_cost
from omni.quantization.plans import choose
from omni.quantize import pack
from omni.tokenizers.bytes import ByteTokenizer


@pytest.fixture(scope="module")
def model() -> Omni:
    """In float64: drafts are read several at a time, and rounding must not decide between two tokens."""
    return micro_model(mtp=MTPConfig(pattern="*E")).double()


@pytest.fixture(params=["right", "wrong", "mixed"])
def drafter(request, monkeypatch, model) -> str:
    """Drafts that always hold, never hold, or hold at times: their logits are put in the place of the block's."""
    if request.param == "mixed":
        return "mixed"
    draft = DraftingReader.draft

    def told(self, tokens, k, choose):
        if not k:
            return draft(self, tokens, k, choose)
        answers = iter(self._told(tokens, k))

        def chosen(logits):
            wanted = next(answers)
            shift = 0 if request.param == "right" else 1
            return choose(torch.nn.functional.one_hot((wanted + shift) % logits.shape[-1], logits.shape[-1]) * 9.0)

        return draft(self, tokens, k, chosen)

    def ahead(self, tokens, k):
        """What the model itself says next, token by token."""
        cache, found = self.cache.fork(1), []
        for _ in range(k):
            tokens = self.model.logits(tokens[:, None], cache)[:, -1].argmax(-1)
            found.append(tokens)
        return found

    monkeypatch.setattr(DraftingReader, "_told", ahead, raising=False)
    monkeypatch.setattr(DraftingReader, "draft", told)
    return request.param


def same(found, expected) -> None:
    assert [t.id for t in found.logprobs] == [t.id for t in expected.logprobs]
    assert [t.logprob for t in found.logprobs] == pytest.approx([t.logprob for t in expected.logprobs], abs=1e-6)
    assert (found.text, found.finish_reason, found.tokens) == (expected.text, expected.finish_reason, expected.tokens)


LETTERS = {ByteTokenizer().encode(letter)[0] for letter in "abcdefghij"}
SPELT = {token: -100.0 for token in range(320) if token not in LETTERS}  # an answer that can be read again
GREEDY = {"max_new_tokens": 14, "logprobs": 0, "temperature": 0}


@pytest.mark.parametrize("rollback", drafting.ROLLBACKS)
@pytest.mark.parametrize("k", [1, 3, 6])
def test_greedy_answers_of_a_batch_are_the_plain_ones(model, drafter, k, rollback):
    """Rows of different lengths, with pictures; they accept different numbers, and end on their own."""
    expected = Chat(model)(conversations(), **GREEDY)
    found = Chat(model, chunk=9, rollback=rollback)(conversations(), drafts=k, adaptive=False, **GREEDY)
    for one, other in zip(found, expected, strict=True):
        same(one, other)
        counts = one.usage.drafts
        assert other.usage.drafts is None
        assert one.tokens <= 1 + counts.accepted + counts.passes
        if drafter == "right":
            assert counts.passes <= 13 // (k + 1) + 1
        if drafter == "wrong":
            assert (counts.accepted, counts.passes) == (0, one.tokens - 1)


def test_chunks_of_the_prompt_change_no_draft(model):
    def run(chunk):
        replies = Chat(model, chunk=chunk)(conversations(), drafts=4, adaptive=False, **GREEDY)
        return [(reply.text, reply.usage.drafts) for reply in replies]

    assert run(1) == run(5) == run(64) == run(4096)


def reading(model, messages, drafts: int, chunk: int = 4096) -> DraftingReader:
    """A reader in the middle of an answer: a prompt and two rounds of drafts."""
    reader = DraftingReader(model, model.prepare([messages]), None, 32)
    token = reader.read(chunk).argmax(-1)
    for _ in range(2):
        ahead = reader.draft(token, drafts, lambda logits: logits.argmax(-1))
        logits = reader.verify(torch.cat([token[:, None], ahead], dim=1))
        kept = 1 + int((logits.argmax(-1)[0, :-1] == ahead[0]).int().cumprod(0).sum())
        reader.accept(torch.tensor([kept]))
        token = logits.argmax(-1)[:, kept - 1]
    return reader


@pytest.mark.parametrize("drafts", [0, 1, 4])
def test_the_block_has_read_what_the_trunk_has(model, drafts):
    """Its cache equals that of one pass over the trunk's hidden states and the tokens that follow them."""
    reader = reading(model, [ask_picture(3, "What is it?")], drafts, chunk=7)
    left = reader.drafts()
    inputs = reader.inputs
    whole = replace(inputs, input_ids=torch.tensor([reader.fed]), mask=None)
    with torch.inference_mode():
        embedded, hidden = model.read_both(whole)
        fresh = model.mtp.new_cache(1)
        model.mtp(embedded[:, 1:], hidden[:, :-1], cache=fresh)
    torch.testing.assert_close(left.hidden, hidden[:, -1:])
    assert left.block.lengths.tolist() == [len(reader.fed) - 1] == fresh.lengths.tolist()
    for mine, other in zip(left.block.slots, fresh.slots, strict=True):
        if other is not None:
            n = fresh.length
            torch.testing.assert_close(mine.k.data[:, :, :n], other.k.data[:, :, :n])
            torch.testing.assert_close(mine.v.data[:, :, :n], other.v.data[:, :, :n])


def test_a_conversation_goes_on_from_what_was_read(model):
    chat, plain, messages, others = Chat(model), Chat(model), list(HELLO), list(HELLO)
    options = {**GREEDY, "logit_bias": SPELT}
    for turn in range(3):
        found, expected = chat(messages, drafts=3, **options), plain(others, **options)
        same(found, expected)
        assert (found.usage.reused_tokens > 0) == (turn > 0) == (expected.usage.reused_tokens > 0)
        for kept, reply in ((messages, found), (others, expected)):
            kept += [reply.as_message(), {"role": "user", "content": f"And {turn}?"}]
    without = chat(messages, **options)  # a plain answer knows what drafts have read
    assert without.usage.reused_tokens > 0
    messages += [without.as_message(), {"role": "user", "content": "So?"}]
    assert chat(messages, drafts=3, **options).usage.reused_tokens == 0  # but leaves nothing to draft from


def test_a_stream_that_is_stopped_or_broken_leaves_a_chat_that_works(model, monkeypatch):
    chat = Chat(model)
    stream = chat(HELLO, drafts=4, stream=True, **GREEDY)
    for _ in range(3):
        next(stream)
    stream.close()
    same(chat(HELLO, drafts=4, **GREEDY), Chat(model)(HELLO, **GREEDY))

    def broken(self, tokens):
        self.cache.begin()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DraftingReader, "verify", broken)
        with pytest.raises(KeyboardInterrupt):
            chat(HELLO, drafts=4, **GREEDY)
    assert chat._kept is None
    same(chat(HELLO, drafts=4, **GREEDY), Chat(model)(HELLO, **GREEDY))


def test_sampled_answers_have_a_seed_and_are_drawn_alone_as_together(model):
    options = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 0.9, "drafts": 3, "adaptive": False}
    together = Chat(model)([HELLO, HELLO], seed=[1, 2], **options)
    assert together[0].text != together[1].text
    for seed, reply in zip((1, 2), together, strict=True):
        assert Chat(model)(HELLO, seed=seed, **options).text == reply.text


def test_stop_strings_and_budgets_judge_kept_tokens(model, drafter):
    free = Chat(model)(HELLO, **GREEDY)
    stop = free.text[3:5]
    same(Chat(model)(HELLO, drafts=5, stop=stop, **GREEDY), Chat(model)(HELLO, stop=stop, **GREEDY))
    options = {**GREEDY, "thinking": True, "budget": 4, "grace": 2, "max_new_tokens": 40}
    expected = Chat(model)(HELLO, **options)
    same(Chat(model)(HELLO, drafts=5, **options), expected)
    assert expected.reasoning


def test_a_draft_costs_its_share_of_the_weights():
    model = micro_model(mtp=MTPConfig(pattern="*E"))
    moe = model.config.context.moe

    def read(part):
        routed = moe.n_active_experts / moe.n_experts
        return sum(p.numel() * (routed if ".experts." in name else 1) for name, p in part.named_parameters())

    head = read(model.head)
    assert draft_cost(model) == pytest.approx((read(model.mtp) + head) / (read(model.context) + head))
    high, names = draft_cost(model), {n: t.shape for n, t in model.state_dict().items()}
    pack(model, choose(names, "fp8"))
    assert draft_cost(model) > high  # a trunk in eight bits is read sooner, and the block stays as it was


def test_bad_requests(model):
    with pytest.raises(ValueError, match=r"drafts is 3, but this model has no block that predicts further tokens"):
        Chat(micro_model())(HELLO, drafts=3)
    for drafts in (-1, 33):
        with pytest.raises(ValueError, match=f"drafts is {drafts}; it must be from 1 to 32"):
            Chat(model)(HELLO, drafts=drafts)
    with pytest.raises(ValueError, match="rollback is 'hope'; known: replay, snapshot"):
        Chat(model, rollback="hope")


def test_snapshots_need_no_gradients(model):
    with pytest.raises(ValueError, match="without gradients"):
        model.new_cache(1).begin(snapshots=True)
