"""A tokenizer's way to files, to the Hub and back: functions that `ImageTokenizer` calls.

What talks to the Hub is imported where it is used: huggingface_hub and its HTTP client take a tenth
of a second, and a tokenizer in a folder needs neither.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from torch import Tensor

from imagetok.arguments import read_folder
from imagetok.cards import write_model_card
from imagetok.errors import InvalidValueError, ModelFileError
from imagetok.files import file_sha256, naming_os_errors, write_atomic
from imagetok.hub import is_repo_id, read_subfolder
from imagetok.modelfile import (
    CARD_FILE,
    MODEL_FILE,
    ModelFiles,
    carry_evaluation,
    load_model,
    read_evaluation,
    save_model,
)
from imagetok.tokenizer_config import TokenizerConfig

if TYPE_CHECKING:
    from imagetok.hub import Pushed
    from imagetok.hub.branch import PushOptions
    from imagetok.hub.repo_commit import FetchOptions

RUN_SUBFOLDER = "tokenizer"
"""Folder of a training run that holds the trained tokenizer."""


@dataclass(frozen=True)
class Origin:
    """Where a tokenizer was loaded from.

    Attributes:
        name: Repository on the Hub, or the folder as it was given.
        revision: Commit on the Hub; None for a local folder.
        folder: The folder that holds its files.
        sha256: Digest of the whole file model.safetensors.
    """

    name: str
    revision: str | None
    folder: Path
    sha256: str


def open_pretrained(
    name: str | os.PathLike[str],
    *,
    expect: Callable[[TokenizerConfig], Mapping[str, Tensor]],
    subfolder: str | None = None,
    **options: Unpack[FetchOptions],
) -> tuple[ModelFiles, Origin]:
    """Read the files of a saved tokenizer, and say where they came from.

    Args:
        name: Local folder, or repository `user/name` on the Hub; a folder that exists wins. The
            folder of a run stands for its `tokenizer`, and a `model.safetensors` for its folder.
        expect: Gives the tensors that a config's model wants, so that files which disagree are
            refused before anything is built.
        subfolder: Folder in the repository that holds the tokenizer.
        options: As for `imagetok.hub.repo_commit.FetchOptions`; only the Hub has a revision.

    Raises:
        ModelFileError: The folder or a file is missing, damaged, or disagrees with itself.
        HubAccessError: The repository, revision or file is not there, or not allowed.
        HubError: The Hub cannot be reached.
        InvalidValueError: A revision is given for a local folder.
        InvalidTypeError: name is not a path.
    """
    if isinstance(name, str) and is_repo_id(name):
        from imagetok.hub import load_remote_model

        found = load_remote_model(name, subfolder=subfolder, expect=expect, **options)
        return found.files, Origin(name, found.revision, found.folder, found.files.sha256)
    if (revision := options.get("revision")) is not None:
        raise InvalidValueError(
            f"revision={revision!r} is of a repository on the Hub, and {os.fspath(name)!r} "
            "is none: name it user/name, or leave the revision out"
        )
    folder = find_folder(read_folder(name) / read_subfolder(subfolder))
    files = load_model(folder, expect=expect)
    return files, Origin(os.fspath(name), None, files.path.parent.absolute(), files.sha256)


def find_folder(path: Path) -> Path:
    """The folder of the tokenizer that a path means: of a run its `tokenizer`, of a file its own.

    Raises:
        ModelFileError: The path is a file that no tokenizer is saved to.
    """
    if path.name == MODEL_FILE and os.path.isfile(path):
        return path.parent
    if os.path.isfile(path):
        raise ModelFileError(
            f"'{path}' is a file; expected the folder that a tokenizer was saved to, or its "
            f"{MODEL_FILE}"
        )
    inside = path / RUN_SUBFOLDER
    is_run = os.path.exists(inside / MODEL_FILE) and not os.path.exists(path / MODEL_FILE)
    return inside if is_run else path


def save_pretrained(
    folder: Path,
    config: TokenizerConfig | None,
    tensors: Mapping[str, Tensor],
    origin: Origin | None,
    repo_id: str | None = None,
) -> None:
    """Write `model.safetensors`, `config.json` and a card; interrupted, the old files stay.

    Figures and image that lie beside the loaded file are copied if they belong to the same weights.

    Args:
        folder: Where to write.
        config: What rebuilds the tokenizer; None is refused.
        tensors: Its `state_dict()`.
        origin: Where it was loaded from, if it was.
        repo_id: Where the card says it lies; None is the folder itself.

    Raises:
        InvalidValueError: The config is None, or a weight is not finite.
        UnwritableFileError: The folder cannot be made or written.
    """
    if config is None:
        raise InvalidValueError(
            "this tokenizer was put together from parts and has no config, so no file could "
            "rebuild it; build it with ImageTokenizer.from_config to save it"
        )
    save_model(folder, config, tensors)
    if origin is not None:
        carry_evaluation(origin.folder, folder)
        _carry_card(origin.folder, folder)
    figures = read_evaluation(folder, file_sha256(folder / MODEL_FILE))
    write_model_card(folder, config, figures, repo_id)


def push_pretrained(
    repo_id: str,
    config: TokenizerConfig | None,
    tensors: Mapping[str, Tensor],
    origin: Origin | None,
    **options: Unpack[PushOptions],
) -> Pushed:
    """Save a tokenizer to a temporary folder and push it, in one commit.

    Args:
        repo_id: `user/name`.
        config: What rebuilds the tokenizer.
        tensors: Its `state_dict()`.
        origin: Where it was loaded from, if it was.
        options: As for `imagetok.hub.branch.PushOptions`.

    Raises:
        HubAccessError, HubError: The Hub refuses or cannot be reached.
        InvalidValueError: The tokenizer cannot be saved; see `save_pretrained`.
    """
    from imagetok.hub import push_model

    with tempfile.TemporaryDirectory(prefix="imagetok-push-") as folder:
        save_pretrained(Path(folder), config, tensors, origin, repo_id)
        return push_model(folder, repo_id, **options)


def _carry_card(source: Path, target: Path) -> None:
    """Copy what people wrote into a card, where there is no card yet."""
    with naming_os_errors("copy the card in", source):
        if (source / CARD_FILE).is_file() and not (target / CARD_FILE).exists():
            write_atomic(target / CARD_FILE, (source / CARD_FILE).read_bytes())
