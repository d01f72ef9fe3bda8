"""Configurations: what cannot be built is refused with its value and the limit; files lose nothing."""

import dataclasses
import json
import math

import pytest
from towers import TOWERS, VISION, system_config, tower_config

from omni.config import (
    AttentionConfig,
    ConfigError,
    LatentConfig,
    MambaConfig,
    MLPConfig,
    MoEConfig,
    MTPConfig,
    OmniConfig,
    RotaryConfig,
    TimeConfig,
    TowerConfig,
    VisionConfig,
    from_dict,
    replace,
    to_dict,
)
from omni.families import presets

MAMBA = {"n_heads": 4, "head_dim": 8}
ATTENTION = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 8}
MOE = {"n_experts": 8, "n_active_experts": 2, "d_ff": 4, "d_shared": 4}
EYE = {"d_model": 8, "n_layers": 1, "n_heads": 2, "d_ff": 8}
LATENTS = {"patch_size": 2, "channels": 3}
TOWER = {"pattern": "-", "d_model": 8, "mlp": MLPConfig(d_ff=4)}

REFUSED = [
    (RotaryConfig, {}, {"theta": 0.0}, "theta is 0.0; it must be positive"),
    (RotaryConfig, {}, {"theta": -2.0}, "theta is -2.0"),
    (MambaConfig, MAMBA, {"n_heads": 0}, "MambaConfig.n_heads is 0; it must lie between 1 and 1048576"),
    (MambaConfig, MAMBA, {"head_dim": -1}, "MambaConfig.head_dim is -1; it must lie between 1 and"),
    (MambaConfig, MAMBA, {"d_state": 1 << 21}, "MambaConfig.d_state is 2097152; it must lie between 1 and 1048576"),
    (MambaConfig, MAMBA, {"chunk_size": 0}, "MambaConfig.chunk_size is 0"),
    (MambaConfig, MAMBA, {"d_conv": 0}, "MambaConfig.d_conv is 0"),
    (MambaConfig, MAMBA, {"n_groups": 3}, "n_heads is 4; it must be a multiple of n_groups, 3"),
    (MambaConfig, MAMBA | {"n_groups": 2}, {"dt_limit": (0.2, 0.1)}, "dt_limit is (0.2, 0.1); it must be"),
    (MambaConfig, MAMBA | {"n_groups": 2}, {"dt_limit": (-1.0, 0.1)}, "dt_limit is (-1.0, 0.1); it must be"),
    (AttentionConfig, ATTENTION, {"n_kv_heads": 3}, "n_heads is 4; it must be a multiple of n_kv_heads, 3"),
    (AttentionConfig, ATTENTION, {"n_heads": 0}, "AttentionConfig.n_heads is 0"),
    (AttentionConfig, ATTENTION, {"head_dim": 7, "rotary": RotaryConfig()}, "even head_dim, not 7"),
    (
        AttentionConfig,
        ATTENTION,
        {"rotary": RotaryConfig(sections=(2, 2, 2))},
        "sections sum to 6; with head_dim 8 it must be 4",
    ),
    (MLPConfig, {"d_ff": 4}, {"d_ff": 0}, "MLPConfig.d_ff is 0"),
    (MLPConfig, {"d_ff": 4}, {"activation": "gelu"}, "activation is 'gelu'; known: relu2, silu"),
    (MoEConfig, MOE, {"n_active_experts": 9}, "n_active_experts is 9; there are 8 experts"),
    (MoEConfig, MOE, {"n_experts": 1 << 17}, "MoEConfig.n_experts is 131072; it must lie between 1 and 65536"),
    (MoEConfig, MOE, {"n_expert_groups": 3}, "8 experts do not divide into 3 groups"),
    (MoEConfig, MOE, {"n_expert_groups": 2, "n_active_groups": 3}, "into 2 groups, 3 active"),
    (MoEConfig, MOE, {"n_expert_groups": 4, "n_active_experts": 3}, "3 active experts do not fit in 1 groups of 2"),
    (MoEConfig, MOE, {"n_expert_groups": 8, "n_active_groups": 2}, "groups here hold 1"),
    (MoEConfig, MOE, {"d_latent": 0}, "MoEConfig.d_latent is 0"),
    (TimeConfig, {"mode": "adaln"}, {"mode": "film"}, "mode is 'film'; known: input, adaln"),
    (TimeConfig, {"mode": "adaln"}, {"n_frequencies": 0}, "TimeConfig.n_frequencies is 0"),
    (TowerConfig, TOWER, {"pattern": "-x?"}, "letters ['?', 'x'] are unknown; known: M * - E"),
    (TowerConfig, TOWER, {"pattern": ""}, "has 0 layers; it must have 1 to 4096"),
    (TowerConfig, TOWER, {"pattern": "-" * 4097}, "has 4097 layers; it must have 1 to 4096"),
    (TowerConfig, TOWER, {"pattern": "-M"}, "uses 'M' but TowerConfig.mamba is not set"),
    (TowerConfig, TOWER, {"pattern": "*"}, "uses '*' but TowerConfig.attention is not set"),
    (TowerConfig, TOWER, {"pattern": "E-"}, "uses 'E' but TowerConfig.moe is not set"),
    (TowerConfig, TOWER, {"mlp": None}, "uses '-' but TowerConfig.mlp is not set"),
    (TowerConfig, TOWER, {"d_model": 0}, "TowerConfig.d_model is 0"),
    (MTPConfig, {}, {"pattern": ""}, "MTP pattern '' is unknown"),
    (MTPConfig, {}, {"pattern": "*F"}, "MTP pattern '*F' is unknown"),
    (MTPConfig, {}, {"depth": 0}, "MTPConfig.depth is 0"),
    (VisionConfig, EYE, {"n_heads": 3}, "8 channels do not divide into 3 heads"),
    (VisionConfig, EYE, {"patch_size": 0}, "VisionConfig.patch_size is 0; it must lie between 1 and"),
    (VisionConfig, EYE, {"shuffle": 0}, "VisionConfig.shuffle is 0"),
    (VisionConfig, EYE, {"stem": "resnet"}, "stem is 'resnet'; known: linear, conv"),
    (LatentConfig, LATENTS, {"patch_size": 0}, "LatentConfig.patch_size is 0; it must lie between 1 and"),
    (LatentConfig, LATENTS, {"max_grid": 5000}, "LatentConfig.max_grid is 5000; it must lie between 0 and 4096"),
    (LatentConfig, LATENTS, {"channels": 1 << 21}, "LatentConfig.channels is 2097152"),
    (LatentConfig, LATENTS, {"prediction": "noise"}, "prediction is 'noise'; known: velocity, sample"),
    (
        LatentConfig,
        LATENTS,
        {"gain": True},
        "LatentConfig.gain goes with a prediction of the sample, not",
    ),
]


@pytest.mark.parametrize(
    ("kind", "base", "changes", "said"), REFUSED, ids=[f"{k.__name__}-{'-'.join(c)}" for k, _, c, _ in REFUSED]
)
def test_what_cannot_be_built_is_refused(kind, base, changes, said):
    kind(**{**({"n_groups": 2} if kind is MambaConfig else {}), **base})  # the base alone is fine
    with pytest.raises(ConfigError) as raised:
        kind(**base | changes)
    assert said in str(raised.value)


def test_systems_whose_parts_disagree():
    context = TOWERS["M*-E"]
    with pytest.raises(ConfigError, match=r"pattern 'M\*' is not the context's 'M\*-E'"):
        OmniConfig(vocab_size=9, context=context, denoiser=tower_config("M*"))
    with pytest.raises(ConfigError, match="no denoiser tower"):
        OmniConfig(vocab_size=9, context=context, latent=LatentConfig(**LATENTS))
    with pytest.raises(ConfigError, match=r"OmniConfig.vocab_size is 0; it must lie between 1 and 16777216"):
        OmniConfig(vocab_size=0, context=context)
    with pytest.raises(ConfigError, match=r"vocab_size is 16777217"):
        OmniConfig(vocab_size=(1 << 24) + 1, context=context)


def test_configs_are_frozen_and_take_keywords_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TOWERS["M*-E"].d_model = 3
    with pytest.raises(TypeError):
        MLPConfig(4)


def test_derived_sizes():
    mamba = MambaConfig(n_heads=6, head_dim=5, n_groups=3, d_state=7)
    assert (mamba.d_inner, mamba.conv_dim, mamba.d_in_proj) == (30, 30 + 42, 30 + 72 + 6)
    assert LatentConfig(patch_size=4, channels=3).token_dim == 48
    assert VISION.token_pixels == 8
    tower = tower_config("M*-E")
    assert tower.n_layers == 4
    assert [tower.mixer(i) for i in range(4)] == [tower.mamba, tower.attention, tower.mlp, tower.moe]


# -- to a file and back ----------------------------------------------------------------------------------------------


def through_json(config):
    return from_dict(type(config), json.loads(json.dumps(to_dict(config), allow_nan=False)))


@pytest.mark.parametrize("name", presets())
def test_presets_survive_a_file(name):
    config = presets()[name].config
    assert through_json(config) == config


@pytest.mark.parametrize("name", TOWERS)
def test_systems_survive_a_file(name):
    config = system_config(
        TOWERS[name],
        time=TimeConfig(mode="input"),
        special_tokens={"bos": 1, "eos": [2, 3]},
        sampling={"temperature": 0.6, "top_k": 20},
    )
    assert through_json(config) == config


def test_infinity_and_absence_survive_a_file():
    config = MambaConfig(n_heads=4, head_dim=2, n_groups=2, dt_limit=(0.001, math.inf))
    assert to_dict(config)["dt_limit"] == [0.001, "inf"]
    assert through_json(config) == config
    plain = to_dict(system_config(TOWERS["MM odd"], vision=None, mtp=None))
    assert "vision" not in plain
    assert from_dict(OmniConfig, plain).vision is None


WRONG = [
    ({"colour": 1}, r"OmniConfig has no fields \['colour'\]; known: \['action', 'context'"),
    ({"context": {"patern": "M"}}, r"TowerConfig has no fields \['patern'\]"),
    ({"context": {"mamba": {"heads": 3, "width": 1}}}, r"MambaConfig has no fields \['heads', 'width'\]"),
    ({"context": {"d_model": "20"}}, r"TowerConfig.d_model is '20'"),
    ({"context": {"d_model": 20.5}}, r"TowerConfig.d_model is 20.5"),
    ({"context": {"d_model": True}}, r"TowerConfig.d_model is True"),
    ({"context": {"pattern": ["M"]}}, r"TowerConfig.pattern is \('M',\)"),
    ({"context": "MEM"}, r"OmniConfig.context is 'MEM'"),
    ({"context": {"attention": {"rotary": {"sections": [1, 1]}}}}, r"RotaryConfig.sections is \(1, 1\)"),
    ({"special_tokens": {"eos": "two"}}, r"OmniConfig.special_tokens is .*'eos': 'two'"),
    ({"sampling": [0.5]}, r"OmniConfig.sampling is \(0.5,\)"),
    ({"tie_embeddings": "yes"}, r"OmniConfig.tie_embeddings is 'yes'"),
    ({"vocab_size": None}, r"OmniConfig.vocab_size is None"),
    ({"context": {"d_model": 0}}, r"TowerConfig.d_model is 0; it must lie between"),
]


def merged(plain: dict, changes: dict) -> dict:
    """``plain`` with ``changes`` put over it, dict by dict."""
    both = {
        k: merged(plain[k], v) for k, v in changes.items() if isinstance(v, dict) and isinstance(plain.get(k), dict)
    }
    return plain | changes | both


@pytest.mark.parametrize(("changes", "said"), WRONG)
def test_files_that_say_something_else(changes, said):
    plain = merged(to_dict(system_config(tower_config("M*-E", rotary=RotaryConfig(sections=(2, 1, 1))))), changes)
    with pytest.raises(ConfigError, match=said):
        from_dict(OmniConfig, plain)


def test_missing_fields_are_named():
    plain = to_dict(system_config(TOWERS["M*-E"]))
    del plain["context"]["d_model"]
    with pytest.raises(ConfigError, match=r"TowerConfig.*d_model"):
        from_dict(OmniConfig, plain)


def test_replace_checks_again():
    with pytest.raises(ConfigError, match="d_model is 0"):
        replace(TOWERS["M*-E"], d_model=0)
