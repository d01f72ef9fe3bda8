"""ImageEdit: whole edits beside diffusers' transformer and scheduler, sizes, batches, and what it refuses."""

import json
from types import SimpleNamespace

import cosmos3_peer as peer
import cosmos3_pipeline
import numpy as np
import pytest
import torch
from micro import micro_model
from PIL import Image
from towers import noise

import omni
from omni import cli
from omni.config import GenerationConfig, replace
from omni.families import presets
from omni.pipelines import images
from omni.pipelines.images import EDITING, ImageEdit, read_settings
from omni.tokenizers.canvas import cover, fitted_size
from omni.tokenizers.captions import SYSTEM_PROMPTS

SIZE = {"height": 32, "width": 48}
FAST = SIZE | {"steps": 2, "seed": 3}
PROMPT, NEGATIVE = "Make the ball blue", "dull"


@pytest.fixture(scope="module", params=cosmos3_pipeline.SYSTEMS)
def pair(request, tmp_path_factory):
    """diffusers' pipeline, whose parts are used one by one, and the model that we load from its folder."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs = cosmos3_pipeline.build(folder, request.param, seed=list(cosmos3_pipeline.SYSTEMS).index(request.param))
    return theirs, omni.load(folder, device="cpu")


@pytest.fixture(scope="module")
def edit(tmp_path_factory) -> ImageEdit:
    folder = tmp_path_factory.mktemp("nano")
    cosmos3_pipeline.build(folder, "nano", 2)
    return ImageEdit(omni.load(folder, device="cpu"))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return (noise(height, width, 3, seed=seed).float().sigmoid().numpy() * 255).astype(np.uint8)


# -- beside diffusers --------------------------------------------------------------------------------------------------


def their_latents(theirs, pixels: np.ndarray) -> torch.Tensor:
    """(c, 1, h, w) of pixels (H, W, 3) by diffusers' codec, normed as published."""
    video = torch.from_numpy(pixels).permute(2, 0, 1)[None, :, None] / 127.5 - 1
    mean, std = (
        torch.tensor(values).view(-1, 1, 1, 1)
        for values in (theirs.vae.config.latents_mean, theirs.vae.config.latents_std)
    )
    return (theirs.vae.encode(video).latent_dist.mode()[0] - mean) / std


def their_ids(model, prompt: str, height: int, width: int) -> list[int]:
    """The published system prompt of editing, whatever the checkpoint does otherwise, in both branches."""
    text = f"{prompt}. This image is of {height}x{width} resolution."
    turns = [{"role": "system", "content": SYSTEM_PROMPTS["edit"]}, {"role": "user", "content": text}]
    ids = model.tokenizer.encode_chat(turns, add_generation_prompt=True)
    ends = model.tokenizer.encode("<|im_end|><|vision_start|>", special=True)
    return [*ids, *ends]


@torch.no_grad()
def their_edit(theirs, model, pixels, latents, steps: int, guidance: float) -> torch.Tensor:
    """The published loop: the picture is a clean item before the noisy one in both branches, one moment earlier."""
    from diffusers import UniPCMultistepScheduler

    source, (height, width) = their_latents(theirs, pixels), pixels.shape[:2]
    texts = [their_ids(model, prompt, height, width) for prompt in (PROMPT, NEGATIVE)]
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 5.0}
    native = theirs.config.use_native_flow_schedule or theirs.scheduler.config.use_karras_sigmas
    scheduler = UniPCMultistepScheduler(**flow)
    scheduler.set_timesteps(steps, sigmas=np.linspace(0.999, 0, steps + 1)[:-1] if native else None)
    x = latents[:, :, None]
    for t in scheduler.timesteps:
        wanted, against = (
            peer.velocity_behind(theirs.transformer, ids, [source, x[0]], (), None, float(t) / 1000, True)
            for ids in texts
        )
        x = scheduler.step((against + guidance * (wanted - against))[None], t, x, return_dict=False)[0]
    return x[:, :, 0]


@pytest.mark.parametrize(("height", "width", "guidance"), [(32, 48, 6.0), (48, 80, 3.0), (16, 112, 6.0)])
def test_whole_edits_are_those_of_the_reference(pair, height, width, guidance):
    theirs, model = pair
    pixels, latents = picture(height, width), noise(1, peer.CHANNELS, height // 16, width // 16, seed=3).float()
    expected = their_edit(theirs, model, pixels, latents, 6, guidance)
    how = {"negative_prompt": NEGATIVE, "height": height, "width": width, "latents": latents}
    found = ImageEdit(model)(pixels, PROMPT, steps=6, guidance=guidance, **how)
    assert float((found.latents - expected).norm()) <= 1e-5 * float(expected.norm())
    other = ImageEdit(model)(255 - pixels, PROMPT, steps=6, guidance=guidance, **how)
    assert float((found.latents - other.latents).norm()) > 1e-4 * float(expected.norm()), "the picture is seen"


def test_defaults_are_the_published_ones(pair):
    _, model = pair
    walk = model.config.generation.edit
    assert (walk.steps, walk.guidance, walk.shift, walk.solver) == (35, 6.0, 5.0, "unipc")
    assert walk.grid == (
        "native" if model.config.generation.image.grid == "karras" else model.config.generation.image.grid
    )


def test_presets_say_who_can_edit():
    found = {name for name, preset in presets().items() if preset.config.generation.edit is not None}
    assert {"cosmos3-nano", "cosmos3-super", "cosmos3-edge"} <= found
    assert not [name for name in found if not name.startswith("cosmos3") or name.endswith("4step")]


# -- what is given -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ((512, 512), (512, 512)),
        ((1080, 1920), (288, 512)),
        ((100, 75), (512, 384)),
        ((90, 3000), (32, 512)),
        ((49, 49), (512, 512)),
    ],
)
def test_a_picture_keeps_its_shape(source, expected):
    assert fitted_size(*source, 32) == expected


def test_the_whole_picture_is_seen_by_default(edit):
    pixels = picture(90, 60)
    resized = Image.fromarray(pixels).resize((320, 512), Image.Resampling.LANCZOS)
    found = edit(pixels, PROMPT, seed=1, steps=1)
    assert found.images[0].size == resized.size
    again = edit(resized, PROMPT, seed=1, steps=1)
    assert torch.equal(found.latents, again.latents)
    repeated = edit(pixels, **found.settings[0])
    assert torch.equal(found.latents, repeated.latents), "the settings make it again"


def test_of_another_size_it_is_cropped(edit):
    pixels = picture(90, 60)
    covered = cover(torch.from_numpy(pixels).permute(2, 0, 1), 32, 48)
    found, again = (edit(source, PROMPT, **FAST) for source in (pixels, covered))
    assert torch.equal(found.latents, again.latents)
    assert edit(pixels, PROMPT, width=48, seed=0, steps=1, guidance=1.0).images[0].size == (48, 512)


def test_the_prompt_has_the_system_prompt_of_editing(edit, monkeypatch):
    said = []
    monkeypatch.setattr(
        edit, "denoise", lambda wanted, against, noise, *a: said.extend([*wanted, *against]) or (noise, True)
    )
    edit(picture(32, 48), PROMPT, negative_prompt=NEGATIVE, **FAST)
    for ids, own in zip(said, (PROMPT, NEGATIVE), strict=True):
        text = edit.model.tokenizer.decode(list(ids))
        assert SYSTEM_PROMPTS["edit"] in text
        assert f"{own}. This image is of 32x48 resolution." in text


def test_a_style_can_be_chosen(edit):
    plain, bare = (
        edit(picture(32, 48), PROMPT, style=style, **FAST).latents for style in (None, replace(EDITING, system=False))
    )
    assert not torch.allclose(plain, bare, atol=1e-4)


# -- batches -----------------------------------------------------------------------------------------------------------


def test_lists_are_batches_and_each_follows_from_its_own_seed(edit):
    pictures, prompts = [picture(32, 48, seed) for seed in (1, 2)], [PROMPT, "Add a hat"]
    together = edit(pictures, prompts, seed=[5, 6], **SIZE, steps=2)
    for i in range(2):
        alone = edit(pictures[i], prompts[i], seed=5 + i, **SIZE, steps=2)
        torch.testing.assert_close(together.latents[i : i + 1], alone.latents, rtol=1e-4, atol=1e-5)
    assert [s["seed"] for s in together.settings] == [5, 6]
    twice = edit(pictures[0], prompts, count=2, **FAST)
    assert [(s["prompt"], s["seed"]) for s in twice.settings] == [(p, s) for p in prompts for s in (3, 4)]
    of_each = edit(pictures, PROMPT, **FAST)
    torch.testing.assert_close(of_each.latents[:1], twice.latents[:1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(of_each.latents[0], of_each.latents[1], atol=1e-3)


@pytest.mark.parametrize(("together", "rows"), [(8, [2, 2]), (7, [1, 1, 1, 1])])
def test_both_branches_see_the_picture_and_are_one_batch_while_small(edit, monkeypatch, together, rows):
    """Two branches of four tokens, half of them the picture's."""
    asked, velocity = [], edit.model.velocity
    monkeypatch.setattr("omni.pipelines.generation.TOGETHER", together)
    monkeypatch.setattr(
        edit.model, "velocity", lambda *a: asked.append((len(a[0]["video"]), len(a[3].controls))) or velocity(*a)
    )
    edit(picture(32, 48), PROMPT, **FAST)
    assert asked == [(n, 1) for n in rows]


def test_previews_and_stopping(edit):
    seen = []
    found = edit(picture(32, 48), PROMPT, on_step=lambda step, x: seen.append(edit.decode(x)) or step < 0, **FAST)
    assert len(seen) == 1
    assert not found.complete
    assert seen[0][0].tobytes() == found.images[0].tobytes()


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": [picture(32, 48), picture(48, 48)], "height": None}, "become 320x512, 512x512 pixels; give height"),
        ({"image": [picture(32, 48)] * 2, "prompt": ["a"] * 3}, "2 pictures were given for 3 prompts"),
        ({"prompt": 7}, "a prompt must be a text"),
        ({"height": 33}, "height is 33; it must be a multiple of 16"),
        ({"aspect": "2:1"}, "aspect is '2:1'; it must be one of"),
        ({"count": 0}, "count is 0"),
        ({"negative_prompt": 3}, "negative_prompt must be a text"),
        ({"steps": 0}, "0 steps"),
        ({"guidance": -1.0}, "guidance is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1, "latents": torch.randn(1, peer.CHANNELS, 2, 3)}, "give a seed or latents, not both"),
        ({"seed": None, "latents": torch.randn(1, peer.CHANNELS, 2, 2)}, "latents are \\(1, 6, 2, 2\\)"),
        ({"image": "nowhere.png"}, "nowhere.png does not exist"),
        ({"image": np.zeros((4, 4, 3))}, "float64"),
    ],
)
def test_bad_input_is_one_clear_error_before_anything_is_made(edit, monkeypatch, options, message):
    monkeypatch.setattr(edit, "_encode", lambda *a: pytest.fail("something was encoded"))
    with pytest.raises(ValueError, match=message):
        edit(**{"image": picture(32, 48), "prompt": PROMPT, **FAST} | options)


def test_a_request_of_too_many_tokens(edit, monkeypatch):
    monkeypatch.setattr(images, "MAX_TOKENS", 2 * 2)  # two tokens a picture, and as many of what it is made from
    assert edit(picture(32, 48), PROMPT, **FAST).complete
    with pytest.raises(ValueError, match="2 pictures of 32x48 pixels take 8 latent tokens; at most 4"):
        edit(picture(32, 48), PROMPT, count=2, **FAST)
    with pytest.raises(ValueError, match="1 pictures of 1280x720 pixels take 1840 latent tokens"):
        edit(picture(32, 48), PROMPT, aspect="9:16")


def test_models_that_have_not_learnt_it_are_refused():
    with pytest.raises(ValueError, match="this model has not learnt to edit pictures: name another"):
        ImageEdit(micro_model())
    with pytest.raises(ValueError, match="no shipped model has learnt ImageEdit: name another"):
        ImageEdit.from_pretrained()
    assert GenerationConfig().edit is None


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys, monkeypatch, edit):
    loaded = []
    monkeypatch.setattr(omni, "load", lambda name, device: loaded.append(name) or edit.model)

    def call(*arguments) -> SimpleNamespace:
        code = cli.main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err, loaded=loaded)

    return call


def test_draw_edits_a_picture_and_the_file_tells_how(run, edit, tmp_path):
    source, out, preview = tmp_path / "x.png", tmp_path / "y.png", tmp_path / "p.png"
    Image.fromarray(picture(40, 60)).save(source)
    sizes = ("--height", 32, "--width", 48, "--steps", 2, "--seed", 3)
    done = run("draw", PROMPT, "--edit", source, "-o", out, "--model", "x", "--json", "--preview", preview, *sizes)
    assert done.code == 0, done.err
    expected = edit(source, PROMPT, **FAST)
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(expected.images[0]))
    told = read_settings(out)
    assert told == {**expected.settings[0], "model": "x", "edited": str(source)}
    assert json.loads(done.out)[0] == {"file": str(out), **told}
    assert preview.is_file()
    assert run("draw", PROMPT, "--edit", source, "-o", out, "--model", "x", "--count", 2, *sizes).code == 0
    assert read_settings(out)["edited"] == str(source)


def test_draw_says_what_it_cannot_edit(run, tmp_path):
    source = tmp_path / "x.png"
    Image.fromarray(picture(40, 60)).save(source)
    (tmp_path / "x.txt").write_text("no picture")
    shapes = cli.Path(__file__).parent.parent / "assets" / "samples" / "shapes.mp4"
    for arguments, code, message in (
        (("--edit", source), 1, "no shipped model has learnt ImageEdit: name another"),
        (("--edit", source, "--upsample"), 2, "--upsample is of prompts for new pictures"),
        (("--edit", shapes), 2, "is a video; --edit takes a picture"),
        (("--edit", tmp_path / "none.png"), 1, "none.png does not exist"),
        (("--edit", tmp_path / "x.txt"), 1, "x.txt"),
    ):
        done = run("draw", PROMPT, *arguments, "-o", tmp_path / "y.png")
        assert (done.code, done.out, done.loaded) == (code, "", []), done.err
        assert message in done.err
        assert done.err.count("\n") == 1 or code == 2
    assert not (tmp_path / "y.png").exists()
