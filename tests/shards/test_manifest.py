"""The manifest is written when all units are there, and says what lies on the disk."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pyarrow.parquet as pq
import pytest
from tiny_jobs import do_job, fill, streamed_job, tiny_job

from imagetok.errors import DataError, UnreadableFileError
from imagetok.files import TEMPORARY_PREFIX
from imagetok.shards import Job, JobFolder, finalize, read_manifest
from imagetok.shards.shard_scan import scan_shards
from tiny_runs import contents

FINALIZE = (
    "import sys; from imagetok.shards import finalize; print(finalize(sys.argv[1]).to_json())"
)


def test_the_manifest_counts_rows_tokens_and_bytes(tmp_path: Path) -> None:
    job = tiny_job()
    do_job(tmp_path, job, broken=[1, 8, 9])
    manifest = finalize(tmp_path, {"images_per_second": 12.5})
    assert manifest == read_manifest(tmp_path)
    assert manifest.job == job.fingerprint
    assert manifest.tokenizer == job.tokenizer
    assert manifest.throughput == {"images_per_second": 12.5}
    assert [shard.path for shard in manifest.shards] == [job.paths.shard(u) for u in range(3)]
    assert [(shard.rows, shard.refused) for shard in manifest.shards] == [(3, 1), (4, 0), (0, 2)]
    totals, files = manifest.totals, [tmp_path / shard.path for shard in manifest.shards]
    assert (totals.rows_in, totals.rows, totals.refused, totals.shards) == (10, 7, 3, 3)
    assert totals.tokens == 7 * 6
    assert totals.bytes == sum(file.stat().st_size for file in files)
    for shard, file in zip(manifest.shards, files, strict=True):
        assert shard.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        assert shard.numerics is None
    report = (tmp_path / job.paths.errors(0)).read_bytes()
    assert manifest.shards[0].errors_sha256 == hashlib.sha256(report).hexdigest()
    assert manifest.shards[1].errors_sha256 is None


def test_tokens_of_grids_of_their_own_are_counted_one_by_one(tmp_path: Path) -> None:
    job = streamed_job(output__resize="native")
    do_job(tmp_path, job, broken=[4])
    manifest = finalize(tmp_path)
    ids = [pq.read_table(tmp_path / shard.path).column("ids") for shard in manifest.shards]
    assert manifest.totals.tokens == sum(len(row) for column in ids for row in column.to_pylist())
    assert len(manifest.shards) == 6


def test_shards_made_under_other_numeric_settings_say_so(tmp_path: Path) -> None:
    job, other = tiny_job(), tiny_job(numerics__threads=8)
    with JobFolder.open(tmp_path, job) as work, work.claim(1) as writer:
        assert writer is not None
        fill(writer, job)
    do_job(tmp_path, other, allow_mixed_numerics=True)
    shards = finalize(tmp_path).shards
    assert [shard.numerics for shard in shards] == [other.numerics, None, other.numerics]


def test_a_dataset_without_a_manifest_is_refused_with_the_way_to_one(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="is not a tokenized dataset"):
        read_manifest(tmp_path)
    do_job(tmp_path, tiny_job())
    with pytest.raises(UnreadableFileError, match=f"imagetok tokenize --finalize {tmp_path}"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(
        UnreadableFileError, match=r"is not a manifest of this version: .*not valid JSON"
    ):
        read_manifest(tmp_path)


def test_finalizing_again_changes_nothing(tmp_path: Path) -> None:
    do_job(tmp_path, tiny_job(), broken=[1])
    manifest = finalize(tmp_path, {"images_per_second": 1.0})
    before = contents(tmp_path)
    assert finalize(tmp_path, {"images_per_second": 2.0}) == manifest
    assert contents(tmp_path) == before


def test_a_card_stays_while_the_shards_do_and_is_written_again_where_it_is_lost(
    tmp_path: Path,
) -> None:
    job, card = tiny_job(), tmp_path / "README.md"
    do_job(tmp_path, job)
    finalize(tmp_path)
    text = card.read_text()
    card.unlink()
    finalize(tmp_path)
    assert card.read_text() == text
    card.write_text(f"{text}Licence: ours.")
    finalize(tmp_path)
    assert card.read_text() == f"{text}Licence: ours."
    (tmp_path / job.paths.shard(0)).unlink()
    do_job(tmp_path, job, broken=[1])
    finalize(tmp_path)
    assert "| unreadable images | 1," in card.read_text()


def test_a_unit_that_is_done_again_takes_the_manifest_away(tmp_path: Path) -> None:
    job = tiny_job()
    do_job(tmp_path, job)
    first = finalize(tmp_path)
    (tmp_path / job.paths.shard(1)).unlink()
    do_job(tmp_path, job, broken=[5])
    assert not (tmp_path / "manifest.json").exists()
    assert finalize(tmp_path).totals.refused == 1
    assert first.totals.refused == 0


def test_processes_that_finish_at_once_write_one_manifest(tmp_path: Path) -> None:
    do_job(tmp_path, tiny_job(), broken=[1])
    command = [sys.executable, "-c", FINALIZE, str(tmp_path)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {run.communicate(timeout=120)[0] for run in runs}
    assert [run.returncode for run in runs] == [0] * 2
    assert printed == {read_manifest(tmp_path).to_json() + "\n"}
    assert not list(tmp_path.rglob(f"{TEMPORARY_PREFIX}*"))


def test_threads_that_finish_at_once_agree_on_the_throughput(tmp_path: Path) -> None:
    do_job(tmp_path, tiny_job())
    with ThreadPoolExecutor(4) as pool:
        manifests = list(pool.map(lambda n: finalize(tmp_path, {"number": n}), range(8)))
    assert len({manifest.to_json() for manifest in manifests}) == 1


def test_a_folder_that_goes_while_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    do_job(tmp_path, tiny_job())
    make, faults = Path.mkdir, iter([FileExistsError("as pathlib raises it then")])

    def mkdir(self: Path, *arguments: Any, **options: Any) -> None:
        if self.name == f"{TEMPORARY_PREFIX}manifest":
            for fault in faults:
                raise fault
        make(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    finalize(tmp_path)
    assert next(faults, None) is None
    assert not list(tmp_path.rglob(f"{TEMPORARY_PREFIX}*"))


@pytest.mark.parametrize("place", ["manifest", "data/train-00001"])
def test_finalizing_clears_what_killed_processes_of_other_machines_left(
    tmp_path: Path, place: str
) -> None:
    do_job(tmp_path, tiny_job())
    folder = (tmp_path / place).with_name(f"{TEMPORARY_PREFIX}{Path(place).name}")
    (folder / "elsewhere-x").mkdir(parents=True)
    finalize(tmp_path)
    assert not list(tmp_path.rglob(f"{TEMPORARY_PREFIX}*"))


def test_what_other_processes_clear_away_meanwhile_disturbs_nobody(tmp_path: Path) -> None:
    job = tiny_job()
    do_job(tmp_path, job)
    work, ended = tmp_path / "data" / f"{TEMPORARY_PREFIX}train-00001", Event()

    def come_and_go() -> None:
        while not ended.is_set():
            (work / "elsewhere-x" / "deeper").mkdir(parents=True, exist_ok=True)
            shutil.rmtree(work)

    with ThreadPoolExecutor() as pool:
        other = pool.submit(come_and_go)
        try:
            records = [scan_shards(tmp_path, job) for _ in range(100)]
        finally:
            ended.set()
        other.result()
    assert all(record == records[0] for record in records)


def lose_rows(shard: Path) -> None:
    metadata = pq.read_metadata(shard).metadata
    pq.write_table(pq.read_table(shard).slice(1).replace_schema_metadata(metadata), shard)


def replace_by_another_jobs(shard: Path) -> None:
    do_job(shard.parents[1] / "other", tiny_job(tokenizer__fingerprint="e" * 64))
    shutil.move(shard.parents[1] / "other" / "data" / shard.name, shard)


@pytest.mark.parametrize(
    ("job", "part", "damage", "error", "words"),
    [
        (
            tiny_job(),
            0,
            Path.unlink,
            DataError,
            "1 of 3 units .* the first is 'data/train-00001.parquet'",
        ),
        (tiny_job(), 0, replace_by_another_jobs, DataError, "shard of another job, [0-9a-f]{64}"),
        (
            tiny_job(),
            0,
            lambda shard: shutil.copy(shard, shard.with_name("train-00007.parquet")),
            DataError,
            r"not of its job, remove them: data/train-00007\.parquet",
        ),
        (tiny_job(), 0, lose_rows, DataError, "3 rows and 0 refused ones, expected 4 together"),
        (
            tiny_job(),
            0,
            lambda shard: shard.write_bytes(shard.read_bytes()[:-20]),
            UnreadableFileError,
            r"train-00001\.parquet' is not a shard, or a damaged",
        ),
        (streamed_job(), 1, Path.unlink, DataError, "parts of unit 1 are missing"),
        (streamed_job(), 2, Path.unlink, DataError, "parts of unit 1 are missing"),
    ],
)
def test_a_folder_that_is_not_whole_is_not_finalized(
    tmp_path: Path,
    job: Job,
    part: int,
    damage: Callable[[Path], object],
    error: type[Exception],
    words: str,
) -> None:
    do_job(tmp_path, job)
    damage(tmp_path / job.paths.shard(1, part))
    with pytest.raises(error, match=words):
        finalize(tmp_path)
    assert not (tmp_path / "manifest.json").exists()
