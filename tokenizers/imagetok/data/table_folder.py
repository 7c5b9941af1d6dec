"""Folders of files of rows and of archives: which file belongs to which split.

A file belongs to the split that a word of its path below the folder names, as in
`train-00000-of-00002.parquet`, `data/my-test.parquet` and `validation/0.parquet`. Where no file
names one, all are `train`. A path that names two, and files that name none beside others that do,
are refused: nothing is guessed, and no file is left out.
"""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

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

_FORMATS = {".parquet": "parquet", ".arrow": "arrow"}


def has_own_splits(root: Path) -> bool:
    """Whether a folder's card says which files are which split, as those on the Hub may."""
    try:
        card = (root / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    head = re.match(r"---\r?\n(.*?)\r?\n---", card, re.DOTALL)
    return head is not None and re.search(r"^configs:", head[1], re.MULTILINE) is not None


def find_table_files(
    name: str, root: Path, files: Sequence[str]
) -> tuple[str, dict[str, list[str]]]:
    """The format of a folder's files of rows, and the files of each split.

    Args:
        name: What messages call the dataset.
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
            f"'{name}' holds files of rows of several kinds, {' and '.join(formats)}; keep one kind"
        )
    splits: dict[str, list[str]] = {}
    for file in files:
        splits.setdefault(_find_split(name, file), []).append(file)
    if "" in splits and len(splits) > 1:
        others = ", ".join(split for split in splits if split)
        raise DataError(
            f"'{name}' has files of the splits {others}, and {_name_some(splits[''])} beside them, "
            "whose split no word of the name says; rename or move them, so that none is left out"
        )
    patterns = {
        split or "train": [glob.escape(str(root / file)) for file in members]
        for split, members in sorted(splits.items(), key=lambda item: _ORDER.index(item[0]))
    }
    return _FORMATS[formats[0]], patterns


def find_archive_files(name: str, root: Path, files: Sequence[str]) -> dict[str, list[str]]:
    """The archives of each split of a folder, which are all `train` unless each names a split.

    Args:
        name: What messages call the dataset.
        root: The folder.
        files: Paths of its archives below the root, in ascending order.

    Returns:
        By split the archives as patterns that `datasets` takes.
    """
    named = archive_splits(files)
    if named is None:
        if any(map(_named_splits, files)) and collectives.rank() == 0:
            logger.warning(
                "warning: the names of some archives of '%s' have words for splits in them and "
                "others do not: all %d are one split, train",
                *(name, len(files)),
            )
        named = ["train"] * len(files)
    splits: dict[str, list[str]] = {}
    for file, split in zip(files, named, strict=True):
        splits.setdefault(split, []).append(glob.escape(str(root / file)))
    return dict(sorted(splits.items(), key=lambda item: _ORDER.index(item[0])))


def archive_splits(files: Sequence[str]) -> list[str] | None:
    """The split of each archive by its path; None unless each names exactly one."""
    found = [_named_splits(file) for file in files]
    return [min(each) for each in found] if all(len(each) == 1 for each in found) else None


_ORDER = ("", "train", "validation", "test")


def _find_split(name: str, file: str) -> str:
    """The split that the words of a path name; "" where they name none."""
    found = sorted(_named_splits(file))
    if len(found) > 1:
        raise DataError(
            f"'{file}' of '{name}' names the splits {' and '.join(found)}; rename it, so that it "
            "is clear which it belongs to"
        )
    return found[0] if found else ""


def _named_splits(file: str) -> set[str]:
    words = re.split(r"[^a-z]+", file.lower())
    return {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}


def _name_some(files: Sequence[str]) -> str:
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return ", ".join(f"'{file}'" for file in files[:3]) + more
