"""The card of a tokenized dataset: README.md, with settings for `datasets` and text for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datasets import ClassLabel, DatasetInfo
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo

from imagetok.cards.template import UNKNOWN_LICENSE, render
from imagetok.shards.job import DATA, ERRORS, SHARD_SUFFIX, Job
from imagetok.shards.shard_scan import Totals

_COLUMNS = {
    "grid_h": "rows of the image's grid of ids",
    "grid_w": "columns of the image's grid of ids",
    "file": "file of the source that holds the image",
    "height": "the image's own height in pixels",
    "width": "the image's own width in pixels",
}


def render_card(job: Job, totals: Totals, fingerprint: str, repo_id: str | None = None) -> str:
    """Render README.md from the job and figures of its manifest alone.

    Args:
        job: The job.
        totals: Sums over its shards.
        fingerprint: Hash of the job and of all shards.
        repo_id: Repository on the Hub that the card's code reads from; None makes it read from the
            folder that holds the card.
    """
    source = {
        "dataset": job.input.name,
        "subset": job.input.subset,
        "revision": job.input.revision,
        "split": job.input.split,
        "image column": job.input.image_column,
        "first rows": job.input.limit,
        "fingerprint": job.input.fingerprint,
    }
    return render(
        "dataset_card.md.jinja",
        _metadata(job, totals, fingerprint),
        job=job,
        columns=list(_columns(job)),
        source=source,
        totals=totals,
        errors_folder=ERRORS,
        repo_id=repo_id,
    )


def _metadata(job: Job, totals: Totals, fingerprint: str) -> dict[str, Any]:
    split = SplitInfo(job.split_name, num_bytes=totals.bytes, num_examples=totals.rows)
    info = DatasetInfo(
        features=job.schema.features,
        splits=SplitDict({job.split_name: split}),
        download_size=totals.bytes,
        dataset_size=totals.bytes,
    )
    files = {"split": job.split_name, "path": f"{DATA}/**/*{SHARD_SUFFIX}"}
    head: dict[str, Any] = {
        "license": UNKNOWN_LICENSE,
        "tags": ["imagetok", "image-tokens"],
        "configs": [{"config_name": "default", "data_files": [files]}],
    }
    DatasetInfosDict(default=info).to_dataset_card_data(head)
    # `datasets` tells what it has in its cache by the folder's name and by what stands here, not by
    # the files: without this it would take other ids of as many images for the same.
    head["dataset_info"]["description"] = f"imagetok {fingerprint}"
    return head


def _columns(job: Job) -> Iterator[tuple[str, str, str]]:
    """Name, type and contents of each column."""
    texts = _COLUMNS | {
        "ids": _ids_words(job),
        "row": "position of the image in its file"
        if job.schema.by_file
        else "position in the source",
    }
    for name, feature in job.schema.features.items():
        text = "from the source" if name in job.schema.kept else texts[name]
        kind = (
            "ClassLabel" if isinstance(feature, ClassLabel) else job.schema.arrow.field(name).type
        )
        yield name, str(kind), text


def _ids_words(job: Job) -> str:
    """How the ids of a row are ordered."""
    schema = job.schema
    sides = ("grid_h", "grid_w") if schema.grid is None else tuple(map(str, schema.grid))
    shape = sides if schema.depth == 1 else (*sides, str(schema.depth))
    words = f"{' x '.join(shape)} ids"
    if len(sides) > 1:
        words += ", row by row from the top left"
    if schema.depth > 1:
        words += f", the {schema.depth} codes of a position one after another"
    return words
