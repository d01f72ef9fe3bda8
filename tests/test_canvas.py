"""Sizes of generators and the way to them: equal to what diffusers' pipeline does to the same pictures and clips."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from towers import noise

from omni.config import LatentConfig
from omni.decoders.heads import LatentHead
from omni.tokenizers import canvas as made
from omni.tokenizers.canvas import MAX_FRAMES, SIZES, canvas, cover, crop_latents, hold, stretch, views

ODD = [(37, 53), (256, 256), (540, 640), (300, 21), (7, 400), (1, 1), (720, 1280)]  # sources, height x width


@pytest.fixture(scope="module")
def pipe():
    """What diffusers' methods read of their pipeline."""
    from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import Cosmos3OmniPipeline
    from diffusers.video_processor import VideoProcessor

    holder = SimpleNamespace(
        video_processor=VideoProcessor(vae_scale_factor=16, resample="bilinear"), vae_scale_factor_spatial=16
    )
    holder.condition = lambda clip, tier, frames: Cosmos3OmniPipeline._prepare_action_video_conditioning(
        holder, clip, tier, frames, "cpu", torch.float32
    )
    holder.crop = lambda latents, size: Cosmos3OmniPipeline._remove_action_video_padding_from_latent(
        holder, latents, torch.tensor(size)
    )
    return holder


def clip_of(height: int, width: int, frames: int = 2) -> torch.Tensor:
    """(T, 3, H, W) uint8"""
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (frames, 3, height, width), dtype=torch.uint8, generator=generator)


def pictures(clip: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(np.ascontiguousarray(frame.permute(1, 2, 0).numpy())) for frame in clip]


def levels(pixels: torch.Tensor) -> torch.Tensor:
    """[0, 1] -> whole numbers; fails where they are none."""
    found = (pixels.double() * 255).round()
    torch.testing.assert_close(pixels.double() * 255, found, rtol=0, atol=1e-4)
    return found


# -- sizes -------------------------------------------------------------------------------------------------------------


def test_the_tiers_are_those_of_diffusers():
    from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import _ACTION_RESOLUTION_BINS

    for tier, bins in _ACTION_RESOLUTION_BINS.items():
        assert list(SIZES[int(tier)].values()) == list(bins.values())
    assert set(SIZES) == set(MAX_FRAMES) == {256, 480, 704, 720, 768}
    for sizes in SIZES.values():
        assert tuple(sizes) == made.ASPECTS
        for aspect, (height, width) in sizes.items():
            assert made.aspect_of(height, width) == aspect
            assert height % 16 == width % 16 == 0


@pytest.mark.parametrize("tier", [256, 480, 704, 720])
def test_the_nearest_size_is_that_of_diffusers(tier):
    from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import _ACTION_RESOLUTION_BINS
    from diffusers.video_processor import VideoProcessor

    sides = [1, 2, 3, 7, 16, 100, 360, 540, 640, 719, 1080, 4000]
    for height in sides:
        for width in sides:
            theirs = VideoProcessor.classify_height_width_bin(height, width, _ACTION_RESOLUTION_BINS[str(tier)])
            assert made.nearest_size(tier, height, width) == theirs


def test_sizes_by_name():
    assert made.size_of(768, "16,9") == made.size_of(768, "16:9") == (768, 1360)
    assert made.size_of(480, "3,4") == (736, 544)
    assert made.nearest_size(768, 1080, 1920) == (768, 1360)


def test_frames_are_one_and_a_multiple_of_four_within_the_tier():
    for tier, most in MAX_FRAMES.items():
        for frames in (1, 5, 189, most - 3):
            made.check_frames(frames, tier)
        for frames in (-3, 0, 2, 4, 188, most + 1):
            with pytest.raises(ValueError, match=f"frames is {frames}; at tier {tier} .* at most {most}"):
                made.check_frames(frames, tier)


# -- cover -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ODD)
@pytest.mark.parametrize("size", [(192, 320), (256, 256), (320, 192)])
def test_cover_is_what_diffusers_does_to_a_picture(source, size):
    from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import _preprocess_conditioning_image

    clip = clip_of(*source)
    theirs = torch.cat([_preprocess_conditioning_image(picture, *size) for picture in pictures(clip)])
    found = cover(clip, *size)
    assert found.shape == (2, 3, *size)
    assert found.dtype == torch.float32
    assert torch.equal(levels(found), levels((theirs + 1) / 2))
    assert torch.equal(cover(clip[1], *size), found[1])
    floats = clip[0].float() / 255
    theirs = _preprocess_conditioning_image(floats.clone(), *size)[0]
    assert torch.equal(levels(cover(floats, *size)), levels((theirs + 1) / 2))


def test_cover_keeps_what_fits_already():
    clip = clip_of(192, 320)
    assert torch.equal(cover(clip, 192, 320), clip.float() / 255)


def test_cover_crops_the_centre():
    strip = torch.zeros(3, 64, 192)
    strip[..., 64:128] = 1
    assert torch.equal(cover(strip, 64, 64), torch.ones(3, 64, 64))


# -- stretch and hold --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ODD)
@pytest.mark.parametrize("size", [(192, 320), (256, 256), (32, 1024)])
def test_stretch_is_what_diffusers_does_to_a_clip(pipe, source, size):
    clip = clip_of(*source)
    theirs = pipe.video_processor.preprocess_video(pictures(clip), *size)
    found = stretch(clip, *size)
    assert torch.equal(found.transpose(0, 1)[None] * 2 - 1, theirs)
    assert torch.equal(stretch(clip.float() / 255, *size), found)
    assert torch.equal(stretch(clip[0], *size), found[0])


def test_hold_cuts_or_repeats_the_last_frame():
    frames = torch.arange(6).view(3, 2)
    assert torch.equal(hold(frames, 2), frames[:2])
    assert torch.equal(hold(frames, 3), frames)
    assert hold(frames, 5).tolist() == [[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]]


# -- canvas ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", [256, 480])
@pytest.mark.parametrize(
    "source", [(192, 320), (544, 640), (720, 1280), (336, 208), (16, 640), (640, 16), (16, 16), (544, 736), (1024, 64)]
)
def test_the_canvas_is_that_of_diffusers(pipe, tier, source):
    clip = clip_of(*source)
    theirs, size, height, width = pipe.condition(pictures(clip), tier, 4)
    found = canvas(hold(clip, 4), tier)
    assert (found.height, found.width) == (height, width) == tuple(found.frames.shape[-2:])
    assert [found.height, found.width, *found.content] == size.tolist()
    torch.testing.assert_close(found.frames.transpose(0, 1)[None] * 2 - 1, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("source", [(37, 53), (540, 640), (300, 21), (17, 400), (719, 1281)])
def test_with_multiple_16_any_clip_is_on_the_canvas_of_diffusers(pipe, source):
    clip = clip_of(*source)
    theirs, size, _, _ = pipe.condition(pictures(clip), 256, 2)
    found = canvas(clip, 256, multiple=16)
    assert [found.height, found.width, *found.content] == size.tolist()
    torch.testing.assert_close(found.frames.transpose(0, 1)[None] * 2 - 1, theirs, rtol=0, atol=1e-5)


def test_pitfall_i_a_clip_is_only_made_smaller():
    small = canvas(clip_of(90, 160), 480)
    assert (small.height, small.width, *small.content) == (480, 832, 90, 160)
    assert torch.equal(small.frames[..., :90, :160], clip_of(90, 160).float() / 255)
    large = canvas(clip_of(960, 1664), 480)
    assert (large.height, large.width, *large.content) == (480, 832, 480, 832)


def test_padding_mirrors_the_content_and_repeats_the_border_where_there_is_too_little():
    clip = clip_of(180, 320).float() / 255
    mirrored = canvas(clip, 256).frames
    assert torch.equal(mirrored[..., 180:, :], clip[..., 167:179, :].flip(-2))
    small = clip_of(96, 160).float() / 255  # as much padding as content below
    repeated = canvas(small, 256).frames
    assert torch.equal(repeated[..., 96:, :160], small[..., 95:, :].expand(-1, -1, 96, -1))
    assert torch.equal(repeated[..., :96, 160:], small[..., 159:].expand(-1, -1, -1, 160))


def test_a_canvas_takes_floats_and_bytes_alike():
    clip = clip_of(100, 150)
    torch.testing.assert_close(canvas(clip.float() / 255, 256).frames, canvas(clip, 256).frames, rtol=0, atol=1e-6)


# -- latents -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [(540, 640), (192, 320), (15, 17), (16, 31), (544, 736)])
def test_latents_are_cropped_as_by_diffusers(pipe, content):
    latents = noise(1, 6, 2, 34, 46)
    found = crop_latents(latents, content)
    assert torch.equal(found, pipe.crop(latents, (544, 736, *content)))
    assert found.shape[-2:] == (max(content[0] // 16, 1), max(content[1] // 16, 1))


def test_pitfall_h_a_crop_to_odd_sides_is_padded_for_patches():
    """The published robot: 540 x 640 pixels are 33 x 40 latents and 17 x 20 patches, over 9 latent frames."""
    found = canvas(clip_of(540, 640, frames=1), 480)
    assert (found.height, found.width, *found.content) == (544, 736, 540, 640)
    latents = crop_latents(noise(1, 6, 9, found.height // 16, found.width // 16).float(), found.content)
    assert latents.shape == (1, 6, 9, 33, 40)
    head = LatentHead(8, LatentConfig(channels=6, patch_size=2))
    tokens = head.read(latents)
    assert tokens.shape == (1, 9 * 17 * 20, 8)
    padded = head.read(F.pad(latents, (0, 0, 0, 1)))
    assert torch.equal(tokens, padded)


# -- views -------------------------------------------------------------------------------------------------------------


def test_views_lie_below_the_wrist_at_half_size():
    wrist, left, right = (clip_of(360, 640 + 2 * i, frames=3)[..., :640] for i in range(3))
    frame = views(wrist, left, right)
    assert frame.shape == (3, 3, 540, 640)
    assert torch.equal(frame[..., :360, :], wrist.float() / 255)
    for pixels, half in ((left, frame[..., 360:, :320]), (right, frame[..., 360:, 320:])):
        theirs = F.interpolate(pixels.float(), size=(180, 320), mode="bilinear", align_corners=False).byte()
        assert torch.equal(levels(half), theirs.double())
    assert torch.equal(views(wrist[0], left[0], right[0]), frame[0])
    assert torch.equal(views(*(pixels.float() / 255 for pixels in (wrist, left, right))), frame)
    assert canvas(frame, 480).content == (540, 640)


# -- bad input ---------------------------------------------------------------------------------------------------------

GREY = torch.zeros(2, 3, 32, 32)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: made.size_of(512, "1,1"), "tier is 512; it must be one of 256, 480, 704, 720, 768"),
        (lambda: made.size_of(480, "2,1"), "aspect is '2,1'"),
        (lambda: made.nearest_size(480, 0, 5), "0 x 5 pixels"),
        (lambda: made.check_frames(5, 100), "tier is 100"),
        (lambda: cover(torch.zeros(1, 32, 32), 16, 16), r"not \(1, 32, 32\)"),
        (lambda: cover(torch.zeros(3, 0, 32), 16, 16), r"not \(3, 0, 32\)"),
        (lambda: cover(torch.full((3, 4, 4), float("nan")), 16, 16), "must lie in"),
        (lambda: cover(torch.full((3, 4, 4), -1.0), 16, 16), "lie between -1 and -1"),
        (lambda: cover(torch.zeros(3, 4, 4, dtype=torch.int64), 16, 16), "torch.int64"),
        (lambda: cover(torch.zeros(3, 1, 10_000), 720, 1280), "too thin .* 720 x 7200000 pixels"),
        (lambda: cover(GREY, 100_000, 100_000), "100000 x 100000 pixels"),
        (lambda: stretch(GREY, 16, 0), "16 x 0 pixels"),
        (lambda: hold(GREY[:0], 3), r"not \(0, 3, 32, 32\)"),
        (lambda: hold(GREY, 0), "n is 0"),
        (lambda: canvas(GREY[0], 256), r"not \(3, 32, 32\)"),
        (lambda: canvas(GREY, 512), "tier is 512"),
        (lambda: canvas(GREY, 256, multiple=33), "multiple is 33"),
        (lambda: crop_latents(noise(1, 6, 4, 4), (80, 16)), "5 x 1 latents of 16"),
        (lambda: crop_latents(noise(1, 6, 4, 4), (16, 0)), "16 x 0 pixels"),
        (lambda: crop_latents(noise(1, 6, 4, 4), (16, 16), 0), "factor is 0"),
        (lambda: views(None, GREY, GREY), "wrist camera is missing"),
        (lambda: views(GREY, GREY, None), "right camera is missing"),
        (lambda: views(GREY, GREY[..., :30], GREY), "the views differ: left"),
        (lambda: views(*[GREY[..., :31, :]] * 3), "even sides, not 31 x 32"),
    ],
)
def test_bad_input_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()
