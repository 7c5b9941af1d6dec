"""A tokenizer on the Hub: its files, all of one commit, checked before they are used.

    files = load_remote_model("user/name", revision="v1").files

Each file must have the hash that the Hub names, and the model must be one that `load_model` takes.
What is refused leaves the cache, so that the next call fetches it again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from torch import Tensor

from imagetok.config import TokenizerConfig
from imagetok.errors import HubAccessError, InvalidTypeError, InvalidValueError, ModelFileError
from imagetok.hub.cache import has_etag
from imagetok.hub.commits import RemoteFile, RepoCommit
from imagetok.hub.revisions import check_repo_id
from imagetok.modelfile.model_folder import (
    CONFIG_FILE,
    EVALUATION_FILE,
    MODEL_FILE,
    PICTURES_FILE,
    ModelFiles,
    load_model,
)

NO_TOKENIZER = "no tokenizer of imagetok lies there"


@dataclass(frozen=True)
class RemoteModel:
    """A tokenizer of the Hub.

    Attributes:
        files: What it holds, checked.
        folder: Where its files lie on this machine.
        repo_id: `user/name`.
        revision: The commit that all of them come from.
    """

    files: ModelFiles
    folder: Path
    repo_id: str
    revision: str


def is_repo_id(name: str) -> bool:
    """Whether a name means a repository `user/name` on the Hub and not a path.

    What exists on this machine is a path, whatever it is called; so is what is absolute, begins
    with `.` or `~`, or has more than one slash.
    """
    try:
        check_repo_id(name)
    except HubAccessError:
        return False
    return name.count("/") == 1 and not os.path.lexists(name)


def load_remote_model(
    repo_id: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    expect: Callable[[TokenizerConfig], Mapping[str, Tensor]] | None = None,
) -> RemoteModel:
    """Fetch, check and read a tokenizer; what is in the cache is not fetched again.

    Args:
        repo_id: `user/name`.
        revision: Branch, tag, PR reference or commit; None is the main branch. It is resolved
            once, by one request; none is made for a commit that is in the cache.
        subfolder: Folder in the repository that holds the tokenizer.
        token: As for `hub_api`.
        cache_dir: Of the Hub's files; None is huggingface_hub's own.
        local_files_only: Take what is in the cache, and make no request.
        expect: As for `load_model`.

    Raises:
        ModelFileError: A file is damaged, of another program or of a newer version, or config.json
            differs from the model's header. It was taken out of the cache.
        HubAccessError: Repository, revision or file is not there, or not allowed.
        HubError: The Hub cannot be reached.
        InvalidValueError: subfolder leads out of the repository.
    """
    prefix = read_subfolder(subfolder)
    commit = RepoCommit.resolve(
        repo_id,
        repo_type="model",
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    config = _need(commit, prefix + CONFIG_FILE)
    commit.check(config)
    for name in (EVALUATION_FILE, PICTURES_FILE):
        if (extra := commit.fetch(prefix + name)) is not None:
            commit.check(extra)
    model = _need(commit, prefix + MODEL_FILE)
    files = _load(commit, model, config, expect)
    return RemoteModel(files, model.path.parent, repo_id, commit.revision)


def read_subfolder(subfolder: str | None) -> str:
    """What stands before the names of a subfolder's files: nothing, or a path with a slash.

    Raises:
        InvalidTypeError: This is no text.
        InvalidValueError: It is absolute, has backslashes or leads upwards.
    """
    if subfolder is None or subfolder == "":
        return ""
    if not isinstance(subfolder, str):
        raise InvalidTypeError(f"subfolder must be a text, got {type(subfolder).__name__}")
    parts = subfolder.removesuffix("/").split("/")
    if "\\" in subfolder or "\0" in subfolder or not {"", ".", ".."}.isdisjoint(parts):
        raise InvalidValueError(
            f"subfolder {subfolder!r} is no folder in a repository; expected a relative path such "
            "as 'models/small'"
        )
    return f"{PurePosixPath(*parts)}/"


def _need(commit: RepoCommit, name: str) -> RemoteFile:
    """A file without which there is no tokenizer."""
    file = commit.fetch(name)
    if file is None:
        raise commit.missing(name, NO_TOKENIZER)
    return file


def _load(
    commit: RepoCommit,
    model: RemoteFile,
    config: RemoteFile,
    expect: Callable[[TokenizerConfig], Mapping[str, Tensor]] | None,
) -> ModelFiles:
    try:
        files = load_model(model.path.parent, exact_copy=True, expect=expect)
    except ModelFileError as error:
        commit.check(model)
        reason = str(error).replace(f"{commit.folder}{os.sep}", "")
        refusals = [commit.refusal(file, reason) for file in (model, config)]
        raise refusals[0] from None
    # The hash of the whole file is known by now; it is read once more for any other hash only.
    if files.sha256 != model.etag and has_etag(model.path, model.etag) is False:
        raise commit.refusal(model)
    return files
