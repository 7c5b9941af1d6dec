"""Saving a whole tokenizer, killed at every step: the old one or the new one loads, no litter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from imagetok import ImageTokenizer, hub

Make = Callable[..., ImageTokenizer]

FILES = {hub.MODEL_FILE, hub.CONFIG_FILE, hub.EVALUATION_FILE, hub.PICTURES_FILE}

KILLED = """
import json, os, pathlib, shutil, signal, sys, time, warnings
import torch
from imagetok import ImageTokenizer, hub
from imagetok.errors import ModelFileError

torch.set_num_threads(1)
old, new, target = (pathlib.Path(path) for path in sys.argv[1:4])
tokenizer = ImageTokenizer.from_pretrained(new)
CHANGES = {"os.rename"}
if sys.argv[4] == "everything":
    CHANGES |= {"fcntl.flock", "open", "os.chmod", "os.link", "os.mkdir", "os.remove", "os.rmdir",
                "shutil.rmtree", "tempfile.mkdtemp"}

def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

def die_before(step):
    left = step
    def watch(event, arguments):
        nonlocal left
        if event in CHANGES:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)

def die_after(seconds):
    signal.setitimer(signal.ITIMER_REAL, seconds)  # its signal ends the process on the spot

def save_and_die(die, moment):
    child = os.fork()
    if not child:
        die(moment)
        tokenizer.save_pretrained(target)
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0

def check():
    found = contents(target) if target.exists() else {}
    for name in ("evaluation.json", "reconstructions.png"):
        assert found.get(name) in (None, before.get(name), after[name]), name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a config.json that the next save renews
        try:
            state = hub.load_model(target).sha256
        except ModelFileError:
            state = None
    assert state in states, state
    if state == states[0]:
        assert hub.carry_evaluation(target, target) if state else True
    return states.index(state)

tokenizer.save_pretrained(target)
after = contents(target)
started = time.perf_counter()
tokenizer.save_pretrained(target)
duration = time.perf_counter() - started
before = contents(old) if old.exists() else {}
states = [hub.load_model(old).sha256 if before else None, hub.load_model(target).sha256]

def trial(die, moment):
    shutil.rmtree(target, ignore_errors=True)
    if before:
        shutil.copytree(old, target)
    killed = save_and_die(die, moment)
    state, litter = check(), len(list(target.glob(".imagetok-tmp-*")))
    tokenizer.save_pretrained(target)
    assert contents(target) == after and len(os.listdir(target)) == len(after)
    return {"killed": killed, "state": state, "litter": litter}

steps = [trial(die_before, 1)]
while steps[-1]["killed"]:
    steps.append(trial(die_before, len(steps) + 1))
count = 24 if sys.argv[4] == "everything" else 4
moments = [trial(die_after, duration * share / count) for share in range(1, count)]
print(json.dumps({"steps": steps, "moments": moments, "names": sorted(after)}))
"""


def evaluated(tokenizer: ImageTokenizer, folder: Path) -> Path:
    """A folder with a tokenizer, its figures and its images."""
    tokenizer.save_pretrained(folder)
    sha256 = hub.load_model(folder).sha256
    (folder / hub.EVALUATION_FILE).write_text(json.dumps({hub.EVALUATED_KEY: sha256}))
    (folder / hub.PICTURES_FILE).write_bytes(sha256.encode() * 1000)
    return folder


@pytest.mark.parametrize(
    "replaced",
    [
        pytest.param(True, id="an old one"),
        pytest.param(False, id="nothing", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("steps", "fewest"), [("renames", 4), pytest.param("everything", 40, marks=pytest.mark.slow)]
)
def test_a_save_that_is_killed_leaves_what_was_there_or_the_new_tokenizer_and_no_lasting_litter(
    make: Make, tmp_path: Path, replaced: bool, steps: str, fewest: int
) -> None:
    new = evaluated(make("vqvae", seed=1), tmp_path / "new")
    old = tmp_path / "old"
    if replaced:
        evaluated(make("vqvae-projected"), old)
    command = [sys.executable, "-c", KILLED, old, new, tmp_path / "target", steps]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert set(found["names"]) >= FILES
    *killed, last = found["steps"]
    assert len(killed) >= fewest
    assert all(trial["killed"] for trial in killed)
    states = [trial["state"] for trial in killed]
    assert states == sorted(states)  # one moment divides the old from the new
    assert set(states) == {0, 1}
    assert any(trial["litter"] for trial in killed)
    assert last == {"killed": False, "state": 1, "litter": 0}
    assert any(trial["killed"] for trial in found["moments"])
