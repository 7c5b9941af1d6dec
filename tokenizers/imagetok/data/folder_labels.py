"""Splits and labels of images, told by the folders that they lie in.

Both are functions of the relative paths alone. `split_rows` and `label_rows` give what a folder is
now; `RecordedLabels` gives the column of labels that version 1 counted in the fingerprint of the
same tree, so that runs and jobs of before go on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset
from numpy.typing import NDArray

from imagetok.dataset_ref import Labels
from imagetok.errors import DataError

SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
"""Names, in lower case, of folders below the root that are splits, and what the splits are called.
"""

_WIDER_SPLIT_NAMES = {
    **SPLIT_NAMES,
    "training": "train",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Further names, which are splits only where `split_dirs` says that all folders are."""

_ORDER = ("train", "validation", "test")
_PARENT = r"(?s)^(?:(.*)/)?[^/]*$"
_TOP = r"(?s)/.*$"

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class FolderSplits:
    """The splits of a tree.

    Attributes:
        folders: From a split to the folder directly below the root that it is; empty where the
            whole tree is the split `train`.
        rows: From a split to the numbers of its rows, ascending.
    """

    folders: Mapping[str, str]
    rows: Mapping[str, Rows]


def split_rows(paths: pa.ChunkedArray, split_dirs: bool | None, name: str) -> FolderSplits:
    """Divide images by the folders directly below the root, where these are splits.

    They are if each of them that holds images has one of `SPLIT_NAMES`, in any case, and no image
    lies directly in the root.

    Args:
        paths: Relative paths of the images.
        split_dirs: Overrides what the names say.
        name: What messages call the folder.

    Raises:
        DataError: Two folders are one split, or `split_dirs` does not fit the folder.
    """
    inside = pc.match_substring(paths, "/")
    tops = pc.replace_substring_regex(paths, _TOP, "")
    folders = sorted(pc.unique(tops.filter(inside)).to_pylist())
    direct = paths.filter(pc.invert(inside))
    names = SPLIT_NAMES
    if split_dirs is None:
        split_dirs = bool(
            folders and not len(direct) and all(each.lower() in names for each in folders)
        )
    elif split_dirs:
        names = _WIDER_SPLIT_NAMES
        _check_split_folders(folders, direct, name)
    if not split_dirs:
        return FolderSplits({}, {"train": np.arange(len(paths))})
    found: dict[str, str] = {}
    for folder in folders:
        split = names.get(folder.lower(), folder)
        if split in found:
            raise DataError(
                f"the folders '{found[split]}' and '{folder}' of '{name}' are both the split "
                f"{split}; rename one, join them, or read both as one split by split_dirs=false"
            )
        found[split] = folder
    splits = [split for split in _ORDER if split in found]
    splits += [split for split in found if split not in splits]
    return FolderSplits(
        {split: found[split] for split in splits},
        {split: _rows_where(pc.equal(tops, found[split])) for split in splits},
    )


def _check_split_folders(folders: list[str], direct: pa.ChunkedArray, name: str) -> None:
    if len(direct):
        raise DataError(
            f"split_dirs says that the folders in '{name}' are its splits, and {len(direct)} "
            f"images lie beside them: {direct[0]}; move them, or leave split_dirs out"
        )
    for folder in folders:
        if not re.fullmatch(r"\w+(\.\w+)*", folder) or folder == "all":
            raise DataError(
                f"split_dirs says that the folders in '{name}' are its splits, and '{folder}' "
                "cannot be the name of one; rename it in letters, digits, _ and ., or leave "
                "split_dirs out"
            )


def _rows_where(mask: pa.ChunkedArray) -> Rows:
    return np.flatnonzero(mask.to_numpy()).astype(np.int64)


@dataclass(frozen=True)
class FolderLabels:
    """A column of labels.

    Attributes:
        values: int64, null for images that lie in no folder of the split.
        feature: The classes.
    """

    values: pa.Array
    feature: ClassLabel


def label_rows(
    paths: pa.ChunkedArray, splits: FolderSplits, labels: Labels, name: str
) -> FolderLabels | None:
    """The label of each image, by the folder that it lies in; None where there are no labels.

    Args:
        paths: Relative paths of the images.
        splits: The folders of the splits, which are no classes.
        labels: See `DatasetRef`.
        name: What messages call the folder.

    Raises:
        DataError: Labels are asked for, and no image lies in a folder of its split.
    """
    if labels == "none":
        return None
    folders = _folders(paths).dictionary_encode()
    classes = [_class_of(folder, splits, labels) for folder in folders.dictionary.to_pylist()]
    found = sorted({each for each in classes if each is not None})
    if len(found) < 2 and labels == "auto":
        return None
    if not found:
        raise DataError(
            f"labels is {labels}, and every image of '{name}' lies directly in its split; leave "
            "labels out"
        )
    number = {each: place for place, each in enumerate(found)}
    numbers = [None if each is None else number[each] for each in classes]
    values = pa.array(numbers, pa.int64()).take(folders.indices)
    return FolderLabels(values, ClassLabel(names=found))


def _folders(paths: pa.ChunkedArray) -> pa.Array:
    """The folder of each path; empty for one directly in the root."""
    return pc.replace_substring_regex(paths, _PARENT, r"\1").combine_chunks()


def _class_of(folder: str, splits: FolderSplits, labels: Labels) -> str | None:
    if splits.folders:
        folder = folder.partition("/")[2]
    return (folder if labels == "path" else folder.rpartition("/")[2]) or None


@dataclass(frozen=True)
class RecordedLabels:
    """The labels of rows as version 1 had them, for the fingerprint alone.

    Version 1 had none beside metadata, or where folders lie at several depths; and it took the
    folder of a split for a class where images lie directly in it.

    Attributes:
        root: The folder.
        image_column: Column of the images.
        names: The classes; None where there was no column.
        blank: Folders of the splits whose rows had nulls.
    """

    root: str
    image_column: str
    names: tuple[str, ...] | None
    blank: frozenset[str]

    def __call__(self, rows: Dataset) -> Dataset:
        """The rows with that column, in place of the column `label` that they have."""
        if "label" in rows.column_names:
            rows = rows.remove_columns("label")
        if self.names is None:
            return rows
        number = {each: place for place, each in enumerate(self.names)}
        images = rows.select_columns([self.image_column]).with_format("arrow")[:].column(0)
        paths = pc.struct_field(images, "path").to_pylist()
        values = [None if self._is_blank(path) else number[_parent(path)] for path in paths]
        return rows.add_column("label", values, feature=ClassLabel(names=list(self.names)))

    def agrees(self, labels: FolderLabels | None) -> bool:
        """Whether these are the labels that the rows have."""
        names = None if labels is None else tuple(labels.feature.names)
        return names == self.names and not self.blank

    def _is_blank(self, path: str) -> bool:
        return bool(self.blank) and os.path.relpath(path, self.root).split(os.sep)[0] in self.blank


def recorded_labels(
    root: Path, image_column: str, paths: pa.ChunkedArray, splits: FolderSplits
) -> RecordedLabels:
    """What version 1 made of the same folders, split after split."""
    names: set[str] = set()
    depths: set[int] = set()
    blank, is_labelled = [], False
    folders = _folders(paths)
    for split, rows in splits.rows.items():
        for folder in pc.unique(folders.take(rows)).to_pylist():
            names.add(folder.rpartition("/")[2] or root.name)
            depths.add(folder.count("/") + 1 if folder else 0)
        is_labelled = len(names) > 1 and len(depths) == 1
        if not is_labelled and splits.folders:
            blank.append(splits.folders[split])
    if not is_labelled:
        return RecordedLabels(str(root), image_column, None, frozenset())
    return RecordedLabels(str(root), image_column, tuple(sorted(names)), frozenset(blank))


def _parent(path: str) -> str:
    return os.path.basename(os.path.dirname(path))
