"""Pushing a tokenized dataset to the Hub."""

from __future__ import annotations

import os
from pathlib import Path

from imagetok.hub import Pushed, push_files
from imagetok.shards.card import render_card
from imagetok.shards.opening import open_folder
from imagetok.shards.paths import CARD_FILE, DATA, ERRORS, JOB_FILE, MANIFEST_FILE


def push_dataset(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    progress: bool = True,
) -> Pushed:
    """Push a complete tokenized dataset; what lies on the Hub already is not sent again.

    Shards come first and the manifest last, so that `TokenDataset` takes no part for the whole.
    Pushing again after an interruption goes on. Shards of another dataset that lie in the
    repository are removed. A card that was edited there is kept: only its generated block is
    renewed.

    Args:
        folder: That `imagetok tokenize` filled.
        repo_id: `user/name`; made where it is missing.
        private: Of a repository that is made; None is the account's default.
        revision: Branch to push to, made where it is missing; None is the main branch.
        commit_message: First line of the commits.
        create_pr: Open a pull request instead of writing to the branch.
        token: None takes the one that `hf auth login` saved.
        progress: Show a bar.

    Raises:
        UnreadableFileError: The folder is no complete tokenized dataset.
        HubAccessError: The token is missing or may not write there, or the name is none.
        HubError: The Hub cannot be reached, or keeps failing.
    """
    opened = open_folder(Path(folder))
    opened.check_sizes()
    shards = opened.manifest.shards
    return push_files(
        opened.path,
        [*(one.path for one in shards), *(one.errors_path for one in shards if one.refused)],
        [JOB_FILE, MANIFEST_FILE, CARD_FILE],
        repo_id,
        owned=(f"{DATA}/", f"{ERRORS}/"),
        card=render_card(opened.job, opened.manifest, repo_id),
        private=private,
        revision=revision,
        commit_message=commit_message or "Push tokenized dataset with imagetok",
        create_pr=create_pr,
        token=token,
        progress=progress,
    )
