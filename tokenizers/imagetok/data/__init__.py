"""From a dataset's name to training and evaluation batches.

    config --open_training--> TrainingData --feed--> each step's micro-batches, loaded ahead
           --open_evaluation--> ImageRows --evaluation_batches--> batches

Row by row (`EpochOrder`, `TrainingImages`):

    sample number --> (epoch, row) --TrainTransform--> pixels

In a stream (`PictureStream`, `Lane`):

    (seed, epoch) --> order of units --> lanes --> window --> draws

What a training sample looks like is a function of config and data alone.
"""

from imagetok.data.batches import TrainingBatch, evaluation_batches
from imagetok.data.dataset_ref import DatasetRef
from imagetok.data.evaluation import open_evaluation
from imagetok.data.feed import Feed, worded_error
from imagetok.data.order import EpochOrder, SampleBatches, fixed_rows
from imagetok.data.rows import ImageRows, open_images, open_rows
from imagetok.data.samples import TrainingImages, TrainingSample
from imagetok.data.streams import PictureStream, open_image_stream, open_stream
from imagetok.data.training import TrainingData, open_training
from imagetok.data.transforms import TrainTransform
from imagetok.data.unreadable import check_error_share, name_some

__all__ = [
    "DatasetRef",
    "EpochOrder",
    "Feed",
    "ImageRows",
    "PictureStream",
    "SampleBatches",
    "TrainTransform",
    "TrainingBatch",
    "TrainingData",
    "TrainingImages",
    "TrainingSample",
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
