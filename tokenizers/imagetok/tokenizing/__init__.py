"""From pictures to shards of token ids, each row exactly once.

    dataset --Input--> units --Loader--> pixels --Encoder--> ids --UnitWriter--> shards

Names are imported when they are first used, so that a loading process imports what it needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagetok.tokenizing.ending import JobStopped, TokenizingError
    from imagetok.tokenizing.run import tokenize_dataset

_PLACES = {"JobStopped": "ending", "TokenizingError": "ending", "tokenize_dataset": "run"}

__all__ = ["JobStopped", "TokenizingError", "tokenize_dataset"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
