"""The built-in datasets: what is drawn, what is said of it, and what the check makes of it."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from imagetok.builtin import (
    DRAWING_VERSION,
    Background,
    CheckRate,
    Scene,
    SceneObject,
    caption,
    check_rate,
    check_scene,
    digits_dataset,
    first_index,
    render,
    scene,
    shapes_dataset,
)
from imagetok.builtin import shapes as shapes_module
from imagetok.builtin.drawing import POINTS, coverage
from imagetok.builtin.scenes import COLOURS, SHAPES, TEXTURES
from imagetok.errors import (
    DataError,
    ImageTypeError,
    ImageValueError,
    InvalidValueError,
    MissingExtraError,
)

Pixels = NDArray[np.uint8]

GOLDEN_VERSION = 1
GOLDEN_HASH = "468a6b2151408f9c50b12b5ab1cb591c8536333feb1527cb360f4b389c3c8a95"
GOLDEN_INDICES = (*range(5), *range(10**9, 10**9 + 5))


def an_object(**changes: object) -> SceneObject:
    usual = SceneObject("circle", "red", "solid", "large", 0.5, 0.5, 0.18, 0, (0.0, 0.0))
    return dataclasses.replace(usual, **changes)  # type: ignore[arg-type]


PLAIN = Background("light", (220, 220, 220), (220, 220, 220), 0)


def golden_hash() -> str:
    digest = hashlib.sha256()
    for index in GOLDEN_INDICES:
        digest.update(render(scene(index), 64).tobytes())
        digest.update(caption(scene(index)).encode())
    return digest.hexdigest()


def test_ten_images_and_captions_are_those_of_the_drawing_version() -> None:
    assert (DRAWING_VERSION, golden_hash()) == (GOLDEN_VERSION, GOLDEN_HASH), (
        "the drawing or the captions changed: raise imagetok.builtin.shapes.DRAWING_VERSION by "
        "one, then set GOLDEN_VERSION and GOLDEN_HASH here to the values found, or old pictures "
        "will be served from caches"
    )


def test_a_fresh_process_draws_the_same_images() -> None:
    program = (
        "import hashlib\nfrom imagetok.builtin import render, scene\n"
        "pixels = b''.join(render(scene(i), 48).tobytes() for i in (7, 3))\n"
        "print(hashlib.sha256(pixels).hexdigest())"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    here = b"".join(render(scene(i), 48).tobytes() for i in (7, 3))
    assert run.stdout.strip() == hashlib.sha256(here).hexdigest()


def test_a_negative_index_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="-1"):
        scene(-1)


@pytest.mark.parametrize("size", [0, 7, 4097])
def test_a_size_that_is_not_drawn_is_refused(size: int) -> None:
    with pytest.raises(InvalidValueError, match=f"size={size}"):
        render(scene(0), size)


@pytest.mark.parametrize("size", [8, 33, 64, 200])
def test_a_scene_is_drawn_at_any_size(size: int) -> None:
    pixels = render(scene(3), size)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8


def test_sizes_show_the_same_scene() -> None:
    for index in range(20):
        large = render(scene(index), 256).reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
        assert np.abs(large - render(scene(index), 64)).mean() < 1.5


def test_every_shape_colour_texture_size_and_count_occurs() -> None:
    scenes = [scene(index) for index in range(300)]
    objects = [drawn for each in scenes for drawn in each.objects]
    assert {drawn.shape for drawn in objects} == set(SHAPES)
    assert {drawn.colour for drawn in objects} == set(COLOURS)
    assert {drawn.texture for drawn in objects} == set(TEXTURES)
    assert {drawn.size for drawn in objects} == {"small", "large"}
    assert {len(each.objects) for each in scenes} == {1, 2, 3, 4}
    assert {each.background.tone for each in scenes} == {"light", "dark"}


def test_every_object_lies_whole_in_the_image_and_apart_from_the_others() -> None:
    for index in range(300):
        seen = np.zeros((96, 96), dtype=np.int64)
        for drawn in scene(index).objects:
            assert drawn.reach <= drawn.x <= 1 - drawn.reach
            assert drawn.reach <= drawn.y <= 1 - drawn.reach
            cover = coverage(drawn, 96)
            seen[cover.window] += cover.inside > 0
        assert seen.max() == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_no_shape_reaches_out_of_the_box_that_is_painted(shape: str) -> None:
    drawn = an_object(shape=shape, radius=0.3)
    wide = dataclasses.replace(drawn, radius=0.3)
    cover = coverage(wide, 100)
    assert cover.inside.max() == POINTS
    framed = [cover.inside[0], cover.inside[-1], cover.inside[:, 0], cover.inside[:, -1]]
    assert max(int(side.max()) for side in framed) == 0


def test_coverage_counts_the_area_of_a_circle() -> None:
    cover = coverage(an_object(radius=0.25), 200)
    area = cover.inside.sum() / POINTS / 200**2
    assert area == pytest.approx(0.98 * np.pi * 0.25**2, rel=2e-3)


def test_objects_of_one_scene_have_different_colours() -> None:
    for index in range(200):
        colours = [drawn.colour for drawn in scene(index).objects]
        assert len(set(colours)) == len(colours)


def test_pixels_of_a_solid_object_have_its_palette_colour() -> None:
    pixels = render(Scene(PLAIN, (an_object(colour="green"),)), 64)
    assert tuple(pixels[32, 32]) == COLOURS["green"]
    assert tuple(pixels[0, 0]) == (220, 220, 220)


@pytest.mark.parametrize("tone", ["light", "dark"])
@pytest.mark.parametrize("texture", ["striped", "dotted", "checkered"])
def test_a_texture_has_two_colours_in_comparable_shares(texture: str, tone: str) -> None:
    drawn = an_object(shape="square", texture=texture, radius=0.3)
    cover = coverage(drawn, 128)
    assert cover.second is not None
    share = cover.second.sum() / cover.inside.sum()
    assert 0.2 < share < 0.6
    ground = dataclasses.replace(PLAIN, tone=tone)
    colours = {tuple(colour) for colour in render(Scene(ground, (drawn,)), 128).reshape(-1, 3)}
    assert COLOURS["red"] in colours


def test_stripes_are_coarse_enough_for_64_pixels() -> None:
    drawn = an_object(shape="square", texture="striped", radius=0.4)
    cover = coverage(drawn, 64)
    assert cover.second is not None
    row = cover.second[cover.second.shape[0] // 2] > POINTS // 2
    starts = np.flatnonzero(np.diff(row.astype(np.int8)) == 1)
    assert np.diff(starts).min() >= 5


@pytest.mark.parametrize("direction", range(4))
def test_a_gradient_runs_smoothly_from_its_start_to_its_end(direction: int) -> None:
    ground = Background("light", (200, 210, 220), (240, 210, 200), direction)
    pixels = render(Scene(ground, ()), 64).astype(np.int64)
    corners = {tuple(pixels[y, x]) for y in (0, 63) for x in (0, 63)}
    nearest = [
        min(np.abs(np.subtract(c, end)).max() for c in corners)
        for end in ((200, 210, 220), (240, 210, 200))
    ]
    assert max(nearest) <= 1
    assert max(np.abs(np.diff(pixels, axis=axis)).max() for axis in (0, 1)) <= 2


def test_a_caption_names_what_is_drawn_and_omits_solid() -> None:
    assert caption(Scene(PLAIN, (an_object(),))) == "a large red circle"
    striped = an_object(shape="square", colour="blue", texture="striped", size="small")
    assert caption(Scene(PLAIN, (striped,))) == "a small blue striped square"


@pytest.mark.parametrize(
    ("x", "y", "relation"),
    [
        (0.5, 0.8, "above"),
        (0.5, 0.2, "below"),
        (0.8, 0.5, "left of"),
        (0.2, 0.5, "right of"),
        (0.7, 0.9, "above"),
        (0.9, 0.7, "left of"),
    ],
)
def test_a_relation_is_read_along_the_larger_offset(x: float, y: float, relation: str) -> None:
    other = an_object(shape="star", colour="blue", x=x, y=y)
    text = caption(Scene(PLAIN, (an_object(), other)))
    assert text == f"a large red circle {relation} a large blue star"


def test_a_caption_lists_several_objects_as_english_does() -> None:
    others = (
        an_object(shape="star", colour="blue", y=0.8),
        an_object(shape="ring", colour="pink", x=0.8),
        an_object(shape="cross", colour="cyan", x=0.2),
    )
    three = caption(Scene(PLAIN, (an_object(), *others[:2])))
    assert three == "a large red circle above a large blue star and left of a large pink ring"
    assert caption(Scene(PLAIN, (an_object(), *others))) == (
        "a large red circle above a large blue star, left of a large pink ring "
        "and right of a large cyan cross"
    )


def test_relations_hold_on_the_pixels() -> None:
    """The image, not the scene, is asked where the objects are."""
    asked = 0
    for index in range(150):
        drawn = scene(index)
        if len(drawn.objects) != 2:
            continue
        asked += 1
        centres = []
        for one in drawn.objects:
            alone = render(Scene(drawn.background, (one,)), 64).astype(np.int64)
            ground = render(Scene(drawn.background, ()), 64).astype(np.int64)
            rows, columns = np.nonzero(np.abs(alone - ground).max(axis=-1) > 20)
            centres.append(((rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2))
        down, across = np.subtract(centres[0], centres[1])
        if abs(abs(down) - abs(across)) < 4:
            continue
        if abs(across) > abs(down):
            expected = "left of" if across < 0 else "right of"
        else:
            expected = "above" if down < 0 else "below"
        assert f" {expected} " in caption(drawn)
    assert asked > 20


def test_rows_of_the_dataset_show_the_scenes_of_their_indices(tmp_path: Path) -> None:
    rows = shapes_dataset("train", size=32, count=6, cache_dir=tmp_path)
    assert len(rows) == 6
    assert isinstance(rows.features["image"], datasets.Image)
    for number, row in enumerate(rows):
        drawn = scene(number)
        assert row["index"] == number
        assert row["caption"] == caption(drawn)
        np.testing.assert_array_equal(np.asarray(row["image"]), render(drawn, 32))


def test_labels_are_those_of_the_first_named_object_and_of_the_count(tmp_path: Path) -> None:
    rows = shapes_dataset("train", size=16, count=12, cache_dir=tmp_path)
    for number, row in enumerate(rows):
        drawn = scene(number)
        first = drawn.objects[0]
        found = [rows.features[key].int2str(row[key]) for key in ("shape", "colour", "texture")]
        assert found == [first.shape, first.colour, first.texture]
        assert rows.features["count"].int2str(row["count"]) == str(len(drawn.objects))


def test_images_are_kept_as_png_bytes(tmp_path: Path) -> None:
    rows = shapes_dataset("test", size=16, count=2, cache_dir=tmp_path)
    stored = rows.cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert stored["path"] is None
    assert Image.open(io.BytesIO(stored["bytes"])).format == "PNG"


def test_the_splits_show_different_scenes(tmp_path: Path) -> None:
    test = shapes_dataset("test", size=16, count=3, cache_dir=tmp_path)
    assert test["index"][:] == [first_index("test") + n for n in range(3)]
    assert first_index("test") >= shapes_module.MAX_COUNT + first_index("train")


def test_a_longer_split_begins_with_the_shorter_one(tmp_path: Path) -> None:
    short = shapes_dataset("train", size=16, count=3, cache_dir=tmp_path)
    long = shapes_dataset("train", size=16, count=5, cache_dir=tmp_path)
    assert long["caption"][:3] == short["caption"][:]


def test_another_drawing_version_is_not_served_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = shapes_dataset("train", size=16, count=2, cache_dir=tmp_path)
    monkeypatch.setattr(shapes_module, "DRAWING_VERSION", DRAWING_VERSION + 1)
    monkeypatch.setattr(shapes_module, "caption", lambda drawn: "another drawing")
    new = shapes_dataset("train", size=16, count=2, cache_dir=tmp_path)
    assert old["caption"][0] == caption(scene(0))
    assert new["caption"][:] == ["another drawing"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "validation"}, "no split 'validation'; choose one of: train, test"),
        ({"size": 4}, "size=4"),
        ({"count": 0}, "count=0"),
        ({"count": 10**9 + 1}, "count=1000000001"),
    ],
)
def test_shapes_that_do_not_exist_are_refused(
    arguments: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        shapes_dataset(cache_dir=tmp_path, **arguments)  # type: ignore[arg-type]


def test_digits_are_all_there_once_with_their_labels() -> None:
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    train, test = digits_dataset("train"), digits_dataset("test")
    assert (len(train), len(test)) == (1497, 300)
    digits = load_digits()
    assert test["label"][:] == digits.target[::6].tolist()
    assert train["label"][:5] == digits.target[1:6].tolist()
    picture = np.asarray(test[1]["image"])
    np.testing.assert_array_equal(picture, np.round(digits.images[6] * 255 / 16))
    assert picture.dtype == np.uint8
    assert test[1]["image"].mode == "L"


def test_digits_without_scikit_learn_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install imagetok\[digits\]"):
        digits_dataset("train")


def test_an_unknown_split_of_digits_is_refused() -> None:
    with pytest.raises(DataError, match="choose one of: train, test"):
        digits_dataset("valid")


def rate(change: Callable[[int, Pixels], Pixels], size: int = 64, count: int = 60) -> CheckRate:
    """Check scenes against changed renderings of themselves."""
    checks = []
    for index in range(count):
        drawn = scene(index)
        checks += check_scene(change(index, render(drawn, size)), drawn)
    return check_rate(checks)


@pytest.mark.parametrize("size", [48, 64, 100, 256])
def test_the_check_passes_every_original(size: int) -> None:
    found = rate(lambda index, pixels: pixels, size)
    assert (found.colours, found.positions) == (1.0, 1.0)
    assert found.num_objects == sum(len(scene(index).objects) for index in range(60))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda index, pixels: np.full_like(pixels, 128), id="gray"),
        pytest.param(lambda index, pixels: np.zeros_like(pixels), id="black"),
        pytest.param(lambda index, pixels: np.full_like(pixels, 255), id="white"),
        pytest.param(
            lambda index, pixels: np.zeros_like(pixels) + pixels.mean((0, 1)).astype(np.uint8),
            id="its mean colour",
        ),
        pytest.param(lambda index, pixels: render(scene(index + 1), 64), id="another scene"),
        pytest.param(
            lambda index, pixels: render(Scene(scene(index).background, ()), 64),
            id="background alone",
        ),
        pytest.param(lambda index, pixels: 255 - pixels, id="negative"),
    ],
)
def test_the_check_fails_images_without_the_objects(
    change: Callable[[int, Pixels], Pixels],
) -> None:
    found = rate(change)
    assert found.colours < 0.1
    assert found.positions < 0.1


def test_the_check_fails_the_mean_image() -> None:
    mean = np.mean([render(scene(n), 64) for n in range(60)], axis=0).astype(np.uint8)
    found = rate(lambda index, pixels: mean)
    assert max(found.colours, found.positions) < 0.1


@pytest.mark.parametrize(("down", "across"), [(8, 0), (-8, 0), (0, 8), (0, -8), (8, 8)])
def test_the_check_fails_positions_of_an_image_shifted_by_an_eighth(down: int, across: int) -> None:
    found = rate(lambda index, pixels: np.roll(pixels, (down, across), (0, 1)))
    assert found.positions < 0.1


def test_the_check_sees_a_shift_of_a_twentieth_that_leaves_most_of_an_object() -> None:
    found = rate(lambda index, pixels: np.roll(pixels, 3, 1))
    assert found.positions < 0.1


def test_the_check_fails_colours_alone_when_colours_are_swapped() -> None:
    names = list(COLOURS)
    after = dict(zip(names, names[1:] + names[:1], strict=True))

    def recolour(index: int, pixels: Pixels) -> Pixels:
        drawn = scene(index)
        objects = [dataclasses.replace(o, colour=after[o.colour]) for o in drawn.objects]
        return render(Scene(drawn.background, tuple(objects)), 64)

    found = rate(recolour)
    assert found.colours == 0
    assert found.positions > 0.5


def test_the_check_forgives_a_mild_blur() -> None:
    def blur(index: int, pixels: Pixels) -> Pixels:
        small = Image.fromarray(pixels).resize((16, 16), Image.Resampling.BOX)
        return np.asarray(small.resize((64, 64), Image.Resampling.BICUBIC))

    found = rate(blur)
    assert found.colours > 0.9
    assert found.positions > 0.9


def test_the_check_forgives_mild_noise() -> None:
    noise = np.random.default_rng(0).normal(0, 20, (60, 64, 64, 3))
    found = rate(lambda index, pixels: np.clip(pixels + noise[index], 0, 255).astype(np.uint8))
    assert found.colours > 0.95
    assert found.positions > 0.95


@pytest.mark.parametrize("shape", [(64, 48, 3), (64, 64), (64, 64, 4), (16, 16, 3), ()])
def test_the_check_refuses_arrays_of_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageValueError, match="S >= 48"):
        check_scene(np.zeros(shape, dtype=np.uint8), scene(0))


def test_the_check_refuses_floats() -> None:
    with pytest.raises(ImageTypeError, match="float64"):
        check_scene(np.zeros((64, 64, 3)), scene(0))  # type: ignore[arg-type]


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="at least one"):
        check_rate([])
