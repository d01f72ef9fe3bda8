"""Documents, videos and sounds beside the reference implementation: same weights, same media, in turns.

    weights   a random Nemotron Omni of the reference implementation, saved with its processor, and loaded by both sides
    document  pages in memory ──> first token of an answer; then a second question about the same document
    video     frames in memory, with none, half or three quarters of its tokens pruned ──> first token
    sound     samples in memory ──> first token; ours in clips of 30 s, theirs in one piece, each as published
    memory    highest resident size of the same, each side in a process of its own

The time to the first token holds everything behind the decoders of files: resizing, features, encoders, the prompt.
Ours is :class:`omni.pipelines.reading.Reading`, which keeps what it has read for further questions. The reference's
processor and forward read again; a user who cuts the prompt in front of the question and copies the cache can go on
from there. Both are measured. Beside each time stands its floor: the operations it needs over the measured rate of
matrix products.
"""

import gc
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omni import families
from omni.bench import parameters, prefill_operations, read_bytes
from omni.bench_peer import Peer, write_folder
from omni.bench_tools import (
    AGREEMENT,
    BenchError,
    Rates,
    Report,
    Row,
    Span,
    Target,
    child_peak,
    in_turns,
    measure_rates,
    peak_bytes,
    row,
    table,
    where,
)
from omni.config import OmniConfig, SoundConfig, VisionConfig, replace
from omni.inputs import Inputs
from omni.pipelines import reading as pipeline
from omni.pipelines.reading import Reading
from omni.tokenizers.sound import Waveform
from omni.tokenizers.video import open_video

PATTERN = "MEM*EMEM*EME-"
SIZES: dict[str, dict[str, Any]] = {
    "text": {
        "vocab_size": 32_000,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "mamba_num_heads": 24,
        "mamba_head_dim": 64,
        "ssm_state_size": 128,
        "n_groups": 8,
        "chunk_size": 128,
        "intermediate_size": 1536,
        "n_routed_experts": 40,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 384,
        "moe_shared_expert_intermediate_size": 768,
        "max_position_embeddings": 32_768,
    },
    "vision": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "max_img_size": 1024},
    "sound": {
        "hidden_size": 384,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
        "projection_hidden_size": 1536,
    },
}
"""About a hundredth of the published model. As there, a token of a picture costs the tower and the projector about as
much as the language model."""

PRUNED = (0.0, 0.5, 0.75)
FASTER = 1.5  # than the reference, where all is read
SECOND_FASTER = 10.0  # than the first question
QUESTIONS = ("What is the sum of the last column?", "Who has signed it?")


@dataclass(frozen=True)
class Workload:
    """How much of each medium."""

    pages: int = 20
    page_side: int = 512  # pixels
    frames: int = 240  # at 2 a second
    frame_side: int = 256
    seconds: float = 300.0
    turns: int = 3

    @property
    def frame_patches(self) -> int:
        """Of a frame, for the processor that sizes it."""
        return (self.frame_side // 16) ** 2


FULL = Workload()
QUICK = Workload(pages=4, frames=24, seconds=20.0, turns=1)
SMALL = Workload(pages=2, frames=6, seconds=1.0)  # of the check that both sides say the same


@dataclass(frozen=True)
class Case:
    """One medium, or several, in front of a question."""

    name: str
    kind: str  # "images", "video" or "sound"
    media: Any  # pictures, frames (T, H, W, 3) uint8, or samples (n,)
    pruning: float = 0.0

    def parts(self, rate: int) -> list[dict[str, Any]]:
        """As a user's message holds them; ``rate`` of the samples."""
        if self.kind == "images":
            newline = {"type": "text", "text": "\n"}
            return [part for page in self.media for part in ({"type": "image", "image": page}, newline)]
        if self.kind == "video":
            return [{"type": "video", "video": open_video(self.media, fps=2.0)}]
        return [{"type": "audio", "audio": Waveform(torch.from_numpy(self.media), rate)}]

    @property
    def options(self) -> dict[str, Any]:
        """Of the reading: every frame is looked at."""
        if self.kind != "video":
            return {}
        return {"pruning": self.pruning, "fps": 2.0, "max_frames": len(self.media)}


def bench_understanding(*, peer: bool = True, quick: bool = False, seed: int = 0, threads: int = 2) -> Report:
    """Measure times to the first token, second questions and memory. ``quick``: short media, one turn.

    ``peer`` False: ours alone, on the same weights. Takes half an hour. Raises :class:`BenchError` where the
    two sides' logits differ.
    """
    workload = QUICK if quick else FULL
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        write_folder(Path(folder), PATTERN, SIZES, workload.frame_patches, seed)
        return measure(folder, workload, peer=peer, seed=seed, threads=threads)


def measure(folder: str, workload: Workload, *, peer: bool, seed: int, threads: int, small: Workload = SMALL) -> Report:
    """The report on the model of ``folder``."""
    sides: list[Side] = [Ours(folder), *([Theirs(folder)] if peer else [])]
    config = sides[0].model.config
    disagreement = disagree(*sides, cases(small, seed)) if peer else None
    rates = measure_rates()
    rows, targets, parts, tokens = [], [], {}, {}
    for case in cases(workload, seed):
        found = _measure_case(sides, case, config, rates, workload.turns)
        rows += found.rows
        targets += found.targets
        parts |= found.parts
        tokens[case.name] = found.tokens
    names = [type(side).__name__.lower() for side in sides]
    sides.clear()
    gc.collect()
    rows += _memory_rows(folder, workload, names, seed, threads, config)
    settings = {
        "pattern": config.context.pattern,
        **SIZES,
        "workload": vars(workload),
        "tokens": tokens,  # of each side's prompt; a pruned video's reference prompt is counted before pruning
        "parameters": parameters(config),
        "threads": threads,
        "seed": seed,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return Report(settings, rates, rows, disagreement=disagreement, targets=targets, parts=parts)


# -- media -------------------------------------------------------------------------------------------------------------


def cases(workload: Workload, seed: int) -> list[Case]:
    """Document, video at every rate of pruning, and sound."""
    random = np.random.default_rng(seed)
    pages = [_page(random, workload.page_side) for _ in range(workload.pages)]
    frames = _film(random, workload.frames, workload.frame_side)
    samples = (0.1 * random.standard_normal(round(workload.seconds * 16_000))).astype(np.float32)
    shown = f"{workload.frames} frames"
    return [
        Case(f"{workload.pages} pages", "images", pages),
        *(Case(f"{shown}, {rate:.0%} pruned" if rate else shown, "video", frames, rate) for rate in PRUNED),
        Case(f"{workload.seconds:g} s of sound", "sound", samples),
    ]


def _page(random: np.random.Generator, side: int) -> Image.Image:
    """Dark strokes in lines on white."""
    pixels = np.full((side, side, 3), 255, np.uint8)
    for top in range(side // 16, side - side // 16, 12):
        ink = random.random(side) < 0.5
        pixels[top : top + 7, ink] = random.integers(0, 90, 3)
    return Image.fromarray(pixels)


def _film(random: np.random.Generator, frames: int, side: int) -> np.ndarray:
    """A still, noisy background and a square that moves over it."""
    film = np.repeat(random.integers(0, 200, (1, side, side, 3), dtype=np.uint8), frames, axis=0)
    size = side // 4
    for i, frame in enumerate(film):
        x, y = (int((side - size) * (0.5 + 0.5 * np.sin(i / period))) for period in (5, 8))
        frame[y : y + size, x : x + size] = (250, 40, 40)
    return film


# -- the two sides -----------------------------------------------------------------------------------------------------


class Ours:
    def __init__(self, folder: str) -> None:
        self.model = families.load(folder, device="cpu", dtype="float32")

    def first(self, case: Case, question: str) -> Reading:
        """Everything up to the first token of an answer."""
        reading = self.read(case)
        reading.ask([question], max_new_tokens=1)
        return reading

    def read(self, case: Case) -> Reading:
        return Reading(self.model, case.parts(self.model.config.sound.sampling_rate), **case.options)

    def logits(self, case: Case, question: str) -> Tensor:
        """(v,) behind the prompt."""
        reading = self.read(case)
        rest = reading.ids(question)[reading.prompt_tokens :]
        return self.model.logits(Inputs(torch.tensor([rest])), reading.cache, last_only=True)[0, -1]

    def tokens(self, case: Case, question: str) -> int:
        return len(self.read(case).ids(question))

    def spans(self) -> list[Span]:
        m = self.model
        return [
            *((pipeline, name, "preparing") for name in ("open_media", "ids_of", "gather", "split")),
            (m.vision, "_run", "tower"),
            (m.projector, "project", "projector"),
            (m.sound, "forward", "sound encoder"),
            (m.sound_projector, "forward", "projector"),
            (m.context, "forward", "language model"),
            (m, "predict", "logits"),
        ]


class Theirs:
    def __init__(self, folder: str) -> None:
        self.peer = Peer(folder)
        self.model = self.peer.model

    def first(self, case: Case, question: str) -> Tensor:
        return self.logits(case, question)

    def logits(self, case: Case, question: str) -> Tensor:
        return self.peer.logits(case.kind, case.media, question, case.pruning)

    def tokens(self, case: Case, question: str) -> int:
        return len(self.peer.ids(case.kind, case.media, question))

    def spans(self) -> list[Span]:
        return self.peer.spans()


Side = Ours | Theirs


def disagree(ours: Ours, theirs: Theirs, some: Sequence[Case]) -> float:
    """Largest difference of the next-token logits over the largest logit.

    For as long as it takes, ours reads a sound as theirs does: whole, and with the frame behind its end.
    """
    config, worst = ours.model.config, 0.0
    ours.model.config = replace(config, sound=replace(config.sound, last_frame=True, clip_seconds=0.0))
    try:
        for case in some:
            a, b = (side.logits(case, QUESTIONS[0]) for side in (ours, theirs))
            worst = max(worst, float((a - b).abs().max() / b.abs().max()))
    finally:
        ours.model.config = config
    if worst > AGREEMENT:
        raise BenchError(f"logits differ by {worst:.1e} of the largest; at most {AGREEMENT:.0e} is rounding")
    return worst


# -- times -------------------------------------------------------------------------------------------------------------


@dataclass
class _Found:
    """Of one case."""

    rows: list[Row] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)


def _measure_case(sides: list["Side"], case: Case, config: OmniConfig, rates: Rates, turns: int) -> _Found:
    first_question = QUESTIONS[0]
    name = f"{case.name}, first token"
    read = in_turns([lambda side=side: side.first(case, first_question) for side in sides], turns, name)
    kept = sides[0].first(case, first_question)
    floor = _floor(first_operations(config, kept, first_question), rates, config)
    found = _Found([row(name, "s", 1.0, read, floor)])
    if case.pruning == 0:
        found.targets += _faster(f"{name}: reference / ours", found.rows[0], FASTER)
    if case.kind == "images":
        _measure_second(found, sides, case, kept, found.rows[0].ours, config, rates, turns)
    for side in sides:
        who = type(side).__name__.lower()
        found.parts[f"{case.name}, {who}"] = where(lambda side=side: side.first(case, first_question), side.spans())
        # Ours was read above; the reference's is its processor's alone.
        found.tokens[who] = len(kept.ids(first_question)) if side is sides[0] else side.tokens(case, first_question)
    return found


def _measure_second(
    found: _Found,
    sides: list["Side"],
    case: Case,
    kept: Reading,
    first: float,
    config: OmniConfig,
    rates: Rates,
    turns: int,
) -> None:
    """A further question: the reference reads all again, or its user has kept a cache and hands a copy of it over."""
    question, name = QUESTIONS[1], f"{case.name}, second question"
    runs: list[Callable] = [lambda: kept.ask([question], max_new_tokens=1)]
    if len(sides) > 1:
        theirs = sides[1]
        cache = theirs.peer.read(case.kind, case.media, QUESTIONS[0])
        runs += [lambda: theirs.first(case, question), lambda: theirs.peer.further(cache, question)]
    ours, *others = in_turns(runs, turns, name)
    rest = len(kept.ids(question)) - kept.prompt_tokens
    floor = _floor(prefill_operations(config, rest), rates, config, rest)
    again = row(name, "s", 1.0, [ours, *others[:1]], floor)
    found.rows.append(again)
    found.targets.append(Target(f"{case.name}: our first / our second", first / again.ours, SECOND_FASTER))
    if others:
        by_hand = row(f"{name}, theirs cached by hand", "s", 1.0, [ours, others[1]], floor)
        found.rows.append(by_hand)
        found.targets += _faster(f"{name}: reference that reads again / ours", again, None)
        found.targets += _faster(f"{name}: reference cached by hand / ours", by_hand, None)


def _faster(name: str, measured: Row, least: float | None) -> list[Target]:
    return [] if measured.ratio is None else [Target(name, measured.ratio, least)]


# -- floors ------------------------------------------------------------------------------------------------------------


def _floor(operations: float, rates: Rates, config: OmniConfig, tokens: int = 0) -> float:
    """Seconds; of so few tokens that reading the weights may take longer, that."""
    reads = read_bytes(config, tokens) / rates.gbytes if tokens else 0.0
    return max(operations / rates.gflops, reads) / 1e9


def first_operations(config: OmniConfig, kept: Reading, question: str) -> float:
    """Multiplications and additions of all that is read up to the first token."""
    total = float(prefill_operations(config, len(kept.ids(question))))
    for medium in kept.media:
        for pixels in medium.pixels:
            frames = 1 if pixels.dim() == 3 else len(pixels) // config.vision.tubelet
            total += frames * vision_operations(config.vision, config.context.d_model, pixels)
        total += sum(sound_operations(config.sound, config.context.d_model, len(clip)) for clip in medium.sounds)
    return total


def vision_operations(v: VisionConfig, d_out: int, pixels: Tensor) -> int:
    """Of one picture (3, H, W) or one tubelet of a video: stem, blocks and projector."""
    height, width = pixels.shape[-2:]
    patches = (height // v.patch_size) * (width // v.patch_size)
    channels = 3 if pixels.dim() == 3 else 3 * v.tubelet
    n = patches + v.n_prefix
    block = n * 2 * (4 * v.d_model**2 + 2 * v.d_model * v.d_ff) + 4 * n * n * v.d_model
    joined = v.shuffle**2 * v.d_model
    hidden = v.d_projector or 4 * joined
    stem = 2 * patches * channels * v.patch_size**2 * v.d_model
    return stem + v.n_layers * block + patches // v.shuffle**2 * 2 * hidden * (joined + d_out)


def sound_operations(s: SoundConfig, d_out: int, frames: int) -> int:
    """Of one clip: subsampling, blocks and projector. The scores of distances count as one product more."""
    total, steps, bins = 0, frames, s.n_mels
    for i in range(s.subsampling.bit_length() - 1):
        steps, bins = (steps - 1) // 2 + 1, (bins - 1) // 2 + 1
        total += 2 * steps * bins * s.channels * (9 + (s.channels if i else 0))
    d, n = s.d_model, steps
    total += 2 * n * s.channels * bins * d
    conv = 3 * d * d + s.conv_kernel * d
    block = n * 2 * (4 * d * s.d_ff + 4 * d * d + conv) + 2 * (2 * n - 1) * d * d + 2 * n * d * (2 * n + 2 * n - 1)
    return total + s.n_layers * block + n * 2 * s.d_projector * (d + d_out)


# -- memory ------------------------------------------------------------------------------------------------------------


def _memory_rows(
    folder: str, workload: Workload, names: list[str], seed: int, threads: int, config: OmniConfig
) -> list[Row]:
    rows = []
    for i, case in enumerate(cases(workload, seed)):
        sizes = ",".join(str(value) for value in vars(workload).values())
        arguments = [folder, sizes, str(i), str(seed), str(threads)]
        measured = [
            [child_peak("omni.bench_understanding", [*arguments, name], f"memory: reading {case.name} by {name}")]
            for name in names
        ]
        rows.append(row(f"memory, {case.name}", "GiB", 2**-30, measured, 4 * parameters(config)))
    return rows


def _measure_memory(folder: str, sizes: str, case: str, seed: str, threads: str, name: str) -> None:
    torch.set_num_threads(int(threads))
    kinds = [type(value) for value in vars(FULL).values()]
    workload = Workload(*(kind(value) for kind, value in zip(kinds, sizes.split(","), strict=True)))
    chosen = cases(workload, int(seed))[int(case)]
    side = {"ours": Ours, "theirs": Theirs}[name](folder)
    with torch.inference_mode():
        print(peak_bytes(lambda: side.first(chosen, QUESTIONS[0])))


__all__ = ["Case", "Workload", "bench_understanding", "measure", "table"]


if __name__ == "__main__":  # one side of a memory row, in a process of its own
    _measure_memory(*sys.argv[1:])
