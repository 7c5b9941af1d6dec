"""Where the rows come from: files and folders here, or datasets on the Hub.

A source knows its splits by name and loads one when it is asked for. Names are looked up in this
order: a file or folder that exists, then the Hub.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from datasets import (
    Dataset,
    DatasetDict,
    ReadInstruction,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)

from imagetok.errors import DataError, ImagetokError

FORMS = (
    "a folder of pictures or of parquet files, a parquet file, a folder written by save_to_disk, "
    "the name of a dataset on the Hub, builtin:shapes or builtin:digits"
)
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_LONGEST_HUB_NAME = 200
_FILE_KINDS = (
    *("arrow", "audiofolder", "csv", "hdf5", "imagefolder", "json", "pandas", "parquet", "text"),
    *("videofolder", "webdataset", "xml"),
)
"""What `datasets` takes for kinds of files in the current folder, not for names on the Hub."""


@dataclass(frozen=True)
class Source:
    """A dataset whose splits are loaded when they are taken.

    Attributes:
        lengths: Number of rows of each split.
        load: Gives the split of a name.
        identity: What fixes the content of every row, where that is known without reading it.
    """

    lengths: Mapping[str, int]
    load: Callable[[str], Dataset]
    identity: str | None = None


def take_split(source: Source, name: str, split: str) -> tuple[Dataset, str | None]:
    """Load a split, a slice of one, or a sum of these, as in `train[:90%]` and `train+test[5:]`.

    Args:
        source: Where to take it from.
        name: What messages call the source.
        split: A split in the notation of `datasets`.

    Returns:
        The rows in order, and their identity, where the source has one.

    Raises:
        DataError: The notation is not valid, there is no such split, or it has no rows.
    """
    known = ", ".join(source.lengths)
    try:
        ranges = ReadInstruction.from_spec(split).to_absolute(dict(source.lengths))
    except (ValueError, AssertionError):
        raise DataError(
            f"'{name}' has no split '{split}'; its splits are: {known} (slices of them, as in "
            "train[:100] and train[90%:], are taken too)"
        ) from None
    parts, places = [], []
    for part in ranges:
        first, last = part.from_ or 0, source.lengths[part.splitname]
        last = last if part.to is None else part.to
        if last > first:
            with _reading(f"split '{part.splitname}' of '{name}' cannot be read"):
                rows = source.load(part.splitname)
            parts.append(rows.select(range(first, last)))
            places.append(f"{part.splitname}[{first}:{last}]")
    if not parts:
        sizes = ", ".join(f"{key} ({length} rows)" for key, length in source.lengths.items())
        raise DataError(f"split '{split}' of '{name}' has no rows; its splits are: {sizes}")
    dataset = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    identity = None if source.identity is None else f"{source.identity} {'+'.join(places)}"
    return dataset, identity


def file_or_hub_source(
    name: str, subset: str | None, revision: str | None, cache_dir: str | None
) -> Source:
    """The dataset of a path or of a name on the Hub.

    Args:
        name: Path or name.
        subset: Configuration name of a dataset that has several.
        revision: Commit, branch or tag on the Hub.
        cache_dir: Where `datasets` keeps what it has read; None takes its own folder.

    Raises:
        DataError: There is nothing of that name, or it cannot be read.
    """
    path = os.path.expanduser(name)
    if name and os.path.exists(path):
        if revision is not None:
            raise DataError(
                f"'{name}' lies on this machine and has no revision '{revision}'; leave revision "
                "out"
            )
        return _of_splits(_load_local(name, Path(path), subset, cache_dir))
    is_hub_name = _HUB_NAME.fullmatch(name) and len(name) <= _LONGEST_HUB_NAME
    if not is_hub_name or name in _FILE_KINDS or name.endswith(".parquet"):
        raise DataError(f"there is no file or folder '{name[:200]}'; a dataset is {FORMS}")
    with _reading(
        f"'{name}' is no file or folder here, and no dataset on the Hub that can be read"
    ):
        return _of_splits(load_dataset(name, subset, revision=revision, cache_dir=cache_dir))


def _of_splits(splits: DatasetDict) -> Source:
    lengths = {str(split): len(rows) for split, rows in splits.items()}
    return Source(lengths, lambda split: splits[split])


def _load_local(name: str, path: Path, subset: str | None, cache_dir: str | None) -> DatasetDict:
    is_saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
    if subset is not None and (is_saved or path.is_file()):
        raise DataError(f"'{name}' has no subset '{subset}'; leave subset out")
    if is_saved:
        with _reading(f"'{name}' was written by save_to_disk and has no rows or cannot be read"):
            saved = load_from_disk(str(path))
        return saved if isinstance(saved, DatasetDict) else DatasetDict({_split_of(saved): saved})
    if path.is_file():
        if path.suffix != ".parquet":
            raise DataError(f"'{name}' is a file and no parquet file; a dataset is {FORMS}")
        with _reading(f"'{name}' cannot be read as a parquet file"):
            return load_dataset("parquet", data_files=glob.escape(str(path)), cache_dir=cache_dir)
    if glob.has_magic(str(path.resolve())):
        raise DataError(
            f"the path of '{name}' has one of the characters * ? [, which are read as a pattern; "
            "rename the folder"
        )
    with _reading(f"'{name}' holds no pictures, parquet files or other data that can be read"):
        return load_dataset(str(path.resolve()), subset, cache_dir=cache_dir)


def _split_of(dataset: Dataset) -> str:
    """The split that a saved dataset says it is; `train` where it is none or a slice of one."""
    split = str(dataset.split or "")
    return split if re.fullmatch(r"\w+", split) else "train"


@contextmanager
def _reading(message: str) -> Iterator[None]:
    """Replace whatever the readers raise by a `DataError` with `message` and the reason."""
    try:
        yield
    except (ImagetokError, MemoryError):
        raise
    except Exception as error:  # datasets, pyarrow, fsspec, httpx and the Hub's client all raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"{message}: {reason}") from error
