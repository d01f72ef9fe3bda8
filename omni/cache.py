"""The cache: one slot per layer, and the three verbs that everything which generates is written in.

    attention   keys and values (b, K, m, p)                        grows with the sequence
    Mamba       the last ``d_conv - 1`` inputs of the convolution   constant size
                and the recurrent state (b, h, p, s) in float32
    MLP, MoE    nothing

``fork(n)`` copies every row n times (samples, guidance branches, drafts). ``begin`` opens a window; what is fed after
it can be cut back to its first ``accepted`` tokens per row with ``commit`` or undone with ``rollback``. Keys are cut by
length; a recurrent state cannot be cut, so a slot keeps the state at ``begin`` and the window's inputs, and replays the
accepted ones step by step: exactly the arithmetic of plain decoding. Or, if asked, it reads the window step by step and
keeps the state behind every token: more memory, nothing to replay. ``branch`` gives what an open window's rows were at
many places at once.

:class:`CacheFormat` says in how many bits all that is kept: keys and values in FP8, states in FP16 or INT8 rounded at
random. The random numbers follow the seed, the layer and the token's place, so a replayed token is rounded alike.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from omni.cache_slots import (
    EXACT,
    AttentionSlot,
    CacheError,
    CacheFormat,
    Fed,
    FP8Rows,
    MambaSlot,
    RoundedSlot,
    Rows,
    Slot,
)
from omni.config import MambaConfig, TowerConfig
from omni.kernels.rounding import block_of, key_of


class Cache:
    """What one tower remembers of ``batch`` sequences.

    ``lengths`` (b,) counts the tokens that each row holds. Only the tower moves it, once a call, through
    :meth:`advance`; layers read it.
    """

    def __init__(self, slots: list[Slot | None], lengths: Tensor, positions: Rows | None = None) -> None:
        self.slots = slots
        self.positions = (
            positions  # (b, 3, m, 1): rotary positions of the tokens held, for a denoiser that re-norms keys
        )
        self._opened: Tensor | None = None
        self._set_lengths(lengths)

    def _set_lengths(self, lengths: Tensor) -> None:
        self.lengths = lengths
        low, high = (int(lengths.min()), int(lengths.max())) if lengths.numel() else (0, 0)
        self.length = high  # of the longest row
        self.uniform = low == high

    @classmethod
    def new(
        cls,
        config: TowerConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        format: CacheFormat = EXACT,
        kv_scales: Mapping[int, tuple[float, float]] | None = None,
    ) -> "Cache":
        """An empty cache of ``config``'s tower with room for ``capacity`` tokens a row (it grows past that).

        ``kv_scales``: layer -> scales of its keys and values in FP8; 1 where there are none.
        """
        if batch < 1 or capacity < 0:
            raise CacheError(f"a cache needs at least one row and no negative capacity, not {batch} and {capacity}")

        def zeros(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(batch, *shape, dtype=dtype, device=device)

        slots: list[Slot | None] = []
        for layer, letter in enumerate(config.pattern):
            if letter == "*":
                scales = (kv_scales or {}).get(layer, (1.0, 1.0))
                slots.append(_new_rows(config, capacity, dtype, format, scales, zeros))
            elif letter == "M":
                slots.append(_new_state(config, dtype, format, layer, zeros))
            else:
                slots.append(None)
        rotary = config.attention is not None and config.attention.rotary is not None
        positions = Rows(zeros(3, capacity, 1, dtype=torch.float32)) if rotary else None
        return cls(slots, torch.zeros(batch, dtype=torch.int64, device=device), positions)

    @property
    def batch(self) -> int:
        return self.lengths.shape[0]

    @property
    def capacity(self) -> int:
        """Tokens a row that there is room for; 0 where no layer grows with the sequence."""
        return max((rows.data.shape[2] for rows in self._rows()), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes allocated for states, keys, values and positions."""
        return sum(t.nbytes for t in self._tensors().values()) + self.lengths.nbytes

    def next_positions(self) -> Tensor:
        """(b,) the rotary position of each row's next token: one past the largest so far (an image spans few)."""
        if self.positions is None:
            return self.lengths
        held = self.positions.data[:, :, : self.length, 0].amax(dim=1)  # (b, m)
        if held.shape[1] == 0:
            return self.lengths
        real = torch.arange(held.shape[1], device=held.device) < self.lengths[:, None]
        return held.masked_fill(~real, -1.0).amax(dim=1).to(torch.int64) + 1

    def advance(self, counts: Tensor | int) -> None:
        """Every row has taken ``counts`` further tokens ((b,) or one number)."""
        if isinstance(counts, int):
            self.lengths = self.lengths + counts
            self.length += counts
        else:
            self._set_lengths(self.lengths + counts)

    def reserve(self, capacity: int) -> None:
        """Make room for ``capacity`` tokens a row at once, instead of by growing."""
        for rows in self._rows():
            rows.reserve(capacity)

    def fork(self, n: int) -> "Cache":
        """Each row n times, next to each other; the copy shares no memory with this cache."""
        if n < 1:
            raise CacheError(f"fork needs at least one copy, not {n}")
        return self._map(lambda t: t.repeat_interleave(n, dim=0))

    def select(self, rows: Tensor) -> "Cache":
        """Only ``rows`` (int64), in that order."""
        return self._map(lambda t: t.index_select(0, rows))

    def begin(self, snapshots: bool = False) -> None:
        """Open a window: what is fed from here on can be cut back, by replay or with ``snapshots`` of the states."""
        if snapshots and torch.is_grad_enabled():
            raise CacheError("snapshots are kept without gradients only")
        if self._opened is not None:
            raise CacheError("a window is open already; commit or roll back first")
        self._opened = self.lengths.clone()
        for slot in self.slots:
            if isinstance(slot, MambaSlot):
                slot.begin(snapshots)

    @property
    def in_window(self) -> bool:
        return self._opened is not None

    def branch(self, rows: Tensor, counts: Tensor) -> "Cache":
        """A cache whose row i holds what row ``rows[i]`` held behind its first ``counts[i]`` tokens of the open window.

        rows and counts (k,) int64, in any order, rows as often as wanted. The window stays open.
        """
        if self._opened is None:
            raise CacheError("there is no open window to branch from")
        if rows.dim() != 1 or rows.shape != counts.shape or not len(rows):
            raise CacheError(f"rows {tuple(rows.shape)} and counts {tuple(counts.shape)} must be lists of one length")
        opened, fed = self._opened[rows], (self.lengths - self._opened)[rows]
        if bool(((counts < 0) | (counts > fed)).any()):
            raise CacheError(f"a branch behind {int(counts.min())} to {int(counts.max())} of {int(fed.min())} tokens")
        lengths = opened + counts
        most = int(lengths.max())

        def cut(t: Tensor) -> Tensor:
            return t[:, :, :most].index_select(0, rows)

        slots: list[Slot | None] = []
        for slot in self.slots:
            grows = isinstance(slot, AttentionSlot)
            slots.append(slot.map(cut) if grows else slot.branch(rows, counts) if slot else None)
        return Cache(slots, lengths, Rows(cut(self.positions.data)) if self.positions is not None else None)

    def commit(self, accepted: Tensor | int) -> None:
        """Keep each row's first ``accepted`` tokens of the window and close it."""
        if self._opened is None:
            raise CacheError("there is no open window to commit")
        fed = self.lengths - self._opened
        accepted = torch.as_tensor(accepted, device=fed.device)
        if accepted.dtype != torch.int64 or accepted.shape not in ((), fed.shape):
            kind = f"{tuple(accepted.shape)} {accepted.dtype}"
            raise CacheError(f"accepted must be one integer or {self.batch} of them, not {kind}")
        accepted = accepted.expand_as(fed)
        if bool(((accepted < 0) | (accepted > fed)).any()):
            raise CacheError(f"accepted {accepted.tolist()} tokens of a window of {fed.tolist()}")
        least, most = int(accepted.min()), int(accepted.max())
        for slot in self.slots:
            if isinstance(slot, MambaSlot):
                slot.commit(accepted, least, most)
        self._set_lengths(self._opened + accepted)
        self._opened = None

    def rollback(self) -> None:
        """Close the window as if nothing had been fed."""
        self.commit(0)

    def save(self, path: str | Path) -> None:
        """Write the cache to one safetensors file (beside, then renamed). An open window is not saved."""
        if self._opened is not None:
            raise CacheError("commit or roll back the open window before saving")
        path = Path(path)
        tensors = {}
        for name, tensor in self._tensors().items():
            grows = name.rsplit(".", 1)[-1] in ("k", "v", "positions")
            tensors[name] = (tensor[:, :, : self.length] if grows else tensor).contiguous()
        about = {"layers": str(len(self.slots)), "capacity": str(self.capacity)}
        about["slots"] = json.dumps([slot.about() if slot else {} for slot in self.slots])
        read_as = {str(rows.dtype) for rows in self._rows() if isinstance(rows, FP8Rows)}
        about["dtype"] = read_as.pop() if read_as else ""
        beside = path.with_name(path.name + ".part")
        save_file({**tensors, "lengths": self.lengths}, beside, about)
        os.replace(beside, path)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> "Cache":
        """Read what :meth:`save` wrote, with the room that it had: it goes on bit for bit."""
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                about = file.metadata()
            slots = json.loads(about.get("slots", "[]")) or [{}] * int(about["layers"])
            cache = cls._of(tensors, slots, getattr(torch, about.get("dtype", "").removeprefix("torch."), None))
            cache.reserve(int(about["capacity"]))
        except Exception as error:
            raise CacheError(f"{path} is not a saved cache: {error!r}") from None
        return cache

    @classmethod
    def _of(cls, tensors: dict[str, Tensor], about: list[dict], dtype: torch.dtype | None) -> "Cache":
        """The cache whose :meth:`_tensors` and lengths these are; ``about`` each slot, ``dtype`` of rows in FP8."""
        slots: list[Slot | None] = [None] * len(about)
        for i, more in enumerate(about):
            if f"{i}.k" in tensors:
                own = {name: tensors[f"{i}.{name}"] for name in ("k", "v")}
                slots[i] = AttentionSlot(*(FP8Rows(t, dtype, more[n]) if more else Rows(t) for n, t in own.items()))
            elif f"{i}.conv" in tensors:
                own = {n: tensors[f"{i}.{n}"] for n in ("conv", "ssm", "scale", "count") if f"{i}.{n}" in tensors}
                slots[i] = RoundedSlot(**own, **more) if more else MambaSlot(**own)
        positions = Rows(tensors["positions"]) if "positions" in tensors else None
        return cls(slots, tensors["lengths"], positions)

    def _rows(self) -> list[Rows]:
        rows = [r for slot in self.slots if isinstance(slot, AttentionSlot) for r in (slot.k, slot.v)]
        return rows if self.positions is None else [*rows, self.positions]

    def _tensors(self) -> dict[str, Tensor]:
        named = {f"{i}.{k}": t for i, slot in enumerate(self.slots) if slot for k, t in slot.tensors().items()}
        if self.positions is not None:
            named["positions"] = self.positions.data
        return named

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Cache":
        if self._opened is not None:
            raise CacheError("commit or roll back the open window before copying the cache")
        slots = [slot.map(change) if slot else None for slot in self.slots]
        positions = self.positions.with_data(change(self.positions.data)) if self.positions is not None else None
        return Cache(slots, change(self.lengths), positions)


def _new_rows(
    config: TowerConfig,
    capacity: int,
    dtype: torch.dtype,
    format: CacheFormat,
    scales: tuple[float, float],
    zeros: Callable,
) -> AttentionSlot:
    shape = config.attention.n_kv_heads, capacity, config.attention.head_dim
    if format.kv == "exact":
        return AttentionSlot(*(Rows(zeros(*shape)) for _ in scales))
    return AttentionSlot(*(FP8Rows(zeros(*shape, dtype=torch.uint8), dtype, scale) for scale in scales))


def _new_state(config: TowerConfig, dtype: torch.dtype, format: CacheFormat, layer: int, zeros: Callable) -> MambaSlot:
    m = config.mamba
    conv, shape = zeros(m.d_conv - 1, m.conv_dim), (m.n_heads, m.head_dim, m.d_state)
    if format.ssm == "exact":
        return MambaSlot(conv, zeros(*shape, dtype=torch.promote_types(dtype, torch.float32)))
    known = {"count": zeros(dtype=torch.int64), "key": key_of(format.seed, layer)}
    if format.ssm == "float16":
        return RoundedSlot(conv, zeros(*shape, dtype=torch.float16), **known)
    scale = zeros(*shape[:-1], m.d_state // block_of(m.d_state), dtype=torch.float32)
    return RoundedSlot(conv, zeros(*shape, dtype=torch.int8), scale=scale, **known)


def cache_bytes(config: TowerConfig, batch: int, tokens: int, element_bytes: int, format: CacheFormat = EXACT) -> int:
    """Bytes of a cache of ``tokens`` tokens a row: what :attr:`Cache.nbytes` will say, without allocating it."""
    total = 8 * batch  # lengths
    for letter in config.pattern:
        if letter == "*":
            a = config.attention
            total += batch * 2 * a.n_kv_heads * tokens * a.head_dim * (1 if format.kv == "fp8" else element_bytes)
        elif letter == "M":
            m = config.mamba
            total += batch * ((m.d_conv - 1) * m.conv_dim * element_bytes + _state_bytes(m, format, element_bytes))
    if config.attention is not None and config.attention.rotary is not None:
        total += batch * 3 * tokens * 4
    return total


def _state_bytes(m: MambaConfig, format: CacheFormat, element_bytes: int) -> int:
    """Of one row's recurrent state, and of what counts its tokens where that is kept."""
    numbers = m.n_heads * m.head_dim * m.d_state
    if format.ssm == "exact":
        return numbers * max(4, element_bytes)
    return 8 + (2 * numbers if format.ssm == "float16" else numbers + 4 * numbers // block_of(m.d_state))


__all__ = [
    "EXACT",
    "AttentionSlot",
    "Cache",
    "CacheError",
    "CacheFormat",
    "FP8Rows",
    "Fed",
    "MambaSlot",
    "RoundedSlot",
    "Rows",
    "cache_bytes",
]
