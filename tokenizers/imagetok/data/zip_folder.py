"""Zip archives of images, listed as if they were folders.

    FolderListing with zips --open_zips--> FolderListing of what lies in them, as `a.zip/cat/1.png`

From there on a folder of archives is a folder of images: the same rules give its metadata, sidecars
and labels. The archive itself is no class; it is a split only where each archive is called like
one. Nothing is unpacked.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

import pyarrow as pa

from imagetok.data.folder_listing import (
    KINDS,
    PREFIX_SIZE,
    FolderListing,
    PathColumn,
    Skipped,
    file_kind,
)
from imagetok.data.table_folder import archive_splits
from imagetok.dataset_ref import DatasetRef
from imagetok.errors import DataError


def open_zips(listing: FolderListing, name: str) -> FolderListing:
    """The listing of the files in a folder's zip archives; images beside these are left out.

    Args:
        listing: The folder.
        name: What messages call it.

    Raises:
        DataError: An archive is damaged, or there is no image in any.
    """
    found = {kind: PathColumn() for kind in KINDS}
    skipped = dict(listing.skipped)
    if len(listing.images):
        names = listing.images[:3].to_pylist()
        skipped["images beside archives"] = Skipped(len(listing.images), names)
    for archive in listing.zips:
        for member, kind in _members(listing.root / archive):
            path = f"{archive}/{member}"
            if kind in ("zip", "tar", "table"):
                kind = "files that are not images"
            if kind in found:
                found[kind].add(path)
            else:
                skipped.setdefault(kind, Skipped()).add(path)
    images = found["image"].finish()
    if not len(images):
        count = len(listing.zips)
        archives = f"{count} zip archives, and no images in them"
        if count == 1:
            archives = "a zip archive, and no images in it"
        raise DataError(f"'{name}' holds {archives}")
    return replace(
        listing,
        images=images,
        zips=(),
        metadata=tuple(found["metadata"].finish().to_pylist()),
        sidecars=found["sidecar"].finish(),
        skipped=skipped,
        opened=listing.zips,
    )


def inner_paths(listing: FolderListing, paths: pa.ChunkedArray, ref: DatasetRef) -> pa.ChunkedArray:
    """The paths that splits and labels are told by: those in the archives, where there are any.

    Below the name of a split, if each archive is called like one and `split_dirs` does not say
    otherwise.
    """
    if not listing.opened:
        return paths
    named = _splits(listing) if ref.split_dirs is None else None
    tops = {} if named is None else dict(zip(listing.opened, named, strict=True))
    found = []
    for path in paths.to_pylist():
        archive, member = listing.split_archive(path)
        member = member.lstrip("/")
        found.append(f"{tops[archive]}/{member}" if archive in tops else member)
    return pa.chunked_array([pa.array(found, pa.string())])


def files_of_split(listing: FolderListing, split: str) -> list[str]:
    """The opened archives that hold the rows of a split."""
    named = _splits(listing)
    if named is None:
        return list(listing.opened)
    return [file for file, each in zip(listing.opened, named, strict=True) if each == split]


def _splits(listing: FolderListing) -> list[str] | None:
    """The split of each opened archive by its name; None unless each is called like one."""
    return None if listing.is_archive else archive_splits(listing.opened)


def _members(path: Path) -> Iterator[tuple[str, str]]:
    """The files in an archive by name, each once, and their kinds."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(set(archive.namelist())):
                parts = PurePosixPath(name).parts
                if name.endswith("/") or "__MACOSX" in parts or parts[-1].startswith("."):
                    continue
                yield name, file_kind(parts[-1], partial(_head, archive, name))
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"the archive '{path}' is damaged: {error}") from None


def _head(archive: zipfile.ZipFile, name: str) -> bytes:
    """The first bytes of a file in an archive; none where it cannot be read."""
    try:
        with archive.open(name) as file:
            return file.read(PREFIX_SIZE)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError):
        return b""  # it is listed as no image; an image whose name tells is met when it is read
