"""The batches of a recipe, step by step: which kinds are due, and what each process makes of them."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import torch
from torch.utils.data import IterableDataset

from omni.data.batches import DrawBatch, Encoding, ReadBatch, TalkBatch, draw_batch, read_batch, talk_batch
from omni.data.demonstrations import Demonstrations
from omni.data.documents import SIZES
from omni.data.reasoning_batches import reason_batch
from omni.data.rollout import FRAMES
from omni.data.senses import SENSES as SENSE_BATCHES
from omni.data.senses import SenseBatch
from omni.data.texts import TextBatch, text_batch
from omni.data.worlds import KEPT, PART_ROWS, STILL_ROWS, RolloutBatch, act_batch, animate_batch
from omni.model import Omni
from omni.recipe import (
    MODES,
    OF_DATASETS,
    SENSES,
    ActPlan,
    AnimatePlan,
    DiffusePlan,
    DistilPlan,
    DrawPlan,
    ReadPlan,
    ReasonPlan,
    Recipe,
    SensePlan,
    TalkPlan,
    scaled,
)
from omni.tokenizers.captions import prompt_ids


class Steps(IterableDataset):
    """The batches of a recipe from ``start`` on: a dict of one batch for each kind that is due.

    ``part`` is which of ``parts`` processes this is: each draws its own samples of the same kind and shape, so that
    none waits for another.
    """

    def __init__(self, recipe: Recipe, encoding: Encoding, start: int = 0, part: int = 0, parts: int = 1) -> None:
        self.recipe, self.encoding, self.start = recipe, encoding, start
        self.part, self.parts = part, parts
        self._opened: dict[tuple, Demonstrations] = {}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in range(self.start + first, self.recipe.steps, stride):
            yield self.batches(step)

    def batches(self, step: int) -> dict[str, Any]:
        stage, inner = self.recipe.at(step)
        seed = self.recipe.seed * 1_000_003 + step
        scale = self.recipe.batch_scale
        made = {}
        for kind in stage.due(inner):
            plan, make = getattr(stage, kind), self._sense if kind in SENSES else getattr(self, f"_{kind}")
            made[kind] = (plan, make(seed, scaled(plan, scale), **({"kind": kind} if kind in SENSES else {})))
        return made

    def _sense(self, seed: int, plan: SensePlan, kind: str) -> SenseBatch:
        more = {"kinds": plan.kinds} if kind in ("watch", "listen") else {}
        own = replace(self.encoding, parts=self.parts)
        return SENSE_BATCHES[kind](self._own(seed), plan.size, own, plan.questions, plan.read_first, **more)

    def _read(self, seed: int, plan: ReadPlan) -> ReadBatch:
        look = Random(f"read {seed}")  # the same in every process
        level = look.choices(list(plan.mixture), list(plan.mixture.values()))[0]
        return read_batch(
            self._own(seed),
            plan.size,
            level,
            self.encoding,
            shape=look.choice(SIZES[level]),
            bare=look.random() < plan.bare,
            questions=plan.questions,
            talk=plan.talk,
            read_first=look.random() < plan.read_first,
            foreign=plan.foreign,
            given=plan.given,
        )

    def _draw(self, seed: int, plan: DrawPlan) -> DrawBatch:
        return draw_batch(self._own(seed), plan.size, self.encoding, plan.drop, plan.mixture, plan.full)

    def _talk(self, seed: int, plan: TalkPlan) -> TalkBatch:
        return talk_batch(self._own(seed), plan.size, plan.width, self.encoding, plan.upsample, plan.whole)

    def _reason(self, seed: int, plan: ReasonPlan) -> TalkBatch:
        return reason_batch(self._own(seed), plan.size, plan.width, self.encoding, plan.kinds, plan.levels)

    def _animate(self, seed: int, plan: AnimatePlan) -> RolloutBatch:
        look = Random(f"animated {seed}")  # the same in every process
        sound, group = look.random() < plan.sound, None
        if look.random() < plan.part:
            sound, group = False, look.randrange((FRAMES - 1) // self.encoding.unit)
        more = {"kinds": plan.kinds, "sound": sound, "group": group, "free": plan.free, "drop": plan.drop}
        size = plan.size * (1 if group is None else PART_ROWS)
        again = self._again(seed, "all", plan.size * (1 + plan.part * (PART_ROWS - 1)))
        return animate_batch(self._own(seed), size, self.encoding, again=again, **more)

    def _act(self, seed: int, plan: ActPlan) -> RolloutBatch:
        still = Random(f"still {seed}").random() < plan.still  # the same in every process
        if plan.dataset is not None:
            modes = plan.modes or dict.fromkeys(MODES, 1.0)
            mode = "policy" if still else Random(f"mode {seed}").choices(list(modes), list(modes.values()))[0]
            return self.demonstrations(plan).batch(self._own(seed), plan.size, mode, still, plan.drop)
        look, group = Random(f"part {seed}"), None
        if not still and look.random() < plan.part:
            group = look.randrange((FRAMES - 1) // self.encoding.unit)
        more = {"worlds": plan.worlds, "modes": plan.modes, "still": still, "group": group}
        more |= {"shaken": plan.shaken, "driven": plan.driven, "drop": plan.drop}
        size = plan.size * (1 if group is None else PART_ROWS)
        if still:
            again = self._again(seed, "still", plan.still * size * STILL_ROWS)
        elif group is None:
            again = self._again(seed, "whole", (1 - plan.still) * (1 - plan.part) * size)
        else:
            again = self._again(seed, "part", (1 - plan.still) * plan.part * size)
        return act_batch(self._own(seed), size, self.encoding, again=again, **more)

    def _again(self, seed: int, form: str, rows: float) -> list[str] | None:
        """Names of the rollouts that this process has at hand in a step, where they are shown more than once.

        ``rows``: how many of this form a step shows on average; by the share of them that is new the names move on.
        """
        if self.recipe.fresh == 1:
            return None
        lanes = max(1, self.recipe.workers)  # a worker has what it has made itself
        turn, lane = divmod(seed - self.recipe.seed * 1_000_003, lanes)
        first = int(turn * rows * self.recipe.fresh)
        return [f"{self.recipe.seed} {self.part} {lane} {form} {i}" for i in range(first, first + KEPT)]

    def _distil(self, seed: int, plan: DistilPlan) -> DrawBatch:
        return draw_batch(self._own(seed), plan.size, self.encoding, 0.0, plan.mixture, plan.full)

    def _diffuse(self, seed: int, plan: DiffusePlan) -> TextBatch:
        return text_batch(self._own(seed), plan.size, plan.width, self.encoding, plan.mixture)

    def demonstrations(self, plan: ActPlan) -> Demonstrations:
        """The plan's dataset; it is opened once, by the process that makes the batches."""
        key = tuple(getattr(plan, name) for name in ("dataset", *OF_DATASETS))
        if key not in self._opened:
            self._opened[key] = Demonstrations(plan, self.encoding)
        return self._opened[key]

    def _own(self, seed: int) -> int:
        return seed * self.parts + self.part


def encoding(model: Omni) -> Encoding:
    """What the batches must know of ``model``."""
    v, latent, generation = model.config.vision, model.config.latent, model.config.generation
    special, tokenizer = model.config.special_tokens, model.tokenizer
    patch, token = (v.patch_size, v.token_pixels) if v else (1, 1)
    media = [kind for kind in ("image", "video", "sound") if kind in special]
    return Encoding(
        tokenizer.encode,
        tokenizer.encode_chat,
        tokenizer.special,
        patch,
        token,
        latent.token_pixels if latent else 1,
        tubelet=v.tubelet if v else 1,
        n_mels=model.config.sound.n_mels if model.config.sound else 1,
        sound_tokens=model.sound.tokens_of if model.sound else int,
        names={kind: tokenizer.name_of(special[kind]) for kind in media},
        placeholders=tuple(special[kind] for kind in media),
        action=model.config.action,
        say=partial(
            prompt_ids,
            tokenizer=tokenizer,
            captions=generation.captions,
            kind="video",
            system=generation.system_prompt,
            room=model.config.max_positions,
        ),
        generation=generation,
        side=latent.image_size if latent else 1,
        unit=latent.frames * latent.patch_frames if latent else 1,
    )
