"""The reference implementation's Nemotron Omni: a random one written to a folder, and one read from it and asked.

sizes ──> random weights, processor, tokenizer ──> folder ──> Peer, and omni.load
Peer: media and a question ──> its processor ──> its forward ──> next-token logits
    further questions: the same again; or behind a copy of the cache of what stands before the question
"""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import tokenizers as hf  # Hugging Face's package
from omni.bench_tools import Span, transformers

KINDS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
SPECIAL = (
    "<unk>",
    "<|im_end|>",
    "<|im_start|>",
    "<image>",
    "<img>",
    "</img>",
    "<so_embedding>",
    "<so_start>",
    "<so_end>",
)
MARKS = {"images": "<image>", "video": "<video>", "sound": "<so_embedding>"}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FPS = 2.0


def write_folder(folder: Path, pattern: str, sizes: dict[str, dict[str, Any]], frame_patches: int, seed: int) -> None:
    """A random model of the reference implementation with ``sizes`` of "text", "vision" and "sound".

    Frames of videos are made ``frame_patches`` patches large.
    """
    library = transformers()
    torch.manual_seed(seed)
    text, vision, sound = sizes["text"], sizes["vision"], sizes["sound"]
    tokenizer = _tokenizer(library, text["vocab_size"])
    ids = {
        name: tokenizer.convert_tokens_to_ids(MARKS[kind]) for name, kind in (("image", "images"), ("audio", "sound"))
    }
    config = library.NemotronH_Omni_Reasoning_V3_Config(
        text_config={
            "model_type": "nemotron_h",
            "layers_block_type": [KINDS[letter] for letter in pattern],
            "eos_token_id": tokenizer.eos_token_id,
            **text,
        },
        vision_config={"model_type": "radio", "video_temporal_patch_size": 2, **vision},
        audio_config={
            "model_type": "parakeet_encoder",
            "attention_bias": False,
            "convolution_bias": False,
            "scale_input": False,
            "num_mel_bins": 128,
            "projection_bias": False,
            **sound,
        },
        vision_hidden_size=vision["hidden_size"],
        projector_hidden_size=16 * vision["hidden_size"],
        image_token_id=ids["image"],
        audio_token_id=ids["audio"],
    )
    model = library.NemotronH_Omni_Reasoning_V3(config)
    _draw(model)
    model.save_pretrained(folder)
    _processor(library, tokenizer, frame_patches).save_pretrained(folder)


def _draw(model: torch.nn.Module) -> None:
    """Matrices that keep a signal's size: with the library's own small ones, media hardly change what is said."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d)):
                module.weight.normal_(std=module.weight[0].numel() ** -0.5)


class Kept(NamedTuple):
    """What was read in front of a question."""

    cache: Any
    tokens: int


class Peer:
    """The model and processor of a folder."""

    def __init__(self, folder: str) -> None:
        library = transformers()
        self.processor = library.NemotronH_Omni_Reasoning_V3Processor.from_pretrained(folder)
        self.model = library.NemotronH_Omni_Reasoning_V3.from_pretrained(folder, dtype=torch.float32).eval()
        for layer in self.model.language_model.model.layers:
            if hasattr(layer.mixer, "time_step_limit"):
                layer.mixer.time_step_limit = (0.0, math.inf)  # as published: no clamp of the step
        self._see_video = self.model.get_video_features
        self.model.get_video_features = self._video_features

    def logits(self, kind: str, media: Any, question: str, pruning: float = 0.0) -> Tensor:
        """(v,) of the token behind the prompt."""
        self.model.video_pruning_rate = pruning
        inputs = self.inputs(kind, media, question)
        return self.model(**inputs, use_cache=True, logits_to_keep=1).logits[0, -1]

    def read(self, kind: str, media: Any, question: str) -> Kept:
        """The cache of everything in front of ``question``, its prompt cut there by hand."""
        inputs = self.inputs(kind, media, question)
        n = inputs["input_ids"].shape[1] - self._ending(question).shape[1]
        cut = {name: inputs[name][:, :n] for name in ("input_ids", "attention_mask")}
        return Kept(self.model(**{**inputs, **cut}, use_cache=True, logits_to_keep=1).past_key_values, n)

    def further(self, kept: Kept, question: str) -> Tensor:
        """(v,) behind ``question``, read behind a copy of what was kept."""
        ids = self._ending(question)
        mask = torch.ones(1, kept.tokens + ids.shape[1], dtype=torch.int64)
        cache = copy.deepcopy(kept.cache)
        found = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return found.logits[0, -1]

    def _ending(self, question: str) -> Tensor:
        """(1, n): ids of a prompt from the question on."""
        text = self._prompt(question)
        return self.processor.tokenizer(text[text.index(question) :], return_tensors="pt")["input_ids"]

    def _prompt(self, content: str) -> str:
        messages = [{"role": "user", "content": content}]
        return self.processor.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def ids(self, kind: str, media: Any, question: str) -> list[int]:
        return self.inputs(kind, media, question)["input_ids"][0].tolist()

    def inputs(self, kind: str, media: Any, question: str) -> dict[str, Any]:
        """What the processor makes of ``media`` (pictures, frames (T, H, W, 3) or samples (n,)) and a question."""
        count = len(media) if kind == "images" else 1
        between = "\n" if kind == "images" else ""
        text = self._prompt(f"{MARKS[kind]}{between}" * count + question)
        return dict(self.processor(text=[text], return_tensors="pt", **_media(kind, media)))

    def spans(self) -> list[Span]:
        """Its parts, for :func:`omni.bench_tools.where`."""
        m = self.model
        return [
            (self, "inputs", "preparing"),
            (m.vision_model, "forward", "tower"),
            (m.multi_modal_projector, "forward", "projector"),
            (m.audio_tower, "forward", "sound encoder"),
            (m.embed_audio, "forward", "projector"),
            (m.language_model.model, "forward", "language model"),
            (m.language_model.lm_head, "forward", "logits"),
        ]

    def _video_features(self, *args: Any, **options: Any) -> Any:
        """In 5.23 forward concatenates what it finds here, which is one tensor and no list: it raises TypeError."""
        found = self._see_video(*args, **options)
        found.pooler_output = (found.pooler_output,)
        return found


def _media(kind: str, media: Any) -> dict[str, Any]:
    if kind == "images":
        return {"images": list(media)}
    if kind == "sound":
        return {"audio": [np.asarray(media)]}
    from transformers.video_utils import VideoMetadata

    metadata = VideoMetadata(
        total_num_frames=len(media), fps=FPS, duration=len(media) / FPS, frames_indices=list(range(len(media)))
    )
    frames = torch.from_numpy(media).permute(0, 3, 1, 2)
    return {"videos": [frames], "videos_kwargs": {"video_metadata": metadata, "do_sample_frames": False}}


def _tokenizer(library: Any, vocab_size: int) -> Any:
    """Words of the prompts, so that a label of a time has about as many tokens as in a published vocabulary."""
    backend = hf.Tokenizer(hf.models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = hf.pre_tokenizers.Sequence(
        [hf.pre_tokenizers.Digits(individual_digits=True), hf.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=min(vocab_size, 600),
        special_tokens=list(SPECIAL),
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_corpus(), trainer)
    return library.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL[2:]),
        chat_template=TEMPLATE,
    )


def _corpus() -> Iterator[str]:
    for i in range(100):
        yield f"Frame {i} sampled at {i / 2:.2f} seconds and frame {i + 1} sampled at {i / 2:.2f} seconds: \n"
        yield "user\nassistant\nWhat is the sum of the last column? Who has signed it?"


def _processor(library: Any, tokenizer: Any, frame_patches: int) -> Any:
    images = library.NemotronH_Omni_Reasoning_V3ImageProcessor(image_mean=list(MEAN), image_std=list(STD))
    videos = library.NemotronH_Omni_Reasoning_V3VideoProcessor(
        norm_mean=list(MEAN), norm_std=list(STD), video_target_num_patches=frame_patches
    )
    features = library.ParakeetFeatureExtractor(feature_size=128)
    return library.NemotronH_Omni_Reasoning_V3Processor(
        image_processor=images,
        video_processor=videos,
        tokenizer=tokenizer,
        feature_extractor=features,
        chat_template=TEMPLATE,
    )
