"""The images of a unit, decoded ahead of the encoder and handed over in the order of the rows.

    JobInput.read --chunks--> Preparation, in threads or processes --> chunks with pixels or reasons

Both work ahead of whoever takes the chunks, by a bounded number of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Self

from imagetok.data.prefetcher import Prefetcher, Workers
from imagetok.errors import TokenizingError
from imagetok.tokenizing.image_preparation import ImageCell, Outcome, Preparation
from imagetok.tokenizing.job_input import CHUNK, Chunk

Loaded = tuple[Chunk, list[Outcome]]


class ChunkLoader:
    """Decodes chunks ahead of their use; a context manager that ends what it started.

    A loading process that is killed is replaced once for each chunk; a chunk whose images end it
    twice ends the job.

    Args:
        preparation: What is done with images.
        workers: Loading processes; 0 takes threads of this process.
        threads: Number of threads where `workers` is 0.
        batch_size: Images of a batch; two batches are kept ready.
        poll: Called while waiting; what it raises ends the waiting.

    Attributes:
        waited: Seconds spent waiting for data so far.
    """

    def __init__(
        self,
        preparation: Preparation,
        workers: int,
        threads: int,
        batch_size: int,
        poll: Callable[[], None],
    ) -> None:
        self.waited = 0.0
        self._workers: Workers[Sequence[ImageCell | None], list[Outcome]] = Workers(
            [preparation] * (workers or threads),
            in_processes=workers > 0,
            attempts=2,
            killed=_killed,
        )
        self._ahead = max(2, 2 * batch_size // CHUNK)
        self._poll = poll

    def load(self, chunks: Iterable[Chunk]) -> Iterator[Loaded]:
        """The chunks in order, each with the outcomes for its images.

        Raises:
            ImagetokError: The input cannot be read, or loading cannot go on.
        """
        with Prefetcher(self._prepared(chunks), self._ahead, poll=self._poll) as loaded:
            before = self.waited
            for each in loaded:
                self.waited = before + loaded.waited
                yield each

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.close()

    def _prepared(self, chunks: Iterable[Chunk]) -> Iterator[Loaded]:
        """What `load` gives, for the thread of the prefetcher."""
        begun: deque[Chunk] = deque()

        def images() -> Iterator[Sequence[ImageCell | None]]:
            for chunk in chunks:
                begun.append(chunk)
                yield chunk.images

        try:
            for outcomes in self._workers.map(images()):
                yield begun.popleft(), outcomes
        except MemoryError:
            raise TokenizingError(
                "there is too little memory to decode an image; start the job again with fewer "
                "workers or a smaller batch_size"
            ) from None


def _killed() -> TokenizingError:
    return TokenizingError(
        "a process that loads images was ended from outside, and so was the one in its place, as "
        "happens when memory runs out; start the job again with fewer workers"
    )
