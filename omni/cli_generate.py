"""The commands that generate: pictures, videos with sound, actions of robots, and worlds.

omni draw "prompt" -o x.png               omni act x.png "instruction" -o actions.json
omni animate x.png "prompt" -o x.mp4      omni world x.png --actions actions.json -o x.mp4
omni draw "instruction" --edit x.png -o y.png
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omni.cli_tools import Arguments, Command, Parser, UsageError, given, load, number, quantize_argument, say, whole

WALK = ("steps", "guidance", "interval", "shift", "eta", "solver", "grid")
MAX_JSON = 16 << 20  # bytes of a file of prompts or actions


def _walk_arguments(parser: Parser) -> None:
    walk = parser.add_argument_group("denoising (defaults: the model's)")
    walk.add_argument("--steps", type=whole(1, 1000), help="denoising steps")
    walk.add_argument("--guidance", type=number(0, 100), help="1 is none")
    walk.add_argument("--interval", type=_pair, metavar="LOW,HIGH", help="noise levels within which guidance acts")
    walk.add_argument("--shift", type=number(0.01, 1000), help="above 1 more steps near the noise")
    walk.add_argument("--eta", type=number(0, 1), help="noise renewed at each step; 0 is none")
    walk.add_argument("--solver", choices=("euler", "heun", "unipc"))
    walk.add_argument("--grid", choices=("plain", "native", "shifted", "karras"), help="of noise levels")
    walk.add_argument("--preview", type=Path, metavar="PNG", help="picture that is renewed after every step")


def _pair(text: str) -> tuple[float, float]:
    low, comma, high = text.partition(",")
    return (number(0, 1)(low), number(0, 1)(high)) if comma else number(2, 1)(text)


def _size_arguments(parser: Parser) -> None:
    parser.add_argument("--height", type=whole(1, 8192), help="pixels (default: the model's)")
    parser.add_argument("--width", type=whole(1, 8192), help="pixels (default: the model's)")
    parser.add_argument("--aspect", metavar="W:H", help="shape of the model's own sizes: 1:1, 4:3, 3:4, 16:9 or 9:16")
    parser.add_argument("--negative", metavar="PROMPT", help="what to keep away from; @FILE reads it")


def _target(args: Arguments, *suffixes: str) -> None:
    """--out must be of these kinds, in a folder that exists."""
    for path, kinds in ((args.out, suffixes), (args.preview, (".png",))):
        if path is None:
            continue
        if path.suffix.lower() not in kinds:
            raise UsageError(f"{path} cannot be written: its name must end in {' or '.join(kinds)}")
        if not path.parent.is_dir():
            raise UsageError(f"{path} cannot be written: the folder {path.parent} does not exist")


def _prompt(text: str) -> Any:
    """A prompt, or with @ the file that holds it: a text, or a structured prompt as a JSON object."""
    if not text.startswith("@"):
        return text
    found = _read(Path(text[1:]))
    try:
        plain = json.loads(found)
    except ValueError:
        return found.strip()
    return plain if isinstance(plain, dict) else found.strip()


def _read(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; the limit is {MAX_JSON}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text") from None


def _preview(args: Arguments, decode: Callable[[Any], list]) -> Callable[[int, Any], None] | None:
    """Renews the preview: what the pictures would be if each step were the last."""
    if args.preview is None:
        return None
    from omni.pipelines.images import contact_sheet, save_png

    return lambda step, latents: save_png(contact_sheet(decode(latents)), args.preview, {"step": step + 1})


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def _names(args: Arguments) -> list[Path]:
    return [args.out] if args.count == 1 else [_numbered(args.out, i + 1) for i in range(args.count)]


# -- draw --------------------------------------------------------------------------------------------------


def _draw_arguments(parser: Parser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="what to draw; @FILE reads it, also a structured one as JSON")
    quantize_argument(parser)
    parser.add_argument("-o", "--out", type=Path, default=Path("out.png"), help="PNG to write (default: out.png)")
    parser.add_argument("--edit", metavar="FILE", help="picture to change, as the prompt says")
    parser.add_argument(
        "--upsample",
        action=argparse.BooleanOptionalAction,
        help="let the model first say in words what the prompt leaves open (default: the model's)",
    )
    parser.add_argument("--count", type=whole(1, 64), default=1, help="pictures; one more file shows all of them")
    _size_arguments(parser)
    _walk_arguments(parser)


def _draw(args: Arguments) -> Any:
    _target(args, ".png")
    prompt = _prompt(args.prompt)
    sources = [] if args.edit is None else [_picture(args)]
    from omni.pipelines.images import ImageEdit, TextToImage, contact_sheet, save_png

    chosen = given(args, "upsample", "height", "width", "aspect", *WALK)
    if args.negative is not None:
        chosen["negative_prompt"] = _prompt(args.negative)
    painter = _open(args, ImageEdit if sources else TextToImage)
    preview = _preview(args, painter.decode)
    result = painter(*sources, prompt, seed=args.seed, count=args.count, on_step=preview, **chosen)
    about = {"model": args.model} | ({"edited": args.edit} if sources else {})
    drawn = []
    for name, picture, settings, text in zip(_names(args), result.images, result.settings, result.prompts, strict=True):
        settings = {**settings, **about, **({"upsampled": text} if settings.get("upsample") else {})}
        save_png(picture, name, settings)
        say(args, str(name))
        if "upsampled" in settings and not args.json:
            print(f"drawn as: {text}", file=sys.stderr)
        drawn.append({"file": str(name), **settings})
    if args.count > 1:
        save_png(contact_sheet(result.images), args.out, {"prompt": args.prompt, **about})
        say(args, str(args.out))
    return drawn


def _picture(args: Arguments) -> Any:
    """The picture to edit; a bad one is refused before a model is loaded."""
    if args.upsample is not None:
        raise UsageError("--upsample is of prompts for new pictures; it cannot be used with --edit")
    if _kind(args.edit) == "video":
        raise UsageError(f"{args.edit} is a video; --edit takes a picture")
    from omni.tokenizers.image import open_image

    return open_image(args.edit)


# -- animate -----------------------------------------------------------------------------------------------


def _animate_arguments(parser: Parser) -> None:
    parser.add_argument(
        "inputs",
        metavar="[FILE] PROMPT",
        nargs="+",
        help="a picture to begin with or a video to go on from, if any; what happens (@FILE reads it, also as JSON)",
    )
    quantize_argument(parser)
    parser.add_argument("-o", "--out", type=Path, default=Path("out.mp4"), help="mp4 to write (default: out.mp4)")
    parser.add_argument("--frames", type=whole(1, 100_000), help="(default: the model's)")
    parser.add_argument("--fps", type=number(0.1, 1000), help="frames a second (default: the model's)")
    parser.add_argument("--sound", action="store_true", help="make sound too")
    parser.add_argument("--count", type=whole(1, 64), default=1, help="videos")
    parser.add_argument("--tier", type=whole(1, 8192), help="of the published sizes: 256, 480, 704, 720 or 768")
    parser.add_argument("--keep", choices=("first", "last"), help="frames of a video to go on from (default: first)")
    parser.add_argument("--condition", type=_numbers, metavar="0,1", help="latent frames of it to keep (default: 0,1)")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="picture of nine frames of each video")
    transfer = parser.add_argument_group("transfer: follow what control videos show")
    transfer.add_argument(
        "--control",
        action="append",
        default=[],
        metavar="KIND[=FILE]",
        help="edge, blur, depth, seg or wsm; without a file, edges and blur are drawn from the video",
    )
    transfer.add_argument(
        "--weights",
        type=_weights,
        metavar="KIND=W,...",
        help="of several controls; only ratios count (default: 1 each)",
    )
    transfer.add_argument("--strength", help="of edges and blur: very_low, low, medium, high or very_high")
    transfer.add_argument("--control-guidance", type=number(0, 100), help="1 is none (default: the control's)")
    transfer.add_argument("--chunk-frames", type=whole(1, 100_000), help="made at once of a long video (default: 93)")
    _size_arguments(parser)
    _walk_arguments(parser)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(whole(0, 100_000)(part) for part in text.split(","))


def _weights(text: str) -> dict[str, float]:
    """Of controls: edge=0.7,depth=0.3"""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals or name in found:
            raise argparse.ArgumentTypeError(f"{part!r} is not KIND=WEIGHT of another control")
        found[name] = number(0, 1e6)(value)
    return found


def _animate(args: Arguments) -> Any:
    _target(args, ".mp4")
    if len(args.inputs) > 2:
        raise UsageError(f"{len(args.inputs)} inputs were given; a file and a prompt are wanted (quote the prompt)")
    source, prompt = (None, *args.inputs) if len(args.inputs) == 1 else args.inputs
    prompt = _prompt(prompt)
    kind = None if source is None else _kind(source)
    if args.control:
        return _transfer(args, source, kind, prompt)
    of_transfer = [name for name in _OF_TRANSFER if getattr(args, name) is not None]
    if of_transfer:
        raise UsageError(f"--{of_transfer[0].replace('_', '-')} goes with --control")
    names = ("frames", "fps", "height", "width", "aspect", "tier", *WALK)
    chosen = given(args, *names) | {"sound": args.sound or None, "count": args.count, "seed": args.seed}
    if args.negative is not None:
        chosen["negative_prompt"] = _prompt(args.negative)
    extra = given(args, "keep", "condition")
    if extra and kind != "video":
        raise UsageError("--keep and --condition are for videos to go on from")
    from omni.pipelines.animate import ImageToVideo, TextToVideo, VideoToVideo

    pipeline = _open(args, {None: TextToVideo, "document": ImageToVideo, "video": VideoToVideo}[kind])
    chosen["on_step"] = _preview(args, lambda latents: _stills(pipeline.still(latents)))
    result = pipeline(*([] if source is None else [source]), prompt, **chosen, **extra)
    made = []
    for i, name in enumerate(_names(args)):
        result.save(name, i)
        say(args, str(name))
        made.append({"file": str(name), "model": args.model, **result.settings[i]})
    if args.sheet is not None:
        _save_sheet(args, [_stills(frames) for frames in result.frames])
    return made


def _open(args: Arguments, pipeline: type) -> Any:
    """The pipeline of the model that was named, or of the shipped one that has learnt it."""
    args.model = pipeline.name_of(args.model)
    return pipeline(load(args))


_OF_TRANSFER = ("weights", "strength", "control_guidance", "chunk_frames")


def _transfer(args: Arguments, source: str | None, kind: str | None, prompt: Any) -> Any:
    """A video that follows controls: files, or what is drawn from the video that was given."""
    if kind == "document":
        raise UsageError(f"{source} is a picture; controls go with a video, or with a prompt alone")
    others = {"sound": args.sound, "keep": args.keep, "condition": args.condition, "count": args.count > 1}
    wrong = [f"--{name}" for name, value in others.items() if value]
    if wrong:
        raise UsageError(f"{', '.join(wrong)} cannot be used with --control")
    pairs = [item.partition("=") for item in args.control]
    controls = {name: file or True for name, _, file in pairs}
    if source is None and True in controls.values():
        raise UsageError("a control without a file is drawn from a video; give one before the prompt")
    without = [name for name in args.weights or () if name not in controls]
    if without:
        raise UsageError(f"--weights names {', '.join(without)}, for which there is no --control")
    names = ("frames", "fps", "height", "width", "aspect", "tier", *_OF_TRANSFER, *WALK)
    chosen = given(args, *names) | {"seed": args.seed}
    if args.negative is not None:
        chosen["negative_prompt"] = _prompt(args.negative)
    from omni.pipelines.transfer import Transfer

    pipeline = _open(args, Transfer)
    chosen["on_step"] = _preview(args, lambda latents: _stills(pipeline.still(latents)))
    result = pipeline(controls, prompt, video=source, **chosen)
    result.save(args.out)
    say(args, str(args.out))
    return [{"file": str(args.out), "model": args.model, **result.settings[0]}]


def _kind(source: str) -> str:
    from omni.tokenizers.kinds import kind_of

    kind = kind_of(source)  # a bad file is refused before a model is loaded
    if kind == "sound":
        raise UsageError(f"{source} is a recording; a picture or a video is wanted")
    return kind


def _stills(frames: Any, most: int = 9) -> list:
    """At most nine pictures of frames (T, H, W, 3), evenly in time."""
    import numpy as np
    from PIL import Image

    places = np.linspace(0, len(frames) - 1, min(most, len(frames))).round().astype(int)
    return [Image.fromarray(frames[i]) for i in places]


def _save_sheet(args: Arguments, rows: list[list]) -> None:
    from omni.pipelines.images import contact_sheet, save_png

    save_png(contact_sheet([p for row in rows for p in row], columns=len(rows[0])), args.sheet, {"model": args.model})
    say(args, str(args.sheet))


# -- act, world --------------------------------------------------------------------------------------------


def _robot_arguments(parser: Parser) -> None:
    parser.add_argument("--embodiment", default="pusht", help="whose actions they are (default: pusht)")
    parser.add_argument("--chunk", type=whole(1, 4096), help="actions of a call (default: the embodiment's)")
    parser.add_argument("--fps", type=number(0.1, 1000), help="actions a second (default: the embodiment's)")
    parser.add_argument("--tier", type=whole(1, 8192), help="of the published canvases: 256, 480, 704 or 720")
    parser.add_argument("--viewpoint", help="of the camera: ego_view, third_person_view, wrist_view or concat_view")
    parser.add_argument("--raw", action="store_true", help="actions are the model's own numbers")
    _walk_arguments(parser)


_ROBOT = ("chunk", "fps", "tier", "viewpoint", "raw")


def _act_arguments(parser: Parser) -> None:
    parser.add_argument("image", metavar="FILE", help="what the robot sees")
    parser.add_argument("prompt", metavar="INSTRUCTION", help="what it is to do")
    quantize_argument(parser)
    parser.add_argument("-o", "--out", type=Path, metavar="JSON", help="file for the actions (default: print them)")
    parser.add_argument("--state", type=_floats, metavar="A,B", help="the robot's state, where the policy wants it")
    parser.add_argument("--video", type=Path, metavar="MP4", help="write the video that the policy expects")
    parser.add_argument(
        "--no-foresee",
        action="store_true",
        help="actions alone, without that video: faster, with a model that has learnt it",
    )
    _robot_arguments(parser)


def _floats(text: str) -> list[float]:
    return [number(-1e9, 1e9)(part) for part in text.split(",")]


def _act(args: Arguments) -> Any:
    _target(args, ".json")
    if args.no_foresee and (args.video is not None or args.preview is not None):
        raise UsageError("--no-foresee makes no video that --video or --preview could show")
    from omni.tokenizers.image import open_image

    picture = open_image(args.image)
    import numpy as np

    from omni.pipelines.policy import Policy

    policy = Policy(load(args), args.embodiment, foresee=not args.no_foresee, **given(args, *_ROBOT))
    observation = {"image": np.asarray(picture), "prompt": args.prompt}
    if args.state is not None:
        observation["state"] = args.state
    walk = given(args, *WALK) | {"on_step": _preview(args, lambda latents: _stills(policy.still(latents)))}
    result = policy.predict(observation, seed=args.seed, **walk)
    if args.video is not None:
        result.save(args.video)
        say(args, str(args.video))
    return _answer_actions(args, result)


def _world_arguments(parser: Parser) -> None:
    parser.add_argument("source", metavar="FILE", help="a picture to act in, or a video whose actions are asked for")
    parser.add_argument("prompt", metavar="INSTRUCTION", nargs="?", default="", help="what is done")
    parser.add_argument("--actions", type=Path, metavar="JSON", help="list of actions: imagine where they lead")
    quantize_argument(parser)
    parser.add_argument("-o", "--out", type=Path, help="mp4, or JSON of actions (default: out.mp4; print actions)")
    _robot_arguments(parser)


def _world(args: Arguments) -> Any:
    """Forward dynamics of a picture and actions, inverse dynamics of a video."""
    kind = _kind(args.source)
    if (kind == "video") == (args.actions is not None):
        raise UsageError("give a picture with --actions to imagine a video, or a video alone to infer its actions")
    if kind == "document" and args.out is None:
        args.out = Path("out.mp4")
    _target(args, ".mp4" if kind == "document" else ".json")
    actions = None if args.actions is None else _read_actions(args.actions)
    from omni.pipelines.world import ForwardDynamics, InverseDynamics

    make = ForwardDynamics if actions is not None else InverseDynamics
    pipeline = make(load(args), args.embodiment, **given(args, *_ROBOT))
    walk = given(args, *WALK) | {"on_step": _preview(args, lambda latents: _stills(pipeline.still(latents)))}
    if actions is None:
        return _answer_actions(args, pipeline(args.source, args.prompt, seed=args.seed, **walk))
    result = pipeline(args.source, actions, args.prompt, seed=args.seed, **walk)
    result.save(args.out)
    say(args, str(args.out))
    return {"file": str(args.out), "model": args.model, **result.settings[0]}


def _read_actions(path: Path) -> list[list[float]]:
    """A JSON list of lists of numbers, or an object with one under "actions" or "action"."""
    try:
        plain = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} holds no actions: {error}") from None
    if isinstance(plain, dict):
        plain = plain.get("actions", plain.get("action"))
    rows = plain if isinstance(plain, list) and plain and all(isinstance(row, list) and row for row in plain) else None
    sound = rows and len({len(row) for row in rows}) == 1
    if not sound or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for row in rows for v in row):
        raise ValueError(f"{path} holds no actions: a list of lists of numbers, all of one length, is wanted")
    return rows


def _answer_actions(args: Arguments, result: Any) -> Any:
    rows = [[round(value, 6) for value in row] for row in result.actions[0].tolist()]
    answer = {"actions": rows, "model": args.model, **result.settings[0]}
    if args.out is None:
        for row in rows:
            say(args, " ".join(f"{value:.4f}" for value in row))
        return answer
    beside = args.out.with_name(f".{args.out.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(answer, ensure_ascii=False, indent=1) + "\n")
        beside.replace(args.out)
    finally:
        beside.unlink(missing_ok=True)
    say(args, str(args.out))
    return answer


DRAW = Command("draw pictures from a prompt, or edit one", _draw_arguments, _draw, None)
ANIMATE = Command("make a video of a prompt, from a picture or from another video", _animate_arguments, _animate, None)
ACT = Command("say what a robot does next", _act_arguments, _act, "tiny-act")
WORLD = Command("imagine where actions lead, or infer those of a video", _world_arguments, _world, "tiny-act")
