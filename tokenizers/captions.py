"""What a generator is told: the caption of a picture, a clip or an action, and its token ids.

    plain prompt ──> describe        + "The video is 7.9 seconds long ..."  ──┐
    JSON prompt  ──> structured      + resolution, duration, fps              ├──> generator_ids ──> [system] user, eos,
    instruction  ──> action_caption  viewpoint, time, duration, resolution  ──┘                      <|vision_start|>

Wording, key order and rounding are what the published weights were trained on, so they are fixed down to the full stop.
Source: ``reference`` cosmos3, sections 6.4, 6.6 and 8. Plain prompts and actions are as diffusers writes them, JSON
prompts as the training framework does. Durations are frames / fps seconds. Sizes are those of the canvas, padding
included.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

from omni.tokenizers.bytes import ByteTokenizer
from omni.tokenizers.canvas import aspect_of
from omni.tokenizers.prompts import caption_ids
from omni.tokenizers.text import TextTokenizer

# "give prompt" is what the models were trained with.
SYSTEM_PROMPTS = {
    "image": "You are a helpful assistant who will generate images from a give prompt.",
    "video": "You are a helpful assistant who will generate videos from a give prompt.",
    "edit": "You are a helpful assistant who will edit images based on the user's instructions.",
    "transfer": "You are a helpful assistant that generates images or videos following the user's instructions and "
    "control signals (edge maps, blur, depth, or segmentation).",
}
VIEWPOINTS = {
    "ego_view": "This video is captured from a first-person perspective looking at the scene.",
    "third_person_view": (
        "This video is captured from a third-person perspective looking towards the agent from the front."
    ),
    "wrist_view": "This video is captured from a wrist-mounted camera.",
    "concat_view": "This video contains concatenated views from multiple camera perspectives.",
    "top_down_2d_view": "This video is captured from a top-down view of a flat 2D scene.",
    "video_game_view": "This video is captured from an in-game camera perspective in a virtual environment.",
}
NEGATIVES = ("inverse", "same", "none")
VISION_START = "<|vision_start|>"
MAX_PROMPT = 1 << 20  # characters; the longest published prompts have 15 thousand


@dataclass(frozen=True)
class CaptionStyle:
    """What is put around a prompt. The defaults are diffusers' for Nano and Super."""

    system: bool = True
    negative: str = (
        "inverse"  # sentences of a negative prompt: "inverse" says "is not", "same" repeats, "none" has none
    )
    resolution: bool = True  # "This video is of 720x1280 resolution."
    duration: bool = True  # "The video is 7.9 seconds long and is of 24 FPS."

    def __post_init__(self) -> None:
        if self.negative not in NEGATIVES:
            raise ValueError(f"negative is {self.negative!r}; it must be one of {', '.join(NEGATIVES)}")


DIFFUSERS = CaptionStyle()
DIFFUSERS_EDGE = CaptionStyle(system=False)
FRAMEWORK = CaptionStyle(system=False, negative="same")  # of every released model, in the framework that trained it


# -- captions ----------------------------------------------------------------------------------------------------------


def describe(
    prompt: str,
    height: int,
    width: int,
    frames: int,
    fps: float,
    negative: bool = False,
    style: CaptionStyle = DIFFUSERS,
) -> str:
    """A plain prompt, then how long and how large its picture or video is; one frame makes a picture.

    ``height`` and ``width`` are pixels. A picture has no duration, and its ``fps`` is not read. Raises ValueError for
    sizes and rates that are not positive, and for prompts that are no text or beyond ``MAX_PROMPT``.
    """
    _check_text(prompt)
    _check_request(height, width, frames, fps)
    kind = "image" if frames == 1 else "video"
    if negative and style.negative == "none":
        return prompt
    no = "not " if negative and style.negative == "inverse" else ""
    text = prompt
    if kind == "video" and style.duration:
        text = _follow(text, f"The video is {no}{frames / fps:.1f} seconds long and is {no}of {fps:.0f} FPS.")
    if style.resolution:
        text = _follow(text, f"This {kind} is {no}of {height}x{width} resolution.")
    return text


def read_structured(prompt: Any) -> dict[str, Any] | None:
    """The object of a structured prompt, a dict or the text of a JSON object; None for plain prompts."""
    if isinstance(prompt, dict):
        return prompt
    _check_text(prompt)
    try:
        found = json.loads(prompt)
    except json.JSONDecodeError:
        return None
    except RecursionError:
        raise ValueError("the structured prompt is nested too deeply") from None
    return found if isinstance(found, dict) else None


def structured(prompt: dict[str, Any] | str, height: int, width: int, frames: int, fps: float) -> str:
    """A JSON prompt that states what is asked for, whatever it stated before.

    ``resolution``, ``aspect_ratio`` and, in videos, ``duration`` (whole seconds, cut) and ``fps`` are set: in their
    place where the prompt has them, else at its end. A picture's prompt loses the two of time. ``prompt`` itself is
    left as it is. Raises ValueError for what is no JSON object.
    """
    fields = read_structured(prompt)
    if fields is None:
        raise ValueError(f"a structured prompt is a JSON object, not {_brief(prompt)}")
    _check_request(height, width, frames, fps)
    if frames > 1:
        fields = fields | {"duration": f"{int(frames / fps)}s", "fps": float(fps)}
    else:
        fields = {key: value for key, value in fields.items() if key not in ("duration", "fps")}
    text = _dump(fields | {"resolution": {"H": height, "W": width}, "aspect_ratio": aspect_of(height, width)})
    _check_text(text)
    return text


def action_caption(
    description: str,
    viewpoint: str | None,
    frames: int,
    fps: float,
    height: int,
    width: int,
    layout: str | None = None,
) -> str:
    """The JSON caption of an action: what is done, seen from where, for how long, on which canvas.

    ``viewpoint`` is a key of :data:`VIEWPOINTS`; with None its sentence is left out. ``layout`` says in a sentence how
    several cameras share the frame. ``frames`` are those of the video, one more than the actions of a chunk. Raises
    ValueError for unknown viewpoints and for sizes and rates that are not positive.
    """
    _check_text(description)
    if viewpoint is not None and viewpoint not in VIEWPOINTS:
        raise ValueError(f"viewpoint is {viewpoint!r}; known are {', '.join(VIEWPOINTS)}, and None")
    _check_request(height, width, frames, fps, timed=True)
    seconds = frames / fps
    framing = " ".join(part for part in (VIEWPOINTS.get(viewpoint), (layout or "").rstrip()) if part)
    minutes, rest = divmod(round(seconds), 60)
    description = description.strip()
    if description and not description.endswith((".", "!", "?")):
        description += "."
    caption: dict[str, Any] = {"cinematography": {"framing": framing}} if framing else {}
    caption |= {
        "actions": [{"time": f"0:00-{minutes}:{rest:02d}", "description": description}],
        "duration": f"{int(seconds)}s",
        "fps": float(fps),
        "resolution": {"H": height, "W": width},
        "aspect_ratio": aspect_of(height, width),
    }
    return _dump(caption)


# -- ids ---------------------------------------------------------------------------------------------------------------


def generator_ids(text: str, tokenizer: TextTokenizer | ByteTokenizer, kind: str, system: bool) -> list[int]:
    """Ids that the context tower reads: the chat turns, the end-of-sequence token, and the one that opens the picture.

    ``kind`` is a key of :data:`SYSTEM_PROMPTS`; ``system`` says whether its prompt goes first. Both last tokens count
    as text when positions are given out. Names of special tokens in ``text`` stay text. Raises ValueError for a
    tokenizer without either token.
    """
    if kind not in SYSTEM_PROMPTS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(SYSTEM_PROMPTS)}")
    _check_text(text)
    ends = _end_id(tokenizer), _vision_start_id(tokenizer)
    messages = [{"role": "system", "content": SYSTEM_PROMPTS[kind]}] if system else []
    messages.append({"role": "user", "content": text})
    return [*tokenizer.encode_chat(messages, add_generation_prompt=True), *ends]


def prompt_ids(
    text: str, tokenizer: TextTokenizer | ByteTokenizer, captions: str, kind: str, system: bool, room: int
) -> list[int]:
    """Ids of a text that stands alone (``captions`` "plain") or is a user's turn ("chat", see :func:`generator_ids`).

    ValueError where they are more than ``room``.
    """
    if captions == "plain":
        found = caption_ids(text, tokenizer.special, tokenizer.encode)
    else:
        found = generator_ids(text, tokenizer, kind, system=system)
    if len(found) > room:
        raise ValueError(f"a prompt has {len(found)} tokens; the model's limit is {room}")
    return found


def _end_id(tokenizer: TextTokenizer | ByteTokenizer) -> int:
    """The tokenizer's own end of sequence, which comes before those that configs add."""
    ends = tokenizer.special.get("eos")
    if not ends:
        raise ValueError("the tokenizer has no end-of-sequence token, which closes the prompt of a generator")
    return ends[0] if isinstance(ends, list) else ends


def _vision_start_id(tokenizer: TextTokenizer | ByteTokenizer) -> int:
    ids = tokenizer.encode(VISION_START, special=True)
    if len(ids) != 1 or tokenizer.decode(ids, special=True) != VISION_START:
        raise ValueError(f"the tokenizer has no token {VISION_START}, which opens what a generator makes")
    return ids[0]


# -- helpers -----------------------------------------------------------------------------------------------------------


def _follow(text: str, sentence: str) -> str:
    """The sentence behind the text, between them one full stop; an empty text is left out."""
    text = text.rstrip(".")
    return f"{text}. {sentence}" if text else sentence


def _dump(fields: dict[str, Any]) -> str:
    try:
        return json.dumps(fields, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the structured prompt cannot be written as JSON: {error}") from None


def _check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise ValueError(f"a prompt is text, not {_brief(text)}")
    if len(text) > MAX_PROMPT:
        raise ValueError(f"the prompt has {len(text)} characters; the limit is {MAX_PROMPT}")


def _check_request(height: int, width: int, frames: int, fps: float, timed: bool = False) -> None:
    for name, value in {"height": height, "width": width, "frames": frames}.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
    if (timed or frames > 1) and not (fps > 0 and math.isfinite(fps)):
        raise ValueError(f"fps is {fps}; it must be above 0 and finite")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
