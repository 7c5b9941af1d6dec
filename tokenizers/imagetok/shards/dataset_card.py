"""The card of a tokenized dataset: README.md, with settings for `datasets` and text for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, DatasetInfo
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo

from imagetok.cards.template import UNKNOWN_LICENSE, render
from imagetok.shards.job import DATA, ERRORS, SHARD_SUFFIX, Job
from imagetok.shards.shard_scan import ChangedIds, Totals

_COLUMNS = {
    "grid_h": "rows of the image's grid of ids",
    "grid_w": "columns of the image's grid of ids",
    "file": "file of the source that holds the image",
    "height": "the image's own height in pixels",
    "width": "the image's own width in pixels",
}


@dataclass(frozen=True)
class CardSplit:
    """A split as a card tells of it.

    Attributes:
        job: Its job.
        totals: Sums over its shards.
        fingerprint: Hash of the job and of all shards.
        changed_ids: What a narrow dtype changed in a sample, if that was measured.
    """

    job: Job
    totals: Totals
    fingerprint: str
    changed_ids: ChangedIds | None = None


def render_card(splits: Sequence[CardSplit], repo_id: str | None = None) -> str:
    """Render README.md from jobs and figures of their manifests alone.

    Args:
        splits: The splits, of one tokenizer and with the same columns; the card's code reads the
            first.
        repo_id: Repository on the Hub that the card's code reads from; None makes it read from the
            folder that holds the card.
    """
    job = splits[0].job
    return render(
        "dataset_card.md.jinja",
        _metadata(splits, is_pushed=repo_id is not None),
        job=job,
        columns=list(_columns(job)),
        names=[split.job.split_name for split in splits] if len(splits) > 1 else [],
        source=_source([split.job for split in splits]),
        totals=[split.totals for split in splits],
        dtypes=[split.job.numerics.dtype for split in splits],
        changed_ids=[split.changed_ids for split in splits],
        errors_folder=ERRORS,
        repo_id=repo_id,
    )


def _source(jobs: Sequence[Job]) -> dict[str, list[object]]:
    """What is known of the inputs: the values of all splits by title, where any has one."""
    titles = {
        "dataset": "name",
        "subset": "subset",
        "revision": "revision",
        "split": "split",
        "share held out": "holdout",
        "salt of the holdout": "holdout_salt",
        "image column": "image_column",
        "first rows": "limit",
        "fingerprint": "fingerprint",
    }
    rows = {
        title: [getattr(job.input, key) or None for job in jobs] for title, key in titles.items()
    }
    return {title: row for title, row in rows.items() if any(value is not None for value in row)}


def _metadata(splits: Sequence[CardSplit], is_pushed: bool) -> dict[str, Any]:
    totals = {split.job.split_name: split.totals for split in splits}
    size = sum(each.bytes for each in totals.values())
    info = DatasetInfo(
        features=splits[0].job.schema.features,
        splits=SplitDict(
            {
                name: SplitInfo(name, num_bytes=each.bytes, num_examples=each.rows)
                for name, each in totals.items()
            }
        ),
        download_size=size,
        dataset_size=size,
    )
    # In a repository by the names of the splits, because another may be on its way there.
    start = "{}-" if is_pushed else ""
    files = [
        {"split": name, "path": f"{DATA}/**/{start.format(name)}*{SHARD_SUFFIX}"} for name in totals
    ]
    head: dict[str, Any] = {
        "license": UNKNOWN_LICENSE,
        "tags": ["imagetok", "image-tokens"],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    DatasetInfosDict(default=info).to_dataset_card_data(head)
    # `datasets` tells what it has in its cache by the folder's name and by what stands here, not by
    # the files: without this it would take other ids of as many images for the same.
    fingerprints = " ".join(split.fingerprint for split in splits)
    head["dataset_info"]["description"] = f"imagetok {fingerprints}"
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
