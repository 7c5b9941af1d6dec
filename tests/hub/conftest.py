"""A user of the Hub at a command line."""

from __future__ import annotations

from functools import partial

import pytest

from command_line import Run, run_command
from loopback_hub import LoopbackHub


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process."""
    return partial(run_command, capfd)


@pytest.fixture
def logged_in(loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """The Hub, where this machine is the user `user`, and nobody waits between tries."""
    monkeypatch.setenv("HF_TOKEN", loopback_hub.token)
    monkeypatch.setattr("imagetok.hub.client.FIRST_WAIT", 0.0)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    return loopback_hub
