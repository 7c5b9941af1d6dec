"""A job is what fixes the bytes: its JSON, its fingerprint, its units."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_jobs import KEPT, do_job, job_values, streamed_job, tiny_job

from imagetok.errors import ConfigError, DataError, UnreadableFileError
from imagetok.shards import Job, JobFolder, read_job
from imagetok.shards.job import ShardPaths


def test_a_job_survives_its_file(tmp_path: Path) -> None:
    names = ["no", "yes: 'maybe'\n---", "ü"]
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    job = tiny_job(output__keep=["label"], features=features)
    JobFolder.open(tmp_path, job).close()
    assert read_job(tmp_path) == job
    assert read_job(tmp_path).schema == job.schema
    assert job.schema.kept["label"].names == names


def test_the_json_of_a_job_of_one_code_a_position_is_that_of_version_1(tmp_path: Path) -> None:
    JobFolder.open(tmp_path, tiny_job()).close()
    digest = hashlib.sha256((tmp_path / "job.json").read_bytes()).hexdigest()
    assert digest == "a35bb41a792419d8c8aa834d8f250c6550bd2cfcf5182b651d618956b21f46e2"
    expected = "9efcbe1e71572114462e7d49c119dba889c05ee65b9bed11f717724d9b9e9c7e"
    assert tiny_job().fingerprint == expected
    assert tiny_job(tokenizer__codebook_sizes=None).fingerprint == expected


def test_the_codes_of_a_position_are_part_of_the_job(tmp_path: Path) -> None:
    job = tiny_job(tokenizer__codebook_sizes=[512, 300])
    JobFolder.open(tmp_path, job).close()
    assert read_job(tmp_path) == job
    assert job.schema.depth == 2
    assert job.schema.token_shape((2, 3)) == (2, 3, 2)
    changed = tiny_job(tokenizer__codebook_sizes=[300, 512])
    assert len({tiny_job().fingerprint, job.fingerprint, changed.fingerprint}) == 3
    with pytest.raises(DataError, match=r"codebook_sizes: \[512, 300\] there, null here"):
        JobFolder.open(tmp_path, tiny_job())


def test_the_kept_columns_stand_in_the_order_of_keep() -> None:
    job = tiny_job(output__keep=["label", "caption"])
    assert list(job.schema.kept) == ["label", "caption"]
    assert tiny_job().schema.kept == KEPT


def test_a_folder_without_a_job_or_with_a_damaged_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match=r"job\.json': No such file"):
        read_job(tmp_path)
    (tmp_path / "job.json").write_text("{}")
    with pytest.raises(UnreadableFileError, match=r"is not a job of this version: .*missing key"):
        JobFolder.open(tmp_path, tiny_job())


def test_units_cover_the_rows_once(tmp_path: Path) -> None:
    job = tiny_job()
    assert [job.rows_of(unit) for unit in range(3)] == [range(4), range(4, 8), range(8, 10)]
    limited = tiny_job(input__limit=5, units__count=2)
    assert [limited.rows_of(unit) for unit in range(2)] == [range(4), range(4, 5)]
    assert streamed_job(num_files=7).num_units == 7
    assert streamed_job().rows_of(0) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"units__count": 4}, "units.count is 4, 10 rows make 3 of 4"),
        ({"input__num_rows": None}, "num_rows is null where streaming is true"),
        ({"features": {}}, "output.keep names"),
        ({"format_version": 2}, "format_version"),
        ({"input__path": "x"}, "unknown key 'input.path'"),
        ({"tokenizer__codebook_sizes": [512]}, "tokenizer.codebook_sizes"),
        ({"tokenizer__codebook_sizes": [512, 0]}, "tokenizer.codebook_sizes"),
        ({"tokenizer__codebook_sizes": [300, 300]}, "the largest of codebook_sizes is 300"),
        ({"tokenizer__grid_size": []}, "tokenizer.grid_size"),
        ({"tokenizer__grid_size": [1, 2, 3]}, "tokenizer.grid_size"),
        (
            {"tokenizer__grid_size": [6], "output__resize": "native"},
            "the tokenizer's ids form no grid",
        ),
    ],
)
def test_a_job_that_contradicts_itself_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_job(**changes)


@pytest.mark.parametrize(
    ("split", "name"),
    [
        ("train", "train"),
        ("validation[:10%]", "validation"),
        ("train[:5]+train[7:]", "train"),
        ("test+train", "train"),
    ],
)
def test_shards_are_named_after_the_split(split: str, name: str) -> None:
    job = tiny_job(input__split=split)
    assert job.split_name == name
    assert job.paths.shard(2) == f"data/{name}-00002.parquet"


def test_job_json_holds_no_trace_of_the_machine(tmp_path: Path) -> None:
    do_job(tmp_path / "one", tiny_job())
    do_job(tmp_path / "two" / "inner", tiny_job())
    one, two = tmp_path / "one" / "job.json", tmp_path / "two" / "inner" / "job.json"
    assert one.read_bytes() == two.read_bytes()
    assert json.loads(one.read_bytes()) == job_values() | {"format_version": 1}
    assert Job.from_json(one.read_bytes()) == tiny_job()


def test_over_five_thousand_units_lie_in_folders_of_a_thousand() -> None:
    few, many = ShardPaths("train", 5000, False), ShardPaths("train", 123_456, False)
    assert few.shard(4999) == "data/train-04999.parquet"
    assert many.shard(999) == "data/00000/train-00999.parquet"
    assert many.errors(123_455) == "errors/00123/train-123455.jsonl"
    parts = ShardPaths("train", 5001, True)
    assert parts.shard(5000, 12) == "data/00005/train-05000-00012.parquet"
    folders = {Path(many.shard(unit)).parent.as_posix() for unit in range(123_456)}
    assert set(many.parents()) == folders
    assert list(few.parents()) == ["data"]


def test_parts_of_a_unit_are_told_from_those_of_others(tmp_path: Path) -> None:
    paths = ShardPaths("train", 20, True)
    (tmp_path / "data").mkdir()
    assert paths.parts(tmp_path, 1) == []
    for unit, part in ((1, 10), (1, 0), (11, 3)):
        (tmp_path / paths.shard(unit, part)).touch()
    (tmp_path / "data" / "train-00001-00002.parquet.bak").touch()
    assert paths.parts(tmp_path, 1) == [0, 10]
