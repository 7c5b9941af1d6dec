"""Tar archives of samples, as WebDataset lays them out, for what `datasets` reads archives with.

    1.jpg, 1.json, 1.txt, 2.png, ...  -->  rows of the columns image, json, txt, __key__, __url__

Files whose paths are the same up to the first dot of their names are a sample; what follows the dot
is the column. A sample's image may end in anything: where all endings are the same, they name the
column, and otherwise it is `image`. Columns and their types are those of all samples: integers and
floats are floats, JSON objects have the keys of all, and other mixtures are JSON text. So nothing
that is kept depends on which samples come first.
"""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from datasets import BuilderConfig, Features, Image, SplitGenerator
from datasets.builder import Key
from datasets.features.features import cast_to_python_objects
from datasets.packaged_modules.webdataset.webdataset import WebDataset, base_plus_ext

from imagetok.errors import DataError

FIRST_SAMPLES = 20
"""Samples of each archive whose endings name the columns of images, and which are all that is
looked at beforehand where a stream is asked for images alone.
"""

FORMAT = "1"
"""Changes where other rows come out of equal archives, so that the cache has none of before."""

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


class TarSamples(WebDataset):  # type: ignore[misc]
    """The samples of tar archives on this machine, in the order of archives and members."""

    BUILDER_CONFIG_CLASS = TarConfig

    def _split_generators(self, dl_manager: Any) -> list[SplitGenerator]:
        files = {split: list(map(str, paths)) for split, paths in self.config.data_files.items()}
        every = [path for paths in files.values() for path in paths]
        first = [list(islice(self._samples(path), FIRST_SAMPLES)) for path in every]
        self._joint = _join_images(list(chain.from_iterable(first)))
        found = self._find_types(chain.from_iterable(first))
        asked = self.config.columns or ()
        if not dl_manager.is_streaming or any(name in found and found[name] for name in asked):
            found = self._find_types(each for path in every for each in self._samples(path))
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
            for number, sample in enumerate(self._samples(path, with_images=True)):
                row: Sample = dict.fromkeys(self._types)
                for field, value in sample.items():
                    name = self._column(field)
                    if name not in row:
                        continue
                    kind = self._types[name]
                    if kind is not None:
                        row[name] = _fit(_plain(value), kind)
                    elif row[name] is None:
                        row[name] = {"path": f"{sample['__key__']}.{field}", "bytes": value}
                    else:
                        raise DataError(
                            f"the sample '{sample['__key__']}' of '{path}' has several images in "
                            f"place of one '{name}', which the first samples have"
                        )
                yield Key(archive, number), row

    def _find_types(self, samples: Iterable[Sample]) -> dict[str, pa.DataType | None]:
        """The columns in the order in which samples have them; None stands for an image."""
        types: dict[str, pa.DataType | None] = {}
        for sample in samples:
            for field, value in sample.items():
                name = self._column(field)
                if _image_group(field) is not None:
                    types[name] = None
                else:
                    before = types.get(name) or pa.null()
                    types[name] = _merge(before, _infer(_plain(value)))
        return types

    def _column(self, field: str) -> str:
        group = _image_group(field)
        return field if group is None else self._joint.get(group, field)

    def _samples(self, path: str, with_images: bool = False) -> Iterator[Sample]:
        yield from self._get_pipeline_from_tar(path, _members(path, with_images))


def _features(types: Mapping[str, pa.DataType | None]) -> Features:
    """What `datasets` calls the columns."""
    plain = {key: pa.null() if kind is None else _settle(kind) for key, kind in types.items()}
    features = Features.from_arrow_schema(pa.schema(list(plain.items())))
    return Features({key: Image() if types[key] is None else features[key] for key in types})


def _members(path: str, with_images: bool) -> Iterator[tuple[str, IO[bytes]]]:
    """Names and contents of an archive's files; images are empty unless they are asked for.

    Raises:
        ReadError: The archive is damaged.
    """
    last = "the beginning"
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                name = member.name
                if not member.isreg() or Path(name).name.startswith((".", "__")):
                    continue
                last = f"'{name}'"
                field = base_plus_ext(name)[1]
                is_passed = not with_images and field and _image_group(field) is not None
                content = None if is_passed else archive.extractfile(member)
                yield name, io.BytesIO() if content is None else content
                archive.members = []  # type: ignore[attr-defined]
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise tarfile.ReadError(f"the archive '{path}' is damaged at {last}: {error}") from None


def _image_group(field: str) -> str | None:
    """What a field of an image is called without its ending; None for other fields."""
    group, _, ending = field.rpartition(".")
    return group if ending.lower() in WebDataset.IMAGE_EXTENSIONS else None


def _join_images(samples: Sequence[Sample]) -> dict[str, str]:
    """The column of each group of image fields of which every sample has one at most."""
    fields: dict[str, set[str]] = {}
    several = set()
    for sample in samples:
        groups = [group for field in sample if (group := _image_group(field)) is not None]
        several |= {group for group in groups if groups.count(group) > 1}
        for field in sample:
            if (group := _image_group(field)) is not None:
                fields.setdefault(group, set()).add(field)
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
