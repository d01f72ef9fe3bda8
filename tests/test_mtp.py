"""Multi-token prediction: its structure, its own cache, and the drafts that follow from recycling."""

import pytest
import torch
from towers import LATENT, TOWERS, build_system, close, held, ids, noise, same_rows, system_config, tower_config

from omni.config import MTPConfig
from omni.mixers import Layout

TRUNKS = {
    "latent": (tower_config("M*E", moe=LATENT), "*E"),
    "rotary": (TOWERS["*-*- rotary"], "*-"),
    "axes": (TOWERS["E*M- axes"], "*E"),
    "any pattern": (tower_config("M"), "-*M"),
}


def build(trunk, pattern):
    """A language model with a drafter, and nothing else."""
    return build_system(system_config(trunk, mtp=MTPConfig(pattern=pattern), vision=None, denoiser=None, latent=None))


@pytest.fixture(params=TRUNKS, name="model")
def _model(request):
    trunk, pattern = TRUNKS[request.param]
    with torch.no_grad():
        yield build_system(
            system_config(trunk, mtp=MTPConfig(pattern=pattern), vision=None, denoiser=None, latent=None)
        )


def rms(x, norm):
    return x * (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt() * norm.weight


def inputs(model, n=6):
    """Hidden states of a text and the embeddings of each position's next token."""
    text = ids(2, n + 1, vocab=31)
    return model.embed(text[:, 1:]), model.read(text[:, :-1])


def test_structure(model):
    """eh_proj of [norm of the embedding; norm of the hidden], the blocks, the norm: nothing else."""
    mtp = model.mtp
    embedded, hidden = inputs(model)
    joined = torch.cat([rms(embedded, mtp.enorm), rms(hidden, mtp.hnorm)], dim=-1)
    f = joined @ mtp.eh_proj.weight.T
    index = torch.arange(6).expand(3, 2, 6)
    layout = Layout(6, rotary=mtp.rotary(index) if mtp.rotary else None)
    for block in mtp.blocks:
        f = f + block.mixer(rms(f, block.norm), layout)
    close(mtp(embedded, hidden), rms(f, mtp.norm))


def test_names(model):
    names = {name.split(".")[0] for name in model.mtp.state_dict()}
    assert names == {"enorm", "hnorm", "eh_proj", "blocks", "norm"}
    assert [block.letter for block in model.mtp.blocks] == list(model.config.mtp.pattern)
    assert model.mtp.eh_proj.weight.shape == (model.mtp.config.d_model, 2 * model.mtp.config.d_model)


@pytest.mark.parametrize("split", range(1, 6))
def test_its_own_cache_prefill_and_steps_equal_the_full_pass(model, split):
    embedded, hidden = inputs(model)
    full = model.mtp(embedded, hidden)
    cache = model.mtp.new_cache(2)
    parts = [split] + [1] * (6 - split)
    pieces = [
        model.mtp(e, h, cache=cache) for e, h in zip(embedded.split(parts, 1), hidden.split(parts, 1), strict=True)
    ]
    close(torch.cat(pieces, dim=1), full)
    assert cache.lengths.tolist() == [6, 6]
    assert len(cache.slots) == len(model.config.mtp.pattern)


def test_drafts_recycle_the_normed_hidden(model):
    """The second draft takes the first's output for the hidden and the drafted token for the token."""
    embedded, hidden = inputs(model)
    cache = model.mtp.new_cache(2)
    g = model.mtp(embedded, hidden, cache=cache)[:, -1:]
    token = model.predict(g).argmax(-1)
    cache.begin()
    drafted = model.mtp(model.embed(token), g, cache=cache)
    everything = model.mtp(
        torch.cat([embedded, model.embed(token)], 1),
        torch.cat([hidden, g], 1),
    )
    close(drafted, everything[:, -1:])
    cache.rollback()
    before = model.mtp.new_cache(2)
    model.mtp(embedded, hidden, cache=before)
    same_rows(cache, before)


def test_padding_and_packing(model):
    mask = torch.tensor([[False] * 2 + [True] * 4, [True] * 5 + [False]])
    embedded, hidden = inputs(model)
    cache = model.mtp.new_cache(2)
    got = model.mtp(embedded, hidden, mask=mask, cache=cache)
    for row in range(2):
        alone = model.mtp.new_cache(1)
        e, h = (x[row : row + 1, mask[row]] for x in (embedded, hidden))
        close(got[row, mask[row]], model.mtp(e, h, cache=alone)[0])
        close(held(cache, row), held(alone), 1e-10)
    packed = model.mtp(embedded, hidden, segments=torch.tensor([[0, 0, 0, 0, 1, 1]]).expand(2, -1))
    close(packed[:, 4:], model.mtp(embedded[:, 4:], hidden[:, 4:]))


def test_gradients_reach_the_embedding_the_trunk_and_the_drafter():
    model = build(*TRUNKS["latent"])
    text = ids(2, 7, vocab=31)
    g = model.mtp(model.embed(text[:, 1:]), model.read(text[:, :-1]))
    (model.predict(g) * noise(2, 6, 31)).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
