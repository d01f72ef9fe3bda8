"""Sources from untrusted hands: what they name, whether it is there and how large it is, before a decoder sees it.

    path, bytes, data: address ──> read_bytes ──> (bytes, name)           pictures and PDFs, which are held whole
                               └─> find ──> (path or bytes, name)         videos and recordings, read piece by piece
                                            └──> opened, open_container

Each medium has an error and a ``noun`` of its own; the name is what its messages call the source.
"""

import base64
import binascii
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

MAX_BYTES = 256 << 20  # of what is held in memory
MAX_FILE_BYTES = 64 << 30  # of a file that is read piece by piece

_PICTURE_MARKS = (b"GIF8", b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")

Error = type[ValueError]


def read_bytes(source: Any, noun: str, error: Error) -> tuple[bytes, str]:
    """Content of a path, a ``data:`` address or bytes, and a name for messages. Raises ``error``."""
    path = path_of(source, noun, error)
    if path is not None:
        return _read_file(path, short(str(source)), error)
    if isinstance(source, str):
        return _checked_length(_from_data_address(source, error), "the data: address", error), "the data: address"
    name = getattr(source, "name", "the data")
    return _checked_length(source if isinstance(source, bytes) else bytes(source), name, error), name


def find(source: Any, noun: str, error: Error) -> tuple[Path | bytes, str]:
    """What is to be decoded, and its name. A file stays a path: it is never read as a whole. Raises ``error``."""
    path = path_of(source, noun, error)
    if path is None:
        return read_bytes(source, noun, error)
    name = short(str(source))
    with _only_errors(name, error):
        _check_file(path, name, error)
        size = path.stat().st_size
    if not size:
        raise error(f"{name} is empty")
    if size > MAX_FILE_BYTES:
        raise error(f"{name} is larger than the limit of {MAX_FILE_BYTES >> 30} GiB")
    return path, name


def path_of(source: Any, noun: str, error: Error) -> Path | None:
    """The file or folder that ``source`` names, which is there; None for bytes and ``data:`` addresses."""
    if isinstance(source, (bytes, bytearray, memoryview)) or (isinstance(source, str) and source.startswith("data:")):
        return None
    if not isinstance(source, (str, Path)):
        raise error(f"a {type(source).__name__} is not a {noun}, a path or bytes")
    name = short(str(source))
    if isinstance(source, str) and "://" in source[:16]:
        raise error(f"{name} is an address; only local files and data: addresses are read")
    with _only_errors(name, error):
        path = Path(source)
        if not path.exists():
            raise error(f"{name} does not exist")
    return path


def opened(media: Path | bytes) -> BinaryIO:
    """What :func:`find` found, as a file object."""
    return io.BytesIO(media) if isinstance(media, bytes) else media.open("rb")


def head(media: Path | bytes, count: int) -> bytes:
    """Its first ``count`` bytes."""
    with opened(media) as file:
        return file.read(count)


@contextmanager
def open_container(media: Path | bytes, formats: str) -> Iterator[Any]:
    """An open container of PyAV, of one of FFmpeg's ``formats``: a playlist would open other files and addresses.

    It reads through a file object: a file's name can then not be taken for an address.
    """
    import av

    with opened(media) as file, av.open(file, options={"format_whitelist": formats}) as found:
        yield found


def is_picture(media: Path | bytes) -> bool:
    """Whether it begins as pictures do, animated ones as well."""
    begin = head(media, 16)
    return begin.startswith(_PICTURE_MARKS) or (begin[:4] == b"RIFF" and begin[8:12] == b"WEBP")


def short(name: str, limit: int = 120) -> str:
    """One printable line, however odd the name."""
    printable = "".join(c if c.isprintable() else "?" for c in name)
    return printable if len(printable) <= limit else f"{printable[:limit]}..."


# -- checks ----------------------------------------------------------------------------------------------------------


def _read_file(path: Path, name: str, error: Error) -> tuple[bytes, str]:
    with _only_errors(name, error):
        _check_file(path, name, error)
        with path.open("rb") as file:
            return _checked_length(file.read(MAX_BYTES + 1), name, error), name


def _check_file(path: Path, name: str, error: Error) -> None:
    if not path.is_file():  # a device or a pipe may never end
        raise error(f"{name} is not a file")


def _checked_length(data: bytes, name: str, error: Error) -> bytes:
    if not data:
        raise error(f"{name} is empty")
    if len(data) > MAX_BYTES:
        raise error(f"{name} is larger than the limit of {MAX_BYTES >> 20} MiB")
    return data


def _from_data_address(address: str, error: Error) -> bytes:
    lead, _, body = address.partition(",")
    if not lead.endswith(";base64"):
        raise error("a data: address must be base64: data:image/png;base64,...")
    if len(body) > MAX_BYTES * 4 // 3 + 4:
        raise error(f"the data: address is larger than the limit of {MAX_BYTES >> 20} MiB")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise error("the data: address is not valid base64") from None


@contextmanager
def _only_errors(name: str, error: Error) -> Iterator[None]:
    try:
        yield
    except OSError as reason:
        raise error(f"{name} cannot be read: {reason.strerror or reason}") from None
