"""Heads with weights only: noisy latents in, predictions out. Loops live in the other files of this folder."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from omni.config import ActionConfig, LatentConfig, SoundLatentConfig
from omni.layers import Linear, RMSNorm, wide

MIN_TIME = 0.05
"""Velocity from a predicted sample divides by the time; below this the division would only amplify errors."""

Grid = tuple[int, int, int]
"""Frames of tokens, and rows and columns of each."""


class Clock(nn.Module):
    """What time it is: moments (b, n), in rotary positions behind the first, -> (b, n, d); zero at the first.

    Rotary positions only say how long after another a token stands; here each knows its own moment. Begins at nothing.
    """

    def __init__(self, d_model: int, n_frequencies: int) -> None:
        super().__init__()
        self.n_frequencies = n_frequencies
        self.weight = nn.Parameter(torch.zeros(2 * n_frequencies, d_model))

    def forward(self, moments: Tensor) -> Tensor:
        halved = 2.0 ** -torch.arange(self.n_frequencies, device=moments.device)  # radians a position: 1, 1/2, 1/4 ...
        angles = moments.float()[..., None] * halved
        return torch.cat([angles.sin(), 1 - angles.cos()], dim=-1).to(self.weight.dtype) @ self.weight


class LatentHead(nn.Module):
    """Patches of noisy latents to tokens, and tokens back to velocities.

    latents of pictures (b, c, H, W) or videos (b, c, T, H, W) <-> tokens (b, t h w, d), frame by frame, row by row;
    patch rows are (y, x, channel) with the channel fastest (Cosmos 3). Sides that do not divide into patches are filled
    up with zeros, which the velocity leaves out.

    t is T, or with ``patch_frames`` f: the first latent frame is one of tokens, read and written as a picture is, and
    each further f of them together are one, with projections of their own: T = 1 + f (t - 1).

    With ``max_grid`` a learned table tells each token where in the picture it is: rotary positions only say how far it
    is from others, and a small model hardly finds out from them which half is the left one. Pictures of other sizes
    get the table resized.

    With ``gain`` a predicted sample is what the head says plus a share of each noisy number, which it says too: when
    little noise is left the sample can be read off, and need not pass through the tokens.
    """

    def __init__(self, d_model: int, config: LatentConfig) -> None:
        super().__init__()
        self.config = config
        self.proj_in = nn.Linear(config.token_dim, d_model)
        self.norm = RMSNorm(d_model, 1e-6) if config.norm else nn.Identity()
        self.proj_out = nn.Linear(d_model, config.token_dim)
        self.positions = nn.Parameter(torch.zeros(config.max_grid**2, d_model)) if config.max_grid else None
        several = config.token_dim * config.patch_frames
        self.next_in = nn.Linear(several, d_model) if config.patch_frames > 1 else None
        self.next_out = nn.Linear(d_model, several) if config.patch_frames > 1 else None
        self.clock = Clock(d_model, config.clock) if config.clock else None
        self.gain = _nothing(d_model, config.token_dim) if config.gain else None
        self.next_gain = _nothing(d_model, several) if config.gain and config.patch_frames > 1 else None

    @torch.no_grad()
    def spread(self) -> None:
        """Begin the later frames of tokens: read as the first is, a picture of their mean; nothing is said of them."""
        f = self.config.patch_frames
        if self.next_in is not None:
            self.next_in.weight.copy_(self.proj_in.weight.repeat(1, f) / f)
            self.next_in.bias.copy_(self.proj_in.bias)
            self.next_out.weight.zero_()
            self.next_out.bias.zero_()

    def read(self, latents: Tensor) -> Tensor:
        """-> (b, n, d)"""
        frames, h, w = self.grid(latents)
        p, (height, width) = self.config.patch_size, latents.shape[-2:]
        video = latents if latents.dim() == 5 else latents[:, :, None]
        video = F.pad(video, (0, w * p - width, 0, h * p - height))
        patches = rearrange(video, "b c t (h y) (w x) -> b (t h w) (y x c)", h=h, w=w)
        if self.next_in is None or frames == 1:
            tokens = self.proj_in(patches)
        else:
            first, rest = patches[:, : h * w], patches[:, h * w :]
            rest = rearrange(rest, "b (t f n) c -> b (t n) (f c)", f=self.config.patch_frames, n=h * w)
            tokens = torch.cat([self.proj_in(first), self.next_in(rest)], dim=1)
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
        tokens = self.norm(tokens)
        out = self._spelt(tokens, latents, self.proj_out, self.next_out)
        if self.config.prediction == "velocity":
            return out
        if self.gain is not None:
            out = out + latents * self._spelt(tokens, latents, self.gain, self.next_gain)
        return (latents - out) / t.clamp(min=MIN_TIME).view(-1, *[1] * (latents.dim() - 1)).to(out.dtype)

    def _spelt(self, tokens: Tensor, latents: Tensor, first: nn.Linear, later: nn.Linear | None) -> Tensor:
        """What tokens (b, n, d) say of each number of ``latents``, in their shape."""
        (frames, h, w), p, (height, width) = self.grid(latents), self.config.patch_size, latents.shape[-2:]
        if later is None or frames == 1:
            out = first(tokens)
        else:
            rest = later(tokens[:, h * w :])
            rest = rearrange(rest, "b (t n) (f c) -> b (t f n) c", f=self.config.patch_frames, n=h * w)
            out = torch.cat([first(tokens[:, : h * w]), rest], dim=1)
        out = rearrange(out, "b (t h w) (y x c) -> b c t (h y) (w x)", h=h, w=w, y=p, x=p)
        return out[..., :height, :width].reshape(latents.shape)

    def grid(self, latents: Tensor) -> Grid:
        """How many tokens the latents become. ValueError where they are none, or frames are left over."""
        p, channels, shape = self.config.patch_size, self.config.channels, tuple(latents.shape)
        if len(shape) not in (4, 5) or shape[1] != channels:
            raise ValueError(f"latents are (b, {channels}, [frames,] height, width) here, not {shape}")
        if not all(shape[2:]):
            raise ValueError(f"latents of {shape} are empty")
        frames, f = shape[2] if len(shape) == 5 else 1, self.config.patch_frames
        if (frames - 1) % f:
            raise ValueError(
                f"a video has {frames} latent frames; there must be 1 + {f} k, the first and groups of {f}"
            )
        return 1 + (frames - 1) // f, -(-shape[-2] // p), -(-shape[-1] // p)


def _nothing(d_in: int, d_out: int) -> nn.Linear:
    """A layer that begins by saying nothing."""
    layer = nn.Linear(d_in, d_out)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class TokenHead(nn.Module):
    """Token ids (b, n), masks among them, -> tokens (b, n, d); hidden (..., d) -> logits (..., v).

    Embedding and head are the denoiser's own, apart from the context tower's (TwoTower). The mask is never what a token
    turns out to be: its logit is -inf.
    """

    def __init__(self, d_model: int, vocab_size: int, mask: int) -> None:
        super().__init__()
        self.mask = mask
        self.embed = nn.Embedding(vocab_size, d_model)
        self.head = Linear(d_model, vocab_size, bias=False)
        if not self.embed.weight.is_meta:
            nn.init.normal_(self.embed.weight, std=0.02)

    def read(self, ids: Tensor) -> Tensor:
        return self.embed(ids)

    def write(self, hidden: Tensor) -> Tensor:
        """In float32, or float64 where the weights are."""
        logits = self.head(hidden)
        masked = torch.arange(logits.shape[-1], device=logits.device) == self.mask
        return logits.to(wide(logits.dtype)).masked_fill(masked, -torch.inf)


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
