"""Prompts for pictures as token ids. Training and the pipelines read the same ids."""

from collections.abc import Callable

UPSAMPLE = "Describe in full: {prompt}"
"""What the reasoner of the shipped model is asked, so that it says all that a prompt for a picture leaves open."""

NOT_ANSWERABLE = "Not answerable"
"""What is said of a question that the page does not answer (MMLongBench-Doc's words)."""


def caption_ids(caption: str, special: dict, encode: Callable[[str], list[int]]) -> list[int]:
    """A prompt for pictures: ``<s> caption </s>``; the empty caption is the unconditional branch."""
    end = special["eos"]
    return [special["bos"], *encode(caption), end[-1] if isinstance(end, list) else end]


def time_label(seconds: float) -> str:
    """When a frame of a video is shown, for the shipped model: tenths below 100 seconds, then whole seconds."""
    return f"{seconds:.1f}" if seconds < 99.95 else f"{seconds:.0f}"
