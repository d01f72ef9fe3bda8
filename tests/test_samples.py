"""The sample documents: they open, say what their questions expect, and are written by their script."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pypdfium2
import pytest
from PIL import Image

SAMPLES = Path(__file__).parent.parent / "assets" / "samples"
DOCUMENTS = json.loads((SAMPLES / "questions.json").read_text())["documents"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_samples", SAMPLES / "make_samples.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: f"{d['file']}-{d['page']}")
def test_answers_are_in_the_text(document):
    assert len({entry["question"] for entry in document["questions"]}) == len(document["questions"]) >= 7
    assert sum(entry["phrasing"] == "rephrased" for entry in document["questions"]) == 2
    for entry in document["questions"]:
        if entry["answer"] in ("yes", "no"):
            name = re.fullmatch(r"Is there a line for (.+)\?", entry["question"])[1]
            assert (name in document["text"]) == (entry["answer"] == "yes")
        else:
            assert document["text"].count(entry["answer"]) == 1


@pytest.mark.parametrize("page", [1, 2])
def test_pdf_shows_its_transcription(page):
    pdf = pypdfium2.PdfDocument(SAMPLES / "bike_workshop.pdf")
    assert len(pdf) == 2
    entry = next(d for d in DOCUMENTS if d["file"] == "bike_workshop.pdf" and d["page"] == page)
    shown = pdf[page - 1].get_textpage().get_text_range()
    assert shown.replace("\r\n", "\n") == entry["text"]
    pixels = np.asarray(pdf[page - 1].render(scale=1).to_pil().convert("L"))
    assert pixels.shape in ((176, 176), (160, 176))
    assert (pixels < 100).mean() > 0.02  # ink
    assert (pixels[:, :6] > 240).all()
    assert (pixels[:, -2:] > 240).all()  # nothing runs off the page


def test_photo_in_both_sizes():
    large, small = (Image.open(SAMPLES / name) for name in ("cafe_receipt.png", "cafe_receipt_small.png"))
    assert large.size == (480, 528)
    assert small.size == (160, 176)
    reduced = np.asarray(large.reduce(3), float)
    assert np.abs(reduced - np.asarray(small, float)).mean() < 4


def test_script_writes_the_same_files(script, tmp_path):
    script.main(tmp_path)
    assert (tmp_path / "bike_workshop.pdf").read_bytes() == (SAMPLES / "bike_workshop.pdf").read_bytes()
    for name in ("cafe_receipt.png", "cafe_receipt_small.png"):
        again, stored = (np.asarray(Image.open(folder / name), float) for folder in (tmp_path, SAMPLES))
        assert np.abs(again - stored).mean() < 1  # the font library may place an edge otherwise


def test_receipt_is_the_transcription(script):
    lines = [" ".join(line) for line in script.RECEIPT if line]
    assert "\n".join(lines) == next(d["text"] for d in DOCUMENTS if d["file"] == "cafe_receipt.png")
