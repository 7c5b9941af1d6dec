"""What a training run is: the tokenizer, its data, and how it is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from imagetok.config.optimization import (
    Count,
    CountOrNone,
    Decay,
    OptimizerConfig,
    Scheduled,
    least_value,
)
from imagetok.config.recipe import read_recipe
from imagetok.config.registry import PartField
from imagetok.config.strict_config import Config
from imagetok.dataset_ref import DatasetRef, ReadingConfig
from imagetok.images import MAX_PIXELS, MOST_PIXELS
from imagetok.objectives import ObjectiveConfig
from imagetok.tokenizer_config import TokenizerConfig

Fraction = Annotated[float, Field(ge=0, le=1)]
PixelLimit = Annotated[int, Field(ge=1, le=MOST_PIXELS)]

DEFAULT_LANES = 8

RESERVED_NAMES = frozenset({"model", "average", "optimizer", "data", "tokenizer"})
"""Names in checkpoints and logs that no objective can have."""


class DataConfig(ReadingConfig):
    """The images of a run.

    Attributes:
        name: `builtin:shapes`, `builtin:digits` (both with options, as in
            `builtin:shapes?size=128&count=5000`), a dataset on the Hub, a folder of images, of
            parquet files or of `save_to_disk`.
        subset: Configuration name of a dataset that has several.
        revision: Commit, branch or tag of a dataset on the Hub.
        split: Split to train on.
        evaluation_split: Split to validate and evaluate on. None takes `holdout` where rows are
            held out, otherwise the one that there is of `test` and `validation`; a run records
            which it was.
        image_column: Column of the images; None finds the one with an Image feature.
        crop_scale: Training crops have the shape of `image_size`; their side is drawn from this
            range of shares of the largest one that fits. None takes the evaluation transform's
            centre crop.
        flip: Mirror half of the training images.
        num_workers: Processes per rank that load images; 0 loads in a thread of the training
            process.
        streaming: Read the files in sequence instead of row by row: nothing is downloaded or
            converted beforehand.
        lanes: Number of shuffle streams, which read a streamed dataset side by side; a multiple of
            the number of ranks that divides the batch. None takes the greatest divisor of the batch
            that divides 8.
        window: Size of the shuffle buffer of a streamed dataset in images, over all shuffle
            streams.
        max_error_rate: Largest share of rows that cannot be read; each is replaced by another.
        max_pixels: Most pixels of an image; a row with more cannot be read.

    `split_dirs`, `labels`, `metadata`, `sidecars`, `holdout`, `stratify` and `holdout_salt` are
    those of `DatasetRef`.
    """

    later_keys: ClassVar[frozenset[str]] = ReadingConfig.later_keys | {"max_pixels"}

    name: Annotated[str, Field(min_length=1)]
    subset: str | None = None
    revision: str | None = None
    split: str = "train"
    evaluation_split: str | None = None
    image_column: str | None = None
    crop_scale: tuple[Fraction, Fraction] | None = None
    flip: bool = False
    num_workers: Annotated[int, Field(ge=0, le=256)] = 0
    streaming: bool = False
    lanes: Count | None = None
    window: Count = 1024
    max_error_rate: Fraction = 0.01
    max_pixels: PixelLimit = MAX_PIXELS

    @model_validator(mode="after")
    def _crop_scale_is_a_range(self) -> Self:
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1]:
            raise ValueError(
                f"crop_scale {self.crop_scale} is not a range (low, high) within (0, 1]"
            )
        return self

    @model_validator(mode="after")
    def _reading_is_consistent(self) -> Self:
        self.ref(self.split)
        return self

    def ref(self, split: str) -> DatasetRef:
        """A split of the dataset."""
        return DatasetRef(
            self.name,
            split,
            self.subset,
            self.revision,
            self.image_column,
            self.streaming,
            **self.reading(),
        )


class TrainConfig(Config):
    """How a tokenizer is trained.

    Attributes:
        steps: Optimizer steps.
        batch_size: Images per step, over all ranks and micro-batches.
        accumulation: Micro-batches per step.
        seed: Decides initial weights, order, augmentation and noise.
        precision: Precision of the networks; bottleneck and losses stay in float32.
        optimizer: AdamW and its learning rate.
        loss_weights: Weight of each `loss/...` term, a number or a schedule; a term that the
            model yields and that is not named has weight 1.
        temperature: Temperature of the Gumbel-softmax, a number or a schedule.
        ema_decay: Decay of the averaged weights that are evaluated and exported; None exports the
            trained ones.
        evaluate_every: Steps between validations; 0 validates at the end only.
        checkpoint_every: Steps between checkpoints; 0 writes the last one only.
        samples_every: Steps between sample grids; 0 draws the last one only.
        keep_last: Checkpoints kept.
        evaluation_images: Most images of the validation split that are read while training.
        usage_warning: Codebook usage over the validation images under which a warning is given.
        init_from: Saved tokenizer to start from, instead of from random weights: its folder, or
            its repository `user/name` on the Hub.
        freeze: Parts that keep their weights.
        gradient_checkpointing: Compute activations again in the backward pass instead of keeping
            them: less memory, about a third more time.
        trackers: Where figures and images are logged besides the run's folder.
        project: What trackers call the project.
        objectives: What is minimised besides the tokenizer's own terms, one of each type.
    """

    later_keys: ClassVar[frozenset[str]] = frozenset({"objectives"})

    steps: Count
    batch_size: Annotated[int, Field(ge=1, le=2**20)] = 32
    accumulation: Annotated[int, Field(ge=1, le=2**16)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    optimizer: OptimizerConfig = OptimizerConfig()
    loss_weights: dict[str, Scheduled] = Field(default_factory=dict)
    temperature: Scheduled = 1.0
    ema_decay: Decay | None = None
    evaluate_every: CountOrNone = 0
    checkpoint_every: CountOrNone = 0
    samples_every: CountOrNone = 0
    keep_last: Annotated[int, Field(ge=1, le=1000)] = 2
    evaluation_images: Count = 1000
    usage_warning: Fraction = 0.25
    init_from: str | None = None
    freeze: tuple[Literal["encoder", "bottleneck", "decoder"], ...] = ()
    gradient_checkpointing: bool = False
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    project: str = "imagetok"
    objectives: tuple[Annotated[ObjectiveConfig, PartField()], ...] = ()

    @model_validator(mode="after")
    def _objectives_have_names_of_their_own(self) -> Self:
        types = [objective.type for objective in self.objectives]
        if len(set(types)) < len(types):
            raise ValueError(f"objectives names a type twice: {', '.join(types)}; keep one of each")
        if taken := RESERVED_NAMES.intersection(types):
            raise ValueError(
                f"objectives names {', '.join(sorted(taken))}, which is what a checkpoint calls "
                "something else; rename the objective's type"
            )
        return self

    @model_validator(mode="after")
    def _temperature_is_positive(self) -> Self:
        if least_value(self.temperature) <= 0:
            raise ValueError(f"temperature must stay positive, got {least_value(self.temperature)}")
        return self

    @model_validator(mode="after")
    def _frozen_parts_have_learnt(self) -> Self:
        if len(set(self.freeze)) < len(self.freeze):
            raise ValueError(f"freeze names a part twice: {', '.join(self.freeze)}")
        if self.freeze and self.init_from is None:
            raise ValueError(
                f"freeze=[{', '.join(self.freeze)}] would keep random weights; name the saved "
                "tokenizer to start from as init_from"
            )
        return self

    @model_validator(mode="after")
    def _micro_batches_are_equal(self) -> Self:
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} is not divisible by accumulation {self.accumulation}"
            )
        return self


class RunConfig(Config):
    """A recipe: everything that decides a run except the machine it runs on."""

    tokenizer: TokenizerConfig
    data: DataConfig
    train: TrainConfig

    @property
    def num_lanes(self) -> int:
        """Number of shuffle streams: `data.lanes`, or a default that follows from the batch."""
        return self.data.lanes or math.gcd(self.train.batch_size, DEFAULT_LANES)

    @model_validator(mode="after")
    def _lanes_divide_the_batch(self) -> Self:
        if self.train.batch_size % self.num_lanes:
            raise ValueError(
                f"data.lanes {self.num_lanes} does not divide train.batch_size "
                f"{self.train.batch_size}; make one a multiple of the other"
            )
        return self


def load_recipe(
    recipe: str,
    overrides: Sequence[str] = (),
    read_saved: Callable[[str], TokenizerConfig] | None = None,
) -> RunConfig:
    """Read a recipe and apply overrides.

    Args:
        recipe: Name of a recipe of the package, or path of a YAML file.
        overrides: `key.path=value` each, the value as in YAML: `train.steps=1e4`,
            `data.crop_scale=[0.8, 1.0]`, `train.optimizer.lr={type: cosine, ...}`; text is taken
            as it stands: `data.name=photos #2`.
        read_saved: Gives the config of the tokenizer that `train.init_from` names, which takes the
            place of a `tokenizer` section that the recipe lacks; overrides lie on top. With None
            the section is required.

    Raises:
        ConfigError: Unknown recipe, malformed override, or a config that does not validate.
        UnreadableFileError: The file cannot be read.
    """
    return read_recipe(recipe, overrides, RunConfig, read_saved)
