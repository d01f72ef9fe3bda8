"""The measurements beside the reference implementation: what is counted, and that both sides compute the same."""

import pytest
import torch

from omni import bench, bench_tools
from omni import bench_understanding as bench_of
from omni.bench_peer import write_folder
from omni.bench_tools import BenchError, Rates, Report, Row, Target, where
from omni.bench_understanding import PRUNED, QUESTIONS, Ours, Theirs, Workload, cases
from omni.config import replace

TINY = {
    "text": {
        "vocab_size": 640,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 2,
        "chunk_size": 16,
        "intermediate_size": 40,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "moe_shared_expert_intermediate_size": 24,
        "max_position_embeddings": 8192,
    },
    "vision": {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "max_img_size": 1024},
    "sound": {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "projection_hidden_size": 40,
        "subsampling_conv_channels": 8,
    },
}
LITTLE = Workload(pages=2, page_side=96, frames=6, frame_side=96, seconds=1.3, turns=1)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("peer")
    write_folder(path, "M*E-", TINY, LITTLE.frame_patches, seed=0)
    return str(path)


@pytest.fixture(scope="module")
def ours(folder) -> Ours:
    return Ours(folder)


@pytest.fixture(scope="module")
def theirs(folder) -> Theirs:
    return Theirs(folder)


# -- rows and reports --------------------------------------------------------------------------------------------------


def test_ratios_and_targets_are_those_of_the_measurements():
    assert Row("x", "s", 2.0, 3.0, 1.0).ratio == 1.5
    assert Row("x", "s", 2.0, None, 1.0).ratio is None
    assert [Target("t", value, 1.5).met for value in (1.49, 1.5)] == [False, True]
    assert Target("t", 9.0).met is None
    rows = [Row("reading", "s", 2.0, 3.0, None)]
    plain = Report({}, Rates(1.0, 1.0), rows, targets=[Target("reference / ours", 1.5, 2.0)]).as_dict()
    assert plain["rows"][0]["ratio"] == 1.5
    assert plain["targets"] == [{"name": "reference / ours", "value": 1.5, "least": 2.0, "met": False}]


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self, monkeypatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(bench_tools.time, "perf_counter", lambda: self.now)

    def pass_(self, seconds: float) -> None:
        self.now += seconds


def test_medians_leave_the_first_turn_out(monkeypatch):
    clock, calls = Clock(monkeypatch), []
    waits = {"a": iter([50.0, 1.0, 3.0, 2.0]), "b": iter([0.0, 5.0, 4.0, 9.0])}

    def run(name: str) -> None:
        calls.append(name)
        clock.pass_(next(waits[name]))

    times = bench_tools.in_turns([lambda: run("a"), lambda: run("b")], 3)
    assert times == [[1.0, 3.0, 2.0], [5.0, 4.0, 9.0]]
    assert calls == ["a", "b"] * 4
    both = bench_tools.row("reading", "ms", 1e3, times, 1.5)
    assert (both.ours, both.theirs, both.floor) == (2000.0, 5000.0, 1500.0)
    assert both.spread == (4 / 3, 5.0)
    alone = bench_tools.row("reading", "s", 1.0, times[:1], None)
    assert (alone.ours, alone.theirs, alone.spread) == (2.0, None, None)
    assert bench_tools.row("memory", "B", 1.0, [[2.0], [3.0]], None).spread is None


def test_parts_do_not_count_what_other_parts_do_inside_them(monkeypatch):
    clock = Clock(monkeypatch)

    class Work:
        def outer(self) -> None:
            clock.pass_(2.0)
            self.inner()
            clock.pass_(1.0)

        def inner(self) -> None:
            clock.pass_(5.0)

    work = Work()
    assert where(work.outer, [(work, "inner", "inside")]) == {"inside": 5.0, "other": 3.0}
    assert "inner" not in vars(work), "the functions are put back"
    both = [(work, "outer", "outside"), (work, "inner", "inside")]
    assert where(lambda: work.outer(), both) == {"outside": 3.0, "inside": 5.0, "other": 0.0}


# -- both sides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases(LITTLE, seed=3), ids=lambda case: case.name)
def test_the_peer_says_what_we_say(ours, theirs, case):
    assert bench_of.disagree(ours, theirs, [case]) < 1e-4
    assert ours.model.config.sound.clip_seconds == 30.0, "the configuration is put back"
    if case.kind != "sound" and not case.pruning:
        assert ours.tokens(case, QUESTIONS[1]) == theirs.tokens(case, QUESTIONS[1])


def test_media_decide_what_is_said(theirs):
    """The control of the test above: with other media the logits are far away."""
    for a, b in zip(cases(LITTLE, seed=3), cases(LITTLE, seed=4), strict=True):
        one, other = (theirs.logits(case, QUESTIONS[0]) for case in (a, b))
        assert float((one - other).abs().max() / one.abs().max()) > 0.01


def test_the_peer_goes_on_from_a_copy_of_its_cache(theirs):
    case, other = cases(LITTLE, seed=3)[0], cases(LITTLE, seed=4)[0]
    whole = theirs.logits(case, QUESTIONS[1])
    kept = theirs.peer.read(case.kind, case.media, QUESTIONS[0])
    for _ in range(2):  # the copy moves on, what was kept does not
        torch.testing.assert_close(theirs.peer.further(kept, QUESTIONS[1]), whole, rtol=1e-4, atol=1e-4)
    elsewhere = theirs.peer.read(other.kind, other.media, QUESTIONS[0])
    assert float((theirs.peer.further(elsewhere, QUESTIONS[1]) - whole).abs().max() / whole.abs().max()) > 0.01


def test_the_comparison_sees_a_difference(ours, theirs, monkeypatch):
    document = cases(LITTLE, seed=0)[:1]
    plain = Theirs.logits
    monkeypatch.setattr(Theirs, "logits", lambda *args: plain(*args) + torch.arange(640) / 100)
    with pytest.raises(BenchError, match="differ"):
        bench_of.disagree(ours, theirs, document)
    assert ours.model.config.sound.clip_seconds == 30.0


def test_pruning_shortens_our_prompt_by_its_rate(ours):
    whole, *pruned = (case for case in cases(LITTLE, seed=0) if case.kind == "video")
    shown = 3 * 9  # three tubelets of 3 x 3 tokens
    base = ours.tokens(whole, QUESTIONS[0]) - shown
    assert [case.pruning for case in pruned] == list(PRUNED[1:])
    # Marks around the tokens of a tubelet stay where none of its tokens does.
    assert [ours.tokens(case, QUESTIONS[0]) - base for case in pruned] == [int(shown * 0.5), 9]


def test_a_second_question_reads_only_itself(ours, monkeypatch):
    case = cases(LITTLE, seed=0)[0]
    reading = ours.first(case, QUESTIONS[0])
    monkeypatch.setattr(ours.model.vision, "encode", lambda *_: pytest.fail("the pages were read before"))
    read: list[int] = []
    plain = ours.model.logits
    monkeypatch.setattr(ours.model, "logits", lambda x, *a, **k: read.append(_length(x)) or plain(x, *a, **k))
    reading.ask([QUESTIONS[1]], max_new_tokens=1)
    assert sum(read) == len(reading.ids(QUESTIONS[1])) - reading.prompt_tokens < 40


def _length(inputs) -> int:
    return getattr(inputs, "input_ids", inputs).shape[1]


def test_operations_are_those_of_the_products(ours):
    """Against torch's own count of products and convolutions, which leaves fused attention out."""
    from torch.utils.flop_counter import FlopCounterMode

    config, model = ours.model.config, ours.model
    v, d_out = config.vision, config.context.d_model
    for pixels in (torch.rand(3, 96, 64), torch.rand(2, 3, 96, 96)):
        with FlopCounterMode(display=False) as counter:
            model.see(pixels[None])
        n = v.n_prefix + pixels.shape[-2] * pixels.shape[-1] // 256
        attention = v.n_layers * 4 * n * n * v.d_model
        assert counter.get_total_flops() + attention == bench_of.vision_operations(v, d_out, pixels)
    with FlopCounterMode(display=False) as counter:
        model.hear([torch.rand(200, 128)])
    attention = config.sound.n_layers * 4 * 25 * 25 * config.sound.d_model
    assert counter.get_total_flops() + attention == bench_of.sound_operations(config.sound, d_out, 200)


# -- reports -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", [True, False])
def test_a_report_says_everything(folder, peer, monkeypatch):
    monkeypatch.setattr(bench_of, "measure_rates", lambda: Rates(1.0, 1.0))
    monkeypatch.setattr(bench_of, "child_peak", lambda module, arguments, what: 2.0**31)
    report = bench_of.measure(folder, LITTLE, peer=peer, seed=0, threads=1, small=LITTLE)
    names = ["2 pages", "6 frames", "6 frames, 50% pruned", "6 frames, 75% pruned", "1.3 s of sound"]
    firsts = [f"{name}, first token" for name in names]
    second = "2 pages, second question"
    firsts[1:1] = [second, f"{second}, theirs cached by hand"] if peer else [second]
    assert [row.name for row in report.rows] == firsts + [f"memory, {name}" for name in names]
    assert all((row.theirs is not None) == peer for row in report.rows)
    assert {row.ours for row in report.rows if row.unit == "GiB"} == {2.0}
    by_name = {row.name: row for row in report.rows}
    targets = {target.name: target for target in report.targets}
    kept = targets["2 pages: our first / our second"]
    assert kept.least == 10.0
    first_row, second_row = by_name["2 pages, first token"], by_name["2 pages, second question"]
    assert kept.value == pytest.approx(first_row.ours / second_row.ours)
    assert len(targets) == (6 if peer else 1)
    if peer:
        assert targets["2 pages, first token: reference / ours"].value == pytest.approx(first_row.ratio)
        for way, named in (("that reads again", second), ("cached by hand", f"{second}, theirs cached by hand")):
            found = targets[f"{second}: reference {way} / ours"]
            assert (found.value, found.least) == (pytest.approx(by_name[named].ratio), None)
        assert report.disagreement < 1e-4
    assert set(report.parts["2 pages, ours"]) == {
        "preparing", "tower", "projector", "sound encoder", "language model", "logits", "other",
    }  # fmt: skip
    assert report.parts["6 frames, ours"]["sound encoder"] == 0 < report.parts["6 frames, ours"]["tower"]
    assert ("6 frames, theirs" in report.parts) == peer
    text = bench_of.table(report)
    for word in ("language model", "2 pages, second question", "reference", "wanted 10"):
        assert word in text


def test_layers_behind_the_last_mixer_cost_one_token(ours):
    """A pattern's floor grows with the prompt by its mixers, and by other layers in front of one."""
    config = ours.model.config

    def step(pattern: str) -> int:
        changed = replace(config, context=replace(config.context, pattern=pattern))
        return bench.prefill_operations(changed, 9) - bench.prefill_operations(changed, 8)

    assert step("M-") == step("ME") == step("M") < step("-M")
    assert step("E*-") == step("E*")


def test_floors_grow_with_what_is_read(ours):
    config = ours.model.config
    document, video, *_ = cases(LITTLE, seed=0)
    counted = [bench_of.first_operations(config, ours.read(case), QUESTIONS[0]) for case in (document, video)]
    pages = 2 * bench_of.vision_operations(config.vision, 32, torch.empty(3, 512, 512))
    assert counted[0] == pages + bench.prefill_operations(config, ours.tokens(document, QUESTIONS[0]))
    assert counted[1] < counted[0]


def test_one_side_alone_prints_its_highest_size(folder, capsys):
    sizes = ",".join(str(value) for value in vars(LITTLE).values())
    bench_of._measure_memory(folder, sizes, "0", "0", "1", "ours")
    assert 2**26 < float(capsys.readouterr().out.split()[-1]) < 2**36


def test_a_failed_child_says_why():
    with pytest.raises(BenchError, match=r"the run failed:\n(.|\n)*no-such-side"):
        bench_tools.child_peak("omni.bench", ["/nowhere", "1", "1", "no-such-side"], "the run")


def test_the_language_table_is_as_before():
    settings = {"pattern": "M*", "parameters": 1e6, "threads": 1}
    shares = {"prefill 10": {"scan": 0.25, "other": 0.75}}
    report = Report(settings, Rates(1.0, 1.0), [Row("prefill", "s", 1.0, 2.0, 0.5)], shares, 1e-6)
    text = bench.table(report)
    for word in ("M*, 1M parameters", "our time", "25%", "2.00", "agree with the reference to 1e-06"):
        assert word in text
    assert "seconds" not in text
