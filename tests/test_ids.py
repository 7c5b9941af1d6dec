"""Reading ids that a user gives: every container and dtype, and refusals in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from imagetok.errors import IdsError, IdsTypeError, ImagetokError, InvalidTypeError
from imagetok.ids import read_grid, read_ids, read_sequence

GRID = (2, 3)
NUMBERS = [[0, 1, 2], [3, 4, 5]]
ONE = torch.tensor(NUMBERS)
DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]


# Shapes


@pytest.mark.parametrize("shape", [(2, 3), (6,)])
def test_one_image_comes_as_its_grid_or_as_a_sequence(shape: tuple[int, ...]) -> None:
    batch, single = read_ids(ONE.view(shape), (6,), GRID)
    assert single
    assert batch.dtype == torch.int64
    assert torch.equal(batch, ONE[None])


@pytest.mark.parametrize("count", [0, 1, 2, 3, 6])
@pytest.mark.parametrize("shape", [(2, 3), (6,)])
def test_several_images_come_as_grids_or_as_sequences(count: int, shape: tuple[int, ...]) -> None:
    given = ONE.repeat(count, 1).view(count, *shape)
    batch, single = read_ids(given, (6,), GRID)
    assert not single
    assert torch.equal(batch, ONE.expand(count, 2, 3))


@pytest.mark.parametrize("shape", [(3, 2), (5,), (2, 5), (4, 2, 2), (1, 1, 2, 3), (), (0,), (6, 1)])
def test_a_shape_that_fits_no_reading_is_refused_with_what_was_expected(
    shape: tuple[int, ...],
) -> None:
    with pytest.raises(IdsError) as refusal:
        read_ids(torch.zeros(shape, dtype=torch.int64), (6,), GRID)
    for part in (str(shape), "(2, 3)", "(6,)", "(B, 2, 3)", "(B, 6)", "grid=(h, w)"):
        assert part in str(refusal.value)


def test_a_shape_equal_to_the_grid_is_one_image_even_where_it_could_be_a_batch_of_one() -> None:
    for shape in ((1, 6), (6,)):
        assert read_ids(torch.zeros(shape, dtype=torch.int64), (6,), (1, 6))[1]
    assert not read_ids(torch.zeros((2, 6), dtype=torch.int64), (6,), (1, 6))[1]
    assert not read_ids(torch.zeros((1, 1, 6), dtype=torch.int64), (6,), (1, 6))[1]
    assert read_ids([5], (6,), (1, 1))[1]
    assert read_ids([[5]], (6,), (1, 1))[1]
    assert not read_ids([[5], [4]], (6,), (1, 1))[1]


# Containers and dtypes


@pytest.mark.parametrize(
    "ids",
    [
        NUMBERS,
        tuple(map(tuple, NUMBERS)),
        ONE.tolist(),
        list(ONE),
        [np.array(row) for row in NUMBERS],
        [list(row) for row in ONE],
        np.array(NUMBERS, order="F"),
        np.array(NUMBERS)[:, ::-1][:, ::-1],
        ONE.T.contiguous().T,
        np.array(NUMBERS, dtype=">i4"),
        list(ONE.flatten()),
        ONE.to(torch.int32).requires_grad_(False),
    ],
)
def test_lists_arrays_and_tensors_read_alike(ids: Any) -> None:
    batch, single = read_ids(ids, (6,), GRID)
    assert single
    assert torch.equal(batch, ONE[None])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_integer_dtype_that_holds_all_ids_reads_alike(dtype: str) -> None:
    array = np.array(NUMBERS, dtype=dtype)
    array[1, 2] = 127
    for ids in (array, torch.from_numpy(array)):
        batch, _ = read_ids(ids, (128,), GRID)
        assert batch.dtype == torch.int64
        assert batch.flatten().tolist() == [0, 1, 2, 3, 4, 127]


@pytest.mark.parametrize(
    ("dtype", "largest"), [("int8", 127), ("uint8", 255), ("int16", 32767), ("uint16", 65535)]
)
def test_a_dtype_is_wide_enough_up_to_its_largest_value_and_no_further(
    dtype: str, largest: int
) -> None:
    array = np.array(NUMBERS, dtype=dtype)
    for ids in (array, torch.from_numpy(array)):
        read_ids(ids, (largest + 1,), GRID)
        with pytest.raises(
            IdsTypeError, match=rf"{dtype} cannot hold .* {largest + 2} .*{largest}"
        ):
            read_ids(ids, (largest + 2,), GRID)


def test_reading_copies_what_it_converts_and_changes_nothing() -> None:
    array = np.array(NUMBERS)
    batch, _ = read_ids(array, (6,), GRID)
    batch += 1
    assert array.tolist() == NUMBERS


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        (torch.tensor(NUMBERS) > 2, "torch.bool"),
        (torch.tensor(NUMBERS).float(), "torch.float32"),
        (torch.tensor(NUMBERS).half(), "torch.float16"),
        (torch.tensor(NUMBERS) * 1j, "torch.complex64"),
        (np.array(NUMBERS) > 2, "bool"),
        (np.array(NUMBERS, dtype=np.float64), "float64"),
        (np.array(NUMBERS, dtype=object), "object"),
        ([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], "float64"),
        ([[True, False, True], [True, True, True]], "bool"),
        ([["0", "1", "2"], ["3", "4", "5"]], "U1"),
        ([[0, 1, None], [3, 4, 5]], "object"),
        ([[0, 1, 2], [3, 4, 2**70]], "object"),
        (5, "int"),
        (np.int64(5), "int64"),
        ("012345", "str"),
        (None, "NoneType"),
        ({"ids": NUMBERS}, "dict"),
        (range(6), "range"),
    ],
)
def test_what_is_not_integers_is_refused_by_its_kind(ids: Any, found: str) -> None:
    with pytest.raises(IdsTypeError, match=found):
        read_ids(ids, (6,), GRID)
    assert issubclass(IdsTypeError, TypeError)


@pytest.mark.parametrize(
    "ids",
    [
        torch.zeros(GRID, dtype=torch.int64).to_sparse(),
        torch.zeros(GRID, dtype=torch.int64, device="meta"),
    ],
)
def test_tensors_without_plain_values_are_refused(ids: torch.Tensor) -> None:
    with pytest.raises(IdsTypeError, match="dense tensor with values"):
        read_ids(ids, (6,), GRID)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "empty list .* shape \\(0, h, w\\)"),
        ((), "empty list"),
        ([[0, 1, 2], [3, 4]], "rectangular"),
        ([[0, 1, 2], 3], "rectangular"),
        ([torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)], "one shape"),
        ([torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int32)], "one shape and d"),
    ],
)
def test_lists_that_are_not_rectangular_are_refused(ids: Any, message: str) -> None:
    with pytest.raises(IdsError, match=message):
        read_ids(ids, (6,), GRID)


# Range


@pytest.mark.parametrize("value", [-1, 6, 7, 2**40, -(2**63), 2**63 - 1])
def test_an_id_out_of_range_is_refused_with_its_value_and_the_range(value: int) -> None:
    ids = ONE.clone()
    ids[1, 1] = value
    for given in (ids, ids.numpy(), ids.tolist()):
        with pytest.raises(IdsError, match=rf"^id {value} is out of range.* \[0, 6\)"):
            read_ids(given, (6,), GRID)
    assert issubclass(IdsError, ValueError)


@pytest.mark.parametrize("value", [6, 2**63, 2**64 - 1])
def test_an_unsigned_id_out_of_range_is_named_as_it_is(value: int) -> None:
    ids = np.array(NUMBERS, dtype=np.uint64)
    ids[0, 0] = value
    for given in (ids, torch.from_numpy(ids)):
        with pytest.raises(IdsError, match=f"^id {value} is out of range"):
            read_ids(given, (6,), GRID)


# Grids


@pytest.mark.parametrize("grid", [(2, 3), [2, 3], np.array([2, 3]), torch.Size([2, 3])])
def test_a_grid_is_a_pair_of_integers(grid: Any) -> None:
    found = read_grid(grid)
    assert found == (2, 3)
    assert {type(side) for side in found} == {int}


@pytest.mark.parametrize(
    ("grid", "kind"),
    [
        (4, InvalidTypeError),
        ((2,), InvalidTypeError),
        ((2, 3, 4), InvalidTypeError),
        ((2.0, 3), InvalidTypeError),
        ("23", InvalidTypeError),
        ((None, 3), InvalidTypeError),
        ((0, 3), ValueError),
        ((2, -3), ValueError),
    ],
)
def test_a_grid_that_is_none_is_refused(grid: Any, kind: type[Exception]) -> None:
    with pytest.raises(ImagetokError, match=r"grid must be .*\(height, width\)") as refusal:
        read_grid(grid)
    assert isinstance(refusal.value, kind)


# Several codes a position


DEEP = torch.arange(12).view(2, 2, 3) % torch.tensor([12, 3, 7])


@pytest.mark.parametrize("shape", [(2, 2, 3), (12,)])
def test_ids_of_several_levels_are_read_in_both_shapes(shape: tuple[int, ...]) -> None:
    batch, single = read_ids(DEEP.reshape(shape), (12, 3, 7), (2, 2, 3))
    assert single
    assert torch.equal(batch[0], DEEP)
    batch, single = read_ids(
        DEEP.reshape(shape)[None].repeat(2, *[1] * len(shape)), (12, 3, 7), (2, 2, 3)
    )
    assert not single
    assert torch.equal(batch, torch.stack([DEEP, DEEP]))


def test_every_level_has_its_own_range() -> None:
    for level, size in enumerate((12, 3, 7)):
        ids = DEEP.clone()
        ids[1, 1, level] = size
        with pytest.raises(IdsError, match=rf"id {size} is out of range.*\[0, {size}\)"):
            read_ids(ids, (12, 3, 7), (2, 2, 3))


def test_a_grid_without_its_levels_is_refused() -> None:
    with pytest.raises(IdsError, match=r"\(B, 2, 2, 3\)"):
        read_ids(DEEP[..., 0], (12, 3, 7), (2, 2, 3))


def test_sequences_are_ids_row_by_row_with_depth_fastest() -> None:
    assert torch.equal(read_sequence(DEEP, (2, 2, 3)), DEEP.flatten())
    assert read_sequence(torch.stack([DEEP, DEEP]), (2, 2, 3)).shape == (2, 12)
    with pytest.raises(IdsError, match=r"last sizes are \(2, 2, 3\)"):
        read_sequence(DEEP[0], (2, 2, 3))
