"""Orders: which row each sample is, and which samples each rank takes."""

from __future__ import annotations

import numpy as np
import pytest

from imagetok.data import (
    EpochOrder,
    SampleBatches,
    fixed_rows,
)
from imagetok.errors import InvalidValueError


def test_every_row_comes_once_an_epoch_in_a_new_order() -> None:
    order = EpochOrder(50, seed=3)
    epochs = [[order.locate(epoch * 50 + place) for place in range(50)] for epoch in range(3)]
    for number, located in enumerate(epochs):
        assert {epoch for epoch, _ in located} == {number}
        assert sorted(row for _, row in located) == list(range(50))
    orders = {tuple(row for _, row in located) for located in epochs}
    assert len(orders | {tuple(range(50))}) == 4


def test_a_sample_is_the_same_row_whatever_was_asked_before() -> None:
    forward = EpochOrder(7, seed=1)
    backward = EpochOrder(7, seed=1)
    samples = range(70)
    assert [forward.locate(s) for s in samples] == [backward.locate(s) for s in reversed(samples)][
        ::-1
    ]


def test_another_seed_is_another_order() -> None:
    rows = {tuple(EpochOrder(20, seed).locate(s)[1] for s in range(20)) for seed in range(4)}
    assert len(rows) == 4


def test_an_order_without_rows_and_a_negative_sample_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="num_rows=0"):
        EpochOrder(0, 0)
    with pytest.raises(InvalidValueError, match="got -1"):
        EpochOrder(3, 0).locate(-1)


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (2, 1), (1, 3), (2, 3), (4, 3)])
def test_ranks_and_micro_batches_divide_each_step_in_order(
    world_size: int, accumulation: int
) -> None:
    ranks = [
        list(SampleBatches(2, 3, 24, rank, world_size, accumulation)) for rank in range(world_size)
    ]
    for step in range(3):
        taken = [
            sample
            for batches in ranks
            for batch in batches[step * accumulation : (step + 1) * accumulation]
            for sample in batch
        ]
        assert taken == list(range((step + 2) * 24, (step + 3) * 24))
    sizes = {len(batch) for batches in ranks for batch in batches}
    assert sizes == {24 // (world_size * accumulation)}


def test_batches_from_a_later_step_are_those_of_an_uninterrupted_run() -> None:
    whole = list(SampleBatches(0, 5, 8, 1, 2, 2))
    assert list(SampleBatches(2, 3, 8, 1, 2, 2)) == whole[4:]
    assert len(SampleBatches(2, 3, 8, 1, 2, 2)) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 10, 0, 4, 1), "multiple of 4"),
        ((0, 1, 12, 0, 2, 4), "multiple of 8"),
        ((0, 1, 8, 2, 2, 1), "rank 2"),
        ((0, 1, 8, -1, 2, 1), "rank -1"),
        ((-1, 1, 8, 0, 1, 1), "at least 0"),
        ((0, 1, 0, 0, 1, 1), "at least 1"),
    ],
)
def test_batches_that_do_not_divide_are_refused(
    arguments: tuple[int, int, int, int, int, int], message: str
) -> None:
    with pytest.raises(InvalidValueError, match=message):
        SampleBatches(*arguments)


def test_fixed_rows_are_spread_evenly_and_never_repeat() -> None:
    assert fixed_rows(1000, 4) == [0, 250, 500, 750]
    assert fixed_rows(3, 8) == [0, 1, 2]
    for num_rows, count in ((17, 5), (100, 99), (64, 64)):
        gaps = np.diff(fixed_rows(num_rows, count))
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1
