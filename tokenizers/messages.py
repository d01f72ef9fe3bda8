"""Chat messages in the OpenAI form, read into one plain shape that every chat format starts from."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")
MEDIA = ("image", "video", "sound")
_PART_KINDS = {
    "image": "image",
    "image_url": "image",
    "video": "video",
    "video_url": "video",
    "sound": "sound",
    "audio": "sound",
    "audio_url": "sound",
    "input_audio": "sound",
}


class MessageError(ValueError):
    """A conversation that cannot be read: says which message and what was found there."""


@dataclass(frozen=True)
class Media:
    """The place of an image, video or sound in a text."""

    kind: str  # one of MEDIA
    text: str = ""  # what stands in its place; "": its placeholder


@dataclass(frozen=True)
class Source:
    """Where a medium comes from: a path, bytes, a picture ..., and what its part says besides."""

    kind: str  # one of MEDIA
    value: Any
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Message:
    """One turn. ``parts`` are strings and :class:`Media` in reading order."""

    role: str
    parts: tuple[str | Media, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = field(default=())

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))


def read_messages(messages: list[dict[str, Any]]) -> list[Message]:
    """Check and read a conversation. Raises MessageError for what is not one."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise MessageError(f"messages must be a list with at least one message, not {_brief(messages)}")
    return [_read_message(message, i) for i, message in enumerate(messages)]


def _read_message(message: Any, index: int) -> Message:
    if not isinstance(message, dict):
        raise MessageError(f"message {index} must be a dict with role and content, not {_brief(message)}")
    role = message.get("role")
    if role not in ROLES:
        raise MessageError(f"message {index} has the role {role!r}; known: {', '.join(ROLES)}")
    parts = read_content(message.get("content"), index)
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    if role == "assistant" and not reasoning:
        parts, reasoning = _split_reasoning(parts)
    calls = tuple(_read_call(call, index) for call in message.get("tool_calls") or ())
    return Message(role, parts, reasoning, calls)


def read_content(content: Any, index: int) -> tuple[str | Media, ...]:
    """``content`` of a message: None, a string, or a list of typed parts."""
    if content is None:
        return ()
    if isinstance(content, str):
        return (content,)
    if not isinstance(content, (list, tuple)):
        raise MessageError(f"the content of message {index} must be a string or a list of parts, not {_brief(content)}")
    return tuple(_read_part(part, index) for part in content)


def _read_part(part: Any, index: int) -> str | Media:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind in _PART_KINDS:
        return Media(_PART_KINDS[kind])
    known = ", ".join(["text", *_PART_KINDS])
    raise MessageError(f"message {index} has a part of type {kind!r}: {_brief(part)}; known types: {known}")


def sources(messages: list[dict[str, Any]]) -> Iterator[Source]:
    """The media of a conversation in reading order. MessageError for a part without its source."""
    for index, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, (list, tuple)) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if kind in _PART_KINDS:
                options = {k: v for k, v in part.items() if k not in ("type", kind)}
                yield Source(_PART_KINDS[kind], _source(part, kind, index), options)


def _source(part: dict[str, Any], kind: str, index: int) -> Any:
    value = part.get(kind)
    if kind.endswith("_url"):
        value = value.get("url") if isinstance(value, dict) else value
    elif kind == "input_audio":
        value = value.get("data") if isinstance(value, dict) else None
        value = f"data:audio;base64,{value}" if isinstance(value, str) else None
    if value is None:
        raise MessageError(f"message {index} has a part of type {kind!r} without a source: {_brief(part)}")
    return value


def _split_reasoning(parts: tuple[str | Media, ...]) -> tuple[tuple[str | Media, ...], str]:
    """A client may send back the whole answer: what stands before ``</think>`` is reasoning."""
    for i, part in enumerate(parts):
        if isinstance(part, str) and "</think>" in part:
            before, _, after = part.rpartition("</think>")
            return (after.lstrip("\n"), *parts[i + 1 :]), before.partition("<think>")[2].strip("\n")
    return parts, ""


def _read_call(call: Any, index: int) -> ToolCall:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise MessageError(f"message {index} has a tool call without a function name: {_brief(call)}")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError as error:
            raise MessageError(f"message {index}: the arguments of {function['name']} are not JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise MessageError(
            f"message {index}: the arguments of {function['name']} must be an object, not {_brief(arguments)}"
        )
    return ToolCall(function["name"], arguments)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
