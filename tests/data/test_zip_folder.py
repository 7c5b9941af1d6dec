"""Folders of zip archives of images: every image of every archive is a row, where it lies."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from datasets import ClassLabel
from small_rows import Open, levels_of

from imagetok.data import ImageRows, open_stream
from imagetok.data.remote_file import relative_name
from imagetok.data.source import image_paths
from imagetok.errors import DataError
from tiny_data import png


def write(folder: Path, archives: dict[str, list[str]]) -> str:
    """Archives of images, whose levels count their members over all archives."""
    level = 0
    for name, members in archives.items():
        path = folder / f"{name}.zip"
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            for member in members:
                archive.writestr(member, png(level))
                level += 1
    return str(folder)


def labels_of(rows: ImageRows) -> list[str | None]:
    feature = rows.dataset.features["label"]
    assert isinstance(feature, ClassLabel)
    return [None if label is None else feature.int2str(label) for label in rows.dataset[:]["label"]]


def test_class_folders_in_archives_are_labels(open_rows: Open, tmp_path: Path) -> None:
    archives = {
        "b": ["pets/cat/2.png", "pets/cat/1.PNG", "cover.png"],
        "a": ["dog/1.png", "readme.txt", "__MACOSX/dog/._1.png", "dog/.hidden.png"],
    }
    name = write(tmp_path / "set", archives)
    rows = open_rows(name)
    assert levels_of(rows) == [3, 2, 1, 0]
    assert labels_of(rows) == ["dog", None, "cat", "cat"]
    assert rows.dataset[1]["image"]["path"] == f"zip://cover.png::{tmp_path / 'set' / 'b.zip'}"
    stream = open_stream(name, "train", cache_dir=tmp_path / "cache")
    read = [image for part in range(len(stream.segments)) for _, image in stream.read(part)]
    assert [stream.fetch(image, "")["bytes"] for image in read] == [png(n) for n in (3, 2, 1, 0)]
    assert labels_of(open_rows(name, labels="path")) == ["dog", None, "pets/cat", "pets/cat"]
    assert "label" not in open_rows(name, labels="none").dataset.features


def test_an_archive_is_a_dataset_by_itself(open_rows: Open, tmp_path: Path) -> None:
    name = write(tmp_path, {"test": ["cat/1.png", "dog/2.png"], "more": ["3.png"]})
    rows = open_rows(f"{name}/test.zip")
    assert (levels_of(rows), labels_of(rows)) == ([0, 1], ["cat", "dog"])
    stream = open_stream(f"{name}/test.zip", "train")
    assert [len(list(stream.read(part))) for part in range(len(stream.segments))] == [1, 1]
    write(tmp_path, {"both": ["train/1.png", "val/2.png"], "none": []})
    assert levels_of(open_rows(f"{name}/both.zip", "validation")) == [1]
    with pytest.raises(DataError, match="holds a zip archive, and no images in it"):
        open_rows(f"{name}/none.zip")


def test_names_of_members_and_archives_are_only_names(open_rows: Open, tmp_path: Path) -> None:
    members = ["../1.png", "/2.png", "a\nb.png", "a::/b.png", "a::b.png", "b#[1]*.png"]
    name = write(tmp_path / "set", {"x::y": members})
    rows = open_rows(name)
    assert levels_of(rows) == list(range(6))
    assert image_paths(rows.dataset, Path(name)) == members
    last = rows.dataset.with_format("arrow")[4]["image"][0].as_py()["path"]
    assert relative_name(last, Path(name)) == "x::y.zip/a::b.png"
    assert not (tmp_path / "1.png").exists()


@pytest.mark.parametrize(
    ("archives", "splits"),
    [
        ({"train": ["1.png"], "test": ["2.png"]}, {"train": [0], "test": [1]}),
        ({"train/a": ["1.png"], "val/a": ["2.png"]}, {"train": [0], "validation": [1]}),
        ({"pets": ["train/cat/1.png", "test/cat/2.png"]}, {"train": [0], "test": [1]}),
        ({"train": ["1.png"], "more": ["2.png"]}, {"train": [1, 0]}),
        ({"pets": ["train/1.png", "extra/2.png"]}, {"train": [1, 0]}),
    ],
)
def test_archives_or_the_folders_in_them_are_splits_only_where_all_are(
    open_rows: Open,
    tmp_path: Path,
    archives: dict[str, list[str]],
    splits: dict[str, list[int]],
) -> None:
    name = write(tmp_path / "set", archives)
    for split, levels in splits.items():
        assert levels_of(open_rows(name, split)) == levels


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"PK not a zip", r"bad\.zip' is damaged"), (None, "no images in it")],
)
def test_an_archive_without_images_is_refused(
    open_rows: Open, tmp_path: Path, content: bytes | None, words: str
) -> None:
    empty = io.BytesIO()
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "bad.zip").write_bytes(content or empty.getvalue())
    with pytest.raises(DataError, match=words):
        open_rows(str(tmp_path / "set"))


def archive(path: Path, members: list[tuple[str, bytes]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members:
            file.writestr(name, content)
    return str(path.parent)


@pytest.mark.parametrize(
    ("metadata", "content"),
    [
        ("metadata.csv", "file_name,caption\n0.png,zero\nx/1.png,one\n"),
        (
            "metadata.jsonl",
            '{"file_name": "0.png", "caption": "zero"}\n'
            '{"file_name": "x/1.png", "caption": "one"}\n',
        ),
    ],
)
def test_metadata_in_an_archive_adds_columns(
    open_rows: Open, tmp_path: Path, metadata: str, content: str
) -> None:
    """The fingerprints are those of version 1, so that its runs and jobs go on."""
    members = [("0.png", png(0)), ("x/1.png", png(1)), (metadata, content.encode())]
    rows = open_rows(archive(tmp_path / "set" / "a.zip", members))
    assert levels_of(rows) == [0, 1]
    assert rows.dataset[:]["caption"] == ["zero", "one"]
    assert rows.dataset.column_names == ["image", "caption"]


def test_sidecars_in_an_archive_are_columns_where_asked_for(
    open_rows: Open, tmp_path: Path
) -> None:
    members = [("0.png", png(0)), ("0.txt", b"zero"), ("0.json", b'{"score": 1.5}')]
    name = archive(tmp_path / "set" / "a.zip", members)
    rows = open_rows(name, sidecars=True)
    assert rows.dataset[0]["caption"] == "zero"
    assert rows.dataset[0]["score"] == 1.5
    assert open_rows(name).dataset.column_names == ["image"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_are_images_by_content_too_and_each_name_is_one_row(
    open_rows: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = [("img/1", png(1)), ("2.dat", png(2)), ("3.heic", b"x"), ("4.png", png(4))]
    name = archive(tmp_path / "set" / "a.zip", [*members, ("4.png", png(5)), ("notes.me", b"no")])
    assert levels_of(open_rows(name)) == [2, 5, 1]
    assert "1 HEIC image" in caplog.text
    assert "a.zip/notes.me" in caplog.text
