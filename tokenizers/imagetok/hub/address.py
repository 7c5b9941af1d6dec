"""Addresses on the Hub: a repository, a revision of it, a folder in it.

Whatever cannot be an address is refused before any request is made.
"""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath
from typing import TypeGuard

from imagetok.errors import HubAccessError, InvalidTypeError, InvalidValueError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_UNFIT = re.compile(r"(^|/)\.|\.\.|^/|//|/$|^$|[\s\\~^:?*\[\x00-\x1f\x7f]")  # git allows none of it


def is_commit(revision: str | None) -> TypeGuard[str]:
    """Whether a revision is the full hash of a commit, which means the same forever."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def is_repo_id(name: str) -> bool:
    """Whether a name means a repository `user/name` on the Hub rather than a path.

    Whatever exists on this machine is a path; so is a name that is absolute, begins with `.` or
    `~`, or has more than one slash.
    """
    if name.count("/") != 1 or os.path.lexists(name):
        return False
    try:
        check_repo_id(name)
    except HubAccessError:
        return False
    return True


def check_repo_id(repo_id: str) -> None:
    """Refuse, with HubAccessError, what cannot be the name of a repository."""
    # Imported here, because a path of this machine, which this module tells from a name on the Hub,
    # needs nothing of huggingface_hub.
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise HubAccessError(
            f"'{repo_id}' cannot be a repository on the Hub; expected user/name"
        ) from None


def check_revision(repo_id: str, revision: str | None) -> str:
    """The revision that is meant; None is the main branch.

    Raises:
        HubAccessError: A repository or a revision cannot have this name.
    """
    check_repo_id(repo_id)
    wanted = "main" if revision is None else revision
    if _UNFIT.search(wanted):
        raise HubAccessError(
            f"'{wanted}' cannot be a revision of {repo_id}; expected a branch, a tag or a commit"
        )
    return wanted


def read_subfolder(subfolder: str | None) -> str:
    """The prefix of the names of a subfolder's files: empty, or a path that ends in a slash.

    Raises:
        InvalidTypeError: subfolder is not a string.
        InvalidValueError: It is absolute, has backslashes or leads upwards.
    """
    if subfolder is None or subfolder == "":
        return ""
    if not isinstance(subfolder, str):
        raise InvalidTypeError(f"subfolder must be a string, got {type(subfolder).__name__}")
    parts = subfolder.removesuffix("/").split("/")
    if "\\" in subfolder or "\0" in subfolder or not {"", ".", ".."}.isdisjoint(parts):
        raise InvalidValueError(
            f"subfolder {subfolder!r} is not a folder in a repository; expected a relative path "
            "such as 'models/small'"
        )
    return f"{PurePosixPath(*parts)}/"
