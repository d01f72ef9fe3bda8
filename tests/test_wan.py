"""The codec of videos: equal to diffusers' own encode and decode, whole and in tiles, whatever parts it is fed."""

import pytest
import torch
from towers import noise

from omni.tokenizers.wan import Tiling, WanCodec

SIZES = {
    "base_dim": 8,
    "decoder_base_dim": 8,
    "z_dim": 5,
    "dim_mult": [1, 2, 2, 2],
    "num_res_blocks": 1,
    "latents_mean": [0.1, -0.2, 0.3, 0.0, 0.5],
    "latents_std": [0.5, 1.5, 0.8, 1.0, 2.0],
}
KINDS = {
    "2.2": {"is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16},
    "2.1": {"scale_factor_spatial": 8},
}


@pytest.fixture(scope="module", params=KINDS)
def codec(request, tmp_path_factory):
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    vae = AutoencoderKLWan(**SIZES, **KINDS[request.param])
    with torch.no_grad():
        for name, tensor in vae.named_parameters():
            if name.endswith("gamma") or tensor.dim() == 1:
                tensor.add_(0.2 * torch.randn(tensor.shape))
    folder = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(folder)
    return WanCodec.from_folder(folder)


def pixels(codec, frames: int, rows: int = 2, columns: int = 3, b: int = 1) -> torch.Tensor:
    return noise(b, 3, frames, rows * codec.factor, columns * codec.factor).float().sigmoid()


@torch.no_grad()
def theirs_encode(codec, x):
    mean, std = (torch.tensor(SIZES[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    return (codec.vae.encode(x * 2 - 1).latent_dist.mode() - mean) / std


@torch.no_grad()
def theirs_decode(codec, z):
    mean, std = (torch.tensor(SIZES[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    return (codec.vae.decode(z * std + mean).sample + 1) / 2


@pytest.mark.parametrize("frames", [1, 5, 13])
def test_a_video_is_encoded_as_by_diffusers(codec, frames):
    x = pixels(codec, frames, b=2)
    found = codec.encode(x)
    assert found.shape == (2, 5, codec.latent_frames(frames), 2, 3)
    torch.testing.assert_close(found, theirs_encode(codec, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_a_video_is_decoded_as_by_diffusers(codec, frames):
    z = noise(2, 5, frames, 2, 3).float()
    found = codec.decode(z)
    assert found.shape == (2, 3, 4 * frames - 3, 2 * codec.factor, 3 * codec.factor)
    torch.testing.assert_close(found, theirs_decode(codec, z), rtol=1e-5, atol=1e-5)
    assert float(found.std()) > 0.01


@pytest.mark.parametrize("parts", [[13], [1] * 13, [3, 2, 7, 1], [5, 8]])
def test_parts_do_not_matter(codec, parts):
    x = pixels(codec, 13)
    latents = list(codec.encode_parts(x.split(parts, dim=2)))
    assert [part.shape[2] for part in latents] == [1] * 4
    torch.testing.assert_close(torch.cat(latents, dim=2), codec.encode(x), rtol=1e-5, atol=1e-5)


def test_latents_come_as_soon_as_they_can(codec):
    """Nothing waits for the end of the video: an endless one is encoded and decoded frame by frame."""
    fed = []

    def endless():
        for part in pixels(codec, 9).split(1, dim=2):
            fed.append(part)
            yield part
        pytest.fail("asked for more frames than were needed")

    latents = codec.encode_parts(endless())
    first, second = next(latents), next(latents)
    assert len(fed) == 5
    frames = codec.decode_parts(torch.cat([first, second], dim=2))
    assert [part.shape[2] for part in frames] == [1, 4]


def test_pictures_are_videos_of_one_frame(codec):
    x = pixels(codec, 1)
    latents = codec.encode(x[:, :, 0])
    assert latents.shape == (1, 5, 2, 3)
    torch.testing.assert_close(latents, codec.encode(x)[:, :, 0], rtol=0, atol=0)
    torch.testing.assert_close(codec.decode(latents), codec.decode(latents[:, :, None])[:, :, 0], rtol=0, atol=0)


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (6, 4), (2, 2)])
def test_tiles_are_those_of_diffusers(codec, rows, columns):
    tiling = Tiling(3 * codec.factor, 2 * codec.factor)
    z = noise(1, 5, 2, rows, columns).float()
    codec.vae.enable_tiling(*[tiling.size] * 2, *[tiling.stride] * 2)
    expected = theirs_decode(codec, z)
    codec.vae.use_tiling = False
    found = codec.decode(z, tiling)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if max(rows, columns) > 3:
        assert float((found - codec.decode(z)).abs().max()) > 1e-4, "tiles are an approximation"


def test_bad_input_is_named(codec, tmp_path):
    for frames in (2, 4, 0):
        with pytest.raises(ValueError, match=f"{frames} frames; the codec takes 1, 5, 9"):
            codec.encode(torch.zeros(1, 3, frames, 32, 32))
    with pytest.raises(ValueError, match="7 frames"):
        list(codec.encode_parts([pixels(codec, 7)]))
    with pytest.raises(ValueError, match=f"divide by {codec.factor}"):
        codec.encode(torch.zeros(1, 3, 1, 33, 32))
    with pytest.raises(ValueError, match=r"latents are \(b, 5, T, h, w\), not \(1, 4, 1, 2, 2\)"):
        codec.decode(torch.zeros(1, 4, 1, 2, 2))
    with pytest.raises(ValueError, match="leave gaps"):
        Tiling(100, 200)
    with pytest.raises(ValueError, match="smaller than a latent"):
        codec.decode(torch.zeros(1, 5, 1, 9, 9), Tiling(8, 4))
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        WanCodec.from_folder(tmp_path)
