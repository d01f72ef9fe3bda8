"""Weights on disk: rules both ways, strictness, memory."""

import json
import subprocess
import sys
import textwrap
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from saved import CONFIG, build, item, load, published, write_raw

import omni
from omni import checkpoint, families
from omni.checkpoint import CheckpointError, find_tensors
from omni.config import ConfigError, MoEConfig, replace
from omni.families.convert import convert
from omni.families.locate import ModelNotFound
from omni.model import Omni
from omni.rules import Alias, Drop, Join, Order, Part, Place, Rearrange, Rename, Stack, Table, Template, prefixed


@pytest.fixture(scope="module")
def model() -> Omni:
    return build()


@pytest.fixture
def folder(model, tmp_path) -> Path:
    return published(model, tmp_path)


def assert_same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    theirs = b.state_dict()
    assert a.state_dict().keys() == theirs.keys()
    for name, tensor in a.state_dict().items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


# -- rules -----------------------------------------------------------------------------------------------------------


def test_templates_match_and_write():
    template = Template("layers.{i}.experts.{e}.up.weight")
    assert template.match("layers.3.experts.12.up.weight") == {"i": 3, "e": 12}
    assert template.format({"i": 3, "e": 12}) == "layers.3.experts.12.up.weight"
    for wrong in ("layers.03.experts.1.up.weight", "layers.x.experts.1.up.weight", "layersA3.experts.1.up.weight"):
        assert template.match(wrong) is None


def test_one_published_layer_can_be_two_of_ours():
    rules = Table([Rename("l.{i}.attn", "b.{2i}.mixer"), Rename("l.{i}.mlp", "b.{2i+1}.mixer")])
    assert rules.to_ours("l.3.attn") == Place("b.6.mixer")
    assert rules.to_ours("l.3.mlp") == Place("b.7.mixer")
    assert rules.to_published("b.7.mixer", ()) == [("l.3.mlp", None)]
    assert rules.to_published("b.8.mixer", ()) == [("l.4.attn", None)]


def test_stack_drop_and_alias():
    table = Table(
        [
            Alias("model.{rest}", "backbone.{rest}"),
            Stack("backbone.{i}.experts.{e}.up.weight", "b.{i}.up", whole="backbone.{i}.experts.up"),
            Drop("{rest}.inv_freq", "recomputed"),
        ]
    )
    assert table.to_ours("model.2.experts.7.up.weight") == Place("b.2.up", 7)
    assert table.to_ours("backbone.2.experts.up") == Place("b.2.up")
    assert isinstance(table.to_ours("model.rotary.inv_freq"), Drop)
    assert table.to_ours("other") is None
    assert table.to_published("b.2.up", (2, 5, 5)) == [
        ("backbone.2.experts.0.up.weight", 0),
        ("backbone.2.experts.1.up.weight", 1),
    ]


JOINED = (
    Join("a.{i}.{part}_proj.weight", "b.{i}.qkv.weight", ("q", "k", "v")),
    Rearrange("a.patch.weight", "b.stem.weight", Order("d (y x c) -> d (c y x)", (("y", 2), ("x", 2), ("c", 3)))),
    Rename("{rest}", "{rest}"),
)


def test_parts_of_one_tensor_and_another_order(tmp_path):
    table = Table(prefixed(JOINED[:2], "model.", "ours."))
    assert table.to_ours("model.a.4.k_proj.weight") == Place("ours.b.4.qkv.weight", Part(1, 3))
    assert table.to_ours("model.a.4.o_proj.weight") is None
    names = [name for name, _ in table.to_published("ours.b.4.qkv.weight", (6, 2))]
    assert names == [f"model.a.4.{part}_proj.weight" for part in "qkv"]
    assert table.to_ours("model.a.patch.weight") == Place("ours.b.stem.weight", JOINED[1].order)

    held = {"b.0.qkv.weight": torch.randn(12, 5), "b.stem.weight": torch.randn(7, 12), "free": torch.randn(2)}
    checkpoint.save_weights(held, tmp_path, JOINED)
    written = load_file(tmp_path / "model.safetensors")
    assert torch.equal(written["a.0.v_proj.weight"], held["b.0.qkv.weight"][8:])
    assert torch.equal(written["a.patch.weight"][:, 1], held["b.stem.weight"][:, 4])  # second colour, first pixel
    assert torch.equal(written["a.patch.weight"][:, 3], held["b.stem.weight"][:, 1])  # first colour, second pixel

    for dtype in (None, torch.float64):
        model = _Loose(held)
        checkpoint.load_weights(model, find_tensors(tmp_path), JOINED, dtype=dtype)
        assert all(torch.equal(tensor.to(held[n].dtype), held[n]) for n, tensor in model.state_dict().items())

    del written["a.0.k_proj.weight"]
    written["a.0.q_proj.weight"] = torch.randn(3, 5)
    checkpoint.save_weights(written, tmp_path, JOINED[2:])
    with pytest.raises(
        CheckpointError, match=r"1 missing: a\.0\.k_proj\.weight\n1 mis-shaped: a\.0\.q_proj\.weight is"
    ):
        checkpoint.load_weights(_Loose(held), find_tensors(tmp_path), JOINED)


class _Loose(torch.nn.Module):
    """Parameters of any names and the shapes of ``held``, without memory."""

    def __init__(self, held: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in held.items():
            *path, last = name.split(".")
            place = self
            for step in path:
                if step not in dict(place.named_children()):
                    place.add_module(step, torch.nn.Module())
                place = place.get_submodule(step)
            place.register_parameter(last, torch.nn.Parameter(torch.empty_like(tensor, device="meta")))


def test_rules_of_a_part_under_a_prefix():
    rules = prefixed((Alias("model.{rest}", "b.{rest}"), Rename("b.{i}.w", "c.{i}.w")), "language_model.", "context.")
    assert Table(rules).to_ours("language_model.model.4.w") == Place("context.c.4.w")
    assert Table(rules).to_published("context.c.4.w", ()) == [("language_model.b.4.w", None)]


# -- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["omni", "nemotron_h"])
@pytest.mark.parametrize("shard_bytes", [10**9, 4000, 1])
def test_saved_models_come_back_bit_for_bit(model, tmp_path, family, shard_bytes):
    families.save(model, tmp_path, family=family, shard_bytes=shard_bytes)
    shards = len(list(tmp_path.glob("*.safetensors")))
    assert (shards == 1) == (shard_bytes == 10**9) == (not (tmp_path / "model.safetensors.index.json").exists())
    again = load(tmp_path)
    assert_same(model, again)
    assert again.config == CONFIG
    assert again.tokenizer is None
    assert not again.training
    assert not list(tmp_path.glob("*.part"))
    ids = torch.arange(12).reshape(2, 6)
    assert torch.equal(model.logits(ids), again.logits(ids))


def test_training_goes_on_from_a_loaded_model(model, folder):
    again = load(folder).train()
    again.logits(torch.arange(8)[None]).sum().backward()
    assert all(p.grad is not None for n, p in again.named_parameters() if not n.startswith("mtp."))
    assert again.context.blocks[3].mixer.router.load.sum() == 8 * 2


def test_other_libraries_read_what_is_written(folder):
    tensors = load_file(folder / "model.safetensors")
    assert tensors["backbone.layers.3.mixer.experts.2.up_proj.weight"].shape == (16, 8)
    assert all(e.start % e.dtype.itemsize == 0 for e in find_tensors(folder).values())


def test_prefixes_and_stacked_experts_are_accepted(model, folder):
    tensors = load_file(folder / "model.safetensors")
    for matrix in ("up_proj", "down_proj"):
        name = f"backbone.layers.3.mixer.experts.{{}}.{matrix}.weight"
        tensors[f"backbone.layers.3.mixer.experts.{matrix}"] = torch.stack(
            [tensors.pop(name.format(e)) for e in range(4)]
        )
    for old, new in (("backbone.", "model."), ("backbone.", "language_model.backbone.")):
        renamed = {(new + n.removeprefix(old) if n.startswith(old) else n): t for n, t in tensors.items()}
        if new == "model.":
            renamed["model.embed_tokens.weight"] = renamed.pop("model.embeddings.weight")
        save_file(renamed, folder / "model.safetensors")
        assert_same(model, load(folder))


def test_several_files_without_an_index(model, folder):
    tensors = sorted(load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    save_file(dict(tensors[:20]), folder / "a.safetensors")
    save_file(dict(tensors[20:]), folder / "b.safetensors")
    assert_same(model, load(folder))
    save_file(dict(tensors[19:]), folder / "b.safetensors")
    with pytest.raises(CheckpointError, match="two files"):
        load(folder)


def test_types_are_kept_or_converted(model, tmp_path):
    families.save(model, tmp_path, family="nemotron_h", dtype="bfloat16")
    stored = {name: entry.dtype for name, entry in find_tensors(tmp_path).items()}
    exact = (".e_score_correction_bias", ".A_log", ".D", ".dt_bias")
    assert {stored[n] for n in stored if n.endswith(exact)} == {torch.float32}
    assert {stored[n] for n in stored if not n.endswith(exact)} == {torch.bfloat16}
    kept, wide = load(tmp_path), load(tmp_path, dtype=torch.float32)
    assert kept.dtype == torch.bfloat16
    assert kept.context.blocks[3].mixer.router.bias.dtype == torch.float32
    assert {t.dtype for t in wide.state_dict().values()} == {torch.float32}
    assert torch.equal(wide.embed.weight, model.embed.weight.bfloat16().float())
    assert torch.equal(load(tmp_path, dtype="fp16").embed.weight, model.embed.weight.bfloat16().half())
    for wrong in ("int8", torch.int64, "bf17"):
        with pytest.raises(ValueError, match="unknown dtype"):
            load(tmp_path, dtype=wrong)
    with pytest.raises(ValueError, match="unknown device"):
        omni.load(str(tmp_path), device="gpu")


def test_tied_heads_have_no_tensor(tmp_path):
    tied = Omni(replace(CONFIG, tie_embeddings=True))
    families.save(tied, tmp_path, family="nemotron_h")
    assert "lm_head.weight" not in find_tensors(tmp_path)
    assert_same(tied, load(tmp_path))
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "lm_head.weight": torch.zeros(50, 24)}, tmp_path / "model.safetensors")
    assert_same(tied, load(tmp_path))


def test_saving_over_an_older_checkpoint_leaves_no_old_shard(model, tmp_path):
    (tmp_path / "model_of_mine.safetensors").write_text("kept")
    families.save(model, tmp_path, shard_bytes=2000)
    families.save(model, tmp_path, shard_bytes=9000)
    assert_same(model, load(tmp_path))
    families.save(model, tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["config.json", "model.safetensors", "model_of_mine.safetensors"]
    (tmp_path / "model_of_mine.safetensors").unlink()
    assert_same(model, load(tmp_path))


def test_convert_takes_the_tokenizer_along_and_spares_its_source(folder, tmp_path):
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    target = convert(folder, tmp_path / "out", dtype="bfloat16")
    assert json.loads((target / "config.json").read_text())["dtype"] == "bfloat16"
    assert (target / "chat_template.jinja").read_text() == "{{ messages }}"
    with pytest.raises(CheckpointError, match="source itself"):
        convert(folder, folder)
    with pytest.raises(ConfigError, match="unknown family"):
        convert(folder, tmp_path / "other", family="llama")


def test_convert_keeps_what_is_stored_and_what_it_is_computed_in(model, tmp_path):
    families.save(model, tmp_path / "a", dtype="bfloat16", compute_dtype="float32")
    convert(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert load(tmp_path / "b").dtype == torch.float32
    assert load(tmp_path / "b", dtype="bfloat16").dtype == torch.bfloat16


def test_generation_defaults_win(folder):
    plain = json.loads((folder / "generation_config.json").read_text())
    assert plain == {
        "bos_token_id": 1,
        "eos_token_id": [2, 11],
        "pad_token_id": 0,
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
    }
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 12, "temperature": 1.0, "top_k": 20}))
    config = load(folder).config
    assert config.special_tokens == {"bos": 1, "eos": 12, "pad": 0}
    assert config.sampling == {"temperature": 1.0, "top_k": 20}


# -- strictness ------------------------------------------------------------------------------------------------------


def test_all_that_does_not_fit_is_listed_at_once(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["backbone.norm_f.weight"], tensors["backbone.layers.3.mixer.experts.1.up_proj.weight"]
    tensors["backbone.layers.0.mixer.D"] = torch.zeros(5)
    tensors["backbone.layers.3.mixer.experts.4.up_proj.weight"] = torch.zeros(16, 8)
    tensors["backbone.layers.9.norm.weight"] = torch.zeros(24)
    tensors["backbone.rotary"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    message = str(caught.value)
    assert "2 missing: backbone.layers.3.mixer.experts.1.up_proj.weight, backbone.norm_f.weight" in message
    assert "3 unknown" in message
    assert "experts.4.up_proj.weight (there are 4 slices)" in message
    assert "1 mis-shaped: backbone.layers.0.mixer.D is [5], the model needs [4]" in message


def test_nothing_is_allocated_for_a_checkpoint_that_does_not_fit(folder, monkeypatch):
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "extra": torch.zeros(1)}, folder / "model.safetensors")
    entries = find_tensors(folder)
    with torch.device("meta"):
        built = Omni(CONFIG)
    monkeypatch.setattr(torch, "empty", lambda *a, **k: pytest.fail("memory was taken"))
    with pytest.raises(CheckpointError, match="1 unknown: extra"):
        checkpoint.load_weights(built, entries, families.families()["nemotron_h"].rules(CONFIG))


def test_a_tensor_given_twice_is_an_error(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm_f.weight"] = torch.zeros(24)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"given-twice: model\.norm_f\.weight"):
        load(folder)


def test_a_name_without_a_rule_cannot_be_exported():
    with pytest.raises(CheckpointError, match="2 unknown: b, c"):
        checkpoint.export({"a": torch.zeros(1), "b": torch.zeros(1), "c": torch.zeros(1)}, (Rename("x", "a"),))


def test_buffers_that_nobody_can_remake_are_an_error(model, folder):
    with torch.device("meta"):
        built = Omni(CONFIG)
    built.register_buffer("table", torch.zeros(3, device="meta"), persistent=False)
    with pytest.raises(CheckpointError, match="table"):
        checkpoint.load_weights(built, find_tensors(folder), families.families()["nemotron_h"].rules(CONFIG))


# -- where models come from ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nano-9b-v2", "sizes without weights.*nvidia/NVIDIA-Nemotron-Nano-9B-v2"),
        ("nano-9b", "Did you mean nano-9b-v2"),
        ("tinny", "Did you mean tiny"),
        ("/no/such/folder", "neither a folder"),
        ("../..", "no known family|does not exist"),
        ("a b/c", "neither a folder"),
        ("", "neither a folder|does not exist"),
    ],
)
def test_names_that_are_no_model(name, message):
    with pytest.raises(CheckpointError, match=message):
        omni.load(name)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty hub cache and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_offline_without_a_cached_copy_is_one_line(hub):
    with pytest.raises(ModelNotFound, match="not in the local cache") as caught:
        omni.load("someone/some-model")
    assert "\n" not in str(caught.value)


def test_the_hub_cache_is_read_offline_through_its_links(model, folder, hub):
    revision = "0123456789abcdef0123456789abcdef01234567"
    repo = hub / "models--someone--some-model"
    for part in ("blobs", "refs", f"snapshots/{revision}"):
        (repo / part).mkdir(parents=True)
    (repo / "refs" / "main").write_text(revision)
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(repo / "blobs" / str(number))
        (repo / "snapshots" / revision / file.name).symlink_to(f"../../blobs/{number}")
    assert_same(model, omni.load("someone/some-model", device="cpu"))
    assert_same(model, omni.load(f"someone/some-model@{revision}", device="cpu"))


# -- memory ----------------------------------------------------------------------------------------------------------

MEASURE = """
    import json, sys, torch
    from omni import families
    from omni.model import Omni

    def memory(key):
        line = next(line for line in open("/proc/self/status") if line.startswith(key + ":"))
        return int(line.split()[1]) * 1024

    rows = []
    for dtype in ("auto", "float32"):
        families.load(sys.argv[1], device="cpu", dtype=dtype)  # what is imported at the first use is not counted
        open("/proc/self/clear_refs", "w").write("5")  # the peak starts again from here
        before, anonymous = memory("VmRSS"), memory("RssAnon")
        model = families.load(sys.argv[2], device="cpu", dtype=dtype)
        weights = sum(t.nbytes for t in model.state_dict().values())
        rows.append([weights, memory("VmHWM") - before, memory("RssAnon") - anonymous])
        del model
    print(json.dumps(rows))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's account of memory")
def test_loading_takes_the_memory_of_the_weights(folder, tmp_path):
    """300 MB of bfloat16 experts, one tensor each on disk: the peak stays under 1.1 times the weights,
    with their own type and converted to a wider one."""
    moe = MoEConfig(n_experts=32, n_active_experts=2, d_ff=1024, d_shared=64)
    config = replace(CONFIG, mtp=None, context=replace(CONFIG.context, pattern="EE", d_model=1024, moe=moe))
    plain = families.families()["nemotron_h"].from_config(config)
    with torch.device("meta"):
        items = checkpoint.export(Omni(config).state_dict(), families.families()["nemotron_h"].rules(config))
    header, end = {}, 0
    for one in items:
        size = one.tensor.numel() * 2
        header[one.name] = item("BF16", one.tensor.shape, (end, end + size))
        end += size
    assert 250e6 < end < 350e6
    write_raw(tmp_path / "model.safetensors", header)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(file.seek(0, 2) + end)  # a sparse file: zeros that take no room on the disk
    (tmp_path / "config.json").write_text(json.dumps(plain))
    root = Path(omni.__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), str(folder), str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    for factor, (weights, peak, anonymous) in zip((1, 2), json.loads(done.stdout), strict=True):
        assert weights == pytest.approx(factor * end, rel=0.01)
        assert anonymous > 0.95 * weights, "the weights are not in memory: the measurement is blind"
        assert peak < 1.1 * weights, f"peak {peak / 1e6:.0f} MB for {weights / 1e6:.0f} MB of weights"


def test_large_loads_show_their_progress_on_a_terminal(model, folder, monkeypatch):
    screen = StringIO()
    monkeypatch.setattr(checkpoint, "Console", lambda stderr: Console(file=screen, force_terminal=True))
    load(folder)
    assert screen.getvalue() == ""
    monkeypatch.setattr(checkpoint, "LARGE", 1)
    load(folder)
    assert "reading weights" in screen.getvalue()
