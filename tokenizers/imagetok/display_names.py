"""How datasets and tokenizers are named where others read it: without the folders they are in."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

DatasetSource = Literal["builtin", "hub", "local"]

BUILTIN_PREFIX = "builtin:"
"""How the names of built-in datasets begin."""

_BUILTIN = re.compile(rf"{BUILTIN_PREFIX}\w+(\?[\w=&]*)?", re.ASCII)
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_LONGEST_HUB_NAME = 200


def dataset_source(name: str) -> DatasetSource:
    """Where the dataset that a name opens comes from: imagetok itself, this machine, or the Hub."""
    if name.startswith(BUILTIN_PREFIX):
        return "builtin"
    return "local" if _exists(name) or not is_hub_name(name) else "hub"


def display_name(name: str) -> str:
    """What to call the dataset or tokenizer that a name opens: a path is cut to its last part."""
    return Path(name).expanduser().resolve().name if _exists(name) else without_folders(name)


def tokenizer_name(name: str) -> str:
    """Like `display_name`; the tokenizer of a run on this machine is called by the run's folder."""
    run = run_name(Path(name).expanduser()) if _exists(name) else None
    return display_name(name) if run is None else run


def run_name(folder: Path) -> str | None:
    """The name of the run whose tokenizer a folder holds; None where it is not that of a run."""
    path = folder.resolve()
    is_of_run = path.name == "tokenizer" and (path.parent / "checkpoints").is_dir()
    return path.parent.name if is_of_run else None


def without_folders(name: str) -> str:
    """The name itself, or its last part if it can only be a path; no look at the file system."""
    if _BUILTIN.fullmatch(name) or is_hub_name(name):
        return name
    return PureWindowsPath(PurePosixPath(name).name).name


def is_hub_name(name: str) -> bool:
    """Whether a name could be a repository on the Hub, such as `user/name` or `name`."""
    return len(name) <= _LONGEST_HUB_NAME and _HUB_NAME.fullmatch(name) is not None


def _exists(name: str) -> bool:
    try:
        return os.path.exists(os.path.expanduser(name))
    except ValueError:  # a null character or half a surrogate pair
        return False
