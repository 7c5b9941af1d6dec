"""The card of a tokenizer: a README.md with metadata for the Hub and text for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from imagetok.cards.citations import papers_of
from imagetok.cards.facts import Facts
from imagetok.cards.figures import CODEBOOK_FIGURES, FIGURES, NOT_MEASURED, figure_rows, written
from imagetok.cards.layout import lay_out, licence_words
from imagetok.cards.metadata import model_metadata
from imagetok.cards.naming import dataset_words, without_folders
from imagetok.cards.systems import System, system_of
from imagetok.cards.training import training_section
from imagetok.cards.usage import usage_code
from imagetok.markdown import code, table
from imagetok.modelfile import EVALUATED_KEY, PICTURES_FILE
from imagetok.tokenizer_config import TokenizerConfig

_CHANNELS = {1: "gray", 3: "red, green, blue", 4: "red, green, blue, alpha"}
_PROTOCOL = {
    "dataset_fingerprint": "fingerprint of the data",
    "rows": "rows taken",
    "resize": "resize",
    "dtype": "type of the networks",
    "averaging": "averaging",
    "psnr": "about PSNR",
    "ssim": "about SSIM",
    "bits_per_dim": "about bits a dimension",
}


def render_model_card(
    config: TokenizerConfig, evaluation: Mapping[str, Any] | None, repo_id: str | None = None
) -> str:
    """The text of README.md; equal arguments give equal text.

    Args:
        config: The tokenizer's.
        evaluation: What its evaluation.json holds; None where it was not measured. Entries that
            are missing, or of another kind than they should be, count as not measured.
        repo_id: Repository on the Hub that the card's code loads from; None makes it load from
            the folder that the card lies in.
    """
    facts, system = Facts(evaluation), system_of(config)
    title = f"# {code(repo_id)}" if repo_id else f"# {system.name} image tokenizer"
    sections: dict[str, Iterable[str]] = {
        "Token grid and vocabulary": _grid(config, system),
        "Use": _use(config, repo_id),
        "Training": training_section(facts),
        "Results": _results(facts),
        "Codebook": _codebook(config, facts),
        "Limitations": _limitations(system, facts),
        "Intended use": _intended_use(config),
        "Licence": [licence_words("weights", "training data")],
        "Citation": _citation(config),
    }
    opening = [title, *_opening(system, facts)]
    return lay_out(model_metadata(config, facts, repo_id), opening, sections)


def _opening(system: System, facts: Facts) -> Iterator[str]:
    yield (
        f"An image tokenizer ({system.name}), made with imagetok. {system.about} What stands here "
        "was written from its configuration and its `evaluation.json` alone."
    )
    if facts:
        yield f"![Pictures above their reconstructions]({PICTURES_FILE})"
        yield "*Above: pictures of the evaluation. Below: their reconstructions.*"


def _grid(config: TokenizerConfig, system: System) -> Iterator[str]:
    bottleneck, (height, width), (h, w) = config.bottleneck, config.image_size, config.grid_size
    rows = {
        "system": system.name,
        "bottleneck": f"`{bottleneck.type}`: {system.bottleneck}",
        "pictures": f"{height} x {width} pixels, {_CHANNELS[config.channels]}",
        "grid": f"{h} x {w} = {h * w} positions",
        "pixels of a position": "{} x {}".format(*config.factors),
    }
    if bottleneck.is_discrete:
        rows["codebook"] = f"{max(bottleneck.codebook_sizes)} codes"
        rows["width of a code in the decoder"] = str(bottleneck.latent_dim)
    else:
        rows["codebook"] = "none: the latents are continuous"
        rows["latents of a position"] = str(bottleneck.latent_dim)
    rows["encoder, decoder"] = f"`{config.encoder.type}`, `{config.decoder.type}`"
    rows["likelihood"] = f"`{config.likelihood.type}`"
    yield table(("", ""), rows.items())


def _use(config: TokenizerConfig, repo_id: str | None) -> Iterator[str]:
    yield "With imagetok installed" + ("" if repo_id else ", in the folder of this card") + ":"
    yield usage_code(config, repo_id)
    yield (
        "Pictures go through the preprocessing that is saved with the weights: a centre crop and "
        "one antialiased resize. Float tensors in [0, 1] are taken as prepared."
    )


def _results(facts: Facts) -> Iterator[str]:
    protocol = facts.part("protocol")
    dataset = dataset_words(protocol.text("dataset"), protocol.text("dataset_source"))
    if facts:
        yield (
            "Figures of other protocols (another resize, crop, dataset or range of pixels) cannot "
            "be compared with these."
        )
    yield table(("figure", "value"), figure_rows(facts, FIGURES))
    if not facts:
        return
    sides, count = protocol.counts("image_size"), facts.count("num_images")
    rows = {
        "dataset": dataset,
        "split": _code(protocol, "split"),
        "pictures": None if count is None else written(count),
        "unreadable pictures left out": _count(facts, "num_unreadable"),
        "rows of the split": _count(protocol, "dataset_rows"),
        "pixels": " x ".join(map(str, sides)) or None,
        "channels": _count(protocol, "channels"),
        "range of a pixel": _count(protocol, "data_range"),
        **{name: _code(protocol, key) for key, name in _PROTOCOL.items()},
        "fingerprint of the tokenizer": _code(facts, "tokenizer_fingerprint"),
        "sha256 of the weights": _code(facts, EVALUATED_KEY),
    }
    yield "How they were measured:"
    yield table(("", ""), ((key, value or "not recorded") for key, value in rows.items()))


def _codebook(config: TokenizerConfig, facts: Facts) -> Iterator[str]:
    if not config.bottleneck.is_discrete:
        yield "There is none: the latents are continuous."
        return
    yield (
        "Usage is the share of the codes that the pictures of the evaluation use at all; the "
        "perplexity is how many codes, used equally often, would be as hard to foresee."
    )
    yield table(("figure", "value"), figure_rows(facts, CODEBOOK_FIGURES))


def _limitations(system: System, facts: Facts) -> Iterator[str]:
    lines = [
        f"{_seen(facts)} Other kinds of pictures may come back changed, and what the data lacks or "
        "favours the tokenizer lacks or favours too.",
        "PSNR, SSIM and L1 compare pixels: they say little about what a person sees. rFID and "
        f"LPIPS, which say more, are {NOT_MEASURED} where the table says so.",
        "imagetok trains without a perceptual loss (LPIPS) and without a discriminator (GAN): "
        "reconstructions are smooth, fine texture, text and small faces are lost first, and a good "
        "PSNR does not mean a good rFID.",
        system.weakness,
    ]
    if not facts:
        lines.append(f"Its quality is {NOT_MEASURED} at all.")
    yield "\n".join(f"- {line}" for line in lines)


def _seen(facts: Facts) -> str:
    """What pictures it has learnt from."""
    training = facts.part("training")
    data = training.part("data")
    name = dataset_words(data.text("name"), data.text("source"))
    if name is None:
        return "What it was trained on is not recorded."
    if (start := training.text("init_from")) is None:
        return f"It was trained on {name}, and on nothing else."
    start = code(without_folders(start))
    return f"It was trained further on {name}; what {start} had seen is not recorded here."


def _intended_use(config: TokenizerConfig) -> Iterator[str]:
    if config.bottleneck.is_discrete:
        use = "turning pictures into ids for a generative model, and generated ids into pictures"
    else:
        use = "latents to study or to model, and a baseline that shows what quantizing costs"
    yield (
        f"Meant for research and for training generative models: {use}. Not meant for keeping "
        "pictures, since what is lost does not come back, nor for pictures that somebody will take "
        "as evidence of anything: details of a reconstruction may be made up."
    )


def _citation(config: TokenizerConfig) -> Iterator[str]:
    papers = papers_of(config)
    links = [f"[{p.arxiv}](https://arxiv.org/abs/{p.arxiv})" for p in papers if p.arxiv]
    if links:
        yield f"It stands on these papers (arXiv {', '.join(links)}):"
    entries = "\n\n".join(paper.bibtex() for paper in papers)
    yield f"```bibtex\n{entries}\n```"


def _code(facts: Facts, key: str) -> str | None:
    value = facts.text(key)
    return None if value is None else code(value)


def _count(facts: Facts, key: str) -> str | None:
    value = facts.number(key)
    return None if value is None else written(value)
