"""The card of a tokenizer: a README.md with metadata for the Hub and text for people.

Everything in it comes from the tokenizer's config and its evaluation.json. The text stands in
`model_card.md.jinja`; what it says of a part stands in that part's config class, and what figures
are called in the metrics'. The Hub's page on metadata:
https://github.com/huggingface/hub-docs/blob/main/modelcard.md
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from imagetok.cards.display_names import is_hub_name, without_folders
from imagetok.cards.entries import Entries
from imagetok.cards.markdown import plain, shell_word
from imagetok.cards.template import UNKNOWN_LICENSE, render, written
from imagetok.files import naming_os_errors, write_atomic
from imagetok.hub import merge_card
from imagetok.metrics import MetricConfig, card_metrics
from imagetok.modelfile import CARD_FILE, EVALUATED_KEY, PICTURES_FILE
from imagetok.tokenizer_config import TokenizerConfig

_CHANNELS = {1: "gray", 3: "red, green, blue", 4: "red, green, blue, alpha"}
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_OTHERS = {"rfid": "rFID", "lpips": "LPIPS"}
"""Figures that imagetok does not measure; a card says so, or shows those of an evaluation that
somebody has completed."""


def render_model_card(
    config: TokenizerConfig, evaluation: Mapping[str, Any] | None, repo_id: str | None = None
) -> str:
    """The text of README.md; equal arguments give equal text.

    Args:
        config: The tokenizer's config.
        evaluation: What its evaluation.json holds; None where it was not measured. Entries that
            are missing, or of another kind than they should be, count as not measured.
        repo_id: Repository on the Hub that the card's code loads from; None makes it load from
            the folder that the card is in.
    """
    entries = Entries(evaluation)
    (height, width), (h, w) = config.image_size, config.grid_size
    sizes = config.bottleneck.codebook_sizes
    arxiv = [paper.arxiv for paper in config.papers if paper.arxiv]
    return render(
        "model_card.md.jinja",
        _metadata(config, entries, repo_id),
        config=config,
        system=config.bottleneck,
        repo_id=repo_id,
        height=height,
        width=width,
        h=h,
        w=w,
        sizes=sizes,
        shape=", ".join(map(str, (h, w, len(sizes)) if len(sizes) > 1 else (h, w))),
        channels=_CHANNELS[config.channels],
        mode=_MODES[config.channels],
        evaluation=entries,
        metrics=_metrics(entries),
        figures=list(_figure_rows(entries, of_codes=False)),
        code_figures=list(_figure_rows(entries, of_codes=True)),
        command=training_command(entries.part("training")),
        links=", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in arxiv),
        evaluated_key=EVALUATED_KEY,
        pictures_file=PICTURES_FILE,
    )


def write_model_card(
    folder: Path,
    config: TokenizerConfig,
    evaluation: Mapping[str, Any] | None,
    repo_id: str | None = None,
) -> None:
    """Write a tokenizer's README.md, or renew the generated part of the one that is there.

    Args:
        folder: The tokenizer's folder.
        config: The tokenizer's config.
        evaluation: What its evaluation.json holds, or will hold; None where there is none.
        repo_id: Repository on the Hub that the card's code loads from; None is the folder itself.

    Raises:
        HubAccessError: The metadata of the card that is there is not valid YAML.
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


def training_command(training: Entries) -> str | None:
    """The command that makes the same run; None where the recipe is not recorded."""
    recipe = training.text("recipe")
    if not recipe:
        return None
    words = [recipe, *training.texts("changes"), "--output-dir", f"runs/{recipe}"]
    return f"imagetok train {' '.join(map(shell_word, words))}"
