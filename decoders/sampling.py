"""From logits to tokens.

    logits (b, v) ── bias, penalties ── temperature ── top-k ── top-p ── min-p ── draw ──> tokens (b,)

Each function takes logits and gives logits of the same shape; what may not be drawn is -inf. A row is drawn with
one uniform number of its own generator, by inverting the distribution's cumulative sum: a row gets the same tokens
alone and in any batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

MAX_TOP_LOGPROBS = 20
MAX_BIASED = 1024


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to draw one row. The default is plain sampling from the model's distribution; temperature 0 is greedy."""

    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0  # smallest set of tokens with at least this probability together
    min_p: float = 0.0  # tokens below this fraction of the best token's probability are left out
    repetition_penalty: float = 1.0  # on tokens of prompt and answer (CTRL, arXiv 1909.05858)
    presence_penalty: float = 0.0  # once for every token of the answer so far
    frequency_penalty: float = 0.0  # for each time a token is in the answer so far
    logit_bias: dict[int, float] = field(default_factory=dict)  # token id -> added to its logit
    seed: int | None = None  # None: drawn anew
    logprobs: int | None = None  # None: none; n: of the drawn token and of the n most likely ones

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0, 100)
        _within("top_k", self.top_k, 0, 1 << 24, whole=True)
        _within("top_p", self.top_p, 0, 1, above=True)
        _within("min_p", self.min_p, 0, 1)
        _within("repetition_penalty", self.repetition_penalty, 0, 10, above=True)
        _within("presence_penalty", self.presence_penalty, -2, 2)
        _within("frequency_penalty", self.frequency_penalty, -2, 2)
        if self.seed is not None:
            _within("seed", self.seed, 0, (1 << 63) - 1, whole=True)
        if self.logprobs is not None:
            _within("logprobs", self.logprobs, 0, MAX_TOP_LOGPROBS, whole=True)
        if len(self.logit_bias) > MAX_BIASED:
            raise ValueError(f"logit_bias names {len(self.logit_bias)} tokens; the limit is {MAX_BIASED}")
        for token, bias in self.logit_bias.items():
            _within("a token of logit_bias", token, 0, 1 << 24, whole=True)
            _within(f"logit_bias of token {token}", bias, -100, 100)

    @property
    def counts_tokens(self) -> bool:
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


def _within(name: str, value: float, low: float, high: float, whole: bool = False, above: bool = False) -> None:
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high or (above and value == low):
        kind = "a whole number" if whole else "a number"
        start = f"above {low}" if above else f"from {low}"
        raise ValueError(f"{name} is {value!r}; it must be {kind} {start} to {high}")


# -- logits -> logits ------------------------------------------------------------------------------------


def bias(logits: Tensor, biases: dict[int, float]) -> Tensor:
    """Add to the logits (..., v) of chosen tokens."""
    if not biases:
        return logits
    if max(biases) >= logits.shape[-1]:
        raise ValueError(f"logit_bias names token {max(biases)}; the vocabulary has {logits.shape[-1]}")
    logits = logits.clone()
    tokens = torch.tensor(list(biases), device=logits.device)
    logits[..., tokens] += torch.tensor(list(biases.values()), dtype=logits.dtype, device=logits.device)
    return logits


def penalize(logits: Tensor, prompt: Tensor, answer: Tensor, params: SamplingParams) -> Tensor:
    """Logits (..., v) less likely for tokens that were there before; prompt and answer (v,) count them."""
    if params.repetition_penalty != 1:
        seen = (prompt + answer) > 0
        r = params.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / r, logits * r), logits)
    return logits - params.presence_penalty * (answer > 0) - params.frequency_penalty * answer


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Only the k largest of (..., v); equals of the k-th stay too."""
    if not 0 < k < logits.shape[-1]:
        return logits
    least = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < least, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Only the most likely tokens of (..., v) that together reach probability p; at least one."""
    if p >= 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    drop = (before >= p).scatter(-1, order, before >= p)
    return logits.masked_fill(drop, -math.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Only tokens of (..., v) at least p times as likely as the best."""
    if p <= 0:
        return logits
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(p), -math.inf)


# -- logits -> token -------------------------------------------------------------------------------------


def greedy(logits: Tensor) -> Tensor:
    """The most likely token of (..., v)."""
    return logits.argmax(dim=-1)


def draw(logits: Tensor, uniform: float | Tensor) -> Tensor:
    """The token of (..., v) at ``uniform`` (...) in [0, 1) of the cumulative distribution."""
    sums = logits.double().softmax(dim=-1).cumsum(dim=-1)
    at = torch.as_tensor(uniform, dtype=sums.dtype, device=sums.device)[..., None] * sums[..., -1:]
    token = torch.searchsorted(sums, at, right=True)[..., 0]
    last = logits.shape[-1] - 1 - (logits > -math.inf).flip(-1).int().argmax(dim=-1)
    return torch.minimum(token, last)  # rounding must not end behind the last one that can be drawn


@dataclass(frozen=True)
class Choice:
    """One row's token, its log-probability under the model, and the most likely ones with theirs."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Draws the rows of a batch, each by its own parameters, generator and history."""

    def __init__(self, params: Sequence[SamplingParams], prompts: Sequence[Sequence[int]] | None = None) -> None:
        self.params = list(params)
        self._generators = [_generator(p) for p in self.params]
        self._prompts = [list(p) for p in prompts] if prompts is not None else [[] for _ in self.params]
        self._answers: list[list[int]] = [[] for _ in self.params]

    def __call__(self, logits: Tensor, forced: Sequence[int | None] | None = None) -> list[Choice]:
        """(b, v) -> b choices. Where ``forced`` names a token it is taken instead; the row's generator still moves.

        Raises ValueError when a row has no number to choose by (NaN, or nothing left).
        """
        if logits.dim() != 2 or logits.shape[0] != len(self.params):
            raise ValueError(f"logits must be ({len(self.params)}, vocabulary), not {tuple(logits.shape)}")
        check_finite(logits)
        best = greedy(logits).tolist()  # of all rows at once: the usual case needs no more
        forced = forced or [None] * len(self.params)
        return [self.choose(row, logits[row], best[row], must) for row, must in enumerate(forced)]

    def choose(self, row: int, logits: Tensor, best: int, must: int | None = None) -> Choice:
        """One row's choice from logits (v,), of which ``best`` is the most likely; ``must`` as ``forced`` above."""
        token = best if self.is_plain(row) else self._draw(row, logits)
        return self.take(row, token if must is None else must, logits)

    def is_plain(self, row: int) -> bool:
        """Whether the row always takes the model's most likely token."""
        params = self.params[row]
        return params.temperature == 0 and not params.counts_tokens and not params.logit_bias

    def take(self, row: int, token: int, logits: Tensor | None) -> Choice:
        """Note that the row has taken ``token``; what there is to say of it under the model's logits (v,), if any."""
        self._answers[row].append(token)
        return _choice(logits, token, self.params[row].logprobs)

    def shaped(self, row: int, logits: Tensor, more: Sequence[int] = ()) -> Tensor:
        """Logits (..., v) that the row's draw is made of; ``more`` tokens count as its latest. Greedy cuts nothing."""
        params = self.params[row]
        logits = bias(logits, params.logit_bias)
        if params.counts_tokens:
            logits = penalize(logits, *self._counts(row, logits, more), params)
        if params.temperature == 0:
            return logits
        logits = keep_top_k(logits / params.temperature, params.top_k)
        return keep_min_p(keep_top_p(logits, params.top_p), params.min_p)

    def uniform(self, row: int) -> float:
        """The row's next number in [0, 1)."""
        return float(torch.rand((), generator=self._generators[row], dtype=torch.float64))

    def uniforms(self, row: int, count: int) -> Tensor:
        """The row's next numbers in [0, 1), (count,)."""
        return torch.rand(count, generator=self._generators[row], dtype=torch.float64)

    def _draw(self, row: int, logits: Tensor) -> int:
        uniform, logits = self.uniform(row), self.shaped(row, logits)
        return int(greedy(logits) if self.params[row].temperature == 0 else draw(logits, uniform))

    def _counts(self, row: int, logits: Tensor, more: Sequence[int]) -> tuple[Tensor, Tensor]:
        """How often each token is in the prompt and in the answer, (v,) each."""
        v, history = logits.shape[-1], (self._prompts[row], [*self._answers[row], *more])
        counts = [torch.bincount(torch.tensor(ids, dtype=torch.int64), minlength=v)[:v] for ids in history]
        return counts[0].to(logits.device), counts[1].to(logits.device)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        for name in ("params", "_generators", "_prompts", "_answers"):
            setattr(self, name, [getattr(self, name)[row] for row in rows])


def _generator(params: SamplingParams) -> torch.Generator:
    """Always on the CPU: the draws are the same on every device."""
    generator = torch.Generator()
    if params.seed is None:
        generator.seed()
    else:
        generator.manual_seed(params.seed)
    return generator


def check_finite(logits: Tensor) -> None:
    best = logits.amax(dim=-1)
    if bool(best.isnan().any() | best.isinf().any()):
        row = int((best.isnan() | best.isinf()).nonzero()[0])
        raise ValueError(f"row {row} of the logits has no finite maximum ({float(best[row])}): nothing can be drawn")


def _choice(logits: Tensor | None, token: int, wanted: int | None) -> Choice:
    if wanted is None or logits is None:
        return Choice(token)
    logprobs = logits.log_softmax(dim=-1)
    values, tokens = logprobs.topk(min(wanted, logits.shape[-1]))
    return Choice(token, float(logprobs[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))
