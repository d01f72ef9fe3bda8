"""From encoder features to the language model's width: RMSNorm -> Linear -> squared ReLU -> Linear, no biases."""

import torch.nn.functional as F
from torch import Tensor, nn

from omni.layers import RMSNorm


class Projector(nn.Module):
    """(..., d_in) -> (..., d_out): ``mlp1`` of Nano V2 VL and Nano Omni."""

    def __init__(self, d_in: int, d_hidden: int, d_out: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = RMSNorm(d_in, eps)
        self.up_proj = nn.Linear(d_in, d_hidden, bias=False)
        self.down_proj = nn.Linear(d_hidden, d_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.relu(self.up_proj(self.norm(x))).square())
