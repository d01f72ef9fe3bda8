"""What kind of medium a file is, from its first bytes and its container, before anything is decoded."""

import io
from pathlib import Path
from typing import Any

from omni.tokenizers import image, video

KINDS = ("document", "video", "sound")


def kind_of(source: Any) -> str:
    """ "document" (a picture or PDF), "video" or "sound". ValueError for what is none of them, or not there.

    An animated picture is a document: its first frame.
    """
    media, name = video._media(source, None if _in_memory(source) else video._path(source))
    head = media[:1024] if isinstance(media, bytes) else _head(media)
    if b"%PDF-" in head or video._is_picture(media):
        return "document"
    tracks = _tracks(media)
    for kind in ("video", "audio"):
        if kind in tracks:
            return "sound" if kind == "audio" else kind
    raise ValueError(
        f"{name} is neither a picture ({', '.join(image.FORMATS)}), a PDF, a video nor a recording, or it is damaged"
    )


def _in_memory(source: Any) -> bool:
    return isinstance(source, (bytes, bytearray, memoryview))


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1024)


def _tracks(media: Path | bytes) -> set[str]:
    """Kinds of the tracks of a container; empty where it is none."""
    import av

    cover = av.stream.Disposition.attached_pic
    try:
        with io.BytesIO(media) if isinstance(media, bytes) else media.open("rb") as file, av.open(file) as container:
            return {s.type for s in container.streams if not s.disposition & cover}
    except Exception:  # FFmpeg raises many kinds of errors for a file that is not its own
        return set()
