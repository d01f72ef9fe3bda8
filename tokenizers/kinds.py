"""What kind of medium a file is, from its first bytes and its container, before anything is decoded."""

from pathlib import Path
from typing import Any

from omni.tokenizers import image, sound, video
from omni.tokenizers.files import find, head, is_picture, open_container

_CONTAINERS = f"{video.CONTAINERS},{sound.CONTAINERS}"


def kind_of(source: Any) -> str:
    """ "document" (a picture or PDF), "video" or "sound". ValueError for what is none of them, or not there.

    An animated picture is a document: its first frame.
    """
    media, name = find(source, "medium", ValueError)
    if b"%PDF-" in head(media, 1024) or is_picture(media):
        return "document"
    tracks = _tracks(media)
    for kind in ("video", "audio"):
        if kind in tracks:
            return "sound" if kind == "audio" else kind
    raise ValueError(
        f"{name} is neither a picture ({', '.join(image.FORMATS)}), a PDF, a video nor a recording, or it is damaged"
    )


def _tracks(media: Path | bytes) -> set[str]:
    """Kinds of the tracks of a container; empty where it is none."""
    import av

    cover = av.stream.Disposition.attached_pic
    try:
        with open_container(media, _CONTAINERS) as container:
            return {s.type for s in container.streams if not s.disposition & cover}
    except Exception:  # FFmpeg raises many kinds of errors for a file that is not its own
        return set()
