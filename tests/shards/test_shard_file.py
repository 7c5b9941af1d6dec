"""A shard takes little more than its ids' bits, and its row groups depend on its rows alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features, Value
from tiny_jobs import tiny_job

from imagetok.shards import JobFolder
from imagetok.shards.shard_file import MOST_BYTES, RowGroups, row_bytes


@pytest.mark.parametrize(
    ("codebook_size", "side", "bits"), [(8192, 8, 13), (8192, 32, 13), (2**18, 8, 18)]
)
def test_random_ids_take_little_more_than_their_bits(
    tmp_path: Path, codebook_size: int, side: int, bits: int
) -> None:
    units = {"units__rows_per_shard": 2048, "units__count": 1, "input__num_rows": 2048}
    grid = {"tokenizer__codebook_size": codebook_size, "tokenizer__grid_size": [side, side]}
    job = tiny_job(**units, **grid, output__keep=[], features={})
    ids = np.random.default_rng(0).integers(0, codebook_size, (2048, side * side))
    table = job.schema.table(ids, range(2048), None, np.full((2048, 2), 256), pa.table({}))
    with JobFolder.open(tmp_path, job) as work, work.claim(0) as writer:
        assert writer is not None
        writer.write(table)
    metadata = pq.read_metadata(tmp_path / job.paths.shard(0))
    columns = [metadata.row_group(number).column(0) for number in range(metadata.num_row_groups)]
    assert all("BYTE_STREAM_SPLIT" in column.encodings for column in columns)
    size = sum(column.total_compressed_size for column in columns)
    assert bits <= 8 * size / ids.size < bits + 0.6


def test_a_row_group_ends_with_the_row_that_reaches_the_most_bytes() -> None:
    text = "x" * (MOST_BYTES // 4)
    table = pa.table(
        {"row": range(9), "caption": [text, None, text, text, text, "", "a", text, ""]}
    )
    for batch in (1, 2, 9):
        groups, found = RowGroups(), []
        for start in range(0, 9, batch):
            found += list(groups.add(table.slice(start, batch)))
        found += list(groups.rest())
        assert [group.column("row").to_pylist() for group in found] == [
            [0, 1, 2, 3, 4],
            [5, 6, 7, 8],
        ]


def test_a_row_group_of_long_rows_of_ids_ends_before_it_takes_much_memory() -> None:
    kind = pa.list_(pa.uint16(), 4096)
    ids = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(300 * 4096, np.uint16)), type=kind)
    groups = RowGroups()
    found = [*groups.add(pa.table({"ids": ids, "row": range(300)})), *groups.rest()]
    assert [group.num_rows for group in found] == [128, 128, 44]


def test_bytes_of_rows_count_text_wherever_it_stands() -> None:
    features = Features(
        {
            "text": Value("large_string"),
            "picture": {"bytes": Value("binary"), "path": Value("string")},
            "tags": [Value("string")],
            "numbers": [Value("int64")],
        }
    )
    rows = [
        {
            "text": "ü",
            "picture": {"bytes": b"123", "path": None},
            "tags": ["a", "bc"],
            "numbers": [1],
        },
        {"text": None, "picture": None, "tags": None, "numbers": None},
        {"text": "", "picture": {"bytes": None, "path": "p"}, "tags": [], "numbers": [1, 2]},
    ]
    table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
    assert row_bytes(table).tolist() == [8, 0, 1]
    assert row_bytes(table.slice(2)).tolist() == [1]
    assert row_bytes(table.slice(0, 0)).tolist() == []
