"""The ways to write the same text, beside plain decoding of the same model: speed, and what is left of its score.

    drafts k       the prediction block drafts k tokens, the model reads them in one pass     the text stays the same
    threshold g    the denoiser fills blocks of masks, surest first                           the text may change
    lossless       the same, and the context tower keeps what it would have written itself    the text stays the same
      in n passes    ... a block has at most so many passes of the denoiser
    without ...    the same without a part of it that must matter                             the text falls apart

    known     held-out problems of the world that the model was trained on, with their working
    strange   prose that nobody trained on: what the model says there goes on to the limit

Both sides answer greedily, one conversation at a time, in turns. Scores are of more problems, answered in batches.
"""

import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import omni
from omni.bench_tools import BenchError, Report, Row, Target, in_turns, measure_rates
from omni.data import HELD_OUT_SEEDS
from omni.data.reasoning import KINDS, sample_reasoning
from omni.metrics import exact_match
from omni.model import Omni
from omni.pipelines.chat import Chat, Reply

LENGTHS = (1, 2, 3, 4, 6, 8)  # of drafts
THRESHOLDS = (0.5, 0.8, 0.9, 0.95, 0.99)  # beside the model's own
BLOCKS = (4, 8, 32)  # beside the model's own
PASSES = (1, 2, 3)  # of a block that is drafted losslessly, beside as many as it takes
PARTS = {"seeds": "Mamba seeds", "remask": "looking again", "time": "the time"}
TOKENS = 256  # of an answer at most
AT_ONCE = 32  # conversations of a batch where only the score is asked for
KEPT_SCORE, FASTER = 0.987, 2.42  # published, at the operating point
STRANGE = (
    "The tide had gone out, and the boats lay on their sides in the mud like tired animals.",
    "Knead the dough for ten minutes, cover it with a cloth and leave it until it has doubled.",
    "Under the new law, tenants may ask for a written reason before the rent is raised.",
    "He tuned the old radio until a voice came through, speaking a language he half knew.",
    "Glaciers carry stones for centuries and set them down where the ice at last gives up.",
    "A proof by induction needs a first case, and a step that leads from each case to the next.",
)


@dataclass(frozen=True)
class Way:
    """Options of a chat that write an answer in another way; ``same``: it must be what plain decoding writes."""

    name: str
    options: dict[str, Any]
    same: bool = True
    strange: bool = True  # whether it is measured on strange text too


@dataclass(frozen=True)
class Text:
    """Conversations of one kind; with ``endless`` their answers go on to the limit."""

    name: str
    conversations: tuple[list[dict], ...]
    endless: bool = False
    answers: tuple[str, ...] = field(default=(), repr=False)


def bench_decoding(
    *, model: str = "tiny-text", quick: bool = False, seed: int = 0, threads: int = 2, plot: Path | None = None
) -> Report:
    """Measure all that ``model`` can do beside plain decoding. ``quick``: few ways, texts and turns.

    ``plot``: a PNG of the speed and the score of every way.

    Raises ValueError for a model that knows no other way, :class:`BenchError` where one that must not changes a text.
    """
    torch.set_num_threads(threads)
    loaded = omni.load(model, device="cpu", dtype=torch.float32)
    chosen, (timed, turns, scored) = ways(loaded, quick), (1, 1, 4) if quick else (6, 3, 220)
    chat, known = Chat(loaded), problems(seed, scored)
    rows, targets = measure(chat, [*shown(known, timed), strange(timed // 2 or 1)], chosen, turns)
    shares = scores(chat, known, chosen)
    targets += [_share(name, share, name == own_way(loaded)) for name, share in shares.items()]
    judged = [f"known, {name}" for name in (own_way(loaded), "lossless in 2 passes")]
    targets += [_headline(row) for row in rows if row.name in judged]
    if plot is not None:
        draw(plot, rows, shares)
    settings = {
        "pattern": f"{model}, beside its own plain decoding, greedy",
        "parameters": sum(p.numel() for p in loaded.parameters()),
        "problems": {"timed": timed, "scored": scored},
        "tokens": TOKENS,
        "seed": seed,
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return Report(settings, measure_rates(), rows, targets=targets)


def ways(model: Omni, quick: bool = False) -> list[Way]:
    """What ``model`` can do. ``quick``: one or two of each kind."""
    found = []
    if model.mtp is not None:
        found += [Way(f"{k} drafts", {"drafts": k, "adaptive": False}) for k in LENGTHS]
        found.append(Way(f"up to {LENGTHS[-1]} drafts", {"drafts": LENGTHS[-1]}))
    if model.config.diffusion is not None:
        threshold = model.config.diffusion.threshold
        own = {"decode": "diffusion", "threshold": threshold}
        for g in sorted({*THRESHOLDS, threshold}):
            found.append(Way(f"threshold {g:g}", own | {"threshold": g}, same=False, strange=g == threshold))
        found += [Way(f"blocks of {n}", own | {"block": n}, same=False, strange=False) for n in BLOCKS]
        found += [Way(f"without {what}", own | {"ablate": (name,)}, False, False) for name, what in PARTS.items()]
        sure = own | {"lossless": True}
        found += [Way(f"lossless in {n} pass{'es' * (n > 1)}", sure | {"steps": n}, strange=n == 1) for n in PASSES]
        found.append(Way("lossless", sure, strange=False))
    if not found:
        raise ValueError(
            "this model writes token by token only: it has neither a prediction block nor a denoiser of text"
        )
    return [way for way in found if way.name in ("2 drafts", own_way(model), "lossless in 1 pass")] if quick else found


def own_way(model: Omni) -> str | None:
    """The name of block diffusion at the model's own threshold: its operating point."""
    return None if model.config.diffusion is None else f"threshold {model.config.diffusion.threshold:g}"


# -- speed -------------------------------------------------------------------------------------------------------------


def measure(chat: Chat, asked: Sequence[Text], chosen: Sequence[Way], turns: int) -> tuple[list[Row], list[Target]]:
    """Milliseconds a token of every text and way, and how many tokens a pass of the model gives."""
    rows, targets = [], []
    for text in asked:
        for way in (way for way in chosen if way.strange or not text.endless):
            name = f"{text.name}, {way.name}"
            runs = [answering(chat, text, **way.options), answering(chat, text)]
            replies, plain = (run() for run in runs)
            if way.same and [reply.text for reply in replies] != [reply.text for reply in plain]:
                raise BenchError(f"{name}: an answer is not what plain decoding writes")
            written = [sum(reply.tokens for reply in side) for side in (replies, plain)]
            rows.append(_row(name, in_turns(runs, turns, name), written))
            targets.append(_passes(name, replies))
    return rows, targets


def _row(name: str, measured: Sequence[Sequence[float]], written: Sequence[int]) -> Row:
    each = [[1e3 * s / tokens for s in own] for own, tokens in zip(measured, written, strict=True)]
    ratios = [theirs / ours for ours, theirs in zip(*each, strict=True)]
    spread = (min(ratios), max(ratios)) if len(ratios) > 1 else None
    return Row(name, "ms/token", *map(statistics.median, each), None, spread)


def _passes(name: str, replies: Sequence[Reply]) -> Target:
    drafts = [reply.usage.drafts for reply in replies if reply.usage.drafts is not None]
    if drafts:
        held, passes = sum(one.accepted for one in drafts), sum(one.passes for one in drafts)
        return Target(f"{name}: drafts that hold in a pass", held / max(1, passes))
    took = [reply.usage.denoising for reply in replies]
    passes, written = sum(one.passes for one in took), sum(one.tokens for one in took)
    return Target(f"{name}: tokens of a denoising pass", written / max(1, passes))


def answering(chat: Chat, text: Text, **options: Any) -> Callable[[], list[Reply]]:
    """The answers to all conversations, one after the other: what is timed."""
    ends = chat.model.config.special_tokens["eos"]
    bias = dict.fromkeys(ends if isinstance(ends, Sequence) else [ends], -100.0) if text.endless else None
    own = {"max_new_tokens": TOKENS, "temperature": 0.0, "logit_bias": bias, "thinking": not text.endless, **options}
    return lambda: [chat(conversation, **own) for conversation in text.conversations]


# -- scores ------------------------------------------------------------------------------------------------------------


def scores(chat: Chat, known: Text, chosen: Sequence[Way]) -> dict[str, float]:
    """Of every way that may change a text: its share of the score that plain decoding has on ``known``."""
    changing = [way for way in chosen if not way.same]
    plain = score(chat, known) if changing else 1.0
    return {way.name: score(chat, known, **way.options) / plain if plain else 0.0 for way in changing}


def score(chat: Chat, known: Text, **options: Any) -> float:
    """Share of right answers."""
    right = 0.0
    for start in range(0, len(known.conversations), AT_ONCE):
        some = list(known.conversations[start : start + AT_ONCE])
        replies = chat(some, max_new_tokens=TOKENS, temperature=0.0, thinking=True, **options)
        answers = known.answers[start : start + AT_ONCE]
        right += sum(exact_match(r.text.strip(), [a]) for r, a in zip(replies, answers, strict=True))
    return right / len(known.conversations)


def _share(name: str, share: float, judged: bool) -> Target:
    return Target(f"known, {name}: share of plain decoding's score", share, KEPT_SCORE if judged else None)


def _headline(row: Row) -> Target:
    return Target(f"{row.name}: times as fast as plain decoding", row.ratio, FASTER)


def draw(path: Path, rows: Sequence[Row], shares: dict[str, float]) -> None:
    """A PNG: of every way how fast it is on known text, and what it keeps of the score."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5))
    for row in rows:
        text, _, name = row.name.partition(", ")
        if text == "known":
            kept = shares.get(name, 1.0)
            axes.plot(row.ratio, kept, "o")
            turned = 60 if kept == 1 else 0  # all that keep the text stand in one line
            axes.annotate(name, (row.ratio, kept), (4, 4), textcoords="offset points", fontsize=8, rotation=turned)
    axes.axhline(1.0, color="grey", linewidth=0.5)
    axes.axvline(1.0, color="grey", linewidth=0.5)
    axes.set_ylim(top=1.35)
    axes.set(xlabel="times as fast as plain decoding", ylabel="share of its score")
    figure.tight_layout()
    beside = path.with_name(path.name + ".part")
    figure.savefig(beside, format="png", dpi=120)
    pyplot.close(figure)
    beside.replace(path)


# -- texts -------------------------------------------------------------------------------------------------------------


def problems(seed: int, count: int) -> Text:
    """``count`` held-out problems, dealt out over the kinds, with their answers."""
    asked, answers, kinds = [], [], tuple(KINDS)
    for i, one in enumerate(HELD_OUT_SEEDS[seed * count : (seed + 1) * count]):
        *messages, reply = sample_reasoning(one, kinds[i % len(kinds)])
        asked.append(messages)
        answers.append(reply["content"].rpartition("</think>")[2].strip())
    return Text("known", tuple(asked), answers=tuple(answers))


def shown(known: Text, count: int) -> list[Text]:
    """The first of them, which are timed."""
    return [Text(known.name, known.conversations[:count], answers=known.answers[:count])]


def strange(count: int) -> Text:
    return Text("strange", tuple([{"role": "user", "content": line}] for line in STRANGE[:count]), endless=True)


__all__ = ["Text", "Way", "answering", "bench_decoding", "measure", "problems", "score", "scores", "strange", "ways"]
