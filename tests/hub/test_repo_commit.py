"""Commits on the Hub, whatever is read from them: resolved once, checked, cached, faults told."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hub_models import contents, dataset_files, model_files, wanted
from huggingface_hub import constants

from imagetok import hub
from imagetok.errors import HubAccessError, HubError, ModelFileError, UnreadableFileError
from imagetok.hub.address import is_repo_id
from imagetok.hub.repo_commit import RepoCommit, remove_cached
from loopback_hub import CDN, HUB, LoopbackHub

pytestmark = pytest.mark.usefixtures("no_waits")

REPO = "user/thing"


@dataclass(frozen=True)
class Reader:
    """A function that reads a repository, and what lies there now and later."""

    read: Callable[..., Any]
    repo_type: str
    files: dict[str, bytes]
    later: dict[str, bytes]

    def put(self, server: LoopbackHub, **options: Any) -> str:
        server.create(REPO, self.repo_type, files=self.files, **options)
        return server.head(REPO, repo_type=self.repo_type)

    def move(self, server: LoopbackHub) -> str:
        return server.commit(REPO, self.later, self.repo_type)


READERS = {
    "model": Reader(hub.load_remote_model, "model", model_files(), model_files(1)),
    "info": Reader(hub.read_remote_info, "model", model_files(), model_files(1)),
    "dataset": Reader(hub.fetch_dataset, "dataset", dataset_files(), dataset_files(4)),
}
FETCHERS = {
    "model": READERS["model"],
    "model without figures": Reader(
        hub.load_remote_model,
        "model",
        model_files(evaluated=False),
        model_files(1, evaluated=False),
    ),
    "dataset": READERS["dataset"],
}
MAIN_FILES = {"model": hub.MODEL_FILE, "info": hub.MODEL_FILE, "dataset": "manifest.json"}
SHARD = next(name for name in dataset_files() if name.endswith("1.parquet"))
FETCHED = [
    *(("model", name) for name in model_files()),
    *(("dataset", name) for name in ("manifest.json", "job.json", "README.md", SHARD)),
]
"""Reader and name of the files that are fetched."""


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest) -> Reader:
    return READERS[request.param]


@pytest.fixture(params=FETCHERS)
def fetcher(request: pytest.FixtureRequest) -> Reader:
    """A reader that keeps the files in the cache."""
    return FETCHERS[request.param]


# Names


def test_a_user_and_a_name_mean_the_hub_and_all_else_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("user/name", "a-b/c.d_e", "User/v1.0"):
        assert is_repo_id(name)
    for name in ("/user/name", "./name", "../name", "~/name", ".a/b", ""):
        assert not any(is_repo_id(f"{name}{suffix}") for suffix in ("", "/", "/more"))
    for name in ("name", "a\\b", "a\\b/c", "C:/name", "user/na me", "user/name.git"):
        assert not is_repo_id(name)
    (tmp_path / "user" / "name").mkdir(parents=True)
    assert not is_repo_id("user/name"), "it exists here"


@pytest.mark.parametrize("revision", ["", "../../../x", "/x", "a b", "a\\b", "a..b", "x/.y"])
@pytest.mark.parametrize("local", [True, False])
def test_a_revision_that_git_cannot_have_is_refused_before_any_request(
    loopback_hub: LoopbackHub, revision: str, local: bool
) -> None:
    with pytest.raises(HubAccessError, match="cannot be a revision of user/thing"):
        RepoCommit.resolve(REPO, "model", revision=revision, local_files_only=local)
    assert loopback_hub.requests == []


@pytest.mark.parametrize("name", ["../..", "a/b/c", "user/na me", "a--b/c"])
def test_a_name_that_no_repository_has_is_refused_before_any_request(
    loopback_hub: LoopbackHub, reader: Reader, name: str
) -> None:
    with pytest.raises(HubAccessError, match="cannot be a repository"):
        reader.read(name)
    assert loopback_hub.requests == []


# One commit, fetched once


def test_all_files_come_as_they_were_pushed_and_no_others(
    loopback_hub: LoopbackHub, fetcher: Reader
) -> None:
    head = fetcher.put(loopback_hub)
    found = fetcher.read(REPO)
    assert contents(found.folder) == wanted(fetcher.files)
    assert (found.repo_id, found.revision) == (REPO, head)


def test_a_second_time_only_the_revision_is_asked_for_or_nothing_at_all(
    loopback_hub: LoopbackHub, fetcher: Reader
) -> None:
    fetcher.put(loopback_hub)
    first = fetcher.read(REPO)
    with loopback_hub.recording() as requests:
        assert fetcher.read(REPO).folder == first.folder
    path = f"/api/{fetcher.repo_type}s/{REPO}/revision/main"
    assert [request.path for request in requests] == [path]
    with loopback_hub.recording() as requests:
        assert fetcher.read(REPO, revision=first.revision).folder == first.folder
        assert fetcher.read(REPO, local_files_only=True).folder == first.folder
    assert requests == []


def test_a_cache_of_ones_own_is_used_and_no_other(
    loopback_hub: LoopbackHub, fetcher: Reader, tmp_path: Path
) -> None:
    fetcher.put(loopback_hub)
    assert tmp_path in fetcher.read(REPO, cache_dir=tmp_path).folder.parents
    with pytest.raises(HubAccessError, match="not in the cache"):
        fetcher.read(REPO, local_files_only=True)
    assert fetcher.read(REPO, cache_dir=tmp_path, local_files_only=True).revision


def test_a_branch_that_moved_gives_its_new_files_and_the_old_commit_stays(
    loopback_hub: LoopbackHub, fetcher: Reader
) -> None:
    old = fetcher.put(loopback_hub)
    fetcher.read(REPO)
    new = fetcher.move(loopback_hub)
    found = fetcher.read(REPO)
    assert (found.revision, contents(found.folder)) == (new, wanted(fetcher.later))
    with loopback_hub.recording() as requests:
        assert contents(fetcher.read(REPO, revision=old).folder) == wanted(fetcher.files)
    assert requests == []


@pytest.mark.parametrize(("name", "file"), FETCHED)
def test_a_branch_that_moves_while_it_is_read_does_not_mix_commits(
    loopback_hub: LoopbackHub, name: str, file: str
) -> None:
    reader = READERS[name]
    before = reader.put(loopback_hub)
    fault = loopback_hub.fail(path=f"{file}$", before=lambda: reader.move(loopback_hub))
    with loopback_hub.recording() as requests:
        found = reader.read(REPO)
    assert fault.spent
    assert loopback_hub.head(REPO, repo_type=reader.repo_type) != before
    assert (found.revision, contents(found.folder)) == (before, wanted(reader.files))
    assert all(before in r.path for r in requests if "/resolve/" in r.path)


# Damaged downloads

DAMAGES: dict[str, Callable[[bytes], dict[str, Any]]] = {
    "a flipped bit": lambda content: {"corrupt": len(content) // 2},
    "a flipped last bit": lambda content: {"corrupt": -1},
    "other bytes": lambda content: {"swap": bytes(byte ^ 0x55 for byte in content)},
    "more bytes": lambda content: {"swap": content + b" "},
    "a short body": lambda content: {"truncate": len(content) - 1, "declared": False},
}


@pytest.mark.parametrize(("name", "file"), FETCHED)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_download_is_refused_by_name_and_fetched_again(
    loopback_hub: LoopbackHub, name: str, file: str, damage: str
) -> None:
    reader = READERS[name]
    commit = reader.put(loopback_hub)
    cache = Path(constants.HF_HUB_CACHE)
    repository = cache / f"{reader.repo_type}s--user--thing"
    loopback_hub.fail(method="GET", path=f"{file}$", **DAMAGES[damage](reader.files[file]))
    with pytest.raises(UnreadableFileError, match=f" of {REPO} at commit {commit}") as caught:
        reader.read(REPO)
    assert Path(file).name in str(caught.value)
    assert isinstance(caught.value, ModelFileError) == (name == "model")
    assert str(cache) not in str(caught.value)
    assert not os.path.lexists(repository / "snapshots" / commit / file)
    held = {path.read_bytes() for path in repository.glob("blobs/*")}
    assert held <= set(reader.files.values())
    assert contents(reader.read(REPO).folder) == wanted(reader.files)


# A bad network

PLACES: list[tuple[str, dict[str, str]]] = [
    *((name, {"path": "/revision/"}) for name in READERS),
    *((name, {"method": "HEAD", "path": f"{file}$"}) for name, file in MAIN_FILES.items()),
    *((name, {"method": "GET", "path": f"{file}$"}) for name, file in MAIN_FILES.items()),
    ("info", {"path": f"download.*{hub.MODEL_FILE}"}),
    ("dataset", {"path": "/tree/"}),
    ("dataset", {"path": f"{SHARD}$"}),
]
TROUBLES: dict[str, dict[str, Any]] = {
    "429": {"status": 429, "headers": {"Retry-After": "0"}},
    "503": {"status": 503},
    "a dropped connection": {"drop": True},
    "a body that breaks off": {"truncate": 10},
}


@pytest.mark.parametrize(("name", "place"), PLACES, ids=str)
@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_passes_is_tried_again(
    loopback_hub: LoopbackHub, name: str, place: dict[str, str], trouble: str
) -> None:
    head = READERS[name].put(loopback_hub)
    fault = loopback_hub.fail(**place, **TROUBLES[trouble])
    assert READERS[name].read(REPO).revision == head
    assert fault.spent


@pytest.mark.parametrize(("method", "path"), [("GET", "/revision/"), ("HEAD", "$"), ("GET", "$")])
def test_a_hub_that_stalls_is_asked_again(
    loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        monkeypatch.setattr(constants, name, 0.3)
    path = path if path.startswith("/") else f"{hub.MODEL_FILE}$"
    READERS["model"].put(loopback_hub)
    loopback_hub.fail(method=method, path=path, delay=1.0)
    with loopback_hub.recording() as requests:
        hub.load_remote_model(REPO)
    assert len([r for r in requests if r.method == method and re.search(path, r.target)]) > 1


def test_a_silent_hub_is_replaced_by_the_cache_with_a_warning(
    loopback_hub: LoopbackHub, reader: Reader
) -> None:
    commit = reader.put(loopback_hub)
    reader.read(REPO)
    new = reader.move(loopback_hub)
    for trouble in ({"drop": True}, {"status": 503}):
        loopback_hub.fail(path="revision", times=2, **trouble)
        with pytest.warns(UserWarning, match=f"taken from the cache, as commit {commit}"):
            assert reader.read(REPO).revision == commit
    loopback_hub.fail(path="revision", drop=True)
    assert reader.read(REPO).revision == new, "silence for a moment"


def test_a_silent_hub_without_a_cache_is_an_error(
    loopback_hub: LoopbackHub, reader: Reader
) -> None:
    reader.put(loopback_hub)
    loopback_hub.fail(times=None, drop=True)
    with pytest.raises(HubError, match=f"revision 'main' of {REPO}.* gave up after") as caught:
        reader.read(REPO)
    assert not isinstance(caught.value, HubAccessError)


# What is not there, or not allowed


def test_a_repository_that_went_is_not_replaced_by_the_cache(
    loopback_hub: LoopbackHub, reader: Reader
) -> None:
    reader.put(loopback_hub)
    reader.read(REPO)
    loopback_hub.fail(path="revision", status=404, code="RepoNotFound")
    with pytest.raises(HubAccessError, match=f"no such repository.*no.* a folder '{REPO}' here"):
        reader.read(REPO)


@pytest.mark.parametrize(
    ("repository", "arguments", "message"),
    [
        ({}, {"revision": "nowhere"}, "'nowhere' of user/thing: .*no such branch, tag or commit"),
        ({}, {"revision": "0" * 40}, "no such branch, tag or commit"),
        ({"private": True}, {}, "log in"),
        ({"private": True}, {"token": "hf_wrong"}, "token"),
        ({"private": True}, {"token": LoopbackHub.stranger_token}, "no such repository"),
        ({"gated": True}, {}, "access is restricted: ask for it"),
    ],
)
def test_what_is_not_there_or_not_allowed_is_told(
    loopback_hub: LoopbackHub,
    reader: Reader,
    repository: dict[str, Any],
    arguments: dict[str, Any],
    message: str,
) -> None:
    reader.put(loopback_hub, **repository)
    with pytest.raises(HubAccessError, match=message) as caught:
        reader.read(REPO, **arguments)
    assert "hf_" not in str(caught.value)


def test_a_token_opens_what_is_private_and_never_reaches_the_other_origin(
    loopback_hub: LoopbackHub, reader: Reader
) -> None:
    reader.put(loopback_hub, private=True)
    with loopback_hub.recording() as requests:
        reader.read(REPO, token=loopback_hub.read_token)
    assert {request.origin for request in requests} == {HUB, CDN}
    assert all((r.token == loopback_hub.read_token) == (r.origin == HUB) for r in requests)
    assert not any(loopback_hub.read_token in r.target for r in requests)


# The cache


def test_removing_a_file_touches_nothing_outside_the_cache(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    snapshot = cache / "models--user--model" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    outside = tmp_path / "precious"
    outside.write_text("mine")
    for name, target in (("a", outside), ("b", "../../../../precious"), ("loop", "loop")):
        (snapshot / name).symlink_to(target)
        remove_cached(snapshot / name, cache)
        assert not os.path.lexists(snapshot / name)
    assert outside.read_text() == "mine"


def test_removing_a_file_removes_its_shared_content_too(tmp_path: Path) -> None:
    repository = tmp_path / "models--user--model"
    shared, blob = tmp_path / "blobs" / "ab" / "abc", repository / "blobs" / "etag"
    link = repository / "snapshots" / ("0" * 40) / "name"
    for path in (shared, blob, link):
        path.parent.mkdir(parents=True)
    shared.write_text("content")
    blob.symlink_to("../../blobs/ab/abc")
    link.symlink_to("../../blobs/etag")
    assert link.read_text() == "content"
    remove_cached(link, tmp_path)
    assert not any(os.path.lexists(path) for path in (shared, blob, link))
