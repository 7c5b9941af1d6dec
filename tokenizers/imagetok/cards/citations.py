"""Which papers a tokenizer stands on, as BibTeX."""

from __future__ import annotations

from dataclasses import dataclass

from imagetok.config import TokenizerConfig

_VENUE_FIELDS = {"article": "journal", "inproceedings": "booktitle", "misc": "howpublished"}


@dataclass(frozen=True)
class Paper:
    """An entry of a bibliography.

    Attributes:
        kind: Of the BibTeX entry: `article`, `inproceedings` or `misc`.
        key: Of the BibTeX entry.
        title: In BibTeX, with braces around what keeps its case.
        authors: In BibTeX, joined by `and`.
        year: Of the publication that `venue` names.
        venue: Where it appeared.
        arxiv: Its number there; None where it has none.
    """

    kind: str
    key: str
    title: str
    authors: str
    year: int
    venue: str
    arxiv: str | None = None

    def bibtex(self) -> str:
        """The entry."""
        fields = {
            "title": self.title,
            "author": self.authors,
            "year": str(self.year),
            _VENUE_FIELDS[self.kind]: self.venue,
        }
        if self.arxiv is not None:
            fields |= {"eprint": self.arxiv, "archivePrefix": "arXiv"}
        lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
        return "\n".join([f"@{self.kind}{{{self.key},", *lines, "}"])


AUTOENCODER = Paper(
    "article",
    "hinton2006reducing",
    "Reducing the Dimensionality of Data with Neural Networks",
    "Hinton, Geoffrey E. and Salakhutdinov, Ruslan R.",
    2006,
    "Science 313(5786)",
)
VAE = Paper(
    "inproceedings",
    "kingma2014autoencoding",
    "Auto-Encoding Variational {Bayes}",
    "Kingma, Diederik P. and Welling, Max",
    2014,
    "International Conference on Learning Representations",
    "1312.6114",
)
SIGMA_VAE = Paper(
    "inproceedings",
    "rybkin2021simple",
    "Simple and Effective {VAE} Training with Calibrated Decoders",
    "Rybkin, Oleh and Daniilidis, Kostas and Levine, Sergey",
    2021,
    "International Conference on Machine Learning",
    "2006.13202",
)
VQ_VAE = Paper(
    "inproceedings",
    "oord2017neural",
    "Neural Discrete Representation Learning",
    'van den Oord, A{\\"a}ron and Vinyals, Oriol and Kavukcuoglu, Koray',
    2017,
    "Advances in Neural Information Processing Systems",
    "1711.00937",
)
VQ_VAE_2 = Paper(
    "inproceedings",
    "razavi2019generating",
    "Generating Diverse High-Fidelity Images with {VQ-VAE-2}",
    'Razavi, Ali and van den Oord, A{\\"a}ron and Vinyals, Oriol',
    2019,
    "Advances in Neural Information Processing Systems",
    "1906.00446",
)
ROTATION = Paper(
    "misc",
    "fifty2024restructuring",
    "Restructuring Vector Quantization with the Rotation Trick",
    "Fifty, Christopher and Junkins, Ronald G. and Duan, Dennis and Iyengar, Aniketh and Liu, "
    "Jerry W. and Amid, Ehsan and Thrun, Sebastian and R{\\'e}, Christopher",
    2024,
    "arXiv preprint",
    "2410.06424",
)
DALL_E = Paper(
    "inproceedings",
    "ramesh2021zeroshot",
    "Zero-Shot Text-to-Image Generation",
    "Ramesh, Aditya and Pavlov, Mikhail and Goh, Gabriel and Gray, Scott and Voss, Chelsea and "
    "Radford, Alec and Chen, Mark and Sutskever, Ilya",
    2021,
    "International Conference on Machine Learning",
    "2102.12092",
)
GUMBEL_SOFTMAX = Paper(
    "inproceedings",
    "jang2017categorical",
    "Categorical Reparameterization with {Gumbel-Softmax}",
    "Jang, Eric and Gu, Shixiang and Poole, Ben",
    2017,
    "International Conference on Learning Representations",
    "1611.01144",
)


def papers_of(config: TokenizerConfig) -> list[Paper]:
    """The papers that what a config describes comes from."""
    bottleneck, likelihood = config.bottleneck, config.likelihood
    if bottleneck.type == "identity":
        papers = [AUTOENCODER]
    elif bottleneck.type == "gaussian":
        papers = [VAE]
    elif bottleneck.type == "gumbel":
        papers = [DALL_E, GUMBEL_SOFTMAX, VAE]
    else:
        papers = [VQ_VAE]
        papers += [VQ_VAE_2] if bottleneck.codebook == "ema" else []
        papers += [ROTATION] if bottleneck.gradient == "rotation" else []
    if likelihood.type != "logit_laplace" and likelihood.scale == "learnt":
        papers.append(SIGMA_VAE)
    return papers
