"""The card of a tokenizer: a README.md with metadata for the Hub and text for people.

Everything in it comes from the tokenizer's config and its evaluation.json. The text stands in
`model_card.md.jinja`; what it says about a part stands in that part's config class, and what
figures are called stands in the metrics' config classes. The Hub's page on metadata:
https://github.com/huggingface/hub-docs/blob/main/modelcard.md
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from imagetok.cards.entries import Entries
from imagetok.cards.markdown import plain, shell_word
from imagetok.cards.template import UNKNOWN_LICENSE, render, written
from imagetok.config.registry import known_types
from imagetok.display_names import is_hub_name, without_folders
from imagetok.files import naming_os_errors, write_atomic
from imagetok.hub import merge_card
from imagetok.metrics import STANDARD_METRICS, MetricConfig, find_metric
from imagetok.modelfile import CARD_FILE, EVALUATED_KEY, PICTURES_FILE
from imagetok.tokenizer_config import TokenizerConfig

_CHANNELS = {1: "gray", 3: "red, green, blue", 4: "red, green, blue, alpha"}
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_FOREIGN_FIGURES = {"rfid": "rFID", "lpips": "LPIPS"}
"""Titles of figures that imagetok itself does not measure, by key. A card has a line for them, so
that readers see that they are missing; an evaluation that others have completed may hold them."""


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
        command=_training_command(entries.part("training")),
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


def _training_command(training: Entries) -> str | None:
    """The command that makes the same run; None where the recipe is not recorded."""
    recipe = training.text("recipe")
    if not recipe:
        return None
    words = [recipe, *training.texts("changes"), "--output-dir", f"runs/{recipe}"]
    return f"imagetok train {' '.join(map(shell_word, words))}"


def _figure_rows(entries: Entries, *, of_codes: bool) -> Iterator[tuple[str, str]]:
    """Title and value of each figure of the codes, or of the images, as a card writes them."""
    for key, metric in _metrics(entries).items():
        if metric.is_of_codes == of_codes:
            for title, inner in _titles(entries, key, metric.title):
                yield title, _value_words(entries, inner, metric.unit)
    if not of_codes:
        for key, title in _FOREIGN_FIGURES.items():
            yield title, _value_words(entries, key)


def _value_words(entries: Entries, key: str, unit: str = "") -> str:
    value = entries.number(key)
    if value is None:
        return "does not apply" if entries.is_void(key) else "not measured"
    return f"{written(value)} {unit}".rstrip()


def _metrics(entries: Entries) -> dict[str, type[MetricConfig]]:
    """By key the standard metrics, and of the others that are known those that were measured."""
    standard = [metric.type for metric in STANDARD_METRICS]
    others = [key for key in known_types("metric") if key not in standard and key in entries]
    return {key: find_metric(key) for key in (*standard, *others)}


def _titles(entries: Entries, key: str, title: str) -> Iterator[tuple[str, str]]:
    """Title and key of a metric's figure, and of those that it consists of."""
    yield title, key
    for inner in entries.keys_under(f"{key}/"):
        yield f"{title}, {plain(inner.removeprefix(f'{key}/'))}", inner


def _metadata(config: TokenizerConfig, entries: Entries, repo_id: str | None) -> dict[str, Any]:
    """What the Hub reads: the YAML at the top of the card."""
    system = config.bottleneck
    metadata: dict[str, Any] = {
        "library_name": "imagetok",
        "license": UNKNOWN_LICENSE,
        # All systems are asked for what stands for an image; the way back is the check.
        "pipeline_tag": "image-feature-extraction",
        "tags": ["imagetok", "image-tokenizer", system.tag],
    }
    data = entries.part("training").part("data")
    dataset = data.text("name")
    if dataset is not None and data.text("source") == "hub" and is_hub_name(dataset):
        metadata["datasets"] = [dataset]
    titles = {key: metric.title for key, metric in _metrics(entries).items()} | _FOREIGN_FIGURES
    metrics = [
        {"type": inner, "value": value, "name": name}
        for key, title in titles.items()
        for name, inner in _titles(entries, key, title)
        if (value := entries.number(inner)) is not None
    ]
    measured_on = _measured_on(entries)
    if metrics and measured_on is not None:
        result = {
            "task": {"type": "image-to-image", "name": "Reconstruction"},
            "dataset": measured_on,
            "metrics": metrics,
        }
        name = system.title if repo_id is None else plain(repo_id)
        metadata["model-index"] = [{"name": name, "results": [result]}]
    return metadata


def _measured_on(entries: Entries) -> dict[str, Any] | None:
    """The dataset of an evaluation, in the Hub's terms; None where it does not say."""
    protocol = entries.part("protocol")
    name = protocol.text("dataset")
    if name is None:
        return None
    shown = plain(without_folders(name)) or "unnamed"
    # A dataset of somebody's machine is not the one that happens to have its name on the Hub.
    is_local = protocol.text("dataset_source") == "local"
    dataset: dict[str, Any] = {"name": shown, "type": f"local:{shown}" if is_local else shown}
    if split := plain(protocol.text("split") or ""):
        dataset["split"] = split
    fingerprint = plain(protocol.text("dataset_fingerprint") or "")
    said = {"images": entries.count("num_images"), "fingerprint": fingerprint}
    if arguments := {key: value for key, value in said.items() if value}:
        dataset["args"] = arguments
    return dataset
