"""Signals become a flag that all ranks agree on, and no rank outlives its launcher."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from imagetok.errors import ImagetokError, Stopped
from imagetok.launch import signals as signals_module
from imagetok.launch.signals import (
    LAUNCHER_VARIABLE,
    SIGNALS,
    StopSignals,
    ignore_signals,
    watch_launcher,
)
from process_state import is_gone

SAVES_UNTIL_TOLD = """
import sys, time
from imagetok.errors import Stopped
from imagetok.launch import StopSignals, ignore_signals

def run():
    with StopSignals() as signals:
        print("ready", flush=True)
        while signals.pending is None:
            time.sleep(0.01)
        print("saving", flush=True)
        sys.stdin.readline()  # meanwhile further signals come
        print("saved", flush=True)
        raise Stopped(signals.pending, 7)

try:
    run()
except Stopped as stopped:
    ignore_signals()
    print(stopped, flush=True)
    sys.stdin.readline()
    sys.exit(128 + stopped.signum)
"""

TWO_RANKS = """
import os, sys, time
from pathlib import Path

import torch
import torch.distributed as dist

from imagetok.launch import StopSignals, collectives, watch_launcher

folder, hangs, grace = Path(sys.argv[1]), sys.argv[2] == "hangs", float(sys.argv[3])
dist.init_process_group("gloo")
rank = dist.get_rank()
assert dist.get_world_size() == 2
signals, step = StopSignals(), 0
with signals, watch_launcher(signals, poll=0.1, grace=grace):
    while True:
        agreed = signals.agreed(collectives.all_reduce_sum(signals.flags()))
        (folder / f"pid-{rank}").write_text(str(os.getpid()))
        if agreed is not None:
            break
        if hangs and rank == 1:
            time.sleep(600)
        step += 1
        time.sleep(0.02)
(folder / f"stopped-{rank}").write_text(f"{step} {agreed}")
"""


@pytest.fixture
def _handlers() -> Iterator[None]:
    """Whatever a test leaves, the handlers of the test run come back."""
    before = {each: signal.getsignal(each) for each in SIGNALS}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


# The flag


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_sets_the_flag_and_interrupts_nothing(signum: signal.Signals) -> None:
    with StopSignals() as signals:
        assert signals.pending is None
        assert signals.flags().tolist() == [0, 0, 0]
        os.kill(os.getpid(), signum)
        assert signals.pending == signum
        assert signals.flags().tolist() == [each == signum for each in SIGNALS]


@pytest.mark.usefixtures("_handlers")
def test_the_first_signal_wins() -> None:
    with StopSignals() as signals:
        for each in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            os.kill(os.getpid(), each)
        signals.request(signal.SIGTERM)
        assert signals.pending == signal.SIGUSR1


@pytest.mark.usefixtures("_handlers")
def test_leaving_restores_the_handlers_also_after_an_error() -> None:
    def own(signum: int, frame: object) -> None:
        raise AssertionError("a handler was called")

    signal.signal(signal.SIGTERM, own)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    before = [signal.getsignal(each) for each in SIGNALS]
    with contextlib.suppress(ZeroDivisionError), StopSignals():
        assert [signal.getsignal(each) for each in SIGNALS] != before
        raise ZeroDivisionError
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.mark.usefixtures("_handlers")
def test_one_object_may_be_entered_again() -> None:
    before = signal.getsignal(signal.SIGTERM)
    signals = StopSignals()
    for _ in range(2):
        with signals:
            assert signal.getsignal(signal.SIGTERM) != before
        assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.usefixtures("_handlers")
def test_off_the_main_thread_no_handler_is_installed() -> None:
    before, seen = [signal.getsignal(each) for each in SIGNALS], []

    def run() -> None:
        with StopSignals() as signals:
            seen.append([signal.getsignal(each) for each in SIGNALS])
            signals.request(signal.SIGTERM)
            seen.append(signals.pending)
        ignore_signals()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before, signal.SIGTERM]
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_ranks_agree_on_one_signal_whatever_each_of_them_got() -> None:
    ranks = [StopSignals() for _ in range(4)]
    assert StopSignals.agreed(torch.stack([each.flags() for each in ranks]).sum(0)) is None
    ranks[3].request(signal.SIGUSR1)
    assert StopSignals.agreed(sum(each.flags() for each in ranks)) == signal.SIGUSR1
    ranks[1].request(signal.SIGINT)
    assert StopSignals.agreed(sum(each.flags() for each in ranks)) == signal.SIGINT
    ranks[0].request(signal.SIGTERM)
    assert StopSignals.agreed(sum(each.flags() for each in ranks)) == signal.SIGTERM
    assert ranks[0].flags().dtype == torch.float64


def test_the_error_names_signal_step_and_way_out_and_travels_between_ranks() -> None:
    error = pickle.loads(pickle.dumps(Stopped(signal.SIGUSR1, 1200)))
    assert isinstance(error, ImagetokError)
    assert (error.signum, error.steps) == (signal.SIGUSR1, 1200)
    for part in ("SIGUSR1", "step 1200", "saved", "--resume"):
        assert part in str(error)
    assert "saved" not in str(Stopped(signal.SIGINT, 0))


def test_each_signal_ends_a_process_with_its_code_and_later_ones_break_nothing(
    tmp_path: Path,
) -> None:
    script = tmp_path / "saves.py"
    script.write_text(SAVES_UNTIL_TOLD)
    faults = tmp_path / "faults.txt"
    with faults.open("w") as stderr:
        runs = [
            subprocess.Popen(
                [sys.executable, str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
            for _ in SIGNALS
        ]
    try:
        for run, signum in zip(runs, SIGNALS, strict=True):
            assert run.stdin is not None
            assert run.stdout is not None
            assert run.stdout.readline() == "ready\n"
            run.send_signal(signum)
            assert run.stdout.readline() == "saving\n"
            for later in SIGNALS:
                run.send_signal(later)
            print(file=run.stdin, flush=True)
            assert run.stdout.readline() == "saved\n"
            assert signum.name in run.stdout.readline()
            for later in SIGNALS:
                run.send_signal(later)
            print(file=run.stdin, flush=True)
            assert run.wait(30) == 128 + signum
            assert run.stdout.read() == ""
        assert "Traceback" not in faults.read_text()
    finally:
        for run in runs:
            run.kill()
            run.communicate()


# The launcher


def test_a_launcher_that_dies_is_a_request_to_stop_and_then_an_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    parent, codes, signals = [100], [], StopSignals()
    monkeypatch.setenv(LAUNCHER_VARIABLE, "run")
    monkeypatch.setattr(os, "getppid", lambda: parent[0])
    monkeypatch.setattr(signals_module.os, "_exit", codes.append)
    with watch_launcher(signals, poll=0.01, grace=0.3):
        time.sleep(0.1)
        assert signals.pending is None
        parent[0] = 1
        assert wait_until(lambda: signals.pending == signal.SIGTERM, 5)
        assert not codes
    # A process that has left the run and does not end, as in a destructor, is ended too.
    assert wait_until(lambda: codes == [143], 5)
    assert "launcher" in caplog.text


def test_a_process_is_not_watched_beyond_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    parent, codes, signals = [100], [], StopSignals()
    monkeypatch.setenv(LAUNCHER_VARIABLE, "run")
    monkeypatch.setattr(os, "getppid", lambda: parent[0])
    monkeypatch.setattr(signals_module.os, "_exit", codes.append)
    with watch_launcher(signals, poll=0.01, grace=0.01):
        watchers = [each for each in threading.enumerate() if each.name == "launcher"]
        assert len(watchers) == 1
    watchers[0].join(5)
    parent[0] = 1
    time.sleep(0.1)
    assert signals.pending is None
    assert not codes


def test_a_process_without_a_launcher_outlives_its_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    parents, signals = iter(range(100, 1000)), StopSignals()
    monkeypatch.delenv(LAUNCHER_VARIABLE, raising=False)
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    with watch_launcher(signals, poll=0.01, grace=60):
        time.sleep(0.1)
    assert signals.pending is None


@pytest.mark.parametrize(
    ("behaviour", "grace", "limit"),
    [("steps", 60, 10), pytest.param("hangs", 2, 15, marks=pytest.mark.slow)],
)
def test_two_ranks_whose_launcher_was_killed_are_gone_soon(
    tmp_path: Path, behaviour: str, grace: float, limit: float
) -> None:
    script = tmp_path / "two_ranks.py"
    script.write_text(TWO_RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    arguments = ["--nproc_per_node", "2", str(script), str(tmp_path), behaviour, str(grace)]
    launcher = subprocess.Popen(
        [*command, *arguments],
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    files, pids = [tmp_path / "pid-0", tmp_path / "pid-1"], []
    try:
        assert wait_until(lambda: all(f.exists() and f.read_text() for f in files), 120)
        pids = [int(file.read_text()) for file in files]
        launcher.kill()
        launcher.wait()
        assert wait_until(lambda: all(map(is_gone, pids)), limit)
    finally:
        left = [] if launcher.poll() is not None else psutil.Process(launcher.pid).children(True)
        for pid in [launcher.pid, *(child.pid for child in left), *pids]:
            if not is_gone(pid):
                os.kill(pid, signal.SIGKILL)
        launcher.wait()
    stopped = [path.read_text() for path in sorted(tmp_path.glob("stopped-*"))]
    if behaviour == "hangs":
        assert stopped == []
    else:
        assert len(stopped) == 2
        assert stopped[0] == stopped[1]
        assert stopped[0].endswith(f" {int(signal.SIGTERM)}")
