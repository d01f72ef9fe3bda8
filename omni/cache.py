"""The cache: one slot per layer, and the three verbs that everything which generates is written in.

    attention   keys and values (b, K, m, p)                        grows with the sequence
    Mamba       the last ``d_conv - 1`` inputs of the convolution   constant size
                and the recurrent state (b, h, p, s) in float32
    MLP, MoE    nothing

``fork(n)`` copies every row n times (samples, guidance branches, drafts). ``begin`` opens a window; what is fed after
it can be cut back to its first ``accepted`` tokens per row with ``commit`` or undone with ``rollback``. Keys are cut by
length; a recurrent state cannot be cut, so a slot keeps the state at ``begin`` and the window's inputs, and replays the
accepted ones step by step: exactly the arithmetic of plain decoding. Or, if asked, it reads the window step by step and
keeps the state behind every token: more memory, nothing to replay.

:class:`CacheFormat` says in how many bits all that is kept: keys and values in FP8, states in FP16 or INT8 rounded at
random. The random numbers follow the seed, the layer and the token's place, so a replayed token is rounded alike.
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from omni.config import MambaConfig, TowerConfig
from omni.kernels.rounding import block_of, from_int8, key_of, to_half, to_int8, uniform


class CacheError(ValueError):
    """A use of the cache that would corrupt it."""


@dataclass(frozen=True)
class CacheFormat:
    """``kv``: "exact", the weights' type, or "fp8". ``ssm``: "exact", float32, or "float16" or "int8".

    Source: ``reference`` language_family, sections 4 and 5.4, whose recipe is fp8 and float16 rounded at random.
    """

    kv: str = "exact"
    ssm: str = "exact"
    seed: int = 0  # of the rounding

    def __post_init__(self) -> None:
        for name, known in (("kv", KV_FORMATS), ("ssm", SSM_FORMATS)):
            if getattr(self, name) not in known:
                raise CacheError(f"CacheFormat.{name} is {getattr(self, name)!r}; known: {', '.join(known)}")

    @classmethod
    def of(cls, text: str) -> "CacheFormat":
        """From words joined by "+": "exact", "fp8" (keys and values), "float16" or "int8" (states)."""
        words = text.split("+")
        unknown = [word for word in words if word not in (*KV_FORMATS, *SSM_FORMATS)]
        if unknown or len(words) > 2:
            raise CacheError(
                f"{text!r} is no format of a cache; write exact, fp8, float16, int8, fp8+float16 or fp8+int8"
            )
        chosen = {"kv" if word in KV_FORMATS[1:] else "ssm": word for word in words}
        return cls(**chosen)


KV_FORMATS, SSM_FORMATS = ("exact", "fp8"), ("exact", "float16", "int8")
EXACT = CacheFormat()


@dataclass
class Rows:
    """A growable tensor (b, a, capacity, c): tokens along the third axis."""

    data: Tensor

    def read(self, tokens: int) -> Tensor:
        """The first ``tokens`` of each row."""
        return self.data[:, :, :tokens]

    def with_data(self, data: Tensor) -> "Rows":
        return dataclasses.replace(self, data=data)

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


FP8, FP8_MAX = torch.float8_e4m3fn, 448.0


@dataclass
class FP8Rows(Rows):
    """Rows that are kept in eight bits, as bytes, and read as ``dtype``: E4M3 times ``scale``."""

    dtype: torch.dtype
    scale: float = 1.0

    def append(self, new: Tensor, held: int, places: tuple[Tensor, Tensor] | None = None) -> Tensor:
        if torch.is_grad_enabled() and new.requires_grad:
            raise CacheError("keys and values are kept in FP8 without gradients only")
        codes = (new / self.scale).clamp(-FP8_MAX, FP8_MAX).to(FP8).view(torch.uint8)
        super().append(codes, held, places)
        return self.read(held + new.shape[2])

    def read(self, tokens: int) -> Tensor:
        return super().read(tokens).contiguous().view(FP8).to(self.dtype) * self.scale


@dataclass
class AttentionSlot:
    """Keys (after norm and rotary) and values of one layer."""

    k: Rows
    v: Rows

    def tensors(self) -> dict[str, Tensor]:
        return {"k": self.k.data, "v": self.v.data}

    def map(self, change: Callable[[Tensor], Tensor]) -> "AttentionSlot":
        return AttentionSlot(*(rows.with_data(change(rows.data)) for rows in (self.k, self.v)))

    def about(self) -> dict[str, float]:
        """What a file must say of it beside its tensors."""
        return {"k": self.k.scale, "v": self.v.scale} if isinstance(self.k, FP8Rows) else {}


@dataclass
class MambaSlot:
    """conv (b, d_conv - 1, c): raw inputs of the convolution; ssm (b, h, p, s): the recurrent state."""

    conv: Tensor
    ssm: Tensor
    window: list | None = None  # (xBC (b, n, c), dt (b, n, h), step) of every call since ``begin``
    saved: dict[str, Tensor] | None = None
    snapshots: list[dict[str, Tensor]] | None = None  # what is held behind each token of the window, if kept

    def state(self) -> Tensor:
        """The recurrent state to compute with; may be changed in place if :meth:`keep` follows."""
        return self.ssm

    def keep(self, state: Tensor, tokens: int | Tensor) -> None:
        """The state behind so many further tokens ((b,) or one number)."""
        self.ssm = state

    def tensors(self) -> dict[str, Tensor]:
        return {"conv": self.conv, "ssm": self.ssm}

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            setattr(self, name, tensor)

    def map(self, change: Callable[[Tensor], Tensor]) -> "MambaSlot":
        changed = {name: change(tensor) for name, tensor in self.tensors().items()}
        return dataclasses.replace(self, window=None, saved=None, snapshots=None, **changed)

    def about(self) -> dict[str, int]:
        """What a file must say of it beside its tensors."""
        return {}

    def begin(self, snapshots: bool) -> None:
        self.saved = self._copied()
        self.window, self.snapshots = [], [] if snapshots else None

    def snapshot(self) -> None:
        """Note what is held now: behind one more token of the window."""
        self.snapshots.append(self._copied())

    def _copied(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.tensors().items()}

    def commit(self, accepted: Tensor, least: int, most: int) -> None:
        """The states behind the first ``accepted`` (b,) tokens of the window."""
        if self.snapshots is None:
            self._replay(accepted, least, most)
        else:
            rows, noted = torch.arange(len(accepted), device=accepted.device), [self.saved, *self.snapshots]
            self.put({name: torch.stack([held[name] for held in noted])[accepted, rows] for name in self.saved})
        self.window = self.saved = self.snapshots = None

    def _replay(self, accepted: Tensor, least: int, most: int) -> None:
        self.put(self.saved)
        for i, (xbc, dt, step) in enumerate(itertools.islice(self._fed(), most)):
            if i < least:
                step(xbc, dt, self)
                continue
            ahead = self.map(torch.clone)
            step(xbc, dt, ahead)
            for name, further in ahead.tensors().items():
                keep = (i < accepted).view(-1, *[1] * (further.dim() - 1))
                self.put({name: torch.where(keep, further, getattr(self, name))})

    def _fed(self) -> Iterator[tuple[Tensor, Tensor, Callable]]:
        """Token by token what the window was fed: xBC (b, c), dt (b, h), step."""
        for xbc, dt, step in self.window:
            for i in range(xbc.shape[1]):
                yield xbc[:, i], dt[:, i], step


@dataclass
class RoundedSlot(MambaSlot):
    """A state that is rounded at random to float16, or to int8 with a ``scale`` (b, h, p, blocks), by every call.

    ``count`` (b,): tokens so far, which with ``key`` names the random numbers.
    """

    scale: Tensor | None = None
    count: Tensor | None = None
    key: int = 0

    def state(self) -> Tensor:
        return self.ssm.float() if self.scale is None else from_int8(self.ssm, self.scale)

    def keep(self, state: Tensor, tokens: int | Tensor) -> None:
        if state.requires_grad:
            raise CacheError("states are rounded without gradients only")
        self.count = self.count + tokens
        u = uniform(state[0].numel(), self.key, self.count, state.device).view_as(state)
        if self.scale is None:
            self.ssm = to_half(state.float(), u)
        else:
            self.ssm, self.scale = to_int8(state.float(), u)

    def tensors(self) -> dict[str, Tensor]:
        scale = {} if self.scale is None else {"scale": self.scale}
        return {**super().tensors(), **scale, "count": self.count}

    def about(self) -> dict[str, int]:
        return {"key": self.key}


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
