"""Writing checkpoints beside the training: a step waits for the copy, not for the disk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from imagetok.training.checkpoint import write_checkpoint
from imagetok.training.snapshot import Snapshot


class CheckpointWriter:
    """Writes one snapshot at a time in a thread of its own.

    Args:
        folder: Parent of the checkpoints.
        keep_last: Checkpoints kept.
        before: Called in front of each writing, in the thread: it brings to disk what must not
            be older than the checkpoint.
    """

    def __init__(self, folder: Path, keep_last: int, before: Callable[[], None]) -> None:
        self._folder, self._keep_last, self._before = folder, keep_last, before
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None

    def submit(self, snapshot: Snapshot) -> None:
        """Begin to write a snapshot, once the one before it is written; errors as in `wait`."""
        self.wait()
        self._pending = self._thread.submit(self._write, snapshot)

    def wait(self) -> None:
        """Wait until all is written.

        Raises:
            UnwritableFileError: The last snapshot could not be written; older checkpoints stand.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    @property
    def has_failed(self) -> bool:
        """Whether a writing has ended with an error, which `wait` raises."""
        pending = self._pending
        return pending is not None and pending.done() and pending.exception() is not None

    def close(self) -> None:
        """End the thread, after what it is writing; an error of that is not raised."""
        self._thread.shutdown()

    def _write(self, snapshot: Snapshot) -> Path:
        self._before()
        return write_checkpoint(self._folder, snapshot, self._keep_last)
