"""Block diffusion over fake models: the published rule, rows of their own, ends, budgets, the context's judgement."""

import math
from collections import Counter

import pytest
import torch

from omni.decoders.autoregressive import Row, generate
from omni.decoders.block_diffusion import Denoising, Unmasking, diffuse, diffuse_lossless
from omni.decoders.budget import ReasoningBudget
from omni.decoders.sampling import SamplingParams
from omni.tokenizers.text import ByteTokenizer, StreamDecoder

TOKENIZER = ByteTokenizer()
END, MASK, V = 11, 3, 320


class Fake:
    """A denoiser whose logits at a place hang on the row's last token, on what is known at both sides, and on the time;
    and a context whose next token follows from the last. ``skill``: how near the first is to the second."""

    mask = MASK

    def __init__(self, rows: int, skill: float = 0.0, scale: float = 3.0, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.p = torch.randn(rows, V, V, generator=generator) * scale
        self.p[:, :, MASK] = -50.0
        self.right = torch.randn(rows, V, V, generator=generator) * scale / 2
        self.far = torch.randn(rows, 4, V, generator=generator) * scale / 2
        self.skill, self.alive = skill, list(range(rows))
        self.read: list[list[int]] = [[0] for _ in range(rows)]
        self.asked: list[tuple[list[int], list[list[int]], list[float]]] = []
        self._window: torch.Tensor | None = None

    def denoise(self, blocks, t, rows):
        assert self._window is None
        self.asked.append(([self.alive[i] for i in rows.tolist()], blocks.tolist(), t.tolist()))
        texts = zip(rows.tolist(), blocks.tolist(), t.tolist(), strict=True)
        found = torch.stack([self.say(self.alive[i], block, time) for i, block, time in texts])
        found[..., MASK] = -math.inf
        return found

    def say(self, row: int, block: list[int], time: float) -> torch.Tensor:
        around, places = [self.read[row][-1], *block, MASK], []
        for i in range(len(block)):
            left, right = around[i], around[i + 2]
            logits = self.far[row, i % 4] * (1 + time) if left == MASK else self.p[row, left]
            if self.skill and left == MASK:  # the last that is known, two tokens on
                last = next(token for token in reversed(around[: i + 1]) if token != MASK)
                logits = self.p[row, int(self.p[row, last].argmax())] * self.skill + logits
            places.append(logits if right == MASK else logits + (1 - self.skill) * self.right[row, right])
        return torch.stack(places)

    def commit(self, tokens, counts):
        assert self._window is None
        for row, own, count in zip(self.alive, tokens.tolist(), counts.tolist(), strict=True):
            self.read[row] += own[:count]

    def keep(self, rows):
        self.alive = [self.alive[i] for i in rows.tolist()]

    # -- the context's own

    def start(self) -> torch.Tensor:
        return self.step(torch.tensor([self.read[row][-1] for row in self.alive]))

    def step(self, tokens):
        return torch.stack([self.p[row, token] for row, token in zip(self.alive, tokens.tolist(), strict=True)])

    def verify(self, tokens):
        self._window = tokens
        return torch.stack([self.step(column) for column in tokens.T], dim=1)

    def accept(self, counts):
        tokens, self._window = self._window, None
        assert int(counts.min()) >= 1
        self.commit(tokens, counts)


def row(**options) -> Row:
    sampling = {"temperature": 0, "seed": 0, **options.pop("sampling", {})}
    options = {"max_new_tokens": 24, "eos": frozenset([END]), **options}
    return Row(SamplingParams(**sampling), StreamDecoder(TOKENIZER, special=True), **options)


def by_row(events, rows: int) -> list[list]:
    events = list(events)
    return [[event for event in events if event.row == r] for r in range(rows)]


def tokens(events) -> list[int]:
    return [event.token for event in events]


# -- the rule ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sure", "step", "expected"),
    [
        ([0.1, 0.2, 0.3], 0, 1),  # one at least
        ([0.9, 0.81, 0.8], 0, 2),  # strictly above the threshold
        ([0.1] * 16, 0, 4),  # in four passes
        ([0.1] * 12, 1, 4),
        ([0.1] * 9, 2, 5),
        ([0.1] * 9, 3, 9),  # all in the last
        ([0.1], 7, 1),
        ([1.0] * 5, 0, 5),
    ],
)
def test_how_many_are_revealed(sure, step, expected):
    assert Unmasking(steps=4, threshold=0.8).reveals(sure, step) == expected


def published(model: Fake, rows: int, blocks: int, how: Unmasking) -> tuple[list[list[int]], int]:
    """The reference's loop, greedy, as it is written down: one time for all rows, and every row in every pass."""
    nfe, said = 0, [[] for _ in range(rows)]
    for _ in range(blocks):
        x = torch.full((rows, how.block), MASK)
        for step in range(how.steps):
            masked = x == MASK
            if not masked.any():
                break
            t = masked.float().mean().expand(rows)
            p = model.denoise(x, t, torch.arange(rows)).softmax(-1)
            nfe += 1
            confidence, predicted = p.max(-1)
            m = masked.sum(-1)
            above = ((confidence > how.threshold) & masked).sum(-1)
            count = torch.minimum(m, torch.maximum(above.clamp(min=1), (m / (how.steps - step)).ceil().long()))
            count = m if step == how.steps - 1 else count
            out = torch.where(masked, predicted, x)
            for b in range(rows):
                open_ = masked[b].nonzero()[:, 0]
                order = confidence[b, open_].sort(descending=True, stable=True).indices
                out[b, open_[order[count[b] :]]] = MASK
            x = out
        model.commit(x, torch.full((rows,), how.block))
        said = [own + block for own, block in zip(said, x.tolist(), strict=True)]
    return said, nfe


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("block", "steps", "threshold"), [(8, 8, 0.3), (8, 3, 0.9), (5, 16, 0.1), (4, 1, 0.5)])
def test_the_published_order(rows, block, steps, threshold):
    how = Unmasking(block=block, steps=steps, threshold=threshold, published=True)
    expected, nfe = published(Fake(rows), rows, 3, how)
    model, counts = Fake(rows), [Denoising() for _ in range(rows)]
    asked = [row(max_new_tokens=3 * block, eos=frozenset()) for _ in range(rows)]
    found = by_row(diffuse(asked, model, how, counts), rows)
    assert [tokens(events) for events in found] == expected
    assert [count.passes for count in counts] == [nfe] * rows
    assert [count.tokens for count in counts] == [3 * block] * rows
    assert [count.commits for count in counts] == [2] * rows, "the last block is not read"
    if rows == 1:
        ours = by_row(diffuse(asked, Fake(1), Unmasking(block=block, steps=steps, threshold=threshold)), 1)
        assert tokens(ours[0]) == expected[0], "one row without an end is written in that order anyway"


def test_every_row_is_told_its_own_time_and_done_on_its_own():
    model = Fake(4)
    how = Unmasking(block=8, steps=8, threshold=0.4)
    counts = [Denoising() for _ in range(4)]
    list(diffuse([row(eos=frozenset()) for _ in range(4)], model, how, counts))
    sizes = Counter()
    for rows, blocks, times in model.asked:
        sizes[len(rows)] += 1
        for block, t in zip(blocks, times, strict=True):
            assert block.count(MASK) == pytest.approx(8 * t)
            assert MASK in block, "a block that is done is not looked at again"
    assert len(sizes) > 1
    assert sum(count.passes for count in counts) == sum(n * size for size, n in sizes.items())
    assert len({count.passes for count in counts}) > 1
    assert all(c.tokens_per_pass == 24 / c.passes for c in counts)
    assert all(c.tokens_per_any_pass == 24 / (c.passes + 2) for c in counts)
    assert Denoising().tokens_per_pass == Denoising().tokens_per_any_pass == 0


SAMPLED = {"temperature": 0.9, "top_k": 30, "top_p": 0.9, "logprobs": 1}


@pytest.mark.parametrize("sampling", [{}, SAMPLED, SAMPLED | {"repetition_penalty": 1.3, "frequency_penalty": 0.4}])
def test_a_row_gets_alone_what_it_gets_in_a_batch(sampling):
    how = Unmasking(block=6, steps=4, threshold=0.5)
    options = [{"max_new_tokens": n, "sampling": sampling | {"seed": n}} for n in (1, 5, 6, 13, 24)]
    together = by_row(diffuse([row(**o) for o in options], Fake(5), how), 5)
    for i, own in enumerate(options):
        alone = Fake(5)
        alone.alive = [i]
        events = list(diffuse([row(**own)], alone, how))
        assert [(e.token, e.text, e.finish, e.logprob) for e in events] == [
            (e.token, e.text, e.finish, e.logprob) for e in together[i]
        ]
        assert len(events) <= own["max_new_tokens"]
        assert alone.read[i] == [0, *tokens(events)[: len(alone.read[i]) - 1]]


def test_what_is_drawn_follows_the_rows_own_sampling():
    """Blocks of one token: the distribution is that of the logits. Cutting to the best one is the greedy answer."""
    model = Fake(1, scale=1.0)
    wanted = (model.say(0, [MASK], 1.0)[0].index_fill(0, torch.tensor(MASK), -math.inf) / 0.7).softmax(-1)
    seen = Counter()
    for seed in range(1500):
        model.read, how = [[0]], Unmasking(block=1)
        asked = row(max_new_tokens=1, sampling={"temperature": 0.7, "seed": seed})
        seen[next(diffuse([asked], model, how)).token] += 1
    likely = wanted.topk(5)
    for p, token in zip(likely.values.tolist(), likely.indices.tolist(), strict=True):
        assert seen[token] / 1500 == pytest.approx(p, abs=4 * math.sqrt(p / 1500))
    how = Unmasking(block=6, steps=6, threshold=0.5)
    best = list(diffuse([row()], Fake(1), how))
    cut = list(diffuse([row(sampling={"temperature": 1.0, "top_k": 1})], Fake(1), how))
    assert tokens(cut) == tokens(best)


def test_how_sure_a_draw_is_the_bare_probability_says():
    """A low temperature draws the best token with hardly a doubt; that alone reveals nothing."""
    counts = [Denoising()], [Denoising()]
    how = Unmasking(block=8, steps=8, threshold=0.9)
    list(diffuse([row(eos=frozenset())], Fake(1, scale=0.5), how, counts[0]))
    list(diffuse([row(eos=frozenset(), sampling={"temperature": 0.01})], Fake(1, scale=0.5), how, counts[1]))
    assert counts[0][0].passes == counts[1][0].passes == 24


def test_logprobs_are_those_of_the_pass_that_revealed_the_token():
    model = Fake(1)
    how = Unmasking(block=4, steps=4, threshold=1.0)
    events = list(diffuse([row(max_new_tokens=4, eos=frozenset(), sampling={"logprobs": 2})], model, how))
    blocks = [block for _, (block,), _ in model.asked] + [tokens(events)]
    for i, event in enumerate(events):
        step = next(s for s in range(4) if blocks[s + 1][i] != MASK)
        logits = model.say(0, blocks[step], sum(t == MASK for t in blocks[step]) / 4)[i]
        logits[MASK] = -math.inf
        assert event.logprob == pytest.approx(float(logits.log_softmax(-1)[event.token]))
        assert len(event.top) == 2


# -- ends ----------------------------------------------------------------------------------------------------


class Writer(Fake):
    """Says a text, each letter with a probability of its own; behind it anything."""

    def __init__(self, text: list[int], sure: list[float]) -> None:
        super().__init__(1)
        self.text, self.sure = text, sure

    def say(self, row, block, time):
        start = len(self.read[row]) - 1
        logits = torch.zeros(len(block), V)
        for i in range(len(block)):
            place = start + i
            token, p = (self.text[place], self.sure[place]) if place < len(self.text) else (70, 0.3)
            logits[i] = math.log((1 - p) / (V - 2))
            logits[i, token] = math.log(p)
        return logits


LETTERS = [TOKENIZER.encode(c)[0] for c in "abcdefgh"]


def test_nothing_is_written_behind_an_end():
    text = [*LETTERS[:3], END]
    model, counts = Writer(text, [0.5, 0.6, 0.7, 0.95]), [Denoising()]
    events = list(diffuse([row()], model, Unmasking(block=8, steps=8, threshold=0.9), counts))
    assert tokens(events) == text
    assert (events[-1].finish, events[-1].text) == ("stop", "")
    assert counts[0] == Denoising(passes=4, commits=0, tokens=4)
    assert [block[4:] for _, (block,), _ in model.asked] == [[MASK] * 4] * 4, "what is behind the end stays masked"
    assert [t for _, _, (t,) in model.asked] == [1.0, 7 / 8, 6 / 8, 5 / 8]
    early = Writer([*LETTERS[:2], END, *LETTERS[3:5], END], [0.5, 0.5, 0.6, 0.5, 0.95, 0.99])
    events = list(diffuse([row()], early, Unmasking(block=8, steps=8, threshold=0.9)))
    assert tokens(events) == [*LETTERS[:2], END], "the first end counts, whichever was seen first"


def test_a_short_last_block_and_the_rule_of_length():
    model, counts = Writer(LETTERS, [0.5] * 8), [Denoising()]
    events = list(diffuse([row(max_new_tokens=6)], model, Unmasking(block=4, steps=4), counts))
    assert tokens(events) == LETTERS[:6]
    assert events[-1].finish == "length"
    assert counts[0] == Denoising(passes=6, commits=1, tokens=6)
    assert all(block[2:] == [MASK, MASK] for _, (block,), _ in model.asked[4:])
    published = Unmasking(block=4, steps=4, published=True)
    assert tokens(diffuse([row(max_new_tokens=6)], Writer(LETTERS, [0.5] * 8), published)) == LETTERS[:6]


def test_a_stop_string_across_two_blocks():
    model = Writer(LETTERS, [0.99] * 8)
    events = list(diffuse([row(stop=("de",))], model, Unmasking(block=4)))
    assert "".join(event.text for event in events) == "abc"
    assert events[-1].finish == "stop"
    assert tokens(events) == LETTERS[:5]
    assert model.read == [[0, *LETTERS[:4]]]


def budget(amount: int, **options) -> ReasoningBudget:
    end = TOKENIZER.encode("\n</think>\n", special=True)
    return ReasoningBudget(amount, end, lambda ids: TOKENIZER.decode(ids, special=True), **options)


END_OF_THOUGHT = TOKENIZER.encode("\n</think>\n", special=True)


@pytest.mark.parametrize("amount", [0, 1, 3, 4, 5])
def test_a_budget_closes_reasoning_where_it_stands_in_a_block(amount):
    """What is forced replaces what the block says there; the rest of the block is thrown away, and never read."""
    model = Writer([*LETTERS[:4], *LETTERS[:4], *LETTERS], [0.99] * 16)
    asked = row(max_new_tokens=12, budget=budget(amount, grace=0), sampling={"logprobs": 1})
    events = list(diffuse([asked], model, Unmasking(block=4)))
    said = tokens(events)
    assert said[: amount + len(END_OF_THOUGHT)] == [*(LETTERS[:4] * 2)[:amount], *END_OF_THOUGHT]
    assert len(said) == 12
    assert model.read[0] == [0, *said[: len(model.read[0]) - 1]]
    assert all((e.logprob is not None) or (e.token in END_OF_THOUGHT) for e in events)


def test_what_is_forced_may_be_what_the_block_says():
    text = [*LETTERS[:2], *END_OF_THOUGHT, *LETTERS]
    counts = [Denoising()]
    asked = row(max_new_tokens=12, eos=frozenset(), budget=budget(2, grace=0))
    said = tokens(diffuse([asked], Writer(text, [0.99] * 20), Unmasking(block=6), counts))
    assert said == text[:12]
    assert counts[0].passes == 2


# -- the context's judgement ---------------------------------------------------------------------------------


OPTIONS = [
    {"max_new_tokens": 1},
    {"max_new_tokens": 7, "sampling": {"logprobs": 2}},
    {"max_new_tokens": 40, "sampling": {"temperature": 0.8, "top_p": 0.9, "seed": 4}},
    {"max_new_tokens": 40, "sampling": {"repetition_penalty": 1.4, "logit_bias": {40: 5.0}}},
    {"max_new_tokens": 33, "sampling": {"temperature": 1.0, "frequency_penalty": 0.7, "seed": 9}},
    {"max_new_tokens": 24, "sampling": {"temperature": 0.5, "seed": 2}},
]


def asked() -> list[Row]:
    rows = [row(**dict(options)) for options in OPTIONS]
    rows[5].budget = budget(5, grace=1)
    return rows


@pytest.mark.parametrize("block", [1, 2, 5, 16])
@pytest.mark.parametrize("skill", [0.0, 1.0, 5.0])
def test_a_lossless_answer_is_the_plain_one_with_any_sampling(block, skill):
    """Token for token and with the same seeds; and just that has been read."""
    n = len(OPTIONS)
    plain = Fake(n)
    expected = by_row(generate(plain.start(), asked(), plain.step, plain.keep), n)
    model, counts = Fake(n, skill), [Denoising() for _ in range(n)]
    how = Unmasking(block=block, steps=4, threshold=0.6)
    found = by_row(diffuse_lossless(model.start(), asked(), model, how, counts), n)
    assert found == expected
    for events, read, count in zip(found, model.read, counts, strict=True):
        assert read == [0, *tokens(events)[:-1]]
        assert count.tokens == len(events)
        assert math.ceil((len(events) - 1) / block) <= count.commits <= len(events) - 1
        if block == 1:
            assert count.passes == 0
    drafts = [block for _, blocks, _ in model.asked for block in blocks]
    assert all(drafted[0] != MASK for drafted in drafts)


def test_a_denoiser_that_knows_the_context_saves_passes():
    class Knowing(Fake):
        def say(self, row, block, time):
            token, places = block[0], [torch.zeros(V)]
            for _ in block[1:]:
                places.append(self.p[row, token] * 50)
                token = int(places[-1].index_fill(0, torch.tensor(MASK), -math.inf).argmax())
            return torch.stack(places)

    model, counts = Knowing(1), [Denoising()]
    model.p[0, :, [MASK, END]] = -50
    events = list(diffuse_lossless(model.start(), [row(max_new_tokens=31)], model, Unmasking(block=6), counts))
    assert counts[0] == Denoising(passes=5, commits=5, tokens=31)
    assert len(events) == 31


# -- what cannot be ------------------------------------------------------------------------------------------


def test_bad_values_and_logits():
    for options, words in (
        ({"block": 0}, "block is 0"),
        ({"block": 5000}, "block is 5000; it must be a whole number from 1 to 1024"),
        ({"steps": 1.5}, r"steps is 1\.5"),
        ({"threshold": 2}, "threshold is 2"),
        ({"threshold": "high"}, "threshold is 'high'"),
        ({"threshold": float("nan")}, "threshold is nan"),
    ):
        with pytest.raises(ValueError, match=words):
            Unmasking(**options)

    class Broken(Fake):
        def say(self, *where):
            return super().say(*where) * float("nan")

    with pytest.raises(ValueError, match="no finite maximum"):
        list(diffuse([row()], Broken(1), Unmasking()))


def test_it_can_be_stopped_between_any_two_events():
    model = Fake(1)
    stream = diffuse([row(eos=frozenset())], model, Unmasking(block=4, threshold=0.3))
    said = [next(stream).token for _ in range(6)]
    stream.close()
    assert model.read[0] == [0, *said[:4]]
