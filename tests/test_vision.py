"""Images on their way into the language model: encoder, pixel shuffle, projector, placeholders, positions."""

import pytest
import torch
import torch.nn.functional as F
from towers import IMAGE, TOWERS, VISION, build_system, close, fill, ids, noise, same_rows, system_config

from omni.config import replace
from omni.encoders.projector import Projector
from omni.encoders.reduction import pixel_shuffle
from omni.encoders.vision import ConvStem, LinearStem, VisionEncoder
from omni.inputs import Inputs, Piece, media_positions, media_runs, pad_rows


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def encoder(**changes) -> VisionEncoder:
    return fill(VisionEncoder(replace(VISION, **changes)).eval()).double()


def picture(rows: int, columns: int, seed: int = 1, patch: int = 4):
    """(3, H, W) in [0, 1] of that many patches."""
    shape = (3, rows * patch, columns * patch)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- encoder ---------------------------------------------------------------------------------------------------------


def test_patches_are_flattened_by_channel_then_row_then_column():
    stem = LinearStem(replace(VISION, patch_size=2, d_model=12))
    stem.proj.weight.copy_(torch.eye(12))
    pixels = torch.arange(24.0).view(1, 3, 2, 4)
    expected = [[0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21], [2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23]]
    assert stem(pixels)[0].tolist() == expected


def test_the_position_table_is_used_whole_at_its_own_size():
    model = encoder(max_grid=5)
    close(model._positions_for((5, 5)), model.positions, 0)
    close(model._positions_for((2, 5)), model.positions[:10], 0)
    columns = [row * 5 + column for row in range(5) for column in range(3)]
    close(model._positions_for((5, 3)), model.positions[columns], 0)


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (4, 4), (7, 3), (3, 7), (1, 9)])
def test_the_position_table_is_resized_to_the_longer_side_and_cropped(grid):
    model = encoder(max_grid=4)
    table = model.positions.view(4, 4, -1).float()
    side = max(grid)

    def at(row: int, column: int):
        """Bilinear, pixel centres aligned by area: where a cell of the side x side table lies in the 4 x 4 one."""
        y, x = (min(max((i + 0.5) * 4 / side - 0.5, 0), 3) for i in (row, column))
        top, left = int(y), int(x)
        bottom, right = min(top + 1, 3), min(left + 1, 3)
        above = table[top, left] * (1 - x + left) + table[top, right] * (x - left)
        below = table[bottom, left] * (1 - x + left) + table[bottom, right] * (x - left)
        return above * (1 - y + top) + below * (y - top)

    expected = torch.stack([at(row, column) for row in range(grid[0]) for column in range(grid[1])])
    close(model._positions_for(grid).float(), expected, 1e-5)


@pytest.mark.parametrize("grid", [(5, 5), (3, 4), (1, 1), (7, 2)])
def test_the_encoder_by_hand(grid):
    """Normalise, patch, add positions, prepend the prefix, pre-norm blocks with exact GELU, no last norm, no prefix."""
    model, pixels = encoder(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)), picture(*grid)
    normed = torch.stack([(pixels[c].float() - m) / s for c, (m, s) in enumerate([(0.4, 0.2), (0.5, 0.3), (0.6, 0.4)])])
    h, w = grid
    patches = [normed[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].flatten() for i in range(h) for j in range(w)]
    x = torch.stack(patches).double() @ model.stem.proj.weight.T + model._positions_for(grid)
    x = torch.cat([model.prefix, x])
    for block in model.blocks:
        q, k, v = block.qkv(block.norm1(x)).chunk(3, dim=-1)
        heads = []
        for part in range(3):
            own = slice(4 * part, 4 * part + 4)
            heads.append(torch.softmax(q[:, own] @ k[:, own].T / 2, dim=-1) @ v[:, own])
        x = x + block.proj(torch.cat(heads, dim=-1))
        inner = block.up_proj(block.norm2(x))
        x = x + block.down_proj(inner * 0.5 * (1 + torch.erf(inner / 2**0.5)))
    close(model(pixels[None])[0], x[3:], 1e-6)


def test_images_of_a_batch_do_not_meet():
    model = encoder()
    pixels = torch.stack([picture(3, 5, seed) for seed in range(4)])
    together = model(pixels)
    for i in range(4):
        close(together[i], model(pixels[i : i + 1])[0])


@pytest.mark.parametrize("patch", [4, 8, 16])
def test_the_convolution_stem_reaches_the_patch_grid(patch):
    stem = ConvStem(replace(VISION, d_model=24, patch_size=patch, stem="conv")).double()
    features = stem(picture(3, 5, patch=patch)[None])
    assert features.shape == (1, 15, 24)
    changed = picture(3, 5, patch=patch)
    changed[:, :patch, -1] += 1  # the corner patch on the right of the first row
    moved = (stem(changed[None]) - features).abs().sum(-1)[0] > 1e-9
    assert moved[4]
    assert not moved[[0, 1, 2, 10, 11, 12]].any()


def test_what_cannot_be_encoded():
    for size, said in (((3, 8, 6), "8x6"), ((3, 0, 4), "0x4"), ((3, 7, 8), "7x8")):
        with pytest.raises(ValueError, match=rf"{said} pixels.*4"):
            encoder()(torch.zeros(1, *size))
    for patch in (2, 12):
        with pytest.raises(ValueError, match=rf"not {patch}"):
            VisionEncoder(replace(VISION, stem="conv", patch_size=patch))


# -- fewer tokens, another width -------------------------------------------------------------------------------------


def test_pixel_shuffle_order():
    """A grid of 2 x 4 patches, two channels each: squares left to right, in a square (0,0) (0,1) (1,0) (1,1)."""
    patches = torch.tensor([[[10.0 * i, 10 * i + 1] for i in range(8)]])
    got = pixel_shuffle(patches, (2, 4), 2)
    assert got[0].tolist() == [[0, 1, 10, 11, 40, 41, 50, 51], [20, 21, 30, 31, 60, 61, 70, 71]]
    assert pixel_shuffle(patches, (2, 4), 1) is not None
    close(pixel_shuffle(patches, (2, 4), 1), patches, 0)


@pytest.mark.parametrize(("grid", "factor"), [((4, 6), 2), ((3, 3), 3), ((6, 9), 3), ((8, 4), 4)])
def test_pixel_shuffle_gathers_neighbours(grid, factor):
    h, w = grid
    features = noise(2, h * w, 5)
    got = pixel_shuffle(features, grid, factor).view(2, h // factor, w // factor, factor, factor, 5)
    for i in range(h):
        for j in range(w):
            close(got[:, i // factor, j // factor, i % factor, j % factor], features[:, i * w + j], 0)


def test_pixel_shuffle_refuses_what_does_not_divide():
    with pytest.raises(ValueError, match=r"3x4.*2x2"):
        pixel_shuffle(noise(1, 12, 2), (3, 4), 2)


def test_projector():
    projector = fill(Projector(6, 10, 4)).double()
    x = noise(2, 3, 6)
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * projector.norm.weight
    close(projector(x), F.relu(normed @ projector.up_proj.weight.T) ** 2 @ projector.down_proj.weight.T, 1e-12)


# -- into the text ---------------------------------------------------------------------------------------------------


SIZES = [(2, 4), (4, 4), (2, 4), (6, 2)]  # in patches; a token is 2 x 2 of them


def text(*images: int, seed: int = 3) -> list[int]:
    """Ids with a run of placeholders for each image, given by number, between a few words."""
    row = ids(2, vocab=IMAGE, seed=seed).tolist()
    for i in images:
        row += [IMAGE] * (SIZES[i][0] * SIZES[i][1] // 4) + ids(2, vocab=IMAGE, seed=seed + i).tolist()
    return row


def pictures(*images: int):
    return tuple(picture(*SIZES[i], seed=i) for i in images)


def system(name: str):
    return build_system(system_config(TOWERS[name], denoiser=None, latent=None, mtp=None))


@pytest.fixture(params=["M*-E", "E*M- axes"], name="model")
def _model(request):
    return system(request.param)


def test_image_tokens_take_the_place_of_their_placeholders():
    model = system("M*-E")
    tokens = torch.tensor([text(0, 1)])
    x = model.embed(tokens)
    seen = [model.see(p[None])[0] for p in pictures(0, 1)]
    x[0, 2:4], x[0, 6:10] = seen[0], seen[1]
    close(model.read(Inputs(tokens, pixels=pictures(0, 1))), model.context(x))


def test_see_is_encode_shuffle_project():
    model, image = system("M*-E"), picture(4, 6)
    features = pixel_shuffle(model.vision(image[None]), (4, 6), 2)
    close(model.see(image[None]), Projector.forward(model.projector, features), 0)
    (unit,) = model.vision.encode([image])
    close(model.projector(unit), model.see(image[None])[0], 0)
    assert model.image_grid((16, 24)) == (2, 3)
    assert features.shape[1] == 6


def test_each_pass_is_projected_before_the_next(monkeypatch):
    """So that the patches of a long list are never held at once."""
    model, images = system("M*-E"), [picture(4, 6, seed) for seed in range(3)]
    whole = model.see_all(images)
    order = []
    for part, method in ((model.vision, "_run"), (model.projector, "project")):
        called = getattr(part, method)
        monkeypatch.setattr(part, method, lambda *args, name=method, called=called: order.append(name) or called(*args))
    monkeypatch.setattr("omni.encoders.vision.PACK_PATCHES", 24)
    for got, expected in zip(model.see_all(images), whole, strict=True):
        close(got, expected)
    assert order == ["_run", "project"] * 3


def test_images_of_different_sizes_in_one_call_equal_one_by_one(model):
    """Rows with no image, one, and several; padded on the left; each as if it were alone."""
    rows = [text(), text(0), text(1, 2, 3, 0), text(3)]
    tokens, mask = pad_rows(rows, 0, left=True)
    got = model.logits(Inputs(tokens, mask, pictures(0, 1, 2, 3, 0, 3)))
    last = model.logits(Inputs(tokens, mask, pictures(0, 1, 2, 3, 0, 3)), last_only=True)
    for i, images in enumerate([(), (0,), (1, 2, 3, 0), (3,)]):
        alone = model.logits(Inputs(torch.tensor(rows[i : i + 1]), pixels=pictures(*images)))
        close(got[i, mask[i]], alone[0])
        close(last[i], alone[0, -1:])


def test_images_may_stand_side_by_side(model):
    """Two runs without a word between them are told apart by their sizes."""
    row = [1] + [IMAGE] * 2 + [IMAGE] * 4 + [2]
    got = model.logits(Inputs(torch.tensor([row]), pixels=pictures(0, 1)))
    swapped = model.logits(Inputs(torch.tensor([row]), pixels=pictures(1, 0)))
    assert not torch.allclose(got, swapped)


@pytest.mark.parametrize("split", [[13, 4], [4, 6, 7], [5, 1, 8, 3], [10] + [1] * 7])
def test_prefill_in_parts_with_images_equals_the_full_pass(model, split):
    """Parts that end behind images, with images in any part; then steps. Positions go on where the last part ended."""
    row = text(0, 1) + text(seed=8) + [3, 1, 4]
    pixels = dict(zip((2, 6), pictures(0, 1), strict=True))
    full = model.logits(Inputs(torch.tensor([row] * 2), pixels=tuple(pixels.values()) * 2))
    cache = model.new_cache(2)
    pieces, start = [], 0
    for n in split:
        inside = tuple(p for at, p in pixels.items() if start <= at < start + n)
        pieces.append(model.logits(Inputs(torch.tensor([row[start : start + n]] * 2), pixels=inside * 2), cache))
        start += n
    assert start == len(row)
    close(torch.cat(pieces, dim=1), full)
    once = model.new_cache(2)
    model.read(Inputs(torch.tensor([row] * 2), pixels=tuple(pixels.values()) * 2), once)
    same_rows(cache, once, 1e-10)


def test_images_that_were_seen_before(model):
    tokens = torch.tensor([text(0, 1)])
    seen = [model.see(p[None])[0] for p in pictures(0, 1)]
    close(
        model.read(Inputs(tokens, pixels=pictures(0, 1)), seen=seen), model.read(Inputs(tokens, pixels=pictures(0, 1)))
    )
    with pytest.raises(ValueError, match=r"\[2, 4\] tokens; those given have \[4, 2\]"):
        model.read(Inputs(tokens, pixels=pictures(0, 1)), seen=seen[::-1])


def test_positions_by_hand():
    """One word a step; an image of 2 x 3 stays at one time and is left after its longer side."""
    flags = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0, 1, 1, 1, 1]], dtype=torch.bool)
    mask = torch.tensor([[True] * 10, [False] * 2 + [True] * 8])
    grids = [(2, 3), (2, 1), (1, 4)]
    places = media_runs(flags, [6, 2, 4])
    assert places == [(0, 2, 8), (1, 3, 5), (1, 6, 10)]
    pieces = [Piece(h * w, (h, w)) for h, w in grids]
    time, height, width = media_positions(flags.shape, mask, places, pieces, torch.tensor([0, 100])).tolist()
    assert time[0] == [0, 1, 2, 2, 2, 2, 2, 2, 5, 6]
    assert height[0] == [0, 1, 2, 2, 2, 3, 3, 3, 5, 6]
    assert width[0] == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]
    assert time[1][2:] == [100, 101, 101, 103, 104, 104, 104, 104]
    assert height[1][2:] == [100, 101, 102, 103, 104, 104, 104, 104]
    assert width[1][2:] == [100, 101, 101, 103, 104, 105, 106, 107]


def test_the_cache_goes_on_after_an_image():
    """Whether the prompt ends with the image or with a word, the next token's position is behind everything."""
    model = system("E*M- axes")
    for ending, expected in (([], 2 + 3), ([1, 2], 2 + 3 + 2)):
        cache = model.new_cache(1)
        model.read(Inputs(torch.tensor([[4, 5] + [IMAGE] * 3 + ending]), pixels=pictures(3)), cache)
        assert cache.next_positions().tolist() == [expected]


def test_disagreements_name_both_counts(model):
    for row, images, said in (
        (text(0), (0, 1), r"2 image placeholders; the 2 images given take 6"),
        (text(0, 1), (0,), r"6 image placeholders; the 1 images given take 2"),
        (text(), (0,), r"0 image placeholders; the 1 images given take 2"),
        (text(1), (3,), r"4 image placeholders; the 1 images given take 3"),
        ([IMAGE, 1, IMAGE], (0,), r"2 image placeholders; the 1 images given take 2"),  # not one run
    ):
        cache = model.new_cache(1)
        with pytest.raises(ValueError, match=said):
            model.logits(Inputs(torch.tensor([row]), pixels=pictures(*images)), cache)
        assert cache.length == 0


def test_images_are_checked_before_any_is_encoded(model, monkeypatch):
    monkeypatch.setattr(model.vision, "forward", lambda pixels: pytest.fail("an image was encoded"))
    with pytest.raises(ValueError, match="placeholders"):
        model.logits(Inputs(torch.tensor([text()]), pixels=pictures(0)))
    with pytest.raises(ValueError, match=r"12x8 pixels.*8x8"):
        model.logits(Inputs(torch.tensor([text(0)]), pixels=(picture(3, 2),)))


def test_ids_that_are_no_tokens(model):
    for bad, said in (
        (torch.tensor([[0, 31]]), r"0 to 31; the vocabulary has 31"),
        (torch.tensor([[-1, 3]]), r"-1 to 3; the vocabulary has 31"),
        (torch.tensor([1, 2]), r"\(2,\) torch.int64"),
        (torch.tensor([[1.0, 2.0]]), r"\(1, 2\) torch.float32"),
        (torch.zeros(1, 0, dtype=torch.int64), "no tokens"),
    ):
        with pytest.raises(ValueError, match=said):
            model.logits(bad)


def test_models_without_eyes():
    blind = build_system(system_config(TOWERS["M*-E"], vision=None, denoiser=None, latent=None, mtp=None))
    with pytest.raises(ValueError, match="no vision encoder"):
        blind.logits(Inputs(torch.tensor([text(0)]), pixels=pictures(0)))
    with pytest.raises(ValueError, match="no vision encoder"):
        blind.see(picture(2, 2)[None])
    nameless = build_system(system_config(TOWERS["M*-E"], special_tokens={}, denoiser=None, latent=None, mtp=None))
    with pytest.raises(ValueError, match="placeholder"):
        nameless.logits(Inputs(torch.tensor([text(0)]), pixels=pictures(0)))


def test_pad_rows():
    padded, mask = pad_rows([[1, 2, 3], [4]], pad=9)
    assert padded.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert mask.tolist() == [[True] * 3, [True, False, False]]
    padded, mask = pad_rows([[1, 2, 3], [4]], pad=9, left=True)
    assert padded.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert mask.tolist() == [[True] * 3, [False, False, True]]
    assert pad_rows([[1], [2]], pad=9)[1] is None
    for empty in ([], [[1], []]):
        with pytest.raises(ValueError, match="at least one token"):
            pad_rows(empty, pad=0)


def test_last_only_is_the_last_real_token():
    model = system("M*-E")
    tokens = ids(3, 5, vocab=31)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [False] * 3 + [True] * 2])
    everything = model.logits(Inputs(tokens, mask))
    last = model.logits(Inputs(tokens, mask), last_only=True)
    close(last[:, 0], torch.stack([everything[0, 4], everything[1, 1], everything[2, 4]]))
    close(model.logits(tokens, last_only=True), model.logits(tokens)[:, -1:])
    assert model.float().logits(tokens).dtype == model.bfloat16().logits(tokens).dtype == torch.float32
