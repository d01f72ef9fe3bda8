"""Questions about recordings, and their transcription.

    file ──> log-mel clips ──> Reading ──> answers
    a long recording ──> cut where it is quiet, piece by piece ──> the text of each ──> one transcription

A transcription holds no more than one piece of the recording in memory.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from omni.model import Omni
from omni.pipelines.reading import Answer, Reading, check_questions
from omni.tokenizers.sound import Waveform, blocks, open_sound

HEAR = "What do you hear?"
QUIET_SECONDS = 0.1  # stretch whose loudness decides where a recording is cut
SEARCH_SHARE = 0.4  # of a window, at its end, in which the cut is looked for


class SoundQA:
    """``SoundQA(model)(recording, question) -> Answer``; a list of questions gives a list of answers."""

    def __init__(self, model: Omni) -> None:
        if model.config.sound is None:
            raise ValueError("this model hears nothing; it has no sound encoder")
        if model.tokenizer is None:
            raise ValueError("this model was loaded without a tokenizer; recordings need one")
        self.model = model

    @classmethod
    def from_pretrained(cls, name_or_path: str = "tiny", **options: Any) -> "SoundQA":
        """``options``: device, dtype."""
        import omni

        return cls(omni.load(name_or_path, **options))

    def __call__(
        self,
        recording: Any,
        question: str | Sequence[str],
        max_new_tokens: int = 48,
        read_first: bool | None = None,
    ) -> Answer | list[Answer]:
        """Answers from ``recording``: a path (wav, flac, mp3 ..., or a video's track), bytes, or a :class:`Waveform`.

        ``read_first`` lets the model say what it hears before the questions; default: as the checkpoint asks for.
        Raises ValueError for a bad recording or question.
        """
        questions = [question] if isinstance(question, str) else list(question)
        check_questions(questions)
        if read_first is None:
            read_first = bool(self.model.config.sampling.get("sound_read_first", False))
        reading = Reading(self.model, [_audio(recording)], HEAR if read_first else None)
        answers = reading.ask(questions, max_new_tokens)
        return answers[0] if isinstance(question, str) else answers

    def transcribe(self, recording: Any, max_new_tokens: int = 256, window: float | None = None) -> str:
        """What is heard. A recording longer than ``window`` seconds (default: as the checkpoint was trained) is cut."""
        texts = []
        console = Console(stderr=True)
        pieces = _pieces(recording, self.model.config.sound.sampling_rate, self._window(window))
        for piece in track(pieces, "listening", console=console, transient=True, disable=not console.is_terminal):
            reading = Reading(self.model, [_audio(Waveform(piece, self.model.config.sound.sampling_rate))])
            texts.append(reading.ask([HEAR], max_new_tokens)[0].text)
        return " ".join(text for text in texts if text)

    def _window(self, window: float | None) -> float:
        own = self.model.config.sampling.get("sound_window", self.model.config.sound.clip_seconds or 30.0)
        window = own if window is None else window
        if not 0.5 <= window <= 3600:
            raise ValueError(f"window is {window} seconds; it must lie between 0.5 and 3600")
        return float(window)


def _audio(recording: Any) -> dict[str, Any]:
    return {"type": "audio", "audio": recording}


def _pieces(recording: Any, rate: int, window: float) -> Iterator[Tensor]:
    """The recording in pieces of at most ``window`` seconds, cut at the quietest place near their end."""
    size, held = round(window * rate), torch.zeros(0)
    source = [open_sound(recording, rate).samples] if isinstance(recording, Waveform) else blocks(recording, 30.0, rate)
    for block in source:
        held = torch.cat([held, block])
        while len(held) > size:
            cut = quietest(held[:size], rate)
            yield held[:cut]
            held = held[cut:]
    if len(held):
        yield held


def quietest(samples: Tensor, rate: int) -> int:
    """Index in the last part of ``samples`` (n,) around which they are least loud."""
    width = max(1, round(QUIET_SECONDS * rate))
    start = max(0, int(len(samples) * (1 - SEARCH_SHARE)))
    energy = torch.nn.functional.avg_pool1d(samples[None, start:].square(), width, stride=max(1, width // 4))
    return start + int(energy.argmin()) * max(1, width // 4) + width // 2
