import math
import os
import subprocess
import sys
from random import Random

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="needs omni[robot]")
from omni.data import TRAIN_SEEDS, arm, episodes
from omni.data.arm import (
    ANGLES,
    COLORS,
    PUCK_AT,
    TINTS,
    TOLERANCE,
    Arm,
    Table,
    draw_start,
    goal,
    joints,
    picture,
    posture,
    task,
)
from omni.data.arm_expert import SHAKE, SOFT, TOUCH, expert, play, shake
from omni.data.episodes import Episode, Episodes, build, sample_arm
from omni.data.rollout import FRAMES

TRAIN = TRAIN_SEEDS[0]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with one part of training and one of held-out episodes."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("worlds")
        patch.setenv("OMNI_CACHE", str(path))
        assert build("omni_arm", count=20, held_out=1) == 2
        yield path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OMNI_CACHE", str(tmp_path))
    return tmp_path


# -- the world ---------------------------------------------------------------------------------------------------------


def test_postures_put_the_peg_where_it_is_wanted():
    rng = np.random.default_rng(0)
    for _ in range(50):
        way, far = rng.uniform(-math.pi, math.pi), rng.uniform(*arm.REACH)
        place = far * np.array([math.cos(way), math.sin(way)])
        assert np.abs(joints(posture(place))[1] - place).max() < 1e-9
        assert arm.BENT[0] <= posture(place)[1] <= arm.BENT[1]
    assert np.hypot(*joints(posture(np.array([2.0, 0.0])))[1]) == pytest.approx(arm.REACH[1])


def test_the_peg_of_the_physics_is_where_the_angles_say():
    table = Table(draw_start(1, "push"))
    table.step(table.state[ANGLES] + 0.3)
    place = table.data.geom("peg").xpos[:2]
    assert np.abs(joints(table.state[ANGLES])[1] - place).max() < 5e-3  # of the last but one of the small steps


@pytest.mark.parametrize("kind", ["reach", "push"])
def test_starts(kind):
    tints, goals = set(), set()
    for seed in range(40):
        state = draw_start(seed, kind)
        assert np.array_equal(state, draw_start(seed, kind))
        assert arm.task(state) == kind
        assert arm.distance(state) > 2 * TOLERANCE
        shown = state[arm.TARGETS_AT].reshape(3, 2)[: arm.TARGETS[kind]]
        assert (np.abs(shown) < arm.VIEW / 2).all() or (shown[:, 1] < arm.TOP).all()
        tint = TINTS[int(state[arm.TINTS_AT][int(state[arm.GOAL_AT])])]
        assert tint in arm.prompt(state, seed)
        tints.add(tint)
        goals.add(int(state[arm.GOAL_AT]))
    assert tints == set(TINTS)
    assert len(goals) == arm.TARGETS[kind]


def test_a_picture_shows_things_in_their_places():
    for seed in range(6):
        state = draw_start(seed)
        seen, tracks = picture(state), arm.tracks(state[None])
        assert seen.shape == (64, 64, 3)
        assert seen.dtype == np.uint8
        at = {thing: tuple(np.floor(track[0][::-1]).astype(int)) for thing, track in tracks.items()}
        assert np.abs(seen[at["peg"]].astype(int) - arm.PEG_COLOR).max() < 40
        if arm.task(state) == "push":
            assert np.abs(seen[at["puck"]].astype(int) - arm.PUCK_COLOR).max() < 5
        else:
            tint = COLORS[TINTS[int(state[arm.TINTS_AT][int(state[arm.GOAL_AT])])]]
            assert np.abs(seen[at["goal"]].astype(int) - tint).max() < 5
        moved = state.copy()
        moved[ANGLES] += 0.01
        assert not np.array_equal(picture(moved), seen)


def test_the_peg_pushes_the_puck_and_lets_it_lie():
    state = draw_start(2, "push")
    state[PUCK_AT] = 0.0, 0.4
    state[ANGLES] = posture(np.array([-0.15, 0.4]))
    table = Table(state)
    for x in (-0.1, -0.05, 0.0, 0.05):
        table.step(posture(np.array([x, 0.4])))
    for _ in range(5):
        table.step(posture(np.array([0.05, 0.4])))
    pushed = table.state[PUCK_AT]
    assert pushed[0] == pytest.approx(0.05 + arm.PEG + arm.PUCK, abs=0.015)
    assert abs(pushed[1] - 0.4) < 0.02
    for _ in range(5):
        table.step(posture(np.array([-0.1, 0.4])))
    assert np.abs(table.state[PUCK_AT] - pushed).max() < 1e-3


@pytest.mark.parametrize("kind", ["reach", "push"])
def test_the_expert_succeeds_and_blind_policies_do_not(kind):
    world, seeds = Arm(kind), range(5)
    spent = {"expert": [], "blind": []}
    for policy, scores in spent.items():
        for seed in seeds:
            rng, done = np.random.default_rng(seed), False
            world.reset(seed)
            while not done:
                if world.steps % 8 == 0:
                    blind = posture(arm.draw_place(rng, "ball"))
                _, _, done = world.step(expert(world.state) if policy == "expert" else blind)
            scores.append(world.score)
            assert policy == "blind" or world.steps <= 60
    assert np.mean(spent["expert"]) == 1
    assert np.mean(spent["blind"]) <= 0.2


def test_the_named_target_counts():
    world = Arm("reach")
    world.reset(3)
    other = world.state[arm.TARGETS_AT].reshape(3, 2)[(int(world.state[arm.GOAL_AT]) + 1) % 3]
    for place, score in ((other, 0), (goal(world.state), 1)):
        for _ in range(15):
            world.step(posture(place))
        assert world.score == score


def test_closed_loop_ends_and_refuses(monkeypatch):
    monkeypatch.setattr(arm, "LIMIT", 3)
    world = Arm()
    assert np.array_equal(world.reset(4), picture(world.state))
    assert world.embodiment == "omni_arm"
    still = world.state[ANGLES]
    assert [world.step(still)[2] for _ in range(3)] == [False, False, True]
    for bad in ([1.0], [1.0, math.inf], np.zeros((2, 1))):
        with pytest.raises(ValueError, match="two finite numbers"):
            world.step(bad)
    with pytest.raises(ValueError, match="kind is 'fly'"):
        draw_start(0, "fly")


def test_no_opengl_is_needed():
    code = "from omni.data.arm import Arm; print(Arm().reset(3).shape)"
    environment = {**os.environ, "MUJOCO_GL": "disable"}  # no context of any kind can be made
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "(64, 64, 3)"


# -- episodes and windows ----------------------------------------------------------------------------------------------


def test_actions_lead_from_state_to_state():
    """Replayed until something else than an action moves the world."""
    for seed in range(TRAIN, TRAIN + 4):
        episode = play(seed)
        table = Table(draw_start(seed))
        until = len(episode.actions) if episode.expert.all() else int(np.argmin(episode.expert))
        for action, after in zip(episode.actions[:until], episode.states[1:], strict=False):
            table.step(action)
            assert np.abs(table.state - after).max() < 1e-3
        assert episode.expert[-1]
        assert arm.distance(episode.states[-1]) < TOLERANCE


def test_windows(kept):
    made = Episodes("omni_arm", count=20, held_out=20)
    for seed in (TRAIN, TRAIN + 1, 0, 1):
        rollout = made.window(seed)
        assert rollout.frames.shape == (FRAMES, 64, 64, 3)
        assert rollout.actions.shape == (FRAMES - 1, 2)
        assert rollout.actions.dtype == np.float32
        assert rollout.fps == 10
        assert rollout.embodiment == "omni_arm"
        assert all(track.shape == (FRAMES, 2) for track in rollout.tracks.values())
        assert any(color in rollout.prompt for color in COLORS)
        again = Episodes("omni_arm", count=20, held_out=20).window(seed)
        assert np.array_equal(again.frames, rollout.frames)
        assert np.array_equal(again.actions, rollout.actions)
        assert again.prompt == rollout.prompt
    assert sorted(path.name for path in kept.glob("*/*")) == ["held_out-000000-000019.npz", "train-000000-000019.npz"]
    training, others = ({made.episode(i, held_out).states.tobytes() for i in range(20)} for held_out in (False, True))
    assert len(training | others) == 40


def test_windows_hold_the_expert_only_and_end_at_rest(kept):
    made, padded = Episodes("omni_arm", count=20), 0
    known = [made.episode(i) for i in range(20)]
    for seed in range(TRAIN, TRAIN + 60):
        window = made.window(seed)
        found = [
            (episode, start)
            for episode in known
            for start in np.flatnonzero((episode.actions == window.actions[0]).all(axis=1))
            if len(episode.actions[start:]) == 1 or (episode.actions[start + 1] == window.actions[1]).all()
        ]
        assert found
        episode, start = found[0]
        assert episode.expert[start : start + FRAMES - 1].all()
        length = len(episode.actions) - start
        if length < FRAMES - 1:
            padded += 1
            assert (window.actions[length:] == episode.states[-1][ANGLES]).all()
            assert np.array_equal(window.frames[length], window.frames[-1])
    assert padded > 5


def test_a_shaken_state_has_nothing_in_the_puck_and_the_peg_on_all_sides():
    rng, ways, gaps = np.random.default_rng(0), [], []
    for seed in range(60):
        state = draw_start(seed)
        shaken = shake(state, rng)
        peg = joints(shaken[ANGLES])[1]
        assert np.array_equal(shaken[2:], state[2:])
        assert np.abs(shaken[ANGLES] - state[ANGLES]).max() > 0
        if task(state) == "push":
            gaps.append(math.dist(peg, state[PUCK_AT]))
            ways.append(math.atan2(*(peg - state[PUCK_AT])))
        else:
            assert math.dist(peg, joints(state[ANGLES])[1]) < 5 * SHAKE
    assert min(gaps) >= TOUCH - SOFT
    assert np.histogram(ways, 4, (-math.pi, math.pi))[0].min() > 0


def test_shaken_windows_are_the_experts_and_driven_ones_are_not(kept):
    made, hits = Episodes("omni_arm", count=20), {"shaken": 0, "driven": 0}
    for seed in range(12):
        episode = made.episode(seed)
        for way in hits:
            states, actions = made._played(episode, Random(seed), way)
            again, same = made._played(episode, Random(seed), way)
            assert np.array_equal(states, again)
            assert np.array_equal(actions, same)
            table = Table(states[0])
            for action, after in zip(actions, states[1:], strict=True):
                table.step(action)
                assert np.abs(table.state - after).max() < 1e-3
            own = np.stack([expert(state) for state in states[:-1]])
            apart = np.abs(own - actions).max(axis=1)
            assert (apart < 1e-3).mean() > 0.9 if way == "shaken" else (apart > 0.02).mean() > 0.3
            hits[way] += int(np.abs(states[-1] - states[0])[PUCK_AT].max() > 0.01)
    assert min(hits.values()) > 1


def test_windows_of_each_way(kept):
    made = Episodes("omni_arm", count=20, held_out=20)
    for seed in (TRAIN, 0):
        recorded, shaken, driven = (made.window(seed, way=way) for way in episodes.WAYS)
        assert recorded.frames.shape == shaken.frames.shape == driven.frames.shape
        assert shaken.actions.dtype == driven.actions.dtype == np.float32
        assert not np.array_equal(shaken.actions, driven.actions)
        assert np.array_equal(made.window(seed, way="driven").frames, driven.frames)
        still = made.window(seed, still=True, way="shaken")
        assert np.array_equal(still.frames[-1], shaken.frames[0])
        assert np.array_equal(still.actions, shaken.actions)
    with pytest.raises(ValueError, match="way is 'lost', must be one of recorded, shaken, driven"):
        made.window(TRAIN, way="lost")


def test_starts_of_windows():
    expert_acts = np.ones(40, dtype=bool)
    assert episodes._starts(expert_acts) == list(range(40))
    expert_acts[20] = False
    assert episodes._starts(expert_acts) == [*range(5), *range(21, 40)]
    expert_acts[39] = False  # cut off
    assert episodes._starts(expert_acts) == [*range(5), *range(21, 24)]
    assert episodes._starts(np.zeros(5, dtype=bool)) == [5]


def test_parts_are_made_once_and_alike_in_processes(kept, folder):
    """`folder` comes last, so it is the cache."""
    assert build("omni_arm", count=1, held_out=1, workers=2) == 2
    assert build("omni_arm", count=20, held_out=20) == 0
    paths = sorted(folder.glob("*/*"))
    assert [path.name for path in paths] == ["held_out-000000-000019.npz", "train-000000-000019.npz"]
    for path in paths:
        mine, other = np.load(path), np.load(kept / path.relative_to(folder))
        assert all(np.array_equal(mine[key], other[key]) for key in ("lengths", "states", "actions", "expert"))


def test_a_broken_part_is_told(folder):
    episodes.cache_folder().joinpath("omni_arm-v1").mkdir()
    broken = episodes._file("omni_arm", False, 0)
    broken.write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match="holds no episodes"):
        Episodes("omni_arm", count=20).window(TRAIN)


def test_an_interrupted_part_leaves_nothing(folder, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(episodes.np, "savez_compressed", stop)
    with pytest.raises(KeyboardInterrupt):
        build("omni_arm", count=20, held_out=0)
    assert not list(folder.glob("*/*"))


def test_bad_requests(folder):
    with pytest.raises(ValueError, match="world is 'moon', must be one of pusht, omni_arm"):
        Episodes("moon")
    with pytest.raises(ValueError, match="count is 30, must be a positive multiple of 20"):
        Episodes("omni_arm", count=30)
    with pytest.raises(ValueError, match="seed is -1"):
        sample_arm(-1)
    with pytest.raises(ValueError, match="workers is 0"):
        build("omni_arm", 20, workers=0)
    with pytest.raises(ValueError, match="episode 20 of 20"):
        Episodes("omni_arm", count=20).episode(20)
    assert not list(folder.iterdir())


def test_command(kept, monkeypatch, capsys):
    monkeypatch.setenv("OMNI_CACHE", str(kept))
    episodes.main(["omni_arm", "20", "--held-out", "20"])
    assert f"0 episodes made in {kept}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="workers is 0"):
        episodes.main(["omni_arm", "20", "--workers", "0"])


def test_an_episode_knows_its_lengths():
    episode = play(TRAIN)
    assert isinstance(episode, Episode)
    assert len(episode.states) == len(episode.actions) + 1 == len(episode.expert) + 1
