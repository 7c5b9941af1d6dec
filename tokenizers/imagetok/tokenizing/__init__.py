"""From images to shards of token ids, each row exactly once.

    dataset --JobInput--> units --ChunkLoader--> pixels --BatchEncoder--> ids --UnitWriter--> shards

`job_run` is where to begin reading. Names are imported when they are first used, so that a loading
process imports only what it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imagetok.errors import JobStopped, TokenizingError

if TYPE_CHECKING:
    from imagetok.tokenizing.job_run import tokenize_dataset

__all__ = ["JobStopped", "TokenizingError", "tokenize_dataset"]


def __getattr__(name: str) -> Any:
    if name != "tokenize_dataset":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from imagetok.tokenizing.job_run import tokenize_dataset

    return tokenize_dataset
