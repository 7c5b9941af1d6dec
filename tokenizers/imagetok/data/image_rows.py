"""`ImageRows`: a dataset of images, opened but not decoded.

The image column is `Image(decode=False)`, and so is every other column that would decode files: a
corrupt image is met when it is read, by imagetok's own reader, and the error says which row it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from datasets import Dataset, Features, Image, IterableDataset, LargeList, List, Value
from datasets.features.features import FeatureType

from imagetok.data.data_fingerprint import content_fingerprint
from imagetok.data.dataset_location import data_errors
from imagetok.data.folder_labels import RecordedLabels
from imagetok.data.holdout import hold_out
from imagetok.data.remote_file import is_remote, read_file
from imagetok.data.source import open_source, take_split
from imagetok.dataset_ref import DatasetRef
from imagetok.errors import DataError

Rows = TypeVar("Rows", Dataset, IterableDataset)

_BINARY = frozenset(("binary", "large_binary", "binary_view"))
_TEXT = frozenset(("string", "large_string", "string_view"))

StoredImage = dict[str, Any]
"""An image as rows hold it, `{"bytes": ..., "path": ...}`, which `read_image` takes."""


def as_stored_image(value: Any) -> StoredImage | None:
    """The value of an image column: a dict, bare bytes, or a list of one; None where it is null.

    Raises:
        DataError: It is a list of several images.
    """
    if isinstance(value, list):
        if len(value) > 1:
            raise DataError(
                f"a row has a list of {len(value)} images, and one image a row is read; write a "
                "dataset with a row for each"
            )
        value = value[0] if value else None
    return value if value is None or isinstance(value, dict) else {"bytes": value, "path": None}


def fetch_image(image: StoredImage | None, name: str) -> StoredImage:
    """An image with its bytes, where its file is in an archive or on the Hub.

    Args:
        image: What the row holds.
        name: What messages call the row.

    Raises:
        DataError: The row has no image, or its file cannot be read.
    """
    if image is None:
        raise DataError(f"{name} has no image: its value is null")
    path = image["path"]
    if image["bytes"] is not None or path is None or not is_remote(path):
        return image
    with data_errors(f"{name}, file '{path}' cannot be read"):
        return {"bytes": read_file(path), "path": path}


@dataclass(frozen=True)
class ImageRows:
    """The rows of one split, in order.

    Attributes:
        name: The name that the dataset was opened by.
        split: The split, in the notation of `datasets`.
        dataset: All columns; images as `{"bytes": ..., "path": ...}` or bytes.
        image_column: Column of the images.
        identity: What fixes the content, where that is known without reading it.
        reading: How rows were found and divided, where a `DatasetRef` said more than its defaults.
        recorded: From these rows to those that the fingerprint counts; None where it counts all
            columns.
    """

    name: str
    split: str
    dataset: Dataset
    image_column: str
    identity: str | None = field(default=None, repr=False)
    reading: Mapping[str, Any] = field(default_factory=dict)
    recorded: RecordedLabels | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the content, equal on every machine for equal rows: 64 hexadecimal digits.

        `imagetok.data.data_fingerprint` says what is hashed. For a built-in dataset it is the
        version of its drawing, its options and the rows.
        """
        return self.fingerprint_now()

    def fingerprint_now(self) -> str:
        """The same of the content at the time of the call."""
        if self.identity is not None:
            return hashlib.sha256(self.identity.encode()).hexdigest()
        return content_fingerprint(self.counted, self.image_column)

    @property
    def counted(self) -> Dataset:
        """The rows with the columns that the fingerprint counts."""
        return self.dataset if self.recorded is None else self.recorded(self.dataset)

    def image(self, row: int) -> StoredImage:
        """The image of a row as `{"bytes": ..., "path": ...}`, for `read_image`.

        Raises:
            DataError: The row does not exist or has no image, or its archive cannot be read.
        """
        return fetch_image(self.stored(row), self.describe(row))

    def stored(self, row: int) -> StoredImage | None:
        """What a row holds, which may be the path of a file; None where it has no image.

        Raises:
            DataError: The row does not exist.
        """
        return as_stored_image(self._images[self._check(row)][self.image_column])

    picture = image
    """The older name of `image`."""

    def row(self, index: int) -> dict[str, Any]:
        """All columns of a row, nothing decoded.

        Raises:
            DataError: The row does not exist.
        """
        return dict(self.dataset[self._check(index)])

    def describe(self, row: int) -> str:
        """What messages call a row: its number, split and dataset."""
        return f"row {row} of '{self.name}' ({self.split})"

    @cached_property
    def _images(self) -> Dataset:
        return self.dataset.select_columns([self.image_column])

    def _check(self, row: int) -> int:
        if not 0 <= row < len(self):
            raise DataError(f"{self.describe(row)} does not exist; it has rows 0..{len(self) - 1}")
        return int(row)


def open_images(
    name: str,
    split: str,
    *,
    subset: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    cache_dir: str | Path | None = None,
    **reading: Any,
) -> ImageRows:
    """Open a dataset of images, to be read row by row.

    Args:
        name: `builtin:shapes` or `builtin:digits`, with options as in
            `builtin:shapes?size=128&count=500`; a folder of images, with or without folders for
            classes and splits, or of zip archives of them; a parquet, arrow or tar (WebDataset)
            file or a folder of such; a folder written by `save_to_disk`; or a dataset on the Hub.
            Where a folder has no splits, all of it is `train`.
        split: A split, a slice (`train[:100]`, `train[90%:]`), or a sum of these with `+`.
        subset: Configuration name of a dataset that has several.
        revision: Commit, branch or tag of a dataset on the Hub.
        image_column: Column of the images, an Image or binary one; None finds the only column
            with an Image feature.
        cache_dir: Where `datasets` keeps what it draws, downloads and converts.
        reading: Entries of `DatasetRef` that say how rows are found and divided, such as
            `holdout="10%"`.

    Raises:
        DataError: The dataset, the split or the column cannot be used; the message lists those
            that can.
        MissingExtraError: `builtin:digits` without scikit-learn.
    """
    return open_rows(DatasetRef(name, split, subset, revision, image_column, **reading), cache_dir)


def open_rows(ref: DatasetRef, cache_dir: str | Path | None = None) -> ImageRows:
    """Open the dataset of a reference row by row, whether or not it says `streaming`.

    Args:
        ref: Which rows of which dataset.
        cache_dir: As in `open_images`; so are the errors.
    """
    cache = None if cache_dir is None else str(cache_dir)
    source = open_source(ref, cache)
    if ref.holds_out:
        source = hold_out(source, ref, lambda rows: _as_images(rows, None, ref))
    rows = _as_images(*take_split(source, ref), ref)
    return replace(rows, recorded=source.recorded)


def _as_images(dataset: Dataset, identity: str | None, ref: DatasetRef) -> ImageRows:
    column = find_column(dataset.features, ref)
    reading = ref.chosen_reading()
    return ImageRows(ref.name, ref.split, undecoded(dataset), column, identity, reading)


def find_column(features: Features, ref: DatasetRef) -> str:
    """The column of the images: the one that is named, or the only Image.

    Args:
        features: The features of all columns.
        ref: The dataset; may name the column.

    Raises:
        DataError: There is none, or several; the message lists the columns.
    """
    name, image_column = ref.name, ref.image_column
    listing = ", ".join(f"{column} ({_kind(feature)})" for column, feature in features.items())
    if image_column is None:
        found = [key for key, feature in features.items() if isinstance(feature, Image)]
        found = found or [key for key, feature in features.items() if _holds_files(feature)]
        if len(found) == 1:
            return str(found[0])
        how_many = "several columns of images" if found else "no column of images"
        raise DataError(f"'{name}' has {how_many}; name one by image_column: {listing}")
    if image_column not in features:
        raise DataError(f"'{name}' has no column '{image_column}'; its columns are: {listing}")
    feature = features[image_column]
    if isinstance(feature, Value) and feature.dtype in _TEXT:
        raise DataError(
            f"column '{image_column}' of '{name}' holds text, not images: addresses and paths in a "
            "column are never opened, and base64 is not decoded; store the files themselves, as "
            f"datasets.Image does. Its columns are: {listing}"
        )
    if not (isinstance(feature, Image) or _holds_files(feature) or _is_binary(feature)):
        raise DataError(
            f"column '{image_column}' of '{name}' holds no images; an image column is an Image, a "
            "{bytes, path} or a binary one, or a list of one of these, its columns are: "
            f"{listing}"
        )
    return image_column


def undecoded(dataset: Rows) -> Rows:
    """The same rows without a format, and with every column of files left undecoded."""
    dataset = dataset.with_format(None)
    for column, feature in dataset.features.items():
        if getattr(feature, "decode", False):
            dataset = dataset.cast_column(column, replace(feature, decode=False))
        elif getattr(_inside(feature), "decode", False):
            files = replace(_inside(feature), decode=False)
            dataset = dataset.cast_column(column, replace(feature, feature=files))
    return dataset


def _holds_files(feature: FeatureType) -> bool:
    """Whether values are `{bytes, path}`, as writers without `datasets` store images, or lists."""
    inner = _inside(feature)
    if isinstance(inner, dict):
        return inner.keys() == {"bytes", "path"} and _is_binary(inner["bytes"])
    return isinstance(inner, Image)


def _is_binary(feature: FeatureType) -> bool:
    inner = _inside(feature)
    return isinstance(inner, Value) and inner.dtype in _BINARY


def _inside(feature: FeatureType) -> FeatureType:
    """What lists hold, and other features as they are."""
    return feature.feature if isinstance(feature, List | LargeList) else feature


def _kind(feature: FeatureType) -> str:
    if isinstance(feature, List | LargeList):
        return f"list of {_kind(feature.feature)}"
    if isinstance(feature, dict):
        return f"{{{', '.join(feature)}}}"
    return str(feature.dtype) if isinstance(feature, Value) else type(feature).__name__
