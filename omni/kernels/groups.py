"""Groups of tokens that do not see each other, and shared ones behind them that meet each group in turn.

    group 1 | ... | group N | shared

Whatever mixes tokens is done once for each group, with the shared ones behind it. A group keeps what it found; of what
the shared tokens found beside each group they keep the weighted mean:

    out_i       = mix(group_i, shared)[group_i]
    out_shared  = sum_i w_i mix(group_i, shared)[shared]

So several controls stand before one video, each as if it were the only one, and each with a weight of its own. Source:
``reference`` cosmos3, section 2.2.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """Tokens of each group, in their order, and the weights of the groups, which sum to 1."""

    sizes: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.sizes or len(self.sizes) != len(self.weights) or min(self.sizes) < 1:
            raise ValueError(f"groups of {self.sizes} tokens have the weights {self.weights}; each needs one of each")
        if min(self.weights) < 0 or not math.isclose(sum(self.weights), 1.0, abs_tol=1e-6):
            raise ValueError(f"weights are {self.weights}; none may be negative, and they must sum to 1")

    @property
    def total(self) -> int:
        """Tokens before the shared ones."""
        return sum(self.sizes)

    def each(self, x: Tensor, dim: int, before: int = 0) -> Iterator[Tensor]:
        """``x`` for each group: its first ``before`` tokens along ``dim``, the group's own, and the shared ones."""
        start, shared = before, before + self.total
        for size in self.sizes:
            spans = ((0, before), (start, size), (shared, x.shape[dim] - shared))
            yield torch.cat([x.narrow(dim, *span) for span in spans], dim)
            start += size

    def join(self, found: Iterable[Tensor], dim: int) -> Tensor:
        """Inverse of :meth:`each`, without what was before: every group's own along ``dim``, then the shared mean."""
        own, mean = [], None
        for part, size, weight in zip(found, self.sizes, self.weights, strict=True):
            alone, shared = part.split([size, part.shape[dim] - size], dim)
            own.append(alone)
            mean = weight * shared if mean is None else mean + weight * shared
        return torch.cat([*own, mean], dim)


__all__ = ["Groups"]
