"""Every unit and part has its own name, and no folder holds too many."""

from __future__ import annotations

from pathlib import Path

from imagetok.shards.job import ShardPaths


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
