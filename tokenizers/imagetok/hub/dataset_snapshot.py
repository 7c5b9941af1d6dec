"""A tokenized dataset on the Hub: its job, manifest, card and shards, all from one commit.

    folder = fetch_dataset("user/name").folder

The shards are compared with the manifest: their sizes every time, their hashes once after they have
arrived. An empty file in the snapshot remembers that the hashes were right; it goes where the
snapshot goes. Only the manifest's list of shards is read here: `imagetok.shards` reads it all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from imagetok.config import printable
from imagetok.files import file_sha256, naming_os_errors
from imagetok.hub.client import calling, hub_api
from imagetok.hub.repo_commit import FetchOptions, RemoteFile, RepoCommit
from imagetok.modelfile import CARD_FILE

MANIFEST_FILE, JOB_FILE, JOBS = "manifest.json", "job.json", "jobs"
CHECKED_FILE = ".imagetok-checked"

_NO_DATASET = "no tokenized dataset of imagetok, or its upload is not finished"


@dataclass(frozen=True)
class Snapshot:
    """A tokenized dataset of the Hub.

    Attributes:
        folder: The folder of its files on this machine.
        repo_id: `user/name`.
        revision: The commit that all files come from.
        place: Where job.json and manifest.json lie in it: `jobs/<split>/`, or nothing for the split
            that the repository began with.
    """

    folder: Path
    repo_id: str
    revision: str
    place: str = ""


@dataclass(frozen=True)
class _Shard:
    """A shard as the manifest lists it."""

    path: str
    bytes: int
    sha256: str


def fetch_dataset(
    repo_id: str,
    *,
    split: str | None = None,
    check: Callable[[Snapshot], object] = lambda _: None,
    **options: Unpack[FetchOptions],
) -> Snapshot:
    """Fetch a tokenized dataset; shards that are in the cache are not fetched again.

    Args:
        repo_id: `user/name`.
        split: Split to fetch; None, or one that has no folder of its own in the repository, is the
            split that the repository began with, whatever its name is.
        check: Called once job.json and manifest.json are there, before any shard is fetched; an
            error that it raises ends the call.
        options: As for `FetchOptions`.

    Raises:
        UnreadableFileError: The manifest is damaged, or a shard is not what it lists. It was
            removed from the cache.
        HubAccessError: Repository or revision does not exist or is not accessible; or it holds no
            complete tokenized dataset.
        HubError: The Hub cannot be reached.
    """
    commit = RepoCommit.resolve(repo_id, "dataset", **options)
    place = _find_place(commit, split)
    manifest, job = (commit.need(place + name, _NO_DATASET) for name in (MANIFEST_FILE, JOB_FILE))
    for file in (manifest, job, commit.fetch(CARD_FILE)):
        if file is not None:
            commit.check(file)
    snapshot = Snapshot(commit.folder, repo_id, commit.revision, place)
    shards = _read_shards(commit, manifest)
    check(snapshot)
    checked = commit.folder / place / CHECKED_FILE
    _fetch_shards(commit, shards, checked)
    _check_shards(commit, shards, checked)
    return snapshot


def fetch_beside(snapshot: Snapshot, name: str, token: str | bool | None = None) -> None:
    """Fetch one more file of a snapshot's commit, such as an error report.

    Raises:
        UnreadableFileError: It arrived damaged.
        HubAccessError, HubError: As `fetch_dataset`.
    """
    cache = snapshot.folder.parents[2]
    commit = RepoCommit.resolve(
        snapshot.repo_id, "dataset", revision=snapshot.revision, token=token, cache_dir=cache
    )
    commit.check(commit.need(name, _NO_DATASET))


def split_place(split: str) -> str:
    """Folder of the job and the manifest of a split that the repository did not begin with."""
    return f"{JOBS}/{split}/"


def _find_place(commit: RepoCommit, split: str | None) -> str:
    """See `Snapshot.place`; names that no split has lead nowhere."""
    if split is None or not re.fullmatch(r"\w+(\.\w+)*", split):
        return ""
    place = split_place(split)
    return "" if commit.fetch(place + MANIFEST_FILE) is None else place


def _read_shards(commit: RepoCommit, manifest: RemoteFile) -> list[_Shard]:
    """The shards that the manifest lists."""
    try:
        with naming_os_errors("read", manifest.path):
            listed = json.loads(manifest.path.read_bytes())["shards"]
        return [_read_shard(entry) for entry in listed]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        fault = printable(str(error).partition("\n")[0])
        reason = f"it is not a manifest of this version ({type(error).__name__}: {fault})"
        raise commit.refuse(manifest, reason) from None


def _read_shard(entry: dict[str, Any]) -> _Shard:
    path, size, sha256 = entry["path"], entry["bytes"], entry["sha256"]
    if (type(path), type(size), type(sha256)) != (str, int, str):
        raise TypeError(f"a shard is listed as {entry!r}")
    parts = path.split("/")
    if parts[0] != "data" or "\\" in path or not {"", ".", ".."}.isdisjoint(parts):
        raise ValueError(f"a shard lies at {path!r}, expected a place in 'data'")
    return _Shard(path, size, sha256)


def _fetch_shards(commit: RepoCommit, shards: Sequence[_Shard], checked: Path) -> None:
    """Fetch the shards that are not in the cache."""
    # Patterns without the numbers at the end, because each file is held against each of them.
    patterns = sorted({re.sub(r"(-\d+)+\.parquet$", "-*", shard.path) for shard in shards})
    while left := [shard for shard in shards if not (commit.folder / shard.path).is_file()]:
        _forget_check(checked)
        if not commit.offline:
            calling(
                f"fetching {len(left)} shards of {commit.place}",
                lambda: _download(commit, patterns),
            )
        # If it does not reach the Hub, huggingface_hub may return a folder that lacks files. To
        # ask for one of them tells why, or helps.
        commit.need(left[0].path, _NO_DATASET)


def _download(commit: RepoCommit, patterns: list[str]) -> None:
    with commit.refusing_wrong_sizes("a shard"):
        hub_api(commit.token).snapshot_download(
            commit.repo_id,
            repo_type=commit.repo_type,
            revision=commit.revision,
            cache_dir=commit.cache.parent,
            allow_patterns=patterns,
        )


def _check_shards(commit: RepoCommit, shards: Sequence[_Shard], checked: Path) -> None:
    """Compare the shards with the manifest, and remove those that differ from the cache."""
    hashed = not checked.exists()
    wrong = [
        RemoteFile(shard.path, commit.folder / shard.path, shard.sha256)
        for shard in shards
        if not _is_as_listed(commit.folder / shard.path, shard, hashed)
    ]
    reason = f"it is not what {MANIFEST_FILE} lists, as {len(wrong)} of {len(shards)} shards"
    refusals = [commit.refuse(file, reason) for file in wrong]
    if refusals:
        _forget_check(checked)
        raise refusals[0]
    if hashed:
        with suppress(OSError):  # in a cache that cannot be written, the next call hashes again
            checked.touch()


def _is_as_listed(path: Path, shard: _Shard, hashed: bool) -> bool:
    with naming_os_errors("read", path):
        if path.stat().st_size != shard.bytes:
            return False
    return not hashed or file_sha256(path) == shard.sha256


def _forget_check(checked: Path) -> None:
    with naming_os_errors("remove", checked):
        checked.unlink(missing_ok=True)
