"""Lay out the sample documents: a PDF of two small pages and a photo of a till receipt on a wooden table.

    python assets/samples/make_samples.py [folder]

Every line is placed by hand; nothing here is shared with the generator of training documents. The PDF is
written with plain page operators in the standard fonts, 12 to 14 points high on a page of 176 points, so that
a page drawn at one pixel a point is as large as the small model reads. The photo is stored at three times
that size and, reduced, at it. The same run always writes the same files.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

HELVETICA, BOLD, TIMES, TIMES_BOLD, COURIER = "F1", "F2", "F3", "F4", "F5"
BASE_FONTS = {
    HELVETICA: "Helvetica",
    BOLD: "Helvetica-Bold",
    TIMES: "Times-Roman",
    TIMES_BOLD: "Times-Bold",
    COURIER: "Courier",
}

INVOICE = (  # (font, size, x, baseline from the bottom, text) in points, on 176 x 176
    (BOLD, 13, 10, 159, "Spoke & Chain Bikes"),
    (HELVETICA, 12, 10, 140, "Invoice No: 4821-B"),
    (HELVETICA, 12, 10, 125, "Date: 14 May 2026"),
    (HELVETICA, 12, 10, 110, "To: Marta Lindqvist"),
    (HELVETICA, 12, 10, 88, "Brake pads"),
    (HELVETICA, 12, 136, 88, "18.50"),
    (HELVETICA, 12, 10, 73, "Chain"),
    (HELVETICA, 12, 136, 73, "24.90"),
    (HELVETICA, 12, 10, 58, "Bell"),
    (HELVETICA, 12, 142.7, 58, "9.75"),
    (BOLD, 12, 10, 37, "Total"),
    (BOLD, 12, 136, 37, "53.15"),
    (HELVETICA, 12, 10, 17, "Pay by: 28 May 2026"),
)
INVOICE_RULES = ((10, 103.5, 166), (10, 52, 166))  # (x from, y, x to)
DELIVERY = (  # on 176 x 160
    (TIMES_BOLD, 14, 46, 141, "Delivery note"),
    (COURIER, 12, 10, 122, "Parcel: HB-7042"),
    (COURIER, 12, 10, 107, "Weight: 6.4 kg"),
    (TIMES, 13, 10, 86, "Please bring it to Marta"),
    (TIMES, 13, 10, 71, "Lindqvist, 12 Harbour Lane,"),
    (TIMES, 13, 10, 56, "on 17 May at 10:30. If no one"),
    (TIMES, 13, 10, 41, "is in, call 0171 448 2093."),
    (TIMES, 13, 104, 17, "Tom Brandt"),
)
DELIVERY_RULES = ((46, 137, 127),)

RECEIPT = (  # (left text, right text) or one centred text; None is a dashed rule
    ("LINDEN STREET CAFE",),
    ("Tel 555-0147",),
    ("2026-03-09", "08:42"),
    None,
    ("Oat latte", "4.20"),
    ("Croissant", "2.80"),
    ("Orange juice", "3.60"),
    None,
    ("TOTAL", "10.60"),
    ("Cash", "20.00"),
    ("Change", "9.40"),
    ("Served by Ines",),
)
ZOOM = 3
FRAME = (160, 176)  # width and height of the small photo
CORNERS = (
    (11.0, 3.5),
    (152.5, 8.0),
    (149.0, 172.5),
    (5.5, 168.5),
)  # of the receipt in the small photo, clockwise


def page_stream(lines: tuple, rules: tuple) -> bytes:
    """Page operators that show each line at its place and stroke the rules."""
    parts = ["0.6 w 0.25 G"]
    parts += [f"{x0} {y} m {x1} {y} l S" for x0, y, x1 in rules]
    for font, size, x, y, text in lines:
        escaped = text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
        parts.append(f"BT /{font} {size} Tf {x} {y} Td ({escaped}) Tj ET")
    return "\n".join(parts).encode("ascii")


def write_pdf(path: Path, pages: tuple) -> None:
    """A PDF 1.4 file of ``pages``: (width, height, lines, rules) in points."""
    fonts = " ".join(f"/{key} {3 + i} 0 R" for i, key in enumerate(BASE_FONTS))
    first = 3 + len(BASE_FONTS)
    kids = " ".join(f"{first + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
    ]
    objects += [
        f"<< /Type /Font /Subtype /Type1 /BaseFont /{name} /Encoding /WinAnsiEncoding >>".encode()
        for name in BASE_FONTS.values()
    ]
    for i, (width, height, lines, rules) in enumerate(pages):
        stream = page_stream(lines, rules)
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {width} {height}] "
            f"/Resources << /Font << {fonts} >> >> /Contents {first + 2 * i + 1} 0 R >>".encode()
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n".encode() + stream + b"\nendstream")
    body, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n".encode() + content + b"\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    trailer = f"trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF\n"
    path.write_bytes(body + f"xref\n0 {size}\n0000000000 65535 f \n{table}{trailer}".encode())


def draw_receipt(width: int, height: int, unit: float) -> Image.Image:
    """The flat receipt, black thermal print on white, ``unit`` pixels to a pixel of the small photo."""
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    font = ImageFont.truetype(str(fonts / "DejaVuSansMono.ttf"), round(11.4 * unit))
    image = Image.new("RGB", (width, height), (252, 252, 248))
    draw = ImageDraw.Draw(image)
    left, right, y = 6 * unit, width - 6 * unit, 15 * unit
    for line in RECEIPT:
        if line is None:
            for x in np.arange(left, right, 5 * unit):
                draw.rectangle((x, y - 7 * unit, x + 2.5 * unit, y - 6.2 * unit), fill=(60, 60, 66))
            y += 6 * unit
            continue
        if len(line) == 1:
            draw.text((width / 2, y), line[0], font=font, fill=(38, 38, 44), anchor="ms")
        else:
            draw.text((left, y), line[0], font=font, fill=(38, 38, 44), anchor="ls")
            draw.text((right, y), line[1], font=font, fill=(38, 38, 44), anchor="rs")
        y += 14.3 * unit
    return image


def draw_table(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Planks of brown wood with a grain along them."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    waves = np.cumsum(rng.normal(0, 1, (height, 1)), 0) * 0.6
    grain = np.sin((y + 6 * np.sin(x / 90) + waves) / 2.3) + 0.6 * np.sin((y + 9 * np.sin(x / 140 + 1)) / 6.1)
    seams = np.where(y % 176 < 3, -45, 0)
    shade = grain * 9 + rng.normal(0, 4, (height, width)) + seams
    wood = np.array([132.0, 90.0, 55.0]) + shade[..., None] * np.array([1.0, 0.8, 0.6])
    return Image.fromarray(np.clip(wood, 0, 255).astype(np.uint8))


def homography(source: tuple, target: tuple) -> list[float]:
    """The eight coefficients with which Pillow finds the point of ``source`` for one of ``target``."""
    rows, values = [], []
    for (x, y), (u, v) in zip(target, source, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.linalg.solve(np.array(rows, float), np.array(values, float)).tolist()


def make_photo() -> Image.Image:
    """The receipt on the table, ``ZOOM`` times ``FRAME``: at an angle, lit from one side, a little grainy."""
    rng = np.random.default_rng(20260309)
    size = (FRAME[0] * ZOOM, FRAME[1] * ZOOM)
    flat = draw_receipt(144 * ZOOM * 2, 166 * ZOOM * 2, ZOOM * 2)
    corners = tuple((x * ZOOM, y * ZOOM) for x, y in CORNERS)
    sheet = ((0, 0), (flat.width, 0), flat.size, (0, flat.height))
    large = tuple((x * 2, y * 2) for x, y in corners)
    double = (size[0] * 2, size[1] * 2)
    paper = flat.transform(double, Image.Transform.PERSPECTIVE, homography(sheet, large), Image.Resampling.BICUBIC)
    paper = paper.resize(size, Image.Resampling.BOX)
    mask = Image.new("L", double)
    ImageDraw.Draw(mask).polygon(large, fill=255)
    mask = mask.resize(size, Image.Resampling.BOX)
    table = draw_table(*size, rng)
    shadow = Image.new("L", size)
    shadow.paste(mask.point(lambda value: value * 0.55), (5, 7))
    table.paste((20, 12, 8), mask=shadow.filter(ImageFilter.GaussianBlur(6)))
    table.paste(paper, mask=mask)
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    light = 1.0 - 0.24 * x - 0.12 * y + 0.03 * np.sin(5 * x + 3 * y)
    pixels = np.asarray(table.filter(ImageFilter.GaussianBlur(0.6)), np.float32) * light[..., None]
    pixels = pixels * np.array([1.0, 0.975, 0.93]) + rng.normal(0, 3.0, (size[1], size[0], 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def main(folder: Path) -> None:
    pages = ((176, 176, INVOICE, INVOICE_RULES), (176, 160, DELIVERY, DELIVERY_RULES))
    write_pdf(folder / "bike_workshop.pdf", pages)
    photo = make_photo()
    photo.save(folder / "cafe_receipt.png", optimize=True)
    photo.resize(FRAME, Image.Resampling.LANCZOS).save(folder / "cafe_receipt_small.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
