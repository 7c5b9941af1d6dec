"""What is not tokens, or not what it is asked for, is refused by all that open it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_jobs import write_tokens

from imagetok.errors import DataError, InvalidTypeError, UnreadableFileError
from imagetok.shards import TokenDataset, push_dataset, verify


def push(folder: Path) -> None:
    push_dataset(folder, "user/name", token="none")


openers = pytest.mark.parametrize("open_it", [TokenDataset, verify, push])


def test_ids_of_another_tokenizer_are_refused(tokens: Path) -> None:
    TokenDataset(tokens, tokenizer="f" * 64)
    TokenDataset(tokens, tokenizer=SimpleNamespace(fingerprint="f" * 64))
    message = f"'tokenizer' with the fingerprint {'f' * 64}, not by one .* {'e' * 64}"
    with pytest.raises(DataError, match=message):
        TokenDataset(tokens, tokenizer=SimpleNamespace(fingerprint="e" * 64))
    wrong: Any = 3
    with pytest.raises(InvalidTypeError, match="an ImageTokenizer or a fingerprint"):
        TokenDataset(tokens, tokenizer=wrong)


def test_another_split_than_the_folder_holds_is_refused(tokens: Path) -> None:
    with pytest.raises(DataError, match="holds the split 'train', not 'test'"):
        TokenDataset(tokens, split="test")


@openers
def test_a_folder_without_a_manifest_is_refused(
    copy: Path, tmp_path: Path, open_it: Callable[[Path], Any]
) -> None:
    (copy / "manifest.json").unlink()
    with pytest.raises(UnreadableFileError, match="imagetok tokenize --finalize"):
        open_it(copy)
    with pytest.raises(UnreadableFileError, match="not a tokenized dataset"):
        open_it(tmp_path)


@openers
@pytest.mark.parametrize("name", ["job.json", "manifest.json"])
def test_a_folder_of_another_format_version_is_refused(
    copy: Path, name: str, open_it: Callable[[Path], Any]
) -> None:
    before = (copy / name).read_text()
    (copy / name).write_text(before.replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(UnreadableFileError, match=r"this version.*format_version"):
        open_it(copy)


@openers
def test_the_manifest_of_another_job_is_refused(
    copy: Path, tmp_path: Path, open_it: Callable[[Path], Any]
) -> None:
    shutil.copy(write_tokens(tmp_path / "other", 50, 10) / "job.json", copy)
    with pytest.raises(DataError, match="one of the two was replaced"):
        open_it(copy)


@pytest.mark.parametrize("open_it", [TokenDataset, push])
def test_a_shard_that_is_missing_or_of_another_size_is_named(
    copy: Path, open_it: Callable[[Path], Any]
) -> None:
    path = copy / "data" / "train-00003.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UnreadableFileError, match=r"train-00003\.parquet.* the manifest says"):
        open_it(copy)
    path.unlink()
    with pytest.raises(UnreadableFileError, match=r"train-00003\.parquet"):
        open_it(copy)
