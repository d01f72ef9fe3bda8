"""Pictures and clips that lie in files, whoever made them: beside what they should be, and against their prompts.

    reference, generated ──> pairs of clips, all checked ──> the same frames of both ──> omni.metrics_media
    pictures of `omni draw` ──> the prompts they hold ──> CLIP ──> score of each with its own and with another's prompt

No model is loaded but CLIP, and that only where it is asked for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omni import metrics_media as media
from omni.evaluation.report import mean, progress
from omni.families import pick_device
from omni.pipelines.images import read_settings
from omni.tokenizers.image import open_image
from omni.tokenizers.video import Video, open_video

SAME_RATE = 0.01  # relative difference up to which two frame rates are one
ALONE = ("temporal_consistency", "flicker", "clip_consistency")
BESIDE = ("psnr", "ssim", "mse", *media.IOUS)


# -- clips -------------------------------------------------------------------------------------------------------------


def compare(
    model: None,
    count: int,
    seed: int,
    reference: str,
    generated: str,
    frames: int | None = None,
    fps: float | None = None,
    height: int | None = None,
    width: int | None = None,
    threshold: float = media.MOTION_THRESHOLD,
    still: float | None = None,
    clip: str | None = None,
    pretrained: str | None = None,
    device: str = "auto",
) -> tuple[dict[str, Any], list[dict]]:
    """A generated video beside a real one; or the first ``count`` of a folder, each beside the one of the same name.

    ``frames`` takes only the first frames of both; ``fps`` compares them at that many moments a second, as long as both
    last, instead of frame by frame; ``height`` and ``width`` (pixels) bring both to one size. ``threshold`` and
    ``still`` are those of :func:`omni.metrics_media.physics_iq`. ``clip`` (an open_clip model) with ``pretrained`` adds
    how alike the features of neighbouring frames are.

    PSNR is that of a whole clip's mean squared error, None if both are equal. The reference's own consistency and
    flicker are what a real clip has; its first frame, frozen, is the control. ValueError names the file.
    """
    if frames is not None and frames < 2:
        raise ValueError(f"frames is {frames}; it must be at least 2")
    pairs = [_pair(a, b, frames, fps, _size(height, width)) for a, b in _paths(reference, generated)[:count]]
    if clip is None and pretrained is not None:
        raise ValueError(f"pretrained is {pretrained!r}, but clip, the model that it is of, is missing")
    encode = None if clip is None else media.ClipScore(clip, pretrained, pick_device(device)).images
    samples = []
    with progress("comparing", len(pairs)) as advance:
        for pair in pairs:
            samples.append(pair.measured(threshold, still, encode))
            advance()
    whose = ("generated", "reference", "frozen")
    groups = {name: _means([sample[name] for sample in samples]) for name in whose}
    table = {
        name: {k: v for k, v in scores.items() if k not in (*media.IOUS, "mse")} for name, scores in groups.items()
    }
    return {"cases": len(samples), **groups["generated"], "groups": table}, samples


@dataclass(frozen=True)
class _Pair:
    """Two opened videos and the frames of them that are compared."""

    paths: tuple[Path, Path]  # generated, reference
    videos: tuple[Video, Video]
    indices: tuple[Sequence[int], Sequence[int]]
    size: tuple[int, int]

    def measured(self, threshold: float, still: float | None, encode: Any) -> dict[str, Any]:
        generated, reference = (
            video.read(indices, self.size) for video, indices in zip(self.videos, self.indices, strict=True)
        )
        moved = media.physics_iq(generated, reference, threshold, still)
        likeness = media.video_ssim(generated, reference)
        beside = {"psnr": _finite(media.psnr(generated, reference)), "ssim": float(likeness.mean())}
        frozen = np.broadcast_to(reference[:1], reference.shape)
        control = {"psnr": _finite(media.psnr(frozen, reference)), "ssim": media.ssim(frozen, reference)}
        noise = [_finite(value) for value in media.video_psnr(generated, reference)]
        return {
            "files": [str(path) for path in self.paths],
            "size": list(self.size),
            "generated": beside | moved | _alone(generated, encode),
            "reference": _alone(reference, encode),
            "frozen": control,
            "frames": {"psnr": noise, "ssim": likeness.tolist()},
        }


def _alone(clip: np.ndarray, encode: Any) -> dict[str, float]:
    found = {"temporal_consistency": media.temporal_consistency(clip), "flicker": media.flicker(clip)}
    return found | ({"clip_consistency": media.temporal_consistency(clip, encode)} if encode else {})


def _finite(value: float) -> float | None:
    """None for the PSNR of equal pictures, which JSON cannot hold."""
    return float(value) if math.isfinite(value) else None


def _means(scores: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    names = [name for name in (*BESIDE, *ALONE) if name in scores[0]]
    return {name: mean(s[name] for s in scores if s[name] is not None) for name in names}


def _paths(reference: str, generated: str) -> list[tuple[Path, Path]]:
    """(generated, reference) of two files, or of the files of two folders that have one name."""
    made, real = Path(generated), Path(reference)
    for path in (made, real):
        if not path.exists():
            raise ValueError(f"{path} does not exist")
    if made.is_dir() != real.is_dir():
        raise ValueError(f"one of {made} and {real} is a folder and one is not; give two videos, or two folders")
    if not made.is_dir():
        return [(made, real)]
    files = sorted(file for file in made.iterdir() if file.is_file() and not file.name.startswith("."))
    if not files:
        raise ValueError(f"{made} holds no files")
    for file in files:
        if not (real / file.name).is_file():
            raise ValueError(f"there is no file {real / file.name} to compare {file} with")
    return [(file, real / file.name) for file in files]


def _size(height: int | None, width: int | None) -> tuple[int, int] | None:
    if (height is None) != (width is None):
        raise ValueError("give height and width, or neither")
    return None if height is None else (height, width)


def _pair(
    generated: Path, reference: Path, frames: int | None, fps: float | None, size: tuple[int, int] | None
) -> _Pair:
    made, real = open_video(generated), open_video(reference)
    if size is None and made.size != real.size:
        (h, w), (height, width) = made.size, real.size
        raise ValueError(
            f"{generated} measures {w} x {h} pixels, {reference} {width} x {height}; give a height and width for both"
        )
    indices = _moments(made, real, fps) if fps is not None else _all_frames(made, real, frames)
    if frames is not None:
        indices = tuple(some[:frames] for some in indices)
    if len(indices[0]) < (frames or 2):
        wanted = "at least 2 are needed" if frames is None else f"{frames} were asked for"
        raise ValueError(f"{generated} and {reference} have {len(indices[0])} frames to compare; {wanted}")
    return _Pair((generated, reference), (made, real), indices, size or tuple(real.size))


def _all_frames(made: Video, real: Video, frames: int | None) -> tuple[range, range]:
    if abs(made.fps / real.fps - 1) > SAME_RATE:
        raise ValueError(
            f"{made.name} has {made.fps:.4g} frames a second, {real.name} {real.fps:.4g}; "
            "give fps to compare them at the same moments"
        )
    if frames is None and made.frame_count != real.frame_count:
        raise ValueError(
            f"{made.name} has {made.frame_count} frames, {real.name} {real.frame_count}; "
            "give frames to compare only the first ones"
        )
    shared = range(min(made.frame_count, real.frame_count))
    return shared, shared


def _moments(made: Video, real: Video, fps: float) -> tuple[list[int], list[int]]:
    """The frames that are shown at each 1 / fps of a second, from the first frame of each and as long as both last."""
    if not 0 < fps <= 1000:
        raise ValueError(f"fps is {fps}; it must lie above 0 and at most at 1000")
    seconds = min(float(video.times[-1] - video.times[0]) + 1 / video.fps for video in (made, real))
    moments = np.arange(int(seconds * fps + 1e-6)) / fps + 1e-6  # float dust must not cost a frame
    shown = (np.searchsorted(video.times - video.times[0], moments, "right") - 1 for video in (made, real))
    made_at, real_at = (indices.tolist() for indices in shown)
    return made_at, real_at


# -- pictures and prompts ----------------------------------------------------------------------------------------------


def clip_score(
    model: None,
    count: int,
    seed: int,
    pictures: str,
    clip: str,
    pretrained: str | None = None,
    device: str = "auto",
) -> tuple[dict[str, Any], list[dict]]:
    """CLIPScore of the first ``count`` PNG pictures of a folder, or of one, with the prompts that `omni draw` wrote in.

    ``clip`` and ``pretrained`` as in :class:`omni.metrics_media.ClipScore`. The control scores each picture with the
    next prompt that is another. Sheets that show several pictures at once are left out. ValueError names the file.
    """
    files = _pictures(Path(pictures))
    drawn = [(file, prompt) for file in files if (prompt := _prompt(file)) is not None][:count]
    if not drawn:
        raise ValueError(f"{pictures} holds only sheets of several pictures; there is none to score")
    prompts = [prompt for _, prompt in drawn]
    others = _others(prompts)
    places = {text: place for place, text in enumerate(dict.fromkeys(prompts))}
    scorer = media.ClipScore(clip, pretrained, pick_device(device))
    read = scorer.texts(list(places))
    samples = []
    with progress("scoring", len(drawn)) as advance:
        for start in range(0, len(drawn), media.AT_ONCE):
            some = slice(start, start + media.AT_ONCE)
            seen = scorer.images([open_image(file) for file, _ in drawn[some]])
            own, shuffled = (
                media.clip_scores(seen, read[[places[text] for text in texts[some]]]).tolist()
                for texts in (prompts, [other or own for own, other in zip(prompts, others, strict=True)])
            )
            for (file, prompt), other, a, b in zip(drawn[some], others[some], own, shuffled, strict=True):
                scores = {"clip_score": a, "shuffled_clip_score": None if other is None else b}
                samples.append({"file": str(file), "prompt": prompt, "other": other, **scores})
            advance(len(seen))
    columns = ("clip_score", "shuffled_clip_score")
    means = {name: mean(s[name] for s in samples if s[name] is not None) for name in columns}
    return {"cases": len(samples), **means}, samples


def _pictures(path: Path) -> list[Path]:
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".png" and file.is_file())
    if not files:
        raise ValueError(f"{path} holds no .png pictures")
    return files


def _prompt(file: Path) -> str | None:
    """What the picture was drawn from; None for a sheet, whose settings say no size."""
    open_image(file)  # checks its limits, and that it is whole
    try:
        settings = read_settings(file)
    except (OSError, ValueError):
        raise ValueError(f"{file} is no PNG picture with settings that can be read") from None
    prompt = settings.get("prompt") if isinstance(settings, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{file} holds no prompt in words; pictures that `omni draw` writes do")
    return prompt if "height" in settings else None


def _others(prompts: Sequence[str]) -> list[str | None]:
    """For each prompt the next one, going round, that is not the same; None where all are."""
    if len(set(prompts)) == 1:
        return [None] * len(prompts)
    found, following = [], next(prompt for prompt in prompts if prompt != prompts[-1])
    for prompt, behind in zip(reversed(prompts), (prompts[0], *reversed(prompts[1:])), strict=True):
        following = behind if behind != prompt else following
        found.append(following)
    return found[::-1]
