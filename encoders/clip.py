"""Vision towers of open_clip, by name, in the place of our own: the same units in, the same features out.

    config.open_clip = "ViT-B-16"   cls and patch tokens with positions resized to the grid -> blocks -> patch tokens
                       "RN50"       the last feature map before pooling, one token for each of its cells
                       "ViT-B-16-SigLIP", "convnext_base"    the last feature map of timm's network behind the name

A tower is built without weights and without its text half; :meth:`ClipEncoder.load_open_clip` takes the tensors of an
open_clip checkpoint. :func:`clip_config` says which sizes a name has.
"""

import difflib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from omni.config import VisionConfig
from omni.encoders.vision import Grid, UnitEncoder, VisionEncoder


def build_vision(config: VisionConfig) -> UnitEncoder:
    """The tower that ``config`` describes: our own, or open_clip's where it names one."""
    return ClipEncoder(config) if config.open_clip else VisionEncoder(config)


def clip_config(name: str, **changes: Any) -> VisionConfig:
    """The config of open_clip's ``name``; ``changes`` are further fields (shuffle, projector, mean ...)."""
    tower = _tower(name)
    sizes = {"n_layers": 1, "n_heads": 1, "d_ff": 4 * tower.d, "max_grid": max(1, max(tower.size) // tower.patch)}
    open_clip = _open_clip()
    normal = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    for tag in open_clip.list_pretrained_tags_by_model(name)[:1]:
        known = open_clip.get_pretrained_cfg(name, tag)
        normal |= {key: tuple(known[key]) for key in normal if known.get(key)}
    fields = {"d_model": tower.d, "patch_size": tower.patch, "n_prefix": 0, "open_clip": name}
    return VisionConfig(**fields | sizes | tower.sizes | normal | changes)


class ClipEncoder(UnitEncoder):
    """Images to patch features by open_clip's ``config.open_clip``.

    ValueError: open_clip is not installed, does not know the name, or has other sizes than ``config``; the config asks
    for tubelets or, of a network without blocks of one width, for tapped layers.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config)
        name = config.open_clip
        if config.tubelet > 1:
            raise ValueError(f"open_clip's {name} reads single frames, not tubelets of {config.tubelet}")
        self.tower = _tower(name)
        for field, own in (("d_model", self.tower.d), ("patch_size", self.tower.patch)):
            if getattr(config, field) != own:
                raise ValueError(f"VisionConfig.{field} is {getattr(config, field)}; open_clip's {name} has {own}")
        layers = self.tower.sizes.get("n_layers", 0)
        taps = [layer for layer, _ in config.deepstack]
        if taps and max(taps) >= layers:
            raise ValueError(f"VisionConfig.deepstack taps the layers {taps}; open_clip's {name} has {layers} to tap")
        self.final_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps) if config.final_norm else None

    def grid(self, size: tuple[int, int]) -> Grid:
        own = self.tower.size
        if self.tower.fixed and tuple(size) != own:
            height, width = size
            raise ValueError(
                f"open_clip's {self.config.open_clip} takes images of {own[0]}x{own[1]} pixels, not {height}x{width}"
            )
        return super().grid(size)

    def load_open_clip(self, state: Mapping[str, Tensor]) -> None:
        """Take the tower's tensors from the state dict of a whole open_clip model; pooling and text are left out."""
        theirs = {key: key.replace("net.", self.tower.source, 1) for key in self.tower.state_dict()}
        missing = sorted(set(theirs.values()) - set(state))
        if missing:
            raise ValueError(f"the weights lack {len(missing)} tensors of {self.config.open_clip}: {missing[:3]} ...")
        self.tower.load_state_dict({key: state[name] for key, name in theirs.items()})

    def _run(self, batches: Sequence[Tensor]) -> list[list[Tensor]]:
        taps = [layer for layer, _ in self.config.deepstack]
        found = []
        for batch in batches:
            pixels = batch[:, 0] if batch.dim() == 5 else batch
            patches, *tapped = self.tower(pixels, self.grid(pixels.shape[-2:]), taps)
            found.append([patches if self.final_norm is None else self.final_norm(patches), *tapped])
        return found


class _Tower(nn.Module):
    """(b, 3, H, W) -> [patches (b, h w, d), taps ...]. ``source``: what ``net.`` is called in open_clip's weights."""

    source = "visual."
    fixed = False  # takes images of its own size only

    def __init__(self, net: nn.Module, d: int, patch: int, size: tuple[int, int], **sizes: int) -> None:
        super().__init__()
        self.net, self.d, self.patch, self.size = net, d, patch, tuple(size)
        self.sizes = sizes  # of VisionConfig


class _Transformer(_Tower):
    """open_clip's own ViT. Tokens are normed last where open_clip does so itself."""

    def __init__(self, net: nn.Module) -> None:
        blocks = net.transformer.resblocks
        sizes = {"n_layers": len(blocks), "n_heads": blocks[0].attn.num_heads}
        sizes["d_ff"] = blocks[0].mlp.c_fc.out_features
        super().__init__(net, net.conv1.out_channels, net.patch_size[0], net.image_size, **sizes)
        if net.attn_pool is not None or net.final_ln_after_pool:
            net.ln_post = nn.Identity()  # it belongs to the pooled vector
        net.attn_pool = net.attn_pool_contrastive = net.proj = None
        net.patch_dropout = nn.Identity()

    def forward(self, pixels: Tensor, grid: Grid, taps: Sequence[int]) -> list[Tensor]:
        net = self.net
        x = rearrange(net.conv1(pixels), "b d h w -> b (h w) d")
        x = torch.cat([net.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1), x], dim=1)
        x = net.ln_pre(x + self._positions(grid).to(x.dtype))
        x, tapped = net.transformer.forward_intermediates(x, indices=[*taps, -1])  # an empty list is an error there
        return [t[:, 1:] for t in (net.ln_post(x), *tapped[: len(taps)])]

    def _positions(self, grid: Grid) -> Tensor:
        """(1 + h w, d): cls, then the table resized as open_clip resizes it for another size of image."""
        table, own = self.net.positional_embedding, self.net.grid_size
        if grid == tuple(own):
            return table
        square = rearrange(table[1:].float(), "(h w) d -> 1 d h w", h=own[0])
        square = F.interpolate(square, size=grid, mode="bicubic", antialias=True, align_corners=False)
        return torch.cat([table[:1].float(), rearrange(square[0], "d h w -> (h w) d")])


class _ResNet(_Tower):
    """CLIP's ResNet up to its last feature map."""

    def __init__(self, net: nn.Module) -> None:
        size = net.image_size if isinstance(net.image_size, tuple) else (net.image_size,) * 2
        super().__init__(net, net.attnpool.c_proj.in_features, 32, size)
        net.attnpool = None

    def forward(self, pixels: Tensor, grid: Grid, taps: Sequence[int]) -> list[Tensor]:
        net = self.net
        maps = net.layer4(net.layer3(net.layer2(net.layer1(net.stem(pixels)))))
        return [rearrange(maps, "b d h w -> b (h w) d")]


class _Timm(_Tower):
    """timm's network behind an open_clip name, up to its last feature map."""

    source = "visual.trunk."

    def __init__(self, visual: nn.Module) -> None:
        from timm.layers import Format
        from timm.models.convnext import ConvNeXt
        from timm.models.vision_transformer import VisionTransformer

        net = visual.trunk
        net.reset_classifier(0, global_pool="")
        last = net.feature_info[-1]  # the map that is taken; a head may widen it
        super().__init__(net, last["num_chs"], last["reduction"], visual.image_size)
        self.fixed = not isinstance(net, (VisionTransformer, ConvNeXt))
        if isinstance(net, VisionTransformer):  # what its option dynamic_img_size would have set
            net.dynamic_img_size, net.patch_embed.strict_img_size = True, False
            net.patch_embed.flatten, net.patch_embed.output_fmt = False, Format.NHWC

    def forward(self, pixels: Tensor, grid: Grid, taps: Sequence[int]) -> list[Tensor]:
        (maps,) = self.net.forward_intermediates(pixels, indices=1, norm=True, intermediates_only=True)
        return [rearrange(maps, "b d h w -> b (h w) d")]


def _tower(name: str) -> _Tower:
    """open_clip's tower of that name, without weights and without the text half of the model."""
    open_clip = _open_clip()
    known = open_clip.list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
        hint = f"near to it: {', '.join(near)}" if near else f"it knows {len(known)}, such as {', '.join(known[:3])}"
        raise ValueError(f"open_clip knows no model {name!r}; {hint}")
    config = open_clip.get_model_config(name)
    sizes = config["vision_cfg"] | {"patch_dropout": 0.0, "timm_model_pretrained": False}
    visual = open_clip.model._build_vision_tower(config["embed_dim"], sizes, config.get("quick_gelu", False))
    kinds = {"VisionTransformer": _Transformer, "ModifiedResNet": _ResNet, "TimmModel": _Timm}
    if type(visual).__name__ not in kinds:
        raise ValueError(f"open_clip's {name} is a {type(visual).__name__}, which gives no feature map")
    return kinds[type(visual).__name__](visual)


def _open_clip() -> Any:
    if importlib.util.find_spec("open_clip") is None:
        raise ValueError("towers of open_clip need the package open_clip_torch: pip install omni[clip]")
    import open_clip

    return open_clip
