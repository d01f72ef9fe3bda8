"""The ``omni`` command: one function a command, over the pipelines.

    omni ask FILE "question"      omni train RECIPE        omni info MODEL
    omni chat                     omni eval TASK           omni convert SRC DST
    omni draw "prompt" -o x.png   omni bench language     omni quantize SRC -o DST --format nvfp4

Exit codes: 0 done, 1 the run failed, 2 bad usage, 130 interrupted. A failed run prints one line; ``--debug``
shows where it came from. Nothing heavy is imported before the arguments are known to be good, so that
``omni --help`` is instant.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from omni import __version__
from omni.cli_bench import BENCH
from omni.cli_compress import COMPRESS
from omni.cli_generate import ACT, ANIMATE, DRAW, WORLD
from omni.cli_tools import (
    LOW,
    Arguments,
    Command,
    Parser,
    UsageError,
    assigned,
    given,
    load,
    number,
    quantize_argument,
    say,
    whole,
)


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


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]}..."


def build_parser() -> Parser:
    parser = Parser(prog="omni", description="Run, train and measure the Nemotron and Cosmos 3 family.")
    parser.add_argument("--version", action="version", version=f"omni {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        common = _common(command.model)
        sub = commands.add_parser(name, help=command.summary, description=command.summary, parents=[common])
        command.arguments(sub)
    return parser


def _common(model: str | None) -> Parser:
    common = Parser(add_help=False)
    options = common.add_argument_group("common options")
    default = model or "what has learnt the task"
    options.add_argument("--model", default=model, help=f"shipped name, local folder or hub id (default: {default})")
    options.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, help="makes the run repeatable (default: 0)")
    options.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    options.add_argument("--json", action="store_true", help="print one JSON document")
    options.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return common


# -- ask ---------------------------------------------------------------------------------------------------


def _ask_arguments(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", help="PDF, picture, video or recording")
    parser.add_argument("questions", metavar="QUESTION", nargs="*", help="one or more questions")
    quantize_argument(parser)
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
    reader = DocumentQA(load(args))
    limits = given(args, "max_new_tokens", "views")
    if args.transcribe:
        pages = reader.transcribe(args.file, page=args.page, **limits)
        say(args, "\n\n".join(pages))
        return pages
    answers = reader(args.file, args.questions, page=args.page, read_first=args.read_first, **limits)
    answered = _answered(args, answers)
    return answered if args.boxes is None else _with_boxes(args, answered)


def _ask_video(args: Arguments) -> Any:
    from omni.pipelines.video import VideoQA
    from omni.tokenizers.video import open_video

    open_video(args.file)
    watcher, look = VideoQA(load(args)), given(args, "max_new_tokens", *_OF_VIDEOS)
    if args.transcribe:
        text = watcher.describe(args.file, **look)
        say(args, text)
        return text
    return _answered(args, watcher(args.file, args.questions, read_first=args.read_first, **look))


def _ask_sound(args: Arguments) -> Any:
    from omni.pipelines.sound import SoundQA

    listener, limits = SoundQA(load(args)), given(args, "max_new_tokens")
    if args.transcribe:
        text = listener.transcribe(args.file, **limits)
        say(args, text)
        return text
    return _answered(args, listener(args.file, args.questions, read_first=args.read_first, **limits))


def _answered(args: Arguments, answers: list) -> list[dict[str, Any]]:
    for answer in answers:
        say(args, answer.text)
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
    say(args, str(args.boxes))
    return [{**item, "boxes": as_dicts(boxes, picture.size)} for item, boxes in zip(answered, found, strict=True)]


# -- chat --------------------------------------------------------------------------------------------------


def _chat_arguments(parser: Parser) -> None:
    parser.add_argument("message", metavar="MESSAGE", nargs="*", help="say this and stop (default: a conversation)")
    quantize_argument(parser)
    parser.add_argument("--cache", metavar="FORMAT", help="exact, fp8, float16, int8, or two of them: fp8+float16")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="show a picture first")
    parser.add_argument("--system", help="system message")
    parser.add_argument("--max-new-tokens", type=whole(1, 1 << 20), default=256, help="(default: 256)")
    parser.add_argument("--temperature", type=number(0, 10), help="0 is greedy (default: the checkpoint's own)")
    parser.add_argument("--top-p", type=number(0, 1), help="(default: the checkpoint's own)")
    parser.add_argument("--thinking", action=argparse.BooleanOptionalAction, help="let the model reason first")
    parser.add_argument(
        "--drafts",
        type=whole(0, 32),
        default=0,
        metavar="N",
        help="tokens that the model's prediction block drafts at most, to be read in one pass (default: 0, none)",
    )
    blocks = parser.add_argument_group("block diffusion")
    blocks.add_argument("--decode", choices=["plain", "diffusion"], default="plain", help="(default: plain)")
    blocks.add_argument("--block", type=whole(1, 1024), help="tokens denoised together (default: the model's)")
    blocks.add_argument("--steps", type=whole(1, 1024), help="passes over a block, at most (default: the model's)")
    blocks.add_argument("--threshold", type=number(0, 1), help="what is surer is kept at once (default: the model's)")
    blocks.add_argument("--lossless", action="store_true", default=None, help="keep what plain decoding would write")


def _chat(args: Arguments) -> Any:
    if args.json and not args.message:
        raise UsageError("--json needs a message: a conversation is not one document")
    of_blocks = given(args, "block", "steps", "threshold", "lossless")
    if of_blocks and args.decode == "plain":
        raise UsageError(f"{', '.join(f'--{name}' for name in of_blocks)} belong to --decode diffusion")
    if args.drafts and args.decode != "plain":
        raise UsageError(f"--drafts and --decode {args.decode} cannot be used together")
    from omni.cache import CacheFormat
    from omni.pipelines.chat import Chat, terminal
    from omni.tokenizers.image import open_image

    pictures = [{"type": "image", "image": open_image(file)} for file in args.image]
    try:
        cache = None if args.cache is None else CacheFormat.of(args.cache)
    except ValueError as error:
        raise UsageError(str(error)) from None
    chat = Chat(load(args), cache=cache)
    options = {
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "thinking": args.thinking,
        "seed": args.seed,
        "drafts": args.drafts,
        "decode": args.decode,
        **of_blocks,
    }
    messages = [{"role": "system", "content": args.system}] if args.system else []
    if not args.message:
        return terminal(chat, messages, pictures, **options)
    text = {"type": "text", "text": " ".join(args.message)}
    messages.append({"role": "user", "content": [*pictures, text]})
    reply = chat(messages, **options)
    say(args, reply.text)
    return {
        "text": reply.text,
        "reasoning": reply.reasoning,
        "finish_reason": reply.finish_reason,
        "tokens": reply.tokens,
        "seed": args.seed,
        **_took(reply.usage.denoising),
    }


def _took(denoising: Any) -> dict[str, Any]:
    """What a denoised answer took."""
    if denoising is None:
        return {}
    return {"passes": denoising.passes, "commits": denoising.commits, "tokens_per_pass": denoising.tokens_per_pass}


# -- train -------------------------------------------------------------------------------------------------


def _train_arguments(parser: Parser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="YAML file, such as assets/recipes/tiny.yaml")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="fields of the recipe to change")
    parser.add_argument("--preset", help="a section of the recipe's presets")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"), help="folder of the run (default: runs/tiny)")
    parser.add_argument("--init", type=Path, metavar="CKPT", help="start from another run's weights")
    parser.add_argument("--fresh", action="store_true", help="start over, even if the run can be resumed")


def _train(args: Arguments) -> Any:
    overrides = ({"seed": args.seed} if args.seed else {}) | assigned(args.overrides)
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
    say(args, str(folder))
    return {"model": str(folder)}


# -- eval, bench, info, convert ----------------------------------------------------------------------------


def _eval_arguments(parser: Parser) -> None:
    parser.add_argument("task", metavar="TASK", help="a task's name; `omni eval list` shows them")
    parser.add_argument("options", metavar="KEY=VALUE", nargs="*", help="the task's own, such as upsample=false")
    quantize_argument(parser)
    parser.add_argument("--low-inputs", action="store_true", help="round what enters packed weights too")
    parser.add_argument("--data", type=Path, metavar="FILE", help="own cases, one JSON object a line")
    parser.add_argument("--count", type=whole(1, 100_000), default=200, help="cases (default: 200)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the report with every case as JSON")


def _eval(args: Arguments) -> Any:
    from omni.evaluation import TASKS, evaluate, table

    if args.task == "list":
        for name, task in TASKS.items():
            say(args, f"{name:<12}{task.summary}")
            if task.options:
                say(args, f"{'':<12}options: {', '.join(task.options)}")
        return {name: task.summary for name, task in TASKS.items()}
    if args.task not in TASKS:
        raise UsageError(f"unknown task {args.task!r}; known: {', '.join(TASKS)}")
    if args.data is not None and not TASKS[args.task].takes_data:
        raise UsageError(f"the task {args.task!r} draws its own cases; it takes no --data")
    if args.data is None and TASKS[args.task].needs_data:
        raise UsageError(f"the task {args.task!r} has no cases of its own; it needs --data")
    options = assigned(args.options)
    try:
        TASKS[args.task].check(options)
    except ValueError as error:
        raise UsageError(f"{args.task}: {error}") from None
    if "device" in TASKS[args.task].options:
        options.setdefault("device", args.device)
    args.model = TASKS[args.task].model if args.model is None else args.model
    own = {"data": args.data, "journal": _journal(args)}
    model = load(args) if TASKS[args.task].needs_model else None
    report = evaluate(args.task, model, count=args.count, seed=args.seed, **own, **options)
    if args.out is not None:
        report.save(args.out)
        if own["journal"] is not None:
            own["journal"].unlink(missing_ok=True)
    say(args, table(report))
    return report.as_dict()


def _journal(args: Arguments) -> Path | None:
    """Where the answers to own cases are kept as they come, so that a long run goes on where it was stopped."""
    return args.out.with_name(f"{args.out.name}.part") if args.out is not None and args.data is not None else None


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
    say(args, table(described))
    return described.as_dict()


def _convert_arguments(parser: Parser) -> None:
    parser.add_argument("source", metavar="SRC", help="shipped name, local folder or hub id")
    parser.add_argument("target", metavar="DST", type=Path, help="folder to write")
    parser.add_argument("--family", help="layout to write: omni, nemotron_h ... (default: the source's own)")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16 ... (default: auto, the source's own)")
    parser.add_argument("--base", metavar="NAME", help="folder beside DST; only what differs from it is written")


def _convert(args: Arguments) -> Any:
    from omni.families.convert import convert

    folder = convert(args.source, args.target, family=args.family, dtype=args.dtype, base=args.base)
    say(args, str(folder))
    return {"model": str(folder)}


def _quantize_arguments(parser: Parser) -> None:
    parser.add_argument("source", metavar="MODEL", help="shipped name, local folder or hub id")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--format", choices=LOW, required=True, help="of the large matrices; mixed: NVFP4 and FP8")
    parser.add_argument("--four-over-six", action="store_true", help="NVFP4: blocks whose largest is 4 or 6, as suits")
    help = "samples that scales of activations are made from (default: 0, weights alone are quantised)"
    parser.add_argument("--calibrate", type=whole(0, 100_000), default=0, metavar="N", help=help)
    parser.add_argument("--texts", type=Path, metavar="FILE", help="read its lines instead of samples of our own")
    parser.add_argument("--keep", action="append", default=[], metavar="PATTERN", help="weights that stay as they are")
    parser.add_argument("--also", action="append", default=[], metavar="PATTERN", help="further linear layers")
    parser.add_argument("--kv-cache", action="store_true", help="have keys and values kept in FP8 too")
    parser.add_argument("--base", metavar="NAME", help="folder beside OUT; only what differs from it is written")


def _quantize(args: Arguments) -> Any:
    if args.four_over_six and args.format == "fp8":
        raise UsageError("--four-over-six belongs to NVFP4: --format nvfp4 or mixed")
    texts = _lines(args.texts) if args.texts is not None else []
    from omni.quantize import quantize

    options = {"six_or_four": args.four_over_six, "calibrate": args.calibrate, "texts": texts, "keep": args.keep}
    options |= {"also": args.also, "kv_cache": args.kv_cache, "base": args.base, "seed": args.seed}
    done = quantize(args.source, args.out, args.format, **options)
    formats = ", ".join(f"{count} in {name}" for name, count in done["formats"].items())
    before, after = done["bytes"]["before"], done["bytes"]["after"]
    say(args, f"{done['model']}: {formats}; {before / 1e6:.1f} MB became {after / 1e6:.1f} MB")
    return done


def _lines(path: Path) -> list[str]:
    """The lines of a text that say something."""
    try:
        found = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a readable text: {error}") from None
    if not found:
        raise UsageError(f"{path} holds no text")
    return found


COMMANDS = {
    "ask": Command("answer questions about a picture, PDF, video or recording", _ask_arguments, _ask),
    "chat": Command("talk in the terminal, or answer one message", _chat_arguments, _chat),
    "draw": DRAW,
    "animate": ANIMATE,
    "act": ACT,
    "world": WORLD,
    "train": Command("run or resume a training recipe", _train_arguments, _train),
    "eval": Command("measure a model on a task", _eval_arguments, _eval, None),
    "bench": BENCH,
    "info": Command("parts, parameters and memory of a model", _info_arguments, _info),
    "compress": COMPRESS,
    "convert": Command("write a checkpoint in another layout or type", _convert_arguments, _convert),
    "quantize": Command("write a checkpoint in eight or four bits", _quantize_arguments, _quantize),
}
