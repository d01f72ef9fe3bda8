"""Batches of what robots were recorded doing: windows of a LeRobot dataset, as policies and world models learn them.

    LeRobotDataset ──> windows: to learn from | held out
        window ── droid.sample ──> frames ──> canvas of the tier ──────────────────────────────┐
                                   actions, state ──> the embodiment's normaliser, zeros ──────┼──> RolloutBatch
                                   sentence ──> caption with viewpoint, time and size ──> ids ─┘
    steps of the windows to learn from ──> fitted ──> the embodiment with its statistics

Held out are the windows of the last episode; where only one episode is long enough, the last tenth of its windows, and
no window to learn from shares a frame with those. Batches are pure functions of a seed, of which negative ones draw
what is held out. A batch has one mode, see :mod:`omni.data.worlds`; what is seen and said is made as in the pipelines.
"""

from dataclasses import dataclass
from random import Random

import numpy as np
import torch

from omni.config import ActionConfig, Embodiment, replace
from omni.data import droid
from omni.data.batches import Encoding
from omni.data.lerobot import LeRobotDataset
from omni.data.worlds import STILL_ROWS, RolloutBatch, sentences
from omni.recipe import ActPlan
from omni.tokenizers.action import embodiment as embodiment_of
from omni.tokenizers.action import encode, fit
from omni.tokenizers.canvas import VIEWS_LAYOUT
from omni.tokenizers.robots import CHUNK, Setting, setting_of, show, tell

HELD_OUT_SHARE = 10  # with one episode, one in so many of its windows is held out: those at its end
WORDINGS = 6  # a dataset has up to three sentences for a task; they are counted round
MOST_EPISODES = 1000  # that statistics are fitted to, evenly spread


@dataclass(frozen=True)
class Split:
    """Windows are counted episode by episode: those to learn from come first, those held out last."""

    counts: np.ndarray  # windows to learn from, of each episode
    held_out: int
    total: int

    @property
    def learnt(self) -> int:
        return int(self.counts.sum())


def split(dataset: LeRobotDataset, chunk: int) -> Split:
    """Of the windows with ``chunk`` actions. ValueError where nothing is left to learn from."""
    counts = np.maximum(dataset.lengths - chunk, 0)
    total, long = int(counts.sum()), np.flatnonzero(counts)
    if len(long) > 1:
        held_out = int(counts[long[-1]])
        counts[long[-1]] = 0
    else:
        held_out = max(1, total // HELD_OUT_SHARE)
        counts = np.maximum(counts - held_out - chunk, 0)
    if not counts.any():
        raise ValueError(
            f"{dataset.folder} has no windows of {chunk} actions to learn from, beside those held out: it needs two "
            f"episodes of more than {chunk} frames, or a long one; its longest has {dataset.lengths.max()}"
        )
    return Split(counts, held_out, total)


# -- whose actions they are --------------------------------------------------------------------------------------------


def body_of(dataset: LeRobotDataset, plan: ActPlan, config: ActionConfig) -> Embodiment:
    """The plan's embodiment as it is trained: with the dataset's pace, the plan's chunk and views, and statistics.

    ValueError where the model knows no such embodiment, or its actions are not those of the space.
    """
    for name, known in (("space", droid.SPACES), ("views", droid.VIEWPOINTS)):
        if getattr(plan, name) not in known:
            raise ValueError(f"ActPlan.{name} is {getattr(plan, name)!r}; it must be one of {', '.join(known)}")
    own = embodiment_of(plan.embodiment or droid.SPACES[plan.space], config)
    chunk = plan.chunk or own.chunk or CHUNK
    own = replace(own, fps=dataset.fps, chunk=chunk, viewpoint=droid.VIEWPOINTS[plan.views])
    place = np.flatnonzero(split(dataset, chunk).counts)[0]
    width = droid.movement(dataset, int(dataset.indices[place]), 0, 1, plan.space).actions.shape[1]
    if width != own.width:
        raise ValueError(f"actions of {plan.space} have {width} numbers; those of {own.name!r} have {own.width}")
    return own if plan.statistics is None else fitted(dataset, own, plan.space, plan.statistics)


def fitted(
    dataset: LeRobotDataset,
    own: Embodiment,
    space: str,
    method: str = "quantile",
    clamp: bool = False,
    most: int = MOST_EPISODES,
) -> Embodiment:
    """``own`` with a normaliser fitted to the actions of the windows to learn from, of at most ``most`` episodes.

    Methods: ``omni.config_action.STATISTICS``. No video is opened.
    """
    chunk = own.chunk or CHUNK
    counts = split(dataset, chunk).counts
    places = np.flatnonzero(counts)
    places = places[np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int)]
    rows = [
        droid.movement(dataset, int(dataset.indices[place]), 0, int(counts[place]) + chunk - 1, space).actions
        for place in places
    ]
    return fit(own, np.concatenate(rows), method, clamp)


# -- batches -----------------------------------------------------------------------------------------------------------


class Demonstrations:
    """The windows of a plan's dataset, for a model that ``encoding`` tells of. Raises ValueError."""

    def __init__(self, plan: ActPlan, encoding: Encoding) -> None:
        self.plan, self.encoding = plan, encoding
        self.dataset = LeRobotDataset(plan.dataset)
        own = embodiment_of(plan.embodiment or droid.SPACES[plan.space], encoding.action)
        viewpoint = droid.VIEWPOINTS[plan.views]
        self.setting: Setting = setting_of(
            own,
            encoding.action,
            encoding.generation,
            encoding.unit,
            chunk=plan.chunk,
            fps=self.dataset.fps,
            tier=plan.tier,
            viewpoint=viewpoint,
            layout=VIEWS_LAYOUT if viewpoint == "concat_view" else None,
        )
        self.windows = self.dataset.windows(self.setting.chunk)
        self.split = split(self.dataset, self.setting.chunk)

    def batch(self, seed: int, size: int, mode: str, still: bool = False, drop: float = 0.0) -> RolloutBatch:
        """``size`` windows of which ``mode`` says what is given; a share ``drop`` of the sentences is void.

        ``still``: only the first frames are there, in STILL_ROWS times as many windows.
        """
        rng = Random(f"demonstrations {seed}")
        places = self._draw(rng, size * STILL_ROWS if still else size, seed < 0)
        chosen = [self._window(place, rng.randrange(WORDINGS)) for place in places]
        views = [torch.from_numpy(one.frames[: 1 if still else None]).permute(0, 3, 1, 2) for one in chosen]
        placed = [show(view, self.setting, self.encoding.side) for view in views]
        size_of = placed[0].height, placed[0].width
        # As the pipelines: only a policy is told how several cameras share the frame.
        setting = self.setting if mode == "policy" else replace(self.setting, layout=None)
        captions = self.encoding.generation.captions
        texts = ["" if rng.random() < drop else tell(one.prompt, setting, size_of, captions) for one in chosen]
        states = int(self.plan.state and mode == "policy")
        rows = [one.rows if states else one.actions for one in chosen]
        own, width = self.setting.embodiment, self.encoding.action.width
        actions = torch.stack([encode(row, own, width) for row in rows])
        given = torch.zeros(len(chosen), len(views[0]), dtype=torch.bool)
        given[:, : None if mode == "inverse" else 1] = True
        given_actions = torch.zeros(actions.shape[:2], dtype=torch.bool)
        given_actions[:, : None if mode == "forward" else states] = True
        return RolloutBatch(
            **sentences([self.encoding.say(text) for text in texts], self.encoding),
            frames=torch.stack([one.frames for one in placed]).transpose(1, 2),
            given=given,
            fps=torch.full((len(chosen),), self.setting.fps),
            actions=actions,
            states=states,
            given_actions=given_actions,
            domains=torch.full((len(chosen),), own.domain),
            widths=torch.full((len(chosen),), own.width),
            content=placed[0].content,
            mode=mode,
        )

    def _draw(self, rng: Random, size: int, held_out: bool) -> list[int]:
        """Windows, all of them different as long as there are so many."""
        split = self.split
        first, count = (split.total - split.held_out, split.held_out) if held_out else (0, split.learnt)
        chosen = rng.sample(range(count), min(size, count))
        return [first + i for i in chosen + rng.choices(range(count), k=size - len(chosen))]

    def _window(self, index: int, wording: int) -> droid.DroidSample:
        episode, start = self.windows[index]
        more = {"space": self.plan.space, "views": self.plan.views, "wording": wording}
        return droid.sample(self.dataset, episode, start, self.setting.chunk, **more)


__all__ = ["Demonstrations", "Split", "body_of", "fitted", "split"]
