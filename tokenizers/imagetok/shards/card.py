"""The card of a tokenized dataset: a README.md with settings for `datasets` and text for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from datasets import ClassLabel, DatasetInfo
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo

from imagetok.shards.job import Job
from imagetok.shards.paths import DATA, ERRORS, SHARD_SUFFIX
from imagetok.shards.records import Manifest, Totals

_COLUMNS = {
    "grid_h": "rows of the picture's grid of ids",
    "grid_w": "columns of the picture's grid of ids",
    "file": "file of the source that the picture is in",
    "height": "the picture's own height in pixels",
    "width": "the picture's own width in pixels",
}


def render_card(job: Job, manifest: Manifest) -> str:
    """The text of README.md, from nothing but the job and what came of it."""
    head = yaml.safe_dump(_front_matter(job, manifest), sort_keys=False, allow_unicode=True)
    size = job.tokenizer.codebook_size
    parts = [
        f"---\n{head}---",
        f"# Image tokens of {_code(job.input.name)}",
        f"Every row is a picture as the ids of an image tokenizer, integers in [0, {size}). They "
        "were made with imagetok, which turns them back into pictures.",
        *_section("Columns", ("column", "type", "holds"), _columns(job)),
        *_section("Tokenizer", ("", ""), _tokenizer(job)),
        *_section("Source", ("", ""), _source(job)),
        *_section("Counts", ("", ""), _counts(manifest.totals)),
        _reading(job),
    ]
    return "\n\n".join(parts)


def _front_matter(job: Job, manifest: Manifest) -> dict[str, Any]:
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
        "tags": ["imagetok"],
        "configs": [{"config_name": "default", "data_files": [files]}],
    }
    DatasetInfosDict(default=info).to_dataset_card_data(head)
    # `datasets` knows what it has in its cache by the folder's name and by what stands here, not by
    # the files: without this it would take other ids of as many pictures for the same.
    head["dataset_info"]["description"] = f"imagetok {manifest.fingerprint}"
    return head


def _columns(job: Job) -> Iterator[tuple[str, str, str]]:
    grid = job.schema.grid
    order = "row by row from the top left"
    texts = _COLUMNS | {
        "ids": f"{grid[0]} x {grid[1]} ids, {order}" if grid else f"grid_h x grid_w ids, {order}",
        "row": "place of the picture in its file" if job.schema.by_file else "place in the source",
    }
    for name, feature in job.schema.features.items():
        text = "from the source" if name in job.schema.kept else texts[name]
        kind = (
            "ClassLabel" if isinstance(feature, ClassLabel) else job.schema.arrow.field(name).type
        )
        yield _code(name), _code(kind), text


def _tokenizer(job: Job) -> Iterator[tuple[str, str]]:
    source = job.tokenizer
    yield "name", _code(source.name)
    if source.revision is not None:
        yield "revision", _code(source.revision)
    yield "fingerprint", _code(source.fingerprint)
    yield "codebook", f"{source.codebook_size} codes"
    if job.output.resize == "crop":
        height, width = source.image_size
        yield "pictures", f"centre crops, resized to {height} x {width} pixels"
    else:
        factor = source.image_size[0] // source.grid_size[0]
        yield "pictures", f"sides rounded down to multiples of {factor} pixels"


def _source(job: Job) -> Iterator[tuple[str, str]]:
    told: Mapping[str, str | int | None] = {
        "dataset": job.input.name,
        "subset": job.input.subset,
        "revision": job.input.revision,
        "split": job.input.split,
        "image column": job.input.image_column,
        "first rows": job.input.limit,
        "fingerprint": job.input.fingerprint,
    }
    yield from ((name, _code(value)) for name, value in told.items() if value is not None)


def _counts(totals: Totals) -> Iterator[tuple[str, str]]:
    yield "pictures", f"{totals.rows:,}"
    if totals.refused:
        yield "unreadable pictures", f"{totals.refused:,}, listed with reasons in `{ERRORS}/`"
    yield "ids", f"{totals.tokens:,}"
    yield "shards", f"{totals.shards:,}"
    yield "bytes", f"{totals.bytes:,}"


def _reading(job: Job) -> str:
    split, name = json.dumps(job.split_name), json.dumps(job.tokenizer.name, ensure_ascii=False)
    grid = "" if job.schema.grid else ', grid=(row["grid_h"], row["grid_w"])'
    return f"""## Reading

```python
from datasets import load_dataset
from imagetok import ImageTokenizer

tokens = load_dataset("path/of/this/folder", split={split})
tokenizer = ImageTokenizer.from_pretrained({name})
row = tokens[0]
picture = tokenizer.decode(row["ids"]{grid})
```

For training, shuffled, divided over ranks and resumable in the middle of an epoch:

```python
from imagetok.shards import TokenDataset, TokenLoader

tokens = TokenDataset("path/of/this/folder", split={split}, seed=0, batch_size=64)
for batch in TokenLoader(tokens, num_workers=4):
    batch["ids"]
```
"""


def _section(title: str, head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    lines = [head, ("---",) * len(head), *rows]
    yield f"## {title}"
    yield "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(value: object) -> str:
    """Text as code inside a table; what would end either is replaced."""
    return f"`{' '.join(str(value).split()).replace('`', chr(39)).replace('|', '/')}`"
