"""Training of a denoiser of tokens: blocks, noise, what is known before a block, and a run that learns."""

import pytest
import torch
import torch.nn.functional as F
import yaml
from micro import CONTEXT, MICRO, micro_model
from towers import ROTARY, build_system, close, fill, ids, system_config, tower_config

import omni
from omni import families
from omni.blocks import FRAYED, Blocks, cut, masked_at, stratified
from omni.config import ConfigError, TimeConfig, TokenDiffusionConfig, replace
from omni.data.texts import TEXTS, TextBatch, text_batch
from omni.families.base import Preset
from omni.model import Omni
from omni.recipe import DiffusePlan, load_recipe
from omni.training import OmniTraining, build, train
from omni.training_diffusion import DiffusionLosses, begin, reading_only
from omni.training_steps import Steps, encoding

SIZES = replace(
    MICRO,
    vision=None,
    latent=None,
    diffusion=TokenDiffusionConfig(block_size=8, steps=8),
    special_tokens={"bos": 1, "eos": [11, 2], "mask": 3, "pad": 21},
)
MASK = 3


@pytest.fixture(autouse=True, scope="module")
def micro_preset():
    known = families.presets()
    known["omni-micro-tokens"] = Preset(SIZES, "omni-micro-tokens")
    yield
    del known["omni-micro-tokens"]


def system(pattern: str = "M*E", size: int = 4, rotary: bool = True, **changes) -> Omni:
    """A random system that denoises tokens, every weight away from its trivial value."""
    tower = tower_config(pattern, **({"rotary": ROTARY, "qk_norm": True} if rotary else {}))
    config = system_config(
        tower,
        time=TimeConfig(mode="adaln", n_frequencies=6),
        vision=None,
        latent=None,
        mtp=None,
        diffusion=TokenDiffusionConfig(block_size=size),
        special_tokens={"mask": MASK, "eos": 2, "pad": 0},
        **changes,
    )
    return build_system(config)


def everything(tokens: torch.Tensor) -> TextBatch:
    """Whole rows that are learnt but for their first token."""
    learnt = torch.ones_like(tokens, dtype=torch.bool)
    learnt[:, 0] = False
    return TextBatch(tokens, torch.ones_like(learnt), learnt)


# -- blocks --------------------------------------------------------------------------------------------------


def letters(text: str, alphabet: str = "_.paqMb") -> torch.Tensor:
    return torch.tensor([[alphabet.index(c) for c in row] for row in text.split()])


def test_texts_are_cut_into_blocks_and_nothing_behind_an_end_is_learnt():
    text = letters("ppppaaaa.pa_ pppaaaaaaaa. ppa.________")
    learnt = (text == 3) | (text == 1)
    found = cut(text, text > 0, learnt, torch.tensor([2, 3, 1]), 4, frozenset({1}))
    assert found.rows.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert found.starts.tolist() == [2, 6, 10, 3, 7, 11, 1]
    expect = {
        "tokens": letters("ppaa aa.p a___ aaaa aaaa .... pa._"),
        "learnt": letters("__pp ppp_ p___ pppp pppp p___ _pp_") > 0,
        "hidden": letters("____ ___p _ppp ____ ____ _ppp ___p") > 0,
    }
    for name, wanted in expect.items():
        own = getattr(found, name)
        seen = ~found.hidden if name == "tokens" else torch.ones_like(own, dtype=torch.bool)
        assert own[seen].tolist() == wanted[seen].tolist(), name


def test_an_end_can_be_repeated_and_prompts_alone_give_no_block():
    text = letters("pppaa.__ pppppppp")
    learnt = (text == 3) | (text == 1)
    found = cut(text, text > 0, learnt, torch.tensor([3, 3]), 4, frozenset({1}), repeat_end=True)
    assert (found.rows.tolist(), found.starts.tolist()) == ([0], [3])
    assert found.tokens.tolist() == letters("aa..").tolist()
    assert bool(found.learnt.all())
    assert not bool(found.hidden.any())
    assert len(cut(text[1:], text[1:] > 0, learnt[1:], torch.tensor([1]), 4)) == 0
    assert len(cut(text[:, :1], text[:, :1] > 0, learnt[:, :1], torch.tensor([1, 4]), 4)) == 0


@pytest.mark.parametrize("k", [1, 7, 64])
def test_times_are_stratified(k):
    t = stratified(k)
    assert float(t.min()) > 0
    assert float(t.max()) <= 1
    assert sorted((t * k).ceil().long().tolist()) == list(range(1, k + 1))
    assert k == 1 or t.tolist() != sorted(t.tolist())


def test_masks_fall_on_what_is_learnt_at_the_rate_of_the_time_and_one_always_does():
    k = 4000
    learnt = torch.tensor([True, True, False, True, False, True]).repeat(k, 1)
    hidden = torch.tensor([False] * 4 + [True, False]).repeat(k, 1)
    blocks = Blocks(torch.zeros(k), torch.zeros(k), torch.full((k, 6), 9), learnt, hidden)
    torch.manual_seed(0)
    for rate in (0.2, 0.7, 1.0):
        masked = masked_at(blocks, torch.full((k,), rate))
        assert not bool((masked & ~learnt).any())
        expected = rate + (1 - rate) ** 4 / 4
        assert float(masked[learnt].float().mean()) == pytest.approx(expected, abs=0.02)
    least = masked_at(blocks, torch.zeros(k))
    assert least.sum(dim=1).tolist() == [1] * k
    assert float(least.float().mean(0)[learnt[0]].std()) < 0.03, "no place is preferred"
    noisy, t = blocks.noisy(least, MASK)
    assert t.tolist() == pytest.approx([2 / 6] * k)
    assert torch.equal(noisy == MASK, least | hidden)


def test_ordered_masks_are_the_last_ones_give_or_take():
    k = 2000
    learnt = torch.tensor([False, True, True, True, False] + [True] * 10 + [False]).repeat(k, 1)
    blocks = Blocks(torch.zeros(k), torch.zeros(k), torch.full((k, 16), 9), learnt, torch.zeros_like(learnt))
    torch.manual_seed(0)
    t = stratified(k)
    masked = masked_at(blocks, t, torch.ones(k, dtype=torch.bool))
    assert not bool((masked & ~learnt).any())
    assert float(masked.sum()) / float(learnt.sum()) == pytest.approx(0.5, abs=0.03)
    own = masked[:, learnt[0]]
    first, last = own.int().argmax(dim=1), 12 - (~own).int().flip(1).argmax(dim=1)
    some = ~own.all(dim=1)
    assert int((last - first)[some].max()) <= FRAYED, "what is clear stands hardly behind what is masked"
    strict = (last < first) & some
    assert 0.1 < float(strict.float().mean()) < 0.9, "and not always before it"
    alone = masked_at(blocks, t, torch.arange(k) < k // 2)
    assert bool((alone[k // 2 :, 1] & ~alone[k // 2 :, 14]).any()), "the others are masked anywhere"


# -- what is known before a block ----------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("rotary", [True, False], ids=["rotary", "bare"])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_logits_of_one_pass_are_those_of_block_after_block(size, rotary):
    """The sampler's own: the text before a block read into a cache, and the block denoised behind it."""
    model = system("M*EM", size, rotary)
    text = ids(2, 15, vocab=31) % 28 + 3
    blocks = cut(text, text > 0, everything(text).learnt, torch.tensor([1, 2]), size)
    masked = masked_at(blocks, stratified(len(blocks)))
    noisy, t = blocks.noisy(masked, MASK)
    found = model.denoise_tokens(noisy, t, model.contexts(text, blocks.rows, blocks.starts))
    assert len(blocks) == -(-14 // size) + -(-13 // size)
    for i, (row, start) in enumerate(zip(blocks.rows.tolist(), blocks.starts.tolist(), strict=True)):
        cache = model.new_cache(1)
        for at in range(0, start, 5):
            model.read(text[row : row + 1, at : min(at + 5, start)], cache, last=0)
        close(found[i : i + 1], model.denoise_tokens(noisy[i : i + 1], t[i : i + 1], cache), 1e-9)


@torch.no_grad()
@pytest.mark.parametrize("pattern", ["M*M", "*-M", "M*E"])
def test_nothing_at_or_behind_a_blocks_start_leaks_into_it(pattern):
    """Bit for bit; where experts are grouped by what others choose, to rounding."""
    model = system(pattern, 4).float()
    text = ids(3, 18, vocab=31) % 28 + 3
    blocks = cut(text, text > 0, everything(text).learnt, torch.tensor([1, 3, 4]), 4)
    noisy, t = blocks.noisy(masked_at(blocks, stratified(len(blocks))), MASK)
    found = model.denoise_tokens(noisy, t, model.contexts(text, blocks.rows, blocks.starts))
    for place in range(1, 18):
        other = text.clone()
        other[:, place:] = (other[:, place:] + 5) % 28 + 3
        changed = model.denoise_tokens(noisy, t, model.contexts(other, blocks.rows, blocks.starts))
        same, known = blocks.starts <= place, blocks.starts > place
        close(changed[same], found[same], 1e-5 if "E" in pattern else 0)
        if bool(known.any()):
            assert bool((changed[known] != found[known]).flatten(1).any(1).all()), "the text before a block counts"


def test_a_denoiser_begins_as_the_context_tower_and_needs_equal_sizes():
    """Given the last token it says what the context tower says next: every wire leads where it should."""
    model = micro_model(**{k: getattr(SIZES, k) for k in ("vision", "latent", "diffusion", "special_tokens")}).double()
    begin(model)
    text = ids(2, 9, vocab=300) + 4
    with torch.no_grad():
        expected = model.logits(text)[:, -1]
        expected[:, MASK] = -torch.inf
        cache = model.new_cache(2)
        model.read(text[:, :-1], cache)
        for t in (0.1, 1.0):
            close(model.denoise_tokens(text[:, -1:], torch.full((2,), t), cache)[:, 0], expected)
        assert cache.lengths.tolist() == [8, 8]
    tied = Omni(replace(SIZES, tie_embeddings=True))
    begin(tied)
    assert torch.equal(tied.tokens.head.weight, tied.embed.weight)
    other = Omni(replace(SIZES, denoiser=replace(SIZES.denoiser, d_model=40)))
    with pytest.raises(ValueError, match="not of the same sizes"):
        begin(other)


# -- the objective -------------------------------------------------------------------------------------------


def module(folder, stage=None, **changes) -> OmniTraining:
    plain = {
        "model": "omni-micro-tokens",
        "seed": 3,
        "warmup": 2,
        "accelerator": "cpu",
        "stages": [{"name": "tokens", "steps": 4, "lr": 3e-3, "diffuse": stage or {"size": 4, "mixture": {"talk": 1}}}],
    }
    path = folder / "tokens.yaml"
    path.write_text(yaml.safe_dump(plain | changes))
    return build(load_recipe(path)).train()


def made(own: OmniTraining, step: int = 0):
    return Steps(own.recipe, encoding(own.model)).batches(step)["diffuse"]


def test_the_loss_is_the_mean_over_masked_tokens_and_only_the_denoiser_learns(tmp_path):
    own = module(tmp_path, {"size": 4, "mixture": {"talk": 1}, "draws": 2, "weight": 0.5})
    plan, batch = made(own)
    before = {name: value.clone() for name, value in own.model.state_dict().items()}
    torch.manual_seed(5)
    parts = own.diffuse_losses(plan, batch)
    weight, loss = parts["diffuse"]
    assert weight == 0.5
    torch.manual_seed(5)
    blocks = own.diffusion.blocks(own.model, plan, batch)
    assert torch.equal(blocks.tokens[::2], blocks.tokens[1::2])
    masked = masked_at(blocks, stratified(len(blocks)))
    noisy, t = blocks.noisy(masked, MASK)
    with torch.no_grad(), reading_only(own.model):
        logits = own.model.denoise_tokens(noisy, t, own.model.contexts(batch.input_ids, blocks.rows, blocks.starts))
    torch.testing.assert_close(loss.detach(), F.cross_entropy(logits[masked], blocks.tokens[masked]))
    right = (logits[masked].argmax(-1) == blocks.tokens[masked]).float().mean()
    assert float(parts["diffuse_right"][1]) == pytest.approx(float(right))
    loss.backward()
    learnt = {n.split(".")[1] for n, p in own.named_parameters() if p.grad is not None and p.grad.any()}
    assert learnt == {"denoiser", "tokens"}
    still = {n: v for n, v in own.model.state_dict().items() if n.split(".")[0] not in ("denoiser", "tokens")}
    assert all(torch.equal(value, before[name]) for name, value in still.items())
    loads = {n for n, b in own.model.named_buffers() if n.endswith("router.load") and b.any()}
    assert loads == {"denoiser.blocks.2.mixer.router.load"}, "the context's routers count nothing"
    assert own.model.context.training


def test_what_is_near_may_count_more_and_masks_may_be_ordered(tmp_path):
    plain = {"size": 4, "mixture": {"talk": 1}, "draws": 2}
    own = module(tmp_path, plain | {"ordered": 1.0, "half": 2.0})
    plan, batch = made(own)
    torch.manual_seed(5)
    _, loss = own.diffuse_losses(plan, batch)["diffuse"]
    torch.manual_seed(5)
    blocks = own.diffusion.blocks(own.model, plan, batch)
    torch.rand(len(blocks))  # which blocks are ordered: all
    masked = masked_at(blocks, stratified(len(blocks)), torch.ones(len(blocks), dtype=torch.bool))
    noisy, t = blocks.noisy(masked, MASK)
    with torch.no_grad(), reading_only(own.model):
        logits = own.model.denoise_tokens(noisy, t, own.model.contexts(batch.input_ids, blocks.rows, blocks.starts))
    total = weights = 0.0
    for row in range(len(blocks)):
        places = masked[row].nonzero().flatten().tolist()
        for place in places:
            weight = 0.5 ** ((place - places[0]) / 2)
            total += weight * float(F.cross_entropy(logits[row, place], blocks.tokens[row, place]))
            weights += weight
    assert float(loss) == pytest.approx(total / weights, rel=1e-5)
    with pytest.raises(ConfigError, match="half is 0"):
        DiffusePlan(**plain, half=0)
    with pytest.raises(ConfigError, match="ordered is 2"):
        DiffusePlan(**plain, ordered=2)


def test_of_a_begun_block_the_first_token_is_known(tmp_path):
    own = module(tmp_path)
    _, batch = made(own)
    seen, denoise = [], own.model.denoise_tokens
    own.model.denoise_tokens = lambda *args, where: seen.append(where) or denoise(*args, where=where)
    torch.manual_seed(5)
    for begun in (1.0, 0.0):
        own.diffusion.losses(own.model, DiffusePlan(size=4, mixture={"talk": 1}, begun=begun), batch)
    several = [where[where.sum(dim=1) > 1] for where in seen]
    assert len(several[0]) > 3
    assert not bool(several[0][:, 0].any())
    assert bool(several[1][:, 0].any()), "else it may be masked like any other"


def test_blocks_begin_anywhere_or_with_the_answer(tmp_path):
    own = module(tmp_path)
    _, batch = made(own)
    first = batch.learnt.int().argmax(dim=1)
    size, phases = 8, set()
    for _ in range(30):
        blocks = own.diffusion.blocks(own.model, DiffusePlan(size=4, mixture={"talk": 1}, aligned=0), batch)
        phases |= set((blocks.starts % size).tolist())
        assert int(blocks.starts.min()) >= 1
    assert phases == set(range(size))
    aligned = own.diffusion.blocks(own.model, DiffusePlan(size=4, mixture={"talk": 1}, aligned=1, block=5), batch)
    starts = [int(aligned.starts[aligned.rows == row].min()) for row in range(4)]
    assert starts == first.tolist()
    assert aligned.tokens.shape[1] == 5
    assert not bool(aligned.learnt[aligned.tokens == MASK].any())
    nothing = replace(batch, learnt=torch.zeros_like(batch.learnt))
    with pytest.raises(ValueError, match="no text of the batch"):
        DiffusionLosses().losses(own.model, DiffusePlan(size=4, mixture={"talk": 1}), nothing)


def test_texts_are_the_same_for_a_seed_and_fit(tmp_path):
    own = module(tmp_path)
    plan, batch = made(own)
    again = made(own)[1]
    assert torch.equal(batch.input_ids, again.input_ids)
    assert batch.input_ids.shape[1] <= plan.width
    tokenizer = own.model.tokenizer
    for ids_, real, learnt in zip(batch.input_ids, batch.mask, batch.learnt, strict=True):
        said = ids_[learnt].tolist()
        assert said[-1] == tokenizer.special["eos"][0]
        assert not bool((learnt & ~real).any())
        assert ids_[int(learnt.int().argmax()) - 1] != tokenizer.special["think"] or said[0] != 42
    code = encoding(own.model)
    with pytest.raises(ValueError, match="no texts \\['sagas'\\]; known: talk"):
        text_batch(0, 1, 100, code, {"sagas": 1.0})
    with pytest.raises(ValueError, match="at most 3 tokens long"):
        text_batch(0, 1, 3, code, {"talk": 1.0})


def test_the_denoiser_begins_once_and_not_when_it_has_learnt(tmp_path):
    own = module(tmp_path)
    plan, batch = made(own)

    def copied() -> bool:
        return torch.equal(own.model.tokens.embed.weight, own.model.embed.weight)

    assert not copied()
    own.diffuse_losses(plan, batch)
    assert copied()
    averages = own.ema.weights()
    assert torch.equal(averages["tokens.embed.weight"], own.model.embed.weight)
    assert torch.equal(averages["denoiser.blocks.0.mixer.A_log"], own.model.context.blocks[0].mixer.A_log)
    with torch.no_grad():
        own.model.tokens.embed.weight.mul_(2)
    own.diffuse_losses(plan, batch)
    assert not copied(), "only once"
    other = module(tmp_path)
    other.load_state_dict(own.state_dict())
    other.diffuse_losses(plan, batch)
    assert torch.equal(other.model.tokens.embed.weight, own.model.tokens.embed.weight), "a resumed run has begun"
    for given, learnt, expect in ((None, True, False), (True, True, True), (False, False, False)):
        own = module(tmp_path, {"size": 4, "mixture": {"talk": 1}, "begin": given})
        if learnt:
            with torch.no_grad():
                own.model.denoiser.time.project.weight.fill_(0.01)
        own.diffuse_losses(*made(own))
        assert copied() == expect, given
    plain = Omni(replace(SIZES, denoiser=replace(CONTEXT)))
    with pytest.raises(ValueError, match=r"DiffusePlan\.begin is not given"):
        DiffusionLosses().losses(plain, plan, batch)


def test_a_run_trains_the_denoiser_and_leaves_a_model(tmp_path):
    plain = {
        "model": "omni-micro-tokens",
        "seed": 1,
        "warmup": 1,
        "accelerator": "cpu",
        "save_every": 2,
        "stages": [
            {"name": "talk", "steps": 2, "lr": 1e-3, "talk": {"size": 2, "width": 200}},
            {"name": "tokens", "steps": 2, "lr": 1e-3, "diffuse": {"size": 2, "mixture": {"talk": 1.0}}},
        ],
    }
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(plain))
    folder = train(path, out=tmp_path / "run")
    model = omni.load(str(folder), device="cpu")
    assert model.config == SIZES
    assert bool(model.denoiser.time.project.weight.any())
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=False)["state_dict"]
    assert bool(state["diffusion.started"])


def test_a_denoiser_learns_a_text():
    """A random context tower that never learns anything is enough to write one text under full masks."""
    model = fill(Omni(SIZES)).train()
    model.context.requires_grad_(False)
    text = torch.tensor([[5, *range(40, 56), 11]])
    batch, plan = everything(text), DiffusePlan(size=1, mixture={"talk": 1}, draws=8, aligned=1)
    asked, optimiser = DiffusionLosses(), torch.optim.AdamW(model.parameters(), lr=5e-3)
    asked.losses(model, plan, batch)
    model.tokens.embed.weight.data.mul_(0.1)
    torch.manual_seed(0)
    for _ in range(70):
        loss = asked.losses(model, plan, batch)["diffuse"][1]
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert float(loss.detach()) < 0.5
    cache = model.eval().new_cache(1)
    model.read(text[:, :1], cache)
    with torch.no_grad():
        said = model.denoise_tokens(torch.full((1, 8), MASK), torch.ones(1), cache).argmax(-1)
    assert said.tolist() == text[:, 1:9].tolist()


def test_recipes_that_cannot_be(tmp_path):
    for stage, words in (
        ({"size": 4, "mixture": {}}, r"DiffusePlan\.mixture"),
        ({"size": 4, "mixture": {"sagas": 1}}, "known: " + ", ".join(TEXTS)),
        ({"size": 4, "mixture": {"talk": 1}, "aligned": 2}, r"DiffusePlan\.aligned is 2"),
        ({"size": 4, "mixture": {"talk": 1}, "block": 0}, r"DiffusePlan\.block is 0"),
        ({"size": 4, "mixture": {"talk": 1}, "deep": 1}, "no fields"),
    ):
        with pytest.raises(ConfigError, match=words):
            module(tmp_path, stage)
    families.presets()["omni-micro-plain"] = Preset(replace(SIZES, diffusion=None), "omni-micro-plain")
    try:
        with pytest.raises(ValueError, match="no denoiser for tokens"):
            module(tmp_path, model="omni-micro-plain")
    finally:
        del families.presets()["omni-micro-plain"]
    with pytest.raises(ConfigError, match="no denoiser tower"):
        replace(SIZES, denoiser=None)
    with pytest.raises(ConfigError, match=r"special_tokens\['mask'\] is None"):
        replace(SIZES, special_tokens={})
    with pytest.raises(ConfigError, match=r"block_size is 0"):
        TokenDiffusionConfig(block_size=0)
    with pytest.raises(ConfigError, match=r"threshold is 1.5"):
        TokenDiffusionConfig(threshold=1.5)
    model = micro_model()
    with pytest.raises(ValueError, match="no denoiser for tokens"):
        model.denoise_tokens(torch.ones(1, 2, dtype=torch.int64), torch.ones(1), model.new_cache(1))
