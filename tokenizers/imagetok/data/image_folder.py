"""A folder of images: its splits, rows and columns, by the rules that the guide to data states.

    FolderListing --read_image_folder--> ImageFolder: splits of rows, images not read

What it is depends on the tree alone, and on the options of a `DatasetRef`. What is not read, and
what is not a matter of course, is told in one line.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetInfo, Features, NamedSplit
from datasets.table import InMemoryTable

from imagetok.data.folder_labels import (
    SPLIT_NAMES,
    FolderSplits,
    RecordedLabels,
    label_rows,
    recorded_labels,
    split_rows,
)
from imagetok.data.folder_listing import FolderListing, Skipped
from imagetok.data.folder_metadata import FolderColumns, join_metadata
from imagetok.data.sidecars import of_images, read_sidecars
from imagetok.dataset_ref import DatasetRef
from imagetok.errors import DataError
from imagetok.launch import find_rank_info

logger = logging.getLogger(__name__)

_NOT_IMAGES = "files that are not images"
_REMEDIES = {
    "HEIC images": "which need pillow-heif to be converted",
    "AVIF images": "which are not read; convert them",
    "JPEG XL images": "which are not read; convert them",
}


@dataclass(frozen=True)
class ImageFolder:
    """The rows of a folder of images.

    Attributes:
        splits: Rows by split; images are paths.
        paths: Relative path of each row's image, by split.
        recorded: Gives the rows as version 1 counted them in their fingerprint; None where these
            are the rows themselves.
    """

    splits: Mapping[str, Dataset]
    paths: Mapping[str, pa.ChunkedArray]
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
    rows = join_metadata(listing.root, listing.images, listing.metadata)
    if ref.metadata == "strict":
        _check_named(rows, ref.name)
    columns = dict(rows.columns)
    beside = of_images(listing.sidecars, listing.images)
    if ref.sidecars:
        found = read_sidecars(listing.root, rows.paths, listing.sidecars.filter(beside))
        if taken := columns.keys() & found.keys():
            raise DataError(
                f"the sidecars in '{ref.name}' have the entries {', '.join(sorted(taken))}, which "
                "are columns already; rename them, or leave sidecars out"
            )
        columns |= found
    splits = split_rows(rows.paths, ref.split_dirs, ref.name)
    recorded, nulls = None, 0
    if "label" not in columns:
        labels = label_rows(rows.paths, splits, ref.labels, ref.name)
        if labels is not None:
            columns["label"] = (labels.values, labels.feature)
            nulls = labels.values.null_count
        recorded = _recorded(listing, rows, splits, ref)
        if recorded is not None and recorded.agrees(labels):
            recorded = None
    elif ref.labels not in ("auto", "none"):
        raise DataError(
            f"labels is {ref.labels}, and '{ref.name}' has a column label already; leave labels out"
        )
    _tell(_notice(listing, rows, splits, ref, beside, nulls))
    return _divided(columns, rows.paths, splits, recorded)


def _recorded(
    listing: FolderListing, rows: FolderColumns, splits: FolderSplits, ref: DatasetRef
) -> RecordedLabels | None:
    """What version 1 counted; None with options that it did not have."""
    if ref.labels != "auto" or ref.split_dirs is not None or ref.sidecars:
        return None
    if rows.unnamed is not None:
        return RecordedLabels(str(listing.root), rows.image_column, None, frozenset())
    return recorded_labels(listing.root, rows.image_column, rows.paths, splits)


def _divided(
    columns: dict[str, tuple[pa.Array, object]],
    paths: pa.ChunkedArray,
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
        {split: paths.take(numbers) for split, numbers in splits.rows.items()},
        recorded,
    )


def _check_named(rows: FolderColumns, name: str) -> None:
    if rows.unnamed is None:
        raise DataError(f"metadata is strict, and '{name}' has no metadata file; leave it out")
    if len(rows.unnamed):
        raise DataError(
            f"metadata is strict, and {_images(len(rows.unnamed))} of '{name}' are named by no "
            f"metadata file: {_first(rows.unnamed)}; name them, or leave metadata out"
        )


def _notice(
    listing: FolderListing,
    rows: FolderColumns,
    splits: FolderSplits,
    ref: DatasetRef,
    beside: pa.ChunkedArray,
    unlabelled: int,
) -> str:
    parts = []
    if not splits.folders and ref.split_dirs is None:
        parts.append(f"one split, train, of {_images(len(rows.paths))}{_split_words(rows)}")
    if unlabelled:
        verb = (
            "lies in no class folder and has"
            if unlabelled == 1
            else ("lie in no class folder and have")
        )
        parts.append(f"{_images(unlabelled)} {verb} no label")
    if rows.unnamed is not None and len(rows.unnamed):
        parts.append(
            f"{_images(len(rows.unnamed))} that no metadata file names have nulls in its columns: "
            f"{_first(rows.unnamed)}"
        )
    left = sum(pc.sum(beside).as_py() or 0 for _ in range(not ref.sidecars))
    if left:
        parts.append(
            f"{left} .txt and .json files beside images of the same name are read as columns by "
            "sidecars=true"
        )
    parts += _skipped(listing, beside)
    return f"'{ref.name}': {'; '.join(parts)}" if parts else ""


def _split_words(rows: FolderColumns) -> str:
    """Why folders that are called like splits are not splits, where there are any."""
    tops = pc.unique(pc.replace_substring_regex(rows.paths, r"(?s)/.*$", "")).to_pylist()
    alike = [top for top in tops if top.lower() in {*SPLIT_NAMES, "training", "testing"}]
    if not alike:
        return ""
    return (
        f" ({', '.join(alike[:3])} would be splits if all images lay in folders named train, "
        "validation, valid, val, dev or test; split_dirs=true makes all folders splits)"
    )


def _skipped(listing: FolderListing, beside: pa.ChunkedArray) -> Iterator[str]:
    """What is left out, one kind after the other."""
    found = dict(listing.skipped)
    others = Skipped()
    for name in listing.sidecars.filter(pc.invert(beside)).to_pylist():
        others.add(name)
    if known := found.get(_NOT_IMAGES):
        names = sorted([*others.names, *known.names])[:3]
        others = Skipped(others.count + known.count, names)
    apart = {"files of rows": listing.tables, "zip archives": listing.zips}
    for kind, paths in {**apart, "tar archives": listing.tars}.items():
        found[kind] = Skipped(len(paths), list(paths[:3]))
    found = {_NOT_IMAGES: others, **{k: v for k, v in found.items() if k != _NOT_IMAGES}}
    for kind, skipped in found.items():
        if skipped.count:
            what = kind if skipped.count > 1 else _singular(kind)
            remedy = f", {_REMEDIES[kind]}" if kind in _REMEDIES else ""
            yield f"skipped {skipped.count} {what}{remedy}: {skipped}"


def _singular(kind: str) -> str:
    noun, space, rest = kind.partition(" ")
    if rest == "images":
        return f"{noun} image"
    rest = rest.replace("are not images", "is not an image")
    rest = rest.replace("that cannot", "that cannot").replace("lead", "leads", 1)
    return noun.removesuffix("s") + space + rest


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _first(paths: pa.ChunkedArray) -> str:
    shown = ", ".join(str(path) for path in paths[:3])
    return shown + (", ..." if len(paths) > 3 else "")


def _tell(message: str) -> None:
    """Warn on the first rank, and once in a process of each thing."""
    if message and find_rank_info(None, None).rank == 0:
        _tell_once(message)


@cache
def _tell_once(message: str) -> None:
    logger.warning("%s", " ".join(message.split()))
