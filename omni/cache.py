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
"""

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from omni.config import TowerConfig


class CacheError(ValueError):
    """A use of the cache that would corrupt it."""


@dataclass
class Rows:
    """A growable tensor (b, a, capacity, c): tokens along the third axis."""

    data: Tensor

    def append(self, new: Tensor, held: int, places: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Write new (b, a, n, c) behind the first ``held`` tokens; returns all of (b, a, held + n, c).

        Where rows hold different numbers of tokens, ``held`` is the largest and ``places`` (rows, columns) tells where.
        """
        end = held + new.shape[2]
        new = new.to(self.data.dtype)
        if places is None and torch.is_grad_enabled():
            self.data = torch.cat([self.data[:, :, :held], new], dim=2)
            return self.data
        room = self.data.shape[2]
        if end > room:
            self.reserve(max(end, 2 * room))  # doubling keeps appending cheap
        if places is None:
            self.data[:, :, held:end] = new
        else:
            if torch.is_grad_enabled():  # what was read before stays as it was, for the backward pass
                self.data = self.data.clone()
            rows, columns = places
            self.data[rows, :, columns] = new.transpose(1, 2)
        return self.data[:, :, :end]

    def reserve(self, capacity: int) -> None:
        """Make room for ``capacity`` tokens."""
        b, a, room, c = self.data.shape
        if room < capacity:
            grown = self.data.new_zeros(b, a, capacity, c)
            grown[:, :, :room] = self.data
            self.data = grown


@dataclass
class AttentionSlot:
    """Keys (after norm and rotary) and values of one layer."""

    k: Rows
    v: Rows

    def tensors(self) -> dict[str, Tensor]:
        return {"k": self.k.data, "v": self.v.data}

    def map(self, change: Callable[[Tensor], Tensor]) -> "AttentionSlot":
        return AttentionSlot(Rows(change(self.k.data)), Rows(change(self.v.data)))


class Fed(NamedTuple):
    """One call's inputs of a Mamba layer, and how its states follow from them."""

    xbc: Tensor  # (b, n, c)
    dt: Tensor  # (b, n, h)
    step: Callable  # (xbc (b, c), dt (b, h), conv, ssm) -> conv, ssm
    at: Callable  # (xbc, dt, conv, ssm, rows (k,), counts (k,)) -> conv, ssm of k places


@dataclass
class MambaSlot:
    """conv (b, d_conv - 1, c): raw inputs of the convolution; ssm (b, h, p, s): the recurrent state."""

    conv: Tensor
    ssm: Tensor
    window: list[Fed] | None = None  # every call since ``begin``
    saved: tuple[Tensor, Tensor] | None = None
    snapshots: list[tuple[Tensor, Tensor]] | None = None  # the states behind each token of the window, if kept

    def tensors(self) -> dict[str, Tensor]:
        return {"conv": self.conv, "ssm": self.ssm}

    def map(self, change: Callable[[Tensor], Tensor]) -> "MambaSlot":
        return MambaSlot(change(self.conv), change(self.ssm))

    def begin(self, snapshots: bool) -> None:
        self.saved = (self.conv.clone(), self.ssm.clone())
        self.window, self.snapshots = [], [] if snapshots else None

    def commit(self, accepted: Tensor, least: int, most: int) -> None:
        """The states behind the first ``accepted`` (b,) tokens of the window."""
        if self.snapshots is None:
            self._replay(accepted, least, most)
        else:
            rows = torch.arange(len(accepted), device=accepted.device)
            found = (torch.stack(states)[accepted, rows] for states in zip(self.saved, *self.snapshots, strict=True))
            self.conv, self.ssm = found
        self.window = self.saved = self.snapshots = None

    def _replay(self, accepted: Tensor, least: int, most: int) -> None:
        self.conv, self.ssm = self.saved
        for i, (xbc, dt, step) in enumerate(itertools.islice(self._fed(), most)):
            if i < least:
                self.conv, self.ssm = step(xbc, dt, self.conv, self.ssm)
                continue
            conv, ssm = step(xbc, dt, self.conv.clone(), self.ssm.clone())
            keep = (i < accepted)[:, None, None]
            self.conv = torch.where(keep, conv, self.conv)
            self.ssm = torch.where(keep[..., None], ssm, self.ssm)

    def _fed(self) -> Iterator[tuple[Tensor, Tensor, Callable]]:
        """Token by token what the window was fed: xBC (b, c), dt (b, h), step."""
        for xbc, dt, step, _ in self.window:
            for i in range(xbc.shape[1]):
                yield xbc[:, i], dt[:, i], step

    def branch(self, rows: Tensor, counts: Tensor) -> "MambaSlot":
        """The states of ``rows`` (k,) behind their first ``counts`` (k,) tokens of the window."""
        if not self.window:
            return MambaSlot(*(state.index_select(0, rows) for state in self.saved))
        xbc, dt = (torch.cat([getattr(fed, name) for fed in self.window], dim=1) for name in ("xbc", "dt"))
        return MambaSlot(*self.window[-1].at(xbc, dt, *self.saved, rows, counts))


Slot = AttentionSlot | MambaSlot


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
    def new(cls, config: TowerConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device) -> "Cache":
        """An empty cache of ``config``'s tower with room for ``capacity`` tokens a row (it grows past that)."""
        if batch < 1 or capacity < 0:
            raise CacheError(f"a cache needs at least one row and no negative capacity, not {batch} and {capacity}")

        def zeros(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(batch, *shape, dtype=dtype, device=device)

        slots: list[Slot | None] = []
        for letter in config.pattern:
            if letter == "*":
                a = config.attention
                rows = [Rows(zeros(a.n_kv_heads, capacity, a.head_dim)) for _ in range(2)]
                slots.append(AttentionSlot(*rows))
            elif letter == "M":
                m = config.mamba
                wide = torch.promote_types(dtype, torch.float32)
                slots.append(
                    MambaSlot(zeros(m.d_conv - 1, m.conv_dim), zeros(m.n_heads, m.head_dim, m.d_state, dtype=wide))
                )
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
            cache = cls._of(tensors, int(about["layers"]))
            cache.reserve(int(about["capacity"]))
        except Exception as error:
            raise CacheError(f"{path} is not a saved cache: {error!r}") from None
        return cache

    @classmethod
    def _of(cls, tensors: dict[str, Tensor], layers: int) -> "Cache":
        """The cache whose :meth:`_tensors` and lengths these are."""
        slots: list[Slot | None] = [None] * layers
        for i in range(layers):
            if f"{i}.k" in tensors:
                slots[i] = AttentionSlot(Rows(tensors[f"{i}.k"]), Rows(tensors[f"{i}.v"]))
            elif f"{i}.conv" in tensors:
                slots[i] = MambaSlot(tensors[f"{i}.conv"], tensors[f"{i}.ssm"])
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
        positions = Rows(change(self.positions.data)) if self.positions is not None else None
        return Cache(slots, change(self.lengths), positions)


def cache_bytes(config: TowerConfig, batch: int, tokens: int, element_bytes: int) -> int:
    """Bytes of a cache of ``tokens`` tokens a row: what :attr:`Cache.nbytes` will say, without allocating it."""
    total = 8 * batch  # lengths
    for letter in config.pattern:
        if letter == "*":
            a = config.attention
            total += batch * 2 * a.n_kv_heads * tokens * a.head_dim * element_bytes
        elif letter == "M":
            m = config.mamba
            state = m.n_heads * m.head_dim * m.d_state * max(4, element_bytes)
            total += batch * ((m.d_conv - 1) * m.conv_dim * element_bytes + state)
    if config.attention is not None and config.attention.rotary is not None:
        total += batch * 3 * tokens * 4
    return total
