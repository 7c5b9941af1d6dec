"""Pushing to a Hub: whole commits, people's text kept, and every fault on the way outlasted."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_models import contents, make_config

from imagetok import hub
from imagetok.errors import HubAccessError, HubError, ModelFileError, UnreadableFileError
from imagetok.hub import Pushed, branch
from imagetok.hub import push as pushing
from imagetok.hub.card_merge import CARD_BEGIN, CARD_END
from loopback_hub import CDN, HUB, LoopbackHub

pytestmark = pytest.mark.usefixtures("no_waits")

REPO = "user/tiny"
COMMIT = r"/commit/"
MODEL_FILES = {hub.MODEL_FILE, hub.CONFIG_FILE, "README.md"}


def card(text: str = "new") -> str:
    return f"---\nlibrary_name: imagetok\n---\n\n{CARD_BEGIN}\n{text}\n{CARD_END}\n"


def save_model(folder: Path, seed: int = 0, evaluated: bool = False) -> Path:
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
    hub.save_model(folder, make_config(), {"encoder.weight": weight})
    (folder / "README.md").write_text(card(f"seed {seed}"), "utf-8")
    if evaluated:
        sha256 = hashlib.sha256((folder / hub.MODEL_FILE).read_bytes()).hexdigest()
        (folder / hub.EVALUATION_FILE).write_text(json.dumps({hub.EVALUATED_KEY: sha256}))
        (folder / hub.PICTURES_FILE).write_bytes(b"\x89PNG" + bytes([seed]))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of a tokenizer."""
    return save_model(tmp_path / "model")


@pytest.fixture
def push(loopback_hub: LoopbackHub, model: Path) -> Callable[..., Pushed]:
    """Pushes the model as the user."""
    return partial(pushing.push_model, model, REPO, token=loopback_hub.token)


def commits(server: LoopbackHub, revision: str = "main", repo_type: str = "model") -> list[str]:
    """Titles of the commits but the first, oldest first."""
    return [commit.title for commit in server.commits(REPO, revision, repo_type)][-2::-1]


# A tokenizer


def test_a_tokenizer_lands_whole_in_one_commit_and_pushing_it_again_makes_none(
    loopback_hub: LoopbackHub, model: Path, push: Callable[..., Pushed]
) -> None:
    save_model(model, evaluated=True)
    pushed = push(commit_message="First")
    assert commits(loopback_hub) == ["First"]
    assert loopback_hub.files(REPO) == contents(model)
    assert pushed == Pushed(
        f"{loopback_hub.endpoint}/{REPO}", loopback_hub.head(REPO), pull_request=None
    )
    assert not loopback_hub.repository(REPO).private
    with loopback_hub.recording() as requests:
        assert push() == pushed
    assert len(commits(loopback_hub)) == 1
    assert not [each for each in requests if each.method == "PUT" or "/commit/" in each.target]


def test_only_what_differs_is_uploaded(
    loopback_hub: LoopbackHub, model: Path, push: Callable[..., Pushed]
) -> None:
    push()
    (model / "README.md").write_text(card("other"), "utf-8")
    with loopback_hub.recording() as requests:
        push()
    assert not [each for each in requests if each.origin == CDN]
    sent = next(each for each in requests if "/commit/" in each.target).body
    assert b"README.md" in sent
    assert b"config.json" not in sent
    assert b"other" in loopback_hub.read(REPO, "README.md")


def test_a_damaged_tokenizer_is_not_pushed(
    loopback_hub: LoopbackHub, model: Path, push: Callable[..., Pushed]
) -> None:
    path = model / hub.MODEL_FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelFileError, match="damaged"):
        push()
    assert not loopback_hub.requests


def test_figures_of_other_weights_stay_here(
    loopback_hub: LoopbackHub, model: Path, push: Callable[..., Pushed]
) -> None:
    save_model(model, evaluated=True)
    (model / hub.EVALUATION_FILE).write_text(json.dumps({hub.EVALUATED_KEY: "0" * 64}))
    push()
    assert loopback_hub.files(REPO).keys() == MODEL_FILES


def test_figures_of_other_weights_on_the_hub_go_with_the_weights(
    loopback_hub: LoopbackHub, model: Path, push: Callable[..., Pushed]
) -> None:
    save_model(model, evaluated=True)
    push()
    for name in (hub.EVALUATION_FILE, hub.PICTURES_FILE):
        (model / name).unlink()
    push()
    assert hub.EVALUATION_FILE in loopback_hub.files(REPO), "they are of these very weights"
    save_model(model, seed=1)
    push()
    assert loopback_hub.files(REPO) == contents(model)
    assert len(commits(loopback_hub)) == 2
    loopback_hub.commit(REPO, {hub.PICTURES_FILE: b"\x89PNG"})
    push()
    assert hub.PICTURES_FILE in loopback_hub.files(REPO), "nothing says that it is of others"
    save_model(model, seed=2)
    push()
    assert hub.PICTURES_FILE not in loopback_hub.files(REPO)


def test_what_is_to_be_private_does_not_land_in_public(
    loopback_hub: LoopbackHub, push: Callable[..., Pushed]
) -> None:
    for _ in range(2):
        push(private=True)
        assert loopback_hub.repository(REPO).private
    loopback_hub.repository(REPO).private = False
    with pytest.raises(HubAccessError, match="is public"):
        push(private=True)


def test_a_pull_request_goes_to_a_repository_of_others(
    loopback_hub: LoopbackHub, model: Path, push: Callable[..., Pushed]
) -> None:
    push()
    (model / "README.md").write_text(card("corrected"), "utf-8")
    with pytest.raises(HubAccessError, match=r"write token.*settings/tokens"):
        push(token=loopback_hub.read_token)
    pushed = push(create_pr=True, token=loopback_hub.stranger_token)
    assert pushed.pull_request is not None
    assert b"corrected" in loopback_hub.read(REPO, "README.md", "refs/pr/1")
    assert b"corrected" not in loopback_hub.read(REPO, "README.md")


def test_a_token_that_may_not_create_repositories_may_push_to_one(
    loopback_hub: LoopbackHub, push: Callable[..., Pushed]
) -> None:
    loopback_hub.create(REPO)
    loopback_hub.fail(path="/api/repos/create", status=403, times=None)
    push()
    assert loopback_hub.files(REPO).keys() == MODEL_FILES


# Cards


def test_a_card_that_is_edited_while_it_is_pushed_to_is_kept(
    loopback_hub: LoopbackHub, push: Callable[..., Pushed]
) -> None:
    loopback_hub.create(REPO, files={"README.md": "# Mine\n"})
    loopback_hub.fail(
        path=COMMIT,
        before=lambda: loopback_hub.commit(REPO, {"README.md": "# Mine\nand more\n"}, title="Edit"),
    )
    push(commit_message="Ours")
    assert commits(loopback_hub)[1:] == ["Edit", "Ours"]
    text = loopback_hub.read(REPO, "README.md").decode()
    assert "# Mine\nand more\n" in text
    assert "seed 0" in text


def test_a_branch_that_never_rests_is_given_up(
    loopback_hub: LoopbackHub, push: Callable[..., Pushed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "MOST_RESTARTS", 3)
    loopback_hub.create(REPO)
    edits = iter(range(100))
    loopback_hub.fail(
        path=COMMIT,
        times=None,
        before=lambda: loopback_hub.commit(REPO, {"notes.txt": str(next(edits))}),
    )
    with pytest.raises(HubError, match="kept changing while it was pushed to"):
        push()
    assert next(edits) == 3


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"---\na: [\n---\n", "not valid YAML in line"),
        (b"---\n- a\n---\n", "of type list"),
        (b"caf\xe9", "not UTF-8 text"),
    ],
)
def test_a_card_that_cannot_be_kept_is_not_overwritten(
    loopback_hub: LoopbackHub, push: Callable[..., Pushed], text: bytes, named: str
) -> None:
    loopback_hub.create(REPO, files={"README.md": text})
    with pytest.raises(HubAccessError, match=named):
        push()
    assert loopback_hub.files(REPO) == {"README.md": text}


def test_a_card_that_arrives_damaged_is_read_again(
    loopback_hub: LoopbackHub, push: Callable[..., Pushed]
) -> None:
    loopback_hub.create(REPO, files={"README.md": "# Mine\n"})
    loopback_hub.fail(method="GET", path="/resolve/.*README.md", corrupt=2)
    push()
    assert loopback_hub.read(REPO, "README.md").decode().count("# Mine\n") == 1


# Faults

FAULTS: dict[str, dict[str, Any]] = {
    "a busy Hub when the repository is made": {"path": "/api/repos/create", "status": 503},
    "a limit on requests": {
        "path": "/api/repos/create",
        "status": 429,
        "headers": {"Retry-After": "7"},
    },
    "a lost answer to the repository's making": {
        "path": "/api/repos/create",
        "drop": True,
        "after": True,
    },
    "a busy Hub when the branch is read": {"path": r"/revision/", "status": 502},
    "a busy Hub when the files are listed": {"path": r"/tree/", "status": 500},
    "a dropped connection when the files are listed": {"path": r"/tree/", "drop": True},
    "a list that breaks off": {"path": r"/tree/", "truncate": 10},
    "a busy Hub when the card is checked": {
        "path": "/api/validate-yaml",
        "status": 503,
    },
    "no JSON from a Hub in repair": {"path": "/api/validate-yaml", "swap": b"<html>Back soon"},
    "a busy Hub when the upload is announced": {"path": r"/preupload/", "status": 503},
    "a busy Hub when the upload is planned": {"path": r"/objects/batch", "status": 503},
    "a dropped connection while uploading": {"method": "PUT", "path": r"/upload/", "drop": True},
    "a busy store": {"method": "PUT", "path": r"/upload/", "status": 503, "times": 7},
    "a busy Hub when the commit is made": {"path": COMMIT, "status": 503},
    "a busy Hub that made the commit": {"path": COMMIT, "status": 504, "after": True},
    "a dropped connection before the commit": {"path": COMMIT, "drop": True},
    "a dropped connection after the commit": {"path": COMMIT, "drop": True, "after": True},
    "an answer about the commit that breaks off": {"path": COMMIT, "truncate": 10},
}


@pytest.mark.parametrize("create_pr", [False, True])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_each_passing_fault_is_outlasted_and_one_commit_lands(
    loopback_hub: LoopbackHub,
    model: Path,
    push: Callable[..., Pushed],
    fault: dict[str, Any],
    create_pr: bool,
) -> None:
    planned = loopback_hub.fail(**fault)
    pushed = push(create_pr=create_pr)
    assert planned.spent, "the fault was never met"
    revision = "refs/pr/1" if create_pr else "main"
    assert len(commits(loopback_hub, revision)) == 1
    assert loopback_hub.files(REPO, revision) == contents(model)
    assert pushed.revision == loopback_hub.head(REPO, revision)
    assert [each for each in loopback_hub.repository(REPO).refs if "/pr/" in each] == (
        [revision] if create_pr else []
    )
    assert (pushed.pull_request is not None) == create_pr


def test_somebody_elses_commit_is_not_taken_for_a_lost_one(
    loopback_hub: LoopbackHub, push: Callable[..., Pushed]
) -> None:
    loopback_hub.create(REPO)
    loopback_hub.fail(
        path=COMMIT, drop=True, before=lambda: loopback_hub.commit(REPO, {"notes.txt": "x"})
    )
    push()
    assert loopback_hub.files(REPO).keys() == MODEL_FILES | {"notes.txt"}
    assert len(commits(loopback_hub)) == 2


def test_somebody_elses_pull_request_is_not_taken_for_a_lost_one(
    loopback_hub: LoopbackHub, model: Path, push: Callable[..., Pushed]
) -> None:
    push(create_pr=True)
    loopback_hub.fail(path=COMMIT, drop=True)
    assert push(create_pr=True).revision == loopback_hub.head(REPO, "refs/pr/2")


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "no token": ({"token": False}, "asks for a token: log in with `hf auth login`"),
    "an unknown token": ({"token": "hf_unknown"}, "does not take the token"),
    "a token that may read": ({"token": "hf_reads"}, "does not allow it .*rights to create"),
    "a token of another": ({"token": "hf_stranger"}, "does not allow it"),
    "a branch of no name": ({"revision": "a b"}, "'a b' cannot be a revision"),
    "an unknown pull request": ({"revision": "refs/pr/7"}, "Invalid reference"),
    "a token with a line break": ({"token": "hf_x\n"}, "line breaks"),
    "no token at all": ({"token": ""}, "is empty"),
}


@pytest.mark.parametrize(("arguments", "named"), REFUSALS.values(), ids=REFUSALS)
def test_each_refusal_says_what_to_do(
    push: Callable[..., Pushed], arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(HubAccessError, match=named) as caught:
        push(**arguments)
    assert not re.search("hf_", str(caught.value).replace("`hf auth", ""))
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize("repo_id", ["tiny", "user/tiny/more", "user/", "us er/tiny", "user/../x"])
def test_a_repository_of_no_name_is_refused(
    loopback_hub: LoopbackHub, model: Path, repo_id: str
) -> None:
    with pytest.raises(HubAccessError, match="expected user/name"):
        pushing.push_model(model, repo_id, token=loopback_hub.token)
    assert not loopback_hub.requests


@pytest.mark.slow
def test_weights_travel_by_xet_where_it_is_switched_on(
    loopback_hub: LoopbackHub, model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("hf_xet")
    loopback_hub.create(REPO, private=True)
    loopback_hub.use_xet(tmp_path / "xet")
    code = f"""
from imagetok import hub
hub.push_model({str(model)!r}, {REPO!r})
print(hub.load_remote_model({REPO!r}).files.sha256)
"""
    settings = {"HF_HUB_DISABLE_XET": "0", "HF_TOKEN": loopback_hub.token}
    command, environment = [sys.executable, "-c", code], os.environ | settings
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert loopback_hub.files(REPO) == contents(model)
    assert done.stdout.strip() == hub.load_model(model).sha256
    assert {request.origin for request in loopback_hub.requests} == {HUB}, "nothing went by LFS"
    assert loopback_hub.seen("GET", "xet-write-token")
    assert loopback_hub.seen("GET", "xet-read-token")


# Tokenized datasets


def save_dataset(folder: Path, shards: int = 7, text: str = "a") -> dict[str, Any]:
    """Write one; the arguments that push it."""
    bulk = [f"data/train-{number:05d}.parquet" for number in range(shards)]
    bulk += [f"errors/train-{number:05d}.jsonl" for number in range(0, shards, 3)]
    contents = {name: f"{text} {name}" for name in bulk}
    contents |= {"job.json": f"job {text}", "manifest.json": f"manifest {text}"}
    contents["README.md"] = card(text)
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return {
        "folder": folder,
        "bulk": bulk,
        "closing": ["job.json", "manifest.json", "README.md"],
        "repo_id": REPO,
        "owned": ["data/", "errors/"],
    }


@pytest.fixture
def push_dataset(loopback_hub: LoopbackHub, tmp_path: Path) -> Callable[..., Pushed]:
    """Writes a dataset anew and pushes it."""

    def push(shards: int = 7, text: str = "a", **arguments: Any) -> Pushed:
        given = save_dataset(tmp_path / f"{shards} {text}", shards, text)
        options = {"token": loopback_hub.token, "progress": False}
        return pushing.push_files(**given | options | arguments)

    return push


def dataset_commits(server: LoopbackHub) -> list[str]:
    return commits(server, repo_type="dataset")


def uploads(requests: list[Any]) -> list[str]:
    return [each.target for each in requests if each.method == "PUT"]


def test_a_large_dataset_closes_with_the_last_of_its_commits(
    loopback_hub: LoopbackHub, push_dataset: Callable[..., Pushed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "COMMIT_FILES", 4)
    push_dataset(shards=7)  # and three error reports
    history = loopback_hub.commits(REPO, repo_type="dataset")[::-1]
    held = [set(commit.files) - {".gitattributes"} for commit in history]
    assert [len(files) for files in held] == [0, 4, 8, 13]
    assert not held[2] & {"job.json", "manifest.json", "README.md"}


def test_a_reader_never_takes_half_of_a_new_dataset_for_the_whole(
    loopback_hub: LoopbackHub, push_dataset: Callable[..., Pushed], monkeypatch: pytest.MonkeyPatch
) -> None:
    push_dataset(text="a")
    before = len(dataset_commits(loopback_hub))
    monkeypatch.setattr(pushing, "COMMIT_FILES", 4)
    push_dataset(text="b", shards=5)
    commits = loopback_hub.commits(REPO, repo_type="dataset")[::-1][before + 1 :]
    assert len(commits) == 2
    for commit in commits[:-1]:
        assert "manifest.json" not in commit.files
        assert "README.md" in commit.files
    assert commits[-1].files["manifest.json"].content == b"manifest b"


def test_shards_of_another_job_are_deleted_and_other_files_stay(
    loopback_hub: LoopbackHub, push_dataset: Callable[..., Pushed], tmp_path: Path
) -> None:
    push_dataset(shards=7, text="a")
    loopback_hub.commit(REPO, {"notes.txt": "mine", "database/x": "mine"}, "dataset")
    push_dataset(shards=2, text="b")
    files = loopback_hub.files(REPO, repo_type="dataset")
    assert files == contents(tmp_path / "2 b") | {"notes.txt": b"mine", "database/x": b"mine"}


@pytest.mark.parametrize("committed", [False, True])
def test_an_interrupted_push_goes_on_where_it_was(
    loopback_hub: LoopbackHub,
    push_dataset: Callable[..., Pushed],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    committed: bool,
) -> None:
    monkeypatch.setattr(branch, "UPLOAD_GROUP", 2)
    monkeypatch.setattr(pushing, "COMMIT_FILES", 4 if committed else 1000)
    loopback_hub.fail(method="PUT", skip=5, status=403, times=None)
    with loopback_hub.recording() as first, pytest.raises(HubError):
        push_dataset(shards=9)
    landed = [each for each in first if each.method == "PUT" and each.status == 200]
    assert 4 <= len(landed) <= 5
    assert len(dataset_commits(loopback_hub)) == committed
    loopback_hub._faults.clear()
    with loopback_hub.recording() as second:
        push_dataset(shards=9)
    assert len(uploads(second)) == 9 - len(landed)
    assert loopback_hub.files(REPO, repo_type="dataset") == contents(tmp_path / "9 a")


def test_a_dataset_of_several_commits_goes_to_one_pull_request(
    loopback_hub: LoopbackHub,
    push_dataset: Callable[..., Pushed],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(pushing, "COMMIT_FILES", 4)
    loopback_hub.fail(path=COMMIT, drop=True, after=True)
    pushed = push_dataset(create_pr=True)
    assert pushed.pull_request == f"{loopback_hub.endpoint}/datasets/{REPO}/discussions/1"
    assert loopback_hub.files(REPO, "refs/pr/1", "dataset") == contents(tmp_path / "7 a")
    assert "refs/pr/2" not in loopback_hub.repository(REPO, "dataset").refs


def test_a_request_that_only_deletes_is_not_mistaken_for_another(
    loopback_hub: LoopbackHub, push_dataset: Callable[..., Pushed], tmp_path: Path
) -> None:
    push_dataset(shards=7)
    repository = loopback_hub.repository(REPO, "dataset")
    loopback_hub.fail(
        path=COMMIT,
        drop=True,
        before=lambda: repository.open_pull_request(repository.resolve("main")),
    )
    pushed = push_dataset(shards=2, create_pr=True)
    assert pushed.revision == loopback_hub.head(REPO, "refs/pr/2", "dataset")
    assert loopback_hub.files(REPO, "refs/pr/2", "dataset") == contents(tmp_path / "2 a")


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_a_commit_of_several_whose_answer_is_lost_is_not_made_twice(
    loopback_hub: LoopbackHub,
    push_dataset: Callable[..., Pushed],
    monkeypatch: pytest.MonkeyPatch,
    skip: int,
) -> None:
    monkeypatch.setattr(pushing, "COMMIT_FILES", 4)
    loopback_hub.fail(path=COMMIT, skip=skip, drop=True, after=True)
    push_dataset()
    assert len(dataset_commits(loopback_hub)) == 3


def test_a_missing_shard_is_named_before_anything_is_sent(
    loopback_hub: LoopbackHub, tmp_path: Path
) -> None:
    given = save_dataset(tmp_path)
    (tmp_path / "data/train-00003.parquet").unlink()
    with pytest.raises(UnreadableFileError, match=r"train-00003\.parquet"):
        pushing.push_files(**given, token=loopback_hub.token, progress=False)
    assert not loopback_hub.requests


def test_a_token_is_asked_for_before_the_shards_are_hashed(
    push_dataset: Callable[..., Pushed], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    monkeypatch.setattr(branch, "CommitOperationAdd", lambda name, _: hashed.append(name))
    with pytest.raises(HubAccessError, match="log in"):
        push_dataset(token=False)
    assert hashed == []


def test_the_bar_counts_the_bytes_that_are_left_and_can_be_turned_off(
    push_dataset: Callable[..., Pushed],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    push_dataset(shards=3)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(pushing, "COMMIT_FILES", 4)
    push_dataset(shards=9, progress=True)
    told = capsys.readouterr().err
    there, wanted = contents(tmp_path / "3 a"), contents(tmp_path / "9 a")
    size = sum(len(wanted[name]) for name in wanted.keys() - there.keys())
    last = re.search(r"push: 100%\|.*\| (\d+)/(\d+) ", told.split("\r")[-1])
    assert last is not None
    assert last[1] == last[2] == str(size)
    assert "Upload" not in told
