"""Columns of a shard: the narrowest ids, the row's identity, the kept columns as they were."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Features, Image, List, Value

from imagetok.errors import DataError, IdsError, IdsTypeError, InvalidValueError
from imagetok.shards import RESERVED, ShardSchema

NO_COLUMNS = pa.table({})
KINDS = ["uint8", "uint8", "uint16", "uint16", "uint32", "uint32"]
SIZES = np.array([[10, 20], [30, 40]])


def schema(codebook_size: int = 512, by_file: bool = False, **columns: object) -> ShardSchema:
    return ShardSchema(codebook_size, (2, 2), by_file, Features(columns))


@pytest.mark.parametrize(
    ("codebook_size", "dtype"),
    [*zip((1, 256, 257, 2**16, 2**16 + 1, 2**32), KINDS, strict=True)],
)
def test_ids_have_the_narrowest_type_that_holds_the_last_one(
    codebook_size: int, dtype: str
) -> None:
    narrow = schema(codebook_size)
    assert narrow.ids_dtype == np.dtype(dtype)
    ids = np.full((2, 4), codebook_size - 1)
    table = narrow.table(ids, [0, 1], None, SIZES, NO_COLUMNS)
    assert table.column("ids").to_pylist() == ids.tolist()
    assert str(table.column("ids").type.value_type) == dtype


def test_columns_stand_in_the_order_of_the_contract() -> None:
    kept = Features({"label": ClassLabel(names=["b", "a"]), "caption": Value("string")})
    own = ["row", "height", "width", "label", "caption"]
    assert list(ShardSchema(512, (2, 2), False, kept).features) == ["ids", *own]
    streamed = ["ids", "grid_h", "grid_w", "file", *own]
    assert list(ShardSchema(512, None, True, kept).features) == streamed


def test_features_and_arrow_schema_say_the_same() -> None:
    kept = {"label": ClassLabel(names=["b", "a"]), "tags": List(Value("string")), "image": Image()}
    narrow = schema(**kept)
    assert Features.from_arrow_schema(narrow.arrow) == narrow.features
    assert narrow.features["ids"] == List(Value("uint16"), length=4)
    assert narrow.features["image"] == Image()


def test_ids_of_a_grid_are_written_row_by_row() -> None:
    ids = np.arange(8).reshape(2, 2, 2)
    table = schema().table(ids, [5, 7], None, SIZES, NO_COLUMNS)
    assert table.to_pylist() == [
        {"ids": [0, 1, 2, 3], "row": 5, "height": 10, "width": 20},
        {"ids": [4, 5, 6, 7], "row": 7, "height": 30, "width": 40},
    ]
    flat = schema().table(ids.reshape(2, 4), [5, 7], None, SIZES, NO_COLUMNS)
    assert flat.equals(table)


def test_grids_of_their_own_stand_beside_their_ids() -> None:
    native = ShardSchema(512, None, True, Features({}))
    ids = [np.arange(6).reshape(2, 3), np.array([[9]])]
    table = native.table(ids, [0, 1], ["a.tar", "a.tar"], SIZES, NO_COLUMNS)
    assert table.schema.equals(native.arrow)
    assert table.select(["ids", "grid_h", "grid_w", "file", "row"]).to_pylist() == [
        {"ids": [0, 1, 2, 3, 4, 5], "grid_h": 2, "grid_w": 3, "file": "a.tar", "row": 0},
        {"ids": [9], "grid_h": 1, "grid_w": 1, "file": "a.tar", "row": 1},
    ]


def test_the_codes_of_a_position_follow_each_other() -> None:
    deep = ShardSchema(512, (2, 2), False, Features({}), (512, 300))
    ids = np.arange(16).reshape(2, 2, 2, 2)
    table = deep.table(ids, [5, 7], None, SIZES, NO_COLUMNS)
    assert deep.features["ids"] == List(Value("uint16"), length=8)
    assert table.column("ids").to_pylist() == ids.reshape(2, 8).tolist()
    assert deep.table(ids.reshape(2, 8), [5, 7], None, SIZES, NO_COLUMNS).equals(table)
    native = ShardSchema(512, None, False, Features({}), (512, 300))
    table = native.table([ids[0], ids[1, :1]], [0, 1], None, SIZES, NO_COLUMNS)
    assert table.select(["ids", "grid_h", "grid_w"]).to_pylist() == [
        {"ids": list(range(8)), "grid_h": 2, "grid_w": 2},
        {"ids": list(range(8, 12)), "grid_h": 1, "grid_w": 2},
    ]


def test_ids_that_form_no_grid_have_no_grid_columns() -> None:
    flat = ShardSchema(512, (5,), False, Features({}))
    ids = np.arange(10).reshape(2, 5)
    assert list(flat.features) == ["ids", "row", "height", "width"]
    table = flat.table(ids, [0, 1], None, SIZES, NO_COLUMNS)
    assert table.column("ids").to_pylist() == ids.tolist()


def test_the_widest_level_gives_the_type() -> None:
    deep = ShardSchema(300, (2, 2), False, Features({}), (4, 300))
    assert deep.ids_dtype == np.dtype(np.uint16)
    with pytest.raises(InvalidValueError, match=r"largest is codebook_size, 512"):
        ShardSchema(512, (2, 2), False, Features({}), (4, 300))


@pytest.mark.parametrize("grid", [(2, 2), None])
def test_no_rows_make_a_table_of_the_schema(grid: tuple[int, int] | None) -> None:
    empty = ShardSchema(512, grid, False, Features({}))
    ids: object = np.empty((0, 4), dtype=np.int64) if grid else []
    table = empty.table(ids, [], None, np.empty((0, 2), dtype=np.int64), NO_COLUMNS)  # type: ignore[arg-type]
    assert table.num_rows == 0
    assert table.schema.equals(empty.arrow)


def test_kept_columns_go_through_as_they_are_and_others_are_left_out() -> None:
    captions = [None, "a\nb ü " + "x" * 2**20]
    kept = pa.table({"other": [1, 2], "caption": captions})
    narrow = schema(caption=Value("string"))
    table = narrow.table(np.zeros((2, 4), dtype=int), [0, 1], None, SIZES, kept)
    assert table.column("caption").to_pylist() == captions
    assert table.column_names[-1] == "caption"


@pytest.mark.parametrize("name", RESERVED)
def test_a_kept_column_cannot_take_the_name_of_an_own_one(name: str) -> None:
    """`file` is one of a streamed dataset's own columns alone."""
    with pytest.raises(DataError, match=f"cannot keep the columns {name}:.*rename"):
        schema(by_file=True, **{name: Value("string")})


@pytest.mark.parametrize("worst", [-1, 512])
def test_ids_out_of_the_codebook_are_refused(worst: int) -> None:
    with pytest.raises(IdsError, match=rf"{worst}.*expected \[0, 512\)"):
        schema().table(np.array([[0, worst, 1, 2]]), [0], None, SIZES[:1], NO_COLUMNS)


def test_every_level_has_its_own_range() -> None:
    deep = ShardSchema(512, (1, 2), False, Features({}), (512, 300))
    deep.table(np.array([[511, 299, 511, 299]]), [0], None, SIZES[:1], NO_COLUMNS)
    with pytest.raises(IdsError, match=r"id 300 of level 1 is out of range: expected \[0, 300\)"):
        deep.table(np.array([[511, 299, 511, 300]]), [0], None, SIZES[:1], NO_COLUMNS)


@pytest.mark.parametrize(
    ("grid", "sizes", "shape", "message"),
    [
        ((2, 2), (512,), (2, 6), r"the shape \(2, 6\), expected"),
        ((2, 2), (512, 512), (2, 2, 2), r"expected \(N, \*\(2, 2, 2\)\)"),
        (None, (512, 512), (2, 2, 2), r"expected \(h, w, 2\) each"),
        (None, (512, 512), (2, 2, 2, 3), r"expected \(h, w, 2\) each"),
        (None, (512, 512), (2, 4), r"expected \(h, w, 2\) each"),
    ],
)
def test_ids_of_another_grid_or_depth_are_refused(
    grid: tuple[int, int] | None, sizes: tuple[int, ...], shape: tuple[int, ...], message: str
) -> None:
    other = ShardSchema(512, grid, False, Features({}), sizes)
    with pytest.raises(IdsError, match=message):
        other.table(np.zeros(shape, dtype=int), [0, 1], None, SIZES, NO_COLUMNS)


def test_ids_are_integers() -> None:
    with pytest.raises(IdsTypeError, match="ids are float64, expected integers"):
        schema().table(np.zeros((2, 4)), [0, 1], None, SIZES, NO_COLUMNS)


def test_arguments_of_unequal_length_are_refused() -> None:
    ids = np.zeros((2, 4), dtype=int)
    with pytest.raises(InvalidValueError, match="'rows': 1"):
        schema().table(ids, [0], None, SIZES, NO_COLUMNS)
    with pytest.raises(InvalidValueError, match="expected the file of each row"):
        schema(by_file=True).table(ids, [0, 1], None, SIZES, NO_COLUMNS)


def test_a_kept_column_of_another_type_or_none_is_refused() -> None:
    ids, narrow = np.zeros((2, 4), dtype=int), schema(caption=Value("string"))
    with pytest.raises(DataError, match="'caption' holds int64, expected string"):
        narrow.table(ids, [0, 1], None, SIZES, pa.table({"caption": [1, 2]}))
    with pytest.raises(DataError, match="lack the kept columns caption"):
        narrow.table(ids, [0, 1], None, SIZES, pa.table({"other": [1, 2]}))
