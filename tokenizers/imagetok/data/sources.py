"""Where the rows come from: files and folders here, or datasets on the Hub.

A source knows its splits by name and loads one when it is asked for. Names are looked up in this
order: a file or folder that exists, then the Hub.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasets import (
    Dataset,
    DatasetBuilder,
    DatasetDict,
    ReadInstruction,
    concatenate_datasets,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)

from imagetok.data.apart import has_many_files, kind_apart, kind_of, load_apart
from imagetok.data.dataset_ref import DatasetRef
from imagetok.errors import DataError, ImagetokError
from imagetok.hub.address import is_commit

FORMS = (
    "a folder of pictures, of zip archives of pictures, or of parquet, arrow or tar (WebDataset) "
    "files, one such file, a folder written by save_to_disk, the name of a dataset on the Hub, "
    "builtin:shapes or builtin:digits"
)
_FORMATS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
"""What `datasets` calls the kinds of files that hold rows, by the ends of their names."""
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_LONGEST_HUB_NAME = 200
_FILE_KINDS = (
    *("arrow", "audiofolder", "csv", "hdf5", "imagefolder", "json", "pandas", "parquet", "text"),
    *("videofolder", "webdataset", "xml"),
)
"""What `datasets` takes for kinds of files in the current folder, not for names on the Hub."""


@dataclass(frozen=True)
class Source:
    """A dataset whose splits are loaded when they are taken.

    Attributes:
        lengths: Number of rows of each split.
        load: Gives the split of a name.
        identity: What fixes the content of every row, where that is known without reading it.
    """

    lengths: Mapping[str, int]
    load: Callable[[str], Dataset]
    identity: str | None = None


@dataclass(frozen=True)
class DatasetLocation:
    """Where a dataset that is not built in is found.

    Attributes:
        failure: What to say when it cannot be read.
        root: The file or folder on this machine; None for a dataset on the Hub.
        is_saved: Whether the folder was written by `save_to_disk`.
        arguments: Otherwise those of `load_dataset`.
    """

    failure: str
    root: Path | None = None
    is_saved: bool = False
    arguments: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def revision(self) -> str | None:
        """Commit, branch or tag of a dataset on the Hub; None is its main branch."""
        return self.arguments.get("revision")

    def pin(self, cache_dir: str | None) -> DatasetLocation:
        """The same location, of a dataset on the Hub at the commit that it is at now.

        However often it is read then, and whatever is pushed meanwhile, the rows are the same.

        Raises:
            DataError: It cannot be read; or the Hub is out of reach, and the commit that is asked
                for is not the one that `datasets` has in its cache.
        """
        if self.root is not None:
            return self
        commit = self.builder(cache_dir).hash
        if not is_commit(commit):
            return self
        if is_commit(self.revision) and commit != self.revision:
            raise DataError(
                f"{self.failure}: the Hub cannot be reached, and in the cache lies commit {commit} "
                f"in place of {self.revision}"
            )
        return replace(self, arguments={**self.arguments, "revision": commit})

    def load(self, cache_dir: str | None) -> DatasetDict:
        """Load all splits, converting files to Arrow in the cache where that is needed.

        Raises:
            DataError: They cannot be read.
        """
        with reading(self.failure):
            if self._has_many_files:
                return load_apart(self.arguments, cache_dir)
            if not self.is_saved:
                return load_dataset(**self.arguments, cache_dir=cache_dir)
            saved = load_from_disk(str(self.root))
            if isinstance(saved, DatasetDict):
                return saved
            return DatasetDict({_split_of(saved): saved})

    def kind(self, cache_dir: str | None) -> str:
        """How the pictures lie: `saved`, in `files`, in `archives` of files, or in files of `rows`.

        Raises:
            DataError: It cannot be read.
        """
        if self.is_saved:
            return "saved"
        if self._has_many_files:
            with reading(self.failure):
                return kind_apart(self.arguments, cache_dir)
        return kind_of(self.builder(cache_dir))

    def is_ready(self, cache_dir: str | None) -> bool:
        """Whether its rows are read one by one with no picture copied: saved, or in files here.

        Raises:
            DataError: It cannot be read.
        """
        return self.root is not None and self.kind(cache_dir) in ("saved", "files")

    def builder(self, cache_dir: str | None, **options: object) -> DatasetBuilder:
        """What streams the splits of a dataset that was not written by `save_to_disk`.

        Raises:
            DataError: It cannot be read.
        """
        with reading(self.failure):
            builder = load_dataset_builder(**self.arguments, **options, cache_dir=cache_dir)
        if hasattr(builder.config, "decode_num_threads"):
            # Of folders on the Hub it would decode pictures ahead, also where that is switched off.
            builder.config.decode_num_threads = 0
        return builder

    @property
    def _has_many_files(self) -> bool:
        return self.root is not None and not self.is_saved and has_many_files(self.root)


def take_split(source: Source, ref: DatasetRef) -> tuple[Dataset, str | None]:
    """Load a split, a slice of one, or a sum of these, as in `train[:90%]` and `train+test[5:]`.

    Args:
        source: Where to take it from.
        ref: Names the split.

    Returns:
        The rows in order, and their identity, where the source has one.

    Raises:
        DataError: The notation is not valid, there is no such split, or it has no rows.
    """
    parts, places = [], []
    for part, first, last in split_ranges(ref, source.lengths):
        if last > first:
            with reading(f"split '{part}' of '{ref.name}' cannot be read"):
                rows = source.load(part)
            parts.append(rows.select(range(first, last)))
            places.append(f"{part}[{first}:{last}]")
    if not parts:
        sizes = ", ".join(f"{key} ({length} rows)" for key, length in source.lengths.items())
        raise DataError(f"split '{ref.split}' of '{ref.name}' has no rows; its splits are: {sizes}")
    dataset = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    identity = None if source.identity is None else f"{source.identity} {'+'.join(places)}"
    return dataset, identity


def split_ranges(ref: DatasetRef, lengths: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """The parts of a sum of splits and slices.

    Args:
        ref: Its split is the sum.
        lengths: Number of rows of each split that there is.

    Returns:
        (split, first row, end) of each part.

    Raises:
        DataError: The notation is not valid or there is no such split.
    """
    try:
        parts = ReadInstruction.from_spec(ref.split).to_absolute(dict(lengths))
    except (ValueError, AssertionError, ArithmeticError):
        raise DataError(
            f"'{ref.name}' has no split '{ref.split}'; its splits are: {', '.join(lengths)} "
            "(slices of them, as in train[:100] and train[90%:], are taken too)"
        ) from None
    ends = [lengths[part.splitname] if part.to is None else part.to for part in parts]
    return [(part.splitname, part.from_ or 0, end) for part, end in zip(parts, ends, strict=True)]


def file_or_hub_source(ref: DatasetRef, cache_dir: str | None) -> Source:
    """The dataset of a path or of a name on the Hub.

    Args:
        ref: Which one; its name is a path or a name on the Hub.
        cache_dir: Where `datasets` keeps what it has read; None takes its own folder.

    Raises:
        DataError: There is nothing of that name, or it cannot be read.
    """
    splits = find_location(ref).load(cache_dir)
    lengths = {str(split): len(rows) for split, rows in splits.items()}
    return Source(lengths, lambda split: splits[split])


def find_location(ref: DatasetRef) -> DatasetLocation:
    """Where the dataset of a path or of a name on the Hub is; nothing is read.

    Raises:
        DataError: There is nothing of that name here and it is no name on the Hub, or `subset` or
            `revision` is given to what has none.
    """
    name, revision = ref.name, ref.revision
    path = os.path.expanduser(name)
    if name and os.path.exists(path):
        if revision is not None:
            raise DataError(
                f"'{name}' lies on this machine and has no revision '{revision}'; leave revision "
                "out"
            )
        return _find_local(name, Path(path), ref.subset)
    is_hub_name = _HUB_NAME.fullmatch(name) and len(name) <= _LONGEST_HUB_NAME
    if not is_hub_name or name in _FILE_KINDS or Path(name).suffix in _FORMATS:
        raise DataError(f"there is no file or folder '{name[:200]}'; a dataset is {FORMS}")
    return DatasetLocation(
        f"'{name}' is no file or folder here, and no dataset on the Hub that can be read",
        arguments={"path": name, "name": ref.subset, "revision": revision},
    )


def _find_local(name: str, path: Path, subset: str | None) -> DatasetLocation:
    is_saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
    if subset is not None and (is_saved or path.is_file()):
        raise DataError(f"'{name}' has no subset '{subset}'; leave subset out")
    if is_saved:
        failure = f"'{name}' was written by save_to_disk and has no rows or cannot be read"
        return DatasetLocation(failure, path, is_saved=True)
    path = path.resolve()
    if path.is_file():
        if path.suffix not in _FORMATS:
            known = ", ".join(_FORMATS)
            raise DataError(
                f"'{name}' is a file of another kind than {known}; a dataset is {FORMS}"
            )
        kind = _FORMATS[path.suffix]
        arguments: dict[str, str | None] = {"path": kind, "data_files": glob.escape(str(path))}
        return DatasetLocation(
            f"'{name}' cannot be read as a {kind} file", path, arguments=arguments
        )
    if glob.has_magic(str(path)):
        raise DataError(
            f"the path of '{name}' has one of the characters * ? [, which are read as a pattern; "
            "rename the folder"
        )
    failure = f"'{name}' holds no pictures, parquet files or other data that can be read"
    return DatasetLocation(failure, path, arguments={"path": str(path), "name": subset})


def _split_of(dataset: Dataset) -> str:
    """The split that a saved dataset says it is; `train` where it is none or a slice of one."""
    split = str(dataset.split or "")
    return split if re.fullmatch(r"\w+", split) else "train"


@contextmanager
def reading(message: str) -> Iterator[None]:
    """Replace whatever the readers raise by a `DataError` with `message` and the reason."""
    try:
        yield
    except (ImagetokError, MemoryError):
        raise
    except Exception as error:  # datasets, pyarrow, fsspec, httpx and the Hub's client all raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"{message}: {reason}") from error
