"""Questions about a video, with or without its sound: frames by the plan, read once, asked many times.

    file ──> frame plan (fps, most frames) ──> only these frames decoded ──> tokens, pruned or not ──> Reading
    (optional) what happens, told first ──> answers are easier to find in words

An hour of video takes no more memory than the frames of its plan. ``start`` and ``stop`` look at a part of it.
"""

from collections.abc import Sequence
from typing import Any

from omni.model import Omni
from omni.pipelines.reading import Answer, Reading, check_questions, identity
from omni.tokenizers.video import Video, open_video

DESCRIBE = "What happens?"
DESCRIBE_FILM = "What is seen and heard?"


class VideoQA:
    """``VideoQA(model)(video, question) -> Answer``; a list of questions gives a list of answers."""

    def __init__(self, model: Omni) -> None:
        if model.config.vision is None:
            raise ValueError("this model sees no videos; it has no vision encoder")
        if model.tokenizer is None:
            raise ValueError("this model was loaded without a tokenizer; videos need one")
        self.model = model
        self._known: Any = None
        self._reading: Reading | None = None

    @classmethod
    def from_pretrained(cls, name_or_path: str = "tiny", **options: Any) -> "VideoQA":
        """``options``: device, dtype."""
        import omni

        return cls(omni.load(name_or_path, **options))

    def __call__(
        self,
        video: Any,
        question: str | Sequence[str],
        max_new_tokens: int = 48,
        read_first: bool | None = None,
        **look: Any,
    ) -> Answer | list[Answer]:
        """Answers from ``video``: a path, bytes, an opened :class:`Video`, or frames (T, H, W, 3) uint8.

        Further questions about the same file, looked at in the same way, find it read. ``read_first`` lets the model
        say what happens before the questions; default: as the checkpoint asks for.

        Args:
            look: ``fps`` and ``max_frames`` of the plan (of an array, ``fps`` is its own), ``start`` and ``stop``
                (seconds), ``pruning`` (share of tokens that EVS leaves out), ``sound`` (True: its own track, or a
                source).

        Raises ValueError for a bad video, question or option.
        """
        questions = [question] if isinstance(question, str) else list(question)
        check_questions(questions)
        reading = self.read(video, read_first=read_first, **look)
        answers = reading.ask(questions, max_new_tokens)
        return answers[0] if isinstance(question, str) else answers

    def describe(self, video: Any, max_new_tokens: int = 256, **look: Any) -> str:
        """What happens in it."""
        reading = self.read(video, read_first=False, **look)
        return reading.ask([_tell(look)], max_new_tokens)[0].text

    def read(
        self,
        video: Any,
        read_first: bool | None = None,
        pruning: float = 0.0,
        fps: float | None = None,
        max_frames: int | None = None,
        **part: Any,
    ) -> Reading:
        """The video as something to ask; the last one is kept."""
        unknown = sorted(set(part) - {"start", "stop", "sound"})
        if unknown:
            raise TypeError(f"VideoQA has no options {unknown}; known: fps, max_frames, pruning, start, stop, sound")
        if read_first is None:
            name = "film_read_first" if part.get("sound") else "video_read_first"
            read_first = bool(self.model.config.sampling.get(name, False))
        opened = video if isinstance(video, Video) else _open(video, fps)
        look = {"pruning": pruning, "fps": None if _is_array(video) else fps, "max_frames": max_frames}
        track = part.get("sound")
        heard = bool(track) if track is None or isinstance(track, bool) else identity(track)
        known = (identity(video), heard, read_first, repr(look), part.get("start"), part.get("stop"))
        if self._reading is None or None in known[:2] or known != self._known:
            self._reading = None  # frees the last one before the next is read
            own = part.get("sound")
            content = {"type": "video", "video": opened, **part, **({"sound": video} if own is True else {})}
            tell = _tell(part) if read_first else None
            self._reading, self._known = Reading(self.model, [content], tell, **look), known
        return self._reading


def _tell(look: dict[str, Any]) -> str:
    return DESCRIBE_FILM if look.get("sound") else DESCRIBE


def _is_array(video: Any) -> bool:
    return hasattr(video, "shape")


def _open(video: Any, fps: float | None) -> Video:
    return open_video(video, fps=fps) if _is_array(video) else open_video(video)
