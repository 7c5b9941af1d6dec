"""The metadata at the top of a README.md: what the Hub checks there and what it makes of it."""

from __future__ import annotations

import re
from typing import Any

import yaml

from loopback_hub.repositories import Files

FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)


def parse_card(text: str) -> dict[str, Any]:
    """The metadata of a card, empty when it has none.

    Raises:
        ValueError: the block is no YAML, or no mapping.
    """
    match = FRONT_MATTER.match(text.replace("\r\n", "\n"))
    if match is None:
        return {}
    try:
        metadata = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    if not isinstance(metadata, dict):
        raise ValueError("metadata should be an object")
    return metadata


def card_of(files: Files) -> dict[str, Any]:
    """The metadata of the README.md among `files`; empty when it is missing or broken."""
    if "README.md" not in files:
        return {}
    try:
        return parse_card(files["README.md"].content.decode())
    except ValueError:
        return {}


def tags_of(card: dict[str, Any]) -> list[str]:
    """The tags that the Hub derives from a card."""
    tags = [card[name] for name in ("library_name", "pipeline_tag") if card.get(name)]
    tags += [tag for tag in card.get("tags") or [] if tag not in tags]
    licences = card.get("license") or []
    return tags + [f"license:{licence}" for licence in as_list(licences)] + ["region:us"]


def as_list(value: Any) -> list[Any]:
    """`value` where it is a list, else a list of it."""
    return value if isinstance(value, list) else [value]
