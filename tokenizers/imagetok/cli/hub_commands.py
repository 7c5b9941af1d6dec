"""The commands that bring things to the Hub: `push` and `push-dataset`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imagetok.cli.options import ImportOption, PrivateOption, TokensArgument

app = typer.Typer()

RepositoryArgument = Annotated[
    str, typer.Argument(metavar="REPO", help="On the Hub: `user/name`.", show_default=False)
]
BranchOption = Annotated[
    str | None,
    typer.Option("--revision", help="Branch to push to, created if it is missing."),
]
MessageOption = Annotated[
    str | None, typer.Option("--commit-message", help="First line of the commit.")
]
PullRequestOption = Annotated[
    bool, typer.Option("--create-pr", help="Open a pull request instead of writing to the branch.")
]


@app.command()
def push(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a saved tokenizer.", show_default=False)
    ],
    repository: RepositoryArgument,
    private: PrivateOption = None,
    revision: BranchOption = None,
    commit_message: MessageOption = None,
    create_pr: PullRequestOption = False,
    plugins: ImportOption = None,
) -> None:
    """Push a tokenizer to the Hugging Face Hub: weights, config, card, figures, in one commit.

    The repository is created if it is missing. A card that was edited on the Hub is kept: only the
    block between its two markers is renewed. Log in once with `hf auth login`, or set HF_TOKEN.
    """
    from imagetok.reports import show
    from imagetok.tokenizer import ImageTokenizer

    pushed = ImageTokenizer.from_pretrained(folder).push_to_hub(
        repository,
        private=private,
        revision=revision,
        commit_message=commit_message,
        create_pr=create_pr,
    )
    show(pushed.pull_request or pushed.url)


@app.command("push-dataset")
def push_dataset(
    folder: TokensArgument,
    repository: RepositoryArgument,
    private: PrivateOption = None,
    revision: BranchOption = None,
    commit_message: MessageOption = None,
    create_pr: PullRequestOption = False,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Delete from the repository what stands against this dataset: shards of its split "
            "by another job, and splits of another tokenizer or with other columns.",
        ),
    ] = False,
) -> None:
    """Push a tokenized dataset to the Hugging Face Hub, shards first, card and manifest last.

    It becomes a split beside those of the repository. After a stop at any moment the same command
    goes on; what has arrived is not sent again. `load_dataset("user/name")` and
    `TokenDataset("user/name", split="test")` read it.
    """
    from imagetok.reports import show
    from imagetok.shards import push_dataset as push_shards

    pushed = push_shards(
        folder,
        repository,
        replace=replace,
        private=private,
        revision=revision,
        commit_message=commit_message,
        create_pr=create_pr,
    )
    show(pushed.pull_request or pushed.url)
