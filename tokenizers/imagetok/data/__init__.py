"""From a dataset's name to training and evaluation batches.

    name, split --open_images--> ImageRows: a Hugging Face dataset, pictures not decoded
         |                            |
         |  EpochOrder: sample number -> (epoch, row)          Preprocessor
         |  TrainTransform: picture, key -> pixels                  |
         v                            v                             v
    SampleBatches ------------> TrainingImages            evaluation_batches

What a training sample looks like is a function of (seed, sample number) alone.
"""

from imagetok.data.batches import TrainingImages, TrainingSample, evaluation_batches
from imagetok.data.order import EpochOrder, SampleBatches, fixed_rows
from imagetok.data.rows import ImageRows, open_images
from imagetok.data.transforms import TrainTransform

__all__ = [
    "EpochOrder",
    "ImageRows",
    "SampleBatches",
    "TrainTransform",
    "TrainingImages",
    "TrainingSample",
    "evaluation_batches",
    "fixed_rows",
    "open_images",
]
