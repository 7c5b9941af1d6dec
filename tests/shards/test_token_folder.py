"""What is not whole, or not what it is asked for, is refused by all that open it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_tokens import write_tokens

from imagetok.errors import DataError, InvalidTypeError, UnreadableFileError
from imagetok.shards import TokenDataset, push_dataset, verify

ROWS = 50


def push(folder: Path) -> None:
    push_dataset(folder, "user/name", token="none")


openers = pytest.mark.parametrize("open_it", [TokenDataset, verify, push])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 rows in 7 shards."""
    return write_tokens(tmp_path_factory.mktemp("whole") / "tokens", ROWS, 8)


@pytest.fixture
def tokens(whole: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "tokens"))


def test_ids_of_another_tokenizer_are_refused(whole: Path) -> None:
    TokenDataset(whole, tokenizer="f" * 64)
    TokenDataset(whole, tokenizer=SimpleNamespace(fingerprint="f" * 64))
    message = f"'tokenizer' with the fingerprint {'f' * 64}, not by one .* {'e' * 64}"
    with pytest.raises(DataError, match=message):
        TokenDataset(whole, tokenizer=SimpleNamespace(fingerprint="e" * 64))
    wrong: Any = 3
    with pytest.raises(InvalidTypeError, match="an ImageTokenizer or a fingerprint"):
        TokenDataset(whole, tokenizer=wrong)


def test_another_split_than_the_folder_holds_is_refused(whole: Path) -> None:
    with pytest.raises(DataError, match="holds the split 'train', not 'test'"):
        TokenDataset(whole, split="test")


@openers
def test_a_folder_without_a_manifest_is_refused(
    tokens: Path, tmp_path: Path, open_it: Callable[[Path], Any]
) -> None:
    (tokens / "manifest.json").unlink()
    with pytest.raises(UnreadableFileError, match="imagetok tokenize --finalize"):
        open_it(tokens)
    with pytest.raises(UnreadableFileError, match="not a tokenized dataset"):
        open_it(tmp_path)


@openers
@pytest.mark.parametrize("name", ["job.json", "manifest.json"])
def test_a_folder_of_another_format_version_is_refused(
    tokens: Path, name: str, open_it: Callable[[Path], Any]
) -> None:
    before = (tokens / name).read_text()
    (tokens / name).write_text(before.replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(UnreadableFileError, match=r"this version.*format_version"):
        open_it(tokens)


@openers
def test_the_manifest_of_another_job_is_refused(
    tokens: Path, tmp_path: Path, open_it: Callable[[Path], Any]
) -> None:
    shutil.copy(write_tokens(tmp_path / "other", ROWS, 10) / "job.json", tokens)
    with pytest.raises(DataError, match="one of the two was replaced"):
        open_it(tokens)


@pytest.mark.parametrize("open_it", [TokenDataset, push])
def test_a_shard_that_is_missing_or_of_another_size_is_named(
    tokens: Path, open_it: Callable[[Path], Any]
) -> None:
    path = tokens / "data" / "train-00003.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UnreadableFileError, match=r"train-00003\.parquet.* the manifest says"):
        open_it(tokens)
    path.unlink()
    with pytest.raises(UnreadableFileError, match=r"train-00003\.parquet"):
        open_it(tokens)
