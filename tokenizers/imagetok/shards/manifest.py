"""The manifest of a finished dataset, written last by whoever finds all units present.

It is made by a scan of the shards themselves: the hashes are those of the bytes on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from imagetok.config.strict_config import Config, StrictInteger
from imagetok.errors import ConfigError, DataError, UnreadableFileError
from imagetok.files import naming_os_errors, write_atomic
from imagetok.shards.dataset_card import CardSplit, render_card
from imagetok.shards.job import (
    CARD_FILE,
    JOB_FILE,
    MANIFEST_FILE,
    Job,
    TokenizerSource,
    read_job,
)
from imagetok.shards.job_folder import remove_workspaces, unit_lock
from imagetok.shards.shard_scan import (
    ChangedIds,
    Sha256,
    ShardRecord,
    Totals,
    list_shards,
    scan_shards,
)

__all__ = ["Manifest", "ShardRecord", "Totals", "finalize", "read_manifest"]


class Manifest(Config):
    """What a finished tokenized dataset holds.

    Attributes:
        format_version: Version of the folder's layout.
        job: Fingerprint of the job.
        tokenizer: What made the ids.
        totals: Sums over all shards.
        throughput: Figures of speed that the process that finished last gave, if any.
        shards: Records in the order of units and parts.
        changed_ids: What a narrow dtype changed in a sample; None where the dtype is float32, or it
            was not measured.
    """

    later_keys: ClassVar[frozenset[str]] = frozenset({"changed_ids"})

    format_version: Annotated[Literal[1], StrictInteger] = 1
    job: Sha256
    tokenizer: TokenizerSource
    totals: Totals
    throughput: dict[str, Any] | None
    shards: tuple[ShardRecord, ...]
    changed_ids: ChangedIds | None = None

    @property
    def fingerprint(self) -> str:
        """Hash of the job and of all shards: 64 hexadecimal digits."""
        hashes = [self.job, *(shard.sha256 for shard in self.shards)]
        return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of a finished tokenized dataset.

    Raises:
        UnreadableFileError: The folder holds no manifest, or a damaged one.
    """
    path = Path(folder) / MANIFEST_FILE
    if not path.exists():
        if not (path.parent / JOB_FILE).exists():
            raise UnreadableFileError(
                f"'{path.parent}' is not a tokenized dataset: it holds neither {MANIFEST_FILE} nor "
                f"{JOB_FILE}"
            )
        raise UnreadableFileError(
            f"'{path.parent}' has no {MANIFEST_FILE}: its job has not finished; run the job's "
            f"command again, or, if all shards are there, `imagetok tokenize --finalize "
            f"{path.parent}`"
        )
    with naming_os_errors("read", path):
        text = path.read_bytes()
    try:
        return Manifest.from_json(text)
    except ConfigError as error:
        raise UnreadableFileError(f"'{path}' is not a manifest of this version: {error}") from error


def finalize(
    folder: str | os.PathLike[str],
    throughput: Mapping[str, Any] | None = None,
    count_changed_ids: Callable[[], ChangedIds | None] = lambda: None,
) -> Manifest:
    """Write the manifest and the dataset card, once all units are there.

    Several processes may call it at once, and again later. A manifest that lists exactly the files
    that are there stays, and so does what people wrote into its card.

    Args:
        folder: Folder of the tokenized dataset.
        throughput: JSON-like figures of this process's speed.
        count_changed_ids: Measures what a narrow dtype changes; called where a manifest is to be
            written.

    Raises:
        DataError: Units are missing, shards belong to another job, or files lie there that do not
            belong to this one.
        UnreadableFileError: The folder holds no job, or a shard is damaged.
        UnwritableFileError: The disk is full or the folder cannot be written.
    """
    folder = Path(folder)
    job = read_job(folder)
    _refuse_missing_units(folder, job)
    with unit_lock(folder, "manifest", lambda: True, wait=True):
        manifest = _current_manifest(folder, job)
        if manifest is None:
            records = scan_shards(folder, job)
            manifest = Manifest(
                job=job.fingerprint,
                tokenizer=job.tokenizer,
                totals=Totals.of(records),
                throughput=None if throughput is None else dict(throughput),
                shards=tuple(records),
                changed_ids=count_changed_ids(),
            )
            text = json.dumps(manifest.to_dict(), indent=2, ensure_ascii=False)
            with naming_os_errors("remove", folder / CARD_FILE):
                (folder / CARD_FILE).unlink(missing_ok=True)
            write_atomic(folder / MANIFEST_FILE, f"{text}\n".encode())
        if not (folder / CARD_FILE).exists():
            card = render_card(
                [CardSplit(job, manifest.totals, manifest.fingerprint, manifest.changed_ids)]
            )
            write_atomic(folder / CARD_FILE, card.encode())
        for parent in job.paths.parents():
            remove_workspaces(folder / parent)
    return manifest


def _refuse_missing_units(folder: Path, job: Job) -> None:
    paths = job.paths
    missing = [u for u in range(job.num_units) if not (folder / paths.shard(u)).exists()]
    if missing:
        raise DataError(
            f"{len(missing)} of {job.num_units} units are missing in '{folder}', the first is "
            f"'{paths.shard(missing[0])}'; the same tokenize command makes those that are missing"
        )


def _current_manifest(folder: Path, job: Job) -> Manifest | None:
    """The manifest in the folder, if it lists exactly the shards in the folder."""
    try:
        manifest = read_manifest(folder)
    except UnreadableFileError:
        return None
    listed = {shard.path: shard.bytes for shard in manifest.shards}
    names = {job.paths.shard(*shard) for shard in list_shards(folder, job)}
    if manifest.job != job.fingerprint or names != listed.keys():
        return None
    with naming_os_errors("read", folder):
        same = all((folder / name).stat().st_size == size for name, size in listed.items())
    return manifest if same else None
