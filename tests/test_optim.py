"""The optimiser: which tensors go where, and each half against a plain computation."""

import math

import pytest
import torch
from micro import MICRO
from torch import nn

from omni.model import Omni
from omni.optim import MuonAdamW, optimizer, orthogonalise, split


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 5, 16), (4, 24, 7), (1, 1, 9)])
def test_orthogonalising_brings_every_singular_value_close_to_one(shape):
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 100
    values = torch.linalg.svdvals(orthogonalise(stack).float())
    assert values.min() > 0.3  # the smallest of a square random matrix is far away and comes last
    assert values.max() < 1.3
    # Singular vectors stay: each matrix still points the same way.
    assert (orthogonalise(stack).float() * stack).sum((1, 2)).min() > 0


def test_matrices_of_a_stack_do_not_touch_each_other():
    stack = torch.randn(4, 6, 10)
    together = orthogonalise(stack)
    alone = torch.cat([orthogonalise(stack[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=0.02, rtol=0.02)


def test_every_parameter_is_in_one_group():
    model = Omni(MICRO)
    groups = split(model)
    ids = [id(p) for group in groups for p in group]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in model.parameters()}
    matrices = {id(p) for p in groups[0]}
    names = {n for n, p in model.named_parameters() if id(p) in matrices}
    assert "embed.weight" not in names
    assert "head.weight" not in names
    assert not any("router" in n or "conv1d" in n or "norm" in n or n.startswith("latents") for n in names)
    for part in (
        "in_proj",
        "q_proj",
        "experts.up_proj",
        "shared_experts.down_proj",
        "projector.up_proj",
        "vision.blocks",
    ):
        assert any(part in n for n in names), part


def test_muon_steps_along_the_orthogonal_gradient():
    for shape, scale in (((6, 10), 10), ((3, 4, 5), 5), ((4, 2, 3, 3), 18)):
        p = nn.Parameter(torch.randn(shape))
        before, p.grad = p.detach().clone(), torch.randn(shape)
        MuonAdamW([{"params": [p], "muon": True, "weight_decay": 0.1}], lr=0.01).step()
        stack = p.grad if p.dim() == 3 else p.grad.flatten(1)[None]
        update = orthogonalise(stack * 1.95).reshape(shape).float()  # momentum 0.95, looking ahead
        expected = before * (1 - 0.001) - 0.01 * 0.2 * math.sqrt(scale) * update
        torch.testing.assert_close(p.detach(), expected, atol=1e-4, rtol=0)


def test_the_rest_is_torchs_adamw():
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(5, 3)) for _ in range(2))
    mine = MuonAdamW([{"params": [ours], "weight_decay": 0.1}], lr=0.02, betas=(0.9, 0.98))
    peer = torch.optim.AdamW([theirs], lr=0.02, betas=(0.9, 0.98), weight_decay=0.1)
    for _ in range(4):
        ours.grad = torch.randn(5, 3)
        theirs.grad = ours.grad.clone()
        mine.step()
        peer.step()
    torch.testing.assert_close(ours, theirs)


def test_tensors_without_a_gradient_stay_as_they_are():
    model = Omni(MICRO)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    chosen = optimizer(model, weight_decay=0.1, betas=(0.9, 0.98))
    model.embed.weight.grad = torch.randn_like(model.embed.weight)
    chosen.param_groups[0]["lr"] = chosen.param_groups[1]["lr"] = 0.1
    chosen.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"embed.weight"}
