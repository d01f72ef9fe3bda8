"""Videos in the small model: frames of tokens that stand for several latent ones, clean tokens, the codec by frames."""

import pytest
import torch
from micro import CODEC_LATENT, micro_model
from towers import noise

from omni.config import ActionConfig, ConfigError, LatentConfig, SoundLatentConfig, TimeConfig, replace
from omni.decoders.heads import Clock, LatentHead
from omni.inputs import Inputs
from omni.layers import AdaLNTime
from omni.losses import flow, places
from omni.streams import Heads, Scene
from omni.tokenizers.latent import PatchCodec, PixelCodec

SIZES = LatentConfig(patch_size=2, channels=3, max_grid=4, patch_frames=4, positions_a_second=10.0)


def head(**changes) -> LatentHead:
    torch.manual_seed(0)
    made = LatentHead(12, replace(SIZES, **changes)).double()
    torch.nn.init.normal_(made.positions)
    return made


# -- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "tokens"), [(1, 1), (5, 2), (9, 3), (17, 5)])
@pytest.mark.parametrize("side", [4, 5, 8])
def test_the_first_frame_is_a_token_frame_and_each_four_behind_it(frames, tokens, side):
    h = head()
    video = noise(2, 3, frames, side, side)
    n = (-(-side // 2)) ** 2
    assert h.grid(video) == (tokens, -(-side // 2), -(-side // 2))
    read = h.read(video)
    assert read.shape == (2, tokens * n, 12)
    torch.testing.assert_close(read[:, :n], h.read(video[:, :, 0]))  # as a picture is read
    written = h.write(read, video, torch.ones(2))
    assert written.shape == video.shape
    torch.testing.assert_close(written[:, :, 0], h.write(read[:, :n], video[:, :, 0], torch.ones(2)))


def test_a_group_of_frames_reaches_its_own_tokens_and_is_written_from_them():
    h = head()
    video = noise(1, 3, 9, 8, 8)
    changed = video.clone()
    changed[:, :, 6] += 1  # one of the frames 5 to 8
    moved = (h.read(changed) - h.read(video)).abs().sum(-1).view(3, 16)
    assert (moved > 0).all(dim=1).tolist() == (moved > 0).any(dim=1).tolist() == [False, False, True]
    tokens = h.read(video)
    other = tokens.clone()
    other[:, 16:32] += 1
    written = (h.write(other, video, torch.ones(1)) - h.write(tokens, video, torch.ones(1))).abs().sum((0, 1, 3, 4))
    assert (written > 0).tolist() == [False] + [True] * 4 + [False] * 4


def test_the_gains_of_a_group_are_said_by_its_own_tokens():
    h = head(prediction="sample", gain=True)
    video, t = noise(1, 3, 9, 8, 8), torch.full((1,), 0.5)
    tokens = h.read(video)
    plain = h.write(tokens, video, t)
    torch.nn.init.normal_(h.next_gain.weight)
    changed = (h.write(tokens, video, t) - plain).abs().sum((0, 1, 3, 4))
    assert (changed > 0).tolist() == [False] + [True] * 8
    other = tokens.clone()
    other[:, 16:32] += noise(1, 16, 12, seed=3)
    torch.nn.init.zeros_(h.next_out.weight)
    changed = (h.write(other, video, t) - h.write(tokens, video, t)).abs().sum((0, 1, 3, 4))
    assert (changed > 0).tolist() == [False] + [True] * 4 + [False] * 4


def test_spread_weights_read_a_still_video_as_pictures_and_say_nothing_of_it_yet():
    h = head(norm=False)
    h.spread()
    picture = noise(2, 3, 1, 8, 8)
    video = picture.expand(-1, -1, 9, -1, -1)
    read = h.read(video).view(2, 3, 16, 12)
    for group in read.unbind(1):
        torch.testing.assert_close(group, h.read(picture))
    written = h.write(read.flatten(1, 2), video, torch.ones(2))
    torch.testing.assert_close(written[:, :, 0], h.write(group, picture[:, :, 0], torch.ones(2)))
    assert bool(written[:, :, 0].any())
    assert not bool(written[:, :, 1:].any())


def test_frames_that_are_left_over_are_refused():
    h = head()
    for frames in (2, 4, 8):
        with pytest.raises(ValueError, match=f"{frames} latent frames; there must be 1 \\+ 4 k"):
            h.read(noise(1, 3, frames, 8, 8))
    with pytest.raises(ConfigError, match="patch_frames is 0"):
        replace(SIZES, patch_frames=0)
    with pytest.raises(ConfigError, match="clock is -1"):
        replace(SIZES, clock=-1)


def test_the_clock_is_zero_at_the_first_moment_and_tells_all_others_apart():
    clock = Clock(16, 8)
    assert not bool(clock(torch.arange(9.0)[None]).any())  # begins at nothing
    torch.nn.init.eye_(clock.weight)
    times = torch.arange(0, 400, 5)[None] / 10
    told = clock(times)[0].detach()
    assert not bool(told[0].any())
    assert float(torch.cdist(told, told).fill_diagonal_(9).min()) > 0.1


# -- streams ---------------------------------------------------------------------------------------------------------


def heads() -> Heads:
    return micro_heads(micro(clock=4))


def micro(**latent):
    return micro_model(
        latent=replace(CODEC_LATENT, patch_frames=4, positions_a_second=10.0, **latent),
        sound_latent=SoundLatentConfig(channels=5, positions_a_second=10.0),
        action=ActionConfig(width=3, n_domains=2, positions_a_second=10.0),
    )


def micro_heads(model) -> Heads:
    return Heads(model.latents, model.sound_latents, model.actions)


def test_positions_of_token_frames_are_those_of_their_first_frames():
    video, sound, action = torch.randn(1, 4, 9, 16, 16), torch.randn(1, 5, 6), torch.randn(1, 8, 3)
    scene = Scene(fps=torch.tensor([8.0]), domains=torch.tensor([1]))
    packed = heads().pack({"video": video, "sound": sound, "action": action}, scene, torch.tensor([7]))
    time = packed.positions[0, 0]
    assert packed.counts == {"video": 3 * 64, "sound": 6, "action": 8}
    torch.testing.assert_close(time[:192].view(3, 64)[:, 0], 7 + torch.tensor([0.0, 4.0, 8.0]) / 8 * 10)
    torch.testing.assert_close(time[192:198], 7 + torch.arange(6) / 25 * 10)
    torch.testing.assert_close(time[198:], 7 + torch.arange(1, 9) / 8 * 10)


@pytest.mark.parametrize(
    ("given", "noisy"),
    [((0,), [False, True, True]), ((0, 1, 2, 3, 4), [False, False, True]), ((5, 6, 7, 8), [True, True, False])],
)
def test_a_token_is_clean_if_all_of_its_frames_are(given, noisy):
    clean = torch.tensor([[i in given for i in range(9)]])
    packed = heads().pack({"video": torch.randn(1, 4, 9, 16, 16)}, Scene(clean={"video": clean}), torch.tensor([7]))
    assert packed.noisy.view(3, 64).all(dim=1).tolist() == packed.noisy.view(3, 64).any(dim=1).tolist() == noisy


def test_frames_that_share_tokens_are_given_together():
    clean = torch.tensor([[True, True, False, False, False]])
    with pytest.raises(ValueError, match="given 4 together"):
        heads().pack({"video": torch.randn(1, 4, 5, 16, 16)}, Scene(clean={"video": clean}), torch.tensor([0]))


@torch.no_grad()
def test_a_model_with_a_clock_draws_pictures_as_one_without():
    """The parts for videos change nothing about pictures: so drawing, once trained, is kept."""
    model = micro(clock=4)
    torch.nn.init.normal_(model.latents.clock.weight)
    bare = micro_model(latent=CODEC_LATENT)
    bare.load_state_dict({k: v for k, v in model.state_dict().items() if k in bare.state_dict()})
    latents, t, ids = torch.randn(2, 4, 16, 16), torch.rand(2), torch.randint(30, 90, (2, 5))
    velocities = []
    for m in (model, bare):
        cache = m.new_cache(2)
        m.read(Inputs(ids), cache)
        velocities.append(m.velocity(latents, t, cache))
    torch.testing.assert_close(*velocities, rtol=0, atol=0)


@torch.no_grad()
def test_given_frames_do_not_move_and_say_more_than_noise():
    model = micro(clock=4)
    cache = model.new_cache(1)
    model.read(Inputs(torch.randint(30, 90, (1, 5))), cache)
    video = torch.randn(1, 4, 5, 16, 16)
    clean = torch.tensor([[True, False, False, False, False]])
    scene = Scene(fps=torch.tensor([8.0]), clean={"video": clean})
    t = torch.tensor([0.7])
    velocity = model.velocity({"video": video}, t, cache, scene)["video"]
    assert not bool(velocity[:, :, 0].any())
    assert bool(velocity[:, :, 1:].any())
    unmarked = model.velocity({"video": video}, t, cache, replace(scene, clean={}))["video"]
    assert not torch.allclose(velocity[:, :, 1:], unmarked[:, :, 1:])  # the others see that it is clean


# -- time, codec, losses ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_clean_tokens_are_modulated_as_at_time_zero():
    torch.manual_seed(1)
    time = AdaLNTime(6, 3, TimeConfig(mode="adaln", n_frequencies=4))
    for parameter in time.parameters():
        parameter.normal_()
    x, t = torch.randn(2, 5, 6), torch.tensor([0.3, 0.9])
    noisy = torch.tensor([[True, False, True, False, False], [False, True, True, True, False]])
    _, mixed = time(x, t, noisy)
    _, at_t = time(x, t, None)
    _, at_zero = time(x, torch.zeros(2), None)
    for layer, there, here in zip(mixed, at_t, at_zero, strict=True):
        for part, noised, clean in zip(layer, there, here, strict=True):
            assert part.shape == (2, 5, 6)
            assert noised.shape == (2, 1, 6)  # one for all tokens where none is marked
            torch.testing.assert_close(part[noisy], noised.expand_as(part)[noisy])
            torch.testing.assert_close(part[~noisy], clean.expand_as(part)[~noisy])
            assert not torch.allclose(noised, clean)


def test_codecs_take_videos_frame_by_frame():
    torch.manual_seed(0)
    video = torch.rand(2, 3, 5, 16, 16)
    codec = PatchCodec(CODEC_LATENT.codec)
    codec.fit(torch.rand(50, 3, 16, 16))
    for made in (codec, PixelCodec()):
        latents = made.encode(video)
        assert latents.shape[2] == made.latent_frames(5) == 5
        assert made.frames == 1
        torch.testing.assert_close(latents[:, :, 3], made.encode(video[:, :, 3]))
        torch.testing.assert_close(made.decode(latents)[:, :, 3], made.decode(latents[:, :, 3]))


def test_the_error_counts_where_there_is_noise():
    data, noised = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    velocity = torch.ones(2, 3, 4)
    velocity[0, :, 0] = 3.0
    noisy = torch.ones(2, 1, 4)
    assert float(flow(velocity, data, noised, noisy)) == pytest.approx(3 * 4 / 24)
    noisy[0, :, 0] = 0
    assert float(flow(velocity, data, noised, noisy)) == 0
    assert float(flow(velocity, data, noised, torch.zeros(2, 1, 1))) == 0  # nothing is to be found
    assert float(flow(velocity, data, noised)) == float(flow(velocity, data, noised, torch.ones(1)))


def test_places_of_things_that_are_not_there_do_not_count():
    found, true = torch.zeros(2, 3, 2), torch.full((2, 3, 2), 0.5)
    whole = float(places(found, true))
    assert whole == pytest.approx(0.5 - 0.01)
    true[0] = torch.nan
    assert float(places(found, true)) == pytest.approx(whole)
    found.requires_grad_()
    places(found, true).backward()
    assert bool(found.grad.isfinite().all())
    assert not bool(found.grad[0].any())
    assert float(places(found, torch.full_like(true, torch.nan))) == 0
