"""What a call's tokens are and where: everything about them except their values."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Shared by all layers of one tower call. Rows are right-padded (the tower sees to that)."""

    causal: bool = True
    lengths: Tensor | None = None  # (b,) real tokens a row; None: all of them
    segments: Tensor | None = None  # (b, n) sequence number of packed sequences
    rotary: tuple[Tensor, Tensor] | None = None  # cos, sin (b, 1, n, p) of this call's tokens
    starts: Tensor | None = None  # (b,) tokens that the cache held before this call; None without a cache
    start: int | None = 0  # their common value, None where rows differ
    recording: bool = False  # the cache has an open window
    context_lengths: Tensor | None = None  # (b,) tokens of the context that is read
    context_length: int = 0  # of its longest row
    context_uniform: bool = True
    context_rotary: tuple[Tensor, Tensor] | None = None

    def padding(self, n: int) -> Tensor | None:
        """(b, n), True at padding; None when there is none."""
        if self.lengths is None:
            return None
        return torch.arange(n, device=self.lengths.device) >= self.lengths[:, None]
