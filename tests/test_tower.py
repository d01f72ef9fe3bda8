"""A tower says the same of a sequence however it is fed: at once, in chunks, token by token, padded, packed."""

import pytest
import torch
from torch.autograd import gradcheck
from towers import TOWERS, build_tower, close, held, noise, same_rows, tower_config

from omni.cache import CacheError
from omni.config import TimeConfig
from omni.mixers import MIXERS, Layout

LENGTH = 9
PARTS = {
    "steps": [1] * LENGTH,
    "chunks": [2, 3, 1, 3],
    "mixed": [4, 1, 1, 2, 1],
    "long then long": [5, 4],
}


@pytest.fixture(params=TOWERS, name="tower")
def _tower(request):
    with torch.no_grad():
        yield build_tower(TOWERS[request.param])


def axes(tower, *shape: int):
    """(3, b, n) positions that differ on the three axes and never go back; None where the tower has no use for them."""
    if tower.rotary is None or tower.config.attention.rotary.sections is None:
        return None
    steps = torch.randint(0, 3, (3, *shape), generator=torch.Generator().manual_seed(5))
    return steps.cumsum(-1)


def feed(tower, x, parts, cache=None, positions=None):
    """Outputs of ``x`` fed in ``parts``, joined, and the cache."""
    cache = cache or tower.new_cache(x.shape[0])
    where = positions.split(parts, 2) if positions is not None else [None] * len(parts)
    pieces = zip(x.split(parts, 1), where, strict=True)
    return torch.cat([tower(part, cache=cache, positions=p) for part, p in pieces], dim=1), cache


@pytest.mark.parametrize("split", range(1, LENGTH))
def test_prefill_and_steps_equal_the_full_pass(tower, split):
    x = noise(2, LENGTH, tower.config.d_model)
    positions = axes(tower, 2, LENGTH)
    got, cache = feed(tower, x, [split] + [1] * (LENGTH - split), positions=positions)
    close(got, tower(x, positions=positions))
    assert cache.lengths.tolist() == [LENGTH] * 2


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_chunks_equal_the_full_pass(tower, parts):
    x = noise(3, LENGTH, tower.config.d_model)
    got, cache = feed(tower, x, parts)
    whole, at_once = feed(tower, x, [LENGTH])
    close(got, whole)
    same_rows(cache, at_once, 1e-10)


@pytest.mark.parametrize("piece", [3, 6])
def test_a_long_prompt_read_in_pieces_equals_the_full_pass(tower, piece, monkeypatch):
    x = noise(2, LENGTH, tower.config.d_model)
    positions = axes(tower, 2, LENGTH)
    whole, at_once = feed(tower, x, [LENGTH], positions=positions)
    monkeypatch.setattr("omni.tower.PIECE", piece * 2)  # of both rows
    got, cache = feed(tower, x, [LENGTH], positions=positions)
    close(got, whole)
    same_rows(cache, at_once, 1e-10)


@pytest.mark.parametrize("last", [0, 1, 4, LENGTH])
@pytest.mark.parametrize("piece", [3, 64])
def test_the_last_tokens_alone_are_as_among_all_and_the_cache_is_the_same(tower, last, piece, monkeypatch):
    x, width = noise(2, LENGTH, tower.config.d_model), tower.config.d_model
    added = {0: noise(2, LENGTH, width, seed=1), len(tower.blocks) - 1: noise(2, LENGTH, width, seed=2)}
    all_of, one = tower.new_cache(2), tower.new_cache(2)
    whole = tower(x, cache=all_of, added=added)
    monkeypatch.setattr("omni.tower.PIECE", piece * 2)
    got = tower(x, cache=one, added=added, last=last)
    assert got.shape == (2, last, width)
    close(got, whole[:, LENGTH - last :])
    same_rows(one, all_of, 1e-10)


def test_layers_behind_the_last_mixer_see_the_last_tokens_alone():
    tower = build_tower(tower_config("M*-E-"))
    seen = []
    for block in tower.blocks:
        block.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    with torch.no_grad():
        tower(noise(1, LENGTH, 20), cache=tower.new_cache(1), last=1)
        assert seen == [LENGTH, LENGTH, 1, 1, 1]
        tower(noise(1, LENGTH, 20), cache=tower.new_cache(1), last=0)
        assert seen[5:] == [LENGTH, LENGTH]


def test_a_reserved_cache_changes_nothing(tower):
    x = noise(2, LENGTH, tower.config.d_model)
    reserved = tower.new_cache(2, capacity=64)
    close(feed(tower, x, PARTS["mixed"], reserved)[0], feed(tower, x, PARTS["mixed"])[0], 0)


def test_causality(tower):
    x = noise(1, LENGTH, tower.config.d_model)
    changed = x.clone()
    changed[:, 5:] += 1
    close(tower(changed)[:, :5], tower(x)[:, :5], 1e-12)
    assert not torch.allclose(tower(changed)[:, 5:], tower(x)[:, 5:])


def test_packed_equals_separate(tower):
    lengths = [4, 1, 5, 3]
    rows = [noise(1, n, tower.config.d_model, seed=n) for n in lengths]
    numbers = torch.tensor([n for n, length in zip([3, 9, 3, 0], lengths, strict=True) for _ in range(length)])
    packed = tower(torch.cat(rows, dim=1).expand(2, -1, -1), segments=numbers.expand(2, -1))
    close(packed[0], torch.cat([tower(row)[0] for row in rows]))
    close(packed[1], packed[0])


MASKS = {
    "left": [[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1]],
    "right": [[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]],
    "both": [[0, 0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1]],
    "inside": [[1, 0, 1, 1, 0, 1, 1], [1, 1, 1, 0, 0, 0, 1]],
}


@pytest.mark.parametrize("rows", MASKS.values(), ids=MASKS)
def test_padded_rows_equal_single_ones_and_go_on_like_them(tower, rows):
    mask = torch.tensor(rows, dtype=torch.bool)
    x, further = (noise(len(rows), 7, tower.config.d_model, seed=s) for s in (1, 2))
    x = torch.where(mask[..., None], x, 1e3)  # padding holds rubbish
    cache = tower.new_cache(len(rows))
    got = tower(x, cache=cache, mask=mask)
    after = [tower(further[:, i : i + 1], cache=cache) for i in range(2)]
    after.append(tower(further[:, 2:5], cache=cache))
    close(tower(x, mask=mask)[mask], got[mask])
    for row in range(len(rows)):
        alone = tower.new_cache(1)
        close(got[row, mask[row]], tower(x[row : row + 1, mask[row]], cache=alone)[0])
        close(torch.cat(after, dim=1)[row], tower(further[row : row + 1, :5], cache=alone)[0])
        close(held(cache, row), held(alone), 1e-10)


@pytest.mark.parametrize("rows", MASKS.values(), ids=MASKS)
def test_the_last_real_tokens_of_padded_rows(tower, rows):
    mask = torch.tensor(rows, dtype=torch.bool)
    x = noise(*mask.shape, tower.config.d_model)
    whole = tower(x, mask=mask)
    last = min(2, int(mask.sum(1).min()))
    got = tower(x, cache=tower.new_cache(len(rows)), mask=mask, last=last)
    for row, real, found in zip(whole, mask, got, strict=True):
        close(found, row[real][int(real.sum()) - last :])


def test_right_padding_leaves_the_state_of_the_last_real_token(tower):
    x = noise(2, 7, tower.config.d_model)
    mask = torch.tensor([[True] * 4 + [False] * 3, [True] * 7])
    padded, alone = tower.new_cache(2), tower.new_cache(1)
    tower(x, cache=padded, mask=mask)
    tower(x[:1, :4], cache=alone)
    close(held(padded, 0), held(alone), 1e-12)


def test_ragged_chunks_with_rows_that_have_ended(tower):
    """A prefill in chunks where one row has no further real token: it must be left exactly alone."""
    x = noise(2, 8, tower.config.d_model)
    cache = tower.new_cache(2)
    first = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)
    tower(x[:, :4], cache=cache, mask=first)
    before = {k: v.clone() for k, v in held(cache, 0).items()}
    tower(x[:, 4:], cache=cache, mask=torch.tensor([[False] * 4, [True] * 3 + [False]]))
    close(held(cache, 0), before, 0)
    assert cache.lengths.tolist() == [3, 7]
    step = noise(2, 1, tower.config.d_model, seed=9)
    close(tower(step, cache=cache)[1], tower(torch.cat([x[1:, :7], step[1:]], 1))[0, -1:])


def test_padding_and_packing_together(tower):
    mask = torch.tensor([[False, False, True, True, True, True, True, False]])
    segments = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2]])
    x = noise(1, 8, tower.config.d_model)
    got = tower(x, mask=mask, segments=segments)
    close(got[:, 2:5], tower(x[:, 2:5]))
    close(got[:, 5:7], tower(x[:, 5:7]))


def test_default_positions_are_the_index_on_all_axes(tower):
    x = noise(2, 6, tower.config.d_model)
    index = torch.arange(6).expand(3, 2, 6)
    close(tower(x, positions=index), tower(x), 0)


def test_float32_agrees_with_float64(tower):
    x = noise(2, LENGTH, tower.config.d_model)
    single = build_tower(tower.config, torch.float32)
    got, _ = feed(single, x.float(), PARTS["mixed"])
    assert got.dtype == torch.float32
    close(got.double(), tower(x), 2e-4)


def test_bfloat16_stays_close_to_float32():
    for config in (tower_config("M*-M"), tower_config("*E", moe={"n_active_experts": 6})):
        x = noise(2, LENGTH, config.d_model, dtype=torch.bfloat16)
        half = build_tower(config, torch.float32).to(torch.bfloat16)
        full = build_tower(config, torch.bfloat16).to(torch.float32)  # the same, rounded, weights
        with torch.no_grad():
            got, cache = feed(half, x, PARTS["mixed"])
            want = full(x.float())
        assert got.dtype == torch.bfloat16
        assert (got - want).norm() < 0.03 * want.norm()
        for name, tensor in held(cache).items():
            expected = {"ssm": torch.float32, "length": torch.int64}.get(name.rsplit(".")[-1], torch.bfloat16)
            assert tensor.dtype == expected, name


def test_the_residual_stream_can_be_wider_than_the_weights():
    """Additions below the spacing of bfloat16 at a large value are lost one by one, and kept in a float32 stream."""
    x = torch.full((1, 2, 20), 384.0, dtype=torch.bfloat16)
    x[..., ::2] = -384.0
    towers = [build_tower(tower_config("-" * 40, residual_fp32=wide), torch.bfloat16) for wide in (False, True)]
    with torch.no_grad():
        for block in [*towers[0].blocks, *towers[1].blocks]:
            block.mixer.down_proj.weight.fill_(0.05)
        narrow, wide = (tower(x) for tower in towers)
        exact = towers[1].double()(x.double())
    assert (wide - exact).norm() < 0.1 * (narrow - exact).norm()


def test_errors_name_what_is_wrong():
    tower = build_tower(tower_config("M*"))
    x = noise(2, 3, 20)
    with pytest.raises(CacheError, match=r"3 rows.*2"):
        tower(x, cache=tower.new_cache(3))
    with pytest.raises(CacheError, match=r"context holds 1 rows.*2"):
        tower(x, context=tower.new_cache(1), causal=False)
    with pytest.raises(CacheError, match="packed"):
        tower(x, cache=tower.new_cache(2), segments=torch.zeros(2, 3))
    with pytest.raises(CacheError, match=r"2 layers.*4"):
        build_tower(tower_config("M*M*"))(x, cache=tower.new_cache(2))
    with pytest.raises(CacheError, match="causal"):
        tower(x, cache=tower.new_cache(2), causal=False)
    with pytest.raises(CacheError, match="packed"):
        tower(x, causal=False, segments=torch.zeros(2, 3))
    with pytest.raises(CacheError, match="context"):
        tower(x, cache=tower.new_cache(2), context=tower.new_cache(2))
    with pytest.raises(ValueError, match="noise level"):
        build_tower(tower_config("M*", time=TimeConfig(mode="input")))(x, causal=False)
    with pytest.raises(ValueError, match=r"last is 4.*3 tokens"):
        tower(x, last=4)
    with pytest.raises(ValueError, match=r"last is 1.*context tower"):
        build_tower(tower_config("M*", time=TimeConfig(mode="input")))(x, time=torch.zeros(2), causal=False, last=1)


# -- gradients -----------------------------------------------------------------------------------------------


def _gradients_are_right(module, function, x) -> None:
    """Analytic gradients of ``function(x)`` to x and to every parameter against finite differences."""
    names = [name for name, _ in module.named_parameters()]

    def call(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,), {"run": function})

    values = [p.detach().clone().requires_grad_() for p in module.parameters()]
    assert gradcheck(call, (x.requires_grad_(), *values), fast_mode=True)


class _Running(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, run):
        return run(self.inner, x)


@pytest.mark.parametrize("letter", MIXERS)
@pytest.mark.parametrize("padded", [False, True])
def test_gradients_of_each_mixer(letter, padded):
    config = tower_config(letter, rotary=None, qk_norm=True, moe={"d_latent": 8})
    mixer = _Running(build_tower(config).blocks[0].mixer)
    layout = Layout(6, lengths=torch.tensor([3, 6])) if padded else Layout(6)
    real = ~layout.padding[..., None] if padded else 1.0
    _gradients_are_right(mixer, lambda inner, x: inner(x, layout) * real, noise(2, 6, 20))


@pytest.mark.parametrize("name", TOWERS)
def test_gradients_of_a_tower(name):
    tower = build_tower(TOWERS[name])
    _gradients_are_right(_Running(tower), lambda inner, x: inner(x), noise(1, 6, tower.config.d_model))


@pytest.mark.parametrize("name", TOWERS)
def test_gradients_through_the_cache_equal_those_of_the_full_pass(name):
    """Chunks with gradients: what the second half costs reaches the first half through the cache."""
    tower = build_tower(TOWERS[name])
    x = noise(2, 6, tower.config.d_model).requires_grad_()
    weights = noise(2, 2, tower.config.d_model, seed=4)
    grads = []
    for parts in ([6], [3, 1, 2]):
        out, _ = feed(tower, x, parts)
        grads.append(torch.autograd.grad((out[:, -2:] * weights).sum(), [x, *tower.parameters()], allow_unused=True))
    for once, chunked in zip(*grads, strict=True):
        assert (once is None) == (chunked is None)
        if once is not None:
            close(chunked, once, 1e-9)
    assert grads[0][0][:, :3].abs().sum() > 0 or set(tower.config.pattern) <= set("-E")


def test_gradients_through_a_ragged_cache():
    tower = build_tower(TOWERS["E*M- axes"])
    x = noise(2, 6, 20).requires_grad_()
    mask = torch.tensor([[True, True, False], [True, True, True]])
    cache = tower.new_cache(2)
    tower(x[:, :3], cache=cache, mask=mask)
    out = tower(x[:, 3:], cache=cache)
    ragged = torch.autograd.grad(out[0].square().sum(), x)[0]
    alone = torch.cat([x[:1, :2], x[:1, 3:]], 1)
    whole = torch.autograd.grad(tower(alone)[:, 2:].square().sum(), x)[0]
    close(ragged, whole, 1e-9)
