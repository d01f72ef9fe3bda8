"""The part of a recipe that names a teacher: how a model that was made smaller learns again what it lost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omni.config_checks import require


@dataclass(frozen=True, kw_only=True)
class TeachPlan:
    """A frozen ``teacher`` (folder, hub id or shipped name) says the next token's distribution in every text.

    The student learns it at a ``temperature``, where its plans say that a token is learnt, or ``everywhere``. Each of
    ``nested`` is a smaller size of the student, by axis, and learns too: one of them in a step.
    """

    teacher: str
    weight: float = 1.0
    temperature: float = 1.0
    everywhere: bool = False
    nested: tuple[dict[str, int], ...] = ()

    def __post_init__(self) -> None:
        named = isinstance(self.teacher, str) and self.teacher != ""
        require(named, f"TeachPlan.teacher is {self.teacher!r}; it must name a model")
        require(_within(self.weight, 0, 1e6), f"TeachPlan.weight is {self.weight!r}; it must be from 0 to 1e6")
        degrees = _within(self.temperature, 1e-3, 1e3)
        require(degrees, f"TeachPlan.temperature is {self.temperature!r}; it must be from 0.001 to 1000")
        require(isinstance(self.everywhere, bool), f"TeachPlan.everywhere is {self.everywhere!r}; it must be a flag")
        sizes = self.nested if isinstance(self.nested, (list, tuple)) else (None,)
        require(
            all(isinstance(own, Mapping) and own and all(map(_whole, own.values())) for own in sizes),
            f"TeachPlan.nested is {self.nested!r}; it must be a list of mappings from axes to sizes",
        )
        object.__setattr__(self, "nested", tuple(dict(own) for own in sizes))


def _within(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
