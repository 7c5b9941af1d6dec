"""What every test runs under: no network, caches of its own, a repository left as it was."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
CACHES = {"__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache"}


def _isolate_caches() -> None:
    """Point every cache at a temporary folder and go offline.

    At import, because `datasets` and `huggingface_hub` read their settings when they are imported;
    processes that tests start inherit them.
    """
    folder = tempfile.mkdtemp(prefix="imagetok-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in [name for name in os.environ if name.startswith("HF_")]:
        del os.environ[name]
    os.environ |= {
        "HF_HOME": f"{folder}/huggingface",
        "HF_DATASETS_CACHE": f"{folder}/datasets",
        "HF_HUB_OFFLINE": "1",
        "TORCH_HOME": f"{folder}/torch",
        "XDG_CACHE_HOME": folder,
    }


_isolate_caches()


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def _repository_stays_clean() -> Iterator[None]:
    before = {entry.name for entry in ROOT.iterdir()} | CACHES
    yield
    left = sorted({entry.name for entry in ROOT.iterdir()} - before)
    assert not left, f"tests left in the repository: {', '.join(left)}; write under tmp_path"


@pytest.fixture(scope="session")
def soak(root: Path) -> ModuleType:
    """Starts, kills and compares whole runs: scripts/soak.py."""
    spec = importlib.util.spec_from_file_location("soak", root / "scripts" / "soak.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module
    spec.loader.exec_module(module)
    return module
