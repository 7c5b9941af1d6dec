"""The split `holdout`: rows of `train` that a hash of their identity chooses.

    identity of a row --blake2b, keyed by the salt--> number in [0, 1) --below the share--> holdout

A row's side depends on its own identity alone, so that rows that are added later move no others.
The identity is the path below the folder for an image in a file of its own, the member's path for
one in an archive, otherwise the file and the row's number in it, or the row's number where there
is no file. Byte-identical images whose files lie on this machine all follow the first of them,
where rows are read one by one.

With `stratify`, the rows of each label are ranked by the same number, and the lowest are held out.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from datasets import ClassLabel, Dataset

from imagetok.data.data_fingerprint import file_sizes
from imagetok.data.folder_listing import TAR_ENDINGS
from imagetok.data.remote_file import is_remote, read_file
from imagetok.data.source import Source
from imagetok.dataset_ref import DatasetRef
from imagetok.errors import DataError

if TYPE_CHECKING:
    from imagetok.data.image_rows import ImageRows, StoredImage

DIVIDED_SPLIT, HOLDOUT_SPLIT = "train", "holdout"
_BATCH = 10_000
_SAMPLE_BYTES = 4096


@dataclass(frozen=True)
class Holdout:
    """Which rows are held out, by their identities.

    Attributes:
        share: Share of the rows, in (0, 1).
        salt: Key of the hash.
    """

    share: Fraction
    salt: str = ""

    def holds(self, identity: str) -> bool:
        """Whether a row of this identity is held out."""
        return self.rank(identity) < self.share * 2**64

    def rank(self, identity: str) -> int:
        """The number in [0, 2**64) that decides where a row goes."""
        content = identity.encode("utf-8", "surrogateescape")
        digest = blake2b(content, digest_size=8, key=self.salt.encode()).digest()
        return int.from_bytes(digest, "big")


def base_split(ref: DatasetRef, split: str) -> str:
    """The split of the dataset itself that holds the rows of a split."""
    return DIVIDED_SPLIT if ref.holds_out and split == HOLDOUT_SPLIT else split


def divided_names(ref: DatasetRef, splits: Sequence[str]) -> list[str]:
    """Names of the splits that there are where a reference holds rows out.

    Args:
        ref: Says whether it does.
        splits: Names of the splits of the dataset itself.

    Raises:
        DataError: There is no split `train` to divide, or there is a `holdout` already.
    """
    if not ref.holds_out:
        return list(splits)
    if DIVIDED_SPLIT not in splits or HOLDOUT_SPLIT in splits:
        raise DataError(
            f"rows are held out of the split '{DIVIDED_SPLIT}' as '{HOLDOUT_SPLIT}', and the "
            f"splits of '{ref.name}' are: {', '.join(splits)}; leave holdout out, and name the "
            "splits instead"
        )
    return [*splits, HOLDOUT_SPLIT]


def member_path(file: str, image: StoredImage | None) -> str | None:
    """The path of an image in a tar archive, by which it is identified; None in other files."""
    return image["path"] if image is not None and _is_tar(file) else None


def _is_tar(file: str) -> bool:
    return file.lower().endswith(TAR_ENDINGS)


@dataclass(frozen=True)
class Side:
    """One side of a holdout, for rows that are read in sequence.

    Attributes:
        holdout: Says which rows are held out.
        held: Whether this is the side of these.
    """

    holdout: Holdout
    held: bool

    def has(self, file: str, number: int, path: str | None) -> bool:
        """Whether a row is on this side.

        Args:
            file: Name of its file.
            number: Number of the row in it.
            path: Path of its image, where that is a member of an archive.
        """
        return self.holdout.holds(f"{file}:{number}" if path is None else path) == self.held


def find_side(ref: DatasetRef) -> Side | None:
    """The side of a reference's split; None where all rows of a split of the dataset are meant."""
    if ref.holdout is None or ref.split not in (DIVIDED_SPLIT, HOLDOUT_SPLIT):
        return None
    return Side(Holdout(ref.holdout_share, ref.holdout_salt), ref.split == HOLDOUT_SPLIT)


def hold_out(source: Source, ref: DatasetRef, as_images: Callable[[Dataset], ImageRows]) -> Source:
    """Divide the split `train` of a source into `train` and `holdout`.

    Args:
        source: Its splits; the rows of `train` are loaded at once.
        ref: Says how to divide.
        as_images: From rows to their images.

    Raises:
        DataError: There is no split `train`, or there is a `holdout` already; a side would be
            empty; or the rows of a stratified holdout have no labels, or too few of one.
    """
    divided_names(ref, list(source.lengths))
    lengths = dict(source.lengths)
    rows = source.load(DIVIDED_SPLIT)
    held = _held_rows(as_images(rows), source.identities(DIVIDED_SPLIT, rows), ref)
    sides = {
        DIVIDED_SPLIT: [row for row in range(len(rows)) if row not in held],
        HOLDOUT_SPLIT: sorted(held),
    }
    for side, numbers in sides.items():
        if not numbers:
            raise DataError(
                f"holding out {_amount(ref)} of the {len(rows)} rows of '{ref.name}' leaves the "
                f"split '{side}' empty; choose another share, or stratify, which holds out some of "
                "every label"
            )
    divided = {side: rows.select(numbers) for side, numbers in sides.items()}
    lengths |= {side: len(numbers) for side, numbers in sides.items()}
    identity = source.identity
    if identity is not None:
        identity += f" holdout={_amount(ref)} stratify={ref.stratify} salt={ref.holdout_salt}"

    def load(split: str) -> Dataset:
        return divided[split] if split in divided else source.load(split)

    return replace(source, lengths=lengths, load=load, identity=identity)


def _amount(ref: DatasetRef) -> str:
    return ref.holdout or f"{ref.stratify} rows of each label"


def _held_rows(images: ImageRows, identities: Sequence[str], ref: DatasetRef) -> set[int]:
    """Numbers of the rows that are held out."""
    rows, holdout = images.dataset, Holdout(ref.holdout_share, ref.holdout_salt)
    first = _first_of_equals(images)
    if not ref.stratify:
        return {row for row in range(len(rows)) if holdout.holds(identities[first[row]])}
    label = _label_column(rows, ref)
    groups: dict[Any, list[int]] = defaultdict(list)
    for row, value in enumerate(rows.select_columns([label])[:][label]):
        if first[row] == row:
            groups[value].append(row)
    chosen: set[int] = set()
    for value, members in groups.items():
        name = "null" if value is None else str(rows.features[label].int2str(value))
        ranked = sorted(members, key=lambda row: (holdout.rank(identities[row]), row))
        chosen.update(ranked[: _number_held(len(members), name, ref)])
    return {row for row in range(len(rows)) if first[row] in chosen}


def _number_held(count: int, label: str, ref: DatasetRef) -> int:
    """How many of the `count` rows of a label are held out: at least one, and not all."""
    if count < 2:
        raise DataError(
            f"the label '{label}' of '{ref.name}' has one image, which cannot be on both sides of "
            "a stratified holdout; leave stratify out, or add images"
        )
    wanted = round(ref.holdout_share * count) if ref.stratify is True else int(ref.stratify)
    return min(max(wanted, 1), count - 1)


def _label_column(rows: Dataset, ref: DatasetRef) -> str:
    found = [key for key, feature in rows.features.items() if isinstance(feature, ClassLabel)]
    if "label" in found:
        return "label"
    if len(found) != 1:
        what = f"several columns of labels: {', '.join(found)}" if found else "no column of labels"
        raise DataError(
            f"a stratified holdout needs labels, and '{ref.name}' has {what}; leave stratify out"
        )
    return str(found[0])


def _first_of_equals(images: ImageRows) -> list[int]:
    """For each row the first row with byte for byte the same image, which may be itself.

    Images are told apart by their sizes, then by their ends, and only what is left is hashed whole.
    Images that do not lie on this machine count as different from all others.
    """
    first = list(range(len(images)))
    table = images.dataset.select_columns([images.image_column]).with_format("arrow")
    sizes: list[int | None] = []
    for start in range(0, len(images), _BATCH):
        sizes += file_sizes(table[start : start + _BATCH].column(images.image_column))
    groups = _equal_groups([first], sizes.__getitem__)
    for most in (_SAMPLE_BYTES, None):
        groups = _equal_groups(groups, partial(_digest, images, most))
    for group in groups:
        for row in group:
            first[row] = group[0]
    return first


def _equal_groups(
    groups: Sequence[Sequence[int]], key: Callable[[int], Hashable]
) -> list[list[int]]:
    """Within each group, the groups of several rows with equal keys; None equals nothing."""
    found = []
    for group in groups:
        parts: dict[Hashable, list[int]] = defaultdict(list)
        for row in group:
            if (value := key(row)) is not None:
                parts[value].append(row)
        found += [part for part in parts.values() if len(part) > 1]
    return found


def _digest(images: ImageRows, most: int | None, row: int) -> bytes | None:
    """Hash of an image's first and last `most` bytes, of all with None; None if unreadable."""
    image = images.stored(row)
    if image is None:
        return None
    content, path = image["bytes"], image["path"]
    try:
        if content is None and most is not None and not is_remote(path):
            with open(path, "rb") as file:
                content = file.read(most)
                file.seek(-min(most, file.seek(0, os.SEEK_END)), os.SEEK_END)
                content += file.read(most)
        elif content is None:
            content = read_file(path)
    except (OSError, ValueError, BadZipFile):
        return None  # whoever reads the row says what is wrong with it
    return blake2b(content if most is None else content[:most] + content[-most:]).digest()
