"""Fenced blocks, marks, commands and trees are read from a README as they stand."""

from __future__ import annotations

import pytest

from readme_blocks import Block, blocks, commands, marked, tree_paths

README_TEXT = """
Text with `imagetok train` in it.

<!-- main -->
```bash
pip install -c constraints.txt . && imagetok quickstart   # four minutes
```
<!-- note -->

```python
x = 1
```

```bash
# A comment.
CUDA_VISIBLE_DEVICES=0,1 accelerate launch --num_processes 2 \\
    scripts/train.py "recipe name"

imagetok info --tokenizer a/b
```
"""

TREE_TEXT = """
tokenizers/imagetok/
├── errors.py, keys.py    exceptions, and random keys
├── config/               models
│   └── run.py            a run
└── recipes/*.yaml        recipes
README.md
"""


def test_blocks_have_language_mark_line_and_text() -> None:
    first, second, third = blocks(README_TEXT)
    assert (first.language, first.mark, first.line) == ("bash", "main", 5)
    assert second == Block("python", None, 10, "x = 1\n")
    assert third.mark is None


def test_a_block_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="opens at line 2 has no closing fence"):
        blocks("text\n```bash\npip install .\n")


@pytest.mark.parametrize("text", ["", README_TEXT + README_TEXT])
def test_a_mark_stands_before_exactly_one_block(text: str) -> None:
    assert marked(README_TEXT, "main").line == 5
    with pytest.raises(ValueError, match="write <!-- main -->"):
        marked(text, "main")


def test_commands_are_joined_split_and_freed_of_comments_and_settings() -> None:
    assert [words for block in blocks(README_TEXT) for words in commands(block.text)] == [
        ["pip", "install", "-c", "constraints.txt", "."],
        ["imagetok", "quickstart"],
        ["x", "=", "1"],
        ["accelerate", "launch", "--num_processes", "2", "scripts/train.py", "recipe name"],
        ["imagetok", "info", "--tokenizer", "a/b"],
    ]


def test_a_tree_gives_whole_paths() -> None:
    folder = "tokenizers/imagetok/"
    names = ["", "errors.py", "keys.py", "config/", "config/run.py", "recipes/*.yaml"]
    assert tree_paths(TREE_TEXT) == [*(folder + name for name in names), "README.md"]
