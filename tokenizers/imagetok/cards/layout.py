"""What all cards have in common: metadata, markers around what is generated, sections, licence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from imagetok.hub.card_merge import CARD_BEGIN, CARD_END
from imagetok.markdown import front_matter

UNKNOWN_LICENSE = "unknown"
"""The Hub's word for it. No file that a card is made from says which licence weights or ids have:
whoever publishes them writes it in the card, where it stays."""


def lay_out(
    metadata: Mapping[str, Any], opening: Iterable[str], sections: Mapping[str, Iterable[str]]
) -> str:
    """The text of a card.

    Args:
        metadata: What the Hub reads.
        opening: The title and what stands under it, a paragraph each.
        sections: Paragraphs by heading.
    """
    blocks = [front_matter(metadata), CARD_BEGIN, *opening]
    for heading, paragraphs in sections.items():
        blocks += [f"## {heading}", *paragraphs]
    return "\n\n".join([*blocks, CARD_END]) + "\n"


def licence_words(what: str, source: str) -> str:
    """The paragraph of a card that says why it states no licence.

    Args:
        what: What would have it, such as `weights`.
        source: What it was made from, such as `training data`.
    """
    return (
        f"None is stated by what this card is made from. Whoever publishes the {what} sets "
        "`license` at the top of this file, where a later push leaves it as it is; the terms of "
        f"the {source} may bind it."
    )
