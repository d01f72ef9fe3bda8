"""The reasoners of Cosmos 3 against the reference classes, through folders that these saved: weights, tokenizer,
processor. Tiny random models, odd sizes, several seeds.

transformers 5.23 expands only the placeholder of a Qwen3-VL video and keeps the template's ``<|vision_start|>`` and
``<|vision_end|>`` around all of it; the published processor, and Edge's, replace all three. The reference is therefore
given bare placeholders for Nano (``wrapped=False``); what it does of itself is ``MediaConfig.video_mark = ""``.
"""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    Cosmos3EdgeConfig,
    Cosmos3EdgeForConditionalGeneration,
    Cosmos3EdgeProcessor,
    Cosmos3OmniConfig,
    Cosmos3OmniForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen3VLProcessor,
)
from transformers.models.cosmos3_edge.image_processing_cosmos3_edge import Cosmos3EdgeImageProcessor
from transformers.models.cosmos3_edge.video_processing_cosmos3_edge import Cosmos3EdgeVideoProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata

import omni
import tokenizers as hf
from omni import families
from omni.checkpoint import CheckpointError, save_weights
from omni.config import ConfigError, replace
from omni.families import cosmos3
from omni.families.cosmos3_names import GENERATOR
from omni.inputs import Inputs
from omni.model import Omni
from omni.rules import Rename
from omni.tokenizers.frames import plan_uniform
from omni.tokenizers.video import open_video

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
warnings.filterwarnings("ignore", category=FutureWarning)

KINDS = ["nano", "edge"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
SPECIAL += ["<|image_pad|>", "<|video_pad|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = {
    "vocab_size": 420,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 20,  # not hidden_size / heads
}
EDGE_TEXT = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e8, "mrope_section": [4, 3, 3]}}
NANO_TEXT = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 3, 3]}}
NANO_VISION = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 48,
    "num_position_embeddings": 25,
    "deepstack_visual_indexes": [0, 2],
}
EDGE_VISION = {
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "patch_size": 4,
    "num_patches": 16,
}
HALF = [0.5, 0.5, 0.5]

# -- the reference -----------------------------------------------------------------------------------------------------


def small_tokenizer() -> PreTrainedTokenizerFast:
    backend = hf.Tokenizer(hf.models.BPE())
    backend.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["<0.5 seconds> what happens between the pictures, user assistant " * 3], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )


def processor_of(kind: str):
    image = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 16 * 16, "longest_edge": 40 * 40}}
    video = {**image, "size": {"shortest_edge": 4 * 16 * 16, "longest_edge": 5 * 32 * 32}, "max_frames": 7}
    image |= {"image_mean": HALF, "image_std": HALF}
    video |= {"image_mean": HALF, "image_std": HALF}
    text = {"tokenizer": small_tokenizer(), "chat_template": TEMPLATE}
    if kind == "edge":
        return Cosmos3EdgeProcessor(
            Cosmos3EdgeImageProcessor(**image), video_processor=Cosmos3EdgeVideoProcessor(**video), **text
        )
    seen = Qwen3VLVideoProcessor(**video, cap_pixels_per_frame=False)
    return Qwen3VLProcessor(Qwen2VLImageProcessor(**image), video_processor=seen, **text)


def reference(kind: str, seed: int, **changes):
    """A random model of the reference classes in which no parameter is left at a trivial value."""
    ids = {f"{name}_token_id": SPECIAL.index(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    ids |= {f"{name}_token_id": SPECIAL.index(f"<|{name}_pad|>") for name in ("image", "video")}
    torch.manual_seed(seed)
    if kind == "edge":
        text = {**TEXT, **EDGE_TEXT, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1, **changes}
        config = Cosmos3EdgeConfig(text_config=text, vision_config=EDGE_VISION, projector_hidden_size=56, **ids)
        model = Cosmos3EdgeForConditionalGeneration(config)
    else:
        text = {"model_type": "qwen3_vl_text", **TEXT, **NANO_TEXT, **changes}
        config = Cosmos3OmniConfig(text_config=text, vision_config=NANO_VISION, **ids)
        model = Cosmos3OmniForConditionalGeneration(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 1.2 * p[0].numel() ** -0.5 if p.dim() > 1 else 0.3
            scale = 1.0 if "embed_tokens" in name else scale
            p.copy_(scale * torch.randn_like(p) + float(p.dim() == 1 and name.endswith("weight")))
    return model.eval()


@pytest.fixture(scope="module", params=[(kind, seed) for kind in KINDS for seed in (0, 1)], ids=str)
def pair(request, tmp_path_factory):
    return make_pair(*request.param, tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module", params=KINDS)
def one(request, tmp_path_factory):
    return make_pair(request.param, 5, tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    return make_pair("nano", 6, tmp_path_factory.mktemp("saved"))


def make_pair(kind: str, seed: int, folder: Path) -> SimpleNamespace:
    theirs, processor = reference(kind, seed), processor_of(kind)
    theirs.save_pretrained(folder)
    processor.save_pretrained(folder)
    ours = omni.load(str(folder), device="cpu")
    return SimpleNamespace(kind=kind, theirs=theirs, processor=processor, ours=ours, folder=folder)


def picture(height: int, width: int, seed: int) -> Image.Image:
    """Smooth random colours: resizing has something to do."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def clip(frames: int, height: int, width: int, seed: int, fps: float = 5.0):
    """What ours takes; the reference takes the array and its metadata."""
    array = np.stack([np.asarray(picture(height, width, seed + i)) for i in range(frames)])
    opened = open_video(array, fps=fps)
    opened_by[id(opened)] = opened, array, fps
    return opened


opened_by: dict[int, tuple] = {}
"""id of an opened video -> itself, its frames and their rate."""


def user(*parts) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]


def image(*size_and_seed: int) -> dict:
    return {"type": "image", "image": picture(*size_and_seed)}


def video(*arguments, **more) -> dict:
    return {"type": "video", "video": clip(*arguments, **more)}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


CONVERSATIONS = {
    "text": [user(text("What happens in the pictures?"))],
    "image": [user(image(37, 61, 0), text("What is it?"))],
    "images": [user(text("Compare "), image(23, 23, 1), text(" with "), image(90, 31, 2), image(5, 70, 3), text("."))],
    "video": [user(video(13, 30, 45, 4), text("What happens?"))],
    "long-video": [user(video(61, 21, 77, 5, fps=7.5), text("And here?"))],
    "short-video": [user(video(3, 33, 33, 6), text("And here?"))],
    "all": [user(image(40, 24, 7), text("then"), video(11, 28, 40, 8), text("and "), image(64, 64, 9))],
    "videos": [user(video(9, 40, 20, 10), video(20, 33, 31, 11, fps=12.0), text("Which is longer?"))],
    "batch": [
        user(image(37, 61, 12), text("What is it?")),
        user(text("Nothing to see.")),
        user(text("Here "), video(9, 30, 45, 13), image(20, 33, 14), text(" both.")),
    ],
    "turns": [
        [
            *user(image(25, 50, 15), text("What is it?")),
            {"role": "assistant", "content": "A pad."},
            *user(text("And this?"), image(33, 20, 16)),
        ]
    ],
}


def their_inputs(pair, conversations: list, wrapped: bool = True) -> dict:
    """What the reference processor makes of the same conversations."""
    rendered = [pair.processor.apply_chat_template(plain(c), add_generation_prompt=True) for c in conversations]
    if not wrapped:
        rendered = [t.replace("<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>") for t in rendered]
    parts = [p for c in conversations for m in c for p in m["content"] if isinstance(p, dict)]
    images = [p["image"] for p in parts if p["type"] == "image"]
    videos = [opened_by[id(p["video"])][1:] for p in parts if p["type"] == "video"]
    given = {"images": images} if images else {}
    if videos:
        given["videos"] = [torch.from_numpy(array).permute(0, 3, 1, 2) for array, _ in videos]
        given["video_metadata"] = [
            VideoMetadata(total_num_frames=len(a), fps=fps, duration=len(a) / fps, frames_indices=list(range(len(a))))
            for a, fps in videos
        ]
    made = pair.processor(
        text=rendered, padding=True, return_tensors="pt", return_metadata=True, return_mm_token_type_ids=True, **given
    )
    return {name: value for name, value in made.items() if name != "video_metadata"}


def plain(conversation: list[dict]) -> list[dict]:
    """Messages without the media themselves."""
    return [
        m if isinstance(m["content"], str) else {**m, "content": [_bare(part) for part in m["content"]]}
        for m in conversation
    ]


def _bare(part: dict) -> dict:
    return part if part["type"] == "text" else {"type": part["type"]}


def both_inputs(pair, conversations: list) -> tuple[dict, Inputs]:
    return their_inputs(pair, conversations, wrapped=pair.kind == "edge"), pair.ours.prepare(conversations)


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


# -- what the processor makes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_ids_pixels_and_positions_equal_the_reference(one, name):
    theirs, ours = both_inputs(one, CONVERSATIONS[name])
    real = theirs["attention_mask"].bool()
    assert torch.equal(ours.input_ids, theirs["input_ids"])
    assert ours.mask is None or torch.equal(ours.mask, real)

    for kind, key in ((3, "pixel_values"), (4, "pixel_values_videos")):
        items = [patches_of(one, x) for x in ours.pixels if x.dim() == kind]
        assert bool(items) == (key in theirs)
        if items:
            torch.testing.assert_close(torch.cat(items), theirs[key], rtol=0, atol=1e-6)
            assert theirs[key].std() > 0.1

    if ours.pixels:
        places = one.ours._find_media(ours)
        found = one.ours._positions_of(places, ours, None)
        expected, _ = one.theirs.model.get_rope_index(
            theirs["input_ids"],
            theirs["mm_token_type_ids"],
            theirs.get("image_grid_thw"),
            theirs.get("video_grid_thw"),
            attention_mask=theirs["attention_mask"],
        )
        assert torch.equal(found[:, real], expected[:, real])
        assert not torch.equal(expected[0], expected[2])


def patches_of(pair, pixels: torch.Tensor) -> torch.Tensor:
    """Normalised and cut as the reference does: 2 x 2 blocks, (channel, frame, y, x) or Edge's (y, x, channel)."""
    v = pair.ours.config.vision
    frames = pixels if pixels.dim() == 4 else pixels.expand(v.tubelet, -1, -1, -1)
    frames = pair.ours.vision._normalise(frames)
    sizes = {"f": v.tubelet, "y": v.patch_size, "x": v.patch_size, "a": 2, "b": 2}
    order = "(y x c f)" if pair.kind == "edge" else "(c f y x)"
    return rearrange(frames, f"(t f) c (h a y) (w b x) -> (t h w a b) {order}", **sizes)


@pytest.mark.parametrize("mark", ["", None])
def test_the_wrapper_that_the_installed_processor_leaves_is_a_mark_away(nano, mark):
    config = nano.ours.config
    media = config.media if mark is None else replace(config.media, video_mark=mark)
    nano.ours.config = replace(config, media=media)
    try:
        found = nano.ours.prepare(CONVERSATIONS["all"]).input_ids
    finally:
        nano.ours.config = config
    assert torch.equal(found, their_inputs(nano, CONVERSATIONS["all"])["input_ids"]) == (mark == "")


def test_one_budget_of_tokens_a_frame_equals_the_reference(nano, tmp_path):
    """A clip of few frames spends the whole budget on them, unless the processor caps its frames."""
    nano.processor.video_processor.cap_pixels_per_frame = True
    nano.processor.video_processor.max_video_tokens = 6
    nano.processor.video_processor.size["shortest_edge"] = 64
    try:
        nano.processor.save_pretrained(tmp_path)
        files = {"processor_config.json": json.loads((tmp_path / "processor_config.json").read_text())}
        capped = Omni(families.families()["cosmos3"].read_media(nano.ours.config, files))
        capped.tokenizer = nano.ours.tokenizer
        theirs = their_inputs(nano, CONVERSATIONS["short-video"], wrapped=False)
    finally:
        nano.processor = processor_of("nano")
    ours = capped.prepare(CONVERSATIONS["short-video"])
    assert torch.equal(ours.input_ids, theirs["input_ids"])
    assert not torch.equal(ours.input_ids, nano.ours.prepare(CONVERSATIONS["short-video"]).input_ids)


# -- the model ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_logits_equal_the_reference(pair, name):
    theirs, ours = both_inputs(pair, CONVERSATIONS[name])
    real = theirs["attention_mask"].bool()
    pair.theirs.model.rope_deltas = None
    expected = pair.theirs(**theirs, use_cache=False).logits[real]
    found = pair.ours.logits(ours)[real]
    assert relative_error(found, expected) < 1e-4
    assert expected.std() > 0.1
    if ours.pixels:  # what is seen matters
        dark = replace(ours, pixels=tuple(1 - x for x in ours.pixels))
        assert relative_error(pair.ours.logits(dark)[real], expected) > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_greedy_text_is_the_same(pair, name):
    theirs, ours = both_inputs(pair, CONVERSATIONS[name])
    pair.theirs.model.rope_deltas = None
    pair.theirs.generation_config.eos_token_id = None
    length = theirs["input_ids"].shape[1]
    expected = pair.theirs.generate(**theirs, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(greedy(pair.ours, ours, 12), expected[:, length:])


def greedy(model: Omni, inputs: Inputs, count: int, cache=None) -> torch.Tensor:
    cache = model.new_cache(len(inputs.input_ids)) if cache is None else cache
    step, made = inputs, []
    for _ in range(count):
        step = model.logits(step, cache, last_only=True)[:, -1].argmax(-1, keepdim=True)
        made.append(step)
    return torch.cat(made, dim=1)


@torch.no_grad()
def test_turns_through_the_cache_equal_the_whole_conversation(pair):
    """Three turns, each with media, against one call of the reference over all of them."""
    turns = [
        user(image(25, 50, 20), text("What is it?")),
        user(video(9, 30, 44, 21), text("And this?"), image(16, 40, 22)),
        user(text("Sure?")),
    ]
    answers = [{"role": "assistant", "content": "A shoe."}, {"role": "assistant", "content": "A sail."}]
    whole = [*turns[0], answers[0], *turns[1], answers[1], *turns[2]]
    theirs, _ = both_inputs(pair, [whole])
    pair.theirs.model.rope_deltas = None
    expected = pair.theirs(**theirs, use_cache=False).logits
    cache, found, done, seen = pair.ours.new_cache(1), [], 0, 0
    for stop in (turns[0], [*turns[0], answers[0], *turns[1]], whole):
        so_far = pair.ours.prepare([stop])
        added = so_far.input_ids[:, done:]
        found.append(pair.ours.logits(Inputs(added, pixels=so_far.pixels[seen:]), cache))
        done, seen = so_far.input_ids.shape[1], len(so_far.pixels)
    assert torch.equal(so_far.input_ids, theirs["input_ids"])
    assert relative_error(torch.cat(found, dim=1), expected) < 1e-4
    made = greedy_after(pair, found[-1], cache)
    again = pair.theirs.generate(**theirs, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(made, again[:, done:])


def greedy_after(pair, logits: torch.Tensor, cache) -> torch.Tensor:
    first = logits[:, -1].argmax(-1, keepdim=True)
    return torch.cat([first, greedy(pair.ours, Inputs(first), 7, cache)], dim=1)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("nano", {"num_key_value_heads": 4}),
        ("nano", {"attention_bias": True, "rms_norm_eps": 1e-3}),
        ("edge", {"attention_bias": True, "mlp_bias": True}),
        ("edge", {"num_key_value_heads": 1, "rms_norm_eps": 1e-3}),
    ],
)
def test_other_configurations_equal_the_reference(kind, changes, tmp_path):
    theirs = reference(kind, 3, **changes)
    theirs.save_pretrained(tmp_path)
    ids = torch.randint(10, 400, (2, 23), generator=torch.Generator().manual_seed(1))
    assert relative_error(omni.load(str(tmp_path), device="cpu").logits(ids), theirs(ids).logits) < 1e-4


# -- files -------------------------------------------------------------------------------------------------------------


def test_what_we_write_the_reference_loads(one, tmp_path):
    families.save(one.ours, tmp_path, family="cosmos3")
    again, report = type(one.theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = one.theirs.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())
    back = omni.load(str(tmp_path), device="cpu")
    assert back.config == one.ours.config
    one.processor.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    read = type(one.processor).from_pretrained(tmp_path)
    for part in ("image_processor", "video_processor"):
        ours, theirs = getattr(read, part), getattr(one.processor, part)
        for name in ("size", "image_mean", "patch_size", "merge_size", "temporal_patch_size", "fps", "max_frames"):
            assert getattr(ours, name, None) == getattr(theirs, name, None), (part, name)


def test_every_spelling_is_read(one, tmp_path):
    """The names of the classes' modules, as state_dict has them, mean what those of the files mean."""
    state = one.theirs.state_dict()
    assert any("self_attn.q_proj" in name for name in state)
    assert any(name.startswith("model.language_model.") for name in state)
    save_weights(state, tmp_path, (Rename("{rest}", "{rest}"),))
    (tmp_path / "config.json").write_text((one.folder / "config.json").read_text())
    same(omni.load(str(tmp_path), device="cpu"), one.ours)


def same(a: Omni, b: Omni) -> None:
    theirs = b.state_dict()
    assert a.state_dict().keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


GENERATED = [name.replace("{i}", "2").replace("{rest}", "linear_1.weight") for name in GENERATOR]


def test_the_generator_beside_the_reasoner_is_left_alone(one, tmp_path):
    state = load_file(one.folder / "model.safetensors")
    nested = [f"model.language_model.{name}" for name in GENERATED]
    trained = [f"layers.2.self_attn.{x}_proj_moe_gen.weight" for x in "qkvo"]
    state |= {name: torch.ones(3) for name in (*GENERATED, *nested, *trained)}
    save_weights(state, tmp_path, (Rename("{rest}", "{rest}"),))
    (tmp_path / "config.json").write_text((one.folder / "config.json").read_text())
    same(omni.load(str(tmp_path), device="cpu"), one.ours)
    save_weights({**state, "layers.0.self_attn.to_p.weight": torch.ones(3)}, tmp_path, (Rename("{rest}", "{rest}"),))
    with pytest.raises(CheckpointError, match=r"1 unknown: layers\.0\.self_attn\.to_p\.weight"):
        omni.load(str(tmp_path), device="cpu")


def config_of(kind: str) -> dict:
    return json.loads(json.dumps(reference_config(kind)))


def reference_config(kind: str) -> dict:
    if kind == "edge":
        config = Cosmos3EdgeConfig(text_config={**TEXT, **EDGE_TEXT}, vision_config=EDGE_VISION).to_dict()
    else:
        text = {"model_type": "qwen3_vl_text", **TEXT, **NANO_TEXT}
        config = Cosmos3OmniConfig(text_config=text, vision_config=NANO_VISION).to_dict()
    return {
        **config,
        "architectures": [
            "Cosmos3EdgeForConditionalGeneration" if kind == "edge" else "Cosmos3ForConditionalGeneration"
        ],
    }


@pytest.mark.parametrize("kind", KINDS)
def test_configs_come_back(kind):
    config = cosmos3.to_config(config_of(kind))
    assert cosmos3.to_config(cosmos3.from_config(config)) == config
    assert families.family_of(config_of(kind), "here").name == "cosmos3"
    assert families.family_of({"architectures": ["Cosmos3ForConditionalGeneration"]}, "here").name == "cosmos3"
    assert families.family_of(cosmos3.from_config(config), "here").name == "cosmos3"


def test_older_spellings_of_a_config():
    nano = config_of("nano")
    expected = cosmos3.to_config(nano)
    rope = nano["text_config"].pop("rope_parameters")
    nano["text_config"] |= {"rope_theta": rope["rope_theta"], "rope_scaling": {"mrope_interleaved": True}}
    nano["text_config"]["rope_scaling"] |= {"rope_type": "default", "mrope_section": rope["mrope_section"]}
    assert cosmos3.to_config(nano) == expected

    edge = config_of("edge")
    expected = cosmos3.to_config(edge)
    text = edge["text_config"]
    text |= {"model_type": "nemotron_h", "hybrid_override_pattern": "*-" * 4, "num_hidden_layers": 8}
    text |= {"mlp_hidden_act": "relu2", "layer_norm_epsilon": text.pop("rms_norm_eps"), "mamba_num_heads": 64}
    assert cosmos3.to_config(edge) == expected


@pytest.mark.parametrize(
    ("kind", "part", "change", "message"),
    [
        ("nano", "text_config", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("nano", "text_config", {"sliding_window": 512}, "sliding_window is 512"),
        ("nano", "text_config", {"moe_intermediate_size": 8}, "moe_intermediate_size"),
        ("nano", "text_config", {"num_hidden_layers": 10**9}, "between 1 and 2048"),
        ("nano", "text_config", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ("nano", "text_config", {"rope_parameters": {"mrope_section": [4, 3]}}, "three whole numbers"),
        ("nano", "vision_config", {"out_hidden_size": 40}, "out_hidden_size is 40"),
        ("nano", "vision_config", {"num_position_embeddings": 26}, "the square of a whole number"),
        ("nano", "vision_config", {"deepstack_visual_indexes": [0, 1, 2, 3, 4]}, "deepstack"),
        ("nano", "vision_config", {"rope_parameters": 3}, "must be an object"),
        ("edge", "text_config", {"hybrid_override_pattern": "*-*-", "num_hidden_layers": 5}, "by turns"),
        ("edge", "text_config", {"hybrid_override_pattern": "M-*-", "num_hidden_layers": 4}, "by turns"),
        ("edge", "vision_config", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ],
)
def test_configs_that_would_compute_something_else_are_refused(kind, part, change, message):
    plain = config_of(kind)
    plain[part] |= change
    with pytest.raises(ConfigError, match=message):
        cosmos3.to_config(plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_processor": {"patch_size": 14}}, "patch_size is 14"),
        ({"video_processor": {"num_frames": 8}}, "8 frames of every video"),
        ({"image_processor": {"do_normalize": False}}, "do_normalize is False"),
        ({"image_processor": {"image_mean": [0.4, 0.4, 0.4]}, "video_processor": {}}, "normalised differently"),
        ({"image_processor": {"image_mean": [0.4, 0.4]}}, "three numbers"),
        ({"image_processor": {"size": 224}}, "size is 224"),
        ({"image_processor": 5}, "must be an object"),
    ],
)
def test_processors_that_would_do_something_else_are_refused(change, message):
    config = cosmos3.to_config(config_of("nano"))
    with pytest.raises(ConfigError, match=message):
        families.families()["cosmos3"].read_media(config, {"processor_config.json": change})


def test_processor_files_of_older_checkpoints():
    config = cosmos3.to_config(config_of("nano"))
    files = {
        "preprocessor_config.json": {"min_pixels": 1024, "max_pixels": 4096, "image_mean": [0.4, 0.5, 0.6]},
        "video_preprocessor_config.json": {"size": {"shortest_edge": 64, "longest_edge": 9999}, "fps": 3},
    }
    files["video_preprocessor_config.json"] |= {"image_mean": [0.4, 0.5, 0.6], "max_frames": 12, "min_frames": 2}
    read = families.families()["cosmos3"].read_media(config, files)
    media = read.media
    assert (media.min_pixels, media.max_pixels, media.video_min_pixels, media.video_max_pixels) == (
        1024,
        4096,
        64,
        9999,
    )
    assert (media.fps, media.min_frames, media.max_frames) == (3.0, 2, 12)
    assert read.vision.mean == (0.4, 0.5, 0.6)
    assert read.vision.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_layout_cannot_say_is_refused(kind):
    config = cosmos3.to_config(config_of(kind))
    odd = [
        replace(config, vision=None),
        replace(config, context=replace(config.context, pattern="-*" * 4)),
        replace(config, context=replace(config.context, residual_fp32=True)),
        replace(config, vision=replace(config.vision, final_norm=kind == "nano")),
        replace(config, vision=replace(config.vision, projector="relu2")),
    ]
    for changed in odd:
        with pytest.raises(ConfigError, match="cosmos3 layout"):
            cosmos3.from_config(changed)


@pytest.mark.parametrize(
    ("frames", "fps", "start", "stop"), [(50, 10.0, 1.0, 3.5), (50, 10.0, 4.0, None), (9, 3.0, 0, 1)]
)
def test_a_part_of_a_video_is_sampled_as_a_video_of_its_own(frames, fps, start, stop):
    times = [i / fps for i in range(frames)]
    shown = [i for i, t in enumerate(times) if t >= start and (stop is None or t <= stop)]
    found = plan_uniform(times, fps, 2.0, 4, 768, start, stop)
    assert found == [shown[0] + i for i in plan_uniform(times[: len(shown)], fps, 2.0, 4, 768)]
    assert (found[0], found[-1]) == (shown[0], shown[-1])
