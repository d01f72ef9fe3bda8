"""Batches of clips, recordings, films and sights: what the model is trained on is what its pipelines will show it."""

import dataclasses

import pytest
import torch
from PIL import Image

from omni.config import ConfigError, replace
from omni.data.batches import IGNORED
from omni.data.clips import CLIP_CLASSES, sample_clip
from omni.data.films import sample_film
from omni.data.senses import SENSES, expanded
from omni.data.sights import sample_sight
from omni.data.sounds import UNITS, sample_sound
from omni.families.tiny import TINY
from omni.model import Omni
from omni.recipe import DrawPlan, ReadPlan, Recipe, SensePlan, Stage, TalkPlan
from omni.tokenizers.bytes import ByteTokenizer
from omni.tokenizers.sound import Waveform
from omni.tokenizers.video import open_video
from omni.training import OmniTraining, Steps, encoding

BASE = 1_000_000 + 5 * 4096  # of the samples of batch seed 5


@pytest.fixture(scope="module")
def model() -> Omni:
    torch.manual_seed(0)
    model = Omni(replace(TINY, denoiser=None, latent=None, sound_latent=None, action=None, sampling={})).eval()
    model.tokenizer = ByteTokenizer()
    return model


def batch(model, kind, read_first=0.0, size=3, questions=2):
    return SENSES[kind](5, size, encoding(model), questions, read_first)


@pytest.mark.parametrize("kind", SENSES)
def test_a_seed_is_a_batch(model, kind):
    first, again = batch(model, kind), batch(model, kind)
    for name, value in vars(first).items():
        assert value is None or torch.equal(value, getattr(again, name)), name
    other = SENSES[kind](6, 3, encoding(model), 2, 0.0).input_ids
    assert first.input_ids.shape != other.shape or not torch.equal(first.input_ids, other)
    assert (first.labels != IGNORED).any(dim=1).all()
    assert torch.equal(first.input_ids[first.labels != IGNORED], first.labels[first.labels != IGNORED])


def parts_of(kind, model):
    """The first sample of batch seed 5 as a message part, as a pipeline would show it."""
    if kind == "listen":
        return {"type": "audio", "audio": Waveform(torch.from_numpy(sample_sound(BASE).samples), 16_000)}
    if kind == "look":
        return {"type": "image", "image": Image.fromarray(sample_sight(BASE).image)}
    if kind == "film":
        film = sample_film(BASE)
        fps = 1 / film.times[1]
        tune = Waveform(torch.from_numpy(film.samples), 16_000)
        return {"type": "video", "video": open_video(film.frames, fps=fps), "fps": fps, "max_frames": 64, "sound": tune}
    clip = sample_clip(BASE, frames=batch(model, "watch").frames.shape[1])
    fps = 1 / clip.times[1]
    return {"type": "video", "video": open_video(clip.frames, fps=fps), "fps": fps, "max_frames": 64}


@pytest.mark.parametrize("kind", SENSES)
def test_training_shows_what_a_pipeline_shows(model, kind):
    """Ids, pixels and features of a sample in a batch are those that its message is prepared to."""
    made = batch(model, kind, size=1)
    inputs = model.prepare([{"role": "user", "content": [parts_of(kind, model), {"type": "text", "text": "~"}]}])
    ids, wanted = made.input_ids[0].tolist(), inputs.input_ids[0].tolist()
    shared = wanted.index(model.tokenizer.encode("~")[0])
    assert ids[:shared] == wanted[:shared]
    if made.frames is not None:
        shown = made.frames[0] if made.frames.shape[1] > 1 else made.frames[0, 0]
        torch.testing.assert_close(inputs.pixels[0], shown)
    if made.sounds is not None:
        torch.testing.assert_close(inputs.sounds[0], made.sounds[0, : made.lengths[0]])


@pytest.mark.parametrize("kind", SENSES)
def test_the_whole_is_told_before_the_questions_or_not(model, kind):
    told = [text(model, row) for row in batch(model, kind, read_first=1.0).labels]
    asked = [text(model, row) for row in batch(model, kind, questions=1, read_first=0.0).labels]
    assert all(len(t) > 1 for t in told)
    assert all(len(a) == 1 for a in asked)


def text(model, labels):
    """What is said in a row, answer by answer."""
    said = model.tokenizer.decode([i for i in labels.tolist() if i != IGNORED], special=True)
    return [part for part in said.split("<|im_end|>") if part]


def test_classes_of_tokens_are_within_their_heads(model):
    shown = batch(model, "watch").shown
    assert shown.shape[2] == 16
    assert all(0 <= int(c.min()) <= int(c.max()) < n for c, n in zip(shown.unbind(-1), CLIP_CLASSES, strict=True))
    still = batch(model, "look").shown
    assert (still[..., 2] == IGNORED).all()
    heard = batch(model, "listen").heard
    assert int(heard.max()) <= len(UNITS)
    assert (heard != IGNORED).sum(dim=1).tolist() == [
        model.sound.tokens_of(int(n)) for n in batch(model, "listen").lengths
    ]


def test_runs_are_repeated():
    assert expanded([5, 14, 6, 15], [-100, 1, 2, 3], (14, 15), (3, 1)) == (
        [5, 14, 14, 14, 6, 15],
        [-100, 1, 1, 1, 2, 3],
    )


def test_every_sense_has_a_loss_and_a_gradient(model):
    plans = {kind: SensePlan(size=2, questions=1, read_first=0.5) for kind in SENSES}
    recipe = Recipe(model="omni-tiny", stages=(Stage(name="all", steps=2, lr=1e-3, **plans),))
    module = OmniTraining(model, recipe)
    made = Steps(recipe, encoding(model)).batches(0)
    assert set(made) == set(SENSES)
    parts = {}
    for kind, (plan, data) in made.items():
        parts |= module.sense_losses(kind, plan, data)
    named = ("watch_shown", "look_shown", "film_shown", "listen_heard", "film_heard")
    assert {*SENSES, *(f"{kind}_told" for kind in SENSES), *named, *(f"{name}_read" for name in named)} == set(parts)
    sum(weight * loss for weight, loss in parts.values()).backward()
    for name in ("vision.video_stem", "vision.stem", "sound", "sound_projector", "projector", "context"):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.get_submodule(name).parameters()), name


def test_what_happens_is_asked_after_the_context_only(model):
    plan = SensePlan(size=2, questions=1)
    module = OmniTraining(model, Recipe(model="omni-tiny", stages=(Stage(name="all", steps=1, lr=1e-3, watch=plan),)))
    made = batch(model, "watch", size=2)
    other = dataclasses.replace(made, events=torch.zeros_like(made.events))
    with torch.no_grad():
        one, two = (module.sense_losses("watch", plan, data) for data in (made, other))
    assert torch.equal(one["watch_shown"][1], two["watch_shown"][1])
    assert torch.equal(one["watch"][1], two["watch"][1])
    assert not torch.equal(one["watch_shown_read"][1], two["watch_shown_read"][1])


def test_what_is_named_after_the_context_is_what_its_last_attention_is_given(model):
    plan = SensePlan(size=2, questions=1)
    module = OmniTraining(model, Recipe(model="omni-tiny", stages=(Stage(name="all", steps=1, lr=1e-3, watch=plan),)))
    module.train()
    model.zero_grad()
    parts = module.sense_losses("watch", plan, batch(model, "watch", size=2))
    parts["watch_shown_read"][1].backward()
    letters = [block.letter for block in model.context.blocks]
    last = len(letters) - 1 - letters[::-1].index("*")
    for i, block in enumerate(model.context.blocks):
        learned = any(p.grad is not None and bool(p.grad.any()) for p in block.mixer.parameters())
        assert learned == (i < last), i
    model.zero_grad()
    model.eval()


def test_pruned_clips_lose_their_placeholders_and_nothing_else(model):
    plan = SensePlan(size=3, questions=1, pruned=1.0)
    module = OmniTraining(model, Recipe(model="omni-tiny", stages=(Stage(name="all", steps=1, lr=1e-3, watch=plan),)))
    made, read = batch(model, "watch"), []
    with pytest.MonkeyPatch.context() as patch:
        real = Omni.read
        patch.setattr(Omni, "read", lambda self, inputs, **more: read.append(inputs) or real(self, inputs, **more))
        torch.manual_seed(3)
        module.sense_losses("watch", plan, made)
    (inputs,) = read
    assert inputs.input_ids.shape[1] < made.input_ids.shape[1]
    video = model.config.special_tokens["video"]
    for before, after, kept in zip(made.input_ids, inputs.input_ids, inputs.kept, strict=True):
        assert before[before != video].tolist() == after[after != video].tolist()
        assert int((after == video).sum()) == int(kept.sum())
        assert kept[0].all()


def test_what_is_pointed_at_moves_with_the_pruned_row(model):
    module = OmniTraining(model, Recipe(model="omni-tiny", stages=(Stage(name="all", steps=1, lr=1e-3),)))
    made = batch(model, "watch", read_first=1.0, size=8, questions=6)
    places = made.input_ids == model.config.special_tokens["video"]
    tokens = int(places[0].sum())
    orders = [torch.randperm(tokens, generator=torch.Generator().manual_seed(i)) for i in range(len(places))]
    kept = torch.stack(orders) % 3 == 0  # as many in every row
    ids, labels, points, asks = module._without((made.input_ids, made.labels), (made.points, made.asks), kept)
    stays = places.clone()
    stays[places] = kept.flatten()
    stays |= ~places
    pruned = 0
    for row in range(len(ids)):
        index = stays[row].nonzero()[:, 0].tolist()  # where each token that is left stood
        for looks, before in ((points, made.points), (asks, made.asks)):
            old = before[row][stays[row]].tolist()
            assert looks[row].tolist() == [index.index(at) if at in index else IGNORED for at in old]
        old = made.points[row][stays[row]].tolist()
        pruned += sum(at not in index for at in old if at != IGNORED)
    own = points != IGNORED
    there = ids.gather(1, points.clamp(min=0))[own]
    seen = there == model.config.special_tokens["video"]
    assert torch.equal(there[~seen], ids[own][~seen])
    assert torch.equal(labels[own], ids[own])
    assert min(int(seen.sum()), int((~seen).sum()), pruned) > 10


def test_kinds_take_turns():
    plan = SensePlan(size=1, questions=1, every=3)
    recipe = Recipe(model="omni-tiny", stages=(Stage(name="all", steps=9, lr=1e-3, listen=plan, look=plan),))
    model = Omni(replace(TINY, denoiser=None, latent=None, sound_latent=None, action=None))
    model.tokenizer = ByteTokenizer()
    due = [set(Steps(recipe, encoding(model)).batches(step)) for step in range(6)]
    assert sum(d == {"listen"} for d in due) == 2
    assert sum(d == {"look"} for d in due) == 2


@pytest.mark.parametrize("wrong", [{"size": 0}, {"read_first": 2}, {"kinds": {}}, {"every": 0}])
def test_bad_plans_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SensePlan(**{"size": 2, **wrong})


@pytest.mark.parametrize("value", [-0.1, "much", True, None])
@pytest.mark.parametrize(
    ("plan", "name"),
    [
        (SensePlan, "pointer_weight"),
        (SensePlan, "named_weight"),
        (ReadPlan, "pointer_weight"),
        (ReadPlan, "label_weight"),
        (ReadPlan, "link_weight"),
        (DrawPlan, "thing_weight"),
        (TalkPlan, "weight"),
    ],
)
def test_weights_of_losses_are_numbers_from_zero(plan, name, value):
    more = {"mixture": {"page": 1}} if plan is ReadPlan else {}
    with pytest.raises(ConfigError, match=f"{plan.__name__}.{name} is {value!r}"):
        plan(size=2, **more, **{name: value})
