"""Scores of generated pictures and clips: known values, other implementations, controls, and the tasks on files."""

import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from vision_units import draw

import omni
from omni import cli
from omni import metrics_media as media
from omni.evaluation import TASKS, evaluate, table
from omni.evaluation.generated import _others
from omni.metrics_media import ClipScore, motion_mask, mse, physics_iq, physics_iq_score, psnr, spatial_iou, ssim
from omni.pipelines.images import contact_sheet, save_png
from omni.tokenizers.video_writer import write_video

IOUS = {"spatial_iou": 1.0, "spatiotemporal_iou": 1.0, "weighted_spatial_iou": 1.0}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def near(pixels: np.ndarray, seed: int = 1) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(0, 20, pixels.shape)
    return np.clip(pixels + drawn, 0, 255).astype(np.uint8)


def moving(frames: int = 8, step: int = 4, height: int = 32, width: int = 64, start: int = 4) -> np.ndarray:
    """A white square of 12 pixels that goes right on grey."""
    clip = np.full((frames, height, width, 3), 90, np.uint8)
    for t in range(frames):
        clip[t, 8:20, start + step * t : start + 12 + step * t] = 255
    return clip


# -- beside a reference ------------------------------------------------------------------------------------------------


def test_psnr_of_known_errors():
    dark, light = np.zeros((4, 6, 3), np.uint8), np.full((4, 6, 3), 255, np.uint8)
    assert psnr(dark, light) == 0
    assert mse(dark, light) == 1
    assert psnr(dark, dark + np.uint8(1)) == pytest.approx(20 * math.log10(255))
    assert psnr(light, light) == math.inf
    clips = np.stack([dark, dark]), np.stack([dark, light])
    assert mse(*clips) == 0.5
    assert media.video_psnr(*clips).tolist() == [math.inf, 0]
    assert psnr(*map(torch.from_numpy, clips)) == pytest.approx(10 * math.log10(2))


@pytest.mark.parametrize("size", [(11, 11), (12, 40), (37, 52)])
def test_psnr_and_ssim_are_those_of_scikit_image(size):
    theirs = pytest.importorskip("skimage.metrics")
    a = noise(*size, 3)
    b = near(a)
    how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": -1}
    assert ssim(b, a) == pytest.approx(theirs.structural_similarity(a, b, data_range=255, **how), abs=1e-9)
    assert psnr(b, a) == pytest.approx(theirs.peak_signal_noise_ratio(a, b, data_range=255))


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 8), (10, 13)])
def test_ssim_of_small_pictures_has_a_smaller_window(size):
    """Against the definition, window by window."""
    a, b = noise(*size, 3).astype(float), near(noise(*size, 3)).astype(float)
    rows, columns = (min(11, side - (side + 1) % 2) for side in size)
    tall, wide = (np.exp(-((np.arange(n) - n // 2) ** 2) / (2 * 1.5**2)) for n in (rows, columns))
    weights = np.outer(tall, wide)[:, :, None] / np.outer(tall, wide).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = []
    for y in range(size[0] - rows + 1):
        for x in range(size[1] - columns + 1):
            p, q = (z[y : y + rows, x : x + columns] for z in (a, b))
            m, n = ((weights * z).sum((0, 1)) for z in (p, q))
            v, w = (weights * (p - m) ** 2).sum((0, 1)), (weights * (q - n) ** 2).sum((0, 1))
            s = (weights * (p - m) * (q - n)).sum((0, 1))
            found.append((2 * m * n + c1) * (2 * s + c2) / ((m**2 + n**2 + c1) * (v + w + c2)))
    assert ssim(a.astype(np.uint8), b.astype(np.uint8)) == pytest.approx(np.mean(found), abs=1e-9)


def test_ssim_of_clips_is_that_of_their_frames():
    b = near(a := noise(3, 16, 20, 3))
    b[1] = a[1]
    each = media.video_ssim(b, a)
    assert each.tolist() == pytest.approx([ssim(p, q) for p, q in zip(b, a, strict=True)])
    assert each[1] == pytest.approx(1)
    assert ssim(b, a) == pytest.approx(each.mean())
    assert ssim(255 - a, a) < 0 < ssim(b, a) < 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: psnr(noise(4, 4, 3), noise(4, 5, 3)), r"(1, 4, 4, 3), the reference (1, 4, 5, 3)"),
        (lambda: ssim(noise(4, 4), noise(4, 4)), "an array (4, 4) of uint8"),
        (lambda: ssim(noise(4, 4, 3) / 255, noise(4, 4, 3)), "of float64"),
        (lambda: psnr(torch.zeros(2, 3, 4, 4), noise(2, 3, 4, 4)), "an array (2, 3, 4, 4) of float32"),
        (lambda: psnr([1], noise(4, 4, 3)), "a list was given"),
        (lambda: psnr(noise(0, 4, 3), noise(0, 4, 3)), "no side of 0"),
        (lambda: media.flicker(noise(1, 4, 4, 3)), "the clip has 1 frame"),
        (lambda: media.flicker(noise(4, 4, 3)), "a clip is (T, H, W, 3)"),
        (lambda: media.temporal_consistency(noise(1, 4, 4, 3)), "at least 2"),
        (lambda: motion_mask(noise(2, 4, 4, 3), 255), "threshold is 255"),
        (lambda: physics_iq(noise(2, 4, 4, 3), noise(3, 4, 4, 3)), "both must agree"),
        (lambda: physics_iq(noise(4, 4, 3), noise(4, 4, 3)), "a clip is (T, H, W, 3)"),
        (lambda: spatial_iou(noise(2, 4, 4), noise(2, 4, 4)), "of bool"),
        (lambda: media.spatiotemporal_iou(*(np.ones((n, 4, 4), bool) for n in (2, 3))), "both must agree"),
        (lambda: media.weighted_spatial_iou(*(np.ones((2, 4, 4), bool),) * 2, still=2), "still is 2"),
    ],
)
def test_what_cannot_be_measured(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


# -- a clip by itself --------------------------------------------------------------------------------------------------


def test_consistency_and_flicker():
    frozen = np.repeat(noise(1, 16, 16, 3), 4, axis=0)
    assert media.temporal_consistency(frozen) == pytest.approx(1)
    assert media.flicker(frozen) == 0
    blinking = np.zeros((4, 16, 16, 3), np.uint8)
    blinking[1::2] = 51
    assert media.flicker(blinking) == pytest.approx(0.2)
    assert media.temporal_consistency(noise(4, 16, 16, 3)) < media.temporal_consistency(moving()) < 1


def test_consistency_of_features_is_the_cosine_of_neighbours():
    def encode(frames):
        assert [frame.shape for frame in frames] == [(4, 4, 3)] * 3
        return torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 3.0]])

    assert media.temporal_consistency(noise(3, 4, 4, 3), encode) == pytest.approx(0.5)


# -- motion ------------------------------------------------------------------------------------------------------------


def test_masks_show_where_things_move():
    masks = motion_mask(moving())
    assert masks.shape == (8, 32, 64)
    assert not masks[0].any()
    assert all(mask[10:18].any() for mask in masks[1:])
    assert not masks[:, 24:].any()
    assert not masks[:3, :, 40:].any()  # it has not come there yet
    assert not motion_mask(np.repeat(moving()[:1], 5, axis=0)).any()
    speck = np.full((4, 32, 32, 3), 90, np.uint8)
    speck[2, 16, 16] = 255
    assert not motion_mask(speck).any()
    faint = np.full((3, 16, 16, 3), 90, np.uint8)
    faint[1:] = 100
    assert not motion_mask(faint).any()  # 7 levels from the average that took 3 of them in
    assert motion_mask(faint, 6)[1].all()


def test_masks_are_those_of_opencv():
    cv2 = pytest.importorskip("cv2")
    clip = near(moving(12, 3, 48, 72), 2)
    grey = [cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (5, 5), 0) for frame in clip]
    average, spot, theirs = grey[0].astype(float), np.ones((5, 5), np.uint8), [np.zeros(grey[0].shape, bool)]
    for frame in grey[1:]:
        cv2.accumulateWeighted(frame, average, 0.3)
        moved = (cv2.absdiff(frame, cv2.convertScaleAbs(average)) > 10).astype(np.uint8)
        moved = cv2.morphologyEx(cv2.morphologyEx(moved, cv2.MORPH_OPEN, spot), cv2.MORPH_CLOSE, spot)
        theirs.append(moved > 0)
    # They work in whole numbers, so that a level may be one off.
    assert media.spatiotemporal_iou(motion_mask(clip), np.stack(theirs)) > 0.97


def test_ious_of_small_masks():
    a, b = (np.zeros((2, 1, 4), bool) for _ in range(2))
    a[0, 0, :2] = True  # pixels 0 and 1 move in the first frame
    b[0, 0, 1:3] = True  # 1 and 2 in the first, 1 in the second too
    b[1, 0, 1] = True
    assert spatial_iou(a, b) == pytest.approx(1 / 3)
    assert media.spatiotemporal_iou(a, b) == pytest.approx((1 / 3 + 0) / 2)
    assert media.weighted_spatial_iou(a, b) == pytest.approx(0.5 / (0.5 + 1 + 0.5))
    c = np.concatenate([a, np.zeros((2, 1, 4), bool)]), np.concatenate([b, np.zeros((2, 1, 4), bool)])
    assert media.spatiotemporal_iou(*c) == pytest.approx(1 / 6)  # nothing moves at the end: left out ...
    assert media.spatiotemporal_iou(*c, still=1) == pytest.approx(
        (1 / 6 + 1) / 2
    )  # ... or a match, as in the benchmark


def test_measures_of_physics_iq():
    real = moving()
    assert physics_iq(real, real) == {**IOUS, "mse": 0}
    late = physics_iq(moving(start=0), real)
    assert 0 < late["spatiotemporal_iou"] < late["spatial_iou"] < 1
    elsewhere = physics_iq(real[:, ::-1], real)
    assert elsewhere["spatial_iou"] < late["spatial_iou"]
    assert elsewhere["spatiotemporal_iou"] < late["spatiotemporal_iou"]
    assert 0 < late["mse"] < physics_iq(255 - real, real)["mse"]


def test_frozen_clips_score_nothing_unless_the_rule_of_the_benchmark_is_asked_for():
    real = moving()
    frozen = np.repeat(real[:1], len(real), axis=0)
    none = dict.fromkeys(IOUS, 0.0)
    found = physics_iq(frozen, real)
    assert found.pop("mse") > 0
    assert found == none
    assert physics_iq(frozen, frozen) == {**none, "mse": 0}
    assert physics_iq(frozen, frozen, still=1) == {**IOUS, "mse": 0}
    assert physics_iq(frozen, real, still=1)["spatiotemporal_iou"] == 1 / len(real)  # the first frame


def test_score_of_physics_iq():
    variance = {"spatial_iou": 0.8, "spatiotemporal_iou": 0.5, "weighted_spatial_iou": 0.4, "mse": 0.02}
    scores = {"spatial_iou": 0.4, "spatiotemporal_iou": 0.25, "weighted_spatial_iou": 0.1, "mse": 0.05}
    assert physics_iq_score(variance, variance) == 100
    assert physics_iq_score(scores, variance) == pytest.approx(100 * ((0.5 + 0.5 + 0.25) / 3 - 0.03))
    assert physics_iq_score({**scores, "mse": 0.9}, variance) == 0
    with pytest.raises(ValueError, match="spatial_iou of the second takes is 0"):
        physics_iq_score(scores, {**variance, "spatial_iou": 0})


# -- prompts -----------------------------------------------------------------------------------------------------------

NAME = "tiny-score"
PROMPTS = ["a red square", "two blue circles on a hill"]


@pytest.fixture(scope="module", name="clip")
def _clip(tmp_path_factory):
    """A random CLIP with the real vocabulary, known to open_clip by name, and its weights in a file."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("clip")
    sizes = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 24, "layers": 2, "width": 16, "head_width": 8, "patch_size": 4},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / f"{NAME}.json").write_text(json.dumps(sizes))
    open_clip.add_model_config(folder)
    model, _, preprocess = open_clip.create_model_and_transforms(NAME)
    draw(model, 1)
    weights = folder / "weights.pt"
    torch.save(model.state_dict(), weights)
    return model.eval(), preprocess, open_clip.get_tokenizer(NAME), str(weights)


@torch.no_grad()
def test_clip_scores_are_cosines_of_open_clip(clip, monkeypatch):
    model, preprocess, tokenizer, weights = clip
    monkeypatch.setattr(media, "AT_ONCE", 2)  # the last batch is smaller
    pictures = [Image.fromarray(noise(30, 40, 3, seed=n)) for n in range(4)] + [Image.new("RGB", (24, 24), "red")]
    texts = [PROMPTS[n % 2] for n in range(5)]
    image = model.encode_image(torch.stack([preprocess(p) for p in pictures]))
    cosines = torch.cosine_similarity(image, model.encode_text(tokenizer(texts)))
    for scorer in (ClipScore((model, preprocess, tokenizer)), ClipScore(NAME, weights)):
        scores = scorer.score(pictures, texts)
        assert scores.shape == (5,)
        assert torch.allclose(scores, 100 * cosines.clamp(min=0), atol=1e-3)
    assert (cosines < 0).any()  # so that the lower end is tried
    assert (cosines > 0).any()
    arrays = scorer.score([np.asarray(p) for p in pictures], texts)
    assert torch.equal(arrays, scores)
    clips = np.stack([np.asarray(p) for p in pictures[:3]])
    neighbours = torch.cosine_similarity(image[1:3], image[:2]).mean()
    assert media.temporal_consistency(clips, scorer.images) == pytest.approx(float(neighbours), abs=1e-5)


def test_clip_models_that_cannot_be_had(clip, tmp_path, monkeypatch):
    *made, weights = clip
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no weights")
    other = tmp_path / "other.pt"
    torch.save({"visual.proj": torch.zeros(3)}, other)
    for arguments, message in (
        (("tiny-scores", weights), "knows no model 'tiny-scores'"),
        ((NAME,), "pretrained is missing"),
        ((NAME, "no-such-tag"), "neither a file nor a tag"),
        ((NAME, str(broken)), f"cannot load {broken}"),
        ((NAME, str(other)), f"cannot load {other}"),
        (("local-dir:x", weights), "has its own weights"),
        (("local-dir:no/such/folder",), "cannot load local-dir:no/such/folder"),
        ((tuple(made), weights), "has its weights"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            ClipScore(*arguments)
        assert "\n" not in str(error.value)
    scorer, picture = ClipScore(tuple(made)), noise(8, 8, 3)
    for images, texts, message in (
        ([picture], [], "1 pictures and 0 texts"),
        ([picture], "red", "and one text"),
        ([], [], "there is no picture"),
        ([noise(8, 8)], ["red"], "a picture is (H, W, 3)"),
        (["x.png"], ["red"], "a str was given"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            scorer.score(images, texts)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=re.escape("pip install omni[clip]")):
        ClipScore(NAME, weights)


# -- tasks on files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_model(monkeypatch):
    def load(*arguments, **options):
        raise AssertionError("no model is needed")

    monkeypatch.setattr(omni, "load", load)


@pytest.fixture
def videos(tmp_path):
    """real.mp4, the same moved, of another size, half the rate and half as long."""
    clips = {"real": (moving(), 8), "late": (moving(start=0), 8), "half": (moving()[::2], 4), "short": (moving(4), 8)}
    clips["large"] = (moving(height=64, width=96), 8)
    for name, (clip, fps) in clips.items():
        write_video(tmp_path / f"{name}.mp4", clip, fps, quality=0)
    return tmp_path


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_compare_measures_one_pair(videos, no_model, capsys):
    files = f"reference={videos / 'real.mp4'}", f"generated={videos / 'late.mp4'}"
    code, out, _ = run(capsys, "eval", "compare", *files, "--json", "--out", videos / "report.json")
    assert code == 0
    report = json.loads(out)
    assert json.loads((videos / "report.json").read_text()) == report
    metrics, (sample,) = report["metrics"], report["samples"]
    assert 0 < metrics["spatiotemporal_iou"] < metrics["spatial_iou"] < 1
    assert 10 < metrics["psnr"] < 40
    assert len(sample["frames"]["ssim"]) == 8
    assert np.mean(sample["frames"]["ssim"]) == pytest.approx(metrics["ssim"])
    assert set(metrics["groups"]) == {"generated", "reference", "frozen"}
    assert "seed" not in report["settings"]
    code, out, _ = run(capsys, "eval", "compare", *files)
    assert code == 0
    for piece in ("compare: 1 cases (files)", "weighted spatial iou", "temporal consistency", "frozen"):
        assert piece in out


def test_compare_of_equal_clips_and_of_a_frozen_one(videos):
    real = str(videos / "real.mp4")
    metrics = evaluate("compare", reference=real, generated=real).metrics
    assert metrics["psnr"] is None  # infinite
    assert {name: metrics[name] for name in IOUS} == IOUS
    assert metrics["ssim"] == pytest.approx(1)
    assert metrics["groups"]["frozen"]["ssim"] < 0.99
    write_video(videos / "frozen.mp4", np.repeat(moving()[:1], 8, axis=0), 8, quality=0)
    report = evaluate("compare", reference=real, generated=str(videos / "frozen.mp4"))
    assert [report.metrics[name] for name in IOUS] == [0, 0, 0]
    assert report.metrics["flicker"] == 0 < report.metrics["groups"]["reference"]["flicker"]
    assert report.metrics["psnr"] == pytest.approx(report.metrics["groups"]["frozen"]["psnr"], abs=0.1)
    assert "-" in table(report)


def test_compare_at_the_same_moments_in_the_same_size_and_of_the_first_frames(videos):
    def measured(generated, **options):
        files = {"reference": str(videos / "real.mp4"), "generated": str(videos / f"{generated}.mp4")}
        (sample,) = evaluate("compare", **files, **options).samples
        return sample

    half = measured("half", fps=4)
    assert len(half["frames"]["psnr"]) == 4
    assert half["generated"]["ssim"] > 0.99  # every second frame is the same
    assert len(measured("half", fps=4, frames=3)["frames"]["psnr"]) == 3
    assert measured("large", height=16, width=32)["size"] == [16, 32]
    short = measured("short", frames=4)
    assert short["generated"]["ssim"] > 0.99


def test_compare_takes_folders(videos, tmp_path):
    made, real = tmp_path / "made", tmp_path / "real"
    for folder in (made, real):
        folder.mkdir()
        for name in ("a.mp4", "b.mp4"):
            write_video(folder / name, moving(start=0 if (folder.name, name) == ("made", "b.mp4") else 4), 8, quality=0)
    report = evaluate("compare", reference=str(real), generated=str(made))
    assert [s["generated"]["spatial_iou"] == 1 for s in report.samples] == [True, False]
    both = [s["generated"]["ssim"] for s in report.samples]
    assert report.metrics["ssim"] == pytest.approx(np.mean(both))
    assert len(evaluate("compare", count=1, reference=str(real), generated=str(made)).samples) == 1
    (real / "b.mp4").unlink()
    with pytest.raises(ValueError, match=r"there is no file .*b\.mp4"):
        evaluate("compare", reference=str(real), generated=str(made))


@torch.no_grad()
def test_compare_with_clip(videos, clip):
    files = {"reference": str(videos / "real.mp4"), "generated": str(videos / "late.mp4")}
    metrics = evaluate("compare", **files, clip=NAME, pretrained=clip[-1], device="cpu").metrics
    assert -1 <= metrics["clip_consistency"] <= 1
    assert "clip_consistency" in metrics["groups"]["reference"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["generated=late.mp4"], 2, "reference must be given"),
        (["reference=real.mp4", "generated=late.mp4", "speed=2"], 2, "'speed' is no option"),
        (["reference=real.mp4", "generated=late.mp4", "frames=many"], 2, "frames is 'many'"),
        (["reference=real.mp4", "generated=no.mp4"], 1, "no.mp4 does not exist"),
        (["reference=real.mp4", "generated=text.mp4"], 1, "text.mp4 is not a video"),
        (["reference=real.mp4", "generated=."], 1, "is a folder and one is not"),
        (["reference=real.mp4", "generated=large.mp4"], 1, "give a height and width for both"),
        (["reference=real.mp4", "generated=large.mp4", "height=9"], 1, "give height and width, or neither"),
        (["reference=real.mp4", "generated=half.mp4"], 1, "give fps to compare them"),
        (["reference=real.mp4", "generated=short.mp4"], 1, "give frames to compare"),
        (["reference=real.mp4", "generated=short.mp4", "frames=6"], 1, "have 4 frames to compare; 6 were asked for"),
        (["reference=real.mp4", "generated=late.mp4", "frames=0"], 1, "frames is 0"),
        (["reference=real.mp4", "generated=late.mp4", "fps=0"], 1, "fps is 0"),
        (["reference=real.mp4", "generated=late.mp4", "fps=1"], 1, "have 1 frames to compare; at least 2"),
        (["reference=real.mp4", "generated=late.mp4", "pretrained=x"], 1, "clip, the model that it is of"),
    ],
)
def test_clips_that_cannot_be_compared(videos, no_model, capsys, monkeypatch, options, code, message):
    monkeypatch.chdir(videos)
    (videos / "text.mp4").write_text("no video")
    found, out, said = run(capsys, "eval", "compare", *options)
    assert (found, out) == (code, "")
    assert message in said
    assert said.count("\n") == 1


@pytest.fixture
def drawn(tmp_path):
    """Pictures as `omni draw` writes them: three of one prompt and a sheet, one of another prompt."""
    folder = tmp_path / "drawn"
    folder.mkdir()
    pictures = [Image.fromarray(noise(24, 24, 3, seed=n)) for n in range(4)]
    for n, picture in enumerate(pictures):
        prompt = PROMPTS[n == 3]
        save_png(picture, folder / f"x-{n}.png", {"prompt": prompt, "seed": n, "height": 24, "width": 24})
    save_png(contact_sheet(pictures[:3]), folder / "x.png", {"prompt": PROMPTS[0], "model": "tiny"})
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_clip_scores_of_drawn_pictures(drawn, clip, no_model, capsys):
    *made, weights = clip
    options = f"pictures={drawn}", f"clip={NAME}", f"pretrained={weights}"
    code, out, _ = run(capsys, "eval", "clip", *options, "--json", "--device", "cpu")
    assert code == 0
    report = json.loads(out)
    pictures = [Image.open(drawn / f"x-{n}.png") for n in range(4)]
    scorer, own = ClipScore(tuple(made)), [PROMPTS[0]] * 3 + [PROMPTS[1]]
    right, wrong = scorer.score(pictures, own), scorer.score(pictures, [PROMPTS[p == PROMPTS[0]] for p in own])
    samples = report["samples"]
    assert [s["prompt"] for s in samples] == own  # the sheet is left out
    assert [s["clip_score"] for s in samples] == pytest.approx(right.tolist(), abs=1e-4)
    assert [s["shuffled_clip_score"] for s in samples] == pytest.approx(wrong.tolist(), abs=1e-4)
    assert report["metrics"]["clip_score"] == pytest.approx(float(right.mean()), abs=1e-4)
    one = evaluate("clip", count=1, pictures=str(drawn), clip=NAME, pretrained=weights, device="cpu")
    assert one.metrics["cases"] == 1
    assert one.metrics["shuffled_clip_score"] is None  # there is no other prompt


def test_other_prompts_are_the_next_that_differ():
    assert _others(["a", "a", "b", "a", "c"]) == ["b", "b", "a", "c", "a"]
    assert _others(["a", "b", "b"]) == ["b", "a", "a"]
    assert _others(["a", "a"]) == [None, None]


def test_pictures_that_cannot_be_scored(drawn, clip, no_model, capsys, tmp_path):
    weights = clip[-1]

    def refused(pictures, code, message, **options):
        given = {"pictures": pictures, "clip": NAME, "pretrained": weights} | options
        found, out, err = run(capsys, "eval", "clip", *(f"{k}={v}" for k, v in given.items() if v is not None))
        assert (found, out, err.count("\n")) == (code, "", 1)
        assert message in err

    refused(drawn, 2, "clip must be given", clip=None)
    refused(drawn, 1, "pretrained is missing", pretrained=None)
    refused(tmp_path / "nowhere", 1, "does not exist")
    refused(tmp_path, 1, "holds no .png pictures")
    refused(drawn / "x.png", 1, "only sheets")
    Image.new("RGB", (8, 8)).save(drawn / "y.png")
    refused(drawn, 1, "y.png holds no prompt in words")
    Image.new("RGB", (8, 8)).save(drawn / "y.png", "JPEG")
    refused(drawn, 1, "y.png is no PNG picture")
    (drawn / "y.png").write_bytes(b"\x89PNG nothing")
    refused(drawn, 1, "y.png")


def test_tasks_on_files_take_no_model_and_others_need_one(videos):
    assert {name for name, task in TASKS.items() if not task.needs_model} == {"compare", "clip"}
    real = str(videos / "real.mp4")
    with pytest.raises(ValueError, match="measures files, and no model"):
        evaluate("compare", "tiny", reference=real, generated=real)
    with pytest.raises(ValueError, match="measures a model; give one"):
        evaluate("draw")
