"""The scene world: captions, requests and pictures agree; the detector tells right pictures from wrong."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from omni.data import TRAIN_SEEDS
from omni.data.scenes import (
    CATEGORIES,
    COLORS,
    SHAPES,
    Request,
    Scene,
    Thing,
    Want,
    check,
    describe,
    detect,
    is_held_out,
    render,
    sample_prompt,
    sample_scene,
)

CASES = 80
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def disturbed(image, noise):
    blurred = ndimage.gaussian_filter(image.astype(np.float32), (0.6, 0.6, 0))
    return np.clip(blurred + noise.normal(0, 8, image.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("category", CATEGORIES)
def test_right_pictures_pass(category):
    scenes = [sample_scene(seed, category) for seed in range(CASES)]
    assert all(scene.category == category for scene in scenes)
    assert np.mean([check(scene.image, scene.request) for scene in scenes]) >= 0.99


@pytest.mark.parametrize("category", CATEGORIES)
def test_noise_and_blur_are_tolerated(category):
    noise = np.random.default_rng(0)
    scenes = [sample_scene(seed, category) for seed in range(CASES)]
    assert np.mean([check(disturbed(scene.image, noise), scene.request) for scene in scenes]) >= 0.97


def test_detection_measures_every_thing():
    for seed in range(60):
        scene = sample_scene(seed)
        found = detect(scene.image)
        assert found.background == scene.background
        assert len(found.things) == len(scene.things)
        for thing in scene.things:
            near = min(found.things, key=lambda other: abs(other.x - thing.x) + abs(other.y - thing.y))
            assert (near.shape, near.color) == (thing.shape, thing.color)
            assert (near.x, near.y, near.radius) == pytest.approx((thing.x, thing.y, thing.radius), abs=0.3)


def test_every_shape_and_color_is_told_apart():
    for shape in SHAPES:
        for color in COLORS:
            for background in ("white", "black", "gray"):
                found = detect(render([Thing(shape, color, "", 30.3, 33.6, 6.2)], background)).things
                assert [(thing.shape, thing.color) for thing in found] == [(shape, color)]


def test_scenes_are_the_same_for_a_seed():
    first, again, other = (sample_scene(seed) for seed in (5, 5, 6))
    assert np.array_equal(first.image, again.image)
    assert (first.caption, first.things) == (again.caption, again.things)
    assert not np.array_equal(first.image, other.image)


def test_prompts_are_those_of_the_scenes():
    for seed in range(200):
        scene = sample_scene(seed)
        assert sample_prompt(seed) == sample_prompt(seed, scene.category) == (scene.caption, scene.request)


def test_captions_are_short_ascii_and_say_what_is_requested():
    for seed in range(400):
        caption, request = sample_prompt(seed)
        words = caption.split()
        assert len(caption) <= 60
        assert caption.isascii()
        assert caption == caption.lower()
        for want in request.wants:
            plural = want.shape + ("es" if want.shape == "cross" else "s")
            assert (plural if want.count > 1 else want.shape) in words
        assert sum(word in COLORS for word in words) == sum(want.color is not None for want in request.wants)
        assert [word for word in words if word in OPPOSITE] == [request.relation] * (request.relation is not None)
        assert [word for word in words if word in ("white", "black", "gray")] == (
            [request.background] if request.background else []
        )
        assert {word for word in words if word in ("small", "large")} == {w.size for w in request.wants} - {None}


def test_descriptions_name_every_thing_and_its_place():
    things = (Thing("ring", "red", "", 20.0, 39.0, 7.0), Thing("square", "blue", "", 44.0, 9.0, 12.0))
    scene = Scene(render(things, "gray"), "", "two_objects", things, "gray", Request((Want("ring"), Want("square"))))
    assert describe(scene) == "small red ring at c5, large blue square at f2, on gray"
    larger = tuple(replace(t, x=2 * t.x, y=2 * t.y, radius=2 * t.radius) for t in things)
    assert describe(replace(scene, image=render(larger, "gray", 128), things=larger)) == describe(scene)


def test_descriptions_keep_what_was_asked():
    for seed in range(300):
        scene = sample_scene(seed)
        *things, background = describe(scene).split(", ")
        assert background == f"on {scene.background}"
        wants = [want for want in scene.request.wants for _ in range(want.count)]
        for text, want in zip(things, wants, strict=True):
            size, color, shape, _, place = text.split()
            assert shape == want.shape
            assert want.color in (None, color)
            assert want.size in (None, size)
            assert place[0] in "abcdefgh"
            assert place[1] in "12345678"
        if scene.category == "counting":
            places = [text.split()[-1] for text in things]
            assert places == sorted(places, key=lambda place: (place[1], place[0]))


def test_unnamed_backgrounds_are_white():
    scenes = [sample_scene(seed) for seed in range(100)]
    assert {scene.background for scene in scenes if scene.request.background is None} == {"white"}
    assert {scene.background for scene in scenes} == {"white", "black", "gray"}


def test_categories_have_equal_shares():
    drawn = [sample_scene(TRAIN_SEEDS[seed]).category for seed in range(600)]
    assert all(70 <= drawn.count(category) <= 130 for category in CATEGORIES)


def test_things_stay_apart_and_inside():
    for seed in range(200):
        things = sample_scene(seed).things
        for index, thing in enumerate(things):
            assert thing.radius <= thing.x <= 64 - thing.radius
            assert thing.radius <= thing.y <= 64 - thing.radius
            for other in things[:index]:
                gap = np.hypot(thing.x - other.x, thing.y - other.y) - thing.radius - other.radius
                assert gap >= 4


def test_swapped_colors_fail():
    for seed in range(CASES):
        scene = sample_scene(seed, "color_attribution")
        first, second = scene.request.wants
        swapped = replace(first, color=second.color), replace(second, color=first.color)
        assert not check(scene.image, replace(scene.request, wants=swapped))


def test_opposite_relations_fail():
    for seed in range(CASES):
        scene = sample_scene(seed, "position")
        wrong = replace(scene.request, relation=OPPOSITE[scene.request.relation])
        assert not check(scene.image, wrong)


def test_wrong_counts_fail():
    for seed in range(CASES):
        scene = sample_scene(seed, "counting")
        (want,) = scene.request.wants
        for count in {1, 2, 3, 4} - {want.count}:
            assert not check(scene.image, replace(scene.request, wants=(replace(want, count=count),)))


def test_additional_and_missing_things_fail():
    circle, square = Thing("circle", "red", "", 18, 20, 8), Thing("square", "blue", "", 44, 40, 8)
    both = Request((Want("circle", "red"), Want("square", "blue")))
    alone = Request((Want("circle", "red"),))
    assert check(render([circle, square], "white"), both)
    assert check(render([circle], "white"), alone)
    assert not check(render([circle, square], "white"), alone)
    assert not check(render([circle], "white"), both)
    assert not check(render([], "white"), alone)


def test_wrong_sizes_and_backgrounds_fail():
    small, large = (render([Thing("ring", "green", "", 32, 32, radius)], "gray") for radius in (6.5, 12))
    for image, right, wrong in ((small, "small", "large"), (large, "large", "small")):
        assert check(image, Request((Want("ring", "green", size=right),), background="gray"))
        assert not check(image, Request((Want("ring", "green", size=wrong),)))
        assert not check(image, Request((Want("ring", "green", size=right),), background="black"))


def test_specks_are_ignored_and_strange_things_are_unknown():
    image = render([Thing("circle", "red", "", 20, 32, 8)], "white")
    image[50:53, 50:53] = (0, 0, 255)
    assert check(image, Request((Want("circle", "red"),)))
    image[5:60, 50:53] = (0, 0, 255)  # a bar: no shape of this world
    assert sorted(thing.shape for thing in detect(image).things) == ["circle", "unknown"]
    assert not check(image, Request((Want("circle", "red"),)))


def test_a_thing_of_two_colors_has_none():
    image = render([Thing("square", "red", "", 32, 32, 10)], "white")
    image[:, 32:][(image[:, 32:] != 255).any(-1)] = COLORS["blue"]
    assert [thing.color for thing in detect(image).things] == ["unknown"]


def test_pictures_of_no_scene_are_refused_without_error():
    noise = np.random.default_rng(0)
    gray = np.full((64, 64, 3), 128, np.uint8)
    stripes = gray.copy()
    stripes[20:40, 20:30], stripes[20:40, 30:40] = 0, 255  # its median is the background
    pictures = [noise.integers(0, 256, (64, 64, 3)).astype(np.uint8), gray, stripes, np.zeros((64, 96, 3), np.uint8)]
    for picture in pictures:
        assert not any(check(picture, sample_prompt(seed)[1]) for seed in range(20))


def test_training_never_shows_held_out_pairs():
    def shows_held_out(scene):
        kinds = {(thing.shape, thing.color) for thing in scene.things}
        return len(scene.things) == 2 and is_held_out(Request(tuple(Want(*kind) for kind in sorted(kinds))))

    pairs = ("two_objects", "position", "color_attribution")
    training = [sample_scene(TRAIN_SEEDS[seed], category) for category in pairs for seed in range(200)]
    evaluation = [sample_scene(seed, category) for category in pairs for seed in range(200)]
    assert not any(shows_held_out(scene) or is_held_out(scene.request) for scene in training)
    share = np.mean([is_held_out(scene.request) for scene in evaluation if scene.category == pairs[-1]])
    assert 0.05 < share < 0.16
    assert any(shows_held_out(scene) for scene in evaluation if scene.category == "two_objects")


def test_held_out_pairs_do_not_depend_on_order():
    requests = [sample_prompt(seed, "color_attribution")[1] for seed in range(100)]
    assert all(is_held_out(replace(r, wants=r.wants[::-1])) == is_held_out(r) for r in requests)


@pytest.mark.parametrize("size", [72, 128])
def test_larger_canvases_show_the_same_scene(size):
    for seed in range(20):
        scene = sample_scene(seed, size=size)
        assert scene.image.shape == (size, size, 3)
        assert scene.caption == sample_scene(seed).caption
        assert check(scene.image, scene.request)


@pytest.mark.parametrize("size", [0, 56, 63, 68, -64])
def test_bad_canvas_sizes_are_named(size):
    with pytest.raises(ValueError, match=f"size is {size}, must be a multiple of 8 and at least 64"):
        sample_scene(0, size=size)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: sample_prompt(0, "poems"), "category is 'poems'"),
        (lambda: sample_prompt(-1), "seed is -1"),
        (lambda: Want("blob"), "shape is 'blob'"),
        (lambda: Want("ring", "pink"), "color is 'pink'"),
        (lambda: Want("ring", count=5), "count is 5"),
        (lambda: Request(()), "a request for 0 things"),
        (lambda: Request((Want("ring"), Want("ring"))), "must differ"),
        (lambda: Request((Want("ring"),), relation="left"), "needs two things"),
        (lambda: Request((Want("ring"),), background="pink"), "background is 'pink'"),
        (lambda: detect(np.zeros((64, 64), np.uint8)), "a picture is"),
        (lambda: detect(np.zeros((64, 64, 3))), "float64"),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
