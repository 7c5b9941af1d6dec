"""Names of the built-in datasets, with their options: `builtin:shapes?size=128&count=500`.

`size` is the side in pixels; `count` is the number of pictures of each split.
"""

from __future__ import annotations

import re
from functools import partial
from urllib.parse import parse_qsl

from imagetok.builtin import DRAWING_VERSION, digits_dataset, shapes_dataset
from imagetok.builtin.digits import SPLIT_LENGTHS
from imagetok.builtin.shapes import DEFAULT_COUNTS, DEFAULT_SIZE, check_options
from imagetok.data.dataset_ref import BUILTIN_PREFIX, DatasetRef
from imagetok.data.sources import Source
from imagetok.errors import DataError

_OPTIONS = {"shapes": ("count", "size"), "digits": ()}


def builtin_source(ref: DatasetRef, cache_dir: str | None) -> Source:
    """The splits of a built-in dataset, drawn or read when one is taken.

    Args:
        ref: Its name is `builtin:shapes` or `builtin:digits`, with options after a question mark.
        cache_dir: Where drawn pictures are kept.

    Raises:
        DataError: The name or an option is unknown, an option's value is out of range, or a
            subset or revision is given, of which a built-in dataset has none.
    """
    name = ref.name
    for key, value in (("subset", ref.subset), ("revision", ref.revision)):
        if value is not None:
            raise DataError(f"'{name}' has no {key} '{value}'; leave {key} out")
    kind, _, query = name.removeprefix(BUILTIN_PREFIX).partition("?")
    if kind not in _OPTIONS:
        known = ", ".join(BUILTIN_PREFIX + known for known in sorted(_OPTIONS))
        raise DataError(
            f"unknown built-in dataset '{BUILTIN_PREFIX}{kind}'; choose one of: {known}"
        )
    options = _parse_options(name, kind, query)
    if kind == "digits":
        return Source(SPLIT_LENGTHS, digits_dataset, "builtin:digits")
    size, count = options.get("size", DEFAULT_SIZE), options.get("count")
    check_options(size, count)
    lengths = {split: count or length for split, length in DEFAULT_COUNTS.items()}
    load = partial(shapes_dataset, size=size, count=count, cache_dir=cache_dir)
    return Source(lengths, load, f"builtin:shapes?size={size}&drawing={DRAWING_VERSION}")


def _parse_options(name: str, kind: str, query: str) -> dict[str, int]:
    valid = ", ".join(_OPTIONS[kind]) or "(none)"
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise DataError(
            f"the options of '{name}' do not have the form key=value&key=value; valid keys: {valid}"
        ) from None
    options: dict[str, int] = {}
    for key, value in pairs:
        if key not in _OPTIONS[kind]:
            raise DataError(f"unknown option '{key}' in '{name}'; valid options: {valid}")
        if key in options:
            raise DataError(f"option '{key}' stands twice in '{name}'; give it once")
        if not re.fullmatch(r"[0-9]{1,18}", value):
            raise DataError(f"option '{key}' of '{name}' is a whole number, got '{value[:40]}'")
        options[key] = int(value)
    return options
