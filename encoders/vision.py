"""Vision encoder of the RADIO kind: patches + cropped position table + prefix tokens through a plain ViT.

    pixels (3, H, W) -> patches (h w, d) + positions, [prefix tokens first]
           -> n_layers x { x += attention(LN x);  x += mlp(LN x) }, exact GELU, no final norm
           -> patch features (h w, d), row-major; the prefix tokens are dropped

Source: NVlabs/RADIO and transformers' RadioModel (``reference/understanding`` section 2). The position table is resized
as a whole to the longer side of the grid and its top-left part is used, so that one table serves every aspect ratio.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from omni.config import VisionConfig


class LinearStem(nn.Module):
    """Each patch, flattened (channel, y, x), through one matrix without bias."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch = config.patch_size
        self.proj = nn.Linear(3 * config.patch_size**2, config.d_model, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(b, 3, H, W) -> (b, h w, d)"""
        p = self.patch
        return self.proj(rearrange(pixels, "b c (h y) (w x) -> b (h w) (c y x)", y=p, x=p))


class ConvStem(nn.Module):
    """Strided convolutions down to the patch grid: small models learn to read with it and hardly without."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        halvings = config.patch_size.bit_length() - 1
        if 2**halvings != config.patch_size or halvings < 2:
            raise ValueError(f"a convolution stem needs a patch size of 4, 8, 16 ..., not {config.patch_size}")
        widths = [3, *(config.d_model // 2 ** (halvings - i) for i in range(1, halvings)), config.d_model]
        kernels = [5] * (halvings - 1) + [3]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, k, stride=2, padding=k // 2) for i, o, k in zip(widths, widths[1:], kernels, strict=False)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """(b, 3, H, W) -> (b, h w, d)"""
        for conv in self.convs[:-1]:
            pixels = F.gelu(conv(pixels))
        return rearrange(self.convs[-1](pixels), "b d h w -> b (h w) d")


class VisionBlock(nn.Module):
    """(b, n, d) -> (b, n, d), full attention."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        d = config.d_model
        self.n_heads = config.n_heads
        self.norm1 = nn.LayerNorm(d, eps=config.norm_eps)
        self.qkv = nn.Linear(d, 3 * d)
        self.proj = nn.Linear(d, d)
        self.norm2 = nn.LayerNorm(d, eps=config.norm_eps)
        self.up_proj = nn.Linear(d, config.d_ff)
        self.down_proj = nn.Linear(config.d_ff, d)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm1(x)), "b n (r H p) -> r b H n p", r=3, H=self.n_heads)
        x = x + self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b H n p -> b n (H p)"))
        return x + self.down_proj(F.gelu(self.up_proj(self.norm2(x))))


class VisionEncoder(nn.Module):
    """Images to patch features. Sides must be multiples of the patch size."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = {"linear": LinearStem, "conv": ConvStem}[config.stem](config)
        self.prefix = nn.Parameter(torch.randn(config.n_prefix, config.d_model) * 0.02)
        self.positions = nn.Parameter(torch.randn(config.max_grid**2, config.d_model) * 0.02)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.n_layers))

    def forward(self, pixels: Tensor) -> Tensor:
        """(b, 3, H, W) in [0, 1] -> (b, h w, d) with h = H / patch_size"""
        grid = self.grid(pixels.shape[-2:])
        x = self.stem(self._normalise(pixels)) + self._positions_for(grid)
        x = torch.cat([self.prefix.expand(x.shape[0], -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x[:, self.config.n_prefix :]

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Patches (rows, columns) of an image of ``size`` (height, width) pixels."""
        p = self.config.patch_size
        height, width = size
        if height % p or width % p or not height or not width:
            raise ValueError(f"an image of {height}x{width} pixels does not divide into patches of {p}")
        return height // p, width // p

    def _normalise(self, pixels: Tensor) -> Tensor:
        mean, std = (torch.tensor(v, device=pixels.device)[:, None, None] for v in (self.config.mean, self.config.std))
        return ((pixels.float() - mean) / std).to(self.positions.dtype)

    def _positions_for(self, grid: tuple[int, int]) -> Tensor:
        """(h w, d): the whole table resized to the longer side, then its top-left h x w part."""
        h, w = grid
        table = rearrange(self.positions, "(h w) d -> 1 d h w", h=self.config.max_grid).float()
        side = max(h, w)
        if side != self.config.max_grid:
            table = F.interpolate(table, size=(side, side), mode="bilinear", align_corners=False)
        return rearrange(table[0, :, :h, :w], "d h w -> (h w) d").to(self.positions.dtype)
