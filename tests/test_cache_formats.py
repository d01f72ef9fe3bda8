"""Caches in fewer bits: keys and values in FP8, states rounded at random; windows, copies, files, drift, bytes."""

import pytest
import torch
from micro import micro_model
from towers import TOWERS, build_tower, close, noise, same_rows, tower_config

from omni.cache import Cache, CacheError, CacheFormat, FP8Rows, RoundedSlot, cache_bytes
from omni.kernels.rounding import from_int8
from omni.mixers import Layout
from omni.pipelines.chat import Chat

FORMATS = {
    "fp8": CacheFormat(kv="fp8"),
    "float16": CacheFormat(ssm="float16"),
    "fp8+int8": CacheFormat(kv="fp8", ssm="int8", seed=5),
}
PREFIX, WINDOW = 5, 4


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(params=["M*-E", "MEM*E latent", "E*M- axes", "MM odd"], name="tower")
def _tower(request):
    return build_tower(TOWERS[request.param], torch.float32)


@pytest.fixture(params=FORMATS, name="format")
def _format(request):
    return FORMATS[request.param]


def inputs(tower, rows=2):
    d = tower.config.d_model
    return tuple(noise(rows, n, d, seed=s, dtype=torch.float32) for n, s in ((PREFIX, 1), (WINDOW, 2), (3, 3)))


def read(tower, x, format):
    cache = tower.new_cache(x.shape[0], 4, format)
    tower(x, cache=cache)
    return cache


def step(tower, x, cache):
    return torch.cat([tower(x[:, i : i + 1], cache=cache) for i in range(x.shape[1])], dim=1)


# -- the verbs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("snapshots", [False, True])
@pytest.mark.parametrize("accepted", [0, 2, WINDOW])
def test_a_window_is_bitwise_plain_decoding(tower, format, accepted, snapshots):
    """The random numbers of a replayed token are those that it had: what is committed is what plain decoding keeps."""
    prompt, window, after = inputs(tower)
    plain, cache = read(tower, prompt, format), read(tower, prompt, format)
    cache.begin(snapshots)
    step(tower, window, cache)
    cache.commit(accepted)
    step(tower, window[:, :accepted], plain) if accepted else None
    same_rows(cache, plain)
    close(step(tower, after, cache), step(tower, after, plain), 0)
    same_rows(cache, plain)


def test_rows_accept_different_numbers(tower, format):
    prompt, window, after = inputs(tower, 3)
    kept = torch.tensor([0, 3, 1])
    cache = read(tower, prompt, format)
    cache.begin()
    tower(window, cache=cache)
    cache.commit(kept)
    last = step(tower, after, cache)
    for row in range(3):
        alone = read(tower, prompt[row : row + 1], format)
        step(tower, window[row : row + 1, : int(kept[row])], alone) if kept[row] else None
        close(last[row], step(tower, after[row : row + 1], alone)[0], 2e-2)  # one rounding may fall the other way


def test_rollback_fork_and_select(tower, format):
    prompt, window, after = inputs(tower)
    plain, cache = read(tower, prompt, format), read(tower, prompt, format)
    cache.begin()
    tower(window, cache=cache)
    cache.rollback()
    same_rows(cache, plain)
    forked = cache.fork(2)
    both = step(tower, after.repeat_interleave(2, dim=0), forked)
    chosen = cache.select(torch.tensor([1]))
    expected = step(tower, after, cache)
    close(both[::2], expected, 1e-5)
    close(step(tower, after[1:], chosen), expected[1:], 1e-5)


def test_a_saved_cache_goes_on_identically(tower, format, tmp_path):
    prompt, _, after = inputs(tower)
    cache = read(tower, prompt, format)
    cache.save(tmp_path / "state")
    loaded = Cache.load(tmp_path / "state")
    same_rows(loaded, cache)
    close(step(tower, after, loaded), step(tower, after, cache), 0)


def test_chunks_of_a_prompt_and_padding(format):
    tower = build_tower(tower_config("M*"), torch.float32)
    x = noise(2, 9, 20, dtype=torch.float32)
    cache = tower.new_cache(2, 0, format)
    mask = torch.tensor([[False] * 2 + [True] * 7, [True] * 9])
    tower(x, cache=cache, mask=mask)
    assert cache.lengths.tolist() == [7, 9]
    if format.ssm != "exact":
        assert cache.slots[0].count.tolist() == [7, 9]
        alone = tower.new_cache(1, 0, format)
        tower(x[:1, 2:], cache=alone)
        close(cache.slots[0].state()[0], alone.slots[0].state()[0], 0.02)


def test_a_denoiser_reads_a_context_in_fp8():
    model = micro_model()
    ids = torch.randint(3, 200, (1, 12))
    found = []
    for format in (CacheFormat(), CacheFormat("fp8", "float16")):
        cache = model.new_cache(1, 0, format)
        model.logits(ids, cache)
        noisy = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        found.append(model.velocity(noisy, torch.tensor([0.5]), cache))
    assert 0 < float((found[0] - found[1]).norm() / found[0].norm()) < 0.1


def test_gradients_are_refused():
    tower = build_tower(tower_config("M*"), torch.float32)
    for name in ("fp8", "float16"):
        with torch.enable_grad(), pytest.raises(CacheError, match="without gradients only"):
            tower(noise(1, 3, 20, dtype=torch.float32), cache=tower.new_cache(1, 0, CacheFormat.of(name)))


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_keys_and_values_are_e4m3_times_their_scale():
    tower = build_tower(tower_config("*"), torch.float32)
    cache = Cache.new(tower.config, 1, 0, torch.float32, torch.device("cpu"), CacheFormat("fp8"), {0: (0.25, 4.0)})
    exact = tower.new_cache(1)
    x = 30 * noise(1, 6, 20, dtype=torch.float32)
    for held in (cache, exact):
        tower(x, cache=held)
    for rows, plain, scale in zip(
        (cache.slots[0].k, cache.slots[0].v), (exact.slots[0].k, exact.slots[0].v), (0.25, 4), strict=True
    ):
        assert isinstance(rows, FP8Rows)
        assert rows.data.dtype == torch.uint8
        expected = (plain.read(6) / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale
        close(rows.read(6), expected, 0)
    huge = FP8Rows(torch.zeros(1, 1, 1, 2, dtype=torch.uint8), torch.float32)
    assert huge.append(torch.tensor([[[[1e4, -1e4]]]]), 0).flatten().tolist() == [448.0, -448.0]


def drift(ssm: str, steps: int = 400) -> float:
    """Relative error of a Mamba layer's state after many steps, beside the state in float32."""
    config = tower_config("M", mamba={"n_heads": 4, "head_dim": 8, "d_state": 16})
    tower = build_tower(config, torch.float32)
    mixer, x = tower.blocks[0].mixer, noise(1, steps, 20, seed=4, dtype=torch.float32)
    mixer.dt_bias.fill_(-5.0)  # slow decay: what is rounded away adds up
    slots = [tower.new_cache(1, 0, CacheFormat(ssm=s)).slots[0] for s in ("exact", ssm)]
    for i in range(steps):
        for slot in slots:
            mixer(x[:, i : i + 1], Layout(1), slot)
    exact, rounded = (slot.state() for slot in slots)
    return float((rounded - exact).norm() / exact.norm())


@pytest.mark.parametrize(("ssm", "bound"), [("float16", 3e-3), ("int8", 0.15)])
def test_drift_over_a_long_decode_is_bounded(ssm, bound):
    assert 0 < drift(ssm) < bound


def test_the_mean_of_many_seeds_is_the_exact_state():
    """Rounding at random has no bias that grows with the steps; to the nearest loses every input that is too small."""

    def slot_of(seed: int) -> RoundedSlot:
        count = torch.zeros(1, dtype=torch.int64)
        return RoundedSlot(torch.zeros(1, 3, 4), torch.zeros(1, 1, 1, 64).half(), count=count, key=seed)

    start, small = torch.ones(1, 1, 1, 64), 1e-4  # a tenth of float16's step at one
    found, near = [], start.half()
    for seed in range(12):
        slot = slot_of(seed)
        slot.keep(start, 1)
        for _ in range(50):
            slot.keep(slot.state() + small, 1)
        found.append(slot.state())
    for _ in range(50):
        near = (near.float() + small).half()
    assert float(near.float().max()) == 1.0
    assert float(torch.stack(found).mean()) == pytest.approx(1 + 50 * small, abs=3e-4)


def test_int8_states_have_a_scale_for_every_block():
    tower = build_tower(tower_config("M", mamba={"d_state": 256}), torch.float32)
    cache = read(tower, noise(2, 5, 20, dtype=torch.float32), CacheFormat(ssm="int8"))
    slot = cache.slots[0]
    assert (slot.ssm.dtype, tuple(slot.scale.shape)) == (torch.int8, (2, 4, 5, 2))
    close(slot.state(), from_int8(slot.ssm, slot.scale), 0)


def test_seeds_differ_and_repeat():
    tower = build_tower(tower_config("M"), torch.float32)
    x = noise(1, 5, 20, dtype=torch.float32)
    states = [read(tower, x, CacheFormat(ssm="float16", seed=s)).slots[0].ssm for s in (1, 1, 2)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["fp8", "float16", "int8", "fp8+float16", "fp8+int8"])
def test_bytes_are_counted_exactly(name, dtype):
    format = CacheFormat.of(name)
    for config in TOWERS.values():
        tower = build_tower(config, dtype)
        cache = tower.new_cache(3, 7, format)
        assert cache.nbytes == cache_bytes(config, 3, 7, dtype.itemsize, format)


# -- what is asked for -------------------------------------------------------------------------------------------------


def test_names_of_formats():
    assert CacheFormat.of("exact") == CacheFormat()
    assert CacheFormat.of("fp8+int8") == CacheFormat("fp8", "int8")
    for text in ("fp16", "", "fp8+int8+float16", "FP8"):
        with pytest.raises(CacheError, match=r"no format of a cache; write exact, fp8"):
            CacheFormat.of(text)
    with pytest.raises(CacheError, match=r"ssm is 'fp8'; known: exact, float16, int8"):
        CacheFormat(ssm="fp8")


def test_a_chat_is_kept_in_what_is_asked_for():
    model = micro_model()
    messages = [{"role": "user", "content": "What is it?"}]
    replies = {}
    for cache in (None, "exact", "fp8+float16"):
        chat = Chat(model, cache=cache)
        replies[cache] = chat(messages, max_new_tokens=6, temperature=0.0)
        rounded = any(isinstance(slot, RoundedSlot) for slot in chat._kept.cache.slots)
        assert rounded == (cache == "fp8+float16")
    assert replies[None] == replies["exact"]
    model.cache_format = CacheFormat("fp8")
    chat = Chat(model)
    chat(messages, max_new_tokens=2)
    assert any(isinstance(getattr(slot, "k", None), FP8Rows) for slot in chat._kept.cache.slots)
    with pytest.raises(CacheError, match="no format"):
        Chat(model, cache="int4")
