"""The pictures that a run is evaluated on: always row by row, also where training streams.

A streamed run's evaluation split is read once, in sequence, into a file of the cache whose name
follows from what is in it; opening it again reads nothing. No more rows are read than are asked
for, so that `validation[:1000]` of a dataset on the Hub takes these alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import datasets
from datasets import Dataset, IterableDataset
from datasets.arrow_writer import ArrowWriter

from imagetok.data.dataset_ref import DatasetRef
from imagetok.data.files import read_file
from imagetok.data.rows import ImageRows, as_picture, open_rows, undecoded
from imagetok.data.sources import Source, find_location, reading, split_ranges, take_split
from imagetok.data.streams import FileStreams
from imagetok.files import atomic_path, naming_os_errors
from imagetok.run_config import RunConfig

_LENGTHS = (2**50, 2**51)
"""Two lengths that no dataset has: a slice that is the same of both does not depend on it."""


def open_evaluation(config: RunConfig, cache_dir: str | Path | None = None) -> ImageRows:
    """Open the pictures that a run is evaluated on, as `open_images` would.

    Args:
        config: The run; its `data.evaluation_split` may be a slice or a sum.
        cache_dir: Where `datasets` keeps what it draws, downloads and converts, and where the
            pictures of a streamed dataset are kept.

    Raises:
        DataError: The dataset, the split or the column cannot be used.
        UnwritableFileError: The pictures of a streamed dataset cannot be kept.
    """
    data = config.data
    ref = DatasetRef(
        data.name,
        data.evaluation_split,
        data.subset,
        data.revision,
        data.image_column,
        data.streaming,
    )
    location = find_location(ref) if ref.streaming and not ref.is_builtin else None
    cache = None if cache_dir is None else str(cache_dir)
    if location is None or location.is_ready(cache):
        return open_rows(ref, cache_dir)
    folder = Path(datasets.config.HF_DATASETS_CACHE if cache_dir is None else cache_dir)
    streams = FileStreams(ref, location, cache)
    needed = _needed_rows(ref, streams.splits)
    column = streams.find_column(next(iter(needed)))
    kept = {
        split: _keep(streams, split, column, count, folder / "imagetok")
        for split, count in needed.items()
    }
    source = Source({split: len(rows) for split, rows in kept.items()}, kept.__getitem__)
    rows, _ = take_split(source, ref)
    return ImageRows(ref.name, ref.split, undecoded(rows), column)


def _needed_rows(ref: DatasetRef, splits: list[str]) -> dict[str, int | None]:
    """How many rows of each split a sum of slices takes at most; None where that is all."""
    short, long = (split_ranges(ref, dict.fromkeys(splits, length)) for length in _LENGTHS)
    needed: dict[str, int | None] = {}
    for part, other in zip(short, long, strict=True):
        key, _, end = part
        before = needed.get(key, 0)
        needed[key] = max(end, before) if part == other and before is not None else None
    return needed


def _keep(
    streams: FileStreams, split: str, column: str, count: int | None, folder: Path
) -> Dataset:
    """The first rows of a split, from the cache or into it."""
    content = f"{streams.fingerprint(split, column)} {split} {column} {count}"
    path = folder / f"{hashlib.sha256(content.encode()).hexdigest()}.arrow"
    if not path.exists():
        with naming_os_errors("make", folder):
            folder.mkdir(parents=True, exist_ok=True)
        with reading(f"split '{split}' cannot be converted to Arrow"):
            _copy(streams.rows(split), split, count, column, path)
    return Dataset.from_file(str(path))


def _copy(rows: IterableDataset, split: str, count: int | None, column: str, path: Path) -> None:
    """Write the first rows, whole or not at all."""
    with (
        atomic_path(path) as temporary,
        ArrowWriter(path=str(temporary), features=rows.features) as writer,
    ):
        for row in _read(rows, split, count):
            writer.write({**row, column: _whole(row[column])})
        writer.finalize()


def _read(rows: IterableDataset, split: str, count: int | None) -> Iterator[dict[str, Any]]:
    with reading(f"split '{split}' cannot be read"):
        yield from islice(rows, count)


def _whole(value: Any) -> Any:
    """A picture with its bytes; one that cannot be read keeps its path, and says so when it is."""
    picture = as_picture(value)
    if picture is None or picture["bytes"] is not None or picture["path"] is None:
        return value
    try:
        return {"bytes": read_file(picture["path"]), "path": picture["path"]}
    except (OSError, ValueError, BadZipFile):
        return picture
