"""Routing, experts, and balancing without a loss, against loops written out by hand."""

import itertools

import pytest
import torch
from towers import GROUPS, build_tower, close, noise, tower_config

from omni.mixers.moe import MoE, Router

CASES = {
    "plain": {},
    "latent": {"d_latent": 8},
    "wide latent": {"d_latent": 31},
    "groups": GROUPS,
    "one group of two": {"n_expert_groups": 2, "n_active_groups": 1, "d_latent": 8},
    "all experts": {"n_active_experts": 6},
    "one expert": {"n_active_experts": 1},
    "not normalised": {"normalize": False, "scale": 0.5},
}


def moe(changes: dict | None = None, dtype=torch.float64) -> MoE:
    mixer = build_tower(tower_config("E", moe=changes), dtype).blocks[0].mixer
    mixer.router.bias.mul_(3)  # far enough from zero to change who is chosen
    return mixer


def chosen_by_hand(router: Router, x):
    """Experts and weights of one token: sigmoid scores, biased for the choice and only for it."""
    c = router.config
    scores = torch.sigmoid(router.weight.double() @ x.double())
    biased = {e: float(scores[e] + router.bias[e]) for e in range(c.n_experts)}
    size = c.n_experts // c.n_expert_groups
    groups = [range(g * size, (g + 1) * size) for g in range(c.n_expert_groups)]
    if c.n_expert_groups > 1:
        groups.sort(key=lambda group: -sum(sorted((biased[e] for e in group), reverse=True)[:2]))
    allowed = list(itertools.chain(*groups[: c.n_active_groups]))
    best = sorted(allowed, key=lambda e: -biased[e])[: c.n_active_experts]
    total = sum(scores[e] for e in best) if c.normalize else 1.0
    return {e: scores[e] / total * c.scale for e in best}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
@torch.no_grad()
def test_routing(changes):
    router, x = moe(changes).router, noise(40, 20)
    indices, weights = router(x)
    unbiased = 0
    for t in range(40):
        expected = chosen_by_hand(router, x[t])
        assert set(indices[t].tolist()) == set(expected)
        for e, w in zip(indices[t].tolist(), weights[t], strict=True):
            close(w, expected[e], 1e-12)
        scores = torch.sigmoid(router.weight @ x[t])
        unbiased += set(scores.topk(len(expected)).indices.tolist()) == set(expected)
    if changes.get("n_active_experts") != 6:
        assert unbiased < 40  # the bias did change who is chosen


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
@torch.no_grad()
def test_the_output_is_the_weighted_experts_and_the_shared_one(changes):
    mixer, x = moe(changes), noise(3, 5, 20)
    got = mixer(x).flatten(0, 1)
    for t, token in enumerate(x.flatten(0, 1)):
        inner = mixer.latent_in.weight @ token if "d_latent" in changes else token
        total = 0
        for e, weight in chosen_by_hand(mixer.router, token).items():
            total += weight * mixer.experts.down_proj[e] @ torch.relu(mixer.experts.up_proj[e] @ inner).square()
        routed = mixer.latent_out.weight @ total if "d_latent" in changes else total
        shared = mixer.shared_experts
        plain = shared.down_proj.weight @ torch.relu(shared.up_proj.weight @ token).square()
        close(got[t], routed + plain)


@torch.no_grad()
def test_groups_can_exclude_the_best_expert():
    """A group is ranked by its two best experts, so a lone winner in a weak group is left out."""
    router = moe(GROUPS | {"n_active_experts": 2, "n_active_groups": 1}).router
    router.bias.zero_()
    router.weight.zero_()
    x = torch.zeros(1, 20, dtype=torch.float64)
    router.bias.copy_(torch.tensor([0.9, -0.9, 0.3, 0.3, 0.1, 0.0, -0.2, 0.2]))
    assert sorted(router(x)[0][0].tolist()) == [2, 3]
    close(router(x)[1], torch.full((1, 2), 1.7 / 2, dtype=torch.float64))  # equal scores, whatever the bias


@torch.no_grad()
def test_the_router_works_in_float32_under_bfloat16():
    router = moe(dtype=torch.float32).router
    router.bias.fill_(0.1234567)
    router.to(torch.bfloat16)
    assert router.weight.dtype == torch.bfloat16
    assert router.bias.dtype == router.load.dtype == torch.float32
    assert router.bias[0] == torch.tensor(0.1234567)  # not rounded on the way
    x = noise(50, 20, dtype=torch.bfloat16)
    indices, weights = router(x)
    assert weights.dtype == torch.float32
    scores = torch.sigmoid(x.float() @ router.weight.float().T).gather(1, indices)
    close(weights, scores / scores.sum(-1, keepdim=True) * 1.7, 1e-6)


def test_moving_a_router_keeps_its_buffers():
    router = moe(dtype=torch.float32).router
    bias = router.bias.clone()
    assert router.double().bias.dtype == torch.float64
    close(router.float().bias, bias, 1e-6)
    with torch.device("meta"):
        empty = Router(20, router.config).to(torch.bfloat16)
    assert (empty.bias.dtype, empty.bias.is_meta) == (torch.float32, True)
    assert empty.to_empty(device="cpu").bias.dtype == torch.float32


# -- balance ---------------------------------------------------------------------------------------------------------


def test_the_bias_rule():
    router = moe({"bias_update": 0.25}).router
    before = router.bias.clone()
    router.load.copy_(torch.tensor([5.0, 5.0, 9.0, 5.0, 1.0, 5.0]))
    router.update_bias()
    close(router.bias - before, torch.tensor([0, 0, -0.25, 0, 0.25, 0], dtype=torch.float64), 1e-12)
    assert not router.load.any()


def test_the_bias_evens_out_the_load():
    """With scores that favour two experts of six, the busiest expert's share falls towards the mean."""
    router = moe({"bias_update": 0.01}).router.train()
    router.bias.zero_()
    with torch.no_grad():
        router.weight.mul_(0.3)
        router.weight[:2] += 0.05
    x = noise(400, 20).abs()
    shares = []
    for _ in range(150):
        router(x)
        shares.append(float(router.load.max() / router.load.mean()))
        router.update_bias()
    assert shares[0] > 2
    assert shares[-1] < 1.2


def test_load_counts_choices_in_training_only():
    router = moe().router
    x = noise(30, 20)
    router(x)
    assert not router.load.any()
    router.train()
    indices = torch.cat([router(x)[0], router(noise(10, 20, seed=3))[0]])
    close(router.load, torch.bincount(indices.flatten(), minlength=6).double(), 0)


def test_the_balance_loss():
    router = moe({"balance_loss": 0.5}).router.train()
    x = noise(30, 20)
    indices, _ = router(x)
    (loss,) = router.balance
    scores = torch.sigmoid(x @ router.weight.T)
    fraction = torch.stack([(indices == e).double().sum() / indices.numel() for e in range(6)])
    share = (scores / scores.sum(-1, keepdim=True)).mean(0)
    close(loss, 0.5 * 6 * (fraction * share).sum(), 1e-12)
    loss.backward()
    assert router.weight.grad.any()
    with torch.no_grad():
        router(x)
    router.eval()(x)
    assert len(router.balance) == 1


def test_the_bias_never_receives_a_gradient():
    mixer = moe().train()
    mixer(noise(2, 9, 20)).square().sum().backward()
    assert "router.bias" not in dict(mixer.named_parameters())
    assert not mixer.router.bias.requires_grad
    assert all(p.grad is not None and p.grad.any() for p in mixer.parameters())


def test_saved_weights_hold_the_bias_and_not_the_counts():
    assert {k for k in moe().state_dict() if k.startswith("router")} == {"router.weight", "router.bias"}
