"""Which frames of a video are looked at, and the text that announces each of them.

times (frame_count,), seconds ──> plan_frames, plan_uniform ──> indices ──> frame_labels, second_labels ──> texts
"""

from collections.abc import Sequence

import numpy as np

# -- which frames ------------------------------------------------------------------------------------------


def plan_frames(
    times: Sequence[float],
    fps: float = 2.0,
    most: int = 128,
    multiple: int = 1,
    start: float | None = None,
    stop: float | None = None,
) -> list[int]:
    """Indices of the frames to look at between ``start`` and ``stop`` seconds: about ``fps``, at most ``most``.

    The published rule of 2 frames a second and at most 128, spread evenly over anything longer, counted as in
    NeMo-RL: int(seconds * fps) frames, no more than there are; down to a ``multiple``, but at least one multiple;
    at evenly spaced moments from the first frame to the last, of each moment the nearest frame (of two equally near
    ones the even). Where fewer frames than ``multiple`` exist, the last ones repeat.
    """
    times = np.asarray(times, np.float64)
    if not (fps > 0 and 1 <= multiple <= most):
        raise ValueError(f"fps {fps}, most {most} and multiple {multiple}: fps must be above 0, most at least multiple")
    if times.ndim != 1 or not len(times) or (np.diff(times) < 0).any():
        raise ValueError("times must be a list of at least one moment, in ascending order")
    first, last = _window(times, start, stop)
    shown = times[first : last + 1]
    interval = (times[-1] - times[0]) / max(len(times) - 1, 1)
    end = times[last + 1] if last + 1 < len(times) else times[-1] + interval
    wanted = int((end - shown[0]) * fps + 1e-6)  # float dust must not cost a frame
    count = min(max(wanted, 1), most, len(shown))
    count = max(count // multiple, 1) * multiple
    if count > len(shown):
        return [first + min(i, len(shown) - 1) for i in range(count)]
    return [first + index for index in _nearest(shown, np.linspace(shown[0], shown[-1], count))]


def uniform_indices(frames: int, count: int, ends: bool = True) -> list[int]:
    """``count`` of ``frames`` indices, evenly: first to last if ``ends``, else the first of each of equal parts."""
    if min(count, frames) < 1:
        raise ValueError(f"{count} of {frames} frames; both must be at least 1")
    if ends:
        return np.linspace(0, frames - 1, count).round().astype(int).tolist()
    if count > frames:
        raise ValueError(f"{count} of {frames} frames; there are not so many")
    return [i * frames // count for i in range(count)]


def sample_count(frames: int, video_fps: float, fps: float = 2.0, least: int = 4, most: int = 768) -> int:
    """How many frames the Qwen3-VL and Cosmos 3 rule takes, for :func:`uniform_indices`."""
    if frames < 1 or not (video_fps > 0 and fps > 0):
        raise ValueError(f"{frames} frames at {video_fps} fps sampled at {fps} fps; all must be above 0")
    return min(max(int(frames / video_fps * fps), least), most, frames)


def plan_uniform(
    times: Sequence[float],
    video_fps: float,
    fps: float = 2.0,
    least: int = 4,
    most: int = 768,
    start: float | None = None,
    stop: float | None = None,
) -> list[int]:
    """Indices of the frames to look at between ``start`` and ``stop`` seconds by the Qwen3-VL and Cosmos 3 rule."""
    first, last = _window(np.asarray(times, np.float64), start, stop)
    shown = last - first + 1
    return [first + i for i in uniform_indices(shown, sample_count(shown, video_fps, fps, least, most))]


# -- how frames are announced ------------------------------------------------------------------------------


def frame_labels(times: Sequence[float], group: int = 1) -> list[str]:
    """The text before each group of frames: ``Frame 1 sampled at 0.00 seconds and frame 2 sampled at 0.50 seconds: ``

    V2 VL has groups of 1, Omni of 2; labels with their pictures are joined by newlines. Frames that repeat the last
    to fill a group are not named.
    """
    times = list(times)
    filled = len(times)
    while filled % group != 1 % group and filled > 1 and times[filled - 1] == times[filled - 2]:
        filled -= 1
    named = [f"rame {i + 1} sampled at {t:.2f} seconds" for i, t in enumerate(times[:filled])]
    return ["F" + " and f".join(named[i : i + group]) + ": " for i in range(0, filled, group)]


def millisecond_times(indices: Sequence[int], fps: float) -> list[float]:
    """Times for :func:`frame_labels` as the published models count them: whole milliseconds a frame, rounded down.

    At 30 fps a frame lasts 33 ms, so frame 30 is labelled 0.99. ``fps`` is the file's, not that of the plan.
    """
    if not 0 < fps <= 1000:
        raise ValueError(f"fps is {fps}; it must lie above 0 and at most at 1000")
    return [index * int(1000 / fps) / 1000 for index in indices]


def second_labels(times: Sequence[float], group: int = 2) -> list[str]:
    """``<0.2 seconds>`` before each group: its first and last frame's mean time (Qwen3-VL 2, Cosmos 3 Edge 1)."""
    times = list(times)
    times += times[-1:] * (-len(times) % group)
    return [f"<{(times[i] + times[i + group - 1]) / 2:.1f} seconds>" for i in range(0, len(times), group)]


# -- helpers -----------------------------------------------------------------------------------------------


def _window(times: np.ndarray, start: float | None, stop: float | None) -> tuple[int, int]:
    """First and last index shown between ``start`` and ``stop``: a frame is shown until the next one."""
    start, stop = times[0] if start is None else start, times[-1] if stop is None else stop
    if not start <= stop or start > times[-1] + 1 or stop < times[0]:  # also refuses NaN
        raise ValueError(f"{start:g} to {stop:g} seconds: frames lie at {times[0]:g} to {times[-1]:g}")
    last = int(np.searchsorted(times, stop, "right")) - 1
    return min(int(np.searchsorted(times, start, "left")), last), last


def _nearest(times: np.ndarray, moments: np.ndarray) -> list[int]:
    right = np.searchsorted(times, moments).clip(1, max(len(times) - 1, 1))
    if len(times) == 1:
        return [0] * len(moments)
    before, after = moments - times[right - 1], times[right] - moments
    tie = np.isclose(before, after, rtol=0, atol=1e-9)
    take_left = np.where(tie, (right - 1) % 2 == 0, before < after)
    return np.where(take_left, right - 1, right).tolist()
