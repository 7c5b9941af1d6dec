"""A complete tokenized dataset: its job, its manifest, and shards that are as large as listed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from imagetok.arguments import read_folder
from imagetok.errors import DataError, InvalidTypeError, UnreadableFileError
from imagetok.files import naming_os_errors
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


def open_folder(folder: str | os.PathLike[str]) -> TokenFolder:
    """Open a tokenized dataset by its path.

    Raises:
        InvalidTypeError: This is no path.
        UnreadableFileError: There is no manifest, or it cannot be read.
        DataError: The manifest is not of the job that is named beside it.
    """
    path = read_folder(folder)
    manifest = read_manifest(path)
    job = read_job(path)
    if job.fingerprint != manifest.job:
        raise DataError(
            f"'{path}' has the manifest of the job {manifest.job} beside the {JOB_FILE} of "
            f"{job.fingerprint}; one of the two was replaced"
        )
    return TokenFolder(path, job, manifest)
