"""What is said of the reading of a folder of images: one line, on rank 0, once a process."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from imagetok.data.folder_labels import SPLIT_NAMES, FolderSplits
from imagetok.data.folder_listing import NOT_IMAGES, FolderListing, Skipped
from imagetok.data.folder_metadata import FolderColumns
from imagetok.dataset_ref import DatasetRef
from imagetok.launch import find_rank_info

logger = logging.getLogger(__name__)

_SINGULARS = {
    NOT_IMAGES: "file that is not an image",
    "links that lead nowhere": "link that leads nowhere",
    "links to folders that are read already": "link to a folder that is read already",
    "folders that cannot be read": "folder that cannot be read",
    "folders that imagetok has written": "folder that imagetok has written",
    "names that are not UTF-8": "name that is not UTF-8",
    "files of rows": "file of rows",
    "links and devices": "link or device",
    "names with line breaks": "name with line breaks",
    "images beside archives": "image beside archives",
}
"""What is left out, where it is one thing; other kinds lose their last letter."""
_REMEDIES = {
    "HEIC images": ", which need pillow-heif to be converted",
    "AVIF images": ", which are not read; convert them",
    "JPEG XL images": ", which are not read; convert them",
}


def tell_reading(
    listing: FolderListing,
    rows: FolderColumns,
    splits: FolderSplits,
    ref: DatasetRef,
    beside: pa.ChunkedArray,
    unlabelled: int,
) -> None:
    """Say what is left out of a folder, and what else its owner may not expect.

    Args:
        listing: What lies in the folder.
        rows: What became of it.
        splits: Its splits.
        ref: Its options.
        beside: Whether each sidecar of the listing has the stem of an image.
        unlabelled: Number of rows whose label is null.
    """
    parts = []
    if not splits.folders and ref.split_dirs is None:
        parts.append(f"one split, train, of {image_count(len(rows.paths))}{_split_words(rows)}")
    if unlabelled:
        parts.append(f"no label for {image_count(unlabelled)} in no class folder")
    if rows.unnamed is not None and len(rows.unnamed):
        parts.append(
            f"nulls in the columns of metadata for {image_count(len(rows.unnamed))} that it does "
            f"not name: {first_names(rows.unnamed)}"
        )
    num_sidecars = pc.sum(beside).as_py() or 0
    if num_sidecars and not ref.sidecars:
        parts.append(
            f"{num_sidecars} .txt or .json files that are called like images, which sidecars=true "
            "reads as columns"
        )
    parts += _skipped(listing, beside)
    if parts and find_rank_info(None, None).rank == 0:
        _tell_once(" ".join(f"'{ref.name}': {'; '.join(parts)}".split()))


def tell_left_out(name: str, listing: FolderListing, read: str) -> None:
    """Say what is left out of a folder of which files of rows or tar archives are read.

    Args:
        name: What messages call the folder.
        listing: What lies in it.
        read: What is read, as `_other_files` calls it.
    """
    others = {"images": listing.images[:].to_pylist(), **_other_files(listing)}
    parts = [
        f"skipped {count_of(kind, len(paths))}: " + str(Skipped(len(paths), list(paths[:3])))
        for kind, paths in others.items()
        if paths and kind != read
    ]
    if parts and find_rank_info(None, None).rank == 0:
        _tell_once(" ".join(f"'{name}' is read for its {read}; {'; '.join(parts)}".split()))


def tell_members(archives: Sequence[str], skipped: Sequence[Mapping[str, Skipped]]) -> None:
    """Say what is left out of tar archives.

    Args:
        archives: Their paths.
        skipped: What is left out of each, by what it is called in the plural; no word of "".
    """
    found: dict[str, Skipped] = {}
    for kind, each in chain.from_iterable(kinds.items() for kinds in skipped):
        names = [*found.get(kind, Skipped()).names, *each.names][:3]
        found[kind] = Skipped(found.get(kind, Skipped()).count + each.count, names)
    found.pop("", None)
    if found and find_rank_info(None, None).rank == 0:
        parts = [_skipped_words(kind, each) for kind, each in found.items()]
        others = f" and {len(archives) - 1} more" if len(archives) > 1 else ""
        _tell_once(" ".join(f"'{archives[0]}'{others}: {'; '.join(parts)}".split()))


def image_count(count: int) -> str:
    """A number of images in words."""
    return "1 image" if count == 1 else f"{count} images"


def first_names(paths: pa.ChunkedArray) -> str:
    """The first three of some paths."""
    return ", ".join(str(path) for path in paths[:3]) + (", ..." if len(paths) > 3 else "")


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


def _other_files(listing: FolderListing) -> dict[str, tuple[str, ...]]:
    return {
        "files of rows": listing.tables,
        "zip archives": listing.zips,
        "tar archives": listing.tars,
    }


def count_of(kind: str, count: int) -> str:
    """A number of things of a kind, which is called by its plural, in words."""
    return f"{count} {_SINGULARS.get(kind, kind.removesuffix('s')) if count == 1 else kind}"


def _skipped(listing: FolderListing, beside: pa.ChunkedArray) -> Iterator[str]:
    """What is left out, one kind after the other."""
    orphans = listing.sidecars.filter(pc.invert(beside))
    found = {NOT_IMAGES: Skipped(len(orphans), orphans[:3].to_pylist())}
    for kind, skipped in listing.skipped.items():
        if kind == NOT_IMAGES:
            names = sorted([*found[kind].names, *skipped.names])[:3]
            skipped = Skipped(found[kind].count + skipped.count, names)
        found[kind] = skipped
    for kind, paths in _other_files(listing).items():
        found[kind] = Skipped(len(paths), list(paths[:3]))
    for kind, skipped in found.items():
        if skipped.count:
            yield _skipped_words(kind, skipped)


def _skipped_words(kind: str, skipped: Skipped) -> str:
    return f"skipped {count_of(kind, skipped.count)}{_REMEDIES.get(kind, '')}: {skipped}"


@cache
def _tell_once(message: str) -> None:
    logger.warning("%s", message)
