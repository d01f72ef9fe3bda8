"""Vision encoder: units (images, or tubelets of video frames) through a plain ViT, many sizes in one pass.

    unit (3, H, W) or (f, 3, H, W) -> patches (h w, d) + position table, [prefix tokens first]
           -> n_layers x { x += attention(LN x);  x += mlp(LN x) }, tokens of all units as one list (N, d);
              a unit attends to itself alone
           -> [final norm] -> patch features (h w, d), row-major; the prefix tokens are dropped

The config's fields make it RADIO (Nemotron Nano VL and Omni: prefix tokens, cropped positions, a stem of its own for
tubelets), Qwen3-VL's tower (Cosmos 3 Nano and Super: interpolated and rotary positions, tapped layers) or SigLIP 2 as
Cosmos 3 Edge has it (resized positions, final norm). Sources: NVlabs/RADIO; transformers' RadioModel,
Qwen3VLVisionModel and Cosmos3EdgeVisionModel.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from omni.config import VisionConfig
from omni.kernels.attention import attend
from omni.layers import rotate, wide

PACK_PATCHES = 32_768
"""Most patches of one pass of :meth:`VisionEncoder.encode`; a larger unit goes alone."""

CPU_PATCHES = 2048
"""The same on a CPU: what a longer pass writes has left the processor's caches before it is read again."""

Groups = Sequence[tuple[int, int]]
"""How a list of tokens falls into units: (units, tokens of each), group after group."""

Grid = tuple[int, int]
"""Rows and columns of patches."""


class Features(NamedTuple):
    """What the encoder says about one unit."""

    patches: Tensor  # (h w, d), row-major
    taps: tuple[Tensor, ...]  # the same after each tapped layer; () where the config taps none
    grid: Grid


class LinearStem(nn.Module):
    """Each patch, flattened (channel, y, x), through one matrix."""

    def __init__(self, config: VisionConfig, channels: int = 3) -> None:
        super().__init__()
        self.patch = config.patch_size
        self.proj = nn.Linear(channels * config.patch_size**2, config.d_model, bias=config.stem_bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """(b, channels, H, W) -> (b, h w, d)"""
        p = self.patch
        return self.proj(rearrange(pixels, "b c (h y) (w x) -> b (h w) (c y x)", y=p, x=p))


class ConvStem(nn.Module):
    """Strided convolutions down to the patch grid: small models learn to read with it and hardly without."""

    def __init__(self, config: VisionConfig, channels: int = 3) -> None:
        super().__init__()
        halvings = config.patch_size.bit_length() - 1
        if 2**halvings != config.patch_size or halvings < 2:
            raise ValueError(f"a convolution stem needs a patch size of 4, 8, 16 ..., not {config.patch_size}")
        widths = [channels, *(config.d_model // 2 ** (halvings - i) for i in range(1, halvings)), config.d_model]
        kernels = [5] * (halvings - 1) + [3]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, k, stride=2, padding=k // 2) for i, o, k in zip(widths, widths[1:], kernels, strict=False)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """(b, channels, H, W) -> (b, h w, d)"""
        for conv in self.convs[:-1]:
            pixels = F.gelu(conv(pixels))
        return rearrange(self.convs[-1](pixels), "b d h w -> b (h w) d")


class VisionBlock(nn.Module):
    """(N, d) -> (N, d): full attention inside every unit, then the feed-forward."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        d = config.d_model
        self.n_heads = config.n_heads
        self.approximate = {"gelu": "none", "gelu_tanh": "tanh"}[config.activation]
        self.norm1 = nn.LayerNorm(d, eps=config.norm_eps)
        self.qkv = nn.Linear(d, 3 * d)
        self.proj = nn.Linear(d, d)
        self.norm2 = nn.LayerNorm(d, eps=config.norm_eps)
        self.up_proj = nn.Linear(d, config.d_ff)
        self.down_proj = nn.Linear(config.d_ff, d)

    def forward(self, x: Tensor, groups: Groups, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        q, k, v = self.project(x, rotary)
        x = x + self.proj(attend_units(q, k, v, groups).flatten(1))
        return x + self.down_proj(F.gelu(self.up_proj(self.norm2(x)), approximate=self.approximate))

    def project(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (N, H, p)."""
        q, k, v = rearrange(self.qkv(self.norm1(x)), "n (r H p) -> r n H p", r=3, H=self.n_heads)
        return _rotate(q, rotary), _rotate(k, rotary), v


class UnitEncoder(nn.Module, ABC):
    """What every vision tower shares: the checks, the normalising, and the sorting of units into passes.

    A tower gives ``_run``: batches of normalised units of one size each -> of each batch the patches (b, h w, d) and,
    behind them, the taps of the same shape.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, pixels: Tensor) -> Tensor:
        """Units of one size in [0, 1] -> (b, h w, d) with h = H / patch_size.

        Images (b, 3, H, W), or tubelets (b, f, 3, H, W) of ``config.tubelet`` frames.
        """
        self._check(pixels.shape[1:])
        return self._run([self._normalise(pixels)])[0][0]

    def encode(self, units: Sequence[Tensor]) -> list[Features]:
        """Images (3, H, W) and tubelets (f, 3, H, W) of any sizes, in [0, 1], without padding.

        All units are checked before one is encoded: ValueError where a size does not divide or a tubelet has other
        frames.
        """
        found = dict(pair for pairs in self.passes(units) for pair in pairs)
        return [found[i] for i in range(len(units))]

    def passes(self, units: Sequence[Tensor]) -> Iterator[list[tuple[int, Features]]]:
        """What :meth:`encode` finds, one pass at a time and each unit with its place, the smallest ones first.

        Long lists are cut into passes of :data:`PACK_PATCHES`, on a CPU of :data:`CPU_PATCHES`; units do not meet, so
        that changes nothing. Whoever reduces each pass before the next never holds the patches of a long video.
        """
        grids = [self._check(unit.shape) for unit in units]
        order = sorted(range(len(units)), key=lambda i: (grids[i][0] * grids[i][1], grids[i], units[i].dim()))
        on_cpu = next(self.parameters()).device.type == "cpu"
        for members in _packs(order, grids, min(PACK_PATCHES, CPU_PATCHES) if on_cpu else PACK_PATCHES):
            alike = [list(same) for _, same in groupby(members, key=lambda i: units[i].shape)]
            batches = [self._normalise(torch.stack([units[i] for i in same])) for same in alike]
            yield [
                (i, Features(patches[row], tuple(tap[row] for tap in taps), grids[i]))
                for same, (patches, *taps) in zip(alike, self._run(batches), strict=True)
                for row, i in enumerate(same)
            ]

    def grid(self, size: tuple[int, int]) -> Grid:
        """Patches (rows, columns) of an image of ``size`` (height, width) pixels."""
        p = self.config.patch_size
        height, width = size
        if height % p or width % p or not height or not width:
            raise ValueError(f"an image of {height}x{width} pixels does not divide into patches of {p}")
        return height // p, width // p

    @abstractmethod
    def _run(self, batches: Sequence[Tensor]) -> list[list[Tensor]]: ...

    def _check(self, shape: Sequence[int]) -> Grid:
        """The grid of a unit of ``shape``, if it is one."""
        tubelet = self.config.tubelet
        if len(shape) not in (3, 4) or shape[-3] != 3 or (len(shape) == 4 and shape[0] != tubelet):
            raise ValueError(
                f"a unit is (3, height, width) or ({tubelet}, 3, height, width) here, not {tuple(shape)}: "
                f"this encoder takes videos {tubelet} frames at a time"
            )
        return self.grid(tuple(shape[-2:]))

    def _normalise(self, pixels: Tensor) -> Tensor:
        """In float32, then as the weights are and where they are."""
        weights = next(self.parameters())
        pixels = pixels.to(weights.device).float()
        mean, std = (torch.tensor(v, device=pixels.device)[:, None, None] for v in (self.config.mean, self.config.std))
        return ((pixels - mean) / std).to(weights.dtype)


class VisionEncoder(UnitEncoder):
    """The transformer that ``config`` describes. Sides must be multiples of the patch size."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config)
        if config.rotary_theta and config.d_model // config.n_heads % 4:
            raise ValueError(
                f"rotary positions of rows and columns need heads of 4, 8, 12 ... channels, "
                f"not {config.d_model // config.n_heads}"
            )
        stem = {"linear": LinearStem, "conv": ConvStem}[config.stem]
        self.stem = stem(config, 3 if config.video_stem else 3 * config.tubelet)
        self.video_stem = stem(config, 3 * config.tubelet) if config.video_stem else None
        prefix = nn.Parameter(torch.randn(config.n_prefix, config.d_model) * 0.02) if config.n_prefix else None
        self.register_parameter("prefix", prefix)
        self.positions = nn.Parameter(torch.randn(config.max_grid**2, config.d_model) * 0.02)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.n_layers))
        self.final_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps) if config.final_norm else None

    def _run(self, batches: Sequence[Tensor]) -> list[list[Tensor]]:
        grids = [self.grid(batch.shape[-2:]) for batch in batches]
        parts = [self._embed(batch, grid) for batch, grid in zip(batches, grids, strict=True)]
        shapes = [part.shape[:2] for part in parts]
        groups = [(sum(b for b, _ in same), n) for n, same in groupby(shapes, key=lambda shape: shape[1])]
        rotary = self._rotary_for([(grid, b) for grid, (b, _) in zip(grids, shapes, strict=True)])
        x = torch.cat([part.flatten(0, 1) for part in parts])
        tapped = {layer for layer, _ in self.config.deepstack}
        taps = []
        for i, block in enumerate(self.blocks):
            x = block(x, groups, rotary)
            if i in tapped:
                taps.append(x)
        x = x if self.final_norm is None else self.final_norm(x)
        counts = [b * n for b, n in shapes]
        split = zip(*(tokens.split(counts) for tokens in (x, *taps)), strict=True)
        first = self.config.n_prefix
        return [[t.unflatten(0, shape)[:, first:] for t in own] for own, shape in zip(split, shapes, strict=True)]

    def _embed(self, pixels: Tensor, grid: Grid) -> Tensor:
        """Units of one size -> tokens (b, n_prefix + h w, d) before the first block."""
        x = self._patches(pixels) + self._positions_for(grid)
        return x if self.prefix is None else torch.cat([self.prefix.expand(x.shape[0], -1, -1), x], dim=1)

    def _patches(self, pixels: Tensor) -> Tensor:
        """(b, 3, H, W) or (b, f, 3, H, W) -> (b, h w, d). A stem for tubelets reads them frame by frame.

        The stem that images share with tubelets reads channel by channel, (c, f, y, x) as a Conv3d does.
        """
        if self.video_stem is not None:
            if pixels.dim() == 4:
                return self.stem(pixels)
            return self.video_stem(rearrange(pixels, "b f c y x -> b (f c) y x"))
        if pixels.dim() == 4:
            pixels = repeat(pixels, "b c y x -> b f c y x", f=self.config.tubelet)
        return self.stem(rearrange(pixels, "b f c y x -> b (c f) y x"))

    def _positions_for(self, grid: Grid) -> Tensor:
        """(h w, d): the position table, fitted to the grid in float32."""
        table = rearrange(self.positions, "(h w) d -> 1 d h w", h=self.config.max_grid).float()
        fitted = FITS[self.config.positions](table, grid)
        return rearrange(fitted[0], "d h w -> (h w) d").to(self.positions.dtype)

    def _rotary_for(self, runs: Sequence[tuple[Grid, int]]) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines (N, 1, p) of the tokens of (grid, units) after each other; prefix tokens do not turn."""
        c = self.config
        if not c.rotary_theta:
            return None
        parts = []
        for grid, b in runs:
            angles = axial_angles(grid, c.d_model // c.n_heads, c.rotary_theta, self.positions.device)
            parts.append(F.pad(angles, (0, 0, c.n_prefix, 0)).repeat(b, 1))
        angles = torch.cat(parts)[:, None]
        return angles.cos(), angles.sin()


def attend_units(q: Tensor, k: Tensor, v: Tensor, groups: Groups) -> Tensor:
    """Attention (N, H, p) -> (N, H, p) of every unit to itself; units of equal length in one call."""
    counts = [b * n for b, n in groups]
    parts = []
    for (b, _), *qkv in zip(groups, *(t.split(counts) for t in (q, k, v)), strict=True):
        heads = (rearrange(t, "(b n) H p -> b H n p", b=b) for t in qkv)
        parts.append(rearrange(attend(*heads, causal=False), "b H n p -> (b n) H p"))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def attend_units_reference(q: Tensor, k: Tensor, v: Tensor, groups: Groups) -> Tensor:
    """The same, one unit after the other."""
    out, start = torch.empty_like(q), 0
    for b, n in groups:
        for _ in range(b):
            own = slice(start, start + n)
            scores = torch.einsum("iHp,jHp->Hij", q[own], k[own]) * q.shape[-1] ** -0.5
            out[own] = torch.einsum("Hij,jHp->iHp", scores.softmax(-1), v[own])
            start += n
    return out


def axial_angles(grid: Grid, head_dim: int, theta: float, device: torch.device | None = None) -> Tensor:
    """Rotary angles (h w, head_dim), float32: the first quarter of the channels turns by row, the second by column.

    The second half repeats the first, as rotate-half wants it. Frequency j of an axis is theta^(-4 j / head_dim).
    """
    n = head_dim // 4
    frequencies = theta ** -(torch.arange(n, device=device, dtype=torch.float32) / n)
    rows, columns = (torch.arange(side, device=device, dtype=torch.float32)[:, None] * frequencies for side in grid)
    h, w = grid
    angles = torch.cat([repeat(rows, "h j -> (h w) j", w=w), repeat(columns, "w j -> (h w) j", h=h)], dim=-1)
    return torch.cat([angles, angles], dim=-1)


def fit_cropped(table: Tensor, grid: Grid) -> Tensor:
    """RADIO: the whole table resized to the longer side, then its top-left h x w part, so that aspects are kept."""
    side = max(grid)
    if side != table.shape[-1]:
        table = F.interpolate(table, size=(side, side), mode="bilinear", align_corners=False)
    return table[..., : grid[0], : grid[1]]


def fit_interpolated(table: Tensor, grid: Grid) -> Tensor:
    """Qwen3-VL: bilinear between the entries, the grid's corners on the table's corners."""
    return F.interpolate(table, size=grid, mode="bilinear", align_corners=True)


def fit_resized(table: Tensor, grid: Grid) -> Tensor:
    """Edge: resized as an image, averaging where the table is larger than the grid."""
    return F.interpolate(table, size=grid, mode="bilinear", align_corners=False, antialias=True)


FITS: dict[str, Callable[[Tensor, Grid], Tensor]] = {
    "cropped": fit_cropped,
    "interpolated": fit_interpolated,
    "resized": fit_resized,
}
"""``VisionConfig.positions`` -> how a table (1, d, side, side) is fitted to a grid: (1, d, h, w)."""


def _rotate(x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    """In float32, as Qwen3-VL does it."""
    return x if rotary is None else rotate(x.to(wide(x.dtype)), rotary).to(x.dtype)


def _packs(order: Sequence[int], grids: Sequence[Grid], most: int) -> Iterator[list[int]]:
    """Cut ``order`` where the patches of a pass would exceed ``most``."""
    pack: list[int] = []
    patches = 0
    for i in order:
        own = grids[i][0] * grids[i][1]
        if pack and patches + own > most:
            yield pack
            pack, patches = [], 0
        pack.append(i)
        patches += own
    if pack:
        yield pack
