"""Cards that people edit: nothing that they wrote is lost, what is generated is renewed."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from imagetok.errors import HubAccessError
from imagetok.hub.card_merge import CARD_BEGIN, CARD_END, merge_card

FRONT = "library_name: imagetok\ntags:\n- imagetok\n- vq\nmodel-index:\n- name: new\n"
BLOCK = f"{CARD_BEGIN}\n# Title\n\nnew text\n{CARD_END}"
GENERATED = f"---\n{FRONT}---\n\n{BLOCK}\n"
OLD_BLOCK = f"{CARD_BEGIN}\nold text\n{CARD_END}"


def front_matter(card: str) -> dict[str, Any]:
    found = re.match(r"\A---\n(.*?)^---$", card, re.DOTALL | re.MULTILINE)
    assert found is not None
    values: dict[str, Any] = yaml.safe_load(found[1])
    return values


def body(card: str) -> str:
    return card.partition("\n---\n")[2]


# Text


@pytest.mark.parametrize("existing", [None, "", "\n \n"])
def test_where_there_is_no_card_the_generated_one_is_taken(existing: str | None) -> None:
    assert merge_card(GENERATED, existing) == GENERATED


def test_only_the_text_between_the_markers_is_replaced() -> None:
    above, below = "# Min båt 🚤\n\n", "\n\nwith  spaces \r\nand tabs\t\n\n\n"
    merged = merge_card(GENERATED, f"{above}{OLD_BLOCK}{below}")
    assert body(merged) == f"{above}{BLOCK}{below}"


@pytest.mark.parametrize(
    "existing", ["# Mine\n\ntext\n", "no line break", "---\nlicense: mit\n---\nx"]
)
def test_a_card_of_a_person_stays_and_the_block_follows(existing: str) -> None:
    merged = merge_card(GENERATED, existing)
    theirs = (existing.partition("---\nx")[1] and "x") or existing
    assert body(merged).startswith(theirs)
    assert merged.endswith(f"\n\n{BLOCK}\n")


@pytest.mark.parametrize(
    "existing",
    [
        f"above\n{CARD_BEGIN}\nmiddle\nbelow\n",
        f"above\nmiddle\n{CARD_END}\nbelow\n",
        f"above\n{CARD_END}\nmiddle\n{CARD_BEGIN}\nbelow\n",
        f"above\n{CARD_BEGIN}\n{CARD_BEGIN}\nmiddle\n{CARD_END}\nbelow\n",
        f"above\n{OLD_BLOCK}\nmiddle\n{OLD_BLOCK}\nbelow\n",
        f"above {CARD_BEGIN} middle\nbelow",
    ],
)
def test_damaged_markers_lose_no_text(existing: str) -> None:
    merged = merge_card(GENERATED, existing)
    kept = existing.replace(CARD_BEGIN, " ").replace(CARD_END, " ").split()
    assert body(merged).split()[: len(kept)] == kept
    assert merged.endswith(f"{BLOCK}\n")
    assert merged.count(CARD_BEGIN) == merged.count(CARD_END) == 1


def test_text_that_looks_like_a_pattern_is_taken_as_it_is() -> None:
    block = f"{CARD_BEGIN}\n\\1 \\g<0> \\n\n{CARD_END}"
    assert block in merge_card(f"{block}\n", f"a\n{OLD_BLOCK}\nb")


def test_a_generated_card_without_markers_gets_them() -> None:
    merged = merge_card("---\na: 1\n---\n\n# Title\n", None)
    assert merged == f"---\na: 1\n---\n\n{CARD_BEGIN}\n# Title\n{CARD_END}\n"
    assert merge_card("# Other\n", merged).count("# ") == 1


# Metadata


def test_missing_keys_are_added_and_peoples_values_win() -> None:
    existing = "---\nlicense: mit\nlibrary_name: theirs\n---\n"
    merged = front_matter(merge_card(GENERATED, existing))
    assert list(merged) == ["license", "library_name", "tags", "model-index"]
    assert (merged["license"], merged["library_name"]) == ("mit", "theirs")


@pytest.mark.parametrize("empty", ["license:", "license: ''", "license: []"])
def test_a_key_without_a_value_is_filled(empty: str) -> None:
    merged = merge_card("---\nlicense: mit\n---\n", f"---\n{empty}\n---\n")
    assert front_matter(merged) == {"license": "mit"}


@pytest.mark.parametrize(
    ("theirs", "united"),
    [
        ("[mine, vq]", ["mine", "vq", "imagetok"]),
        ("mine", ["mine", "imagetok", "vq"]),
        ("", ["imagetok", "vq"]),
        ("{odd: 1}", {"odd": 1}),
    ],
)
def test_tags_are_united(theirs: str, united: object) -> None:
    merged = merge_card(GENERATED, f"---\ntags: {theirs}\n---\n")
    assert front_matter(merged)["tags"] == united


@pytest.mark.parametrize("key", ["model-index", "dataset_info", "configs"])
def test_what_describes_the_files_is_renewed(key: str) -> None:
    merged = merge_card(f"---\n{key}: [new]\n---\n", f"---\n{key}:\n- old\n- older\nx: 1\n---\n")
    assert front_matter(merged) == {key: ["new"], "x": 1}


def test_figures_of_other_weights_go_where_none_were_measured() -> None:
    existing = "---\nmodel-index:\n- name: old\nlicense: mit\nconfigs: [mine]\n---\n"
    merged = front_matter(merge_card("---\nlicense: mit\n---\n", existing))
    assert merged == {"license": "mit", "configs": ["mine"]}


def test_metadata_that_does_not_change_keeps_its_spelling() -> None:
    theirs = (
        "# about us\nlanguage: no  # norsk\nversion: 1.10\n\n"
        "pretty_name: 'Båt'\ndate: 2024-01-02\nlong: >\n  folded\n\n  text\n"
    )
    merged = merge_card(GENERATED, f"---\n{theirs}---\nx")
    assert merged.startswith(f"---\n{theirs}")
    assert front_matter(merged)["model-index"] == [{"name": "new"}]


@pytest.mark.parametrize(
    "theirs",
    [
        "{license: mit, tags: [a]}",
        "license: mit\ntags:\n- a\n# between\n- b",
        "'license': mit\n\"tags\": [a]",
        "license: mit\ntags: [a,\n  b]",
        "license: mit\ntags: &x [a]\nmore: *x",
        "? license\n: mit",
        "license: mit\nlicense: mit",
        "license: mit\n1: one\n",
        "license: mit\nscore: .nan",
        "license: mit\ntext: |\n  a: b\n\n  # c\ntags: [a]",
    ],
)
def test_every_layout_of_metadata_keeps_its_values(theirs: str) -> None:
    values = yaml.safe_load(theirs)
    merged = front_matter(merge_card(GENERATED, f"---\n{theirs}\n---\nx"))
    for key in values.keys() - {"tags"}:
        assert repr(merged[key]) == repr(values[key])
    assert set(values.get("tags", [])) | {"imagetok", "vq"} == set(merged["tags"])
    assert merged["library_name"] == "imagetok"


def test_aliases_that_unfold_without_bound_are_kept_as_they_are() -> None:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    bomb = "\n".join(["a0: &a0 [x]", *levels])
    assert f"---\n{bomb}\n" in merge_card(GENERATED, f"---\n{bomb}\n---\nx")


@pytest.mark.parametrize(
    "fence", ["---\r\nlicense: mit\r\n---\r\n", "\ufeff---\nlicense: mit\n---\n"]
)
def test_other_line_endings_and_marks_are_understood(fence: str) -> None:
    merged = front_matter(merge_card(GENERATED, f"{fence}x").replace("\r\n", "\n"))
    assert merged["license"] == "mit"


def test_a_rule_in_the_text_is_no_metadata() -> None:
    existing = "# Mine\n\n---\na: b\n---\n"
    assert body(merge_card(GENERATED, existing)).startswith(existing)


@pytest.mark.parametrize(
    ("front", "named"),
    [
        ("a: [", r"not valid YAML in line \d"),
        ("a: b: c", "not valid YAML in line 2"),
        ("date: 2024-13-45", "not valid YAML,"),
        ("!!python/object/apply:os.getcwd []", "not valid YAML"),
        ("- a", "of type list"),
        ("text", "of type str"),
        ('a: !!int ""', "not valid YAML"),
        ("a: !!timestamp x", "not valid YAML"),
        ("[" * 2000, "not valid YAML"),
    ],
    ids=range(9),
)
def test_metadata_that_cannot_be_kept_is_refused(front: str, named: str) -> None:
    with pytest.raises(HubAccessError, match=f"README.md on the Hub is {named}"):
        merge_card(GENERATED, f"---\n{front}\n---\nx")
    with pytest.raises(HubAccessError, match=f"the card to be pushed is {named}"):
        merge_card(f"---\n{front}\n---\nx", None)


@pytest.mark.parametrize(
    "existing",
    [
        None,
        "# Mine\n",
        f"---\nlicense: mit # ours\ntags: a\n---\n# Mine\n{OLD_BLOCK}\nbelow\n",
        f"---\n{{a: 1, tags: [x]}}\n---\n{CARD_BEGIN}\nx",
        "---\n---\nx",
        "---\nscore: .nan\n---\nx",
    ],
)
def test_merging_again_changes_nothing(existing: str | None) -> None:
    once = merge_card(GENERATED, existing)
    assert merge_card(GENERATED, once) == once
