"""Signals that ask a run to stop, and launchers that die without sending one.

A signal sets a flag and nothing else. Once a step the ranks add up their flags, so that all of them
stop after the same step with everything saved:

    with StopSignals() as signals, watch_launcher(signals):
        for step in ...:
            ...
            signum = signals.agreed(distributed.all_reduce_sum(signals.flags()))
            if signum is not None:
                ...                                # save
                raise Stopped(signum, step + 1)

A process of `torchrun` or `accelerate launch` whose launcher is gone would hold its GPU for ever:
it is asked to stop as if SIGTERM had come, and is ended where it cannot.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

import torch
from torch import Tensor

from imagetok.errors import ImagetokError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""What stops a run; of several on different ranks the first one here counts."""

LAUNCHER_VARIABLE = "TORCHELASTIC_RUN_ID"
"""Set by `torchrun`, on which `accelerate launch` builds, in the processes that it starts."""

logger = logging.getLogger(__name__)


class Stopped(ImagetokError):  # noqa: N818 - it is no failure
    """A signal stopped a run that can be resumed; a command line exits with 128 + `signum`.

    Args:
        signum: The signal.
        steps: Steps done and saved.
    """

    def __init__(self, signum: int, steps: int) -> None:
        super().__init__(signum, steps)
        self.signum, self.steps = signum, steps

    def __str__(self) -> str:
        name = signal.Signals(self.signum).name
        if not self.steps:
            return f"{name} stopped the run before its first step; --resume starts it anew"
        return (
            f"{name} stopped the run after step {self.steps}, whose state is saved; the same "
            "command with --resume continues it"
        )


class StopSignals:
    """A context that turns SIGTERM, SIGINT and SIGUSR1 into a flag.

    Entered off the main thread it takes no signals, because Python gives them to the main thread
    only; `request` works everywhere.
    """

    def __init__(self) -> None:
        self._first: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def pending(self) -> int | None:
        """The signal that came first on this rank; None while there is none."""
        return self._first

    def request(self, signum: int) -> None:
        """Set the flag as if the signal had come; a flag that is set stays as it is."""
        if self._first is None:
            self._first = signum

    def flags(self) -> Tensor:
        """This rank's flag, to be summed over the ranks: float64, an entry for each of SIGNALS."""
        return torch.tensor([self._first == each for each in SIGNALS], dtype=torch.float64)

    @staticmethod
    def agreed(sums: Tensor) -> int | None:
        """The signal that stops all ranks, the same one on each of them.

        Args:
            sums: The sums of `flags` over the ranks.
        """
        came = (each for each, count in zip(SIGNALS, sums.tolist(), strict=True) if count > 0)
        return next(came, None)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for each in SIGNALS:
                self._previous[each] = signal.signal(each, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for each, previous in self._previous.items():
            # None stands for a handler that was not installed by Python, which nothing restores.
            signal.signal(each, signal.SIG_DFL if previous is None else previous)
        self._previous.clear()

    def _take(self, signum: int, frame: FrameType | None) -> None:
        self.request(signum)


def ignore_signals() -> None:
    """Ignore SIGNALS from now on: for a process that has saved everything and is about to exit.

    Its exit code then says what stopped it, however often it is asked to stop.
    """
    if threading.current_thread() is threading.main_thread():
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)


@contextmanager
def watch_launcher(
    signals: StopSignals, *, poll: float = 1.0, grace: float = 45.0
) -> Iterator[None]:
    """Within the context, stop this process when the launcher that started it has died.

    A process that no launcher started is left alone: the shell that it came from may go.

    Args:
        signals: Where an orderly stop is asked for, as by SIGTERM.
        poll: Seconds between looks at the launcher.
        grace: Seconds after which the process is ended, with exit code 143, if it is still there:
            another rank is gone or hangs. This holds beyond the context.
    """
    if LAUNCHER_VARIABLE not in os.environ:
        yield
        return
    left = threading.Event()
    arguments = (signals, os.getppid(), left, poll, grace)
    threading.Thread(target=_watch, args=arguments, name="launcher", daemon=True).start()
    try:
        yield
    finally:
        left.set()


def _watch(
    signals: StopSignals, launcher: int, left: threading.Event, poll: float, grace: float
) -> None:
    while os.getppid() == launcher:
        if left.wait(poll):
            return
    logger.warning("warning: the launcher of this process has died; the run stops")
    signals.request(signal.SIGTERM)
    time.sleep(grace)
    # Not sys.exit, which ends this thread only, while the main one may hang in a collective.
    os._exit(128 + signal.SIGTERM)
