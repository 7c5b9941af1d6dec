"""A tokenizer on the Hub: loaded whole, or described by the first bytes of its file.

    files = load_remote_model("user/name", revision="v1").files
    info = read_remote_info("user/name")

All files come from one commit. Each must have the hash that the Hub names, and the model must be
one that `load_model` accepts. What is refused leaves the cache, so that the next call fetches it
again.

To describe a tokenizer, the header of model.safetensors (config, names, types and shapes) is
fetched alone and put at the beginning of an otherwise empty (sparse) file of the model's size, so
that the same checks as for a local file judge it. `HfApi.parse_safetensors_file_metadata` does not
see tensors that overlap, leave gaps or end beyond the file, and reads all that a server without
support for ranges sends.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from huggingface_hub import constants, get_session, hf_hub_url
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    hf_raise_for_status,
)
from torch import Tensor

from imagetok.errors import HubError, ModelFileError
from imagetok.files import naming_os_errors
from imagetok.hub.address import read_subfolder
from imagetok.hub.client import calling, hub_api
from imagetok.hub.repo_commit import FetchOptions, RemoteFile, RepoCommit, has_hash, is_sha256
from imagetok.modelfile import (
    CONFIG_FILE,
    EVALUATION_FILE,
    MODEL_FILE,
    PICTURES_FILE,
    ModelFiles,
    load_model,
)
from imagetok.modelfile.model_folder import read_config, read_text
from imagetok.modelfile.tensorfile import read_shapes
from imagetok.tokenizer_config import TokenizerConfig

FIRST_BYTES = 64 * 1024
"""Bytes fetched at once: more than the header of any model that imagetok makes."""

_NO_TOKENIZER = "no tokenizer of imagetok lies there"

Shapes = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class RemoteModel:
    """A tokenizer of the Hub.

    Attributes:
        files: Its content, checked.
        folder: The folder of its files on this machine.
        repo_id: `user/name`.
        revision: The commit that all files come from.
    """

    files: ModelFiles
    folder: Path
    repo_id: str
    revision: str


@dataclass(frozen=True)
class RemoteInfo:
    """A tokenizer of the Hub without its weights.

    Attributes:
        config: The configuration in the header of its model.safetensors.
        tensors: Dtype, such as `float32`, and shape of each tensor, by name.
        num_bytes: Size of model.safetensors.
        sha256: The Hub's hash of model.safetensors; None if it is stored as a plain git file.
        revision: The commit that all of this comes from.
        evaluation: Content of evaluation.json; None if there is none.
    """

    config: TokenizerConfig
    tensors: Shapes
    num_bytes: int
    sha256: str | None
    revision: str
    evaluation: dict[str, Any] | None


def load_remote_model(
    repo_id: str,
    *,
    subfolder: str | None = None,
    expect: Callable[[TokenizerConfig], Mapping[str, Tensor]] | None = None,
    **options: Unpack[FetchOptions],
) -> RemoteModel:
    """Fetch, check and read a tokenizer; what is in the cache is not fetched again.

    Args:
        repo_id: `user/name`.
        subfolder: Folder in the repository that holds the tokenizer.
        expect: As for `load_model`.
        options: As for `FetchOptions`.

    Raises:
        ModelFileError: A file is damaged, written by another program or by a newer version, or
            config.json differs from the model's header. It was removed from the cache.
        HubAccessError: Repository, revision or file does not exist or is not accessible.
        HubError: The Hub cannot be reached.
        InvalidValueError: subfolder leads out of the repository.
    """
    prefix = read_subfolder(subfolder)
    commit = RepoCommit.resolve(repo_id, "model", **options)
    config = commit.need(prefix + CONFIG_FILE, _NO_TOKENIZER)
    commit.check(config)
    for name in (EVALUATION_FILE, PICTURES_FILE):
        if (extra := commit.fetch(prefix + name)) is not None:
            commit.check(extra)
    model = commit.need(prefix + MODEL_FILE, _NO_TOKENIZER)
    files = _load(commit, model, config, expect)
    return RemoteModel(files, model.path.parent, repo_id, commit.revision)


def read_remote_info(
    repo_id: str, *, subfolder: str | None = None, **options: Unpack[FetchOptions]
) -> RemoteInfo:
    """Read config, shapes and figures, without fetching the weights.

    Args:
        repo_id: `user/name`.
        subfolder: Folder in the repository that holds the tokenizer.
        options: As for `FetchOptions`.

    Raises:
        ModelFileError: The model's header or evaluation.json is damaged, or written by another
            program or by a newer version.
        HubAccessError: Repository, revision or file does not exist or is not accessible.
        HubError: The Hub cannot be reached.
        InvalidValueError: subfolder leads out of the repository.
    """
    prefix = read_subfolder(subfolder)
    commit = RepoCommit.resolve(repo_id, "model", **options)
    name = prefix + MODEL_FILE
    found = commit.describe(name)
    if found is None:
        raise commit.missing(name, _NO_TOKENIZER)
    if found.size is None:
        raise HubError(f"the Hub does not tell the size of '{name}' of {commit.place}")
    config, tensors = _read_model(commit, name, found.size)
    sha256 = found.etag if is_sha256(found.etag) else None
    evaluation = _read_evaluation(commit, prefix + EVALUATION_FILE)
    return RemoteInfo(config, tensors, found.size, sha256, commit.revision, evaluation)


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
        refusals = [commit.refuse(file, reason) for file in (model, config)]
        raise refusals[0] from None
    # The sha256 of the whole file is known by now; only for a git hash is it read once more.
    if files.sha256 != model.etag and has_hash(model.path, model.etag) is False:
        raise commit.refuse(model)
    return files


def _read_model(commit: RepoCommit, name: str, size: int) -> tuple[TokenizerConfig, Shapes]:
    """Config and shapes of a model.safetensors of `size` bytes."""
    start = _fetch_start(commit, name, FIRST_BYTES) if size else b""  # no range lies in no bytes
    length = 8 + int.from_bytes(start[:8], "little")
    if len(start) < length <= min(size, constants.SAFETENSORS_MAX_HEADER_LENGTH):
        start = _fetch_start(commit, name, length)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_FILE
        with naming_os_errors("write", path), path.open("wb") as file:
            file.write(start[:length])
            file.truncate(size)
        try:
            return read_config(path)[0], read_shapes(path)
        except ModelFileError as error:
            reason = str(error).replace(f"'{path}'", f"'{name}' of {commit.place}")
            raise ModelFileError(reason) from None


def _fetch_start(commit: RepoCommit, name: str, count: int) -> bytes:
    """The first `count` bytes of a file, or all of a shorter one, whatever the server sends."""
    api = hub_api(commit.token)
    headers = build_hf_headers(
        token=api.token, library_name=api.library_name, library_version=api.library_version
    )
    headers |= {"Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}
    url = hf_hub_url(commit.repo_id, name, revision=commit.revision, endpoint=api.endpoint)

    def fetch() -> bytes:
        start = bytearray()
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
            hf_raise_for_status(response)
            for chunk in response.iter_bytes(chunk_size=FIRST_BYTES):
                start += chunk
                if len(start) >= count:  # a server without support for ranges sends on
                    break
        return bytes(start[:count])

    return calling(f"reading the beginning of '{name}' of {commit.place}", fetch)


def _read_evaluation(commit: RepoCommit, name: str) -> dict[str, Any] | None:
    file = commit.fetch(name)
    if file is None:
        return None
    commit.check(file)
    try:
        evaluation = json.loads(read_text(file.path))
    except (OSError, ValueError, RecursionError):
        evaluation = None
    if not isinstance(evaluation, dict):
        raise commit.refuse(file, "it is not a JSON object of a sensible size")
    return evaluation
