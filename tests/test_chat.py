"""Chat: answers taken apart, batches, streams, reuse of the cache; and the terminal."""

import io
import itertools
import random
import re

import pytest
import torch
from micro import micro_model
from PIL import Image
from rich.console import Console

from omni.pipelines.chat import Chat, Reply
from omni.pipelines.replies import Part, ReplyParser, parse_calls
from omni.pipelines.terminal import talk
from omni.tokenizers.text import ByteTokenizer

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "now": {"type": ["boolean", "null"]},
                }
            },
        },
    }
]
CALL = (
    "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
    "</function>\n</tool_call>"
)
HELLO = [{"role": "user", "content": "Hello there"}]


# -- taking answers apart --------------------------------------------------------------------------------


def take_apart(pieces: list[str], opened: bool = False, tools: list | None = None) -> tuple[str, str, list]:
    parser = ReplyParser(opened, tools)
    parts = [part for piece in pieces for part in parser.feed(piece)] + parser.finish()
    assert Part() not in parts
    calls = [(c.name, c.arguments) for p in parts for c in p.tool_calls]
    return "".join(p.text for p in parts), "".join(p.reasoning for p in parts), calls


ROME = ("weather", '{"city": "Rome", "days": 2}')
F_OF_1 = ("f", '{"x": 1}')
ANSWERS = [
    ("plain", False, ("plain", "", [])),
    ("  kept \n", False, ("  kept \n", "", [])),
    ("hm\n</think>\nyes", True, ("yes", "hm", [])),
    ("\nhm\n\n</think>\n\nyes\n", True, ("yes\n", "hm", [])),
    ("never closed ", True, ("", "never closed", [])),
    ("<think>\nhm\n</think>yes", False, ("yes", "hm", [])),
    ("\n<think>hm</think>yes", False, ("yes", "hm", [])),
    ("</think>\nyes", False, ("yes", "", [])),
    ("a </think> b <think> c", False, ("a </think> b <think> c", "", [])),
    (CALL, False, ("", "", [ROME])),
    (f"hm\n{CALL}", True, ("", "hm", [ROME])),
    (f"hm</think>Let me see.\n{CALL}\n{CALL}\n", True, ("Let me see.", "hm", [ROME, ROME])),
    (
        '<TOOLCALL>[{"name": "f", "arguments": {"x": 1}}, {"name": "g"}]</TOOLCALL>',
        False,
        ("", "", [F_OF_1, ("g", "{}")]),
    ),
    (
        '<tool_call>\n{"name": "f", "arguments": "{\\"x\\": 1}"}\n</tool_call> ok',
        False,
        (" ok", "", [F_OF_1]),
    ),
    ("see <tool_call>broken</tool_call> ok", False, ("see <tool_call>broken</tool_call> ok", "", [])),
    ("hm<tool_call>[1]</tool_call>", True, ("<tool_call>[1]</tool_call>", "hm", [])),
    (f"x {CALL[:60]}", False, (f"x {CALL[:60]}", "", [])),
    ("<tool_call>\n<function=f>\n<parameter=a>\n1\n</tool_call>", False, ("", "", [("f", '{"a": "1"}')])),
    ("less < than <think", False, ("less < than <think", "", [])),
]


@pytest.mark.parametrize(("answer", "opened", "expected"), ANSWERS)
def test_answers_come_apart_the_same_for_every_cut(answer, opened, expected):
    assert take_apart([answer], opened, TOOLS) == expected
    assert take_apart(list(answer), opened, TOOLS) == expected
    for cut in range(1, len(answer)):
        assert take_apart([answer[:cut], answer[cut:]], opened, TOOLS) == expected, cut
    for a, b in itertools.combinations(range(1, min(len(answer), 40)), 2):
        assert take_apart([answer[:a], answer[a:b], answer[b:]], opened, TOOLS) == expected, (a, b)


def test_random_answers_do_not_depend_on_cuts():
    rng = random.Random(0)
    pool = [
        "<think>",
        "</think>",
        CALL,
        "<tool_call>",
        "</tool_call>",
        "<TOOLCALL>[",
        "]</TOOLCALL>",
        "\n",
        " ",
        "a",
        "<",
    ]
    for _ in range(300):
        answer = "".join(rng.choice(pool) for _ in range(rng.randrange(10)))
        for opened, tools in itertools.product((True, False), (TOOLS, None)):
            whole = take_apart([answer], opened, tools)
            assert take_apart(list(answer), opened, tools) == whole
            cuts = sorted(rng.sample(range(len(answer) + 1), min(3, len(answer) + 1)))
            pieces = [answer[a:b] for a, b in itertools.pairwise([0, *cuts, len(answer)])]
            assert take_apart(pieces, opened, tools) == whole


def test_without_tools_a_call_is_text():
    assert take_apart([f"so: {CALL}"]) == (f"so: {CALL}", "", [])
    assert take_apart([f"hm {CALL}"], opened=True) == (CALL, "hm", [])


def test_values_take_the_schemas_types():
    schemas = {"weather": TOOLS[0]["function"]["parameters"]["properties"]}

    def arguments(**given: str) -> dict:
        body = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in given.items())
        return parse_calls(f"<function=weather>\n{body}</function>", schemas)[0][1]

    assert arguments(city="12", days="12", now="True") == {"city": "12", "days": 12, "now": True}
    assert arguments(days="many", now="null", other="3") == {"days": "many", "now": None, "other": "3"}
    assert arguments(days="NaN") == {"days": "NaN"}
    assert arguments(city="a\n</parameter> b\n") == {"city": "a\n</parameter> b\n"}
    assert arguments(city="if a </function> b") == {"city": "if a </function> b"}


def test_a_reply_is_a_message():
    call = ReplyParser(tools=TOOLS).feed(CALL)[0].tool_calls
    message = Reply("text", "why", call).as_message()
    ids = ByteTokenizer().encode_chat([*HELLO, message], add_generation_prompt=False)
    assert "why\n</think>\ntext\n<tool_call>" in ByteTokenizer().decode(ids, special=True)


# -- the model -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return micro_model()


@pytest.fixture
def chat(model):
    return Chat(model)


def scripted(monkeypatch, model, said: str) -> None:
    """The model reads as ever, and says ``said``, then the end token."""
    ids = iter([*model.tokenizer.encode(said, special=True), 11])
    real = model.logits

    def logits(inputs, cache=None, last_only=False):
        out = torch.zeros_like(real(inputs, cache, last_only))
        out[..., next(ids)] = 9.0
        return out

    monkeypatch.setattr(model, "logits", logits)


def picture(seed: int, width: int = 32, height: int = 32) -> Image.Image:
    rng = random.Random(seed)
    return Image.frombytes("RGB", (width, height), rng.randbytes(3 * width * height))


def ask_picture(seed: int, text: str) -> dict:
    return {"role": "user", "content": [{"type": "image", "image": picture(seed)}, {"type": "text", "text": text}]}


def conversations() -> list[list[dict]]:
    pictures = [{"type": "image", "image": picture(i, 16 * (i + 1))} for i in range(2)]
    return [
        [{"role": "user", "content": "Hi"}],
        [{"role": "user", "content": [pictures[0], {"type": "text", "text": "What is it? " * 3}]}],
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [*pictures, {"type": "text", "text": "?"}]},
        ],
    ]


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.0, "top_p": 0.9, "seed": 5}])
def test_rows_of_a_batch_equal_single_rows(model, sampling):
    options = {"max_new_tokens": 12, "logprobs": 2, **sampling}
    together = Chat(model, chunk=7)(conversations(), **options)
    alone = [Chat(model)(one, **options) for one in conversations()]
    for a, b in zip(together, alone, strict=True):
        assert [t.id for t in a.logprobs] == [t.id for t in b.logprobs]
        assert [t.logprob for t in a.logprobs] == pytest.approx([t.logprob for t in b.logprobs], abs=1e-4)
        assert (a.text, a.usage, a.finish_reason) == (b.text, b.usage, b.finish_reason)


def test_reading_in_chunks_changes_nothing(model):
    for conversation in conversations():
        whole, *pieces = (Chat(model, chunk=c)(conversation, max_new_tokens=6, logprobs=0) for c in (4096, 64, 5, 1))
        for one in pieces:
            assert [t.id for t in one.logprobs] == [t.id for t in whole.logprobs]
            assert [t.logprob for t in one.logprobs] == pytest.approx([t.logprob for t in whole.logprobs], abs=1e-4)


def test_stream_adds_up_to_the_reply(model, chat):
    options = {"max_new_tokens": 20, "temperature": 1.0, "seed": 1, "logprobs": 1}
    whole = chat(HELLO, **options)
    deltas = list(Chat(model)(HELLO, stream=True, **options))
    assert "".join(d.text for d in deltas) == whole.text
    assert tuple(p for d in deltas for p in d.logprobs) == whole.logprobs
    assert [d.finish_reason for d in deltas if d.finish_reason] == [whole.finish_reason]
    assert deltas[-1].usage == whole.usage
    assert whole.tokens == len(whole.logprobs) <= 20


def test_seeds(chat):
    def texts(seed):
        return [r.text for r in chat([HELLO, HELLO], max_new_tokens=16, temperature=1.0, seed=seed)]

    assert texts(3)[0] == texts(3)[1] == texts([3, 4])[0]
    assert texts([3, 4])[1] == texts(4)[0] != texts(3)[0]


def test_rows_end_on_their_own(monkeypatch, model, chat):
    """Batch rows with different ends: the batch shrinks, the rest stays what it was."""
    free = chat(conversations(), max_new_tokens=12, logprobs=0)
    stops = [r.text[2:4] for r in free if len(r.text) > 5]
    assert stops
    cut = chat(conversations(), max_new_tokens=12, stop=stops[:1])
    assert any(c.finish_reason == "stop" and c.tokens < f.tokens for c, f in zip(cut, free, strict=True))
    for one, other in zip(cut, free, strict=True):
        assert other.text.startswith(one.text)


def test_reasoning_and_tools(monkeypatch, model, chat):
    scripted(monkeypatch, model, f"So.\n</think>\nLooking.\n{CALL}")
    reply = chat(HELLO, thinking=True, tools=TOOLS)
    assert (reply.reasoning, reply.text, reply.finish_reason) == ("So.", "Looking.", "tool_calls")
    assert [(c.id, c.name, c.arguments) for c in reply.tool_calls] == [("call_1", *ROME)]


def test_budget_closes_reasoning(monkeypatch, model, chat):
    scripted(monkeypatch, model, "aaaa\nbbbb\ncccccccccccccccc" + "d" * 40)
    reply = chat(HELLO, budget=7, grace=10, max_new_tokens=40)
    assert reply.reasoning == "aaaa\nbbbb"
    assert reply.text.startswith("cccc") or reply.text.startswith("d")


def test_stop_strings_are_not_part_of_it(monkeypatch, model, chat):
    scripted(monkeypatch, model, "one two STOP three")
    reply = chat(HELLO, stop="STOP")
    assert (reply.text, reply.finish_reason) == ("one two ", "stop")


def test_the_cache_is_reused_across_turns(monkeypatch, model):
    chat, fresh = Chat(model), Chat(model)
    turns = [ask_picture(3, "What?")]
    with monkeypatch.context() as patch:
        scripted(patch, model, "A square.")
        first = chat(turns)
    assert first.usage.reused_tokens == 0
    turns += [first.as_message(), ask_picture(4, "And this?")]
    options = {"max_new_tokens": 8, "logprobs": 0}
    second, expected = chat(turns, **options), fresh(turns, **options)
    assert second.usage.reused_tokens == first.usage.prompt_tokens + first.tokens - 1
    assert expected.usage.reused_tokens == 0
    assert [t.id for t in second.logprobs] == [t.id for t in expected.logprobs]
    assert [t.logprob for t in second.logprobs] == pytest.approx([t.logprob for t in expected.logprobs], abs=1e-4)


def test_the_cache_is_not_reused_for_another_picture(monkeypatch, model):
    chat = Chat(model)

    def ask(seed: int, more: list) -> list[dict]:
        return [ask_picture(seed, "?"), *more]

    with monkeypatch.context() as patch:
        scripted(patch, model, "Yes.")
        first = chat(ask(1, []))
    more = [first.as_message(), {"role": "user", "content": "Sure?"}]
    assert chat(ask(2, more), max_new_tokens=2).usage.reused_tokens == 0
    assert chat(HELLO, max_new_tokens=2).usage.reused_tokens == 0


def test_a_stopped_stream_can_be_continued(model):
    chat = Chat(model)
    stream = chat(HELLO, stream=True, temperature=1.0, seed=2, max_new_tokens=30)
    text = "".join(d.text for d in itertools.islice(stream, 5))
    stream.close()
    turns = [*HELLO, {"role": "assistant", "content": text}, {"role": "user", "content": "Go on"}]
    options = {"max_new_tokens": 5, "temperature": 0, "logprobs": 0}
    assert [t.id for t in chat(turns, **options).logprobs] == [t.id for t in Chat(model)(turns, **options).logprobs]


@pytest.mark.parametrize(
    ("messages", "options", "said"),
    [
        ([], {}, "at least one message"),
        (HELLO, {"max_new_tokens": 0}, "max_new_tokens is 0"),
        (HELLO, {"max_new_tokens": 1 << 40}, "room for 1 to"),
        ([{"role": "user", "content": "x" * 2000}], {}, "1024"),
        (HELLO, {"temperature": -1}, "temperature"),
        (HELLO, {"stop": [""]}, "stop string"),
        (HELLO, {"budget": -1}, "budget"),
        ([HELLO, HELLO], {"seed": [1]}, "1 seeds for 2"),
        (HELLO, {"tools": [{"type": "function"}]}, "function with a name"),
    ],
)
def test_bad_requests_are_named(chat, messages, options, said):
    for stream in (False, True):
        with pytest.raises(ValueError, match=said):
            chat(messages, stream=stream, **options)


def test_unknown_options_are_named(chat):
    with pytest.raises(TypeError, match="temprature"):
        chat(HELLO, temprature=1.0)


def test_a_chat_needs_a_tokenizer():
    model = micro_model()
    model.tokenizer = None
    with pytest.raises(ValueError, match="tokenizer"):
        Chat(model)


# -- the terminal ----------------------------------------------------------------------------------------


def run_terminal(chat: Chat, typed: str, is_terminal: bool = False, **options) -> str:
    out = io.StringIO()
    talk(chat, source=io.StringIO(typed), console=Console(file=out, force_terminal=is_terminal, width=80), **options)
    return out.getvalue()


def test_terminal_in_a_pipe_prints_answers_alone(monkeypatch, model, chat, capsys):
    scripted(monkeypatch, model, "One [bold]answer[/].")
    assert run_terminal(chat, "Hello\n") == "One [bold]answer[/].\n"
    assert capsys.readouterr().err == ""


def test_terminal_commands(monkeypatch, model, chat, tmp_path, capsys):
    picture(0).save(tmp_path / "a.png")
    seen = []

    def answer(turns, stream, **options):
        seen.append((turns, options))
        return iter(())

    lines = [
        "/image",
        f"/image {tmp_path / 'a.png'}",
        "/think",
        "look \\",
        "here",
        "/nonsense",
        "/reset",
        "again",
        "/exit",
        "no",
    ]
    monkeypatch.setattr(Chat, "__call__", lambda self, turns, **options: _deltas(answer(turns, **options)))
    run_terminal(chat, "\n".join(lines))
    (first, options), (second, _) = seen
    assert [p["type"] for p in first[-1]["content"]] == ["image", "text"]
    assert first[-1]["content"][1]["text"] == "look \nhere"
    assert options == {"thinking": True}
    assert second == [{"role": "user", "content": "again"}]
    notes = capsys.readouterr().err
    assert all(word in notes for word in ("needs the path", "32x32", "thinking is on", "/nonsense", "started over"))


def _deltas(_):
    from omni.pipelines.chat import Delta

    return iter([Delta(text="ok"), Delta(finish_reason="stop")])


def test_terminal_survives_bad_input(chat, tmp_path, capsys):
    run_terminal(chat, f"/image {tmp_path / 'missing.png'}\n{'x' * 3000}\n")
    notes = capsys.readouterr().err
    assert "missing.png" in notes
    assert "room for" in notes


def test_terminal_shows_reasoning(monkeypatch, model, chat):
    scripted(monkeypatch, model, "Why.\n</think>\nYes.")
    text = run_terminal(chat, "Hello\n/help\n", is_terminal=True, thinking=True)
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert text.index("Why.") < text.index("Yes.") < text.index("/reset")


def test_terminal_answers_cannot_steer_the_terminal(monkeypatch, model, chat):
    for is_terminal, shown in ((True, "a\ufffd]0;title\ufffdb"), (False, "a\x1b]0;title\x07b")):
        with monkeypatch.context() as patch:
            scripted(patch, model, "a\x1b]0;title\x07b")
            assert shown in run_terminal(chat, "Hello\n", is_terminal)


def test_an_interrupt_stops_the_answer_only(monkeypatch, model, chat):
    from omni.pipelines.chat import Delta

    calls = []

    def broken(self, turns, **options):
        calls.append(turns)
        yield Delta(text="half")
        if len(calls) == 1:
            raise KeyboardInterrupt
        yield Delta(finish_reason="stop")

    monkeypatch.setattr(Chat, "__call__", broken)
    text = run_terminal(chat, "a\nb\n")
    assert text.count("half") == 2
    assert calls[1][1] == {"role": "assistant", "content": "half"}
