"""`load_dataset` reads a tokenized dataset as it is meant; people can read its card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import yaml
from datasets import ClassLabel, Features, Image, List, Value, load_dataset
from tiny_jobs import do_job, streamed_job, table_of, tiny_job

from imagetok.shards import Job, JobFolder, finalize
from readme_blocks import blocks

NASTY = ["no", "yes: 'maybe'", "a\n---\nb", '"{[*&!%', "ünï|`code`", "~", "  "]
CAPTIONS = [None, "", "a\nb\r\nc\t---\n", "ünïcödé 🦆 \u2028", "x" * 2**20, "null", "| `"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def front_matter(folder: Path) -> Any:
    return yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("\n---\n")[0])


def finished(folder: Path, job: Job, broken: Any = ()) -> Path:
    do_job(folder, job, broken=broken)
    finalize(folder)
    return folder


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["rows", "files", "native", "wide"])
def test_load_dataset_gives_the_features_and_the_rows(
    tmp_path: Path, kind: str, streaming: bool
) -> None:
    job = {
        "rows": tiny_job(),
        "files": streamed_job(),
        "native": streamed_job(output__resize="native"),
        "wide": tiny_job(tokenizer__codebook_size=2**18),
    }[kind]
    folder = finished(tmp_path / "tokens", job, broken=[1, 4, 5, 6, 7])
    loaded = load_dataset(str(folder), split="train", streaming=streaming)
    assert loaded.features == job.schema.features
    files = [None] if kind in ("rows", "wide") else ["part-0.tar", "part-1.tar"]
    expected = [row for file in files for row in table_of(job, [0, 2, 3, 8, 9], file).to_pylist()]
    assert list(loaded) == expected


def test_a_dataset_of_another_split_is_loaded_by_its_name(tmp_path: Path) -> None:
    folder = finished(tmp_path / "tokens", tiny_job(input__split="validation[:10]"))
    assert list(load_dataset(str(folder))) == ["validation"]


def test_a_dataset_that_is_not_finished_is_typed_as_well(tmp_path: Path) -> None:
    job = tiny_job()
    do_job(tmp_path, job, broken=[0, 1, 2, 3])
    data = load_dataset("parquet", data_dir=str(tmp_path / "data"), split="train")
    assert data.features == job.schema.features
    assert data["row"] == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("unit", [0, 1, 2])
def test_a_unit_whose_rows_all_failed_still_loads(
    tmp_path: Path, unit: int, streaming: bool
) -> None:
    job = tiny_job()
    broken = job.rows_of(unit)
    assert broken is not None
    folder = finished(tmp_path / "tokens", job, broken)
    loaded = load_dataset(str(folder), split="train", streaming=streaming)
    assert loaded.features == job.schema.features
    assert [row["row"] for row in loaded] == [row for row in range(10) if row not in broken]


def test_a_folder_that_was_filled_anew_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    folder, numbers = tmp_path / "tokens", []
    for unit in (0, 1):
        job = tiny_job()
        finished(folder, job, broken=job.rows_of(unit))
        numbers.append(list(load_dataset(str(folder), split="train")["row"]))
        shutil.rmtree(folder)
    assert numbers == [[4, 5, 6, 7, 8, 9], [0, 1, 2, 3, 8, 9]]


def test_subfolders_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagetok.shards.paths.MOST_IN_ONE_FOLDER", 2)
    monkeypatch.setattr("imagetok.shards.paths.UNITS_A_FOLDER", 2)
    folder = finished(tmp_path / "tokens", tiny_job(), broken=[9])
    places = {path.parent.relative_to(folder).as_posix() for path in folder.rglob("*.parquet")}
    assert places == {"data/00000", "data/00001"}
    assert (folder / "errors" / "00001" / "train-00002.jsonl").exists()
    assert len(load_dataset(str(folder), split="train")) == 9


@pytest.mark.parametrize("streaming", [False, True])
def test_captions_and_names_of_any_kind_come_back(tmp_path: Path, streaming: bool) -> None:
    kept = Features(
        {
            "caption: 'x'\n---": Value("string"),
            "label": ClassLabel(names=NASTY),
            "tags": List(Value("string")),
            "picture": Image(decode=False),
        }
    )
    count = len(CAPTIONS)
    job = tiny_job(
        input__num_rows=count,
        input__name="a|b`c`\n---\n# d",
        units__count=2,
        output__keep=list(kept),
        features=kept.to_dict(),
        tokenizer__name='"quoted" `name`\n```',
    )
    values: dict[str, Any] = {
        "caption: 'x'\n---": CAPTIONS,
        "label": [*range(count - 1), None],
        "tags": [None, [], ["a", None], *[["b"]] * (count - 3)],
        "picture": [None, *({"bytes": b"\0\n", "path": "p.png"} for _ in CAPTIONS[1:])],
    }
    table = pa.table(values, schema=kept.arrow_schema)
    with JobFolder.open(tmp_path / "tokens", job) as work:
        for unit in work.missing_units():
            with work.claim(unit) as writer:
                assert writer is not None
                rows = writer.rows
                assert rows is not None
                ids, sizes = np.zeros((len(rows), 6), dtype=int), np.ones((len(rows), 2), dtype=int)
                part = table.slice(rows.start, len(rows))
                writer.write(job.schema.table(ids, rows, None, sizes, part))
    finalize(tmp_path / "tokens")
    loaded = load_dataset(str(tmp_path / "tokens"), split="train", streaming=streaming)
    assert loaded.features == job.schema.features
    for name, column in values.items():
        assert [row[name] for row in loaded] == column
    text = (tmp_path / "tokens" / "README.md").read_text(encoding="utf-8")
    assert front_matter(tmp_path / "tokens")["dataset_info"]["splits"][0]["num_examples"] == count
    assert "# Image tokens of `a/b'c' --- # d`\n" in text
    code = [block.text for block in blocks(text)]
    assert len(code) == 2
    assert json.dumps(job.tokenizer.name) in code[0]
    for block in code:
        compile(block, "README.md", "exec")


def test_the_card_says_what_the_dataset_is_and_how_to_read_it(tmp_path: Path) -> None:
    folder = finished(tmp_path / "tokens", tiny_job(), broken=[1])
    text = (folder / "README.md").read_text()
    for words in (
        "# Image tokens of `pictures`",
        f"| fingerprint | `{'f' * 64}` |",
        "2 x 3 ids, row by row from the top left",
        "| unreadable pictures | 1, listed with reasons in `errors/` |",
        "| pictures | 9 |",
        "| `caption` | `string` | from the source |",
    ):
        assert words in text
    assert front_matter(folder)["configs"] == [
        {
            "config_name": "default",
            "data_files": [{"split": "train", "path": "data/**/*.parquet"}],
        }
    ]


def test_equal_jobs_have_equal_cards(tmp_path: Path) -> None:
    one = finished(tmp_path / "one", tiny_job()) / "README.md"
    other = finished(tmp_path / "deep" / "other", tiny_job()) / "README.md"
    assert one.read_bytes() == other.read_bytes()
