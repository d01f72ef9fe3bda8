"""What goes into a model: token ids, which of them are real, and the media behind their placeholders."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """Rows may be padded on either side; ``mask`` tells. Media stand in the order of their runs.

    A run of placeholder ids stands for one image, one tubelet of a video or one clip of a recording: one id for each of
    its tokens. ``kept`` and ``seen`` go with ``pixels``: which tokens of a video were kept, and what was encoded
    before.
    """

    input_ids: Tensor  # (b, n) int64
    mask: Tensor | None = None  # (b, n) True at real tokens; None: all are
    pixels: tuple[Tensor, ...] = ()  # images (3, H, W) and videos (frames, 3, H, W), float in [0, 1]
    segments: Tensor | None = None  # (b, n) sequence numbers of packed sequences
    sounds: tuple[Tensor, ...] = ()  # clips: log-mel features (frames, n_mels)
    kept: tuple[Tensor | None, ...] = ()  # (tubelets, h w) True at the tokens of a pruned video that stay
    seen: tuple[Tensor | None, ...] = ()  # tokens of an image or video as :meth:`Omni.see_all` gives them

    def to(self, device: torch.device | str) -> "Inputs":
        moved = {name: getattr(self, name) for name in ("input_ids", "mask", "segments")}
        moved = {name: value.to(device) for name, value in moved.items() if value is not None}
        for name in ("pixels", "sounds", "kept", "seen"):
            moved[name] = tuple(None if t is None else t.to(device) for t in getattr(self, name))
        return replace(self, **moved)

    @property
    def has_media(self) -> bool:
        return bool(self.pixels or self.sounds)


class Piece(NamedTuple):
    """The tokens behind one run: a grid of an image or tubelet, all of it or some, or ``size`` tokens of sound."""

    size: int
    grid: tuple[int, int] | None = None
    cells: Tensor | None = None  # (size,) places in the grid, row by row; None: all of them


def pieces_of(grid: tuple[int, int], kept: Tensor | None, tubelets: int) -> list[Piece]:
    """One piece for each tubelet (an image has one)."""
    if kept is None:
        return [Piece(grid[0] * grid[1], grid)] * tubelets
    if kept.shape != (tubelets, grid[0] * grid[1]):
        raise ValueError(
            f"kept is {tuple(kept.shape)}; the video has {tubelets} tubelets of {grid[0] * grid[1]} tokens"
        )
    cells = [row.nonzero().flatten().cpu() for row in kept]
    return [Piece(len(c), grid, c) for c in cells]


def pad_rows(rows: list[list[int]], pad: int, left: bool = False) -> tuple[Tensor, Tensor | None]:
    """Rows of ids to (b, n) and a mask (None when nothing had to be padded)."""
    if not rows or not all(rows):
        raise ValueError("every row needs at least one token")
    width = max(len(row) for row in rows)
    if all(len(row) == width for row in rows):
        return torch.tensor(rows), None
    filled = [[pad] * (width - len(r)) + r if left else r + [pad] * (width - len(r)) for r in rows]
    real = [[False] * (width - len(r)) + [True] * len(r) if left else [i < len(r) for i in range(width)] for r in rows]
    return torch.tensor(filled), torch.tensor(real)


def runs(flags: Tensor) -> list[tuple[int, int, int]]:
    """(row, start, stop) of every run of True in (b, n), in reading order."""
    found, flags = [], flags.cpu()  # one wait for the device, not one a row
    for row in range(flags.shape[0]):
        columns = flags[row].nonzero().flatten().tolist()
        for i, column in enumerate(columns):
            if i and columns[i - 1] == column - 1:
                found[-1] = (row, found[-1][1], column + 1)
            else:
                found.append((row, column, column + 1))
    return found


def media_runs(flags: Tensor, sizes: Sequence[int], kind: str = "image") -> list[tuple[int, int, int]]:
    """(row, start, stop) of each piece: runs of placeholders cut to the pieces' token counts, none of them 0.

    Raises ValueError with both counts when placeholders and media disagree.
    """
    pieces = []
    for row, start, stop in runs(flags):
        while start < stop:
            if len(pieces) == len(sizes) or start + sizes[len(pieces)] > stop:
                break
            pieces.append((row, start, start + sizes[len(pieces)]))
            start = pieces[-1][2]
        if start < stop:
            break
    covered = sum(stop - start for _, start, stop in pieces)
    held = int(flags.sum())
    if covered != held or len(pieces) != len(sizes):
        raise ValueError(
            f"the text holds {held} {kind} placeholders; the {len(sizes)} {kind}s given take {sum(sizes)} tokens"
        )
    return pieces


def media_positions(
    shape: tuple[int, int],
    mask: Tensor | None,
    places: Sequence[tuple[int, int, int]],
    pieces: Sequence[Piece],
    first: Tensor,
) -> Tensor:
    """(3, b, n) positions on time, height and width of ids (b, n) = ``shape``.

    Text and sound take one step on all three axes. An image stays at one time; its tokens carry their row and column,
    counted from there; what stands behind it goes on after the image's longer side, also where tokens of it are left
    out. ``first`` (b,) is where each row starts.
    """
    b, n = shape
    steps = torch.ones(b, n, dtype=torch.int64) if mask is None else mask.cpu().to(torch.int64)
    rows = torch.zeros(b, n, dtype=torch.int64)
    columns = torch.zeros(b, n, dtype=torch.int64)
    for (row, start, stop), piece in zip(places, pieces, strict=True):
        h, w = piece.grid
        cells = torch.arange(h * w) if piece.cells is None else piece.cells
        steps[row, start:stop] = 0
        steps[row, stop - 1] = max(h, w)
        rows[row, start:stop] = cells // w
        columns[row, start:stop] = cells % w
    before = steps.cumsum(dim=1) - steps + first.cpu()[:, None]
    return torch.stack([before, before + rows, before + columns])
