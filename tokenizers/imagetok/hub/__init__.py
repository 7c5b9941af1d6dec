"""The Hugging Face Hub: fetching and pushing tokenizers and tokenized datasets, merging cards.

The one place that talks to the Hub. It does so only when asked to. Names are imported when they are
first used; those of `imagetok.modelfile` can be imported from here as well.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from imagetok import modelfile

if TYPE_CHECKING:
    from imagetok.hub.address import is_repo_id, read_subfolder
    from imagetok.hub.card_merge import CARD_BEGIN, CARD_END, merge_card
    from imagetok.hub.dataset_snapshot import Snapshot, fetch_dataset
    from imagetok.hub.push import Pushed, prepare_repository, push_files, push_model
    from imagetok.hub.remote_model import (
        RemoteInfo,
        RemoteModel,
        load_remote_model,
        read_remote_info,
    )
    from imagetok.modelfile import *  # noqa: F403

_HOMES = {
    "address": ("is_repo_id", "read_subfolder"),
    "card_merge": ("CARD_BEGIN", "CARD_END", "merge_card"),
    "dataset_snapshot": ("Snapshot", "fetch_dataset"),
    "push": ("Pushed", "prepare_repository", "push_files", "push_model"),
    "remote_model": ("RemoteInfo", "RemoteModel", "load_remote_model", "read_remote_info"),
}

__all__ = [
    "CARD_BEGIN",
    "CARD_END",
    "Pushed",
    "RemoteInfo",
    "RemoteModel",
    "Snapshot",
    "fetch_dataset",
    "is_repo_id",
    "load_remote_model",
    "merge_card",
    "prepare_repository",
    "push_files",
    "push_model",
    "read_remote_info",
    "read_subfolder",
]
__all__ += modelfile.__all__


def __getattr__(name: str) -> Any:
    if name in modelfile.__all__:
        return getattr(modelfile, name)
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'imagetok.hub' has no attribute '{name}'")
    return getattr(import_module(f"imagetok.hub.{home}"), name)


def __dir__() -> list[str]:
    return __all__
