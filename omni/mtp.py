"""Multi-token prediction: one block that guesses the token after next, applied again for every further one.

    f = eh_proj([enorm(embed(next token)); hnorm(hidden)])      embedding first, hidden second
    g = norm(blocks(f))                                         logits: the trunk's own head on g
    the next step takes g for the hidden and the guessed token for the token

Source: Nemotron 3 Super and Ultra (``reference/language_family`` section 2.7). The hidden is the trunk's *after* its
final norm, and g is recycled after the block's own.
"""

from typing import Any

import torch
from torch import Tensor, nn

from omni.cache import Cache
from omni.config import MTPConfig, TowerConfig, replace
from omni.layers import RMSNorm
from omni.tower import Tower


class MTP(Tower):
    """Embedding of the next token (b, n, d) and hidden (b, n, d) -> hidden (b, n, d) of the token after it.

    It has a cache of its own (:meth:`new_cache`), filled during prefill too.
    """

    def __init__(self, config: MTPConfig, trunk: TowerConfig) -> None:
        super().__init__(replace(trunk, pattern=config.pattern, time=None))
        d = trunk.d_model
        self.enorm = RMSNorm(d, trunk.norm_eps)
        self.hnorm = RMSNorm(d, trunk.norm_eps)
        self.eh_proj = nn.Linear(2 * d, d, bias=False)

    def forward(self, embedded: Tensor, hidden: Tensor, *, cache: Cache | None = None, **where: Any) -> Tensor:
        """``where``: mask, segments or positions, as :class:`Tower` takes them."""
        joined = torch.cat([self.enorm(embedded), self.hnorm(hidden)], dim=-1)
        return super().forward(self.eh_proj(joined), cache=cache, **where)
