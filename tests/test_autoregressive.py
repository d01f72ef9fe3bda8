"""The next-token loop over a fake model: rows, ends, stop strings, budget; and over a small random one."""

import itertools
import random

import pytest
import torch

from omni.decoders.autoregressive import Event, Row, StopText, generate, overlap, prefill, spans
from omni.decoders.budget import ReasoningBudget
from omni.decoders.sampling import SamplingParams
from omni.tokenizers.text import ByteTokenizer, StreamDecoder

TOKENIZER = ByteTokenizer()
END = 11


def row(**options) -> Row:
    options = {"max_new_tokens": 50, "eos": frozenset([END]), **options}
    return Row(SamplingParams(temperature=0, seed=0), StreamDecoder(TOKENIZER, special=True), **options)


class Script:
    """A model that says given ids, row by row; it records what it is fed and which rows are dropped."""

    def __init__(self, *said: list[int]) -> None:
        self.said = [list(ids) for ids in said]
        self.fed: list[list[int]] = [[] for _ in said]
        self.alive = list(range(len(said)))
        self.drops: list[list[int]] = []

    def logits(self) -> torch.Tensor:
        out = torch.zeros(len(self.alive), 320)
        for i, r in enumerate(self.alive):
            out[i, self.said[r].pop(0) if self.said[r] else 32 + ord(".")] = 9.0
        return out

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        for r, token in zip(self.alive, tokens.tolist(), strict=True):
            self.fed[r].append(token)
        return self.logits()

    def keep(self, rows: torch.Tensor) -> None:
        self.drops.append(rows.tolist())
        self.alive = [self.alive[i] for i in rows.tolist()]

    def run(self, rows: list[Row]) -> list[Event]:
        return list(generate(self.logits(), rows, self.step, self.keep))


def text_of(events: list[Event], row: int) -> str:
    return "".join(e.text for e in events if e.row == row)


def finish_of(events: list[Event], row: int) -> list[str]:
    return [e.finish for e in events if e.row == row and e.finish]


# -- the loop --------------------------------------------------------------------------------------------


def test_rows_end_one_by_one():
    model = Script([*TOKENIZER.encode("one"), END], [*TOKENIZER.encode("eleven"), END], TOKENIZER.encode("no end"))
    events = model.run([row(), row(), row(max_new_tokens=8)])
    assert [text_of(events, r) for r in range(3)] == ["one", "eleven", "no end.."]
    assert [finish_of(events, r) for r in range(3)] == [["stop"], ["stop"], ["length"]]
    assert model.drops == [[1, 2], [1]]
    assert TOKENIZER.decode(model.fed[0]) == "one"  # an end token is not fed
    assert TOKENIZER.decode(model.fed[2]) == "no end."  # nor is the last token
    assert [e.token for e in events if e.row == 0][-1] == END


def test_one_token_needs_no_step():
    model = Script([END])
    assert [e.finish for e in model.run([row()])] == ["stop"]
    assert model.fed == [[]]


def test_characters_come_whole():
    model = Script([*TOKENIZER.encode("aé🙂"), END])
    pieces = [e.text for e in model.run([row()])]
    assert pieces == ["a", "", "é", "", "", "", "🙂", ""]
    cut = Script(TOKENIZER.encode("🙂"))
    events = cut.run([row(max_new_tokens=2)])
    assert (text_of(events, 0), finish_of(events, 0)) == ("\ufffd", ["length"])


def test_stop_strings_across_tokens():
    model = Script(TOKENIZER.encode("stand STOP and more"), TOKENIZER.encode("STOSTOP"), [*TOKENIZER.encode("ST"), END])
    events = model.run([row(stop=("STOP", "zzz")) for _ in range(3)])
    assert [text_of(events, r) for r in range(3)] == ["stand ", "STO", "ST"]
    assert [finish_of(events, r) for r in range(3)] == [["stop"]] * 3


def test_stop_text_is_the_same_for_every_cut():
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choice("ab|") for _ in range(12))
        stops = ["".join(rng.choice("ab|") for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(1, 3))]
        outcomes = set()
        for size in (1, 2, 5, 12):
            guard = StopText(stops)
            out = "".join(guard.push(text[i : i + size]) for i in range(0, len(text), size)) + guard.flush()
            outcomes.add((out, guard.stopped))
        assert len(outcomes) == 1, (text, stops, outcomes)
        out, stopped = outcomes.pop()
        assert text.startswith(out)
        assert stopped == any(stop in text for stop in stops)


def test_overlap():
    assert [overlap(t, "</think>") for t in ("a<", "a</thi", "</think>", "", "<</")] == [1, 5, 0, 0, 2]


def test_closing_stops_the_model():
    model = Script(TOKENIZER.encode("long text"))
    events = generate(model.logits(), [row()], model.step, model.keep)
    assert "".join(e.text for e in itertools.islice(events, 4)) == "long"
    events.close()
    assert TOKENIZER.decode(model.fed[0]) == "lon"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"stop": ("",)}, "1 to 1024"),
        ({"stop": ("x" * 1025,)}, "1 to 1024"),
        ({"stop": ("x",) * 65}, "65 stop strings"),
        ({"stop": (3,)}, "1 to 1024"),
    ],
)
def test_limits_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        row(**options)


# -- prompts ---------------------------------------------------------------------------------------------


def test_spans_keep_images_whole():
    assert spans(10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert spans(8, 4) == [(0, 4), (4, 8)]
    assert spans(10, 4, [(3, 6)]) == [(0, 3), (3, 7), (7, 10)]
    assert spans(12, 4, [(1, 9)]) == [(0, 1), (1, 9), (9, 12)]
    assert spans(9, 4, [(0, 9)]) == [(0, 9)]
    rng = random.Random(2)
    for _ in range(200):
        n, chunk = rng.randint(1, 40), rng.randint(1, 12)
        edges = sorted(rng.sample(range(n + 1), min(4, n + 1) // 2 * 2))
        whole = list(zip(edges[::2], edges[1::2], strict=True))
        cut = spans(n, chunk, whole)
        assert [i for a, b in cut for i in range(a, b)] == list(range(n))
        assert not any(start < border < stop for border, _ in cut for start, stop in whole)
    with pytest.raises(ValueError, match="0 tokens"):
        spans(0, 4)


def test_prefill_reads_in_order_and_tells():
    heard, read = [], []

    def reader(chunk: str) -> torch.Tensor:
        read.append(chunk)
        return torch.full((1, 2), float(len(read)))

    logits = prefill(["a", "b", "c"], reader, lambda done, of: heard.append((done, of)))
    assert (read, heard, logits.tolist()) == (["a", "b", "c"], [(1, 3), (2, 3), (3, 3)], [[3.0, 3.0]])


# -- reasoning budget ------------------------------------------------------------------------------------


def budget(amount: int, end: str = "</think>", **options) -> ReasoningBudget:
    ids = TOKENIZER.encode(end, special=True)
    return ReasoningBudget(amount, ids, lambda tail: TOKENIZER.decode(tail, special=True), **options)


def think(said: str, control: ReasoningBudget, tokens: int = 60, special: bool = True) -> str:
    events = Script(TOKENIZER.encode(said, special=special)).run([row(budget=control, max_new_tokens=tokens)])
    return text_of(events, 0)


def test_budget_closes_at_a_line_end():
    assert think("12345\n789\nabcdef" + "x" * 40, budget(7, grace=20)).startswith("12345\n789\n</think>")


def test_budget_closes_after_the_grace():
    text = think("x" * 60, budget(10, grace=5), tokens=30)
    assert text.startswith("x" * 15 + "</think>")
    assert text.count("</think>") == 1
    assert think("x" * 60, budget(20), tokens=40).startswith("x" * 22 + "</think>")  # grace: a tenth


def test_budget_of_zero_closes_at_once():
    assert think("abc", budget(0)).startswith("</think>abc"[:8])


def test_short_reasoning_is_left_alone():
    said = "ab\n</think>answer that is much longer than the budget was"
    assert think(said, budget(6, grace=0)).startswith(said)
    assert think("ab<tool_call>" + "y" * 40, budget(6, grace=0)).startswith("ab<tool_call>" + "y" * 40)


def test_forced_end_is_whole_and_continues_what_was_begun():
    """Ends of many tokens, as where ``</think>`` is plain text; the script goes on unmoved behind the forced part."""
    control = budget(3, end="\nTime is up.\n", grace=2)
    assert think("abcdefgh", control, tokens=20).startswith("abcde\nTime is up.\n")
    begun = ReasoningBudget(6, TOKENIZER.encode("</think>"), lambda t: TOKENIZER.decode(t, special=True), grace=0)
    text = think("ab </thinking", begun, special=False, tokens=14)
    assert text.startswith("ab </think>")
    assert text.count("</") == 1


def test_budget_waits_for_the_model_to_think():
    control = budget(4, opened=False, grace=0)
    text = think("hello <think>abcdefgh", control, tokens=30)
    assert text.startswith("hello <think>abcd</think>")


def test_budget_limits():
    with pytest.raises(ValueError, match="budget is -1"):
        budget(-1)
    with pytest.raises(ValueError, match="grace is -2"):
        budget(1, grace=-2)
    with pytest.raises(ValueError, match="no tokens"):
        budget(1, end="")
