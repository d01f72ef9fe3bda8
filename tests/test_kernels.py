"""Every fast path equals its reference: values, states and gradients, per type, size and option."""

import math

import pytest
import torch
from kernel_cases import DTYPES, close, expert_inputs, fast, leaves, packed, random, scan_inputs
from torch import Tensor

from omni.kernels import conv as conv_module
from omni.kernels import force
from omni.kernels.attention import ATTENTION_PATHS, GROUPED_PATHS, attend, attend_in_groups
from omni.kernels.conv import CONV_PATHS, causal_conv, conv_step
from omni.kernels.experts import EXPERT_PATHS, routed_experts
from omni.kernels.groups import Groups
from omni.kernels.linear import LINEAR_PATHS, project
from omni.kernels.norm import NORM_PATHS, gated_rms_norm, rms_norm
from omni.kernels.scan import SCAN_PATHS, STATES_PATHS, scan, scan_states, scan_step


def with_gradients(op: str, path: str, call, inputs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Results of ``call`` by ``path`` and the gradients of a fixed random sum of them."""
    with force(op, path):
        results = call(*inputs)
    results = [results] if isinstance(results, Tensor) else list(results)
    generator = torch.Generator().manual_seed(1)
    loss = sum((r * torch.randn(r.shape, generator=generator).to(r.dtype)).sum() for r in results)
    return results, list(torch.autograd.grad(loss, inputs))


def compare(op: str, path: str, call, inputs: list[Tensor], dtype: torch.dtype) -> None:
    """``path`` equals the reference with gradients on, and gives the same values with gradients off."""
    expected, expected_gradients = with_gradients(op, "reference", call, inputs)
    actual, gradients = with_gradients(op, path, call, inputs)
    with torch.no_grad(), force(op, path):
        plain = call(*inputs)
    plain = [plain] if isinstance(plain, Tensor) else plain
    for a, e, without in zip(actual, expected, plain, strict=True):
        assert a.dtype == e.dtype == without.dtype
        close(a, e, dtype)
        close(without, e, dtype)
    for a, e in zip(gradients, expected_gradients, strict=True):
        assert a.dtype == e.dtype
        close(a, e, dtype, kind=1)


# --- scan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("segmented", [False, True], ids=["whole", "segments"])
@pytest.mark.parametrize(("n", "chunk"), [(1, 8), (7, 8), (37, 8), (64, 16), (70, 128)])
@pytest.mark.parametrize("path", fast(SCAN_PATHS))
def test_scan_equals_the_recurrence(path, n, chunk, segmented, dtype):
    inputs = leaves(*scan_inputs(2, n, 6, 5, 3, 4, dtype))
    segments = packed(2, n) if segmented else None

    def call(x, dt, A, B, C, D, state):
        return scan(x, dt, A, B, C, D, initial_state=state, chunk_size=chunk, segments=segments)

    compare("scan", path, call, inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "chunk"), [(1, 8), (7, 8), (37, 8), (64, 16), (70, 128)])
@pytest.mark.parametrize("path", fast(STATES_PATHS))
def test_states_at_many_places_equal_the_recurrence(path, n, chunk, dtype):
    """Before the first token, behind the last, at the borders of chunks; rows in any order, and again."""
    x, dt, A, B, _, _, state = leaves(*scan_inputs(3, n, 6, 5, 3, 4, dtype))
    counts = torch.tensor([0, n, n // 2, min(n, chunk), min(n, chunk + 1), n, 0, 1])
    at = {"rows": torch.tensor([2, 0, 1, 1, 2, 1, 0, 2]), "counts": counts, "chunk_size": chunk}
    compare("scan_states", path, lambda *t: scan_states(*t[:4], initial_state=t[4], **at), [x, dt, A, B, state], dtype)
    compare("scan_states", path, lambda *t: scan_states(*t, **at), [x, dt, A, B], dtype)


@pytest.mark.parametrize("path", [path.name for path in STATES_PATHS])
def test_a_state_is_that_of_a_scan_and_hangs_on_nothing_behind_its_place(path):
    x, dt, A, B, C, D, state = scan_inputs(2, 50, 4, 5, 2, 6)
    at = {"rows": torch.tensor([1, 0, 1]), "counts": torch.tensor([13, 32, 33])}
    with force("scan_states", path):
        found = scan_states(x, dt, A, B, initial_state=state, **at)
        for i, (row, n) in enumerate(zip(at["rows"].tolist(), at["counts"].tolist(), strict=True)):
            own = slice(row, row + 1)
            first = (t[own, :n] for t in (x, dt))
            _, expected = scan(*first, A, B[own, :n], C[own, :n], D, initial_state=state[own])
            close(found[i : i + 1], expected, torch.float64)
            later = [t.clone() for t in (x, dt, B)]
            for t in later:
                t[row, n:] = 1e3
            changed = scan_states(later[0], later[1], A, later[2], initial_state=state, **at)
            assert torch.equal(changed[i], found[i])


@pytest.mark.parametrize("path", fast(SCAN_PATHS))
def test_scan_without_state_or_D(path):
    x, dt, A, B, C, _, _ = leaves(*scan_inputs(3, 19, 4, 8, 1, 16))
    compare("scan", path, lambda *t: scan(*t, None, chunk_size=4), [x, dt, A, B, C], torch.float64)


@pytest.mark.parametrize("path", fast(SCAN_PATHS))
@pytest.mark.parametrize("segmented", [False, True], ids=["whole", "segments"])
def test_scan_gradients_by_differences(path, segmented):
    inputs = leaves(*scan_inputs(1, 7, 2, 2, 1, 3))
    with torch.no_grad():
        inputs[1].clamp_(min=0.05)  # finite differences around 0 would make dt negative
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 2]]) if segmented else None

    def call(x, dt, A, B, C, D, state):
        return scan(x, dt, A, B, C, D, initial_state=state, chunk_size=3, segments=segments)

    with force("scan", path):
        assert torch.autograd.gradcheck(call, inputs)


@pytest.mark.parametrize("path", fast(SCAN_PATHS))
@pytest.mark.parametrize("decay", [1e-6, 50.0, 1e4])
def test_scan_survives_slow_and_abrupt_decay(path, decay):
    x, dt, A, B, C, D, state = scan_inputs(2, 50, 4, 3, 2, 5, torch.float32)
    inputs = leaves(x, dt, torch.full_like(A, -decay), B, C, D, state)

    def call(*t):
        return scan(*t[:6], initial_state=t[6], chunk_size=16)

    _, gradients = with_gradients("scan", path, call, inputs)
    assert all(gradient.isfinite().all() for gradient in gradients)
    if decay < 100:  # beyond, the running sum of a chunk has too few digits left for its differences
        compare("scan", path, call, inputs, torch.float32)


def test_forgotten_inputs_leave_no_subnormal_numbers():
    """They would make the products that follow slow."""
    x, dt, _, B, C, D, _ = scan_inputs(1, 64, 4, 3, 2, 5, torch.float32)
    state = torch.ones(1, 4, 3, 5)
    for steps in (0.5, 1.4, 30.0):  # what was there at first is forgotten to e^-32, e^-90 and e^-1920
        y, last = scan(0 * x, torch.full_like(dt, steps), -torch.ones(4), B, C, D, initial_state=state)
        assert all(((t == 0) | (t.abs() > torch.finfo(torch.float32).tiny)).all() for t in (y, last))


@pytest.mark.parametrize("path", [p.name for p in SCAN_PATHS])
def test_padding_leaves_the_state_alone(path):
    x, dt, A, B, C, D, state = scan_inputs(2, 21, 4, 3, 2, 5)
    dt[:, 13:] = 0
    with force("scan", path):
        _, padded = scan(x, dt, A, B, C, D, initial_state=state, chunk_size=8)
        _, short = scan(x[:, :13], dt[:, :13], A, B[:, :13], C[:, :13], D, initial_state=state, chunk_size=8)
    close(padded, short, torch.float64)


@pytest.mark.parametrize("path", [*fast(SCAN_PATHS), "reference"])
def test_segments_equal_separate_calls(path):
    x, dt, A, B, C, D, state = scan_inputs(1, 30, 4, 3, 2, 5)
    with force("scan", path):
        segments = torch.tensor([[4] * 11 + [2] * 19])
        y, last = scan(x, dt, A, B, C, D, initial_state=state, chunk_size=8, segments=segments)
        first = scan(x[:, :11], dt[:, :11], A, B[:, :11], C[:, :11], D, initial_state=state)[0]
        second, end = scan(x[:, 11:], dt[:, 11:], A, B[:, 11:], C[:, 11:], D)
    close(y, torch.cat([first, second], dim=1), torch.float64)
    close(last, end, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("path", ["fused", "reference"])
def test_scan_steps_equal_one_scan(path, grad, dtype):
    x, dt, A, B, C, D, state = scan_inputs(2, 6, 4, 3, 2, 5, dtype)
    y, last = scan(x, dt, A, B, C, D, initial_state=state)
    held = state.to(last.dtype)
    with force("scan_step", path), torch.set_grad_enabled(grad):
        for t in range(6):
            given, before = held, held.clone()
            step, held = scan_step(x[:, t], dt[:, t], A, B[:, t], C[:, t], D, held)
            close(step, y[:, t], dtype)
            assert (held is given) != grad
            if grad:
                assert torch.equal(given, before)
    close(held, last, dtype)


def test_scan_step_has_gradients():
    x, dt, A, B, C, D, state = leaves(*scan_inputs(2, 1, 4, 3, 2, 5))

    def call(x, dt, A, B, C, D, state):
        return scan_step(x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D, state)

    tensors = [x, dt, A, B, C, D, state]
    (_, actual), (_, expected) = (with_gradients("scan_step", path, call, tensors) for path in ("fused", "reference"))
    for a, e in zip(actual, expected, strict=True):
        close(a, e, torch.float64, kind=1)


# --- convolution --------------------------------------------------------------------------------------------------


@pytest.fixture(params=[1 << 18, 40], ids=["one tile", "many tiles"])
def tile(request, monkeypatch):
    monkeypatch.setattr(conv_module, "TILE", request.param)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("segmented", [False, True], ids=["whole", "segments"])
@pytest.mark.parametrize(("n", "taps"), [(1, 4), (2, 4), (23, 4), (16, 2)])
@pytest.mark.parametrize("path", fast(CONV_PATHS))
def test_conv_equals_its_reference(path, n, taps, segmented, dtype, tile):
    torch.manual_seed(n)
    b, c = 2, 5
    shapes = (b, n, c), (c, taps), (c,), (b, taps - 1, c)
    inputs = leaves(*(random(*shape, dtype=dtype) for shape in shapes))
    segments = packed(b, n) if segmented else None

    def call(x, weight, bias, initial):
        return causal_conv(x, weight, bias, initial=initial, segments=segments)

    compare("causal_conv", path, call, inputs, dtype)


@pytest.mark.parametrize("path", fast(CONV_PATHS))
def test_conv_of_a_slice_without_bias(path, tile):
    torch.manual_seed(0)
    whole, weight = random(2, 15, 12), random(4, 4)
    inputs = leaves(whole[..., 3:7], weight)
    compare("causal_conv", path, lambda x, w: causal_conv(x, w, None), inputs, torch.float64)


@pytest.mark.parametrize("path", fast(CONV_PATHS))
def test_conv_gradients_by_differences(path, tile):
    torch.manual_seed(0)
    inputs = leaves(random(2, 9, 3), random(3, 4), random(3), random(2, 3, 3))
    segments = packed(2, 9)
    with force("causal_conv", path):
        assert torch.autograd.gradcheck(
            lambda x, w, bias, initial: causal_conv(x, w, bias, initial=initial, segments=segments), inputs
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("path", ["fused", "reference"])
def test_conv_steps_equal_one_convolution(path, dtype):
    torch.manual_seed(0)
    x, weight, bias = random(2, 6, 5, dtype=dtype), random(5, 4, dtype=dtype), random(5, dtype=dtype)
    window = random(2, 3, 5, dtype=dtype)
    expected = causal_conv(x, weight, bias, initial=window.clone())
    with force("conv_step", path), torch.no_grad():
        steps = [conv_step(x[:, t], weight, bias, window) for t in range(6)]
    close(torch.stack(steps, dim=1), expected, dtype)
    assert torch.equal(window, x[:, 3:])


@pytest.mark.parametrize("path", ["fused", "reference"])
def test_conv_step_with_gradients_keeps_the_window(path):
    torch.manual_seed(0)
    x, weight, bias, window = leaves(random(2, 5), random(5, 4), random(5), random(2, 3, 5))
    before = window.detach().clone()
    with force("conv_step", path):
        conv_step(x, weight, bias, window).sum().backward()
    assert torch.equal(window, before)
    assert all(t.grad is not None for t in (x, weight, bias, window))


# --- experts ------------------------------------------------------------------------------------------------------


# The library's grouped product has no float64.
EXPERT_CASES = [(p, d) for p in fast(EXPERT_PATHS) for d in DTYPES if (p, d) != ("grouped", torch.float64)]


@pytest.mark.parametrize(("t", "e", "k"), [(1, 8, 2), (2, 8, 8), (21, 8, 3), (5, 32, 1)])
@pytest.mark.parametrize(("path", "dtype"), EXPERT_CASES, ids=str)
def test_experts_equal_their_reference(path, dtype, t, e, k):
    indices, inputs = expert_inputs(t, e, k, 16, 24, dtype)

    def call(x, weights, up, down):
        return routed_experts(x, indices, weights, up, down)

    compare("experts", path, call, inputs, dtype)


def test_experts_gradients_by_differences():
    indices, inputs = expert_inputs(5, 4, 2, 3, 4)
    with force("experts", "sorted"):
        assert torch.autograd.gradcheck(lambda x, w, up, down: routed_experts(x, indices, w, up, down), inputs)


@pytest.mark.parametrize("path", fast(EXPERT_PATHS))
def test_an_expert_that_nobody_chose(path):
    indices, inputs = expert_inputs(6, 4, 1, 16, 24, torch.float32)
    indices = torch.full_like(indices, 2)

    def call(x, weights, up, down):
        return routed_experts(x, indices, weights, up, down)

    compare("experts", path, call, inputs, torch.float32)


def test_experts_under_autocast_multiply_in_its_type():
    indices, (x, weights, up, down) = expert_inputs(9, 4, 2, 16, 24, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = routed_experts(x, indices, weights, up, down)
    assert out.dtype == torch.bfloat16
    close(out.float(), routed_experts(x, indices, weights, up, down), torch.bfloat16)


# --- attention ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("masked", [None, "rows", "keys"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 13), (9, 9), (5, 13)])
@pytest.mark.parametrize("path", fast(ATTENTION_PATHS))
def test_attention_equals_its_reference(path, n, m, causal, masked, dtype, monkeypatch):
    torch.manual_seed(n + m)
    monkeypatch.setattr("omni.kernels.attention.MASK_LIMIT", 2 * m)  # causal masks in blocks of two rows
    inputs = leaves(random(2, 6, n, 8, dtype=dtype), *(random(2, 3, m, 8, dtype=dtype) for _ in range(2)))
    mask = None
    if masked is not None:
        mask = torch.rand(2, 1, n if masked == "rows" else 1, m) > 0.4
        mask[..., 0] = True  # every query sees something

    def call(q, k, v):
        return attend(q, k, v, causal=causal, mask=mask, scale=0.3)

    compare("attention", path, call, inputs, dtype)


GROUPS = [((3,), (1.0,)), ((2, 2), (0.5, 0.5)), ((1, 4, 2), (0.2, 0.0, 0.8))]


def pass_by_pass(q, k, v, groups: Groups, mask, scale: float) -> Tensor:
    """As published: two plain attentions for each group, of its own queries and of the shared ones."""
    past, (start, out) = k.shape[2] - q.shape[2], (0, [])
    shared = [*range(groups.total, q.shape[2])]
    mean = 0.0
    for size, weight in zip(groups.sizes, groups.weights, strict=True):
        own = [*range(start, start + size)]
        keys = [*range(past), *(past + i for i in own + shared)]
        for queries in (own, shared):
            scores = q[:, :, queries] @ k[:, :, keys].mT * scale
            if mask is not None:
                scores = scores.masked_fill(~mask[..., keys], float("-inf"))
            out.append(scores.softmax(-1) @ v[:, :, keys])
        mean, start = mean + weight * out.pop(), start + size
    return torch.cat([*out, mean], dim=2)


def grouped_inputs(groups: Groups, past: int, heads: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Queries, keys and values of two rows, and a mask of the keys."""
    torch.manual_seed(past + heads)
    n = groups.total + 3
    keys = [random(2, heads, past + n, 8, dtype=dtype) for _ in range(2)]
    mask = torch.rand(2, 1, 1, past + n) > 0.4
    mask[..., -1] = True  # every query sees something that is shared
    return leaves(random(2, 6, n, 8, dtype=dtype), *keys), mask


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("past", "heads"), [(0, 6), (5, 3), (1, 1)])
@pytest.mark.parametrize(("sizes", "weights"), GROUPS)
@pytest.mark.parametrize("path", fast(GROUPED_PATHS))
def test_attention_in_groups_equals_its_reference(path, sizes, weights, past, heads, masked, dtype):
    groups = Groups(sizes, weights)
    inputs, mask = grouped_inputs(groups, past, heads, dtype)
    mask = mask if masked else None
    compare(
        "attention in groups", path, lambda *qkv: attend_in_groups(*qkv, groups, mask=mask, scale=0.3), inputs, dtype
    )


@pytest.mark.parametrize("path", [path.name for path in GROUPED_PATHS])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("sizes", "weights"), GROUPS)
def test_attention_in_groups_is_the_published_loop(path, sizes, weights, masked):
    groups = Groups(sizes, weights)
    (q, k, v), mask = grouped_inputs(groups, 5, 6, torch.float64)
    mask = mask if masked else None
    expected = pass_by_pass(q, k, v, groups, mask, 0.3)
    with force("attention in groups", path):
        close(attend_in_groups(q, k, v, groups, mask=mask, scale=0.3), expected, torch.float64)
    one = Groups((groups.total,), (1.0,))
    plain = attend(q, k, v, causal=False, mask=mask, scale=0.3)
    with force("attention in groups", path):
        close(attend_in_groups(q, k, v, one, mask=mask, scale=0.3), plain, torch.float64)
    assert len(sizes) == 1 or not torch.allclose(expected, plain, atol=1e-3), "groups do not see each other"


@pytest.mark.parametrize(
    ("sizes", "weights"),
    [((), ()), ((2,), ()), ((2, 0), (0.5, 0.5)), ((2, 2), (0.5, 0.6)), ((2, 2), (1.5, -0.5)), ((1,), (math.nan,))],
)
def test_groups_that_mean_nothing(sizes, weights):
    with pytest.raises(ValueError, match="weights"):
        Groups(sizes, weights)


def test_causal_attention_needs_enough_keys():
    q, k = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 3, 8)
    with pytest.raises(ValueError, match="4 queries over 3 keys"):
        attend(q, k, k, causal=True)


# --- linear -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("biased", [False, True], ids=["bare", "bias"])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (3, 1), (2, 5), (130,)], ids=str)
@pytest.mark.parametrize("d_out", [1, 24, 35, 128])
@pytest.mark.parametrize("path", fast(LINEAR_PATHS))
def test_linear_equals_its_reference(path, d_out, shape, biased, dtype):
    torch.manual_seed(d_out)
    inputs = leaves(random(*shape, 16, dtype=dtype), random(d_out, 16, dtype=dtype, scale=0.25))
    if biased:
        inputs += leaves(random(d_out, dtype=dtype))
    compare("linear", path, project, inputs, dtype)


@pytest.mark.parametrize("learning", [0, 1, 2])
def test_linear_of_few_rows_has_gradients_of_whatever_learns(learning):
    inputs = [random(2, 16, dtype=torch.float32), random(24, 16, dtype=torch.float32), torch.randn(24)]
    inputs[learning].requires_grad_()
    project(*inputs).sum().backward()
    assert inputs[learning].grad is not None


# --- norms --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[1 << 18, 30], ids=["one tile", "many tiles"])
def norm_tile(request, monkeypatch):
    monkeypatch.setattr("omni.kernels.norm.TILE", request.param)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(12,), (1, 1, 12), (2, 7, 12), (2, 3, 5, 12)], ids=str)
@pytest.mark.parametrize("path", fast(NORM_PATHS))
def test_norms_equal_their_reference(path, shape, dtype, norm_tile):
    torch.manual_seed(len(shape))
    wider = random(*shape[:-1], 20, dtype=dtype)
    y, z, weight = random(*shape, dtype=dtype), wider[..., 4:16], random(12, dtype=dtype)
    for call, op in ((lambda x: rms_norm(x, weight, 1e-5), "rms_norm"), (gated(y, weight), "gated_rms_norm")):
        with force(op, "reference"):
            expected = call(z)
        with force(op, path):
            close(call(z), expected, dtype)


def gated(y: Tensor, weight: Tensor):
    return lambda z: gated_rms_norm(y, z, weight, 3, 1e-5)


def test_norms_have_gradients_and_keep_narrow_types():
    inputs = leaves(random(2, 12), random(2, 12), random(12))
    assert torch.autograd.gradcheck(lambda y, z, weight: gated_rms_norm(y, z, weight, 3, 1e-5), inputs)
    assert torch.autograd.gradcheck(lambda y, z, weight: rms_norm(y, weight, 1e-5), inputs)
    y, z, weight = (t.detach().bfloat16() for t in inputs)
    assert gated_rms_norm(y, z, weight, 3, 1e-5).dtype == rms_norm(y, weight, 1e-5).dtype == torch.bfloat16


# --- choosing -----------------------------------------------------------------------------------------------------


def test_force_runs_the_named_path_and_restores(monkeypatch):
    seen = []
    row = SCAN_PATHS[-1]._replace(run=lambda *args: seen.append(row.name) or SCAN_PATHS[-1].run(*args))
    monkeypatch.setattr("omni.kernels.scan.SCAN_PATHS", (SCAN_PATHS[0], row))
    inputs = scan_inputs(1, 3, 2, 2, 1, 2)[:6]
    with force("scan", "reference"):
        scan(*inputs)
        with force("scan", None):
            scan(*inputs)
        scan(*inputs)
    scan(*inputs)
    assert seen == ["reference", "reference"]


def test_an_unknown_path_is_an_error():
    inputs = scan_inputs(1, 3, 2, 2, 1, 2)[:6]
    with force("scan", "warp"), pytest.raises(ValueError, match=r"'warp'.*block, chunked, reference"):
        scan(*inputs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_free_choice_on_a_gpu_equals_the_reference():
    inputs = [t.cuda() for t in scan_inputs(2, 300, 4, 16, 2, 16, torch.float32)]
    actual = scan(*inputs[:6], initial_state=inputs[6])
    with force("scan", "reference"):
        expected = scan(*inputs[:6], initial_state=inputs[6])
    for a, e in zip(actual, expected, strict=True):
        close(a, e, torch.float32, kind=1)
    indices, tensors = expert_inputs(64, 8, 2, 32, 48, torch.bfloat16)
    x, weights, up, down = (t.detach().cuda() for t in tensors)
    actual = routed_experts(x, indices.cuda(), weights, up, down)
    with force("experts", "reference"):
        close(actual, routed_experts(x, indices.cuda(), weights, up, down), torch.bfloat16)
    with torch.autocast("cuda", torch.bfloat16):  # weights in float32, as they are while training
        out = routed_experts(x.float(), indices.cuda(), weights, up.float(), down.float())
    close(out, actual, torch.bfloat16)
