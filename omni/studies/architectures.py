"""LatentMoE and the hybrid, in kind: small systems of equal parameters, trained alike on the same text, and decoded.

    sweep     each variant at each rate, a short run of a seed of its own ──> its rate: the one of the lowest loss
    runs      each variant at its rate with each seed ──> held-out losses
    decoding  the first seed's models in turns ──> time of a step by length of the cache, bytes
    report    report.json, report.md, loss.png

Every part is kept as it is done: the same call goes on where it was stopped, within a run at its last checkpoint.
``omni bench architectures``. Sources of the claims: Nemotron-H for the hybrid, arXiv 2601.18089 for LatentMoE.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from omni.families import load_folder
from omni.model import Omni
from omni.studies.decoding import Workload, measure
from omni.studies.report import PAIRS, chosen, compare, markdown, plot, summarise
from omni.studies.runs import SWEEP_SEED, Run, balance, perform
from omni.studies.variants import NAMES, Variant, variants
from omni.tensorfile import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained, for how long, and how it is measured. One rate alone needs no sweep."""

    names: tuple[str, ...] = NAMES
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = (4e-3, 8e-3)
    steps: int = 120
    sweep_steps: int = 50
    rows: int = 8
    width: int = 256  # tokens of a row
    held_out: int = 16  # batches
    workload: Workload = field(default_factory=Workload)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.names) - set(NAMES))
        if unknown or not self.names:
            raise ValueError(f"there are no variants {unknown or 'named'}; known: {', '.join(NAMES)}")
        if not (self.seeds and self.rates):
            raise ValueError("a study needs at least one seed and one rate")


QUICK = Plan(
    seeds=(0, 1),
    rates=(4e-3,),
    steps=4,
    sweep_steps=2,
    rows=2,
    width=128,
    held_out=1,
    workload=Workload(read=64, written=64, lengths=(64, 96, 128), rows=(1, 2), turns=2, steps=2),
)
"""Seconds: shows that everything runs, and nothing about the variants."""


def planned(*, quick: bool = False, seed: int = 0) -> Plan:
    """The study, or the quick one, with its seeds counted from ``seed``."""
    plan = QUICK if quick else Plan()
    return replace(plan, seeds=tuple(seed + own for own in plan.seeds))


def study(out: str | Path, plan: Plan | None = None) -> dict[str, Any]:
    """Do what is left of the study in the folder ``out`` and write its report, which is returned.

    ValueError where the folder holds another study.
    """
    plan, out = plan or Plan(), Path(out)
    known = variants()
    torch.set_num_threads(1)
    _claim(out, plan)
    sweep = _perform([_sweep_run(plan, name, rate) for name in plan.names for rate in _swept(plan)], known, out)
    rates = chosen(sweep) if sweep else dict.fromkeys(plan.names, plan.rates[0])
    # Seed by seed, so that a study that is stopped early has whole sets.
    runs = _perform([_run(plan, name, rates[name], seed) for seed in plan.seeds for name in plan.names], known, out)
    first = {name: load_folder(out / "runs" / f"{name}-seed{plan.seeds[0]}" / "model") for name in plan.names}
    report = {
        **_losses(plan, known, sweep, runs),
        "balance": _kept(out / "balance.json", lambda: _balance(plan, first)),
        # Of trained models: which experts are read depends on what was learnt.
        "decoding": _kept(out / "decoding.json", lambda: measure(first, plan.workload)),
    }
    write_json(out / "report.json", report)
    (out / "report.part").write_text(markdown(report), encoding="utf-8")
    (out / "report.part").replace(out / "report.md")
    plot(runs, report, out / "loss.png")
    return report


def _claim(out: Path, plan: Plan) -> None:
    """The folder is this study's alone: results of other sizes would be mixed up with its own."""
    out.mkdir(parents=True, exist_ok=True)
    own = {"plan": _plain(plan), "variants": {name: _described(variants()[name]) for name in plan.names}}
    if (out / "plan.json").exists() and read_json(out / "plan.json") != own:
        raise ValueError(f"{out} holds a study with another plan; choose another folder, or remove it")
    write_json(out / "plan.json", own)


def _plain(plan: Plan) -> dict[str, Any]:
    """As JSON reads it back."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return plain(asdict(plan))


def _described(variant: Variant) -> dict[str, Any]:
    tower = variant.config.context
    sizes = {"mlp": tower.mlp and tower.mlp.d_ff, "moe": tower.moe and asdict(tower.moe)}
    about = {"pattern": tower.pattern, "total": variant.total, "active": variant.active}
    return {**about, "equal_to": variant.equal_to, **{k: v for k, v in sizes.items() if v is not None}}


# -- runs --------------------------------------------------------------------------------------------------------------


def _swept(plan: Plan) -> tuple[float, ...]:
    return plan.rates if len(plan.rates) > 1 else ()


def _run(plan: Plan, name: str, rate: float, seed: int) -> Run:
    sizes = {"steps": plan.steps, "rows": plan.rows, "width": plan.width, "held_out": plan.held_out}
    return Run(name=f"{name}-seed{seed}", variant=name, seed=seed, rate=rate, held_out_from=0, **sizes)


def _sweep_run(plan: Plan, name: str, rate: float) -> Run:
    """Short, of a seed that is not reported, measured on text that is not reported."""
    own = replace(plan, steps=plan.sweep_steps)
    run = _run(own, name, rate, SWEEP_SEED)
    return replace(run, name=f"{name}-rate{rate:g}", held_out_from=plan.held_out)


def _perform(runs: list[Run], known: dict[str, Variant], out: Path) -> list[dict[str, Any]]:
    found = []
    for i, run in enumerate(runs, start=1):
        found.append(perform(run, known[run.variant].config, out / "runs" / run.name))
        print(f"{i} of {len(runs)}: {run.name}, loss {found[-1]['loss']:.4f}", file=sys.stderr, flush=True)
    return found


# -- the report --------------------------------------------------------------------------------------------------------


def _kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the file holds, or what is made now and kept in it."""
    if not path.exists():
        write_json(path, make())
    return read_json(path)


def _balance(plan: Plan, models: dict[str, Omni]) -> dict[str, Any]:
    run = _run(plan, "", plan.rates[0], plan.seeds[0])
    return {name: balance(model, run) for name, model in models.items() if model.config.context.moe is not None}


def _losses(
    plan: Plan, known: dict[str, Variant], sweep: list[dict[str, Any]], runs: list[dict[str, Any]]
) -> dict[str, Any]:
    losses = summarise(runs)
    pairs = [pair for pair in PAIRS if set(pair) <= set(plan.names)]
    plain = _plain(plan)
    return {
        "plan": plain,
        "workload": plain["workload"],
        "held_out_tokens": plan.held_out * plan.rows * plan.width,
        "variants": {name: _described(known[name]) for name in plan.names},
        "losses": losses,
        "comparisons": [compare(losses, *pair, loss) for pair in pairs for loss in ("loss", "answer_loss")],
        "sweep": [{key: run[key] for key in ("variant", "rate", "steps", "loss")} for run in sweep],
    }


__all__ = ["QUICK", "Plan", "planned", "study"]
