"""Texts of any kind stay what they are: one word, one literal, one cell, one value."""

from __future__ import annotations

import ast
import subprocess

import pytest
import yaml
from markdown_it import MarkdownIt

from imagetok.cards.markdown import (
    LONGEST,
    code,
    front_matter,
    plain,
    python_text,
    shell_word,
)
from nasty_texts import NASTY

MARKDOWN = MarkdownIt("commonmark").enable("table")


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_no_text_breaks_out_of_the_place_that_it_is_made_for(text: str) -> None:
    shown, shown_code = plain(text), code(text)
    assert shown.isprintable()
    assert len(shown) <= LONGEST
    assert not set("`|<>") & set(shown)
    assert plain(shown) == shown
    shown.encode()
    paragraph, inline, _ = MARKDOWN.parse(f"before {shown_code} after")
    assert paragraph.type == "paragraph_open"
    assert inline.children is not None
    assert [child.type for child in inline.children] == ["text", "code_inline", "text"]
    assert inline.children[1].content == (shown or "(empty)")
    lines = ["| a | b |", "| --- | --- |", f"| {shown_code} | 1 |", f"| 2 | {shown_code} |"]
    types = [token.type for token in MARKDOWN.parse("\n".join(lines))]
    assert (types[0], types[-1]) == ("table_open", "table_close")
    assert (types.count("tr_open"), types.count("td_open")) == (3, 4)
    literal, word = python_text(text), shell_word(text)
    assert ast.literal_eval(literal) == text
    assert (literal + word).isprintable()
    assert "<" not in literal + word
    values = {"name": shown, "list": [shown]}
    fence, *lines, end = front_matter(values).split("\n")
    assert fence == end == "---"
    assert "---" not in lines
    assert yaml.safe_load("\n".join(lines)) == values


def test_a_plain_text_that_does_no_harm_is_not_changed() -> None:
    for text in ("user/name", "builtin:shapes?size=16&count=64", "my photos (2)", "日本語 🦆"):
        assert plain(text) == text


@pytest.mark.parametrize("name", sorted(NASTY.keys() - {"controls", "surrogate"}))
def test_a_word_of_a_command_is_the_text(name: str) -> None:
    text = NASTY[name]  # no program can be given the two that are left out
    word = shell_word(text)
    run = subprocess.run(
        ["bash", "-c", f"printf '%s.' {word} | od -An -v -tx1"],
        capture_output=True,
        text=True,
        check=True,
        env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"},
    )
    assert bytes.fromhex(run.stdout).decode() == f"{text}."


def test_words_that_need_no_quotes_have_none() -> None:
    assert [shell_word(text) for text in ("train.steps=4", "a b", "it's")] == [
        "train.steps=4",
        "'a b'",
        "'it'\"'\"'s'",
    ]
