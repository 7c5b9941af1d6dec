"""Which papers a tokenizer stands on."""

from __future__ import annotations

from imagetok.config import Paper
from imagetok.tokenizer_config import TokenizerConfig


def papers_of(config: TokenizerConfig) -> list[Paper]:
    """The papers that what a config describes comes from."""
    return list(config.papers)
