"""The text world: dialogues are well formed, and their answers are right by an independent reckoning."""

import re

import pytest

from omni.data.text import CAPITALS, KINDS, MAX_ANSWER, OPPOSITES, sample_tale, sample_text

CASES = 150


def last_exchanges(kind, count=CASES):
    """Question, answer without its working, for the last exchange of many dialogues."""
    for seed in range(count):
        *_, user, assistant = sample_text(seed, kind)
        yield user["content"], assistant["content"].rpartition("</think>\n")[2]


def numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def test_dialogues_are_the_same_for_a_seed():
    assert sample_text(3) == sample_text(3)
    assert sample_tale(3) == sample_tale(3)
    assert len({str(sample_text(seed)) for seed in range(300)}) > 250
    assert len({sample_tale(seed) for seed in range(300)}) > 250


def test_roles_alternate_and_end_with_the_assistant():
    for seed in range(500):
        roles = [message["role"] for message in sample_text(seed)]
        if roles[0] == "system":
            roles = roles[1:]
        assert len(roles) >= 2
        assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_texts_are_short_printable_ascii():
    for seed in range(3000):
        for message in sample_text(seed):
            content = message["content"]
            assert content
            assert all(character == "\n" or " " <= character <= "~" for character in content)
            if message["role"] == "assistant":
                assert 0 < len(content.rpartition("</think>\n")[2]) <= MAX_ANSWER
            else:
                assert "<" not in content


def test_thinking_is_flagged_and_closed():
    thought = 0
    for seed in range(2000):
        *before, last = sample_text(seed)
        assert not any("thinking" in message or "<think>" in message["content"] for message in before)
        if "thinking" in last:
            thought += 1
            assert last["thinking"] is True
            assert re.fullmatch(r"<think>\n.+\n</think>\n.+", last["content"], re.DOTALL)
        else:
            assert "think>" not in last["content"]
    assert 0.07 < thought / 2000 < 0.13


def test_some_dialogues_are_long_and_some_open_with_a_system_message():
    openings = [sample_text(seed) for seed in range(2000)]
    assert 0.05 < sum(messages[0]["role"] == "system" for messages in openings) / 2000 < 0.15
    assert 0.2 < sum(len(messages) >= 4 for messages in openings) / 2000 < 0.5


@pytest.mark.parametrize(("kind", "reckon"), [("sum", lambda a, b: a + b), ("difference", lambda a, b: abs(a - b))])
def test_arithmetic(kind, reckon):
    for question, answer in last_exchanges(kind):
        assert int(answer) == reckon(*numbers(question))


def test_workings_of_sums_are_true():
    for kind in ("sum", "difference"):
        lines = [line for seed in range(CASES) for line in sample_text(seed, kind)[-1]["content"].split("\n")]
        lines = [line for line in lines if "=" in line]
        assert len(lines) > 20
        for line in lines:
            a, sign, b, _, result = line.split()
            assert int(a) + (int(b) if sign == "+" else -int(b)) == int(result)


def test_words_are_reversed_counted_and_written():
    for question, answer in last_exchanges("backwards"):
        assert answer[::-1] in question.split() or answer[::-1] in question.rstrip(".").split()
    for question, answer in last_exchanges("letter_count"):
        assert len(re.sub(r"[?.]", "", question).split()[-1]) == int(answer)
    for question, answer in last_exchanges("word_count"):
        assert len(question.split('"')[1].split()) == int(answer)
    for question, answer in last_exchanges("copy"):
        assert question.split('"')[1] == answer
    for question, answer in last_exchanges("letter_case"):
        assert answer.swapcase() in re.sub(r"[?.]", "", question).split()


def test_spelling():
    for question, answer in last_exchanges("spelling"):
        word = re.sub(r"[?.]", "", question).split()[-1]
        expected = word[0] if "first letter" in question else word[-1] if "last letter" in question else "-".join(word)
        assert answer == expected


def test_numbers_are_compared_and_sorted():
    for question, answer in last_exchanges("comparison"):
        a, b = numbers(question)
        if answer in ("Yes", "No"):
            assert (a > b) == ((answer == "Yes") == ("larger" in question))
        else:
            assert int(answer) == (max(a, b) if "larger" in question else min(a, b))
    for question, answer in last_exchanges("sorting"):
        assert numbers(answer) == sorted(numbers(question))
    for question, answer in last_exchanges("parity"):
        assert answer == ("even", "odd")[numbers(question)[0] % 2]


def test_what_was_told_is_remembered():
    for seed in range(CASES):
        messages = [message for message in sample_text(seed, "memory") if message["role"] != "system"]
        # What is remembered is the last word of the answer, and was told by the user before.
        told = messages[-1]["content"].rstrip(".").split()[-1]
        earlier = [message["content"] for message in messages[:-2] if message["role"] == "user"]
        assert any(re.search(rf"(?<!\w){re.escape(told)}\.?$", text) for text in earlier)
        assert told not in messages[-2]["content"]


def test_answers_about_a_tale_stand_in_it_or_follow_from_it():
    known = {"Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"}
    known |= {country for country, _ in CAPITALS}
    for question, answer in last_exchanges("reading", 400):
        if "more. How many" in question:
            assert int(answer) == sum(numbers(question))
        else:
            assert answer.lower() in question.lower() or answer in known
        if owned := re.search(r"Who has the (\w+)\?", question):
            assert re.search(rf"{answer} has \d+ {owned[1]}\.", question)
        if shown := re.search(r"What color is the (\w+)\?", question):
            assert f" {answer} {shown[1]}" in question


def test_opposites_and_capitals_are_unambiguous():
    for pairs in (OPPOSITES, CAPITALS):
        entries = [word for pair in pairs for word in pair]
        assert len(entries) == len(set(entries))
    assert len(CAPITALS) >= 30


def test_tales_are_one_to_three_sentences():
    lengths = [sample_tale(seed).count(".") for seed in range(300)]
    assert set(lengths) == {1, 2, 3}
    assert all(sample_tale(seed).isascii() for seed in range(300))


def test_sums_in_tales_are_true():
    seen = 0
    for seed in range(600):
        values = numbers(sample_tale(seed))
        if "Together they are" in sample_tale(seed):
            assert values[-1] == values[0] + values[1]
        elif "Now" in sample_tale(seed):
            assert values[2] == values[0] + values[1]
        else:
            continue
        seen += 1
    assert seen > 30


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_has_one_answer_only(kind):
    answers = [answer for _, answer in last_exchanges(kind, 60)]
    assert len(set(answers)) > 1


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="seed is -1"):
        sample_text(-1)
    with pytest.raises(ValueError, match="seed is -2"):
        sample_tale(-2)
    with pytest.raises(ValueError, match="kind is 'poem'"):
        sample_text(0, "poem")
