"""Operators with a readable reference and faster twins.

Every operator keeps a table of :class:`Path` rows, best first. A call takes the first row that supports its
tensors, so a new kernel is one more row: a name, the function, and the condition under which it may run. Nothing
is decided at import, and :func:`force` lets a test run one row by name.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch

_forced: ContextVar[dict[str, str]] = ContextVar("omni_forced_kernels", default={})  # noqa: B039 (never mutated)


class Path(NamedTuple):
    """One way to compute an operator. ``supports`` gets the call's arguments and says whether it may run."""

    name: str
    run: Callable
    supports: Callable[..., bool] = lambda *args: True


def choose(op: str, candidates: Sequence[Path], *args: object) -> Callable:
    """The function that computes ``op`` for ``args``: the forced path, else the first that supports them."""
    name = _forced.get().get(op)
    if name is None:
        return next(path.run for path in candidates if path.supports(*args))
    for path in candidates:
        if path.name == name:
            return path.run
    raise ValueError(f"{op} has no path {name!r}; known: {', '.join(path.name for path in candidates)}")


@contextmanager
def force(op: str, path: str | None) -> Iterator[None]:
    """Within the block ``op`` runs by ``path``, whatever the tensors are; ``None`` restores the free choice.

    An unknown path raises :class:`ValueError` at the first call of the operator.
    """
    forced = {name: chosen for name, chosen in _forced.get().items() if name != op}
    token = _forced.set(forced if path is None else forced | {op: path})
    try:
        yield
    finally:
        _forced.reset(token)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type sums are taken in: float32, or float64 where the input has it."""
    return torch.promote_types(dtype, torch.float32)


__all__ = ["Path", "choose", "force", "wide"]
