"""Our own layout: ``config.json`` is ``{"model_type": "omni", "omni": ...}`` and the names are the state dict's."""

from typing import Any

from omni.checkpoint import NATIVE, native
from omni.config import ConfigError, OmniConfig, from_dict
from omni.families.base import Family


def _matches(plain: dict[str, Any]) -> bool:
    return plain.get("model_type") == "omni"


def _to_config(plain: dict[str, Any]) -> OmniConfig:
    body = plain.get("omni")
    if not isinstance(body, dict):
        raise ConfigError('config.json has model_type "omni" but no object under "omni"')
    return from_dict(OmniConfig, body)


FAMILY = Family(
    name="omni",
    matches=_matches,
    to_config=_to_config,
    from_config=native,
    rules=lambda config: NATIVE,
)
