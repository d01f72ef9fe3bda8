"""diffusers' Cosmos 3 transformer, tiny and random, and the packing that its pipeline does in front of it."""

import math
from types import SimpleNamespace

import torch
from torch import Tensor

VOCAB, CHANNELS, SOUND, WIDTH, DOMAINS = 120, 6, 5, 7, 4
BASE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "rope_axes_dim": [2, 2, 2],
    "rope_theta": 500.0,
    "vocab_size": VOCAB,
    "latent_channel": CHANNELS,
    "patch_latent_dim": CHANNELS * 4,
}
EDGE = {"hidden_act": "relu2", "qk_norm_for_text": False, "use_und_k_norm_for_gen": True, "rms_norm_eps": 1e-5}
ACTION = {"action_gen": True, "action_dim": WIDTH, "num_embodiment_domains": DOMAINS}
VARIANTS = {
    "nano": BASE | ACTION | {"sound_gen": True, "sound_dim": SOUND},
    "edge": BASE | EDGE | ACTION | {"base_fps": 16},
    "plain": BASE | {"attention_bias": True, "num_hidden_layers": 3, "num_key_value_heads": 4},
}


def build(seed: int, **sizes):
    """Every parameter away from its trivial value."""
    from diffusers.models.transformers.transformer_cosmos3 import Cosmos3OmniTransformer

    torch.manual_seed(seed)
    model = Cosmos3OmniTransformer(**sizes).float().eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() == 1:
                tensor.copy_(float("norm" in name and name.endswith("weight")) + 0.3 * torch.randn(tensor.shape))
            elif "proj" in name and ("fc" in name or "bias" in name):
                tensor.copy_(0.2 * torch.randn(tensor.shape))
    return model


def reasoner(sizes: dict):
    """transformers' reasoner with the transformer's tower of text, and a small vision tower."""
    from transformers import Cosmos3OmniConfig, Cosmos3OmniForConditionalGeneration

    same = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    rope = {"rope_type": "default", "rope_theta": sizes["rope_theta"], "mrope_section": sizes["rope_axes_dim"]}
    text = {name: sizes[name] for name in (*same, "head_dim", "vocab_size")} | {"rope_parameters": rope}
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 20, "num_heads": 2, "patch_size": 4}
    vision |= {"out_hidden_size": sizes["hidden_size"], "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    tokens = {"image_token_id": 111, "video_token_id": 112, "vision_start_token_id": 113, "vision_end_token_id": 114}
    return Cosmos3OmniForConditionalGeneration(
        Cosmos3OmniConfig(text_config=text, vision_config=vision, **tokens)
    ).eval()


@torch.no_grad()
def velocity(
    model,
    ids: list[int],
    video: Tensor,  # (c, T, H, W)
    level: float,
    *,
    fps: float | None = 24.0,
    sound: Tensor | None = None,  # (c, n)
    action: Tensor | None = None,  # (n, a)
    domain: int = 0,
    clean_video: tuple[int, ...] = (),
    clean_action: tuple[int, ...] = (),
) -> dict[str, Tensor]:
    """One call, packed as ``Cosmos3OmniPipeline`` does it; what is given is zero."""
    from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import Cosmos3OmniPipeline as Pipeline

    me = SimpleNamespace(transformer=model, vae_scale_factor_temporal=4)
    text = Pipeline._prepare_text_segment(me, ids, "cpu")
    begin = text["vision_start_temporal_offset"]
    seen = Pipeline._prepare_vision_segment(
        me, video[None], False, begin, fps, len(ids), "cpu", condition_frame_indexes=list(clean_video)
    )
    places = [text["text_mrope_ids"], seen["vision_mrope_ids"]]
    end = len(ids) + seen["num_vision_tokens"]
    more = {}
    if sound is not None:
        heard = Pipeline._prepare_sound_segment(me, sound, begin, 25.0, end, "cpu")
        places.append(heard.pop("sound_mrope_ids"))
        end += heard.pop("sound_len")
        more |= heard | {"sound_tokens": [sound], "sound_timesteps": torch.full((sound.shape[1],), level * 1000)}
    if action is not None:
        done = Pipeline._prepare_action_segment(me, action, list(clean_action), begin, fps, end, "cpu")
        places.append(done.pop("action_mrope_ids"))
        end += done.pop("action_len")
        times = torch.full((done.pop("num_noisy_action_tokens"),), level * 1000)
        more |= done | {"action_tokens": [action], "action_timesteps": times}
        more["action_domain_ids"] = [torch.tensor(domain)]
    seen.pop("vision_mrope_ids")
    seen.pop("num_vision_tokens")
    times = torch.full((seen.pop("num_noisy_vision_tokens"),), level * 1000)
    found = model(
        input_ids=text["input_ids"],
        text_indexes=text["text_indexes"],
        und_len=text["und_len"],
        position_ids=torch.cat(places, dim=1),
        sequence_length=end,
        vision_tokens=[video[None]],
        vision_timesteps=times,
        **seen,
        **more,
        return_dict=False,
    )
    names = ("video", "sound", "action")
    kept = {name: part[0] for name, part in zip(names, found, strict=True) if part is not None}
    return kept | {"video": kept["video"][0]}


@torch.no_grad()
def velocity_behind(model, ids, items, clean, fps, level, follow):
    """Of the last of ``items`` (c, T, H, W), whose frames ``clean`` are given; those before it are given whole."""
    from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import Cosmos3OmniPipeline as Pipeline

    me = SimpleNamespace(transformer=model, vae_scale_factor_temporal=4)
    text = Pipeline._prepare_text_segment(me, ids, "cpu")
    begin, end, places, parts = text["vision_start_temporal_offset"], len(ids), [text["text_mrope_ids"]], []
    for item in items:
        known = clean if item is items[-1] else range(item.shape[1])
        part = Pipeline._prepare_vision_segment(me, item[None], False, begin, fps, end, "cpu", list(known))
        places.append(part["vision_mrope_ids"])
        end += part["num_vision_tokens"]
        begin = math.ceil(part["vision_mrope_ids"].max()) + 1 if follow else begin
        parts.append(part)
    noisy = sum(part["num_noisy_vision_tokens"] for part in parts)
    found = model(
        input_ids=text["input_ids"],
        text_indexes=text["text_indexes"],
        und_len=text["und_len"],
        position_ids=torch.cat(places, dim=1),
        sequence_length=end,
        vision_tokens=[item[None] for item in items],
        vision_timesteps=torch.full((noisy,), level * 1000),
        vision_token_shapes=[part["vision_token_shapes"][0] for part in parts],
        vision_noisy_frame_indexes=[part["vision_noisy_frame_indexes"][0] for part in parts],
        **{
            name: torch.cat([part[name] for part in parts])
            for name in ("vision_sequence_indexes", "vision_mse_loss_indexes")
        },
        return_dict=False,
    )
    return found[0][-1][0]
