"""Tokenizers: round trips, the exact strings of the published chat formats, and text that must stay text."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

import tokenizers as hf
from omni.tokenizers import chat_template
from omni.tokenizers.bytes import NAMED
from omni.tokenizers.chat_template import ChatTemplate, TemplateError
from omni.tokenizers.messages import MessageError
from omni.tokenizers.text import ByteTokenizer, StreamDecoder, TokenizerError, load_tokenizer

TEMPLATES = Path(__file__).parent / "templates"
HOSTILE = ["<|im_end|>", "<think>", "</think>", "<image>", "<tool_call>", "<s>", "<SPECIAL_10>", "<<think>>", "<pad>"]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
        },
    }
]
USED_TOOL = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": "",
        "reasoning": "Ask.",
        "tool_calls": [{"function": {"name": "weather", "arguments": '{"city": "Rome", "days": 2}'}}],
    },
    {"role": "tool", "content": "sun"},
    {"role": "tool", "content": "rain"},
]


def write_checkpoint(folder: Path, template: str, names: dict[int, str]) -> Path:
    """A small byte-level BPE with special tokens at the ids given, and the files that lie beside one."""
    specials = [names.get(i, f"<SPECIAL_{i}>") for i in range(24)]
    backend = hf.Tokenizer(hf.models.BPE())
    backend.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the weather in the city, think and thinking of thought " * 3], trainer)
    backend.post_processor = hf.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": names[11]}}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 11]}))
    (folder / "chat_template.jinja").write_text((TEMPLATES / template).read_text())
    return folder


@pytest.fixture(scope="module")
def nemotron3(tmp_path_factory):
    names = {0: "<unk>", 1: "<s>", 2: "</s>", 10: "<|im_start|>", 11: "<|im_end|>", 12: "<think>", 13: "</think>"}
    names |= {14: "<tool_call>", 15: "</tool_call>", 18: "<image>"}
    return load_tokenizer(write_checkpoint(tmp_path_factory.mktemp("n3"), "nemotron3.jinja", names))


@pytest.fixture(scope="module")
def v2(tmp_path_factory):
    names = {0: "<unk>", 1: "<s>", 2: "</s>", 11: "<SPECIAL_11>"}
    return load_tokenizer(write_checkpoint(tmp_path_factory.mktemp("v2"), "v2.jinja", names))


@pytest.fixture(scope="module", params=["bytes", "nemotron3"])
def either(request):
    return ByteTokenizer() if request.param == "bytes" else request.getfixturevalue("nemotron3")


def random_text(rng: random.Random, length: int) -> str:
    pool = ["a", "the ", "é", "漢", "🙂", "\n", " ", "\t", "0", *HOSTILE, "\u200d", "e\u0301"]
    return "".join(rng.choice(pool) for _ in range(length))


# -- both tokenizers ---------------------------------------------------------------------------------------------------


def test_text_comes_back_and_names_stay_text(either):
    rng = random.Random(0)
    specials = {i for value in either.special.values() for i in (value if isinstance(value, list) else [value])}
    for _ in range(200):
        text = random_text(rng, rng.randrange(12))
        ids = either.encode(text)
        assert either.decode(ids) == text
        assert not specials & set(ids)
    assert either.encode("a<think>b", special=True)[1] == either.special["think"] == 12


def test_stream_equals_whole(either):
    rng = random.Random(1)
    for _ in range(100):
        ids = either.encode(random_text(rng, 20), special=rng.random() < 0.5)
        stream = StreamDecoder(either, special=True)
        parts = [stream.push(i) for i in ids]
        assert "\ufffd" not in "".join(parts)
        assert "".join(parts) + stream.flush() == either.decode(ids, special=True)


def test_stream_of_broken_bytes_ends():
    tokenizer = ByteTokenizer()
    ids = [32 + b for b in b"ok\xf0\x9f\xff\xffab\xe2\x82"]
    stream = StreamDecoder(tokenizer)
    text = "".join(stream.push(i) for i in ids) + stream.flush()
    assert text == tokenizer.decode(ids) == b"ok\xf0\x9f\xff\xffab\xe2\x82".decode("utf-8", errors="replace")


def test_stream_of_broken_bytes_does_not_wait_for_ever(nemotron3):
    broken = nemotron3.encode("é")[:1] * 40
    stream = StreamDecoder(nemotron3)
    assert sum(len(stream.push(i)) > 0 for i in broken) >= 4


def test_nothing_in_a_message_becomes_special(either):
    """The ids of a hostile conversation hold exactly the special tokens of a harmless one."""
    specials = set(range(24)) if either.vocab_size > 320 else set(range(32))

    def count(word: str) -> list[int]:
        messages = [
            {"role": "system", "content": f"s{word}"},
            {"role": "user", "content": [{"type": "text", "text": word}, {"type": "image", "image": "x"}]},
            {"role": "assistant", "content": "fine", "reasoning": word},
            {"role": "user", "content": word},
            {"role": "assistant", "tool_calls": [{"name": "weather", "arguments": {"city": word}}]},
            {"role": "tool", "content": word},
        ]
        tools = [{"function": {"name": "weather", "parameters": {"properties": {"city": {"type": word}}}}}]
        ids = either.encode_chat(messages, tools=tools)
        assert word in either.decode(ids, special=True)
        return [i for i in ids if i in specials]

    for word in HOSTILE:
        assert count(word) == count("plain"), word


def test_encoding_a_chat_equals_encoding_its_text(either):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the weather"}]
    for thinking in (True, False):
        text = either.render(messages, thinking=thinking)
        assert either.encode_chat(messages, thinking=thinking) == either.encode(text, special=True)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "at least one message"),
        ("hello", "must be a list"),
        (["hello"], "message 0 must be a dict"),
        ([{"role": "robot", "content": "x"}], "'robot'"),
        ([{"role": "user", "content": 3}], "message 0 must be a string"),
        ([{"role": "user", "content": [{"type": "smell"}]}], "'smell'"),
        ([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}], "not JSON"),
        ([{"role": "assistant", "tool_calls": [{"arguments": {}}]}], "without a function name"),
    ],
)
def test_bad_conversations_are_named(either, messages, said):
    with pytest.raises(MessageError, match=said):
        either.encode_chat(messages)


# -- the built-in tokenizer --------------------------------------------------------------------------------------------


def test_vocabulary_is_fixed():
    tokenizer = ByteTokenizer()
    assert tokenizer.vocab_size == 320
    assert tokenizer.encode("A\n") == [97, 42]
    assert tokenizer.encode("<|im_start|>A</think>", special=True) == [10, 97, 13]
    assert (NAMED["<pad>"], tokenizer.special["eos"], tokenizer.special["image"]) == (21, [11, 2], 14)
    with pytest.raises(ValueError, match="320"):
        tokenizer.decode([320])


def test_byte_chat_strings():
    tokenizer = ByteTokenizer()
    hello = [{"role": "user", "content": "Hi"}]
    assert tokenizer.render(hello) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think></think>"
    assert tokenizer.render(hello, thinking=True).endswith("<|im_start|>assistant\n<think>\n")
    picture = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "?"}]}
    ]
    assert tokenizer.render(picture, add_generation_prompt=False) == "<|im_start|>user\n<image>?<|im_end|>\n"
    text = tokenizer.render(USED_TOOL, add_generation_prompt=False)
    assert text == (
        "<|im_start|>user\nWeather?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nAsk.\n</think>\n<tool_call>\n<function=weather>\n"
        "<parameter=city>\nRome\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nsun\n</tool_response>\n<tool_response>\nrain\n</tool_response>\n<|im_end|>\n"
    )


def test_an_answer_continues_its_prompt():
    """Training and prefix reuse rest on it: prompt ids are a prefix of the finished conversation's."""
    tokenizer = ByteTokenizer()
    ask = [{"role": "user", "content": "Hi"}]
    for thinking, answer in ((False, {"content": "Yo"}), (True, {"content": "Yo", "reasoning": "Greet."})):
        prompt = tokenizer.encode_chat(ask, thinking=thinking)
        whole = tokenizer.encode_chat([*ask, {"role": "assistant", **answer}], add_generation_prompt=False)
        assert whole[: len(prompt)] == prompt
        assert whole[-2:] == [11, 42]


def test_byte_tokenizer_saves_and_loads(tmp_path):
    ByteTokenizer().save(tmp_path)
    assert isinstance(load_tokenizer(tmp_path), ByteTokenizer)
    path = tmp_path / "omni_tokenizer.json"
    path.write_text(path.read_text().replace("320", "321"))
    with pytest.raises(ValueError, match="321"):
        load_tokenizer(tmp_path)


# -- published formats -------------------------------------------------------------------------------------------------


def test_nemotron3_strings(nemotron3):
    hello = [{"role": "user", "content": "Hi"}]
    start = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert nemotron3.render(hello) == start + "<think>\n"
    assert nemotron3.render(hello, thinking=False) == start + "<think></think>"
    assert nemotron3.render(hello, enable_thinking=False) == start + "<think></think>"
    assert "Hi\n\n{thinking token budget: 64}<|im_end|>" in nemotron3.render(hello, reasoning_budget=64)
    text = nemotron3.render(USED_TOOL, tools=TOOLS, add_generation_prompt=False)
    assert text.startswith(
        "<|im_start|>system\n# Tools\n\n<tools>\n<function>\n<name>weather</name>\n<parameters>\n"
        "<parameter>\n<name>city</name>\n<type>string</type>\n</parameter>\n"
    )
    assert text.endswith(
        "<|im_start|>assistant\n<think>\nAsk.\n</think>\n<tool_call>\n<function=weather>\n<parameter=city>\nRome\n"
        "</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call><|im_end|>\n<|im_start|>user\n"
        "<tool_response>\nsun\n</tool_response>\n<tool_response>\nrain\n</tool_response>\n<|im_end|>\n"
    )


def test_nemotron3_history(nemotron3):
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\nb"},
        {"role": "user", "content": "c"},
    ]
    assert "<|im_start|>assistant\n<think></think>b<|im_end|>" in nemotron3.render(turns)
    kept = nemotron3.render(turns, truncate_history_thinking=False)
    assert "<|im_start|>assistant\n<think>\nhm\n</think>\nb<|im_end|>" in kept


def test_v2_strings(v2):
    hello = [{"role": "user", "content": "Hi"}]
    assert v2.render(hello) == "<SPECIAL_10>System\n\n\n<SPECIAL_11>User\nHi\n<SPECIAL_11>Assistant\n<think>\n"
    assert v2.render(hello, thinking=False).endswith("User\nHi\n<SPECIAL_11>Assistant\n<think></think>")
    asked = [{"role": "system", "content": "Be kind. /think"}, {"role": "user", "content": "Hi /no_think"}]
    assert v2.render(asked) == (
        "<SPECIAL_10>System\nBe kind.\n\n<SPECIAL_11>User\nHi\n<SPECIAL_11>Assistant\n<think></think>"
    )
    assert v2.render(asked, thinking=True).endswith("<think>\n")
    history = [*hello, {"role": "assistant", "content": "<think>\nhm</think>\nYo"}, {"role": "user", "content": "x"}]
    assert "<SPECIAL_11>Assistant\nYo\n<SPECIAL_12>\n<SPECIAL_11>User" in v2.render(history)
    text = v2.render(USED_TOOL, tools=TOOLS)
    assert '<AVAILABLE_TOOLS>[{"name": "weather"' in text
    assert '<TOOLCALL>[{"name": "weather", "arguments": {"city": "Rome", "days": 2}}]</TOOLCALL>' in text
    assert "<SPECIAL_11>User\n<TOOL_RESPONSE>[sun, rain]</TOOL_RESPONSE>\n" in text


def test_what_a_checkpoint_folder_says(nemotron3, v2):
    assert nemotron3.special["eos"] == [11, 2]
    assert (nemotron3.special["bos"], nemotron3.special["end_think"], nemotron3.special["image"]) == (1, 13, 18)
    assert nemotron3.encode("the", begin=True) == [1, *nemotron3.encode("the")]
    assert (nemotron3.tool_format, v2.tool_format) == ("xml", "json")
    assert "think" not in v2.special


def test_same_ids_as_transformers(nemotron3, tmp_path):
    """The reference reads the same files."""
    from transformers import PreTrainedTokenizerFast

    nemotron3.backend.save(str(tmp_path / "tokenizer.json"))
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    text = "the weather <think>\nthinking</think> 漢字"
    assert nemotron3.encode(text, special=True, begin=True) == theirs(text)["input_ids"]
    messages = [{"role": "user", "content": "the city"}]
    source = nemotron3.template.source
    assert nemotron3.render(messages) == theirs.apply_chat_template(
        messages, chat_template=source, tokenize=False, add_generation_prompt=True
    )


def test_damaged_folders_are_errors(tmp_path):
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(TokenizerError, match="not a tokenizer"):
        load_tokenizer(tmp_path)


# -- templates as untrusted input --------------------------------------------------------------------------------------


def test_template_basics():
    template = ChatTemplate(
        "{% for m in messages %}{{ loop.index ~ m.role }}{% if loop.index == 2 %}{% break %}{% endif %}{% endfor %}"
        "{% generation %}{{ {'a': '<é>'} | tojson }}{% endgeneration %}{{ ['x', 'y'] | join('-') }}"
    )
    assert template.render(messages=[{"role": r} for r in "uvw"]) == '1u2v{"a": "<é>"}x-y'


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}", "seconds"),
        ("{{ 'a' * 10**11 }}", "characters"),
        ("{% set n = namespace(s='aa') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}", "characters"),
        ("{% set n = namespace(s='aa') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}", "characters"),
        (
            "{% set n = namespace(s='aa') %}{% for i in range(9) %}{% set n.s = n.s.replace('a', n.s) %}{% endfor %}",
            "char",
        ),
        ("{% set n = namespace(s='aa') %}{% for i in range(99) %}{% set n.s = [n.s, n.s]|join %}{% endfor %}", "char"),
        ("{{ 'a'.center(10**11) }}", "unsafe"),
        ("{{ 'a'|indent(10**11) }}", "indents"),
        ("{{ '%99999999999s' % 'a' }}", "%"),
        ("{{ 10 ** 10 ** 10 ** 10 }}", "exponents"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ missing.name.deeper }}", "undefined"),
        ("{% for", "cannot be read"),
        ("{% include '/etc/passwd' %}", "failed"),
    ],
)
def test_hostile_templates_fail_cleanly(source, said, monkeypatch):
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.3)
    monkeypatch.setattr(chat_template, "MAX_TEXT", 1 << 16)
    with pytest.raises(TemplateError, match=said):
        ChatTemplate(source).render(messages=[{"role": "user", "content": "x"}])


def test_our_folder_does_not_hide_the_package():
    root = Path(__file__).parent.parent
    code = "import tokenizers; print(tokenizers.__file__)"
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert not found.stdout.startswith(str(root / "tokenizers"))
