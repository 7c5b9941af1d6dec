"""What every test runs under: a Hub on loopback and no other network, caches of its own, a
repository left as it was.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from loopback_hub import LoopbackHub

if TYPE_CHECKING:
    from command_line import Run
    from imagetok.codesearch.kernel import Kernel

ROOT = Path(__file__).resolve().parent.parent
CACHES = {"__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
FOREIGN_SETTINGS = re.compile(
    r"(HF|HUGGINGFACE|HUGGING_FACE)_.*|TRANSFORMERS_OFFLINE|IMAGETOK_BACKEND|(all|https?|no)_proxy",
    re.IGNORECASE,
)


def _isolate() -> LoopbackHub:
    """Point every cache at a temporary folder, and every way out at a Hub of our own.

    At import, because `datasets` and `huggingface_hub` read their settings when they are imported;
    processes that tests start inherit them. The Hub is the proxy as well: `datasets` asks the host
    `datasets-server.<Hub>` about a dataset, and no variable turns that off.
    """
    assert "huggingface_hub" not in sys.modules, "imported before its settings stand"
    if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: they share the cores
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    hub = LoopbackHub()
    folder = tempfile.mkdtemp(prefix="imagetok-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in filter(FOREIGN_SETTINGS.fullmatch, list(os.environ)):
        del os.environ[name]
    os.environ |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": f"{folder}/huggingface",
        "HF_DATASETS_CACHE": f"{folder}/datasets",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "TORCH_HOME": f"{folder}/torch",
        "XDG_CACHE_HOME": folder,
        "http_proxy": hub.endpoint,
        "https_proxy": hub.endpoint,
        "no_proxy": "127.0.0.1,localhost,::1",
    }
    return hub


_HUB = _isolate()


@pytest.fixture
def loopback_hub() -> Iterator[LoopbackHub]:
    """An empty Hub that the real clients talk to, in this process and in those that it starts.

    Nothing is cached yet. To be somebody there, pass `token=loopback_hub.token`.
    """
    from huggingface_hub import HfFileSystem

    _HUB.reset()
    for cache in ("HF_HOME", "HF_DATASETS_CACHE"):
        shutil.rmtree(os.environ[cache], ignore_errors=True)
    HfFileSystem.clear_instance_cache()
    yield _HUB
    assert not _HUB.errors, "\n".join(_HUB.errors)


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


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process."""
    from command_line import run_command  # imports imagetok, after the settings above

    return partial(run_command, capfd)


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits between two tries to reach the Hub."""
    for name in ("FIRST_WAIT", "LONGEST_ASKED_WAIT"):
        monkeypatch.setattr(f"imagetok.hub.client.{name}", 0.0)
    impatient = SimpleNamespace(**vars(time) | {"sleep": lambda _: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", impatient)


@pytest.fixture
def logged_in(
    loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, no_waits: None
) -> LoopbackHub:
    """The Hub, where this machine is the user `user`, and nobody waits between tries."""
    monkeypatch.setenv("HF_TOKEN", loopback_hub.token)
    return loopback_hub


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    """The compiled code search; tests that ask for it are skipped where there is no compiler."""
    from imagetok.codesearch.kernel import build_kernel
    from imagetok.errors import KernelError

    try:
        return build_kernel()
    except KernelError as error:
        pytest.skip(str(error))
