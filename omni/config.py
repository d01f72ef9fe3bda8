"""Configuration: one frozen dataclass per module, nested the way the modules are.

Shape letters, used in every docstring and comment of the project:

    b  batch (rows)            n  tokens of a call         m  cached tokens
    d  d_model                 v  vocabulary               c  convolution channels
    H  query heads             K  key/value heads          p  head_dim
    g  Mamba groups            s  d_state                  e  experts, k active experts
    f  d_ff                    l  latent expert width

Sizes carry the field's names; the spellings of published ``config.json`` files are translated in ``omni.families``.
"""

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field, replace
from typing import Any

from omni.config_action import ActionConfig, Embodiment, Normalizer
from omni.config_checks import (
    MAX_EXPERTS,
    MAX_LAYERS,
    MAX_VOCAB,
    ConfigError,
    check_sizes,
    require,
)
from omni.config_generation import GenerationConfig, WalkConfig
from omni.config_latents import CodecConfig, LatentConfig, SoundLatentConfig, TokenDiffusionConfig
from omni.config_media import MediaConfig, SoundConfig, VisionConfig

LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
"""Pattern letter -> field of :class:`TowerConfig` that holds the mixer's sizes."""


@dataclass(frozen=True, kw_only=True)
class RotaryConfig:
    """Rotary positions; ``sections`` set means three interleaved axes (time, height, width)."""

    theta: float = 10_000.0
    sections: tuple[int, int, int] | None = None  # frequencies per axis (t, h, w); they sum to head_dim / 2

    def __post_init__(self) -> None:
        require(self.theta > 0, f"RotaryConfig.theta is {self.theta}; it must be positive")


@dataclass(frozen=True, kw_only=True)
class MambaConfig:
    """Mamba-2 mixer. ``dt_limit`` clamps the step after softplus; the published models do not clamp."""

    n_heads: int
    head_dim: int  # p
    d_state: int = 128  # s
    n_groups: int = 8  # g: heads of a group share B and C
    d_conv: int = 4
    chunk_size: int = 128
    dt_limit: tuple[float, float] = (0.0, math.inf)
    dt_init: tuple[float, float] = (1e-3, 0.1)  # range of the initial step, log-uniform
    norm_eps: float = 1e-5
    conv_bias: bool = True
    bias: bool = False

    def __post_init__(self) -> None:
        check_sizes(self)
        require(
            self.n_heads % self.n_groups == 0,
            f"MambaConfig.n_heads is {self.n_heads}; it must be a multiple of n_groups, {self.n_groups}",
        )
        low, high = self.dt_limit
        require(0 <= low < high, f"MambaConfig.dt_limit is {self.dt_limit}; it must be 0 <= low < high")

    @property
    def d_inner(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def conv_dim(self) -> int:  # c: x, B and C pass through the convolution together
        return self.d_inner + 2 * self.n_groups * self.d_state

    @property
    def d_in_proj(self) -> int:  # z, xBC, dt
        return self.d_inner + self.conv_dim + self.n_heads


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Grouped-query attention. ``context_norm``: a denoiser re-normalises the keys that it reads from its context."""

    n_heads: int  # H
    n_kv_heads: int  # K
    head_dim: int  # p
    rotary: RotaryConfig | None = None
    qk_norm: bool = False  # RMSNorm over each head's channels, before rotary
    context_norm: bool = False
    norm_eps: float = 1e-6
    bias: bool = False

    def __post_init__(self) -> None:
        check_sizes(self)
        require(
            self.n_heads % self.n_kv_heads == 0,
            f"AttentionConfig.n_heads is {self.n_heads}; it must be a multiple of n_kv_heads, {self.n_kv_heads}",
        )
        if self.rotary is not None:
            require(self.head_dim % 2 == 0, f"rotary needs an even head_dim, not {self.head_dim}")
            sections = self.rotary.sections
            total = sum(sections) if sections else self.head_dim // 2
            require(
                total == self.head_dim // 2,
                f"RotaryConfig.sections sum to {total}; with head_dim {self.head_dim} it must be {self.head_dim // 2}",
            )


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    d_ff: int
    activation: str = "relu2"  # "relu2": down(relu(up x)^2); "silu": down(silu(gate x) * up x)
    bias: bool = False

    def __post_init__(self) -> None:
        check_sizes(self)
        require(
            self.activation in ("relu2", "silu"),
            f"MLPConfig.activation is {self.activation!r}; known: relu2, silu",
        )


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """Routed experts with one shared expert; ``d_latent`` set means LatentMoE (arXiv 2601.18089)."""

    n_experts: int  # e
    n_active_experts: int  # k
    d_ff: int  # f, of one routed expert
    d_shared: int  # width of the shared expert
    d_latent: int | None = None  # l
    n_expert_groups: int = 1
    n_active_groups: int = 1
    normalize: bool = True  # weights of the chosen experts sum to one before scaling
    scale: float = 1.0
    bias_update: float = 1e-3  # u of the loss-free balancing rule
    balance_loss: float = 1e-4

    def __post_init__(self) -> None:
        check_sizes(self, n_experts=MAX_EXPERTS)
        require(
            self.n_active_experts <= self.n_experts,
            f"MoEConfig.n_active_experts is {self.n_active_experts}; there are {self.n_experts} experts",
        )
        require(
            self.n_experts % self.n_expert_groups == 0 and self.n_active_groups <= self.n_expert_groups,
            f"{self.n_experts} experts do not divide into {self.n_expert_groups} groups, {self.n_active_groups} active",
        )
        per_group = self.n_experts // self.n_expert_groups
        require(
            self.n_active_experts <= per_group * self.n_active_groups,
            f"{self.n_active_experts} active experts do not fit in {self.n_active_groups} groups of {per_group}",
        )
        require(
            self.n_expert_groups == 1 or per_group >= 2,
            f"group-limited routing ranks a group by its two best experts; groups here hold {per_group}",
        )


@dataclass(frozen=True, kw_only=True)
class TimeConfig:
    """How a denoiser learns the noise level: ``"input"`` adds to its noisy tokens, ``"adaln"`` modulates its layers."""

    mode: str  # "input" (Cosmos 3) or "adaln" (TwoTower, adaLN-single)
    n_frequencies: int = 128  # sinusoid of width 2 * n_frequencies
    scale: float = 1000.0  # t in [0, 1] is multiplied by this before the sinusoid

    def __post_init__(self) -> None:
        check_sizes(self)
        require(self.mode in ("input", "adaln"), f"TimeConfig.mode is {self.mode!r}; known: input, adaln")


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """A stack of layers ``x + mixer(norm(x))``, one mixer per pattern letter (``M``, ``*``, ``-``, ``E``)."""

    pattern: str
    d_model: int
    norm_eps: float = 1e-5
    mamba: MambaConfig | None = None
    attention: AttentionConfig | None = None
    mlp: MLPConfig | None = None
    moe: MoEConfig | None = None
    time: TimeConfig | None = None
    residual_fp32: bool = False

    def __post_init__(self) -> None:
        check_sizes(self)
        unknown = sorted(set(self.pattern) - set(LETTERS))
        require(not unknown, f"pattern letters {unknown} are unknown; known: {' '.join(LETTERS)}")
        require(
            1 <= len(self.pattern) <= MAX_LAYERS,
            f"the pattern has {len(self.pattern)} layers; it must have 1 to {MAX_LAYERS}",
        )
        for letter in sorted(set(self.pattern)):
            part = LETTERS[letter]
            require(
                getattr(self, part) is not None,
                f"the pattern uses {letter!r} but TowerConfig.{part} is not set",
            )

    @property
    def n_layers(self) -> int:
        return len(self.pattern)

    def mixer(self, layer: int) -> MambaConfig | AttentionConfig | MLPConfig | MoEConfig:
        """Sizes of the mixer at ``layer``."""
        return getattr(self, LETTERS[self.pattern[layer]])


@dataclass(frozen=True, kw_only=True)
class MTPConfig:
    """Multi-token prediction: one block, applied again for every further token; sizes are the context tower's."""

    pattern: str = "*E"
    loss_scale: float = 0.3
    depth: int = 2  # tokens predicted ahead in training

    def __post_init__(self) -> None:
        check_sizes(self)
        require(
            self.pattern != "" and set(self.pattern) <= set(LETTERS),
            f"MTP pattern {self.pattern!r} is unknown",
        )


@dataclass(frozen=True, kw_only=True)
class OmniConfig:
    """A whole system: what is ``None`` is absent."""

    vocab_size: int
    context: TowerConfig
    tie_embeddings: bool = False
    mtp: MTPConfig | None = None
    vision: VisionConfig | None = None
    sound: SoundConfig | None = None
    media: MediaConfig = field(default_factory=MediaConfig)
    denoiser: TowerConfig | None = None
    diffusion: TokenDiffusionConfig | None = None  # of tokens
    latent: LatentConfig | None = None
    sound_latent: SoundLatentConfig | None = None
    action: ActionConfig | None = None
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    max_positions: int = 131_072
    special_tokens: dict[str, int | list[int]] = field(default_factory=dict)  # bos, eos, pad, image, mask ...
    sampling: dict[str, float] = field(default_factory=dict)  # defaults of the checkpoint: temperature, top_p ...

    def __post_init__(self) -> None:
        check_sizes(self, vocab_size=MAX_VOCAB, max_positions=1 << 40)
        if self.denoiser is not None:
            require(
                self.denoiser.pattern == self.context.pattern,
                f"the denoiser's pattern {self.denoiser.pattern!r} is not the context's {self.context.pattern!r}: "
                "its layer i reads the cache of context layer i",
            )
        require(
            self.latent is None or self.denoiser is not None,
            "image latents are set but there is no denoiser tower",
        )
        self._check_diffusion()
        require(
            self.latent is not None or (self.sound_latent is None and self.action is None),
            "sound latents and actions are denoised beside those of a video: set LatentConfig too",
        )
        targets = [layer for _, layer in self.vision.deepstack] if self.vision else []
        require(
            all(0 <= layer < self.context.n_layers for layer in targets),
            f"VisionConfig.deepstack adds behind the context layers {targets}; there are {self.context.n_layers}",
        )

    def _check_diffusion(self) -> None:
        if self.diffusion is None:
            return
        require(self.denoiser is not None, "tokens are to be denoised but there is no denoiser tower")
        mask = self.special_tokens.get("mask")
        require(
            isinstance(mask, int) and 0 <= mask < self.vocab_size,
            f"special_tokens['mask'] is {mask!r}; where tokens are denoised it must be an id from 0 to "
            f"{self.vocab_size - 1}",
        )


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain JSON types; absent parts are left out."""
    plain = dataclasses.asdict(config)

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items() if v is not None}
        if isinstance(value, (list, tuple)):
            return [clean(v) for v in value]
        if isinstance(value, float) and math.isinf(value):
            return "inf"  # JSON has no infinity
        return value

    return clean(plain)


def _part(hint: Any) -> type | None:
    """The configuration that a field holds, if it holds one (or None)."""
    options = (hint, *typing.get_args(hint)) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return next((option for option in options if dataclasses.is_dataclass(option)), None)


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value read from a file has the type that its field declares; a whole number will do for a float."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(argument, value) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        arguments = (arguments[0],) * len(value) if arguments[-1] is Ellipsis else arguments
        return len(value) == len(arguments) and all(map(_fits, arguments, value))
    if origin is list:
        return isinstance(value, list) and all(_fits(arguments[0], v) for v in value)
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(k, str) and _fits(arguments[1], v) for k, v in value.items())
    if hint in (int, float):
        return isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint)


def _tuple(values: list) -> tuple:
    """JSON's lists, also nested ones, as the tuples they were written from."""
    return tuple(_tuple(v) if isinstance(v, list) else math.inf if v == "inf" else v for v in values)


def from_dict(cls: type, plain: dict[str, Any]) -> Any:
    """Inverse of :func:`to_dict`. An unknown key is an error that lists the known ones."""
    known = {item.name for item in dataclasses.fields(cls)}
    unknown = sorted(set(plain) - known)
    require(not unknown, f"{cls.__name__} has no fields {unknown}; known: {sorted(known)}")
    hints = typing.get_type_hints(cls)
    values = {}
    for name, value in plain.items():
        part, item = _part(hints[name]), _part((*typing.get_args(hints[name]), None)[0])
        if part is not None and isinstance(value, dict):
            value = from_dict(part, value)
        elif item is not None and isinstance(value, list) and all(isinstance(v, dict) for v in value):
            value = tuple(from_dict(item, v) for v in value)
        elif isinstance(value, list) and name not in ("special_tokens",):
            value = _tuple(value)
        require(_fits(hints[name], value), f"{cls.__name__}.{name} is {value!r}; it must be {hints[name]}")
        values[name] = value
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{cls.__name__}: {error}") from None


__all__ = [
    "LETTERS",
    "ActionConfig",
    "AttentionConfig",
    "CodecConfig",
    "ConfigError",
    "Embodiment",
    "GenerationConfig",
    "LatentConfig",
    "MLPConfig",
    "MTPConfig",
    "MambaConfig",
    "MediaConfig",
    "MoEConfig",
    "Normalizer",
    "OmniConfig",
    "RotaryConfig",
    "SoundConfig",
    "TimeConfig",
    "TokenDiffusionConfig",
    "TowerConfig",
    "VisionConfig",
    "WalkConfig",
    "from_dict",
    "replace",
    "to_dict",
]
