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
    spelled = {ours: theirs for theirs, ours in (_ATTENTION | _NORMS).items()} | _MOE_GEN
    attention = "layers.{i}.self_attn."
    return (
        Alias("model.language_model.{rest}", "{rest}"),
        *(Alias(f"{attention}{old}.{end}", f"{attention}{new}.{end}") for old, new in spelled.items() for end in _ENDS),
        *_text_rules(edge),
        head if config.tie_embeddings else Rename("lm_head.weight", "head.weight"),
        *(_edge_vision_rules(config.vision) if edge else _nano_vision_rules(config.vision)),
        *(Drop(name, "of the generator, which the reasoner does not have") for name in GENERATOR),
    )


def _text_rules(edge: bool) -> list[Rule]:
    attention, mlp = "context.blocks.{2i}.", "context.blocks.{2i+1}."
    table: list[Rule] = [
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
