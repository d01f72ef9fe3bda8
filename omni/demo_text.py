"""The same problems on the demo's page, answered in every way that a model can write, with the pace of each."""

import time
from typing import Any

from omni.data.reasoning import KINDS, sample_problem
from omni.model import Omni
from omni.pipelines.chat import Chat, Reply

FIRST_SEED = 400  # of the problems: training never draws seeds below a million
SHOWN = ("sum", "program", "sort_words", "edit", "largest")
TOKENS = 256  # of an answer with its working at most


def ways(model: Omni) -> dict[str, dict[str, Any]]:
    """Name -> options of a chat."""
    found: dict[str, dict[str, Any]] = {"token by token": {}}
    if model.mtp is not None:
        found["drafts of 6, verified"] = {"drafts": 6}
    if model.config.diffusion is not None:
        found["blocks, denoised in two passes, verified"] = {"decode": "diffusion", "lossless": True, "steps": 2}
    return found


def writings(model: Omni) -> list[dict[str, Any]]:
    """Of every way its pace over all problems, and what it makes of each; none of a model with one way only."""
    known = ways(model)
    if len(known) < 2:
        return []
    problems = [sample_problem(FIRST_SEED + i, kind, 2) for i, kind in enumerate(k for k in SHOWN if k in KINDS)]
    chat, found = Chat(model), []
    for name, options in known.items():
        _answer(chat, problems[0].question, options)  # not timed: the first call of a way sets up what it needs
        start = time.perf_counter()
        replies = [_answer(chat, problem.question, options) for problem in problems]
        pace = sum(reply.tokens for reply in replies) / (time.perf_counter() - start)
        items = [_item(problem, reply) for problem, reply in zip(problems, replies, strict=True)]
        found.append({"name": name, "pace": pace, "items": items})
    return found


def _answer(chat: Chat, question: str, options: dict[str, Any]) -> Reply:
    messages = [{"role": "user", "content": question}]
    return chat(messages, max_new_tokens=TOKENS, temperature=0.0, thinking=True, **options)


def _item(problem: Any, reply: Reply) -> dict[str, Any]:
    said = reply.text.strip()
    return {
        "question": problem.question,
        "working": reply.reasoning.strip(),
        "said": said,
        "answer": problem.answer,
        "right": said == problem.answer,
    }
