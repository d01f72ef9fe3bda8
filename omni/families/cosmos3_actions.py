"""Statistics of actions beside a Cosmos 3 generator: action_statistics.json, whose keys the transformer's lacks.

{"embodiments": [{"name": "droid_lerobot", "domain": 8, "width": 10, "normalizer": {...}, ...}, ...]}
"""

from collections.abc import Mapping
from typing import Any

from omni.config import ActionConfig, ConfigError, OmniConfig, from_dict, replace, to_dict

FILE = "action_statistics.json"


def read_media(config: OmniConfig, files: Mapping[str, dict[str, Any]]) -> OmniConfig:
    """``config`` with the embodiments of the file, where it is there. ConfigError where they do not fit."""
    plain = files.get(FILE)
    if plain is None:
        return config
    if config.action is None:
        raise ConfigError(f"{FILE} is there, but the model has no actions")
    if set(plain) != {"embodiments"}:
        raise ConfigError(f"{FILE} holds {sorted(plain)}; exactly 'embodiments' is wanted")
    sizes = {name: value for name, value in to_dict(config.action).items() if name != "embodiments"}
    return replace(config, action=from_dict(ActionConfig, sizes | plain))


def write_media(config: OmniConfig) -> dict[str, dict[str, Any]]:
    """The file again, also with no embodiments: one that an earlier model left in the folder must not stay."""
    if config.action is None:
        return {}
    return {FILE: {"embodiments": to_dict(config.action)["embodiments"]}}


def without(action: ActionConfig | None) -> ActionConfig | None:
    """What the transformer's config.json can say."""
    return action and replace(action, embodiments=())
