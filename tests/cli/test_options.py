"""Options that several commands take."""

from __future__ import annotations

import pytest
import typer

from imagetok.cli.options import whole_option


@pytest.mark.parametrize(
    ("text", "number"), [("7", 7), ("1e4", 10_000), ("1.5e3", 1500), ("-2", -2), ("2.0", 2), (3, 3)]
)
def test_an_integer_may_be_written_with_an_exponent(text: str | int, number: int) -> None:
    found = whole_option("").parser(text)
    assert (found, type(found)) == (number, int)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x", "found 'x'; expected an integer"),
        ("1e-1", "found '1e-1'; expected an integer"),
        ("1e999999999", "expected an integer"),
        ("inf", "expected an integer"),
        ("", "expected an integer"),
        ("0", "found '0'; expected at least 1"),
        ("1e3", "found '1e3'; expected at most 999"),
    ],
)
def test_what_is_no_integer_or_out_of_range_is_refused(text: str, words: str) -> None:
    with pytest.raises(typer.BadParameter, match=words):
        whole_option("", least=1, most=999).parser(text)
