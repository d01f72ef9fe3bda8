"""Scores of generated pictures and videos: beside a reference, by themselves, and against their prompts.

    generated, reference    psnr, ssim, mse of clips; video_psnr, video_ssim of each frame
    generated alone         temporal_consistency, flicker
    generated, reference    motion_mask ──> spatial_iou, spatiotemporal_iou, weighted_spatial_iou ──> physics_iq
    pictures, prompts       ClipScore

A picture is (H, W, 3), a clip (T, H, W, 3), a numpy array or tensor of uint8; compared ones have one shape. SSIM is
that of Wang et al. 2004 (IEEE TIP 13(4)), flicker what VBench (Huang et al. 2023, arXiv 2311.17982) counts, the
measures of motion those of Physics-IQ (Motamed et al. 2025, arXiv 2501.09038), CLIPScore that of Hessel et al. 2021
(arXiv 2104.08718). Averages over a set are the caller's.
"""

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # pixels: SSIM's window and its standard deviation
K1, K2 = 0.01, 0.03  # of SSIM, keep its fractions finite
MOTION_THRESHOLD = 10  # grey levels of 255 that a pixel must differ from its running average
MEMORY = 0.3  # share of the newest frame in that average
SPOT = 5  # pixels: side of the smallest spot, and of the smallest hole, that a motion mask keeps
AT_ONCE = 32  # pictures, or prompts, that CLIP reads at once
CLIP_SCALE = 100.0
IOUS = ("spatial_iou", "spatiotemporal_iou", "weighted_spatial_iou")

Media = np.ndarray | Tensor


# -- beside a reference ------------------------------------------------------------------------------------------------


def mse(generated: Media, reference: Media) -> float:
    """Mean squared difference of pixels on a scale of 0 to 1, over a picture or a whole clip."""
    return float(_errors(*_pair(generated, reference)).mean())


def psnr(generated: Media, reference: Media) -> float:
    """10 log10(1 / mse) in dB, of a picture or of a whole clip; infinite for equal ones."""
    return _decibels(mse(generated, reference))


def ssim(generated: Media, reference: Media) -> float:
    """Structural similarity, at most 1: the mean over windows, colours and frames.

    (2 m m' + C1)(2 s + C2) / ((m^2 + m'^2 + C1)(v + v' + C2)) with the means m, variances v and covariance s under a
    Gaussian window of 11 x 11 pixels, C = (K 255)^2, and only windows that lie within the picture. Along a side that is
    shorter than the window, it has the largest odd size that fits.
    """
    return float(np.mean(video_ssim(generated, reference)))


def video_psnr(generated: Media, reference: Media) -> np.ndarray:
    """(T,): :func:`psnr` of each frame."""
    return np.array([_decibels(error) for error in _errors(*_pair(generated, reference))])


def video_ssim(generated: Media, reference: Media) -> np.ndarray:
    """(T,): :func:`ssim` of each frame."""
    generated, reference = _pair(generated, reference)
    return np.array([_ssim(a, b) for a, b in zip(generated, reference, strict=True)])


def _errors(generated: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(T,) of each frame. One frame at a time, since floats take eight times the room of the pixels."""
    pairs = zip(generated, reference, strict=True)
    return np.array([np.square(a.astype(np.float64) - b).mean() for a, b in pairs]) / 255**2


def _decibels(error: float) -> float:
    return -10 * math.log10(error) if error > 0 else math.inf


def _ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Of two frames (H, W, 3). In float64: variances are small differences of large squares."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    mean_a, mean_b, square_a, square_b, product = (_windowed(x) for x in (a, b, a * a, b * b, a * b))
    c1, c2 = (K1 * 255) ** 2, (K2 * 255) ** 2
    alike = (2 * mean_a * mean_b + c1) * (2 * (product - mean_a * mean_b) + c2)
    most = (mean_a**2 + mean_b**2 + c1) * (square_a - mean_a**2 + square_b - mean_b**2 + c2)
    return float((alike / most).mean())


def _windowed(frame: np.ndarray) -> np.ndarray:
    """Gaussian means (H - 10, W - 10, 3) of the windows that lie within (H, W, 3)."""
    for axis in (0, 1):
        weights = _window(frame.shape[axis])
        places, reach = frame.shape[axis] - len(weights) + 1, len(weights) // 2
        means = ndimage.correlate1d(frame, weights, axis)
        frame = means.take(range(reach, reach + places), axis)
    return frame


def _window(side: int) -> list[float]:
    """A Gaussian of sum 1, of odd length, no longer than ``side``."""
    reach = (min(WINDOW, side) - 1) // 2
    weights = [math.exp(-(x**2) / (2 * SIGMA**2)) for x in range(-reach, reach + 1)]
    return [weight / sum(weights) for weight in weights]


# -- a clip by itself --------------------------------------------------------------------------------------------------


def temporal_consistency(frames: Media, encode: Callable[[Sequence[Any]], Tensor] | None = None) -> float:
    """Mean likeness of each frame and the next, at most 1: :func:`ssim`, or the cosine of their features.

    ``encode`` gives features (T, d) of pictures (H, W, 3): :meth:`ClipScore.images`. A frozen clip scores 1, so this is
    read beside a measure of motion, or beside the same number of a real clip.
    """
    clip = _moving(frames)
    if encode is None:
        return float(np.mean(video_ssim(clip[1:], clip[:-1])))
    features = encode(list(clip))
    return float(F.cosine_similarity(features[1:], features[:-1], dim=-1).mean())


def flicker(frames: Media) -> float:
    """Mean absolute difference of each frame and the next on a scale of 0 to 1.

    VBench reports 1 minus this, on scenes that should stand still. Where things move, motion counts too: compare with
    the same number of a real clip.
    """
    clip = _moving(frames)
    return float(np.mean([np.abs(b.astype(np.float64) - a).mean() for a, b in pairwise(clip)])) / 255


# -- motion ------------------------------------------------------------------------------------------------------------


def motion_mask(frames: Media, threshold: float = MOTION_THRESHOLD) -> np.ndarray:
    """(T, H, W) bool: where each frame differs from the frames before it. The first frame's is empty.

    As Physics-IQ finds it: frames are grey and blurred; of each, the absolute difference from the running average
    a <- 0.7 a + 0.3 frame (which takes the frame in first) must exceed ``threshold`` levels of 255. Spots, and then
    holes, of less than 5 x 5 pixels vanish. The benchmark also stores its masks as compressed videos and quarters their
    sides before it compares them; that is left out.
    """
    if not 0 <= threshold < 255:
        raise ValueError(f"threshold is {threshold}; it must lie from 0 to below 255 grey levels")
    clip = _clip(frames)
    masks = np.zeros(clip.shape[:3], bool)
    average = _grey(clip[0])
    for mask, frame in zip(masks[1:], clip[1:], strict=True):
        grey = _grey(frame)
        average += MEMORY * (grey - average)
        mask[:] = _without_spots(np.abs(grey - average.round()) > threshold)
    return masks


def _grey(frame: np.ndarray) -> np.ndarray:
    """(H, W) float64 of whole levels: ITU-R 601 luma, blurred by the binomial window of 5 x 5 pixels."""
    grey = (frame @ np.array([0.299, 0.587, 0.114])).round()
    weights = np.array([1, 4, 6, 4, 1]) / 16
    for axis in (0, 1):
        grey = ndimage.correlate1d(grey, weights, axis, mode="mirror")
    return np.floor(grey + 0.5)


def _without_spots(mask: np.ndarray) -> np.ndarray:
    """Opened, then closed; what lies outside the picture decides nothing."""
    spot = np.ones((SPOT, SPOT), bool)
    mask = ndimage.binary_dilation(ndimage.binary_erosion(mask, spot, border_value=1), spot)
    return ndimage.binary_erosion(ndimage.binary_dilation(mask, spot), spot, border_value=1)


def spatial_iou(generated: np.ndarray, reference: np.ndarray, still: float | None = None) -> float:
    """Where things move: intersection over union of the pixels that move in any frame, of masks (T, H, W).

    ``still`` is what counts where neither moves. The benchmark has 1 there, which also pays clips that are frozen from
    the start; None, the default, is 0.
    """
    generated, reference = _masks(generated, reference)
    return _iou(generated.any(0), reference.any(0), _worth(still))


def spatiotemporal_iou(generated: np.ndarray, reference: np.ndarray, still: float | None = None) -> float:
    """Where and when: the mean over frames of the intersection over union of their masks (T, H, W).

    ``still`` is what a frame counts in which neither moves, 1 in the benchmark; by default such frames are left out,
    and a clip of nothing else scores 0.
    """
    pairs, worth = list(zip(*_masks(generated, reference), strict=True)), _worth(still)
    if still is None:
        pairs = [(a, b) for a, b in pairs if a.any() or b.any()]
    return float(np.mean([_iou(a, b, worth) for a, b in pairs])) if pairs else worth


def weighted_spatial_iou(generated: np.ndarray, reference: np.ndarray, still: float | None = None) -> float:
    """Where and how much: sum of min(w, w') / sum of max(w, w') over pixels, w the share of frames in which one moves.

    ``still`` as in :func:`spatial_iou`.
    """
    generated, reference = _masks(generated, reference)
    a, b, worth = generated.mean(0), reference.mean(0), _worth(still)
    most = np.maximum(a, b).sum()
    return float(np.minimum(a, b).sum() / most) if most else worth


def _iou(a: np.ndarray, b: np.ndarray, still: float) -> float:
    either = (a | b).sum()
    return float((a & b).sum() / either) if either else still


def _worth(still: float | None) -> float:
    if still is not None and not 0 <= still <= 1:
        raise ValueError(f"still is {still}; it must lie from 0 to 1")
    return float(still or 0)


def physics_iq(
    generated: Media, reference: Media, threshold: float = MOTION_THRESHOLD, still: float | None = None
) -> dict[str, float]:
    """The four measures of Physics-IQ of one clip beside what really happened.

    ``spatial_iou``, ``spatiotemporal_iou`` and ``weighted_spatial_iou`` of the clips' motion masks, and ``mse`` of
    their pixels: where, when, how much and how something moves. A frozen clip beside one that moves has IoUs of 0; with
    ``still=1`` frames and clips in which neither moves count as in the benchmark.
    """
    generated, reference = _pair(_clip(generated), _clip(reference))
    a, b = (motion_mask(clip, threshold) for clip in (generated, reference))
    found = {
        "spatial_iou": spatial_iou(a, b, still),
        "spatiotemporal_iou": spatiotemporal_iou(a, b, still),
        "weighted_spatial_iou": weighted_spatial_iou(a, b, still),
    }
    return found | {"mse": mse(generated, reference)}


def physics_iq_score(scores: Mapping[str, float], variance: Mapping[str, float]) -> float:
    """Physics-IQ, 0 to 100: how near clips come to what happened, where a second take of the same event is 100.

    100 (mean over the IoUs of iou / iou' - (mse - mse')), cut off at both ends. ``scores`` are the means of
    :func:`physics_iq` over a set, ``variance`` (the primes) those of each event's second take beside its first.
    """
    for name in IOUS:
        if not variance[name] > 0:
            raise ValueError(f"{name} of the second takes is {variance[name]}; it must be above 0 to compare with")
    nearness = sum(scores[name] / variance[name] for name in IOUS) / len(IOUS)
    return 100 * min(max(nearness - (scores["mse"] - variance["mse"]), 0.0), 1.0)


# -- prompts -----------------------------------------------------------------------------------------------------------


class ClipScore:
    """``ClipScore("ViT-B-32", "weights.safetensors").score(pictures, prompts)``: does a picture show its prompt?

    Args:
        model: a name of open_clip with ``pretrained``, its weights: a file, or a tag that open_clip downloads; or
            "local-dir:FOLDER" or "hf-hub:OWNER/NAME", which hold both; or (model, preprocess, tokenizer) as made
            already: ``preprocess`` takes a PIL picture, ``tokenizer`` a list of texts.
        device: where a model of that name goes; one made already stays where it is.

    Raises:
        ValueError: open_clip is not installed or does not know the name; there are no such weights, or they do not fit.
    """

    def __init__(
        self, model: str | tuple[Any, Callable, Callable], pretrained: str | None = None, device: Any = "cpu"
    ) -> None:
        if isinstance(model, str):
            model = _open_clip_model(model, pretrained, device)
        elif pretrained is not None:
            raise ValueError(f"pretrained is {pretrained!r}; a model that is made already has its weights")
        self.model, self.preprocess, self.tokenizer = model
        self.model.eval()

    def score(self, images: Sequence[Any], texts: Sequence[str]) -> Tensor:
        """(b,): 100 max(cos, 0) of each picture and its own text, float32 on the CPU.

        ``images`` are PIL pictures or (H, W, 3) of uint8. Hessel et al. report 2.5 max(cos, 0), which is 0.025 times
        this, and put "A photo depicts" before each text; here it stays as it is. Of a text that is longer than the
        model's context, open_clip reads the beginning.
        """
        if isinstance(texts, str) or len(images) != len(texts):
            given = "one text" if isinstance(texts, str) else f"{len(texts)} texts"
            raise ValueError(f"{len(images)} pictures and {given} were given; each picture has a text of its own")
        return clip_scores(self.images(images), self.texts(texts))

    @torch.inference_mode()
    def images(self, images: Sequence[Any]) -> Tensor:
        """(b, d) features of length 1, float32 on the CPU."""
        like = next(self.model.parameters())

        def encode(some: Sequence[Any]) -> Tensor:
            pixels = torch.stack([self.preprocess(_picture(image)) for image in some])
            return self.model.encode_image(pixels.to(like))

        return _features(encode, images, "picture")

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """(b, d) features of length 1, float32 on the CPU."""
        device = next(self.model.parameters()).device
        return _features(lambda some: self.model.encode_text(self.tokenizer(some).to(device)), list(texts), "text")


def clip_scores(images: Tensor, texts: Tensor) -> Tensor:
    """(b,): 100 max(cos, 0) of features (b, d) of length 1."""
    return CLIP_SCALE * (images * texts).sum(-1).clamp(min=0)


def _features(encode: Callable[[Sequence[Any]], Tensor], items: Sequence[Any], noun: str) -> Tensor:
    if not len(items):
        raise ValueError(f"there is no {noun} to score")
    found = [encode(items[at : at + AT_ONCE]).float().cpu() for at in range(0, len(items), AT_ONCE)]
    return F.normalize(torch.cat(found), dim=-1)


def _picture(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    return Image.fromarray(_frames(image, (3,), "a picture is (H, W, 3)")[0])


def _open_clip_model(name: str, pretrained: str | None, device: Any) -> tuple[Any, Callable, Callable]:
    if importlib.util.find_spec("open_clip") is None:
        raise ValueError("CLIP scores need the package open_clip_torch: pip install omni[clip]")
    import open_clip

    whole = name.startswith(("local-dir:", "hf-hub:"))
    if whole and pretrained is not None:
        raise ValueError(f"pretrained is {pretrained!r}; {name} has its own weights")
    if not whole and name not in open_clip.list_models():
        raise ValueError(f"open_clip knows no model {name!r}; open_clip.list_models() has its names")
    if not whole and pretrained is None:
        raise ValueError(f"pretrained is missing: the file, or the tag, of the weights of {name}")
    if not whole and not Path(pretrained).is_file() and not open_clip.get_pretrained_cfg(name, pretrained):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ValueError(f"pretrained is {pretrained!r}, neither a file nor a tag of {name}; its tags: {tags}")
    try:
        # Unlike create_model, this never goes on with random weights.
        model, preprocess = open_clip.create_model_from_pretrained(name, pretrained=pretrained, device=device)
        return model, preprocess, open_clip.get_tokenizer(name)
    except Exception as error:  # of many kinds, which the reader of a file may choose
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"open_clip cannot load {pretrained or name} as {name}: {reason}") from error


# -- checks ------------------------------------------------------------------------------------------------------------


def _frames(media: Any, dimensions: tuple[int, ...], meant: str) -> np.ndarray:
    """(T, H, W, 3), or ValueError that says what is ``meant``."""
    if not isinstance(media, (np.ndarray, Tensor)):
        raise ValueError(f"a {type(media).__name__} was given; {meant}, a numpy array or tensor of uint8")
    shape, kind = tuple(media.shape), str(media.dtype).removeprefix("torch.")
    if len(shape) not in dimensions or shape[-1] != 3 or 0 in shape or kind != "uint8":
        raise ValueError(f"an array {shape} of {kind} was given; {meant} of uint8, with no side of 0")
    frames = media.cpu().numpy() if isinstance(media, Tensor) else media
    return frames[None] if len(shape) == 3 else frames


def _clip(media: Media) -> np.ndarray:
    return _frames(media, (4,), "a clip is (T, H, W, 3)")


def _moving(media: Media) -> np.ndarray:
    clip = _clip(media)
    if len(clip) < 2:
        raise ValueError("the clip has 1 frame; a measure of how frames follow each other needs at least 2")
    return clip


def _pair(generated: Media, reference: Media) -> tuple[np.ndarray, np.ndarray]:
    """Both as (T, H, W, 3); a picture is a clip of one frame."""
    meant = "a picture is (H, W, 3), a clip (T, H, W, 3)"
    a, b = (_frames(media, (3, 4), meant) for media in (generated, reference))
    if a.shape != b.shape:
        raise ValueError(f"the generated one measures {a.shape}, the reference {b.shape}; both must agree")
    return a, b


def _masks(generated: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    for mask in (generated, reference):
        if not isinstance(mask, np.ndarray) or mask.ndim != 3 or mask.dtype != bool or not mask.size:
            found = f"{mask.shape} of {mask.dtype}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise ValueError(f"a mask is an array (T, H, W) of bool with no side of 0, not {found}")
    if generated.shape != reference.shape:
        raise ValueError(f"the masks measure {generated.shape} and {reference.shape}; both must agree")
    return generated, reference
