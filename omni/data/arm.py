"""The arm world: a two-jointed arm over a table, seen from above, reaches balls and pushes a puck onto marks.

    action (target angles of the joints) -> fifty steps of the physics -> state -> picture, distance from the goal

The physics is MuJoCo's; pictures are drawn from the state, without OpenGL. A peg at the arm's end reaches down to the
table and is all that touches the puck.

    reach   "reach the red ball": the peg over the named one of three balls
    push    "push the puck to the red mark": the puck on the named one of two marks

An episode succeeds when its goal has been kept for HELD control steps on end. Lengths are metres, x to the right and y
away from the arm's base at (0, 0); angles are radians. Where a task has no puck or no third target, it lies AWAY and
no picture shows it.
"""

import math
from functools import cache

import mujoco
import numpy as np

from omni.data.episodes import PIXELS, finished, length, paint
from omni.data.rollout import CANVAS
from omni.data.scenes import COLORS

# A state (14,) float.
ANGLES, PUCK_AT, TARGETS_AT, TINTS_AT, GOAL_AT = slice(0, 2), slice(2, 4), slice(4, 10), slice(10, 13), 13
AWAY = 5.0  # x and y of what is not there

LINKS = 0.34, 0.30  # lengths
PEG, PUCK, BALL, MARK = 0.03, 0.06, 0.055, 0.08  # radii
BENT = 0.15, 2.75  # least and greatest angle of the elbow: it bends one way, so that each place has one posture
REACH = 0.15, 0.635  # distances from the base at which the peg works
TOLERANCE, HELD = 0.04, 5  # greatest distance from the goal's middle, and for how many control steps on end

CONTROL_HZ = 10
STEPS, STEP = 50, 0.002  # of the physics in one control step; seconds
LIMIT = 80  # control steps of an episode

TINTS = tuple(COLORS)
TARGETS = {"reach": 3, "push": 2}
PROMPTS = {
    "reach": ("reach the {} ball", "go to the {} ball", "touch the {} ball"),
    "push": ("push the puck to the {} mark", "push the puck onto the {} mark", "move the puck to the {} mark"),
}

# Where things start, as distances and directions (degrees) from the base; what starts together is APART.
PLACES = {"peg": (0.25, 0.55, 20, 160), "ball": (0.25, 0.57, 20, 160), "puck": (0.3, 0.48, 40, 140)}
PLACES["mark"] = PLACES["puck"]
APART = {"reach": 0.15, "push": 0.18}

VIEW, LEFT, TOP = 1.2, -0.6, 0.76  # side of the square that pictures show, and its corner
SCALE = CANVAS / VIEW  # pixels in a metre
TABLE, LINK_COLOR, PEG_COLOR, PUCK_COLOR = (240, 236, 228), (165, 170, 180), (20, 20, 25), (110, 85, 70)
LINK, LINE = 0.028, 0.012  # halves of the widths of a link and of a mark's line

MODEL = f"""
<mujoco model="omni_arm">
  <compiler angle="radian"/>
  <option timestep="{STEP}" gravity="0 0 0" integrator="implicitfast"/>
  <default>
    <joint damping="0.2" armature="0.02"/>
    <geom contype="0" conaffinity="0" friction="0.3 0.005 0.0001"/>
  </default>
  <worldbody>
    <body name="upper" pos="0 0 0.1">
      <joint name="shoulder" type="hinge" axis="0 0 1"/>
      <geom type="capsule" fromto="0 0 0 {LINKS[0]} 0 0" size="{LINK}" mass="0.3"/>
      <body name="fore" pos="{LINKS[0]} 0 0">
        <joint name="elbow" type="hinge" axis="0 0 1" limited="true" range="{BENT[0]} {BENT[1]}"/>
        <geom type="capsule" fromto="0 0 0 {LINKS[1]} 0 0" size="{LINK}" mass="0.2"/>
        <geom name="peg" type="sphere" pos="{LINKS[1]} 0 -0.07" size="{PEG}" mass="0.05" contype="1"/>
      </body>
    </body>
    <body name="puck" pos="0 0 0.03">
      <joint name="puck x" type="slide" axis="1 0 0" damping="2" frictionloss="0.3" armature="0"/>
      <joint name="puck y" type="slide" axis="0 1 0" damping="2" frictionloss="0.3" armature="0"/>
      <geom name="puck" type="cylinder" size="{PUCK} 0.03" mass="0.1" conaffinity="1"/>
    </body>
    <body name="target 0" mocap="true"><geom type="cylinder" size="{BALL} 0.001"/></body>
    <body name="target 1" mocap="true"><geom type="cylinder" size="{BALL} 0.001"/></body>
    <body name="target 2" mocap="true"><geom type="cylinder" size="{BALL} 0.001"/></body>
  </worldbody>
  <actuator>
    <position joint="shoulder" kp="40" kv="4"/>
    <position joint="elbow" kp="20" kv="1.5"/>
  </actuator>
</mujoco>
"""


@cache
def model() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(MODEL)


# ----------------------------------------------------------------------------------------------------
# states


def task(state: np.ndarray) -> str:
    return "push" if state[PUCK_AT][0] < AWAY else "reach"


def goal(state: np.ndarray) -> np.ndarray:
    """Place (2,) of the target that the task names."""
    return state[TARGETS_AT].reshape(3, 2)[int(state[GOAL_AT])]


def distance(state: np.ndarray) -> float:
    """Of the peg or the puck from where the task wants it."""
    return math.dist(goal(state), state[PUCK_AT] if task(state) == "push" else joints(state[ANGLES])[1])


def prompt(state: np.ndarray, way: int) -> str:
    """The task in words; `way`, any number, chooses which."""
    words = PROMPTS[task(state)]
    return words[way % len(words)].format(TINTS[int(state[TINTS_AT][int(state[GOAL_AT])])])


def joints(angles: np.ndarray) -> np.ndarray:
    """Places (2, 2) of elbow and peg at joint angles (2,)."""
    along = np.cumsum(angles)
    return np.cumsum(np.array(LINKS)[:, None] * np.stack([np.cos(along), np.sin(along)], axis=1), axis=0)


def posture(place: np.ndarray) -> np.ndarray:
    """Joint angles (2,) with the peg at a place (2,), or as near to it as REACH lets it be."""
    a, b = LINKS
    far = min(max(float(np.hypot(*place)), REACH[0]), REACH[1])
    bend = math.acos((far * far - a * a - b * b) / (2 * a * b))
    return np.array([math.atan2(place[1], place[0]) - math.atan2(b * math.sin(bend), a + b * math.cos(bend)), bend])


def draw_start(seed: int, kind: str | None = None) -> np.ndarray:
    """State (14,) in which an episode starts, of a `kind` of task or of any."""
    if seed < 0:
        raise ValueError(f"seed is {seed}, must not be negative")
    if kind not in (None, *TARGETS):
        raise ValueError(f"kind is {kind!r}, must be one of {', '.join(TARGETS)}")
    rng = np.random.default_rng(seed)
    drawn = str(rng.choice(list(TARGETS)))
    kind = kind or drawn
    count = TARGETS[kind]
    things = ["peg", *["ball"] * count] if kind == "reach" else ["puck", *["mark"] * count, "peg"]
    while True:
        places = np.array([draw_place(rng, thing) for thing in things])
        gaps = np.abs(places[:, None] - places).max(axis=-1) + np.eye(len(places))
        if gaps.min() >= APART[kind]:
            break
    state = np.full(14, AWAY)
    state[TINTS_AT] = rng.permutation(len(TINTS))[:3]
    state[GOAL_AT] = rng.integers(count)
    state[ANGLES] = posture(places[things.index("peg")])
    state[TARGETS_AT][: 2 * count] = places[1 : count + 1].ravel()
    if kind == "push":
        state[PUCK_AT] = places[0]
    return state


def draw_place(rng: np.random.Generator, thing: str) -> np.ndarray:
    """A place (2,) where a thing of PLACES may start."""
    least, most, first, last = PLACES[thing]
    far, way = rng.uniform(least, most), math.radians(rng.uniform(first, last))
    return far * np.array([math.cos(way), math.sin(way)])


class Table:
    """The physics, from a state on."""

    def __init__(self, state: np.ndarray) -> None:
        self.model, self.data, self.start = model(), mujoco.MjData(model()), np.array(state, dtype=np.float64)
        self.data.qpos[:] = state[: PUCK_AT.stop]
        self.data.ctrl[:] = state[ANGLES]
        self.data.mocap_pos[:, :2] = self.start[TARGETS_AT].reshape(3, 2)
        mujoco.mj_forward(self.model, self.data)

    @property
    def state(self) -> np.ndarray:
        return np.concatenate([self.data.qpos, self.start[PUCK_AT.stop :]])

    def step(self, target: np.ndarray) -> None:
        """One control step: the joints are driven to angles (2,)."""
        self.data.ctrl[:] = target
        mujoco.mj_step(self.model, self.data, nstep=STEPS)

    def put(self, place: np.ndarray) -> None:
        """Place the puck at (2,)."""
        self.data.qpos[PUCK_AT] = place
        self.data.qvel[PUCK_AT] = 0


# ----------------------------------------------------------------------------------------------------
# pictures


def _pixels(places: np.ndarray) -> np.ndarray:
    """Places (..., 2) in pixels, x to the right and y down."""
    return np.stack([(places[..., 0] - LEFT) * SCALE, (TOP - places[..., 1]) * SCALE], axis=-1)


def _disc(place: np.ndarray, radius: float) -> np.ndarray:
    """(CANVAS, CANVAS) pixels from each pixel to a disc's edge, negative inside."""
    return length(PIXELS - complex(*_pixels(place))) - radius * SCALE


def _bar(a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """The same of a bar with round ends."""
    start, way = complex(*_pixels(a)), complex(*(_pixels(b) - _pixels(a)))
    share = np.clip(((PIXELS - start) / way).real, 0, 1)
    return length(PIXELS - start - share * way) - radius * SCALE


def picture(state: np.ndarray) -> np.ndarray:
    """(CANVAS, CANVAS, 3) uint8. The arm is drawn below what it would hide, or a picture would not show its state."""
    drawn = np.full((CANVAS, CANVAS, 3), TABLE, dtype=np.float64)
    kind, (elbow, peg) = task(state), joints(state[ANGLES])
    for a, b in ((np.zeros(2), elbow), (elbow, peg)):
        paint(drawn, LINK_COLOR, _bar(a, b, LINK))
    for place, tint in zip(state[TARGETS_AT].reshape(3, 2)[: TARGETS[kind]], state[TINTS_AT], strict=False):
        shape = _disc(place, BALL) if kind == "reach" else np.abs(_disc(place, MARK)) - LINE * SCALE
        paint(drawn, COLORS[TINTS[int(tint)]], shape)
    if kind == "push":
        paint(drawn, PUCK_COLOR, _disc(state[PUCK_AT], PUCK))
    paint(drawn, PEG_COLOR, _disc(peg, PEG))
    return finished(drawn)


def tracks(states: np.ndarray) -> dict[str, np.ndarray]:
    """Peg, goal, elbow and, if there is one, puck (n, 2) in pixels, of states (n, 14)."""
    elbows, pegs = np.stack([joints(state[ANGLES]) for state in states], axis=1)
    found = {"peg": pegs, "goal": np.stack([goal(state) for state in states]), "elbow": elbows}
    if task(states[0]) == "push":
        found["puck"] = states[:, PUCK_AT]
    return {thing: _pixels(places) for thing, places in found.items()}


# ----------------------------------------------------------------------------------------------------
# closed loop


class Arm:
    """The world for a policy: pictures out, target angles in.

    `score` is 1 once the goal has been kept for HELD steps on end and 0 before, `steps` how many actions were taken.
    """

    embodiment = "omni_arm"
    fps = float(CONTROL_HZ)

    def __init__(self, kind: str | None = None) -> None:
        self.kind = kind
        self.reset(0)

    def reset(self, seed: int) -> np.ndarray:
        """Start the episode of a seed and show it, (CANVAS, CANVAS, 3) uint8."""
        self.table = Table(draw_start(seed, self.kind))
        self.prompt = prompt(self.state, seed)
        self.steps, self.kept, self.score = 0, 0, 0.0
        self.first = distance(self.state)
        return picture(self.state)

    @property
    def state(self) -> np.ndarray:
        return self.table.state

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """Take an action (2,) of angles: picture, reward in [0, 1], whether the episode is over.

        The reward is 1 within TOLERANCE and otherwise the share of the way that is done. An episode is over at
        success or after LIMIT steps. Angles beyond those of any posture are clipped.
        """
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise ValueError(f"action is {action}, must be two finite numbers")
        self.table.step(np.clip(action, (-math.pi, BENT[0]), (math.pi, BENT[1])))
        left = distance(self.state)
        self.steps, self.kept = self.steps + 1, self.kept + 1 if left <= TOLERANCE else 0
        self.score = max(self.score, float(self.kept >= HELD))
        reward = 1.0 if left <= TOLERANCE else max(0.0, 1 - left / self.first)
        return picture(self.state), reward, self.score == 1 or self.steps >= LIMIT
