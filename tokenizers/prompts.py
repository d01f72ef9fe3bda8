"""Prompts for pictures as token ids. Training and the pipelines read the same ids."""

from collections.abc import Callable


def caption_ids(caption: str, special: dict, encode: Callable[[str], list[int]]) -> list[int]:
    """A prompt for pictures: ``<s> caption </s>``; the empty caption is the unconditional branch."""
    end = special["eos"]
    return [special["bos"], *encode(caption), end[-1] if isinstance(end, list) else end]
