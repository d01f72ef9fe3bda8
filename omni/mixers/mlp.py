"""Dense feed-forward: ``down(relu(up x)^2)`` (Nemotron-H) or ``down(silu(gate x) * up x)`` (Qwen-style)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.config import MLPConfig
from omni.layers import Linear
from omni.mixers.layout import Layout


class MLP(nn.Module):
    """(b, n, d) -> (b, n, d); every token on its own."""

    def __init__(self, d_model: int, config: MLPConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(d_model, config.d_ff, bias=config.bias) if config.activation == "silu" else None
        self.up_proj = Linear(d_model, config.d_ff, bias=config.bias)
        self.down_proj = Linear(config.d_ff, d_model, bias=config.bias)

    def forward(self, x: Tensor, layout: Layout | None = None, slot: None = None, context: None = None) -> Tensor:
        up = self.up_proj(x)
        fresh = torch.is_grad_enabled()  # else in place: on a CPU new memory costs more than what is computed into it
        if self.gate_proj is None:
            hidden = F.relu(up, inplace=not fresh)
            return self.down_proj(hidden.square() if fresh else hidden.square_())
        gate = F.silu(self.gate_proj(x), inplace=not fresh)
        return self.down_proj(gate * up if fresh else gate.mul_(up))
