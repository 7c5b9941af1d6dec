"""Folders of images: what they are read as, and what was read before and goes on."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_rows import Open, levels_of, write_images
from trees import layouts

from goldens import replay
from goldens.replay import GOLDENS, read_json
from imagetok import ImageTokenizer, RunConfig
from imagetok.data import open_evaluation, open_images, open_stream
from imagetok.data.folder_listing import list_folder
from imagetok.data.sidecars import typed
from imagetok.data.source import image_paths
from imagetok.data.training_data import open_training
from imagetok.dataset_ref import DatasetRef
from imagetok.errors import DataError
from imagetok.images import Preprocessor
from imagetok.shards import TokenDataset
from imagetok.tokenizing import tokenize_dataset
from imagetok.tokenizing.job_input import open_input
from imagetok.training import train
from tiny_data import data_config
from tiny_runs import tiny_run

EXPECTED = read_json(layouts.HERE / "expected.json")


def is_same_machine() -> bool:
    found = {**replay.probe(), "imagetok": ""}
    return found == {**read_json(GOLDENS / "probe.json"), "imagetok": ""}


# What was read before


@pytest.mark.parametrize("name", layouts.TREES)
def test_a_tree_that_was_read_rightly_is_read_as_before(
    tmp_path: Path, cache: Path, name: str
) -> None:
    """Labels are the only columns that may differ, where they were missing or those of splits."""
    folder = layouts.build(tmp_path, name)
    for split in [key for key in EXPECTED[name] if key != "shards"]:
        before, now = EXPECTED[name][split], layouts.describe(folder, split, cache)
        assert now["images"] == before["images"]
        assert now["fingerprint"] == before["fingerprint"]
        if name not in ("splits", "three-splits", "mixed-depth", "csv-classes"):
            assert now == before
            assert list(now["features"]) == list(before["features"])


@pytest.mark.parametrize("name", layouts.CONTINUED)
def test_a_job_of_before_goes_on(tmp_path: Path, name: str) -> None:
    shutil.copytree(layouts.HERE / f"{name}-job", tmp_path / "out")
    folder = layouts.build(tmp_path, name)
    tokenizer = GOLDENS / "tokenizers" / "vqvae"
    arguments = layouts.job_arguments(tokenizer, folder, tmp_path / "out")
    tokenize_dataset(**arguments, allow_mixed_numerics=True)
    shards = sorted((tmp_path / "out" / "data").glob("*"))
    digests = {path.name: sha256(path.read_bytes()).hexdigest() for path in shards}
    assert digests.keys() == EXPECTED[name]["shards"].keys()
    with replay.one_thread():
        assert digests == EXPECTED[name]["shards"] or not is_same_machine()


@pytest.mark.parametrize("name", layouts.CONTINUED)
def test_a_run_of_before_goes_on(tmp_path: Path, name: str) -> None:
    run = shutil.copytree(layouts.HERE / f"{name}-run", tmp_path / "run")
    before = (run / "all-losses.jsonl").read_text().splitlines()
    (run / "losses.jsonl").write_text("".join(f"{line}\n" for line in before[:2]))
    config = RunConfig.from_dict(layouts.run_values(layouts.build(tmp_path, name)))
    with replay.one_thread():
        train(config, run, resume=True)
        lines = (run / "losses.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3]
        assert lines == before or not is_same_machine()


# What a folder is

WORDS = (
    "train",
    "Test",
    "val",
    "valid",
    "dev-board",
    "test-tube",
    "training",
    "eval",
    "cats",
    "a::b",
)
"""Names of folders, some of which `datasets` takes for splits wherever they occur."""

FILES = (
    *(
        "1.png",
        "2.JPG",
        "crash-test.png",
        "steam train.Png",
        "a\nb.gif",
        "x::y.webp",
        "scan",
        "10.tif",
    ),
    *(
        "train.txt",
        "test.json",
        "evaluation.csv",
        ".hidden.txt",
        "Thumbs.db",
        "notes.md",
        "val.xml",
    ),
)
SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev"), "validation"
)

Answer = dict[str, list[tuple[str, str | None]]]


def reference(paths: Sequence[str]) -> Answer | None:
    """Rules 1 to 4 of the guide: the path and the label of each row; None for a refusal."""
    ends = (".png", ".jpg", ".gif", ".webp", ".tif", "scan")
    images = sorted(path for path in paths if path.lower().endswith(ends))
    tops = sorted({path.split("/")[0] for path in images})
    divided = all("/" in path for path in images) and all(top.lower() in SPLITS for top in tops)
    if divided and len({SPLITS[top.lower()] for top in tops}) < len(tops):
        return None
    answer: Answer = {}
    for path in images:
        split = SPLITS[path.split("/")[0].lower()] if divided else "train"
        folders = path.split("/")[:-1][divided:]
        answer.setdefault(split, []).append((path, folders[-1] if folders else None))
    labels = {label for rows in answer.values() for _, label in rows} - {None}
    return answer if len(labels) > 1 else {k: [(p, None) for p, _ in v] for k, v in answer.items()}


def plant(root: Path, paths: Sequence[str]) -> Path:
    """Make files, each image of which is another one."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        is_text = path.endswith((".txt", ".json", ".csv", ".xml", ".md", ".db"))
        (root / path).write_bytes(b"text" if is_text else layouts.png(number))
    return root


def answer_of(root: Path, splits: Sequence[str], **options: Any) -> Answer:
    """The path and the label of each row of each split."""
    answer: Answer = {}
    for split in splits:
        rows = open_images(str(root), split, **options)
        feature = rows.dataset.features.get("label")
        for row in (rows.row(number) for number in range(len(rows))):
            label = row.get("label")
            place = os.path.relpath(row[rows.image_column]["path"], root.resolve())
            answer.setdefault(split, []).append(
                (place, label if label is None else feature.int2str(label))
            )
    return answer


trees = st.lists(
    st.builds(
        lambda folders, name: "/".join([*folders, name]),
        st.lists(st.sampled_from(WORDS), max_size=3),
        st.sampled_from(FILES),
    ),
    min_size=1,
    max_size=12,
    unique=True,
)


@settings(max_examples=60, deadline=None)
@given(paths=trees, linked=st.booleans(), named=st.booleans())
def test_splits_rows_and_labels_are_those_of_the_rules(
    tmp_path_factory: pytest.TempPathFactory, paths: list[str], linked: bool, named: bool
) -> None:
    """Whatever other files there are, and where links and metadata lead; streamed or not."""
    root = plant(tmp_path_factory.mktemp("set"), paths)
    expected = reference(paths)
    if linked:
        for folder in {Path(path).parent for path in paths}:
            (root / folder / "cats-link").symlink_to(root, target_is_directory=True)
    images = [path for rows in (expected or {}).values() for path, _ in rows]
    if named and images:
        lines = [json.dumps({"file_name": path, "note": path}) for path in images[::2]]
        (root / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    if not expected:
        with pytest.raises(DataError, match=r"holds no images|both the split"):
            open_images(str(root), "train")
        return
    assert answer_of(root, list(expected)) == expected
    for split in expected:
        rows, stream = open_images(str(root), split), open_stream(str(root), split)
        read = [image for n in range(len(stream.segments)) for _, image in stream.read(n)]
        assert read == [rows.stored(row) for row in range(len(rows))]
        assert stream.fingerprint == rows.fingerprint
        if named:
            notes = [row["note"] for row in map(rows.row, range(len(rows)))]
            assert notes == [path if path in images[::2] else None for path, _ in expected[split]]


@settings(max_examples=10, deadline=None)
@given(paths=trees, streaming=st.booleans(), holdout=st.sampled_from([None, "40%"]))
def test_a_run_a_job_and_an_evaluation_have_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory,
    paths: list[str],
    streaming: bool,
    holdout: str | None,
) -> None:
    root, expected = plant(tmp_path_factory.mktemp("set"), paths), reference(paths)
    options = {"streaming": streaming, "holdout": holdout}
    lanes = {"lanes": 1} if streaming else {}  # each has a row
    found: list[str] = []
    for split in [*(expected or {}), *(["holdout"] if holdout else [])]:
        try:
            rows = open_images(str(root), split, holdout=holdout)
        except DataError:  # no image may be on one side, or the tree has no split to divide
            assume(holdout is None)
            raise
        images = [rows.stored(row) for row in range(len(rows))]
        found += [image["path"] for image in images]
        config = data_config(root, split=split, evaluation_split=split, **options, **lanes)
        evaluated = open_evaluation(config)
        assert [evaluated.stored(row) for row in range(len(evaluated))] == images
        job = open_input(DatasetRef(str(root), split, **options), rows_per_unit=5)
        chunks = [chunk for unit in range(job.num_units) for chunk in job.read(unit)]
        assert [image for chunk in chunks for image in chunk.images] == images
        assert trained_on(config) == sorted(levels_of(rows))
    every = [str(root / path) for answer in (expected or {}).values() for path, _ in answer]
    assert sorted(found) == sorted(every)


def trained_on(config: RunConfig) -> list[int]:
    """The numbers of the images of a run's first epoch."""
    data = open_training(config, Preprocessor((2, 2)))
    levels: list[int] = []
    with data.feed(0, 2) as feed:
        for batch in (batch for step in feed for batch in step):
            first = batch.epochs == 0
            levels += batch.pixels[first][:, 0, 0, 0].tolist()
    return sorted(levels)


ARCHIVES: list[dict[str, str | None]] = [
    {"pets": None},
    {"more": None, "train": None, "x/test": None},
    {"Train": None, "a::b": None},
    {"my-train-0": "train", "test": "test", "val/0": "validation"},
    {"0-train": "train", "1-train": "train"},
]
"""Names of archives and the splits that they say; none where not every name of a set says one."""


@settings(max_examples=20, deadline=None)
@given(paths=trees, archives=st.sampled_from(ARCHIVES))
def test_zips_are_read_as_the_trees_in_them(
    tmp_path_factory: pytest.TempPathFactory, paths: list[str], archives: dict[str, str | None]
) -> None:
    """Archives are no classes, and splits where each name says one; streamed or not."""
    tree, root = plant(tmp_path_factory.mktemp("tree"), paths), tmp_path_factory.mktemp("set")
    names = [list(archives)[number % len(archives)] for number in range(len(paths))]
    for name in archives:
        (root / name).parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(root / f"{name}.zip", "w") as archive:
            for path in (path for path, each in zip(paths, names, strict=True) if each == name):
                archive.write(tree / path, path)
    places: dict[str, tuple[str, str]] = {}
    for name, path in zip(names, paths, strict=True):
        split_of = archives[name]
        places[path if split_of is None else f"{split_of}/{path}"] = (f"{name}.zip", path)
    expected = reference(list(places))
    if not expected:
        with pytest.raises(DataError, match=r"no images in|both the split"):
            open_images(str(root), "train")
        return
    labelled = any(label for answer in expected.values() for _, label in answer)
    for split, answer in expected.items():
        ordered = sorted((*places[place], label) for place, label in answer)
        rows, stream = open_images(str(root), split), open_stream(str(root), split)
        images = [rows.stored(row) for row in range(len(rows))]
        assert image_paths(rows.dataset, root) == [path for _, path, _ in ordered]
        assert [stream.fetch(image, "")["bytes"] for image in images] == [
            (tree / path).read_bytes() for _, path, _ in ordered
        ]
        read = [image for part in range(len(stream.segments)) for _, image in stream.read(part)]
        assert read == images
        for streaming in (False, True):
            ref = DatasetRef(str(root), split, streaming=streaming)
            assert kept_of(ref, "file") == [f"{name}/{path}" for name, path, _ in ordered]
            if labelled:
                assert kept_of(ref, "label") == [label for _, _, label in ordered]
        assert ("label" in rows.dataset.features) == labelled


def kept_of(ref: DatasetRef, column: str) -> list[Any]:
    """What a job keeps of a column; labels by name."""
    job = open_input(ref, keep=[column], rows_per_unit=5)
    chunks = [chunk for unit in range(job.num_units) for chunk in job.read(unit)]
    values = [value for chunk in chunks for value in chunk.kept.column(column).to_pylist()]
    if column != "label":
        return values
    return [None if value is None else job.kept["label"].int2str(value) for value in values]


@pytest.mark.slow
def test_two_hundred_thousand_files_take_little_memory(tmp_path: Path) -> None:
    """Of each file no more than its path is kept, however many there are."""
    for label in range(200):
        folder = tmp_path / f"{label:03d}"
        folder.mkdir()
        for number in range(1000):
            os.close(os.open(folder / f"{number}.jpg", os.O_CREAT))
    tracemalloc.start()
    try:
        rows = open_images(str(tmp_path), "train")
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(rows) == 200_000
    assert most < 200_000 * 500


@pytest.mark.parametrize(
    ("paths", "options", "expected"),
    [
        (["a/1.png", "b/2.png"], {"split_dirs": True}, {"a": ["1"], "b": ["2"]}),
        (
            ["Training/1.png", "testing/2.png"],
            {"split_dirs": True},
            {"train": ["1"], "test": ["2"]},
        ),
        (["train/1.png", "test/2.png"], {"split_dirs": False}, {"train": ["2", "1"]}),
    ],
)
def test_split_dirs_overrides_both_ways(
    tmp_path: Path, paths: list[str], options: dict[str, Any], expected: dict[str, list[str]]
) -> None:
    found = answer_of(plant(tmp_path / "set", paths), list(expected), **options)
    assert {
        split: [Path(path).stem for path, _ in rows] for split, rows in found.items()
    } == expected


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("auto", [None, "x", "x", "y"]),
        ("parent", [None, "x", "x", "y"]),
        ("path", [None, "a/x", "b/x", "b/y"]),
        ("none", [None] * 4),
    ],
)
def test_labels_are_taken_from_where_they_are_asked_for(
    tmp_path: Path, labels: str, expected: list[str | None]
) -> None:
    plant(tmp_path / "set", ["1.png", "a/x/1.png", "b/x/1.png", "b/y/1.png"])
    rows = answer_of(tmp_path / "set", ["train"], labels=labels)["train"]
    assert [label for _, label in rows] == expected


@pytest.mark.parametrize(
    ("paths", "options", "words"),
    [
        (["1.png", "a/2.png"], {"split_dirs": True}, "1 images lie beside them: 1.png; move them"),
        (["a b/2.png"], {"split_dirs": True}, "'a b' cannot be the name of one; rename it"),
        (["val/1.png", "dev/2.png"], {}, "'dev' and 'val' of .* are both the split validation"),
        (["1.png"], {"labels": "parent"}, "every image of .* lies directly in its split"),
        (["1.png"], {"metadata": "strict"}, "has no metadata file"),
    ],
)
def test_options_that_do_not_fit_a_folder_are_refused(
    open_rows: Open, tmp_path: Path, paths: list[str], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        open_rows(plant(tmp_path / "set", paths), **options)


# Metadata and sidecars


def with_metadata(root: Path, files: Mapping[str, str]) -> Path:
    plant(root, ["0.png", "1.png", "x/0.png", "x/masks/0.png"])
    for name, text in files.items():
        (root / name).write_text(text)
    return root


def test_metadata_adds_columns_to_the_images_that_it_names(open_rows: Open, tmp_path: Path) -> None:
    """Several files are one table; an image may have several rows, and masks are no rows."""
    files = {
        "metadata.csv": "n,file_name\n1,1.png\n2,1.png\n",
        "x/metadata.jsonl": '{"file_name": "0.png", "n": 0.5, "mask_file_name": "masks/0.png"}\n',
    }
    root = with_metadata(tmp_path / "set", files)
    rows = open_rows(root, image_column="image")
    found = [rows.row(number) for number in range(len(rows))]
    names = [os.path.relpath(row["image"]["path"], root) for row in found]
    assert names == ["0.png", "1.png", "1.png", "x/0.png"]
    assert [row["n"] for row in found] == [None, 1.0, 2.0, 0.5]
    assert [row["mask"] and Path(row["mask"]["path"]).name for row in found] == [
        *[None] * 3,
        "0.png",
    ]


@pytest.mark.parametrize(
    ("files", "options", "words"),
    [
        ({"metadata.csv": "file_name\n2.png\n"}, {}, "images that are not there; .* '2.png'"),
        ({"metadata.csv": "file_name\n/etc/0.png\n"}, {}, "the first is '/etc/0.png'"),
        ({"x/metadata.csv": "file_name\n../../0.png\n"}, {}, "the first is '../0.png'"),
        ({"metadata.csv": "name\n0.png\n"}, {}, "no column file_name .* columns are: name"),
        ({"metadata.jsonl": "{"}, {}, "'metadata.jsonl' of 'set' cannot be read"),
        ({"metadata.csv": "file_name,image\n0.png,1\n"}, {}, "two columns 'image'"),
        (
            {"metadata.csv": "file_name,n\n0.png,a\n", "x/metadata.csv": "file_name,n\n0.png,1\n"},
            {},
            "have columns that do not fit",
        ),
        (
            {"metadata.csv": "file_name\nx/0.png\n", "x/metadata.csv": "file_name\n0.png\n"},
            {},
            "both 'metadata.csv' and 'x/metadata.csv' name the image 'x/0.png'",
        ),
        (
            {"metadata.csv": "file_name\n0.png\n"},
            {"metadata": "strict"},
            "3 images of .* are named by no metadata file: 1.png, x/0.png",
        ),
    ],
)
def test_metadata_that_does_not_fit_its_images_is_refused(
    open_rows: Open, tmp_path: Path, files: Mapping[str, str], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        open_rows(with_metadata(tmp_path / "set", files), **options)


def test_sidecars_are_columns_where_they_are_asked_for(
    open_rows: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = plant(tmp_path / "set", ["a/1.png", "a/2.JPG", "b/1.png"])
    (root / "a/1.txt").write_text("a dog\n")
    (root / "a/2.TXT").write_text("ein Hündchen")
    (root / "b/1.json").write_text('{"caption": "a cat", "width": 1.5}')
    (root / "a/1.json").write_text('{"width": 640, "tags": ["x"]}')
    assert open_rows(root).dataset.column_names == ["image", "label"]
    assert "4 .txt or .json files that are called like images" in caplog.text
    rows = open_rows(root, sidecars=True)
    assert rows.dataset["caption"][:] == ["a dog", "ein Hündchen", "a cat"]
    assert rows.dataset["width"][:] == [640.0, None, 1.5]
    assert rows.dataset["tags"][:] == [["x"], None, None]
    assert rows.dataset["label"][:] == [0, 0, 1]
    (root / "b/1.json").write_text("[1]")
    with pytest.raises(DataError, match=r"'b/1\.json' of 'set' is not a JSON object"):
        open_rows(root, sidecars=True)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, None, 2.5], [1.0, None, 2.5]),
        ([1, 2], [1, 2]),
        ([1, "a", None], ["1", '"a"', None]),
        ([True, 1], ["true", "1"]),
        ([2**70, 1], [str(2**70), "1"]),
        ([{"a": 1}], ['{"a": 1}']),
        ([[1, 2.5], None, []], [[1.0, 2.5], None, []]),
        ([[1], ["a"]], [["1"], ['"a"']]),
        ([None], [None]),
    ],
)
def test_values_of_sidecars_have_one_type_over_all_files(
    values: list[Any], expected: list[Any]
) -> None:
    assert typed(values).to_pylist() == expected


# What is left out


def test_what_is_not_read_is_told_in_one_line_and_once(
    open_rows: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = plant(tmp_path / "set", ["a/1.png", "b/2.png", "3.png", *(f"{n}.md" for n in range(5))])
    (root / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (root / "phone").write_bytes(b"\0\0\0\x18ftypheic")
    (root / ".DS_Store").touch()
    (root / "lost.png").symlink_to("nowhere")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert len(open_rows(root)) == 3
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"'{root}': one split, train, of 3 images" in line
    assert "no label for 1 image in no class folder" in line
    assert "skipped 5 files that are not images: 0.md, 1.md, 2.md, ..." in line
    assert (
        "skipped 2 HEIC images, which need pillow-heif to be converted: IMG_1.HEIC, phone" in line
    )
    assert "skipped 1 link that leads nowhere: lost.png" in line


def test_a_linked_folder_is_read_once(tmp_path: Path) -> None:
    """Where it lies, if that is in the tree; links never lead round."""
    root = plant(tmp_path / "set", ["own/1.png"])
    elsewhere = plant(tmp_path / "elsewhere", ["2.png", "deep/3.png"])
    links = {
        "linked": elsewhere,
        "again": elsewhere,
        "own/up": root,
        "up": tmp_path,
        "twin": root / "own",
    }
    for name, target in links.items():
        (root / name).symlink_to(target, target_is_directory=True)
    (elsewhere / "back").symlink_to(root)
    listing = list_folder(root)
    assert listing.images.to_pylist() == ["again/2.png", "again/deep/3.png", "own/1.png"]
    ((kind, skipped),) = listing.skipped.items()
    assert (kind, skipped.count) == ("links to folders that are read already", 5)


@pytest.fixture
def own(tmp_path: Path) -> Callable[[str], Path]:
    """What imagetok writes, below a folder of images."""

    def make(kind: str) -> Path:
        folder = tmp_path / "set" / kind
        if kind == "run":
            shutil.copytree(layouts.HERE / "splits-run", folder)
            plant(folder / "samples", ["step-1.png"])
        elif kind == "tokens":
            shutil.copytree(layouts.HERE / "splits-job", folder)
        else:
            shutil.copytree(GOLDENS / "tokenizers" / "vqvae", folder)
            plant(folder, ["reconstructions.png"])
        return folder

    return make


@pytest.mark.parametrize("kind", ["run", "tokens", "tokenizer"])
def test_what_imagetok_has_written_is_left_out_and_refused_as_an_input(
    open_rows: Open, tmp_path: Path, own: Callable[[str], Path], kind: str
) -> None:
    folder = own(kind)
    write_images(tmp_path / "set", range(3))
    assert len(open_rows(tmp_path / "set")) == 3
    with pytest.raises(
        DataError, match=f"holds .*{kind.removesuffix('s')}.* that imagetok has written"
    ):
        open_rows(folder)


# What goes on to tokens


def test_file_names_and_labels_come_back_with_tokens(tmp_path: Path) -> None:
    root = plant(tmp_path / "set", ["zebra/b.png", "apple/a.png", "cover.png"])
    torch.manual_seed(0)
    tokenizer = ImageTokenizer.from_config(tiny_run("vqvae").tokenizer)
    job = {"output_dir": tmp_path / "out", "rows_per_shard": 2, "device": "cpu", "progress": False}
    tokenize_dataset(tokenizer, dataset=str(root), keep=["file", "label"], **job)
    tables = [pq.read_table(path) for path in sorted((tmp_path / "out" / "data").glob("*"))]
    files = [name for table in tables for name in table.column("file").to_pylist()]
    assert files == ["apple/a.png", "cover.png", "zebra/b.png"]
    dataset = TokenDataset(tmp_path / "out", batch_size=3, shuffle=False)
    (batch,) = list(dataset)
    feature = dataset.features["label"]
    assert [None if n is None else feature.int2str(n) for n in batch["label"]] == [
        "apple",
        None,
        "zebra",
    ]
    (root / "cover.png").rename(root / "cover2.png")
    with pytest.raises(DataError, match="fingerprint"):
        tokenize_dataset(tokenizer, dataset=str(root), keep=["file", "label"], **job)
