"""Fingerprints: equal for equal content wherever it lies, other for other content."""

from __future__ import annotations

import os
import shutil
from itertools import pairwise
from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from small_rows import Open, in_memory, packed, write_images

from imagetok.builtin import shapes as shapes_module
from imagetok.data import (
    fixed_rows,
    open_images,
    open_stream,
)
from tiny_data import KINDS, png, write_split

PARTS = (range(4), range(4, 7), range(7, 12))


# Rows


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
    folder = write_images(tmp_path / "here" / "cat", range(5)).parent
    write_images(folder / "dog", range(5, 9))
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
    """Row 7 is none of the rows whose images are read."""
    assert 7 not in fixed_rows(1000, 64)
    large = {"bytes": png(0, (90, 70)), "path": None}
    found = set()
    for number, (label, image) in enumerate([(0, None), (1, None), (0, large)]):
        stored = [{"bytes": png(0), "path": None}] * 1000
        stored[7] = image or stored[7]
        labels = [label if row == 7 else 0 for row in range(1000)]
        kinds = Features({"image": datasets.Image(), "label": Value("int64")})
        data = Dataset.from_dict({"image": stored, "label": labels}, features=kinds)
        data.save_to_disk(tmp_path / str(number))
        found.add(open_rows(tmp_path / str(number)).fingerprint)
    assert len(found) == 3


@pytest.mark.parametrize("changed", [0, 1])
def test_a_changed_image_in_an_archive_changes_the_fingerprint(
    tmp_path: Path, changed: int
) -> None:
    """Image 0 is read for it, and the size of image 1 is taken."""
    prints = set()
    for number, size in enumerate([(8, 8), (24, 24), (8, 8)]):
        contents = {f"{n:03d}.png": png(n, size if n == changed else (8, 8)) for n in range(200)}
        (tmp_path / str(number)).mkdir()
        packed(tmp_path / str(number) / "train.zip", contents)
        prints.add(open_images(str(tmp_path / str(number)), "train").fingerprint)
    assert len(prints) == 2


# Files of a stream


@pytest.mark.parametrize("kind", KINDS)
def test_copies_have_one_fingerprint_wherever_they_lie(
    tmp_path: Path, cache: Path, kind: str
) -> None:
    folder = write_split(tmp_path / "here" / "set", kind, PARTS)
    shutil.copytree(folder, tmp_path / "there")
    for file in (tmp_path / "there").rglob("*"):
        os.utime(file, (0, 0))
    found = {
        open_stream(str(place), "train", cache_dir=cache).fingerprint
        for place in (folder, tmp_path / "there")
    }
    assert len(found) == 1


def test_other_files_have_another_fingerprint(tmp_path: Path, cache: Path) -> None:
    found = set()
    for number, parts in enumerate([PARTS, PARTS[:2], (*PARTS[:2], range(7, 13)), PARTS[::-1]]):
        folder = write_split(tmp_path / str(number), "parquet", parts)
        found.add(open_stream(str(folder), "train", cache_dir=cache).fingerprint)
    file = tmp_path / "0" / "train-00001.parquet"
    changed = bytearray(file.read_bytes())
    changed[60] ^= 1
    file.write_bytes(changed)
    found.add(open_stream(str(tmp_path / "0"), "train", cache_dir=cache).fingerprint)
    assert len(found) == 5


def test_the_fingerprint_of_a_dataset_on_the_hub_is_that_of_its_commit() -> None:
    from imagetok.data.data_fingerprint import files_fingerprint

    names = [
        ["hf://datasets/user/name@c0ffee/train-0.parquet"],
        ["hf://datasets/user/renamed@c0ffee/train-0.parquet"],
        ["hf://datasets/user/name@decade/train-0.parquet"],
        ["hf://datasets/user/name@c0ffee/train-1.parquet"],
    ]
    found = [files_fingerprint(files, None, "image") for files in names]
    assert found[0] == found[1]
    assert len(set(found)) == 3
    assert all(first != other for first, other in pairwise(found[1:]))
