"""Pictures and PDF pages from untrusted files: opened, checked, made upright RGB, and fitted to a patch grid.

    file, bytes, data: address, array ──> open_image ──> PIL RGB ──> fit ──> (3, H, W) float32 in 0..1
    PDF ──> open_pdf ──> Pages: one PIL RGB page at a time

Every limit is checked from the header, before pixels are decoded. A decoder's own words never reach the user:
they are about the decoder, and have leaked memory addresses in other programs.
"""

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from omni.tokenizers.files import read_bytes

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 64_000_000
MAX_SIDE = 65_535  # JPEG's own limit
MAX_PAGES = 200
MAX_PAGE_POINTS = 14_400  # PDF's own limit: 200 inches of 72 points
MAX_SCALE = 4.0  # pixels a point, 288 dpi: a small page is not blown up beyond what a scanner would give

_MEGAPIXELS = MAX_PIXELS // 1_000_000
_PDF_MARK = b"%PDF-"
_PDF_MARK_WITHIN = 1024  # readers accept the mark anywhere in the first kilobyte


class ImageError(ValueError):
    """A picture or document that cannot be read: one line that names it, what is wrong, and the limit."""


def open_image(source: Any) -> Image.Image:
    """The picture as upright PIL RGB.

    ``source`` is a path, bytes, a ``data:`` address, a PIL image, a numpy array (H, W), (H, W, 3) or
    (H, W, 4) of uint8, or a tensor (3, H, W) of floats in 0..1. EXIF rotation is applied, transparency falls
    on white, 16-bit grey becomes 8-bit; of an animation the first frame is taken. Raises :class:`ImageError`.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source, "the picture")
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source), "the array")
    if isinstance(source, Tensor):
        return _from_tensor(source)
    data, name = read_bytes(source, "picture", ImageError)
    with _only_image_errors(name):
        picture = _open_header(data)
        _check_size(picture.size, name)
        return _to_rgb(picture, name)


def fit(
    image: Image.Image,
    multiple: int,
    max_side: int | None = None,
    max_pixels: int | None = None,
    enlarge: bool = False,
) -> Tensor:
    """(3, H, W) float32 in 0..1 whose sides are multiples of ``multiple``.

    The aspect is kept. The picture is only made smaller, unless ``enlarge``: then it is scaled up to
    ``max_side``. What padding adds, right and below, has the median colour of the picture's border; the
    limits hold with it.
    """
    if multiple < 1:
        raise ValueError(f"multiple is {multiple}; it must be at least 1")
    width, height = _fitted_size(image.size, multiple, max_side, max_pixels, enlarge)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    pixels = np.asarray(image.convert("RGB"))
    padded = np.empty((_ceil(height, multiple), _ceil(width, multiple), 3), np.uint8)
    padded[:] = border_colour(pixels)
    padded[:height, :width] = pixels
    return torch.from_numpy(padded).permute(2, 0, 1).float() / 255


def to_pixels(picture: Image.Image) -> Tensor:
    """The picture as it is: (3, H, W) float32 in 0..1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1).float() / 255


def border_colour(pixels: np.ndarray) -> np.ndarray:
    """Median colour (3,) of the outermost pixels of ``pixels`` (H, W, 3): the paper's, for a scanned page."""
    edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
    return np.median(np.concatenate(edges), axis=0).astype(np.uint8)


class Pages(Sequence):
    """Pages of a PDF, rendered when they are asked for; the longest side of each has ``longest`` pixels.

    Only a page so small that this is more than ``MAX_SCALE`` pixels a point stays smaller.
    """

    def __init__(self, document: Any, name: str, longest: int):
        self._document, self._name, self._longest = document, name, longest

    def __len__(self) -> int:
        return len(self._document)

    def __getitem__(self, index: int) -> Image.Image:  # type: ignore[override]
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"page {index} of {self._name}: it has {count} pages")
        with _only_image_errors(f"page {index % count + 1} of {self._name}"):
            page = self._document[index % count]
            try:
                return self._render(page, index % count + 1)
            finally:
                page.close()

    def __iter__(self) -> Iterator[Image.Image]:
        return (self[i] for i in range(len(self)))

    def _render(self, page: Any, number: int) -> Image.Image:
        width, height = page.get_size()
        if not (0 < width <= MAX_PAGE_POINTS and 0 < height <= MAX_PAGE_POINTS):  # also refuses NaN
            raise ImageError(
                f"page {number} of {self._name} measures {width:g} x {height:g} points; "
                f"the limit is {MAX_PAGE_POINTS} a side"
            )
        scale = min(self._longest / max(width, height), MAX_SCALE)
        return page.render(scale=scale).to_pil().convert("RGB")


def open_pdf(source: Any, longest: int = 1024) -> Pages:
    """Pages of the PDF at ``source`` (path or bytes), the longest side of each with ``longest`` pixels."""
    import pypdfium2

    if not 1 <= longest <= 8192:
        raise ValueError(f"longest is {longest} pixels; it must lie between 1 and 8192")
    data, name = read_bytes(source, "picture", ImageError)
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        encrypted = getattr(error, "err_code", None) == pypdfium2.raw.FPDF_ERR_PASSWORD
        why = "is encrypted: remove its password first" if encrypted else "is not a readable PDF"
        raise ImageError(f"{name} {why}") from None
    if not 1 <= len(document) <= MAX_PAGES:
        raise ImageError(f"{name} has {len(document)} pages; the limit is {MAX_PAGES} and the least is 1")
    with _only_image_errors(name):
        if document.get_formtype():  # what was typed into a form is drawn only with its form environment
            document.init_forms()
    return Pages(document, name, longest)


def open_document(source: Any, longest: int = 1024) -> Sequence[Image.Image]:
    """The pages of a document: a PDF, one picture, or a list of pictures."""
    if isinstance(source, Pages):
        return source
    if isinstance(source, (list, tuple)):
        if not 1 <= len(source) <= MAX_PAGES:
            raise ImageError(f"the document has {len(source)} pages; it must have 1 to {MAX_PAGES}")
        return [open_image(page) for page in source]
    if isinstance(source, (Image.Image, np.ndarray, Tensor)):
        return [open_image(source)]
    data, name = read_bytes(source, "picture", ImageError)
    if _PDF_MARK in data[:_PDF_MARK_WITHIN]:
        return open_pdf(_Named(data, name), longest)
    return [open_image(_Named(data, name))]


class _Named(bytes):
    """Bytes that remember the file they came from, so that errors can name it."""

    name: str

    def __new__(cls, data: bytes, name: str) -> "_Named":
        self = super().__new__(cls, data)
        self.name = name
        return self


@contextmanager
def _only_image_errors(name: str) -> Iterator[None]:
    """Decoders raise OSError, SyntaxError, struct.error, zlib.error ... for the same thing: a bad file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large and odd files are judged here, by an error or not at all
            yield
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"{name} has far more pixels than the limit, {_MEGAPIXELS} million") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name} is not a picture; formats read: {', '.join(FORMATS)}, PDF") from None
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(f"{name} is damaged or cut short and cannot be decoded") from error


def _open_header(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=FORMATS)


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width < 1 or height < 1 or max(width, height) > MAX_SIDE:
        raise ImageError(f"{name} measures {width} x {height} pixels; a side must have 1 to {MAX_SIDE}")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name} measures {width} x {height} pixels; the limit is {_MEGAPIXELS} million")


def _to_rgb(picture: Image.Image, name: str) -> Image.Image:
    _check_size(picture.size, name)
    with _only_image_errors(name):
        picture.load()
        picture = _upright(picture)
        if picture.mode.startswith("I;16"):
            deep = np.asarray(picture.convert("I"), np.float32)
            picture = Image.fromarray(np.round(deep / 257).astype(np.uint8))
        if picture.mode in ("I", "F"):
            raise ImageError(f"{name} has 32-bit pixels ({picture.mode}); 8 and 16 bits are read")
        if picture.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in picture.info:
            layer = picture.convert("RGBA")
            white = Image.new("RGBA", layer.size, "white")
            picture = Image.alpha_composite(white, layer)
        return picture.convert("RGB")


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # a broken EXIF block says nothing about the pixels, which were decoded before this
        return picture


def _from_array(array: np.ndarray) -> Image.Image:
    shape_is_known = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not shape_is_known or array.size == 0:
        raise ImageError(
            f"an array {array.shape} of {array.dtype} is not a picture; "
            "a picture is (H, W), (H, W, 3) or (H, W, 4) of uint8"
        )
    return Image.fromarray(array)


def _from_tensor(tensor: Tensor) -> Image.Image:
    if tensor.ndim != 3 or tensor.shape[0] != 3 or not tensor.is_floating_point() or tensor.numel() == 0:
        shape = tuple(tensor.shape)
        raise ImageError(f"a tensor {shape} of {tensor.dtype} is not a picture; a picture is (3, H, W) of floats")
    if not bool(torch.isfinite(tensor).all()) or tensor.min() < 0 or tensor.max() > 1:
        raise ImageError("the tensor has values outside 0..1")
    _check_size((tensor.shape[2], tensor.shape[1]), "the tensor")
    return Image.fromarray((tensor.detach().cpu().float() * 255).round().byte().permute(1, 2, 0).numpy())


def _ceil(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _fitted_size(
    size: tuple[int, int], multiple: int, max_side: int | None, max_pixels: int | None, enlarge: bool
) -> tuple[int, int]:
    """Width and height before padding; with padding they stay within both limits."""
    width, height = size
    side = None if max_side is None else max_side // multiple * multiple
    if side == 0:
        raise ValueError(f"max_side is {max_side}; it must be at least the multiple, {multiple}")
    if max_pixels is not None and max_pixels < multiple * multiple:
        raise ValueError(f"max_pixels is {max_pixels}; one block of {multiple} x {multiple} has more")
    if enlarge and side is None:
        raise ValueError("enlarge needs max_side: how far to")
    scale = math.inf if side is None else side / max(width, height)
    scale = scale if enlarge else min(scale, 1.0)
    if max_pixels is not None:
        scale = min(scale, math.sqrt(max_pixels / (width * height)))
    while True:
        new = max(1, round(width * scale)), max(1, round(height * scale))
        padded = _ceil(new[0], multiple), _ceil(new[1], multiple)
        if max_pixels is None or padded[0] * padded[1] <= max_pixels:
            return new
        scale *= 0.98
