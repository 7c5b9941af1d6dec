"""What no source of ours may do, because a file could then run code or choose what runs.

Every name is resolved through the file's imports, so that neither `from torch import load as read`
nor `np = numpy` hides anything.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import TypeGuard

FORBIDDEN: dict[str, str] = {
    **dict.fromkeys(
        ("pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "pandas.eval"),
        "executes what it reads",
    ),
    **dict.fromkeys(
        ("torch.load", "torch.save", "torch.serialization", "torch.package", "torch.hub"),
        "goes through pickles",
    ),
    **dict.fromkeys(
        ("numpy.load", "numpy.save", "numpy.savez", "numpy.lib", "pandas.read_pickle"),
        "goes through pickles",
    ),
    **dict.fromkeys(
        ("torch.jit", "torch.export", "torch.ops.load_library", "torch.utils.cpp_extension"),
        "loads programs",
    ),
    **dict.fromkeys(
        ("ctypes.CDLL", "ctypes.cdll", "runpy", "imp", "importlib.util", "importlib.machinery"),
        "loads programs",
    ),
    **dict.fromkeys(("builtins", "code", "codeop"), "executes text"),
    **dict.fromkeys(
        ("pydoc", "pkgutil", "sys.modules", "operator.attrgetter", "operator.methodcaller"),
        "finds things by name",
    ),
    **dict.fromkeys(("os.system", "os.popen", "os.posix_spawn", "pty"), "starts programs"),
    **dict.fromkeys(("os.execv", "os.execve", "os.execl", "os.spawnv"), "starts programs"),
}
"""Libraries and what they hold: why they have no place here."""

BUILTINS = {
    "eval": "executes text",
    "exec": "executes text",
    "compile": "executes text",
    "__import__": "imports by name",
    "__builtins__": "finds things by name",
    "globals": "finds things by name",
    "locals": "finds things by name",
    "vars": "finds things by name",
}
"""Built-in functions that are not called; the first ones are not even mentioned."""

UNMENTIONED = {"eval", "exec", "__import__", "__builtins__"}

ATTRIBUTES = {
    "__subclasses__": "finds classes by name",
    "__globals__": "finds things by name",
    "load_state": "accelerate's goes through pickles",
    "save_state": "accelerate's goes through pickles",
    "to_pickle": "goes through pickles",
    "read_pickle": "goes through pickles",
    "allow_pickle": "goes through pickles",
    "unsafe_load": "executes what it reads",
}
"""What nothing is asked for, whatever it is."""

KEYWORDS = {
    "allow_pickle": "goes through pickles",
    "trust_remote_code": "runs code of a repository",
}
"""Arguments that nothing is given."""

YAML_NAMES = {
    *("safe_load", "safe_dump", "SafeLoader", "YAMLError", "MarkedYAMLError"),
    *("Node", "MappingNode", "ScalarNode"),
}

STARTS_PROGRAMS = {
    "imagetok/codesearch/kernel.py": "compiles its own source",
    "imagetok/quickstart.py": "compares with a fresh process of its own module",
    "scripts/benchmarks/programs.py": "times commands in fresh processes",
    "scripts/check_lower_bounds.py": "runs pip and the checks",
    "scripts/soak.py": "starts and kills whole runs",
}
"""The files that may import subprocess, and what for."""


STANDS_IN = {
    "scripts/benchmarks/peers.py": "puts empty modules where a peer imports what it does not need",
}
"""The files that may change what is imported, and what for."""
LOADS_PROGRAMS = {
    "imagetok/codesearch/kernel.py": "loads what it compiled of its own source",
}
"""The files that may load a library by its path, and which."""


IMPORTS_BY_NAME = {
    "imagetok/config/registry.py": "imports the modules that a user names by --import",
}
"""The files that may import what stands in no table, and why; never because a file says so."""


def violations(source: str, place: str) -> list[str]:
    """Every breach in a Python source, as `place:line: name: reason`."""
    tree = ast.parse(source, place)
    names, tables = _names(tree), _tables(tree)
    found: set[tuple[int, str]] = set()
    loads_nothing = {node.func for node in ast.walk(tree) if _is_own_process(node, names)}
    for node in ast.walk(tree):
        if node in loads_nothing:
            continue
        found |= {(line, reason) for line, reason in _breaches(node, names, place)}
        if isinstance(node, ast.Call):
            found |= {(node.lineno, reason) for reason in _in_call(node, names, tables, place)}
    return [f"{place}:{line}: {reason}" for line, reason in sorted(found)]


def _names(tree: ast.Module) -> dict[str, str]:
    """The full name of every import, by its name in the file; other names for it as well."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.partition(".")[0]
                names[alias.asname or whole] = whole
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            names |= {alias.asname or alias.name: f"{source}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and (renamed := _full_name(node.value, names)):
            names |= {t.id: renamed for t in node.targets if isinstance(t, ast.Name)}
    return names


def _is_own_process(node: ast.AST, names: Mapping[str, str]) -> TypeGuard[ast.Call]:
    """Whether a node is `ctypes.CDLL(None)`: what the process has loaded already, and no file."""
    return (
        isinstance(node, ast.Call)
        and _full_name(node.func, names) == "ctypes.CDLL"
        and not node.keywords
        and [ast.unparse(argument) for argument in node.args] == ["None"]
    )


def _tables(tree: ast.Module) -> set[str]:
    """Names of the module's constants that are dictionaries of literal texts."""
    return {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        for target in node.targets
        if isinstance(target, ast.Name) and all(map(_is_literal, node.value.values))
    }


def _breaches(node: ast.AST, names: Mapping[str, str], place: str) -> Iterator[tuple[int, str]]:
    """Names that are imported or mentioned."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        module = node.module or "" if isinstance(node, ast.ImportFrom) else None
        for alias in node.names:
            name = alias.name if module is None else f"{module}.{alias.name}"
            yield from ((node.lineno, reason) for reason in _refuse(name, place))
    elif isinstance(node, ast.Name) and node.id in UNMENTIONED:
        yield node.lineno, f"{node.id}: {BUILTINS[node.id]}"
    elif isinstance(node, ast.Attribute):
        if node.attr in ATTRIBUTES:
            yield node.lineno, f"{node.attr}: {ATTRIBUTES[node.attr]}"
        if name := _full_name(node, names):
            yield from ((node.lineno, reason) for reason in _refuse(name, place))
    elif isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith(".__dict__"):
        yield node.lineno, "__dict__[...]: finds things by name"


def _refuse(name: str, place: str) -> Iterator[str]:
    """Why a library, or what it holds, has no place in a file."""
    for forbidden, reason in FORBIDDEN.items():
        is_own = forbidden == "ctypes.CDLL" and place in LOADS_PROGRAMS
        if is_own or (forbidden == "sys.modules" and place in STANDS_IN):
            continue
        if f"{name}.".startswith(f"{forbidden}."):
            yield f"{forbidden}: {reason}"
    library, _, rest = name.partition(".")
    if library == "yaml" and rest and rest.partition(".")[0] not in YAML_NAMES:
        yield f"{name}: only {', '.join(sorted(YAML_NAMES))} are used of yaml"
    if library == "subprocess" and place not in STARTS_PROGRAMS:
        yield "subprocess: starts programs"
    if rest.endswith("*"):
        yield f"{name}: hides what is imported"


def _in_call(
    node: ast.Call, names: Mapping[str, str], tables: set[str], place: str
) -> Iterator[str]:
    """What is wrong with a call and its arguments."""
    function = _full_name(node.func, names) or ""
    if isinstance(node.func, ast.Name) and node.func.id in BUILTINS and node.func.id not in names:
        yield f"{node.func.id}: {BUILTINS[node.func.id]}"
    for keyword in node.keywords:
        if keyword.arg in KEYWORDS:
            yield f"{keyword.arg}: {KEYWORDS[keyword.arg]}"
        if keyword.arg == "shell":
            yield "shell: lets a text be read as commands"
    if function.startswith("subprocess.") and node.args and _is_text(node.args[0]):
        yield "subprocess: lets a text be read as a command"
    by_name = function == "importlib.import_module" and not _is_fixed(node.args[0], tables)
    if by_name and place not in IMPORTS_BY_NAME:
        yield "import_module: imports by a name that stands in no table of the file"
    if isinstance(node.func, ast.Name) and node.func.id == "getattr":
        owner, attribute = node.args[:2]
        if not _is_literal(attribute) and _full_name(owner, names):
            yield "getattr: looks a name up in what was imported"


def _full_name(node: ast.AST, names: Mapping[str, str]) -> str | None:
    """`library.part.part` of what was imported; None of anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := _full_name(node.value, names)):
        return f"{owner}.{node.attr}"
    return None


def _is_literal(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_text(node: ast.AST) -> bool:
    return _is_literal(node) or isinstance(node, ast.JoinedStr | ast.BinOp)


def _is_fixed(node: ast.AST, tables: set[str]) -> bool:
    """Whether a module's name is literal, or made of literals and of entries of a table."""
    if isinstance(node, ast.JoinedStr):
        values = [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
        return all(_is_fixed(value, tables) for value in values)
    if isinstance(node, ast.Subscript):
        return isinstance(node.value, ast.Name) and node.value.id in tables
    return _is_literal(node) or (isinstance(node, ast.Name) and node.id == "__name__")
