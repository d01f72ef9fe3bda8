"""Names of a published checkpoint and ours, as one table that is read in both directions.

    Rename("backbone.layers.{i}.norm.weight", "context.blocks.{i}.norm.weight")
    Stack("layers.{i}.experts.{e}.up_proj.weight", "blocks.{i}.experts.up_proj")    a tensor per expert <-> one tensor
    Drop("{rest}.rotary_emb.inv_freq", "recomputed")                                 ignored on load, absent on export
    Alias("model.{rest}", "backbone.{rest}")                                         another spelling, on load only

``{i}`` stands for a number and may be scaled and shifted where one published layer is several of ours: ``{2i+1}``.
``{rest}`` stands for anything.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

_PLACEHOLDER = re.compile(r"\{(\d*)([a-z]+)(?:\+(\d+))?\}")


class Template:
    """A name with placeholders: matches names and writes them."""

    def __init__(self, text: str) -> None:
        self.text = text
        pieces, self.numbers, end = [], [], 0
        for found in _PLACEHOLDER.finditer(text):
            scale, name, shift = found.groups()
            pieces.append(re.escape(text[end : found.start()]))
            pieces.append(f"(?P<{name}>.+)" if name == "rest" else f"(?P<{name}>0|[1-9][0-9]{{0,8}})")
            if name != "rest":
                self.numbers.append((name, int(scale or 1), int(shift or 0)))
            end = found.end()
        self._pattern = re.compile("".join(pieces) + re.escape(text[end:]))

    def match(self, name: str) -> dict[str, str | int] | None:
        """Values of the placeholders, or None where ``name`` does not fit."""
        found = self._pattern.fullmatch(name)
        if found is None:
            return None
        values: dict[str, str | int] = dict(found.groupdict())
        for key, scale, shift in self.numbers:
            value, remainder = divmod(int(values[key]) - shift, scale)
            if remainder or value < 0:
                return None
            values[key] = value
        return values

    def format(self, values: dict[str, str | int]) -> str:
        def fill(found: re.Match) -> str:
            scale, name, shift = found.groups()
            return str(values[name]) if name == "rest" else str(int(values[name]) * int(scale or 1) + int(shift or 0))

        return _PLACEHOLDER.sub(fill, self.text)


@dataclass(frozen=True)
class Place:
    """Where a published tensor goes: our tensor ``name``, or its slice ``index`` along the first axis."""

    name: str
    index: int | None = None


@dataclass(frozen=True)
class Rename:
    """The same tensor under two names."""

    published: str
    ours: str

    @cached_property
    def _templates(self) -> tuple[Template, Template]:
        return Template(self.published), Template(self.ours)

    def to_ours(self, name: str) -> Place | None:
        published, ours = self._templates
        values = published.match(name)
        return None if values is None else Place(ours.format(values))

    def to_published(self, name: str, shape: Sequence[int]) -> list[tuple[str, int | None]] | None:
        published, ours = self._templates
        values = ours.match(name)
        return None if values is None else [(published.format(values), None)]


@dataclass(frozen=True)
class Stack:
    """Many published tensors, numbered ``{e}``, that are the slices of one of ours.

    ``whole``: the name under which some files hold them stacked already; accepted on load, never written.
    """

    published: str
    ours: str
    whole: str | None = None

    @cached_property
    def _templates(self) -> tuple[Template, Template, Template | None]:
        return Template(self.published), Template(self.ours), Template(self.whole) if self.whole else None

    def to_ours(self, name: str) -> Place | None:
        published, ours, whole = self._templates
        values = published.match(name)
        if values is not None:
            return Place(ours.format(values), int(values["e"]))
        values = whole.match(name) if whole else None
        return None if values is None else Place(ours.format(values))

    def to_published(self, name: str, shape: Sequence[int]) -> list[tuple[str, int | None]] | None:
        published, ours, _ = self._templates
        values = ours.match(name)
        if values is None:
            return None
        return [(published.format({**values, "e": e}), e) for e in range(shape[0])]


@dataclass(frozen=True)
class Drop:
    """A published tensor that we do not keep, and why."""

    published: str
    reason: str

    @cached_property
    def _template(self) -> Template:
        return Template(self.published)


@dataclass(frozen=True)
class Alias:
    """Another spelling of published names, turned into the first one before the other rules are read."""

    published: str
    canonical: str

    @cached_property
    def _templates(self) -> tuple[Template, Template]:
        return Template(self.published), Template(self.canonical)

    def apply(self, name: str) -> str:
        published, canonical = self._templates
        values = published.match(name)
        return name if values is None else canonical.format(values)


Rule = Rename | Stack | Drop | Alias


def prefixed(rules: Iterable[Rule], published: str = "", ours: str = "") -> tuple[Rule, ...]:
    """The same rules under a prefix, for a system that holds another family's model as a part."""
    changed: list[Rule] = []
    for rule in rules:
        match rule:
            case Rename():
                changed.append(Rename(published + rule.published, ours + rule.ours))
            case Stack():
                whole = published + rule.whole if rule.whole else None
                changed.append(Stack(published + rule.published, ours + rule.ours, whole))
            case Drop():
                changed.append(Drop(published + rule.published, rule.reason))
            case Alias():
                changed.append(Alias(published + rule.published, published + rule.canonical))
    return tuple(changed)


class Table:
    """Rules ready for use. The first rule that knows a name decides."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        rules = tuple(rules)
        self.aliases = [rule for rule in rules if isinstance(rule, Alias)]
        self.drops = [rule for rule in rules if isinstance(rule, Drop)]
        self.maps = [rule for rule in rules if isinstance(rule, (Rename, Stack))]

    def to_ours(self, name: str) -> Place | Drop | None:
        """Where a published tensor goes; None when no rule knows it."""
        for alias in self.aliases:
            name = alias.apply(name)
        for rule in self.maps:
            place = rule.to_ours(name)
            if place is not None:
                return place
        return next((rule for rule in self.drops if rule._template.match(name) is not None), None)

    def to_published(self, name: str, shape: Sequence[int]) -> list[tuple[str, int | None]] | None:
        """Published names of our tensor, with the slice each one holds; None when no rule knows it."""
        for rule in self.maps:
            names = rule.to_published(name, shape)
            if names is not None:
                return names
        return None
