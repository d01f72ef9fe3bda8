"""A model in fewer bits beside itself: bytes on disk and in memory, decoding in turns, and what it still gets right.

    as it is   bfloat16, as the files are          computed in float32 on a CPU
    fp8, nvfp4, mixed                              :mod:`omni.quantization.plans`, weights alone

Every form is written to a folder and loaded from there, as a user would. Scores are those of ``omni eval`` on the same
held-out cases; with so few of them a single case moves a score by several hundredths.
"""

import io
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from omni.bench_tools import in_turns
from omni.data import HELD_OUT_SEEDS
from omni.data.text import sample_text
from omni.evaluation import evaluate
from omni.families import compute_dtype, load_folder
from omni.families.convert import convert
from omni.families.locate import find_folder
from omni.model import Omni
from omni.quantize import quantize

HIGH = "bfloat16"
FORMS = (HIGH, "fp8", "nvfp4", "mixed")
PROMPT, STEPS = 64, 16  # tokens before the first timed step, and of one timed turn


@dataclass(frozen=True)
class Scored:
    """How a task is measured: cases in full and quickly, what is shown of it, and what a model must have for it."""

    count: int
    quick: int
    metrics: tuple[str, ...]
    needs: tuple[str, ...] = ()  # fields of the model's configuration


TASKS = {
    "text": Scored(48, 16, ("exact_match", "answer_perplexity_per_byte")),
    "documents": Scored(30, 2, ("anls",), ("vision",)),
    "sights": Scored(60, 0, ("accuracy", "iou"), ("vision",)),
    "video": Scored(48, 0, ("accuracy",), ("vision",)),
    "sound": Scored(60, 0, ("accuracy", "digits_wer", "words_wer"), ("sound",)),
    "films": Scored(24, 0, ("accuracy",), ("vision", "sound")),
    "draw": Scored(36, 0, ("overall",), ("latent", "vision")),
}


@dataclass(frozen=True)
class Form:
    """One form of the model: bytes, and what was measured."""

    name: str
    disk: int
    memory: int
    step: float  # seconds of a decoding step, the median of the turns
    ratio: float  # of its steps to those of the model as it is: the median of the turns
    error: float  # norm of the difference of logits on held-out text, over theirs
    scores: dict[str, float]  # task and metric -> value


@dataclass(frozen=True)
class LowReport:
    model: str
    settings: dict[str, Any]
    forms: list[Form]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def bench_lowbits(
    model: str = "tiny", *, quick: bool = False, seed: int = 0, threads: int = 2, tasks: Sequence[str] = tuple(TASKS)
) -> LowReport:
    """Measure ``model`` in every form, on those of ``tasks`` that it can do.

    Half an hour for the shipped model; ``quick``: minutes, with fewer turns, tasks and cases.
    """
    torch.set_num_threads(threads)
    source = find_folder(model)
    with tempfile.TemporaryDirectory() as place:
        folders = {name: Path(place) / name for name in FORMS}
        convert(source, folders[HIGH], family="omni", dtype=HIGH)
        for name in FORMS[1:]:
            quantize(folders[HIGH], folders[name], name)
        models = {name: load_folder(folder, dtype=compute_dtype(folder)) for name, folder in folders.items()}
        disk = {name: sum(p.stat().st_size for p in f.glob("*.safetensors")) for name, f in folders.items()}
    times = dict(
        zip(FORMS, in_turns([_stepper(m) for m in models.values()], 3 if quick else 9, "decoding"), strict=True)
    )
    errors = _errors(models, seed)
    scores = {name: _scores(m, tasks, quick, seed) for name, m in models.items()}
    forms = [
        Form(
            name,
            disk[name],
            sum(t.nbytes for t in models[name].state_dict().values()),
            median(times[name]) / STEPS,
            median(a / b for a, b in zip(times[name], times[HIGH], strict=True)),
            errors[name],
            scores[name],
        )
        for name in FORMS
    ]
    settings = {"threads": threads, "seed": seed, "quick": quick, "torch": torch.__version__}
    return LowReport(model, settings, forms)


def _stepper(model: Omni):
    """A function that decodes one turn of tokens."""
    ids = _ids(model, 0, PROMPT + STEPS)
    cache = model.new_cache(1, PROMPT + 64 * STEPS)

    @torch.inference_mode()
    def run() -> None:
        for i in range(STEPS):
            model.logits(ids[:, PROMPT + i : PROMPT + i + 1], cache, last_only=True)

    with torch.inference_mode():
        model.logits(ids[:, :PROMPT], cache, last_only=True)
    return run


def _ids(model: Omni, seed: int, n: int) -> Tensor:
    return torch.randint(3, model.config.vocab_size, (1, n), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def _errors(models: dict[str, Omni], seed: int) -> dict[str, float]:
    texts = [sample_text(HELD_OUT_SEEDS[seed + i]) for i in range(8)]
    tokens = [models[HIGH].tokenizer.encode_chat(text) for text in texts]
    logits = {name: [m.logits(torch.tensor([ids])) for ids in tokens] for name, m in models.items()}
    norm = sum(float(own.square().sum()) for own in logits[HIGH])
    off = {
        n: sum(float((a - b).square().sum()) for a, b in zip(o, logits[HIGH], strict=True)) for n, o in logits.items()
    }
    return {name: (square / norm) ** 0.5 for name, square in off.items()}


def _scores(model: Omni, tasks: Sequence[str], quick: bool, seed: int) -> dict[str, float]:
    found = {}
    for task in tasks:
        how = TASKS[task]
        count = how.quick if quick else how.count
        if count == 0 or any(getattr(model.config, part) is None for part in how.needs):
            continue
        metrics = evaluate(task, model, count=count, seed=seed).metrics
        found |= {f"{task} {name.replace('_', ' ')}": metrics[name] for name in how.metrics if name in metrics}
    return found


def table(report: LowReport) -> str:
    """The report for people."""
    console = Console(file=io.StringIO(), width=110)
    shown = Table(report.model, *(form.name for form in report.forms))
    first = report.forms[0]
    rows: dict[str, Any] = {
        "on disk, MB": lambda f: f"{f.disk / 1e6:.2f}",
        "in memory, MB": lambda f: f"{f.memory / 1e6:.2f}",
        "decode, ms a step": lambda f: f"{1e3 * f.step:.2f}",
        "times as long": lambda f: f"{f.ratio:.2f}",
        "error of logits": lambda f: f"{f.error:.4f}",
        **{name: lambda f, name=name: f"{f.scores[name]:.3f}" for name in first.scores},
    }
    for name, write in rows.items():
        shown.add_row(name, *(write(form) for form in report.forms))
    console.print(shown)
    return console.file.getvalue().rstrip()


__all__ = ["Form", "LowReport", "bench_lowbits", "table"]
