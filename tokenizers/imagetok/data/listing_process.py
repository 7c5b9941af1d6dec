"""A process of its own in which `datasets` lists a folder, so that this one keeps its memory.

`datasets` takes some 2.6 KB for each file of a folder that it lists, and most of that stays with
the process as fragments. The listing process leaves the rows as Arrow files in the cache of
`datasets`, which are mapped into memory here rather than copied.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import redirect_stdout
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    DatasetBuilder,
    DatasetDict,
    are_progress_bars_disabled,
    concatenate_datasets,
    load_dataset,
    load_dataset_builder,
)
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

FEW_FILES = 2000
"""Most files of a folder listed in this process: 5 MiB; another process takes seconds to start."""
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".lz4", ".7z", ".rar")

_PROGRAM = f"import sys; from {__name__} import main; main(sys.argv[1])"


def has_many_files(root: Path) -> bool:
    """Whether a folder and the folders in it have more than `FEW_FILES` files."""
    found = (file for _, _, files in os.walk(root) for file in files)
    return next(islice(found, FEW_FILES, None), None) is not None


def load_in_process(arguments: Mapping[str, str | None], cache_dir: str | None) -> DatasetDict:
    """What `load_dataset` gives, at the cost of no more memory than the names of its Arrow files.

    Args:
        arguments: Arguments of `load_dataset`.
        cache_dir: Where `datasets` keeps what it converts; None means its default folder.

    Raises:
        RuntimeError: Loading failed in the process; the message gives its reason.
    """
    answer = _ask("load", arguments, cache_dir)
    return DatasetDict(
        {
            split: concatenate_datasets([Dataset.from_file(file) for file in files])
            for split, files in answer["files"].items()
        }
    )


def storage_in_process(arguments: Mapping[str, str | None], cache_dir: str | None) -> str:
    """What `storage_of` says about the dataset.

    Args:
        arguments: Arguments of `load_dataset`.
        cache_dir: As in `load_in_process`.

    Raises:
        RuntimeError: It failed in the process; the message gives its reason.
    """
    return str(_ask("kind", arguments, cache_dir)["kind"])


def storage_of(builder: DatasetBuilder) -> str:
    """How a dataset stores its images: in `files`, in `archives` of files, or in `rows`."""
    if not isinstance(builder, ImageFolder):
        return "rows"
    files = (str(file) for files in builder.config.data_files.values() for file in files)
    return "archives" if any(file.lower().endswith(_ARCHIVES) for file in files) else "files"


def _ask(what: str, arguments: Mapping[str, str | None], cache_dir: str | None) -> dict[str, Any]:
    request = {"what": what, "arguments": dict(arguments), "cache_dir": cache_dir}
    answer: dict[str, Any] = json.loads(_run(json.dumps(request)))
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer


def _run(request: str) -> str:
    """What `main` writes in a process of its own."""
    # Modules are found there as they are here, and not (-P) in the current folder on top of that.
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment = os.environ | {"PYTHONPATH": paths}
    if are_progress_bars_disabled():
        environment["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    # Its input stays open and empty until it ends; when it closes, the process knows we are gone.
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-P", "-c", _PROGRAM, request],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        told = process.stdout.read()
    if process.returncode:
        raise RuntimeError(
            f"the process that lists the files ended with exit status {process.returncode}"
        )
    return told


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    arguments, cache_dir = request["arguments"], request["cache_dir"]
    try:
        if request["what"] == "kind":
            return {"kind": storage_of(load_dataset_builder(**arguments, cache_dir=cache_dir))}
        splits = load_dataset(**arguments, cache_dir=cache_dir)
    except MemoryError:
        raise
    except Exception as error:  # datasets, pyarrow and fsspec raise many kinds
        return {"error": str(error) or type(error).__name__}
    return {
        "files": {
            str(split): [file["filename"] for file in rows.cache_files]
            for split, rows in splits.items()
        }
    }


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def main(request: str) -> None:
    """Answer a request in JSON on the standard output."""
    # The process that asked reports an interrupt; a second traceback helps nobody.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with redirect_stdout(sys.stderr):
        answer = _answer(json.loads(request))
    sys.stdout.write(json.dumps(answer))
