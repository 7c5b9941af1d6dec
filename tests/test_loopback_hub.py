"""The Hub on loopback behaves as the real one, as far as the unpatched clients can tell."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request as WebRequest
from urllib.request import urlopen

import pytest
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    get_session,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile, RepoFolder

from loopback_hub import CDN, HUB, LoopbackHub, User

REPO = "user/name"
CARD = "---\nlicense: mit\nlibrary_name: imagetok\ntags:\n- vq\n---\n# Card\n"
CLIENT_CHUNK = 10 * 2**20  # what the client has not read in whole chunks, it fetches again
HELLO_OID = "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object of "hello\n"
HELLO_SHA256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"


@pytest.fixture
def hub(loopback_hub: LoopbackHub) -> LoopbackHub:
    return loopback_hub


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    """The real client, as the user `user`."""
    return HfApi(token=hub.token)


def additions(**files: bytes) -> list[CommitOperationAdd]:
    """Operations that add `name=content`; a double underscore stands for a dot."""
    return [CommitOperationAdd(name.replace("__", "."), data) for name, data in files.items()]


def safetensors(header_size: int = 0) -> bytes:
    """A file with one tensor of two floats and a header of at least so many bytes."""
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"weight": entry, "__metadata__": {"pad": "x" * header_size}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


def parquet(folder: Path, **columns: list[Any]) -> bytes:
    """A table as a parquet file."""
    path = folder / "table.parquet"
    Dataset.from_dict(columns).to_parquet(path)
    return path.read_bytes()


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def transport_error(name: str) -> type[Exception]:
    """An error of the HTTP library that the client is built on, which depends on its version."""
    library = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    error: type[Exception] = getattr(library, name)
    return error


# Repositories


def test_a_repository_is_created_once(hub: LoopbackHub, api: HfApi) -> None:
    made = api.create_repo(REPO, private=True)
    assert (str(made), made.repo_id, made.repo_type) == (f"{hub.endpoint}/{REPO}", REPO, "model")
    assert hub.repository(REPO).private
    assert [commit.title for commit in hub.commits(REPO)] == ["initial commit"]
    with pytest.raises(HfHubHTTPError, match="already created this model repo") as conflict:
        api.create_repo(REPO)
    assert status_of(conflict) == 409
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO


def test_models_and_datasets_of_one_name_are_apart(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo(REPO)
    made = api.create_repo(REPO, repo_type="dataset")
    assert (made.repo_id, made.repo_type) == (REPO, "dataset")
    api.create_commit(REPO, additions(a=b"x"), repo_type="dataset", commit_message="Add")
    assert hub.files(REPO, repo_type="dataset") == {"a": b"x"}
    assert hub.files(REPO) == {}


def test_the_info_tells_sha_files_card_and_who_may_read(hub: LoopbackHub, api: HfApi) -> None:
    files = {"README.md": CARD, "a.safetensors": "hello\n", "b.txt": "hello\n"}
    hub.create(REPO, files=files, private=True, gated="auto")
    info = api.model_info(REPO, files_metadata=True)
    assert (info.sha, info.private, info.gated) == (hub.head(REPO), True, "auto")
    assert info.library_name == "imagetok"
    assert info.card_data is not None
    assert info.card_data.license == "mit"
    assert info.tags == ["imagetok", "vq", "license:mit", "region:us"]
    assert info.siblings is not None
    found = {each.rfilename: each for each in info.siblings}
    assert found.keys() == {".gitattributes", *files}
    assert (found["b.txt"].blob_id, found["b.txt"].size, found["b.txt"].lfs) == (HELLO_OID, 6, None)
    large = found["a.safetensors"].lfs
    assert large is not None
    assert (large.sha256, large.size) == (HELLO_SHA256, 6)


def test_what_does_not_exist_is_told_apart(hub: LoopbackHub, api: HfApi) -> None:
    hub.create(REPO)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("user/nothing")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("gpt2")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="nothing")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(REPO, "a", revision="nothing")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, "nothing")
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "nothing"))
    assert not api.repo_exists("user/nothing")
    assert not api.file_exists(REPO, "nothing")
    assert not api.revision_exists(REPO, "nothing")


# Commits


def test_a_commit_lands_large_and_small_files_at_once(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo(REPO)
    files = {"README__md": CARD.encode(), "w__safetensors": b"w" * 999, "c__json": b"{}"}
    made = api.create_commit(
        REPO, additions(**files), commit_message="Add", commit_description="all"
    )
    commit, initial = hub.commits(REPO)
    assert made.oid == commit.sha == hub.head(REPO)
    assert made.commit_url == f"{hub.endpoint}/{REPO}/commit/{commit.sha}"
    assert (commit.title, commit.message, commit.author) == ("Add", "all", "user")
    assert commit.parent == initial.sha
    assert hub.files(REPO) == {name.replace("__", "."): data for name, data in files.items()}
    (upload,) = hub.seen("PUT")
    assert (upload.origin, upload.body) == (CDN, b"w" * 999)
    assert b"w" * 99 not in hub.seen("POST", "/commit/main")[0].body
    assert [request.status for request in hub.seen("POST", "verify")] == [200]


@pytest.mark.parametrize(
    ("path", "content", "large"),
    [
        ("a.safetensors", b"text", True),
        ("a.tar", b"text", True),
        ("a.png", b"text", True),
        ("a", b"binary\0", True),
        ("a.jsonl", b"x" * (10 * 2**20 + 1), True),
        ("a.jsonl", b"{}", False),
        ("a.md", b"text", False),
        ("a.safetensors", b"", False),
    ],
)
def test_large_files_are_known_by_name_size_or_content(
    hub: LoopbackHub, api: HfApi, path: str, content: bytes, large: bool
) -> None:
    hub.create(REPO)
    api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=REPO, repo_type="model")
    assert hub.read(REPO, path) == content
    assert bool(hub.seen("PUT")) == large
    (info,) = api.get_paths_info(REPO, [path])
    assert isinstance(info, RepoFile)
    assert (info.lfs is not None) == large


def test_what_is_there_is_neither_uploaded_nor_committed_again(
    hub: LoopbackHub, api: HfApi
) -> None:
    hub.create(REPO, files={"old.bin": "large", "small": "small"})
    head = hub.head(REPO)
    same = additions(old__bin=b"large", small=b"small")
    assert api.create_commit(REPO, same, commit_message="Again").oid == head
    api.create_commit(REPO, additions(new__bin=b"large"), commit_message="Copy")
    assert not hub.seen("PUT")
    assert hub.files(REPO) == {"old.bin": b"large", "new.bin": b"large", "small": b"small"}
    assert hub.commits(REPO)[0].parent == head


def test_a_commit_upon_a_parent_that_is_not_the_head_is_refused(
    hub: LoopbackHub, api: HfApi
) -> None:
    hub.create(REPO)
    first = hub.head(REPO)
    head = hub.commit(REPO, {"a": "theirs"})
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as stale:
        api.create_commit(REPO, additions(a=b"mine"), commit_message="m", parent_commit=first)
    assert status_of(stale) == 412
    assert hub.head(REPO) == head
    api.create_commit(REPO, additions(a=b"mine"), commit_message="m", parent_commit=head)
    assert hub.read(REPO, "a") == b"mine"


def test_files_and_folders_are_deleted_and_copied(hub: LoopbackHub, api: HfApi) -> None:
    hub.create(REPO, files={"a": "a", "b/c": "c", "b/d": "d", "e.bin": "e"})
    operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
        CommitOperationDelete("a"),
        CommitOperationDelete("b/"),
        CommitOperationCopy("e.bin", "f.bin"),
    ]
    api.create_commit(REPO, operations, commit_message="Tidy")
    assert hub.files(REPO) == {"e.bin": b"e", "f.bin": b"e"}
    with pytest.raises(EntryNotFoundError, match="doesn't exist"):
        api.delete_file("a", REPO)


def test_a_pull_request_leaves_the_branch_alone(hub: LoopbackHub, api: HfApi) -> None:
    hub.create(REPO, files={"a": "main"})
    head = hub.head(REPO)
    proposed = additions(a=b"pr", b__bin=b"large")
    made = api.create_commit(REPO, proposed, commit_message="Propose", create_pr=True)
    assert made.pr_url == f"{hub.endpoint}/{REPO}/discussions/1"
    assert made.pr_revision == "refs/pr/1"
    assert hub.head(REPO) == head
    assert hub.commits(REPO, "refs/pr/1")[0].parent == head
    again = additions(c=b"more")
    api.create_commit(REPO, again, commit_message="More", revision="refs/pr/1")
    assert hub.files(REPO, "refs/pr/1") == {"a": b"pr", "b.bin": b"large", "c": b"more"}
    assert Path(hf_hub_download(REPO, "a", revision="refs/pr/1")).read_bytes() == b"pr"
    assert hub.seen("HEAD", "/resolve/refs%2Fpr%2F1/a")
    requests = api.list_repo_refs(REPO, include_pull_requests=True).pull_requests
    assert requests is not None
    assert [each.ref for each in requests] == ["refs/pr/1"]
    second = api.create_commit(REPO, additions(z=b"z"), commit_message="Other", create_pr=True)
    assert second.pr_num == 2


def test_branches_are_made_once_written_to_and_deleted(hub: LoopbackHub, api: HfApi) -> None:
    hub.create(REPO, files={"a": "main"})
    first = hub.commits(REPO)[-1].sha
    with pytest.raises(RevisionNotFoundError):
        api.create_commit(REPO, additions(a=b"x"), commit_message="m", revision="dev/new")
    api.create_branch(REPO, branch="dev/new")
    api.create_branch(REPO, branch="empty", revision=first)
    with pytest.raises(HfHubHTTPError, match="already exists") as conflict:
        api.create_branch(REPO, branch="dev/new")
    assert status_of(conflict) == 409
    api.create_branch(REPO, branch="dev/new", exist_ok=True)
    api.create_commit(REPO, additions(a=b"x"), commit_message="m", revision="dev/new")
    assert (hub.read(REPO, "a"), hub.read(REPO, "a", "dev/new")) == (b"main", b"x")
    assert hub.head(REPO, "empty") == first
    names = {each.name: each.target_commit for each in api.list_repo_refs(REPO).branches}
    assert names == {name: hub.head(REPO, name) for name in ("main", "dev/new", "empty")}
    api.delete_branch(REPO, branch="empty")
    with pytest.raises(RevisionNotFoundError):
        api.delete_branch(REPO, branch="empty")


def test_a_tag_stays_with_its_commit(hub: LoopbackHub, api: HfApi) -> None:
    hub.create(REPO, files={"a": "old"})
    api.create_tag(REPO, tag="v1", revision=hub.head(REPO)[:8])
    hub.commit(REPO, {"a": "new"})
    assert Path(hf_hub_download(REPO, "a", revision="v1")).read_text() == "old"
    assert [each.ref for each in api.list_repo_refs(REPO).tags] == ["refs/tags/v1"]
    with pytest.raises(HfHubHTTPError) as conflict:
        api.create_tag(REPO, tag="v1")
    assert status_of(conflict) == 409
    with pytest.raises(RevisionNotFoundError):
        api.create_commit(REPO, additions(a=b"x"), commit_message="m", revision="v1")


def test_a_card_with_broken_metadata_is_refused(hub: LoopbackHub, api: HfApi) -> None:
    hub.create(REPO)
    for text in (b"---\nlicense: [\n---\n", b"---\n- list\n---\n"):
        with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
            api.create_commit(REPO, additions(README__md=text), commit_message="m")
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        api.create_commit(REPO, additions(README__md=b"# Title"), commit_message="m")


def test_a_commit_cannot_point_at_a_large_file_that_was_not_uploaded(hub: LoopbackHub) -> None:
    hub.create(REPO)
    lines = [
        {"key": "header", "value": {"summary": "m"}},
        {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": "0" * 64}},
    ]
    body = "\n".join(map(json.dumps, lines)).encode()
    url = f"{hub.endpoint}/api/models/{REPO}/commit/main"
    request = WebRequest(url, body, {"Authorization": f"Bearer {hub.token}"})
    with pytest.raises(HTTPError, match="400") as refused:
        urlopen(request)
    assert "file that does not exist" in refused.value.headers["X-Error-Message"]
    assert len(hub.commits(REPO)) == 1


def test_an_upload_that_was_damaged_on_the_way_is_not_kept(hub: LoopbackHub) -> None:
    hub.create(REPO)
    url = f"{hub.cdn}/upload/models/{REPO}/{HELLO_SHA256}"
    with pytest.raises(HTTPError, match="400"):
        urlopen(WebRequest(url, b"hellO\n", method="PUT"))
    assert hub.repository(REPO).large == {}
    urlopen(WebRequest(url, b"hello\n", method="PUT")).close()
    assert hub.repository(REPO).large == {HELLO_SHA256: b"hello\n"}


# Listings


def test_a_tree_is_listed_in_pages(hub: LoopbackHub, api: HfApi) -> None:
    files = {f"data/part-{number}/x.txt": "x" for number in range(3)} | {"data/y.bin": "y", "z": ""}
    hub.create(REPO, files=files)
    folders = {"data", "data/part-0", "data/part-1", "data/part-2"}
    hub.page_size = 2
    found = list(api.list_repo_tree(REPO, recursive=True))
    assert {each.path for each in found} == {*files, *folders, ".gitattributes"}
    assert {each.path for each in found if isinstance(each, RepoFolder)} == folders
    assert len(hub.seen("GET", "/tree/")) == 5
    inside = api.list_repo_tree(REPO, "data")
    assert {each.path for each in inside} == {*folders, "data/y.bin"} - {"data"}
    (deep,) = api.list_repo_tree(REPO, "data/part-1", expand=True)
    assert isinstance(deep, RepoFile)
    assert deep.last_commit is not None
    assert deep.last_commit.oid == hub.head(REPO)


def test_paths_that_exist_are_told(hub: LoopbackHub, api: HfApi) -> None:
    hub.create(REPO, files={"a/b": "hello\n", "c.bin": "hello\n"})
    hub.commit(REPO, {"c.bin": "changed"})
    folder, file, large = api.get_paths_info(REPO, ["a", "a/b", "no", "c.bin"], expand=True)
    assert (folder.path, isinstance(folder, RepoFolder)) == ("a", True)
    assert isinstance(file, RepoFile)
    assert (file.blob_id, file.size) == (HELLO_OID, 6)
    newest, before, _ = hub.commits(REPO)
    last = [each.last_commit.oid for each in (folder, file, large) if each.last_commit is not None]
    assert last == [before.sha, before.sha, newest.sha]


def test_the_commits_of_a_revision_are_listed_in_pages(hub: LoopbackHub, api: HfApi) -> None:
    hub.create(REPO)
    for number in range(4):
        hub.commit(REPO, {"a": str(number)}, title=f"Commit {number}")
    hub.page_size = 2
    found = api.list_repo_commits(REPO)
    assert [each.commit_id for each in found] == [each.sha for each in hub.commits(REPO)]
    assert [each.title for each in found[:2]] == ["Commit 3", "Commit 2"]
    assert found[0].authors == ["user"]
    assert found[0].created_at > found[1].created_at
    assert len(hub.seen("GET", "/commits/")) == 3


# Downloads


def test_downloads_are_cached_under_their_etags(hub: LoopbackHub) -> None:
    hub.create(REPO, files={"sub/a.bin": "hello\n", "b.txt": "hello\n"})
    large, small = (Path(hf_hub_download(REPO, name)) for name in ("sub/a.bin", "b.txt"))
    assert large.read_text() == small.read_text() == "hello\n"
    assert (large.resolve().name, small.resolve().name) == (HELLO_SHA256, HELLO_OID)
    assert small.parent.name == large.parent.parent.name == hub.head(REPO)
    with hub.recording() as requests:
        hf_hub_download(REPO, "b.txt", revision=hub.head(REPO))
        hf_hub_download(REPO, "b.txt", local_files_only=True)
    assert requests == []


def test_a_large_file_comes_from_another_origin_that_sees_no_token(hub: LoopbackHub) -> None:
    hub.create(REPO, files={"a.bin": "large"}, private=True)
    hf_hub_download(REPO, "a.bin", token=hub.token)
    (head,) = hub.seen("HEAD")
    (fetched,) = hub.seen("GET")
    assert (head.status, head.token) == (302, hub.token)
    assert (fetched.origin, fetched.token) == (CDN, None)
    assert "large" not in (head.target, fetched.target)
    url = f"{hub.cdn}{fetched.target}"
    with pytest.raises(HTTPError, match="400"):
        urlopen(WebRequest(url, headers={"Authorization": f"Bearer {hub.token}"}))


def test_a_snapshot_is_of_one_commit(hub: LoopbackHub) -> None:
    files = {f"{number}.{suffix}": f"{number}" for number in range(8) for suffix in ("txt", "bin")}
    hub.create(REPO, files=files)
    first = hub.head(REPO)
    hub.fail(path="/tree/", before=lambda: hub.commit(REPO, dict.fromkeys(files, "changed")))
    folder = Path(snapshot_download(REPO))
    assert folder.name == first != hub.head(REPO)
    assert {name: (folder / name).read_text() for name in files} == files


@pytest.mark.parametrize(
    ("span", "expected"),
    [("0-3", b"0123"), ("8-", b"89"), ("-3", b"789"), ("5-99", b"56789"), ("10-", None)],
)
@pytest.mark.parametrize("name", ["a.txt", "a.bin"])
def test_ranges_are_answered(
    hub: LoopbackHub, name: str, span: str, expected: bytes | None
) -> None:
    hub.create(REPO, files={name: "0123456789"})
    url = f"{hub.endpoint}/{REPO}/resolve/main/{name}"
    request = WebRequest(url, headers={"Range": f"bytes={span}"})
    if expected is None:
        with pytest.raises(HTTPError, match="416"):
            urlopen(request)
        return
    with urlopen(request) as answer:
        start = 10 - len(expected) if span != "0-3" else 0
        stop = start + len(expected) - 1
        assert (answer.status, answer.read()) == (206, expected)
        assert answer.headers["Content-Range"] == f"bytes {start}-{stop}/10"


@pytest.mark.parametrize(("header_size", "requests"), [(10, 1), (200_000, 2)])
def test_the_header_of_a_safetensors_file_is_read_by_ranges(
    hub: LoopbackHub, api: HfApi, header_size: int, requests: int
) -> None:
    hub.create(REPO, files={"model.safetensors": safetensors(header_size)})
    found = api.parse_safetensors_file_metadata(REPO, "model.safetensors")
    assert found.tensors["weight"].shape == [2]
    fetched = [request for request in hub.seen("GET") if request.origin == CDN]
    assert [request.status for request in fetched] == [206] * requests
    assert all("range" in request.headers for request in fetched)
    assert api.get_safetensors_metadata(REPO).weight_map == {"weight": "model.safetensors"}


# Who may do what


def test_the_hub_knows_who_asks(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_user("hf_member", User("member", organizations=("team",)))
    assert api.whoami()["name"] == "user"
    assert api.whoami(token=hub.read_token)["auth"]["accessToken"]["role"] == "read"
    assert [each["name"] for each in api.whoami(token="hf_member")["orgs"]] == ["team"]
    assert api.create_repo("team/name", token="hf_member").repo_id == "team/name"


def test_a_token_that_nobody_has_is_refused_even_for_public_files(hub: LoopbackHub) -> None:
    hub.create(REPO, files={"a": "a"})
    api = HfApi(token="hf_nobody")
    calls: list[Callable[[], object]] = [
        api.whoami,
        lambda: api.model_info(REPO),
        lambda: api.hf_hub_download(REPO, "a"),
        lambda: api.create_repo("user/other"),
    ]
    for call in calls:
        with pytest.raises(HfHubHTTPError) as refused:
            call()
        assert status_of(refused) == 401
        assert not isinstance(refused.value, RepositoryNotFoundError)


@pytest.mark.parametrize("token", ["anonymous", "stranger"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_private_repository_looks_like_none_to_others(
    hub: LoopbackHub, token: str, exists: bool
) -> None:
    if exists:
        hub.create(REPO, files={"a": "a"}, private=True)
    sent = hub.stranger_token if token == "stranger" else False
    api = HfApi(token=sent)
    for call in (api.model_info, lambda repo: api.hf_hub_download(repo, "a")):
        with pytest.raises(RepositoryNotFoundError) as refused:
            call(REPO)
        assert status_of(refused) == (404 if sent else 401)


def test_a_gated_repository_shows_its_files_to_those_let_in(hub: LoopbackHub) -> None:
    repository = hub.create(REPO, files={"a": "a", "b.bin": "b"}, gated=True)
    tokens: list[tuple[int, str | bool]] = [(401, False), (403, hub.stranger_token)]
    for status, token in tokens:
        assert HfApi(token=token).model_info(REPO).gated == "manual"
        with pytest.raises(GatedRepoError, match=f"{status} Client Error") as refused:
            hf_hub_download(REPO, "b.bin", token=token)
        assert status_of(refused) == status
    repository.granted.add("stranger")
    for let_in in (hub.stranger_token, hub.read_token):
        assert Path(hf_hub_download(REPO, "a", token=let_in)).read_text() == "a"


@pytest.mark.parametrize(("who", "status"), [("nobody", 401), ("reader", 403), ("stranger", 403)])
def test_only_a_write_token_of_the_owner_changes_anything(
    hub: LoopbackHub, who: str, status: int
) -> None:
    hub.create(REPO)
    tokens = {"reader": hub.read_token, "stranger": hub.stranger_token}
    api = HfApi(token=tokens.get(who, False))
    calls: list[Callable[[], object]] = [
        lambda: api.create_repo("user/other"),
        lambda: api.create_commit(REPO, additions(a=b"x"), commit_message="m"),
        lambda: api.create_branch(REPO, branch="dev"),
        lambda: api.create_tag(REPO, tag="v1"),
    ]
    for call in calls:
        with pytest.raises(HfHubHTTPError) as refused:
            call()
        assert status_of(refused) == status
    assert len(hub.commits(REPO)) == len(hub.repository(REPO).refs) == 1


def test_a_stranger_may_propose_changes(hub: LoopbackHub) -> None:
    hub.create(REPO)
    api = HfApi(token=hub.stranger_token)
    api.create_commit(REPO, additions(a=b"x"), commit_message="Propose", create_pr=True)
    assert hub.files(REPO, "refs/pr/1") == {"a": b"x"}


# Datasets


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_loads_and_streams_a_repository(
    hub: LoopbackHub, tmp_path: Path, streaming: bool
) -> None:
    columns: dict[str, list[Any]] = {"number": [0, 1, 2], "name": ["a", "b", "c"]}
    hub.create(
        "user/data",
        "dataset",
        files={
            "README.md": "---\nconfigs:\n- config_name: default\n  data_files:\n"
            "  - split: test\n    path: shards/*.parquet\n---\n",
            "shards/a.parquet": parquet(tmp_path, **columns),
        },
    )
    loaded = load_dataset("user/data", split="test", streaming=streaming)
    assert list(loaded) == Dataset.from_dict(columns).to_list()
    assert hub.seen("GET", "shards/a.parquet")[0].origin == CDN or streaming
    assert {each.origin.partition(".")[0] for each in hub.strays} <= {"datasets-server"}


def test_datasets_follows_revisions_and_permissions(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.create("user/data", "dataset", files={"a.parquet": parquet(tmp_path, x=[1])}, private=True)
    api = HfApi(token=hub.token)
    api.create_tag("user/data", tag="v1", repo_type="dataset")
    hub.commit("user/data", {"a.parquet": parquet(tmp_path, x=[2])}, "dataset")
    for revision, expected in (("v1", [1]), (None, [2])):
        loaded = load_dataset("user/data", revision=revision, token=hub.token, split="train")
        assert list(loaded["x"]) == expected
    with pytest.raises(DatasetNotFoundError):
        load_dataset("user/nothing")


def test_datasets_asks_no_other_host_for_a_revision(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.create("user/data", "dataset", files={"a.parquet": parquet(tmp_path, x=[1])})
    load_dataset("user/data", revision=hub.head("user/data", repo_type="dataset"))
    assert hub.strays == []


# Faults


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 429, 500, 503])
def test_any_status_is_answered_on_demand(hub: LoopbackHub, api: HfApi, status: int) -> None:
    hub.fail(method="POST", path="/repos/create", status=status, headers={"Retry-After": "7"})
    with pytest.raises(HfHubHTTPError) as failed:
        api.create_repo(REPO)
    assert status_of(failed) == status
    assert failed.value.response.headers["Retry-After"] == "7"
    assert not hub.has(REPO)
    api.create_repo(REPO)
    assert [request.status for request in hub.requests] == [status, 200]


def test_an_error_code_makes_the_client_name_the_error(hub: LoopbackHub, api: HfApi) -> None:
    hub.create(REPO)
    hub.fail(path="/api/models/", status=403, code="GatedRepo", message="closed")
    with pytest.raises(GatedRepoError, match="closed"):
        api.model_info(REPO)


def test_faults_skip_repeat_and_end(hub: LoopbackHub, api: HfApi) -> None:
    hub.create(REPO)
    hub.fail(path=f"/api/models/{REPO}$", skip=1, times=2, status=500)
    outcomes: list[str | int] = []
    for _ in range(4):
        try:
            outcomes.append(api.model_info(REPO).id)
        except HfHubHTTPError as error:
            outcomes.append(error.response.status_code)
    assert outcomes == [REPO, 500, 500, REPO]
    hub.fail(method="HEAD", times=None, status=503)
    for _ in range(3):
        with pytest.raises(HTTPError, match="503"):
            urlopen(WebRequest(f"{hub.endpoint}/{REPO}", method="HEAD"))


@pytest.mark.parametrize("after", [False, True])
def test_a_dropped_commit_has_landed_or_not(hub: LoopbackHub, api: HfApi, after: bool) -> None:
    hub.create(REPO)
    hub.fail(method="POST", path="/commit/", drop=True, after=after)
    with pytest.raises(transport_error("RemoteProtocolError"), match="disconnected"):
        api.create_commit(REPO, additions(a=b"x"), commit_message="m")
    assert hub.files(REPO) == ({"a": b"x"} if after else {})
    assert hub.requests[-1].status is None


def test_a_commit_lands_though_an_error_is_answered(hub: LoopbackHub, api: HfApi) -> None:
    hub.create(REPO)
    hub.fail(path="/commit/", status=504, after=True)
    with pytest.raises(HfHubHTTPError) as failed:
        api.create_commit(REPO, additions(a=b"x"), commit_message="m")
    assert status_of(failed) == 504
    assert hub.files(REPO) == {"a": b"x"}


def test_the_client_tries_an_upload_again(hub: LoopbackHub, api: HfApi) -> None:
    hub.create(REPO)
    hub.fail(method="PUT", path="/upload/", status=503)
    api.create_commit(REPO, additions(a__bin=b"large"), commit_message="m")
    assert [request.status for request in hub.seen("PUT")] == [503, 200]
    assert hub.files(REPO) == {"a.bin": b"large"}


def test_a_download_that_breaks_off_is_taken_up_again(hub: LoopbackHub) -> None:
    content = bytes(range(256)) * 45_000
    hub.create(REPO, files={"a.bin": content})
    hub.fail(method="GET", path=r"/a\.bin", truncate=CLIENT_CHUNK + 5)
    assert Path(hf_hub_download(REPO, "a.bin")).read_bytes() == content
    fetched = hub.seen("GET", r"/a\.bin")
    assert [request.status for request in fetched] == [200, 206]
    assert fetched[1].headers["range"] == f"bytes={CLIENT_CHUNK}-"


@pytest.mark.parametrize("name", ["a.bin", "a.txt"])
def test_a_file_that_is_declared_shorter_is_refused_by_the_client(
    hub: LoopbackHub, name: str
) -> None:
    hub.create(REPO, files={name: "0123456789"})
    hub.fail(method="GET", path=name, truncate=5, declared=False)
    with pytest.raises(OSError, match="should be of size 10 but has size 5"):
        hf_hub_download(REPO, name)


@pytest.mark.parametrize("name", ["a.bin", "a.txt"])
def test_a_file_of_the_right_size_is_believed_by_the_client(hub: LoopbackHub, name: str) -> None:
    hub.create(REPO, files={name: "0123456789", f"sub/{name}": "abcdefghij"})
    hub.fail(method="GET", path=f"/{name}", corrupt=-1)
    assert Path(hf_hub_download(REPO, name)).read_bytes() == b"0123456788"
    hub.fail(method="GET", path=f"/{name}", swap=hub.read(REPO, f"sub/{name}"))
    found = Path(hf_hub_download(REPO, name, force_download=True)).read_bytes()
    assert found == b"abcdefghij"
    found = Path(hf_hub_download(REPO, name, force_download=True)).read_bytes()
    assert found == b"0123456789"


def test_a_slow_answer_runs_into_the_timeout(hub: LoopbackHub, api: HfApi) -> None:
    hub.create(REPO)
    hub.fail(path="/api/models/", delay=0.5)
    with pytest.raises(transport_error("ReadTimeout")):
        api.model_info(REPO, timeout=0.05)
    assert api.model_info(REPO).id == REPO


def test_a_colleague_commits_in_between(hub: LoopbackHub, api: HfApi) -> None:
    hub.create(REPO, files={"README.md": CARD})
    head = hub.head(REPO)
    hub.fail(path="/commit/", before=lambda: hub.commit(REPO, {"README.md": CARD + "theirs"}))
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit(REPO, additions(a=b"x"), commit_message="m", parent_commit=head)
    assert hub.files(REPO) == {"README.md": f"{CARD}theirs".encode()}


def test_headers_are_added_to_a_real_answer(hub: LoopbackHub, api: HfApi) -> None:
    hub.create(REPO, files={"a.bin": "large"})
    hub.fail(method="HEAD", headers={"X-Linked-Size": "9"})
    with pytest.raises(OSError, match="should be of size 9 but has size 5"):
        hf_hub_download(REPO, "a.bin")


# The log, and the way out

DOWNLOADS = """
from huggingface_hub import hf_hub_download
print(hf_hub_download("user/name", "a"))
"""


def run_child(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, with further settings."""
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_processes_inherit_the_hub_and_being_offline_asks_nothing(hub: LoopbackHub) -> None:
    hub.create(REPO, files={"a": "a"})
    with hub.recording() as requests:
        refused = run_child(DOWNLOADS, HF_HUB_OFFLINE="1")
    assert refused.returncode == 1
    assert LocalEntryNotFoundError.__name__ in refused.stderr
    assert requests == []
    online = run_child(DOWNLOADS)
    assert online.returncode == 0, online.stderr
    with hub.recording() as requests:
        assert run_child(DOWNLOADS, HF_HUB_OFFLINE="1").stdout == online.stdout
    assert requests == []
    assert hub.seen("GET", "/resolve/")


def test_each_test_begins_with_an_empty_hub_and_cache(hub: LoopbackHub) -> None:
    assert not hub.has(REPO)
    assert hub.requests == []
    assert not Path(os.environ["HF_HOME"]).exists()


def test_a_late_request_reaches_the_hub_of_its_own_test(hub: LoopbackHub, api: HfApi) -> None:
    hub.create(REPO)

    def start_the_next_test() -> None:
        hub.reset()
        hub.create(REPO)

    hub.fail(path="/commit/", before=start_the_next_test)
    api.create_commit(REPO, additions(a=b"x"), commit_message="m")
    assert hub.files(REPO) == {}


def test_no_request_gets_out(hub: LoopbackHub) -> None:
    with pytest.raises(HTTPError, match="404"):
        urlopen("http://example.org/page?a=b")
    with pytest.raises(URLError, match="404"):
        urlopen("https://example.org/page")
    plain, tunnel = hub.strays
    assert (plain.origin, plain.target) == ("example.org", "/page?a=b")
    assert (tunnel.method, tunnel.origin) == ("CONNECT", "example.org:443")


# Xet

UPLOADS_BY_XET = """
from huggingface_hub import HfApi
api = HfApi()
with open("a.safetensors", "wb") as file:
    file.write(bytes(range(256)) * 1000)
api.upload_file(path_or_fileobj="a.safetensors", path_in_repo="a.safetensors", repo_id="user/name")
print(api.hf_hub_download("user/name", "a.safetensors"))
"""


def test_large_files_travel_by_xet_where_it_is_switched_on(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hf_xet")
    hub.create(REPO, private=True)
    hub.use_xet(tmp_path / "xet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    done = run_child(UPLOADS_BY_XET, HF_HUB_DISABLE_XET="0")
    assert done.returncode == 0, done.stderr
    content = bytes(range(256)) * 1000
    assert hub.files(REPO) == {"a.safetensors": content}
    assert Path(done.stdout.strip()).read_bytes() == content
    assert {request.origin for request in hub.requests} == {HUB}
    assert not hub.seen("POST", "lfs")
    assert hub.seen("GET", "xet-write-token")
    assert hub.seen("GET", "xet-read-token")
