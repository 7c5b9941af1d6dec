"""Datasets that are read row by row: names, splits, files, folders and image columns."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Value
from small_rows import Open, in_memory, levels_of, save, write_images

from imagetok import builtin
from imagetok.data import ImageRows, ImageStream, PictureStream
from imagetok.errors import DataError
from imagetok.images import Preprocessor
from tiny_data import png

# Names and splits


def test_builtin_options_choose_size_and_count(open_rows: Open) -> None:
    rows = open_rows("builtin:shapes?size=24&count=5", "test")
    assert len(rows) == 5
    image = Preprocessor((24, 24))(rows.image(2))[0].permute(1, 2, 0).numpy()
    drawn = builtin.render(builtin.scene(builtin.first_index("test") + 2), 24)
    np.testing.assert_array_equal(image, drawn)


def test_digits_open_as_gray_images(open_rows: Open) -> None:
    pytest.importorskip("sklearn")
    rows = open_rows("builtin:digits", "test")
    assert len(rows) == 300
    assert Preprocessor((8, 8), channels=1)(rows.image(0)).shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("builtin:circles", "choose one of: builtin:digits, builtin:shapes"),
        ("builtin:shapes?sice=3", "unknown option 'sice' .* valid options: count, size"),
        ("builtin:shapes?size=big", "'size' .* whole number, got 'big'"),
        ("builtin:shapes?size=-4", "whole number, got '-4'"),
        ("builtin:shapes?size=", "whole number, got ''"),
        ("builtin:shapes?size=" + "9" * 5000, "whole number"),
        ("builtin:shapes?size", "key=value"),
        ("builtin:shapes?size=8&size=9", "stands twice"),
        ("builtin:shapes?size=4", "size=4"),
        ("builtin:shapes?count=0", "count=0"),
        ("builtin:digits?size=8", r"valid options: \(none\)"),
    ],
)
def test_a_builtin_that_does_not_exist_is_refused(open_rows: Open, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_rows(name)


@pytest.mark.parametrize("option", ["subset", "revision"])
def test_a_builtin_has_no_subset_and_no_revision(open_rows: Open, option: str) -> None:
    with pytest.raises(DataError, match=f"no {option} 'x'; leave {option} out"):
        open_rows("builtin:shapes", **{option: "x"})


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", range(10)),
        ("train[:3]", range(3)),
        ("train[90%:]", range(9, 10)),
        ("train[-2:]", range(8, 10)),
        ("train[:2]+train[8:]", [0, 1, 8, 9]),
        ("train[7:100]", range(7, 10)),
    ],
)
def test_split_slices_are_taken_everywhere(
    open_rows: Open, tmp_path: Path, split: str, expected: range | list[int]
) -> None:
    drawn = open_rows("builtin:shapes?size=8&count=10", split)
    assert drawn.dataset["index"][:] == list(expected)
    folder = write_images(tmp_path / "images", range(10))
    assert levels_of(open_rows(folder, split)) == list(expected)


def test_train_and_test_add_up(open_rows: Open) -> None:
    rows = open_rows("builtin:shapes?size=8&count=2", "train+test[1:]")
    assert rows.dataset["index"][:] == [0, 1, builtin.first_index("test") + 1]


@pytest.mark.parametrize("split", ["validation", "train[", "", "train[a:b]", "Train"])
def test_an_unknown_split_lists_those_there_are(
    open_rows: Open, tmp_path: Path, split: str
) -> None:
    with pytest.raises(DataError, match="its splits are: train, test"):
        open_rows("builtin:shapes?size=8&count=2", split)
    folder = write_images(tmp_path / "images", range(2))
    with pytest.raises(DataError, match=r"its splits are: train \("):
        open_rows(folder, split)


@pytest.mark.parametrize("split", ["train[:0]", "train[5:3]", "train[9:]"])
def test_a_split_without_rows_is_refused(open_rows: Open, split: str) -> None:
    with pytest.raises(DataError, match=r"has no rows; its splits are: train \(4 rows\)"):
        open_rows("builtin:shapes?size=8&count=4", split)


# Files and folders


@pytest.mark.parametrize("name", ["flat", "odd [name] *"])
def test_a_folder_of_images_is_train(open_rows: Open, tmp_path: Path, name: str) -> None:
    rows = open_rows(write_images(tmp_path / name, range(3)))
    assert (rows.image_column, levels_of(rows)) == ("image", [0, 1, 2])


def test_class_folders_become_labels(open_rows: Open, tmp_path: Path) -> None:
    write_images(tmp_path / "animals" / "cat", range(2))
    write_images(tmp_path / "animals" / "dog", range(2, 5))
    rows = open_rows(tmp_path / "animals")
    assert levels_of(rows) == [0, 1, 2, 3, 4]
    assert rows.dataset.features["label"].names == ["cat", "dog"]
    assert rows.row(4)["label"] == 1


def test_split_folders_become_splits(open_rows: Open, tmp_path: Path) -> None:
    for split, levels in (("train", range(3)), ("test", range(3, 5))):
        write_images(tmp_path / "images" / split / "cat", levels)
    assert levels_of(open_rows(tmp_path / "images", "train")) == [0, 1, 2]
    assert levels_of(open_rows(tmp_path / "images", "test")) == [3, 4]


def test_an_image_added_to_a_folder_is_seen(open_rows: Open, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "flat", range(3))
    assert len(open_rows(folder)) == 3
    write_images(folder, range(4))
    assert len(open_rows(folder)) == 4


def test_a_folder_of_parquet_files_opens_with_its_splits(open_rows: Open, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    in_memory(4).to_parquet(tmp_path / "rows" / "train-00000.parquet")
    in_memory(2).to_parquet(tmp_path / "rows" / "test-00000.parquet")
    assert len(open_rows(tmp_path / "rows", "train")) == 4
    assert len(open_rows(tmp_path / "rows", "test")) == 2


def test_a_saved_dataset_opens_as_its_split(open_rows: Open, tmp_path: Path) -> None:
    in_memory().save_to_disk(tmp_path / "plain")
    assert levels_of(open_rows(tmp_path / "plain", "train")) == [0, 1, 2, 3]
    named = in_memory(2)
    named.info.splits = None
    named._split = datasets.NamedSplit("test")
    named.save_to_disk(tmp_path / "named")
    assert len(open_rows(tmp_path / "named", "test")) == 2


def test_a_saved_dataset_dict_opens_with_its_splits(open_rows: Open, tmp_path: Path) -> None:
    DatasetDict(train=in_memory(3), extra=in_memory(2)).save_to_disk(tmp_path / "saved")
    assert len(open_rows(tmp_path / "saved", "extra")) == 2
    with pytest.raises(DataError, match="its splits are: train, extra"):
        open_rows(tmp_path / "saved", "test")


def test_a_saved_format_does_not_change_the_rows(open_rows: Open, tmp_path: Path) -> None:
    in_memory(2, label=[3, 4]).with_format("torch").save_to_disk(tmp_path / "saved")
    row = open_rows(tmp_path / "saved").row(1)
    assert row["label"] == 4
    assert type(row["label"]) is int
    assert row["image"]["bytes"] == png(1)


def test_a_missing_path_is_said_to_be_missing(open_rows: Open, tmp_path: Path) -> None:
    for name in (tmp_path / "nothing", "./nothing", "nothing.parquet", "imagefolder"):
        with pytest.raises(DataError, match=f"no file or folder '{name}'; a dataset is a folder"):
            open_rows(name)


def test_a_name_that_cannot_be_reached_is_refused_in_one_line(open_rows: Open) -> None:
    with pytest.raises(DataError) as caught:
        open_rows("nobody/nothing")
    message = str(caught.value)
    assert message.startswith("'nobody/nothing' is not a file, a folder, or a dataset on the")
    assert "\n" not in message
    assert len(message) < 500


def test_files_that_are_not_a_dataset_are_refused(open_rows: Open, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(png(1))
    with pytest.raises(DataError, match=r"file of another kind than \.parquet, \.arrow, \.tar"):
        open_rows(tmp_path / "cat.png")


def test_folders_that_are_not_a_dataset_are_refused(open_rows: Open, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images, parquet files or other data"):
        open_rows(tmp_path / "empty")


def test_a_local_folder_has_no_revision(open_rows: Open, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no revision 'main'; leave revision out"):
        open_rows(write_images(tmp_path / "flat", range(2)), revision="main")


def test_a_subset_of_what_has_none_is_refused(open_rows: Open, tmp_path: Path) -> None:
    in_memory(1).to_parquet(tmp_path / "rows.parquet")
    in_memory(1).save_to_disk(tmp_path / "saved")
    for name in ("rows.parquet", "saved"):
        with pytest.raises(DataError, match="has no subset 'x'; leave subset out"):
            open_rows(tmp_path / name, subset="x")
    with pytest.raises(DataError, match="'x' not found"):
        open_rows(write_images(tmp_path / "flat", range(2)), subset="x")


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody/here", "a\0b", "", "  ", "https://a.b/c"])
def test_a_name_of_nothing_is_refused(open_rows: Open, name: str) -> None:
    with pytest.raises(DataError, match="no file or folder"):
        open_rows(name)


def test_a_dataset_without_rows_is_refused(open_rows: Open, tmp_path: Path) -> None:
    none = Dataset.from_dict({"image": []}, features=Features({"image": Value("binary")}))
    none.save_to_disk(tmp_path / "none")
    with pytest.raises(DataError, match="has no rows"):
        open_rows(tmp_path / "none")
    DatasetDict(train=in_memory(1), test=none).save_to_disk(tmp_path / "half")
    with pytest.raises(DataError, match="has no rows"):
        open_rows(tmp_path / "half", "test")


# Image columns


def two_image_columns() -> Dataset:
    return (
        in_memory(2)
        .add_column("mask", [{"bytes": png(9), "path": None}] * 2)
        .cast_column("mask", datasets.Image())
    )


def test_several_image_columns_need_a_choice(open_rows: Open, tmp_path: Path) -> None:
    folder = save(tmp_path, two_image_columns())
    with pytest.raises(DataError, match=r"several columns .* image_column: image \(Image\), mask"):
        open_rows(folder)
    assert levels_of(open_rows(folder, image_column="mask")) == [9, 9]


def test_no_image_column_lists_the_columns(open_rows: Open, tmp_path: Path) -> None:
    folder = save(tmp_path, Dataset.from_dict({"text": ["a"], "number": [1]}))
    with pytest.raises(DataError, match=r"no column .* text \(string\), number \(int64\)"):
        open_rows(folder)


def test_a_binary_column_is_taken_when_named(open_rows: Open, tmp_path: Path) -> None:
    features = Features({"jpg": Value("binary")})
    data = Dataset.from_dict({"jpg": [png(5), png(6)]}, features=features)
    rows = open_rows(save(tmp_path, data), image_column="jpg")
    assert levels_of(rows) == [5, 6]
    assert rows.image(0) == {"bytes": png(5), "path": None}


@pytest.mark.parametrize(
    ("column", "message"),
    [("caption", "'caption' of .* holds text, not images"), ("picture", "no column 'picture'")],
)
def test_a_column_without_images_is_refused(
    open_rows: Open, tmp_path: Path, column: str, message: str
) -> None:
    folder = save(tmp_path, in_memory(1, caption=["a"]))
    with pytest.raises(DataError, match=message + r".* image \(Image\), caption \(string\)"):
        open_rows(folder, image_column=column)


def test_corrupt_images_do_not_end_the_job_at_opening(open_rows: Open, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "flat", range(2))
    (folder / "002.png").write_bytes(b"no image")
    rows = open_rows(folder)
    assert len(rows) == 3
    assert rows.row(2)["image"]["path"].endswith("002.png")


def test_other_image_columns_are_left_undecoded(open_rows: Open, tmp_path: Path) -> None:
    bad = [{"bytes": b"no image", "path": None}] * 2
    data = in_memory(2).add_column("mask", bad).cast_column("mask", datasets.Image(mode="L"))
    rows = open_rows(save(tmp_path, data), image_column="image")
    assert rows.row(0)["mask"]["bytes"] == b"no image"


def test_a_row_that_is_not_there_is_refused(open_rows: Open) -> None:
    rows = open_rows("builtin:shapes?size=8&count=3")
    for row in (-1, 3):
        with pytest.raises(DataError, match=rf"row {row} of .* rows 0\.\.2"):
            rows.image(row)


def test_older_names_mean_the_same() -> None:
    assert ImageRows.picture is ImageRows.image
    assert PictureStream is ImageStream
