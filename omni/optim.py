"""The optimiser of every recipe: Muon for the matrices inside the stacks, AdamW for everything else.

    Muon    M = momentum M + g,  W -= lr 0.2 sqrt(max(rows, columns)) orthogonalise(g + momentum M)
    AdamW   embeddings, heads, routers, norms, biases, tables

The factor 0.2 sqrt(max) gives an orthogonal update the size of an AdamW step, so one rate serves both (Liu et al.,
arXiv 2502.16982). Orthogonalising is the Newton-Schulz iteration of Jordan et al.
(https://kellerjordan.github.io/posts/muon). torch's own Muon takes single matrices only; here experts are stacks of
them, and matrices of one shape share the products.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from omni.encoders.projector import Projector
from omni.encoders.vision import VisionEncoder
from omni.mixers.moe import Experts
from omni.tower import Tower

MUON_RATE = 2.0
"""Muon's rate over AdamW's, as the shipped model was trained: losses are noisier for it until the rate falls."""

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NS_STEPS = 5


def orthogonalise(stack: Tensor) -> Tensor:
    """(k, rows, columns) -> the same, with the singular values of each matrix brought close to one.

    In bfloat16, which is enough for it, but in float32 on a CPU: few of them multiply bfloat16, the others emulate it.
    """
    tall = stack.shape[1] > stack.shape[2]
    x = stack.to(torch.float32 if stack.device.type == "cpu" else torch.bfloat16)
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(NS_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def split(module: nn.Module) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Learnt tensors of ``module``: those for Muon, and AdamW's with weight decay and without.

    Muon takes the weights of linear layers, convolutions that mix channels, and experts; not the ends of the network
    (:data:`omni.model` embeds and heads), where rows are classes or numbers and not directions.
    """
    inner = {id(p) for part in _stacks(module) for p in _matrices(part)}
    learnt = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in learnt if id(p) in inner]
    rest = [p for p in learnt if id(p) not in inner]
    return matrices, [p for p in rest if p.dim() >= 2], [p for p in rest if p.dim() < 2]


def _stacks(module: nn.Module) -> Iterable[nn.Module]:
    """The parts that hold matrices between hidden states: towers, vision encoders, projectors."""
    return (m for m in module.modules() if isinstance(m, (Tower, VisionEncoder, Projector)))


def _matrices(part: nn.Module) -> Iterable[Tensor]:
    for m in part.modules():
        if isinstance(m, Experts):
            yield from m.parameters()
        elif isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.groups == 1):
            yield m.weight


class MuonAdamW(torch.optim.Optimizer):
    """Groups with ``muon: True`` hold tensors (rows, columns), (k, rows, columns) or (out, in, y, x)."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.98),
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(
            groups, {"lr": lr, "betas": betas, "momentum": momentum, "weight_decay": weight_decay, "eps": eps}
        )

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self._muon if group.get("muon") else self._adamw)(group, params)
        return loss

    def _muon(self, group: dict, params: list[Tensor]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        grads, buffers = [p.grad for p in params], [self._state(p, "momentum") for p in params]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, grads)
        ahead = torch._foreach_add(grads, buffers, alpha=momentum)
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        shapes: dict[tuple[int, int], list[int]] = {}
        views = [_as_stack(t) for t in ahead]
        for i, view in enumerate(views):
            shapes.setdefault(tuple(view.shape[1:]), []).append(i)
        for shape, members in shapes.items():
            update = orthogonalise(torch.cat([views[i] for i in members]))
            sizes = [len(views[i]) for i in members]
            for i, part in zip(members, update.split(sizes), strict=True):
                params[i].add_(part.reshape(params[i].shape), alpha=-lr * 0.2 * math.sqrt(max(shape)))

    def _adamw(self, group: dict, params: list[Tensor]) -> None:
        grads = [p.grad for p in params]
        states = [[self._state(p, name) for p in params] for name in ("exp_avg", "exp_avg_sq")]
        steps = [self._step_of(p) for p in params]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            params,
            grads,
            *states,
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def _state(self, p: Tensor, name: str) -> Tensor:
        state = self.state[p]
        if name not in state:
            state[name] = torch.zeros_like(p)
        return state[name]

    def _step_of(self, p: Tensor) -> Tensor:
        return self.state[p].setdefault("step", torch.zeros((), dtype=torch.float32, device=p.device))


def _as_stack(t: Tensor) -> Tensor:
    """(k, rows, columns): a convolution's kernel is one matrix from all it sees to its channels."""
    return t if t.dim() == 3 else t.flatten(1)[None]


def optimizer(module: nn.Module, *, weight_decay: float, betas: tuple[float, float]) -> MuonAdamW:
    """The optimiser of a training module, its rates relative: a schedule multiplies them."""
    matrices, decayed, rest = split(module)
    groups = [
        {"params": matrices, "weight_decay": weight_decay, "muon": True, "lr": MUON_RATE},
        {"params": decayed, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return MuonAdamW([g for g in groups if g["params"]], lr=1.0, betas=betas)


__all__ = ["MuonAdamW", "optimizer", "orthogonalise", "split"]
