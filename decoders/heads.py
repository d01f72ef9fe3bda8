"""Heads with weights only: noisy latents in, predictions out. Loops live in the other files of this folder."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from omni.config import LatentConfig
from omni.layers import RMSNorm

MIN_TIME = 0.05
"""Velocity from a predicted sample divides by the time; below this the division would only amplify errors."""


class LatentHead(nn.Module):
    """Patches of noisy latents to tokens, and tokens back to velocities.

    latents (b, c, h p, w p) <-> tokens (b, h w, d); patch rows are (y, x, channel) with the channel fastest (Cosmos 3).

    With ``max_grid`` a learned table tells each token where in the picture it is: rotary positions only say how far it
    is from others, and a small model hardly finds out from them which half is the left one. Pictures of other sizes
    get the table resized.
    """

    def __init__(self, d_model: int, config: LatentConfig) -> None:
        super().__init__()
        self.config = config
        self.proj_in = nn.Linear(config.token_dim, d_model)
        self.norm = RMSNorm(d_model, 1e-6)
        self.proj_out = nn.Linear(d_model, config.token_dim)
        self.positions = nn.Parameter(torch.zeros(config.max_grid**2, d_model)) if config.max_grid else None

    def read(self, latents: Tensor) -> Tensor:
        """(b, c, H, W) -> (b, n, d)"""
        h, w = self.grid(latents)
        tokens = self.proj_in(rearrange(latents, "b c (h y) (w x) -> b (h w) (y x c)", h=h, w=w))
        return tokens if self.positions is None else tokens + self._places(h, w)

    def _places(self, h: int, w: int) -> Tensor:
        """(h w, d): the table, resized to the grid."""
        side = self.config.max_grid
        if (h, w) == (side, side):
            return self.positions
        table = rearrange(self.positions, "(h w) d -> 1 d h w", h=side).float()
        table = F.interpolate(table, size=(h, w), mode="bilinear", align_corners=False)
        return rearrange(table[0], "d h w -> (h w) d").to(self.positions.dtype)

    def write(self, tokens: Tensor, latents: Tensor, t: Tensor) -> Tensor:
        """Hidden (b, n, d) of noisy ``latents`` at time t (b,) -> velocity (b, c, H, W): noise minus data."""
        (h, w), p = self.grid(latents), self.config.patch_size
        out = self.proj_out(self.norm(tokens))
        out = rearrange(out, "b (h w) (y x c) -> b c (h y) (w x)", h=h, w=w, y=p, x=p)
        if self.config.prediction == "velocity":
            return out
        return (latents - out) / t.clamp(min=MIN_TIME)[:, None, None, None].to(out.dtype)

    def grid(self, latents: Tensor) -> tuple[int, int]:
        """Rows and columns of the tokens that latents (b, c, H, W) become."""
        p, channels = self.config.patch_size, self.config.channels
        _, c, height, width = latents.shape
        if c != channels:
            raise ValueError(f"the latents have {c} channels; this model refines {channels}")
        if height % p or width % p or not height or not width:
            raise ValueError(f"latents of {height}x{width} do not divide into patches of {p}")
        return height // p, width // p


def grid_positions(grid: tuple[int, int], first: Tensor) -> Tensor:
    """(3, b, h w): time ``first`` (b,) for all, then row and column from zero."""
    h, w = grid
    rows = torch.arange(h, device=first.device).repeat_interleave(w)
    columns = torch.arange(w, device=first.device).repeat(h)
    b = first.shape[0]
    return torch.stack([first[:, None].expand(b, h * w), rows.expand(b, -1), columns.expand(b, -1)])
