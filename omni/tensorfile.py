"""One safetensors file, read without trust and written in one pass.

    8 bytes: header length | header: JSON {name: {dtype, shape, data_offsets}} | the tensors, back to back

The header is checked completely before anything is allocated. Tensors are read straight into their place: nothing is
mapped and nothing is held twice, so loading needs the memory of the weights and no more.
"""

import json
import math
import os
import struct
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAX_HEADER = 64 << 20  # bytes; the largest published index, with 51,023 tensors, is a tenth of it
MAX_TENSORS = 400_000
MAX_JSON = 64 << 20
BLOCK = 2 << 20  # bytes converted at a time, a reader, where file and target differ in type or device

_THREAD = threading.local()

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written as asked: names the file and what is wrong with it."""


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: ``start`` is the absolute offset of its bytes in ``file``."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size; one line says what is wrong with it otherwise."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON:
            raise CheckpointError(f"{path} has {size} bytes; at most {MAX_JSON} are read")
        text = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if not text.strip():
        raise CheckpointError(f"{path} is empty")
    return _parse(text, str(path))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write beside, then rename."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(beside, path)


def read_header(path: Path) -> dict[str, Entry]:
    """Every tensor of the file, checked against its size: types known, no overlap, no gap, nothing cut off."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if len(start) < 8:
                _refuse_pickle(path, start)
                raise CheckpointError(f"{path} has {size} bytes: too short for a safetensors file")
            (length,) = struct.unpack("<Q", start)
            if length > min(MAX_HEADER, size - 8):
                _refuse_pickle(path, start)  # only now: a header of 640 bytes begins as a pickle does
                raise CheckpointError(
                    f"{path}: the header claims {length} bytes; the file has {size} and at most {MAX_HEADER} are read"
                )
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    header = _parse(raw, f"{path}: the header")
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"{path}: the header lists {len(header)} tensors; at most {MAX_TENSORS} are read")
    entries = {name: _entry(path, name, item, 8 + length) for name, item in header.items()}
    _check_layout(path, entries, 8 + length, size)
    return entries


def _refuse_pickle(path: Path, start: bytes) -> None:
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"):
        raise CheckpointError(f"{path} is a pickle, which can run code when it is read; only safetensors is accepted")


def _parse(text: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise CheckpointError(f"{what} is not JSON: {reason}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} holds a {type(value).__name__}, not an object")
    return value


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _entry(path: Path, name: str, item: Any, base: int) -> Entry:
    """One header item, its own size checked."""
    where = f"{path}: tensor {name!r}"
    if not isinstance(item, dict):
        raise CheckpointError(f"{where} is described by {type(item).__name__}, not an object")
    dtype, shape, offsets = item.get("dtype"), item.get("shape"), item.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{where} has the unknown type {dtype!r}; known: {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > 16 or not all(map(_is_size, shape)):
        raise CheckpointError(f"{where} has the shape {shape!r}; it must be a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise CheckpointError(f"{where} has the offsets {offsets!r}; they must be two positions")
    entry = Entry(path, DTYPES[dtype], tuple(shape), base + offsets[0])
    if entry.nbytes != offsets[1] - offsets[0]:
        raise CheckpointError(
            f"{where}: {dtype} {shape} takes {entry.nbytes} bytes; the offsets {offsets} span {offsets[1] - offsets[0]}"
        )
    return entry


def _check_layout(path: Path, entries: dict[str, Entry], base: int, size: int) -> None:
    """The tensors must fill the rest of the file exactly, one after another."""
    end, before = base, None
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if entry.start < end:
            raise CheckpointError(f"{path}: tensors {before!r} and {name!r} overlap at byte {entry.start}")
        if entry.start > end:
            raise CheckpointError(f"{path}: {entry.start - end} bytes before tensor {name!r} belong to no tensor")
        end, before = entry.start + entry.nbytes, name
    if end > size:
        raise CheckpointError(f"{path} is cut off: its tensors end at byte {end}, the file at {size}")
    if end < size:
        raise CheckpointError(f"{path}: {size - end} bytes after the last tensor belong to no tensor")


def read_into(entry: Entry, target: Tensor) -> None:
    """Fill ``target`` (contiguous, of the entry's shape; any type and device) from the file."""
    if entry.numel == 0:
        return
    flat = target.detach().reshape(-1)
    with entry.file.open("rb", buffering=0) as file:
        file.seek(entry.start)
        if flat.dtype == entry.dtype and flat.device.type == "cpu":
            _read_exactly(file, flat, entry.file)
            return
        step = BLOCK // entry.dtype.itemsize
        block = _block().view(entry.dtype)
        for start in range(0, entry.numel, step):
            piece = block[: min(step, entry.numel - start)]
            _read_exactly(file, piece, entry.file)
            flat[start : start + piece.numel()].copy_(piece)


def _block() -> Tensor:
    """This thread's buffer: a fresh one for every tensor would leave the heap in pieces."""
    if not hasattr(_THREAD, "block"):
        _THREAD.block = torch.empty(BLOCK, dtype=torch.uint8)
    return _THREAD.block


def _read_exactly(file: Any, flat: Tensor, path: Path) -> None:
    view = memoryview(flat.view(torch.uint8).numpy())
    while view:
        count = file.readinto(view)  # the kernel reads at most 2 GiB a call
        if not count:
            raise CheckpointError(f"{path} was cut off while it was read")
        view = view[count:]


@dataclass(frozen=True)
class Item:
    """A tensor to write, converted to ``dtype`` only when its turn comes."""

    name: str
    tensor: Tensor
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.tensor.numel() * self.dtype.itemsize


def write_file(path: Path, items: Iterable[Item]) -> None:
    """Write ``items`` to ``path``. Wide types come first, so that every tensor is aligned."""
    ordered = sorted(items, key=lambda item: -item.dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for item in ordered:
        offsets = [end, end := end + item.nbytes]
        header[item.name] = {
            "dtype": DTYPE_NAMES[item.dtype],
            "shape": list(item.tensor.shape),
            "data_offsets": offsets,
        }
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for item in ordered:
            plain = item.tensor.detach().to("cpu", item.dtype).contiguous().reshape(-1)
            file.write(memoryview(plain.view(torch.uint8).numpy()))
        file.flush()
        os.fsync(file.fileno())
