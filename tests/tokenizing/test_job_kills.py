"""SIGKILL at any moment: no row is lost or doubled, no byte differs, nothing is left running."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from datasets import Features, Value
from small_jobs import SETTINGS, RunJob, rows_in, run_job, save_images, shards_of

from process_state import is_gone
from tiny_data import png

SCRIPT = """
import json, os, signal, sys, time
from imagetok.tokenizing import tokenize_dataset
from imagetok.tokenizing.batch_encoder import BatchEncoder

settings, slowness, fatal = json.loads(sys.argv[1])
encode, replace = BatchEncoder.__call__, os.replace

def encode_slowly(self, images):
    time.sleep(slowness)
    return encode(self, images)

def replace_and_die(*paths):
    global fatal
    if fatal == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)
    if fatal == -1:
        os.kill(os.getpid(), signal.SIGKILL)
    fatal -= 1 if fatal > 0 else -1

BatchEncoder.__call__ = encode_slowly
if fatal:
    os.replace = replace_and_die
tokenize_dataset(**settings)
"""
"""Tokenizes slowly, and dies right before the renaming of a number, or right after minus that."""

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tokenizer: Path, tmp_path: Path) -> Start:
    """Start a job of the reference's arguments in a process of its own."""

    def begin(slowness: float = 0.05, fatal: int = 0, **changes: Any) -> subprocess.Popen[bytes]:
        settings = {
            **SETTINGS,
            "keep": ["caption"],
            "tokenizer": str(tokenizer),
            "output_dir": str(tmp_path / "out"),
            **changes,
        }
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, json.dumps([settings, slowness, fatal])],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

    return begin


def await_litter(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a process writes a shard."""
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        # Not by rglob, which fails where a folder goes while it is listed.
        found = (name for _, folders, files in os.walk(folder) for name in (*folders, *files))
        if any(name.startswith(".imagetok-tmp-") for name in found):
            return
        time.sleep(0.005)
    raise AssertionError("the process wrote nothing")


def kill_group(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_killed_process_leaves_no_loading_process_and_no_trace_in_the_bytes(
    start: Start, job: RunJob, reference: Path, tmp_path: Path
) -> None:
    process = start(slowness=0.2, workers=2)
    await_litter(tmp_path / "out", process)
    loading: list[psutil.Process] = []
    while len(loading) < 2:
        loading = [
            child
            for child in psutil.Process(process.pid).children()
            if "spawn_main" in " ".join(child.cmdline())
        ]
    process.kill()  # alone: its loading processes have to notice
    process.wait()
    _, left = psutil.wait_procs(loading, timeout=10)
    assert all(is_gone(each.pid) for each in left)  # init may be late to collect orphans
    job(tmp_path / "out", keep=["caption"])
    assert shards_of(tmp_path / "out") == shards_of(reference)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_kills_of_two_ranks_at_random_moments_change_no_byte(
    start: Start, job: RunJob, reference: Path, tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)
    for world_size in (2, 3):
        ranks = [start(rank=rank, world_size=world_size, workers=1) for rank in range(2)]
        await_litter(tmp_path / "out", ranks[0])
        time.sleep(draw.uniform(0, 0.6))
        kill_group(ranks[: draw.randrange(1, 3)])
        kill_group(ranks)
    job(tmp_path / "out", keep=["caption"])
    assert shards_of(tmp_path / "out") == shards_of(reference)


@pytest.mark.slow
@pytest.mark.parametrize("fatal", [1, -1, 5, -5])  # the first shard, and the manifest
def test_kills_in_the_commit_window_change_no_byte(
    start: Start, job: RunJob, reference: Path, tmp_path: Path, fatal: int
) -> None:
    assert start(slowness=0, fatal=fatal).wait() == -signal.SIGKILL
    job(tmp_path / "out", keep=["caption"])
    assert shards_of(tmp_path / "out") == shards_of(reference)


@pytest.mark.slow
def test_ranks_in_processes_of_their_own_write_the_same_bytes(
    start: Start, reference: Path, tmp_path: Path
) -> None:
    ranks = [start(rank=rank, world_size=3) for rank in range(3)]
    assert [rank.wait() for rank in ranks] == [0, 0, 0]
    assert shards_of(tmp_path / "out") == shards_of(reference)


@pytest.mark.slow
def test_a_full_disk_ends_the_job_in_words_and_the_same_command_goes_on(
    root: Path, tokenizer: Path, tmp_path: Path
) -> None:
    texts = [random.Random(row).randbytes(30_000).hex() if row >= 12 else "" for row in range(16)]
    images: list[bytes | None] = [png(row) for row in range(16)]
    columns = Features({"caption": Value("string")})
    data = save_images(tmp_path / "data", images, columns, caption=texts)
    script = root / "scripts" / "tokenize_dataset.py"
    command = [sys.executable, script, "--tokenizer", tokenizer, "--dataset", data]
    command += ["--keep", "caption", "--rows-per-shard", "12", "--batch-size", "4"]
    command += ["--device", "cpu", "--threads", "1", "--output-dir"]
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (100_000, 100_000))
    # A limit on the size of files meets the same calls as a full disk.
    full = subprocess.run(
        [*command, tmp_path / "out"], preexec_fn=limit, capture_output=True, text=True
    )
    assert full.returncode == 1
    assert re.search(r"imagetok: cannot write '.*train-00001", full.stderr.splitlines()[-1])
    assert list(shards_of(tmp_path / "out")) == ["data/train-00000.parquet"]
    subprocess.run([*command, tmp_path / "out"], check=True, capture_output=True)
    run_job(tmp_path / "whole", tokenizer, dataset=str(data), keep=["caption"])
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "whole")
    assert [row["caption"] for row in rows_in(tmp_path / "out")] == texts
