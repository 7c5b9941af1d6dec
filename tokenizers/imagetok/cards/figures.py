"""The figures of an evaluation: what they are called, their units, and how they are written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from imagetok.cards.facts import Facts

NOT_MEASURED = "not measured"
DOES_NOT_APPLY = "does not apply"


@dataclass(frozen=True)
class Figure:
    """A figure that a card has a line for.

    Attributes:
        key: In evaluation.json.
        name: In the card.
        unit: Behind the value.
    """

    key: str
    name: str
    unit: str = ""


CODEBOOK_FIGURES = (
    Figure("codebook_usage", "codebook usage", "of the codes"),
    Figure("codebook_perplexity", "codebook perplexity", "codes"),
)
FIGURES = (
    Figure("psnr", "PSNR", "dB"),
    Figure("ssim", "SSIM"),
    Figure("l1", "L1", "of the range of a pixel"),
    Figure("rfid", "rFID"),
    Figure("lpips", "LPIPS"),
    Figure("bits_per_dim", "bits a dimension", "bits"),
    Figure("bits_per_pixel", "bits a pixel of the ids", "bits"),
)


def written(value: float) -> str:
    """A figure as a card writes it: whole numbers whole, others to six digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def figure_rows(facts: Facts, figures: tuple[Figure, ...]) -> Iterator[tuple[str, str]]:
    """Name and value of each figure; one that is not there was not measured."""
    for figure in figures:
        value = facts.number(figure.key)
        if value is not None:
            yield figure.name, f"{written(value)} {figure.unit}".rstrip()
        else:
            yield figure.name, DOES_NOT_APPLY if facts.is_void(figure.key) else NOT_MEASURED
