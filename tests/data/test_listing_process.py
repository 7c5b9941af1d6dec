"""Folders of many files, which `datasets` lists in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest

from imagetok.data import ImageRows, listing_process, open_evaluation, open_images, open_stream
from imagetok.data.listing_process import FEW_FILES, has_many_files
from imagetok.errors import DataError
from tiny_data import KINDS, data_config, png, write_split


@pytest.fixture
def all_apart(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every folder counts as one of many files; what is asked is answered here, and told."""
    asked: list[str] = []

    def answer(request: str) -> str:
        asked.append(json.loads(request)["what"])
        return json.dumps(listing_process._answer(json.loads(request)))

    monkeypatch.setattr(listing_process, "FEW_FILES", 0)
    monkeypatch.setattr(listing_process, "_run", answer)
    return asked


def two_splits(folder: Path, kind: str) -> Path:
    write_split(folder, kind, [range(4), range(4, 7)])
    return write_split(folder, kind, [range(10, 13)], "test")


def check_rows(here: list[ImageRows], there: list[ImageRows]) -> None:
    for one, other in zip(here, there, strict=True):
        assert one.dataset.features == other.dataset.features
        assert [one.row(row) for row in range(len(one))] == [
            other.row(row) for row in range(len(other))
        ]
        assert one.fingerprint == other.fingerprint


def opened(folder: Path) -> list[ImageRows]:
    return [open_images(str(folder), split) for split in ("train", "test[1:]")]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "saved"])
def test_rows_and_features_are_those_of_a_listing_here(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    folder = two_splits(tmp_path / "set", kind)
    here = opened(folder)
    asked = request.getfixturevalue("all_apart")
    check_rows(here, opened(folder))
    assert asked == ["load", "load"]


def test_a_process_of_its_own_gives_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It shows bars where they are wanted here."""
    folder = two_splits(tmp_path / "set", "classes")
    datasets.disable_progress_bars()
    here = opened(folder)
    capfd.readouterr()
    monkeypatch.setattr(listing_process, "FEW_FILES", 0)
    monkeypatch.setattr("imagetok.data.source.load_dataset", None)
    check_rows(here, opened(folder))
    told = capfd.readouterr()
    assert (told.out, told.err) == ("", "")


def test_nothing_that_lies_in_the_current_folder_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = two_splits(tmp_path / "set", "pictures")
    for module in ("json", "threading", "datasets"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('run')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(listing_process, "FEW_FILES", 0)
    assert len(open_images(str(folder), "train")) == 7


def test_streams_and_evaluation_ask_too(tmp_path: Path, all_apart: list[str]) -> None:
    folder = two_splits(tmp_path / "set", "pictures")
    stream = open_stream(str(folder), "train")
    assert [path_of(stream.read(unit)) for unit in range(7)] == [f"{n:03d}.png" for n in range(7)]
    assert all_apart == ["kind", "load"]
    config = data_config(folder, streaming=True, evaluation_split="test")
    assert len(open_evaluation(config)) == 3
    assert all_apart == ["kind", "load", "kind", "load"]


def path_of(rows: object) -> str:
    ((_, image),) = rows  # type: ignore[misc]
    return Path(image["path"]).name


@pytest.mark.parametrize("kind", ["zip", "parquet"])
def test_only_plain_files_are_not_streamed(tmp_path: Path, all_apart: list[str], kind: str) -> None:
    folder = two_splits(tmp_path / "set", kind)
    stream = open_stream(str(folder), "train")
    assert sum(1 for number in range(len(stream.segments)) for _ in stream.read(number)) == 7
    assert all_apart == ["kind"]


def test_a_failure_there_is_told_as_one_here(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.parquet").write_bytes(b"PAR1 and then nothing")
    told = []
    for fixture in (None, "all_apart"):
        if fixture is not None:
            request.getfixturevalue(fixture)
        with pytest.raises(DataError) as caught:
            open_images(str(folder), "train")
        told.append(str(caught.value))
    assert told[0] == told[1]
    assert "cannot be read" in told[0]


def test_a_process_that_is_killed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = two_splits(tmp_path / "set", "pictures")
    monkeypatch.setattr(listing_process, "FEW_FILES", 0)
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    real = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda _, **options: real([sys.executable, "-c", code], **options)
    )
    with pytest.raises(DataError, match="that lists the files ended with exit status -9"):
        open_images(str(folder), "train")


def test_the_other_process_ends_with_the_one_that_asked() -> None:
    waits = (
        "import sys, time; from imagetok.data import listing_process; "
        "listing_process._answer = lambda _: sys.stderr.write('begun\\n') and time.sleep(60); "
        "listing_process.main('{}')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", waits],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        assert process.stderr.readline() == "begun\n"
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(20) == 1


def test_an_interrupt_leaves_no_second_traceback() -> None:
    waits = (
        "import sys, time; from imagetok.data import listing_process; "
        "listing_process._answer = lambda _: sys.stderr.write('begun\\n') and time.sleep(60); "
        "listing_process.main('{}')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", waits], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT
        assert process.stderr.read() == ""


def test_what_libraries_print_does_not_garble_the_answer(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def chatter(_: object) -> dict[str, str]:
        sys.stdout.write("chatter\n")
        return {"kind": "rows"}

    monkeypatch.setattr(listing_process, "_answer", chatter)
    monkeypatch.setattr(listing_process, "_end_with_parent", time.time)
    monkeypatch.setattr(listing_process.signal, "signal", lambda *_: None)
    listing_process.main("{}")
    told = capfd.readouterr()
    assert (told.out, told.err) == ('{"kind": "rows"}', "chatter\n")


def test_files_are_counted_below_all_folders(tmp_path: Path) -> None:
    for number in range(FEW_FILES):
        inner = tmp_path / f"class{number % 7}" / "inner"
        inner.mkdir(parents=True, exist_ok=True)
        (inner / f"{number}.png").touch()
    assert not has_many_files(tmp_path)
    (tmp_path / "one.png").write_bytes(png(1))
    assert has_many_files(tmp_path)
    assert not has_many_files(tmp_path / "one.png")
