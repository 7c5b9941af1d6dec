"""`verify`: whether a tokenized dataset is what its manifest says, whole and nothing besides.

    report = verify("tokens")
    report.is_sound                             # or, for people:
    print(report)                               # data/train-00003.parquet: row 52 is missing

Every shard and every list of unreadable rows is hashed, and every value is read, one row group at a
time: features, numbers of rows, range of the ids, and that each row of the input is there exactly
once, in the shard that it belongs to. Whether ids are those of their pictures, only encoding again
can tell.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagetok.files import TEMPORARY_PREFIX
from imagetok.shards.checking import Fault, ShardCheck
from imagetok.shards.manifest import Totals
from imagetok.shards.opening import TokenFolder, open_folder
from imagetok.shards.paths import CARD_FILE, JOB_FILE, MANIFEST_FILE


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        folder: The dataset.
        totals: What its manifest says that it holds.
        faults: All that is wrong; empty for a sound dataset.
    """

    folder: Path
    totals: Totals
    faults: tuple[Fault, ...]

    @property
    def is_sound(self) -> bool:
        """Whether there is no fault."""
        return not self.faults

    def __str__(self) -> str:
        if self.faults:
            return "\n".join(str(fault) for fault in self.faults)
        found = self.totals
        return f"{found.shards} shards with {found.rows} rows and {found.refused} refused: sound"


def verify(folder: str | os.PathLike[str]) -> Report:
    """Check every file of a tokenized dataset.

    Args:
        folder: A dataset with its manifest.

    Raises:
        InvalidTypeError: This is no path.
        UnreadableFileError: There is no manifest or job, or one that cannot be read.
        DataError: The manifest is of another job than the folder.
    """
    opened = open_folder(folder)
    checks, faults = _list_shards(opened)
    faults += [*_wrong_totals(opened), *_strangers(opened, checks)]
    for check in checks:
        faults += check.faults()
    return Report(opened.path, opened.manifest.totals, tuple(faults))


def _list_shards(opened: TokenFolder) -> tuple[list[ShardCheck], list[Fault]]:
    """The shards that job and manifest agree on, and where they do not."""
    job, records = opened.job, {shard.path: shard for shard in opened.manifest.shards}
    checks, faults = [], []
    for unit in range(job.num_units):
        part, more = 0, True
        while more:
            name = job.paths.shard(unit, part)
            more = job.paths.in_parts and job.paths.shard(unit, part + 1) in records
            if name in records:
                record = records.pop(name)
                checks.append(ShardCheck(opened.path, job, record, unit, part, is_last=not more))
            else:
                faults.append(Fault(name, "missing in the manifest, the job has this shard"))
            part += 1
    faults += [
        Fault(
            name, "the manifest lists it, but the job has no such shard, or lacks those before it"
        )
        for name in records
    ]
    if len(checks) + len(records) < len(opened.manifest.shards):
        faults.append(Fault(MANIFEST_FILE, "it lists a shard twice"))
    return checks, faults


def _wrong_totals(opened: TokenFolder) -> Iterator[Fault]:
    """Totals that are not the sums of what the manifest says of its shards."""
    found, shards = opened.manifest.totals, opened.manifest.shards
    sums = {
        name: sum(getattr(shard, name) for shard in shards)
        for name in ("rows", "refused", "tokens", "bytes")
    }
    sums |= {"rows_in": sums["rows"] + sums["refused"], "shards": len(shards)}
    for name, value in sums.items():
        if getattr(found, name) != value:
            yield Fault(
                MANIFEST_FILE, f"its total of {name} is {getattr(found, name)}, the sum is {value}"
            )


def _strangers(opened: TokenFolder, checks: Sequence[ShardCheck]) -> Iterator[Fault]:
    """Files that are not of the dataset; hidden ones of other programs are let be."""
    own = {JOB_FILE, MANIFEST_FILE, CARD_FILE, *(check.record.path for check in checks)}
    own |= {check.errors_path for check in checks if check.record.refused}
    for parent, folders, names in os.walk(opened.path):
        place = Path(parent).relative_to(opened.path)
        for name in folders:
            if name.startswith(TEMPORARY_PREFIX):
                yield Fault((place / name).as_posix(), "left behind by a process that was killed")
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = (place / name).as_posix()
            if not name.startswith(".") and file not in own:
                yield Fault(file, "it is not of the dataset")
