"""The four systems in words, by the type of the bottleneck."""

from __future__ import annotations

from dataclasses import dataclass

from imagetok.config import TokenizerConfig


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


_IDS = (
    "Ids belong to these weights: those of another tokenizer mean something else, and only ids of "
    "the fingerprint that is named above decode to what they were made from."
)

_SYSTEMS = {
    "identity": System(
        "AE",
        "autoencoder",
        "It turns a picture into a grid of latents, and back.",
        "none but the width of the latents",
        "Nothing orders the latents: one that no picture gave decodes to nothing in particular, so "
        "there is no sampling, and a walk between two pictures may lead through what is none.",
    ),
    "gaussian": System(
        "VAE",
        "vae",
        "It turns a picture into a Gaussian distribution over grids of latents, and latents into "
        "a picture.",
        "diagonal Gaussian posterior, drawn to a standard normal prior by the KL divergence",
        "The posterior of all pictures together is not the prior: samples from the prior are less "
        "sharp and less sound than reconstructions.",
    ),
    "vq": System(
        "VQ-VAE",
        "vq-vae",
        "It turns a picture into a grid of ids of a codebook, and back: a transformer can learn "
        "the ids as it learns a text.",
        "nearest code of a learnt codebook, with a straight-through gradient",
        _IDS,
    ),
    "gumbel": System(
        "dVAE",
        "dvae",
        "It turns a picture into a grid of ids of a codebook, as the first stage of DALL-E does, "
        "and back: a transformer can learn the ids as it learns a text.",
        "categorical posterior over a codebook at every position, relaxed by Gumbel-softmax in "
        "training; the ids are its most probable codes",
        _IDS,
    ),
}


def system_of(config: TokenizerConfig) -> System:
    """The system that a config describes."""
    return _SYSTEMS[config.bottleneck.type]
