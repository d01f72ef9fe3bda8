"""Chats whose answers are denoised: what the cache holds, the context's judgement, batches, turns, what cannot be."""

import json

import pytest
import torch
from micro import MICRO, micro_model
from test_chat import HELLO

from omni import cli
from omni.config import MTPConfig, TokenDiffusionConfig, replace
from omni.families import save
from omni.inputs import Inputs
from omni.model import Omni
from omni.pipelines import diffusing
from omni.pipelines.chat import Chat
from omni.pipelines.diffusing import DiffusingReader, without_seeds
from omni.pipelines.drafting import ROLLBACKS
from omni.tokenizers.bytes import ByteTokenizer

SIZES = {"vision": None, "latent": None, "diffusion": TokenDiffusionConfig(block_size=6, steps=5, threshold=0.05)}
TALKS = [HELLO, [{"role": "user", "content": "What is it, and why? " * 3}], [{"role": "user", "content": "A"}]]
GREEDY = {"max_new_tokens": 15, "temperature": 0, "logprobs": 0}
LETTERS = {ByteTokenizer().encode(letter)[0] for letter in "abcdefghij"}
SPELT = {token: -100.0 for token in range(320) if token not in LETTERS}  # an answer that can be read again


@pytest.fixture(scope="module")
def model() -> Omni:
    """In float64: a block is read at once or in parts, and rounding must not decide between two tokens."""
    return micro_model(**SIZES, mtp=MTPConfig(pattern="*E")).double()


def ids_of(reply) -> list[int]:
    return [token.id for token in reply.logprobs]


def written(model: Omni, prompt: list[int], count: int, block: int, steps: int, threshold: float) -> tuple[list, int]:
    """The rule, greedy, for one text: before every block all of it is read anew."""
    text, nfe = list(prompt), 0
    while len(text) < len(prompt) + count:
        cache = model.new_cache(1)
        model.read(torch.tensor([text]), cache)
        x = torch.full((block,), 3)
        wanted = min(block, len(prompt) + count - len(text))
        for step in range(steps):
            masked = [i for i in range(wanted) if x[i] == 3]
            if not masked:
                break
            t = (x == 3).double().mean()[None].float()
            p, best = model.denoise_tokens(x[None], t, cache)[0].softmax(-1).max(-1)
            nfe += 1
            above = sum(float(p[i]) > threshold for i in masked)
            n = max(above, 1, -(-len(masked) // (steps - step))) if step < steps - 1 else len(masked)
            for i in sorted(masked, key=lambda i: -float(p[i]))[:n]:
                x[i] = best[i]
        text += x[:wanted].tolist()
    return text[len(prompt) :], nfe


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"block": 4, "steps": 2}, {"threshold": 0.5, "block": 9}], ids=str)
def test_an_answer_is_what_the_rule_writes(model, options):
    """Blocks are committed to the cache as if the text had been read from the beginning."""
    prompt = model.prepare([HELLO]).input_ids[0].tolist()
    how = {"block": 6, "steps": 5, "threshold": 0.05} | options
    expected, nfe = written(model, prompt, 15, **how)
    assert not {2, 11} & set(expected), "no end among them"
    reply = Chat(model, chunk=7)(HELLO, decode="diffusion", **options, **GREEDY)
    assert ids_of(reply) == expected
    took = reply.usage.denoising
    assert (took.passes, took.tokens, took.commits) == (nfe, 15, -(-15 // how["block"]) - 1)
    assert reply.usage.drafts is None


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.8, "top_p": 0.95, "seed": [1, 2, 3]}], ids=["greedy", "drawn"]
)
def test_answers_of_a_batch_are_those_of_its_rows_alone(model, sampling):
    options = GREEDY | sampling | {"decode": "diffusion"}
    together = Chat(model, chunk=9)(TALKS, **options)
    for i, (reply, talk) in enumerate(zip(together, TALKS, strict=True)):
        own = options | ({"seed": sampling["seed"][i]} if sampling else {})
        alone = Chat(model)(talk, **own)
        assert ids_of(reply) == ids_of(alone)
        assert [t.logprob for t in reply.logprobs] == pytest.approx([t.logprob for t in alone.logprobs], abs=1e-6)
        assert reply.usage.denoising == alone.usage.denoising


@pytest.mark.parametrize("rollback", ROLLBACKS)
@pytest.mark.parametrize("block", [1, 6])
def test_lossless_answers_are_the_plain_ones(model, block, rollback):
    """Greedy and drawn, with the same seeds, in a batch whose rows accept different numbers."""
    for sampling in ({}, {"temperature": 0.9, "top_p": 0.9, "seed": [5, 6, 7]}, {"frequency_penalty": 1.0}):
        options = GREEDY | sampling
        expected = Chat(model)(TALKS, **options)
        found = Chat(model, 9, rollback)(TALKS, decode="diffusion", lossless=True, block=block, **options)
        for one, other in zip(found, expected, strict=True):
            assert ids_of(one) == ids_of(other)
            assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
            assert one.usage.denoising.tokens == one.tokens
            assert one.usage.denoising.commits <= one.tokens - 1


def test_lossless_answers_with_a_budget_and_stop_strings(model):
    how = {"decode": "diffusion", "lossless": True}
    free = Chat(model)(HELLO, **GREEDY)
    assert Chat(model)(HELLO, stop=free.text[3:5], **how, **GREEDY).text == free.text[:3]
    options = GREEDY | {"thinking": True, "budget": 4, "grace": 2, "max_new_tokens": 25}
    expected = Chat(model)(HELLO, **options)
    found = Chat(model)(HELLO, **how, **options)
    assert (found.text, found.reasoning, ids_of(found)) == (expected.text, expected.reasoning, ids_of(expected))
    assert expected.reasoning
    lossy = Chat(model)(HELLO, decode="diffusion", **options | {"logprobs": None})
    assert 0 < len(lossy.reasoning) <= 6


@pytest.mark.parametrize("lossless", [False, True])
def test_a_conversation_goes_on_from_what_was_read(model, lossless):
    chat, messages = Chat(model), list(HELLO)
    options = GREEDY | {"logit_bias": SPELT, "decode": "diffusion", "lossless": lossless}
    for turn in range(2):
        found, fresh = chat(messages, **options), Chat(model)(messages, **options)
        assert ids_of(found) == ids_of(fresh)
        assert (found.usage.reused_tokens > 0) == (turn > 0)
        messages += [found.as_message(), {"role": "user", "content": f"And {turn}?"}]
    plain = GREEDY | {"logit_bias": SPELT}
    assert ids_of(chat(messages, **plain)) == ids_of(Chat(model)(messages, **plain)), "a plain answer may follow"


def test_a_stream_that_is_stopped_leaves_a_chat_that_works(model):
    chat = Chat(model)
    stream = chat(HELLO, decode="diffusion", stream=True, **GREEDY)
    for _ in range(8):
        next(stream)
    stream.close()
    options = GREEDY | {"decode": "diffusion"}
    assert ids_of(chat(HELLO, **options)) == ids_of(Chat(model)(HELLO, **options))


# -- the reader ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_reader_reads_what_each_row_has_taken(model):
    prompts = model.prepare(TALKS)
    reader = DiffusingReader(model, prompts, None, 20)
    reader.read(64)
    tokens = torch.randint(40, 90, (3, 5))
    reader.commit(tokens, torch.tensor([5, 0, 2]))
    reader.keep(torch.tensor([0, 2]))
    reader.commit(tokens[[0, 2]], torch.tensor([1, 5]))
    block, t = torch.full((1, 4), 3), torch.ones(1)
    for row, (own, more) in enumerate(
        [(0, [*tokens[0].tolist(), int(tokens[0, 0])]), (2, [*tokens[2, :2], *tokens[2]])]
    ):
        text = prompts.input_ids[own][prompts.mask[own]].tolist() + [int(i) for i in more]
        cache = model.new_cache(1)
        model.read(torch.tensor([text]), cache)
        expected = model.denoise_tokens(block, t, cache)
        torch.testing.assert_close(reader.denoise(block, t, torch.tensor([row])), expected)
    both = reader.denoise(block.expand(2, -1), t.expand(2), torch.tensor([0, 1]))
    torch.testing.assert_close(both[1:], expected)
    assert reader._context(torch.tensor([0, 1])) is reader.cache, "all rows: nothing is copied"


@torch.no_grad()
def test_what_can_be_left_out(model):
    prompt = Inputs(torch.randint(40, 90, (2, 9)))
    block, t, rows = torch.full((2, 4), 3), torch.full((2,), 0.9), torch.arange(2)

    def said(*ablate):
        reader = DiffusingReader(model, prompt, None, 9, ablate=ablate)
        reader.read(64)
        found = reader.denoise(block, t, rows)
        assert all(bool(s.ssm.any()) for s in reader.cache.slots if hasattr(s, "ssm")), "the context keeps its states"
        return found

    cache = model.new_cache(2)
    model.read(prompt, cache)
    for ablate, time, context in (
        ((), t, cache),
        (("time",), torch.full((2,), diffusing.FROZEN_TIME), cache),
        (("seeds",), t, without_seeds(cache)),
    ):
        torch.testing.assert_close(said(*ablate), model.denoise_tokens(block, time, context))
    assert not torch.allclose(said("seeds"), said())
    assert not torch.allclose(said("time"), said())
    at_once = Chat(model)(HELLO, decode="diffusion", ablate=["remask"], **GREEDY).usage.denoising
    assert at_once.passes == at_once.commits + 1 == -(-at_once.tokens // 6)


# -- what cannot be ------------------------------------------------------------------------------------------


def test_bad_requests(model):
    chat, plain = Chat(model), Chat(micro_model())
    for asked, options, words in (
        (plain, {"decode": "diffusion"}, "has no denoiser for tokens"),
        (chat, {"decode": "magic"}, "decode is 'magic'; known: plain, diffusion"),
        (chat, {"threshold": 0.5}, "threshold belong to decode='diffusion'; decode is 'plain'"),
        (chat, {"lossless": True, "steps": 3}, "steps, lossless belong to"),
        (chat, {"decode": "diffusion", "drafts": 3}, "drafts is 3 and decode is 'diffusion'"),
        (chat, {"decode": "diffusion", "block": 0}, "block is 0"),
        (chat, {"decode": "diffusion", "threshold": 7}, "threshold is 7"),
        (chat, {"decode": "diffusion", "ablate": ["hope"]}, "ablate names \\['hope'\\]"),
    ):
        with pytest.raises(ValueError, match=words):
            asked(HELLO, **options)


def test_command_line(tmp_path, capsys):
    folder = tmp_path / "micro"
    source = micro_model(**SIZES)
    save(source, folder)
    source.tokenizer.save(folder)
    common = ["chat", "Hi", "--model", str(folder), "--max-new-tokens", "12", "--temperature", "0", "--json"]
    assert cli.main([*common, "--decode", "diffusion", "--threshold", "0.1", "--block", "4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens_per_pass"] == found["tokens"] / found["passes"]
    assert cli.main(common) == 0
    plain = json.loads(capsys.readouterr().out)
    assert "passes" not in plain
    assert cli.main([*common, "--decode", "diffusion", "--lossless"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == plain["text"]
    for options, code, words in (
        (["--threshold", "0.5"], 2, "--threshold belong to --decode diffusion"),
        (["--decode", "diffusion", "--drafts", "2"], 2, "--drafts and --decode diffusion"),
        (["--decode", "diffusion", "--threshold", "1.5"], 2, "threshold"),
        (["--decode", "else"], 2, "invalid choice"),
    ):
        assert cli.main([*common, *options]) == code
        assert words in capsys.readouterr().err
    other = tmp_path / "plain"
    save(Omni(replace(MICRO, vision=None, latent=None)), other)
    source.tokenizer.save(other)
    assert cli.main(["chat", "Hi", "--model", str(other), "--decode", "diffusion"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
