"""The images that a run is evaluated on: always row by row, even where training streams.

    RunConfig --open_evaluation--> ImageRows --evaluation_batches--> (rows, pixels)

A streamed run's evaluation split is read once, in sequence, into a file of the cache whose name
follows from what is in it; opening it again reads nothing. No more rows are read than are asked
for, so that `validation[:1000]` of a dataset on the Hub costs no more than these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import datasets
import torch
from datasets import Dataset, Features
from datasets.arrow_writer import ArrowWriter
from torch import Tensor

from imagetok.data.dataset_location import data_errors, find_location
from imagetok.data.holdout import HOLDOUT_SPLIT
from imagetok.data.image_rows import ImageRows, as_stored_image, open_rows, undecoded
from imagetok.data.image_stream import StreamedFiles
from imagetok.data.remote_file import read_file
from imagetok.data.source import Source, open_source, split_ranges, take_split
from imagetok.data.unreadable_rows import prepare_image
from imagetok.dataset_ref import DatasetRef
from imagetok.errors import DataError, InvalidValueError
from imagetok.files import atomic_path, make_folder
from imagetok.images import Preprocessor
from imagetok.run_config import RunConfig

EVALUATION_SPLITS = ("test", "validation")
"""Splits that a run is evaluated on unless its config names one, the first that there is."""

_LENGTHS = (2**50, 2**51)
"""Two lengths that no dataset has: a slice that is the same for both depends on neither."""


def name_evaluation_split(config: RunConfig, cache_dir: str | Path | None = None) -> RunConfig:
    """A run's config with the split that it is evaluated on, which a recipe may leave open.

    Args:
        config: The run. Where it names no split, that is `holdout` if rows are held out, otherwise
            the one that there is of `test` and `validation`.
        cache_dir: Where `datasets` keeps what it draws, downloads and converts.

    Raises:
        DataError: There is none, or the dataset cannot be opened.
    """
    data = config.data
    if data.evaluation_split is not None:
        return config
    ref = data.ref(data.split)
    split = HOLDOUT_SPLIT if ref.holds_out else _evaluation_split(ref, cache_dir)
    return config.model_copy(update={"data": data.model_copy(update={"evaluation_split": split})})


def _evaluation_split(ref: DatasetRef, cache_dir: str | Path | None) -> str:
    splits = split_names(ref, cache_dir)
    for split in EVALUATION_SPLITS:
        if split in splits:
            return split
    raise DataError(
        f"'{ref.name}' has no split {' or '.join(EVALUATION_SPLITS)} to evaluate on; its splits "
        f"are: {', '.join(splits)}. Hold rows out by data.holdout=10%, or name a split by "
        "data.evaluation_split"
    )


def split_names(ref: DatasetRef, cache_dir: str | Path | None = None) -> list[str]:
    """Names of the splits of a dataset, whichever split the reference names.

    Raises:
        DataError: The dataset cannot be opened.
    """
    cache = None if cache_dir is None else str(cache_dir)
    location = find_location(ref) if ref.streaming and not ref.is_builtin else None
    if location is None or location.is_ready(cache):
        return list(open_source(ref, cache).lengths)
    return StreamedFiles(ref, location, cache).splits


def open_evaluation(config: RunConfig, cache_dir: str | Path | None = None) -> ImageRows:
    """Open the images that a run is evaluated on, as `open_images` would.

    Args:
        config: The run; its `data.evaluation_split` may be a slice or a sum.
        cache_dir: Where `datasets` keeps what it draws, downloads and converts, and where the
            images of a streamed dataset are kept.

    Raises:
        DataError: The dataset, the split or the column cannot be used.
        UnwritableFileError: The images of a streamed dataset cannot be kept.
    """
    split = name_evaluation_split(config, cache_dir).data.evaluation_split
    assert split is not None
    ref = config.data.ref(split)
    location = find_location(ref) if ref.streaming and not ref.is_builtin else None
    cache = None if cache_dir is None else str(cache_dir)
    if location is None or location.is_ready(cache):
        return open_rows(ref, cache_dir)
    folder = Path(datasets.config.HF_DATASETS_CACHE if cache_dir is None else cache_dir)
    files = StreamedFiles(ref, location, cache)
    needed = _needed_rows(ref, files.splits)
    column = files.find_column(next(iter(needed)))
    held_out = f" {ref.holdout} {ref.holdout_salt!r}" if ref.holds_out else ""
    kept = {
        split: _keep(files, split, column, count, folder / "imagetok", held_out)
        for split, count in needed.items()
    }
    source = Source({split: len(rows) for split, rows in kept.items()}, kept.__getitem__)
    rows, _ = take_split(source, ref)
    return ImageRows(ref.name, ref.split, undecoded(rows), column, reading=ref.chosen_reading())


def evaluation_batches(
    rows: ImageRows,
    preprocessor: Preprocessor,
    batch_size: int,
    indices: Iterable[int],
    refused: list[str] | None = None,
    notes: list[str] | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Images under the evaluation transform, in the order asked for.

    Args:
        rows: The images.
        preprocessor: The tokenizer's own.
        batch_size: Images of a batch; the last one may have fewer.
        indices: The rows.
        refused: A list that gets a message about each row that cannot be read, which is then left
            out; None makes the first one an error.
        notes: A list that gets a message about each colour profile that cannot be applied.

    Yields:
        The rows of a batch, and their pixels, uint8 (B, C, H, W); B is 0 where all are left out.

    Raises:
        DataError: An image cannot be read; the message names row, file and reason.
        InvalidValueError: `batch_size` is under 1.
    """
    if batch_size < 1:
        raise InvalidValueError(f"batch_size is at least 1, got {batch_size}")

    def prepare(image: object) -> Tensor:
        return preprocessor.fit(preprocessor.read(image, notes))

    remaining = iter(indices)
    while batch := list(islice(remaining, batch_size)):
        loaded: dict[int, Tensor] = {}
        for row in batch:
            try:
                loaded[row] = prepare_image(rows.image(row), rows.describe(row), prepare)
            except DataError as error:
                if refused is None:
                    raise
                refused.append(str(error))
        empty = torch.empty(0, preprocessor.channels, *preprocessor.image_size, dtype=torch.uint8)
        yield list(loaded), torch.stack([*loaded.values()]) if loaded else empty


def _needed_rows(ref: DatasetRef, splits: list[str]) -> dict[str, int | None]:
    """How many rows of each split a sum of slices takes at most; None means all."""
    short, long = (split_ranges(ref, dict.fromkeys(splits, length)) for length in _LENGTHS)
    needed: dict[str, int | None] = {}
    for part, other in zip(short, long, strict=True):
        key, _, end = part
        before = needed.get(key, 0)
        needed[key] = max(end, before) if part == other and before is not None else None
    return needed


def _keep(
    files: StreamedFiles, split: str, column: str, count: int | None, folder: Path, held_out: str
) -> Dataset:
    """The first rows of a split, from the cache or into it."""
    content = f"{files.fingerprint(split, column)} {split} {column} {count}{held_out}"
    path = folder / f"{hashlib.sha256(content.encode()).hexdigest()}.arrow"
    if not path.exists():
        make_folder(folder)
        with data_errors(f"split '{split}' cannot be converted to Arrow"):
            rows = _read(files.rows(split), split, count)
            _copy(rows, files.features(split), column, path)
    return Dataset.from_file(str(path))


def _copy(rows: Iterable[dict[str, Any]], features: Features, column: str, path: Path) -> None:
    """Write rows, whole or not at all."""
    with (
        atomic_path(path) as temporary,
        ArrowWriter(path=str(temporary), features=features) as writer,
    ):
        for row in rows:
            writer.write({**row, column: _whole(row[column])})
        writer.finalize()


def _read(
    rows: Iterable[dict[str, Any]], split: str, count: int | None
) -> Iterator[dict[str, Any]]:
    with data_errors(f"split '{split}' cannot be read"):
        yield from islice(rows, count)


def _whole(value: Any) -> Any:
    """An image with its bytes; one that cannot be read keeps its path, and says so when read."""
    image = as_stored_image(value)
    if image is None or image["bytes"] is not None or image["path"] is None:
        return value
    try:
        return {"bytes": read_file(image["path"]), "path": image["path"]}
    except (OSError, ValueError, BadZipFile):
        return image
