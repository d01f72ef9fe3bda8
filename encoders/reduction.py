"""Token reduction: functions from more features to fewer, each with a stated ratio."""

from einops import rearrange
from torch import Tensor


def pixel_shuffle(features: Tensor, grid: tuple[int, int], factor: int) -> Tensor:
    """``factor`` x ``factor`` neighbouring patches become one token; ratio ``factor**2``.

    (b, h w, d) with grid (h, w) -> (b, h w / factor^2, factor^2 d). Rows stay rows ("v2" of the published code): the
    new channels are the neighbours (0, 0), (0, 1), (1, 0), (1, 1) in that order. Raises ValueError when the grid
    does not divide.
    """
    h, w = grid
    if h % factor or w % factor:
        raise ValueError(f"a grid of {h}x{w} patches does not divide into {factor}x{factor} squares")
    return rearrange(features, "b (h y w x) d -> b (h w) (y x d)", h=h // factor, y=factor, x=factor)
