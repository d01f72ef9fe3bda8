"""The axes along which a system is made smaller, and the configuration that it has then.

    layers            the pattern loses letters               every mixer's neighbours stay as they are
    d_model           channels of the residual stream         one set for the whole context side
    d_ff              neurons of an MLP                       each layer its own
    mamba_heads       heads of a Mamba mixer                  as many in each B/C group
    mamba_head_dim    channels of a Mamba head                the same in every head of a layer
    attention_heads   query heads                             as many behind each key; keys and values stay
    experts           routed experts                          as many in each routing group
    expert_ff         neurons of a routed expert              each expert its own
    shared_ff         neurons of the shared expert
    latent            channels that routed experts work in

All layers of one letter have one size. A denoiser keeps its own widths, but for what it takes over from the context: it
loses the same layers, and the same heads and channels of its Mamba mixers, whose states begin as the context's.

Source: ``reference`` generation_and_compression, sections B.1 to B.3 (arXiv 2508.14444, section 4; Model Optimizer's
names and rules). Latent widths are ours; the rule follows from the formula of LatentMoE.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from omni.config import ConfigError, OmniConfig, TowerConfig, VisionConfig, replace


@dataclass(frozen=True)
class Axis:
    """Where a width stands: ``field`` of the tower's ``part``, which layers of ``letter`` have ("" part: the tower)."""

    name: str
    part: str
    field: str
    letter: str = ""


AXES = {
    axis.name: axis
    for axis in (
        Axis("d_model", "", "d_model"),
        Axis("d_ff", "mlp", "d_ff", "-"),
        Axis("mamba_heads", "mamba", "n_heads", "M"),
        Axis("mamba_head_dim", "mamba", "head_dim", "M"),
        Axis("attention_heads", "attention", "n_heads", "*"),
        Axis("experts", "moe", "n_experts", "E"),
        Axis("expert_ff", "moe", "d_ff", "E"),
        Axis("shared_ff", "moe", "d_shared", "E"),
        Axis("latent", "moe", "d_latent", "E"),
    )
}

SHARED_WITH_DENOISER = ("mamba_heads", "mamba_head_dim")
"""A denoiser's scan begins with the context's state, so these sizes must be the same."""

KINDS = {"layers": "", "attention": "*", "mamba": "M", "mlp": "-", "moe": "E"}
"""Names of numbers of layers: of all of them and of each letter."""


def widths(tower: TowerConfig, letters: str | None = None) -> dict[str, int]:
    """The sizes of ``tower`` by axis, of the axes that layers of ``letters`` (its pattern) have."""
    letters = tower.pattern if letters is None else letters
    found = {}
    for axis in AXES.values():
        part = getattr(tower, axis.part) if axis.part else tower
        size = getattr(part, axis.field) if part is not None and (not axis.letter or axis.letter in letters) else None
        if size is not None:
            found[axis.name] = size
    return found


def unit(tower: TowerConfig, axis: str) -> int:
    """Sizes along ``axis`` are multiples of this: each group keeps as many."""
    match axis:
        case "mamba_heads":
            return tower.mamba.n_groups
        case "attention_heads":
            return tower.attention.n_kv_heads
        case "experts":
            return tower.moe.n_expert_groups
    return 1


def least(tower: TowerConfig, axis: str) -> int:
    """The smallest size along ``axis`` that the tower can have."""
    if axis != "experts":
        return unit(tower, axis)
    moe = tower.moe
    active = -(-moe.n_active_experts // moe.n_active_groups) * moe.n_expert_groups
    return max(active, moe.n_expert_groups * (2 if moe.n_expert_groups > 1 else 1))


def check_width(tower: TowerConfig, axis: str, size: int) -> None:
    """ConfigError unless ``size`` is one that ``tower`` can be cut to along ``axis``."""
    known = widths(tower, tower.pattern)
    if axis not in known:
        raise ConfigError(f"{axis!r} is no axis of this model; it has {', '.join(known)}")
    low, step = least(tower, axis), unit(tower, axis)
    if not low <= size <= known[axis] or size % step:
        raise ConfigError(
            f"{axis} is {size}; it must be from {low} to {known[axis]}"
            + (f" and a multiple of {step}, the number of its groups" if step > 1 else "")
        )


def shaped(config: OmniConfig, layers: Sequence[int], sizes: Mapping[str, int]) -> OmniConfig:
    """``config`` with only the context layers ``layers`` and the given sizes by axis. ConfigError where that cannot be.

    Sizes that are not named stay.
    """
    tower = config.context
    for axis, size in sizes.items():
        check_width(tower, axis, size)
    kept = check_layers(tower, layers)
    pattern = "".join(tower.pattern[i] for i in kept)
    context = resized(replace(tower, pattern=pattern), sizes)
    changes = {"context": context}
    if config.denoiser is not None:
        coupled = {axis: sizes[axis] for axis in SHARED_WITH_DENOISER if axis in sizes}
        changes["denoiser"] = resized(replace(config.denoiser, pattern=pattern), coupled)
    if config.vision is not None:
        changes["vision"] = _with_taps(config.vision, kept)
    return replace(config, **changes)


def resized(tower: TowerConfig, sizes: Mapping[str, int]) -> TowerConfig:
    """``tower`` with other sizes, all of its layers kept."""
    parts: dict[str, dict[str, int]] = {}
    for axis, size in sizes.items():
        parts.setdefault(AXES[axis].part, {})[AXES[axis].field] = size
    own = parts.pop("", {})
    return replace(tower, **own, **{part: replace(getattr(tower, part), **fields) for part, fields in parts.items()})


def check_layers(tower: TowerConfig, layers: Sequence[int]) -> tuple[int, ...]:
    """``layers`` as a tuple; ConfigError unless they rise, exist, and are at least one."""
    kept = tuple(layers)
    if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= tower.n_layers:
        raise ConfigError(f"layers to keep are {list(kept)}; they must rise and lie below {tower.n_layers}")
    return kept


def _with_taps(vision: VisionConfig, kept: tuple[int, ...]) -> VisionConfig:
    """DeepStack adds behind the last layer that stays of those up to the one it added behind before."""
    moved = []
    for tap, layer in vision.deepstack:
        before = [new for new, old in enumerate(kept) if old <= layer]
        if not before or (moved and moved[-1][1] == before[-1]):
            raise ConfigError(
                f"DeepStack adds features behind context layer {layer}; with layers {list(kept)} left there is no "
                "place of its own for them"
            )
        moved.append((tap, before[-1]))
    return replace(vision, deepstack=tuple(moved)) if moved else vision


def within(parent: OmniConfig, child: OmniConfig) -> bool:
    """Whether ``parent`` can be cut to the sizes of ``child``: they differ in nothing that is no axis.

    ``chunk_size`` is how a scan is computed, not what, and does not count.
    """
    big, small = parent.context, child.context
    sizes, there = widths(small), widths(big)
    fits = set(sizes) <= set(there) and all(size <= there[axis] for axis, size in sizes.items())
    fewer = all(small.pattern.count(c) <= big.pattern.count(c) for c in KINDS.values() if c)
    if not fits or not fewer or parent.vocab_size != child.vocab_size or small.n_layers > big.n_layers:
        return False
    try:
        return _bare(resized(big, sizes)) == _bare(small)
    except ConfigError:
        return False


def _bare(tower: TowerConfig) -> TowerConfig:
    letters = "".join(sorted(set(tower.pattern)))
    mamba = replace(tower.mamba, chunk_size=1) if tower.mamba else None
    return replace(tower, pattern=letters, mamba=mamba)
