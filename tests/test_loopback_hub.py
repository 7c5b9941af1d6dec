"""The Hub on loopback behaves as the real one, where other tests rely on it."""

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
from huggingface_hub import CommitOperationAdd, HfApi, get_session, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile, RepoFolder

from loopback_hub import CDN, LoopbackHub

REPO = "user/name"
HELLO_OID = "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object of "hello\n"
HELLO_SHA256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"


@pytest.fixture
def hub(loopback_hub: LoopbackHub) -> LoopbackHub:
    return loopback_hub


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    """The real client, as the user `user`."""
    return HfApi(token=hub.token)


def commit(api: HfApi, files: dict[str, bytes], **options: Any) -> Any:
    """Commit files to the repository."""
    added = [CommitOperationAdd(name, data) for name, data in files.items()]
    return api.create_commit(REPO, added, **{"commit_message": "m", **options})


def parquet(folder: Path, **columns: list[Any]) -> bytes:
    """A table as a parquet file."""
    path = folder / "table.parquet"
    Dataset.from_dict(columns).to_parquet(path)
    return path.read_bytes()


def fails(status: int, call: Callable[[], object]) -> HfHubHTTPError:
    """Check that a call is answered with a status; the error."""
    with pytest.raises(HfHubHTTPError) as caught:
        call()
    assert caught.value.response.status_code == status
    return caught.value


def transport_error(name: str) -> type[Exception]:
    """An error of the HTTP library that the client is built on, which depends on its version."""
    library = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    error: type[Exception] = getattr(library, name)
    return error


# Repositories, commits and files


def test_a_repository_is_created_once_and_models_are_apart_from_datasets(
    hub: LoopbackHub, api: HfApi
) -> None:
    assert str(api.create_repo(REPO, private=True)) == f"{hub.endpoint}/{REPO}"
    assert hub.repository(REPO).private
    assert "already created" in str(fails(409, lambda: api.create_repo(REPO)))
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    api.create_repo(REPO, repo_type="dataset")
    commit(api, {"a": b"x"}, repo_type="dataset")
    assert hub.files(REPO, repo_type="dataset") == {"a": b"x"}
    assert hub.files(REPO) == {}


def test_what_does_not_exist_is_told_apart(hub: LoopbackHub, api: HfApi) -> None:
    hub.create(REPO)
    for error, call in [
        (RepositoryNotFoundError, lambda: api.model_info("user/nothing")),
        (RevisionNotFoundError, lambda: api.model_info(REPO, revision="nothing")),
        (RevisionNotFoundError, lambda: hf_hub_download(REPO, "a", revision="nothing")),
        (RevisionNotFoundError, lambda: commit(api, {"a": b"x"}, revision="nothing")),
        (EntryNotFoundError, lambda: hf_hub_download(REPO, "nothing")),
        (EntryNotFoundError, lambda: api.delete_file("a", REPO)),
    ]:
        with pytest.raises(error):
            call()


def test_a_commit_lands_large_and_small_files_at_once(hub: LoopbackHub, api: HfApi) -> None:
    hub.create(REPO, files={"old.bin": "large", "small": "small", "gone": "gone"})
    before = hub.head(REPO)
    files = {"w.safetensors": b"w" * 999, "copy.bin": b"large", "small": b"small"}
    made = commit(api, files, commit_message="Add")
    (landed, *_) = hub.commits(REPO)
    assert made.oid == landed.sha == hub.head(REPO)
    assert (landed.title, landed.author, landed.parent) == ("Add", "user", before)
    api.delete_file("gone", REPO)
    assert hub.files(REPO) == files | {"old.bin": b"large"}
    (upload,) = hub.seen("PUT")  # what is there already is not uploaded again
    assert (upload.origin, upload.body) == (CDN, b"w" * 999)
    assert commit(api, files).oid == hub.head(REPO)


@pytest.mark.parametrize(
    ("path", "content", "large"),
    [
        ("a.safetensors", b"text", True),
        ("a.parquet", b"text", True),
        ("a", b"binary\0", True),
        ("a.jsonl", b"x" * (10 * 2**20 + 1), True),
        ("a.jsonl", b"{}", False),
        ("a.safetensors", b"", False),
    ],
)
def test_large_files_are_known_by_name_size_or_content(
    hub: LoopbackHub, api: HfApi, path: str, content: bytes, large: bool
) -> None:
    hub.create(REPO)
    commit(api, {path: content})
    assert hub.read(REPO, path) == content
    assert bool(hub.seen("PUT")) == large
    found = {each.path: each for each in api.list_repo_tree(REPO)}[path]
    assert isinstance(found, RepoFile)
    assert (found.lfs is not None) == large


def test_a_commit_upon_a_parent_that_is_not_the_head_is_refused(
    hub: LoopbackHub, api: HfApi
) -> None:
    hub.create(REPO)
    first = hub.head(REPO)
    hub.fail(path="/commit/", before=lambda: hub.commit(REPO, {"a": "theirs"}))
    stale = fails(412, lambda: commit(api, {"a": b"mine"}, parent_commit=first))
    assert "A commit has happened since" in str(stale)
    assert hub.files(REPO) == {"a": b"theirs"}
    commit(api, {"a": b"mine"}, parent_commit=hub.head(REPO))
    assert hub.read(REPO, "a") == b"mine"


def test_a_pull_request_of_anybody_leaves_the_branch_alone(hub: LoopbackHub) -> None:
    hub.create(REPO, files={"a": "main"})
    head, api = hub.head(REPO), HfApi(token=hub.stranger_token)
    made = commit(api, {"a": b"pr"}, create_pr=True)
    assert made.pr_url == f"{hub.endpoint}/{REPO}/discussions/1"
    assert made.pr_revision == "refs/pr/1"
    assert (hub.head(REPO), hub.commits(REPO, "refs/pr/1")[0].parent) == (head, head)
    commit(HfApi(token=hub.token), {"b.bin": b"large"}, revision="refs/pr/1")
    assert hub.files(REPO, "refs/pr/1") == {"a": b"pr", "b.bin": b"large"}
    assert Path(hf_hub_download(REPO, "a", revision="refs/pr/1")).read_bytes() == b"pr"
    assert commit(api, {"z": b"z"}, create_pr=True).pr_num == 2
    requests = api.list_repo_refs(REPO, include_pull_requests=True).pull_requests
    assert requests is not None
    assert [each.ref for each in requests] == ["refs/pr/1", "refs/pr/2"]


def test_branches_move_and_tags_stay(hub: LoopbackHub, api: HfApi) -> None:
    hub.create(REPO, files={"a": "old"})
    api.create_branch(REPO, branch="dev/new")
    api.create_tag(REPO, tag="v1", revision=hub.head(REPO)[:8])
    assert "already exists" in str(fails(409, lambda: api.create_branch(REPO, branch="dev/new")))
    api.create_branch(REPO, branch="dev/new", exist_ok=True)
    commit(api, {"a": b"x"}, revision="dev/new")
    hub.commit(REPO, {"a": "new"})
    assert (hub.read(REPO, "a"), hub.read(REPO, "a", "dev/new")) == (b"new", b"x")
    assert Path(hf_hub_download(REPO, "a", revision="v1")).read_text() == "old"
    with pytest.raises(RevisionNotFoundError):
        commit(api, {"a": b"x"}, revision="v1")


def test_a_card_with_broken_metadata_is_refused(hub: LoopbackHub, api: HfApi) -> None:
    hub.create(REPO)
    for text in (b"---\nlicense: [\n---\n", b"---\n- list\n---\n"):
        with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
            commit(api, {"README.md": text})


def test_a_large_file_is_kept_whole_or_not_at_all(hub: LoopbackHub) -> None:
    hub.create(REPO)
    lines = [
        {"key": "header", "value": {"summary": "m"}},
        {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": HELLO_SHA256}},
    ]
    body = "\n".join(map(json.dumps, lines)).encode()
    url = f"{hub.endpoint}/api/models/{REPO}/commit/main"
    request = WebRequest(url, body, {"Authorization": f"Bearer {hub.token}"})
    with pytest.raises(HTTPError, match="400") as refused:
        urlopen(request)
    assert "file that does not exist" in refused.value.headers["X-Error-Message"]
    url = f"{hub.cdn}/upload/models/{REPO}/{HELLO_SHA256}"
    with pytest.raises(HTTPError, match="400"):
        urlopen(WebRequest(url, b"hellO\n", method="PUT"))
    assert hub.repository(REPO).large == {}


def test_a_tree_is_listed_in_pages_with_sizes_and_hashes(hub: LoopbackHub, api: HfApi) -> None:
    hub.create(REPO, files={"data/part/x.txt": "hello\n", "data/y.bin": "hello\n", "z": ""})
    hub.page_size = 2
    found = {each.path: each for each in api.list_repo_tree(REPO, recursive=True)}
    assert {path for path, each in found.items() if isinstance(each, RepoFolder)} == {
        "data",
        "data/part",
    }
    assert found.keys() >= {"data/part/x.txt", "data/y.bin", "z", ".gitattributes"}
    assert len(hub.seen("GET", "/tree/")) == 3
    small, large = found["data/part/x.txt"], found["data/y.bin"]
    assert isinstance(small, RepoFile)
    assert isinstance(large, RepoFile)
    assert (small.blob_id, small.size, small.lfs) == (HELLO_OID, 6, None)
    assert large.lfs is not None
    assert (large.lfs.sha256, large.lfs.size) == (HELLO_SHA256, 6)


# Downloads


def test_downloads_are_cached_under_their_etags(hub: LoopbackHub) -> None:
    hub.create(REPO, files={"sub/a.bin": "hello\n", "b.txt": "hello\n"})
    large, small = (Path(hf_hub_download(REPO, name)) for name in ("sub/a.bin", "b.txt"))
    assert large.read_text() == small.read_text() == "hello\n"
    assert (large.resolve().name, small.resolve().name) == (HELLO_SHA256, HELLO_OID)
    assert small.parent.name == large.parent.parent.name == hub.head(REPO)


def test_a_large_file_comes_from_another_origin_that_wants_no_token(hub: LoopbackHub) -> None:
    hub.create(REPO, files={"a.bin": "large"}, private=True)
    hf_hub_download(REPO, "a.bin", token=hub.token)
    (head,) = hub.seen("HEAD")
    (fetched,) = hub.seen("GET")
    assert (head.status, head.token) == (302, hub.token)
    assert (fetched.origin, fetched.token) == (CDN, None)
    url = f"{hub.cdn}{fetched.target}"
    with pytest.raises(HTTPError, match="400"):
        urlopen(WebRequest(url, headers={"Authorization": f"Bearer {hub.token}"}))


@pytest.mark.parametrize("name", ["a.txt", "a.bin"])
def test_ranges_are_answered(hub: LoopbackHub, name: str) -> None:
    hub.create(REPO, files={name: "0123456789"})
    url = f"{hub.endpoint}/{REPO}/resolve/main/{name}"
    for span, expected in (("0-3", "0-3"), ("8-", "8-9"), ("-3", "7-9"), ("5-99", "5-9")):
        with urlopen(WebRequest(url, headers={"Range": f"bytes={span}"})) as answer:
            assert answer.status == 206
            assert answer.headers["Content-Range"] == f"bytes {expected}/10"
            assert answer.read().decode() in "0123456789"
    with pytest.raises(HTTPError, match="416"):
        urlopen(WebRequest(url, headers={"Range": "bytes=10-"}))


# Who may do what


def test_a_token_that_nobody_has_is_refused_even_for_public_files(hub: LoopbackHub) -> None:
    hub.create(REPO, files={"a": "a"})
    api = HfApi(token="hf_nobody")
    for call in (lambda: api.model_info(REPO), lambda: api.hf_hub_download(REPO, "a")):
        assert not isinstance(fails(401, call), RepositoryNotFoundError)


@pytest.mark.parametrize("exists", [True, False])
def test_a_private_repository_looks_like_none_to_others(hub: LoopbackHub, exists: bool) -> None:
    if exists:
        hub.create(REPO, files={"a": "a"}, private=True)
    for token, status in ((False, 401), (hub.stranger_token, 404)):
        api = HfApi(token=token)
        for call in (api.model_info, lambda repo, api=api: api.hf_hub_download(repo, "a")):
            error = fails(status, lambda call=call: call(REPO))
            assert isinstance(error, RepositoryNotFoundError)


def test_a_gated_repository_shows_its_files_to_those_let_in(hub: LoopbackHub) -> None:
    repository = hub.create(REPO, files={"b.bin": "b"}, gated=True)
    tokens: list[tuple[int, str | bool]] = [(401, False), (403, hub.stranger_token)]
    for status, token in tokens:
        assert HfApi(token=token).model_info(REPO).gated == "manual"
        call = HfApi(token=token).hf_hub_download
        assert isinstance(fails(status, lambda call=call: call(REPO, "b.bin")), GatedRepoError)
    repository.granted.add("stranger")
    assert Path(hf_hub_download(REPO, "b.bin", token=hub.stranger_token)).read_text() == "b"


@pytest.mark.parametrize(("who", "status"), [("nobody", 401), ("reader", 403), ("stranger", 403)])
def test_only_a_write_token_of_the_owner_changes_anything(
    hub: LoopbackHub, who: str, status: int
) -> None:
    hub.create(REPO)
    tokens = {"reader": hub.read_token, "stranger": hub.stranger_token}
    api = HfApi(token=tokens.get(who, False))
    fails(status, lambda: api.create_repo("user/other"))
    fails(status, lambda: commit(api, {"a": b"x"}))
    fails(status, lambda: api.create_branch(REPO, branch="dev"))
    assert len(hub.commits(REPO)) == len(hub.repository(REPO).refs) == 1


# Datasets


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_loads_and_streams_a_repository(
    hub: LoopbackHub, tmp_path: Path, streaming: bool
) -> None:
    card = (
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - split: test\n    path: shards/*.parquet\n---\n"
    )
    files = {"README.md": card, "shards/a.parquet": parquet(tmp_path, number=[0, 1])}
    hub.create("user/data", "dataset", files=files, private=True)
    first = hub.head("user/data", repo_type="dataset")
    hub.commit("user/data", {"shards/a.parquet": parquet(tmp_path, number=[2])}, "dataset")
    for revision, expected in ((first, [0, 1]), (None, [2])):
        options = {"split": "test", "streaming": streaming, "token": hub.token}
        loaded = load_dataset("user/data", revision=revision, **options)
        assert [row["number"] for row in loaded] == expected
    assert {each.origin.partition(".")[0] for each in hub.strays} <= {"datasets-server"}
    with pytest.raises(DatasetNotFoundError):
        load_dataset("user/nothing")


# Faults


@pytest.mark.parametrize("status", [400, 429, 503])
def test_any_status_is_answered_on_demand(hub: LoopbackHub, api: HfApi, status: int) -> None:
    hub.fail(method="POST", path="/repos/create", status=status, headers={"Retry-After": "7"})
    assert fails(status, lambda: api.create_repo(REPO)).response.headers["Retry-After"] == "7"
    assert not hub.has(REPO)
    api.create_repo(REPO)
    assert [request.status for request in hub.requests] == [status, 200]
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


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("fault", [{"drop": True}, {"status": 504}], ids=str)
def test_a_commit_whose_answer_is_lost_has_landed_or_not(
    hub: LoopbackHub, api: HfApi, after: bool, fault: dict[str, Any]
) -> None:
    hub.create(REPO)
    hub.fail(method="POST", path="/commit/", after=after, **fault)
    with pytest.raises((transport_error("RemoteProtocolError"), HfHubHTTPError)):
        commit(api, {"a": b"x"})
    assert hub.files(REPO) == ({"a": b"x"} if after else {})
    assert hub.requests[-1].status == fault.get("status")


@pytest.mark.parametrize("name", ["a.bin", "a.txt"])
def test_the_client_refuses_a_wrong_size_and_believes_the_right_one(
    hub: LoopbackHub, name: str
) -> None:
    hub.create(REPO, files={name: "0123456789"})
    hub.fail(method="GET", path=name, truncate=5, declared=False)
    with pytest.raises(OSError, match="should be of size 10 but has size 5"):
        hf_hub_download(REPO, name)
    for fault, found in (
        ({"corrupt": -1}, b"0123456788"),
        ({"swap": b"abcdefghij"}, b"abcdefghij"),
    ):
        hub.fail(method="GET", path=f"/{name}", **fault)
        assert Path(hf_hub_download(REPO, name, force_download=True)).read_bytes() == found
    hub.fail(method="HEAD", headers={"X-Linked-Size": "9"})
    assert Path(hf_hub_download(REPO, name)).read_bytes() == b"abcdefghij"


def test_a_slow_answer_runs_into_the_timeout(hub: LoopbackHub, api: HfApi) -> None:
    hub.create(REPO)
    hub.fail(path="/api/models/", delay=0.5)
    with pytest.raises(transport_error("ReadTimeout")):
        api.model_info(REPO, timeout=0.05)
    assert api.model_info(REPO).id == REPO


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
    assert not Path(os.environ["HF_HOME"]).exists(), "each test begins with an empty cache"
    hub.create(REPO, files={"a": "a"})
    with hub.recording() as requests:
        refused = run_child(DOWNLOADS, HF_HUB_OFFLINE="1")
    assert refused.returncode == 1
    assert LocalEntryNotFoundError.__name__ in refused.stderr
    assert requests == []
    online = run_child(DOWNLOADS)
    assert online.returncode == 0, online.stderr
    assert hub.seen("GET", "/resolve/")


def test_a_late_request_reaches_the_hub_of_its_own_test(hub: LoopbackHub, api: HfApi) -> None:
    hub.create(REPO)

    def start_the_next_test() -> None:
        hub.reset()
        hub.create(REPO)

    hub.fail(path="/commit/", before=start_the_next_test)
    commit(api, {"a": b"x"})
    assert hub.files(REPO) == {}


def test_no_request_gets_out(hub: LoopbackHub) -> None:
    with pytest.raises(HTTPError, match="404"):
        urlopen("http://example.org/page?a=b")
    with pytest.raises(URLError, match="404"):
        urlopen("https://example.org/page")
    plain, tunnel = hub.strays
    assert (plain.origin, plain.target) == ("example.org", "/page?a=b")
    assert (tunnel.method, tunnel.origin) == ("CONNECT", "example.org:443")
