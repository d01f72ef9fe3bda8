"""Generation beside the reference pipeline: both sides make the same, and what is counted is what is computed."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from omni import bench_generation as bench_of
from omni import bench_generation_peer as peer_of
from omni import bench_nano
from omni.bench_generation import Case, Ours, Theirs, bench_generation
from omni.bench_tools import BenchError, Rates, Report, Row, table
from omni.cli import main
from omni.families import preset
from omni.pipelines.generation import Generator

TINY = peer_of.SIZES | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "rope_axes_dim": [2, 2, 2],
    "vocab_size": 640,
    "latent_channel": 6,
    "patch_latent_dim": 24,
    "sound_dim": 5,
    "action_dim": 12,
}
SIDE = (64, 48)  # two rows and columns of tokens, the second column half filled up
LITTLE = (
    Case("picture", "picture", 60, SIDE, steps=3, guidance=4.0, turns=1, least=0.0),
    Case("policy", "policy", 150, (192, 320), steps=2, guidance=1.0, frames=17, turns=1, least=1e9),
    Case("video", "video", 70, SIDE, steps=2, guidance=6.0, frames=9, turns=1),
    Case("3 pictures", "picture", 60, SIDE, steps=2, guidance=4.0, count=3, turns=1),
)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("peer")
    peer_of.write_folder(path, TINY, seed=0)
    return str(path)


@pytest.fixture(scope="module")
def ours(folder) -> Ours:
    return Ours(folder)


@pytest.fixture(scope="module")
def theirs(folder) -> Theirs:
    return Theirs(folder)


def by_name(case: Case) -> str:
    return case.name


# -- both sides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", LITTLE, ids=by_name)
def test_the_peer_makes_what_we_make(ours, theirs, case):
    """And with other prompts something else: the control."""
    case = ours.worded(case, seed=0)
    expected = theirs.run(case, seed=1)()
    assert bench_of.difference(ours.run(case, seed=1)(), expected) < 1e-4
    other = replace(case, prompts=ours.worded(case, seed=5).prompts)
    assert bench_of.difference(ours.run(other, seed=1)(), expected) > 0.01
    assert bench_of.difference(ours.run(case, seed=2)(), expected) > 0.01


@pytest.mark.parametrize("case", LITTLE, ids=by_name)
def test_prompts_have_the_tokens_of_their_case(ours, theirs, case):
    case = ours.worded(case, seed=3)
    action = {"action_mode": "policy", "action_view_point": "ego_view"} if case.kind == "policy" else {}
    height, width = case.size
    size = {"num_frames": case.frames, "height": height, "width": width, "fps": bench_of.FPS}
    for prompt in case.prompts:
        both = theirs.peer.pipe.tokenize_prompt(prompt, case.negative, **size, **action)
        assert [len(ids) for ids in both] == [case.text, case.text]
    with pytest.raises(ValueError, match=r"text is 5; its prompts take at least \d+ tokens"):
        ours.worded(replace(case, text=5), seed=3)


def test_requests_read_each_prompt_once_and_a_known_one_not_at_all(ours, monkeypatch):
    policy, several = (ours.worded(LITTLE[i], seed=0) for i in (1, 3))
    again = ours.again(policy, seed=0)
    read: list[int] = []
    plain = ours.model.read
    monkeypatch.setattr(ours.model, "read", lambda x, *a, **k: read.append(len(x.input_ids)) or plain(x, *a, **k))
    for run, rows in (
        (again, []),
        (ours.run(policy, seed=0), [1]),
        (ours.run(several, seed=0), [4]),
        (ours.one_by_one(several, seed=0), [2, 2, 2]),
    ):
        run()
        assert read == rows
        read.clear()


def test_the_comparison_sees_a_difference(folder, monkeypatch):
    plain = bench_of.Theirs.run
    monkeypatch.setattr(bench_of.Theirs, "run", lambda *args: lambda: plain(*args)() * 1.005)
    monkeypatch.setattr(bench_of, "measure_rates", lambda: Rates(1.0, 1.0))
    with pytest.raises(BenchError, match=r"latents differ by \d\.\de-03"):
        bench_of.measure(folder, LITTLE[:1], peer=True, seed=0, threads=1)


# -- floors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", LITTLE, ids=by_name)
def test_operations_are_those_of_the_products(ours, case):
    """Against torch's own count of products, which leaves fused attention out on a CPU."""
    from torch.utils.flop_counter import FlopCounterMode

    case, config = ours.worded(case, seed=0), ours.model.config
    with FlopCounterMode(display=False) as counter:
        ours.run(case, seed=0)()
    a, n, width = config.context.attention, case.tokens, 4 * 12
    layers, guided = 2, case.guidance != 1
    reads, branches = case.count + guided, case.count * (1 + guided)
    attended = case.steps * branches * layers * 4 * width * n * (n + case.text)
    attended += reads * (layers - 1) * 4 * width * case.text * (case.text + 1) // 2
    # The last layer of attention is run whole, its outputs behind the keys and values are not needed.
    spared = reads * case.text * 4 * 32 * a.n_heads * a.head_dim
    # One embedding of the time for both branches of a step, of all rows together.
    counted = bench_of.case_operations(config, case)
    assert counter.get_total_flops() == counted - attended + spared
    known = bench_of.case_operations(config, case, known=True)
    assert counted - known == reads * bench_of.read_operations(config.context, case.text)


def test_tokens_are_those_that_the_model_gets(ours):
    for case in LITTLE:
        latents, actions = bench_of.noise_of(case, ours.model.config, 0)
        streams = {"video": latents} | ({"action": actions} if case.kind == "policy" else {})
        assert Generator(ours.model, ours.codec).tokens(streams) == case.tokens
    full = {case.name: case.tokens for case in bench_of.FULL}
    assert full == {"picture": 60, "large picture": 1024, "policy": 316, "long video": 4020, "4 pictures": 60}


# -- reports -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", [True, False])
def test_a_report_says_everything(folder, peer, monkeypatch):
    asked = []
    monkeypatch.setattr(bench_of, "measure_rates", lambda: Rates(1.0, 1.0))
    monkeypatch.setattr(bench_of, "child_peak", lambda module, arguments, what: asked.append(arguments) or 2.0**31)
    report = bench_of.measure(folder, LITTLE, peer=peer, seed=0, threads=1)
    names = [
        "picture, 60 + 4 tokens, 3 steps",
        "policy, 150 + 316 tokens, 2 steps",
        "policy, 150 + 316 tokens, 2 steps, instruction known",
        "video, 70 + 12 tokens, 2 steps",
        "3 pictures, 60 + 4 tokens, 2 steps",
        "3 pictures, 60 + 4 tokens, 2 steps, one by one",
        "memory, video, 12 tokens",
    ]
    assert [row.name for row in report.rows] == names
    assert all((row.theirs is not None) == peer and row.floor > 0 for row in report.rows)
    rows = {row.name: row for row in report.rows}
    targets = {target.name: target for target in report.targets}
    alone = targets.pop("3 pictures: ours one by one / ours at once")
    assert alone.value == pytest.approx(rows[names[5]].ours / rows[names[4]].ours)
    assert set(targets) == ({f"{name}: reference / ours" for name in names[:6]} if peer else set())
    if peer:
        assert [targets[f"{names[i]}: reference / ours"].met for i in (0, 1, 2, 3)] == [True, False, False, None]
        assert 0 < report.disagreement < 1e-4
    assert [own[-1] for own in asked] == (["ours", "theirs"] if peer else ["ours"])
    assert set(report.parts) == {f"{case.name}, ours" for case in LITTLE}
    assert all(set(spent) == {"reading", "steps", "other"} for spent in report.parts.values())
    assert all(min(spent.values()) > 0 for spent in report.parts.values())
    text = table(report)
    for piece in ("picture, 60 + 4 tokens", "GiB", "reading", "one by one"):
        assert piece in text
    assert ("latents agree with the reference" in text) == peer
    json.dumps(report.as_dict())


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_one_side_alone_prints_its_highest_size(folder, ours, capsys, side):
    case = ours.worded(LITTLE[2], seed=0)
    bench_of._measure_memory(folder, json.dumps(asdict(case)), "0", "1", side)
    assert 2**26 < float(capsys.readouterr().out.split()[-1]) < 2**36


def test_quick_is_the_same_with_little_work():
    for quick, full in zip(bench_of.QUICK, bench_of.FULL, strict=True):
        assert (quick.name, quick.kind, quick.guidance, quick.count) == (
            full.name,
            full.kind,
            full.guidance,
            full.count,
        )
        assert quick.steps == 2
        assert quick.tokens <= 600
        assert quick.least is None


def test_the_quick_bench_runs_whole(monkeypatch):
    monkeypatch.setattr(bench_of, "SIZES", TINY)
    monkeypatch.setattr(bench_of, "QUICK", LITTLE)
    monkeypatch.setattr(bench_of, "measure_rates", lambda: Rates(1.0, 1.0))
    report = bench_generation(quick=True, threads=1)
    assert report.rows[-1].unit == "GiB"
    assert 0.05 < report.rows[-1].ours < 20
    assert report.rows[-1].theirs > 0.05
    assert report.disagreement < 1e-4


def test_a_device_needs_sizes():
    with pytest.raises(ValueError, match="device is 'cuda'"):
        bench_generation(device="cuda")


# -- published sizes ---------------------------------------------------------------------------------------------------

CODEC = bench_nano.WAN | {"base_dim": 4, "decoder_base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
REQUESTS = (
    Case("a video", "video", 70, SIDE, steps=2, guidance=6.0, frames=9, turns=1),
    Case("a picture", "picture", 60, SIDE, steps=3, guidance=4.0, turns=1),
)
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_published_requests_are_measured_in_parts(ours, dtype, monkeypatch):
    monkeypatch.setattr(bench_nano, "device_rates", lambda device, dtype: Rates(1.0, 1.0))
    published = {"a video": 6.0}
    config = ours.model.config
    report = bench_nano.measure("small", config, REQUESTS, CPU, dtype, CODEC, published=published, seed=0)
    assert [row.name for row in report.rows] == [
        "a video, 70 + 12 tokens, 2 steps",
        "a picture, 60 + 4 tokens, 3 steps",
    ]
    for case, found in zip(REQUESTS, report.rows, strict=True):
        spent = report.parts[case.name]
        assert set(spent) == {"reading", "steps", "decoding", "other"}
        assert min(spent.values()) > 0
        assert found.theirs is None
        assert found.floor == bench_nano.case_operations(config, case) / 1e9
    (told,) = report.targets
    assert told.name == "a video: 6 s, published on an H200, / ours"
    assert told.value == pytest.approx(6.0 / report.rows[0].ours)
    text = table(report)
    for piece in (f"{str(dtype).removeprefix('torch.')}, cpu", "decoding", "published"):
        assert piece in text
    assert "threads" not in text
    json.dumps(report.as_dict())


def test_random_models_are_drawn_by_their_seed(ours):
    first, same, other = (bench_nano.random_model(ours.model.config, CPU, torch.bfloat16, seed) for seed in (0, 0, 1))
    weights = [model.denoiser.blocks[1].mixer.up_proj.weight for model in (first, same, other)]
    assert weights[0].dtype == torch.bfloat16
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert float(weights[0].float().std()) == pytest.approx(32**-0.5, rel=0.1)
    for name, tensor in first.named_parameters():
        assert not tensor.is_meta
        assert bool(torch.isfinite(tensor).all()), name
        assert tensor.dim() > 1 or float(tensor.min()) == float(tensor.max()) == float("norm" in name)


def test_a_whole_video_is_fetched(ours):
    model = bench_nano.random_model(ours.model.config, CPU, torch.float32, 0)
    maker = bench_nano.Maker(model, bench_nano.random_codec(6, CODEC, CPU, torch.float32))
    case = bench_of.worded(REQUESTS[0], maker.pipeline(REQUESTS[0]), seed=0)
    clips = maker.pipeline(case)(case.prompts[0], height=64, width=48, frames=9, steps=1, seed=0)
    assert maker.fetch(clips) == 9


def test_published_sizes_are_known_and_must_fit(monkeypatch):
    with pytest.raises(ValueError, match="sizes are 'huge'; known: nano, edge, super"):
        bench_generation(sizes="huge")
    monkeypatch.setattr(bench_nano, "free_bytes", lambda device: 10**9)
    with pytest.raises(ValueError, match=r"the weights take 60\.7 GB; cpu has 1\.0 GB free"):
        bench_generation(sizes="nano", device="cpu")


def test_published_requests_have_the_published_numbers_of_tokens():
    assert {case.name: case.tokens for case in bench_nano.CASES} == {
        "256p video": 48 * 60,
        "480p video": 48 * 390,
        "256p picture": 60,
    }
    assert set(bench_nano.PUBLISHED["nano"]) == {case.name for case in bench_nano.CASES}
    for name in bench_nano.PRESETS.values():
        assert preset(name).latent.channels == 48


def test_the_command_passes_device_and_sizes_on(monkeypatch, capsys):
    asked = []
    settings = {"pattern": "a model", "parameters": 1, "device": "cpu", "dtype": "bfloat16"}
    report = Report(settings, Rates(1.0, 1.0), [Row("a video", "s", 2.0, None, 1.0)])
    monkeypatch.setattr(bench_of, "bench_generation", lambda **given: asked.append(given) or report)
    assert main(["bench", "generation", "--device", "cpu", "--sizes", "nano", "--quick"]) == 0
    assert asked == [{"quick": True, "seed": 0, "threads": 2, "device": "cpu", "sizes": "nano"}]
    assert "a video" in capsys.readouterr().out
    assert main(["bench", "language", "--sizes", "nano"]) == 2
    assert "--sizes belongs to generation" in capsys.readouterr().err
