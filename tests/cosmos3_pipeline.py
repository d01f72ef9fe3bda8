"""diffusers' whole Cosmos 3 pipeline, tiny and random, saved to a folder as a published checkpoint is."""

from pathlib import Path

import cosmos3_peer as peer
import torch
from test_captions import save_tokenizer

VOCAB = 400
WAN = {
    "base_dim": 4,
    "decoder_base_dim": 4,
    "z_dim": peer.CHANNELS,
    "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "latents_mean": [0.1, -0.2, 0.3, 0.0, 0.5, -0.1],
    "latents_std": [0.5, 1.5, 0.8, 1.0, 2.0, 0.7],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
}
SOUND = {
    "vocoder_input_dim": peer.SOUND,
    "dec_dim": 8,
    "dec_c_mults": [1, 2, 2],
    "dec_strides": [2, 3, 4],
    "enc_dim": 8,
    "enc_latent_dim": 2 * peer.SOUND,
    "enc_c_mults": [1, 2],
    "enc_strides": [2, 3],
    "enc_n_fft": 16,
    "enc_hop_length": 4,
    "enc_num_blocks": 1,
    "hop_size": 24,
    "sampling_rate": 600,
}
KARRAS = {"use_karras_sigmas": True, "sigma_max": 200.0, "sigma_min": 0.147}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
# Systems: sizes of the transformer, of the scheduler, and what the pipeline's index says.
SYSTEMS = {
    "nano": (peer.VARIANTS["nano"] | {"action_dim": 24, "num_embodiment_domains": 32}, FLOW | KARRAS, {}),
    "shifted": (
        peer.VARIANTS["nano"] | {"action_dim": 24, "num_embodiment_domains": 32},
        FLOW | {"flow_shift": 10.0},
        {"default_use_system_prompt": False},
    ),
    "edge": (
        peer.VARIANTS["edge"] | {"action_dim": 24, "num_embodiment_domains": 32, "base_fps": 24},
        FLOW | {"flow_shift": 3.0},
        {"default_use_system_prompt": False, "use_native_flow_schedule": True},
    ),
}


def build(folder: Path, name: str, seed: int = 0):
    """The pipeline, which is saved to ``folder`` too."""
    from diffusers import AutoencoderKLWan, Cosmos3OmniPipeline, UniPCMultistepScheduler
    from diffusers.models.autoencoders.autoencoder_cosmos3_audio import Cosmos3AVAEAudioTokenizer

    sizes, scheduler, index = SYSTEMS[name]
    transformer = peer.build(seed, **sizes | {"vocab_size": VOCAB})
    torch.manual_seed(seed + 1)
    pipe = Cosmos3OmniPipeline(
        transformer,
        save_tokenizer(folder / "text_tokenizer", eos_token="<|im_end|>", pad_token="<|endoftext|>"),
        AutoencoderKLWan(**WAN).eval(),
        UniPCMultistepScheduler(**scheduler),
        sound_tokenizer=Cosmos3AVAEAudioTokenizer(**SOUND).eval() if sizes.get("sound_gen") else None,
        enable_safety_checker=False,
        **index,
    )
    pipe.save_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe
