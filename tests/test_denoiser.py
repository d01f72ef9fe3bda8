"""The denoiser tower: it reads the context's cache and nothing else, and changes none of it."""

import math

import pytest
import torch
import torch.nn.functional as F
from towers import (
    LATENT,
    TOWERS,
    build_system,
    build_tower,
    close,
    held,
    ids,
    noise,
    system_config,
    tower_config,
)

from omni.cache import MambaSlot
from omni.config import AttentionConfig, RotaryConfig, TimeConfig, TowerConfig, replace
from omni.inputs import Inputs
from omni.kernels.groups import Groups
from omni.mixers import Layout
from omni.tower import Tower

ADALN, INPUT = TimeConfig(mode="adaln", n_frequencies=8), TimeConfig(mode="input", n_frequencies=8)
TIMES = {"none": None, "input": INPUT, "adaln": ADALN}


def pair(name: str, time: TimeConfig | None = ADALN):
    """A context tower and a denoiser over it, both random."""
    context = TOWERS[name]
    attention = replace(context.attention, context_norm=context.attention.qk_norm)
    return build_tower(context), build_tower(replace(context, time=time, attention=attention), seed=9)


def prompt(tower, rows=2, n=5, mask=None):
    cache = tower.new_cache(rows, capacity=9)
    with torch.no_grad():
        tower(noise(rows, n, tower.config.d_model), cache=cache, mask=mask)
    return cache


def denoise(tower, x, cache, **where):
    return tower(x, context=cache, causal=False, time=torch.linspace(0.2, 0.9, x.shape[0]), **where)


# -- what it reads -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_the_context_is_bitwise_untouched(name):
    context, denoiser = pair(name)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    cache, control = prompt(context, mask=mask), prompt(context, mask=mask)
    copies = {k: t.clone() for k, t in cache._tensors().items()}
    for seed in range(3):
        denoise(denoiser, noise(2, 4, denoiser.config.d_model, seed=seed), cache)
    assert cache._tensors().keys() == copies.keys()
    for key, tensor in cache._tensors().items():
        close(tensor, copies[key], 0)
    assert cache.lengths.tolist() == [5, 3]
    x = noise(2, 2, context.config.d_model, seed=7)
    close(context(x, cache=cache), context(x, cache=control), 0)


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_the_denoiser_needs_the_cache_alone(name):
    """It gives the same bits after the context's weights are gone, from a copy of the cache, and again."""
    context, denoiser = pair(name)
    cache = prompt(context)
    x = noise(2, 4, denoiser.config.d_model, seed=3)
    once = denoise(denoiser, x, cache)
    for parameter in context.parameters():
        parameter.fill_(float("nan"))
    close(denoise(denoiser, x, cache), once, 0)
    close(denoise(denoiser, x, cache.fork(1)), once, 0)


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_every_mixing_layer_reads_the_context(name):
    """Changing the slot of one layer changes the result, whichever layer it is."""
    context, denoiser = pair(name)
    cache = prompt(context)
    x = noise(2, 4, denoiser.config.d_model, seed=3)
    once = denoise(denoiser, x, cache)
    for i, slot in enumerate(cache.slots):
        for key in slot.tensors() if slot else ():
            other = cache.fork(1)
            tensor = other.slots[i].tensors()[key]
            tensor.add_(0.1 * noise(*tensor.shape, seed=8))
            assert not torch.allclose(denoise(denoiser, x, other), once, atol=1e-6), (i, key)


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_ragged_contexts_and_blocks_equal_single_rows(name):
    context, denoiser = pair(name)
    lengths, sizes = [5, 2, 4], [3, 4, 1]
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    block = torch.arange(4).flip(0) < torch.tensor(sizes)[:, None]  # padded on the left
    cache = prompt(context, rows=3, mask=mask)
    x = noise(3, 4, denoiser.config.d_model, seed=3)
    t = torch.tensor([0.1, 0.5, 0.8])
    got = denoiser(x, context=cache, causal=False, time=t, mask=block)
    for row in range(3):
        alone = context.new_cache(1)
        context(noise(3, 5, context.config.d_model)[row : row + 1, : lengths[row]], cache=alone)
        one = x[row : row + 1, block[row]]
        close(got[row, block[row]], denoiser(one, context=alone, causal=False, time=t[row : row + 1])[0])


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_a_causal_call_over_a_context_continues_it(name):
    """With the context's own weights, no time and causality, reading a context is what continuing its cache is."""
    context = build_tower(TOWERS[name])
    cache = prompt(context, mask=torch.tensor([[True] * 5, [True] * 3 + [False] * 2]))
    x = noise(2, 4, context.config.d_model, seed=3)
    positions = (cache.next_positions()[:, None] + torch.arange(4)).expand(3, -1, -1)
    read = context(x, context=cache, positions=positions)
    close(read, context(x, cache=cache))


# -- groups --------------------------------------------------------------------------------------------------


def in_groups(denoiser, cache, parts, weights):
    """Groups and, last, what they share, each at its own positions; -> hidden states of each."""
    sizes = [part.shape[1] for part in parts]
    places = torch.cat([torch.arange(5, 5 + size) + 3 * i for i, size in enumerate(sizes)])
    places = places.expand(3, cache.batch, -1)
    groups = Groups(tuple(sizes[:-1]), tuple(weights))
    return denoise(denoiser, torch.cat(parts, dim=1), cache, positions=places, groups=groups).split(sizes, dim=1)


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_what_is_shared_meets_each_group_alone(name):
    """With all the weight on one group the others are not there, and no group sees another, in any layer."""
    context, denoiser = pair(name)
    cache, width = prompt(context, mask=torch.tensor([[True] * 5, [True] * 3 + [False] * 2])), context.config.d_model
    first, second, shared = (noise(2, n, width, seed=n) for n in (3, 2, 4))
    own = torch.cat([torch.arange(5, 8), torch.arange(11, 15)]).expand(3, 2, -1)
    alone = denoise(denoiser, torch.cat([first, shared], dim=1), cache, positions=own)
    for weight in (1.0, 0.7):
        got = in_groups(denoiser, cache, (first, second, shared), (weight, 1 - weight))
        same = torch.allclose(got[2], alone[:, 3:], atol=1e-9)
        assert same == (weight == 1.0)
    changed = in_groups(denoiser, cache, (first, second + 1, shared), (1.0, 0.0))
    close(changed[0], alone[:, :3])
    assert not torch.allclose(changed[1], got[1], atol=1e-3)


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_equal_groups_are_one_whatever_their_weights(name):
    context, denoiser = pair(name)
    cache, width = prompt(context), context.config.d_model
    group, shared = noise(2, 3, width, seed=3), noise(2, 4, width, seed=4)
    places = torch.cat([torch.arange(3).repeat(3), torch.arange(4)]).expand(3, 2, -1)
    groups = Groups((3, 3, 3), (0.5, 0.2, 0.3))
    got = denoise(denoiser, torch.cat([group] * 3 + [shared], dim=1), cache, groups=groups, positions=places)
    one = denoise(denoiser, torch.cat([group, shared], dim=1), cache, positions=places[:, :, 6:])
    close(got, torch.cat([one[:, :3]] * 3 + [one[:, 3:]], dim=1))


def test_groups_are_of_a_block_that_is_not_causal():
    context, denoiser = pair("M*-E")
    x, cache, groups = noise(2, 4, 20), prompt(context), Groups((2, 2), (0.5, 0.5))
    for wrong in ({"groups": groups}, {"groups": Groups((1,), (1.0,)), "mask": torch.ones(2, 4).bool().tril(2)}):
        with pytest.raises(ValueError, match="groups of"):
            denoise(denoiser, x, cache, **wrong)
    with pytest.raises(ValueError, match="groups of"):
        context(x, groups=Groups((1,), (1.0,)))


# -- attention -----------------------------------------------------------------------------------------------


def turn(x, positions, theta):
    """Rotary positions by complex numbers: x (b, heads, n, p), positions (b, n)."""
    half = x.shape[-1] // 2
    angle = positions[:, None, :, None] * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], dim=-1)


def rms(x, weight, eps=1e-6):
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


@pytest.mark.parametrize("context_norm", [False, True])
@pytest.mark.parametrize("rotary", [None, RotaryConfig(theta=30.0)], ids=["bare", "rotary"])
@torch.no_grad()
def test_attention_is_one_softmax_over_context_and_block(rotary, context_norm):
    H, K, p, m, n = 6, 2, 8, 5, 4
    sizes = AttentionConfig(n_heads=H, n_kv_heads=K, head_dim=p, rotary=rotary, qk_norm=True, context_norm=context_norm)
    context = build_tower(TowerConfig(pattern="*", d_model=20, attention=sizes))
    denoiser = build_tower(context.config, seed=5)
    cache = prompt(context, n=m)
    x = noise(2, n, 20, seed=2)

    def heads(linear, h, number):
        return linear(h).unflatten(-1, (number, p)).transpose(1, 2)

    def placed(t, first):
        return turn(t, (first + torch.arange(t.shape[2])).expand(2, -1).double(), rotary.theta) if rotary else t

    theirs, ours = context.blocks[0], denoiser.blocks[0]
    h_context, h = theirs.norm(noise(2, m, 20)), ours.norm(x)
    k_context = rms(heads(theirs.mixer.k_proj, h_context, K), theirs.mixer.k_norm.weight)
    if context_norm:
        k_context = rms(k_context, ours.mixer.context_norm.weight)
    q = placed(rms(heads(ours.mixer.q_proj, h, H), ours.mixer.q_norm.weight), m)
    k = placed(rms(heads(ours.mixer.k_proj, h, K), ours.mixer.k_norm.weight), m)
    keys = torch.cat([placed(k_context, 0), k], dim=2)
    values = torch.cat([heads(theirs.mixer.v_proj, h_context, K), heads(ours.mixer.v_proj, h, K)], dim=2)
    out = torch.empty(2, n, H, p, dtype=torch.float64)
    for head in range(H):
        own = head // (H // K)
        weights = torch.softmax(q[:, head] @ keys[:, own].mT / math.sqrt(p), dim=-1)
        out[:, :, head] = weights @ values[:, own]
    expected = denoiser.norm(x + ours.mixer.o_proj(out.flatten(2)))
    positions = (m + torch.arange(n)).expand(3, 2, n)
    # Rotary tables are float32, so turning back and forth costs its rounding.
    close(denoiser(x, context=cache, causal=False, positions=positions), expected, 1e-6 if rotary else 1e-12)


@torch.no_grad()
def test_a_block_attends_in_full():
    """In an attention-only tower without positions later tokens reach earlier ones, and their order does not matter."""
    context, denoiser = (build_tower(tower_config("*-*-"), seed=s) for s in (0, 9))
    cache, x = prompt(context), noise(2, 5, 20, seed=3)
    got = denoiser(x, context=cache, causal=False)
    order = torch.tensor([0, 4, 2, 1, 3])
    close(denoiser(x[:, order], context=cache, causal=False), got[:, order])
    changed = x.clone()
    changed[:, 4] += 1
    assert not torch.allclose(denoiser(changed, context=cache, causal=False)[:, 0], got[:, 0])


@torch.no_grad()
def test_positions_tell_the_tokens_of_a_block_apart():
    context, denoiser = pair("*-*- rotary", time=None)
    cache, x = prompt(context), noise(2, 5, 20, seed=3)
    order = torch.tensor([0, 4, 2, 1, 3])
    got = denoiser(x, context=cache, causal=False)
    assert not torch.allclose(denoiser(x[:, order], context=cache, causal=False)[:, 0], got[:, 0])
    positions = torch.arange(5).expand(3, 2, 5)
    close(denoiser(x[:, order], context=cache, causal=False, positions=positions[..., order]), got[:, order])


# -- Mamba (its recurrence from a context's states is in test_mixers) ----------------------------------------


@torch.no_grad()
def test_the_scan_is_taken_in_float32_under_bfloat16_weights():
    """The error is that of rounding weights and activations: it does not grow with a state of thousands."""
    mixer = build_tower(tower_config("M"), torch.bfloat16).blocks[0].mixer
    exact = build_tower(tower_config("M"), torch.bfloat16).double().blocks[0].mixer
    c = mixer.config
    conv = torch.zeros(1, c.d_conv - 1, c.conv_dim, dtype=torch.bfloat16)
    ssm = 3000 + 10 * noise(1, c.n_heads, c.head_dim, c.d_state, seed=5, dtype=torch.float32)
    u = noise(1, 16, 20, dtype=torch.bfloat16)
    slot = MambaSlot(conv, ssm.clone())
    got = mixer(u, Layout(16), slot=slot)
    wide = MambaSlot(conv.double(), ssm.double())
    want = exact(u.double(), Layout(16), slot=wide)
    assert slot.ssm.dtype == torch.float32
    assert got.isfinite().all()
    assert (got - want).norm() < 0.05 * want.norm()
    assert (slot.ssm - wide.ssm).norm() < 0.02 * wide.ssm.norm()


# -- time ----------------------------------------------------------------------------------------------------


def sinusoid(t, config: TimeConfig):
    """(b, 2 n): cosines first, base 10000."""
    steps = torch.arange(config.n_frequencies, dtype=torch.float64)
    angles = t.double()[:, None] * config.scale * 10_000.0 ** (-steps / config.n_frequencies)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def embedded(time, t, config):
    first, _, second = time.embedder.mlp
    return second(F.silu(first(sinusoid(t, config).double())))


T = torch.tensor([0.25, 0.9])


@torch.no_grad()
def test_without_conditioning_the_time_is_not_seen():
    tower, x = build_tower(tower_config("M*-E")), noise(2, 4, 20)
    close(tower(x, causal=False, time=T), tower(x, causal=False), 0)


@torch.no_grad()
def test_input_conditioning_is_added_once_to_noisy_tokens():
    tower, x = build_tower(tower_config("M*-E", time=INPUT)), noise(2, 4, 20)
    bare = build_tower(tower_config("M*-E"))
    bare.load_state_dict({k: v for k, v in tower.state_dict().items() if not k.startswith("time.")})
    added = embedded(tower.time, T, INPUT)[:, None]
    close(tower(x, causal=False, time=T), bare(x + added, causal=False), 1e-4)  # float32 sinusoid of large angles
    noisy = torch.tensor([[False, True, True, False], [True, True, False, True]])
    got = tower(x, causal=False, time=T, noisy=noisy)
    close(got, bare(x + added * noisy[..., None], causal=False), 1e-4)
    clean = tower(x, causal=False, time=T, noisy=torch.zeros(2, 4, dtype=torch.bool))
    close(clean, bare(x, causal=False), 0)


@torch.no_grad()
def test_noisy_flags_follow_their_tokens_through_padding():
    tower = build_tower(tower_config("M*-E", time=INPUT))
    x, noisy = noise(1, 5, 20), torch.tensor([[False, False, True, False, True]])
    mask = torch.tensor([[False, False, True, True, True]])
    got = tower(x, causal=False, time=T[:1], noisy=noisy, mask=mask)
    close(got[:, 2:], tower(x[:, 2:], causal=False, time=T[:1], noisy=noisy[:, 2:]))


@torch.no_grad()
def test_adaln_in_the_order_of_each_letter():
    """Mamba and attention: mixer(norm(modulate(h))); MLP and MoE: mixer(modulate(norm(h))); a gate without offset."""
    tower = build_tower(tower_config("M*-E", time=ADALN, moe=LATENT))
    h = noise(2, 4, 20)
    got = tower(h, causal=False, time=T)
    shared = tower.time.project(F.silu(embedded(tower.time, T, ADALN))).view(2, 3, 20)
    layout = Layout(4, causal=False)
    for i, block in enumerate(tower.blocks):
        shift, scale, gate = (tower.time.tables[i][None] + shared).unbind(1)
        shift, scale, gate = (v[:, None] for v in (shift, scale, gate))
        if tower.config.pattern[i] in "M*":
            inner = block.norm(h * (1 + scale) + shift)
        else:
            inner = block.norm(h) * (1 + scale) + shift
        h = h + gate * block.mixer(inner, layout)
    close(got, tower.norm(h), 1e-4)
    assert not torch.allclose(got[0], tower(noise(2, 4, 20), causal=False, time=T.flip(0))[0])


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_adaln_begins_as_the_identity(name):
    """A denoiser copied from a language model is that model, read in full, until it is trained."""
    config = TOWERS[name]
    tower = build_tower(config)
    denoiser = Tower(replace(config, time=ADALN)).double().eval()
    missing, unexpected = denoiser.load_state_dict(tower.state_dict(), strict=False)
    assert not unexpected
    assert {key.split(".")[0] for key in missing} == {"time"}
    x = noise(2, 4, config.d_model)
    close(denoiser(x, causal=False, time=T), tower(x, causal=False), 0)


# -- the whole system ----------------------------------------------------------------------------------------


def system(time=ADALN, **changes):
    return build_system(system_config(TOWERS["E*M- axes"], time=time, **changes))


@pytest.mark.parametrize("time", TIMES.values(), ids=TIMES)
@torch.no_grad()
def test_velocity_reads_the_prompt_and_the_time(time):
    model = system(time)
    cache = model.new_cache(2)
    model.logits(Inputs(ids(2, 5, vocab=7), torch.tensor([[True] * 5, [False] * 2 + [True] * 3])), cache)
    before = held(cache, 0)
    before = {k: v.clone() for k, v in before.items()}
    latents = noise(2, 3, 4, 6)
    v = model.velocity(latents, T, cache)
    assert v.shape == latents.shape
    close(model.velocity(latents, T, cache), v, 0)
    close(held(cache, 0), before, 0)
    assert torch.equal(model.velocity(latents, T.flip(0), cache), v) == (time is None)
    for row in range(2):
        one = model.velocity(latents[row : row + 1], T[row : row + 1], cache.select(torch.tensor([row])))
        close(one[0], v[row])


@torch.no_grad()
def test_velocity_of_a_predicted_sample():
    model = system()
    latents, cache = noise(2, 3, 4, 4), model.new_cache(2)
    t = torch.tensor([0.5, 0.01], dtype=torch.float64)
    sample = model.velocity(latents, t, cache)
    model.latents.config = replace(model.latents.config, prediction="sample")
    divided = torch.tensor([0.5, 0.05], dtype=torch.float64)[:, None, None, None]
    close(model.velocity(latents, t, cache), (latents - sample) / divided)


def test_the_denoising_loss_trains_the_context():
    """Gradients run through the cache into every layer below or at the last slot, and into the embedding."""
    model = system(vision=None, mtp=None).float().train()
    cache = model.new_cache(2)
    model.read(Inputs(ids(2, 5, vocab=31), torch.tensor([[True] * 5, [True] * 4 + [False]])), cache)
    model.velocity(noise(4, 3, 4, 4).float(), torch.rand(4), cache.fork(2)).square().mean().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert model.config.context.pattern == "E*M-"
    for name, _ in model.context.blocks[:2].named_parameters():
        assert f"context.blocks.{name}" in trained, name
    for name in ("norm", "mixer.in_proj", "mixer.conv1d", "mixer.A_log", "mixer.dt_bias"):  # what makes the last state
        assert any(found.startswith(f"context.blocks.2.{name}") for found in trained), name
    assert {"embed.weight", "latents.proj_in.weight", "denoiser.time.project.weight"} <= trained
    assert not any(name.startswith(("context.blocks.3", "head")) for name in trained)  # nothing reads those


def test_gradients_to_the_context_are_right():
    context, denoiser = (build_tower(tower_config("*M", rotary=RotaryConfig(theta=30.0)), seed=s) for s in (0, 9))
    block = noise(1, 3, 20, seed=2)

    def through(x, z):
        cache = context.new_cache(1)
        context(x, cache=cache)
        return denoiser(z, context=cache, causal=False)

    x = noise(1, 4, 20).requires_grad_()
    assert torch.autograd.gradcheck(through, (x, block.requires_grad_()), fast_mode=True)


def test_errors_of_generation():
    model = system()
    cache = model.new_cache(2)
    with pytest.raises(ValueError, match=r"not \(2, 4, 4, 4\)"):
        model.velocity(noise(2, 4, 4, 4), T, cache)
    with pytest.raises(ValueError, match="no denoiser"):
        system(latent=None).velocity(noise(2, 3, 4, 4), T, cache)
    with pytest.raises(ValueError, match=r"holds 2 rows.*3"):
        model.velocity(noise(3, 3, 4, 4), torch.rand(3), cache)
