"""A tiny tokenizer, and a job that nothing disturbed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from small_jobs import RunJob, make_tokenizer, run_job


@pytest.fixture(scope="package")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a saved VQ-VAE."""
    folder = tmp_path_factory.mktemp("tokenizers") / "tiny"
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="package")
def job(tokenizer: Path) -> RunJob:
    """Tokenize into a folder with that tokenizer."""
    return partial(run_job, tokenizer=tokenizer)


@pytest.fixture(scope="package")
def reference(job: RunJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job of forty rows with captions."""
    folder = tmp_path_factory.mktemp("reference") / "out"
    job(folder, keep=["caption"])
    return folder


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Jobs of this process have the numeric settings of those in processes of their own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
