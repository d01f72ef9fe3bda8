"""Training of the prediction block: what it is asked, packed texts, boosting, and a run after which drafts hold."""

import pytest
import torch
import torch.nn.functional as F
import yaml
from micro import MICRO, micro_model

from omni import families, training
from omni.config import ConfigError, MTPConfig, replace
from omni.families.base import Preset
from omni.inputs import Inputs
from omni.losses import IGNORED, forward_kl
from omni.pipelines.chat import Chat
from omni.recipe import PredictPlan, load_recipe
from omni.training import OmniTraining, build
from omni.training_drafts import DraftLosses
from omni.training_steps import Steps, encoding

SIZES = replace(MICRO, mtp=MTPConfig(pattern="*E"))
TRUNK = ["embed", "context", "head", "vision", "projector", "denoiser", "latents"]


@pytest.fixture(autouse=True, scope="module")
def micro_preset():
    known = families.presets()
    known["omni-micro-drafts"] = Preset(SIZES, "omni-micro-drafts")
    scenes, training.CODEC_SCENES = training.CODEC_SCENES, 20
    yield
    training.CODEC_SCENES = scenes
    del known["omni-micro-drafts"]


def module(folder, **changes) -> OmniTraining:
    plain = {
        "model": "omni-micro-drafts",
        "seed": 3,
        "warmup": 2,
        "accelerator": "cpu",
        "stages": [{"name": "talk", "steps": 60, "lr": 3e-3, "talk": {"size": 4, "width": 64, "weight": 1.0}}],
        "predict": {"depth": 2, "weight": 1.0},
    }
    path = folder / "drafts.yaml"
    path.write_text(yaml.safe_dump(plain | changes))
    return build(load_recipe(path)).train()


def talk(module: OmniTraining, step: int = 0):
    return Steps(module.recipe, encoding(module.model)).batches(step)["talk"]


@torch.no_grad()
def test_every_step_is_asked_for_the_token_it_would_draft(tmp_path):
    """Step k at place t: its input is the token t + k and the state of step k - 1, its target the token t + k + 1."""
    model = module(tmp_path).model
    ids = torch.randint(32, 120, (2, 9))
    labels = ids.masked_fill(torch.rand(2, 9) < 0.3, IGNORED)
    asked = DraftLosses(model, PredictPlan(depth=3, weight=0.6))
    hidden = model.read(ids)
    parts = asked.parts("talk", labels)
    assert list(parts) == ["talk_ahead_1", "talk_ahead_2", "talk_ahead_3"]
    for k, (weight, loss) in enumerate(parts.values(), 1):
        assert weight == pytest.approx(0.2)
        hidden = model.mtp(model.embed(ids[:, k:]), hidden[:, : 9 - k])
        targets = labels[:, k + 1 :]
        expected = F.cross_entropy(model.predict(hidden[:, :-1]).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        torch.testing.assert_close(loss, expected)


@torch.no_grad()
def test_no_text_of_a_pack_is_read_on_into_the_next(tmp_path):
    model = module(tmp_path).model
    lengths = (7, 9)
    texts = [torch.randint(32, 120, (1, n)) for n in lengths]
    asked, alone = DraftLosses(model, PredictPlan(depth=2, weight=1.0)), []
    for text in texts:
        model.read(text)
        alone.append([float(loss) for _, loss in asked.parts("talk", text).values()])
    packed = torch.cat(texts, dim=1)
    segments = torch.repeat_interleave(torch.tensor([0, 1]), torch.tensor(lengths))[None]
    model.context(model.embed(packed), segments=segments)
    for k, (_, loss) in enumerate(asked.parts("talk", packed, segments).values(), 1):
        own = [n - k - 1 for n in lengths]
        expected = sum(n * losses[k - 1] for n, losses in zip(own, alone, strict=True)) / sum(own)
        assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_short_texts_ask_as_far_as_they_reach(tmp_path):
    model = module(tmp_path).model
    asked = DraftLosses(model, PredictPlan(depth=5))
    for n, steps in ((2, 0), (3, 1), (4, 2)):
        ids = torch.randint(32, 120, (1, n))
        model.read(ids)
        assert len(asked.parts("talk", ids)) == steps


def test_divergence():
    logits, taught = torch.randn(2, 3, 7, requires_grad=True), torch.randn(2, 3, 7)
    where = torch.tensor([[True, False, True], [False, False, True]])
    found = forward_kl(logits, taught, where, 2.0)
    p, q = (taught / 2).softmax(-1), (logits / 2).softmax(-1)
    expected = 4 * (p * (p / q).log()).sum(-1)[where].mean()
    torch.testing.assert_close(found, expected)
    found.backward()
    assert not logits.grad[~where].any()
    assert logits.grad[where].all()
    assert float(forward_kl(taught, taught, where, 2.0)) == pytest.approx(0, abs=1e-6)
    assert float(forward_kl(taught.flip(-1), taught, torch.zeros_like(where), 2.0)) == 0


def test_boosting_teaches_what_the_trunk_says_and_leaves_it(tmp_path):
    """Where the block says what the trunk does the loss is nothing; gradients reach the block alone."""
    own = module(tmp_path, frozen=TRUNK, predict={"depth": 3, "weight": 1.0, "boost": True})
    plan, batch = talk(own)
    parts = own.talk_losses(plan, batch)
    total = sum(weight * loss for name, (weight, loss) in parts.items() if "ahead" in name)
    total.backward()
    learnt = {name.split(".")[1] for name, p in own.named_parameters() if p.grad is not None and p.grad.any()}
    assert learnt == {"mtp"}
    asked = own.drafts
    ids = torch.randint(32, 120, (1, 8))
    hidden = own.model.read(ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asked, "_steps", lambda _, h, depth, __: [h[:, k:] for k in range(1, depth + 1)])
        parts = asked.parts("talk", ids)
    assert hidden.shape[1] == 8
    assert [float(loss) for _, loss in parts.values()] == pytest.approx([0, 0, 0], abs=1e-5)


def test_states_of_earlier_steps_are_mixed_in_boosting_only(tmp_path):
    model = module(tmp_path).model
    states = [torch.full((2, 9 - k, 3), float(k)) for k in range(4)]
    plain = DraftLosses(model, PredictPlan(depth=4))
    assert set(plain._given(states, 5).unique().tolist()) == {3.0}
    boosted = DraftLosses(model, PredictPlan(depth=4, boost=True))
    given = boosted._given(states, 5)
    assert given.shape == (2, 5, 3)
    assert set(given.unique().tolist()) == {1.0, 2.0, 3.0}
    assert bool((given == given[..., :1]).all()), "a place takes all of one state"
    assert set(boosted._given(states[:2], 8).unique().tolist()) == {1.0}
    assert set(boosted._given(states[:1], 9).unique().tolist()) == {0.0}, "the first step is given the trunk's own"


def test_a_block_that_has_learnt_drafts_more_that_holds(tmp_path):
    """A text said again and again: after training, drafts of the next letters hold; before, few do."""
    own = module(tmp_path)
    text = own.model.tokenizer.encode("abcdefgh" * 6)
    ids = torch.tensor([text])
    optimiser = torch.optim.AdamW(own.model.parameters(), lr=3e-3)
    asked = [{"role": "user", "content": "go"}]
    prompt = own.model.prepare([asked]).input_ids
    ids = torch.cat([prompt, ids], dim=1)
    options = {"max_new_tokens": 40, "temperature": 0, "drafts": 4, "adaptive": False}

    def held() -> tuple[str, float]:
        own.model.eval()
        reply = Chat(own.model)(asked, **options)
        own.model.train()
        return reply.text, reply.usage.drafts.accepted_per_pass

    before = held()[1]
    for _ in range(80):
        hidden = own.model.read(ids)
        labels = ids.clone()
        labels[:, : prompt.shape[1]] = IGNORED
        parts = own._said("talk", 1.0, hidden, labels, torch.zeros_like(labels, dtype=torch.bool), Inputs(ids))
        sum(weight * loss for weight, loss in parts.values()).backward()
        optimiser.step()
        optimiser.zero_grad()
    said, after = held()
    assert said.startswith("abcdefghabcdefgh")
    assert after > 2.5 > before


def test_a_recipe_says_what_is_asked_and_what_cannot_be(tmp_path):
    plan, batch = talk(own := module(tmp_path))
    assert set(own.talk_losses(plan, batch)) == {"talk", "talk_ahead_1", "talk_ahead_2"}
    without = module(tmp_path, predict=None)
    assert set(without.talk_losses(*talk(without))) == {"talk"}
    with pytest.raises(ValueError, match="has predict, but its model has no block"):
        DraftLosses(micro_model(), PredictPlan())
    with pytest.raises(ConfigError, match=r"predict\.boost leaves .* frozen lacks \['context', 'embed'\]"):
        module(tmp_path, predict={"boost": True})
    with pytest.raises(ConfigError, match=r"PredictPlan\.depth is 0"):
        PredictPlan(depth=0)
    with pytest.raises(ConfigError, match=r"PredictPlan has no fields \['deep'\]"):
        module(tmp_path, predict={"deep": 1})
