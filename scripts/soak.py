"""Kill training runs or tokenizing jobs and see that they end as if nothing had happened.

    python scripts/soak.py train --kills 20 --ranks 2
    python scripts/soak.py tokenize --kills 20 --ranks 1

Needs the extra `test`. A run is made once without interruption. Then chains of runs are made with
the same arguments: each is killed with SIGKILL, all its processes at once, twice, continued after
each kill, and left to end. Half of the kills hit in the middle of a commit, which is seen in what
they leave: a checkpoint that is being written, or a unit whose error report is there and whose
shard is not. The others come at any moment. Runs that are killed see a disk that takes its time to
sync, as a busy one does: a commit on a fast one is over before anybody can look. Whatever a run
leaves, except times, must be the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import psutil
from datasets import Dataset, Features, Image, Value

from imagetok import ImageTokenizer
from imagetok.config import load_recipe
from imagetok.data import open_images

ROOT = Path(__file__).resolve().parent.parent
TIMED = {"metrics.jsonl", "evaluation.json", "manifest.json"}
"""Files that hold times, and so differ."""

LITTER = ".imagetok-tmp-*"
TIMEOUT = 300
NUM_IMAGES = 1200
STEPS = 300
ROWS_PER_SHARD = 32
RECIPE = f"""
tokenizer:
  image_size: [16, 16]
  encoder: {{type: conv, hidden_channels: 16, residual_channels: 8, num_residual_blocks: 1}}
  bottleneck: {{type: vq, codebook_size: 32, latent_dim: 8, restart_below: 0.5}}
  decoder: {{type: conv, hidden_channels: 16, residual_channels: 8, num_residual_blocks: 1}}
  likelihood: {{type: mse}}
data: {{name: "builtin:shapes?size=16&count=64", crop_scale: [0.5, 1.0], flip: true}}
train:
  steps: {STEPS}
  batch_size: 8
  optimizer: {{lr: {{type: cosine, start: 1.0e-3, end: 1.0e-5}}, warmup_steps: 10}}
  ema_decay: 0.99
  checkpoint_every: 15
  samples_every: 150
  evaluate_every: 150
"""
SLOW_DISK = """
import os, runpy, sys, time
sync = os.fsync
def slow_sync(descriptor):
    time.sleep(0.02)
    sync(descriptor)
os.fsync = slow_sync
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""A script that runs another one on a disk that takes 20 ms for each sync."""


@dataclass
class Soak(ABC):
    """Kills runs of one kind.

    Attributes:
        folder: Where runs are written.
        ranks: Processes of a run.
        random: Decides when a run is killed.
    """

    folder: Path
    ranks: int
    random: random.Random

    linger: ClassVar[float]
    """Most seconds between the sight of a commit and the kill."""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "slow_disk.py").write_text(SLOW_DISK)
        self.prepare()
        self.reference = self.folder / "uninterrupted"
        started = time.monotonic()
        self.finish(self.start(self.reference))
        self.seconds = time.monotonic() - started

    @abstractmethod
    def prepare(self) -> None:
        """Make what runs need."""

    @abstractmethod
    def command(self, target: Path) -> list[str]:
        """The script and its arguments, the same at the start and after a kill."""

    @abstractmethod
    def commits(self, target: Path) -> set[Path]:
        """What is in the middle of a commit, or was when its process was killed."""

    @abstractmethod
    def progress(self, target: Path) -> float:
        """The share of a run's work that is saved, from 0 to 1."""

    def run_chain(self, name: str, in_save: Sequence[bool]) -> list[str]:
        """Kill a run once for each entry, in a save or anywhere; let it end; compare.

        Every kill has its own equal part of the run's work, and comes at any moment of it.

        Returns:
            Names of the files that differ from the uninterrupted run's.
        """
        target = self.folder / name
        for number, inside in enumerate(in_save):
            # The last twentieth is left out: a run that has ended cannot be killed.
            self._kill_once(target, inside, 0.95 * (number + self.random.random()) / len(in_save))
        self.finish(self.start(target))
        differing = compare(self.reference, target)
        if not differing:
            shutil.rmtree(target)
        return differing

    def _kill_once(self, target: Path, inside: bool, share: float) -> None:
        """Kill a run after a part of its work; one that missed its commit is tried again."""
        for _ in range(10):
            before = self.commits(target)
            process = self.start(target, slow_disk=True)
            while process.poll() is None and self.progress(target) < share:
                time.sleep(0.002)
            processes = _started_by(process)
            if inside:
                self._await_commit(process, target, before)
            else:
                time.sleep(self.random.uniform(0, 0.2))
            was_running = process.poll() is None
            _kill(process, processes)
            if was_running and (not inside or self.commits(target) - before):
                return
            if not was_running:  # it had ended: nothing would be left to do
                shutil.rmtree(target)
        raise RuntimeError(f"no kill hit {target}: its runs are too short")

    def _await_commit(
        self, process: subprocess.Popen[bytes], target: Path, before: set[Path]
    ) -> None:
        """Wait until a commit has lasted for a moment; one that is over by then is let pass."""
        while process.poll() is None:
            if self.commits(target) - before:
                time.sleep(self.random.uniform(0, self.linger))
                if self.commits(target) - before:
                    return
            time.sleep(0.0002)

    def start(self, target: Path, *, slow_disk: bool = False) -> subprocess.Popen[bytes]:
        """Start or continue a run in a process group of its own; what it says goes to log.txt."""
        launcher = [sys.executable]
        if self.ranks > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone"]
            launcher += ["--nproc_per_node", str(self.ranks)]
        if slow_disk:
            launcher.append(str(self.folder / "slow_disk.py"))
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(
                [*launcher, *self.command(target)],
                env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def finish(self, process: subprocess.Popen[bytes], code: int = 0) -> None:
        """Wait for a run to end.

        Raises:
            RuntimeError: Its exit code is not `code`.
        """
        try:
            found = process.wait(TIMEOUT)
        finally:
            _kill(process, _started_by(process))
        if found != code:
            log = (self.folder / "log.txt").read_text(errors="replace")
            raise RuntimeError(f"a run ended with code {found} instead of {code}:\n{log[-2000:]}")


class TrainingSoak(Soak):
    """Training runs of a small VQ-VAE."""

    linger = 0.01

    def prepare(self) -> None:
        """See `Soak`."""
        self.recipe = self.folder / "recipe.yaml"
        self.recipe.write_text(RECIPE)

    def command(self, target: Path) -> list[str]:
        """See `Soak`."""
        script = str(ROOT / "scripts" / "train.py")
        return [script, str(self.recipe), "--resume", "--output-dir", str(target)]

    def commits(self, target: Path) -> set[Path]:
        """See `Soak`."""
        return set((target / "checkpoints").glob(LITTER))

    def progress(self, target: Path) -> float:
        """See `Soak`."""
        names = sorted(path.name for path in (target / "checkpoints").glob("step-*"))
        return int(names[-1].removeprefix("step-")) / STEPS if names else 0.0


class TokenizingSoak(Soak):
    """Jobs over a parquet file in which every eleventh image cannot be read."""

    linger = 0.005

    def prepare(self) -> None:
        """See `Soak`."""
        recipe = self.folder / "recipe.yaml"
        recipe.write_text(RECIPE)
        config = load_recipe(str(recipe))
        ImageTokenizer.from_config(config.tokenizer).save_pretrained(self.folder / "tokenizer")
        rows = open_images(f"builtin:shapes?size=128&count={NUM_IMAGES}", "train").dataset
        bad = {"bytes": b"no image", "path": None}
        self.dataset = self.folder / "images.parquet"
        images = [bad if i % 11 == 5 else row["image"] for i, row in enumerate(rows)]
        features = Features({"image": Image(), "caption": Value("string")})
        columns = {"image": images, "caption": rows["caption"]}
        Dataset.from_dict(columns, features=features).to_parquet(self.dataset)

    def command(self, target: Path) -> list[str]:
        """See `Soak`."""
        return [
            str(ROOT / "scripts" / "tokenize_dataset.py"),
            *("--tokenizer", str(self.folder / "tokenizer"), "--dataset", str(self.dataset)),
            *("--keep", "caption", "--rows-per-shard", str(ROWS_PER_SHARD)),
            *("--max-error-rate", "0.2", "--output-dir", str(target)),
        ]

    def commits(self, target: Path) -> set[Path]:
        """See `Soak`."""
        reports = (target / "errors").glob("*.jsonl")
        return {path for path in reports if not (target / "data" / f"{path.stem}.parquet").exists()}

    def progress(self, target: Path) -> float:
        """See `Soak`."""
        return len(list((target / "data").glob("*.parquet"))) * ROWS_PER_SHARD / NUM_IMAGES


KINDS = {"train": TrainingSoak, "tokenize": TokenizingSoak}


def _started_by(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _kill(process: subprocess.Popen[bytes], started: Sequence[psutil.Process]) -> None:
    """End a launcher and what it started at once; what has ended already is skipped."""
    process.kill()
    for each in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()
    psutil.wait_procs(list(started))


def compare(one: Path, other: Path) -> list[str]:
    """Names of the files of two runs that differ, without those that hold times."""
    files = [_read(folder) for folder in (one, other)]
    return sorted(name for name in files[0].keys() | files[1].keys() if not _equal(name, *files))


def _equal(name: str, one: dict[str, bytes], other: dict[str, bytes]) -> bool:
    if name.rsplit("/", 1)[-1] in TIMED:
        return name in one and name in other
    return one.get(name) == other.get(name)


def _read(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak; the exit code is 1 if a run ended differently from the uninterrupted one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS, help="what is killed")
    parser.add_argument("--kills", type=int, default=20, help="kills in all, in chains of two")
    parser.add_argument("--ranks", type=int, default=1, help="processes a run")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments")
    options = parser.parse_args(arguments)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="imagetok-soak-") as folder:
        moments = random.Random(options.seed)  # noqa: S311
        soak = KINDS[options.kind](Path(folder), options.ranks, moments)
        print(f"uninterrupted: {soak.seconds:.0f} s with {options.ranks} rank(s)", flush=True)
        for number in range(options.kills // 2):
            # Every chain has one kill of each kind, in turns the one or the other first.
            differing = soak.run_chain(f"chain-{number}", (number % 2 == 0, number % 2 == 1))
            failed += bool(differing)
            verdict = f"DIFFERS in {', '.join(differing)}" if differing else "same bytes"
            print(f"chain {number + 1}: two kills, {verdict}", flush=True)
    chains = options.kills // 2
    print(
        f"{2 * chains} kills in {chains} chains: {chains - failed} chains ended in the same bytes"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
