"""The ``omni`` command: one function a command, over the pipelines.

    omni ask FILE "question"      omni train RECIPE        omni info MODEL
    omni chat                     omni eval TASK           omni convert SRC DST
    omni draw "prompt" -o x.png   omni bench language

Exit codes: 0 done, 1 the run failed, 2 bad usage, 130 interrupted. A failed run prints one line; ``--debug``
shows where it came from. Nothing heavy is imported before the arguments are known to be good, so that
``omni --help`` is instant.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from omni import __version__

Parser = argparse.ArgumentParser
Arguments = argparse.Namespace


class Command(NamedTuple):
    summary: str
    arguments: Callable[[Parser], None]
    run: Callable[[Arguments], Any]  # what it returns is printed as JSON under --json


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = build_parser()
    try:
        args = parse(parser, argv)
    except SystemExit as stop:  # argparse has printed its line
        return int(stop.code or 0)
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    return _run(COMMANDS[args.command], args)


def parse(parser: Parser, argv: list[str] | None) -> Arguments:
    """The arguments; KEY=VALUE may also stand behind the options, where argparse alone does not look for them."""
    args, rest = parser.parse_known_args(argv)
    late = next((name for name in ("options", "overrides") if hasattr(args, name)), None)
    if late is not None:
        getattr(args, late).extend(item for item in rest if "=" in item and not item.startswith("-"))
        rest = [item for item in rest if "=" not in item or item.startswith("-")]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args


def _run(command: Command, args: Arguments) -> int:
    try:
        result = command.run(args)
        if args.json:
            print(json.dumps(result, ensure_ascii=False))
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("omni: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe went away; Python would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UsageError as error:
        print(f"omni {args.command}: {error}", file=sys.stderr)
        return 2
    except (ValueError, OSError, RuntimeError, MemoryError, ImportError) as error:
        if args.debug:
            raise
        print(f"omni {args.command}: {_one_line(error)}", file=sys.stderr)
        return 1
    return 0


class UsageError(ValueError):
    """Arguments that do not fit together: exit code 2."""


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]}..."


def build_parser() -> Parser:
    parser = Parser(prog="omni", description="Run, train and measure the Nemotron and Cosmos 3 family.")
    parser.add_argument("--version", action="version", version=f"omni {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    common = _common()
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.summary, description=command.summary, parents=[common])
        command.arguments(sub)
    return parser


def _common() -> Parser:
    common = Parser(add_help=False)
    options = common.add_argument_group("common options")
    options.add_argument("--model", default="tiny", help="shipped name, local folder or hub id (default: tiny)")
    options.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, help="makes the run repeatable (default: 0)")
    options.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    options.add_argument("--json", action="store_true", help="print one JSON document")
    options.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return common


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


def _load(args: Arguments) -> Any:
    import omni

    return omni.load(args.model, device=args.device)


# -- ask ---------------------------------------------------------------------------------------------------


def _ask_arguments(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", help="PDF, picture, video or recording")
    parser.add_argument("questions", metavar="QUESTION", nargs="*", help="one or more questions")
    parser.add_argument("--transcribe", action="store_true", help="print what it says, shows or sounds like instead")
    parser.add_argument("--max-new-tokens", type=whole(1, 4096), default=None, help="longest answer, in tokens")
    parser.add_argument(
        "--read-first",
        action=argparse.BooleanOptionalAction,
        help="tell all of it before the questions (default: the model's)",
    )
    pages = parser.add_argument_group("documents")
    pages.add_argument("--page", type=whole(1, 200), help="look only at this page (default: all)")
    pages.add_argument("--views", type=whole(1, 8), help="looks at each page (default: the model's)")
    pages.add_argument("--boxes", type=Path, metavar="PNG", help="draw the boxes that the answers name on the page")
    frames = parser.add_argument_group("videos")
    frames.add_argument("--fps", type=number(0.0001, 1000), help="frames looked at a second (default: the model's)")
    frames.add_argument("--max-frames", type=whole(1, 100_000), help="most frames looked at (default: the model's)")
    frames.add_argument("--pruning", type=number(0, 0.99), help="share of the video's tokens to leave out (default: 0)")
    frames.add_argument("--start", type=number(0, 86_400), metavar="SECONDS", help="look only from here on")
    frames.add_argument("--stop", type=number(0, 86_400), metavar="SECONDS", help="look only up to here")
    frames.add_argument("--sound", action="store_true", default=None, help="hear its sound too")


_OF_DOCUMENTS = ("page", "views", "boxes")
_OF_VIDEOS = ("fps", "max_frames", "pruning", "start", "stop", "sound")


def _ask(args: Arguments) -> Any:
    if bool(args.questions) == args.transcribe:
        raise UsageError("give one or more questions, or --transcribe")
    from omni.tokenizers.kinds import kind_of

    kind = kind_of(args.file)  # a bad file is refused before a model is loaded
    others = {"document": _OF_VIDEOS, "video": _OF_DOCUMENTS, "sound": (*_OF_DOCUMENTS, *_OF_VIDEOS)}[kind]
    wrong = [f"--{name.replace('_', '-')}" for name in others if getattr(args, name) is not None]
    if wrong:
        raise UsageError(f"{args.file} is a {kind}; {', '.join(wrong)} cannot be used with it")
    return {"document": _ask_document, "video": _ask_video, "sound": _ask_sound}[kind](args)


def _ask_document(args: Arguments) -> Any:
    from omni.pipelines.documents import DocumentQA
    from omni.tokenizers.image import open_document

    open_document(args.file)
    if args.boxes is not None and args.boxes.suffix.lower() != ".png":
        raise UsageError(f"--boxes is {args.boxes}; pictures are written as .png")
    reader = DocumentQA(_load(args))
    limits = _given(args, "max_new_tokens", "views")
    if args.transcribe:
        pages = reader.transcribe(args.file, page=args.page, **limits)
        _print(args, "\n\n".join(pages))
        return pages
    answers = reader(args.file, args.questions, page=args.page, read_first=args.read_first, **limits)
    answered = _answered(args, answers)
    return answered if args.boxes is None else _with_boxes(args, answered)


def _ask_video(args: Arguments) -> Any:
    from omni.pipelines.video import VideoQA
    from omni.tokenizers.video import open_video

    open_video(args.file)
    watcher, look = VideoQA(_load(args)), _given(args, "max_new_tokens", *_OF_VIDEOS)
    if args.transcribe:
        text = watcher.describe(args.file, **look)
        _print(args, text)
        return text
    return _answered(args, watcher(args.file, args.questions, read_first=args.read_first, **look))


def _ask_sound(args: Arguments) -> Any:
    from omni.pipelines.sound import SoundQA

    listener, limits = SoundQA(_load(args)), _given(args, "max_new_tokens")
    if args.transcribe:
        text = listener.transcribe(args.file, **limits)
        _print(args, text)
        return text
    return _answered(args, listener(args.file, args.questions, read_first=args.read_first, **limits))


def _given(args: Arguments, *names: str) -> dict[str, Any]:
    """The options that were given."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _answered(args: Arguments, answers: list) -> list[dict[str, Any]]:
    for answer in answers:
        _print(args, answer.text)
    return [{"question": q, **a.as_dict()} for q, a in zip(args.questions, answers, strict=True)]


def _with_boxes(args: Arguments, answered: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers with their boxes as data, which are drawn on the page that they were found on."""
    from omni.pipelines.grounding import as_dicts, draw_boxes, read_boxes
    from omni.pipelines.images import save_png
    from omni.tokenizers.image import open_document

    page = answered[0]["pages"][0]
    picture = open_document(args.file)[page - 1]
    found = [read_boxes(item["text"]) for item in answered]
    labels = [item["question"] for item, boxes in zip(answered, found, strict=True) for _ in boxes]
    save_png(draw_boxes(picture, [box for boxes in found for box in boxes], labels), args.boxes, {"model": args.model})
    _print(args, str(args.boxes))
    return [{**item, "boxes": as_dicts(boxes, picture.size)} for item, boxes in zip(answered, found, strict=True)]


def _print(args: Arguments, text: str) -> None:
    if not args.json:
        print(text)


# -- chat --------------------------------------------------------------------------------------------------


def _chat_arguments(parser: Parser) -> None:
    parser.add_argument("message", metavar="MESSAGE", nargs="*", help="say this and stop (default: a conversation)")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="show a picture first")
    parser.add_argument("--system", help="system message")
    parser.add_argument("--max-new-tokens", type=whole(1, 1 << 20), default=256, help="(default: 256)")
    parser.add_argument("--temperature", type=number(0, 10), help="0 is greedy (default: the checkpoint's own)")
    parser.add_argument("--top-p", type=number(0, 1), help="(default: the checkpoint's own)")
    parser.add_argument("--thinking", action=argparse.BooleanOptionalAction, help="let the model reason first")


def _chat(args: Arguments) -> Any:
    if args.json and not args.message:
        raise UsageError("--json needs a message: a conversation is not one document")
    from omni.pipelines.chat import Chat, terminal
    from omni.tokenizers.image import open_image

    pictures = [{"type": "image", "image": open_image(file)} for file in args.image]
    chat = Chat(_load(args))
    options = {
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "thinking": args.thinking,
        "seed": args.seed,
    }
    messages = [{"role": "system", "content": args.system}] if args.system else []
    if not args.message:
        return terminal(chat, messages, pictures, **options)
    text = {"type": "text", "text": " ".join(args.message)}
    messages.append({"role": "user", "content": [*pictures, text]})
    reply = chat(messages, **options)
    _print(args, reply.text)
    return {
        "text": reply.text,
        "reasoning": reply.reasoning,
        "finish_reason": reply.finish_reason,
        "tokens": reply.tokens,
        "seed": args.seed,
    }


# -- draw --------------------------------------------------------------------------------------------------


def _draw_arguments(parser: Parser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="what to draw")
    parser.add_argument("-o", "--out", type=Path, default=Path("out.png"), help="PNG to write (default: out.png)")
    parser.add_argument("--steps", type=whole(1, 1000), help="denoising steps (default: the model's)")
    parser.add_argument("--guidance", type=number(0, 100), help="1 is none (default: the model's)")
    parser.add_argument("--eta", type=number(0, 1), help="noise renewed at each step; 0 is none (default: the model's)")
    parser.add_argument("--negative", metavar="PROMPT", help="what to keep away from")
    parser.add_argument(
        "--upsample",
        action=argparse.BooleanOptionalAction,
        help="let the model first say in words what the prompt leaves open (default: the model's)",
    )
    parser.add_argument("--height", type=whole(1, 8192), help="pixels (default: the model's)")
    parser.add_argument("--width", type=whole(1, 8192), help="pixels (default: the model's)")
    parser.add_argument("--count", type=whole(1, 64), default=1, help="pictures; one more file shows all of them")


def _draw(args: Arguments) -> Any:
    if args.out.suffix.lower() != ".png":
        raise UsageError(f"--out is {args.out}; pictures are written as .png")
    if not args.out.parent.is_dir():
        raise UsageError(f"--out is {args.out}; the folder {args.out.parent} does not exist")
    from omni.pipelines.images import TextToImage, contact_sheet, save_png

    chosen = {
        "steps": args.steps,
        "guidance": args.guidance,
        "eta": args.eta,
        "negative_prompt": args.negative,
        "upsample": args.upsample,
        "height": args.height,
        "width": args.width,
    }
    chosen = {name: value for name, value in chosen.items() if value is not None}
    result = TextToImage(_load(args))(args.prompt, seed=args.seed, count=args.count, **chosen)
    names = [args.out] if args.count == 1 else [_numbered(args.out, i + 1) for i in range(args.count)]
    drawn = []
    for name, picture, settings, text in zip(names, result.images, result.settings, result.prompts, strict=True):
        settings = {**settings, "model": args.model, **({"upsampled": text} if settings["upsample"] else {})}
        save_png(picture, name, settings)
        _print(args, str(name))
        if "upsampled" in settings and not args.json:
            print(f"drawn as: {text}", file=sys.stderr)
        drawn.append({"file": str(name), **settings})
    if args.count > 1:
        save_png(contact_sheet(result.images), args.out, {"prompt": args.prompt, "model": args.model})
        _print(args, str(args.out))
    return drawn


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


# -- train -------------------------------------------------------------------------------------------------


def _train_arguments(parser: Parser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="YAML file, such as assets/recipes/tiny.yaml")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="fields of the recipe to change")
    parser.add_argument("--preset", help="a section of the recipe's presets")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"), help="folder of the run (default: runs/tiny)")
    parser.add_argument("--init", type=Path, metavar="CKPT", help="start from another run's weights")
    parser.add_argument("--fresh", action="store_true", help="start over, even if the run can be resumed")


def _train(args: Arguments) -> Any:
    overrides = ({"seed": args.seed} if args.seed else {}) | _assigned(args.overrides)
    from omni.recipe import load_recipe

    load_recipe(args.recipe, args.preset, overrides)  # a bad recipe is refused before anything heavy is imported
    from omni.training import train

    folder = train(
        args.recipe,
        preset=args.preset,
        out=args.out,
        resume=not args.fresh,
        init=args.init,
        overrides=overrides,
    )
    _print(args, str(folder))
    return {"model": str(folder)}


def _assigned(items: list[str]) -> dict[str, Any]:
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


# -- eval, bench, info, convert ----------------------------------------------------------------------------


def _eval_arguments(parser: Parser) -> None:
    parser.add_argument("task", metavar="TASK", help="a task's name; `omni eval list` shows them")
    parser.add_argument("options", metavar="KEY=VALUE", nargs="*", help="the task's own, such as upsample=false")
    parser.add_argument("--data", type=Path, metavar="FILE", help="own cases, one JSON object a line")
    parser.add_argument("--count", type=whole(1, 100_000), default=200, help="cases (default: 200)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the report with every case as JSON")


def _eval(args: Arguments) -> Any:
    from omni.evaluation import TASKS, evaluate, table

    if args.task == "list":
        for name, task in TASKS.items():
            _print(args, f"{name:<12}{task.summary}")
            if task.options:
                _print(args, f"{'':<12}options: {', '.join(task.options)}")
        return {name: task.summary for name, task in TASKS.items()}
    if args.task not in TASKS:
        raise UsageError(f"unknown task {args.task!r}; known: {', '.join(TASKS)}")
    if args.data is not None and not TASKS[args.task].takes_data:
        raise UsageError(f"the task {args.task!r} draws its own cases; it takes no --data")
    if args.data is None and TASKS[args.task].needs_data:
        raise UsageError(f"the task {args.task!r} has no cases of its own; it needs --data")
    options = _assigned(args.options)
    try:
        TASKS[args.task].check(options)
    except ValueError as error:
        raise UsageError(f"{args.task}: {error}") from None
    own = {"data": args.data, "journal": _journal(args)}
    report = evaluate(args.task, _load(args), count=args.count, seed=args.seed, **own, **options)
    if args.out is not None:
        report.save(args.out)
        if own["journal"] is not None:
            own["journal"].unlink(missing_ok=True)
    _print(args, table(report))
    return report.as_dict()


def _journal(args: Arguments) -> Path | None:
    """Where the answers to own cases are kept as they come, so that a long run goes on where it was stopped."""
    return args.out.with_name(f"{args.out.name}.part") if args.out is not None and args.data is not None else None


def _bench_arguments(parser: Parser) -> None:
    parser.add_argument("subject", choices=["language", "understanding"], help="what to measure")
    parser.add_argument("--quick", action="store_true", help="fewer turns and shorter prompts")
    parser.add_argument("--threads", type=whole(1, 1024), default=2, help="of both sides (default: 2)")


def _bench(args: Arguments) -> Any:
    from omni import bench, bench_understanding

    measures = {"language": bench.bench_language, "understanding": bench_understanding.bench_understanding}
    report = measures[args.subject](quick=args.quick, seed=args.seed, threads=args.threads)
    _print(args, bench.table(report))
    return report.as_dict()


def _info_arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="MODEL", nargs="?", help="preset, local folder or hub id (default: --model)")
    parser.add_argument("--memory", metavar="SIZE", help="say whether it fits, such as 24GiB")
    parser.add_argument("--context", type=whole(1, 1 << 40), default=4096, help="tokens a row (default: 4096)")
    parser.add_argument("--batch", type=whole(1, 1 << 20), default=1, help="rows (default: 1)")
    parser.add_argument("--dtype", default="bfloat16", help="float32, bfloat16, fp8, nvfp4 (default: bfloat16)")


def _info(args: Arguments) -> Any:
    from omni.info import describe, table

    described = describe(
        args.name or args.model, context=args.context, batch=args.batch, dtype=args.dtype, memory=args.memory
    )
    _print(args, table(described))
    return described.as_dict()


def _convert_arguments(parser: Parser) -> None:
    parser.add_argument("source", metavar="SRC", help="shipped name, local folder or hub id")
    parser.add_argument("target", metavar="DST", type=Path, help="folder to write")
    parser.add_argument("--family", help="layout to write: omni, nemotron_h ... (default: the source's own)")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16 ... (default: auto, the source's own)")


def _convert(args: Arguments) -> Any:
    from omni.families.convert import convert

    folder = convert(args.source, args.target, family=args.family, dtype=args.dtype)
    _print(args, str(folder))
    return {"model": str(folder)}


COMMANDS = {
    "ask": Command("answer questions about a picture, PDF, video or recording", _ask_arguments, _ask),
    "chat": Command("talk in the terminal, or answer one message", _chat_arguments, _chat),
    "draw": Command("draw pictures from a prompt", _draw_arguments, _draw),
    "train": Command("run or resume a training recipe", _train_arguments, _train),
    "eval": Command("measure a model on a task", _eval_arguments, _eval),
    "bench": Command("measure speed beside the reference implementation", _bench_arguments, _bench),
    "info": Command("parts, parameters and memory of a model", _info_arguments, _info),
    "convert": Command("write a checkpoint in another layout or type", _convert_arguments, _convert),
}
