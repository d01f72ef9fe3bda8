"""Worlds: what actions lead to, and which actions led through a video.

picture and actions ──> ForwardDynamics ──> video
video ──> InverseDynamics ──> actions
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from omni.pipelines.acting import FORWARD, INVERSE, Actor
from omni.pipelines.animate import Clips, ends_of, pixels_of, several
from omni.pipelines.generation import paired, prompts_of
from omni.tokenizers.image import open_image


class ForwardDynamics(Actor):
    """``ForwardDynamics(model, "pusht")("x.png", actions).save("x.mp4")``"""

    def __call__(self, image: Any, actions: Any, prompt: str | Sequence[str] = "", **options: Any) -> Clips:
        """The video that actions (n, a) lead to from ``image``; lists of both are batches.

        Too few actions: the last is repeated; further ones than the chunk are cut off. ``options``: as of
        :meth:`omni.pipelines.acting.Actor.denoise_actions`.
        """
        batch = isinstance(image, (list, tuple))
        pictures = [pixels_of(np.array(open_image(one))[None]) for one in (image if batch else [image])]
        rows = list(actions) if batch else [actions]
        if len(rows) != len(pictures):
            raise ValueError(f"{len(rows)} sequences of actions were given for {len(pictures)} pictures")
        prompts, pictures = paired(prompts_of(prompt), pictures)
        return self.denoise_actions(FORWARD, pictures, prompts, actions=rows, title="imagining", **options)


class InverseDynamics(Actor):
    """``InverseDynamics(model, "pusht")("x.mp4").actions[0]``"""

    def __call__(self, video: Any, prompt: str | Sequence[str] = "", **options: Any) -> Clips:
        """The actions (n, a) that led through the first frames of ``video``, in ``.actions``; a list is a batch.

        A video shorter than the chunk's frames holds its last one. ``options``: as of
        :meth:`omni.pipelines.acting.Actor.denoise_actions`.
        """
        clips = [ends_of(one, self.setting.chunk + 1, "first") for one in several(video)]
        prompts, clips = paired(prompts_of(prompt), clips)
        return self.denoise_actions(INVERSE, clips, prompts, title="inferring", **options)


__all__ = ["ForwardDynamics", "InverseDynamics"]
