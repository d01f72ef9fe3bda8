"""Training recipes: what is shown, for how long and how fast, as YAML checked into frozen dataclasses."""

import dataclasses
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import yaml

from omni.config import ConfigError
from omni.config_action import STATISTICS
from omni.recipe_teach import TeachPlan


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _check(config: Any, name: str, low: float, high: float = 2**53, whole: bool = False) -> None:
    """``config.name`` must be a number, or a whole one, within the limits."""
    value = getattr(config, name)
    right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and low <= value <= high
    kind = "a whole number" if whole else "a number"
    most = f"up to {high:g}" if high < 2**53 else "or more"
    _require(right, f"{type(config).__name__}.{name} is {value!r}; it must be {kind}, {low:g} {most}")


def _check_counts(plan: Any, *names: str) -> None:
    for name in names:
        _check(plan, name, 1, whole=True)


def _check_weights(plan: Any) -> None:
    """Every part of the loss has a weight of zero or more."""
    for name in (f.name for f in dataclasses.fields(plan)):
        if name == "weight" or name.endswith("_weight"):
            _check(plan, name, 0)


def _check_mixture(plan: Any, of: str, name: str = "mixture") -> None:
    mixture = getattr(plan, name)
    weights = mixture.values() if isinstance(mixture, dict) else ()
    _require(
        any(w > 0 for w in weights) and all(w >= 0 for w in weights),
        f"{type(plan).__name__}.{name} is {mixture!r}; it must map {of} to weights, at least one of them positive",
    )


@dataclass(frozen=True, kw_only=True)
class ReadPlan:
    """Documents. ``size`` counts pages of 160 x 160 pixels; ``mixture`` weighs the levels of the curriculum."""

    size: int
    mixture: dict[str, float]
    questions: int = 4
    bare: float = 0.0  # share of batches without a chat around
    read_first: float = 0.0  # share of batches whose questions come after a transcription
    given: float = 0.5  # share of those transcriptions that are given, with mistakes, so that only answers are learned
    foreign: float = 0.0  # share of conversations with a question that the page does not answer
    talk: bool = True  # False: only name the glyphs under each patch
    weight: float = 1.0
    cell_weight: float = 0.3  # of naming the characters within each token's square
    label_weight: float = 0.0  # of naming the row and the values at the token of what names them
    pointer_weight: float = 0.0  # of attending to what a token is read from: its square, or its place in what is told
    link_weight: float = 0.0  # of attending, in the vision encoder, from a chart's value to its ticks and its name
    glyph_weight: float = 1.0  # 0: the vision encoder stays as it is
    every: int = 1  # steps between batches of this kind

    def __post_init__(self) -> None:
        _check_weights(self)
        _check_counts(self, "size", "questions", "every")
        _check(self, "bare", 0, 1)
        _check(self, "read_first", 0, 1)
        _check(self, "foreign", 0, 1)
        _check(self, "given", 0, 1)
        _check_mixture(self, "levels")
        _require(
            not self.link_weight or self.glyph_weight > 0,
            f"ReadPlan.link_weight is {self.link_weight} and glyph_weight 0, which leaves the vision encoder as it is",
        )


@dataclass(frozen=True, kw_only=True)
class DrawPlan:
    """Scenes: ``size`` captions, each denoised at ``draws`` noise levels over one reading of the caption.

    ``mixture`` weighs the categories of scenes, by default all alike. A share ``full`` of the captions leaves nothing
    open, as an upsampled prompt does.
    """

    size: int
    draws: int = 4
    full: float = 0.0
    mixture: dict[str, float] | None = None
    drop: float = 0.1
    time_mean: float = 0.3  # of the logit of the noise level, and its spread
    time_std: float = 1.0
    weight: float = 1.0
    caption_weight: float = 0.1
    thing_weight: float = 0.1  # of naming the thing that each token shows
    every: int = 1

    def __post_init__(self) -> None:
        _check_weights(self)
        _check_counts(self, "size", "draws", "every")
        _check(self, "drop", 0, 1)
        _check(self, "full", 0, 1)
        _check(self, "time_mean", -20, 20)
        _check(self, "time_std", 0, 20)
        if self.mixture is not None:
            _check_mixture(self, "categories")


@dataclass(frozen=True, kw_only=True)
class TalkPlan:
    """Dialogues, packed into ``size`` rows of ``width`` tokens; in a share ``upsample`` a prompt is written in full.

    ``whole``: every token is learnt, as in pre-training, and not only what the assistant says.
    """

    size: int
    width: int = 256
    upsample: float = 0.0
    whole: bool = False
    weight: float = 0.5
    every: int = 1

    def __post_init__(self) -> None:
        _check_weights(self)
        _check_counts(self, "size", "width", "every")
        _check(self, "upsample", 0, 1)
        _require(isinstance(self.whole, bool), f"TalkPlan.whole is {self.whole!r}; it must be true or false")


@dataclass(frozen=True, kw_only=True)
class ReasonPlan:
    """Problems with their working, packed into ``size`` rows of ``width`` tokens.

    ``kinds`` weighs them by name, by default as :mod:`omni.data.reasoning` does; ``levels`` by how hard they are.
    """

    size: int
    width: int = 256
    kinds: dict[str, float] | None = None
    levels: dict[int, float] | None = None
    weight: float = 1.0
    every: int = 1

    def __post_init__(self) -> None:
        _check_weights(self)
        _check_counts(self, "size", "width", "every")
        for name in ("kinds", "levels"):
            if getattr(self, name) is not None:
                _check_mixture(self, name, name)


@dataclass(frozen=True, kw_only=True)
class PredictPlan:
    """The prediction block's part in every text that is learnt: ``depth`` steps ahead, which share ``weight``.

    ``boost``: it learns the trunk's own distributions at a ``temperature``, not the tokens. The trunk must be frozen.
    ``share``: of each batch's rows, those that it learns from; all its steps together cost as much as a small trunk.
    """

    depth: int = 2
    weight: float = 0.3
    share: float = 1.0
    boost: bool = False
    temperature: float = 2.0

    def __post_init__(self) -> None:
        _check(self, "depth", 1, 32, whole=True)
        _check(self, "weight", 0)
        _check(self, "share", 0, 1)
        _check(self, "temperature", 1e-3, 1e3)
        _require(isinstance(self.boost, bool), f"PredictPlan.boost is {self.boost!r}; it must be true or false")


@dataclass(frozen=True, kw_only=True)
class FourBitPlan:
    """Products of the towers' layers in NVFP4 while they are trained (:mod:`omni.quantization.training`).

    The first and last blocks of each tower stay high, and the modules that ``keep`` names; None: those of the published
    recipes. From the share ``high_from`` of all steps on the forward pass is high.
    """

    keep_first: int = 0
    keep_last: int = 1
    keep: tuple[str, ...] | None = None
    high_from: float = 1.0

    def __post_init__(self) -> None:
        _check(self, "keep_first", 0, whole=True)
        _check(self, "keep_last", 0, whole=True)
        _check(self, "high_from", 0, 1)
        names = self.keep if isinstance(self.keep, (list, tuple)) else () if self.keep is None else (None,)
        right = all(isinstance(name, str) for name in names)
        _require(right, f"FourBitPlan.keep is {self.keep!r}; it must be a list of names of modules")
        object.__setattr__(self, "keep", None if self.keep is None else tuple(names))


@dataclass(frozen=True, kw_only=True)
class SensePlan:
    """Clips, recordings, films or still pictures: ``size`` rows with up to ``questions`` each.

    ``kinds`` weighs the kinds of the world, by default all alike.
    """

    size: int
    questions: int = 4
    read_first: float = 0.0  # share of rows whose questions come after all of it is told
    kinds: dict[str, float] | None = None
    weight: float = 1.0
    named_weight: float = 0.3  # of naming what each token shows, or what is heard at it
    pointer_weight: float = 0.0  # of attending to what a token is told from, and to where an answer was told
    pruned: float = 0.0  # share of the batches of video whose tokens EVS prunes, at rates up to PRUNING
    every: int = 1

    def __post_init__(self) -> None:
        _check_weights(self)
        _check_counts(self, "size", "questions", "every")
        _check(self, "read_first", 0, 1)
        _check(self, "pruned", 0, 1)
        if self.kinds is not None:
            weights = self.kinds.values() if isinstance(self.kinds, dict) else ()
            _require(any(w > 0 for w in weights), f"SensePlan.kinds is {self.kinds!r}; it must map kinds to weights")


@dataclass(frozen=True, kw_only=True)
class AnimatePlan:
    """Moving things: ``size`` rollouts, each denoised at ``draws`` noise levels over one reading of its sentence.

    ``kinds`` weighs what happens, by default all alike. Most begin with a given frame.
    """

    size: int
    draws: int = 2
    kinds: dict[str, float] | None = None
    sound: float = 0.5  # share of batches whose sound is denoised too
    free: float = 0.1  # share of batches in which no frame is given: the sentence is all there is
    part: float = 0.0  # share of batches, without sound, of the first frame and one group of later ones alone
    drop: float = 0.1  # share of empty sentences, which is what guidance compares with
    time_mean: float = 0.0  # of the logit of the noise level, and its spread
    time_std: float = 1.2
    time_shift: float = 1.0  # of the noise level t: s t / (1 + (s - 1) t)
    weight: float = 1.0
    sound_weight: float = 0.5
    track_weight: float = 0.5  # of saying where the things are in each frame
    thing_weight: float = 0.1  # of naming what happens, and the colour that each token's square shows in each frame
    every: int = 1

    def __post_init__(self) -> None:
        _check_streams(self, "sound", "free", "part")
        if self.kinds is not None:
            _check_mixture(self, "kinds of motion", "kinds")


@dataclass(frozen=True, kw_only=True)
class ActPlan:
    """Robots: ``size`` rollouts, each denoised at ``draws`` noise levels.

    ``modes`` weighs what is asked of each: ``policy``, the first frame is given; ``forward``, the actions too;
    ``inverse``, all frames. In a share ``still`` of the batches only the first frame is there, and the actions that
    follow: a policy's. Those have few tokens and come in batches that many times larger. In a share ``part`` of the
    others only one group of later frames is there, of more rollouts, and ``inverse`` is not asked.

    Of a policy's rollouts a share ``shaken``, by world, begins beside the expert's ways; in a share ``driven`` of the
    others the robot wanders (:mod:`omni.data.episodes`).

    With ``dataset``, a LeRobot folder, the rollouts are its windows (:mod:`omni.data.demonstrations`), a batch has one
    mode, and the fields below it count; otherwise they are the ``worlds``'.
    """

    size: int
    draws: int = 2
    worlds: dict[str, float] | None = None
    modes: dict[str, float] | None = None
    still: float = 0.0
    part: float = 0.0
    shaken: dict[str, float] | None = None  # the expert acts anew in each: PushT's takes a sixth of a second
    driven: float = 0.0
    drop: float = 0.1
    time_mean: float = 0.0
    time_std: float = 1.2
    time_shift: float = 1.0  # Cosmos 3 has 3, 5 and 10 at the tiers 256, 480 and 720
    weight: float = 1.0
    action_weight: float = 1.0  # Cosmos 3 has ten
    track_weight: float = 0.5  # of saying where the parts of the scene are in each frame
    every: int = 1
    dataset: str | None = None
    embodiment: str | None = None  # None: that of the space
    space: str = "joint_pos"  # or "ee_pose": what an action is, see omni.data.droid
    views: str = "all"  # or one camera of them
    chunk: int | None = None  # actions of a window; None: the embodiment's
    tier: int | None = None  # of canvases; None: the model's
    state: bool = False  # a policy is told where the robot is, in a row before the actions
    statistics: str | None = None  # method of a normaliser that is fitted to the dataset; None: the embodiment's

    def __post_init__(self) -> None:
        _check_streams(self, "still", "part", "driven")
        for name, of in (("worlds", "worlds"), ("modes", "modes")):
            if getattr(self, name) is not None:
                _check_mixture(self, of, name)
        unknown = sorted(set(self.modes or ()) - set(MODES))
        _require(not unknown, f"ActPlan.modes names {unknown}; known: {', '.join(MODES)}")
        asked = any(weight for mode, weight in (self.modes or dict.fromkeys(MODES, 1.0)).items() if mode != "inverse")
        wrong = {world: share for world, share in (self.shaken or {}).items() if not 0 <= share <= 1}
        _require(not wrong, f"ActPlan.shaken has {wrong}; shares are from 0 to 1")
        _require(
            self.dataset is None or not (self.shaken or self.driven),
            f"ActPlan has shaken {self.shaken} and driven {self.driven}; a dataset's windows are as recorded",
        )
        _require(
            not self.part or (self.dataset is None and asked),
            f"ActPlan.part is {self.part}; parts are of rollouts of worlds, and not for inverse alone",
        )
        self._check_dataset()

    def _check_dataset(self) -> None:
        if self.dataset is not None:
            _require(
                isinstance(self.dataset, str) and self.worlds is None,
                f"ActPlan.dataset is {self.dataset!r} and worlds {self.worlds!r}; give a folder, or worlds",
            )
            if self.chunk is not None:
                _check(self, "chunk", 1, whole=True)
            known = None, *STATISTICS
            _require(self.statistics in known, f"ActPlan.statistics is {self.statistics!r}; known: {known}")
            return
        fields = {f.name: f.default for f in dataclasses.fields(self)}
        given = [name for name in OF_DATASETS if getattr(self, name) != fields[name]]
        _require(not given, f"ActPlan sets {given}; they belong to a dataset, and none is named")


OF_DATASETS = ("embodiment", "space", "views", "chunk", "tier", "state", "statistics")


@dataclass(frozen=True, kw_only=True)
class DistilPlan:
    """Scenes for a student of few steps, each at every one of the ``levels`` that its walk has, from 1 down.

    The teacher follows ``guidance`` in ``steps`` of Euler's steps from each level to the next. A share ``own`` of the
    scenes is replaced by what the student draws itself on its way.
    """

    size: int
    levels: tuple[float, ...]
    guidance: float
    steps: int = 2
    own: float = 0.5
    full: float = 1.0
    mixture: dict[str, float] | None = None
    weight: float = 1.0
    every: ClassVar[int] = 1  # a stage that distils holds nothing else

    def __post_init__(self) -> None:
        _check_weights(self)
        _check_counts(self, "size", "steps")
        _check(self, "guidance", 0, 100)
        _check(self, "own", 0, 1)
        _check(self, "full", 0, 1)
        if self.mixture is not None:
            _check_mixture(self, "categories")
        levels = self.levels if isinstance(self.levels, (list, tuple)) else ()
        known = levels and all(isinstance(level, (int, float)) for level in levels) and levels[0] == 1
        falls = known and all(a > b > 0 for a, b in pairwise(levels))
        _require(falls, f"DistilPlan.levels is {self.levels!r}; it must be numbers that fall from 1 and stay above 0")
        object.__setattr__(self, "levels", tuple(map(float, levels)))


@dataclass(frozen=True, kw_only=True)
class DiffusePlan:
    """Texts whose tokens are denoised a block at a time: ``size`` of at most ``width`` tokens, read once.

    ``mixture`` weighs the worlds of texts (``TEXTS`` of :mod:`omni.data.texts`). Every block is masked at ``draws``
    levels. In a share ``aligned`` of the texts the blocks begin where the first answer does, as they do when one is
    written; in the others anywhere. A share ``ordered`` of the blocks is masked from some place on, more or less, as a
    sampler leaves them that reveals what is sure; the others anywhere. Of a share ``begun`` only the first token is
    known, as when a lossless sampler begins. Every ``half`` places behind the first mask of its block a token counts
    half as much: what comes next must be right, what is far is mostly not to be known yet.
    """

    size: int
    mixture: dict[str, float]
    width: int = 256
    draws: int = 1
    block: int | None = None  # tokens of a block; None: the model's own
    aligned: float = 0.5
    ordered: float = 0.0
    begun: float = 0.0
    half: float | None = None
    repeat_end: bool = False  # behind an end a block learns to repeat it; else nothing is asked there
    begin: bool | None = None  # as a copy of the context tower; None: if the denoiser has learnt nothing yet
    weight: float = 1.0
    every: int = 1

    def __post_init__(self) -> None:
        _check_weights(self)
        _check_counts(self, "size", "width", "draws", "every")
        _check(self, "aligned", 0, 1)
        _check(self, "ordered", 0, 1)
        _check(self, "begun", 0, 1)
        if self.half is not None:
            _check(self, "half", 0.1, 1e6)
        _check_mixture(self, "worlds of texts")
        if self.block is not None:
            _check(self, "block", 1, 1 << 12, whole=True)


def _check_streams(plan: AnimatePlan | ActPlan, *shares: str) -> None:
    _check_weights(plan)
    _check_counts(plan, "size", "draws", "every")
    for name in ("drop", *shares):
        _check(plan, name, 0, 1)
    _check(plan, "time_mean", -20, 20)
    _check(plan, "time_std", 0, 20)
    _check(plan, "time_shift", 1e-3, 1e3)


MODES = ("policy", "forward", "inverse")
SENSES = ("watch", "listen", "film", "look")
PLANS = {
    "read": ReadPlan,
    "draw": DrawPlan,
    "talk": TalkPlan,
    **dict.fromkeys(SENSES, SensePlan),
    "animate": AnimatePlan,
    "act": ActPlan,
    "distil": DistilPlan,
    "diffuse": DiffusePlan,
    "reason": ReasonPlan,
}
"""What a stage can hold, each with its plan."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of training with one mixture. ``lr`` is reached after the recipe's warm-up; ``decay`` lets it fall to
    ``final_lr`` over the stage, as one minus the square root of the progress (the family's own schedule)."""

    name: str
    steps: int
    lr: float
    decay: bool = False
    final_lr: float = 0.0
    read: ReadPlan | None = None
    draw: DrawPlan | None = None
    talk: TalkPlan | None = None
    watch: SensePlan | None = None
    listen: SensePlan | None = None
    film: SensePlan | None = None
    look: SensePlan | None = None
    animate: AnimatePlan | None = None
    act: ActPlan | None = None
    distil: DistilPlan | None = None
    diffuse: DiffusePlan | None = None
    reason: ReasonPlan | None = None

    def __post_init__(self) -> None:
        others = [kind for kind in PLANS if kind != "distil" and getattr(self, kind) is not None]
        alone = self.distil is None or not others
        _require(alone, f"stage {self.name!r} has distil and {others}; a student learns from its teacher alone")
        _check(self, "steps", 1, whole=True)
        _check(self, "lr", 1e-12, 1e3)
        _check(self, "final_lr", 0, 1e3)

    def due(self, step: int) -> list[str]:
        """Kinds of batches at ``step`` of the stage: those of one pace are not all in the same steps."""
        plans = [(i, kind, getattr(self, kind)) for i, kind in enumerate(PLANS)]
        return [kind for i, kind, plan in plans if plan is not None and (step + i) % plan.every == 0]

    def rate(self, step: int) -> float:
        """Learning rate at ``step`` of the stage."""
        if not self.decay:
            return self.lr
        return self.final_lr + (self.lr - self.final_lr) * (1 - (step / max(1, self.steps)) ** 0.5)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run. ``preset`` sections of the file replace any of these fields."""

    model: str  # a preset, which begins with random weights; or a folder or hub id, whose weights are trained further
    stages: tuple[Stage, ...]
    seed: int = 0
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.02
    clip: float = 1.0
    ema: float = 0.999
    frozen: tuple[str, ...] = ()  # parts of the model that stay as they are: embed, context, vision ...
    threads: int = 0  # of each process; 0: leave torch's choice
    devices: int = 1  # processes, or GPUs, that share each step
    workers: int = 0  # processes beside each of them that make its batches; 0: it makes them itself
    accelerator: str = "auto"
    precision: str = "32-true"
    log_every: int = 10
    save_every: int = 100
    probe_every: int = 200
    batch_scale: float = 1.0  # multiplies the size of every plan
    fresh: float = 1.0  # share of the rollouts of worlds that no step had before; the others are shown again
    family: str | None = None  # layout of the exported folder; None: that of the folder that ``model`` names, or "omni"
    metadata: dict[str, Any] = field(default_factory=dict)
    predict: PredictPlan | None = None  # of the block that drafts
    teach: TeachPlan | None = None  # of a model that was made smaller
    four_bits: FourBitPlan | None = None

    def __post_init__(self) -> None:
        _require(len(self.stages) > 0, "a recipe needs at least one stage")
        for name in ("devices", "warmup", "log_every", "save_every", "probe_every"):
            _check(self, name, 1, whole=True)
        for name in ("seed", "threads", "workers"):
            _check(self, name, 0, whole=True)
        _check(self, "ema", 0, 1)
        _check(self, "fresh", 0, 1)
        _check(self, "batch_scale", 1e-6, 1e6)
        _check(self, "weight_decay", 0)
        _check(self, "clip", 0)
        if self.predict is not None and self.predict.boost:
            learnt = sorted({"embed", "context"} - set(self.frozen))
            _require(not learnt, f"predict.boost leaves the trunk as it is; frozen lacks {learnt}")
        walks = {stage.distil.levels if stage.distil else None for stage in self.stages}
        _require(len(walks) < 2, f"the levels of distil must be the same in all stages, not {walks}")

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def levels(self) -> tuple[float, ...]:
        """Of the student's walk; empty where the run makes none."""
        first = self.stages[0].distil
        return first.levels if first else ()

    def at(self, step: int) -> tuple[Stage, int]:
        """The stage of a global step, and the step within it."""
        for stage in self.stages:
            if step < stage.steps:
                return stage, step
            step -= stage.steps
        return self.stages[-1], self.stages[-1].steps

    def rate(self, step: int) -> float:
        stage, inner = self.at(step)
        return stage.rate(inner) * min(1.0, (step + 1) / self.warmup)


def load_recipe(path: str | Path, preset: str | None = None, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a YAML recipe; ``preset`` names one of its ``presets``, ``overrides`` come last.

    Raises ConfigError for an unreadable file, an unknown preset or an unknown key.
    """
    try:
        plain = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not a readable recipe: {error}") from None
    if not isinstance(plain, dict):
        raise ConfigError(f"{path} is not a recipe: it holds {type(plain).__name__}, not a mapping")
    presets = plain.pop("presets", {})
    if preset is not None and preset not in presets:
        raise ConfigError(f"{path} has no preset {preset!r}; known: {', '.join(presets) or 'none'}")
    plain |= presets.get(preset, {}) | (overrides or {})
    stages = plain.get("stages", [])
    _require(isinstance(stages, list), f"stages is {stages!r}; it must be a list")
    plain["stages"] = tuple(_stage(stage) for stage in stages)
    for name, plan in (("predict", PredictPlan), ("teach", TeachPlan), ("four_bits", FourBitPlan)):
        if plain.get(name) is not None:
            plain[name] = _build(plan, plain[name])
    plain = {k: tuple(v) if k in ("betas", "frozen") and isinstance(v, list) else v for k, v in plain.items()}
    return _build(Recipe, plain)


def scaled(plan: Any, scale: float) -> Any:
    """The plan with its batch size multiplied."""
    return replace(plan, size=max(1, round(plan.size * scale)))


def _stage(plain: dict[str, Any]) -> Stage:
    _require(isinstance(plain, dict), f"a stage is {plain!r}; it must be a mapping")
    return _build(Stage, {k: _build(PLANS[k], v) if k in PLANS and v else v for k, v in plain.items()})


def _build(cls: type, plain: dict[str, Any]) -> Any:
    _require(isinstance(plain, dict), f"{cls.__name__} is {plain!r}; it must be a mapping")
    known = {item.name for item in dataclasses.fields(cls)}
    unknown = sorted(set(plain) - known)
    if unknown:
        raise ConfigError(f"{cls.__name__} has no fields {unknown}; known: {sorted(known)}")
    try:
        return cls(**plain)
    except TypeError as error:
        raise ConfigError(f"{cls.__name__}: {error}") from None
