"""Cards from templates: a template is the text of a card as people read it, with gaps for values.

Values may be anybody's texts: names of datasets, splits and recipes, or whatever a file holds. So
each place names the filter that makes its value harmless there, as in `{{ split | code }}`. A value
that went through no filter is refused, and so is a name that is not defined.

huggingface_hub's `ModelCard.from_template` is not used: it renders with a plain `jinja2.Template`,
which has none of these filters, silently leaves out undefined names, and cannot check that values
were escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from imagetok.cards.markdown import code, front_matter, python_text
from imagetok.display_names import without_folders
from imagetok.hub.card_merge import CARD_BEGIN, CARD_END

if TYPE_CHECKING:
    from jinja2 import Environment

UNKNOWN_LICENSE = "unknown"
"""The Hub's word for it. No file that a card is made from says which licence weights or ids have;
whoever publishes them writes it into the card, where it stays."""

NOT_RECORDED = "not recorded"


class Escaped(str):
    """A text that may stand in a card as it is: the result of a filter."""

    def __html__(self) -> str:
        return self


def render(template: str, metadata: Mapping[str, Any], **values: Any) -> str:
    """The text of a card.

    Args:
        template: Name of a template beside this module, which extends `card.md.jinja`.
        metadata: What the Hub reads: the YAML at the top.
        values: What the template asks for, by name.
    """
    markers = {"begin": CARD_BEGIN, "end": CARD_END}
    return _environment().get_template(template).render(metadata=metadata, **markers, **values)


def written(value: float) -> str:
    """A figure as a card writes it: whole numbers whole, others to six digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


@cache
def _environment() -> Environment:
    # Imported here, because every tokenizer can write a card, and few processes do.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("imagetok.cards", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_check_escaped,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Callable[[Any], str]] = {
        "code": code,
        "codebook": _codebook_words,
        "front_matter": front_matter,
        "number": written,
        "prose": str,
        "python": python_text,
        "recorded": _recorded,
        "sides": lambda sides: " x ".join(map(str, sides)) or NOT_RECORDED,
    }
    environment.filters |= {name: _escaping(function) for name, function in filters.items()}
    environment.filters["without_folders"] = without_folders
    return environment


def _escaping(function: Callable[[Any], str]) -> Callable[[Any], Escaped]:
    """The function as a filter, whose results may stand in a card as they are."""
    return lambda value: Escaped(function(value))


def _check_escaped(value: object) -> object:
    """A value that may stand in a card: a number, or the result of a filter."""
    if not (isinstance(value, int) or hasattr(value, "__html__")):
        raise TypeError(f"a template writes {value!r} without a filter")
    return value


def _recorded(value: str | float | None) -> str:
    """An entry of an evaluation, as a cell of a table."""
    if value is None:
        return NOT_RECORDED
    return code(value) if isinstance(value, str) else written(value)


def _codebook_words(sizes: Iterable[int]) -> str:
    """The codebooks of the levels of a position."""
    sizes = list(sizes)
    if len(sizes) > 1 and len(set(sizes)) == 1:
        return f"{len(sizes)} of {sizes[0]} codes each"
    return f"{', '.join(map(str, sizes))} codes"
