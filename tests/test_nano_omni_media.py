"""Nano Omni against transformers' model and processor: the same folder, the same messages, the same numbers.

transformers 5.23 cannot run a video (its features are no list) and prunes square frames only; what is put right here
for the comparison is said where it happens. Its processor writes images and videos with the same token, so a prompt
with both is put together from its parts.
"""

import numpy as np
import pytest
import torch
from nano_pair import (
    MEAN,
    RATE,
    STD,
    Both,
    error,
    film,
    image_part,
    patches,
    picture,
    question,
    same,
    sound_part,
    tone,
    video_question,
    with_last_frame,
)
from transformers.models.nemotron_h_omni import modeling_nemotron_h_omni as modeling

import omni
from omni.config import replace
from omni.inputs import runs
from omni.model import Omni
from omni.prepare import frame_size
from omni.tokenizers import sizing
from omni.tokenizers.frames import plan_frames
from omni.tokenizers.sound import Waveform, sound_tokens
from omni.tokenizers.video import Video


@pytest.fixture(scope="module", params=[0, 1, 2])
def both(request, tmp_path_factory):
    return Both(tmp_path_factory.mktemp("omni"), request.param)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return Both(tmp_path_factory.mktemp("omni"), 7)


# -- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(24, 40), (17, 9), (64, 64), (12, 90), (5, 5), (131, 77)])
def test_one_image(both, size):
    image = picture(*size)
    ours = both.ours.prepare(question(image_part(image), "\nWhat?"))
    theirs = both.read("<image>\nWhat?", images=[image])
    assert error(patches(ours.pixels[0]), theirs["pixel_values"]) < 1e-4
    same(both, ours, theirs, steps=6 if size == (17, 9) else 0)


def test_several_images_of_different_sizes(both):
    images = [picture(*size, seed=n) for n, size in enumerate([(24, 40), (64, 31), (9, 9), (24, 40)])]
    ours = both.ours.prepare(question(*(image_part(i) for i in images[:3]), "and", image_part(images[3]), "?"))
    theirs = both.read("<image><image><image>and<image>?", images=images)
    assert error(torch.cat([patches(p) for p in ours.pixels]), theirs["pixel_values"]) < 1e-4
    same(both, ours, theirs, steps=6)


def test_a_padded_batch_of_images(both):
    images = [picture(*size, seed=n) for n, size in enumerate([(24, 40), (64, 31), (9, 9)])]
    ours = both.ours.prepare([
        question(image_part(images[0]), "What is this?"),
        question("Only text"),
        question("Which of", image_part(images[1]), image_part(images[2]), "?"),
    ])  # fmt: skip
    theirs = both.read(["<image>What is this?", "Only text", "Which of<image><image>?"], images=images)
    assert ours.mask is not None
    same(both, ours, theirs)


# -- videos ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "size", "fps", "options"),
    [
        (8, (24, 24), 2.0, {}),
        (30, (40, 70), 7.0, {}),  # 8 of them
        (31, (64, 20), 30.0, {"fps": 9.0}),  # an odd number; 33 ms a frame
        (5, (30, 30), 1.0, {"max_frames": 3}),
        (1, (24, 44), 2.0, {}),
    ],
)
def test_video(both, frames, size, fps, options):
    messages, media = video_question(film(frames, *size), fps, **options)
    ours = both.ours.prepare(messages)
    theirs = both.read("<video>\nWhat?", **media)
    n = len(theirs["pixel_values_videos"])
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    assert error((ours.pixels[0][:n] - mean) / std, theirs["pixel_values_videos"]) < 1e-4
    assert len(ours.pixels[0]) == n + n % 2
    same(both, ours, theirs, steps=5 if frames == 31 else 0)


def test_options_of_a_call_count_as_those_of_the_part(one):
    messages, _ = video_question(film(12, 24, 24), 4.0, fps=3.0, max_frames=6)
    plain, _ = video_question(film(12, 24, 24), 4.0)
    a, b = one.ours.prepare(messages), one.ours.prepare(plain, fps=3.0, max_frames=6)
    assert torch.equal(a.input_ids, b.input_ids)
    assert torch.equal(a.pixels[0], b.pixels[0])


@pytest.mark.parametrize("rate", [0.5, 0.75])
@pytest.mark.parametrize("frames", [8, 7, 2])
@torch.no_grad()
def test_pruned_video_of_square_frames(both, rate, frames):
    messages, media = video_question(film(frames, 24, 24, seed=frames), 2.0)
    ours = both.ours.prepare(messages, pruning=rate)
    theirs = both.read("<video>\nWhat?", **media)
    both.theirs.video_pruning_rate = rate
    try:
        expected = both.logits(theirs)
    finally:
        both.theirs.video_pruning_rate = 0.0
    assert ours.input_ids.shape[1] < theirs["input_ids"].shape[1] or frames == 2
    assert error(both.ours.logits(ours), expected) < 1e-4


@pytest.mark.parametrize("rate", [0.5, 0.75])
@torch.no_grad()
def test_pruned_video_of_other_frames(both, rate):
    """Their own mask with the right grid; the language model on what it keeps."""
    messages, media = video_question(film(9, 30, 60), 2.0)
    ours = both.ours.prepare(messages, pruning=rate)
    theirs = both.read("<video>\nWhat?", **media)
    (seen,) = both.see_video(theirs["pixel_values_videos"]).pooler_output
    h, w = (side // 8 for side in theirs["pixel_values_videos"].shape[-2:])
    assert h != w
    kept = modeling.compute_retention_mask(video_embeds=seen, thw=(len(seen), h, w), spatial_merge_size=1, q=rate)
    assert torch.equal(ours.kept[0].flatten(), kept)
    ids = theirs["input_ids"]
    stays = torch.ones_like(ids, dtype=torch.bool)
    stays[ids == 18] = kept
    embedded = both.theirs.get_input_embeddings()(ids)
    embedded[ids == 18] = seen.flatten(0, 1)
    expected = both.theirs.language_model(inputs_embeds=embedded[stays][None], use_cache=False).logits
    assert ours.input_ids.tolist() == [ids[stays].tolist()]
    assert error(both.ours.logits(ours), expected) < 1e-4


# -- sounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1600, 8_000, 12_345, 12_800, 20_480])
def test_sound_counted_as_they_do(both, samples):
    changed = with_last_frame(both)
    ours = changed.ours.prepare(question(sound_part(tone(samples)), "What?"))
    theirs = both.read("<so_embedding>What?", audio=[tone(samples)])
    assert error(ours.sounds[0], theirs["input_features"][0]) < 1e-4
    same(changed, ours, theirs, steps=5 if samples == 12_800 else 0)


@pytest.mark.parametrize(("samples", "tokens"), [(8_000, 7), (12_345, 10), (12_800, 10), (20_480, 16), (12_960, 11)])
@torch.no_grad()
def test_sound_counted_by_its_own_frames(both, samples, tokens):
    """Our count is theirs without the token behind a sound whose frames divide by 8; every other token is the same."""
    ours = both.ours.prepare(question(sound_part(tone(samples)), "What?"))
    theirs = both.read("<so_embedding>What?", audio=[tone(samples)])
    more = int(samples // 160 % 8 == 0)
    assert int((ours.input_ids == 27).sum()) == tokens
    assert int((theirs["input_ids"] == 27).sum()) == tokens + more
    heard = both.theirs.get_audio_features(theirs["input_features"], theirs["input_features_mask"]).pooler_output
    assert error(both.ours.hear(ours.sounds)[0], heard[:tokens]) < 1e-4
    if not more:
        same(both, ours, theirs)


def test_several_sounds_and_images_in_a_padded_batch(both):
    changed = with_last_frame(both)
    sounds = [tone(n, seed=n) for n in (4_000, 12_800, 9_999)]
    image = picture(30, 50)
    ours = changed.ours.prepare([
        question(sound_part(sounds[0]), "What?"),
        question(image_part(image), "and", sound_part(sounds[1]), sound_part(sounds[2]), "?"),
    ])  # fmt: skip
    texts = ["<so_embedding>What?", "<image>and<so_embedding><so_embedding>?"]
    same(changed, ours, both.read(texts, audio=sounds, images=[image]))


def test_a_long_sound_is_heard_in_clips(one):
    config = replace(one.ours.config, sound=replace(one.ours.config.sound, clip_seconds=0.5))
    model = Omni(config).eval()
    model.load_state_dict(one.ours.state_dict())
    model.tokenizer = one.ours.tokenizer
    samples = tone(20_000)
    inputs = model.prepare(question(sound_part(samples), "?"))
    assert [len(clip) for clip in inputs.sounds] == [50, 50, 25]
    assert int((inputs.input_ids == 27).sum()) == 7 + 7 + 4 == sound_tokens(20_000, config.sound)
    assert len(runs(inputs.input_ids == 27)) == 1


# -- all of them -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_image_video_and_sound_together(both):
    """From their parts: each medium by their processor and encoder, in its place in the text."""
    changed = with_last_frame(both)
    image, samples = picture(30, 50), tone(9_000)
    (message,), media = video_question(film(7, 30, 60), 4.0)
    video = message["content"][0]
    ours = changed.ours.prepare(question("See", video, sound_part(samples), image_part(image), "and say."))
    single = {
        "<video>": both.read("<video>", **media),
        "<so_embedding>": both.read("<so_embedding>", audio=[samples]),
        "<image>": both.read("<image>", images=[image]),
    }
    encode = both.processor.tokenizer
    before, after = (encode(t, add_special_tokens=False)["input_ids"] for t in both.text("@@").split("@@"))
    cut = {k: v["input_ids"][0, len(before) : -len(after)].tolist() for k, v in single.items()}
    middle = [cut[k] for k in ("<video>", "<so_embedding>", "<image>")]
    head, tail = (encode(t, add_special_tokens=False)["input_ids"] for t in both.text("See@@and say.").split("@@"))
    ids = torch.tensor([[*head, *(i for part in middle for i in part), *tail]])
    assert ours.input_ids.tolist() == ids.tolist()
    (seen,) = both.see_video(single["<video>"]["pixel_values_videos"]).pooler_output
    shown = both.theirs.get_image_features(single["<image>"]["pixel_values"], single["<image>"]["image_grid_hw"])
    sounds = single["<so_embedding>"]
    heard = both.theirs.get_audio_features(sounds["input_features"], sounds["input_features_mask"]).pooler_output
    embedded = both.theirs.get_input_embeddings()(ids)
    embedded[ids == 18] = torch.cat([seen.flatten(0, 1), *shown.pooler_output])
    embedded[ids == 27] = heard
    expected = both.theirs.language_model(inputs_embeds=embedded, use_cache=False).logits
    assert error(changed.ours.logits(ours), expected) < 1e-4


def test_the_sound_of_a_video_follows_it(one):
    (message,), _ = video_question(film(6, 24, 24), 2.0)
    video = {**message["content"][0], "sound": Waveform(torch.from_numpy(tone(9_000)), RATE)}
    apart = question(message["content"][0], sound_part(tone(9_000)), "?")
    assert one.ours.prepare(question(video, "?")).input_ids.tolist() == one.ours.prepare(apart).input_ids.tolist()


def test_tokens_are_counted_before_anything_is_decoded(one):
    """From two numbers of a header; the reference's frames are not even fetched."""
    media, v = one.ours.config.media, one.ours.config.vision
    for size in ((24, 40), (17, 9), (131, 77)):
        most = sizing.patch_budget(media.max_context, 1, v.shuffle, media.min_patches, media.max_patches)
        wanted = sizing.dynamic_size(*size, v.patch_size, v.shuffle, media.min_patches, most)
        inputs = one.ours.prepare(question(image_part(picture(*size)), "?"))
        assert int((inputs.input_ids == 18).sum()) == sizing.grid_tokens(wanted, v.patch_size, v.shuffle)

    def fetch(indices):
        raise AssertionError("a frame was decoded")

    times = np.arange(9) / 2
    closed = Video("closed", times, 2.0, 4.5, (30, 60), "pyav", False, fetch)
    indices = plan_frames(closed.times, media.fps, media.max_frames)
    tokens = sizing.grid_tokens(frame_size(one.ours, closed.size, len(indices)), v.patch_size, v.shuffle)
    inputs = one.ours.prepare(video_question(film(9, 30, 60), 2.0)[0])
    assert int((inputs.input_ids == 18).sum()) == tokens * 5
    samples = 12_345
    inputs = one.ours.prepare(question(sound_part(tone(samples)), "?"))
    assert int((inputs.input_ids == 27).sum()) == sound_tokens(samples, one.ours.config.sound)


def test_names_in_a_message_stay_text(one):
    """Whoever writes a placeholder or a frame's brackets makes no medium of it."""
    image = picture(24, 40)
    inputs = one.ours.prepare(question("<image><img></img><so_embedding><video>", image_part(image), "</img>"))
    ids = inputs.input_ids[0].tolist()
    assert (ids.count(21), ids.count(22), ids.count(27)) == (1, 1, 0)
    assert len(runs(inputs.input_ids == 18)) == 1


LISTS = """{%- for m in messages -%}[{{ m.role }}]{%- for part in m.content -%}
{%- if part.type == 'text' -%}{{ part.text }}{%- elif part.type == 'image' -%}<image>
{%- elif part.type == 'audio' -%}<so_embedding>{%- endif -%}{%- endfor -%}{%- endfor -%}"""


def test_templates_that_read_lists_of_parts(one, tmp_path):
    for path in one.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(LISTS)
    model = omni.load(str(tmp_path), device="cpu")
    inputs = model.prepare(question(sound_part(tone(8_000)), "a", image_part(picture(24, 40)), "b"))
    ids = inputs.input_ids[0].tolist()
    assert (ids.count(28), ids.count(27), ids.count(29), ids.count(21), ids.count(22)) == (1, 7, 1, 1, 1)
    assert ids.index(28) < ids.index(21)
