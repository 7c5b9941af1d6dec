"""A unit is committed whole: every row once, the same bytes however it was written."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import Features
from tiny_jobs import do_job, fill, streamed_job, table_of, tiny_job

from imagetok.errors import DataError, InvalidValueError, UnwritableFileError
from imagetok.shards import Job, JobFolder, UnitWriter
from imagetok.shards.shard_file import MOST_ROWS
from tiny_runs import contents, read_lines


def write_unit(folder: Path, job: Job, write: Callable[[UnitWriter], None], unit: int = 0) -> None:
    with JobFolder.open(folder, job) as work, work.claim(unit) as writer:
        assert writer is not None
        write(writer)


def test_every_row_is_in_a_shard_or_in_the_error_report(tmp_path: Path) -> None:
    job = tiny_job()
    assert do_job(tmp_path, job, broken=[1, 8, 9]) == [0, 1, 2]
    shards = [pq.read_table(tmp_path / job.paths.shard(unit)) for unit in range(3)]
    assert [shard.column("row").to_pylist() for shard in shards] == [[0, 2, 3], [4, 5, 6, 7], []]
    assert shards[0].equals(table_of(job, [0, 2, 3]))
    assert read_lines(tmp_path / "errors" / "train-00000.jsonl") == [
        {"row": 1, "key": "001.png", "reason": "no image"}
    ]
    assert [line["row"] for line in read_lines(tmp_path / "errors" / "train-00002.jsonl")] == [8, 9]
    assert len(contents(tmp_path)) == 6


def test_a_unit_whose_rows_all_failed_has_the_schema_and_no_row_group(tmp_path: Path) -> None:
    job = tiny_job()
    do_job(tmp_path, job, broken=[8, 9])
    metadata = pq.read_metadata(tmp_path / job.paths.shard(2))
    assert (metadata.num_rows, metadata.num_row_groups) == (0, 0)
    found = pq.read_schema(tmp_path / job.paths.shard(2))
    assert Features.from_arrow_schema(found) == job.schema.features


def test_footers_name_the_job_and_the_numeric_settings_of_their_writer(tmp_path: Path) -> None:
    job, other = tiny_job(), tiny_job(numerics__threads=8)
    with JobFolder.open(tmp_path, job) as work, work.claim(0) as writer:
        assert writer is not None
        fill(writer, job)
    do_job(tmp_path, other, allow_mixed_numerics=True)
    footers = [pq.read_metadata(tmp_path / job.paths.shard(unit)).metadata for unit in range(2)]
    assert {footer[b"imagetok.job"].decode() for footer in footers} == {job.fingerprint}
    assert json.loads(footers[0][b"imagetok.numerics"])["threads"] == 1
    assert json.loads(footers[1][b"imagetok.numerics"])["threads"] == 8


def test_parts_of_a_file_begin_every_rows_per_shard_rows(tmp_path: Path) -> None:
    job = streamed_job(output__resize="native")
    do_job(tmp_path, job, broken=[4, 5, 6, 7, 9])
    parts = [pq.read_table(tmp_path / job.paths.shard(1, part)) for part in range(3)]
    assert [part.column("row").to_pylist() for part in parts] == [[0, 1, 2, 3], [], [8]]
    assert parts[2].equals(table_of(job, [8], "part-1.tar"))
    errors = read_lines(tmp_path / "errors" / "train-00001-00001.jsonl")
    assert errors[0] == {"row": 4, "file": "part-1.tar", "key": "004.png", "reason": "no image"}
    assert [line["row"] for line in errors] == [4, 5, 6, 7]
    assert not (tmp_path / job.paths.errors(1, 0)).exists()


def test_a_file_without_rows_is_one_empty_part(tmp_path: Path) -> None:
    job = streamed_job()
    write_unit(tmp_path, job, lambda writer: None)
    assert job.paths.parts(tmp_path, 0) == [0]
    assert pq.read_metadata(tmp_path / job.paths.shard(0)).num_rows == 0


def test_bytes_do_not_depend_on_how_the_rows_were_handed_over(tmp_path: Path) -> None:
    units = {"units__rows_per_shard": 3000, "units__count": 1, "input__num_rows": 3000}
    job, table = tiny_job(**units), table_of(tiny_job(**units), range(3000))
    for name, batch in (("ones", 7), ("all", 3000), ("groups", MOST_ROWS), ("more", 1500)):

        def write(writer: UnitWriter, batch: int = batch) -> None:
            for start in range(0, 3000, batch):
                writer.write(table.slice(start, batch))

        write_unit(tmp_path / name, job, write)
    ones, *others = (contents(tmp_path / name) for name in ("ones", "all", "groups", "more"))
    assert all(other == ones for other in others)
    file = pq.ParquetFile(tmp_path / "ones" / job.paths.shard(0))
    groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    assert groups == [2048, 952]
    assert file.read().equals(table)


@pytest.mark.parametrize(
    ("job", "written", "refused", "words"),
    [
        (tiny_job(), [], [], "0, 1, 2, 3 not at all"),
        (tiny_job(), [0, 1, 3], [], "2 not at all"),
        (tiny_job(), [0, 1, 2, 3, 4], [], "4 are not of it"),
        (tiny_job(), [0, 1, 2, 3], [2], "2 came twice"),
        (tiny_job(), [0, 1, 2], [3, 3], "3 came twice"),
        (streamed_job(), [0, 1, 3], [], "2 not at all, 3 are not of it"),
    ],
)
def test_a_unit_with_holes_or_duplicates_is_not_committed(
    tmp_path: Path, job: Job, written: list[int], refused: list[int], words: str
) -> None:
    file = "part-0.tar" if job.input.streaming else None

    def write(writer: UnitWriter) -> None:
        writer.write(table_of(job, written, file))
        for row in refused:
            writer.refuse(row, None, "why", file)

    with pytest.raises(DataError, match=words):
        write_unit(tmp_path, job, write)
    assert contents(tmp_path).keys() == {"job.json"}
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize(
    ("job", "write", "words"),
    [
        (tiny_job(), lambda w, table: w.write(table([1, 0])), "do not ascend: 1, 0"),
        (
            tiny_job(),
            lambda w, table: (w.write(table([0, 1])), w.write(table([1, 2]))),
            "do not ascend: 1, 2",
        ),
        (
            tiny_job(),
            lambda w, table: w.write(table([0]).drop_columns("label")),
            r"expected those that ShardSchema\.table makes",
        ),
        (streamed_job(), lambda w, table: w.refuse(0, None, "why"), "expected the file that it is"),
        (tiny_job(), lambda w, table: w.refuse(0, None, "why", "a.tar"), "expected no file"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    tmp_path: Path, job: Job, write: Callable[[UnitWriter, Any], Any], words: str
) -> None:
    with pytest.raises(InvalidValueError, match=words):
        write_unit(tmp_path, job, lambda w: write(w, lambda rows: table_of(job, rows)))


def test_an_error_in_the_block_leaves_nothing_and_the_unit_to_others(tmp_path: Path) -> None:
    job = tiny_job()

    def break_off(writer: UnitWriter) -> None:
        writer.write(table_of(job, [0, 1]))
        raise KeyError

    with pytest.raises(KeyError):
        write_unit(tmp_path, job, break_off)
    assert contents(tmp_path).keys() == {"job.json"}
    assert do_job(tmp_path, job) == [0, 1, 2]


def test_an_error_report_of_an_earlier_attempt_does_not_stay(tmp_path: Path) -> None:
    job = tiny_job()
    do_job(tmp_path, job, broken=[1])
    (tmp_path / job.paths.shard(0)).unlink()
    assert do_job(tmp_path, job) == [0]
    assert not (tmp_path / job.paths.errors(0)).exists()
    assert pq.read_metadata(tmp_path / job.paths.shard(0)).num_rows == 4


def test_parts_of_an_earlier_longer_attempt_do_not_stay(tmp_path: Path) -> None:
    job = streamed_job(num_files=1)
    do_job(tmp_path, job, broken=[9])
    (tmp_path / job.paths.shard(0)).unlink()
    write_unit(tmp_path, job, lambda writer: writer.write(table_of(job, range(6), "part-0.tar")))
    assert job.paths.parts(tmp_path, 0) == [0, 1]
    assert not list((tmp_path / "errors").iterdir())


def test_a_disk_that_is_full_when_a_shard_is_flushed_is_reported_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill_disk(writer: UnitWriter) -> None:
        fill(writer, tiny_job())
        monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(UnwritableFileError, match=r"train-00000\.parquet': No space left"):
        write_unit(tmp_path, tiny_job(), fill_disk)
    assert contents(tmp_path).keys() == {"job.json"}
    assert not list((tmp_path / "data").iterdir())
    monkeypatch.undo()
    assert do_job(tmp_path, tiny_job()) == [0, 1, 2]
