"""One mixer per file. A mixer maps (b, n, d) to (b, n, d) given a :class:`Layout` and, perhaps, its slot of a cache.

``slot`` is what the layer remembers and extends; ``context`` is the slot of the same layer of another tower, read and
never written. ``MIXERS`` is read by the pattern string.
"""

from omni.mixers.attention import Attention
from omni.mixers.layout import Layout
from omni.mixers.mamba import Mamba
from omni.mixers.mlp import MLP
from omni.mixers.moe import MoE

MIXERS = {"M": Mamba, "*": Attention, "-": MLP, "E": MoE}

__all__ = ["MIXERS", "MLP", "Attention", "Layout", "Mamba", "MoE"]
