"""The manifest of a finished dataset, written last, by whoever finds all units present.

It is made from the files themselves: hashes are those of the bytes that lie on the disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagetok.errors import ConfigError, DataError, UnreadableFileError
from imagetok.files import naming_os_errors, write_atomic
from imagetok.shards.card import render_card
from imagetok.shards.claims import claimed, remove_work
from imagetok.shards.folder import read_job
from imagetok.shards.job import Job
from imagetok.shards.paths import CARD_FILE, JOB_FILE, MANIFEST_FILE
from imagetok.shards.records import Manifest, ShardRecord, Totals
from imagetok.shards.stock import list_shards, take_stock

__all__ = ["Manifest", "ShardRecord", "Totals", "finalize", "read_manifest"]


def finalize(
    folder: str | os.PathLike[str], throughput: Mapping[str, Any] | None = None
) -> Manifest:
    """Write the manifest and the dataset card, once all units are there.

    Several processes may call it at once, and again later: where there is a manifest of the very
    files that lie there, it stays, and so does what people made of its card.

    Args:
        folder: Of the tokenized dataset.
        throughput: JSON-like figures of this process's speed.

    Raises:
        DataError: Units are missing, shards are of another job, or files lie there that are not
            of this one.
        UnreadableFileError: There is no job, or a shard is damaged.
        UnwritableFileError: The disk is full, or the like.
    """
    folder = Path(folder)
    job = read_job(folder)
    paths = job.paths
    missing = [u for u in range(job.num_units) if not (folder / paths.shard(u)).exists()]
    if missing:
        raise DataError(
            f"{len(missing)} of {job.num_units} units are missing in '{folder}', the first is "
            f"'{paths.shard(missing[0])}'; the same tokenize command makes those that are missing"
        )
    with claimed(folder, "manifest", lambda: True, wait=True):
        manifest = _current(folder, job)
        if manifest is None:
            manifest = _take_stock(folder, job, throughput)
            text = json.dumps(manifest.to_dict(), indent=2, ensure_ascii=False)
            with naming_os_errors("remove", folder / CARD_FILE):
                (folder / CARD_FILE).unlink(missing_ok=True)
            write_atomic(folder / MANIFEST_FILE, f"{text}\n".encode())
        if not (folder / CARD_FILE).exists():
            write_atomic(folder / CARD_FILE, render_card(job, manifest).encode())
        for parent in paths.parents():
            remove_work(folder / parent)
    return manifest


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """The manifest of a finished tokenized dataset.

    Raises:
        UnreadableFileError: The folder holds none, or a damaged one.
    """
    path = Path(folder) / MANIFEST_FILE
    if not path.exists():
        if not (path.parent / JOB_FILE).exists():
            raise UnreadableFileError(
                f"'{path.parent}' is no tokenized dataset: it holds neither {MANIFEST_FILE} nor "
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
        raise UnreadableFileError(f"'{path}' is no manifest of this version: {error}") from error


def _current(folder: Path, job: Job) -> Manifest | None:
    """The manifest that lies there, if it lists the files that do."""
    try:
        manifest = read_manifest(folder)
    except UnreadableFileError:
        return None
    listed = {shard.path: shard.bytes for shard in manifest.shards}
    names = {job.paths.shard(*place) for place in list_shards(folder, job)}
    if manifest.job != job.fingerprint or names != listed.keys():
        return None
    with naming_os_errors("read", folder):
        same = all((folder / name).stat().st_size == size for name, size in listed.items())
    return manifest if same else None


def _take_stock(folder: Path, job: Job, throughput: Mapping[str, Any] | None) -> Manifest:
    records = take_stock(folder, job)
    totals = {
        name: sum(getattr(record, name) for record in records)
        for name in ("rows", "refused", "tokens", "bytes")
    }
    totals |= {"rows_in": totals["rows"] + totals["refused"], "shards": len(records)}
    return Manifest.from_dict(
        {
            "job": job.fingerprint,
            "tokenizer": job.tokenizer.to_dict(),
            "totals": totals,
            "throughput": None if throughput is None else dict(throughput),
            "shards": [record.to_dict() for record in records],
        }
    )
