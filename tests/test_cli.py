"""The command line: exit codes, one clear line, JSON, and the files that are written."""

import json
import subprocess
import sys
from pathlib import Path

import av
import pytest
import torch
from PIL import Image

import omni
from omni import cli
from omni.config import replace
from omni.evaluation import TASKS
from omni.families import save
from omni.families.tiny import ACT, ANIMATE, TINY
from omni.model import Omni
from omni.pipelines.images import read_settings
from omni.pipelines.reading import Answer
from omni.tokenizers.bytes import ByteTokenizer

SAMPLES = Path(__file__).parent.parent / "assets" / "samples"


@pytest.fixture(scope="module")
def random_tiny() -> Omni:
    """All that the shipped ones can do, with random weights: these tests are about the command, not what it says."""
    torch.manual_seed(0)
    walks = replace(ACT.generation, image=TINY.generation.image, draws=True, upsample=True)
    model = Omni(replace(ACT, sound_latent=ANIMATE.sound_latent, generation=walks)).eval()
    model.tokenizer = ByteTokenizer()
    return model


@pytest.fixture
def loaded(monkeypatch, random_tiny) -> list[tuple]:
    """Records what omni.load is asked for, and gives the random model."""
    calls = []
    monkeypatch.setattr(omni, "load", lambda name, device: calls.append((name, device)) or random_tiny)
    return calls


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "page.png"
    Image.new("RGB", (96, 64), "white").save(path)
    return path


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_the_common_options(capsys, name):
    code, out, _ = run(capsys, name, "--help")
    assert code == 0
    assert {"--model", "--seed", "--json", "--debug"} <= set(out.replace("[", " ").replace("]", " ").split())


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["ask"],
        ["ask", "x.png"],
        ["ask", "x.png", "what?", "--transcribe"],
        ["ask", "x.png", "what?", "--page", "0"],
        ["ask", "x.png", "what?", "--page", "1e3"],
        ["ask", "x.png", "what?", "--sede", "1"],
        ["ask", "x.png", "what?", "--seed", "-1"],
        ["ask", "x.png", "what?", "--seed", "\u0661"],
        ["chat", "--json"],
        ["chat", "--temperature", "nan"],
        ["chat", "hi", "--top-p", "1.5"],
        ["chat", "hi", "--max-new-tokens", "0"],
        ["draw"],
        ["draw", "a cat", "-o", "x.jpg"],
        ["draw", "a cat", "-o", "no/such/folder/x.png"],
        ["draw", "a cat", "--height", "0"],
        ["draw", "a cat", "--width", "99999999"],
        ["draw", "a cat", "--count", "65"],
        ["draw", "a cat", "--guidance", "inf"],
        ["train"],
        ["train", "recipe.yaml", "steps"],
        ["eval"],
        ["eval", "no-such-task"],
        ["bench"],
        ["bench", "poetry"],
        ["bench", "language", "--out", "runs"],
        ["bench", "architectures", "--sizes", "nano"],
        ["eval", "draw", "--data", "cases.jsonl"],
        ["eval", "draw", "stepz=3"],
        ["eval", "draw", "steps"],
        ["eval", "draw", "steps=["],
        ["eval", "draw", "steps=many"],
        ["eval", "draw", "upsample=7"],
        ["eval", "documents", "read_first=maybe"],
        ["eval", "text", "steps=3"],
        ["info", "tiny", "--context", "0"],
        ["convert", "only-one"],
    ],
    ids=" ".join,
)
def test_bad_usage_is_exit_code_2(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", "no-such-file.pdf", "what?"], "no-such-file.pdf does not exist"),
        (["ask", __file__, "what?"], "neither a picture"),
        (["chat", "hi", "--image", "no-such.png"], "no-such.png does not exist"),
        (["chat", "hi", "--model", "no/such/folder"], "no/such/folder"),
        (["draw", "a cat", "--model", "no/such/folder"], "no/such/folder"),
        (["train", "no-such.yaml"], "no-such.yaml"),
        (["info", "no/such/folder"], "no/such/folder"),
        (["info", "omni-tiny", "--memory", "plenty"], "'plenty' is not a size"),
        (["convert", "no/such/folder", "x"], "no/such/folder"),
    ],
)
def test_a_failed_run_is_exit_code_1_and_one_line(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, err = run(capsys, *arguments)
    assert code == 1
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"omni {arguments[0]}: ")
    assert message in err


def test_debug_shows_where_an_error_came_from(capsys):
    with pytest.raises(ValueError, match="does not exist"):
        run(capsys, "ask", "no-such-file.pdf", "what?", "--debug")


def test_an_interrupted_run_is_exit_code_130(capsys, monkeypatch, picture):
    def interrupt(name, device):
        raise KeyboardInterrupt

    monkeypatch.setattr(omni, "load", interrupt)
    code, _, err = run(capsys, "ask", picture, "what?")
    assert code == 130
    assert err == "omni: interrupted\n"


def test_a_closed_pipe_is_quiet():
    talk = "cli.COMMANDS['talk'] = cli.Command('', lambda parser: None, lambda args: print('word ' * 100_000))"
    code = f"import sys; from omni import cli; {talk}; sys.exit(cli.main(['talk']))"
    command = f'{sys.executable} -c "{code}" | head -c 0'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_help_imports_nothing_heavy():
    code = "import sys; from omni import cli; cli.main(['--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_ask_prints_one_answer_a_line(capsys, loaded, picture):
    options = ("--max-new-tokens", "3", "--model", "somewhere", "--device", "cpu")
    code, out, _ = run(capsys, "ask", picture, "what?", "who?", *options)
    assert code == 0
    assert loaded == [("somewhere", "cpu")]
    assert len(out.split("\n")) >= 3
    code, out, _ = run(capsys, "ask", picture, "what?", "who?", "--json", *options)
    answers = json.loads(out)
    assert [a["question"] for a in answers] == ["what?", "who?"]
    assert set(answers[0]) == {"question", "text", "pages", "confidence", "tokens", "complete"}
    assert answers[0]["pages"] == [1]


def test_ask_refuses_a_page_that_is_not_there(capsys, loaded, picture):
    code, _, err = run(capsys, "ask", picture, "what?", "--page", "2")
    assert code == 1
    assert "the document has 1" in err


def test_ask_transcribes(capsys, loaded, picture):
    code, out, _ = run(capsys, "ask", picture, "--transcribe", "--json", "--max-new-tokens", "3")
    assert code == 0
    assert len(json.loads(out)) == 1


def test_draw_writes_a_picture_that_tells_its_settings(capsys, loaded, tmp_path):
    path = tmp_path / "x.png"
    code, out, _ = run(capsys, "draw", "a red circle", "-o", path, "--steps", "2", "--seed", "5")
    assert code == 0
    assert out.strip() == str(path)
    settings = read_settings(path)
    assert (settings["prompt"], settings["steps"], settings["seed"]) == ("a red circle", 2, 5)
    again = tmp_path / "again.png"
    code, out, _ = run(capsys, "draw", "a red circle", "-o", again, "--steps", "2", "--seed", "5", "--json")
    assert json.loads(out)[0]["file"] == str(again)
    assert Image.open(path).tobytes() == Image.open(again).tobytes()


def test_draw_several_adds_a_sheet(capsys, loaded, tmp_path):
    size = ("--height", "32", "--width", "48")
    code, out, _ = run(capsys, "draw", "a ring", "-o", tmp_path / "x.png", "--count", "3", "--steps", "1", *size)
    assert code == 0
    assert out.split() == [str(tmp_path / f"x{n}.png") for n in ("-1", "-2", "-3", "")]
    pictures = [Image.open(tmp_path / f"x-{n}.png") for n in (1, 2, 3)]
    assert {picture.size for picture in pictures} == {(48, 32)}
    assert len({picture.tobytes() for picture in pictures}) == 3
    assert Image.open(tmp_path / "x.png").width > 48


def test_draw_names_the_limit_of_a_size(capsys, loaded, tmp_path):
    code, _, err = run(capsys, "draw", "a ring", "-o", tmp_path / "x.png", "--height", "33")
    assert code == 1
    assert "height is 33; it must be a multiple of" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("draw", "a red ring", "--no-upsample", "--steps", "1"), "tiny"),
        (("animate", "PICTURE", "the red ring falls", "--steps", "1"), "tiny-animate"),
        (("act", "PICTURE", "push the T", "--steps", "1"), "tiny-act"),
        (("world", "PICTURE", "--actions", "ACTIONS", "--steps", "1"), "tiny-act"),
        (("ask", "PICTURE", "what is it?", "--max-new-tokens", "1"), "tiny"),
        (("chat", "hello", "--max-new-tokens", "1"), "tiny"),
        (("eval", "animate", "--count", "1", "steps=1"), "tiny-animate"),
        (("eval", "policy", "--count", "1", "robot=omni_arm", "steps=1", "executed=80"), "tiny-act"),
        (("eval", "dynamics", "--count", "1", "robot=omni_arm", "steps=1"), "tiny-act"),
        (("eval", "text", "--count", "1"), "tiny"),
    ],
)
def test_every_command_has_its_default_model(capsys, loaded, picture, tmp_path, monkeypatch, arguments, name):
    if "robot=omni_arm" in arguments:
        pytest.importorskip("mujoco", reason="needs omni[robot]")
        monkeypatch.setenv("OMNI_CACHE", str(tmp_path))
    (tmp_path / "actions.json").write_text(json.dumps([[256.0, 256.0]] * 16))
    files = {"PICTURE": str(picture), "ACTIONS": str(tmp_path / "actions.json")}
    given = [files.get(word, word) for word in arguments]
    out = {"draw": "x.png", "animate": "x.mp4", "act": "x.json", "world": "x.mp4", "eval": "x.json"}.get(given[0])
    code, _, err = run(capsys, *given, *([] if out is None else ["--out", str(tmp_path / out)]))
    assert (code, loaded) == (0, [(name, "auto")]), err


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("animate", "a red circle falls"), "TextToVideo"),
        (("animate", SAMPLES / "shapes.mp4", "it goes on"), "VideoToVideo"),
        (("animate", "a red circle falls", "--control", f"seg={SAMPLES / 'shapes.mp4'}"), "Transfer"),
    ],
)
def test_what_no_shipped_model_has_learnt_needs_a_name(capsys, loaded, tmp_path, arguments, what):
    code, out, err = run(capsys, *arguments, "--out", tmp_path / "x.mp4")
    assert (code, out, loaded) == (1, "", [])
    assert err == f"omni animate: no shipped model has learnt {what}: name another\n"
    small = ("--frames", "5", "--steps", "1")
    assert run(capsys, *arguments, *small, "--out", tmp_path / "x.mp4", "--model", "")[0] == 0
    assert loaded == [("", "auto")], "an empty name is a name"


def test_controls_have_weights_that_the_file_tells(capsys, loaded, tmp_path):
    shapes, out = SAMPLES / "shapes.mp4", tmp_path / "x.mp4"
    controls = ("--control", f"seg={shapes}", "--control", f"depth={shapes}", "--frames", "5")
    asked = ("animate", "it snows", *controls, "--steps", "1", "--model", "x", "--out", out)
    code, said, err = run(capsys, *asked, "--weights", "seg=0.5,depth=3", "--json")
    assert code == 0, err
    assert json.loads(said)[0]["weights"] == {"depth": 3.0, "seg": 0.5}
    with av.open(str(out)) as file:
        assert json.loads(file.metadata["comment"])["weights"] == {"depth": 3.0, "seg": 0.5}
    for weights, message in (
        ("edge=1", "--weights names edge, for which there is no --control"),
        ("depth", "'depth' is not KIND=WEIGHT"),
        ("depth=1,depth=2", "'depth=2' is not KIND=WEIGHT of another control"),
        ("depth=-1", "'-1' is not a number from 0 to 1e+06"),
    ):
        code, said, err = run(capsys, *asked, "--weights", weights)
        assert (code, said) == (2, "")
        assert message in err
    code, _, err = run(capsys, "animate", "it snows", "--weights", "edge=1", "--out", out)
    assert code == 2
    assert "--weights goes with --control" in err


def test_actions_alone_are_asked_for_and_recorded(capsys, loaded, picture, tmp_path, monkeypatch):
    asked = []
    denoise = Omni.denoise
    monkeypatch.setattr(
        Omni, "denoise", lambda self, state, *a: asked.append(state["video"].shape[2]) or denoise(self, state, *a)
    )
    for flags, frames in (([], 17), (["--no-foresee"], 1)):
        asked.clear()
        code, out, _ = run(capsys, "act", picture, "push the T", "--steps", "1", "--json", *flags)
        assert code == 0
        assert set(asked) == {frames}
        assert json.loads(out)["foresee"] is (frames > 1)
    for option in (("--video", tmp_path / "x.mp4"), ("--preview", tmp_path / "x.png")):
        code, _, err = run(capsys, "act", picture, "push the T", "--no-foresee", *option)
        assert code == 2
        assert "--no-foresee makes no video" in err


def test_chat_answers_one_message(capsys, loaded, picture):
    options = ("--max-new-tokens", "4", "--image", picture, "--system", "Be brief.")
    code, out, _ = run(capsys, "chat", "what", "is", "this?", *options)
    assert code == 0
    code, again, _ = run(capsys, "chat", "what is this?", "--json", *options)
    reply = json.loads(again)
    assert set(reply) == {"text", "reasoning", "finish_reason", "tokens", "seed"}
    assert reply["text"] + "\n" == out
    assert 1 <= reply["tokens"] <= 4


def test_info_needs_no_weights(capsys):
    code, out, _ = run(capsys, "info", "omni-tiny", "--memory", "24GiB", "--json")
    assert code == 0
    described = json.loads(out)
    assert described["name"] == "omni-tiny"
    assert described["estimate"]["fits"] is True
    code, out, _ = run(capsys, "info", "--model", "omni-tiny")
    assert code == 0
    assert out.startswith("omni-tiny")


def test_eval_lists_its_tasks_and_reports(capsys, loaded, tmp_path):
    code, out, _ = run(capsys, "eval", "list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if line[0] != " "] == list(TASKS)
    assert "options: steps, guidance, shift, eta, solver, upsample" in out
    path = tmp_path / "report.json"
    code, out, _ = run(capsys, "eval", "draw", "--count", "1", "--out", path, "--json")
    assert code == 0
    assert json.loads(out)["task"] == "draw"
    assert json.loads(path.read_text()) == json.loads(out)
    code, out, _ = run(capsys, "eval", "draw", "upsample=false", "steps=2", "--count", "1", "--json")
    assert json.loads(out)["settings"] == {"count": 1, "seed": 0, "upsample": False, "steps": 2}
    code, _, said = run(capsys, "eval", "draw", "--count", "1", "steps=0.5")  # behind an option, and wrong
    assert code == 2
    assert "steps is 0.5" in said
    assert run(capsys, "eval", "draw", "--count", "1", "steps=2", "--colour=red")[0] == 2


def test_convert_rewrites_a_folder(capsys, random_tiny, tmp_path):
    save(random_tiny, tmp_path / "source")
    options = ("--dtype", "bfloat16")
    code, out, _ = run(capsys, "convert", tmp_path / "source", tmp_path / "target", *options)
    assert code == 0
    assert out.strip() == str(tmp_path / "target")
    halved, whole = (sum(p.stat().st_size for p in (tmp_path / f).glob("*.safetensors")) for f in ("target", "source"))
    assert halved < 0.6 * whole


def test_bench_passes_its_settings_on(capsys, monkeypatch):
    from omni import bench

    asked = {}
    settings = {"pattern": "M*", "parameters": 1, "threads": 1, "torch": "2", "python": "3", **bench.SIZES}
    report = bench.Report(settings, bench.Rates(1.0, 1.0), [bench.Row("prefill", "s", 1.0, 2.0, 0.5)])
    monkeypatch.setattr(bench, "bench_language", lambda **settings: asked.update(settings) or report)
    code, out, _ = run(capsys, "bench", "language", "--quick", "--threads", "1", "--seed", "3", "--json")
    assert code == 0
    assert asked == {"quick": True, "seed": 3, "threads": 1}
    assert json.loads(out)["rows"][0]["ratio"] == 2.0
    code, out, _ = run(capsys, "bench", "language")
    assert "prefill" in out


def test_bench_architectures_passes_its_plan_on(capsys, monkeypatch, tmp_path):
    from omni.studies import architectures, report

    asked = []
    monkeypatch.setattr(architectures, "study", lambda *given: asked.append(given) or {"losses": {}})
    monkeypatch.setattr(report, "markdown", lambda found: "| variant |")
    code, out, _ = run(capsys, "bench", "architectures", "--quick", "--seed", "3", "--out", tmp_path, "--json")
    assert code == 0
    assert json.loads(out) == {"losses": {}}
    assert asked == [(tmp_path, architectures.planned(quick=True, seed=3))]
    code, out, _ = run(capsys, "bench", "architectures")
    assert out == "| variant |\n"
    assert asked[1] == (Path("runs/architectures"), architectures.Plan())


def test_ask_knows_what_a_file_is(capsys, loaded):
    for name, options in (
        ("shapes.mp4", ("--max-frames", "4", "--pruning", "0.5", "--start", "1")),
        ("film.mp4", ("--sound", "--fps", "2")),
        ("digits.flac", ()),
        ("chart.png", ("--views", "1")),
    ):
        code, out, _ = run(capsys, "ask", SAMPLES / name, "What?", "--max-new-tokens", "2", "--json", *options)
        assert code == 0
        (answer,) = json.loads(out)
        assert answer["question"] == "What?"
        assert 1 <= answer["tokens"] <= 2
    for name in ("shapes.mp4", "digits.flac"):
        code, out, _ = run(capsys, "ask", SAMPLES / name, "--transcribe", "--max-new-tokens", "2")
        assert code == 0


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("digits.flac", ("--page", "1"), "is a sound; --page cannot be used"),
        ("shapes.mp4", ("--views", "2"), "is a video; --views cannot be used"),
        ("chart.png", ("--fps", "2"), "is a document; --fps cannot be used"),
        ("chart.png", ("--boxes", "x.jpg"), "written as .png"),
    ],
)
def test_options_of_another_medium_are_bad_usage(capsys, loaded, name, option, message):
    code, _, said = run(capsys, "ask", SAMPLES / name, "What?", *option)
    assert code == 2
    assert message in said


def test_boxes_are_drawn_and_data(capsys, loaded, monkeypatch, tmp_path):
    answer = Answer("[100, 200, 500, 600]", (1,), 0.5, 3)
    monkeypatch.setattr("omni.pipelines.documents.DocumentQA.__call__", lambda self, *a, **k: [answer])
    path = tmp_path / "boxes.png"
    code, out, _ = run(capsys, "ask", SAMPLES / "chart.png", "Where?", "--boxes", path, "--json")
    assert code == 0
    assert json.loads(out)[0]["boxes"][0]["box"] == [100, 200, 500, 600]
    assert Image.open(path).size == Image.open(SAMPLES / "chart.png").size
