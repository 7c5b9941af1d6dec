"""The four systems in words, by the type of the bottleneck."""

from __future__ import annotations

from dataclasses import dataclass

from imagetok.tokenizer_config import TokenizerConfig


@dataclass(frozen=True)
class System:
    """What a card calls a kind of tokenizer.

    Attributes:
        name: Short name.
        tag: On the Hub.
        about: What it does, as a sentence.
        bottleneck: What lies between encoder and decoder.
        weakness: What it is known not to do.
    """

    name: str
    tag: str
    about: str
    bottleneck: str
    weakness: str


def system_of(config: TokenizerConfig) -> System:
    """The system that a config describes, in the words of its bottleneck."""
    part = config.bottleneck
    return System(part.title, part.tag, part.about, part.card_words, part.weakness)
