"""`TokenFolder`: a complete tokenized dataset, opened from a folder or the Hub, or pushed there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imagetok.arguments import read_folder
from imagetok.errors import DataError, InvalidTypeError, InvalidValueError, UnreadableFileError
from imagetok.files import naming_os_errors
from imagetok.hub import Snapshot, fetch_dataset, is_repo_id
from imagetok.shards.job import JOB_FILE, Job, read_job
from imagetok.shards.manifest import Manifest, read_manifest

if TYPE_CHECKING:
    from imagetok.tokenizer import ImageTokenizer


@dataclass(frozen=True)
class TokenFolder:
    """A folder with a manifest.

    Attributes:
        path: Path of the folder.
        job: The job that filled it.
        manifest: What it holds.
        snapshot: The commit on the Hub that it is of, which may hold more splits; None for a
            folder on this machine, which holds one.
    """

    path: Path
    job: Job
    manifest: Manifest
    snapshot: Snapshot | None = None

    def check_split(self, split: str) -> None:
        """Refuse any split but the folder's.

        Raises:
            DataError: The folder holds another split, or the repository does not hold this one.
        """
        if split != self.job.split_name:
            if self.snapshot is not None:
                raise DataError(
                    f"'{self.snapshot.repo_id}' has no split '{split}': the first of its splits is "
                    f"'{self.job.split_name}', and its card names them all"
                )
            raise DataError(
                f"'{self.path}' holds the split '{self.job.split_name}', not '{split}'; give "
                f"split='{self.job.split_name}'"
            )

    def check_tokenizer(self, tokenizer: ImageTokenizer | str) -> None:
        """Refuse ids that another tokenizer made.

        Args:
            tokenizer: The tokenizer that must have made the ids, or its fingerprint.

        Raises:
            InvalidTypeError: This is neither a tokenizer nor a fingerprint.
            DataError: Another tokenizer made the ids.
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
        """Refuse shards that are missing or differ in size from the manifest.

        Raises:
            UnreadableFileError: A shard is missing or differs.
        """
        for shard in self.manifest.shards:
            with naming_os_errors("read", self.path / shard.path):
                size = os.stat(self.path / shard.path).st_size
            if size != shard.bytes:
                raise UnreadableFileError(
                    f"the shard '{shard.path}' in '{self.path}' has {size} bytes, the manifest "
                    f"says {shard.bytes}; `imagetok verify` lists all that is wrong"
                )

    def columns(self, names: Sequence[str] | None) -> list[str]:
        """Check the names of columns to read besides ids and row; None means all kept ones.

        Raises:
            InvalidTypeError: This is not a list of names.
            DataError: The dataset does not have such a column.
        """
        kept = list(self.job.schema.kept)
        if names is None:
            return kept
        if isinstance(names, str):
            raise InvalidTypeError(f"columns must be a list of names, got {names!r}")
        for name in names:
            if name not in {*kept, "height", "width"}:
                raise DataError(
                    f"'{self.path}' has no column '{name}' to read besides ids and row; choose "
                    f"from: {', '.join([*kept, 'height', 'width'])}"
                )
        return list(names)


def open_folder(
    folder: str | os.PathLike[str],
    *,
    split: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> TokenFolder:
    """Open a tokenized dataset by its path, or by its name on the Hub.

    A split on the Hub is fetched into the cache as a whole, unless it is there already.

    Args:
        folder: Path, or repository `user/name`; a path that exists comes first.
        split: Split to open; None is the only one of a folder, the first one of a repository.
        revision: Branch, tag or commit on the Hub; None is the main branch.
        token: Token for private repositories; None takes the one that `hf auth login` saved.

    Raises:
        InvalidTypeError: `folder` is not a path.
        InvalidValueError: A revision is given for a path.
        UnreadableFileError: The manifest is missing, or a file is damaged.
        DataError: There is no such split, or the manifest belongs to another job than job.json.
        HubAccessError: The repository or revision is missing, or access is not allowed.
        HubError: The Hub cannot be reached.
    """
    if isinstance(folder, str) and is_repo_id(folder):

        def check(found: Snapshot) -> None:
            _open(found.folder / found.place, found.folder, split, found)

        found = fetch_dataset(folder, split=split, check=check, revision=revision, token=token)
        return _open(found.folder / found.place, found.folder, split, found)
    if revision is not None:
        raise InvalidValueError(
            f"revision={revision!r} names a revision on the Hub, but {os.fspath(folder)!r} is not "
            "a repository there: name it user/name, or leave the revision out"
        )
    path = read_folder(folder)
    return _open(path, path, split, None)


def _open(place: Path, path: Path, split: str | None, snapshot: Snapshot | None) -> TokenFolder:
    """Open the dataset whose job and manifest lie in one folder, and its shards in `path`."""
    manifest, job = read_manifest(place), read_job(place)
    if job.fingerprint != manifest.job:
        raise DataError(
            f"'{place}' has the manifest of the job {manifest.job} beside the {JOB_FILE} of "
            f"{job.fingerprint}; one of the two was replaced"
        )
    opened = TokenFolder(path, job, manifest, snapshot)
    if split is not None:
        opened.check_split(split)
    return opened
