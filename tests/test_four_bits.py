"""Training in NVFP4: the Hadamard transform, unbiased gradients, square blocks, what stays high, a run that learns."""

import pytest
import torch
import yaml
from micro import MICRO, micro_model

from omni import families
from omni.config import ConfigError
from omni.data.text import sample_text
from omni.families.base import Preset
from omni.inputs import Inputs, pad_rows
from omni.losses import IGNORED, next_token
from omni.mixers.moe import Experts
from omni.model import Omni
from omni.optim import optimizer, split
from omni.quantization.formats import NVFP4, decode, encode
from omni.quantization.training import (
    Clock,
    FourBitExperts,
    FourBitLinear,
    Noise,
    four_bit,
    hadamard,
    hadamard_reference,
    train_in_four_bits,
)
from omni.recipe import FourBitPlan, load_recipe
from omni.tokenizers.bytes import ByteTokenizer
from omni.training import build, train


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(a, b) -> float:
    return float((a - b).norm() / b.norm())


def square(w) -> torch.Tensor:
    return decode(encode(w, NVFP4, block=(16, 16)), NVFP4)


# -- the products ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [16, 64, 7, 33])
def test_the_transform_cancels_in_a_product(tokens):
    signs = Clock(3).signs
    a, b = noise(5, tokens), noise(9, tokens, seed=1)
    turned = [hadamard(t, signs) for t in (a, b)]
    torch.testing.assert_close(turned[0] @ turned[1].mT, a @ b.mT, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(turned[0], hadamard_reference(a, signs), rtol=1e-5, atol=1e-5)
    assert 0 < int(signs.sum()) < 16
    peak = torch.zeros(1, 16)
    peak[0, 3] = 4.0
    assert hadamard(peak, signs).abs().tolist() == [[1.0] * 16]  # an outlier is spread over its group


def test_the_forward_product_is_that_of_both_rounded():
    x, w = noise(40, 64), noise(48, 64, seed=1)
    y = four_bit(x, w, Noise(Clock(), "a"))
    torch.testing.assert_close(y, decode(encode(x, NVFP4), NVFP4) @ square(w).mT, rtol=1e-4, atol=1e-3)
    assert 0.05 < error(y, x @ w.mT) < 0.25
    with torch.autocast("cpu", torch.bfloat16):
        assert error(four_bit(x, w, Noise(Clock(), "a")).float(), y) < 0.01
    odd = four_bit(noise(3, 20), noise(5, 20, seed=1), Noise(Clock(), "a"))
    assert error(odd, noise(3, 20) @ noise(5, 20, seed=1).mT) < 0.3


def gradients(x, w, dy, clock, steps):
    """Means over many steps, whose random numbers differ."""
    total = [0.0, 0.0]
    with torch.enable_grad():
        for step in range(steps):
            clock.step = step
            x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
            four_bit(x, w, Noise(clock, "a")).backward(dy)
            total = [t + g / steps for t, g in zip(total, (x.grad, w.grad), strict=True)]
    return total


def test_gradients_at_random_have_no_bias():
    """Means approach the products of the exact gradient with what the other factor is rounded to."""
    clock, x, w, dy = Clock(1), noise(32, 48), noise(32, 48, seed=1), noise(32, 32, seed=2)
    once, many = gradients(x, w, dy, clock, 1), gradients(x, w, dy, clock, 150)
    turned = hadamard(x.mT, clock.signs)
    held = decode(encode(turned, NVFP4), NVFP4)
    expected = dy @ square(w), hadamard(dy.mT, clock.signs) @ held.mT
    for one, mean, exact in zip(once, many, expected, strict=True):
        assert error(one, exact) > 0.08
        assert error(mean, exact) < 0.04


def test_the_weight_is_the_same_in_both_products():
    """The gradient of the input of what is exactly one is a row of the weight that the forward pass used."""
    w, clock = noise(32, 48, seed=1), Clock()
    forward = four_bit(torch.eye(48), w, Noise(clock, "a"))
    with torch.enable_grad():
        x = torch.zeros(32, 48).requires_grad_()
        four_bit(x, w, Noise(clock, "a")).backward(torch.eye(32))
    torch.testing.assert_close(x.grad, forward.mT, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(x.grad, square(w), rtol=1e-6, atol=1e-6)


def test_random_numbers_follow_step_layer_and_call():
    clock = Clock(7)
    a, b, x = Noise(clock, "a"), Noise(clock, "b"), torch.zeros(64)
    first = [a.draw(x), a.draw(x), b.draw(x)]
    clock.step = 1
    later = a.draw(x)
    clock.step = 0
    again = Noise(clock, "a")
    assert torch.equal(again.draw(x), first[0])
    assert torch.equal(again.draw(x), first[1])
    for i, one in enumerate([*first, later]):
        assert all(not torch.equal(one, other) for other in [*first, later][i + 1 :])


def test_a_high_forward_pass_has_low_gradients():
    clock, x, w = Clock(), noise(16, 32), noise(16, 32, seed=1)
    clock.high_forward = True
    with torch.enable_grad():
        w = w.requires_grad_()
        y = four_bit(x, w, Noise(clock, "a"))
        torch.testing.assert_close(y, x @ w.mT)
        dy = noise(16, 16, seed=2)
        y.backward(dy)
    assert 0.02 < error(w.grad, dy.mT @ x) < 0.4


# -- which layers ------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_untouched():
    model = micro_model()
    before = dict(model.named_parameters())
    train_in_four_bits(model, keep_last=0)
    swapped = {name for name, m in model.named_modules() if isinstance(m, (FourBitLinear, FourBitExperts))}
    inner = ("mixer.experts", "mixer.shared_experts.up_proj", "mixer.shared_experts.down_proj")
    blocks = {f"{tower}.blocks.2.{name}" for tower in ("context", "denoiser") for name in inner}
    assert swapped == blocks | {f"{tower}.blocks.0.mixer.in_proj" for tower in ("context", "denoiser")}
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    assert split(model)[0]  # the optimiser still finds the matrices
    assert {id(p) for p in split(model)[0]} == {id(p) for p in split(micro_like(model))[0]}


def micro_like(model: Omni) -> Omni:
    """The same parameters in plain modules."""
    plain = Omni(model.config)
    for name, parameter in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        setattr(plain.get_submodule(path), leaf, parameter)
    return plain


def test_first_and_last_blocks_and_frozen_parts_stay_high():
    model = micro_model()
    train_in_four_bits(model, keep_first=1, keep_last=1, keep=())
    swapped = {name for name, m in model.named_modules() if isinstance(m, (FourBitLinear, FourBitExperts))}
    assert swapped == {f"{t}.blocks.1.mixer.{n}_proj" for t in ("context", "denoiser") for n in "qkvo"}
    frozen = micro_model()
    frozen.context.requires_grad_(False)
    train_in_four_bits(frozen, keep_last=0)
    assert not any(isinstance(m, FourBitLinear) for m in frozen.context.modules())
    assert isinstance(frozen.context.blocks[2].mixer.experts, Experts)
    with pytest.raises(ValueError, match="no layer is left for four bits"):
        train_in_four_bits(micro_model(), keep_first=2)


def test_experts_in_four_bits_are_near_their_own():
    model = micro_model().train()
    ids = torch.randint(3, 200, (2, 24))
    plain = model.logits(ids)
    train_in_four_bits(model, keep_last=0)
    low = model.logits(ids)
    assert 0 < error(low, plain) < 0.5
    low.sum().backward()
    for name, parameter in model.context.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


# -- a run -------------------------------------------------------------------------------------------------------------


def learned(four_bits: bool, steps: int = 30) -> float:
    """The mean loss of the last ten steps of a micro model on short dialogues, the same ones for both."""
    torch.manual_seed(0)
    model = Omni(MICRO).train()
    tokenizer = ByteTokenizer()
    clock = train_in_four_bits(model, keep_last=0) if four_bits else None
    chosen, found = optimizer(model, weight_decay=0.0, betas=(0.9, 0.98)), []
    for group in chosen.param_groups:
        group["lr"] *= 4e-3
    for step in range(steps):
        if clock is not None:
            clock.step = step
        texts = [tokenizer.encode_chat(sample_text(8 * (step % 4) + i, "capital"))[:64] for i in range(8)]
        ids, mask = pad_rows(texts, 21)
        labels = ids if mask is None else ids.masked_fill(~mask, IGNORED)
        loss = next_token(model.predict(model.read(Inputs(ids, mask))), labels)
        chosen.zero_grad()
        loss.backward()
        chosen.step()
        found.append(float(loss.detach()))
    return sum(found[-10:]) / 10


def test_a_short_run_learns_nearly_as_much():
    high, low = learned(False), learned(True)
    assert high < 2.6  # it begins at log 320 = 5.8
    assert low < 1.1 * high
    assert low != high


RECIPE = {
    "model": "omni-micro-4",
    "warmup": 1,
    "log_every": 1,
    "probe_every": 100,
    "save_every": 2,
    "accelerator": "cpu",
    "four_bits": {"keep_last": 0, "high_from": 0.5},
    "stages": [{"name": "talk", "steps": 4, "lr": 1e-3, "talk": {"size": 1, "width": 64}}],
}


@pytest.fixture
def recipe(tmp_path):
    families.presets()["omni-micro-4"] = Preset(MICRO, "omni-micro-4")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    yield path
    del families.presets()["omni-micro-4"]


def test_a_recipe_trains_in_four_bits_and_resumes(recipe, tmp_path, monkeypatch):
    """The exported model is an ordinary one; two steps, a crash and two more are four steps."""
    from omni.training import OmniTraining

    module = build(load_recipe(recipe))
    assert module.recipe.four_bits == FourBitPlan(keep_last=0, high_from=0.5)
    assert isinstance(module.model.context.blocks[0].mixer.in_proj, FourBitLinear)
    forward, seen = OmniTraining.training_step, []

    def noted(self, batch, index):
        seen.append((self.clock.step, self.clock.high_forward))
        if len(seen) == 7:
            raise RuntimeError("power failure")
        return forward(self, batch, index)

    monkeypatch.setattr(OmniTraining, "training_step", noted)
    folder = train(recipe, out=tmp_path / "whole")
    assert seen == [(0, False), (1, False), (2, True), (3, True)]
    with pytest.raises(RuntimeError, match="power failure"):
        train(recipe, out=tmp_path / "parts")
    resumed = train(recipe, out=tmp_path / "parts")
    whole, parts = (families.load_folder(f).state_dict() for f in (folder, resumed))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert "context.blocks.0.mixer.in_proj.weight" in whole


def test_bad_plans_are_refused(recipe):
    for change, message in (
        ({"keep_first": -1}, "keep_first is -1"),
        ({"high_from": 2}, "high_from is 2"),
        ({"keep": "all"}, "keep is 'all'; it must be a list"),
        ({"layers": 3}, "FourBitPlan has no fields"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_recipe(recipe, None, {"four_bits": change})
    with pytest.raises(ValueError, match="no layer is left"):
        build(load_recipe(recipe, None, {"four_bits": {"keep_first": 3}}))
