"""Policies: from what a robot sees and is told to what it does next.

    observation ──> picture, instruction, state ──> video and actions, denoised together ──> actions (horizon, a)

While the instruction stays the same, what was read of it is kept: a call only costs its denoising steps.
Observations are dicts, ours or those of OpenPI's clients (``reference`` cosmos3, section 6.6).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omni.pipelines.acting import POLICY, Actor
from omni.pipelines.animate import Clips, pixels_of
from omni.tokenizers.canvas import VIEWS_LAYOUT, views

WRIST = "observation/wrist_image_left"
EXTERIORS = ("observation/exterior_image_1_left", "observation/exterior_image_2_left")
WALK = ("steps", "guidance", "interval", "normalize", "shift", "eta", "solver", "grid")
Observation = Mapping[str, Any]


class Policy(Actor):
    """``Policy(model, "pusht")({"image": pixels, "prompt": "push the T onto its mark"})`` -> actions (horizon, a)

    Each call draws with a seed of its own, which counts on from ``seed``. Options of the walk (``steps``, ``guidance``,
    ...) that are given here hold for every call, as does ``foresee``: whether the video that the actions lead to is
    denoised beside them.
    """

    def __init__(self, model: Any, embodiment: Any, *, seed: int = 0, foresee: bool = True, **options: Any) -> None:
        self.options = {"foresee": foresee} | {name: options.pop(name) for name in WALK if name in options}
        super().__init__(model, embodiment, **options)
        self.seed = seed
        if self.setting.viewpoint == "concat_view" and self.setting.layout is None:
            self.setting = replace(self.setting, layout=VIEWS_LAYOUT)

    def __call__(self, observation: Observation | Sequence[Observation], **options: Any) -> np.ndarray:
        """Actions (horizon, a) float32 in the embodiment's units, or (b, horizon, a) of a list of observations.

        An observation holds ``image`` (H, W, 3) uint8, or the three ``observation/..._image_...`` of DROID; ``prompt``;
        and perhaps ``state`` (a,) or (h, a): the last states, which stand before the actions.
        """
        found = self.predict(observation, **options).actions.numpy()
        return found if isinstance(observation, (list, tuple)) else found[0]

    def predict(self, observation: Observation | Sequence[Observation], **options: Any) -> Clips:
        """The same with the video that the policy expects; without ``foresee`` it is the picture alone.

        ``options``: as of :meth:`denoise_actions`.
        """
        batch = list(observation) if isinstance(observation, (list, tuple)) else [observation]
        if not batch or not all(isinstance(one, Mapping) for one in batch):
            raise ValueError("an observation must be a dict, or a list of them")
        pictures = [picture_of(one) for one in batch]
        states = [state_of(one) for one in batch]
        if len({None if state is None else state.shape for state in states}) > 1:
            raise ValueError("the observations of a batch must have states of one shape, or none")
        given = None if states[0] is None else states
        if "seed" not in options:
            options["seed"] = [self.seed + i for i in range(len(batch))]
            self.seed += len(batch)
        prompts = [instruction_of(one) for one in batch]
        return self.denoise_actions(POLICY, pictures, prompts, given=given, **(self.options | options))


def picture_of(observation: Observation) -> Tensor:
    """(1, 3, H, W) uint8, or float32 of several cameras in one frame."""
    for name in ("image", "observation/image"):
        if name in observation:
            return pixels_of(_picture(observation[name], name)[None])
    if WRIST in observation:
        missing = [name for name in EXTERIORS if name not in observation]
        if missing:
            raise ValueError(f"the observation has {WRIST}, but not {', '.join(missing)}")
        cameras = [pixels_of(_picture(observation[name], name)[None]) for name in (WRIST, *EXTERIORS)]
        return views(*cameras)
    raise ValueError(f"the observation holds no picture: {', '.join(map(str, observation))}")


def _picture(value: Any, name: str) -> np.ndarray:
    """(H, W, 3) uint8; of several in time the last one."""
    pixels = np.asarray(value)
    pixels = pixels[-1] if pixels.ndim == 4 and len(pixels) else pixels
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise ValueError(f"{name} is {pixels.shape} {pixels.dtype}; it must be (H, W, 3) uint8")
    return pixels


def state_of(observation: Observation) -> Tensor | None:
    """(h, a) float32: ``state``, or joints and gripper as DROID's clients send them."""
    if "state" in observation:
        found = np.asarray(observation["state"], np.float32)
        return torch.from_numpy(found if found.ndim == 2 else found[None])
    if "observation/joint_position" not in observation:
        return None
    names = ("observation/joint_position", "observation/gripper_position")
    parts = [np.atleast_2d(np.asarray(observation.get(name, ()), np.float32)) for name in names]
    if any(not part.size for part in parts):
        raise ValueError(f"the observation has {names[0]}; it needs {names[1]} too")
    return torch.from_numpy(np.concatenate([parts[0][-1:], parts[1].reshape(-1, 1)[-1:]], axis=1))


def instruction_of(observation: Observation) -> str:
    found = observation.get("prompt", observation.get("task", ""))
    if not isinstance(found, str):
        raise ValueError(f"the observation's prompt is {found!r}; it must be a text")
    return found


__all__ = ["Policy", "instruction_of", "picture_of", "state_of"]
