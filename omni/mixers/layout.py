"""What a call's tokens are and where: everything about them except their values."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from omni.kernels.groups import Groups


@dataclass(frozen=True)
class Layout:
    """Shared by all layers of one tower call. Rows are right-padded (the tower sees to that).

    Attention's keys stand in this order: the context's, or the cache's, then the call's own.
    """

    n: int  # tokens of this call, padding included
    causal: bool = True
    lengths: Tensor | None = None  # (b,) real tokens a row; None: all of them
    segments: Tensor | None = None  # (b, n) number of each token's sequence, counted along the row
    rotary: tuple[Tensor, Tensor] | None = None  # cos, sin (b, 1, n, p) of this call's tokens
    held: int = 0  # tokens that the cache held of its longest row before this call
    starts: Tensor | None = None  # (b,) tokens held of each row, where rows differ
    recording: bool = False  # the cache has an open window
    context_length: int = 0  # tokens of the context's longest row
    context_lengths: Tensor | None = None  # (b,) of each row, where rows differ
    context_rotary: tuple[Tensor, Tensor] | None = None  # cos, sin (b, 1, context_length, p)
    groups: Groups | None = None  # of this call's tokens, where they do not all meet at once

    @cached_property
    def padding(self) -> Tensor | None:
        """(b, n), True at padding; None when there is none."""
        if self.lengths is None:
            return None
        return torch.arange(self.n, device=self.lengths.device) >= self.lengths[:, None]

    @cached_property
    def places(self) -> tuple[Tensor, Tensor] | None:
        """Row (b, 1) and column (b, n) where a cache keeps this call's tokens; None: behind ``held`` in every row."""
        if self.starts is None:
            return None
        tokens = torch.arange(self.n, device=self.starts.device)
        return torch.arange(len(self.starts), device=self.starts.device)[:, None], self.starts[:, None] + tokens

    @cached_property
    def mask(self) -> Tensor | None:
        """(b, 1, n or 1, m), True where a query may look, besides causality; None where every key is for every query.

        Right padding under causality needs no mask: a real token never looks to its right.
        """
        if self.segments is not None:
            return self.segments[:, None, :, None] == self.segments[:, None, None, :]
        if self.starts is not None:
            keys = torch.arange(self.held + self.n, device=self.starts.device)
            return keys <= self.places[1][:, None, :, None]
        own = None if self.causal else self.lengths
        if own is None and self.context_lengths is None:
            return None
        device = (own if own is not None else self.context_lengths).device
        keys = torch.arange(self.context_length + self.n, device=device)
        read = self.context_length if self.context_lengths is None else self.context_lengths[:, None]
        end = self.context_length + (self.n if own is None else own[:, None])
        return ((keys < read) | ((keys >= self.context_length) & (keys < end)))[:, None, None]
