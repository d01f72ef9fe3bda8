"""Requests to a model of published sizes with random weights, on any device: seconds of every part of them.

    sizes ──> meta device ──> empty on the device, bfloat16 on a GPU ──> random weights, a tokenizer of words, a codec
    request ──> prompts read ──> all guided steps ──> frames decoded and fetched ──> seconds of each

Weights do not change what a step costs. Beside each request stands its time as published for one H200, and its floor:
the operations of reading and denoising over the rate of matrix products that the device reaches. Published times:
``reference`` cosmos3, section 11; the codec: section 5.1.
"""

import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from omni.bench_generation import FPS, PICTURE, VIDEO, Case, case_operations, worded
from omni.bench_generation_peer import write_tokenizer
from omni.bench_tools import Rates, Report, Target, replaced, row, seconds, where
from omni.config import OmniConfig, replace
from omni.families import pick_device, preset
from omni.model import Omni
from omni.pipelines.animate import Clips, TextToVideo
from omni.pipelines.generation import Generator
from omni.pipelines.images import TextToImage
from omni.tokenizers.text import load_tokenizer
from omni.tokenizers.wan import FRAMES, WanCodec

PRESETS = {"nano": "cosmos3-nano", "edge": "cosmos3-edge", "super": "cosmos3-super"}
TEXT = 1800  # tokens of a structured prompt; the published ones are not known
CASES = (
    Case("256p video", VIDEO, TEXT, (192, 320), steps=35, guidance=6.0, frames=189),
    Case("480p video", VIDEO, TEXT, (480, 832), steps=35, guidance=6.0, frames=189, turns=1),
    Case("256p picture", PICTURE, TEXT, (192, 320), steps=50, guidance=4.0),
)
PUBLISHED = {"nano": {"256p video": 6.79, "480p video": 58.1, "256p picture": 1.57}}  # seconds on an H200, vLLM-Omni
WAN: dict[str, Any] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
}


def bench_nano(sizes: str, device: str = "auto", *, quick: bool = False, seed: int = 0) -> Report:
    """Measure pictures and videos at published sizes. ``quick``: two steps and nine frames each, one turn.

    Raises ValueError for unknown sizes, and where the device has no room for the weights.
    """
    if sizes not in PRESETS:
        raise ValueError(f"sizes are {sizes!r}; known: {', '.join(PRESETS)}")
    config = replace(preset(PRESETS[sizes]), vision=None)  # a generator does not see
    cases = CASES
    if quick:
        cases = tuple(replace(case, steps=2, frames=min(case.frames, 9), turns=1) for case in CASES)
    place = pick_device(device)
    dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
    published = {} if quick else PUBLISHED.get(sizes, {})
    return measure(PRESETS[sizes], config, cases, place, dtype, WAN, published=published, seed=seed)


def measure(
    name: str,
    config: OmniConfig,
    cases: Sequence[Case],
    device: torch.device,
    dtype: torch.dtype,
    codec: dict[str, Any],
    *,
    published: dict[str, float],
    seed: int,
) -> Report:
    """The report on a random model of ``config``; ``codec``: sizes of a Wan autoencoder for its latents."""
    model = random_model(config, device, dtype, seed)
    maker = Maker(model, random_codec(config.latent.channels, codec, device, dtype))
    rates, rows, targets, parts = device_rates(device, dtype), [], [], {}
    for case in cases:
        spoken = worded(case, maker.pipeline(case), seed)
        spent = maker.spent(spoken, seed)
        floor = case_operations(config, case) / rates.gflops / 1e9
        label = f"{case.name}, {case.text:,} + {case.tokens:,} tokens, {case.steps} steps"
        rows.append(row(label, "s", 1.0, [[sum(own.values()) for own in spent]], floor))
        parts[case.name] = spent[-1]
        if case.name in published:
            told = published[case.name]
            targets.append(Target(f"{case.name}: {told:g} s, published on an H200, / ours", told / rows[-1].ours))
    settings = {
        "pattern": f"{name}, random weights",
        "cases": [asdict(case) for case in cases],
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "seed": seed,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return Report(settings, rates, rows, targets=targets, parts=parts)


# -- the model ---------------------------------------------------------------------------------------------------------


def random_model(config: OmniConfig, device: torch.device, dtype: torch.dtype, seed: int) -> Omni:
    """Made on the device itself. Matrices keep a signal's size; norms do nothing; there are no biases."""
    with torch.device("meta"):
        model = Omni(config).to(dtype)
    need, free = sum(p.nbytes for p in model.parameters()), free_bytes(device)
    if need > free:
        raise ValueError(f"the weights take {need / 1e9:.1f} GB; {device} has {free / 1e9:.1f} GB free")
    model.to_empty(device=device)
    random = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() > 1:
                tensor.normal_(std=tensor[0].numel() ** -0.5, generator=random)
            else:
                tensor.fill_(float("norm" in name and name.endswith("weight")))
        for buffer in model.buffers():
            buffer.zero_()
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        model.tokenizer = load_tokenizer(folder)
    return model.eval()


def random_codec(channels: int, sizes: dict[str, Any], device: torch.device, dtype: torch.dtype) -> WanCodec:
    from diffusers import AutoencoderKLWan

    latents = {"z_dim": channels, "latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}
    return WanCodec(AutoencoderKLWan(**latents, **sizes).to(device, dtype))


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device: what the driver says, or the system's pages."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def device_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """The best of a few products and reads, of sizes that fill the device."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = min(seconds(_waiting(lambda: a @ b, device)) for _ in range(7))
    reads = min(seconds(_waiting(a.sum, device)) for _ in range(7))
    return Rates(gflops=2 * side**3 / product / 1e9, gbytes=a.nbytes / reads / 1e9)


def _waiting(function: Callable, device: torch.device) -> Callable:
    """The function, which then waits until the device has done its work."""

    def call(*args: Any, **options: Any) -> Any:
        found = function(*args, **options)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return found

    return call


# -- requests ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Maker:
    """Whole requests, down to frames in the host's memory."""

    model: Omni
    codec: WanCodec

    def pipeline(self, case: Case) -> Generator:
        return {PICTURE: TextToImage, VIDEO: TextToVideo}[case.kind](self.model, self.codec)

    def spent(self, case: Case, seed: int) -> list[dict[str, float]]:
        """Seconds of the parts of a request in every turn, after two steps of it that do not count."""
        parts = [(Generator, "read", "reading"), (Generator, "denoise", "steps")]
        parts += [(TextToImage, "decode", "decoding"), (Maker, "fetch", "decoding")]
        self.make(replace(case, steps=2, frames=min(case.frames, 1 + 2 * FRAMES)), seed)
        read = _waiting(Generator.read, self.model.device)  # what it has begun is not left to the steps
        with replaced([(Generator, "read", read)]):
            return [where(lambda: self.make(case, seed), parts) for _ in range(case.turns)]

    def make(self, case: Case, seed: int) -> None:
        walk = {"steps": case.steps, "guidance": case.guidance, "negative_prompt": case.negative, "seed": seed}
        walk |= {"height": case.size[0], "width": case.size[1]}
        pipeline = self.pipeline(case)
        if case.kind == PICTURE:
            pipeline(list(case.prompts), **walk)
        else:
            self.fetch(pipeline(case.prompts[0], frames=case.frames, fps=FPS, **walk))

    def fetch(self, clips: Clips) -> int:
        """Frames of a video, decoded a few at a time; their number."""
        return sum(len(part) for part in clips.parts())


__all__ = ["CASES", "PRESETS", "Maker", "bench_nano", "measure", "random_codec", "random_model"]
