"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imagetok.errors import UnreadableFileError, UnwritableFileError
from imagetok.files import (
    TEMPORARY_PREFIX,
    Lock,
    atomic_path,
    create_atomic,
    file_sha256,
    lock_folder,
    make_folder,
    write_atomic,
    write_json,
)

KILLED_BEFORE_THE_RENAME = """
import os, signal, sys
from imagetok.files import write_atomic
os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
write_atomic(sys.argv[1], b"new")
"""

WAITS_WHILE_WRITING = """
import sys
from imagetok.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_bytes(b"slow")
    print("writing", flush=True)
    sys.stdin.read()
"""


def no_locks(handle: int, operation: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def litter(folder: Path) -> list[str]:
    return [path.name for path in folder.glob(f"{TEMPORARY_PREFIX}*")]


def test_a_file_appears_when_the_block_ends_and_not_before(tmp_path: Path) -> None:
    target = tmp_path / "name"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"data")
        assert not target.exists()
    assert target.read_bytes() == b"data"
    assert os.listdir(tmp_path) == ["name"]


def test_an_exception_in_the_block_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    def break_off(target: Path) -> None:
        with atomic_path(target) as temporary:
            temporary.write_bytes(b"half of the new")
            raise KeyError

    target = tmp_path / "name"
    write_atomic(target, b"old")
    with pytest.raises(KeyError):
        break_off(target)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["name"]


def test_a_full_disk_is_reported_with_path_and_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "name"
    write_atomic(target, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnwritableFileError, match=r"name': No space left on device"):
        write_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["name"]


def test_a_missing_folder_is_reported_with_the_target(tmp_path: Path) -> None:
    with pytest.raises(UnwritableFileError, match=r"nowhere/name': No such file or directory"):
        write_atomic(tmp_path / "nowhere" / "name", b"data")


def test_a_folder_under_the_name_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "name").mkdir()
    with pytest.raises(UnwritableFileError, match="name': Is a directory"):
        write_atomic(tmp_path / "name", b"data")
    assert os.listdir(tmp_path) == ["name"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_permissions_are_those_of_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "name") as temporary:
            temporary.touch(0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "name").stat().st_mode) == mode


def test_a_folder_is_committed_whole(tmp_path: Path) -> None:
    target = tmp_path / "step-10"
    with atomic_path(target) as temporary:
        (temporary / "inner").mkdir(parents=True)
        (temporary / "inner" / "data").write_bytes(b"data")
        assert not target.exists()
    assert (target / "inner" / "data").read_bytes() == b"data"
    assert os.listdir(tmp_path) == ["step-10"]


def test_a_folder_with_content_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "step-10").mkdir()
    write_atomic(tmp_path / "step-10" / "old", b"old")
    with (
        pytest.raises(UnwritableFileError, match="step-10': Directory not empty"),
        atomic_path(tmp_path / "step-10") as temporary,
    ):
        temporary.mkdir()
    assert os.listdir(tmp_path / "step-10") == ["old"]


def test_a_symbolic_link_is_replaced_and_what_it_points_to_kept(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"shared")
    (tmp_path / "name").symlink_to("blob")
    write_atomic(tmp_path / "name", b"own")
    assert (tmp_path / "blob").read_bytes() == b"shared"
    assert (tmp_path / "name").read_bytes() == b"own"


def test_a_killed_writer_leaves_the_old_file_and_the_next_one_clears_its_litter(
    tmp_path: Path,
) -> None:
    target = tmp_path / "name"
    write_atomic(target, b"old")
    killed = subprocess.run([sys.executable, "-c", KILLED_BEFORE_THE_RENAME, target], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old"
    assert len(litter(tmp_path)) == 1
    write_atomic(tmp_path / "another", b"data")
    assert sorted(os.listdir(tmp_path)) == ["another", "name"]


def test_what_a_living_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WAITS_WHILE_WRITING, tmp_path / "slow"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        write_atomic(tmp_path / "quick", b"quick")
        assert len(litter(tmp_path)) == 1
        writer.communicate(timeout=60)
    assert writer.returncode == 0
    assert (tmp_path / "slow").read_bytes() == b"slow"
    assert litter(tmp_path) == []


def test_two_writers_in_one_process_do_not_disturb_each_other(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "outer") as outer:
        outer.write_bytes(b"outer")
        write_atomic(tmp_path / "inner", b"inner")
    assert sorted(os.listdir(tmp_path)) == ["inner", "outer"]
    assert (tmp_path / "outer").read_bytes() == b"outer"


def test_a_file_system_without_locks_still_writes_and_keeps_what_it_cannot_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagetok.files.fcntl.flock", no_locks)
    stranger = tmp_path / f"{TEMPORARY_PREFIX}stranger"
    stranger.mkdir()
    write_atomic(tmp_path / "name", b"data")
    assert (tmp_path / "name").read_bytes() == b"data"
    assert litter(tmp_path) == [stranger.name]


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_is_created_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    assert create_atomic(tmp_path / "name", b"first")
    assert not create_atomic(tmp_path / "name", b"second")
    assert (tmp_path / "name").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["name"]


def test_of_many_that_create_a_file_at_once_one_does(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        wrote = list(
            pool.map(lambda n: create_atomic(tmp_path / "name", bytes([n]) * 1000), range(40))
        )
    assert wrote.count(True) == 1
    assert (tmp_path / "name").read_bytes() == bytes([wrote.index(True)]) * 1000


def test_a_folder_and_its_parents_are_on_the_disk_before_they_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino))
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert set(flushed) == {tmp_path.stat().st_ino, (tmp_path / "a").stat().st_ino}
    assert len(flushed) == 2


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a file")
    with pytest.raises(UnwritableFileError, match=r"cannot make '.*/a/b': Not a directory"):
        make_folder(tmp_path / "a" / "b")


def test_json_is_indented_and_ends_in_a_new_line(tmp_path: Path) -> None:
    write_json(tmp_path / "values.json", {"größe": [1, None]})
    expected = b'{\n  "gr\\u00f6\\u00dfe": [\n    1,\n    null\n  ]\n}\n'
    assert (tmp_path / "values.json").read_bytes() == expected


def test_a_folder_is_locked_by_one_and_may_be_waited_for(tmp_path: Path) -> None:
    held = lock_folder(tmp_path)
    assert held is not None
    assert lock_folder(tmp_path) is None
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lock_folder, tmp_path, wait=True)
        assert not waiting.done()
        held.close()
        lock = waiting.result(timeout=60)
        assert lock is not None
        assert lock.is_held
        lock.close()


def test_a_folder_whose_lock_is_removed_before_it_is_taken_is_not_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def late(handle: int, operation: int) -> None:
        (tmp_path / "lock").unlink()
        flock(handle, operation)

    monkeypatch.setattr("imagetok.files.fcntl.flock", late)
    with pytest.raises(FileNotFoundError, match="removed before it was taken"):
        lock_folder(tmp_path)


def test_a_lock_is_shared_with_those_that_share_it_and_with_nobody_else(tmp_path: Path) -> None:
    one, other, third = Lock(tmp_path), Lock(tmp_path), Lock(tmp_path)
    assert one.take(shared=True)
    assert other.take(shared=True)
    assert not third.take()
    assert not one.take()
    other.close()
    assert one.take()
    assert not third.take(shared=True)
    one.close()
    assert third.take(shared=True)
    third.close()


def test_a_file_system_without_locks_refuses_nobody_and_says_that_nothing_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagetok.files.fcntl.flock", no_locks)
    one, other = Lock(tmp_path), Lock(tmp_path)
    assert one.take()
    assert other.take()
    assert not one.is_held
    one.close()
    other.close()


def test_sha256_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "name").write_bytes(b"data")
    assert file_sha256(tmp_path / "name") == hashlib.sha256(b"data").hexdigest()
    with pytest.raises(UnreadableFileError, match=r"cannot read '.*missing': No such file"):
        file_sha256(tmp_path / "missing")
