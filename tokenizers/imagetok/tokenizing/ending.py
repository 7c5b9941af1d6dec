"""How a tokenizing job ends otherwise than done: stopped by a signal, or failed at work."""

from __future__ import annotations

import signal

from imagetok.errors import ImagetokError


class TokenizingError(ImagetokError, RuntimeError):
    """A job cannot go on, or is not as it should be; what is written so far stays."""


class JobStopped(ImagetokError):  # noqa: N818 - it is no failure
    """A signal stopped a job that goes on when it is started again; exit code 128 + `signum`.

    Args:
        signum: The signal.
        shards: Units of work that this process finished.
    """

    def __init__(self, signum: int, shards: int) -> None:
        super().__init__(signum, shards)
        self.signum, self.shards = signum, shards

    def __str__(self) -> str:
        return (
            f"{signal.Signals(self.signum).name} stopped this process after {self.shards} finished "
            "shards; the same command goes on with the others"
        )
