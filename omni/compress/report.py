"""What a search found, for people (Markdown and a plot) and for programs (JSON), written beside and renamed.

report.md   report.json   importance.png (only where there were weights to measure)
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from omni.compress.axes import AXES, KINDS
from omni.compress.budget import Costs, Use
from omni.compress.depth import DepthOrder
from omni.compress.importance import Importance
from omni.compress.search import Candidate, Damages, Found, Limits, said
from omni.tensorfile import write_json

GIB = 1 << 30


@dataclass(frozen=True)
class Report:
    """One search. What needs weights is None where there were none."""

    name: str
    use: Use
    limits: Limits
    pattern: str
    whole: Costs
    found: Found
    published: Mapping[str, tuple[Mapping[str, int], Mapping[str, int], Costs]] = field(default_factory=dict)
    order: DepthOrder | None = None
    scores: Importance | None = None
    damages: Damages | None = None
    chosen: Candidate | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        found = self.found
        return {
            "model": self.name,
            "use": asdict(self.use),
            "limits": asdict(self.limits),
            "whole": _costs(self.whole),
            "looked_at": found.looked_at,
            "fitting": found.fitting,
            "refused": dict(found.refused),
            "nearest_refused": [_candidate(c) | {"limit": limit} for c, limit in found.nearest],
            "values": {axis: list(values) for axis, values in found.values.items()},
            "splits_of_layers": found.depths,
            "candidates": [_candidate(c) for c in found.best],
            "best_by_layers": {str(n): _candidate(c) for n, c in found.by_depth.items()},
            "published": {name: self._published(name) for name in self.published},
            "depth": asdict(self.order) if self.order else None,
            "damage": _damages(self.damages) if self.damages else None,
            "calibration_rows": self.scores.rows if self.scores else 0,
            "chosen": _candidate(self.chosen) if self.chosen else None,
        }

    def _published(self, name: str) -> dict[str, Any]:
        counts, sizes, costs = self.published[name]
        return {
            "layers": _counts(counts),
            "widths": dict(sizes),
            **_costs(costs),
            "refused_by": self.limits.broken(costs),
            "place": self.found.standing.get(name),
        }

    def save(self, folder: Path) -> None:
        """Write all files into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "report.json", self.as_dict())
        beside = folder / "report.md.part"
        beside.write_text(self.text(), encoding="utf-8")
        os.replace(beside, folder / "report.md")
        if self.scores is not None:
            plot(self.scores, self.damages, folder / "importance.png")

    def text(self) -> str:
        """The report in Markdown."""
        parts = [self._head(), self._grid(), self._ranked(), self._depths(), self._known(), self._measured()]
        return "\n".join(part for part in parts if part)

    def chosen_words(self) -> str:
        """What was made, in one line."""
        return _words(self.chosen) if self.chosen is not None else "nothing"

    def _head(self) -> str:
        u = self.use
        lines = [
            f"# {self.name}, compressed",
            "",
            f"Budget: {said(self.limits)}. Memory is weights, keys and values, and recurrent states of "
            f"{u.batch} x {u.context:,} tokens, {u.element} bytes a number.",
            "",
            _table(COLUMNS, [_row("whole", _count(self.pattern), {}, self.whole)]),
        ]
        if self.chosen is not None:
            lines += ["", f"Chosen: {self.chosen_words()}."]
        return "\n".join([*lines, ""])

    def _grid(self) -> str:
        f = self.found
        rows = [(a, str(len(v)), f"{v[0]:,} to {v[-1]:,}" if len(v) > 1 else f"{v[0]:,}") for a, v in f.values.items()]
        rows.append(("layers", str(f.depths), "splits over the letters" if self.order is None else "by their order"))
        refused = [f"{n:,} by {limit}" for limit, n in f.refused.items()] or ["none"]
        near = [f"{_words(c)}: {_over(c.costs, limit, self.limits)}" for c, limit in f.nearest]
        return "\n".join(
            [
                "## Enumerated",
                "",
                _table(("axis", "values", "sizes"), rows),
                "",
                f"{f.looked_at:,} shapes: {f.fitting:,} fit; refused: {', '.join(refused)}.",
                *(["The closest of these:", "", *(f"- {line}" for line in near)] if near else []),
                "",
            ]
        )

    def _ranked(self) -> str:
        known = self.damages is not None
        why = (
            "By the damage that the cuts of single axes did, added up; `measured` is what the whole cut did: the mean "
            "divergence of next-token distributions from the whole model's, in nats a token, before any distillation."
            if known
            else "The largest first, which keeps the most of the whole model; shapes of one size are told apart by a "
            "short distillation each. Which layers go, and which units, is for calibration to say."
        )
        rows = [_row(str(i), c.counts, c.widths, c.costs, c) for i, c in enumerate(self.found.best, 1)]
        return "\n".join(["## Candidates", "", why, "", _table(COLUMNS, rows), ""])

    def _depths(self) -> str:
        rows = [_row("", c.counts, c.widths, c.costs, c) for c in self.found.by_depth.values()]
        return "\n".join(["## The best for each number of layers", "", _table(COLUMNS, rows), ""])

    def _known(self) -> str:
        if not self.published:
            return ""
        rows = []
        for name, (counts, sizes, costs) in self.published.items():
            limit, place = self.limits.broken(costs), self.found.standing.get(name)
            stands = (
                f"{name} (no. {place:,} by size)" if limit is None else f"{name} ({_over(costs, limit, self.limits)})"
            )
            rows.append(_row(stands, counts, sizes, costs))
        return "\n".join(["## Published shapes that this model can be cut to", "", _table(COLUMNS, rows), ""])

    def _measured(self) -> str:
        if self.damages is None:
            return ""
        lines = ["## Measured", "", "Damage of one cut alone, by the size that is left:", ""]
        rows = [
            (axis, ", ".join(f"{size:,}: {damage:.4f}" for size, damage in own.items()))
            for axis, own in [*self.damages.axes.items(), ("layers", self.damages.layers)]
            if len(own) > 1
        ]
        lines += [_table(("axis", "size: damage"), rows), ""]
        if self.order is not None and self.order.layers:
            went = (
                f"{i} `{self.pattern[i]}` ({s:.4g})" for i, s in zip(self.order.layers, self.order.scores, strict=True)
            )
            lines += [f"Layers in the order in which they go, by {self.order.method}: {', '.join(went)}.", ""]
        lines += ["Scores of the units, sorted: importance.png.", ""]
        return "\n".join(lines)


COLUMNS = (
    "",
    "layers",
    "widths",
    "parameters",
    "of these a token",
    "weights GiB",
    "KV GiB",
    "states GiB",
    "memory GiB",
)
COLUMNS += ("expected", "measured")


def _row(
    name: str, counts: Mapping[str, int], sizes: Mapping[str, int], costs: Costs, candidate: Candidate | None = None
) -> tuple[str, ...]:
    kinds = {letter: kind for kind, letter in KINDS.items() if letter}
    layers = ", ".join(f"{n} {kinds[c]}" for c, n in counts.items() if n)
    widths = ", ".join(f"{axis} {size:,}" for axis, size in sizes.items())
    sizes_of = [costs.weights, costs.kv, costs.state, costs.memory]
    done = (candidate.damage, candidate.measured) if candidate else (None, None)
    return (
        name,
        f"{sum(counts.values())}: {layers}",
        widths,
        f"{costs.parameters:,}",
        f"{costs.active:,}",
        *(f"{size / GIB:.3f}" for size in sizes_of),
        *("" if value is None else f"{value:.4f}" for value in done),
    )


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _words(candidate: Candidate) -> str:
    return " | ".join(_row("", candidate.counts, candidate.widths, candidate.costs)[1:3]).replace(" | ", "; ")


def _over(costs: Costs, limit: str, limits: Limits) -> str:
    """By how much a limit is exceeded."""
    if limit == "memory":
        return f"{(costs.memory - limits.memory) / (1 << 20):,.1f} MiB too many"
    value, most = {"params": (costs.parameters, limits.params), "active_params": (costs.active, limits.active_params)}[
        limit
    ]
    return f"{value - most:,} parameters too many"


def _count(pattern: str) -> dict[str, int]:
    return {letter: pattern.count(letter) for letter in sorted(set(pattern))}


def _counts(counts: Mapping[str, int]) -> dict[str, int]:
    kinds = {letter: kind for kind, letter in KINDS.items() if letter}
    return {"layers": sum(counts.values())} | {kinds[c]: n for c, n in counts.items()}


def _costs(costs: Costs) -> dict[str, int]:
    return {**asdict(costs), "memory": costs.memory}


def _candidate(c: Candidate) -> dict[str, Any]:
    kept = {"kept_layers": list(c.layers), "layers": _counts(c.counts), "widths": dict(c.widths)}
    return {**kept, **_costs(c.costs), "expected": c.damage, "measured": c.measured}


def _damages(damages: Damages) -> dict[str, dict[str, float]]:
    named = {**damages.axes, "layers": damages.layers}
    return {axis: {str(size): value for size, value in own.items()} for axis, own in named.items()}


# -- the plot ----------------------------------------------------------------------------------------------------------


def plot(scores: Importance, damages: Damages | None, path: Path) -> None:
    """Left: scores of units, sorted, as shares of the highest; right: damage over what is left of an axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5))
    for axis, curve in curves(scores).items():
        share = [(i + 1) / len(curve) for i in range(len(curve))]
        left.plot(share, (curve / curve[0]).tolist(), label=axis, linewidth=1)
    left.set(xlabel="share of the units, the best first", ylabel="importance, of the highest", ylim=(0, 1.05))
    left.legend(fontsize=8)
    measured = {**damages.axes, "layers": damages.layers} if damages else {}
    for axis, own in measured.items():
        if len(own) > 1:
            sizes = sorted(own)
            right.plot(
                [size / sizes[-1] for size in sizes], [own[s] for s in sizes], marker="o", label=axis, linewidth=1
            )
    right.set(xlabel="share that is left", ylabel="damage, nats a token")
    if right.lines:
        right.legend(fontsize=8)
    figure.tight_layout()
    beside = path.with_suffix(".part")
    figure.savefig(beside, dpi=110, format="png")
    os.replace(beside, path)
    pyplot.close(figure)


def curves(scores: Importance) -> dict[str, Tensor]:
    """Of each axis the scores of its units, sorted downwards; the mean over layers."""
    found: dict[str, list[Tensor]] = {"d_model": [scores.d_model]}
    for own in scores.units.values():
        for axis in AXES:
            if axis in own:
                found.setdefault(axis, []).append(own[axis].flatten())
        if "mamba" in own:
            found.setdefault("mamba_heads", []).append(own["mamba"].norm(dim=1))
            found.setdefault("mamba_head_dim", []).append(own["mamba"].norm(dim=0))
    sorted_ = {axis: [s.sort(descending=True).values for s in own] for axis, own in found.items()}
    return {axis: sum(s / s[0].clamp(min=1e-30) for s in own) / len(own) for axis, own in sorted_.items()}
