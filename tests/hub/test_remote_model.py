"""Tokenizers from the Hub: one commit, checked, cached, and every fault told."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_models import below, contents, model_files
from huggingface_hub import CommitOperationAdd, HfApi, constants

from imagetok import hub
from imagetok.errors import (
    HubAccessError,
    InvalidValueError,
    ModelFileError,
    UnwritableFileError,
)
from imagetok.hub import repo_commit
from imagetok.hub.remote_model import RemoteModel, load_remote_model
from loopback_hub import CDN, LoopbackHub, Request

pytestmark = pytest.mark.usefixtures("no_waits")

REPO = "user/model"
CACHE = Path(constants.HF_HUB_CACHE) / "models--user--model"
NAMES = [hub.CONFIG_FILE, hub.EVALUATION_FILE, hub.PICTURES_FILE, hub.MODEL_FILE]


@pytest.fixture
def files(loopback_hub: LoopbackHub) -> dict[str, bytes]:
    """The files of the tokenizer that lies in the repository."""
    made = model_files()
    loopback_hub.create(REPO, files=made)
    return made


def of_files(requests: list[Request]) -> list[Request]:
    return [r for r in requests if "/resolve/" in r.target or r.origin == CDN]


def seed_of(model: RemoteModel) -> int:
    return int(model.files.tensors["bottleneck.count"]) - 2**40


def cached(commit: str, name: str) -> Path:
    return CACHE / "snapshots" / commit / name


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program with `load_remote_model` at hand."""
    lines = (
        "from imagetok.hub.remote_model import load_remote_model\nfrom imagetok.errors import *\n"
    )
    return subprocess.run(
        [sys.executable, "-c", lines + code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


PROGRAM = f"print(load_remote_model('{REPO}').files.sha256)"
TOLD = f"""
try:
    {PROGRAM}
except ImagetokError as error:
    print(type(error).__name__, error)
"""


# One commit, fetched once


def test_branches_tags_and_pull_requests_give_what_lies_there(
    loopback_hub: LoopbackHub, files: dict[str, bytes]
) -> None:
    api = HfApi(token=loopback_hub.token)
    api.create_tag(REPO, tag="v1.0")
    api.create_branch(REPO, branch="feature/x")
    loopback_hub.commit(REPO, model_files(1), revision="feature/x")
    proposed = [CommitOperationAdd(name, data) for name, data in model_files(2).items()]
    api.create_commit(REPO, proposed, commit_message="Try", create_pr=True)
    loopback_hub.commit(REPO, model_files(3))
    wanted = {"v1.0": 0, "feature/x": 1, "refs/pr/1": 2, "main": 3}
    assert {name: seed_of(load_remote_model(REPO, revision=name)) for name in wanted} == wanted
    with loopback_hub.recording() as requests:
        for name, seed in wanted.items():
            assert seed_of(load_remote_model(REPO, revision=name, local_files_only=True)) == seed
    assert requests == []


def test_a_subfolder_holds_a_tokenizer_of_its_own(loopback_hub: LoopbackHub) -> None:
    loopback_hub.create(REPO, files={**model_files(0), **below("a/small", model_files(1))})
    model = load_remote_model(REPO, subfolder="a/small")
    assert contents(model.folder) == model_files(1)
    assert seed_of(load_remote_model(REPO)) == 0
    with loopback_hub.recording() as requests:
        load_remote_model(REPO, revision=model.revision, subfolder="a/small/")
    assert requests == []


@pytest.mark.parametrize("subfolder", ["..", "a/../b", "/a", "a\\b", "a//b", "./a", "a/\0"])
def test_a_subfolder_that_leads_elsewhere_is_refused_before_any_request(
    loopback_hub: LoopbackHub, subfolder: str
) -> None:
    with pytest.raises(InvalidValueError, match="subfolder"):
        load_remote_model(REPO, subfolder=subfolder)
    assert loopback_hub.requests == []


@pytest.mark.slow
def test_two_processes_at_once_load_the_same(
    loopback_hub: LoopbackHub, files: dict[str, bytes]
) -> None:
    loopback_hub.fail(method="GET", path=f"{hub.MODEL_FILE}$", times=2, delay=0.3)
    command = f"from imagetok.hub import load_remote_model\n{PROGRAM}"
    started = [
        subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = {process.communicate()[0].strip() for process in started}
    assert [process.returncode for process in started] == [0, 0]
    assert answers == {hashlib.sha256(files[hub.MODEL_FILE]).hexdigest()}


# Damaged downloads


def other_bytes(content: bytes) -> bytes:
    """Other bytes, of the same number."""
    return bytes(byte ^ 0x55 for byte in content)


def test_the_other_tokenizer_of_the_repository_in_place_of_the_right_one_is_refused(
    loopback_hub: LoopbackHub, files: dict[str, bytes]
) -> None:
    loopback_hub.fail(method="GET", path=f"{hub.MODEL_FILE}$", swap=model_files(1)[hub.MODEL_FILE])
    with pytest.raises(ModelFileError, match="what arrived is not what the Hub holds"):
        load_remote_model(REPO)
    assert seed_of(load_remote_model(REPO)) == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_changed_in_the_cache_is_refused_and_fetched_again(
    loopback_hub: LoopbackHub, files: dict[str, bytes], name: str
) -> None:
    model = load_remote_model(REPO)
    (model.folder / name).resolve().write_bytes(other_bytes(files[name]))
    with pytest.raises(ModelFileError, match=f"'{name}' of {REPO} at commit {model.revision}"):
        load_remote_model(REPO, local_files_only=True)
    with loopback_hub.recording() as requests:
        assert contents(load_remote_model(REPO).folder) == files
    assert all(name in request.target for request in of_files(requests)), "only what is damaged"
    (model.folder / name).unlink()
    if name in (hub.CONFIG_FILE, hub.MODEL_FILE):
        with pytest.raises(HubAccessError, match=f"'{name}' of .* local_files_only is set"):
            load_remote_model(REPO, local_files_only=True)
    else:
        assert load_remote_model(REPO, local_files_only=True).files.tensors


def test_a_refused_file_that_cannot_be_removed_stays_and_that_is_said(
    loopback_hub: LoopbackHub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise UnwritableFileError("cannot remove it")

    monkeypatch.setattr(repo_commit, "remove_cached", fail)
    loopback_hub.fail(method="GET", path=f"{hub.MODEL_FILE}$", corrupt=-1)
    with pytest.raises(ModelFileError, match="it stays in the cache: cannot remove it"):
        load_remote_model(REPO)


def test_a_cache_without_links_is_guarded_as_well(
    loopback_hub: LoopbackHub, files: dict[str, bytes]
) -> None:
    for name in (hub.CONFIG_FILE, hub.MODEL_FILE):
        loopback_hub.fail(method="GET", path=f"{name}$", corrupt=-1)
    done = run(TOLD * 3, HF_HUB_DISABLE_SYMLINKS="1")
    commit = loopback_hub.head(REPO)
    refused = [
        f"ModelFileError '{n}' of {REPO} at commit {commit}"
        for n in (hub.CONFIG_FILE, hub.MODEL_FILE)
    ]
    answers = done.stdout.splitlines()
    assert [line.partition(" was refused")[0] for line in answers[:2]] == refused, done.stderr
    assert answers[2] == hashlib.sha256(files[hub.MODEL_FILE]).hexdigest()
    assert not any(path.is_symlink() for path in cached(commit, "").iterdir())


def test_a_config_that_differs_from_the_header_is_an_error_from_the_hub(
    loopback_hub: LoopbackHub,
) -> None:
    strange = model_files(latent_dim=3)[hub.CONFIG_FILE]
    loopback_hub.create(REPO, files={**model_files(), hub.CONFIG_FILE: strange})
    with pytest.raises(ModelFileError, match=rf"{REPO} .*config\.json' differs from the config"):
        load_remote_model(REPO)
    commit = loopback_hub.head(REPO)
    assert not any(os.path.lexists(cached(commit, n)) for n in (hub.CONFIG_FILE, hub.MODEL_FILE))
    loopback_hub.commit(REPO, model_files())
    assert seed_of(load_remote_model(REPO)) == 0


def test_tensors_that_do_not_fit_the_config_are_refused(
    loopback_hub: LoopbackHub, files: dict[str, bytes]
) -> None:
    with pytest.raises(ModelFileError, match=rf"{REPO} .* do not fit the config: unexpected"):
        load_remote_model(REPO, expect=lambda config: {})


# Offline


@pytest.mark.slow
def test_offline_the_cache_serves_or_is_told_to_lack_it_and_no_request_is_made(
    loopback_hub: LoopbackHub, files: dict[str, bytes]
) -> None:
    load_remote_model(REPO)
    loopback_hub.create("user/other", files=files)
    with loopback_hub.recording() as requests:
        done = run(TOLD + TOLD.replace(REPO, "user/other"), HF_HUB_OFFLINE="1")
    served, told = done.stdout.splitlines()
    assert served == hashlib.sha256(files[hub.MODEL_FILE]).hexdigest()
    assert told.startswith("HubAccessError revision 'main' of user/other is not in the cache")
    assert told.endswith("HF_HUB_OFFLINE is set; load it once with the network")
    assert requests == []
