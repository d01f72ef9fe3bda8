"""The likelihood's bound against every mask there is, and what it cannot be asked."""

import itertools
import math

import pytest
import torch
from test_training_diffusion import MASK, everything, system
from towers import ids

from omni.blocks import cut
from omni.likelihood import _masks, likelihood_bound
from omni.model import Omni


def said(model: Omni, before: torch.Tensor, block: torch.Tensor, masked: tuple[int, ...], size: int) -> torch.Tensor:
    """Log-probabilities of the masked tokens of one block, whose places behind the text are masked too."""
    noisy = torch.full((size,), MASK)
    noisy[: len(block)] = block
    noisy[list(masked)] = MASK
    cache = model.new_cache(1)
    model.read(before[None], cache)
    t = (noisy == MASK).float().mean()[None]
    logits = model.denoise_tokens(noisy[None], t, cache)[0].log_softmax(-1)
    return torch.stack([logits[i, block[i]] for i in masked])


def exact(model: Omni, text: torch.Tensor, start: int, size: int) -> float:
    """Every mask of every block, with the integral over the time of t^(m - 1) (1 - t)^(L - m) as its weight."""
    total = 0.0
    for at in range(start, len(text), size):
        block = text[at : at + size]
        for m in range(1, len(block) + 1):
            weight = math.gamma(m) * math.gamma(len(block) - m + 1) / math.gamma(len(block) + 1)
            for masked in itertools.combinations(range(len(block)), m):
                total += weight * float(said(model, text[:at], block, masked, size).sum())
    return total


@torch.no_grad()
def test_the_bound_is_the_mean_over_all_masks():
    model = system("M*E", 4)
    text = ids(2, 9, vocab=31) % 27 + 4
    scored = torch.arange(9) >= torch.tensor([[3], [6]])
    found = likelihood_bound(model, text, scored, samples=160, generator=torch.Generator().manual_seed(0))
    for row, start in enumerate((3, 6)):
        expected = exact(model, text[row], start, 4)
        assert float(found.error[row]) < 0.05 * abs(expected)
        assert float(found.value[row]) == pytest.approx(expected, abs=4 * float(found.error[row]))


@torch.no_grad()
def test_a_block_of_one_token_is_exact_and_the_bound_is_one():
    model = system("M*", 3)
    text = ids(1, 6, vocab=31) % 27 + 4
    one = likelihood_bound(model, text, torch.arange(6)[None] >= 3, samples=2, block=1)
    steps = [said(model, text[0, :i], text[0, i : i + 1], (0,), 1) for i in (3, 4, 5)]
    assert float(one.value) == pytest.approx(float(sum(steps)))
    assert float(one.error) == pytest.approx(0, abs=1e-12)
    block, orders = text[0, 3:], []
    for order in itertools.permutations(range(3)):
        left = [tuple(sorted(order[i:])) for i in range(3)]
        chain = [said(model, text[0, :3], block, own, 3)[own.index(i)] for own, i in zip(left, order, strict=True)]
        orders.append(float(sum(chain)))
    log_mean = math.log(sum(map(math.exp, orders)) / len(orders))
    assert exact(model, text[0], 3, 3) == pytest.approx(sum(orders) / len(orders))
    assert exact(model, text[0], 3, 3) < log_mean, "the likelihood of tokens revealed one by one in a random order"


def test_masks_are_stratified():
    text = ids(3, 14, vocab=31) % 27 + 4
    blocks = cut(text, text > 0, everything(text).learnt, torch.tensor([2, 3, 5]), 4)
    masks = _masks(blocks, 24, None)
    assert not bool((masks & ~blocks.learnt).any())
    for i, learnt in enumerate(blocks.learnt.sum(dim=1).tolist()):
        counts = masks[:, i].sum(dim=-1).bincount(minlength=learnt + 1).tolist()
        assert counts == [0, *[24 // learnt] * learnt]


@torch.no_grad()
def test_padding_counts_for_nothing_and_rows_are_alone():
    model = system("M*E", 4)
    text = ids(2, 8, vocab=31) % 27 + 4
    real = torch.arange(8) < torch.tensor([[8], [5]])
    scored = real & (torch.arange(8) >= 3)
    found = likelihood_bound(model, text, scored, real=real, samples=80)
    alone = likelihood_bound(model, text[1:, :5], scored[1:, :5], samples=80)
    assert float(found.value[1]) == pytest.approx(float(alone.value), abs=5 * float(alone.error))
    other = text.clone()
    other[1, 5:] = 9
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    a, b = (
        likelihood_bound(model, t, scored, real=real, samples=2, generator=g)
        for t, g in zip((text, other), generators, strict=True)
    )
    torch.testing.assert_close(a, b)
    nothing = likelihood_bound(model, text, torch.zeros_like(scored))
    assert (nothing.value.tolist(), nothing.error.tolist()) == ([0, 0], [0, 0])
    assert likelihood_bound(model, text, scored, samples=1).error.tolist() == [math.inf] * 2


def test_what_cannot_be_scored():
    model, text = system("M", 4), ids(1, 5, vocab=31)
    with pytest.raises(ValueError, match="first token"):
        likelihood_bound(model, text, torch.ones_like(text, dtype=torch.bool))
    with pytest.raises(ValueError, match="samples is 0"):
        likelihood_bound(model, text, text < 0, samples=0)
    model.tokens = None
    with pytest.raises(ValueError, match="no denoiser for tokens"):
        likelihood_bound(model, text, text < 0)
