"""What branch, tag or PR reference stands for which commit."""

from __future__ import annotations

import os
import re
import warnings

from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from imagetok.errors import HubAccessError, HubError
from imagetok.hub.cache import RepoCache, is_commit
from imagetok.hub.client import calling, hub_api

TRIES_BEFORE_CACHE = 2
"""How often a silent Hub is asked before a commit that is in the cache is taken instead."""

_UNFIT = re.compile(r"(^|/)\.|\.\.|^/|//|/$|^$|[\s\\~^:?*\[\x00-\x1f\x7f]")  # git allows none of it


def is_offline(local_files_only: bool) -> bool:
    """Whether no request may be made: by argument, or by HF_HUB_OFFLINE."""
    return local_files_only or bool(constants.HF_HUB_OFFLINE)


def resolve_revision(
    repo_id: str,
    *,
    repo_type: str = "model",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> str:
    """The commit that a revision stands for, by one request.

    None is made for the full hash of a commit that is in the cache, nor offline. A Hub that does
    not answer is replaced by the cache, with a warning, if the cache knows the revision.

    Args:
        repo_id: `user/name`.
        repo_type: `model` or `dataset`.
        revision: Branch, tag, PR reference (`refs/pr/1`) or commit; None is the main branch.
        token: As for `hub_api`.
        cache_dir: Of the Hub's files; None is huggingface_hub's own.
        local_files_only: Make no request.

    Returns:
        40 hexadecimal digits.

    Raises:
        HubAccessError: Repository or revision is not there, or not allowed; or no request may be
            made, and the cache does not know the revision.
        HubError: The Hub cannot be reached, and the cache does not know the revision.
    """
    wanted = check_revision(repo_id, revision)
    cache = RepoCache.of(repo_id, repo_type, cache_dir)
    known = _known_commit(cache, wanted)
    if known is not None and (is_commit(revision) or is_offline(local_files_only)):
        return known
    if is_offline(local_files_only):
        raise HubAccessError(
            f"revision '{wanted}' of {repo_id} is not in the cache '{cache.root}', "
            f"{_nor_here(repo_id)}, and {why_offline(local_files_only)}; load it once with the "
            "network"
        )
    found = _ask(repo_id, repo_type, wanted, token, known)
    cache.write_ref(wanted, found)
    return found


def why_offline(local_files_only: bool) -> str:
    """What keeps requests from being made, in words."""
    return "local_files_only is set" if local_files_only else "HF_HUB_OFFLINE is set"


def check_repo_id(repo_id: str) -> None:
    """Refuse, with HubAccessError, what can be no repository's name."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise HubAccessError(
            f"'{repo_id}' is no name of a repository on the Hub; expected user/name"
        ) from None


def check_revision(repo_id: str, revision: str | None) -> str:
    """The revision that is meant; None is the main branch.

    Raises:
        HubAccessError: There can be no repository or revision of such a name.
    """
    check_repo_id(repo_id)
    wanted = constants.DEFAULT_REVISION if revision is None else revision
    if _UNFIT.search(wanted):
        raise HubAccessError(
            f"'{wanted}' is no revision of {repo_id}; expected a branch, a tag or a commit"
        )
    return wanted


def _nor_here(repo_id: str) -> str:
    """What to add where a name, which may be meant for a path, is none of a repository."""
    return f"nor is there a folder '{repo_id}' here"


def _known_commit(cache: RepoCache, revision: str) -> str | None:
    """The commit that the cache knows for a revision, if it holds files of it."""
    commit = revision if is_commit(revision) else cache.read_ref(revision)
    return commit if commit is not None and cache.snapshot(commit).is_dir() else None


def _ask(
    repo_id: str, repo_type: str, revision: str, token: str | bool | None, known: str | None
) -> str:
    """Ask the Hub; after some silence take the commit that is `known`, if there is one."""
    tries = 0

    def ask() -> str | None:
        nonlocal tries
        tries += 1  # `calling` comes back only where the Hub did not answer, or had no time
        if known is not None and tries > TRIES_BEFORE_CACHE:
            return None
        info = hub_api(token).repo_info(
            repo_id,
            repo_type=repo_type,
            revision=revision,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
            expand="sha",
        )
        if not is_commit(info.sha):
            raise HubError(f"the Hub names no commit for revision '{revision}' of {repo_id}")
        return info.sha

    try:
        found = calling(f"asking for revision '{revision}' of {repo_id}", ask)
    except HubAccessError as error:
        if type(error.__cause__) is not RepositoryNotFoundError:  # a gated one is a kind of it
            raise
        raise HubAccessError(f"{error}; {_nor_here(repo_id)}") from error.__cause__
    if found is not None:
        return found
    assert known is not None
    warnings.warn(
        f"the Hub cannot be reached; revision '{revision}' of {repo_id} is taken from the cache, "
        f"as commit {known}",
        stacklevel=2,
    )
    return known
