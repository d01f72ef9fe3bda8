"""Checkpoints from strangers: what is wrong is said in one line, before memory is taken, and nothing is lost."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from saved import CONFIG, build, item, load, published, write_raw

from omni import checkpoint, families, tensorfile
from omni.checkpoint import CheckpointError, find_tensors
from omni.config import ConfigError
from omni.model import Omni


@pytest.fixture(scope="module")
def model() -> Omni:
    return build()


@pytest.fixture
def folder(model, tmp_path) -> Path:
    return published(model, tmp_path)


BAD_HEADERS = {
    "unknown type": ({"a": item("F7")}, b"\0" * 8, "unknown type 'F7'"),
    "type is no string": ({"a": item(dtype=[1])}, b"\0" * 8, "unknown type"),
    "overlap": ({"a": item(), "b": item(offsets=(4, 12))}, b"\0" * 12, "overlap"),
    "gap": ({"a": item(), "b": item(offsets=(12, 20))}, b"\0" * 20, "belong to no tensor"),
    "behind the end": ({"a": item(offsets=(800, 808))}, b"\0" * 8, "belong to no tensor"),
    "cut off": ({"a": item(shape=(200,), offsets=(0, 800))}, b"\0" * 8, "cut off"),
    "bytes left over": ({"a": item()}, b"\0" * 9, "1 bytes after the last"),
    "size and offsets disagree": ({"a": item(shape=(3,))}, b"\0" * 8, "takes 12 bytes"),
    "negative size": ({"a": item(shape=(-2,))}, b"\0" * 8, "shape"),
    "shape of booleans": ({"a": item(shape=(True, 2))}, b"\0" * 8, "shape"),
    "product overflows": ({"a": item(shape=(1 << 61, 1 << 61))}, b"\0" * 8, "takes"),
    "offsets reversed": ({"a": item(offsets=(8, 0))}, b"\0" * 8, "span -8"),
    "three offsets": ({"a": item(offsets=(0, 4, 8))}, b"\0" * 8, "two positions"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8, "two positions"),
    "item is a number": ({"a": 3}, b"", "described by int"),
    "header is a list": ([1, 2], b"", "not an object"),
    "header is noise": (b"\xff\xfe{]", b"", "not JSON"),
    "header is deep": (b"[" * 200_000, b"", "not JSON"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_headers_are_refused(case, folder):
    header, data, message = BAD_HEADERS[case]
    write_raw(folder / "model.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder)
    assert "model.safetensors" in str(caught.value)


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, tensorfile.MAX_HEADER + 1, 400])
def test_absurd_header_lengths_are_refused_before_reading(length, folder):
    write_raw(folder / "model.safetensors", {"a": item()}, b"\0" * 8, length=length)
    with pytest.raises(CheckpointError, match=f"claims {length} bytes"):
        load(folder)


@pytest.mark.parametrize("content", [b"", b"abc"])
def test_short_files_are_refused(content, folder):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="too short"):
        load(folder)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.pt", "weights.ckpt"])
@pytest.mark.parametrize("kind", ["pickle", "zip"])
def test_pickles_are_refused_whatever_their_name(name, kind, folder):
    (folder / "model.safetensors").unlink()
    if kind == "pickle":
        (folder / name).write_bytes(pickle.dumps({"weight": Bomb()}))
    else:
        torch.save({"weight": torch.zeros(1)}, folder / name)
    with pytest.raises(CheckpointError, match="pickle"):
        load(folder)


def test_a_truncated_shard_is_refused(model, tmp_path):
    families.save(model, tmp_path, shard_bytes=5000)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=f"{shard.name} is cut off"):
        load(tmp_path)


def test_a_shard_that_shrinks_while_it_is_read_is_an_error(model, folder):
    entries = find_tensors(folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-4])
    with torch.device("meta"):
        built = Omni(CONFIG)
    with pytest.raises(CheckpointError, match="while it was read"):
        checkpoint.load_weights(built, entries, families.families()["nemotron_h"].rules(CONFIG))


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/hostname", "sub/../../x", "sub//x", "..", "", "a\\b"])
def test_an_index_cannot_lead_out_of_its_folder(shard, folder):
    index = {"weight_map": {"backbone.norm_f.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="same folder"):
        load(folder)


def test_an_index_may_name_shards_of_a_folder_inside(folder):
    """As the repositories do whose components keep folders of their own."""
    (folder / "transformer").mkdir()
    (folder / "model.safetensors").rename(folder / "transformer" / "part.safetensors")
    names = checkpoint.find_tensors(folder / "transformer")
    index = {"weight_map": dict.fromkeys(names, "transformer/part.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert set(checkpoint.find_tensors(folder)) == set(names)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "gone.safetensors"}}, "gone.safetensors is missing"),
        ({"weight_map": {"a": "model.safetensors"}}, "'a' is not in model.safetensors"),
        ({"weight_map": {}}, "missing"),
        ({"weight_map": {"a": 3}}, "weight_map"),
        ({"weight_map": ["a"]}, "weight_map"),
        ({}, "weight_map"),
    ],
)
def test_an_index_must_agree_with_its_files(index, message, folder):
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_links_out_of_the_folder_are_refused(folder, tmp_path):
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match="link out of the folder"):
        load(folder)
    (folder / "model.safetensors").unlink()
    (tmp_path / "elsewhere.safetensors").rename(folder / "real.safetensors")
    (folder / "model.safetensors").symlink_to("real.safetensors")
    load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("", "is empty"),
        ("  \n", "is empty"),
        ("{not json", "not JSON"),
        ("[1]", "not an object"),
        ("{}", "no known family"),
        ('{"model_type": "llama"}', "'llama'"),
        ('{"model_type": "omni"}', 'no object under "omni"'),
        ('{"model_type": "omni", "omni": {"colour": 1}}', "colour"),
        ('{"model_type": "nemotron_h", "quantization_config": {"quant_algo": "INT4"}}', "quant_algo is 'INT4'; known"),
        (
            '{"model_type": "nemotron_h", "quantization_config": {"quant_method": "awq"}}',
            "quant_method is 'awq'; known",
        ),
        ("[" * 200_000, "nested too deeply"),
    ],
)
def test_bad_configs_are_one_clear_error(content, message, folder):
    if content is None:
        (folder / "config.json").unlink()
    else:
        (folder / "config.json").write_text(content)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        load(folder)


@pytest.mark.parametrize("size", [0, -3, 1 << 31, 10**30, "24", 24.0, True, None, [24]])
def test_absurd_sizes_are_refused_in_both_layouts(size, model, folder, tmp_path):
    plain = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**plain, "hidden_size": size}))
    families.save(model, tmp_path / "own")
    own = json.loads((tmp_path / "own" / "config.json").read_text())
    own["omni"]["context"]["d_model"] = size
    (tmp_path / "own" / "config.json").write_text(json.dumps(own))
    for place in (folder, tmp_path / "own"):
        with pytest.raises(ConfigError):
            load(place)


def test_a_huge_json_file_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(tensorfile, "MAX_JSON", 100)
    with pytest.raises(CheckpointError, match="at most 100 are read"):
        load(folder)


def test_too_many_tensors_are_refused(folder, monkeypatch):
    monkeypatch.setattr(tensorfile, "MAX_TENSORS", 10)
    with pytest.raises(CheckpointError, match="at most 10"):
        load(folder)


def test_a_full_disk_leaves_the_old_checkpoint_alone(model, tmp_path, monkeypatch):
    families.save(model, tmp_path, shard_bytes=5000)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(path, items):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        families.save(model, tmp_path, shard_bytes=5000)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
