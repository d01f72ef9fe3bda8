"""The codec of sound: equal to diffusers' own, each sound of a batch as alone, pieces as in the whole."""

import pytest
import torch
from towers import noise

from omni.tokenizers.avae import SoundCodec

SIZES = {
    "vocoder_input_dim": 6,
    "dec_dim": 8,
    "dec_c_mults": [1, 2, 2],
    "dec_strides": [2, 3, 4],
    "enc_dim": 8,
    "enc_latent_dim": 12,
    "enc_c_mults": [1, 2],
    "enc_strides": [2, 3],
    "enc_n_fft": 16,
    "enc_hop_length": 4,
    "enc_num_blocks": 1,
    "hop_size": 24,
    "sampling_rate": 600,
}


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    from diffusers.models.autoencoders.autoencoder_cosmos3_audio import Cosmos3AVAEAudioTokenizer

    torch.manual_seed(0)
    vae = Cosmos3AVAEAudioTokenizer(**SIZES)
    folder = tmp_path_factory.mktemp("sound_tokenizer")
    vae.save_pretrained(folder)
    return SoundCodec.from_folder(folder)


def sound(b: int, n: int) -> torch.Tensor:
    return 0.3 * noise(b, 2, n).float()


@pytest.mark.parametrize("n", [24, 25, 100, 480])
def test_sounds_are_encoded_as_by_diffusers(codec, n):
    x = sound(1, n)
    found = codec.encode(x)
    assert found.shape == (1, 6, codec.latents_of(n))
    with torch.no_grad():
        torch.testing.assert_close(found, codec.vae.encode(x).latent_dist.mode(), rtol=0, atol=0)


def test_each_sound_of_a_batch_is_as_alone(codec):
    x = sound(3, 120) * torch.tensor([0.1, 1.0, 2.0])[:, None, None]
    torch.testing.assert_close(codec.encode(x)[1:2], codec.encode(x[1:2]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(codec.encode(x[:1] * 3), codec.encode(x[:1]), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("piece", [1, 7, 40, 100])
def test_pieces_are_as_in_the_whole(codec, piece):
    z = noise(2, 6, 90).float()
    with torch.no_grad():
        whole = codec.vae.decode(z)
    assert whole.shape == (2, 2, 90 * 24)
    parts = list(codec.decode_parts(z, piece))
    assert [part.shape[2] for part in parts] == [min(piece, 90 - i) * 24 for i in range(0, 90, piece)]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(codec.decode(z), whole, rtol=1e-5, atol=1e-6)


def test_the_halo_is_enough_and_not_much_more(codec, monkeypatch):
    z = noise(1, 6, 90).float()
    whole = codec.decode(z)
    monkeypatch.setattr(codec, "halo", codec.halo // 2)
    assert float((torch.cat(list(codec.decode_parts(z, 20)), dim=2) - whole).abs().max()) > 1e-6


def test_the_published_sizes_say_25_a_second():
    from diffusers.models.autoencoders.autoencoder_cosmos3_audio import Cosmos3AVAEAudioTokenizer

    with torch.device("meta"):
        codec = SoundCodec(Cosmos3AVAEAudioTokenizer())
    assert (codec.rate, codec.channels, codec.hop, codec.latents_a_second) == (48_000, 64, 1920, 25.0)
    assert codec.latents_of(int(189 / 24 * 48_000)) == 197


def test_bad_input_is_named(codec, tmp_path):
    with pytest.raises(ValueError, match=r"samples are \(b, 2, n\) at 600 a second, not \(1, 1, 50\)"):
        codec.encode(torch.zeros(1, 1, 50))
    with pytest.raises(ValueError, match="0 samples"):
        codec.encode(torch.zeros(1, 2, 0))
    with pytest.raises(ValueError, match=r"sound latents are \(b, 6, T\), not \(1, 5, 9\)"):
        codec.decode(torch.zeros(1, 5, 9))
    with pytest.raises(ValueError, match="pieces of 0 latents"):
        list(codec.decode_parts(torch.zeros(1, 6, 9), 0))
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        SoundCodec.from_folder(tmp_path)
