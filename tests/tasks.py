"""What the tests of the tasks share: short answers, and a model with every sense."""

from micro import MICRO, micro_model

from omni.config import SoundConfig, replace
from omni.evaluation import asking, booklets
from omni.evaluation import documents as reading
from omni.evaluation import text as talking


def shorten(monkeypatch) -> None:
    """A random model never ends an answer by itself."""
    monkeypatch.setattr(reading, "ANSWER", 6)
    monkeypatch.setattr(reading, "TRANSCRIPTION", dict.fromkeys(reading.TRANSCRIPTION, 6))
    monkeypatch.setattr(talking, "ANSWER", 6)
    monkeypatch.setattr(asking, "ANSWER", 4)
    monkeypatch.setattr(asking, "TELLING", 4)
    monkeypatch.setattr(booklets, "ANSWER", 4)


def seeing_and_hearing():
    """A model that sees, in pairs of frames, and hears."""
    hears = SoundConfig(d_model=16, n_layers=1, n_heads=2, d_ff=16, n_mels=32, channels=4)
    special = {**MICRO.special_tokens, "video": 15, "sound": 16}
    return micro_model(sound=hears, vision=replace(MICRO.vision, tubelet=2), special_tokens=special)
