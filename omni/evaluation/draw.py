"""Drawing: do pictures show what the prompt asks for? GenEval's six categories (arXiv 2310.11513) in the scene world.

A detector looks at each picture; it is right when it shows exactly what was asked. As in GenEval the overall score is
the mean of the categories. Pairs of coloured shapes that training never shows together are a category of their own,
outside that mean.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from omni.data.scenes import CATEGORIES, Request, check, detect, is_held_out, sample_prompt
from omni.evaluation.report import averages, held_out, mean, progress
from omni.model import Omni
from omni.pipelines.images import TextToImage

AT_ONCE = 24  # pictures of a batch
NEW_PAIRS = "new_pairs"
HAVE_PAIRS = ("position", "color_attribution")


def run(
    model: Omni,
    count: int,
    seed: int,
    steps: int | None = None,
    guidance: float | None = None,
    shift: float | None = None,
    eta: float | None = None,
    solver: str = "euler",
    upsample: bool | None = None,
) -> tuple[dict[str, Any], list[dict]]:
    """``count`` prompts, dealt out over the categories and new pairs; one picture each, drawn with the case's seed.

    The control checks each picture against the request of the next prompt of its category: what a model that does not
    read its prompt would score.
    """
    painter = TextToImage(model)
    cases = _cases(count, seed)
    samples = []
    with progress("drawing", len(cases)) as advance:
        for start in range(0, len(cases), AT_ONCE):
            some = cases[start : start + AT_ONCE]
            result = painter(
                [case["prompt"] for case in some],
                seed=[case["seed"] for case in some],
                steps=steps,
                guidance=guidance,
                shift=shift,
                eta=eta,
                solver=solver,
                upsample=upsample,
            )
            made = zip(some, result.prompts, result.images, strict=True)
            samples += [{**case, "drawn": text, "picture": np.asarray(picture)} for case, text, picture in made]
            advance(len(some))
    return _metrics(samples), [_judged(sample) for sample in samples]


def _cases(count: int, seed: int) -> list[dict[str, Any]]:
    """Prompts in turn from every category; each category skips the seeds whose prompts are not for it."""
    names = (*CATEGORIES, NEW_PAIRS)[:count]
    seeds = {name: held_out(seed, 200 * count) for name in names}
    return [_case(names[i % len(names)], seeds[names[i % len(names)]]) for i in range(count)]


def _case(name: str, seeds: Iterator[int]) -> dict[str, Any]:
    for seed in seeds:
        category = HAVE_PAIRS[seed % len(HAVE_PAIRS)] if name == NEW_PAIRS else name
        prompt, request = sample_prompt(seed, category)
        if is_held_out(request) == (name == NEW_PAIRS):
            return {"seed": seed, "category": name, "prompt": prompt, "request": request}
    raise ValueError(f"there are not enough held-out prompts for {name!r}; ask for fewer cases")


def _metrics(samples: list[dict]) -> dict[str, Any]:
    for name in {s["category"] for s in samples}:
        members = [s for s in samples if s["category"] == name]
        for sample, other in zip(members, [*members[1:], members[0]], strict=True):
            sample["right"] = check(sample["picture"], sample["request"])
            alike = other["request"] == sample["request"]
            sample["shuffled"] = None if alike else check(sample["picture"], other["request"])
    names = [n for n in (*CATEGORIES, NEW_PAIRS) if any(s["category"] == n for s in samples)]
    groups = {n: averages([s for s in samples if s["category"] == n], ["right", "shuffled"]) for n in names}
    scored = [groups[n] for n in names if n != NEW_PAIRS]
    return {
        "cases": len(samples),
        "overall": mean(g["right"] for g in scored),
        "overall_shuffled": mean(g["shuffled"] for g in scored if "shuffled" in g),
        NEW_PAIRS: groups.get(NEW_PAIRS, {}).get("right"),
        "groups": groups,
    }


def _judged(sample: dict[str, Any]) -> dict[str, Any]:
    """The sample in JSON types, with what the detector saw."""
    seen = detect(sample["picture"])
    shown = [f"{thing.color} {thing.shape} at {thing.x:.0f},{thing.y:.0f}" for thing in seen.things]
    kept = {name: sample[name] for name in ("seed", "category", "prompt", "drawn", "right", "shuffled")}
    return {**kept, "asked": _words(sample["request"]), "seen": shown, "background": seen.background}


def _words(request: Request) -> list[str]:
    wants = [" ".join(str(w) for w in (q.count, q.size, q.color, q.shape) if w is not None) for q in request.wants]
    return wants + [w for w in (request.relation, request.background) if w is not None]
