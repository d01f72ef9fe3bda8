"""Nano Omni twice from one folder, ours and that of transformers, and the same questions put to both."""

from pathlib import Path

import numpy as np
import torch
import transformers
from einops import rearrange
from PIL import Image
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
from omni.config import replace
from omni.model import Omni
from omni.tokenizers.frames import plan_frames
from omni.tokenizers.sound import Waveform
from omni.tokenizers.video import open_video

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


def with_last_frame(both: Both) -> Both:
    """Ours, counting frames as transformers does."""
    config = replace(both.ours.config, sound=replace(both.ours.config.sound, last_frame=True))
    model = Omni(config).eval()
    model.load_state_dict(both.ours.state_dict())
    model.tokenizer = both.ours.tokenizer
    changed = object.__new__(Both)
    changed.__dict__ = {**both.__dict__, "ours": model}
    return changed
