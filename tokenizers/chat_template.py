"""Chat templates of published checkpoints: Jinja source from a file of unknown origin, run in a sandbox with limits.

The sandbox takes away attributes and methods. What it leaves could still run or grow without end, so loops look at a
clock, the operators that make long strings check their result, and the output is counted while it is written.
"""

import datetime
import json
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SOURCE = 1 << 20  # characters of a template
MAX_TEXT = 1 << 24  # characters of a rendered conversation, and of any string made on the way
MAX_SECONDS = 10.0
MAX_INDENT = 64
_BUILDERS = {"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "translate"}


class TemplateError(ValueError):
    """A chat template that cannot be read or run, or that refuses the conversation."""


class _Generation(Extension):
    """``{% generation %}`` marks what training may learn from; here its content is only passed on."""

    tags = {"generation"}  # noqa: RUF012 - the base class's own declaration

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_operands(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _BUILDERS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        _check_clock(context)
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str) and name == "replace" and len(args) >= 2:
            _check_replace(owner, *args[:2])
        if isinstance(owner, str) and name == "join" and args and isinstance(args[0], (list, tuple)):
            _check_length(sum(len(str(x)) + len(owner) for x in args[0]))
        return super().call(context, obj, *args, **kwargs)


def _check_length(length: int) -> None:
    if length > MAX_TEXT:
        raise TemplateError(f"the chat template makes a text of {length} characters; the limit is {MAX_TEXT}")


def _check_operands(operator: str, left: Any, right: Any) -> None:
    if operator == "*":
        for many, times in ((left, right), (right, left)):
            if isinstance(many, (str, list, tuple)) and isinstance(times, int):
                _check_length(len(many) * max(times, 0))
    elif operator == "+" and isinstance(left, (str, list)) and isinstance(right, (str, list)):
        _check_length(len(left) + len(right))
    elif operator == "**" and (abs(right) > 64 or abs(left) > 1 << 32):
        raise TemplateError(f"the chat template computes {left} ** {right}; exponents up to 64 are allowed")
    elif operator == "%" and isinstance(left, str):
        raise TemplateError("the chat template formats with %; only numbers may stand left of it")


def _check_replace(text: str, old: Any, new: Any) -> None:
    count = text.count(str(old))
    _check_length(len(text) + count * (len(str(new)) - len(str(old))))


def _check_clock(context: Any) -> None:
    if time.monotonic() > context.resolve("_deadline"):
        raise TemplateError(f"the chat template ran for more than {MAX_SECONDS:g} seconds")


@jinja2.pass_context
def _watch(context: Any, items: Iterable[Any]) -> Iterator[Any]:
    """Every ``for`` goes through here, so that none runs past the deadline."""
    for item in items:
        _check_clock(context)
        yield item


def _short(text: Any) -> Any:
    _check_length(len(text))
    return text


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Like ``json.dumps``; unlike Jinja's own filter it does not escape for HTML."""
    _check_indent(indent or 0)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _replace(text: Any, old: Any, new: Any) -> str:
    _check_replace(str(text), old, new)
    return str(text).replace(str(old), str(new))


def _join(items: Iterable[Any], between: str = "", attribute: str | None = None) -> str:
    texts, length = [], 0
    for item in items:
        texts.append(str(item[attribute] if attribute else item))
        length += len(texts[-1]) + len(between)
        _check_length(length)
    return between.join(texts)


def _indent(text: str, width: int = 4, first: bool = False, blank: bool = False) -> str:
    _check_indent(width)
    lines = text.split("\n")
    return "\n".join(
        " " * width + line if (first or i) and (blank or line or i == 0) else line for i, line in enumerate(lines)
    )


def _check_indent(width: Any) -> None:
    if not isinstance(width, int) or width > MAX_INDENT:
        raise TemplateError(f"the chat template indents by {width}; the limit is {MAX_INDENT}")


def _refuse(message: Any) -> None:
    raise TemplateError(f"the chat template refuses this conversation: {message}")


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    for name in ("batch", "center", "format", "slice", "wordwrap"):
        del environment.filters[name]
    del environment.globals["lipsum"]
    environment.filters.update(
        tojson=_tojson, replace=_replace, join=_join, indent=_indent, _watch=_watch, _short=_short
    )
    environment.globals.update(raise_exception=_refuse, strftime_now=_strftime_now)
    return environment


def _guard(tree: nodes.Template) -> nodes.Template:
    """Wrap what loops iterate over, and what ``~`` makes."""
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = nodes.Filter(loop.iter, "_watch", [], [], None, None, lineno=loop.lineno)
    for parent in [tree, *tree.find_all(nodes.Node)]:
        for name, child in list(parent.iter_fields()):
            if isinstance(child, nodes.Concat):
                setattr(parent, name, _length_checked(child))
            elif isinstance(child, list):
                child[:] = [_length_checked(c) if isinstance(c, nodes.Concat) else c for c in child]
    return tree.set_environment(tree.environment)


def _length_checked(node: nodes.Concat) -> nodes.Filter:
    return nodes.Filter(node, "_short", [], [], None, None, lineno=node.lineno)


class ChatTemplate:
    """A compiled chat template. ``source`` is kept: it tells what the template can do."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE:
            raise TemplateError(f"the chat template has {len(source)} characters; the limit is {MAX_SOURCE}")
        self.source = source
        environment = _environment()
        try:
            self._template = environment.from_string(_guard(environment.parse(source)))
        except (jinja2.TemplateSyntaxError, RecursionError) as error:
            raise TemplateError(f"the chat template cannot be read: {error}") from None

    def uses(self, name: str) -> bool:
        """Whether the template mentions the variable (or word) ``name``."""
        return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", self.source) is not None

    def render(self, **variables: Any) -> str:
        """The conversation as text. Raises TemplateError when the template fails, refuses or passes a limit."""
        pieces, length = [], 0
        try:
            for piece in self._template.generate(**variables, _deadline=time.monotonic() + MAX_SECONDS):
                length += len(piece)
                _check_length(length)
                pieces.append(piece)
        except TemplateError:
            raise
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise TemplateError(f"the chat template failed: {error}") from None
        return "".join(pieces)
