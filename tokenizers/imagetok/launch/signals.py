"""Signals that ask a run to stop, and launchers that die without sending one.

A signal sets a flag and nothing else. Once per step the ranks add up their flags, so that all of
them stop after the same step with everything saved:

    with StopSignals() as signals, watch_launcher(signals):
        for step in ...:
            ...
            signum = signals.agreed(collectives.all_reduce_sum(signals.flags()))
            if signum is not None:
                ...                                # save
                raise Stopped(signum, step + 1)

A process of `torchrun` or `accelerate launch` whose launcher is gone would hold its GPU forever. It
is asked to stop as if SIGTERM had come, and is killed if it does not.
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

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Signals that stop a run; if ranks get different ones, the first one listed here counts."""

LAUNCHER_VARIABLE = "TORCHELASTIC_RUN_ID"
"""Set by `torchrun`, on which `accelerate launch` builds, in the processes that it starts."""

logger = logging.getLogger(__name__)


class StopSignals:
    """A context in which SIGTERM, SIGINT and SIGUSR1 only set a flag.

    Entered outside the main thread it catches no signals, because Python delivers them to the main
    thread only; `request` works everywhere.
    """

    def __init__(self) -> None:
        self._first: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def pending(self) -> int | None:
        """The signal that came first on this rank, or None."""
        return self._first

    def request(self, signum: int) -> None:
        """Set the flag as if the signal had come; a flag that is already set stays as it is."""
        if self._first is None:
            self._first = signum

    def flags(self) -> Tensor:
        """This rank's flag, to be summed over the ranks: float64 (3,), one entry per signal."""
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
    """Ignore SIGNALS from now on, in a process that has saved everything and is about to exit.

    Its exit code then says what stopped it, however often it is asked to stop.
    """
    if threading.current_thread() is threading.main_thread():
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)


@contextmanager
def watch_launcher(
    signals: StopSignals, *, poll: float = 1.0, grace: float = 45.0
) -> Iterator[None]:
    """Within the context, stop this process once the launcher that started it has died.

    A process that no launcher started is left alone: its shell may go away.

    Args:
        signals: The flag through which the process is asked to stop, as by SIGTERM.
        poll: Seconds between looks at the launcher.
        grace: Seconds after which the process is ended, with exit code 143, if it is still there
            because another rank is gone or hangs; also after the context was left.
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
