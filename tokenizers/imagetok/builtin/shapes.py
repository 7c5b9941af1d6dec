"""`builtin:shapes` as a dataset of the `datasets` library.

The splits are ranges of scene indices: `train` from 0, `test` from 10^9, so that no image is
ever in both, whatever their sizes. Row i of a split shows `scene(first_index(split) + i)`; the
column `index` says which scene a row shows after any selection.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Image, NamedSplit, Value

from imagetok.builtin.drawing import MAX_SIZE, MIN_SIZE, render
from imagetok.builtin.scenes import COLOURS, MAX_OBJECTS, SHAPES, TEXTURES, caption, scene
from imagetok.errors import DataError

DRAWING_VERSION = 1
"""Raised with every change of pixels, captions or labels; cached datasets are told apart by it."""

DEFAULT_SIZE = 64
DEFAULT_COUNTS = {"train": 8000, "test": 1000}
MAX_COUNT = 10**9
_FIRST_INDEX = {"train": 0, "test": MAX_COUNT}


def first_index(split: str) -> int:
    """Index of the scene that the first row of a split shows.

    Raises:
        DataError: The split is unknown.
    """
    if split not in _FIRST_INDEX:
        known = ", ".join(_FIRST_INDEX)
        raise DataError(f"builtin:shapes has no split '{split}'; choose one of: {known}")
    return _FIRST_INDEX[split]


def check_options(size: int, count: int | None) -> None:
    """Refuse a size or a count that a split cannot have.

    Raises:
        DataError: The size is not in [8, 4096], or the count, where given, not in [1, 10^9].
    """
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise DataError(f"builtin:shapes has size {MIN_SIZE} to {MAX_SIZE} pixels, got size={size}")
    if count is not None and not 1 <= count <= MAX_COUNT:
        raise DataError(f"builtin:shapes has 1 to {MAX_COUNT} images a split, got count={count}")


def shapes_features() -> Features:
    """The columns: image, caption, labels of the first-named object, and the scene's index."""
    return Features(
        {
            "image": Image(),
            "caption": Value("string"),
            "shape": ClassLabel(names=list(SHAPES)),
            "colour": ClassLabel(names=list(COLOURS)),
            "texture": ClassLabel(names=list(TEXTURES)),
            "count": ClassLabel(names=[str(n + 1) for n in range(MAX_OBJECTS)]),
            "index": Value("int64"),
        }
    )


def shapes_dataset(
    split: str = "train",
    size: int = DEFAULT_SIZE,
    count: int | None = None,
    cache_dir: str | Path | None = None,
) -> Dataset:
    """Draw a split, or read it from the cache.

    Args:
        split: `train` or `test`.
        size: Side of the square images in pixels, in [8, 4096].
        count: Number of images, in [1, 10^9]; None takes 8,000 for `train`, 1,000 for `test`.
        cache_dir: Where the dataset is kept; None takes the `datasets` library's own folder.

    Returns:
        Dataset with the columns of `shapes_features`, images as PNG.

    Raises:
        DataError: Unknown split, or a size or count out of range.
    """
    start = first_index(split)
    check_options(size, count)
    count = DEFAULT_COUNTS[split] if count is None else count
    return Dataset.from_generator(
        _rows,
        features=shapes_features(),
        cache_dir=None if cache_dir is None else str(cache_dir),
        gen_kwargs={
            "start": start,
            "count": count,
            "size": size,
            "drawing_version": DRAWING_VERSION,
        },
        split=NamedSplit(split),
    )


def _rows(start: int, count: int, size: int, drawing_version: int) -> Iterator[dict[str, Any]]:
    """Rows of a range of scenes; `drawing_version` only tells cached datasets apart."""
    for index in range(start, start + count):
        drawn = scene(index)
        first = drawn.objects[0]
        yield {
            "image": render(drawn, size),
            "caption": caption(drawn),
            "shape": first.shape,
            "colour": first.colour,
            "texture": first.texture,
            "count": str(len(drawn.objects)),
            "index": index,
        }
