"""The card of a tokenized dataset: README.md, with settings for `datasets` and text for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from datasets import ClassLabel, DatasetInfo
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo

from imagetok.cards.markdown import code, python_block, python_text, table
from imagetok.cards.template import UNKNOWN_LICENSE, lay_out, licence_words
from imagetok.shards.job import Job
from imagetok.shards.shard_paths import DATA, ERRORS, SHARD_SUFFIX

if TYPE_CHECKING:  # the manifest is finalized together with its card
    from imagetok.shards.manifest import Manifest, Totals

_COLUMNS = {
    "grid_h": "rows of the image's grid of ids",
    "grid_w": "columns of the image's grid of ids",
    "file": "file of the source that holds the image",
    "height": "the image's own height in pixels",
    "width": "the image's own width in pixels",
}
_LIMITATIONS = (
    "The ids mean something to one tokenizer alone, and keep of the images what it keeps; how much "
    "that is stands in its card and is not measured here. Whatever the images show, including "
    "people, can be seen in what the ids decode to. What the source lacks or favours, a model "
    "trained on the ids lacks or favours too."
)


def render_card(job: Job, manifest: Manifest, repo_id: str | None = None) -> str:
    """Render README.md from nothing but the job and what came of it.

    Args:
        job: The job.
        manifest: The manifest of its shards.
        repo_id: Repository on the Hub that the card's code reads from; None makes it read from the
            folder that holds the card.
    """
    size = job.tokenizer.codebook_size
    opening = (
        f"# Image tokens of {code(job.input.name)}",
        f"Every row is an image as the ids of an image tokenizer, integers in [0, {size}). They "
        "were made with imagetok, which turns them back into images.",
    )
    sections: dict[str, Iterable[str]] = {
        "Columns": [table(("column", "type", "holds"), _columns(job))],
        "Tokenizer": [table(("", ""), _tokenizer(job))],
        "Source": [table(("", ""), _source(job))],
        "Counts": [table(("", ""), _counts(manifest.totals))],
        "Reading": _reading(job, repo_id),
        "Limitations": [_LIMITATIONS],
        "Licence": [licence_words("ids", "source")],
    }
    return lay_out(_metadata(job, manifest), opening, sections)


def _metadata(job: Job, manifest: Manifest) -> dict[str, Any]:
    totals = manifest.totals
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
    head["dataset_info"]["description"] = f"imagetok {manifest.fingerprint}"
    return head


def _columns(job: Job) -> Iterator[tuple[str, str, str]]:
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
        yield code(name), code(kind), text


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


def _tokenizer(job: Job) -> Iterator[tuple[str, str]]:
    source = job.tokenizer
    yield "name", code(source.name)
    if source.revision is not None:
        yield "revision", code(source.revision)
    yield "fingerprint", code(source.fingerprint)
    if source.codebook_sizes is None:
        yield "codebook", f"{source.codebook_size} codes"
    else:
        sizes = ", ".join(map(str, source.codebook_sizes))
        yield "codebooks", f"{sizes} codes; a position has one of each"
    if job.output.resize == "crop":
        height, width = source.image_size
        yield "images", f"centre crops, resized to {height} x {width} pixels"
    else:
        factor = source.image_size[0] // source.grid_size[0]
        yield "images", f"sides rounded down to multiples of {factor} pixels"


def _source(job: Job) -> Iterator[tuple[str, str]]:
    entries: Mapping[str, str | int | None] = {
        "dataset": job.input.name,
        "subset": job.input.subset,
        "revision": job.input.revision,
        "split": job.input.split,
        "image column": job.input.image_column,
        "first rows": job.input.limit,
        "fingerprint": job.input.fingerprint,
    }
    yield from ((name, code(value)) for name, value in entries.items() if value is not None)


def _counts(totals: Totals) -> Iterator[tuple[str, str]]:
    yield "images", f"{totals.rows:,}"
    if totals.refused:
        yield "unreadable images", f"{totals.refused:,}, listed with reasons in `{ERRORS}/`"
    yield "ids", f"{totals.tokens:,}"
    yield "shards", f"{totals.shards:,}"
    yield "bytes", f"{totals.bytes:,}"


def _reading(job: Job, repo_id: str | None) -> Iterator[str]:
    split, name = python_text(job.split_name), python_text(job.tokenizer.name)
    revision = job.tokenizer.revision
    if repo_id is None:
        place = "folder"
        opening = ["from pathlib import Path", ""]
        naming = ["folder = str(Path.cwd())  # the folder of this card"]
    else:
        place, opening, naming = python_text(repo_id), [], []
    yield python_block(
        *opening,
        "from datasets import load_dataset",
        "",
        *naming,
        f"tokens = load_dataset({place}, split={split})",
        'ids = tokens[0]["ids"]',
    )
    yield "Back to images, with the tokenizer of the fingerprint above:"
    commit = "" if revision is None else f", revision={python_text(revision)}"
    yield python_block(
        "from imagetok import ImageTokenizer",
        "",
        f"tokenizer = ImageTokenizer.from_pretrained({name}{commit})",
        "row = tokens[0]",
        f'image = tokenizer.decode(row["ids"]{_grid_argument(job)})',
    )
    yield "For training, shuffled, divided over ranks and resumable in the middle of an epoch:"
    yield python_block(
        *opening,
        "from imagetok.shards import TokenDataset, TokenLoader",
        "",
        *naming,
        f"dataset = TokenDataset({place}, split={split}, seed=0, batch_size=64)",
        "for batch in TokenLoader(dataset, num_workers=4):",
        '    ids = batch["ids"]',
    )


def _grid_argument(job: Job) -> str:
    return "" if job.schema.grid else ', grid=(row["grid_h"], row["grid_w"])'
