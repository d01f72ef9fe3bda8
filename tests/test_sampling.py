"""Samplers: each filter against its definition, distributions, seeds and limits."""

import math

import pytest
import torch

from omni.decoders.sampling import (
    Sampler,
    SamplingParams,
    bias,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize,
)


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def kept(logits: torch.Tensor) -> list[int]:
    return (logits > -math.inf).nonzero().flatten().tolist()


def test_filters_keep_what_they_say():
    logits = logits_of(0.1, 0.4, 0.2, 0.3)
    assert kept(keep_top_k(logits, 2)) == [1, 3]
    assert kept(keep_top_k(logits, 0)) == kept(keep_top_k(logits, 9)) == [0, 1, 2, 3]
    assert kept(keep_top_p(logits, 0.05)) == [1]
    assert kept(keep_top_p(logits, 0.69)) == [1, 3]
    assert kept(keep_top_p(logits, 0.71)) == [1, 2, 3]
    assert kept(keep_top_p(logits, 1.0)) == [0, 1, 2, 3]
    assert kept(keep_min_p(logits, 0.6)) == [1, 3]
    assert kept(keep_min_p(logits, 0.0)) == [0, 1, 2, 3]


def test_filters_work_on_batches():
    torch.manual_seed(0)
    logits = torch.randn(3, 50)
    for change in (lambda x: keep_top_k(x, 5), lambda x: keep_top_p(x, 0.7), lambda x: keep_min_p(x, 0.1)):
        assert torch.equal(change(logits), torch.stack([change(row) for row in logits]))


def test_penalties_and_bias():
    logits = torch.tensor([2.0, -2.0, 2.0, 1.0])
    prompt, answer = torch.tensor([1, 1, 0, 0]), torch.tensor([0, 0, 0, 2])
    out = penalize(logits, prompt, answer, SamplingParams(repetition_penalty=2.0))
    assert out.tolist() == [1.0, -4.0, 2.0, 0.5]
    out = penalize(logits, prompt, answer, SamplingParams(presence_penalty=0.5, frequency_penalty=0.25))
    assert out.tolist() == [2.0, -2.0, 2.0, 0.0]
    assert bias(logits, {1: 5.0}).tolist() == [2.0, 3.0, 2.0, 1.0]
    with pytest.raises(ValueError, match="token 4; the vocabulary has 4"):
        bias(logits, {4: 1.0})


def test_draw_follows_the_distribution():
    logits = logits_of(0.5, 0.0, 0.2, 0.3)
    edges = [(0.0, 0), (0.49, 0), (0.51, 2), (0.69, 2), (0.71, 3), (1 - 1e-12, 3)]
    assert [(u, int(draw(logits, u))) for u, _ in edges] == edges
    assert int(draw(logits_of(0.0, 1.0, 0.0), 1 - 2**-53)) == 1
    sampler = Sampler([SamplingParams(seed=3)])
    counts = torch.bincount(torch.tensor([sampler(logits[None])[0].token for _ in range(2000)]), minlength=4)
    assert counts[1] == 0
    assert torch.allclose(counts / 2000, logits.exp(), atol=0.04)


def test_a_row_does_not_feel_its_batch():
    torch.manual_seed(0)
    steps = torch.randn(12, 3, 40)
    params = [
        SamplingParams(seed=7, temperature=0.8, top_p=0.9),
        SamplingParams(seed=8, top_k=4, repetition_penalty=1.3),
        SamplingParams(seed=9, temperature=0, presence_penalty=1.0),
    ]
    prompts = [[1, 2], [3], [4, 5, 6]]
    together = Sampler(params, prompts)
    tokens = [[c.token for c in together(step)] for step in steps[:6]]
    together.keep([0, 2])  # the middle row is done
    tokens_after = [[c.token for c in together(step[[0, 2]])] for step in steps[6:]]
    for row, column in ((0, 0), (2, 1)):
        alone = Sampler([params[row]], [prompts[row]])
        expected = [alone(step[row : row + 1])[0].token for step in steps]
        assert [t[row] for t in tokens] + [t[column] for t in tokens_after] == expected


def test_greedy_penalties_change_the_choice():
    logits = torch.tensor([[3.0, 2.9, 0.0]])
    sampler = Sampler([SamplingParams(temperature=0, frequency_penalty=0.5)])
    assert [sampler(logits)[0].token for _ in range(4)] == [0, 1, 0, 1]


def test_logprobs_are_the_models_own():
    logits = logits_of(0.5, 0.3, 0.2)[None]
    choice = Sampler([SamplingParams(temperature=0, logprobs=2)])(logits)[0]
    assert choice.token == 0
    assert choice.logprob == pytest.approx(math.log(0.5))
    assert [t for t, _ in choice.top] == [0, 1]
    forced = Sampler([SamplingParams(seed=0, top_k=1, logprobs=0)])(logits, forced=[2])[0]
    assert (forced.token, forced.top) == (2, ())
    assert forced.logprob == pytest.approx(math.log(0.2))
    assert Sampler([SamplingParams()])(logits)[0].logprob is None


def test_forcing_leaves_later_draws_alone():
    torch.manual_seed(1)
    steps = torch.randn(5, 1, 30)
    free, led = (Sampler([SamplingParams(seed=5)]) for _ in range(2))
    expected = [free(step)[0].token for step in steps]
    found = [led(step, forced=[0 if i == 1 else None])[0].token for i, step in enumerate(steps)]
    assert found[2:] == expected[2:]
    assert found[1] == 0


def test_without_a_seed_draws_differ():
    logits = torch.zeros(1, 10_000)
    draws = {Sampler([SamplingParams()])(logits)[0].token for _ in range(4)}
    assert len(draws) > 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", "hot"),
        ("top_k", 1.5),
        ("top_k", -1),
        ("top_p", 0),
        ("top_p", 1.1),
        ("min_p", -0.5),
        ("repetition_penalty", 0),
        ("presence_penalty", 3),
        ("frequency_penalty", math.inf),
        ("seed", -1),
        ("seed", True),
        ("logprobs", 21),
        ("logit_bias", {-1: 0.0}),
        ("logit_bias", {1: 101}),
        ("logit_bias", dict.fromkeys(range(1025), 0.0)),
    ],
)
def test_limits_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        SamplingParams(**{name: value})


def test_broken_logits_are_refused():
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="row 1"):
            Sampler([SamplingParams()] * 2)(torch.tensor([[0.0, 1.0], [0.0, bad]]))
    with pytest.raises(ValueError, match="row 0"):
        Sampler([SamplingParams()])(torch.full((1, 3), -math.inf))
    with pytest.raises(ValueError, match="must be"):
        Sampler([SamplingParams()])(torch.zeros(2, 3))
