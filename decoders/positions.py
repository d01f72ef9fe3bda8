"""Rotary positions (time, row, column) of what is denoised, behind a prompt.

    token i of a stream     time = first + (i + start) / rate * positions a second

All streams begin at the same time. A rate is that of the tokens: the frames a second over the frames behind a token.
Source: ``reference`` cosmos3, section 2.3.
"""

import torch
from torch import Tensor


def stream_positions(
    grid: tuple[int, int, int], first: Tensor, rate: Tensor | None, pace: float, start: int = 0
) -> Tensor:
    """(3, b, t h w): of ``grid`` (t, h, w) behind positions ``first`` (b,), at ``rate`` (b,) tokens a second.

    Without a rate, or for a single frame, tokens follow each other by one. Float32 where a rate is given: at the
    published offset of 15,000 positions there are steps of a thousandth left.
    """
    frames, h, w = grid
    index = torch.arange(frames, device=first.device)
    if rate is None or frames == 1:
        time = index + start + first[:, None]
    else:
        time = (index.float() + start) / rate.float()[:, None] * pace + first[:, None]
    rows = torch.arange(h, device=first.device).repeat_interleave(w).repeat(frames)
    columns = torch.arange(w, device=first.device).repeat(h * frames)
    time = time.repeat_interleave(h * w, dim=1)
    return torch.stack([time, *(side.to(time.dtype).expand(len(first), -1) for side in (rows, columns))])
