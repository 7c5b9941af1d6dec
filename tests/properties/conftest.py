"""How thoroughly properties are tried: the same examples in every run, none kept on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, configuration, settings

configuration.set_hypothesis_home_dir(Path(os.environ["XDG_CACHE_HOME"]) / "hypothesis")

_ALWAYS = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("quick", _ALWAYS, max_examples=100)
settings.register_profile("thorough", _ALWAYS, max_examples=300)
settings.load_profile("quick")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for files that examples write over each other."""
    return tmp_path_factory.mktemp("properties")
