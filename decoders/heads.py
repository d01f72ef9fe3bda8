"""Heads with weights only: noisy latents in, predictions out. Loops live in the other files of this folder."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from omni.config import ActionConfig, LatentConfig, SoundLatentConfig
from omni.layers import RMSNorm

MIN_TIME = 0.05
"""Velocity from a predicted sample divides by the time; below this the division would only amplify errors."""

Grid = tuple[int, int, int]
"""Latent frames, and rows and columns of tokens of each."""


class LatentHead(nn.Module):
    """Patches of noisy latents to tokens, and tokens back to velocities.

    latents of pictures (b, c, H, W) or videos (b, c, T, H, W) <-> tokens (b, T h w, d), frame by frame, row by row;
    patch rows are (y, x, channel) with the channel fastest (Cosmos 3). Sides that do not divide into patches are filled
    up with zeros, which the velocity leaves out.

    With ``max_grid`` a learned table tells each token where in the picture it is: rotary positions only say how far it
    is from others, and a small model hardly finds out from them which half is the left one. Pictures of other sizes
    get the table resized.
    """

    def __init__(self, d_model: int, config: LatentConfig) -> None:
        super().__init__()
        self.config = config
        self.proj_in = nn.Linear(config.token_dim, d_model)
        self.norm = RMSNorm(d_model, 1e-6) if config.norm else nn.Identity()
        self.proj_out = nn.Linear(d_model, config.token_dim)
        self.positions = nn.Parameter(torch.zeros(config.max_grid**2, d_model)) if config.max_grid else None

    def read(self, latents: Tensor) -> Tensor:
        """-> (b, n, d)"""
        frames, h, w = self.grid(latents)
        p, (height, width) = self.config.patch_size, latents.shape[-2:]
        video = latents if latents.dim() == 5 else latents[:, :, None]
        video = F.pad(video, (0, w * p - width, 0, h * p - height))
        tokens = self.proj_in(rearrange(video, "b c t (h y) (w x) -> b (t h w) (y x c)", h=h, w=w))
        return tokens if self.positions is None else tokens + self._places(h, w).repeat(frames, 1)

    def _places(self, h: int, w: int) -> Tensor:
        """(h w, d): the table, resized to the grid."""
        side = self.config.max_grid
        if (h, w) == (side, side):
            return self.positions
        table = rearrange(self.positions, "(h w) d -> 1 d h w", h=side).float()
        table = F.interpolate(table, size=(h, w), mode="bilinear", align_corners=False)
        return rearrange(table[0], "d h w -> (h w) d").to(self.positions.dtype)

    def write(self, tokens: Tensor, latents: Tensor, t: Tensor) -> Tensor:
        """Hidden (b, n, d) of noisy ``latents`` at time t (b,) -> velocity, of the latents' shape: noise minus data."""
        (frames, h, w), p, (height, width) = self.grid(latents), self.config.patch_size, latents.shape[-2:]
        out = self.proj_out(self.norm(tokens))
        out = rearrange(out, "b (t h w) (y x c) -> b c t (h y) (w x)", t=frames, h=h, w=w, y=p, x=p)
        out = out[..., :height, :width].reshape(latents.shape)
        if self.config.prediction == "velocity":
            return out
        return (latents - out) / t.clamp(min=MIN_TIME).view(-1, *[1] * (latents.dim() - 1)).to(out.dtype)

    def grid(self, latents: Tensor) -> Grid:
        """How many tokens the latents become. ValueError where they are none."""
        p, channels, shape = self.config.patch_size, self.config.channels, tuple(latents.shape)
        if len(shape) not in (4, 5) or shape[1] != channels:
            raise ValueError(f"latents are (b, {channels}, [frames,] height, width) here, not {shape}")
        if not all(shape[2:]):
            raise ValueError(f"latents of {shape} are empty")
        frames = shape[2] if len(shape) == 5 else 1
        return frames, -(-shape[-2] // p), -(-shape[-1] // p)


class SoundHead(nn.Module):
    """Latents of sound (b, c, n) <-> tokens (b, n, d)."""

    def __init__(self, d_model: int, config: SoundLatentConfig) -> None:
        super().__init__()
        self.config = config
        self.proj_in = nn.Linear(config.channels, d_model)
        self.proj_out = nn.Linear(d_model, config.channels)
        self.kind = nn.Parameter(torch.zeros(d_model))  # tells these tokens from others

    def read(self, latents: Tensor) -> Tensor:
        if latents.dim() != 3 or latents.shape[1] != self.config.channels or not latents.shape[2]:
            raise ValueError(f"sound latents are (b, {self.config.channels}, n), not {tuple(latents.shape)}")
        return self.proj_in(latents.mT) + self.kind

    def write(self, tokens: Tensor) -> Tensor:
        return self.proj_out(tokens).mT


class DomainLinear(nn.Module):
    """A matrix and a bias for every domain: (b, n, d_in) and domains (b,) -> (b, n, d_out)."""

    def __init__(self, d_in: int, d_out: int, n_domains: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_domains, d_in, d_out) * d_in**-0.5)
        self.bias = nn.Parameter(torch.zeros(n_domains, d_out))

    def forward(self, x: Tensor, domains: Tensor) -> Tensor:
        """Rows of one domain are multiplied together; no matrix is copied for a row."""
        known = domains.tolist()
        if len(set(known)) == 1:
            return x @ self.weight[known[0]] + self.bias[known[0]]
        out = x.new_empty(*x.shape[:-1], self.weight.shape[2])
        for domain in sorted(set(known)):
            rows = (domains == domain).nonzero()[:, 0]
            out = out.index_copy(0, rows, x[rows] @ self.weight[domain] + self.bias[domain])
        return out


class ActionHead(nn.Module):
    """Actions (b, n, a) of domains (b,) <-> tokens (b, n, d)."""

    def __init__(self, d_model: int, config: ActionConfig) -> None:
        super().__init__()
        self.config = config
        self.proj_in = DomainLinear(config.width, d_model, config.n_domains)
        self.proj_out = DomainLinear(d_model, config.width, config.n_domains)
        self.kind = nn.Parameter(torch.zeros(d_model))

    def read(self, actions: Tensor, domains: Tensor) -> Tensor:
        self._check(actions, domains)
        return self.proj_in(actions, domains) + self.kind

    def write(self, tokens: Tensor, domains: Tensor) -> Tensor:
        return self.proj_out(tokens, domains)

    def _check(self, actions: Tensor, domains: Tensor) -> None:
        c = self.config
        if actions.dim() != 3 or actions.shape[2] != c.width or not actions.shape[1]:
            raise ValueError(f"actions are (b, n, {c.width}), not {tuple(actions.shape)}: fill them up with zeros")
        if tuple(domains.shape) != (len(actions),) or not bool(((domains >= 0) & (domains < c.n_domains)).all()):
            raise ValueError(f"domains are {domains.tolist()}; one from 0 to {c.n_domains - 1} is wanted a row")
