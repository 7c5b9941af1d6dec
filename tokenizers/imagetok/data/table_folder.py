"""Folders of files of rows and of archives: which file belongs to which split.

Files that are called `data/NAME-00000-of-00002.parquet` are of the split `NAME`, as the Hub's are.
Otherwise a file belongs to the split that a word of its path below the folder names, as in
`my-test.parquet` and `validation/0.parquet`; where no file names one, all are `train`. A path that
names two, and files that name none beside others that do, are refused: nothing is guessed, and no
file is left out.
"""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import pyarrow as pa
from datasets import Features
from datasets.info import DatasetInfosDict

from imagetok.data.folder_labels import split_rows
from imagetok.dataset_ref import DatasetRef
from imagetok.errors import DataError
from imagetok.launch import collectives

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Words that name splits, and what the splits are called."""

logger = logging.getLogger(__name__)

_SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}")
_WORD_ENDS = re.compile(r"[-._ 0-9/]+")

_FORMATS = {".parquet": "parquet", ".arrow": "arrow"}


def has_own_splits(root: Path) -> bool:
    """Whether a folder's card says which files are which split, as those on the Hub may."""
    try:
        card = (root / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    head = re.match(r"---\r?\n(.*?)\r?\n---", card, re.DOTALL)
    return head is not None and re.search(r"^configs:", head[1], re.MULTILINE) is not None


def card_features(root: Path) -> Features | None:
    """The columns' features as a folder's card states them; None where it does not.

    Files of other writers have no names of labels, which the cards of datasets on the Hub do.
    """
    infos = DatasetInfosDict.from_directory(str(root))
    info = infos.get("default") or (next(iter(infos.values())) if len(infos) == 1 else None)
    return None if info is None else info.features


def find_table_files(
    ref: DatasetRef, root: Path, files: Sequence[str]
) -> tuple[str, dict[str, list[str]]]:
    """The format of a folder's files of rows, and the files of each split.

    Args:
        ref: The dataset; may say by `split_dirs` what the splits are.
        root: The folder.
        files: Paths of its files of rows below the root, in ascending order.

    Returns:
        What `datasets` calls the format, and by split the files as patterns that it takes.

    Raises:
        DataError: The files have several formats, or it is not clear which split one belongs to.
    """
    formats = sorted({PurePosixPath(file).suffix.lower() for file in files})
    if len(formats) > 1:
        raise DataError(
            f"'{ref.name}' holds files of rows of several kinds, {' and '.join(formats)}; keep one "
            "kind"
        )
    splits = _splits_by_folder(ref, files) or _splits_by_name(ref.name, files)
    return _FORMATS[formats[0]], _patterns(root, splits)


def _splits_by_folder(ref: DatasetRef, files: Sequence[str]) -> dict[str, list[str]]:
    """The files of each split where `split_dirs` says what is one; none where it does not."""
    if ref.split_dirs is None:
        return {}
    found = split_rows(pa.chunked_array([pa.array(files)]), ref.split_dirs, ref.name)
    return {split: [files[number] for number in rows] for split, rows in found.rows.items()}


def _splits_by_name(name: str, files: Sequence[str]) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {}
    for file in files:
        splits.setdefault(_find_split(name, file), []).append(file)
    if "" in splits and len(splits) > 1:
        others = ", ".join(split for split in splits if split)
        raise DataError(
            f"'{name}' has files of the splits {others}, and {_name_some(splits[''])} beside them, "
            "whose split no word of the name says; rename or move them, so that none is left out"
        )
    return {split or "train": members for split, members in splits.items()}


def _patterns(root: Path, splits: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Files as patterns that `datasets` takes, the usual splits first."""
    return {
        split: [glob.escape(str(root / file)) for file in splits[split]]
        for split in sorted(splits, key=_place)
    }


def find_archive_files(ref: DatasetRef, root: Path, files: Sequence[str]) -> dict[str, list[str]]:
    """The archives of each split of a folder, which are all `train` unless each names a split.

    Args:
        ref: The dataset; may say by `split_dirs` what the splits are.
        root: The folder.
        files: Paths of its archives below the root, in ascending order.

    Returns:
        By split the archives as patterns that `datasets` takes.
    """
    if splits := _splits_by_folder(ref, files):
        return _patterns(root, splits)
    named = archive_splits(files)
    if named is None:
        if any(map(_named_splits, files)) and collectives.rank() == 0:
            logger.warning(
                "warning: the names of some archives of '%s' have words for splits in them and "
                "others do not: all %d are one split, train",
                *(ref.name, len(files)),
            )
        named = ["train"] * len(files)
    for file, split in zip(files, named, strict=True):
        splits.setdefault(split, []).append(file)
    return _patterns(root, splits)


def archive_splits(files: Sequence[str]) -> list[str] | None:
    """The split of each archive by its path; None unless each names exactly one."""
    found = [_named_splits(file) for file in files]
    return [min(each) for each in found] if all(len(each) == 1 for each in found) else None


def _place(split: str) -> tuple[int, str]:
    """Where a split stands among others: the usual ones first, in the usual order."""
    usual = ("train", "validation", "test")
    return (usual.index(split) if split in usual else len(usual), split)


def _find_split(name: str, file: str) -> str:
    """The split that the words of a path name; "" where they name none."""
    if shard := _SHARD.match(file):
        return shard[1]
    found = sorted(_named_splits(file))
    if len(found) > 1:
        raise DataError(
            f"'{file}' of '{name}' names the splits {' and '.join(found)}; rename it, so that it "
            "is clear which it belongs to"
        )
    return found[0] if found else ""


def _named_splits(file: str) -> set[str]:
    words = _WORD_ENDS.split(file)
    return {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}


def _name_some(files: Sequence[str]) -> str:
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return ", ".join(f"'{file}'" for file in files[:3]) + more
