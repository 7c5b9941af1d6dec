"""Caches of the tests' own."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from small_rows import Open

from imagetok.data import open_images

datasets.disable_progress_bars()


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def open_rows(cache: Path) -> Open:
    """`open_images` with a cache of the test's own."""
    return lambda name, split="train", **options: open_images(
        str(name), split, cache_dir=cache, **options
    )
