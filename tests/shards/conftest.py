"""Tokenized datasets that tests read, or damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_jobs import write_tokens


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 rows in 7 shards, to be read only."""
    return write_tokens(tmp_path_factory.mktemp("tokens") / "tokens")


@pytest.fixture
def copy(tokens: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(tokens, tmp_path / "copy"))
