"""From a dataset's name to training and evaluation batches.

    DatasetRef --open_training--> TrainingData --feed--> each step's micro-batches, loaded ahead
               --open_evaluation--> ImageRows --evaluation_batches--> batches

Row by row (`EpochOrder`, `TrainingImages`):

    sample number --> (epoch, row) --TrainTransform--> pixels

In a stream (`PictureStream`, `Lane`):

    (seed, epoch) --> order of units --> lanes --> window --> draws

What a training sample looks like is a function of config and data alone. Names are imported when
they are first used, so that a loading process imports only what it needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagetok.data.batches import TrainingBatch, evaluation_batches
    from imagetok.data.dataset_ref import DatasetRef
    from imagetok.data.evaluation import open_evaluation
    from imagetok.data.order import EpochOrder, SampleBatches, fixed_rows
    from imagetok.data.prefetcher import Prefetcher, Workers, worded_error
    from imagetok.data.rows import ImageRows, open_images, open_rows
    from imagetok.data.samples import TrainingImages, TrainingSample
    from imagetok.data.streams import PictureStream, open_image_stream, open_stream
    from imagetok.data.training_data import Feed, TrainingData, open_training
    from imagetok.data.transforms import TrainTransform
    from imagetok.data.unreadable import check_error_share, name_some

_HOMES = {
    "DatasetRef": "dataset_ref",
    "EpochOrder": "order",
    "Feed": "training_data",
    "ImageRows": "rows",
    "PictureStream": "streams",
    "Prefetcher": "prefetcher",
    "SampleBatches": "order",
    "TrainTransform": "transforms",
    "TrainingBatch": "batches",
    "TrainingData": "training_data",
    "TrainingImages": "samples",
    "TrainingSample": "samples",
    "Workers": "prefetcher",
    "check_error_share": "unreadable",
    "evaluation_batches": "batches",
    "fixed_rows": "order",
    "name_some": "unreadable",
    "open_evaluation": "evaluation",
    "open_image_stream": "streams",
    "open_images": "rows",
    "open_rows": "rows",
    "open_stream": "streams",
    "open_training": "training_data",
    "worded_error": "prefetcher",
}

__all__ = [
    "DatasetRef",
    "EpochOrder",
    "Feed",
    "ImageRows",
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
