"""Checks that every configuration makes of itself before anything is built, and the limits of sizes."""

import dataclasses
from typing import Any

MAX_WIDTH = 1 << 20
MAX_LAYERS = 4096
MAX_EXPERTS = 1 << 16
MAX_VOCAB = 1 << 24
MAX_SIDE = 1 << 12  # of a table of positions


class ConfigError(ValueError):
    """A configuration that cannot be built: names the field, its value and the limit."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def check_sizes(config: Any, limit: int = MAX_WIDTH, **named_limits: int) -> None:
    """Every int field must lie in 1..limit (bools are left alone), so that no absurd size is ever allocated."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        top = named_limits.get(item.name, limit)
        where = f"{type(config).__name__}.{item.name}"
        require(1 <= value <= top, f"{where} is {value}; it must lie between 1 and {top}")


def require_known(config: Any, **choices: tuple[str, ...]) -> None:
    for name, known in choices.items():
        value = getattr(config, name)
        where = f"{type(config).__name__}.{name}"
        require(value in known, f"{where} is {value!r}; known: {', '.join(known)}")
