"""Transfer: controls beside diffusers' transformer, both guidances, chunks of long videos, and what OpenCV draws."""

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cosmos3_peer as peer
import cosmos3_pipeline
import numpy as np
import pytest
import torch
from towers import noise

import omni
from omni.config import WalkConfig
from omni.decoders.flow import Guidance
from omni.inputs import Inputs
from omni.pipelines import transfer
from omni.pipelines.transfer import ControlWalk, Plan, Transfer, ping_pong
from omni.streams import CONTROLS as CONTROL_TOKENS
from omni.streams import VIDEO, Scene
from omni.tokenizers.captions import SYSTEM_PROMPTS
from omni.tokenizers.controls import CONTROLS, STRENGTHS, blur, defaults_of, edge
from omni.tokenizers.video import open_video
from omni.tokenizers.video_writer import write_video

IDS = [3, 17, 99, 4, 5, 58, 110]
SAMPLE = Path(__file__).resolve().parent.parent.parent / "shared/samples/generator/transfer/edge"


# -- one call, beside diffusers ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=list(peer.VARIANTS))
def pair(request, tmp_path_factory):
    """Their transformer, and ours loaded from its folder."""
    theirs = peer.build(1, **peer.VARIANTS[request.param])
    folder = tmp_path_factory.mktemp("transformer")
    theirs.save_pretrained(folder)
    return theirs, omni.load(folder, device="cpu")


def read(model, ids):
    cache = model.new_cache(1)
    with torch.no_grad():
        model.read(Inputs(torch.tensor([ids])), cache, last=0)
    return cache


def clips(count: int, frames: int, height: int, width: int) -> list[torch.Tensor]:
    return [noise(1, peer.CHANNELS, frames, height, width, seed=seed).float() for seed in range(count)]


@torch.no_grad()
@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize(("controls", "fps", "clean"), [(1, 24.0, ()), (1, None, (0,)), (2, 10.0, (0,)), (3, 30.0, ())])
def test_one_call_with_controls_is_that_of_diffusers(pair, controls, fps, clean, follow):
    theirs, ours = pair
    *given, video = clips(controls + 1, 3, 3, 4)
    expected = peer.velocity_behind(theirs, IDS, [*(x[0] for x in given), video[0]], clean, fps, 0.7, follow)
    flags = torch.tensor([[i in clean for i in range(3)]])
    rate = None if fps is None else torch.tensor([fps])
    scene = Scene(rate, {VIDEO: flags} if clean else {}, controls=tuple(given), follow=follow)
    found = ours.velocity({VIDEO: video}, torch.tensor([0.7]), read(ours, IDS), scene)
    assert found.keys() == {VIDEO}
    assert float((found[VIDEO][0] - expected).norm()) <= 1e-5 * float(expected.norm())
    without = ours.velocity({VIDEO: video}, torch.tensor([0.7]), read(ours, IDS), Scene(rate, scene.clean))
    assert float((found[VIDEO] - without[VIDEO]).norm()) > 1e-2 * float(expected.norm()), "the controls are seen"


def pass_by_pass(sizes, weights):
    """Attention as published for several controls, in place of diffusers' own: a pass for each, on the two of them."""
    from diffusers.models.transformers import transformer_cosmos3

    plain = transformer_cosmos3.dispatch_attention_fn

    def attention(q, k, v, is_causal, **options):
        if is_causal:
            return plain(q, k, v, is_causal=True, **options)
        past, begin, shared = k.shape[1] - q.shape[1], 0, torch.arange(sum(sizes), q.shape[1])
        found, mean = [], 0.0
        for size, weight in zip(sizes, weights, strict=True):
            own, begin = torch.arange(begin, begin + size), begin + size
            keys = torch.cat([torch.arange(past), past + own, past + shared])
            of_own, of_shared = (
                plain(q[:, i], k[:, keys], v[:, keys], is_causal=False, **options) for i in (own, shared)
            )
            found.append(of_own)
            mean = mean + weight * of_shared
        return torch.cat([*found, mean], dim=1)

    return attention


@torch.no_grad()
@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize(
    ("weights", "fps", "clean"),
    [((0.7, 0.3), 24.0, ()), ((3.0, 1.0), None, (0,)), ((1.0, 0.0), 10.0, ()), ((1.0, 1.0, 2.0), 30.0, (0,))],
)
def test_controls_with_weights_are_the_published_passes(pair, monkeypatch, weights, fps, clean, follow):
    theirs, ours = pair
    *given, video = clips(len(weights) + 1, 3, 3, 4)
    flags = torch.tensor([[i in clean for i in range(3)]])
    rate = None if fps is None else torch.tensor([fps])
    scene = Scene(rate, {VIDEO: flags} if clean else {}, controls=tuple(given), weights=weights, follow=follow)
    t, cache = torch.tensor([0.7]), read(ours, IDS)
    found = ours.velocity(video, t, cache, scene)
    joint = ours.velocity(video, t, cache, replace(scene, weights=()))
    shares = [weight / sum(weights) for weight in weights]
    loop = pass_by_pass([3 * 2 * 2] * len(weights), shares)
    monkeypatch.setattr("diffusers.models.transformers.transformer_cosmos3.dispatch_attention_fn", loop)
    expected = peer.velocity_behind(theirs, IDS, [*(x[0] for x in given), video[0]], clean, fps, 0.7, follow)
    assert float((found[0] - expected).norm()) <= 1e-5 * float(expected.norm())
    assert float((found - joint).norm()) > 1e-3 * float(expected.norm()), "they do not see each other"


@torch.no_grad()
def test_one_control_needs_no_weight(pair):
    _, ours = pair
    control, video = clips(2, 3, 3, 4)
    t, cache = torch.tensor([0.7]), read(ours, IDS)
    plain = ours.velocity(video, t, cache, Scene(controls=(control,)))
    for weight in (1.0, 0.2):
        assert torch.equal(ours.velocity(video, t, cache, Scene(controls=(control,), weights=(weight,))), plain)


def test_weights_that_mean_nothing(pair):
    _, ours = pair
    first, second, video = clips(3, 3, 2, 4)
    for wrong in ((1.0,), (1.0, -1.0), (0.0, 0.0), (math.nan, 1.0), (math.inf, 1.0)):
        with pytest.raises(ValueError, match="weights"):
            ours.velocity(video, torch.tensor([0.5]), read(ours, IDS), Scene(controls=(first, second), weights=wrong))


@torch.no_grad()
def test_rows_with_controls_are_as_alone_and_doubled_as_once(pair):
    _, ours = pair
    video, control = (noise(2, peer.CHANNELS, 3, 2, 4, seed=seed).float() for seed in (5, 6))
    cache, rates, t = read(ours, IDS).select(torch.tensor([0, 0])), torch.tensor([24.0, 10.0]), torch.tensor([0.8, 0.3])
    scene = Scene(rates, controls=(control,), follow=True)
    found = ours.velocity(video, t, cache, scene)
    for i in (0, 1):
        alone = Scene(rates[i : i + 1], controls=(control[i : i + 1],), follow=True)
        one = ours.velocity(video[i : i + 1], t[i : i + 1], read(ours, IDS), alone)
        torch.testing.assert_close(found[i : i + 1], one, rtol=1e-4, atol=1e-5)
    four = read(ours, IDS).select(torch.tensor([0, 0, 0, 0]))
    twice = ours.velocity(torch.cat([video, video]), torch.cat([t, t]), four, scene.twice())
    torch.testing.assert_close(twice, torch.cat([found, found]), rtol=1e-4, atol=1e-5)


def test_positions_and_noise_levels_of_controls(pair):
    _, ours = pair
    video, first, second = clips(3, 3, 2, 4)
    begin = torch.tensor([100])

    def packed(**how):
        return ours._heads().pack({VIDEO: video}, Scene(torch.tensor([24.0]), **how), begin)

    shared, apart = packed(controls=(first, second)), packed(controls=(first, second), follow=True)
    assert shared.counts == {CONTROL_TOKENS: 2 * 3 * 2, VIDEO: 3 * 2}
    assert shared.noisy.tolist() == [[False] * 12 + [True] * 6]
    own = packed().positions[:, 0]
    assert torch.equal(shared.positions[:, 0].reshape(3, 3, 6), own[:, None].expand(-1, 3, -1))
    begins = apart.positions[0, 0].reshape(3, 6)[:, 0].tolist()
    last = float(own[0, -1])
    assert begins == [100, math.ceil(last) + 1, math.ceil(math.ceil(last) + 1 + last - 100) + 1]
    assert torch.equal(apart.positions[1:], shared.positions[1:])


def test_controls_that_do_not_fit_the_video(pair):
    _, ours = pair
    video, control = clips(2, 3, 2, 4)
    for wrong in (control[0], torch.cat([control, control])):
        with pytest.raises(ValueError, match="a control is"):
            ours.velocity(video, torch.tensor([0.5]), read(ours, IDS), Scene(controls=(wrong,)))


# -- whole videos ------------------------------------------------------------------------------------------------------

SIZE = {"height": 32, "width": 48}


@pytest.fixture(scope="module", params=["nano", "shifted"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    cosmos3_pipeline.build(folder, request.param, 2)
    return omni.load(folder, device="cpu")


def footage(frames: int, height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    """(T, H, W, 3) uint8: a bright square that moves"""
    found = np.random.default_rng(seed).integers(0, 60, (frames, height, width, 3), dtype=np.uint8)
    for i in range(frames):
        found[i, 10:25, 5 + 2 * i % 30 : 20 + 2 * i % 30] = 200
    return found


def latents_of(model, pixels: np.ndarray) -> torch.Tensor:
    """(1, c, T, h, w) of frames at SIZE, encoded by one call of the codec."""
    covered = transfer.cover(transfer.pixels_of(pixels), *SIZE.values())
    return Transfer(model).codec.encode(covered.movedim(0, 1)[None]).float()


@pytest.mark.parametrize(("guidance", "control_guidance"), [(3.0, 1.5), (1.0, 3.0), (3.0, 1.0), (1.0, 1.0)])
def test_guidance_of_text_and_controls(model, monkeypatch, guidance, control_guidance):
    """One step from pure noise is x - v, v put together from branches that are asked for here."""
    control, asked = footage(5), []
    pipe, velocity = Transfer(model), model.velocity
    monkeypatch.setattr(model, "velocity", lambda *a: asked.append(len(a[3].controls)) or velocity(*a))
    how = {"guidance": guidance, "control_guidance": control_guidance, "grid": "plain", "solver": "euler"}
    found = pipe({"edge": control}, "A dancer", negative_prompt="dull", frames=5, steps=1, seed=4, **how, **SIZE)
    # Branches in turn: with controls, without, and with controls and the negative prompt; unused ones are not asked.
    assert asked == [1] + [0] * (control_guidance != 1) + [1] * (guidance != 1)
    monkeypatch.undo()

    request = SimpleNamespace(**SIZE, frames=5, fps=30.0, style=transfer.STYLE, negative_prompt="dull")
    wanted, against = pipe._texts(request, "A dancer")
    start = torch.randn(6, 2, 2, 3, generator=torch.Generator().manual_seed(4))[None]
    scene = Scene(torch.tensor([30.0]), controls=(latents_of(model, control),))
    branches = {"c": (wanted, scene), "n": (wanted, Scene(scene.fps)), "u": (against, scene)}
    v = {}
    with torch.inference_mode():
        for name, (texts, seen) in branches.items():
            v[name] = velocity({VIDEO: start}, torch.tensor([1.0]), pipe.read(texts), seen)[VIDEO]
    controlled = v["n"] + control_guidance * (v["c"] - v["n"])
    expected = start - (v["u"] + guidance * (controlled - v["u"]))
    torch.testing.assert_close(found.latents[0], expected, rtol=1e-3, atol=1e-4)


def test_control_guidance_stays_within_its_interval(model, monkeypatch):
    asked, velocity = [], model.velocity
    monkeypatch.setattr(model, "velocity", lambda *a: asked.append(len(a[3].controls)) or velocity(*a))
    options = {"frames": 1, "steps": 4, "grid": "plain", "solver": "euler", "shift": 1.0, "guidance": 1.0, "seed": 0}
    Transfer(model)({"depth": footage(1)}, "x", control_interval=(0.25, 0.8), **options, **SIZE)
    assert asked == [1, 1, 0, 1, 0, 1], "times 1, 0.75, 0.5, 0.25; the ends are outside"


def test_the_prompt_has_the_system_prompt_of_transfer(model):
    pipe = Transfer(model)
    request = SimpleNamespace(**SIZE, frames=5, fps=29.97, style=transfer.STYLE, negative_prompt="dull")
    said = [model.tokenizer.decode(list(texts[0])) for texts in pipe._texts(request, "A dancer")]
    for text, own in zip(said, ("A dancer", "dull"), strict=True):
        assert SYSTEM_PROMPTS["transfer"] in text
        assert f"{own}. The video is 0.2 seconds long and is of 30 FPS. This video is of 32x48 resolution." in text


@pytest.mark.parametrize("grid", ["karras", "native", "shifted", "plain"])
def test_defaults_are_those_of_the_control(grid):
    found = [ControlWalk.of(transfer._published(WalkConfig(grid=grid), defaults_of(n))) for n in (["edge"], ["wsm"])]
    assert [(w.steps, w.guidance.scale, w.shift) for w in found] == [(50, 3.0, 10.0), (50, 1.0, 10.0)]
    assert found[0].grid == ("native" if grid == "karras" else grid)
    assert {name: c.control_guidance for name, c in CONTROLS.items()} == {
        "edge": 1.5,
        "blur": 1.5,
        "depth": 1.5,
        "seg": 2.0,
        "wsm": 3.0,
    }
    assert defaults_of(["seg", "wsm"]) == CONTROLS["edge"]
    assert (CONTROLS["wsm"].fps, CONTROLS["wsm"].chunk_frames, CONTROLS["seg"].chunk_frames) == (10.0, 101, 93)


# -- chunks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "size", "overlap", "expected"),
    [
        (1, 1, 1, [(0, 1)]),
        (93, 93, 1, [(0, 93)]),
        (60, 61, 1, [(0, 60)]),
        (94, 93, 1, [(0, 93), (92, 94)]),
        (185, 93, 1, [(0, 93), (92, 185)]),
        (186, 93, 1, [(0, 93), (92, 185), (184, 186)]),
        (200, 93, 5, [(0, 93), (88, 181), (176, 200)]),
        (20, 9, 0, [(0, 9), (9, 18), (18, 20)]),
    ],
)
def test_chunks_of_a_long_video(total, size, overlap, expected):
    found = Plan(total, size, overlap, 0).chunks
    assert found == expected
    assert total <= size or len(found) == 1 + math.ceil((total - size) / (size - overlap))


def test_the_last_chunk_is_filled_up_as_published():
    """Turned about without the oldest frame, until there are enough."""

    def theirs(frames: list, wanted: int) -> list:
        while len(frames) < wanted:
            more = min(len(frames) - 1, wanted - len(frames))
            if more <= 0:
                return frames + frames[-1:] * (wanted - len(frames))
            frames = frames + frames[::-1][:more]
        return frames

    for count in (1, 2, 3, 5, 9):
        for wanted in (count, count + 1, 9, 17):
            if wanted >= count:
                assert ping_pong(count, wanted) == theirs(list(range(count)), wanted), (count, wanted)
    assert ping_pong(3, 8) == [0, 1, 2, 2, 1, 1, 2, 2]


@pytest.mark.parametrize(("overlap", "eta"), [(1, 0.0), (5, 0.0), (1, 0.6), (0, 0.0)])
def test_each_chunk_begins_with_the_end_of_the_one_before(model, overlap, eta):
    pipe, control = Transfer(model), footage(20)
    options = {"steps": 2, "guidance": 1.0, "chunk_frames": 9, "solver": "euler", "eta": eta, "seed": 7}
    found = pipe({"depth": control}, "x", overlap=overlap, **options, **SIZE)
    count = len(Plan(20, 9, overlap, 0).chunks)
    assert len(found.chunks) == count > 1
    assert found.frames[0].shape == (20, *SIZE.values(), 3)
    decoded = [pipe.codec.decode(chunk.latents) for chunk in found.chunks]
    kept = pipe.codec.latent_frames(overlap) if overlap else 0
    for before, after in zip(decoded, found.chunks[1:], strict=False):
        if kept:
            given = pipe.codec.encode(before[:, :, -overlap:]).float()
            torch.testing.assert_close(after.latents[:, :, :kept], given, rtol=1e-4, atol=1e-5)
    pieces = [decoded[0], *(pixels[:, :, overlap:] for pixels in decoded[1:])]
    whole = torch.cat(pieces, dim=2)[0, :, :20].permute(1, 2, 3, 0)
    assert np.array_equal(found.frames[0], (whole * 255).round().byte().numpy())
    alone = pipe({"depth": control[:9]}, "x", **options, **SIZE)
    assert torch.equal(alone.latents[0], found.latents[0]), "the first chunk knows nothing of the others"


def test_controls_of_each_chunk_are_its_own(model, monkeypatch):
    """Frames 8 to 13 of the control, then back, in the second chunk of 9 frames of 14; edges before blur."""
    seen, pipe = [], Transfer(model)
    denoise = pipe.denoise
    monkeypatch.setattr(pipe, "denoise", lambda *a: seen.append(a[3].controls) or denoise(*a))
    blurred, edges = footage(14), footage(16, seed=3)
    options = {"chunk_frames": 9, "steps": 1, "guidance": 1.0, "control_guidance": 1.0, "seed": 0}
    found = pipe({"blur": blurred, "edge": edges}, "x", **options, **SIZE)
    assert found.settings[0]["controls"] == ["edge", "blur"]
    assert found.total == 14, "the shortest"
    for k, index in enumerate([range(9), [8, 9, 10, 11, 12, 13, 13, 12, 11]]):
        for clip, latents in zip((edges, blurred), seen[k], strict=True):
            torch.testing.assert_close(latents, latents_of(model, clip[list(index)]), rtol=1e-4, atol=1e-4)


def test_weights_are_those_of_each_control(model, monkeypatch):
    """By name, 1 where none is given; in the settings, and not in the branch without controls."""
    asked, pipe, velocity = [], Transfer(model), model.velocity
    options = {"steps": 1, "guidance": 3.0, "control_guidance": 1.5, "seed": 0, "frames": 5, **SIZE}
    monkeypatch.setattr(model, "velocity", lambda *a: asked.append(a[3].weights) or velocity(*a))
    controls = {"depth": footage(5), "edge": footage(5, seed=3)}
    found = pipe(controls, "x", weights={"depth": 3}, **options)
    assert asked == [(1.0, 3.0), (), (1.0, 3.0)]
    assert found.settings[0]["weights"] == {"edge": 1.0, "depth": 3.0}
    monkeypatch.undo()
    equal, twice = (pipe(controls, "x", weights=w, **options) for w in (None, {"edge": 2, "depth": 2}))
    assert equal.settings[0]["weights"] == {"edge": 1.0, "depth": 1.0}
    assert torch.equal(equal.latents[0], twice.latents[0]), "only ratios count"
    assert not torch.allclose(equal.latents[0], found.latents[0], atol=1e-4)
    alone = pipe({"depth": controls["depth"]}, "x", **options)
    assert "weights" not in alone.settings[0]
    one_of_two = pipe(controls, "x", weights={"edge": 0}, **options)
    torch.testing.assert_close(one_of_two.latents[0], alone.latents[0], rtol=1e-4, atol=1e-5)


def test_first_frames_of_the_video_are_given(model):
    pipe, video = Transfer(model), footage(12)
    options = {"steps": 2, "guidance": 1.0, "seed": 1, **SIZE}
    found = pipe({"edge": True}, "x", video, first_frames=5, **options)
    torch.testing.assert_close(found.latents[0][:, :, :2], latents_of(model, video[:5]), rtol=1e-4, atol=1e-4)
    free = pipe({"edge": True}, "x", video, **options)
    assert not torch.allclose(found.latents[0], free.latents[0], atol=1e-2)
    drawn = edge(transfer.shot(open_video(video, fps=30.0), (0, 12), tuple(SIZE.values())), "medium")
    same = pipe({"edge": drawn.permute(0, 2, 3, 1).numpy()}, "x", **options)
    assert torch.equal(free.latents[0], same.latents[0]), "drawn at the video's final size"


def test_following_controls_make_another_video(model):
    options = {"steps": 1, "guidance": 1.0, "seed": 1, "frames": 5, **SIZE}
    shared, apart = (Transfer(model)({"seg": footage(5)}, "x", follow=f, **options).latents[0] for f in (False, True))
    assert not torch.allclose(shared, apart, atol=1e-4)


def test_a_walk_that_is_stopped_ends_the_video(model):
    options = {"steps": 3, "guidance": 1.0, "chunk_frames": 5, "seed": 1, **SIZE}
    found = Transfer(model)({"seg": footage(12)}, "x", on_step=lambda step, x: step < 1, **options)
    assert not found.complete
    assert len(found.chunks) == 1
    assert len(found.frames[0]) == 5


def test_a_long_video_is_saved_part_after_part(model, tmp_path):
    options = {"steps": 1, "guidance": 1.0, "control_guidance": 1.0, "chunk_frames": 9, "seed": 5, **SIZE}
    write_video(tmp_path / "control.mp4", footage(18), 12.0)
    found = Transfer(model)({"edge": tmp_path / "control.mp4"}, "x", **options)
    assert max(len(part) for part in found.parts()) <= model.config.latent.frames
    found.save(tmp_path / "x.mp4")
    written = open_video(tmp_path / "x.mp4")
    assert (written.frame_count, written.fps, written.size) == (18, 12.0, tuple(SIZE.values()))
    told = found.settings[0]
    assert {name: told[name] for name in ("seed", "frames", "chunk_frames", "overlap", "control_guidance")} == {
        "seed": 5,
        "frames": 18,
        "chunk_frames": 9,
        "overlap": 1,
        "control_guidance": 1.0,
    }
    json.dumps(told)


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the shared samples are not here")
def test_the_published_sample(model):
    prompt = json.loads((SAMPLE / "prompt.json").read_text())
    found = Transfer(model)(
        {"edge": SAMPLE / "control_edge.mp4"}, prompt, frames=7, chunk_frames=5, steps=1, seed=2026, tier=256
    )
    assert found.fps == 30.0
    assert found.frames[0].shape == (7, 192, 320, 3)
    assert found.settings[0]["controls"] == ["edge"]


# -- what is drawn -----------------------------------------------------------------------------------------------------


def frames_of(height: int, width: int, frames: int = 2) -> torch.Tensor:
    return transfer.pixels_of(footage(frames, height, width))


@pytest.mark.parametrize(
    ("strength", "low", "high"),
    [("very_low", 20, 50), ("low", 50, 100), ("medium", 100, 200), ("high", 200, 300), ("very_high", 300, 400)],
)
def test_edges_are_those_of_opencv(strength, low, high):
    cv2 = pytest.importorskip("cv2", reason="needs omni[transfer]")
    frames = frames_of(41, 63)
    found = edge(frames, strength)
    for frame, drawn in zip(frames, found, strict=True):
        expected = cv2.Canny(np.ascontiguousarray(frame.permute(1, 2, 0).numpy()), low, high)
        assert np.array_equal(drawn.numpy(), np.stack([expected] * 3))
    assert found.any() == bool(found.max() == 255)


def test_stronger_edges_are_fewer():
    pytest.importorskip("cv2", reason="needs omni[transfer]")
    counts = [int(edge(frames_of(64, 96), strength).sum()) for strength in STRENGTHS]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 2 * counts[-1] > 0


@pytest.mark.parametrize(
    ("strength", "before", "after"),
    [("very_low", 1, 4), ("low", 4, 4), ("medium", 2, 10), ("high", 1, 16), ("very_high", 4, 16)],
)
def test_blur_is_that_of_opencv_and_torchvision(strength, before, after):
    cv2 = pytest.importorskip("cv2", reason="needs omni[transfer]")
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as tv

    frames = frames_of(90, 162)
    for frame, found in zip(frames, blur(frames, strength), strict=True):
        pixels = np.ascontiguousarray(frame.permute(1, 2, 0).numpy())
        pixels = cv2.resize(pixels, (162 // before, 90 // before), interpolation=cv2.INTER_AREA)
        scale = (162 // before) / 720
        diameter = {1: 7, 2: 3, 4: 3}[before]  # 30 scaled: 6.75, 3.4 and 1.7, then up to an odd number
        pixels = cv2.bilateralFilter(pixels, diameter, 150 * scale, 100 * scale)
        picture = torch.from_numpy(cv2.resize(pixels, (162, 90))).permute(2, 0, 1)
        for size in ([90 // after, 162 // after], [90, 162]):
            picture = tv.resize(picture, size, InterpolationMode.BICUBIC, antialias=True)
        assert torch.equal(found, picture)


# -- bad inputs --------------------------------------------------------------------------------------------------------

VIDEO_OF_TWELVE = footage(12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"controls": {}}, "controls are \\[\\]; one or several of edge, blur, depth, seg, wsm"),
        ({"controls": {"pose": footage(2)}}, "controls are \\['pose'\\]"),
        ({"controls": "x.mp4"}, "controls are 'x.mp4'"),
        ({"controls": {"depth": True}, "video": footage(5)}, "control depth is True"),
        ({"controls": {"edge": False}}, "control edge is False"),
        ({"controls": {"edge": None}}, "control edge is None"),
        ({"controls": {"edge": True}}, "edge is drawn from a video"),
        ({"weights": {"edge": 1.0}}, "weights are of \\['edge'\\]; they must be by name, of the controls depth"),
        ({"weights": [1.0]}, "weights are of \\[1.0\\]"),
        ({"weights": {"depth": -1}}, "the weight of depth is -1; it must be a number from 0 to 1e\\+06"),
        ({"weights": {"depth": math.nan}}, "the weight of depth is nan"),
        ({"weights": {"depth": True}}, "the weight of depth is True"),
        ({"weights": {"depth": 0}}, "the weights of depth are all 0"),
        ({"strength": "strong"}, "strength is 'strong'; it must be one of very_low"),
        ({"frames": 13}, "frames is 13; .* have 12 frames"),
        ({"frames": 0}, "frames is 0"),
        ({"frames": True}, "frames is True"),
        ({"chunk_frames": 8}, "chunk_frames is 8; this model makes 1, 5, 9"),
        ({"overlap": 2}, "overlap is 2; it must be 0, 1, 5, 9"),
        ({"overlap": 5, "chunk_frames": 5}, "overlap is 5; it must be less than the 5 frames"),
        ({"first_frames": -1}, "first_frames is -1"),
        ({"first_frames": 1}, "first_frames is 1; the video and the first chunk share 0 frames"),
        ({"first_frames": 9, "video": footage(5)}, "first_frames is 9; .* share 5 frames"),
        ({"control_guidance": -1.0}, "guidance is -1.0"),
        ({"control_interval": (0.5, 0.2)}, "interval is \\(0.5, 0.2\\)"),
        ({"prompt": ["a", "b"]}, "2 prompts were given; transfer makes one video at a time"),
        ({"height": 33}, "height is 33"),
        ({"fps": 0.0}, "fps is 0"),
        ({"fps": 1001.0}, "fps is 1001"),
        ({"steps": 0}, "0 steps"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_input_is_one_clear_error_before_anything_is_made(model, monkeypatch, options, message):
    pipe = Transfer(model)
    monkeypatch.setattr(pipe, "_run", lambda *a: pytest.fail("it was run"))
    whole = {"controls": {"depth": VIDEO_OF_TWELVE}, "prompt": "x", **SIZE} | options
    with pytest.raises(ValueError, match=message):
        pipe(**whole)


def test_a_request_of_too_many_tokens(model, monkeypatch):
    monkeypatch.setattr(transfer, "MAX_TOKENS", 2 * 2 * 2)  # two clips of two frames of two tokens
    few = {"frames": 5, "steps": 1, "seed": 0, "guidance": 1.0, **SIZE}
    assert Transfer(model)({"seg": footage(5)}, "x", **few).complete
    with pytest.raises(ValueError, match="takes 18 latent tokens with its 2 controls; the limit is 8"):
        Transfer(model)({"seg": footage(9), "depth": footage(9)}, "x", **few | {"frames": 9})


def test_opencv_may_be_missing(model, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cv2" else find(name))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match="pip install omni\\[transfer\\]"):
        Transfer(model)({"edge": True}, "x", footage(5), **SIZE)
    with pytest.raises(ValueError, match="pip install omni\\[transfer\\]"):
        edge(frames_of(8, 8))
    given = Transfer(model)({"edge": footage(1)}, "x", steps=1, seed=0, **SIZE)
    assert given.complete, "controls that are given need none"


@pytest.mark.parametrize("draw", [edge, blur])
def test_frames_that_nothing_is_drawn_from(draw):
    for wrong in (torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8), frames_of(8, 8)[:0]):
        with pytest.raises(ValueError, match="frames are"):
            draw(wrong)
    with pytest.raises(ValueError, match="strength is 'none'"):
        draw(frames_of(8, 8), "none")


def test_guidance_of_controls_has_limits():
    with pytest.raises(ValueError, match="guidance is 101"):
        Guidance(101.0)
