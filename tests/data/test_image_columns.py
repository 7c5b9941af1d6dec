"""Columns of images as any library writes them, found or named, and read by every route."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from small_rows import Open, levels_of

from imagetok.data import ImageRows, open_stream
from imagetok.data.data_fingerprint import content_fingerprint
from imagetok.data.image_rows import as_stored_image
from imagetok.errors import DataError
from tiny_data import png

FILES = [{"bytes": png(level), "path": f"{level}.png"} for level in range(3)]
BYTES = [png(level) for level in range(3)]


def struct(binary: pa.DataType, text: pa.DataType) -> pa.DataType:
    return pa.struct([("path", text), ("bytes", binary)])


PLAIN = struct(pa.binary(), pa.string())

COLUMNS = {
    "struct": pa.array(FILES),
    "large struct": pa.array(FILES, struct(pa.large_binary(), pa.large_string())),
    "struct of views": pa.array(FILES, struct(pa.binary_view(), pa.string_view())),
    "list of structs": pa.array([[file] for file in FILES]),
    "large list": pa.array(
        [[file] for file in FILES], pa.large_list(struct(pa.binary(), pa.string()))
    ),
    "binary": pa.array(BYTES),
    "large binary": pa.array(BYTES, pa.large_binary()),
    "binary view": pa.array(BYTES, pa.binary_view()),
    "list of binary": pa.array([[file] for file in BYTES]),
}
"""Three images in each way to store them; pandas and polars write the first and the third."""

MUST_BE_NAMED = {"binary", "large binary", "binary view", "list of binary"}
"""Bytes may be anything, so that they are images only where they are said to be."""


def write(path: Path, column: pa.Array, **others: Any) -> str:
    pq.write_table(pa.table({"photo": column, **others}), path)
    return str(path)


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_of_images_are_what_they_look_like(
    open_rows: Open, tmp_path: Path, kind: str
) -> None:
    name = write(tmp_path / "x.parquet", COLUMNS[kind], text=["a", "b", "c"])
    if kind in MUST_BE_NAMED:
        with pytest.raises(DataError, match="no column of images; name one by image_column"):
            open_rows(name)
    else:
        assert levels_of(open_rows(name)) == [0, 1, 2]
    rows = open_rows(name, image_column="photo")
    assert levels_of(rows) == [0, 1, 2]
    assert len(rows.fingerprint) == 64
    stream = open_stream(name, "train", image_column="photo", cache_dir=tmp_path / "cache")
    assert [image["bytes"] for _, image in stream.read(0) if image] == BYTES


@pytest.mark.parametrize("kind", ["struct", "list of structs", "binary view"])
def test_their_fingerprints_follow_the_sizes_of_the_images(kind: str) -> None:
    table = pa.table({"photo": COLUMNS[kind]})
    whole, part = Dataset(table), Dataset(table.slice(0, 2))
    assert content_fingerprint(whole, "photo") == content_fingerprint(Dataset(table), "photo")
    assert content_fingerprint(whole, "photo") != content_fingerprint(part, "photo")


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (["http://photos/1.png"], "holds text, not images: addresses .* never opened"),
        (["iVBORw0KGgo="], "base64 is not decoded"),
        ([7], "holds no images"),
        ([{"bytes": b"", "path": "a", "size": 3}], "holds no images"),
    ],
)
def test_columns_that_hold_no_images_are_refused(
    open_rows: Open, tmp_path: Path, column: list[Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        open_rows(write(tmp_path / "x.parquet", pa.array(column)), image_column="photo")


def test_a_list_of_several_images_is_not_a_row() -> None:
    rows = ImageRows("x", "train", Dataset(pa.table({"photo": [FILES[:2], [], None]})), "photo")
    with pytest.raises(DataError, match="a list of 2 images"):
        rows.image(0)
    for row in (1, 2):
        with pytest.raises(DataError, match="has no image"):
            rows.image(row)
    assert as_stored_image([FILES[0]]) == FILES[0]


def test_the_reason_behind_a_failed_conversion_is_told(open_rows: Open, tmp_path: Path) -> None:
    for name, scores in (("a", [1, 2, 3]), ("b", [1.5, 2.5, 3.5])):
        write(tmp_path / f"{name}.parquet", COLUMNS["struct"], score=scores)
    with pytest.raises(DataError, match=r"1\.5.* truncated") as caught:
        open_rows(str(tmp_path))
    assert "An error occurred" not in str(caught.value)
