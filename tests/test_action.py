"""Actions: published embodiments, the model's form of actions and back, statistics in checkpoints, rotations, poses."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from towers import TOWERS, noise, system_config

import omni
from omni.config import (
    ActionConfig,
    ConfigError,
    Embodiment,
    Normalizer,
    TimeConfig,
    from_dict,
    replace,
    to_dict,
)
from omni.config_action import CLAMPED, ROTATIONS_TOO, STATISTICS
from omni.families import save
from omni.model import Omni
from omni.tokenizers import action
from omni.tokenizers.action import PUBLISHED, chunk, decode, embodiment, encode, fit, pad, unpad

ACTIONS = Path(__file__).resolve().parent.parent.parent / "shared/samples/generator/action/actions"

# Names, domain and width that the published checkpoints were trained with. None: the data set decides.
ROWS = (
    ("no_action", 0, None),
    ("av", 1, 9),
    ("camera_pose", 2, 9),
    ("hand_pose", 3, 57),
    ("pusht", 4, 2),
    ("libero", 5, None),
    ("umi", 6, 10),
    ("bridge_orig_lerobot", 7, 10),
    ("droid_lerobot robomind-franka", 8, 10),
    ("droid_joint_pos", 8, 8),
    ("galbot embodiment_b", 9, 30),
    ("robomind-franka-dual", 12, 20),
    ("robomind-ur", 13, 10),
    ("agibotworld agibot_gear_gripper agibot_gear_gripper_ext", 15, 29),
    ("embodiment_c_gripper embodiment_c_gripper_ext", 15, 29),
    ("xdof_yam molmoact2_yam abc_yam", 16, 20),
    ("robotwin", 17, 14),
    ("fractal", 20, 10),
    ("drawanything", 21, 3),
    ("behavior1k_lerobot", 22, 23),
    ("maniparena", 23, 20),
)
TABLE = {name: (domain, width) for names, domain, width in ROWS for name in names.split()}


def rotations(count: int, seed: int = 0) -> Tensor:
    """Random ones (count, 3, 3), without the code under test."""
    q, r = torch.linalg.qr(noise(count, 3, 3, seed=seed))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]
    return q * torch.linalg.det(q)[:, None, None]  # in three dimensions, -q mirrors if q does not


def random_poses(count: int, seed: int = 0) -> Tensor:
    poses = torch.eye(4).double().repeat(count, 1, 1)
    poses[:, :3, :3] = rotations(count, seed)
    poses[:, :3, 3] = noise(count, 3, seed=seed + 100)
    return poses


def sample(name: str) -> Tensor:
    path = ACTIONS / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{path.name} of the shared samples is not here")
    return torch.tensor(json.loads(path.read_text()), dtype=torch.float64)


@pytest.fixture(autouse=True)
def forget_registered(monkeypatch):
    monkeypatch.setattr(action, "_REGISTERED", {})


# -- embodiments -----------------------------------------------------------------------------------------------------


def test_published_names_domains_and_widths():
    assert {name: (one.domain, one.width) for name, one in PUBLISHED.items()} == TABLE
    for one in PUBLISHED.values():
        assert one.domain < 32
        assert encode(torch.zeros(3, one.width or 7), replace(one, width=one.width or 7), 64).shape == (3, 64)


def test_diffusers_knows_the_same():
    theirs = pytest.importorskip("diffusers.pipelines.cosmos.pipeline_cosmos3_omni")
    domains, widths = theirs._EMBODIMENT_TO_DOMAIN_ID, theirs._EMBODIMENT_TO_RAW_ACTION_DIM
    assert len(domains) >= 17
    assert len(widths) >= 15
    assert {name: PUBLISHED[name].domain for name in domains} == domains
    assert {name: PUBLISHED[name].width for name in widths} == widths
    assert {name for name in domains if PUBLISHED[name].width is None} == domains.keys() - widths.keys()


def test_blocks_say_which_channels_are_rotations_and_grippers():
    droid, hands = PUBLISHED["droid_lerobot"], PUBLISHED["hand_pose"]
    assert droid.rotation_channels == (3, 4, 5, 6, 7, 8)
    assert droid.gripper_channels == (9,)
    assert PUBLISHED["agibotworld"].gripper_channels == (18, 28)
    assert PUBLISHED["robomind-franka-dual"].gripper_channels == (9, 19)
    assert hands.gripper_channels == ()
    assert hands.rotation_channels == (*range(3, 9), *range(12, 18), *range(36, 42))
    identity = torch.zeros(1, 57)
    for start in (0, 9, 33):
        identity[:, start : start + 9] = torch.tensor([0, 0, 0, 1.0, 0, 0, 0, 1, 0])
    six = identity[0, list(hands.rotation_channels)].reshape(3, 6)
    assert torch.equal(action.rotation_matrix(six), torch.eye(3).repeat(3, 1, 1))


def test_checkpoint_comes_before_registered_before_published():
    config = ActionConfig(width=8, n_domains=5, embodiments=(Embodiment(name="pusht", domain=1, width=2),))
    assert embodiment("pusht").domain == 4
    assert action.register(Embodiment(name="pusht", domain=2, width=3)).domain == 2
    assert embodiment("pusht").domain == 2
    assert embodiment("pusht", config).domain == 1
    assert embodiment("pusht", replace(config, embodiments=())).domain == 2
    one = Embodiment(name="mine", domain=0, width=1)
    assert embodiment(one) is one


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("droid", None, "unknown embodiment 'droid'; did you mean droid_lerobot"),
        ("fractall", None, "did you mean fractal?"),
        ("qqqq", None, "known: abc_yam, agibot_gear_gripper"),
        ("pusht", ActionConfig(n_domains=4), "'pusht' has domain 4; the model has domains 0 to 3"),
        ("av", ActionConfig(width=8), "'av' has 9 numbers an action; the model has room for 8"),
    ],
)
def test_what_has_no_place_is_refused(name, config, said):
    with pytest.raises(ValueError, match=said):
        embodiment(name, config)


def test_width_that_the_data_decides_is_asked_for():
    with pytest.raises(ValueError, match="'libero' has no width of its own"):
        encode(torch.zeros(1, 7), embodiment("libero"), 64)
    with pytest.raises(ValueError, match="'libero' has no width of its own"):
        decode(torch.zeros(1, 64), embodiment("libero"))
    one = action.register(replace(embodiment("libero"), width=7))
    assert decode(torch.zeros(1, 64), embodiment("libero")).shape == (1, one.width)


BASE = {"name": "x", "domain": 0, "width": 3}
UNIT = {"method": "minmax", "offset": (0.0,), "scale": (1.0,)}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Embodiment(**BASE | {"name": ""}), "Embodiment.name is ''"),
        (lambda: Embodiment(**BASE | {"domain": -1}), "domain is -1; it must lie in 0"),
        (lambda: Embodiment(**BASE | {"width": 0}), "width is 0; it must lie in 1"),
        (lambda: Embodiment(**BASE, chunk=0), "chunk is 0"),
        (lambda: Embodiment(**BASE, fps=0.0), "fps is 0.0"),
        (lambda: Embodiment(**BASE, gripper="flip", gripper_channels=(2,)), "gripper is 'flip'; known: keep, invert"),
        (lambda: Embodiment(**BASE, gripper="invert"), "gripper_channels are not set"),
        (lambda: Embodiment(**BASE, gripper_channels=(3,)), r"gripper_channels holds \[3\]; channels run from 0 to 2"),
        (lambda: Embodiment(**BASE, rotation_channels=(-1,)), r"rotation_channels holds \[-1\]"),
        (lambda: Embodiment(**BASE, viewpoint="moon"), "viewpoint is 'moon'; known: ego_view"),
        (lambda: Embodiment(**BASE, normalizer=Normalizer(**UNIT)), "width is 3, its normalizer's 1"),
        (lambda: Normalizer(**UNIT | {"method": "none"}), "method is 'none'; known: quantile"),
        (lambda: Normalizer(**UNIT | {"scale": ()}), "1 offsets and 0 scales"),
        (lambda: Normalizer(**UNIT | {"scale": (0.0,)}), r"scale holds \[0.0\]; scales must be finite and at least"),
        (lambda: Normalizer(**UNIT | {"scale": (-1.0,)}), r"scale holds \[-1.0\]"),
        (lambda: Normalizer(**UNIT | {"offset": (math.nan,)}), r"offset holds \[nan\]"),
        (lambda: Normalizer(**UNIT | {"method": "meanstd"}, clamp=True), "clamp is set for meanstd"),
        (lambda: ActionConfig(embodiments=(Embodiment(**BASE),) * 2), r"holds \['x'\] twice"),
        (lambda: ActionConfig(embodiments=(Embodiment(**BASE | {"domain": 32}),)), "domain 32; the model has domains"),
        (lambda: ActionConfig(width=2, embodiments=(Embodiment(**BASE),)), "3 numbers an action; the model has room"),
        (lambda: ActionConfig(positions_a_second=0.0), "positions_a_second is 0.0"),
        (lambda: Normalizer.from_statistics("mad", {}), "unknown method 'mad'; known: quantile"),
        (lambda: Normalizer.from_statistics("minmax", {"min": [0]}), r"\['max'\] are missing"),
        (lambda: Normalizer.from_statistics("minmax", {"min": [0], "max": [1, 2]}), "one number a channel"),
        (lambda: Normalizer.from_statistics("minmax", {"min": [1], "max": [0]}), r"channels \[0\] is negative"),
        (lambda: Normalizer.from_statistics("minmax", {"min": [0], "max": [math.inf]}), r"\['max'\] hold numbers"),
        (lambda: Normalizer.fit("minmax", [[0.0]]), r"actions are \(1, 1\)"),
        (lambda: Normalizer.fit("minmax", [[0.0], [math.nan]]), "1 numbers of the actions are not finite"),
        (lambda: Normalizer.fit("minmax", [[0.0], [1.0]], rotation_channels=[1]), r"rotation_channels holds \[1\]"),
    ],
)
def test_configurations_that_cannot_be_meant(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


# -- the model's form ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("method", STATISTICS)
@pytest.mark.parametrize("name", ["av", "droid_lerobot", "agibotworld", "hand_pose"])
def test_what_is_encoded_comes_back(seed, method, name):
    plain = PUBLISHED[name]
    data = noise(60, plain.width, seed=seed).float() * torch.logspace(-2, 2, plain.width) + 3
    one = fit(plain, data, method)
    for width in (plain.width, 64):
        for actions in (data[:7], data[:12].unflatten(0, (3, 4)), data[:7].numpy(), data[:7].double()):
            coded = encode(actions, one, width)
            assert coded.shape == (*actions.shape[:-1], width)
            assert not coded[..., plain.width :].any()
            back = decode(coded, one)
            assert back.dtype == (torch.float64 if actions.dtype == torch.float64 else torch.float32)
            off = (back - torch.as_tensor(actions)).abs() / (torch.tensor(one.normalizer.scale) + 3)
            assert float(off.max()) < (1e-12 if back.dtype == torch.float64 else 5e-6)


def test_inverted_gripper_on_the_way_in_and_out():
    raw = torch.tensor([[0.5] * 9 + [0.0], [0.5] * 9 + [1.0], [0.5] * 9 + [0.25]])
    assert encode(raw, PUBLISHED["droid_lerobot"], 64)[:, 9].tolist() == [1.0, 0.0, 0.75]
    assert encode(raw, PUBLISHED["umi"], 64)[:, 9].tolist() == [0.0, 1.0, 0.25]
    assert torch.equal(encode(raw, PUBLISHED["droid_lerobot"], 64)[:, :9], raw[:, :9])
    assert decode(torch.tensor([[0.0] * 7 + [0.9]]), PUBLISHED["droid_joint_pos"])[0, 7] == pytest.approx(0.1)
    assert raw[0, 9] == 0  # what was given is left as it was


def test_gripper_is_inverted_before_it_is_normalised():
    half = Normalizer(method="minmax", offset=(0.25,), scale=(0.5,))
    one = Embodiment(name="claw", domain=0, width=1, gripper="invert", gripper_channels=(0,), normalizer=half)
    assert encode([[0.0]], one, 1).item() == 1.5  # (1 - 0 - 0.25) / 0.5
    assert decode([[1.5]], one).item() == 0.0
    data = np.array([[0.0], [0.0], [0.4]])
    fitted = fit(replace(one, normalizer=None), data, "minmax").normalizer
    assert fitted.offset == pytest.approx((0.8,))  # of 1 - g, which runs from 0.6 to 1
    assert fitted.scale == pytest.approx((0.2,))


def test_quantiles_lie_at_one_and_are_cut_only_when_asked():
    data = np.arange(101.0)[:, None].repeat(2, 1) * [1, -3]
    plain, cut = (Normalizer.fit("quantile", data, clamp=clamp) for clamp in (False, True))
    assert plain.offset == pytest.approx((50.0, -150.0))
    assert plain.scale == pytest.approx((49.0, 147.0))
    one = Embodiment(name="x", domain=0, width=2, normalizer=plain)
    rows = [[1.0, -297.0], [99.0, -3.0], [100.0, 0.0], [50.0, -150.0]]
    expected = torch.tensor([[-1.0, -1], [1, 1], [50 / 49, 50 / 49], [0, 0]])
    assert torch.allclose(encode(rows, one, 2), expected)
    assert torch.allclose(encode(rows, replace(one, normalizer=cut), 2), expected.clamp(-1, 1))
    assert torch.allclose(decode([[1.5, 0.0]], replace(one, normalizer=cut)), torch.tensor([[123.5, -150.0]]))


def test_other_methods_by_hand():
    statistics = {"q01": [-1.0], "q99": [3.0], "min": [-2.0], "max": [41.0], "mean": [0.5], "std": [2.0]}

    def at(method: str, value: float) -> float:
        found = Normalizer.from_statistics(method, statistics)
        return encode([[value]], Embodiment(name="x", domain=0, width=1, normalizer=found), 1).item()

    assert at("quantile_rot", 5.0) == 2.0  # (5 - 1) / 2
    assert at("meanstd", 5.0) == 2.25
    assert at("minmax", 41.0) == 1.0
    assert at("asinh_rot", 3.0) == pytest.approx(1.0)
    assert at("asinh_rot", 21.0) == pytest.approx(math.asinh(10) / math.asinh(1), rel=1e-6)
    assert at("piecewise_asinh_rot", 2.0) == 0.5
    assert at("piecewise_asinh_rot", 21.0) == pytest.approx(1 + math.asinh(9), rel=1e-6)
    assert at("piecewise_asinh_rot", -19.0) == pytest.approx(-1 - math.asinh(9), rel=1e-6)
    assert at("quantile_rot_scale_floor", 41.0) == 5.0  # the furthest of the data: 40 / 5 = 8 a unit
    assert at("quantile_rot_scale_floor", 9.0) == 1.0


@pytest.mark.parametrize("method", STATISTICS)
def test_rotations_are_left_alone_unless_the_method_says_so(method):
    data = noise(50, 10, seed=3).numpy() * 0.01 + 0.5
    found = fit(PUBLISHED["umi"], data, method).normalizer
    left = [(found.offset[i], found.scale[i]) == (0.0, 1.0) for i in range(10)]
    assert left == [method not in ROTATIONS_TOO and 3 <= i < 9 for i in range(10)]


@pytest.mark.parametrize("method", STATISTICS)
@pytest.mark.parametrize("value", [0.0, 0.1, -1000.0])
def test_constant_channels_become_zero(method, value):
    data = np.stack([np.full(40, value), np.linspace(-1, 1, 40)], 1)
    one = Embodiment(name="x", domain=0, width=2, normalizer=Normalizer.fit(method, data))
    coded = encode(data, one, 2)
    assert one.normalizer.scale[0] == 1.0
    assert float(coded[:, 0].abs().max()) < 1e-9
    assert float(coded[:, 1].abs().max()) > 0.5
    assert torch.allclose(decode(coded, one), torch.tensor(data).float())


@pytest.mark.parametrize("method", sorted(STATISTICS.keys() - set(CLAMPED)))
def test_methods_without_limits_are_not_clamped(method):
    with pytest.raises(ConfigError, match=f"clamp is set for {method}"):
        Normalizer.fit(method, noise(30, 1).numpy(), clamp=True)


def test_padding_and_chunks():
    actions = noise(2, 3, 5, seed=1)
    assert torch.equal(unpad(pad(actions, 64), 5), actions)
    assert not pad(actions, 64)[..., 5:].any()
    assert torch.equal(chunk(actions, 3), actions)
    assert torch.equal(chunk(actions, 2), actions[:, :2])
    longer = chunk(actions, 6)
    assert torch.equal(longer[:, :3], actions)
    assert torch.equal(longer[:, 3:], actions[:, 2:].expand(2, 3, 5))
    assert chunk(actions[0].tolist(), 4).shape == (4, 5)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: pad(torch.zeros(1, 65), 64), r"\(1, 65\) cannot be filled up to 64"),
        (lambda: pad(torch.zeros(1, 1), 1 << 40), "cannot be filled up"),
        (lambda: pad(torch.zeros(3), 64), r"actions are \(3,\); \(n, a\) or \(b, n, a\)"),
        (lambda: pad(torch.zeros(0, 3), 64), r"actions are \(0, 3\)"),
        (lambda: pad([["a", "b"]], 64), "of type <U1; numbers are wanted"),
        (lambda: unpad(torch.zeros(1, 4), 5), "hold 4 numbers each, not 5"),
        (lambda: chunk(torch.zeros(1, 4), 0), "a chunk of 0 actions"),
        (lambda: chunk(torch.zeros(1, 4), 1 << 40), "a chunk of 1099511627776 actions"),
        (lambda: encode(torch.zeros(1, 9), PUBLISHED["umi"], 64), "actions of umi have 9 numbers each; 10 are wanted"),
        (lambda: encode([[0.0, math.nan]], PUBLISHED["pusht"], 64), "1 numbers of the actions of pusht are not finite"),
        (lambda: decode(torch.full((1, 64), math.inf), PUBLISHED["pusht"]), "64 numbers of the actions are not finite"),
    ],
)
def test_actions_that_cannot_be_meant(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_what_would_overflow_is_no_action():
    steep = Normalizer(method="asinh_rot", offset=(0.0,), scale=(1.0,))
    one = Embodiment(name="x", domain=0, width=1, normalizer=steep)
    with pytest.raises(ValueError, match="decoded actions of x are not finite"):
        decode([[200.0]], one)


# -- checkpoints -----------------------------------------------------------------------------------------------------


def with_actions(embodiments: tuple[Embodiment, ...]) -> Omni:
    actions = ActionConfig(width=12, n_domains=9, embodiments=embodiments)
    return Omni(system_config(TOWERS["*-*- rotary"], time=TimeConfig(mode="input"), action=actions))


def test_statistics_travel_in_the_checkpoint(tmp_path):
    push = fit(PUBLISHED["pusht"], noise(40, 2, seed=5) * 100 + 256, "quantile", clamp=True)
    droid = fit(replace(PUBLISHED["droid_lerobot"], chunk=16), noise(40, 10, seed=6) / 3, "piecewise_asinh_rot")
    model = with_actions((push, droid))
    save(model, tmp_path / "model")
    again = omni.load(str(tmp_path / "model"), device="cpu")
    assert again.config.action == model.config.action
    assert embodiment("pusht", again.config.action) == push != PUBLISHED["pusht"]
    raw, read = noise(4, 10, seed=7), embodiment("droid_lerobot", again.config.action)
    assert torch.equal(encode(raw, read, 12), encode(raw, droid, 12))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"normalizer": {"method": "minmax", "offset": [0.0], "scale": [1.0]}}, "width is 2, its normalizer's 1"),
        ({"gripper_channels": ["a"]}, "Embodiment.gripper_channels is"),
        ({"speed": 3}, r"Embodiment has no fields \['speed'\]"),
        ({"width": 2.5}, "Embodiment.width is 2.5"),
    ],
)
def test_damaged_statistics_are_refused(change, said):
    plain = to_dict(ActionConfig(embodiments=(PUBLISHED["pusht"],)))
    assert from_dict(ActionConfig, json.loads(json.dumps(plain))).embodiments == (PUBLISHED["pusht"],)
    plain["embodiments"][0] |= change
    with pytest.raises(ConfigError, match=said):
        from_dict(ActionConfig, plain)


# -- rotations and poses ---------------------------------------------------------------------------------------------


def test_six_numbers_are_two_columns():
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # x to y, y to -x
    assert action.rotation_6d(quarter).tolist() == [0, 1, 0, -1, 0, 0]  # by rows it were 0, -1, 0, 1, 0, 0
    assert action.rotation_6d(torch.eye(3)).tolist() == [1, 0, 0, 0, 1, 0]
    assert torch.equal(action.rotation_matrix(torch.tensor([0.0, 1, 0, -1, 0, 0])), quarter)
    skewed = torch.tensor([0.0, 5, 0, -2, 3, 0])  # lengths, and the second column's part along the first, are dropped
    assert torch.allclose(action.rotation_matrix(skewed), quarter)


@pytest.mark.parametrize("seed", range(3))
def test_rotations_come_back(seed):
    matrices = rotations(20, seed).unflatten(0, (4, 5))
    assert torch.allclose(torch.linalg.det(matrices), torch.ones(4, 5).double())
    assert torch.allclose(action.rotation_matrix(action.rotation_6d(matrices)), matrices, atol=1e-12)
    quaternions = action.quaternion_of_rotation(matrices)
    assert quaternions.shape == (4, 5, 4)
    assert bool((quaternions[..., 3] >= 0).all())
    assert torch.allclose(action.rotation_of_quaternion(-3 * quaternions), matrices, atol=1e-12)


def test_quaternions_end_with_the_real_part():
    half = math.sqrt(0.5)
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    assert torch.allclose(action.rotation_of_quaternion(torch.tensor([0, 0, half, half])), quarter, atol=1e-6)
    assert torch.allclose(action.quaternion_of_rotation(quarter), torch.tensor([0, 0, half, half]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("convention", action.CONVENTIONS)
def test_integrated_actions_recover_the_poses(seed, convention):
    poses = random_poses(33, seed)
    actions = action.relative_poses(poses, convention)
    assert actions.shape == (32, 9)
    assert float((action.integrate_poses(poses[0], actions, convention) - poses).abs().max()) < 1e-6
    single = action.integrate_poses(poses[0].float(), actions.float(), convention)
    assert single.dtype == torch.float32
    assert float((single - poses.float()).abs().max()) < 1e-5
    rows = torch.stack([poses, random_poses(33, seed + 50)])
    both = action.relative_poses(rows, convention)
    assert torch.allclose(both[0], actions)
    assert float((action.integrate_poses(rows[:, 0], both, convention) - rows).abs().max()) < 1e-6


def test_framewise_and_anchored_differ_as_they_should():
    """Straight on, a quarter turn to the left each time: every step is the same one; the anchored ones come round."""
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    step = action.pose(torch.tensor([1.0, 0, 0]), quarter)
    poses = torch.stack([torch.linalg.matrix_power(step, i) for i in range(5)])
    framewise, anchored = (action.relative_poses(poses, name) for name in action.CONVENTIONS)
    assert torch.allclose(framewise, torch.tensor([1.0, 0, 0, 0, 1, 0, -1, 0, 0]).expand(4, 9))
    assert torch.allclose(anchored[:, :3], torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]]))
    assert torch.allclose(anchored[3, 3:], torch.tensor([1.0, 0, 0, 0, 1, 0]))


def test_droid_axes_turn_the_pose_and_not_the_place():
    poses = random_poses(5)
    turned = action.turn_axes(poses)
    assert torch.equal(turned[:, :3, 3], poses[:, :3, 3])
    # The new x axis is the old y axis, the new y axis the old -x axis.
    assert torch.allclose(turned[:, :3, 0], poses[:, :3, 1])
    assert torch.allclose(turned[:, :3, 1], -poses[:, :3, 0])
    assert torch.allclose(turned[:, :3, 2], poses[:, :3, 2])
    assert torch.allclose(action.turn_axes(turned, back=True), poses)


MIRROR = torch.diag(torch.tensor([1.0, 1, -1, 1]))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: action.rotation_matrix(torch.tensor([1.0, 0, 0, 2, 0, 0])), "1 of the 6D rotations have parallel"),
        (lambda: action.rotation_matrix(torch.zeros(6)), "1 of the 6D rotations have parallel or zero"),
        (lambda: action.rotation_matrix(torch.zeros(5)), r"6D rotations are \(5,\) torch.float32; floats \(..., 6\)"),
        (lambda: action.rotation_6d(torch.eye(3, dtype=torch.long)), "torch.int64; floats"),
        (lambda: action.rotation_of_quaternion(torch.zeros(2, 4)), "a quaternion has no length"),
        (lambda: action.quaternion_of_rotation(torch.eye(3) * 2), "R\\^T R is 3 from the identity"),
        (lambda: action.relative_poses(torch.eye(4)[None]), r"poses are \(1, 4, 4\); \(n \+ 1, 4, 4\) with at least"),
        (lambda: action.relative_poses(MIRROR.repeat(2, 1, 1)), "or R mirrors"),
        (lambda: action.relative_poses(torch.full((2, 4, 4), math.nan)), "not rotations"),
        (lambda: action.relative_poses(torch.eye(4).mul(2).repeat(2, 1, 1)), "not rotations"),
        (lambda: action.relative_poses(torch.eye(4).repeat(2, 1, 1), "forward"), "unknown convention 'forward'"),
        (lambda: action.integrate_poses(torch.eye(4), torch.zeros(3, 8)), r"actions are \(3, 8\); \(n, 9\)"),
        (lambda: action.turn_axes(torch.eye(4), torch.ones(3, 3)), "not rotations"),
    ],
)
def test_poses_that_cannot_be_meant(call, said):
    with pytest.raises(ValueError, match=said):
        call()


# -- published samples -----------------------------------------------------------------------------------------------


def test_published_drive_integrates_to_poses():
    """A car that drives on: along its own z axis, with rotations that stay rotations over 60 steps."""
    actions = sample("av_traj_forward")
    assert actions.shape == (60, embodiment("av").width)
    first = torch.eye(4).double()
    poses = action.integrate_poses(first, actions)
    turned = poses[:, :3, :3]
    assert float((turned.mT @ turned - torch.eye(3).double()).abs().max()) < 1e-12
    assert torch.allclose(torch.linalg.det(turned), torch.ones(61).double())
    assert float((action.relative_poses(poses) - actions).abs().max()) < 1e-6
    way = poses[-1, :3, 3]
    assert float(way[2]) == pytest.approx(float(actions[:, 2].sum()), rel=0.05)
    assert float(way[2]) > 5 * float(way[:2].norm())


def test_published_umi_actions_have_the_published_width():
    actions = sample("umi")
    assert actions.shape == (32, embodiment("umi").width)
    coded = encode(actions, embodiment("umi"), 64)
    assert coded.shape == (32, 64)
    assert torch.equal(decode(coded, embodiment("umi")), actions)
    assert float(actions[:, 9].min()) < 0  # the gripper is normalised already: no convention of 0 to 1 is left
