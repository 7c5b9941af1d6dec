"""`TokenRepository`: a dataset repository on the Hub and its splits, each of a job of its own.

    job.json, manifest.json               of the split that came first: all that older versions read
    jobs/<split>/job.json, manifest.json  of each further split
    data/<split>-*, errors/<split>-*      shards and error reports
    README.md                             the card, which names all splits for `load_dataset`

All splits have the same tokenizer and the same columns. A split comes or goes with the commit that
brings or deletes its two JSON files, and the card changes in the same commit.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, Unpack

from imagetok.config.strict_config import Config
from imagetok.errors import ConfigError, DataError
from imagetok.hub.branch import Branch, Head, PushOptions, Upload
from imagetok.hub.dataset_snapshot import JOBS, split_place
from imagetok.hub.push import Goal, Pushed, push_goal
from imagetok.shards.dataset_card import CardSplit, render_card
from imagetok.shards.job import CARD_FILE, DATA, ERRORS, JOB_FILE, MANIFEST_FILE, Job
from imagetok.shards.job_folder import differences
from imagetok.shards.manifest import Manifest
from imagetok.shards.token_folder import TokenFolder, open_folder

logger = logging.getLogger(__name__)

_C = TypeVar("_C", bound=Config)


@dataclass(frozen=True)
class RemoteSplit:
    """A split in a repository.

    Attributes:
        place: Where its two JSON files lie: `jobs/<split>/`, or nothing for the split that came
            first.
        job: Its job.
        manifest: What it holds; None where that is missing.
    """

    place: str
    job: Job
    manifest: Manifest | None

    @property
    def name(self) -> str:
        """Name of the split."""
        return self.job.split_name

    @property
    def vouchers(self) -> set[str]:
        """Paths of the two files without which nobody reads the split."""
        return {self.place + JOB_FILE, self.place + MANIFEST_FILE}


class TokenRepository:
    """A repository on its way to hold a tokenized dataset beside the splits that it holds.

    Args:
        branch: Where to push.
        repo_id: `user/name`.
        folder: The dataset.
        replace: Delete from the repository what cannot stand beside the dataset.

    Attributes:
        bulk: The shards and error reports of the dataset.
        vouchers: Its job and its manifest.
    """

    def __init__(self, branch: Branch, repo_id: str, folder: TokenFolder, replace: bool) -> None:
        self._branch, self._repo_id, self._folder = branch, repo_id, folder
        self._replace, self._is_told = replace, False
        shards = folder.manifest.shards
        names = [*(one.path for one in shards), *(one.errors_path for one in shards if one.refused)]
        self.bulk = [Upload(name, folder.path / name) for name in names]
        self.vouchers = [Upload(name, folder.path / name) for name in (JOB_FILE, MANIFEST_FILE)]

    def find_goal(self, head: Head) -> Goal:
        """What the repository is to hold, given the commit that it is at.

        Raises:
            DataError: Shards of another job would have to go and `replace` is not set, or a split
                that is there is not of this version.
        """
        job = self._folder.job
        found = list(self._read_splits(head))
        own = {path for split in found if split.name == job.split_name for path in split.vouchers}
        splits = {split.name: split for split in reversed(found)}
        before = splits.pop(job.split_name, None)
        replaced = [] if before is None or before.job.fingerprint == job.fingerprint else [before]
        foreign = [split for split in splits.values() if _disagreement(split.job, job)]
        self._check_replacement(head, before, replaced, foreign)
        others = [split for split in splits.values() if split not in foreign]
        place = split_place(job.split_name) if any(not one.place for one in others) else ""
        closing = [Upload(place + upload.name, upload.source) for upload in self.vouchers]
        stale = {*own, *(path for split in foreign for path in split.vouchers)}
        stale |= {*_files_of(head, [job.split_name, *(split.name for split in foreign)])}
        stale -= {upload.name for upload in (*self.bulk, *closing)}
        ours = RemoteSplit(place, job, self._folder.manifest)
        whole = [split for split in splits.values() if split.manifest is not None]
        return Goal(
            bulk=self.bulk,
            closing=[*closing, self._card([*others, ours])],
            stale=sorted(stale & head.files.keys()),
            withdrawn=sorted(own),
            interim=[self._card(whole)] if whole else [],
        )

    def _read_splits(self, head: Head) -> Iterator[RemoteSplit]:
        """The splits of a commit, beginning with the one that came first."""
        places = {name.removesuffix(JOB_FILE) for name in head.files if name.endswith(JOB_FILE)}
        for place in sorted(places):
            if place == "" or (place.startswith(f"{JOBS}/") and place.count("/") == 2):
                job = self._read(place + JOB_FILE, head, Job)
                there = place + MANIFEST_FILE in head.files
                manifest = self._read(place + MANIFEST_FILE, head, Manifest) if there else None
                yield RemoteSplit(place, job, manifest)

    def _read(self, name: str, head: Head, kind: type[_C]) -> _C:
        try:
            return kind.from_json(self._branch.read_file(name, head))
        except ConfigError as error:
            raise DataError(
                f"'{name}' of {self._repo_id} is not of this version, so that nothing can be put "
                f"beside it: {error}; push to another repository"
            ) from error

    def _check_replacement(
        self,
        head: Head,
        before: RemoteSplit | None,
        replaced: Sequence[RemoteSplit],
        foreign: Sequence[RemoteSplit],
    ) -> None:
        """Refuse to delete what is not of this job, or tell that it goes."""
        job, own = self._folder.job, {upload.name: upload for upload in self.bulk}
        reasons = [
            f"its split '{split.name}' is of another job ({'; '.join(_changes(split.job, job))})"
            for split in replaced
        ]
        reasons += [
            f"its split '{split.name}' {_disagreement(split.job, job)}" for split in foreign
        ]
        files = _files_of(head, [split.name for split in (*replaced, *foreign)])
        if before is None:
            names = _files_of(head, [job.split_name])
            unknown = [name for name in names if name not in own or not head.holds(own[name])]
            files += unknown
            if unknown:
                reasons.append(f"it holds files of a split '{job.split_name}' of unknown origin")
        if not reasons or self._is_told:
            return
        listed = f"{len(files)} files: {', '.join(files[:3])}{' ...' if len(files) > 3 else ''}"
        told = f"the split '{job.split_name}' and what {self._repo_id} holds: {'; '.join(reasons)}"
        if not self._replace:
            raise DataError(
                f"{told}. Push to another repository or branch, or add --replace (replace=True) to "
                f"delete {listed}"
            )
        self._is_told = True
        logger.warning("warning: %s; this deletes %s", told, listed)

    def _card(self, splits: Sequence[RemoteSplit]) -> Upload:
        """The card of all splits that are whole, the one that came first in front."""
        whole = [
            CardSplit(
                split.job,
                split.manifest.totals,
                split.manifest.fingerprint,
                split.manifest.changed_ids,
            )
            for split in sorted(splits, key=lambda split: (split.place != "", split.name))
            if split.manifest is not None
        ]
        return Upload(CARD_FILE, render_card(whole, self._repo_id).encode())


def push_dataset(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    replace: bool = False,
    progress: bool = True,
    **options: Unpack[PushOptions],
) -> Pushed:
    """Push a complete tokenized dataset to the Hub, without sending again what is there already.

    It becomes a split of the repository, beside those that are there. Shards come first and the
    manifest last, so that `TokenDataset` never takes a part for the whole. Pushing again after an
    interruption continues. A card that was edited there is kept: only its generated block is
    renewed.

    Args:
        folder: Folder that `imagetok tokenize` filled.
        repo_id: Repository `user/name`; made where it is missing.
        replace: Delete from the repository what stands against it: shards of its split by another
            job, and splits of another tokenizer or with other columns.
        progress: Show a progress bar.
        options: As for `imagetok.hub.branch.PushOptions`.

    Raises:
        UnreadableFileError: The folder is not a complete tokenized dataset.
        DataError: Something stands against it and `replace` is not set.
        HubAccessError: The token is missing or may not write there, or `repo_id` is not a name.
        HubError: The Hub cannot be reached, or keeps failing.
    """
    opened = open_folder(Path(folder))
    opened.check_sizes()
    branch = Branch(repo_id, "dataset", "Push tokenized dataset with imagetok", **options)
    repository = TokenRepository(branch, repo_id, opened, replace)
    files = [*repository.bulk, *repository.vouchers]
    return push_goal(branch, repository.find_goal, files, progress)


def _files_of(head: Head, splits: Sequence[str]) -> list[str]:
    """Shards and error reports of splits in a commit."""
    starts = tuple(f"{split}-" for split in splits)
    return sorted(
        name
        for name in head.files
        if name.startswith((f"{DATA}/", f"{ERRORS}/"))
        if name.rpartition("/")[2].startswith(starts)
    )


def _changes(there: Job, here: Job) -> list[str]:
    """The first entries in which two jobs of a split differ."""
    return [line for line in differences(there, here) if not line.startswith("numerics.")][:3]


def _disagreement(there: Job, here: Job) -> str | None:
    """Why two splits cannot stand in one repository; None if they can."""
    one, other = there.tokenizer, here.tokenizer
    if one.fingerprint != other.fingerprint:
        return (
            f"was made by the tokenizer '{one.name}' with the fingerprint {one.fingerprint}, "
            f"'{here.split_name}' by '{other.name}' with {other.fingerprint}"
        )
    if there.output.resize != here.output.resize:
        return (
            f"has images resized by '{there.output.resize}', '{here.split_name}' by "
            f"'{here.output.resize}'"
        )
    found, wanted = there.schema.features, here.schema.features
    for column in [*found, *wanted]:
        if found.get(column) != wanted.get(column):
            return (
                f"has the column '{column}' as {found.get(column)}, '{here.split_name}' as "
                f"{wanted.get(column)}"
            )
    return None
