"""Rows that are held out: by their identities alone, so that rows added later move none."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features
from small_rows import Open, in_memory, levels_of, save, write_images

from imagetok.data import DatasetRef, open_evaluation, open_stream
from imagetok.data.holdout import Holdout
from imagetok.errors import DataError, InvalidValueError
from imagetok.images import Preprocessor
from tiny_data import data_config, png, write_split


def labelled(labels: Sequence[int], levels: Sequence[int] | None = None) -> Dataset:
    """Rows of these labels, whose images have these levels; by default all differ."""
    images = [
        {"bytes": png(level), "path": None}
        for level in (range(len(labels)) if levels is None else levels)
    ]
    kinds = Features({"image": datasets.Image(), "label": ClassLabel(names=["ant", "bee", "cat"])})
    return Dataset.from_dict({"image": images, "label": list(labels)}, features=kinds)


def sides(open_rows: Open, folder: Path, **options: object) -> tuple[list[int], list[int]]:
    """Levels of the images on both sides."""
    train, held = (
        levels_of(open_rows(str(folder), split, **options)) for split in ("train", "holdout")
    )
    return train, held


def test_the_side_of_an_identity_never_changes() -> None:
    """People compare figures over years: a new version must not mix what an old one kept apart."""
    names = [f"cats/{number}.jpg" for number in range(12)]
    quarter = Holdout(DatasetRef("photos", holdout="25%").holdout_share)
    assert [name for name in names if quarter.holds(name)] == ["cats/1.jpg", "cats/4.jpg"]
    salted = Holdout(quarter.share, "other")
    assert [name for name in names if salted.holds(name)] == [
        "cats/1.jpg",
        "cats/2.jpg",
        "cats/3.jpg",
    ]


def test_every_row_is_on_one_side_and_the_share_is_as_asked(
    open_rows: Open, tmp_path: Path
) -> None:
    folder = save(tmp_path, in_memory(200))
    train, held = sides(open_rows, folder, holdout="25%")
    assert sorted(train + held) == list(range(200))
    assert train == sorted(train)
    assert 30 <= len(held) <= 70
    others = sides(open_rows, folder, holdout="25%", holdout_salt="2")[1]
    assert others != held
    assert open_rows(str(folder), "holdout[:3]", holdout="25%").fingerprint


def test_images_that_are_added_move_no_other(open_rows: Open, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "photos", range(0, 80, 2))
    before = sides(open_rows, folder, holdout="30%")
    write_images(folder, range(1, 80, 2))
    after = sides(open_rows, folder, holdout="30%")
    for old, new in zip(before, after, strict=True):
        assert old == [level for level in new if level % 2 == 0]


def test_equal_images_are_on_one_side(open_rows: Open, tmp_path: Path) -> None:
    folder = save(tmp_path, labelled([0] * 60, [row % 20 for row in range(60)]))
    train, held = sides(open_rows, folder, holdout="40%")
    assert 0 < len(train) < 60
    assert not set(train) & set(held)


@pytest.mark.parametrize(("stratify", "counts"), [(True, [5, 1, 2]), (3, [3, 2, 3])])
def test_every_label_is_on_both_sides(
    open_rows: Open, tmp_path: Path, stratify: bool | int, counts: list[int]
) -> None:
    """Of 20, 3 and 8 rows a quarter, or three rows, but always one left to train on."""
    folder = save(tmp_path, labelled([0] * 20 + [1] * 3 + [2] * 8))
    share = {"holdout": "25%"} if stratify is True else {}
    held = open_rows(str(folder), "holdout", stratify=stratify, **share).dataset["label"]
    train = open_rows(str(folder), "train", stratify=stratify, **share).dataset["label"]
    assert [held[:].count(label) for label in range(3)] == counts
    assert [train[:].count(label) for label in range(3)] == [
        20 - counts[0],
        3 - counts[1],
        8 - counts[2],
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"holdout": "10"}, "between 0% and 100%, as in 10%"),
        ({"holdout": "100%"}, "between 0% and 100%"),
        ({"holdout": "0%"}, "between 0% and 100%"),
        ({"stratify": True}, "set holdout"),
        ({"stratify": -1}, "from 1 on"),
        ({"stratify": 2, "holdout": "10%"}, "leave one of them out"),
        ({"holdout_salt": "x"}, "nothing is held out"),
        ({"holdout": "10%", "holdout_salt": "x" * 65}, "64 bytes"),
        ({"holdout": "10%", "stratify": True, "streaming": True}, "leave stratify or streaming"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: dict[str, object], words: str
) -> None:
    with pytest.raises(InvalidValueError, match=words):
        DatasetRef("photos", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "split", "options", "words"),
    [
        (in_memory(4), "holdout", {"holdout": "0.001%"}, "leaves the split 'holdout' empty"),
        (in_memory(4), "train", {"holdout": "99.999%"}, "leaves the split 'train' empty"),
        (in_memory(4), "train", {"stratify": 1}, "no column of labels"),
        (labelled([0, 0, 1]), "train", {"stratify": 1}, "'bee' .* has one image"),
        (
            datasets.DatasetDict({"test": in_memory(4)}),
            "test",
            {"holdout": "50%"},
            "are: test; leave holdout out",
        ),
    ],
)
def test_what_cannot_be_divided_is_refused(
    open_rows: Open,
    tmp_path: Path,
    rows: Dataset,
    split: str,
    options: dict[str, object],
    words: str,
) -> None:
    with pytest.raises(DataError, match=words):
        open_rows(str(save(tmp_path, rows)), split, **options)


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "pictures"])
def test_streams_and_evaluations_have_the_rows_of_the_split(
    open_rows: Open, tmp_path: Path, kind: str
) -> None:
    folder = write_split(tmp_path / "set", kind, [range(25), range(25, 50)])
    train, held = sides(open_rows, folder, holdout="30%")
    assert len(held) > 1
    for split, levels in (("train", train), ("holdout", held)):
        stream = open_stream(str(folder), split, holdout="30%", cache_dir=tmp_path / "cache")
        rows = [row for part in range(len(stream.segments)) for row in stream.read(part)]
        small = Preprocessor((2, 2))
        found = [int(small(stream.fetch(image, ""))[0, 0, 0, 0]) for _, image in rows]
        assert found == levels
    for streaming in (False, True):
        config = data_config(folder, streaming=streaming, holdout="30%", evaluation_split=None)
        assert levels_of(open_evaluation(config, tmp_path / "cache")) == held


def test_files_of_rows_that_are_added_move_no_row(open_rows: Open, tmp_path: Path) -> None:
    folder = write_split(tmp_path / "set", "parquet", [range(40)])
    before = sides(open_rows, folder, holdout="30%")
    first = next(folder.rglob("*.parquet"))
    write_split(folder / "new", "parquet", [range(40, 60)])
    next((folder / "new").rglob("*.parquet")).rename(first.with_name("train-a.parquet"))
    (folder / "new").rmdir()
    after = sides(open_rows, folder, holdout="30%")
    for old, new in zip(before, after, strict=True):
        assert old == [level for level in new if level < 40]
        assert len(new) > len(old)


@pytest.mark.parametrize(
    ("labels", "split", "told"),
    [
        ([0, 0, 1, 1], "train[:50%]", True),
        ([0, 0, 1, 1], "train", False),
        ([0, 1, 0, 1], "train[:50%]", False),
        ([1, 1, 1, 1], "train[:50%]", False),
    ],
)
def test_a_slice_of_rows_that_are_sorted_by_label_is_warned_of(
    open_rows: Open,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    labels: list[int],
    split: str,
    told: bool,
) -> None:
    open_rows(str(save(tmp_path, labelled(labels))), split)
    assert ("sorted by label" in caplog.text) == told
    assert ("holdout=10%" in caplog.text) == told


def test_rows_of_packed_archives_are_held_out_by_their_paths(
    open_rows: Open, tmp_path: Path
) -> None:
    folder = write_split(tmp_path / "set", "webdataset", [range(30)])
    (path,) = folder.iterdir()
    before = sides(open_rows, folder, holdout="30%")
    path.with_suffix(".tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert sides(open_rows, folder, holdout="30%") == before
    stream = open_stream(str(folder), "holdout", holdout="30%", cache_dir=tmp_path / "cache")
    small = Preprocessor((2, 2))
    levels = [int(small(image)[0, 0, 0, 0]) for _, image in stream.read(0)]
    assert levels == before[1]
