"""What size a picture is given before it is cut into patches, and how many tokens it then costs.

    (height, width) of the file ──> tiles / dynamic_size / video_frame_size / smart_size ──> (H, W) ──> grid_tokens
    pixels (..., 3, h, w)       ──> resize, or tiled for the tiling rule                 ──> (..., 3, H, W)

Four published rules; all but ``resize`` and ``tiled`` are arithmetic on the header's two numbers, so a server can
count tokens without decoding. ``patch`` is the side of a patch in pixels, ``merge`` the patches along a side that the
projector joins into one token. Rounding is Python's: halves go to the even neighbour, as in the references.
"""

import math

import torch.nn.functional as F
from torch import Tensor

MAX_ASPECT = 200  # of smart_size, from the rule itself


def grid_tokens(size: tuple[int, int], patch: int = 16, merge: int = 2) -> int:
    """Tokens of one picture or frame of (H, W) pixels."""
    return (size[0] // (patch * merge)) * (size[1] // (patch * merge))


# -- tiles of one square size ------------------------------------------------------------------------------


def tiles(height: int, width: int, tile: int = 512, most: int = 12) -> tuple[int, int]:
    """(rows, columns) of the grid of at most ``most`` tiles whose aspect is nearest to the picture's.

    Among grids of the same aspect the larger is taken if the picture has more than half its pixels. The aspect
    alone decides otherwise: a 64 x 48 picture gets 12 tiles, as in the published model.
    """
    _check_size(height, width)
    _check_positive(tile=tile, most=most)
    grids = [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]
    best, gap = (1, 1), math.inf
    for rows, columns in sorted(grids, key=lambda grid: (grid[0] * grid[1], grid[1])):
        distance = abs(width / height - columns / rows)
        fills = height * width > tile * tile * rows * columns / 2
        if distance < gap or (distance == gap and fills):
            best, gap = (rows, columns), distance
    return best


def tiled_tokens(
    height: int, width: int, tile: int = 512, most: int = 12, thumbnail: bool = True, patch: int = 16, merge: int = 2
) -> int:
    """Tokens of a picture that is cut by :func:`tiled`."""
    rows, columns = tiles(height, width, tile, most)
    count = rows * columns
    return (count + (thumbnail and count > 1)) * grid_tokens((tile, tile), patch, merge)


def tiled(pixels: Tensor, tile: int = 512, most: int = 12, thumbnail: bool = True) -> list[Tensor]:
    """(3, h, w) in 0..1 -> tiles (3, tile, tile), row by row; if more than one, the whole picture as one more tile.

    The picture is stretched to the grid, without padding; the resampling's overshoot beyond 0..1 is kept.
    """
    rows, columns = tiles(*pixels.shape[-2:], tile, most)
    large = resize(pixels, (rows * tile, columns * tile))
    cut = [part for row in large.split(tile, dim=-2) for part in row.split(tile, dim=-1)]
    return [*cut, resize(pixels, (tile, tile))] if thumbnail and len(cut) > 1 else cut


# -- near the picture's own size, within a budget of patches -----------------------------------------------


def patch_budget(
    max_model_len: int = 16384, images: int = 1, merge: int = 2, least: int = 1024, most: int = 13312
) -> int:
    """Most patches each picture of a call may have: what the context can hold, within ``least`` and ``most``.

    Every picture gets the whole context as its budget, as in the reference; their sum is not limited here.
    ``most`` 0 means no upper limit.
    """
    budget = max((max_model_len - 4) * merge**2, least * images)  # 4 tokens of the context are kept for the frame
    return max(min(budget, most) if most else budget, least)


def dynamic_size(
    height: int, width: int, patch: int = 16, merge: int = 2, least: int = 1024, most: int = 13312
) -> tuple[int, int]:
    """(H, W) near the picture's own size, of ``least`` to ``most`` patches, sides multiples of ``patch * merge``.

    ``most`` is the budget of :func:`patch_budget`. A side that would get less than one patch within the budget is
    refused with ValueError. The smallest even grid of a very thin picture may exceed the budget, as in the reference.
    """
    _check_size(height, width)
    _check_positive(patch=patch, merge=merge, least=least, most=most)
    rows, columns = round(height / patch + 0.5), round(width / patch + 0.5)
    factor = min(math.sqrt(most / (rows * columns)), 1.0)
    rows, columns = math.floor(factor * rows), math.floor(factor * columns)
    if min(rows, columns) < 1:
        raise ValueError(f"a picture of {height} x {width} pixels is too thin: within {most} patches a side vanishes")
    if most > least and rows * columns < least:
        factor = math.sqrt(least / (rows * columns))
        rows, columns = math.ceil(factor * rows), math.ceil(factor * columns)
    rows = _to_multiple(rows, merge, most // columns)
    columns = _to_multiple(columns, merge, most // rows)
    return rows * patch, columns * patch


def video_frame_size(
    height: int, width: int, patches: int = 1024, patch: int = 16, merge: int = 2, keep_aspect: bool = True
) -> tuple[int, int]:
    """(H, W) of about ``patches`` patches, enlarged or shrunk; a square unless ``keep_aspect``."""
    _check_size(height, width)
    _check_positive(patches=patches, patch=patch, merge=merge)
    if not keep_aspect:
        side = max(merge, math.isqrt(patches) // merge * merge) * patch
        return side, side
    aspect = width / height
    rows, columns = max(round(math.sqrt(patches / aspect)), 1), max(round(math.sqrt(patches * aspect)), 1)
    up = _up(rows, merge), _up(columns, merge)
    if up[0] * up[1] > patches:
        up = max(merge, rows // merge * merge), max(merge, columns // merge * merge)
    return up[0] * patch, up[1] * patch


# -- nearest multiples, within a range of pixels -----------------------------------------------------------


def smart_size(
    height: int, width: int, factor: int = 32, min_pixels: int = 256 * 256, max_pixels: int = 4096 * 4096
) -> tuple[int, int]:
    """(H, W): the nearest multiples of ``factor``, scaled so that H * W lies within ``min_pixels`` and ``max_pixels``.

    The rule for pictures. Sides more than 200 to 1 are refused with ValueError, by the rule.
    """
    _check_size(height, width)
    _check_positive(factor=factor, min_pixels=min_pixels, max_pixels=max_pixels)
    _check_aspect(height, width)
    return _within(height, width, 1, 1, factor, min_pixels, max_pixels)


def smart_frame_size(
    frames: int,
    height: int,
    width: int,
    factor: int = 32,
    min_pixels: int = 128 * 32 * 32,
    max_pixels: int = 768 * 32 * 32,
    temporal: int = 2,
) -> tuple[int, int]:
    """(H, W) of every frame: the pixels of all ``frames`` together lie within ``min_pixels`` and ``max_pixels``.

    The rule for videos, and for pictures where they count as one frame (``frames`` = ``temporal`` = 1): a side
    shorter than ``factor`` is first brought up to it. ``temporal`` frames share a token; there must be as many.
    """
    _check_size(height, width)
    _check_positive(factor=factor, min_pixels=min_pixels, max_pixels=max_pixels, temporal=temporal)
    if frames < temporal:
        raise ValueError(f"{frames} frames are fewer than the {temporal} that share a token; repeat the last")
    if min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    _check_aspect(height, width)
    rounded = round(frames / temporal) * temporal
    return _within(height, width, frames, rounded, factor, min_pixels, max_pixels)


def capped_pixels(
    frames: int, factor: int = 32, min_pixels: int = 128 * 32 * 32, max_pixels: int = 768 * 32 * 32, tokens: int = 768
) -> int:
    """``max_pixels`` for :func:`smart_frame_size` if no frame may cost more than ``tokens`` tokens.

    Without it a clip of few frames spends the whole budget on them. The floor is 1.05 ``min_pixels`` a frame.
    """
    _check_positive(frames=frames)
    return frames * max(min(tokens * factor**2, max_pixels // frames), int(min_pixels * 1.05))


# -- pixels ------------------------------------------------------------------------------------------------


def resize(
    pixels: Tensor, size: tuple[int, int], antialias: bool = True, mode: str = "bicubic", round: bool = False
) -> Tensor:
    """(..., 3, h, w) floats in 0..1 -> (..., 3, H, W); untouched if the size is right already.

    Plain: what the resampling overshoots beyond 0..1 is kept (tiles and the dynamic rule were trained so). With
    ``round`` the values are those of 8-bit pictures, rounded and cut to 0..1 (the smart rules were trained so);
    this runs on the CPU, whose 8-bit arithmetic is the reference, and the result returns to the pixels' device.
    """
    if pixels.ndim < 3 or not pixels.is_floating_point():
        raise ValueError(f"pixels {tuple(pixels.shape)} of {pixels.dtype}; they must be (..., 3, h, w) of floats")
    _check_size(*pixels.shape[-2:])
    _check_size(*size)
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    flat = pixels.reshape(-1, *pixels.shape[-3:])
    if round:
        bytes_ = (flat.cpu() * 255).round().clamp(0, 255).byte()
        flat = F.interpolate(bytes_, size, mode=mode, antialias=antialias).to(pixels.device, pixels.dtype) / 255
    else:
        flat = F.interpolate(flat.float(), size, mode=mode, antialias=antialias).to(pixels.dtype)
    return flat.reshape(*pixels.shape[:-2], *size)


# -- helpers -----------------------------------------------------------------------------------------------


def _within(
    height: int, width: int, frames: int, rounded: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """The counts of frames before and after rounding differ in the rule; both are in the references."""
    rows, columns = round(height / factor), round(width / factor)
    pixels = rounded * rows * columns * factor**2
    if pixels > max_pixels:
        shrink = math.sqrt(frames * height * width / max_pixels)
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
    elif pixels < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        rows, columns = math.ceil(height * grow / factor), math.ceil(width * grow / factor)
    return _at_least_one(rows, factor), _at_least_one(columns, factor)


def _at_least_one(count: int, factor: int) -> int:
    return max(count, 1) * factor


def _to_multiple(count: int, merge: int, most: int) -> int:
    """Up to a multiple of ``merge`` if that stays within ``most``, else down, but not to zero."""
    up = _up(count, merge)
    return up if up == count or up <= most else max(merge, count // merge * merge)


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"a picture of {height} x {width} pixels; each side must have at least 1")


def _check_aspect(height: int, width: int) -> None:
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(f"a picture of {height} x {width} pixels is too thin; its sides may be {MAX_ASPECT} to 1")


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
