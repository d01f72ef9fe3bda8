"""Reading pictures and PDFs: every kind of good file, and the catalogue of bad ones."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from omni.tokenizers import files
from omni.tokenizers.image import ImageError, fit, open_document, open_image, open_pdf

RED, BLUE = (200, 30, 30), (20, 40, 220)


def halves(mode: str = "RGB", size: tuple[int, int] = (40, 20)) -> Image.Image:
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", size, RED)
    picture.paste(BLUE, (size[0] // 2, 0, *size))
    return picture.quantize() if mode == "P" else picture.convert(mode)


def encoded(picture: Image.Image, format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, format, **options)
    return out.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few dozen bytes whose header claims a size that its data does not have."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 16))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def pdf(*pages: tuple[float, float], extra: bytes = b"") -> bytes:
    """A PDF whose pages (width, height in points) each hold a black square of 36 points at the lower left."""
    stream = b"0 0 0 rg 0 0 36 36 re f"
    kids = b" ".join(b"%d 0 R" % (4 + i) for i in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(pages)),
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
    ]
    for width, height in pages:
        box = f"[0 0 {width} {height}]".encode()
        objects.append(b"<< /Type /Page /Parent 2 0 R /MediaBox %s /Contents 3 0 R >>" % box)
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table)
    return out + b"trailer << /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF" % (
        len(objects) + 1,
        extra,
        start,
    )


def encrypted_pdf() -> bytes:
    owner = b"<" + b"41" * 32 + b">"
    crypt = b"/Encrypt << /Filter /Standard /V 1 /R 2 /O %s /U %s /P -4 >> /ID [<00> <00>]" % (owner, owner)
    return pdf((72, 72), extra=crypt)


def colours(picture: Image.Image) -> tuple[tuple, tuple]:
    return picture.getpixel((2, picture.height // 2)), picture.getpixel((picture.width - 3, picture.height // 2))


# -- good pictures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "mode", "tolerance"),
    [
        ("PNG", "RGB", 0),
        ("PNG", "P", 0),
        ("PNG", "RGBA", 0),
        ("BMP", "RGB", 0),
        ("GIF", "P", 0),
        ("TIFF", "RGB", 0),
        ("TIFF", "CMYK", 3),
        ("JPEG", "RGB", 12),
        ("JPEG", "CMYK", 12),
        ("WEBP", "RGB", 12),
    ],
)
def test_every_format_keeps_its_colours(tmp_path, format, mode, tolerance):
    path = tmp_path / "x"
    path.write_bytes(encoded(halves(mode), format))
    for source in (path, str(path), path.read_bytes()):
        picture = open_image(source)
        assert picture.mode == "RGB"
        assert picture.size == (40, 20)
        for seen, meant in zip(colours(picture), (RED, BLUE), strict=True):
            assert max(abs(a - b) for a, b in zip(seen, meant, strict=True)) <= tolerance


def test_sixteen_bit_grey_keeps_its_range():
    deep = np.tile(np.linspace(0, 65535, 256, dtype=np.uint16), (4, 1))
    grey = np.asarray(open_image(encoded(Image.fromarray(deep))))[0, :, 0]
    assert grey[0] == 0
    assert grey[-1] == 255
    assert (np.diff(grey.astype(int)) == 1).all()


def test_transparency_falls_on_white():
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    palette = Image.new("P", (8, 8), 0)
    assert open_image(clear).getpixel((3, 3)) == (255, 255, 255)
    assert open_image(half).getpixel((3, 3)) == (127, 127, 127)
    assert open_image(encoded(palette, transparency=0)).getpixel((3, 3)) == (255, 255, 255)


def test_exif_rotation_is_applied_and_broken_exif_is_not_an_error():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated 90 degrees clockwise
    turned = open_image(encoded(halves(), "JPEG", exif=exif))
    assert turned.size == (20, 40)
    assert turned.getpixel((10, 2))[0] > 150  # red, the left half, is on top
    broken = open_image(encoded(halves(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    assert broken.size == (40, 20)


def test_arrays_tensors_and_data_addresses():
    array = np.asarray(halves())
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1) / 255
    address = "data:image/png;base64," + base64.b64encode(encoded(halves())).decode()
    for source in (array, tensor, address, halves()):
        assert np.array_equal(np.asarray(open_image(source)), array)
    assert open_image(array[..., 0]).getpixel((2, 2)) == (200, 200, 200)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (6, 6), colour) for colour in (RED, BLUE)]
    animated = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(animated).getpixel((3, 3)) == RED


# -- bad pictures ------------------------------------------------------------------------------------------

BAD = {
    "empty": (b"", "is empty"),
    "text": (b"hello, this is no picture", "is not a picture"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a picture"),
    "other format": (b"P6 2 2 255 " + bytes(12), "is not a picture"),
    "header only": (encoded(halves())[:20], "damaged|not a picture"),
    "truncated png": (encoded(halves(size=(400, 400)))[:300], "damaged"),
    "truncated jpeg": (encoded(halves(size=(400, 400)), "JPEG")[:900], "damaged"),
    "bomb": (png_claiming(20_000, 20_000), "limit"),
    "large": (png_claiming(10_000, 9_000), "10000 x 9000 pixels; the limit is 64 million"),
    "long": (png_claiming(70_000, 1), "65535"),
    "zero": (png_claiming(0, 5), "not a picture|pixels"),
    "lying": (png_claiming(300, 300), "damaged"),
    "float tiff": (encoded(Image.new("F", (4, 4)), "TIFF"), "32-bit"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_is_one_clear_line(tmp_path, name):
    data, message = BAD[name]
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    for source, named in ((path, "bad.png"), (data, "the data")):
        with pytest.raises(ImageError, match=message) as caught:
            open_image(source)
        assert "\n" not in str(caught.value)
        assert named in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/file.png", "no/such/file.png does not exist"),
        (".", "is not a file"),
        ("/dev/zero", "is not a file"),
        ("a\0b", "cannot be read|does not exist"),
        ("x" * 5000, "cannot be read"),
        ("https://example.com/x.png", "only local files"),
        ("file:///etc/hostname", "only local files"),
        ("data:image/png,plain", "base64"),
        ("data:image/png;base64,!!!", "not valid base64"),
        ("data:image/png;base64,", "is empty"),
        (17, "a int is not a picture"),
        (np.zeros((2, 3, 5), np.uint8), "is not a picture"),
        (np.zeros((4, 4)), "float64"),
        (np.zeros((0, 4), np.uint8), "is not a picture"),
        (torch.zeros(4, 4, 3), "is not a picture"),
        (torch.full((3, 4, 4), 2.0), "outside 0..1"),
        (torch.full((3, 4, 4), float("nan")), "outside 0..1"),
    ],
)
def test_a_bad_source_is_one_clear_line(source, message):
    with pytest.raises(ImageError, match=message) as caught:
        open_image(source)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_file_over_the_byte_limit_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "MAX_BYTES", 1 << 20)
    path = tmp_path / "big.png"
    with path.open("wb") as file:
        file.truncate((1 << 20) + 1)
    with pytest.raises(ImageError, match="limit of 1 MiB"):
        open_image(path)


def test_size_is_checked_before_pixels_are_decoded(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded before the check"))
    with pytest.raises(ImageError, match="64 million"):
        open_image(png_claiming(9_000, 9_000))


# -- fit ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(40, 20), (33, 97), (1, 1), (1, 4000), (640, 480), (65, 64)])
@pytest.mark.parametrize(("max_side", "max_pixels"), [(None, None), (128, None), (None, 4096), (100, 9000)])
def test_fit_obeys_its_limits_and_keeps_the_aspect(size, max_side, max_pixels):
    tensor = fit(halves(size=size), 16, max_side, max_pixels)
    c, height, width = tensor.shape
    assert c == 3
    assert tensor.dtype == torch.float32
    assert height % 16 == width % 16 == 0
    assert 0 <= tensor.min() <= tensor.max() <= 1
    assert max_side is None or max(height, width) <= max_side
    assert max_pixels is None or height * width <= max_pixels
    if max_side is None and max_pixels is None:
        assert (width - size[0], height - size[1]) < (16, 16)


def test_fit_leaves_a_fitting_picture_alone_and_pads_with_the_border():
    pixels = np.full((20, 40, 3), 240, np.uint8)
    pixels[8:12, 10:30] = 0
    tensor = (fit(Image.fromarray(pixels), 32) * 255).round().byte().permute(1, 2, 0).numpy()
    assert tensor.shape == (32, 64, 3)
    assert np.array_equal(tensor[:20, :40], pixels)
    assert (tensor[20:] == 240).all()
    assert (tensor[:, 40:] == 240).all()


def test_fit_averages_when_it_shrinks_and_enlarges_when_asked():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    small = fit(Image.fromarray(stripes), 16, max_side=64)
    assert (small[:, 8:-8, 8:-8] - 0.5).abs().max() < 0.06  # without antialiasing it would be 0 or 1
    assert fit(halves(), 16, max_side=128, enlarge=True).shape == (3, 64, 128)
    assert fit(halves(), 16, max_side=128).shape == (3, 32, 48)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multiple": 0}, "multiple is 0"),
        ({"multiple": 32, "max_side": 31}, "max_side is 31"),
        ({"multiple": 32, "max_pixels": 1000}, "max_pixels is 1000"),
        ({"multiple": 32, "enlarge": True}, "max_side"),
    ],
)
def test_fit_refuses_impossible_limits(options, message):
    with pytest.raises(ValueError, match=message):
        fit(halves(), **options)


# -- PDF ---------------------------------------------------------------------------------------------------


def test_pdf_pages_are_rendered_at_the_size_asked_for(tmp_path):
    path = tmp_path / "two.pdf"
    path.write_bytes(pdf((72, 144), (144, 72)))
    pages = open_pdf(path, longest=160)
    assert len(pages) == 2
    assert [page.size for page in pages] == [(80, 160), (160, 80)]
    assert pages[0].mode == "RGB"
    assert pages[-1].getpixel((10, 70)) == (0, 0, 0)  # the square, lower left
    assert pages[-1].getpixel((150, 10)) == (255, 255, 255)
    with pytest.raises(IndexError, match="2 pages"):
        pages[2]
    assert open_pdf(pdf((30, 15)), longest=1000)[0].size == (120, 60)  # a small page is not blown up


def test_only_the_page_asked_for_is_rendered(monkeypatch):
    pages = open_pdf(pdf(*[(72, 72)] * 5), longest=32)
    rendered = []
    monkeypatch.setattr(type(pages), "_render", lambda self, page, number: rendered.append(number))
    pages[3]
    assert rendered == [4]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"%PDF-1.4\nnothing behind it", "not a readable PDF"),
        (pdf((72, 72))[:60], "not a readable PDF"),
        (b"plain text", "not a readable PDF"),
        (encrypted_pdf(), "is encrypted"),
        (pdf(*[(72, 72)] * 201), "201 pages; the limit is 200"),
    ],
    ids=["empty", "mark only", "truncated", "text", "encrypted", "201 pages"],
)
def test_a_bad_pdf_is_one_clear_line(data, message):
    with pytest.raises(ImageError, match=message) as caught:
        open_pdf(data)
    assert "\n" not in str(caught.value)


def test_an_absurd_page_size_is_refused_before_it_is_rendered(monkeypatch):
    monkeypatch.setattr("pypdfium2.PdfPage.render", lambda *a, **k: pytest.fail("rendered before the check"))
    pages = open_pdf(pdf((72, 72), (1_000_000, 72)))
    with pytest.raises(ImageError, match=r"page 2 of the data measures 1e\+06 x 72 points"):
        pages[1]
    with pytest.raises(ValueError, match="longest is 100000"):
        open_pdf(pdf((72, 72)), longest=100_000)


def test_open_document_takes_pdf_picture_and_list(tmp_path):
    misnamed = tmp_path / "scan.png"  # content counts, not the name
    misnamed.write_bytes(pdf((72, 72), (72, 72)))
    assert len(open_document(misnamed, longest=64)) == 2
    assert [page.size for page in open_document(encoded(halves()))] == [(40, 20)]
    assert len(open_document([halves(), encoded(halves())])) == 2
    with pytest.raises(ImageError, match="0 pages"):
        open_document([])
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"%PDF-1.7 broken")
    with pytest.raises(ImageError, match=r"broken\.pdf is not a readable PDF"):
        open_document(broken)
