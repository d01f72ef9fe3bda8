"""The vision tower as RADIO, as Qwen3-VL's and as SigLIP 2 of Cosmos 3 Edge, against transformers.

The reference classes take patches in blocks of 2 x 2 (Qwen3-VL, Edge) and have their own names: ``RADIO``, ``QWEN`` and
``EDGE`` say which tensor is which, ours -> theirs, with {i} for a layer and {t} for a tap.
"""

import pytest
import torch
from einops import rearrange
from transformers.models.cosmos3_edge import modeling_cosmos3_edge as edge
from transformers.models.cosmos3_edge.configuration_cosmos3_edge import (
    Cosmos3EdgeConfig,
    Cosmos3EdgeTextConfig,
    Cosmos3EdgeVisionConfig,
)
from transformers.models.nemotron_h_omni import modeling_nemotron_h_omni as nemotron
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.radio.configuration_radio import RadioConfig
from transformers.models.radio.modeling_radio import RadioModel
from vision_units import D_TEXT, RADIO_TINY, SIZES, agree, draw, gradients_are_finite, normed, unit

from omni.config import VisionConfig, replace
from omni.encoders import vision
from omni.encoders.projector import Connector
from omni.encoders.vision import Features, VisionEncoder, attend_units, attend_units_reference

# -- names: ours -> theirs -------------------------------------------------------------------------------------------

RADIO = {
    "stem.proj.weight": "embeddings.patch_projection.weight",
    "video_stem.proj.weight": "embeddings.video_patch_projection.weight",
    "prefix": "embeddings.cls_register_token",
    "positions": "embeddings.position_embedding",
    "blocks.{i}.norm1.weight": "encoder.layer.{i}.norm1.weight",
    "blocks.{i}.norm1.bias": "encoder.layer.{i}.norm1.bias",
    "blocks.{i}.qkv.weight": "encoder.layer.{i}.attention.{q,k,v}_proj.weight",
    "blocks.{i}.qkv.bias": "encoder.layer.{i}.attention.{q,k,v}_proj.bias",
    "blocks.{i}.proj.weight": "encoder.layer.{i}.attention.o_proj.weight",
    "blocks.{i}.proj.bias": "encoder.layer.{i}.attention.o_proj.bias",
    "blocks.{i}.norm2.weight": "encoder.layer.{i}.norm2.weight",
    "blocks.{i}.norm2.bias": "encoder.layer.{i}.norm2.bias",
    "blocks.{i}.up_proj.weight": "encoder.layer.{i}.mlp.fc1.weight",
    "blocks.{i}.up_proj.bias": "encoder.layer.{i}.mlp.fc1.bias",
    "blocks.{i}.down_proj.weight": "encoder.layer.{i}.mlp.fc2.weight",
    "blocks.{i}.down_proj.bias": "encoder.layer.{i}.mlp.fc2.bias",
}
"""transformers' RadioModel. Its layer scales are one and its conditioner and summary indices unused: not here."""

RADIO_PROJECTOR = {
    "norm.weight": "layer_norm.weight",
    "up_proj.weight": "linear_1.weight",
    "down_proj.weight": "linear_2.weight",
}
"""``multi_modal_projector`` of NemotronH_Omni. A final norm is ``vision_final_layernorm`` beside it."""

QWEN = {
    "stem.proj.weight": "patch_embed.proj.weight",  # (d, 3, 2, 16, 16) there
    "stem.proj.bias": "patch_embed.proj.bias",
    "positions": "pos_embed.weight",
    "blocks.{i}.norm1.weight": "blocks.{i}.norm1.weight",
    "blocks.{i}.norm1.bias": "blocks.{i}.norm1.bias",
    "blocks.{i}.qkv.weight": "blocks.{i}.attn.qkv.weight",
    "blocks.{i}.qkv.bias": "blocks.{i}.attn.qkv.bias",
    "blocks.{i}.proj.weight": "blocks.{i}.attn.proj.weight",
    "blocks.{i}.proj.bias": "blocks.{i}.attn.proj.bias",
    "blocks.{i}.norm2.weight": "blocks.{i}.norm2.weight",
    "blocks.{i}.norm2.bias": "blocks.{i}.norm2.bias",
    "blocks.{i}.up_proj.weight": "blocks.{i}.mlp.linear_fc1.weight",
    "blocks.{i}.up_proj.bias": "blocks.{i}.mlp.linear_fc1.bias",
    "blocks.{i}.down_proj.weight": "blocks.{i}.mlp.linear_fc2.weight",
    "blocks.{i}.down_proj.bias": "blocks.{i}.mlp.linear_fc2.bias",
}

QWEN_PROJECTOR = {
    "norm.weight": "merger.norm.weight",
    "norm.bias": "merger.norm.bias",
    "up_proj.weight": "merger.linear_fc1.weight",
    "up_proj.bias": "merger.linear_fc1.bias",
    "down_proj.weight": "merger.linear_fc2.weight",
    "down_proj.bias": "merger.linear_fc2.bias",
    "deepstack.{t}.norm.weight": "deepstack_merger_list.{t}.norm.weight",
    "deepstack.{t}.norm.bias": "deepstack_merger_list.{t}.norm.bias",
    "deepstack.{t}.up_proj.weight": "deepstack_merger_list.{t}.linear_fc1.weight",
    "deepstack.{t}.up_proj.bias": "deepstack_merger_list.{t}.linear_fc1.bias",
    "deepstack.{t}.down_proj.weight": "deepstack_merger_list.{t}.linear_fc2.weight",
    "deepstack.{t}.down_proj.bias": "deepstack_merger_list.{t}.linear_fc2.bias",
}

EDGE = {
    "stem.proj.weight": "embeddings.patch_embedding.weight",  # from pixels in the order (y, x, channel)
    "stem.proj.bias": "embeddings.patch_embedding.bias",
    "positions": "embeddings.position_embedding.weight",
    "blocks.{i}.norm1.weight": "encoder.layers.{i}.layer_norm1.weight",
    "blocks.{i}.norm1.bias": "encoder.layers.{i}.layer_norm1.bias",
    "blocks.{i}.qkv.weight": "encoder.layers.{i}.self_attn.{q,k,v}_proj.weight",
    "blocks.{i}.qkv.bias": "encoder.layers.{i}.self_attn.{q,k,v}_proj.bias",
    "blocks.{i}.proj.weight": "encoder.layers.{i}.self_attn.out_proj.weight",
    "blocks.{i}.proj.bias": "encoder.layers.{i}.self_attn.out_proj.bias",
    "blocks.{i}.norm2.weight": "encoder.layers.{i}.layer_norm2.weight",
    "blocks.{i}.norm2.bias": "encoder.layers.{i}.layer_norm2.bias",
    "blocks.{i}.up_proj.weight": "encoder.layers.{i}.mlp.fc1.weight",
    "blocks.{i}.up_proj.bias": "encoder.layers.{i}.mlp.fc1.bias",
    "blocks.{i}.down_proj.weight": "encoder.layers.{i}.mlp.fc2.weight",
    "blocks.{i}.down_proj.bias": "encoder.layers.{i}.mlp.fc2.bias",
    "final_norm.weight": "post_layernorm.weight",
    "final_norm.bias": "post_layernorm.bias",
}

EDGE_PROJECTOR = {
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
    "up_proj.weight": "linear_fc1.weight",
    "up_proj.bias": "linear_fc1.bias",
    "down_proj.weight": "linear_fc2.weight",
    "down_proj.bias": "linear_fc2.bias",
}


def ours_from(theirs: dict[str, torch.Tensor], *tables: dict[str, str], **counts: int) -> dict[str, torch.Tensor]:
    """Our tensors out of ``theirs`` by the tables; ``i=2`` repeats the lines with {i} for 0 and 1."""
    found = {}
    for mine, other in (line for table in tables for line in table.items()):
        letter = next((letter for letter in counts if f"{{{letter}}}" in mine), None)
        for n in range(counts[letter]) if letter else [0]:
            name = other.replace(f"{{{letter}}}", str(n))
            parts = [name.replace("{q,k,v}", one) for one in "qkv"] if "{q,k,v}" in name else [name]
            found[mine.replace(f"{{{letter}}}", str(n))] = torch.cat([theirs[part] for part in parts])
    if "positions" in found:
        found["positions"] = found["positions"].reshape(-1, found["positions"].shape[-1])
    if "stem.proj.weight" in found:
        found["stem.proj.weight"] = found["stem.proj.weight"].flatten(1)
    return found


def edge_from(theirs: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """Edge flattens its patches (y, x, channel)."""
    found = ours_from(theirs, EDGE, i=layers)
    weight = found["stem.proj.weight"]
    side = round((weight.shape[1] // 3) ** 0.5)
    found["stem.proj.weight"] = rearrange(weight, "d (y x c) -> d (c y x)", y=side, x=side)
    return found


# -- tiny and real sizes ---------------------------------------------------------------------------------------------

QWEN_TINY = VisionConfig(
    d_model=32, n_layers=4, n_heads=2, d_ff=40, patch_size=4, n_prefix=0, max_grid=5, stem_bias=True, tubelet=2,
    positions="interpolated", rotary_theta=10_000.0, activation="gelu_tanh", projector="gelu", d_projector=128,
    deepstack=((0, 0), (2, 1)),
)  # fmt: skip
EDGE_TINY = VisionConfig(
    d_model=24, n_layers=3, n_heads=3, d_ff=36, patch_size=4, n_prefix=0, max_grid=4, stem_bias=True,
    positions="resized", activation="gelu_tanh", final_norm=True, projector="gelu", d_projector=56,
)  # fmt: skip

RADIO_REAL = VisionConfig(
    d_model=1280, n_layers=32, n_heads=16, d_ff=5120, tubelet=2, video_stem=True, d_projector=20_480
)
QWEN_REAL = replace(
    QWEN_TINY, d_model=1152, n_layers=27, n_heads=16, d_ff=4304, patch_size=16, max_grid=48, d_projector=4608,
    deepstack=((8, 0), (16, 1), (24, 2)),
)  # fmt: skip
EDGE_REAL = replace(
    EDGE_TINY, d_model=1152, n_layers=27, n_heads=16, d_ff=4304, patch_size=16, max_grid=16, d_projector=11_520
)


def radio_config(c: VisionConfig) -> RadioConfig:
    return RadioConfig(
        hidden_size=c.d_model, num_hidden_layers=c.n_layers, num_attention_heads=c.n_heads,
        mlp_ratio=c.d_ff / c.d_model, patch_size=c.patch_size, max_img_size=c.max_grid * c.patch_size,
        num_cls_tokens=2, num_registers=c.n_prefix - 2, video_temporal_patch_size=c.tubelet, norm_mean=c.mean,
        norm_std=c.std,
    )  # fmt: skip


def qwen_config(c: VisionConfig, d_out: int) -> Qwen3VLVisionConfig:
    return Qwen3VLVisionConfig(
        depth=c.n_layers, hidden_size=c.d_model, intermediate_size=c.d_ff, num_heads=c.n_heads,
        patch_size=c.patch_size, temporal_patch_size=c.tubelet, spatial_merge_size=c.shuffle, out_hidden_size=d_out,
        num_position_embeddings=c.max_grid**2, deepstack_visual_indexes=[layer for layer, _ in c.deepstack],
    )  # fmt: skip


def edge_config(c: VisionConfig, d_out: int) -> Cosmos3EdgeConfig:
    return Cosmos3EdgeConfig(
        vision_config=Cosmos3EdgeVisionConfig(
            hidden_size=c.d_model, num_hidden_layers=c.n_layers, num_attention_heads=c.n_heads,
            intermediate_size=c.d_ff, patch_size=c.patch_size, num_patches=c.max_grid**2,
        ),
        text_config=Cosmos3EdgeTextConfig(hidden_size=d_out, num_attention_heads=4, num_key_value_heads=2),
        projector_hidden_size=c.d_projector,
    )  # fmt: skip


def blocks(patches: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """(h w, d) row by row -> the same 2 x 2 block after 2 x 2 block."""
    return rearrange(patches, "(h y w x) d -> (h w y x) d", h=grid[0] // 2, y=2, x=2)


# -- RADIO -----------------------------------------------------------------------------------------------------------


def radio(seed: int) -> tuple[VisionEncoder, RadioModel]:
    theirs = draw(RadioModel(radio_config(RADIO_TINY)), seed)
    ours = VisionEncoder(RADIO_TINY).eval()
    ours.load_state_dict(ours_from(theirs.state_dict(), RADIO, i=RADIO_TINY.n_layers))
    return ours, theirs


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("grid", [*SIZES[:4], (1, 7), (9, 5)])
@torch.no_grad()
def test_radio_for_images_of_one_size(seed, grid):
    ours, theirs = radio(seed)
    pixels = torch.stack([unit(grid, seed=n) for n in range(2)])
    agree(ours(pixels), theirs(pixels).features)


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_radio_for_images_of_many_sizes(seed):
    ours, theirs = radio(seed)
    sizes = [*SIZES, SIZES[1], (1, 3), (4, 4)]
    images = [unit(grid, seed=n) for n, grid in enumerate(sizes)]
    patches = [rearrange(image, "c (h y) (w x) -> (h w) (c y x)", y=4, x=4) for image in images]
    expected = theirs(torch.cat(patches), image_grid_hw=torch.tensor(sizes)).features
    got = ours.encode(images)
    assert [features.grid for features in got] == sizes
    agree(torch.cat([features.patches for features in got]), expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("final_norm", [False, True])
def test_nano_omni_projects_images_and_videos(seed, final_norm):
    """Through NemotronH_Omni's own methods: odd frame counts end with the last frame twice."""
    c = replace(RADIO_TINY, final_norm=final_norm)
    ours, connector = VisionEncoder(c), Connector(c, D_TEXT)
    theirs = draw(nano_omni(c), seed)
    state = theirs.state_dict()
    towers = {k.removeprefix("vision_model."): t for k, t in state.items()}
    norm = {f"final_norm.{w}": f"vision_final_layernorm.{w}" for w in ("weight", "bias")} if final_norm else {}
    ours.load_state_dict(ours_from(towers, RADIO, norm, i=c.n_layers))
    projector = {k: f"multi_modal_projector.{name}" for k, name in RADIO_PROJECTOR.items()}
    connector.load_state_dict(ours_from(state, projector))

    image, film = unit((4, 6), 1), unit((2, 4), 2, frames=5)
    tubelets = [film[0:2], film[2:4], film[4:].repeat(2, 1, 1, 1)]
    seen = [connector(features) for features in ours.encode([tubelets[2], image, *tubelets[:2]])]
    with torch.no_grad():
        patches = rearrange(normed(image, c), "c (h y) (w x) -> (h w) (c y x)", y=4, x=4)
        (expected,) = theirs.get_image_features(patches, torch.tensor([[4, 6]])).pooler_output
        videos = theirs.get_video_features(normed(film, c)).pooler_output
    agree(seen[1], expected)
    agree(torch.stack([seen[2], seen[3], seen[0]]), videos)
    agree(connector.project(ours(torch.stack(tubelets)), (2, 4)), videos)
    gradients_are_finite(seen, ours, connector)


def nano_omni(c: VisionConfig) -> nemotron.NemotronH_Omni_Reasoning_V3:
    text = {
        "model_type": "nemotron_h", "hidden_size": D_TEXT, "layers_block_type": ["attention"], "vocab_size": 32,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 16,
        "num_nextn_predict_layers": int(c.final_norm),
    }  # fmt: skip
    config = nemotron.NemotronH_Omni_Reasoning_V3_Config(
        vision_config=radio_config(c).to_dict(), text_config=text, audio_config=None, vision_hidden_size=c.d_model,
        projector_hidden_size=c.d_projector, video_temporal_patch_size=c.tubelet, image_token_id=1,
    )  # fmt: skip
    config.vision_config.torch_dtype = torch.float32
    return nemotron.NemotronH_Omni_Reasoning_V3(config)


# -- Qwen3-VL --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_qwen_for_images_and_videos_of_many_sizes(seed):
    c = QWEN_TINY
    theirs = draw(qwen.Qwen3VLVisionModel(qwen_config(c, D_TEXT)), seed)
    ours, connector = VisionEncoder(c), Connector(c, D_TEXT)
    ours.load_state_dict(ours_from(theirs.state_dict(), QWEN, i=c.n_layers))
    connector.load_state_dict(ours_from(theirs.state_dict(), QWEN_PROJECTOR, t=len(c.deepstack)))

    grids = [(1, *grid) for grid in SIZES] + [(3, 4, 6), (2, 2, 4)]
    media = [unit(grid, seed=n, frames=(t - 1) * t and 2 * t) for n, (t, *grid) in enumerate(grids)]
    units = [part for item in media for part in (item.split(2) if item.dim() == 4 else [item])]
    features = ours.encode(units)
    tokens = torch.cat([connector(f) for f in features], dim=1)
    patches = [qwen_patches(normed(item, c)) for item in media]
    with torch.no_grad():
        expected = theirs(torch.cat(patches), torch.tensor(grids))
    agree(torch.cat([blocks(f.patches, f.grid) for f in features]), expected.last_hidden_state)
    agree(tokens[0], expected.pooler_output)
    assert len(tokens) == 3
    for tap, other in zip(tokens[1:], expected.deepstack_features, strict=True):
        agree(tap, other)
    gradients_are_finite([tokens], ours, connector)


def qwen_patches(media: torch.Tensor) -> torch.Tensor:
    """(3, H, W) or (frames, 3, H, W) -> (patches, 3 * 2 * 4 * 4), blocks of 2 x 2 after each other."""
    frames = media if media.dim() == 4 else torch.stack([media, media])
    order = "(t f) c (h a y) (w b x) -> (t h w a b) (c f y x)"
    return rearrange(frames, order, f=2, a=2, b=2, y=4, x=4)


@pytest.mark.parametrize("field", ["positions", "rotary_theta", "activation", "final_norm"])
@torch.no_grad()
def test_every_difference_between_the_towers_is_felt(field):
    """A control: with one field as another tower has it, the features are others."""
    other = {"positions": "resized", "rotary_theta": 100.0, "activation": "gelu", "final_norm": True}[field]
    ours, changed = (VisionEncoder(replace(QWEN_TINY, **change)) for change in ({}, {field: other}))
    changed.load_state_dict(draw(ours, 0).state_dict(), strict=False)
    a, b = (model(unit((4, 6), 1)[None]) for model in (ours, changed))
    assert (a - b).abs().max() / a.abs().max() > 1e-4


def test_rotary_base_of_the_reference():
    assert Qwen3VLVisionConfig().rope_parameters["rope_theta"] == QWEN_REAL.rotary_theta


# -- Edge ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_edge_for_images_and_videos_of_many_sizes(seed):
    c = EDGE_TINY
    config = edge_config(c, D_TEXT)
    theirs = draw(edge.Cosmos3EdgeVisionModel(config.vision_config), seed)
    merger = draw(edge.Cosmos3EdgePatchMerger(config), seed + 10)
    ours, connector = VisionEncoder(c), Connector(c, D_TEXT)
    ours.load_state_dict(edge_from(theirs.state_dict(), c.n_layers))
    connector.load_state_dict(ours_from(merger.state_dict(), EDGE_PROJECTOR))

    grids = [(1, *grid) for grid in SIZES] + [(3, 4, 6)]
    media = [unit(grid, seed=n, frames=t) for n, (t, *grid) in enumerate(grids)]
    features = ours.encode([frame for item in media for frame in item])
    order = "t c (h a y) (w b x) -> (t h w a b) (y x c)"
    patches = [rearrange(normed(item, c), order, a=2, b=2, y=4, x=4) for item in media]
    with torch.no_grad():
        expected = theirs(torch.cat(patches), torch.tensor(grids)).last_hidden_state
        projected = merger(expected)
    tokens = [connector(f) for f in features]
    agree(torch.cat([blocks(f.patches, f.grid) for f in features]), expected)
    agree(torch.cat(tokens), projected)
    gradients_are_finite(tokens, ours, connector)


# -- sizes -----------------------------------------------------------------------------------------------------------


def elements(module: torch.nn.Module, *left_out: str) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if not any(word in name for word in left_out))


def test_real_sizes_hold_as_many_numbers_as_the_reference():
    with torch.device("meta"):
        theirs = RadioModel(radio_config(RADIO_REAL))
        assert elements(VisionEncoder(RADIO_REAL)) == elements(theirs, "lambda1") == 653_611_520
        theirs = qwen.Qwen3VLVisionModel(qwen_config(QWEN_REAL, 4096))
        assert elements(VisionEncoder(QWEN_REAL)) + elements(Connector(QWEN_REAL, 4096)) == elements(theirs)
        config = edge_config(EDGE_REAL, 2048)
        theirs = edge.Cosmos3EdgeVisionModel(config.vision_config), edge.Cosmos3EdgePatchMerger(config)
        assert elements(VisionEncoder(EDGE_REAL)) == elements(theirs[0])
        assert elements(Connector(EDGE_REAL, 2048)) == elements(theirs[1])


# -- units of many sizes in one pass ---------------------------------------------------------------------------------

CONV_TINY = replace(RADIO_TINY, stem="conv")
TOWERS = {"radio": RADIO_TINY, "qwen": QWEN_TINY, "edge": EDGE_TINY, "convolutions": CONV_TINY}


@pytest.fixture(params=TOWERS.values(), ids=TOWERS, name="tower")
def _tower(request):
    return draw(VisionEncoder(request.param), 1).double()


def mixed(tower: VisionEncoder) -> list[torch.Tensor]:
    frames = [0, 1] if tower.config.tubelet == 1 else [0, tower.config.tubelet]
    sizes = [*SIZES, (4, 2), (2, 4), (2, 2)]
    return [unit(grid, seed=n, frames=frames[n % 3 == 1]) for n, grid in enumerate(sizes)]


@torch.no_grad()
def test_a_pass_of_many_units_equals_each_alone(tower):
    units = mixed(tower)
    together = tower.encode(units)
    for features, one in zip(together, units, strict=True):
        assert (features.patches - tower(one[None])[0]).abs().max() < 1e-12
        (alone,) = tower.encode([one])
        assert features.grid == alone.grid == (one.shape[-2] // 4, one.shape[-1] // 4)
        assert len(features.taps) == len(tower.config.deepstack)
        for tap, own in zip(features.taps, alone.taps, strict=True):
            assert (tap - own).abs().max() < 1e-12
    assert tower.encode([]) == []


@torch.no_grad()
def test_long_lists_are_cut_into_passes(tower, monkeypatch):
    """No pass holds more patches than allowed but a unit that is larger by itself; the cut changes nothing."""
    units = mixed(tower)
    whole = tower.encode(units)
    monkeypatch.setattr(vision, "PACK_PATCHES", 40)
    passes = []
    run = tower._run
    monkeypatch.setattr(tower, "_run", lambda batches: passes.append(batches) or run(batches))
    for a, b in zip(tower.encode(units), whole, strict=True):
        assert (a.patches - b.patches).abs().max() < 1e-12
    counts = [[b.shape[-2] * b.shape[-1] // 16 for b in batches for _ in range(len(b))] for batches in passes]
    assert len(counts) > 3
    assert all(sum(own) <= 40 or len(own) == 1 for own in counts)
    assert sorted(n for own in counts for n in own) == sorted(u.shape[-2] * u.shape[-1] // 16 for u in units)


@pytest.mark.parametrize("groups", [[(1, 7)], [(3, 4), (1, 9), (2, 1)], [(2, 6), (2, 6)]])
def test_units_attend_to_themselves_alone(groups):
    n = sum(b * length for b, length in groups)
    qkv = torch.randn(3, n, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    twin = qkv.detach().clone().requires_grad_()
    fast, slow = attend_units(*qkv, groups), attend_units_reference(*twin, groups)
    assert (fast - slow).abs().max() < 1e-12
    weights = torch.randn(fast.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (fast * weights).sum().backward()
    (slow * weights).sum().backward()
    assert (qkv.grad - twin.grad).abs().max() < 1e-12


@torch.no_grad()
def test_an_image_is_a_film_that_stands_still_only_where_the_stem_is_shared():
    image = unit((4, 2), 1)
    still = torch.stack([image, image])
    for config, same in ((QWEN_TINY, True), (RADIO_TINY, False), (CONV_TINY, False)):
        model = draw(VisionEncoder(config), 1)
        assert torch.equal(model(image[None]), model(still[None])) == same
        moving = torch.stack([image, image.flip(-1)])
        assert not torch.allclose(model(still[None]), model(moving[None]))


def test_what_is_no_unit_is_refused_before_anything_is_encoded(tower, monkeypatch):
    monkeypatch.setattr(tower, "_run", lambda batches: pytest.fail("something was encoded"))
    good, frames = unit((2, 2), 1), tower.config.tubelet
    for bad, said in (
        (torch.zeros(1, 8, 8), r"not \(1, 8, 8\)"),
        (torch.zeros(frames + 1, 3, 8, 8), rf"{frames} frames at a time"),
        (torch.zeros(8, 8), r"not \(8, 8\)"),
        (torch.zeros(3, 8, 6), "8x6 pixels"),
        (torch.zeros(3, 0, 8), "0x8 pixels"),
    ):
        with pytest.raises(ValueError, match=said):
            tower.encode([good, bad])
        with pytest.raises(ValueError, match=said):
            tower(bad[None])


def test_configs_that_cannot_be_built():
    with pytest.raises(ValueError, match="not 10"):
        VisionEncoder(replace(QWEN_TINY, d_model=20))


def test_tokens_of_a_tower_without_taps_have_no_further_axis():
    connector = draw(Connector(RADIO_TINY, D_TEXT), 1)
    patches = torch.randn(2, 24, 24, generator=torch.Generator().manual_seed(1))
    batch = connector.project(patches, (4, 6))
    assert batch.shape == (2, 6, D_TEXT)
    for row, own in zip(batch, patches, strict=True):
        assert torch.allclose(connector(Features(own, (), (4, 6))), row, atol=1e-6)
