"""What lies in a folder and the folders below it, by rules that depend on nothing but the tree.

    root --list_folder--> FolderListing: images, archives, tables, metadata, sidecars, and the rest

- Files are listed by their paths relative to the root, in ascending order of these.
- A file is an image by its ending, in any case. Where the ending is unknown, its first bytes tell.
- Names that begin with a dot, and `__MACOSX`, are not looked at.
- Links are followed. A folder that several paths lead to is listed once: where it lies, if that is
  below the root, and otherwise by the first path.
- Folders that imagetok has written (runs, tokens, tokenizers) are left out.

What is left out is counted, with the first names of each kind.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from imagetok.data.remote_file import read_file
from imagetok.errors import DataError
from imagetok.images.imagesource import file_format


def _endings(text: str) -> frozenset[str]:
    return frozenset(text.split())


IMAGE_ENDINGS = _endings(
    ".apng .blp .bmp .bw .cur .dcx .dds .dib .emf .eps .fit .fits .flc .fli .ftc .ftu .gbr .gif "
    ".icb .icns .ico .iim .im .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .msp .pbm .pcd "
    ".pcx .pgm .png .pnm .ppm .ps .psd .pxr .ras .rgb .rgba .sgi .tga .tif .tiff .vda .vst .webp "
    ".wmf .xbm .xpm"
)
"""Ends of the names of image files. What is not read of these is refused row by row."""

_HEIF_ENDINGS = {".heic": "HEIC", ".heics": "HEIC", ".heif": "HEIC", ".hif": "HEIC"}
_UNREAD_ENDINGS = {**_HEIF_ENDINGS, ".avif": "AVIF", ".avifs": "AVIF", ".jxl": "JPEG XL"}
TAR_ENDINGS = (".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_TABLE_ENDINGS = frozenset((".parquet", ".arrow"))
_SIDECAR_ENDINGS = frozenset((".txt", ".json"))
_OTHER_ENDINGS = _endings(
    ".7z .avi .bat .bin .bz2 .c .caption .cfg .cls .cpp .crdownload .css .csv .db .doc .docx "
    ".download .gz .h .h5 .hdf .hdf5 .html .ini .ipynb .js .jsonl .lmdb .lnk .log .lst .m .mat .md "
    ".mkv .mov .mp3 .mp4 .mpeg .mpg .msgpack .npy .npz .onnx .part .partial .pdf .pkl .pt .pth .py "
    ".pyc .rar .rst .rtf .safetensors .sh .sqlite .svg .tex .tfrecord .tmp .toml .tsv .url .wav "
    ".webm .xls .xlsx .xml .xz .yaml .yml .zst"
)
"""Endings of files that are not images, whatever they hold: there is no need to open them."""

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Files that say more about the images of their folder."""

KINDS = ("image", "zip", "tar", "table", "metadata", "sidecar")
"""Kinds of files that are listed."""

NOT_IMAGES = "files that are not images"

_ZIP_FOLDER = re.compile(r"\.zip/", re.IGNORECASE)
_LITTER = frozenset(("desktop.ini", "ehthumbs.db", "thumbs.db"))
"""What file managers leave, in lower case; nobody misses it."""

_NUM_NAMES = 3
_FLUSH = 2**16
PREFIX_SIZE = 16


@dataclass
class Skipped:
    """Files or folders of one kind that are left out.

    Attributes:
        count: Their number.
        names: Relative paths of the first ones.
    """

    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.names) < _NUM_NAMES:
            self.names.append(name)

    def __str__(self) -> str:
        return ", ".join(self.names) + (", ..." if self.count > len(self.names) else "")


@dataclass(frozen=True)
class FolderListing:
    """The files of a tree, each kind in ascending order; paths are relative to the root, with `/`.

    Attributes:
        root: The folder, resolved.
        images: Image files.
        zips: Zip archives.
        tars: Tar archives, packed ones among them.
        tables: Files of rows: parquet and Arrow.
        metadata: Files named as in `METADATA_NAMES`.
        sidecars: Text and JSON files, which may belong to images of the same stem.
        skipped: What else there is, by what it is called in the plural, in the order found.
        opened: Zip archives whose files are listed as if the archives were folders.
        is_archive: Whether all this is one archive, whose own name says nothing of splits.
    """

    root: Path
    images: pa.ChunkedArray
    zips: tuple[str, ...]
    tars: tuple[str, ...]
    tables: tuple[str, ...]
    metadata: tuple[str, ...]
    sidecars: pa.ChunkedArray
    skipped: dict[str, Skipped]
    opened: tuple[str, ...] = ()
    is_archive: bool = False

    def split_archive(self, path: str) -> tuple[str | None, str]:
        """The archive that a path leads into, and the path in it; (None, path) for other files."""
        for match in _ZIP_FOLDER.finditer(path) if self.opened else ():
            archive = path[: match.end() - 1]
            if archive in self._archives:
                return archive, path[match.end() :]
        return None, path

    def locate(self, path: str) -> str:
        """Where a file lies, as rows of images have it: `zip://MEMBER::ARCHIVE` in an archive."""
        archive, member = self.split_archive(path)
        return (
            f"{self.root}/{path}" if archive is None else f"zip://{member}::{self.root}/{archive}"
        )

    def read(self, path: str) -> bytes:
        """The content of a file, in an archive or not; raises as `read_file` does."""
        archive, _ = self.split_archive(path)
        return (self.root / path).read_bytes() if archive is None else read_file(self.locate(path))

    @cached_property
    def _archives(self) -> frozenset[str]:
        return frozenset(self.opened)


def list_folder(root: Path) -> FolderListing:
    """List a folder and all below it.

    It takes some 100 bytes a file, and seconds for 200,000 files.

    Raises:
        DataError: The folder cannot be listed.
    """
    root = root.resolve()
    scan = _Scan(root)
    scan.run()
    found = scan.found
    return FolderListing(
        root=root,
        images=found["image"].finish(),
        zips=tuple(found["zip"].finish().to_pylist()),
        tars=tuple(found["tar"].finish().to_pylist()),
        tables=tuple(found["table"].finish().to_pylist()),
        metadata=tuple(found["metadata"].finish().to_pylist()),
        sidecars=found["sidecar"].finish(),
        skipped=scan.skipped,
    )


def list_zip(path: Path) -> FolderListing:
    """The listing of a folder of which a zip archive in it is all that counts."""
    none = PathColumn().finish()
    return FolderListing(path.parent, none, (path.name,), (), (), (), none, {}, is_archive=True)


def describe_own_folder(path: Path) -> str | None:
    """What imagetok has written to a folder: a run, tokens or a tokenizer; None for other folders.

    It is told by the files that imagetok writes there and by what they hold, never by a folder's
    name.
    """
    try:
        names = set(os.listdir(path))
    except OSError:
        return None
    return _describe_own(str(path), names)


def _describe_own(path: str, names: set[str]) -> str | None:
    if "job.json" in names and _is_job(f"{path}/job.json"):
        return "tokens"
    if "config.yaml" in names and names & {"checkpoints", "losses.jsonl", "samples", "tokenizer"}:
        text = _head(f"{path}/config.yaml")
        if all(re.search(rb"^%s:" % key, text, re.MULTILINE) for key in _RUN_KEYS):
            return "a run"
    if "model.safetensors" in names and b'"__metadata__":{"imagetok":' in _head(
        f"{path}/model.safetensors"
    ):
        return "a tokenizer"
    return None


_RUN_KEYS = (b"tokenizer", b"data", b"train")


def _is_job(path: str) -> bool:
    try:
        with open(path, encoding="utf-8") as file:
            job = json.load(file)
    except (OSError, ValueError):
        return False
    return isinstance(job, dict) and {"tokenizer", "input", "units", "output"} <= job.keys()


def _head(path: str, size: int = 2**16) -> bytes:
    """The first bytes of a file; none where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except OSError:
        return b""


class PathColumn:
    """Paths that are collected into Arrow arrays, which take a third of Python's memory."""

    def __init__(self) -> None:
        self._chunks: list[pa.Array] = []
        self._pending: list[str] = []

    def add(self, path: str) -> None:
        """Take up one more."""
        self._pending.append(path)
        if len(self._pending) >= _FLUSH:
            self._flush()

    def finish(self) -> pa.ChunkedArray:
        """All of them in ascending order of their code points."""
        self._flush()
        paths = pa.chunked_array(self._chunks, pa.string())
        return paths.take(pc.sort_indices(paths))

    def _flush(self) -> None:
        if self._pending:
            self._chunks.append(pa.array(self._pending, pa.string()))
            self._pending = []


class _Scan:
    """A walk through a tree: first all that lies in it, then what links in it lead to."""

    def __init__(self, root: Path) -> None:
        self.found = {kind: PathColumn() for kind in KINDS}
        self.skipped: dict[str, Skipped] = {}
        self._root = str(root)
        self._visited: set[tuple[int, int]] = set()
        self._links: list[str] = []

    def run(self) -> None:
        self._walk("")
        while self._links:
            links, self._links = sorted(self._links), []
            for link in links:
                target = os.path.realpath(f"{self._root}/{link}")
                above = f"{target.rstrip(os.sep)}{os.sep}"
                if self._root.startswith(above) or not self._walk(link):
                    self._skip("links to folders that are read already", link)

    def _walk(self, top: str) -> bool:
        """List a folder and its real subfolders; False if it was listed before."""
        first, folders = True, [top]
        while folders:
            folder = folders.pop()
            try:
                status = os.stat(f"{self._root}/{folder}")
                identity = (status.st_dev, status.st_ino)
                if identity in self._visited:
                    if first:
                        return False
                    continue
                self._visited.add(identity)
                folders += reversed(self._list(folder))
            except OSError as error:
                if not folder:
                    raise DataError(f"'{self._root}' cannot be listed: {error.strerror}") from None
                self._skip("folders that cannot be read", folder)
            first = False
        return True

    def _list(self, folder: str) -> list[str]:
        """Take up the files of a folder; its real subfolders in ascending order."""
        files: list[str] = []
        folders: list[str] = []
        links: list[str] = []
        lost: list[str] = []
        with os.scandir(f"{self._root}/{folder}") as entries:
            for entry in entries:
                try:
                    if entry.is_dir():
                        (links if entry.is_symlink() else folders).append(entry.name)
                    elif entry.is_file():
                        files.append(entry.name)
                    elif entry.is_symlink():
                        lost.append(entry.name)
                except OSError:  # a link that leads to itself
                    lost.append(entry.name)
        own = _describe_own(f"{self._root}/{folder}", {*files, *folders, *links})
        prefix = f"{folder}/" if folder else ""
        if own is not None and folder:
            self._skip("folders that imagetok has written", folder)
            return []
        for name in self._readable(files, prefix):
            self._take(prefix, name)
        for name in self._readable(lost, prefix):
            self._skip("links that lead nowhere", prefix + name)
        self._links += [prefix + name for name in self._readable(links, prefix)]
        return [prefix + name for name in self._readable(folders, prefix)]

    def _readable(self, names: Iterable[str], prefix: str) -> Iterator[str]:
        """Names in ascending order without hidden ones, litter, and those that are not Unicode."""
        for name in sorted(names):
            if name.startswith("."):
                is_image = _ending(name) in IMAGE_ENDINGS and not name.startswith("._")
                if is_image:
                    self._skip("hidden images", prefix + name)
            elif name == "__MACOSX" or name.lower() in _LITTER:
                continue
            elif not name.isascii() and not _is_unicode(name):
                shown = os.fsencode(prefix + name).decode("utf-8", "backslashreplace")
                self._skip("names that are not UTF-8", shown)
            else:
                yield name

    def _take(self, prefix: str, name: str) -> None:
        kind = file_kind(name, lambda: _head(f"{self._root}/{prefix}{name}", PREFIX_SIZE))
        if kind in self.found:
            self.found[kind].add(prefix + name)
        else:
            self._skip(kind, prefix + name)

    def _skip(self, kind: str, name: str) -> None:
        self.skipped.setdefault(kind, Skipped()).add(name)


def file_kind(name: str, head: Callable[[], bytes]) -> str:
    """The kind of a file, or what such files are called where they are left out.

    Args:
        name: Its name, without folders.
        head: Gives its first `PREFIX_SIZE` bytes, which are asked for where the name does not tell.
    """
    ending = _ending(name)
    if ending in IMAGE_ENDINGS:
        return "image"
    if ending in _UNREAD_ENDINGS:
        return f"{_UNREAD_ENDINGS[ending]} images"
    if name in METADATA_NAMES:
        return "metadata"
    if ending in _SIDECAR_ENDINGS:
        return "sidecar"
    if ending == ".zip":
        return "zip"
    if name.lower().endswith(TAR_ENDINGS):
        return "tar"
    if ending in _TABLE_ENDINGS:
        return "table"
    if ending in _OTHER_ENDINGS:
        return NOT_IMAGES
    return _kind_by_content(head())


def _kind_by_content(prefix: bytes) -> str:
    found = file_format(prefix)
    # BMP is told by two letters, which other files begin with too; the reserved bytes are zero.
    if found is not None and (found != "BMP" or prefix[6:10] == bytes(4)):
        return "image"
    if prefix[4:8] == b"ftyp":
        if prefix[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"heim", b"heis"):
            return "HEIC images"
        if prefix[8:12] in (b"avif", b"avis"):
            return "AVIF images"
    return NOT_IMAGES


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
