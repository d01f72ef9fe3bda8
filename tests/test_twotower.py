"""TwoTower's published layout: names both ways, sizes, and the numbers of an independent reference."""

import json

import pytest
import torch
from safetensors.torch import save_file
from twotower_reference import Reference

import omni
from omni import families
from omni.checkpoint import CheckpointError, export, find_tensors
from omni.config import ConfigError, TokenDiffusionConfig, replace
from omni.decoders.autoregressive import Row
from omni.decoders.block_diffusion import Denoising, Unmasking, diffuse
from omni.decoders.sampling import SamplingParams
from omni.families import twotower
from omni.inputs import Inputs
from omni.model import Omni
from omni.pipelines.diffusing import DiffusingReader

MASK = 3
PLAIN = {
    "architectures": ["NemotronHTwoTowerForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_nemotron_twotower.NemotronHTwoTowerForCausalLM"},
    "model_type": "nemotron_h",
    "vocab_size": 61,
    "hidden_size": 20,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "ssm_state_size": 5,
    "mamba_num_heads": 4,
    "mamba_head_dim": 7,
    "n_groups": 2,
    "conv_kernel": 4,
    "chunk_size": 128,  # longer than a block, as published
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 9,
    "moe_shared_expert_intermediate_size": 11,
    "n_shared_experts": 1,
    "routed_scaling_factor": 2.5,
    "layer_norm_epsilon": 1e-5,
    "rope_theta": 10_000,
    "tie_word_embeddings": False,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
PATTERNS = {"all": "MEM*E", "attention first": "*ME", "one of each twice": "M*EEM*", "no experts": "M*M"}


def published(pattern: str, seed: int, **changes) -> tuple[dict, dict[str, torch.Tensor]]:
    """config.json, and random tensors under the names of the published file."""
    c = PLAIN | {"hybrid_override_pattern": pattern, "num_hidden_layers": len(pattern)} | changes
    generator = torch.Generator().manual_seed(seed)
    d, v, heads = c["hidden_size"], c["vocab_size"], c["mamba_num_heads"]
    inner, conv = heads * c["mamba_head_dim"], heads * c["mamba_head_dim"] + 2 * c["n_groups"] * c["ssm_state_size"]
    q, kv = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    shapes = {"lm_head.weight": (v, d), "context_lm_head.weight": (v, d), "t_block.1.weight": (3 * d, d)}
    shapes |= {"t_embedder.mlp.0.weight": (d, 256), "t_embedder.mlp.2.weight": (d, d), "t_block.1.bias": (3 * d,)}
    shapes |= {"t_embedder.mlp.0.bias": (d,), "t_embedder.mlp.2.bias": (d,)}
    of = {
        "M": {
            "in_proj.weight": (inner + conv + heads, d),
            "conv1d.weight": (conv, 1, c["conv_kernel"]),
            "conv1d.bias": (conv,),
            "A_log": (heads,),
            "D": (heads,),
            "dt_bias": (heads,),
            "norm.weight": (inner,),
            "out_proj.weight": (d, inner),
        },
        "*": {"q_proj.weight": (q, d), "k_proj.weight": (kv, d), "v_proj.weight": (kv, d), "o_proj.weight": (d, q)},
        "E": {"gate.weight": (c["n_routed_experts"], d), "gate.e_score_correction_bias": (c["n_routed_experts"],)},
    }
    widths = {f"experts.{e}": c["moe_intermediate_size"] for e in range(c["n_routed_experts"])}
    for name, width in (widths | {"shared_experts": c["moe_shared_expert_intermediate_size"]}).items():
        of["E"] |= {f"{name}.up_proj.weight": (width, d), f"{name}.down_proj.weight": (d, width)}
    for tower in ("context_tower", "denoiser_tower"):
        shapes |= {f"{tower}.embeddings.weight": (v, d), f"{tower}.norm_f.weight": (d,)}
        for i, letter in enumerate(pattern):
            shapes[f"{tower}.layers.{i}.norm.weight"] = (d,)
            shapes |= {f"{tower}.layers.{i}.mixer.{name}": shape for name, shape in of[letter].items()}
    shapes |= {f"scale_shift_tables.{i}": (3, d) for i in range(len(pattern))}
    state = {}
    for name, shape in shapes.items():
        x = torch.randn(shape, generator=generator)
        matrix = len(shape) >= 2 and not name.startswith("scale_shift")
        state[name] = x * 1.5 * x[0].numel() ** -0.5 if matrix else 1 + 0.3 * x if "norm" in name else 0.5 * x
    state |= {name: t + torch.tensor([0.0, 0, 1])[:, None] for name, t in state.items() if "scale_shift" in name}
    return c, state


def folder_of(path, plain: dict, state: dict[str, torch.Tensor]):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(plain))
    save_file(state, path / "model.safetensors")
    return path


# -- the numbers ---------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_both_towers_say_what_the_formulas_say(pattern, seed, tmp_path):
    plain, state = published(pattern, seed)
    reference, model = Reference(plain, state), omni.load(str(folder_of(tmp_path / "m", plain, state)), device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for n, size in ((1, 4), (7, 5), (19, 1)):
        ids = torch.randint(61, (n,), generator=generator)
        block = torch.randint(61, (size,), generator=generator).masked_fill(torch.rand(size) < 0.6, MASK)
        memory, cache = {}, model.new_cache(1)
        expected = reference.read(ids, memory)
        found = model.logits(ids[None], cache)[0].double()
        assert relative(found, expected) < 1e-4
        for t in (1.0, 0.4375):
            expected = reference.denoise(block, t, memory)
            found = model.denoise_tokens(block[None], torch.tensor([t]), cache)[0].double()
            assert bool((found[:, MASK] == -torch.inf).all())
            found[:, MASK] = expected[:, MASK]
            assert relative(found, expected) < 1e-4
        assert cache.lengths.tolist() == [n]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
@pytest.mark.parametrize(("steps", "threshold"), [(4, 0.05), (6, 0.9), (1, 0.5)])
def test_texts_are_written_as_the_published_loop_writes_them(steps, threshold, tmp_path):
    """Two rows; the context is extended block by block; every pass is counted."""
    plain, state = published("MEM*E", 3)
    reference = Reference(plain, state)
    model = omni.load(str(folder_of(tmp_path / "m", plain, state)), device="cpu", dtype="float64")
    prompts = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(5))
    expected, nfe = reference.generate(prompts, 3, 6, steps, threshold, MASK)
    reader, counts = DiffusingReader(model, Inputs(prompts), None, 18), [Denoising(), Denoising()]
    reader.read(64)
    rows = [Row(SamplingParams(temperature=0), Silent(), 18) for _ in prompts]
    how = Unmasking(block=6, steps=steps, threshold=threshold, published=True)
    events = list(diffuse(rows, reader, how, counts))
    assert [[e.token for e in events if e.row == r] for r in range(2)] == expected
    assert [count.passes for count in counts] == [nfe, nfe]


class Silent:
    """Ids that are not said."""

    def push(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


@torch.no_grad()
def test_long_contexts_seed_large_states_and_short_blocks_stay_finite(tmp_path):
    """Slow decay and large steps: states of a thousand, and a chunk that is longer than the block."""
    plain, state = published("MM", 2)
    for name, tensor in state.items():
        if name.endswith("A_log"):
            tensor.fill_(-7.0)
        if name.endswith("dt_bias"):
            tensor.fill_(6.0)
    reference, model = Reference(plain, state), omni.load(str(folder_of(tmp_path / "m", plain, state)), device="cpu")
    ids, memory, cache = torch.randint(61, (400,)), {}, model.new_cache(1)
    reference.read(ids, memory)
    model.read(ids[None], cache)
    assert float(cache.slots[1].ssm.abs().max()) > 100
    block = torch.full((16,), MASK)
    expected, found = reference.denoise(block, 1.0, memory), model.denoise_tokens(block[None], torch.ones(1), cache)[0]
    found[:, MASK] = expected[:, MASK].float()
    assert relative(found.double(), expected) < 1e-4
    half = model.to(torch.bfloat16).denoise_tokens(block[None], torch.ones(1), cache)
    assert bool(half[..., MASK + 1 :].isfinite().all())


# -- names and sizes -----------------------------------------------------------------------------------------


def test_a_folder_comes_back_as_it_was(tmp_path):
    plain, state = published("MEM*E", 1)
    model = omni.load(str(folder_of(tmp_path / "m", plain, state)), device="cpu")
    families.save(model, tmp_path / "back", family="twotower")
    entries = find_tensors(tmp_path / "back")
    assert entries.keys() == state.keys()
    again = omni.load(str(tmp_path / "back"), device="cpu")
    assert again.config == model.config
    assert model.config.diffusion == TokenDiffusionConfig()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    other = replace(model.config, diffusion=TokenDiffusionConfig(block_size=5, steps=3, threshold=0.5))
    assert twotower.to_config(twotower.from_config(other)).diffusion == other.diffusion
    families.save(model, tmp_path / "ours")
    assert omni.load(str(tmp_path / "ours"), device="cpu").config == model.config


@pytest.mark.parametrize(
    ("lost", "added", "words"),
    [
        ("scale_shift_tables.1", None, "scale_shift_tables.1"),
        ("lm_head.weight", None, "lm_head.weight"),
        (None, "denoiser_tower.layers.9.norm.weight", "denoiser_tower.layers.9.norm.weight"),
        (None, "scale_shift_tables.7", "scale_shift_tables.7"),
        ("t_block.1.bias", "t_block.0.bias", "t_block.0.bias"),
    ],
)
def test_names_that_do_not_fit_are_told(lost, added, words, tmp_path):
    plain, state = published("M*E", 0)
    state.pop(lost, None)
    if added:
        state[added] = torch.ones(20)
    folder = folder_of(tmp_path / "m", plain, state)
    with pytest.raises(CheckpointError, match=words.replace(".", r"\.")):
        omni.load(str(folder), device="cpu")


def test_the_architecture_decides_and_what_cannot_be_is_told():
    one = PLAIN | {"hybrid_override_pattern": "M*E", "architectures": ["NemotronHForCausalLM"]}
    two = PLAIN | {"hybrid_override_pattern": "M*E"}
    assert families.family_of(one, "here").name == "nemotron_h"
    assert families.family_of(two, "here").name == "twotower"
    config = twotower.to_config(two | {"mask_token_id": 7, "block_size": 8})
    assert (config.special_tokens["mask"], config.diffusion.block_size) == (7, 8)
    for change, words in (
        ({"tie_word_embeddings": True}, "heads of its own"),
        ({"num_nextn_predict_layers": 1}, "heads of its own"),
        ({"mask_token_id": 99}, "special_tokens"),
        ({"block_size": 0}, "block_size is 0"),
        ({"confidence_threshold": "high"}, "must be numbers"),
        ({"unheard_of": 1}, "unheard_of"),
    ):
        with pytest.raises(ConfigError, match=words):
            twotower.to_config(two | change)
    for other in (
        replace(config, diffusion=None),
        replace(config, denoiser=replace(config.denoiser, time=None)),
        replace(config, tie_embeddings=True),
    ):
        with pytest.raises(ConfigError, match="the twotower layout"):
            twotower.from_config(other)
    with pytest.raises(ConfigError, match="denoiser"):
        families.families()["nemotron_h"].from_config(config)


def test_the_published_size():
    """31.58 B a tower, 63.2 B in all; adaLN has 30.0 M of them."""
    preset = families.presets()["nemotron-labs-twotower-30b"]
    assert families.find_preset("nvidia/Nemotron-Labs-TwoTower-30B-A3B-Base-BF16") is preset
    with torch.device("meta"):
        state = Omni(preset.config).state_dict()
    sizes = {name: tensor.numel() for name, tensor in state.items()}
    total = sum(sizes.values())
    time = sum(n for name, n in sizes.items() if name.startswith("denoiser.time."))
    assert time == 30_022_272
    assert total == 2 * 31_577_940_288 + time == 63_185_902_848
    items = export(state, twotower.rules(preset.config))
    assert len(items) == len({item.name for item in items}) == 2 * 6_243 + 6 + 52
    assert sum(item.tensor.numel() for item in items) == total
    tables = [item.tensor.shape for item in items if item.name.startswith("scale_shift_tables.")]
    assert tables == [(3, 2688)] * 52
    assert preset.config.special_tokens["mask"] == 3
    assert twotower.to_config(twotower.from_config(preset.config)).denoiser == preset.config.denoiser
