"""Routed experts of a mixture: each token through its k experts, weighted and summed.

    out_t = sum_k weights_tk down_{e(t,k)} relu(up_{e(t,k)} x_t)^2

Sums over experts are taken in float32 (float64 where x is); the result has x's type. Shape letters:
:mod:`omni.config`; ``t`` tokens.
"""

from collections import Counter
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from omni.kernels import Path, choose, wide

FEW = 128  # tokens
LITTLE = 1 << 25  # operations that take less time than it takes to sort tokens by expert
SMALL = 1 << 19  # weights that take no time to read


def routed_experts(x: Tensor, indices: Tensor, weights: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """x (t, d_in), indices and weights (t, k), up (e, f, d_in), down (e, d_in, f) -> (t, d_in)."""
    args = (x, indices, weights, up, down)
    return choose("experts", EXPERT_PATHS, *args)(*args)


def routed_experts_reference(x, indices, weights, up, down):
    """Every expert on every token, the unchosen ones weighted zero."""
    w = wide(x.dtype)
    gates = torch.zeros(x.shape[0], up.shape[0], dtype=w, device=x.device)
    gates = gates.scatter_add(1, indices, weights.to(w))
    out = torch.zeros(x.shape, dtype=w, device=x.device)
    for e in range(up.shape[0]):
        expert = F.linear(F.relu(F.linear(x, up[e])).square(), down[e])
        out = out + gates[:, e, None] * expert.to(w)
    return out.to(x.dtype)


def routed_experts_sorted(x, indices, weights, up, down):
    """Expert by expert over the tokens that chose it, so that each chosen expert's weights are read once, in place."""
    x, up, down = _as_autocast(x, up, down)
    weights = weights.to(wide(x.dtype))
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, weights, up, down)):
        return SortedExperts.apply(x, indices, weights, up, down)
    out = torch.zeros(x.shape, dtype=weights.dtype, device=x.device)
    for e, tokens, weight in _visits(indices, weights, up.shape[0]):
        part = x.index_select(0, tokens)
        hidden = F.relu(_project(part, up[e]), inplace=True).square_()
        out.index_add_(0, tokens, _project(hidden, down[e]).to(weights.dtype).mul_(weight))
    return out.to(x.dtype)


def routed_experts_few(x, indices, weights, up, down):
    """Few tokens: all that is not a product is done once for all experts."""
    (t, k), w = indices.shape, wide(x.dtype)
    chosen = indices.flatten().tolist()
    order = None
    if t == 1:
        visits, rows = chosen, [x] * k
    else:
        order = indices.flatten().argsort(stable=True)
        counts = dict(sorted(Counter(chosen).items()))
        visits, rows = list(counts), x.index_select(0, order // k).split(list(counts.values()))
    hidden = F.relu(torch.cat([F.linear(part, up[e]) for e, part in zip(visits, rows, strict=True)])).square()
    hidden = hidden.split([len(part) for part in rows])
    done = torch.cat([F.linear(part, down[e]) for e, part in zip(visits, hidden, strict=True)]).to(w)
    if order is not None:
        done = torch.empty_like(done).index_copy(0, order, done)
    return torch.bmm(weights.to(w)[:, None], done.view(t, k, -1))[:, 0].to(x.dtype)


def routed_experts_all(x, indices, weights, up, down):
    """Every expert on every token, in two products: while that is little, less work than to find out who goes where."""
    gates = weights.new_zeros(x.shape[0], up.shape[0]).scatter_add_(1, indices, weights)
    hidden = F.relu(torch.matmul(x, up.mT), inplace=True).square_()  # (e, t, f)
    return torch.bmm(hidden.mul_(gates.mT[..., None]), down.mT).sum(0)


def routed_experts_by(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    n_experts: int,
    up: Callable[[Tensor, int], Tensor],
    down: Callable[[Tensor, int], Tensor],
) -> Tensor:
    """As :func:`routed_experts`, of matrices that are not there as such: ``up(rows, e)`` multiplies by the one of e.

    Each chosen expert's function is called once.
    """
    weights = weights.to(wide(x.dtype))
    out = torch.zeros(x.shape, dtype=weights.dtype, device=x.device)
    for e, tokens, weight in _visits(indices, weights, n_experts):
        hidden = F.relu(up(x.index_select(0, tokens), e)).square()
        out.index_add_(0, tokens, down(hidden, e).to(weights.dtype) * weight)
    return out.to(x.dtype)


def _few_tokens(x, indices, weights, up, down):
    """A decoding step, or a short prompt."""
    return 0 < x.shape[0] <= FEW and _plain(x, weights, up, down)


def _little_work(x, indices, weights, up, down):
    """The same of a small model."""
    n = up.numel()
    return n <= SMALL and 0 < 4 * x.shape[0] * n <= LITTLE and _plain(x, weights, up, down)


def _plain(x, weights, up, down):
    """On a CPU in float32 or float64, without gradients: narrower weights are multiplied after widening them."""
    return (
        x.device.type == "cpu"
        and x.dtype == weights.dtype == up.dtype == down.dtype == wide(x.dtype)
        and not torch.is_autocast_enabled("cpu")
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in (x, weights, up, down)))
    )


def _as_autocast(*tensors: Tensor) -> list[Tensor]:
    """What torch's own matrix products do to their inputs under autocast."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    return [t.to(torch.get_autocast_dtype(device)) for t in tensors]


def _visits(indices: Tensor, weights: Tensor, n_experts: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(expert, its tokens (r,), their weights (r, 1)) for every expert that was chosen."""
    flat = indices.flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=n_experts).tolist()
    tokens = (order // indices.shape[1]).split(counts)
    weights = weights.flatten().index_select(0, order)[:, None].split(counts)
    return (visit for visit in zip(range(n_experts), tokens, weights, strict=True) if visit[1].shape[0])


def _project(x: Tensor, weight: Tensor) -> Tensor:
    """``x weight'``. A CPU multiplies more than a few rows faster in float32, even after widening the weights."""
    if x.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float16) and x.shape[0] > 2:
        return F.linear(x.float(), weight.float())
    return F.linear(x.to(weight.dtype), weight)


class SortedExperts(torch.autograd.Function):
    """Gradients written out, so that no expert's gradient passes through zeros of the size of all experts."""

    @staticmethod
    def forward(ctx, x, indices, weights, up, down):
        out = torch.zeros(x.shape, dtype=weights.dtype, device=x.device)
        hidden = []
        for e, tokens, weight in _visits(indices, weights, up.shape[0]):
            hidden.append(F.relu(F.linear(x.index_select(0, tokens), up[e]), inplace=True))
            out.index_add_(0, tokens, F.linear(hidden[-1].square(), down[e]).to(out.dtype).mul_(weight))
        ctx.save_for_backward(x, indices, weights, up, down, *hidden)
        return out.to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out):
        x, indices, weights, up, down, *hidden = ctx.saved_tensors
        dx = torch.zeros(x.shape, dtype=weights.dtype, device=x.device)
        d_up, d_down, d_weights = torch.zeros_like(up), torch.zeros_like(down), []
        visits = _visits(indices, weights, up.shape[0])
        for (e, tokens, weight), relu in zip(visits, hidden, strict=True):
            part, d_part = x.index_select(0, tokens), d_out.index_select(0, tokens)
            square, d_square = relu.square(), d_part @ down[e]
            d_weights.append((d_square * square).sum(-1, dtype=weights.dtype))
            torch.mm((d_part * weight).to(d_part.dtype).mT, square, out=d_down[e])
            d_hidden = d_square.mul_(2 * relu).mul_(weight)
            torch.mm(d_hidden.mT, part, out=d_up[e])
            dx.index_add_(0, tokens, (d_hidden @ up[e]).to(dx.dtype))
        d_sorted = torch.cat(d_weights)
        order = indices.flatten().argsort(stable=True)
        d_weights = torch.empty_like(d_sorted).index_copy_(0, order, d_sorted).view_as(weights)
        return dx.to(x.dtype), None, d_weights, d_up, d_down


def routed_experts_grouped(x, indices, weights, up, down):
    """One call a projection for all experts; nothing waits for the counts to reach the host."""
    x, up, down = _as_autocast(x, up, down)
    w = wide(x.dtype)
    flat = indices.flatten()
    order = flat.argsort(stable=True)
    tokens = order // indices.shape[1]
    ends = torch.bincount(flat, minlength=up.shape[0]).cumsum(0).to(torch.int32)
    hidden = F.relu(F.grouped_mm(x.index_select(0, tokens), up.mT, offs=ends))
    hidden = hidden * hidden  # autocast would square in float32, and the library wants one type
    done = F.grouped_mm(hidden, down.mT, offs=ends).to(w)
    weighted = done * weights.flatten().to(w).index_select(0, order)[:, None]
    return torch.zeros(x.shape, dtype=w, device=x.device).index_add(0, tokens, weighted).to(x.dtype)


def _groupable(x, indices, weights, up, down):
    """bfloat16 on a GPU, rows of both weights a multiple of the 16 bytes that the library wants."""
    dtype = _as_autocast(x[:0])[0].dtype
    return x.is_cuda and dtype == torch.bfloat16 and all(size % 8 == 0 for size in up.shape[1:])


EXPERT_PATHS = (
    Path("grouped", routed_experts_grouped, _groupable),
    Path("all", routed_experts_all, _little_work),
    Path("few", routed_experts_few, _few_tokens),
    Path("sorted", routed_experts_sorted),
    Path("reference", routed_experts_reference),
)

__all__ = ["EXPERT_PATHS", "routed_experts", "routed_experts_by", "routed_experts_reference"]
