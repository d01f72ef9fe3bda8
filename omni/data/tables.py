"""Parquet tables from untrusted hands: the asked columns as numpy arrays, read piece by piece and counted.

    file ──> ParquetFile ──> batches of the row groups that may hold the asked rows ──> kept rows ──> {name: (n, ...)}

A short file can claim to hold very much, so a table is never read at once: its rows are limited before, and the bytes
that are kept while it is read. Whatever is wrong is one line of :class:`TableError`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from omni.tokenizers.files import find

MAX_ROWS = 50_000_000  # of one table
MAX_TABLE_BYTES = 1 << 30  # of what one reading keeps
BATCH_ROWS = 4096  # read at once


class TableError(ValueError):
    """A table that cannot be read: one line that names the file, what is wrong, and the limit."""


def require_pyarrow(what: str) -> None:
    """TableError where the package is missing that reads ``what``."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise TableError(f"{what} need the package pyarrow: pip install omni[robot]") from None


def read_table(
    path: Path, columns: Sequence[str] | Callable[[str], bool], where: tuple[str, int] | None = None
) -> dict[str, np.ndarray]:
    """Columns of a parquet file, those named or those that a function picks, each (n, ...).

    Texts, and lists that differ in length, are (n,) objects. ``where`` keeps the rows whose column has a value. Raises
    :class:`TableError`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    find(path, "table", TableError)
    with _only_errors(path.name), pq.ParquetFile(path) as file:
        if file.metadata.num_rows > MAX_ROWS:
            raise TableError(f"{path.name} has {file.metadata.num_rows} rows; the limit is {MAX_ROWS}")
        held = file.schema_arrow.names
        names = [name for name in held if columns(name)] if callable(columns) else list(columns)
        read = list(dict.fromkeys([*names, where[0]] if where else names))
        missing = [name for name in read if name not in held]
        if missing:
            raise TableError(f"{path.name} has no column {missing[0]!r}")
        kept, size = [], 0
        for batch in file.iter_batches(BATCH_ROWS, _groups(file.metadata, where), read):
            if where:
                batch = batch.filter(pc.equal(batch[where[0]], where[1]))
            kept.append(batch)
            size += batch.nbytes
            if size > MAX_TABLE_BYTES:
                raise TableError(f"{path.name} holds more than the limit of {MAX_TABLE_BYTES >> 30} GiB")
        table = pa.Table.from_batches(kept, pa.schema([file.schema_arrow.field(name) for name in read]))
        return {name: _array(table[name].combine_chunks(), f"{name} of {path.name}") for name in names}


def _groups(metadata: Any, where: tuple[str, int] | None) -> list[int]:
    """Row groups that may hold the asked rows, by the least and the greatest value that the file says of each."""
    groups = list(range(metadata.num_row_groups))
    paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    if not where or where[0] not in paths:
        return groups
    place = paths.index(where[0])
    ranges = [metadata.row_group(group).column(place).statistics for group in groups]
    return [g for g, s in zip(groups, ranges, strict=True) if not (s and s.has_min_max) or s.min <= where[1] <= s.max]


def _array(values: Any, name: str) -> np.ndarray:
    """An Arrow array as (n, ...); lists of different lengths, and texts, as objects."""
    import pyarrow as pa
    import pyarrow.compute as pc

    def whole(level: pa.Array) -> pa.Array:
        if level.null_count:
            raise TableError(f"{name} has {level.null_count} rows without a value")
        return level

    shape, inner = [len(values)], whole(values)
    while pa.types.is_list(inner.type) or pa.types.is_large_list(inner.type) or pa.types.is_fixed_size_list(inner.type):
        lengths = pc.unique(pc.list_value_length(inner)).to_pylist()
        texts = pa.types.is_string(inner.type.value_type) or pa.types.is_large_string(inner.type.value_type)
        if len(lengths) > 1 or texts:
            ragged = np.empty(len(values), object)
            ragged[:] = values.to_pylist()
            return ragged
        shape.append(lengths[0] if lengths else 0)
        inner = whole(inner.flatten())
    return inner.to_numpy(zero_copy_only=False).reshape(shape)


@contextmanager
def _only_errors(name: str) -> Iterator[None]:
    try:
        yield
    except TableError:
        raise
    except Exception as error:
        raise TableError(f"{name} is not a parquet table, or it is damaged") from error
