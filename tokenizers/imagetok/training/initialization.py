"""Starting a codebook from the encoder's first outputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from imagetok import distributed
from imagetok.data import TrainingImages
from imagetok.keys import choose, make_keys
from imagetok.tokenizer import ImageTokenizer

VECTORS_PER_IMAGE = 64
"""Most encoder outputs taken of one image, so that the start sees many images."""


@torch.no_grad()
def initialize_bottleneck(
    model: ImageTokenizer, images: TrainingImages, seed: int, batch_size: int = 32
) -> None:
    """Hand the bottleneck the encoder outputs it wants of the first images, in sample order.

    All ranks call it: each encodes its share of the images and gets all of the vectors.
    """
    wanted = model.bottleneck.num_initial_vectors
    if not wanted:
        return
    per_image = min(VECTORS_PER_IMAGE, model.num_tokens)
    # The number of images, unlike the shares, does not depend on that of the ranks.
    num_images = math.ceil(wanted / per_image)
    first, last = (
        num_images * (distributed.rank() + end) // distributed.world_size() for end in (0, 1)
    )
    vectors = [torch.empty(0, model.bottleneck.in_channels, dtype=model.dtype, device=model.device)]
    for start in range(first, last, batch_size):
        samples = [images[i] for i in range(start, min(start + batch_size, last))]
        keys = make_keys(seed, 0, [sample["row"] for sample in samples], "initialize")
        pixels = torch.stack([sample["pixels"] for sample in samples])
        z = model.encoder(pixels.to(model.device, model.dtype) / 255)
        vectors.append(_choose_vectors(z, keys, per_image))
    model.bottleneck.initialize(distributed.gather_samples(torch.cat(vectors)))
    # On a GPU sums differ in their last bits from run to run, and so from rank to rank.
    for tensor in model.bottleneck.state_dict().values():
        tensor.copy_(distributed.broadcast_tensor(tensor))


def _choose_vectors(z: Tensor, keys: Tensor, count: int) -> Tensor:
    """`count` positions of each sample by its key: (B, d, h, w) to (B * count, d)."""
    flat = z.flatten(2).transpose(1, 2)
    places = choose(keys, "initialize", (len(z), count), flat.shape[1]).to(z.device)
    return flat.gather(1, places[:, :, None].expand(-1, -1, flat.shape[2])).flatten(0, 1)
