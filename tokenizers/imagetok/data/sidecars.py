"""Columns from the text and JSON files that lie beside images of the same stem.

`a/1.txt` is the column `caption` of `a/1.jpg`, and the entries of `a/1.json` are columns of their
names, as kohya's and img2dataset's layouts have them. A column's type follows from all files: whole
numbers and other numbers together are float64, and values of other mixed types, and those of
objects, are kept as JSON text.
"""

from __future__ import annotations

import json
from typing import Any
from zipfile import BadZipFile

import pyarrow as pa
import pyarrow.compute as pc
from datasets.features.features import generate_from_arrow_type

from imagetok.data.folder_listing import FolderListing
from imagetok.data.folder_metadata import Columns
from imagetok.errors import DataError

_ENDING = r"(?s)\.[^./]*$"
_INT64 = range(-(2**63), 2**63)


def stems(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """Paths without the endings of their names."""
    return pc.replace_substring_regex(paths, _ENDING, "")


def of_images(sidecars: pa.ChunkedArray, images: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether each text or JSON file has the stem of an image."""
    return pc.is_in(stems(sidecars), value_set=stems(images).combine_chunks())


def read_sidecars(
    listing: FolderListing, paths: pa.ChunkedArray, sidecars: pa.ChunkedArray
) -> Columns:
    """The columns of the rows' sidecars, in the order in which they are first met.

    Args:
        listing: What lies in the folder.
        paths: Relative path of each row's image.
        sidecars: Relative paths of text and JSON files.

    Raises:
        DataError: A file cannot be read, or is not a JSON object.
    """
    known = {_key(path): path for path in sidecars.to_pylist()}
    values: dict[str, list[Any]] = {}
    for row, stem in enumerate(stems(paths).to_pylist()):
        fields: dict[str, Any] = {}
        if (path := known.get(f"{stem}.json")) is not None:
            fields = _read_fields(listing, path)
        if (path := known.get(f"{stem}.txt")) is not None:
            fields["caption"] = _read_text(listing, path).strip()
        for name, value in fields.items():
            column = values.setdefault(name, [])
            column += [None] * (row - len(column))
            column.append(value)
    columns: Columns = {}
    for name, column in values.items():
        column += [None] * (len(paths) - len(column))
        array = typed(column)
        columns[name] = (array, generate_from_arrow_type(array.type))
    return columns


def typed(values: list[Any]) -> pa.Array:
    """Values of JSON as an array whose type suits all of them."""
    kinds = {_kind(value) for value in values if value is not None}
    if not kinds or kinds == {str}:
        return pa.array(values, pa.string())
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {int}:
        return pa.array(values, pa.int64())
    if kinds <= {int, float}:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    if kinds == {list}:
        items = typed([item for value in values if value is not None for item in value])
        if not any(isinstance(item, (dict, list)) for value in values for item in value or ()):
            return _lists(values, items)
    texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    return pa.array(texts, pa.string())


def _lists(values: list[Any], items: pa.Array) -> pa.Array:
    offsets, end = [], 0
    for value in values:
        offsets.append(None if value is None else end)
        end += len(value or ())
    return pa.ListArray.from_arrays(pa.array([*offsets, end], pa.int32()), items)


def _key(path: str) -> str:
    """A path with its ending in lower case."""
    stem, dot, ending = path.rpartition(".")
    return f"{stem}{dot}{ending.lower()}"


def _kind(value: Any) -> type:
    """The type of a JSON value; a whole number beyond int64 is of no type that others have."""
    return object if type(value) is int and value not in _INT64 else type(value)


def _read_fields(listing: FolderListing, path: str) -> dict[str, Any]:
    try:
        fields = json.loads(_read_text(listing, path))
    except ValueError as error:
        raise DataError(
            f"the sidecar '{path}' of '{listing.root.name}' is not valid JSON: {error}"
        ) from None
    if not isinstance(fields, dict):
        raise DataError(
            f"the sidecar '{path}' of '{listing.root.name}' is not a JSON object with names and "
            "values; leave sidecars out, or mend it"
        )
    return fields


def _read_text(listing: FolderListing, path: str) -> str:
    try:
        return listing.read(path).decode("utf-8-sig")
    except (OSError, BadZipFile, UnicodeDecodeError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error
        raise DataError(
            f"the sidecar '{path}' of '{listing.root.name}' cannot be read: "
            f"{getattr(reason, 'strerror', None) or reason}"
        ) from None
