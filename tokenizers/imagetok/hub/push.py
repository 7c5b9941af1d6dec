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

    def find_goal(head: Head) -> Goal:
        stale = _find_stale_evaluation(branch, head, absent, sha256)
        return Goal(bulk=[], closing=closing, stale=stale)

    return _push(branch, find_goal, tqdm(disable=True))


def push_files(
    folder: str | os.PathLike[str],
    bulk: Sequence[str],
    closing: Sequence[str],
    repo_id: str,
    *,
    owned: Sequence[str],
    card: str | None = None,
    repo_type: str = "dataset",
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
        progress: Show a bar.
        options: As for `PushOptions`.

    Raises:
        UnreadableFileError: A file is missing.
        HubAccessError: As `push_model`.
        HubError: As `push_model`; what was pushed stays, and pushing again resumes.
    """
    folder = Path(folder)
    branch = Branch(repo_id, repo_type, "Push files with imagetok", **options)
    uploads = {name: Upload(name, folder / name) for name in (*bulk, *closing)}
    if card is not None:
        uploads[CARD_FILE] = Upload(CARD_FILE, card.encode())

    def find_goal(head: Head) -> Goal:
        return Goal(
            bulk=[uploads[name] for name in bulk],
            closing=[uploads[name] for name in closing],
            stale=[
                name for name in head.files if name.startswith(tuple(owned)) and name not in uploads
            ],
            withdrawn=[name for name in closing if name != CARD_FILE],
        )

    return push_goal(branch, find_goal, list(uploads.values()), progress)


def push_goal(
    branch: Branch, find_goal: Callable[[Head], Goal], uploads: Sequence[Upload], progress: bool
) -> Pushed:
    """Bring files to a branch, in as few commits as possible, with a bar.

    Args:
        branch: Where to push.
        find_goal: Says what is to be there, given the commit that the branch is at.
        uploads: The files; one that is missing is refused before anything is sent.
        progress: Show the bar.
    """
    total = sum(upload.size for upload in uploads)
    branch.prepare()
    with (
        client_bars_off(),
        tqdm(total=total, desc="push", unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        return _push(branch, find_goal, bar)


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
class Goal:
    """What is to lie on a branch, as it is found from the commit that the branch is at.

    Attributes:
        bulk: Files that may be many: shards and error reports.
        closing: Files of the last commit, which show that all is there.
        stale: Paths on the branch that the last commit deletes.
        withdrawn: Paths of closing files, of now and of before, that go with the first of several
            commits unless they stay as they are: no reader takes for whole what is being replaced.
        interim: Files that commits before the last bring: a card of what is whole meanwhile.
    """

    bulk: Sequence[Upload]
    closing: Sequence[Upload]
    stale: Sequence[str]
    withdrawn: Sequence[str] = ()
    interim: Sequence[Upload] = ()


def _push(branch: Branch, find_goal: Callable[[Head], Goal], bar: tqdm[NoReturn]) -> Pushed:
    """Commit until nothing is left to do."""
    restarts = 0
    while restarts < MOST_RESTARTS:
        head = branch.read_head()
        goal = find_goal(head)
        pending, differing = _missing(goal.bulk, head), _missing(goal.closing, head)
        bar.total = bar.n + sum(upload.size for upload in (*pending, *differing))
        last = len(pending) <= COMMIT_FILES
        if last:
            uploads = pending + _missing(_merged(branch, goal.closing, head), head)
            stale = list(goal.stale)
        else:
            interim = _missing(_merged(branch, goal.interim, head), head)
            uploads = pending[:COMMIT_FILES] + interim
            same = {upload.name for upload in goal.closing if upload not in differing}
            stale = sorted({*goal.withdrawn} & head.files.keys() - same)
        made: str | None = head.sha
        if uploads or stale:
            made = branch.commit(uploads, stale, head, bar.update)
        if made is None:
            restarts += 1
            logger.warning("warning: %s has moved on; reading it again", branch.page)
        elif last:
            return Pushed(branch.url, made, branch.pull_request)
    raise HubError(
        f"{branch.page} kept changing while it was pushed to: push again when nobody else does"
    )


def _merged(branch: Branch, uploads: Sequence[Upload], head: Head) -> list[Upload]:
    """The files, a card among them with what people wrote into the one on the branch."""
    return [
        _merge(branch, upload, head) if upload.name == CARD_FILE else upload for upload in uploads
    ]


def _merge(branch: Branch, card: Upload, head: Head) -> Upload:
    existing = None
    if CARD_FILE in head.files:
        existing = _decode(branch.read_file(CARD_FILE, head), "README.md on the Hub")
    text = merge_card(_decode(card.read(), "the card to be pushed"), existing)
    return Upload(CARD_FILE, text.encode())


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
