r"""omni as a model of EleutherAI's lm-evaluation-harness (``pip install omni[eval]``).

    python -m omni.harness --model_args pretrained=tiny --include_path assets/harness \
        --tasks omni_capitals,omni_capitals_choice --apply_chat_template

takes the arguments of ``lm_eval``; ``--model omni`` is the default. The harness finds models in a table of its own and
has no way to announce further ones from outside, so this module must have been imported before its command runs: that
is all the wrapper does. In a program, ``import omni.harness`` before ``lm_eval.simple_evaluate(model="omni", ...)``.
"""

import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

try:
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise ImportError("omni.harness needs the lm-evaluation-harness: pip install 'omni[eval]'") from error

import omni
from omni.decoders.autoregressive import Row, StopText, generate
from omni.decoders.sampling import SamplingParams
from omni.inputs import Inputs, pad_rows
from omni.model import Omni
from omni.pipelines.reader import CHUNK, Reader
from omni.pipelines.replies import BEGIN, ReplyParser
from omni.tokenizers.text import StreamDecoder

AUTO_BATCH = 16
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")

Scored = tuple[tuple[str, str], list[int], list[int]]  # the request's texts, context ids, continuation ids


@register_model("omni")
class OmniLM(TemplateLM):
    """Scores and continues texts with an omni model.

    Args:
        pretrained: ``"tiny"``, a folder, a hub id, or a loaded model.
        batch_size: rows at once; "auto" is 16.
        max_length: longest context and continuation, in tokens; default: the model's positions.
        max_gen_toks: longest answer where a task names none.
        thinking: of the chat template; default: the checkpoint's own.
        add_bos: put the begin-of-sequence token before every text.
        seed: of sampled answers; the i-th request gets seed + i.
    """

    def __init__(
        self,
        pretrained: str | Omni = "tiny",
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,  # the harness passes it; batches here do not search for a size
        max_length: int | None = None,
        max_gen_toks: int = 256,
        thinking: bool | None = None,
        add_bos: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        loaded = isinstance(pretrained, Omni)
        self.model = pretrained if loaded else omni.load(pretrained, device=device or "auto", dtype=dtype)
        if self.model.tokenizer is None:
            raise ValueError(f"{pretrained} has no tokenizer; the harness asks in text")
        self.name = "loaded" if loaded else str(pretrained)
        self.tokens = self.model.tokenizer
        self.batch_size = AUTO_BATCH if str(batch_size).startswith("auto") else int(batch_size)
        self.max_length = max_length or self.model.config.max_positions
        self.max_gen_toks = max_gen_toks
        self.thinking = thinking
        self.add_bos = add_bos
        self.seed = seed
        self._device = self.model.device
        self._chatting = False
        self._check()

    def _check(self) -> None:
        room = self.model.config.max_positions
        for name, value, top in (
            ("batch_size", self.batch_size, 1 << 16),
            ("max_length", self.max_length, room),
            ("max_gen_toks", self.max_gen_toks, room - 1),
        ):
            if not 1 <= value <= top:
                raise ValueError(f"{name} is {value}; it must lie between 1 and {top}")
        if self.add_bos and "bos" not in self.tokens.special:
            raise ValueError("add_bos is set, but the vocabulary has no begin-of-sequence token")

    # -- text --------------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        return self.tokens.special["eos"][0]

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is: the begin of a sequence, or the end of the one before."""
        return self.tokens.special.get("bos", self.eot_token_id)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text. Names of special tokens are read as such only in what a chat template made."""
        bos = [self.tokens.special["bos"]] if self.add_bos and add_special_tokens is not False else []
        return bos + self.tokens.encode(string, special=self._chatting)

    @property
    def tokenizer_name(self) -> str:
        return f"omni-{self.name}".replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source, by which the harness tells runs apart."""
        if not chat_template:
            return None
        template = getattr(self.tokens, "template", None)
        return template.source if template is not None else type(self.tokens).__name__

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text. Without a generation prompt its last message is the start of the answer."""
        self._chatting = True
        if add_generation_prompt:
            return self.tokens.render(chat_history, thinking=self.thinking)
        *before, answer = chat_history
        return self.tokens.render(before, thinking=self.thinking) + answer["content"]

    # -- likelihood --------------------------------------------------------------------------------------

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in windows of the longest context; every token counts once."""
        pieces: list[Scored] = []
        owners: list[int] = []
        for i, (text,) in enumerate(request.args for request in requests):
            windows = utils.get_rolling_token_windows(
                self.tokens.encode(text), self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            )
            mine = [utils.make_disjoint_window(window) for window in windows]
            pieces += [(("", text), context, continuation) for context, continuation in mine]
            owners += [i] * len(mine)
        sums = [0.0] * len(requests)
        for owner, (score, _) in zip(owners, self._scores(pieces, disable_tqdm), strict=True):
            sums[owner] += score
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def _loglikelihood_tokens(
        self, requests: list[Scored], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        found = self._scores(requests, disable_tqdm)
        for (texts, _, _), score in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, score)
        return found

    @torch.inference_mode()
    def _scores(self, requests: list[Scored], quiet: bool) -> list[tuple[float, bool]]:
        """(log-probability, is it the greedy one) of each continuation, in the order of the requests."""
        results: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        batches = self._batches(requests)
        for members, context in track(batches, "scoring", console=Console(stderr=True), disable=quiet):
            pairs = [requests[i][1:] for i in members]
            scores = self._score_options(pairs) if context else self._score_rows(pairs)
            for i, score in zip(members, scores, strict=True):
                results[i] = score
        return results

    def _batches(self, requests: list[Scored]) -> list[tuple[list[int], bool]]:
        """(requests of a batch, whether they share their context). Longest first: what is too large fails at once."""
        order = [i for i, (_, _, continuation) in enumerate(requests) if continuation]
        order.sort(key=lambda i: (-len(requests[i][1]), requests[i][1], -len(requests[i][2])))
        shared, alone = [], []
        for _, same in groupby(order, key=lambda i: requests[i][1]):
            members = list(same)
            fits = max(len(requests[i][1]) + len(requests[i][2]) - 1 for i in members) <= self.max_length
            if len(members) > 1 and fits:
                shared.append(members)
            else:
                alone += members
        size = self.batch_size
        return [(group, True) for group in shared] + [
            (alone[start : start + size], False) for start in range(0, len(alone), size)
        ]

    def _score_options(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Continuations of one context: it is read once, and its cache forked."""
        context = pairs[0][0]
        cache = self.model.new_cache(1, len(context))
        for start in range(0, len(context) - 1, CHUNK):
            piece = context[start : min(start + CHUNK, len(context) - 1)]
            self.model.read(Inputs(torch.tensor([piece], device=self._device)), cache, last=0)
        scores = []
        for start in range(0, len(pairs), self.batch_size):
            some = [continuation for _, continuation in pairs[start : start + self.batch_size]]
            rows = [[context[-1], *continuation[:-1]] for continuation in some]
            hidden = self.model.read(self._padded(rows), cache.fork(len(rows)))
            scores += [self._score(hidden[i, : len(c)], c) for i, c in enumerate(some)]
        return scores

    def _score_rows(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Contexts and continuations of their own; what is too long loses its beginning."""
        rows = [(context + continuation)[-(self.max_length + 1) : -1] for context, continuation in pairs]
        hidden = self.model.read(self._padded(rows))
        scores = []
        for i, (row, (_, continuation)) in enumerate(zip(rows, pairs, strict=True)):
            targets = continuation[-len(row) :]
            scores.append(self._score(hidden[i, len(row) - len(targets) : len(row)], targets))
        return scores

    def _padded(self, rows: list[list[int]]) -> Inputs:
        return Inputs(*pad_rows(rows, pad=0)).to(self._device)

    def _score(self, hidden: Tensor, targets: list[int]) -> tuple[float, bool]:
        """hidden (n, d) predicts the n targets."""
        logprobs = self.model.predict(hidden).log_softmax(dim=-1)
        wanted = torch.tensor(targets, device=self._device)
        chosen = logprobs.gather(-1, wanted[:, None]).double().sum()
        return float(chosen), bool((logprobs.argmax(dim=-1) == wanted).all())

    # -- generation --------------------------------------------------------------------------------------

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """Answers without their stop strings; reasoning that the prompt opened is left out."""
        asked = [(self.tok_encode(context), _read_options(options)) for context, options in (r.args for r in requests)]
        order = sorted(range(len(asked)), key=lambda i: -len(asked[i][0]))
        answers = [""] * len(asked)
        starts = range(0, len(order), self.batch_size)
        for start in track(starts, "generating", console=Console(stderr=True), disable=disable_tqdm):
            members = order[start : start + self.batch_size]
            for i, answer in zip(members, self._answer([(i, *asked[i]) for i in members]), strict=True):
                answers[i] = answer
                self.cache_hook.add_partial("generate_until", requests[i].args, answer)
        return answers

    def _answer(self, asked: list[tuple[int, list[int], dict[str, Any]]]) -> list[str]:
        prompts, rows, opened = [], [], []
        for i, ids, options in asked:
            limit = min(options["limit"] or self.max_gen_toks, self.max_length - 1)
            prompts.append((ids or [self.prefix_token_id])[-(self.max_length - limit) :])
            opened.append(self._chatting and self._opens_reasoning(prompts[-1]))
            rows.append(self._row(prompts[-1], limit, options, i, opened[-1]))
        inputs = Inputs(*pad_rows(prompts, pad=0, left=True)).to(self._device)
        reader = Reader(self.model, inputs, None, max(row.max_new_tokens for row in rows))
        said = [""] * len(rows)
        for event in generate(reader.read(CHUNK), rows, reader.step, reader.keep):
            said[event.row] += event.text
        stops = [options["until"] for _, _, options in asked]
        return [
            _behind_reasoning(text, stop) if inside else text
            for text, stop, inside in zip(said, stops, opened, strict=True)
        ]

    def _row(self, prompt: list[int], limit: int, options: dict[str, Any], index: int, opened: bool) -> Row:
        params = SamplingParams(seed=self.seed + index, **options["sampling"])
        decoder = StreamDecoder(self.tokens, special=opened)
        stops = () if opened else options["until"]  # a stop string inside the reasoning ends nothing
        return Row(params, decoder, limit, frozenset(self.tokens.special["eos"]), stops, prompt)

    def _opens_reasoning(self, prompt: list[int]) -> bool:
        return self.tokens.decode(prompt[-16:], special=True).rstrip().endswith(BEGIN)


def _read_options(options: dict[str, Any]) -> dict[str, Any]:
    """The harness's generation arguments: {"until", "limit", "sampling"}. Raises ValueError for unknown ones."""
    options = dict(options)
    until = options.pop("until", None) or []
    limits = [options.pop(name) for name in LIMITS if name in options]
    sampled = options.pop("do_sample", bool(options.get("temperature")))
    sampling = {name: options.pop(name) for name in SAMPLING if name in options}
    if options:
        known = ("until", "do_sample", *LIMITS, *SAMPLING)
        raise ValueError(f"generation arguments {sorted(options)} are unknown; known: {', '.join(known)}")
    return {
        "until": tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop),
        "limit": limits[0] if limits else None,
        "sampling": sampling if sampled else {**sampling, "temperature": 0},
    }


def _behind_reasoning(text: str, stops: tuple[str, ...]) -> str:
    """The answer after ``</think>``, up to a stop string."""
    parser = ReplyParser(opened=True)
    answer = "".join(part.text for part in parser.feed(text) + parser.finish())
    guard = StopText(stops)
    return guard.push(answer) + guard.flush()


def main() -> None:
    """``lm_eval`` with this model known to it, and used where no other is named."""
    from lm_eval.__main__ import cli_evaluate

    arguments = sys.argv[1:]
    runs = arguments and arguments[0] not in ("ls", "validate", "-h", "--help")
    named = any(a in ("--model", "-M", "--config", "-C") or a.startswith(("--model=", "--config=")) for a in arguments)
    placed = any(a.split("=")[0] in ("--device", "--config", "-C") for a in arguments)
    at = 2 if runs and arguments[0] == "run" else 1
    if runs and not placed:
        sys.argv[at:at] = ["--device", "auto"]  # theirs is the first GPU, whether there is one or not
    if runs and not named:
        sys.argv[at:at] = ["--model", "omni"]
    cli_evaluate()


if __name__ == "__main__":
    main()
