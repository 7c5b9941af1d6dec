"""What datasets and tokenizers are called where others read it: without the folders they lie in."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

from imagetok.markdown import code

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
    """Whether the dataset that is opened by a name is built in, lies here, or is on the Hub."""
    if name.startswith("builtin:"):
        return "builtin"
    return "local" if _exists(name) or not is_hub_name(name) else "hub"


def told_name(name: str) -> str:
    """What a dataset or tokenizer is called that is opened by a name; of a path the last part."""
    return Path(name).expanduser().resolve().name if _exists(name) else without_folders(name)


def without_folders(name: str) -> str:
    """A name as it is, and of what can only be a path the last part; looks at no file."""
    if _BUILTIN.fullmatch(name) or is_hub_name(name):
        return name
    return PureWindowsPath(PurePosixPath(name).name).name


def is_hub_name(name: str) -> bool:
    """Whether a name can be one of the Hub's, such as `user/name` or `name`."""
    return len(name) <= _LONGEST_HUB_NAME and _HUB_NAME.fullmatch(name) is not None


def dataset_words(name: str | None, source: str | None) -> str | None:
    """What a card calls a dataset, as Markdown; None where its name is not known.

    Args:
        name: The name that it was opened by.
        source: Its `DatasetSource`, where that is known.
    """
    if name is None:
        return None
    place, told = _PLACES.get(source or ""), code(without_folders(name))
    return told if place is None else f"{told}, {place}"


def _exists(name: str) -> bool:
    try:
        return os.path.exists(os.path.expanduser(name))
    except ValueError:  # a null character or half a surrogate pair
        return False
