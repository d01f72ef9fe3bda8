"""TextToImage on a small random model: seeds, batches, guidance, cancelling, limits, and the files it writes."""

import re

import pytest
import torch
from micro import CODEC_LATENT, micro_model
from PIL import Image

from omni.config import CodecConfig, GenerationConfig, WalkConfig
from omni.pipelines.images import MAX_TOKENS, TextToImage, contact_sheet, read_settings, save_png
from omni.tokenizers.latent import PatchCodec, PixelCodec

FAST = {"steps": 3, "height": 16, "width": 24}


@pytest.fixture(scope="module")
def draw() -> TextToImage:
    return TextToImage(micro_model())


class Calls:
    """Counts the batch rows of every call of the denoiser, and the calls of the context tower."""

    def __init__(self, model, monkeypatch) -> None:
        self.rows, self.reads = [], []
        velocity, read = model.velocity, model.read

        def count_velocity(streams, t, context, scene):
            self.rows.append(len(streams["video"]))
            return velocity(streams, t, context, scene)

        def count_read(inputs, cache=None, **more):
            self.reads.append(len(inputs.input_ids))
            return read(inputs, cache, **more)

        monkeypatch.setattr(model, "velocity", count_velocity)
        monkeypatch.setattr(model, "read", count_read)


def test_size_settings_and_repetition(draw):
    result = draw("a red circle", seed=5, **FAST)
    assert [image.size for image in result.images] == [(24, 16)]
    assert result.latents.shape == (1, 3, 16, 24)
    assert result.complete
    (settings,) = result.settings
    assert settings["prompt"] == "a red circle"
    assert (settings["seed"], settings["steps"], settings["guidance"], settings["shift"]) == (5, 3, 3.0, 2.0)
    again = draw(**settings)
    assert torch.equal(again.latents, result.latents)
    assert not torch.equal(draw("a red circle", seed=6, **FAST).latents, result.latents)
    assert not torch.allclose(draw("a blue ring", seed=5, **FAST).latents, result.latents, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_of_a_codec(dtype):
    draw = TextToImage(micro_model(latent=CODEC_LATENT).to(dtype))
    result = draw("a ring", seed=5, **FAST)
    assert result.latents.shape == (1, 4, 4, 6)
    assert result.images[0].size == (24, 16)
    assert draw("a ring", seed=5, steps=1).images[0].size == (64, 64)
    assert draw("a ring", latents=torch.randn(1, 4, 4, 6), **FAST).complete
    with pytest.raises(ValueError, match="height is 12; it must be a multiple of 8"):
        draw("a ring", height=12)


def test_patch_codec_keeps_what_its_components_span():
    """Pictures made of a few kinds of patches come back exactly; latents have variance one on average."""
    codec = micro_model(latent=CODEC_LATENT).codec
    kinds = torch.rand(4, 3, 4, 4)
    tiles = kinds[torch.randint(4, (6, 4, 6), generator=torch.Generator().manual_seed(0))]  # (b, h, w, 3, 4, 4)
    pixels = tiles.permute(0, 3, 1, 4, 2, 5).reshape(6, 3, 16, 24)
    codec.fit(pixels)
    latents = codec.encode(pixels)
    assert latents.shape == (6, 4, 4, 6)
    torch.testing.assert_close(latents.var(dim=(0, 2, 3), correction=0).mean(), torch.tensor(1.0), atol=0.01, rtol=0)
    torch.testing.assert_close(codec.decode(latents), pixels, atol=1e-4, rtol=0)
    assert 0 <= codec.decode(9 * latents).min() <= codec.decode(9 * latents).max() <= 1


def test_patch_codec_codes_what_a_video_changes():
    """Where nothing moves its latents are zero; any number of frames comes back, whole or in parts."""
    codec = PatchCodec(CodecConfig(channels=48, factor=4, motion=2.0))
    pixels = torch.rand(2, 3, 19, 8, 12, generator=torch.Generator().manual_seed(1))
    pixels[:, :, 5:9] = pixels[:, :, :1]
    latents, plain = codec.encode(pixels), PatchCodec(CodecConfig(channels=48, factor=4)).encode(pixels)
    torch.testing.assert_close(latents[:, :, 0], plain[:, :, 0])
    torch.testing.assert_close(latents[:, :, 1:], 2 * (plain[:, :, 1:] - plain[:, :, :1]))
    assert not latents[:, :, 5:9].any()
    torch.testing.assert_close(codec.decode(latents), pixels, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat(list(codec.decode_parts(latents)), dim=2), pixels, atol=1e-5, rtol=0)
    in_parts = torch.cat(list(codec.encode_parts(pixels.split(7, dim=2))), dim=2)
    torch.testing.assert_close(in_parts, latents)


def test_a_codec_of_other_channels_is_refused():
    with pytest.raises(ValueError, match="latents have 4 channels; PixelCodec makes 3"):
        TextToImage(micro_model(latent=CODEC_LATENT), codec=PixelCodec())


def test_a_random_seed_is_told(draw):
    first, second = (draw("a ring", **FAST) for _ in range(2))
    assert first.settings[0]["seed"] != second.settings[0]["seed"]
    assert torch.equal(draw(**first.settings[0]).latents, first.latents)


def test_a_picture_does_not_depend_on_its_batch(draw):
    prompts = ["a red circle", "two green squares above a very long blue ring", "a red circle"]
    together = draw(prompts, seed=[1, 2, 3], **FAST).latents
    for i, prompt in enumerate(prompts):
        alone = draw(prompt, seed=i + 1, **FAST).latents
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-4, rtol=1e-4)


def test_count_follows_each_prompt(draw):
    result = draw(["a ring", "a cross"], seed=7, count=2, **FAST)
    assert [(s["prompt"], s["seed"]) for s in result.settings] == [
        ("a ring", 7),
        ("a ring", 8),
        ("a cross", 7),
        ("a cross", 8),
    ]
    torch.testing.assert_close(result.latents[3:], draw("a cross", seed=8, **FAST).latents, atol=1e-4, rtol=1e-4)


def test_prompts_are_read_once_and_guidance_costs_one_batch(draw, monkeypatch):
    calls = Calls(draw.model, monkeypatch)
    draw(["a ring", "a cross", "a ring"], seed=0, **FAST)
    assert calls.reads == [3]  # two different prompts and the negative one
    assert calls.rows == [6, 6, 6]


def test_no_guidance_skips_the_second_branch(draw, monkeypatch):
    calls = Calls(draw.model, monkeypatch)
    plain = draw("a ring", seed=0, guidance=1, **FAST)
    assert (calls.reads, calls.rows) == ([1], [1, 1, 1])
    never = draw("a ring", seed=0, guidance=4, interval=(0.0, 0.0), **FAST)
    assert torch.equal(plain.latents, never.latents)


def test_guidance_within_an_interval(draw, monkeypatch):
    calls = Calls(draw.model, monkeypatch)
    draw("a ring", seed=0, interval=(0.0, 0.9), **FAST)
    assert calls.rows == [1, 2, 2]


def test_guidance_is_the_published_combination(draw):
    """One step from noise: the result is linear in the guidance scale."""
    options = {"seed": 0, "steps": 1, "height": 16, "width": 16, "negative_prompt": "a cross"}
    at = {g: draw("a ring", guidance=g, **options).latents for g in (0, 1, 3)}
    torch.testing.assert_close(at[3], at[0] + 3 * (at[1] - at[0]), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(at[0], draw("a cross", guidance=1, **options).latents, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(at[0], at[1], atol=1e-3)


def test_given_latents_and_heun(draw):
    noise = torch.randn(1, 3, 16, 24, generator=torch.Generator().manual_seed(5))
    given = draw("a ring", latents=noise, **FAST)
    assert torch.equal(given.latents, draw("a ring", seed=5, **FAST).latents)
    assert "seed" not in given.settings[0]
    assert not torch.equal(given.latents, draw("a ring", latents=noise, solver="heun", **FAST).latents)


def test_renewed_noise_follows_from_the_seed_alone(draw):
    prompts = ["a red circle", "a green square above a blue ring"]
    together = draw(prompts, seed=[1, 2], eta=1.0, **FAST)
    for i, prompt in enumerate(prompts):
        alone = draw(prompt, seed=i + 1, eta=1.0, **FAST).latents
        torch.testing.assert_close(together.latents[i : i + 1], alone, atol=1e-4, rtol=1e-4)
    assert torch.equal(draw(**together.settings[0]).latents, draw(prompts[0], seed=1, eta=1.0, **FAST).latents)
    assert not torch.allclose(together.latents[:1], draw(prompts[0], seed=1, **FAST).latents, atol=1e-3)


def test_given_latents_with_a_seed_for_the_noise_after_them(draw):
    start = torch.randn(1, 3, 16, 24, generator=torch.Generator().manual_seed(5))
    first, again = (draw("a ring", latents=start, seed=3, eta=0.5, **FAST).latents for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.allclose(draw("a ring", latents=start, seed=4, eta=0.5, **FAST).latents, first, atol=1e-3)


def test_callback_previews_and_stops(draw):
    seen = []

    def stop_after_two(step, latents):
        seen.append((step, draw.decode(latents)[0].size))
        return step < 1

    result = draw("a ring", seed=0, on_step=stop_after_two, **FAST)
    assert seen == [(0, (24, 16)), (1, (24, 16))]
    assert not result.complete
    assert draw("a ring", seed=0, on_step=lambda step, latents: None, **FAST).complete


def test_defaults_come_from_the_checkpoint():
    draw = TextToImage(
        micro_model(generation=GenerationConfig(image=WalkConfig(steps=2, guidance=1.5, shift=1.25, eta=0.5)))
    )
    (settings,) = draw("a ring", seed=0).settings
    assert [settings[name] for name in ("steps", "guidance", "shift", "eta")] == [2, 1.5, 1.25, 0.5]
    assert (settings["height"], settings["width"]) == (64, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 20}, "height is 20; it must be a multiple of 8 from 8 to 8192"),
        ({"width": 0}, "width is 0"),
        ({"width": 1 << 40}, "width is 1099511627776"),
        ({"height": 512, "width": 512}, "512x512 pixels take 4096 latent tokens; the model's limit is 1024"),
        ({"count": 10**9}, f"at most {MAX_TOKENS} fit"),
        ({"count": 0}, "count is 0"),
        ({"steps": 0}, "0 steps"),
        ({"steps": 10**6}, "1000000 steps"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"shift": -1.0}, "shift is -1.0"),
        ({"eta": 1.5}, "eta is 1.5; it must lie between 0 and 1"),
        ({"solver": "magic"}, "'magic' is unknown; known: euler, heun, unipc"),
        ({"interval": (0.5, 0.2)}, "interval is (0.5, 0.2)"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1.5}, "seed must be a whole number or a list of them, not 1.5"),
        ({"seed": [1, 2]}, "2 seeds were given for 1 pictures"),
        ({"negative_prompt": None}, "negative_prompt must be a text"),
        ({"prompt": []}, "a prompt must be"),
        ({"prompt": 3}, "a prompt must be"),
        ({"prompt": "x" * 2000}, "a prompt has 2002 tokens; the model's limit is 1024"),
        ({"latents": torch.zeros(1, 3, 8, 8)}, "latents are (1, 3, 8, 8)"),
    ],
)
def test_bad_requests_say_what_is_possible(draw, options, message):
    options = {"prompt": "a ring", **options}
    with pytest.raises(ValueError, match=re.escape(message)):
        draw(options.pop("prompt"), **options)


def test_seed_and_latents_exclude_each_other(draw):
    with pytest.raises(ValueError, match="not both"):
        draw("a ring", seed=1, latents=torch.zeros(1, 3, 64, 64))


def test_models_that_cannot_draw_are_refused():
    with pytest.raises(ValueError, match="draws no pictures"):
        TextToImage(micro_model(denoiser=None, latent=None))
    model = micro_model()
    model.tokenizer = None
    with pytest.raises(ValueError, match="without a tokenizer"):
        TextToImage(model)


def test_broken_weights_are_reported():
    model = micro_model()
    with torch.no_grad():
        model.latents.proj_out.weight.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="not numbers"):
        TextToImage(model)("a ring", seed=0, **FAST)


def test_pixel_codec_is_reversible():
    codec = PixelCodec()
    levels = (torch.arange(256.0) / 255).expand(1, 3, 2, 256)
    latents = codec.encode(levels)
    assert (latents.min(), latents.max()) == (-1, 1)
    assert torch.equal((codec.decode(latents) * 255).round(), levels * 255)
    assert torch.equal(codec.decode(torch.tensor([-7.0, 7.0])), torch.tensor([0.0, 1.0]))


def test_png_keeps_its_settings(draw, tmp_path):
    result = draw("a ring — größer", seed=3, **FAST)
    path = tmp_path / "ring.png"
    path.write_bytes(b"an older file")
    save_png(result.images[0], path, result.settings[0])
    assert [p.name for p in tmp_path.iterdir()] == ["ring.png"]
    assert read_settings(path) == result.settings[0]
    assert Image.open(path).tobytes() == result.images[0].tobytes()
    save_png(result.images[0], path)
    assert read_settings(path) == {}


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "old.png"
    path.write_bytes(b"old")
    with pytest.raises(TypeError):
        save_png(Image.new("RGB", (8, 8)), path, {"bad": object()})
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["old.png"]


def test_contact_sheet():
    tiles = [Image.new("RGB", (10, 6), colour) for colour in ("red", "green", "blue")]
    sheet = contact_sheet(tiles, columns=2, gap=2)
    assert sheet.size == (2 * 12 + 2, 2 * 8 + 2)
    assert sheet.getpixel((2, 2)) == (255, 0, 0)
    assert sheet.getpixel((14, 2)) == (0, 128, 0)
    assert sheet.getpixel((2, 10)) == (0, 0, 255)
    assert sheet.getpixel((14, 10)) == (255, 255, 255)
    assert contact_sheet(tiles[:1], gap=0).size == (10, 6)
    for bad in ({"images": []}, {"images": tiles, "columns": 0}):
        with pytest.raises(ValueError):
            contact_sheet(**bad)


def test_a_model_that_draws_no_pictures_by_themselves_says_so():
    model = micro_model(generation=GenerationConfig(draws=False))
    with pytest.raises(ValueError, match="draws no pictures by themselves"):
        TextToImage(model)
