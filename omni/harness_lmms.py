r"""omni as a model of lmms-eval: tasks with pictures, videos and recordings.

    python -m omni.harness_lmms --model_args pretrained=tiny --tasks docvqa_val,videomme

takes the arguments of ``lmms_eval``; ``--model omni`` is the default. That package asks for other versions of numpy,
PyAV and httpx than omni does, so it is no extra of it: ``pip install --no-deps lmms-eval``, and what its tasks import.
In a program, import this module before ``lmms_eval.evaluator.simple_evaluate(model="omni", ...)``.

    doc_to_visual(doc) ──> pictures, paths of videos, arrays of sound ──> parts of a user's message
    context (the question) ──────────────────────────────────────────┘──> Chat, in batches ──> answer

Its other interface for models, ``doc_to_messages``, is not needed: every task that has it has this one too.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track

try:
    from lmms_eval.api.model import lmms
    from lmms_eval.api.registry import MODEL_REGISTRY
except ImportError as error:
    raise ImportError(f"omni.harness_lmms needs lmms-eval: pip install --no-deps lmms-eval ({error})") from error

import omni
from omni.inputs import Inputs
from omni.metrics import without_reasoning
from omni.model import Omni
from omni.pipelines.chat import Chat
from omni.prepare import gather, ids_of, open_media
from omni.tokenizers.sound import Waveform

LIMITS = ("max_new_tokens", "max_gen_toks", "max_tokens")
SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty")
UNUSED = ("do_sample", "num_beams", "modalities", "image_aspect_ratio", "use_cache", "min_new_tokens")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".ts", ".gif")
SOUND_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac")


class OmniMultimodal(lmms):
    """Answers and scores questions about media with an omni model.

    Args:
        pretrained: ``"tiny"``, a folder, a hub id, or a loaded model.
        batch_size: conversations at once.
        max_new_tokens: longest answer where a task names none.
        thinking: let the model reason before it answers; default: the checkpoint's own.
        fps, max_frames, pruning: how videos are looked at (see :func:`omni.prepare.prepare`).
        sound: videos are heard too.
        seed: of sampled answers; the i-th request gets seed + i.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str | Omni = "tiny",
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,  # the harness passes it; batches here do not search for a size
        max_new_tokens: int = 256,
        thinking: bool | None = None,
        fps: float | None = None,
        max_frames: int | None = None,
        pruning: float = 0.0,
        sound: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        loaded = isinstance(pretrained, Omni)
        self.model = pretrained if loaded else omni.load(pretrained, device=device or "auto", dtype=dtype)
        self.chat = Chat(self.model)
        self.model_name = "loaded" if loaded else str(pretrained)
        self.batch_size = 1 if str(batch_size).startswith("auto") else int(batch_size)
        if self.batch_size < 1 or max_new_tokens < 1:
            raise ValueError(f"batch_size is {batch_size}, max_new_tokens {max_new_tokens}; both must be at least 1")
        if sound and self.model.sound is None:
            raise ValueError("sound is set, but this model hears no sounds")
        self.max_new_tokens, self.thinking, self.seed, self.with_sound = max_new_tokens, thinking, seed, sound
        media = {"fps": fps, "max_frames": max_frames, "pruning": pruning or None}
        self.media = {name: value for name, value in media.items() if value is not None}

    # -- answers -----------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list) -> list[str]:
        """Answers without their reasoning and stop strings, in the order of the requests."""
        asked = [self._read(request.args) for request in requests]
        groups: dict[str, list[int]] = {}
        for i, (_, options) in enumerate(asked):
            groups.setdefault(repr(options), []).append(i)
        size = self.batch_size
        batches = [g[at : at + size] for g in groups.values() for at in range(0, len(g), size)]
        answers = [""] * len(requests)
        for members in track(batches, "answering", console=Console(stderr=True), disable=self.rank != 0):
            said = self._answer([asked[i][0]() for i in members], members, asked[members[0]][1])
            for i, answer in zip(members, said, strict=True):
                answers[i] = answer
                self.cache_hook.add_partial("generate_until", requests[i].args[:2], answer)
        return answers

    def generate_until_multi_round(self, requests: list) -> list[list[str]]:
        """The answers of all rounds. Each round is a prompt of its own, which the task makes from those before it."""
        return [self._rounds(i, request.args) for i, request in enumerate(requests)]

    def _rounds(self, index: int, arguments: tuple) -> list[str]:
        context, options, doc_to_visual, doc_to_text, doc_id, task, split = arguments
        doc = self.task_dict[task][split][doc_id]
        visuals, told, said, ended = doc_to_visual(doc), None, [], False
        chosen = self._options(options)
        while not ended:
            said = [*said, *self._answer([self._asked(visuals, context)], [index], chosen)]
            visuals, context, ended, said, told = doc_to_text(
                doc, previous_output=said, round_idx=len(said), previous_round_info=told
            )
        return list(said)

    def _answer(self, conversations: list[list[dict]], indices: Sequence[int], options: dict[str, Any]) -> list[str]:
        stops = options["stop"]
        # A stop string inside reasoning ends nothing, so it may end the generation only where there is none.
        early = {"stop": stops if self.thinking is False else ()}
        seeds = [self.seed + i for i in indices]
        replies = self.chat(conversations, seed=seeds, thinking=self.thinking, media=self.media, **{**options, **early})
        return [_cut(without_reasoning(reply.text), stops) for reply in replies]

    def _read(self, arguments: tuple) -> tuple[Callable[[], list[dict]], dict[str, Any]]:
        """The conversation, its media opened when its turn comes, and the options of its answer."""
        context, options, doc_to_visual, doc_id, task, split = arguments
        return (lambda: self._conversation(context, doc_to_visual, doc_id, task, split)), self._options(options)

    def _conversation(self, context: str, doc_to_visual: Callable, doc_id: Any, task: str, split: str) -> list[dict]:
        return self._asked(doc_to_visual(self.task_dict[task][split][doc_id]), context)

    def _asked(self, visuals: Any, context: str) -> list[dict]:
        return [{"role": "user", "content": [*self._parts(visuals), {"type": "text", "text": context}]}]

    def _parts(self, visuals: Any) -> list[dict]:
        flat = visuals if isinstance(visuals, (list, tuple)) else [] if visuals is None else [visuals]
        return [self._part(medium) for medium in flat]

    def _part(self, medium: Any) -> dict[str, Any]:
        """A picture, the path of a video, recording or picture, or datasets' {"array", "sampling_rate"}."""
        if isinstance(medium, Image.Image):
            return {"type": "image", "image": medium}
        if isinstance(medium, dict) and "array" in medium:
            samples = torch.from_numpy(np.asarray(medium["array"], np.float32))
            mono = samples if samples.ndim == 1 else samples.mean(int(samples.shape[0] > samples.shape[1]))
            return {"type": "audio", "audio": Waveform(mono, int(medium["sampling_rate"]))}
        if isinstance(medium, (str, Path)):
            kind = _kind(str(medium))
            return {"type": kind, kind: medium, **({"sound": True} if kind == "video" and self.with_sound else {})}
        raise ValueError(f"a task shows a {type(medium).__name__}; known are pictures, paths and arrays of sound")

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        """The harness's generation arguments as Chat's. ValueError for unknown ones."""
        left = {name: value for name, value in options.items() if name not in UNUSED}
        limits = [left.pop(name) for name in LIMITS if name in left]
        sampling = {name: left.pop(name) for name in SAMPLING if name in left}
        stops = left.pop("until", None) or []
        if left:
            known = (*LIMITS, *SAMPLING, "until", *UNUSED)
            raise ValueError(f"generation arguments {sorted(left)} are unknown; known: {', '.join(known)}")
        if not options.get("do_sample", bool(sampling.get("temperature"))):
            sampling = {"temperature": 0.0}
        stops = [stops] if isinstance(stops, str) else stops
        return {
            "max_new_tokens": int(limits[0]) if limits else self.max_new_tokens,
            "stop": tuple(stop for stop in stops if stop),
            **{name: value for name, value in sampling.items() if value is not None},
        }

    # -- likelihood --------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def loglikelihood(self, requests: list) -> list[tuple[float, bool]]:
        """(log-probability, is it the greedy one) of each answer behind its question."""
        scores = []
        for request in track(requests, "scoring", console=Console(stderr=True), disable=self.rank != 0):
            context, answer, *place = request.args
            if place:
                doc_to_visual, doc_id, task, split = place
                doc = self.task_dict[task][split][doc_id]
                messages = self._conversation(context, doc_to_visual, doc_id, task, split)
                answer = answer(doc) if callable(answer) else answer
            else:
                messages = [{"role": "user", "content": context or " "}]
            scores.append(self._score(messages, str(answer)))
        return scores

    def _score(self, messages: list[dict], answer: str) -> tuple[float, bool]:
        media = open_media(self.model, messages, **self.media)
        prompt = ids_of(self.model, messages, media, thinking=False)
        said = self.model.tokenizer.encode(answer)
        if not said:
            return 0.0, True
        inputs: Inputs = gather(self.model, [prompt + said], media)
        logprobs = self.model.logits(inputs)[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        wanted = torch.tensor(said, device=logprobs.device)
        chosen = logprobs.gather(-1, wanted[:, None]).double().sum()
        return float(chosen), bool((logprobs.argmax(-1) == wanted).all())


def _cut(text: str, stops: Sequence[str]) -> str:
    """Up to the first stop string."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)].strip() if ends else text


def _kind(path: str) -> str:
    ending = os.path.splitext(path)[1].lower()
    return "video" if ending in VIDEO_SUFFIXES else "audio" if ending in SOUND_SUFFIXES else "image"


def register() -> None:
    """Make ``omni`` known to lmms-eval, which finds its models by the path of their class."""
    from lmms_eval import models

    MODEL_REGISTRY["omni"] = OmniMultimodal
    models.AVAILABLE_SIMPLE_MODELS["omni"] = f"{__name__ if __name__ != '__main__' else __spec__.name}.OmniMultimodal"


register()


def with_defaults(arguments: Sequence[str]) -> list[str]:
    """The command's arguments, with this model where no other is named."""
    named = any(a in ("--model", "--config") or a.startswith(("--model=", "--config=")) for a in arguments)
    return [*arguments] if named else ["--model", "omni", *arguments]


def main() -> None:
    """``lmms_eval`` with this model known to it, and used where no other is named."""
    from lmms_eval.__main__ import cli_evaluate

    sys.argv[1:] = with_defaults(sys.argv[1:])
    cli_evaluate()


if __name__ == "__main__":
    main()
