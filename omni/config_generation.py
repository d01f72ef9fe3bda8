"""How a checkpoint is meant to generate: its noise schedules, and how prompts are put to it."""

from dataclasses import dataclass, field

from omni.config_checks import check_sizes, require, require_known


@dataclass(frozen=True, kw_only=True)
class WalkConfig:
    """From noise to data. ``levels`` are those of a student of few steps: then steps, grid and guidance are fixed."""

    steps: int = 30
    guidance: float = 3.0  # 1 is none
    shift: float = 2.0  # above one, more steps near the noise; the karras grid has none
    eta: float = 0.0  # part of the noise that every step renews
    solver: str = "euler"
    grid: str = "plain"
    levels: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_sizes(self, steps=1000)
        require_known(self, solver=("euler", "heun", "unipc"), grid=("plain", "native", "shifted", "karras"))
        require(self.shift > 0, f"WalkConfig.shift is {self.shift}; it must be positive")
        require(0 <= self.eta <= 1, f"WalkConfig.eta is {self.eta}; it must lie between 0 and 1")
        falls = all(1 >= a > b > 0 for a, b in zip(self.levels, self.levels[1:], strict=False))
        require(falls, f"WalkConfig.levels are {self.levels}; they must fall within 1 and 0")


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Defaults of pictures, of videos and of robots; every one can be given with a request."""

    image: WalkConfig = field(default_factory=WalkConfig)
    video: WalkConfig = field(default_factory=WalkConfig)
    action: WalkConfig = field(default_factory=lambda: WalkConfig(guidance=1.0))
    edit: WalkConfig | None = None  # of pictures made from another; None: it has not learnt to
    world: WalkConfig | None = None  # of actions beside a video, whichever is found; None: as of actions alone
    captions: str = "plain"  # a prompt stands alone between <s> and </s>; "chat": it is a user's turn (Cosmos 3)
    system_prompt: bool = False  # whether chats begin with the published one
    upsample: bool = False  # whether the model's own reasoner writes prompts for pictures in full first
    draws: bool = True  # whether it draws pictures by themselves
    tier: int = 0  # of sizes, such as 480; 0: squares of LatentConfig.image_size
    frames: int = 17
    fps: float = 24.0

    def __post_init__(self) -> None:
        require_known(self, captions=("plain", "chat"))
        require(self.tier in (0, 256, 480, 704, 720, 768), f"GenerationConfig.tier is {self.tier}; there is no such")
        require(1 <= self.frames <= 1 << 16, f"GenerationConfig.frames is {self.frames}; it must be positive")
        require(0 < self.fps <= 1000, f"GenerationConfig.fps is {self.fps}; it must be positive and at most 1000")
