"""Nano Omni's folder against transformers': both spellings, names, text, sizes, and what the layout cannot say."""

import json

import pytest
import torch
from nano_pair import (
    MEAN,
    RATE,
    STD,
    Both,
    error,
    patches,
    reference,
)
from safetensors.torch import load_file, save_file
from transformers.models.nemotron_h_omni import modeling_nemotron_h_omni as modeling
from transformers.models.nemotron_h_omni.configuration_nemotron_h_omni import NemotronH_Omni_Reasoning_V3_Config
from transformers.models.nemotron_h_omni.image_processing_nemotron_h_omni import (
    NemotronH_Omni_Reasoning_V3ImageProcessor,
)
from transformers.models.nemotron_h_omni.video_processing_nemotron_h_omni import (
    NemotronH_Omni_Reasoning_V3VideoProcessor,
)

import omni
from omni import families
from omni.checkpoint import CheckpointError, export, find_tensors
from omni.config import ConfigError, MTPConfig, replace
from omni.families import nano_omni, nano_shared
from omni.model import Omni
from omni.rules import Table


@pytest.fixture(scope="module", params=[0, 1, 2])
def both(request, tmp_path_factory):
    return Both(tmp_path_factory.mktemp("omni"), request.param)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return Both(tmp_path_factory.mktemp("omni"), 7)


# -- the folder ------------------------------------------------------------------------------------------------------


def test_what_their_files_say(one):
    config = one.ours.config
    assert config.special_tokens == {"bos": 1, "eos": 2, "pad": 0, "image": 18, "sound": 27, "video_mark": 131_081}
    assert (config.vision.mean, config.vision.std) == (MEAN, STD)
    media = config.media
    assert (media.min_patches, media.max_patches, media.video_patches, media.max_context) == (16, 90, 36, 16_384)
    assert not config.sound.bias
    assert not config.sound.scale_input
    assert config.vision.n_prefix == 5


@torch.no_grad()
def test_what_we_write_they_load_and_we_load(one, tmp_path):
    families.save(one.ours, tmp_path, family="nano_omni", shard_bytes=60_000)
    again = omni.load(str(tmp_path), device="cpu")
    assert again.config == one.ours.config
    for (name, a), b in zip(one.ours.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    theirs, info = modeling.NemotronH_Omni_Reasoning_V3.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert all("lambda1" in k or "summary_idxs" in k or "conditioner" in k for k in info["missing_keys"])
    expected = one.theirs.state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    images = NemotronH_Omni_Reasoning_V3ImageProcessor.from_pretrained(tmp_path)
    videos = NemotronH_Omni_Reasoning_V3VideoProcessor.from_pretrained(tmp_path)
    assert (tuple(images.image_mean), images.max_num_patches, images.patch_size) == (MEAN, 90, 4)
    assert (tuple(videos.norm_std), videos.video_target_num_patches) == (STD, 36)


def hub_spelling(plain: dict) -> dict:
    """config.json as the published checkpoint spells it."""
    plain = json.loads(json.dumps(plain))
    names = {
        "text_config": "llm_config", "audio_config": "sound_config", "vision_hidden_size": "vit_hidden_size",
        "image_token_id": "img_context_token_id", "video_token_id": "video_context_token_id",
        "audio_token_id": "sound_context_token_id",
    }  # fmt: skip
    plain = {names.get(k, k): v for k, v in plain.items()}
    label = "NemotronH_Nano_Omni_Reasoning_V3"
    plain |= {"model_type": label, "architectures": [label], "ps_version": "v2", "patch_size": 4}
    sound = plain["sound_config"]
    for key in ("attention_bias", "scale_input", "num_key_value_heads"):
        del sound[key]
    sound |= {"model_type": "parakeet", "feat_in": 80, "sampling_rate": RATE}
    return plain


def test_both_spellings_and_stray_tensors_are_read(one, tmp_path):
    plain = json.loads((one.folder / "config.json").read_text())
    spelled = hub_spelling(plain)
    assert nano_omni.to_config(spelled) == nano_omni.to_config(plain)
    for label in ("NemotronH_Super_Omni_Reasoning_V3", "NemotronH_Nano_VL_V2"):
        assert families.family_of({**spelled, "model_type": label, "architectures": [label]}, "x").name == "nano_omni"
    tensors = load_file(one.folder / "model.safetensors")
    tensors |= {
        "vision_model.radio_model.input_conditioner.norm_mean": torch.zeros(3, 1, 1),
        "vision_model.radio_model.input_conditioner.norm_std": torch.ones(3, 1, 1),
        "sound_encoder.encoder.feature_extractor.featurizer.fb": torch.zeros(1, 16, 257),
        "sound_encoder.encoder.feature_extractor.featurizer.window": torch.zeros(400),
        "sound_encoder.encoder.layers.1.conv.pointwise_conv1.bias": torch.ones(32),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(spelled))
    model = omni.load(str(tmp_path), device="cpu")
    for (name, a), b in zip(one.ours.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    save_file({**tensors, "vision_model.radio_model.extra": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"radio_model\.extra"):
        omni.load(str(tmp_path), device="cpu")


def test_placeholders_are_found_by_name(one, tmp_path):
    for path in one.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    plain = json.loads((tmp_path / "config.json").read_text())
    plain |= {"image_token_id": None, "audio_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(plain))
    model = omni.load(str(tmp_path), device="cpu")
    assert (model.config.special_tokens["image"], model.config.special_tokens["sound"]) == (18, 27)


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        ((), {"ps_version": "v1"}, "ps_version is 'v1'"),
        ((), {"odd": 3}, "odd = 3"),
        ((), {"downsample_ratio": 0.4}, "downsample_ratio is 0.4"),
        ((), {"video_temporal_patch_size": 4}, "video_temporal_patch_size is 4; vision_config says 2"),
        ((), {"projector_hidden_size": None}, "lacks projector_hidden_size"),
        ((), {"vit_hidden_size": 25}, "vit_hidden_size"),
        ((), {"llm_config": 3}, "llm_config is 3"),
        (("vision_config",), {"hidden_act": "silu"}, "hidden_act is 'silu'"),
        (("vision_config",), {"layerscale_value": 0.1}, "layerscale_value is 0.1"),
        (("vision_config",), {"odd": 3}, "odd = 3"),
        (("vision_config",), {"hidden_size": None, "args": {"model": "vit_odd"}}, "'vit_odd'; known"),
        (("sound_config",), {"projection_bias": True}, "projection_bias is True"),
        (("sound_config",), {"subsampling_factor": 6}, "power of two"),
        (("llm_config",), {"sliding_window": 9}, "sliding_window is 9"),
    ],
)
def test_configs_that_would_compute_something_else_are_refused(one, place, change, message):
    plain = hub_spelling(json.loads((one.folder / "config.json").read_text()))
    target = plain
    for key in place:
        target = target[key]
    target |= change
    with pytest.raises(ConfigError, match=message):
        nano_omni.to_config(plain)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("preprocessor_config.json", {"patch_size": 14}, "patch_size is 14"),
        ("preprocessor_config.json", {"resample": 2}, "resample is 2"),
        ("preprocessor_config.json", {"norm_mean": [0.1, 0.2, 0.3]}, "differently"),
        ("preprocessor_config.json", {"max_num_patches": "many"}, "max_num_patches is 'many'"),
        ("processor_config.json", {"feature_extractor": {"n_fft": 400}}, "n_fft is 400"),
    ],
)
def test_processors_that_would_compute_something_else_are_refused(one, name, content, message):
    files = {"video_preprocessor_config.json": {"norm_mean": MEAN}, name: content}
    with pytest.raises(ConfigError, match=message):
        nano_omni.read_media(one.ours.config, files)


def test_super_omni_has_a_final_norm_that_its_file_may_leave_out(tmp_path):
    theirs = reference(3, num_nextn_predict_layers=1)
    theirs.save_pretrained(tmp_path / "theirs")
    plain = json.loads((tmp_path / "theirs" / "config.json").read_text())
    config = nano_omni.to_config(plain)
    assert (config.mtp, config.vision.final_norm) == (MTPConfig(), True)
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    blocks = Omni(config)  # transformers has no prediction block: ours, at random
    mtp = {n: t for n, t in blocks.state_dict().items() if n.startswith("mtp.")}
    tensors |= {item.name: item.tensor.clone() for item in export(mtp, nano_omni.rules(config))}
    moved = {k.replace("vision_final", "vision_projector.vision_final"): v for k, v in tensors.items()}
    without = {k: v for k, v in tensors.items() if "vision_final" not in k}
    models = {}
    for name, held in (("plain", tensors), ("moved", moved), ("without", without)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(plain))
        save_file(held, tmp_path / name / "model.safetensors")
        models[name] = omni.load(str(tmp_path / name), device="cpu")
    grid = (4, 6)
    pixels = torch.rand(3, 16, 24)
    with torch.no_grad():
        rows = patches(pixels, nano_shared.CLIP_MEAN, nano_shared.CLIP_STD)
        (expected,) = theirs.get_image_features(rows, torch.tensor([grid])).pooler_output
        for name in ("plain", "moved"):
            assert error(models[name].see_all([pixels])[0], expected) < 1e-4
        assert error(models["without"].see_all([pixels])[0], expected) > 1e-2
        torch.nn.init.ones_(theirs.vision_final_layernorm.weight)
        torch.nn.init.zeros_(theirs.vision_final_layernorm.bias)
        (expected,) = theirs.get_image_features(rows, torch.tensor([grid])).pooler_output
        assert error(models["without"].see_all([pixels])[0], expected) < 1e-4
    families.save(models["plain"], tmp_path / "ours", family="nano_omni")
    assert omni.load(str(tmp_path / "ours"), device="cpu").config == models["plain"].config
    names = find_tensors(tmp_path / "ours")
    assert {"mtp.layers.0.enorm.weight", "vision_final_layernorm.bias", "language_model.lm_head.weight"} <= set(names)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("sound", {"last_frame": True}, "last frame"),
        ("sound", {"clip_seconds": 10.0}, "clips"),
        ("media", {"sound_text": "{run}"}, "sound_text"),
        ("vision", {"final_norm": True}, "final norm"),
        ("vision", {"positions": "resized"}, "RADIO"),
    ],
)
def test_what_the_layout_cannot_say_is_refused(one, part, changes, message):
    config = one.ours.config
    with pytest.raises(ConfigError, match=message):
        nano_omni.from_config(replace(config, **{part: replace(getattr(config, part), **changes)}))


# -- sizes -----------------------------------------------------------------------------------------------------------


def test_the_published_size_is_that_of_the_reference():
    config = nano_omni.PRESETS["nemotron-3-nano-omni-30b"].config
    plain = nano_omni.from_config(config)
    again = nano_omni.read_media(nano_omni.to_config(plain), nano_omni.write_media(config))
    assert replace(again, sampling=config.sampling, special_tokens=config.special_tokens) == config
    reference_config = NemotronH_Omni_Reasoning_V3_Config(**plain)
    with torch.device("meta"):
        ours = Omni(config).state_dict()
        theirs = modeling.NemotronH_Omni_Reasoning_V3(reference_config).state_dict()
    kept = {
        k: v for k, v in theirs.items() if "lambda1" not in k and "summary_idxs" not in k and "conditioner" not in k
    }
    assert sum(t.numel() for t in ours.values()) == sum(t.numel() for t in kept.values()) == ELEMENTS
    assert round(2 * ELEMENTS / 2**30, 1) == 61.5
    items = export(ours, nano_omni.rules(config))
    assert len({item.name for item in items}) == len(items) == TENSORS
    table = Table(nano_omni.rules(config))
    assert {table.to_ours(item.name).name for item in items} == ours.keys()


ELEMENTS, TENSORS = 33_015_598_936, 6_243 + 32 * 12 + 4 + 3 + 24 * 29 + 12 + 3
"""Of Nano Omni with its towers; the published BF16 files hold 61.5 GiB."""
