"""What a job writes of its rows: ids, identity, kept columns, and why rows were left out."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Features, Value, load_dataset
from PIL import Image
from small_jobs import (
    DATASET,
    ROWS,
    RunJob,
    errors_in,
    make_tokenizer,
    rows_in,
    run_job,
    save_images,
    shards_of,
)

from imagetok import ImageTokenizer, TokenizerConfig, open_images
from imagetok.errors import DataError
from imagetok.images import color_library
from imagetok.shards import read_job, read_manifest, verify
from imagetok.shards.token_folder import open_folder
from imagetok.tokenizing import TokenizingError
from imagetok.tokenizing.deep_check import compare_rows
from tiny_data import BROKEN, png, write_split
from tiny_runs import tiny_values


def huge_png() -> bytes:
    """A small file of 169 megapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 13000, 13000, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1626) * 13000, 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def truncated() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 80).convert("RGB").save(buffer, format="JPEG")
    return buffer.getvalue()[:900]


def encode_in_batches(tokenizer: ImageTokenizer, images: list[object], size: int) -> np.ndarray:
    """Ids of images, `size` at a time, the last batch filled up with its last image."""
    found = []
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        filled = batch + [batch[-1]] * (size - len(batch))
        found.append(tokenizer.encode(filled)[: len(batch)])
    return torch.cat(found).numpy()


def test_ids_are_those_of_encode_for_the_same_batch_shape(reference: Path, tokenizer: Path) -> None:
    rows = open_images(DATASET, "train")
    images: list[object] = [rows.image(row) for row in range(ROWS)]
    expected = encode_in_batches(ImageTokenizer.from_pretrained(tokenizer), images, 4)
    found = np.array([row["ids"] for row in rows_in(reference)])
    assert len(np.unique(found)) > 1
    assert np.array_equal(found, expected.reshape(ROWS, -1))


def test_ids_do_not_depend_on_neighbours(job: RunJob, tmp_path: Path) -> None:
    images = [png(level, (16, 16)) for level in range(0, 220, 20)]
    whole = save_images(tmp_path / "whole", images)
    holes = save_images(
        tmp_path / "holes", [BROKEN if n in (1, 5) else one for n, one in enumerate(images)]
    )
    job(tmp_path / "a", dataset=str(whole))
    job(tmp_path / "b", dataset=str(holes), max_error_rate=0.5)
    ids = {row["row"]: row["ids"] for row in rows_in(tmp_path / "a")}
    assert len({tuple(one) for one in ids.values()}) > 1
    others = {row["row"]: row["ids"] for row in rows_in(tmp_path / "b")}
    assert sorted(others) == [0, 2, 3, 4, 6, 7, 8, 9, 10]
    assert all(ids[row] == found for row, found in others.items())


def test_load_dataset_reads_the_columns_typed_and_rows_in_order(
    reference: Path, tmp_path: Path
) -> None:
    found = load_dataset(str(reference), cache_dir=str(tmp_path))["train"]
    assert list(found.features) == ["ids", "row", "height", "width", "caption"]
    assert found.features["ids"].length == 16
    assert found.features["ids"].feature == Value("uint8")
    assert found["row"][:] == list(range(ROWS))
    assert set(zip(found["height"], found["width"], strict=True)) == {(16, 16)}
    captions = open_images(DATASET, "train").dataset["caption"][:]
    assert found["caption"][:] == captions


def test_kept_columns_are_carried_byte_for_byte(job: RunJob, tmp_path: Path) -> None:
    columns = Features(
        {
            "caption": Value("string"),
            "label": ClassLabel(names=["cat", "dog"]),
            "score": Value("float32"),
        }
    )
    values = {
        "caption": [None, "héllo 🐈\nline", "", "x" * 2**20, "a"],
        "label": [1, None, 0, 1, 0],
        "score": [0.1, None, float("nan"), -0.0, 1e-40],
    }
    images = [png(level) for level in range(5)]
    source = save_images(tmp_path / "in", images, columns, **values)
    job(tmp_path / "out", dataset=str(source), keep=["label", "caption", "score"])
    found = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path))["train"]
    assert found.features["label"] == columns["label"]
    assert list(found.features)[-3:] == ["label", "caption", "score"]
    assert found["caption"][:] == values["caption"]
    assert found["label"][:] == values["label"]
    table = open_images(str(source), "train").dataset.with_format("arrow")[:]
    stored = found.with_format("arrow")[:]
    bits = [
        [None if v is None else struct.pack("<f", v) for v in one.column("score").to_pylist()]
        for one in (table, stored)
    ]
    assert bits[0] == bits[1]


def test_unreadable_rows_are_reported_with_reasons_and_left_out(
    job: RunJob, tmp_path: Path
) -> None:
    assert len(huge_png()) < 30_000
    images = [png(0), BROKEN, None, huge_png(), truncated(), b"", png(6)]
    source = save_images(tmp_path / "in", images)
    manifest = job(tmp_path / "out", dataset=str(source), max_error_rate=1.0)
    assert [row["row"] for row in rows_in(tmp_path / "out")] == [0, 6]
    assert (manifest.totals.rows_in, manifest.totals.refused) == (7, 5)
    reasons = {line["row"]: line["reason"] for line in errors_in(tmp_path / "out")}
    for row, words in {
        1: "of no format that is read",
        2: "the value is null",
        3: "over the limit of 50 megapixels",
        4: "truncated or damaged",
        5: "is empty",
    }.items():
        assert words in reasons[row]
    assert not any("0x" in reason or "/" in reason for reason in reasons.values())


@pytest.mark.parametrize("own", [False, True], ids=["the job's", "the tokenizer's"])
def test_the_limit_of_pixels_is_the_jobs_and_recorded(
    tmp_path: Path, tokenizer: Path, own: bool
) -> None:
    source = save_images(tmp_path / "in", [png(0, (20, 20)), png(1, (20, 21))])
    before = ImageTokenizer.from_pretrained(tokenizer)
    model = ImageTokenizer.from_pretrained(tokenizer, max_pixels=400 if own else 10)
    limit = {} if own else {"max_pixels": 400}
    run_job(tmp_path / "out", model, dataset=str(source), max_error_rate=0.5, **limit)
    (line,) = errors_in(tmp_path / "out")
    assert line["reason"].endswith(
        "is 21 high and 20 wide, 420 pixels, over the limit of 400 pixels; shrink it or cut it "
        "into pieces first"
    )
    job = read_job(tmp_path / "out")
    assert job.output.max_pixels == 400
    assert job.tokenizer.fingerprint == before.fingerprint


def test_the_version_of_littlecms_is_recorded_where_it_decides(tmp_path: Path) -> None:
    plain = make_tokenizer()
    run_job(tmp_path / "plain", plain)
    assert "littlecms" not in (tmp_path / "plain" / "job.json").read_text()
    plain.preprocessor = replace(plain.preprocessor, color_profile="srgb")
    run_job(tmp_path / "srgb", plain)
    assert read_job(tmp_path / "srgb").numerics.versions.littlecms == color_library()


def test_profiles_that_cannot_be_applied_are_counted(tmp_path: Path) -> None:
    model = make_tokenizer()
    model.preprocessor = replace(model.preprocessor, color_profile="srgb")
    images = [png(level) for level in range(5)]
    for broken in (1, 4):
        buffer = io.BytesIO()
        Image.open(io.BytesIO(images[broken])).save(buffer, "PNG", icc_profile=b"broken")
        images[broken] = buffer.getvalue()
    source = save_images(tmp_path / "in", images)
    plain = run_job(tmp_path / "plain", make_tokenizer(), dataset=str(source), rows_per_shard=2)
    counted = run_job(tmp_path / "srgb", model, dataset=str(source), rows_per_shard=2)
    assert "profiles_ignored" not in (tmp_path / "plain" / "manifest.json").read_text()
    assert [shard.profiles_ignored for shard in counted.shards] == [1, 0, 1]
    assert counted.totals.profiles_ignored == 2
    assert counted.totals.rows == plain.totals.rows == 5
    assert verify(tmp_path / "srgb").is_sound
    assert [row["ids"] for row in rows_in(tmp_path / "srgb")] == [
        row["ids"] for row in rows_in(tmp_path / "plain")
    ]


OUT_OF_MEMORY = {
    "CPU": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"),
    "oneDNN": RuntimeError("could not create a primitive"),
    "GPU": torch.OutOfMemoryError("CUDA out of memory."),
    "Python": MemoryError(),
}


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
def test_an_image_too_large_for_the_memory_is_refused_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    native = {"resize": "native", "batch_size": 4, "max_error_rate": 0.5}
    images = tmp_path / "in" / "train"
    images.mkdir(parents=True)
    for number, size in enumerate([(16, 16), (80, 84), (24, 16), (16, 16)]):
        (images / f"{number}.png").write_bytes(png(number, size))
    whole = run_job(tmp_path / "whole", make_tokenizer(), dataset=str(images.parent), **native)
    assert whole.totals.rows == 4
    encode = ImageTokenizer.encode_pixels

    def fail(self: ImageTokenizer, x: torch.Tensor) -> torch.Tensor:
        if x.shape[2] > 32:
            raise error
        return encode(self, x)

    monkeypatch.setattr(ImageTokenizer, "encode_pixels", fail)
    for _ in range(2):
        job = run_job(tmp_path / "out", make_tokenizer(), dataset=str(images.parent), **native)
        assert (job.totals.rows, job.totals.refused) == (3, 1)
    assert errors_in(tmp_path / "out") == [
        {
            "row": 1,
            "key": "train/1.png",
            "reason": "the image is 84 high and 80 wide, and there is too little memory to encode "
            "it at its own size; shrink it or cut it into pieces first",
        }
    ]
    left = [row for row in rows_in(tmp_path / "whole") if row["row"] != 1]
    assert rows_in(tmp_path / "out") == left
    monkeypatch.undo()
    assert not compare_rows(open_folder(tmp_path / "out"), make_tokenizer(), images.parent).faults


def test_a_batch_too_large_for_the_memory_ends_the_job_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: ImageTokenizer, x: torch.Tensor) -> torch.Tensor:
        raise OUT_OF_MEMORY["CPU"]

    monkeypatch.setattr(ImageTokenizer, "encode_pixels", fail)
    with pytest.raises(TokenizingError, match="to encode 4 images of 16 x 16 pixels at"):
        run_job(tmp_path / "out", make_tokenizer())


def test_a_missing_file_is_reported_by_its_name_in_the_dataset(job: RunJob, tmp_path: Path) -> None:
    images = [
        {"bytes": png(0), "path": None},
        {"bytes": None, "path": f"{tmp_path}/in/sub/a.png"},
    ]
    schema = Features({"image": datasets.Image()}).arrow_schema
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"image": images}, schema=schema), tmp_path / "in" / "a.parquet")
    job(tmp_path / "out", dataset=str(tmp_path / "in"), max_error_rate=0.5)
    (line,) = errors_in(tmp_path / "out")
    assert (line["row"], line["key"]) == (1, "sub/a.png")
    assert line["reason"] == "'sub/a.png' cannot be read: No such file or directory"


@pytest.mark.parametrize("streaming", [False, True])
def test_images_in_an_archive_are_named_by_archive_and_name(
    job: RunJob, tmp_path: Path, streaming: bool
) -> None:
    folder = write_split(tmp_path / "in", "zip", [range(4)], broken=[1])
    archive = folder / "train-00000.zip"
    content = bytearray(archive.read_bytes())
    content[content.index(b"002.png") + 20] ^= 255
    archive.write_bytes(content)
    same = write_split(tmp_path / "same", "pictures", [range(4)])
    job(tmp_path / "out", dataset=str(folder), max_error_rate=0.5, streaming=streaming)
    job(tmp_path / "plain", dataset=str(same))
    expected = {row["row"]: row["ids"] for row in rows_in(tmp_path / "plain")}
    found = {row["row"]: row["ids"] for row in rows_in(tmp_path / "out")}
    assert found == {row: expected[row] for row in (0, 3)}
    broken, damaged = errors_in(tmp_path / "out")
    assert (broken["row"], broken["key"]) == (1, "train-00000.zip/001.png")
    assert "of no format that is read" in broken["reason"]
    assert (damaged["row"], damaged["key"]) == (2, "train-00000.zip/002.png")
    assert damaged["reason"].startswith(
        "the file 'train-00000.zip/002.png' cannot be read from its archive: "
    )
    assert str(tmp_path) not in str([broken, damaged])


def test_an_address_in_a_row_is_refused_and_not_opened(
    job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.utils.file_utils.xopen", None)
    address = {"bytes": None, "path": "http://127.0.0.1:9/secret/1.png"}
    schema = Features({"image": datasets.Image()}).arrow_schema
    (tmp_path / "in").mkdir()
    images = [{"bytes": png(0), "path": None}, address]
    pq.write_table(pa.table({"image": images}, schema=schema), tmp_path / "in" / "a.parquet")
    job(tmp_path / "out", dataset=str(tmp_path / "in"), max_error_rate=0.5)
    (line,) = errors_in(tmp_path / "out")
    assert (line["row"], line["key"]) == (1, "1.png")
    assert "URLs are never opened" in line["reason"]


def test_too_many_refused_rows_fail_with_how_many_and_where(job: RunJob, tmp_path: Path) -> None:
    source = save_images(tmp_path / "in", [png(0), BROKEN, png(2)])
    with pytest.raises(TokenizingError, match=r"1 of 3 rows were refused.*errors"):
        job(tmp_path / "out", dataset=str(source), max_error_rate=0.3)
    assert read_manifest(tmp_path / "out").totals.refused == 1
    assert job(tmp_path / "out", dataset=str(source), max_error_rate=0.4).totals.rows == 2


def test_a_job_without_a_readable_row_writes_its_report_and_fails(
    job: RunJob, tmp_path: Path
) -> None:
    source = save_images(tmp_path / "in", [BROKEN] * 3)
    with pytest.raises(TokenizingError, match="3 of 3 rows were refused"):
        job(tmp_path / "out", dataset=str(source), max_error_rate=1.0)
    assert [line["row"] for line in errors_in(tmp_path / "out")] == [0, 1, 2]
    assert rows_in(tmp_path / "out") == []


def test_a_limit_takes_the_first_rows(job: RunJob, tmp_path: Path, reference: Path) -> None:
    assert job(tmp_path / "out", limit=14).totals.rows_in == 14
    expected = [row["ids"] for row in rows_in(reference)[:14]]
    assert [row["ids"] for row in rows_in(tmp_path / "out")] == expected


@pytest.mark.parametrize("kind", ["parquet", "arrow", "webdataset"])
def test_a_stream_gives_the_ids_of_the_rows_known_by_file(
    job: RunJob, tmp_path: Path, kind: str
) -> None:
    parts = [range(5), range(5, 9), range(9, 20)]
    folder = write_split(tmp_path / "in", kind, parts, broken=[6])
    keep = ["cls"] if kind == "webdataset" else ["label"]
    changes = {"dataset": str(folder), "keep": keep, "max_error_rate": 0.1, "rows_per_shard": 4}
    job(tmp_path / "map", **changes)
    manifest = job(tmp_path / "stream", streaming=True, **changes)
    suffix = {"webdataset": "tar"}.get(kind, kind)
    places = [
        (f"train-{number:05d}.{suffix}", row, level)
        for number, part in enumerate(parts)
        for row, level in enumerate(part)
    ]
    found = rows_in(tmp_path / "stream")
    expected = [place for place in places if place[2] != 6]
    assert [(row["file"], row["row"], row[keep[0]]) for row in found] == expected
    ids = [row["ids"] for row in rows_in(tmp_path / "map")]
    assert [row["ids"] for row in found] == ids
    assert [(line["file"], line["row"]) for line in errors_in(tmp_path / "stream")] == [
        (f"train-00001.{suffix}", 1)
    ]
    assert [shard.path for shard in manifest.shards][:3] == [
        "data/train-00000-00000.parquet",
        "data/train-00000-00001.parquet",
        "data/train-00001-00000.parquet",
    ]


def test_a_limit_on_a_stream_ends_within_a_file(job: RunJob, tmp_path: Path) -> None:
    folder = write_split(tmp_path / "in", "parquet", [range(5), range(5, 9), range(9, 20)])
    job(tmp_path / "out", dataset=str(folder), streaming=True, limit=7)
    found = [(row["file"], row["row"]) for row in rows_in(tmp_path / "out")]
    assert found == [("train-00000.parquet", row) for row in range(5)] + [
        ("train-00001.parquet", row) for row in range(2)
    ]


@pytest.mark.parametrize("kind", ["pictures", "saved"])
def test_what_needs_no_conversion_is_read_row_by_row_in_any_case(
    job: RunJob, tmp_path: Path, kind: str
) -> None:
    folder = write_split(tmp_path / "in", kind, [range(6)])
    job(tmp_path / "a", dataset=str(folder))
    job(tmp_path / "b", dataset=str(folder), streaming=True)
    assert shards_of(tmp_path / "a") == shards_of(tmp_path / "b")


def test_native_images_keep_their_size_rounded_down_to_whole_tokens(
    job: RunJob, tmp_path: Path, tokenizer: Path
) -> None:
    sizes = [(16, 16), (23, 17), (3, 9), (8, 30), (23, 17), (16, 16)] * 3  # (width, height)
    source = save_images(tmp_path / "in", [png(n * 9, size) for n, size in enumerate(sizes)])
    job(tmp_path / "out", dataset=str(source), resize="native", max_error_rate=0.2)
    loaded = ImageTokenizer.from_pretrained(tokenizer)
    rows = open_images(str(source), "train")
    found = rows_in(tmp_path / "out")
    assert [row["row"] for row in found] == [n for n, size in enumerate(sizes) if min(size) >= 4]
    for row in found:
        width, height = sizes[row["row"]]
        assert (row["height"], row["width"]) == (height, width)
        assert (row["grid_h"], row["grid_w"]) == (height // 4, width // 4)
        image = Image.open(io.BytesIO(rows.image(row["row"])["bytes"]))
        top, left = height % 4 // 2, width % 4 // 2
        box = (left, top, left + width // 4 * 4, top + height // 4 * 4)
        pixels = torch.from_numpy(np.array(image.crop(box))).permute(2, 0, 1).float() / 255
        assert row["ids"] == loaded.encode(pixels[None].repeat(4, 1, 1, 1))[0].flatten().tolist()
    reasons = {line["reason"] for line in errors_in(tmp_path / "out")}
    assert reasons == {
        "the picture is 9 high and 3 wide; with one position for 4 x 4 pixels, each side must have "
        "1 to 65535 of them"
    }


@pytest.mark.parametrize("resize", ["crop", "native"])
def test_every_batch_of_a_shape_has_the_same_number_of_images(tmp_path: Path, resize: str) -> None:
    model, seen = make_tokenizer(), set[torch.Size]()
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].shape))
    sizes = [(16, 16), (32, 16), (8, 8), (64, 32), (16, 16), (16, 16)] * 3  # (width, height)
    source = save_images(tmp_path / "in", [png(n, size) for n, size in enumerate(sizes)])
    run_job(tmp_path / "out", model, dataset=str(source), resize=resize)
    expected = {(4, 16, 16)}
    if resize == "native":  # a batch is no larger than one of the tokenizer's own size
        expected |= {(2, 16, 32), (4, 8, 8), (1, 32, 64)}
    assert {(shape[0], shape[2], shape[3]) for shape in seen} == expected


def test_native_images_of_many_shapes_do_not_pile_up(
    job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [(4 * (n % 9 + 1), 4 * (n // 9 + 1)) for n in range(40)]
    source = save_images(tmp_path / "in", [png(n, size) for n, size in enumerate(sizes)])
    job(tmp_path / "a", dataset=str(source), resize="native", rows_per_shard=100)
    monkeypatch.setattr("imagetok.tokenizing.batch_encoder.HELD_BYTES", 2000)
    monkeypatch.setattr("imagetok.tokenizing.batch_encoder.HELD_CHUNKS", 1)
    job(tmp_path / "b", dataset=str(source), resize="native", rows_per_shard=100)
    assert len(rows_in(tmp_path / "a")) == 40
    assert shards_of(tmp_path / "a") == shards_of(tmp_path / "b")


def test_a_tokenizer_in_memory_gives_the_same_ids_as_its_folder(tmp_path: Path) -> None:
    model = make_tokenizer("dvae")
    model.save_pretrained(tmp_path / "saved")
    run_job(tmp_path / "a", model)
    run_job(tmp_path / "b", tmp_path / "saved")
    assert [row["ids"] for row in rows_in(tmp_path / "a")] == [
        row["ids"] for row in rows_in(tmp_path / "b")
    ]


def test_a_tokenizer_whose_ids_stand_for_no_square_is_used_as_well(tmp_path: Path) -> None:
    values = tiny_values("vqvae")["tokenizer"] | {"image_size": [16, 24]}
    values |= {"encoder": {"type": "mlp"}, "decoder": {"type": "mlp"}}
    model = ImageTokenizer.from_config(TokenizerConfig.from_dict(values))
    manifest = run_job(tmp_path / "out", model)
    assert manifest.totals.tokens == ROWS
    rows = open_images(DATASET, "train")
    images: list[object] = [rows.image(row) for row in range(4)]
    expected = encode_in_batches(model, images, 4)
    assert [row["ids"] for row in rows_in(tmp_path / "out")[:4]] == expected.reshape(4, 1).tolist()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_job_tokenizes_one_side_of_a_holdout_and_records_which(
    job: RunJob, tokenizer: Path, tmp_path: Path, streaming: bool
) -> None:
    folder = write_split(tmp_path / "set", "parquet", [range(15), range(15, 30)])
    sides: list[list[int]] = []
    for split in ("train", "holdout"):
        out = tmp_path / split
        asked = {"dataset": folder, "split": split, "streaming": streaming, "holdout": "30%"}
        job(out, keep=["label"], **asked)
        assert (read_job(out).input.holdout, read_job(out).split_name) == ("30%", split)
        assert verify(out).is_sound
        assert not compare_rows(
            open_folder(out), ImageTokenizer.from_pretrained(tokenizer), folder, 64
        ).faults
        sides.append([row["label"] for row in rows_in(out)])
        for other in ({"holdout": "31%"}, {"holdout_salt": "x"}):
            with pytest.raises(DataError, match="another job"):
                job(out, keep=["label"], **{**asked, **other})
    assert sorted(sides[0] + sides[1]) == list(range(30))
    for split, side in zip(("train", "holdout"), sides, strict=True):
        rows = open_images(str(folder), split, holdout="30%")
        assert rows.dataset[:]["label"] == side
        assert rows.reading == {"holdout": "30%"}


@pytest.mark.parametrize(
    ("kind", "streaming", "expected"),
    [
        ("classes", False, ["train/class0/000.png", "train/class1/001.png"]),
        ("zip", True, ["train-00000.zip/000.png", "train-00001.zip/001.png"]),
        ("webdataset", False, ["train-00000.tar/000.png", "train-00001.tar/001.png"]),
        ("webdataset", True, ["train-00000.tar", "train-00001.tar"]),
        ("parquet", True, ["train-00000.parquet", "train-00001.parquet"]),
    ],
)
def test_the_names_of_files_can_be_kept(
    job: RunJob, tmp_path: Path, kind: str, streaming: bool, expected: list[str]
) -> None:
    folder = write_split(tmp_path / "set", kind, [range(1), range(1, 2)])
    job(tmp_path / "out", dataset=folder, streaming=streaming, keep=["file"])
    assert [row["file"] for row in rows_in(tmp_path / "out")] == expected
