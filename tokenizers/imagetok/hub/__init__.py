"""The Hugging Face Hub: fetching and pushing tokenizers and tokenized datasets, merging cards.

The one place that speaks with the Hub. It does so only when asked to, and imports huggingface_hub
only then. The names of `imagetok.modelfile` can be imported from here as well.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from imagetok.hub.merging import CARD_BEGIN, CARD_END, merge_card
from imagetok.modelfile import (
    CARD_FILE,
    CONFIG_FILE,
    EVALUATED_KEY,
    EVALUATION_FILE,
    FORMAT_VERSION,
    MODEL_FILE,
    PICTURES_FILE,
    ModelFiles,
    carry_evaluation,
    content_digest,
    load_model,
    load_tensors,
    read_evaluation,
    read_header,
    save_model,
    save_tensors,
    tensors_digest,
)

if TYPE_CHECKING:
    from imagetok.hub.fetching import RemoteModel, is_repo_id, load_remote_model, read_subfolder
    from imagetok.hub.info import RemoteInfo, read_remote_info
    from imagetok.hub.pushing import Pushed, prepare_repository, push_files, push_model
    from imagetok.hub.snapshots import Snapshot, fetch_dataset

_HOMES = {
    "Pushed": "pushing",
    "RemoteInfo": "info",
    "RemoteModel": "fetching",
    "Snapshot": "snapshots",
    "fetch_dataset": "snapshots",
    "is_repo_id": "fetching",
    "load_remote_model": "fetching",
    "prepare_repository": "pushing",
    "push_files": "pushing",
    "push_model": "pushing",
    "read_remote_info": "info",
    "read_subfolder": "fetching",
}

__all__ = [
    "CARD_BEGIN",
    "CARD_END",
    "CARD_FILE",
    "CONFIG_FILE",
    "EVALUATED_KEY",
    "EVALUATION_FILE",
    "FORMAT_VERSION",
    "MODEL_FILE",
    "PICTURES_FILE",
    "ModelFiles",
    "Pushed",
    "RemoteInfo",
    "RemoteModel",
    "Snapshot",
    "carry_evaluation",
    "content_digest",
    "fetch_dataset",
    "is_repo_id",
    "load_model",
    "load_remote_model",
    "load_tensors",
    "merge_card",
    "prepare_repository",
    "push_files",
    "push_model",
    "read_evaluation",
    "read_header",
    "read_remote_info",
    "read_subfolder",
    "save_model",
    "save_tensors",
    "tensors_digest",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'imagetok.hub' has no attribute '{name}'")
    return getattr(import_module(f"imagetok.hub.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
