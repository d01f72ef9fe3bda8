"""Make the sample media: a chart, a clip, a recording, and a clip with sound, from held-out seeds of the worlds.

    python assets/samples/make_media.py [folder]

Writes the files and ``media.json``, their questions. The voice comes from a synthesiser: ``pip install -e ".[train]"``.
"""

import json
import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image

from omni.data.clips import sample_clip
from omni.data.documents import sample_document
from omni.data.films import sample_film
from omni.data.sounds import sample_sound
from omni.tokenizers.video_writer import write_video

CHART, CLIP, FILM, RECORDING = 25, 25, 10, 10  # seeds
SCALE = 3  # the clips are written larger, as a person would rather look at them
QUESTIONS = 4


def main(folder: Path) -> None:
    chart = sample_document(CHART, "chart", (176, 192))
    Image.fromarray(chart.image).save(folder / "chart.png", optimize=True)
    clip = sample_clip(CLIP, "order", frames=12, size=64 * SCALE)
    write_video(folder / "shapes.mp4", clip.frames, fps=1 / (clip.times[1] - clip.times[0]))
    film = sample_film(FILM, "digits", size=64 * SCALE)
    write_video(folder / "film.mp4", film.frames, fps=1 / (film.times[1] - film.times[0]), sound=film.samples)
    recording = sample_sound(RECORDING, "digits")
    write_flac(folder / "digits.flac", recording.samples)
    asked = {"chart.png": chart.qa, "shapes.mp4": clip.qa, "digits.flac": recording.qa, "film.mp4": film.qa}
    told = [{"file": name, "questions": [_entry(*pair) for pair in qa[:QUESTIONS]]} for name, qa in asked.items()]
    (folder / "media.json").write_text(json.dumps({"media": told}, indent=1) + "\n")


def _entry(question: str, answer: str) -> dict[str, str]:
    return {"question": question, "answer": answer}


def write_flac(path: Path, samples: np.ndarray, rate: int = 16_000) -> None:
    """Mono samples in -1..1, 16 bits deep."""
    with av.open(str(path), "w", format="flac") as container:
        stream = container.add_stream("flac", rate=rate, layout="mono")
        pcm = (samples.clip(-1, 1) * 32767).round().astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
