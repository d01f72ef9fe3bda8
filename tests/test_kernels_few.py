"""Paths for few tokens without gradients: they equal their references, and are taken where they know enough."""

import pytest
import torch
from kernel_cases import DTYPES, close, expert_inputs, packed, scan_inputs

from omni.kernels import choose, force
from omni.kernels.experts import EXPERT_PATHS, routed_experts
from omni.kernels.scan import SCAN_PATHS, scan, scan_advance, scan_step


@pytest.mark.parametrize("decay", [1e-6, 1.0, 50.0, 1e4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("b", "n", "h", "p", "g"), [(1, 1, 1, 3, 1), (2, 16, 6, 5, 3), (3, 32, 4, 8, 1)])
def test_a_block_of_few_tokens_equals_the_recurrence(b, n, h, p, g, dtype, decay):
    x, dt, A, B, C, D, state = scan_inputs(b, n, h, p, g, 7, dtype)
    for more in ((D, state), (None, state), (D, None)):
        args = (x, dt, A * decay, B, C, more[0], more[1], n, None)
        assert choose("scan", SCAN_PATHS, *args).__name__ == "scan_block"
        with force("scan", "reference"):
            expected = scan(*args[:6], initial_state=args[6])
        found = scan(*args[:6], initial_state=args[6], chunk_size=n)
        for f, e in zip(found, expected, strict=True):
            assert (f.shape, f.dtype) == (e.shape, e.dtype)
            close(f, e, dtype)


def test_a_block_is_not_taken_where_it_does_not_know_enough():
    x, dt, A, B, C, D, state = scan_inputs(2, 16, 4, 3, 2, 5)
    segments = packed(2, 16)
    named = lambda *args: choose("scan", SCAN_PATHS, *args).__name__  # noqa: E731
    assert named(x, dt, A, B, C, D, state, 16, None) == "scan_block"
    assert named(x, dt, A, B, C, D, state, 8, None) == "scan_chunked"  # shorter chunks are asked for
    assert named(x, dt, A, B, C, D, state, 16, segments) == "scan_chunked"
    assert named(x.clone().requires_grad_(), dt, A, B, C, D, state, 16, None) == "scan_chunked"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("counts", [None, [0, 6], [3, 1]], ids=str)
def test_advancing_leaves_the_state_of_single_steps_bit_by_bit(counts, dtype):
    x, dt, A, B, C, D, state = scan_inputs(2, 6, 4, 3, 2, 5, dtype)
    held = state.to(torch.promote_types(dtype, torch.float32))
    expected = held.clone()
    with torch.no_grad():
        for row in range(2):
            for t in range(6 if counts is None else counts[row]):
                one = (x[row : row + 1, t], dt[row : row + 1, t], A, B[row : row + 1, t], C[row : row + 1, t], D)
                scan_step(*one, expected[row : row + 1])
    found = scan_advance(x, dt, A, B, held, None if counts is None else torch.tensor(counts))
    assert found is held
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("t", "e", "k"), [(1, 8, 2), (2, 8, 8), (21, 8, 3), (5, 32, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_expert_on_every_token_equals_the_reference(dtype, t, e, k):
    indices, inputs = expert_inputs(t, e, k, 16, 24, dtype)
    x, weights, up, down = (t.detach() for t in inputs)
    args = (x, indices, weights.to(dtype), up, down)
    assert choose("experts", EXPERT_PATHS, *args).__name__ == "routed_experts_all"
    with force("experts", "reference"):
        expected = routed_experts(*args)
    close(routed_experts(*args), expected, dtype)


def test_large_experts_are_only_run_where_they_were_chosen():
    indices, inputs = expert_inputs(3, 64, 2, 96, 128, torch.float32)
    x, weights, up, down = (t.detach() for t in inputs)
    assert choose("experts", EXPERT_PATHS, x, indices, weights, up, down).__name__ == "routed_experts_few"
    many = torch.zeros(4096, 96), torch.zeros(4096, 2, dtype=torch.long), torch.ones(4096, 2)
    small = up[:4, :24].contiguous(), down[:4, :, :24].contiguous()
    assert choose("experts", EXPERT_PATHS, *many, *small).__name__ == "routed_experts_sorted"
