"""The study's arithmetic and its pages: means and spreads over seeds, paired differences, tables, a picture."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from scipy.stats import t as student

from omni.studies.decoding import crossover

PAIRS = (
    ("moe", "dense"),
    ("moe", "dense-total"),
    ("latent-2", "moe"),
    ("latent-4", "moe"),
    ("dense", "attention"),
)
"""The questions: does the first have a lower loss than the second?"""

LOSSES = ("loss", "answer_loss", "rest_loss", "answer_accuracy")
SMOOTHED = 15  # steps of the curves that are averaged


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By variant: of every loss the mean, the standard deviation over seeds and each seed's own; the training's speed.

    The speed counts the processor's seconds of whole runs that were not interrupted, and is their median.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(run["variant"] for run in runs):
        own = sorted((run for run in runs if run["variant"] == name), key=lambda run: run["seed"])
        found[name] = {"rate": own[0]["rate"], "seeds": [run["seed"] for run in own]}
        for loss in LOSSES:
            values = [run[loss] for run in own]
            spread = statistics.stdev(values) if len(values) > 1 else None
            found[name][loss] = {"mean": statistics.fmean(values), "std": spread, "values": values}
        timed = [run["tokens"] / run["processor_seconds"] for run in own if run["processor_seconds"] is not None]
        found[name]["tokens_a_second"] = statistics.median(timed) if timed else None
    return found


def compare(summary: dict[str, dict[str, Any]], one: str, other: str, loss: str = "loss") -> dict[str, Any]:
    """Differences of the loss between runs of one seed, which saw the same batches: ``one`` minus ``other``.

    ``interval`` is the 95% interval of their mean, by Student's t; None for one seed.
    """
    a, b = (summary[name] for name in (one, other))
    if a["seeds"] != b["seeds"]:
        raise ValueError(f"{one} has the seeds {a['seeds']} and {other} {b['seeds']}; differences are within seeds")
    each = [x - y for x, y in zip(a[loss]["values"], b[loss]["values"], strict=True)]
    mean, interval = statistics.fmean(each), None
    if len(each) > 1:
        half = float(student.ppf(0.975, len(each) - 1)) * statistics.stdev(each) / len(each) ** 0.5
        interval = [mean - half, mean + half]
    return {"one": one, "other": other, "loss": loss, "differences": each, "mean": mean, "interval": interval}


def chosen(sweep: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The rate of each variant's sweep whose loss is the lowest."""
    best: dict[str, dict[str, Any]] = {}
    for run in sweep:
        name = run["variant"]
        if name not in best or run["loss"] < best[name]["loss"]:
            best[name] = run
    return {name: run["rate"] for name, run in best.items()}


# -- pages -------------------------------------------------------------------------------------------------------------


def markdown(report: dict[str, Any]) -> str:
    """The report for people: what was equal, the losses, the differences, the sweep, decoding."""
    parts = [_about(report), _losses(report), _differences(report)]
    parts += [_balance(report)] if report["balance"] else []
    parts += [_sweep(report)] if report["sweep"] else []
    parts += [_decoding(report, int(rows)) for rows in report["workload"]["rows"]]
    return "\n\n".join(parts) + "\n"


def _about(report: dict[str, Any]) -> str:
    plan = report["plan"]
    tokens = plan["steps"] * plan["rows"] * plan["width"]
    seeds = len(plan["seeds"])
    return (
        f"{plan['steps']} steps of {plan['rows']} x {plan['width']} tokens ({tokens:,}; a token is a byte, or the mark "
        f"of a turn), {seeds} seeds; of one seed all variants see the same batches. Losses in nats a token on "
        f"{report['held_out_tokens']:,} held-out places."
    )


def _losses(report: dict[str, Any]) -> str:
    head = ("variant", "pattern", "total", "active", "rate", "loss", "of answers", "of the rest", "answer tokens right")
    head += ("trained, tokens/s",)
    rows = []
    for name, own in report["losses"].items():
        v = report["variants"][name]
        losses = [_spread(own[loss]) for loss in LOSSES]
        speed = "-" if own["tokens_a_second"] is None else f"{own['tokens_a_second']:,.0f}"
        sizes = (f"`{v['pattern']}`", f"{v['total']:,}", f"{v['active']:,}", f"{own['rate']:g}")
        rows.append((name, *sizes, *losses, speed))
    return _table(head, rows)


def _differences(report: dict[str, Any]) -> str:
    rows = []
    for pair in report["comparisons"]:
        each = ", ".join(f"{d:+.4f}" for d in pair["differences"])
        interval = "{:+.4f} to {:+.4f}".format(*pair["interval"]) if pair["interval"] else "-"
        what = {"loss": "all", "answer_loss": "answers"}[pair["loss"]]
        rows.append((f"{pair['one']} - {pair['other']}", what, each, f"{pair['mean']:+.4f}", interval))
    return _table(("difference of loss", "of", "by seed", "mean", "95% interval"), rows)


def _balance(report: dict[str, Any]) -> str:
    rows = []
    for name, own in report["balance"].items():
        moe = report["variants"][name]["moe"]
        chosen = f"{moe['n_active_experts']} of {moe['n_experts']}"
        rows.append((name, chosen, str(moe["d_latent"] or "-"), f"{own['busiest']:.2f}", f"{own['idle']:.2f}"))
    return _table(("experts", "a token", "latent width", "busiest, of an even share", "share that is idle"), rows)


def _sweep(report: dict[str, Any]) -> str:
    rates = sorted({run["rate"] for run in report["sweep"]})
    found = {(run["variant"], run["rate"]): run["loss"] for run in report["sweep"]}
    rows = [(name, *(f"{found[name, rate]:.4f}" for rate in rates)) for name in report["losses"]]
    steps = report["plan"]["sweep_steps"]
    return _table((f"loss after {steps} steps at the rate", *(f"{rate:g}" for rate in rates)), rows)


def _decoding(report: dict[str, Any], rows: int) -> str:
    work, decoding = report["workload"], report["decoding"]
    lengths = [str(length) for length in work["lengths"]]
    read, written = (f"{work[name]:,}" for name in ("read", "written"))
    head = (f"{rows} at once, ms a step at", *(f"{int(length):,}" for length in lengths), f"{written} after {read}: s")
    head += ("tokens/s", "cache, MiB", "weights, MiB") + (("prompt, s",) if rows == 1 else ())
    lines = []
    for name, own in decoding.items():
        of = own["rows"][str(rows)]
        cost = [f"{of['milliseconds'][length]:.2f}" for length in lengths]
        line = [name, *cost, f"{of['answer_seconds']:.3g}", f"{of['tokens_a_second']:.0f}"]
        line += [f"{of['cache_bytes'] / 2**20:.2f}", f"{own['weight_bytes'] / 2**20:.2f}"]
        lines.append((*line, f"{own['prompt_seconds']:.1f}") if rows == 1 else tuple(line))
    if not {"dense", "attention"} <= set(decoding):
        return _table(head, lines)
    hybrid, attention = (decoding[name]["rows"][str(rows)]["milliseconds"] for name in ("dense", "attention"))
    lines.append(("attention / dense", *(f"{attention[length] / hybrid[length]:.2f}" for length in lengths)))
    lines[-1] += ("",) * (len(head) - len(lines[-1]))
    return f"{_table(head, lines)}\n\n{_hybrid(decoding, rows)}"


def _hybrid(decoding: dict[str, Any], rows: int) -> str:
    hybrid, attention = (decoding[name]["rows"][str(rows)] for name in ("dense", "attention"))
    speed = hybrid["tokens_a_second"] / attention["tokens_a_second"]
    memory = attention["cache_bytes"] / hybrid["cache_bytes"]
    where = crossover(decoding, "dense", "attention", rows)
    cheaper = "at none of the lengths" if where is None else f"from {where:,} tokens on"
    return (
        f"The hybrid (dense) writes {speed:.2f} times as many tokens a second as attention alone, with a cache "
        f"{memory:.2f} times smaller; its steps are the cheaper ones {cheaper}."
    )


def _spread(of: dict[str, Any]) -> str:
    return f"{of['mean']:.4f}" + ("" if of["std"] is None else f" ± {of['std']:.4f}")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# -- picture -----------------------------------------------------------------------------------------------------------


def plot(runs: Sequence[dict[str, Any]], report: dict[str, Any], path: Path) -> None:
    """Training losses over the tokens, mean and range of the seeds; milliseconds a step over the cache's length."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5))
    each, rows = report["plan"]["rows"] * report["plan"]["width"], str(report["workload"]["rows"][0])
    for name in report["losses"]:
        curves = [smoothed([loss for _, loss in run["curve"]]) for run in runs if run["variant"] == name]
        steps = list(zip(*curves, strict=True))  # of each step the seeds' losses
        places = [each * (step + 1) for step in range(len(steps))]
        (line,) = left.plot(places, [statistics.fmean(own) for own in steps], label=name, linewidth=1.2)
        low, high = ([pick(own) for own in steps] for pick in (min, max))
        left.fill_between(places, low, high, color=line.get_color(), alpha=0.15)
        cost = report["decoding"][name]["rows"][rows]["milliseconds"]
        right.plot([int(length) for length in cost], list(cost.values()), "o-", label=name, markersize=3)
    left.set(xlabel="tokens read in training", ylabel="training loss, nats a token", yscale="log")
    right.set(xlabel="tokens in the cache", ylabel=f"ms a step, rows: {rows}", ylim=(0, None))
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    figure.tight_layout()
    beside = path.with_suffix(".part")
    figure.savefig(beside, dpi=110, format="png")
    beside.replace(path)
    pyplot.close(figure)


def smoothed(values: Sequence[float], width: int = SMOOTHED) -> list[float]:
    """Each value's mean with those of up to ``width`` - 1 steps before it."""
    return [statistics.fmean(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))]


__all__ = ["PAIRS", "chosen", "compare", "markdown", "plot", "smoothed", "summarise"]
