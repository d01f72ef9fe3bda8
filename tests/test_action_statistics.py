"""Statistics of actions beside a Cosmos 3 generator: written and read again, refused where they do not fit."""

import cosmos3_peer as peer
import pytest
from towers import noise

import omni
from omni.config import ConfigError, Embodiment, replace
from omni.families import families, save
from omni.tokenizers.action import fit

FILE = "action_statistics.json"


def test_statistics_travel_beside_a_generator(tmp_path):
    peer.build(0, **peer.VARIANTS["nano"]).save_pretrained(tmp_path / "model")
    model = omni.load(tmp_path / "model", device="cpu")
    one = fit(Embodiment(name="mine", domain=1, width=2), noise(40, 2, seed=5) * 100 + 256, "quantile")
    config = model.config
    for embodiments in ((one,), ()):  # the second leaves none of the first behind
        model.config = replace(config, action=replace(config.action, embodiments=embodiments))
        save(model, tmp_path / "model", family="cosmos3_generator")
        assert omni.load(tmp_path / "model", device="cpu").config == model.config


@pytest.mark.parametrize(
    ("plain", "actions", "said"),
    [
        ({"speed": []}, True, r"holds \['speed'\]; exactly 'embodiments' is wanted"),
        ({"embodiments": [{"speed": 1}]}, True, r"Embodiment has no fields \['speed'\]"),
        ({"embodiments": []}, False, "the model has no actions"),
    ],
)
def test_statistics_that_do_not_fit(plain, actions, said):
    family = families()["cosmos3_generator"]
    config = family.to_config(peer.VARIANTS["nano" if actions else "plain"])
    with pytest.raises(ConfigError, match=said):
        family.read_media(config, {FILE: plain})
