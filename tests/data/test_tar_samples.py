"""Tar archives of samples: every archive and every image is a row, and what is kept is kept."""

from __future__ import annotations

import io
import json
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from small_rows import Open, levels_of

from imagetok.data import DatasetRef, open_images, open_stream, tar_samples
from imagetok.data.data_fingerprint import content_fingerprint
from imagetok.errors import DataError
from imagetok.images import Preprocessor
from imagetok.tokenizing.job_input import open_input
from tiny_data import png, write_tar


def sample(key: str, level: int, ending: str = "png", **others: Any) -> dict[str, bytes]:
    """The files of a sample; further fields are JSON."""
    files = {f"{key}.{ending}": png(level)}
    return files | {f"{key}.{name}": json.dumps(value).encode() for name, value in others.items()}


def write(folder: Path, archives: dict[str, list[dict[str, bytes]]]) -> str:
    for name, samples in archives.items():
        path = folder / f"{name}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tar(path, {file: data for each in samples for file, data in each.items()})
    return str(folder)


def kept(
    name: str, tmp_path: Path, column: str, streaming: bool, split: str = "train"
) -> list[Any]:
    ref = DatasetRef(name, split, streaming=streaming)
    rows = open_input(ref, keep=[column], rows_per_unit=8, cache_dir=str(tmp_path / "cache"))
    chunks = [chunk for unit in range(rows.num_units) for chunk in rows.read(unit)]
    return [value for chunk in chunks for value in chunk.kept.column(column).to_pylist()]


@pytest.mark.parametrize(
    "samples",
    [
        [sample("1", 0, json={"w": 1}, txt="a"), sample("2", 1, json={"w": 2}, txt="b")],
        [sample("only", 3, cls=5)],
        [sample("a/1.x", 0, "JPG"), sample("a/2.x", 1, "JPG")],
    ],
)
def test_what_datasets_reads_rightly_is_read_the_same(
    open_rows: Open, tmp_path: Path, samples: list[dict[str, bytes]]
) -> None:
    name = write(tmp_path / "set", {"0": samples})
    plain = load_dataset(name, split="train", cache_dir=str(tmp_path / "plain"))
    rows = open_rows(name)
    assert rows.dataset.column_names == plain.column_names
    undecoded = plain.cast_column(rows.image_column, datasets.Image(decode=False))
    assert rows.dataset.features == undecoded.features
    assert rows.fingerprint == content_fingerprint(undecoded, rows.image_column)


def test_images_of_all_endings_in_all_archives_are_rows(open_rows: Open, tmp_path: Path) -> None:
    """One archive of jpg beside one of png, and a late ending that no other sample has."""
    archives = {
        "cc3m-train-0000": [sample(str(level), level, "jpg") for level in range(30)],
        "cc3m-0001": [sample(str(level), level, "png") for level in range(30, 60)],
    }
    archives["cc3m-0001"].append(sample("60", 60, "webp"))
    name = write(tmp_path / "set", archives)
    expected = [*range(30, 61), *range(30)]
    rows = open_rows(name)
    assert rows.image_column == "image"
    assert levels_of(rows) == expected
    stream = open_stream(name, "train", cache_dir=tmp_path / "cache")
    images = [image for part in range(2) for _, image in stream.read(part)]
    assert [image and image["bytes"] for image in images] == [png(level) for level in expected]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-0", "test-0"], {"train": [0], "test": [1]}),
        (["train/a", "val/a"], {"train": [0], "validation": [1]}),
        (["train-0", "more"], {"train": [1, 0]}),
        (["latest", "contest"], {"train": [1, 0]}),
        (["train-test", "train"], {"train": [0, 1]}),
    ],
)
def test_archives_are_splits_only_where_each_names_one(
    open_rows: Open, tmp_path: Path, names: list[str], splits: dict[str, list[int]]
) -> None:
    name = write(tmp_path / "set", {each: [sample("x", n)] for n, each in enumerate(names)})
    for split, levels in splits.items():
        assert levels_of(open_rows(name, split)) == levels


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([{"w": 1}] * 6 + [{"w": 1.5}], [{"w": 1}] * 6 + [{"w": 1.5}]),
        (
            [{"w": 1}] * 25 + [{"late": "x"}],
            [{"w": 1, "late": None}] * 25 + [{"w": None, "late": "x"}],
        ),
        ([{"w": 1}, {"w": "a"}, {}], [{"w": "1"}, {"w": '"a"'}, {"w": None}]),
        ([{}, {}], ["{}", "{}"]),
        ([[1], [2.5, None], []], [[1], [2.5, None], []]),
        ([1, [1]], ["1", "[1]"]),
        ([2**63, 7], ["9223372036854775808", "7"]),
        ([None, True], [None, True]),
    ],
)
def test_json_is_typed_by_all_samples(
    tmp_path: Path, streaming: bool, values: list[Any], expected: list[Any]
) -> None:
    samples = [sample(str(number), number, json=value) for number, value in enumerate(values)]
    archives = {"0": samples[:3]} | ({"1": samples[3:]} if samples[3:] else {})
    name = write(tmp_path / "set", archives)
    assert kept(name, tmp_path, "json", streaming) == expected


@pytest.mark.parametrize("streaming", [False, True])
def test_a_damaged_archive_is_named_with_the_member(
    open_rows: Open, tmp_path: Path, streaming: bool
) -> None:
    name = write(tmp_path / "set", {"0": [sample(str(n), n) for n in range(30)]})
    path = tmp_path / "set" / "0.tar"
    path.write_bytes(path.read_bytes()[: 29 * 1024 + 600])

    def read() -> object:
        if streaming:
            return list(open_stream(name, "train", cache_dir=tmp_path / "cache").read(0))
        return open_rows(name)

    with pytest.raises(DataError, match=r"0\.tar' is damaged at '\d+\.png'"):
        read()


def test_names_of_members_are_only_names(open_rows: Open, tmp_path: Path) -> None:
    keys = ["../../up", "/etc/passwd", "a::b", "line\nbreak", "hf://x@y"]
    name = write(tmp_path / "set", {"0": [sample(key, n) for n, key in enumerate(keys)]})
    rows = open_rows(name)
    assert levels_of(rows) == list(range(5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_what_is_left_out_of_archives_is_told(
    open_rows: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {"LICENSE": b"free", "__cover.png": png(0), "1.png": png(1), ".hidden.png": png(2)}
    path = tmp_path / "a.tar"
    write_tar(path, {**files, "._1.png": b"", "__cover": b"litter"})
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("2.png")
        link.type, link.linkname = tarfile.LNKTYPE, "1.png"
        archive.addfile(link)
    assert levels_of(open_rows(str(path))) == [0, 1]
    (told,) = [message for message in caplog.messages if "skipped" in message]
    assert "skipped 2 files that are not images: a.tar/LICENSE, a.tar/__cover;" in told
    assert (
        "skipped 1 hidden image: a.tar/.hidden.png; skipped 1 link or device: a.tar/2.png" in told
    )


def test_a_packed_archive_is_a_dataset_by_itself(open_rows: Open, tmp_path: Path) -> None:
    path = tmp_path / "test.TGZ"
    with tarfile.open(path, "w:gz") as archive:
        for level in range(2):
            info = tarfile.TarInfo(f"{level}.png")
            info.size = len(png(level))
            archive.addfile(info, io.BytesIO(png(level)))
    assert levels_of(open_rows(str(path))) == [0, 1]


def test_archives_without_samples_are_refused(open_rows: Open, tmp_path: Path) -> None:
    name = write(tmp_path / "set", {"0": [], "1": [{"README": b""}]})
    for read in (open_rows, partial(open_stream, cache_dir=tmp_path / "cache")):
        with pytest.raises(DataError, match=r"0\.tar' and the archives beside it hold no samples"):
            read(name, split="train")


def test_a_damaged_sample_is_named(open_rows: Open, tmp_path: Path) -> None:
    samples = [sample("1", 1, json={}), {"2.png": png(2), "2.json": b"{"}]
    with pytest.raises(DataError, match=r"0\.tar' is damaged at what follows the sample '1'"):
        open_rows(write(tmp_path / "set", {"0": samples}))


def test_each_archive_is_looked_through_once_however_many_units_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives = {str(n): [sample(str(n), n, json={"w": n})] for n in range(6)}
    name = write(tmp_path / "set", archives)
    opened: list[str] = []
    real = tar_samples._members

    def count(path: str, *rest: Any) -> Any:
        opened.append(path)
        return real(path, *rest)

    monkeypatch.setattr(tar_samples, "_members", count)
    assert kept(name, tmp_path, "json", streaming=True) == [{"w": n} for n in range(6)]
    # For the names of the columns, for their types, and to read it.
    assert len(opened) <= 3 * 6


NAMES = st.builds(
    lambda folder, stem, ending: f"{folder}{stem}{ending}",
    st.sampled_from(["", "train/", "cats/test/", "a::b/"]),
    st.sampled_from(["1", "test", "crash-test", "steam train", "x y"]),
    st.sampled_from([".png", ".JPG", ".Webp", ""]),
)


@settings(max_examples=20, deadline=None)
@given(
    members=st.lists(NAMES, min_size=1, max_size=8, unique_by=lambda name: name.partition(".")[0]),
    archives=st.sampled_from(
        [
            {"0": "train"},
            {"cc3m-train-0": "train", "cc3m-1": "train"},
            {"a": "train", "x/b": "train", "x/c": "train"},
            {"train-0": "train", "val/a": "validation", "val/b": "validation"},
        ]
    ),
)
def test_every_image_of_every_archive_is_a_row_whatever_the_names(
    tmp_path_factory: pytest.TempPathFactory, members: list[str], archives: dict[str, str]
) -> None:
    """In the order of archives and members, with what lies beside it; streamed or not."""
    folder = tmp_path_factory.mktemp("set")
    shares = {name: range(n, len(members), len(archives)) for n, name in enumerate(archives)}
    for name, share in shares.items():
        (folder / name).parent.mkdir(exist_ok=True)
        files: dict[str, bytes] = {}
        for level in share:
            key = members[level].partition(".")[0]
            files |= {members[level]: png(level), f"{key}.cls": str(level).encode()}
        write_tar(folder / f"{name}.tar", files)
    cache = tmp_path_factory.mktemp("cache")
    for split in sorted(set(archives.values())):
        held = sorted(name for name in archives if archives[name] == split and shares[name])
        expected = [level for name in held for level in shares[name]]
        if expected:
            assert levels_of(open_images(str(folder), split)) == expected
        else:
            with pytest.raises(DataError, match=f"split '{split}' .* has no rows"):
                open_images(str(folder), split)
        stream = open_stream(str(folder), split)
        images = [image for part in range(len(stream.segments)) for _, image in stream.read(part)]
        small = Preprocessor((2, 2))
        assert [int(small(stream.fetch(image, ""))[0, 0, 0, 0]) for image in images] == expected
        for streaming in (False, True) if expected else (True,):
            assert kept(str(folder), cache, "cls", streaming, split) == expected
