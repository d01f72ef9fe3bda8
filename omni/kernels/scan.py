"""Selective scan of Mamba-2 (SSD).

    S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t'        y_t = S_t C_t + D x_t        (one scalar A a head)

Source of the chunked form: Dao and Gu, arXiv 2405.21060, section 6. Shape letters: :mod:`omni.config`; ``r``
heads share one of the ``g`` groups, ``l`` is the length of a chunk. Inputs of any float type, results in float32
(float64 where x is).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from omni.kernels import Path, choose, wide


def scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    *,
    initial_state: Tensor | None = None,
    chunk_size: int = 128,
    segments: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs y (b, n, h, p) and the state after the last token (b, h, p, s).

    x (b, n, h, p); dt (b, n, h) after softplus, 0 where a token must leave the state alone; A (h,) negative;
    B, C (b, n, g, s); D (h,). ``segments`` (b, n): the state starts from zero wherever the number changes;
    ``initial_state`` belongs to the segment of the first token. ``chunk_size`` is an upper bound and changes
    rounding only.
    """
    args = (x, dt, A, B, C, D, initial_state, chunk_size, segments)
    return choose("scan", SCAN_PATHS, *args)(*args)


def scan_reference(x, dt, A, B, C, D, initial_state=None, chunk_size=128, segments=None):
    """The recurrence, token by token."""
    w = wide(x.dtype)
    x, dt, A, B, C = (t.to(w) for t in (x, dt, A, B, C))
    repeats = x.shape[2] // B.shape[2]
    B, C = (t.repeat_interleave(repeats, dim=2) for t in (B, C))  # (b, n, h, s)
    state = x.new_zeros(*x.shape[:1], *x.shape[2:], B.shape[3]) if initial_state is None else initial_state.to(w)
    outputs = []
    for t in range(x.shape[1]):
        if segments is not None and t > 0:
            state = state * (segments[:, t] == segments[:, t - 1])[:, None, None, None]
        decay = torch.exp(dt[:, t] * A)[..., None, None]
        state = decay * state + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
        outputs.append(torch.einsum("bhps,bhs->bhp", state, C[:, t]))
    y = torch.stack(outputs, dim=1)
    return (y if D is None else y + D.to(w)[:, None] * x), state


def scan_chunked(x, dt, A, B, C, D, initial_state=None, chunk_size=128, segments=None):
    """Matrix products within a chunk, a carried state between chunks; nothing of size (n, chunk) is ever held."""
    w = wide(x.dtype)
    b, n, h, p = x.shape
    s = B.shape[3]
    with torch.autocast(x.device.type, enabled=False):
        D = x.new_zeros(h, dtype=w) if D is None else D.to(w)
        state = x.new_zeros(b, h, p, s, dtype=w) if initial_state is None else initial_state.to(w)
        tensors = (x.to(w), dt.to(w), A.to(w), B.to(w), C.to(w), D, state)
        learning = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        length = min(_chunk_length(x.device, learning, chunk_size), n)
        runs = None if segments is None else _runs(segments)
        if learning:
            return ChunkedScan.apply(*tensors, length, runs)
        return _forward(*tensors, length, runs)


def _chunk_length(device: torch.device, learning: bool, chunk_size: int) -> int:
    """A CPU has no use for tall tiles: short chunks do less work above the diagonal and stay in its cache."""
    if device.type != "cpu":
        return chunk_size
    return min(chunk_size, 32 if learning else 64)


def _runs(segments: Tensor) -> Tensor:
    """(b, n) segment ids -> how often the id has changed so far, which no id can fake by coming back."""
    return F.pad(segments.diff(dim=1).ne(0).cumsum(1), (1, 0))


LEAST = -60.0
"""Logarithm of the smallest decay. Whatever is left by e^-60 is lost beside what it is added to; smaller factors would
only end in subnormal numbers, which a CPU multiplies a hundred times slower."""


class Decays(NamedTuple):
    """What is left of things on their way through one chunk; all (b, g, r, ...), each in 0..1 (``pairs`` times dt)."""

    pairs: Tensor  # (.., l, l) of token j's input when token i is read; what is above the diagonal is not used
    enter: Tensor  # (.., l) of the incoming state when token i is read
    leave: Tensor  # (.., l) of token j's input at the end of the chunk
    keep: Tensor  # (..) of the incoming state at the end of the chunk


def _decays(steps: Tensor, log_scale: Tensor | None, run: Tensor | None, before: Tensor | None) -> Decays:
    """``steps`` (b, g, r, l) are dt A; ``log_scale`` (b, g, r, l) is the log of a factor on token j in ``pairs``.

    ``run`` (b, l) numbers the segments, ``before`` (b, 1) is the incoming state's.
    """
    a = steps.cumsum(-1)
    bound = torch.zeros_like(a) if log_scale is None else log_scale
    pairs = a[..., :, None] - (a - bound)[..., None, :]
    # Bounded before the exponential: above the diagonal it would overflow, and inf * 0 is not a number.
    pairs = torch.clamp(pairs, a.new_tensor(LEAST), bound[..., None, :], out=pairs).exp_()
    enter, leave, keep = (t.clamp(min=LEAST).exp_() for t in (a, a[..., -1:] - a, a[..., -1]))
    if run is None:
        return Decays(pairs, enter, leave, keep)
    last = run[:, -1:]
    pairs.mul_((run[:, :, None] == run[:, None, :])[:, None, None])
    return Decays(
        pairs,
        enter.mul_((run == before)[:, None, None]),
        leave.mul_((run == last)[:, None, None]),
        keep.mul_((last == before)[:, None]),
    )


def _chunks(n: int, length: int, runs: Tensor | None) -> list[tuple[slice, Tensor | None, Tensor | None]]:
    """Each chunk's tokens, their runs, and the run of the state that enters it."""
    parts = [slice(start, min(start + length, n)) for start in range(0, n, length)]
    if runs is None:
        return [(part, None, None) for part in parts]
    return [(part, runs[:, part], runs[:, max(part.start - 1, 0)][:, None]) for part in parts]


def _forward(x, dt, A, B, C, D, initial_state, length, runs, states=None):
    """y (b, n, h, p) and the last state. The state that enters each chunk is appended to ``states``, if given.

    A state is held as (b g, s, r p): the heads of a group share B and C, so one product serves them all.
    """
    (b, n, h, p), g = x.shape, B.shape[2]
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    dt = rearrange(dt, "b n (g r) -> b g r n", g=g)
    steps, log_dt = dt * A.view(g, -1, 1), dt.log()
    state = _group_state(initial_state, g)
    for part, run, before in _chunks(n, length, runs):
        x_, y_ = (rearrange(t[:, part], "b l (g r) p -> b g r l p", g=g) for t in (x, y))
        B_, C_ = (rearrange(t[:, part], "b l g s -> (b g) l s") for t in (B, C))
        decay = _decays(steps[..., part], log_dt[..., part], run, before)
        scores = rearrange(torch.bmm(C_, B_.mT).tril_(), "(b g) i j -> b g 1 i j", b=b)
        mixing = decay.pairs.mul_(scores)
        mixing.diagonal(dim1=-2, dim2=-1).add_(D.view(g, -1, 1))
        inner = torch.bmm(mixing.flatten(0, 2), x_.reshape(b * h, -1, p)).view_as(x_)
        outer = rearrange(torch.bmm(C_, state), "(b g) l (r p) -> b g r l p", b=b, p=p)
        torch.addcmul(inner, outer, decay.enter[..., None], out=y_)
        if states is not None:
            states.append(state)
        kept = _decayed(state, decay.keep, in_place=states is None)
        state = kept.baddbmm_(B_.mT, _by_group(x_, decay.leave.mul_(dt[..., part])))
    return y, _head_state(state, b, h)


def _group_state(state: Tensor, g: int) -> Tensor:
    """(b, h, p, s) -> (b g, s, r p), always a copy."""
    b, h, p, s = state.shape
    grouped = state.new_empty(b, g, s, h // g, p)
    grouped.copy_(rearrange(state, "b (g r) p s -> b g s r p", g=g))
    return rearrange(grouped, "b g s r p -> (b g) s (r p)")


def _head_state(state: Tensor, b: int, h: int) -> Tensor:
    """(b g, s, r p) -> (b, h, p, s), contiguous."""
    return rearrange(state, "(b g) s (r p) -> b (g r) p s", b=b, r=h * b // state.shape[0]).contiguous()


def _decayed(state: Tensor, keep: Tensor, in_place: bool) -> Tensor:
    """state (b g, s, r p) times keep (b, g, r)."""
    factor = rearrange(keep, "b g r -> (b g) 1 r 1")
    split = rearrange(state, "q s (r p) -> q s r p", r=keep.shape[2])
    return rearrange(split.mul_(factor) if in_place else split * factor, "q s r p -> q s (r p)")


def _by_group(t: Tensor, weight: Tensor) -> Tensor:
    """t (b, g, r, l, p) times weight (b, g, r, l), laid out as (b g, l, r p)."""
    out = rearrange(t, "b g r l p -> b g l r p")
    out = torch.mul(out, rearrange(weight, "b g r l -> b g l r 1"), out=t.new_empty(out.shape))
    return rearrange(out, "b g l r p -> (b g) l (r p)")


class ChunkedScan(torch.autograd.Function):
    """The chunked form with its gradients written out: of size, they need only the states between chunks."""

    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, initial_state, length, runs):
        states: list[Tensor] = []
        y, state = _forward(x, dt, A, B, C, D, initial_state, length, runs, states)
        ctx.length, ctx.runs = length, runs
        ctx.save_for_backward(x, dt, A, B, C, D, *states)
        return y, state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, d_state):
        with torch.autocast(dy.device.type, enabled=False):
            return *_backward(*ctx.saved_tensors, dy=dy, d_state=d_state, length=ctx.length, runs=ctx.runs), None, None


def _backward(x, dt, A, B, C, D, *states, dy, d_state, length, runs):
    """Gradients of x, dt, A, B, C, D and the first state; ``states`` are those that enter each chunk."""
    (b, n, h, p), g = x.shape, B.shape[2]
    dx, d_dt, dB, dC = (torch.empty_like(t) for t in (x, dt, B, C))
    dA, dD = A.new_zeros(b, g, h // g), A.new_zeros(b, g, h // g)
    A, D = A.view(g, -1, 1), D.view(g, -1, 1)
    dt = rearrange(dt, "b n (g r) -> b g r n", g=g)
    dS = _group_state(d_state, g)
    for (part, run, before), S in zip(reversed(_chunks(n, length, runs)), reversed(states), strict=True):
        x_, dy_ = (rearrange(t[:, part], "b l (g r) p -> b g r l p", g=g).contiguous() for t in (x, dy))
        B_, C_ = (rearrange(t[:, part], "b l g s -> (b g) l s") for t in (B, C))
        dt_ = dt[..., part]
        u = x_ * dt_[..., None]  # what a token adds to the state, but for B
        decay = _decays(dt_ * A, None, run, before)
        scores = rearrange(torch.bmm(C_, B_.mT).tril_(), "(b g) i j -> b g 1 i j", b=b)
        entering, leaving = _by_group(dy_, decay.enter), _by_group(u, decay.leave)
        read, wanted = torch.bmm(C_, S), torch.bmm(B_, dS)  # of the state by each token, of each token by the state

        mixing = (decay.pairs * scores).flatten(0, 2)
        du = torch.bmm(mixing.mT, dy_.flatten(0, 2)).view_as(u)
        du.addcmul_(rearrange(wanted, "(b g) l (r p) -> b g r l p", b=b, p=p), decay.leave[..., None])
        d_mixing = torch.bmm(dy_.flatten(0, 2), u.flatten(0, 2).mT).view_as(decay.pairs)
        d_scores = decay.pairs.mul_(d_mixing).sum(2).flatten(0, 1).tril_()
        dC_ = torch.bmm(entering, S.mT).baddbmm_(d_scores, B_)
        dB_ = torch.bmm(leaving, dS.mT).baddbmm_(d_scores.mT, C_)

        d_steps = _d_steps(
            decay.pairs.mul_(scores),
            _head_sums(read.mul_(entering), b, p),
            _head_sums(wanted.mul_(leaving), b, p),
            _head_sums((S * dS).sum(1, keepdim=True), b, p) * decay.keep[..., None],
        )
        dS = _decayed(dS, decay.keep, in_place=True).baddbmm_(C_.mT, entering)

        dA += (d_steps * dt_).sum(-1)
        dD += (dy_ * x_).sum((-1, -2))
        for whole, tile in ((dB, dB_), (dC, dC_)):
            whole[:, part] = rearrange(tile, "(b g) l s -> b l g s", b=b)
        d_dt[:, part] = rearrange((du * x_).sum(-1).addcmul_(d_steps, A), "b g r l -> b l (g r)")
        dx_ = rearrange(dx[:, part], "b l (g r) p -> b g r l p", g=g)
        torch.addcmul(du.mul_(dt_[..., None]), dy_, D[..., None], out=dx_)
    return dx, d_dt, dA.sum(0).flatten(), dB, dC, dD.sum(0).flatten(), _head_state(dS, b, h)


def _d_steps(pairs: Tensor, enter: Tensor, leave: Tensor, keep: Tensor) -> Tensor:
    """Gradient (b, g, r, l) of each step dt A, from the gradients of the log of each decay.

    A step lies between what happens before it and what is read at or after it, so it collects: pairs (.., i, j) with
    j < t <= i, enter (.., i) with t <= i, leave (.., j) with j < t, and keep (.., 1) always. Sums of what is there,
    not differences of running totals: those would drown a fast head's gradient in the rounding of the diagonal.
    """
    l_ = pairs.shape[-1]
    ones = pairs.new_ones(l_, l_)
    crossing = (pairs @ ones.triu(1)).mul_(ones.tril()).sum(-2)
    return crossing + enter.flip(-1).cumsum(-1).flip(-1) + (leave.cumsum(-1) - leave) + keep


def _head_sums(t: Tensor, b: int, p: int) -> Tensor:
    """(b g, l, r p) summed over p -> (b, g, r, l)."""
    return rearrange(rearrange(t, "q l (r p) -> q l r p", p=p).sum(-1), "(b g) l r -> b g r l", b=b)


def scan_block(x, dt, A, B, C, D, initial_state=None, chunk_size=128, segments=None):
    """Few tokens: one chunk with as few calls as it takes, which is where the time of a small one goes."""
    w = wide(x.dtype)
    (b, n, h, p), (g, s) = x.shape, B.shape[2:]
    x, B, C = (t.to(w).transpose(1, 2).reshape(-1, n, t.shape[3]) for t in (x, B, C))  # (b h, n, p), (b g, n, s)
    dt = dt.to(w).mT  # (b, h, n)
    state = x.new_zeros(b * g, h // g * p, s) if initial_state is None else initial_state.to(w).reshape(b * g, -1, s)
    a = (dt * A.to(w)[:, None]).cumsum(2)
    pairs = (a[..., :, None] - a[..., None, :]).clamp_(LEAST, 0.0).exp_().mul_(dt[:, :, None])
    mixing = pairs.view(b * g, -1, n, n).mul_(torch.bmm(C, B.mT).tril_()[:, None])
    enter, leave = a.clamp(min=LEAST).exp_(), (a[..., -1:] - a).clamp_(LEAST, 0.0).exp_().mul_(dt)
    read = torch.bmm(C, state.mT).view(b * g, n, -1, p).transpose(1, 2).reshape(b * h, n, p)
    y = torch.baddbmm(read.mul_(enter.view(b * h, n, 1)), mixing.view(b * h, n, n), x).view(b, h, n, p)
    if D is not None:
        y.addcmul_(x.view(b, h, n, p), D.to(w)[:, None, None])
    taken = x.mT * leave.view(b * h, 1, n)
    kept = state.view(b, h, -1) * enter[..., -1:]
    state = torch.baddbmm(kept.view(state.shape), taken.reshape(b * g, -1, n), B)
    return y.transpose(1, 2), state.view(b, h, p, s)


BLOCK = 32  # tokens


def _is_block(x, dt, A, B, C, D, initial_state, chunk_size, segments):
    """On a CPU, without gradients. ``chunk_size`` is no less."""
    n, tensors = x.shape[1], (x, dt, A, B, C, D, initial_state)
    return (
        0 < n <= min(BLOCK, chunk_size)
        and segments is None
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))
    )


SCAN_PATHS = (
    Path("block", scan_block, _is_block),
    Path("chunked", scan_chunked),
    Path("reference", scan_reference),
)


def scan_states(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    *,
    rows: Tensor,
    counts: Tensor,
    initial_state: Tensor | None = None,
    chunk_size: int = 128,
) -> Tensor:
    """The states (k, h, p, s) of ``rows`` (k,) behind their first ``counts`` (k,) tokens: many places of few sequences.

    The other arguments are those of :func:`scan`. A state does not hang on any token behind its place, to the last bit.
    """
    args = (x, dt, A, B, rows, counts, initial_state, chunk_size)
    return choose("scan_states", STATES_PATHS, *args)(*args)


def scan_states_reference(x, dt, A, B, rows, counts, initial_state=None, chunk_size=128):
    """The recurrence, token by token, every state kept."""
    w = wide(x.dtype)
    x, dt, A, B = (t.to(w) for t in (x, dt, A, B))
    B = B.repeat_interleave(x.shape[2] // B.shape[2], dim=2)
    state = x.new_zeros(*x.shape[:1], *x.shape[2:], B.shape[3]) if initial_state is None else initial_state.to(w)
    states = [state]
    for t in range(x.shape[1]):
        fed = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
        states.append(torch.exp(dt[:, t] * A)[..., None, None] * states[-1] + fed)
    return torch.stack(states, dim=1)[rows, counts]


def scan_states_chunked(x, dt, A, B, rows, counts, initial_state=None, chunk_size=128):
    """What each chunk adds, as products; the state that enters each; and the rest of a chunk up to each place."""
    w, n, h = wide(x.dtype), *x.shape[1:3]
    length = min(chunk_size, n, STATES_CHUNK)
    with torch.autocast(x.device.type, enabled=False):
        spare = -n % length  # steps of zero leave the state alone
        x, dt, B = (F.pad(t.to(w), (0, 0) * (t.dim() - 2) + (0, spare)) for t in (x, dt, B))
        x, dt, B = (t.unflatten(1, (-1, length)) for t in (x * dt[..., None], dt, B))  # (b, chunks, l, ...)
        sums = (dt * A.to(w)).cumsum(dim=2)  # (b, chunks, l, h): logarithms of what is left of the chunk's first state
        entering = _entering(_taken_in(x, B, sums[:, :, -1:] - sums), sums[:, :, -1], initial_state)
        chunk, rest = counts // length, counts % length
        inside = chunk.clamp(max=x.shape[1] - 1)
        x, B, sums = (t[rows, inside] for t in (x, B, sums))  # (k, l, ...)
        last = sums.gather(1, (rest - 1).clamp(min=0)[:, None, None].expand(-1, 1, h))
        last = last * (rest > 0)[:, None, None]
        before = torch.arange(length, device=x.device) < rest[:, None]
        own = _taken_in(x, B, last - sums, before[..., None])
        return entering[rows, chunk] * _left(last[:, 0])[..., None, None] + own


STATES_CHUNK = 32
"""Tokens of a chunk: the products are with a whole chunk at each place, of which half is not used."""


def _left(log: Tensor) -> Tensor:
    """The factor of a logarithm that is at most 0, never a subnormal number."""
    return log.clamp(min=LEAST, max=0.0).exp()


def _taken_in(x: Tensor, B: Tensor, log: Tensor, where: Tensor | None = None) -> Tensor:
    """Sum over tokens of e^log x B': x (.., l, h, p), B (.., l, g, s), log and where (.., l, h) -> (.., h, p, s)."""
    p, weight = x.shape[-1], _left(log)
    weight = weight if where is None else weight.masked_fill(~where, 0.0)
    x = rearrange(x * weight[..., None], "... l (g r) p -> ... g (r p) l", g=B.shape[-2])
    return rearrange(x @ rearrange(B, "... l g s -> ... g l s"), "... g (r p) s -> ... (g r) p s", p=p)


def _entering(added: Tensor, sums: Tensor, state: Tensor | None) -> Tensor:
    """States (b, chunks + 1, h, p, s) before each chunk and behind the last, of what each adds and how it decays."""
    states = [torch.zeros_like(added[:, 0]) if state is None else state.to(added.dtype)]
    for i in range(added.shape[1]):
        states.append(states[-1] * _left(sums[:, i])[..., None, None] + added[:, i])
    return torch.stack(states, dim=1)


STATES_PATHS = (
    Path("chunked", scan_states_chunked),
    Path("reference", scan_states_reference),
)


def scan_step(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: y (b, h, p) and the new state.

    x (b, h, p), dt (b, h), A (h,), B and C (b, g, s), D (h,), state (b, h, p, s). Without gradients the given
    state is overwritten and returned; with gradients it is left alone.
    """
    args = (x, dt, A, B, C, D, state)
    return choose("scan_step", STEP_PATHS, *args)(*args)


def scan_step_reference(x, dt, A, B, C, D, state):
    y, new = scan_reference(x[:, None], dt[:, None], A, B[:, None], C[:, None], D, state)
    return y[:, 0], new if torch.is_grad_enabled() else state.copy_(new)


def scan_step_fused(x, dt, A, B, C, D, state):
    """Three passes over the state, in place. Plain views: at this size einops would take longer than the work."""
    w = wide(x.dtype)
    b, h, p, s = state.shape
    g = B.shape[1]
    x, dt, A, B, C = (t.to(w) for t in (x, dt, A, B, C))
    decay = (dt * A).clamp(min=LEAST).exp().view(b, g, -1, 1, 1)
    xdt = (x * dt[..., None]).view(b, g, -1, p, 1)
    grouped = state.view(b, g, h // g, p, s)
    if torch.is_grad_enabled():
        grouped = grouped.to(w) * decay + xdt * B[:, :, None, None]
        state = grouped.view(b, h, p, s)
    else:
        grouped.mul_(decay).addcmul_(xdt, B[:, :, None, None])
    # A row times a matrix: the library's matrix times column is several times slower.
    rows = C.reshape(b * g, 1, s) @ grouped.to(w).reshape(b * g, -1, s).mT
    y = rows.view(b, h, p)
    return (y if D is None else torch.addcmul(y, x, D.to(w)[:, None])), state


@torch.no_grad()
def scan_advance(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, state: Tensor, counts: Tensor | None = None) -> Tensor:
    """The state behind several tokens, bit by bit as :func:`scan_step` leaves it after each, without outputs.

    x (b, n, h, p), dt (b, n, h), A (h,), B (b, n, g, s); state (b, h, p, s) is overwritten and returned. Each row takes
    its first ``counts`` (b,) tokens; None: all.
    """
    w, n = wide(x.dtype), x.shape[1]
    b, h, p, s = state.shape
    g = B.shape[2]
    x, dt, A, B = (t.to(w) for t in (x, dt, A, B))
    decay, taken = (dt * A).clamp(min=LEAST).exp(), x * dt[..., None]
    if counts is not None:
        behind = torch.arange(n, device=x.device) >= counts[:, None]
        decay, taken = decay.masked_fill(behind[..., None], 1.0), taken.masked_fill(behind[..., None, None], 0.0)
    grouped = state.view(b, g, h // g, p, s)
    decay, taken = decay.view(b, n, g, -1, 1, 1), taken.view(b, n, g, -1, p, 1)
    for t in range(n):
        grouped.mul_(decay[:, t]).addcmul_(taken[:, t], B[:, t, :, None, None])
    return state


STEP_PATHS = (
    Path("fused", scan_step_fused),
    Path("reference", scan_step_reference),
)

__all__ = [
    "SCAN_PATHS",
    "STATES_PATHS",
    "STEP_PATHS",
    "scan",
    "scan_advance",
    "scan_chunked",
    "scan_reference",
    "scan_states",
    "scan_step",
]
