"""The mel codec: pitch, onset and silence survive the round trip; latents are normalised; bad input is refused."""

import numpy as np
import pytest
import torch

from omni.config import SoundLatentConfig, from_dict, to_dict
from omni.config_checks import ConfigError
from omni.config_latents import MelConfig
from omni.data.motion import sample_motion
from omni.tokenizers.mel_codec import MelCodec

RATE = 16_000
LOUD_KINDS = ("fall", "collide", "bounce", "vanish")


def sounds(first: int, count: int) -> torch.Tensor:
    """(count, 1, 34000) of rollouts that are heard."""
    films = [sample_motion(first + i, LOUD_KINDS[i % len(LOUD_KINDS)]) for i in range(count)]
    return torch.from_numpy(np.stack([film.sound for film in films]))[:, None]


@pytest.fixture(scope="module")
def training_sounds():
    return sounds(1_000_000, 120)


@pytest.fixture(scope="module")
def codec(training_sounds):
    codec = MelCodec(MelConfig())
    codec.fit(training_sounds)
    return codec


def struck(pitch: float, second: float = 0.7, loudness: float = 0.3) -> torch.Tensor:
    """(1, 1, 32000): a tone that decays."""
    clock = torch.arange(2 * RATE) / RATE - second
    wave = torch.sin(2 * torch.pi * pitch * clock) * torch.exp(-clock.clamp(min=0) / 0.08) * (clock >= 0)
    return loudness * wave[None, None]


def pitch_of(samples: torch.Tensor) -> float:
    """Hz of the strongest frequency, by the centre of its peak."""
    power = torch.fft.rfft(samples * torch.hann_window(len(samples)), n=1 << 16).abs() ** 2
    peak = int(power.argmax())
    near = torch.arange(peak - 20, peak + 21)
    return float((power[near] @ near.float()) / power[near].sum()) * RATE / (1 << 16)


def onset_of(samples: torch.Tensor) -> float:
    """Second at which the loudness first reaches a tenth (of the power) of its greatest."""
    power = torch.nn.functional.avg_pool1d(samples[None].square(), 80, 16)[0]
    return int((power > 0.1 * power.max()).nonzero()[0]) * 16 / RATE


@pytest.mark.parametrize("pitch", [445, 480, 530, 570, 620, 727])
def test_pitch_loudness_and_onset_survive(codec, pitch):
    sound = struck(pitch)
    heard = codec.decode(codec.encode(sound))[0, 0]
    span = slice(int(0.7 * RATE), int(1.0 * RATE))
    assert abs(12 * np.log2(pitch_of(heard[span]) / pitch)) < 1
    assert abs(onset_of(heard) - onset_of(sound[0, 0])) < 0.05
    level = 20 * torch.log10(heard[span].std() / sound[0, 0, span].std())
    assert abs(level) < 3  # dB
    assert 20 * torch.log10(heard[: int(0.6 * RATE)].abs().max() + 1e-9) < -40


def test_two_tones_are_told_apart(codec):
    """Pitches a minor third apart come back in their order."""
    low, high = (codec.decode(codec.encode(struck(pitch)))[0, 0, int(0.7 * RATE) : RATE] for pitch in (500, 600))
    assert pitch_of(high) / pitch_of(low) > 2 ** (2 / 12)


def test_chirps_fall_and_rollouts_keep_their_course(codec):
    sound = torch.from_numpy(sample_motion(3, "vanish").sound)
    heard = codec.decode(codec.encode(sound[None, None]))[0, 0]
    early, late = heard[int(1.02 * RATE) : int(1.1 * RATE)], heard[int(1.2 * RATE) : int(1.28 * RATE)]
    assert pitch_of(early) > 1.5 * pitch_of(late)
    held = sounds(0, 12)
    again = codec.decode(codec.encode(held))[..., : held.shape[2]]
    envelopes = [torch.nn.functional.avg_pool1d(x.abs()[:, 0], 640, 640) for x in (held, again)]
    alike = torch.nn.functional.cosine_similarity(*envelopes, dim=1)
    assert alike.min() > 0.95


def test_silence_stays_silent(codec):
    heard = codec.decode(codec.encode(torch.zeros(1, 1, 34_000)))
    assert 20 * torch.log10(heard.abs().max() + 1e-9) < -40
    noisy = codec.encode(torch.zeros(1, 1, 34_000))
    noisy += 0.05 * torch.randn(noisy.shape, generator=torch.Generator().manual_seed(0))
    assert 20 * torch.log10(codec.decode(noisy).abs().max() + 1e-9) < -40


def test_latents_have_variance_one_on_average(codec, training_sounds):
    latents = codec.encode(training_sounds)
    torch.testing.assert_close(latents.var(dim=(0, 2)).mean(), torch.tensor(1.0), rtol=1e-3, atol=0)
    assert latents.mean(dim=(0, 2)).abs().max() < 1e-3


def test_counts_and_the_rest_of_a_sound(codec):
    assert (codec.rate, codec.channels, codec.sides, codec.hop, codec.latents_a_second) == (16_000, 32, 1, 640, 25.0)
    sound = sounds(0, 1)
    assert [codec.latents_of(n) for n in (1, 640, 641, sound.shape[2])] == [1, 1, 2, 54]
    assert codec.encode(sound).shape == (1, 32, 54)
    assert codec.decode(codec.encode(sound)).shape == (1, 1, 54 * 640)
    filled = torch.nn.functional.pad(sound, (0, 54 * 640 - sound.shape[2]))
    torch.testing.assert_close(codec.encode(sound), codec.encode(filled), rtol=0, atol=0)
    assert codec.decode(codec.encode(sound[..., :100])).shape == (1, 1, 640)


def test_decoding_is_the_same_each_time_and_each_sound_as_alone(codec):
    latents = codec.encode(sounds(0, 3))
    state = torch.random.get_rng_state()
    heard = codec.decode(latents)
    assert torch.equal(heard, codec.decode(latents))
    assert torch.equal(state, torch.random.get_rng_state())
    torch.testing.assert_close(heard[1:2], codec.decode(latents[1:2]), rtol=1e-2, atol=1e-2)
    assert torch.isfinite(codec.decode(1e4 * latents)).all()


def test_the_components_are_saved(codec):
    other = MelCodec(MelConfig())
    other.load_state_dict(codec.state_dict())
    sound = sounds(5, 1)
    assert torch.equal(other.encode(sound), codec.encode(sound))
    assert not torch.allclose(MelCodec(MelConfig()).encode(sound), codec.encode(sound))
    with torch.device("meta"):
        assert all(buffer.is_meta for buffer in MelCodec(MelConfig()).buffers())


def test_bad_sounds_and_latents_are_refused(codec):
    for shape in ((34_000,), (1, 2, 640), (1, 1, 0)):
        with pytest.raises(ValueError, match="samples"):
            codec.encode(torch.zeros(shape))
    with pytest.raises(ValueError, match="floats"):
        codec.encode(torch.zeros(1, 1, 640, dtype=torch.int16))
    for shape in ((32, 5), (1, 31, 5), (1, 32, 0)):
        with pytest.raises(ValueError, match="latents are"):
            codec.decode(torch.zeros(shape))
    with pytest.raises(ValueError, match="two latents"):
        MelCodec(MelConfig()).fit(torch.zeros(1, 1, 640))


def test_bad_sizes_are_refused():
    for bad in ({"hop": 641}, {"hop": 4096}, {"window": 510}, {"window": 1 << 13}, {"channels": 257}, {"bands": 300}):
        with pytest.raises(ConfigError, match="MelConfig"):
            MelConfig(**bad)
    with pytest.warns(UserWarning, match="mel filterbank"), pytest.raises(ValueError, match="hold no frequency"):
        MelCodec(MelConfig(bands=200))
    with pytest.raises(ConfigError, match="its codec"):
        SoundLatentConfig(channels=64, codec=MelConfig())
    with pytest.raises(ConfigError, match="its codec"):
        SoundLatentConfig(channels=32, rate=50.0, codec=MelConfig())


def test_the_config_is_written_and_read():
    config = SoundLatentConfig(channels=32, codec=MelConfig())
    assert from_dict(SoundLatentConfig, to_dict(config)) == config
    assert from_dict(SoundLatentConfig, to_dict(SoundLatentConfig())).codec is None
