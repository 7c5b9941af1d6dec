"""Whatever is wrong with a tokenized dataset is found, and named with its file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_jobs import rewrite, write_streamed_tokens, write_tokens

from imagetok.files import file_sha256
from imagetok.shards.verification import verify

SHARD = "data/train-00003.parquet"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 rows in 7 shards; rows 26, 27 and 40 could not be read."""
    return write_tokens(tmp_path_factory.mktemp("tokens") / "tokens", broken=[26, 27, 40])


def faults_of(folder: Path) -> list[str]:
    report = verify(folder)
    assert report.is_sound == (not report.faults)
    return [str(fault) for fault in report.faults]


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def change_shard(folder: Path, change: Callable[[pa.Table], pa.Table], name: str = SHARD) -> None:
    """Change the table of a shard, and let the manifest list the new file's bytes."""
    rewrite(folder / name, change)

    def relist(manifest: dict[str, Any]) -> None:
        (record,) = (shard for shard in manifest["shards"] if shard["path"] == name)
        before, record["bytes"] = record["bytes"], (folder / name).stat().st_size
        record["sha256"] = file_sha256(folder / name)
        manifest["totals"]["bytes"] += record["bytes"] - before

    edit_manifest(folder, relist)


def with_values(column: str, values: Callable[[list[Any]], list[Any]]) -> Callable[..., pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        place = table.column_names.index(column)
        changed = pa.array(values(table.column(column).to_pylist()), table.field(column).type)
        return table.set_column(place, table.field(column), changed)

    return change


def taking(*rows: int) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.take(list(rows))


def test_a_dataset_as_it_was_written_is_sound(tokens: Path) -> None:
    assert faults_of(tokens) == []
    assert str(verify(tokens)) == "7 shards with 47 rows and 3 refused: sound"
    assert verify(tokens).totals.rows_in == 50


def test_streamed_and_native_datasets_are_sound(tmp_path: Path) -> None:
    assert faults_of(write_streamed_tokens(tmp_path / "streamed", 3, broken=[4, 5, 6, 7, 9])) == []
    native = {"output__resize": "native"}
    assert faults_of(write_tokens(tmp_path / "native", 20, 8, broken=range(8, 16), **native)) == []


DEEP = {"tokenizer__codebook_sizes": [512, 300]}
NATIVE = {"output__resize": "native"}
OF_LEVEL_1 = "id 300 of level 1 is out of range: expected [0, 300), in row group 0"


@pytest.mark.parametrize(
    ("job", "change", "reasons"),
    [
        (DEEP, with_values("ids", lambda ids: [[0, 300, *ids[0][2:]], *ids[1:]]), [OF_LEVEL_1]),
        (
            DEEP | NATIVE,
            with_values("ids", lambda ids: [[0, 300, *ids[0][2:]], *ids[1:]]),
            [OF_LEVEL_1],
        ),
        (
            DEEP | NATIVE,
            with_values("ids", lambda ids: [ids[0][:-1], *ids[1:]]),
            [
                "ids do not make positions of 2",
                "numbers of ids that are not grid_h * grid_w * 2",
            ],
        ),
        (
            NATIVE,
            with_values("grid_h", lambda sides: [sides[0] + 1, *sides[1:]]),
            ["numbers of ids that are not grid_h * grid_w, in row group 0"],
        ),
    ],
)
def test_ids_that_do_not_fit_their_levels_or_grids_are_found(
    tmp_path: Path, job: dict[str, Any], change: Callable[[pa.Table], pa.Table], reasons: list[str]
) -> None:
    folder, name = write_tokens(tmp_path / "tokens", 20, 8, **job), "data/train-00001.parquet"
    assert faults_of(folder) == []
    change_shard(folder, change, name)
    faults = faults_of(folder)
    assert all(fault.startswith(f"{name}: ") for fault in faults)
    assert all(any(reason in fault for fault in faults) for reason in reasons)


def test_every_flipped_byte_is_found(copy: Path) -> None:
    content = (copy / SHARD).read_bytes()
    for place in np.linspace(0, len(content) - 1, 25, dtype=int):
        flipped = bytearray(content)
        flipped[place] ^= 1
        (copy / SHARD).write_bytes(flipped)
        first, *others = faults_of(copy)
        assert first.startswith(f"{SHARD}: {len(content)} bytes with sha256 ")
        assert all(fault.startswith(f"{SHARD}: ") for fault in others)


def test_a_missing_shard_is_found(copy: Path) -> None:
    (copy / SHARD).unlink()
    (fault,) = faults_of(copy)
    assert fault.startswith(f"{SHARD}: cannot read")


def test_a_shard_that_the_manifest_forgot_is_found(copy: Path) -> None:
    edit_manifest(copy, lambda manifest: manifest["shards"].pop(3))
    faults = faults_of(copy)
    assert f"{SHARD}: missing in the manifest, the job has this shard" in faults
    assert f"{SHARD}: it is not of the dataset" in faults
    assert "manifest.json: its total of rows is 47, the sum is 41" in faults


def test_a_shard_that_the_job_does_not_have_is_found(copy: Path) -> None:
    name = "data/train-00007.parquet"
    shutil.copy(copy / SHARD, copy / name)
    assert faults_of(copy) == [f"{name}: it is not of the dataset"]
    edit_manifest(
        copy, lambda manifest: manifest["shards"].append({**manifest["shards"][3], "path": name})
    )
    assert any(fault.startswith(f"{name}: the manifest lists it") for fault in faults_of(copy))


def test_a_shard_that_is_listed_twice_is_found(copy: Path) -> None:
    edit_manifest(copy, lambda manifest: manifest["shards"].append(manifest["shards"][3]))
    assert "manifest.json: it lists a shard twice" in faults_of(copy)


def test_a_foreign_shard_is_found(copy: Path, tmp_path: Path) -> None:
    other = write_tokens(
        tmp_path / "other", 50, 8, broken=[26, 27], tokenizer__fingerprint="e" * 64
    )
    shutil.copy(other / SHARD, copy / SHARD)
    faults = faults_of(copy)
    assert any(fault.startswith(f"{SHARD}: a shard of the job ") for fault in faults)


def test_a_shard_in_the_place_of_another_is_found(copy: Path) -> None:
    first, second = copy / "data/train-00001.parquet", copy / "data/train-00002.parquet"
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    reasons = " ".join(faults_of(copy))
    assert "rows 8, 9, 10, 11, 12, 13, 14, 15 are missing" in reasons
    assert "rows 16, 17, 18, 19, 20, 21, 22, 23 are of another shard" in reasons


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (
            taking(0, 1, 3, 4, 5),
            ["5 rows; the manifest says 6", "30 ids; the", "row 28 is missing"],
        ),
        (taking(0, 0, 1, 3, 4, 5), ["row 24 is twice", "row 28 is missing"]),
        (taking(0, 1, 2, 3, 4, 5, 5), ["7 rows; the", "42 ids; the", "row 31 is twice"]),
        (taking(0, 1, 3, 2, 4, 5), ["its rows do not ascend"]),
        (
            with_values("row", lambda rows: [24, 25, 27, 29, 30, 31]),  # 27 was refused
            ["row 27 is twice", "row 28 is missing"],
        ),
        (
            with_values("row", lambda rows: [*rows[:5], 99]),
            ["row 31 is missing", "row 99 is of another shard"],
        ),
        (
            with_values("ids", lambda ids: [[512] * 6, *ids[1:]]),
            ["id 512 is out of range: expected [0, 512), in row group 0"],
        ),
        (
            with_values("ids", lambda ids: [[None] * 6, *ids[1:]]),
            ["ids are missing, in row group 0"],
        ),
        (
            with_values("row", lambda rows: [None, *rows[1:]]),
            ["values of row are missing, in row group 0", "row 24 is missing"],
        ),
        (
            with_values("width", lambda sides: [0, *sides[1:]]),
            ["width 0, expected at least 1, in row group 0"],
        ),
        (lambda table: table.drop_columns("label"), ["the columns ids: "]),
    ],
)
def test_a_shard_of_other_rows_or_values_is_found(
    copy: Path, change: Callable[[pa.Table], pa.Table], reasons: list[str]
) -> None:
    change_shard(copy, change)
    faults = faults_of(copy)
    assert len(faults) == len(reasons)
    for fault, reason in zip(faults, reasons, strict=True):
        assert fault.startswith(f"{SHARD}: {reason}")


def test_a_shard_of_other_features_is_found(copy: Path) -> None:
    path = copy / SHARD
    table, metadata = pq.read_table(path), dict(pq.read_metadata(path).metadata)
    metadata[b"huggingface"] = metadata[b"huggingface"].replace(b'"no"', b'"on"')
    pq.write_table(table.replace_schema_metadata(metadata), path)
    assert f"{SHARD}: its features are not those of the job" in faults_of(copy)


def test_an_empty_row_group_is_found(copy: Path) -> None:
    table = pq.read_table(copy / SHARD)
    metadata = pq.read_metadata(copy / SHARD).metadata
    schema = table.schema.with_metadata(metadata)
    with pq.ParquetWriter(copy / SHARD, schema) as writer:
        writer.write_table(table.cast(schema))
        writer.write_table(table.cast(schema).slice(0, 0))
    assert any("no rows, which no reader expects, in row group 1" in f for f in faults_of(copy))


def test_a_list_of_unreadable_rows_that_changed_is_found(copy: Path) -> None:
    path = copy / "errors/train-00003.jsonl"
    content = path.read_text()
    path.write_text(content.replace('"row": 27', '"row": 28'))
    first, *others = faults_of(copy)
    assert first.startswith("errors/train-00003.jsonl: sha256 ")
    assert others == [f"{SHARD}: row 28 is twice", f"{SHARD}: row 27 is missing"]
    path.write_text("no list\n")
    assert any("errors/train-00003.jsonl: not a list of unreadable" in f for f in faults_of(copy))
    path.unlink()
    assert faults_of(copy)[0].startswith("errors/train-00003.jsonl: cannot read")


def test_files_that_do_not_belong_are_found(copy: Path) -> None:
    strangers = ["data/notes.txt", "errors/train-00000.jsonl", "data/sub/x.parquet", "more.csv"]
    for name in [*strangers, ".gitattributes", ".cache/x"]:
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("x")
    (copy / "data" / ".imagetok-tmp-7").mkdir()
    expected = {f"{name}: it is not of the dataset" for name in strangers}
    expected.add("data/.imagetok-tmp-7: left behind by a process that was killed")
    assert set(faults_of(copy)) == expected


def test_a_hole_between_the_parts_of_a_file_is_found(tmp_path: Path) -> None:
    folder = write_streamed_tokens(tmp_path / "tokens", 2)
    name = "data/train-00001-00001.parquet"
    (folder / name).unlink()
    edit_manifest(folder, lambda manifest: manifest["shards"].pop(4))
    faults = faults_of(folder)
    assert any("train-00001-00002.parquet: the manifest lists it, but" in f for f in faults)


def test_rows_of_another_file_are_found(tmp_path: Path) -> None:
    folder = write_streamed_tokens(tmp_path / "tokens", 2)
    name = "data/train-00001-00001.parquet"
    change_shard(folder, with_values("file", lambda files: ["part-0.tar", *files[1:]]), name)
    (fault,) = faults_of(folder)
    assert fault.startswith(f"{name}: rows of the files ['part-0.tar', 'part-1.tar'], expected")


def test_a_part_that_is_not_full_is_found(tmp_path: Path) -> None:
    folder = write_streamed_tokens(tmp_path / "tokens", 2)
    name = "data/train-00000-00001.parquet"
    change_shard(folder, taking(0, 1, 2), name)
    assert f"{name}: row 7 is missing" in faults_of(folder)


def test_all_faults_are_listed(copy: Path) -> None:
    for number in (0, 2, 5):
        (copy / f"data/train-{number:05d}.parquet").write_bytes(b"x")
    files = {fault.file for fault in verify(copy).faults}
    assert files == {f"data/train-{number:05d}.parquet" for number in (0, 2, 5)}
    assert len(str(verify(copy)).splitlines()) == len(verify(copy).faults)
