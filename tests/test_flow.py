"""Flow matching on fields whose answers are known, guidance, and the head between latents and tokens."""

import itertools
import math

import pytest
import torch
from towers import close, fill, noise

from omni.config import LatentConfig
from omni.decoders.flow import Guidance, guided, integrate, interpolate, sample_times
from omni.decoders.heads import MIN_TIME, LatentHead
from omni.decoders.positions import stream_positions
from omni.decoders.schedules import Schedule, plain

# -- the path --------------------------------------------------------------------------------------------------------


def test_interpolate_is_the_straight_line_from_data_to_noise():
    data, end = noise(3, 2, 4, 4), noise(3, 2, 4, 4, seed=2)
    t = torch.tensor([0.0, 0.25, 1.0])
    got = interpolate(data, end, t)
    close(got[0], data[0], 0)
    close(got[1], 0.75 * data[1] + 0.25 * end[1], 1e-12)
    close(got[2], end[2], 0)


def test_training_times():
    generator = torch.Generator().manual_seed(0)
    t = sample_times(4000, generator)
    assert 0 < t.min() < t.max() < 1
    assert abs(float(t.median()) - 0.5) < 0.02
    spread = sample_times(4000, torch.Generator().manual_seed(0), mean=1.0, std=2.0)
    close(spread.logit(), 2 * t.logit() + 1, 1e-3)
    shifted = sample_times(4000, torch.Generator().manual_seed(0), shift=3.0)
    close(shifted, 3 * t / (1 + 2 * t), 1e-6)
    assert float(sample_times(4000, generator, mean=-1.0).median()) < 0.3
    close(sample_times(5, torch.Generator().manual_seed(7)), sample_times(5, torch.Generator().manual_seed(7)), 0)


# -- the walk --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_a_straight_path_is_walked_exactly(steps, solver):
    """The true velocity of one pair is constant, so any number of steps lands on the data."""
    data, end = noise(2, 3, 4), noise(2, 3, 4, seed=2)
    close(integrate(lambda x, t: end - data, end, plain(steps, 3.0), solver), data, 1e-12)


def _decay(x, t):
    """dx/dt = 2 x: from x at t = 1 to x / e^2 at t = 0."""
    return 2 * x


def error(solver: str, steps: int) -> float:
    start = torch.ones(1, 1, dtype=torch.float64)
    return abs(float(integrate(_decay, start, plain(steps), solver)) - math.exp(-2))


def test_euler_is_of_first_order_and_heun_of_second():
    for steps in (40, 80):
        assert 1.85 < error("euler", steps) / error("euler", 2 * steps) < 2.15
        assert 3.4 < error("heun", steps) / error("heun", 2 * steps) < 4.3
    assert error("heun", 40) < error("euler", 40) / 8


def test_a_linear_field_by_hand():
    """Two steps each way, on dx/dt = 2 x."""
    start = torch.ones(1, 1, dtype=torch.float64)
    close(integrate(_decay, start, Schedule((1.0, 0.5, 0.0))), torch.zeros(1, 1, dtype=torch.float64), 1e-12)
    # Heun's first step averages 2 and 2 (1 - 1): 1 - 1/2; its last one, to zero, is Euler's: no velocity is asked at 0.
    close(integrate(_decay, start, Schedule((1.0, 0.5, 0.0)), "heun"), torch.zeros(1, 1, dtype=torch.float64), 1e-12)
    close(integrate(_decay, start, Schedule((1.0, 0.75, 0.5)), "heun"), start * (1 - 0.375) ** 2, 1e-12)


def test_times_are_what_the_field_is_asked_for():
    asked = []

    def field(x, t):
        asked.append(t)
        return torch.zeros_like(x)

    integrate(field, noise(3, 2).float(), Schedule((1.0, 0.5, 0.0)), "heun")
    assert [t.tolist() for t in asked] == [[1.0] * 3, [0.5] * 3, [0.5] * 3]


def test_the_callback_sees_the_estimate_and_can_stop():
    data, end = noise(2, 3), noise(2, 3, seed=2)
    seen = []
    integrate(lambda x, t: end - data, end, plain(3), on_step=lambda i, estimate: seen.append((i, estimate)))
    assert [i for i, _ in seen] == [0, 1, 2]
    for _, estimate in seen:
        close(estimate, data, 1e-12)
    stopped = integrate(lambda x, t: end - data, end, plain(4), on_step=lambda i, estimate: i < 1)
    close(stopped, (data + end) / 2, 1e-12)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_renewed_noise_still_leads_to_the_data(solver, eta):
    """Where the data is known the velocity follows from x, and whatever noise is added goes again."""
    data, source = noise(2, 3, 4), torch.Generator().manual_seed(1)
    drawn = []

    def fresh():
        drawn.append(torch.randn(2, 3, 4, generator=source, dtype=torch.float64))
        return drawn[-1]

    def field(x, t):
        return (x - data) / t[:, None, None]

    close(integrate(field, noise(2, 3, 4, seed=2), plain(6), solver, eta=eta, fresh=fresh), data, 1e-12)
    assert len(drawn) == 5  # none after the last step


def test_renewing_keeps_the_spread_of_the_noise():
    """Data is zero, so x over its time is noise alone: of variance one whatever part of it is new."""
    source = torch.Generator().manual_seed(1)
    seen = []

    def field(x, t):
        seen.append(x / t[0])
        return x / t[0]

    integrate(
        field,
        torch.randn(4, 5000, generator=source),
        plain(4),
        eta=0.6,
        fresh=lambda: torch.randn(4, 5000, generator=source),
    )
    for before, after in itertools.pairwise(seen):
        assert abs(float(after.var()) - 1) < 0.05
        assert abs(float((before * after).mean()) - 0.8) < 0.05  # sqrt(1 - 0.36)


def test_all_new_noise_is_what_diffusers_calls_stochastic_sampling():
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True, shift=3.0)
    theirs.set_timesteps(sigmas=list(plain(5).told))
    start, weight = torch.randn(2, 4, 3, 3), torch.tensor(0.7)
    x, generator = start, torch.Generator().manual_seed(9)
    for t in theirs.timesteps:
        x = theirs.step(weight * x + t / 1000, t, x, generator=generator).prev_sample
    again = torch.Generator().manual_seed(9)
    ours = integrate(
        lambda x, t: weight * x + t[0],
        start,
        plain(5, 3.0),
        eta=1.0,
        fresh=lambda: torch.randn(2, 4, 3, 3, generator=again),
    )
    close(ours, x, 1e-5)


def test_eta_is_a_share_and_needs_noise():
    with pytest.raises(ValueError, match=r"eta is 1\.5; it must lie between 0 and 1"):
        integrate(_decay, noise(1, 1), Schedule((1.0, 0.0)), eta=1.5)
    with pytest.raises(ValueError, match=r"eta is 0\.5: the solver 'unipc'"):
        integrate(_decay, noise(1, 1), Schedule((1.0, 0.0)), "unipc", eta=0.5, fresh=lambda: noise(1, 1))
    with pytest.raises(ValueError, match=r"eta is 0\.5: there must be a source of fresh noise"):
        integrate(_decay, noise(1, 1), Schedule((1.0, 0.0)), eta=0.5)


def test_tensors_that_are_denoised_together_have_a_solver_each():
    """One field that mixes them; each goes as it would in one tensor with the other."""
    start = {"a": noise(2, 3), "b": noise(2, 4, seed=2)}

    def together(x, t):
        shared = x["a"].mean(1, keepdim=True) + x["b"].mean(1, keepdim=True)
        return {"a": x["a"] * shared, "b": x["b"] - shared * t[:, None]}

    def joined(x, t):
        found = together({"a": x[:, :3], "b": x[:, 3:]}, t)
        return torch.cat([found["a"], found["b"]], dim=1)

    for solver in ("euler", "heun", "unipc"):
        apart = integrate(together, start, plain(7, 2.0), solver)
        whole = integrate(joined, torch.cat([start["a"], start["b"]], dim=1), plain(7, 2.0), solver)
        close(torch.cat([apart["a"], apart["b"]], dim=1), whole, 1e-12)


def test_unknown_solvers():
    with pytest.raises(ValueError, match=r"'rk4' is unknown; known: euler, heun, unipc"):
        integrate(_decay, noise(1, 1), Schedule((1.0, 0.0)), "rk4")


# -- guidance --------------------------------------------------------------------------------------------------------


def test_guidance_by_hand():
    conditional, unconditional = torch.tensor([3.0]), torch.tensor([1.0])
    for scale, expected in ((0.0, 1.0), (1.0, 3.0), (2.5, 6.0)):
        assert Guidance(scale).combine(conditional, unconditional).item() == expected


def test_guidance_asks_for_both_branches_only_where_it_is_active():
    asked = []

    def conditional(x, t):
        asked.append(("one", float(t[0])))
        return torch.full_like(x, 3.0)

    def both(x, t):
        asked.append(("both", float(t[0])))
        return torch.full_like(x, 3.0), torch.full_like(x, 1.0)

    velocity = guided(conditional, both, Guidance(2.0, (0.25, 0.75)))
    found = [float(velocity(torch.zeros(1, 1), torch.tensor([t]))) for t in (1.0, 0.75, 0.5, 0.25, 0.1)]
    assert found == [3.0, 3.0, 5.0, 3.0, 3.0], "the ends are outside"
    assert [kind for kind, _ in asked] == ["one", "one", "both", "one", "one"]
    assert [Guidance(2.0, (0.5, 1.0)).active(t) for t in (1.0, 0.9, 0.5)] == [True, True, False]
    asked.clear()
    guided(conditional, both, Guidance(1.0))(torch.zeros(1, 1), torch.tensor([0.5]))
    assert asked == [("one", 0.5)]


def test_normalised_guidance_is_not_longer_than_the_conditional_branch():
    """Of each sample alone, over all of its tensors together; what is shorter stays."""
    conditional = {"video": torch.tensor([[3.0, 0.0], [1.0, 0.0]]), "sound": torch.tensor([[4.0], [0.0]])}
    away = {"video": torch.tensor([[0.0, 0.0], [2.0, 0.0]]), "sound": torch.tensor([[0.0], [0.0]])}
    plain_one = Guidance(2.0).combine(conditional, away)
    close(plain_one["video"], torch.tensor([[6.0, 0.0], [0.0, 0.0]]), 0)
    normed = Guidance(2.0, normalize=True).combine(conditional, away)
    close(normed["video"], torch.tensor([[3.0, 0.0], [0.0, 0.0]]), 1e-6)
    close(normed["sound"], torch.tensor([[4.0], [0.0]]), 1e-6)
    alone = Guidance(2.0, normalize=True).combine(conditional["video"], away["video"])
    close(alone, torch.tensor([[3.0, 0.0], [0.0, 0.0]]), 1e-6)


@pytest.mark.parametrize("scale", [-0.1, 101, math.nan, math.inf])
def test_guidance_has_limits(scale):
    with pytest.raises(ValueError, match="between 0 and 100"):
        Guidance(scale)


@pytest.mark.parametrize("interval", [(0.8, 0.2), (-0.1, 1.0), (0.0, 1.5), (math.nan, 1.0)])
def test_guidance_intervals_lie_within_the_time(interval):
    with pytest.raises(ValueError, match="interval"):
        Guidance(2.0, interval)


# -- the head --------------------------------------------------------------------------------------------------------


def head(patch=2, channels=3, **changes) -> LatentHead:
    config = LatentConfig(patch_size=patch, channels=channels, **changes)
    return fill(LatentHead(8, config)).double()


@torch.no_grad()
def test_patches_are_rows_of_row_column_channel():
    """Tokens in reading order; in a token the channel runs fastest (Cosmos 3)."""
    plain = LatentHead(12, LatentConfig(patch_size=2, channels=3))
    plain.proj_in.weight.copy_(torch.eye(12))
    plain.proj_in.bias.zero_()
    latents = torch.arange(24.0).view(1, 3, 2, 4)  # channel c, row y, column x holds 8 c + 4 y + x
    expected = [[8 * c + 4 * y + x for y in (0, 1) for x in (2 * w, 2 * w + 1) for c in range(3)] for w in (0, 1)]
    assert plain.read(latents)[0].tolist() == expected


@pytest.mark.parametrize(("patch", "channels", "size"), [(1, 4, (3, 5)), (2, 3, (4, 6)), (4, 1, (8, 4))])
@torch.no_grad()
def test_writing_undoes_reading(patch, channels, size):
    """With projections that undo each other, every number comes back to its place."""
    width = channels * patch**2
    through = LatentHead(width, LatentConfig(patch_size=patch, channels=channels)).double()
    for linear in (through.proj_in, through.proj_out):
        linear.weight.copy_(torch.eye(width))
        linear.bias.zero_()
    through.norm = torch.nn.Identity()
    latents = noise(2, channels, *size)
    tokens = through.read(latents)
    assert tokens.shape == (2, size[0] * size[1] // patch**2, width)
    close(through.write(tokens, latents, torch.rand(2)), latents, 1e-12)


@torch.no_grad()
def test_a_table_tells_tokens_where_they_are():
    placed = head(max_grid=3)
    assert placed.positions.shape == (9, 8)
    bare = head()
    bare.load_state_dict({k: v for k, v in placed.state_dict().items() if k != "positions"})
    latents = noise(2, 3, 6, 6)
    close(placed.read(latents) - bare.read(latents), placed.positions.expand(2, -1, -1), 1e-12)
    # Other sizes: a table that rises evenly from left to right still does, from end to end.
    placed.positions.copy_(torch.arange(3.0)[None, :, None].expand(3, 3, 8).reshape(9, 8))
    wide = noise(1, 3, 4, 24)
    rise = (placed.read(wide) - bare.read(wide)).view(2, 12, 8)
    close(rise[0], rise[1], 1e-12)
    assert (rise[0].diff(dim=0) > -1e-12).all()
    close(rise[0, [0, -1], 0], torch.tensor([0.0, 2.0], dtype=torch.float64), 1e-6)


@torch.no_grad()
def test_a_predicted_sample_becomes_a_velocity():
    """v = (x_t - data) / t: the velocity that leads from x_t to the prediction in the time that is left."""
    velocity, sample = head(), head(prediction="sample")
    latents, tokens = noise(3, 3, 4, 4), noise(3, 4, 8, seed=2)
    t = torch.tensor([1.0, 0.4, 0.01], dtype=torch.float64)
    data = velocity.write(tokens, latents, t)
    got = sample.write(tokens, latents, t)
    for i, divided in enumerate((1.0, 0.4, MIN_TIME)):
        close(got[i], (latents[i] - data[i]) / divided, 1e-12)
    close(latents[1] - 0.4 * got[1], data[1], 1e-12)


@torch.no_grad()
def test_a_head_with_gains_begins_without_them_and_may_then_read_the_sample_off():
    torch.manual_seed(0)
    plain = LatentHead(8, LatentConfig(patch_size=2, channels=3, prediction="sample")).double()
    gaining = LatentHead(8, LatentConfig(patch_size=2, channels=3, prediction="sample", gain=True)).double()
    gaining.load_state_dict(plain.state_dict(), strict=False)
    latents, tokens, t = noise(2, 3, 4, 4), noise(2, 4, 8, seed=2), torch.tensor([0.4, 0.9], dtype=torch.float64)
    close(gaining.write(tokens, latents, t), plain.write(tokens, latents, t), 0)
    data = latents - t.view(2, 1, 1, 1) * plain.write(tokens, latents, t)
    gaining.gain.bias.fill_(0.25)  # of every number
    close(latents - t.view(2, 1, 1, 1) * gaining.write(tokens, latents, t), data + latents / 4, 1e-12)
    one = torch.zeros(12, dtype=torch.float64)
    one[7] = 1.0  # of a patch's number 7: row 1, column 0, channel 1
    gaining.gain.bias.copy_(one)
    changed = latents - t.view(2, 1, 1, 1) * gaining.write(tokens, latents, t) - data
    expected = torch.zeros_like(latents)
    expected[:, 1, 1::2, ::2] = latents[:, 1, 1::2, ::2]
    close(changed, expected, 1e-12)


@torch.no_grad()
def test_the_head_norms_before_it_projects():
    module, tokens, latents = head(patch=1, channels=2), noise(1, 6, 8), noise(1, 2, 2, 3)
    normed = tokens * (tokens.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * module.norm.weight
    expected = module.proj_out(normed)[0].T.reshape(1, 2, 2, 3)
    close(module.write(tokens, latents, torch.ones(1)), expected, 1e-12)


@torch.no_grad()
def test_sides_that_do_not_divide_are_filled_up_with_zeros():
    module, latents = head(), noise(2, 3, 5, 7)
    filled = torch.zeros(2, 3, 6, 8, dtype=torch.float64)
    filled[:, :, :5, :7] = latents
    close(module.read(latents), module.read(filled), 0)
    tokens = noise(2, 12, 8)
    found = module.write(tokens, latents, torch.ones(2))
    close(found, module.write(tokens, filled, torch.ones(2))[:, :, :5, :7], 0)


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["velocity", "sample"])
def test_a_video_is_its_frames_one_after_the_other(prediction):
    module, video, tokens = head(prediction=prediction, max_grid=3), noise(2, 3, 3, 4, 6), noise(2, 18, 8)
    close(module.read(video), torch.cat([module.read(frame) for frame in video.unbind(2)], dim=1), 0)
    t = torch.tensor([0.3, 0.9])
    frames = [module.write(part, frame, t) for part, frame in zip(tokens.split(6, 1), video.unbind(2), strict=True)]
    close(module.write(tokens, video, t), torch.stack(frames, dim=2), 0)


def test_latents_that_do_not_fit():
    with pytest.raises(ValueError, match=r"latents are \(b, 3, .*not \(1, 2, 4, 4\)"):
        head().read(torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match=r"not \(3, 4, 4\)"):
        head().read(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match=r"\(1, 3, 0, 4\) are empty"):
        head().grid(torch.zeros(1, 3, 0, 4))


def test_positions_of_a_grid():
    got = stream_positions((1, 2, 3), torch.tensor([7, 100]), None, 1.0)
    assert got.shape == (3, 2, 6)
    assert got[0].tolist() == [[7] * 6, [100] * 6]
    assert got[1, 1].tolist() == [0, 0, 0, 1, 1, 1]
    assert got[2, 0].tolist() == [0, 1, 2, 0, 1, 2]
