"""Goldens: what version 1 of imagetok made, kept so that later versions are held to it.

    python tests/goldens/record.py             # all of them
    python tests/goldens/record.py runs jobs   # these groups alone

Run it on request only: a golden that a change breaks says that the change breaks what people have.
Each group is made from scratch, in one thread, without the network:

    photos/, tables/          images of every mode, one of them damaged; the same as parquet files
    tokenizers/NAME/          a saved tokenizer after a few steps of training
    expected/NAME.json        its config, fingerprint, the run that made it with digests and losses
    expected/NAME.safetensors its ids, pixels, latents; margins between the best two codes
    jobs/NAME/, NAME-killed/  a tokenizing job, and one that SIGKILL ended half-way
    runs/NAME/                a run after its checkpoint at step 10; the digests of step 20
    configs.json, names.json  texts of configs; public names, parameters and options
    answers.json              what `info` tells, exit codes, classes of refusals
    probe.json                the machine that recorded; bits are compared on its like only

Every golden holds its whole config, so that recipes may change. `tests/test_goldens.py` reads them.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent


def main(groups: list[str]) -> None:
    """Record the groups that are named, or all."""
    import datasets
    import torch

    from goldens import cases, replay

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    unknown = set(groups) - set(cases.GROUPS)
    if unknown:
        raise SystemExit(f"unknown groups: {', '.join(sorted(unknown))}")
    for group in groups or cases.GROUPS:
        record, folders = cases.GROUPS[group]
        for folder in folders:
            replay.remove(replay.GOLDENS / folder)
        record(replay.GOLDENS)
        sys.stdout.write(f"recorded {group}\n")
    replay.write_json(replay.GOLDENS / "probe.json", replay.probe())


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    with tempfile.TemporaryDirectory(prefix="imagetok-goldens-") as cache:
        # Before anything is imported that reads them.
        os.environ |= {"HF_HOME": cache, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        main(sys.argv[1:])
