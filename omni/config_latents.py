"""What a denoiser tower refines: latents of pictures, videos and sound, tokens; ``omni.config`` has these too."""

from dataclasses import dataclass

from omni.config_checks import MAX_SIDE, MAX_WIDTH, check_sizes, require, require_known

MAX_WINDOW = 1 << 12  # samples of sound behind one column of a log-mel picture
MAX_PATCH = 1 << 10  # numbers of a patch of it, whose covariance is taken
MAX_BLOCK = 1 << 12  # tokens that are denoised together


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """A linear codec between pixels and latents: principal components of patches."""

    channels: int = 24
    factor: int = 8  # pixels behind one latent, along a side
    motion: float = 0.0  # what a video's later frames change since the first, times this; 0: each frame for itself

    def __post_init__(self) -> None:
        check_sizes(self)
        require(0 <= self.motion <= 100, f"CodecConfig.motion is {self.motion}; it must lie between 0 and 100")
        most = 3 * self.factor**2
        require(
            self.channels <= most,
            f"CodecConfig.channels is {self.channels}; a patch of {self.factor} holds {most} numbers",
        )


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Latents of pictures and videos: grid of ``size / patch_size`` tokens of ``channels`` numbers."""

    patch_size: int
    channels: int
    image_size: int = 64  # side, in pixels, that the weights were trained at
    prediction: str = "velocity"  # what the head says: "velocity" (noise - data), or "sample" (the clean latents)
    gain: bool = False  # to a predicted sample the head adds a share, which it says too, of each noisy number
    position_offset: int = 15_000  # of the latents' time axis behind the prompt (Cosmos 3)
    codec: CodecConfig | None = None  # None: the latents are the pixels, or a codec of its own is loaded beside
    max_grid: int = 0  # side of the learned table of positions, in tokens; 0: none, as Cosmos 3
    norm: bool = True  # of the head's own, behind the tower's; Cosmos 3 has none
    frames: int = 1  # of a video behind one latent; the first latent stands for one
    patch_frames: int = 1  # latent frames of a video behind one frame of tokens, but for the first
    clock: int = 0  # frequencies of a learned code of each token's moment, 0 at the first; 0: none, as Cosmos 3
    positions_a_second: float = 6.0  # of a video's time axis: base_fps / frames (Cosmos 3)

    def __post_init__(self) -> None:
        require(
            0 <= self.max_grid <= MAX_SIDE,
            f"LatentConfig.max_grid is {self.max_grid}; it must lie between 0 and {MAX_SIDE}",
        )
        for name in ("patch_size", "channels", "image_size", "frames"):
            value = getattr(self, name)
            require(
                1 <= value <= MAX_WIDTH,
                f"LatentConfig.{name} is {value}; it must lie between 1 and {MAX_WIDTH}",
            )
        require(1 <= self.patch_frames <= 64, f"LatentConfig.patch_frames is {self.patch_frames}; it must be 1 to 64")
        require(0 <= self.clock <= 64, f"LatentConfig.clock is {self.clock}; it must lie between 0 and 64")
        require_known(self, prediction=("velocity", "sample"))
        require(
            not self.gain or self.prediction == "sample",
            f"LatentConfig.gain goes with a prediction of the sample, not of the {self.prediction}",
        )
        _check_pace(self)

    @property
    def token_dim(self) -> int:
        return self.channels * self.patch_size**2

    @property
    def token_pixels(self) -> int:
        """Side, in pixels, of what one token shows."""
        return self.patch_size * (self.codec.factor if self.codec else 1)


@dataclass(frozen=True, kw_only=True)
class MelConfig:
    """A codec between mono sound and latents: principal components of log-mel patches."""

    channels: int = 32
    rate: int = 16_000  # samples a second
    hop: int = 640  # samples behind one latent
    columns: int = 4  # of the log-mel picture behind one latent
    bands: int = 64
    window: int = 512  # samples of one column

    def __post_init__(self) -> None:
        check_sizes(self)
        require(
            self.hop % self.columns == 0 and self.step <= self.window // 2,
            f"MelConfig.hop is {self.hop}; it must be a multiple of {self.columns} columns, and these at most half of "
            f"a window of {self.window} apart",
        )
        require(
            self.window % 4 == 0 and self.window <= MAX_WINDOW,
            f"MelConfig.window is {self.window}; it must be a multiple of 4 and at most {MAX_WINDOW}",
        )
        size = self.columns * self.bands
        require(
            self.channels <= size <= MAX_PATCH,
            f"MelConfig.channels is {self.channels}; a patch holds {self.columns} x {self.bands} = {size}, which "
            f"must be at least as many and at most {MAX_PATCH}",
        )

    @property
    def step(self) -> int:
        """Samples between two columns."""
        return self.hop // self.columns


@dataclass(frozen=True, kw_only=True)
class SoundLatentConfig:
    """Latents of sound, one token each."""

    channels: int = 64
    rate: float = 25.0  # latents a second
    positions_a_second: float = 24.0  # four times those of a video: so the published weights were trained
    codec: MelConfig | None = None  # None: a codec of its own is loaded beside

    def __post_init__(self) -> None:
        check_sizes(self)
        require(0 < self.rate <= 1e6, f"SoundLatentConfig.rate is {self.rate}; it must be positive and at most 1e6")
        made = self.codec and (self.codec.channels, self.codec.rate / self.codec.hop)
        require(
            made in (None, (self.channels, self.rate)),
            f"SoundLatentConfig.channels and .rate are {(self.channels, self.rate)}; those of its codec are {made}",
        )
        _check_pace(self)


@dataclass(frozen=True, kw_only=True)
class TokenDiffusionConfig:
    """Tokens, written a block at a time (TwoTower): all masked at first, then revealed in a few passes.

    The id of the mask is ``special_tokens["mask"]``. Published: blocks of 16, at most 16 passes, threshold 0.8.
    """

    block_size: int = 16  # tokens denoised together, as the weights were trained
    steps: int = 16  # passes over a block, at most
    threshold: float = 0.8  # what is more likely than this is revealed at once

    def __post_init__(self) -> None:
        check_sizes(self, MAX_BLOCK)
        require(
            0 <= self.threshold <= 1,
            f"TokenDiffusionConfig.threshold is {self.threshold}; it must lie between 0 and 1",
        )


def _check_pace(config: LatentConfig | SoundLatentConfig) -> None:
    name, pace = type(config).__name__, config.positions_a_second
    require(0 < pace <= 1e6, f"{name}.positions_a_second is {pace}; it must be positive and at most 1e6")
