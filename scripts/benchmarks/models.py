"""Three tokenizers, each as imagetok has it and as the peer does, with the same weights.

dalle-pytorch   the dVAE of DALLE-pytorch's README: hidden 64, one residual block, K 8,192 x 512
dall-e          OpenAI's dVAE: hidden 256, four groups of two blocks, K 8,192 x 128
vqvae           the VQ-VAE: hidden 128, K 512 x 64, factor 4; the peer is the same network in
                plain torch around vector-quantize-pytorch
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.weights import draw, draw_table

if TYPE_CHECKING:
    from imagetok import ImageTokenizer

CODE_SCALE = 0.15
"""Standard deviation of the VQ-VAE's codes, about that of what its encoder gives."""


@dataclass(frozen=True)
class Peer:
    """A peer's tokenizer.

    Attributes:
        encode: From pixels, float (B, 3, H, W) in [0, 1], to ids with B * h * w entries.
        decode: From ids (B, h, w) to pixels, float (B, 3, H, W) in [0, 1].
    """

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Model:
    """A tokenizer in both ways.

    Attributes:
        title: What tables call it.
        peer_title: What tables call the peer.
        batch: Images encoded or decoded at once.
        requires: Distributions of the peer.
        config: The parts of ours, image_size aside.
        draw_ours, build_peer: Fill ours with the weights; build the peer with the same ones.
    """

    title: str
    peer_title: str
    batch: int
    requires: tuple[str, ...]
    config: Mapping[str, Any]
    draw_ours: Callable[[Any], None]
    build_peer: Callable[[int], Peer]

    def build(self, side: int, **bottleneck: Any) -> ImageTokenizer:
        """Our tokenizer for images of side x side pixels."""
        from benchmarks import parts  # noqa: F401  (registers the peer's networks)
        from imagetok import ImageTokenizer, TokenizerConfig

        config = {"image_size": [side, side], **self.config}
        config["bottleneck"] = {**config["bottleneck"], **bottleneck}
        tokenizer = ImageTokenizer.from_config(TokenizerConfig.from_dict(config))
        self.draw_ours(tokenizer)
        return tokenizer


# dalle-pytorch

README_SIZES = {
    "num_layers": 3,
    "num_tokens": 8192,
    "codebook_dim": 512,
    "hidden_dim": 64,
    "num_resnet_blocks": 1,
    "temperature": 0.9,
}


def build_dalle_pytorch(side: int) -> Any:
    """The peer's DiscreteVAE with our weights."""
    model = peers.dalle_pytorch(image_size=side, **README_SIZES)
    draw([*model.encoder.parameters(), *model.decoder.parameters()])
    with torch.no_grad():
        model.codebook.weight.copy_(draw_table(8192, 512))
    return model


def _dalle_pytorch_peer(side: int) -> Peer:
    model = build_dalle_pytorch(side).eval()
    return Peer(
        model.get_codebook_indices, lambda ids: (model.decode(ids.flatten(1)) + 1).clamp(0, 2) / 2
    )


def _draw_dalle_pytorch(tokenizer: Any) -> None:
    bottleneck = tokenizer.bottleneck
    own = [*tokenizer.encoder.parameters(), *bottleneck.logits.parameters()]
    draw([*own, *tokenizer.decoder.parameters()])
    with torch.no_grad():
        bottleneck.embedding.copy_(draw_table(8192, 512))


# OpenAI's dVAE


def _dall_e_peer(side: int) -> Peer:
    encoder, decoder, map_pixels, unmap_pixels = peers.dall_e()
    (table, bias), rest = list(decoder.parameters())[:2], list(decoder.parameters())[2:]
    draw([*encoder.parameters(), *rest])
    with torch.no_grad():
        table.copy_(draw_table(8192, 128).T[:, :, None, None])
        bias.zero_()

    def decode(ids: Tensor) -> Tensor:
        one_hot = nn.functional.one_hot(ids, num_classes=encoder.vocab_size)
        stats = decoder(one_hot.permute(0, 3, 1, 2).float()).float()
        pixels: Tensor = unmap_pixels(torch.sigmoid(stats[:, :3]))
        return pixels

    return Peer(lambda x: encoder(map_pixels(x)).argmax(dim=1), decode)


def _in_dall_e_order(network: nn.Module) -> Iterator[Tensor]:
    """Parameters of our network in the order of the peer's, which has the skip before a branch."""
    for layer in network.layers:  # type: ignore[union-attr]
        if hasattr(layer, "skip"):
            yield from layer.skip.parameters()
            yield from layer.branch.parameters()
        else:
            yield from layer.parameters()


def _draw_dall_e(tokenizer: Any) -> None:
    bottleneck = tokenizer.bottleneck
    own = [*_in_dall_e_order(tokenizer.encoder), *bottleneck.logits.parameters()]
    draw([*own, *_in_dall_e_order(tokenizer.decoder)])
    with torch.no_grad():
        bottleneck.embedding.copy_(draw_table(8192, 128))


# The VQ-VAE


class _PlainBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.ReLU(), nn.Conv2d(128, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 128, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.branch(x)
        return out


class PlainVqVae(nn.Module):
    """The VQ-VAE's networks as anybody writes them, around vector-quantize-pytorch."""

    def __init__(self, quantizer: Any) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(3, 64, 4, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(64, 128, 4, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(128, 128, 3, padding=1), _PlainBlock(), _PlainBlock(), nn.ReLU()),
            nn.Conv2d(128, 64, 1),
        )
        self.quantizer = quantizer
        self.decoder = nn.Sequential(
            *(nn.Conv2d(64, 128, 3, padding=1), _PlainBlock(), _PlainBlock(), nn.ReLU()),
            *(nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1), nn.ReLU()),
            nn.ConvTranspose2d(64, 3, 4, stride=2, padding=1),
        )
        draw([*self.encoder.parameters(), *self.decoder.parameters()])
        quantizer._codebook.embed.copy_(draw_table(512, 64, CODE_SCALE)[None])
        quantizer._codebook.embed_avg.copy_(draw_table(512, 64, CODE_SCALE)[None])


def build_vqvae_peer() -> PlainVqVae:
    """The peer, in training mode."""
    options = {"decay": 0.99, "commitment_weight": 0.25, "rotation_trick": False}
    return PlainVqVae(peers.vector_quantize(dim=64, codebook_size=512, **options))


def _vqvae_peer(side: int) -> Peer:
    model = build_vqvae_peer().eval()

    def encode(x: Tensor) -> Tensor:
        ids: Tensor = model.quantizer(model.encoder(x - 0.5))[1]
        return ids

    def decode(ids: Tensor) -> Tensor:
        codes = model.quantizer.get_output_from_indices(ids)
        out: Tensor = model.decoder(codes)
        return (out + 0.5).clamp(0, 1)

    return Peer(encode, decode)


def _draw_vqvae(tokenizer: Any) -> None:
    draw([*tokenizer.encoder.parameters(), *tokenizer.decoder.parameters()])
    with torch.no_grad():
        tokenizer.bottleneck.codebook.copy_(draw_table(512, 64, CODE_SCALE))


def _dvae(network: str, latent_dim: int, likelihood: str) -> dict[str, Any]:
    return {
        "encoder": {"type": network},
        "bottleneck": {"type": "gumbel", "codebook_size": 8192, "latent_dim": latent_dim},
        "decoder": {"type": network},
        "likelihood": {"type": likelihood},
    }


MODELS = {
    "dalle-pytorch": Model(
        "the dVAE of DALLE-pytorch's README",
        "dalle-pytorch",
        8,
        peers.DALLE_PYTORCH,
        _dvae("dalle_pytorch", 512, "mse"),
        _draw_dalle_pytorch,
        _dalle_pytorch_peer,
    ),
    "dall-e": Model(
        "OpenAI's dVAE",
        "DALL-E",
        2,
        peers.DALL_E,
        _dvae("dalle", 128, "logit_laplace"),
        _draw_dall_e,
        _dall_e_peer,
    ),
    "vqvae": Model(
        "a VQ-VAE",
        "vector-quantize-pytorch",
        8,
        peers.VECTOR_QUANTIZE,
        {
            "encoder": {"type": "conv"},
            "bottleneck": {
                "type": "vq",
                "codebook_size": 512,
                "latent_dim": 64,
                "kmeans_init": False,
                "restart_below": 0.0,
            },
            "decoder": {"type": "conv"},
            "likelihood": {"type": "mse"},
        },
        _draw_vqvae,
        _vqvae_peer,
    ),
}
