"""The study of architectures: what is equal, what a run leaves and resumes, the report's arithmetic, decoding."""

import json
import shutil
import signal
from dataclasses import replace

import pytest
import torch
import yaml

from omni.data import TRAIN_SEEDS, batches
from omni.families import load_folder
from omni.inputs import Inputs
from omni.losses import IGNORED, next_token
from omni.model import Omni
from omni.studies import architectures, decoding, report, runs
from omni.studies.architectures import QUICK, Plan, planned, study
from omni.studies.decoding import Workload, crossover, integral
from omni.studies.variants import D_MODEL, NAMES, counts, fitted, variants
from omni.tensorfile import read_json
from omni.tokenizers.bytes import ByteTokenizer
from omni.training import OmniTraining

TOLERANCE = 1e-3  # of the parameters that are made equal

LITTLE = Plan(
    names=("moe", "dense"),
    seeds=(0, 1),
    rates=(1e-3, 4e-3),
    steps=12,
    sweep_steps=2,
    rows=1,
    width=192,
    held_out=1,
    workload=Workload(read=32, written=32, lengths=(32, 64), rows=(1, 2), turns=2, steps=2),
)


# -- what is equal -----------------------------------------------------------------------------------------------------


def by_hand(config) -> tuple[int, int]:
    """Total and active parameters by the formulas of the family's published counts."""
    t = config.context
    h, m, a = t.d_model, t.mamba, t.attention
    total = active = 2 * config.vocab_size * h + h
    for letter in t.pattern:
        if letter == "M":
            cd, di = m.n_heads * m.head_dim + 2 * m.n_groups * m.d_state, m.n_heads * m.head_dim
            each = h * (di + cd + m.n_heads) + 4 * cd + cd + 3 * m.n_heads + di + di * h + h
        elif letter == "*":
            each = 2 * h * a.n_heads * a.head_dim + 2 * h * a.n_kv_heads * a.head_dim + h
        elif letter == "-":
            each = 2 * h * t.mlp.d_ff + h
        else:
            e = t.moe
            width = e.d_latent or h
            each = e.n_experts * h + e.n_experts + 2 * h * e.d_shared + h + (2 * h * e.d_latent if e.d_latent else 0)
            active += each + e.n_active_experts * 2 * width * e.d_ff
            total += each + e.n_experts * 2 * width * e.d_ff
            continue
        total, active = total + each, active + each
    return total, active


def test_variants_have_the_parameters_that_they_say():
    assert tuple(variants()) == NAMES
    for variant in variants().values():
        assert (variant.total, variant.active) == by_hand(variant.config), variant.name


def test_variants_are_equal_where_they_should_be():
    v = variants()

    def alike(one: str, other: str, field: str) -> None:
        a, b = getattr(v[one], field), getattr(v[other], field)
        assert abs(a / b - 1) < TOLERANCE, (one, other, field, a, b)

    alike("dense", "moe", "active")
    alike("dense-total", "moe", "total")
    for latent in ("latent-2", "latent-4"):
        alike(latent, "moe", "active")
        alike(latent, "moe", "total")
    alike("attention", "dense", "total")
    assert v["moe"].total > 3 * v["moe"].active


def test_variants_differ_in_one_thing():
    v = {name: variant.config.context for name, variant in variants().items()}
    hybrids = [v[name] for name in NAMES if name != "attention"]
    assert {t.pattern.replace("E", "-") for t in hybrids} == {v["dense"].pattern}
    assert len({(t.mamba, t.attention, t.d_model) for t in hybrids}) == 1
    moe, sizes = v["moe"].moe, [(v[f"latent-{r}"].moe, r) for r in (2, 4)]
    for latent, ratio in sizes:
        assert latent.d_latent == D_MODEL // ratio
        assert latent.d_ff == moe.d_ff
        assert moe.n_experts < latent.n_experts <= ratio * moe.n_experts
        assert moe.n_active_experts < latent.n_active_experts < ratio * moe.n_active_experts
        assert latent.scale == pytest.approx(latent.n_active_experts**0.5)
    assert set(v["attention"].pattern) == {"*", "-"}
    assert v["attention"].attention.rotary is not None
    assert v["dense"].attention.rotary is None
    assert v["attention"].pattern.count("*") == sum(v["dense"].pattern.count(letter) for letter in "M*")


def test_fitted_finds_the_nearest_size():
    config = variants()["dense"].config

    def make(size: int):
        return replace(config, context=replace(config.context, mlp=replace(config.context.mlp, d_ff=size)))

    def total(config) -> int:
        return counts(config)[0]

    step = total(make(8)) - total(make(7))
    assert fitted(make, total, total(make(7)) + step // 3).context.mlp.d_ff == 7
    assert fitted(make, total, total(make(7)) + step - step // 3).context.mlp.d_ff == 8
    with pytest.raises(ValueError, match="the smallest has"):
        fitted(make, total, 1000)


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    return out, study(out, LITTLE)


def test_the_study_leaves_its_report(done):
    out, found = done
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(found))
    assert (out / "loss.png").stat().st_size > 10_000
    text = (out / "report.md").read_text()
    assert "| moe - dense | all |" in text
    assert "32 after 32: s" in text
    assert not list(out.rglob("*.part"))
    assert not list(out.glob("runs/*/checkpoints"))
    for name in LITTLE.names:
        tried = {run["rate"]: run["loss"] for run in found["sweep"] if run["variant"] == name}
        assert set(tried) == set(LITTLE.rates)
        assert found["losses"][name]["rate"] == min(tried, key=tried.get)
    assert set(found["balance"]) == {"moe"}
    first = read_json(out / "runs" / "moe-seed0" / "result.json")
    assert [step for step, _ in first["curve"]] == list(range(LITTLE.steps))
    assert first["curve"][-1][1] < first["curve"][0][1]  # it learns
    state = load_folder(out / "runs" / "moe-seed0" / "model").state_dict()
    biases = [value for name, value in state.items() if name.endswith("router.bias")]
    assert len(biases) == 3
    assert all(bool(bias.any()) for bias in biases)  # and its experts were balanced
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # between runs the study can be told to stop too


def test_all_variants_are_shown_the_same(done):
    out, _ = done
    a, b = (yaml.safe_load((out / "runs" / f"{name}-seed1" / "recipe.yaml").read_text()) for name in LITTLE.names)
    assert a.pop("model") != b.pop("model")
    rates = [stage.pop("lr") for recipe in (a, b) for stage in recipe["stages"]]
    assert set(rates) <= set(LITTLE.rates)
    assert a == b
    assert a["seed"] == 1


@pytest.mark.slow
def test_a_stopped_study_goes_on_and_ends_the_same(done, tmp_path, monkeypatch):
    out, whole = done
    for sweep in out.glob("runs/*-rate*"):
        shutil.copytree(sweep, tmp_path / "runs" / sweep.name)
    step, started = OmniTraining.training_step, []
    monkeypatch.setattr(
        runs, "train", lambda *a, train=runs.train, **k: started.append(k["out"].name) or train(*a, **k)
    )

    def crash(self, batch, index):
        if self.recipe.seed == 1 and self.global_step == 11:  # its checkpoint is of step 10
            raise RuntimeError("power failure")
        return step(self, batch, index)

    monkeypatch.setattr(OmniTraining, "training_step", crash)
    with pytest.raises(RuntimeError, match="power failure"):
        study(tmp_path, LITTLE)
    before = len(started)
    assert started[-1] == "moe-seed1"
    monkeypatch.setattr(OmniTraining, "training_step", step)
    again = study(tmp_path, LITTLE)
    assert started[before:] == ["moe-seed1", "dense-seed1"]
    for name in LITTLE.names:
        assert {k: again["losses"][name][k] for k in report.LOSSES} == {
            k: whole["losses"][name][k] for k in report.LOSSES
        }
    resumed, gone = (read_json(out / "runs" / "moe-seed1" / "result.json") for out in (tmp_path, out))
    assert resumed["curve"] == gone["curve"]
    assert resumed["processor_seconds"] is None
    assert gone["processor_seconds"] > 0
    study(tmp_path, LITTLE)
    assert len(started) == before + 2


def test_a_folder_holds_one_study(done):
    out, _ = done
    with pytest.raises(ValueError, match="another plan"):
        study(out, replace(LITTLE, steps=13))
    with pytest.raises(ValueError, match="recurrent"):
        Plan(names=("dense", "recurrent"))
    with pytest.raises(ValueError, match="at least one seed"):
        Plan(seeds=())


def test_one_rate_needs_no_sweep():
    assert architectures._swept(QUICK) == ()
    assert planned(quick=True, seed=5).seeds == (5, 6)
    assert planned(seed=2).seeds == (2, 3, 4)
    sweep, run = architectures._sweep_run(Plan(), "moe", 1e-3), architectures._run(Plan(), "moe", 1e-3, 0)
    assert sweep.seed not in Plan().seeds
    assert sweep.held_out_from >= run.held_out_from + run.held_out  # the rate is not chosen on what is reported
    assert run.tokens == Plan().steps * Plan().rows * Plan().width


def test_held_out_text_is_not_trained_on(monkeypatch):
    model, asked = small(), []
    drawn = batches.sample_text
    monkeypatch.setattr(batches, "sample_text", lambda seed: asked.append(seed) or drawn(seed))
    run = replace(architectures._sweep_run(Plan(), "moe", 1e-3), held_out=3)
    list(runs._held_out_batches(model, run))
    runs.text(model, 6000)
    assert len(asked) > 100
    assert max(asked) < TRAIN_SEEDS.start


def small(name: str = "moe") -> Omni:
    torch.manual_seed(0)
    model = Omni(variants()[name].config).eval()
    model.tokenizer = ByteTokenizer()
    return model


def test_losses_are_of_all_tokens_and_of_the_answers():
    model = small()
    run = replace(architectures._run(QUICK, "moe", 1e-3, 0), held_out=1)
    found = runs.held_out(model, run)
    ((whole, answers),) = runs._held_out_batches(model, run)
    logits = model.logits(Inputs(whole.input_ids, segments=whole.segments))
    assert found["loss"] == pytest.approx(next_token(logits, whole.labels).item(), rel=1e-5)
    assert found["answer_loss"] == pytest.approx(next_token(logits, answers.labels).item(), rel=1e-5)
    n, said = (int((labels[:, 1:] != IGNORED).sum()) for labels in (whole.labels, answers.labels))
    parts = said * found["answer_loss"] + (n - said) * found["rest_loss"]
    assert parts / n == pytest.approx(found["loss"], rel=1e-6)
    assert 0 <= found["answer_accuracy"] <= 1


def test_rows_that_no_dialogue_fits_into_are_refused():
    run = replace(architectures._run(QUICK, "moe", 1e-3, 0), width=16)
    with pytest.raises(ValueError, match="rows of 16 tokens"):
        runs.held_out(small(), run)


def test_a_run_that_diverged_says_so():
    model = small()
    with torch.no_grad():
        model.embed.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="moe-seed0 has diverged at the rate"):
        runs.held_out(model, architectures._run(QUICK, "moe", 1e-3, 0))


def test_balance_tells_who_is_chosen():
    model = small()
    run = architectures._run(QUICK, "moe", 1e-3, 0)
    moe = model.config.context.moe
    for module in model.modules():
        if isinstance(module, runs.Router):
            module.bias[: moe.n_active_experts] = 10.0
    uneven = runs.balance(model, run)
    share = moe.n_active_experts / moe.n_experts
    assert uneven == pytest.approx({"busiest": 1 / share, "idle": 1 - share})
    assert runs.balance(small(), run)["busiest"] < uneven["busiest"]


# -- arithmetic --------------------------------------------------------------------------------------------------------


def result(variant: str, seed: int, loss: float, rate: float = 1e-3, seconds: float | None = 2.0) -> dict:
    losses = dict.fromkeys(report.LOSSES, loss)
    return {"variant": variant, "seed": seed, "rate": rate, "tokens": 100, "processor_seconds": seconds, **losses}


def test_means_spreads_and_differences():
    found = report.summarise(
        [result("moe", 1, 0.7), result("moe", 0, 0.5, seconds=None), result("moe", 2, 0.6, seconds=4.0)]
        + [result("dense", seed, 0.8) for seed in (0, 1, 2)]
    )
    assert found["moe"]["seeds"] == [0, 1, 2]
    assert found["moe"]["loss"]["values"] == [0.5, 0.7, 0.6]
    assert found["moe"]["loss"]["mean"] == pytest.approx(0.6)
    assert found["moe"]["loss"]["std"] == pytest.approx(0.1)
    assert found["moe"]["tokens_a_second"] == pytest.approx((50 + 25) / 2)
    pair = report.compare(found, "moe", "dense")
    assert pair["differences"] == pytest.approx([-0.3, -0.1, -0.2])
    assert pair["mean"] == pytest.approx(-0.2)
    half = 4.3027 * 0.1 / 3**0.5
    assert pair["interval"] == pytest.approx([-0.2 - half, -0.2 + half], rel=1e-4)
    single = report.summarise([result("moe", 0, 0.5), result("dense", 0, 0.6)])
    assert report.compare(single, "moe", "dense")["interval"] is None
    assert single["moe"]["loss"]["std"] is None
    uneven = report.summarise([result("moe", 0, 0.5), result("dense", 1, 0.6)])
    with pytest.raises(ValueError, match="seeds"):
        report.compare(uneven, "moe", "dense")


def test_the_lowest_loss_chooses_the_rate():
    sweep = [result("moe", 0, loss, rate) for rate, loss in ((1e-3, 0.9), (2e-3, 0.7), (4e-3, 0.8))]
    assert report.chosen([*sweep, result("dense", 0, 1.0, 8e-3)]) == {"moe": 2e-3, "dense": 8e-3}


def test_curves_are_averaged_backwards():
    assert report.smoothed([3.0, 1.0, 2.0, 6.0], width=2) == [3.0, 2.0, 1.5, 4.0]


def test_an_answer_takes_the_area_under_the_cost_of_its_steps():
    assert integral({0: 9.0, 8: 1.0, 16: 2.0, 24: 4.0, 32: 9.0}, 8, 24) == pytest.approx(8 * 1.5 + 8 * 3.0)
    assert integral({0: 5.0, 10: 5.0}, 0, 10) == pytest.approx(50.0)


@pytest.mark.parametrize(
    ("one", "crosses"),
    [([3, 3, 3], 100), ([1, 1, 1], 10), ([9, 9, 9], None), ([1, 3, 1], 100), ([1, 1, 9], None)],
)
def test_crossover_is_where_it_stays_cheaper(one, crosses):
    def steps(values):
        return {"rows": {"1": {"milliseconds": dict(zip(("1", "10", "100"), values, strict=True))}}}

    found = {"a": steps(one), "b": steps([1, 2, 4])}
    assert crossover(found, "a", "b", 1) == crosses


# -- decoding ----------------------------------------------------------------------------------------------------------


def test_decoding_measures_every_length_and_counts_the_cache():
    models = {name: small(name) for name in ("latent-4", "attention")}
    work = Workload(read=40, written=24, lengths=(8, 40, 64), rows=(1, 3), turns=3, steps=2)
    found = decoding.measure(models, work)
    assert set(found) == set(models)
    for name, model in models.items():
        assert found[name]["prompt_seconds"] > 0
        assert found[name]["weight_bytes"] == 4 * sum(p.numel() for p in model.parameters())
        for rows in work.rows:
            of = found[name]["rows"][str(rows)]
            assert list(of["milliseconds"]) == ["8", "40", "64"]
            assert all(len(turns) == work.turns for turns in of["turns"].values())
            assert of["cache_bytes"] == model.new_cache(rows, 64).nbytes
            assert of["cache_bytes_at"]["8"] == model.new_cache(rows, 8).nbytes
            between = sum(of["milliseconds"][n] for n in ("40", "64")) / 2
            assert of["answer_seconds"] == pytest.approx(24 * between / 1e3)
            assert of["tokens_a_second"] == pytest.approx(rows * 24 / of["answer_seconds"])


def test_a_workload_is_measured_at_its_ends():
    with pytest.raises(ValueError, match="must rise"):
        Workload(read=10, written=10, lengths=(10, 15))
    with pytest.raises(ValueError, match="must rise"):
        Workload(read=10, written=10, lengths=(20, 10))


def test_text_is_as_long_as_asked_and_holds_no_padding():
    model = small()
    ids = runs.text(model, 5000)
    assert ids.shape == (5000,)
    assert not bool((ids == model.tokenizer.special["pad"]).any())
    assert torch.equal(runs.text(model, 100), ids[:100])
