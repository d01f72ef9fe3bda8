"""Reasoning: held-out problems with their working, and how a decoder wrote them.

    problems ──> Chat, greedy, thinking ──> working, answer ──> exact match, right lines, lengths, repetition

The control holds each reply to another problem of its kind and level: what is right must be right for its own problem.
"""

import re
from dataclasses import asdict, fields
from typing import Any

from omni.data.reasoning import KINDS, LEVELS, MAX_LENGTH, Problem, check, sample_problem
from omni.evaluation.report import averages, grouped, held_out, mean, progress
from omni.model import Omni
from omni.pipelines.chat import Chat, Reply

AT_ONCE = 32  # conversations of a batch
ANSWER = MAX_LENGTH + 20  # tokens of an answer with its working, at most
COLUMNS = ("exact_match", "shuffled", "working_right", "lines", "completion_tokens", "repetition")
REPEATED = re.compile(r"(.{1,64}?)\1{3,}\Z", re.DOTALL)
REPETITION = 16  # characters


def run(
    model: Omni,
    count: int,
    seed: int,
    drafts: int = 0,
    adaptive: bool = True,
    decode: str = "plain",
    threshold: float | None = None,
    block: int | None = None,
    steps: int | None = None,
    lossless: bool = False,
    at_once: int = AT_ONCE,
) -> tuple[dict[str, Any], list[dict]]:
    """``count`` problems, dealt out over kinds and levels; how they are written is as of :class:`Chat`.

    ``at_once`` conversations share a batch. Metrics: exact match of the answer (control: another problem's), share of
    replies whose whole working is right, share of the working before its first wrong line, tokens, share of replies
    that end in a piece repeated over and over; with drafts or blocks the tokens of a pass.
    """
    if at_once < 1:
        raise ValueError(f"at_once is {at_once}; it must be at least 1")
    dealt = [(kind, level) for level in LEVELS for kind in KINDS]
    samples = []
    for i, s in enumerate(held_out(seed, count)):
        problem = sample_problem(s, *dealt[i % len(dealt)])
        samples.append({"seed": s, **asdict(problem)})
    blocks = {"decode": decode, "threshold": threshold, "block": block, "steps": steps, "lossless": lossless}
    _answer(Chat(model), samples, at_once, {"drafts": drafts, "adaptive": adaptive, **blocks})
    _judge(samples)
    metrics = averages(samples, COLUMNS)
    passes = mean(s["tokens_per_pass"] for s in samples if "tokens_per_pass" in s)
    metrics |= {} if passes is None else {"tokens_per_pass": passes}
    levels = grouped([{**s, "of": f"level {s['level']}"} for s in samples], "of", COLUMNS)
    return {**metrics, "groups": grouped(samples, "kind", COLUMNS) | levels}, samples


def repeats(text: str) -> bool:
    """Whether ``text`` ends in a piece of up to 64 characters that comes four times or more, 16 characters in all."""
    found = REPEATED.search(text.rstrip())
    return found is not None and len(found[0]) >= REPETITION


def _answer(chat: Chat, samples: list[dict], at_once: int, options: dict[str, Any]) -> None:
    with progress("reasoning", len(samples)) as advance:
        for start in range(0, len(samples), at_once):
            some = samples[start : start + at_once]
            conversations = [[{"role": "user", "content": s["question"]}] for s in some]
            replies = chat(conversations, max_new_tokens=ANSWER, temperature=0.0, thinking=True, **options)
            for sample, reply in zip(some, replies, strict=True):
                sample |= _told(reply)
            advance(len(some))


def _told(reply: Reply) -> dict[str, Any]:
    """What goes into the sample of a reply."""
    several = reply.usage.drafts or reply.usage.denoising
    return {
        "said": reply.text.strip(),
        "reasoned": reply.reasoning.strip(),
        "completion_tokens": reply.tokens,
        "repetition": repeats(f"{reply.reasoning}\n{reply.text}"),
        **({} if several is None else {"tokens_per_pass": several.tokens_per_pass}),
    }


def _judge(samples: list[dict]) -> None:
    for kind, level in {(s["kind"], s["level"]) for s in samples}:
        members = [s for s in samples if (s["kind"], s["level"]) == (kind, level)]
        for sample, other in zip(members, [*members[1:], members[0]], strict=True):
            verdict = check(_problem(sample), sample["said"], sample["reasoned"])
            sample |= {"exact_match": verdict.answer, "working_right": verdict.working, "lines": verdict.lines}
            alike = other["answer"] == sample["answer"]
            sample["shuffled"] = None if alike else check(_problem(other), sample["said"]).answer


def _problem(sample: dict) -> Problem:
    return Problem(**{field.name: sample[field.name] for field in fields(Problem)})
