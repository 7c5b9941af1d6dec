"""A folder of images: its splits, rows and columns, by the rules that the guide to data states.

    FolderListing --read_image_folder--> ImageFolder: splits of rows, images not read

What it is depends on the tree alone, and on the options of a `DatasetRef`. What is not read, and
what is not a matter of course, is told in one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, NamedSplit
from datasets.table import InMemoryTable

from imagetok.data.folder_labels import (
    FolderLabels,
    FolderSplits,
    RecordedLabels,
    label_rows,
    recorded_labels,
    split_rows,
)
from imagetok.data.folder_listing import FolderListing
from imagetok.data.folder_metadata import Columns, FolderColumns, join_metadata
from imagetok.data.folder_notice import first_names, image_count, tell_reading
from imagetok.data.sidecars import of_images, read_sidecars
from imagetok.data.zip_folder import inner_paths
from imagetok.dataset_ref import DatasetRef
from imagetok.errors import DataError


@dataclass(frozen=True)
class ImageFolder:
    """The rows of a folder of images.

    Attributes:
        splits: Rows by split; images are paths.
        identities: What rows are held out by, by split.
        recorded: Gives the rows as version 1 counted them in their fingerprint; None where these
            are the rows themselves.
    """

    splits: Mapping[str, Dataset]
    identities: Mapping[str, pa.ChunkedArray]
    recorded: RecordedLabels | None


def is_image_folder(listing: FolderListing) -> bool:
    """Whether a folder is one of images, rather than of archives or of files of rows.

    Files of rows beside more images are left out; so are images beside as many files of rows, such
    as the pictures in the card of a dataset.
    """
    others = (listing.tables, listing.zips, listing.tars)
    return len(listing.images) > sum(map(len, others))


def read_image_folder(listing: FolderListing, ref: DatasetRef) -> ImageFolder:
    """The splits, rows and columns of a folder of images.

    Args:
        listing: What lies in the folder.
        ref: Its options.

    Raises:
        DataError: The options do not fit the folder, or its metadata or sidecars cannot be used.
    """
    rows = join_metadata(listing)
    places = inner_paths(listing, rows.paths, ref)
    if ref.metadata == "strict":
        _check_named(rows, ref.name)
    columns = dict(rows.columns)
    beside = of_images(listing.sidecars, listing.images)
    if ref.sidecars:
        found = read_sidecars(listing, rows.paths, listing.sidecars.filter(beside))
        if taken := columns.keys() & found.keys():
            raise DataError(
                f"the sidecars in '{ref.name}' have the entries {', '.join(sorted(taken))}, which "
                "are columns already; rename them, or leave sidecars out"
            )
        columns |= found
    splits = split_rows(places, ref.split_dirs, ref.name)
    labels = _labels(columns, places, splits, ref)
    recorded = None if "label" in columns else _recorded(listing, rows, splits, ref)
    if labels is not None:
        columns["label"] = (labels.values, labels.feature)
    if recorded is not None and recorded.agrees(labels):
        recorded = None
    unlabelled = 0 if labels is None else labels.values.null_count
    tell_reading(listing, rows, splits, ref, beside, unlabelled)
    return _divided(columns, _identities(listing, rows.paths), splits, recorded)


def _identities(listing: FolderListing, paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """What rows are held out by: paths below the root, or in archives, whichever these are."""
    if not listing.opened:
        return paths
    members = [listing.split_archive(path)[1] for path in paths.to_pylist()]
    return pa.chunked_array([pa.array(members, pa.string())])


def _labels(
    columns: Columns, places: pa.ChunkedArray, splits: FolderSplits, ref: DatasetRef
) -> FolderLabels | None:
    """Labels by folders, where metadata and sidecars have none."""
    if "label" not in columns:
        return label_rows(places, splits, ref.labels, ref.name)
    if ref.labels not in ("auto", "none"):
        raise DataError(
            f"labels is {ref.labels}, and '{ref.name}' has a column label already; leave labels out"
        )
    return None


def _recorded(
    listing: FolderListing, rows: FolderColumns, splits: FolderSplits, ref: DatasetRef
) -> RecordedLabels | None:
    """What version 1 counted; None with options that it did not have."""
    if ref.labels != "auto" or ref.split_dirs is not None or ref.sidecars:
        return None
    if rows.unnamed is not None or listing.opened:
        return RecordedLabels(str(listing.root), rows.image_column, None, frozenset())
    return recorded_labels(listing.root, rows.image_column, rows.paths, splits)


def _divided(
    columns: Columns,
    identities: pa.ChunkedArray,
    splits: FolderSplits,
    recorded: RecordedLabels | None,
) -> ImageFolder:
    features = Features({name: feature for name, (_, feature) in columns.items()})
    table = pa.table({name: column for name, (column, _) in columns.items()})
    table = table.cast(features.arrow_schema)
    divided = {}
    for split, numbers in splits.rows.items():
        part = table if len(numbers) == len(table) else table.take(numbers)
        info = DatasetInfo(features=features)
        divided[split] = Dataset(InMemoryTable(part), info=info, split=NamedSplit(split))
    return ImageFolder(
        divided,
        {split: identities.take(numbers) for split, numbers in splits.rows.items()},
        recorded,
    )


def _check_named(rows: FolderColumns, name: str) -> None:
    if rows.unnamed is None:
        raise DataError(f"metadata is strict, and '{name}' has no metadata file; leave it out")
    if len(rows.unnamed):
        raise DataError(
            f"metadata is strict, and {image_count(len(rows.unnamed))} of '{name}' are named by no "
            f"metadata file: {first_names(rows.unnamed)}; name them, or leave metadata out"
        )
