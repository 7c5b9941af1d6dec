"""Cards that people edit: the generated part stands between two markers, all else is theirs.

---
license: mit               metadata: people's values win, save those that describe the files
model-index: ...
---
text of a person           kept, byte for byte
CARD_BEGIN
generated text             renewed by every push
CARD_END
text of a person           kept, byte for byte

`RepoCard` of huggingface_hub writes all metadata anew, without comments and in its own spelling.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from imagetok.errors import HubAccessError

CARD_BEGIN = "<!-- imagetok: generated from here on, write above or below -->"
CARD_END = "<!-- imagetok: end of what is generated -->"

_RENEWED = ("model-index", "dataset_info", "configs")  # figures and layout of these files
_YAML_FAULTS = (ValueError, RecursionError, LookupError, AttributeError)
"""PyYAML's answers to 2026-13-32, to deep nesting, to `!!int ""` and to `!!timestamp x`."""
_FRONT = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?(?:\n|\Z)", re.DOTALL | re.M)
_BLOCK = re.compile(f"{re.escape(CARD_BEGIN)}.*?{re.escape(CARD_END)}", re.DOTALL)
_MARKER_LINE = re.compile(f"^.*(?:{re.escape(CARD_BEGIN)}|{re.escape(CARD_END)}).*\r?\n?", re.M)


def merge_card(generated: str, existing: str | None) -> str:
    """Bring a card up to date and keep what people wrote.

    In the text, only the part between the markers is replaced; if the existing card does not have
    one marker of each kind in order, all its text is kept and the generated part follows. In the
    metadata, missing keys are added and tags are united; people's values of other keys win, except
    that `model-index`, `dataset_info` and `configs` are always the generated ones, and a
    `model-index` is removed if none was generated, because its figures belong to other weights.
    Metadata that does not change keeps its spelling and comments.

    Args:
        generated: The card made from the files; its text stands between the markers.
        existing: The present card; None or empty if there is none.

    Raises:
        HubAccessError: The metadata of either card is not a valid YAML mapping.
    """
    our_front, our_text = _split(generated)
    block = _BLOCK.search(our_text)
    our_block = block[0] if block else f"{CARD_BEGIN}\n{our_text.strip()}\n{CARD_END}"
    ours = _load(our_front or "", "the card to be pushed")
    if existing is None or not existing.strip():
        return generated if block else f"{_fenced(our_front or '')}\n{our_block}\n"
    their_front, their_text = _split(existing)
    return _fenced(_merge_front(ours, their_front or "")) + _merge_text(our_block, their_text)


def _split(card: str) -> tuple[str | None, str]:
    """The YAML between the two lines `---` at the top, and the text after them."""
    found = _FRONT.match(card)
    return (found[1], card[found.end() :]) if found else (None, card)


def _fenced(front: str) -> str:
    return f"---\n{front.rstrip()}\n---\n" if front.strip() else ""


def _merge_text(block: str, text: str) -> str:
    if text.count(CARD_BEGIN) == text.count(CARD_END) == 1 and _BLOCK.search(text):
        return _BLOCK.sub(lambda _: block, text)
    # Between damaged markers nobody can tell what is a person's, so all of it stays.
    theirs = _MARKER_LINE.sub(_without_markers, text).rstrip()
    return f"{theirs}\n\n{block}\n" if theirs else f"\n{block}\n"


def _without_markers(line: re.Match[str]) -> str:
    """A line that held a marker, with what else stands in it."""
    rest = line[0].replace(CARD_BEGIN, "").replace(CARD_END, "")
    return rest if rest.strip() else ""


def _merge_front(ours: dict[Any, Any], their_text: str) -> str:
    theirs = _load(their_text, "README.md on the Hub")
    merged = {key: value for key, value in theirs.items() if key != "model-index" or key in ours}
    for key, value in ours.items():
        if key in _RENEWED or theirs.get(key) in (None, "", []):
            merged[key] = value
    merged["tags"] = _unite(theirs.get("tags"), ours.get("tags"))
    if not merged["tags"]:
        del merged["tags"]
    spliced = _splice(their_text, theirs, merged)
    try:
        # Compared as text: aliases that would unfold without bound cost nothing there.
        faithful = _dump(_load(spliced, "")) == _dump(merged)
    except HubAccessError:
        faithful = False
    # Layouts other than a line per key, such as one mapping in braces, are written anew.
    return spliced if faithful else _dump(merged)


def _load(text: str, name: str) -> dict[Any, Any]:
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, *_YAML_FAULTS) as error:
        mark = getattr(error, "problem_mark", None)
        # The fence is the first line.
        where = f" in line {mark.line + 2}" if mark is not None else ""
        raise HubAccessError(
            f"the metadata at the top of {name} is not valid YAML{where}, so it cannot be kept: "
            "repair it and push again"
        ) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise HubAccessError(
            f"the metadata at the top of {name} is of type {type(values).__name__}, expected YAML "
            "of keys and values: repair it and push again"
        )
    return values


def _unite(theirs: Any, ours: Any) -> Any:
    """Their tags, then those of ours that they lack; theirs alone if they are not a list."""
    theirs, ours = ([tags] if isinstance(tags, str) else tags or [] for tags in (theirs, ours))
    if not isinstance(theirs, list):
        return theirs
    return theirs + [tag for tag in ours if tag not in theirs]


def _splice(text: str, old: dict[Any, Any], new: dict[Any, Any]) -> str:
    """The YAML in `text` with its top-level keys as in `new`, unchanged ones as they are spelt."""
    entries = _entries(text)
    lines: list[str] = []
    for key, entry in entries:
        if key is None or (key in new and key in old and new[key] == old[key]):
            lines.append(entry)
        elif key in new:
            lines.append(_dump({key: new[key]}))
    written = {key for key, _ in entries}
    added = {key: value for key, value in new.items() if key not in written}
    return "".join([*lines, _dump(added) if added else ""])


def _entries(text: str) -> list[tuple[str | None, str]]:
    """Top-level keys with their lines; comments and blank lines between them under None."""
    entries: list[tuple[str | None, str]] = []
    for line in text.splitlines(keepends=True):
        named = re.match(r"(['\"]?)([^\s'\"#{\[-][^'\":]*?)\1\s*:(?:\s|$)", line)
        if named:
            entries.append((named[2], line))
        elif not entries or not line.strip() or line.startswith("#"):
            entries.append((None, line))
        else:
            key, entry = entries[-1]
            entries[-1] = (key, entry + line)
    return entries


def _dump(values: dict[Any, Any]) -> str:
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text if values else ""
