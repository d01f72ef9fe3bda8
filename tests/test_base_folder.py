"""Folders that hold only what they changed of the folder beside them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import omni
from omni import families
from omni.checkpoint import CheckpointError
from omni.config import ConfigError, replace
from omni.families.convert import convert
from omni.families.tiny import TINY
from omni.model import Omni
from omni.tokenizers.bytes import ByteTokenizer


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    """A base, and a model that moved two tensors of it, whole in ``full`` and as what differs in ``child``."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    model = Omni(TINY).eval()
    model.tokenizer = ByteTokenizer()
    families.save(model, root / "base", dtype=torch.bfloat16, compute_dtype=torch.float32)
    model.tokenizer.save(root / "base")
    model = omni.load(root / "base", device="cpu", dtype=torch.float32)
    with torch.no_grad():
        model.latents.proj_out.weight.add_(1.0)
        model.denoiser.norm.weight.mul_(2.0)
    families.save(model, root / "full", dtype=torch.bfloat16, compute_dtype=torch.float32)
    model.tokenizer.save(root / "full")
    convert(root / "full", root / "child", base="base")
    return root


def test_only_what_differs_is_stored_and_the_whole_is_loaded(both):
    stored = load_file(both / "child" / "model.safetensors")
    assert set(stored) == {"latents.proj_out.weight", "denoiser.norm.weight"}
    assert json.loads((both / "child" / "config.json").read_text())["base"] == "base"
    child, full = (omni.load(both / name, device="cpu") for name in ("child", "full"))
    assert child.state_dict().keys() == full.state_dict().keys()
    for name, value in full.state_dict().items():
        assert torch.equal(child.state_dict()[name], value), name
    assert child.tokenizer.encode("red") == full.tokenizer.encode("red")
    assert child.dtype == torch.float32, "its own compute_dtype counts"


def test_a_child_becomes_whole_again(both, tmp_path):
    convert(both / "child", tmp_path / "whole")
    whole, full = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", both / "full"))
    assert whole.keys() == full.keys()
    assert all(torch.equal(whole[name], full[name]) for name in full)
    assert "base" not in json.loads((tmp_path / "whole" / "config.json").read_text())
    omni.load(tmp_path / "whole", device="cpu").tokenizer.encode("red")


@pytest.mark.parametrize("base", ["../base", "", ".", "..", "a/b", "a\\b", 3])
def test_a_base_is_the_name_of_a_folder_beside_it(both, tmp_path, base):
    plain = json.loads((both / "child" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**plain, "base": base}))
    with pytest.raises(CheckpointError, match="must be the name of a folder beside"):
        omni.load(tmp_path)


def test_a_missing_base_and_a_chain_are_refused(both, tmp_path):
    for name, base in (("lonely", "nowhere"), ("itself", "itself")):
        (tmp_path / name).mkdir()
        plain = json.loads((both / "child" / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(json.dumps({**plain, "base": base}))
        with pytest.raises(CheckpointError, match=f"builds on '{base}'; there is no such model beside it"):
            omni.load(tmp_path / name)
    with pytest.raises(CheckpointError, match="only one step"):
        convert(both / "full", both / "grandchild", base="child")
    assert not (both / "grandchild").exists(), "nothing is written"


def test_a_base_with_other_parts_is_refused(both):
    reader = omni.load(both / "base", device="cpu")
    reader.sound = reader.sound_projector = None
    reader.config = replace(reader.config, sound=None)
    with pytest.raises(CheckpointError, match="tensors that this model does not have: sound"):
        families.save(reader, both / "smaller", base="base")
    with pytest.raises(ConfigError, match="our own layout"):
        families.save(reader, both / "other", family="nemotron_h", base="base")
