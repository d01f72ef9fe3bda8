"""From where a chart shows a value to its ticks and its name: where those are, and the heads that are told so."""

import dataclasses
import re
from random import Random

import pytest
import torch

import omni
from omni.config import ConfigError
from omni.data import charts
from omni.data.batches import LINKS, link_targets, read_batch
from omni.data.document_questions import Questions
from omni.data.documents import sample_document
from omni.data.page import Page, sample_style
from omni.losses import IGNORED, linked
from omni.recipe import ReadPlan, Recipe, Stage
from omni.training import OmniTraining, encoding
from omni.training_parts import Linker


@pytest.mark.parametrize("kind", charts.CHARTS)
def test_a_value_is_linked_to_the_tick_at_it_or_below(kind, monkeypatch):
    put, written = charts._put, {}

    def noted(page, text, *more, **options):
        written[len(page.glyphs)] = text
        return put(page, text, *more, **options)

    monkeypatch.setattr(charts, "_put", noted)
    found = [0, 0]
    for seed in range(20):
        written.clear()
        rng = Random(seed)
        page = Page(rng, 160, 192, sample_style(rng, 160, 192))
        charts.CHARTS[kind](page, Questions(rng))
        starts = sorted(written)
        for tip in page.tips:
            values = [float(value.rstrip("%k")) for value in tip.values]
            for axis, (tick, value) in enumerate(zip(tip.ticks, (values[-1], values[0]), strict=True)):
                if tick is None:
                    continue
                found[axis] += 1
                at = float(written[tick].rstrip("%k"))
                after = re.fullmatch(r"([\d.]+)[%k]?", written.get(starts[starts.index(tick) + 1], ""))
                assert value == at or at < value < float(after[1])
                printed = any((glyph.x, glyph.y) == (tip.x, tip.y) for glyph in page.glyphs)
                if value == at and axis == 0 and not printed:
                    assert abs(tip.y - page.glyphs[tick].y) < 2
    axes = {"bars": [True, False], "hbars": [False, True], "line": [True, False], "pie": [False, False]}
    assert [n > 0 for n in found] == axes.get(kind, [True, True])


def test_targets_are_the_patches_of_ticks_and_names():
    linked_patches = 0
    for seed in range(40):
        chart = sample_document(seed, "chart")
        targets = link_targets(chart, 8)
        assert targets.shape == (chart.squares(8), LINKS)
        own = {chart.square(tip, 8) for tip in chart.tips} - {None}
        assert set((targets[:, 2] != IGNORED).nonzero()[0].tolist()) == own
        names = {chart.square(chart.glyphs[label.start], 8) for label in chart.labels}
        assert set(targets[:, 2].tolist()) - {IGNORED} <= names
        linked_patches += len(own)
    assert linked_patches > 100
    assert (link_targets(sample_document(3, "page"), 8) == IGNORED).all()


def test_the_loss_is_the_cross_entropy_of_each_head():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 2, 3, 6, 4, generator=generator).unbind(0)
    targets = torch.full((2, 3, 6), IGNORED)
    targets[0, 0, 1], targets[0, 2, 5], targets[1, 1, 0] = 4, 0, 3
    said = []
    for b, h, i in ((0, 0, 1), (0, 2, 5), (1, 1, 0)):
        scores = k[b, h] @ q[b, h, i] / 2
        said.append(scores.logsumexp(0) - scores[targets[b, h, i]])
    torch.testing.assert_close(linked(q, k, targets), torch.stack(said).mean())
    assert float(linked(q, k, torch.full((2, 3, 6), IGNORED))) == 0


def test_the_heads_are_those_of_the_last_block_and_learn():
    model = omni.load("tiny", dtype=torch.float32).train()
    linker, pixels = Linker(model), torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    targets = torch.full((2, 24, LINKS), IGNORED)
    targets[:, 3:9] = 20
    with torch.no_grad():
        model.vision(pixels)
    with pytest.raises(ValueError, match="link_weight"):
        linker.loss(targets)  # nothing is kept of what is not learned from
    block = model.vision.blocks[-1]
    seen = []
    hook = block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    model.vision(pixels)
    hook.remove()
    loss = linker.loss(targets)
    ((x, _, rotary),) = seen
    queries, keys, _ = block.project(x, rotary)
    n, prefix, said = 24 + model.config.vision.n_prefix, model.config.vision.n_prefix, []
    for b in range(2):
        for i in range(3, 9):
            for h in range(LINKS):
                scores = keys[b * n : (b + 1) * n, h] @ queries[b * n + prefix + i, h] * keys.shape[-1] ** -0.5
                said.append(scores.logsumexp(0) - scores[prefix + 20])
    torch.testing.assert_close(loss, torch.stack(said).mean())
    loss.backward()
    per, d = keys.shape[-1], model.config.vision.d_model
    rows = block.qkv.weight.grad.abs().sum(dim=1) > 0
    assert rows[: LINKS * per].all()
    assert rows[d : d + LINKS * per].all()
    assert not rows[LINKS * per : d].any()  # the last head is free
    assert not rows[2 * d :].any()
    assert block.down_proj.weight.grad is None
    assert model.vision.stem.convs[0].weight.grad.any()


def test_the_recipe_asks_for_it():
    model = omni.load("tiny", dtype=torch.float32)
    plan = ReadPlan(size=1, mixture={"chart": 1.0}, link_weight=0.5, questions=1)
    recipe = Recipe(model="omni-tiny", stages=(Stage(name="reading", steps=1, lr=1e-3, read=plan),))
    module = OmniTraining(model, recipe).train()
    batch = read_batch(3, 1, "chart", encoding(model), shape=(128, 160), questions=1)
    weight, loss = module.read_losses(plan, batch)["link"]
    assert weight == 0.5
    loss.backward()
    moved = {n.split(".")[0] for n, p in module.model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"vision"}
    assert "link" not in module.read_losses(dataclasses.replace(plan, link_weight=0.0), batch)
    with pytest.raises(ValueError, match="link_weight is set"):
        OmniTraining(model, dataclasses.replace(recipe, frozen=("vision",)))
    with pytest.raises(ConfigError, match=r"link_weight is 0\.5 and glyph_weight 0"):
        dataclasses.replace(plan, glyph_weight=0.0)
