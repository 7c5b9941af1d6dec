"""How a tokenizer was trained, and the command that trains one like it."""

from __future__ import annotations

from collections.abc import Iterator

from imagetok.cards.facts import Facts
from imagetok.cards.figures import written
from imagetok.cards.naming import dataset_words, without_folders
from imagetok.markdown import code, shell_word, table

NOT_RECORDED = "not recorded"


def training_section(facts: Facts) -> Iterator[str]:
    """The paragraphs of a card's heading `Training`.

    Args:
        facts: Of the evaluation, whose part `training` says it.
    """
    training = facts.part("training")
    if not training:
        yield f"How it was trained is {NOT_RECORDED}."
        return
    if command := training_command(training):
        yield "This command trains one like it, where the data is at hand:"
        yield f"```bash\n{command}\n```"
    yield table(("", ""), _rows(training))


def training_command(training: Facts) -> str | None:
    """The command that makes the same run; None where the recipe is not recorded."""
    recipe = training.text("recipe")
    if not recipe:
        return None
    words = [recipe, *training.texts("changes"), "--output-dir", f"runs/{recipe}"]
    return f"imagetok train {' '.join(map(shell_word, words))}"


def _rows(training: Facts) -> Iterator[tuple[str, str]]:
    data = training.part("data")
    yield "recipe", _text(training, "recipe")
    if (start := training.text("init_from")) is not None:
        yield "started from", code(without_folders(start))
    yield "dataset", dataset_words(data.text("name"), data.text("source")) or NOT_RECORDED
    yield "split", _text(data, "split")
    yield "fingerprint of the data", _text(data, "fingerprint")
    yield "steps", _count(training, "steps")
    yield "pictures a step", _count(training, "batch_size")
    yield "processes", _count(training, "ranks")
    yield "hardware", _text(training, "device")
    yield "precision", _text(training, "precision")
    yield "seed", _count(training, "seed")
    yield "parameters", _count(training, "parameters")
    versions = training.part("versions")
    yield "imagetok", _text(versions, "imagetok")
    yield "torch", _text(versions, "torch")


def _text(facts: Facts, key: str) -> str:
    value = facts.text(key)
    return NOT_RECORDED if value is None else code(value)


def _count(facts: Facts, key: str) -> str:
    value = facts.count(key)
    return NOT_RECORDED if value is None else written(value)
