"""A tower: a stack of layers ``x + mixer(norm(x))``. The context tower and the denoiser tower are both this class.

The two meet only in the cache: layer i of the denoiser reads the slot of context layer i.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.cache import EXACT, Cache, CacheError, CacheFormat
from omni.config import TowerConfig
from omni.kernels.groups import Groups
from omni.layers import Modulation, RMSNorm, Rotary, build_time, wide
from omni.mixers import MIXERS, Layout

BEFORE_NORM = "M*"
"""Letters whose modulation comes before the norm; for the others it comes after (TwoTower's order)."""

PIECE = 1024
"""Tokens that a CPU reads into a cache at once: more would only need memory that is fresh for every layer."""


class Block(nn.Module):
    """One layer: ``x + gate * mixer(norm(x))`` with adaLN's modulation on the side of the norm that its letter has."""

    def __init__(self, config: TowerConfig, layer: int) -> None:
        super().__init__()
        self.letter = config.pattern[layer]
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.mixer = MIXERS[self.letter](config.d_model, config.mixer(layer))

    def forward(
        self, x: Tensor, layout: Layout, slot=None, context=None, modulation: Modulation | None = None
    ) -> Tensor:
        dtype = self.norm.weight.dtype
        if modulation is None:
            return x + self.mixer(self.norm(x.to(dtype)), layout, slot, context)
        if self.letter in BEFORE_NORM:
            inner = self.norm(modulation.modulate(x).to(dtype))
        else:
            inner = modulation.modulate(self.norm(x.to(dtype)))
        return x + modulation.gate * self.mixer(inner, layout, slot, context)


class Tower(nn.Module):
    """(b, n, d) -> (b, n, d), normed.

    As a context tower it is causal and extends ``cache``; as a denoiser tower it sees its whole block, is told the
    noise level ``time`` and reads another tower's cache as ``context``.
    """

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.n_layers))
        # Layers up to the last one whose tokens meet; behind it each token is on its own.
        self.reach = 1 + max((i for i, letter in enumerate(config.pattern) if letter in "M*"), default=-1)
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.time = build_time(config.d_model, config.n_layers, config.time)
        attention = config.attention
        rotary = attention is not None and attention.rotary is not None
        self.rotary = Rotary(attention.head_dim, attention.rotary) if rotary else None

    def new_cache(self, batch: int, capacity: int = 0, format: CacheFormat = EXACT) -> Cache:
        """An empty cache of this tower, in the dtype and on the device of its weights."""
        weight = self.norm.weight
        scales = self._kv_scales() if format.kv == "fp8" else None
        return Cache.new(self.config, batch, capacity, weight.dtype, weight.device, format, scales)

    def _kv_scales(self) -> dict[int, tuple[float, float]]:
        """Scales of keys and values that a checkpoint came with, by layer."""
        layers = [(i, block.mixer) for i, block in enumerate(self.blocks) if block.letter == "*"]
        held = {i: (getattr(m.k_proj, "k_scale", None), getattr(m.v_proj, "v_scale", None)) for i, m in layers}
        return {i: tuple(1.0 if s is None else float(s) for s in pair) for i, pair in held.items()}

    def forward(
        self,
        x: Tensor,
        *,
        cache: Cache | None = None,
        context: Cache | None = None,
        mask: Tensor | None = None,  # (b, n) True at real tokens; padding may stand on either side
        segments: Tensor | None = None,  # (b, n) sequence numbers of packed sequences
        positions: Tensor | None = None,  # (3, b, n) rotary positions; default: the token's index
        causal: bool = True,
        time: Tensor | None = None,  # (b,) noise level in [0, 1]
        noisy: Tensor | None = None,  # (b, n) True at tokens that carry noise; default: all
        added: Mapping[int, Tensor] | None = None,  # layer -> (b, n, d) that is added behind it
        last: int | None = None,  # only each row's last so many real tokens are wanted: (b, last, d)
        groups: Groups | None = None,  # of a block whose tokens do not all meet at once
    ) -> Tensor:
        added = added or {}
        if mask is not None and not bool(mask.all()):
            order = torch.argsort(~mask, dim=1, stable=True)  # real tokens first: layers only know right padding
            move = _mover(order)
            x, segments, positions, noisy = move(x), move(segments), move(positions, 2), move(noisy)
            added = {layer: move(value) for layer, value in added.items()}
            lengths, back = mask.sum(dim=1), _mover(torch.argsort(order, dim=1))
        else:
            lengths = back = None
        self._check(x, cache, context, lengths, segments, causal, time, last)
        if groups is not None and (causal or cache is not None or lengths is not None or groups.total >= x.shape[1]):
            raise ValueError(f"groups of {groups.sizes} tokens are for a block that is not causal and has more of them")
        piece = _piece(x, cache, lengths, time)
        if piece < x.shape[1]:
            return self._run_in_pieces(x, piece, cache, positions, added, last)
        layout = self._layout(x, cache, context, lengths, segments, positions, causal, groups)
        x = self._run(x, layout, cache, context, time, noisy, added, last)
        return back(x) if back and last is None else x

    def _run_in_pieces(
        self,
        x: Tensor,
        piece: int,
        cache: Cache,
        positions: Tensor | None,
        added: Mapping[int, Tensor],
        last: int | None,
    ) -> Tensor:
        """A long prompt, a piece after the other: the same as one call, since the cache carries on between them."""
        parts, n = [], x.shape[1]
        for start in range(0, n, piece):
            part, span = x[:, start : start + piece], slice(start, start + piece)
            own = None if positions is None else positions[..., span]
            layout = self._layout(part, cache, None, None, None, own, True)
            more = {layer: value[:, span] for layer, value in added.items()}
            behind = n - start - part.shape[1]
            wanted = None if last is None else min(max(last - behind, 0), part.shape[1])
            parts.append(self._run(part, layout, cache, None, None, None, more, wanted))
        return torch.cat(parts, dim=1)

    def _run(
        self,
        x: Tensor,
        layout: Layout,
        cache: Cache | None,
        context: Cache | None,
        time: Tensor | None,
        noisy: Tensor | None,
        added: Mapping[int, Tensor],
        last: int | None,
    ) -> Tensor:
        none = [None] * len(self.blocks)
        slots = cache.slots if cache else none
        reads = context.slots if context else none
        if self.config.residual_fp32:
            x = x.to(wide(x.dtype))
        x, modulations = self.time(x, time, noisy)

        def through(layers: range, x: Tensor) -> Tensor:
            for i in layers:
                x = self.blocks[i](x, layout, slots[i], reads[i], modulations[i] if modulations else None)
                x = x + added[i] if i in added else x
            return x

        x = through(range(self.reach), x)
        if last is not None:
            x, *cut = (_ends(t, last, layout.lengths) for t in (x, *added.values()))
            added = dict(zip(added, cut, strict=True))
        if last != 0:
            x = through(range(self.reach, len(self.blocks)), x)
        if cache is not None:
            cache.advance(layout.n if layout.lengths is None else layout.lengths)
        return self.norm(x.to(self.norm.weight.dtype))

    def _layout(self, x, cache, context, lengths, segments, positions, causal, groups=None) -> Layout:
        if segments is not None:
            segments = _counted(segments)
        positions = self._positions(x, cache, segments, positions)
        where = {"groups": groups}
        if cache is not None:
            where |= {"held": cache.length, "recording": cache.in_window}
            where["starts"] = None if cache.uniform else cache.lengths
        if context is not None:
            where |= {"context_length": context.length, "context_rotary": self._context_rotary(context)}
            where["context_lengths"] = None if context.uniform else context.lengths
        rotary = self.rotary(positions) if self.rotary is not None else None
        layout = Layout(x.shape[1], causal=causal, lengths=lengths, segments=segments, rotary=rotary, **where)
        if cache is not None and cache.positions is not None:
            cache.positions.append(positions.permute(1, 0, 2).unsqueeze(-1), layout.held, layout.places)
        return layout

    def _check(self, x, cache, context, lengths, segments, causal, time, last) -> None:
        """Refuse what has no meaning, before anything is computed or a cache is touched."""
        if cache is not None and context is not None:
            raise CacheError("a call extends its own cache or reads a context, not both")
        if segments is not None and (cache is not None or context is not None or not causal):
            raise CacheError("packed sequences are read causally and without a cache: give them one row each")
        if cache is not None and not causal:
            raise CacheError("only a causal call can extend a cache")
        if cache is not None and cache.in_window and lengths is not None:
            raise CacheError("rows of different lengths cannot be fed in an open window")
        for name, held in (("cache", cache), ("context", context)):
            if held is not None and held.batch != x.shape[0]:
                raise CacheError(f"the {name} holds {held.batch} rows; the call has {x.shape[0]}")
            if held is not None and len(held.slots) != len(self.blocks):
                raise CacheError(f"the {name} holds {len(held.slots)} layers; the tower has {len(self.blocks)}")
        if self.config.time is not None and time is None:
            raise ValueError("this tower is conditioned on a noise level: give its time")
        if last is not None and (time is not None or not 0 <= last <= x.shape[1]):
            raise ValueError(f"last is {last}: a context tower's call of {x.shape[1]} tokens can give 0 to all of them")

    def _positions(self, x: Tensor, cache: Cache | None, segments, positions: Tensor | None) -> Tensor | None:
        """(3, b, n): the caller's, or each token's index in its sequence."""
        if self.rotary is None or positions is not None:
            return positions
        index = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        if cache is not None:
            index = index + cache.next_positions()[:, None]
        elif segments is not None:
            index = index - torch.searchsorted(segments, segments)  # the first token of the same number
        return index.expand(3, -1, -1)

    def _context_rotary(self, context: Cache) -> tuple[Tensor, Tensor] | None:
        attention = self.config.attention
        if self.rotary is None or not attention.context_norm or context.positions is None:
            return None
        return self.rotary(context.positions.data[:, :, : context.length, 0].permute(1, 0, 2))


def _piece(x: Tensor, cache: Cache | None, lengths: Tensor | None, time: Tensor | None) -> int:
    """Tokens of ``x`` (b, n, d) to run at once: all, unless a CPU reads a long prompt without learning from it."""
    simple = cache is not None and lengths is None and time is None
    if not simple or x.device.type != "cpu" or torch.is_grad_enabled():
        return x.shape[1]
    return max(1, PIECE // x.shape[0])


def _ends(x: Tensor, last: int, lengths: Tensor | None) -> Tensor:
    """(b, n, d) -> (b, last, d): the end of each row's real tokens, behind anything where a row has fewer."""
    if lengths is None:
        return x[:, x.shape[1] - last :]
    index = lengths[:, None] - last + torch.arange(last, device=x.device)
    return x.gather(1, index.clamp(min=0)[..., None].expand(-1, -1, x.shape[2]))


def _counted(segments: Tensor) -> Tensor:
    """(b, n) any numbers -> 0, 1, 2 ... along each row: a number that comes back is another sequence."""
    return F.pad(segments.diff(dim=1).ne(0).cumsum(1), (1, 0))


def _mover(order: Tensor):
    """A function that reorders the tokens of (b, n, ...) or, with ``axis`` 2, of (3, b, n)."""

    def move(values: Tensor | None, axis: int = 1) -> Tensor | None:
        if values is None:
            return None
        if axis == 2:
            return values.gather(2, order.expand(values.shape[0], -1, -1))
        index = order if values.dim() == 2 else order[..., None].expand(-1, -1, values.shape[2])
        return values.gather(1, index)

    return move
