"""Chat: messages in, an answer out, whole or as a stream.

    messages ──> model.prepare ──> chunks ──> model.logits ──> generate ──> ReplyParser ──> Delta ... Reply
                                      └── the last conversation's cache, where the new prompt continues it

A list of conversations is a batch: its rows get the answers that they would get alone. With ``drafts`` several tokens
are written at a time (:mod:`omni.decoders.speculative`), or with ``decode="diffusion"``
(:mod:`omni.decoders.block_diffusion`).
"""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from omni.cache import CacheFormat
from omni.decoders.autoregressive import Event, Row, generate
from omni.decoders.block_diffusion import Denoising, diffuse, diffuse_lossless
from omni.decoders.budget import ReasoningBudget
from omni.decoders.sampling import SamplingParams
from omni.decoders.speculative import Acceptance, DraftLength, speculate
from omni.inputs import Inputs
from omni.model import Omni
from omni.pipelines.diffusing import DiffusingReader, Diffusion, diffusion_of
from omni.pipelines.drafting import ROLLBACKS, DraftingReader, draft_cost
from omni.pipelines.reader import CHUNK, Kept, Reader
from omni.pipelines.replies import BEGIN, END, Part, ReplyParser, ToolCall
from omni.tokenizers.text import StreamDecoder

_SAMPLING = {item.name for item in dataclasses.fields(SamplingParams)} - {"seed"}


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    reused_tokens: int = 0  # of the prompt, that were in the cache already
    drafts: Acceptance | None = None  # None: nothing was drafted
    denoising: Denoising | None = None  # None: every token had a pass of its own, or drafts


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token, its log-probability under the model, and the most likely tokens in its place."""

    token: str
    id: int
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """What one step added to the answer of one conversation."""

    row: int = 0
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None  # with the last one


@dataclass(frozen=True)
class Reply:
    """An answer. ``finish_reason``: "stop", "length" (cut off at max_new_tokens) or "tool_calls"."""

    text: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str = "stop"
    usage: Usage = field(default_factory=lambda: Usage(0, 0))
    logprobs: tuple[TokenLogprob, ...] | None = None

    @property
    def tokens(self) -> int:
        """Tokens generated."""
        return self.usage.completion_tokens

    def as_message(self) -> dict[str, Any]:
        """The answer as a message, to continue the conversation with."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [call.as_dict() for call in self.tool_calls]
        return message


class Chat:
    """``Chat(model)(messages) -> Reply``. ``chunk`` bounds the tokens of a prompt that are read at once.

    ``rollback`` is for drafts that do not hold: "replay" the recurrent states of those that do, or keep a "snapshot"
    behind each, which takes more memory. ``cache``: what it is kept in, such as "fp8" or "fp8+float16"
    (:class:`omni.cache.CacheFormat`); default: the model's own, which is exact unless its checkpoint says otherwise.
    """

    def __init__(
        self, model: Omni, chunk: int = CHUNK, rollback: str = "replay", cache: str | CacheFormat | None = None
    ) -> None:
        if model.tokenizer is None:
            raise ValueError("this model was loaded without a tokenizer; a chat needs one")
        if chunk < 1:
            raise ValueError(f"chunk is {chunk}; it must be at least 1")
        if rollback not in ROLLBACKS:
            raise ValueError(f"rollback is {rollback!r}; known: {', '.join(ROLLBACKS)}")
        self.model = model
        self.chunk = chunk
        self.rollback = rollback
        self.cache = CacheFormat.of(cache) if isinstance(cache, str) else cache
        self._kept: Kept | None = None

    @classmethod
    def from_pretrained(cls, name_or_path: str = "tiny", **options: Any) -> "Chat":
        """``options``: device, dtype."""
        import omni

        return cls(omni.load(name_or_path, **options))

    def __call__(
        self,
        messages: list,
        *,
        max_new_tokens: int | None = None,
        seed: int | Sequence[int] | None = None,
        thinking: bool | None = None,
        budget: int | None = None,
        grace: int | None = None,
        tools: list[dict] | None = None,
        stop: str | Sequence[str] = (),
        stream: bool = False,
        media: dict[str, Any] | None = None,
        drafts: int = 0,
        adaptive: bool = True,
        decode: str = "plain",
        block: int | None = None,
        steps: int | None = None,
        threshold: float | None = None,
        lossless: bool = False,
        ablate: Collection[str] = (),
        **sampling: Any,
    ) -> Reply | list[Reply] | Iterator[Delta]:
        """Answer one conversation, or a list of them.

        Args:
            messages: OpenAI-style messages; content is a string or a list of parts: text, image, video, audio.
            max_new_tokens: default 512, or what the model's positions leave.
            seed: of the draws; a list has one for each conversation.
            thinking: let the model reason first; default: the checkpoint's own.
            budget: reasoning tokens after which reasoning is closed at a line end, or after ``grace`` more.
            tools: OpenAI function list. Calls come back in ``tool_calls``.
            stop: strings that end the answer; they are not part of it.
            stream: give an iterator of :class:`Delta` instead.
            media: how videos are looked at: ``fps``, ``max_frames`` and ``pruning`` of :func:`omni.prepare.prepare`.
            drafts: tokens that the model's prediction block drafts at most before the model reads them in one pass:
                the answer stays what it is (greedy), or its distribution does. A seed draws another answer with than
                without. 0: none.
            adaptive: draft fewer where few hold.
            decode: "diffusion" denoises a ``block`` of tokens together, in at most ``steps`` passes; what is surer than
                ``threshold`` is kept at once. Default: as the model was trained. It is another distribution than that
                of plain decoding; with ``lossless`` the context tower judges every block, and the answer is the plain
                one, for the same seed too.
            ablate: leave out of it ``"seeds"``, ``"remask"`` or ``"time"``, to see what they are worth.
            sampling: fields of ``SamplingParams`` (temperature, top_p, top_k, min_p, penalties, logit_bias,
                logprobs); default: the checkpoint's own.

        Raises ValueError, which names the value and its limit, before anything is computed.
        """
        batched = bool(messages) and isinstance(messages[0], list)
        conversations = messages if batched else [messages]
        params = self._params(len(conversations), seed, sampling)
        options = {"block": block, "steps": steps, "threshold": threshold, "lossless": lossless, "ablate": ablate}
        way = diffusion_of(self.model, decode, **options) or self._length(drafts, adaptive)
        if drafts and isinstance(way, Diffusion):
            raise ValueError(f"drafts is {drafts} and decode is {decode!r}; one of them can be used")
        thinking = True if thinking is None and budget is not None else thinking
        with torch.inference_mode():
            inputs = self.model.prepare(conversations, thinking=thinking, tools=tools, **(media or {}))
        prompts = _rows_of(inputs)
        limit = self._room(max(len(ids) for ids in prompts), max_new_tokens)
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        rows, parsers = [], []
        for ids, one, conversation in zip(prompts, params, conversations, strict=True):
            opened = self._opened(ids)
            control = None if budget is None else self._budget(budget, grace, opened)
            decoder = StreamDecoder(self.model.tokenizer, special=True)
            rows.append(Row(one, decoder, limit, self._ends(), stops, ids, control))
            parsers.append(ReplyParser(opened, _offered(tools, conversation)))
        deltas = self._deltas(inputs, rows, parsers, way)
        if stream:
            return deltas
        replies = _collect(deltas, rows)
        return replies if batched else replies[0]

    # -- what is asked for -------------------------------------------------------------------------------

    def _params(self, rows: int, seed: int | Sequence[int] | None, sampling: dict) -> list[SamplingParams]:
        unknown = sorted(set(sampling) - _SAMPLING)
        if unknown:
            raise TypeError(f"Chat has no options {unknown}; those of sampling are {sorted(_SAMPLING)}")
        own = {k: v for k, v in self.model.config.sampling.items() if k in _SAMPLING}
        start = own or {"temperature": 0.0}
        chosen = {**start, **{k: v for k, v in sampling.items() if v is not None}}
        seeds = [seed] * rows if seed is None or isinstance(seed, int) else list(seed)
        if len(seeds) != rows:
            raise ValueError(f"there are {len(seeds)} seeds for {rows} conversations")
        return [SamplingParams(seed=one, **chosen) for one in seeds]

    def _room(self, prompt: int, wanted: int | None) -> int:
        room = self.model.config.max_positions - prompt
        limit = min(512, room) if wanted is None else wanted
        if not 1 <= limit <= room:
            raise ValueError(
                f"max_new_tokens is {limit}; a prompt of {prompt} tokens leaves room for 1 to {max(room, 0)} of the "
                f"model's {self.model.config.max_positions}"
            )
        return limit

    def _length(self, drafts: int, adaptive: bool) -> DraftLength | None:
        if not drafts:
            return None
        if self.model.mtp is None:
            raise ValueError(f"drafts is {drafts}, but this model has no block that predicts further tokens (mtp)")
        return DraftLength(drafts, draft_cost(self.model) if adaptive else None)

    def _ends(self) -> frozenset[int]:
        ends = [self.model.tokenizer.special.get("eos", []), self.model.config.special_tokens.get("eos", [])]
        return frozenset(i for end in ends for i in (end if isinstance(end, list) else [end]))

    def _opened(self, prompt: list[int]) -> bool:
        """Whether the prompt ends inside reasoning."""
        return self.model.tokenizer.decode(prompt[-16:], special=True).rstrip().endswith(BEGIN)

    def _budget(self, budget: int, grace: int | None, opened: bool) -> ReasoningBudget:
        tokenizer = self.model.tokenizer
        end = tokenizer.encode(f"\n{END}\n", special=True)
        return ReasoningBudget(budget, end, lambda ids: tokenizer.decode(ids, special=True), opened, grace)

    # -- the answer --------------------------------------------------------------------------------------

    def _deltas(
        self, inputs: Inputs, rows: list[Row], parsers: list[ReplyParser], way: DraftLength | Diffusion | None
    ) -> Iterator[Delta]:
        kept = self._reusable(inputs, isinstance(way, DraftLength))
        reader, events, took = self._begin(inputs, rows, kept, way)
        counts = [0] * len(rows)
        try:
            for event in events:
                row = event.row
                counts[row] += 1
                usage = Usage(len(rows[row].prompt), counts[row], reader.reused, **took[row])
                yield from self._read_event(event, parsers[row], usage)
        finally:
            if len(rows) == 1 and reader.settled:
                self._kept = Kept(inputs, reader.fed, reader.cache, reader.drafts())

    def _begin(
        self, inputs: Inputs, rows: list[Row], kept: Kept | None, way: DraftLength | Diffusion | None
    ) -> tuple[Reader, Iterator[Event], list[dict[str, Any]]]:
        """What reads, the loop over it, and of each row the counts that its usage tells."""
        room = rows[0].max_new_tokens
        if way is None:
            reader = Reader(self.model, inputs, kept, room, self.cache)
            return reader, generate(reader.read(self.chunk), rows, reader.step, reader.keep), [{} for _ in rows]
        if isinstance(way, DraftLength):
            drafts = [Acceptance() for _ in rows]
            reader = DraftingReader(self.model, inputs, kept, room, self.rollback, self.cache)
            events = speculate(reader.read(self.chunk), rows, reader, way, drafts)
            return reader, events, [{"drafts": own} for own in drafts]
        took = [Denoising() for _ in rows]
        reader = DiffusingReader(self.model, inputs, kept, room, self.rollback, way.ablate, self.cache)
        logits = reader.read(self.chunk)
        if way.lossless:
            events = diffuse_lossless(logits, rows, reader, way.unmasking, took)
        else:
            events = diffuse(rows, reader, way.unmasking, took)
        return reader, events, [{"denoising": own} for own in took]

    def _reusable(self, inputs: Inputs, drafting: bool) -> Kept | None:
        """The cache of the last conversation, if this one continues it. It is given away: the answer changes it."""
        kept, self._kept = self._kept, None
        if kept is None or inputs.input_ids.shape[0] != 1 or (drafting and kept.drafts is None):
            return None
        return kept if kept.begins(inputs) else None

    def _read_event(self, event: Event, parser: ReplyParser, usage: Usage) -> Iterator[Delta]:
        """An event as deltas; those of the row's last event end with the finish reason."""
        parts = parser.feed(event.text)
        logprobs = self._logprobs(event)
        if event.finish is not None:
            parts += parser.finish()
        if logprobs and not parts:
            parts = [Part()]
        for i, part in enumerate(parts):
            yield Delta(event.row, part.text, part.reasoning, part.tool_calls, logprobs if i == 0 else ())
        if event.finish is not None:
            called = parser.calls > 0 and event.finish == "stop"
            yield Delta(event.row, finish_reason="tool_calls" if called else event.finish, usage=usage)

    def _logprobs(self, event: Event) -> tuple[TokenLogprob, ...]:
        if event.logprob is None:
            return ()
        name = self._name
        top = tuple((name(token), value) for token, value in event.top)
        return (TokenLogprob(name(event.token), event.token, event.logprob, top),)

    def _name(self, token: int) -> str:
        return self.model.tokenizer.decode([token], special=True)


def _rows_of(inputs: Inputs) -> list[list[int]]:
    """The real tokens of each row."""
    if inputs.mask is None:
        return inputs.input_ids.tolist()
    return [row[real].tolist() for row, real in zip(inputs.input_ids, inputs.mask, strict=True)]


def _offered(tools: list[dict] | None, conversation: list[dict]) -> list[dict] | None:
    """The tools whose calls are to be read: those offered now, or in a conversation that has used some."""
    used = any(message.get("tool_calls") or message.get("role") == "tool" for message in conversation)
    return list(tools or []) if tools or used else None


def _collect(deltas: Iterator[Delta], rows: list[Row]) -> list[Reply]:
    """Whole replies from the stream of all rows."""
    found: list[list[Delta]] = [[] for _ in rows]
    for delta in deltas:
        found[delta.row].append(delta)
    return [_reply(mine, row.params.logprobs is not None) for mine, row in zip(found, rows, strict=True)]


def _reply(deltas: list[Delta], logprobs: bool) -> Reply:
    return Reply(
        text="".join(d.text for d in deltas),
        reasoning="".join(d.reasoning for d in deltas),
        tool_calls=tuple(call for d in deltas for call in d.tool_calls),
        finish_reason=deltas[-1].finish_reason,
        usage=deltas[-1].usage,
        logprobs=tuple(p for d in deltas for p in d.logprobs) if logprobs else None,
    )


def terminal(chat: Chat, messages: list[dict], pictures: Sequence[dict] = (), **options: Any) -> None:
    """A conversation in the terminal. See :mod:`omni.pipelines.terminal`."""
    from omni.pipelines.terminal import talk

    talk(chat, messages, pictures, **options)


__all__ = ["Chat", "Delta", "Reply", "TokenLogprob", "ToolCall", "Usage", "terminal"]
