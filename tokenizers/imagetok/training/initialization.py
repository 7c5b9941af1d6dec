"""Starting a codebook from the encoder's first outputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from imagetok.data import TrainingBatch, TrainingData
from imagetok.images import to_unit
from imagetok.keys import choose, make_keys
from imagetok.launch import collectives
from imagetok.run_config import TrainConfig
from imagetok.tokenizer import ImageTokenizer

VECTORS_PER_IMAGE = 64
"""Most encoder outputs taken of one image, so that the start sees many images."""


@torch.no_grad()
def initialize_bottleneck(model: ImageTokenizer, data: TrainingData, settings: TrainConfig) -> None:
    """Hand the bottleneck the encoder outputs it wants of the first images, in sample order.

    All ranks call it: each encodes its share of the images of the first steps and gets all of the
    vectors.
    """
    wanted = model.bottleneck.num_initial_vectors
    if not wanted or "bottleneck" in settings.freeze:
        return
    per_image = min(VECTORS_PER_IMAGE, model.num_tokens)
    # The number of images does not depend on that of the ranks.
    num_images = math.ceil(wanted / per_image)
    steps = math.ceil(num_images / settings.batch_size)
    parts = []
    with data.feed(0, steps, collectives.rank(), collectives.world_size()) as feed:
        for batches in feed:
            vectors = [_encode(model, batch, settings.seed, per_image) for batch in batches]
            parts.append(collectives.gather_equal(torch.cat(vectors)))
    model.bottleneck.initialize(torch.cat(parts)[: num_images * per_image])
    # On a GPU sums differ in their last bits from run to run, and so from rank to rank.
    for tensor in model.bottleneck.state_dict().values():
        tensor.copy_(collectives.broadcast_tensor(tensor))


def _encode(model: ImageTokenizer, batch: TrainingBatch, seed: int, per_image: int) -> Tensor:
    keys = make_keys(seed, 0, batch.rows.tolist(), "initialize")
    z = model.encoder(to_unit(batch.pixels.to(model.device), model.dtype))
    return _choose_vectors(z, keys, per_image)


def _choose_vectors(z: Tensor, keys: Tensor, count: int) -> Tensor:
    """`count` positions of each sample by its key: (B, d, h, w) to (B * count, d)."""
    flat = z.flatten(2).transpose(1, 2)
    places = choose(keys, "initialize", (len(z), count), flat.shape[1]).to(z.device)
    return flat.gather(1, places[:, :, None].expand(-1, -1, flat.shape[2])).flatten(0, 1)
