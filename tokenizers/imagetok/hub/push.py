"""Pushing to the Hub: a tokenizer in one commit, a folder of many files in as few as possible.

    read the branch and its card --> what differs --> upload --> one commit on top of what was read
             ^                                                          |
             +---------- the branch has moved on, or more is to come <--+

What to do is found anew from what lies on the Hub, so an interrupted push is resumed by pushing
again, and a push that finds nothing to do makes no commit.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Unpack

from tqdm.auto import tqdm

from imagetok.errors import HubAccessError, HubError
from imagetok.hub.branch import Branch, Head, PushOptions, Upload, client_bars_off
from imagetok.hub.card_merge import merge_card
from imagetok.modelfile import (
    CARD_FILE,
    CONFIG_FILE,
    EVALUATION_FILE,
    MODEL_FILE,
    PICTURES_FILE,
    carry_evaluation,
    load_model,
)
from imagetok.modelfile.model_folder import parse_evaluation

logger = logging.getLogger(__name__)

COMMIT_FILES = 1000
"""Most bulk files in one commit."""
MOST_RESTARTS = 20
"""How often a push starts over when somebody else has pushed to the branch."""


@dataclass(frozen=True)
class Pushed:
    """Result of a push.

    Attributes:
        url: Page of the repository, or of its branch.
        revision: Commit that holds all that was pushed.
        pull_request: Page of the pull request that it stands in, if one was asked for.
    """

    url: str
    revision: str
    pull_request: str | None


def push_model(
    folder: str | os.PathLike[str], repo_id: str, **options: Unpack[PushOptions]
) -> Pushed:
    """Push a tokenizer's folder in one commit; there is none if nothing differs.

    Figures and images on the Hub that belong to other weights are deleted in the same commit.

    Args:
        folder: Holds model.safetensors, and perhaps config.json, README.md, evaluation.json and
            reconstructions.png.
        repo_id: `user/name`; created if it is missing.
        options: As for `PushOptions`.

    Raises:
        ModelFileError: The folder holds no tokenizer, or a damaged one; nothing is pushed.
        HubAccessError: repo_id is malformed, or the Hub does not allow it; the message says what
            to do.
        HubError: The Hub cannot be reached or kept failing.
    """
    folder = Path(folder)
    branch = Branch(repo_id, "model", "Push tokenizer with imagetok", **options)
    sha256 = load_model(folder).sha256
    evaluation = (EVALUATION_FILE, PICTURES_FILE) if carry_evaluation(folder, folder) else ()
    names = [MODEL_FILE, CONFIG_FILE, CARD_FILE, *evaluation]
    closing = [Upload(name, folder / name) for name in names if (folder / name).exists()]
    present = {upload.name for upload in closing}
    absent = [name for name in (EVALUATION_FILE, PICTURES_FILE) if name not in present]
    branch.prepare()
    push = _Push(
        branch,
        bulk=[],
        closing=closing,
        find_stale=lambda head: _find_stale_evaluation(branch, head, absent, sha256),
    )
    return push.run(tqdm(disable=True))


def push_files(
    folder: str | os.PathLike[str],
    bulk: Sequence[str],
    closing: Sequence[str],
    repo_id: str,
    *,
    owned: Sequence[str],
    card: str | None = None,
    repo_type: str = "dataset",
    title: str = "Push files with imagetok",
    progress: bool = True,
    **options: Unpack[PushOptions],
) -> Pushed:
    """Push many files, in one commit or in several of a thousand of them.

    If there are several commits, only the last brings the closing files, and the first deletes
    those on the Hub that differ (not the card), so that no reader takes a part for the whole.
    Pushing again after an interruption skips what is there.

    Args:
        folder: The folder that holds the files.
        bulk: Paths in it of the many files: shards and error reports.
        closing: Paths in it of the files that show that all is there: job, manifest, card.
        repo_id: `user/name`; created if it is missing.
        owned: Prefixes of paths (`"data/"`); other files on the Hub with such a prefix are deleted
            in the last commit.
        card: Content of README.md, in place of what lies in the folder.
        repo_type: `"dataset"` or `"model"`.
        title: Title of the commits where `commit_message` gives none.
        progress: Show a bar.
        options: As for `PushOptions`.

    Raises:
        UnreadableFileError: A file is missing.
        HubAccessError: As `push_model`.
        HubError: As `push_model`; what was pushed stays, and pushing again resumes.
    """
    folder = Path(folder)
    branch = Branch(repo_id, repo_type, title, **options)
    uploads = {name: Upload(name, folder / name) for name in (*bulk, *closing)}
    if card is not None:
        uploads[CARD_FILE] = Upload(CARD_FILE, card.encode())
    total = sum(upload.size for upload in uploads.values())
    branch.prepare()
    push = _Push(
        branch,
        bulk=[uploads[name] for name in bulk],
        closing=[uploads[name] for name in closing],
        find_stale=lambda head: [
            name for name in head.files if name.startswith(tuple(owned)) and name not in uploads
        ],
    )
    with (
        client_bars_off(),
        tqdm(total=total, desc="push", unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        return push.run(bar)


def prepare_repository(
    repo_id: str, *, private: bool | None = None, token: str | bool | None = None
) -> None:
    """Create a tokenizer's repository if it is missing, before there is anything to push.

    Raises:
        HubAccessError: As `push_model`; also for a repository that may be read but not written.
        HubError: As `push_model`.
    """
    branch = Branch(repo_id, "model", private=private, token=token)
    branch.prepare()
    branch.check_writable()


@dataclass(frozen=True)
class _Push:
    """What is to lie on a branch, and the loop that brings it there.

    Attributes:
        branch: Where to commit.
        bulk: Files that may be many.
        closing: Files of the last commit.
        find_stale: Finds the paths on the branch that the last commit deletes.
    """

    branch: Branch
    bulk: Sequence[Upload]
    closing: Sequence[Upload]
    find_stale: Callable[[Head], list[str]]

    def run(self, bar: tqdm[NoReturn]) -> Pushed:
        """Commit until nothing is left to do."""
        for _ in range(MOST_RESTARTS + len(self.bulk) // COMMIT_FILES):
            head = self.branch.read_head()
            pending, differing = _missing(self.bulk, head), _missing(self.closing, head)
            bar.total = bar.n + sum(upload.size for upload in (*pending, *differing))
            last = len(pending) <= COMMIT_FILES
            if last:
                closing = [self._merged(upload, head) for upload in self.closing]
                uploads, stale = pending + _missing(closing, head), self.find_stale(head)
            else:
                uploads = pending[:COMMIT_FILES]
                names = (upload.name for upload in differing if upload.name != CARD_FILE)
                stale = [name for name in names if name in head.files]
            if not uploads and not stale:
                return Pushed(self.branch.url, head.sha, self.branch.pull_request)
            made = self.branch.commit(uploads, stale, head, bar.update)
            if made is None:
                logger.warning("warning: %s has moved on; reading it again", self.branch.page)
            elif last:
                return Pushed(self.branch.url, made, self.branch.pull_request)
        raise HubError(
            f"{self.branch.page} kept changing while it was pushed to: push again when nobody "
            "else does"
        )

    def _merged(self, upload: Upload, head: Head) -> Upload:
        """A card with what people wrote into the one on the branch; other files as they are."""
        if upload.name != CARD_FILE:
            return upload
        existing = None
        if CARD_FILE in head.files:
            existing = _decode(self.branch.read_file(CARD_FILE, head), "README.md on the Hub")
        card = merge_card(_decode(upload.read(), "the card to be pushed"), existing)
        return Upload(CARD_FILE, card.encode())


def _missing(uploads: Sequence[Upload], head: Head) -> list[Upload]:
    return [upload for upload in uploads if not head.holds(upload)]


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise HubAccessError(
            f"{name} is not UTF-8 text (byte {error.start}), so it cannot be kept: repair it and "
            "push again"
        ) from None


def _find_stale_evaluation(
    branch: Branch, head: Head, absent: Sequence[str], sha256: str
) -> list[str]:
    """Those of the `absent` files that lie on the Hub and do not belong to the weights `sha256`."""
    there = [name for name in absent if name in head.files]
    if not there:
        return []
    if EVALUATION_FILE in head.files:
        text = branch.read_file(EVALUATION_FILE, head)
        fresh = parse_evaluation(text, sha256) is not None
    else:
        model = head.files.get(MODEL_FILE)
        fresh = model is not None and model.lfs is not None and model.lfs.sha256 == sha256
    return [] if fresh else there
