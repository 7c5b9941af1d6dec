"""What a dataset holds, told before anything is drawn, downloaded or converted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datasets import ClassLabel, Features

from imagetok.data.dataset_location import find_location
from imagetok.data.evaluation_data import name_evaluation_split
from imagetok.data.holdout import divided_names
from imagetok.data.image_rows import open_rows
from imagetok.data.image_stream import StreamedFiles
from imagetok.data.source import open_source, split_ranges
from imagetok.dataset_ref import DatasetRef
from imagetok.run_config import RunConfig


@dataclass(frozen=True)
class DataSurvey:
    """What a dataset holds.

    Attributes:
        splits: Names of its splits.
        rows: Rows of the split that was asked for; None where only reading all of it tells.
        image_column: Column of the images; None for a built-in dataset.
        labels: Names of the classes; empty where there is no column of labels.
    """

    splits: Sequence[str]
    rows: int | None
    image_column: str | None
    labels: Sequence[str] = ()


def survey_data(ref: DatasetRef) -> DataSurvey:
    """Open a dataset as far as that writes nothing, and say what it holds.

    Raises:
        DataError: The dataset, the split or the column cannot be used.
    """
    if ref.is_builtin:
        return _survey_builtin(ref)
    location = find_location(ref)
    if location.is_ready(None):
        rows = open_rows(ref)
        splits = divided_names(ref, list(open_source(ref, None).lengths))
        labels = _labels(rows.dataset.features)
        return DataSurvey(splits, len(rows), rows.image_column, labels)
    files = StreamedFiles(ref, location, None)
    # How many rows there are is not known, but it takes no more than names to tell the splits.
    (name, *_), *_ = split_ranges(ref, dict.fromkeys(files.splits, 1))
    return DataSurvey(files.splits, None, files.find_column(name), _labels(files.features(name)))


def evaluation_split(config: RunConfig) -> str:
    """The split that a run is evaluated on, found without converting anything.

    Raises:
        DataError: There is none, or the dataset cannot be opened.
    """
    streamed = {} if config.data.stratify else {"streaming": True}
    data = config.data.model_copy(update=streamed)
    split = name_evaluation_split(config.model_copy(update={"data": data})).data.evaluation_split
    assert split is not None
    return split


def _survey_builtin(ref: DatasetRef) -> DataSurvey:
    lengths = open_source(ref, None).lengths
    splits = divided_names(ref, list(lengths))
    if ref.holds_out:
        return DataSurvey(splits, None, None)
    return DataSurvey(splits, sum(b - a for _, a, b in split_ranges(ref, lengths)), None)


def _labels(features: Features) -> Sequence[str]:
    """Names of the classes of the first column of labels."""
    found = [feature.names for feature in features.values() if isinstance(feature, ClassLabel)]
    return found[0] if found else ()
