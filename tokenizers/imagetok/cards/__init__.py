"""Cards: what a README.md on the Hub says about a tokenizer, and what cards have in common."""

from imagetok.cards.model_card import render_model_card, write_model_card
from imagetok.display_names import DatasetSource, dataset_source, display_name

told_name = display_name
"""Earlier name of `display_name`."""

__all__ = [
    "DatasetSource",
    "dataset_source",
    "display_name",
    "render_model_card",
    "told_name",
    "write_model_card",
]
