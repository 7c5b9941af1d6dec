"""A fingerprint of a dataset's content, the same on every machine and for every file format.

Fingerprints of the `datasets` library depend on paths and file times, and hashing every image would
read all of a large dataset. `content_fingerprint` hashes, in the order of the rows:

- names and types of the columns, names of labels, the number of rows;
- for every row the size in bytes of its image file, and all numbers and strings;
- for 64 evenly spaced rows everything, images included, byte by byte.

So it detects every change of rows, order, labels and captions, and every change of images except
one that keeps the size of each file and touches none of the 64. The paths of images do not count.

A streamed dataset is not read beforehand; `files_fingerprint` hashes its files instead.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset

from imagetok.data.remote_file import file_size, read_file
from imagetok.data.sample_order import fixed_rows

NUM_SAMPLES = 64
_BATCH = 10_000
_SAMPLE_BYTES = 4096
_REPOSITORY = re.compile(r"^hf://datasets/[^@]*")


def content_fingerprint(dataset: Dataset, image_column: str) -> str:
    """Hash the content of a dataset.

    Args:
        dataset: The rows; the image column is `Image(decode=False)` or binary.
        image_column: Its name.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    table = dataset.with_format("arrow")
    schema = dataset.data.schema
    files = {key for key in dataset.column_names if _is_file(schema.field(key).type)}
    files.add(image_column)
    _add(digest, (image_column, len(dataset)))
    for column, feature in dataset.features.items():
        kind = "file" if column in files else str(schema.field(column).type)
        labels = feature.names if isinstance(feature, ClassLabel) else None
        _add(digest, (column, kind, labels))
    for start in range(0, len(dataset), _BATCH):
        batch: pa.Table = table[start : start + _BATCH]
        for column in dataset.column_names:
            values = batch.column(column)
            if column in files:
                _add(digest, file_sizes(values))
            elif _is_plain(values.type):
                _add(digest, values.to_pylist())
    for row in fixed_rows(len(dataset), NUM_SAMPLES):
        for column, value in table[row : row + 1].to_pylist()[0].items():
            _add(digest, _file_bytes(value) if column in files else value)
    return digest.hexdigest()


def files_fingerprint(files: Sequence[str], root: Path | None, image_column: str) -> str:
    """Hash what a streamed dataset is made of, in the order of its files.

    For files on this machine these are the path below `root`, the size, and for 64 evenly spaced
    ones the first and last 4,096 bytes; for files on the Hub, the commit and the path in the
    repository. So the same files give the same fingerprint on every machine, and a change that
    keeps all names and sizes is seen where it touches the bytes that are read.

    Args:
        files: Paths, or addresses such as `hf://datasets/user/name@commit/train.parquet`.
        root: The folder, or the file, that the dataset was opened by; None for one on the Hub.
        image_column: Column of the images.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: A file on this machine cannot be read.
    """
    digest = hashlib.sha256()
    _add(digest, ("files", image_column, len(files)))
    local = [file for file in files if "://" not in file]
    for file in files:
        if "://" in file:
            _add(digest, _REPOSITORY.sub("", file))
        else:
            place = file if root is None else os.path.relpath(file, root)
            _add(digest, (place, os.path.getsize(file)))
    for number in fixed_rows(len(local), NUM_SAMPLES):
        with open(local[number], "rb") as content:
            _add(digest, content.read(_SAMPLE_BYTES))
            content.seek(-min(_SAMPLE_BYTES, content.seek(0, os.SEEK_END)), os.SEEK_END)
            _add(digest, content.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _add(digest: Any, value: object) -> None:
    digest.update(repr(value).encode("utf-8", "surrogatepass"))
    digest.update(b"\n")


def _is_file(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind)) and {field.name for field in kind} == {"bytes", "path"}


def _is_plain(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_boolean(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_string(kind)
        or types.is_large_string(kind)
    )


def file_sizes(values: pa.ChunkedArray) -> list[int | None]:
    """Size in bytes of each file, without reading it; None where there is none.

    Args:
        values: Files as `{bytes, path}`, binary ones, or lists of one of these.
    """
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        flat = iter(file_sizes(pc.list_flatten(values)))
        counts = pc.list_value_length(values).to_pylist()
        return [sum(next(flat) or 0 for _ in range(count)) if count else None for count in counts]
    if not pa.types.is_struct(values.type):
        return _lengths(values)
    sizes = _lengths(pc.struct_field(values, "bytes"))
    if None not in sizes:
        return sizes
    paths = pc.struct_field(values, "path").to_pylist()
    return [
        _file_size(path) if size is None else size for size, path in zip(sizes, paths, strict=True)
    ]


def _lengths(values: pa.ChunkedArray) -> list[int | None]:
    if pa.types.is_binary_view(values.type):
        values = values.cast(pa.large_binary())
    return list(pc.binary_length(values).to_pylist())


def _file_size(path: str | None) -> int | None:
    try:
        return None if path is None else file_size(path)
    except (OSError, BadZipFile):
        return None


def _file_bytes(value: Any) -> bytes | None:
    if isinstance(value, list):
        return b"".join(_file_bytes(each) or b"" for each in value)
    if not isinstance(value, dict):
        return value if value is None else bytes(value)
    if value["bytes"] is not None or value["path"] is None:
        content: bytes | None = value["bytes"]
        return content
    try:
        return read_file(value["path"])
    except (OSError, BadZipFile):
        return None
