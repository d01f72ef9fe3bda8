"""The cache and its verbs: fork, select, begin, commit, rollback, save, load; and what it costs, to the byte."""

import pytest
import torch
from safetensors.torch import save_file
from towers import TOWERS, build_tower, close, held, noise, same_rows, tower_config

from omni.cache import AttentionSlot, Cache, CacheError, MambaSlot, cache_bytes

PREFIX, WINDOW = 5, 4


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(params=TOWERS, name="tower")
def _tower(request):
    return build_tower(TOWERS[request.param])


def read(tower, x, cache=None):
    """``x`` read into ``cache`` (or a new one): the prompt at once."""
    cache = cache or tower.new_cache(x.shape[0])
    tower(x, cache=cache)
    return cache


def step(tower, x, cache):
    """``x`` token by token; outputs."""
    return torch.cat([tower(x[:, i : i + 1], cache=cache) for i in range(x.shape[1])], dim=1)


def inputs(tower, rows=2):
    """A prompt, a window, and what comes after it."""
    d = tower.config.d_model
    return noise(rows, PREFIX, d, seed=1), noise(rows, WINDOW, d, seed=2), noise(rows, 3, d, seed=3)


# -- windows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accepted", range(WINDOW + 1))
def test_a_window_fed_token_by_token_is_bitwise_plain_decoding(tower, accepted):
    prompt, window, after = inputs(tower)
    plain, cache = read(tower, prompt), read(tower, prompt)
    cache.begin()
    outputs = step(tower, window, cache)
    cache.commit(accepted)
    close(step(tower, window[:, :accepted], plain), outputs[:, :accepted], 0) if accepted else None
    same_rows(cache, plain)
    close(step(tower, after, cache), step(tower, after, plain), 0)
    same_rows(cache, plain)


@pytest.mark.parametrize("accepted", range(WINDOW + 1))
def test_a_window_fed_in_one_call_equals_plain_decoding(tower, accepted):
    prompt, window, after = inputs(tower)
    plain, cache = read(tower, prompt), read(tower, prompt)
    cache.begin()
    outputs = tower(window, cache=cache)
    cache.commit(accepted)
    if accepted:
        close(outputs[:, :accepted], step(tower, window[:, :accepted], plain))
    same_rows(cache, plain, 1e-10)
    close(step(tower, after, cache), step(tower, after, plain))


def test_rows_accept_different_numbers_and_a_second_window_follows(tower):
    """Every row goes on as if it had been alone, through two windows with ragged acceptance."""
    rows = WINDOW + 1
    prompt, window, after = inputs(tower, rows)
    second = noise(rows, 3, tower.config.d_model, seed=4)
    first_kept, second_kept = torch.arange(rows), torch.tensor([3, 0, 2, 1, 3])
    cache = read(tower, prompt)
    cache.begin()
    tower(window, cache=cache)
    cache.commit(first_kept)
    assert cache.lengths.tolist() == [PREFIX + n for n in range(rows)]
    cache.begin()
    outputs = torch.cat([tower(second[:, :2], cache=cache), step(tower, second[:, 2:], cache)], dim=1)
    cache.commit(second_kept)
    last = step(tower, after, cache)
    for row in range(rows):
        alone = read(tower, prompt[row : row + 1])
        step(tower, window[row : row + 1, :row], alone) if row else None
        kept = int(second_kept[row])
        if kept:
            close(outputs[row, :kept], step(tower, second[row : row + 1, :kept], alone)[0])
        close(last[row], step(tower, after[row : row + 1], alone)[0])
        close(held(cache, row), held(alone), 1e-10)


def test_rollback_restores_every_bit(tower):
    prompt, window, after = inputs(tower)
    plain, cache = read(tower, prompt), read(tower, prompt)
    for _ in range(2):
        cache.begin()
        tower(window, cache=cache)
        cache.rollback()
        same_rows(cache, plain)
        assert not cache.in_window
    close(step(tower, after, cache), step(tower, after, plain), 0)


def test_an_empty_window_and_a_window_on_an_empty_cache(tower):
    _, window, after = inputs(tower)
    cache, plain = tower.new_cache(2), tower.new_cache(2)
    cache.begin()
    cache.commit(0)
    cache.begin()
    tower(window, cache=cache)
    cache.commit(torch.tensor([0, 2]))
    got = step(tower, after, cache)
    close(got[0], step(tower, after, plain)[0])
    assert cache.lengths.tolist() == [3, 5]


def test_commit_cuts_the_convolution_window_too():
    """A Mamba layer's last inputs are those of the accepted tokens, not of the drafts."""
    tower = build_tower(tower_config("M"))
    prompt, window, _ = inputs(tower)
    cache, plain = read(tower, prompt), read(tower, prompt)
    cache.begin()
    tower(window, cache=cache)
    drafts = cache.slots[0].conv.clone()
    cache.commit(1)
    tower(window[:, :1], cache=plain)
    close(cache.slots[0].conv, plain.slots[0].conv)
    assert not torch.allclose(drafts, cache.slots[0].conv)


@pytest.mark.parametrize("calls", [(7,), (1, 4, 2)], ids=str)
def test_a_branch_is_what_a_row_was_behind_some_tokens_of_the_window(tower, calls):
    """At any place of any row, in any order; it goes on by itself, and the window stays as it is."""
    prompt, window = noise(3, PREFIX, tower.config.d_model), noise(3, 7, tower.config.d_model, seed=2)
    cache = read(tower, prompt)
    cache.begin()
    for part in window.split(calls, dim=1):
        tower(part, cache=cache)
    rows, counts = torch.tensor([2, 0, 1, 1, 2]), torch.tensor([0, 7, 3, 4, 1])
    branches = cache.branch(rows, counts)
    assert branches.lengths.tolist() == (PREFIX + counts).tolist()
    after = noise(5, 2, tower.config.d_model, seed=3)
    alone = []
    for row, count in zip(rows.tolist(), counts.tolist(), strict=True):
        alone.append(read(tower, torch.cat([prompt, window[:, :count]], dim=1)[row : row + 1]))
        close(held(branches, len(alone) - 1), held(alone[-1]))
    for i, (found, one) in enumerate(zip(tower(after, cache=branches), alone, strict=True)):
        close(found, tower(after[i : i + 1], cache=one)[0])
    cache.commit(2)
    same_rows(cache, read(tower, torch.cat([prompt, window[:, :2]], dim=1)), 1e-10)


def test_what_cannot_be_branched():
    tower = build_tower(tower_config("M*"))
    cache = read(tower, noise(2, 3, 20))
    with pytest.raises(CacheError, match="no open window"):
        cache.branch(torch.tensor([0]), torch.tensor([0]))
    cache.begin()
    close(held(cache.branch(torch.tensor([1]), torch.tensor([0]))), held(cache, 1), 0)  # nothing was fed yet
    with pytest.raises(CacheError, match="behind 0 to 1 of 0 tokens"):
        cache.branch(torch.tensor([0, 1]), torch.tensor([0, 1]))
    with pytest.raises(CacheError, match="lists of one length"):
        cache.branch(torch.tensor([0, 1]), torch.tensor([0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_windows_are_bitwise_in_every_type(dtype):
    tower = build_tower(tower_config("M*ME"), dtype)
    prompt, window, after = (x.to(dtype) for x in inputs(tower))
    plain, cache = read(tower, prompt), read(tower, prompt)
    cache.begin()
    step(tower, window, cache)
    cache.commit(torch.tensor([2, 2]))
    step(tower, window[:, :2], plain)
    same_rows(cache, plain)
    close(step(tower, after, cache), step(tower, after, plain), 0)


def test_errors_leave_the_cache_as_it_was():
    tower = build_tower(tower_config("M*"))
    prompt, window, after = inputs(tower)
    cache, plain = read(tower, prompt), read(tower, prompt)
    with pytest.raises(CacheError, match="no open window"):
        cache.commit(1)
    with pytest.raises(CacheError, match="no open window"):
        cache.rollback()
    cache.begin()
    with pytest.raises(CacheError, match="open already"):
        cache.begin()
    tower(window, cache=cache)
    for accepted, said in ((5, r"\[5, 5\].*\[4, 4\]"), (-1, r"\[-1, -1\]"), (torch.tensor([1, 9]), r"\[1, 9\]")):
        with pytest.raises(CacheError, match=said):
            cache.commit(accepted)
    for accepted in (torch.tensor([1, 1, 1]), 1.5, torch.tensor([True, False])):
        with pytest.raises(CacheError, match="integer"):
            cache.commit(accepted)
    with pytest.raises(CacheError, match="open window"):
        tower(window, cache=cache, mask=torch.tensor([[True] * 4, [True] * 3 + [False]]))
    for use in (lambda: cache.fork(2), lambda: cache.select(torch.tensor([0])), lambda: cache.save("never")):
        with pytest.raises(CacheError, match="window"):
            use()
    cache.commit(2)
    step(tower, window[:, :2], plain)
    close(step(tower, after, cache), step(tower, after, plain))


# -- copies --------------------------------------------------------------------------------------------------


def ragged(tower):
    """A cache of three rows that hold 6, 3 and 1 tokens."""
    cache = tower.new_cache(3, capacity=11)
    mask = torch.arange(6) < torch.tensor([[6], [3], [1]])
    tower(noise(3, 6, tower.config.d_model), cache=cache, mask=mask)
    return cache


def test_forks_go_their_own_ways(tower):
    cache = ragged(tower)
    before = [held(cache, row) for row in range(3)]
    before = [{k: v.clone() for k, v in row.items()} for row in before]
    forked = cache.fork(2)
    assert forked.lengths.tolist() == [6, 6, 3, 3, 1, 1]
    x = noise(6, 2, tower.config.d_model, seed=8)
    out = step(tower, x, forked)
    for row in range(3):
        close(held(cache, row), before[row], 0)
    for copy in range(2):
        close(out[copy::2], step(tower, x[copy::2], cache.fork(1)))


def test_select_keeps_rows_in_the_order_asked_for(tower):
    cache = ragged(tower)
    chosen = cache.select(torch.tensor([2, 0, 2]))
    for place, row in enumerate([2, 0, 2]):
        close(held(chosen, place), held(cache, row), 0)
    x = noise(3, 1, tower.config.d_model, seed=8)
    close(tower(x, cache=chosen)[1], tower(x[[1, 1, 1]], cache=cache)[0])


def test_selecting_the_short_rows_shortens_the_cache(tower):
    short = ragged(tower).select(torch.tensor([1]))
    assert (short.length, short.uniform) == (3, True)
    x = noise(1, 2, tower.config.d_model, seed=8)
    alone = tower.new_cache(1)
    tower(noise(3, 6, tower.config.d_model)[1:2, :3], cache=alone)
    close(step(tower, x, short), step(tower, x, alone))


def test_what_a_fork_or_a_new_cache_cannot_be():
    cache = build_tower(tower_config("M*")).new_cache(2)
    with pytest.raises(CacheError, match="not 0"):
        cache.fork(0)
    with pytest.raises(CacheError, match="not 0 and 4"):
        build_tower(tower_config("M*")).new_cache(0, 4)
    with pytest.raises(CacheError, match="not 1 and -1"):
        build_tower(tower_config("M*")).new_cache(1, -1)


# -- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TOWERS)
def test_a_saved_cache_goes_on_identically(name, dtype, tmp_path):
    tower = build_tower(TOWERS[name], dtype)
    prompt, window, after = (x.to(dtype) for x in inputs(tower))
    cache = tower.new_cache(2, capacity=64)  # more room than tokens: only the tokens are written
    mask = torch.tensor([[False, True, True, True, True], [True] * 5])
    tower(prompt, cache=cache, mask=mask)
    cache.save(tmp_path / "state.safetensors")
    loaded = Cache.load(tmp_path / "state.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]
    same_rows(loaded, cache)
    for state in (cache, loaded):
        state.begin()
    close(tower(window, cache=loaded), tower(window, cache=cache), 0)
    for state in (cache, loaded):
        state.commit(torch.tensor([1, 3]))
    close(step(tower, after, loaded), step(tower, after, cache), 0)
    same_rows(loaded, cache)


def test_an_empty_cache_can_be_saved(tower, tmp_path):
    tower.new_cache(2).save(tmp_path / "empty")
    x = noise(2, 3, tower.config.d_model)
    close(tower(x, cache=Cache.load(tmp_path / "empty")), tower(x, cache=tower.new_cache(2)), 0)


def test_files_that_are_no_caches(tmp_path):
    (tmp_path / "text").write_text("hello")
    save_file({"weight": torch.ones(2)}, tmp_path / "weights")
    save_file({"0.k": torch.ones(1, 1, 1, 1)}, tmp_path / "half", {"layers": "1"})
    save_file({"lengths": torch.ones(1, dtype=torch.int64)}, tmp_path / "layers", {"layers": "many"})
    for name in ("text", "weights", "half", "layers", "missing"):
        with pytest.raises(CacheError, match=f"{name} is not a saved cache"):
            Cache.load(tmp_path / name)


# -- bytes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TOWERS)
def test_bytes_are_counted_exactly(name, dtype):
    tower = build_tower(TOWERS[name], dtype)
    cache = tower.new_cache(3, capacity=7)
    allocated = cache.lengths.nbytes + (cache.positions.data.nbytes if cache.positions else 0)
    for slot in cache.slots:
        if isinstance(slot, AttentionSlot):
            allocated += slot.k.data.nbytes + slot.v.data.nbytes
        elif isinstance(slot, MambaSlot):
            allocated += slot.conv.nbytes + slot.ssm.nbytes
    assert cache.nbytes == allocated == cache_bytes(tower.config, 3, 7, dtype.itemsize)
    tower(noise(3, 7, tower.config.d_model, dtype=dtype), cache=cache)
    assert cache.nbytes == allocated  # filled to the brim, not grown
    tower(noise(3, 1, tower.config.d_model, dtype=dtype), cache=cache)
    grows = "*" in tower.config.pattern
    assert (cache.nbytes > allocated) == grows


def test_reserve_makes_room_once():
    tower = build_tower(tower_config("*"))
    cache = read(tower, noise(1, 3, 20))
    cache.reserve(40)
    room = cache.slots[0].k.data
    step(tower, noise(1, 37, 20), cache)
    assert cache.slots[0].k.data is room
    assert cache.nbytes == cache_bytes(tower.config, 1, 40, 8)


def test_next_positions():
    plain, rotary = (build_tower(TOWERS[n]) for n in ("M*-E", "E*M- axes"))
    cache = plain.new_cache(2)
    assert cache.next_positions().tolist() == [0, 0]
    plain(noise(2, 4, 20), cache=cache, mask=torch.tensor([[True] * 4, [True] * 3 + [False]]))
    assert cache.next_positions().tolist() == [4, 3]
    cache = rotary.new_cache(2)
    assert cache.next_positions().tolist() == [0, 0]
    positions = torch.tensor([[[0, 1, 1], [0, 5, 6]], [[0, 1, 7], [0, 2, 3]], [[0, 9, 2], [0, 2, 3]]])
    rotary(noise(2, 3, 20), cache=cache, positions=positions)
    assert cache.next_positions().tolist() == [10, 7]
    cache.begin()
    rotary(noise(2, 2, 20), cache=cache)
    assert cache.next_positions().tolist() == [12, 9]
    cache.commit(torch.tensor([0, 1]))
    assert cache.next_positions().tolist() == [10, 8]
