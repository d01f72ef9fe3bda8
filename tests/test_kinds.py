"""What a file is, told before it is decoded: every kind of sample, and one clear error for what is none."""

import base64
import io
import shutil
from pathlib import Path

import pytest
from PIL import Image

from omni.tokenizers.kinds import kind_of

SAMPLES = Path(__file__).parent.parent / "assets" / "samples"
KINDS = {
    "bike_workshop.pdf": "document",
    "cafe_receipt.png": "document",
    "cafe_receipt_small.png": "document",
    "chart.png": "document",
    "shapes.mp4": "video",
    "film.mp4": "video",  # with sound
    "digits.flac": "sound",
}
NEITHER = "is neither a picture (PNG, JPEG, WEBP, GIF, BMP, TIFF), a PDF, a video nor a recording, or it is damaged"


def picture(form: str, frames: int = 1) -> bytes:
    file = io.BytesIO()
    pictures = [Image.new("RGB", (16, 12), color) for color in ("red", "green", "blue")[:frames]]
    more = {"save_all": True, "append_images": pictures[1:], "duration": 100} if frames > 1 else {}
    pictures[0].save(file, form, **more)
    return file.getvalue()


def refusal(source) -> str:
    with pytest.raises(ValueError) as caught:
        kind_of(source)
    return str(caught.value)


def test_every_sample_has_its_kind():
    media = {p.name for p in SAMPLES.iterdir() if p.suffix not in (".py", ".json") and p.is_file()}
    assert media == KINDS.keys()


@pytest.mark.parametrize("name", KINDS)
def test_samples_are_what_they_are_as_path_text_bytes_and_address(name):
    path = SAMPLES / name
    data = path.read_bytes()
    address = f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"
    for source in (path, str(path), data, bytearray(data), memoryview(data), address):
        assert kind_of(source) == KINDS[name]


@pytest.mark.parametrize("name", ["chart.png", "bike_workshop.pdf", "shapes.mp4", "film.mp4", "digits.flac"])
def test_the_name_says_nothing(tmp_path, name):
    for other in ("a.png", "a.pdf", "a.mp4", "a.wav", "a.txt", "a"):
        assert kind_of(shutil.copy(SAMPLES / name, tmp_path / other)) == KINDS[name]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_pictures_of_all_formats_are_documents(form):
    assert kind_of(picture(form)) == "document"


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_animated_pictures_are_documents(tmp_path, form):
    path = tmp_path / "moving"
    path.write_bytes(picture(form, frames=3))
    assert Image.open(path).n_frames == 3
    assert kind_of(path) == kind_of(path.read_bytes()) == "document"


def test_a_pdf_may_begin_with_other_bytes():
    data = (SAMPLES / "bike_workshop.pdf").read_bytes()
    assert kind_of(b"\n" * 1_000 + data) == "document"
    assert NEITHER in refusal(b"\n" * 1_024 + data)


def test_a_missing_file_is_named(tmp_path):
    assert refusal(tmp_path / "none.mp4") == f"{tmp_path / 'none.mp4'} does not exist"


def test_an_empty_file_is_named(tmp_path):
    path = tmp_path / "empty.png"
    path.touch()
    assert refusal(path) == f"{path} is empty"
    assert refusal(b"") == "the data is empty"


def test_a_folder_is_named(tmp_path):
    assert refusal(tmp_path) == f"{tmp_path} is not a file"


@pytest.mark.parametrize(
    "data",
    [
        b"hello, these are words\n" * 100,
        b"\0" * 4_000,
        b"ffconcat version 1.0\nfile 'shapes.mp4'\n",
        (SAMPLES / "shapes.mp4").read_bytes()[:40],
        (SAMPLES / "digits.flac").read_bytes()[:20],
    ],
    ids=["text", "zeros", "concatenation", "start of a video", "start of a recording"],
)
def test_what_is_none_of_them_is_refused(tmp_path, data):
    path = tmp_path / "some.mp4"
    path.write_bytes(data)
    assert refusal(path) == f"{path} {NEITHER}"
    assert refusal(data) == f"the data {NEITHER}"


@pytest.mark.parametrize("suffix", ["m3u8", "mp4"])
def test_a_playlist_does_not_open_the_file_it_names(tmp_path, suffix):
    film = shutil.copy(SAMPLES / "film.mp4", tmp_path / "film.mp4")
    assert kind_of(film) == "video"
    path = tmp_path / f"list.{suffix}"
    for named in ("film.mp4", film, f"file://{film}"):
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{named}\n#EXT-X-ENDLIST\n")
        assert refusal(path) == f"{path} {NEITHER}"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (7, "a int is not a medium, a path or bytes"),
        (None, "a NoneType is not a medium, a path or bytes"),
        ("https://example.org/a.mp4", "https://example.org/a.mp4 is an address; only local files"),
        ("data:video/mp4,abc", "a data: address must be base64"),
        ("data:video/mp4;base64,!!", "the data: address is not valid base64"),
        ("a\0b", "cannot be read|does not exist"),
        ("x" * 5_000, "cannot be read: File name too long"),
    ],
)
def test_sources_that_are_none_are_refused(source, message):
    with pytest.raises(ValueError, match=message) as caught:
        kind_of(source)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250
