"""From encoder features to the language model's width.

    patches (h w, d) -> shuffle x shuffle neighbours side by side (n, shuffle^2 d) -> norm -> Linear -> act -> Linear

"relu2": RMSNorm of the joined vector, squared ReLU, no biases (``mlp1`` of Nano V2 VL and Nano Omni).
"gelu": LayerNorm of each patch, exact GELU, biases (the merger of Qwen3-VL, the projector of Cosmos 3 Edge).
Features of tapped layers (DeepStack) have a "gelu" projector of their own each, whose LayerNorm takes the joined
vector. Sources: transformers' NemotronH_Omni, Qwen3VLVisionPatchMerger, Cosmos3EdgePatchMerger.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.config import VisionConfig
from omni.encoders.reduction import pixel_shuffle
from omni.encoders.vision import Features, Grid
from omni.layers import RMSNorm

LAYER_NORM_EPS = 1e-6


class Projector(nn.Module):
    """(..., d_in) -> (..., d_out).

    kind "relu2" is described above, and ``eps`` is its norm's. In kind "gelu" every ``d_norm`` channels of the input
    (0: all of them) are normed by one LayerNorm.
    """

    def __init__(
        self, d_in: int, d_hidden: int, d_out: int, eps: float = 1e-5, *, kind: str = "relu2", d_norm: int = 0
    ) -> None:
        super().__init__()
        self.d_norm = d_norm or d_in
        self.norm = RMSNorm(d_in, eps) if kind == "relu2" else nn.LayerNorm(self.d_norm, eps=LAYER_NORM_EPS)
        self.activation = {"relu2": _relu2, "gelu": F.gelu}[kind]
        self.up_proj = nn.Linear(d_in, d_hidden, bias=kind == "gelu")
        self.down_proj = nn.Linear(d_hidden, d_out, bias=kind == "gelu")

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x.unflatten(-1, (-1, self.d_norm))).flatten(-2)
        return self.down_proj(self.activation(self.up_proj(normed)))


class Connector(Projector):
    """Pixel shuffle and projector of ``config``, with a projector more for every tapped layer."""

    def __init__(self, config: VisionConfig, d_out: int) -> None:
        joined = config.shuffle**2 * config.d_model
        sizes = joined, config.d_projector or 4 * joined, d_out
        d_norm = {"relu2": joined, "gelu": config.d_model}[config.projector]
        super().__init__(*sizes, kind=config.projector, d_norm=d_norm)
        self.shuffle = config.shuffle
        self.deepstack = nn.ModuleList(Projector(*sizes, kind="gelu") for _ in config.deepstack)

    def forward(self, features: Features) -> Tensor:
        """One unit -> tokens (n, d_out), n = h w / shuffle^2; with taps (1 + taps, n, d_out), the tokens first."""
        tokens = self.project(features.patches[None], features.grid)
        if not self.deepstack:
            return tokens[0]
        taps = zip(self.deepstack, features.taps, strict=True)
        stacked = [merge(pixel_shuffle(tap[None], features.grid, self.shuffle)) for merge, tap in taps]
        return torch.cat([tokens, *stacked])

    def project(self, patches: Tensor, grid: Grid) -> Tensor:
        """Units of one size: patches (b, h w, d) -> tokens (b, n, d_out)."""
        return super().forward(pixel_shuffle(patches, grid, self.shuffle))


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()
