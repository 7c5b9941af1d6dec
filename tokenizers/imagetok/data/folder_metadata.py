"""Columns that metadata files add to the images of a folder.

    metadata.csv | metadata.jsonl | metadata.parquet --join_metadata--> rows of columns

A metadata file names images relative to the folder that it lies in, in the column `file_name`. An
image that it names several times is as many rows; one that it does not name is a row with nulls.
Other columns of files, `..._file_name` or a list `..._file_names`, become columns of images too,
and what they name is no row of its own.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq
from datasets import Features, Image, List
from datasets.features.features import FeatureType

from imagetok.data.folder_listing import FolderListing
from imagetok.errors import DataError

IMAGE_COLUMN = "image"

Columns = dict[str, tuple[pa.Array, FeatureType]]
"""Columns by name, in order: their values as Arrow holds them, and their features."""


@dataclass(frozen=True)
class FolderColumns:
    """The rows of a folder.

    Attributes:
        paths: Relative path of each row's image, ascending.
        columns: Columns of the rows, that of the images among them.
        image_column: Name of the column that holds the images of `paths`.
        unnamed: Images that no metadata file names; None where there is no metadata file.
    """

    paths: pa.ChunkedArray
    columns: Columns
    image_column: str = IMAGE_COLUMN
    unnamed: pa.ChunkedArray | None = None


def image_cells(listing: FolderListing, paths: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Files of a folder as the values of an image column; null where the path is."""
    if listing.opened:
        places = [None if path is None else listing.locate(path) for path in paths.to_pylist()]
        whole = pa.array(places, pa.string())
    else:
        whole = pc.binary_join_element_wise(pa.scalar(str(listing.root)), paths, pa.scalar("/"))
        whole = whole.combine_chunks() if isinstance(whole, pa.ChunkedArray) else whole
    contents = pa.nulls(len(whole), pa.binary())
    return pa.StructArray.from_arrays(
        [contents, whole], names=["bytes", "path"], mask=pc.is_null(whole)
    )


def join_metadata(listing: FolderListing) -> FolderColumns:
    """The rows of a folder with the columns of its metadata files.

    Raises:
        DataError: A metadata file cannot be read, names no images or one that is missing, or does
            not fit another one.
    """
    images, files = listing.images, listing.metadata
    if not files:
        return FolderColumns(images, {IMAGE_COLUMN: (image_cells(listing, images), Image())})
    tables = [_named_rows(listing, file) for file in files]
    keys = {key for _, key in tables}
    if len(keys) > 1:
        raise DataError(
            f"the metadata files of '{listing.root.name}' name images in different columns: "
            f"{', '.join(sorted(keys))}; name them in file_name everywhere"
        )
    key = keys.pop()
    _check_named_once([table.column(key) for table, _ in tables], files)
    try:
        table = pa.concat_tables([each for each, _ in tables], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"{', '.join(files[:3])} have columns that do not fit: {error}") from error
    return _join(listing, table, key)


def _join(listing: FolderListing, table: pa.Table, key: str) -> FolderColumns:
    """Rows in the order of the images, from metadata rows in any order."""
    images = listing.images
    others = [name for name in table.column_names if name != key and _names_files(table, name)]
    named = pc.index_in(table[key], value_set=images).combine_chunks().to_numpy()
    is_named = np.zeros(len(images), bool)
    for name in others:
        files = pc.list_flatten(table[name]) if _is_list(table, name) else table[name]
        is_named[pc.index_in(files, value_set=images).drop_null().to_numpy()] = True
    is_named[named] = True
    unnamed = np.flatnonzero(~is_named)
    image_rows = np.concatenate([named, unnamed])
    order = np.argsort(image_rows, kind="stable")
    table_rows = np.concatenate([np.arange(len(named)), np.full(len(unnamed), -1)])[order]
    paths = images.take(image_rows[order])
    joined = table.take(pa.array(table_rows, mask=table_rows < 0))
    features = Features.from_arrow_schema(table.schema)
    columns: Columns = {}
    for name in table.column_names:
        column = joined[name].combine_chunks()
        if name == key:
            column, feature = image_cells(listing, paths), Image()
        elif name in others:
            column, feature = _other_images(listing, column)
        else:
            feature = features[name]
        shown = _shown(name) if name == key or name in others else name
        if shown in columns:
            raise DataError(
                f"the metadata of '{listing.root.name}' has two columns '{shown}', one of them "
                f"from '{name}'; rename one"
            )
        columns[shown] = (column, feature)
    return FolderColumns(paths, columns, _shown(key), images.take(unnamed))


def _other_images(listing: FolderListing, paths: pa.Array) -> tuple[pa.Array, FeatureType]:
    if not (pa.types.is_list(paths.type) or pa.types.is_large_list(paths.type)):
        return image_cells(listing, paths), Image()
    cells = image_cells(listing, paths.values)
    kind = pa.ListArray if pa.types.is_list(paths.type) else pa.LargeListArray
    mask = pc.is_null(paths) if paths.null_count else None
    return kind.from_arrays(paths.offsets, cells, mask=mask).cast(pa.list_(cells.type)), List(
        Image()
    )


def _shown(name: str) -> str:
    """What the column of images is called that is named by a column of files."""
    for end, usual in (("file_names", "images"), ("file_name", IMAGE_COLUMN)):
        if name == end:
            return usual
        if name.endswith(f"_{end}"):
            return name.removesuffix(f"_{end}")
    return name


def _is_list(table: pa.Table, name: str) -> bool:
    kind = table.schema.field(name).type
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _names_files(table: pa.Table, name: str) -> bool:
    """Whether a column names files: by its name, and because it holds texts or lists of them."""
    kind = table.schema.field(name).type
    if _is_list(table, name):
        return _shown(name) != name and name.endswith("file_names") and _is_text(kind.value_type)
    return _shown(name) != name and name.endswith("file_name") and _is_text(kind)


def _named_rows(listing: FolderListing, file: str) -> tuple[pa.Table, str]:
    """The rows of a metadata file, with the paths below the root of what it names, and its key."""
    table, images, folder_name = _read_table(listing, file), listing.images, listing.root.name
    columns = [name for name in table.column_names if _names_files(table, name)]
    single = [name for name in columns if not _is_list(table, name)]
    if not single:
        raise DataError(
            f"the metadata file '{file}' of '{folder_name}' has no column file_name with the names "
            f"of images as text; its columns are: {', '.join(table.column_names) or '(none)'}"
        )
    folder = posixpath.dirname(file)
    for name in columns:
        place = table.column_names.index(name)
        paths = _resolved(table[name], folder)
        flat = pc.list_flatten(paths) if _is_list(table, name) else paths
        missing = pc.and_(pc.is_valid(flat), pc.is_null(pc.index_in(flat, value_set=images)))
        if pc.any(missing).as_py():
            raise DataError(
                f"'{file}' of '{folder_name}' names {pc.sum(missing).as_py()} images that are not "
                f"there; the first is '{flat.filter(missing)[0]}'"
            )
        table = table.set_column(place, name, paths)
    key = "file_name" if "file_name" in single else single[0]
    if table[key].null_count:
        count = table[key].null_count
        raise DataError(f"'{file}' of '{folder_name}' has {count} rows without {key}")
    return table, key


def _resolved(names: pa.ChunkedArray, folder: str) -> pa.ChunkedArray:
    """Names in a metadata file as paths below the root."""

    def resolve(value: str | list[str] | None) -> str | list[str] | None:
        if value is None or isinstance(value, list):
            return value and [str(resolve(each)) for each in value]
        return posixpath.normpath(posixpath.join(folder, value.replace("\\", "/")))

    kind = pa.list_(pa.string()) if not _is_text(names.type) else pa.string()
    return pa.chunked_array([pa.array([resolve(each) for each in names.to_pylist()], kind)])


def _read_table(listing: FolderListing, file: str) -> pa.Table:
    try:
        content = listing.read(file)
        if file.endswith(".csv"):
            return pa.Table.from_pandas(pd.read_csv(BytesIO(content)), preserve_index=False)
        if file.endswith(".jsonl"):
            # One block, because types are found out block by block.
            options = pyarrow.json.ReadOptions(block_size=min(max(len(content), 1) + 1, 2**31 - 1))
            return pyarrow.json.read_json(BytesIO(content), read_options=options)
        return pq.read_table(BytesIO(content))
    except Exception as error:  # pandas and pyarrow raise many kinds
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"the metadata file '{file}' of '{listing.root.name}' cannot be read: {reason}"
        ) from error


def _check_named_once(keys: list[pa.ChunkedArray], files: tuple[str, ...]) -> None:
    """Refuse an image that two metadata files name."""
    seen: dict[str, str] = {}
    if len(keys) == 1:
        return
    for column, file in zip(keys, files, strict=True):
        for path in pc.unique(column).to_pylist():
            if path in seen:
                raise DataError(
                    f"both '{seen[path]}' and '{file}' name the image '{path}'; let one of them do"
                )
            seen[path] = file
