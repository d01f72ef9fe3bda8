"""Text tokenizers: the built-in one and those of published checkpoints, and decoding of a stream.

folder ──> load_tokenizer ──> .encode  .decode  .render  .encode_chat  .special
ids one by one ──> StreamDecoder ──> text, never half a character
"""

import codecs
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers as hf  # Hugging Face's package, not the folder this file is in
from omni.tokenizers.bytes import ByteTokenizer
from omni.tokenizers.chat_template import ChatTemplate, TemplateError
from omni.tokenizers.messages import Media, Message, read_messages

MAX_FILE_BYTES = 256 << 20
MAX_OPEN = 8  # tokens that a stream holds back for an unfinished character, which has at most four bytes
_PLACEHOLDERS = {"image": "<image>", "video": "<video>", "sound": "<so_embedding>"}
_NAMES = {  # what other parts ask for -> how published vocabularies call it
    "think": "<think>",
    "end_think": "</think>",
    "tool_call": "<tool_call>",
    "image": "<image>",
    "image_start": "<img>",
    "image_end": "</img>",
    "video": "<video>",
    "sound": "<so_embedding>",
    "sound_start": "<so_start>",
    "sound_end": "<so_end>",
    "mask": "<mask>",
}
_CONFIG_KEYS = {  # ids that config.json may state
    "image": ("img_context_token_id", "image_token_id"),
    "video": ("video_context_token_id", "video_token_id"),
    "sound": ("sound_context_token_id", "audio_token_id"),
}


class TokenizerError(ValueError):
    """A tokenizer that cannot be read."""


class TextTokenizer:
    """A published checkpoint's own tokenizer and chat template.

    ``special`` maps what a token is for to its id: bos, eos (a list), pad, image, think, ... as far as the
    vocabulary has them. ``tool_format`` says how the model writes tool calls: "xml", "json", or None where its
    template knows none.
    """

    def __init__(
        self,
        backend: hf.Tokenizer,
        special: dict[str, int | list[int]],
        template: ChatTemplate | None = None,
        template_variables: dict[str, str] | None = None,
    ) -> None:
        self.backend = backend
        self.special = special
        self.template = template
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        self._variables = template_variables or {}
        self._names = _names_pattern(backend)
        self._media_names = _names_pattern(backend, _PLACEHOLDERS.values())
        alone, wrapped = (backend.encode("x", add_special_tokens=whole).ids for whole in (False, True))
        self._prefix = wrapped[: wrapped.index(alone[0])] if alone and alone[0] in wrapped else []

    # -- text ------------------------------------------------------------------------------------------------

    def encode(self, text: str, special: bool = False, begin: bool = False) -> list[int]:
        """Ids of ``text``. With ``special``, names of special tokens become their ids; otherwise they are text.

        ``begin`` adds what the checkpoint puts before a text (often a begin-of-sequence token).
        """
        pieces = [text] if special else self._cut(text, self._names)
        encoded = self.backend.encode_batch(pieces, add_special_tokens=False)
        return (self._prefix if begin else []) + [i for piece in encoded for i in piece.ids]

    def decode(self, ids: list[int], special: bool = False) -> str:
        """Text of ``ids``. Special tokens are left out, or written by name."""
        return self.backend.decode(list(ids), skip_special_tokens=not special)

    @staticmethod
    def _cut(text: str, names: re.Pattern[str] | None) -> list[str]:
        """Pieces none of which holds one of the names: they are cut behind their first letter."""
        cuts = [found.start() + 1 for found in names.finditer(text)] if names else []
        return [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    # -- chat ------------------------------------------------------------------------------------------------

    @property
    def tool_format(self) -> str | None:
        if self.template is None:
            return None
        if "<TOOLCALL>" in self.template.source:
            return "json"
        return "xml" if "<tool_call>" in self.template.source else None

    def render(
        self,
        messages: list[dict],
        add_generation_prompt: bool = True,
        thinking: bool | None = None,
        tools: list[dict] | None = None,
        **variables: Any,
    ) -> str:
        """The conversation through the checkpoint's chat template, which gets ``variables`` as they are."""
        turns = [self._turn(m) for m in read_messages(messages)]
        return self._render(turns, add_generation_prompt, thinking, tools, variables)

    def encode_chat(
        self,
        messages: list[dict],
        add_generation_prompt: bool = True,
        thinking: bool | None = None,
        tools: list[dict] | None = None,
        media: Sequence[str] | None = None,
        marks: dict[str, str] | None = None,
        **variables: Any,
    ) -> list[int]:
        """Ids of the conversation. Names of special tokens inside messages and tools stay text.

        A mark is put inside each such name, the whole is rendered, and what lies between marks is encoded apart.
        ``media`` has the texts that stand in the places of the media, in reading order; names of special tokens in them
        count. ``marks`` says by kind what the template writes for a medium, where that is not its placeholder.
        """
        turns = [self._turn(m) for m in read_messages(messages)]
        mark = _unused_character(json.dumps([turns, tools], ensure_ascii=False, default=str))
        names = self._media_names if media else self._names
        turns = [{k: v if k == "role" else self._protect(v, mark, names) for k, v in turn.items()} for turn in turns]
        text = self._render(turns, add_generation_prompt, thinking, self._protect(tools, mark, names), variables)
        if media:
            text = self._expand(text, media, marks or {})
        encoded = self.backend.encode_batch(text.split(mark), add_special_tokens=False)
        return [i for piece in encoded for i in piece.ids]

    def name_of(self, token: int) -> str:
        """How a special token is written where names of special tokens are read."""
        name = self.backend.id_to_token(token)
        if name is None:
            raise TokenizerError(f"this checkpoint's vocabulary has no token {token}")
        return name

    def _expand(self, text: str, media: Sequence[str], marks: dict[str, str]) -> str:
        """The rendered conversation with the text of each medium in its place."""
        written = {marks.get(kind) or self._placeholder(kind) for kind in _PLACEHOLDERS}
        pattern = re.compile("|".join(re.escape(w) for w in sorted(written, key=len, reverse=True)))
        found = len(pattern.findall(text))
        if found != len(media):
            raise TemplateError(f"the chat template shows {found} media; the conversation has {len(media)}")
        texts = iter(media)
        return pattern.sub(lambda _: next(texts), text)

    def _render(
        self, turns: list[dict], generate: bool, thinking: bool | None, tools: list[dict] | None, variables: dict
    ) -> str:
        if self.template is None:
            raise TemplateError("this checkpoint has no chat template; give the model plain text")
        turns, switches = self._switch_thinking(turns, thinking)
        turns = [{**turn, "content": self._content(turn["content"])} for turn in turns]
        given = {**self._variables, **switches, **variables}
        return self.template.render(messages=turns, tools=tools or None, add_generation_prompt=generate, **given)

    def _turn(self, message: Message) -> dict[str, Any]:
        """A message in the shape that published templates read."""
        turn: dict[str, Any] = {"role": message.role, "content": message.parts}
        if message.reasoning:
            turn["reasoning_content"] = message.reasoning
        if message.tool_calls:
            turn["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in message.tool_calls
            ]
        return turn

    def _switch_thinking(self, turns: list[dict], thinking: bool | None) -> tuple[list[dict], dict[str, Any]]:
        """Nemotron 3 has a template variable; v2 reads ``/think`` and ``/no_think`` in the system text."""
        if thinking is None:
            return turns, {}
        if self.template.uses("enable_thinking"):
            return turns, {"enable_thinking": thinking}
        if "/no_think" not in self.template.source:
            if thinking:
                raise TemplateError("this checkpoint's chat template has no thinking mode")
            return turns, {}
        word = "/think" if thinking else "/no_think"
        turns = [{**turn, "content": _without_switches(turn["content"])} for turn in turns]
        if turns[0]["role"] == "system":
            return [{**turns[0], "content": (*turns[0]["content"], word)}, *turns[1:]], {}
        return [{"role": "system", "content": (word,)}, *turns], {}

    def _content(self, parts: tuple[str | Media, ...]) -> str | list[dict]:
        """Parts as a list where the template reads lists (it names the media types), else as one text."""
        if not any(isinstance(part, Media) for part in parts):
            return "".join(parts)
        if self.template.uses("image") and self.template.uses("type"):
            return [
                {"type": self._kind(part.kind)} if isinstance(part, Media) else {"type": "text", "text": part}
                for part in parts
            ]
        return "".join(self._placeholder(part.kind) if isinstance(part, Media) else part for part in parts)

    def _kind(self, kind: str) -> str:
        """What the template calls a medium: published ones say "audio" where others say "sound"."""
        return "audio" if kind == "sound" and self.template.uses("audio") else kind

    def _placeholder(self, kind: str) -> str:
        """What stands for a medium in a text. Some vocabularies have no token of their own for videos."""
        token = self.special.get(kind)
        name = None if token is None else self.backend.id_to_token(token)
        return name or _PLACEHOLDERS[kind]

    def _protect(self, value: Any, mark: str, names: re.Pattern[str] | None) -> Any:
        if isinstance(value, str):
            return mark.join(self._cut(value, names))
        if isinstance(value, (list, tuple)):
            return type(value)(self._protect(v, mark, names) for v in value)
        if isinstance(value, dict):
            return {self._protect(k, mark, names): self._protect(v, mark, names) for k, v in value.items()}
        return value


def _names_pattern(backend: hf.Tokenizer, more: Iterable[str] = ()) -> re.Pattern[str] | None:
    """Finds where the name of an added token, or one of ``more``, begins. Mere white space means nothing."""
    added = [t.content for t in backend.get_added_tokens_decoder().values()]
    names = sorted({name for name in (*added, *more) if len(name) > 1 and not name.isspace()}, key=len)
    return re.compile(f"(?={'|'.join(re.escape(name) for name in names)})") if names else None


def _without_switches(parts: tuple[str | Media, ...]) -> tuple[str | Media, ...]:
    """An explicit choice overrules what the texts say."""
    plain = [p.replace("/no_think", "").replace("/think", "") if isinstance(p, str) else p for p in parts]
    return tuple(plain)


def _unused_character(text: str) -> str:
    for code in range(0xE000, 0xF900):  # private use: no text needs them, and few hold any
        if chr(code) not in text:
            return chr(code)
    raise TokenizerError("the conversation uses every private character of Unicode")


# -- files ---------------------------------------------------------------------------------------------------


def load_tokenizer(folder: str | Path) -> TextTokenizer | ByteTokenizer:
    """The tokenizer of a checkpoint folder. Raises TokenizerError when there is none or it is damaged."""
    folder = Path(folder)
    if (folder / "omni_tokenizer.json").exists():
        return ByteTokenizer.load(folder)
    path = folder / "tokenizer.json"
    if not path.exists():
        raise TokenizerError(f"{folder} holds no tokenizer.json")
    _check_size(path)
    try:
        backend = hf.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare Exception
        raise TokenizerError(f"{path} is not a tokenizer: {error}") from None
    backend.no_truncation()
    backend.no_padding()
    config = _read_json(folder / "tokenizer_config.json")
    names = {**_read_json(folder / "special_tokens_map.json"), **config}
    source = _template_source(folder, config)
    special = _special_ids(backend, names, folder)
    keys = [f"{use}_token" for use in ("bos", "eos", "pad", "unk")]
    variables = {key: _content_of(names[key]) for key in keys if names.get(key)}
    return TextTokenizer(backend, special, ChatTemplate(source) if source else None, variables)


def _special_ids(backend: hf.Tokenizer, names: dict[str, Any], folder: Path) -> dict[str, int | list[int]]:
    special: dict[str, int | list[int]] = {}
    for use, name in _NAMES.items():
        if (found := backend.token_to_id(name)) is not None:
            special[use] = found
    for use in ("bos", "eos", "pad", "unk", "mask"):
        name = _content_of(names.get(f"{use}_token"))
        if name and (found := backend.token_to_id(name)) is not None:
            special[use] = found
    config, generation = _read_json(folder / "config.json"), _read_json(folder / "generation_config.json")
    for use, keys in _CONFIG_KEYS.items():
        for key in keys:
            if isinstance(config.get(key), int):
                special[use] = config[key]
    special["eos"] = _end_ids(special.get("eos"), config, generation)
    special.setdefault("pad", special["eos"][0] if special["eos"] else 0)
    return special


def _end_ids(from_tokenizer: int | None, *configs: dict[str, Any]) -> list[int]:
    """Every id that ends an answer: the tokenizer's and those that the configs list, each once."""
    ids: list[int] = [] if from_tokenizer is None else [from_tokenizer]
    for config in configs:
        stated = config.get("eos_token_id")
        ids.extend(stated if isinstance(stated, list) else [] if stated is None else [stated])
    return list(dict.fromkeys(ids))


def _template_source(folder: Path, config: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        _check_size(path)
        return path.read_text(encoding="utf-8")
    found = config.get("chat_template") or _read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(found, list):  # several, by name
        found = next((t["template"] for t in found if t.get("name") == "default"), None)
    return found


def _content_of(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _check_size(path: Path) -> None:
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise TokenizerError(f"{path} has {size} bytes; the limit is {MAX_FILE_BYTES}")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    _check_size(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise TokenizerError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise TokenizerError(f"{path} must hold an object, not a {type(found).__name__}")
    return found


# -- streams -------------------------------------------------------------------------------------------------


class StreamDecoder:
    """Ids one by one -> text. A character comes out when its last byte is there, whole."""

    def __init__(self, tokenizer: TextTokenizer | ByteTokenizer, special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._ids: list[int] = []  # of the window: what was written last, and what is still open behind it
        self._written = 0  # how many of them have been written

    def push(self, token: int) -> str:
        """What ``token`` completes; "" while a character is open."""
        if isinstance(self._tokenizer, ByteTokenizer):
            return self._bytes.decode(self._tokenizer.token_bytes(token, self._special))
        self._ids.append(token)
        text = self._window()
        if text.endswith("\ufffd") and len(self._ids) - self._written < MAX_OPEN:
            return ""
        self._ids = self._ids[self._written :]
        self._written = len(self._ids)
        return text

    def flush(self) -> str:
        """The end of the stream: an open character comes out as U+FFFD."""
        if isinstance(self._tokenizer, ByteTokenizer):
            return self._bytes.decode(b"", final=True)
        text = self._window()
        self._ids, self._written = [], 0
        return text

    def _window(self) -> str:
        """Text of the open ids, decoded behind those before them: some decoders drop a leading space."""
        before = self._tokenizer.decode(self._ids[: self._written], self._special)
        return self._tokenizer.decode(self._ids, self._special)[len(before) :]


__all__ = ["ByteTokenizer", "StreamDecoder", "TextTokenizer", "TokenizerError", "load_tokenizer"]
