"""One training run of the study: a seeded start, a recipe, the run, its held-out losses. Resumable at every point.

runs/NAME/  start/       random weights, drawn from the seed
            recipe.yaml  what ``omni train`` would be given
            csv/, checkpoints/, model/ ...  what a run of :func:`omni.training.train` leaves
            result.json  written last; a run that has it is not repeated
"""

import csv
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from omni.config import OmniConfig
from omni.data.batches import TalkBatch, talk_batch
from omni.families import load_folder, save
from omni.inputs import Inputs
from omni.losses import IGNORED
from omni.mixers.moe import Router
from omni.model import Omni
from omni.tensorfile import read_json, write_json
from omni.tokenizers.bytes import ByteTokenizer
from omni.training import train
from omni.training_steps import encoding

DECAY = 0.4  # share of the steps over which the rate falls to zero
SWEEP_SEED = 1_000
"""Of the runs that choose the rate: no run that is reported has it."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run is given. Its batches follow from ``seed``, ``rows`` and ``width`` alone."""

    name: str
    variant: str
    seed: int
    rate: float
    steps: int
    rows: int
    width: int
    held_out: int  # batches that the losses are measured on
    held_out_from: int  # number of the first of them

    @property
    def tokens(self) -> int:
        """Places of the packed rows, padding included."""
        return self.steps * self.rows * self.width


def perform(run: Run, config: OmniConfig, folder: Path) -> dict[str, Any]:
    """Train, or go on, or read what was found before. Returns the content of result.json."""
    result = folder / "result.json"
    if result.exists():
        return read_json(result)
    fresh = not folder.exists()
    _prepare(run, config, folder)
    began = time.process_time()
    train(folder / "recipe.yaml", out=folder)
    spent = time.process_time() - began if fresh else None  # of a run in one go
    found = {
        "variant": run.variant,
        "seed": run.seed,
        "rate": run.rate,
        "steps": run.steps,
        "tokens": run.tokens,
        "processor_seconds": spent,
        **held_out(load_folder(folder / "model"), run),
        "curve": curve(folder),
    }
    write_json(result, found)
    for part in ("start", "checkpoints", "tensorboard"):
        shutil.rmtree(folder / part, ignore_errors=True)
    return found


def _prepare(run: Run, config: OmniConfig, folder: Path) -> None:
    """The start and the recipe, which stands behind it: a folder with a recipe is complete."""
    if (folder / "recipe.yaml").exists():
        return
    torch.manual_seed(run.seed)
    model, start = Omni(config), folder / "start"
    save(model, start, dtype=torch.float32)
    ByteTokenizer().save(start)
    beside = folder / "recipe.yaml.part"
    beside.write_text(yaml.safe_dump(recipe(run, start), sort_keys=False))
    os.replace(beside, folder / "recipe.yaml")


def recipe(run: Run, start: Path) -> dict[str, Any]:
    """What the YAML file holds: one thread, a rate that is kept and then falls, every token learnt."""
    talk = {"size": run.rows, "width": run.width, "whole": True, "weight": 1.0}
    falling = max(1, round(run.steps * DECAY))
    stages = [
        {"name": "steady", "steps": run.steps - falling, "lr": run.rate, "talk": talk},
        {"name": "falling", "steps": falling, "lr": run.rate, "decay": True, "talk": talk},
    ]
    return {
        "model": str(start.resolve()),
        "seed": run.seed,
        "warmup": max(1, run.steps // 12),
        "ema": 0.95,
        "threads": 1,
        "accelerator": "cpu",
        "log_every": 1,
        "save_every": max(10, run.steps // 6),
        "probe_every": run.steps,
        "stages": [stage for stage in stages if stage["steps"]],
    }


def curve(folder: Path) -> list[list[float]]:
    """[step, training loss] of every step; a batch is shown once, so it is held out until then."""
    found = {}
    for path in sorted(folder.glob("csv/*/metrics.csv"), key=lambda path: path.stat().st_mtime):
        with path.open(newline="") as file:
            found |= {int(row["step"]): float(row["talk"]) for row in csv.DictReader(file) if row.get("talk")}
    return [[step, loss] for step, loss in sorted(found.items())]


# -- what is held out --------------------------------------------------------------------------------------------------


@torch.inference_mode()
def held_out(model: Omni, run: Run) -> dict[str, float]:
    """Nats a token over all of ``run``'s held-out batches: of every token, of the assistant's answers, of the rest.

    And the share of the answers' tokens that are the likeliest ones.
    """
    sums, counts, right = {"answers": 0.0, "rest": 0.0}, {"answers": 0, "rest": 0}, 0
    for whole, answers in _held_out_batches(model, run):
        logits = model.logits(Inputs(whole.input_ids, segments=whole.segments))[:, :-1]
        targets, said = whole.labels[:, 1:], answers.labels[:, 1:] != IGNORED
        nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        nats = nats.view_as(targets)
        for name, where in (("answers", said), ("rest", ~said & (targets != IGNORED))):
            sums[name] += float(nats[where].double().sum())
            counts[name] += int(where.sum())
        right += int((logits.argmax(-1) == targets)[said].sum())
    if not all(counts.values()):
        raise ValueError(f"no dialogue is held out: {run.held_out} batches of rows of {run.width} tokens hold none")
    if not math.isfinite(sum(sums.values())):
        raise ValueError(f"{run.name} has diverged at the rate {run.rate:g}: its held-out loss is no number")
    return {
        "loss": sum(sums.values()) / sum(counts.values()),
        "answer_loss": sums["answers"] / counts["answers"],
        "rest_loss": sums["rest"] / counts["rest"],
        "answer_accuracy": right / counts["answers"],
    }


@torch.inference_mode()
def balance(model: Omni, run: Run) -> dict[str, float]:
    """How evenly the held-out batches are spread over the experts, the mean of all layers.

    ``busiest``: what the most chosen expert takes over an even share. ``idle``: the part of the experts that takes less
    than a tenth of it.
    """
    routers = [module for module in model.modules() if isinstance(module, Router)]
    loads = {router: torch.zeros(router.config.n_experts) for router in routers}

    def note(router: Router, _: tuple, chosen: tuple[Tensor, Tensor]) -> None:
        loads[router] += torch.bincount(chosen[0][real].flatten(), minlength=router.config.n_experts)

    hooks = [router.register_forward_hook(note) for router in routers]
    for whole, _ in _held_out_batches(model, run):
        real = whole.input_ids.flatten() != model.tokenizer.special["pad"]  # padding chooses too, always the same
        model.read(Inputs(whole.input_ids, segments=whole.segments))
    for hook in hooks:
        hook.remove()
    shares = [load / load.mean() for load in loads.values()]
    return {
        "busiest": sum(float(share.max()) for share in shares) / len(shares),
        "idle": sum(float((share < 0.1).float().mean()) for share in shares) / len(shares),
    }


def _held_out_batches(model: Omni, run: Run) -> Iterator[tuple[TalkBatch, TalkBatch]]:
    """Each batch with the labels of all tokens, and of the answers. Their seeds are below those of training."""
    words = encoding(model)
    for i in range(run.held_out):
        seed = -1 - run.held_out_from - i
        yield tuple(talk_batch(seed, run.rows, run.width, words, whole=whole) for whole in (True, False))


def text(model: Omni, tokens: int) -> Tensor:
    """(tokens,) ids: held-out dialogues one after the other, as a long sequence to read."""
    words, parts, seed = encoding(model), [], -1
    while sum(map(len, parts)) < tokens:
        batch = talk_batch(seed, 8, 512, words)
        parts.append(batch.input_ids[batch.input_ids != words.special["pad"]])
        seed -= 1
    return torch.cat(parts)[:tokens]


__all__ = ["SWEEP_SEED", "Run", "balance", "curve", "held_out", "perform", "recipe", "text"]
