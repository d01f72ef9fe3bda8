"""The expert of the arm world: inverse kinematics of the next place of the peg, chosen from what is seen alone.

reach   towards the ball
push    to the puck's far side as seen from the mark, around the puck if it is in the way; then against it, held
        on the line through its middle; away from it when it lies on the mark
"""

import math

import numpy as np

from omni.data.arm import (
    ANGLES,
    CONTROL_HZ,
    PEG,
    PUCK,
    PUCK_AT,
    TOLERANCE,
    Table,
    distance,
    draw_place,
    draw_start,
    goal,
    joints,
    picture,
    posture,
    prompt,
    task,
    tracks,
)
from omni.data.episodes import Episode, World

LEAD = 0.07  # that the peg's next place is ahead of it at most
TOUCH = PUCK + PEG  # distance of peg and puck when they touch
ROUND = TOUCH + 0.03  # distance at which the peg goes around the puck
TURN = 0.7  # of the way around it that is taken at once
BEHIND = math.cos(math.radians(30))  # how well the peg must be behind the puck to push it
STEER = 1.0  # sideways way of the peg for each metre that it is off the line
NEAR = TOLERANCE / 3  # distance from the mark at which a puck is left alone


def expert(state: np.ndarray) -> np.ndarray:
    """Action (2,) in a state (14,): target angles."""
    peg = joints(state[ANGLES])[1]
    place = goal(state) if task(state) == "reach" else _pushing(peg, state[PUCK_AT], goal(state))
    return _towards(peg, place)


def _towards(peg: np.ndarray, place: np.ndarray) -> np.ndarray:
    way = place - peg
    return posture(peg + way * min(1.0, LEAD / max(float(np.hypot(*way)), 1e-9)))


def _pushing(peg: np.ndarray, puck: np.ndarray, mark: np.ndarray) -> np.ndarray:
    """The next place of the peg."""
    from_puck = peg - puck
    gap, left = float(np.hypot(*from_puck)), math.dist(puck, mark)
    if left < NEAR:
        return peg
    ahead = (mark - puck) / left
    if -from_puck @ ahead >= BEHIND * gap and gap < ROUND + 0.03:
        aside = from_puck - (from_puck @ ahead) * ahead
        return mark - TOUCH * ahead - aside * (1 + STEER)
    behind = puck - ROUND * ahead
    if _passes(peg, behind, puck) >= TOUCH + 0.01 and gap > TOUCH + 0.01:
        return behind
    now, wanted = math.atan2(from_puck[1], from_puck[0]), math.atan2(-ahead[1], -ahead[0])
    turn = (wanted - now + math.pi) % (2 * math.pi) - math.pi
    way = now + min(max(turn, -TURN), TURN)
    return puck + ROUND * np.array([math.cos(way), math.sin(way)])


def _passes(a: np.ndarray, b: np.ndarray, point: np.ndarray) -> float:
    """Least distance between the straight way from a to b and a point."""
    way = b - a
    share = float(np.clip((point - a) @ way / max(float(way @ way), 1e-12), 0, 1))
    return math.dist(a + share * way, point)


# ----------------------------------------------------------------------------------------------------
# episodes

LONGEST = 120  # steps
WANDERS, SHIFTS = 0.03, 0.02  # chances in a step that one begins
WANDER_STEPS = 3, 8
RESTS = 8  # steps at the end


def play(seed: int) -> Episode:
    """An episode of the expert with disturbances: the arm wanders off, or the puck is put elsewhere."""
    rng = np.random.default_rng((seed, 5))  # another stream than that of the start
    table = Table(draw_start(seed))
    states, actions, by_expert = [table.state], [], []
    wander, elsewhere, rests = 0, np.zeros(2), 0
    while len(actions) < LONGEST and rests < RESTS:
        state, shift = states[-1], False
        if wander:
            wander -= 1
        elif distance(state) < TOLERANCE:
            rests += 1
        elif rng.random() < WANDERS:
            wander, elsewhere = int(rng.integers(*WANDER_STEPS)), draw_place(rng, "ball")
        else:
            shift = task(state) == "push" and rng.random() < SHIFTS
        by_expert.append(not (wander or shift))
        actions.append(_towards(joints(state[ANGLES])[1], elsewhere) if wander else expert(state))
        if shift:
            table.put(draw_place(rng, "puck"))
        table.step(actions[-1])
        states.append(table.state)
    by_expert[-1] &= rests == RESTS
    return Episode(np.float32(states), np.float32(actions), np.array(by_expert))


# ----------------------------------------------------------------------------------------------------
# beside the expert's ways

SHAKE = 0.03  # metres, spread of x and y
AROUND, GAP = 0.5, 0.06  # chance that the peg is put beside the puck instead, and how far from touching it
SOFT = 0.002  # metres that the physics lets things press into each other


def shake(state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The state with its peg a little elsewhere, or at the puck from any side; the two never lie in each other."""
    shaken, beside = state.copy(), task(state) == "push" and rng.random() < AROUND
    while True:
        peg = joints(state[ANGLES])[1] + rng.normal(0, SHAKE, 2)
        if beside:
            way = rng.uniform(-math.pi, math.pi)
            peg = state[PUCK_AT] + rng.uniform(TOUCH, TOUCH + GAP) * np.array([math.cos(way), math.sin(way)])
        shaken[ANGLES] = posture(peg)
        # What is out of reach becomes a place at its edge, which may be in the puck.
        if math.dist(joints(shaken[ANGLES])[1], state[PUCK_AT]) >= TOUCH - SOFT:
            return shaken


def aim(state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Anywhere, or as often where the puck is: so it is hit from all sides."""
    hit = task(state) == "push" and rng.random() < 0.5
    return state[PUCK_AT] + rng.normal(0, PUCK / 2, 2) if hit else draw_place(rng, "ball")


WORLD = World(
    name="omni_arm",
    version=1,
    episodes=20_000,
    fps=float(CONTROL_HZ),
    play=play,
    hold=lambda state: state[ANGLES],
    picture=picture,
    tracks=tracks,
    prompt=prompt,
    kind=task,
    physics=Table,
    expert=expert,
    shake=shake,
    aim=aim,
    towards=lambda state, place: _towards(joints(state[ANGLES])[1], place),
)
