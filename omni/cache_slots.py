"""What one layer remembers: keys and values, or a recurrent state with its convolution's inputs; in how many bits.

A window's inputs are kept so that a state can be made again from what was accepted of them; or the state behind every
token is. States of few bits are rounded at random: the random numbers follow the seed, the layer and the token's
place, so that a replayed token is rounded alike.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from omni.kernels.rounding import from_int8, to_half, to_int8, uniform


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


class Fed(NamedTuple):
    """One call's inputs of a Mamba layer, and how its states follow from them."""

    xbc: Tensor  # (b, n, c)
    dt: Tensor  # (b, n, h)
    step: Callable  # (xbc, dt, slot, counts (b,) or None): the slot is so many tokens further, or all of them
    at: Callable  # (xbc, dt, conv, ssm, rows (k,), counts (k,)) -> conv, ssm of k places


@dataclass
class MambaSlot:
    """conv (b, d_conv - 1, c): raw inputs of the convolution; ssm (b, h, p, s): the recurrent state."""

    conv: Tensor
    ssm: Tensor
    window: list[Fed] | None = None  # every call since ``begin``
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
        if most:
            xbc, dt, step = self._fed()
            step(xbc[:, :most], dt[:, :most], self, None if least == most else accepted)

    def _fed(self) -> tuple[Tensor, Tensor, Callable]:
        """All that the window was fed, xBC (b, n, c) and dt (b, n, h), and how it is read."""
        last = self.window[-1]
        if len(self.window) == 1:
            return last.xbc, last.dt, last.step
        xbc, dt = (torch.cat([getattr(call, name) for call in self.window], dim=1) for name in ("xbc", "dt"))
        return xbc, dt, last.step

    def branch(self, rows: Tensor, counts: Tensor) -> "MambaSlot":
        """The states of ``rows`` (k,) behind their first ``counts`` (k,) tokens of the window."""
        began = dataclasses.replace(self, window=None, saved=None, snapshots=None, **self.saved)
        found = began.map(lambda t: t.index_select(0, rows))
        if self.window:
            xbc, dt, _ = self._fed()
            found.conv, state = self.window[-1].at(xbc, dt, began.conv, began.state(), rows, counts)
            found.keep(state, counts)
        return found


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

    def _replay(self, accepted: Tensor, least: int, most: int) -> None:
        """Token by token: each of them rounds, as it would have if it had been read alone."""
        self.put(self.saved)
        if not most:
            return
        xbc, dt, step = self._fed()
        for i in range(most):
            one = slice(i, i + 1)
            if i < least:
                step(xbc[:, one], dt[:, one], self, None)
                continue
            ahead = self.map(torch.clone)
            step(xbc[:, one], dt[:, one], ahead, None)
            for name, further in ahead.tensors().items():
                keep = (i < accepted).view(-1, *[1] * (further.dim() - 1))
                self.put({name: torch.where(keep, further, getattr(self, name))})

    def tensors(self) -> dict[str, Tensor]:
        scale = {} if self.scale is None else {"scale": self.scale}
        return {**super().tensors(), **scale, "count": self.count}

    def about(self) -> dict[str, int]:
        return {"key": self.key}


Slot = AttentionSlot | MambaSlot
