"""What a run is evaluated on: the same rows whether training streams or not."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
import torch
from small_rows import Open

from imagetok.data import ImageRows, evaluation_batches, open_evaluation
from imagetok.data import evaluation_data as module
from imagetok.errors import DataError, ImageFileError, InvalidValueError, UnwritableFileError
from imagetok.images import Preprocessor
from tiny_data import KINDS, data_config, write_split

datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_both(tmp_path / "set", "parquet")


def write_both(folder: Path, kind: str) -> Path:
    write_split(folder, kind, [range(6)])
    return write_split(folder, kind, [range(10, 14), range(14, 20)], "test")


def opened(
    folder: Path | str, cache: Path, split: str = "test", streaming: bool = True
) -> ImageRows:
    config = data_config(folder, streaming=streaming, evaluation_split=split)
    return open_evaluation(config, cache)


def levels_in(rows: ImageRows) -> list[int]:
    small = Preprocessor((8, 8))
    return [int(small(rows.image(row))[0, 0, 0, 0]) for row in range(len(rows))]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "saved"])
def test_streamed_rows_are_those_of_a_conversion(tmp_path: Path, cache: Path, kind: str) -> None:
    folder = write_both(tmp_path / "set", kind)
    streamed, converted = (opened(folder, cache, streaming=mode) for mode in (True, False))
    assert levels_in(streamed) == levels_in(converted) == list(range(10, 20))
    assert streamed.image_column == converted.image_column
    if kind != "webdataset":  # whose rows hold the paths of their files
        assert streamed.fingerprint == converted.fingerprint


@pytest.mark.parametrize("kind", ["saved", "pictures", "classes", "metadata"])
def test_what_needs_no_conversion_is_opened_where_it_lies(
    tmp_path: Path, cache: Path, kind: str
) -> None:
    folder = write_split(tmp_path / "set", kind, [range(5)])
    assert levels_in(opened(folder, cache, "train[2:]")) == [2, 3, 4]
    assert not (cache / "imagetok").exists()


def test_builtin_datasets_are_opened_as_they_are(cache: Path) -> None:
    drawn = opened("builtin:shapes?size=8&count=4", cache)
    assert (
        drawn.fingerprint
        == opened("builtin:shapes?size=8&count=4", cache, streaming=False).fingerprint
    )
    assert not (cache / "imagetok").exists()


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("test[:3]", range(10, 13)),
        ("test[2:5]", range(12, 15)),
        ("test[8:]", range(18, 20)),
        ("test[-2:]", range(18, 20)),
        ("test[:20%]", range(10, 12)),
        ("test[:100]", range(10, 20)),
        ("test[:2]+test[9:]", [10, 11, 19]),
        ("train[:2]+test[:1]", [0, 1, 10]),
    ],
)
def test_slices_of_a_streamed_split_are_exact(
    folder: Path, cache: Path, split: str, expected: range | list[int]
) -> None:
    assert levels_in(opened(folder, cache, split)) == list(expected)
    assert levels_in(opened(folder, cache, split, streaming=False)) == list(expected)


def test_no_more_rows_are_read_than_are_asked_for(folder: Path, cache: Path) -> None:
    for number in (0, 1):
        (folder / f"test-0000{number}.parquet").rename(folder / f"test-{number}.parquet")
    (folder / "test-1.parquet").write_bytes(
        (folder / "test-1.parquet").read_bytes()[:-200] + b"x" * 200
    )
    assert levels_in(opened(folder, cache, "test[:4]")) == [10, 11, 12, 13]
    with pytest.raises(DataError, match="split 'test' cannot be read"):
        opened(folder, cache, "test")
    kept = list((cache / "imagetok").iterdir())
    assert len(kept) == 1, "a split that broke off must leave nothing"


def test_a_second_opening_reads_nothing(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(folder, cache)

    def refuse(*_: object) -> None:
        raise AssertionError("the split was read again")

    monkeypatch.setattr(module, "_copy", refuse)
    again = opened(folder, cache)
    assert again.fingerprint == first.fingerprint
    assert levels_in(again) == levels_in(first)


def test_a_changed_split_is_read_anew(folder: Path, cache: Path) -> None:
    assert len(opened(folder, cache)) == 10
    write_split(folder, "parquet", [range(30, 34), range(34, 37)], "test")
    assert levels_in(opened(folder, cache)) == list(range(30, 37))


def test_kept_images_outlive_their_files(tmp_path: Path, cache: Path) -> None:
    rows = opened(write_both(tmp_path / "set", "webdataset"), cache)
    for archive in (tmp_path / "set").iterdir():
        archive.unlink()
    assert levels_in(rows) == list(range(10, 20))


@pytest.mark.parametrize("kind", ["pictures", "zip"])
def test_an_unreadable_image_is_met_when_it_is_read(tmp_path: Path, cache: Path, kind: str) -> None:
    folder = write_split(tmp_path / "set", kind, [range(3)], "test", broken=[1])
    rows = opened(folder, cache)
    assert len(rows) == 3
    small = Preprocessor((8, 8))
    assert [int(small(rows.image(row))[0, 0, 0, 0]) for row in (0, 2)] == [0, 2]
    with pytest.raises(ImageFileError):
        small(rows.image(1))


@pytest.mark.parametrize("split", ["validation", "test[", "test[a:b]", "Test"])
def test_an_unknown_split_lists_those_there_are(folder: Path, cache: Path, split: str) -> None:
    with pytest.raises(DataError, match="its splits are: train, test"):
        opened(folder, cache, split)


def test_a_slice_without_rows_is_refused(folder: Path, cache: Path) -> None:
    with pytest.raises(DataError, match=r"has no rows; its splits are: test \(10 rows\)"):
        opened(folder, cache, "test[10:]")


def test_a_cache_that_cannot_be_written_is_named(folder: Path, cache: Path) -> None:
    (cache / "imagetok").write_bytes(b"in the way")
    with pytest.raises(UnwritableFileError, match="imagetok"):
        opened(folder, cache)


# Batches


def test_evaluation_batches_hold_the_rows_asked_for(open_rows: Open) -> None:
    rows = open_rows("builtin:shapes?size=16&count=7")
    preprocessor = Preprocessor((8, 8))
    batches = list(evaluation_batches(rows, preprocessor, 2, iter([6, 0, 3, 1, 4])))
    assert [batch for batch, _ in batches] == [[6, 0], [3, 1], [4]]
    for batch, pixels in batches:
        assert torch.equal(pixels, preprocessor([rows.image(row) for row in batch]))


def test_an_evaluation_batch_of_none_is_refused(open_rows: Open) -> None:
    rows = open_rows("builtin:shapes?size=8&count=1")
    with pytest.raises(InvalidValueError, match="batch_size is at least 1, got 0"):
        list(evaluation_batches(rows, Preprocessor((8, 8)), 0, [0]))
