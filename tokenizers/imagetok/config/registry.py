"""Parts: what a tokenizer, a run or an evaluation is put together from, known by kind and type.

    kind         base class of its configs           where its parts stand
    encoder      networks.EncoderConfig              networks/
    decoder      networks.DecoderConfig              networks/
    bottleneck   bottlenecks.BottleneckConfig        bottlenecks/
    likelihood   likelihoods.LikelihoodConfig        likelihoods/
    objective    objectives.ObjectiveConfig          objectives/
    metric       metrics.MetricConfig                metrics/

A part's config declares its `type` and says, as class values or properties, all that others ask of
the part. Subclassing registers it, wherever the class stands: parts of other packages become known
when their module is imported, by `--import MODULE`, or through the entry point group
`imagetok.parts`, which is read when a type is met that nothing has registered. Only registered
types are built, and nothing is imported because a file names it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from imagetok.config.strict_config import Config, NestedFaultsError, UnknownTypeError, printable
from imagetok.errors import ConfigError

ENTRY_POINTS = "imagetok.parts"
"""Entry point group of packages that bring parts; each entry names a module."""

_VENUE_FIELDS = {"article": "journal", "inproceedings": "booktitle", "misc": "howpublished"}


@dataclass(frozen=True)
class Paper:
    """A paper that a part comes from, as a bibliography has it.

    Attributes:
        kind: BibTeX entry type: `article`, `inproceedings` or `misc`.
        key: BibTeX key.
        title: Title in BibTeX, with braces around what keeps its case.
        authors: Authors in BibTeX, joined by `and`.
        year: Year of publication at `venue`.
        venue: Journal, proceedings or archive.
        arxiv: arXiv number; None where it has none.
    """

    kind: str
    key: str
    title: str
    authors: str
    year: int
    venue: str
    arxiv: str | None = None

    def bibtex(self) -> str:
        """The BibTeX entry."""
        fields = {
            "title": self.title,
            "author": self.authors,
            "year": str(self.year),
            _VENUE_FIELDS[self.kind]: self.venue,
        }
        if self.arxiv is not None:
            fields |= {"eprint": self.arxiv, "archivePrefix": "arXiv"}
        lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
        return "\n".join([f"@{self.kind}{{{self.key},", *lines, "}"])


class PartConfig(Config):
    """The config of a part. A subclass with a `type` registers itself.

    Attributes:
        type: The part's name in files; a field that every registered subclass declares.
        kind: What part it configures; set by the kind's base class.
        papers: What the part comes from; cited by model cards.
        training_only: Keys that change neither ids nor latents of given weights. The fingerprint
            leaves them out.
    """

    if TYPE_CHECKING:  # a field of every registered subclass, with a default: its only value
        type: str

    kind: ClassVar[str] = ""
    training_only: ClassVar[frozenset[str]] = frozenset()

    @property
    def papers(self) -> tuple[Paper, ...]:
        """What the part comes from."""
        return ()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Register the subclass under its kind and type."""
        super().__pydantic_init_subclass__(**kwargs)
        field = cls.model_fields.get("type")
        if field is not None and cls.kind:
            _register(cls, field.default)


_PARTS: dict[str, dict[str, type[PartConfig]]] = {}
_FAILED: dict[str, str] = {}
_entry_points_are_loaded = False


def _register(part: type[PartConfig], name: str) -> None:
    known = _PARTS.setdefault(part.kind, {})
    before = known.get(name)
    same_place = before is not None and (before.__module__, before.__qualname__) == (
        part.__module__,
        part.__qualname__,
    )
    if before is not None and not same_place:  # a module that is loaded again defines it again
        raise ConfigError(
            f"two parts call themselves {part.kind} '{name}': {before.__module__}."
            f"{before.__qualname__} and {part.__module__}.{part.__qualname__}; rename one type"
        )
    known[name] = part


def known_types(kind: str) -> list[str]:
    """Types of a kind that are registered now, sorted."""
    return sorted(_PARTS.get(kind, {}))


def find_part(kind: str, name: str) -> type[PartConfig]:
    """The config class of a part.

    Args:
        kind: Kind of the part, such as `bottleneck`.
        name: The part's `type`.

    Raises:
        UnknownTypeError: Nothing has registered it, installed packages included; the message lists
            the known types, names plug-ins that could not be imported, and says how to make one
            known.
    """
    if name not in _PARTS.get(kind, {}):
        _load_entry_points()
    try:
        return _PARTS.get(kind, {})[name]
    except KeyError:
        raise UnknownTypeError(name, known_types(kind), _remedy()) from None


def _remedy() -> str:
    failed = "".join(
        f"; the plug-in '{name}' could not be imported: {reason}"
        for name, reason in _FAILED.items()
    )
    return (
        "a type from elsewhere is made known by --import MODULE, by importing its module, or by "
        f"installing its package{failed}"
    )


def load_plugins(modules: Iterable[str]) -> None:
    """Import modules that define parts, as `--import` names them.

    A module that is not on Python's path is looked for in the current folder as well, which stays
    on the path behind everything else, so that processes started from here find it too.

    Raises:
        ConfigError: A module cannot be imported; it is named with the reason.
    """
    for name in modules:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            import_module(name)
        except Exception as error:  # whatever a foreign module raises, the user named it
            raise ConfigError(
                f"cannot import '{printable(name)}': {_reason(error)}; name a module on Python's "
                "path or in the current folder, without .py"
            ) from error


def _load_entry_points() -> None:
    global _entry_points_are_loaded
    if _entry_points_are_loaded:
        return
    _entry_points_are_loaded = True
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            entry.load()
        except Exception as error:  # reported to those who need its types, and to nobody else
            _FAILED[entry.name] = _reason(error)


def _reason(error: Exception) -> str:
    return printable(f"{type(error).__name__}: {' '.join(str(error).split())}", 300)


class PartField:
    """Metadata of a field that holds a part: `encoder: Annotated[EncoderConfig, PartField()]`.

    The part's class is looked up by kind and `type`, its values are validated as strict JSON, and
    it is written by its own class: annotated with the base class alone, pydantic would write the
    base's fields only and digests would shrink without a word.
    """

    def __get_pydantic_core_schema__(
        self, source: type[PartConfig], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """The schema that pydantic asks for."""

        def validate(value: Any) -> PartConfig:
            return value if isinstance(value, source) else _read_part(source.kind, value)

        def serialize(value: PartConfig) -> dict[str, Any]:
            return value.to_dict()

        return core_schema.no_info_plain_validator_function(
            validate, serialization=core_schema.plain_serializer_function_ser_schema(serialize)
        )


def _read_part(kind: str, value: Any) -> PartConfig:
    if not isinstance(value, Mapping):
        raise ValueError(f"found {printable(repr(value))}; expected a mapping with a key 'type'")
    name = value.get("type")
    if "type" not in value:
        raise UnknownTypeError(None, known_types(kind))
    part = find_part(kind, name if isinstance(name, str) else repr(name))
    try:
        # pydantic's strict Python mode refuses a list for a tuple; its strict JSON mode does not.
        return part.model_validate_json(json.dumps(value))
    except ValidationError as error:
        raise NestedFaultsError(part, str(name), error.errors()) from None
