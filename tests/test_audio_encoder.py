"""Audio encoder: equal to transformers' ParakeetEncoder, indifferent to padding, and able to learn when small."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from towers import close, noise

from omni.config import SoundConfig, replace
from omni.encoders.audio import AudioEncoder, MaskedBatchNorm, RelativeAttention, relative_positions, relative_shift

SOUND = SoundConfig(
    d_model=24, n_layers=2, n_heads=3, d_ff=40, n_mels=16, channels=6, conv_kernel=5, subsampling=4, d_projector=32
)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and running statistic drawn anew, none at a trivial value; variances stay positive."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if name.endswith("num_batches_tracked"):
                continue
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=g))
            elif tensor.dim() == 1:
                tensor.copy_(float(name.endswith("weight")) + 0.3 * torch.randn(tensor.shape, generator=g))
            else:
                tensor.copy_(1.2 * tensor[0].numel() ** -0.5 * torch.randn(tensor.shape, generator=g))
    return module


def encoder(seed: int = 0, **changes) -> AudioEncoder:
    return randomise(AudioEncoder(replace(SOUND, **changes)), seed).double().eval()


def reference(config: SoundConfig):
    """transformers' encoder of the same sizes."""
    from transformers import ParakeetEncoder, ParakeetEncoderConfig

    same = {
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.d_ff,
        "attention_bias": config.bias,
        "convolution_bias": config.conv_bias,
        "conv_kernel_size": config.conv_kernel,
        "subsampling_factor": config.subsampling,
        "subsampling_conv_channels": config.channels,
        "num_mel_bins": config.n_mels,
        "scale_input": config.scale_input,
    }
    return ParakeetEncoder(ParakeetEncoderConfig(**same)).eval()


def their_names(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that ParakeetEncoder gives them: the same ones."""
    return dict(ours)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


# -- the reference implementation ------------------------------------------------------------------------------------

VARIANTS = {
    "nemotron": {},
    "biases": {"bias": True, "conv_bias": True},
    "scaled": {"scale_input": True},
    "all": {"bias": True, "conv_bias": True, "scale_input": True, "subsampling": 8, "conv_kernel": 9},
    "halved": {"subsampling": 2, "conv_kernel": 3, "n_heads": 4},
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_parakeet_encoder(variant, seed):
    config = replace(SOUND, **VARIANTS[variant])
    ours = randomise(AudioEncoder(config), seed).eval()
    theirs = reference(config)
    theirs.load_state_dict(their_names(ours.state_dict()), strict=True)
    with torch.no_grad():
        for frames in (1, 7, 64, 101 + seed):
            features = noise(1, frames, config.n_mels, seed=seed, dtype=torch.float32)
            expected = theirs(features).last_hidden_state
            assert relative_error(ours(features), expected) < 1e-4
        lengths = torch.tensor([93, 40, 1, 64 + seed])
        mask = torch.arange(93) < lengths[:, None]
        features = noise(4, 93, config.n_mels, seed=seed + 9, dtype=torch.float32) * mask[:, :, None]
        expected = theirs(features, attention_mask=mask)
        tokens = ours.tokens_of(lengths)
        assert expected.attention_mask.sum(-1).tolist() == tokens.tolist()
        actual = ours(features, lengths)
        for row, n in enumerate(tokens.tolist()):
            assert relative_error(actual[row, :n], expected.last_hidden_state[row, :n]) < 1e-4
        # transformers also reads the token behind a clip whose frames divide by the factor (SoundConfig.last_frame)
        assert relative_error(actual, expected.last_hidden_state) < 1e-4


def test_has_the_parameters_of_the_published_size():
    config = SoundConfig(d_model=1024, n_layers=24, n_heads=8, d_ff=4096)
    with torch.device("meta"):
        ours, theirs = AudioEncoder(config), reference(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in their_names(ours.state_dict()).items()}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in theirs.parameters()) == 608_879_616


# -- its parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5])
def test_relative_shift_picks_the_column_of_each_distance(n):
    scores = noise(2, 3, n, 2 * n - 1)
    shifted = relative_shift(scores)
    for i in range(n):
        for j in range(n):
            close(shifted[..., i, j], scores[..., i, n - 1 - i + j], 0)


def test_attention_scores_each_pair_by_content_and_distance():
    module = randomise(RelativeAttention(SOUND)).double()
    x = noise(1, 6, SOUND.d_model)
    heads, width = module.bias_u.shape
    q, k, v = (p(x)[0].view(6, heads, width) for p in (module.q_proj, module.k_proj, module.v_proj))
    mixed = torch.empty(6, heads, width, dtype=x.dtype)
    for i in range(6):
        for h in range(heads):
            scores = []
            for j in range(6):
                steps = torch.arange(0, SOUND.d_model, 2, dtype=x.dtype)
                angles = (i - j) / 10_000 ** (steps / SOUND.d_model)
                sinusoid = torch.stack([angles.sin(), angles.cos()], -1).flatten()
                r = module.relative_k_proj(sinusoid).view(heads, width)[h]
                scores.append(((q[i, h] + module.bias_u[h]) @ k[j, h] + (q[i, h] + module.bias_v[h]) @ r) / width**0.5)
            mixed[i, h] = torch.stack(scores).softmax(0) @ v[:, h]
    close(module(x, relative_positions(x), None)[0], module.o_proj(mixed.flatten(1)), 1e-6)


@pytest.mark.parametrize(("frames", "tokens"), [(1, 1), (8, 1), (9, 2), (10, 2), (100, 13), (200, 25), (1000, 125)])
def test_counts_one_token_for_eight_frames(frames, tokens):
    model = encoder(subsampling=8)
    assert model.tokens_of(frames) == tokens
    assert model(noise(1, frames, SOUND.n_mels)).shape == (1, tokens, SOUND.d_model)


# -- padding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [9, 100, 137, 200])
@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("ragged", [False, True])
def test_subsampling_in_slices_is_subsampling_at_once(frames, factor, ragged, monkeypatch):
    whole = encoder(subsampling=factor)
    sizes = []
    whole.subsampling.linear.register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[1]))
    features = noise(3, frames, SOUND.n_mels)
    lengths = torch.tensor([frames, frames // 2, 3]) if ragged else None
    monkeypatch.setattr("omni.encoders.audio.SLICE", 3 * 4)  # four tokens of each row, and one in front
    at_once = whole.subsampling(features, lengths)
    assert sizes == [whole.tokens_of(frames)], "where gradients are wanted"
    with torch.no_grad():
        close(whole.subsampling(features, lengths), at_once, 1e-12)
    assert len(sizes) == 1 + -(-sizes[0] // 4)
    assert max(sizes[1:]) <= 5


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_a_batch_gives_what_each_row_gives_alone(changes):
    model = encoder(**changes)
    lengths = torch.tensor([61, 9, 48, 1])
    rows = [noise(int(n), SOUND.n_mels, seed=i) for i, n in enumerate(lengths)]
    batch = torch.full((4, 70, SOUND.n_mels), 3.0, dtype=torch.float64)  # what stands at padding must not matter
    for row, features in enumerate(rows):
        batch[row, : len(features)] = features
    together = model(batch, lengths)
    for row, features in enumerate(rows):
        alone = model(features[None])[0]
        close(together[row, : len(alone)], alone)
    assert not torch.allclose(model(batch)[1, :2], together[1, :2])  # without lengths it would matter


def test_padding_changes_neither_training_nor_the_running_statistics():
    features, lengths = noise(3, 40, SOUND.n_mels), torch.tensor([40, 22, 7])
    short, long = encoder().train(), encoder().train()
    a, b = short(features, lengths), long(F.pad(features, (0, 0, 0, 33)), lengths)
    for row, n in enumerate(short.tokens_of(lengths).tolist()):
        close(a[row, :n], b[row, :n])
    a[0].sum().backward()
    b[0, : a.shape[1]].sum().backward()
    close(dict(short.named_buffers()), dict(long.named_buffers()))
    close({n: p.grad for n, p in short.named_parameters()}, {n: p.grad for n, p in long.named_parameters()}, 1e-8)


def test_batch_norm_counts_valid_frames_only():
    norm, plain = MaskedBatchNorm(5).double(), nn.BatchNorm1d(5).double()
    x, valid = noise(2, 5, 7), torch.arange(7) < torch.tensor([[4], [6]])
    rows = torch.cat([x[0, :, :4], x[1, :, :6]], 1)[None]
    close(torch.cat([norm(x, valid)[0, :, :4], norm(x, valid)[1, :, :6]], 1)[None], plain(rows))
    close(norm(x), nn.BatchNorm1d(5).double()(x))


def test_one_token_alone_can_be_trained_on():
    model = encoder(subsampling=8).train()
    before = {n: b.clone() for n, b in model.named_buffers()}
    out = model(noise(1, 8, SOUND.n_mels))
    assert torch.isfinite(out).all()
    close(dict(model.named_buffers()), before, 0)


def test_half_precision_stays_finite_at_padding():
    model = encoder().float().train()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(noise(2, 50, SOUND.n_mels, dtype=torch.float32), torch.tensor([50, 3]))
        out.float().square().mean().backward()
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


# -- learning --------------------------------------------------------------------------------------------------------


def test_a_small_encoder_learns_where_energy_moves():
    """Which of four bands sounds, token by token, in clips of different lengths; measured in eval mode."""
    torch.manual_seed(0)
    config = replace(SOUND, d_model=32, n_heads=4, d_ff=64, channels=8, subsampling=8)
    model, head = AudioEncoder(config), nn.Linear(32, 4)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=3e-3)

    def batch():
        bands, lengths = torch.randint(4, (8, 8)), torch.randint(16, 65, (8,))
        levels = F.one_hot(bands.repeat_interleave(8, 1), 4).repeat_interleave(4, 2).float()
        energy = levels + 0.5 * torch.randn(8, 64, 16)
        valid = torch.arange(8) < model.tokens_of(lengths)[:, None]
        return energy, lengths, bands.masked_fill(~valid, -100)

    for _ in range(150):
        energy, lengths, bands = batch()
        loss = F.cross_entropy(head(model(energy, lengths)).flatten(0, 1), bands.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        energy, lengths, bands = batch()
        guess = head(model.eval()(energy, lengths)).argmax(-1)
    right = (guess == bands)[bands >= 0].float().mean()
    assert right > 0.9


def test_refuses_features_of_other_sizes():
    model = encoder()
    with pytest.raises(ValueError, match=r"\(1, 10, 17\); they must be \(batch, frames, 16\)"):
        model(noise(1, 10, 17))
    with pytest.raises(ValueError, match="at least one frame"):
        model(noise(1, 0, 16))
    with pytest.raises(ValueError, match=r"lengths are \(3,\); 2 rows"):
        model(noise(2, 10, 16), torch.tensor([1, 2, 3]))
