"""The command that makes a model smaller.

omni compress tiny -o smaller --params 0.75
omni compress nano-12b-v2 --budget 19.66GiB --context 131072 --plan
"""

import argparse
from pathlib import Path
from typing import Any

from omni.cli_tools import Arguments, Command, Parser, UsageError, number, say, whole


def _arguments(parser: Parser) -> None:
    parser.add_argument(
        "name", metavar="MODEL", nargs="?", help="shipped name, folder, hub id; with --plan a preset too"
    )
    parser.add_argument("-o", "--out", type=Path, metavar="OUT", help="folder of the smaller model, new or empty")
    parser.add_argument("--plan", action="store_true", help="only say what fits, from the sizes alone")
    parser.add_argument("--report", type=Path, metavar="DIR", help="where the report goes (default: OUT/report)")
    limits = parser.add_argument_group("what is asked for (limits are searched under, a shape is taken as it is)")
    limits.add_argument("--budget", metavar="SIZE", help="memory of weights, keys and values, and states: 19.66GiB")
    limits.add_argument("--context", type=whole(1, 1 << 40), default=131_072, help="tokens a row (default: 131072)")
    limits.add_argument("--batch", type=whole(1, 1 << 20), default=1, help="rows (default: 1)")
    limits.add_argument("--params", type=_size, metavar="N", help="of the context tower: a share up to 1, or how many")
    limits.add_argument("--active-params", type=_size, metavar="N", help="the same of those that one token uses")
    limits.add_argument("--shape", metavar="AXIS=N,...", help="sizes: d_model=4480,d_ff=15680,layers=56,attention=4")
    grid = parser.add_argument_group("how it is searched")
    grid.add_argument("--axes", metavar="AXIS,...", help="axes that may shrink (default: all but heads of attention)")
    grid.add_argument("--width", type=number(0, 0.99), default=0.4, help="most of a width that goes (default: 0.4)")
    grid.add_argument("--depth", type=number(0, 0.99), default=0.2, help="most of the layers that go (default: 0.2)")
    grid.add_argument(
        "--depth-by", choices=["mse", "cosine"], default="mse", help="how layers are ranked (default: mse)"
    )
    grid.add_argument("--calibrate", type=whole(1, 1 << 20), default=64, metavar="N", help="rows to read (default: 64)")
    grid.add_argument(
        "--data", type=Path, metavar="FILE", help="text to read, a row a line (default: the model's worlds)"
    )
    grid.add_argument("--tried", type=whole(1, 1000), default=8, help="candidates cut and measured (default: 8)")


def _size(text: str) -> float:
    value = number(1e-9, 1e15)(text)
    if value > 1 and value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a share up to 1 nor a whole number")
    return value


def _compress(args: Arguments) -> Any:
    shape = _shape(args.shape)
    if not any(value is not None for value in (args.budget, args.params, args.active_params, args.shape)):
        raise UsageError("say how small: --budget, --params, --active-params or --shape")
    if not args.plan and args.out is None:
        raise UsageError("give -o OUT, or --plan to see only what fits")
    return _planned(args, shape) if args.plan else _made(args, shape)


def _planned(args: Arguments, shape: dict[str, int]) -> Any:
    from omni.compress import plan
    from omni.families import find_config

    name = args.name or args.model
    config = find_config(name)
    report = plan(name, config, _task(args, config, shape))
    if args.report is not None:
        report.save(args.report)
    say(args, report.text())
    return report.as_dict()


def _made(args: Arguments, shape: dict[str, int]) -> Any:
    import omni
    from omni.compress import compress, write
    from omni.compress.run import check_target
    from omni.compress_inputs import calibration
    from omni.families import find_config

    name = args.name or args.model
    check_target(args.out)
    task = _task(args, find_config(name), shape)  # refused before anything is loaded
    model = omni.load(name, device=args.device)
    batches = calibration(model, args.calibrate, args.seed, args.data)
    journal = args.out.with_name(f"{args.out.name}.depth.json")
    small, kept, report = compress(model, batches, task, name=str(name), journal=journal)
    folder = write(small, kept, report, model.folder, args.out)
    report.save(args.report or args.out / "report")
    journal.unlink(missing_ok=True)
    say(args, f"{folder}: {report.chosen_words()}")
    return {"model": str(folder), **report.as_dict()["chosen"]}


def _task(args: Arguments, config: Any, shape: dict[str, int]) -> Any:
    from omni.compress import Grid, Limits, Ruler, Task, Use
    from omni.compress.axes import KINDS
    from omni.compress.search import SEARCHED
    from omni.info import parse_size

    use = Use(args.context, args.batch)
    costs = Ruler(config, use).costs(config)
    params = (_count(args.params, costs.parameters), _count(args.active_params, costs.active))
    axes = tuple(args.axes.split(",")) if args.axes else SEARCHED
    layers = {name: count for name, count in shape.items() if name in KINDS}
    fixed = {name: size for name, size in shape.items() if name not in KINDS}
    grid = Grid(axes, fixed, args.width, args.depth)
    return Task(Limits(parse_size(args.budget), *params), use, grid, layers, args.depth_by, args.tried)


def _count(value: float | None, of: int) -> int | None:
    """A share as a number of parameters."""
    return None if value is None else int(value * of) if value <= 1 else int(value)


def _shape(text: str | None) -> dict[str, int]:
    """``d_model=4480,layers=56`` -> sizes by axis and numbers of layers by kind."""
    found = {}
    for item in text.split(",") if text is not None else ():
        name, equals, size = item.partition("=")
        if not equals or not size.isascii() or not size.isdigit():
            raise UsageError(f"--shape has {item!r}; it must be AXIS=N,AXIS=N")
        found[name.strip()] = int(size)
    return found


COMPRESS = Command("make a model smaller, or say what would fit a budget", _arguments, _compress)
