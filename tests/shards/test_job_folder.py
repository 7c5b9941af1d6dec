"""However many processes are at work and whatever ends them, every unit is done once."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_jobs import do_job, fill, streamed_job, tiny_job

from imagetok.errors import DataError
from imagetok.files import TEMPORARY_PREFIX
from imagetok.shards import Job, JobFolder
from tiny_runs import contents

SCRIPT = Path(__file__).with_name("tiny_jobs.py")
BROKEN = [1, 5, 8, 9]
JOBS = {"rows": tiny_job(), "files": streamed_job()}

CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"tokenizer__fingerprint": "e" * 64}, f'tokenizer.fingerprint: "{"f" * 64}" there, "eeee'),
    ({"tokenizer__revision": "abc"}, 'tokenizer.revision: null there, "abc" here'),
    ({"input__fingerprint": "b" * 64}, f'input.fingerprint: "{"a" * 64}" there, "{"b" * 64}" here'),
    ({"input__split": "test"}, 'input.split: "train" there, "test" here'),
    ({"input__limit": 9}, "input.limit: null there, 9 here"),
    ({"units__rows_per_shard": 5, "units__count": 2}, "units.rows_per_shard: 4 there, 5 here"),
    ({"output__resize": "native"}, 'output.resize: "crop" there, "native" here'),
    ({"output__keep": ["label", "caption"]}, "output.keep: "),
    ({"output__keep": [], "features": {}}, "output.keep: "),
]

KILLED = """
import os, signal, sys
import pyarrow.parquet as pq

name, left = sys.argv[1], int(sys.argv[2])
owner = pq.ParquetWriter if name == "write_table" else os
original = getattr(owner, name)

def last_call(*args, **kwargs):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)

setattr(owner, name, last_call)
del sys.argv[:3]
exec(compile(open(sys.argv[0]).read(), sys.argv[0], "exec"))
"""

FULL_DISK = """
import resource, sys
from pathlib import Path
from tiny_jobs import do_job, tiny_job
from imagetok.errors import UnwritableFileError

job = tiny_job(units__rows_per_shard=3000, units__count=1, input__num_rows=3000)
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    do_job(Path(sys.argv[1]), job)
except UnwritableFileError as error:
    print(error)
"""


def litter(folder: Path) -> list[Path]:
    return list(folder.rglob(f"{TEMPORARY_PREFIX}*"))


def environment() -> dict[str, str]:
    paths = [str(SCRIPT.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def write_job(folder: Path, job: Job) -> Path:
    path = folder / "job-to-do.json"
    path.write_text(json.dumps(job.to_dict()))
    return path


@pytest.mark.parametrize(
    ("kind", "call", "count"),
    [
        ("rows", "link", 1),  # before there is a job.json
        ("rows", "write_table", 2),  # in the middle of a unit
        ("rows", "fsync", 7),  # the error file lies written, under no name yet
        ("rows", "replace", 1),  # before the error file is renamed
        ("rows", "replace", 2),  # between error file and shard
        ("rows", "replace", 4),
        ("files", "replace", 2),  # a later part is there, the first is not
        ("files", "replace", 6),
    ],
)
def test_a_job_that_was_killed_ends_in_the_bytes_of_one_that_was_not(
    tmp_path: Path, kind: str, call: str, count: int
) -> None:
    job, out, whole = JOBS[kind], tmp_path / "out", tmp_path / "whole"
    do_job(whole, job, broken=BROKEN)
    arguments = [call, str(count), str(SCRIPT), str(out), str(write_job(tmp_path, job)), "0", "1"]
    run = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments, *map(str, BROKEN)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    finished = {name: data for name, data in contents(out).items() if TEMPORARY_PREFIX not in name}
    assert finished.items() < contents(whole).items()
    assert litter(out)
    do_job(out, job, broken=BROKEN)
    assert contents(out) == contents(whole)
    assert not litter(out)


def test_many_processes_do_each_unit_once_and_write_the_bytes_of_one(tmp_path: Path) -> None:
    job = tiny_job(units__rows_per_shard=4, units__count=40, input__num_rows=160)
    do_job(tmp_path / "alone", job, broken=BROKEN)
    path, out = write_job(tmp_path, job), tmp_path / "out"
    runs = [
        subprocess.Popen(
            [sys.executable, SCRIPT, out, path, str(rank), "2", *map(str, BROKEN)],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1, 1)
    ]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    printed = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0] * 3
    assert sorted(int(unit) for line in printed for unit in line.split()) == list(range(40))
    assert contents(out) == contents(tmp_path / "alone")
    assert not litter(out)


@pytest.mark.parametrize("limit", [1000, 20_000])
def test_a_full_disk_is_reported_and_leaves_nothing_half_written(
    tmp_path: Path, limit: int
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path / "out", str(limit)],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    named = "job.json" if limit < 2000 else "data/train-00000.parquet"
    assert f"cannot write '{tmp_path}/out/{named}': File too large" in run.stdout
    assert run.stderr == ""
    assert contents(tmp_path / "out").keys() <= {"job.json"}
    assert not litter(tmp_path / "out")


def test_a_unit_that_another_process_holds_is_left_to_it(tmp_path: Path) -> None:
    job = tiny_job()
    with JobFolder.open(tmp_path, job) as one, JobFolder.open(tmp_path, job) as other:
        with one.claim(1) as first:
            assert first is not None
            with other.claim(1) as second:
                assert second is None
            with other.claim(0) as third:
                assert third is not None
                fill(third, job)
            fill(first, job)
        with other.claim(1) as late:
            assert late is None
        assert list(other.missing_units()) == [2]
    assert not litter(tmp_path)


def test_locks_lie_where_processes_of_other_versions_look_for_them(tmp_path: Path) -> None:
    work = tmp_path / "data" / f"{TEMPORARY_PREFIX}train-00001"
    with JobFolder.open(tmp_path, tiny_job()) as folder:
        work.mkdir(parents=True)
        with (work / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with folder.claim(1) as writer:
                assert writer is None
        with (tmp_path / "job.json").open() as job, pytest.raises(BlockingIOError):
            fcntl.flock(job, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with folder.claim(1) as writer, (work / "lock").open() as lock:
            assert writer is not None
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fill(writer, folder.job)


def test_ranks_do_their_own_units_first_and_then_help(tmp_path: Path) -> None:
    job = tiny_job(input__num_rows=28, units__count=7)
    with JobFolder.open(tmp_path, job) as work:
        assert list(work.missing_units(0, 3)) == [0, 3, 6, 4, 1, 5, 2]
        assert list(work.missing_units(2, 3)) == [2, 5, 6, 3, 0, 4, 1]
        assert list(work.missing_units(9, 10)) == [6, 5, 4, 3, 2, 1, 0][::-1]
        with work.claim(3) as writer:
            assert writer is not None
            fill(writer, job)
        assert list(work.missing_units(0, 3)) == [0, 6, 4, 1, 5, 2]


def test_litter_of_this_machine_goes_when_its_unit_is_taken_on_and_all_when_it_is_done(
    tmp_path: Path,
) -> None:
    job = tiny_job()
    work = tmp_path / "data" / f"{TEMPORARY_PREFIX}train-00000"

    def places() -> set[str]:
        return {place.name for place in work.iterdir() if place.is_dir()}

    def leave_places(folder: JobFolder) -> None:
        with folder.claim(0) as writer:
            assert writer is not None
            (own,) = places()
            for name in (f"{own.partition('-')[0]}-killed", "elsewhere-killed"):
                (work / name).mkdir()
                (work / name / "data-train-00000.parquet").write_bytes(b"half")
            raise KeyError

    with JobFolder.open(tmp_path, job) as folder:
        with pytest.raises(KeyError):
            leave_places(folder)
        assert len(places()) == 2
        with folder.claim(0) as writer:
            assert writer is not None
            assert len(places()) == 2
            assert "elsewhere-killed" in places()
            assert not any(name.endswith("killed") for name in places() - {"elsewhere-killed"})
            fill(writer, job)
    assert not litter(tmp_path)


@contextmanager
def no_locks(patch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with patch.context() as context:
        context.setattr(fcntl, "flock", refuse)
        yield


@pytest.mark.parametrize("done_before", [False, True])
def test_without_locks_a_unit_done_twice_has_the_bytes_of_one_done_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done_before: bool
) -> None:
    job, out = streamed_job(), tmp_path / "out"
    do_job(tmp_path / "whole", job, broken=BROKEN)
    with no_locks(monkeypatch), JobFolder.open(out, job) as one, JobFolder.open(out, job) as other:
        with one.claim(0) as slow:
            assert slow is not None
            if not done_before:
                fill(slow, job, BROKEN)
            with other.claim(0) as quick:  # clears up after itself, and after the slow one
                assert quick is not None
                fill(quick, job, BROKEN)
            if done_before:
                fill(slow, job, BROKEN)
        do_job(out, job, broken=BROKEN)
    assert contents(out) == contents(tmp_path / "whole")
    assert not litter(out)


def test_without_locks_a_failure_takes_nothing_from_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tiny_job()

    def fail(work: JobFolder) -> None:
        with work.claim(0) as writer:
            assert writer is not None
            raise KeyError

    with no_locks(monkeypatch), JobFolder.open(tmp_path, job) as work:
        with work.claim(0) as writer:
            assert writer is not None
            fill(writer, job)
            with pytest.raises(KeyError):
                fail(work)
        assert work.is_complete(0)
    assert not litter(tmp_path)


@pytest.mark.parametrize(("changes", "words"), CHANGES)
def test_another_job_is_refused_by_name_and_leaves_the_folder_alone(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    JobFolder.open(tmp_path, tiny_job()).close()
    before = (tmp_path / "job.json").read_bytes()
    with pytest.raises(DataError, match="is filled by another job: ") as refusal:
        JobFolder.open(tmp_path, tiny_job(**changes))
    assert words in str(refusal.value)
    with JobFolder.open(tmp_path, tiny_job()), pytest.raises(DataError, match="at work this mom"):
        JobFolder.open(tmp_path, tiny_job(**changes))
    assert (tmp_path / "job.json").read_bytes() == before


def test_other_numeric_settings_are_refused_unless_they_are_allowed(tmp_path: Path) -> None:
    other = tiny_job(numerics__threads=8, numerics__versions__torch="2.0")
    JobFolder.open(tmp_path, tiny_job()).close()
    with pytest.raises(DataError, match="--allow-mixed-numerics") as refusal:
        JobFolder.open(tmp_path, other)
    assert "threads: 1 there, 8 here" in str(refusal.value)
    assert 'versions.torch: "1.0" there, "2.0" here' in str(refusal.value)
    with JobFolder.open(tmp_path, other, allow_mixed_numerics=True) as folder:
        assert folder.job == tiny_job()
        assert folder.numerics == other.numerics


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(DataError, match=r"holds thesis\.tex but no job\.json"):
        JobFolder.open(tmp_path, tiny_job())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_numeric_settings_are_not_part_of_the_fingerprint_and_all_else_is() -> None:
    job = tiny_job()
    assert tiny_job(numerics__dtype="bfloat16").fingerprint == job.fingerprint
    others = {tiny_job(**changes).fingerprint for changes, _ in CHANGES}
    assert len(others | {job.fingerprint}) == len(CHANGES) + 1
