"""Pictures, videos and actions beside the reference implementation: same weights, same noise, in turns.

    weights   a random Cosmos 3 of the reference implementation, saved, and loaded by both sides
    picture   prompt, negative prompt ──> all guided steps ──> latents; also four prompts at once, theirs by turns
    policy    picture and instruction ──> all steps ──> actions; then again, the instruction being known
    video     the same as a picture, with many more tokens to denoise than to read
    memory    highest resident size of the video, each side in a process of its own

Whole requests are timed, from words to latents: ours reads each prompt once and denoises over what it has read, theirs
computes the text's tower again in every step and every branch of guidance. Codecs, which both sides share, are left
out. Before a time is told, the latents of both sides must agree. Beside it stands its floor: the operations of reading
once and denoising over the measured rate of matrix products.
"""

import gc
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omni import families
from omni.bench import parameters
from omni.bench_generation_peer import EMBODIMENT, SIZES, WIDTH, WORDS, Peer, word, write_folder
from omni.bench_tools import (
    AGREEMENT,
    BenchError,
    Rates,
    Report,
    Row,
    Target,
    child_peak,
    in_turns,
    measure_rates,
    peak_bytes,
    row,
    where,
)
from omni.config import OmniConfig, TowerConfig
from omni.pipelines.animate import TextToVideo
from omni.pipelines.generation import Generator
from omni.pipelines.images import TextToImage
from omni.pipelines.policy import Policy
from omni.tokenizers.captions import action_caption

PICTURE, VIDEO, POLICY = KINDS = ("picture", "video", "policy")
FPS, ACTIONS = 24.0, 16  # frames a second; actions of a policy's call


@dataclass(frozen=True)
class Case:
    """A request, and how many times as fast as the reference it should be."""

    name: str
    kind: str
    text: int  # tokens of every prompt, the negative one included
    size: tuple[int, int]  # height and width in pixels
    steps: int
    guidance: float
    frames: int = 1
    count: int = 1  # prompts of the request
    turns: int = 3
    least: float | None = None
    prompts: tuple[str, ...] = ()
    negative: str = ""

    @property
    def grid(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns."""
        return 1 + (self.frames - 1) // 4, self.size[0] // 16, self.size[1] // 16

    @property
    def tokens(self) -> int:
        """That are denoised, of one prompt."""
        t, h, w = self.grid
        return t * -(-h // 2) * -(-w // 2) + (ACTIONS if self.kind == POLICY else 0)


SMALL, LARGE = (192, 320), (1024, 1024)  # 60 and 1,024 tokens a frame
# The published number of steps, of pictures 50, but where they take minutes: the fewer, the more our reading counts.
FULL = (
    Case("picture", PICTURE, 512, SMALL, steps=50, guidance=4.0, turns=2, least=6.0),
    Case("large picture", PICTURE, 1800, LARGE, steps=20, guidance=4.0, turns=1, least=2.2),
    Case("policy", POLICY, 250, SMALL, steps=30, guidance=1.0, frames=1 + ACTIONS, least=1.7),
    Case("long video", VIDEO, 250, SMALL, steps=2, guidance=6.0, frames=265, turns=2, least=1.0),
    Case("4 pictures", PICTURE, 512, SMALL, steps=10, guidance=4.0, count=4, turns=2),
)
QUICK = tuple(
    replace(
        case,
        steps=2,
        turns=1,
        least=None,
        frames=min(case.frames, 33),
        size=(min(case.size[0], 512), min(case.size[1], 512)),
        text=min(case.text, 512),
    )
    for case in FULL
)


def bench_generation(
    *,
    peer: bool = True,
    quick: bool = False,
    seed: int = 0,
    threads: int = 2,
    device: str = "auto",
    sizes: str | None = None,
) -> Report:
    """Measure requests of every kind, and memory. ``quick``: two steps each, small sizes, one turn.

    ``peer`` False: ours alone, on the same weights. Takes half an hour. With ``sizes``, the name of a published model
    such as "nano", ours alone on any ``device`` instead (:mod:`omni.bench_nano`). Raises :class:`BenchError` where the
    two sides' latents differ.
    """
    torch.set_num_threads(threads)
    if sizes is not None:
        from omni.bench_nano import bench_nano

        return bench_nano(sizes, device, quick=quick, seed=seed)
    if device not in ("auto", "cpu"):
        raise ValueError(f"device is {device!r}; beside the reference the CPU is measured: name sizes for ours alone")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        write_folder(Path(folder), SIZES, seed)
        return measure(folder, QUICK if quick else FULL, peer=peer, seed=seed, threads=threads)


def measure(folder: str, cases: Sequence[Case], *, peer: bool, seed: int, threads: int) -> Report:
    """The report on the model of ``folder``; the memory is that of the last video."""
    sides: list[Side] = [Ours(folder), *([Theirs(folder)] if peer else [])]
    config = sides[0].model.config
    cases = [sides[0].worded(case, seed) for case in cases]
    rates = measure_rates()
    rows, targets, parts, apart = [], [], {}, []
    for case in cases:
        found = _measure_case(sides, case, config, rates, seed)
        rows += found.rows
        targets += found.targets
        parts[f"{case.name}, ours"] = found.parts
        apart.append(found.disagreement)
    names = [type(side).__name__.lower() for side in sides]
    sides.clear()
    gc.collect()
    rows += [_memory_row(folder, case, names, seed, threads, config) for case in cases if case.kind == VIDEO][-1:]
    settings = {
        "pattern": config.context.pattern,
        **SIZES,
        "cases": [{**asdict(case), "prompts": len(case.prompts), "tokens": case.tokens} for case in cases],
        "compared": "latents",
        "parameters": parameters(config),
        "threads": threads,
        "seed": seed,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    disagreement = max(apart) if peer else None
    return Report(settings, rates, rows, disagreement=disagreement, targets=targets, parts=parts)


# -- requests ----------------------------------------------------------------------------------------------------------


def noise_of(case: Case, config: OmniConfig, seed: int) -> tuple[Tensor, Tensor]:
    """Latents (b, c, T, h, w) and actions (b, n, width) to start from.

    A policy's first frame is what it sees, which no codec encodes here: zero; as are numbers that its actions have not.
    """
    random = torch.Generator().manual_seed(seed)
    latents = torch.randn(case.count, config.latent.channels, *case.grid, generator=random)
    actions = torch.randn(case.count, ACTIONS, config.action.width, generator=random)
    actions[..., WIDTH:] = 0
    if case.kind == POLICY:
        latents[:, :, 0] = 0
    return latents, actions


def picture_of(case: Case, seed: int) -> np.ndarray:
    """What a robot sees: (H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (*case.size, 3), dtype=np.uint8)


class Blank:
    """In the codec's place: pictures are zeros in both directions."""

    factor, frames = 16, 4

    def __init__(self, channels: int) -> None:
        self.channels = channels

    @staticmethod
    def latent_frames(frames: int) -> int:
        return 1 + (frames - 1) // 4

    @staticmethod
    def pixel_frames(latents: int) -> int:
        return 1 + 4 * (latents - 1)

    def encode(self, pixels: Tensor) -> Tensor:
        """Videos (b, 3, n, H, W)"""
        b, _, n, height, width = pixels.shape
        return pixels.new_zeros(b, self.channels, self.latent_frames(n), height // 16, width // 16)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (b, c, h, w)"""
        return latents.new_zeros(len(latents), 3, 16 * latents.shape[-2], 16 * latents.shape[-1])


# -- prompts -----------------------------------------------------------------------------------------------------------


def worded(case: Case, pipeline: Generator, seed: int) -> Case:
    """The case with prompts of its number of tokens, as the pipeline counts them."""
    random = np.random.default_rng(seed)
    wanted = tuple(_prompt(case, pipeline, random, negative=False) for _ in range(case.count))
    return replace(case, prompts=wanted, negative=_prompt(case, pipeline, random, negative=True))


def _prompt(case: Case, pipeline: Generator, random: np.random.Generator, negative: bool) -> str:
    words = [word(i) for i in random.integers(0, WORDS, case.text)]
    around = len(_ids(case, pipeline, words[0], negative)) - 1
    if around >= case.text:
        raise ValueError(f"{case.name}: text is {case.text}; its prompts take at least {around + 1} tokens")
    return " ".join(words[: case.text - around])


def _ids(case: Case, pipeline: Generator, prompt: str, negative: bool) -> tuple[int, ...]:
    style, kind = pipeline.style(), "image" if case.frames == 1 else "video"
    size = {"height": case.size[0], "width": case.size[1], "frames": case.frames, "fps": FPS}
    if case.kind != POLICY:
        text = pipeline.say(prompt, negative=negative, style=style, **size)
    else:
        text = prompt if negative else action_caption(prompt, "ego_view", **size)
    return pipeline.ids(text, kind, style)


# -- the two sides -----------------------------------------------------------------------------------------------------


class Ours:
    def __init__(self, folder: str) -> None:
        self.model = families.load(folder, device="cpu", dtype="float32")
        self.codec = Blank(self.model.config.latent.channels)

    def run(self, case: Case, seed: int) -> Callable[[], Tensor]:
        """A request to a pipeline that has read nothing yet; all that it denoised as one row."""
        noise = noise_of(case, self.model.config, seed)
        return lambda: self.ask(self.pipeline(case), case, seed, *noise)

    def again(self, case: Case, seed: int) -> Callable[[], Tensor]:
        """The same to one that knows the prompts."""
        noise, kept = noise_of(case, self.model.config, seed), self.pipeline(case)
        self.ask(kept, replace(case, steps=1), seed, *noise)
        return lambda: self.ask(kept, case, seed, *noise)

    def one_by_one(self, case: Case, seed: int) -> Callable[[], Tensor]:
        """The prompts of a request, each alone."""
        latents, actions = noise_of(case, self.model.config, seed)
        singles = [replace(case, count=1, prompts=(prompt,)) for prompt in case.prompts]

        def run() -> Tensor:
            kept = self.pipeline(case)
            parts = zip(singles, latents.split(1), actions.split(1), strict=True)
            return torch.cat([self.ask(kept, *(single, seed), *noise) for single, *noise in parts])

        return run

    def pipeline(self, case: Case) -> Generator:
        if case.kind == POLICY:
            own = {"chunk": ACTIONS, "tier": 256, "fps": FPS, "raw": True, "multiple": 16}
            return Policy(self.model, EMBODIMENT, codec=self.codec, **own)
        return {PICTURE: TextToImage, VIDEO: TextToVideo}[case.kind](self.model, self.codec)

    def worded(self, case: Case, seed: int) -> Case:
        return worded(case, self.pipeline(case), seed)

    def ask(self, pipeline: Generator, case: Case, seed: int, latents: Tensor, actions: Tensor) -> Tensor:
        walk = {"steps": case.steps, "guidance": case.guidance, "negative_prompt": case.negative}
        if case.kind == POLICY:
            observation = {"image": picture_of(case, seed), "prompt": case.prompts[0]}
            found = pipeline.predict(observation, latents=latents, action_latents=actions, **walk)
            return _flat(found.latents, found.actions)
        walk |= {"height": case.size[0], "width": case.size[1]}
        if case.kind == PICTURE:
            return _flat(pipeline(list(case.prompts), latents=latents[:, :, 0], **walk).latents)
        return _flat(pipeline(case.prompts[0], latents=latents, frames=case.frames, fps=FPS, **walk).latents)


class Theirs:
    def __init__(self, folder: str) -> None:
        self.peer = Peer(folder)
        self.config = families.find_config(folder)

    def run(self, case: Case, seed: int) -> Callable[[], Tensor]:
        """A request; several prompts one after the other."""
        latents, actions = noise_of(case, self.config, seed)
        walk = {"num_inference_steps": case.steps, "guidance_scale": case.guidance, "fps": FPS}
        if case.kind == POLICY:
            pixels = picture_of(case, seed)
            return lambda: _flat(*self._policy(case, pixels, latents, actions[0], **walk))
        walk |= {"height": case.size[0], "width": case.size[1], "num_frames": case.frames}
        pairs = list(zip(case.prompts, latents.split(1), strict=True))
        return lambda: torch.cat([_flat(self.peer.video(p, case.negative, own, **walk)) for p, own in pairs])

    def _policy(self, case: Case, *given: Any, **walk: Any) -> tuple[Tensor, Tensor]:
        video, actions = self.peer.policy(case.prompts[0], *given, **walk)
        return video, actions[None]


Side = Ours | Theirs


def _flat(*streams: Tensor) -> Tensor:
    """(b, ...) of each -> (b, n)"""
    return torch.cat([x.flatten(1).float() for x in streams], dim=1)


# -- times -------------------------------------------------------------------------------------------------------------


@dataclass
class _Found:
    """Of one case."""

    rows: list[Row]
    targets: list[Target]
    parts: dict[str, float]
    disagreement: float


def _measure_case(sides: list[Side], case: Case, config: OmniConfig, rates: Rates, seed: int) -> _Found:
    ours, name = sides[0], f"{case.name}, {case.text:,} + {case.tokens:,} tokens, {case.steps} steps"
    runs = {"": ours.run(case, seed)}
    if case.kind == POLICY:
        runs[", instruction known"] = ours.again(case, seed)
    if case.count > 1:
        runs[", one by one"] = ours.one_by_one(case, seed)
    last: dict[str, Tensor] = {}

    def keeping(key: str, run: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: last.update({key: run()})

    kept = [keeping(key, run) for key, run in runs.items()]
    if len(sides) > 1:
        kept.append(keeping("theirs", sides[1].run(case, seed)))
    times = dict(zip([*runs, "theirs"], in_turns(kept, case.turns, name), strict=False))
    apart = max([difference(last[key], last["theirs"]) for key in runs] if "theirs" in last else [0.0])
    if apart > AGREEMENT:
        raise BenchError(f"{name}: latents differ by {apart:.1e} of the largest; at most {AGREEMENT:.0e} is rounding")
    rows = []
    for key in runs:
        measured = [times[key], *([times["theirs"]] if "theirs" in times else [])]
        operations = case_operations(config, case, known=key == ", instruction known")
        rows.append(row(name + key, "s", 1.0, measured, operations / rates.gflops / 1e9))
    targets = [Target(f"{r.name}: reference / ours", r.ratio, case.least) for r in rows if r.ratio is not None]
    if case.count > 1:
        targets.append(Target(f"{case.name}: ours one by one / ours at once", rows[1].ours / rows[0].ours))
    spans = [(Generator, "read", "reading"), (ours.model, "velocity", "steps")]
    return _Found(rows, targets, where(runs[""], spans), apart)


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference of two sides over the largest value of the second."""
    return float((a - b).abs().max() / b.abs().max())


# -- floors ------------------------------------------------------------------------------------------------------------


def case_operations(config: OmniConfig, case: Case, known: bool = False) -> int:
    """Multiplications and additions of a request, its prompts read once, or ``known`` before."""
    guided = case.guidance != 1
    read = 0 if known else (case.count + guided) * read_operations(config.context, case.text)
    branches = case.count * (2 if guided else 1)
    return read + case.steps * branches * step_operations(config, case)


def read_operations(tower: TowerConfig, n: int) -> int:
    """Of a prompt of ``n`` tokens; of the last attention only keys and values are needed."""
    a = tower.attention
    attentions, mlps = tower.pattern.count("*"), tower.pattern.count("-")
    queries = n * 4 * tower.d_model * a.n_heads * a.head_dim + 4 * a.n_heads * a.head_dim * n * (n + 1) // 2
    keys = n * 4 * tower.d_model * a.n_kv_heads * a.head_dim
    return attentions * keys + (attentions - 1) * queries + (mlps - 1) * n * mlp_operations(tower)


def step_operations(config: OmniConfig, case: Case) -> int:
    """Of one step of one branch of one prompt."""
    tower, n = config.denoiser, case.tokens
    a, d = tower.attention, tower.d_model
    width = a.n_heads * a.head_dim
    attention = n * 4 * d * (a.n_heads + a.n_kv_heads) * a.head_dim + 4 * width * n * (n + case.text)
    blocks = tower.pattern.count("*") * attention + tower.pattern.count("-") * n * mlp_operations(tower)
    actions = ACTIONS if case.kind == POLICY else 0
    heads = 4 * d * ((n - actions) * config.latent.token_dim + actions * config.action.width)
    return blocks + heads + 2 * d * (2 * tower.time.n_frequencies + d)


def mlp_operations(tower: TowerConfig) -> int:
    """Of one token; SwiGLU has a third matrix."""
    return 2 * tower.d_model * tower.mlp.d_ff * (3 if tower.mlp.activation == "silu" else 2)


# -- memory ------------------------------------------------------------------------------------------------------------


def _memory_row(folder: str, case: Case, names: list[str], seed: int, threads: int, config: OmniConfig) -> Row:
    """One step is as large as all are."""
    arguments = [folder, json.dumps(asdict(replace(case, steps=1))), str(seed), str(threads)]
    measured = [
        [child_peak("omni.bench_generation", [*arguments, name], f"memory: {case.name} by {name}")] for name in names
    ]
    return row(f"memory, {case.name}, {case.tokens:,} tokens", "GiB", 2**-30, measured, 4 * parameters(config))


def _measure_memory(folder: str, case: str, seed: str, threads: str, name: str) -> None:
    torch.set_num_threads(int(threads))
    plain = json.loads(case)
    chosen = Case(**{**plain, "size": tuple(plain["size"]), "prompts": tuple(plain["prompts"])})
    run = {"ours": Ours, "theirs": Theirs}[name](folder).run(chosen, int(seed))
    with torch.inference_mode():
        print(peak_bytes(run))


__all__ = ["FULL", "QUICK", "Case", "bench_generation", "measure"]


if __name__ == "__main__":  # one side of a memory row, in a process of its own
    _measure_memory(*sys.argv[1:])
