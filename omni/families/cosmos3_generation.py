"""How published Cosmos 3 generators are run: what a pipeline's folder says, and the published defaults of each mode.

    model_index.json            default_use_system_prompt, use_native_flow_schedule
    modular_model_index.json    distilled_sigmas: the levels of a student
    scheduler/scheduler_config.json    the grid and its shift

Source: ``reference`` cosmos3, sections 1.6, 4.2 and 4.4.
"""

from typing import Any

from omni.config import ConfigError, GenerationConfig, WalkConfig, replace

FPS, FRAMES = 24.0, 189
EDGE_FRAMES = 121
TIER, EDGE_TIER = 720, 480

IMAGE = WalkConfig(steps=50, guidance=4.0, shift=3.0, solver="unipc", grid="native")
VIDEO = replace(IMAGE, steps=35, guidance=6.0, shift=10.0)
ACTION = replace(IMAGE, steps=30, guidance=1.0, shift=10.0)
EDIT = replace(IMAGE, steps=35, guidance=6.0, shift=5.0)

COSMOS3 = GenerationConfig(
    image=IMAGE,
    video=VIDEO,
    action=ACTION,
    edit=EDIT,
    captions="chat",
    system_prompt=True,
    tier=TIER,
    frames=FRAMES,
    fps=FPS,
)
EDGE = replace(
    COSMOS3,
    image=IMAGE,
    video=replace(VIDEO, guidance=5.0, shift=3.0),
    action=replace(ACTION, shift=3.0),
    system_prompt=False,
    tier=EDGE_TIER,
    frames=EDGE_FRAMES,
)


def student(levels: tuple[float, ...]) -> GenerationConfig:
    """Guidance is part of its weights; every step renews the noise. No student of editing is published."""
    walk = WalkConfig(steps=len(levels), guidance=1.0, shift=1.0, eta=1.0, solver="euler", grid="plain", levels=levels)
    return replace(COSMOS3, image=walk, video=walk, action=walk, edit=None)


def generation_of(parts: dict[str, Any], edge: bool) -> GenerationConfig:
    """Of the files of a pipeline's folder, by component. ConfigError names what is not supported."""
    index, modular, scheduler = (parts.get(name, {}) for name in ("model_index", "modular_model_index", "scheduler"))
    levels = modular.get("distilled_sigmas") or (scheduler.get("fixed_step_sampler_config") or {}).get("t_list")
    found = EDGE if edge else COSMOS3
    if levels:
        found = student(_levels(levels))
    elif scheduler:
        native = index.get("use_native_flow_schedule", modular.get("use_native_flow_schedule", False))
        found = _scheduled(found, scheduler, bool(native))
    told = index.get("default_use_system_prompt", modular.get("default_use_system_prompt", found.system_prompt))
    if not isinstance(told, bool):
        raise ConfigError(f"model_index.json: default_use_system_prompt is {told!r}; it must be true or false")
    return replace(found, system_prompt=told)


def _levels(levels: Any) -> tuple[float, ...]:
    known = isinstance(levels, list) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in levels)
    if not known:
        raise ConfigError(f"distilled_sigmas is {levels!r}; it must be a list of noise levels")
    return tuple(float(v) for v in levels if v)


def _scheduled(found: GenerationConfig, scheduler: dict[str, Any], native: bool) -> GenerationConfig:
    """The grid that the scheduler makes; its shift, where it has one, holds for every mode but editing.

    The reference pipeline does not edit: there the walk is that of the framework which trained the weights.
    """
    kind, shift = scheduler.get("_class_name"), scheduler.get("flow_shift", 1.0)
    flow = scheduler.get("prediction_type") == "flow_prediction" and scheduler.get("use_flow_sigmas")
    if kind != "UniPCMultistepScheduler" or not (flow or scheduler.get("use_karras_sigmas")):
        raise ConfigError(
            f"scheduler_config.json: {kind!r} is not supported; supported: UniPCMultistepScheduler of flow"
        )
    if not isinstance(shift, (int, float)) or isinstance(shift, bool):
        raise ConfigError(f"scheduler_config.json: flow_shift is {shift!r}; it must be a number")
    if scheduler.get("use_karras_sigmas") and not native:
        change = {"grid": "karras"}
    else:
        change = {"grid": "native" if native else "shifted", "shift": float(shift)}
    walks = {name: replace(getattr(found, name), **change) for name in ("image", "video", "action")}
    edit = found.edit if change["grid"] == "karras" else replace(found.edit, grid=change["grid"])
    return replace(found, **walks, edit=edit)


__all__ = ["COSMOS3", "EDGE", "generation_of", "student"]
