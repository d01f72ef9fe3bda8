"""Names of Cosmos 3's tensors: those of the published files, which save_pretrained writes too, and other spellings.

    layers.{i}.self_attn.to_q.weight                        context.blocks.{2i}.mixer.q_proj.weight
    layers.{i}.mlp.up_proj.weight                           context.blocks.{2i+1}.mixer.up_proj.weight
    blocks.{i}.attn.qkv.weight (Nano, Super)                vision.blocks.{i}.qkv.weight
    model.visual.encoder.layers.{i}.self_attn.{part}_proj.weight (Edge)     the same, in three parts

Source: ``reference`` cosmos3, section 9.
"""

from omni.config import OmniConfig, VisionConfig
from omni.rules import Alias, Drop, Join, Order, Rearrange, Rename, Rule


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ENDS = ("weight", "bias")
_ATTENTION = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "o_proj"}
_NORMS = {"norm_q": "q_norm", "norm_k": "k_norm"}
_ADDED = {"add_q_proj": "q_proj", "add_k_proj": "k_proj", "add_v_proj": "v_proj", "to_add_out": "o_proj"}
_ADDED_NORMS = {"norm_added_q": "q_norm", "norm_added_k": "k_norm", "k_norm_und_for_gen": "context_norm"}
_MERGER = {"norm": "norm", "linear_fc1": "up_proj", "linear_fc2": "down_proj"}

GENERATOR = (
    *(
        f"layers.{{i}}.{name}.weight"
        for name in words(
            """
            input_layernorm_moe_gen post_attention_layernorm_moe_gen
            self_attn.add_q_proj self_attn.add_k_proj self_attn.add_v_proj self_attn.to_add_out
            self_attn.norm_added_q self_attn.norm_added_k self_attn.k_norm_und_for_gen
            mlp_moe_gen.gate_proj mlp_moe_gen.up_proj mlp_moe_gen.down_proj
            """
        )
    ),
    *words(
        """
        norm_moe_gen.weight proj_in.{rest} proj_out.{rest} time_embedder.{rest} audio_proj_in.{rest}
        audio_proj_out.{rest} audio_modality_embed action_proj_in.{rest} action_proj_out.{rest} action_modality_embed
        """
    ),
)
"""Published names of the generator's tensors (section 9)."""

_MOE_GEN = {
    "q_proj_moe_gen": "add_q_proj",
    "k_proj_moe_gen": "add_k_proj",
    "v_proj_moe_gen": "add_v_proj",
    "o_proj_moe_gen": "to_add_out",
    "q_norm_moe_gen": "norm_added_q",
    "k_norm_moe_gen": "norm_added_k",
}
"""The training framework's names of the generator's attention -> the published ones."""


def rules(config: OmniConfig) -> tuple[Rule, ...]:
    """The names that save_pretrained writes, which are those of the published files; section 9's others are aliases."""
    edge = config.context.mlp.activation == "relu2"
    head = Drop("lm_head.weight", "tied to the embeddings")
    return (
        Alias("model.language_model.{rest}", "{rest}"),
        *text_rules(edge),
        head if config.tie_embeddings else Rename("lm_head.weight", "head.weight"),
        *(_edge_vision_rules(config.vision) if edge else _nano_vision_rules(config.vision)),
        *(generator_rules(config) if config.denoiser else _without_generator()),
    )


def _without_generator() -> list[Rule]:
    return [Drop(name, "of the generator, which the reasoner does not have") for name in GENERATOR]


def text_rules(edge: bool) -> list[Rule]:
    """The context tower, with the training framework's spellings of its attention."""
    attention, mlp = "context.blocks.{2i}.", "context.blocks.{2i+1}."
    spelled = {ours: theirs for theirs, ours in (_ATTENTION | _NORMS).items()} | _MOE_GEN
    published = "layers.{i}.self_attn."
    table: list[Rule] = [
        *(Alias(f"{published}{old}.{end}", f"{published}{new}.{end}") for old, new in spelled.items() for end in _ENDS),
        Rename("embed_tokens.weight", "embed.weight"),
        Rename("layers.{i}.input_layernorm.weight", attention + "norm.weight"),
        Rename("layers.{i}.post_attention_layernorm.weight", mlp + "norm.weight"),
        Rename("norm.weight", "context.norm.weight"),
    ]
    for theirs, ours in _ATTENTION.items():
        table += _both(f"layers.{{i}}.self_attn.{theirs}", f"{attention}mixer.{ours}")
    if not edge:
        table += [
            Rename(f"layers.{{i}}.self_attn.{t}.weight", f"{attention}mixer.{o}.weight") for t, o in _NORMS.items()
        ]
    for name in ("up_proj", "down_proj") if edge else ("gate_proj", "up_proj", "down_proj"):
        table += _both(f"layers.{{i}}.mlp.{name}", f"{mlp}mixer.{name}")
    if edge:
        table += [Alias(f"layers.{{i}}.mlp.fc1.{end}", f"layers.{{i}}.mlp.up_proj.{end}") for end in _ENDS]
        table += [Alias(f"layers.{{i}}.mlp.fc2.{end}", f"layers.{{i}}.mlp.down_proj.{end}") for end in _ENDS]
    return table


def generator_rules(config: OmniConfig) -> list[Rule]:
    """The denoiser tower and its heads (section 9), with the training framework's spellings."""
    attention, mlp = "denoiser.blocks.{2i}.", "denoiser.blocks.{2i+1}."
    spelled = {"vae2llm": "proj_in", "llm2vae": "proj_out", "sound2llm": "audio_proj_in", "llm2sound": "audio_proj_out"}
    spelled |= {"time_embedder.mlp.0": "time_embedder.linear_1", "time_embedder.mlp.2": "time_embedder.linear_2"}
    table: list[Rule] = [
        *(Alias(f"{old}.{end}", f"{new}.{end}") for old, new in spelled.items() for end in _ENDS),
        Alias("action2llm.{rest}", "action_proj_in.{rest}"),
        Alias("llm2action.{rest}", "action_proj_out.{rest}"),
        Alias("sound_modality_embed", "audio_modality_embed"),
        Rename("layers.{i}.input_layernorm_moe_gen.weight", attention + "norm.weight"),
        Rename("layers.{i}.post_attention_layernorm_moe_gen.weight", mlp + "norm.weight"),
        Rename("norm_moe_gen.weight", "denoiser.norm.weight"),
        *_both("time_embedder.linear_1", "denoiser.time.embedder.mlp.0"),
        *_both("time_embedder.linear_2", "denoiser.time.embedder.mlp.2"),
        *_both("proj_in", "latents.proj_in"),
        *_both("proj_out", "latents.proj_out"),
    ]
    for theirs, ours in _ADDED.items():
        table += _both(f"layers.{{i}}.self_attn.{theirs}", f"{attention}mixer.{ours}")
    for theirs, ours in _ADDED_NORMS.items():
        table.append(Rename(f"layers.{{i}}.self_attn.{theirs}.weight", f"{attention}mixer.{ours}.weight"))
    for name in ("gate_proj", "up_proj", "down_proj"):
        table.append(Rename(f"layers.{{i}}.mlp_moe_gen.{name}.weight", f"{mlp}mixer.{name}.weight"))
    if config.sound_latent is not None:
        table += [*_both("audio_proj_in", "sound_latents.proj_in"), *_both("audio_proj_out", "sound_latents.proj_out")]
        table.append(Rename("audio_modality_embed", "sound_latents.kind"))
    if config.action is not None:
        shape = (config.action.n_domains, config.action.width * config.denoiser.d_model)
        for side in ("in", "out"):
            table.append(Rename(f"action_proj_{side}.fc.weight", f"actions.proj_{side}.weight", shape=shape))
            table.append(Rename(f"action_proj_{side}.bias.weight", f"actions.proj_{side}.bias"))
        table.append(Rename("action_modality_embed", "actions.kind"))
    return table


def _both(published: str, ours: str) -> list[Rule]:
    return [Rename(f"{published}.{end}", f"{ours}.{end}") for end in _ENDS]


def _nano_vision_rules(v: VisionConfig) -> list[Rule]:
    conv = (v.d_model, 3, v.tubelet, v.patch_size, v.patch_size)
    table: list[Rule] = [
        Alias("model.visual.{rest}", "{rest}"),
        Rename("patch_embed.proj.weight", "vision.stem.proj.weight", shape=conv),
        Rename("patch_embed.proj.bias", "vision.stem.proj.bias"),
        Rename("pos_embed.weight", "vision.positions"),
    ]
    block = {"norm1": "norm1", "attn.qkv": "qkv", "attn.proj": "proj", "norm2": "norm2"}
    block |= {"mlp.linear_fc1": "up_proj", "mlp.linear_fc2": "down_proj"}
    for theirs, ours in block.items():
        table += _both(f"blocks.{{i}}.{theirs}", f"vision.blocks.{{i}}.{ours}")
    for theirs, ours in _MERGER.items():
        table += _both(f"merger.{theirs}", f"projector.{ours}")
        table += _both(f"deepstack_merger_list.{{t}}.{theirs}", f"projector.deepstack.{{t}}.{ours}")
    return table


def _edge_vision_rules(v: VisionConfig) -> list[Rule]:
    """Edge flattens its patches (y, x, channel). save_pretrained renames its matrices as it does the text's."""
    sizes = (("y", v.patch_size), ("x", v.patch_size), ("c", 3))
    visual, layer = "model.visual.", "model.visual.encoder.layers.{i}."
    spelled = {"self_attn.to_q": "self_attn.q_proj", "self_attn.to_k": "self_attn.k_proj"}
    spelled |= {"self_attn.to_v": "self_attn.v_proj", "self_attn.to_out": "self_attn.out_proj"}
    spelled |= {"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}
    table: list[Rule] = [
        *(Alias(f"{layer}{old}.{end}", f"{layer}{new}.{end}") for old, new in spelled.items() for end in _ENDS),
        Rearrange(
            f"{visual}embeddings.patch_embedding.weight",
            "vision.stem.proj.weight",
            Order("d (y x c) -> d (c y x)", sizes),
        ),
        Rename(f"{visual}embeddings.patch_embedding.bias", "vision.stem.proj.bias"),
        Rename(f"{visual}embeddings.position_embedding.weight", "vision.positions"),
        *(
            Join(f"{layer}self_attn.{{part}}_proj.{end}", f"vision.blocks.{{i}}.qkv.{end}", ("q", "k", "v"))
            for end in _ENDS
        ),
        *_both(f"{visual}post_layernorm", "vision.final_norm"),
    ]
    block = {"layer_norm1": "norm1", "self_attn.out_proj": "proj", "layer_norm2": "norm2"}
    block |= {"mlp.fc1": "up_proj", "mlp.fc2": "down_proj"}
    for theirs, ours in block.items():
        table += _both(f"{layer}{theirs}", f"vision.blocks.{{i}}.{ours}")
    for theirs, ours in _MERGER.items():
        table += _both(f"model.projector.{theirs}", f"projector.{ours}")
    return table
