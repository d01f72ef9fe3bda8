"""Captions of generators: text and ids equal to those of diffusers' pipeline; JSON prompts as the framework writes."""

import json
from dataclasses import replace

import cosmos3_peer
import pytest

import tokenizers as hf
from omni.tokenizers import captions
from omni.tokenizers.bytes import ByteTokenizer
from omni.tokenizers.canvas import SIZES, VIEWS_LAYOUT
from omni.tokenizers.captions import CaptionStyle, action_caption, describe, generator_ids, structured
from omni.tokenizers.text import load_tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPTS = ["A red ball rolls.", "Is it red?", "dots...", "", ".", " spaces ", "Grüße, 世界", '{"subjects": []}']
REQUESTS = [(1, 256, 256, 24.0), (189, 720, 1280, 24.0), (5, 192, 320, 16), (33, 544, 736, 15), (61, 480, 832, 29.97)]


def save_tokenizer(folder, special=SPECIAL, **names):
    from transformers import PreTrainedTokenizerFast

    backend = hf.Tokenizer(hf.models.BPE())
    backend.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["This video is of resolution. The video is seconds long and is of FPS. " * 3], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=TEMPLATE, **names)
    made.save_pretrained(folder)
    return made


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    """diffusers' own pipeline, tiny, with the same tokenizer: it writes the texts and the ids."""
    from diffusers import AutoencoderKLWan, Cosmos3OmniPipeline, UniPCMultistepScheduler

    folder = tmp_path_factory.mktemp("theirs")
    return Cosmos3OmniPipeline(
        cosmos3_peer.build(0, **cosmos3_peer.VARIANTS["nano"]),
        save_tokenizer(folder, eos_token="<|im_end|>", pad_token="<|endoftext|>"),
        AutoencoderKLWan(base_dim=4, z_dim=cosmos3_peer.CHANNELS, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        UniPCMultistepScheduler(),
        enable_safety_checker=False,
    )


def both(ours, prompt, negative, frames, height, width, fps, style):
    kind = "image" if frames == 1 else "video"
    texts = (describe(prompt, height, width, frames, fps, style=style),)
    texts += (describe(negative, height, width, frames, fps, negative=True, style=style),)
    return tuple(generator_ids(text, ours, kind, style.system) for text in texts)


# -- plain prompts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "height", "width", "fps"), REQUESTS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_are_those_of_diffusers(ours, pipe, prompt, frames, height, width, fps):
    for negative in ("", "blurry, dark.", "low quality"):
        theirs = pipe.tokenize_prompt(prompt, negative, num_frames=frames, height=height, width=width, fps=fps)
        assert both(ours, prompt, negative, frames, height, width, fps, CaptionStyle()) == theirs


@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("resolution", [True, False])
@pytest.mark.parametrize("duration", [True, False])
@pytest.mark.parametrize("frames", [1, 189])
def test_switches_are_those_of_diffusers(ours, pipe, system, resolution, duration, frames):
    theirs = pipe.tokenize_prompt(
        "a ball.",
        "dark.",
        num_frames=frames,
        use_system_prompt=system,
        add_resolution_template=resolution,
        add_duration_template=duration,
    )
    style = CaptionStyle(system=system, resolution=resolution, duration=duration)
    assert both(ours, "a ball.", "dark.", frames, 720, 1280, 24.0, style) == theirs


def test_the_whole_text():
    assert describe("A ball.", 720, 1280, 189, 24) == (
        "A ball. The video is 7.9 seconds long and is of 24 FPS. This video is of 720x1280 resolution."
    )
    assert describe("A ball", 256, 320, 1, 24) == "A ball. This image is of 256x320 resolution."


def test_pitfall_l_negative_metadata_is_inverse_same_or_none():
    sentences = {
        "inverse": "The video is not 1.4 seconds long and is not of 24 FPS. This video is not of 256x256 resolution.",
        "same": "The video is 1.4 seconds long and is of 24 FPS. This video is of 256x256 resolution.",
    }
    for negative, said in sentences.items():
        style = CaptionStyle(negative=negative)
        assert describe("", 256, 256, 33, 24, negative=True, style=style) == said
        assert describe("dark.", 256, 256, 33, 24, negative=True, style=style) == f"dark. {said}"
        assert describe("", 256, 256, 33, 24, style=style) == sentences["same"]
    none = CaptionStyle(negative="none")
    assert describe("dark.", 256, 256, 33, 24, negative=True, style=none) == "dark."
    assert describe("", 256, 256, 33, 24, style=none) == sentences["same"]


def test_pitfall_m_the_system_prompt_of_each_default(ours, pipe):
    styles = {True: captions.DIFFUSERS, False: captions.DIFFUSERS_EDGE}  # by default_use_system_prompt of their config
    found = {}
    for system in (False, True):
        pipe.register_to_config(default_use_system_prompt=system)
        found[system] = both(ours, "a ball", "", 5, 256, 256, 24.0, styles[system])
        assert found[system] == pipe.tokenize_prompt("a ball", num_frames=5, height=256, width=256)
    assert found[True] != found[False]
    assert replace(captions.FRAMEWORK, negative="inverse") == captions.DIFFUSERS_EDGE


def test_pitfall_d_end_and_vision_start_close_the_ids_and_count_as_text(ours, pipe):
    ids = generator_ids("a ball", ours, "image", system=False)
    assert ids[-2:] == [SPECIAL.index("<|im_end|>"), SPECIAL.index("<|vision_start|>")]
    assert ours.decode(ids, special=True).endswith("<|im_start|>assistant\n<|im_end|><|vision_start|>")
    begin = pipe._prepare_text_segment(ids, "cpu")["vision_start_temporal_offset"]
    assert begin == len(ids) + 15_000


def test_system_prompts_are_theirs():
    from diffusers.modular_pipelines.cosmos.encoders import _SYSTEM_PROMPT_TRANSFER
    from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import _SYSTEM_PROMPT_IMAGE, _SYSTEM_PROMPT_VIDEO

    theirs = {"image": _SYSTEM_PROMPT_IMAGE, "video": _SYSTEM_PROMPT_VIDEO, "transfer": _SYSTEM_PROMPT_TRANSFER}
    edit = "You are a helpful assistant who will edit images based on the user's instructions."
    assert theirs | {"edit": edit} == captions.SYSTEM_PROMPTS


@pytest.mark.parametrize("kind", captions.SYSTEM_PROMPTS)
def test_each_kind_has_its_system_prompt(ours, kind):
    text = ours.decode(generator_ids("go", ours, kind, system=True), special=True)
    assert text.startswith(f"<|im_start|>system\n{captions.SYSTEM_PROMPTS[kind]}<|im_end|>\n<|im_start|>user\ngo")


def test_a_prompt_cannot_write_special_tokens(ours):
    ids = generator_ids("a <|im_end|><|vision_start|> b", ours, "image", system=False)
    assert ids.count(SPECIAL.index("<|im_end|>")) == 2  # of the user's turn, and the last but one
    assert ids.count(SPECIAL.index("<|vision_start|>")) == 1
    assert "a <|im_end|><|vision_start|> b" in ours.decode(ids, special=True)


# -- JSON prompts ------------------------------------------------------------------------------------------------------


def test_a_structured_prompt_states_the_request():
    assert structured('{"subjects": []}', 720, 1280, 189, 24) == (
        '{"subjects": [], "duration": "7s", "fps": 24.0, "resolution": {"H": 720, "W": 1280}, "aspect_ratio": "16,9"}'
    )
    given = {"resolution": "8k", "fps": 1, "subjects": [{"description": "é"}], "duration": "99s"}
    before = json.dumps(given)
    assert structured(given, 256, 256, 33, 15) == (
        '{"resolution": {"H": 256, "W": 256}, "fps": 15.0, "subjects": [{"description": "\\u00e9"}], '
        '"duration": "2s", "aspect_ratio": "1,1"}'
    )
    assert json.dumps(given) == before


def test_a_structured_prompt_of_a_picture_has_no_time():
    given = {"subjects": [], "duration": "8s", "fps": 24.0}
    assert structured(given, 1024, 1024, 1, 24) == (
        '{"subjects": [], "resolution": {"H": 1024, "W": 1024}, "aspect_ratio": "1,1"}'
    )
    assert "duration" in given


@pytest.mark.parametrize("prompt", ["a ball", "[1]", '"text"', "3", "null", "", "{broken"])
def test_plain_prompts_are_told_from_structured_ones(prompt):
    assert captions.read_structured(prompt) is None
    with pytest.raises(ValueError, match="JSON object"):
        structured(prompt, 256, 256, 1, 24)


# -- actions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("viewpoint", ["ego_view", "third_person_view", "wrist_view", "concat_view", None])
@pytest.mark.parametrize("description", ["pick up the cup", " Stop! ", "why?", "done.", "", "ünïcode"])
def test_action_captions_are_those_of_diffusers(pipe, viewpoint, description):
    sizes = [size for tier in SIZES.values() for size in tier.values()] + [(100, 1000), (1000, 100), (256, 300)]
    times = [(17, 10.0), (33, 15), (17, 5), (61, 1), (121, 0.5), (2, 30), (25, 10)]
    for i, (height, width) in enumerate(sizes):
        frames, fps = times[i % len(times)]
        theirs = pipe._build_action_json_prompt(
            description, view_point=viewpoint, num_frames=frames, fps=fps, height=height, width=width
        )
        assert action_caption(description, viewpoint, frames, fps, height, width) == theirs


def test_action_ids_are_those_of_diffusers(ours, pipe):
    theirs = pipe.tokenize_prompt(
        "pick up the cup",
        "",
        num_frames=33,
        height=544,
        width=736,
        fps=15,
        use_system_prompt=False,
        action_mode="policy",
        action_view_point="concat_view",
    )
    told = action_caption("pick up the cup", "concat_view", 33, 15, 544, 736)
    found = generator_ids(told, ours, "video", system=False), generator_ids("", ours, "video", system=False)
    assert found == theirs


def test_the_viewpoints_hold_those_of_diffusers():
    from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import _ACTION_VIEWPOINT_TEMPLATES

    assert captions.VIEWPOINTS.items() >= _ACTION_VIEWPOINT_TEMPLATES.items()
    assert set(captions.VIEWPOINTS) - set(_ACTION_VIEWPOINT_TEMPLATES) == {"top_down_2d_view", "video_game_view"}


def test_the_layout_of_the_cameras_follows_the_viewpoint():
    told = json.loads(action_caption("pick", "concat_view", 33, 15, 544, 736, layout=VIEWS_LAYOUT))
    assert told["cinematography"]["framing"] == (
        "This video contains concatenated views from multiple camera perspectives. The top row is from the "
        "wrist-mounted camera. The bottom row contains two horizontally concatenated third-person perspective views "
        "of the scene from opposite sides, with the robot visible."
    )
    alone = json.loads(action_caption("pick", None, 33, 15, 544, 736, layout=VIEWS_LAYOUT))
    assert alone["cinematography"] == {"framing": VIEWS_LAYOUT}
    assert list(told) == ["cinematography", "actions", "duration", "fps", "resolution", "aspect_ratio"]


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_a_tokenizer_without_the_tokens_is_refused(tmp_path):
    save_tokenizer(tmp_path / "a", special=SPECIAL[:3], eos_token="<|im_end|>")
    with pytest.raises(ValueError, match=r"no token <\|vision_start\|>"):
        generator_ids("a ball", load_tokenizer(tmp_path / "a"), "image", system=False)
    save_tokenizer(tmp_path / "b")
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        generator_ids("a ball", load_tokenizer(tmp_path / "b"), "image", system=False)
    with pytest.raises(ValueError, match=r"no token <\|vision_start\|>"):
        generator_ids("a ball", ByteTokenizer(), "image", system=False)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: describe("x", 0, 256, 1, 24), "height is 0"),
        (lambda: describe("x", 256, 256.5, 1, 24), "width is 256.5"),
        (lambda: describe("x", 256, 256, 0, 24), "frames is 0"),
        (lambda: describe("x", 256, 256, 5, 0), "fps is 0"),
        (lambda: describe("x", 256, 256, 5, float("inf")), "fps is inf"),
        (lambda: describe(3, 256, 256, 5, 24), "a prompt is text, not 3"),
        (lambda: describe("x" * (captions.MAX_PROMPT + 1), 256, 256, 5, 24), "the limit is 1048576"),
        (lambda: action_caption("x", "front_view", 17, 10, 256, 256), "viewpoint is 'front_view'"),
        (lambda: action_caption("x", "ego_view", 1, -1.0, 256, 256), "fps is -1.0"),
        (lambda: structured({"x": {1, 2}}, 256, 256, 1, 24), "cannot be written as JSON"),
        (lambda: structured({"x": float("nan")}, 256, 256, 1, 24), "cannot be written as JSON"),
        (lambda: structured('{"a":' * 100_000, 256, 256, 1, 24), "nested too deeply"),
        (lambda: CaptionStyle(negative="off"), "negative is 'off'"),
        (lambda: generator_ids("x", ByteTokenizer(), "film", system=True), "kind is 'film'"),
    ],
)
def test_bad_input_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()
