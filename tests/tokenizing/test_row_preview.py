"""The preview of what shards hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Features
from PIL import Image
from small_jobs import DATASET, RunJob, make_tokenizer, rows_in, save_images

from imagetok import ImageTokenizer, open_images
from imagetok.errors import DataError, InvalidValueError
from imagetok.shards.token_folder import open_folder
from imagetok.tokenizing.row_preview import CELL, decode_rows, draw_grid, read_range
from tiny_data import png


@pytest.fixture
def loaded(tokenizer: Path) -> ImageTokenizer:
    return ImageTokenizer.from_pretrained(tokenizer)


def test_rows_are_decoded_across_shards_with_their_captions(
    reference: Path, loaded: ImageTokenizer
) -> None:
    images, captions = decode_rows(open_folder(reference), loaded, range(10, 26))
    assert captions == open_images(DATASET, "train").dataset["caption"][10:26]
    for row, image in zip(rows_in(reference)[10:26], images, strict=True):
        expected = loaded.decode(np.array(row["ids"]))
        assert isinstance(expected, Image.Image)
        assert np.array_equal(np.array(image), np.array(expected))


def test_labels_are_told_by_name_and_rows_without_a_caption_by_number(
    job: RunJob, tmp_path: Path, loaded: ImageTokenizer
) -> None:
    labels = Features({"label": ClassLabel(names=["cat", "dog"])})
    source = save_images(tmp_path / "in", [png(n) for n in range(3)], labels, label=[1, None, 0])
    job(tmp_path / "a", dataset=str(source), keep=["label"])
    assert decode_rows(open_folder(tmp_path / "a"), loaded, range(3))[1] == ["dog", "row 1", "cat"]
    job(tmp_path / "b", dataset=str(source))
    assert decode_rows(open_folder(tmp_path / "b"), loaded, range(2))[1] == ["row 0", "row 1"]


def test_native_images_are_shown_at_their_own_shapes(
    job: RunJob, tmp_path: Path, loaded: ImageTokenizer
) -> None:
    sizes = [(16, 16), (9, 30), (24, 8)]
    source = save_images(tmp_path / "in", [png(n, size) for n, size in enumerate(sizes)])
    job(tmp_path / "out", dataset=str(source), resize="native")
    images, captions = decode_rows(open_folder(tmp_path / "out"), loaded, range(3))
    assert [image.size for image in images] == [(16, 16), (8, 28), (24, 8)]
    assert min(draw_grid(images, captions).size) > CELL


def test_the_grid_is_about_square_and_holds_every_image() -> None:
    colors = [(40 * n, 0, 255) for n in range(5)]
    images = [Image.new("RGB", (16, 16), color) for color in colors]
    grid = draw_grid(images, ["a long caption " * 20, "é🐈", "", "x", "y\nz"])
    seen = {color for _, color in grid.getcolors(2**24)}
    assert set(colors) <= seen
    assert grid.width > 3 * CELL
    assert 2 * CELL < grid.height < 3 * CELL


@pytest.mark.parametrize("text", ["", "a", "3:3", "4:2", "0:257", "-1:2", "1:", "0:16:2"])
def test_what_is_not_a_range_of_rows_is_refused(text: str) -> None:
    with pytest.raises(InvalidValueError, match="expected first:end"):
        read_range(text)


def test_ranges_of_rows_are_read() -> None:
    assert read_range("0:16") == range(16)
    assert read_range("7") == range(7, 8)


def test_rows_that_are_not_there_and_another_tokenizer_are_refused(
    reference: Path, loaded: ImageTokenizer
) -> None:
    with pytest.raises(DataError, match="has the rows 0 to 39, not 30:41"):
        decode_rows(open_folder(reference), loaded, range(30, 41))
    with pytest.raises(DataError, match="were made by the tokenizer"):
        decode_rows(open_folder(reference), make_tokenizer(seed=1), range(2))
