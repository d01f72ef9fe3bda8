"""Nano Omni against transformers' model and processor: the same folder, the same messages, the same numbers.

transformers 5.23 cannot run a video (its features are no list) and prunes square frames only; what is put right here
for the comparison is said where it happens. Its processor writes images and videos with the same token, so a prompt
with both is put together from its parts.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ParakeetFeatureExtractor, PreTrainedTokenizerFast
from transformers.models.nemotron_h_omni import modeling_nemotron_h_omni as modeling
from transformers.models.nemotron_h_omni.configuration_nemotron_h_omni import NemotronH_Omni_Reasoning_V3_Config
from transformers.models.nemotron_h_omni.image_processing_nemotron_h_omni import (
    NemotronH_Omni_Reasoning_V3ImageProcessor,
)
from transformers.models.nemotron_h_omni.processing_nemotron_h_omni import NemotronH_Omni_Reasoning_V3Processor
from transformers.models.nemotron_h_omni.video_processing_nemotron_h_omni import (
    NemotronH_Omni_Reasoning_V3VideoProcessor,
)
from transformers.video_utils import VideoMetadata

import omni
import tokenizers as hf
from omni import families
from omni.checkpoint import CheckpointError, export, find_tensors
from omni.config import ConfigError, MTPConfig, replace
from omni.families import nano_omni, nano_vl
from omni.inputs import runs
from omni.model import Omni
from omni.prepare import frame_size
from omni.rules import Table
from omni.tokenizers import sizing
from omni.tokenizers.sound import Waveform, sound_tokens
from omni.tokenizers.video import Video, open_video, plan_frames

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TEMPLATE = (Path(__file__).parent / "templates" / "nemotron3.jinja").read_text()
SPECIAL = {0: "<unk>", 1: "<s>", 2: "</s>", 10: "<|im_start|>", 11: "<|im_end|>", 12: "<think>", 13: "</think>"}
SPECIAL |= {18: "<image>", 21: "<img>", 22: "</img>", 27: "<so_embedding>", 28: "<so_start>", 29: "<so_end>"}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
RATE = 16_000

TEXT = {
    "vocab_size": 420, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12,
    "intermediate_size": 40, "ssm_state_size": 16, "mamba_num_heads": 8, "mamba_head_dim": 6, "n_groups": 2,
    "chunk_size": 16, "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 20,
    "moe_shared_expert_intermediate_size": 28, "moe_latent_size": None, "routed_scaling_factor": 2.5,
    "layers_block_type": ["linear_attention", "moe", "full_attention", "moe", "linear_attention"],
}  # fmt: skip
VISION = {
    "model_type": "radio", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 4,
    "max_img_size": 32, "num_cls_tokens": 2, "num_registers": 3, "video_temporal_patch_size": 2,
}  # fmt: skip
AUDIO = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20, "num_mel_bins": 16,
    "subsampling_conv_channels": 6, "projection_hidden_size": 24, "projection_bias": False, "convolution_bias": False,
}  # fmt: skip


def backend() -> hf.Tokenizer:
    made = hf.Tokenizer(hf.models.BPE())
    made.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[SPECIAL.get(i, f"<SPECIAL_{i}>") for i in range(30)],
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(
        ["Frame 1 sampled at 0.00 seconds and frame 2 sampled at 0.50 seconds: what? " * 3], trainer
    )
    return made


def processor() -> NemotronH_Omni_Reasoning_V3Processor:
    norms = {"norm_mean": MEAN, "norm_std": STD, "patch_size": 4}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend(), bos_token="<s>", eos_token="<|im_end|>", pad_token="<unk>", chat_template=TEMPLATE,
        padding_side="left",
    )  # fmt: skip
    return NemotronH_Omni_Reasoning_V3Processor(
        image_processor=NemotronH_Omni_Reasoning_V3ImageProcessor(min_num_patches=16, max_num_patches=90, **norms),
        video_processor=NemotronH_Omni_Reasoning_V3VideoProcessor(video_target_num_patches=36, **norms),
        tokenizer=tokenizer,
        feature_extractor=ParakeetFeatureExtractor(feature_size=AUDIO["num_mel_bins"]),
    )


def reference(seed: int, **text) -> modeling.NemotronH_Omni_Reasoning_V3:
    """A random model with no parameter at a trivial value; layer scales, which no checkpoint has, stay at one."""
    config = NemotronH_Omni_Reasoning_V3_Config(
        text_config={"model_type": "nemotron_h", **TEXT, **text}, vision_config=VISION, audio_config=AUDIO,
        vision_hidden_size=24, projector_hidden_size=40, image_token_id=18, audio_token_id=27, video_token_id=131_081,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = modeling.NemotronH_Omni_Reasoning_V3(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn_like(p)
            if name.endswith("A_log"):
                p.copy_(noise)
            elif name.endswith("dt_bias"):
                p.copy_(noise - 3)
            elif p.dim() == 1 and name.endswith(("weight", ".D")):
                p.copy_(1 + 0.3 * noise)
            elif "lambda1" not in name:
                p.copy_(noise * (0.3 if p.dim() == 1 else p[0].numel() ** -0.5))
        for name, b in model.named_buffers():
            if name.endswith("running_var"):
                b.copy_(0.5 + torch.rand_like(b))
            elif name.endswith(("running_mean", "e_score_correction_bias")):
                b.copy_(0.3 * torch.randn_like(b))
    for layer in model.language_model.model.layers:
        if layer.block_type == "linear_attention":
            layer.mixer.time_step_limit = (0.0, float("inf"))  # as published: no clamp
    return model


class Both:
    """The two models of one folder, and how the same question is put to each."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.theirs, self.processor = folder, reference(seed), processor()
        self.theirs.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        self.ours = omni.load(str(folder), device="cpu")

    def text(self, content: str) -> str:
        turns = [{"role": "user", "content": content}]
        return self.processor.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    def read(self, content: str | list[str], **media) -> dict[str, torch.Tensor]:
        """Their processor's answer."""
        texts = [self.text(c) for c in ([content] if isinstance(content, str) else content)]
        return self.processor(text=texts, return_tensors="pt", padding=True, **media)

    @torch.no_grad()
    def see_video(self, pixels: torch.Tensor):
        """Their features of a video, in the list that their forward expects."""
        found = self.theirs.get_video_features(pixels, return_dict=True)
        found.pooler_output = [found.pooler_output]
        return found

    @torch.no_grad()
    def logits(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = {k: v for k, v in inputs.items() if k != "token_type_ids"}
        videos = inputs.pop("pixel_values_videos", None)
        if videos is not None:
            inputs["mm_encoder_outputs"] = {"video": self.see_video(videos)}
        return self.theirs(**inputs, use_cache=False).logits

    @torch.no_grad()
    def greedy(self, inputs: dict[str, torch.Tensor], steps: int) -> list[int]:
        """The whole is read again for every token."""
        made: list[int] = []
        for _ in range(steps):
            made.append(int(self.logits(inputs)[0, -1].argmax()))
            one = torch.tensor([[made[-1]]])
            inputs = {**inputs, "input_ids": torch.cat([inputs["input_ids"], one], dim=1)}
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        return made

    @torch.no_grad()
    def our_greedy(self, inputs, steps: int) -> list[int]:
        cache, made, step = self.ours.new_cache(1), [], inputs
        for _ in range(steps):
            step = self.ours.logits(step, cache, last_only=True)[:, -1].argmax(-1, keepdim=True)
            made.append(int(step))
        return made


@pytest.fixture(scope="module", params=[0, 1, 2])
def both(request, tmp_path_factory):
    return Both(tmp_path_factory.mktemp("omni"), request.param)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return Both(tmp_path_factory.mktemp("omni"), 7)


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def film(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Frames that change in places only."""
    rng = np.random.default_rng(seed)
    still = rng.integers(0, 256, (height, width, 3))
    moved = rng.integers(-90, 90, (frames, height, width, 3)) * (rng.random((frames, 1, width, 1)) < 0.4)
    return (still + moved).clip(0, 255).astype(np.uint8)


def tone(samples: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.3 * np.sin(np.arange(samples) / 9) * rng.random(samples)).astype(np.float32)


def image_part(image: Image.Image) -> dict:
    return {"type": "image", "image": image}


def sound_part(samples: np.ndarray) -> dict:
    return {"type": "audio", "audio": Waveform(torch.from_numpy(samples), RATE)}


def question(*parts: dict | str) -> list[dict]:
    return [{"role": "user", "content": [p if isinstance(p, dict) else {"type": "text", "text": p} for p in parts]}]


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    assert theirs.std() > 1e-2  # there is something to compare
    return float((ours - theirs).abs().max() / theirs.abs().max())


def patches(pixels: torch.Tensor, mean: tuple = MEAN, std: tuple = STD) -> torch.Tensor:
    """Our pixels as their processor gives them: normalised, in rows of patches."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (mean, std))
    return rearrange((pixels - mean) / std, "c (h y) (w x) -> (h w) (c y x)", y=4, x=4)


@torch.no_grad()
def same(both: Both, ours, theirs: dict[str, torch.Tensor], steps: int = 0) -> None:
    """Ids, logits and greedy tokens."""
    assert ours.input_ids.tolist() == theirs["input_ids"].tolist()
    real = theirs["attention_mask"].bool()
    assert real.all() if ours.mask is None else torch.equal(ours.mask, real)
    assert error(both.ours.logits(ours)[real], both.logits(theirs)[real]) < 1e-4
    if steps:
        assert both.our_greedy(ours, steps) == both.greedy(theirs, steps)


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
        rows = patches(pixels, nano_vl.CLIP_MEAN, nano_vl.CLIP_STD)
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


# -- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(24, 40), (17, 9), (64, 64), (12, 90), (5, 5), (131, 77)])
def test_one_image(both, size):
    image = picture(*size)
    ours = both.ours.prepare(question(image_part(image), "\nWhat?"))
    theirs = both.read("<image>\nWhat?", images=[image])
    assert error(patches(ours.pixels[0]), theirs["pixel_values"]) < 1e-4
    same(both, ours, theirs, steps=6 if size == (17, 9) else 0)


def test_several_images_of_different_sizes(both):
    images = [picture(*size, seed=n) for n, size in enumerate([(24, 40), (64, 31), (9, 9), (24, 40)])]
    ours = both.ours.prepare(question(*(image_part(i) for i in images[:3]), "and", image_part(images[3]), "?"))
    theirs = both.read("<image><image><image>and<image>?", images=images)
    assert error(torch.cat([patches(p) for p in ours.pixels]), theirs["pixel_values"]) < 1e-4
    same(both, ours, theirs, steps=6)


def test_a_padded_batch_of_images(both):
    images = [picture(*size, seed=n) for n, size in enumerate([(24, 40), (64, 31), (9, 9)])]
    ours = both.ours.prepare([
        question(image_part(images[0]), "What is this?"),
        question("Only text"),
        question("Which of", image_part(images[1]), image_part(images[2]), "?"),
    ])  # fmt: skip
    theirs = both.read(["<image>What is this?", "Only text", "Which of<image><image>?"], images=images)
    assert ours.mask is not None
    same(both, ours, theirs)


# -- videos ----------------------------------------------------------------------------------------------------------


def video_question(frames: np.ndarray, rate: float, **options) -> tuple[list[dict], dict]:
    """Our message, and the frames that are looked at as their processor takes them."""
    opened = open_video(frames, fps=rate)
    indices = plan_frames(opened.times, options.get("fps", 2.0), options.get("max_frames", 128))
    metadata = VideoMetadata(total_num_frames=len(frames), fps=rate, frames_indices=indices)
    chosen = torch.from_numpy(frames[indices]).permute(0, 3, 1, 2)
    return (
        question({"type": "video", "video": opened, **options}, "\nWhat?"),
        {"videos": [chosen], "video_metadata": metadata, "do_sample_frames": False},
    )


@pytest.mark.parametrize(
    ("frames", "size", "fps", "options"),
    [
        (8, (24, 24), 2.0, {}),
        (30, (40, 70), 7.0, {}),  # 8 of them
        (31, (64, 20), 30.0, {"fps": 9.0}),  # an odd number; 33 ms a frame
        (5, (30, 30), 1.0, {"max_frames": 3}),
        (1, (24, 44), 2.0, {}),
    ],
)
def test_video(both, frames, size, fps, options):
    messages, media = video_question(film(frames, *size), fps, **options)
    ours = both.ours.prepare(messages)
    theirs = both.read("<video>\nWhat?", **media)
    n = len(theirs["pixel_values_videos"])
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    assert error((ours.pixels[0][:n] - mean) / std, theirs["pixel_values_videos"]) < 1e-4
    assert len(ours.pixels[0]) == n + n % 2
    same(both, ours, theirs, steps=5 if frames == 31 else 0)


def test_options_of_a_call_count_as_those_of_the_part(one):
    messages, _ = video_question(film(12, 24, 24), 4.0, fps=3.0, max_frames=6)
    plain, _ = video_question(film(12, 24, 24), 4.0)
    a, b = one.ours.prepare(messages), one.ours.prepare(plain, fps=3.0, max_frames=6)
    assert torch.equal(a.input_ids, b.input_ids)
    assert torch.equal(a.pixels[0], b.pixels[0])


@pytest.mark.parametrize("rate", [0.5, 0.75])
@pytest.mark.parametrize("frames", [8, 7, 2])
@torch.no_grad()
def test_pruned_video_of_square_frames(both, rate, frames):
    messages, media = video_question(film(frames, 24, 24, seed=frames), 2.0)
    ours = both.ours.prepare(messages, pruning=rate)
    theirs = both.read("<video>\nWhat?", **media)
    both.theirs.video_pruning_rate = rate
    try:
        expected = both.logits(theirs)
    finally:
        both.theirs.video_pruning_rate = 0.0
    assert ours.input_ids.shape[1] < theirs["input_ids"].shape[1] or frames == 2
    assert error(both.ours.logits(ours), expected) < 1e-4


@pytest.mark.parametrize("rate", [0.5, 0.75])
@torch.no_grad()
def test_pruned_video_of_other_frames(both, rate):
    """Their own mask with the right grid; the language model on what it keeps."""
    messages, media = video_question(film(9, 30, 60), 2.0)
    ours = both.ours.prepare(messages, pruning=rate)
    theirs = both.read("<video>\nWhat?", **media)
    (seen,) = both.see_video(theirs["pixel_values_videos"]).pooler_output
    h, w = (side // 8 for side in theirs["pixel_values_videos"].shape[-2:])
    assert h != w
    kept = modeling.compute_retention_mask(video_embeds=seen, thw=(len(seen), h, w), spatial_merge_size=1, q=rate)
    assert torch.equal(ours.kept[0].flatten(), kept)
    ids = theirs["input_ids"]
    stays = torch.ones_like(ids, dtype=torch.bool)
    stays[ids == 18] = kept
    embedded = both.theirs.get_input_embeddings()(ids)
    embedded[ids == 18] = seen.flatten(0, 1)
    expected = both.theirs.language_model(inputs_embeds=embedded[stays][None], use_cache=False).logits
    assert ours.input_ids.tolist() == [ids[stays].tolist()]
    assert error(both.ours.logits(ours), expected) < 1e-4


# -- sounds ----------------------------------------------------------------------------------------------------------


def with_last_frame(both: Both) -> Both:
    """Ours, counting frames as transformers does."""
    config = replace(both.ours.config, sound=replace(both.ours.config.sound, last_frame=True))
    model = Omni(config).eval()
    model.load_state_dict(both.ours.state_dict())
    model.tokenizer = both.ours.tokenizer
    changed = object.__new__(Both)
    changed.__dict__ = {**both.__dict__, "ours": model}
    return changed


@pytest.mark.parametrize("samples", [1600, 8_000, 12_345, 12_800, 20_480])
def test_sound_counted_as_they_do(both, samples):
    changed = with_last_frame(both)
    ours = changed.ours.prepare(question(sound_part(tone(samples)), "What?"))
    theirs = both.read("<so_embedding>What?", audio=[tone(samples)])
    assert error(ours.sounds[0], theirs["input_features"][0]) < 1e-4
    same(changed, ours, theirs, steps=5 if samples == 12_800 else 0)


@pytest.mark.parametrize(("samples", "tokens"), [(8_000, 7), (12_345, 10), (12_800, 10), (20_480, 16), (12_960, 11)])
@torch.no_grad()
def test_sound_counted_by_its_own_frames(both, samples, tokens):
    """Our count is theirs without the token behind a sound whose frames divide by 8; every other token is the same."""
    ours = both.ours.prepare(question(sound_part(tone(samples)), "What?"))
    theirs = both.read("<so_embedding>What?", audio=[tone(samples)])
    more = int(samples // 160 % 8 == 0)
    assert int((ours.input_ids == 27).sum()) == tokens
    assert int((theirs["input_ids"] == 27).sum()) == tokens + more
    heard = both.theirs.get_audio_features(theirs["input_features"], theirs["input_features_mask"]).pooler_output
    assert error(both.ours.hear(ours.sounds)[0], heard[:tokens]) < 1e-4
    if not more:
        same(both, ours, theirs)


def test_several_sounds_and_images_in_a_padded_batch(both):
    changed = with_last_frame(both)
    sounds = [tone(n, seed=n) for n in (4_000, 12_800, 9_999)]
    image = picture(30, 50)
    ours = changed.ours.prepare([
        question(sound_part(sounds[0]), "What?"),
        question(image_part(image), "and", sound_part(sounds[1]), sound_part(sounds[2]), "?"),
    ])  # fmt: skip
    texts = ["<so_embedding>What?", "<image>and<so_embedding><so_embedding>?"]
    same(changed, ours, both.read(texts, audio=sounds, images=[image]))


def test_a_long_sound_is_heard_in_clips(one):
    config = replace(one.ours.config, sound=replace(one.ours.config.sound, clip_seconds=0.5))
    model = Omni(config).eval()
    model.load_state_dict(one.ours.state_dict())
    model.tokenizer = one.ours.tokenizer
    samples = tone(20_000)
    inputs = model.prepare(question(sound_part(samples), "?"))
    assert [len(clip) for clip in inputs.sounds] == [50, 50, 25]
    assert int((inputs.input_ids == 27).sum()) == 7 + 7 + 4 == sound_tokens(20_000, config.sound)
    assert len(runs(inputs.input_ids == 27)) == 1


# -- all of them -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_image_video_and_sound_together(both):
    """From their parts: each medium by their processor and encoder, in its place in the text."""
    changed = with_last_frame(both)
    image, samples = picture(30, 50), tone(9_000)
    (message,), media = video_question(film(7, 30, 60), 4.0)
    video = message["content"][0]
    ours = changed.ours.prepare(question("See", video, sound_part(samples), image_part(image), "and say."))
    single = {
        "<video>": both.read("<video>", **media),
        "<so_embedding>": both.read("<so_embedding>", audio=[samples]),
        "<image>": both.read("<image>", images=[image]),
    }
    encode = both.processor.tokenizer
    before, after = (encode(t, add_special_tokens=False)["input_ids"] for t in both.text("@@").split("@@"))
    cut = {k: v["input_ids"][0, len(before) : -len(after)].tolist() for k, v in single.items()}
    middle = [cut[k] for k in ("<video>", "<so_embedding>", "<image>")]
    head, tail = (encode(t, add_special_tokens=False)["input_ids"] for t in both.text("See@@and say.").split("@@"))
    ids = torch.tensor([[*head, *(i for part in middle for i in part), *tail]])
    assert ours.input_ids.tolist() == ids.tolist()
    (seen,) = both.see_video(single["<video>"]["pixel_values_videos"]).pooler_output
    shown = both.theirs.get_image_features(single["<image>"]["pixel_values"], single["<image>"]["image_grid_hw"])
    sounds = single["<so_embedding>"]
    heard = both.theirs.get_audio_features(sounds["input_features"], sounds["input_features_mask"]).pooler_output
    embedded = both.theirs.get_input_embeddings()(ids)
    embedded[ids == 18] = torch.cat([seen.flatten(0, 1), *shown.pooler_output])
    embedded[ids == 27] = heard
    expected = both.theirs.language_model(inputs_embeds=embedded, use_cache=False).logits
    assert error(changed.ours.logits(ours), expected) < 1e-4


def test_the_sound_of_a_video_follows_it(one):
    (message,), _ = video_question(film(6, 24, 24), 2.0)
    video = {**message["content"][0], "sound": Waveform(torch.from_numpy(tone(9_000)), RATE)}
    apart = question(message["content"][0], sound_part(tone(9_000)), "?")
    assert one.ours.prepare(question(video, "?")).input_ids.tolist() == one.ours.prepare(apart).input_ids.tolist()


def test_tokens_are_counted_before_anything_is_decoded(one):
    """From two numbers of a header; the reference's frames are not even fetched."""
    media, v = one.ours.config.media, one.ours.config.vision
    for size in ((24, 40), (17, 9), (131, 77)):
        most = sizing.patch_budget(media.max_context, 1, v.shuffle, media.min_patches, media.max_patches)
        wanted = sizing.dynamic_size(*size, v.patch_size, v.shuffle, media.min_patches, most)
        inputs = one.ours.prepare(question(image_part(picture(*size)), "?"))
        assert int((inputs.input_ids == 18).sum()) == sizing.grid_tokens(wanted, v.patch_size, v.shuffle)

    def fetch(indices):
        raise AssertionError("a frame was decoded")

    times = np.arange(9) / 2
    closed = Video("closed", times, 2.0, 4.5, (30, 60), "pyav", False, fetch)
    indices = plan_frames(closed.times, media.fps, media.max_frames)
    tokens = sizing.grid_tokens(frame_size(one.ours, closed.size, len(indices)), v.patch_size, v.shuffle)
    inputs = one.ours.prepare(video_question(film(9, 30, 60), 2.0)[0])
    assert int((inputs.input_ids == 18).sum()) == tokens * 5
    samples = 12_345
    inputs = one.ours.prepare(question(sound_part(tone(samples)), "?"))
    assert int((inputs.input_ids == 27).sum()) == sound_tokens(samples, one.ours.config.sound)


def test_names_in_a_message_stay_text(one):
    """Whoever writes a placeholder or a frame's brackets makes no medium of it."""
    image = picture(24, 40)
    inputs = one.ours.prepare(question("<image><img></img><so_embedding><video>", image_part(image), "</img>"))
    ids = inputs.input_ids[0].tolist()
    assert (ids.count(21), ids.count(22), ids.count(27)) == (1, 1, 0)
    assert len(runs(inputs.input_ids == 18)) == 1


LISTS = """{%- for m in messages -%}[{{ m.role }}]{%- for part in m.content -%}
{%- if part.type == 'text' -%}{{ part.text }}{%- elif part.type == 'image' -%}<image>
{%- elif part.type == 'audio' -%}<so_embedding>{%- endif -%}{%- endfor -%}{%- endfor -%}"""


def test_templates_that_read_lists_of_parts(one, tmp_path):
    for path in one.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(LISTS)
    model = omni.load(str(tmp_path), device="cpu")
    inputs = model.prepare(question(sound_part(tone(8_000)), "a", image_part(picture(24, 40)), "b"))
    ids = inputs.input_ids[0].tolist()
    assert (ids.count(28), ids.count(27), ids.count(29), ids.count(21), ids.count(22)) == (1, 7, 1, 1, 1)
    assert ids.index(28) < ids.index(21)


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
