"""Datasets that are read file by file: what opens, what is read, and what identifies it."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, Features, Value

from imagetok.data import ImageStream, open_images, open_stream
from imagetok.data.image_stream import MAX_SEGMENTS, ImageFiles, ReadyRows, stream_segments
from imagetok.errors import DataError
from imagetok.images import Preprocessor
from tiny_data import KINDS, png, rows_of, write_split, write_tar

datasets.disable_progress_bars()

PARTS = (range(4), range(4, 7), range(7, 12))


def read_all(stream: ImageStream) -> Iterator[tuple[int, int, Any]]:
    for segment in range(len(stream.segments)):
        for row, image in stream.read(segment):
            yield segment, row, stream.fetch(image, "a row")


def levels_in(stream: ImageStream) -> list[int]:
    small = Preprocessor((8, 8))
    return [int(small(image)[0, 0, 0, 0]) for _, _, image in read_all(stream)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_gives_the_same_rows_in_a_stream_and_row_by_row(
    tmp_path: Path, cache: Path, kind: str
) -> None:
    folder = write_split(tmp_path / "set", kind, PARTS)
    stream = open_stream(str(folder), "train", cache_dir=cache)
    assert levels_in(stream) == list(range(12))
    rows = open_images(str(folder), "train", cache_dir=cache)
    small = Preprocessor((8, 8))
    assert [int(small(rows.image(row))[0, 0, 0, 0]) for row in range(len(rows))] == list(range(12))


@pytest.mark.parametrize("kind", ["parquet", "arrow", "tar"])
def test_one_file_opens_in_a_stream_and_row_by_row(tmp_path: Path, cache: Path, kind: str) -> None:
    form = "webdataset" if kind == "tar" else kind
    file = write_split(tmp_path / "set", form, [range(5)]) / f"train-00000.{kind}"
    file = file.rename(file.with_name(f"odd [name] *.{kind}"))
    stream = open_stream(str(file), "train", cache_dir=cache)
    assert (len(stream.segments), levels_in(stream)) == (1, list(range(5)))
    assert len(open_images(str(file), "train", cache_dir=cache)) == 5


@pytest.mark.parametrize("kind", ["parquet", "arrow", "tar"])
def test_a_file_that_is_none_of_its_kind_is_refused_in_one_line(
    tmp_path: Path, cache: Path, kind: str
) -> None:
    bad = tmp_path / f"bad.{kind}"
    bad.write_bytes(b"PAR1 and then nothing")
    for opened in (open_images, open_stream):
        with pytest.raises(DataError, match="cannot be read as a") as caught:
            opened(str(bad), "train", cache_dir=cache)
        assert "\n" not in str(caught.value)


def test_the_image_column_of_a_tar_may_be_named_after_any_image_format(
    tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "set").mkdir()
    samples = {
        f"{n}.{end}": data for n in range(3) for end, data in (("jpg", png(n)), ("txt", b"a"))
    }
    write_tar(tmp_path / "set" / "train-0.tar", samples)
    assert levels_in(open_stream(str(tmp_path / "set"), "train", cache_dir=cache)) == [0, 1, 2]


def test_files_are_units_and_their_rows_are_numbered(tmp_path: Path, cache: Path) -> None:
    stream = open_stream(
        str(write_split(tmp_path / "set", "parquet", PARTS)), "train", cache_dir=cache
    )
    assert len(stream.segments) == 3
    assert [row for row, _ in stream.read(2)] == [0, 1, 2, 3, 4]
    whole = list(stream.read(2))
    for start in range(7):
        assert list(stream.read(2, start)) == whole[start:]
    described = stream.describe(1, 2)
    assert described.startswith("row 2 of file 'train-00001.parquet' of '")


@pytest.mark.parametrize("kind", ["pictures", "metadata", "saved"])
def test_images_without_files_of_rows_are_units_of_their_own(
    tmp_path: Path, cache: Path, kind: str
) -> None:
    folder = write_split(tmp_path / "set", kind, PARTS)
    stream = open_stream(str(folder), "train", cache_dir=cache)
    assert len(stream.segments) == 12
    assert stream.describe(7, 0) == f"row 7 of '{folder}' (train)"


@pytest.mark.parametrize("count", [MAX_SEGMENTS, MAX_SEGMENTS + 1, 3 * MAX_SEGMENTS - 1])
def test_many_images_are_grouped_into_units_that_cover_all(count: int) -> None:
    segments = ImageFiles([f"{number}.png" for number in range(count)])
    assert len(segments) == MAX_SEGMENTS
    read = [list(segments.read(segment, 0)) for segment in range(MAX_SEGMENTS)]
    paths = [image["path"] for images in read for _, image in images if image]
    assert paths == list(segments.paths)
    least = count // MAX_SEGMENTS
    assert {len(images) for images in read} <= {least, least + 1}
    assert list(segments.read(MAX_SEGMENTS - 1, 1)) == read[-1][1:]


def test_many_files_of_rows_are_grouped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagetok.data.image_stream.MAX_SEGMENTS", 3)
    rows = rows_of(range(10)).cast_column("image", datasets.Image(decode=False))
    dataset = rows.select_columns(["image"]).to_iterable_dataset(num_shards=5)
    segments = stream_segments(dataset, "image", None, [f"{n}.parquet" for n in range(5)])
    assert len(segments) == 3
    images = [image for segment in range(3) for _, image in segments.read(segment, 0)]
    assert [image["path"] for image in images if image] == [
        f"{level:03d}.png" for level in range(10)
    ]
    assert segments.describe(1, 2) == "row 2 of part 2 of 3"


def test_only_the_image_column_is_read(tmp_path: Path, cache: Path) -> None:
    """A column whose type `datasets` would have to convert is not even looked at."""
    folder = write_split(tmp_path / "set", "parquet", PARTS)
    stream = open_stream(str(folder), "train", cache_dir=cache)
    assert stream.segments.dataset.column_names == ["image"]  # type: ignore[attr-defined]
    assert isinstance(next(read_all(stream))[2], dict)


def test_a_binary_column_is_streamed_when_named(tmp_path: Path, cache: Path) -> None:
    features = Features({"jpeg": Value("binary"), "text": Value("string")})
    data = Dataset.from_dict({"jpeg": [png(5), None], "text": ["a", "b"]}, features=features)
    (tmp_path / "set").mkdir()
    data.to_parquet(tmp_path / "set" / "train.parquet")
    stream = open_stream(str(tmp_path / "set"), "train", image_column="jpeg", cache_dir=cache)
    assert list(stream.read(0)) == [(0, {"bytes": png(5), "path": None}), (1, None)]
    with pytest.raises(DataError, match="row 1 has no image: its value is null"):
        stream.fetch(None, "row 1")
    with pytest.raises(DataError, match=r"no column .* jpeg \(binary\), text \(string\)"):
        open_stream(str(tmp_path / "set"), "train", cache_dir=cache)


def test_builtin_and_saved_datasets_stream_with_slices(tmp_path: Path, cache: Path) -> None:
    saved = write_split(tmp_path / "set", "saved", PARTS)
    assert levels_in(open_stream(str(saved), "train[2:5]", cache_dir=cache)) == [2, 3, 4]
    drawn = open_stream("builtin:shapes?size=8&count=5", "train[:3]", cache_dir=cache)
    assert isinstance(drawn.segments, ReadyRows)
    assert len(drawn.segments) == 3


@pytest.mark.parametrize("split", ["train[:3]", "train+test", "test[50%:]", "validation"])
def test_slices_of_a_stream_are_refused_with_the_remedy(
    tmp_path: Path, cache: Path, split: str
) -> None:
    folder = write_split(tmp_path / "set", "parquet", PARTS)
    write_split(folder, "parquet", [range(3)], "test")
    with pytest.raises(
        DataError, match=r"streamed; its splits are: train, test .*data\.streaming=false"
    ):
        open_stream(str(folder), split, cache_dir=cache)


def test_what_is_not_a_dataset_is_refused_like_row_by_row(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images, parquet files or other data"):
        open_stream(str(tmp_path / "empty"), "train", cache_dir=cache)
    with pytest.raises(DataError, match="no file or folder"):
        open_stream(str(tmp_path / "nothing"), "train", cache_dir=cache)
    with pytest.raises(DataError, match="a dataset on the Hub that can be read"):
        open_stream("nobody/nothing", "train", cache_dir=cache)


def test_a_file_that_breaks_off_is_named(tmp_path: Path, cache: Path) -> None:
    folder = write_split(tmp_path / "set", "webdataset", PARTS)
    stream = open_stream(str(folder), "train", cache_dir=cache)
    file = folder / "train-00001.tar"
    file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(DataError, match=r"row 0 of file 'train-00001\.tar' .* cannot be read"):
        list(stream.read(1))


def test_images_in_an_archive_are_fetched_and_named_where_they_cannot_be(
    tmp_path: Path, cache: Path
) -> None:
    stream = open_stream(str(write_split(tmp_path / "set", "zip", PARTS)), "train", cache_dir=cache)
    _, image = next(iter(stream.read(0)))
    assert image is not None
    assert stream.fetch(image, "row 1") == {"bytes": png(0), "path": image["path"]}
    gone = {"bytes": None, "path": image["path"].replace("000.png", "gone.png")}
    with pytest.raises(DataError, match=r"^row 1, file 'zip://gone\.png::.* no such file in it"):
        stream.fetch(gone, "row 1")


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_survives_the_way_to_a_worker(tmp_path: Path, cache: Path, kind: str) -> None:
    stream = open_stream(str(write_split(tmp_path / "set", kind, PARTS)), "train", cache_dir=cache)
    assert levels_in(pickle.loads(pickle.dumps(stream))) == list(range(12))


# Fingerprints
