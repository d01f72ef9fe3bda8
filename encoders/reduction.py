"""Token reduction: functions from more features to fewer, each with a stated ratio.

pixel_shuffle     squares of neighbouring patches become one token                     factor^2 to 1
tubelets          frames that share their patches (in the stem, see encoders.vision)   tubelet to 1
retention_mask    EVS: tokens that hardly differ from the frame before are left out    1 to 1 - rate
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

MAX_RATE = 0.99


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


def retained(frames: int, tokens: int, rate: float) -> int:
    """How many of ``frames`` x ``tokens`` tokens EVS keeps: all of the first frame at least.

    Known before anything is decoded. ``rate`` is the share that is left out.
    """
    check_rate(rate)
    if frames < 1 or tokens < 1:
        raise ValueError(f"a video of {frames} frames of {tokens} tokens is empty")
    return max(tokens, int(frames * tokens * (1 - rate)))


def check_rate(rate: float) -> None:
    """ValueError for a share that cannot be left out."""
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate <= MAX_RATE:
        raise ValueError(f"the pruning rate is {rate!r}; it must lie between 0 and {MAX_RATE}")


def retention_mask(tokens: Tensor, rate: float) -> Tensor:
    """EVS (arXiv 2510.14624): (frames, n, d) -> (frames, n) True at the tokens that stay.

    A token's novelty is 1 - cos to the same place in the frame before, in the tokens' own dtype; the most novel
    :func:`retained` ones stay, earlier ones first where two are equal, and those of the first frame always.
    """
    frames, n, _ = tokens.shape
    keep = retained(frames, n, rate)
    novelty = 1 - F.cosine_similarity(tokens[1:], tokens[:-1], dim=-1)
    novelty = torch.cat([tokens.new_full((1, n), 255.0), novelty]).flatten()
    best = torch.argsort(novelty, descending=True, stable=True)[:keep]
    return torch.zeros_like(novelty, dtype=torch.bool).index_fill_(0, best, True).view(frames, n)
