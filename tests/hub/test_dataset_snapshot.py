"""Tokenized datasets from the Hub: one commit, as its manifest lists it, resumed and cached."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_models import contents, dataset_files, wanted
from huggingface_hub import constants

from imagetok.errors import HubAccessError, UnreadableFileError
from imagetok.files import file_sha256
from imagetok.hub.dataset_snapshot import fetch_dataset
from loopback_hub import CDN, LoopbackHub

pytestmark = pytest.mark.usefixtures("no_waits")

REPO = "user/tokens"
SHARDS = [name for name in dataset_files() if name.startswith("data/")]


@pytest.fixture
def files(loopback_hub: LoopbackHub) -> dict[str, bytes]:
    """The files of the dataset that lies in the repository."""
    made = dataset_files()
    loopback_hub.create(REPO, "dataset", files=made)
    return made


def snapshot_of(server: LoopbackHub) -> Path:
    """The folder in the cache of the commit that the repository is at."""
    head = server.head(REPO, repo_type="dataset")
    return Path(constants.HF_HUB_CACHE) / "datasets--user--tokens" / "snapshots" / head


def listing(*shards: object) -> str:
    return json.dumps({"shards": shards})


def test_a_new_commit_fetches_only_what_changed(
    loopback_hub: LoopbackHub, files: dict[str, bytes]
) -> None:
    fetch_dataset(REPO)
    grown = dataset_files(4)
    loopback_hub.commit(REPO, grown, "dataset")
    with loopback_hub.recording() as requests:
        new = fetch_dataset(REPO)
    assert contents(new.folder) == wanted(grown)
    downloads = [request.path for request in requests if request.origin == CDN]
    assert [path.rpartition("/")[2] for path in downloads] == ["train-00003.parquet"]


# Damaged downloads


def test_a_shard_that_another_size_is_listed_for_is_refused(loopback_hub: LoopbackHub) -> None:
    files = dataset_files()
    shard = {"path": SHARDS[0], "bytes": 3, "sha256": "0" * 64}
    loopback_hub.create(REPO, "dataset", files={**files, "manifest.json": listing(shard)})
    with pytest.raises(UnreadableFileError, match=rf"'{SHARDS[0]}' of .* not what manifest\.json"):
        fetch_dataset(REPO)


def test_a_shard_that_was_cut_in_the_cache_is_fetched_again(
    loopback_hub: LoopbackHub, files: dict[str, bytes]
) -> None:
    folder = fetch_dataset(REPO).folder
    (folder / SHARDS[2]).resolve().write_bytes(b"PAR1")
    with pytest.raises(UnreadableFileError, match=SHARDS[2]):
        fetch_dataset(REPO, local_files_only=True)
    with loopback_hub.recording() as requests:
        assert contents(fetch_dataset(REPO).folder) == wanted(files)
    downloads = [request.path for request in requests if request.origin == CDN]
    assert [path.rpartition("/")[2] for path in downloads] == [Path(SHARDS[2]).name]


def test_shards_that_arrived_before_an_interruption_are_checked_after_it(
    loopback_hub: LoopbackHub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    loopback_hub.fail(method="GET", path=f"{SHARDS[0]}$", corrupt=5)
    loopback_hub.fail(path=f"{SHARDS[1]}$", times=None, status=403)
    with pytest.raises(HubAccessError):
        fetch_dataset(REPO)
    assert (snapshot_of(loopback_hub) / SHARDS[0]).is_file()
    monkeypatch.setattr(loopback_hub, "_faults", [])
    with pytest.raises(UnreadableFileError, match=SHARDS[0]):
        fetch_dataset(REPO)
    assert contents(fetch_dataset(REPO).folder) == wanted(files)


def test_shards_are_hashed_when_they_arrive_and_not_again(
    loopback_hub: LoopbackHub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def hash_noting(path: Path) -> str:
        hashed.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr("imagetok.hub.dataset_snapshot.file_sha256", hash_noting)
    folder = fetch_dataset(REPO).folder
    assert sorted(hashed) == [Path(name).name for name in SHARDS]
    fetch_dataset(REPO)
    assert len(hashed) == len(SHARDS)
    (folder / SHARDS[1]).resolve().unlink()
    loopback_hub.fail(method="GET", path=f"{SHARDS[1]}$", corrupt=5)
    with pytest.raises(UnreadableFileError, match=SHARDS[1]):
        fetch_dataset(REPO)


def test_an_interrupted_download_goes_on_with_what_is_missing(
    loopback_hub: LoopbackHub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = snapshot_of(loopback_hub)
    loopback_hub.fail(path=f"{SHARDS[2]}$", times=None, status=403)
    with pytest.raises(HubAccessError):
        fetch_dataset(REPO)
    arrived = [name for name in SHARDS if (folder / name).exists()]
    assert SHARDS[2] not in arrived
    monkeypatch.setattr(loopback_hub, "_faults", [])
    with loopback_hub.recording() as requests:
        assert contents(fetch_dataset(REPO).folder) == wanted(files)
    downloads = {request.path.rpartition("/")[2] for request in requests if request.origin == CDN}
    assert downloads == {Path(name).name for name in SHARDS if name not in arrived}


# A bad network


def test_without_a_listing_the_shards_are_fetched_one_by_one(
    loopback_hub: LoopbackHub, files: dict[str, bytes]
) -> None:
    loopback_hub.fail(path="/tree/", times=None, status=501)
    assert contents(fetch_dataset(REPO).folder) == wanted(files)


def test_shards_that_may_not_be_fetched_are_an_error_and_not_half_a_dataset(
    loopback_hub: LoopbackHub, files: dict[str, bytes]
) -> None:
    loopback_hub.fail(path="/tree/", times=None, status=501)
    loopback_hub.fail(path=f"{SHARDS[1]}$", times=None, status=403)
    with pytest.raises(HubAccessError, match=f"fetching '{SHARDS[1]}' of {REPO}"):
        fetch_dataset(REPO)


# What is not a dataset of ours


@pytest.mark.parametrize("name", ["manifest.json", "job.json", SHARDS[1]])
def test_an_upload_that_lacks_a_file_is_refused_by_its_name(
    loopback_hub: LoopbackHub, name: str
) -> None:
    files = dataset_files()
    del files[name]
    loopback_hub.create(REPO, "dataset", files=files)
    with pytest.raises(HubAccessError, match=f"no '{name}': .* upload is not finished"):
        fetch_dataset(REPO)
    assert name == SHARDS[1] or not loopback_hub.seen(path="parquet$")


def test_shards_that_the_cache_lacks_are_named_where_no_request_may_be_made(
    loopback_hub: LoopbackHub, files: dict[str, bytes]
) -> None:
    folder = fetch_dataset(REPO).folder
    (folder / SHARDS[1]).unlink()
    with pytest.raises(HubAccessError, match=f"'{SHARDS[1]}' .* local_files_only is set"):
        fetch_dataset(REPO, local_files_only=True)


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        listing(1),
        listing({"path": SHARDS[0]}),
        listing({"path": SHARDS[0], "bytes": "9", "sha256": "0" * 64}),
        listing({"path": "../../outside.parquet", "bytes": 9, "sha256": "0" * 64}),
        listing({"path": "data/../../../outside", "bytes": 9, "sha256": "0" * 64}),
        listing({"path": "/etc/hostname", "bytes": 9, "sha256": "0" * 64}),
        listing({"path": "data\\..\\x.parquet", "bytes": 9, "sha256": "0" * 64}),
        listing({"path": "manifest.json", "bytes": 9, "sha256": "0" * 64}),
    ],
)
def test_a_manifest_that_makes_no_sense_or_leads_elsewhere_is_refused(
    loopback_hub: LoopbackHub, manifest: str
) -> None:
    loopback_hub.create(REPO, "dataset", files={**dataset_files(), "manifest.json": manifest})
    with pytest.raises(UnreadableFileError, match=rf"'manifest\.json' of {REPO} .* not a manifest"):
        fetch_dataset(REPO)
    assert not loopback_hub.seen(path="parquet$")
