"""A folder of zip archives of images: its splits, rows and labels, read from lists of members.

    a.zip, b.zip  --read_zip_folder-->  rows in the order of archives and of the paths in them

What the folders in archives are is decided as for folders on the disk: splits where all of them are
called so, and otherwise labels. Nothing is unpacked; a row's image is `zip://MEMBER::ARCHIVE`.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetInfo, Features, Image, NamedSplit
from datasets.table import InMemoryTable

from imagetok.data.folder_labels import FolderSplits, label_rows, split_rows
from imagetok.data.folder_listing import IMAGE_ENDINGS
from imagetok.data.table_folder import archive_splits
from imagetok.dataset_ref import DatasetRef
from imagetok.errors import DataError
from imagetok.launch import collectives

logger = logging.getLogger(__name__)


def read_zip_folder(root: Path, archives: Sequence[str], ref: DatasetRef) -> dict[str, Dataset]:
    """The rows of each split; no image is read.

    Args:
        root: The folder.
        archives: Paths of the archives below it, in ascending order.
        ref: Says what splits and labels are.

    Raises:
        DataError: An archive is damaged, there are no images, or an option does not fit them.
    """
    members: list[str] = []
    files: list[str] = []
    counts: list[int] = []
    skipped: list[str] = []
    for archive in archives:
        images, others = _list_members(root / archive)
        members += images
        files += [f"zip://{member}::{root / archive}" for member in images]
        counts.append(len(images))
        skipped += [f"{archive}/{other}" for other in others]
    if not members:
        raise DataError(f"'{ref.name}' holds {len(archives)} zip archives, and no images in them")
    if skipped and collectives.rank() == 0:
        logger.warning(
            "'%s': skipped %s in archives: %s",
            ref.name,
            "1 file that is not an image"
            if len(skipped) == 1
            else f"{len(skipped)} files that are not images",
            ", ".join(skipped[:3]),
        )
    paths = pa.chunked_array([pa.array(members)])
    splits = _split(archives, counts, paths, ref)
    return _rows(paths, files, splits, ref)


def files_of_split(archives: Sequence[str], split: str) -> list[str]:
    """The archives that hold the rows of a split."""
    named = archive_splits(archives)
    if named is None:
        return list(archives)
    return [file for file, each in zip(archives, named, strict=True) if each == split]


def _list_members(path: Path) -> tuple[list[str], list[str]]:
    """Paths of the images in an archive, and of its other files, in ascending order."""
    images: list[str] = []
    others: list[str] = []
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(archive.namelist())
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"the archive '{path}' is damaged: {error}") from None
    for name in names:
        parts = PurePosixPath(name).parts
        if name.endswith("/") or "__MACOSX" in parts or parts[-1].startswith("."):
            continue
        is_image = PurePosixPath(name).suffix.lower() in IMAGE_ENDINGS
        (images if is_image else others).append(name)
    return images, others


def _split(
    archives: Sequence[str], counts: Sequence[int], paths: pa.ChunkedArray, ref: DatasetRef
) -> FolderSplits:
    """The rows of each split, by the names of the archives or by the folders in them."""
    named = None if ref.split_dirs is not None else archive_splits(archives)
    if named is None:
        return split_rows(paths, ref.split_dirs, ref.name)
    of_rows = np.repeat(named, counts)
    found = [split for split in ("train", "validation", "test") if split in named]
    # No folder in an archive is a split where the archives are.
    return FolderSplits({}, {split: np.flatnonzero(of_rows == split) for split in found})


def _rows(
    paths: pa.ChunkedArray, files: Sequence[str], splits: FolderSplits, ref: DatasetRef
) -> dict[str, Dataset]:
    images = pa.array([{"bytes": None, "path": file} for file in files], Image().pa_type)
    columns: dict[str, pa.Array] = {"image": images}
    kinds: dict[str, Image | ClassLabel] = {"image": Image()}
    labels = label_rows(paths, splits, ref.labels, ref.name)
    if labels is not None:
        columns["label"], kinds["label"] = labels.values, labels.feature
    features = Features(kinds)
    table = pa.table(columns).cast(features.arrow_schema)
    return {
        split: Dataset(
            InMemoryTable(table.take(numbers)),
            info=DatasetInfo(features=features),
            split=NamedSplit(split),
        )
        for split, numbers in splits.rows.items()
    }
