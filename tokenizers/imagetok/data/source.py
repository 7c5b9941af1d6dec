"""Where the rows of a dataset come from: built in, a file or folder here, or the Hub.

    DatasetRef --open_source--> Source: its splits by name --take_split--> rows

A name that begins with `builtin:` is drawn or comes with a library; others are found by
`imagetok.data.dataset_location`. The name of a built-in dataset may end in options, as in
`builtin:shapes?size=128&count=500`: `size` is the side in pixels, `count` the number of images of
each split.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import (
    ClassLabel,
    Dataset,
    Image,
    ReadInstruction,
    concatenate_datasets,
)
from datasets.utils.file_utils import xopen

from imagetok.builtin import DRAWING_VERSION, digits_dataset, shapes_dataset
from imagetok.builtin.digits import SPLIT_LENGTHS
from imagetok.builtin.shapes import DEFAULT_COUNTS, DEFAULT_SIZE, check_options
from imagetok.data.dataset_location import DatasetLocation, data_errors, find_location
from imagetok.data.folder_labels import RecordedLabels
from imagetok.data.folder_listing import FolderListing
from imagetok.data.image_folder import read_image_folder
from imagetok.data.remote_file import relative_name, split_zip
from imagetok.dataset_ref import DatasetRef
from imagetok.display_names import BUILTIN_PREFIX
from imagetok.errors import DataError
from imagetok.launch import collectives

logger = logging.getLogger(__name__)

_BUILTIN_OPTIONS = {"shapes": ("count", "size"), "digits": ()}


def row_numbers(split: str, rows: Dataset) -> list[str]:
    """The identities of rows of which no more is known than where they stand."""
    return list(map(str, range(len(rows))))


def file_rows(
    location: DatasetLocation, cache_dir: str | None, split: str, rows: Dataset
) -> list[str]:
    """The identities of rows that were read from files: the file, and the row in it.

    Args:
        location: Where the files are.
        cache_dir: Where `datasets` keeps what it downloads.
        split: The split.
        rows: Its rows, in the order of the files.

    Returns:
        `FILE:ROW` each where files tell how many rows they have, which parquet files do; paths
        where images are files of their own, here or in archives; otherwise the numbers of the rows.
    """
    with data_errors(location.failure):
        files = [str(file) for file in location.builder(cache_dir).config.data_files[split]]
        kinds = {Path(file).suffix for file in files}
        if ".parquet" not in kinds and ".arrow" not in kinds:
            return image_paths(rows, location.root)
        if kinds != {".parquet"}:
            return row_numbers(split, rows)
        counts = [_count_rows(file) for file in files]
    _check_count(split, counts, len(rows))
    names = [relative_name(file, location.root) for file in files]
    return [f"{name}:{row}" for name, n in zip(names, counts, strict=True) for row in range(n)]


def _count_rows(parquet_file: str) -> int:
    with xopen(parquet_file, "rb") as content:
        return int(pq.read_metadata(content).num_rows)


def _check_files(
    location: DatasetLocation, cache_dir: str | None, lengths: Mapping[str, int]
) -> None:
    """Check that all rows of parquet files were read from them; others do not tell how many."""
    with data_errors(location.failure):
        for split, files in location.builder(cache_dir).config.data_files.items():
            if all(Path(file).suffix == ".parquet" for file in files):
                _check_count(str(split), list(map(_count_rows, files)), lengths[str(split)])


def _check_count(split: str, counts: Sequence[int], num_rows: int) -> None:
    """Check that all rows of a split's files were read from them.

    Raises:
        DataError: There are others.
    """
    if sum(counts) != num_rows:
        raise DataError(
            f"the {len(counts)} files of '{split}' have {sum(counts)} rows, and {num_rows} were "
            "read from them: they have changed; empty the cache of datasets, and start again"
        )


def image_paths(rows: Dataset, root: Path | None) -> list[str]:
    """The identities of rows whose images are files of their own, here or in archives.

    Args:
        rows: The rows; the paths are those of the first column of images.
        root: The folder that the images lie in; None where there is none.

    Returns:
        The path below the root, or the path of the member of an archive, whichever archive it is
        in; the number of the row where it has neither.
    """
    images = [key for key, feature in rows.features.items() if isinstance(feature, Image)]
    if not images:
        return row_numbers("", rows)
    table = rows.select_columns(images[:1]).with_format("arrow")[:]
    found = []
    for row, path in enumerate(pc.struct_field(table.column(0), "path").to_pylist()):
        if path is None:
            found.append(str(row))
        elif (member := split_zip(path)[0]) is not None:
            found.append(member)
        elif "::" in path:
            found.append(path.partition("::")[0].partition("://")[2])
        else:
            found.append(relative_name(path, root) if os.path.isabs(path) else path)
    return found


@dataclass(frozen=True)
class Source:
    """A dataset whose splits are loaded when they are taken.

    Attributes:
        lengths: Number of rows of each split.
        load: From the name of a split to its rows.
        identity: What fixes the content of every row, where that is known without reading it.
        identities: From the name of a split and its rows to the identity of each row, by which
            rows are held out.
        recorded: From rows to those that their fingerprint counts; None where it counts all that
            they have.
    """

    lengths: Mapping[str, int]
    load: Callable[[str], Dataset]
    identity: str | None = None
    identities: Callable[[str, Dataset], Sequence[str]] = row_numbers
    recorded: RecordedLabels | None = None


def open_source(ref: DatasetRef, cache_dir: str | None) -> Source:
    """The splits of a dataset; of a built-in one they are drawn or read when one is taken.

    Args:
        ref: Names the dataset.
        cache_dir: Where `datasets` keeps what it has drawn, downloaded and converted; None means
            its default folder.

    Raises:
        DataError: The dataset does not exist or cannot be read, or a subset, a revision or an
            option does not fit it.
    """
    if ref.is_builtin:
        return _builtin_source(ref, cache_dir)
    location = find_location(ref)
    if location.images is not None:
        return _folder_source(location.images, ref)
    splits = location.load(cache_dir)
    lengths = {str(split): len(rows) for split, rows in splits.items()}
    if location.is_saved:
        return Source(lengths, lambda split: splits[split])
    if location.root is not None:  # elsewhere a look at every file takes its time
        _check_files(location, cache_dir, lengths)
    identities = partial(file_rows, location, cache_dir)
    return Source(lengths, lambda split: splits[split], identities=identities)


def take_split(source: Source, ref: DatasetRef) -> tuple[Dataset, str | None]:
    """Load a split, a slice of one, or a sum of these, as in `train[:90%]` and `train+test[5:]`.

    Args:
        source: Where to take it from.
        ref: Names the split.

    Returns:
        The rows in order, and their identity, where the source has one.

    Raises:
        DataError: The notation is not valid, or the split does not exist or has no rows.
    """
    parts, ranges = [], []
    for part, first, end in split_ranges(ref, source.lengths):
        if end > first:
            with data_errors(f"split '{part}' of '{ref.name}' cannot be read"):
                rows = source.load(part)
            if end - first < len(rows) and _is_sorted_by_label(rows) and collectives.rank() == 0:
                logger.warning(
                    "warning: the rows of '%s' (%s) are sorted by label, and '%s' takes a run of "
                    "them, which has few of the labels; holdout=10%% divides them by chance",
                    *(ref.name, part, ref.split),
                )
            parts.append(rows.select(range(first, end)))
            ranges.append(f"{part}[{first}:{end}]")
    if not parts:
        sizes = ", ".join(f"{key} ({length} rows)" for key, length in source.lengths.items())
        raise DataError(f"split '{ref.split}' of '{ref.name}' has no rows; its splits are: {sizes}")
    dataset = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    identity = None if source.identity is None else f"{source.identity} {'+'.join(ranges)}"
    return dataset, identity


def _is_sorted_by_label(rows: Dataset) -> bool:
    """Whether rows have several labels, and all of one stand together in ascending order."""
    for column, feature in rows.features.items():
        if isinstance(feature, ClassLabel):
            labels = rows.select_columns([column]).with_format("numpy")[:][column]
            return bool(np.all(labels[1:] >= labels[:-1]) and labels[0] != labels[-1])
    return False


def split_ranges(ref: DatasetRef, lengths: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """The parts of a sum of splits and slices.

    Args:
        ref: Its split is the sum.
        lengths: Number of rows of each split that there is.

    Returns:
        (split, first row, end) of each part.

    Raises:
        DataError: The notation is not valid, or the split does not exist.
    """
    try:
        parts = ReadInstruction.from_spec(ref.split).to_absolute(dict(lengths))
    except (ValueError, AssertionError, ArithmeticError):
        raise DataError(
            f"'{ref.name}' has no split '{ref.split}'; its splits are: {', '.join(lengths)} "
            "(slices of them, as in train[:100] and train[90%:], are taken too, and holdout=10% "
            "divides train into train and holdout); name one by --split, as in --holdout 10% "
            "--split holdout"
        ) from None
    ends = [lengths[part.splitname] if part.to is None else part.to for part in parts]
    return [(part.splitname, part.from_ or 0, end) for part, end in zip(parts, ends, strict=True)]


def _folder_source(listing: FolderListing, ref: DatasetRef) -> Source:
    folder = read_image_folder(listing, ref)
    return Source(
        {split: len(rows) for split, rows in folder.splits.items()},
        folder.splits.__getitem__,
        identities=lambda split, _: folder.identities[split].to_pylist(),
        recorded=folder.recorded,
    )


def _builtin_source(ref: DatasetRef, cache_dir: str | None) -> Source:
    name = ref.name
    for key, value in (("subset", ref.subset), ("revision", ref.revision)):
        if value is not None:
            raise DataError(f"'{name}' has no {key} '{value}'; leave {key} out")
    kind, _, query = name.removeprefix(BUILTIN_PREFIX).partition("?")
    if kind not in _BUILTIN_OPTIONS:
        known = ", ".join(BUILTIN_PREFIX + known for known in sorted(_BUILTIN_OPTIONS))
        raise DataError(
            f"unknown built-in dataset '{BUILTIN_PREFIX}{kind}'; choose one of: {known}"
        )
    options = _builtin_options(name, kind, query)
    if kind == "digits":
        return Source(SPLIT_LENGTHS, digits_dataset, "builtin:digits")
    size, count = options.get("size", DEFAULT_SIZE), options.get("count")
    check_options(size, count)
    lengths = {split: count or length for split, length in DEFAULT_COUNTS.items()}
    load = partial(shapes_dataset, size=size, count=count, cache_dir=cache_dir)
    return Source(lengths, load, f"builtin:shapes?size={size}&drawing={DRAWING_VERSION}")


def _builtin_options(name: str, kind: str, query: str) -> dict[str, int]:
    valid = ", ".join(_BUILTIN_OPTIONS[kind]) or "(none)"
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise DataError(
            f"the options of '{name}' do not have the form key=value&key=value; valid keys: {valid}"
        ) from None
    options: dict[str, int] = {}
    for key, value in pairs:
        if key not in _BUILTIN_OPTIONS[kind]:
            raise DataError(f"unknown option '{key}' in '{name}'; valid options: {valid}")
        if key in options:
            raise DataError(f"option '{key}' stands twice in '{name}'; give it once")
        if not re.fullmatch(r"[0-9]{1,18}", value):
            raise DataError(f"option '{key}' of '{name}' is a whole number, got '{value[:40]}'")
        options[key] = int(value)
    return options
