"""What a tokenizer on the Hub is, read from the first bytes of its file.

    info = read_remote_info("user/name")

The header of model.safetensors holds config, names, types and shapes. It is fetched alone and put
at the beginning of an otherwise empty (sparse) file of the model's size, so that the very checks of
a local file judge it: that tensors neither overlap nor leave gaps, and end where the file does.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session, hf_hub_url
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    hf_raise_for_status,
)

from imagetok.config import TokenizerConfig
from imagetok.errors import HubError, ModelFileError
from imagetok.files import naming_os_errors
from imagetok.hub.cache import is_sha256
from imagetok.hub.client import calling, hub_api
from imagetok.hub.commits import RepoCommit
from imagetok.hub.fetching import NO_TOKENIZER, read_subfolder
from imagetok.modelfile.model_folder import EVALUATION_FILE, MODEL_FILE, read_config, read_text
from imagetok.modelfile.tensorfile import read_shapes

FIRST_BYTES = 64 * 1024
"""Fetched at once: more than the header of any model that imagetok makes."""

MOST_HEADER_BYTES = 25_000_000  # what huggingface_hub reads of any model


@dataclass(frozen=True)
class RemoteInfo:
    """A tokenizer of the Hub without its weights.

    Attributes:
        config: The configuration in the header of its model.safetensors.
        tensors: By name: dtype, such as `float32`, and shape.
        num_bytes: Size of that file.
        sha256: Of that file, as the Hub names it; None where it is kept as a plain git file.
        revision: The commit that all of this comes from.
        evaluation: What evaluation.json holds; None if there is none.
    """

    config: TokenizerConfig
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    num_bytes: int
    sha256: str | None
    revision: str
    evaluation: dict[str, Any] | None


def read_remote_info(
    repo_id: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
) -> RemoteInfo:
    """Read config, shapes and figures, without fetching the weights.

    Args:
        repo_id: `user/name`.
        revision: Branch, tag, PR reference or commit; None is the main branch.
        subfolder: Folder in the repository that holds the tokenizer.
        token: As for `hub_api`.

    Raises:
        ModelFileError: The model's header or evaluation.json is damaged, of another program or of
            a newer version.
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
        cache_dir=None,
        local_files_only=False,
    )
    name = prefix + MODEL_FILE
    found = commit.describe(name)
    if found is None:
        raise commit.missing(name, NO_TOKENIZER)
    if found.size is None:
        raise HubError(f"the Hub does not tell the size of '{name}' of {commit.place}")
    config, tensors = _read_model(commit, name, found.size)
    sha256 = found.etag if is_sha256(found.etag) else None
    evaluation = _read_evaluation(commit, prefix + EVALUATION_FILE)
    return RemoteInfo(config, tensors, found.size, sha256, commit.revision, evaluation)


def _read_model(
    commit: RepoCommit, name: str, size: int
) -> tuple[TokenizerConfig, dict[str, tuple[str, tuple[int, ...]]]]:
    """Config and shapes of a model.safetensors of `size` bytes."""
    start = _fetch_start(commit, name, FIRST_BYTES) if size else b""  # no range lies in no bytes
    length = 8 + int.from_bytes(start[:8], "little")
    if len(start) < length <= min(size, MOST_HEADER_BYTES):
        start = _fetch_start(commit, name, length)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_FILE
        with naming_os_errors("write", path), path.open("wb") as file:
            file.write(start[:length])
            file.truncate(size)
        try:
            config, _ = read_config(path)
            return config, read_shapes(path)
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
                if len(start) >= count:  # a server that knows no ranges sends on
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
        raise commit.refusal(file, "it is no JSON object of a sensible size")
    return evaluation
