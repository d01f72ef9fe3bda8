"""The reference implementation's Cosmos 3: a random one written to a folder, and one read from it and run.

sizes ──> random transformer, scheduler, tokenizer of words, a codec of no use ──> folder ──> Peer, and omni.load
Peer: prompts, latents to start from ──> its pipeline's whole call ──> latents

Codecs cost the same on both sides, so they are left out: what they would encode is zero.
"""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import tokenizers as hf  # Hugging Face's package

SIZES: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rope_axes_dim": [12, 10, 10],
    "vocab_size": 32_000,
    "latent_channel": 48,
    "patch_latent_dim": 192,
    "sound_gen": True,
    "sound_dim": 64,
    "action_gen": True,
    "action_dim": 64,
    "num_embodiment_domains": 32,
}
"""Nano's proportions at an eighth of its width and a third of its layers; sides and channels of latents are its own.

The narrower a model, the larger attention's share of its work, which is small in Nano and gains nothing here.
"""

SCHEDULER = {
    "use_karras_sigmas": True,
    "use_flow_sigmas": True,
    "prediction_type": "flow_prediction",
    "sigma_max": 200.0,
    "sigma_min": 0.147,
}
EMBODIMENT, WIDTH = "bridge_orig_lerobot", 10  # the reference knows no width of LIBERO's actions
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
WORDS = 500  # that prompts are made of, one token each
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_folder(folder: Path, sizes: dict[str, Any], seed: int) -> None:
    """A random pipeline of the reference implementation."""
    from diffusers import AutoencoderKLWan, Cosmos3OmniPipeline, UniPCMultistepScheduler
    from diffusers.models.transformers.transformer_cosmos3 import Cosmos3OmniTransformer

    torch.manual_seed(seed)
    transformer = Cosmos3OmniTransformer(**sizes).float()
    _draw(transformer)
    channels = sizes["latent_channel"]
    codec = AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )
    scheduler = UniPCMultistepScheduler(**SCHEDULER)
    parts = (transformer, write_tokenizer(folder / "text_tokenizer"), codec, scheduler)
    Cosmos3OmniPipeline(*parts, enable_safety_checker=False).save_pretrained(folder)


def _draw(model: torch.nn.Module) -> None:
    """Matrices that keep a signal's size, so that every part counts in what comes out."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith(("_embed", "bias", "bias.weight")):
                tensor.normal_(std=0.1)
            elif name.startswith("action_proj") and name.endswith("fc.weight"):
                width = model.config.action_dim if "_in" in name else model.config.hidden_size
                tensor.normal_(std=width**-0.5)
            elif tensor.dim() > 1:
                tensor.normal_(std=tensor[0].numel() ** -0.5)


def write_tokenizer(folder: Path) -> Any:
    """A vocabulary of words and marks, so that a prompt of any number of tokens can be written."""
    from transformers import PreTrainedTokenizerFast

    vocabulary = {name: i for i, name in enumerate((*SPECIAL, "<unk>", *map(word, range(WORDS))))}
    backend = hf.Tokenizer(hf.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    backend.decoder = hf.decoders.WordPiece(prefix="")
    backend.add_special_tokens(list(SPECIAL))
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"}
    made = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=TEMPLATE, **names)
    made.save_pretrained(folder)
    return made


def word(i: int) -> str:
    return f"w{i}"


class Peer:
    """The pipeline of a folder."""

    def __init__(self, folder: str) -> None:
        from diffusers import AutoencoderKLWan, Cosmos3OmniPipeline, UniPCMultistepScheduler
        from transformers import AutoTokenizer

        self.pipe = Cosmos3OmniPipeline(
            _transformer(Path(folder) / "transformer"),
            AutoTokenizer.from_pretrained(f"{folder}/text_tokenizer"),
            AutoencoderKLWan.from_pretrained(f"{folder}/vae", low_cpu_mem_usage=False),
            UniPCMultistepScheduler.from_pretrained(f"{folder}/scheduler"),
            enable_safety_checker=False,
        )
        self.pipe.set_progress_bar_config(disable=True)
        self.pipe._encode_video = self._nothing

    def video(self, prompt: str, negative: str, latents: Tensor, **options: Any) -> Tensor:
        """Latents (1, c, T, h, w) that the loop ends at; ``options``: sizes, steps and guidance."""
        return self.pipe(prompt, negative, latents=latents, output_type="latent", **options).video

    def policy(
        self,
        prompt: str,
        pixels: Any,  # (H, W, 3) uint8
        latents: Tensor,
        actions: Tensor,  # (n, width)
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        """Latents of the video, and actions (n, a)."""
        from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import CosmosActionCondition

        condition = CosmosActionCondition(
            mode="policy",
            chunk_size=len(actions),
            domain_name=EMBODIMENT,
            resolution_tier=256,
            image=Image.fromarray(pixels),
        )
        start = {"latents": latents, "action_latents": actions.clone()}  # it writes into the actions
        found = self.pipe(prompt, action=condition, output_type="latent", **start, **options)
        return found.video, found.action[0]

    def _nothing(self, frames: Tensor) -> Tensor:
        """Latents of frames (b, 3, T, H, W) where a codec would be asked."""
        b, _, n, height, width = frames.shape
        side = self.pipe.vae_scale_factor_spatial
        shape = (b, self.pipe.vae.config.z_dim, 1 + (n - 1) // 4, height // side, width // side)
        return frames.new_zeros(shape)


def _transformer(folder: Path) -> torch.nn.Module:
    """Its own loader wants a further package, accelerate."""
    from diffusers.models.transformers.transformer_cosmos3 import Cosmos3OmniTransformer

    model = Cosmos3OmniTransformer.from_config(Cosmos3OmniTransformer.load_config(folder)).float().eval()
    tensors = {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}
    model.load_state_dict(tensors)
    return model


__all__ = ["EMBODIMENT", "SIZES", "WIDTH", "WORDS", "Peer", "word", "write_folder", "write_tokenizer"]
