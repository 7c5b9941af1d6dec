"""Tokenized datasets: folders of parquet files that a job fills, once a row.

    Job --JobFolder--> units --UnitWriter--> shards --finalize--> manifest and card
                                             shards --TokenDataset--> batches of ids

Any number of processes fill a folder together, without talking to each other; see
`imagetok.shards.folder`. `datasets.load_dataset` reads it as well. Names are imported when they
are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagetok.shards.folder import JobFolder, read_job
    from imagetok.shards.job import Job
    from imagetok.shards.layout import TokenLayout
    from imagetok.shards.loading import TokenLoader
    from imagetok.shards.manifest import Manifest, finalize, read_manifest
    from imagetok.shards.pushing import push_dataset
    from imagetok.shards.reading import TokenDataset
    from imagetok.shards.schema import RESERVED, ShardSchema
    from imagetok.shards.verifying import Report, verify
    from imagetok.shards.writing import UnitWriter

_HOMES = {
    "Job": "job",
    "JobFolder": "folder",
    "Manifest": "manifest",
    "RESERVED": "schema",
    "Report": "verifying",
    "ShardSchema": "schema",
    "TokenDataset": "reading",
    "TokenLayout": "layout",
    "TokenLoader": "loading",
    "UnitWriter": "writing",
    "finalize": "manifest",
    "push_dataset": "pushing",
    "read_job": "folder",
    "read_manifest": "manifest",
    "verify": "verifying",
}

__all__ = [
    "RESERVED",
    "Job",
    "JobFolder",
    "Manifest",
    "Report",
    "ShardSchema",
    "TokenDataset",
    "TokenLayout",
    "TokenLoader",
    "UnitWriter",
    "finalize",
    "push_dataset",
    "read_job",
    "read_manifest",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'imagetok.shards' has no attribute '{name}'")
    return getattr(import_module(f"imagetok.shards.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
