"""The Hugging Face Hub: fetching and pushing tokenizers and tokenized datasets, merging cards.

The one place that talks to the Hub. It does so only when asked to, and imports huggingface_hub only
then. The names of `imagetok.modelfile` can be imported from here as well.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from imagetok.hub.card_merge import CARD_BEGIN, CARD_END, merge_card
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
    from imagetok.hub.address import is_repo_id, read_subfolder
    from imagetok.hub.dataset_snapshot import Snapshot, fetch_dataset
    from imagetok.hub.push import Pushed, prepare_repository, push_files, push_model
    from imagetok.hub.remote_model import (
        RemoteInfo,
        RemoteModel,
        load_remote_model,
        read_remote_info,
    )

_HOMES = {
    "Pushed": "push",
    "RemoteInfo": "remote_model",
    "RemoteModel": "remote_model",
    "Snapshot": "dataset_snapshot",
    "fetch_dataset": "dataset_snapshot",
    "is_repo_id": "address",
    "load_remote_model": "remote_model",
    "prepare_repository": "push",
    "push_files": "push",
    "push_model": "push",
    "read_remote_info": "remote_model",
    "read_subfolder": "address",
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
