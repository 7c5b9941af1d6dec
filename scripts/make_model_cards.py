"""Make the cards in model_cards/ from finished runs, or write their text anew.

imagetok train vqvae-shapes --output-dir runs/vqvae-shapes
python scripts/make_model_cards.py runs/vqvae-shapes runs/dvae-shapes
python scripts/make_model_cards.py

The first form copies a run's figures, config and reconstructions, and writes the card from them.
Without runs, every card is written anew from the files beside it, as after a changed template.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from imagetok.cards import render_model_card
from imagetok.config import TokenizerConfig
from imagetok.files import file_sha256, write_atomic
from imagetok.modelfile import (
    CARD_FILE,
    CONFIG_FILE,
    EVALUATED_KEY,
    EVALUATION_FILE,
    MODEL_FILE,
    PICTURES_FILE,
)

CARDS = Path(__file__).resolve().parent.parent / "model_cards"


def copy_run(run: Path, cards: Path) -> Path:
    """Copy the files that a card is made from out of a finished run.

    Args:
        run: Output folder of `imagetok train`.
        cards: Folder in which the card's own folder is made, named after the run's recipe.

    Returns:
        The card's folder.

    Raises:
        ValueError: The figures belong to other weights, or the run to no shipped recipe.
        UnreadableFileError: The run has no weights.
    """
    source = run / "tokenizer"
    evaluation = json.loads((source / EVALUATION_FILE).read_bytes())
    if evaluation[EVALUATED_KEY] != file_sha256(source / MODEL_FILE):
        raise ValueError(f"the figures in '{source}' are not of the weights that lie there")
    recipe = evaluation["training"]["recipe"]
    if recipe is None:
        raise ValueError(f"'{run}' is the run of no shipped recipe")
    target = cards / str(recipe)
    target.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG_FILE, EVALUATION_FILE, PICTURES_FILE):
        shutil.copyfile(source / name, target / name)
    return target


def write_card(folder: Path) -> None:
    """Write the card of a folder from its config and its figures."""
    config = TokenizerConfig.from_json((folder / CONFIG_FILE).read_bytes())
    evaluation = json.loads((folder / EVALUATION_FILE).read_bytes())
    text = render_model_card(config, evaluation) + (
        "\n## Weights\n\nThey are not in this folder. The command under *Training* makes them, in "
        f"`runs/{evaluation['training']['recipe']}/tokenizer`; there the code under *Use* runs.\n"
    )
    write_atomic(folder / CARD_FILE, text.encode())


def main() -> None:
    """Make or renew cards, and print their folders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", nargs="*", type=Path, help="output folders of imagetok train")
    parser.add_argument("--cards", type=Path, default=CARDS, help="folder of the cards")
    arguments = parser.parse_args()
    folders = [copy_run(run, arguments.cards) for run in arguments.runs]
    if not folders:
        folders = [path.parent for path in sorted(arguments.cards.glob(f"*/{EVALUATION_FILE}"))]
    for folder in folders:
        write_card(folder)
        print(folder)


if __name__ == "__main__":
    main()
