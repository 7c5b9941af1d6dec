"""Model cards: from a tokenizer's config and its evaluation.json, and from nothing else."""

from imagetok.cards.model import render_model_card
from imagetok.cards.naming import DatasetSource, dataset_source, told_name
from imagetok.cards.writing import write_model_card

__all__ = [
    "DatasetSource",
    "dataset_source",
    "render_model_card",
    "told_name",
    "write_model_card",
]
