"""Pushing to the Hub: a tokenizer in one commit, a folder of many files in as few as it takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tqdm.auto import tqdm

from imagetok.errors import HubAccessError
from imagetok.hub.client import hub_api
from imagetok.hub.committing import Branch, Head, client_bars_off
from imagetok.hub.revisions import check_revision
from imagetok.hub.rounds import Push
from imagetok.hub.uploads import Upload
from imagetok.modelfile.model_folder import (
    CARD_FILE,
    CONFIG_FILE,
    EVALUATION_FILE,
    MODEL_FILE,
    PICTURES_FILE,
    carry_evaluation,
    load_model,
    parse_evaluation,
)


@dataclass(frozen=True)
class Pushed:
    """Where a push has ended.

    Attributes:
        url: Page of the repository, or of its branch.
        revision: Commit that holds all that was pushed.
        pull_request: Page of the pull request that it stands in, if one was asked for.
    """

    url: str
    revision: str
    pull_request: str | None


def push_model(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
) -> Pushed:
    """Push a tokenizer's folder in one commit; there is none where nothing differs.

    Figures and pictures that lie on the Hub and belong to other weights are deleted with it.

    Args:
        folder: Holds model.safetensors, and perhaps config.json, README.md, evaluation.json and
            reconstructions.png.
        repo_id: `user/name`; made where it is missing.
        private: Make the repository private; None is the namespace's default.
        revision: Branch, made where it is missing; None is the main one.
        commit_message: Title of the commit, and of the pull request.
        create_pr: Open a pull request instead of changing the branch.
        token: None takes the one that `hf auth login` saved or HF_TOKEN.

    Raises:
        ModelFileError: The folder holds no tokenizer, or a damaged one; nothing is pushed.
        HubAccessError: repo_id is malformed, or the Hub does not allow it; the message says what
            to do.
        HubError: The Hub cannot be reached or kept failing.
    """
    folder = Path(folder)
    branch = _open_branch(repo_id, "model", revision, create_pr, token)
    sha256 = load_model(folder).sha256
    evaluation = (EVALUATION_FILE, PICTURES_FILE) if carry_evaluation(folder, folder) else ()
    uploads = {
        name: Upload(name, folder / name)
        for name in (MODEL_FILE, CONFIG_FILE, CARD_FILE, *evaluation)
        if (folder / name).exists()
    }
    absent = [name for name in (EVALUATION_FILE, PICTURES_FILE) if name not in uploads]
    branch.prepare(private)
    push = Push(
        branch,
        bulk=[],
        closing=list(uploads.values()),
        find_stale=lambda head: _find_stale_evaluation(branch, head, absent, sha256),
        message=commit_message or "Push tokenizer with imagetok",
    )
    sha = push.run(tqdm(disable=True))
    return _pushed(branch, revision, sha)


def push_files(
    folder: str | os.PathLike[str],
    bulk: Sequence[str],
    closing: Sequence[str],
    repo_id: str,
    *,
    owned: Sequence[str],
    card: str | None = None,
    repo_type: str = "dataset",
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    progress: bool = True,
) -> Pushed:
    """Push many files, in one commit or in several of a thousand of them.

    Of several commits the last one alone brings the closing files, and the first one deletes those
    on the Hub that differ (not the card), so that no reader takes a part for the whole. Pushing
    again after an interruption skips what is there.

    Args:
        folder: That holds the files.
        bulk: Paths in it of the many: shards and error reports.
        closing: Paths in it of what tells that all is there: job, manifest, card.
        repo_id: `user/name`; made where it is missing.
        owned: Beginnings of paths (`"data/"`); other files of such paths on the Hub are deleted in
            the last commit.
        card: What README.md is to hold in the place of what lies in the folder.
        repo_type: `"dataset"` or `"model"`.
        private: As `push_model`, like all that follow.
        revision: Branch.
        commit_message: Title.
        create_pr: Open a pull request, of several commits where it takes them.
        token: For the Hub.
        progress: Show a bar.

    Raises:
        UnreadableFileError: A file is missing.
        HubAccessError: As `push_model`.
        HubError: As `push_model`; what was pushed stays, and pushing again resumes.
    """
    folder = Path(folder)
    branch = _open_branch(repo_id, repo_type, revision, create_pr, token)
    uploads = {name: Upload(name, folder / name) for name in (*bulk, *closing)}
    if card is not None:
        uploads[CARD_FILE] = Upload(CARD_FILE, card.encode())
    total = sum(upload.size for upload in uploads.values())
    branch.prepare(private)
    push = Push(
        branch,
        bulk=[uploads[name] for name in bulk],
        closing=[uploads[name] for name in closing],
        find_stale=lambda head: [
            name for name in head.files if name.startswith(tuple(owned)) and name not in uploads
        ],
        message=commit_message or "Push files with imagetok",
    )
    with (
        client_bars_off(),
        tqdm(total=total, desc="push", unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        sha = push.run(bar)
    return _pushed(branch, revision, sha)


def prepare_repository(
    repo_id: str, *, private: bool | None = None, token: str | bool | None = None
) -> None:
    """Make a tokenizer's repository where it is missing, before there is anything to push.

    Raises:
        HubAccessError: As `push_model`; a repository that may be read and not written as well.
        HubError: As `push_model`.
    """
    branch = _open_branch(repo_id, "model", None, False, token)
    branch.prepare(private)
    branch.check_writable()


def _open_branch(
    repo_id: str,
    repo_type: str,
    revision: str | None,
    create_pr: bool,
    token: str | bool | None,
) -> Branch:
    """The branch, if there can be one of such a name."""
    name = check_revision(repo_id, revision)
    if "/" not in repo_id:
        raise HubAccessError(f"'{repo_id}' names no namespace on the Hub; expected user/name")
    return Branch(hub_api(token), repo_id, repo_type, name, create_pr)


def _find_stale_evaluation(
    branch: Branch, head: Head, absent: Sequence[str], sha256: str
) -> list[str]:
    """Those of the `absent` files that lie on the Hub and are not of the weights `sha256`."""
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


def _pushed(branch: Branch, revision: str | None, sha: str) -> Pushed:
    tree = "" if revision is None else f"/tree/{quote(revision, safe='')}"
    return Pushed(f"{branch.page}{tree}", sha, branch.pull_request)
