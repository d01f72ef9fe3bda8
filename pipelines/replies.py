"""A model's answer, taken apart while it is written: reasoning, text, tool calls.

    <think>...</think>                                              ──> reasoning
    <tool_call>...</tool_call>, <TOOLCALL>[...]</TOOLCALL>          ──> tool calls
    everything else                                                 ──> text

The prompt may have opened ``<think>`` already, and a tool call ends reasoning even without ``</think>``. Nothing is
lost: a tool call that cannot be read comes out as text. The result does not depend on how the answer was cut.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from omni.decoders.autoregressive import overlap

BEGIN, END = "<think>", "</think>"
TOOL_MARKERS = {"<tool_call>": "</tool_call>", "<TOOLCALL>": "</TOOLCALL>"}
MAX_CALL = 1 << 20  # characters of one tool call
_PYTHON_WORDS = {"True": True, "False": False, "None": None}


@dataclass(frozen=True)
class ToolCall:
    """A function to call; ``arguments`` is a JSON object as text, as OpenAI's clients expect it."""

    id: str
    name: str
    arguments: str

    def as_dict(self) -> dict[str, Any]:
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True)
class Part:
    """A piece of an answer: one of the three is set."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


class ReplyParser:
    """Feed text as it comes; get parts. ``tools`` None leaves tool calls in the text: nobody asked for any."""

    def __init__(self, opened: bool = False, tools: Sequence[dict[str, Any]] | None = None) -> None:
        self._state = "reasoning" if opened else "start"
        self._schemas = None if tools is None else _schemas(tools)
        self._buffer = ""  # not yet understood
        self._spaces = ""  # understood, and held back: dropped when the section ends here, else written
        self._fresh = opened  # at the start of a section, where line breaks are dropped
        self._opener = ""
        self.calls = 0  # read so far

    def feed(self, text: str) -> list[Part]:
        """What ``text`` makes certain."""
        self._buffer += text
        return self._run(final=False)

    def finish(self) -> list[Part]:
        """The end of the answer: all that was held back."""
        parts = self._run(final=True)
        if self._state == "text" and self._spaces:
            parts.append(Part(text=self._spaces))
        return parts

    def _run(self, final: bool) -> list[Part]:
        states = {"start": self._start, "reasoning": self._reasoning, "text": self._text, "tool": self._tool}
        parts, state = [], ""
        while state != self._state:
            state = self._state
            parts += [part for part in states[state](final) if part != Part()]
        return parts

    # -- states ------------------------------------------------------------------------------------------

    def _start(self, final: bool) -> Iterator[Part]:
        """Before the first letter: reasoning may be opened here, or closed though it was not open."""
        rest = self._buffer.lstrip()
        for marker, state in ((BEGIN, "reasoning"), (END, "text")):
            if rest.startswith(marker):
                self._buffer = rest[len(marker) :]
                self._enter(state)
                return
        if final or not (BEGIN.startswith(rest) or END.startswith(rest)):
            self._state = "text"
        yield from ()

    def _reasoning(self, final: bool) -> Iterator[Part]:
        before, marker = self._until([END, *TOOL_MARKERS], final)
        yield Part(reasoning=self._trim(before))
        if marker:
            self._spaces = ""
            self._open_tool(marker) if marker in TOOL_MARKERS else self._enter("text")

    def _text(self, final: bool) -> Iterator[Part]:
        before, marker = self._until(list(TOOL_MARKERS) if self._schemas is not None else [], final)
        yield Part(text=self._trim(before))
        if marker:
            self._open_tool(marker)

    def _open_tool(self, marker: str) -> None:
        if self._schemas is None:  # the marker has ended the reasoning, and is text
            self._buffer = marker + self._buffer
            self._enter("text")
        else:
            self._opener, self._state = marker, "tool"

    def _tool(self, final: bool) -> Iterator[Part]:
        body, closer, rest = self._buffer.partition(TOOL_MARKERS[self._opener])
        if not closer and not final and len(self._buffer) <= MAX_CALL:
            return
        calls = parse_calls(body, self._schemas, complete=bool(closer))
        self._buffer = rest
        if calls:
            self._spaces = ""
            self._enter("text")
            yield Part(tool_calls=tuple(self._numbered(name, arguments) for name, arguments in calls))
        else:
            self._state, self._fresh = "text", False
            yield Part(text=self._trim(self._opener + body + closer))

    # -- pieces ------------------------------------------------------------------------------------------

    def _enter(self, state: str) -> None:
        self._state, self._fresh = state, True

    def _until(self, markers: list[str], final: bool) -> tuple[str, str]:
        """Take what stands before the first marker, and that marker if it is there, off the buffer."""
        found = [(at, marker) for marker in markers if (at := self._buffer.find(marker)) >= 0]
        if found:
            at, marker = min(found)
            before, self._buffer = self._buffer[:at], self._buffer[at + len(marker) :]
            return before, marker
        held = 0 if final else max((overlap(self._buffer, marker) for marker in markers), default=0)
        split = len(self._buffer) - held
        before, self._buffer = self._buffer[:split], self._buffer[split:]
        return before, ""

    def _trim(self, piece: str) -> str:
        """Without the line breaks that begin a section; white space at the end is held back."""
        if self._fresh:
            piece = piece.lstrip("\n")
            self._fresh = not piece
        whole = self._spaces + piece
        kept = whole.rstrip()
        self._spaces = whole[len(kept) :]
        return kept

    def _numbered(self, name: str, arguments: dict[str, Any]) -> ToolCall:
        self.calls += 1
        return ToolCall(f"call_{self.calls}", name, json.dumps(arguments, ensure_ascii=False))


# -- tool calls ------------------------------------------------------------------------------------------


def parse_calls(body: str, schemas: dict[str, dict], complete: bool = True) -> list[tuple[str, dict[str, Any]]]:
    """(name, arguments) of the calls between the markers; [] when they cannot be read.

    Reads the XML form ``<function=NAME><parameter=P>value</parameter></function>`` and JSON objects with name and
    arguments. ``schemas`` (name -> properties) say which values are not strings. Where the answer was cut off
    (not ``complete``), a call without its end is not trusted.
    """
    body = body.strip()
    if body.startswith(("{", "[")):
        return _json_calls(body)
    blocks = body.split("<function=")[1:]
    calls = [_xml_call(block, schemas, complete) for block in blocks]
    return [] if None in calls else calls


def _json_calls(body: str) -> list[tuple[str, dict[str, Any]]]:
    try:
        found = _loads(body)
        calls = found if isinstance(found, list) else [found]
        return [_json_call(call) for call in calls]
    except (ValueError, TypeError, KeyError, RecursionError):
        return []


def _json_call(call: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    name, arguments = call["name"], call.get("arguments") or {}
    arguments = _loads(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise TypeError("a call is a name and an object")
    return name, arguments


def _xml_call(block: str, schemas: dict[str, dict], complete: bool) -> tuple[str, dict[str, Any]] | None:
    name, opened, rest = block.partition(">")
    end = rest.rfind("</function>")
    if not opened or not name.strip() or (end < 0 and not complete):
        return None
    properties = schemas.get(name.strip(), {})
    arguments = {}
    for parameter in (rest if end < 0 else rest[:end]).split("<parameter=")[1:]:
        key, _, value = parameter.partition(">")
        stop = value.rfind("</parameter>")
        value = value if stop < 0 else value[:stop]
        arguments[key.strip()] = _typed(value.removeprefix("\n").removesuffix("\n"), properties.get(key.strip()))
    return name.strip(), arguments


def _typed(value: str, schema: Any) -> Any:
    """The value as the schema's type; a string where that is its type, unknown, or where it does not fit."""
    types = schema.get("type") if isinstance(schema, dict) else None
    types = types if isinstance(types, list) else [types]
    if "string" in types or types == [None]:
        return value
    if value.strip() in _PYTHON_WORDS:
        return _PYTHON_WORDS[value.strip()]
    try:
        return _loads(value)
    except (ValueError, RecursionError):
        return value


def _loads(text: str) -> Any:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def _schemas(tools: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    functions = [tool.get("function", tool) for tool in tools]
    return {f["name"]: (f.get("parameters") or {}).get("properties") or {} for f in functions}
