"""Ids of any shape, kind and range: read exactly, or refused by a named error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from effort import often
from hypothesis import given
from hypothesis import strategies as st

from imagetok.errors import IdsError, IdsTypeError, InvalidTypeError, InvalidValueError
from imagetok.ids import read_grid, read_ids

INTEGERS = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
OTHERS = ["bool", "float16", "float32", "float64", "complex64"]

sides = st.integers(1, 4)
grids = st.tuples(sides, sides)
sizes = st.one_of(st.integers(2, 300), st.sampled_from([127, 128, 129, 65_536, 65_537, 2**24]))


@st.composite
def shapes(draw: st.DrawFn, grid: tuple[int, int]) -> tuple[int, ...]:
    """Shapes that fit the grid, mostly."""
    batch = draw(st.integers(0, 3))
    fitting = [grid, (math.prod(grid),), (batch, *grid), (batch, math.prod(grid))]
    if draw(st.integers(0, 3)):
        return draw(st.sampled_from(fitting))
    return draw(st.lists(st.integers(0, 5), max_size=4).map(tuple))


@st.composite
def numbers(draw: st.DrawFn, shape: tuple[int, ...], size: int) -> np.ndarray:
    """Integers of a shape, in range but for at most one."""
    seed = draw(st.integers(0, 2**32))
    values = np.random.default_rng(seed).integers(0, size, shape)
    if values.size and draw(st.booleans()):
        odd = st.sampled_from([255, 256, 2**31, 2**62, -(2**63)])
        stray = draw(st.one_of(st.sampled_from([-1, 0, size - 1, size]), odd))
        values.flat[draw(st.integers(0, values.size - 1))] = stray
    return values


def contain(values: np.ndarray, kind: str) -> Any:
    """The same numbers in another container."""
    match kind:
        case "array":
            return values
        case "array in another order":
            return np.array(values, order="F")
        case "array in another byte order":
            return values.astype(values.dtype.newbyteorder())
        case "tensor":
            return torch.from_numpy(values.copy())
        case "tensor, transposed":
            return torch.from_numpy(np.array(values.T)).permute(tuple(range(values.ndim))[::-1])
        case "list":
            return values.tolist()
        case "tuple":
            return tuple(values.tolist()) if values.ndim else values.tolist()
        case "list of arrays":
            return list(values) if values.ndim else values
        case _:
            return list(torch.from_numpy(values.copy())) if values.ndim else values


ARRAYS = [
    "array",
    "array in another order",
    "array in another byte order",
    "tensor",
    "tensor, transposed",
]
LISTS = ["list", "tuple", "list of arrays", "list of tensors"]
CONTAINERS = ARRAYS + LISTS


wide = st.one_of(st.sampled_from(INTEGERS), st.sampled_from(["int32", "int64"]))


@often
@given(st.data(), grids, sizes, wide, st.sampled_from(CONTAINERS))
def test_integers_are_read_as_they_are_or_refused_for_a_reason(
    data: st.DataObject, grid: tuple[int, int], size: int, dtype: str, container: str
) -> None:
    shape = data.draw(shapes(grid))
    values = data.draw(numbers(shape, size)).astype(dtype)
    listed = container in ("list", "tuple")
    length = math.prod(grid)
    fits = shape in (grid, (length,)) or shape[1:] in (grid, (length,))
    fits = fits and not (container in LISTS and 0 in shape[:1])  # an empty list has no shape
    holds = listed or np.iinfo(dtype).max >= size - 1
    in_range = not values.size or (int(values.min()) >= 0 and int(values.max()) < size)
    refusal = None
    try:
        batch, single = read_ids(contain(values, container), (size,), grid)
    except (IdsError, IdsTypeError) as error:
        refusal = error
    assert (refusal is None) == (fits and holds and in_range), refusal
    if refusal:
        return
    assert single == (shape in (grid, (length,)))
    assert batch.dtype == torch.int64
    assert batch.shape[1:] == grid
    assert batch.flatten().tolist() == values.flatten().tolist()


@often
@given(st.data(), grids, st.sampled_from(OTHERS), st.sampled_from(CONTAINERS))
def test_what_is_not_integers_is_never_read(
    data: st.DataObject, grid: tuple[int, int], dtype: str, container: str
) -> None:
    values = data.draw(numbers((data.draw(sides), *grid), 2)).clip(0, 1).astype(dtype)
    try:
        read_ids(contain(values, container), (2,), grid)
    except (IdsError, IdsTypeError):
        return
    raise AssertionError(f"{dtype} in a {container} was read")


leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=3)
)
nested = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4), max_leaves=12)


def flat(values: Any) -> list[Any]:
    return (
        [leaf for part in values for leaf in flat(part)] if isinstance(values, list) else [values]
    )


@often
@given(st.data(), grids, st.integers(0, 2), leaves)
def test_one_odd_value_in_a_list_is_read_as_an_integer_or_refused(
    data: st.DataObject, grid: tuple[int, int], count: int, odd: Any
) -> None:
    shape = (count, *grid) if count else grid
    ids = data.draw(numbers(shape, 5)).clip(0, 4).tolist()
    row = ids
    while isinstance(row[0], list):
        row = data.draw(st.sampled_from(row))
    row[data.draw(st.integers(0, len(row) - 1))] = odd
    try:
        batch, _ = read_ids(ids, (5,), grid)
    except (IdsError, IdsTypeError):
        assert type(odd) is not int or not 0 <= odd < 5
        return
    assert type(odd) is int
    assert batch.flatten().tolist() == flat(ids)


@often
@given(nested, grids, sizes)
def test_nested_lists_of_anything_are_read_or_refused(
    ids: Any, grid: tuple[int, int], size: int
) -> None:
    try:
        batch, _ = read_ids(ids, (size,), grid)
    except (IdsError, IdsTypeError):
        return
    assert batch.flatten().tolist() == flat(ids)
    assert {type(leaf) for leaf in flat(ids)} <= {int}
    assert all(0 <= leaf < size for leaf in flat(ids))


@often
@given(st.one_of(nested, st.tuples(leaves, leaves), st.sets(st.integers()), st.binary(max_size=2)))
def test_a_grid_is_a_pair_of_positive_integers_or_refused(grid: Any) -> None:
    try:
        found = read_grid(grid)
    except (InvalidTypeError, InvalidValueError):
        return
    assert isinstance(grid, list | tuple)  # what has an order
    assert list(found) == list(grid)
    assert all(type(side) is int and side > 0 for side in grid)
