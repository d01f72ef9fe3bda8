"""Prompt upsampling: before a picture is drawn, the model's own reasoner says in words what the prompt leaves open.

    "a ring and a square" ──> reasoner ──> "small red ring at c5, medium blue square at f2, on white" ──> drawing

A denoiser that must settle a colour or a place while it draws may settle it too late, and then a thing is missing.
Words are drawn one after the other, each knowing those before it.
"""

from collections.abc import Sequence

from omni.model import Omni
from omni.pipelines.chat import Chat
from omni.tokenizers.prompts import UPSAMPLE

MAX_NEW_TOKENS = 512
TEMPERATURE, TOP_P, TOP_K = 0.7, 0.8, 20  # those published for Cosmos 3's upsampler


def upsample(model: Omni, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Each prompt in full, drawn with its own seed: the same alone and in any batch.

    A prompt that is empty, or that the reasoner has nothing to say about or comes to no end with, stays as it is.

    Raises ValueError for a prompt that leaves no room for an answer.
    """
    asked = [[{"role": "user", "content": UPSAMPLE.format(prompt=prompt)}] for prompt in prompts]
    replies = Chat(model)(
        asked,
        seed=list(seeds),
        thinking=False,
        max_new_tokens=_room(model, asked),
        temperature=TEMPERATURE,
        top_p=TOP_P,
        top_k=TOP_K,
    )
    whole = [reply.text.strip() if reply.finish_reason == "stop" else "" for reply in replies]
    return [text if text and prompt.strip() else prompt for text, prompt in zip(whole, prompts, strict=True)]


def _room(model: Omni, asked: list[list[dict]]) -> int:
    """Tokens that the longest request leaves for its answer."""
    longest = max(len(model.tokenizer.encode_chat(messages, thinking=False)) for messages in asked)
    limit = model.config.max_positions
    if longest >= limit:
        raise ValueError(f"upsampling a prompt takes {longest} tokens; the model's limit is {limit}")
    return min(MAX_NEW_TOKENS, limit - longest)
