"""Several looks at one page, answered together.

page ──> itself, and moved or shrunk by a part of a token ──> one row of the cache each
next token = argmax of the mean of the rows' log-probabilities

A small encoder reads a letter in the middle of a token more surely than one that two tokens share. Moving the page
changes which letters those are, so the looks err in different places and their mean less often than each of them.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from omni.cache import Cache
from omni.decoders.autoregressive import Event, Row, generate
from omni.inputs import Inputs, pad_rows
from omni.model import Omni

LOOKS = (  # right and down, in sides of a token; size
    (0.0, 0.0, 1.0),
    (0.125, 0.1875, 1.0),
    (-0.1875, -0.125, 1.0),
    (0.0, 0.0, 0.96),
    (0.1875, -0.1875, 1.0),
    (0.0, 0.0, 0.93),
    (-0.125, 0.25, 1.0),
    (0.3125, 0.0, 1.0),
)


def check_views(views: int) -> None:
    """ValueError for a number of looks that there is not."""
    if isinstance(views, bool) or not isinstance(views, int) or not 1 <= views <= len(LOOKS):
        raise ValueError(f"views is {views!r}; it must be a whole number from 1 to {len(LOOKS)}")


def default_views(model: Omni) -> int:
    """How many looks the checkpoint asks for."""
    return int(model.config.sampling.get("document_views", 1))


def looks(pixels: Tensor, views: int, side: int) -> list[Tensor]:
    """The first ``views`` looks at ``pixels`` (3, H, W) in [0, 1], each of that size; the first is the page itself.

    ``side``: pixels of a token. What moves in from outside has the median colour of the page's border.
    """
    edges = (pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1])
    paper = torch.cat(edges, dim=1).median(dim=1).values[:, None, None]
    return [pixels, *(paper + _moved(pixels - paper, right, down, size, side) for right, down, size in LOOKS[1:views])]


def _moved(pixels: Tensor, right: float, down: float, size: float, side: int) -> Tensor:
    """``pixels`` (3, H, W) shrunk about their middle and moved, zero outside."""
    height, width = pixels.shape[1:]
    # affine_grid wants the way back, from the result to the source, in half widths and half heights.
    back = [
        [1 / size, 0.0, -2 * right * side / width / size],
        [0.0, 1 / size, -2 * down * side / height / size],
    ]
    grid = F.affine_grid(torch.tensor([back], device=pixels.device), [1, *pixels.shape], align_corners=False)
    return F.grid_sample(pixels[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]


def read_views(model: Omni, prefix: Sequence[int], pages: Sequence[Tensor], views: int) -> Cache:
    """The cache behind ``prefix``, the same for pages of one size: a row for each look at each page."""
    side = model.config.vision.token_pixels
    pixels = tuple(look for page in pages for look in looks(page, views, side))
    cache = model.new_cache(len(pixels))
    model.read(Inputs(torch.tensor([list(prefix)] * len(pixels), device=model.device), pixels=pixels), cache, last=0)
    return cache


def choose_rows(cache: Cache, owners: Sequence[int], views: int) -> Cache:
    """The rows of :func:`read_views` of the pages ``owners``, in that order, for :func:`continued`."""
    return cache.select(_expanded(torch.tensor(owners, device=cache.lengths.device), views))


def continued(
    model: Omni, cache: Cache, endings: Sequence[list[int]], rows: Sequence[Row], views: int
) -> list[list[Event]]:
    """What ``rows`` say behind the ``endings`` of their prompts; ``cache`` holds ``views`` looks for each of them."""
    ids, mask = pad_rows([ids for ids in endings for _ in range(views)], pad=0)

    def together(logits: Tensor) -> Tensor:
        return logits[:, -1].log_softmax(-1).unflatten(0, (-1, views)).mean(1)

    def step(tokens: Tensor) -> Tensor:
        return together(model.logits(tokens.repeat_interleave(views)[:, None], cache, last_only=True))

    def keep(going: Tensor) -> None:
        nonlocal cache
        cache = cache.select(_expanded(going, views))

    said: list[list[Event]] = [[] for _ in rows]
    first = together(model.logits(Inputs(ids, mask).to(model.device), cache, last_only=True))
    for event in generate(first, rows, step, keep):
        said[event.row].append(event)
    return said


def _expanded(rows: Tensor, views: int) -> Tensor:
    """Rows of the cache that hold the looks of each of ``rows``."""
    return (rows[:, None] * views + torch.arange(views, device=rows.device)).flatten()
