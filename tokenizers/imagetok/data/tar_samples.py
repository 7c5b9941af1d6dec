"""Tar archives of samples, as WebDataset lays them out, for what `datasets` reads archives with.

    1.jpg, 1.json, 1.txt, 2.png, ...  -->  rows of the columns image, json, txt, __key__, __url__

Files whose paths are the same up to the first dot of their names are a sample; what follows the dot
is the column. A sample's image may end in anything, or in nothing where its content tells that it
is one: where all endings are the same, they name the column, and otherwise it is `image`. Columns
and their types are those of all samples: integers and floats are floats, JSON objects have the keys
of all, and other mixtures are JSON text. So nothing that is kept depends on which samples come
first.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedReader
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
from datasets import BuilderConfig, Features, Image, SplitGenerator
from datasets.builder import Key
from datasets.features.features import cast_to_python_objects
from datasets.packaged_modules.webdataset.webdataset import WebDataset, base_plus_ext

from imagetok.data.folder_listing import NOT_IMAGES, PREFIX_SIZE, Skipped, file_kind
from imagetok.data.folder_notice import tell_members
from imagetok.errors import DataError

FIRST_SAMPLES = 20
"""Samples of each archive whose endings name the columns of images, and which are all that is
looked at beforehand where a stream is asked for images alone.
"""

FORMAT = "2"
"""Changes where other rows come out of equal archives, so that the cache has none of before."""

_NO_ENDING = "image file without an ending"
"""Stands for the ending of an image whose name has none."""

_LITTER = ""
"""What folders and hidden files are called, of which nothing is said."""

_TEXT = pa.large_string()
"""Stands for JSON text while types are merged; other texts are `pa.string()`."""

Sample = dict[str, Any]


@dataclass
class TarConfig(BuilderConfig):  # type: ignore[misc]
    """What is read of archives.

    Attributes:
        columns: Columns that are read; None reads all.
    """

    columns: list[str] | None = None


@dataclass(frozen=True)
class _Survey:
    """What the samples of an archive have.

    Attributes:
        types: The type of each field in the order in which samples have them; null for images.
        several: Groups of image fields of which a sample has more than one.
        skipped: Members that belong to no sample, by what they are called in the plural.
    """

    types: Mapping[str, pa.DataType]
    several: frozenset[str]
    skipped: Mapping[str, Skipped]


class TarSamples(WebDataset):  # type: ignore[misc]
    """The samples of tar archives on this machine, in the order of archives and members."""

    BUILDER_CONFIG_CLASS = TarConfig

    def _split_generators(self, dl_manager: Any) -> list[SplitGenerator]:
        files = {split: list(map(str, paths)) for split, paths in self.config.data_files.items()}
        every = [path for paths in files.values() for path in paths]
        first = [_survey(path, FIRST_SAMPLES) for path in every]
        self._joint = _join_images(first)
        found = self._find_types(first)
        asked = self.config.columns or ()
        if not dl_manager.is_streaming or any(found.get(name) is not None for name in asked):
            surveys = [_survey(path, None) for path in every]
            found = self._find_types(surveys)
            tell_members(every, [survey.skipped for survey in surveys])
        if not found:
            raise DataError(f"'{every[0]}' and the archives beside it hold no samples")
        self._types = found if self.config.columns is None else {key: found[key] for key in asked}
        self.info.features = _features(self._types)
        return [
            SplitGenerator(name=split, gen_kwargs={"tar_paths": paths})
            for split, paths in files.items()
        ]

    def _generate_shards(self, tar_paths: Sequence[str]) -> Iterator[str]:
        yield from tar_paths

    def _generate_examples(self, tar_paths: Sequence[str]) -> Iterator[tuple[Key, Sample]]:
        for archive, path in enumerate(tar_paths):
            for number, sample in enumerate(_samples(path, with_images=True)):
                row: Sample = dict.fromkeys(self._types)
                for field, value in sample.items():
                    name = self._column(field)
                    if name not in row:
                        continue
                    kind = self._types[name]
                    if kind is not None:
                        row[name] = _fit(_plain(value), kind)
                    elif row[name] is None:
                        ending = "" if field == _NO_ENDING else f".{field}"
                        row[name] = {"path": sample["__key__"] + ending, "bytes": value}
                    else:
                        raise DataError(
                            f"the sample '{sample['__key__']}' of '{path}' has several images in "
                            f"place of one '{name}', which the first samples have"
                        )
                yield Key(archive, number), row

    def _find_types(self, surveys: Iterable[_Survey]) -> dict[str, pa.DataType | None]:
        """The columns in the order in which samples have them; None stands for an image."""
        types: dict[str, pa.DataType | None] = {}
        for survey in surveys:
            for field, kind in survey.types.items():
                name = self._column(field)
                is_image = _image_group(field) is not None
                types[name] = None if is_image else _merge(types.get(name) or pa.null(), kind)
        return types

    def _column(self, field: str) -> str:
        group = _image_group(field)
        name = field if group is None else self._joint.get(group, field)
        return "image" if name == _NO_ENDING else name


def _survey(path: str, most: int | None) -> _Survey:
    """What the first samples of an archive have, or all with None; looked at once a process."""
    status = os.stat(path)
    return _survey_file(path, most, status.st_mtime_ns, status.st_size)


@lru_cache(2**16)
def _survey_file(path: str, most: int | None, _changed: int, _size: int) -> _Survey:
    types: dict[str, pa.DataType] = {}
    several: set[str] = set()
    skipped: dict[str, Skipped] = {}
    for sample in islice(_samples(path, skipped=skipped), most):
        groups = [group for field in sample if (group := _image_group(field)) is not None]
        several |= {group for group in groups if groups.count(group) > 1}
        for field, value in sample.items():
            kind = pa.null() if _image_group(field) is not None else _infer(_plain(value))
            types[field] = _merge(types.get(field, pa.null()), kind)
    return _Survey(types, frozenset(several), skipped)


def _samples(
    path: str, with_images: bool = False, skipped: dict[str, Skipped] | None = None
) -> Iterator[Sample]:
    """The samples of an archive; their images are empty unless they are asked for.

    Args:
        path: The archive.
        with_images: Whether images are asked for.
        skipped: Takes up what belongs to no sample, unless None.

    Raises:
        ReadError: The archive is damaged.
        ValueError: A sample is not what its ending says.
    """
    samples = WebDataset._get_pipeline_from_tar(
        path, _members(path, with_images, {} if skipped is None else skipped)
    )
    place = "its first sample"
    while True:
        try:
            sample = next(samples)
        except StopIteration:
            return
        except ValueError as error:
            raise ValueError(f"the archive '{path}' is damaged at {place}: {error}") from None
        place = f"what follows the sample '{sample['__key__']}'"
        yield sample


def _features(types: Mapping[str, pa.DataType | None]) -> Features:
    """What `datasets` calls the columns."""
    plain = {key: pa.null() if kind is None else _settle(kind) for key, kind in types.items()}
    features = Features.from_arrow_schema(pa.schema(list(plain.items())))
    return Features({key: Image() if types[key] is None else features[key] for key in types})


def _members(
    path: str, with_images: bool, skipped: dict[str, Skipped]
) -> Iterator[tuple[str, IO[bytes]]]:
    """Names and contents of an archive's files; images are empty unless they are asked for.

    An image without an ending is called as if it had the ending `_NO_ENDING`.

    Raises:
        ReadError: The archive is damaged.
    """
    last = "the beginning"
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]
                name = member.name
                content = archive.extractfile(member) if member.isreg() else None
                kind = _LITTER if member.isdir() else _skipped_kind(name, content)
                if kind is not None or content is None:
                    skipped.setdefault(kind or _LITTER, Skipped()).add(f"{Path(path).name}/{name}")
                    continue
                last = f"'{name}'"
                if (field := base_plus_ext(name)[1]) is None:
                    name, field = f"{name}.{_NO_ENDING}", _NO_ENDING
                is_passed = not with_images and _image_group(field) is not None
                yield name, io.BytesIO() if is_passed else content
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise tarfile.ReadError(f"the archive '{path}' is damaged at {last}: {error}") from None


def _skipped_kind(name: str, content: IO[bytes] | None) -> str | None:
    """What a member that belongs to no sample is called in the plural; None for others.

    Args:
        name: Its path.
        content: What it holds, from which nothing is taken; None where it is not a file.
    """
    if content is None:
        return "links and devices"
    file = Path(name).name

    def head() -> bytes:
        return cast("BufferedReader", content).peek(PREFIX_SIZE)[:PREFIX_SIZE]

    if file.startswith("."):
        is_image = not file.startswith("._") and file_kind(file, head) == "image"
        return "hidden images" if is_image else _LITTER
    has_key = base_plus_ext(f"{name}.{_NO_ENDING}")[0] is not None
    has_ending = base_plus_ext(name)[0] is not None and not file.startswith("__")
    if has_ending or (has_key and file_kind(file, head) == "image"):
        return None
    return NOT_IMAGES if has_key else "names with line breaks"


def _image_group(field: str) -> str | None:
    """What a field of an image is called without its ending; None for other fields."""
    if field == _NO_ENDING:
        return ""
    group, _, ending = field.rpartition(".")
    return group if ending.lower() in WebDataset.IMAGE_EXTENSIONS else None


def _join_images(surveys: Sequence[_Survey]) -> dict[str, str]:
    """The column of each group of image fields of which every sample has one at most."""
    fields: dict[str, set[str]] = {}
    for field in chain.from_iterable(survey.types for survey in surveys):
        if (group := _image_group(field)) is not None:
            fields.setdefault(group, set()).add(field)
    several = frozenset[str]().union(*(survey.several for survey in surveys))
    return {
        group: next(iter(found)) if len(found) == 1 else group or "image"
        for group, found in fields.items()
        if group not in several
    }


def _plain(value: Any) -> Any:
    return cast_to_python_objects(value, only_1d_for_numpy=True)


def _infer(value: Any) -> pa.DataType:
    """The type of a value; of one that Arrow has no type for, JSON text."""
    if isinstance(value, dict):
        return pa.struct([(key, _infer(each)) for key, each in value.items()])
    if isinstance(value, list):
        inner = pa.null()
        for each in value:
            inner = _merge(inner, _infer(each))
        return pa.list_(inner)
    if type(value) is int and not -(2**63) <= value < 2**63:
        return _TEXT
    try:
        return pa.infer_type([value])
    except (pa.ArrowException, OverflowError):
        return _TEXT


def _merge(one: pa.DataType, two: pa.DataType) -> pa.DataType:
    """The type that has room for both."""
    kinds = pa.types
    if one == two or kinds.is_null(two):
        return one
    if kinds.is_null(one):
        return two
    numbers = [kinds.is_integer(kind) or kinds.is_floating(kind) for kind in (one, two)]
    if all(numbers):
        return pa.float64()
    if kinds.is_list(one) and kinds.is_list(two):
        return pa.list_(_merge(one.value_type, two.value_type))
    if kinds.is_struct(one) and kinds.is_struct(two):
        fields = {field.name: field.type for field in one}
        for field in two:
            fields[field.name] = _merge(fields.get(field.name, pa.null()), field.type)
        return pa.struct(list(fields.items()))
    return _TEXT


def _settle(kind: pa.DataType) -> pa.DataType:
    """A type with text in place of what stands for JSON text."""
    if _is_json(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_settle(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _settle(field.type)) for field in kind])
    return kind


def _is_json(kind: pa.DataType) -> bool:
    """Whether values become JSON text, as objects do that have no keys in any sample."""
    return pa.types.is_large_string(kind) or (pa.types.is_struct(kind) and not kind.num_fields)


def _fit(value: Any, kind: pa.DataType) -> Any:
    """A value as its column's type takes it."""
    kinds = pa.types
    if value is None:
        return None
    if _is_json(kind):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict) and kinds.is_struct(kind):
        return {field.name: _fit(value.get(field.name), field.type) for field in kind}
    if isinstance(value, list) and kinds.is_list(kind):
        return [_fit(each, kind.value_type) for each in value]
    return value
