"""Where a dataset that is not built in lies: a file or folder here, or the Hub.

    DatasetRef --find_location--> DatasetLocation --load--> splits, row by row
                                                  --builder--> what streams its files

A name that exists as a file or folder is that; others are looked up on the Hub. What a folder is
follows from what most of its files are: images, files of rows, tar or zip archives.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    DatasetBuilder,
    DatasetDict,
    DownloadConfig,
    Features,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from imagetok.data.folder_listing import (
    TAR_ENDINGS,
    FolderListing,
    describe_own_folder,
    list_folder,
    list_zip,
)
from imagetok.data.folder_notice import count_of, tell_left_out
from imagetok.data.image_folder import is_image_folder
from imagetok.data.table_folder import (
    card_features,
    find_archive_files,
    find_table_files,
    has_own_splits,
)
from imagetok.data.tar_samples import FORMAT, TarSamples
from imagetok.data.zip_folder import open_zips
from imagetok.dataset_ref import DatasetRef
from imagetok.display_names import is_hub_name
from imagetok.errors import DataError, ImagetokError
from imagetok.hub.address import is_commit

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
_BATCH = 1000
"""Most rows of a parquet file that are read at a time."""
_EMPTY_WORDS = "An error occurred while generating the dataset"
"""How `datasets` begins what it says of every error while it converts files."""
_OWN = {
    "a run": "name the folder of the images that it was trained on",
    "tokens": "read them by imagetok.shards.TokenDataset",
    "a tokenizer": "give it as the tokenizer, and name a folder of images",
}
"""What to do with each kind of folder that imagetok writes."""


@dataclass(frozen=True)
class DatasetLocation:
    """Where a dataset that is not built in is found.

    Attributes:
        failure: Message for when it cannot be read.
        root: The file or folder on this machine; None for a dataset on the Hub.
        is_saved: Whether the folder was written by `save_to_disk`.
        images: What lies in a folder of images, or in its zip archives, which is read by rules of
            imagetok's own.
        arguments: Otherwise the arguments for `load_dataset`.
    """

    failure: str
    root: Path | None = None
    is_saved: bool = False
    images: FolderListing | None = None
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
        with data_errors(self.failure):
            if self.root is None:
                return load_dataset(**self.arguments, cache_dir=cache_dir)
            if not self.is_saved:
                builder = self.builder(cache_dir)
                builder.download_and_prepare(download_config=_local_files(cache_dir))
                return DatasetDict({split: _rows(builder, split) for split in builder.info.splits})
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
        if self.images is not None:
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
        if self.root is not None and getattr(builder.config, "batch_size", 0) is None:
            # It would be the length of a parquet file's first row group, which may be zero.
            builder.config.batch_size = _BATCH
        return builder


def _rows(builder: DatasetBuilder, split: str) -> Dataset:
    """The rows of a split that is converted; `datasets` has none for one without rows."""
    if builder.info.splits[split].num_examples:
        return builder.as_dataset(split)
    features = builder.info.features or Features()
    return Dataset.from_dict({column: [] for column in features}, features=features)


def _local_files(cache_dir: str | None) -> DownloadConfig:
    """The default of `datasets`, whose bar does not call files of this machine downloads."""
    folder = None if cache_dir is None else os.path.join(cache_dir, "downloads")
    return DownloadConfig(cache_dir=folder, use_etag=False, download_desc="Finding files")


def is_here(ref: DatasetRef) -> bool:
    """Whether a dataset is built in or the path of a file or folder on this machine."""
    return ref.is_builtin or (ref.name != "" and os.path.exists(os.path.expanduser(ref.name)))


def find_location(ref: DatasetRef) -> DatasetLocation:
    """Where the dataset of a path or of a name on the Hub is found; nothing is read.

    Raises:
        DataError: Nothing here has that name and it cannot be a name on the Hub, or a subset or
            revision is given for something that has none.
    """
    name, revision = ref.name, ref.revision
    if is_here(ref):
        if revision is not None:
            raise DataError(
                f"'{name}' lies on this machine and has no revision '{revision}'; leave revision "
                "out"
            )
        return _find_local(ref, Path(os.path.expanduser(name)))
    if not is_hub_name(name) or name in _FILE_KINDS or Path(name).suffix in _FORMATS:
        raise DataError(f"there is no file or folder '{name[:200]}'; a dataset is {FORMS}")
    return DatasetLocation(
        f"'{name}' is not a file, a folder, or a dataset on the Hub that can be read",
        arguments={"path": name, "name": ref.subset, "revision": revision},
    )


def _find_local(ref: DatasetRef, path: Path) -> DatasetLocation:
    name, subset = ref.name, ref.subset
    is_saved = (path / "dataset_dict.json").exists() or all(
        (path / file).exists() for file in ("state.json", "dataset_info.json")
    )
    if subset is not None and (is_saved or path.is_file()):
        raise DataError(f"'{name}' has no subset '{subset}'; leave subset out")
    if is_saved:
        failure = f"'{name}' was written by save_to_disk and has no rows or cannot be read"
        return DatasetLocation(failure, path, is_saved=True)
    path = path.resolve()
    return _find_file(name, path) if path.is_file() else _find_folder(ref, path)


def _find_file(name: str, path: Path) -> DatasetLocation:
    failure = f"'{name}' cannot be read"
    if path.suffix.lower() == ".zip":
        return DatasetLocation(failure, path, images=open_zips(list_zip(path), name))
    is_tar = path.name.lower().endswith(TAR_ENDINGS)
    kind = "webdataset" if is_tar else _FORMATS.get(path.suffix.lower())
    if kind is None:
        known = ", ".join([*_FORMATS, ".zip"])
        raise DataError(f"'{name}' is a file of another kind than {known}; a dataset is {FORMS}")
    arguments = {"path": kind, "data_files": glob.escape(str(path))}
    return DatasetLocation(f"'{name}' cannot be read as a {kind} file", path, arguments=arguments)


def _find_folder(ref: DatasetRef, path: Path) -> DatasetLocation:
    name = ref.name
    if (own := describe_own_folder(path)) is not None:
        raise DataError(
            f"'{name}' holds {own} that imagetok has written, and no images to read; {_OWN[own]}"
        )
    listing = list_folder(path)
    if ref.subset is None and is_image_folder(listing):
        return DatasetLocation(f"'{name}' cannot be read", path, images=listing)
    failure = f"'{name}' holds no images, parquet files or other data that can be read"
    if ref.subset is None and not has_own_splits(path):
        if listing.tables or listing.tars or listing.zips:
            return _find_files(ref, listing)
        if not listing.metadata:
            unread = [count_of(kind, skipped.count) for kind, skipped in listing.skipped.items()]
            if len(listing.sidecars):
                unread.append(count_of("text or JSON files", len(listing.sidecars)))
            raise DataError(failure + (f", but {', '.join(unread)}" if unread else ""))
    if glob.has_magic(str(path)):
        raise DataError(
            f"the path of '{name}' has one of the characters * ? [, which are read as a pattern; "
            "rename the folder"
        )
    return DatasetLocation(failure, path, arguments={"path": str(path), "name": ref.subset})


def _find_files(ref: DatasetRef, listing: FolderListing) -> DatasetLocation:
    """A folder of files of rows, tar or zip archives, whichever it has most of."""
    root, failure = listing.root, f"'{ref.name}' cannot be read"
    most = max(len(listing.tables), len(listing.tars), len(listing.zips))
    if most == len(listing.tables):
        tell_left_out(ref.name, listing, "files of rows")
        kind, files = find_table_files(ref, root, listing.tables)
        arguments: dict[str, Any] = {"path": kind, "data_files": files}
        with data_errors(f"the card of '{ref.name}' cannot be read"):
            if (features := card_features(root)) is not None:
                arguments["features"] = features
        return DatasetLocation(failure, root, arguments=arguments)
    if most == len(listing.tars):
        tell_left_out(ref.name, listing, "tar archives")
        tars = find_archive_files(ref, root, listing.tars)
        arguments = {"path": "webdataset", "data_files": tars}
        return DatasetLocation(failure, root, arguments=arguments)
    return DatasetLocation(failure, root, images=open_zips(listing, ref.name))


def _saved_split(dataset: Dataset) -> str:
    """The split that a saved dataset says it is; `train` where it names none or a slice of one."""
    split = str(dataset.split or "")
    return split if re.fullmatch(r"\w+", split) else "train"


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
