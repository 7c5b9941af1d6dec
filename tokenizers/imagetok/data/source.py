"""Where the rows of a dataset come from: built in, a file or folder here, or the Hub.

    DatasetRef --open_source--> Source: its splits by name --take_split--> rows
               --find_location--> DatasetLocation, for what is not built in

Names are looked up in this order: a name that begins with `builtin:`, a file or folder that exists,
then the Hub. The name of a built-in dataset may end in options, as in
`builtin:shapes?size=128&count=500`: `size` is the side in pixels, `count` the number of images of
each split.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import (
    ClassLabel,
    Dataset,
    DatasetBuilder,
    DatasetDict,
    DownloadConfig,
    Image,
    ReadInstruction,
    concatenate_datasets,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.utils.file_utils import xopen

from imagetok.builtin import DRAWING_VERSION, digits_dataset, shapes_dataset
from imagetok.builtin.digits import SPLIT_LENGTHS
from imagetok.builtin.shapes import DEFAULT_COUNTS, DEFAULT_SIZE, check_options
from imagetok.data.folder_labels import RecordedLabels
from imagetok.data.folder_listing import FolderListing, describe_own_folder, list_folder
from imagetok.data.image_folder import is_image_folder, read_image_folder
from imagetok.data.remote_file import relative_name, split_zip
from imagetok.data.table_folder import (
    find_archive_files,
    find_table_files,
    has_own_splits,
)
from imagetok.data.tar_samples import FORMAT, TarSamples
from imagetok.data.zip_folder import read_zip_folder
from imagetok.dataset_ref import DatasetRef
from imagetok.display_names import BUILTIN_PREFIX, is_hub_name
from imagetok.errors import DataError, ImagetokError
from imagetok.hub.address import is_commit
from imagetok.launch import collectives

FORMS = (
    "a folder of images, of zip archives of images, or of parquet, arrow or tar (WebDataset) "
    "files, one such file, a folder written by save_to_disk, the name of a dataset on the Hub, "
    "builtin:shapes or builtin:digits"
)
_FORMATS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
"""What `datasets` calls the kinds of files that hold rows, by the ends of their names."""
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".lz4", ".7z", ".rar")
_FILE_KINDS = (
    *("arrow", "audiofolder", "csv", "hdf5", "imagefolder", "json", "pandas", "parquet", "text"),
    *("videofolder", "webdataset", "xml"),
)
"""What `datasets` takes for kinds of files in the current folder, not for names on the Hub."""
_EMPTY_WORDS = "An error occurred while generating the dataset"
"""How `datasets` begins what it says of every error while it converts files."""

logger = logging.getLogger(__name__)

_BUILTIN_OPTIONS = {"shapes": ("count", "size"), "digits": ()}


def row_numbers(split: str, rows: Dataset) -> list[str]:
    """The identities of rows of which no more is known than where they stand."""
    return list(map(str, range(len(rows))))


def file_rows(
    location: DatasetLocation, cache_dir: str | None, split: str, rows: Dataset
) -> list[str]:
    """The identities of rows that were read from files: the file, and the row in it.

    Args:
        location: Where the files are.
        cache_dir: Where `datasets` keeps what it downloads.
        split: The split.
        rows: Its rows, in the order of the files.

    Returns:
        `FILE:ROW` each where files tell how many rows they have, which parquet files do; paths
        where images are files of their own, here or in archives; otherwise the numbers of the rows.
    """
    with data_errors(location.failure):
        files = [str(file) for file in location.builder(cache_dir).config.data_files[split]]
        kinds = {Path(file).suffix for file in files}
        if ".parquet" not in kinds and ".arrow" not in kinds:
            return image_paths(rows, location.root)
        if kinds != {".parquet"}:
            return row_numbers(split, rows)
        counts = []
        for file in files:
            with xopen(file, "rb") as content:
                counts.append(pq.read_metadata(content).num_rows)
    names = [relative_name(file, location.root) for file in files]
    found = [f"{name}:{row}" for name, n in zip(names, counts, strict=True) for row in range(n)]
    if len(found) != len(rows):
        raise DataError(
            f"the {len(files)} files of '{split}' have {len(found)} rows, and {len(rows)} were "
            f"read from them: they have changed; empty the cache of datasets, and start again"
        )
    return found


def image_paths(rows: Dataset, root: Path | None) -> list[str]:
    """The identities of rows whose images are files of their own, here or in archives.

    Args:
        rows: The rows; the paths are those of the first column of images.
        root: The folder that the images lie in; None where there is none.

    Returns:
        The path below the root, or the path of the member of an archive, whichever archive it is
        in; the number of the row where it has neither.
    """
    images = [key for key, feature in rows.features.items() if isinstance(feature, Image)]
    if not images:
        return row_numbers("", rows)
    table = rows.select_columns(images[:1]).with_format("arrow")[:]
    found = []
    for row, path in enumerate(pc.struct_field(table.column(0), "path").to_pylist()):
        if path is None:
            found.append(str(row))
        elif (member := split_zip(path)[0]) is not None:
            found.append(member)
        elif "::" in path:
            found.append(path.partition("::")[0].partition("://")[2])
        else:
            found.append(relative_name(path, root) if os.path.isabs(path) else path)
    return found


@dataclass(frozen=True)
class Source:
    """A dataset whose splits are loaded when they are taken.

    Attributes:
        lengths: Number of rows of each split.
        load: From the name of a split to its rows.
        identity: What fixes the content of every row, where that is known without reading it.
        identities: From the name of a split and its rows to the identity of each row, by which
            rows are held out.
        recorded: From rows to those that their fingerprint counts; None where it counts all that
            they have.
    """

    lengths: Mapping[str, int]
    load: Callable[[str], Dataset]
    identity: str | None = None
    identities: Callable[[str, Dataset], Sequence[str]] = row_numbers
    recorded: RecordedLabels | None = None


def open_source(ref: DatasetRef, cache_dir: str | None) -> Source:
    """The splits of a dataset; of a built-in one they are drawn or read when one is taken.

    Args:
        ref: Names the dataset.
        cache_dir: Where `datasets` keeps what it has drawn, downloaded and converted; None means
            its default folder.

    Raises:
        DataError: The dataset does not exist or cannot be read, or a subset, a revision or an
            option does not fit it.
    """
    if ref.is_builtin:
        return _builtin_source(ref, cache_dir)
    location = find_location(ref)
    if location.images is not None:
        return _folder_source(location.images, ref)
    if location.zips and location.root is not None:
        divided = read_zip_folder(location.root, location.zips, ref)
        lengths = {split: len(rows) for split, rows in divided.items()}
        return Source(lengths, divided.__getitem__, identities=_path_identities(location.root))
    splits = location.load(cache_dir)
    lengths = {str(split): len(rows) for split, rows in splits.items()}
    identities = row_numbers if location.is_saved else partial(file_rows, location, cache_dir)
    return Source(lengths, lambda split: splits[split], identities=identities)


def take_split(source: Source, ref: DatasetRef) -> tuple[Dataset, str | None]:
    """Load a split, a slice of one, or a sum of these, as in `train[:90%]` and `train+test[5:]`.

    Args:
        source: Where to take it from.
        ref: Names the split.

    Returns:
        The rows in order, and their identity, where the source has one.

    Raises:
        DataError: The notation is not valid, or the split does not exist or has no rows.
    """
    parts, ranges = [], []
    for part, first, end in split_ranges(ref, source.lengths):
        if end > first:
            with data_errors(f"split '{part}' of '{ref.name}' cannot be read"):
                rows = source.load(part)
            if end - first < len(rows) and _is_sorted_by_label(rows) and collectives.rank() == 0:
                logger.warning(
                    "warning: the rows of '%s' (%s) are sorted by label, and '%s' takes a run of "
                    "them, which has few of the labels; holdout=10%% divides them by chance",
                    *(ref.name, part, ref.split),
                )
            parts.append(rows.select(range(first, end)))
            ranges.append(f"{part}[{first}:{end}]")
    if not parts:
        sizes = ", ".join(f"{key} ({length} rows)" for key, length in source.lengths.items())
        raise DataError(f"split '{ref.split}' of '{ref.name}' has no rows; its splits are: {sizes}")
    dataset = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    identity = None if source.identity is None else f"{source.identity} {'+'.join(ranges)}"
    return dataset, identity


def _is_sorted_by_label(rows: Dataset) -> bool:
    """Whether rows have several labels, and all of one stand together in ascending order."""
    for column, feature in rows.features.items():
        if isinstance(feature, ClassLabel):
            labels = rows.select_columns([column]).with_format("numpy")[:][column]
            return bool(np.all(labels[1:] >= labels[:-1]) and labels[0] != labels[-1])
    return False


def split_ranges(ref: DatasetRef, lengths: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """The parts of a sum of splits and slices.

    Args:
        ref: Its split is the sum.
        lengths: Number of rows of each split that there is.

    Returns:
        (split, first row, end) of each part.

    Raises:
        DataError: The notation is not valid, or the split does not exist.
    """
    try:
        parts = ReadInstruction.from_spec(ref.split).to_absolute(dict(lengths))
    except (ValueError, AssertionError, ArithmeticError):
        raise DataError(
            f"'{ref.name}' has no split '{ref.split}'; its splits are: {', '.join(lengths)} "
            "(slices of them, as in train[:100] and train[90%:], are taken too, and holdout=10% "
            "divides train into train and holdout); name one by --split, as in --holdout 10% "
            "--split holdout"
        ) from None
    ends = [lengths[part.splitname] if part.to is None else part.to for part in parts]
    return [(part.splitname, part.from_ or 0, end) for part, end in zip(parts, ends, strict=True)]


@dataclass(frozen=True)
class DatasetLocation:
    """Where a dataset that is not built in is found.

    Attributes:
        failure: Message for when it cannot be read.
        root: The file or folder on this machine; None for a dataset on the Hub.
        is_saved: Whether the folder was written by `save_to_disk`.
        images: What lies in a folder of images, which is read by rules of imagetok's own.
        zips: Zip archives of images below the root, read by these rules too.
        arguments: Otherwise the arguments for `load_dataset`.
    """

    failure: str
    root: Path | None = None
    is_saved: bool = False
    images: FolderListing | None = None
    zips: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def revision(self) -> str | None:
        """Commit, branch or tag of a dataset on the Hub; None is its main branch."""
        return self.arguments.get("revision")

    @property
    def has_tars(self) -> bool:
        """Whether it is tar archives on this machine."""
        return self.root is not None and self.arguments.get("path") == "webdataset"

    def pin(self, cache_dir: str | None) -> DatasetLocation:
        """The same location, with a dataset on the Hub pinned to its present commit.

        However often it is read after that, and whatever is pushed meanwhile, the rows are the
        same.

        Raises:
            DataError: It cannot be read; or the Hub is out of reach, and `datasets` has another
                commit in its cache than the one that is asked for.
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
        options = {} if self.root is None else {"download_config": _local_files(cache_dir)}
        with data_errors(self.failure):
            if self.has_tars:
                builder = self.builder(cache_dir)
                builder.download_and_prepare(**options)
                return DatasetDict(builder.as_dataset())
            if not self.is_saved:
                return load_dataset(**self.arguments, **options, cache_dir=cache_dir)
            saved = load_from_disk(str(self.root))
            if isinstance(saved, DatasetDict):
                return saved
            return DatasetDict({_saved_split(saved): saved})

    def storage(self, cache_dir: str | None) -> str:
        """How images are stored: `saved`, in `files`, in `archives` of files, or in `rows`.

        Raises:
            DataError: It cannot be read.
        """
        if self.is_saved:
            return "saved"
        if self.images is not None or self.zips:
            return "files"
        builder = self.builder(cache_dir)
        if not isinstance(builder, ImageFolder):
            return "rows"
        files = (str(file) for files in builder.config.data_files.values() for file in files)
        return "archives" if any(file.lower().endswith(_ARCHIVES) for file in files) else "files"

    def is_ready(self, cache_dir: str | None) -> bool:
        """Whether rows are read one by one with no image copied: saved ones, and local files.

        Raises:
            DataError: It cannot be read.
        """
        return self.root is not None and self.storage(cache_dir) in ("saved", "files")

    def builder(self, cache_dir: str | None, **options: object) -> DatasetBuilder:
        """What streams the splits of a dataset that was not written by `save_to_disk`.

        Raises:
            DataError: It cannot be read.
        """
        with data_errors(self.failure):
            if self.has_tars:
                files = self.arguments["data_files"]
                return TarSamples(cache_dir, hash=FORMAT, data_files=files, **options)
            builder = load_dataset_builder(**self.arguments, **options, cache_dir=cache_dir)
        if hasattr(builder.config, "decode_num_threads"):
            # It would decode images of folders on the Hub ahead, even where decoding is off.
            builder.config.decode_num_threads = 0
        return builder


def _local_files(cache_dir: str | None) -> DownloadConfig:
    """The default of `datasets`, whose bar does not call files of this machine downloads."""
    folder = None if cache_dir is None else os.path.join(cache_dir, "downloads")
    return DownloadConfig(cache_dir=folder, use_etag=False, download_desc="Finding files")


def find_location(ref: DatasetRef) -> DatasetLocation:
    """Where the dataset of a path or of a name on the Hub is found; nothing is read.

    Raises:
        DataError: Nothing here has that name and it cannot be a name on the Hub, or a subset or
            revision is given for something that has none.
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
    if not is_hub_name(name) or name in _FILE_KINDS or Path(name).suffix in _FORMATS:
        raise DataError(f"there is no file or folder '{name[:200]}'; a dataset is {FORMS}")
    return DatasetLocation(
        f"'{name}' is not a file, a folder, or a dataset on the Hub that can be read",
        arguments={"path": name, "name": ref.subset, "revision": revision},
    )


def _find_local(name: str, path: Path, subset: str | None) -> DatasetLocation:
    is_saved = (path / "dataset_dict.json").exists() or all(
        (path / file).exists() for file in ("state.json", "dataset_info.json")
    )
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
        arguments: dict[str, Any] = {"path": kind, "data_files": glob.escape(str(path))}
        failure = f"'{name}' cannot be read as a {kind} file"
        return DatasetLocation(failure, path, arguments=arguments)
    if (own := describe_own_folder(path)) is not None:
        raise DataError(
            f"'{name}' holds {own} that imagetok has written, and no images to read; {_OWN[own]}"
        )
    listing = list_folder(path)
    if subset is None and is_image_folder(listing):
        return DatasetLocation(f"'{name}' cannot be read", path, images=listing)
    if subset is None and not has_own_splits(path):
        most = max(len(listing.tables), len(listing.tars), len(listing.zips))
        failure = f"'{name}' cannot be read"
        if most and most == len(listing.tables):
            kind, files = find_table_files(name, path, listing.tables)
            return DatasetLocation(failure, path, arguments={"path": kind, "data_files": files})
        if most and most == len(listing.tars):
            tars = find_archive_files(name, path, listing.tars)
            arguments = {"path": "webdataset", "data_files": tars}
            return DatasetLocation(failure, path, arguments=arguments)
        if most:
            return DatasetLocation(failure, path, zips=listing.zips)
    failure = f"'{name}' holds no images, parquet files or other data that can be read"
    if subset is None and not has_own_splits(path) and not listing.metadata:
        unread = [f"{skipped.count} {kind}" for kind, skipped in listing.skipped.items()]
        unread += [f"{len(listing.sidecars)} text or JSON files"] * bool(len(listing.sidecars))
        raise DataError(failure + (f", but {', '.join(unread)}" if unread else ""))
    if glob.has_magic(str(path)):
        raise DataError(
            f"the path of '{name}' has one of the characters * ? [, which are read as a pattern; "
            "rename the folder"
        )
    return DatasetLocation(failure, path, arguments={"path": str(path), "name": subset})


def _folder_source(listing: FolderListing, ref: DatasetRef) -> Source:
    folder = read_image_folder(listing, ref)
    return Source(
        {split: len(rows) for split, rows in folder.splits.items()},
        folder.splits.__getitem__,
        identities=lambda split, _: folder.paths[split].to_pylist(),
        recorded=folder.recorded,
    )


def _path_identities(root: Path) -> Callable[[str, Dataset], Sequence[str]]:
    return lambda split, rows: image_paths(rows, root)


def _saved_split(dataset: Dataset) -> str:
    """The split that a saved dataset says it is; `train` where it names none or a slice of one."""
    split = str(dataset.split or "")
    return split if re.fullmatch(r"\w+", split) else "train"


def _builtin_source(ref: DatasetRef, cache_dir: str | None) -> Source:
    name = ref.name
    for key, value in (("subset", ref.subset), ("revision", ref.revision)):
        if value is not None:
            raise DataError(f"'{name}' has no {key} '{value}'; leave {key} out")
    kind, _, query = name.removeprefix(BUILTIN_PREFIX).partition("?")
    if kind not in _BUILTIN_OPTIONS:
        known = ", ".join(BUILTIN_PREFIX + known for known in sorted(_BUILTIN_OPTIONS))
        raise DataError(
            f"unknown built-in dataset '{BUILTIN_PREFIX}{kind}'; choose one of: {known}"
        )
    options = _builtin_options(name, kind, query)
    if kind == "digits":
        return Source(SPLIT_LENGTHS, digits_dataset, "builtin:digits")
    size, count = options.get("size", DEFAULT_SIZE), options.get("count")
    check_options(size, count)
    lengths = {split: count or length for split, length in DEFAULT_COUNTS.items()}
    load = partial(shapes_dataset, size=size, count=count, cache_dir=cache_dir)
    return Source(lengths, load, f"builtin:shapes?size={size}&drawing={DRAWING_VERSION}")


def _builtin_options(name: str, kind: str, query: str) -> dict[str, int]:
    valid = ", ".join(_BUILTIN_OPTIONS[kind]) or "(none)"
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise DataError(
            f"the options of '{name}' do not have the form key=value&key=value; valid keys: {valid}"
        ) from None
    options: dict[str, int] = {}
    for key, value in pairs:
        if key not in _BUILTIN_OPTIONS[kind]:
            raise DataError(f"unknown option '{key}' in '{name}'; valid options: {valid}")
        if key in options:
            raise DataError(f"option '{key}' stands twice in '{name}'; give it once")
        if not re.fullmatch(r"[0-9]{1,18}", value):
            raise DataError(f"option '{key}' of '{name}' is a whole number, got '{value[:40]}'")
        options[key] = int(value)
    return options


_OWN = {
    "a run": "name the folder of the images that it was trained on",
    "tokens": "read them by imagetok.shards.TokenDataset",
    "a tokenizer": "give it as the tokenizer, and name a folder of images",
}
"""What to do with each kind of folder that imagetok writes."""


@contextmanager
def data_errors(message: str) -> Iterator[None]:
    """Turn whatever a reader raises into a `DataError` with `message` and the reason."""
    try:
        yield
    except (ImagetokError, MemoryError):
        raise
    except Exception as error:  # datasets, pyarrow, fsspec, httpx and the Hub's client all raise
        raise DataError(f"{message}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What an error says, with the errors behind it where it says nothing itself."""
    words = list[str]()
    behind: BaseException | None = error
    while behind is not None:
        text = " ".join(str(behind).split()) or type(behind).__name__
        if not text.startswith(_EMPTY_WORDS) and not any(text in word for word in words):
            words.append(text[:300])
        behind = behind.__cause__
    return "; ".join(words) or str(error)
