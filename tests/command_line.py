"""The command line as a user meets it, run in this process."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from imagetok import cli
from imagetok.launch import SIGNALS


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, and what it printed where."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What stands on stderr, line by line."""
        return self.err.splitlines()

    @property
    def last_line(self) -> str:
        """The last line on stderr, which tells what went wrong."""
        return self.err.splitlines()[-1]


Run = Callable[..., Ended]


def run_command(capfd: pytest.CaptureFixture[str], *arguments: object) -> Ended:
    """Run `imagetok` with these arguments."""
    capfd.readouterr()
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in arguments])
    finally:  # a command that was stopped ignores further signals until its process ends
        for number, handler in handlers.items():
            signal.signal(number, handler)
    code = stop.value.code
    assert code is None or isinstance(code, int)
    return Ended(code or 0, *capfd.readouterr())
