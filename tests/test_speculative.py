"""Speculative decoding over fake models: the same answers, the same distribution, ends, budgets, lengths of drafts."""

import itertools
import math
import random

import pytest
import torch

from omni.decoders import speculative
from omni.decoders.autoregressive import Row, generate
from omni.decoders.budget import ReasoningBudget
from omni.decoders.sampling import Sampler, SamplingParams
from omni.decoders.speculative import Acceptance, DraftLength, speculate
from omni.tokenizers.text import ByteTokenizer, StreamDecoder

TOKENIZER = ByteTokenizer()
END = 11
V = 320


class Chain:
    """A model whose logits follow from the last two tokens and the row, and a drafter that is right in part.

    ``skill``: how near the drafter's logits are to the model's, from 0 to 1.
    """

    def __init__(self, rows: int, vocab: int = V, skill: float = 0.7, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.p = torch.randn(rows, vocab, vocab, generator=generator) * 2
        self.q = skill * self.p + (1 - skill) * torch.randn(rows, vocab, vocab, generator=generator) * 2
        self.alive = list(range(rows))
        self.read: list[list[int]] = [[0] for _ in range(rows)]
        self.passes = 0
        self._window: torch.Tensor | None = None

    def start(self) -> torch.Tensor:
        return torch.stack([self.p[r, 0] for r in self.alive])

    # -- token by token

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.rows_of(self.p, tokens)

    def rows_of(self, table: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return torch.stack([table[r, t] for r, t in zip(self.alive, tokens.tolist(), strict=True)])

    def keep(self, rows: torch.Tensor) -> None:
        self.alive = [self.alive[i] for i in rows.tolist()]

    # -- drafts

    def draft(self, tokens, k, choose):
        assert self._window is None
        drafts = [tokens]
        for _ in range(k):
            drafts.append(choose(self.rows_of(self.q, drafts[-1])))
        return torch.stack(drafts, dim=1)[:, 1:]

    def verify(self, tokens):
        self.passes += 1
        self._window = tokens
        return torch.stack([self.step(column) for column in tokens.T], dim=1)

    def accept(self, counts):
        for r, row, n in zip(self.alive, self._window.tolist(), counts.tolist(), strict=True):
            assert 1 <= n <= len(row)
            self.read[r] += row[:n]
        self._window = None


def row(**options) -> Row:
    sampling = {"temperature": 0, "seed": 0, **options.pop("sampling", {})}
    options = {"max_new_tokens": 60, "eos": frozenset([END]), **options}
    return Row(SamplingParams(**sampling), StreamDecoder(TOKENIZER, special=True), **options)


def plain(chain: Chain, rows: list[Row]) -> list:
    return list(generate(chain.start(), rows, chain.step, chain.keep))


def drafted(chain: Chain, rows: list[Row], k: int, cost: float | None = None, counts=()) -> list:
    return list(speculate(chain.start(), rows, chain, DraftLength(k, cost), counts))


def by_row(events: list, rows: int) -> list[list]:
    return [[event for event in events if event.row == r] for r in range(rows)]


# -- the same answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 5, 9])
@pytest.mark.parametrize("skill", [0.0, 0.6, 0.9, 1.0])
def test_a_greedy_answer_is_the_plain_one_and_reads_just_that(k, skill):
    rows = 4
    options = [{"max_new_tokens": n, "sampling": {"logprobs": 2}} for n in (1, 7, 40, 60)]
    expected = by_row(plain(Chain(rows, skill=skill), [row(**o) for o in options]), rows)
    chain = Chain(rows, skill=skill)
    counts = [Acceptance() for _ in range(rows)]
    found = by_row(drafted(chain, [row(**o) for o in options], k, counts=counts), rows)
    assert found == expected
    for events, read, count in zip(found, chain.read, counts, strict=True):
        assert read == [0] + [event.token for event in events[:-1]]
        assert len(events) <= count.accepted + count.passes + 1
        assert count.accepted <= count.drafted <= k * count.passes
    if skill == 1:
        assert chain.passes <= math.ceil(59 / (k + 1)) + 1
    assert counts[3].tokens_per_pass == counts[3].accepted_per_pass + 1


@pytest.mark.parametrize(
    "sampling",
    [
        {"repetition_penalty": 1.4},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"logit_bias": {40: 5.0, 41: -3.0}},
    ],
)
def test_greedy_with_penalties_counts_drafts_as_they_are_kept(sampling):
    expected = plain(Chain(2), [row(sampling=sampling) for _ in range(2)])
    counts = [Acceptance(), Acceptance()]
    found = drafted(Chain(2), [row(sampling=sampling) for _ in range(2)], 4, counts=counts)
    assert by_row(found, 2) == by_row(expected, 2)
    assert min(count.accepted for count in counts) > 0


def test_a_text_ends_at_its_stop_string_or_end_token_and_no_further():
    for seed in range(6):
        free = plain(Chain(1, seed=seed), [row(eos=frozenset())])
        text = "".join(event.text for event in free)
        stop, end = text[9:11], free[12].token
        for options in ({"eos": frozenset(), "stop": (stop,)}, {"eos": frozenset([end])}):
            expected = plain(Chain(1, seed=seed), [row(**options)])
            chain = Chain(1, seed=seed)
            assert drafted(chain, [row(**options)], 6) == expected
            assert expected[-1].finish == "stop"
            assert chain.read[0] == [0] + [event.token for event in expected[:-1]]


def test_a_budget_forces_tokens_between_drafts():
    def control():
        end = TOKENIZER.encode("</think>")
        return ReasoningBudget(6, end, lambda ids: TOKENIZER.decode(ids, special=True), grace=3)

    for seed in range(4):
        expected = plain(Chain(1, seed=seed), [row(eos=frozenset(), budget=control())])
        found = drafted(Chain(1, seed=seed), [row(eos=frozenset(), budget=control())], 5)
        assert found == expected
        assert "</think>" in "".join(event.text for event in found)


def test_the_generator_may_be_closed_between_any_two_events():
    chain = Chain(1)
    events = speculate(chain.start(), [row(eos=frozenset())], chain, DraftLength(5))
    for event in itertools.islice(events, 12):
        assert chain._window is None
        assert event.finish is None
    events.close()
    assert chain.draft(torch.tensor([1]), 0, None).shape == (1, 0)


# -- the same distribution -------------------------------------------------------------------------------


def exact(chain: Chain, params: SamplingParams, length: int) -> dict[tuple, float]:
    """Probability of every answer of ``length`` tokens, by the sampler's own arithmetic."""
    found = {(): 1.0}
    for _ in range(length):
        longer = {}
        for answer, share in found.items():
            sampler = Sampler([params])
            sampler._answers[0] = list(answer)
            logits = chain.p[0, answer[-1] if answer else 0]
            for token, p in enumerate(sampler.shaped(0, logits).double().softmax(-1).tolist()):
                if p:
                    longer[(*answer, token)] = share * p
        found = longer
    return found


@pytest.mark.parametrize(
    "sampling",
    [{}, {"temperature": 0.6}, {"top_k": 3}, {"top_p": 0.8, "min_p": 0.05}, {"presence_penalty": 1.5}],
    ids=lambda s: next(iter(s), "plain"),
)
@pytest.mark.parametrize("skill", [0.2, 0.8])
def test_answers_are_distributed_as_the_models_own(sampling, skill):
    """Chi-square of 2,500 answers of three tokens against their exact probabilities."""
    n, length, vocab = 2500, 3, 4
    chain = Chain(1, vocab, skill)
    params = {"temperature": 1.0, **sampling}
    chain.p[0, :] *= 0.6
    expected = exact(chain, SamplingParams(**params), length)
    chain.p, chain.q = (table.expand(n, -1, -1) for table in (chain.p, chain.q))
    chain.alive, chain.read = list(range(n)), [[0] for _ in range(n)]
    rows = [row(max_new_tokens=length, eos=frozenset(), sampling={**params, "seed": i}) for i in range(n)]
    counts = [Acceptance() for _ in range(n)]
    answers = [tuple(e.token for e in events) for events in _sorted(drafted(chain, rows, 2, counts=counts), n)]
    assert set(answers) <= set(expected)
    squares = sum((answers.count(a) - n * p) ** 2 / (n * p) for a, p in expected.items() if n * p >= 4)
    rare = sum(p for p in expected.values() if n * p < 4)
    assert sum(expected[a] * n < 4 for a in answers) < n * rare + 5 * math.sqrt(n * rare + 1)
    freedom = sum(n * p >= 4 for p in expected.values()) - 1
    assert squares < freedom + 4.5 * math.sqrt(2 * freedom), (squares, freedom)
    assert 0 < sum(c.accepted for c in counts) < sum(c.drafted for c in counts)


def _sorted(events: list, rows: int) -> list[list]:
    found = [[] for _ in range(rows)]
    for event in events:
        found[event.row].append(event)
    return found


def test_a_wrong_rule_would_be_noticed(monkeypatch):
    """Keeping every draft gives the drafter's distribution: the test above can fail."""
    monkeypatch.setattr(
        speculative._Drafted,
        "_judge",
        lambda self, r, i, logits, best: (self.tokens[r][i], True) if i < len(self.tokens[r]) else (best, False),
    )
    with pytest.raises(AssertionError):
        test_answers_are_distributed_as_the_models_own({}, 0.2)


def test_sampled_rows_of_different_lengths_end_at_their_own():
    """A row near its end is drafted more than it can use: what it was not drawn from is not judged."""
    for seed in range(8):
        lengths = (1, 2, 3, 17, 30)
        rows = [row(max_new_tokens=n, eos=frozenset(), sampling={"temperature": 1.0, "seed": seed}) for n in lengths]
        found = by_row(drafted(Chain(5, skill=0.8, seed=seed), rows, 6), 5)
        assert [len(events) for events in found] == list(lengths)
        assert [events[-1].finish for events in found] == ["length"] * 5


def test_a_perfect_drafter_is_always_kept_and_rows_are_drawn_alone_as_together():
    sampling = {"temperature": 1.0, "top_p": 0.9}
    counts = [Acceptance()]
    drafted(Chain(1, skill=1.0), [row(eos=frozenset(), sampling=sampling)], 4, counts=counts)
    assert counts[0].accepted >= counts[0].drafted - 4
    chain = Chain(3, skill=0.5)
    together = by_row(drafted(chain, [row(sampling={**sampling, "seed": s}) for s in range(3)], 3), 3)
    for r in range(3):
        alone = Chain(3, skill=0.5)
        alone.alive, alone.read = [r], alone.read
        (events,) = by_row(drafted(alone, [row(sampling={**sampling, "seed": r})], 3), 1)
        ids = [event.token for event in events]
        assert [event.token for event in together[r]] == ids


# -- lengths ---------------------------------------------------------------------------------------------


def test_lengths_follow_what_holds():
    fixed = DraftLength(5)
    assert [fixed(room) for room in (0, 1, 3, 9)] == [0, 1, 3, 5]
    adaptive = DraftLength(8, cost=0.1)
    assert adaptive(20) == 8
    for _ in range(30):
        adaptive.note(0, 1)
    assert adaptive.rate < 0.05
    assert adaptive(20) == 1
    for _ in range(60):
        adaptive.note(8, 8)
    assert adaptive.rate > 0.95
    assert adaptive(20) == 8
    dear = DraftLength(8, cost=0.9)
    for _ in range(30):
        dear.note(1, 2)
    assert dear(20) == 1
    best = max(range(1, 9), key=lambda k: (1 - 0.5 ** (k + 1)) / 0.5 / (1 + 0.1 * k))
    half = DraftLength(8, cost=0.1)
    for _ in range(200):
        half.note(1, 2)
    assert half(20) == best


def test_adaptive_lengths_change_no_greedy_answer():
    rng = random.Random(0)
    for _ in range(5):
        skill, seed = rng.random(), rng.randrange(100)
        expected = plain(Chain(2, skill=skill, seed=seed), [row(), row()])
        found = drafted(Chain(2, skill=skill, seed=seed), [row(), row()], 8, cost=0.2)
        assert by_row(found, 2) == by_row(expected, 2)


def test_bad_lengths_and_broken_logits():
    for most in (0, 33):
        with pytest.raises(ValueError, match=rf"drafts is {most}; it must be from 1 to 32"):
            DraftLength(most)
    with pytest.raises(ValueError, match="cost of a draft is 0"):
        DraftLength(2, 0)
    chain = Chain(1)
    chain.verify = lambda tokens: torch.full((*tokens.shape, V), math.nan)
    with pytest.raises(ValueError, match="no finite maximum"):
        drafted(chain, [row()], 2)
