"""What a shape costs: parameters, and bytes of weights, keys and values, and recurrent states. Nothing is allocated.

    memory = parameters * bytes + batch * (context * keys and values + states)

States are as :func:`omni.cache.cache_bytes` counts them: the recurrent one in float32. Source of the model:
``reference`` generation_and_compression, B.1 and B.3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from omni.cache import cache_bytes
from omni.compress.axes import SHARED_WITH_DENOISER, resized, widths
from omni.config import (
    LETTERS,
    AttentionConfig,
    ConfigError,
    MambaConfig,
    MLPConfig,
    MoEConfig,
    OmniConfig,
    TowerConfig,
    replace,
)
from omni.model import Omni

Mixer = MambaConfig | AttentionConfig | MLPConfig | MoEConfig


@dataclass(frozen=True)
class Use:
    """What has to fit: ``batch`` sequences of ``context`` tokens, ``element`` bytes a number."""

    context: int = 131_072
    batch: int = 1
    element: int = 2

    def __post_init__(self) -> None:
        for name in ("context", "batch", "element"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1 << 40:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least 1")


@dataclass(frozen=True)
class Costs:
    """Of one shape. ``parameters`` and ``active`` are the context tower's, ``total`` the whole system's; then bytes."""

    parameters: int
    active: int
    total: int
    weights: int
    kv: int
    state: int

    @property
    def memory(self) -> int:
        return self.weights + self.kv + self.state


def slot_bytes(letter: str, tower: TowerConfig, use: Use) -> tuple[int, int]:
    """Of one layer's slot of a cache: what grows with the sequence, and what does not."""

    def held(tokens: int) -> int:
        one, two = (replace(tower, pattern=n * letter) for n in (1, 2))
        return cache_bytes(two, use.batch, tokens, use.element) - cache_bytes(one, use.batch, tokens, use.element)

    return held(use.context) - held(0), held(0)


class Slot(NamedTuple):
    """Sizes of a layer, parameters of the denoiser's twin, bytes of the slot of a cache."""

    part: Mixer
    twin: int
    kv: int
    state: int


class Layer(NamedTuple):
    """Of one layer of a letter: parameters, those that a token uses, of the denoiser's twin; bytes of its slot."""

    own: int
    used: int
    twin: int
    kv: int
    state: int


class Ruler:
    """Measures shapes of one system, which is built once, on the meta device."""

    def __init__(self, config: OmniConfig, use: Use) -> None:
        self.config, self.use = config, use
        with torch.device("meta"):
            state = Omni(config).state_dict()
        ends = ("down_proj.weight", "down_proj.bias")
        read = (t for n, t in state.items() if n.startswith(("projector.", "sound_projector.")) and n.endswith(ends))
        self._per_channel = sum(t[0].numel() for t in read)  # of what leads into the residual stream or out of it
        self._per_channel += config.vocab_size * (1 if config.tie_embeddings else 2)
        self._per_layer = 3 * config.denoiser.d_model if _tables(config) else 0
        self._rest = 0  # encoders, heads and the like, which every shape has
        self._rest = sum(tensor.numel() for tensor in state.values()) - self.costs(config).total

    def costs(self, config: OmniConfig) -> Costs:
        """Of a shape that :func:`omni.compress.axes.shaped` made."""
        tower = config.context
        letters = set(tower.pattern) | set(config.mtp.pattern if config.mtp else "")
        layers = {c: self.layer(c, tower.d_model, self.slot(c, getattr(tower, LETTERS[c]))) for c in letters}
        return self.sum(tower.d_model, {c: tower.pattern.count(c) for c in letters}, layers)

    def slot(self, letter: str, part: Mixer) -> Slot:
        """What one layer of these sizes costs besides its own parameters, whatever the channels."""
        tower = replace(self.config.context, **{LETTERS[letter]: part})
        kv, state = slot_bytes(letter, tower, self.use) if letter in "M*" else (0, 0)
        twin = 0
        if self.config.denoiser is not None:
            coupled = {a: s for a, s in widths(tower, letter).items() if a in SHARED_WITH_DENOISER}
            noisy = resized(self.config.denoiser, coupled)
            twin = parameters(letter, noisy.d_model, getattr(noisy, LETTERS[letter]))[0]
        return Slot(part, twin, kv, state)

    def layer(self, letter: str, d: int, slot: Slot) -> Layer:
        """One layer of a context tower of ``d`` channels."""
        return Layer(*parameters(letter, d, slot.part), slot.twin, slot.kv, slot.state)

    def sum(self, d: int, counts: Mapping[str, int], layers: Mapping[str, Layer]) -> Costs:
        """Of ``counts`` layers of each letter, that cost as ``layers`` says, and everything around them."""
        own = d + sum(n * layers[c].own for c, n in counts.items())
        active = d + sum(n * layers[c].used for c, n in counts.items())
        total = self._rest + own + d * self._per_channel
        total += sum(n * (layers[c].twin + self._per_layer) for c, n in counts.items())
        if self.config.mtp is not None:
            total += 3 * d + 2 * d * d + sum(layers[c].own for c in self.config.mtp.pattern)
        use, attention = self.use, self.config.context.attention
        kv = sum(n * layers[c].kv for c, n in counts.items())
        if attention is not None and attention.rotary is not None:
            kv += use.batch * use.context * 3 * 4  # positions of the tokens held
        state = 8 * use.batch + sum(n * layers[c].state for c, n in counts.items())
        return Costs(own, active, total, total * use.element, kv, state)


def _tables(config: OmniConfig) -> bool:
    """Whether each layer has a row of adaLN's table."""
    noisy = config.denoiser
    return noisy is not None and noisy.time is not None and noisy.time.mode == "adaln"


def parameters(letter: str, d: int, part: Mixer) -> tuple[int, int]:
    """Of one layer of ``letter`` with its norm: all parameters, and those that one token uses."""
    whole = d + COUNTS[letter](d, part)
    if letter != "E":
        return whole, whole
    return whole, whole - 2 * (part.n_experts - part.n_active_experts) * part.d_ff * (part.d_latent or d)


def _mamba(d: int, m: MambaConfig) -> int:
    found = d * m.d_in_proj + m.conv_dim * (m.d_conv + m.conv_bias) + 3 * m.n_heads + m.d_inner + m.d_inner * d
    return found + m.bias * (m.d_in_proj + d)


def _attention(d: int, a: AttentionConfig) -> int:
    projected = (a.n_heads + 2 * a.n_kv_heads) * a.head_dim
    norms = (2 * a.qk_norm + a.context_norm) * a.head_dim
    return d * projected + a.n_heads * a.head_dim * d + norms + a.bias * (projected + d)


def _mlp(d: int, m: MLPConfig) -> int:
    gates = 2 if m.activation == "silu" else 1
    return (gates + 1) * d * m.d_ff + m.bias * (gates * m.d_ff + d)


def _moe(d: int, m: MoEConfig) -> int:
    routed = m.n_experts * (d + 1 + 2 * m.d_ff * (m.d_latent or d))  # with the router's row and bias
    return routed + 2 * d * m.d_shared + 2 * d * (m.d_latent or 0)


COUNTS = {"M": _mamba, "*": _attention, "-": _mlp, "E": _moe}
