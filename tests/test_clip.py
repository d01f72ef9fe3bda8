"""Towers of open_clip in the place of ours: the same tokens, feature maps of every kind, and what cannot be had."""

import json
import re

import pytest
import torch
from einops import rearrange
from vision_units import D_TEXT, RADIO_TINY, SIZES, agree, draw, gradients_are_finite, normed, unit

from omni.config import replace
from omni.encoders.clip import ClipEncoder, build_vision, clip_config
from omni.encoders.projector import Connector
from omni.encoders.vision import VisionEncoder

TEXT = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 24, "layers": 3, "width": 16, "head_width": 8, "patch_size": 4}
CLIP_TOWERS = {
    "tiny-vit": VIT,
    "tiny-vit-pooled": VIT | {"final_ln_after_pool": True, "patch_dropout": 0.5, "no_ln_pre": True},
    "tiny-vit-attended": VIT | {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 4},
    "tiny-resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "patch_size": None},
    "tiny-timm-vit": {"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none", "image_size": 160},
    "tiny-timm-convnext": {"timm_model_name": "test_convnext", "timm_proj": "linear", "image_size": 160},
    "tiny-timm-fixed": {"timm_model_name": "test_vit_relpos", "timm_proj": "linear", "image_size": 160},
}


@pytest.fixture(scope="module", name="open_clip")
def _open_clip(tmp_path_factory):
    import open_clip

    folder = tmp_path_factory.mktemp("open_clip")
    for name, tower in CLIP_TOWERS.items():
        whole = {"embed_dim": 12, "vision_cfg": tower, "text_cfg": TEXT}
        (folder / f"{name}.json").write_text(json.dumps(whole))
    open_clip.add_model_config(folder)
    return open_clip


def clip_pair(open_clip, name: str, **changes):
    """Ours with the weights of a whole open_clip model, and that model's tower."""
    theirs = draw(open_clip.create_model(name, pretrained=None), 3)
    ours = ClipEncoder(clip_config(name, **changes)).eval()
    ours.load_open_clip(theirs.state_dict())
    return ours, theirs.visual


@torch.no_grad()
def test_clip_gives_the_tokens_of_open_clip(open_clip):
    ours, theirs = clip_pair(open_clip, "tiny-vit")
    theirs.output_tokens = True
    pixels = torch.stack([unit((6, 6), seed=n) for n in range(2)])
    agree(ours(pixels), theirs(normed(pixels, ours.config))[1])
    assert (ours.config.d_model, ours.config.n_layers, ours.config.n_heads) == (16, 3, 2)


@torch.no_grad()
def test_clip_resizes_its_positions_as_open_clip_does(open_clip):
    ours, _ = clip_pair(open_clip, "tiny-vit")
    whole = draw(open_clip.create_model("tiny-vit", pretrained=None), 3)
    larger = open_clip.create_model("tiny-vit", pretrained=None, force_image_size=(16, 40))
    state = whole.state_dict()
    open_clip.model.resize_pos_embed(state, larger)
    larger.load_state_dict(state)
    larger.eval().visual.output_tokens = True
    pixels = unit((4, 10), 1)[None]
    agree(ours(pixels), larger.visual(normed(pixels, ours.config))[1])


@pytest.mark.parametrize("name", ["tiny-vit-pooled", "tiny-vit-attended"])
@torch.no_grad()
def test_clip_leaves_out_what_pools(open_clip, name):
    """The last residual stream where open_clip norms only the pooled vector; no patch is dropped in training."""
    ours, theirs = clip_pair(open_clip, name)
    pixels = unit((6, 6), 1)[None]
    (last,) = theirs.forward_intermediates(normed(pixels, ours.config), indices=1)["image_intermediates"]
    agree(ours.train()(pixels), rearrange(last, "b d h w -> b (h w) d"))


@pytest.mark.parametrize("name", ["tiny-resnet", "tiny-timm-vit", "tiny-timm-convnext"])
@torch.no_grad()
def test_clip_gives_feature_maps(open_clip, name):
    ours, theirs = clip_pair(open_clip, name)
    side = ours.config.patch_size
    size = (theirs.image_size[0],) * 2 if isinstance(theirs.image_size, tuple) else (theirs.image_size,) * 2
    pixels = unit((size[0] // side, size[1] // side), 1, patch=side)[None]
    norm = {"normalize_intermediates": True}
    (last,) = theirs.forward_intermediates(normed(pixels, ours.config), indices=1, **norm)["image_intermediates"]
    agree(ours(pixels), rearrange(last, "b d h w -> b (h w) d"))
    other = unit((3, 2), 1, patch=side)
    (features,) = ours.encode([other])
    assert features.patches.shape == (6, ours.config.d_model)
    assert features.patches.isfinite().all()


def test_clip_in_the_place_of_our_tower(open_clip):
    """Many sizes, taps, a final norm and a connector behind it."""
    config = clip_config("tiny-vit", deepstack=((1, 0),), projector="gelu", final_norm=True)
    ours, connector = draw(build_vision(config), 1), draw(Connector(config, D_TEXT), 2)
    assert isinstance(ours, ClipEncoder)
    assert isinstance(build_vision(RADIO_TINY), VisionEncoder)
    units = [unit(grid, seed=n) for n, grid in enumerate(SIZES)] + [unit((4, 4), 9, frames=1)]
    features = ours.encode(units)
    for one, own in zip(units, features, strict=True):
        alone = ours(one[None] if one.dim() == 3 else one)
        assert torch.allclose(own.patches, alone[0], atol=1e-5)
    tokens = [connector(f) for f in features]
    assert [t.shape for t in tokens] == [(2, h * w // 4, D_TEXT) for h, w in [*SIZES, (4, 4)]]
    gradients_are_finite(tokens, ours, connector)


def test_clip_towers_that_cannot_be_had(open_clip, monkeypatch):
    good = clip_config("tiny-vit")
    for changes, said in (
        ({"open_clip": "tiny-vitt"}, r"'tiny-vitt'; near to it: .*tiny-vit"),
        ({"d_model": 8}, r"d_model is 8; open_clip's tiny-vit has 16"),
        ({"patch_size": 16}, r"patch_size is 16; open_clip's tiny-vit has 4"),
        ({"tubelet": 2}, r"single frames, not tubelets of 2"),
        ({"n_layers": 9, "deepstack": ((7, 0),)}, r"\[7\]; open_clip's tiny-vit has 3"),
    ):
        with pytest.raises(ValueError, match=said):
            ClipEncoder(replace(good, **changes))
    with pytest.raises(ValueError, match=r"160x160 pixels, not 32x32"):
        ClipEncoder(clip_config("tiny-timm-fixed")).encode([torch.zeros(3, 32, 32)])
    with pytest.raises(ValueError, match=r"lack \d+ tensors"):
        ClipEncoder(good).load_open_clip({})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=re.escape("pip install omni[clip]")):
        ClipEncoder(good)
