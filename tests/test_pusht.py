import math
import subprocess
import sys
from random import Random

import numpy as np
import pytest

pytest.importorskip("pymunk", reason="needs omni[robot]")
import shapely

from omni.data import pusht, pusht_expert
from omni.data.episodes import Episode, Episodes
from omni.data.pusht import AGENT, GOAL, SIDE, SUCCESS, PushT, Table, coverage, draw_start, picture, tracks
from omni.data.pusht_expert import expert, foresee, play, pose_error, shake
from omni.data.rollout import FRAMES

ON_MARK = np.array([100.0, 100.0, *GOAL])


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    pytest.importorskip("gym_pusht", reason="needs omni[robot]")
    from gym_pusht.envs.pusht import PushTEnv

    return PushTEnv(obs_type="state")


@pytest.mark.parametrize("seed", [0, 1, 8])  # the T of seed 8 starts near a corner
def test_physics_starts_and_coverage_equal_those_of_gym_pusht(environment, seed):
    _, info = environment.reset(seed=seed)
    world = PushT()
    world.reset(seed)
    assert np.abs(np.concatenate([info["pos_agent"], info["block_pose"]]) - world.state).max() < 1e-9
    rng, moved = np.random.default_rng(seed), world.state
    for step in range(80):
        target = rng.uniform(0, SIDE, 2) if step % 8 < 3 else np.clip(world.state[2:4], 0, SIDE)
        _, reward, _, _, info = environment.step(target)
        _, mine, _ = world.step(target)
        assert np.abs(np.concatenate([info["pos_agent"], info["block_pose"]]) - world.state).max() < 1e-6
        assert abs(coverage(world.state[2:]) - info["coverage"]) < 1e-9
        assert abs(mine - reward) < 1e-9
    assert np.abs(world.state[2:4] - moved[2:4]).max() > 10  # the T was pushed


def test_coverage_of_known_poses():
    assert coverage(GOAL) == pytest.approx(1)
    assert coverage(np.array([100.0, 100.0, 0.0])) == 0
    one_off = GOAL + np.array(
        [math.cos(GOAL[2]), math.sin(GOAL[2]), 0]
    )  # along the bar: a strip of the T's height is lost
    assert coverage(one_off) == pytest.approx(1 - 120 / 6300)


def test_a_picture_shows_the_state_and_nothing_else():
    state = draw_start(5)
    first = picture(state)
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, picture(state))
    for axis, by in ((0, 2.0), (1, 2.0), (2, 2.0), (3, 2.0), (4, 0.05)):
        moved = state.copy()
        moved[axis] += by
        assert np.abs(picture(moved).astype(int) - first).max() > 10
    turned = state.copy()
    turned[4] += 2 * math.pi
    assert np.abs(picture(turned).astype(int) - first).max() <= 1


def test_tracks_are_where_the_picture_shows_them():
    state = np.array([60.0, 420.0, 380.0, 120.0, 2.0])
    seen, found = picture(state).astype(float), tracks(state[None])
    y, x = np.mgrid[:64, :64] + 0.5
    for thing, color in (("agent", pusht.AGENT_COLOR), ("T", pusht.T_COLOR)):
        share = np.abs(seen - color).max(axis=-1) < 60
        centre = np.array([x[share].mean(), y[share].mean()])
        assert np.abs(centre - found[thing][0]).max() < 0.8  # the T's gravity acts half a pixel from its middle


def test_foreseen_pushes_are_those_of_the_physics():
    """Over places and headings around the T, with the agent led along at half of LEAD a step."""
    pose, pushes = np.array([200.0, 240.0, 0.6]), 8
    turn = np.exp(1j * pose[2])
    centre = complex(*pose[:2]) + turn * pusht_expert.MASS_CENTRE
    picks = np.linspace(0, len(pusht_expert.PLACES) - 1, pushes).astype(int)
    starts = complex(*pose[:2]) + turn * pusht_expert.PLACES[picks]
    headings = turn * pusht_expert.HEADINGS[picks]
    errors, way = foresee(starts, headings, centre, turn), 60.0
    steps = round(way / pusht_expert.PUSH_STEP)
    changed = []
    for start, heading, foreseen in zip(starts, headings, errors[steps - 1], strict=True):
        table = Table(np.array([start.real, start.imag, *pose]))
        end = start + heading * way
        for step in range(40):
            target = start + heading * min(way, 5.0 * (step + 1))
            table.step(np.array([target.real, target.imag]))
        assert abs(complex(*table.state[:2]) - end) < 0.1
        after = np.exp(1j * table.state[4])
        real = pose_error(complex(*table.state[2:4]) + after * pusht_expert.MASS_CENTRE, after)
        assert abs(real - foreseen) < 2.5
        changed.append(abs(real - pose_error(np.array(centre), turn)))
    assert max(changed) > 20


@pytest.mark.parametrize("seed", [14, 24])
def test_the_expert_succeeds_and_random_actions_do_not(seed):
    world, rng, done = PushT(), np.random.default_rng(seed), False
    world.reset(seed)
    while not done:
        _, _, done = world.step(expert(world.state))
    assert world.score > SUCCESS
    assert world.steps < 200
    spent = world.steps
    world.reset(seed)
    for _ in range(spent):
        world.step(rng.uniform(0, SIDE, 2))
    assert world.score < 0.8


def test_the_expert_goes_around_the_t():
    """The T lies between the agent and the side that must be pushed; on the way there it stays where it is."""
    table = Table(np.array([150.0, 300.0, 380.0, 256.0, math.pi / 4]))
    before, agents = table.state, []
    for _ in range(12):
        table.step(expert(table.state))
        agents.append(table.state[:2])
    assert np.abs(table.state[2:] - before[2:]).max() < 1e-9
    assert math.dist(agents[-1], before[:2]) > 100


def test_the_expert_rests_on_the_mark():
    assert np.array_equal(expert(ON_MARK), ON_MARK[:2])


def test_episodes_tell_disturbances(monkeypatch):
    monkeypatch.setattr(pusht_expert, "LONGEST", 40)
    monkeypatch.setattr(pusht_expert, "WANDERS", 0.05)
    monkeypatch.setattr(pusht_expert, "NUDGES", 0.1)
    monkeypatch.setattr(pusht_expert, "SHAKES", 0.1)
    shaken = []
    monkeypatch.setattr(pusht_expert, "shake", lambda state, rng: shaken.append(state) or shake(state, rng))
    episode = play(3)
    assert episode.states.shape == (41, 5)
    assert episode.actions.shape == (40, 2)
    assert episode.states.dtype == episode.actions.dtype == np.float32
    assert not episode.expert[-1]  # cut off
    for state, action, by_expert in zip(episode.states, episode.actions, episode.expert, strict=False):
        if by_expert:  # states are kept in single precision, so plans may differ where two are equally good
            assert np.abs(action - state[:2]).max() <= pusht_expert.LEAD + 1e-3
    others = np.flatnonzero(~episode.expert)
    assert 5 < len(others) < 36
    jumps = np.abs(np.diff(episode.states[:, 2:4], axis=0)).max(axis=1) > 30  # more than a push can do in a step
    assert jumps.any()
    assert not episode.expert[jumps].any()
    at = [int(np.abs(episode.states[:-1] - state).sum(axis=1).argmin()) for state in shaken]
    assert len(at) > 1
    assert not episode.expert[at].any(), "a step in which things are shaken is not the expert's"
    again = play(3)
    assert np.array_equal(again.states, episode.states)
    assert np.array_equal(again.expert, episode.expert)


def test_a_shaken_agent_is_beside_the_t():
    rng = np.random.default_rng(0)
    for seed in range(40):
        state = draw_start(seed)
        state[:2] = state[2], state[3] - AGENT - 1  # at its bar, or in it
        shaken = shake(state, rng)
        corners = pusht._placed(shaken[2:])
        tee = shapely.union_all(shapely.polygons(corners))
        assert shapely.distance(tee, shapely.points(shaken[:2])) >= AGENT - 1e-6
        assert np.abs(shaken[:4] - state[:4]).min() > 0
        assert np.array_equal(shake(state, np.random.default_rng(seed)), shake(state, np.random.default_rng(seed)))


def test_windows_that_are_played_on():
    made, moved = Episodes("pusht", count=20), 0
    ends = np.stack([draw_start(seed) for seed in range(6)])
    episode = Episode(np.float32(ends), np.zeros((5, 2), np.float32), np.ones(5, bool))
    states, actions = made._played(episode, Random(0), "shaken")
    assert np.abs(np.stack([expert(state) for state in states[:-1]]) - actions).max() < 1
    for seed in range(20):
        states, actions = made._played(episode, Random(seed), "driven")
        assert states.shape == (FRAMES, 5)
        assert np.abs(actions - states[:-1, :2]).max() <= pusht_expert.LEAD + 1e-3
        moved += int(np.abs(states[-1, 2:4] - states[0, 2:4]).max() > 5)
    assert 4 < moved < 20


def test_closed_loop_ends_scores_and_refuses(monkeypatch):
    monkeypatch.setattr(pusht, "LIMIT", 3)
    world = PushT()
    first = world.reset(7)
    assert np.array_equal(first, picture(world.state))
    assert world.prompt in pusht.PROMPTS
    assert world.embodiment == "pusht"
    ends = [world.step(world.state[:2])[2] for _ in range(3)]
    assert ends == [False, False, True]
    world.reset(7)
    world.table.put(GOAL)
    _, reward, done = world.step(world.state[:2])
    assert reward == 1
    assert done
    assert world.score > SUCCESS
    for bad in ([1.0], [1.0, math.nan], np.zeros((1, 2))):
        with pytest.raises(ValueError, match="two finite numbers"):
            world.step(bad)
    with pytest.raises(ValueError, match="seed is -1"):
        world.reset(-1)


def test_no_window_is_needed():
    code = "import sys; from omni.data.pusht_expert import WORLD; print('pygame' in sys.modules, 'cv2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
