"""`Push`: what is to lie on a branch, and the rounds that bring it there.

    read the branch and its card --> what differs --> upload --> one commit on top of what was read
             ^                                                          |
             +---------- the branch has moved on, or more is to come <--+

What to do is found anew from what lies on the Hub, so an interrupted push is resumed by pushing
again, and a push that finds nothing to do makes no commit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from tqdm.auto import tqdm

from imagetok.errors import HubAccessError, HubError
from imagetok.hub.committing import Branch, Head
from imagetok.hub.merging import merge_card
from imagetok.hub.uploads import Upload
from imagetok.modelfile.model_folder import CARD_FILE

logger = logging.getLogger(__name__)

COMMIT_FILES = 1000
"""Bulk files that one commit takes."""
ROUNDS = 20
"""How often a push starts over because somebody else has pushed to the branch."""


@dataclass(frozen=True)
class _Step:
    """One commit to make.

    Attributes:
        uploads: Files that are new or changed.
        deleted: Paths to delete.
        last: Whether nothing is left to do after it.
        left: Bytes of all that is left to push.
    """

    uploads: list[Upload]
    deleted: list[str]
    last: bool
    left: int


class Push:
    """What is to lie on a branch, and the rounds that bring it there.

    Args:
        branch: Where it is to land.
        bulk: Files that may be many.
        closing: Files of the last commit.
        find_stale: Paths on the branch that the last commit deletes.
        message: Title of the commits.
    """

    def __init__(
        self,
        branch: Branch,
        bulk: Sequence[Upload],
        closing: Sequence[Upload],
        find_stale: Callable[[Head], list[str]],
        message: str,
    ) -> None:
        self._branch, self._bulk, self._closing = branch, bulk, closing
        self._find_stale, self._message = find_stale, message

    def run(self, bar: tqdm[NoReturn]) -> str:
        """Push until nothing is left to do; returns the commit."""
        for _ in range(ROUNDS + len(self._bulk) // COMMIT_FILES):
            head = self._branch.read_head()
            step = self._plan(head)
            if not step.uploads and not step.deleted:
                return head.sha
            bar.total = bar.n + step.left
            landed = self._branch.land(self._message, step.uploads, step.deleted, head, bar.update)
            if landed is None:
                logger.warning("warning: %s has moved on; reading it again", self._branch.page)
            elif step.last:
                return landed
        raise HubError(
            f"{self._branch.page} kept changing while it was pushed to: push again when nobody "
            "else does"
        )

    def _plan(self, head: Head) -> _Step:
        """What the next commit is to be."""
        pending, doubtful = _changed(self._bulk, head), _changed(self._closing, head)
        left = sum(upload.size for upload in (*pending, *doubtful))
        if len(pending) > COMMIT_FILES:
            named = (upload.name for upload in doubtful if upload.name != CARD_FILE)
            stale = [name for name in named if name in head.files]
            return _Step(pending[:COMMIT_FILES], stale, last=False, left=left)
        closing = [self._merged(upload, head) for upload in self._closing]
        return _Step(pending + _changed(closing, head), self._find_stale(head), True, left)

    def _merged(self, upload: Upload, head: Head) -> Upload:
        """A card with what people wrote into the one on the branch; other files as they are."""
        if upload.name != CARD_FILE:
            return upload
        existing = None
        if CARD_FILE in head.files:
            existing = _decode(self._branch.read_file(CARD_FILE, head), "README.md on the Hub")
        card = merge_card(_decode(upload.read(), "the card to be pushed"), existing)
        return Upload(CARD_FILE, card.encode())


def _changed(uploads: Sequence[Upload], head: Head) -> list[Upload]:
    return [upload for upload in uploads if not upload.equals(head.files.get(upload.name))]


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise HubAccessError(
            f"{name} is no UTF-8 text (byte {error.start}), so it cannot be kept: repair it and "
            "push again"
        ) from None
