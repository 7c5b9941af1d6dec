"""The metadata of a model card, which the Hub reads: the YAML at its top.

https://github.com/huggingface/hub-docs/blob/main/modelcard.md says what there may be.
"""

from __future__ import annotations

from typing import Any

from imagetok.cards.facts import Facts
from imagetok.cards.figures import CODEBOOK_FIGURES, FIGURES
from imagetok.cards.layout import UNKNOWN_LICENSE
from imagetok.cards.naming import is_hub_name, without_folders
from imagetok.cards.systems import system_of
from imagetok.markdown import plain
from imagetok.tokenizer_config import TokenizerConfig


def model_metadata(config: TokenizerConfig, facts: Facts, repo_id: str | None) -> dict[str, Any]:
    """The metadata of a tokenizer.

    Args:
        config: The tokenizer's.
        facts: Of its evaluation.
        repo_id: Where it is pushed to.
    """
    system = system_of(config)
    metadata: dict[str, Any] = {
        "library_name": "imagetok",
        "license": UNKNOWN_LICENSE,
        # All four systems are asked for what stands for a picture; the way back is the check.
        "pipeline_tag": "image-feature-extraction",
        "tags": ["imagetok", "image-tokenizer", system.tag],
    }
    data = facts.part("training").part("data")
    dataset = data.text("name")
    if dataset is not None and data.text("source") == "hub" and is_hub_name(dataset):
        metadata["datasets"] = [dataset]
    metrics = [
        {"type": figure.key, "value": value, "name": figure.name}
        for figure in (*FIGURES, *CODEBOOK_FIGURES)
        if (value := facts.number(figure.key)) is not None
    ]
    measured_on = _measured_on(facts)
    if metrics and measured_on is not None:
        result = {
            "task": {"type": "image-to-image", "name": "Reconstruction"},
            "dataset": measured_on,
            "metrics": metrics,
        }
        name = system.name if repo_id is None else plain(repo_id)
        metadata["model-index"] = [{"name": name, "results": [result]}]
    return metadata


def _measured_on(facts: Facts) -> dict[str, Any] | None:
    """The dataset of an evaluation, in the Hub's terms; None where it does not say."""
    protocol = facts.part("protocol")
    name = protocol.text("dataset")
    if name is None:
        return None
    told = plain(without_folders(name)) or "unnamed"
    # A dataset of somebody's machine is not the one that happens to have its name on the Hub.
    is_local = protocol.text("dataset_source") == "local"
    dataset: dict[str, Any] = {"name": told, "type": f"local:{told}" if is_local else told}
    if split := plain(protocol.text("split") or ""):
        dataset["split"] = split
    fingerprint = plain(protocol.text("dataset_fingerprint") or "")
    said = {"images": facts.count("num_images"), "fingerprint": fingerprint}
    if arguments := {key: value for key, value in said.items() if value}:
        dataset["args"] = arguments
    return dataset
