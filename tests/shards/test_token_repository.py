"""Several splits in one dataset repository: added, replaced on request, never lost or mixed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import load_dataset
from tiny_jobs import table_of, tiny_job, write_tokens

from imagetok.errors import DataError, HubAccessError, HubError
from imagetok.hub import Pushed
from imagetok.shards import TokenDataset, push_dataset, verify
from loopback_hub import LoopbackHub

REPO = "user/tokens"
TEST = {"input__split": "test"}

pytestmark = pytest.mark.usefixtures("no_waits")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def push(folder: Path, **options: Any) -> Pushed:
    return push_dataset(folder, REPO, token=LoopbackHub.token, progress=False, **options)


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """20 rows of the split `train`, one of them refused, in 3 shards."""
    return write_tokens(tmp_path / "train", 20, broken=[3])


@pytest.fixture
def test(tmp_path: Path) -> Path:
    """12 rows of the split `test`, two of them refused, in 2 shards."""
    return write_tokens(tmp_path / "test", 12, broken=[5, 9], **TEST)


def held(server: LoopbackHub) -> dict[str, bytes]:
    return server.files(REPO, repo_type="dataset")


def rows_on_the_hub() -> dict[str, list[Any]]:
    return {name: list(split) for name, split in load_dataset(REPO).items()}


def rows_of(num_rows: int, broken: list[int]) -> list[Any]:
    rows = [row for row in range(num_rows) if row not in broken]
    found: list[Any] = table_of(tiny_job(), rows).to_pylist()
    return found


TRAIN_ROWS, TEST_ROWS = rows_of(20, [3]), rows_of(12, [5, 9])


def test_a_second_split_comes_beside_the_first_and_all_read_both(
    loopback_hub: LoopbackHub, train: Path, test: Path
) -> None:
    push(train)
    first = held(loopback_hub)
    push(test, commit_message="Add test")
    commits = loopback_hub.commits(REPO, repo_type="dataset")
    assert (len(commits), commits[0].title) == (3, "Add test")
    files = held(loopback_hub)
    assert {name for name in first if files[name] != first[name]} == {"README.md"}
    for name in ("job.json", "manifest.json"):
        assert files[f"jobs/test/{name}"] == (test / name).read_bytes()
    assert rows_on_the_hub() == {"train": TRAIN_ROWS, "test": TEST_ROWS}
    card = files["README.md"].decode()
    assert "|  | `train` | `test` |" in card
    assert "| images | 19 | 10 |" in card
    for split, rows, folder in (("train", 19, train), ("test", 10, test)):
        here = [item["row"] for item in TokenDataset(folder, seed=1)]
        assert [item["row"] for item in TokenDataset(REPO, split=split, seed=1)] == here
        report = verify(REPO, split=split)
        assert report.is_sound, report
        assert report.totals.rows == rows
        assert push(folder).revision == loopback_hub.head(REPO, repo_type="dataset")
    assert len(TokenDataset(REPO)) == 19, "as older versions read it"
    named = "'user/tokens' has no split 'val': the first of its splits is 'train'"
    with loopback_hub.recording() as requests, pytest.raises(DataError, match=named):
        TokenDataset(REPO, split="val")
    assert not [each for each in requests if each.path.endswith(".parquet")]


def test_a_split_is_fetched_without_the_others(
    loopback_hub: LoopbackHub, train: Path, test: Path
) -> None:
    push(train)
    push(test)
    with loopback_hub.recording() as requests:
        TokenDataset(REPO, split="test")
    fetched = {each.path.rpartition("/")[2] for each in requests if each.method == "GET"}
    assert not [name for name in fetched if name.startswith("train-")]
    with loopback_hub.recording() as requests:
        TokenDataset(REPO, split="test")
    assert [each.path.rpartition("/")[2] for each in requests] == ["main"]


def test_a_split_of_another_job_is_replaced_on_request_only(
    loopback_hub: LoopbackHub,
    train: Path,
    test: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    push(train)
    commit = push(test).revision
    before = held(loopback_hub)
    for split, change in (("train", {}), ("test", TEST)):
        other = write_tokens(tmp_path / f"other {split}", 9, input__fingerprint="b" * 64, **change)
        told = (
            f"its split '{split}' is of another job .input.fingerprint: .* --replace .* to delete"
        )
        with pytest.raises(DataError, match=f"{told} .* data/{split}-00000.parquet"):
            push(other)
        assert held(loopback_hub) == before
    with caplog.at_level(logging.WARNING, "imagetok"):
        push(other, replace=True)
    assert "this deletes 4 files: data/test-00000.parquet" in caplog.text
    rows = rows_on_the_hub()
    assert (rows["train"], len(rows["test"])) == (TRAIN_ROWS, 9)
    assert "errors/test-00000.jsonl" not in held(loopback_hub)
    assert verify(REPO, split="test").totals.rows == 9
    here = list(TokenDataset(test, seed=3, batch_size=4))
    there = list(TokenDataset(REPO, split="test", revision=commit, seed=3, batch_size=4))
    assert [one.pop("ids").tolist() for one in here] == [one.pop("ids").tolist() for one in there]
    assert [one["caption"] for one in here] == [one["caption"] for one in there]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tokenizer__fingerprint": "e" * 64}, f"fingerprint {'f' * 64}, 'test' by .* {'e' * 64}"),
        ({"output__resize": "native"}, "resized by 'crop', 'test' by 'native'"),
        ({"tokenizer__codebook_size": 200}, "column 'ids' as .*uint16.*, 'test' as .*uint8"),
        ({"output__keep": [], "features": {}}, "column 'caption' as .*, 'test' as None"),
    ],
    ids=str,
)
def test_splits_that_do_not_agree_are_refused_by_both_names(
    loopback_hub: LoopbackHub,
    train: Path,
    test: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    named: str,
) -> None:
    push(train)
    push(test)
    before = held(loopback_hub)
    other = write_tokens(tmp_path / "other", 9, **TEST, **changes)
    with pytest.raises(DataError, match=f"its split 'train' .*{named}.*--replace"):
        push(other)
    assert held(loopback_hub) == before
    monkeypatch.setattr("imagetok.hub.push.COMMIT_FILES", 1)
    loopback_hub.fail(path="/commit/", skip=1, status=403, times=None)
    with pytest.raises(HubError):
        push(other, replace=True)
    assert rows_on_the_hub() == {"train": TRAIN_ROWS}, "what is still whole"
    assert verify(REPO, split="train").is_sound
    monkeypatch.setattr(loopback_hub, "_faults", [])
    push(other, replace=True)
    files = held(loopback_hub)
    assert files["job.json"] == (other / "job.json").read_bytes()
    assert not [name for name in files if "train" in name or name.startswith("jobs/")]
    assert rows_on_the_hub().keys() == {"test"}


def test_files_of_unknown_origin_and_other_versions_are_not_overwritten(
    loopback_hub: LoopbackHub, train: Path
) -> None:
    files = {"data/train-00000-of-00001.parquet": "images", "data/notes.txt": "mine"}
    loopback_hub.create(REPO, "dataset", files=files)
    with pytest.raises(DataError, match=r"split 'train' of unknown origin.*00000-of-00001"):
        push(train)
    loopback_hub.commit(REPO, {"job.json": "{}"}, "dataset")
    with pytest.raises(DataError, match=r"'job\.json' of user/tokens is not of this version"):
        push(train, replace=True)
    loopback_hub.commit(REPO, {"job.json": None}, "dataset")
    push(train, replace=True)
    assert held(loopback_hub).keys() & files.keys() == {"data/notes.txt"}
    assert rows_on_the_hub() == {"train": TRAIN_ROWS}


@pytest.mark.parametrize("landed", [0, 1, 3])
@pytest.mark.parametrize("case", ["added", "replaced", "first replaced"])
def test_a_push_that_breaks_off_leaves_whole_splits_and_goes_on(
    loopback_hub: LoopbackHub,
    train: Path,
    test: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    landed: int,
    case: str,
) -> None:
    wanted = {"train": TRAIN_ROWS, "test": TEST_ROWS}
    ours, name, other = (train, "train", "test") if case[0] == "f" else (test, "test", "train")
    if case == "added":
        push(train)
        # As older versions wrote it, for repositories of one split.
        card = held(loopback_hub)["README.md"].replace(b"**/train-*", b"**/*")
        loopback_hub.commit(REPO, {"README.md": card}, "dataset")
    else:
        change = {"input__fingerprint": "b" * 64, "input__split": name}
        old = write_tokens(tmp_path / "old", 30, **change)
        for folder in (old, test) if case == "first replaced" else (train, old):
            push(folder)
    monkeypatch.setattr("imagetok.hub.push.COMMIT_FILES", 1)
    loopback_hub.fail(path="/commit/", skip=landed, status=403, times=None)
    with pytest.raises(HubError):
        push(ours, replace=case != "added")
    rows = rows_on_the_hub()
    assert rows.pop(other) == wanted[other]
    assert verify(REPO, split=other).is_sound
    assert {split: len(left) for split, left in rows.items()} == (
        {name: 30} if case != "added" and not landed else {}
    )
    if not rows:
        with pytest.raises((DataError, HubAccessError), match=r"no split|is not finished"):
            TokenDataset(REPO, split=name)
    monkeypatch.setattr(loopback_hub, "_faults", [])
    push(ours, replace=case != "added")
    assert rows_on_the_hub() == wanted
    own = {file for file in held(loopback_hub) if f"{name}-" in file}
    assert own == {path.relative_to(ours).as_posix() for path in ours.rglob(f"*/{name}-*")}
