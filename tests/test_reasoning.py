"""The reasoning world: the same for a seed, right by an independent reckoning, and never shared with held-out seeds."""

import ast
import contextlib
import io
import re
from itertools import pairwise

import pytest
import torch

from omni.data import HELD_OUT_SEEDS, TRAIN_SEEDS
from omni.data.reasoning import KINDS, LEVELS, MAX_LENGTH, Problem, check, sample_problem, sample_reasoning
from omni.data.reasoning_batches import reason_batch
from omni.losses import IGNORED
from omni.tokenizers.bytes import ByteTokenizer

CASES = 25


class Words:
    """What batches need of an encoding."""

    tokenizer = ByteTokenizer()
    special, encode_chat = tokenizer.special, staticmethod(tokenizer.encode_chat)


def problems(kind: str, count: int = CASES, first: int = 0) -> list[Problem]:
    return [sample_problem(first + i, kind, level) for level in LEVELS for i in range(count)]


# -- answers by another reckoning --------------------------------------------------------------------------------------


def computed(question: str) -> str:
    """Of an expression, or a program, by Python itself."""
    if "print(" in question:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(question, {})
        return out.getvalue().strip()
    return str(eval(re.search(r"[\d(][\d()+*-]*", question)[0]))


def in_order(question: str) -> str:
    items = question.rstrip(".").removeprefix("Sort ").removeprefix("Put in order: ").split()
    return " ".join(sorted(items, key=lambda item: int(item) if item.isdigit() else item))


def edited(question: str) -> str:
    word, *rules = question.removeprefix("Take ").rstrip(".").split(", ")
    letters = list(word)
    for rule in rules:
        match rule.split():
            case ["delete", old]:
                letters.remove(old)
            case ["replace", old, "by", new]:
                letters[letters.index(old)] = new
            case ["insert", new, "after", old]:
                letters.insert(letters.index(old) + 1, new)
            case ["reverse"]:
                letters.reverse()
            case _:
                raise AssertionError(rule)
    return "".join(letters)


def looked_up(question: str) -> str:
    heads, *rows, asked = question.split("\n")
    table = [dict(zip(heads.split(), row.split(), strict=True)) for row in rows]
    if found := re.fullmatch(r"(\w+) of (\w+)\?", asked):
        return next(row[found[1]] for row in table if row["name"] == found[2])
    how, head = asked.rstrip("?").split()
    if how == "total":
        return str(sum(int(row[head]) for row in table))
    values = sorted(int(row[head]) for row in table)
    assert how == "largest"
    assert values[-1] > values[-2]
    return max(table, key=lambda row: int(row[head]))["name"]


RECKONED = {
    **dict.fromkeys(("sum", "difference", "product", "brackets", "program"), computed),
    **dict.fromkeys(("sort_numbers", "sort_words"), in_order),
    "edit": edited,
    **dict.fromkeys(("lookup", "largest", "total"), looked_up),
}


def test_every_kind_is_reckoned():
    assert RECKONED.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [0, TRAIN_SEEDS.start])
def test_answers_are_right(kind, first):
    for problem in problems(kind, first=first):
        assert problem.answer == RECKONED[kind](problem.question), problem


@pytest.mark.parametrize("kind", KINDS)
def test_every_equation_of_a_working_holds(kind):
    """``7+5=12`` wherever it stands, also where it goes on: ``4*7=28+4=32``."""
    for problem in problems(kind):
        for chain in re.findall(r"\d+[-+*][-+*\d]*=[-+*=\d]+", problem.working):
            for part, following in pairwise(chain.split("=")):
                assert eval(part) == int(re.match(r"\d+", following)[0]), problem
        assert kind not in ("sum", "difference", "product") or problem.working.count("=") >= len(problem.answer) - 1


def test_brackets_keep_their_value_from_line_to_line():
    for problem in problems("brackets"):
        left = [eval(line.split(" ")[1]) for line in problem.working.split("\n")]
        assert {str(value) for value in left} == {problem.answer}
        assert all(len(a) > len(b) for a, b in pairwise(line.split(" ")[1] for line in problem.working.split("\n")))


def test_a_program_ends_in_the_state_that_its_working_tells():
    for problem in problems("program"):
        names: dict[str, int] = {}
        exec(problem.question.rpartition("\n")[0], names)
        told = dict(pair.split("=") for pair in problem.working.split("\n")[-1].split(" ")[-2:])
        assert told == {name: str(names[name]) for name in told}
        assert ast.parse(problem.question)


def test_a_sum_is_found_column_by_column():
    for problem in problems("sum"):
        found = [line.split(" ")[1] for line in problem.working.split("\n")]
        assert found[-1] == problem.answer
        assert all(problem.answer.endswith(digits) for digits in found[:-1])


# -- shape -------------------------------------------------------------------------------------------------------------


def test_problems_are_the_same_for_a_seed_and_differ_between_seeds():
    assert [sample_problem(s) for s in range(30)] == [sample_problem(s) for s in range(30)]
    assert len({sample_problem(s).question for s in range(200)}) > 150
    assert {sample_problem(s).kind for s in range(200)} == set(KINDS)
    assert {sample_problem(s).level for s in range(50)} == set(LEVELS)


@pytest.mark.parametrize("kind", KINDS)
def test_problems_are_short_plain_text_and_grow_with_the_level(kind):
    lengths = []
    for level in LEVELS:
        some = [sample_problem(s, kind, level) for s in range(CASES)]
        texts = [p.question + p.working + p.answer for p in some]
        assert all(text.isascii() and len(text) <= MAX_LENGTH for text in texts)
        assert all(p.answer and p.working and "\n" not in p.answer for p in some)
        lengths.append(sum(map(len, texts)))
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_held_out_is_ever_trained(kind):
    level = 1  # the fewest problems, so that they would meet
    held_out = {sample_problem(s, kind, level).working for s in range(150)}
    trained = {sample_problem(TRAIN_SEEDS.start + s, kind, level).working for s in range(150)}
    assert not held_out & trained
    assert sample_problem(HELD_OUT_SEEDS[-1], kind).working not in trained


def test_messages_think_and_then_answer():
    problem = sample_problem(7)
    user, assistant = sample_reasoning(7)
    assert user == {"role": "user", "content": problem.question}
    assert assistant["content"] == f"<think>\n{problem.working}\n</think>\n{problem.answer}"
    assert assistant["thinking"] is True


@pytest.mark.parametrize(
    ("arguments", "named"), [((-1,), "seed"), ((0, "poem"), "kind"), ((0, None, 4), "level"), ((0, "sum", 0), "level")]
)
def test_what_cannot_be_drawn_is_refused(arguments, named):
    with pytest.raises(ValueError, match=f"{named} is .*must"):
        sample_problem(*arguments)


# -- verdicts ----------------------------------------------------------------------------------------------------------


def test_a_verdict_tells_answers_workings_and_their_first_wrong_line_apart():
    problem = sample_problem(0, "sum", 3)
    lines = problem.working.split("\n")
    assert check(problem, f" {problem.answer}\n", problem.working + "\n") == check(
        problem, problem.answer, problem.working
    )
    right = check(problem, problem.answer, problem.working)
    assert right.answer
    assert right.working
    assert right.lines == 1
    wrong = check(problem, problem.answer + "0", "\n".join([lines[0], "?", *lines[2:]]))
    assert not wrong.answer
    assert not wrong.working
    assert wrong.lines == 1 / len(lines)
    assert check(problem, problem.answer, "").lines == 0
    more = check(problem, problem.answer, problem.working + "\n1+1=2 2")
    assert more.answer
    assert not more.working
    assert more.lines == 1


# -- batches -----------------------------------------------------------------------------------------------------------


def test_batches_hold_whole_problems_and_learn_workings_and_answers_only():
    batch = reason_batch(3, 4, 300, Words)
    again = reason_batch(3, 4, 300, Words)
    assert torch.equal(batch.input_ids, again.input_ids)
    assert not torch.equal(batch.input_ids, reason_batch(4, 4, 300, Words).input_ids)
    padding = batch.input_ids == Words.special["pad"]
    assert padding.float().mean() < 0.2
    for ids, labels, segments in zip(batch.input_ids, batch.labels, batch.segments, strict=True):
        for number in segments.unique()[:-1]:
            own = segments == number
            text = Words.tokenizer.decode(ids[own].tolist(), special=True)
            said = Words.tokenizer.decode(labels[own & (labels != IGNORED)].tolist(), special=True)
            assert text.startswith("<|im_start|>user\n")
            assert text.endswith(f"<think>{said}\n")
            assert said.endswith("<|im_end|>")
            assert "\n</think>\n" in said
    assert torch.equal(batch.labels[padding], torch.full_like(batch.labels[padding], IGNORED))


def test_batches_weigh_kinds_and_levels():
    batch = reason_batch(0, 2, 256, Words, kinds={"sum": 1.0}, levels={1: 1.0})
    text = Words.tokenizer.decode(batch.input_ids[0].tolist())
    asked = re.findall(r"user\n(.*)", text)
    assert asked
    assert all(re.search(r"\d+\+\d+", question) for question in asked)
    with pytest.raises(ValueError, match="must be one of"):
        reason_batch(0, 2, 256, Words, kinds={"poem": 1.0})
    with pytest.raises(ValueError, match=r"takes \d+ tokens; the rows have 8"):
        reason_batch(0, 2, 8, Words)
