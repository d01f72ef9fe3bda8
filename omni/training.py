"""Training with Lightning: one module for every objective, resumable to the step, on a CPU or a GPU.

    batches(step)  ──>  read: next token of the answers, glyph under each patch
                        draw: velocity of noisy pictures over one reading of the caption
                        talk, reason: next token of packed dialogues
                        watch, listen, film, look: next token of the answers, what is seen or heard at each token
                        distil: what a frozen teacher does between a few noise levels
                        diffuse: tokens under the masks of a block, behind the text before it
                        animate, act: velocity of noisy videos, their sounds, robots' actions; where things are
    loss = weighted sum  ──>  Muon and AdamW, warm-up, constant rate, falling at the end  ──>  averaged weights (EMA)

Batches are a pure function of the step, so a resumed run continues exactly. With several ``devices`` every process
takes its own part of each step's batch, and they share the gradient. ``omni train RECIPE``.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from omni import losses
from omni.data import TRAIN_SEEDS
from omni.data.batches import (
    CELL_SLOTS,
    GLYPH_CLASSES,
    GLYPH_SLOTS,
    LABEL_SLOTS,
    ROW_CLASSES,
    THING_CLASSES,
    DrawBatch,
    ReadBatch,
    TalkBatch,
    draw_batch,
)
from omni.data.clip_log import EVENT_CLASSES
from omni.data.clips import CLIP_CLASSES
from omni.data.motion import sample_motion
from omni.data.senses import SenseBatch
from omni.data.sights import BOX_BINS, SIGHT_CLASSES
from omni.data.sounds import UNITS
from omni.data.texts import TextBatch
from omni.data.worlds import RolloutBatch
from omni.decoders.flow import interpolate, sample_times
from omni.encoders.reduction import retention_mask
from omni.inputs import Inputs
from omni.mixers.moe import Router
from omni.model import Omni
from omni.optim import optimizer
from omni.recipe import (
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
    load_recipe,
)
from omni.tokenizers.bytes import ByteTokenizer
from omni.tokenizers.latent import PixelCodec
from omni.training_diffusion import DiffusionLosses
from omni.training_drafts import DraftLosses
from omni.training_lessons import Lessons
from omni.training_models import Source, check_plans, is_preset, learn_embodiments, opened
from omni.training_parts import Average, Linker, Pointer, in_four_bits, load_weights
from omni.training_steps import Steps, encoding
from omni.training_student import Distillation, student_config
from omni.training_worlds import WorldLosses, read_prompts

SHOWN_CLASSES = (*CLIP_CLASSES, *[BOX_BINS] * 4, *EVENT_CLASSES)  # of what one token shows, and of what happens there
HEARD_CLASSES = (1 + len(UNITS), *SIGHT_CLASSES)  # of what sounds at one token, and of what is shown meanwhile
PRUNING = 0.8  # highest rate at which videos are pruned
CODEC_SCENES = 2000
"""Training scenes that the linear codec is fitted on, before the first step."""
CODEC_SOUNDS = 300
"""Rollouts that the codec of sounds is fitted on."""


class Stopped(RuntimeError):
    """The run was told to stop before its end."""


class OmniTraining(L.LightningModule):
    """Lightning module around :class:`Omni`. The heads that name glyphs and things serve training only."""

    def __init__(self, model: Omni, recipe: Recipe, source: Source | None = None) -> None:
        """``source``: the folder that the model came from; None: it is fresh."""
        super().__init__()
        self.model, self.recipe, self.source = model, recipe, source
        d = model.config.vision.d_model if model.config.vision else 1
        self.glyph_head = nn.Linear(d, GLYPH_SLOTS * GLYPH_CLASSES)
        self.cell_heads = nn.ModuleList(  # what the projector says, and what the context tower makes of it
            nn.Linear(model.config.context.d_model, CELL_SLOTS * GLYPH_CLASSES) for _ in range(2)
        )
        self.label_heads = nn.ModuleList(
            nn.Linear(model.config.context.d_model, LABEL_SLOTS * GLYPH_CLASSES) for _ in range(2)
        )
        self.row_heads = nn.ModuleList(nn.Linear(model.config.context.d_model, ROW_CLASSES) for _ in range(2))
        noisy = model.config.denoiser.d_model if model.config.denoiser else 1
        self.thing_head = nn.Linear(noisy, sum(THING_CLASSES))
        self.clip_heads, self.sound_heads = (  # before and in the context tower too
            nn.ModuleList(nn.Linear(model.config.context.d_model, sum(classes)) for _ in range(2))
            for classes in (SHOWN_CLASSES, HEARD_CLASSES)
        )
        self.worlds = WorldLosses(model)
        self.distillation = Distillation(model, source is not None) if recipe.levels else None
        diffuses = any(stage.diffuse is not None for stage in recipe.stages)
        self.diffusion = DiffusionLosses(self._restart_denoiser) if diffuses else None
        self.ema = Average(model, recipe.ema)
        self.pointer, self.asker, self.linker = Pointer(model), Pointer(model, before=1), Linker(model)
        self.drafts = DraftLosses(model, recipe.predict)
        self.lessons = Lessons(model, recipe.teach)
        self._check_pointer()
        for part in self._frozen():
            part.requires_grad_(False)
        self.clock = in_four_bits(model, recipe)

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        for part in self._frozen():
            part.eval()  # its routers count no tokens
        parts = {}
        for kind, (plan, data) in batch.items():
            parts |= (
                self.sense_losses(kind, plan, data) if kind in SENSES else getattr(self, f"{kind}_losses")(plan, data)
            )
        total = sum(weight * loss for weight, loss in parts.values())
        total = total + self._balance()
        self.log_dict({name: loss.detach() for name, (_, loss) in parts.items()}, prog_bar=True)
        self.log("rate", self.recipe.rate(self.global_step))
        return total

    def read_losses(self, plan: ReadPlan, batch: ReadBatch) -> dict[str, tuple[float, Tensor]]:
        """Glyphs under patches and, unless the plan only names glyphs, next tokens of the answers."""
        with torch.set_grad_enabled(plan.glyph_weight > 0):
            features = self.model.vision(batch.pixels)
        linked = self.linker.loss(batch.links) if plan.link_weight else None  # before another picture is seen
        named = self.glyph_head(features).unflatten(-1, (GLYPH_SLOTS, GLYPH_CLASSES))
        parts = {"glyph": (plan.glyph_weight, losses.glyphs(named, batch.glyphs))} if plan.glyph_weight else {}
        parts |= {"link": (plan.link_weight, linked)} if plan.link_weight else {}
        if batch.input_ids is None:
            return parts
        tokens = self.model.project(features, batch.pixels.shape[-2:])
        inputs = Inputs(batch.input_ids, pixels=tuple(batch.pixels))
        hidden = self.model.read(inputs, seen=tuple(tokens))
        run = batch.input_ids == self.model.config.special_tokens["image"]
        seen = self.pointer.looked_at(hidden)[run].view_as(tokens)
        for name, head, states in zip(("cell", "cell_read"), self.cell_heads, (tokens, seen), strict=True):
            named = head(states).unflatten(-1, (CELL_SLOTS, GLYPH_CLASSES))
            parts[name] = (plan.cell_weight, losses.glyphs(named, batch.cells))
        own = (batch.labelled != losses.IGNORED).any(dim=-1)
        if plan.label_weight and bool(own.any()):
            for name, head, states in zip(("label", "label_read"), self.label_heads, (tokens, seen), strict=True):
                named = head(states[own]).unflatten(-1, (LABEL_SLOTS, GLYPH_CLASSES))
                parts[name] = (plan.label_weight, losses.glyphs(named, batch.labelled[own]))
        if plan.pointer_weight:
            parts |= self._row_losses(plan.pointer_weight, hidden, batch)
            parts |= self._looks("read", plan.pointer_weight, batch.points, batch.asks, batch.told)
        return parts | self._said("read", plan.weight, hidden, batch.labels, batch.told, inputs)

    def draw_losses(self, plan: DrawPlan, batch: DrawBatch) -> dict[str, tuple[float, Tensor]]:
        """Velocity at ``draws`` noise levels of each picture; the caption is read once.

        The denoiser also says which thing each token shows: the squared error alone says very little about which of two
        things has which colour and place, as long as it does not know which of them a token belongs to.
        """
        cache, hidden = read_prompts(self.model, batch.input_ids, batch.mask)
        labels = batch.input_ids.masked_fill(~batch.mask, losses.IGNORED)
        caption = losses.next_token(self.model.predict(hidden), labels)
        codec = self.model.codec or PixelCodec()
        data = codec.encode(batch.pixels).repeat_interleave(plan.draws, dim=0)
        t = sample_times(len(data), None, plan.time_mean, std=plan.time_std).to(data.device)
        noise = torch.randn_like(data)
        noisy = interpolate(data, noise, t)
        velocity, hidden = (streams["video"] for streams in self.model.denoise(noisy, t, cache.fork(plan.draws)))
        named = self.thing_head(hidden).split(THING_CLASSES, dim=-1)
        things = batch.things.repeat_interleave(plan.draws, dim=0).unbind(-1)
        told = sum(losses.balanced(*pair) for pair in zip(named, things, strict=True))
        return {
            "things": (plan.thing_weight, told),
            "draw": (plan.weight, losses.flow(velocity, data, noise)),
            "caption": (plan.caption_weight, caption),
        }

    def talk_losses(self, plan: TalkPlan, batch: TalkBatch) -> dict[str, tuple[float, Tensor]]:
        return self._packed("talk", plan.weight, batch)

    def reason_losses(self, plan: ReasonPlan, batch: TalkBatch) -> dict[str, tuple[float, Tensor]]:
        return self._packed("reason", plan.weight, batch)

    def _packed(self, kind: str, weight: float, batch: TalkBatch) -> dict[str, tuple[float, Tensor]]:
        inputs = Inputs(batch.input_ids, segments=batch.segments)
        hidden = self.model.read(inputs)
        own = batch.labels[:, 1:] != losses.IGNORED  # the head is as large as a layer
        logits = self.model.predict(hidden[:, :-1][own])
        said = {kind: (weight, losses.tokens(logits[None], batch.labels[:, 1:][own][None]))}
        said |= self.drafts.parts(kind, batch.labels, batch.segments)
        return said | self.lessons.parts(kind, inputs, hidden, batch.labels)

    def diffuse_losses(self, plan: DiffusePlan, batch: TextBatch) -> dict[str, tuple[float, Tensor]]:
        return self.diffusion.losses(self.model, plan, batch)

    def _restart_denoiser(self) -> None:
        """What the denoiser was before it began counts for nothing."""
        for prefix in ("denoiser.", "tokens."):
            self.ema.restart(self.model, prefix)

    def animate_losses(self, plan: AnimatePlan, batch: RolloutBatch) -> dict[str, tuple[float, Tensor]]:
        context, _ = read_prompts(self.model, batch.input_ids, batch.mask)
        return self.worlds.animate(self.model, plan, batch, context)

    def act_losses(self, plan: ActPlan, batch: RolloutBatch) -> dict[str, tuple[float, Tensor]]:
        context, _ = read_prompts(self.model, batch.input_ids, batch.mask)
        return self.worlds.act(self.model, plan, batch, context)

    def distil_losses(self, plan: DistilPlan, batch: DrawBatch) -> dict[str, tuple[float, Tensor]]:
        return self.distillation.losses(self.model, plan, batch)

    def sense_losses(self, kind: str, plan: SensePlan, batch: SenseBatch) -> dict[str, tuple[float, Tensor]]:
        """Next tokens of the answers; what each token shows or sounds like, before and as it is read.

        What a token says of the tokens before it, such as that a thing has just come, is asked in the context tower
        only: of what its last attention is given, so that the answers can still look it up.
        """
        ids, special = batch.input_ids, self.model.config.special_tokens
        labels, points, asks, told = batch.labels, batch.points, batch.asks, batch.told
        inputs, seen, heard, named = Inputs(ids), None, None, {}
        if batch.frames is not None:
            tokens = self._see(batch.frames)  # (b, units, tokens, d)
            kept = torch.ones(tokens.shape[:-1], dtype=torch.bool, device=ids.device)
            if tokens.shape[1] > 1 and float(torch.rand(())) < plan.pruned:
                rate = PRUNING * float(torch.rand(()))
                kept = torch.stack([retention_mask(row.detach(), rate) for row in tokens])
                ids, labels, told, points, asks = self._without((ids, labels, told), (points, asks), kept)
            seen = [row[own] for row, own in zip(tokens, kept, strict=True)]
            pixels = tuple(f if len(f) > 1 else f[0] for f in batch.frames)
            inputs = replace(inputs, input_ids=ids, pixels=pixels, kept=tuple(kept) if tokens.shape[1] > 1 else ())
            place = (ids == special["video"]) | (ids == special["image"])
            named["shown"] = self.clip_heads, tokens[kept], place, partial(self.shown_loss, batch, kept)
        if batch.sounds is not None:
            states = self.model.sound_projector(self.model.sound(batch.sounds, batch.lengths))
            clips = tuple(row[:n] for row, n in zip(batch.sounds, batch.lengths.tolist(), strict=True))
            heard = [row[: self.model.sound.tokens_of(len(c))] for row, c in zip(states, clips, strict=True)]
            inputs = replace(inputs, sounds=clips)
            own = batch.heard != losses.IGNORED
            place = ids == special["sound"]
            named["heard"] = self.sound_heads, torch.cat(heard), place, partial(self.heard_loss, batch, own)
        hidden = self.model.read(inputs, seen=seen, heard=heard)
        known, parts = self.pointer.looked_at(hidden), {}
        for name, (heads, states, place, loss) in named.items():
            parts[f"{kind}_{name}"] = (plan.named_weight, loss(heads[0](states), before=True))
            parts[f"{kind}_{name}_read"] = (plan.named_weight, loss(heads[1](known[place]), before=False))
        if plan.pointer_weight:
            parts |= self._looks(kind, plan.pointer_weight, points, asks, told)
        return parts | self._said(kind, plan.weight, hidden, labels, told, inputs)

    def shown_loss(self, batch: SenseBatch, kept: Tensor, logits: Tensor, before: bool) -> Tensor:
        """Of logits (kept tokens, classes): what each token shows, where that is, and what happens there."""
        columns = logits.split(SHOWN_CLASSES, dim=-1)
        things, boxes, events = columns[:3], columns[3:7], columns[7:]
        total = sum(losses.balanced(*pair) for pair in zip(things, batch.shown[kept].unbind(-1), strict=True))
        if batch.boxes is not None:
            total = total + sum(losses.glyphs(*p) for p in zip(boxes, batch.boxes[kept].unbind(-1), strict=True)) / 4
        if batch.events is not None and not before:
            total = total + sum(losses.balanced(*p) for p in zip(events, batch.events[kept].unbind(-1), strict=True))
        return total

    def heard_loss(self, batch: SenseBatch, own: Tensor, logits: Tensor, before: bool) -> Tensor:
        """Of logits (tokens, classes): what is heard at each token and, in the context, what is shown meanwhile."""
        heard, *screen = logits.split(HEARD_CLASSES, dim=-1)
        total = losses.balanced(heard, batch.heard[own])
        if batch.screen is not None and not before:
            total = total + sum(losses.balanced(*p) for p in zip(screen, batch.screen[own].unbind(-1), strict=True))
        return total

    def _without(self, parts: Sequence[Tensor], looks: Sequence[Tensor], kept: Tensor) -> tuple[Tensor, ...]:
        """Rows (b, n), the ids first, without the placeholders of what was pruned: as many in every row.

        ``looks`` hold places.
        """
        stays = torch.ones_like(parts[0], dtype=torch.bool)
        stays[parts[0] == self.model.config.special_tokens["video"]] = kept.flatten()
        now, moved = stays.cumsum(dim=1) - 1, []
        for places in looks:
            seen = (places != losses.IGNORED) & stays.gather(1, places.clamp(min=0))
            moved.append(now.gather(1, places.clamp(min=0)).where(seen, losses.IGNORED))
        return tuple(rows[stays].view(len(stays), -1) for rows in (*parts, *moved))

    def _said(
        self, kind: str, weight: float, hidden: Tensor, labels: Tensor, told: Tensor, inputs: Inputs
    ) -> dict[str, tuple[float, Tensor]]:
        """Next tokens of the answers and of what is told before them, which is longer: a mean of each."""
        logits = self.model.predict(hidden)
        parts = {kind: labels.masked_fill(told, losses.IGNORED), f"{kind}_told": labels.where(told, losses.IGNORED)}
        said = {name: (weight, losses.next_token(logits, own)) for name, own in parts.items()}
        return said | self.drafts.parts(kind, labels) | self.lessons.parts(kind, inputs, hidden, labels)

    def _row_losses(self, weight: float, hidden: Tensor, batch: ReadBatch) -> dict:
        """In which row of its table each token of a transcription is, as either attention that is asked is given it.

        And, as the last one is given it, in which row the answer is read.
        """
        late, early = (
            head(layer.looked_at(hidden))
            for head, layer in zip(self.row_heads, (self.pointer, self.asker), strict=True)
        )
        sought = (batch.rows != losses.IGNORED) & ~batch.told
        parts = {"read_row": (late, batch.told), "read_row_early": (early, batch.told), "read_sought": (late, sought)}
        return {
            name: (weight, losses.glyphs(logits[own], batch.rows[own]))
            for name, (logits, own) in parts.items()
            if bool(own.any())
        }

    def _looks(self, kind: str, weight: float, points: Tensor, asks: Tensor, told: Tensor) -> dict:
        """Where what is told is read, and answers are, and, in a tower of two attention layers, what is asked for."""
        own = points.where(told, losses.IGNORED), points.masked_fill(told, losses.IGNORED)
        parts = dict(zip((f"{kind}_point", f"{kind}_answer"), self.pointer.losses(own), strict=True))
        parts |= {f"{kind}_ask": self.asker.losses([asks])[0]} if self.asker.layer is not None else {}
        return {name: (weight, loss) for name, loss in parts.items()}

    def _see(self, frames: Tensor) -> Tensor:
        """(b, T, 3, H, W) -> tokens (b, units, n, d): tubelets, or still pictures where T is 1."""
        b, t = frames.shape[:2]
        f = self.model.config.vision.tubelet if t > 1 else 1
        units = frames.unflatten(1, (t // f, f)).flatten(0, 1)
        return self.model.see(units if f > 1 else units[:, 0]).unflatten(0, (b, t // f))

    def _balance(self) -> Tensor | float:
        """Sum of the routers' balance losses since the last step."""
        total = 0.0
        for router in self._routers():
            total = total + sum(router.balance)
            router.balance = []
        return total

    def _frozen(self) -> list[nn.Module]:
        known = dict(self.model.named_children())
        unknown = sorted(set(self.recipe.frozen) - set(known))
        if unknown:
            raise ValueError(f"frozen names parts that the model does not have: {unknown}; it has {sorted(known)}")
        return [known[name] for name in self.recipe.frozen]

    def _check_pointer(self) -> None:
        plans = [getattr(stage, kind) for stage in self.recipe.stages for kind in ("read", *SENSES)]
        pointed = any(plan is not None and plan.pointer_weight for plan in plans)
        if pointed and (self.pointer.layer is None or "context" in self.recipe.frozen):
            raise ValueError("pointer_weight is set; it needs a context tower with attention that is not frozen")
        linked = any(stage.read is not None and stage.read.link_weight for stage in self.recipe.stages)
        if linked and (self.linker.block is None or "vision" in self.recipe.frozen):
            raise ValueError("link_weight is set; it needs a vision encoder of transformer blocks that is not frozen")

    def _routers(self) -> list[Router]:
        return [m for m in self.model.modules() if isinstance(m, Router)]

    def configure_optimizers(self) -> dict[str, Any]:
        chosen = optimizer(self, weight_decay=self.recipe.weight_decay, betas=self.recipe.betas)
        schedule = torch.optim.lr_scheduler.LambdaLR(chosen, self.recipe.rate)
        return {"optimizer": chosen, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        # Noise follows the step, not the history of the run: a resumed run draws what the first would have drawn.
        step = self.recipe.seed * 1_000_003 + self.global_step
        torch.manual_seed(step * self.trainer.world_size + self.trainer.global_rank)
        if self.clock is not None:
            self.clock.step = self.global_step
            self.clock.high_forward = self.global_step >= self.recipe.four_bits.high_from * self.recipe.steps

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The step, and what follows every step: router biases and averages, before a checkpoint can be written."""
        super().optimizer_step(*args, **kwargs)
        routers = self._routers()
        self._share_loads(routers)
        for router in routers:
            if bool(router.load.any()):
                router.update_bias()
        self.ema.update(self.model)

    def _share_loads(self, routers: list[Router]) -> None:
        """Every process counts the tokens of all, so that their biases stay the same."""
        if self.trainer.world_size > 1 and routers:
            loads = torch.cat([router.load for router in routers])
            torch.distributed.all_reduce(loads)
            for router, load in zip(routers, loads.split([len(r.load) for r in routers]), strict=True):
                router.load.copy_(load)

    def train_dataloader(self) -> DataLoader:
        part, parts = self.trainer.global_rank, self.trainer.world_size
        steps = Steps(self.recipe, encoding(self.model), self.global_step, part, parts)
        workers = self.recipe.workers  # they take the steps in turn, so the order stays the same
        return DataLoader(steps, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None)

    def transfer_batch_to_device(self, batch: dict[str, Any], device: torch.device, index: int) -> dict[str, Any]:
        return {kind: (plan, data.to(device)) for kind, (plan, data) in batch.items()}


def build(recipe: Recipe) -> OmniTraining:
    """The recipe's model in its training module: fresh and seeded where it is a preset, else with a folder's weights.

    A model of the second kind also learns whose actions the recipe's datasets hold. ValueError where it cannot be
    trained as the recipe says.
    """
    L.seed_everything(recipe.seed, verbose=False)
    model, source = (_fresh(recipe), None) if is_preset(recipe.model) else opened(recipe.model)
    check_plans(recipe, model, source)
    learn_embodiments(recipe, model)
    model.config = student_config(model.config, recipe)
    return OmniTraining(model, recipe, source)


def _fresh(recipe: Recipe) -> Omni:
    from omni.families import preset

    model = Omni(preset(recipe.model))
    model.tokenizer = ByteTokenizer()
    if model.codec is not None:
        fitted_on = draw_batch(recipe.seed, CODEC_SCENES, encoding(model))
        model.codec.fit(fitted_on.pixels)
    if model.sound_codec is not None:
        heard = [sample_motion(TRAIN_SEEDS.start + i).sound for i in range(CODEC_SOUNDS)]
        model.sound_codec.fit(torch.from_numpy(np.stack(heard)).float()[:, None])
    return model


def train(
    path: str | Path,
    *,
    preset: str | None = None,
    out: str | Path = "runs/tiny",
    resume: bool = True,
    init: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
) -> Path:
    """Run (or go on with) a recipe; returns the folder of the exported, averaged model.

    ``out`` holds checkpoints, logs, sample pictures, and at the end ``model/``, which ``omni.load`` reads. ``init``
    starts from another run's checkpoint, or from a saved model, with this run's steps counted from zero.

    Told to stop (SIGTERM), the run ends after the step it is in, writes its checkpoint and raises :class:`Stopped`.
    """
    from omni.training_callbacks import Probe, StopTogether, export

    recipe = load_recipe(path, preset, overrides)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32
    torch.set_flush_denormal(True)  # forgotten states and old gradients would slow a CPU down a hundred times
    module = build(recipe)
    if init is not None:
        load_weights(module, init)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    last = out / "checkpoints" / "last.ckpt"
    saver = ModelCheckpoint(
        out / "checkpoints",
        filename="step-{step}",
        save_last=True,
        save_top_k=1,
        every_n_train_steps=recipe.save_every,
        enable_version_counter=False,  # last.ckpt is the last one, also where another process wrote the one before
    )
    stopper = StopTogether(last)
    trainer = L.Trainer(
        max_steps=recipe.steps,
        accelerator=recipe.accelerator,
        devices=recipe.devices,
        strategy=_strategy(recipe.devices),
        precision=recipe.precision,
        gradient_clip_val=recipe.clip,
        logger=[CSVLogger(out, name="csv"), TensorBoardLogger(out, name="tensorboard")],
        callbacks=[saver, Probe(out, recipe.probe_every), stopper],
        log_every_n_steps=recipe.log_every,
        enable_model_summary=False,
        enable_progress_bar=os.isatty(2),
    )
    # The checkpoint is this run's own file; Lightning stores the optimiser's state beside the weights in it.
    trainer.fit(module, ckpt_path=last if resume and last.exists() else None, weights_only=False)
    if not trainer.is_global_zero:
        sys.exit(0)  # the other processes repeat the command that started the run; what follows is the first's
    if stopper.stopped:
        done = f"stopped after step {trainer.global_step} of {recipe.steps}"
        raise Stopped(f"{done}; the same command goes on from there")
    return export(module, out / "model")


def _strategy(devices: int) -> str | DDPStrategy:
    """Buffers are not sent around: every process keeps the same ones, and the averages are as large as the model."""
    if devices == 1:
        return "auto"
    return DDPStrategy(find_unused_parameters=True, broadcast_buffers=False, gradient_as_bucket_view=True)
