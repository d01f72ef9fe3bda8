"""Reading videos of every kind, the catalogue of bad ones, which frames are looked at, their labels, and writing."""

import base64
import importlib.util
import io
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from omni.tokenizers import video as reading
from omni.tokenizers.frames import (
    frame_labels,
    millisecond_times,
    plan_frames,
    sample_count,
    second_labels,
    uniform_indices,
)
from omni.tokenizers.video import VideoError, open_video
from omni.tokenizers.video_writer import write_video

av = pytest.importorskip("av")
SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "samples"
BACKENDS = [
    "pyav",
    pytest.param(
        "decord", marks=pytest.mark.skipif(not importlib.util.find_spec("decord"), reason="decord is not installed")
    ),
]


def moving(count: int, height: int = 48, width: int = 64):
    """Frames whose grey level is 5 times their number, with a red patch at the upper left."""
    for i in range(count):
        frame = np.full((height, width, 3), i * 5 % 256, np.uint8)
        frame[: height // 3, : width // 3] = 250, 10, 10
        yield frame


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers of :func:`moving`'s frames, from their grey level at the centre."""
    h, w = frames.shape[1:3]
    return [round(float(frame[h // 2 : h // 2 + 4, w // 2 : w // 2 + 4].mean()) / 5) for frame in frames]


def container(format: str = "mp4", codec: str = "libx264", stamps=range(40), turn: int = 0) -> bytes:
    """A video whose frame i is shown at ``stamps[i]`` / 25 seconds."""
    file = io.BytesIO()
    with av.open(file, "w", format=format) as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if codec == "libx264":
            stream.options = {"g": "12"}
        else:
            stream.bit_rate = 4_000_000
        stream.codec_context.time_base = Fraction(1, 25)
        if turn:
            stream.set_display_rotation(turn)
        for stamp, frame in zip(stamps, moving(len(stamps)), strict=True):
            picture = av.VideoFrame.from_ndarray(frame, "rgb24")
            picture.pts, picture.time_base = stamp, Fraction(1, 25)
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
    return file.getvalue()


@pytest.fixture(scope="module")
def plain() -> bytes:
    return container()


VARIABLE = [0, 1, 2, 10, 11, 30, 31, 33, 60, 61, 90, 95, 96, 97, 98, 120, 150, 151]

# -- good videos -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("format", "codec", "stamps"),
    [
        ("mp4", "libx264", range(40)),
        ("mp4", "libx264", VARIABLE),
        ("matroska", "libx264", VARIABLE),
        ("webm", "libvpx-vp9", range(20)),
        ("mov", "mpeg4", VARIABLE),
        ("avi", "mpeg4", range(40)),
    ],
)
def test_every_frame_is_read_at_its_own_time(backend, format, codec, stamps):
    video = open_video(container(format, codec, stamps), backend=backend)
    assert video.backend == backend
    assert video.frame_count == len(stamps)
    assert video.size == (48, 64)
    assert not video.has_sound
    assert np.allclose(video.times, np.array(stamps) / 25, atol=1e-3)
    assert video.fps == pytest.approx((len(stamps) - 1) / (stamps[-1] - stamps[0]) * 25, rel=0.1)
    assert video.seconds == pytest.approx(stamps[-1] / 25, abs=0.5)
    everything = video.read(range(len(stamps)))
    assert everything.shape == (len(stamps), 48, 64, 3)
    assert numbers(everything) == list(range(len(stamps)))
    some = [0, 13, 14, len(stamps) - 1, 3, 3]
    assert np.array_equal(video.read(some), everything[some])
    assert [frame.shape for frame in video.frames([2, 2, 9])] == [(48, 64, 3)] * 3


@pytest.mark.parametrize(("format", "codec"), [("mpegts", "libx264"), ("mpeg", "mpeg2video"), ("h264", "libx264")])
def test_streams_without_an_index_are_read_as_well(format, codec):
    video = open_video(container(format, codec))
    assert numbers(video.read([0, 5, 39, 17])) == [0, 5, 39, 17]
    assert np.allclose(np.diff(video.times), 1 / 25, atol=1e-3)


@pytest.mark.skipif(not importlib.util.find_spec("decord"), reason="decord is not installed")
@pytest.mark.parametrize("stamps", [range(40), VARIABLE], ids=["constant", "variable"])
def test_both_decoders_give_the_same_frames(stamps):
    data = container("mp4", "libx264", stamps)
    one, other = (open_video(data, backend=backend) for backend in reading.BACKENDS)
    indices = [0, 3, 11, 12, 13, len(stamps) - 1]
    assert np.abs(one.read(indices).astype(int) - other.read(indices)).max() <= 2
    assert np.allclose(one.times, other.times)


@pytest.mark.parametrize(
    ("turn", "size", "corner"),
    [(0, (48, 64), (0, 0)), (90, (64, 48), (-1, 0)), (180, (48, 64), (-1, -1)), (270, (64, 48), (0, -1))],
)
def test_rotated_videos_are_upright(turn, size, corner):
    """The red patch goes where a player shows it: counter-clockwise by the angle of the display matrix."""
    video = open_video(container(stamps=range(5), turn=turn))
    assert video.size == size
    frame = video.read([2])[0]
    assert frame.shape == (*size, 3)
    for at in [(0, 0), (0, -1), (-1, 0), (-1, -1)]:
        y, x = (3 if side == 0 else -4 for side in at)
        assert (frame[y, x, 0] > 200) == (at == corner)


@pytest.mark.skipif(not importlib.util.find_spec("decord"), reason="decord is not installed")
def test_decord_is_refused_where_it_reads_other_frames():
    assert np.array_equal(
        *(open_video(container(stamps=range(5), turn=180), backend=name).read([0, 4]) for name in reading.BACKENDS)
    )
    with pytest.raises(VideoError, match="decord reads other frames from the data than it holds"):
        open_video(container(stamps=range(5), turn=90), backend="decord")


def test_path_bytes_and_data_address_are_the_same_video(tmp_path, plain):
    path = tmp_path / "x.mp4"
    path.write_bytes(plain)
    address = "data:video/mp4;base64," + base64.b64encode(plain).decode()
    frames = [open_video(source).read([0, 20]) for source in (path, str(path), plain, address)]
    assert all(np.array_equal(frame, frames[0]) for frame in frames)
    assert open_video(path).name.endswith("x.mp4")


def test_frames_are_shrunk_as_they_are_read(plain):
    video = open_video(plain)
    small = video.read([0, 30], size=(16, 24))
    assert small.shape == (2, 16, 24, 3)
    assert numbers(small) == [0, 30]
    assert small[0, 1, 1, 0] > 240


def test_pictures_arrays_and_animations_are_videos(tmp_path):
    frames = list(moving(12))
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"f{i}.png")  # f10 comes after f9
    (tmp_path / "notes.txt").write_text("no picture")
    sources = (np.stack(frames), frames, [tmp_path / f"f{i}.png" for i in range(12)], tmp_path)
    for source in sources:
        video = open_video(source, fps=4)
        assert (video.frame_count, video.fps, video.seconds, video.size) == (12, 4.0, 3.0, (48, 64))
        assert np.array_equal(video.read([11, 0, 10]), np.stack(frames)[[11, 0, 10]])
    gif = tmp_path / "x.gif"
    images = [Image.fromarray(frame) for frame in frames[:5]]
    images[0].save(gif, save_all=True, append_images=images[1:], duration=[100, 200, 300, 100, 100])
    for source in (gif, gif.read_bytes()):
        video = open_video(source)
        assert video.times.tolist() == pytest.approx([0, 0.1, 0.3, 0.6, 0.7])
        assert video.seconds == pytest.approx(0.8)
        assert numbers(video.read([4, 1])) == [4, 1]


@pytest.mark.skipif(not SAMPLES.exists(), reason="the sample files are not here")
def test_real_files_are_read():
    clips = sorted(SAMPLES.rglob("*.mp4"))
    assert clips
    for path in clips:
        video = open_video(path)
        frames = video.read(plan_frames(video.times, most=3), size=(32, 32))
        assert frames.shape == (3, 32, 32, 3)
        assert frames.std() > 5


# -- bad videos --------------------------------------------------------------------------------------------


def only_sound() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        track = out.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        out.mux(track.encode(frame))
        out.mux(track.encode(None))
    return file.getvalue()


BAD = {
    "empty": (lambda: b"", "is empty"),
    "text": (lambda: b"hello, this is no video", "is not a video"),
    "playlist": (lambda: b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n", "is not a video"),
    "concatenation": (lambda: b"ffconcat version 1.0\nfile '/etc/hostname'\n", "is not a video"),
    "header only": (lambda: container()[:24], "is not a video"),
    "half": (lambda: container()[: len(container()) // 2], "is not a video"),
    "half of mkv": (lambda: container("matroska")[:200], "no frames|is not a video|no moving"),
    "only sound": (only_sound, "no moving pictures, only sound"),
    "broken gif": (lambda: b"GIF89a\xff\xff", "is not a video"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_video_is_one_clear_line(tmp_path, name):
    make, message = BAD[name]
    path = tmp_path / "bad.mp4"
    path.write_bytes(make())
    for source, named in ((path, "bad.mp4"), (make(), "the data")):
        with pytest.raises(VideoError, match=message) as caught:
            open_video(source)
        assert "\n" not in str(caught.value)
        assert named in str(caught.value)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("no/such/file.mp4", {}, "no/such/file.mp4 does not exist"),
        ("/dev/zero", {}, "is not a file"),
        ("a\0b", {}, "does not exist"),
        ("https://example.com/x.mp4", {}, "only local files"),
        ("concat:a.mp4|b.mp4", {}, "does not exist"),
        ("data:video/mp4;base64,!!!", {}, "not valid base64"),
        (17, {}, "a int is not a video"),
        (np.zeros((2, 4, 4, 3)), {"fps": 1}, "float64"),
        (np.zeros((2, 4, 4), np.uint8), {"fps": 1}, "is not a video"),
        (np.zeros((2, 4, 4, 3), np.uint8), {}, "give fps"),
        (np.zeros((2, 4, 4, 3), np.uint8), {"fps": 0}, "fps is 0"),
        (np.zeros((2, 4, 4, 3), np.uint8), {"fps": 1, "backend": "x"}, "backend is 'x'"),
        ([], {"fps": 1}, "0 pictures"),
        (["nothing.png"], {"fps": 1}, "nothing.png does not exist"),
    ],
)
def test_a_bad_source_is_one_clear_line(source, options, message):
    with pytest.raises(VideoError, match=message) as caught:
        open_video(source, **options)
    assert "\n" not in str(caught.value)


def test_a_file_cut_short_says_how_much_is_there(tmp_path):
    path = tmp_path / "x.mp4"
    write_video(path, moving(40), 25)  # its index stands in front
    data = path.read_bytes()
    with pytest.raises(VideoError, match=r"cut short: \d+ of its 40 frames are there"):
        open_video(data[: len(data) * 3 // 4])


def test_damaged_files_end_in_frames_or_one_clear_line(plain):
    rng = np.random.default_rng(0)
    good = [plain, container("matroska"), container("avi", "mpeg4")]
    read, refused = 0, []
    for trial in range(60):
        data = bytearray(good[trial % 3])
        if trial % 2:
            data = data[: int(rng.integers(1, len(data)))]
        else:
            data[int(rng.integers(200)) :: int(rng.integers(100, 900))] = b""
        try:
            video = open_video(bytes(data))
            video.read(plan_frames(video.times, most=4))
            read += 1
        except VideoError as error:
            refused.append(str(error))
    assert read > 5
    assert len(refused) > 5
    assert not any("\n" in message for message in refused)


def test_limits_hold_before_frames_are_decoded(monkeypatch, plain):
    with monkeypatch.context() as patch:
        patch.setattr(reading._PyAV, "fetch", lambda *a: pytest.fail("decoded before the check"))
        for module, name, value, message in [
            (reading.pictures, "MAX_PIXELS", 1000, "64 x 48 pixels"),
            (reading, "MAX_FRAMES", 39, "limit of 39"),
            (reading, "MAX_SECONDS", 1, "longer than the limit"),
        ]:
            with monkeypatch.context() as limit:
                limit.setattr(module, name, value)
                with pytest.raises(VideoError, match=message):
                    open_video(plain)
    monkeypatch.setattr(reading, "MAX_READ_BYTES", 48 * 64 * 3 * 2)
    video = open_video(plain)
    assert len(video.read([0, 1])) == 2
    with pytest.raises(VideoError, match="3 frames of 48 x 64 pixels"):
        video.read([0, 1, 2])
    assert len(list(video.frames([0, 1, 2]))) == 3
    with pytest.raises(VideoError, match="frame 40 of the data: it has frames 0 to 39"):
        video.read([40])
    with pytest.raises(VideoError, match="ascending"):
        video.frames([2, 1])
    with pytest.raises(VideoError, match="as asked for measures 5 x 0 pixels"):
        video.read([0], size=(0, 5))


def test_pictures_of_another_size_are_named():
    pictures = [np.zeros((4, 6, 3), np.uint8), np.zeros((5, 6, 3), np.uint8)]
    with pytest.raises(VideoError, match="picture 1 of the list measures 6 x 5 pixels; the first has 6 x 4"):
        open_video(pictures, fps=1).read([1])


# -- which frames ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 2, 5, 40, 300, 1931, 4000])
@pytest.mark.parametrize("rate", [10.0, 24.0, 29.97, 30.0])
@pytest.mark.parametrize("multiple", [1, 2])
def test_the_plan_is_that_of_the_reference_at_a_constant_rate(frames, rate, multiple):
    """The rule written out: int(seconds * 2) frames, at most 128, down to a multiple; index round(moment * fps)."""
    count = min(max(1, int(frames / rate * 2)), 128, frames)
    count = max(multiple, count // multiple * multiple)
    moments = np.linspace(0, (frames - 1) / rate, count) if count > 1 and frames > 1 else np.zeros(count)
    expected = [round(float(round(moment * rate, 6))) for moment in moments]
    assert plan_frames(np.arange(frames) / rate, multiple=multiple) == expected


def test_the_plan_goes_by_time_and_not_by_number():
    times = np.concatenate([np.arange(100) / 100, np.arange(1, 10)])  # a second of 100 frames, then one a second
    assert plan_frames(times, fps=1.2, most=10) == [0, *range(100, 109)]
    assert plan_frames(times, fps=1, start=4, stop=6.5) == [103, 104, 105]
    assert plan_frames(times, fps=1, start=4.2, stop=4.7) == [103]  # the frame that is shown then
    assert len(plan_frames(np.arange(3600.0), most=128)) == 128
    assert plan_frames(np.arange(3600.0), most=128)[-1] == 3599
    assert plan_frames([0.0], multiple=4) == [0, 0, 0, 0]
    assert plan_frames([0.0, 0.1, 0.2], multiple=4, most=4) == [0, 1, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"times": []}, "at least one"),
        ({"times": [1.0, 0.0]}, "ascending"),
        ({"times": [0.0], "fps": 0}, "fps 0"),
        ({"times": [0.0], "multiple": 4, "most": 3}, "multiple 4"),
        ({"times": [0.0, 1.0], "start": 5.0}, "5 to"),
        ({"times": [0.0, 1.0], "start": 1.0, "stop": 0.5}, "1 to 0.5"),
        ({"times": [0.0, 1.0], "start": float("nan")}, "nan"),
    ],
)
def test_an_impossible_plan_is_one_clear_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_frames(**arguments)


def test_uniform_indices_equal_the_references():
    pytest.importorskip("torchvision")
    from transformers.models.cosmos3_edge.video_processing_cosmos3_edge import Cosmos3EdgeVideoProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
    from transformers.video_utils import VideoMetadata, default_sample_indices_fn

    rng = np.random.default_rng(0)
    for _ in range(100):
        frames, rate = int(rng.integers(1, 5000)), float(rng.choice([5, 24, 29.97, 60]))
        seen = VideoMetadata(total_num_frames=frames, fps=rate)
        mine = uniform_indices(frames, sample_count(frames, rate))
        assert mine == Qwen3VLVideoProcessor().sample_frames(seen).tolist()
        assert mine == Cosmos3EdgeVideoProcessor().sample_frames(seen).tolist()
        count = int(rng.integers(1, frames + 1))
        assert uniform_indices(frames, count, ends=False) == default_sample_indices_fn(seen, count).tolist()
    with pytest.raises(ValueError, match="5 of 4"):
        uniform_indices(4, 5, ends=False)


# -- labels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [4.0, 29.97, 30.0])
@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_labels_equal_those_of_the_reference_processors(rate, count):
    pytest.importorskip("torchvision")
    from transformers.models.nemotron_h_omni.processing_nemotron_h_omni import NemotronH_Omni_Reasoning_V3Processor
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    indices = uniform_indices(400, count)
    seen = SimpleNamespace(fps=rate, frames_indices=indices)
    for group in (1, 2):
        marks = {"image_start_token": "<", "image_token": "x", "image_end_token": ">"}
        omni = SimpleNamespace(**marks, video_temporal_patch_dim=group)
        expected = NemotronH_Omni_Reasoning_V3Processor.replace_video_token(
            omni, {"num_tokens": [3]}, 0, num_frames=count, video_metadata=seen
        )
        labels = frame_labels(millisecond_times(indices, rate), group)
        assert "\n".join(f"{label}<xxx>" for label in labels) == expected
        padded = indices + indices[-1:] * (-count % group)
        assert frame_labels(millisecond_times(padded, rate), group) == labels
        means = Qwen3VLProcessor._calculate_timestamps(None, list(indices), rate, group)
        assert second_labels([i / rate for i in indices], group) == [f"<{mean:.1f} seconds>" for mean in means]


def test_labels_are_the_published_texts():
    assert frame_labels([0.0, 0.5]) == ["Frame 1 sampled at 0.00 seconds: ", "Frame 2 sampled at 0.50 seconds: "]
    assert frame_labels([0.0, 0.5], 2) == ["Frame 1 sampled at 0.00 seconds and frame 2 sampled at 0.50 seconds: "]
    assert millisecond_times([30], 30.0) == [0.99]
    assert second_labels([0.0, 0.5, 1.0]) == ["<0.2 seconds>", "<1.0 seconds>"]


# -- writing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(48, 64), (33, 47)])
def test_what_is_written_is_read_back(tmp_path, height, width):
    path = tmp_path / "x.mp4"
    taken = []
    frames = (taken.append(i) or frame for i, frame in enumerate(moving(30, height, width)))
    write_video(path, frames, 29.97, sound=np.sin(np.arange(16000) / 9) / 2)
    video = open_video(path)
    assert (video.frame_count, video.size, video.has_sound) == (30, (height, width), True)
    assert video.fps == pytest.approx(29.97)
    back = video.read(range(30)).astype(int)
    assert np.abs(back - np.stack(list(moving(30, height, width)))).mean() < 3
    with av.open(str(path)) as file:
        sound = np.concatenate([frame.to_ndarray() for frame in file.decode(audio=0)], 1)
    assert sound.shape[1] == pytest.approx(16000, abs=2048)
    assert np.abs(sound).max() == pytest.approx(0.5, abs=0.1)
    assert [file.name for file in tmp_path.iterdir()] == ["x.mp4"]


def test_a_failing_source_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.mp4"
    path.write_bytes(b"old")

    def breaks():
        yield from moving(3)
        yield np.zeros((4, 4, 3), np.uint8)

    with pytest.raises(VideoError, match="of one size"):
        write_video(path, breaks(), 5)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.mp4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": []}, "no frames"),
        ({"fps": 0}, "fps is 0"),
        ({"frames": [np.zeros((4, 4, 3))]}, "float64"),
        ({"frames": ["x"]}, "a frame is"),
        ({"sound": np.zeros((3, 5))}, r"sound is \(3, 5\)"),
        ({"sound": np.full(5, np.nan)}, "not numbers"),
        ({"sound": np.zeros(5), "rate": 17}, "rate is 17"),
        ({"path": "no/such/folder/x.mp4"}, "cannot be written"),
    ],
)
def test_what_cannot_be_written_is_one_clear_line(tmp_path, options, message):
    arguments = {"path": "x.mp4", "frames": list(moving(2)), "fps": 5, **options}
    arguments["path"] = tmp_path / arguments["path"]
    with pytest.raises(VideoError, match=message) as caught:
        write_video(**arguments)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
