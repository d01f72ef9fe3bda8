"""What a training run shows and leaves behind: held-out probes and their controls, pictures, plots, the model."""

import csv
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omni.data.batches import read_batch
from omni.data.demonstrations import Demonstrations
from omni.data.reasoning import LEVELS
from omni.data.reasoning_batches import ROOM, reason_batch
from omni.data.scenes import CATEGORIES, check, sample_prompt
from omni.data.worlds import act_batch, animate_batch
from omni.families import save
from omni.inputs import Inputs
from omni.losses import IGNORED, next_token
from omni.pipelines.images import TextToImage, contact_sheet, save_png
from omni.recipe import ActPlan, AnimatePlan, ReasonPlan
from omni.tensorfile import write_json
from omni.training import OmniTraining, encoding
from omni.training_models import write_folder

HELD_OUT = 7  # a batch seed far below the training seeds
PROMPTS = 12


class Probe(L.Callback):
    """Every ``every`` steps: held-out reading loss with the page, with a blank page and with another row's page; a
    sheet of pictures with how many show what was asked; losses of problems; errors of videos and actions; and their
    controls. Lines go to ``probes.csv``, sheets to ``samples/``."""

    def __init__(self, out: Path, every: int) -> None:
        self.out, self.every = out, every

    def on_train_batch_end(self, trainer: L.Trainer, module: OmniTraining, outputs, batch, index: int) -> None:
        if trainer.global_step % self.every and trainer.global_step != trainer.max_steps:
            return
        if not trainer.is_global_zero:
            return
        stage, _ = module.recipe.at(max(0, trainer.global_step - 1))
        row = {"step": trainer.global_step, "stage": stage.name}
        with averaged(module), torch.no_grad():
            if stage.read is not None and stage.read.talk:
                row |= reading(module, stage.read.mixture)
            if stage.draw is not None or stage.distil is not None:
                row |= drawing(module, self.out / "samples" / f"{trainer.global_step:06d}.png")
            if stage.reason is not None:
                row |= solving(module, stage.reason)
            for kind in ("animate", "act"):
                if getattr(stage, kind) is not None:
                    row |= denoising(module, kind, getattr(stage, kind))
        append(self.out / "probes.csv", row)
        plot(self.out)

    def on_train_end(self, trainer: L.Trainer, module: OmniTraining) -> None:
        if trainer.is_global_zero:
            plot(self.out)


class StopTogether(L.Callback):
    """On SIGTERM all processes of a run end after the same step, with its checkpoint written to ``path``.

    Lightning's own handler sends a message to the others from inside the signal, when they may be waiting for the
    gradient instead: then none of them ever ends.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.told, self.stopped = path, False, False
        self.before: Any = signal.SIG_DFL  # what SIGTERM did before the run, and does behind it

    def on_train_start(self, trainer: L.Trainer, module: OmniTraining) -> None:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self.before = signal.signal(signal.SIGTERM, self._tell) or signal.SIG_DFL

    def teardown(self, trainer: L.Trainer, module: OmniTraining, stage: str) -> None:
        if signal.getsignal(signal.SIGTERM) == self._tell:
            signal.signal(signal.SIGTERM, self.before)

    def _tell(self, *_: object) -> None:
        self.told = True

    def on_train_batch_end(self, trainer: L.Trainer, module: OmniTraining, outputs, batch, index: int) -> None:
        if trainer.global_step < trainer.max_steps and trainer.strategy.reduce_boolean_decision(self.told, all=False):
            self.stopped = trainer.should_stop = True
            trainer.save_checkpoint(self.path)


class averaged:
    """Within the block the module's model has its averaged weights and is in evaluation mode."""

    def __init__(self, module: OmniTraining) -> None:
        self.module = module

    def __enter__(self) -> None:
        model = self.module.model
        self.held = {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(self.module.ema.weights())
        model.eval()

    def __exit__(self, *_: object) -> None:
        self.module.model.load_state_dict(self.held)
        self.module.model.train()


def reading(module: OmniTraining, mixture: dict[str, float]) -> dict[str, float]:
    """Held-out loss, and the two controls that must be worse once the model looks: a blank page, another row's page."""
    hardest = list(mixture)[-1]
    batch = read_batch(-HELD_OUT, 12, hardest, encoding(module.model)).to(module.device)

    def loss(pixels: Tensor) -> float:
        hidden = module.model.read(Inputs(batch.input_ids, pixels=tuple(pixels)))
        return float(next_token(module.model.predict(hidden), batch.labels))

    blank = torch.full_like(batch.pixels, 0.9)
    return {
        "read": loss(batch.pixels),
        "read_blank": loss(blank),
        "read_shuffled": loss(batch.pixels.roll(1, dims=0)),
    }


def drawing(module: OmniTraining, path: Path) -> dict[str, float]:
    """Share of held-out prompts drawn right, as the model draws by default; saves the sheet, enlarged twice."""
    asked = [sample_prompt(i, CATEGORIES[i % len(CATEGORIES)]) for i in range(PROMPTS)]
    prompts = [prompt for prompt, _ in asked]
    drawn = TextToImage(module.model)(prompts, seed=list(range(PROMPTS))).images
    right = [check(np.asarray(image), request) for image, (_, request) in zip(drawn, asked, strict=True)]
    sheet = contact_sheet(drawn, columns=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST), path)
    return {"drawn_right": sum(right) / PROMPTS}


def solving(module: OmniTraining, plan: ReasonPlan) -> dict[str, float]:
    """Held-out loss of each level, and of the easiest without its questions, which must be worse."""

    def loss(level: int, blind: bool = False) -> float:
        batch = reason_batch(-HELD_OUT, 8, ROOM, encoding(module.model), plan.kinds, {level: 1.0})
        batch = batch.to(module.device)
        pad = module.model.config.special_tokens["pad"]
        ids = batch.input_ids.masked_fill(batch.labels == IGNORED, pad) if blind else batch.input_ids
        hidden = module.model.read(Inputs(ids, segments=batch.segments))
        return float(next_token(module.model.predict(hidden), batch.labels))

    return {f"reason_{level}": loss(level) for level in LEVELS} | {"reason_blind": loss(LEVELS[0], blind=True)}


def denoising(module: OmniTraining, kind: str, plan: AnimatePlan | ActPlan) -> dict[str, float]:
    """Held-out errors of videos, or of a policy's actions, and the control that must be worse once the model reads and
    looks: with another row's sentence, or another row's first frame."""
    words, shuffled = encoding(module.model), {}
    if kind == "animate":
        batch = animate_batch(-HELD_OUT, PROMPTS, words, kinds=plan.kinds, drop=0.0).to(module.device)
        shuffled = {name: getattr(batch, name).roll(1, dims=0) for name in ("input_ids", "mask")}
    elif plan.dataset is not None:
        rows = max(2, plan.size)  # as large as those that are trained on: a video has thousands of tokens
        batch = Demonstrations(plan, words).batch(-HELD_OUT, rows, "policy").to(module.device)
        shuffled = {"frames": batch.frames.roll(1, dims=0)}
    else:
        batch = act_batch(-HELD_OUT, PROMPTS, words, worlds=plan.worlds, still=True, drop=0.0).to(module.device)
        shuffled = {"frames": batch.frames.roll(1, dims=0)}
    row = {}
    for name, shown in ((kind, batch), (f"{kind}_shuffled", replace(batch, **shuffled))):
        torch.manual_seed(HELD_OUT)
        row[name] = float(getattr(module, f"{kind}_losses")(plan, shown)[kind][1])
    return row


def append(path: Path, row: dict) -> None:
    """Add a row to a CSV file whose columns may grow."""
    old = []
    if path.exists():
        with path.open(newline="") as file:
            old = list(csv.DictReader(file))
    names = list(dict.fromkeys([k for r in [*old, row] for k in r]))
    beside = path.with_suffix(".part")
    with beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows([*old, row])
    beside.replace(path)


def plot(out: Path) -> None:
    """``loss.png``: every logged loss over the steps, and the probes."""
    series: dict[str, list[tuple[float, float]]] = {}
    for path in [*sorted(out.glob("csv/*/metrics.csv")), out / "probes.csv"]:
        if not path.exists():
            continue
        prefix = "held-out " if path.name == "probes.csv" else ""
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name not in ("step", "epoch", "stage", "rate") and value:
                        series.setdefault(prefix + name, []).append((float(row["step"]), float(value)))
    if not series:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5))
    for name, points in series.items():
        axes.plot(*zip(*sorted(points), strict=True), label=name, linewidth=1)
    axes.set(xlabel="step", ylabel="loss, or share right", yscale="log")
    axes.legend(fontsize=8)
    figure.savefig(out / "loss.part", dpi=110, format="png")
    (out / "loss.part").replace(out / "loss.png")
    pyplot.close(figure)


def export(module: OmniTraining, folder: Path) -> Path:
    """The averaged weights as a checkpoint that ``omni.load`` reads.

    Of a fresh model bfloat16 matrices, computed in float32; of a folder's model what that folder has.
    """
    recipe = module.recipe
    with averaged(module):
        if module.source is not None:
            write_folder(module.model, recipe, module.source, folder)
        else:
            save(module.model, folder, dtype=torch.bfloat16, compute_dtype=torch.float32)
            module.model.tokenizer.save(folder)
    write_json(folder / "training.json", {"recipe": recipe.metadata, "seed": recipe.seed, "steps": module.global_step})
    return folder
