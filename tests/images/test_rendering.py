"""Tensors become images: rounded halves up, laid out in rows."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from whole_batch import batch

from imagetok.errors import ImageTypeError, ImageValueError, UnwritableFileError
from imagetok.images import Preprocessor, grid_image, to_pil
from imagetok.images.rendering import save_image


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_images_come_back_exactly(channels: int, mode: str) -> None:
    preprocess = Preprocessor((5, 7), channels)
    pixels = torch.randint(0, 256, (2, channels, 5, 7), dtype=torch.uint8)
    x, _ = batch(preprocess, pixels)
    images = to_pil(x)
    assert isinstance(images, list)
    assert [(image.mode, image.size) for image in images] == [(mode, (7, 5))] * 2
    assert torch.equal(preprocess(images), pixels)
    single = to_pil(x[0])
    assert isinstance(single, Image.Image)
    assert single.tobytes() == images[0].tobytes()


def test_halves_are_rounded_up() -> None:
    values = torch.tensor([0, 0.49, 0.5, 1.5, 2.5, 254.49, 254.5, 255], dtype=torch.float64) / 255
    image = to_pil(values.float().reshape(1, 1, 8))
    assert np.asarray(image).tolist() == [[0, 0, 1, 2, 3, 254, 255, 255]]


def test_no_images_are_an_empty_list() -> None:
    assert to_pil(torch.empty(0, 3, 4, 4)) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types_are_rendered(dtype: torch.dtype) -> None:
    assert np.asarray(to_pil(torch.full((1, 2, 2), 0.25, dtype=dtype))).tolist() == [[64, 64]] * 2


def test_what_is_not_an_image_is_refused() -> None:
    with pytest.raises(ImageTypeError, match="found list; expected a float tensor"):
        to_pil([1.0])  # type: ignore[arg-type]
    with pytest.raises(ImageTypeError, match=r"dtype torch\.uint8; pass a float tensor"):
        to_pil(torch.zeros(3, 2, 2, dtype=torch.uint8))
    with pytest.raises(ImageValueError, match="holds NaN"):
        to_pil(torch.full((3, 2, 2), math.nan))
    with pytest.raises(ImageValueError, match="outside"):
        to_pil(torch.full((3, 2, 2), 1.1))


def test_a_grid_has_a_row_for_each_row_and_enlarges_without_smoothing() -> None:
    rows = [torch.rand(3, 3, 50, 30), torch.rand(3, 3, 50, 30)]
    grid = np.asarray(grid_image(rows, padding=4))
    assert grid.shape == (2 * 150 + 3 * 4, 3 * 90 + 4 * 4, 3)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            top, left = 4 + row * 154, 4 + column * 94
            tile = grid[top : top + 150, left : left + 90]
            expected = np.asarray(to_pil(image)).repeat(3, axis=0).repeat(3, axis=1)
            assert np.array_equal(tile, expected)
    assert (grid[:4] == 255).all()
    assert (grid[-4:] == 255).all()
    assert (grid[:, -4:] == 255).all()
    assert (grid[154:158] == 255).all()
    assert (grid[:, 94:98] == 255).all()


@pytest.mark.parametrize(
    ("side", "enlarged"), [(8, 128), (100, 200), (127, 254), (128, 128), (300, 300)]
)
def test_images_in_a_grid_are_at_least_128_high(side: int, enlarged: int) -> None:
    assert grid_image([torch.zeros(1, 1, side, 2)], padding=0).height == enlarged


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_a_grid_has_the_mode_of_its_images(channels: int, mode: str) -> None:
    assert grid_image([torch.zeros(1, channels, 2, 2)]).mode == mode


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [torch.zeros(0, 3, 4, 4)],
        [torch.zeros(3, 4, 4)],
        [torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4)],
    ],
)
def test_unequal_or_empty_rows_are_refused(rows: list[torch.Tensor]) -> None:
    with pytest.raises(ImageValueError, match=r"expected equal ones \(N, C, H, W\)"):
        grid_image(rows)


def test_an_image_is_saved_whole_with_its_folder_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "grid.png"
    image = grid_image([torch.rand(2, 3, 8, 8)])
    save_image(image, path)
    with Image.open(path) as saved:
        assert (saved.format, saved.tobytes()) == ("PNG", image.tobytes())
    with pytest.raises(UnwritableFileError, match=r"grid\.png"):
        save_image(image, path / "below.png")
    with pytest.raises(OSError, match="cannot write mode CMYK"):
        save_image(image.convert("CMYK"), tmp_path / "other.png")
    assert sorted(each.name for each in tmp_path.rglob("*.png")) == ["grid.png"]
