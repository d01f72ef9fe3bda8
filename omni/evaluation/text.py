"""Text: short answers in held-out dialogues, and how well answers and tales are predicted."""

import math
from typing import Any

import torch
import torch.nn.functional as F

from omni.data.text import KINDS, sample_tale, sample_text
from omni.evaluation.report import averages, grouped, held_out, progress
from omni.inputs import Inputs, pad_rows
from omni.metrics import exact_match
from omni.model import Omni
from omni.pipelines.chat import Chat

AT_ONCE = 32  # conversations of a batch
ANSWER = 160  # tokens of an answer with its reasoning


def run(model: Omni, count: int, seed: int) -> tuple[dict[str, Any], list[dict]]:
    """``count`` dialogues, dealt out over the kinds, and as many tales.

    Metrics: exact match of the greedy answer (control: of another case of the same kind), and perplexity per byte of
    the reference answers and of the tales.
    """
    chat = Chat(model)
    kinds = tuple(KINDS)
    samples = []
    for i, s in enumerate(held_out(seed, count)):
        *messages, answer = sample_text(s, kinds[i % len(kinds)])
        thinks = bool(answer.get("thinking"))
        final = answer["content"].rpartition("</think>")[2].strip()
        samples.append(
            {"seed": s, "kind": kinds[i % len(kinds)], "messages": messages, "thinking": thinks, "answers": [final]}
            | {"full": answer["content"]}
        )
    _answer(chat, samples)
    _compare(samples)
    answers = perplexity(model, [_dialogue(model, sample) for sample in samples], "answers")
    tales = perplexity(model, [_tale(model, sample_tale(s)) for s in held_out(seed, count)], "tales")
    metrics = averages(samples, ["exact_match", "shuffled"])
    metrics |= {"answer_perplexity_per_byte": answers, "tale_perplexity_per_byte": tales}
    groups = grouped(samples, "kind", ["exact_match", "shuffled"])
    thinking = [s for s in samples if s["thinking"]]
    if thinking:
        groups["with reasoning"] = averages(thinking, ["exact_match"])
    return {**metrics, "groups": groups}, samples


def _answer(chat: Chat, samples: list[dict]) -> None:
    """Adds what the model says; conversations that think and those that do not are prompted differently."""
    with progress("answering", len(samples)) as advance:
        for thinks in (False, True):
            members = [s for s in samples if s["thinking"] == thinks]
            for start in range(0, len(members), AT_ONCE):
                some = members[start : start + AT_ONCE]
                conversations = [s["messages"] for s in some]
                replies = chat(conversations, max_new_tokens=ANSWER, temperature=0.0, thinking=thinks)
                for sample, reply in zip(some, replies, strict=True):
                    sample["said"] = reply.text.strip()
                advance(len(some))


def _compare(samples: list[dict]) -> None:
    for kind in {s["kind"] for s in samples}:
        members = [s for s in samples if s["kind"] == kind]
        for sample, other in zip(members, [*members[1:], members[0]], strict=True):
            sample["exact_match"] = exact_match(sample["said"], sample["answers"])
            alike = other["answers"] == sample["answers"]
            sample["shuffled"] = None if alike else exact_match(sample["said"], other["answers"])


# -- perplexity ------------------------------------------------------------------------------------------------------

Text = tuple[list[int], int, int]
"""(ids, how many of them are given, bytes of what is predicted)"""


def _dialogue(model: Omni, sample: dict) -> Text:
    """The reference answer, its end included, behind its conversation."""
    tokenizer = model.tokenizer
    messages = [*sample["messages"], {"role": "assistant", "content": sample["full"]}]
    prompt = tokenizer.encode_chat(sample["messages"], add_generation_prompt=True, thinking=sample["thinking"])
    ids = tokenizer.encode_chat(messages, add_generation_prompt=False)
    if ids[: len(prompt)] != prompt:
        raise ValueError("the chat format does not continue its own prompt; perplexity of answers is undefined")
    ends = tokenizer.special["eos"]
    ends = set(ends if isinstance(ends, list) else [ends])
    stop = next((i + 1 for i in range(len(prompt), len(ids)) if ids[i] in ends), len(ids))
    return ids[:stop], len(prompt), len(tokenizer.decode(ids[len(prompt) : stop]).encode())


def _tale(model: Omni, tale: str) -> Text:
    special = model.tokenizer.special
    return [special["bos"], *model.tokenizer.encode(tale)], 1, len(tale.encode())


@torch.inference_mode()
def perplexity(model: Omni, texts: list[Text], label: str) -> float:
    """exp of the mean negative log-likelihood per byte of what is predicted, over all texts together."""
    nats = 0.0
    pad = model.tokenizer.special.get("pad", 0)
    with progress(label, len(texts)) as advance:
        for start in range(0, len(texts), AT_ONCE):
            some = texts[start : start + AT_ONCE]
            ids, mask = pad_rows([row for row, _, _ in some], pad)
            logits = model.logits(Inputs(ids, mask).to(model.device)).cpu()
            for i, (row, given, _) in enumerate(some):
                targets = torch.tensor(row[given:])
                nats += float(F.cross_entropy(logits[i, given - 1 : len(row) - 1], targets, reduction="sum"))
            advance(len(some))
    return math.exp(nats / sum(size for _, _, size in texts))
