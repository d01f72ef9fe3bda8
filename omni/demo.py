"""``python -m omni.demo``: read the sample documents, draw, chat, and show it all on one page.

Writes ``demo/index.html``: one file without any outside reference. What can be checked is checked: answers against
``assets/samples/questions.json``, pictures by the detector of the scene world.
"""

import argparse
import base64
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

import omni
from omni.assets import find_assets
from omni.data.scenes import CATEGORIES, check, sample_prompt
from omni.metrics import exact_match
from omni.model import Omni
from omni.pipelines.chat import Chat
from omni.pipelines.documents import DocumentQA
from omni.pipelines.images import TextToImage
from omni.tokenizers.image import open_document

SHOWN_PIXELS = 640  # longest side of a page as the reader of the demo sees it; the model sees its own rendering
PICTURES_PER_CATEGORY = 2
MAX_ANSWER = 64  # tokens of an answer or a reply
PROMPT_SEED = 11  # prompts of an evaluation seed: training never draws them
CONVERSATIONS = (
    ("Hello!", "Who are you?", "Thank you."),
    ("What is the capital of Japan?", "And what is the opposite of early?"),
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m omni.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="shipped name, local folder or hub id (default: tiny)")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write (default: demo)")
    args = parser.parse_args(argv)
    try:
        result = run(args.model)
        page = write(result, args.out)
    except (ValueError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print(summary(result))
    print(f"open {page}")
    return 0


def run(name: str) -> dict[str, Any]:
    """Everything that the page shows."""
    start = time.perf_counter()
    _say(f"loading {name}")
    model = omni.load(name)
    result = {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "documents": list(_documents(model)),
        "pictures": _pictures(model),
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
    kinds = {
        "answers right": questions,
        "pictures right": result["pictures"]["items"],
    }
    return [{"what": k, "right": sum(i["right"] for i in v), "of": len(v)} for k, v in kinds.items()]


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
