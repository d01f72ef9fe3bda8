"""Number formats of eight and four bits beside their references and the libraries that write them; random rounding."""

import json

import lowbit_oracles as oracles
import pytest
import torch
from torch import Tensor

from omni.kernels.rounding import from_int8, key_of, stochastic, to_half, to_half_reference, to_int8, uniform
from omni.quantization.formats import (
    E2M1,
    FORMATS,
    FP8_TILE,
    NVFP4,
    Packed,
    decode,
    decode_reference,
    encode,
    from_exponent,
    pack_e2m1,
    round_e2m1,
    round_e2m1_reference,
    to_exponent,
    units,
    unpack_e2m1,
    unpack_e2m1_reference,
    unpack_e4m3,
)

ORACLES = json.loads(oracles.FILE.read_text())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# -- elements ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_e2m1_rounds_to_the_nearest_and_ties_to_the_even_code(dtype):
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], dtype=dtype)
    assert round_e2m1(ties).tolist() == [0, 1, 1, 2, 2, 4, 4]
    x = torch.cat([3 * noise(4000).to(dtype), ties, -ties, torch.tensor([0.0, 6.1, 1e30, -1e30], dtype=dtype)])
    assert torch.equal(round_e2m1(x), round_e2m1_reference(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_codes_have_the_even_column_in_the_low_nibble(dtype):
    every = torch.arange(256, dtype=torch.uint8)[:, None]
    values = unpack_e2m1(every, dtype)
    assert torch.equal(values, unpack_e2m1_reference(every, dtype))
    assert torch.equal(pack_e2m1(values.float()), every)
    assert unpack_e2m1(torch.tensor([[0x5C]], dtype=torch.uint8)).tolist() == [[-2.0, 3.0]]
    assert [abs(v) for v in unpack_e2m1(torch.arange(8, dtype=torch.uint8)[:, None])[:, 0].tolist()] == list(E2M1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_e4m3_by_its_table_is_torchs_own_cast(dtype):
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    torch.testing.assert_close(unpack_e4m3(every, dtype), every.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_exponents():
    amax = torch.tensor([0.0, 6.0, 6.1, 4.0, 3.999, 2e-38, 3e38])
    assert (to_exponent(amax, 6.0).int() - 127).tolist() == [0, 0, 0, 0, -1, -127, 125]
    assert from_exponent(torch.tensor([1, 127, 130, 254], dtype=torch.uint8)).tolist() == [2.0**-126, 1, 8, 2.0**127]


# -- tensors -----------------------------------------------------------------------------------------------------------

BOUNDS = {"fp8": 0.03, "fp8_channel": 0.03, "fp8_block": 0.03, "mxfp8": 0.04, "nvfp4": 0.11, "mxfp4": 0.14}
"""Relative errors on normal numbers: above what was measured, by a tenth."""


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(7, 96), (130, 160), (3, 5, 64), (1, 32)])
def test_what_comes_back_is_near_and_is_the_formula(name, shape):
    format, x = FORMATS[name], noise(*shape, seed=3)
    packed = encode(x, format)
    for part, (size, dtype) in format.shapes(shape).items():
        held = getattr(packed, part)
        assert (tuple(held.shape), held.dtype) == (size, dtype), part
    assert torch.equal(decode(packed, format), decode_reference(packed, format))
    assert error(decode(packed, format), x) < BOUNDS[name]
    again = encode(decode(packed, format), format)
    assert error(decode(again, format), decode(packed, format)) < 1e-6


@pytest.mark.parametrize("name", ["fp8", "fp8_channel", "mxfp8", "nvfp4", "mxfp4"])
def test_units_are_exact_in_bfloat16(name):
    format, x = FORMATS[name], noise(40, 96)
    packed = encode(x, format)
    values, factor = units(packed, format, torch.bfloat16)
    exact, same = units(packed, format)
    assert torch.equal(values.float(), exact)
    assert (factor is None and same is None) or torch.equal(factor, same)


def test_zeros_and_rows_of_very_different_sizes():
    x = noise(6, 64) * torch.logspace(-6, 6, 6)[:, None]
    x[2] = 0
    for format in (*FORMATS.values(), FP8_TILE):
        back = decode(encode(x, format), format)
        assert torch.equal(back[2], torch.zeros(64)), format.name
        assert error(back[5], x[5]) < 0.15, format.name
        assert bool(decode(encode(torch.zeros(4, 32), format), format).eq(0).all()), format.name
    assert error(decode(encode(x, FORMATS["mxfp4"]), FORMATS["mxfp4"])[0], x[0]) < 0.15  # each block has its own range


def test_columns_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="nvfp4 has blocks of 16 columns; 40 columns"):
        encode(noise(2, 40), NVFP4)
    assert encode(noise(2, 40), FORMATS["fp8_block"]).block_scale.shape == (1, 1)


def test_four_over_six_is_never_worse_and_leaves_room():
    x = noise(64, 256, seed=5)
    six, chosen = encode(x, NVFP4), encode(x, NVFP4, six_or_four=True)
    assert chosen.tensor_scale == x.abs().max() / (6 * 256)
    squares = [(decode(p, NVFP4) - x).square().sum() for p in (six, chosen)]
    assert squares[1] < 0.95 * squares[0]
    largest = unpack_e2m1(chosen.codes).abs().unflatten(-1, (-1, 16)).amax(-1)
    assert set(largest.unique().tolist()) == {4.0, 6.0}


def test_square_blocks_are_the_same_both_ways():
    x = noise(48, 80)
    one, other = (encode(t, NVFP4, block=(16, 16)) for t in (x, x.mT))
    assert torch.equal(decode(one, NVFP4), decode(other, NVFP4).mT)
    assert one.block_scale.shape == (48, 5)
    assert not torch.equal(decode(encode(x, NVFP4), NVFP4), decode(encode(x.mT, NVFP4), NVFP4).mT)


# -- the libraries that publish them -----------------------------------------------------------------------------------


def golden(library: str, name: str) -> dict[str, Tensor]:
    return {part: oracles.read(item) for part, item in ORACLES[library][name].items()}


@pytest.mark.parametrize("name", ["nvfp4", "fp8", "mxfp8", "mxfp4"])
def test_modelopt_reads_the_same_numbers(name):
    """:mod:`lowbit_oracles` says how the values were made."""
    held = golden("modelopt", name)
    decoded = held.pop("decoded")
    torch.testing.assert_close(decode(Packed(**held), FORMATS[name]), decoded, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["nvfp4", "fp8"])
def test_modelopt_writes_the_same_bytes(name):
    held = golden("modelopt", name)
    packed = encode(oracles.weight(), FORMATS[name])
    for part in ("codes", "block_scale", "tensor_scale"):
        if part in held:
            mine = getattr(packed, part)
            mine, theirs = (t.view(torch.uint8) if t.dtype.itemsize == 1 else t for t in (mine, held[part]))
            assert torch.equal(mine, theirs), part


@pytest.mark.parametrize(("layout", "name"), [("nvfp4-pack-quantized", "nvfp4"), ("mxfp4-pack-quantized", "mxfp4")])
def test_compressed_tensors_has_the_same_numbers(layout, name):
    held = golden("compressed_tensors", layout)
    tensor = held["weight_global_scale"].reciprocal() if name == "nvfp4" else None
    packed = Packed(held["weight_packed"], held["weight_scale"], tensor)
    decoded = decode(packed, FORMATS[name], torch.bfloat16)  # what the library decodes to
    torch.testing.assert_close(decoded, held["decoded"], rtol=2**-7, atol=0)
    assert torch.equal(encode(oracles.weight(), FORMATS[name]).codes, held["weight_packed"])


# -- at random ---------------------------------------------------------------------------------------------------------


def test_random_numbers_follow_key_step_and_place_alone():
    whole = uniform(1000, key_of(7), 3)
    assert torch.equal(uniform(100, key_of(7), 3), whole[:100])
    rows = uniform(1000, key_of(7), torch.tensor([2, 3]))
    assert torch.equal(rows[1], whole)
    for other in (uniform(1000, key_of(8), 3), uniform(1000, key_of(7), 4), rows[0], uniform(1000, key_of(7, 0), 3)):
        assert abs(float(torch.corrcoef(torch.stack([whole, other]))[0, 1])) < 0.1
    many = uniform(1 << 18, key_of(0), 0)
    assert abs(float(many.mean()) - 0.5) < 3e-3
    assert float(many.min()) >= 0
    assert float(many.max()) < 1
    assert float((16 * many).long().bincount(minlength=16).float().std()) < 3 * (2**18 / 16) ** 0.5


def test_stochastic_rounding_keeps_the_mean_and_what_is_exact():
    x = torch.tensor([0.3, -0.3, 2.75, -7.0, 4.0])
    u = uniform(5 * 20_000, key_of(1), 0).view(20_000, 5)
    drawn = stochastic(x.expand_as(u), u)
    torch.testing.assert_close(drawn.mean(0), x, rtol=0, atol=0.02)
    assert set(drawn[:, 2].tolist()) == {2.0, 3.0}
    assert drawn[:, 3:].unique(dim=0).tolist() == [[-7.0, 4.0]]
    e2m1 = torch.tensor([0.1, 1.3, 2.6, 5.5, -3.2])
    rounded = round_e2m1(e2m1.expand_as(u), u)
    torch.testing.assert_close(rounded.mean(0), e2m1, rtol=0, atol=0.04)
    assert set(rounded.abs().unique().tolist()) <= set(E2M1)


def test_half_at_random_is_its_reference():
    special = torch.tensor([0.0, 1.0, -1.0, 65504.0, 7e4, -7e4, 6e-8, 1e-9, -3e-5])
    x = torch.cat([noise(3000), noise(3000) * 1e-6, special, noise(500).half().float()])
    for step in range(3):
        u = uniform(x.numel(), key_of(2), step)
        assert torch.equal(to_half(x, u), to_half_reference(x, u))
    held = to_half(x, u).float()
    assert torch.equal(to_half(held, u).float(), held)  # what is exact stays


def test_int8_at_random_keeps_the_mean():
    x = noise(3, 256) * 5
    u = uniform(400 * x.numel(), key_of(3), 0).view(400, *x.shape)
    codes, scale = to_int8(x.expand(400, -1, -1), u)
    assert scale.shape == (400, 3, 2)
    assert int(codes.abs().max()) == 127
    back = from_int8(codes, scale)
    assert float((back - x).abs().max()) <= float(scale.max()) * 1.001
    torch.testing.assert_close(back.mean(0), x, rtol=0, atol=0.02)
    zero = to_int8(torch.zeros(2, 6), u[0, :2, :6])
    assert bool(from_int8(*zero).eq(0).all())
