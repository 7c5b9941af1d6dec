"""How datasets and tokenizers are named where others read it: without the folders they are in."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

from imagetok.cards.markdown import code

DatasetSource = Literal["builtin", "hub", "local"]

_PLACES = {
    "builtin": "which comes with imagetok",
    "hub": "on the Hub",
    "local": "on its user's machine",
}
_BUILTIN = re.compile(r"builtin:\w+(\?[\w=&]*)?", re.ASCII)
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_LONGEST_HUB_NAME = 200


def dataset_source(name: str) -> DatasetSource:
    """Where the dataset that a name opens comes from: imagetok itself, this machine, or the Hub."""
    if name.startswith("builtin:"):
        return "builtin"
    return "local" if _exists(name) or not is_hub_name(name) else "hub"


def display_name(name: str) -> str:
    """What to call the dataset or tokenizer that a name opens: a path is cut to its last part."""
    return Path(name).expanduser().resolve().name if _exists(name) else without_folders(name)


def without_folders(name: str) -> str:
    """The name itself, or its last part if it can only be a path; no look at the file system."""
    if _BUILTIN.fullmatch(name) or is_hub_name(name):
        return name
    return PureWindowsPath(PurePosixPath(name).name).name


def is_hub_name(name: str) -> bool:
    """Whether a name could be a repository on the Hub, such as `user/name` or `name`."""
    return len(name) <= _LONGEST_HUB_NAME and _HUB_NAME.fullmatch(name) is not None


def dataset_words(name: str | None, source: str | None) -> str:
    """What a card calls a dataset, as Markdown.

    Args:
        name: The name that it was opened by; None where that is not recorded.
        source: Its `DatasetSource`; anything else counts as not recorded.
    """
    if name is None:
        return "not recorded"
    place, shown = _PLACES.get(source or ""), code(without_folders(name))
    return shown if place is None else f"{shown}, {place}"


def _exists(name: str) -> bool:
    try:
        return os.path.exists(os.path.expanduser(name))
    except ValueError:  # a null character or half a surrogate pair
        return False
