"""The import ladder: which module of the package may import which.

A module imports only from floors below, from its own package, and from modules named above it on
its own floor. Two files stand outside, because they re-export lazily what lies above them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

PACKAGE = "imagetok"

FLOORS: tuple[tuple[str, ...], ...] = (
    (
        "errors",
        "_version",
        "schedules",
        "keys",
        "precision",
        "files",
        "switches",
        "freed_memory",
        "config",
        "arguments",
        "display_names",
        "dataset_ref",
        "launch",
    ),
    ("images", "ids", "codesearch"),
    ("outputs", "networks", "likelihoods", "bottlenecks", "objectives", "metrics"),
    (
        "tokenizer_config",
        "build",
        "modelfile",
        "hub",
        "cards",
        "weight_fingerprint",
        "compiled_network",
        "pretrained",
        "tokenizer",
    ),
    ("run_config", "builtin", "data", "shards"),
    ("evaluation", "tokenize_config", "training", "tokenizing"),
    (
        "reports",
        "quickstart",
        "cli",
        "__main__",
    ),
)
"""Modules and packages from the lowest floor up, each floor from its top to its bottom line."""

ORDER = tuple(chain.from_iterable(FLOORS))

ALLOWED = {
    "accelerate": set(FLOORS[5]),
    "huggingface_hub": {"hub"},
    "datasets": set(ORDER) - {"networks", "likelihoods", "bottlenecks"},
}
"""Libraries that have their place: who may import them."""


LAZY = {"__init__.py", "config/__init__.py"}
"""Files that import upwards, when a name is first used."""

LATE_IMPORTS = {"import_module", "__import__"}


def violations(folder: Path) -> list[str]:
    """Every breach of the ladder in the package that lies in `folder`, as `place: reason`."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        if path.relative_to(folder).as_posix() in LAZY:
            continue
        module = (PACKAGE, *path.relative_to(folder).with_suffix("").parts)
        unit = module[1]
        if unit not in ORDER:
            found.append(f"{path}: '{unit}' stands on no floor; place it in FLOORS of {__file__}")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for line, name in _imports(tree, module[:-1]):
            reason = _refuse(unit, name)
            found += [f"{path}:{line}: {reason}"] if reason else []
        if unit != "images":
            found += [f"{path}:{line}: only imagetok.images opens images" for line in _opens(tree)]
    return found


def _refuse(unit: str, name: str) -> str | None:
    """Why `unit` may not import the module `name`, or None where it may."""
    library, *inner = name.split(".")
    if library in ALLOWED and unit not in ALLOWED[library]:
        return f"'{unit}' imports {library}, which has its place in {sorted(ALLOWED[library])}"
    if library != PACKAGE:
        return None
    if not inner or inner[0] not in ORDER:
        return f"'{unit}' imports {name}, which is no module on a floor"
    if inner[0] != unit and ORDER.index(inner[0]) > ORDER.index(unit):
        return f"'{unit}' imports {name}, which comes after it on the ladder"
    return None


def _imports(tree: ast.Module, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, absolute module name) of every import of a module in `package`, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) + 1 - node.level] if node.level else ()
            source = ".".join([*parents, *([node.module] if node.module else [])])
            if source == PACKAGE:
                yield from ((node.lineno, f"{PACKAGE}.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, source
        elif isinstance(node, ast.Call) and node.args and _called(node) in LATE_IMPORTS:
            yield node.lineno, ast.unparse(node.args[0]).strip("'")


def _called(node: ast.Call) -> str:
    """The name of the called function, without the module that it stands in."""
    return ast.unparse(node.func).split(".")[-1]


def _opens(tree: ast.Module) -> Iterator[int]:
    """Lines that use Pillow's `Image.open`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.search(r"\bImage\.open$", ast.unparse(node)):
            yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module == "PIL.Image":
            yield from (node.lineno for alias in node.names if alias.name == "open")
