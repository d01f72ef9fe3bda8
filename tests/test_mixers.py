"""Each mixer and layer against its formula, written out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from towers import AXES, ROTARY, build_tower, close, fill, noise, tower_config

from omni.cache import MambaSlot
from omni.config import MambaConfig, MLPConfig, RotaryConfig
from omni.kernels import force
from omni.layers import GatedRMSNorm, RMSNorm, Rotary, rotate, rotate_back
from omni.mixers import MIXERS, MLP, Layout, Mamba


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


# -- norms -----------------------------------------------------------------------------------------------------------


def test_rms_norm_multiplies_its_weight_before_the_cast():
    norm = fill(RMSNorm(16, 1e-2)).to(torch.bfloat16)
    x = noise(5, 16, dtype=torch.bfloat16)
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-2)
    close(norm(x), (norm.weight.float() * normed).to(torch.bfloat16), 0)
    assert not torch.equal(norm(x), norm.weight * normed.to(torch.bfloat16))


def test_gated_norm_gates_first_and_norms_each_group():
    norm = fill(GatedRMSNorm(12, 3, 1e-2)).double()
    y, z = noise(5, 12), noise(5, 12, seed=2)
    gated = y * z / (1 + torch.exp(-z))
    groups = [g / (g.square().mean(-1, keepdim=True) + 1e-2).sqrt() for g in gated.split(4, dim=-1)]
    close(norm(y, z), norm.weight * torch.cat(groups, -1), 1e-12)


# -- rotary ----------------------------------------------------------------------------------------------------------


def test_rotary_turns_pairs_by_position_times_frequency():
    rotary = Rotary(8, ROTARY)
    x, positions = noise(1, 2, 5, 8), torch.tensor([0, 1, 7, 100, 3000])
    got = rotate(x, rotary(positions.expand(3, 1, 5)))
    for j in range(4):
        angle = positions * 30.0 ** (-j / 4)
        first, second = x[..., j], x[..., j + 4]
        close(got[..., j], first * angle.cos() - second * angle.sin(), 1e-3)
        close(got[..., j + 4], second * angle.cos() + first * angle.sin(), 1e-3)


def test_scores_depend_on_distance_alone():
    rotary = Rotary(8, ROTARY)
    q, k = noise(1, 1, 1, 8).expand(1, 1, 9, 8), noise(1, 1, 1, 8, seed=2).expand(1, 1, 9, 8)
    tables = rotary(torch.arange(9).expand(3, 1, 9))
    scores = (rotate(q, tables) @ rotate(k, tables).mT)[0, 0]
    for distance in range(-8, 9):
        diagonal = scores.diagonal(distance)
        close(diagonal, diagonal[:1].expand_as(diagonal), 1e-5)


@pytest.mark.parametrize(
    ("sections", "axes"),
    [((2, 1, 1), "thwt"), ((2, 2, 2), "thwthw"), ((3, 2, 1), "thwtht"), ((24, 20, 20), "thw" * 20 + "tttt")],
)
def test_three_axes_take_turns_until_their_sections_are_used_up(sections, axes):
    found = Rotary(2 * sum(sections), RotaryConfig(sections=sections)).axes
    assert "".join("thw"[axis] for axis in found) == axes
    assert tuple(found.count(axis) for axis in range(3)) == sections


def test_axes_move_their_own_frequencies():
    rotary = Rotary(8, AXES)
    base = rotary(torch.zeros(3, 1, 1))[0]
    for axis in range(3):
        moved = torch.zeros(3, 1, 1)
        moved[axis] = 2.0
        changed = (rotary(moved)[0] != base).flatten()[:4].tolist()
        assert changed == [a == axis for a in rotary.axes]


def test_one_axis_is_three_equal_ones():
    positions = torch.arange(5).expand(3, 1, 5)
    for one, three in zip(Rotary(8, ROTARY)(positions), Rotary(8, AXES)(positions), strict=True):
        close(one, three, 0)


def test_rotate_back_undoes_rotate():
    tables = Rotary(8, AXES)(torch.randint(0, 9000, (3, 2, 5), generator=torch.Generator().manual_seed(0)))
    x = noise(2, 3, 5, 8)
    close(rotate_back(rotate(x, tables), tables), x, 1e-6)
    close(rotate(x, tables).norm(dim=-1), x.norm(dim=-1), 1e-6)
    assert rotate(x, None) is x
    assert rotate_back(x, None) is x


# -- MLP -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu2", "silu"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_mlp_is_the_same_with_and_without_gradients(activation, dtype):
    mlp, x = fill(MLP(8, MLPConfig(d_ff=24, activation=activation))).to(dtype), noise(2, 3, 8).to(dtype)
    given = x.clone()
    plain = mlp(x)
    with torch.enable_grad():
        learning = mlp(x)
    assert learning.requires_grad
    assert not plain.requires_grad
    assert torch.equal(plain, learning)
    assert torch.equal(x, given), "it worked in place on its input"


@pytest.mark.parametrize("bias", [False, True])
def test_mlp(bias):
    x = noise(2, 3, 6)
    squared = fill(MLP(6, MLPConfig(d_ff=5, bias=bias))).double()
    up = x @ squared.up_proj.weight.T + (squared.up_proj.bias if bias else 0)
    down = torch.where(up > 0, up * up, 0.0) @ squared.down_proj.weight.T + (squared.down_proj.bias if bias else 0)
    close(squared(x), down, 1e-12)
    gated = fill(MLP(6, MLPConfig(d_ff=5, activation="silu", bias=bias))).double()
    gate = gated.gate_proj(x)
    close(gated(x), gated.down_proj(gate * gate.sigmoid() * gated.up_proj(x)), 1e-12)


# -- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("heads", "shared"), [(6, 2), (4, 4), (5, 1)])
def test_attention_head_by_head(heads, shared, causal):
    sizes = {"n_heads": heads, "n_kv_heads": shared, "head_dim": 6, "bias": True}
    mixer = build_tower(tower_config("*", attention=sizes)).blocks[0].mixer
    x = noise(2, 5, 20)
    q, k, v = (f(x).unflatten(-1, (-1, 6)) for f in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    out = torch.zeros(2, 5, heads, 6, dtype=torch.float64)
    for b in range(2):
        for i in range(5):
            for head in range(heads):
                seen = range(i + 1 if causal else 5)
                other = head * shared // heads
                scores = torch.stack([q[b, i, head] @ k[b, j, other] / math.sqrt(6) for j in seen])
                weights = scores.exp() / scores.exp().sum()
                out[b, i, head] = sum(w * v[b, j, other] for w, j in zip(weights, seen, strict=True))
    close(mixer(x, Layout(5, causal=causal)), mixer.o_proj(out.flatten(2)), 1e-12)


def table(mask):
    """A mask as rows of text: x where a query may look."""
    return ["".join("x" if seen else "." for seen in row) for row in mask.tolist()]


def test_masks():
    two = torch.tensor([2, 0])
    assert Layout(3).mask is None
    assert Layout(3, lengths=two).mask is None  # causality hides right padding from what is real
    assert Layout(3, held=4).mask is None
    packed = Layout(4, segments=torch.tensor([[0, 0, 1, 2]]))
    assert table(packed.mask[0, 0]) == ["xx..", "xx..", "..x.", "...x"]
    ragged = Layout(2, starts=two, held=2)
    assert table(ragged.mask[0, 0]) == ["xxx.", "xxxx"]
    assert table(ragged.mask[1, 0]) == ["x...", "xx.."]
    block = Layout(3, causal=False, lengths=torch.tensor([1, 3]), context_length=2)
    assert table(block.mask[:, 0, 0]) == ["xxx..", "xxxxx"]
    read = Layout(1, causal=False, context_length=3, context_lengths=torch.tensor([1, 3]))
    assert table(read.mask[:, 0, 0]) == ["x..x", "xxxx"]
    both = Layout(2, causal=False, lengths=torch.tensor([1, 2]), context_length=2, context_lengths=torch.tensor([2, 1]))
    assert table(both.mask[:, 0, 0]) == ["xxx.", "x.xx"]
    assert Layout(3, causal=False, context_length=9).mask is None
    assert table(Layout(3, lengths=two).padding) == ["..x", "xxx"]


# -- Mamba -----------------------------------------------------------------------------------------------------------


def recurrence(mixer: Mamba, u, conv, ssm):
    """The mixer as published, head by head and token by token, from the given convolution inputs and state."""
    c = mixer.config
    z, xbc, dt = mixer.in_proj(u).split([c.d_inner, c.conv_dim, c.n_heads], dim=-1)
    weight = mixer.conv1d.weight[:, 0].T
    bias = 0 if mixer.conv1d.bias is None else mixer.conv1d.bias
    window, state, outputs = conv, ssm, []
    for t in range(u.shape[1]):
        window = torch.cat([window, xbc[:, t : t + 1]], dim=1)
        mixed = F.silu((window * weight).sum(1) + bias)
        window = window[:, 1:]
        x, B, C = mixed.split([c.d_inner, c.n_groups * c.d_state, c.n_groups * c.d_state], dim=-1)
        x = x.view(-1, c.n_heads, c.head_dim)
        B, C = (v.view(-1, c.n_groups, c.d_state) for v in (B, C))
        y, new = torch.empty_like(x), torch.empty_like(state)
        for head in range(c.n_heads):
            group = head // (c.n_heads // c.n_groups)
            step = torch.log1p(torch.exp(dt[:, t, head] + mixer.dt_bias[head])).clamp(*c.dt_limit)[:, None, None]
            decay = torch.exp(-step * torch.exp(mixer.A_log[head]))
            new[:, head] = decay * state[:, head] + step * x[:, head, :, None] * B[:, group, None, :]
            y[:, head] = (new[:, head] * C[:, group, None, :]).sum(-1) + mixer.D[head] * x[:, head]
        state = new
        gated = (y.flatten(1) * F.silu(z[:, t])).view(-1, c.n_groups, c.d_inner // c.n_groups)
        normed = gated * (gated.square().mean(-1, keepdim=True) + c.norm_eps).rsqrt()
        outputs.append(mixer.out_proj(normed.flatten(1) * mixer.norm.weight))
    return torch.stack(outputs, dim=1), window, state


MAMBAS = {
    "plain": {},
    "one group": {"n_groups": 1},
    "a group a head": {"n_groups": 4},
    "odd": {"n_heads": 3, "n_groups": 3, "head_dim": 1, "d_state": 7, "d_conv": 2, "chunk_size": 5},
    "biased": {"bias": True, "conv_bias": False},
    "clamped": {"dt_limit": (0.05, 0.2)},
    "long taps": {"d_conv": 7},
}


@pytest.mark.parametrize("seeded", [False, True])
@pytest.mark.parametrize("n", [1, 4, 11])
@pytest.mark.parametrize("changes", MAMBAS.values(), ids=MAMBAS)
def test_mamba_is_the_recurrence(changes, n, seeded):
    """Prefill, steps, and a denoiser's block over a context; from nothing and from states of hundreds."""
    mixer = build_tower(tower_config("M", mamba=changes)).blocks[0].mixer
    c = mixer.config
    conv = seeded * noise(2, c.d_conv - 1, c.conv_dim, seed=4)
    ssm = seeded * 100 * noise(2, c.n_heads, c.head_dim, c.d_state, seed=5)
    u = noise(2, n, 20)
    expected, window, state = recurrence(mixer, u, conv, ssm)
    slots = [MambaSlot(conv.clone(), ssm.clone()) for _ in range(3)]
    outputs = [mixer(u, Layout(n), slot=slots[0])]
    outputs.append(torch.cat([mixer(u[:, i : i + 1], Layout(1), slot=slots[1]) for i in range(n)], dim=1))
    outputs.append(mixer(u, Layout(n, causal=False), context=slots[2]))
    with force("scan", "reference"), force("causal_conv", "reference"):
        outputs.append(mixer(u, Layout(n, causal=False), context=slots[2]))
    for out in outputs:
        close(out, expected, 1e-9)
    for slot in slots[:2]:
        close(slot.conv, window, 1e-12)
        close(slot.ssm, state, 1e-9)
    close(slots[2].tensors(), {"conv": conv, "ssm": ssm}, 0)


def test_fresh_mambas_start_with_steps_in_their_range():
    torch.manual_seed(0)
    mixer = Mamba(8, MambaConfig(n_heads=512, head_dim=1, n_groups=1, d_state=2, dt_init=(1e-3, 0.1)))
    steps = F.softplus(mixer.dt_bias.double())
    assert 1e-3 * 0.999 <= steps.min() < 1.2e-3
    assert 0.08 < steps.max() <= 0.1001
    assert abs(steps.log().mean() - math.log(1e-2)) < 0.2  # log-uniform
    close(mixer.A_log.exp(), torch.arange(1.0, 513.0), 1e-5)
    close(mixer.D, torch.ones(512), 0)


def test_every_letter_has_a_mixer():
    config = tower_config("M*-E")
    assert [type(block.mixer) for block in build_tower(config).blocks] == [MIXERS[letter] for letter in "M*-E"]
