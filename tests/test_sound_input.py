"""Sounds: decoded alike from every kind of file, features as transformers makes them, and a catalogue of bad files."""

import base64
import io
import struct
import wave
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from omni.config import SoundConfig, replace
from omni.encoders.audio import AudioEncoder
from omni.tokenizers import sound as hearing
from omni.tokenizers.sound import (
    SoundError,
    Waveform,
    blocks,
    clips,
    log_mel,
    mel_filters,
    open_sound,
    sound_frames,
    sound_tokens,
)

av = pytest.importorskip("av")

SOUND = SoundConfig(d_model=16, n_layers=1, n_heads=2, d_ff=16, n_mels=32, channels=4)


def tone(seconds: float = 1.0, rate: int = 16_000, hertz: float = 440.0) -> np.ndarray:
    """(n,) float32 of amplitude 0.5 under a slow swell."""
    t = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * t) * np.sin(np.pi * t / seconds) ** 2).astype(np.float32)


def speechlike(count: int, seed: int = 0) -> torch.Tensor:
    """Noise whose colour and loudness change every 50 ms, with quiet pauses."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, generator=g)
    smooth = torch.nn.functional.avg_pool1d(noise[None], 9, 1, 4)[0]
    mix, loudness = (torch.rand(count // 800 + 1, generator=g).repeat_interleave(800)[:count] for _ in range(2))
    return 0.3 * (loudness - 0.2).clamp(0.05) * (mix * noise + (1 - mix) * 3 * smooth)


def wav(samples: np.ndarray, rate: int = 16_000, width: int = 2) -> bytes:
    """Samples (n,) or (channels, n) as PCM of ``width`` bytes."""
    interleaved = np.atleast_2d(samples).T.astype(np.float64)
    if width == 1:
        raw = np.round(interleaved * 127 + 128).astype(np.uint8).tobytes()
    else:
        whole = np.round(interleaved * (2 ** (8 * width - 1) - 1)).astype("<i4")
        raw = whole.reshape(-1, 1).view(np.uint8)[:, :width].tobytes()
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(interleaved.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(raw)
    return out.getvalue()


def float_wav(samples: np.ndarray, rate: int = 16_000) -> bytes:
    data = samples.astype("<f4").tobytes()
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, rate, rate * 4, 4, 32)
    body = b"WAVE" + head + struct.pack("<4sI", b"data", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def encoded(samples: np.ndarray, container: str, codec: str, rate: int = 16_000, picture: bool = False) -> bytes:
    """Mono samples through one of FFmpeg's encoders, beside a second of black pictures if ``picture``."""
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        if picture:
            video = file.add_stream("mpeg4", rate=10)
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        track = file.add_stream(codec, rate=rate, layout="mono") if codec else None
        if picture:
            for number in range(10):
                black = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
                black.pts, black.time_base = number, Fraction(1, 10)
                file.mux(video.encode(black))
            file.mux(video.encode(None))
        if track is not None:
            frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            convert = av.AudioResampler(
                track.codec_context.format, "mono", rate, track.codec_context.frame_size or 1024
            )
            for piece in [*convert.resample(frame), *convert.resample(None)]:
                file.mux(track.encode(piece))
            file.mux(track.encode(None))
    return out.getvalue()


def error_of(source, **options) -> str:
    with pytest.raises(SoundError) as caught:
        open_sound(source, **options)
    return str(caught.value)


def agree(actual: torch.Tensor, expected: np.ndarray, tolerance: float) -> None:
    n = min(len(actual), len(expected))
    assert abs(len(actual) - len(expected)) <= 1200  # encoders fill their last frame
    assert float((actual[:n] - torch.from_numpy(expected[:n])).abs().max()) <= tolerance


# -- good sounds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "tolerance"), [(1, 1e-2), (2, 4e-5), (3, 3e-7), (4, 3e-7)])
def test_pcm_of_every_width_is_read(width, tolerance):
    agree(open_sound(wav(tone(), width=width)).samples, tone(), tolerance)


def test_float_wav_is_read_as_it_is():
    assert torch.equal(open_sound(float_wav(tone())).samples, torch.from_numpy(tone()))


@pytest.mark.parametrize(
    ("container", "codec", "tolerance"),
    [
        ("flac", "flac", 4e-5),
        ("mp3", "libmp3lame", 0.03),
        ("ogg", "flac", 4e-5),
        ("mp4", "aac", 0.02),
        ("matroska", "pcm_s16le", 4e-5),
        ("adts", "aac", None),  # a bare stream does not say how much silence its encoder put in front
    ],
)
def test_compressed_sound_comes_back(container, codec, tolerance):
    back = open_sound(encoded(tone(), container, codec))
    assert back.rate == 16_000
    if tolerance is None:
        assert abs(float(back.samples.abs().max()) - 0.5) < 0.02
    else:
        agree(back.samples, tone(), tolerance)


def test_opus_comes_back_at_its_loudness():
    back = open_sound(encoded(tone(rate=48_000), "ogg", "libopus", rate=48_000))
    loudness = [float(torch.as_tensor(x).square().mean()) for x in (back.samples, tone())]
    assert abs(len(back.samples) - 16_000) < 700
    assert loudness[0] == pytest.approx(loudness[1], rel=0.05)


def test_the_sound_track_of_a_video_is_read(tmp_path):
    path = tmp_path / "talk.mp4"
    path.write_bytes(encoded(tone(), "mp4", "aac", picture=True))
    agree(open_sound(path).samples, tone(), 0.02)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_every_rate_becomes_the_asked_one(rate):
    sound = open_sound(wav(tone(rate=rate), rate))
    assert sound.rate == 16_000
    assert len(sound.samples) == 16_000
    assert sound.seconds == 1.0
    agree(sound.samples, tone(), 2e-3)


def test_another_rate_can_be_asked_for():
    assert len(open_sound(wav(tone()), rate=8_000).samples) == 8_000


def test_channels_are_averaged():
    left, right = tone(hertz=440), tone(hertz=1000)
    agree(open_sound(wav(np.stack([left, right]))).samples, (left + right) / 2, 4e-5)
    agree(open_sound(wav(np.stack([left, -left]))).samples, 0 * left, 4e-5)
    agree(open_sound(wav(np.stack([left] * 6))).samples, left, 4e-5)


def test_paths_bytes_and_data_addresses_are_the_same_sound(tmp_path):
    data = wav(tone())
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    address = "data:audio/wav;base64," + base64.b64encode(data).decode()
    expected = open_sound(data).samples
    for source in (path, str(path), address, bytearray(data)):
        assert torch.equal(open_sound(source).samples, expected)


def test_arrays_need_their_rate_and_are_scaled_by_their_type():
    x = tone()
    for array in (x, x[None], torch.from_numpy(x), np.stack([x, x]), x.astype(np.float64)):
        agree(open_sound(array, array_rate=16_000).samples, x, 1e-7)
    agree(open_sound(np.round(x * 32768).astype(np.int16), array_rate=16_000).samples, x, 2e-5)
    agree(open_sound(Waveform(torch.from_numpy(tone(rate=8_000)), 8_000)).samples, x, 2e-3)
    assert "give array_rate" in error_of(x)
    assert "array_rate is for arrays" in error_of(wav(x), array_rate=16_000)


def test_a_wav_that_was_piped_and_does_not_know_its_length_is_read():
    data = bytearray(wav(tone()))
    data[4:8] = data[40:44] = b"\xff" * 4
    agree(open_sound(bytes(data)).samples, tone(), 4e-5)


# -- long recordings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "seconds"), [(16_000, 0.7), (44_100, 0.7), (8_000, 5.0), (22_254, 1.0)])
def test_blocks_are_the_whole_in_pieces(rate, seconds):
    data = wav(speechlike(3 * rate + 123).numpy(), rate)
    whole, pieces = open_sound(data).samples, list(blocks(data, seconds))
    assert {len(piece) for piece in pieces[:-1]} <= {round(seconds * 16_000)}
    assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.parametrize(("source", "target"), [(44_100, 16_000), (8_000, 16_000), (192_000, 8_000), (16_000, 44_100)])
def test_resampling_piece_by_piece_leaves_no_seam(source, target):
    from torchaudio.functional import resample

    samples = speechlike(3 * source + 77)
    resampler, heard = hearing._Resampler(source, target), []
    for piece in samples.split(1024):
        heard += resampler.push(piece)
    assert len(heard) > 1
    heard += resampler.push(torch.empty(0), last=True)
    torch.testing.assert_close(torch.cat(heard), resample(samples, source, target), rtol=0, atol=2e-6)


def test_no_more_than_a_block_is_decoded_ahead(monkeypatch):
    decoded = []
    mono = hearing._mono
    monkeypatch.setattr(hearing, "_mono", lambda frame, name: decoded.append(frame.samples) or mono(frame, name))
    reading = blocks(wav(tone(60.0, 8_000), 8_000), 2.0)
    assert len(next(reading)) == 32_000
    assert sum(decoded) < 5 * 8_000
    reading.close()


# -- features --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_mels", [64, 80, 128])
def test_features_are_those_of_transformers(n_mels):
    from transformers import ParakeetFeatureExtractor

    extractor = ParakeetFeatureExtractor(feature_size=n_mels)
    sounds = [speechlike(n, seed=n) for n in (320, 399, 401, 1600, 12_345, 48_000)]
    sounds.append(torch.from_numpy(tone(2.0)) + 0.003 * speechlike(32_000))  # bins at the floor alone are rounding
    for samples in sounds:
        theirs = extractor(samples.numpy(), sampling_rate=16_000, return_tensors="pt")
        ours = log_mel(samples, n_mels, last_frame=True)
        assert ours.shape == theirs.input_features[0].shape
        assert float((ours - theirs.input_features[0]).norm() / theirs.input_features.norm()) < _limit(samples)
        assert torch.equal(log_mel(samples, n_mels), ours[:-1])
    batch = extractor([s.numpy() for s in sounds], sampling_rate=16_000, return_tensors="pt")
    features = pad_sequence([log_mel(s, n_mels, last_frame=True) for s in sounds], batch_first=True)
    lengths = torch.tensor([sound_frames(len(s)) for s in sounds])
    assert lengths.tolist() == batch.attention_mask.sum(-1).tolist()
    assert features.shape == batch.input_features.shape
    for samples, ours, theirs in zip(sounds, features, batch.input_features, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < _limit(samples)


def _limit(samples):
    """Two or three frames are divided by how much they differ, which makes rounding, another on every CPU, larger."""
    return 1e-4 if len(samples) > 401 else 1e-3


def test_every_mel_filter_hears_something():
    for n_mels in (64, 80, 128):
        assert (mel_filters(n_mels, 16_000).sum(0) > 0).all()


def test_a_tone_is_loudest_in_its_bin():
    steady = torch.sin(2 * torch.pi * 1000 * torch.arange(16_000) / 16_000) * torch.linspace(0, 1, 16_000)
    filters = mel_filters(64, 16_000)
    swell = log_mel(steady, 64)[-20:].mean(0) - log_mel(steady, 64)[:5].mean(0)
    assert torch.isfinite(swell).all()
    assert int(filters[32].argmax()) in swell.topk(12).indices.tolist()  # 1000 Hz is bin 32 of 31.25 Hz each


def test_loudness_does_not_matter_and_silence_is_zero():
    samples = torch.randn(16_000, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(log_mel(samples), log_mel(4 * samples), rtol=0, atol=1e-2)
    assert log_mel(torch.zeros(16_000)).abs().max() < 1e-6
    assert torch.equal(log_mel(torch.ones(200), 64), torch.zeros(1, 64))  # one frame: its own mean


# -- clips and their tokens ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "tokens", "with_last"),
    [(0.1, 2, 2), (1, 13, 13), (2, 25, 26), (10, 125, 126), (30, 375, 376), (60, 750, 752), (30.01, 377, 378)],
)
def test_tokens_are_counted_as_published(seconds, tokens, with_last):
    count = round(seconds * 16_000)
    assert sound_tokens(count, SOUND) == tokens
    assert sound_tokens(count, replace(SOUND, last_frame=True)) == with_last


def test_a_recording_taken_whole_is_one_clip():
    whole = replace(SOUND, clip_seconds=0.0)
    assert sound_tokens(60 * 16_000, whole) == 750
    assert sound_tokens(1200 * 16_000, whole) == 15_000
    assert sound_tokens(1200 * 16_000, replace(whole, last_frame=True)) == 15_001


@pytest.mark.parametrize("last_frame", [False, True])
@pytest.mark.parametrize("count", [1, 159, 1_599, 7_999, 8_000, 8_001, 16_000, 20_480, 27_777])
def test_counts_agree_with_what_the_encoder_says(count, last_frame):
    config = replace(SOUND, clip_seconds=0.5, last_frame=last_frame)
    found = clips(speechlike(count), config)
    assert [len(f) for f in found] == [sound_frames(span, last_frame) for span in hearing.clip_samples(count, config)]
    encoder = AudioEncoder(config).eval()
    with torch.no_grad():
        assert sum(encoder(f[None]).shape[1] for f in found) == sound_tokens(count, config)
    assert sum(int(encoder.tokens_of(len(f))) for f in found) == sound_tokens(count, config)


def test_clips_are_heard_one_by_one():
    config = replace(SOUND, clip_seconds=0.5)
    samples = speechlike(20_000)
    found = clips(samples, config)
    assert len(found) == 3
    torch.testing.assert_close(found[1], log_mel(samples[8_000:16_000], 32), rtol=0, atol=0)
    torch.testing.assert_close(found[2], log_mel(samples[16_000:], 32), rtol=0, atol=0)
    short = clips(samples[:16_100], config)[2]
    silence = torch.cat([samples[16_000:16_100], torch.zeros(1_500)])
    torch.testing.assert_close(short, log_mel(silence, 32), rtol=0, atol=0)


# -- bad sounds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"a",
        b"not a sound, but words\n" * 400,
        b"\0" * 5_000,
        bytes(np.random.default_rng(0).integers(0, 256, 20_000, np.uint8)),
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n",
        b"ffconcat version 1.0\nfile 'other.wav'\n",
        b"RIFF\x04\0\0\0WAVE",
        b"ID3\x04\0\0\0\0\0\0",
    ],
    ids=["byte", "text", "zeros", "random", "playlist", "concat", "riff", "id3"],
)
def test_what_is_no_sound_is_refused(data):
    assert error_of(data) == "the data is not a sound, or it is damaged or cut short and cannot be decoded"


def test_empty_sources_are_refused(tmp_path):
    path = tmp_path / "empty.wav"
    path.touch()
    assert error_of(path) == f"{path} is empty"
    assert error_of(b"") == "the data is empty"
    assert error_of(wav(tone()[:0])) == "the data holds no sound"
    assert error_of(np.empty(0, np.float32), array_rate=16_000) == "the array is empty"


def test_files_that_are_none_are_refused(tmp_path):
    assert "does not exist" in error_of(tmp_path / "missing.mp3")
    assert "is not a file" in error_of(tmp_path)
    assert "only local files" in error_of("https://example.org/a.mp3")
    assert error_of(7) == "a int is not a sound, a path or bytes"
    assert "base64" in error_of("data:audio/wav,abc")


def test_a_video_without_sound_says_so(tmp_path):
    path = tmp_path / "x.mp4"
    path.write_bytes(encoded(tone(), "mp4", "", picture=True))
    assert error_of(path) == f"{path} has no sound track"


@pytest.mark.parametrize("kind", ["wav", "flac", "mp4"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_file_cut_short_is_refused(kind, part):
    data = {
        "wav": lambda: wav(tone(3.0)),
        "flac": lambda: encoded(speechlike(48_000).numpy(), "flac", "flac"),
        "mp4": lambda: encoded(tone(3.0), "mp4", "aac"),
    }[kind]()
    assert "cut short" in error_of(data[: int(len(data) * part)])


def test_blocks_report_damage_where_it_stands():
    data = encoded(speechlike(160_000).numpy(), "flac", "flac")
    with pytest.raises(SoundError, match="cut short"):
        list(blocks(data[: len(data) // 2], 1.0))
    with pytest.raises(ValueError, match="seconds is 0"):
        blocks(data, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused(value):
    samples = tone()
    samples[5_000] = value
    assert error_of(samples, array_rate=16_000) == "the array has samples that are not finite numbers"
    assert error_of(float_wav(samples)) == "the data has samples that are not finite numbers"


@pytest.mark.parametrize(
    "array",
    [np.zeros((16_000, 2), np.float32), np.zeros(9, bool), np.zeros((1, 1, 9), np.float32), np.zeros(9, complex)],
    ids=["channels last", "bool", "three axes", "complex"],
)
def test_arrays_of_other_shapes_and_types_are_refused(array):
    assert "is not a sound; a sound is (n,) or (channels, n)" in error_of(array, array_rate=16_000)


def test_absurd_rates_are_refused():
    assert "the sampling rate of the array is 10 Hz" in error_of(tone(), array_rate=10)
    assert "must lie between 1000 and 384000" in error_of(wav(tone()), rate=10**9)
    data = bytearray(wav(tone()))
    data[24:28] = struct.pack("<I", 2**31 - 1)
    assert "the sampling rate of the data is" in error_of(bytes(data))


def test_what_is_too_long_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr(hearing, "MAX_SECONDS_AT_ONCE", 2)
    monkeypatch.setattr(hearing, "_mono", None)  # not a sample may be looked at
    assert "is longer than the limit" in error_of(wav(tone(3.0)))
    assert "is longer than the limit" in error_of(tone(3.0), array_rate=16_000)


def test_what_turns_out_too_long_is_refused_while_it_is_read(monkeypatch):
    monkeypatch.setattr(hearing, "MAX_SECONDS_AT_ONCE", 2)
    assert "is longer than the limit" in error_of(encoded(tone(4.0), "ogg", "flac"))


def test_features_refuse_what_is_no_recording():
    with pytest.raises(SoundError, match="159 samples make no frame; the least is 160"):
        log_mel(torch.zeros(159))
    with pytest.raises(SoundError, match=r"samples are \(2, 800\)"):
        log_mel(torch.zeros(2, 800))
    with pytest.raises(SoundError, match="no samples"):
        clips(torch.zeros(0), SOUND)
