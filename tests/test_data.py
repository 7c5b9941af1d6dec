"""From names to rows, and from rows to training and evaluation batches."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image
from torch.utils.data import DataLoader

from imagetok import builtin
from imagetok.builtin import shapes as shapes_module
from imagetok.data import (
    EpochOrder,
    ImageRows,
    SampleBatches,
    TrainingImages,
    TrainTransform,
    evaluation_batches,
    fixed_rows,
    open_images,
)
from imagetok.errors import DataError, InvalidValueError
from imagetok.images import Preprocessor

datasets.disable_progress_bars()

Open = Callable[..., ImageRows]


@pytest.fixture
def open_rows(tmp_path_factory: pytest.TempPathFactory) -> Open:
    """`open_images` with a cache of the test's own."""
    cache = tmp_path_factory.mktemp("cache")
    return lambda name, split="train", **options: open_images(
        str(name), split, cache_dir=cache, **options
    )


def png(level: int, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (level, 0, 255 - level)).save(buffer, format="PNG")
    return buffer.getvalue()


def write_pictures(folder: Path, levels: range) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for level in levels:
        (folder / f"{level:03d}.png").write_bytes(png(level))
    return folder


def in_memory(count: int = 4, **columns: list[Any]) -> Dataset:
    """Rows whose picture number n has the red level n."""
    pictures = [{"bytes": png(level), "path": None} for level in range(count)]
    kinds: dict[str, Any] = {"image": datasets.Image()}
    kinds |= {
        name: Value("int64" if isinstance(values[0], int) else "string")
        for name, values in columns.items()
    }
    return Dataset.from_dict({"image": pictures, **columns}, features=Features(kinds))


def levels_of(rows: ImageRows) -> list[int]:
    small = Preprocessor((2, 2))
    return [int(small(rows.image(row))[0, 0, 0, 0]) for row in range(len(rows))]


# Names and splits


def test_builtin_options_choose_size_and_count(open_rows: Open) -> None:
    rows = open_rows("builtin:shapes?size=24&count=5", "test")
    assert len(rows) == 5
    picture = Preprocessor((24, 24))(rows.image(2))[0].permute(1, 2, 0).numpy()
    drawn = builtin.render(builtin.scene(builtin.first_index("test") + 2), 24)
    np.testing.assert_array_equal(picture, drawn)


def test_digits_open_as_gray_pictures(open_rows: Open) -> None:
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
    folder = write_pictures(tmp_path / "pictures", range(10))
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
    folder = write_pictures(tmp_path / "pictures", range(2))
    with pytest.raises(DataError, match=r"its splits are: train \("):
        open_rows(folder, split)


@pytest.mark.parametrize("split", ["train[:0]", "train[5:3]", "train[9:]"])
def test_a_split_without_rows_is_refused(open_rows: Open, split: str) -> None:
    with pytest.raises(DataError, match=r"has no rows; its splits are: train \(4 rows\)"):
        open_rows("builtin:shapes?size=8&count=4", split)


# Files and folders


def test_a_folder_of_pictures_is_train(open_rows: Open, tmp_path: Path) -> None:
    rows = open_rows(write_pictures(tmp_path / "flat", range(3)))
    assert (rows.image_column, levels_of(rows)) == ("image", [0, 1, 2])


def test_class_folders_become_labels(open_rows: Open, tmp_path: Path) -> None:
    write_pictures(tmp_path / "animals" / "cat", range(2))
    write_pictures(tmp_path / "animals" / "dog", range(2, 5))
    rows = open_rows(tmp_path / "animals")
    assert levels_of(rows) == [0, 1, 2, 3, 4]
    assert rows.dataset.features["label"].names == ["cat", "dog"]
    assert rows.row(4)["label"] == 1


def test_split_folders_become_splits(open_rows: Open, tmp_path: Path) -> None:
    for split, levels in (("train", range(3)), ("test", range(3, 5))):
        write_pictures(tmp_path / "pictures" / split / "cat", levels)
    assert levels_of(open_rows(tmp_path / "pictures", "train")) == [0, 1, 2]
    assert levels_of(open_rows(tmp_path / "pictures", "test")) == [3, 4]


def test_a_picture_added_to_a_folder_is_seen(open_rows: Open, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "flat", range(3))
    assert len(open_rows(folder)) == 3
    write_pictures(folder, range(4))
    assert len(open_rows(folder)) == 4


@pytest.mark.parametrize("name", ["rows.parquet", "rows[1] *.parquet"])
def test_a_parquet_file_opens_whatever_its_name(open_rows: Open, tmp_path: Path, name: str) -> None:
    in_memory().to_parquet(tmp_path / name)
    assert levels_of(open_rows(tmp_path / name)) == [0, 1, 2, 3]


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
    assert message.startswith("'nobody/nothing' is no file or folder here, and no dataset on the")
    assert "\n" not in message
    assert len(message) < 500


def test_files_that_are_no_dataset_are_refused(open_rows: Open, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(png(1))
    with pytest.raises(DataError, match=r"file of another kind than \.parquet, \.arrow, \.tar"):
        open_rows(tmp_path / "cat.png")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match="cannot be read as a parquet file"):
        open_rows(tmp_path / "bad.parquet")


def test_folders_that_are_no_dataset_are_refused(open_rows: Open, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images, parquet files or other data"):
        open_rows(tmp_path / "empty")
    write_pictures(tmp_path / "odd[name]", range(2))
    with pytest.raises(DataError, match="rename the folder"):
        open_rows(tmp_path / "odd[name]")


def test_a_local_folder_has_no_revision(open_rows: Open, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no revision 'main'; leave revision out"):
        open_rows(write_pictures(tmp_path / "flat", range(2)), revision="main")


def test_a_subset_of_what_has_none_is_refused(open_rows: Open, tmp_path: Path) -> None:
    in_memory(1).to_parquet(tmp_path / "rows.parquet")
    in_memory(1).save_to_disk(tmp_path / "saved")
    for name in ("rows.parquet", "saved"):
        with pytest.raises(DataError, match="has no subset 'x'; leave subset out"):
            open_rows(tmp_path / name, subset="x")
    with pytest.raises(DataError, match="'x' not found"):
        open_rows(write_pictures(tmp_path / "flat", range(2)), subset="x")


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


def save(tmp_path: Path, dataset: Dataset) -> Path:
    dataset.save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


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
    [("caption", "'caption' of .* holds no images"), ("picture", "no column 'picture'")],
)
def test_a_column_without_pictures_is_refused(
    open_rows: Open, tmp_path: Path, column: str, message: str
) -> None:
    folder = save(tmp_path, in_memory(1, caption=["a"]))
    with pytest.raises(DataError, match=message + r".* image \(Image\), caption \(string\)"):
        open_rows(folder, image_column=column)


def test_corrupt_pictures_do_not_end_the_job_at_opening(open_rows: Open, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "flat", range(2))
    (folder / "002.png").write_bytes(b"no picture")
    rows = open_rows(folder)
    assert len(rows) == 3
    assert rows.row(2)["image"]["path"].endswith("002.png")


def test_other_image_columns_are_left_undecoded(open_rows: Open, tmp_path: Path) -> None:
    bad = [{"bytes": b"no picture", "path": None}] * 2
    data = in_memory(2).add_column("mask", bad).cast_column("mask", datasets.Image(mode="L"))
    rows = open_rows(save(tmp_path, data), image_column="image")
    assert rows.row(0)["mask"]["bytes"] == b"no picture"


def test_a_row_that_is_not_there_is_refused(open_rows: Open) -> None:
    rows = open_rows("builtin:shapes?size=8&count=3")
    for row in (-1, 3):
        with pytest.raises(DataError, match=rf"row {row} of .* rows 0\.\.2"):
            rows.image(row)


# Fingerprints


def test_the_fingerprint_of_a_builtin_is_what_fixes_its_rows(
    open_rows: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = open_rows("builtin:shapes?size=8&count=4")
    same = open_rows("builtin:shapes?count=6&size=8", "train[:4]")
    assert usual.fingerprint == same.fingerprint
    others = [
        open_rows("builtin:shapes?size=8&count=5"),
        open_rows("builtin:shapes?size=9&count=4"),
        open_rows("builtin:shapes?size=8&count=4", "test"),
        open_rows("builtin:shapes?size=8&count=4", "train[1:]"),
    ]
    monkeypatch.setattr(shapes_module, "DRAWING_VERSION", 99)
    monkeypatch.setattr("imagetok.data.source.DRAWING_VERSION", 99)
    others.append(open_rows("builtin:shapes?size=8&count=4"))
    assert len({rows.fingerprint for rows in [usual, *others]}) == 6


def test_equal_content_has_one_fingerprint_wherever_and_however_it_lies(
    open_rows: Open, tmp_path: Path
) -> None:
    folder = write_pictures(tmp_path / "here" / "cat", range(5)).parent
    write_pictures(folder / "dog", range(5, 9))
    copied = tmp_path / "there"
    shutil.copytree(folder, copied)
    for file in copied.rglob("*.png"):
        os.utime(file, (0, 0))
    first = open_rows(folder)
    assert open_rows(copied).fingerprint == first.fingerprint
    first.dataset.cast_column("image", datasets.Image()).to_parquet(tmp_path / "rows.parquet")
    assert open_rows(tmp_path / "rows.parquet").fingerprint == first.fingerprint


def test_every_change_of_content_changes_the_fingerprint(open_rows: Open, tmp_path: Path) -> None:
    plain = in_memory(4, label=[0, 1, 2, 3], caption=list("abcd"))
    feature = ClassLabel(names=["p", "q", "r", "s"])
    changed = [
        plain,
        plain.select([1, 0, 2, 3]),
        plain.select(range(3)),
        plain.rename_column("caption", "text"),
        plain.remove_columns("caption"),
        plain.cast_column("label", feature),
        plain.cast_column("label", ClassLabel(names=["p", "q", "r", "t"])),
        in_memory(4, label=[0, 1, 2, 4], caption=list("abcd")),
        in_memory(4, label=[0, 1, 2, 3], caption=list("abcx")),
        in_memory(5, label=[0, 1, 2, 3, 4], caption=list("abcde")).select([0, 1, 2, 4]),
    ]
    found = set()
    for number, data in enumerate(changed):
        data.save_to_disk(tmp_path / str(number))
        found.add(open_rows(tmp_path / str(number)).fingerprint)
    assert len(found) == len(changed)


def test_labels_and_file_sizes_of_every_row_count_in_a_long_dataset(
    open_rows: Open, tmp_path: Path
) -> None:
    """Row 7 is none of the rows whose pictures are read."""
    assert 7 not in fixed_rows(1000, 64)
    large = {"bytes": png(0, (90, 70)), "path": None}
    found = set()
    for number, (label, picture) in enumerate([(0, None), (1, None), (0, large)]):
        stored = [{"bytes": png(0), "path": None}] * 1000
        stored[7] = picture or stored[7]
        labels = [label if row == 7 else 0 for row in range(1000)]
        kinds = Features({"image": datasets.Image(), "label": Value("int64")})
        data = Dataset.from_dict({"image": stored, "label": labels}, features=kinds)
        data.save_to_disk(tmp_path / str(number))
        found.add(open_rows(tmp_path / str(number)).fingerprint)
    assert len(found) == 3


# Training transform

RAMP = np.zeros((60, 100, 3), dtype=np.uint8)
RAMP[..., 0] = np.arange(100)[None, :]
RAMP[..., 1] = np.arange(60)[:, None]
"""Red tells the column of a pixel, green its row."""


def test_without_a_crop_scale_training_sees_what_evaluation_sees() -> None:
    preprocessor = Preprocessor((16, 24))
    seen = TrainTransform(preprocessor)(RAMP, 5)
    assert torch.equal(seen, preprocessor(RAMP)[0])


def test_a_crop_scale_of_one_is_the_whole_of_a_picture_that_has_the_shape() -> None:
    preprocessor = Preprocessor((30, 50))
    seen = TrainTransform(preprocessor, crop_scale=(1.0, 1.0))(RAMP, 5)
    assert torch.equal(seen, preprocessor(RAMP)[0])


def test_a_crop_and_flip_are_functions_of_the_key() -> None:
    transform = TrainTransform(Preprocessor((8, 8)), crop_scale=(0.3, 0.9), flip=True)
    first = [transform(RAMP, key) for key in range(20)]
    torch.manual_seed(1)
    again = [transform(RAMP, key) for key in reversed(range(20))]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    assert len({tuple(pixels.flatten().tolist()) for pixels in first}) == 20


@pytest.mark.parametrize(("size", "largest"), [((20, 20), (60, 60)), ((10, 20), (50, 100))])
def test_crops_have_the_shape_of_the_image_and_a_side_in_the_range(
    size: tuple[int, int], largest: tuple[int, int]
) -> None:
    transform = TrainTransform(Preprocessor(size, resize="bilinear"), crop_scale=(0.5, 0.8))
    shares, tops, lefts = [], [], []
    for key in range(300):
        columns, rows, _ = transform(RAMP, key).double()
        across = float(columns[0, -1] - columns[0, 0]) * size[1] / (size[1] - 1)
        down = float(rows[-1, 0] - rows[0, 0]) * size[0] / (size[0] - 1)
        assert across / largest[1] == pytest.approx(down / largest[0], abs=0.06)
        shares.append(across / largest[1])
        tops.append(float(rows[0, 0]))
        lefts.append(float(columns[0, 0]))
    assert 0.46 < min(shares) < 0.55
    assert 0.75 < max(shares) < 0.84
    assert np.mean(shares) == pytest.approx(0.65, abs=0.03)
    assert (min(tops) < 4, min(lefts) < 4) == (True, True)
    assert max(lefts) > 100 - 0.5 * largest[1] - 10
    assert max(tops) > 60 - 0.5 * largest[0] - 10


def test_half_of_the_pictures_are_mirrored() -> None:
    preprocessor = Preprocessor((8, 8))
    plain = preprocessor(RAMP)[0]
    seen = [TrainTransform(preprocessor, flip=True)(RAMP, key) for key in range(400)]
    mirrored = sum(torch.equal(pixels, plain.flip(-1)) for pixels in seen)
    kept = sum(torch.equal(pixels, plain) for pixels in seen)
    assert mirrored + kept == 400
    assert 150 < mirrored < 250


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.8, 0.5), (0.5, 1.1)])
def test_a_crop_scale_that_is_no_range_is_refused(scale: tuple[float, float]) -> None:
    with pytest.raises(InvalidValueError, match="not a range"):
        TrainTransform(Preprocessor((8, 8)), crop_scale=scale)


# Order and batches


def test_every_row_comes_once_an_epoch_in_a_new_order() -> None:
    order = EpochOrder(50, seed=3)
    epochs = [[order.locate(epoch * 50 + place) for place in range(50)] for epoch in range(3)]
    for number, located in enumerate(epochs):
        assert {epoch for epoch, _ in located} == {number}
        assert sorted(row for _, row in located) == list(range(50))
    orders = {tuple(row for _, row in located) for located in epochs}
    assert len(orders | {tuple(range(50))}) == 4


def test_a_sample_is_the_same_row_whatever_was_asked_before() -> None:
    forward = EpochOrder(7, seed=1)
    backward = EpochOrder(7, seed=1)
    samples = range(70)
    assert [forward.locate(s) for s in samples] == [backward.locate(s) for s in reversed(samples)][
        ::-1
    ]


def test_another_seed_is_another_order() -> None:
    rows = {tuple(EpochOrder(20, seed).locate(s)[1] for s in range(20)) for seed in range(4)}
    assert len(rows) == 4


def test_an_order_without_rows_and_a_negative_sample_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="num_rows=0"):
        EpochOrder(0, 0)
    with pytest.raises(InvalidValueError, match="got -1"):
        EpochOrder(3, 0).locate(-1)


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (2, 1), (1, 3), (2, 3), (4, 3)])
def test_ranks_and_micro_batches_divide_each_step_in_order(
    world_size: int, accumulation: int
) -> None:
    ranks = [
        list(SampleBatches(2, 3, 24, rank, world_size, accumulation)) for rank in range(world_size)
    ]
    for step in range(3):
        taken = [
            sample
            for batches in ranks
            for batch in batches[step * accumulation : (step + 1) * accumulation]
            for sample in batch
        ]
        assert taken == list(range((step + 2) * 24, (step + 3) * 24))
    sizes = {len(batch) for batches in ranks for batch in batches}
    assert sizes == {24 // (world_size * accumulation)}


def test_batches_from_a_later_step_are_those_of_an_uninterrupted_run() -> None:
    whole = list(SampleBatches(0, 5, 8, 1, 2, 2))
    assert list(SampleBatches(2, 3, 8, 1, 2, 2)) == whole[4:]
    assert len(SampleBatches(2, 3, 8, 1, 2, 2)) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 10, 0, 4, 1), "multiple of 4"),
        ((0, 1, 12, 0, 2, 4), "multiple of 8"),
        ((0, 1, 8, 2, 2, 1), "rank 2"),
        ((0, 1, 8, -1, 2, 1), "rank -1"),
        ((-1, 1, 8, 0, 1, 1), "at least 0"),
        ((0, 1, 0, 0, 1, 1), "at least 1"),
    ],
)
def test_batches_that_do_not_divide_are_refused(
    arguments: tuple[int, int, int, int, int, int], message: str
) -> None:
    with pytest.raises(InvalidValueError, match=message):
        SampleBatches(*arguments)


def training_images(rows: ImageRows, seed: int = 0, flip: bool = True) -> TrainingImages:
    transform = TrainTransform(Preprocessor((8, 8)), crop_scale=(0.4, 0.9), flip=flip)
    return TrainingImages(rows, transform, EpochOrder(len(rows), seed), seed)


def test_a_loader_gives_the_samples_of_the_steps_over_the_epoch_s_end(open_rows: Open) -> None:
    images = training_images(open_rows("builtin:shapes?size=16&count=5"))
    loader = DataLoader(images, batch_sampler=SampleBatches(1, 3, 4, 0, 1, 2))
    batches = list(loader)
    assert [tuple(batch["pixels"].shape) for batch in batches] == [(2, 3, 8, 8)] * 6
    assert batches[0]["pixels"].dtype == torch.uint8
    located = [
        (int(epoch), int(row))
        for batch in batches
        for epoch, row in zip(batch["epoch"], batch["row"], strict=True)
    ]
    assert located == [images.order.locate(sample) for sample in range(4, 16)]


def test_a_row_is_augmented_anew_in_every_epoch_and_by_every_seed(open_rows: Open) -> None:
    rows = open_rows("builtin:shapes?size=16&count=1")
    pixels = [training_images(rows, seed)[epoch]["pixels"] for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(each.flatten().tolist()) for each in pixels}) == 4


def test_a_sample_survives_the_way_to_a_worker(open_rows: Open) -> None:
    images = training_images(open_rows("builtin:shapes?size=16&count=6"))
    there = pickle.loads(pickle.dumps(images))
    for sample in (11, 2, 7):
        assert torch.equal(there[sample]["pixels"], images[sample]["pixels"])
        assert there[sample]["row"] == images[sample]["row"]


def test_an_order_for_other_rows_is_refused(open_rows: Open) -> None:
    rows = open_rows("builtin:shapes?size=8&count=3")
    with pytest.raises(InvalidValueError, match=r"for 4 rows, .* has 3"):
        TrainingImages(rows, TrainTransform(Preprocessor((8, 8))), EpochOrder(4, 0), 0)


def test_an_unreadable_picture_is_named_with_row_file_and_reason(
    open_rows: Open, tmp_path: Path
) -> None:
    folder = write_pictures(tmp_path / "flat", range(1))
    (folder / "000.png").write_bytes(png(3)[:50])
    rows = open_rows(folder)
    expected = r"row 0 of '.*flat' \(train\).* cannot be read: .*000\.png' .* truncated or damaged"
    with pytest.raises(DataError, match=expected):
        training_images(rows)[0]
    with pytest.raises(DataError, match=expected):
        list(evaluation_batches(rows, Preprocessor((8, 8)), 2, [0]))


def test_an_unreadable_picture_kept_as_bytes_is_named_by_its_path_too(
    open_rows: Open, tmp_path: Path
) -> None:
    data = Dataset.from_dict(
        {"image": [{"bytes": b"no picture", "path": "cat.jpg"}]},
        features=Features({"image": datasets.Image()}),
    )
    with pytest.raises(DataError, match=r"row 0 of .*, file 'cat\.jpg' cannot be read: "):
        training_images(open_rows(save(tmp_path, data)))[0]


def test_a_null_picture_is_named(open_rows: Open, tmp_path: Path) -> None:
    data = Dataset.from_dict({"image": [None]}, features=Features({"image": datasets.Image()}))
    with pytest.raises(DataError, match=r"row 0 of .* has no image"):
        training_images(open_rows(save(tmp_path, data)))[0]


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


def test_fixed_rows_are_spread_evenly_and_never_repeat() -> None:
    assert fixed_rows(1000, 4) == [0, 250, 500, 750]
    assert fixed_rows(3, 8) == [0, 1, 2]
    for num_rows, count in ((17, 5), (100, 99), (64, 64)):
        gaps = np.diff(fixed_rows(num_rows, count))
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1
