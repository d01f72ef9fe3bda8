"""Reading a published config.json: every key is taken, checked or known to mean nothing; the rest is an error."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from omni.config import ConfigError

MISSING = object()
"""Default of a key that must be there."""


class Reader:
    """Takes keys out of a published configuration, checks their types, and names those that nobody took."""

    def __init__(self, plain: dict[str, Any]) -> None:
        self.plain = plain
        self.taken: set[str] = set()

    def take(self, *names: str, default: Any = MISSING) -> Any:
        """The value under any of ``names``; two spellings that disagree are an error. null counts as absent."""
        self.taken.update(names)
        found = {name: self.plain[name] for name in names if self.plain.get(name) is not None}
        values = list(found.values())
        if any(value != values[0] for value in values):
            raise ConfigError(f"config.json says the same thing twice and differently: {found}")
        if values:
            return values[0]
        if default is MISSING:
            raise ConfigError(f"config.json lacks {' or '.join(names)}")
        return default

    def integer(self, *names: str, default: Any = MISSING) -> Any:
        value = self.take(*names, default=default)
        if value is not default and (isinstance(value, bool) or not isinstance(value, int)):
            raise ConfigError(f"config.json: {names[0]} is {value!r}; it must be a whole number")
        return value

    def number(self, *names: str, default: float) -> float:
        value = self.take(*names, default=default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ConfigError(f"config.json: {names[0]} is {value!r}; it must be a number")
        return float(value)

    def flag(self, *names: str, default: bool) -> bool:
        value = self.take(*names, default=default)
        if not isinstance(value, bool):
            raise ConfigError(f"config.json: {names[0]} is {value!r}; it must be true or false")
        return value

    def finish(self, fixed: Mapping[str, tuple[Any, ...]], inert: Iterable[str]) -> None:
        """Every key must have been taken, be ``fixed`` at a supported value, or be known to be ``inert``."""
        for key, allowed in fixed.items():
            if key in self.plain and self.plain[key] not in allowed:
                raise ConfigError(
                    f"config.json: {key} is {self.plain[key]!r}; supported: {', '.join(map(repr, allowed))}"
                )
        unknown = sorted(self.plain.keys() - self.taken - set(inert) - fixed.keys())
        if unknown:
            values = ", ".join(f"{key} = {str(self.plain[key])[:80]}" for key in unknown)
            raise ConfigError(f"config.json has keys whose meaning is unknown: {values}")
