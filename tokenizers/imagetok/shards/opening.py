"""A complete tokenized dataset: its job, its manifest, and shards that are as large as listed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from imagetok.arguments import read_folder
from imagetok.errors import DataError, InvalidTypeError, InvalidValueError, UnreadableFileError
from imagetok.files import naming_os_errors
from imagetok.hub import fetch_dataset, is_repo_id
from imagetok.shards.folder import read_job
from imagetok.shards.job import Job
from imagetok.shards.manifest import Manifest, read_manifest
from imagetok.shards.paths import JOB_FILE


class Fingerprinted(Protocol):
    """A tokenizer, as far as reading its ids goes."""

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides its ids."""


@dataclass(frozen=True)
class TokenFolder:
    """A folder with a manifest.

    Attributes:
        path: The folder.
        job: What made it.
        manifest: What it holds.
    """

    path: Path
    job: Job
    manifest: Manifest

    def check_split(self, split: str) -> None:
        """Refuse, with DataError, another split than the folder's."""
        if split != self.job.split_name:
            raise DataError(
                f"'{self.path}' holds the split '{self.job.split_name}', not '{split}'; give "
                f"split='{self.job.split_name}'"
            )

    def check_tokenizer(self, tokenizer: Fingerprinted | str) -> None:
        """Refuse ids of another tokenizer.

        Args:
            tokenizer: The tokenizer that they are to be of, or its fingerprint.

        Raises:
            InvalidTypeError: This is neither.
            DataError: They are not.
        """
        wanted, source = getattr(tokenizer, "fingerprint", tokenizer), self.job.tokenizer
        if not isinstance(wanted, str):
            raise InvalidTypeError(
                f"tokenizer must be an ImageTokenizer or a fingerprint, got {tokenizer!r}"
            )
        if wanted != source.fingerprint:
            raise DataError(
                f"the ids in '{self.path}' were made by the tokenizer '{source.name}' with the "
                f"fingerprint {source.fingerprint}, not by one with the fingerprint {wanted}"
            )

    def check_sizes(self) -> None:
        """Refuse, with UnreadableFileError, shards that are missing or of another size."""
        for shard in self.manifest.shards:
            with naming_os_errors("read", self.path / shard.path):
                size = os.stat(self.path / shard.path).st_size
            if size != shard.bytes:
                raise UnreadableFileError(
                    f"the shard '{shard.path}' in '{self.path}' has {size} bytes, the manifest "
                    f"says {shard.bytes}; `imagetok verify` lists all that is wrong"
                )

    def columns(self, names: Sequence[str] | None) -> list[str]:
        """Columns beside ids and identity; None is all kept ones.

        Raises:
            InvalidTypeError: These are no names.
            DataError: There is no such column.
        """
        kept = list(self.job.schema.kept)
        if names is None:
            return kept
        if isinstance(names, str):
            raise InvalidTypeError(f"columns must be a list of names, got {names!r}")
        for name in names:
            if name not in {*kept, "height", "width"}:
                raise DataError(
                    f"'{self.path}' has no column '{name}' to read beside ids and row; choose "
                    f"from: {', '.join([*kept, 'height', 'width'])}"
                )
        return list(names)


def open_folder(
    folder: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> TokenFolder:
    """Open a tokenized dataset by its path, or by its name on the Hub.

    One on the Hub is fetched into the cache, all of it, where it is not there yet.

    Args:
        folder: Path, or repository `user/name`; where there is such a path, it is taken.
        revision: Branch, tag or commit on the Hub; None is its main branch.
        token: For private repositories; None takes the one that `hf auth login` saved.

    Raises:
        InvalidTypeError: This is no path.
        InvalidValueError: A revision is given for a path.
        UnreadableFileError: There is no manifest, or a file is damaged.
        DataError: The manifest is not of the job that is named beside it.
        HubAccessError: The repository or revision is not there, or not allowed.
        HubError: The Hub cannot be reached.
    """
    if isinstance(folder, str) and is_repo_id(folder):
        path = fetch_dataset(folder, revision=revision, token=token).folder
    elif revision is None:
        path = read_folder(folder)
    else:
        raise InvalidValueError(
            f"revision={revision!r} is of a repository on the Hub, and {os.fspath(folder)!r} is "
            "none: name it user/name, or leave the revision out"
        )
    manifest = read_manifest(path)
    job = read_job(path)
    if job.fingerprint != manifest.job:
        raise DataError(
            f"'{path}' has the manifest of the job {manifest.job} beside the {JOB_FILE} of "
            f"{job.fingerprint}; one of the two was replaced"
        )
    return TokenFolder(path, job, manifest)
