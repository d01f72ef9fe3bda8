"""The built-in tokenizer: 256 bytes and a few special tokens, with the chat format of Nemotron 3.

Chat ids are put together from special ids and plain bytes, so that nothing a user writes can become a special
token.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omni.tokenizers.messages import Media, Message, read_messages
from omni.tokenizers.tools import call_text, tools_text

FILE_NAME = "omni_tokenizer.json"
VOCAB_SIZE = 320
FIRST_BYTE = 32

NAMED = {
    "<unk>": 0,
    "<s>": 1,
    "</s>": 2,
    "<mask>": 3,
    "<|im_start|>": 10,
    "<|im_end|>": 11,
    "<think>": 12,
    "</think>": 13,
    "<image>": 14,
    "<video>": 15,
    "<sound>": 16,
    "<tool_call>": 17,
    "</tool_call>": 18,
    "<tool_response>": 19,
    "</tool_response>": 20,
    "<pad>": 21,
}
"""Special token -> id. Ids below 32 that have no name, and those after the last byte, are reserved."""

Piece = str | int  # plain text, or the id of a special token


class ByteTokenizer:
    """Text <-> ids: byte ``b`` is id ``32 + b``; no merges, no training, no file of its own to lose."""

    kind = "omni-bytes"
    vocab_size = VOCAB_SIZE
    tool_format = "xml"

    def __init__(self) -> None:
        self.special: dict[str, int | list[int]] = {
            "unk": 0,
            "bos": 1,
            "eos": [11, 2],
            "mask": 3,
            "pad": 21,
            "think": 12,
            "end_think": 13,
            "image": 14,
            "video": 15,
            "sound": 16,
            "tool_call": 17,
        }
        self._names = {i: name for name, i in NAMED.items()}

    # -- text ------------------------------------------------------------------------------------------------

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of ``text``. With ``special``, names of special tokens become their ids; otherwise they are text."""
        if not special:
            return [FIRST_BYTE + b for b in text.encode("utf-8", errors="replace")]
        ids: list[int] = []
        for piece in _split_names(text):
            ids.extend(self._ids(piece))
        return ids

    def decode(self, ids: list[int], special: bool = False) -> str:
        """Text of ``ids``; what is not UTF-8 becomes U+FFFD. Special tokens are left out, or written by name."""
        return self.decode_bytes(ids, special).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: list[int], special: bool = False) -> bytes:
        return b"".join(self.token_bytes(i, special) for i in ids)

    def token_bytes(self, token: int, special: bool = False) -> bytes:
        """The bytes that one id stands for."""
        if FIRST_BYTE <= token < FIRST_BYTE + 256:
            return bytes((token - FIRST_BYTE,))
        if not 0 <= token < VOCAB_SIZE:
            raise ValueError(f"token id {token} is outside the vocabulary of {VOCAB_SIZE}")
        return self._names.get(token, "").encode() if special else b""

    # -- chat ------------------------------------------------------------------------------------------------

    def name_of(self, token: int) -> str:
        """How a special token is written where names of special tokens are read."""
        return self._names[token]

    def render(self, messages: list[dict], add_generation_prompt: bool = True, **options: Any) -> str:
        """The conversation as text, special tokens by name. A model gets :meth:`encode_chat`."""
        pieces = self._chat(messages, add_generation_prompt, **options)
        return "".join(piece if isinstance(piece, str) else self._names[piece] for piece in pieces)

    def encode_chat(self, messages: list[dict], add_generation_prompt: bool = True, **options: Any) -> list[int]:
        """Ids of the conversation; one ``<image>``, ``<video>`` or ``<sound>`` id stands for each of its media.

        ``media`` has the texts that stand there instead, in reading order; names of special tokens in them count.
        Options: ``thinking`` (default off), ``tools`` (OpenAI function list), ``truncate_history_thinking`` (on).
        """
        ids: list[int] = []
        for piece in self._chat(messages, add_generation_prompt, **options):
            ids.extend(self._ids(piece))
        return ids

    def _ids(self, piece: Piece) -> list[int]:
        return self.encode(piece) if isinstance(piece, str) else [piece]

    def _chat(
        self,
        messages: list[dict],
        add_generation_prompt: bool,
        thinking: bool | None = None,
        tools: list[dict] | None = None,
        truncate_history_thinking: bool = True,
        media: Sequence[str] | None = None,
        marks: dict[str, str] | None = None,  # of chat templates; this format has none
    ) -> Iterator[Piece]:
        turns = read_messages(messages)
        if media is not None:
            turns = _expanded(turns, media)
        last_user = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=-1)
        yield from self._opening(turns, tools)
        for i, turn in enumerate(turns):
            if turn.role == "assistant":
                yield from self._assistant(turn, keep_reasoning=i > last_user or not truncate_history_thinking)
            elif turn.role == "tool":
                yield from self._tool_result(
                    turn, first=_role(turns, i - 1) != "tool", last=_role(turns, i + 1) != "tool"
                )
            elif not (i == 0 and turn.role in ("system", "developer")):
                yield from self._turn(turn.role, self._content(turn))
        if add_generation_prompt:
            yield from (NAMED["<|im_start|>"], "assistant\n", NAMED["<think>"])
            yield "\n" if thinking else NAMED["</think>"]

    def _opening(self, turns: list[Message], tools: list[dict] | None) -> Iterator[Piece]:
        """The system turn, where there is something to say in one."""
        has_system = turns[0].role in ("system", "developer")
        content = list(self._content(turns[0])) if has_system else []
        if tools:
            content.append(("\n\n" if content else "") + tools_text(tools))
        if content:
            yield from self._turn("system", content)

    def _turn(self, role: str, content: Any) -> Iterator[Piece]:
        yield from (NAMED["<|im_start|>"], f"{role}\n", *content, NAMED["<|im_end|>"], "\n")

    def _content(self, turn: Message) -> Iterator[Piece]:
        for part in turn.parts:
            if isinstance(part, Media):
                yield from _split_names(part.text or f"<{part.kind}>")
            else:
                yield part

    def _assistant(self, turn: Message, keep_reasoning: bool) -> Iterator[Piece]:
        yield from (NAMED["<|im_start|>"], "assistant\n", NAMED["<think>"])
        if turn.reasoning and keep_reasoning:
            yield from (f"\n{turn.reasoning}\n", NAMED["</think>"], "\n")
        else:
            yield NAMED["</think>"]
        yield from self._content(turn)
        for call in turn.tool_calls:
            lead = "\n" if turn.text or call is not turn.tool_calls[0] else ""
            yield from (lead, NAMED["<tool_call>"], f"\n{call_text(call)}\n", NAMED["</tool_call>"])
        yield from (NAMED["<|im_end|>"], "\n")

    def _tool_result(self, turn: Message, first: bool, last: bool) -> Iterator[Piece]:
        """Results of calls made together share one user turn."""
        if first:
            yield from (NAMED["<|im_start|>"], "user\n")
        yield from (
            NAMED["<tool_response>"],
            "\n",
            *self._content(turn),
            "\n",
            NAMED["</tool_response>"],
            "\n",
        )
        if last:
            yield from (NAMED["<|im_end|>"], "\n")

    # -- file ------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Write ``omni_tokenizer.json`` into ``folder``."""
        path = Path(folder) / FILE_NAME
        beside = path.with_name(f".{FILE_NAME}.{os.getpid()}")
        beside.write_text(json.dumps({"type": self.kind, "vocab_size": VOCAB_SIZE, "special": NAMED}, indent=1) + "\n")
        beside.replace(path)
        return path

    @classmethod
    def load(cls, folder: str | Path) -> "ByteTokenizer":
        """Read ``omni_tokenizer.json``; it must describe exactly this vocabulary."""
        path = Path(folder) / FILE_NAME
        found = json.loads(path.read_text())
        expected = {"type": cls.kind, "vocab_size": VOCAB_SIZE, "special": NAMED}
        for key, value in expected.items():
            if found.get(key) != value:
                raise ValueError(f"{path}: {key} is {found.get(key)!r}; this tokenizer's is {value!r}")
        return cls()


def _expanded(turns: list[Message], media: Sequence[str]) -> list[Message]:
    """The turns with the text of each medium."""
    texts = iter(media)
    return [
        replace(turn, parts=tuple(replace(p, text=next(texts)) if isinstance(p, Media) else p for p in turn.parts))
        for turn in turns
    ]


def _role(turns: list[Message], i: int) -> str:
    return turns[i].role if 0 <= i < len(turns) else ""


def _split_names(text: str) -> Iterator[Piece]:
    """Text cut at the names of special tokens."""
    start = 0
    while start < len(text):
        found = [(at, name) for name in NAMED if (at := text.find(name, start)) >= 0]
        if not found:
            break
        at, name = min(found)
        if at > start:
            yield text[start:at]
        yield NAMED[name]
        start = at + len(name)
    if start < len(text):
        yield text[start:]
