"""From a dataset's name to training and evaluation batches.

    DatasetRef --open_training--> TrainingData --feed--> each step's micro-batches, loaded ahead
               --open_evaluation--> ImageRows --evaluation_batches--> batches

Row by row (`EpochOrder`, `TrainingImages`):

    sample number --> (epoch, row) --TrainTransform--> pixels

In a stream (`ImageStream`, `ShuffleStream`):

    (seed, epoch) --> order of segments --> shuffle streams --> shuffle buffers --> draws

What a training sample looks like is a function of config and data alone. Names are imported when
they are first used, so that a loading process imports only what it needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from imagetok.dataset_ref import DatasetRef

if TYPE_CHECKING:
    from imagetok.data.evaluation_data import (
        evaluation_batches,
        name_evaluation_split,
        open_evaluation,
    )
    from imagetok.data.image_rows import ImageRows, open_images, open_rows
    from imagetok.data.image_stream import (
        ImageStream,
        PictureStream,
        open_image_stream,
        open_stream,
    )
    from imagetok.data.prefetcher import Prefetcher, Workers, worded_error
    from imagetok.data.sample_order import EpochOrder, SampleBatches, fixed_rows
    from imagetok.data.training_batch import TrainingBatch
    from imagetok.data.training_data import Feed, TrainingData, open_training
    from imagetok.data.training_images import TrainingImages, TrainingSample, TrainTransform
    from imagetok.data.unreadable_rows import check_error_share, name_some

_HOMES = {
    "EpochOrder": "sample_order",
    "Feed": "training_data",
    "ImageRows": "image_rows",
    "ImageStream": "image_stream",
    "PictureStream": "image_stream",
    "Prefetcher": "prefetcher",
    "SampleBatches": "sample_order",
    "TrainTransform": "training_images",
    "TrainingBatch": "training_batch",
    "TrainingData": "training_data",
    "TrainingImages": "training_images",
    "TrainingSample": "training_images",
    "Workers": "prefetcher",
    "check_error_share": "unreadable_rows",
    "evaluation_batches": "evaluation_data",
    "fixed_rows": "sample_order",
    "name_evaluation_split": "evaluation_data",
    "name_some": "unreadable_rows",
    "open_evaluation": "evaluation_data",
    "open_image_stream": "image_stream",
    "open_images": "image_rows",
    "open_rows": "image_rows",
    "open_stream": "image_stream",
    "open_training": "training_data",
    "worded_error": "prefetcher",
}

__all__ = [
    "DatasetRef",
    "EpochOrder",
    "Feed",
    "ImageRows",
    "ImageStream",
    "PictureStream",
    "Prefetcher",
    "SampleBatches",
    "TrainTransform",
    "TrainingBatch",
    "TrainingData",
    "TrainingImages",
    "TrainingSample",
    "Workers",
    "check_error_share",
    "evaluation_batches",
    "fixed_rows",
    "name_evaluation_split",
    "name_some",
    "open_evaluation",
    "open_image_stream",
    "open_images",
    "open_rows",
    "open_stream",
    "open_training",
    "worded_error",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
