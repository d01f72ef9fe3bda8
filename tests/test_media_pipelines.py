"""Videos, recordings and boxes on a small random model: shared reading, pruning, pieces, bad input."""

import numpy as np
import pytest
import torch
from PIL import Image

from omni.config import replace
from omni.data.clips import sample_clip
from omni.families.tiny import TINY
from omni.inputs import Inputs
from omni.model import Omni
from omni.pipelines.chat import Chat
from omni.pipelines.grounding import Box, as_dicts, draw_boxes, read_boxes
from omni.pipelines.reader import split
from omni.pipelines.reading import Reading
from omni.pipelines.sound import SoundQA, _pieces, quietest
from omni.pipelines.video import VideoQA
from omni.tokenizers.bytes import ByteTokenizer
from omni.tokenizers.sound import Waveform
from omni.tokenizers.video import VideoError, open_video
from omni.tokenizers.video_writer import write_video

QUESTIONS = ["What moves?", "How many are there?", "When does it stop?"]


@pytest.fixture(scope="module")
def model() -> Omni:
    torch.manual_seed(0)
    model = Omni(replace(TINY, denoiser=None, latent=None, sound_latent=None, action=None, sampling={})).eval()
    with torch.no_grad():
        model.embed.weight.mul_(20)  # peaked logits: argmax does not hang on the order of additions
    model.tokenizer = ByteTokenizer()
    return model


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return sample_clip(7, frames=8).frames


def sound(seconds: float, seed: int = 0) -> Waveform:
    return Waveform(torch.randn(round(16_000 * seconds), generator=torch.Generator().manual_seed(seed)) * 0.1, 16_000)


def plain(model: Omni, parts: list[dict], question: str, steps: int, media: dict | None = None) -> str:
    """The answer of a chat that reads everything for this one question."""
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
    return Chat(model)(messages, max_new_tokens=steps, temperature=0, thinking=False, media=media).text


# -- one reading, many questions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pruning", [0.0, 0.5])
def test_answers_about_a_video_equal_a_chat_for_each_question(model, clip, pruning):
    answers = VideoQA(model)(clip, QUESTIONS, max_new_tokens=6, fps=4.0, pruning=pruning)
    part = {"type": "video", "video": open_video(clip, fps=4.0)}
    for question, answer in zip(QUESTIONS, answers, strict=True):
        assert answer.text == plain(model, [part], question, 6, {"pruning": pruning}).strip()


def test_pruned_answers_differ_and_the_prompt_is_shorter(model, clip):
    readings = [VideoQA(model).read(clip, fps=4.0, pruning=rate) for rate in (0.0, 0.75)]
    whole, pruned = (reading.prompt_tokens for reading in readings)
    tokens = 8 // 2 * 16
    assert whole - pruned == tokens - max(16, int(tokens * (1 - 0.75)))


def test_a_video_is_encoded_once_for_questions_in_several_calls(model, clip, monkeypatch, tmp_path):
    write_video(tmp_path / "x.mp4", clip, fps=4)
    seen = []
    see = Omni.see_all
    monkeypatch.setattr(Omni, "see_all", lambda self, pixels: seen.append(len(pixels)) or see(self, pixels))
    watcher = VideoQA(model)
    for question in QUESTIONS:
        watcher(tmp_path / "x.mp4", question, max_new_tokens=1)
    assert len(seen) == 1
    watcher(tmp_path / "x.mp4", QUESTIONS[0], max_new_tokens=1, max_frames=2)
    assert len(seen) == 2


def test_what_was_told_stands_before_the_question(model, clip):
    watcher = VideoQA(model)
    reading = watcher.read(clip, read_first=True, fps=4.0)
    assert reading.told == watcher.describe(clip, fps=4.0, max_new_tokens=512)
    (answer,) = reading.ask(QUESTIONS[:1], 6)
    messages = [
        {"role": "user", "content": [*reading.parts, {"type": "text", "text": "What happens?"}]},
        {"role": "assistant", "content": reading.told},
        {"role": "user", "content": QUESTIONS[0]},
    ]
    assert answer.text == Chat(model)(messages, max_new_tokens=6, temperature=0, thinking=False).text.strip()


def test_sound_goes_with_its_video(model, clip, tmp_path):
    tune = sound(2.0)
    write_video(tmp_path / "x.mp4", clip, fps=4, sound=tune.samples.numpy())
    watcher = VideoQA(model)
    own, silent = (watcher.read(tmp_path / "x.mp4", sound=track) for track in (True, None))
    assert own.prompt_tokens - silent.prompt_tokens in (25, 26)  # 2 s of 80 ms; the codec pads
    given = watcher.read(clip, fps=4.0, sound=tune)
    assert given.prompt_tokens - watcher.read(clip, fps=4.0).prompt_tokens == 25


def test_another_recording_is_another_reading(model, clip, tmp_path):
    """Also where both are as long and begin and end alike."""
    write_video(tmp_path / "x.mp4", clip, fps=4)
    first = sound(2.0)
    second = Waveform(first.samples.clone(), 16_000)
    second.samples[16_000:20_000] = 0
    watcher = VideoQA(model)
    readings = [watcher.read(tmp_path / "x.mp4", sound=track) for track in (first, second)]
    heard = [reading.media[0].sounds[0] for reading in readings]
    assert not torch.equal(*heard)


def test_scores_are_log_probabilities_of_whole_answers(model, clip):
    reading = VideoQA(model).read(clip, fps=4.0)
    first, second = reading.score(QUESTIONS[0], ["1", "12"])
    ids = torch.tensor([[*reading.ids(QUESTIONS[0]), *model.tokenizer.encode("1"), 2]])
    frames = reading.media[0].pixels
    with torch.inference_mode():
        scores = model.logits(Inputs(ids, pixels=tuple(frames)))[0].log_softmax(-1)
    expected = sum(float(scores[i, ids[0, i + 1]]) for i in range(ids.shape[1] - 3, ids.shape[1] - 1))
    assert first == pytest.approx(expected, rel=1e-3)
    assert second < 0
    assert reading.ask(QUESTIONS[:1], 3) == reading.ask(QUESTIONS[:1], 3)  # scoring left the reading as it was


@pytest.mark.parametrize("size", [1, 20, 64, 10_000])
@pytest.mark.parametrize("pruning", [0.0, 0.75])
def test_reading_in_chunks_equals_one_call(model, clip, size, pruning):
    video = {"type": "video", "video": open_video(clip, fps=4.0), "sound": sound(1.0)}
    content = [{"type": "image", "image": Image.fromarray(clip[0])}, video, {"type": "text", "text": "?"}]
    with torch.inference_mode():
        inputs = model.prepare([{"role": "user", "content": content}], pruning=pruning)
        whole, cache = model.logits(inputs), model.new_cache(1)
        parts = [model.logits(chunk, cache) for chunk in split(model, inputs, size)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=2e-3, rtol=1e-3)


def test_conversations_with_media_of_different_sizes_are_a_batch(model, clip):
    contents = [
        [{"type": "audio", "audio": sound(1.0)}, {"type": "text", "text": "What is said?"}],
        [{"type": "video", "video": open_video(clip[:4], fps=2.0)}, {"type": "text", "text": "What?"}],
        [{"type": "image", "image": Image.fromarray(clip[0])}, {"type": "text", "text": "What is this picture of?"}],
        [{"type": "audio", "audio": sound(2.3, 1)}, {"type": "text", "text": "Who?"}],
    ]
    messages = [[{"role": "user", "content": content}] for content in contents]
    together = Chat(model)(messages, max_new_tokens=5, temperature=0)
    assert [r.text for r in together] == [Chat(model)(m, max_new_tokens=5, temperature=0).text for m in messages]


# -- recordings --------------------------------------------------------------------------------------------------------


def test_answers_about_a_recording_equal_a_chat(model):
    tune = sound(1.7)
    answers = SoundQA(model)(tune, QUESTIONS, max_new_tokens=5)
    part = {"type": "audio", "audio": tune}
    assert [a.text for a in answers] == [plain(model, [part], q, 5).strip() for q in QUESTIONS]


def test_long_recordings_are_cut_where_it_is_quiet(model):
    tune = sound(5.0)
    for quiet in (1.6, 3.2):
        start = round(16_000 * quiet)
        tune.samples[start : start + 3200] = 0
    pieces = list(_pieces(tune, 16_000, 2.0))
    assert torch.equal(torch.cat(pieces), tune.samples)
    assert all(len(piece) <= 32_000 for piece in pieces)
    ends = np.cumsum([len(piece) for piece in pieces])[:2] / 16_000
    assert 1.6 < ends[0] < 1.8
    assert 3.2 < ends[1] < 3.4
    heard = [SoundQA(model)(Waveform(p, 16_000), "What do you hear?", max_new_tokens=3).text for p in pieces]
    assert SoundQA(model).transcribe(tune, max_new_tokens=3, window=2.0) == " ".join(h for h in heard if h)


def test_the_quietest_place_is_looked_for_at_the_end():
    samples = torch.ones(16_000)
    samples[1000:2600] = 0
    samples[12_000:13_600] = 0
    assert 12_000 <= quietest(samples, 16_000) <= 13_600


# -- boxes -------------------------------------------------------------------------------------------------------------


def test_boxes_are_read_ordered_and_kept_inside():
    text = "One at [20, 40, 500, 980], one at (700.5, 10, 600, 1200); [1, 2, 3] and [5, 5, 5, 9] are none."
    assert read_boxes(text) == [Box(20, 40, 500, 980), Box(600, 10, 700.5, 1000)]
    assert read_boxes("nothing") == []
    assert as_dicts(read_boxes(text)[:1], (200, 100)) == [{"box": [20, 40, 500, 980], "pixels": [4, 4, 100, 98]}]


def test_boxes_are_drawn_on_a_copy():
    picture = Image.new("RGB", (200, 100), "white")
    drawn = np.asarray(draw_boxes(picture, [Box(100, 100, 500, 900)], ["it"]))
    assert (drawn[10, 20:100] != 255).any(axis=-1).all()
    assert (drawn[50, 150:] == 255).all()
    assert np.asarray(picture).min() == 255


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_bad_input_is_one_clear_error(model, clip):
    watcher, listener = VideoQA(model), SoundQA(model)
    for wrong, message in (
        (lambda: watcher(clip, "", fps=4.0), "not empty"),
        (lambda: watcher(clip, "What?"), "fps"),
        (lambda: watcher("nowhere.mp4", "What?"), "does not exist"),
        (lambda: watcher(clip, "What?", fps=4.0, pruning=1.0), "pruning rate is 1.0; it must lie between 0 and 0.99"),
        (lambda: watcher(clip, "What?", fps=4.0, max_new_tokens=10_000), "between 1 and"),
        (lambda: listener(b"", "What?"), "empty"),
        (lambda: listener(sound(1.0), []), "not empty"),
        (lambda: listener.transcribe(sound(1.0), window=0.1), "window is 0.1 seconds"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    with pytest.raises(TypeError, match="no options \\['speed'\\]"):
        watcher(clip, "What?", fps=4.0, speed=2)
    with pytest.raises(VideoError):
        watcher(b"nonsense", "What?")


def test_models_without_the_sense_are_refused(model):
    bare = Omni(replace(TINY, vision=None, sound=None, denoiser=None, latent=None, sound_latent=None, action=None))
    bare.tokenizer = ByteTokenizer()
    for pipeline, message in ((VideoQA, "sees no videos"), (SoundQA, "hears nothing")):
        with pytest.raises(ValueError, match=message):
            pipeline(bare)
    for kind, message in (("image", "reads no images"), ("video", "reads no videos"), ("audio", "hears no sounds")):
        with pytest.raises(ValueError, match=message):
            bare.prepare([{"role": "user", "content": [{"type": kind, kind: "x"}]}])


def test_a_reading_needs_room(model, clip):
    small = Omni(
        replace(TINY, denoiser=None, latent=None, sound_latent=None, action=None, sampling={}, max_positions=64)
    )
    small.tokenizer = ByteTokenizer()
    with pytest.raises(ValueError, match="behind a prompt of"):
        Reading(small, [{"type": "video", "video": open_video(clip, fps=4.0)}])
