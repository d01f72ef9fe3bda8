"""Whole pipelines beside diffusers' Cosmos3OmniPipeline: from the same folder and noise to the same latents."""

import cosmos3_pipeline
import numpy as np
import pytest
import torch
from PIL import Image
from towers import noise

import omni
from omni.pipelines.acting import Actor
from omni.pipelines.animate import ImageToVideo, TextToVideo, VideoToVideo
from omni.pipelines.images import TextToImage
from omni.pipelines.policy import Policy
from omni.pipelines.world import ForwardDynamics, InverseDynamics
from omni.tokenizers.captions import CaptionStyle

STEPS = 10
PROMPT, NEGATIVE = "A red ball rolls down a hill", "blurry."


SLOW = pytest.mark.slow
SYSTEMS = [pytest.param(name, marks=SLOW if name == "shifted" else ()) for name in cosmos3_pipeline.SYSTEMS]


@pytest.fixture(scope="module", params=SYSTEMS)
def pair(request, tmp_path_factory):
    """Their pipeline, and the model that we load from its folder; each with a seed of its own."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs = cosmos3_pipeline.build(folder, request.param, seed=list(cosmos3_pipeline.SYSTEMS).index(request.param))
    return theirs, omni.load(folder, device="cpu")


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= 1e-3 * float(expected.norm())


def start(height: int, width: int, frames: int, seed: int = 3) -> torch.Tensor:
    return noise(1, cosmos3_pipeline.WAN["z_dim"], 1 + frames // 4, height // 16, width // 16, seed=seed).float()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return (noise(height, width, 3, seed=seed).float().sigmoid().numpy() * 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "guidance"), [(32, 48, 4.0), pytest.param(48, 80, 1.0, marks=SLOW), (16, 112, 7.0)]
)
def test_pictures(pair, height, width, guidance):
    theirs, model = pair
    latents = start(height, width, 1)
    expected = theirs(
        PROMPT,
        NEGATIVE,
        num_frames=1,
        height=height,
        width=width,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        latents=latents,
        output_type="latent",
    ).video
    found = TextToImage(model)(
        PROMPT,
        negative_prompt=NEGATIVE,
        height=height,
        width=width,
        steps=STEPS,
        guidance=guidance,
        latents=latents[:, :, 0],
    )
    near(found.latents, expected[:, :, 0])
    assert found.images[0].size == (width, height)


@pytest.mark.parametrize(
    ("height", "width", "frames", "fps", "sound"),
    [(32, 32, 9, 24.0, False), pytest.param(48, 80, 5, 10.0, True, marks=SLOW), (16, 48, 17, 30.0, True)],
)
def test_videos(pair, height, width, frames, fps, sound):
    theirs, model = pair
    sound = sound and model.sound_latents is not None
    latents = start(height, width, frames)
    heard = {"sound_latents": noise(5, -(-int(frames / fps * 600) // 24), seed=9).float()} if sound else {}
    expected = theirs(
        PROMPT,
        NEGATIVE,
        num_frames=frames,
        height=height,
        width=width,
        fps=fps,
        num_inference_steps=STEPS,
        guidance_scale=6.0,
        latents=latents,
        enable_sound=sound,
        output_type="latent",
        **heard,
    )
    found = TextToVideo(model)(
        PROMPT,
        negative_prompt=NEGATIVE,
        height=height,
        width=width,
        frames=frames,
        fps=fps,
        sound=sound,
        steps=STEPS,
        guidance=6.0,
        latents=latents,
        **{name: value[None] for name, value in heard.items()},
    )
    near(found.latents, expected.video)
    if sound:
        length = found.sound[0].shape[1]
        assert length == int(frames / fps * 600)
        torch.testing.assert_close(
            torch.from_numpy(found.sound[0]), expected.sound[:, :length].float(), rtol=1e-3, atol=1e-4
        )
    assert found.frames[0].shape == (frames, height, width, 3)


@pytest.mark.parametrize(
    ("source", "height", "width"), [((40, 70), 32, 48), pytest.param((90, 33), 48, 80, marks=SLOW)]
)
def test_videos_that_begin_with_a_picture(pair, source, height, width):
    theirs, model = pair
    pixels = picture(*source)
    latents = start(height, width, 9)
    common = {"height": height, "width": width, "fps": 16.0}
    prepared = theirs.prepare_latents(
        image=Image.fromarray(pixels), num_frames=9, latents=None, device="cpu", dtype=torch.float32, **common
    )
    latents[:, :, 0] = prepared[0][:, :, 0]
    expected = theirs(
        PROMPT,
        image=Image.fromarray(pixels),
        num_frames=9,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        latents=latents,
        output_type="latent",
        **common,
    ).video
    noisy = latents.clone()
    noisy[:, :, 0] = 7.0  # what is given takes its place
    found = ImageToVideo(model)(pixels, PROMPT, frames=9, steps=STEPS, guidance=5.0, latents=noisy, **common)
    near(found.latents, expected)
    near(found.latents[:, :, 0], prepared[0][:, :, 0])


@pytest.mark.parametrize(
    ("condition", "keep", "length"),
    [pytest.param((0, 1), "first", 12, marks=SLOW), ((0, 1), "last", 12), ((1,), "first", 3)],
)
def test_videos_that_go_on(pair, condition, keep, length):
    theirs, model = pair
    clip = [Image.fromarray(picture(50, 70, seed)) for seed in range(length)]
    common = {"height": 32, "width": 48, "fps": 24.0}
    options = {"condition_frame_indexes_vision": condition, "condition_video_keep": keep}
    prepared = theirs.prepare_latents(video=clip, num_frames=13, device="cpu", dtype=torch.float32, **options, **common)
    latents = start(32, 48, 13)
    kept = list(condition)
    latents[:, :, kept] = prepared[0][:, :, kept]
    expected = theirs(
        PROMPT,
        video=clip,
        num_frames=13,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        latents=latents,
        output_type="latent",
        **options,
        **common,
    ).video
    found = VideoToVideo(model)(
        clip, PROMPT, frames=13, steps=STEPS, guidance=5.0, latents=latents, condition=condition, keep=keep, **common
    )
    near(found.latents, expected)


def test_system_prompts_and_sentences_can_be_chosen(pair):
    theirs, model = pair
    latents = start(32, 32, 5)
    common = {"height": 32, "width": 32, "latents": latents}
    expected = theirs(
        PROMPT,
        NEGATIVE,
        num_frames=5,
        num_inference_steps=3,
        use_system_prompt=True,
        add_duration_template=False,
        output_type="latent",
        **common,
    ).video
    own = {"steps": 3, "guidance": 6.0, "frames": 5, "negative_prompt": NEGATIVE}
    style = CaptionStyle(system=True, duration=False)
    near(TextToVideo(model)(PROMPT, style=style, **own, **common).latents, expected)
    other = TextToVideo(model)(PROMPT, style=CaptionStyle(system=False, duration=False), **own, **common).latents
    assert float((other - expected).norm()) > 1e-4 * float(expected.norm())


MODES = {"policy": Policy, "forward_dynamics": ForwardDynamics, "inverse_dynamics": InverseDynamics}


@pytest.mark.parametrize(
    ("mode", "name", "chunk", "source"),
    [
        ("policy", "robomind-franka-dual", 4, (100, 150)),
        ("forward_dynamics", "droid_lerobot", 8, (50, 90)),
        ("inverse_dynamics", "umi", 4, (300, 420)),
    ],
)
def test_actions(pair, monkeypatch, mode, name, chunk, source):
    from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import CosmosActionCondition

    theirs, model = pair
    own = Actor(model, name, chunk=chunk, tier=256, fps=15.0, raw=True, multiple=16)
    width = own.setting.embodiment.width
    clip = [Image.fromarray(picture(*source, seed)) for seed in range(chunk - 1)]  # shorter than the chunk's frames
    given = noise(chunk - 2, width, seed=5).float()
    condition = CosmosActionCondition(
        mode=mode,
        chunk_size=chunk,
        domain_name=name,
        resolution_tier=256,
        raw_actions=given if mode == "forward_dynamics" else None,
        image=None if mode == "inverse_dynamics" else clip[0],
        video=clip if mode == "inverse_dynamics" else None,
    )
    seen = theirs.prepare_latents(
        action=condition, fps=15.0, generator=torch.Generator().manual_seed(2), device="cpu", dtype=torch.float32
    )
    expected = theirs(
        PROMPT,
        NEGATIVE,
        action=condition,
        fps=15.0,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        latents=seen[0].clone(),
        action_latents=seen[2].clone(),
        output_type="latent",
    )
    start = {"latents": seen[0], "action_latents": seen[2][None]}
    common = {"negative_prompt": NEGATIVE, "steps": STEPS, "guidance": 3.0, **start}
    pipeline = MODES[mode](model, name, chunk=chunk, tier=256, fps=15.0, raw=True, multiple=16)
    if mode == "policy":
        found = pipeline.predict({"image": np.asarray(clip[0]), "prompt": PROMPT}, **common)
    elif mode == "forward_dynamics":
        found = pipeline(clip[0], given, PROMPT, **common)
    else:
        found = pipeline(clip, PROMPT, **common)
    near(found.latents, expected.video)
    if mode == "forward_dynamics":
        assert found.actions is None
    else:
        near(found.actions[0], expected.action[0])
