"""Cards in folders, where people may have written in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagetok.cards.model import render_model_card
from imagetok.files import naming_os_errors, write_atomic
from imagetok.hub import merge_card
from imagetok.modelfile import CARD_FILE
from imagetok.tokenizer_config import TokenizerConfig


def write_model_card(
    folder: Path,
    config: TokenizerConfig,
    evaluation: Mapping[str, Any] | None,
    repo_id: str | None = None,
) -> None:
    """Write a tokenizer's README.md, or renew what is generated in the one that lies there.

    Args:
        folder: The tokenizer's.
        config: As of `render_model_card`, like the further ones.
        evaluation: What its evaluation.json holds, or will hold; None where there is none.
        repo_id: Repository on the Hub that the card's code loads from.

    Raises:
        HubAccessError: The metadata of the card that lies there is no valid YAML.
        UnreadableFileError, UnwritableFileError: The card cannot be read or written.
    """
    path = folder / CARD_FILE
    with naming_os_errors("read", path):
        existing = path.read_bytes() if path.exists() else b""
    # What people wrote stays as it is, byte for byte, whatever its encoding.
    text = merge_card(
        render_model_card(config, evaluation, repo_id), existing.decode("utf-8", "surrogateescape")
    )
    write_atomic(path, text.encode("utf-8", "surrogateescape"))
