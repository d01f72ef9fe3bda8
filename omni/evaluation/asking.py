"""Many questions about many media at once, and about what stands in their place as controls.

    Asked: parts of a message, and by the name of each control the parts in their place; questions and answers
       ──> ask: conversations in batches, with all of it told first or not ──> what was said
       ──> judged: one sample a question, with the scores of the medium and of each control

Samples hold ``said`` and the scores; of a control ``NAME_said`` and ``NAME_<score>``.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch

from omni.evaluation.report import progress
from omni.metrics import exact_match
from omni.model import Omni
from omni.pipelines.chat import Chat

AT_ONCE = 32  # conversations of a batch
ANSWER = 48  # tokens of an answer
TELLING = 256  # tokens of what is told before the questions
CONTROLLED = 60  # media that the controls are shown for

Parts = Sequence[dict]  # of a user's message, without the question
Score = Callable[[str, str], dict[str, float]]  # what was said, the reference -> scores by name


@dataclass(frozen=True)
class Asked:
    """One medium with its questions; ``about`` goes into every sample of it."""

    parts: Parts
    qa: Sequence[tuple[str, str]]
    about: dict[str, Any]
    controls: dict[str, Parts | None] = field(default_factory=dict)
    own: Sequence[dict[str, Any]] = ()  # what goes into the sample of each question


def exact(said: str, answer: str) -> dict[str, float]:
    return {"accuracy": exact_match(said, [answer])}


def judged(
    model: Omni,
    asked: Sequence[Asked],
    label: str,
    score: Score = exact,
    tell: str | None = None,
    limit: int | None = None,
    media: dict[str, Any] | None = None,
) -> list[dict]:
    """One sample a question, in order. ``tell`` asks for all of it before the questions; ``media`` is Chat's."""
    names = list(dict.fromkeys(name for one in asked for name in one.controls))
    questions = [[question for question, _ in one.qa] for one in asked]
    said = {}
    for name in ("", *names):
        shown = [one.parts if not name else one.controls.get(name) for one in asked]
        said[name] = ask(model, shown, questions, limit or ANSWER, f"{label} {name}".strip(), tell, media)
    samples = []
    for i, one in enumerate(asked):
        for j, (question, answer) in enumerate(one.qa):
            sample = {**one.about, **(one.own[j] if one.own else {}), "question": question, "answers": [answer]}
            for name in said:
                if said[name][i] is not None:
                    found = {"said": said[name][i][j], **score(said[name][i][j], answer)}
                    sample |= {f"{name}_{key}" if name else key: value for key, value in found.items()}
            samples.append(sample)
    return samples


@torch.inference_mode()
def ask(
    model: Omni,
    shown: Sequence[Parts | None],
    questions: Sequence[Sequence[str]],
    limit: int,
    label: str,
    tell: str | None = None,
    media: dict[str, Any] | None = None,
) -> list[list[str] | None]:
    """Greedy answers to the questions about each message's parts; None stays None."""
    chat, there = Chat(model), [i for i, parts in enumerate(shown) if parts is not None]
    told = [""] * len(shown)
    if tell is not None:
        openings = [_opening(shown[i], tell) for i in there]
        found = _answers(chat, openings, TELLING, f"{label}, told first", media)
        for i, text in zip(there, found, strict=True):
            told[i] = text
    places = [(i, question) for i in there for question in questions[i]]
    conversations = [_conversation(shown[i], question, tell, told[i]) for i, question in places]
    answers: list[list[str] | None] = [None if parts is None else [] for parts in shown]
    for (i, _), text in zip(places, _answers(chat, conversations, limit, label, media), strict=True):
        answers[i].append(text)
    return answers


def _conversation(parts: Parts, question: str, tell: str | None, told: str) -> list[dict]:
    """The question, behind what was told, as ``Reading`` has it: where nothing was told it stands alone."""
    if tell is None or not told:
        return _opening(parts, question)
    return [
        *_opening(parts, tell),
        {"role": "assistant", "content": told},
        {"role": "user", "content": question},
    ]


def _opening(parts: Parts, question: str) -> list[dict]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def _answers(
    chat: Chat, conversations: list[list[dict]], limit: int, label: str, media: dict[str, Any] | None
) -> list[str]:
    found: list[str] = []
    with progress(label, len(conversations)) as advance:
        for start in range(0, len(conversations), AT_ONCE):
            some = conversations[start : start + AT_ONCE]
            replies = chat(some, temperature=0, max_new_tokens=limit, thinking=False, media=media)
            found += [reply.text.strip() for reply in replies]
            advance(len(some))
    return found


def chosen(qa: Sequence[tuple[str, str]], most: int, seed: int) -> list[int]:
    """Indices of at most ``most`` of the questions, drawn for the case's seed."""
    return Random(seed).sample(range(len(qa)), min(most, len(qa)))


def check_questions(questions: int) -> None:
    """ValueError for a number of questions below one."""
    if questions < 1:
        raise ValueError(f"questions is {questions}; it must be at least 1")


def following(items: Sequence) -> Iterator:
    """For each item the next one, for the last the first: what a control shows in its place; None if it is alone."""
    yield from (items[(i + 1) % len(items)] if len(items) > 1 else None for i in range(len(items)))


def columns(score: str, controls: Sequence[str]) -> list[str]:
    """The score's column and those of the controls."""
    return [score, *(f"{name}_{score}" for name in controls)]


def setting(model: Omni, name: str, given: bool | None) -> bool:
    """An option, or what the checkpoint asks for where it is not given."""
    return bool(model.config.sampling.get(name, False)) if given is None else given
