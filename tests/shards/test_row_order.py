"""Rows are shuffled over buffers and shards, and divided over ranks, each once an epoch."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest

from imagetok.shards.row_order import SHARDS_TOGETHER, RowOrder

COUNTS = [3000, 0, 1024, 1, 2047, *[1500] * 20]


def order(**changes: object) -> RowOrder:
    given = {"counts": COUNTS, "seed": 0, "rank": 0, "world_size": 1, "buffer_size": 4096}
    return RowOrder(**{**given, "shuffle": True, **changes})  # type: ignore[arg-type]


def read(reading: RowOrder, epoch: int = 0, start: int = 0) -> list[tuple[int, int]]:
    buffers = list(reading.buffers(epoch, start))
    return [
        place
        for buffer in buffers
        for place in zip(buffer.shards.tolist(), buffer.rows.tolist(), strict=True)
    ]


EVERY_ROW = [(shard, row) for shard, count in enumerate(COUNTS) for row in range(count)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_comes_once_over_all_ranks(world_size: int, shuffle: bool) -> None:
    parts = [order(rank=r, world_size=world_size, shuffle=shuffle) for r in range(world_size)]
    rows = [read(part, epoch=5) for part in parts]
    assert sorted(chain.from_iterable(rows)) == EVERY_ROW
    assert [len(part) for part in rows] == [part.num_rows for part in parts]
    assert max(map(len, rows)) - min(map(len, rows)) <= 1
    assert min(map(len, rows)) == parts[0].common_rows


def test_there_may_be_more_ranks_than_rows() -> None:
    parts = [order(counts=[1, 2], rank=rank, world_size=5) for rank in range(5)]
    assert sorted(chain.from_iterable(map(read, parts))) == [(0, 0), (1, 0), (1, 1)]


def test_every_seed_and_epoch_has_its_own_order() -> None:
    orders = [read(order(seed=seed), epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(rows) for rows in orders}) == 4
    assert read(order()) == orders[0]


def test_rows_come_as_they_lie_where_nothing_is_shuffled() -> None:
    assert read(order(shuffle=False), epoch=3) == EVERY_ROW


def test_a_pass_from_the_middle_begins_with_the_buffer_that_holds_the_row() -> None:
    whole = list(order().buffers(2, 0))
    for start in (0, 1, 4095, 4096, 20_000):
        rest = list(order().buffers(2, start))
        assert rest[0].start == start - start % 4096
        for buffer, same in zip(whole[start // 4096 :], rest, strict=True):
            assert buffer.start == same.start
            assert np.array_equal(buffer.rows, same.rows)
            assert np.array_equal(buffer.shards, same.shards)


def test_a_buffer_mixes_runs_of_several_shards() -> None:
    counts = [16384] * 64
    for buffer in order(counts=counts, buffer_size=65536, seed=3).buffers(0, 0):
        assert 8 <= len(np.unique(buffer.shards)) <= 2 * SHARDS_TOGETHER
        for first in range(0, 65536, 16384):  # and so does every part of it
            assert len(np.unique(buffer.shards[first : first + 64])) >= 5


def test_a_rank_is_at_work_on_few_shards_at_a_time() -> None:
    counts = [16384] * 64
    for buffer in order(counts=counts, buffer_size=1000).buffers(0, 0):
        assert len(np.unique(buffer.shards)) <= 3
    for rank in range(4):
        part = order(counts=counts, rank=rank, world_size=4)
        shards = np.unique(np.concatenate([buffer.shards for buffer in part.buffers(0, 0)]))
        assert len(shards) <= SHARDS_TOGETHER


def test_ranks_are_dealt_other_shards_in_every_epoch() -> None:
    counts = [16384] * 64
    part = order(counts=counts, rank=1, world_size=4)
    shards = [{shard for shard, _ in read(part, epoch)} for epoch in range(3)]
    assert len({frozenset(found) for found in shards}) == 3


def test_every_buffer_is_mixed_in_its_own_way() -> None:
    buffers = list(order(counts=[16] * 8, buffer_size=16).buffers(0, 0))
    assert len({tuple(buffer.rows.tolist()) for buffer in buffers}) == 8


def test_rows_of_a_buffer_are_mixed_evenly() -> None:
    places = np.zeros(16)
    for seed in range(400):
        (buffer,) = order(counts=[16], seed=seed).buffers(0, 0)
        places += buffer.rows
    assert abs(places / 400 - 7.5).max() < 1  # standard deviation 0.23
