"""Folders of parquet and Arrow files: which file is of which split, whatever lies beside them."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from small_rows import Open, levels_of

from imagetok.data import DatasetRef, open_stream
from imagetok.data.data_fingerprint import content_fingerprint
from imagetok.data.table_folder import find_table_files
from imagetok.errors import DataError
from tiny_data import png, rows_of

LAYOUTS: dict[str, tuple[list[str], dict[str, list[int]]]] = {
    "hub": (
        ["data/train-00000-of-00002", "data/train-00001-of-00002", "data/test-00000-of-00001"],
        {"train": [0, 1, 2, 3], "test": [4, 5]},
    ),
    "plain": (["b", "a"], {"train": [2, 3, 0, 1]}),
    "folders": (
        ["train/0", "train/1", "validation/0"],
        {"train": [0, 1, 2, 3], "validation": [4, 5]},
    ),
    "words": (["my-train", "my_test"], {"train": [0, 1], "test": [2, 3]}),
    "short words": (["train", "val"], {"train": [0, 1], "validation": [2, 3]}),
    "deep": (["x/train/a/0", "x/test/a/0"], {"train": [0, 1], "test": [2, 3]}),
    "names of the Hub": (
        ["data/train_sft-00000-of-00001", "data/extra-00000-of-00001"],
        {"train_sft": [0, 1], "extra": [2, 3]},
    ),
    "upper case": (["Test"], {"train": [0, 1]}),
    "digits": (["train0", "train1", "test0"], {"train": [0, 1, 2, 3], "test": [4, 5]}),
}
"""Names of files with two rows each, and the rows of each split, as `datasets` reads them too."""


def write(folder: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        path = folder / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows_of([2 * number, 2 * number + 1]).to_parquet(path)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_are_read_in_order_whatever_lies_beside_them(
    open_rows: Open, tmp_path: Path, layout: str
) -> None:
    names, splits = LAYOUTS[layout]
    folder = write(tmp_path / "set", names)
    plain = load_dataset(str(folder), cache_dir=str(tmp_path / "plain"))
    for litter in ("train.txt", "test.sh", "evaluation.json", "train.csv", ".train.parquet.tmp"):
        (folder / litter).write_text("split,name\n1,2\n")
    for split, levels in splits.items():
        rows = open_rows(str(folder), split)
        assert rows.dataset[:]["label"] == levels
        undecoded = plain[split].cast_column("image", datasets.Image(decode=False))
        assert rows.fingerprint == content_fingerprint(undecoded, "image")
        stream = open_stream(str(folder), split, cache_dir=tmp_path / "cache")
        assert sum(1 for part in range(len(stream.segments)) for _ in stream.read(part)) == len(
            levels
        )


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["a.parquet", "train.parquet"], "'a.parquet' beside them, whose split no word"),
        (["train-test.parquet"], "names the splits test and train; rename it"),
        (["a.arrow", "b.parquet"], r"several kinds, \.arrow and \.parquet"),
    ],
)
def test_no_file_is_left_out_or_guessed_about(files: list[str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        find_table_files(DatasetRef("photos"), Path("/photos"), files)


def test_rows_that_a_cache_has_and_the_files_have_not_are_refused(
    open_rows: Open, tmp_path: Path
) -> None:
    file = tmp_path / "set" / "a.parquet"
    file.parent.mkdir()
    rows_of([1, 2]).to_parquet(file)
    status = file.stat()
    assert len(open_rows(str(file.parent), "train")) == 2
    rows_of([1, 2, 3]).to_parquet(file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a copy with its times has
    with pytest.raises(DataError, match="have 3 rows, and 2 were read from them"):
        open_rows(str(file.parent), "train")


def test_a_card_of_the_hub_says_which_files_are_which_split(
    open_rows: Open, tmp_path: Path
) -> None:
    folder = write(tmp_path / "set", ["a", "b"])
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: mine\n"
        "    path: b.parquet\n---\n"
    )
    assert open_rows(str(folder), "mine").dataset[:]["label"] == [2, 3]


def test_names_of_labels_may_stand_in_the_card_alone(open_rows: Open, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    pq.write_table(
        pa.table({"image": [{"bytes": png(0), "path": None}], "label": [1]}), folder / "0.parquet"
    )
    (folder / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n"
        "  - name: label\n    dtype:\n      class_label:\n        names:\n"
        "          '0': cat\n          '1': dog\n---\n"
    )
    features = open_rows(str(folder)).dataset.features
    assert features["label"] == datasets.ClassLabel(names=["cat", "dog"])


def test_what_lies_beside_files_of_rows_is_told(
    open_rows: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path / "set", ["a", "b"])
    (folder / "cover.png").write_bytes(png(9))
    (folder / "more.zip").write_bytes(b"")
    assert len(open_rows(str(folder))) == 4
    assert "skipped 1 image: cover.png; skipped 1 zip archive: more.zip" in caplog.text


@pytest.mark.parametrize(
    ("split_dirs", "splits"),
    [(True, {"en": [0, 1], "fr": [2, 3]}), (False, {"train": [0, 1, 2, 3]})],
)
def test_what_the_splits_are_can_be_said(
    open_rows: Open, tmp_path: Path, split_dirs: bool, splits: dict[str, list[int]]
) -> None:
    folder = write(tmp_path / "set", ["en/train", "fr/test"])
    for split, levels in splits.items():
        rows = open_rows(str(folder), split, split_dirs=split_dirs)
        assert rows.dataset[:]["label"] == levels


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_split_whose_files_have_no_rows_leaves_the_others_readable(
    open_rows: Open, tmp_path: Path, kind: str
) -> None:
    for split, levels in (("train", [1, 2]), ("test", [])):
        table = rows_of([0, 1, 2]).select(levels).with_format("arrow")[:]
        if kind == "parquet":
            pq.write_table(table, tmp_path / f"{split}.parquet")
        else:
            with pa.ipc.new_stream(tmp_path / f"{split}.arrow", table.schema) as writer:
                writer.write_table(table)
    assert levels_of(open_rows(str(tmp_path))) == [1, 2]
    with pytest.raises(DataError, match=r"split 'test' .* has no rows; .* train \(2 rows\)"):
        open_rows(str(tmp_path), "test")
    stream = open_stream(str(tmp_path), "test")
    assert [list(stream.read(part)) for part in range(len(stream.segments))] == [[]]
