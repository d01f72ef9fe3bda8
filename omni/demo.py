"""``python -m omni.demo``: read documents, watch, listen, draw, animate, act, write, and show it all on one page.

Writes ``demo/index.html``: one file without any outside reference. What can be checked is checked: answers against
``assets/samples/questions.json`` and ``media.json``, pictures by the detector of the scene world. An hour of video is
drawn on the fly, written frame by frame, and watched.
"""

import argparse
import base64
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

import omni
from omni.assets import find_assets
from omni.data.clips import long_clip
from omni.data.scenes import CATEGORIES, check, sample_prompt
from omni.demo_motion import animations, check_worlds, rollouts
from omni.demo_text import writings
from omni.metrics import exact_match
from omni.model import Omni
from omni.pipelines.chat import Chat
from omni.pipelines.documents import DocumentQA
from omni.pipelines.images import TextToImage, contact_sheet
from omni.pipelines.sound import SoundQA
from omni.pipelines.video import VideoQA
from omni.tokenizers.image import open_document
from omni.tokenizers.kinds import kind_of
from omni.tokenizers.sound import open_sound
from omni.tokenizers.video import open_video
from omni.tokenizers.video_writer import write_video

SHOWN_PIXELS = 640  # longest side of a page as the reader of the demo sees it; the model sees its own rendering
PICTURES_PER_CATEGORY = 2
MAX_ANSWER = 64  # tokens of an answer or a reply
PROMPT_SEED = 11  # prompts of an evaluation seed: training never draws them
HOUR_SEED, HOUR_MINUTES, HOUR_FRAMES = 2, 60, 32
STRIP = 8  # frames of a video that the page shows
CONVERSATIONS = (
    ("Hello!", "Who are you?", "Thank you."),
    ("What is the capital of Japan?", "And what is the opposite of early?"),
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m omni.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="shipped name, local folder or hub id (default: tiny)")
    parser.add_argument("--student", default="tiny-4step", help="the same, of its student (default: tiny-4step)")
    parser.add_argument("--animator", default="tiny-animate", help="for videos (default: tiny-animate)")
    parser.add_argument("--actor", default="tiny-act", help="for robots (default: tiny-act)")
    parser.add_argument("--writer", default="tiny-text", help="for workings (default: tiny-text)")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write (default: demo)")
    args = parser.parse_args(argv)
    try:
        result = run(args.model, args.student, args.animator, args.actor, args.writer)
        page = write(result, args.out)
    except (ValueError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print(summary(result))
    print(f"open {page}")
    return 0


def run(name: str, student: str, animator: str, actor: str, writer: str) -> dict[str, Any]:
    """Everything that the page shows: of the model ``name``, of its ``student`` of few steps the pictures, of the
    ``animator`` the videos, of the ``actor`` the episodes and of the ``writer`` the workings."""
    start = time.perf_counter()
    _say(f"loading {name}")
    model, films, acts, writes = omni.load(name), omni.load(animator), omni.load(actor), omni.load(writer)
    if acts.actions is not None:
        check_worlds()  # before anything else is done
    result = {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "documents": list(_documents(model)),
        "media": [*_media(model), _hour(model)],
        "pictures": _pictures(model),
        "quick": _pictures(omni.load(student)),
        "animations": _made(animations, films, "animating pictures"),
        "robots": _made(rollouts, acts, "driving robots"),
        "writings": _made(writings, writes, "writing the same answers in every way"),
        "conversations": _conversations(model),
    }
    return {**result, "seconds": time.perf_counter() - start, "scores": _scores(result)}


def _documents(model: Omni) -> Iterator[dict[str, Any]]:
    """Each page of the samples with its questions, answers, marks and time."""
    reader = DocumentQA(model)
    folder = find_assets() / "samples"
    for sample in json.loads((folder / "questions.json").read_text())["documents"]:
        path, page = folder / sample["file"], sample["page"]
        _say(f"reading {path.name}, page {page}")
        asked = sample["questions"]
        with _timed() as took:
            answers = reader(path, [item["question"] for item in asked], page=page, max_new_tokens=MAX_ANSWER)
        marked = [
            {
                **item,
                "said": answer.text,
                "confidence": answer.confidence,
                "right": exact_match(answer.text, [item["answer"]]) == 1,
            }
            for item, answer in zip(asked, answers, strict=True)
        ]
        shown = open_document(path, longest=SHOWN_PIXELS)[page - 1]
        yield {
            "name": path.name,
            "page": page,
            "image": data_address(shown),
            "size": shown.size,
            "questions": marked,
            "seconds": took[0],
        }


def _media(model: Omni) -> Iterator[dict[str, Any]]:
    """A chart, a clip, a recording and a clip with sound, each with its questions."""
    folder = find_assets() / "samples"
    for sample in json.loads((folder / "media.json").read_text())["media"]:
        path = folder / sample["file"]
        _say(f"looking at {path.name}")
        kind, asked = kind_of(path), [item["question"] for item in sample["questions"]]
        with _timed() as took:
            if kind == "document":
                answers = DocumentQA(model)(path, asked, max_new_tokens=MAX_ANSWER)
                shown = open_document(path)[0]
            elif kind == "sound":
                answers = SoundQA(model)(path, asked, max_new_tokens=MAX_ANSWER)
                shown = waveform(open_sound(path).samples.numpy())
            else:
                hears = open_video(path).has_sound
                answers = VideoQA(model)(path, asked, max_new_tokens=MAX_ANSWER, sound=hears or None)
                shown = strip(path)
        yield _asked(path.name, shown, sample["questions"], answers, took[0])


def _hour(model: Omni) -> dict[str, Any]:
    """An hour of video, written and watched; a moment counts where it is named to the distance of two frames."""
    _say("writing an hour of video and watching it")
    film = long_clip(HOUR_SEED, HOUR_MINUTES, pairs=HOUR_FRAMES // 2)
    frames = (film.frame_at(i / film.fps) for i in range(round(film.seconds * film.fps)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hour.mp4"
        write_video(path, frames, film.fps)
        with _timed() as took:
            answers = VideoQA(model)(path, [q for q, _ in film.qa], MAX_ANSWER, max_frames=HOUR_FRAMES)
        shown = strip(path)
    asked = [{"question": question, "answer": answer} for question, answer in film.qa]
    near = 2 * film.seconds / HOUR_FRAMES
    name = f"{HOUR_MINUTES} minutes of video, {HOUR_FRAMES} frames looked at"
    return _asked(name, shown, asked, answers, took[0], near)


def _asked(
    name: str, shown: Image.Image, asked: Sequence[dict], answers: Sequence[Any], seconds: float, near: float = 0.0
) -> dict[str, Any]:
    """A section of the page in the form of a document's."""
    marked = [
        {**item, "phrasing": "usual", "said": a.text, "confidence": a.confidence, "right": _right(a.text, item, near)}
        for item, a in zip(asked, answers, strict=True)
    ]
    image = data_address(shown)
    return {"name": name, "image": image, "size": shown.size, "questions": marked, "seconds": seconds}


def _right(said: str, item: dict[str, str], near: float) -> bool:
    if near and item["question"].startswith("At what second"):
        try:
            return abs(float(said) - float(item["answer"])) <= near
        except ValueError:
            return False
    return exact_match(said, [item["answer"]]) == 1


def strip(path: Path) -> Image.Image:
    """A few frames of a video side by side."""
    video = open_video(path)
    indices = [round(i * (video.frame_count - 1) / (STRIP - 1)) for i in range(STRIP)]
    return contact_sheet([Image.fromarray(frame) for frame in video.read(indices)], columns=STRIP // 2)


def waveform(samples: np.ndarray, width: int = 640, height: int = 160) -> Image.Image:
    """The loudness of a recording (n,) over time."""
    blocks = np.array_split(np.abs(samples), width)
    peaks = np.array([block.max() if len(block) else 0.0 for block in blocks])
    rows = np.abs(np.arange(height)[:, None] - height / 2)
    inside = rows <= np.maximum(peaks / max(peaks.max(), 1e-6) * height * 0.46, 0.5)
    return Image.fromarray(np.where(inside[..., None], np.uint8([40, 90, 170]), np.uint8([250, 249, 246])))


def _pictures(model: Omni) -> dict[str, Any]:
    """A few prompts of every category, drawn together, each judged by the detector."""
    asked = [
        (category, *sample_prompt(PROMPT_SEED + i, category))
        for category in CATEGORIES
        for i in range(PICTURES_PER_CATEGORY)
    ]
    _say(f"drawing {len(asked)} pictures")
    with _timed() as took:
        drawn = TextToImage(model)([prompt for _, prompt, _ in asked], seed=0)
    items = [
        {
            "category": category.replace("_", " "),
            "prompt": prompt,
            "drawn": text,
            "image": data_address(picture),
            "right": check(np.asarray(picture.convert("RGB")), request),
        }
        for (category, prompt, request), text, picture in zip(asked, drawn.prompts, drawn.images, strict=True)
    ]
    return {"items": items, "seconds": took[0]}


def _made(make: Callable[[Omni], list], model: Omni, what: str) -> dict[str, Any]:
    _say(what)
    with _timed() as took:
        items = make(model)
    return {"items": items, "seconds": took[0]}


def _conversations(model: Omni) -> dict[str, Any]:
    """Short conversations; every reply reads what was said before."""
    chat = Chat(model)
    _say(f"talking, {len(CONVERSATIONS)} conversations")
    talks = []
    with _timed() as took:
        for said in CONVERSATIONS:
            messages: list[dict[str, str]] = []
            for text in said:
                messages.append({"role": "user", "content": text})
                reply = chat(messages, max_new_tokens=MAX_ANSWER, temperature=0.0)
                messages.append({"role": "assistant", "content": reply.text})
            talks.append(messages)
    return {"items": talks, "seconds": took[0]}


def _scores(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Right and asked, for the line at the top of the page."""
    questions = [q for document in result["documents"] for q in document["questions"]]
    watched = [q for item in result["media"] for q in item["questions"]]
    kinds = {
        "answers right": questions,
        "about charts, clips and sounds right": watched,
        "pictures right": result["pictures"]["items"],
        "in few steps": result["quick"]["items"],
        "videos right": result["animations"]["items"],
        "robots at their goal": result["robots"]["items"],
        "problems solved": [item for way in result["writings"]["items"] for item in way["items"]],
    }
    return [{"what": k, "right": sum(i["right"] for i in v), "of": len(v)} for k, v in kinds.items() if v]


def summary(result: dict[str, Any]) -> str:
    scores = ", ".join(f"{s['right']}/{s['of']} {s['what']}" for s in result["scores"])
    return f"{scores}, {result['seconds']:.0f} s"


def write(result: dict[str, Any], folder: Path) -> Path:
    """``folder/index.html``, written beside and then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "index.html"
    beside = folder / "index.html.part"
    beside.write_text(render(result), encoding="utf-8")
    os.replace(beside, target)
    return target


def render(result: dict[str, Any]) -> str:
    template = (find_assets() / "templates" / "demo.html").read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined).from_string(template).render(result)


def data_address(picture: Image.Image) -> str:
    """The picture inside the page, as PNG."""
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


@contextmanager
def _timed() -> Iterator[list[float]]:
    """A list that holds the block's seconds once it has ended."""
    took: list[float] = []
    start = time.perf_counter()
    yield took
    took.append(time.perf_counter() - start)


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
