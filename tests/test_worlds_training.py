"""Training on videos, sounds and actions with a micro system: batches, masks, losses that fall, exact resumption."""

import math
from functools import lru_cache, partial

import numpy as np
import pytest
import torch
import yaml
from micro import CODEC_LATENT, MICRO

from omni import families, training, training_steps, training_worlds
from omni.config import ActionConfig, ConfigError, Embodiment, Normalizer, replace
from omni.data import HELD_OUT_SEEDS, TRAIN_SEEDS, worlds
from omni.data.motion import KINDS
from omni.data.rollout import CANVAS, FRAMES, Rollout
from omni.data.scenes import BACKGROUNDS, COLORS
from omni.families import save
from omni.families.base import Preset
from omni.model import Omni
from omni.recipe import MODES, ActPlan, AnimatePlan, load_recipe
from omni.streams import Scene
from omni.tokenizers.action import decode
from omni.training import OmniTraining, build, train
from omni.training_parts import load_weights
from omni.training_steps import Steps, encoding
from omni.training_worlds import ThingHead, TrackHead, read_prompts, streams

CENTRED = Normalizer(method="minmax", offset=(32.0, 32.0), scale=(32.0, 32.0))
BODIES = (
    Embodiment(name="dot", domain=1, width=2, normalizer=CENTRED, fps=10.0),
    Embodiment(name="tall", domain=0, width=1, fps=10.0),
)
SIZES = replace(
    MICRO,
    latent=replace(CODEC_LATENT, patch_frames=4, clock=4, positions_a_second=10.0),
    action=ActionConfig(width=3, n_domains=2, positions_a_second=10.0, embodiments=BODIES),
)
FROZEN = ("embed", "context", "head", "vision", "projector")


def dot(seed: int, still: bool = False, way: str = "recorded", width: int = 2) -> Rollout:
    """A bright square, and actions that lead it to the right: where it will be, in pixels, or its height alone."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(4, 28), rng.integers(4, 56)
    places = np.stack([x + 2 * np.arange(FRAMES), np.full(FRAMES, y)], axis=1).astype(np.float32)
    frames = np.zeros((FRAMES, CANVAS, CANVAS, 3), np.uint8)
    for frame, (left, top) in zip(frames, places.astype(int), strict=True):
        frame[top - 4 : top + 4, left - 4 : left + 4] = 255
    actions = places[1:] if width == 2 else (places[1:, 1:] / CANVAS)
    name = "dot" if width == 2 else "tall"
    return Rollout("go right", frames, 10.0, actions=actions, embodiment=name, tracks={"square": places})


@pytest.fixture(autouse=True, scope="module")
def micro_worlds():
    """Robots whose simulators cost nothing, and the micro sizes under a preset's name."""
    known, robots = families.presets(), dict(worlds.ROBOTS)
    known["omni-micro-worlds"] = Preset(SIZES, "omni-micro-worlds")
    scenes, training.CODEC_SCENES = training.CODEC_SCENES, 20
    worlds.ROBOTS.update(zip(robots, (dot, partial(dot, width=1)), strict=True))
    yield
    worlds.ROBOTS.update(robots)
    training.CODEC_SCENES = scenes
    del known["omni-micro-worlds"]


def recipe_file(folder, **changes):
    stage = {
        "name": "worlds",
        "steps": 4,
        "lr": 2e-3,
        "animate": {"size": 1, "sound": 0.0, "every": 2},
        "act": {"size": 1, "every": 2},
    }
    plain = {
        "model": "omni-micro-worlds",
        "seed": 3,
        "warmup": 2,
        "log_every": 1,
        "save_every": 2,
        "probe_every": 2,
        "accelerator": "cpu",
        "frozen": list(FROZEN),
        "stages": [stage],
    }
    path = folder / "worlds.yaml"
    path.write_text(yaml.safe_dump(plain | changes))
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return recipe_file(tmp_path_factory.mktemp("recipes"))


@pytest.fixture
def module(recipe) -> OmniTraining:
    return build(load_recipe(recipe)).train()


# -- batches ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(recipe):
    return encoding(build(load_recipe(recipe)).model)


def test_batches_are_functions_of_the_seed_and_of_training_seeds(words, monkeypatch):
    seen = []
    monkeypatch.setitem(worlds.ROBOTS, "pusht", lambda seed, *_: seen.append(seed) or dot(seed % 1000))
    one, again, other = (worlds.act_batch(seed, 3, words, worlds={"pusht": 1.0}) for seed in (5, 5, 6))
    assert torch.equal(one.frames, again.frames)
    assert torch.equal(one.actions, again.actions)
    assert not torch.equal(one.frames, other.frames)
    assert all(seed in TRAIN_SEEDS and seed not in HELD_OUT_SEEDS for seed in seen)
    moving = [worlds.animate_batch(seed, 2, words, kinds={"slide": 1.0}) for seed in (5, 5, 6)]
    assert torch.equal(moving[0].frames, moving[1].frames)
    assert not torch.equal(moving[0].frames, moving[2].frames)


def test_each_mode_gives_what_it_says(words):
    given = {mode: worlds.act_batch(1, 4, words, modes={mode: 1.0}, drop=0.0) for mode in MODES}
    first = torch.arange(FRAMES) == 0
    for mode, frames, actions in (("policy", first, False), ("forward", first, True), ("inverse", first | True, False)):
        batch = given[mode]
        assert torch.equal(batch.given, frames.expand(4, -1)), mode
        assert bool(batch.given_actions.all()) == bool(batch.given_actions.any()) == actions, mode
        assert batch.frames.shape == (4, 3, FRAMES, CANVAS, CANVAS)
        assert batch.frames.dtype == torch.uint8
    mixed = worlds.act_batch(1, 40, words)
    kinds = {(int(g.sum()), bool(a.all())) for g, a in zip(mixed.given, mixed.given_actions, strict=True)}
    assert kinds == {(1, False), (1, True), (FRAMES, False)}


def test_actions_are_normalised_and_filled_up(words):
    batch = worlds.act_batch(2, 12, words)
    assert set(batch.domains.tolist()) == {0, 1}
    for row, domain, width, track in zip(batch.actions, batch.domains, batch.widths, batch.tracks, strict=True):
        body = next(b for b in BODIES if b.domain == int(domain))
        assert int(width) == body.width
        assert not bool(row[:, body.width :].any())
        places = track[0, 1:] * CANVAS
        own = places if body.width == 2 else places[:, 1:] / CANVAS
        torch.testing.assert_close(decode(row[:, : body.width], body), own, atol=1e-4, rtol=1e-4)


def test_first_frames_alone_come_in_more_rows(words):
    batch = worlds.act_batch(3, 2, words, still=True)
    assert batch.frames.shape == (2 * worlds.STILL_ROWS, 3, 1, CANVAS, CANVAS)
    assert bool(batch.given.all())
    assert not bool(batch.given_actions.any())
    assert batch.actions.shape[1] == batch.tracks.shape[2] - 1 == FRAMES - 1


def test_a_share_of_rollouts_is_played_on(words, recipe, monkeypatch):
    """A policy's actions stay the expert's, those of the other modes need not; the plan's shares arrive."""
    seen = []

    def note(world, seed, still, way):
        seen.append((world, way))
        return dot(seed % 1000, width=1 + (world == "pusht"))

    for world in worlds.ROBOTS:
        monkeypatch.setitem(worlds.ROBOTS, world, partial(note, world))
    shares = {"shaken": {"omni_arm": 1.0}, "driven": 1.0}
    for modes, still in (({"policy": 1.0}, False), ({"policy": 1.0}, True), ({"forward": 1.0, "inverse": 1.0}, False)):
        seen.clear()
        worlds.act_batch(1, 20, words, modes=modes, still=still, **shares)
        expected = {("pusht", "recorded"), ("omni_arm", "shaken")}
        assert set(seen) == (expected if "policy" in modes else {("pusht", "driven"), ("omni_arm", "driven")})
    seen.clear()
    plan = ActPlan(size=40, still=1.0, shaken={"pusht": 0.5})
    stage = replace(load_recipe(recipe).stages[0], animate=None, act=plan)
    Steps(replace(load_recipe(recipe), stages=(stage,)), words).batches(0)
    assert set(seen) == {("pusht", "recorded"), ("pusht", "shaken"), ("omni_arm", "recorded")}


def test_rollouts_are_shown_again_with_others_that_are_new(words, recipe, monkeypatch):
    """Each worker draws from its own, which move on by the share that is new; another noise comes with the step."""
    made = []
    for world in worlds.ROBOTS:
        monkeypatch.setitem(worlds.ROBOTS, world, lambda seed, *_: made.append(seed) or dot(seed % 1000))
    monkeypatch.setattr(training_steps, "KEPT", 12)
    monkeypatch.setattr(worlds, "_acting_again", lru_cache(100)(worlds._acting))
    plan = ActPlan(size=8, still=0.5, part=0.5, drop=0.0)
    stage = replace(load_recipe(recipe).stages[0], animate=None, act=plan)
    steps = Steps(replace(load_recipe(recipe), stages=(replace(stage, steps=1000),), fresh=0.25, workers=2), words)
    rows = [len(steps.batches(step)["act"][1].frames) for step in range(0, 60, 2)]
    first = set(made)
    assert set(rows) == {8, 16, 32}, "all, groups, and first frames"
    assert len(made) == len(first) < 0.5 * sum(rows), "none is made twice"
    expected = 3 * 12 + 30 * 0.25 * (0.5 * 32 + 0.25 * 16 + 0.25 * 8)
    assert 0.6 * expected < len(made) < 1.1 * expected
    assert torch.equal(steps.batches(58)["act"][1].frames, steps.batches(58)["act"][1].frames)
    steps.batches(59)
    assert not set(made[len(first) :]) & first, "another worker's"
    moving = [worlds.animate_batch(seed, 6, words, drop=0.0, again=["a", "b"]) for seed in (1, 2)]
    assert len({frames.numpy().tobytes() for batch in moving for frames in batch.frames}) == 2


def test_sentences_are_left_out_and_first_frames_too(words):
    kept, dropped = (worlds.animate_batch(4, 6, words, drop=drop, free=drop) for drop in (0.0, 1.0))
    assert dropped.input_ids.shape[1] == 2 < kept.input_ids.shape[1]
    assert kept.mask.sum(1).min() > 2
    assert bool(kept.given[:, 0].all())
    assert not bool(dropped.given.any())
    assert not bool(kept.given[:, 1:].any())
    assert kept.sound is None


def test_only_things_that_the_sentence_names_are_asked_for(words):
    asked, silent = (
        worlds.animate_batch(6, 16, words, drop=drop).tracks.isfinite().any(dim=(2, 3)) for drop in (0.0, 1.0)
    )
    rollouts = [worlds.sample_motion(TRAIN_SEEDS.start + 6 * 4096 + i) for i in range(16)]
    named = [[name in rollout.prompt for name in rollout.tracks] for rollout in rollouts]
    assert asked.tolist() == [row + [False] * (worlds.TRACKS - len(row)) for row in named]
    assert asked[:, 0].all()
    assert {row.count(False) for row in named} >= {0, 1}, "some are not named"
    assert not silent.any(), "nobody says who is meant"


def test_processes_and_kinds_take_their_own(words, recipe):
    plan = load_recipe(recipe)
    steps = [Steps(plan, words, part=part, parts=2).batches(step) for step in (0, 1) for part in (0, 1)]
    kinds = [set(made) for made in steps]
    assert kinds[0] == kinds[1] != kinds[2] == kinds[3]  # in turn, all processes the same
    for a, b in ((steps[0], steps[1]), (steps[2], steps[3])):
        for kind in a:
            assert a[kind][1].frames.shape == b[kind][1].frames.shape
            assert not torch.equal(a[kind][1].frames, b[kind][1].frames)


def test_a_part_of_a_video_has_one_group_of_frames_and_more_rows(words, recipe):
    plan = AnimatePlan(size=2, sound=1.0, part=1.0)
    stage = replace(load_recipe(recipe).stages[0], animate=plan, act=None)
    recipe = replace(load_recipe(recipe), stages=(stage,))
    made = [
        Steps(recipe, words, part=part, parts=2).batches(step)["animate"][1] for step in range(8) for part in (0, 1)
    ]
    groups = [batch.group for batch in made]
    assert groups[::2] == groups[1::2]  # all processes the same
    assert set(groups) == {0, 1, 2, 3}
    assert all(len(batch.frames) == 2 * worlds.PART_ROWS and batch.sound is None for batch in made)


@torch.no_grad()
def test_a_part_of_a_robots_video_asks_for_frames_or_actions_but_not_what_led_through_all(words, recipe, module):
    plan = ActPlan(size=3, draws=1, part=1.0)
    stage = replace(load_recipe(recipe).stages[0], animate=None, act=plan)
    steps = Steps(replace(load_recipe(recipe), stages=(stage,)), words)
    made = [steps.batches(step)["act"][1] for step in range(12)]
    assert {batch.group for batch in made} == {0, 1, 2, 3}
    assert all(len(batch.frames) == 3 * worlds.PART_ROWS for batch in made)
    given = torch.cat([batch.given for batch in made])
    assert given[:, 0].all()
    assert not given[:, 1:].any()
    assert set(torch.cat([batch.given_actions[:, 0] for batch in made]).tolist()) == {True, False}
    parts = module.act_losses(plan, made[0])
    assert set(parts) == {"act", "act_tracks", "act_seen", "act_video"}
    assert all(float(loss) > 0 for _, loss in parts.values())


def test_squares_are_named_by_the_colour_that_covers_them(words):
    frames = np.full((2, 32, 48, 3), BACKGROUNDS["gray"], np.uint8)
    frames[0, 8:16, 16:24] = COLORS["blue"]
    frames[1, 8:16, 20:28] = COLORS["blue"]  # half of either square
    frames[1, 24:32, 0:2] = COLORS["red"]  # a quarter
    names = worlds._colors(frames, 8)
    blue = 1 + list(COLORS).index("blue")
    assert names.shape == (2, 4, 6)
    assert np.argwhere(names).tolist() == [[0, 1, 2], [1, 1, 2], [1, 1, 3]]
    assert set(names[names > 0].tolist()) == {blue}
    batch = worlds.animate_batch(3, 4, words, kinds={"recolor": 1.0})
    assert batch.shown.shape == (4, FRAMES, 8, 8)
    assert set(batch.deeds.tolist()) == {list(KINDS).index("recolor")}
    for row in batch.shown:
        assert set(row[-1].flatten().tolist()) - set(row[0].flatten().tolist()), "a colour that was not there"


def test_unknown_worlds_and_modes():
    with pytest.raises(ValueError, match=r"no worlds \['chess'\]"):
        worlds.act_batch(1, 1, None, worlds={"chess": 1.0})
    with pytest.raises(ConfigError, match=r"names \['guess'\]; known: policy"):
        ActPlan(size=1, modes={"guess": 1.0})
    with pytest.raises(ConfigError, match=r"ActPlan\.still is 2"):
        ActPlan(size=1, still=2)
    with pytest.raises(
        ConfigError, match=r"ActPlan\.part is 0\.5; parts are of rollouts of worlds, and not for inverse"
    ):
        ActPlan(size=1, part=0.5, modes={"inverse": 1.0})
    with pytest.raises(ConfigError, match=r"ActPlan\.shaken has {'pusht': 1\.5}; shares are from 0 to 1"):
        ActPlan(size=1, shaken={"pusht": 1.5})
    with pytest.raises(ConfigError, match=r"ActPlan\.driven is 2"):
        ActPlan(size=1, driven=2)
    with pytest.raises(ConfigError, match="a dataset's windows are as recorded"):
        ActPlan(size=1, dataset="somewhere", driven=0.5)
    with pytest.raises(ValueError, match=r"no worlds \['chess'\]"):
        worlds.act_batch(1, 1, None, shaken={"chess": 1.0})
    with pytest.raises(ConfigError, match=r"AnimatePlan\.kinds is {}"):
        AnimatePlan(size=1, kinds={})


# -- losses ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_only_what_is_noisy_is_asked_for(module, words):
    """A change of what is asked of given frames, given actions and numbers behind the width changes no loss."""
    plan = ActPlan(size=3, draws=2)
    for mode, expected in (
        ("forward", {"act": False, "act_video": True}),
        ("inverse", {"act": True, "act_video": False}),
    ):
        batch = worlds.act_batch(1, 3, words, modes={mode: 1.0})
        torch.manual_seed(0)
        parts = module.act_losses(plan, batch)
        for name, asked in expected.items():
            assert (float(parts[name][1]) > 0) == asked, (mode, name)


@torch.no_grad()
def test_the_denoiser_is_shown_given_parts_as_they_are(module, words, monkeypatch):
    batch = worlds.act_batch(1, 6, words)
    data, _ = streams(module.model, batch)
    shown = []
    denoise = module.model.denoise
    monkeypatch.setattr(module.model, "denoise", lambda *a: shown.append(a) or denoise(*a))
    module.act_losses(ActPlan(size=6, draws=1, time_mean=5.0), batch)
    state, t, _, scene = shown[0]
    assert float(t.min()) > 0.5
    same = (state["video"] == data["video"]).all(dim=1).flatten(2).all(dim=2)
    assert torch.equal(same, batch.given)
    meant = torch.arange(3) < batch.widths[:, None, None]
    assert not bool(state["action"][~meant.expand_as(state["action"])].any())
    kept = (state["action"] == data["action"])[meant.expand_as(state["action"])]
    own = batch.given_actions[..., None].expand_as(state["action"])[meant.expand_as(state["action"])]
    assert torch.equal(kept, own)
    assert torch.equal(scene.clean["video"], batch.given)
    assert torch.equal(scene.fps, torch.full((6,), 10.0))


@torch.no_grad()
def test_one_group_is_denoised_at_its_own_moments(module, words, monkeypatch):
    batch = replace(worlds.animate_batch(1, 2, words), group=2)
    data, _ = streams(module.model, batch)
    shown, found = [], []
    denoise = module.model.denoise
    monkeypatch.setattr(module.model, "denoise", lambda *a: shown.append(a) or found.append(denoise(*a)) or found[-1])
    parts = module.animate_losses(AnimatePlan(size=2, draws=1), batch)
    state, _, context, scene = shown[0]
    assert state["video"].shape[2] == 5
    assert torch.equal(state["video"][:, :, 0], data["video"][:, :, 0])
    assert scene.moments == (0, 3)
    assert {"animate", "animate_tracks", "animate_things", "animate_deeds"} == set(parts)
    heads, first = module.model._heads(), context.next_positions()
    clean = {"video": batch.given}
    whole = heads.pack(data, Scene(fps=batch.fps, clean=clean), first)
    kept = [0, 9, 10, 11, 12]
    part = {"video": data["video"][:, :, kept]}
    some = heads.pack(part, replace(scene, clean={"video": batch.given[:, kept]}), first)
    own = torch.cat([torch.arange(64), torch.arange(192, 256)])
    torch.testing.assert_close(some.tokens, whole.tokens[:, own])
    torch.testing.assert_close(some.positions, whole.positions[:, :, own])
    assert torch.equal(some.noisy, whole.noisy[:, own])
    for moments in ((0, 1, 2), (3, 0), (0, 0), (-1, 2)):
        with pytest.raises(ValueError, match="moments are"):
            heads.pack(part, replace(scene, moments=moments), first)


@torch.no_grad()
def test_a_predicted_sample_counts_no_more_than_itself_when_little_noise_is_left(module, words, monkeypatch):
    """Of a sample that is wrong by d the velocity is wrong by d / t."""
    model = module.model
    model.config = replace(model.config, latent=replace(model.config.latent, prediction="sample"))
    model.latents.config = model.config.latent
    batch = replace(worlds.animate_batch(1, 2, words, drop=0.0), given=torch.zeros(2, FRAMES, dtype=torch.bool))
    for layer in (model.latents.proj_out, model.latents.next_out):
        layer.weight.zero_()
        layer.bias.zero_()  # wrong by the data
    data, _ = streams(model, batch)
    wrong = float(data["video"].square().mean())
    for time, share in ((1.0, 1.0), (0.8, 1 / 0.8**2), (0.5, 4.0), (0.1, 4.0)):
        monkeypatch.setattr(training_worlds, "sample_times", lambda n, *_, time=time: torch.full((n,), time))
        found = module.animate_losses(AnimatePlan(size=2, draws=1), batch)["animate"][1]
        assert float(found) == pytest.approx(wrong * share, rel=1e-4), time


def test_a_frozen_context_keeps_no_graph_and_learns_nothing(module, words):
    batch = worlds.act_batch(1, 2, words)
    cache, hidden = read_prompts(module.model, batch.input_ids, batch.mask)
    assert not hidden.requires_grad
    assert not any(t.requires_grad for slot in cache.slots if slot for t in slot.tensors().values())
    sum(w * loss for w, loss in module.act_losses(ActPlan(size=2), batch).values()).backward()
    moved = {n.split(".")[0] for n, p in module.model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"denoiser", "latents", "actions"} <= moved
    assert not moved & set(FROZEN)


def test_places_are_read_where_the_tokens_say():
    head = TrackHead(4, 4)
    with torch.no_grad():
        for layer in (head.first, head.later):
            layer.weight.zero_()
            layer.bias.zero_()
        head.first.weight[::3, 0] = 50.0  # how much a token counts
        head.later.weight[::3, 0] = 50.0
    hidden = torch.zeros(1, 3 * 8, 4)
    hidden[0, 5, 0] = hidden[0, 8 + 2, 0] = hidden[0, 16 + 7, 0] = 1.0  # one token in each frame of tokens, 2 x 4
    found = head.video(hidden, (3, 2, 4))
    assert found.shape == (1, worlds.TRACKS, 9, 2)
    expected = torch.tensor([[1.5 / 4, 0.75]] + [[2.5 / 4, 0.25]] * 4 + [[3.5 / 4, 0.75]] * 4)
    torch.testing.assert_close(found[0, 0], expected)
    assert head.action(torch.zeros(1, 5, 4)).shape == (1, worlds.TRACKS, 5, 2)


def test_colours_are_named_frame_by_frame():
    head = ThingHead(4, 4)
    with torch.no_grad():
        head.later.weight.zero_()
        head.later.bias.zero_()
        for frame in range(4):
            head.later.weight[frame * head.n_colors + 1 + frame, 0] = 1.0  # colour 1 + f in frame f of a group
    hidden = torch.zeros(1, 3 * 8, 4)
    hidden[0, 8 + 2, 0] = hidden[0, 16 + 7, 0] = 1.0  # one token in each group
    found = head.colors(hidden, (3, 2, 4)).view(1, 9, 8, head.n_colors)
    assert found[0, 1:].nonzero().tolist() == [[4 * g + f, (2, 7)[g], 1 + f] for g in range(2) for f in range(4)]
    assert head.deeds(hidden, (3, 2, 4)).shape == (1, len(KINDS))


def learned(module: OmniTraining, kind: str, plan, batches, steps: int) -> list[float]:
    """Total losses over ``steps`` of plain descent through ``batches`` again and again."""
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=5e-3)
    totals = []
    for step in range(steps):
        torch.manual_seed(step)
        parts = getattr(module, f"{kind}_losses")(plan, batches[step % len(batches)])
        total = sum(weight * loss for weight, loss in parts.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    return totals


def test_actions_are_learned_from_the_picture(module, words):
    """A policy's loss falls; on first frames of other rows, the control, it does not."""
    plan = ActPlan(size=4, draws=1, time_mean=2.0, still=1.0, track_weight=1.0)
    batches = [worlds.act_batch(i, 2, words, worlds={"pusht": 1.0}, still=True) for i in range(12)]
    totals = learned(module, "act", plan, batches, 120)
    start, end = (sum(part) / 12 for part in (totals[:12], totals[-12:]))
    assert math.isfinite(end)
    assert end < 0.5 * start
    held = worlds.act_batch(99, 4, words, worlds={"pusht": 1.0}, still=True)
    errors = []
    for batch in (held, replace(held, frames=held.frames.roll(1, dims=0))):
        torch.manual_seed(1)
        with torch.no_grad():
            errors.append(float(module.act_losses(plan, batch)["act"][1]))
    assert errors[0] < 0.7 * errors[1]


def test_videos_are_learned(module, words):
    plan = AnimatePlan(size=2, draws=2)
    batches = [worlds.animate_batch(i, 2, words, kinds={"slide": 1.0}) for i in range(3)]
    totals = learned(module, "animate", plan, batches, 30)
    assert sum(totals[-3:]) < 0.8 * sum(totals[:3])


# -- runs ------------------------------------------------------------------------------------------------------------


def state(out) -> dict[str, torch.Tensor]:
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]


def test_resuming_is_exact_and_the_frozen_stay(recipe, tmp_path, monkeypatch):
    train(recipe, out=tmp_path / "whole")
    step = OmniTraining.training_step

    def crash_at_two(self, batch, index):
        if self.global_step == 2:
            raise RuntimeError("power failure")
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(OmniTraining, "training_step", crash_at_two)
        with pytest.raises(RuntimeError, match="power failure"):
            train(recipe, out=tmp_path / "parts")
    halfway = state(tmp_path / "parts")
    train(recipe, out=tmp_path / "parts")
    whole, resumed = state(tmp_path / "whole"), state(tmp_path / "parts")
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    moved = {n.split(".")[1] for n, v in whole.items() if n.startswith("model.") and not torch.equal(v, halfway[n])}
    assert {"denoiser", "latents", "actions"} <= moved
    assert not moved & set(FROZEN)


def test_a_run_starts_from_a_model_of_pictures_alone(recipe, module, tmp_path):
    torch.manual_seed(5)
    pictures = Omni(replace(MICRO, latent=CODEC_LATENT))
    save(pictures, tmp_path / "pictures")
    fresh = module.model.actions.proj_in.weight.clone()
    load_weights(module, tmp_path / "pictures")
    own = module.model.state_dict()
    for name, value in pictures.state_dict().items():
        torch.testing.assert_close(own[name], value, msg=name, rtol=1e-2, atol=1e-2)  # stored in bfloat16
    assert torch.equal(own["actions.proj_in.weight"], fresh)
    torch.testing.assert_close(own["latents.next_in.weight"], own["latents.proj_in.weight"].repeat(1, 4) / 4)
    for name, value in module.ema.weights().items():
        assert torch.equal(value, own[name]), name
