"""The model that a run begins with: its weights, which parts learn, and where its codebook starts.

The weights are random or those of a saved tokenizer, while the run's config says how they are
trained further. Both must then describe one architecture; only the bottleneck's `training_only`
entries may differ. A codebook may start from the encoder's first outputs instead.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm

from imagetok.config import recipe_names
from imagetok.config.strict_config import differing_entries
from imagetok.data import TrainingData
from imagetok.errors import ConfigError, ImagetokError
from imagetok.hub import is_repo_id, load_remote_model
from imagetok.keys import choose, make_keys
from imagetok.launch import collectives
from imagetok.modelfile import load_model
from imagetok.networks import checkpoint_activations
from imagetok.objectives import Objective
from imagetok.run_config import RunConfig, TrainConfig, load_recipe
from imagetok.tokenizer import ImageTokenizer
from imagetok.tokenizer_config import TokenizerConfig

PARTS = ("encoder", "bottleneck", "decoder")
"""What can be frozen. A likelihood's learnt scale never is: it measures the error that is left."""

VECTORS_PER_IMAGE = 64
"""Most encoder outputs taken from one image, so that a codebook starts from many images."""


def load_run(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe and apply overrides, like `load_recipe`.

    A recipe with `train.init_from` needs no `tokenizer` section: it gets the saved tokenizer's, and
    overrides such as `tokenizer.bottleneck.decay=0.9` change that one. A recipe of the package
    treats colour profiles as the saved tokenizer does, unless an override says otherwise.

    Raises:
        ConfigError: Unknown recipe, malformed override, or a config that does not validate.
        ModelFileError: `train.init_from` does not name a complete tokenizer.
        HubAccessError, HubError: It names one on the Hub that cannot be fetched.
        UnreadableFileError: The recipe cannot be read.
    """
    config = load_recipe(recipe, overrides, _read_saved)
    start, key = config.train.init_from, "tokenizer.preprocessing"
    if start is None or recipe not in recipe_names() or any(o.startswith(key) for o in overrides):
        return config
    with suppress(ImagetokError):  # `build_model` says what is wrong, unless the run is resumed
        saved = _read_saved(start).preprocessing.color_profile
        tokenizer = config.tokenizer.with_color_profile(saved)
        config = config.model_copy(update={"tokenizer": tokenizer})
    return config


def _read_saved(name: str) -> TokenizerConfig:
    """The config of a saved tokenizer, in a folder or on the Hub."""
    files = load_remote_model(name).files if is_repo_id(name) else load_model(name)
    return files.config


def build_model(
    config: RunConfig, device: torch.device | str, *, resuming: bool = False
) -> ImageTokenizer:
    """Build the model of a run, frozen and checkpointed as its config says.

    Args:
        config: The run.
        device: Where to put it.
        resuming: Whether a checkpoint's weights will take the place of these, so that the tokenizer
            which the run started from need not exist any more.

    Returns:
        A tokenizer in torch's default dtype, with random weights drawn from the run's seed or the
        weights of `train.init_from`.

    Raises:
        ConfigError: The saved tokenizer has another architecture, or nothing is left to learn.
        ModelFileError: `train.init_from` does not name a complete tokenizer.
        HubAccessError, HubError: It names one on the Hub that cannot be fetched.
    """
    settings = config.train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = ImageTokenizer.from_config(config.tokenizer)
    if settings.init_from is not None and not resuming:
        saved = ImageTokenizer.from_pretrained(settings.init_from)
        assert saved.config is not None
        _check_architecture(config.tokenizer, saved.config, settings.init_from)
        model.load_state_dict(saved.state_dict())
    model.max_pixels = config.data.max_pixels
    prepare_parts(model, config)
    return model.to(device)


def build_objectives(config: RunConfig, device: torch.device | str) -> dict[str, Objective]:
    """Build what a run minimises besides the tokenizer's own terms, with weights of its seed.

    Args:
        config: The run.
        device: Where to put the objectives.

    Returns:
        The objectives by type, in the order of `train.objectives`.

    Raises:
        ConfigError: An objective holds batch statistics, which differ between ranks.
    """
    objectives = {}
    for part in config.train.objectives:
        with torch.device("cpu"):  # also while a plan counts on the meta device
            (key,) = make_keys(config.train.seed, 0, [0], f"objective/{part.type}").tolist()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key)
            objective = part.build(config.tokenizer.channels, config.tokenizer.image_size)
        if any(isinstance(module, _BatchNorm) for module in objective.modules()):
            raise ConfigError(
                f"the objective '{part.type}' holds batch statistics, which differ between ranks "
                "and micro-batches; use a normalisation of single samples, such as GroupNorm"
            )
        objectives[part.type] = objective.to(device)
    return objectives


def prepare_parts(model: ImageTokenizer, config: RunConfig) -> None:
    """Exclude what the run freezes from learning by gradients, and recompute activations if asked.

    A bottleneck's averages and restarts are learnt by `Bottleneck.update`, which must not be called
    for a frozen one.

    Raises:
        ConfigError: No part is left with weights that gradients could change.
    """
    frozen = config.train.freeze
    for part in frozen:
        model.get_submodule(part).requires_grad_(False)
    left = [part for part in PARTS if part not in frozen]
    learnt = (p.requires_grad for part in left for p in model.get_submodule(part).parameters())
    if frozen and not any(learnt):
        reason = (
            f"only the {' and the '.join(left)}, without weights that gradients could change; a "
            "codebook of averages follows an encoder that learns"
            if left
            else "nothing to learn"
        )
        raise ConfigError(f"train.freeze=[{', '.join(frozen)}] leaves {reason}; freeze fewer parts")
    if config.train.gradient_checkpointing:
        checkpoint_activations(model)


@torch.no_grad()
def initialize_bottleneck(
    model: ImageTokenizer, data: TrainingData, settings: TrainConfig, progress: bool = False
) -> None:
    """Hand the bottleneck the encoder outputs of the first images that it wants, in sample order.

    A collective: each rank encodes its share of the images of the first steps and gets all of the
    vectors.

    Args:
        model: The model, on its device.
        data: What it trains on.
        settings: How it is trained.
        progress: Show a bar on the main process.
    """
    wanted = model.bottleneck.num_initial_vectors
    if not wanted or "bottleneck" in settings.freeze:
        return
    per_image = min(VECTORS_PER_IMAGE, model.num_tokens)
    # The number of images does not depend on that of the ranks.
    num_images = math.ceil(wanted / per_image)
    steps = math.ceil(num_images / settings.batch_size)
    parts = []
    silent = not progress or collectives.rank() > 0
    with (
        data.feed(0, steps, collectives.rank(), collectives.world_size()) as feed,
        tqdm(total=steps + 1, desc="k-means", disable=silent, leave=False) as bar,
    ):
        for batches in feed:
            vectors = []
            for batch in batches:
                keys = make_keys(settings.seed, 0, batch.rows.tolist(), "initialize")
                z = model.encode_pixels(batch.pixels)
                vectors.append(_choose_vectors(z, keys, per_image))
            parts.append(collectives.gather_equal(torch.cat(vectors)))
            bar.update()
        model.bottleneck.initialize(torch.cat(parts)[: num_images * per_image])
        bar.update()
    # On a GPU sums differ in their last bits from run to run, and so from rank to rank.
    for tensor in model.bottleneck.state_dict().values():
        tensor.copy_(collectives.broadcast_tensor(tensor))


def _choose_vectors(z: Tensor, keys: Tensor, count: int) -> Tensor:
    """Choose `count` positions of each sample by its key: (B, d, h, w) to (B * count, d)."""
    flat = z.flatten(2).transpose(1, 2)
    places = choose(keys, "initialize", (len(z), count), flat.shape[1]).to(z.device)
    return flat.gather(1, places[:, :, None].expand(-1, -1, flat.shape[2])).flatten(0, 1)


def _check_architecture(asked: TokenizerConfig, saved: TokenizerConfig, folder: str) -> None:
    listed = "; ".join(
        f"tokenizer.{key}: the recipe says {json.dumps(ours)}, {folder} says {json.dumps(theirs)}"
        for key, ours, theirs in differing_entries(_architecture(asked), _architecture(saved))
    )
    if listed:
        raise ConfigError(
            f"train.init_from: {listed}; leave the `tokenizer` section out of the recipe to take "
            "the saved one's, or train from the start"
        )


def _architecture(config: TokenizerConfig) -> dict[str, Any]:
    """The config without what further training may change."""
    values = config.to_complete_dict()
    for key in config.bottleneck.training_only:
        del values["bottleneck"][key]
    return values
