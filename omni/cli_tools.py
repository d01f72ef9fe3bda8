"""What the commands share: types of arguments, loading the model, printing."""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

LOW = ("fp8", "nvfp4", "mixed")
"""Names of low precision, see :mod:`omni.quantization.plans`."""

Parser = argparse.ArgumentParser
Arguments = argparse.Namespace


class Command(NamedTuple):
    summary: str
    arguments: Callable[[Parser], None]
    run: Callable[[Arguments], Any]  # what it returns is printed as JSON under --json
    model: str | None = "tiny"  # which is loaded by default; None: the task says


class UsageError(ValueError):
    """Arguments that do not fit together: exit code 2."""


def whole(low: int, high: int) -> Callable[[str], int]:
    """Argument type: a whole number within limits, which the error names."""

    def parse(text: str) -> int:
        value = int(text) if text.isascii() and text.strip().lstrip("-").isdigit() else None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return value

    return parse


def number(low: float, high: float) -> Callable[[str], float]:
    """Argument type: a finite number within limits."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} to {high:g}")
        return value

    return parse


def quantize_argument(parser: Parser) -> None:
    """``--quantize``, for the commands whose model :func:`load` loads."""
    help = "keep the large matrices packed in memory: fp8, nvfp4 or mixed (default: as the checkpoint is)"
    parser.add_argument("--quantize", choices=LOW, metavar="FORMAT", help=help)


def load(args: Arguments) -> Any:
    import omni

    low = {name: getattr(args, name) for name in ("quantize", "low_inputs") if getattr(args, name, None)}
    return omni.load(args.model, device=args.device, **low)


def given(args: Arguments, *names: str) -> dict[str, Any]:
    """The options that were given."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def say(args: Arguments, text: str) -> None:
    if not args.json:
        print(text)


def assigned(items: list[str]) -> dict[str, Any]:
    """The values of KEY=VALUE arguments, read as YAML."""
    import yaml

    values = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not (equals and name):
            raise UsageError(f"{item!r} is not KEY=VALUE")
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UsageError(f"{item!r}: {value!r} is not a value in YAML") from None
    return values
