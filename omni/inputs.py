"""What goes into a model: token ids, which of them are real, and the media behind their placeholders."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """Rows may be padded on either side; ``mask`` tells. ``pixels`` holds the images in the order of their runs.

    A run of placeholder ids stands for one image: one id for each of its tokens.
    """

    input_ids: Tensor  # (b, n) int64
    mask: Tensor | None = None  # (b, n) True at real tokens; None: all are
    pixels: tuple[Tensor, ...] = ()  # each (3, H, W) float in [0, 1]
    segments: Tensor | None = None  # (b, n) sequence numbers of packed sequences

    def to(self, device: torch.device | str) -> "Inputs":
        moved = {name: getattr(self, name) for name in ("input_ids", "mask", "segments")}
        moved = {name: value.to(device) for name, value in moved.items() if value is not None}
        return replace(self, pixels=tuple(p.to(device) for p in self.pixels), **moved)


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
    found = []
    for row in range(flags.shape[0]):
        columns = flags[row].nonzero().flatten().tolist()
        for i, column in enumerate(columns):
            if i and columns[i - 1] == column - 1:
                found[-1] = (row, found[-1][1], column + 1)
            else:
                found.append((row, column, column + 1))
    return found


def image_runs(flags: Tensor, sizes: list[int]) -> list[tuple[int, int, int]]:
    """(row, start, stop) of each image: runs of placeholders cut to the images' token counts.

    Raises ValueError with both counts when placeholders and images disagree.
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
            f"the text holds {held} image placeholders; the {len(sizes)} images given take {sum(sizes)} tokens"
        )
    return pieces


def image_positions(
    flags: Tensor, mask: Tensor | None, pieces: list, grids: list[tuple[int, int]], first: Tensor
) -> Tensor:
    """(3, b, n) positions on time, height and width.

    Text takes one step on all three axes. An image stays at one time; its tokens carry their row and column, counted
    from there; the text behind it goes on after the image's longer side. ``first`` (b,) is where each row starts.
    """
    b, n = flags.shape
    steps = torch.ones(b, n, dtype=torch.int64) if mask is None else mask.cpu().to(torch.int64)
    rows = torch.zeros(b, n, dtype=torch.int64)
    columns = torch.zeros(b, n, dtype=torch.int64)
    for (row, start, stop), (h, w) in zip(pieces, grids, strict=True):
        steps[row, start:stop] = 0
        steps[row, stop - 1] = max(h, w)
        rows[row, start:stop] = torch.arange(h).repeat_interleave(w)
        columns[row, start:stop] = torch.arange(w).repeat(h)
    before = steps.cumsum(dim=1) - steps + first.cpu()[:, None]
    return torch.stack([before, before + rows, before + columns]).to(flags.device)
