"""Nano V2 VL against its parts: transformers' RADIO and Nemotron-H, the projector and the rules written out here.

No released package has a class for the whole; the published checkpoint's own files were not at hand.
"""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import NemotronHConfig, NemotronHForCausalLM
from transformers.models.radio.configuration_radio import RadioConfig
from transformers.models.radio.modeling_radio import RadioModel

import omni
import tokenizers as hf
from omni import families
from omni.checkpoint import CheckpointError, export
from omni.config import ConfigError, replace
from omni.families import nano_shared, nano_vl
from omni.model import Omni
from omni.tokenizers.frames import plan_frames
from omni.tokenizers.video import open_video

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TEMPLATE = (Path(__file__).parent / "templates" / "v2.jinja").read_text()
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
TILE, MOST = 16, 6
BASE = 330  # words of the tokenizer in front of the three added ones, as in the published vocabulary
IMAGE, START, END = BASE, BASE + 1, BASE + 2

TEXT = {
    "vocab_size": 340, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12,
    "intermediate_size": 40, "ssm_state_size": 16, "mamba_num_heads": 8, "mamba_head_dim": 6, "n_groups": 2,
    "chunk_size": 16, "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp", "linear_attention"],
    "max_position_embeddings": 4096,
}  # fmt: skip
VISION = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 4, "max_img_size": 32,
    "num_cls_tokens": 2, "num_registers": 3,
}  # fmt: skip


def backend() -> hf.Tokenizer:
    made = hf.Tokenizer(hf.models.BPE())
    made.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = hf.decoders.ByteLevel()
    names = {0: "<unk>", 1: "<s>", 2: "</s>"}
    trainer = hf.trainers.BpeTrainer(
        vocab_size=BASE,
        special_tokens=[names.get(i, f"<SPECIAL_{i}>") for i in range(20)],
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(
        ["Frame 1 sampled at 0.00 seconds: User System Assistant what is in the picture? " * 3], trainer
    )
    made.add_special_tokens([f"<SPECIAL_{i}>" for i in range(100, 100 + BASE - made.get_vocab_size())])
    made.add_special_tokens(["<image>", "<img>", "</img>"])
    assert made.token_to_id("<image>") == IMAGE
    return made


def draw(module: nn.Module) -> nn.Module:
    """Parameters away from their trivial values; layer scales, which no checkpoint has, stay at one."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn_like(p)
            if name.endswith(("A_log", "dt_bias")):
                p.copy_(noise - (3 if "dt" in name else 0))
            elif p.dim() == 1 and name.endswith(("weight", ".D")):
                p.copy_(1 + 0.3 * noise)
            elif "lambda1" not in name:
                p.copy_(noise * (0.3 if p.dim() == 1 else p[0].numel() ** -0.5))
    return module.eval()


class Norm(nn.Module):
    """RMSNorm of the projector: variance and weight in float32."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)


class Square(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x) ** 2


class Parts:
    """A whole out of published parts, and ours loaded from the folder that they were saved to."""

    def __init__(self, folder: Path, seed: int) -> None:
        torch.manual_seed(seed)
        self.folder = folder
        self.radio = draw(RadioModel(RadioConfig(**VISION)))
        self.radio.make_preprocessor_external()
        self.mlp1 = draw(
            nn.Sequential(Norm(96), nn.Linear(96, 40, bias=False), Square(), nn.Linear(40, 32, bias=False))
        )
        self.llm = draw(NemotronHForCausalLM(NemotronHConfig(**TEXT)))
        for layer in self.llm.model.layers:
            if layer.block_type == "linear_attention":
                layer.mixer.time_step_limit = (0.0, float("inf"))  # as published: no clamp
        self.tokenizer = backend()
        self._save()
        self.ours = omni.load(str(folder), device="cpu")

    def _save(self) -> None:
        tensors = {f"mlp1.{k}": v for k, v in self.mlp1.state_dict().items()}
        for part, prefix in ((self.radio, "vision_model."), (self.llm, "language_model.")):
            part.save_pretrained(self.folder / prefix)
            tensors |= {prefix + k: v for k, v in load_file(self.folder / prefix / "model.safetensors").items()}
        tensors["vision_model.radio_model.input_conditioner.norm_mean"] = torch.zeros(3, 1, 1)
        save_file(tensors, self.folder / "model.safetensors")
        (self.folder / "config.json").write_text(json.dumps(self.plain()))
        (self.folder / "preprocessor_config.json").write_text(
            json.dumps({"norm_mean": MEAN, "norm_std": STD, "max_num_tiles": MOST, "use_thumbnail": True})
        )
        self.tokenizer.save(str(self.folder / "tokenizer.json"))
        (self.folder / "tokenizer_config.json").write_text(
            json.dumps({"bos_token": "<s>", "eos_token": "<SPECIAL_12>"})
        )
        (self.folder / "chat_template.jinja").write_text(TEMPLATE)

    def plain(self) -> dict:
        """config.json as it is published, as far as is known."""
        return {
            "architectures": ["NemotronH_Nano_VL_V2"], "model_type": "NemotronH_Nano_VL_V2",
            "auto_map": {"AutoConfig": "configuration.NemotronH_Nano_VL_V2_Config"},
            "llm_config": self.llm.config.to_dict(),
            "vision_config": {**VISION, "version": "radio_v2.5-h", "args": {"amp": True}},
            "force_image_size": TILE, "patch_size": 4, "downsample_ratio": 0.5, "ps_version": "v2",
            "vit_hidden_size": 24, "projector_hidden_size": 40, "use_thumbnail": True, "template": "nemotron5h",
            "img_context_token": "<image>", "img_context_token_id": IMAGE, "max_sequence_length": 2048,
            "norm_mean": [0.1, 0.2, 0.3], "norm_std": [0.5, 0.5, 0.5], "torch_dtype": "float32",
        }  # fmt: skip

    @torch.no_grad()
    def see(self, tiles: torch.Tensor) -> torch.Tensor:
        """Tiles (t, 3, H, W) in 0..1 -> tokens (t, n, d)."""
        mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
        features = self.radio((tiles - mean) / std).features
        h, w = (side // 4 for side in tiles.shape[-2:])
        grid = features.reshape(len(tiles), h // 2, 2, w // 2, 2, 24).permute(0, 1, 3, 2, 4, 5)
        return self.mlp1(grid.reshape(len(tiles), h * w // 4, 96))

    @torch.no_grad()
    def logits(self, ids: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        embedded = self.llm.get_input_embeddings()(ids)
        embedded[ids == IMAGE] = tokens.reshape(-1, tokens.shape[-1])
        return self.llm(inputs_embeds=embedded, attention_mask=mask, use_cache=False).logits

    def ids(self, content: str) -> list[int]:
        """Of the whole turn, written out."""
        text = f"<SPECIAL_10>System\n\n\n<SPECIAL_11>User\n{content}\n<SPECIAL_11>Assistant\n<think>\n"
        return self.tokenizer.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module", params=[0, 1, 2])
def parts(request, tmp_path_factory):
    return Parts(tmp_path_factory.mktemp("vl"), request.param)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return Parts(tmp_path_factory.mktemp("vl"), 7)


def pixels_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def resized(array: np.ndarray, height: int, width: int) -> torch.Tensor:
    pixels = torch.from_numpy(array).permute(2, 0, 1)[None].float()
    if pixels.shape[-2:] != (height, width):
        pixels = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True, align_corners=False)
    return pixels / 255


def tiles_of(array: np.ndarray) -> torch.Tensor:
    """The tiling rule, from its description."""
    height, width = array.shape[:2]
    grids = sorted(
        {(i, j) for i, j in product(range(1, MOST + 1), repeat=2) if i * j <= MOST}, key=lambda g: g[0] * g[1]
    )
    best, gap = (1, 1), float("inf")
    for i, j in grids:  # i columns, j rows
        distance = abs(width / height - i / j)
        if distance < gap or (distance == gap and width * height > 0.5 * TILE**2 * i * j):
            best, gap = (i, j), distance
    i, j = best
    large = resized(array, TILE * j, TILE * i)
    cut = rearrange(large[0], "c (j y) (i x) -> (j i) c y x", i=i, j=j)
    return torch.cat([cut, resized(array, TILE, TILE)]) if i * j > 1 else cut


def question(*parts: dict | str) -> list[dict]:
    return [{"role": "user", "content": [p if isinstance(p, dict) else {"type": "text", "text": p} for p in parts]}]


def image_part(array: np.ndarray) -> dict:
    return {"type": "image", "image": Image.fromarray(array)}


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    assert theirs.std() > 1e-2  # there is something to compare
    return float((ours - theirs).abs().max() / theirs.abs().max())


def run(tiles: int) -> str:
    return "<img>" + "<image>" * (tiles * (TILE // 8) ** 2) + "</img>"


@pytest.mark.parametrize("size", [(16, 16), (24, 40), (40, 24), (7, 90), (33, 33), (5, 5), (48, 31)])
@torch.no_grad()
def test_tiled_image(parts, size):
    array = pixels_of(*size)
    ours = parts.ours.prepare(question(image_part(array), "What is it?"))
    tiles = tiles_of(array)
    assert error(torch.stack(ours.pixels), tiles) < 1e-5
    assert ours.input_ids.tolist() == [parts.ids(run(len(tiles)) + "What is it?")]
    expected = parts.logits(ours.input_ids, parts.see(tiles))
    assert error(parts.ours.logits(ours), expected) < 1e-4


@torch.no_grad()
def test_several_images_and_greedy_text(parts):
    arrays = [pixels_of(*size, seed=n) for n, size in enumerate([(24, 40), (16, 16), (50, 17)])]
    ours = parts.ours.prepare(
        question(image_part(arrays[0]), "\n", image_part(arrays[1]), "and", image_part(arrays[2]))
    )
    tiles = [tiles_of(a) for a in arrays]
    text = f"{run(len(tiles[0]))}\n{run(len(tiles[1]))}and{run(len(tiles[2]))}"
    assert ours.input_ids.tolist() == [parts.ids(text)]
    tokens = parts.see(torch.cat(tiles))
    assert error(parts.ours.logits(ours), parts.logits(ours.input_ids, tokens)) < 1e-4
    cache, step, ids = parts.ours.new_cache(1), ours, ours.input_ids
    for _ in range(6):
        step = parts.ours.logits(step, cache, last_only=True)[:, -1].argmax(-1, keepdim=True)
        assert int(step) == int(parts.logits(ids, tokens)[0, -1].argmax())
        ids = torch.cat([ids, step], dim=1)


@torch.no_grad()
def test_a_padded_batch(parts):
    arrays = [pixels_of(24, 40), pixels_of(16, 16, 1)]
    ours = parts.ours.prepare([
        question(image_part(arrays[0]), "What?"), question("Text"), question(image_part(arrays[1]), "?"),
    ])  # fmt: skip
    tiles = [tiles_of(a) for a in arrays]
    rows = [parts.ids(run(len(tiles[0])) + "What?"), parts.ids("Text"), parts.ids(run(1) + "?")]
    for row, ids, mask in zip(rows, ours.input_ids.tolist(), ours.mask.tolist(), strict=True):
        assert ids[-len(row) :] == row
        assert mask == [False] * (len(ids) - len(row)) + [True] * len(row)
    expected = parts.logits(ours.input_ids, parts.see(torch.cat(tiles)), ours.mask.long())
    assert error(parts.ours.logits(ours)[ours.mask], expected[ours.mask]) < 1e-4


def video(count: int, height: int, width: int, fps: float):
    rng = np.random.default_rng(count)
    still = rng.integers(0, 256, (height, width, 3))
    moved = rng.integers(-90, 90, (count, height, width, 3)) * (rng.random((count, 1, width, 1)) < 0.5)
    frames = (still + moved).clip(0, 255).astype(np.uint8)
    opened = open_video(frames, fps=fps)
    indices = plan_frames(opened.times, 2.0, 128)
    shown = torch.cat([resized(frames[i], TILE, TILE) for i in indices])
    return opened, indices, shown


@pytest.mark.parametrize(("count", "size", "fps"), [(7, (20, 50), 2.0), (31, (16, 16), 30.0), (1, (40, 9), 1.0)])
@torch.no_grad()
def test_video_frames(parts, count, size, fps):
    """Every frame squashed to one tile, with its time in whole milliseconds a frame."""
    opened, indices, shown = video(count, *size, fps)
    ours = parts.ours.prepare(question({"type": "video", "video": opened}, "What?"))
    times = [i * int(1000 / fps) / 1000 for i in indices]
    text = "\n".join(f"Frame {n + 1} sampled at {t:.2f} seconds: {run(1)}" for n, t in enumerate(times))
    assert error(ours.pixels[0], shown) < 1e-5
    assert ours.input_ids.tolist() == [parts.ids(text + "What?")]
    assert error(parts.ours.logits(ours), parts.logits(ours.input_ids, parts.see(shown))) < 1e-4


@pytest.mark.parametrize("rate", [0.5, 0.75])
@torch.no_grad()
def test_pruned_video(parts, rate):
    """EVS written out: the first frame whole, then the places that differ most from the frame before."""
    opened, indices, shown = video(6, 20, 50, 2.0)
    ours = parts.ours.prepare(question({"type": "video", "video": opened}, "What?"), pruning=rate)
    tokens = parts.see(shown)
    frames, n, _ = tokens.shape
    novelty = torch.full((frames, n), 255.0)
    novelty[1:] = 1 - F.cosine_similarity(tokens[1:], tokens[:-1], dim=-1)
    keep = sorted(range(frames * n), key=lambda i: (-float(novelty.flatten()[i]), i))[
        : max(n, int(frames * n * (1 - rate)))
    ]
    stays = torch.zeros(frames * n, dtype=torch.bool)
    stays[keep] = True
    counts = stays.view(frames, n).sum(1).tolist()
    text = "\n".join(
        f"Frame {k + 1} sampled at {i * 0.5:.2f} seconds: <img>{'<image>' * c}</img>"
        for k, (i, c) in enumerate(zip(indices, counts, strict=True))
    )
    assert ours.input_ids.tolist() == [parts.ids(text + "What?")]
    expected = parts.logits(ours.input_ids, tokens.flatten(0, 1)[stays])
    assert error(parts.ours.logits(ours), expected) < 1e-4


# -- the folder ------------------------------------------------------------------------------------------------------


def test_what_the_files_say(one):
    config = one.ours.config
    assert families.family_of(one.plain(), "x").name == "nano_vl"
    assert (config.vision.mean, config.vision.std) == (MEAN, STD)  # the processor's file, not config.json
    assert (config.media.tile, config.media.max_tiles, config.max_positions) == (TILE, MOST, 2048)
    assert config.special_tokens["image"] == IMAGE
    assert (config.vision.tubelet, config.vision.video_stem, config.sound) == (1, False, None)
    again = nano_vl.read_media(nano_vl.to_config(one.plain()), {})
    assert again.vision.mean == (0.1, 0.2, 0.3)


def test_written_and_read_again(one, tmp_path):
    families.save(one.ours, tmp_path, family="nano_vl")
    again = omni.load(str(tmp_path), device="cpu")
    assert again.config == one.ours.config
    for (name, a), b in zip(one.ours.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    published, written = (load_file(f / "model.safetensors") for f in (one.folder, tmp_path))
    unused = ("lambda1", "summary_idxs", "conditioner")
    kept = {k: v for k, v in published.items() if not any(word in k for word in unused)}
    assert kept.keys() == written.keys()
    assert all(torch.equal(kept[k], written[k]) for k in kept)


def test_sizes_from_the_training_arguments():
    """As published: no sizes but the architecture's name; teachers have summary tokens, registers fill up to ten."""
    plain = nano_vl.from_config(nano_vl.PRESETS["nano-12b-v2-vl"].config)
    teachers = [{"name": n} for n in ("clip", "siglip", "dino", "sam")]
    args = {
        "model": "vit_huge_patch16_224",
        "cpe_max_size": 2048,
        "cls_token_per_teacher": True,
        "register_multiple": 10,
    }
    plain["vision_config"] = {"args": {**args, "teachers": teachers}, "patch_size": 16, "version": "radio_v2.5-h"}
    assert nano_vl.to_config(plain).vision == nano_shared.RADIO_H
    plain["vision_config"]["hidden_size"] = 1024
    with pytest.raises(ConfigError, match="vit_huge_patch16_224"):
        nano_vl.to_config(plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_thumbnail": False}, "use_thumbnail is False"),
        ({"ps_version": "v1"}, "ps_version is 'v1'"),
        ({"patch_size": 14}, "patch_size is 14"),
        ({"norm_mean": [1, 2]}, "norm_mean"),
        ({"odd": 1}, "odd = 1"),
    ],
)
def test_configs_that_would_compute_something_else_are_refused(one, change, message):
    with pytest.raises(ConfigError, match=message):
        nano_vl.to_config({**one.plain(), **change})


def test_unknown_tensors_are_an_error(one, tmp_path):
    save_file(
        {**load_file(one.folder / "model.safetensors"), "mlp1.4.weight": torch.zeros(1)}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text(json.dumps(one.plain()))
    with pytest.raises(CheckpointError, match=r"mlp1\.4\.weight"):
        omni.load(str(tmp_path), device="cpu")


def test_what_the_layout_cannot_say_is_refused(one):
    config = one.ours.config
    for changed in (
        replace(config, vision=None),
        replace(config, vision=replace(config.vision, activation="gelu_tanh")),
        replace(config, vision=replace(config.vision, tubelet=2, video_stem=True)),
        replace(config, media=replace(config.media, image="smart")),
    ):
        with pytest.raises(ConfigError, match="nano_vl layout"):
            nano_vl.from_config(changed)


def test_the_published_size_is_that_of_its_parts():
    config = nano_vl.PRESETS["nano-12b-v2-vl"].config
    with torch.device("meta"):
        ours = Omni(config).state_dict()
        radio = RadioModel(RadioConfig()).state_dict()
        text = NemotronHForCausalLM(NemotronHConfig(**nano_vl.from_config(config)["llm_config"])).state_dict()
    tower = sum(t.numel() for n, t in radio.items() if not any(w in n for w in ("lambda1", "summary", "conditioner")))
    projector = 5120 + 5120 * 20_480 + 20_480 * 5120
    assert (
        sum(t.numel() for t in ours.values())
        == tower + projector + sum(t.numel() for t in text.values())
        == 13_172_677_632
    )
    items = export(ours, nano_shared.rules(config))
    assert len({item.name for item in items}) == len(items) == 369 + 32 * 12 + 3 + 3
