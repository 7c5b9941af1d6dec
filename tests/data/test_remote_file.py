"""Images in archives: what is read, what is refused, and which addresses are never opened."""

from __future__ import annotations

import multiprocessing
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image
from small_rows import packed

from imagetok.data import open_images
from imagetok.data import remote_file as module
from imagetok.data.remote_file import file_size, is_remote, read_file
from imagetok.errors import DataError, ImageValueError
from imagetok.images import Preprocessor
from tiny_data import png, write_split


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("zip://a/1.png::/data/train.zip", True),
        ("zip://1.png::relative.zip", True),
        ("gzip://1.png::/data/1.png.gz", True),
        ("zip://1.png::hf://datasets/user/name@c0ffee/train.zip", True),
        ("zip://1.png::zip://inner.zip::/data/outer.zip", True),
        ("hf://datasets/user/name@c0ffee/1.png", True),
        ("/data/1.png", False),
        ("/data/odd::name.png", False),
        ("zip://1.png", False),
        ("http://127.0.0.1/1.png", False),
        ("s3://bucket/1.png", False),
        ("file:///etc/passwd", False),
        ("zip://1.png::http://127.0.0.1/train.zip", False),
        ("simplecache::http://127.0.0.1/1.png", False),
        ("zip://1.png::http://127.0.0.1/a.zip::/data/b.zip", False),
        ("hf://datasets/a/b@c/1.png::http://127.0.0.1/", False),
    ],
)
def test_only_archives_and_the_hub_are_followed(path: str, expected: bool) -> None:
    assert is_remote(path) is expected


def test_the_address_that_a_row_holds_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def refuse(path: str, *_: object) -> None:
        raise AssertionError(f"'{path}' was opened")

    monkeypatch.setattr("datasets.utils.file_utils.xopen", refuse)
    row = {"bytes": None, "path": "http://127.0.0.1:9/1.png"}
    data = Dataset.from_dict({"image": [row]}, features=Features({"image": Image(decode=False)}))
    pq.write_table(data.data.table, tmp_path / "train.parquet")
    with pytest.raises(ImageValueError, match="URLs are never opened"):
        Preprocessor((8, 8))(open_images(str(tmp_path / "train.parquet"), "train").image(0))


def test_a_file_and_its_size_are_those_that_were_packed(tmp_path: Path) -> None:
    archive = packed(tmp_path / "odd [name].zip", {"a/1.png": png(1), "a/2 ü.png": png(2)})
    for name, content in (("a/1.png", png(1)), ("a/2 ü.png", png(2))):
        path = f"zip://{name}::{archive}"
        assert read_file(path) == content
        assert file_size(path) == len(content)


def test_a_changed_archive_is_read_anew(tmp_path: Path) -> None:
    path = f"zip://1.png::{packed(tmp_path / 'a.zip', {'1.png': png(1)})}"
    assert read_file(path) == png(1)
    packed(tmp_path / "new.zip", {"0.png": png(0), "1.png": png(7)}).replace(tmp_path / "a.zip")
    assert read_file(path) == png(7)


def test_the_list_of_an_archive_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = packed(tmp_path / "a.zip", {f"{n}.png": png(n) for n in range(50)})
    opened = []

    class Counted(zipfile.ZipFile):
        def __init__(self, path: str) -> None:
            opened.append(path)
            super().__init__(path)

    monkeypatch.setattr(module.zipfile, "ZipFile", Counted)
    for number in range(50):
        assert read_file(f"zip://{number}.png::{archive}") == png(number)
    assert opened == [str(archive)]


def is_right(path_and_number: tuple[str, int]) -> bool:
    path, number = path_and_number
    return read_file(path) == png(number)


@pytest.mark.parametrize("kind", ["threads", "forks"])
def test_many_readers_of_one_archive_each_get_their_file(tmp_path: Path, kind: str) -> None:
    """Forked processes share the position in a file that was open before."""
    archive = packed(tmp_path / "a.zip", {f"{n}.png": png(n) for n in range(200)})
    wanted = [(f"zip://{n}.png::{archive}", n) for n in range(200)]
    assert is_right(wanted[0])
    if kind == "threads":
        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(is_right, wanted))
    else:
        with multiprocessing.get_context("fork").Pool(4) as processes:
            assert all(processes.map(is_right, wanted, chunksize=1))


def test_faults_of_an_archive_are_of_one_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = packed(tmp_path / "a.zip", {"1.png": png(1), "big.png": bytes(10**6)})
    with pytest.raises(zipfile.BadZipFile, match="no such file"):
        read_file(f"zip://2.png::{archive}")
    with pytest.raises(zipfile.BadZipFile, match="no such file"):
        file_size(f"zip://2.png::{archive}")
    monkeypatch.setattr(module, "MAX_UNPACKED", 10**6 - 1)
    with pytest.raises(zipfile.BadZipFile, match="unpacked it has 1000000 bytes, more than 999999"):
        read_file(f"zip://big.png::{archive}")
    assert read_file(f"zip://1.png::{archive}") == png(1)
    content = bytearray(archive.read_bytes())
    place = content.index(b"1.png") + 20
    content[place] ^= 255
    archive.write_bytes(content)
    os.utime(archive, ns=(1, 1))
    with pytest.raises(zipfile.BadZipFile):
        read_file(f"zip://1.png::{archive}")
    archive.write_bytes(b"no archive")
    with pytest.raises(zipfile.BadZipFile):
        read_file(f"zip://1.png::{archive}")
    archive.unlink()
    with pytest.raises(FileNotFoundError):
        read_file(f"zip://1.png::{archive}")


def test_a_row_in_a_damaged_archive_is_named(tmp_path: Path) -> None:
    folder = write_split(tmp_path / "set", "zip", [range(3)])
    rows = open_images(str(folder), "train")
    (folder / "train-00000.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"^row 1 of '.*' \(train\), file 'zip://001\.png::"):
        rows.image(1)
