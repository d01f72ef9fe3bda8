"""Sizes, token counts and pixels against the published tables and the reference processors."""

import numpy as np
import pytest
import torch
from einops import rearrange

from omni.tokenizers.sizing import (
    capped_pixels,
    dynamic_size,
    grid_tokens,
    patch_budget,
    resize,
    smart_frame_size,
    smart_size,
    tiled,
    tiled_tokens,
    tiles,
    video_frame_size,
)

pytest.importorskip("torchvision")
from transformers.models.cosmos3_edge.image_processing_cosmos3_edge import Cosmos3EdgeImageProcessor
from transformers.models.cosmos3_edge.video_processing_cosmos3_edge import Cosmos3EdgeVideoProcessor
from transformers.models.nemotron_h_omni.image_processing_nemotron_h_omni import (
    NemotronH_Omni_Reasoning_V3ImageProcessor,
    get_patch_grid_size,
)
from transformers.models.nemotron_h_omni.video_processing_nemotron_h_omni import (
    NemotronH_Omni_Reasoning_V3VideoProcessor,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as picture_rule
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

CLIP = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
HALF = torch.full((3,), 0.5), torch.full((3,), 0.5)


def sizes(seed: int, count: int, most: int = 4000) -> list[tuple[int, int]]:
    """Random sides, half of them around multiples of 16 where rounding is decided."""
    rng = np.random.default_rng(seed)
    free = rng.integers(1, most, (count, 2))
    near = rng.integers(1, most // 16, (count, 2)) * 16 + rng.integers(-1, 2, (count, 2))
    return [tuple(map(int, pair)) for pair in np.concatenate([free, near])]


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def normalised(pixels: torch.Tensor, stats: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    mean, std = (s[:, None, None] for s in stats)
    return (pixels - mean) / std


# -- tiles -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "columns", "rows", "tokens"),
    [
        (224, 224, 1, 1, 256),
        (512, 512, 1, 1, 256),
        (1280, 720, 2, 1, 768),
        (1024, 1024, 2, 2, 1280),
        (2480, 3508, 2, 3, 1792),
        (1920, 1080, 4, 2, 2304),
        (3840, 2160, 4, 2, 2304),
        (4096, 512, 8, 1, 2304),
        (640, 480, 4, 3, 3328),
        (1700, 2200, 3, 4, 3328),
    ],
)
def test_tiles_are_those_of_the_published_table(width, height, columns, rows, tokens):
    assert tiles(height, width) == (rows, columns)
    assert tiled_tokens(height, width) == tokens


def test_tiles_run_row_by_row_and_the_whole_picture_comes_last():
    numbers = (torch.arange(6.0) / 10).view(2, 3)
    pixels = numbers.repeat_interleave(32, 0).repeat_interleave(32, 1).expand(3, -1, -1)
    cut = tiled(pixels, tile=32, most=6)
    assert len(cut) == 7
    assert all(tile.shape == (3, 32, 32) for tile in cut)
    for tile, number in zip(cut, numbers.flatten(), strict=False):
        assert (tile == number).all()
    assert torch.equal(cut[-1], resize(pixels, (32, 32)))
    assert len(tiled(pixels, tile=32, most=6, thumbnail=False)) == 6
    assert len(tiled(pixels[:, :32, :32], tile=32, most=1)) == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_a_larger_grid_of_the_same_aspect_needs_more_than_half_its_pixels(seed):
    for side in np.random.default_rng(seed).integers(1, 3000, 50):
        expected = 3 if side**2 > 512**2 * 9 / 2 else 2 if side**2 > 512**2 * 2 else 1
        assert tiles(int(side), int(side)) == (expected, expected)


# -- within a budget of patches ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "resized", "tokens"),
    [
        (224, 224, (512, 512), 256),
        (512, 512, (512, 512), 256),
        (64, 32, (736, 384), 276),
        (48, 32, (736, 384), 276),
        (640, 480, (640, 480), 300),
        (500, 1000, (512, 1024), 512),
        (1000, 500, (1024, 512), 512),
        (1280, 720, (1280, 736), 920),
        (4096, 512, (4096, 512), 2048),
        (1024, 1024, (1024, 1024), 1024),
        (1536, 1536, (1536, 1536), 2304),
        (1920, 1080, (1920, 1088), 2040),
        (1700, 2200, (1632, 2080), 3315),
        (2480, 3508, (1536, 2176), 3264),
        (3840, 2160, (2464, 1376), 3311),
    ],
)
def test_dynamic_sizes_are_those_of_the_published_table(width, height, resized, tokens):
    size = dynamic_size(height, width)
    assert size == resized[::-1]
    assert grid_tokens(size) == tokens


@pytest.mark.parametrize("budget", [1024, 1500, 4000, 13312])
def test_dynamic_sizes_equal_the_reference(budget):
    for height, width in sizes(budget, 500):
        if max(height, width) > 400 * min(height, width):
            continue
        expected = get_patch_grid_size(height, width, 16, 2, 1024, budget)
        assert dynamic_size(height, width, most=budget) == (expected[0] * 16, expected[1] * 16), (height, width)


def test_the_budget_is_the_context_within_its_limits():
    assert patch_budget() == 13312
    assert patch_budget(2052) == 8192
    assert patch_budget(100) == 1024
    assert patch_budget(100, images=5) == 5120
    assert patch_budget(1 << 20, most=0) == (2**20 - 4) * 4


@pytest.mark.parametrize(("height", "width"), [(100, 37), (480, 640), (513, 511), (45, 900), (512, 512)])
def test_dynamic_pixels_equal_the_reference(height, width):
    picture = noise(height, 3, height, width)
    processor = NemotronH_Omni_Reasoning_V3ImageProcessor(max_model_len=600)
    out = processor(picture, return_tensors="pt")
    size = dynamic_size(height, width, most=patch_budget(600))
    assert out["image_grid_hw"].tolist() == [[size[0] // 16, size[1] // 16]]
    pixels = normalised(resize(picture / 255, size), CLIP)
    patches = rearrange(pixels, "c (h y) (w x) -> (h w) (c y x)", y=16, x=16)
    assert (patches - out["pixel_values"]).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("width", "height", "resized", "tokens"),
    [
        (1920, 1080, (672, 384), 252),
        (1280, 720, (672, 384), 252),
        (1080, 1920, (384, 672), 252),
        (640, 480, (576, 448), 252),
        (512, 512, (512, 512), 256),
        (2560, 1080, (768, 320), 240),
    ],
)
def test_frame_sizes_are_those_of_the_published_table(width, height, resized, tokens):
    size = video_frame_size(height, width)
    assert size == resized[::-1]
    assert grid_tokens(size) == tokens


@pytest.mark.parametrize("keep_aspect", [True, False])
def test_frame_sizes_and_pixels_equal_the_reference(keep_aspect):
    options = {"video_maintain_aspect_ratio": keep_aspect, "norm_mean": CLIP[0].tolist(), "norm_std": CLIP[1].tolist()}
    processor = NemotronH_Omni_Reasoning_V3VideoProcessor(**options)
    for height, width in sizes(5, 500):
        columns, rows = processor._compute_target_patches(height, width)
        assert video_frame_size(height, width, keep_aspect=keep_aspect) == (rows * 16, columns * 16), (height, width)
    for height, width in [(90, 161), (301, 77)]:
        frames = noise(height, 3, 3, height, width)
        out = processor(frames, return_tensors="pt", do_sample_frames=False)["pixel_values_videos"]
        mine = normalised(resize(frames / 255, video_frame_size(height, width, keep_aspect=keep_aspect)), CLIP)
        assert mine.shape == out.shape
        assert (mine - out).abs().max() < 1e-4


# -- nearest multiples -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("least", "most"), [(65536, 16777216), (3136, 1003520), (65536, 262144)])
def test_smart_sizes_equal_the_reference(least, most):
    for height, width in sizes(least, 400):
        if max(height, width) > 200 * min(height, width):
            with pytest.raises(ValueError, match="too thin"):
                smart_size(height, width, 32, least, most)
            continue
        expected = picture_rule(height, width, 32, least, most)
        assert smart_size(height, width, 32, least, most) == tuple(max(side, 32) for side in expected)


@pytest.mark.parametrize("cap", [False, True])
def test_frame_sizes_of_a_video_equal_the_reference(cap):
    processor = Qwen3VLVideoProcessor(cap_pixels_per_frame=cap)
    rng = np.random.default_rng(3)
    for height, width in sizes(3, 300):
        frames = int(rng.integers(2, 60))
        most = capped_pixels(frames) if cap else 768 * 32 * 32
        try:
            patches = processor.get_num_of_video_patches(frames, height, width)
        except ValueError:
            with pytest.raises(ValueError, match="too thin"):
                smart_frame_size(frames, height, width, max_pixels=most)
            continue
        size = smart_frame_size(frames, height, width, max_pixels=most)
        assert -(-frames // 2) * size[0] * size[1] // 256 == patches, (frames, height, width)


def test_sizes_of_cosmos_edge_equal_the_reference():
    pictures, videos = Cosmos3EdgeImageProcessor(), Cosmos3EdgeVideoProcessor()
    for height, width in sizes(4, 300):
        if max(height, width) > 200 * min(height, width):
            continue
        size = smart_frame_size(1, height, width, 32, 256**2, 4096**2, temporal=1)
        assert size[0] * size[1] // 256 == pictures.get_number_of_image_patches(height, width)
        size = smart_frame_size(9, height, width, 32, 64**2, 24 << 20, temporal=1)
        assert 9 * size[0] * size[1] // 256 == videos.get_num_of_video_patches(9, height, width)


@pytest.mark.parametrize(("height", "width"), [(100, 37), (130, 301), (20, 700), (64, 96)])
def test_smart_pixels_of_pictures_equal_the_reference(height, width):
    picture = noise(height, 3, height, width)
    limits = {"shortest_edge": 64 * 64, "longest_edge": 128 * 128}
    qwen = Qwen2VLImageProcessor(
        size=limits, patch_size=16, image_mean=HALF[0].tolist(), image_std=HALF[1].tolist(), temporal_patch_size=2
    )(picture, return_tensors="pt")
    pixels = normalised(resize(picture / 255, smart_size(height, width, 32, 64 * 64, 128 * 128), round=True), HALF)
    blocks = "c (h a y) (w b x) -> (h w a b)"
    patches = rearrange(pixels, f"{blocks} c y x", y=16, x=16, a=2, b=2)
    patches = patches[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1)
    assert patches.shape == qwen["pixel_values"].shape
    assert (patches - qwen["pixel_values"]).abs().max() < 1e-4

    edge = Cosmos3EdgeImageProcessor(size=limits)(picture, return_tensors="pt")
    size = smart_frame_size(1, height, width, 32, 64 * 64, 128 * 128, temporal=1)
    pixels = normalised(resize(picture / 255, size, round=True), HALF)
    patches = rearrange(pixels, f"{blocks} (y x c)", y=16, x=16, a=2, b=2)
    assert edge["image_grid_thw"].tolist() == [[1, size[0] // 16, size[1] // 16]]
    assert (patches - edge["pixel_values"]).abs().max() < 1e-4


@pytest.mark.parametrize(("height", "width"), [(100, 37), (48, 301)])
def test_smart_pixels_of_videos_equal_the_reference(height, width):
    frames = noise(height, 3, 3, height, width)
    limits = {"shortest_edge": 64 * 64, "longest_edge": 4 * 128 * 128}
    options = {"size": limits, "do_sample_frames": False, "return_tensors": "pt"}
    qwen = Qwen3VLVideoProcessor(cap_pixels_per_frame=False)(frames, **options)
    size = smart_frame_size(3, height, width, 32, 64 * 64, 4 * 128 * 128)
    pixels = normalised(resize(frames / 255, size, round=True), HALF)
    doubled = torch.cat([pixels, pixels[-1:]])
    patches = rearrange(doubled, "(t z) c (h a y) (w b x) -> (t h w a b) (c z y x)", z=2, y=16, x=16, a=2, b=2)
    assert qwen["video_grid_thw"].tolist() == [[2, size[0] // 16, size[1] // 16]]
    assert (patches - qwen["pixel_values_videos"]).abs().max() < 1e-4

    edge = Cosmos3EdgeVideoProcessor()(frames, **options)
    size = smart_frame_size(3, height, width, 32, 64 * 64, 4 * 128 * 128, temporal=1)
    pixels = normalised(resize(frames / 255, size, round=True), HALF)
    patches = rearrange(pixels, "t c (h a y) (w b x) -> (t h w a b) (y x c)", y=16, x=16, a=2, b=2)
    assert (patches - edge["pixel_values_videos"]).abs().max() < 1e-4


# -- resize and errors -------------------------------------------------------------------------------------


def test_overshoot_is_kept_unless_rounded():
    step = torch.zeros(2, 3, 16, 16)
    step[..., 8:] = 1
    plain, rounded = resize(step, (64, 64)), resize(step, (64, 64), round=True)
    assert plain.min() < -0.01
    assert plain.max() > 1.01
    assert rounded.min() == 0
    assert rounded.max() == 1
    assert torch.allclose(rounded * 255, (rounded * 255).round(), atol=1e-4)
    assert resize(step, (16, 16)) is step
    stripes = torch.zeros(3, 64, 64)
    stripes[..., ::2] = 1
    assert (resize(stripes, (16, 16))[..., 2:-2] - 0.5).abs().max() < 0.05
    assert (resize(stripes, (24, 24), antialias=False) - 0.5).abs().max() > 0.3  # the control: it aliases


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tiles(0, 5), "0 x 5 pixels"),
        (lambda: tiles(5, 5, most=0), "most is 0"),
        (lambda: dynamic_size(5, -1), "5 x -1 pixels"),
        (lambda: dynamic_size(1, 1_000_000), "too thin: within 13312 patches"),
        (lambda: dynamic_size(5, 5, patch=0), "patch is 0"),
        (lambda: video_frame_size(5, 0), "5 x 0 pixels"),
        (lambda: smart_size(1, 201), "too thin; its sides may be 200 to 1"),
        (lambda: smart_frame_size(1, 50, 50), "1 frames are fewer than the 2"),
        (lambda: smart_frame_size(2, 50, 50, factor=0), "factor is 0"),
        (lambda: resize(torch.zeros(3, 4, 4), (0, 4)), "0 x 4 pixels"),
        (lambda: resize(torch.zeros(3, 4, 4, dtype=torch.uint8), (2, 2)), "uint8"),
    ],
)
def test_impossible_sizes_are_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
