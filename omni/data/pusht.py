"""The PushT world: a T is pushed onto its mark by a round agent, seen from above.

    action (target of the agent) -> ten steps of the physics -> state -> picture, coverage of the mark

The physics is that of gym-pusht (PushTEnv, version 0.1.8): the same bodies, walls, gains, time step, starts and
coverage, without its window and its pictures; a test compares the two. The task comes from Diffusion Policy (Chi et
al. 2023, arXiv 2303.04137): an episode succeeds when the T covers 95 per cent of the mark.

A state is (agent x, agent y, T x, T y, T angle): lengths in units of the table, 0 to 512, y down, and radians. A T's
place is the middle of its bar's outer edge. Pictures are drawn from the state and show all of it.
"""

import math

import numpy as np
import pymunk
import shapely

from omni.data.episodes import PIXELS, finished, length, paint
from omni.data.rollout import CANVAS

SIDE = 512.0  # of the table, in its units
WALLS = 5.0, 506.0  # where the walls' middles are
WALL = 2.0  # half of a wall's thickness
AGENT = 15.0  # radius
BAR, STEM = (-60.0, 60.0, 0.0, 30.0), (-15.0, 15.0, 30.0, 120.0)  # of the T: left, right, top, bottom
CENTRE = 45.0  # of gravity, along the stem
INERTIA = 3000.0  # for a mass of 1
GOAL = np.array([256.0, 256.0, math.pi / 4])  # pose of the mark

CONTROL_HZ = 10
STEPS, STEP = 10, 0.01  # of the physics in one control step; seconds
STIFFNESS, DAMPING = 100.0, 20.0  # of the agent's pull to its target, per second squared and per second
SUCCESS = 0.95  # coverage
LIMIT = 300  # control steps of an episode

PROMPTS = (
    "push the T onto its mark",
    "push the T to the green mark",
    "move the T onto the mark",
    "cover the mark with the T",
)

TABLE, MARK, MARK_EDGE = (245, 245, 240), (190, 232, 190), (60, 160, 80)
T_COLOR, AGENT_COLOR = (70, 90, 150), (220, 60, 40)
OUTLINE = 0.6  # half of the mark's outline, in pixels


def draw_start(seed: int) -> np.ndarray:
    """State (5,) in which an episode starts: that of the environment's reset with this seed."""
    if seed < 0:
        raise ValueError(f"seed is {seed}, must not be negative")
    rng = np.random.default_rng(seed)
    agent, place = rng.integers(50, 450, 2), rng.integers(100, 400, 2)
    angle = rng.uniform(-math.pi, math.pi)
    # The place is that of the upright T, which is then turned about its centre of gravity, as in the environment.
    shift = CENTRE * np.array([math.sin(angle), 1 - math.cos(angle)])
    return np.array([*agent, *(place + shift), angle])


def _corners(box: tuple[float, float, float, float]) -> np.ndarray:
    left, right, top, bottom = box
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _placed(pose: np.ndarray) -> np.ndarray:
    """Corners (2, 4, 2) of bar and stem on the table."""
    c, s = math.cos(pose[2]), math.sin(pose[2])
    return np.stack([_corners(BAR), _corners(STEM)]) @ np.array([[c, s], [-s, c]]) + pose[:2]


MARK_AREA = shapely.polygons(_placed(GOAL))


def coverage(pose: np.ndarray) -> float:
    """Share of the mark that a T at (x, y, angle) covers."""
    parts = shapely.polygons(_placed(pose))
    return float(shapely.area(shapely.intersection(parts[:, None], MARK_AREA)).sum() / shapely.area(MARK_AREA).sum())


class Table:
    """The physics, from a state on."""

    def __init__(self, state: np.ndarray) -> None:
        self.space = pymunk.Space()
        self.space.damping = 0.0  # nothing keeps its speed: the T moves only while it is pushed
        low, high = WALLS
        ends = [(low, high), (low, low), (high, low), (high, high), (low, high)]
        walls = [(0, 1), (1, 2), (2, 3), (0, 3)]  # in the environment's order, on which rounding depends
        self.space.add(*(pymunk.Segment(self.space.static_body, ends[a], ends[b], WALL) for a, b in walls))
        self.agent = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        self.space.add(self.agent, pymunk.Circle(self.agent, AGENT))
        self.tee = pymunk.Body(1.0, INERTIA)
        parts = [pymunk.Poly(self.tee, [tuple(v) for v in _corners(box)]) for box in (BAR, STEM)]
        self.tee.center_of_gravity = 0.0, CENTRE
        self.space.add(self.tee, *parts)
        self.agent.position = float(state[0]), float(state[1])
        self.put(state[2:])
        self.space.step(STEP)

    @property
    def state(self) -> np.ndarray:
        """(5,) float64; the angle is not wrapped."""
        return np.array([*self.agent.position, *self.tee.position, self.tee.angle])

    def step(self, target: np.ndarray) -> None:
        """One control step: the agent is pulled to a target (2,)."""
        x, y = float(target[0]), float(target[1])
        for _ in range(STEPS):
            (px, py), (vx, vy) = self.agent.position, self.agent.velocity
            ax = STIFFNESS * (x - px) - DAMPING * vx
            ay = STIFFNESS * (y - py) - DAMPING * vy
            self.agent.velocity = vx + ax * STEP, vy + ay * STEP
            self.space.step(STEP)

    def put(self, pose: np.ndarray) -> None:
        """Place the T at (x, y, angle)."""
        self.tee.angle = float(pose[2])  # turns the T about its centre of gravity, so its place comes after
        self.tee.position = float(pose[0]), float(pose[1])
        self.space.reindex_shapes_for_body(self.tee)


# ----------------------------------------------------------------------------------------------------
# pictures


def _box_distance(z: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    left, right, top, bottom = box
    x = np.abs(z.real - (left + right) / 2) - (right - left) / 2
    y = np.abs(z.imag - (top + bottom) / 2) - (bottom - top) / 2
    return length(np.maximum(x, 0) + 1j * np.maximum(y, 0)) + np.minimum(np.maximum(x, y), 0)


def _tee_distance(pose: np.ndarray) -> np.ndarray:
    """(CANVAS, CANVAS) pixels from each pixel to the T's edge, negative inside."""
    scale = SIDE / CANVAS
    z = (PIXELS * scale - complex(pose[0], pose[1])) * np.exp(-1j * pose[2])
    # The stem is drawn through the bar, or a seam would show between them.
    stem = (*STEM[:2], BAR[2], STEM[3])
    return np.minimum(_box_distance(z, BAR), _box_distance(z, stem)) / scale


def _empty_table() -> np.ndarray:
    table = np.full((CANVAS, CANVAS, 3), TABLE, dtype=np.float64)
    mark = _tee_distance(GOAL)
    paint(table, MARK, mark)
    paint(table, MARK_EDGE, np.abs(mark) - OUTLINE)
    return table


EMPTY = _empty_table()


def picture(state: np.ndarray) -> np.ndarray:
    """(CANVAS, CANVAS, 3) uint8: the mark, upon it the T, upon that the agent."""
    drawn = EMPTY.copy()
    paint(drawn, T_COLOR, _tee_distance(state[2:]))
    scale = CANVAS / SIDE
    paint(drawn, AGENT_COLOR, length(PIXELS - scale * complex(state[0], state[1])) - scale * AGENT)
    return finished(drawn)


def tracks(states: np.ndarray) -> dict[str, np.ndarray]:
    """Agent, the T's centre of gravity, its foot and one end of its bar (n, 2) in pixels, of states (n, 5)."""
    sine, cosine = np.sin(states[:, 4]), np.cos(states[:, 4])
    across, along = np.stack([cosine, sine], axis=1), np.stack([-sine, cosine], axis=1)
    own = {"T": (0.0, CENTRE), "foot": (0.0, STEM[3]), "bar": (BAR[1], (BAR[2] + BAR[3]) / 2)}
    places = {thing: states[:, 2:4] + x * across + y * along for thing, (x, y) in own.items()}
    return {thing: at * (CANVAS / SIDE) for thing, at in {"agent": states[:, :2], **places}.items()}


# ----------------------------------------------------------------------------------------------------
# closed loop


class PushT:
    """The world for a policy: pictures out, target positions in.

    `score` is the best coverage since the last reset, `steps` how many actions were taken since.
    """

    embodiment = "pusht"
    fps = float(CONTROL_HZ)

    def __init__(self) -> None:
        self.reset(0)

    def reset(self, seed: int) -> np.ndarray:
        """Start the episode of a seed and show it, (CANVAS, CANVAS, 3) uint8."""
        self.table = Table(draw_start(seed))
        self.prompt = PROMPTS[seed % len(PROMPTS)]
        self.steps, self.score = 0, coverage(self.state[2:])
        return picture(self.state)

    @property
    def state(self) -> np.ndarray:
        return self.table.state

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """Take an action (2,), 0 to SIDE, clipped to that: picture, reward in [0, 1], whether the episode is over.

        The reward is the coverage as a share of SUCCESS. An episode is over at success or after LIMIT steps.
        """
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise ValueError(f"action is {action}, must be two finite numbers")
        self.table.step(np.clip(action, 0, SIDE))
        covered = coverage(self.state[2:])
        self.steps, self.score = self.steps + 1, max(self.score, covered)
        done = self.score > SUCCESS or self.steps >= LIMIT
        return picture(self.state), min(covered / SUCCESS, 1.0), done
