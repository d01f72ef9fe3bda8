"""Sizes of every published checkpoint, on the meta device: element and tensor counts are exact."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    Cosmos3EdgeConfig,
    Cosmos3EdgeForConditionalGeneration,
    Cosmos3OmniConfig,
    Cosmos3OmniForConditionalGeneration,
)

from omni.checkpoint import export, plan
from omni.families import cosmos3_generator_sizes, cosmos3_sizes, families, presets
from omni.families.nemotron_h import from_config, to_config
from omni.families.nemotron_h_sizes import PRESETS
from omni.model import Omni
from omni.rules import Table
from omni.tensorfile import Entry

# id: (elements, tensors on disk, elements of the prediction block, layers of M * - E)
PUBLISHED = {
    "nemotron-h-4b": (4_489_223_040, 311, 0, (24, 4, 24, 0)),
    "nemotron-h-8b": (8_100_852_736, 311, 0, (24, 4, 24, 0)),
    "nemotron-h-47b": (46_791_554_816, 577, 0, (45, 5, 48, 0)),
    "nemotron-h-56b": (56_324_350_464, 701, 0, (54, 10, 54, 0)),
    "nano-12b-v2": (12_310_001_152, 369, 0, (28, 6, 28, 0)),
    "nano-9b-v2": (8_888_227_328, 341, 0, (27, 4, 25, 0)),
    "nemotron-3-nano-4b": (3_973_556_832, 263, 0, (21, 4, 17, 0)),
    "nemotron-3-nano-30b": (31_577_940_288, 6_243, 0, (23, 6, 0, 23)),
    "nemotron-3.5-lightning-30b": (32_913_266_240, 6_513, 1_335_325_952, (23, 6, 0, 23)),
    "nemotron-3-super-120b": (123_611_033_088, 42_683, 2_942_325_248, (40, 8, 0, 40)),
    "nemotron-3-ultra-550b": (560_524_603_904, 51_023, 11_215_610_368, (48, 12, 0, 48)),
}


def test_every_preset_is_checked():
    assert PUBLISHED.keys() == PRESETS.keys() <= presets().keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_names_and_both_directions(name):
    elements, tensors, prediction, layers = PUBLISHED[name]
    config = PRESETS[name].config
    with torch.device("meta"):
        state = Omni(config).state_dict()
    assert sum(t.numel() for t in state.values()) == elements
    assert sum(t.numel() for n, t in state.items() if n.startswith("mtp.")) == prediction
    assert tuple(config.context.pattern.count(letter) for letter in "M*-E") == layers

    rules = families()["nemotron_h"].rules(config)
    items = export(state, rules)
    assert len(items) == len({item.name for item in items}) == tensors
    assert sum(item.tensor.numel() for item in items) == elements
    table = Table(rules)
    back = {}
    for item in items:
        place = table.to_ours(item.name)
        shape = state[place.name].shape
        assert tuple(item.tensor.shape) == tuple(shape if place.index is None else shape[1:])
        back.setdefault(place.name, set()).add(place.index)
    assert back.keys() == state.keys()
    assert to_config(from_config(config)).context == config.context


def test_a_published_size_is_reached_byte_for_byte():
    """The BF16 file of Super has two further bytes for each of its float32 router biases."""
    with torch.device("meta"):
        state = Omni(PRESETS["nemotron-3-super-120b"].config).state_dict()
    wide = sum(t.numel() for name, t in state.items() if name.endswith("router.bias"))
    assert 2 * sum(t.numel() for t in state.values()) + 2 * wide == 247_222_108_160


def test_published_shapes():
    with torch.device("meta"):
        nine = Omni(PRESETS["nano-9b-v2"].config).state_dict()
        ultra = Omni(PRESETS["nemotron-3-ultra-550b"].config).state_dict()
    assert nine["context.blocks.0.mixer.in_proj.weight"].shape == (22656, 4480)
    assert ultra["context.blocks.0.mixer.in_proj.weight"].shape == (35072, 8192)
    assert ultra["context.blocks.1.mixer.experts.up_proj"].shape == (512, 5120, 2048)
    assert ultra["context.blocks.1.mixer.latent_in.weight"].shape == (2048, 8192)
    assert ultra["mtp.eh_proj.weight"].shape == (8192, 16384)
    assert ultra["context.blocks.1.mixer.router.bias"].dtype == torch.float32


# -- Cosmos 3's reasoners ----------------------------------------------------------------------------------------------

REASONERS = {  # elements, tensors on disk, elements of the vision tower and of its projectors
    "cosmos3-nano-reasoner": (8_767_123_696, 750, 415_891_440, 160_496_896),  # that of Qwen3-VL-8B
    "cosmos3-super-reasoner": (33_357_390_064, 1_058, 415_891_440, 179_375_360),
    "cosmos3-edge-reasoner": (2_435_616_496, 670, 412_649_712, 76_692_992),
}


def reasoner(name: str) -> torch.nn.Module:
    """The reference class at the sizes of the published files, without memory."""
    if name == "cosmos3-edge-reasoner":
        return Cosmos3EdgeForConditionalGeneration(Cosmos3EdgeConfig(text_config={}, vision_config={}))
    d, f, layers, heads = (4096, 12_288, 36, 32) if "nano" in name else (5120, 25_600, 64, 64)
    text = {
        "model_type": "qwen3_vl_text",
        "vocab_size": 151_936,
        "hidden_size": d,
        "intermediate_size": f,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "max_position_embeddings": 262_144,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
    }
    return Cosmos3OmniForConditionalGeneration(
        Cosmos3OmniConfig(text_config=text, vision_config={"out_hidden_size": d})
    )


def test_every_reasoner_is_checked():
    assert REASONERS.keys() == cosmos3_sizes.PRESETS.keys() <= presets().keys()


@pytest.mark.parametrize("name", REASONERS)
def test_reasoners_have_the_tensors_of_the_reference(name):
    elements, tensors, seeing, projecting = REASONERS[name]
    config = cosmos3_sizes.PRESETS[name].config
    with torch.device("meta"):
        theirs, ours = reasoner(name), Omni(config)
    state, published = ours.state_dict(), theirs.state_dict()
    assert sum(t.numel() for t in state.values()) == elements == sum(t.numel() for t in published.values())
    assert sum(t.numel() for t in ours.vision.parameters()) == seeing
    assert sum(t.numel() for t in ours.projector.parameters()) == projecting

    family = families()["cosmos3"]
    items = export(state, family.rules(config))
    assert len(items) == len({item.name for item in items}) == tensors == len(published)
    entries = {n: Entry(Path("x"), torch.bfloat16, tuple(t.shape), 0) for n, t in published.items()}
    shapes = {n: t.shape for n, t in state.items()}
    assert len(plan(entries, shapes, family.rules(config))) == tensors
    assert plan(
        {i.name: replace(entries["lm_head.weight"], shape=tuple(i.tensor.shape)) for i in items},
        shapes,
        family.rules(config),
    )

    read = family.to_config(theirs.config.to_dict())
    assert (read.context, read.vision, read.media) == (config.context, config.vision, config.media)
    assert read.max_positions == config.max_positions
    assert replace(family.to_config(family.from_config(config)), sampling=config.sampling) == config


# -- Cosmos 3's generators ---------------------------------------------------------------------------------------------

GENERATORS = {  # elements of the transformer, and of the vision tower and its projectors beside it
    "cosmos3-nano": (15_173_669_120, 576_388_336),
    "cosmos3-nano-policy-droid": (15_173_669_120, 576_388_336),
    "cosmos3-super": (64_019_736_832, 595_266_800),
    "cosmos3-super-text2image": (64_019_736_832, 595_266_800),
    "cosmos3-super-image2video": (64_019_736_832, 595_266_800),
    "cosmos3-super-text2image-4step": (63_997_928_640, 595_266_800),
    "cosmos3-super-image2video-4step": (63_997_928_640, 595_266_800),
    "cosmos3-edge": (3_369_657_024, 489_342_704),
    "cosmos3-edge-policy-droid": (3_369_657_024, 489_342_704),
}


def generator(name: str) -> torch.nn.Module:
    """The reference transformer at the published sizes, without memory."""
    from diffusers.models.transformers.transformer_cosmos3 import Cosmos3OmniTransformer

    sizes = {}
    if "super" in name:
        sizes = {"hidden_size": 5120, "intermediate_size": 25_600, "num_hidden_layers": 64, "num_attention_heads": 64}
    if "edge" in name:
        sizes = {"hidden_size": 2048, "intermediate_size": 9216, "num_hidden_layers": 28, "num_attention_heads": 16}
        sizes |= {"vocab_size": 131_072, "rope_theta": 1e8, "rms_norm_eps": 1e-5, "hidden_act": "relu2"}
        sizes |= {"qk_norm_for_text": False, "use_und_k_norm_for_gen": True}
    sizes["base_fps"] = 16 if name == "cosmos3-super-image2video-4step" else 24
    if not name.endswith("4step"):
        sizes |= {"action_gen": True, "action_dim": 64}
        sizes |= {} if "edge" in name else {"sound_gen": True, "sound_dim": 64}
    return Cosmos3OmniTransformer(**sizes)


def test_every_generator_is_checked():
    assert GENERATORS.keys() == cosmos3_generator_sizes.PRESETS.keys() <= presets().keys()


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_have_the_tensors_of_the_reference(name):
    elements, seeing = GENERATORS[name]
    config = cosmos3_generator_sizes.PRESETS[name].config
    with torch.device("meta"):
        theirs, ours = generator(name), Omni(config)
    state, published = ours.state_dict(), theirs.state_dict()
    assert sum(t.numel() for t in published.values()) == elements
    assert sum(t.numel() for t in state.values()) == elements + seeing

    rules = families()["cosmos3"].rules(config)
    items = {item.name: tuple(item.tensor.shape) for item in export(state, rules)}
    kind = next(kind for kind in ("nano", "super", "edge") if kind in name)
    with torch.device("meta"):
        text = sum("language_model" in n or "lm_head" in n for n in reasoner(f"cosmos3-{kind}-reasoner").state_dict())
    assert published.keys() <= items.keys()
    assert len(items) - len(published) == REASONERS[f"cosmos3-{kind}-reasoner"][1] - text
    assert all(items[n] == tuple(tensor.shape) for n, tensor in published.items())

    plain = {key: value for key, value in theirs.config.items() if key != "_use_default_values"}
    alone = families()["cosmos3_generator"].to_config(plain)
    same = replace(config, vision=None, latent=replace(config.latent, image_size=64))
    parts = ("context", "denoiser", "latent", "sound_latent", "action", "vocab_size", "max_positions")
    assert [getattr(alone, part) for part in parts] == [getattr(same, part) for part in parts]
