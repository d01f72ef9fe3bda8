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

LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
"""Pattern letter -> field of :class:`TowerConfig` that holds the mixer's sizes."""

MAX_WIDTH = 1 << 20
MAX_LAYERS = 4096
MAX_EXPERTS = 1 << 16
MAX_VOCAB = 1 << 24
MAX_SIDE = 1 << 12  # of a table of positions


class ConfigError(ValueError):
    """A configuration that cannot be built: names the field, its value and the limit."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _check_sizes(config: Any, limit: int = MAX_WIDTH, **named_limits: int) -> None:
    """Every int field must lie in 1..limit (bools are left alone), so that no absurd size is ever allocated."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        top = named_limits.get(item.name, limit)
        where = f"{type(config).__name__}.{item.name}"
        _require(1 <= value <= top, f"{where} is {value}; it must lie between 1 and {top}")


def _require_known(config: Any, **choices: tuple[str, ...]) -> None:
    for name, known in choices.items():
        value = getattr(config, name)
        where = f"{type(config).__name__}.{name}"
        _require(value in known, f"{where} is {value!r}; known: {', '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class RotaryConfig:
    """Rotary positions; ``sections`` set means three interleaved axes (time, height, width)."""

    theta: float = 10_000.0
    sections: tuple[int, int, int] | None = None  # frequencies per axis (t, h, w); they sum to head_dim / 2

    def __post_init__(self) -> None:
        _require(self.theta > 0, f"RotaryConfig.theta is {self.theta}; it must be positive")


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
        _check_sizes(self)
        _require(
            self.n_heads % self.n_groups == 0,
            f"MambaConfig.n_heads is {self.n_heads}; it must be a multiple of n_groups, {self.n_groups}",
        )
        low, high = self.dt_limit
        _require(0 <= low < high, f"MambaConfig.dt_limit is {self.dt_limit}; it must be 0 <= low < high")

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
        _check_sizes(self)
        _require(
            self.n_heads % self.n_kv_heads == 0,
            f"AttentionConfig.n_heads is {self.n_heads}; it must be a multiple of n_kv_heads, {self.n_kv_heads}",
        )
        if self.rotary is not None:
            _require(self.head_dim % 2 == 0, f"rotary needs an even head_dim, not {self.head_dim}")
            sections = self.rotary.sections
            total = sum(sections) if sections else self.head_dim // 2
            _require(
                total == self.head_dim // 2,
                f"RotaryConfig.sections sum to {total}; with head_dim {self.head_dim} it must be {self.head_dim // 2}",
            )


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    d_ff: int
    activation: str = "relu2"  # "relu2": down(relu(up x)^2); "silu": down(silu(gate x) * up x)
    bias: bool = False

    def __post_init__(self) -> None:
        _check_sizes(self)
        _require(
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
        _check_sizes(self, n_experts=MAX_EXPERTS)
        _require(
            self.n_active_experts <= self.n_experts,
            f"MoEConfig.n_active_experts is {self.n_active_experts}; there are {self.n_experts} experts",
        )
        _require(
            self.n_experts % self.n_expert_groups == 0 and self.n_active_groups <= self.n_expert_groups,
            f"{self.n_experts} experts do not divide into {self.n_expert_groups} groups, {self.n_active_groups} active",
        )
        per_group = self.n_experts // self.n_expert_groups
        _require(
            self.n_active_experts <= per_group * self.n_active_groups,
            f"{self.n_active_experts} active experts do not fit in {self.n_active_groups} groups of {per_group}",
        )
        _require(
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
        _check_sizes(self)
        _require(self.mode in ("input", "adaln"), f"TimeConfig.mode is {self.mode!r}; known: input, adaln")


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
        _check_sizes(self)
        unknown = sorted(set(self.pattern) - set(LETTERS))
        _require(not unknown, f"pattern letters {unknown} are unknown; known: {' '.join(LETTERS)}")
        _require(
            1 <= len(self.pattern) <= MAX_LAYERS,
            f"the pattern has {len(self.pattern)} layers; it must have 1 to {MAX_LAYERS}",
        )
        for letter in sorted(set(self.pattern)):
            part = LETTERS[letter]
            _require(
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
        _check_sizes(self)
        _require(
            self.pattern != "" and set(self.pattern) <= set(LETTERS),
            f"MTP pattern {self.pattern!r} is unknown",
        )


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Vision transformer, pixel shuffle and projector. The defaults are RADIO's; the other towers differ in a field.

    A unit is what attends to itself: an image, or ``tubelet`` frames of a video that share their patches.
    """

    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    patch_size: int = 16
    n_prefix: int = 10  # summary and register tokens
    max_grid: int = 128  # side of the position table, in patches
    shuffle: int = 2  # pixel shuffle: shuffle x shuffle patches become one token
    d_projector: int = 0  # hidden width of the projector; 0 means 4 * shuffle^2 * d_model
    norm_eps: float = 1e-6
    stem: str = "linear"  # "linear": one matrix per patch (published); "conv": a short strided convolution stack
    stem_bias: bool = False
    tubelet: int = 1  # frames of a video behind one patch
    video_stem: bool = False  # tubelets have a stem of their own; otherwise an image is repeated to a tubelet
    positions: str = "cropped"  # how the table fits a grid: "cropped" (RADIO), "interpolated" (Qwen3-VL), "resized"
    rotary_theta: float = 0.0  # rotary positions on rows and columns besides the table; 0: none
    activation: str = "gelu"  # "gelu" (exact) or "gelu_tanh"
    final_norm: bool = False
    projector: str = "relu2"  # "relu2": RMSNorm, no biases; "gelu": LayerNorm of each patch, biases
    deepstack: tuple[tuple[int, int], ...] = ()  # (vision layer, context layer behind which its features are added)
    open_clip: str = ""  # name of an open_clip tower that takes the transformer's place
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layers", "n_heads", "d_ff", "patch_size", "max_grid", "shuffle", "tubelet"):
            value = getattr(self, name)
            _require(
                1 <= value <= MAX_WIDTH,
                f"VisionConfig.{name} is {value}; it must lie between 1 and {MAX_WIDTH}",
            )
        _require(
            self.d_model % self.n_heads == 0,
            f"{self.d_model} channels do not divide into {self.n_heads} heads",
        )
        _require_known(self, stem=("linear", "conv"), positions=("cropped", "interpolated", "resized"))
        _require_known(self, activation=("gelu", "gelu_tanh"), projector=("relu2", "gelu"))
        _require(
            self.tubelet > 1 or not self.video_stem,
            f"VisionConfig.video_stem needs a tubelet of several frames, not {self.tubelet}",
        )
        layers = [layer for layer, _ in self.deepstack]
        _require(
            layers == sorted(set(layers)) and all(0 <= layer < self.n_layers for layer in layers),
            f"VisionConfig.deepstack taps the layers {layers}; they must rise and lie below {self.n_layers}",
        )

    @property
    def token_pixels(self) -> int:
        """Side of the square of pixels behind one token of the language model."""
        return self.patch_size * self.shuffle


@dataclass(frozen=True, kw_only=True)
class SoundConfig:
    """FastConformer encoder behind a log-mel front end (Parakeet), and its projector."""

    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    conv_kernel: int = 9  # of the depthwise convolution in every block
    conv_bias: bool = False
    bias: bool = False  # of attention and feed-forward matrices
    scale_input: bool = False  # multiply what enters the blocks by sqrt(d_model)
    n_mels: int = 128
    subsampling: int = 8  # frames of 10 ms behind one token; a power of two
    channels: int = 256  # of the subsampling convolutions
    d_projector: int = 4096
    norm_eps: float = 1e-5
    sampling_rate: int = 16_000
    clip_seconds: float = 30.0  # longer recordings are encoded in clips of this length; 0: whole
    last_frame: bool = (
        False  # count the frame that the centred transform adds behind the last hop, as transformers does
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "clip_seconds", float(self.clip_seconds))
        _check_sizes(self)
        _require(
            self.d_model % self.n_heads == 0,
            f"{self.d_model} channels do not divide into {self.n_heads} heads",
        )
        _require(
            self.subsampling >= 2 and self.subsampling & (self.subsampling - 1) == 0,
            f"SoundConfig.subsampling is {self.subsampling}; it must be a power of two, at least 2",
        )
        _require(
            self.conv_kernel % 2 == 1,
            f"SoundConfig.conv_kernel is {self.conv_kernel}; it must be odd",
        )
        _require(self.clip_seconds >= 0, f"SoundConfig.clip_seconds is {self.clip_seconds}; it must not be negative")


@dataclass(frozen=True, kw_only=True)
class MediaConfig:
    """How images, videos and sounds become tokens: sizes, samples, and the text around their placeholders.

    In the texts ``{run}`` stands for a run of placeholders. Sizes are in pixels of the side or in patches.
    """

    image: str = "fit"  # "fit", "tiles" (Nano V2 VL), "dynamic" (Nano Omni), "smart" (Qwen)
    image_text: str = "{run}"
    tile: int = 512
    max_tiles: int = 12
    min_patches: int = 1024
    max_patches: int = 13_312
    min_pixels: int = 65_536  # of "smart"
    max_pixels: int = 16_777_216
    video_text: str = "{label}{run}"  # of one frame or tubelet
    video_join: str = ""
    video_mark: str = ""  # what the chat template writes for a video; "": its placeholder
    video_label: str = "time"  # "time" (omni-tiny), "frame" (Nano V2 VL), "tubelet" (Nano Omni), "seconds" (Qwen)
    video_size: str = "fit"  # "fit", "tile" (squashed to one), "patches" (Nano Omni), "smart"
    video_patches: int = 1024  # most patches of a frame, of "patches"
    video_min_pixels: int = 4_096  # of all frames together, of "smart"
    video_max_pixels: int = 25_165_824
    fps: float = 2.0
    max_frames: int = 128
    min_frames: int = 1
    sound_text: str = "{run}"
    max_context: int = 16_384  # tokens that the budget of "dynamic" is reckoned from

    def __post_init__(self) -> None:
        _check_sizes(self, limit=1 << 32)
        _require_known(self, image=("fit", "tiles", "dynamic", "smart"), video_size=("fit", "tile", "patches", "smart"))
        _require_known(self, video_label=("time", "frame", "tubelet", "seconds"))
        _require(self.fps > 0, f"MediaConfig.fps is {self.fps}; it must be positive")


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """A linear codec between pixels and latents: principal components of patches."""

    channels: int = 24
    factor: int = 8  # pixels behind one latent, along a side

    def __post_init__(self) -> None:
        _check_sizes(self)
        most = 3 * self.factor**2
        _require(
            self.channels <= most,
            f"CodecConfig.channels is {self.channels}; a patch of {self.factor} holds {most} numbers",
        )


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Image latents that the denoiser refines: grid of ``size / patch_size`` tokens of ``channels`` numbers."""

    patch_size: int
    channels: int
    image_size: int = 64  # side, in pixels, that the weights were trained at
    prediction: str = "velocity"  # what the head says: "velocity" (noise - data), or "sample" (the clean latents)
    position_offset: int = 15_000  # of the latents' time axis behind the prompt (Cosmos 3)
    codec: CodecConfig | None = None  # None: the latents are the pixels
    max_grid: int = 0  # side of the learned table of positions, in tokens; 0: none, as Cosmos 3

    def __post_init__(self) -> None:
        _require(
            0 <= self.max_grid <= MAX_SIDE,
            f"LatentConfig.max_grid is {self.max_grid}; it must lie between 0 and {MAX_SIDE}",
        )
        for name in ("patch_size", "channels", "image_size"):
            value = getattr(self, name)
            _require(
                1 <= value <= MAX_WIDTH,
                f"LatentConfig.{name} is {value}; it must lie between 1 and {MAX_WIDTH}",
            )
        known = ("velocity", "sample")
        _require(
            self.prediction in known,
            f"LatentConfig.prediction is {self.prediction!r}; known: {', '.join(known)}",
        )

    @property
    def token_dim(self) -> int:
        return self.channels * self.patch_size**2

    @property
    def token_pixels(self) -> int:
        """Side, in pixels, of what one token shows."""
        return self.patch_size * (self.codec.factor if self.codec else 1)


@dataclass(frozen=True, kw_only=True)
class OmniConfig:
    """A whole system: what is ``None`` is absent."""

    vocab_size: int
    context: TowerConfig
    tie_embeddings: bool = False
    mtp: MTPConfig | None = None
    vision: VisionConfig | None = None
    sound: SoundConfig | None = None
    media: MediaConfig = MediaConfig()
    denoiser: TowerConfig | None = None
    latent: LatentConfig | None = None
    max_positions: int = 131_072
    special_tokens: dict[str, int | list[int]] = field(default_factory=dict)  # bos, eos, pad, image, mask ...
    sampling: dict[str, float] = field(default_factory=dict)  # defaults of the checkpoint: temperature, top_p ...

    def __post_init__(self) -> None:
        _check_sizes(self, vocab_size=MAX_VOCAB, max_positions=1 << 40)
        if self.denoiser is not None:
            _require(
                self.denoiser.pattern == self.context.pattern,
                f"the denoiser's pattern {self.denoiser.pattern!r} is not the context's {self.context.pattern!r}: "
                "its layer i reads the cache of context layer i",
            )
        _require(
            self.latent is None or self.denoiser is not None,
            "image latents are set but there is no denoiser tower",
        )
        targets = [layer for _, layer in self.vision.deepstack] if self.vision else []
        _require(
            all(0 <= layer < self.context.n_layers for layer in targets),
            f"VisionConfig.deepstack adds behind the context layers {targets}; there are {self.context.n_layers}",
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


_NESTED = {
    "context": TowerConfig,
    "denoiser": TowerConfig,
    "mtp": MTPConfig,
    "vision": VisionConfig,
    "sound": SoundConfig,
    "media": MediaConfig,
    "latent": LatentConfig,
    "codec": CodecConfig,
    "mamba": MambaConfig,
    "attention": AttentionConfig,
    "mlp": MLPConfig,
    "moe": MoEConfig,
    "time": TimeConfig,
    "rotary": RotaryConfig,
}


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
    _require(not unknown, f"{cls.__name__} has no fields {unknown}; known: {sorted(known)}")
    hints = typing.get_type_hints(cls)
    values = {}
    for name, value in plain.items():
        if name in _NESTED and isinstance(value, dict):
            value = from_dict(_NESTED[name], value)
        elif isinstance(value, list) and name not in ("special_tokens",):
            value = _tuple(value)
        _require(_fits(hints[name], value), f"{cls.__name__}.{name} is {value!r}; it must be {hints[name]}")
        values[name] = value
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{cls.__name__}: {error}") from None


__all__ = [
    "LETTERS",
    "AttentionConfig",
    "CodecConfig",
    "ConfigError",
    "LatentConfig",
    "MLPConfig",
    "MTPConfig",
    "MambaConfig",
    "MediaConfig",
    "MoEConfig",
    "OmniConfig",
    "RotaryConfig",
    "SoundConfig",
    "TimeConfig",
    "TowerConfig",
    "VisionConfig",
    "from_dict",
    "replace",
    "to_dict",
]
