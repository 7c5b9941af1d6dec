"""Progress of a job: the bar that is shown, and the figures that go into the manifest."""

from __future__ import annotations

import time
from typing import Any, Self

from tqdm.auto import tqdm

from imagetok.shards.job import Job
from imagetok.tokenizing.chunk_loader import ChunkLoader


class JobProgress:
    """Counts rows and shows a bar; a context manager that closes it.

    The rows of a streamed dataset are estimated from the bytes of its files, once one is done.

    Args:
        job: The job.
        units: Units that this process is going to do.
        loader: Knows how long the encoder has waited for data.
        show: Whether to show a bar.
    """

    def __init__(self, job: Job, units: list[int], loader: ChunkLoader, show: bool) -> None:
        self.rows = self.refused = self.units = 0
        self._job, self._loader = job, loader
        self._ahead = set(units)
        self._sizes = [file.size or 0 for file in job.units.files]
        self._bytes = 0
        self._started = time.perf_counter()
        self._bar = tqdm(
            total=sum(map(self._rows_of, units)) or None,
            desc="tokenize",
            unit="image",
            disable=not show,
        )

    def begin(self, unit: int) -> None:
        """Note that a unit is begun, which may be one of another rank."""
        if unit not in self._ahead and self._bar.total is not None:
            self._bar.total += self._rows_of(unit)
        self._ahead.add(unit)

    def advance(self, rows: int, refused: int) -> None:
        """Add to the numbers of rows that were tokenized and refused."""
        self.rows, self.refused = self.rows + rows, self.refused + refused
        text = f"waiting for data {self._waiting_share():.0%}"
        if self.refused:
            text += f", {self.refused} rows refused"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(rows + refused)

    def end(self, unit: int) -> None:
        """Note that a unit is done."""
        self.units += 1
        self._ahead.discard(unit)
        if self._sizes:
            self._bytes += self._sizes[unit]
            left = sum(self._sizes[other] for other in self._ahead)
            seen = self.rows + self.refused
            self._bar.total = seen + round(seen * left / self._bytes) if self._bytes else None

    def figures(self) -> dict[str, Any]:
        """What the manifest says about the speed of this process."""
        seconds = time.perf_counter() - self._started
        return {
            "rows": self.rows + self.refused,
            "seconds": round(seconds, 3),
            "images_per_second": round((self.rows + self.refused) / seconds, 3),
            "waiting_share": round(self._waiting_share(), 4),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def _rows_of(self, unit: int) -> int:
        rows = self._job.rows_of(unit)
        return 0 if rows is None else len(rows)

    def _waiting_share(self) -> float:
        return self._loader.waited / max(1e-9, time.perf_counter() - self._started)
