"""Names of a published checkpoint and ours, as one table that is read in both directions.

    Rename("backbone.layers.{i}.norm.weight", "context.blocks.{i}.norm.weight")
    Stack("layers.{i}.experts.{e}.up_proj.weight", "blocks.{i}.experts.up_proj")    a tensor per expert <-> one tensor
    Join("attn.{part}_proj.weight", "qkv.weight", ("q", "k", "v"))                  equal parts <-> one tensor
    Rearrange("patch.weight", "stem.weight", Order("d (y x c) -> d (c y x)", ...))  the same numbers in another order
    Drop("{rest}.rotary_emb.inv_freq", "recomputed")                                 ignored on load, absent on export
    Alias("model.{rest}", "backbone.{rest}")                                         another spelling, on load only

A weight that is kept packed is several tensors: those of :data:`PARTS`, under the name of its module or stack. They go
where the weight itself would.

``{i}`` stands for a number and may be scaled and shifted where one published layer is several of ours: ``{2i+1}``.
``{rest}`` stands for anything.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

PARTS = ("codes", "block_scale", "tensor_scale", "input_scale", "k_scale", "v_scale")
"""Endings of what a packed weight consists of (:mod:`omni.quantization`), and of the scales of keys and values."""

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


class Part(NamedTuple):
    """One of ``of`` equal parts along the first axis."""

    number: int
    of: int


class Order(NamedTuple):
    """An einops pattern, published -> ours, with the sizes that it needs: ``(("y", 16), ("x", 16))``."""

    pattern: str
    sizes: tuple[tuple[str, int], ...]


Index = int | Part | Order | None
"""What of our tensor a published one holds: a slice along the first axis, a part, all of it in another order, all."""


@dataclass(frozen=True)
class Place:
    """Where a published tensor goes: our tensor ``name``, or what ``index`` says of it.

    ``shape`` is the published one where it is not ours; the elements and their order are the same.
    """

    name: str
    index: Index = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Rename:
    """The same tensor under two names.

    ``shape``: the published one, where the same elements stand in another; of a name without placeholders.
    ``default``: the value of every element where the published tensor may be absent.
    """

    published: str
    ours: str
    shape: tuple[int, ...] | None = None
    default: float | None = None

    @cached_property
    def _templates(self) -> tuple[Template, Template]:
        return Template(self.published), Template(self.ours)

    def to_ours(self, name: str) -> Place | None:
        published, ours = self._templates
        values = published.match(name)
        return None if values is None else Place(ours.format(values), shape=self.shape)

    def to_published(self, name: str, shape: Sequence[int]) -> list[tuple[str, Index]] | None:
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

    def to_published(self, name: str, shape: Sequence[int]) -> list[tuple[str, Index]] | None:
        published, ours, _ = self._templates
        values = ours.match(name)
        if values is None:
            return None
        return [(published.format({**values, "e": e}), e) for e in range(shape[0])]


@dataclass(frozen=True)
class Join:
    """Published tensors of one shape, ``{part}`` being each of ``parts``, that stand behind each other in ours."""

    published: str
    ours: str
    parts: tuple[str, ...]

    @cached_property
    def _templates(self) -> tuple[list[Template], Template]:
        return [Template(self.published.replace("{part}", part)) for part in self.parts], Template(self.ours)

    def to_ours(self, name: str) -> Place | None:
        published, ours = self._templates
        for i, template in enumerate(published):
            values = template.match(name)
            if values is not None:
                return Place(ours.format(values), Part(i, len(published)))
        return None

    def to_published(self, name: str, shape: Sequence[int]) -> list[tuple[str, Index]] | None:
        published, ours = self._templates
        values = ours.match(name)
        if values is None:
            return None
        return [(template.format(values), Part(i, len(published))) for i, template in enumerate(published)]


@dataclass(frozen=True)
class Rearrange:
    """The same numbers in another order."""

    published: str
    ours: str
    order: Order

    @cached_property
    def _rename(self) -> Rename:
        return Rename(self.published, self.ours)

    def to_ours(self, name: str) -> Place | None:
        place = self._rename.to_ours(name)
        return None if place is None else Place(place.name, self.order)

    def to_published(self, name: str, shape: Sequence[int]) -> list[tuple[str, Index]] | None:
        names = self._rename.to_published(name, shape)
        return None if names is None else [(published, self.order) for published, _ in names]


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


Rule = Rename | Stack | Join | Rearrange | Drop | Alias


def prefixed(rules: Iterable[Rule], published: str = "", ours: str = "") -> tuple[Rule, ...]:
    """The same rules under a prefix, for a system that holds another family's model as a part."""
    changed: list[Rule] = []
    for rule in rules:
        match rule:
            case Rename():
                names = published + rule.published, ours + rule.ours
                changed.append(Rename(*names, shape=rule.shape, default=rule.default))
            case Stack():
                whole = published + rule.whole if rule.whole else None
                changed.append(Stack(published + rule.published, ours + rule.ours, whole))
            case Join():
                changed.append(Join(published + rule.published, ours + rule.ours, rule.parts))
            case Rearrange():
                changed.append(Rearrange(published + rule.published, ours + rule.ours, rule.order))
            case Drop():
                changed.append(Drop(published + rule.published, rule.reason))
            case Alias():
                changed.append(Alias(published + rule.published, published + rule.canonical))
    return tuple(changed)


def stem_of(name: str) -> str:
    """The module or stack whose weight ``name`` is."""
    return name.removesuffix(".weight")


def split_part(name: str) -> tuple[str, str]:
    """The name of a module or stack, and which of :data:`PARTS`; ``""`` for another tensor, which keeps its name."""
    stem, _, part = name.rpartition(".")
    return (stem, part) if part in PARTS else (name, "")


class Table:
    """Rules ready for use. The first rule that knows a name decides."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        rules = tuple(rules)
        self.aliases = [rule for rule in rules if isinstance(rule, Alias)]
        self.drops = [rule for rule in rules if isinstance(rule, Drop)]
        self.maps = [rule for rule in rules if isinstance(rule, (Rename, Stack, Join, Rearrange))]

    def to_ours(self, name: str) -> Place | Drop | None:
        """Where a published tensor goes; None when no rule knows it."""
        stem, part = split_part(name)
        if part:
            place = self.to_ours(f"{stem}.weight")
            return Place(f"{stem_of(place.name)}.{part}", place.index) if isinstance(place, Place) else place
        for alias in self.aliases:
            name = alias.apply(name)
        for rule in self.maps:
            place = rule.to_ours(name)
            if place is not None:
                return place
        return next((rule for rule in self.drops if rule._template.match(name) is not None), None)

    def renaming(self, name: str) -> Rename | None:
        """The rule that renames our tensor; None where it is one of many, or unknown."""
        renames = (rule for rule in self.maps if isinstance(rule, Rename))
        return next((rule for rule in renames if rule.to_published(name, ()) is not None), None)

    def to_published(self, name: str, shape: Sequence[int]) -> list[tuple[str, Index]] | None:
        """Published names of our tensor, with what each one holds of it; None when no rule knows it."""
        stem, part = split_part(name)
        if part:
            names = self.to_published(f"{stem}.weight", shape) or self.to_published(stem, shape)
            return None if names is None else [(f"{stem_of(published)}.{part}", index) for published, index in names]
        for rule in self.maps:
            names = rule.to_published(name, shape)
            if names is not None:
                return names
        return None
