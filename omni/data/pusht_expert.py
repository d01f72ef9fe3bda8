"""The expert of the PushT world: it plans every step anew from what is seen, and keeps nothing in mind.

    state -> places around the T to push from, and the way there -> many straight pushes, foreseen all at once
          -> the push that gains most in the time it takes, the way included -> target of the agent

A push that is near and under way costs less than any other, so plans are kept without being remembered.

Pushes are foreseen by what the physics comes to here. Nothing keeps its speed and nothing rubs, so in each step the
contacts just undo what penetrates: at depth p, with the contact normal n and the arm r from the centre of gravity,
an impulse J = p / (1 + (r x n)^2 / INERTIA) shifts the T by -J n and turns it by -J (r x n) / INERTIA. Walls act alike.

Points are complex numbers, x + iy; "on the T" means in its own frame. A pose is the centre of gravity and the unit
number of the angle.
"""

import cmath
import math
from typing import NamedTuple

import numpy as np

from omni.data.episodes import Episode, World
from omni.data.pusht import (
    AGENT,
    BAR,
    CENTRE,
    CONTROL_HZ,
    GOAL,
    INERTIA,
    LIMIT,
    PROMPTS,
    SIDE,
    STEM,
    SUCCESS,
    WALL,
    WALLS,
    Table,
    coverage,
    draw_start,
    picture,
    tracks,
)

CLEAR = AGENT + 6.0  # from the T at which the agent goes around it
ROOM = (WALLS[1] - WALLS[0]) / 2 - WALL  # half of the side that the walls leave
MIDDLE = complex(1, 1) * sum(WALLS) / 2
LEAD = 50.0  # that a target is ahead of the agent at most: it then moves half of that in a step

SPACING = 10.0  # between contacts
TILTS = (-math.pi / 8, 0.0, math.pi / 8)  # of a push from the normal
TURNS = np.exp(2j * np.pi * np.arange(32) / 32)  # of pushes from where the agent is
PUSH_STEP, PUSH_STEPS = 3.0, 50  # of a foreseen push
AT_ONCE = 6.0  # way to a contact below which the push begins
SQUEEZE = 3.0  # how far the agent may press into a T that a wall stops

OVERHEAD = 60.0  # of any plan, in units of way: else the smallest push at hand would be the best
LEAST_GAIN = 0.03  # of a plan, in the logarithm of the error
DONE = 0.8  # error that is good enough; about 98 per cent of the mark
FAR = 1e6  # no way

TEE = np.array([-60, 60, 60 + 30j, 15 + 30j, 15 + 120j, -15 + 120j, -15 + 30j, -60 + 30j])  # around the T
HULL = TEE[[0, 1, 2, 4, 5, 7]]
LONGEST_ARM = float(np.abs(HULL - 1j * CENTRE).max())
OUTWARDS = np.array([-1 - 1j, 1 - 1j, 1 + 1j, 1 + 1j, -1 + 1j, -1 + 1j])
CORNERS = HULL + (CLEAR + 3) * OUTWARDS  # where ways around the T turn
MASS_CENTRE = 1j * CENTRE

# Area, centroid and mean square distance from it, of the T as a figure: the error of a pose is the root of the mean
# square distance of its points from where they should be.
AREAS = np.array([(b[1] - b[0]) * (b[3] - b[2]) for b in (BAR, STEM)])
MIDDLES = np.array([(b[2] + b[3]) / 2 for b in (BAR, STEM)])
CENTROID = float(AREAS @ MIDDLES / AREAS.sum())
OWN_SPREADS = np.array([((b[1] - b[0]) ** 2 + (b[3] - b[2]) ** 2) / 12 for b in (BAR, STEM)])
SPREAD = float(AREAS @ (OWN_SPREADS + (MIDDLES - CENTROID) ** 2) / AREAS.sum())
GOAL_TURN = cmath.exp(1j * GOAL[2])
GOAL_CENTROID = complex(GOAL[0], GOAL[1]) + GOAL_TURN * 1j * CENTROID


class Plan(NamedTuple):
    """Where the agent goes next, and whether there is nothing more to do."""

    target: complex
    done: bool


def nearest(z: np.ndarray) -> np.ndarray:
    """The point of the T that is nearest to each point, both on the T."""
    bar, stem = (
        np.minimum(np.maximum(z.real, left), right) + 1j * np.minimum(np.maximum(z.imag, top), bottom)
        for left, right, top, bottom in (BAR, STEM)
    )
    return np.where(np.abs(z - bar) <= np.abs(z - stem), bar, stem)


def pose_error(centre: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Distance of poses from the mark, in units of the table; an angle counts by its arc: half a turn is farthest."""
    off = centre + turn * 1j * (CENTROID - CENTRE) - GOAL_CENTROID
    return np.sqrt(np.abs(off) ** 2 + SPREAD * np.angle(turn * GOAL_TURN.conjugate()) ** 2)


# ----------------------------------------------------------------------------------------------------
# what pushes do


def foresee(
    agent: np.ndarray, heading: np.ndarray, centre: complex, turn: complex, steps: int = PUSH_STEPS
) -> np.ndarray:
    """Errors (steps, k) of the T's pose along k straight pushes that start at `agent` (k,) and go along `heading` (k,).

    What cannot be, because the agent leaves the table or is stopped by a T that a wall stops, is infinitely wrong.
    """
    errors = np.empty((steps, len(agent)))
    centre, turn = np.full(len(agent), centre), np.full(len(agent), turn)
    for step in range(steps):
        agent = agent + heading * PUSH_STEP
        z = (agent - centre) * turn.conj() + MASS_CENTRE
        touched = nearest(z)
        gap = np.maximum(np.abs(z - touched), 1e-9)
        normal = (z - touched) / gap
        centre, turn = _shoved(centre, turn, (touched - MASS_CENTRE) * turn, -normal * turn, np.maximum(AGENT - gap, 0))
        impossible = ~inside(agent)
        near = np.flatnonzero(~inside(centre, LONGEST_ARM))
        if len(near):
            centre[near], turn[near] = _off_walls(centre[near], turn[near])
            z = (agent[near] - centre[near]) * turn[near].conj() + MASS_CENTRE
            impossible[near] |= np.abs(z - nearest(z)) < AGENT - SQUEEZE
        errors[step] = np.where(impossible, np.inf, pose_error(centre, turn))
    return errors


def _shoved(
    centre: np.ndarray, turn: np.ndarray, arm: np.ndarray, way: np.ndarray, depth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Poses after contacts at `arm` from the centre have pushed `depth` along `way`, a unit vector."""
    lever = (arm.conj() * way).imag
    impulse = depth / (1 + lever**2 / INERTIA)
    return centre + impulse * way, turn * np.exp(1j * impulse * lever / INERTIA)


def _off_walls(centre: np.ndarray, turn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Poses after each wall has pushed back the corner that is deepest in it."""
    for way in (1, -1, 1j, -1j):
        if ((centre - MIDDLE) * np.conj(way)).real.min() > LONGEST_ARM - ROOM:
            continue
        arms = turn[:, None] * (HULL - MASS_CENTRE)
        depths = -ROOM - ((centre[:, None] + arms - MIDDLE) * np.conj(way)).real
        deepest = np.arange(len(centre)), depths.argmax(axis=1)
        centre, turn = _shoved(centre, turn, arms[deepest], np.array(way), np.maximum(depths[deepest], 0))
    return centre, turn


def inside(point: np.ndarray, radius: float = AGENT) -> np.ndarray:
    """Whether a disc about each point is within the walls."""
    off = point - MIDDLE
    return np.maximum(np.abs(off.real), np.abs(off.imag)) <= ROOM - radius


# ----------------------------------------------------------------------------------------------------
# where to push from, and the way there


def _contacts() -> tuple[np.ndarray, np.ndarray]:
    """Places of the agent, clear of the T, and headings of pushes from there, both on the T."""
    places, headings = [], []
    for a, b in zip(TEE, np.roll(TEE, -1), strict=True):
        along = (b - a) / abs(b - a)
        count = int(abs(b - a) // SPACING)
        for share in (np.arange(count) + 0.5) / count:
            place = a + (b - a) * share - 1j * along * (CLEAR + 0.5)
            if abs(place - nearest(place)) >= CLEAR:  # not so in the inner corners
                places += [place] * len(TILTS)
                headings += [1j * along * cmath.exp(1j * tilt) for tilt in TILTS]
    return np.array(places), np.array(headings)


def _way(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Length of the straight way between points on the T, or FAR where the T is in the way."""
    a, b = np.broadcast_arrays(a, b)
    points = a[..., None] + (b - a)[..., None] * np.linspace(0, 1, 24)
    return np.where((np.abs(points - nearest(points)) >= CLEAR - 0.5).all(axis=-1), np.abs(a - b), FAR)


PLACES, HEADINGS = _contacts()
BETWEEN = _way(CORNERS[:, None], CORNERS)
TO_PLACES = _way(CORNERS[:, None], PLACES)


def _cleared(z: complex) -> complex:
    """Where the agent is clear of the T, if need be a little back from where it is."""
    for _ in range(8):  # in an inner corner it backs away from two sides by turns
        touched = complex(nearest(np.array(z)))
        gap = abs(z - touched)
        if gap >= CLEAR:
            break
        z = touched + (z - touched) / max(gap, 1e-6) * (CLEAR + 0.5)
    return z


def _ways(start: complex, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lengths (k,) of the shortest ways to PLACES around the T by `free` corners, and where each goes first."""
    between = BETWEEN + np.where(free[:, None] & free, 0, FAR)
    for k in range(len(CORNERS)):
        between = np.minimum(between, between[:, k : k + 1] + between[k])
    to_corners = _way(np.array(start), CORNERS) + np.where(free, 0, FAR)
    by_first = to_corners[:, None] + (between[:, :, None] + TO_PLACES).min(axis=1)
    first = by_first.argmin(axis=0)
    around, direct = by_first[first, np.arange(len(PLACES))], _way(np.array(start), PLACES)
    return np.minimum(around, direct), np.where(direct <= around, PLACES, CORNERS[first])


# ----------------------------------------------------------------------------------------------------
# the plan


def plan(state: np.ndarray) -> Plan:
    """What the expert does in a state (5,): where it wants the agent next, LEAD ahead at most."""
    agent, origin, turn = complex(state[0], state[1]), complex(state[2], state[3]), cmath.exp(1j * state[4])
    centre = origin + turn * MASS_CENTRE
    now = float(pose_error(np.array(centre), np.array(turn)))
    here = (agent - origin) * turn.conjugate()
    clear = _cleared(here)
    ways, firsts = _ways(clear, inside(origin + turn * CORNERS))
    ways = ways + abs(clear - here)
    there = np.flatnonzero((ways < FAR) & inside(origin + turn * PLACES))
    places, headings, ways = origin + turn * PLACES[there], turn * HEADINGS[there], ways[there]
    if abs(here - complex(nearest(np.array(here)))) < 2 * CLEAR:
        places = np.concatenate([places, np.full(len(TURNS), agent)])
        headings = np.concatenate([headings, turn * TURNS])
        ways = np.concatenate([ways, np.zeros(len(TURNS))])
    if now < DONE or not len(places):
        return Plan(agent, True)
    gain = np.log(now + 1) - np.log(foresee(places, headings, centre, turn) + 1)
    gain[gain < LEAST_GAIN] = -1
    lengths = PUSH_STEP * np.arange(1, PUSH_STEPS + 1)
    step, best = np.unravel_index((gain / (ways + lengths[:, None] + OVERHEAD)).argmax(), gain.shape)
    if gain[step, best] < 0:
        return Plan(agent, True)
    if ways[best] < AT_ONCE:
        target = places[best] + headings[best] * lengths[step]
    elif clear != here:
        back = clear - here
        target = agent + turn * back * max(1.0, AGENT / abs(back))  # briskly, since it slows down towards a target
    else:
        target = origin + turn * firsts[there[best]]
    return Plan(agent + (target - agent) * min(1.0, LEAD / max(abs(target - agent), 1e-9)), False)


def expert(state: np.ndarray) -> np.ndarray:
    """Action (2,) of the expert in a state (5,)."""
    return _action(plan(state))


def _action(planned: Plan) -> np.ndarray:
    return np.clip([planned.target.real, planned.target.imag], 0, SIDE)


# ----------------------------------------------------------------------------------------------------
# episodes

LONGEST = LIMIT + 100  # steps of an episode, which may go on after success
WANDERS, NUDGES, SHAKES = 0.015, 0.006, 0.025  # chances in a step that one begins
WANDER_STEPS = 3, 10
NUDGE = 25.0, 25.0, 0.5  # spread of x, y and angle
ALIGN_NUDGE = 8.0, 8.0, 0.12  # of those after success, which make the expert align the T once more
ALIGNS, MOST_ALIGNS = 0.5, 2  # chance of one, and how many at most
RESTS = 8  # steps at the end


def play(seed: int) -> Episode:
    """An episode of the expert with disturbances: the agent wanders off, the T is moved and turned, or both are shaken.

    Each way back from them is one that a policy needs after its own small errors. Shaken here, a step of the expert is
    the start of a window; a shaken window would ask for sixteen.
    """
    rng = np.random.default_rng((seed, 4))  # another stream than that of the start
    table = Table(draw_start(seed))
    states, actions, by_expert = [table.state], [], []
    wander, goal, aligns, rests = 0, np.zeros(2), 0, 0
    while len(actions) < LONGEST and rests < RESTS:
        state, nudge, shaken = states[-1], None, False
        planned = plan(state)
        if wander:
            wander -= 1
        elif planned.done:
            if not rests and aligns < MOST_ALIGNS and rng.random() < ALIGNS:
                nudge, aligns = ALIGN_NUDGE, aligns + 1
            else:
                rests += 1
        elif rng.random() < WANDERS:
            wander, goal = int(rng.integers(*WANDER_STEPS)), rng.uniform(40, SIDE - 40, 2)
        elif rng.random() < NUDGES:
            nudge = NUDGE
        elif rng.random() < SHAKES:
            shaken = True
        given_up = planned.done and coverage(state[2:]) < SUCCESS
        by_expert.append(not (wander or nudge or shaken or given_up))
        actions.append(_wandering(state, goal) if wander else _action(planned))
        if nudge:
            table.put(_nudged(state[2:], rng.normal(0, nudge)))
        if shaken:
            table = Table(shake(state, rng))
        table.step(actions[-1])
        states.append(table.state)
    by_expert[-1] &= rests == RESTS
    return Episode(np.float32(states), np.float32(actions), np.array(by_expert))


def _wandering(state: np.ndarray, goal: np.ndarray) -> np.ndarray:
    way = goal - state[:2]
    return state[:2] + way * min(1.0, LEAD / max(float(np.hypot(*way)), 1e-9))


def _nudged(pose: np.ndarray, by: np.ndarray) -> np.ndarray:
    """A pose a little elsewhere, within the places in which episodes start."""
    return np.array([*np.clip(pose[:2] + by[:2], 100, 400), pose[2] + by[2]])


# ----------------------------------------------------------------------------------------------------
# beside the expert's ways

SHAKE = 20.0  # of the agent's x and y
SMALL_NUDGE = 12.0, 12.0, 0.2  # of the T's x, y and angle


def shake(state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The state with agent and T a little elsewhere; the two never lie in each other."""
    while True:
        agent = np.clip(state[:2] + rng.normal(0, SHAKE, 2), 40, SIDE - 40)
        pose = _nudged(state[2:], rng.normal(0, SMALL_NUDGE))
        seen = np.array(complex(*(agent - pose[:2])) * cmath.exp(-1j * pose[2]))
        if abs(seen - nearest(seen)) >= AGENT:
            return np.concatenate([agent, pose])


def aim(state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Anywhere, or as often where the T is: so it is hit from all sides."""
    anywhere = rng.uniform(40, SIDE - 40, 2)
    return state[2:4] + rng.normal(0, CENTRE, 2) if rng.random() < 0.5 else anywhere


WORLD = World(
    name="pusht",
    version=2,
    episodes=1600,
    fps=float(CONTROL_HZ),
    play=play,
    hold=lambda state: state[:2],
    picture=picture,
    tracks=tracks,
    prompt=lambda state, way: PROMPTS[way % len(PROMPTS)],
    kind=lambda state: "push",
    physics=Table,
    expert=expert,
    shake=shake,
    aim=aim,
    towards=_wandering,
)
