"""Sizes of the encoders, and how media become tokens; ``omni.config`` has these names too."""

from dataclasses import dataclass

from omni.config_checks import MAX_WIDTH, check_sizes, require, require_known


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
            require(
                1 <= value <= MAX_WIDTH,
                f"VisionConfig.{name} is {value}; it must lie between 1 and {MAX_WIDTH}",
            )
        require(
            self.d_model % self.n_heads == 0,
            f"{self.d_model} channels do not divide into {self.n_heads} heads",
        )
        require_known(self, stem=("linear", "conv"), positions=("cropped", "interpolated", "resized"))
        require_known(self, activation=("gelu", "gelu_tanh"), projector=("relu2", "gelu"))
        require(
            self.tubelet > 1 or not self.video_stem,
            f"VisionConfig.video_stem needs a tubelet of several frames, not {self.tubelet}",
        )
        layers = [layer for layer, _ in self.deepstack]
        require(
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
    last_frame: bool = False  # count the frame that centring adds behind the last hop, as transformers does

    def __post_init__(self) -> None:
        object.__setattr__(self, "clip_seconds", float(self.clip_seconds))
        check_sizes(self)
        require(
            self.d_model % self.n_heads == 0,
            f"{self.d_model} channels do not divide into {self.n_heads} heads",
        )
        require(
            self.subsampling >= 2 and self.subsampling & (self.subsampling - 1) == 0,
            f"SoundConfig.subsampling is {self.subsampling}; it must be a power of two, at least 2",
        )
        require(
            self.conv_kernel % 2 == 1,
            f"SoundConfig.conv_kernel is {self.conv_kernel}; it must be odd",
        )
        require(self.clip_seconds >= 0, f"SoundConfig.clip_seconds is {self.clip_seconds}; it must not be negative")


@dataclass(frozen=True, kw_only=True)
class MediaConfig:
    """How images, videos and sounds become tokens: sizes, samples, and the text around their placeholders.

    In the texts ``{run}`` stands for a run of placeholders. Sizes are in pixels of the side or in patches.
    """

    image: str = "fit"  # "fit", "tiles" (Nano V2 VL), "dynamic" (Nano Omni), "smart" (Qwen), "frame" (Cosmos 3 Edge)
    image_text: str = "{run}"
    tile: int = 512
    max_tiles: int = 12
    min_patches: int = 1024
    max_patches: int = 13_312
    min_pixels: int = 65_536  # of "smart" and "frame"
    max_pixels: int = 16_777_216
    video_text: str = "{label}{run}"  # of one frame or tubelet
    video_join: str = ""
    video_mark: str = ""  # what the chat template writes for a video; "": its placeholder
    video_label: str = "time"  # "time" (omni-tiny), "frame" (Nano V2 VL), "tubelet" (Nano Omni), "seconds" (Qwen)
    video_size: str = "fit"  # "fit", "tile" (squashed to one), "patches" (Nano Omni), "smart"
    video_patches: int = 1024  # most patches of a frame, of "patches"
    video_min_pixels: int = 4_096  # of all frames together, of "smart"
    video_max_pixels: int = 25_165_824
    video_frame_tokens: int | None = None  # most tokens of a frame, of "smart"
    video_plan: str = "moments"  # which frames: "moments" (evenly in time), "uniform" (evenly by number; Qwen)
    fps: float = 2.0
    max_frames: int = 128
    min_frames: int = 1  # of "uniform"
    sound_text: str = "{run}"
    max_context: int = 16_384  # tokens that the budget of "dynamic" is reckoned from

    def __post_init__(self) -> None:
        check_sizes(self, limit=1 << 32)
        require_known(self, image=("fit", "tiles", "dynamic", "smart", "frame"), video_plan=("moments", "uniform"))
        require_known(self, video_size=("fit", "tile", "patches", "smart"))
        require_known(self, video_label=("time", "frame", "tubelet", "seconds"))
        require(self.fps > 0, f"MediaConfig.fps is {self.fps}; it must be positive")
