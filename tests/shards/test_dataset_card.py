"""`load_dataset` reads a tokenized dataset as it is meant; people can read its card."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import yaml
from datasets import ClassLabel, Features, Image, List, Value, load_dataset
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt
from tiny_jobs import do_job, streamed_job, table_of, tiny_job

from imagetok.hub.card_merge import CARD_BEGIN, CARD_END, merge_card
from imagetok.shards import Job, JobFolder, finalize, read_manifest
from imagetok.shards.dataset_card import CardSplit, render_card
from nasty_texts import NASTY as TEXTS
from readme_blocks import blocks

NASTY = ["no", "yes: 'maybe'", "a\n---\nb", '"{[*&!%', "ünï|`code`", "~", "  "]
HEADINGS = ["Columns", "Tokenizer", "Source", "Counts", "Reading", "Limitations", "Licence"]
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


SOME = [1, 4, 5, 6, 7]
FILES = ["part-0.tar", "part-1.tar"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("job", "files", "broken"),
    [
        (tiny_job(), [None], SOME),
        (streamed_job(), FILES, SOME),
        (streamed_job(output__resize="native"), FILES, SOME),
        (tiny_job(tokenizer__codebook_size=2**18), [None], SOME),
        (tiny_job(tokenizer__codebook_sizes=[512, 300]), [None], SOME),
        *((tiny_job(), [None], tiny_job().rows_of(unit)) for unit in range(3)),
    ],
)
def test_load_dataset_gives_the_features_and_the_rows(
    tmp_path: Path, job: Job, files: list[str | None], broken: Sequence[int], streaming: bool
) -> None:
    folder = finished(tmp_path / "tokens", job, broken)
    loaded = load_dataset(str(folder), split="train", streaming=streaming)
    assert loaded.features == job.schema.features
    kept = [row for row in range(10) if row not in broken]
    expected = [row for file in files for row in table_of(job, kept, file).to_pylist()]
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


def test_a_folder_that_was_filled_anew_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    folder, numbers = tmp_path / "tokens", []
    for unit in (0, 1):
        job = tiny_job()
        finished(folder, job, broken=job.rows_of(unit))
        numbers.append(list(load_dataset(str(folder), split="train")["row"]))
        shutil.rmtree(folder)
    assert numbers == [[4, 5, 6, 7, 8, 9], [0, 1, 2, 3, 8, 9]]


def test_subfolders_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagetok.shards.job.MOST_IN_ONE_FOLDER", 2)
    monkeypatch.setattr("imagetok.shards.job.UNITS_PER_FOLDER", 2)
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
    assert re.findall("^#+ (.*)", text, re.M)[1:] == HEADINGS
    code = [block.text for block in blocks(text)]
    assert len(code) == 3
    assert json.dumps(job.tokenizer.name) in code[1]
    for block in code:
        compile(block, "README.md", "exec")


DEEP = {"tokenizer__codebook_sizes": [512, 300]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "# Image tokens of `pictures`"),
        ({}, f"| fingerprint | `{'f' * 64}` |"),
        ({}, "| unreadable images | 1, listed with reasons in `errors/` |"),
        ({}, "| images | 9 |"),
        ({}, "| `caption` | `string` | from the source |"),
        ({}, "| 2 x 3 ids, row by row from the top left |"),
        ({"output__resize": "native"}, "| grid_h x grid_w ids, row by row from the top left |"),
        ({"tokenizer__grid_size": [6]}, "| 6 ids |"),
        (DEEP, "| 2 x 3 x 2 ids, row by row from the top left, the 2 codes of a position one "),
        (DEEP, "| codebooks | 512, 300 codes; a position has one of each |"),
    ],
)
def test_the_card_says_what_the_dataset_is(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    assert words in (finished(tmp_path, tiny_job(**changes), [1]) / "README.md").read_text()


def test_equal_jobs_have_equal_cards(tmp_path: Path) -> None:
    one = finished(tmp_path / "one", tiny_job()) / "README.md"
    other = finished(tmp_path / "deep" / "other", tiny_job()) / "README.md"
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("job", [tiny_job(), streamed_job(), streamed_job(output__resize="native")])
def test_the_code_of_a_card_reads_the_folder_that_it_lies_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: Job
) -> None:
    for name in ("one", "other"):  # of the same folder's name, so that a cache could mix them up
        place = tmp_path / name / "tokens"
        place.parent.mkdir()
        folder = finished(place, job, broken=[0] if name == "one" else [1, 2])
        monkeypatch.chdir(folder)
        loading, _, training = blocks((folder / "README.md").read_text(encoding="utf-8"))
        names: dict[str, Any] = {}
        exec(loading.text, names)
        assert list(names["tokens"]) == list(load_dataset(str(folder), split="train"))
        assert names["ids"] == names["tokens"][0]["ids"]
        exec(training.text.replace("num_workers=4", "num_workers=0"), names)
        assert len(names["batch"]["ids"]) == len(names["tokens"])


def test_a_pushed_card_names_its_repository_and_the_tokenizers_commit(tmp_path: Path) -> None:
    job = tiny_job(tokenizer__name="user/tokenizer", tokenizer__revision="c" * 40)
    manifest = read_manifest(finished(tmp_path, job))
    text = render_card([CardSplit(job, manifest.totals, manifest.fingerprint)], "user/tokens")
    loading, decoding, training = (block.text for block in blocks(text))
    assert 'load_dataset("user/tokens", split="train")' in loading
    assert f'from_pretrained("user/tokenizer", revision="{"c" * 40}")' in decoding
    assert 'TokenDataset("user/tokens", split="train", seed=0, batch_size=64)' in training
    assert "folder" not in loading + training
    written = (tmp_path / "README.md").read_text(encoding="utf-8").replace("/**/*", "/**/train-*")
    assert re.sub("```.*?```", "", written, flags=re.S) == re.sub("```.*?```", "", text, flags=re.S)


def test_the_hub_client_reads_the_metadata(tmp_path: Path) -> None:
    folder = finished(tmp_path, tiny_job())
    data = DatasetCard.load(folder / "README.md").data
    assert (data.license, data.tags) == ("unknown", ["imagetok", "image-tokens"])
    files = [{"split": "train", "path": "data/**/*.parquet"}]
    assert data["configs"] == [{"config_name": "default", "data_files": files}]
    manifest = read_manifest(folder)
    assert data.dataset_info["description"] == f"imagetok {manifest.fingerprint}"
    assert data.dataset_info["dataset_size"] == manifest.totals.bytes


@pytest.mark.parametrize("name", [name for name in TEXTS if name not in ("empty", "surrogate")])
def test_texts_of_users_stay_where_they_stand(tmp_path: Path, name: str) -> None:
    text = TEXTS[name]

    def job(name: str) -> Job:
        source = {f"input__{key}": name for key in ("name", "subset", "revision", "split")}
        return tiny_job(
            **source | {"input__split": "train"},
            input__image_column=name,
            input__fingerprint=name,
            tokenizer__name=name,
            tokenizer__revision=name,
            tokenizer__fingerprint=name,
        )

    manifest = read_manifest(finished(tmp_path, tiny_job()))
    figures = manifest.totals, manifest.fingerprint
    calm = render_card([CardSplit(job("calm"), *figures)], "calm")
    card = render_card([CardSplit(job(text), *figures)], text)
    card.encode()
    kinds = [shape(one.split("\n---\n", 1)[1]) for one in (card, calm)]
    assert kinds[0] == kinds[1]
    assert kinds[0].count("html_block") == 2
    assert (card.count(CARD_BEGIN), card.count(CARD_END)) == (1, 1)
    for block in blocks(card):
        compile(block.text, "README.md", "exec")
    assert merge_card(calm, card).split("\n---\n", 1)[1] == calm.split("\n---\n", 1)[1]


def shape(text: str) -> list[str]:
    """What a Markdown text consists of, whatever it says."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    kinds = []
    for token in tokens:
        kinds += [token.type, *(child.type for child in token.children or ())]
    return kinds
