"""Tokenized datasets: folders of parquet files that a job fills, each row exactly once.

    Job --JobFolder--> units --UnitWriter--> shards --finalize--> manifest and card
                                             shards --TokenDataset--> batches of ids

Any number of processes fill a folder together without talking to each other; see
`imagetok.shards.job_folder`. `datasets.load_dataset` reads it as well. Names are imported when they
are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagetok.shards.job import Job, read_job
    from imagetok.shards.job_folder import JobFolder
    from imagetok.shards.manifest import Manifest, finalize, read_manifest
    from imagetok.shards.shard_schema import RESERVED, ShardSchema
    from imagetok.shards.token_dataset import TokenDataset, TokenLoader
    from imagetok.shards.token_layout import TokenLayout
    from imagetok.shards.token_repository import push_dataset
    from imagetok.shards.unit_writer import UnitWriter
    from imagetok.shards.verification import Report, verify

_HOMES = {
    "Job": "job",
    "JobFolder": "job_folder",
    "Manifest": "manifest",
    "RESERVED": "shard_schema",
    "Report": "verification",
    "ShardSchema": "shard_schema",
    "TokenDataset": "token_dataset",
    "TokenLayout": "token_layout",
    "TokenLoader": "token_dataset",
    "UnitWriter": "unit_writer",
    "finalize": "manifest",
    "push_dataset": "token_repository",
    "read_job": "job",
    "read_manifest": "manifest",
    "verify": "verification",
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
